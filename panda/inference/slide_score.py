"""Counts of the pixels of a slide against its label mask: the score of a slide, its metrics, and its file.

Labelled cancer outside the tissue counts with probability 0: it is missed at every threshold above 0.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeFloat, NonNegativeInt, TypeAdapter

from panda.data.manifest import SlideRecord
from panda.errors import PandaError
from panda.files import write_beside
from panda.inference.regions import compute_area_mm2
from panda.stored import Plain
from panda.tasks.bins import BINS
from panda.tasks.class_counts import confuse_classes, measure_class_dice, shape_counts
from panda.tasks.metrics import pool_histograms, score_threshold
from panda.wsi.classes import ClassSet

log = logging.getLogger(__name__)

CLASS_PIXELS = ("tp_px_", "fp_px_", "fn_px_")
"""Begin the columns of a table of slides with the pixels of a class."""
SCORE_FILE = "score.npz"
"""The score of a slide in its folder."""
SCORES = ("dice", "iou", "precision", "recall")
CALLED_PERCENT = 1.0
"""A slide is called cancer if more than this share of its tissue is called, % before the clean-up."""
STORED = ("histogram", "pixel_area_um2", "outside_px")  # fields of a `SlideScore` in a file
_BY_CLASS = "_by_class"
"""End of the name of an array with the counts of classes."""
_PLAIN = TypeAdapter(dict[str, tuple[NonNegativeFloat | None, NonNegativeInt]])
"""Fingerprint to the stored fields that are no arrays."""


@dataclass(frozen=True)
class SlideMetrics:
    """Metrics of a slide at one threshold, in the order of the columns of a table.

    The four scores are None if no cancer is labelled: Dice would be 0/0, or 0 however small the error. Labelled cancer
    outside the tissue is missed. Areas are None if µm/px is unknown. Pixels are those of the canvas. If the mask
    contradicts the grade, the truth is unknown, and so are all figures that depend on it.
    """

    slide_id: str
    provider: str
    isup_grade: int | None
    dice: float | None
    iou: float | None
    precision: float | None
    recall: float | None
    true_tumor_mm2: float | None
    fp_mm2: float | None
    fp_px: int | None
    tp_px: int | None
    fn_px: int | None
    cancer_outside_tissue_mm2: float | None
    cancer_outside_tissue_px: int
    called_percent_of_tissue: float | None
    group: str


@dataclass(frozen=True)
class SlideScore:
    """Pixel counts of one canvas against its mask.

    Attributes:
        histogram: (2, BINS) counts of tissue pixels by probability: cancer, other.
        pixel_area_um2: Area of a canvas pixel, None if µm/px is unknown.
        outside_px: Canvas pixels that are labelled cancer outside the tissue.
        by_class: Counts of `count_class_pixels`, in which cancer outside the tissue has probability 0; None with one
            class of cancer.
    """

    record: SlideRecord
    histogram: NDArray[np.int64]
    pixel_area_um2: float | None
    outside_px: int
    by_class: NDArray[np.int64] | None = None

    @property
    def labelled_px(self) -> int:
        """All canvas pixels that are labelled cancer."""
        return int(self.histogram[0].sum()) + self.outside_px

    @property
    def tissue_px(self) -> int:
        """All canvas pixels of tissue that were scored."""
        return int(self.histogram.sum())

    @property
    def full_histogram(self) -> NDArray[np.int64]:
        """The histogram with labelled cancer outside the tissue at probability 0, (2, BINS)."""
        full = self.histogram.copy()
        full[0, 0] += self.outside_px
        return full

    @property
    def contradicts_grade(self) -> bool:
        """Whether the grade says cancer and the mask labels none: the slide is not benign, and cannot be scored."""
        return bool(self.record.isup_grade) and not self.labelled_px

    def compute_mm2(self, pixels: float) -> float | None:
        """Return the area of canvas pixels, None if µm/px is unknown."""
        return compute_area_mm2(float(pixels), self.pixel_area_um2)

    def confuse_classes(self, threshold: float) -> NDArray[np.int64]:
        """Return labelled and predicted pixels at a threshold, (ROWS, C), see `panda.tasks.class_counts`."""
        assert self.by_class is not None
        return confuse_classes(self.by_class, threshold)

    def list_class_columns(self, threshold: float, classes: ClassSet) -> dict[str, float | int | None]:
        """Return the columns of each class of cancer: Dice and pixels, over those whose label names their class.

        There are none with one class of cancer. All are None if no label names a class, or the mask contradicts the
        grade. Dice is None if no label names this class.
        """
        if self.by_class is None:
            return {}
        size, columns = len(classes.names), dict[str, float | int | None]()
        known = self.confuse_classes(threshold)[:size]
        dice = measure_class_dice(known)
        for number, name in enumerate(classes.cancer_names, start=1):
            tp, named = int(known[number, number]), bool(known.any()) and not self.contradicts_grade
            counts = tp, int(known[:, number].sum()) - tp, int(known[number].sum()) - tp
            value = dice[number - 1]
            columns[f"dice_{name}"] = None if np.isnan(value) else float(value)
            columns |= {
                f"{kind}{name}": count if named else None for kind, count in zip(CLASS_PIXELS, counts, strict=True)
            }
        return columns

    def compute_metrics(self, threshold: float) -> SlideMetrics:
        """Return the metrics of the slide at a threshold."""
        at = score_threshold(self.histogram, threshold, self.outside_px)
        has_cancer, known = bool(self.labelled_px), not self.contradicts_grade
        return SlideMetrics(
            slide_id=self.record.slide_id,
            provider=self.record.provider,
            isup_grade=self.record.isup_grade,
            **{name: getattr(at, name) if has_cancer else None for name in SCORES},
            true_tumor_mm2=self.compute_mm2(self.labelled_px) if known else None,
            fp_mm2=self.compute_mm2(at.fp) if known else None,
            fp_px=at.fp if known else None,
            tp_px=at.tp if known else None,
            fn_px=at.fn if known else None,
            cancer_outside_tissue_mm2=self.compute_mm2(self.outside_px),
            cancer_outside_tissue_px=self.outside_px,
            called_percent_of_tissue=100 * (at.tp + at.fp) / self.tissue_px if self.tissue_px else None,
            group=self.record.group,
        )


def collect_histograms(scores: Sequence[SlideScore]) -> Mapping[str, NDArray[np.int64]]:
    """Map slide id to full histogram for the threshold search, without slides that contradict their grade."""
    return {score.record.slide_id: score.full_histogram for score in scores if not score.contradicts_grade}


def pool_tissue(scores: Sequence[SlideScore]) -> NDArray[np.int64]:
    """Add up the tissue of slides, (2, BINS), for calibration; without slides that contradict their grade."""
    return pool_histograms({one.record.slide_id: one.histogram for one in scores if not one.contradicts_grade})


def write_scores(path: Path, scores: Mapping[str, SlideScore]) -> None:
    """Write scores by `fingerprint_score` as one `.npz` file, so that a slide need not be mapped again."""
    plain = _PLAIN.dump_json({key: (score.pixel_area_um2, score.outside_px) for key, score in scores.items()})
    arrays: dict[str, Any] = {key: score.histogram for key, score in scores.items()}
    arrays |= {f"{key}{_BY_CLASS}": score.by_class for key, score in scores.items() if score.by_class is not None}
    with write_beside(path) as partial:
        np.savez_compressed(partial, plain=np.array(plain.decode()), **arrays)


def read_scores(
    path: Path, classes: ClassSet
) -> dict[str, tuple[NDArray[np.int64], float | None, int, NDArray[np.int64] | None]]:
    """Read the fields of scores of these classes after the record, by `fingerprint_score`; none if no file is sound."""
    if not path.exists():
        return {}
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            plain = _PLAIN.validate_json(str(stored["plain"]))
            scores = {
                key: (stored[key], *parts, stored[name] if (name := f"{key}{_BY_CLASS}") in stored else None)
                for key, parts in plain.items()
            }
        for histogram, *_, by_class in scores.values():
            _check_counts(histogram, by_class, classes)
    except Exception as error:  # zip, zlib and NumPy each have errors of their own
        log.warning("%s: damaged or edited (%s); its slides are mapped and scored again", path, error)
        return {}
    return scores


def _check_counts(histogram: NDArray[Any], by_class: NDArray[Any] | None, classes: ClassSet) -> None:
    """Raise a ValueError if the arrays of a file are not those of a score of these classes."""
    if histogram.shape != (2, BINS) or histogram.dtype != np.int64:
        raise ValueError(f"a histogram is not int64 of shape (2, {BINS})")
    right = None if classes.is_binary else (shape_counts(len(classes.names)), np.dtype(np.int64))
    if (None if by_class is None else (by_class.shape, by_class.dtype)) != right:
        raise ValueError(f"counts of classes are not those of {', '.join(classes.names)}")


class _ScoreFacts(Plain, frozen=True):
    """What the file of one score holds beside its arrays."""

    slide_id: str
    provider: str
    isup_grade: int | None
    group: str
    pixel_area_um2: NonNegativeFloat | None
    outside_px: NonNegativeInt


def write_score(path: Path, score: SlideScore) -> None:
    """Write the score of one slide, with its row of the table of labels."""
    record = score.record
    facts = _ScoreFacts(
        slide_id=record.slide_id,
        provider=record.provider,
        isup_grade=record.isup_grade,
        group=record.group,
        pixel_area_um2=score.pixel_area_um2,
        outside_px=score.outside_px,
    )
    arrays: dict[str, Any] = {"histogram": score.histogram}
    if score.by_class is not None:
        arrays["by_class"] = score.by_class
    with write_beside(path) as partial:
        np.savez_compressed(partial, facts=np.array(facts.model_dump_json()), **arrays)


def read_score(path: Path, classes: ClassSet) -> SlideScore:
    """Read the score of one slide, of these classes. Its record has no paths.

    Raises:
        PandaError: If the file is missing, or was damaged or edited.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            facts = _ScoreFacts.model_validate_json(str(stored["facts"]), strict=True)
            histogram = stored["histogram"]
            by_class = stored.get("by_class")
        _check_counts(histogram, by_class, classes)
    except Exception as error:  # zip, zlib and NumPy each have errors of their own
        raise PandaError(f"{path}: it cannot be read ({error}): map its slide again") from error
    record = SlideRecord(facts.slide_id, facts.provider, facts.isup_grade, "", Path(), None, facts.group)
    return SlideScore(record, histogram, facts.pixel_area_um2, facts.outside_px, by_class)
