"""Grade the slides of feature files, with pages that show the attention on the slides if these are there."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from panda.app.guidance import TileSettings
from panda.data.bags import read_tiles
from panda.data.bagset import BagItem
from panda.data.failures import Failure
from panda.data.feature_files import FeatureFile, FeatureOrigin, read_feature_file
from panda.data.feature_folder import FeatureFolder
from panda.data.manifest import SlideRecord
from panda.errors import MaskError, SlideError
from panda.inference.evaluate import open_label
from panda.inference.feature_grader import FeatureGrader
from panda.inference.grade import Grade, GradeRecord
from panda.inference.grader import MOST_SHOWN, score_attention
from panda.inference.slide_images import MAX_SIDE, write_attention, write_slide
from panda.inference.slide_loop import get_slide_id, run_over_items
from panda.inference.slide_result import SlideFacts
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
    """

    grader: FeatureGrader
    files: Mapping[str, Path]
    slide_options: SlideOptions
    folder: Path | None
    unusable_masks: list[str] = field(default_factory=list)

    def grade_slide(self, record: SlideRecord, _: tqdm[Any]) -> tuple[SlideRecord, GradeRecord]:
        """Grade the slide of a record, whose slide and mask need not exist."""
        labelled = record if record.mask_path is not None and record.mask_path.is_file() else None
        image = record.image_path if record.image_path.is_file() else None
        return record, self.grade_file(record.slide_id, image, labelled)[0]

    def grade_file(
        self, slide_id: str, image: Path | None, labelled: SlideRecord | None = None
    ) -> tuple[GradeRecord, FeatureOrigin]:
        """Grade the slide of a feature file, and write its folder.

        Args:
            slide_id: The slide.
            image: The file of the slide, for pictures; None without one.
            labelled: The record of the slide with its label mask, by which its attention is scored; None without one.

        Returns:
            The grade, without its tiles, and what made the features.
        """
        path = self.files[slide_id]
        if slide_id in self.grader.known:
            grade, file = self.grader.known[slide_id][1], read_feature_file(path)
        else:
            grade, file = self.grader.grade(path, shown=self.folder is not None)
        if self.folder is None:
            return grade.drop_tiles(), file.origin
        own = self.folder / slide_id
        own.mkdir(parents=True, exist_ok=True)
        for name in ("attention.png", "attention_tiles.png", "slide.jpg"):
            (own / name).unlink(missing_ok=True)
        facts = SlideFacts(slide_id=slide_id, grade=grade)
        if not grade.tiles or grade.tile_side_px is None:
            why = "coordinates" if not grade.tiles else "a size of tiles"
            facts = facts.model_copy(update={"notes": (f"The feature file has no {why}, so no attention is drawn.",)})
        elif image is None:
            facts = self._draw_tiles(facts, grade, file, own, "The slide is not given")
        else:
            try:
                with self.slide_options.open(image, slide_id) as slide:
                    facts = self._draw_slide(slide, grade, file, own, labelled)
            except SlideError as error:
                log.warning("%s is shown without its slide: %s", slide_id, error)
                facts = self._draw_tiles(facts, grade, file, own, f"The slide cannot be shown ({error})")
        facts.write(own)
        write_slide_page(own)
        return (facts.grade or grade).drop_tiles(), file.origin

    def _draw_slide(
        self, slide: Slide, grade: GradeRecord, file: FeatureFile, own: Path, labelled: SlideRecord | None
    ) -> SlideFacts:
        """Draw the attention on the slide and the most attended tiles; score it if there is a label mask."""
        grade = move_tiles(grade, slide)
        assert grade.tile_side_px is not None
        coords = np.array([(tile.x, tile.y) for tile in grade.tiles])
        _check_places(slide, coords, self.files[slide.slide_id])
        side = file.origin.tile_size or _SHOWN_PX
        view = slide.choose_resolution(downsample=max(1.0, grade.tile_side_px / side))
        side = round_px(grade.tile_side_px / view.downsample)
        if labelled is not None and grade.target.is_grade:
            grade = self._score(grade, slide, labelled, view, side)
        first = np.argsort(-grade.attention, kind="stable")[:MOST_SHOWN]
        shown = Grade(grade, np.stack(read_tiles(slide, coords[first], view, side, None)))
        image, overview = slide.overview()
        write_slide(image, own)
        write_attention(image, overview, shown, slide.slide_id, own / "attention.png")
        draw_attention_tiles(shown, own / "attention_tiles.png")
        return SlideFacts(
            slide_id=slide.slide_id,
            mpp=slide.mpp,
            view_downsample=overview.downsample,
            bounds=slide.bounds,
            frame=describe_frame(slide.bounds),
            grade=grade,
        )

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

    def _draw_tiles(self, facts: SlideFacts, grade: GradeRecord, file: FeatureFile, own: Path, why: str) -> SlideFacts:
        """Draw the attention for the tiles at their places on white."""
        assert grade.tile_side_px is not None
        coords = np.array([(tile.x, tile.y) for tile in grade.tiles])
        start = np.minimum(coords.min(axis=0), 0)  # a file may have tiles that begin before the slide
        width, height = (coords.max(axis=0) - start + grade.tile_side_px).tolist()
        downsample = max(1.0, max(width, height) / MAX_SIDE)
        size = ceil_px(width / downsample), ceil_px(height / downsample)
        side_um = file.origin.tile_um
        um = None if side_um is None else side_um / grade.tile_side_px * downsample
        view = Resolution(downsample, *size, 0, 1.0, None if um is None else (um, um))
        white = np.full((view.height, view.width, 3), 255, np.uint8)
        shown = Grade(_shift_tiles(grade, start), white[None, :0])
        write_attention(white, view, shown, facts.slide_id, own / "attention.png")
        return facts.model_copy(update={"notes": (f"{why}, so its tiles are drawn on white.",)})


def move_tiles(grade: GradeRecord, slide: Slide) -> GradeRecord:
    """Move the tiles of a feature file, whose frame is the whole file of a slide, to the frame of the slide."""
    return _shift_tiles(grade, np.array(slide.level_origins[0]))


def _shift_tiles(grade: GradeRecord, origin: NDArray[np.int64]) -> GradeRecord:
    x0, y0 = origin.tolist()
    moved = [tile.model_copy(update={"x": tile.x - x0, "y": tile.y - y0}) for tile in grade.tiles]
    return grade.model_copy(update={"tiles": tuple(moved)})


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
