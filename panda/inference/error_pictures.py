"""Draw a wrong region of a slide: the scan with the outlines of the label and of the prediction."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from panda.files import remove, write_beside, write_json
from panda.inference.canvas_store import Canvas
from panda.inference.class_colours import Colour
from panda.inference.error_regions import ERRORS_FILE, KINDS, ErrorKind, ErrorRegion, FoundErrors, SlideErrors
from panda.inference.outline_drawing import OUTLINE, draw_rings, fade_outside
from panda.inference.polygons import trace, trace_runs
from panda.inference.truth import read_truth
from panda.wsi.geometry import Resolution, floor_px, round_px
from panda.wsi.label_mask import LabelMask
from panda.wsi.runs import Runs
from panda.wsi.slide import Slide
from panda.wsi.tissue import TissueMap

PICTURED = 3
"""Largest regions of a kind that get a picture on a slide, so that one bad slide does not fill a gallery."""
LABEL_COLOUR: Colour = (0, 255, 208)
PREDICTION_COLOUR = OUTLINE
"""Colours of the outlines, as in the viewer of a slide."""
SIDE = 512
"""Side of a picture in px."""
_COARSEST = 4.0
"""Most level-0 px per px of a picture: a coarser one would not show glands."""
_FADED = 0.5
"""Share of white outside the region."""
_ROOM = 1.4
"""Side of a picture over that of its region, if the whole region is shown."""


def name_picture(kind: ErrorKind, number: int) -> str:
    """Return the name of the picture of a region in the folder of its slide."""
    return f"{kind}_{number}.jpg"


def write_errors(
    folder: Path, found: Mapping[ErrorKind, FoundErrors], errors: SlideErrors, painter: ErrorPainter
) -> None:
    """Write `errors.json` and the pictures of the largest regions into the folder of a slide."""

    def picture(region: ErrorRegion) -> ErrorRegion:
        if region.number > PICTURED:
            return region
        path = folder / name_picture(region.kind, region.number)
        place = painter.write(region, found[region.kind].select(region.number), path)
        return region.model_copy(update={"picture": place})

    pictured = errors.model_copy(update={"regions": tuple(map(picture, errors.regions))})
    write_json(folder / ERRORS_FILE, pictured.model_dump(mode="json"))


def remove_errors(folder: Path) -> None:
    """Remove what `write_errors` wrote."""
    pictures = (name_picture(kind, number) for kind in KINDS for number in range(1, PICTURED + 1))
    for name in (ERRORS_FILE, *pictures):
        remove(folder / name)


class ErrorPainter:
    """Draws wrong regions of one slide.

    Args:
        slide: The slide.
        canvas: Its map.
        mask: Its labels.
        tissue: Its tissue.
        threshold: Probability at which a pixel counts as tumour.
        ignore_background: Whether tissue with an unlabelled code does not count.
    """

    def __init__(
        self,
        slide: Slide,
        canvas: Canvas,
        mask: LabelMask,
        tissue: TissueMap,
        threshold: float,
        *,
        ignore_background: bool = False,
    ) -> None:
        self._slide, self._canvas, self._mask, self._tissue = slide, canvas, mask, tissue
        self._threshold, self._ignore_background = threshold, ignore_background
        self._scale = canvas.resolution.downsample

    def write(self, region: ErrorRegion, runs: Runs, path: Path) -> tuple[int, int, int]:
        """Write the picture of a region, and return its left, top and side in level-0 px.

        A region that is too large for the picture is shown in the middle of its densest part.

        Args:
            region: The region.
            runs: Its working px.
            path: The JPEG.
        """
        wanted = max(1.0, min(_ROOM * max(region.width, region.height) / SIDE, _COARSEST))
        view = self._slide.choose_resolution(downsample=wanted)
        side = SIDE * view.downsample
        if side >= max(region.width, region.height):
            centre = region.x + region.width / 2, region.y + region.height / 2
        else:
            centre = self._canvas.resolution.frame.to_level0(*_find_densest(runs, side / self._scale))
        corner = round_px(centre[0] - side / 2), round_px(centre[1] - side / 2)
        image = self._slide.read(view, corner, (SIDE, SIDE))
        place = np.array(corner)
        own = trace_runs(runs).rings
        fade_outside(image, [(ring * self._scale - place) / view.downsample for ring in own], _FADED)
        self._draw_outlines(image, view, corner)
        with write_beside(path) as partial:
            Image.fromarray(image).save(partial, format="JPEG", quality=80)
        return (*corner, round_px(side))

    def _draw_outlines(self, image: NDArray[np.uint8], view: Resolution, corner: tuple[int, int]) -> None:
        """Draw both outlines along the px of the map, in which they were compared."""
        scale = self._scale
        # Two px more at each side, so that no line is drawn along the edge of the picture.
        x0, y0 = (round_px(start / scale) - 2 for start in corner)
        side = round_px(SIDE * view.downsample / scale) + 4
        window = (x0, y0, side, side)
        found = read_truth(self._canvas, self._mask, self._tissue, window, ignore_background=self._ignore_background)
        place = np.array([x0, y0]) * scale - np.array(corner)
        for inside, colour, widths in (
            (found.truth, LABEL_COLOUR, (5, 7)),
            (found.find_called(self._threshold), PREDICTION_COLOUR, (1, 3)),
        ):
            rings = [(ring * scale + place) / view.downsample for ring in trace(inside).rings]
            draw_rings(image, rings, colour, widths)


def _find_densest(runs: Runs, side: float) -> tuple[float, float]:
    """Return the centre of the square of working px, of a grid of half its side, that holds most px of a region."""
    step = max(1.0, side / 2)
    middle = np.stack([(runs.left + runs.right) / 2, runs.y + 0.5]) / step
    cells, number = np.unique(floor_px(middle), axis=1, return_inverse=True)
    held = np.bincount(number.ravel(), runs.length)
    x, y = cells[:, int(held.argmax())] + 0.5
    return float(x * step), float(y * step)
