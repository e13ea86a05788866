#!/usr/bin/env bash
# The DPT of segmentation-models-pytorch can be built over a vision transformer with patches of 14 px, but not run.
#
# One would guess: `smp.DPT` takes any vision transformer of timm (`tu-vit_…`). Most encoders for pathology are such
# transformers with patches of 14 px (Virchow, H-optimus, UNI2-h, Midnight, Hibou).
#
# What happens: the network is built without a warning. On an image it fails when two feature maps are added whose sizes
# differ, at the encoder's own size (518 px) and at others. The decoder scales the maps of the tokens by patch size / 4, 8, 16
# and 32, in whole steps. 16 px give 4, 2, 1 and 1/2, each half of the one before. 14 px give 3, 1, 1 and 1/2.
#
# Consequence: a configuration "DPT over a foundation model" passes every check up to the first batch, and no size of the
# tiles cures it. A decoder of one's own, or one over a ViT with patches of 16 px (UNI, GigaPath), is needed.
#
# Versions: segmentation-models-pytorch 0.6.0, timm 1.0.31, torch 2.11.0. See the pins below.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  segmentation-models-pytorch==0.6.0 torch==2.11.0 torchvision==0.26.0 timm==1.0.31 numpy==2.4.6
cat > "$folder/show.py" <<'PY'
from importlib.metadata import version

import segmentation_models_pytorch as smp
import torch

for name in ("segmentation-models-pytorch", "timm", "torch"):
    print(name, version(name))
runs = {}
for encoder, sides in (("vit_small_patch16_224", (224, 448)), ("vit_small_patch14_dinov2", (224, 448, 518))):
    network = smp.DPT(f"tu-{encoder}", encoder_weights=None, classes=1, dynamic_img_size=True).eval()
    for side in sides:
        try:
            with torch.no_grad():
                found = tuple(network(torch.zeros(1, 3, side, side)).shape)
        except RuntimeError as error:
            found = str(error)
        runs[encoder, side] = found
        print(f"{encoder}, {side} px: {found}")
for (encoder, side), found in runs.items():
    assert (found == (1, 1, side, side)) if "patch16" in encoder else "must match the size" in found
PY
"$folder/venv/bin/python" -W ignore "$folder/show.py"
