"""`python -m tests.torture [--only PART …] [--minutes M] [--seed S] [--out FILE]`."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.torture import disks, kills, limits, mutations, readers, threads, together
from tests.torture.jobs import Job, make_home, make_jobs, train_template
from tests.torture.outcome import Deadline, Outcome, format_table, write_outcomes
from tests.torture.processes import Child

SHARES = {
    "kills": 0.53,
    "disk": 0.1,
    "tiffs": 0.08,
    "readers": 0.05,
    "files": 0.08,
    "limits": 0.06,
    "together": 0.05,
    "threads": 0.05,
}
"""Parts, and the share of the time that each may take."""
SIZES, TIFFS, READ, FILES = 30, 2000, 600, 60
_SLOW = ("train", "sweep", "threshold")
"""Jobs that train; `_TRAINED` stands for them if each would take too long."""
_TRAINED = "train uniform, 2 workers"


def main() -> None:
    """Run the parts in turn, print the table, write the JSON; exit with 1 if there was a fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=SHARES, default=list(SHARES), metavar="PART")
    parser.add_argument("--jobs", nargs="+", choices=make_jobs(), default=list(make_jobs()), metavar="JOB")
    parser.add_argument("--minutes", type=float, default=30.0, help="time of all parts together (30)")
    parser.add_argument("--kills", type=int, default=kills.KILLS, help=f"kills over all jobs ({kills.KILLS})")
    parser.add_argument("--seed", type=int, default=0, help="of moments and damages (0)")
    parser.add_argument("--out", type=Path, default=Path("torture.json"), help="file of the results (torture.json)")
    options = parser.parse_args()
    whole = sum(SHARES[part] for part in options.only)
    found: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="torture") as folder:
        home = Path(folder)
        jobs = _prepare(home, options.jobs)
        for part in options.only:
            deadline = Deadline(options.minutes * 60 * SHARES[part] / whole)
            for outcome in _run_part(part, home, jobs, options, deadline):
                found.append(outcome)
                print(format_table([outcome]), flush=True)
    write_outcomes(options.out, options.seed, options.minutes, found)
    faults = sum(len(outcome.faults) for outcome in found)
    print(f"{faults} faults; all of it is in {options.out}")
    sys.exit(bool(faults))


def _prepare(home: Path, names: list[str]) -> dict[str, Job]:
    """Write the inputs in processes of their own, because this process must stay without threads."""
    jobs = {name: job for name, job in make_jobs().items() if name in names}
    works: list[Callable[[], None]] = [lambda: make_home(home)]
    if any(job.needs_store for job in jobs.values()):
        works.append(train_template(home))
    for work in works:
        ended = Child(work, home / "logs" / "prepare.txt").wait()
        if ended.status:
            sys.exit(f"the inputs cannot be made: {ended.output[-2000:]}")
    return jobs


def _run_part(
    part: str, home: Path, jobs: dict[str, Job], options: argparse.Namespace, deadline: Deadline
) -> Iterator[Outcome]:
    rng = random.Random(f"{options.seed} {part}")
    few = [job for job in jobs.values() if not job.name.startswith(_SLOW) or job.name == _TRAINED]
    three = [jobs[name] for name in ("infer", _TRAINED, "extract png") if name in jobs]
    if part == "kills":
        yield from kills.torture(home, list(jobs.values()), rng, deadline, options.kills)
    elif part == "disk":
        yield from disks.torture(home, few, deadline, SIZES)
    elif part == "tiffs":
        yield mutations.torture_tiffs(home, deadline, TIFFS, options.seed)
    elif part == "readers":
        yield from readers.torture(home, jobs, deadline, READ, options.seed)
    elif part == "files":
        yield from mutations.torture_files(home, jobs, rng, deadline, FILES)
    elif part == "limits":
        yield from limits.torture(home, few, rng, deadline)
    elif part == "together":
        yield from together.torture(home, few, deadline)
    else:
        yield from threads.torture(home, three, deadline)


if __name__ == "__main__":
    main()
