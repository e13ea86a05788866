"""Damaged files: pixels, the right result or a sentence that names the file, and never a traceback."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from panda.files import remove
from tests.integration.entry_points import REPOSITORY
from tests.test_fuzz_readers import BASES, _write
from tests.torture.digests import compare, digest_folder
from tests.torture.jobs import Job
from tests.torture.outcome import Deadline, Outcome
from tests.torture.processes import Child

PART = "mutations"
_FIRST_SEED = 100_000
"""The tests use the seeds from 0 on."""
_STRANGE: tuple[Any, ...] = (None, -1, 10**30, 1e308, "x", "", [], {}, True, "\u0000", [[]], "../../x")


@dataclass(frozen=True)
class Target:
    """Files that a job reads.

    Attributes:
        job: Name of the job.
        pattern: The files, relative to the home.
        data: Whether another result is right, because the file is the user's own data or its content is unknown.
    """

    job: str
    pattern: str
    data: bool = False


TARGETS = (
    Target("extract png", "data/train.csv", data=True),
    Target("extract png", "cut_png/*/store.json"),
    Target("extract png", "cut_png/*/*/slide.json"),
    Target("infer", "segmentation.ckpt", data=True),
    Target("infer", "out/engine.json", data=True),
    Target("infer", "out/quantification.csv"),
    Target("infer", "out/*/quantification.json"),
    Target("infer", "out/*/canvas.zarr/zarr.json"),
    Target("infer", "out/*/canvas.zarr/0/zarr.json"),
    Target("infer", "out/*/canvas.zarr/0/c/*/*"),
    Target("infer and grade", "grading.ckpt", data=True),
    Target("infer and grade", "graded/*/*.json"),
    Target("audit", "audit/*.csv"),
    Target("audit", "audit/slides/*.json"),
    Target("audit", "audit/summary.json"),
    Target("threshold", "runs/segmentation/threshold/checkpoints/*.ckpt", data=True),
    Target("threshold", "runs/segmentation/threshold/config.yaml", data=True),
    Target("threshold", "runs/segmentation/threshold/*.csv", data=True),
    Target("threshold", "runs/segmentation/threshold/*.json", data=True),
    Target("threshold", "patches/*/*.json", data=True),
    Target("threshold", "patches/*/*/slide.json", data=True),
)


def torture_tiffs(home: Path, deadline: Deadline, cases: int, seed: int) -> Outcome:
    """Read damaged TIFFs with every reader, in two processes, as `tests/test_fuzz_readers.py` does."""
    outcome = Outcome(PART, "TIFF, every reader", "files")
    folder = home / "tiffs"
    folder.mkdir()
    for number, kind in enumerate(BASES):
        _write(folder / f"{number}.tiff", kind)
    first = _FIRST_SEED * (1 + seed)
    middle, last = first + cases // 2, first + cases
    running = []
    for begin, end in ((first, middle), (middle, last)):
        command = [sys.executable, "-m", "tests.test_fuzz_readers", str(folder), str(begin), str(end)]
        log = folder / f"{begin}.log"
        with log.open("w") as file:
            running.append((subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=REPOSITORY), log))
    for process, log in running:
        try:
            status: int | None = process.wait(deadline.seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            status = None
        text = log.read_text(errors="replace")
        begun = re.findall(r"^seed \d+: .*$", text, re.MULTILINE)
        outcome.tried += len(begun)
        if status is None:
            outcome.note("the time was over before all files were read")
        elif status:
            outcome.faults.append(f"status {status}: {text[-600:]}")
    remove(folder)
    return outcome


def torture_files(
    home: Path, jobs: dict[str, Job], rng: random.Random, deadline: Deadline, cases: int
) -> Iterator[Outcome]:
    """Damage one file of a finished job at a time, and run the job again."""
    targets = [target for target in TARGETS if target.job in jobs]
    outcomes = {target: Outcome(PART, f"{target.job}: {target.pattern}", "files") for target in targets}
    finished = _Finished(home)
    for target in targets:
        finished.make(jobs[target.job])
    for number in range(cases):
        if deadline.passed:
            break
        target = targets[number % len(targets)]
        finished.damage(jobs[target.job], target, rng, outcomes[target])
    remove(finished.backup)
    yield from outcomes.values()


class _Finished:
    """Outputs of finished jobs, which are restored before each trial."""

    def __init__(self, home: Path) -> None:
        self.home, self.backup, self.log = home, home / "backup", home / "logs" / "mutation.txt"

    def make(self, job: Job) -> None:
        """Run a job, if that is not done yet, and keep its output."""
        if not (self.backup / job.output).exists():
            job.reset(self.home)
            Child(job.enter(self.home), self.log).wait()
            shutil.copytree(self.home / job.output, self.backup / job.output, symlinks=True)

    def damage(self, job: Job, target: Target, rng: random.Random, outcome: Outcome) -> None:
        """Damage a file of the output, or one that the job reads, and run the job."""
        home, output = self.home, self.home / job.output
        remove(output)
        shutil.copytree(self.backup / job.output, output, symlinks=True)
        files = sorted(path for path in home.glob(target.pattern) if path.is_file())
        if not files:
            outcome.faults.append("no such file")
            return
        path = rng.choice(files)
        before = path.read_bytes()
        what, after = mutate(before, path.suffix, rng)
        case = f"{path.relative_to(home)}, {what}"
        path.write_bytes(after)
        outcome.tried += 1
        ended = Child(job.enter(home), self.log).wait()
        named = {path.name, path.parent.name, path.parent.parent.name, path.stem} - {"", home.name}
        if ended.fault:
            outcome.faults.append(f"{case}: {ended.fault}")
        elif ended.status and not any(name in ended.output for name in named):
            outcome.faults.append(f"{case}: the message does not name it: {ended.last_line}")
        elif not (ended.status or target.data):
            difference = compare(digest_folder(self.backup / job.output), digest_folder(output))
            if difference:
                outcome.faults.append(f"{case}: another result: {difference}")
        if not path.is_relative_to(output):
            path.write_bytes(before)


def mutate(content: bytes, suffix: str, rng: random.Random) -> tuple[str, bytes]:
    """Damage the content of a file in a random way; return the way in words, and the new content."""
    ways = [_truncate, _flip, _overwrite, _empty]
    if suffix == ".json":
        ways = [*ways, _change_json, _change_json, _change_json]
    if suffix == ".csv":
        ways = [*ways, _change_table, _change_table]
    return rng.choice(ways)(content, rng)


def _empty(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    return "emptied", b""


def _truncate(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    length = rng.randrange(max(1, len(content)))
    return f"cut to {length} of {len(content)} bytes", content[:length]


def _flip(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    data, count = bytearray(content), rng.choice((1, 3, 20))
    places = [rng.randrange(max(1, len(data))) for _ in range(count)] if data else []
    for place in places:
        data[place] ^= 1 << rng.randrange(8)
    return f"bits flipped at {places[:3]}", bytes(data)


def _overwrite(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    length = rng.choice((4, 64, 1024))
    start = rng.randrange(max(1, len(content)))
    return f"{length} bytes from {start} on are random", content[:start] + rng.randbytes(length) + content[
        start + length :
    ]


def _change_json(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Replace or remove a value at a random place."""
    root = json.loads(content)
    node, key = root, None
    while isinstance(node, dict | list) and node:
        parent, key = node, rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        node = parent[key]
        if rng.random() < 0.3:
            break
    if key is None:
        return "{}", b"{}"
    if rng.random() < 0.25:
        del parent[key]
        return f"without {key!r}", json.dumps(root).encode()
    parent[key] = value = rng.choice((*_STRANGE, float("nan"), float("inf")))
    return f"{key!r} is {value!r}", json.dumps(root).encode()


def _change_table(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Change a cell, a row or the header."""
    lines = content.decode().splitlines()
    row = rng.randrange(len(lines))
    cells = lines[row].split(",")
    column = rng.randrange(len(cells))
    way = rng.randrange(4)
    if way == 0:
        cells[column] = str(rng.choice(("", "nan", "-1", "x", "1e999", "\x00", "é" * 50)))
    elif way == 1:
        del cells[column]
    elif way == 2:
        cells.append("more")
    lines[row] = ",".join(cells)
    if way == 3:
        lines.append(lines[row])
    return f"row {row}, column {column}, way {way}", ("\n".join(lines) + "\n").encode()
