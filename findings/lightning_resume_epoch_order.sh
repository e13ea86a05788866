#!/usr/bin/env bash
# A Lightning training that is resumed draws an old epoch again if its loader has workers.
#
# One would guess: Lightning sets the epoch of a sampler before each epoch, so a training that is resumed after epoch 1
# draws epochs 2 and 3 as the uninterrupted training does, with any number of loader workers.
#
# What happens: `Trainer.fit` calls `iter()` on the loader before it calls `set_epoch`. Workers fetch their first indices
# at once, so the sampler draws the order of epoch 0. Without workers nothing is drawn before the first batch is asked
# for, and the order is right. Later epochs are right in both cases.
#
# Consequence: the first epoch after a resume repeats the order (and with a sampler that chooses patches, the patches) of
# epoch 0, without a message. The weights differ from those of the uninterrupted run. A test of resume with
# `num_workers=0`, which is what tests use, does not find it. A sampler must draw when its first index is asked for by
# the training, or know its epoch by itself.
#
# Versions: pytorch-lightning 2.6.6, torch 2.11.0. See the pins below.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pytorch-lightning==2.6.6 torch==2.11.0 numpy==2.4.6
cat > "$folder/show.py" <<'PY'
import logging
import sys
from importlib.metadata import version

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)


class Items(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, item):
        return torch.tensor([float(item)]), item


class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer, self.order = torch.nn.Linear(1, 1), {}

    def training_step(self, batch, number):
        self.order.setdefault(self.current_epoch, []).extend(batch[1].tolist())
        return self.layer(batch[0]).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-3)


def train(epochs, workers, resume=None):
    net = Net()
    # torch's own sampler with set_epoch, for one process
    sampler = DistributedSampler(Items(), num_replicas=1, rank=0, shuffle=True, seed=0)
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(net, DataLoader(Items(), batch_size=2, sampler=sampler, num_workers=workers), ckpt_path=resume)
    trainer.save_checkpoint(sys.argv[1])
    return net.order


for name in ("pytorch-lightning", "torch"):
    print(name, version(name))
for workers in (0, 1, 2):
    whole = train(4, workers)
    train(2, workers)
    resumed = train(4, workers, resume=sys.argv[1])
    print(f"num_workers={workers}")
    for epoch, order in whole.items():
        print(f"  epoch {epoch}: uninterrupted {order}", f"resumed {resumed[epoch]}" if epoch in resumed else "")
    assert resumed[3] == whole[3]
    assert resumed[2] == whole[2 if workers == 0 else 0], "the first resumed epoch is drawn in another way now"
PY
"$folder/venv/bin/python" -W ignore "$folder/show.py" "$folder/last.ckpt"
