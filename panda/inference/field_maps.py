"""Open the maps of slides by several checkpoints, from the folders that `infer.py` wrote."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from panda.data.manifest import SlideRecord
from panda.data.mapped_slide import RESULT_FILE, MappedSlide
from panda.errors import ManifestError
from panda.files import find_paths
from panda.inference.field_scores import FIGURES, Areas, Reason, SlideMaps
from panda.inference.slide_canvas import open_result_canvas
from panda.wsi.geometry import Resolution
from panda.wsi.label_maps import LabelMap
from panda.wsi.label_mask import LabelMask
from panda.wsi.slide import Slide
from panda.wsi.tissue import find_tissue

_REMEDY = "give folders that infer.py wrote"


@dataclass(frozen=True)
class MapSource:
    """Where the maps of slides are.

    Attributes:
        folders: Folders that `infer.py` wrote for the same slides, one for each checkpoint.
        slides: The folder of the slides, or the only slide.
        records: The slides that have a label.
        near: Distance from the threshold below which a probability is uncertain.
    """

    folders: Sequence[Path]
    slides: Path
    records: Sequence[SlideRecord]
    near: float


@dataclass(frozen=True)
class OpenedSlide:
    """A slide with its maps.

    Attributes:
        slide_id: Its name in the folders.
        slide: The slide.
        maps: Its maps.
        grade_confidence: Confidence of its grade in the first folder, None without one.
    """

    slide_id: str
    slide: Slide
    maps: SlideMaps
    grade_confidence: float | None

    def convert(self, areas: Areas, reason: Reason) -> dict[str, float | None]:
        """Return areas in mm², as columns of a table, the score first."""
        area = self.maps.resolution.pixel_area_um2
        assert area is not None
        score = sum(areas.get(name, 0.0) for name in FIGURES[reason])
        names = ("tissue", *(name for figures in FIGURES.values() for name in figures))
        known = {"score": score} | {str(name): px for name, px in areas.items()}
        return {f"{name}_mm2": known[name] * area / 1e6 if name in known else None for name in ("score", *names)}


def find_slides(folders: Sequence[Path]) -> list[str]:
    """Return the names of the slides, which all folders have.

    Raises:
        ManifestError: If a folder has no mapped slide, or another one than the first has.
    """
    found, faults = [], list[str]()
    for folder in folders:
        found.append({path.parent.name for path in find_paths(f"{glob.escape(str(folder))}/*/{RESULT_FILE}")})
        if not found[-1]:
            faults.append(f"{folder} has no {RESULT_FILE} in any sub-folder: {_REMEDY}")
        for one, other, names in (
            (folders[0], folder, found[0] - found[-1]),
            (folder, folders[0], found[-1] - found[0]),
        ):
            if names and found[-1] and found[0]:
                shown = ", ".join(sorted(names)[:5]) + " …" * (len(names) > 5)
                faults.append(f"{shown}: in {one}, not in {other}; give folders of the same slides")
    if faults:
        raise ManifestError("\n".join(faults))
    return sorted(found[0])


@contextmanager
def open_maps(source: MapSource, slide_id: str) -> Iterator[OpenedSlide]:
    """Open a slide with its maps and its label, and close the files at the end.

    Raises:
        PandaError: If the maps are of different files, resolutions or classes, µm/px is unknown, or a file is faulty.
    """
    folders = [folder / slide_id for folder in source.folders]
    mapped = [MappedSlide.read(folder, _REMEDY) for folder in folders]
    canvases = [open_result_canvas(folder, own.canvas) for folder, own in zip(folders, mapped, strict=True)]
    for folder, own, canvas in zip(folders, mapped, canvases, strict=True):
        for what, is_, first in (
            ("file", *(f"{of.file.name} of {of.file.bytes} bytes" for of in (own, mapped[0]))),
            ("resolution", _describe(canvas.resolution), _describe(canvases[0].resolution)),
            ("classes", canvas.classes.names, canvases[0].classes.names),
        ):
            if is_ != first:
                raise ManifestError(
                    f"{folder}: {what} of the map is {is_}, of {folders[0]} {first}: give maps of the same slides at "
                    "one resolution, with the same classes"
                )
    if canvases[0].resolution.mpp is None:
        raise ManifestError(
            f"{folders[0]}: µm/px of the slide is unknown, so no field has a size in µm: map it with mpp_override"
        )
    with mapped[0].open_slide(source.slides) as slide:
        label = _open_label(source, slide_id, slide, mapped[0].label_maps)
        try:
            grade = mapped[0].grade
            maps = SlideMaps(canvases, [own.threshold for own in mapped], find_tissue(slide), label, source.near)
            yield OpenedSlide(slide_id, slide, maps, max(grade.probabilities, default=None) if grade else None)
        finally:
            if label is not None:
                label.close()


def _describe(resolution: Resolution) -> str:
    return f"{resolution.width} x {resolution.height} px of {resolution.downsample:g} level-0 px"


def _open_label(source: MapSource, slide_id: str, slide: Slide, label_maps: Mapping[str, LabelMap]) -> LabelMask | None:
    """Open the label of a slide: of the row with its file, else of that with its name."""
    path = slide.path.resolve()
    ranked = sorted(source.records, key=lambda record: record.image_path.resolve() != path)
    for record in ranked:
        if record.mask_path is not None and (record.image_path.resolve() == path or record.slide_id == slide_id):
            return LabelMask.open(record.mask_path, slide, record.provider, label_maps)
    return None
