#!/usr/bin/env bash
# The instance loss of torchmil's CLAM pairs the score of each tile with the labels of all tiles.
#
# One would guess: `CLAM_SB` learns from the smooth support vector machine of the paper. Each of the 2k tiles with the most
# and the least attention has one label, and its loss is log(1 + exp(1 - s)), s being the score of the right class minus
# that of the wrong one. Such a loss is never below 0, and that of several tiles is the mean of theirs.
#
# What happens: `inst_eval` passes labels of the shape (2k, 1). In `SmoothTop1SVM`, labels of this shape make the margin
# (2k, 1, 2), and adding the scores (2k, 2) makes (2k, 2k, 2). The sum of exponentials then runs over tiles and not over
# classes. Labels of the shape (2k,) raise an error, so there is no right way to call it.
#
# Consequence: Training with the instance loss pulls the classifiers of tiles in a direction that no paper describes. The
# loss of one tile can be below 0, and the loss of eight tiles is several times the mean of their losses. Figures of
# "CLAM-SB" that were obtained with torchmil are not those of CLAM.
#
# Versions: torchmil 1.0.2, torch 2.11.0. See the pins below.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torchmil==1.0.2 torch==2.11.0 numpy==2.4.6
cat > "$folder/show.py" <<'PY'
from importlib.metadata import version

import torch
from torchmil.nn.utils import SmoothTop1SVM

for name in ("torchmil", "torch"):
    print(name, version(name))
torch.manual_seed(0)
scores = torch.randn(8, 2)
labels = torch.tensor([1, 1, 1, 1, 0, 0, 0, 0])
right = scores.gather(1, labels[:, None])[:, 0]
paper = torch.nn.functional.softplus(1 + scores.sum(1) - 2 * right)
loss = SmoothTop1SVM(n_classes=2)
own = torch.stack([loss(scores[k : k + 1], labels[k : k + 1, None]) for k in range(8)])
together = float(loss(scores, labels[:, None]))
print("paper, tile by tile:   ", [round(value, 3) for value in paper.tolist()])
print("torchmil, tile by tile:", [round(value, 3) for value in own.tolist()])
print(f"mean over the tiles: {paper.mean():.3f} (paper), {own.mean():.3f} (torchmil, each tile alone)")
print(f"torchmil, all eight tiles at once, as CLAM_SB does: {together:.3f}")
assert float(own.min()) < 0, "the loss of a tile is not below 0 any more"
assert together > 3 * float(paper.mean()), "the loss of all tiles is near their mean now"
try:
    loss(scores, labels)
except RuntimeError as error:
    print("labels of the shape (8,):", error)
PY
"$folder/venv/bin/python" -W ignore "$folder/show.py"
