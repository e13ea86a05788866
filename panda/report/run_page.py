"""Write the page of a training run: figures and their meaning, curves, slides, and what was left out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from panda.data.summary import DataSummary, PatchDataSummary
from panda.report.agreement import draw_agreement
from panda.report.axes import TRAIN, VALIDATION
from panda.report.charts import Line, draw_lines
from panda.report.class_section import lay_out_classes
from panda.report.confidence_section import lay_out_confidence
from panda.report.confusion import ConfusionTable, lay_out_confusion
from panda.report.error_gallery import lay_out_errors
from panda.report.failure_table import make_failure_table
from panda.report.figure_tables import make_part_table, make_splits_table, name_grade
from panda.report.grade_notes import add_rule_band
from panda.report.interpretation import choose_split, explain_figures, find_alarms, make_cards
from panda.report.page import require_folder, write_page
from panda.report.patient_table import lay_out_patients
from panda.report.run_facts import describe_run
from panda.report.run_folder import Picture, make_link, make_natural_key, parse_number, read_picture, read_text
from panda.report.run_summary import GradingSummary, RunSummary, read_summary
from panda.report.slide_page import find_slide_table, make_slide_table
from panda.report.table import Cell, Head, Table, format_value, make_cell, name_figure
from panda.report.target_charts import draw_predictions
from panda.tables import read_output_table

_MOST_PANELS = 12
_GRADED = ("slide_id", "provider", "isup_grade", "label", "predicted", "confidence", "mark")
_SLIDE_COLUMNS = {
    "segmentation": (
        "slide_id", "provider", "isup_grade", "rule_score", "rule_isup", "rule_band", "dice", "iou", "precision",
        "recall", "tumor_percent_of_tissue", "tumor_mm2", "true_tumor_mm2", "tissue_mm2", "num_regions", "fp_mm2",
        "cancer_outside_tissue_mm2",
    ),
    "isup": (*_GRADED, "p0", "p1", "p2", "p3", "p4", "p5"),
    "cancer": (*_GRADED, "p0", "p1"),
    **dict.fromkeys(
        ("classes", "ordinal"), ("slide_id", "provider", "given_class", "predicted_class", "confidence", "mark")
    ),
    "regression": ("slide_id", "provider", "label", "predicted"),
    "survival": ("slide_id", "provider", "time", "event", "predicted"),
}  # fmt: skip
_AREAS = ("tumor_mm2", "true_tumor_mm2", "tissue_mm2", "fp_mm2", "cancer_outside_tissue_mm2")
_WHY = {
    **dict.fromkeys(("dice", "iou"), "no cancer is labelled on this slide, so it has no Dice; see its false alarms"),
    "precision": "no cancer is labelled on this slide, or nothing was predicted",
    "recall": "no cancer is labelled on this slide",
    **dict.fromkeys(_AREAS, "µm/px of the slide is unknown"),
    **dict.fromkeys(
        ("true_tumor_mm2", "fp_mm2"), "µm/px of the slide is unknown, or it has a grade and no cancer is labelled"
    ),
    "isup_grade": "the slide has no grade",
    **dict.fromkeys(("rule_score", "rule_isup", "rule_band"), "the areas of its patterns give no Gleason score"),
}


def draw_training(rows: Sequence[dict[str, str]]) -> list[Markup]:
    """Draw one chart for each of the first metrics logged as `train/…` or `val/…`, loss and Dice first.

    The rows are those of `metrics.csv`: sparse, each with an `epoch`.
    """
    columns = [c for c in (rows[0] if rows else {}) if c.startswith(("train/", "val/"))]
    names = list(dict.fromkeys(c.split("/", 1)[1] for c in columns))
    names = [n for n in names if not n.endswith(("_step", "_epoch"))]
    first = ("loss", "dice", "qwk", "auroc_macro", "r2", "concordance", "accuracy")
    names.sort(key=lambda n: first.index(n) if n in first else len(first))
    # best.ckpt is chosen by this metric: `monitor` of the segmentation and of the grading.
    chosen_by, better = ("dice", max) if "dice" in names else ("loss", min)
    chosen = _collect_by_epoch(rows, f"val/{chosen_by}")
    best = better(chosen, key=lambda epoch: chosen[epoch]) if chosen else None
    charts = []
    for name in names[:4]:
        lines = []
        for split, colour, label in (("train", TRAIN, "training"), ("val", VALIDATION, "validation")):
            points = _collect_by_epoch(rows, f"{split}/{name}")
            lines.append(Line(label, list(points), list(points.values()), colour))
        val = dict(zip(lines[1].xs, lines[1].ys, strict=True))
        mark = None
        if name in {chosen_by, "qwk"} and best is not None and best in val:
            mark = (best, f"best epoch {best:g}: {val[best]:.3f}")
        title = "Dice" if name == "dice" else name_figure(name)
        y_range = None if name in {"loss", "mae"} else (0.0, 1.0)
        title = title[:1].upper() + title[1:]
        charts.append(draw_lines(title, lines, "epoch", y_label=title, y_range=y_range, mark=mark, whole_x=True))
    return [chart for chart in charts if chart]


def _collect_by_epoch(rows: Sequence[dict[str, str]], column: str) -> dict[float, float]:
    """Collect one value for each epoch, the mean if it was logged more than once."""
    values: dict[float, list[float]] = {}
    for row in rows:
        epoch, value = parse_number(row.get("epoch")), parse_number(row.get(column))
        if epoch is not None and value is not None:
            values.setdefault(epoch, []).append(value)
    return {epoch: sum(v) / len(v) for epoch, v in sorted(values.items())}


def read_threshold_line(path: Path, name: str, colour: str) -> Line:
    """Read the pooled Dice at every threshold from `threshold_curve.csv`; without points if it is missing."""
    rows = (
        (parse_number(row.get("threshold")), parse_number(row.get("dice_pooled"))) for row in read_output_table(path)
    )
    points = [(x, y) for x, y in rows if x is not None and y is not None]
    return Line(name, [x for x, _ in points], [y for _, y in points], colour)


def _make_confusion(summary: RunSummary) -> ConfusionTable | None:
    """Lay out the confusion matrix of a grading run; None for another run."""
    if not isinstance(summary, GradingSummary):
        return None
    counts = getattr(summary.test or summary.val, "confusion", None)
    if counts is None:
        return None
    names = summary.target.classes[: len(counts)]
    return lay_out_confusion(counts, names, names, "given ↓   predicted →")


def _measure_error(row: dict[str, str]) -> float:
    """Return how far the predicted class or number is off."""
    given, predicted = parse_number(row.get("label")), parse_number(row.get("predicted"))
    return abs(given - predicted) if given is not None and predicted is not None else 0.0


def _tabulate_slides(run_dir: Path, scoring: str) -> tuple[Table, str]:
    """Lay out the run's slides, the worst or those of the highest risk first, and describe the order."""
    rows = [add_rule_band(row) for row in read_output_table(find_slide_table(run_dir))]
    if scoring == "survival":
        rows.sort(key=lambda r: -(parse_number(r.get("predicted")) or 0.0))
        order = "Slides with the highest predicted risk come first."
    elif scoring == "classes":
        rows.sort(key=lambda r: r.get("label") == r.get("predicted"))
        order = "Slides with a wrong class come first."
    elif scoring != "segmentation":
        rows.sort(key=_measure_error, reverse=True)
        given = "number" if scoring == "regression" else "class"
        order = f"Slides whose prediction is furthest from the given {given} come first."
    else:
        rows.sort(key=lambda r: d if (d := parse_number(r.get("dice"))) is not None else 2.0)
        order = "Slides with the lowest Dice come first. Slides without labelled cancer have no Dice and come last."
    keys = [k for k in _SLIDE_COLUMNS[scoring] if rows and k in rows[0]]
    if not any(parse_number(r.get("cancer_outside_tissue_px")) for r in rows):
        keys = [k for k in keys if k != "cancer_outside_tissue_mm2"]
    if all(r.get("label") == r.get("isup_grade") for r in rows):  # ISUP grades are the target
        keys = [k for k in keys if k != "label"]
    return make_slide_table(rows, keys, run_dir / "slides", _WHY, "slides"), order


def _read_panels(run_dir: Path) -> tuple[list[tuple[str, str, Picture]], list[tuple[str, str]]]:
    """Read the first panels as pictures and the rest as links."""
    files = sorted((run_dir / "panels").glob("*.png"), key=lambda p: make_natural_key(p.name))
    pictures = {file: picture for file in files[:_MOST_PANELS] if (picture := read_picture(file, 2000))}
    links = {file: make_link("panels", file.name) for file in files}
    shown = [(links[file], file.stem.replace("_", " "), picture) for file, picture in pictures.items()]
    return shown, [(href, file.name) for file, href in links.items() if file not in pictures]


def _tabulate_counts(data: DataSummary) -> tuple[Table, list[tuple[str, str]]]:
    """Lay out how many slides and patches each split had, and how many were left out and why."""
    counts: dict[str, dict[str, int]] = {"slides": data.slides}
    if isinstance(data, PatchDataSummary):
        counts |= {"patches": data.patches, "tumor_patches": data.tumor_patches}
    used = [split for split in ("train", "val", "test") if any(split in row for row in counts.values())]
    titles = {"train": "Training", "val": "Validation", "test": "Test"}
    rows = [
        [
            Cell(name_figure(thing).capitalize().replace("Tumor", "Tumour")),
            *(make_cell(c.get(s), "count") for s in used),
        ]
        for thing, c in counts.items()
    ]
    table = Table([Head(""), *(Head(titles[s], figures=True) for s in used)], rows, sortable=False)
    return table, [(k.replace("_", " "), format_value(v, "count")) for k, v in data.left_out.items() if v]


def write_run_page(run_dir: Path) -> Path:
    """Write `report.html` of a training run from its folder, and the pages of its slides if they are out of date.

    The page names missing files.
    """
    run_dir = Path(run_dir).absolute()
    require_folder(run_dir)
    summary, fault = read_summary(run_dir)
    task = summary.task if summary else "segmentation"
    slides, slide_order = _tabulate_slides(run_dir, summary.scoring if summary else "segmentation")
    rows = read_output_table(find_slide_table(run_dir))
    curve = read_picture(run_dir / "threshold_curve.png", 1400)
    panels, more_panels = _read_panels(run_dir)
    return write_page(
        run_dir / "report.html",
        "run.html",
        head=describe_run(run_dir, summary),
        task=task,
        notes=[fault] if summary is None else summary.notes,
        charts=draw_training(read_output_table(run_dir / "metrics.csv")),
        curve=curve,
        calibration=read_picture(run_dir / "calibration.png", 1800),
        curve_chart="" if curve else _draw_threshold_chart(run_dir, summary.threshold if summary else None),
        panels=panels,
        more_panels=more_panels,
        slides=slides,
        agreement=draw_predictions(rows, summary.target)
        if isinstance(summary, GradingSummary)
        else draw_agreement(rows),
        errors=lay_out_errors(run_dir, find_slide_table(run_dir), "slides"),
        tested=summary is not None and summary.test is not None,
        slide_order=slide_order,
        patients=lay_out_patients(run_dir, "slides"),
        failures=make_failure_table(run_dir / "failures.csv"),
        config=read_text(run_dir / "config.yaml"),
        figures=_lay_out_summary(summary) if summary else None,
        confidence=lay_out_confidence(run_dir, summary) if summary else None,
    )


def _draw_threshold_chart(run_dir: Path, threshold: float | None) -> Markup:
    line = read_threshold_line(run_dir / "threshold_curve.csv", "pooled Dice, validation", VALIDATION)
    mark = None if threshold is None else (threshold, f"threshold {threshold:.3g}")
    title = "Dice at every threshold"
    return draw_lines(title, [line], "threshold", y_label="pooled Dice", y_range=(0.0, 1.0), mark=mark, size=(760, 300))


def _lay_out_summary(summary: RunSummary) -> dict[str, Any]:
    """Return the parts of the page that come from the summary."""
    split, scores = choose_split(summary)
    counts, left_out = _tabulate_counts(summary.data)
    return {
        "split": split,
        "policy": summary.data.groups,
        "alarms": find_alarms(summary),
        "cards": make_cards(summary),
        "meaning": explain_figures(summary),
        "confusion": _make_confusion(summary),
        "classes": lay_out_classes(summary),
        "splits": make_splits_table(summary),
        "providers": make_part_table(scores.find_parts("by_provider"), "Provider", str),
        "grades": make_part_table(scores.find_parts("by_grade"), "Grade", name_grade),
        "counts": counts,
        "left_out": left_out,
    }
