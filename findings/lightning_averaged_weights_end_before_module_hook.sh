#!/usr/bin/env bash
# Lightning's WeightAveraging takes the averaged weights away before a module's own on_validation_epoch_end runs.
#
# One would guess: with `EMAWeightAveraging` the network has its averaged weights for the whole validation, so that all
# a LightningModule computes in a validation epoch is of these weights.
#
# What happens: the callback exchanges the weights in its on_validation_epoch_start and on_validation_epoch_end, and the
# hooks of callbacks run before those of the module. `validation_step` sees the averaged weights,
# `on_validation_epoch_start` of the module sees them too, and `on_validation_epoch_end` of the module sees the raw ones.
# So do the hooks of callbacks that come later in the list. There is no warning.
#
# Consequence: a module that maps whole images, fits a threshold or draws examples at the end of a validation epoch does
# it with other weights than those of the logged loss and of the checkpoint that is then saved.
#
# Versions: pytorch-lightning 2.6.6, torch 2.11.0, numpy 2.4.6. See the pins below.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  pytorch-lightning==2.6.6 torch==2.11.0 numpy==2.4.6
cat > "$folder/hooks.py" <<'PY'
import logging
import warnings
from importlib.metadata import version

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import EMAWeightAveraging

warnings.simplefilter("ignore")
logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)


class Line(LightningModule):
    """One weight, which begins at 0 and grows by 1 in each of 4 steps."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = {}

    def training_step(self, batch, number):
        return -self.weight.sum()

    def look(self, hook):
        self.seen[hook] = round(self.weight.item(), 4)

    def on_validation_epoch_start(self):
        self.look("on_validation_epoch_start")

    def validation_step(self, batch, number):
        self.look("validation_step")

    def on_validation_epoch_end(self):
        self.look("on_validation_epoch_end")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


for name in ("pytorch-lightning", "torch"):
    print(name, version(name))
batches = torch.utils.data.DataLoader(torch.zeros(4, 1))
quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
module = Line()
trainer = Trainer(
    max_epochs=1, accelerator="cpu", num_sanity_val_steps=0, callbacks=[EMAWeightAveraging(decay=0.5)], **quiet
)
trainer.fit(module, batches, batches)
print("raw weight after 4 steps: 4.0; seen by the module:", module.seen)
start, step, end = module.seen.values()
assert start == step != 4.0, "validation runs on the raw weights"
assert end == 4.0, "the averaged weights stay until the module's hook has run"
PY
"$folder/venv/bin/python" "$folder/hooks.py"
