"""Map one slide: canvas, score and grade."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from panda.data.failures import Failure, record_failure
from panda.data.kept_tables import KEPT_TABLES
from panda.data.manifest import SlideRecord
from panda.data.run_records import RECORDS_FOLDER
from panda.data.slide_entry import FileIdentity
from panda.errors import PandaError, SlideError
from panda.inference.bag_grader import BagGrade
from panda.inference.canvas import Canvas
from panda.inference.evaluate import score_canvas
from panda.inference.geojson import Features
from panda.inference.grader import GradingPredictor, SlideBag
from panda.inference.legends import ColourMap
from panda.inference.predictor import SegmentationPredictor
from panda.inference.quantify import QuantifySettings
from panda.inference.rule_grade import RuleGrader
from panda.inference.slide_files import SlideFiles
from panda.inference.slide_result import LABEL_METRICS, LabelMetrics, Provenance, SlideResult
from panda.inference.slide_score import SlideScore
from panda.stored import InSample
from panda.wsi.label_mask import LabelMask
from panda.wsi.slide import Slide, SlideOptions
from panda.wsi.stain_normalization import STAIN_RULES
from panda.wsi.tissue import RULES, TissueMap, list_slide_notes

log = logging.getLogger(__name__)

OUTPUTS = (
    *("report.html", "quantification.csv", "failures.csv", "inference.json", "engine.json", "infer.log"),
    *("summary.json", "test_slides.csv", "errors.csv"),
    RECORDS_FOLDER,
    KEPT_TABLES,
)
"""Files of an output, beside the folders of its slides."""


@dataclass(frozen=True)
class MappedSlide:
    """A mapped slide, whose canvas no other run replaces until `release` or the end of a `with` statement.

    Attributes:
        closing: The canvas, as soon as it is closed; a `with` statement begins with it.
        files: What the files of the slide are made from. They are not written yet.
        score: The score against the label mask, None without one.
        ungraded: The failure of the grading, if there was one.
        release: Frees the lock of the canvas; it can be called twice, and from another thread.
    """

    closing: Future[Canvas]
    files: SlideFiles
    score: SlideScore | None
    ungraded: Failure | None
    release: Callable[[], None]

    @property
    def canvas(self) -> Canvas:
        """The closed canvas."""
        return self.closing.result()

    def __enter__(self) -> MappedSlide:
        try:
            self.closing.result()
        except BaseException:
            self.release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


@dataclass(frozen=True)
class SlideMapper:
    """Maps, scores and grades slides.

    Args:
        predictor: The segmentation network.
        threshold: Probability at which a pixel counts as tumour.
        quantify: Limits of the clean-up.
        grader: Grades the slides too; None grades none.
        slide_options: How slides are opened.
        colour_map: Colours of the pictures.
        features: What a feature of `regions.geojson` is.
        rule_grader: Grades the slides by the areas of their patterns; None with one class of cancer.
    """

    predictor: SegmentationPredictor
    threshold: float
    quantify: QuantifySettings
    grader: GradingPredictor | None = None
    slide_options: SlideOptions = SlideOptions()
    colour_map: ColourMap = "jet"
    rule_grader: RuleGrader | None = None
    features: Features = "regions"

    @functools.cached_property
    def provenance(self) -> Provenance:
        """Everything that must be equal for the figures of two slides to be comparable."""
        values: dict[str, Any] = {
            "segmentation": {"network": self.predictor.fingerprint}
            | self.predictor.metadata.model_dump(mode="json", include=_list_network_fields(self.predictor)),
            "grader": {"network": self.grader.checkpoint.fingerprint}
            | self.grader.metadata.model_dump(
                mode="json", include={"resolution", "tile_size", "tiles", "target", "scale"}
            )
            | self.grader.metadata.list_confidence()
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
        if (rule := self.rule_grader) is not None:
            values["segmentation"] |= {"gleason_rule": rule.rule.model_dump(mode="json"), "band": list(rule.band)}
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
        roles = {network.find_role(slide_id) for network in networks}
        return "training" if "training" in roles else "validation" if "validation" in roles else None

    def map(
        self,
        slide: Slide,
        tissue: TissueMap,
        folder: Path,
        canvas_path: Path,
        on_tiles: Callable[[int, int], None] | None = None,
        *,
        labelled: tuple[SlideRecord, LabelMask] | None = None,
        graded: tuple[SlideBag, BagGrade] | None = None,
    ) -> MappedSlide:
        """Map and grade one open slide, whose files are to be written into a folder.

        The canvas at `canvas_path` is reused if it fits. The map is scored against the label mask in `labelled`. The
        slide has the grade in `graded`, if it was graded with its patient. A slide that cannot be graded keeps
        everything except its grade.
        """
        with contextlib.ExitStack() as lock:
            canvas = lock.enter_context(self.predictor.begin_canvas(slide, tissue, canvas_path, on_tiles))
            record, label = labelled or (None, None)
            score, ignore = None, self.predictor.metadata.ignore_background
            if record and label:
                score = score_canvas(canvas.result(), slide, label, tissue, record, ignore_background=ignore)
            grade, ungraded = None, None
            if self.grader:
                closed = canvas.result()
                try:
                    grade = self.grader.grade(slide, tissue, closed, label, graded=graded)
                except Exception as error:
                    ungraded = record_failure(slide.slide_id, "grading", error)
            _warn_of_replaced_file(folder, slide)
            notes = (*list_slide_notes(slide, tissue), *self.predictor.metadata.resolution.list_notes(slide))
            for note in notes:
                log.warning("%s: %s", slide.path, note)
            files = SlideFiles(
                slide=slide,
                tissue=tissue,
                folder=folder,
                canvas_path=canvas_path,
                threshold=self.threshold,
                quantify=self.quantify,
                colour_map=self.colour_map,
                notes=notes,
                in_sample=self.find_role(record.slide_id if record else slide.slide_id),
                provenance=self.provenance,
                label_maps=self.predictor.metadata.label_maps,
                label=label,
                score=score,
                against_label=_compute_label_metrics(score, self.threshold) if score else None,
                grade=grade,
                rule_grader=self.rule_grader,
                features=self.features,
                ignore_background=ignore,
                grade_note=ungraded.message if ungraded else None,
            )
            return MappedSlide(canvas, files, score, ungraded, lock.pop_all().close)


def _list_network_fields(predictor: SegmentationPredictor) -> set[str]:
    """Return the fields of a checkpoint on which figures depend; one class of cancer is not stated."""
    return {"resolution", "patch_size", "overlap", *(() if predictor.classes.is_binary else ("classes",))}


def _compute_label_metrics(score: SlideScore, threshold: float) -> LabelMetrics:
    """Return the metrics of a map at a threshold."""
    share = 100 * score.outside_px / score.labelled_px if score.labelled_px else None
    metrics = asdict(score.compute_metrics(threshold))
    metrics |= {"tumor_difference_mm2": None, "cancer_outside_tissue_percent": share}
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
