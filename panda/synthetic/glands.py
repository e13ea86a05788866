"""Draw nuclei and glands of synthetic tissue, each whole into a small picture of its own (a stamp).

A stamp depends only on its gland, so neighbouring tiles show the same pixels of it. It holds stain instead of colour:
the amounts of haematoxylin and eosin, 0-255 each.

The architecture follows the ISUP description of the Gleason patterns (Epstein et al., Am J Surg Pathol 2016):
3, separate small glands with one row of nuclei; 4, fused and cribriform sheets with punched-out lumina;
5, solid sheets, cords and single cells without lumina. Benign glands are large, folded and two-layered.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from panda.synthetic.scene import Floats, Gland
from panda.wsi.geometry import round_px

Bytes = NDArray[np.uint8]
TURNS = 16
VARIANTS = 6
NucleusKind = Literal["spindle", "basal", "luminal", "lymphocyte", "cancer3", "cancer4", "cancer5"]


@dataclass(frozen=True)
class _NucleusLook:
    """Half axes in µm (smallest, largest), depth of the chromatin 0-255, share of nuclei with a nucleolus."""

    long: tuple[float, float]
    short: tuple[float, float]
    depth: tuple[float, float]
    nucleolus: float


_NUCLEUS_LOOKS: dict[NucleusKind, _NucleusLook] = {
    "spindle": _NucleusLook((5.0, 8.0), (1.0, 1.6), (120, 180), 0.0),
    "basal": _NucleusLook((3.0, 4.4), (1.5, 2.0), (150, 205), 0.0),
    "luminal": _NucleusLook((3.3, 4.2), (2.6, 3.2), (105, 165), 0.15),
    "lymphocyte": _NucleusLook((2.4, 2.9), (2.3, 2.7), (190, 235), 0.0),
    "cancer3": _NucleusLook((3.4, 4.2), (3.0, 3.6), (125, 185), 0.8),
    "cancer4": _NucleusLook((3.5, 4.5), (3.0, 3.8), (125, 190), 0.8),
    "cancer5": _NucleusLook((3.2, 5.0), (2.8, 4.0), (160, 235), 0.5),
}


@functools.lru_cache(maxsize=32)
def draw_nuclei(kind: NucleusKind, mpp: float) -> tuple[tuple[Bytes, ...], ...]:
    """Draw the stock of nuclei of a kind at a resolution in µm per level-0 px.

    Returns:
        `VARIANTS` tuples of `TURNS` square pictures of odd side: haematoxylin, turned by k·180°/TURNS.
    """
    look = _NUCLEUS_LOOKS[kind]
    rng = np.random.Generator(np.random.PCG64([7, *kind.encode()]))
    stock = []
    for _ in range(VARIANTS):
        a, b, depth = (lo + (hi - lo) * float(rng.random()) for lo, hi in (look.long, look.short, look.depth))
        a, b = max(a / mpp, 0.9), max(b / mpp, 0.7)
        spot = rng.random() < look.nucleolus
        spot_at = 0.35 * a * (float(rng.random()) - 0.5), 0.35 * b * (float(rng.random()) - 0.5)
        bend = 0.25 * (float(rng.random()) - 0.5)
        half = math.ceil(max(a, b)) + 2
        y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float64)
        grain = rng.random(x.shape) - 0.5
        turned = []
        for k in range(TURNS):
            c, s = math.cos(math.pi * k / TURNS), math.sin(math.pi * k / TURNS)
            along, across = c * x + s * y, c * y - s * x
            across = across + bend * (along * along / a - a / 3)
            q = np.sqrt((along / a) ** 2 + (across / b) ** 2)
            cover = np.clip((1 - q) * b + 0.5, 0, 1)
            # chromatin: a darker membrane, a paler and grainy inside
            shade = depth * (0.78 + 0.22 * np.clip((q - 0.45) / 0.4, 0, 1)) + depth * 0.22 * grain
            if spot:
                away = np.sqrt((along - spot_at[0]) ** 2 + (across - spot_at[1]) ** 2) * mpp
                shade = shade + 110 * np.clip(1.5 - away, 0, 1) - 28 * np.clip(1 - np.abs(away - 2.1), 0, 1)
            turned.append(np.rint(np.clip(cover * shade, 0, 255)).astype(np.uint8))
        stock.append(tuple(turned))
    return tuple(stock)


def blit(haema: Bytes, picture: Bytes, u: int, v: int) -> None:
    """Draw a nucleus centred at column `u`, row `v` into `haema` in place; the darker px wins."""
    half = picture.shape[0] // 2
    u0, v0 = u - half, v - half
    a, b = max(u0, 0), max(v0, 0)
    c, d = min(u0 + picture.shape[1], haema.shape[1]), min(v0 + picture.shape[0], haema.shape[0])
    if a < c and b < d:
        view = haema[b:d, a:c]
        np.maximum(view, picture[b - v0 : d - v0, a - u0 : c - u0], out=view)


def soften(mask: Bytes) -> Bytes:
    """Blur by the binomial 1-4-6-4-1 in integers, with the same result on every machine; the shape stays."""
    wide = np.pad(mask.astype(np.uint16), 2, mode="edge")
    rows = wide[:-4] + wide[4:] + 4 * (wide[1:-3] + wide[3:-1]) + 6 * wide[2:-2]
    rows = (rows + 8) // 16
    cols = rows[:, :-4] + rows[:, 4:] + 4 * (rows[:, 1:-3] + rows[:, 3:-1]) + 6 * rows[:, 2:-2]
    return ((cols + 8) // 16).astype(np.uint8)


def mix(under: Bytes, over: Bytes | int, alpha: Bytes) -> Bytes:
    """Return `over` blended on `under` with an opacity of 0-255, in integers."""
    a = alpha.astype(np.uint16)
    a += a >> 7
    return ((under * (256 - a) + np.asarray(over, dtype=np.uint16) * a) >> 8).astype(np.uint8)


def fill_outlines(shape: tuple[int, int], outlines: Sequence[Floats]) -> Bytes:
    """Return a mask of closed outlines, (N, 2) column and row in px: 255 inside, soft at the border."""
    mask = np.zeros(shape, np.uint8)
    for outline in outlines:
        points = round_px(outline * 16).astype(np.int32).reshape(-1, 1, 2)
        cv2.fillPoly(mask, [points], (255,), lineType=cv2.LINE_8, shift=4)
    return soften(mask)


@dataclass(frozen=True)
class Stamp:
    """A whole gland: its corner (u, v in px), stains, opacity, and mask code."""

    u: int
    v: int
    haema: Bytes
    eosin: Bytes
    alpha: Bytes
    code: int


class _Drawing:
    """The drawing of one gland."""

    def __init__(self, gland: Gland, mpp: float, grain: Bytes) -> None:
        u0, v0, u1, v1 = gland.find_box()
        self.um = 1 / mpp
        self.mpp = mpp
        self.rng = np.random.Generator(np.random.PCG64(gland.seed))
        self.outline = gland.outline - (u0, v0)
        self.centre = self.outline.mean(axis=0)
        self.shape = (v1 - v0, u1 - u0)
        self.alpha = fill_outlines(self.shape, [self.outline])
        rows = (np.arange(self.shape[0]) + gland.seed % 1024) % grain.shape[0]
        cols = (np.arange(self.shape[1]) + gland.seed // 1024 % 1024) % grain.shape[1]
        self.grain = grain[np.ix_(rows, cols)]
        self.haema = np.zeros(self.shape, np.uint8)
        self.eosin = np.zeros(self.shape, np.uint8)

    def pick(self, low: float, high: float) -> float:
        return low + (high - low) * float(self.rng.random())

    def draw_cytoplasm(self, haema: float, eosin: float) -> None:
        grain = self.grain.astype(np.int16) - 128
        self.haema = np.clip(int(haema) + (grain >> 3), 0, 255).astype(np.uint8)
        self.eosin = np.clip(int(eosin) + (grain >> 2), 0, 255).astype(np.uint8)

    def move_outline(self, depth: Floats | float) -> Floats:
        """Return the outline moved by `depth` px towards the middle, at most 88 % of the way."""
        away = self.outline - self.centre
        reach = np.sqrt((away**2).sum(axis=1))
        return np.asarray(self.centre + away * np.maximum(1 - depth / reach, 0.12)[:, None])

    def draw_lumina(self, outlines: Sequence[Floats], secretion: float) -> None:
        hole = fill_outlines(self.shape, outlines)
        inside = (np.clip(self.grain.astype(np.int16) - 150, 0, 60) * secretion).astype(np.uint8)
        self.haema = mix(self.haema, 1, hole)
        self.eosin = mix(self.eosin, inside, hole)

    def place(self, kind: NucleusKind, u: float, v: float, angle: float) -> None:
        stock = draw_nuclei(kind, self.mpp)[int(self.rng.random() * VARIANTS)]
        turn = round_px(angle / math.pi * TURNS) % TURNS
        blit(self.haema, stock[turn], round_px(u), round_px(v))

    def draw_row(self, kind: NucleusKind, depth: float, pitch: float, jitter: float, upright: bool) -> None:
        """Draw a row of nuclei along the outline at a depth; `upright` ones are perpendicular to the border."""
        path = self.move_outline(depth)
        steps = np.roll(path, -1, axis=0) - path
        lengths = np.sqrt((steps**2).sum(axis=1))
        ends = np.cumsum(lengths)
        at = self.pick(0, pitch)
        while at < ends[-1]:
            i = min(int(np.searchsorted(ends, at)), len(path) - 1)
            t = 1 - (ends[i] - at) / max(lengths[i], 1e-6)
            u, v = path[i] + steps[i] * t
            u, v = u + self.pick(-jitter, jitter), v + self.pick(-jitter, jitter)
            angle = math.atan2(steps[i][1], steps[i][0]) + (math.pi / 2 if upright else 0)
            self.place(kind, u, v, angle + self.pick(-0.35, 0.35))
            at += pitch * self.pick(0.8, 1.25)

    def make_lattice(self, pitch: float, jitter: float) -> Floats:
        """Return the points (N, 2) u, v of a jittered hexagonal lattice over the whole drawing."""
        rows, cols = np.mgrid[0 : int(self.shape[0] / (0.866 * pitch)) + 1, 0 : int(self.shape[1] / pitch) + 1]
        u = (cols + 0.5 * (rows % 2)) * pitch
        points = np.stack([u.ravel(), rows.ravel() * 0.866 * pitch], axis=1)
        return np.asarray(points + (self.rng.random(points.shape) - 0.5) * (2 * jitter * pitch))

    def is_inside(self, mask: Bytes, u: float, v: float) -> bool:
        return 0 <= u < self.shape[1] and 0 <= v < self.shape[0] and bool(mask[int(v), int(u)] >= 200)

    def fill(self, kind: NucleusKind, pitch: float, jitter: float, area: Bytes) -> None:
        """Fill the px at which `area` is at least 200 with nuclei."""
        for u, v in self.make_lattice(pitch, jitter):
            if self.is_inside(area, u, v):
                self.place(kind, u, v, self.pick(0, math.pi))


def _draw_benign(d: _Drawing) -> None:
    um = d.um
    d.draw_cytoplasm(d.pick(14, 34), d.pick(52, 88))
    theta = np.arange(len(d.outline)) * (2 * math.pi / len(d.outline))
    folds = np.ones(len(theta))
    for k in range(4, 12):
        folds += d.pick(0.04, 0.24) * np.cos(k * theta + d.pick(0, 2 * math.pi))
    d.draw_lumina([d.move_outline(np.clip(folds, 0.7, 2.8) * d.pick(20, 26) * um)], d.pick(0, 0.9))
    d.draw_row("basal", 2.2 * um, 7.2 * um, 0.5 * um, upright=False)
    d.draw_row("luminal", 8.0 * um, 6.3 * um, 1.2 * um, upright=True)


def _draw_pattern3(d: _Drawing) -> None:
    um = d.um
    d.draw_cytoplasm(d.pick(26, 52), d.pick(68, 104))
    d.draw_lumina([d.move_outline(d.pick(12.5, 17.0) * um)], d.pick(0, 1.4))
    d.draw_row("cancer3", 4.4 * um, 7.4 * um, 0.5 * um, upright=True)


def _draw_pattern4(d: _Drawing) -> None:
    um = d.um
    d.draw_cytoplasm(d.pick(26, 50), d.pick(66, 100))
    inner = fill_outlines(d.shape, [d.move_outline(10 * um)])
    turn = np.arange(24) * (2 * math.pi / 24)
    holes, rims = [], []
    for u, v in d.make_lattice(d.pick(24, 32) * um, 0.2):
        if not d.is_inside(inner, u, v) or d.rng.random() < 0.12:
            continue
        wave = 1 + 0.12 * np.cos(2 * turn + d.pick(0, 6.3)) + 0.06 * np.cos(3 * turn + d.pick(0, 6.3))
        circle = np.stack([np.cos(turn), np.sin(turn)], axis=1) * wave[:, None]
        radius = d.pick(5.0, 11.5) * um
        holes.append((u, v) + circle * radius)
        rims.append((u, v) + circle * (radius + 3.8 * um))
    d.draw_lumina(holes, d.pick(0, 0.8))
    free = np.minimum(fill_outlines(d.shape, [d.move_outline(2.5 * um)]), 255 - fill_outlines(d.shape, rims))
    d.fill("cancer4", 7.6 * um, 0.24, free)


def _draw_pattern5(d: _Drawing) -> None:
    um = d.um
    d.draw_cytoplasm(d.pick(34, 58), d.pick(70, 108))
    d.fill("cancer5", 7.5 * um, 0.3, fill_outlines(d.shape, [d.move_outline(2.5 * um)]))


def _draw_cords(d: _Drawing) -> None:
    d.draw_cytoplasm(d.pick(34, 58), d.pick(70, 108))
    d.fill("cancer5", 7.5 * d.um, 0.15, fill_outlines(d.shape, [d.move_outline(1.5 * d.um)]))
    d.place("cancer5", d.centre[0], d.centre[1], d.pick(0, math.pi))


_DRAW = {"benign": (_draw_benign, 2), "pattern3": (_draw_pattern3, 3), "pattern4": (_draw_pattern4, 4)}
_DRAW |= {"pattern5": (_draw_pattern5, 5), "cords": (_draw_cords, 5)}


def draw_gland(gland: Gland, mpp: float, grain: Bytes) -> Stamp:
    """Draw a gland with Radboud's code (2 benign epithelium; 3, 4, 5 Gleason patterns).

    Args:
        gland: The gland.
        mpp: µm per level-0 px.
        grain: A square periodic texture around 128; the gland's seed shifts it.
    """
    drawing = _Drawing(gland, mpp, grain)
    draw, code = _DRAW[gland.kind]
    draw(drawing)
    u, v, _, _ = gland.find_box()
    return Stamp(u, v, drawing.haema, drawing.eosin, drawing.alpha, code)
