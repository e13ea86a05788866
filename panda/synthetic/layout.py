"""Lay out a synthetic slide for an ISUP grade: zones of Gleason patterns along the cores, filled with glands.

Sizes follow prostate histology: benign glands are 100-250 µm across, glands of pattern 3 are 40-80 µm. Cancer takes
contiguous intervals of one or two cores, and benign glands fill the rest.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np

from panda.synthetic.scene import Core, Floats, Gland, Kind, Scene, hash_points

CORE_WIDTH_UM = 350.0
# primary and secondary pattern of each ISUP grade, the frequent ones of PANDA first
GRADE_PATTERNS: dict[int, tuple[tuple[int, int], ...]] = {
    0: (),
    1: ((3, 3),),
    2: ((3, 4),),
    3: ((4, 3),),
    4: ((4, 4), (4, 4), (4, 4), (3, 5), (5, 3)),
    5: ((4, 5), (4, 5), (5, 4), (5, 5)),
}
# share of a zone that its drawn glands cover: pattern 3 needs a longer zone for the same area
_COVER = {3: 0.47, 4: 0.74, 5: 0.74}


class _Layout:
    """Fills a scene: chooses zones and scatters glands so that they do not overlap."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.rng = np.random.Generator(np.random.PCG64([scene.seed, 1]))
        self.um = 1 / scene.mpp
        self.cell = 130 * self.um
        self.borders: dict[int, tuple[Floats, Floats]] = {}
        self.taken: dict[tuple[int, int], list[tuple[float, float, float]]] = {}

    def pick(self, low: float, high: float) -> float:
        return low + (high - low) * float(self.rng.random())

    def draw_seed(self) -> int:
        return int(self.rng.random() * 2**31)

    def place_cores(self) -> None:
        scene = self.scene
        width = min(CORE_WIDTH_UM * self.um, 0.78 * scene.breadth)
        count = min(max(int(scene.breadth / (1.2 * width)), 1), 4)
        if count > 2:
            count -= int(self.rng.random() * (count - 1))
        lane = scene.breadth / count
        for i in range(count):
            slack = lane - width
            margin = min(0.04 * scene.length, 400 * self.um)
            start = self.pick(0.3, 1) * margin
            stop = scene.length - self.pick(0.3, 1) * margin
            bend = min(0.25 * slack, 150 * self.um)
            bends = (self.pick(-1, 1) * bend, self.pick(-1, 1) * bend)
            centre = (i + 0.5) * lane + self.pick(-0.1, 0.1) * slack
            half = width / 2 * self.pick(0.9, 1.0)
            scene.cores.append(Core(start, stop, centre, *bends, half, scene.mpp, self.draw_seed()))

    def choose_zones(self, isup_grade: int) -> dict[int, list[tuple[float, float, int]]]:
        """Choose the intervals of each core with cancer: (u0, u1, pattern)."""
        zones: dict[int, list[tuple[float, float, int]]] = {}
        choices = GRADE_PATTERNS[isup_grade]
        if not choices:
            return zones
        first, second = choices[int(self.rng.random() * len(choices))]
        share = self.pick(0.64, 0.72) if first != second else 1.0
        part = share / _COVER[first]
        part /= part + (1 - share) / _COVER[second]
        order = sorted(range(len(self.scene.cores)), key=lambda _: float(self.rng.random()))
        foci = 1 if self.rng.random() < 0.6 else 2
        for rank, number in enumerate(order[:foci]):
            core = self.scene.cores[number]
            length = (core.stop - core.start) * (self.pick(0.5, 0.75) if not rank else self.pick(0.25, 0.45))
            u0 = core.start + self.pick(0.08, 0.92) * (core.stop - core.start - length)
            cut, u1 = u0 + part * length, u0 + length
            if part == 1:
                zones[number] = [(u0, u1, first)]
            elif self.rng.random() < 0.5:
                zones[number] = [(u0, cut, first), (cut, u1, second)]
            else:
                cut = u1 - part * length
                zones[number] = [(u0, cut, second), (cut, u1, first)]
        return zones

    def is_free(self, u: float, v: float, radius: float, gap: float) -> bool:
        cu, cv = int(u // self.cell), int(v // self.cell)
        reach = int((radius + gap + self.cell) // self.cell)
        near = itertools.product(range(cu - reach, cu + reach + 1), range(cv - reach, cv + reach + 1))
        return not any(
            (a - u) ** 2 + (b - v) ** 2 < (r + radius + gap) ** 2
            for cell in near
            for a, b, r in self.taken.get(cell, ())
        )

    def take(self, u: float, v: float, radius: float) -> None:
        self.taken.setdefault((int(u // self.cell), int(v // self.cell)), []).append((u, v, radius))

    def find_border(self, core: Core, u: float) -> tuple[float, float]:
        """Return the borders of the core near `u`, from a table with one entry per 8 px."""
        if core.seed not in self.borders:
            self.borders[core.seed] = core.find_edges(np.arange(0, self.scene.length + 8, 8, dtype=np.float64))
        top, bottom = self.borders[core.seed]
        i = min(max(int(u) // 8, 0), len(top) - 1)
        return float(top[i]), float(bottom[i])

    def scatter(
        self, core: Core, span: tuple[float, float], radii: tuple[float, float], gap: float, tries: float
    ) -> Iterator[tuple[float, float, float]]:
        """Yield discs (u, v, radius) in an interval of a core that do not overlap, large ones first."""
        low, high = radii
        area = (span[1] - span[0]) * 2 * core.half
        for step in range(3):
            r0 = high - (high - low) * (step + 1) / 3
            for _ in range(int(tries * area / (math.pi * (r0 + (high - low) / 6) ** 2))):
                radius = self.pick(r0, r0 + (high - low) / 3)
                u, across = self.pick(*span), self.pick(-1, 1)
                if u - span[0] < 0.6 * radius or span[1] - u < 0.6 * radius:
                    continue
                top, bottom = self.find_border(core, u)
                if bottom - top < 2.2 * low:
                    continue
                v = (top + bottom) / 2 + across * max((bottom - top) / 2 - 0.75 * radius, 0)
                if self.is_free(u, v, radius, gap):
                    self.take(u, v, radius)
                    yield u, v, radius

    def make_ring(self, u: float, v: float, radius: float, squeeze: tuple[float, float], waves: Floats) -> Floats:
        """Return a closed outline within `radius`: an ellipse with the given cosine waves from k = 2 on."""
        theta = np.arange(64) * (2 * math.pi / 64)
        r = np.ones(64)
        for k, height in enumerate(waves, start=2):
            r += height * np.cos(k * theta + self.pick(0, 2 * math.pi))
        r *= radius / r.max()
        a, turn = self.pick(*squeeze), self.pick(0, math.pi)
        x, y = r * np.cos(theta), r * np.sin(theta) * a
        c, s = math.cos(turn), math.sin(turn)
        return np.stack([u + c * x - s * y, v + s * x + c * y], axis=1)

    def add_rings(self, kind: Kind, core: Core, span: tuple[float, float]) -> None:
        um = self.um
        radii, gap, tries, squeeze, waves = {
            "benign": ((46 * um, 112 * um), 1 * um, 14.0, (0.6, 0.92), np.array([0.10, 0.09, 0.06, 0.05])),
            "pattern3": ((19 * um, 39 * um), -6.5 * um, 50.0, (0.72, 0.95), np.array([0.05, 0.04, 0.02])),
            "cords": ((6 * um, 17 * um), 3 * um, 2.0, (0.35, 0.6), np.array([0.04, 0.05])),
        }[kind]
        for u, v, radius in self.scatter(core, span, radii, gap, tries):
            self.scene.add(Gland(kind, self.make_ring(u, v, radius, squeeze, waves), self.draw_seed()))

    def add_sheets(self, kind: Kind, core: Core, span: tuple[float, float], pitch: float, gap: float) -> None:
        """Fill an interval with sheets: jittered hexagons that share their corners, shrunk by a thin septum."""
        height = pitch * math.sqrt(3) / 2
        salt = self.draw_seed()
        for row in range(-math.ceil(core.half * 1.6 / height), math.ceil(core.half * 1.6 / height) + 1):
            for col in range(int((span[1] - span[0]) / pitch) + 2):
                u = span[0] + (col + 0.5 * (row % 2)) * pitch
                top, bottom = self.find_border(core, u)
                v = core.centre + row * height
                if not (span[0] <= u <= span[1] and top - 0.3 * pitch < v < bottom + 0.3 * pitch):
                    continue
                if kind == "pattern5" and self.rng.random() < 0.1:
                    continue
                corners = []
                for k in range(6):
                    angle = math.pi / 6 + k * math.pi / 3
                    cu = u + pitch / math.sqrt(3) * math.cos(angle)
                    cv = v + pitch / math.sqrt(3) * math.sin(angle)
                    # a corner is identified by its lattice position, so that its three cells agree
                    across, down = round((cu - span[0]) / pitch * 2), round((cv - core.centre) / height * 6)
                    bits = int(hash_points(np.array([across]), down, salt)[0])
                    cu += ((bits & 0xFFFF) / 65536 - 0.5) * 0.42 * pitch
                    cv += ((bits >> 16) / 65536 - 0.5) * 0.42 * pitch
                    corners.append((cu, cv))
                outline = _round_corners(np.array(corners), gap, self.rng)
                self.scene.add(Gland(kind, outline, self.draw_seed()))
                self.take(u, v, 0.42 * pitch)

    def fill(self, isup_grade: int) -> None:
        self.place_cores()
        zones = self.choose_zones(isup_grade)
        for number, core in enumerate(self.scene.cores):
            at = core.start
            for u0, u1, pattern in [*zones.get(number, []), (core.stop, core.stop, 0)]:
                if u0 > at:
                    self.add_rings("benign", core, (at, u0))
                at = u1
                if pattern == 3:
                    self.add_rings("pattern3", core, (u0, u1))
                elif pattern == 4:
                    self.add_sheets("pattern4", core, (u0, u1), self.pick(150, 200) * self.um, 5 * self.um)
                elif pattern == 5:
                    self.add_sheets("pattern5", core, (u0, u1), self.pick(120, 160) * self.um, 4 * self.um)
                    self.add_rings("cords", core, (u0, u1))


def _round_corners(corners: Floats, gap: float, rng: np.random.Generator) -> Floats:
    """Shrink a polygon by about `gap` px and cut its corners three times (Chaikin)."""
    middle = corners.mean(axis=0)
    away = corners - middle
    reach = np.sqrt((away**2).sum(axis=1, keepdims=True))
    points = middle + away * np.maximum(1 - 1.2 * gap / reach, 0.2)
    for turn in range(3):
        after = np.roll(points, -1, axis=0)
        points = np.stack([0.75 * points + 0.25 * after, 0.25 * points + 0.75 * after], axis=1).reshape(-1, 2)
        if turn == 1:
            points = points + (rng.random(points.shape) - 0.5) * 2 * gap
    return np.asarray(points)


def plan_scene(width: int, height: int, mpp: float, isup_grade: int, seed: int) -> Scene:
    """Lay out a slide for an ISUP grade.

    Args:
        width: Width in level-0 px.
        height: Height in level-0 px. The cores run along the longer side.
        mpp: µm per level-0 px.
        isup_grade: 0-5; chooses the patterns and their areas, see `panda.synthetic.dataset.draw_slide`.
        seed: Seed of the slide.
    """
    upright = height > width
    length, breadth = (height, width) if upright else (width, height)
    scene = Scene(length, breadth, upright, mpp, seed)
    _Layout(scene).fill(isup_grade)
    return scene
