#!/usr/bin/env bash
# A TIFF that leaves out its blank tiles moves: OpenSlide 4.0.1 gives it a bounding box, and viewers crop to it.
#
# One would guess: whether a writer stores the blank tiles of a tiled TIFF or leaves them out (offset and byte count 0, as
# GDAL's SPARSE_OK does) changes only the size of the file. `openslide.bounds-*` is known from MIRAX and Leica SCN, not
# from plain TIFFs.
#
# What happens: OpenSlide 4.0.0 cannot read a missing tile: the read fails, and every later read with the same handle too.
# From 4.0.1 (June 2026) on missing tiles are transparent, and the file gets `openslide.bounds-x`, `-y`, `-width` and
# `-height`: the box around the remaining tiles of level 0. `dimensions` and `read_region` keep the frame of the whole
# file. Programs that crop to the bounds use another frame: `DeepZoomGenerator(limit_bounds=True)`, and QuPath unless its
# option to crop is off (`OpenslideImageServer.java`; its next version, 0.8.0, comes with OpenSlide 4.0.1.2).
#
# Consequence: GeoJSON, heatmaps and label masks of the same slide are off by the corner of the box or not, by how the
# file was written and by the version of the viewer's OpenSlide. Nothing fails. Say from which corner coordinates count,
# and read `openslide.bounds-*` of TIFFs too.
#
# Versions: openslide-python 1.4.7, openslide-bin 4.0.1.2 and 4.0.0.8, tifffile 2026.3.3, numpy 2.4.6. See the pins below.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  openslide-python==1.4.7 openslide-bin==4.0.1.2 tifffile==2026.3.3 numpy==2.4.6
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --target "$folder/old" \
  openslide-bin==4.0.0.8
cat > "$folder/write.py" <<'PY'
import sys
import numpy as np
import tifffile

# Tissue in the middle of a white sheet of 2048 x 1536 px, in tiles of 256 px.
image = np.full((1536, 2048, 3), 255, np.uint8)
image[600:900, 800:1200] = (200, 100, 160)
whole, sparse = sys.argv[1:]
for path in (whole, sparse):
    tifffile.imwrite(path, image, tile=(256, 256), photometric="rgb", compression="deflate", metadata=None)
with tifffile.TiffFile(sparse, mode="r+") as tif:
    page = tif.pages[0]
    blank = [(image[y : y + 256, x : x + 256] == 255).all() for y in range(0, 1536, 256) for x in range(0, 2048, 256)]
    for name in ("TileOffsets", "TileByteCounts"):
        tag = page.tags[name]
        tag.overwrite([0 if left_out else value for value, left_out in zip(tag.value, blank)])
print("tiles:", len(blank), "of which are left out:", sum(blank))
PY
cat > "$folder/show.py" <<'PY'
import sys

import numpy as np
import openslide
from openslide.deepzoom import DeepZoomGenerator

whole, sparse = map(openslide.OpenSlide, sys.argv[1:])
print("openslide", openslide.__library_version__)
names = ("x", "y", "width", "height")
bounds = [[slide.properties.get(f"openslide.bounds-{name}") for name in names] for slide in (whole, sparse)]
print("bounds of the file with all tiles:", bounds[0])
print("bounds of the file without its blank tiles:", bounds[1])
try:
    pixels = [np.asarray(slide.read_region((0, 0), 0, (2048, 1536))) for slide in (whole, sparse)]
except openslide.OpenSlideError as error:
    print("reading the whole slide:", error)
    assert openslide.__library_version__.startswith("4.0.0")
    sys.exit()
tissue = pixels[0][..., 1] < 200
assert (pixels[0][tissue] == pixels[1][tissue]).all() and whole.dimensions == sparse.dimensions
print("read_region shows the same tissue at the same place, dimensions are the same:", sparse.dimensions)
sizes = [DeepZoomGenerator(slide, limit_bounds=True).level_dimensions[-1] for slide in (whole, sparse)]
print("size in a viewer that crops to the bounds:", sizes)
assert bounds == [[None] * 4, ["768", "512", "512", "512"]], "OpenSlide no longer states bounds of sparse TIFFs"
assert sizes == [(2048, 1536), (512, 512)]
PY
"$folder/venv/bin/python" "$folder/write.py" "$folder/whole.tiff" "$folder/sparse.tiff"
"$folder/venv/bin/python" "$folder/show.py" "$folder/whole.tiff" "$folder/sparse.tiff"
PYTHONPATH="$folder/old" "$folder/venv/bin/python" "$folder/show.py" "$folder/whole.tiff" "$folder/sparse.tiff"
