"""Train on several devices of one machine, with one process for each.

Only the training is distributed. One process checks, cuts patches and makes the folder before the training, and chooses
the threshold, maps and scores after it. Lightning starts the training processes (`ddp_spawn`), not the whole program
once per device. So nothing is done twice, a sweep can use several devices, and a failed process ends all of them.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from panda.errors import PandaError

STRATEGIES = ("ddp_spawn", "ddp_spawn_find_unused_parameters_true", "ddp_spawn_find_unused_parameters_false")


def find_device_faults(trainer: Mapping[str, Any]) -> list[str]:
    """Return the faults of the requested devices, one sentence each."""
    devices, nodes, strategy = trainer.get("devices", 1), trainer.get("num_nodes", 1), trainer.get("strategy", "auto")
    if not isinstance(devices, int) or isinstance(devices, bool) or devices < 1:
        return [f"trainer.devices={devices}: give a number, because training depends on it"]
    faults = []
    if nodes != 1:
        faults.append(f"trainer.num_nodes={nodes}: a run uses one machine; use trainer.num_nodes=1")
    if strategy not in ("auto", *STRATEGIES):
        faults.append(f"trainer.strategy={strategy}: give auto for one device, {' or '.join(STRATEGIES)} for several")
    elif trainer.get("accelerator") == "cpu" and devices > (cores := os.cpu_count() or 1):
        faults.append(f"trainer.devices={devices}: this machine has {cores} cores; use at most as many processes")
    elif devices > 1 and strategy == "auto":
        faults.append(f"trainer.devices={devices} needs trainer=ddp, which starts one process per device")
    return faults


@contextmanager
def join_processes(trainer: pl.Trainer) -> Iterator[None]:
    """Raise errors of the training processes in this process, as `PandaError`, and end all of them."""
    port = os.environ.get("MASTER_PORT")
    try:
        yield
    except ProcessRaisedException as error:
        # Only the text of the traceback is passed between processes.
        if reason := re.search(r"^panda\.errors\.\w+: (.+)", str(error), re.MULTILINE | re.DOTALL):
            raise PandaError(reason[1].strip()) from error
        raise
    except ProcessExitedException as error:
        raise PandaError(
            f"a training process was killed ({error}), perhaps because memory ran out: lower "
            "data.batch_size, data.num_workers or trainer.devices"
        ) from error
    finally:
        if (launcher := trainer.strategy.launcher) is not None:
            launcher.kill(getattr(signal, "SIGKILL", signal.SIGTERM))  # Windows has no SIGKILL
            # Lightning set it, and the next job of a sweep needs another port.
            if port is None:
                os.environ.pop("MASTER_PORT", None)
