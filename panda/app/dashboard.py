"""What a run logs beside its metrics to a program that shows runs: pictures, tables, final figures and checkpoints."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Concatenate, Literal, ParamSpec, TypeVar

from pytorch_lightning.loggers import Logger

from panda.inference.panel_patches import PanelRow
from panda.report.run_summary import RunSummary
from panda.report.table import name_figure
from panda.tables import read_output_table

log = logging.getLogger(__name__)

P = ParamSpec("P")
End = Literal["finished", "failed", "interrupted"]
"""How a run ended."""
FIGURE_COLUMNS = ("split", "slides", "figure", "value", "low", "high")


D = TypeVar("D", bound="Dashboard")


def spare_run(log_it: Callable[Concatenate[D, P], None]) -> Callable[Concatenate[D, P], None]:
    """Wrap a method that logs: if it fails, warn and log no more to this program, and the run continues.

    Its folder, database or process is its own, and may be full, locked or killed.
    """

    @functools.wraps(log_it)
    def log_unless_failed(dashboard: D, /, *args: P.args, **options: P.kwargs) -> None:
        if dashboard.has_failed:
            return
        try:
            log_it(dashboard, *args, **options)
        except Exception as error:
            dashboard.has_failed = True
            warn_of_failure(dashboard.title, error)
            dashboard.end("failed")

    return log_unless_failed


class Dashboard(Logger):
    """A logger that takes more than metrics.

    The methods here log pictures, tables and figures by the three methods that a derived class defines. A derived class
    whose program shows more replaces them too.

    Attributes:
        title: Name of the program.
        has_failed: Whether it failed, see `spare_run`.
        is_continued: Whether it still has what earlier sessions of the run logged.
    """

    title: ClassVar[str]
    has_failed = False
    is_continued = False

    def put_picture(self, key: str, path: Path, epoch: int | None) -> None:
        """Log a picture, of an epoch or of the end of the run."""
        raise NotImplementedError

    def put_table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table; None is an empty field."""
        raise NotImplementedError

    def put_figures(self, figures: Mapping[str, float]) -> None:
        """Log the final figures of the run."""
        raise NotImplementedError

    def end(self, state: End) -> None:
        """Write what is left, and mark how the run ended."""
        raise NotImplementedError

    def log_rows(
        self, key: str, picture: Path, rows: Sequence[PanelRow], threshold: float, *, epoch: int | None = None
    ) -> None:
        """Log patches as the picture of `draw_panels`; without an epoch, they belong to the end of the run."""
        self.log_pictures({key: picture}, epoch)

    @spare_run
    def log_pictures(self, pictures: Mapping[str, Path], epoch: int | None = None) -> None:
        """Log those pictures that exist, each under its key."""
        for key, path in pictures.items():
            if path.is_file():
                self.put_picture(key, path, epoch)

    @spare_run
    def log_csv(self, key: str, path: Path) -> None:
        """Log a CSV file of the run as a table, if the file exists."""
        if columns := read_columns(path):
            self.put_table(key, [*columns], [*zip(*columns.values(), strict=True)])

    def log_threshold_curve(self, path: Path) -> None:
        """Log the scores at every threshold as a chart; here its picture and its table are enough."""

    @spare_run
    def log_slides(self, key: str, rows: Sequence[Mapping[str, Any]], slides: Path) -> None:
        """Log a table with one row per slide. `slides` holds the folders of the slides."""
        self.put_table(key, [*rows[0]], [[*row.values()] for row in rows])

    @spare_run
    def log_figures(self, summary: RunSummary) -> None:
        """Log the figures of validation and test with their intervals, as a table and one by one."""
        self.put_table("figures", FIGURE_COLUMNS, [*list_figures(summary)])
        self.put_figures(select_final(summary))

    def log_checkpoints(self, folder: Path, about: Mapping[str, Any]) -> None:
        """Log `last.ckpt` and `best.ckpt` with data about them; here nothing is copied."""


def warn_of_failure(title: str, error: Exception) -> None:
    """Warn that a program cannot be used; the run continues."""
    reason = str(error).partition("\n")[0] or type(error).__name__
    log.warning("%s: %s; the run continues without it, and metrics.csv has all metrics", title, reason)


def find_dashboard(loggers: Sequence[Logger]) -> Dashboard | None:
    """Return the logger that takes more than metrics, if there is one."""
    return next((logger for logger in loggers if isinstance(logger, Dashboard)), None)


def replay_views(run_dir: Path, loggers: Sequence[Logger], before: int | None = None) -> None:
    """Log the pictures again that an earlier session or another job drew during training, without single patches."""
    dashboard = find_dashboard(loggers)
    if dashboard is None or dashboard.is_continued:
        return
    for path in sorted((run_dir / "views").glob("epoch_*_*.png")):
        _, epoch, name = path.stem.split("_")
        if before is None or int(epoch) < before:
            dashboard.log_pictures({f"views/{name}": path}, int(epoch))


def end_dashboards(loggers: Sequence[Logger], state: End) -> None:
    """End what the loggers began. Otherwise the next job of a multirun could log into it."""
    if (dashboard := find_dashboard(loggers)) is not None:
        dashboard.end(state)


def list_figures(summary: RunSummary) -> Iterator[tuple[str, str, str, float, float | None, float | None]]:
    """Yield the known figures of validation and test, all and by provider, see `FIGURE_COLUMNS`."""
    for split, scores in {"val": summary.val, "test": summary.test}.items():
        for part, figures in {"all": scores, **scores.find_parts("by_provider")}.items() if scores else ():
            for key, value in figures.numbers.items():
                if value is not None:
                    low, high = figures.find_interval(key) or (None, None)
                    yield split, part, name_figure(key), float(value), low, high


def select_final(summary: RunSummary) -> dict[str, float]:
    """Return the figures of all slides and the ends of their intervals, such as `test/final_dice_low`."""
    final = {} if summary.threshold is None else {"threshold": summary.threshold}
    for split, scores in {"val": summary.val, "test": summary.test}.items():
        for key, value in scores.numbers.items() if scores else ():
            if value is not None and scores:
                ends = zip(("_low", "_high"), scores.find_interval(key) or (), strict=False)
                final |= {f"{split}/final_{key}{name}": float(end) for name, end in (("", value), *ends)}
    return final


def flatten(config: Mapping[str, Any], joint: str = ".") -> dict[str, Any]:
    """Flatten nested settings to keys such as `model.encoder_name`; an empty node stays a value."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            found |= {f"{key}{joint}{below}": deep for below, deep in flatten(value, joint).items()}
        else:
            found[str(key)] = value
    return found


def read_columns(path: Path) -> dict[str, list[Any]]:
    """Read the columns of a CSV file, as numbers if all are; an empty field is None. Without a file there are none."""
    rows = read_output_table(path)
    columns: dict[str, list[Any]] = {}
    for key in rows[0] if rows else ():
        texts = [row[key] for row in rows]
        try:
            columns[key] = [float(text) if text else None for text in texts]
        except ValueError:
            columns[key] = [text or None for text in texts]
    return columns
