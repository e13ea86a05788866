"""Read back the records of an offline W&B run."""

import json
import struct
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

HEADER, BLOCK = 7, 32768
WHOLE, LAST = 1, 4


def records(path: Path) -> Iterator[Any]:
    """Yield the records of a `.wandb` file: LevelDB's log format, in blocks; a record may have several parts."""
    data, at, record = path.read_bytes(), HEADER, b""
    while at < len(data):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
            continue
        if len(data) - at < HEADER:
            return
        _, length, kind = struct.unpack("<IHB", data[at : at + HEADER])
        record += data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (WHOLE, LAST):
            found = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
            found.ParseFromString(record)
            record = b""
            yield found


def _read_finished(log: Path) -> list[Any]:
    """Return the records of a finished run; W&B's own process may still be writing the last of them."""
    deadline = time.monotonic() + 30
    while True:
        found = list(records(log))
        if any(record.WhichOneof("record_type") == "exit" for record in found) or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


def _put(tree: dict[str, Any], items: Iterable[Any]) -> None:
    """Put values where they belong: under a key, or under keys of keys."""
    for item in items:
        *path, name = item.nested_key or [item.key]
        place = tree
        for key in path:
            place = place.setdefault(key, {})
        place[name] = json.loads(item.value_json)


class OfflineRun:
    """The one offline run in a run's folder.

    Attributes:
        folder: Of the offline run.
        about: The record of the run: its group, tags, project.
        config: Keys with their values.
        steps: Metrics (or patterns of them) with the metric that is their step.
        history: What was logged, an item a call.
        artifacts: Their records.
        exit_status: How the run ended, as a process does.
    """

    def __init__(self, run_dir: Path) -> None:
        (self.folder,) = (run_dir / "wandb").glob("offline-run-*")
        (log,) = self.folder.glob("*.wandb")
        self.config: dict[str, Any] = {}
        self.steps: dict[str, str] = {}
        self.history: list[dict[str, Any]] = []
        self.artifacts: list[Any] = []
        self.exit_status: int | None = None
        for record in _read_finished(log):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                self.about = record.run
            if kind in ("run", "config"):
                updates = record.run.config.update if kind == "run" else record.config.update
                _put(self.config, updates)
            elif kind == "metric":
                self.steps[record.metric.name or record.metric.glob_name] = record.metric.step_metric
            elif kind == "history":
                self.history.append({})
                _put(self.history[-1], record.history.item)
            elif kind == "exit":
                self.exit_status = record.exit.exit_code
            elif kind == "artifact":
                self.artifacts.append(record.artifact)

    def find_logged(self, key: str) -> list[dict[str, Any]]:
        """Return the items that were logged together with a key."""
        return [item for item in self.history if key in item]

    def table(self, key: str) -> dict[str, Any]:
        """Return the columns and data of a logged table, with pictures as its artifact names them."""
        (kept,) = (c.local_path for a in self.artifacts for c in a.manifest.contents if c.path == f"{key}.table.json")
        content: dict[str, Any] = json.loads(Path(kept).read_text())
        return content
