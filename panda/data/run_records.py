"""Records of runs in an output folder: what each process makes, and the list of all its slides."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field, JsonValue, TypeAdapter

from panda.data.slide_state import make_text
from panda.errors import PandaError
from panda.files import write_json, write_whole
from panda.stored import Plain, Timestamp, read_model

log = logging.getLogger(__name__)

RECORDS_FOLDER = ".records"


class RunRecord(Plain, frozen=True):
    """What a run makes.

    Attributes:
        date: Time of the summary.
        made_with: Fingerprint of the settings.
        slides: File in the folder of the records with the ids of all slides, also those of other shards.
        summary: The settings, and notes for the reader of the results.
        command: Fingerprint of the keys that decide `made_with`; empty if it is not known.
    """

    date: Timestamp
    made_with: str
    slides: Annotated[str, Field(pattern=r"^slides-[0-9a-f]{16}\.txt$")]
    summary: dict[str, JsonValue]
    command: str = ""


_RUN = TypeAdapter(RunRecord)


class RunRecords:
    """The records of the runs of an output folder.

    Args:
        folder: The folder of the records.
        own: The file of this process.
    """

    def __init__(self, folder: Path, own: Path) -> None:
        self._folder, self._own = folder, own

    def write(
        self, slide_ids: Iterable[str], made_with: str, summary: Mapping[str, JsonValue], command: str = ""
    ) -> RunRecord:
        """Write what this process makes, and return it; a later call replaces it.

        Args:
            slide_ids: All slides, also those of other shards.
            made_with: Fingerprint of the settings.
            summary: The settings with their date, and notes.
            command: Fingerprint of the keys that decide `made_with`.
        """
        text = "".join(f"{json.dumps(make_text(slide_id))}\n" for slide_id in sorted(slide_ids))
        name = _name_list(hashlib.sha256(text.encode()).hexdigest())
        if not _is_whole(self._folder / name):
            write_whole(self._folder / name, text)
        date = str(summary["date"])
        run = RunRecord(date=date, made_with=made_with, slides=name, summary=dict(summary), command=command)
        write_json(self._own, run.model_dump(mode="json"))
        return run

    def find_last(self, command: str | None = None) -> RunRecord | None:
        """Return what the run that wrote last makes, of one command or of any; None without a run."""
        found = []
        for path in self._folder.glob("*.json"):
            try:
                run = read_model(path, _RUN, "it is not used")
                if command in (None, run.command):
                    found.append((run.date, path.stat().st_mtime_ns, run))  # dates are whole seconds
            except (OSError, PandaError) as error:
                log.warning("%s", error)
        return max(found, key=lambda one: one[:2])[2] if found else None

    def read_slides(self, run: RunRecord) -> Iterator[str]:
        """Return the slides of a run.

        Raises:
            PandaError: If the list of its slides is absent or damaged.
        """
        path = self._folder / run.slides
        if not _is_whole(path):
            raise PandaError(
                f"{path}: the list of slides is absent or damaged; map the slides again, the finished ones are not "
                "opened"
            )
        return _read_list(path)


def _read_list(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def _name_list(digest: str) -> str:
    """Return the name of a list of slides, from the SHA-256 of its content."""
    return f"slides-{digest[:16]}.txt"


def _is_whole(path: Path) -> bool:
    """Return whether a list of slides has the content by which it is named."""
    try:
        with path.open("rb") as file:
            return _name_list(hashlib.file_digest(file, "sha256").hexdigest()) == path.name
    except OSError:
        return False
