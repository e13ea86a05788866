"""Export a mapped slide for other programs: regions as GeoJSON, the map as OME-TIFF."""

from __future__ import annotations

import json
import tempfile
import uuid
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray

from panda.files import write_beside
from panda.inference.canvas_store import Canvas
from panda.inference.class_colours import TUMOR_COLOUR, Colour, find_class_colour
from panda.inference.codes import STEPS
from panda.inference.polygons import Polygon, Ring, trace
from panda.inference.quantify import Quantification
from panda.inference.regions import Px, Region
from panda.wsi.geometry import Resolution
from panda.wsi.levels import describe_frame
from panda.wsi.runs import Runs, connect_runs
from panda.wsi.slide import Slide

_TILE = 512
_FEATURES = uuid.UUID("7d2cf0a4-5a3e-4c7e-9d52-1d1b6f3a0c11")


def write_geojson(quantification: Quantification, slide: Slide, resolution: Resolution, path: Path | str) -> None:
    """Write the tumour regions as a GeoJSON that QuPath (0.4 and later) opens as annotations.

    The collection's member `frame` says what its level-0 px are. Polygons run along the edges of the working pixels and
    of the slide and have holes, so a feature has the area of its region. A region whose pixels touch only at corners
    becomes a MultiPolygon. A slide's ids are always the same. With several classes of cancer, a region is one feature
    for each of its classes.
    """
    # A foreign member (RFC 7946, section 6.1), which QuPath ignores.
    frame = _write_json(describe_frame(slide.bounds))
    writer = _FeatureWriter(slide, resolution)
    with write_beside(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        file.write(f'{{"type":"FeatureCollection","frame":{frame},"features":[')
        for index, part in enumerate(_list_parts(quantification)):
            file.write("," * (index > 0) + writer.describe(part))
        file.write("]}")


@dataclass(frozen=True)
class _Part:
    """The px of one class in a region.

    `mark` is the end of its id, `name` the class, and `polygons` are in working px.
    """

    mark: str
    name: str
    colour: Colour
    region: Region
    polygons: Sequence[Polygon]
    measurements: dict[str, float]


def _list_parts(quantification: Quantification) -> Iterator[_Part]:
    """Yield the parts of each region in turn: one for each class, or the whole region if there is one class."""
    # By the first px of a region: their order differs if px at the edge count in part.
    if not quantification.classes:
        polygons = quantification.outlines.regions
        for region in quantification.regions:
            yield _Part(
                f"{region.id}", "Tumor", TUMOR_COLOUR, region, polygons[region.start_px], _list_measurements(region)
            )
        return
    traced = _trace_classes(quantification)
    for region in quantification.regions:
        for held, polygons, area in zip(quantification.classes, traced, region.class_px, strict=True):
            if area:
                mark, colour = f"{region.id}/{held.name}", find_class_colour(held.patterns)
                measurements = _list_class_measurements(region, area)
                yield _Part(mark, held.name, colour, region, polygons[region.start_px], measurements)


def _trace_classes(quantification: Quantification) -> list[dict[tuple[int, int], list[Polygon]]]:
    """Return for each class its polygons in each region, by `Region.start_px`."""
    connectivity = quantification.settings.connectivity
    objects = connect_runs(Runs.from_mask(quantification.mask_clean), connectivity)
    starts = objects.runs.number_places(objects.runs.left)
    first = [(int(x), int(y)) for x, y in objects.start]
    found = []
    for number in range(1, len(quantification.classes) + 1):
        polygons: defaultdict[tuple[int, int], list[Polygon]] = defaultdict(list)
        for (x, y), pieces in trace(quantification.class_map, connectivity, number).regions.items():
            run = np.searchsorted(starts, y * (objects.runs.shape[1] + 1) + x, side="right") - 1
            polygons[first[objects.number[run]]] += pieces
        found.append(dict(polygons))
    return found


class _FeatureWriter:
    """Writes parts as features. Corners are many and lists of them are slow, so they become text without lists."""

    def __init__(self, slide: Slide, resolution: Resolution) -> None:
        self._slide_id = slide.slide_id
        self._x, self._y = (
            _list_numbers(np.minimum(np.arange(side + 1), extent) * resolution.downsample)
            for side, extent in zip(resolution.size, resolution.extent, strict=True)
        )

    def describe(self, part: _Part) -> str:
        """Return the feature of a part as JSON."""
        polygons = [f"[{','.join(map(self._describe_ring, polygon))}]" for polygon in part.polygons]
        several = len(polygons) > 1
        kind, coordinates = ("MultiPolygon", f"[{','.join(polygons)}]") if several else ("Polygon", polygons[0])
        mark = _write_json(str(uuid.uuid5(_FEATURES, f"{self._slide_id}/{part.mark}")))
        properties = {
            "objectType": "annotation",
            "name": f"{part.name} {part.region.id}",
            "classification": {"name": part.name, "color": list(part.colour)},
            "measurements": part.measurements,
        }
        geometry = f'{{"type":"{kind}","coordinates":{coordinates}}}'
        return f'{{"type":"Feature","id":{mark},"geometry":{geometry},"properties":{_write_json(properties)}}}'

    def _describe_ring(self, ring: Ring) -> str:
        x, y = self._x, self._y
        corners = [f"[{x[column]},{y[row]}]" for column, row in zip(*ring.T.tolist(), strict=True)]
        return f"[{','.join([*corners, corners[0]])}]"


def _list_numbers(values: NDArray[np.floating[Any]]) -> list[str]:
    """Return numbers as JSON has them, rounded to 3 digits."""
    return [repr(value) for value in np.round(values, 3).tolist()]


def _write_json(content: Any) -> str:
    return json.dumps(content, allow_nan=False, separators=(",", ":"), ensure_ascii=False)


def _list_measurements(region: Region) -> dict[str, float]:
    """Return the figures of a region under the names that QuPath lists; area and diameter need µm/px."""
    known = {}
    if region.area_mm2 is not None and region.length_mm is not None:
        known = {"Area µm^2": region.area_mm2 * 1e6, "Max diameter µm": region.length_mm * 1e3}
    return known | {
        "Area working px": region.area_px,
        "Mean tumor probability": region.mean_probability,
        "Max tumor probability": region.max_probability,
    }


def _list_class_measurements(region: Region, area: Px) -> dict[str, float]:
    """Return the figures of one class in a region, and the number of the region."""
    known = {} if region.area_mm2 is None else {"Area µm^2": region.area_mm2 * 1e6 * area / region.area_px}
    return known | {
        "Area working px": area,
        "Region": region.id,
        "% of region": 100 * area / region.area_px,
        "Mean tumor probability of region": region.mean_probability,
    }


def write_ome_tiff(canvas: Canvas, slide: Slide, path: Path | str) -> None:
    """Write the probability map as a pyramidal OME-TIFF of uint8: `round(255 × probability)`.

    With several classes of cancer there is a channel for the tumour and one for each class, by name. Levels halve
    until one tile holds the whole slide. They are in SubIFDs as OME asks; QuPath, Bio-Formats and tifffile find them
    there, OpenSlide opens level 0 only. Pixels that were not scored are 0. The physical pixel size is left out if
    µm/px is unknown. Each level waits in an unnamed file until the next one is made, so that memory holds one row of
    tiles at most.
    """
    resolution = canvas.resolution
    height, width = canvas.shape
    levels = 1 + (-(-max(height, width) // _TILE) - 1).bit_length()
    names = ("tumour", *(() if canvas.classes.is_binary else canvas.classes.cancer_names))
    several = len(names) > 1
    map_id = uuid.uuid5(_FEATURES, f"{slide.slide_id}/{canvas.fingerprint}")  # the same map gives the same bytes
    metadata: dict[str, Any] = {
        "axes": "CYX" if several else "YX",
        "Name": f"{slide.slide_id} tumour probability x 255",
        "Description": f"{resolution.downsample:g} {describe_frame(slide.bounds)} per px",
        "UUID": str(map_id),
        "Channel": {"Name": [f"{name} probability x 255" for name in names]},
    }
    if several:
        colours = [find_class_colour(canvas.classes.patterns[name]) for name in names[1:]]
        metadata["Channel"]["Color"] = [_encode_colour(colour) for colour in ((255, 255, 255), *colours)]
    if resolution.mpp is not None:
        for axis, mpp in zip("XY", resolution.mpp, strict=True):
            metadata |= {f"PhysicalSize{axis}": mpp, f"PhysicalSize{axis}Unit": "µm"}
    target = Path(path).parent
    target.mkdir(parents=True, exist_ok=True)
    with (
        write_beside(path) as partial,
        tifffile.TiffWriter(partial, ome=True, bigtiff=True) as tif,
        tempfile.TemporaryFile(dir=target) as first,
        tempfile.TemporaryFile(dir=target) as second,
    ):
        options = _make_tiff_options(resolution, (len(names), height, width))
        tif.write(_read_base_tiles(canvas, first), subifds=levels - 1, metadata=metadata, **options)
        source, following = first, second
        for number in range(1, levels):
            height, width = -(-height // 2), -(-width // 2)
            shape = len(names), height, width
            options = _make_tiff_options(resolution, shape, 2**number)
            tif.write(_read_smaller_tiles(source, shape, following), subfiletype=1, metadata=None, **options)
            source, following = following, source


def _encode_colour(colour: Colour) -> int:
    """Return a colour as OME writes it: the bytes of RGBA as a signed number."""
    return int.from_bytes(bytes((*colour, 255)), "big", signed=True)


def _make_tiff_options(resolution: Resolution, shape: tuple[int, int, int], factor: int = 1) -> dict[str, Any]:
    """Return the options of a level of (channels, height, width)."""
    options: dict[str, Any] = {"shape": shape if shape[0] > 1 else shape[1:], "dtype": np.uint8, "tile": (_TILE, _TILE)}
    options |= {"photometric": "minisblack", "compression": "adobe_deflate", "predictor": True}
    options["compressionargs"] = {"level": 1}  # a higher level takes three times as long, for a tenth
    if resolution.mpp is not None:
        per_cm = [1e4 / (mpp * factor) for mpp in resolution.mpp]
        options |= {"resolution": tuple(per_cm), "resolutionunit": "CENTIMETER"}
    return options


def _read_base_tiles(canvas: Canvas, following: IO[bytes]) -> Iterator[NDArray[np.uint8]]:
    """Yield the tiles of level 0 row by row, channel after channel, and write the rows of the next level."""
    height, width = canvas.shape
    channels = 0 if canvas.classes.is_binary else len(canvas.classes.cancer_names)
    for channel in range(1 + channels):
        for y0 in range(0, height, _TILE):
            rows = min(_TILE, height - y0)
            half = np.zeros((-(-rows // 2), -(-width // 2)), np.uint8)
            for x0 in range(0, width, _TILE):
                window = x0, y0, min(_TILE, width - x0), rows
                codes = canvas.read_class_codes(*window)[channel - 1] if channel else canvas.read_codes(*window)
                part = _convert_to_bytes(codes)
                half[:, x0 // 2 : x0 // 2 + _TILE // 2] = _halve(part)
                if x0 + _TILE >= width:  # before the last tile: the generator is not resumed after it
                    following.write(half.data)
                yield _pad(part)


def _convert_to_bytes(codes: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Return `round(255 × probability)` of the codes of a canvas; 0 for a pixel that was not scored."""
    step = 255 / STEPS
    return np.asarray(cv2.convertScaleAbs(codes, alpha=step, beta=-step), np.uint8)  # code 0 gives round(step), 0


def _read_smaller_tiles(
    source: IO[bytes], shape: tuple[int, int, int], following: IO[bytes]
) -> Iterator[NDArray[np.uint8]]:
    """Yield the tiles of a reduced level of (channels, height, width) from its file, and write the next level."""
    source.seek(0)
    following.seek(0)
    channels, height, width = shape
    for _ in range(channels):
        for y0 in range(0, height, _TILE):
            rows = min(_TILE, height - y0)
            band = np.frombuffer(source.read(rows * width), np.uint8).reshape(rows, width)
            following.write(_halve(band).data)
            for x0 in range(0, width, _TILE):
                yield _pad(band[:, x0 : x0 + _TILE])


def _pad(part: NDArray[np.uint8]) -> NDArray[np.uint8]:
    tile = np.zeros((_TILE, _TILE), np.uint8)
    tile[: part.shape[0], : part.shape[1]] = part
    return tile


def _halve(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return averages of 2 × 2 px; an odd last row or column is doubled first."""
    height, width = image.shape
    even = cv2.copyMakeBorder(image, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
    # OpenCV adds four px and 2, and divides by 4.
    return np.asarray(
        cv2.resize(even, (even.shape[1] // 2, even.shape[0] // 2), interpolation=cv2.INTER_AREA), np.uint8
    )
