"""Draw any rectangle of a synthetic slide alone: first the stains, then the colours of the scanner.

A pixel depends only on its position and on whole stamps, never on the tile, so tiles have no seams and any order. The
last steps are integer tables, so the result is the same on every machine.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray

from panda.synthetic.glands import TURNS, VARIANTS, Bytes, NucleusKind, Stamp, blit, draw_gland, draw_nuclei, mix
from panda.synthetic.scene import Floats, Scene, hash_points

# R, G, B and an unused byte in one number: one look-up and one addition serve three channels
Packed = NDArray[np.uint32]
PERIOD = 1024
GREY_BLOCK_PX = 192
STAMP_CACHE_BYTES = 48 * 2**20
# deviation of a core's border from its smooth course
RAGGED_UM = 2.5
_NOISE = 4


@dataclass(frozen=True)
class Style:
    """The colours that a provider's scanner and laboratory give to a slide.

    Attributes:
        haema: Optical density of full haematoxylin (255) in R, G, B.
        eosin: Optical density of full eosin.
        glass: Colour of clean glass.
        grey: Colour of blocks that were not scanned; None if the provider has no such blocks.
    """

    haema: tuple[float, float, float]
    eosin: tuple[float, float, float]
    glass: tuple[int, int, int]
    grey: int | None


STYLES = {
    "karolinska": Style((0.86, 1.28, 0.52), (0.13, 0.98, 0.34), (245, 244, 246), None),
    "radboud": Style((1.12, 1.22, 0.62), (0.22, 0.86, 0.48), (248, 248, 247), 225),
}


def _weave(rng: np.random.Generator, cells: tuple[int, int], shift: Floats | float = 0.0) -> Floats:
    """Return periodic smooth noise in [-1, 1], (PERIOD, PERIOD); `shift` moves it by px."""
    lattice = rng.random(cells) * 2 - 1
    at = np.arange(PERIOD, dtype=np.float64)
    out = []
    for place, count in ((at[:, None] + shift, cells[0]), (at[None, :] + shift, cells[1])):
        scaled = place * count / PERIOD
        whole = np.floor(scaled)
        t = scaled - whole
        out.append((whole.astype(np.int64) % count, t * t * (3 - 2 * t)))
    (i, s), (j, t) = out
    k, m = (i + 1) % cells[0], (j + 1) % cells[1]
    top = lattice[i, j] + (lattice[i, m] - lattice[i, j]) * t
    low = lattice[k, j] + (lattice[k, m] - lattice[k, j]) * t
    return np.asarray(top + (low - top) * s)


def _pack(rgb: Bytes) -> Packed:
    """Pack (..., 3) into (...) little-endian numbers."""
    four = np.zeros((*rgb.shape[:-1], 4), np.uint8)
    four[..., :3] = rgb
    return four.view("<u4")[..., 0]


def _to_bytes(field: Floats) -> Bytes:
    return np.rint(np.clip(128 + 127 * field, 0, 255)).astype(np.uint8)


@dataclass(frozen=True)
class Textures:
    """Periodic pictures (PERIOD, PERIOD): uint8 around 128, and the scanner's noise as packed R, G, B."""

    fibres: Bytes
    bundles: Bytes
    cloud: Bytes
    grain: Bytes
    noise: Packed


@functools.lru_cache(maxsize=4)
def make_textures(mpp: float) -> Textures:
    """Make the textures for a resolution in µm per level-0 px; the fibres keep their size in µm."""
    rng = np.random.Generator(np.random.PCG64(11))

    def cells(um: float) -> int:
        return max(int(PERIOD * mpp / um), 4)

    wave = 24 / mpp * _weave(rng, (cells(120), cells(90))) + 5 / mpp * _weave(rng, (cells(40), cells(28)))
    fibres = 0.55 * _weave(rng, (cells(7), cells(70)), wave) + 0.45 * _weave(rng, (cells(3), cells(45)), wave)
    wave = 60 / mpp * _weave(rng, (cells(200), cells(120)))
    bundles = 0.5 * _weave(rng, (cells(9), cells(30)), wave) + 0.4 * _weave(rng, (cells(4), cells(12)), wave)
    wave = 40 * _weave(rng, (14, 14))
    cloud = 0.75 * _weave(rng, (16, 16), wave) + 0.35 * _weave(rng, (48, 48), wave)
    grain = 0.6 * _weave(rng, (cells(4), cells(4))) + 0.5 * _weave(rng, (cells(1.6), cells(1.6)))
    base = rng.random((PERIOD, PERIOD, 1)) + rng.random((PERIOD, PERIOD, 1)) + 0.5 * rng.random((PERIOD, PERIOD, 3))
    noise = np.floor(base * (2 * _NOISE + 1) / 2.5).astype(np.uint8)
    return Textures(_to_bytes(fibres), _to_bytes(bundles), _to_bytes(cloud), _to_bytes(grain), _pack(noise))


def _cut_window(texture: NDArray[Any], corner: tuple[int, int], size: tuple[int, int], step: int = 1) -> NDArray[Any]:
    """Return (h, w) px at u, v of an endlessly repeated texture whose px are `step` px wide."""
    rows, cols = (np.arange(at, at + n) // step % PERIOD for at, n in zip(corner[::-1], size[::-1], strict=True))
    return np.take(np.take(texture, rows, axis=0), cols, axis=1)


class Painter:
    """Draws rectangles of one slide.

    Args:
        scene: The content of the slide.
        provider: A key of `STYLES`.
    """

    def __init__(self, scene: Scene, provider: str) -> None:
        self.scene = scene
        self.style = STYLES[provider]
        self.textures = make_textures(scene.mpp)
        rng = np.random.Generator(np.random.PCG64([scene.seed, 2]))
        self.shift = [(int(rng.random() * PERIOD), int(rng.random() * PERIOD)) for _ in range(5)]
        self.reach = math.ceil(RAGGED_UM / scene.mpp) + 2
        self.pink = 108 + int(rng.random() * 36)
        self.colours = self._mix_colours(rng)
        most = STAMP_CACHE_BYTES
        self.stamps: LRUCache[int, Stamp] = LRUCache(most, getsizeof=lambda stamp: min(3 * stamp.alpha.size, most))

    def _mix_colours(self, rng: np.random.Generator) -> Packed:
        """Return the (65536,) packed colours of the slide by haematoxylin · 256 + eosin (Beer-Lambert)."""
        strength = 0.84 + 0.32 * float(rng.random()), 0.84 + 0.32 * float(rng.random())
        amount = np.arange(256) / 255
        table = np.empty((256, 256, 3), np.uint8)
        for channel in range(3):
            haema = self.style.haema[channel] * strength[0] * (0.95 + 0.1 * float(rng.random()))
            eosin = self.style.eosin[channel] * strength[1] * (0.95 + 0.1 * float(rng.random()))
            light = np.exp(-haema * amount)[:, None] * np.exp(-eosin * amount)[None, :]
            table[..., channel] = np.rint(self.style.glass[channel] * light) - _NOISE
        return _pack(table.reshape(-1, 3))

    def get_stamp(self, number: int) -> Stamp:
        """Return the picture of a gland, which is drawn again if it fell out of the bounded cache."""
        if (stamp := self.stamps.get(number)) is None:
            stamp = draw_gland(self.scene.glands[number], self.scene.mpp, self.textures.grain)
            self.stamps[number] = stamp
        return stamp

    def draw(self, x: int, y: int, w: int, h: int) -> tuple[Bytes, Bytes]:
        """Draw a rectangle.

        Args:
            x: Left edge, level-0 px.
            y: Upper edge, level-0 px.
            w: Width in px.
            h: Height in px.

        Returns:
            The picture (h, w, 3) RGB, and the truth (h, w): 0 glass, 1 stroma, 2 benign epithelium, and 3, 4, 5 cancer
            of that Gleason pattern. Past the edge of the slide there is glass.
        """
        if self.scene.upright:
            rgb, codes = self._draw(y, x, h, w)
            return rgb.transpose(1, 0, 2), codes.T
        return self._draw(x, y, w, h)

    def _draw(self, u: int, v: int, w: int, h: int) -> tuple[Bytes, Bytes]:
        # glass is at most 248 and the noise spans -4 to 4, so no channel spills into the next
        packed = _cut_window(self.textures.noise, (u, v), (w, h))
        cover = self._measure_cover(u, v, w, h)
        codes = np.zeros((h, w), np.uint8)
        if cover is None:
            packed = packed + self.colours[0]
        else:
            haema, eosin = self._draw_tissue(u, v, codes)
            nothing = np.zeros_like(codes)
            haema, eosin = mix(nothing, haema, cover), mix(nothing, eosin, cover)
            codes[cover < 128] = 0
            packed = packed + np.take(self.colours, haema.astype(np.uint16) << 8 | eosin)
        rgb = np.ascontiguousarray(packed.astype("<u4").view(np.uint8).reshape(h, w, 4)[..., :3])
        if self.style.grey is not None:
            self._grey_out(rgb, u, v, self.style.grey)
        return rgb, codes

    def _measure_cover(self, u: int, v: int, w: int, h: int) -> Bytes | None:
        """Return the opacity (h, w) of tissue; None if the rectangle holds glass only."""
        at, across = np.arange(u, u + w, dtype=np.float64), np.arange(v, v + h, dtype=np.float64)[:, None]
        borders = list(self._find_borders(at, v, h, self.reach))
        if not borders:
            return None
        cloud = _cut_window(self.textures.grain, (u, v), (w, h), 2).astype(np.float64)
        ragged = (cloud - 128) * (RAGGED_UM / self.scene.mpp / 128)
        depths = (np.minimum(across - top, bottom - across) + ragged - 4 for top, bottom in borders)
        within = (np.where(bottom > top, depth, -1) for (top, bottom), depth in zip(borders, depths, strict=True))
        inside = functools.reduce(np.maximum, within)
        if inside.max() <= 0:
            return None
        return np.floor(np.clip(inside * (0.8 * self.scene.mpp), 0, 1) * 255 + 0.5).astype(np.uint8)

    def _draw_tissue(self, u: int, v: int, codes: Bytes) -> tuple[Bytes, Bytes]:
        """Return the stains of a rectangle at u, v as if it were all inside a core, and fill in `codes`."""
        h, w = codes.shape
        maps, at = self.textures, [(u + a, v + b) for a, b in self.shift]
        along = _cut_window(maps.fibres, at[0], (w, h))
        other = _cut_window(maps.bundles, at[1], (w, h))
        cloud = _cut_window(maps.cloud, at[2], (w, h), 2)
        which = (np.clip(cloud.astype(np.int16) - 96, 0, 63) * 4).astype(np.uint8)
        fibre = mix(along, other, which).astype(np.int16) - 128
        eosin = self.pink + (fibre * 5 >> 3) + (cloud.astype(np.int16) - 128 >> 3)
        # the glass shines through between the fibres
        eosin -= np.clip(-fibre - 44, 0, 36) * 2
        haema = 14 + (fibre >> 4)
        haema_px, eosin_px = (np.clip(s, 0, 255).astype(np.uint8) for s in (haema, eosin))
        self._scatter_nuclei(haema_px, u, v)
        codes[:] = 1
        for number in self.scene.find_glands(u, v, u + w, v + h):
            self._draw_stamp(number, (u, v), (haema_px, eosin_px, codes))
        return haema_px, eosin_px

    def _draw_stamp(self, number: int, corner: tuple[int, int], layers: tuple[Bytes, Bytes, Bytes]) -> None:
        """Draw a gland's stamp on the layers (haematoxylin, eosin, codes) with their corner at u, v, in place."""
        h, w = layers[2].shape
        box = self.scene.glands[number].find_box()
        a, b = max(box[0], corner[0]), max(box[1], corner[1])
        c, d = min(box[2], corner[0] + w), min(box[3], corner[1] + h)
        if a >= c or b >= d:
            return
        stamp = self.get_stamp(number)
        own = np.s_[b - stamp.v : d - stamp.v, a - stamp.u : c - stamp.u]
        here = np.s_[b - corner[1] : d - corner[1], a - corner[0] : c - corner[0]]
        haema, eosin, codes = (layer[here] for layer in layers)
        alpha = stamp.alpha[own]
        haema[:] = mix(haema, stamp.haema[own], alpha)
        eosin[:] = mix(eosin, stamp.eosin[own], alpha)
        codes[alpha >= 128] = stamp.code

    def _scatter_nuclei(self, haema: Bytes, u: int, v: int) -> None:
        """Scatter fibroblasts, and lymphocytes in clusters, by hashed cells of the plane, in place."""
        h, w = haema.shape
        seed, mpp = self.scene.seed, self.scene.mpp
        cell, reach = max(round(8 / mpp), 4), math.ceil(10 / mpp) + 2
        rows = np.arange((v - reach) // cell, (v + h + reach) // cell + 1)[:, None]
        cols = np.arange((u - reach) // cell, (u + w + reach) // cell + 1)[None, :]
        chance = hash_points(rows, cols, seed)
        more = hash_points(rows, cols, seed + 1)
        at = [((k * cell // 2 + s) % PERIOD) for k, s in zip((rows, cols), self.shift[3], strict=True)]
        crowd = self.textures.cloud[at[0], at[1]].astype(np.int64)
        # of 65536: about 1,000 fibroblasts per mm², and up to 8,000 lymphocytes at the thickest parts of the cloud
        lymph = np.clip((crowd - 188) * 1100, 0, 34000)
        first = (chance & 0xFFFF).astype(np.int64)
        for i, j in zip(*np.nonzero(first < 4200 + lymph), strict=True):
            kind: NucleusKind = "lymphocyte" if first[i, j] < lymph[i, j] else "spindle"
            bits, spare = int(more[i, j]), int(chance[i, j]) >> 16
            # fibroblasts are roughly parallel to the fibres
            turn = (spare % 5 - 2 + (spare // 64 % TURNS if spare & 32 and spare & 8 else 0)) % TURNS
            x = int(cols[0, j]) * cell + (bits & 0xFF) * cell // 256 - u
            y = int(rows[i, 0]) * cell + (bits >> 8 & 0xFF) * cell // 256 - v
            blit(haema, draw_nuclei(kind, mpp)[(bits >> 16) % VARIANTS][turn], x, y)

    def _grey_out(self, rgb: Bytes, u: int, v: int, grey: int) -> None:
        """Grey out blocks of glass that the scanner skipped, in place."""
        h, w = rgb.shape[:2]
        size = GREY_BLOCK_PX
        for i in range(v // size, (v + h - 1) // size + 1):
            for j in range(u // size, (u + w - 1) // size + 1):
                place = np.array([i // 2, i]), np.array([j // 3, j])
                coarse, fine = hash_points(place[0], place[1], self.scene.seed + 5)
                if coarse % 100 >= 45 or fine % 100 >= 85 or self._is_near_tissue(i * size, j * size):
                    continue
                a, b = max(i * size - v, 0), max(j * size - u, 0)
                rgb[a : (i + 1) * size - v, b : (j + 1) * size - u] = grey

    def _is_near_tissue(self, v: int, u: int) -> bool:
        at = np.arange(u, u + GREY_BLOCK_PX + 1, 8, dtype=np.float64)
        return next(self._find_borders(at, v, GREY_BLOCK_PX, 2 * self.reach), None) is not None

    def _find_borders(self, at: Floats, v: int, h: int, reach: int) -> Iterator[tuple[Floats, Floats]]:
        """Yield the borders at columns `at` of each core that comes within `reach` px of rows v to v + h."""
        for core in self.scene.cores:
            top, bottom = core.find_edges(at)
            some = bottom > top
            if some.any() and top[some].min() < v + h + reach and bottom[some].max() > v - reach:
                yield top, bottom
