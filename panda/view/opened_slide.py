"""A slide in the viewer: its file, map and label, those that can be opened, and what the page says of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from PIL import Image

from panda.data.manifest import SlideRecord
from panda.data.mapped_slide import RESULT_FILE, find_slide_files
from panda.errors import MaskError, PandaError, SlideError
from panda.inference.canvas_store import Canvas
from panda.inference.class_colours import PATTERN_COLOURS
from panda.inference.error_pictures import LABEL_COLOUR
from panda.inference.slide_canvas import open_result_canvas
from panda.inference.slide_images import reduce_resolution
from panda.inference.slide_result import SlideFacts, SlideResult, read_slide_facts
from panda.report.run_folder import try_read
from panda.report.slide_page import list_notes, make_cards
from panda.report.viewer import describe_map, place_tiles
from panda.view.slide_list import ListedSlide
from panda.view.tiles import (
    SIDE,
    cut_tile,
    draw_label,
    draw_map,
    draw_slide,
    list_map_factors,
    list_slide_levels,
)
from panda.wsi.geometry import Resolution
from panda.wsi.label_mask import LabelMask
from panda.wsi.slide import Slide, SlideOptions
from panda.wsi.tissue import TissueMap, find_tissue

T = TypeVar("T")
Layer = Literal["slide", "map", "label"]

VIEW = "slide.jpg"


class OpenedSlide:
    """A slide that is shown. Parts that cannot be opened are left out, and `faults` says why.

    Args:
        listed: The slide.
        slides: Folder to look for its file before the place where it was mapped; None for none.
        record: Its row in a table of labels, if it has one.
    """

    def __init__(self, listed: ListedSlide, slides: Path | None, record: SlideRecord | None) -> None:
        self.faults: list[str] = []
        self.name, self.folder = listed.slide_id, listed.folder
        facts = None
        if self.folder is not None:
            facts, fault = try_read(read_slide_facts, self.folder, RESULT_FILE)
            self.faults += [fault] if fault else []
        self.facts = facts or SlideFacts(slide_id=listed.slide_id)
        self.result = self.facts if isinstance(self.facts, SlideResult) else None
        self.slide = self._try_open(partial(self._open_slide, listed.path, slides))
        self.canvas = self._try_open(self._open_canvas) if self.result else None
        self.label = self._try_open(partial(self._open_label, record)) if self.slide else None
        self.codes = self.label.label_maps[self.label.provider].cancer if self.label else ()
        self._levels = list_slide_levels(self.slide) if self.slide else []
        self._factors = list_map_factors(self.canvas) if self.canvas else []
        self._tissue: TissueMap | None = None
        self._lock = threading.Lock()

    def _try_open(self, opener: Callable[[], T]) -> T | None:
        try:
            return opener()
        except (PandaError, OSError) as error:
            self.faults.append(str(error))
            return None

    def _open_slide(self, path: Path | None, slides: Path | None) -> Slide:
        made_with = self.result.provenance if self.result else None
        options = SlideOptions(made_with.reader, made_with.mpp_override) if made_with else SlideOptions()
        known = self.facts.paths
        path = path or (self._find_moved(slides) if slides else None) or (Path(known.slide) if known else None)
        if path is None:
            raise SlideError(f"{self.name}: its result does not name the file of the slide; add --slides FOLDER")
        if known and not path.exists():
            raise SlideError(f"{path}: the slide is not there any more; if it has moved, add --slides FOLDER")
        if self.result and (size := path.stat().st_size) != self.result.file.bytes:
            raise SlideError(
                f"{path}: it has {size:,} bytes, and the slide that was mapped had {self.result.file.bytes:,}: map it "
                "again, or give the other file by --slides FOLDER"
            )
        return options.open(path, self.name)

    def _find_moved(self, slides: Path) -> Path | None:
        """Return the file of the slide in a folder or below it, by its name then, or by that of the slide."""
        known = self.facts.paths
        name = self.result.file.name if self.result else Path(known.slide).name if known else None
        found = find_slide_files(slides, name or self.name, by_stem=name is None)
        if len(found) > 1:
            raise SlideError(f"--slides {slides}: it has several: {', '.join(map(str, found))}; give the folder of one")
        return found[0] if found else None

    def _open_canvas(self) -> Canvas:
        assert self.folder is not None
        assert self.result is not None
        return open_result_canvas(self.folder, self.result.canvas)

    def _open_label(self, record: SlideRecord | None) -> LabelMask | None:
        known = self.facts.paths
        path, provider = (record.mask_path, record.provider) if record else (None, None)
        if path is None and known and known.label:
            path, provider = Path(known.label), known.provider
        if self.slide is None or path is None or provider is None:
            return None
        if not path.is_file():
            if record:  # tables name the mask of each slide, and some slides have none
                return None
            raise MaskError(f"{path}: the label is not there any more; if it has moved, add --labels FOLDER_OR_TABLE")
        return LabelMask.open(path, self.slide, provider, self.facts.label_maps)

    @property
    def size(self) -> tuple[float, float] | None:
        """Width and height of the slide in level-0 px; None if nothing of it can be shown."""
        if self.slide is not None:
            width, height = self.slide.dimensions
            return float(width), float(height)
        if self.canvas is not None:
            resolution = self.canvas.resolution
            return resolution.extent[0] * resolution.downsample, resolution.extent[1] * resolution.downsample
        if (view := self.facts.view_downsample) is not None and (path := self.find_view()) is not None:
            with Image.open(path) as picture:
                return picture.width * view, picture.height * view
        return None

    def find_view(self) -> Path | None:
        """Return the small picture of the whole slide, if there is one."""
        path = self.folder / VIEW if self.folder and self.facts.view_downsample else None
        return path if path and path.is_file() else None

    def describe(self) -> dict[str, Any]:
        """Return what the page needs to show the slide: sizes in level-0 px, levels, figures and notes."""
        known = self.folder is not None
        mpp = self.facts.mpp or (self.slide.mpp if self.slide else None)
        notes = [*self.faults, *(list_notes(self.facts) if known else [])]
        if self.canvas and not self.slide:
            notes.append("Without the slide, the map also shows px that are no tissue, which no figure counts.")
        return {
            "name": self.name,
            "notes": notes,
            "cards": [asdict(card) for card in make_cards(self.facts)] if known else [],
            "size": self.size,
            "mpp": mpp,
            "side": SIDE,
            "view": self.facts.view_downsample if self.find_view() else None,
            "slide": _list_levels(self._levels),
            "map": self._describe_map(),
            "label": self._describe_label(),
            "tiles": place_tiles(self.facts.grade, 1.0) if self.facts.grade else [],
        }

    def _describe_map(self) -> dict[str, Any] | None:
        if self.canvas is None or self.result is None:
            return None
        levels = [reduce_resolution(self.canvas.resolution, factor) for factor in self._factors]
        return {"levels": _list_levels(levels), **describe_map(self.result)}

    def _describe_label(self) -> dict[str, Any] | None:
        if self.label is None:
            return None
        label_map = self.label.label_maps[self.label.provider]
        patterns: Mapping[int, int] = label_map.patterns
        colours = [PATTERN_COLOURS[patterns[code]] if code in patterns else LABEL_COLOUR for code in self.codes]
        legend = [
            {"name": label_map.names[code], "colour": colour} for code, colour in zip(self.codes, colours, strict=True)
        ]
        return {"levels": _list_levels(self._levels), "legend": legend}

    def draw(self, layer: Layer, level: int, column: int, row: int) -> bytes | None:
        """Return the picture of a tile; None if it is empty.

        Raises:
            LookupError: If there is no such tile.
            PandaError: If it cannot be read.
        """
        if layer == "map":
            if self.canvas is not None and level < len(self._factors):
                factor = self._factors[level]
                if window := cut_tile(reduce_resolution(self.canvas.resolution, factor).size, column, row):
                    return draw_map(self.canvas, factor, window, self._find_tissue())
        elif self.slide is not None and level < len(self._levels):
            own = self._levels[level]
            window = cut_tile(own.size, column, row)
            if layer == "slide" and window:
                return draw_slide(self.slide, own, window)
            if self.label is not None and window:
                return draw_label(self.label, self.codes, own, window)
        raise LookupError(f"there is no tile {column}, {row} in level {level} of the {layer}")

    def _find_tissue(self) -> TissueMap | None:
        """Return the tissue in which the figures count; None without the slide."""
        with self._lock:
            if self._tissue is None and self.slide is not None:
                self._tissue = find_tissue(self.slide)
            return self._tissue

    def close(self) -> None:
        """Close the files."""
        for part in (self.label, self.slide):
            if part is not None:
                part.close()


def _list_levels(levels: list[Resolution]) -> list[tuple[float, int, int]]:
    """Return level-0 px per px, width and height of levels."""
    return [(level.downsample, *level.size) for level in levels]
