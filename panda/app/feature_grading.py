"""Grade the slides of feature files, with pages that show the attention on the slides if these are there."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from panda.app.guidance import TileSettings
from panda.app.patient_grading import BagPart
from panda.data.bags import read_tiles
from panda.data.bagset import BagItem
from panda.data.failures import Failure
from panda.data.feature_files import FeatureFile, FeatureOrigin
from panda.data.feature_folder import FeatureFolder
from panda.data.manifest import SlideRecord
from panda.errors import ManifestError, MaskError, SlideError
from panda.inference.bag_grader import BagGrade
from panda.inference.evaluate import open_label
from panda.inference.feature_grader import FeatureGrader
from panda.inference.grade import Grade, GradeRecord
from panda.inference.grader import MOST_SHOWN, score_attention
from panda.inference.slide_images import MAX_SIDE, write_attention, write_slide
from panda.inference.slide_loop import get_slide_id, run_over_items
from panda.inference.slide_result import SlideFacts, SlidePaths
from panda.report.attention_tiles import draw_attention_tiles
from panda.report.slide_page import write_slide_page
from panda.wsi.geometry import Resolution, ceil_px, round_px
from panda.wsi.levels import describe_frame
from panda.wsi.slide import Slide, SlideOptions

log = logging.getLogger(__name__)

_SHOWN_PX = 256
"""Side of a tile that is drawn if its file does not state in how many px the encoder saw it."""


@dataclass(eq=False)
class FeatureGrading:
    """Grades the slides of feature files one by one.

    Attributes:
        files: Slide id to its file of features.
        folder: Gets one folder per slide with its page and pictures. Attention is scored against label masks. If None,
            slides are only graded.
        unusable_masks: Faults of the label masks of slides that were graded without them.
        origins: What made the features of the files that were read.
    """

    grader: FeatureGrader
    files: Mapping[str, Path]
    slide_options: SlideOptions
    folder: Path | None
    unusable_masks: list[str] = field(default_factory=list)
    origins: list[FeatureOrigin] = field(default_factory=list)

    def grade_slide(self, record: SlideRecord, _: tqdm[Any]) -> tuple[SlideRecord, GradeRecord]:
        """Grade the slide of a record, whose slide and mask need not exist, and write its folder."""
        file = self.read_tiles(record.slide_id, self.grader.metadata.tiles.k)
        grade = self.grader.grade_features(file.features, shown=self.folder is not None)
        return record, self.write_slide(record, file, grade)

    def read_tiles(self, slide_id: str, k: int) -> FeatureFile:
        """Read at most k tiles of the feature file of a slide."""
        path = self.files[slide_id]
        if slide_id in (".", "..") or not slide_id.isprintable():
            raise ManifestError(f"{path}: its name cannot name a folder in the output; rename the file")
        file = self.grader.encode(path, k)
        self.origins.append(file.origin)
        return file

    def open_part(self, record: SlideRecord, k: int, _: tqdm[Any], __: ExitStack) -> BagPart:
        """See `PatientGrading`: the part of a slide in the bag of its patient."""
        file = self.read_tiles(record.slide_id, k)
        return BagPart(file.features, lambda grade: self.write_slide(record, file, grade))

    def write_slide(self, record: SlideRecord, file: FeatureFile, grade: BagGrade) -> GradeRecord:
        """Write the folder of a graded slide, if there is one.

        Args:
            record: The slide. Its file and mask need not exist.
            file: Its tiles.
            grade: Their grade.

        Returns:
            The grade, without its tiles.
        """
        if self.folder is None:
            return grade.record
        own = self.folder / record.slide_id
        own.mkdir(parents=True, exist_ok=True)
        for name in ("attention.png", "attention_tiles.png", "slide.jpg"):
            (own / name).unlink(missing_ok=True)
        if not record.image_path.is_file():
            facts = self._draw_tiles(record, grade, file, own, "The slide is not given")
        else:
            try:
                with self.slide_options.open(record.image_path, record.slide_id) as slide:
                    facts = self._draw_slide(slide, grade, file, own, record)
            except SlideError as error:
                log.warning("%s is shown without its slide: %s", record.slide_id, error)
                facts = self._draw_tiles(record, grade, file, own, f"The slide cannot be shown ({error})")
        facts.write(own)
        write_slide_page(own)
        return (facts.grade or grade.record).drop_tiles()

    def _draw_slide(
        self, slide: Slide, graded: BagGrade, file: FeatureFile, own: Path, record: SlideRecord
    ) -> SlideFacts:
        """Draw the attention on the slide and the most attended tiles; score it if there is a label mask."""
        placed = file.locate_tiles(slide)
        image, overview = slide.overview()
        facts = SlideFacts(
            slide_id=slide.slide_id,
            paths=SlidePaths.find(slide),
            mpp=slide.mpp,
            view_downsample=overview.downsample,
            bounds=slide.bounds,
            frame=describe_frame(slide.bounds),
            grade=graded.record,
        )
        if placed is None:
            write_slide(image, own)
            return facts.model_copy(update={"notes": (_explain_unplaced(file),)})
        coords, tile_side_px = placed
        _check_places(slide, coords, self.files[slide.slide_id])
        grade = graded.place_tiles(coords, tile_side_px)
        side = file.origin.tile_size or _SHOWN_PX
        view = slide.choose_resolution(downsample=max(1.0, tile_side_px / side))
        side = max(1, round_px(tile_side_px / view.downsample))
        if record.mask_path is not None and record.mask_path.is_file() and grade.target.is_grade:
            grade = self._score(grade, slide, record, view, side)
        first = np.argsort(-grade.attention, kind="stable")[:MOST_SHOWN]
        shown = Grade(grade, np.stack(read_tiles(slide, coords[first], view, side, None)))
        write_slide(image, own)
        write_attention(image, overview, shown, slide.slide_id, own / "attention.png")
        draw_attention_tiles(shown, own / "attention_tiles.png")
        return facts.model_copy(update={"grade": grade})

    def _score(
        self, grade: GradeRecord, slide: Slide, labelled: SlideRecord, view: Resolution, side: int
    ) -> GradeRecord:
        """Return the grade with its attention scored against the label mask, if this can be used."""
        try:
            with open_label(labelled, slide) as label:
                coords = np.array([(tile.x, tile.y) for tile in grade.tiles])
                scores = score_attention(label, coords, view, side, grade.attention)
        except MaskError as error:  # a grade needs no mask
            log.warning("%s is graded without its label mask: %s", slide.slide_id, error)
            self.unusable_masks.append(str(error))
            return grade
        return grade.model_copy(update={"against_label": scores})

    def _draw_tiles(self, record: SlideRecord, graded: BagGrade, file: FeatureFile, own: Path, why: str) -> SlideFacts:
        """Draw the attention for the tiles at their places on white, if these need no slide."""
        facts = SlideFacts(slide_id=record.slide_id, grade=graded.record)
        side_px = file.origin.tile_px0
        if file.coords is None or side_px is None:
            unplaced = _explain_unplaced(file)
            return facts.model_copy(update={"notes": (unplaced if file.places is None else f"{why}. {unplaced}",)})
        grade = graded.place_tiles(file.coords, side_px)
        start = np.minimum(file.coords.min(axis=0), 0)  # a file may have tiles that begin before the slide
        width, height = (file.coords.max(axis=0) - start + side_px).tolist()
        downsample = max(1.0, max(width, height) / MAX_SIDE)
        size = ceil_px(width / downsample), ceil_px(height / downsample)
        side_um = file.origin.tile_um
        um = None if side_um is None else side_um / side_px * downsample
        view = Resolution(downsample, *size, 0, 1.0, None if um is None else (um, um))
        white = np.full((view.height, view.width, 3), 255, np.uint8)
        shown = Grade(graded.place_tiles(file.coords - start, side_px), white[None, :0])
        write_attention(white, view, shown, facts.slide_id, own / "attention.png")
        return facts.model_copy(update={"grade": grade, "notes": (f"{why}, so its tiles are drawn on white.",)})


def _explain_unplaced(file: FeatureFile) -> str:
    """Return why no attention is drawn, in a sentence."""
    if file.coords is None and file.places is None:
        return "The feature file has no coordinates, so no attention is drawn."
    if file.places is not None and file.places.kind == "corner_um":
        return "The feature file has coordinates in µm, so no attention is drawn without a slide of known µm/px."
    if file.origin.tile_um is not None:
        return (
            "The feature file has the size of its tiles in µm, so no attention is drawn without a slide of known µm/px."
        )
    return "The feature file has no size of tiles, so no attention is drawn."


def _check_places(slide: Slide, coords: NDArray[np.int64], path: Path) -> None:
    """Refuse tiles past the edge of a slide, which is not the one that they were cut from."""
    outside = ((coords < 0) | (coords >= slide.dimensions)).any(axis=1)
    if outside.any():
        raise SlideError(
            f"{slide.path}: {path} has a tile at {tuple(coords[outside][0].tolist())}, which is not on the slide of "
            f"{slide.dimensions} px; its features were computed on another slide"
        )


def find_feature_items(
    records: Sequence[SlideRecord], folder: FeatureFolder, stage: str, on_failure: Callable[[Failure], None]
) -> list[BagItem]:
    """Return the bags of slides that have a feature file; each of the others is a failure."""

    def make_item(record: SlideRecord, _: tqdm[Any]) -> BagItem:
        path, count = folder.find_file(record.slide_id)
        return BagItem(record, np.empty((0, 2), np.int64), features=path, drawn_from=count)

    return run_over_items(records, get_slide_id, stage, make_item, on_failure)


def describe_tiles(tiles: TileSettings, features: FeatureFolder | None) -> dict[str, Any]:
    """Return how tiles were chosen, for the summary; of feature files also what made them."""
    plain: dict[str, Any] = tiles.model_dump(mode="json")
    if features is None:
        return plain | tiles.selection.model_dump() | {"how": tiles.how}
    kept = {key: plain[key] for key in ("how", "features", "k", "seed", "batch_size")}
    return kept | {"origin": features.origin.model_dump(mode="json", exclude_none=True)}
