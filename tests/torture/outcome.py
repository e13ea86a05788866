"""What was tried and what failed, as a table and as JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from panda.files import write_json


@dataclass
class Outcome:
    """The result of one kind of trial.

    Attributes:
        part: Part of the torture.
        case: What was done to which job.
        unit: What is counted, in the plural.
        tried: How many.
        faults: Each fault in a sentence.
        notes: What was observed and is no fault.
    """

    part: str
    case: str
    unit: str = "trials"
    tried: int = 0
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Add a note, each text once."""
        if text not in self.notes:
            self.notes.append(text)


@dataclass
class Deadline:
    """The time that a part may take."""

    seconds: float
    started: float = field(default_factory=time.monotonic)

    @property
    def passed(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() - self.started > self.seconds

    def share(self, parts: int) -> Deadline:
        """Return a deadline that begins now and has an equal share of the time."""
        return Deadline(self.seconds / max(1, parts))


def format_table(outcomes: Sequence[Outcome]) -> str:
    """Return a row for each outcome, and its notes and faults below."""
    width = max((len(outcome.case) for outcome in outcomes), default=0)
    lines = []
    for outcome in outcomes:
        count = f"{outcome.tried} {outcome.unit}"
        lines.append(f"{outcome.part:<10} {outcome.case:<{width}} {count:>14} {len(outcome.faults):>4} faults")
        lines += [f"    note: {text}" for text in outcome.notes]
        lines += [f"    FAULT: {text}" for text in outcome.faults]
    return "\n".join(lines)


def write_outcomes(path: Path, seed: int, minutes: float, outcomes: Sequence[Outcome]) -> None:
    """Write all outcomes as JSON."""
    plain = json.loads(json.dumps([asdict(outcome) for outcome in outcomes]))
    write_json(path, {"seed": seed, "minutes": minutes, "outcomes": plain})
