"""Near-duplicate slides: perceptual hashes of their tissue, compared in any orientation, and groups that do not chain.

A near-duplicate is the same tissue on another scan: turned, mirrored, cropped, in other light, colours or quality.
``docs/audit.md`` holds how well it is told from other tissue.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from panda.errors import ManifestError

HASH_RULES = 1
"""A new number whenever the same overview would give other hashes: records kept from before are made anew."""

THRESHOLD = 0.24
"""Largest distance at which two slides match; docs/audit.md shows why."""

SURE = 0.12
"""A slide that matches a crowd is believed only up to this distance."""

LEAST_LINKED = 0.5
"""Two groups become one where at least this share of their slides match each other across."""

_WORK_PX = 512  # longest side at which the tissue is measured
_FRAME_PX, _PICTURE_PX = 256, 64
_FRAME_SIGMAS = 2.0  # an evenly filled bar ends at 1.73
_CUT = 0.09  # share of the tissue that the hashes of a cropped scan leave out
_TEXTURE, _OUTLINE = 16, 8  # rows of each hash; their bits are 256 and 64
_CLASS_BITS = (_TEXTURE**2 + _OUTLINE**2) // 4
_BITS = 4 * _CLASS_BITS
_SQUARE = 1.5  # the long axis of tissue stouter than this may be taken for the short one
_LEAST_PX = 30.0
_BLOCK = 512
_LEAST_CROWD, _CROWD = 40, 0.005

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class TissueHashes:
    """What is kept of a slide's tissue to find it again.

    Each tuple has three hashes as hex: of all tissue, and of what is left when 9 % of it is cut off at either end
    of its long axis.

    Attributes:
        texture: perceptual hashes (DCT, 256 bits) of the optical density inside the tissue.
        outline: perceptual hashes (DCT, 64 bits) of where the tissue is.
        aspect: spread of the tissue along its long axis by that across, at least 1.
    """

    texture: tuple[str, str, str]
    outline: tuple[str, str, str]
    aspect: float

    def plain(self) -> dict[str, Any]:
        """Give it as what JSON holds."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> TissueHashes:
        """Take it from what `plain` gave.

        Raises:
            ManifestError: it is not that.
        """
        try:
            texture, outline = (tuple(str(h) for h in plain[name]) for name in ("texture", "outline"))
            for hashes, rows in ((texture, _TEXTURE), (outline, _OUTLINE)):
                if len(hashes) != 3 or any(len(h) != rows * rows // 4 or int(h, 16) < 0 for h in hashes):
                    raise ValueError(f"three hashes of {rows * rows // 4} hex digits each, not {hashes}")
            return cls(texture, outline, float(plain["aspect"]))  # type: ignore[arg-type]
        except (KeyError, TypeError, ValueError) as error:
            raise ManifestError(f"no tissue hashes: {plain!r} ({error}); hash the slide anew") from error


@dataclass(frozen=True, order=True)
class DuplicatePair:
    """Two slides that match.

    Attributes:
        distance: share of bits that differ in the best orientation, 0 to `THRESHOLD`.
        a: the slide whose id sorts first.
        b: the other.
    """

    distance: float
    a: str
    b: str


@dataclass(frozen=True)
class NearDuplicates:
    """Slides in groups of the same tissue.

    Attributes:
        groups: slide id → group, named by its slide whose id sorts first; by slide id.
        pairs: the matches, closest first. Slides of the very same hashes are paired with the first of them only.
            A pair may lie in two groups where the rest of these does not match.
        crowded: slides that match so many others that their hashes say little, by id; only their matches up to
            `SURE` were believed.
    """

    groups: dict[str, str]
    pairs: tuple[DuplicatePair, ...]
    crowded: tuple[str, ...]


def tissue_hashes(overview_rgb: NDArray[np.uint8], tissue: NDArray[np.bool_]) -> TissueHashes | None:
    """Hash the tissue of a slide so that another scan of it, in any orientation, is found again.

    The tissue is laid into a frame of its own: centred, its long axis (that of its second moments) horizontal, each
    axis scaled by its spread, so that turning the slide and the size of its glass or pixels change nothing. Optical
    density is taken against the slide's glass and scaled to mean 0 and deviation 1 inside the tissue, so colours and
    light change little. Mirroring and half a turn are left to the comparison.

    Args:
        overview_rgb: (H, W, 3) uint8 RGB overview of the whole slide, best at 5 to 16 µm/px; it is shrunk to 512 px
            at the longest side, and fewer than that lose certainty.
        tissue: (H, W) bool, True on tissue, as `panda.wsi.tissue` finds it in that overview.

    Returns:
        The hashes; None where there are fewer than 30 px of tissue at that size, or its density is the same
        all over.

    Raises:
        ValueError: the arrays are not of that form.
    """
    if overview_rgb.ndim != 3 or overview_rgb.shape[2] != 3 or overview_rgb.dtype != np.uint8:
        raise ValueError(f"an overview is (H, W, 3) uint8, not {overview_rgb.shape} {overview_rgb.dtype}")
    if tissue.shape != overview_rgb.shape[:2] or tissue.dtype != np.bool_:
        raise ValueError(
            f"the tissue of {overview_rgb.shape[:2]} px is bool and as large, not {tissue.shape} {tissue.dtype}"
        )
    if not tissue.any():
        return None
    density, cover = _density(overview_rgb, tissue)
    if cover.sum() < _LEAST_PX:
        return None
    whole = _Frame.of(cover)
    hashed = [_hash(density, part, _Frame.of(part)) for part in (cover, *_cut(cover, whole))]
    if any(pair is None for pair in hashed):
        return None
    (a, b), (c, d), (e, f) = (pair for pair in hashed if pair is not None)
    return TissueHashes((a, c, e), (b, d, f), round(whole.aspect, 4))


def group_near_duplicates(hashes: Mapping[str, TissueHashes | None], *, threshold: float = THRESHOLD) -> NearDuplicates:
    """Find the slides that show the same tissue and put them into groups.

    All pairs are compared in all eight orientations, and each slide with what is left of the other when an end is
    cut off, in blocks of 512 x 512 slides: some 20 MB whatever the number of slides, and 10 bytes a match. Mirroring
    only changes the sign of odd frequencies, so one comparison of bits by parity serves four orientations.

    Groups do not chain. Pairs are taken up closest first, and two groups become one only where at least half of all
    pairs across them match: of a row of slides each like its neighbours only, no more than three come together.
    A slide that matches a crowd (over 40 slides and over 0.5 % of them) has hashes that say little; it is believed
    up to the distance `SURE` only. Nothing depends on the order of ``hashes``.

    Args:
        hashes: slide id → hashes; None for a slide without, which makes a group of its own.
        threshold: largest distance of a match.

    Returns:
        Groups, matches and crowded slides.

    Raises:
        ManifestError: the threshold is not within 0 to 0.4; unrelated slides begin there.
    """
    if not 0 <= threshold <= 0.4:
        raise ManifestError(f"a threshold of near-duplicates of {threshold}: give 0 to 0.4, such as {THRESHOLD}")
    known = {slide_id: own for slide_id, own in sorted(hashes.items()) if own is not None}
    first: dict[TissueHashes, str] = {}
    twins: dict[str, list[str]] = {}
    for slide_id, own in known.items():
        twins.setdefault(first.setdefault(own, slide_id), []).append(slide_id)
    ids = list(twins)
    found, crowd = _matches([known[slide_id] for slide_id in ids], threshold)
    pairs = [DuplicatePair(0.0, one, other) for one, others in twins.items() for other in others[1:]]
    apart = sorted(DuplicatePair(bits / _BITS, ids[i], ids[j]) for i, j, bits in found)
    groups = {slide_id: slide_id for slide_id in sorted(hashes)}
    for members in _grouped(apart):
        every = [slide_id for member in members for slide_id in twins[member]]
        groups.update(dict.fromkeys(every, min(every)))
    for one, others in twins.items():
        groups.update(dict.fromkeys(others, groups[one]))
    crowded = sorted(slide_id for index in crowd for slide_id in twins[ids[index]])
    return NearDuplicates(groups, tuple(sorted([*pairs, *apart])), tuple(crowded))


def _grouped(pairs: Sequence[DuplicatePair]) -> list[set[str]]:
    """Merge slides into groups, closest pairs first, where enough of the pairs across two groups match."""
    linked: dict[str, set[str]] = {}
    for pair in pairs:
        linked.setdefault(pair.a, set()).add(pair.b)
        linked.setdefault(pair.b, set()).add(pair.a)
    group = {slide_id: {slide_id} for slide_id in linked}
    merged = True
    while merged:  # a group that has grown may now match one that it did not before
        merged = False
        for pair in pairs:
            one, other = group[pair.a], group[pair.b]
            if one is other or sum(len(linked[s] & other) for s in one) < LEAST_LINKED * len(one) * len(other):
                continue
            one |= other
            group.update(dict.fromkeys(other, one))
            merged = True
    return list({id(members): members for members in group.values()}.values())


@dataclass(frozen=True)
class _Codes:
    """Hashes of N slides as words, one for each parity of row and column frequency.

    The first axis is: all tissue, without one end, without the other end, all tissue with the axes exchanged.

    Attributes:
        texture: (4, 4, N) uint64.
        outline: (4, 4, N) uint16.
    """

    texture: NDArray[np.uint64]
    outline: NDArray[np.uint16]

    @classmethod
    def of(cls, hashes: Sequence[TissueHashes]) -> _Codes:
        texture = _words([own.texture for own in hashes], _TEXTURE).view(np.uint64)
        outline = _words([own.outline for own in hashes], _OUTLINE).view(np.uint16)
        return cls(np.ascontiguousarray(texture[..., 0]), np.ascontiguousarray(outline[..., 0]))

    def part(self, start: int, stop: int) -> _Codes:
        return _Codes(self.texture[..., start:stop], self.outline[..., start:stop])

    def distance(self, kind: int, other: _Codes, other_kind: int) -> NDArray[np.int16]:
        """Bits that differ from each of the other's in the best of four mirrorings, (N, M)."""
        bits = [
            np.bitwise_count(self.texture[kind, parity][:, None] ^ other.texture[other_kind, parity])
            + np.bitwise_count(self.outline[kind, parity][:, None] ^ other.outline[other_kind, parity])
            for parity in range(4)
        ]
        # A mirrored picture has the other sign wherever the frequency across the mirror is odd: what differed there
        # is alike and the reverse. From the middle, the four sums are a + b + c, a - b - c, -a + b - c, -a - b + c.
        a, b, c = (count.view(np.int8) - np.int8(_CLASS_BITS // 2) for count in bits[1:])
        best = np.minimum(a - abs(b + c), -a - abs(b - c))
        return np.asarray(bits[0].astype(np.int16) + best + np.int16(3 * _CLASS_BITS // 2), np.int16)

    def nearest(self, other: _Codes, kind: int = 0) -> NDArray[np.int16]:
        """Bits that differ, (N, M), with either slide whole or without an end; ``kind`` 3 exchanges the axes."""
        ways = [self.distance(kind, other, their) for their in range(3)]
        ways += [other.distance(kind, self, own).T for own in range(0 if kind else 1, 3)]
        return np.asarray(np.minimum.reduce(ways), np.int16)


def _words(hashes: Sequence[Sequence[str]], rows: int) -> NDArray[np.uint8]:
    """Bits of three hashes for each of N slides by parity, (4, 4, N, bytes); the fourth is the first transposed."""
    packed = np.array([[list(bytes.fromhex(h)) for h in own] for own in hashes], np.uint8)
    bits = np.unpackbits(packed, axis=-1).reshape(len(hashes), 3, rows, rows)
    bits = np.concatenate([bits, bits[:, :1].swapaxes(2, 3)], axis=1)
    parities = [bits[:, :, row::2, column::2] for row in (0, 1) for column in (0, 1)]
    return np.packbits(np.stack(parities).reshape(4, len(hashes), 4, -1), axis=-1).transpose(2, 0, 1, 3).copy()


def _matches(hashes: Sequence[TissueHashes], threshold: float) -> tuple[list[tuple[int, int, int]], list[int]]:
    """Compare all pairs in blocks.

    Returns:
        (i, j, bits that differ) of each match, i < j, and the slides that match a crowd.
    """
    count = len(hashes)
    if count < 2:
        return [], []
    # stout tissue comes first, so that exchanged axes are tried in few blocks
    order = np.argsort([own.aspect for own in hashes], kind="stable")
    codes = _Codes.of([hashes[i] for i in order])
    stout = sum(own.aspect < _SQUARE for own in hashes)
    most = max(_LEAST_CROWD, round(_CROWD * count))
    near, sure = math.floor(threshold * _BITS + 1e-9), math.floor(min(SURE, threshold) * _BITS + 1e-9)
    degree = np.zeros(count, np.int64)
    found = []
    for start in range(0, count, _BLOCK):
        mine = codes.part(start, start + _BLOCK)
        for at in range(start, count, _BLOCK):
            bits = mine.nearest(theirs := codes.part(at, at + _BLOCK))
            rows, columns = max(0, stout - start), max(0, stout - at)
            if columns:
                exchanged = mine.part(0, rows).nearest(theirs.part(0, columns), 3)
                corner = bits[:rows, :columns]
                np.minimum(corner, exchanged, out=corner)
            i, j = np.nonzero(np.triu(bits <= near, 1) if at == start else bits <= near)
            match = np.stack([i + start, j + at, bits[i, j]])
            np.add.at(degree, match[:2].ravel(), 1)
            found.append(_believed(match, degree > most, sure))
    match = _believed(np.concatenate(found, axis=1), degree > most, sure)
    ends = np.sort(order[match[:2]], axis=0)
    pairs = list(zip(*ends.tolist(), match[2].tolist(), strict=True))
    return pairs, sorted(int(order[i]) for i in np.nonzero(degree > most)[0])


def _believed(match: NDArray[np.int64], crowded: NDArray[np.bool_], sure: int) -> NDArray[np.int64]:
    """Keep of (i, j, bits) what is no crowd's, and what is sure."""
    return match[:, (match[2] <= sure) | ~(crowded[match[0]] | crowded[match[1]])]


def _density(rgb: NDArray[np.uint8], tissue: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Optical density against the glass, and share of tissue, both (h, w) at the working size."""
    scale = min(1.0, _WORK_PX / max(tissue.shape))
    size = max(1, round(tissue.shape[1] * scale)), max(1, round(tissue.shape[0] * scale))
    small = np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), np.float32)
    cover = np.asarray(cv2.resize(tissue.astype(np.float32), size, interpolation=cv2.INTER_AREA), np.float32)
    bare = small[cover < 0.02]
    glass = np.maximum(np.median(bare, axis=0), 1) if len(bare) else np.full(3, 255.0)
    return np.asarray(-np.log(np.clip(small / glass, 0.02, 1)).mean(axis=2), np.float32), cover


@dataclass(frozen=True)
class _Frame:
    """Centre (x, y) in working px, unit vector of the long axis, and spread (σ in px) along and across."""

    centre: tuple[float, float]
    axis: tuple[float, float]
    spread: tuple[float, float]

    @property
    def aspect(self) -> float:
        return self.spread[0] / self.spread[1]

    @classmethod
    def of(cls, cover: Floats) -> _Frame:
        moments = cv2.moments(cover)
        mass = moments["m00"]
        xx, yy, xy = (moments[name] / mass for name in ("mu20", "mu02", "mu11"))
        turn = 0.5 * math.atan2(2 * xy, xx - yy)
        root = math.hypot((xx - yy) / 2, xy)
        spread = [math.sqrt(max((xx + yy) / 2 + sign * root, 0.25)) for sign in (1, -1)]
        return cls(
            (moments["m10"] / mass, moments["m01"] / mass), (math.cos(turn), math.sin(turn)), (spread[0], spread[1])
        )

    def lay(self, picture: Floats) -> Floats:
        """Resample a picture of the slide into the frame, (64, 64)."""
        (x, y), (c, s) = self.centre, self.axis
        along, across = (2 * _FRAME_SIGMAS * spread / _FRAME_PX for spread in self.spread)
        middle = (_FRAME_PX - 1) / 2
        into = np.array([[along * c, -across * s, 0], [along * s, across * c, 0]])
        into[:, 2] = (x, y) - into[:, :2] @ (middle, middle)
        laid = cv2.warpAffine(picture, into, (_FRAME_PX, _FRAME_PX), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
        return np.asarray(cv2.resize(laid, (_PICTURE_PX, _PICTURE_PX), interpolation=cv2.INTER_AREA), np.float32)


def _cut(cover: Floats, frame: _Frame) -> Iterator[Floats]:
    """The tissue without its first, then without its last part along the long axis."""
    rows, columns = np.ogrid[: cover.shape[0], : cover.shape[1]]
    along: NDArray[np.float64] = (columns - frame.centre[0]) * frame.axis[0] + (rows - frame.centre[1]) * frame.axis[1]
    inside = cover > 0
    order = np.argsort(along[inside], kind="stable")
    mass = np.cumsum(cover[inside][order], dtype=np.float64)
    sorted_along = along[inside][order]
    first, last = (sorted_along[np.searchsorted(mass, share * mass[-1])] for share in (_CUT, 1 - _CUT))
    yield np.where(along >= first, cover, np.float32(0))
    yield np.where(along <= last, cover, np.float32(0))


def _hash(density: Floats, cover: Floats, frame: _Frame) -> tuple[str, str] | None:
    """Hash texture and outline in the frame; None without texture."""
    where, what = frame.lay(cover), frame.lay(density * cover)
    inside = where.sum()
    texture = what - where * (what.sum() / inside)
    deviation = math.sqrt(float(np.square(texture).sum() / inside))
    if deviation < 1e-3:
        return None
    grey = np.clip(128 + texture * (40 / deviation), 0, 255).astype(np.uint8)
    shape = np.clip(255 * where, 0, 255).astype(np.uint8)
    return (
        str(imagehash.phash(Image.fromarray(grey), hash_size=_TEXTURE)),
        str(imagehash.phash(Image.fromarray(shape), hash_size=_OUTLINE, highfreq_factor=_PICTURE_PX // _OUTLINE)),
    )
