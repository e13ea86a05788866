"""Compare the hashes of all slides with each other, in blocks of bits instead of pairs of objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TEXTURE, OUTLINE = 32, 16
"""Rows of the two kinds of hash, which have 1,024 and 256 bits."""

OUTLINE_WEIGHT = 2
"""Weight of a bit of outline in bits of texture: texture differs more between slides, outline less between scans."""

LARGEST = TEXTURE**2 + OUTLINE_WEIGHT * OUTLINE**2
"""Distance between two hashes that differ in every bit."""

LARGEST_STRETCH = 0.35
"""Largest difference in the logarithm of the aspect of two tissues; cropping a quarter changes it by 0.3."""

STOUT = 0.4
"""If the logarithm of both aspects is less, the axes of the two tissues may be exchanged."""

_BLOCK = 512
_HALF = LARGEST // 8  # of the largest distance within a parity

Distances = NDArray[np.int16]


@dataclass(frozen=True)
class _Codes:
    """Hashes of N slides as words, one row for each parity of vertical and horizontal frequency.

    Attributes:
        texture: (2 K, 4, N, 4) uint64: the K hashes of each slide, then the same with the axes exchanged.
        outline: (2 K, 4, N, 1) uint64, in the same order.
        frames: Number of kinds of frame among the K hashes, one kind after the other, each first for all tissue.
    """

    texture: NDArray[np.uint64]
    outline: NDArray[np.uint64]
    frames: int

    @classmethod
    def from_hex(cls, texture: Sequence[Sequence[str]], outline: Sequence[Sequence[str]], frames: int) -> _Codes:
        blocks = [slice(start, start + _BLOCK) for start in range(0, len(texture), _BLOCK)]
        words = [(_pack_words(texture[part], TEXTURE), _pack_words(outline[part], OUTLINE)) for part in blocks]
        textures, outlines = zip(*words, strict=True)
        return cls(np.concatenate(textures, axis=2), np.concatenate(outlines, axis=2), frames)

    def slice_block(self, start: int) -> _Codes:
        block = np.s_[:, :, start : start + _BLOCK]
        return _Codes(self.texture[block], self.outline[block], self.frames)

    def compute_distance(self, kind: int, other: _Codes, other_kind: int) -> Distances:
        """Return the weighted count of different bits in the best of four mirrorings, (N, M)."""
        even, a, b, c = (
            _count_differences(self.texture[kind, parity], other.texture[other_kind, parity])
            + OUTLINE_WEIGHT * _count_differences(self.outline[kind, parity], other.outline[other_kind, parity])
            for parity in range(4)
        )
        # A mirrored picture has the opposite sign at odd frequencies across the mirror: equal bits differ and the
        # reverse. Relative to the middle, the four sums are a + b + c, a - b - c, -a + b - c, -a - b + c.
        a, b, c = (odd - np.int16(_HALF) for odd in (a, b, c))
        return np.asarray(even + np.minimum(a - abs(b + c), -a - abs(b - c)) + np.int16(3 * _HALF), np.int16)

    def find_nearest(self, other: _Codes, stout: bool) -> Distances:
        """Return the least distance of one whole slide to any part of the other; if stout, with exchanged axes too."""
        hashes = len(self.texture) // 2
        best = self.compute_distance(0, other, 0)
        for whole in range(0, hashes, hashes // self.frames):
            for part in range(whole, whole + hashes // self.frames):
                for exchanged in (0, hashes) if stout else (0,):
                    np.minimum(best, self.compute_distance(whole + exchanged, other, part), out=best)
                    if part > whole or exchanged:
                        np.minimum(best, other.compute_distance(whole + exchanged, self, part).T, out=best)
        return best


def _count_differences(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> Distances:
    """Count the bits that differ between each of (N, words) and each of (M, words)."""
    count = np.zeros((len(one), len(other)), np.int16)
    for word in range(one.shape[1]):
        count += np.bitwise_count(one[:, word, None] ^ other[None, :, word])
    return count


def _pack_words(hashes: Sequence[Sequence[str]], rows: int) -> NDArray[np.uint64]:
    """Return the bits of K hashes of N slides by parity, (2 K, 4, N, words); the second half is transposed."""
    packed = np.array([[list(bytes.fromhex(text)) for text in own] for own in hashes], np.uint8)
    bits = np.unpackbits(packed, axis=-1).reshape(*packed.shape[:2], rows, rows)
    bits = np.concatenate([bits, bits.swapaxes(2, 3)], axis=1).swapaxes(0, 1)
    parities = [bits[..., row::2, column::2] for row in (0, 1) for column in (0, 1)]
    each = np.stack(parities, axis=1).reshape(len(bits), 4, len(hashes), -1)
    # Eight bytes make a word. The byte order does not matter, because only bits are counted.
    return np.ascontiguousarray(np.packbits(each, axis=-1)).view(np.uint64)


def find_matches(
    texture: Sequence[Sequence[str]],
    outline: Sequence[Sequence[str]],
    stretch: NDArray[np.float64],
    *,
    frames: int,
    near: int,
    sure: int,
    crowd: float,
) -> tuple[NDArray[np.int64], list[int]]:
    """Compare N slides, all pairs.

    Args:
        texture: The hashes of each slide as hex, the same number for each: of all its tissue and of its parts in the
            first frame, then in the next.
        outline: The same for the outline.
        stretch: Logarithm of the aspect of the tissue, (N,).
        frames: Number of frames.
        near: Largest distance of a match, 0 to `LARGEST`.
        sure: Largest distance of a match of a crowded slide.
        crowd: Most matches of a slide that is not crowded.

    Returns:
        (3, M) i, j and distance of the matches, i < j; and the slides that match a crowd.
    """
    if (count := len(texture)) < 2:
        return np.zeros((3, 0), np.int64), []
    order = np.argsort(stretch, kind="stable")
    stretch = stretch[order]
    codes = _Codes.from_hex([texture[i] for i in order], [outline[i] for i in order], frames)
    degree = np.zeros(count, np.int64)
    found = []
    for start in range(0, count, _BLOCK):
        mine, longest = codes.slice_block(start), stretch[min(start + _BLOCK, count) - 1]
        for at in range(start, count, _BLOCK):
            if stretch[at] - longest > LARGEST_STRETCH:
                break
            distance = mine.find_nearest(codes.slice_block(at), bool(max(stretch[start], stretch[at]) < STOUT))
            close = distance <= near
            i, j = np.nonzero(np.triu(close, 1) if at == start else close)
            match = np.stack([i + start, j + at, distance[i, j]])
            match = match[:, abs(stretch[match[0]] - stretch[match[1]]) <= LARGEST_STRETCH]
            np.add.at(degree, match[:2].ravel(), 1)
            found.append(_drop_crowded(match, degree > crowd, sure))
    match = _drop_crowded(np.concatenate(found, axis=1), degree > crowd, sure)
    match[:2] = np.sort(order[match[:2]], axis=0)
    return match, sorted(order[degree > crowd].tolist())


def _drop_crowded(match: NDArray[np.int64], crowded: NDArray[np.bool_], sure: int) -> NDArray[np.int64]:
    """Drop the matches of crowded slides that are not sure."""
    return match[:, (match[2] <= sure) | ~(crowded[match[0]] | crowded[match[1]])]
