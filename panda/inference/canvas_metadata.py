"""The metadata files of a canvas: a group that readers of OME-Zarr (NGFF 0.5) open, around one zarr array."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

import zarr
from pydantic import Field, JsonValue, NonNegativeInt, ValidationError, model_validator
from pydantic_core import PydanticCustomError, from_json, to_json
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from panda.errors import CheckpointError
from panda.inference.class_colours import find_class_colour
from panda.inference.codes import STEPS
from panda.stored import PatchSide, Plain, describe_faults
from panda.wsi.classes import BINARY, ClassSet
from panda.wsi.geometry import Resolution

FORMAT = 3
"""Version of the files; a canvas of another version is refused."""

CHUNK = 512
"""Side of a stored chunk in working px."""

LEVEL = 5
"""Level of LZ4 for shuffled bytes; on maps of a UNet level 3 is slower, and its chunks have about the same size."""

METADATA = "zarr.json"
ARRAY = "0"
"""Folder of the array in the folder of a canvas."""

_GROUP = {"zarr_format": 3, "node_type": "group"}
AGAIN = "map the slide again with infer.py, which replaces it"


class StoredSize(Plain, frozen=True):
    """Number and bytes of the chunks on the disk."""

    chunks: NonNegativeInt
    bytes: NonNegativeInt

    @classmethod
    def from_chunks(cls, chunks: Mapping[tuple[int, ...], int]) -> Self:
        """Return the size of what `panda.inference.canvas_store.measure_chunks` returns."""
        return cls(chunks=len(chunks), bytes=sum(chunks.values()))


class CanvasMetadata(Plain, frozen=True):
    """Attributes of the zarr group, as they were given to its `CanvasWriter`; binary classes are not stated."""

    fingerprint: Annotated[str, Field(min_length=1)]
    resolution: Resolution
    patch_size: PatchSide
    overlap: NonNegativeInt
    attrs: dict[str, JsonValue]
    classes: Annotated[ClassSet, Field(exclude_if=lambda classes: classes.is_binary)] = BINARY
    stored: Annotated[StoredSize | None, Field(exclude_if=lambda stored: stored is None)] = None

    @model_validator(mode="after")
    def _check_overlap(self) -> Self:
        if self.overlap >= self.patch_size:
            raise PydanticCustomError("overlap", "overlap must be less than patch_size")
        return self

    def describe_files(self) -> dict[str, bytes]:
        """Return the metadata files of the canvas, by their path in its folder."""
        own = {"panda_canvas": FORMAT, **self.model_dump(mode="json")}
        attributes = {"ome": _describe_image(self.resolution, self.classes), **own}
        return {
            METADATA: json.dumps({**_GROUP, "attributes": attributes}, allow_nan=False, indent=2).encode(),
            f"{ARRAY}/{METADATA}": describe_array(self.resolution, self.classes),
        }


def read_metadata(path: Path) -> CanvasMetadata:
    """Read the metadata of the canvas in a zarr folder, and check that its files are those of a writer.

    Raises:
        CheckpointError: If a file is missing or differs, or is of another version.
    """
    file = path / METADATA
    try:
        content = from_json(file.read_bytes())
        metadata = _parse_attributes(content)
        array = f"{ARRAY}/{METADATA}"
        right = from_json(describe_array(metadata.resolution, metadata.classes))
        faults = _describe_differences(from_json((path / array).read_bytes()), right, f"{array}: ")
        shown = {"attributes.ome": content["attributes"].get("ome")}
        image = {"attributes.ome": _describe_image(metadata.resolution, metadata.classes)}
        faults += _describe_differences({**content, **shown}, {**_GROUP, **image})
    except ValidationError as error:
        raise CheckpointError(f"{file}: {describe_faults(error, 'attributes')}; {AGAIN}") from error
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}; {AGAIN}") from error
    except Exception as error:  # JSON and the file system have errors of their own
        raise CheckpointError(f"{file}: this is no canvas, or a broken one ({error}); {AGAIN}") from error
    if faults:
        raise CheckpointError(f"{file}: {'; '.join(faults)}; {AGAIN}")
    return metadata


def _parse_attributes(content: Mapping[str, Any]) -> CanvasMetadata:
    attributes = content.get("attributes")
    if not isinstance(attributes, dict):
        raise CheckpointError(f"attributes is {attributes!r}, but must be an object")
    # Before version 3, the array itself had the attributes.
    if (version := attributes.get("panda_canvas")) != FORMAT:
        raise CheckpointError(f"attributes.panda_canvas is {version!r}, this version reads {FORMAT}")
    own = {key: value for key, value in attributes.items() if key not in ("panda_canvas", "ome")}
    return CanvasMetadata.model_validate_json(to_json(own))


def _describe_differences(found: Mapping[str, Any], right: Mapping[str, Any], where: str = "") -> list[str]:
    """Return the keys of metadata that differ, with both values; `attributes` is left out."""
    keys = sorted((found.keys() | right.keys()) - {"attributes"})
    different = [key for key in keys if found.get(key) != right.get(key)]
    return [f"{where}{key} is {found.get(key)!r}, but must be {right.get(key)!r}" for key in different]


def describe_array(resolution: Resolution, classes: ClassSet = BINARY) -> bytes:
    """Return the metadata file of the array of a canvas."""
    shape = resolution.height, resolution.width
    planes = () if classes.is_binary else (len(classes.cancer_names),)
    array = zarr.create_array(
        MemoryStore(),
        shape=(*planes, *shape),
        chunks=(*(1 for _ in planes), *(min(CHUNK, side) for side in shape)),
        dtype="uint16",
        compressors=(BloscCodec(typesize=2, cname="lz4", clevel=LEVEL, shuffle="shuffle"), Crc32cCodec()),
        fill_value=0,
        dimension_names=(*("c" for _ in planes), "y", "x"),
    )
    return array.metadata.to_buffer_dict(default_buffer_prototype())[METADATA].to_bytes()


def _describe_image(resolution: Resolution, classes: ClassSet) -> dict[str, Any]:
    """Return what NGFF 0.5 says of the array: axes, size and place of its px, names of its channels.

    Coordinates are those of px centres in µm, from the centre of the first level-0 px of the slide, as they are in
    NGFF images of the slide. They are working px without a unit if µm/px is unknown.
    """
    channels = ("tumour",) if classes.is_binary else classes.cancer_names
    axes: list[dict[str, str]] = [] if classes.is_binary else [{"name": "c", "type": "channel"}]
    scale, shift = [1.0] * len(axes), [0.0] * len(axes)
    for name, mpp in zip("yx", (resolution.mpp or (1.0, 1.0))[::-1], strict=True):
        axes.append({"name": name, "type": "space"} | ({"unit": "micrometer"} if resolution.mpp else {}))
        scale.append(mpp)
        shift.append((mpp - mpp / resolution.downsample) / 2 if resolution.mpp else 0.0)
    transformations = [{"type": "scale", "scale": scale}, {"type": "translation", "translation": shift}]
    dataset = {"path": ARRAY, "coordinateTransformations": transformations}
    return {
        "version": "0.5",
        "multiscales": [{"name": "tumour probability", "axes": axes, "datasets": [dataset]}],
        "omero": {"channels": [_describe_channel(name, classes) for name in channels]},
    }


def _describe_channel(name: str, classes: ClassSet) -> dict[str, Any]:
    """Return how a viewer shows a channel: codes from 1 to the highest, black is also what was not scored."""
    colour = (255, 255, 255) if classes.is_binary else find_class_colour(classes.patterns[name])
    window = {"min": 0, "max": STEPS + 1, "start": 1, "end": STEPS + 1}
    return {
        "label": f"{name} probability: (code - 1) / {STEPS}, 0 is not scored",
        "color": "{:02X}{:02X}{:02X}".format(*colour),
        "window": window,
        "active": True,
    }
