"""What colour and texture say of a picture of a slide: stained tissue, ink, or structure of any other kind.

Haematoxylin and eosin both absorb green most, so stained tissue is always magenta to some degree: its green is
below the larger of red and blue. Glass, the constant grey patches some scanners fill in, black padding, pencil
and black, green or yellow ink are not, however dark they are, which is what brightness thresholds stumble over.
Blue and red ink are magenta by this measure too and are told by their extreme colour. All lengths and areas are
in px of about 8 µm unless their name says otherwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Mask = NDArray[np.bool_]

NOMINAL_UM = 8.0
"""µm per px that is assumed where it is unknown."""

SPECK_UM2 = 5_000.0
"""70 x 70 µm: pieces smaller than this are no tissue, and ink smaller than this is none."""

HOLE_UM2 = 20_000.0
"""140 x 140 µm: lumina and fat cells up to this size are part of the tissue."""

LINE_UM = 600.0
"""What is thin over this length is the edge of a coverslip, a thread or a scratch; half of it for a piece alone."""

THIN_UM = 60.0
"""Mean width up to which a line is thin; the thinnest needle cores are some 300 µm wide."""

PEN_UM2 = 50_000.0
"""220 x 220 µm: strokes of a pen are larger, threads, grains of dust and pigment smaller."""

STRUCTURE_UM2 = 80_000.0
"""What is not of the hue of haematoxylin and eosin is believed from this area on; grains of dust are smaller."""

_BRIGHT = 150  # glass is brighter, grey glass too
_LEAST_GLASS = 0.05  # share of a picture that is enough to tell the colour of the glass
_EVEN = 6  # grey values between neighbours, blurred: glass has no texture, not even pale tissue's
_LARGEST_TINT = 8  # a scanner's glass is at most this magenta
_LEAST_SATURATION = 0.08  # magenta over green absorbed: what black ink and grey dirt have less of
_BORDER = 0.35  # a piece ends where its magenta falls to this share of the strongest within 4 px
_SEEDED = 0.2  # share of a piece that is magenta enough to seed one
_LEAST_EDGE = 3.5  # fall of magenta at a border: tissue ends, light falls off
_HUE = 2  # red and blue both pass more than green: not so in dust, rust, DAB, fibres of cloth
_TEXTURE, _CONTRAST = 2.5, 10  # grey values: what glass, blank patches and their noise stay below
_SOLID = 0.6  # share of px that differ from the glass
_DARKER = 50  # grey values below the glass: dirt, around which JPEG spills faint colour
_STRONG = 60  # difference of the channels in ink; blue and green stains are paler at this scale
_BLACK = 80  # darker than tissue is at this scale: marker, padding
_COLOURLESS = 40  # difference of the channels in black ink; the darkest tissue is more coloured
_PADDING_RANGE, _PADDED = 1, 0.5  # grey values over 5 px in padding, and the share of a piece that makes it padding


@dataclass(frozen=True)
class Search:
    """Limits of a search in grey values of magenta: tissue has ``grow`` or more, some of it ``seed``."""

    seed: int
    grow: int


STRICT = Search(seed=9, grow=5)
LOOSE = Search(seed=4, grow=4)


class Picture:
    """A picture of a slide, made ready for several searches.

    Args:
        rgb: (H, W, 3) uint8 RGB, neither side 0.
        um: µm per px; None where unknown.
    """

    def __init__(self, rgb: Bytes, um: float | None) -> None:
        self._um = um or NOMINAL_UM
        speck = SPECK_UM2 / self._um**2
        if um is None:
            speck = min(speck, 5e-4 * rgb[..., 0].size)  # a thumbnail's pieces are small
        self._speck = max(speck, 4.0)
        self._grey: Bytes = np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), np.uint8)
        counts = cv2.calcHist([self._grey], [0], None, [256], [0, 256]).ravel()
        counts[:_BLACK] = 0
        self._glass = int(counts.argmax())
        smooth = cv2.medianBlur(_balanced(rgb), 5 if min(rgb.shape[:2]) >= 64 else 3)
        red, green, blue = (np.asarray(channel, np.uint8) for channel in cv2.split(smooth))
        self._ink = _ink(red, green, blue, self._speck)
        low, high = cv2.min(cv2.min(red, green), blue), cv2.max(cv2.max(red, green), blue)
        self._strong_ink = self._ink & (cv2.subtract(high, low) > _STRONG)
        self._dark = (high < _BLACK) & (cv2.subtract(high, low) <= _COLOURLESS)
        magenta = _magenta(red, green, blue)
        magenta[self._ink] = 0
        self._magenta = magenta
        self._falloff = cv2.convertScaleAbs(cv2.dilate(magenta, _disc(9)), alpha=_BORDER)
        even = cv2.blur(magenta, (5, 5))
        self._step = cv2.subtract(cv2.dilate(even, _disc(9)), cv2.erode(even, _disc(9)))
        self._hue = cv2.subtract(cv2.min(red, blue), green) >= _HUE
        dirt = (green < self._glass - _DARKER) & ~(self._hue & (magenta > 0))
        # JPEG spreads colour over its blocks of 16 px
        self._spill = cv2.dilate((self._ink | dirt).astype(np.uint8), np.ones((33, 33), np.uint8)) > 0

    def candidates(self, search: Search) -> Mask:
        """Find what is magenta enough, its small holes filled: (H, W) bool, all of `tissue` and more."""
        mask = (self._magenta >= self._least(STRICT.grow, search.grow)) & (self._magenta >= self._falloff)
        hole = HOLE_UM2 / self._um**2
        closed = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, _disc(5)) > 0
        holes = ~closed & ~without_small(~closed, hole)
        return np.asarray(~without_small(~(mask | holes), hole) & ~self._ink)

    def _least(self, strict: int, own: int) -> Bytes:
        """The limit of each px: a search's own, and the strict one where JPEG spills colour."""
        return np.where(self._spill, np.uint8(strict), np.uint8(own))

    def tissue(self, search: Search) -> Mask:
        """Find stained tissue.

        Returns:
            (H, W) bool: pieces that are magenta enough, end somewhere, and are neither specks nor thin lines.
        """
        filled = self._without_lines(self.candidates(search))
        count, labels, stats, _ = cv2.connectedComponentsWithStats(filled.astype(np.uint8), connectivity=8)
        area = stats[:, cv2.CC_STAT_AREA]
        border = filled & (cv2.erode(filled.astype(np.uint8), _disc(3)) == 0)
        large = area[labels] * self._um**2 >= STRUCTURE_UM2
        seeds = filled & (self._hue | large) & (self._magenta >= self._least(STRICT.seed, search.seed))
        thick = self._thick(filled.astype(np.uint8)) > 0
        borders, seeded, wide = (np.bincount(labels[px], minlength=count) for px in (border, seeds, thick))
        steps = np.bincount(labels[border], weights=self._step[border], minlength=count)
        kept = (area >= self._speck) & (wide > 0) & (seeded >= np.maximum(0.25 * self._speck, _SEEDED * area))
        # what fills the picture has no border, and needs none if it is stained well
        well = np.bincount(labels[filled & (self._magenta >= STRICT.seed)], minlength=count) > 0.5 * area
        kept &= ((borders == 0) & well) | ((borders > 0) & (steps >= _LEAST_EDGE * borders))
        kept &= ~self._lines(stats, LINE_UM / 2)
        kept[0] = False
        return np.asarray(kept[labels])

    def pen(self) -> Mask:
        """Find marks of a pen.

        Returns:
            (H, W) bool: coloured ink, and black that is not as even as padding, in patches larger than dust.
        """
        count, labels = cv2.connectedComponents(self._dark.astype(np.uint8), connectivity=8)
        even = cv2.dilate(self._grey, np.ones((5, 5))) - cv2.erode(self._grey, np.ones((5, 5))) <= _PADDING_RANGE
        area, blank = np.bincount(labels.ravel(), minlength=count), np.bincount(labels[even], minlength=count)
        stroke = blank < _PADDED * area
        stroke[0] = False
        return without_small(self._ink | stroke[labels], PEN_UM2 / self._um**2)

    def _without_lines(self, mask: Mask) -> Mask:
        """Remove long thin lines, also where they run into tissue."""
        whole = mask.astype(np.uint8)
        thin = whole & (1 - self._thick(whole))
        _, labels, stats, _ = cv2.connectedComponentsWithStats(thin, connectivity=8)
        lines = self._lines(stats, LINE_UM)
        lines[0] = False
        return np.asarray(mask & ~lines[labels])

    def _lines(self, stats: NDArray[Any], least_um: float) -> Mask:
        """Which of the parts with these statistics are long and thin."""
        length = np.hypot(stats[:, cv2.CC_STAT_WIDTH], stats[:, cv2.CC_STAT_HEIGHT]) * self._um
        return np.asarray((length >= least_um) & (stats[:, cv2.CC_STAT_AREA] * self._um**2 <= THIN_UM * length))

    def _thick(self, mask: Bytes) -> Bytes:
        """The parts of a mask (0, 1) that are as wide as a speck may be."""
        side = max(round(math.sqrt(SPECK_UM2) / self._um), 3)
        return np.asarray(cv2.morphologyEx(mask, cv2.MORPH_OPEN, _disc(side | 1)))

    def has_structure(self) -> bool:
        """Say whether there is anything but glass, blank patches, ink, lines and specks, whatever its colour.

        Structure is rough (grey values differ from their neighbours' median, which a straight edge's do not) and
        solid (most px differ from the glass, as few do between grains of dust), over an area no grain of dust has.
        """
        rough = cv2.absdiff(self._grey, cv2.medianBlur(self._grey, 5))
        texture = cv2.blur(rough.astype(np.float32), (9, 9))
        other = cv2.absdiff(self._grey, np.full_like(self._grey, self._glass)) >= _CONTRAST
        solid = cv2.blur(other.astype(np.float32), (9, 9))
        black = self._strong_ink | (cv2.blur(self._grey, (9, 9)) < _BLACK)
        blank = cv2.dilate(black.astype(np.uint8), np.ones((15, 15), np.uint8)) > 0
        structure = (texture >= _TEXTURE) & (solid >= _SOLID) & ~blank
        opened = cv2.morphologyEx(structure.astype(np.uint8), cv2.MORPH_OPEN, _disc(15))
        return bool(without_small(opened > 0, STRUCTURE_UM2 / self._um**2).any())


def _balanced(rgb: Bytes) -> Bytes:
    """Take the colour of the glass off: the median of what is bright and hardly coloured, if there is enough.

    Where nothing was scanned a slide is filled with plain white or grey, which says nothing of the glass: that is
    left aside where there is much else.
    """
    red, green, blue = cv2.split(rgb)
    bright = cv2.min(cv2.min(red, green), blue) > _BRIGHT
    cast = cv2.absdiff(cv2.max(red, blue), green) <= _LARGEST_TINT
    glass = bright & cast & (cv2.absdiff(red, blue) <= 30)
    blurred = cv2.blur(green, (3, 3))
    even = cv2.subtract(cv2.dilate(blurred, _disc(5)), cv2.erode(blurred, _disc(5))) <= _EVEN
    scanned = glass & even & ((red != green) | (green != blue))
    if np.count_nonzero(scanned) >= _LEAST_GLASS * scanned.size:
        glass = scanned
    if np.count_nonzero(glass) < _LEAST_GLASS * glass.size:
        return np.ascontiguousarray(rgb)
    colour = np.array([np.median(channel[glass]) for channel in (red, green, blue)])
    table = np.minimum(np.rint(np.arange(256)[:, None] * (colour.max() / colour)), 255).astype(np.uint8)
    return np.asarray(cv2.LUT(np.ascontiguousarray(rgb), table[None]), np.uint8)


def _magenta(red: Bytes, green: Bytes, blue: Bytes) -> Bytes:
    """How much less green passes than red or blue, in grey values above what the glass has; 0 where hardly coloured."""
    magenta = cv2.subtract(cv2.max(red, blue), green)
    glass = (cv2.min(cv2.min(red, green), blue) > _BRIGHT) & (magenta <= _LARGEST_TINT)
    if np.count_nonzero(glass) >= _LEAST_GLASS * glass.size:  # the larger of two noisy values is above the third
        magenta = cv2.subtract(magenta, np.full_like(magenta, int(np.median(magenta[glass]))))
    magenta[magenta < cv2.convertScaleAbs(cv2.bitwise_not(green), alpha=_LEAST_SATURATION)] = 0
    return np.asarray(magenta, np.uint8)


def _ink(red: Bytes, green: Bytes, blue: Bytes, speck: float) -> Mask:
    """Ink and its soft border, where it mixes with glass: there it has the hue of ink, only paler."""
    red_over, blue_over = cv2.subtract(red, green), cv2.subtract(blue, green)
    reds = without_small((red_over > 100) & (cv2.subtract(red, blue) > 100), speck)
    # Green and most blue inks pass more green than red, as stained tissue never does, dark blue ones as much;
    # other blues are extreme, and so is the lack of blue in yellow ink.
    others = (
        (cv2.subtract(green, red) > 8)
        | ((red_over <= 5) & (blue_over > 30))
        | ((cv2.subtract(blue, red) > 75) & (blue_over > 50))
        | (cv2.subtract(green, blue) > 60)
    )
    others = without_small(others, speck)
    near_reds, near_others = (cv2.dilate(ink.astype(np.uint8), _disc(9)) > 0 for ink in (reds, others))
    red_border = near_reds & (cv2.convertScaleAbs(blue_over, alpha=4) <= red_over)
    return np.asarray(reds | others | (near_others & (red_over <= 3)) | red_border)


def without_small(mask: Mask, area: float) -> Mask:
    """Remove the 8-connected parts of a mask that are smaller than an area in px."""
    if not mask.any():
        return mask
    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    kept = np.bincount(labels.ravel(), minlength=count) >= area  # twice as fast as OpenCV's own statistics
    kept[0] = False
    return np.asarray(kept[labels])


def _disc(side: int) -> NDArray[Any]:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
