"""`python -m tests.integration.killed_training EPOCH BATCH key=value …`: `train.py`, which dies in mid-epoch."""

import os
import runpy
import signal
import sys
from typing import Any

import torch

from panda.tasks.segmentation import SegmentationTask
from tests.integration.entry_points import REPOSITORY


def main(epoch: int, batch: int, *overrides: str) -> None:
    """Run train.py, and kill the process at that batch, so that no handler and no `finally` runs."""
    step = SegmentationTask.training_step

    def killed(task: SegmentationTask, images: Any, batch_idx: int) -> torch.Tensor:
        if (task.current_epoch, batch_idx) == (epoch, batch):
            os.kill(os.getpid(), signal.SIGKILL)
        return step(task, images, batch_idx)

    SegmentationTask.training_step = killed  # type: ignore[method-assign, assignment]
    torch.set_num_threads(1)
    sys.argv = [str(REPOSITORY / "train.py"), *overrides]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
