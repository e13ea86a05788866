"""Drawn slides with known truth, each with one difficulty for the search for tissue."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from panda.synthetic.layout import plan_scene
from panda.synthetic.painter import STYLES, Painter

MPP = 2.0
"""µm per level-0 px of the drawn slides; their level 1 is at 8 µm/px."""
SIZE = (3072, 2048)
PENS = {"blue": (45, 70, 165), "green": (40, 140, 80), "black": (34, 32, 36), "red": (205, 40, 55)}

Picture = NDArray[np.uint8]
Truth = NDArray[np.bool_]


@lru_cache(maxsize=4)
def base(size: tuple[int, int], provider: str, seed: int = 5) -> tuple[Picture, Truth]:
    """Draw a slide (h, w, 3) of a size (w, h) and its tissue mask (h, w)."""
    rgb, codes = Painter(plan_scene(*size, MPP, 2, seed), provider).draw(0, 0, *size)
    return rgb, codes > 0


class Drawing:
    """A slide in the making: `rgb` (h, w, 3), `truth` (h, w); lengths in px of level 0."""

    def __init__(self, size: tuple[int, int] = SIZE, provider: str = "karolinska", *, tissue: bool = True) -> None:
        rgb, truth = base(size, provider)
        self.rgb, self.truth = rgb.copy(), truth.copy()
        self.glass = np.array(STYLES[provider].glass, np.float32)
        self.rng = np.random.default_rng(3)
        self.width, self.height = size
        if not tissue:
            self.keep(np.zeros_like(self.truth))

    def keep(self, where: Truth) -> Drawing:
        """Leave clean glass everywhere else."""
        grain = self.rng.normal(0, 1.5, self.rgb.shape).astype(np.float32)
        clean = np.clip(self.glass + grain, 0, 255).astype(np.uint8)
        grown = cv2.dilate((where & self.truth).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
        self.rgb = np.where(grown[..., None], self.rgb, clean)
        self.truth &= where
        return self

    def fade(self, strength: float, where: Truth | None = None) -> Drawing:
        """Weaken the stain to a share of its optical density."""
        light = np.maximum(self.rgb, 1) / self.glass
        passed = np.where(light < 1, light**strength, light)
        faded = np.asarray(np.clip(self.glass * passed, 0, 255)).astype(np.uint8)
        self.rgb = faded if where is None else np.where(where[..., None], faded, self.rgb)
        return self

    def light(self, colour: tuple[float, float, float], uneven: float = 0.0) -> Drawing:
        """Scan in another light: glass of that colour, and darker by a share towards a corner."""
        ramp = np.add.outer(np.linspace(0, 0.5, self.height), np.linspace(0, 0.5, self.width))[..., None]
        shade = 1 - uneven * ramp * np.array([0.6, 1.0, 0.6])
        self.rgb = np.clip(self.rgb * (np.array(colour) / self.glass) * shade, 0, 255).astype(np.uint8)
        return self

    def pen(self, colour: tuple[int, int, int], *, beside: bool = False, um: float = 220) -> Drawing:
        """Scribble across the slide, opaque in the middle of the stroke and streaky; ink covers the px below."""
        canvas = np.zeros((self.height, self.width), np.float32)
        x = np.linspace(0.05, 0.95, 60)
        y = 0.04 + 0.02 * np.sin(9 * x) if beside else 0.5 + 0.42 * np.sin(7 * x)
        points = np.stack([x * self.width, y * self.height], axis=1).astype(np.int32)
        cv2.polylines(canvas, [points], False, 1.0, round(um / MPP))
        cover = cv2.GaussianBlur(canvas, (0, 0), 3)
        grain = np.asarray(self.rng.normal(0, 1, cover.shape), np.float32)
        streaks = cv2.GaussianBlur(grain, (0, 0), 6)
        ink = np.array(colour, np.float32) + (streaks * 140)[..., None]
        self.rgb = np.clip(self.rgb * (1 - cover[..., None]) + ink * cover[..., None], 0, 255).astype(np.uint8)
        self.truth &= cover < 0.5
        return self

    def coverslip(self) -> Drawing:
        """Lay the edge of a coverslip across: a grey line with a dark rim and a fringe of colour."""
        for shift, colour, thick in ((0, (150, 150, 148), 9), (-8, (70, 70, 75), 3), (8, (222, 196, 224), 7)):
            start = int(0.3 * self.width) + shift, 0
            stop = int(0.36 * self.width) + shift, self.height
            cv2.line(self.rgb, start, stop, colour, thick, cv2.LINE_AA)
        row = int(0.06 * self.height)
        cv2.line(self.rgb, (0, row), (self.width, row + 20), (120, 118, 122), 6, cv2.LINE_AA)
        return self

    def dust(self, per_mm2: float = 10.0) -> Drawing:
        """Strew grey, dark and brown grains of up to 90 µm, and some fibres."""
        grains = round(per_mm2 * self.width * self.height * MPP * MPP / 1e6)
        colours = ((120, 118, 116), (60, 58, 60), (150, 126, 96), (190, 188, 180), (105, 85, 70))
        places = self.rng.random((grains, 2)) * (self.width, self.height)
        for number, (x, y) in enumerate(places.astype(int).tolist()):
            axes = tuple(int(a) for a in self.rng.integers(2, 23, 2))
            cv2.ellipse(self.rgb, (x, y), axes, 30.0 * number, 0, 360, colours[number % 5], -1, cv2.LINE_AA)
            if number % 20 == 0:
                arc = int(self.rng.integers(60, 200)), int(self.rng.integers(20, 100))
                cv2.ellipse(self.rgb, (x, y), arc, 0, 0, 150, (90, 95, 120), 5, cv2.LINE_AA)
        return self

    def vacuoles(self, filling: tuple[int, int, int], um: tuple[float, float]) -> Drawing:
        """Fill the middle third of the cores with round, thin-walled spaces, which are part of the tissue."""
        low, high = (side / 2 / MPP for side in um)
        spots = np.argwhere(self.truth[:, self.width // 3 : 2 * self.width // 3])
        taken: list[tuple[float, float, float]] = []
        for v, u in self.rng.permutation(spots)[:6000].tolist():
            radius, x = float(self.rng.uniform(low, high)), u + self.width // 3
            if all(math.hypot(x - a, v - b) > radius + r + 1.5 for a, b, r in taken):
                taken.append((x, v, radius))
        spaces = np.zeros_like(self.rgb[..., 0])
        for x, y, radius in taken:
            cv2.circle(spaces, (round(x), round(y)), int(radius), 1, -1)
        inside = (spaces > 0) & self.truth
        noise = self.rng.normal(0, 1.5, self.rgb.shape)
        self.rgb[inside] = np.clip(np.array(filling) + noise, 0, 255).astype(np.uint8)[inside]
        return self

    def noise(self, sigma: float) -> Drawing:
        """Add the noise of a poor camera."""
        grain = self.rng.normal(0, sigma, self.rgb.shape)
        self.rgb = np.clip(self.rgb + grain, 0, 255).astype(np.uint8)
        return self

    def fragment(self, um: float) -> Drawing:
        """Leave one piece of a core of that length and clean glass."""
        y, x = np.argwhere(self.truth)[self.truth.sum() // 2]
        where = np.zeros_like(self.truth)
        half = round(um / 2 / MPP)
        where[max(y - half, 0) : y + half, max(x - half, 0) : x + half] = True
        return self.keep(where)

    def frame(self) -> Drawing:
        """Blacken a margin and grey out a corner, as if nothing was scanned there."""
        self.rgb[: self.height // 12] = self.rgb[:, -self.width // 20 :] = 0
        self.rgb[-self.height // 6 :, : self.width // 3] = 226
        covered = (self.rgb == 0).all(axis=2) | (self.rgb == 226).all(axis=2)
        self.truth &= ~covered
        return self

    def unscanned(self, um: float) -> Drawing:
        """Fill px farther than that from tissue with plain white."""
        side = 2 * round(um / MPP) + 1
        near = cv2.dilate(self.truth.astype(np.uint8), np.ones((side, side), np.uint8)) > 0
        self.rgb = np.where(near[..., None], self.rgb, np.uint8(255))
        return self

    def restain(self, colour: tuple[float, float, float]) -> Drawing:
        """Replace the stains by one of that optical density in R, G, B; (1, 1, 1) is a grey-scale scan."""
        grey = cv2.cvtColor(self.rgb, cv2.COLOR_RGB2GRAY).astype(np.float32)
        density = -np.log(np.clip(grey / grey.max(), 0.004, 1))[..., None] * np.array(colour)
        self.rgb = np.clip(grey.max() * np.exp(-density), 0, 255).astype(np.uint8)
        return self


Make = Callable[[tuple[int, int]], Drawing]


def _pale_beside_dark(size: tuple[int, int]) -> Drawing:
    drawing = Drawing(size)
    half = np.zeros_like(drawing.truth)
    half[:, size[0] // 2 :] = True
    return drawing.fade(0.2, half)


def _pen(name: str, *, tissue: bool) -> Make:
    return lambda size: Drawing(size, tissue=tissue).pen(PENS[name])


TISSUE: dict[str, Make] = {
    "white glass": Drawing,
    "grey blocks": lambda size: Drawing(size, "radboud"),
    "grey glass": lambda size: Drawing(size).light((206, 206, 207)),
    "magenta glass": lambda size: Drawing(size).light((240, 233, 240)),
    "yellow glass": lambda size: Drawing(size).light((244, 240, 226)),
    "uneven light": lambda size: Drawing(size).light((245, 244, 246), 0.04),
    "black and grey frame": lambda size: Drawing(size).light((240, 233, 240)).frame(),
    "magenta glass, little scanned": lambda size: Drawing(size).light((241, 235, 240)).unscanned(300),
    "camera noise": lambda size: Drawing(size).noise(9),
    **{f"{name} pen": _pen(name, tissue=True) for name in PENS},
    "coverslip edge": lambda size: Drawing(size).coverslip(),
    "dust": lambda size: Drawing(size).dust(),
    "one fragment, 120 µm": lambda size: Drawing(size).fragment(120),
    "fragment, dust and pen": lambda size: Drawing(size).fragment(300).dust().pen(PENS["blue"], beside=True),
    "pale": lambda size: Drawing(size).fade(0.3),
    "very pale": lambda size: Drawing(size).fade(0.12),
    "barely stained": lambda size: Drawing(size).fade(0.06),
    "pale, half of each core": _pale_beside_dark,
    "very pale, blue pen": lambda size: Drawing(size).fade(0.12).pen(PENS["blue"]),
    "fat": lambda size: Drawing(size).vacuoles((245, 244, 246), (40, 110)),
    "mucin": lambda size: Drawing(size).vacuoles((232, 229, 240), (60, 160)),
    "grey-scale scan": lambda size: Drawing(size).restain((1, 1, 1)),
    "DAB brown": lambda size: Drawing(size).restain((0.55, 0.95, 1.4)),
}
"""Slides with tissue."""

NO_TISSUE: dict[str, Make] = {
    "blank white": lambda size: Drawing(size, tissue=False),
    "blank grey": lambda size: Drawing(size, tissue=False).light((200, 200, 200)),
    "blank, uneven light": lambda size: Drawing(size, tissue=False).light((245, 244, 246), 0.08),
    "blank, grey blocks": lambda size: Drawing(size, tissue=False).frame(),
    "noise on glass": lambda size: Drawing(size, tissue=False).noise(9),
    **{f"{name} pen only": _pen(name, tissue=False) for name in PENS},
    "dust only": lambda size: Drawing(size, tissue=False).dust(),
    "coverslip edge only": lambda size: Drawing(size, tissue=False).coverslip(),
}
"""Slides without any, which are refused."""
