"""Map one slide: canvas, pictures, exports, figures and grade."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from panda.data.failures import Failure, record_failure
from panda.data.manifest import SlideRecord
from panda.errors import SlideError
from panda.files import fingerprint, identity, remove_leftovers, write_json
from panda.inference.canvas import Canvas
from panda.inference.evaluate import SlideScore, score_canvas
from panda.inference.export import write_geojson, write_ome_tiff
from panda.inference.grader import Grade, GradingPredictor
from panda.inference.legends import ColourMap
from panda.inference.predictor import SegmentationPredictor
from panda.inference.quantify import QuantifySettings, slide_quantification
from panda.inference.slide_images import Overview, write_attention, write_heatmap, write_overlay, write_view
from panda.wsi.label_mask import LabelMask
from panda.wsi.slide import Slide, SlideOptions
from panda.wsi.stain_normalization import STAIN_RULES
from panda.wsi.tissue import RULES, TissueMap

log = logging.getLogger(__name__)

OUTPUTS = ("report.html", "quantification.csv", "failures.csv", "inference.json", "engine.json", "infer.log")
"""Files of an output, beside the folders of its slides."""


@dataclass(frozen=True)
class MappedSlide:
    """What mapping one slide gave.

    Attributes:
        row: The slide's line of `quantification.csv`.
        canvas: Its probability canvas.
        quantification: What `slide_quantification` returned.
        score: Against its label mask, where it has one.
        grade: Its grade, where a grader was given and could grade it.
        ungraded: Why a grader that was given could not.
        folder: Where its files are.
    """

    row: dict[str, Any]
    canvas: Canvas
    quantification: dict[str, Any]
    score: SlideScore | None
    grade: Grade | None
    ungraded: Failure | None
    folder: Path


ROW = (
    "slide_id",
    "tumor_percent_of_tissue",
    "tumor_mm2",
    "tissue_mm2",
    "tumor_px",
    "tissue_px",
    "unscored_tissue_px",
    "tissue_how",
    "num_regions",
    "threshold",
    "in_sample",
    "mpp_source",
)
AGAINST = ("dice", "iou", "precision", "recall", "true_tumor_mm2", "tumor_difference_mm2", "fp_mm2")
"""Figures of a slide that has a label mask: its tumour as it is found before the clean-up, and the difference of area
after it."""


def row_of(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The line of `quantification.csv` of a slide.

    Args:
        facts: What its `quantification.json` holds.

    Raises:
        KeyError: If something is missing in it.
    """
    row = {key: facts[key] for key in ROW}
    row |= facts["against_label"] or {}
    row["mpp_x"], row["mpp_y"] = facts["mpp"] or (None, None)
    if (grader := facts["made_with"]["grader"]) is not None:
        grade = facts["grade"]
        row[f"{grader['target']}_predicted"] = grade["predicted"] if grade else None
        row |= {f"p{i}": p for i, p in enumerate(grade["probabilities"] if grade else [])}
    return row


@dataclass(frozen=True)
class SlideMapper:
    """Maps slides and writes for each the canvas, pictures, exports and figures.

    Args:
        predictor: The segmentation network.
        threshold: Probability from which a pixel counts as tumour.
        quantify: Limits of the clean-up.
        grader: Adds a grade, or None.
        slide_options: How slides are opened.
        colour_map: Of the pictures.
    """

    predictor: SegmentationPredictor
    threshold: float
    quantify: QuantifySettings
    grader: GradingPredictor | None = None
    slide_options: SlideOptions = SlideOptions()
    colour_map: ColourMap = "jet"

    @functools.cached_property
    def made_with(self) -> dict[str, Any]:
        """What makes a slide's figures comparable with another's: readable values, and their `fingerprint`.

        Networks go by their weights: a checkpoint that was moved is the same one.
        """
        values = {
            "segmentation": {"network": self.predictor.fingerprint}
            | {key: self.predictor.carried[key] for key in ("resolution", "patch_size", "overlap")},
            "grader": {"network": self.grader.checkpoint.fingerprint}
            | {key: self.grader.carried[key] for key in ("resolution", "tile_size", "tiles", "target")}
            if self.grader
            else None,
            "threshold": self.threshold,
            "quantify": self.quantify.model_dump(),
            "precision": self.predictor.mode.precision,
            "compiled": self.predictor.mode.compiled,
            "tta": self.predictor.settings.tta,
            "tissue_rules": RULES,
            **asdict(self.slide_options),
        }
        networks = {"segmentation": self.predictor, "grader": self.grader}
        if normalize := {of: name for of, by in networks.items() if by and (name := by.carried["normalize"])}:
            values["normalize"] = normalize | {"rules": STAIN_RULES}
        checkpoints = {
            "checkpoint": str(self.predictor.checkpoint.path),
            "grading_checkpoint": str(self.grader.checkpoint.path) if self.grader else None,
        }
        return {"fingerprint": fingerprint(values), **checkpoints, **values}

    def open(self, path: Path) -> Slide:
        """Open a slide as its results will say it was opened.

        Raises:
            SlideError: If it cannot be opened, or its name can be no folder's.
        """
        if path.stem in (".", "..", *OUTPUTS) or not path.stem.isprintable():
            raise SlideError(f"{path}: {path.stem!r} cannot name a slide's folder in the output; rename the file")
        return self.slide_options.open(path)

    def in_sample(self, slide_id: str) -> str | None:
        """What a slide was to the networks: `training`, `validation` (epoch or threshold chosen on it), or None."""
        networks = [network.carried for network in (self.predictor, self.grader) if network]
        for key, word in (("train_slides", "training"), ("val_slides", "validation")):
            if any(slide_id in carried[key] for carried in networks):
                return word
        return None

    def map(
        self,
        slide: Slide,
        tissue: TissueMap,
        folder: Path,
        canvas_path: Path,
        on_tiles: Callable[[int, int], None] | None = None,
        *,
        labelled: tuple[SlideRecord, LabelMask] | None = None,
    ) -> MappedSlide:
        """Map one open slide into `folder`; one that cannot be graded keeps all but its grade.

        Args:
            slide: The slide.
            tissue: Its tissue.
            folder: Gets heatmap.png, overlay.png, attention.png of a grade, regions.geojson, probability.ome.tiff,
                quantification.json, and slide.jpg and map.png for the page.
            canvas_path: Where the canvas lies or will lie.
            on_tiles: As for `SegmentationPredictor.predict`.
            labelled: The slide's row and its label mask, where it has one: the map is scored against it, and the page
                shows it.

        Raises:
            PandaError: Whatever keeps this slide from being mapped.
        """
        with self.predictor.holding(slide, tissue, canvas_path, on_tiles) as canvas:
            label, score = None, None
            if labelled is not None:
                record, label = labelled
                score = score_canvas(canvas, slide, label, tissue, record)
            remove_leftovers(folder)  # the lock of the canvas keeps other writers out
            found = slide_quantification(
                canvas, slide, canvas.resolution, self.threshold, settings=self.quantify, tissue=tissue
            )
            grade, ungraded = None, None
            if self.grader:
                try:
                    grade = self.grader.grade(slide, tissue, canvas, label)
                except Exception as error:
                    ungraded = record_failure(slide.slide_id, "grading", error)
            _tell_of_another_file(folder / "quantification.json", slide)
            # Written last: where it lies, all the others do, and of the same making.
            (folder / "quantification.json").unlink(missing_ok=True)
            mask_clean = found["mask_clean"]
            colours, overview = self.colour_map, Overview.of(slide, canvas, tissue)
            write_heatmap(canvas, mask_clean, self.threshold, folder / "heatmap.png", colour_map=colours)
            write_overlay(overview, mask_clean, self.threshold, folder / "overlay.png", colour_map=colours)
            view = overview.resolution
            write_attention(overview.image, view, grade, slide.slide_id, folder / "attention.png")
            write_view(overview, folder, label.read_tumor(view, (0, 0), view.size) if label else None)
            write_geojson(found, slide, canvas.resolution, folder / "regions.geojson")
            write_ome_tiff(canvas, slide, folder / "probability.ome.tiff")
            facts = {
                "slide_id": slide.slide_id,
                "file": identity(slide.path),
                "threshold": self.threshold,
                **{key: value for key, value in found.items() if key != "mask_clean"},
                "mpp": list(slide.mpp) if slide.mpp else None,
                "mpp_source": slide.mpp_source,
                "mpp_note": slide.mpp_note,
                "reader": slide.reader_name,
                "downsample": canvas.resolution.downsample,
                "view_downsample": view.downsample,
                "tissue_how": tissue.how,
                "in_sample": self.in_sample(slide.slide_id),
                "grade": grade.plain() if grade else None,
                "grade_note": ungraded.message if ungraded else None,
                "against_label": _against(score, self.threshold, found["tumor_mm2"]) if score else None,
                "made_with": self.made_with,
            }
            write_json(folder / "quantification.json", facts)
        return MappedSlide(row_of(facts), canvas, found, score, grade, ungraded, folder)


def _against(score: SlideScore, threshold: float, tumor_mm2: float | None) -> dict[str, Any]:
    """What a map is worth against the label: figures of `AGAINST`."""
    row = score.row(threshold)
    true = row["true_tumor_mm2"]
    row["tumor_difference_mm2"] = None if tumor_mm2 is None or true is None else tumor_mm2 - true
    return {key: row[key] for key in AGAINST}


def _tell_of_another_file(path: Path, slide: Slide) -> None:
    """Warns where results that are about to be replaced are those of another file: results go by a slide's name.

    Args:
        path: The `quantification.json` of earlier results, or nothing.
        slide: The slide whose results come now.
    """
    try:
        before = json.loads(path.read_text(encoding="utf-8"))["file"]
    except (OSError, ValueError, KeyError, TypeError):
        return  # there is none, or it does not say
    if before != identity(slide.path):
        log.warning(
            "%s: the results in %s were of another file of this name, or of this one before it changed; "
            "they are replaced",
            slide.path,
            path.parent,
        )
