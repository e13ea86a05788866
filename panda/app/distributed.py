"""Training on several devices of one machine, a process each.

Only the training is shared out. The run itself stays one process, which checks, cuts patches and makes the folder
before, and chooses the threshold, maps and scores after: Lightning starts the processes anew for the training
(`ddp_spawn`) instead of starting the whole program once a device. So nothing is done twice, a sweep can train on
several devices, and what ends one process ends them all.
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
    """What a run cannot do with the devices it is given.

    Args:
        trainer: The node of the configuration.

    Returns:
        One sentence a fault.
    """
    devices, nodes, strategy = trainer.get("devices", 1), trainer.get("num_nodes", 1), trainer.get("strategy", "auto")
    if not isinstance(devices, int) or isinstance(devices, bool) or devices < 1:
        return [f"trainer.devices={devices}: give how many, as a number: what is learnt depends on it"]
    faults = []
    if nodes != 1:
        faults.append(f"trainer.num_nodes={nodes}: a run uses one machine; use trainer.num_nodes=1")
    if strategy not in ("auto", *STRATEGIES):
        faults.append(f"trainer.strategy={strategy}: give auto for one device, {' or '.join(STRATEGIES)} for several")
    elif trainer.get("accelerator") == "cpu" and devices > (cores := os.cpu_count() or 1):
        faults.append(f"trainer.devices={devices}: this machine has {cores} cores; use as many processes at most")
    elif devices > 1 and strategy == "auto":
        faults.append(f"trainer.devices={devices} needs trainer=ddp, which starts a process for each")
    return faults


@contextmanager
def joined(trainer: pl.Trainer) -> Iterator[None]:
    """Make errors of the processes that train errors of this one, and leaves none of them behind.

    Raises:
        PandaError: What a process raised as such, or that one was killed.
    """
    port = os.environ.get("MASTER_PORT")
    try:
        yield
    except ProcessRaisedException as error:
        # The text of the process' traceback is all that comes over.
        if told := re.search(r"^panda\.errors\.\w+: (.+)", str(error), re.MULTILINE | re.DOTALL):
            raise PandaError(told[1].strip()) from error
        raise
    except ProcessExitedException as error:
        raise PandaError(
            f"a process that trained was ended from outside ({error}): for want of memory, perhaps; lower "
            "data.batch_size, data.num_workers or trainer.devices"
        ) from error
    finally:
        if (launcher := trainer.strategy.launcher) is not None:
            launcher.kill(getattr(signal, "SIGKILL", signal.SIGTERM))  # Windows has no SIGKILL
            # Lightning's: the next job of a sweep takes a port of its own.
            if port is None:
                os.environ.pop("MASTER_PORT", None)
