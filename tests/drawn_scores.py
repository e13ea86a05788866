"""Make slides that were scored, of known pixels, and slides that were graded."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from panda.data.manifest import SlideRecord
from panda.data.targets import CANCER, ISUP
from panda.inference.dataset_metrics import summarize
from panda.inference.grade import ATTENTION_SCORES, AttentionScores, GradeRecord
from panda.inference.grading_metrics import GradedSlide
from panda.inference.slide_score import SlideScore
from panda.tasks.bins import BINS
from panda.tasks.threshold import ThresholdChoice

AREA = 4.0  # µm² of a pixel


@dataclass(frozen=True)
class Drawn:
    """A slide's pixels: probabilities on the thresholds, truth, and whether they are tissue.

    Labelled cancer outside the tissue has probability 0.
    """

    score: SlideScore
    prob: NDArray[np.float64]
    truth: NDArray[np.bool_]
    tissue: NDArray[np.bool_]


def make_record(number: int, provider: str, group: str, grade: int | None = None) -> SlideRecord:
    return SlideRecord(f"s{number}", provider, grade, "", Path("s.tiff"), None, group)


def draw(
    number: int,
    part: float,
    provider: str,
    grade: int | None,
    group: str,
    *,
    area: float | None = AREA,
    outside: int = 0,
) -> Drawn:
    """Draw a slide of 400 pixels of which a part is cancer."""
    rng = np.random.default_rng(number)
    truth = rng.random(400) < part
    k = np.clip(rng.normal(350 + 300 * truth, 150), 0, BINS - 1).astype(int)
    hist = np.stack([np.bincount(k[truth == kind], minlength=BINS) for kind in (True, False)])
    record = make_record(number, provider, group, grade)
    missed = np.zeros(outside)
    return Drawn(
        SlideScore(record, hist, area, outside),
        np.concatenate([k / BINS, missed]),
        np.concatenate([truth, missed == 0]),
        np.concatenate([np.ones_like(truth), missed != 0]),
    )


SLIDES = [
    draw(1, 0.3, "radboud", 4, "a"),
    draw(2, 0.1, "radboud", 1, "a"),
    draw(3, 0.0, "radboud", 0, "b"),
    draw(4, 0.0, "karolinska", 0, "c"),
    draw(5, 1.0, "karolinska", 4, "d"),
    draw(6, 0.5, "karolinska", None, "e", outside=30),
]
AT = ThresholdChoice.from_user(0.5)
_SEARCHED = {"criterion": "f1", "score": 0.5, "chosen_on": "", "date": "2026-01-01T00:00:00Z"}
BY_PROVIDER = ThresholdChoice.model_validate(
    {"value": 0.5, **_SEARCHED, "by_provider": {"radboud": {"value": 0.35, **_SEARCHED}}}
)


def figures(slides: Sequence[Drawn], choice: ThresholdChoice = AT) -> dict[str, Any]:
    return summarize([slide.score for slide in slides], choice, seed=3).model_dump()


def draw_graded_slide(number: int, classes: int = 6) -> GradedSlide:
    """Draw a graded slide of one of 7 groups; every third one has attention scores."""
    rng = np.random.default_rng(number)
    label = int(rng.integers(classes))
    prob = np.round(rng.dirichlet(np.ones(classes)) + 0.4 * np.eye(classes)[label], 1)
    record = SlideRecord(
        f"s{number}", "radboud" if number % 2 else "karolinska", label, "", Path("s"), None, f"g{number % 7}"
    )
    against = None
    if number % 3 == 0:
        scores = dict(zip(ATTENTION_SCORES, rng.random(3).tolist(), strict=True))
        against = AttentionScores(**scores | ({"attention_auroc": None} if number == 0 else {}))
    probabilities = (prob / prob.sum()).tolist()
    grade = GradeRecord(
        target=CANCER if classes == 2 else ISUP,
        predicted=int(prob.argmax()),
        probabilities=tuple(probabilities),
        tile_side_px=8.0,
        against_label=against,
    )
    return GradedSlide(record, (label,), grade)
