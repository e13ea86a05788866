"""Figures of classes, numbers and risks, with intervals, against slower bootstraps, and their records."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError
from sklearn.metrics import cohen_kappa_score, mean_absolute_error, r2_score

from panda.data.manifest import SlideRecord
from panda.data.targets import TargetSpec
from panda.inference.grade import GradeRecord
from panda.inference.grading_metrics import GradedSlide
from panda.inference.target_figures import summarize_target
from panda.tasks.bootstrap import bootstrap_interval
from tests.test_target_metrics import count_pairs

STAGE = TargetSpec(name="stage", kind="ordinal", classes=("low", "mid", "high"), columns=("stage",))
SCANNER = TargetSpec(name="scanner", kind="classes", classes=("A", "B", "C"), columns=("scanner",))
KI67 = TargetSpec(name="ki67", kind="regression", columns=("ki67",))
SURVIVAL = TargetSpec(name="os", kind="survival", columns=("months", "dead"))


def draw_slide(number: int, target: TargetSpec) -> GradedSlide:
    """Draw a slide of one of seven groups and two providers, whose prediction follows its label loosely."""
    rng = np.random.default_rng(number)
    record = SlideRecord(
        f"s{number}", "radboud" if number % 2 else "karolinska", None, "", Path("s"), None, f"g{number % 7}"
    )
    if target.has_classes:
        label = int(rng.integers(3))
        prob = np.round(rng.dirichlet(np.ones(3)) + 0.4 * np.eye(3)[label], 1)
        prob /= prob.sum()
        grade = GradeRecord(target=target, predicted=int(prob.argmax()), probabilities=tuple(prob.tolist()))
        return GradedSlide(record, (label,), grade)
    value = float(rng.integers(1, 30))
    if target.kind == "regression":
        return GradedSlide(record, (value,), GradeRecord(target=target, predicted=value + float(rng.normal(0, 5))))
    risk = -value / 10 + float(rng.normal())
    return GradedSlide(record, (value, float(rng.integers(2))), GradeRecord(target=target, predicted=risk))


def summarize(target: TargetSpec, slides: range = range(40)) -> dict[str, Any]:
    return summarize_target([draw_slide(k, target) for k in slides], target, seed=3).model_dump()


@pytest.mark.parametrize(
    ("target", "name", "statistic"),
    [
        (STAGE, "qwk", lambda rows: cohen_kappa_score(rows[:, 0], rows[:, -1], weights="quadratic")),
        (SCANNER, "kappa", lambda rows: cohen_kappa_score(rows[:, 0], rows[:, -1])),
        (KI67, "mae", lambda rows: mean_absolute_error(rows[:, 0], rows[:, -1])),
        (KI67, "r2", lambda rows: r2_score(rows[:, 0], rows[:, -1])),
        (SURVIVAL, "concordance", lambda rows: count_pairs(rows[:, 0], rows[:, 1], rows[:, 2])),
    ],
)
def test_summarize_target_matches_bootstrap_over_groups(target: TargetSpec, name: str, statistic: Any) -> None:
    graded = [draw_slide(number, target) for number in range(24)]
    rows: NDArray[Any] = np.array([[*slide.values, slide.grade.predicted] for slide in graded])
    found = summarize(target, range(24))
    assert found[name] == pytest.approx(statistic(rows))
    groups = [slide.record.group for slide in graded]
    expected = bootstrap_interval(rows, groups, seed=3, statistic=statistic, n=2000)
    assert found[f"{name}_interval"] == pytest.approx(expected)


@pytest.mark.parametrize("target", [STAGE, SCANNER, KI67, SURVIVAL])
def test_summarize_target_of_provider_equals_its_slides(target: TargetSpec) -> None:
    found, alone = summarize(target), summarize(target, range(1, 40, 2))
    del alone["by_provider"]
    assert found["by_provider"]["radboud"] == alone
    assert found["slides"] == 40


def test_summarize_target_classes_without_order_have_no_qwk() -> None:
    assert (summarize(SCANNER)["qwk"], summarize(SCANNER)["qwk_interval"]) == (None, None)
    assert np.sum(summarize(SCANNER)["confusion"]) == 40
    assert summarize(SCANNER)["aurc"] is not None


@pytest.mark.parametrize("target", [STAGE, KI67, SURVIVAL])
def test_summarize_target_without_slides_is_undefined(target: TargetSpec) -> None:
    none = summarize(target, range(0))
    assert {key for key, value in none.items() if value} <= {"confusion"}


def test_summarize_target_counts_events_and_needs_a_pair() -> None:
    events = sum(draw_slide(number, SURVIVAL).values[1] for number in range(40))
    assert summarize(SURVIVAL)["events"] == events
    alone = summarize(SURVIVAL, range(1))
    assert (alone["concordance"], alone["concordance_interval"]) == (None, None)


@pytest.mark.parametrize(
    ("target", "values", "fault"),
    [
        (KI67, {"predicted": 1.0, "probabilities": (1.0,)}, "1 probabilities, but ki67 has no classes"),
        (STAGE, {"predicted": 1.5, "probabilities": (0.1, 0.8, 0.1)}, "predicted=1.5 has no probability"),
        (KI67, {"predicted": math.nan}, "finite"),
    ],
)
def test_grade_record_that_does_not_fit_its_target_raises(
    target: TargetSpec, values: dict[str, Any], fault: str
) -> None:
    with pytest.raises(ValidationError, match=fault):
        GradeRecord(target=target, **values)


def test_graded_slide_row_has_the_columns_of_its_kind() -> None:
    rows = {target.kind: draw_slide(4, target).to_row(attention=True) for target in (STAGE, SCANNER, KI67, SURVIVAL)}
    assert {"label", "given_class", "predicted_class", "predicted", "p0", "p1", "p2", "confidence"} < set(
        rows["classes"]
    )
    assert set(rows["regression"]) == {"slide_id", "provider", "group", "label", "predicted"}
    assert set(rows["survival"]) == {"slide_id", "provider", "group", "time", "event", "predicted"}
    given = rows["ordinal"]["label"]
    assert isinstance(given, int)
    assert rows["ordinal"]["given_class"] == STAGE.classes[given]


def test_grade_record_describes_class_by_name_number_by_digits() -> None:
    assert draw_slide(0, KI67).grade.describe_with_name().startswith("ki67 ")
    assert draw_slide(0, SURVIVAL).grade.describe_with_name().startswith("log hazard (os) ")
    assert draw_slide(0, STAGE).grade.describe() in STAGE.classes
