#!/usr/bin/env bash
# tiffslide gives the YCbCr numbers of an Aperio slide as if they were RGB; OpenSlide converts them.
#
# One would guess: tiffslide, which replaces OpenSlide without a change of code, knows an SVS as vendor "aperio" and gives
# the same RGB for each kind of it.
#
# What happens: Aperio has two JPEG 2000 compressions, 33005 with RGB inside and 33003 with YCbCr inside. The tag for the
# colours says RGB in both. OpenSlide knows this and converts 33003. tiffslide decodes by tifffile, which leaves the numbers
# as they are, and no message says so: H&E of (200, 120, 170) is read as (150, 140, 164), and glass as (255, 128, 128).
#
# Consequence: Luminance is in the red channel. A search for tissue by saturation finds glass, stain normalization fits
# nonsense, and a network sees other colours than it was trained on. Slides of both kinds occur in one collection, and files
# with 33005 are right, so a try with one slide does not show it. Look at tag 259 (Compression) of a slide's first page.
#
# Versions: tiffslide 2.5.1, tifffile 2025.5.10, openslide-python 1.4.7, openslide-bin 4.0.1.2. See the pins below.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  tiffslide==2.5.1 tifffile==2025.5.10 "zarr==2.18.7" imagecodecs==2026.3.6 numpy==2.4.6 \
  openslide-python==1.4.7 openslide-bin==4.0.1.2
cat > "$folder/show.py" <<'PY'
import sys
from importlib.metadata import version

import imagecodecs
import numpy as np
import openslide
import tifffile
import tiffslide

for name in ("tiffslide", "tifffile", "openslide-python", "openslide-bin"):
    print(name, version(name))

# Glass, and a square with a colour of H&E.
rgb = np.full((512, 512, 3), 255, np.uint8)
rgb[100:400, 100:400] = (200, 120, 170)
to_ycbcr = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
ycbcr = np.clip(np.rint(rgb @ to_ycbcr.T + [0, 128, 128]), 0, 255).astype(np.uint8)
apart = {}
for code, pixels in ((33005, rgb), (33003, ycbcr)):
    path = f"{sys.argv[1]}/{code}.svs"
    corners = [(x, y) for y in (0, 256) for x in (0, 256)]
    tiles = [np.ascontiguousarray(pixels[y : y + 256, x : x + 256]) for x, y in corners]
    coded = (imagecodecs.jpeg2k_encode(tile, codecformat="j2k", level=0, reversible=True, mct=False) for tile in tiles)
    with tifffile.TiffWriter(path) as file:
        text = "Aperio Image Library v12\r\n512x512 (256x256) J2K|MPP = 0.5"
        options = {"photometric": "rgb", "compression": code, "description": text, "metadata": None}
        file.write(coded, shape=(512, 512, 3), dtype="uint8", tile=(256, 256), **options)
    for reader in (openslide.OpenSlide, tiffslide.TiffSlide):
        slide = reader(path)
        vendor = slide.properties[f"{reader.__module__.split('.')[0]}.vendor"]
        region = np.asarray(slide.read_region((0, 0), 0, (512, 512)).convert("RGB"))
        apart[code, reader.__name__] = int(np.abs(region.astype(int) - rgb).max())
        seen = [tuple(region[at, at].tolist()) for at in (0, 200)]
        print(f"compression {code}, vendor {vendor}, {reader.__name__}: glass {seen[0]}, H&E {seen[1]}")
assert max(apart[33005, "OpenSlide"], apart[33005, "TiffSlide"], apart[33003, "OpenSlide"]) <= 2
assert apart[33003, "TiffSlide"] > 100, "tiffslide converts the colours now"
PY
"$folder/venv/bin/python" -W ignore "$folder/show.py" "$folder"
