"""Runs slides one after the other: what each leaves, and what happens to a bad one."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from tqdm import tqdm

from panda.data.failures import Failure, record_failure
from panda.data.manifest import SlideRecord
from panda.errors import SlideError
from panda.files import fingerprint, identity, remove, write_json
from panda.inference.canvas import Canvas
from panda.inference.evaluate import SlideScore, score_canvas
from panda.inference.export import write_geojson, write_ome_tiff
from panda.inference.grader import Grade, GradingPredictor
from panda.inference.legends import ColourMap
from panda.inference.predictor import SegmentationPredictor
from panda.inference.quantify import QuantifySettings, slide_quantification
from panda.inference.slide_images import Overview, write_attention, write_heatmap, write_overlay, write_view
from panda.wsi.labels import LabelMask
from panda.wsi.slide import Slide, SlideOptions
from panda.wsi.stain_normalization import STAIN_RULES
from panda.wsi.tissue import RULES, TissueMap, find_tissue

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

OUTPUTS = ("report.html", "quantification.csv", "failures.csv", "inference.json", "engine.json", "infer.log")
"""Files of an output, beside the folders of its slides."""


@dataclass
class Outcome(Generic[R]):
    """Results of the slides that went well and failures of the others, both in the order of the slides."""

    results: list[R] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


def each_slide(
    items: Sequence[T],
    slide_id: Callable[[T], str],
    stage: str,
    work: Callable[[T, tqdm[Any]], R],
    on_failure: Callable[[Failure], None] | None = None,
) -> Outcome[R]:
    """Do `work` for each slide under a progress bar; a bad slide is recorded and passed over.

    Args:
        items: Whatever stands for the slides.
        slide_id: Names one.
        stage: What is done, for the progress bar and the failures.
        work: Gets an item and the progress bar, for a postfix about its tiles.
        on_failure: Called at each failure, so that a list on disk is complete at any moment.

    Raises:
        OSError: If the disk is full or cannot be written: the next slide would fail alike.
        MemoryError: Likewise, and torch.OutOfMemoryError, which says it of a GPU's.
    """
    outcome: Outcome[R] = Outcome()
    with tqdm(items, desc=stage, unit="slide", dynamic_ncols=True) as bar:
        for item in bar:
            try:
                outcome.results.append(work(item, bar))
            except Exception as error:
                failure = record_failure(slide_id(item), stage, error)
                outcome.failures.append(failure)
                if on_failure:
                    on_failure(failure)
    return outcome


class SlidesAhead:
    """Opens slides and finds their tissue, each while the one before it is being worked on.

    Args:
        paths: The slides, in the order in which they will be asked for.
        open_slide: Opens one.
    """

    def __init__(self, paths: Sequence[Path], open_slide: Callable[[Path], Slide]) -> None:
        self._after = dict(zip(paths, [*paths[1:], None], strict=True)) if paths else {}
        self._open_slide = open_slide
        self._pool = ThreadPoolExecutor(1)
        self._waiting: dict[Path, Future[tuple[Slide, TissueMap]]] = {}

    def _opened(self, path: Path) -> tuple[Slide, TissueMap]:
        slide = self._open_slide(path)
        try:
            return slide, find_tissue(slide)
        except BaseException:
            slide.close()
            raise

    @contextlib.contextmanager
    def opened(self, path: Path) -> Iterator[tuple[Slide, TissueMap]]:
        """The slide and its tissue; the slide is closed at the end of the block.

        Raises:
            SlideError: If it cannot be opened, or has no tissue.
        """
        coming = self._waiting.pop(path, None) or self._pool.submit(self._opened, path)
        if (following := self._after.get(path)) is not None:
            self._waiting[following] = self._pool.submit(self._opened, following)
        slide, tissue = coming.result()
        with slide:
            yield slide, tissue

    def __enter__(self) -> SlidesAhead:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        for coming in self._waiting.values():
            if not coming.cancelled() and coming.exception() is None:
                coming.result()[0].close()


def tiles_on(bar: tqdm[Any]) -> Callable[[int, int], None]:
    """Show the tiles done of the current slide behind a progress bar over slides."""

    def show(done: int, total: int) -> None:
        bar.set_postfix_str(f"{done}/{total} tiles")

    return show


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
            "quantify": asdict(self.quantify),
            "precision": self.predictor.way.precision,
            "compiled": self.predictor.way.compiled,
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
            for leftover in folder.glob(".*.partial.*"):  # of a run that was killed; no other writes here now
                remove(leftover)
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
