#!/usr/bin/env bash
# Inside a SLURM job a new Lightning training continues from a leftover checkpoint that nobody named.
#
# One would guess: `Trainer.fit(model, data)` without `ckpt_path` begins at epoch 0, and a trainer that is given
# `LightningEnvironment()` ignores the SLURM job around it.
#
# What happens: if the variables of a SLURM job are set, `fit` looks for `hpc_ckpt_*.ckpt` in `default_root_dir` and
# restores the newest. It asks SLURM's environment class itself, so the environment that was given does not matter.
# Outside SLURM the same script begins at epoch 0.
#
# Consequence: Lightning writes such a file when the scheduler requeues a job. Whoever then starts a new training in the
# same folder (the default is the working directory), with other data or another fold, trains on with old weights. A
# slide of the new validation split may have been a training slide then: the figures leak. Give each training a
# `default_root_dir` of its own in which no such file can be.
#
# Versions: pytorch-lightning 2.6.6, torch 2.11.0. See the pins below.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pytorch-lightning==2.6.6 torch==2.11.0 numpy==2.4.6
cat > "$folder/show.py" <<'PY'
import logging
import os
import sys
from importlib.metadata import version

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment
from torch.utils.data import DataLoader, TensorDataset

logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)


class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.first_epoch = None

    def training_step(self, batch, number):
        return self.layer(batch[0]).mean()

    def on_train_start(self):
        self.first_epoch = self.current_epoch

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-3)


def train(epochs):
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        plugins=[LightningEnvironment()],
        default_root_dir=sys.argv[1],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    net = Net()
    trainer.fit(net, DataLoader(TensorDataset(torch.zeros(8, 1)), batch_size=2))  # no ckpt_path
    return trainer, net.first_epoch


for name in ("pytorch-lightning", "torch"):
    print(name, version(name))
trainer, first = train(2)
trainer.save_checkpoint(os.path.join(sys.argv[1], "hpc_ckpt_1.ckpt"))  # as Lightning does before a requeue
print("the first training begins at epoch", first)
_, outside = train(3)
print("a new training outside SLURM begins at epoch", outside)
os.environ |= {"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "train", "SLURM_JOB_ID": "7"}
os.environ |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
_, inside = train(3)
print("a new training inside SLURM begins at epoch", inside)
assert (first, outside) == (0, 0)
assert inside == 2, "a new training inside SLURM no longer takes the leftover checkpoint"
PY
"$folder/venv/bin/python" -W ignore "$folder/show.py" "$folder"
