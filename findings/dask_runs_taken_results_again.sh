#!/usr/bin/env bash
# When workers of dask are lost, tasks whose results were taken long ago run again, before any new one.
#
# One would guess: `as_completed` hands over each result once, a task whose result has been handed over is done, and a
# lost worker costs no more than the task that it had.
#
# What happens: a result stays in the memory of the worker that computed it while the client holds the future, also
# after `future.result()` has copied it. If that worker is gone, the scheduler computes the result again, and takes the
# oldest tasks first. If all workers go at about the same time, as jobs do that reach one time limit, the loop over
# `as_completed` gets nothing at all until everything that it had already has been computed again. Work that takes
# longer than the limit of a job never ends: each generation of workers computes the same first tasks.
#
# Consequence: release each future when its result was taken, and hold no list of them. `client.map` returns such a
# list, and `as_completed` itself holds only what is not done.
#
# Versions: distributed 2026.8.0 and dask 2026.8.0. See the pins below.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check distributed==2026.8.0 dask==2026.8.0
cat > "$folder/show.py" <<'PY'
import os
import signal
import sys
import time
from importlib.metadata import version
from pathlib import Path

from distributed import Client, LocalCluster, as_completed

TASKS, TAKEN = 60, 40


def work(number, path):
    time.sleep(0.1)
    with open(path, "a") as file:
        file.write(f"{number}\n")
    return number


def count_runs(path, held):
    """Take each result once, kill all workers after TAKEN of them, and count how often a task ran."""
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0", "silence_logs": 50}
    with LocalCluster(**options) as cluster, Client(cluster) as client:
        futures = client.map(work, range(TASKS), path=str(path))
        results = as_completed(futures)
        if not held:
            futures = None
        for taken, future in enumerate(results, 1):
            future.result()
            if taken == TAKEN:
                for process in client.run(os.getpid).values():
                    os.kill(process, signal.SIGKILL)
    return path.read_text().count("\n")


if __name__ == "__main__":
    for name in ("distributed", "dask"):
        print(name, version(name))
    folder = Path(sys.argv[1])
    held, released = (count_runs(folder / name, name == "held") for name in ("held", "released"))
    print(f"{TASKS} tasks; both workers were killed when {TAKEN} results had been taken. Tasks ran")
    print(f"  {held} times if the futures are held, {released} times if each is released")
    assert held >= TASKS + TAKEN - 2 and released <= TASKS + 6, "finished tasks are treated in another way now"
PY
"$folder/venv/bin/python" "$folder/show.py" "$folder"
