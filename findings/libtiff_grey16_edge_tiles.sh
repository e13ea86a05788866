#!/usr/bin/env bash
# OpenSlide (libtiff) shears the last column of tiles of a 16-bit grey TIFF, if the width is no multiple of the tile's.
#
# One would guess: a tiled grey TIFF of 16 bits (fluorescence, a probability map, an intensity image) is shown as 8 bits, and
# tiles at the right edge are cut at the edge of the picture, as with 8 bits and with RGB of 16 bits.
#
# What happens: OpenSlide decodes tiles with libtiff's TIFFRGBAImage. Its routine for grey of 16 bits steps over the px
# past the edge by their number and not by their bytes, two each. So each row of a tile at the right edge begins too early:
# by half of the px past the edge, once more in each further row. The picture there is sheared and wraps. The tiles left
# of it are right. No error is raised. Tiles of 8 bits, RGB of 16 bits, and widths that are a multiple of the tile's are right.
#
# Consequence: up to a tile's width at the right edge of such a picture is garbage that looks like texture. Overviews seldom
# show it. Write 8 bits, pad the width to whole tiles, or read the file with tifffile.
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

print("openslide", openslide.__library_version__)
rng = np.random.default_rng(0)
wrong = {}
for name, shape, dtype in (
    ("grey, 8 bits, 800 px wide", (600, 800), np.uint8),
    ("grey, 16 bits, 768 px wide", (600, 768), np.uint16),
    ("grey, 16 bits, 800 px wide", (600, 800), np.uint16),
    ("RGB, 16 bits, 800 px wide", (600, 800, 3), np.uint16),
):
    image = rng.integers(0, np.iinfo(dtype).max + 1, shape, dtype)
    path = Path(sys.argv[1]) / "image.tiff"
    kind = "rgb" if len(shape) == 3 else "minisblack"
    tifffile.imwrite(path, image, tile=(256, 256), photometric=kind, metadata=None)
    shown = np.asarray(openslide.OpenSlide(path).read_region((0, 0), 0, shape[1::-1]))[..., :3].astype(int)
    stored = image.astype(int) >> (8 if dtype == np.uint16 else 0)
    off = np.abs(shown - (stored if len(shape) == 3 else stored[..., None])).max(axis=2) > 1
    columns = np.flatnonzero(off.any(axis=0))
    wrong[name] = columns
    print(name, "- wrong px:", f"{off.mean():.2%}", f"in columns {columns[0]} to {columns[-1]}" if len(columns) else "")
    if name == "grey, 16 bits, 800 px wide":
        past = 1024 - 800
        row = (stored[0:256, 768:800]).copy()
        padded = np.pad(row, ((0, 0), (0, past))).ravel()  # the tile as it is stored
        early = [padded[y * (256 - past // 2) :][:32] for y in range(100)]
        assert (shown[:100, 768:, 0] == early).all(), "not by half of the px past the edge"
        print("row y of such a tile begins", past // 2, "x y px too early")
assert [len(columns) for columns in wrong.values()] == [0, 0, 32, 0], "libtiff steps right now"
PY
"$folder/venv/bin/python" "$folder/show.py" "$folder"
