"""Log outputs other than metrics to W&B: patches, curves, the table of slides and checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import wandb
from PIL import Image
from pytorch_lightning.loggers import Logger

from panda.app.tracking import EpochLogger, find_wandb_logger, spare_run
from panda.inference.panel_patches import PanelRow
from panda.inference.picture_file import find_image
from panda.report.run_summary import RunSummary
from panda.report.table import name_figure
from panda.tables import read_output_table
from panda.tasks.threshold import CRITERIA
from panda.wsi.classes import ANY_CANCER, IGNORED

LABELS = {0: "no cancer", 1: "cancer"}
_OTHER_LABELS = {ANY_CANCER: "cancer of unknown class", IGNORED: "not labelled"}
THUMBNAIL_PX = 192
"""Longest side of the pictures in the table of slides, in px."""
MAX_PICTURED = 500
"""Number of slides in the table with pictures, which take 0.2 MB each in memory."""
MAX_TILE_PICTURES = 20
"""Number of pictures of attended tiles that are logged, because they are copied at full size."""
CURVES = ("iou", "precision", "recall", *(name for name, rule in CRITERIA.items() if not rule.lowest_is_best))
"""Prefixes of the columns that are charted."""
CHART_STEP = 4
"""Thresholds between two points of the chart, because W&B draws at most 10,000 points."""


@spare_run
def log_rows(
    logger: EpochLogger,
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
    logger.experiment.log({key: wandb.Image(str(picture), caption=picture.stem), f"{key}_patches": patches} | of_epoch)


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


def replay_views(run_dir: Path, loggers: Sequence[Logger], before: int | None = None) -> None:
    """Log the pictures again that an earlier session or another job drew during training, without single patches."""
    if (logger := find_wandb_logger(loggers)) is not None:
        _log_views(logger, run_dir, before)


@spare_run
def _log_views(logger: EpochLogger, run_dir: Path, before: int | None) -> None:
    for path in sorted((run_dir / "views").glob("epoch_*_*.png")):
        _, epoch, name = path.stem.split("_")
        if before is None or int(epoch) < before:
            picture = wandb.Image(str(path), caption=path.stem)
            logger.experiment.log({f"views/{name}": picture, "epoch": int(epoch)})


@spare_run
def log_pictures(logger: EpochLogger, pictures: Mapping[str, Path]) -> None:
    """Log those pictures that exist, each under its key."""
    if found := {key: wandb.Image(str(path)) for key, path in pictures.items() if path.is_file()}:
        logger.experiment.log(found)


@spare_run
def log_csv(logger: EpochLogger, key: str, path: Path) -> None:
    """Log a CSV file of the run as a W&B table, if the file exists."""
    if columns := _read_columns(path):
        rows = [list(row) for row in zip(*columns.values(), strict=True)]
        logger.log_table(key, columns=list(columns), data=rows)


@spare_run
def log_threshold_curve(logger: EpochLogger, path: Path) -> None:
    """Log the scores at every threshold as a chart of lines that can be picked and zoomed."""
    columns = _read_columns(path)
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
    logger.experiment.log({"threshold_curve": chart})


def _read_columns(path: Path) -> dict[str, list[Any]]:
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


@spare_run
def log_slides(logger: EpochLogger, key: str, rows: Sequence[Mapping[str, Any]], slides: Path) -> None:
    """Log a table with one row per slide: thumbnail, heatmap, figures. `slides` holds the folders of the slides."""
    columns = list(rows[0])
    table = wandb.Table(columns=["slide_id", "thumbnail", "heatmap", *(name for name in columns if name != "slide_id")])
    for number, row in enumerate(rows):
        folder = slides / str(row["slide_id"])
        pictures = [
            _shrink_picture(folder / name) if number < MAX_PICTURED else None for name in ("slide.jpg", "heatmap.png")
        ]
        table.add_data(row["slide_id"], *pictures, *(row[name] for name in columns if name != "slide_id"))
    logger.experiment.log({key: table})


def _shrink_picture(path: Path) -> wandb.Image | None:
    """Return a picture without its legend at the size for a table, or None if the file does not exist."""
    if not path.is_file():
        return None
    with Image.open(path) as picture:
        image = picture.crop(find_image(path))
        image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
        return wandb.Image(image.convert("RGB"), file_type="jpg")


@spare_run
def log_figures(logger: EpochLogger, summary: RunSummary) -> None:
    """Log the figures of validation and test with their intervals, as a table and in the summary of the run."""
    table = wandb.Table(columns=["split", "slides", "figure", "value", "low", "high"])
    final: dict[str, Any] = {}
    for split, scores in {"val": summary.val, "test": summary.test}.items():
        for part, figures in {"all": scores, **scores.find_parts("by_provider")}.items() if scores else ():
            for key, value in figures.numbers.items():
                if value is not None:
                    ends = figures.find_interval(key)
                    table.add_data(split, part, name_figure(key), float(value), *(ends or (None, None)))
                    if part == "all":
                        final[f"{split}/final_{key}"] = value
                        final |= {
                            f"{split}/final_{key}_{n}": end for n, end in zip(("low", "high"), ends or (), strict=False)
                        }
    logger.experiment.log({"figures": table})
    logger.experiment.summary.update({"threshold": summary.threshold} | final)


@spare_run
def log_checkpoints(logger: EpochLogger, folder: Path, about: Mapping[str, Any]) -> None:
    """Log the checkpoints as two versions of one artifact, `last` and `best`. W&B reads them in place."""
    run = logger.experiment
    for name in ("last", "best"):  # W&B gives the version logged last the alias `latest`
        artifact = wandb.Artifact(f"checkpoint-{run.id}", type="model", metadata=dict(about))
        # W&B would copy mutable files and cache all, so that a sweep would take twice its disk space.
        artifact.add_file(str((folder / f"{name}.ckpt").absolute()), policy="immutable", skip_cache=True)
        run.log_artifact(artifact, aliases=[name])
