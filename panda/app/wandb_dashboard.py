"""Log a run to W&B: metrics, patches, curves, the table of slides and checkpoints."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import wandb
from lightning_fabric.loggers.logger import rank_zero_experiment
from PIL import Image
from pytorch_lightning.loggers import WandbLogger

from panda.app.dashboard import Dashboard, End, read_columns, spare_run
from panda.inference.panel_patches import PanelRow
from panda.inference.picture_file import find_image
from panda.tasks.threshold import CRITERIA
from panda.wsi.classes import ANY_CANCER, IGNORED

log = logging.getLogger(__name__)

LABELS = {0: "no cancer", 1: "cancer"}
_OTHER_LABELS = {ANY_CANCER: "cancer of unknown class", IGNORED: "not labelled"}
THUMBNAIL_PX = 192
"""Longest side of the pictures in the table of slides, in px."""
MAX_PICTURED = 500
"""Number of slides in the table with pictures, which take 0.2 MB each in memory."""
CURVES = ("iou", "precision", "recall", *(name for name, rule in CRITERIA.items() if not rule.lowest_is_best))
"""Prefixes of the columns that are charted."""
CHART_STEP = 4
"""Thresholds between two points of the chart, because W&B draws at most 10,000 points."""


class WandbDashboard(WandbLogger, Dashboard):
    """Lightning's W&B logger with charts over epochs and all files in the folder of the run, without prompts."""

    title = "W&B"

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run, which starts on first access, on the first device only."""
        if self._experiment is None and (begun := getattr(self, "_attach_id", None)) is not None:
            # In a training process, Lightning passes the id of the run, but W&B does not pass its folder.
            os.environ["WANDB_DIR"] = str(self._wandb_init["dir"])
            self._experiment = wandb._attach(begun)  # type: ignore[attr-defined]
        if self._experiment is None:
            self._wandb_init.pop("anonymous", None)  # W&B warns that it has no effect
            folder = Path(str(self._wandb_init["dir"])) / "wandb"
            # W&B would use the home folder, which may be full or read-only.
            os.environ.update(WANDB_DATA_DIR=str(folder / "data"), WANDB_CACHE_DIR=str(folder / "cache"))
            if self._wandb_init["mode"] == "online":
                self._connect()
            if self._experiment is None:
                self._experiment = wandb.init(**self._wandb_init)
            self._experiment.define_metric("trainer/global_step")
            self._experiment.define_metric("train/loss_step", step_metric="trainer/global_step")
            self._experiment.define_metric("*", step_metric="epoch")
        return self._experiment

    @spare_run
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics as the base class does."""
        super().log_metrics(metrics, step)

    def _connect(self) -> None:
        try:
            if not wandb.login(prompt=False):
                raise wandb.errors.UsageError("no account is known here: `wandb login`")
            self._experiment = wandb.init(**self._wandb_init)
        except wandb.errors.Error as error:
            reason = str(error).splitlines()[0]
            log.warning("logger.mode=online: W&B cannot be used (%s): the run is logged offline", reason)
            self._wandb_init["mode"] = "offline"

    def put_picture(self, key: str, path: Path, epoch: int | None) -> None:
        """See `Dashboard`."""
        of_epoch = {} if epoch is None else {"epoch": epoch}
        self.experiment.log({key: wandb.Image(str(path), caption=path.stem)} | of_epoch)

    def put_table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """See `Dashboard`."""
        self.experiment.log({key: wandb.Table(columns=[*columns], data=[[*row] for row in rows])})

    def put_figures(self, figures: Mapping[str, float]) -> None:
        """Log the final figures in the summary of the run."""
        self.experiment.summary.update(dict(figures))

    def end(self, state: End) -> None:
        """See `Dashboard`."""
        end_wandb(0 if state == "finished" else 1)

    @spare_run
    def log_rows(
        self,
        key: str,
        picture: Path,
        rows: Sequence[PanelRow],
        threshold: float,
        *,
        epoch: int | None = None,
    ) -> None:
        """Log patches twice: as the picture of `draw_panels`, and each with masks that the dashboard can hide.

        The single patches have the key `<key>_patches`. Without an epoch, they belong to the last one.
        """
        patches = [_add_masks(row, threshold) for row in rows]
        of_epoch = {} if epoch is None else {"epoch": epoch}
        self.experiment.log(
            {key: wandb.Image(str(picture), caption=picture.stem), f"{key}_patches": patches} | of_epoch
        )

    @spare_run
    def log_threshold_curve(self, path: Path) -> None:
        """Log the scores at every threshold as a chart of lines that can be picked and zoomed."""
        columns = read_columns(path)
        if not columns:
            return
        lines = {}
        for key, column in columns.items():
            known = [(x, y) for x, y in zip(columns["threshold"], column, strict=True) if y is not None][::CHART_STEP]
            if known and key.startswith(CURVES):
                lines[key] = known
        chart = wandb.plot.line_series(
            xs=[[x for x, _ in line] for line in lines.values()],
            ys=[[y for _, y in line] for line in lines.values()],
            keys=list(lines),
            title="Scores on validation by threshold",
            xname="threshold",
            split_table=True,
        )
        self.experiment.log({"threshold_curve": chart})

    @spare_run
    def log_slides(self, key: str, rows: Sequence[Mapping[str, Any]], slides: Path) -> None:
        """Log a table with one row per slide: thumbnail, heatmap, figures. `slides` holds the folders of the slides."""
        columns = list(rows[0])
        table = wandb.Table(
            columns=["slide_id", "thumbnail", "heatmap", *(name for name in columns if name != "slide_id")]
        )
        for number, row in enumerate(rows):
            folder = slides / str(row["slide_id"])
            pictures = [
                _shrink_picture(folder / name) if number < MAX_PICTURED else None
                for name in ("slide.jpg", "heatmap.png")
            ]
            table.add_data(row["slide_id"], *pictures, *(row[name] for name in columns if name != "slide_id"))
        self.experiment.log({key: table})

    @spare_run
    def log_checkpoints(self, folder: Path, about: Mapping[str, Any]) -> None:
        """Log the checkpoints as two versions of one artifact, `last` and `best`. W&B reads them in place."""
        run = self.experiment
        for name in ("last", "best"):  # W&B gives the version logged last the alias `latest`
            artifact = wandb.Artifact(f"checkpoint-{run.id}", type="model", metadata=dict(about))
            # W&B would copy mutable files and cache all, so that a sweep would take twice its disk space.
            artifact.add_file(str((folder / f"{name}.ckpt").absolute()), policy="immutable", skip_cache=True)
            run.log_artifact(artifact, aliases=[name])


def end_wandb(status: int = 0) -> None:
    """End the W&B run of this process, if there is one, with the exit status that W&B shows."""
    if wandb.run is None:
        return
    try:
        wandb.finish(status)
    except Exception as error:
        log.warning("W&B: %s; its files of this run may be incomplete", error)
        with contextlib.suppress(Exception, SystemExit):  # a job after this one needs another W&B process
            wandb.teardown()


def set_wandb_aside(run_dir: Path) -> None:
    """Move the W&B files of an interrupted session to another folder, because the resumed session logs all again.

    Otherwise the dashboard would show the run twice, with the epoch that was cut off.
    """
    for folder in sorted((run_dir / "wandb").glob("offline-run-*")):
        aside = run_dir / "wandb" / "interrupted" / folder.name
        try:
            aside.parent.mkdir(exist_ok=True)
            folder.rename(aside)
        except OSError as error:
            log.warning("W&B: %s; it shows the interrupted session too", error)


def _add_masks(row: PanelRow, threshold: float) -> wandb.Image:
    masks = {"prediction": row.predict_classes(threshold)}
    if row.truth is not None:
        masks["ground_truth"] = row.truth.astype(np.uint8) if row.labels is None else row.labels
    names = LABELS if row.classes.is_binary else {**dict(enumerate(row.classes.names)), **_OTHER_LABELS}
    return wandb.Image(
        row.image,
        caption=row.title,
        masks={name: {"mask_data": mask, "class_labels": names} for name, mask in masks.items()},
    )


def _shrink_picture(path: Path) -> wandb.Image | None:
    """Return a picture without its legend at the size for a table, or None if the file does not exist."""
    if not path.is_file():
        return None
    with Image.open(path) as picture:
        image = picture.crop(find_image(path))
        image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
        return wandb.Image(image.convert("RGB"), file_type="jpg")
