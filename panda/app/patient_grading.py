"""Grade the patients of a run: one bag of the tiles of all their slides, and the folders of these slides."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from panda.app.feature_grading import FeatureGrading
from panda.app.slide_grading import SlideGrading
from panda.data.manifest import SlideRecord
from panda.data.patients import choose_labelled, divide_tiles, name_bag
from panda.errors import SlideError
from panda.inference.grade import GradeRecord
from panda.inference.grader import BagGrader, SlideBag
from panda.wsi.slide import Slide
from panda.wsi.tissue import TissueMap, find_tissue

Graded = tuple[SlideRecord, GradeRecord] | None
"""The slide with the label of a patient, under the patient's name, and the grade; None before the last slide."""


@dataclass(eq=False)
class PatientGrading:
    """Grades patients one by one, each with its last slide.

    Attributes:
        patients: The slides of each patient.
        rows: Gets a row for each slide of a graded patient: its tiles, and their share of the attention.
    """

    grader: BagGrader
    patients: Mapping[str, Sequence[SlideRecord]]
    rows: list[dict[str, Any]] = field(default_factory=list)
    _bags: dict[str, dict[str, SlideBag]] = field(default_factory=dict)

    @property
    def records(self) -> list[SlideRecord]:
        """All slides, in the order in which they must be added."""
        return [record for own in self.patients.values() for record in own]

    def add_slides(self, grading: SlideGrading) -> Callable[[SlideRecord, Slide, TissueMap, tqdm[Any]], Graded]:
        """Return the work of `run_over_slides`, which reads the tiles of slides."""

        def add(record: SlideRecord, slide: Slide, tissue: TissueMap, bar: tqdm[Any]) -> Graded:
            def write(own: SlideRecord) -> None:
                with grading.slide_options.open(own.image_path, own.slide_id) as opened:
                    grading.grade_slide(own, opened, find_tissue(opened), bar)

            bag = grading.encode_slide(slide, tissue, self._find_part(record), bar)
            return self._add(record, bag, None if grading.folder is None else write)

        return add

    def add_files(self, grading: FeatureGrading) -> Callable[[SlideRecord, tqdm[Any]], Graded]:
        """Return the work of `run_over_items`, which reads files of features."""

        def add(record: SlideRecord, bar: tqdm[Any]) -> Graded:
            bag, _ = grading.grader.encode(grading.files[record.slide_id], self._find_part(record))
            return self._add(record, bag, None if grading.folder is None else lambda own: grading.grade_slide(own, bar))

        return add

    def _find_part(self, record: SlideRecord) -> int:
        """Return the most tiles of a slide."""
        own = self.patients[name_bag(record, "patient")]
        return divide_tiles(self.grader.metadata.tiles.k, len(own))[own.index(record)]

    def _add(self, record: SlideRecord, bag: SlideBag, write: Callable[[SlideRecord], object] | None) -> Graded:
        """Add the tiles of a slide. With the last one grade the patient, and write the folders of the slides."""
        name = name_bag(record, "patient")
        own = self.patients[name]
        if name not in self._bags:
            self._bags = {name: {}}
        bags = self._bags[name]
        bags[record.slide_id] = bag
        if record != own[-1]:
            return None
        if len(bags) < len(own):
            raise SlideError(f"patient {name} is not graded, because another of its slides cannot be used")
        grade, by_slide = self.grader.grade_patient(name, bags)
        self.grader.known = {slide_id: (bags[slide_id], own_grade) for slide_id, own_grade in by_slide.items()}
        try:
            if write is not None:
                for part in own:
                    write(part)
        finally:
            self.grader.known = {}
        for slide_id, own_grade in by_slide.items():
            attention = float(own_grade.attention.sum()) if own_grade.tiles else None
            tiles = len(bags[slide_id].features)
            self.rows.append({"patient": name, "slide_id": slide_id, "tiles": tiles, "attention": attention})
        labelled = choose_labelled(own, self.grader.metadata.target)
        return dataclasses.replace(labelled, slide_id=name), grade
