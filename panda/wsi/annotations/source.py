"""The annotations of a slide as a source of label codes."""

from __future__ import annotations

import logging
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from panda.wsi.annotations.file import Annotation, AnnotationFile
from panda.wsi.annotations.geojson import parse_geojson
from panda.wsi.annotations.raster import Raster
from panda.wsi.annotations.xml_forms import parse_xml
from panda.wsi.geometry import Resolution, ceil_px, cut_blocks, mean_mpp, round_px
from panda.wsi.label_maps import LabelMap
from panda.wsi.label_source import LabelSource, OnSlide
from panda.wsi.slide import Slide

log = logging.getLogger(__name__)

_PARSERS = {".geojson": parse_geojson, ".json": parse_geojson, ".xml": parse_xml, ".annotations": parse_xml}
ANNOTATION_SUFFIXES = tuple(_PARSERS)
"""Suffixes of the files that are annotations."""

CORRECTED, TO_CORRECT = "Corrected", "To correct"
"""Classes of a field: its annotations are complete, or still to be corrected."""
_FIELDS = tuple(name.casefold() for name in (CORRECTED, TO_CORRECT))

FAR = 0.1
"""Share of the slide's side by which annotations may reach past its edge."""
_MPP_TOLERANCE = 0.05
_OF_FIELDS = "fields_"


def is_annotation_file(path: Path) -> bool:
    """Return whether a label file is a file of annotations, by its suffix."""
    return path.suffix.lower() in ANNOTATION_SUFFIXES


def describe_classes(path: Path | None, label_map: LabelMap) -> dict[str, list[int]]:
    """Return what decides the codes of a label file by the names of classes, for fingerprints; {} for a mask."""
    return label_map.describe_classes() if path is not None and is_annotation_file(path) else {}


def read_annotations(path: Path) -> AnnotationFile:
    """Read a file of annotations, whose faults are in the result.

    Raises:
        MaskError: If the file cannot be read at all.
    """
    return _PARSERS[path.suffix.lower()](path)


class AnnotationSource(LabelSource):
    """The codes of the annotations of a slide, opened with `AnnotationSource.open`.

    A px has the code of the uppermost annotation that holds its centre, or code 0. If the slide's edge cuts a px, the
    centre of the part on the slide decides. The areas stay in memory, so a pickled source needs no file.

    If the file has fields, areas of the class `CORRECTED`, its annotations are complete in these: the rest of a field
    is labelled as no cancer. All outside the fields has code 0, which is unlabelled.

    Attributes:
        path: The file.
        codes: The codes that areas have.
        notes: What was repaired or ignored, one sentence each.
        fields: The fields, None if the file has none.
    """

    def __init__(
        self, path: Path, raster: Raster, background: int, notes: tuple[str, ...], fields: Raster | None = None
    ) -> None:
        super().__init__(path)
        self.codes = frozenset(raster.codes.tolist())
        self.notes = notes
        self.fields = fields
        self._raster = raster
        self._background = background

    @classmethod
    def open(cls, path: Path, slide: Slide, label_map: LabelMap) -> AnnotationSource:
        """Open the annotations of a slide.

        Args:
            path: A file with one of `ANNOTATION_SUFFIXES`.
            slide: The slide they were drawn on.
            label_map: Gives the code of each class, by its names and aliases in any case.

        Raises:
            MaskError: With all faults of the file: coordinates that are no numbers, areas without an extent or outside
                the slide, unknown classes, no annotation at all, only fields that are not corrected.
        """
        file = read_annotations(path)
        codes = _find_codes(file, label_map)
        _move_to_slide(file, slide)
        background, fields = 0, None
        if any(map(is_field, file.annotations)):
            background, fields = _find_benign_code(file, label_map), _find_fields(file)
        elif not file.annotations and not file.faults:
            background = _find_code_of_empty(file, label_map)
        file.raise_faults()
        notes = (*file.notes, *([f"ignored: {ignored}"] if (ignored := file.describe_ignored()) else []))
        if notes:
            log.warning("%s: %s", path, "; ".join(notes))
        coded = [(found.polygon, code) for found, code in zip(file.annotations, codes, strict=True) if code is not None]
        raster = Raster([area for area, _ in coded], [code for _, code in coded])
        return cls(path, raster, background, notes, fields)

    def save(self, path: Path) -> None:
        """Write the areas as arrays (`.npz`), which open faster than the file."""
        arrays: dict[str, Any] = {"background": self._background, **self._raster.arrays}
        if self.fields is not None:
            arrays |= {_OF_FIELDS + name: values for name, values in self.fields.arrays.items()}
        with path.open("wb") as file:
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path: Path, saved: Path) -> AnnotationSource | None:
        """Return the annotations of a file from what `save` wrote; None if there is none, or it is damaged."""
        try:
            with saved.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                of_fields = {name.removeprefix(_OF_FIELDS): arrays[name] for name in arrays if _OF_FIELDS in name}
                fields = Raster.from_arrays(of_fields) if of_fields else None
                return cls(path, Raster.from_arrays(arrays), int(arrays["background"]), (), fields)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None

    def read(
        self, resolution: Resolution, location: tuple[int, int], size: tuple[int, int]
    ) -> tuple[NDArray[np.uint8], OnSlide]:
        """Read codes, see `LabelSource.read`."""
        left, top = (start / resolution.downsample for start in location)
        corner = (left, top) if resolution.is_resampled else (round_px(left), round_px(top))
        return self._draw(resolution, corner, size)

    def read_window(self, resolution: Resolution, window: tuple[int, int, int, int]) -> NDArray[np.uint8]:
        """Read the codes of a window x, y, width, height in working px, 0 past the edge; (height, width) uint8."""
        return self._draw(resolution, window[:2], window[2:])[0]

    def _draw(
        self, resolution: Resolution, corner: tuple[float, float], size: tuple[int, int]
    ) -> tuple[NDArray[np.uint8], OnSlide]:
        """Draw a window whose corner is in working px, in blocks, which bounds the memory."""
        columns, x = _find_centres(resolution, 0, corner[0], size[0])
        rows, y = _find_centres(resolution, 1, corner[1], size[1])
        out = np.zeros((size[1], size[0]), np.uint8)
        inside = out[rows, columns]
        for x0, y0, width, height in cut_blocks(x.size, y.size):
            points = x[x0 : x0 + width], y[y0 : y0 + height]
            drawn = self._raster.draw(*points, self._background)
            if self.fields is not None:
                drawn *= self.fields.draw(*points)
            inside[y0 : y0 + height, x0 : x0 + width] = drawn
        return out, (rows, columns)

    def close(self) -> None:
        """Do nothing: the file was read as a whole."""


def _find_centres(resolution: Resolution, axis: int, first: float, count: int) -> tuple[slice, NDArray[np.float64]]:
    """Return which of `count` working px from `first` on are on the slide, and their centres in level-0 px.

    For a px that is partly past the edge it is the centre of its part on the slide.
    """
    last = resolution.extent[axis]
    on_slide = slice(*(min(max(ceil_px(edge - first), 0), count) for edge in (-0.5, last)))
    centres = first + np.arange(on_slide.start, on_slide.stop) + 0.5
    return on_slide, np.minimum(centres, last - resolution.part[axis] / 2) * resolution.downsample


def is_field(annotation: Annotation) -> bool:
    """Return whether an annotation is a field, by its class in any case."""
    return annotation.name.strip().casefold() in _FIELDS


def _find_fields(file: AnnotationFile) -> Raster:
    """Return the corrected fields; it is a fault if there are only others, which are noted."""
    fields = [found for found in file.annotations if is_field(found)]
    corrected = [found.polygon for found in fields if found.name.strip().casefold() == _FIELDS[0]]
    if not corrected:
        have = "1 field has" if len(fields) == 1 else f"{len(fields)} fields have"
        file.faults.append(
            f"its {have} the class {TO_CORRECT!r}: give the class {CORRECTED!r} to each field whose "
            "annotations are complete"
        )
    elif open_fields := len(fields) - len(corrected):
        file.notes.append(f"{open_fields} of {len(fields)} fields have the class {TO_CORRECT!r} and do not count")
    return Raster(corrected, [1] * len(corrected))


def _find_benign_code(file: AnnotationFile, label_map: LabelMap) -> int:
    """Return the code of no cancer, for the rest of fields; a label map that does not fit fields is a fault."""
    benign = _list_benign_codes(label_map)
    if 0 not in label_map.unlabelled or not benign:
        file.faults.append(
            "it has fields, outside of which nothing is labelled: give a label map whose code 0 is unlabelled and that "
            "has a code of no cancer, such as annotations"
        )
    return next(iter(benign), 0)


def _find_codes(file: AnnotationFile, label_map: LabelMap) -> list[int | None]:
    """Return the code of each annotation, None for fields; unknown classes are added to the faults."""
    if 0 not in label_map.names:
        file.faults.append("the label map has no code 0, which px without an annotation get: add it to names")
    named = dict.fromkeys(found.name for found in file.annotations if not is_field(found))
    by_class = {name: label_map.find_codes(name) for name in named}
    for name, codes in by_class.items():
        of_class = [found.where for found in file.annotations if found.name == name]
        place = f"class {name!r} of {len(of_class)} annotation{'s' * (len(of_class) > 1)} ({of_class[0]})"
        if not codes:
            file.faults.append(
                f"{place} is none of {label_map.list_classes()}: rename it, or add it to names or aliases of the label "
                "map in conf/label_maps"
            )
        elif len(codes) > 1:
            file.faults.append(f"{place} is the name of codes {codes} of the label map: rename one of them there")
    return [None if is_field(found) else next(iter(by_class[found.name]), 0) for found in file.annotations]


def _list_benign_codes(label_map: LabelMap) -> list[int]:
    return [code for code in sorted(label_map.names) if code not in (*label_map.cancer, *label_map.unlabelled)]


def _find_code_of_empty(file: AnnotationFile, label_map: LabelMap) -> int:
    """Return the code of every px of a file without annotations; a fault is added if that is not allowed."""
    ignored = file.describe_ignored()
    benign = _list_benign_codes(label_map)
    if label_map.empty_means_benign and benign and not ignored:
        return benign[0]
    found = f"no annotation with a class, only {ignored}" if ignored else "no annotation"
    file.faults.append(
        f"it holds {found}: annotate the slide, or leave it out; if a file without any object means a slide without "
        "cancer, say so with empty_means_benign: true in its label map, in training and the audit also with "
        "data.empty_means_benign=true (of corrections: --empty-means-benign)"
    )
    return 0


def _move_to_slide(file: AnnotationFile, slide: Slide) -> None:
    """Move the annotations into the slide's frame; areas outside the slide are added to the faults."""
    if file.mpp is not None and slide.mpp is not None and abs(file.mpp / mean_mpp(slide.mpp) - 1) > _MPP_TOLERANCE:
        file.faults.append(
            f"it states {file.mpp:g} µm/px, the slide has {mean_mpp(slide.mpp):.4g}: these are the annotations of "
            "another slide, check the pairing of the files"
        )
    if not file.annotations:
        return
    x, y = slide.bounds[:2] if slide.bounds is not None and file.frame == "file" else (0, 0)
    if x or y:
        file.annotations = [
            Annotation(found.name, shapely.transform(found.polygon, lambda corners: corners - (x, y)), found.where)
            for found in file.annotations
        ]
    boxes = shapely.bounds(np.asarray([found.polygon for found in file.annotations], object))
    width, height = slide.dimensions
    outside = (boxes[:, 0] >= width) | (boxes[:, 1] >= height) | (boxes[:, 2] <= 0) | (boxes[:, 3] <= 0)
    (left, top), (right, bottom) = boxes[:, :2].min(axis=0).tolist(), boxes[:, 2:].max(axis=0).tolist()
    size = f"the slide is {width} x {height} px"
    if min(left + FAR * width, top + FAR * height, (1 + FAR) * width - right, (1 + FAR) * height - bottom) < 0:
        file.faults.append(
            f"the annotations reach from ({left:.6g}, {top:.6g}) to ({right:.6g}, {bottom:.6g}), {size}: these are the "
            "annotations of another slide, or not in level-0 px; check the pairing of the files"
        )
    elif outside.any():
        for number in np.flatnonzero(outside).tolist():
            box = ", ".join(f"{edge:.6g}" for edge in boxes[number])
            file.faults.append(
                f"{file.annotations[number].where}: is outside the slide (its box is {box}, {size}): move or delete it"
            )
    elif (past := (boxes < 0).any(axis=1) | (boxes[:, 2] > width) | (boxes[:, 3] > height)).any():
        first = file.annotations[int(np.argmax(past))].where
        file.notes.append(f"{past.sum()} areas reach past the slide's edge ({first}); the part on the slide counts")
