"""Say how areas give a grade, on which slides it differs from that of the network, and which grades are not certain."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping

from panda.inference.grade import GradeRecord
from panda.inference.slide_result import SlideResult
from panda.report.confusion import ConfusionTable, lay_out_confusion
from panda.report.run_folder import parse_number
from panda.report.table import format_value
from panda.tasks.gleason_search import GleasonRuleChoice
from panda.wsi.gleason import GRADES, list_class_names

_NAMED = 10
Row = Mapping[str, str]


def describe_band(low: int | str, high: int | str) -> str:
    """Write the lowest and highest grade as one text, `2` or `1 to 3`."""
    return str(low) if low == high else f"{low} to {high}"


def add_rule_band(row: Row) -> dict[str, str]:
    """Return the row of a slide with `rule_band`, the interval of its grade by areas, if it was graded so."""
    if "rule_isup_low" not in row:
        return dict(row)
    return {**row, "rule_band": describe_band(row["rule_isup_low"], row.get("rule_isup_high", ""))}


def _measure_gap(by_areas: int | None, target: str, predicted: int | None) -> int | None:
    """Return how many grades, or classes, the two are apart; None if one is missing."""
    if by_areas is None or predicted is None:
        return None
    return abs((by_areas if target == "isup" else int(by_areas > 0)) - predicted)


def describe_disagreement(result: SlideResult) -> str:
    """Say that the two grades of a slide differ; empty if they agree or one is missing."""
    rule, grade = result.rule_grade, result.grade
    if rule is None or grade is None or not grade.target.is_grade:
        return ""
    if not _measure_gap(rule.isup, grade.target.name, int(grade.predicted)):
        return ""
    by_areas = "no cancer" if not rule.isup else f"Gleason {rule.score}, ISUP {rule.isup}"
    return (
        f"The two grades differ: {by_areas} by the areas of the patterns, {grade.describe()} by the grading network. "
        "Look at the map and at the attended tiles before you use either."
    )


def describe_disagreements(rows: Iterable[Row]) -> str:
    """Say on how many slides of a table the two grades differ, and on which; empty if none has both."""
    both, differ, named = 0, 0, list[tuple[int, str]]()
    for row in rows:
        if (gap := _read_gap(row)) is None:
            continue
        both += 1
        if gap:
            differ += 1
            named = heapq.nsmallest(_NAMED, [*named, (-gap, row["slide_id"])])
    if not both:
        return ""
    text = f"The grade by areas and the grade of the grading network differ on {differ} of {both} slides"
    names = ", ".join(slide_id for _, slide_id in named) + (" …" if differ > _NAMED else "")
    return f"{text}: {names}." if differ else f"{text}."


def describe_mark(grade: GradeRecord) -> str:
    """Say that a grade is not certain enough, with its confidence; empty if it is."""
    if not grade.mark:
        return ""
    return f"{grade.mark}: its confidence is {grade.confidence:.2f}, below {grade.abstain_below:.2f}"


def describe_uncertain(rows: Iterable[Row]) -> str:
    """Say how many slides of a table are not certain enough to grade, and which; empty if no grade has a mark."""
    slides, uncertain, named = 0, 0, list[str]()
    for row in rows:
        slides += 1
        if row.get("mark"):
            uncertain += 1
            named = heapq.nsmallest(_NAMED, [*named, row["slide_id"]])
    if not uncertain:
        return ""
    names, one = ", ".join(named) + (" …" if uncertain > _NAMED else ""), uncertain == 1
    return f"{uncertain} of {slides} slides {'is' if one else 'are'} not certain enough to grade: {names}."


def _read_gap(row: Row) -> int | None:
    by_areas = parse_number(row.get("rule_isup"))
    for target in ("isup", "cancer"):
        if (predicted := parse_number(row.get(f"{target}_predicted"))) is not None:
            return _measure_gap(None if by_areas is None else int(by_areas), target, int(predicted))
    return None


def explain_rule(rule: GleasonRuleChoice) -> str:
    """Say in a paragraph how areas become a grade, and where the limits come from."""
    area, lower = f"{rule.min_area_mm2:g} mm²", max(rule.min_percent, rule.min_lower_percent)
    which = "the next largest one is the secondary one"
    if rule.secondary == "highest":
        which = "the highest one above it is the secondary one, otherwise the largest one below it"
    text = (
        f"The pattern with the largest area is the primary one, and {which}. A pattern beside the primary one counts "
        f"from {area} and {rule.min_percent:g} % of the tumour, and a lower one from {lower:g} %. If none counts, the "
        f"primary one counts twice. Less than {area} of tumour is no cancer."
    )
    if rule.score is None:
        return f"{text} Origin of the limits: {rule.chosen_on}."
    text += (
        f" The limits were chosen on {rule.chosen_on}, for the best κ ({format_value(rule.score, 'headline')} there)."
    )
    if rule.tied > 1:
        text += f" {rule.tied} pairs of limits were equally good, and the smallest was taken."
    return text


def lay_out_both_grades(rows: Iterable[Row]) -> ConfusionTable | None:
    """Lay out both ISUP grades of the slides that have them against each other; None without such slides."""
    pairs = ((parse_number(row.get("rule_isup")), parse_number(row.get("isup_predicted"))) for row in rows)
    known = Counter((int(a), int(b)) for a, b in pairs if a is not None and b is not None)
    if not known:
        return None
    counts = [[known[a, b] for b in range(GRADES)] for a in range(GRADES)]
    names = list_class_names("isup", GRADES)
    return lay_out_confusion(counts, names, names, "by areas ↓   by the network →")
