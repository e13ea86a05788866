"""Say which of two runs is better, by the figure that ranks the jobs of a sweep."""

from __future__ import annotations

from collections.abc import Sequence

from panda.report.interpretation import HEADLINES
from panda.report.paired import Difference
from panda.report.table import UNITS, find_format, name_figure
from panda.report.trivial_answers import LESS_IS_BETTER
from panda.tasks.bootstrap import explain_no_interval

FEW_GROUPS = 6
"""With fewer groups a signed-rank test cannot reach p < 0.05, and a bootstrap interval is too narrow."""
_UNFAIR = "These slides do not show which of the two is better on new slides"


def write_verdict(found: Sequence[Difference], names: tuple[str, str], scoring: str, seen: Sequence[str] = ()) -> str:
    """Write which run is better, in sentences; empty if the runs have no figure.

    The figure is the most important one of `HEADLINES` that is defined on these slides, as in the ranking of a sweep.
    The next one is given beside it: the mean Dice of slides does not see false alarms on benign ones, the pooled one
    follows the slides with most cancer. `seen` says how many slides were used in the training of a run: they do not
    show which one is better on new slides.
    """
    whole = {difference.figure: difference for difference in found if difference.provider == "all"}
    known = [whole[key] for key in HEADLINES[scoring] if key in whole]
    defined = [difference for difference in known if difference.difference is not None]
    if not defined:
        return f"{name_figure(known[0].figure)} is undefined on these slides." if known else ""
    beside = [f"{_write_difference(other)}." for other in defined[1:2]]
    judged = f". {_UNFAIR}: {', '.join(seen)}." if seen else _judge(defined[0], names)
    return " ".join([f"{_write_difference(defined[0], names)}{judged}", *beside])


def _write_difference(found: Difference, names: tuple[str, str] | None = None) -> str:
    """Write a difference with its interval and p; the runs are named if `names` are given."""
    assert found.difference is not None
    unit = UNITS.get(find_format(found.figure), "")
    subject = f"{names[1]} less {names[0]} is " if names else ""
    text = f"{name_figure(found.figure)}: {subject}{found.difference:+.3f}{unit}"
    if found.interval is not None:
        text += f", 95 % interval {found.interval[0]:+.3f} to {found.interval[1]:+.3f}"
    if found.p is not None:
        text += f", Wilcoxon p {'< 0.001' if found.p < 0.001 else f'= {found.p:.3f}'}"
    return text


def _judge(found: Difference, names: tuple[str, str]) -> str:
    if found.interval is None:
        return f"; {explain_no_interval(found.groups) or 'the interval is undefined'}."
    low, high = found.interval
    if low <= 0 <= high:
        return ". The interval contains zero, so these slides show no difference between the two."
    better = names[(low > 0) != (found.figure in LESS_IS_BETTER)]
    if found.groups < FEW_GROUPS or (found.p is not None and found.p >= 0.05):
        return f". {better} looks better, but {found.groups} groups are too few or too different to be sure."
    return f". {better} is better on slides like these."
