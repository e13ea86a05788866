"""Turn corrected regions of a map into a training mask: `python -m panda.data.corrections out/*/regions.geojson …`.

The regions that `infer.py` wrote, unchanged or corrected and exported again in QuPath, become label masks and a table
for `data=table`. Regions that were not changed give exactly the predicted tumour. If a file has fields, as those of
`panda next`, only what is in its corrected fields is labelled.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from panda.choices import name_command, name_tool
from panda.data.mapped_slide import MappedSlide
from panda.errors import ManifestError, MaskError, PandaError
from panda.files import hold_lock, write_beside
from panda.tables import read_user_table, write_table
from panda.wsi.annotations.source import AnnotationSource, is_annotation_file, is_field, read_annotations
from panda.wsi.geometry import Resolution, axis_scales, ceil_px, cut_blocks, floor_px
from panda.wsi.label_maps import LabelMap, find_label_map, get_label_maps
from panda.wsi.slide import Slide

TABLE, MASKS = "corrections.csv", "masks"
_WHOLE, _OF_FIELDS = "binary", "annotations"
"""Label maps if none is given: for a slide that is corrected as a whole, and for corrected fields."""
_TILE = 512


@dataclass(frozen=True)
class Correction:
    """Corrected regions of a slide, checked, before anything is written.

    Attributes:
        slide: The slide.
        source: The regions.
        resolution: The resolution of the map.
        labels: Name of the label map.
        label_map: The meaning of the mask's codes.
        facts: Where the mask comes from, as columns of the table.
        predicted_px: Tumour of the prediction, in px of the map.
    """

    slide: Slide
    source: AnnotationSource
    resolution: Resolution
    labels: str
    label_map: LabelMap
    facts: dict[str, Any]
    predicted_px: float

    @property
    def cancer_px(self) -> float:
        """Corrected tumour in px of the map; a px that the edge cuts counts in part."""
        counts = np.zeros(4, np.int64)
        for window in cut_blocks(*self.resolution.size):
            is_cancer = np.isin(self.source.read_window(self.resolution, window), self.label_map.cancer)
            for index, px in self.resolution.list_edges(window):
                counts[index] += np.count_nonzero(is_cancer[px])
        return float(self.resolution.weigh_counts(counts))

    def describe(self) -> str:
        """Return the tumour of the mask in words, with what was repaired or ignored."""
        of = f"predicted were {self.predicted_px:g}"
        if fields := self.source.fields:
            named, outside = ("field", "it") if (count := len(fields.codes)) == 1 else ("fields", "them")
            of = f"in {count} corrected {named}; nothing outside {outside} is labelled"
        notes = "".join(f"\n  {note}" for note in self.source.notes)
        return f"{self.slide.slide_id}: tumour of {self.cancer_px:g} px of the map, {of}{notes}"

    def write_mask(self, path: Path) -> None:
        """Write the mask as a tiled TIFF, whose description is the provenance.

        Its px are those of the map, if these are the px of a level of the whole file. Otherwise the mask has a finer
        grid: the centre of each px of the map is in a px of the mask with its code.
        """
        size, columns, rows = self._lay_grid()
        with write_beside(path) as partial, tifffile.TiffWriter(partial, bigtiff=size[0] * size[1] > 2**30) as tif:
            tif.write(
                self._read_tiles(columns, rows),
                shape=(size[1], size[0]),
                dtype=np.uint8,
                tile=(_TILE, _TILE),
                photometric="minisblack",
                compression="adobe_deflate",
                description=json.dumps(self.facts),
                software="panda.data.corrections",
                metadata=None,
            )

    def _lay_grid(self) -> tuple[tuple[int, int], NDArray[np.int64], NDArray[np.int64]]:
        """Return the size of the mask in px, and the column and the row of the map for each of its own."""
        resolution, full = self.resolution, self.slide.dimensions
        if self.slide.bounds is None and not resolution.is_resampled:
            return resolution.size, np.arange(resolution.width), np.arange(resolution.height)
        # A mask of the bounds must have their size, because a smaller one can be taken for that of the whole file.
        step = 1 if self.slide.bounds is not None else max(1, int(resolution.downsample / 2))
        size = ceil_px(full[0] / step), ceil_px(full[1] / step)
        columns, rows = (
            _find_map_px(resolution.downsample / scale, own, of_map)
            for scale, own, of_map in zip(axis_scales(full, size), size, resolution.size, strict=True)
        )
        return size, columns, rows

    def _read_tiles(self, columns: NDArray[np.int64], rows: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
        """Yield the tiles row by row."""
        for top in range(0, len(rows), _TILE):
            of_tile = rows[top : top + _TILE]
            first, count = int(of_tile[0]), int(of_tile[-1] - of_tile[0]) + 1
            for left in range(0, len(columns), _TILE):
                across = columns[left : left + _TILE]
                window = int(across[0]), first, int(across[-1] - across[0]) + 1, count
                codes = self.source.read_window(self.resolution, window)
                yield codes[np.ix_(of_tile - first, across - across[0])]


def _find_map_px(factor: float, own: int, of_map: int) -> NDArray[np.int64]:
    """Return the px of the map for each of `own` px of a mask, of which there are `factor` in one of the map."""
    found = np.minimum(floor_px((np.arange(own) + 0.5) / factor), of_map - 1)
    centres = np.minimum(floor_px((np.arange(of_map) + 0.5) * factor), own - 1)
    found[centres] = np.arange(of_map)
    return found


def read_correction(
    path: Path, slides: Path, labels: str | None = None, *, empty_means_benign: bool = False
) -> Correction:
    """Read corrected regions and check them against their map and their slide.

    Args:
        path: The regions, beside the `quantification.json` of their map.
        slides: The slide, or a folder that holds it, in any sub-folder.
        labels: The label map that gives the code of each class; code 0 is all the rest of the slide. None means
            `annotations` for a file with fields, else `binary`.
        empty_means_benign: A file without any region means a slide without cancer; else it is refused.

    Raises:
        PandaError: If a file is missing or faulty, the slide is another one, or a class is unknown. Without fields, a
            label map whose code 0 is not a label of no cancer is refused too.
    """
    if not path.exists():
        raise MaskError(f"{path}: there is no such file; export the corrected regions to it first")
    if not is_annotation_file(path) or not path.is_file():
        raise MaskError(f"{path}: is no file of annotations (.geojson, .json, .xml, .annotations)")
    made = MappedSlide.read(path.parent)
    slide = made.open_slide(slides)
    file = read_annotations(path)
    has_fields = any(map(is_field, file.annotations))
    labels = labels or (_OF_FIELDS if has_fields else _WHOLE)
    usable = {name: known for name, known in get_label_maps().items() if _has_benign_rest(known) is not has_fields}
    label_map = find_label_map(labels).model_copy(update={"empty_means_benign": empty_means_benign})
    if not has_fields and not _has_benign_rest(label_map):
        raise MaskError(
            f"--labels={labels}: all outside the regions gets code 0, which is no label of no cancer there; give one "
            f"of {', '.join(usable)}"
        )
    facts = {
        "source": str(path.resolve()),
        "source_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "tool": file.tool,
        "checkpoint": made.made_with.checkpoint,
        "map_fingerprint": made.made_with.fingerprint,
        "threshold": made.threshold,
    }
    resolution = slide.choose_resolution(downsample=made.downsample)
    try:
        source = AnnotationSource.open(path, slide, label_map)
    except MaskError as error:
        classes = {found.name for found in file.annotations if not is_field(found)}
        fitting = [name for name, known in usable.items() if all(map(known.find_codes, classes))]
        hint = f"\n--labels={labels}; label maps with all its classes are {', '.join(fitting) or 'none'}"
        raise MaskError(f"{error}{hint if labels not in fitting else ''}") from error
    return Correction(slide, source, resolution, labels, label_map, facts, made.tumor_px)


def _has_benign_rest(label_map: LabelMap) -> bool:
    """Return whether code 0, which all outside the regions gets, means no cancer."""
    return 0 in label_map.names and 0 not in (*label_map.cancer, *label_map.unlabelled)


def write_corrections(corrections: Sequence[Correction], output: Path) -> Path:
    """Write the masks, and their rows into the table of the folder; a row of the same slide keeps its other columns.

    Returns:
        The table, for `data.table`.

    Raises:
        ManifestError: If the table is faulty, or has another slide of the same name. Nothing is written then.
    """
    table = output / TABLE
    with hold_lock(table):
        rows = {row["image_id"]: row for _, row in read_user_table(table, ("image_id",))} if table.exists() else {}
        for found in corrections:
            name, path = found.slide.slide_id, str(found.slide.path.resolve())
            if (before := rows.get(name, {}).get("path", path)) != path:
                raise ManifestError(
                    f"{table}: {name} is {before}, not {path}: give another --output, or correct its path if it moved"
                )
        (output / MASKS).mkdir(parents=True, exist_ok=True)
        for found in corrections:
            mask = Path(MASKS, f"{found.slide.slide_id}_mask.tiff")
            found.write_mask(output / mask)
            row = {"image_id": found.slide.slide_id, "path": str(found.slide.path.resolve()), "mask": mask.as_posix()}
            row |= {"provider": found.labels, **{key: str(value) for key, value in found.facts.items()}}
            rows[found.slide.slide_id] = rows.get(found.slide.slide_id, {}) | row
        write_table(table, rows.values())
    return table


def correct(
    paths: Sequence[Path], slides: Path, output: Path, labels: str | None = None, *, empty_means_benign: bool = False
) -> Path:
    """Write the masks and the table of corrected regions, see `read_correction`; nothing if one file is faulty."""
    corrections, faults = [], []
    for path in paths:
        try:
            corrections.append(read_correction(path, slides, labels, empty_means_benign=empty_means_benign))
        except PandaError as error:
            faults.append(str(error))
    ids = [found.slide.slide_id for found in corrections]
    faults += [
        f"two files are corrections of {name}: give one" for name in sorted({n for n in ids if ids.count(n) > 1})
    ]
    if faults:
        raise MaskError("\n".join(faults))
    table = write_corrections(corrections, output)
    for found in corrections:
        print(found.describe())
    return table


def main(arguments: Sequence[str]) -> int:
    """Run `python -m panda.data.corrections`, see its --help."""
    parser = argparse.ArgumentParser(
        prog=name_tool("panda.data.corrections"), description="Turn corrected regions of maps into training masks."
    )
    parser.add_argument(
        "regions", nargs="+", type=Path, help="regions.geojson of infer.py, or exported again by QuPath"
    )
    parser.add_argument("--slides", required=True, type=Path, help="the slide, or the folder of the slides")
    parser.add_argument("--output", required=True, type=Path, help=f"folder for {MASKS}/ and {TABLE}")
    parser.add_argument(
        "--labels", help=f"label map of the masks (default: {_OF_FIELDS} if the file has fields, else {_WHOLE})"
    )
    parser.add_argument("--empty-means-benign", action="store_true", help="no region means no cancer, else refused")
    given = parser.parse_args(arguments)
    try:
        table = correct(
            given.regions, given.slides, given.output, given.labels, empty_means_benign=given.empty_means_benign
        )
    except PandaError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{error}; check this file, or give another --output", file=sys.stderr)
        return 1
    providers = {row["provider"] for _, row in read_user_table(table, ("provider",))}
    has_unlabelled = any(0 in find_label_map(provider).unlabelled for provider in providers)
    ignore = " data.ignore_background=true" * has_unlabelled
    print(f"train with: {name_command('train')} data=table data.table={table}{ignore}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
