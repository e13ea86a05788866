"""Map one slide: canvas, pictures, exports, figures and grade."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from panda.data.failures import Failure, record_failure
from panda.data.manifest import SlideRecord
from panda.data.slide_entry import FileIdentity
from panda.errors import PandaError, SlideError
from panda.files import remove_leftovers
from panda.inference.canvas import Canvas
from panda.inference.evaluate import SlideScore, score_canvas
from panda.inference.export import write_geojson, write_ome_tiff
from panda.inference.grade import Grade
from panda.inference.grader import GradingPredictor
from panda.inference.legends import ColourMap
from panda.inference.predictor import SegmentationPredictor
from panda.inference.quantify import Measurements, QuantifySettings, slide_quantification
from panda.inference.slide_images import Overview, write_attention, write_heatmap, write_overlay, write_view
from panda.inference.slide_result import LABEL_METRICS, RESULT_FILE, InSample, LabelMetrics, Provenance, SlideResult
from panda.wsi.label_mask import LabelMask
from panda.wsi.levels import describe_frame
from panda.wsi.slide import Slide, SlideOptions
from panda.wsi.stain_normalization import STAIN_RULES
from panda.wsi.tissue import RULES, TissueMap, list_slide_notes

log = logging.getLogger(__name__)

OUTPUTS = ("report.html", "quantification.csv", "failures.csv", "inference.json", "engine.json", "infer.log")
"""Files of an output, beside the folders of its slides."""


KEPT_BYTES = 64 * 2**20
"""Bytes of a decoded canvas in memory: most slides are decoded once."""


@dataclass(frozen=True)
class MappedSlide:
    """A slide after its files are written.

    `score` is None without a label mask. `grade` is None without a grader, or if the slide could not be graded, for
    the reason in `ungraded`.
    """

    result: SlideResult
    canvas: Canvas
    score: SlideScore | None
    grade: Grade | None
    ungraded: Failure | None


@dataclass(frozen=True)
class SlideMapper:
    """Maps slides and writes the canvas, pictures, exports and figures of each.

    Args:
        predictor: The segmentation network.
        threshold: Probability at which a pixel counts as tumour.
        quantify: Limits of the clean-up.
        grader: Grades the slides too; None grades none.
        slide_options: How slides are opened.
        colour_map: Colours of the pictures.
    """

    predictor: SegmentationPredictor
    threshold: float
    quantify: QuantifySettings
    grader: GradingPredictor | None = None
    slide_options: SlideOptions = SlideOptions()
    colour_map: ColourMap = "jet"

    @functools.cached_property
    def provenance(self) -> Provenance:
        """Everything that must be equal for the figures of two slides to be comparable."""
        values: dict[str, Any] = {
            "segmentation": {"network": self.predictor.fingerprint}
            | self.predictor.metadata.model_dump(mode="json", include={"resolution", "patch_size", "overlap"}),
            "grader": {"network": self.grader.checkpoint.fingerprint}
            | self.grader.metadata.model_dump(mode="json", include={"resolution", "tile_size", "tiles", "target"})
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
        models = {key: network.metadata for key, network in networks.items() if network}
        if normalize := {key: model.normalize for key, model in models.items() if model.normalize}:
            values["normalize"] = normalize | {"rules": STAIN_RULES}
        return Provenance.from_values(
            checkpoint=str(self.predictor.checkpoint.path),
            grading_checkpoint=str(self.grader.checkpoint.path) if self.grader else None,
            **values,
        )

    def open(self, path: Path) -> Slide:
        """Open a slide with `slide_options`; its name must be a possible name of a folder."""
        if path.stem in (".", "..", *OUTPUTS) or not path.stem.isprintable():
            raise SlideError(f"{path}: {path.stem!r} cannot name a slide's folder in the output; rename the file")
        return self.slide_options.open(path)

    def find_role(self, slide_id: str) -> InSample | None:
        """Return the role of a slide in training: `validation` slides chose the epoch or the threshold."""
        networks = [network.metadata for network in (self.predictor, self.grader) if network]
        if any(slide_id in network.train_slides for network in networks):
            return "training"
        return "validation" if any(slide_id in network.val_slides for network in networks) else None

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
        """Map one open slide into a folder; a slide that cannot be graded keeps everything except its grade.

        The canvas at `canvas_path` is reused if it fits. The map is scored against the label mask in `labelled`.
        """
        with self.predictor.hold_canvas(slide, tissue, canvas_path, on_tiles) as held:
            record, label = labelled or (None, None)
            canvas = Canvas.open(held.path, KEPT_BYTES)
            score = score_canvas(canvas, slide, label, tissue, record) if record and label else None
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
            _warn_of_replaced_file(folder, slide)
            notes = list_slide_notes(slide, tissue)
            for note in notes:
                log.warning("%s: %s", slide.path, note)
            # Removed first and written last: if it exists, all other files exist and have the same provenance.
            (folder / RESULT_FILE).unlink(missing_ok=True)
            colours, overview = self.colour_map, Overview.from_canvas(slide, canvas, tissue)
            write_heatmap(canvas, found.outlines, self.threshold, folder / "heatmap.png", colour_map=colours)
            write_overlay(overview, found.outlines, self.threshold, folder / "overlay.png", colour_map=colours)
            view = overview.resolution
            write_attention(overview.image, view, grade, slide.slide_id, folder / "attention.png")
            write_view(overview, folder, label.read_tumor(view, (0, 0), view.size) if label else None)
            write_geojson(found, slide, canvas.resolution, folder / "regions.geojson")
            write_ome_tiff(canvas, slide, folder / "probability.ome.tiff")
            result = SlideResult(
                **{name: getattr(found, name) for name in Measurements.model_fields},
                slide_id=slide.slide_id,
                file=FileIdentity.read(slide.path),
                mpp=slide.mpp,
                mpp_source=slide.mpp_source,
                mpp_note=slide.mpp_note,
                reader=slide.reader_name,
                downsample=canvas.resolution.downsample,
                view_downsample=view.downsample,
                tissue_how=tissue.how,
                bounds=slide.bounds,
                frame=describe_frame(slide.bounds),
                notes=notes,
                in_sample=self.find_role(slide.slide_id),
                grade=grade.record if grade else None,
                grade_note=ungraded.message if ungraded else None,
                against_label=_compute_label_metrics(score, self.threshold, found.tumor_mm2) if score else None,
                provenance=self.provenance,
            )
            result.write(folder)
        return MappedSlide(result, canvas, score, grade, ungraded)


def _compute_label_metrics(score: SlideScore, threshold: float, tumor_mm2: float | None) -> LabelMetrics:
    """Return the metrics of a map at a threshold; `tumor_mm2` is its area after the clean-up."""
    metrics = asdict(score.compute_metrics(threshold))
    true = metrics["true_tumor_mm2"]
    metrics["tumor_difference_mm2"] = None if tumor_mm2 is None or true is None else tumor_mm2 - true
    return LabelMetrics(**{key: metrics[key] for key in LABEL_METRICS})


def _warn_of_replaced_file(folder: Path, slide: Slide) -> None:
    """Warn if the results in a folder, which are replaced now, are of another file with the name of this slide."""
    try:
        before = SlideResult.read(folder).file
    except (OSError, PandaError):
        return
    if before != FileIdentity.read(slide.path):
        log.warning(
            "%s: the results in %s are of another file of this name, or of this file before it changed; "
            "they are replaced",
            slide.path,
            folder,
        )
