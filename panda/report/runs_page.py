"""Write the page of all runs below a folder: groups of runs that can be compared, each ranked, and every run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from panda.choices import name_tool
from panda.files import hold_lock, remove_leftovers
from panda.report.choices import Choice, make_gap_cell, make_spread_cell, pair_with_best
from panda.report.head import PageHead
from panda.report.interpretation import format_interval
from panda.report.job_rows import Gaps, find_alarms, list_more, shorten_error, warn_of_best, write_jobs
from panda.report.page import write_page
from panda.report.run_list import RunGroup, group_runs
from panda.report.sweep_jobs import REPEATS, Job
from panda.report.table import Cell, Head, Table, find_format, format_value, make_cell, name_figure

_MOST_PAIRED = 10
"""Choices of a group that are paired with the best, which reads their slides."""
_MOST_COLUMNS = 5
"""Choices with a column of their own; further ones share a column."""
_MOST_NAMES = 2
_MOST_OPTIONS = 300
_UNPAIRED = f"not scored with the same seeds and folds as the best, or not among the first {_MOST_PAIRED}"

_ALONE = "no other choice was scored on the same slides"


@dataclass(frozen=True)
class Section:
    """A group of runs on the page.

    Attributes:
        number: Number of the group, from 1.
        title: Task and data.
        facts: Names and values that all its runs share.
        words: Values by which the page filters, one a line.
        alarms: What must not be overlooked in the best choice.
        lead: The best choice in a sentence.
        table: Its choices, the best on validation first.
        commands: What each command does, and the command.
    """

    number: int
    title: str
    facts: Sequence[tuple[str, str]]
    words: str
    alarms: Sequence[str]
    lead: str
    table: Table
    commands: Sequence[tuple[str, str]]


def write_runs(root: Path, runs: Sequence[Job]) -> Path:
    """Write `runs.html` and `runs.csv` into the folder that holds the runs, and return the page."""
    groups = group_runs(root, runs)
    places = {
        run.name: {"group": number, "place": place}
        for number, group in enumerate(groups, 1)
        for place, choice in enumerate(group.choices, 1)
        for run in choice.jobs
    }
    ranked = [group for group in groups if len(group.choices) > 1]
    numbers = {name: place["group"] for name, place in places.items() if place["group"] <= len(ranked)}
    keys = list(dict.fromkeys(key for run in runs for key in run.choices))
    with hold_lock(root / "runs.csv"):
        remove_leftovers(root, "runs.csv")
        write_jobs(root / "runs.csv", runs, keys, {}, places)
        return write_page(
            root / "runs.html",
            "runs.html",
            scripts=("page.js", "runs.js"),
            head=_describe_runs(root, runs, len(ranked)),
            filters=_list_filters(runs),
            sections=[_lay_out_group(root, number, group) for number, group in enumerate(ranked, 1)],
            alone=len(groups) - len(ranked),
            table=_make_run_table(runs, numbers),
        )


def _describe_runs(root: Path, runs: Sequence[Job], ranked: int) -> PageHead:
    states = ", ".join(f"{count} {state}" for state, count in Counter(run.state for run in runs).most_common())
    facts = [("Runs", f"{len(runs)}: {states}"), ("Groups that can be compared", f"{ranked}")]
    return PageHead("Runs", str(root), facts, [("Read the runs again", name_tool("panda.report.runs", root))])


def _name_task(run: Job) -> str:
    """Return what a run learns; empty for one without figures."""
    return run.subject if run.summary else ""


def _name_data(run: Job) -> str:
    return run.summary.data.root if run.summary else ""


def _list_filters(runs: Sequence[Job]) -> list[tuple[str, list[str]]]:
    """Return the names and values of the lists by which the page filters."""
    values = {
        "task": {_name_task(run) for run in runs},
        "data": {_name_data(run) for run in runs},
        "state": {run.state for run in runs},
    }
    keys = sorted({key for run in runs for key in run.choices} - {*REPEATS})
    varied = [(key, {run.choices.get(key, "") for run in runs}) for key in keys]
    choices = [f"{key}={value}" for key, own in varied if len(own) > 1 for value in sorted(own - {""})]
    found = [(key, sorted(own - {""})) for key, own in values.items()]
    return [(key, own) for key, own in [*found, ("choice", choices[:_MOST_OPTIONS])] if len(own) > 1]


def _lay_out_group(root: Path, number: int, group: RunGroup) -> Section:
    first, runs = group.choices[0].first, group.runs
    gaps = pair_with_best(root, group.choices, _MOST_PAIRED)
    assert first.summary is not None
    slides = first.summary.data.slides
    roots = list(dict.fromkeys(_name_data(run) for run in runs))
    facts = [("Data", ", ".join(roots))]
    splits = {"val": "Validation slides", "test": "Test slides"}
    facts += [(name, f"{slides[key]}") for key, name in splits.items() if key in slides]
    facts += [(key, value) for key, value in group.constant if not key.startswith("data.root")]
    words = [f"task={_name_task(first)}", *(f"data={name}" for name in roots), "state=done"]
    words += [f"{key}={value}" for key, value in group.constant]
    return Section(
        number,
        f"{_name_task(first)}, {len(group.choices)} choices",
        facts,
        "\n".join(words),
        warn_of_best(group.choices[0], runs, group.varied),
        _describe_best(group, gaps),
        _make_group_table(group, gaps),
        list(_list_commands(root, group)),
    )


def _describe_best(group: RunGroup, gaps: Gaps) -> str:
    best, second = group.choices[:2]
    key = best.key
    parts = [f"Best on validation: {best.label(group.varied)}, {name_figure(key)} {format_value(best.score)}"]
    if best.interval:
        parts.append(f" ({format_interval(best.interval)})")
    if (tested := best.average("test", key)) is not None:
        ends = best.first.find_interval("test") if len(best.done) == 1 else None
        parts.append(f", on test {format_value(tested)}" + (f" ({format_interval(ends)})" if ends else ""))
        parts.append(f", mean of {len(best.done)} runs" * (len(best.done) > 1))
    parts.append(".")
    gap = gaps.get(second.name)
    if gap is not None and gap.difference is not None and gap.interval is not None:
        low, high = gap.interval
        parts.append(f" The second, {second.label(group.varied)}, is {gap.difference:+.3f} ({low:+.3f} to {high:+.3f})")
        parts.append(" from it on the same slides" + (", no clear difference." if low <= 0 <= high else "."))
    return "".join(parts)


def _list_commands(root: Path, group: RunGroup) -> Iterator[tuple[str, str]]:
    """Yield the commands that compare the best two choices on test, and pool the folds of the best."""
    best, second = group.choices[:2]
    tested, others = ([run for run in choice.done if run.find_scores("test")] for choice in (best, second))
    pairs = ((other, run) for run in tested for other in others if _list_split(run) == _list_split(other))
    if (pair := next(pairs, None)) is not None:
        yield "Compare the best two", name_tool("panda.report.compare", *(root / run.name for run in pair))
    if len(set(map(_list_split, tested))) == len(tested) > 1:
        yield "Pool the folds of the best", name_tool("panda.report.folds", *(root / run.name for run in tested))


def _list_split(run: Job) -> tuple[str, ...]:
    """Return what decides the split of the data."""
    return tuple(run.choices.get(key, "") for key in ("data.seed", "data.fold"))


def _make_group_table(group: RunGroup, gaps: Gaps) -> Table:
    """Lay out the choices of a group in their order."""
    keys = _choose_columns(group)
    rest = [key for key in group.varied if key not in (*keys, *REPEATS)]
    judged, more = list(dict.fromkeys(choice.key for choice in group.choices)), list_more(group.runs)
    alarmed = any(map(find_alarms, group.runs))
    rows = []
    for place, choice in enumerate(group.choices, 1):
        row = [Cell(f"{place}", sort=place, style="num"), _make_name_cell(choice)]
        row += [Cell(choice.values.get(key, ""), why="the default") for key in keys]
        if rest:
            row.append(Cell(" ".join(f"{key}={choice.values[key]}" for key in rest if choice.values.get(key)) or " "))
        row += _make_figure_cells(choice, judged, gaps, choice is group.choices[0])
        row += [_make_alarm_cell(choice.done)] * alarmed
        row += [make_cell(choice.average("val", key), find_format(key), "no run has it") for key in more]
        rows.append(row)
    heads = [Head("Place", figures=True), Head("Runs"), *map(Head, keys), *[Head("Other choices")] * bool(rest)]
    for key in judged:
        heads += [Head(name_figure(key), "validation", True), Head("Less the best", "paired, validation", True)]
        heads.append(Head(name_figure(key), "test", True))
    heads += [Head("Beware")] * alarmed
    return Table([*heads, *(Head(name_figure(key), "validation", True) for key in more)], rows)


def _choose_columns(group: RunGroup) -> list[str]:
    """Return the varied choices that get a column: those that most runs have."""
    counts = {key: sum(key in run.choices for run in group.runs) for key in group.varied if key not in REPEATS}
    most = sorted(counts, key=lambda key: -counts[key])[:_MOST_COLUMNS]
    return [key for key in group.varied if key in most]


def _make_name_cell(choice: Choice) -> Cell:
    names = [run.name for run in choice.jobs]
    if len(names) == 1:
        return Cell(names[0], href=choice.jobs[0].report, style="id")
    shown = ", ".join(names[:_MOST_NAMES]) + f" and {len(names) - _MOST_NAMES} more" * (len(names) > _MOST_NAMES)
    return Cell(f"{len(names)} runs", under=shown, style="id")


def _make_alarm_cell(runs: Sequence[Job]) -> Cell:
    found = [find_alarms(run) for run in runs]
    alarms, marked = [alarm for own in found for alarm in own], sum(map(bool, found))
    text = ", ".join(dict.fromkeys(alarm.kind for alarm in alarms))
    if len(runs) > 1:
        text = f"{marked} of {len(runs)} runs" * bool(marked)
    return Cell(text or " ", style="bad", why=" ".join(dict.fromkeys(alarm.text for alarm in alarms)))


def _make_figure_cells(choice: Choice, judged: Sequence[str], gaps: Gaps, is_best: bool) -> Iterator[Cell]:
    for key in judged:
        if key != choice.key:
            yield from (Cell(why="judged by another figure", style="num") for _ in range(3))
            continue
        kind = find_format(key)
        under = "mean of the runs" if choice.is_mean else format_interval(choice.interval, kind)
        yield Cell(format_value(choice.score, kind), choice.score, "no run has it", style="num", under=under)
        yield make_gap_cell(gaps.get(choice.name), is_best, _UNPAIRED)
        if len(choice.done) > 1:
            yield make_spread_cell(choice, "test", key)
        else:
            tested = make_cell(choice.first.find_score("test"), kind, "test was not scored")
            yield replace(tested, under=format_interval(choice.first.find_interval("test"), kind))


def _make_run_table(runs: Sequence[Job], numbers: Mapping[str, Any]) -> Table:
    """Lay out all runs with their states. They are in no order of figures."""
    rows = []
    for run in runs:
        number = numbers.get(run.name)
        row = [
            Cell(run.name, href=run.report, style="id"),
            Cell(run.state, style="bad" if run.error else ""),
            Cell(f"{number}" if number else "", sort=number, why=_ALONE, style="num"),
            Cell(_name_task(run), why="the run has no figures"),
            Cell(_name_data(run), why="the run has no figures"),
            Cell(" ".join(f"{key}={value}" for key, value in run.choices.items()) or " ", style="pre"),
            Cell(name_figure(run.key) if run.summary else "", why="the run has no figures"),
        ]
        for split in ("val", "test"):
            kind = find_format(run.key)
            figure = make_cell(run.find_score(split), kind, "this split was not scored" if run.summary else run.state)
            row.append(replace(figure, under=format_interval(run.find_interval(split), kind)))
        row.append(_make_alarm_cell([run]))
        row.append(Cell(run.summary.created[:10] if run.summary else "", why="the run has no figures"))
        row.append(Cell(shorten_error(run.error) or " ", style="pre", why=run.error))
        rows.append(row)
    heads = [Head("Run"), Head("State"), Head("Group", figures=True), Head("Task"), Head("Data"), Head("Choices")]
    heads += [Head("Figure"), Head("Validation", figures=True), Head("Test", figures=True), Head("Beware")]
    return Table([*heads, Head("Ended"), Head("Error")], rows)
