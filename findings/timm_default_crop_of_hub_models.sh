#!/usr/bin/env bash
# timm magnifies the tiles of a pathology foundation model whose configuration on the hub leaves out `crop_pct`.
#
# One would guess: `create_transform(**resolve_data_config(model.pretrained_cfg, model=model))`, which model cards and tools
# for whole slides recommend, prepares an image as the model was trained. If the configuration states an input of 224 px
# and no scaling, a tile of 224 px passes as it is.
#
# What happens: for a missing `crop_pct` timm takes 0.875, the habit of ImageNet. It scales the tile to 256 px and cuts out
# the central 224. The configuration of H-optimus-0 (bioptimus/H-optimus-0, revision 7bb31657) states input size, mean and
# std only. Its model card converts and normalizes a tile of 224 px at 0.5 µm/px and nothing else.
#
# Consequence: the network sees 0.4375 µm/px in place of 0.5, and 77 % of the area of each tile; what is near a border of
# the grid of tiles is in no tile. No message says so, and the features have the right shape. Features of two tools that
# name the same model and the same revision differ.
# Without the hub it is no better: the configuration of the bare architecture, such as `vit_large_patch16_224` of UNI, has
# `crop_pct` 0.9, and mean and std 0.5 in place of ImageNet's.
#
# Versions: timm 1.0.31, torch 2.11.0, torchvision 0.26.0. See the pins below.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check timm==1.0.31 torch==2.11.0 torchvision==0.26.0 numpy==2.4.6
mkdir "$folder/h-optimus-0"
# As published; the weights are not needed.
cat > "$folder/h-optimus-0/config.json" <<'JSON'
{
  "architecture": "vit_giant_patch14_reg4_dinov2",
  "num_classes": 0,
  "num_features": 1536,
  "global_pool": "token",
  "pretrained_cfg": {
    "custom_load": true,
    "input_size": [3, 224, 224],
    "fixed_input_size": true,
    "mean": [0.707223, 0.578729, 0.703617],
    "std": [0.211883, 0.230117, 0.177517],
    "num_classes": 0,
    "license": "Apache 2.0"
  }
}
JSON
cat > "$folder/show.py" <<'PY'
import sys
from importlib.metadata import version

import numpy as np
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config

for name in ("timm", "torch", "torchvision"):
    print(name, version(name))
with torch.device("meta"):
    model = timm.create_model(f"local-dir:{sys.argv[1]}", pretrained=False, init_values=1e-5, dynamic_img_size=False)
transform = create_transform(**resolve_data_config(model.pretrained_cfg, model=model))
print(transform)

# A tile whose red channel is the column and whose green channel is the row.
rows, columns = np.mgrid[:224, :224].astype(np.uint8)
tile = Image.fromarray(np.stack([columns, rows, np.zeros_like(rows)], -1))
red = transform(tile)[0] * 0.211883 + 0.707223
seen = (red * 255).round()
first, last = int(seen[112, 0]), int(seen[112, -1])
print(f"of the columns 0 to 223 the network sees {first} to {last}: {(last - first + 1) / 224 * 0.5:.4f} µm/px for 0.5")
assert (first, last) == (14, 209)

with torch.device("meta"):
    uni = timm.create_model("vit_large_patch16_224", init_values=1e-5, num_classes=0)
print("vit_large_patch16_224:", {key: uni.pretrained_cfg[key] for key in ("crop_pct", "mean", "std")})
assert uni.pretrained_cfg["crop_pct"] == 0.9 and uni.pretrained_cfg["mean"] == (0.5, 0.5, 0.5)
PY
"$folder/venv/bin/python" -W ignore "$folder/show.py" "$folder/h-optimus-0"
