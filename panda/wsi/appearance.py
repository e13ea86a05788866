"""Stained tissue, ink, and structure of any other kind in a picture of a slide, by colour and texture.

Haematoxylin and eosin both absorb green most, so stained tissue is magenta: its green is below the larger of red and
blue. Glass, blank grey patches, black padding, pencil, and black, green or yellow ink are not magenta, however dark
they are. Brightness thresholds fail on these. Blue and red ink are magenta too, but have extreme colours. All lengths
and areas are in px of about 8 µm unless their name says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np

from panda.wsi.colours import Bytes, count_values, detect_ink, find_median, make_disc, measure_magenta
from panda.wsi.components import Mask
from panda.wsi.stripes import MaskComponents, add_halo, keep_large, stripes

STRIPE_PX = 2**17
"""Px of a picture that are processed at a time; filters take up to 30 bytes for each."""
NOMINAL_UM = 8.0
"""µm per px that is assumed if it is unknown."""
SPECK_UM2 = 5_000.0
"""70 x 70 µm: smaller pieces are no tissue, and smaller ink is no ink."""
HOLE_UM2 = 20_000.0
"""140 x 140 µm: lumina and fat cells up to this size are part of the tissue."""
LINE_UM = 600.0
"""Least length of a line, which is the edge of a coverslip, a thread or a scratch; half of it for a separate piece."""
THIN_UM = 60.0
"""Largest mean width of a line; the thinnest needle cores are some 300 µm wide."""
PEN_UM2 = 50_000.0
"""220 x 220 µm: strokes of a pen are larger; threads, grains of dust and pigment are smaller."""
STRUCTURE_UM2 = 80_000.0
"""Least area of tissue without the hue of haematoxylin and eosin; grains of dust are smaller."""

_BRIGHT = 150  # glass is brighter, grey glass too
_LEAST_GLASS = 0.05  # share of a picture that is enough to find the colour of the glass
_EVEN = 6  # grey values between blurred neighbours: glass has even less texture than pale tissue
_LARGEST_TINT = 8  # a scanner's glass is at most this magenta
_BORDER = 0.35  # a piece ends where its magenta falls to this share of the strongest within 4 px
_SEEDED = 0.2  # least share of a piece that is magenta enough to seed it
_LEAST_EDGE = 3.5  # fall of magenta at a border: tissue ends abruptly, light falls off slowly
_HUE = 2  # red and blue both pass more than green, unlike in dust, rust, DAB and fibres of cloth
_TEXTURE, _CONTRAST = 2.5, 10  # grey values that glass, blank patches and their noise stay below
_SOLID = 0.6  # share of px that differ from the glass
_DARKER = 50  # grey values below the glass: dirt, around which JPEG spills faint colour
_STRONG = 60  # difference of the channels in ink; blue and green stains are paler at this scale
_PLAIN_BLACK = 40  # grey values; the ink of a marker is brighter or less even at this scale
_BLACK = 80  # darker than tissue is at this scale: marker, padding
_COLOURLESS = 40  # difference of the channels in black ink; the darkest tissue is more coloured
_PADDING_RANGE, _PADDED = 1, 0.5  # grey values over 5 px in padding, and the share of a piece that makes it padding


class Search(NamedTuple):
    """Limits of a search in grey values of magenta: tissue has `grow` or more, some of it `seed`."""

    seed: int
    grow: int


_REDS, _OTHERS, _INK, _STRONG_INK, _STAIN_HUE, _DIRT, _SPILL = (1 << bit for bit in range(7))

STRICT = Search(seed=9, grow=5)
LOOSE = Search(seed=4, grow=4)


class Picture:
    """A picture of a slide, prepared for several searches.

    It is processed in stripes, on which no result depends, and keeps two bytes a px.

    Args:
        rgb: (H, W, 3) uint8 RGB, neither side 0; it is not kept.
        um: µm per px; None if unknown.
        stripe_px: Px of a stripe, rounded up to whole rows.

    Attributes:
        glass: Colour of the glass, RGB; None if there is too little of it.
        black: Share of the picture that is plain black, which a scanner shows where it did not scan.
    """

    def __init__(self, rgb: Bytes, um: float | None, stripe_px: int = STRIPE_PX) -> None:
        self._height, width = rgb.shape[:2]
        self._rows = -(-stripe_px // width)
        self._um = um or NOMINAL_UM
        speck = SPECK_UM2 / self._um**2
        if um is None:
            speck = min(speck, 5e-4 * rgb[..., 0].size)  # a thumbnail's pieces are small
        self._speck = max(min(speck, rgb[..., 0].size / 2), 4.0)  # a field without glass may be smaller than a speck
        self._window = 5 if min(rgb.shape[:2]) >= 64 else 3
        self._flags = np.zeros(rgb.shape[:2], np.uint8)
        self._magenta = np.zeros(rgb.shape[:2], np.uint8)
        self.glass: tuple[float, float, float] | None = None
        self.black = 0.0
        self._balance = self._find_balance(rgb)
        noise = self._find_ink(rgb)
        self._find_magenta(rgb, noise)
        for own, wide, within in self._stripes(16):  # JPEG spreads colour over its blocks of 16 px
            spoilt = ((self._flags[wide] & (_INK | _DIRT)) > 0).astype(np.uint8)
            spill = cv2.dilate(spoilt, np.ones((33, 33), np.uint8))[within] > 0
            self._flags[own] |= spill * np.uint8(_SPILL)

    def _stripes(self, halo: int = 0) -> Iterator[tuple[slice, slice, slice]]:
        return stripes(self._height, self._rows, halo)

    def _find_balance(self, rgb: Bytes) -> Bytes | None:
        """Return the table, (1, 256, 3), that makes the glass colourless; None if there is too little glass.

        The colour is the median of bright and hardly coloured px. Areas that were not scanned are plain white or grey,
        which is not the colour of the glass. They are used only if there is little else.
        """
        grey = np.zeros(256, np.int64)
        counts = np.zeros((2, 3, 256), np.int64)  # by channel, of all glass and of scanned glass
        for own, wide, within in self._stripes(3):
            grey += count_values(cv2.cvtColor(rgb[own], cv2.COLOR_RGB2GRAY))
            red, green, blue = cv2.split(rgb[wide])
            blurred = cv2.blur(green, (3, 3))
            even = cv2.subtract(cv2.dilate(blurred, make_disc(5)), cv2.erode(blurred, make_disc(5)))[within] <= _EVEN
            red, green, blue = red[within], green[within], blue[within]
            bright = cv2.min(cv2.min(red, green), blue) > _BRIGHT
            cast = cv2.absdiff(cv2.max(red, blue), green) <= _LARGEST_TINT
            glass = bright & cast & (cv2.absdiff(red, blue) <= 30)
            scanned = glass & even & ((red != green) | (green != blue))
            plain = even & (cv2.max(cv2.max(red, green), blue) < _PLAIN_BLACK)
            self.black += np.count_nonzero(plain) / self._flags.size
            counts += [[count_values(channel, px) for channel in (red, green, blue)] for px in (glass, scanned)]
        grey[:_BLACK] = 0
        self._glass = int(grey.argmax())
        least = _LEAST_GLASS * self._flags.size
        enough = [of for of in (counts[1], counts[0]) if of[0].sum() >= least]
        if not enough:
            return None
        colour = np.array([find_median(of) for of in enough[0]])
        red, green, blue = colour.tolist()
        self.glass = red, green, blue
        table = np.minimum(np.rint(np.arange(256)[:, None] * (colour.max() / colour)), 255).astype(np.uint8)
        return np.asarray(table[None])

    def _split_channels(self, rgb: Bytes, within: slice) -> tuple[Bytes, Bytes, Bytes]:
        """Return red, green and blue of some rows, balanced and smooth, given two more rows on either side."""
        balanced = rgb if self._balance is None else cv2.LUT(rgb, self._balance)
        smooth = cv2.medianBlur(np.ascontiguousarray(balanced), self._window)[within]
        red, green, blue = (np.asarray(channel, np.uint8) for channel in cv2.split(smooth))
        return red, green, blue

    def _find_ink(self, rgb: Bytes) -> int:
        """Flag px with the colours of ink, without specks; return the magenta of the noise of the glass."""
        glass = np.zeros(256, np.int64)
        for own, wide, within in self._stripes(2):
            red, green, blue = self._split_channels(rgb[wide], within)
            reds, others = detect_ink(red, green, blue)
            self._flags[own] = reds * np.uint8(_REDS) + others * np.uint8(_OTHERS)
            magenta = cv2.subtract(cv2.max(red, blue), green)
            bright = cv2.min(cv2.min(red, green), blue) > _BRIGHT
            glass += count_values(magenta, bright & (magenta <= _LARGEST_TINT))
        for ink in (_REDS, _OTHERS):
            mask = (self._flags & ink) > 0
            if mask.any():
                keep_large(mask, self._speck, self._rows)
                self._flags &= np.where(mask, np.uint8(255), np.uint8(255 - ink))
        # the larger of two noisy values is above the third
        return int(find_median(glass)) if glass.sum() >= _LEAST_GLASS * self._flags.size else 0

    def _find_magenta(self, rgb: Bytes, noise: int) -> None:
        """Measure the magenta of each px, and flag ink with its soft border, dirt and the hue of a stain."""
        for own, wide, within in self._stripes(4):
            red, green, blue = self._split_channels(rgb[wide], within)
            reds, others = ((self._flags[wide] & ink) > 0 for ink in (_REDS, _OTHERS))
            near_reds, near_rest = (cv2.dilate(px.astype(np.uint8), make_disc(9))[within] > 0 for px in (reds, others))
            # the border mixes with glass, so it has the hue of ink but is paler
            red_over, blue_over = cv2.subtract(red, green), cv2.subtract(blue, green)
            red_border = near_reds & (cv2.convertScaleAbs(blue_over, alpha=4) <= red_over)
            ink = reds[within] | others[within] | (near_rest & (red_over <= 3)) | red_border
            low, high = cv2.min(cv2.min(red, green), blue), cv2.max(cv2.max(red, green), blue)
            magenta = measure_magenta(red, green, blue, noise)
            magenta[ink] = 0
            hue = cv2.subtract(cv2.min(red, blue), green) >= _HUE
            dirt = (green < self._glass - _DARKER) & ~(hue & (magenta > 0))
            strong = ink & (cv2.subtract(high, low) > _STRONG)
            self._magenta[own] = magenta
            for px, flag in ((ink, _INK), (strong, _STRONG_INK), (hue, _STAIN_HUE), (dirt, _DIRT)):
                self._flags[own] |= px * np.uint8(flag)

    def find_candidates(self, search: Search) -> Mask:
        """Return px that are magenta enough, small holes filled: (H, W) bool, all of `find_tissue` and more."""
        mask, other = (np.empty(self._flags.shape, np.bool_) for _ in range(2))
        for own, wide, within in self._stripes(8):
            magenta = self._magenta[wide]
            falloff = cv2.convertScaleAbs(cv2.dilate(magenta, make_disc(9)), alpha=_BORDER)
            enough = (magenta >= self._find_limit(wide, STRICT.grow, search.grow)) & (magenta >= falloff)
            closed = cv2.morphologyEx(enough.astype(np.uint8), cv2.MORPH_CLOSE, make_disc(5))
            mask[own], other[own] = enough[within], closed[within] == 0
        hole = HOLE_UM2 / self._um**2
        holes = MaskComponents(other, self._rows)
        for own, px in holes.mark_px(holes.area < hole):
            mask[own] |= px
        del holes
        np.logical_not(mask, out=other)
        keep_large(other, hole, self._rows)
        for own, _, _ in self._stripes():
            mask[own] = ~other[own] & ((self._flags[own] & _INK) == 0)
        return mask

    def _find_limit(self, rows: slice, strict: int, own: int) -> Bytes:
        """Return the limit of each px: the search's own, or the strict one if JPEG spills colour there."""
        return np.where((self._flags[rows] & _SPILL) > 0, np.uint8(strict), np.uint8(own))

    def find_tissue(self, search: Search) -> Mask:
        """Return stained tissue, (H, W) bool: magenta pieces with a border that are no specks and no thin lines."""
        filled = self.find_candidates(search)
        self._remove_lines(filled)
        pieces = MaskComponents(filled, self._rows, boxes=True)
        area = pieces.area
        large = area * self._um**2 >= STRUCTURE_UM2
        borders, seeded, thick, well, steps = np.zeros((5, len(area)), np.int64)
        for own, numbers in pieces.labels():
            wide, within = add_halo(own, self._height, max(6, self._side - 1))
            mask, magenta = filled[own], self._magenta[own]
            part = filled[wide].view(np.uint8)
            border = mask & (cv2.erode(part, make_disc(3))[within] == 0)
            even = cv2.blur(self._magenta[wide], (5, 5))
            step = cv2.subtract(cv2.dilate(even, make_disc(9)), cv2.erode(even, make_disc(9)))[within]
            hue = (self._flags[own] & _STAIN_HUE) > 0
            seeds = mask & (hue | large[numbers]) & (magenta >= self._find_limit(own, STRICT.seed, search.seed))
            for counted, px in (
                (borders, border),
                (seeded, seeds),
                (thick, self._find_thick(part)[within] > 0),
                (well, mask & (magenta >= STRICT.seed)),
            ):
                np.add(counted, np.bincount(numbers[px], minlength=len(area)), out=counted)
            steps += np.bincount(numbers[border], step[border], len(area)).astype(np.int64)
        kept = (area >= self._speck) & (thick > 0) & (seeded >= np.maximum(0.25 * self._speck, _SEEDED * area))
        # a piece that fills the picture has no border, and needs none if it is stained well
        kept &= ((borders == 0) & (well > 0.5 * area)) | ((borders > 0) & (steps >= _LEAST_EDGE * borders))
        kept &= ~self._find_lines(pieces, LINE_UM / 2)
        pieces.remove(~kept)
        return filled

    def find_pen(self, rgb: Bytes) -> Mask:
        """Find marks of a pen in the same picture, (H, W, 3) uint8, which is given again.

        Returns:
            (H, W) bool: coloured ink, and black that is less even than padding, in patches larger than dust.
        """
        red, green, blue = self._split_channels(rgb, slice(None))
        low, high = cv2.min(cv2.min(red, green), blue), cv2.max(cv2.max(red, green), blue)
        dark = (high < _BLACK) & (cv2.subtract(high, low) <= _COLOURLESS)
        grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
        count, labels = cv2.connectedComponents(dark.astype(np.uint8), connectivity=8)
        even = cv2.dilate(grey, np.ones((5, 5))) - cv2.erode(grey, np.ones((5, 5))) <= _PADDING_RANGE
        area, blank = np.bincount(labels.ravel(), minlength=count), np.bincount(labels[even], minlength=count)
        stroke = blank < _PADDED * area
        stroke[0] = False
        marks: Mask = ((self._flags & _INK) > 0) | stroke[labels]
        keep_large(marks, PEN_UM2 / self._um**2, self._rows)
        return marks

    def _remove_lines(self, mask: Mask) -> None:
        """Remove long thin lines, even if they touch tissue."""
        thin = np.empty_like(mask)
        for own, wide, within in self._stripes(self._side - 1):
            thin[own] = mask[own] & (self._find_thick(mask[wide].view(np.uint8))[within] == 0)
        pieces = MaskComponents(thin, self._rows, boxes=True)
        for own, px in pieces.mark_px(self._find_lines(pieces, LINE_UM)):
            mask[own] &= ~px

    def _find_lines(self, pieces: MaskComponents, least_um: float) -> Mask:
        """Return which of the pieces are long and thin."""
        length = np.hypot(*pieces.sides.T) * self._um
        return np.asarray((length >= least_um) & (pieces.area * self._um**2 <= THIN_UM * length))

    @property
    def _side(self) -> int:
        """Side of a speck in px, odd."""
        return max(round(math.sqrt(SPECK_UM2) / self._um), 3) | 1

    def _find_thick(self, mask: Bytes) -> Bytes:
        """Return the parts of a mask (0, 1) that are at least as wide as the largest speck."""
        return np.asarray(cv2.morphologyEx(mask, cv2.MORPH_OPEN, make_disc(self._side)))

    def has_structure(self, rgb: Bytes) -> bool:
        """Return whether the same picture holds anything but glass, blank patches, ink, lines and specks.

        Structure of any colour is rough and solid over an area larger than a grain of dust. Rough px differ from the
        median of their neighbours, which those of a straight edge do not. Solid areas differ from the glass in most
        px, which the space between grains of dust does not.
        """
        found = np.empty(self._flags.shape, np.bool_)
        for own, wide, within in self._stripes(25):
            grey = np.asarray(cv2.cvtColor(rgb[wide], cv2.COLOR_RGB2GRAY), np.uint8)
            rough = cv2.absdiff(grey, cv2.medianBlur(grey, 5))
            texture = cv2.blur(rough.astype(np.float32), (9, 9))
            other = cv2.absdiff(grey, np.full_like(grey, self._glass)) >= _CONTRAST
            solid = cv2.blur(other.astype(np.float32), (9, 9))
            black = ((self._flags[wide] & _STRONG_INK) > 0) | (cv2.blur(grey, (9, 9)) < _BLACK)
            blank = cv2.dilate(black.astype(np.uint8), np.ones((15, 15), np.uint8)) > 0
            structure = (texture >= _TEXTURE) & (solid >= _SOLID) & ~blank
            opened = cv2.morphologyEx(structure.astype(np.uint8), cv2.MORPH_OPEN, make_disc(15))
            found[own] = opened[within] > 0
        keep_large(found, STRUCTURE_UM2 / self._um**2, self._rows)
        return bool(found.any())
