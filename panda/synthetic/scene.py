"""Describe a synthetic biopsy slide: its cores and every gland, with their places.

A scene takes some kilobytes for a demonstration slide and some megabytes for one of 100,000 × 100,000 px. Any
rectangle of it can be drawn alone. Its frame is the level-0 frame of the slide, with the axes exchanged if the cores
are upright: u runs along the cores, v across them, in px.

Random numbers come from `Generator(PCG64).random` and integer hashing only, which are the same on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["benign", "pattern3", "pattern4", "pattern5", "cords"]
Floats = NDArray[np.float64]
CELL_PX = 512


def hash_points(a: NDArray[np.int64], b: NDArray[np.int64] | int, seed: int) -> NDArray[np.uint32]:
    """Hash integer lattice points (a, b), broadcast, to 32 random bits each (the mixer of MurmurHash3)."""
    x = a.astype(np.uint64) * np.uint64(0x9E3779B1) + np.atleast_1d(b).astype(np.uint64) * np.uint64(0x85EBCA77)
    x = (x + np.uint64(seed & 0xFFFFFFFF) * np.uint64(0xC2B2AE3D)) & np.uint64(0xFFFFFFFF)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = ((x ^ (x >> np.uint64(shift))) * np.uint64(factor)) & np.uint64(0xFFFFFFFF)
    return (x ^ (x >> np.uint64(16))).astype(np.uint32)


def make_noise(u: Floats, period: float, seed: int) -> Floats:
    """Return smooth noise in [-1, 1] at positions along a line, independent at a distance of `period`, all in px."""
    cell = np.floor(u / period)
    t = u / period - cell
    t = t * t * (3 - 2 * t)
    i = cell.astype(np.int64)
    left, right = (hash_points(i + k, 0, seed) / 2147483648.0 - 1 for k in (0, 1))
    return np.asarray(left + (right - left) * t)


@dataclass(frozen=True)
class Core:
    """One needle core along u. All numbers are px in the frame of the scene."""

    start: float
    stop: float
    centre: float
    slope: float
    bow: float
    half: float
    mpp: float
    seed: int

    def find_edges(self, u: Floats) -> tuple[Floats, Floats]:
        """Return the upper and lower border (v in px) of the core at positions `u`; they are equal past its ends."""
        span = (self.stop - self.start) / 2
        s = np.clip((u - self.start) / span - 1, -1, 1)
        middle = self.centre + self.slope * s + self.bow * (s * s - 1 / 3)
        middle = middle + 0.06 * self.half * make_noise(u, 260 / self.mpp, self.seed)
        half = self.half * (1 + 0.10 * make_noise(u, 90 / self.mpp, self.seed + 1))
        cap = min(0.9 * self.half / span, 1.0)
        past = np.clip((np.abs(s) - (1 - cap)) / cap, 0, 1)
        half = half * np.sqrt(1 - past * past) + 4 / self.mpp * make_noise(u, 12 / self.mpp, self.seed + 2)
        half = np.where((u > self.start) & (u < self.stop), np.maximum(half, 0), 0)
        return middle - half, middle + half


@dataclass(frozen=True)
class Gland:
    """One object of the epithelium. `outline` is (N, 2) u, v in px in the frame of the scene."""

    kind: Kind
    outline: Floats
    seed: int

    def find_box(self) -> tuple[int, int, int, int]:
        """Return u0, v0, u1, v1: the box of whole px that the outline may touch, soft border included."""
        low, high = self.outline.min(axis=0), self.outline.max(axis=0)
        return int(low[0]) - 6, int(low[1]) - 6, int(high[0]) + 7, int(high[1]) + 7


@dataclass
class Scene:
    """The cores and glands of a slide, with a spatial index.

    If `upright`, u is the y axis of the slide. `length` and `breadth` are the size of the slide along u and v.
    """

    length: int
    breadth: int
    upright: bool
    mpp: float
    seed: int
    cores: list[Core] = field(default_factory=list)
    glands: list[Gland] = field(default_factory=list)
    _index: dict[tuple[int, int], list[int]] = field(default_factory=dict)

    def add(self, gland: Gland) -> None:
        """Add a gland; a later gland covers earlier ones."""
        u0, v0, u1, v1 = gland.find_box()
        for cu in range(u0 // CELL_PX, u1 // CELL_PX + 1):
            for cv in range(v0 // CELL_PX, v1 // CELL_PX + 1):
                self._index.setdefault((cu, cv), []).append(len(self.glands))
        self.glands.append(gland)

    def find_glands(self, u0: int, v0: int, u1: int, v1: int) -> list[int]:
        """Return the glands that may touch a rectangle, in drawing order."""
        columns, rows = range(u0 // CELL_PX, (u1 - 1) // CELL_PX + 1), range(v0 // CELL_PX, (v1 - 1) // CELL_PX + 1)
        return sorted({number for cu in columns for cv in rows for number in self._index.get((cu, cv), ())})
