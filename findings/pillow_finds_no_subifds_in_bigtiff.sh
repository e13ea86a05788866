#!/usr/bin/env bash
# Pillow finds the reduced levels of a classic TIFF, and says that the same file as BigTIFF has none.
#
# One would guess: `Image.get_child_images()` lists the images in the SubIFDs of a TIFF, which is where OME-TIFF has its
# levels. Pillow opens BigTIFFs, so it lists those of a BigTIFF too, or raises an error.
#
# What happens: writers give the SubIFDs tag (330) of a BigTIFF the type IFD8 (18), which is the type for offsets of
# 8 bytes. Pillow knows no such type, and skips the tag. `tag_v2` and `getexif()` have no entry 330, and the list of
# images is empty. There is no error and no warning; the image itself is right.
#
# Consequence: a pyramid seems to have one level, so a program makes a thumbnail from gigabytes, or reports that the file
# is no pyramid. Write a classic TIFF if the file is certainly below 4 GiB, or read levels with tifffile.
#
# Versions: Pillow 13.0.0, tifffile 2026.3.3, numpy 2.4.6. See the pins below.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pillow==13.0.0 tifffile==2026.3.3 numpy==2.4.6
cat > "$folder/show.py" <<'PY'
import sys
import warnings
from pathlib import Path

import numpy as np
import PIL
import tifffile
from PIL import Image

warnings.simplefilter("error")
print("Pillow", PIL.__version__)
found = {}
for is_big in (False, True):
    path = Path(sys.argv[1]) / f"{is_big}.tif"
    with tifffile.TiffWriter(path, bigtiff=is_big) as tif:
        tif.write(np.zeros((64, 64), np.uint8), subifds=1)
        tif.write(np.zeros((32, 32), np.uint8), subfiletype=1)
    with tifffile.TiffFile(path) as tif:
        levels = [page.shape for page in tif.pages[0].pages]
        kind = tif.pages[0].tags[330].dtype.name
    with Image.open(path) as image:
        found[is_big] = [child.size for child in image.get_child_images()]
        print("BigTIFF" if is_big else "classic", f"tag 330 of type {kind}: tifffile finds {levels}, Pillow finds",
              found[is_big], "and tag 330 is", image.tag_v2.get(330))
assert found == {False: [(32, 32)], True: []}, "Pillow finds the SubIFDs of a BigTIFF"
PY
"$folder/venv/bin/python" "$folder/show.py" "$folder"
