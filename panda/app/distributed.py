"""Train on several devices of one machine, with one process for each.

Only the training is distributed. One process checks, cuts patches and makes the folder before the training, and chooses
the threshold, maps and scores after it. Lightning starts the training processes (`ddp_spawn`), not the whole program
once per device. So nothing is done twice, a sweep can use several devices, and a failed process ends all of them.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytorch_lightning as pl
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from panda.errors import PandaError


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
