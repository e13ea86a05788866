#!/usr/bin/env bash
# albumentations' JPEG augmentation compresses an RGB image with red and blue exchanged.
#
# One would guess: `ImageCompression` on an RGB image, which is what albumentations expects everywhere, gives the pixels
# of a JPEG file of the same quality.
#
# What happens: It hands the RGB array to OpenCV's encoder, which takes BGR, and reads it back in the same way. The
# channels are in place again afterwards, so nothing looks wrong, but brightness and colour differences were computed with
# red and blue exchanged. Red then loses as much as blue should, and blue as little as red.
#
# Consequence: A network is trained on another compression than that of slides. On pink tissue the errors of red and
# blue are those of the other channel. Exchange the channels before and after, or compress with a library that takes RGB.
#
# Versions: albumentations 2.0.8, opencv-python-headless 4.13.0.92, Pillow 12.0.0. See the pins below.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  albumentations==2.0.8 opencv-python-headless==4.13.0.92 pillow==12.0.0 numpy==2.4.6
cat > "$folder/show.py" <<'PY'
import io
from importlib.metadata import version

import albumentations as A
import numpy as np
from PIL import Image

for name in ("albumentations", "opencv-python-headless", "pillow"):
    print(name, version(name))
# pink ground with violet spots and noise in every channel
rng = np.random.default_rng(0)
image = np.full((256, 256, 3), (225, 130, 180), np.float64)
y, x = np.mgrid[:256, :256]
image[(y // 8 + x // 8) % 3 == 0] = (110, 60, 150)
image = np.clip(image + rng.normal(0, 12, image.shape), 0, 255).astype(np.uint8)
buffer = io.BytesIO()
Image.fromarray(image).save(buffer, "JPEG", quality=50)
right = np.asarray(Image.open(buffer).convert("RGB"))
compress = A.ImageCompression(quality_range=(50, 50), p=1)
ours = compress(image=image)["image"]
swapped = compress(image=np.ascontiguousarray(image[..., ::-1]))["image"][..., ::-1]


def error(other):
    return np.abs(other.astype(int) - image).mean((0, 1)).round(2)


def difference(one):
    return float(np.abs(one.astype(int) - right).mean())


print("mean error of R, G, B by Pillow's JPEG, quality 50:       ", error(right))
print("mean error of R, G, B by ImageCompression, quality 50:    ", error(ours))
print("the same, with the channels exchanged before and after:   ", error(swapped))
print(f"mean difference from Pillow: {difference(ours):.2f} as documented, {difference(swapped):.2f} with the exchange")
assert difference(swapped) < 1 < difference(ours), "ImageCompression takes the channels in another order now"
PY
NO_ALBUMENTATIONS_UPDATE=1 "$folder/venv/bin/python" -W ignore "$folder/show.py"
