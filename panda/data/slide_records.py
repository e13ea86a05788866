"""Records of an output folder: what became of each slide, a line for each, in a file of each process.

The files of a slide stay the truth. A line holds the state of these files when it was written, and counts only while
they are in that state. So lines need no order, and any number of processes on any machines append to files of their
own without a lock. A process that is killed leaves at most a last line without an end. That line is not read, and its
slide counts as one without a line.
"""

from __future__ import annotations

import itertools
import logging
import os
import sqlite3
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from panda.data.failures import FAILURE_COLUMNS, Failure
from panda.data.run_records import RECORDS_FOLDER, RunRecord, RunRecords
from panda.data.slide_state import make_text
from panda.files import fingerprint, open_log, write_whole
from panda.stored import Plain
from panda.tables import read_output_table

log = logging.getLogger(__name__)

RowValue = str | int | float | None
_BATCH, _PART = 1_000, 50
_NAMED = 20
"""Number of slides that a message names."""
_THREADS = 8
"""Threads that look at the files of slides, because each look waits for a network disk."""
_SCHEMA = """
CREATE TABLE line (slide_id TEXT, made_with TEXT, state TEXT, key TEXT, failed INTEGER, content BLOB);
CREATE INDEX line_of_slide ON line (slide_id);
CREATE TABLE name (slide_id TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE missing (slide_id TEXT PRIMARY KEY) WITHOUT ROWID;
"""


class Outcome(Plain, frozen=True):
    """What became of a slide. A slide that failed in a last step has two, one with its row and one with the failure.

    Attributes:
        slide_id: Name of the slide.
        made_with: Fingerprint of the settings.
        state: State of its files afterwards, see `panda.data.slide_state`; empty if there are none.
        key: Hash of everything that determines its files; empty if it is not known.
        row: Its row of the table, None for a failure.
        failure: Why it failed, or None.
    """

    slide_id: str
    made_with: str
    state: str
    key: str = ""
    row: dict[str, RowValue] | None = None
    failure: Failure | None = None


@dataclass
class NamedSlides:
    """A number of slides, and the names of the first of them."""

    count: int = 0
    named: list[str] = field(default_factory=list)

    def add(self, slide_id: str) -> None:
        """Count a slide."""
        self.count += 1
        if len(self.named) < _NAMED:
            self.named.append(slide_id)

    def __str__(self) -> str:
        return ", ".join(self.named) + (" …" if self.count > len(self.named) else "")


@dataclass(frozen=True)
class SlideState:
    """The outcomes of a slide that count for its files as they are now.

    Attributes:
        slide_id: Name of the slide.
        state: State of its files; empty if there are none.
        outcomes: The outcomes, of any settings.
    """

    slide_id: str
    state: str
    outcomes: tuple[Outcome, ...]


_OUTCOME = TypeAdapter(Outcome)


class SlideRecords:
    """The records of an output folder.

    Args:
        folder: The output folder.
        find_state: Returns the state of the files of a slide, which need not exist. Threads call it.

    Attributes:
        folder: The folder of the records.
        runs: What the runs of the folder make.
    """

    def __init__(self, folder: Path, find_state: Callable[[str], str]) -> None:
        self.folder = folder / RECORDS_FOLDER
        self._find_state = find_state
        self._own = self.folder / f"{uuid.uuid4().hex}.jsonl"
        self.runs = RunRecords(self.folder, self._own.with_suffix(".json"))
        self._offsets: dict[str, int] = {}
        # Without a name it is in memory while it is small, and then in a temporary file.
        # Any thread may collect this object, and then closes it.
        self._index = sqlite3.connect("", check_same_thread=False)
        self._index.executescript(_SCHEMA)
        weakref.finalize(self, self._index.close)  # Python 3.13 warns of a database that is not closed

    def find_state(self, slide_id: str) -> str:
        """Return the state of the files of a slide; empty if there are none, or the id cannot name files."""
        is_name = Path(slide_id).name == slide_id and slide_id not in ("", "..")
        return self._find_state(slide_id) if is_name else ""

    def append(self, outcome: Outcome) -> None:
        """Append an outcome to the file of this process, and flush it to the disk."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open_log(self._own) as file:
            file.write(f"{outcome.model_dump_json()}\n")
            file.flush()
            os.fsync(file.fileno())

    def append_failure(self, failure: Failure, made_with: str) -> None:
        """Append the failure of a slide, for the state that its files have now; see `append`."""
        plain = Failure(**{key: make_text(text) for key, text in asdict(failure).items()})
        state = self.find_state(failure.slide_id)
        self.append(Outcome(slide_id=plain.slide_id, made_with=made_with, state=state, failure=plain))

    def take_over_failures(self, table: Path, made_with: str, columns: Mapping[str, str]) -> None:
        """Append the failures in a table of an older version, which left no records.

        Args:
            table: The table, which may be absent.
            made_with: Fingerprint of the settings.
            columns: Further columns of its rows, with the values of the rows that count.
        """
        if self.folder.exists():
            return
        for line in read_output_table(table):
            if line.keys() == {*FAILURE_COLUMNS, *columns} and columns.items() <= line.items():
                self.append_failure(Failure(**{key: line[key] for key in FAILURE_COLUMNS}), made_with)

    def expect(self, run: RunRecord) -> None:
        """Count all slides of a run as missing until `settle`.

        Raises:
            PandaError: If the list of its slides is absent or damaged.
        """
        slides = self.runs.read_slides(run)
        with self._index:
            self._index.execute("DELETE FROM missing")
            self._index.executemany("INSERT OR IGNORE INTO missing VALUES (?)", ((slide_id,) for slide_id in slides))

    def settle(self, slide_id: str) -> bool:
        """Count a slide as one that is not missing; return whether it was missing."""
        return self._index.execute("DELETE FROM missing WHERE slide_id = ?", (slide_id,)).rowcount > 0

    def list_missing(self) -> NamedSlides:
        """Return the slides of the run that are missing."""
        ((count,),) = self._index.execute("SELECT count(*) FROM missing")
        query = f"SELECT slide_id FROM missing ORDER BY slide_id LIMIT {_NAMED}"
        return NamedSlides(count, [slide_id for (slide_id,) in self._index.execute(query)])

    def has_all(self, run: RunRecord) -> bool:
        """Return whether each slide of a run has an outcome, without a look at its files."""
        self.expect(run)
        query = "SELECT 1 FROM missing WHERE slide_id NOT IN (SELECT slide_id FROM line WHERE made_with = ?) LIMIT 1"
        return self._index.execute(query, (run.made_with,)).fetchone() is None

    def mark_collected(self, run: RunRecord) -> None:
        """Record that the tables of a run were written from the lines that were read last."""
        write_whole(self._collected, self._describe_lines(run))

    def is_collected(self, run: RunRecord) -> bool:
        """Return whether no line was appended since the tables of a run were written; see `read`."""
        try:
            return self._collected.read_text(encoding="utf-8") == self._describe_lines(run)
        except (OSError, UnicodeDecodeError):
            return False

    @property
    def _collected(self) -> Path:
        return self.folder / "collected"

    def _describe_lines(self, run: RunRecord) -> str:
        return fingerprint({"slides": run.slides, "made_with": run.made_with, "lines": self._offsets})

    def read(self) -> None:
        """Read the lines that all processes appended since the last call."""
        for path in sorted(self.folder.glob("*.jsonl")):
            with path.open("rb") as file, self._index:
                file.seek(self._offsets.get(path.name, 0))
                for line in file:
                    if not line.endswith(b"\n"):
                        break  # its process writes it now, or was killed
                    self._offsets[path.name] = self._offsets.get(path.name, 0) + len(line)
                    self._add_line(line, path)

    def _add_line(self, line: bytes, path: Path) -> None:
        try:
            outcome = _OUTCOME.validate_json(line)
        except ValidationError:
            log.warning("%s: a line is damaged or of another version; it is not used", path)
            return
        values = (outcome.slide_id, outcome.made_with, outcome.state, outcome.key, outcome.failure is not None, line)
        self._index.execute("INSERT INTO line VALUES (?, ?, ?, ?, ?, ?)", values)

    def find_finished(self, keys: Mapping[str, str], made_with: str, *, any_end: bool = False) -> set[str]:
        """Return which slides are finished; their files are not opened.

        A slide is finished if its last files are complete and unchanged, were made from the same key, and no step
        failed since.

        Args:
            keys: Slide id to the hash of everything that determines its files; empty if it is not known.
            made_with: Fingerprint of the settings.
            any_end: Whether a key that only begins with the given one counts as the same.
        """
        made_from = "slide_id = ? AND key GLOB ? AND NOT failed"  # keys have no character that is special in a glob
        states = {
            slide_id: found
            for slide_id, key in keys.items()
            if key
            and slide_id == make_text(slide_id)
            and (found := self._list_states(made_from, slide_id, f"{key}*" if any_end else key))
        }
        now = self._find_states(states)
        failed = "slide_id = ? AND made_with = ? AND failed"
        return {
            slide_id
            for slide_id, state in now.items()
            if state in states[slide_id] and state not in self._list_states(failed, slide_id, made_with)
        }

    def _list_states(self, condition: str, *values: str) -> set[str]:
        return {state for (state,) in self._index.execute(f"SELECT state FROM line WHERE {condition}", values)}

    def _find_states(self, slide_ids: Iterable[str]) -> dict[str, str]:
        named = list(slide_ids)
        parts = [named[place : place + _PART] for place in range(0, len(named), _PART)]
        with ThreadPoolExecutor(_THREADS) as pool:
            found = pool.map(lambda part: [self.find_state(slide_id) for slide_id in part], parts)
            return dict(zip(named, itertools.chain.from_iterable(found), strict=True))

    def iterate(self, slide_ids: Iterable[str]) -> Iterator[SlideState]:
        """Yield slides in the order of their ids, and those that failed, with the outcomes that count now.

        Memory does not grow with the number of slides.

        Args:
            slide_ids: Slides whose files exist.
        """
        with self._index:
            self._index.execute("DELETE FROM name")
            self._index.executemany("INSERT OR IGNORE INTO name VALUES (?)", ((make_text(one),) for one in slide_ids))
            self._index.execute("INSERT OR IGNORE INTO name SELECT slide_id FROM line WHERE failed")
        query = f"SELECT slide_id FROM name WHERE slide_id > ? ORDER BY slide_id LIMIT {_BATCH}"
        last = ""
        while batch := [slide_id for (slide_id,) in self._index.execute(query, (last,))]:
            for slide_id, state in self._find_states(batch).items():
                yield SlideState(slide_id, state, self._list_outcomes(slide_id, state))
            last = batch[-1]

    def _list_outcomes(self, slide_id: str, state: str) -> tuple[Outcome, ...]:
        query = "SELECT content FROM line WHERE slide_id = ? AND state = ?"
        return tuple(_OUTCOME.validate_json(line) for (line,) in self._index.execute(query, (slide_id, state)))
