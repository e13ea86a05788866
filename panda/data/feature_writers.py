"""Writers of feature files in the formats of `panda.data.feature_formats`."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import JsonValue, TypeAdapter

from panda.data.feature_formats import CONFIG, DERIVED, VERSION
from panda.data.feature_names import BAG, name_index
from panda.data.feature_origin import FeatureFile, FeatureFormat, find_centres
from panda.data.hdf5 import REMEDY, build_hdf5, write_array
from panda.errors import ManifestError
from panda.files import write_json, write_whole
from panda.stored import read_model
from panda.wsi.geometry import round_px


def _write_features(file: h5py.File, content: FeatureFile, name: str) -> h5py.Dataset:
    """Write features with what made them, and return their array."""
    file.attrs["panda_features"] = VERSION
    features = write_array(file, name, content.features)
    features.attrs.update(content.origin.model_dump(exclude_none=True, exclude=DERIVED))
    return features


def _write_own(path: Path, content: FeatureFile) -> None:
    """Write HDF5 as TRIDENT does."""
    origin = content.origin
    size = content.slide_size or (None, None)
    magnifications: list[float | None] = [None, None]
    if origin.mpp is not None and origin.tile_um is not None and origin.tile_px0 is not None:
        magnifications = [10 * origin.tile_px0 / origin.tile_um, 10 / origin.mpp]
    attributes = {
        "patch_size": origin.tile_size,
        "patch_size_level0": None if origin.tile_px0 is None else round_px(origin.tile_px0),
        "level0_magnification": magnifications[0],
        "target_magnification": magnifications[1],
        "overlap": origin.overlap or 0,
        "name": content.slide_id,
        "savetodir": "",
        "level0_width": size[0],
        "level0_height": size[1],
    }

    def write(file: h5py.File) -> None:
        features = _write_features(file, content, "features")
        features.attrs.update({"name": content.slide_id, "savetodir": ""})
        if content.coords is not None:
            coords = write_array(file, "coords", content.coords)
            coords.attrs.update({key: value for key, value in attributes.items() if value is not None})

    write_whole(path, build_hdf5(write))


def _write_stamp(path: Path, content: FeatureFile) -> None:
    """Write HDF5 as STAMP does, with coordinates in µm."""
    origin, coords = content.origin, content.coords
    if coords is None or origin.tile_um is None or origin.tile_px0 is None:
        raise ManifestError(
            f"{path}: STAMP needs coordinates in µm, and µm/px of slide {content.slide_id} is unknown; give "
            "mpp_override, or format=panda"
        )
    scale = origin.tile_um / origin.tile_px0
    attributes = {
        "extractor": origin.encoder or "",
        "unit": "um",
        "tile_size_um": origin.tile_um,
        "tile_size_px": origin.tile_size,
        "feat_type": "tile",
    }

    def write(file: h5py.File) -> None:
        _write_features(file, content, "feats")
        write_array(file, "coords", (coords * scale).astype(np.float32))
        file.attrs.update({key: value for key, value in attributes.items() if value is not None})

    write_whole(path, build_hdf5(write))


def _write_clam(path: Path, content: FeatureFile) -> None:
    """Write both files of CLAM: `pt_files/ID.pt` for its training, `h5_files/ID.h5` for its heatmaps."""
    if path.parent.name != "h5_files":
        raise ManifestError(f"{path}: CLAM needs the file in a folder h5_files, beside one pt_files")
    _write_tensor(path.parents[1] / "pt_files" / f"{path.stem}{BAG}", content.features)

    def write(file: h5py.File) -> None:
        _write_features(file, content, "features")
        if content.coords is not None:
            write_array(file, "coords", content.coords.astype(np.int32))

    write_whole(path, build_hdf5(write))


def _write_slideflow(path: Path, content: FeatureFile) -> None:
    """Write a tensor, the index of its tiles with their centres, and what made the folder if nothing says it yet."""
    origin = content.origin
    if content.coords is None or origin.tile_px0 is None:
        raise ManifestError(f"{path}: slideflow needs the tiles of slide {content.slide_id}, which are unknown")
    config: dict[str, JsonValue] = {
        "extractor": {"class": f"panda.{origin.encoder}", "kwargs": {}},
        "normalizer": None,
        "num_features": origin.dim,
        "tile_px": origin.tile_size,
        "tile_um": None if origin.tile_um is None else round_px(origin.tile_um),
    }
    if not (folder := path.with_name(CONFIG)).exists():
        write_json(folder, config)
    elif read_model(folder, TypeAdapter(dict[str, JsonValue]), REMEDY, ManifestError) != config:
        raise ManifestError(f"{folder}: is of features by another encoder or of other tiles; give a folder of its own")
    index = io.BytesIO()
    np.savez(
        index,
        arr_0=find_centres(content.coords, origin.tile_px0),
        origin=np.array(origin.model_dump_json(exclude_none=True, exclude=DERIVED)),
        crc32=np.uint32(zlib.crc32(np.ascontiguousarray(content.features).data)),
    )
    write_whole(name_index(path), index.getvalue())
    _write_tensor(path, content.features)


def _write_tensor(path: Path, features: NDArray[np.float32]) -> None:
    data = io.BytesIO()
    torch.save(torch.from_numpy(features), data)
    write_whole(path, data.getvalue())


WRITERS: dict[FeatureFormat, Callable[[Path, FeatureFile], None]] = {
    "panda": _write_own,
    "trident": _write_own,
    "stamp": _write_stamp,
    "clam": _write_clam,
    "slideflow": _write_slideflow,
}
