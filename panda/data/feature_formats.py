"""Formats of feature files: our own, and those of TRIDENT, CLAM, STAMP and slideflow.

All but slideflow write HDF5. An array `features` or `feats` has the features, (N, D), and `coords` the tiles. Our own
file is that of TRIDENT. In each format we write the fields of `FeatureOrigin` too, which other programs do not read.
"""

from __future__ import annotations

import pickle
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from h5py import h5f
from numpy.typing import NDArray
from pydantic import JsonValue, TypeAdapter, ValidationError

from panda.data.feature_names import name_index
from panda.data.feature_origin import (
    FeatureFile,
    FeatureFormat,
    FeatureOrigin,
    TilePlaces,
    find_corners,
)
from panda.data.hdf5 import (
    REMEDY,
    ArrayPlace,
    has_checksum,
    open_array,
    read_array,
    read_attributes,
)
from panda.errors import ManifestError
from panda.stored import describe_faults, read_model
from panda.wsi.geometry import round_px

VERSION = 1
"""Version of what we add to a format, the attribute `panda_features` of the file."""

CONFIG: Final = "bags_config.json"
"""File of slideflow that says what made the bags of a folder."""
DERIVED = {"format", "dim"}
"""Fields of an origin that follow from the file."""

_MOST_PX = 2**31
"""Greatest coordinate of a tile, which no slide reaches; larger ones would not fit into whole numbers."""


class Hdf5File:
    """An open HDF5 file of features.

    Args:
        path: The file.
        file: The open file.

    Raises:
        ManifestError: If it has no features of tiles.

    Attributes:
        shape: N and D.
    """

    def __init__(self, path: Path, file: h5f.FileID) -> None:
        self.path, self._file = path, file
        stored = open_array(file, "features")
        self._is_stamp = stored is None
        self._stored = stored or open_array(file, "feats")
        if self._stored is None:
            raise ManifestError(
                f"{path}: has neither `features` nor `feats`; it is no feature file, or an unfinished one"
            )
        self.shape = _check_shape(path, self._stored.shape)

    def read_features(self) -> NDArray[np.float32]:
        """See `read_features`."""
        features = _convert(self.path, read_array(self._stored).reshape(self.shape))
        # An array with a checksum was written by `write_feature_file`, which refuses other values.
        if not has_checksum(self._stored):
            check_finite(self.path, features)
        return features

    def find_features(self) -> ArrayPlace | None:
        """Return where the file has its features, if HDF5 is not needed to read them again."""
        place = ArrayPlace.find(self.path, self._stored)
        return place if place and place.dtype == np.dtype(np.float32) and place.shape == self.shape else None

    def read_origin(self) -> FeatureOrigin:
        """See `read_origin`."""
        coords = open_array(self._file, "coords")
        of_file, of_features, of_coords = map(read_attributes, (self._file, self._stored, coords))
        if (kind := of_file.get("feat_type", "tile")) != "tile":
            raise ManifestError(f"{self.path}: has features of a {kind} (feat_type), but those of tiles are needed")
        format: FeatureFormat
        if (version := of_file.get("panda_features")) is not None:
            if version != VERSION:
                raise ManifestError(
                    f"{self.path}: panda_features is {version}, but this program reads {VERSION}; encode the slide "
                    "again, or read it with the program that wrote it"
                )
            format = "stamp" if self._is_stamp else "panda"
            stated = of_features
        elif self._is_stamp:
            format, stated = "stamp", _translate_stamp(of_file)
        elif of_coords or "encoder" in of_features:
            format, stated = "trident", _translate_trident(of_features, of_coords)
        else:
            format, stated = "clam", {}
        return make_origin(self.path, stated, format, self.shape[1])

    def read(self) -> FeatureFile:
        """See `read_feature_file`."""
        origin, features = self.read_origin(), self.read_features()
        coords = places = None
        if (stored := open_array(self._file, "coords")) is not None:
            values = read_array(stored)
            values = _check_coords(
                self.path, values[0] if values.ndim == 3 and len(values) == 1 else values, len(features)
            )
            if origin.format != "stamp":
                coords = round_px(values)
            elif origin.tile_px0 is not None and origin.tile_um is not None:
                coords = round_px(values * (origin.tile_px0 / origin.tile_um))
            elif origin.tile_um is not None:
                places = TilePlaces(values, "corner_um")
        return FeatureFile(self.path.stem, features, coords, origin, None, places)


class BagFile:
    """A tensor of features, and the index of slideflow beside it if there is one.

    Args:
        path: The file.
        tensor: Its content.

    Raises:
        ManifestError: If it is no tensor, (N, D).

    Attributes:
        shape: N and D.
    """

    def __init__(self, path: Path, tensor: Any) -> None:
        if not isinstance(tensor, torch.Tensor):
            raise ManifestError(f"{path}: holds a {type(tensor).__name__}, but must be one tensor of features")
        self.path, self.shape = path, _check_shape(path, tuple(tensor.shape))
        self._tensor = tensor

    @classmethod
    def open(cls, path: Path) -> BagFile:
        """Open a file without reading its features, and without running what is pickled in it."""
        try:
            return cls(path, torch.load(path, "cpu", weights_only=True, mmap=zipfile.is_zipfile(path)))
        except pickle.UnpicklingError as error:
            raise ManifestError(
                f"{path}: holds pickled objects other than a tensor, which could run code and are not read. Write "
                "HDF5 instead (TRIDENT writes NumPy arrays with saveas=pt), or one tensor"
            ) from error

    def read_features(self) -> NDArray[np.float32]:
        """See `read_features`."""
        dtype = torch.float32 if self._tensor.is_floating_point() else self._tensor.dtype
        tensor = self._tensor.detach().reshape(self.shape)
        features = _convert(self.path, tensor.to(dtype, memory_format=torch.contiguous_format, copy=True).numpy())
        if "crc32" in (index := self._read_index()) and index["crc32"] != zlib.crc32(features.data):
            raise ValueError(f"the checksum in {index['name']} does not fit them")
        check_finite(self.path, features)
        return features

    def read_origin(self) -> FeatureOrigin:
        """See `read_origin`."""
        stated: Mapping[str, Any] = {}
        index = self._read_index()
        if "origin" in index:
            stated = TypeAdapter(dict[str, JsonValue]).validate_json(index["origin"].item())
        elif (config := self.path.with_name(CONFIG)).is_file():
            stated = _translate_slideflow(read_model(config, TypeAdapter(dict[str, JsonValue]), REMEDY, ManifestError))
        return make_origin(self.path, stated, "slideflow" if index or stated else "clam", self.shape[1])

    def read(self) -> FeatureFile:
        """See `read_feature_file`."""
        origin, features = self.read_origin(), self.read_features()
        coords = places = None
        index = self._read_index()
        if "arr_0" in index:
            values = _check_coords(self.path, index["arr_0"], len(features))
            if origin.tile_px0 is None:
                places = TilePlaces(values, "centre_px0")
            else:
                coords = find_corners(values, origin.tile_px0)
        return FeatureFile(self.path.stem, features, coords, origin, None, places)

    def _read_index(self) -> dict[str, Any]:
        path = name_index(self.path)
        if not path.is_file():
            return {}
        with path.open("rb") as raw, np.load(raw) as file:
            return {**file, "name": path.name}


def make_origin(path: Path, stated: Mapping[str, Any], format: FeatureFormat, dim: int) -> FeatureOrigin:
    """Return the origin that a file states; raise a ManifestError if it states what cannot be."""
    known = {name: value for name, value in stated.items() if name in FeatureOrigin.model_fields}
    try:
        return FeatureOrigin.model_validate(known | {"format": format, "dim": dim})
    except ValidationError as error:
        raise ManifestError(f"{path}: {describe_faults(error)}; {REMEDY}") from error


def check_finite(path: Path, features: NDArray[np.float32]) -> None:
    """Refuse features that are not finite."""
    finite = np.isfinite(features)
    if not finite.all():
        tile, number = np.argwhere(~finite)[0]
        raise ManifestError(
            f"{path}: feature {number} of tile {tile} is {features[tile, number]}; encode the slide again, in fp32 if "
            "the encoder overflows in a lower precision"
        )


def _check_shape(path: Path, shape: tuple[int, ...]) -> tuple[int, int]:
    """Return N and D of features (N, D), or (1, N, D) as some programs write them."""
    if len(shape) == 3 and shape[0] == 1:
        shape = shape[1:]
    if 0 in shape:
        raise ManifestError(f"{path}: features are {shape}: the slide has no tiles; leave it out")
    if len(shape) != 2:
        raise ManifestError(f"{path}: features are {shape}, but must be (tiles, features of a tile)")
    return shape[0], shape[1]


def _check_coords(path: Path, coords: NDArray[Any], count: int) -> NDArray[np.float64]:
    if coords.shape != (count, 2):
        raise ManifestError(f"{path}: coords are {coords.shape}, but must be {(count, 2)} for {count} tiles; {REMEDY}")
    values = coords.astype(np.float64)
    if not (np.abs(values) <= _MOST_PX).all():
        raise ManifestError(f"{path}: coords are not finite, or too large; {REMEDY}")
    return values


def _convert(path: Path, features: NDArray[Any]) -> NDArray[np.float32]:
    """Return features of any floating point as float32."""
    if not np.issubdtype(features.dtype, np.floating):
        raise ManifestError(f"{path}: features are {features.dtype}, but must be floating point; {REMEDY}")
    return features.astype(np.float32, copy=False)


def _translate_trident(of_features: Mapping[str, Any], of_coords: Mapping[str, Any]) -> dict[str, Any]:
    """Translate attributes of TRIDENT, whose magnification is nominal: 10 µm/px divided by it."""
    size, magnification = of_coords.get("patch_size"), of_coords.get("target_magnification")
    mpp = None if magnification is None else 10 / magnification
    return {
        "encoder": of_features.get("encoder"),
        "tile_px0": of_coords.get("patch_size_level0"),
        "tile_size": size,
        "mpp": mpp,
        "tile_um": None if mpp is None or size is None else size * mpp,
        "overlap": of_coords.get("overlap"),
    }


def _translate_stamp(of_file: Mapping[str, Any]) -> dict[str, Any]:
    """Translate attributes of STAMP; before version 2.1 the side of a tile in µm had another name."""
    before = of_file.get("tile_size") if of_file.get("unit") == "um" else None
    side, size = of_file.get("tile_size_um", before), of_file.get("tile_size_px")
    return {
        "encoder": of_file.get("extractor"),
        "tile_um": side,
        "tile_size": None if size is None else int(size),
        "mpp": None if side is None or size is None else side / size,
    }


def _translate_slideflow(config: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the settings of slideflow. The side of a tile is a number in µm, or a text such as `20x`."""
    size, side = config.get("tile_px"), config.get("tile_um")
    if isinstance(side, str) and isinstance(size, int):
        side = size * 10 / float(side.lower().removesuffix("x"))
    extractor = config.get("extractor")
    name = extractor.get("class") if isinstance(extractor, dict) else None
    return {
        "encoder": None if name is None else str(name).rsplit(".", 1)[-1],
        "tile_um": side,
        "tile_size": size,
        "mpp": side / size if isinstance(side, int | float) and isinstance(size, int) else None,
    }
