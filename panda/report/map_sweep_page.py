"""Write the page of a multirun of `infer.py`, such as one over thresholds: areas and grades of each slide by job."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from markupsafe import Markup

from panda.choices import name_tool
from panda.files import hold_lock, remove_leftovers
from panda.report.axes import GREY, TEST, VALIDATION
from panda.report.charts import Line, draw_lines
from panda.report.head import PageHead
from panda.report.interpretation import format_interval
from panda.report.job_rows import shorten_error
from panda.report.map_jobs import SLIDE_COLUMNS, MapJob, list_slides, measure_spread
from panda.report.page import write_page
from panda.report.page_facts import keep_known
from panda.report.run_facts import write_sweep_command
from panda.report.run_folder import parse_number
from panda.report.sweep_jobs import label_job, split_choices
from panda.report.table import Cell, Head, Table, find_format, format_value, make_cell, name_figure
from panda.report.trivial_answers import Alarm, find_seen_slides, list_summary_alarms
from panda.tables import write_table

_SHARE = "tumor_percent_of_tissue"
_GRADES = ("isup_predicted", "rule_isup")
_FIGURES = ("dice", "dice_mean_slide", "slide_sensitivity", "slide_specificity")
_MOST_SLIDES = 300
_MOST_JOBS = 12
"""Jobs with a column in the table of slides."""


def write_map_sweep(output: Path, jobs: Sequence[MapJob]) -> Path:
    """Write `sweep.csv`, `sweep_slides.csv` and `sweep.html` of a multirun into its folder, and return the page."""
    output = Path(output).absolute()
    varied, constant = split_choices([one.job for one in jobs])
    slides = list_slides(jobs)
    with hold_lock(output / "sweep.csv"):
        remove_leftovers(output, "sweep.csv")
        write_table(output / "sweep.csv", [_make_job_row(one, varied) for one in jobs])
        write_table(
            output / "sweep_slides.csv",
            (
                {"slide_id": name, "job": one.job.name}
                | {key: one.job.choices.get(key, "") for key in varied}
                | {key: one.slides[name].get(key, "") for key in SLIDE_COLUMNS}
                for name in slides
                for one in jobs
                if name in one.slides
            ),
            ["slide_id", "job", *varied, *SLIDE_COLUMNS],
        )
        return write_page(
            output / "sweep.html",
            "map_sweep.html",
            head=_describe_maps(output, jobs, len(slides), constant),
            alarms=list(dict.fromkeys(alarm.text for one in jobs for alarm in _find_seen(one))),
            is_labelled=any(one.evaluation for one in jobs),
            charts=_draw_charts(jobs, varied),
            table=_make_job_table(jobs, varied),
            slide_table=_make_slide_table(jobs, varied, slides),
        )


def _describe_maps(output: Path, jobs: Sequence[MapJob], slides: int, constant: Sequence[tuple[str, str]]) -> PageHead:
    states = ", ".join(f"{count} {state}" for state, count in Counter(one.job.state for one in jobs).items())
    commands = [("Made by", write_sweep_command("infer", output))]
    commands.append(("Read the jobs again", name_tool("panda.report.sweep", output)))
    facts = [("Jobs", f"{len(jobs)}: {states}"), ("Slides", f"{slides:,}"), *constant]
    return PageHead("Maps with several settings", output.name, facts, keep_known(commands))


def describe_maps(jobs: Sequence[MapJob]) -> list[str]:
    """Return a line for each job: what it found, and its Dice if slides have labels."""
    varied, lines = split_choices([one.job for one in jobs])[0], []
    for one in jobs:
        if (found := one.find_quartiles(_SHARE)) is None:
            lines.append(f"{label_job(one.job, varied)}: {one.job.state}")
            continue
        text = f"median {format_value(found[1], 'percent')} % of the tissue"
        if areas := one.list_values("tumor_mm2"):
            text += f", {format_value(sum(areas), 'mm2')} mm² in all"
        if one.evaluation and one.evaluation.test.dice is not None:
            text += f", Dice {format_value(one.evaluation.test.dice)}"
        seen = "".join(f", {alarm.kind}" for alarm in _find_seen(one))
        lines.append(f"{label_job(one.job, varied)}: {text}, {len(one.slides)} slides{seen}")
    return lines


def _find_seen(one: MapJob) -> list[Alarm]:
    return list(find_seen_slides(one.evaluation)) if one.evaluation else []


def _make_job_row(one: MapJob, varied: Sequence[str]) -> dict[str, object]:
    row: dict[str, object] = {"job": one.job.name, "state": one.job.state}
    row |= {key: one.job.choices.get(key, "") for key in varied}
    row |= {"slides": len(one.slides), "failed": one.job.lost_slides}
    low, middle, high = one.find_quartiles(_SHARE) or ("", "", "")
    row |= {f"median_{_SHARE}": middle, f"{_SHARE}_q1": low, f"{_SHARE}_q3": high}
    row["tumor_mm2"] = sum(areas) if (areas := one.list_values("tumor_mm2")) else ""
    for key in _FIGURES:
        test = one.evaluation.test if one.evaluation else None
        low, high = (test.find_interval(key) if test else None) or ("", "")
        row |= {key: test.numbers.get(key) if test else "", f"{key}_low": low, f"{key}_high": high}
    return row | {"error": one.job.error}


def _make_job_table(jobs: Sequence[MapJob], varied: Sequence[str]) -> Table:
    grades = [key for key in _GRADES if any(one.list_values(key) for one in jobs)]
    known = [(one, one.evaluation.test) for one in jobs if one.evaluation]
    figures = [key for key in _FIGURES if any(test.numbers.get(key) is not None for _, test in known)]
    numbers = {key for key in varied if _is_number(jobs, key)}
    failed = any(one.job.error for one in jobs)
    rows = []
    for one in jobs:
        job, share = one.job, one.find_quartiles(_SHARE)
        areas, test = one.list_values("tumor_mm2"), one.evaluation.test if one.evaluation else None
        row = [Cell(job.name, href=job.report), Cell(job.state, style="bad" if job.error else "")]
        row += [_make_choice_cell(job.choices.get(key, ""), key in numbers) for key in varied]
        row += [make_cell(len(one.slides), "count"), make_cell(job.lost_slides, "count")]
        spread = f"{format_value(share[0], 'percent')} to {format_value(share[2], 'percent')}" if share else ""
        middle = share and share[1]
        row.append(Cell(format_value(middle, "percent"), middle, "no slide is finished", style="num", under=spread))
        each = f"median {format_value(median(areas), 'mm2')}" if areas else ""
        total = sum(areas) if areas else None
        row.append(Cell(format_value(total, "mm2"), total, "µm/px of the slides is unknown", style="num", under=each))
        row += [Cell(_count_grades(one, key), why="no slide was graded") for key in grades]
        for key in figures:
            ends = format_interval(test.find_interval(key)) if test else ""
            value = test.numbers.get(key) if test else None
            text = format_value(value, find_format(key))
            row.append(Cell(text, value, "no slide with such a label", style="num", under=ends))
        if figures:
            alarms = list_summary_alarms(one.evaluation) if one.evaluation else []
            kinds = ", ".join(dict.fromkeys(alarm.kind for alarm in alarms))
            row.append(Cell(kinds or " ", style="bad", why=" ".join(alarm.text for alarm in alarms)))
        row += [Cell(shorten_error(job.error) or " ", style="pre", why=job.error)] * failed
        rows.append(row)
    heads = [Head("Job"), Head("State"), *(Head(key, figures=key in numbers) for key in varied)]
    heads += [Head("Slides", figures=True), Head("Failed", figures=True)]
    heads += [Head("Tumour, share of tissue", "%, median and quartiles", True), Head("Tumour", "mm², all slides", True)]
    heads += [Head(name_figure(key), "grade: slides") for key in grades]
    heads += [Head(name_figure(key), figures=True) for key in figures] + [Head("Beware")] * bool(figures)
    return Table([*heads, *[Head("Error")] * failed], rows)


def _make_choice_cell(value: str, is_number: bool) -> Cell:
    return Cell(value, parse_number(value) if is_number else None, "the default", style="num" if is_number else "")


def _count_grades(one: MapJob, key: str) -> str:
    counts = Counter(one.list_values(key))
    return ", ".join(f"{grade:g}: {count}" for grade, count in sorted(counts.items()))


def _is_number(jobs: Sequence[MapJob], key: str) -> bool:
    return all(parse_number(one.job.choices.get(key)) is not None for one in jobs)


def _draw_charts(jobs: Sequence[MapJob], varied: Sequence[str]) -> list[Markup]:
    """Draw areas, and scores if there are any, against the only choice that varies, if it is a number."""
    if len(varied) != 1 or not _is_number(jobs, varied[0]):
        return []
    ordered = sorted(jobs, key=lambda one: float(one.job.choices[varied[0]]))
    shares = [(float(one.job.choices[varied[0]]), found) for one in ordered if (found := one.find_quartiles(_SHARE))]
    xs = [x for x, _ in shares]
    names = {1: ("median of the slides", VALIDATION), 0: ("quartiles", GREY), 2: ("quartiles", GREY)}
    lines = [Line(name, xs, [found[k] for _, found in shares], colour) for k, (name, colour) in names.items()]
    charts = [draw_lines("Tumour, % of the tissue", lines, varied[0], y_label="% of the tissue")]
    scores = []
    for key, colour in (("dice", VALIDATION), ("dice_mean_slide", TEST)):
        points = [
            (float(one.job.choices[varied[0]]), value)
            for one in ordered
            if one.evaluation and (value := one.evaluation.test.numbers.get(key)) is not None
        ]
        scores.append(Line(name_figure(key), [x for x, _ in points], [y for _, y in points], colour))
    charts.append(draw_lines("Against the labels", scores, varied[0], y_label="Dice", y_range=(0.0, 1.0)))
    return [chart for chart in charts if chart]


def _make_slide_table(jobs: Sequence[MapJob], varied: Sequence[str], slides: Sequence[str]) -> Table:
    """Lay out the slides, those on which the jobs differ most first: each with its area and grade in every job."""
    shown, rows = jobs[:_MOST_JOBS], []
    for name in slides[:_MOST_SLIDES]:
        values = [one.slides[name][_SHARE] for one in jobs if _SHARE in one.slides.get(name, {})]
        middle, spread = median(values) if values else None, measure_spread(jobs, name)
        why = "no job has its area"
        row = [Cell(name, style="id"), make_cell(middle, "percent", why), make_cell(spread, "percent", why)]
        for one in shown:
            own = one.slides.get(name, {})
            under = [f"{format_value(own['tumor_mm2'], 'mm2')} mm²"] if "tumor_mm2" in own else []
            under += [f"ISUP {own[key]:g}" for key in _GRADES if key in own][:1]
            under += [f"Dice {format_value(own['dice'])}"] if "dice" in own else []
            text, why = format_value(own.get(_SHARE), "percent"), "the job has no result of the slide"
            row.append(Cell(text, own.get(_SHARE), why, style="num", under=", ".join(under)))
        rows.append(row)
    notes = [f"{len(rows)} of {len(slides)} slides are shown."] * (len(rows) < len(slides))
    notes += [f"The first {len(shown)} of {len(jobs)} jobs are shown."] * (len(shown) < len(jobs))
    heads = [Head("Slide"), Head("Median", "% of tissue", True), Head("Spread", "highest less lowest, %", True)]
    return Table([*heads, *(Head(label_job(one.job, varied), "%", True) for one in shown)], rows, note=" ".join(notes))
