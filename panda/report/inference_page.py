"""Write the page of an inference: all slides with their figures, failures, and the settings of the maps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from panda.inference.slide_result import CLASS_AREA
from panda.report.agreement import draw_agreement, take_sample
from panda.report.error_gallery import lay_out_errors
from panda.report.evaluation_section import lay_out_evaluation
from panda.report.failure_table import make_failure_table
from panda.report.grade_notes import (
    add_rule_band,
    describe_disagreements,
    describe_uncertain,
    explain_rule,
    lay_out_both_grades,
)
from panda.report.inference_summary import INFERENCE_FILE, InferenceSummary
from panda.report.page import require_folder, write_page
from panda.report.page_facts import describe_inference
from panda.report.run_folder import parse_number, try_read
from panda.report.slide_page import MOST_THUMBNAILS, SAMPLE_THUMBNAILS, Card, describe_sample, make_slide_table
from panda.report.table import format_value
from panda.stored import Making
from panda.tables import OutputTable

_COLUMNS = (
    "slide_id", "isup_predicted", "cancer_predicted", "confidence", "mark", "rule_score", "rule_isup", "rule_band",
    "tumor_percent_of_tissue", "tumor_mm2", "dice", "true_tumor_mm2", "tumor_difference_mm2",
    "cancer_outside_tissue_percent", "tissue_mm2",
    "tissue_how", "unscored_tissue_px", "num_regions", "threshold", "in_sample",
)  # fmt: skip
_SEEN = {
    "training": "The network was trained on {} of these slides, so their results say little about new slides.",
    "validation": "The epoch and the threshold were chosen on {} of these slides, so their figures are too good.",
}
_WHY = {
    **dict.fromkeys(("tumor_mm2", "tissue_mm2"), "µm/px of the slide is unknown"),
    "dice": "the slide has no label mask, or no cancer in it",
    **dict.fromkeys(("true_tumor_mm2", "tumor_difference_mm2"), "no label mask that fits the grade, or no µm/px"),
    **dict.fromkeys(("isup_predicted", "cancer_predicted", "confidence"), "the slide was not graded"),
    "mark": "the grade is certain enough, or there is none",
    **dict.fromkeys(("rule_score", "rule_isup", "rule_band"), "the areas of its patterns give no Gleason score"),
    "cancer_outside_tissue_percent": "no cancer is labelled",
    "in_sample": "the slide is new to the network",
}


_NOTES = (describe_disagreements, describe_uncertain)


def _write_value(value: Any) -> str:
    """Write a value of `inference.json` on one line."""
    if isinstance(value, Mapping):
        texts = {str(k).replace("_", " "): _write_value(v) for k, v in value.items()}
        return ", ".join(f"{k} {text}" for k, text in texts.items() if text)
    if isinstance(value, list):
        return ", ".join(dict.fromkeys(_write_value(v) for v in value))
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)


_INFORMATIVE = ("tissue_how", "unscored_tissue_px", "cancer_outside_tissue_percent")
"""Columns that are shown if a slide has an unusual value."""


@dataclass
class _Total:
    """The number and the sum of figures that are known."""

    count: int = 0
    total: float = 0.0

    def add(self, figure: float | None) -> None:
        """Add a figure, None if it is unknown."""
        if figure is not None:
            self.count += 1
            self.total += figure

    def format(self) -> str:
        """Write the sum of areas; empty if none is known."""
        return format_value(self.total, "mm2") if self.count else ""


@dataclass
class _Counts:
    """Counts and sums over all slides of a table, whose rows are added in turn."""

    failed: set[str]
    slides: int = 0
    ungraded: int = 0
    positive: int = 0
    whole: int = 0
    tumor: _Total = field(default_factory=_Total)
    tissue: _Total = field(default_factory=_Total)
    seen: Counter[str] = field(default_factory=Counter)
    thresholds: set[str | None] = field(default_factory=set)
    informative: dict[str, bool] = field(default_factory=lambda: dict.fromkeys(_INFORMATIVE, False))
    columns: dict[str, None] = field(default_factory=dict)

    def add(self, row: dict[str, str]) -> dict[str, str]:
        """Add a slide, and return its row."""
        self.slides += 1
        self.ungraded += row.get("slide_id", "") in self.failed
        self.positive += (parse_number(row.get("num_regions")) or 0) > 0
        if row.get("tissue_how") == "whole":
            self.whole += 1
        else:
            self.tumor.add(parse_number(row.get("tumor_mm2")))
            self.tissue.add(parse_number(row.get("tissue_mm2")))
        self.seen[row.get("in_sample", "")] += 1
        self.thresholds.add(row.get("threshold"))
        self.informative["tissue_how"] |= row.get("tissue_how") != "strict"
        for key in _INFORMATIVE[1:]:
            self.informative[key] |= bool(parse_number(row.get(key)))
        self.columns.update(dict.fromkeys(row))
        return row

    def list_columns(self) -> tuple[list[str], list[str]]:
        """Return the columns of the table of slides, and those of them with areas of classes."""
        seen = any(self.seen[word] for word in _SEEN)
        is_informative = self.informative | {"threshold": len(self.thresholds) > 1, "in_sample": seen}
        keys, found = [k for k in _COLUMNS if k in self.columns and is_informative.get(k, True)], list(self.columns)
        if "mpp_y" in found and not {"isup_predicted", "cancer_predicted"} & self.columns.keys():
            keys[1:1] = found[found.index("mpp_y") + 1 :][:1]  # of a grader with another target
        areas = [key for key in found if key.startswith(CLASS_AREA) and key.endswith("_mm2")]
        if areas:
            place = keys.index("tumor_mm2") + 1
            keys[place:place] = areas
        return keys, areas

    def make_cards(self) -> list[Card]:
        """Return the figures that are read first."""
        known = self.slides - self.whole
        without = {
            "of unknown µm/px": known - self.tumor.count,
            "whose whole area counts as tissue": self.whole,
        }
        under = ", ".join(f"without {n} slide{'s' * (n != 1)} {which}" for which, n in without.items() if n)
        counts = {"failed": len(self.failed) - self.ungraded, "not graded": self.ungraded}
        faults = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        return [
            Card("Slides finished", format_value(self.slides, "count"), under=faults or "none failed", big=True),
            Card("Slides with tumour regions", format_value(self.positive, "count"), f"of {self.slides}", big=True),
            Card("Tumour, all slides", self.tumor.format(), "mm²", under),
            Card("Tissue, all slides", self.tissue.format(), "mm²", under),
        ]


def write_inference_page(output: Path) -> Path:
    """Write `report.html` of an inference from its folder, and the pages of its slides if they are out of date.

    The folder has `quantification.csv`, `failures.csv`, `inference.json` and a folder for each slide. The page names
    missing files. Of a long table it shows a sample, and its figures are of all slides.
    """
    output = Path(output).absolute()
    require_folder(output)
    summary, fault = try_read(InferenceSummary.read, output, INFERENCE_FILE)
    table, failures = OutputTable(output / "quantification.csv"), output / "failures.csv"
    counts = _Counts({row.get("slide_id", "") for row in OutputTable(failures)})
    rows = take_sample(map(counts.add, map(add_rule_band, table)))
    rows.sort(key=lambda r: -(parse_number(r.get("tumor_percent_of_tissue")) or 0.0))
    keys, areas = counts.list_columns()
    is_sample = len(rows) < counts.slides
    slides = make_slide_table(
        rows,
        keys,
        output,
        _WHY | dict.fromkeys(areas, _WHY["tumor_mm2"]),
        thumbnails=SAMPLE_THUMBNAILS if is_sample else MOST_THUMBNAILS,
    )
    if is_sample:
        note = describe_sample(len(rows), counts.slides, table.path.name)
        slides = replace(slides, note=f"{note} {slides.note}".strip())
    settings = (
        summary.model_dump(mode="json", exclude={"notes", "gleason_rule", "network", *Making.model_fields})
        if summary
        else {}
    )
    facts = [(key.replace("_", " "), _write_value(value)) for key, value in settings.items()]
    return write_page(
        output / "report.html",
        "inference.html",
        head=describe_inference(output, summary, counts.slides),
        seen=[text.format(counts.seen[word]) for word, text in _SEEN.items() if counts.seen[word]],
        notes=[*(summary.notes if summary else [fault]), *filter(None, (describe(table) for describe in _NOTES))],
        facts=[(name, text) for name, text in facts if text],
        cards=counts.make_cards(),
        evaluation=lay_out_evaluation(output),
        slides=slides,
        errors=lay_out_errors(output, table.path),
        table=table.path.name,
        agreement=draw_agreement(table),
        both_grades=lay_out_both_grades(table),
        rule=explain_rule(summary.gleason_rule) if summary and summary.gleason_rule else "",
        failures=make_failure_table(failures),
    )
