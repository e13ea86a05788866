#!/usr/bin/env bash
# OpenSlide opens no classic TIFF in big-endian byte order, only BigTIFFs in that order.
#
# One would guess: TIFF has two byte orders, "II" and "MM", and every TIFF library reads both. OpenSlide reads tiles with
# libtiff, which does. Programs in Java often write "MM", ImageJ always.
#
# What happens: before libtiff, OpenSlide's own parser (`openslide-decode-tifflike.c`) looks at the tables. It looks for the
# first table of a big-endian classic file at a wrong place ("tifflike: Cannot read dircount"), so no format fits: "Unsupported
# or missing image file", and `detect_format` says None. The same pixels as little-endian, or as big-endian BigTIFF, open.
#
# Consequence: a slide of less than 4 GB from such a program does not open, and the message reads as if the file were
# damaged, while the larger ones of the same program open. `OPENSLIDE_DEBUG=detection` names the reason. Write BigTIFF, or
# little-endian (`tiffcp -L`, `bfconvert -bigtiff`), or read the file with tifffile.
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
from pathlib import Path

import numpy as np
import openslide
import tifffile

image = np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)
print("openslide", openslide.__library_version__)
found = {}
for order in "<>":
    for big in (False, True):
        path = Path(sys.argv[1]) / f"{big}{ord(order)}.tiff"
        tifffile.imwrite(path, image, tile=(256, 256), photometric="rgb", byteorder=order, bigtiff=big, metadata=None)
        assert (tifffile.imread(path) == image).all()
        found[order, big] = openslide.OpenSlide.detect_format(path)
        kind = "BigTIFF" if big else "classic TIFF"
        print(path.read_bytes()[:4], f"{kind}, {'little' if order == '<' else 'big'}-endian:", found[order, big])
others = [found["<", False], found["<", True], found[">", True]]
assert others == ["generic-tiff"] * 3
assert found[">", False] is None, "OpenSlide opens classic big-endian TIFFs now"
PY
OPENSLIDE_DEBUG=detection "$folder/venv/bin/python" "$folder/show.py" "$folder" 2> "$folder/log"
grep tifflike "$folder/log"
