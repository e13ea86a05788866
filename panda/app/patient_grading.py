"""Grade patients: one bag of the tiles of all slides of a patient, and the folders of these slides."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from panda.data.failures import Failure, record_failure
from panda.data.manifest import SlideRecord
from panda.data.patients import divide_tiles, list_incomplete
from panda.inference.bag_grader import BagGrade, BagGrader
from panda.inference.grade import GradeRecord
from panda.progress import Progress

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class BagPart:
    """The tiles of one slide in the bag of its patient.

    Attributes:
        features: Their features, (K, D).
        write: Writes the folder of the slide with the grade of the patient.
    """

    features: NDArray[np.float32]
    write: Callable[[BagGrade], object]


@dataclass(eq=False)
class PatientGrading:
    """Grades patients one by one.

    Attributes:
        open_part: Reads at most k tiles of a slide; the stack closes what `BagPart.write` needs.
        stage: Name of the step, for the failures.
        on_failure: Called with each slide of a patient that cannot be graded.
        shown: Whether slides have folders.
        rows: Gets a row for each slide of a graded patient: its tiles, and their share of the attention.
    """

    grader: BagGrader
    open_part: Callable[[SlideRecord, int, tqdm[Any], ExitStack], BagPart]
    stage: str
    on_failure: Callable[[Failure], None]
    shown: bool
    rows: list[dict[str, Any]] = field(default_factory=list)

    def grade_all(self, patients: Mapping[str, Sequence[SlideRecord]]) -> dict[str, GradeRecord]:
        """Grade patients, whose slides are given by name, under a progress bar, and write the folders of the slides.

        A patient is left out if one of its slides fails.
        """
        graded = {}
        with Progress(patients.items(), self.stage, unit="patient") as bar:
            for name, slides in bar:
                if (grade := self._grade(name, slides, bar)) is not None:
                    graded[name] = grade
        return graded

    def _grade(self, patient: str, slides: Sequence[SlideRecord], bar: tqdm[Any]) -> GradeRecord | None:
        """Grade a patient; return None if a slide fails. Its slides are open together, so that each is opened once."""
        most = dict(zip(slides, divide_tiles(self.grader.metadata.tiles.k, len(slides)), strict=True))
        with ExitStack() as stack:
            parts = self._try_each(slides, lambda record: self.open_part(record, most[record], bar, stack))
            if parts is None:
                return None
            bags = {slide_id: part.features for slide_id, part in parts.items()}
            grade, by_slide = self.grader.grade_patient(patient, bags, shown=self.shown)
            if self.shown:
                write = self._try_each(slides, lambda record: parts[record.slide_id].write(by_slide[record.slide_id]))
                if write is None:
                    return None
        self.rows += [
            {"patient": patient, "slide_id": slide_id, "tiles": len(bags[slide_id]), "attention": float(own.sum())}
            for slide_id, own in ((slide_id, part.attention) for slide_id, part in by_slide.items())
        ]
        return grade

    def _try_each(self, slides: Sequence[SlideRecord], work: Callable[[SlideRecord], T]) -> Mapping[str, T] | None:
        """Return the results of all slides by id; if one fails, report all and return None."""
        found: dict[str, T] = {}
        for record in slides:
            try:
                found[record.slide_id] = work(record)
            except Exception as error:
                self.on_failure(record_failure(record.slide_id, self.stage, error))
        used = [record for record in slides if record.slide_id in found]
        for failure in list_incomplete(slides, used, "patient", self.stage):
            self.on_failure(failure)
        return found if len(used) == len(slides) else None
