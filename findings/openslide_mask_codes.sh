#!/usr/bin/env bash
# OpenSlide invents Gleason patterns when a label mask is read at a reduced level.
#
# One would guess: a label mask that is stored without loss and shrunk by nearest neighbour holds the same codes at each
# level, so `read_region` at level 1 returns only codes of the mask.
#
# What happens: `read_region` takes its location in level-0 px. If that location is not a whole px of the requested level,
# OpenSlide interpolates between stored px, also in a mask. A mask with the codes 0 (background), 1 (stroma) and 5 (Gleason
# 5) then also returns 2 (benign gland), 3 and 4 (Gleason 3 and 4): a thin rim around every region. Downscaling a finer
# level, as `get_thumbnail` does, has the same effect.
#
# Consequence: a tile grid whose stride is no multiple of the downsample (or a slide whose downsample is not an integer,
# such as 4.0004 in PANDA) trains and scores on patterns that no pathologist drew. No code is out of range, so no check of
# the codes finds it. Read masks by index from the stored px.
#
# Versions: openslide-python 1.4.7, openslide-bin 4.0.1.2, tifffile 2026.3.3, numpy 2.4.6. See the pins below.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  openslide-python==1.4.7 openslide-bin==4.0.1.2 tifffile==2026.3.3 numpy==2.4.6
cat > "$folder/show.py" <<'PY'
import sys
from importlib.metadata import version

import numpy as np
import openslide
import tifffile

for name in ("openslide-python", "openslide-bin", "tifffile", "numpy"):
    print(name, version(name))

# A mask as PANDA has it: codes in the red channel, lossless, levels shrunk 1, 4 and 16 times by nearest neighbour.
y, x = np.mgrid[:2048, :2048]
codes = np.zeros((2048, 2048), np.uint8)
codes[(x - 1024) ** 2 + (y - 1024) ** 2 < 700**2] = 1
codes[(x - 900) ** 2 + (y - 1000) ** 2 < 300**2] = 5
mask = np.zeros((2048, 2048, 3), np.uint8)
mask[..., 0] = codes
path = sys.argv[1]
with tifffile.TiffWriter(path) as file:
    for shrink in (1, 4, 16):
        level = mask[::shrink, ::shrink]
        file.write(level, tile=(256, 256), compression="deflate", photometric="rgb", subfiletype=int(shrink > 1))
with tifffile.TiffFile(path) as file:
    stored = sorted({int(code) for page in file.pages for code in np.unique(page.asarray()[..., 0])})
print("codes that are stored, over all levels:", stored)

slide = openslide.OpenSlide(path)
seen = {}
for location in ((1000, 1000), (1002, 1001)):
    region = np.asarray(slide.read_region(location, 1, (250, 250)).convert("RGB"))[..., 0]
    found, counts = np.unique(region, return_counts=True)
    seen[location] = dict(zip(found.tolist(), counts.tolist()))
    print(f"read_region({location}, level=1): px by code {seen[location]}")
assert set(seen[1000, 1000]) == {0, 1, 5}, "at a whole px of the level only stored codes are expected"
invented = set(seen[1002, 1001]) - set(stored)
print("codes that nobody stored:", sorted(invented))
assert invented == {2, 3, 4}, "OpenSlide no longer interpolates masks in this way"
thumbnail = np.unique(np.asarray(slide.get_thumbnail((256, 256)))[..., 0]).tolist()
print("codes of get_thumbnail((256, 256)):", thumbnail)
assert thumbnail == [0, 1, 2, 3, 4, 5], "get_thumbnail no longer resamples masks in this way"
PY
"$folder/venv/bin/python" "$folder/show.py" "$folder/mask.tiff"
