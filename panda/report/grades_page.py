"""Write the page of an inference from feature files: the grades of all slides, failures, and what made the grades."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, PositiveInt, TypeAdapter

from panda.data.feature_origin import FeatureOrigin
from panda.data.targets import Target, TargetSpec
from panda.files import write_json
from panda.report.failure_table import make_failure_table
from panda.report.grade_notes import describe_uncertain
from panda.report.head import PageHead
from panda.report.inference_summary import LastRun
from panda.report.page import require_folder, write_page
from panda.report.page_facts import format_date, keep_known, write_command
from panda.report.run_folder import parse_number, try_read
from panda.report.slide_page import Card, make_slide_table
from panda.report.table import format_value
from panda.stored import Making, PathText, Timestamp, read_model
from panda.tables import read_output_table

GRADES_TABLE, GRADES_FILE = "grades.csv", "grades.json"
_SEEN = {
    "training": "The network was trained on {} of these slides, so their grades say little about new slides.",
    "validation": "The epoch was chosen on {} of these slides, so their grades are too good.",
}

_WHY = {
    "in_sample": "the slide is new to the network",
    "mark": "the grade is certain enough",
}


class FeatureInferenceSummary(Making, frozen=True):
    """The content of `grades.json`: what made the grades in a folder, and the notes for its reader.

    Attributes:
        features: Folder of the feature files.
        slides: The slides that are shown, None without any.
        origin: What made the features that the grader learned from.
        tiles: Largest number of tiles of a slide.
    """

    grading_checkpoint: PathText
    features: PathText
    slides: PathText | None
    target: Target
    origin: FeatureOrigin
    tiles: PositiveInt
    device: Annotated[str, Field(pattern=r"^(cpu|mps|cuda(:\d+)?)$")]
    date: Timestamp
    last_run: LastRun
    notes: list[str]

    def write(self, folder: Path) -> None:
        """Write `grades.json`."""
        write_json(folder / GRADES_FILE, self.model_dump(mode="json"))

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read `grades.json`.

        Raises:
            FileNotFoundError: If the folder has none.
            PandaError: If the file was edited or written by another version.
        """
        remedy = "it was edited or written by another version: run the inference again"
        return read_model(folder / GRADES_FILE, TypeAdapter(cls), remedy)


def write_grades_page(output: Path) -> Path:
    """Write `report.html` of an inference from feature files, from the tables and folders of slides that it left.

    The page names missing files.
    """
    output = Path(output).absolute()
    require_folder(output)
    summary, fault = try_read(FeatureInferenceSummary.read, output, GRADES_FILE)
    rows = read_output_table(output / GRADES_TABLE)
    target = summary.target if summary else None
    predicted = target.predicted_column if target else ""
    ordered = target is not None and (target.is_grade or not target.has_classes)
    if ordered:  # classes by name have no number in the table
        rows.sort(key=lambda row: -(parse_number(row.get(predicted)) or 0.0))
    counts = {word: sum(row.get("in_sample") == word for row in rows) for word in _SEEN}
    columns = [key for key in (rows[0] if rows else ()) if key != "in_sample" or any(counts.values())]
    failures = make_failure_table(output / "failures.csv")
    return write_page(
        output / "report.html",
        "grades.html",
        head=_describe(output, summary, len(rows)),
        seen=[text.format(counts[word]) for word, text in _SEEN.items() if counts[word]],
        notes=[*(summary.notes if summary else [fault]), *filter(None, [describe_uncertain(rows)])],
        cards=_make_cards([row.get(predicted, "") for row in rows], target, len(failures.rows)),
        ordered=ordered,
        slides=make_slide_table(rows, columns, output, _WHY),
        failures=failures,
        facts=_list_facts(summary) if summary else [],
    )


def _describe(folder: Path, summary: FeatureInferenceSummary | None, slides: int) -> PageHead:
    """Return the head of the page: checkpoint, features and target."""
    if summary is None:
        return PageHead("Grades from features", folder.name)
    facts = [
        ("Checkpoint", summary.grading_checkpoint),
        ("Learned", summary.target.title if summary.target.is_grade else summary.target.describe_source()),
        ("Encoder", summary.origin.encoder or ""),
        ("Features", summary.features),
        ("Slides", f"{slides:,}"),
        ("Device", summary.device),
        ("Made", format_date(summary.date)),
        ("Commit", summary.commit or ""),
    ]
    commands = [("Made by", write_command("infer", summary.overrides))]
    return PageHead("Grades from features", folder.name, facts, keep_known(commands))


def _make_cards(found: Sequence[str], target: TargetSpec | None, failed: int) -> list[Card]:
    """Return the number of slides, and how many have each class. `found` has the prediction of each slide as text."""
    under = f"{failed} failed" if failed else "none failed"
    cards = [Card("Slides graded", format_value(len(found), "count"), under=under, big=True)]
    if target is None or not target.has_classes:
        return cards
    names = [str(k) if target.is_grade else name for k, name in enumerate(target.classes)]
    counts = [(shown, found.count(name)) for shown, name in zip(target.classes, names, strict=True)]
    return [*cards, *(Card(shown, format_value(count, "count"), f"of {len(found)}") for shown, count in counts)]


def _list_facts(summary: FeatureInferenceSummary) -> list[tuple[str, str]]:
    """Return what made the grades, as rows of a table."""
    origin = summary.origin.model_dump(exclude_none=True, exclude={"format", "weights"})
    last, values = (
        summary.last_run,
        summary.model_dump(exclude={"notes", "origin", "date", "last_run", "target", *Making.model_fields}),
    )
    return [
        ("target", summary.target.name),
        *((key.replace("_", " "), str(value)) for key, value in values.items() if value is not None),
        ("the grader learned from", ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in origin.items())),
        ("last run", f"{last.slides} slides, {last.failed} failed, {last.seconds:.4g} s"),
    ]
