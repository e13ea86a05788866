#!/usr/bin/env bash
# `cluster.scale(jobs=2)` of dask-jobqueue does not replace a job that ends, and the client waits for ever.
#
# One would guess: `scale(jobs=2)` keeps two jobs. A job that reaches its time limit, or whose node fails, is submitted
# again, as the workers of a `LocalCluster` of dask are started again.
#
# What happens: the cluster notices that the worker is gone, and only forgets the job. It stays in the plan, so nothing
# is missing for it. When the last job has ended, `client.gather` waits without a message. Another `scale(jobs=2)`, with
# the same number, submits the missing jobs at once.
#
# Consequence: call `scale` again in regular intervals, or use `adapt(minimum_jobs=2, maximum_jobs=2)`, which does that.
# Both need the loss to be noticed first, which takes `distributed.deploy.lost-worker-timeout`, 15 s.
#
# Versions: dask-jobqueue 0.9.0, distributed 2026.8.0, dask 2026.8.0. See the pins below. The jobs are processes of
# `dask_jobqueue.local`, so that no scheduler of jobs is needed; with SLURM 22.05 the same happens.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  dask-jobqueue==0.9.0 distributed==2026.8.0 dask==2026.8.0
cat > "$folder/show.py" <<'PY'
import os
import signal
import sys
import time
from importlib.metadata import version

import dask
from dask_jobqueue.local import LocalCluster
from distributed import Client

WAIT_S = 12


def wait_for_workers(client, count, seconds):
    end = time.monotonic() + seconds
    while len(client.nthreads()) != count and time.monotonic() < end:
        time.sleep(0.1)
    return len(client.nthreads())


if __name__ == "__main__":
    for name in ("dask-jobqueue", "distributed", "dask"):
        print(name, version(name))
    dask.config.set({"distributed.deploy.lost-worker-timeout": "1 s"})
    folders = {"log_directory": sys.argv[1], "local_directory": sys.argv[1]}
    quiet = {"scheduler_options": {"dashboard_address": ":0"}, "silence_logs": "critical"}
    with (
        LocalCluster(cores=1, processes=1, memory="1GB", nanny=False, **folders, **quiet) as cluster,
        Client(cluster) as client,
    ):
        cluster.scale(jobs=2)
        started = wait_for_workers(client, 2, 60)
        for process in client.run(os.getpid).values():
            os.kill(process, signal.SIGTERM)
        ended = wait_for_workers(client, 0, 30)
        later = wait_for_workers(client, 2, WAIT_S)
        cluster.scale(jobs=2)
        again = wait_for_workers(client, 2, 60)
        print(f"workers: {started} after scale(jobs=2), {ended} after the end of the jobs, {later} after {WAIT_S} s more,")
        print(f"{again} after another scale(jobs=2)")
        assert (started, ended, later, again) == (2, 0, 0, 2), "jobs are replaced in another way now"
PY
"$folder/venv/bin/python" "$folder/show.py" "$folder"
