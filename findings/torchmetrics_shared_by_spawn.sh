#!/usr/bin/env bash
# Two CPU processes that Lightning spawns add their metrics to one shared memory in the first epoch.
#
# One would guess: With `strategy="ddp_spawn"` each process counts its own batches in a torchmetrics metric, and
# `compute()` sums the counts of both. Lightning takes care that spawned processes share no memory on a CPU.
#
# What happens: Lightning copies only the parameters and buffers of a module out of the memory that torch shares
# between spawned processes. The states of a metric are neither. A metric that adds in place (`self.total += …`, as
# MeanMetric and SumMetric do) adds to the same number in both processes, and `compute()` then sums that number twice.
# After the first `reset()` each process has states of its own, so that only the first epoch is wrong.
#
# Consequence: a sum is doubled in the first epoch. A ratio such as a mean or Dice looks right, because both of its
# parts are doubled, but two processes that add at once lose counts, so that about one run in twenty logs another
# figure. Call `reset()` on every metric in `setup`, which runs in the process that trains.
#
# Versions: pytorch-lightning 2.6.6, torchmetrics 1.9.0, torch 2.11.0. See the pins below.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  pytorch-lightning==2.6.6 torchmetrics==1.9.0 torch==2.11.0 numpy==2.4.6
cat > "$folder/show.py" <<'PY'
import logging
import sys
from importlib.metadata import version
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import SumMetric

logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)


class Net(pl.LightningModule):
    def __init__(self, path, resets):
        super().__init__()
        self.layer, self.items = torch.nn.Linear(1, 1), SumMetric()
        self.path, self.resets = path, resets

    def setup(self, stage):
        if self.resets:
            self.items.reset()

    def training_step(self, batch, number):
        self.items.update(len(batch[0]))
        return self.layer(batch[0]).mean()

    def on_train_epoch_end(self):
        total = int(self.items.compute())
        self.items.reset()
        if self.global_rank == 0:
            with self.path.open("a") as file:
                print(total, file=file)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-3)


if __name__ == "__main__":
    for name in ("pytorch-lightning", "torchmetrics", "torch"):
        print(name, version(name))
    for resets, expected in ((False, ["16", "8", "8"]), (True, ["8", "8", "8"])):
        path = Path(sys.argv[1]) / f"{resets}.txt"
        trainer = pl.Trainer(
            max_epochs=3,
            accelerator="cpu",
            devices=2,
            strategy="ddp_spawn",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Net(path, resets), DataLoader(TensorDataset(torch.rand(8, 1)), batch_size=2))
        totals = path.read_text().split()
        print(f"reset in setup: {resets}; items counted in epochs 0, 1, 2 (8 in each): {', '.join(totals)}")
        assert totals == expected, "the states of metrics are shared in another way now"
PY
PYTHONWARNINGS=ignore "$folder/venv/bin/python" "$folder/show.py" "$folder"
