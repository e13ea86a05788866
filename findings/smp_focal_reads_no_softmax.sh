#!/usr/bin/env bash
# Losses of segmentation-models-pytorch for several classes differ in what a logit means, and in what ignored px weigh.
#
# One would guess: all losses with `mode="multiclass"` read the logits of Gleason patterns through one softmax, as
# `DiceLoss` does, so that they can be added. And `ignore_index` leaves out px without a label, as in PyTorch.
#
# What happens: `FocalLoss(mode="multiclass")` is the mean of binary losses with a sigmoid for each class; at gamma 0 it is the
# binary cross-entropy of every class against all others. Adding 5 to all logits changes no softmax, but this loss. A
# network that has found its minimum gives the right shares as sigmoids. Read through a softmax, a class with a share of
# 0.7 gets 0.875. If a batch has ignored px only, the loss is NaN.
# `SoftCrossEntropyLoss(ignore_index=…)` sums over the labelled px, but divides by the number of all px. With half of the px
# ignored it has half the value of PyTorch's cross-entropy.
#
# Consequence: Focal + Dice pull one network towards two readings of its output, and a threshold on its softmax is wrong.
# With masks that label a small part of the tissue, cross-entropy weighs a patch by its labelled share, and against
# another term of the loss it fades. One patch without a label ends a training with the focal loss.
#
# Versions: segmentation-models-pytorch 0.6.0, torch 2.11.0. See the pins below.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  segmentation-models-pytorch==0.6.0 torch==2.11.0 torchvision==0.26.0 timm==1.0.31 numpy==2.4.6
cat > "$folder/show.py" <<'PY'
import math
from importlib.metadata import version

import torch
from segmentation_models_pytorch import losses
from torch.nn import functional

for name in ("segmentation-models-pytorch", "torch"):
    print(name, version(name))
torch.manual_seed(0)
logits, target = torch.randn(2, 4, 16, 16), torch.randint(0, 4, (2, 16, 16))

moved = {}
for loss in (losses.DiceLoss("multiclass"), losses.FocalLoss("multiclass")):
    before, after = float(loss(logits, target)), float(loss(logits + 5, target))
    moved[type(loss).__name__] = abs(after - before)
    print(f"{type(loss).__name__}: {before:.4f}, and {after:.4f} with 5 added to all logits")
assert moved["DiceLoss"] < 1e-5 and moved["FocalLoss"] > 1

every = functional.one_hot(target, 4).movedim(-1, 1).float()
binary = functional.binary_cross_entropy_with_logits(logits, every)
focal = losses.FocalLoss("multiclass", gamma=0.0)(logits, target)
print(f"FocalLoss at gamma 0: {focal:.6f}; binary cross-entropy, mean over classes: {binary:.6f}")
assert math.isclose(focal, binary, rel_tol=1e-5)

# One logit for each class, for px of which 70, 10, 10 and 10 % have the classes 0 to 3.
shares = torch.tensor([0] * 70 + [1] * 10 + [2] * 10 + [3] * 10).view(1, 10, 10)
best = torch.zeros(4, requires_grad=True)
optimizer = torch.optim.LBFGS([best], max_iter=200)


def step() -> torch.Tensor:
    optimizer.zero_grad()
    value = losses.FocalLoss("multiclass", gamma=0.0)(best.view(1, 4, 1, 1).expand(1, 4, 10, 10), shares)
    value.backward()
    return value


optimizer.step(step)
print("at the minimum: sigmoids", [round(p, 3) for p in best.detach().sigmoid().tolist()])
print("at the minimum: softmax ", [round(p, 3) for p in best.detach().softmax(0).tolist()])
assert abs(float(best.detach().softmax(0)[0]) - 0.875) < 1e-3

half = target.clone()
half[:, 8:] = 255
own = float(losses.SoftCrossEntropyLoss(smooth_factor=0.0, ignore_index=255)(logits, half))
torchs = float(functional.cross_entropy(logits, half, ignore_index=255))
print(f"half of the px ignored: SoftCrossEntropyLoss {own:.4f}, PyTorch's cross_entropy {torchs:.4f}")
assert math.isclose(own, torchs / 2, rel_tol=1e-5)
none = losses.FocalLoss("multiclass", ignore_index=255)(logits, torch.full_like(target, 255))
print(f"all px ignored: FocalLoss {float(none)}")
assert math.isnan(float(none))
PY
"$folder/venv/bin/python" -W ignore "$folder/show.py"
