"""Write the page of an inference: all slides with their figures, failures, and the settings of the maps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from panda.inference.slide_result import CLASS_AREA
from panda.report.agreement import draw_agreement
from panda.report.class_section import explain_rule
from panda.report.grade_notes import (
    add_rule_band,
    describe_disagreements,
    describe_uncertain,
    lay_out_both_grades,
)
from panda.report.inference_summary import INFERENCE_FILE, InferenceSummary
from panda.report.page import require_folder, write_page
from panda.report.run_folder import parse_number, try_read
from panda.report.run_page import make_failure_table
from panda.report.slide_page import Card, make_slide_table
from panda.report.table import format_value
from panda.tables import read_output_table

_COLUMNS = (
    "slide_id", "isup_predicted", "cancer_predicted", "confidence", "mark", "rule_score", "rule_isup", "rule_band",
    "tumor_percent_of_tissue", "tumor_mm2", "dice", "true_tumor_mm2", "tumor_difference_mm2", "tissue_mm2",
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


def _make_cards(rows: list[dict[str, str]], failed: set[str]) -> list[Card]:
    known = [r for r in rows if r.get("tissue_how") != "whole"]
    tumor = [a for r in known if (a := parse_number(r.get("tumor_mm2"))) is not None]
    tissue = [a for r in known if (a := parse_number(r.get("tissue_mm2"))) is not None]
    positive = sum((parse_number(r.get("num_regions")) or 0) > 0 for r in rows)
    without = {"of unknown µm/px": len(known) - len(tumor), "whose whole area counts as tissue": len(rows) - len(known)}
    under = ", ".join(f"without {n} slide{'s' * (n != 1)} {which}" for which, n in without.items() if n)
    finished = {r.get("slide_id", "") for r in rows}
    counts = {"failed": len(failed - finished), "not graded": len(failed & finished)}
    faults = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    return [
        Card("Slides finished", format_value(len(rows), "count"), under=faults or "none failed", big=True),
        Card("Slides with tumour regions", format_value(positive, "count"), f"of {len(rows)}", big=True),
        Card("Tumour, all slides", format_value(sum(tumor), "mm2") if tumor else "", "mm²", under),
        Card("Tissue, all slides", format_value(sum(tissue), "mm2") if tissue else "", "mm²", under),
    ]


def write_inference_page(output: Path) -> Path:
    """Write `report.html` of an inference from its folder, and the pages of its slides if they are out of date.

    The folder has `quantification.csv`, `failures.csv`, `inference.json` and a folder for each slide. The page names
    missing files.
    """
    output = Path(output).absolute()
    require_folder(output)
    summary, fault = try_read(InferenceSummary.read, output, INFERENCE_FILE)
    rows = [add_rule_band(row) for row in read_output_table(output / "quantification.csv")]
    rows.sort(key=lambda r: -(parse_number(r.get("tumor_percent_of_tissue")) or 0.0))
    failures = make_failure_table(output / "failures.csv")
    counts = {word: sum(r.get("in_sample") == word for r in rows) for word in _SEEN}
    is_informative = {
        "threshold": len({r.get("threshold") for r in rows}) > 1,
        "tissue_how": any(r.get("tissue_how") != "strict" for r in rows),
        "unscored_tissue_px": any(parse_number(r.get("unscored_tissue_px")) for r in rows),
        "in_sample": any(counts.values()),
    }
    keys = [k for k in _COLUMNS if any(k in row for row in rows) and is_informative.get(k, True)]
    if rows and not {"isup_predicted", "cancer_predicted"} & rows[0].keys() and "mpp_y" in rows[0]:
        keys[1:1] = list(rows[0])[list(rows[0]).index("mpp_y") + 1 :][:1]  # of a grader with another target
    areas = [key for key in (rows[0] if rows else ()) if key.startswith(CLASS_AREA) and key.endswith("_mm2")]
    if areas:
        place = keys.index("tumor_mm2") + 1
        keys[place:place] = areas
    settings = summary.model_dump(mode="json", exclude={"notes", "gleason_rule"}) if summary else {}
    facts = [(key.replace("_", " "), _write_value(value)) for key, value in settings.items()]
    return write_page(
        output / "report.html",
        "inference.html",
        name=output.name,
        checkpoint=summary.checkpoint if summary else "",
        date=summary.date.replace("T", " ") if summary else "",
        seen=[text.format(counts[word]) for word, text in _SEEN.items() if counts[word]],
        notes=[*(summary.notes if summary else [fault]), *filter(None, (describe(rows) for describe in _NOTES))],
        facts=[(name, text) for name, text in facts if text],
        cards=_make_cards(rows, {r[0].text for r in failures.rows}),
        slides=make_slide_table(rows, keys, output, _WHY | dict.fromkeys(areas, _WHY["tumor_mm2"])),
        agreement=draw_agreement(rows),
        both_grades=lay_out_both_grades(rows),
        rule=explain_rule(summary.gleason_rule) if summary and summary.gleason_rule else "",
        failures=failures,
    )
