#!/usr/bin/env bash
# torchmetrics' MeanMetric forgets its weights if the check for NaN is switched off.
#
# One would guess: `nan_strategy="disable"` only leaves out the search for NaN, which waits for a GPU at each batch, and
# the mean stays weighted by `update(value, weight)`.
#
# What happens: With "disable" the weights are replaced by ones, without a message. With every other strategy, "warn",
# "error", "ignore" or a number, the mean is weighted.
#
# Consequence: A loss that is averaged with the number of samples or pixels of each batch as weight becomes the plain
# mean over batches as soon as somebody switches the check off to save time. A small last batch then counts as much as a
# whole one, and validation losses of two runs that differ in this option cannot be compared.
#
# Versions: torchmetrics 1.9.0, torch 2.11.0. See the pins below.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torchmetrics==1.9.0 torch==2.11.0 numpy==2.4.6
cat > "$folder/show.py" <<'PY'
from importlib.metadata import version

import torch
from torchmetrics import MeanMetric

for name in ("torchmetrics", "torch"):
    print(name, version(name))
means = {}
for strategy in ("warn", "error", "ignore", 0.0, "disable"):
    mean = MeanMetric(nan_strategy=strategy)
    mean.update(torch.tensor(1.0), weight=1)
    mean.update(torch.tensor(3.0), weight=3)
    means[strategy] = float(mean.compute())
    print(f"nan_strategy={strategy!r}: the mean of 1 (weight 1) and 3 (weight 3) is {means[strategy]}")
assert means.pop("disable") == 2.0, "disable keeps the weights now"
assert set(means.values()) == {2.5}
PY
"$folder/venv/bin/python" -W ignore "$folder/show.py"
