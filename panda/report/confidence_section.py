"""The part of a run's page about the confidence of its grades: what it is worth, and which slides are not graded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from panda.inference.confidence_metrics import ConfidenceFigures
from panda.report.confidence_tables import draw_confidence
from panda.report.run_summary import GradingSummary, RunSummary
from panda.report.table import format_value
from panda.tasks.grade_calibration import AbstentionChoice, GradeCalibration


@dataclass(frozen=True)
class ConfidenceSection:
    """Sentences about the confidence of grades, and its charts."""

    meaning: list[str]
    charts: list[Markup]


def lay_out_confidence(run_dir: Path, summary: RunSummary) -> ConfidenceSection | None:
    """Lay out the confidence of the grades of a run; None for a run without calibration."""
    if not isinstance(summary, GradingSummary) or summary.calibration is None:
        return None
    found = summary.calibration
    both = {"validation": summary.val, "test": summary.test}
    splits = {name: scores for name, scores in both.items() if isinstance(scores, ConfidenceFigures)}
    least = found.abstention.value if found.abstention else None
    meaning = [_explain_temperature(found), _explain_risk(splits), _explain_abstention(found.abstention, splits)]
    return ConfidenceSection(list(filter(None, meaning)), draw_confidence(run_dir, least))


def _explain_temperature(found: GradeCalibration) -> str:
    known = [(name, errors) for name, errors in (("validation", found.val), ("test", found.test)) if errors]
    before = " and ".join(f"{format_value(errors.ece)} on {name}" for name, errors in known)
    bins = " and ".join(str(errors.bins) for _, errors in known)
    text = f"The confidence of a grade, the probability of its class, differs from the accuracy by {before}"
    text += f" (calibration error over {bins} bins of equal numbers of slides)"
    if found.value is None:
        return f"{text}. No temperature corrects that: {found.note}."
    after = " and ".join(f"{format_value(errors.ece_scaled)} on {name}" for name, errors in known)
    return (
        f"{text} before, and by {after} at the temperature {found.value:.2f}, which was fitted on {found.chosen_on}. "
        "All other figures have the probabilities at the temperature. It changes no predicted class."
    )


def _explain_risk(splits: Mapping[str, ConfidenceFigures]) -> str:
    known = [
        f"{scores.aurc:.0%}{_put_interval(scores, 'aurc')} on {name}"
        for name, scores in splits.items()
        if scores.aurc is not None
    ]
    if not known:
        return ""
    return (
        "The risk-coverage curve grades the most certain slides first. Over all numbers of graded slides, the share of "
        f"wrong classes is {' and '.join(known)} on average (the area under the curve, AURC)."
    )


def _explain_abstention(choice: AbstentionChoice | None, splits: Mapping[str, ConfidenceFigures]) -> str:
    if choice is None:
        return (
            "Every slide is graded. task.abstain_risk=0.1 marks the least certain slides, so that at most 10 % of the "
            "graded validation slides are wrong."
        )
    if choice.value is None:
        return f"Every slide is graded, because no confidence to abstain below was found: {choice.note}."
    known = [
        f"Of {scores.numbers['slides']} slides of {name}, {scores.coverage:.0%}{_put_interval(scores, 'coverage')} are "
        "graded" + _explain_wrong(scores)
        for name, scores in splits.items()
        if scores.coverage is not None
    ]
    return (
        f"A slide with a confidence below {choice.value:.3g} is not certain enough to grade. That is the lowest one at "
        f"which at most {choice.risk:.0%} of the graded slides are wrong, on {choice.chosen_on} "
        f"(task.abstain_risk={choice.risk:g}). {' '.join(known)} The figures of validation are too good, because the "
        "confidence was chosen there."
    )


def _explain_wrong(scores: ConfidenceFigures) -> str:
    if scores.selective_risk is None:
        return "."
    return f", and {scores.selective_risk:.0%}{_put_interval(scores, 'selective_risk')} of these are wrong."


def _put_interval(scores: ConfidenceFigures, key: str) -> str:
    """Return the 95 % interval of a share in brackets; empty without one."""
    ends = scores.find_interval(key)
    return f" ({ends[0]:.0%} to {ends[1]:.0%})" if ends else ""
