"""Feature files: the features that an encoder gave for the tiles of one slide, where the tiles are, and their origin.

Our own format is an HDF5 file as TRIDENT writes it, with more attributes, so TRIDENT reads it too:

- `features`, (N, D) float32, with the fields of `FeatureOrigin` that are known as attributes;
- `coords`, (N, 2) int64, upper left corners in level-0 px, with TRIDENT's attributes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from h5py import h5f
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, PositiveInt, ValidationError

from panda.data.hdf5 import CHECKSUM, build_hdf5, open_hdf5, read_array, write_array
from panda.errors import ManifestError
from panda.files import write_whole
from panda.stored import Digest, PathText, Plain, describe_faults
from panda.wsi.geometry import round_px
from panda.wsi.stain_normalization import NormalizeName

FeatureFormat = Literal["panda", "trident", "stamp", "clam", "slideflow"]

VERSION = 1
"""Version of our own format, the attribute `panda_features` of the file."""

_SAME_SCALE = 0.1
"""Relative difference up to which scales are the same, as for the µm/px of encoders."""


class FeatureOrigin(Plain, frozen=True):
    """What made the features of a file. A field is None if the file does not state it.

    Attributes:
        format: The format of the file.
        dim: Number of features of a tile.
        encoder: Name of the encoder: of our file of it, or what another program wrote.
        tile_px0: Side of a tile in level-0 px.
        tile_um: Side of a tile in µm.
        tile_size: Side of a tile in px, as it was read for the encoder.
        mpp: µm per px of these.
        overlap: Overlap of neighbouring tiles in these px.
        weights: SHA-256 of the weights of the encoder.
        revision: Revision of the weights on their hub.
        transform: How a tile became the input of the encoder.
        pooling: How the output of the encoder became features.
        precision: Precision of the encoder's computation.
        normalize: Stain normalization of the tiles.
        fingerprint: Hash of everything that determines the features.
    """

    format: FeatureFormat
    dim: PositiveInt
    encoder: PathText | None = None
    tile_px0: PositiveFloat | None = None
    tile_um: PositiveFloat | None = None
    tile_size: PositiveInt | None = None
    mpp: PositiveFloat | None = None
    overlap: int | None = Field(default=None, ge=0)
    weights: Digest | None = None
    revision: PathText | None = None
    transform: PathText | None = None
    pooling: PathText | None = None
    precision: PathText | None = None
    normalize: NormalizeName | None = None
    fingerprint: Digest | None = None

    def describe_difference(self, other: FeatureOrigin) -> list[str]:
        """Return why features of another origin cannot be mixed with these, in sentences.

        What one of both does not state is not compared. The precision is not either, because it rounds only.
        """
        faults = []
        for name in ("dim", "encoder", "weights", "revision", "transform", "pooling"):
            own, others = getattr(self, name), getattr(other, name)
            if own is not None and others is not None and own != others:
                faults.append(f"{name} is {own}, but {others} in the other")
        if self.normalize != other.normalize and self.format == other.format == "panda":
            faults.append(f"normalize is {self.normalize or 'none'}, but {other.normalize or 'none'} in the other")
        for name, unit in (("mpp", "µm/px"), ("tile_um", "µm")):
            own, others = getattr(self, name), getattr(other, name)
            if own is not None and others is not None and abs(own / others - 1) > _SAME_SCALE:
                faults.append(f"{name} is {own:.4g} {unit}, but {others:.4g} {unit} in the other")
        return faults


@dataclass(frozen=True, eq=False)
class FeatureFile:
    """The features of the tiles of one slide.

    Attributes:
        slide_id: The slide.
        features: What the encoder gave, (N, D) float32.
        coords: Upper left corners of the tiles, (N, 2) int64, level-0 px; None if the file has none.
        origin: What made the features.
        slide_size: (W, H) of the slide's level 0 in px, None if unknown.
    """

    slide_id: str
    features: NDArray[np.float32]
    coords: NDArray[np.int64] | None
    origin: FeatureOrigin
    slide_size: tuple[int, int] | None = None


def read_features(path: Path) -> NDArray[np.float32]:
    """Read the features of a file alone, (N, D) float32.

    Raises:
        ManifestError: If the file is missing or damaged, or has no features, or some are not finite.
    """
    with open_hdf5(path) as file:
        return _read_features(path, file)


def read_feature_file(path: Path) -> FeatureFile:
    """Read a file of features.

    Raises:
        ManifestError: As for `read_features`, or if its coordinates or its origin do not fit them.
    """
    with open_hdf5(path) as file:
        features = _read_features(path, file)
        origin = _read_origin(path, file, features.shape[1])
        coords = read_array(file, "coords")
    if coords.shape != (len(features), 2):
        raise ManifestError(
            f"{path}: coords are {coords.shape}, but must be {(len(features), 2)} for features {features.shape}; "
            "make the file again with the program that wrote it"
        )
    return FeatureFile(path.stem, features, coords.astype(np.int64), origin)


def read_origin(path: Path) -> tuple[FeatureOrigin, int]:
    """Read what made the features of a file, and the number of its tiles, without the features.

    Raises:
        ManifestError: As for `read_feature_file`.
    """
    with open_hdf5(path) as file:
        count, dim = _check_shape(path, h5py.Dataset(h5py.h5d.open(file, b"features")).shape)
        return _read_origin(path, file, dim), count


def write_feature_file(path: Path, features: FeatureFile, format: FeatureFormat = "panda") -> None:
    """Write the features of a slide, whole or not at all.

    Args:
        path: The file.
        features: The features; the format of their origin is that of the file from which they were read.
        format: Format of the file.

    Raises:
        ManifestError: If features are not finite.
    """
    _check_finite(path, features.features)
    write_whole(path, build_hdf5(lambda file: _write_own(file, features)))


def find_feature_files(folder: Path) -> dict[str, Path]:
    """Find the feature files in a folder: slide id to file.

    Raises:
        ManifestError: If there is no such folder, or it has no feature files.
    """
    found = {path.stem: path for path in sorted(folder.glob("*.h5"))} if folder.is_dir() else {}
    if not found:
        raise ManifestError(f"{folder}: has no feature files (*.h5)")
    return found


def _check_shape(path: Path, shape: tuple[int, ...]) -> tuple[int, int]:
    """Return N and D, or refuse an array that is not (N, D)."""
    if len(shape) != 2 or 0 in shape:
        raise ManifestError(f"{path}: features are {shape}, but must be (tiles, features of a tile) and not empty")
    return shape[0], shape[1]


def _check_finite(path: Path, features: NDArray[Any]) -> None:
    finite = np.isfinite(features)
    if not finite.all():
        tile, number = np.argwhere(~finite)[0]
        raise ManifestError(
            f"{path}: feature {number} of tile {tile} is {features[tile, number]}; encode the slide again, "
            "with engine.precision=fp32 if the encoder overflows in a lower one"
        )


def _read_features(path: Path, file: h5f.FileID) -> NDArray[np.float32]:
    features = read_array(file, "features")
    _check_shape(path, features.shape)
    if not np.issubdtype(features.dtype, np.floating):
        raise ManifestError(f"{path}: features are {features.dtype}, but must be floating point")
    features = features.astype(np.float32, copy=False)
    # A file with a checksum was written by `write_feature_file`, which refuses other values.
    if CHECKSUM not in h5py.File(file)["features"].attrs:
        _check_finite(path, features)
    return features


def _read_origin(path: Path, file: h5f.FileID, dim: int) -> FeatureOrigin:
    attributes = dict(h5py.File(file)["features"].attrs)
    stated = {name: attributes[name] for name in FeatureOrigin.model_fields if name in attributes}
    plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in stated.items()}
    try:
        return FeatureOrigin.model_validate(plain | {"format": "panda", "dim": dim})
    except ValidationError as error:
        raise ManifestError(f"{path}: {describe_faults(error, 'features')}; encode the slide again") from error


def _write_own(file: h5py.File, content: FeatureFile) -> None:
    origin = content.origin
    file.attrs["panda_features"] = VERSION
    features = write_array(file, "features", content.features)
    features.attrs.update({"name": content.slide_id, "savetodir": ""})
    features.attrs.update(origin.model_dump(exclude_none=True, exclude={"format", "dim"}))
    if content.coords is None:
        return
    coords = write_array(file, "coords", content.coords)
    coords.attrs.update({"name": content.slide_id, "savetodir": "", "overlap": origin.overlap or 0})
    if origin.tile_size is not None:
        coords.attrs["patch_size"] = origin.tile_size
    if origin.tile_px0 is not None:
        coords.attrs["patch_size_level0"] = round_px(origin.tile_px0)
    if origin.mpp is not None:
        coords.attrs["target_magnification"] = 10 / origin.mpp
        if origin.tile_um is not None and origin.tile_px0 is not None:
            coords.attrs["level0_magnification"] = 10 * origin.tile_px0 / origin.tile_um
    if content.slide_size is not None:
        coords.attrs.update(dict(zip(("level0_width", "level0_height"), content.slide_size, strict=True)))
