#!/usr/bin/env bash
# OpenSlide shows a tiled TIFF with an Orientation tag as a puzzle: it turns each tile, and not the picture.
#
# One would guess: a tiled TIFF whose Orientation tag (274) says "turned by 180°" is either shown as it is stored, or
# turned as a whole.
#
# What happens: OpenSlide decodes tiles with libtiff's TIFFRGBAImage, which obeys the tag inside of the tile. So for
# Orientation 2, 3 and 4 each tile is mirrored or turned in its own place. For 5 the tiles are shown as stored, and the
# tag has no effect. No error is raised, and `dimensions` are those that are stored.
#
# Consequence: tissue, nuclei and label masks are cut at every tile border, yet every tile by itself looks right, so an
# overview or a glance at patches may not show it. Check the tag, and store slides upright.
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

TURNS = {1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
         5: lambda a: a.swapaxes(0, 1)}
stored = np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)
print("openslide", openslide.__library_version__)
for orientation, turn in TURNS.items():
    path = Path(sys.argv[1]) / f"{orientation}.tiff"
    tifffile.imwrite(path, stored, tile=(256, 256), photometric="rgb", metadata=None,
                     extratags=[(274, 3, 1, orientation, True)])
    slide = openslide.OpenSlide(path)
    shown = np.asarray(slide.read_region((0, 0), 0, slide.dimensions))[..., :3]
    tiles = [[turn(stored[y : y + 256, x : x + 256]) for x in (0, 256)] for y in (0, 256)]
    by_tile = np.vstack([np.hstack(row) for row in tiles])
    same = {"stored": stored, "turned as a whole": turn(stored), "tile by tile": by_tile}
    seen = [name for name, picture in same.items() if (shown == picture).all()]
    print(f"Orientation {orientation}: shown as", " and ".join(seen))
    if orientation in (2, 3, 4):
        assert seen == ["tile by tile"], "OpenSlide no longer turns each tile"
PY
"$folder/venv/bin/python" "$folder/show.py" "$folder"
