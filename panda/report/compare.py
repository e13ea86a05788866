"""Compare two runs on the same test slides: `python -m panda.report.compare runs/A runs/B`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from panda.choices import name_tool
from panda.errors import ManifestError, PandaError
from panda.report.axes import PALETTE
from panda.report.charts import draw_pairs
from panda.report.page import write_page
from panda.report.paired import (
    MUST_AGREE,
    Difference,
    Pair,
    choose_groups,
    compute_differences,
    pair_rows,
    read_slide_rows,
)
from panda.report.run_facts import describe_comparison
from panda.report.run_folder import Picture, make_address, parse_number, read_picture
from panda.report.table import UNITS, Cell, Head, Table, find_format, format_value, make_cell, name_figure
from panda.report.tested_run import check_comparable, find_slide_folder, read_choices, read_tested
from panda.report.trivial_answers import find_seen_slides, list_summary_alarms
from panda.report.verdict import write_verdict
from panda.tables import write_table
from panda.tasks.bootstrap import FEWEST_GROUPS

SHOWN = 4
"""Number of slides on either side whose maps are shown."""


class Comparison(NamedTuple):
    """A written comparison: its page, and its verdict, see `write_verdict`."""

    page: Path
    verdict: str


def compare(a: Path, b: Path, output: Path | None = None) -> Path:
    """Compare two finished runs, see `compare_runs`, and return the page."""
    return compare_runs(a, b, output).page


def compare_runs(a: Path, b: Path, output: Path | None = None) -> Comparison:
    """Compare two finished runs slide by slide.

    Args:
        a: Folder of the first run.
        b: Folder of the second; differences are the second less the first.
        output: Gets `compare.html`, `compare.csv` (figures) and `compare_slides.csv`; None for
            `compare-A-B` next to the second run.

    Returns:
        The page and the verdict.

    Raises:
        PandaError: If a folder holds no finished run, or slides, truth or resolution of the runs differ.
    """
    a, b = Path(a).absolute(), Path(b).absolute()
    summaries = read_tested(a), read_tested(b)
    check_comparable((a, b), summaries)
    scoring = summaries[0].scoring
    names = _name_runs(a, b)
    first, second = (read_slide_rows(folder / "test_slides.csv", scoring) for folder in (a, b))
    pairs = pair_rows(names, (first, second), scoring)
    if not pairs:
        raise ManifestError(f"{a / 'test_slides.csv'} holds no slide: nothing can be compared")
    groups, agreed = choose_groups(pairs)
    found = compute_differences(pairs, groups, scoring)
    output = Path(output).absolute() if output else b.parent / f"compare-{'-'.join(names)}".replace(" ", "-")
    write_table(output / "compare.csv", [_make_figure_row(difference) for difference in found])
    slides = _make_slide_rows(pairs, groups, scoring)
    write_table(output / "compare_slides.csv", slides)
    sides = list(zip(names, summaries, strict=True))
    seen = [f"{alarm.kind} of {name}" for name, summary in sides for alarm in find_seen_slides(summary)]
    verdict = write_verdict(found, names, scoring, seen)
    page = write_page(
        output / "compare.html",
        "compare.html",
        head=describe_comparison(names, (a, b), summaries, len(pairs), len(set(groups))),
        notes=_list_notes(pairs, agreed),
        alarms=[f"{name}: {alarm.text}" for name, summary in sides for alarm in list_summary_alarms(summary)],
        lead=verdict,
        choices=_tabulate_choices(read_choices((a, b), summaries), names),
        figures=_tabulate_figures(found, names),
        chart=draw_pairs(
            "Dice of each slide",
            [
                (row["slide_id"], row["provider"], row["dice_a"], row["dice_b"])
                for row in slides
                if row["dice_difference"] is not None
            ],
            names,
            {p: PALETTE[k % len(PALETTE)] for k, p in enumerate(sorted({row["provider"] for row in slides}))},
        )
        if scoring == "segmentation"
        else "",
        table=_make_slide_table(slides, names, scoring),
        sides=_choose_sides((a, b), output, slides, names) if scoring == "segmentation" else [],
    )
    return Comparison(page, verdict)


def _name_runs(a: Path, b: Path) -> tuple[str, str]:
    """Return short names that differ; a number is called a job."""
    one, other = (f"job {path.name}" if path.name.isdecimal() else path.name for path in (a, b))
    if one != other:
        return one, other
    # The nearest folders above that differ; a run that is compared with itself has none.
    above = ((up.name, down.name) for up, down in zip(a.parents, b.parents, strict=False) if up.name != down.name)
    first, second = next(above, ("first", "second"))
    return f"{first} {one}", f"{second} {other}"


def _make_figure_row(difference: Difference) -> dict[str, Any]:
    row = asdict(difference)
    low, high = row.pop("interval") or (None, None)
    return row | {"low": low, "high": high}


def _make_slide_rows(pairs: Sequence[Pair], groups: Sequence[str], scoring: str) -> list[dict[str, Any]]:
    keys = ("dice", "fp_mm2", "tumor_mm2") if scoring == "segmentation" else ("predicted",)
    kept = ("isup_grade", "true_tumor_mm2") if scoring == "segmentation" else _list_labels(scoring)
    rows = []
    for (one, other), group in zip(pairs, groups, strict=True):
        row: dict[str, Any] = {"slide_id": one["slide_id"], "provider": one.get("provider", ""), "group": group}
        row |= {key: one.get(key) for key in kept}
        for key in keys:
            was, is_ = parse_number(one.get(key)), parse_number(other.get(key))
            row |= {f"{key}_a": was, f"{key}_b": is_}
            row[f"{key}_difference"] = None if was is None or is_ is None else is_ - was
        rows.append(row)
    return rows


def _list_labels(scoring: str) -> list[str]:
    """Return the columns of the given label of a grading."""
    grade = ["isup_grade"] if scoring in ("isup", "cancer") else []
    return grade + [key for key, _ in MUST_AGREE[scoring] if key != "provider"]


def _list_notes(pairs: Sequence[Pair], agreed: bool) -> list[str]:
    notes = []
    if not agreed:
        notes.append("The runs have different groups of slides. The intervals use the fewer, larger ones.")
    if all(one.get("group", one["slide_id"]) == one["slide_id"] for one, _ in pairs):
        notes.append("No patients are known, so slides count as independent. Intervals are too narrow if they are not.")
    if len(pairs) < 20:
        notes.append(f"With {len(pairs)} slides only large differences can be distinguished from chance.")
    return notes


def _tabulate_choices(typed: Sequence[Mapping[str, str]], names: tuple[str, str]) -> Table:
    """Lay out the choices in which the runs differ."""
    keys = [key for key in dict.fromkeys([*typed[0], *typed[1]]) if key != "name"]
    differ = [key for key in keys if typed[0].get(key) != typed[1].get(key)]
    rows = [[Cell(key), *(Cell(side.get(key, ""), why="it was not typed") for side in typed)] for key in differ]
    return Table([Head("Choice"), Head(names[0]), Head(names[1])], rows, sortable=False)


def _tabulate_figures(found: Sequence[Difference], names: tuple[str, str]) -> Table:
    rows = []
    for it in found:
        kind, unit = find_format(it.figure), UNITS.get(find_format(it.figure), "")
        ends = "" if it.interval is None else f"{it.interval[0]:+.3f} to {it.interval[1]:+.3f}"
        why = "is undefined on these slides"
        gap = Cell("" if it.difference is None else f"{it.difference:+.3f}", sort=it.difference, why=why, style="num")
        rows.append(
            [
                Cell(name_figure(it.figure) + (f",{unit}" if unit else "")),
                Cell(it.provider),
                make_cell(it.slides, "count"),
                make_cell(it.groups, "count"),
                make_cell(it.a, kind, why),
                make_cell(it.b, kind, why),
                gap,
                Cell(
                    ends, sort=it.interval[0] if it.interval else None, why=f"needs {FEWEST_GROUPS} groups", style="num"
                ),
                Cell("" if it.p is None else f"{it.p:.3g}", sort=it.p, why=_NO_TEST, style="num"),
            ]
        )
    heads = [Head("Figure"), Head("Provider"), Head("Slides", figures=True), Head("Groups", figures=True)]
    heads += [Head(name, figures=True) for name in names]
    heads += [Head("Difference", figures=True), Head("95 % interval", figures=True), Head("Wilcoxon p", figures=True)]
    return Table(heads, rows)


_NO_TEST = "only the Dice of slides is tested, with at least 3 groups"


def _make_slide_table(rows: Sequence[Mapping[str, Any]], names: tuple[str, str], scoring: str) -> Table:
    key = "dice" if scoring == "segmentation" else "predicted"
    kind = find_format(key)
    given = ["isup_grade"] if scoring in ("segmentation", "isup", "cancer") else _list_labels(scoring)
    why, unknown = "no cancer is labelled on this slide, so it has no Dice", "µm/px or truth of the slide is unknown"
    ordered = sorted(rows, key=lambda row: (row[f"{key}_difference"] is None, -abs(row[f"{key}_difference"] or 0)))
    body = []
    for row in ordered:
        gap = row[f"{key}_difference"]
        line = [make_cell(row["slide_id"], "id"), Cell(row["provider"])]
        line += [make_cell(row[column], find_format(column), "it has no grade") for column in given]
        line += [make_cell(row[f"{key}_{side}"], kind, why) for side in "ab"]
        line.append(Cell("" if gap is None else f"{gap:+.3g}", sort=gap, why=why, style="num"))
        if scoring == "segmentation":
            line += [make_cell(row[f"fp_mm2_{side}"], "mm2", unknown) for side in "ab"]
        body.append(line)
    heads = [Head("Slide"), Head("Provider"), *(Head(name_figure(column), figures=True) for column in given)]
    heads += [Head(name_figure(key), name, True) for name in names] + [Head("Difference", figures=True)]
    if scoring == "segmentation":
        heads += [Head("False alarms, mm²", name, True) for name in names]
    return Table(heads, body)


def _choose_sides(
    folders: tuple[Path, Path], output: Path, rows: Sequence[Mapping[str, Any]], names: tuple[str, str]
) -> list[tuple[str, list[tuple[str, list[tuple[Picture, str, str]]]]]]:
    """Choose the slides on which the runs differ most, each with the overlay of either run."""
    scored = sorted((row for row in rows if row["dice_difference"]), key=lambda row: row["dice_difference"])
    worse = [row for row in scored[:SHOWN] if row["dice_difference"] < 0]
    better = [row for row in scored[::-1][:SHOWN] if row["dice_difference"] > 0]
    found = []
    for title, chosen in ((f"Where {names[1]} is better", better), (f"Where {names[0]} is better", worse)):
        slides = []
        for row in chosen:
            pictures = []
            for folder, name, side in zip(folders, names, "ab", strict=True):
                home = find_slide_folder(folder, row["slide_id"])
                picture = read_picture(home / "overlay.png", 560, bare=True) if home else None
                if picture and home:
                    at = make_address(home / "overlay.png", output)
                    pictures.append((picture, at, f"{name}: Dice {format_value(row[f'dice_{side}'])}"))
            if pictures:
                slides.append((f"{row['slide_id']} ({row['dice_difference']:+.3f})", pictures))
        if slides:
            found.append((title, slides))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the comparison and print its verdict and path; return 1 and say why if the runs cannot be compared."""
    parser = argparse.ArgumentParser(
        prog=name_tool("panda.report.compare"),
        description="Compare two runs, or evaluations by infer.py labels=…, on the same test slides, slide by slide.",
    )
    parser.add_argument("a", type=Path, help="folder of a finished run or an evaluation")
    parser.add_argument("b", type=Path, help="folder of another; differences are this one less the first")
    parser.add_argument("--output", type=Path, help="folder for the page and tables; default compare-A-B next to B")
    asked = parser.parse_args(arguments)
    try:
        found = compare_runs(asked.a, asked.b, asked.output)
    except (PandaError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    if found.verdict:
        print(found.verdict)
    print(f"comparison: {found.page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
