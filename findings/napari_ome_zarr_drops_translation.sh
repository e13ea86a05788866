#!/usr/bin/env bash
# napari-ome-zarr shows an OME-Zarr image of NGFF 0.4 or 0.5 without its translation, so images lie on each other.
#
# One would guess: the `coordinateTransformations` of a level, a scale and then a translation, place the image in the
# viewer. These are the only two kinds that NGFF 0.4 and 0.5 allow, in this order.
#
# What happens: the plugin takes the first of them, which is the scale, and leaves the rest. The layer begins at 0, 0.
# There is no error and no warning, and the pixel size is right. ome-zarr-py passes both on.
#
# Consequence: fields of one slide at different places of the stage are all shown at the origin, and a map of a slide is
# shifted against it by half the difference of their pixel sizes. Measured distances between images are wrong. Set
# `layer.translate` from the metadata.
#
# Versions: napari-ome-zarr 0.10.0, ome-zarr 0.18.0, napari 0.9.2, zarr 3.1.6, numpy 2.4.6. See the pins below.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  napari-ome-zarr==0.10.0 ome-zarr==0.18.0 napari==0.9.2 zarr==3.1.6 numpy==2.4.6
cat > "$folder/show.py" <<'PY'
import contextlib
import io
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import zarr
from napari.layers import Image
from napari_ome_zarr import napari_get_reader
from ome_zarr.io import parse_url
from ome_zarr.reader import Reader

for name in ("napari-ome-zarr", "ome-zarr", "napari"):
    print(name, version(name))
steps = [{"type": "scale", "scale": [2.0, 2.0]}, {"type": "translation", "translation": [1000.0, 500.0]}]
axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "yx"]
image = {"name": "field", "axes": axes, "datasets": [{"path": "0", "coordinateTransformations": steps}]}
path = str(Path(sys.argv[1]) / "field.zarr")
group = zarr.create_group(path, zarr_format=3, attributes={"ome": {"version": "0.5", "multiscales": [image]}})
group.create_array("0", data=np.ones((64, 64), np.uint8), dimension_names=("y", "x"))

passed = next(iter(Reader(parse_url(path))())).metadata["coordinateTransformations"][0]
print("ome-zarr passes on", passed)
with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stdout(io.StringIO()):
    warnings.simplefilter("always")
    [(data, options, _)] = napari_get_reader(path)(path)
    layer = Image(data[0] if isinstance(data, list) else data, **options)
begin = layer.data_to_world((0, 0))
said = [str(one.message) for one in caught if "transl" in str(one.message).lower()]
print("napari places the first pixel at", tuple(map(float, begin)), "µm, and the second at",
      tuple(map(float, layer.data_to_world((1, 1)))), "with warnings of it:", said)
assert begin == (0, 0) and not said, "napari-ome-zarr reads the translation"
PY
"$folder/venv/bin/python" "$folder/show.py" "$folder"
