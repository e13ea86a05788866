"""Near-duplicate slides: perceptual hashes of their tissue, compared in any orientation, and groups that do not chain.

A near-duplicate is the same tissue on another scan: turned, mirrored, cropped, in other light, colours or quality.
`docs/audit.md` holds how well it is told from other tissue.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from panda.audit.hash_distance import LARGEST, OUTLINE, TEXTURE, find_matches
from panda.errors import ManifestError

HASH_RULES = 1
"""A new number whenever the same overview would give other hashes: records kept from before are made anew."""

THRESHOLD = 0.30
"""Largest distance at which two slides match; docs/audit.md shows why."""

SURE = 0.15
"""A slide that matches a crowd is believed only up to this distance."""

LEAST_CROWD, CROWD = 40, 0.005
"""A crowd is more slides than that, and a larger share of all."""

LEAST_LINKED = 0.5
"""Two groups become one where at least this share of their slides match each other across."""

PARTS = (
    ((0.0, 1.0), (0.06, 1.0), (0.0, 0.94), (0.12, 1.0), (0.0, 0.88), (0.08, 0.92)),
    ((0.09, 1.0), (0.0, 0.91)),
)
"""The parts of the tissue that are hashed, as shares of its area along its axis, all of it first, and across."""

Axis = Literal["edges", "spread"]
AXES: tuple[Axis, ...] = ("edges", "spread")
"""What the tissue is laid along: the direction of its edges, which run along needle cores however many lie side by
side; and that in which it spreads most, which is steady where it has no such direction."""

_HASHES = len(AXES) * sum(map(len, PARTS))
_WORK_PX = 512  # longest side at which the tissue is measured
_FRAME_PX, _PICTURE_PX = 256, 64
_FRAME_SIGMAS = 2.0  # an evenly filled bar ends at 1.73
_BLUR_PX = 2.0
_LEAST_PX = 30.0
_LEAST_DEVIATION = 0.01  # of optical density; real tissue has 0.1, the noise of a scanner on a plain colour 0.005

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class TissueHashes:
    """What is kept of a slide's tissue to find it again.

    Attributes:
        texture: Perceptual hashes (DCT, 1,024 bits, hex) of the optical density inside each of `PARTS`, laid
            along the first of `AXES`, then along the second.
        outline: Perceptual hashes (DCT, 256 bits, hex) of where the tissue of each part is.
        aspect: Largest spread of the tissue by that across, at least 1.
    """

    texture: tuple[str, ...]
    outline: tuple[str, ...]
    aspect: float

    def plain(self) -> dict[str, Any]:
        """Give it as what JSON holds."""
        return {"texture": list(self.texture), "outline": list(self.outline), "aspect": self.aspect}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> TissueHashes:
        """Take it from what `plain` gave.

        Raises:
            ManifestError: It is not that.
        """
        try:
            kinds = []
            for name, rows in (("texture", TEXTURE), ("outline", OUTLINE)):
                hashes, digits = tuple(map(str, plain[name])), rows * rows // 4
                if len(hashes) != _HASHES or any(not re.fullmatch(f"[0-9a-f]{{{digits}}}", h) for h in hashes):
                    raise ValueError(f"{name} is not {_HASHES} hashes of {digits} hex digits each")
                kinds.append(hashes)
            aspect = float(plain["aspect"])
            if not 1 <= aspect < math.inf:
                raise ValueError(f"aspect is {aspect}")
        except (KeyError, TypeError, ValueError) as error:
            raise ManifestError(f"these are no tissue hashes ({error}): hash the slide anew") from error
        return cls(kinds[0], kinds[1], aspect)


@dataclass(frozen=True, order=True)
class DuplicatePair:
    """Two slides that match.

    Attributes:
        distance: Share of bits that differ in the best orientation, 0 to `THRESHOLD`.
        a: The slide whose id sorts first.
        b: The other.
    """

    distance: float
    a: str
    b: str


@dataclass(frozen=True)
class NearDuplicates:
    """Slides in groups of the same tissue.

    Attributes:
        groups: Slide id → group, named by its slide whose id sorts first; by slide id.
        pairs: The matches, closest first. Slides of the very same hashes are paired with the first of them only.
            A pair may lie in two groups where the rest of these does not match.
        crowded: Slides that match so many others that their hashes say little, by id; only their matches up to
            `SURE` were believed.
    """

    groups: dict[str, str]
    pairs: tuple[DuplicatePair, ...]
    crowded: tuple[str, ...]


def tissue_hashes(overview_rgb: NDArray[np.uint8], tissue: NDArray[np.bool_]) -> TissueHashes | None:
    """Hash the tissue of a slide so that another scan of it, in any orientation, is found again.

    The tissue is laid into a frame of its own: centred, turned along its axis, each direction scaled by its spread, so
    that turning the slide and the size of its glass or pixels change nothing. Optical density is taken against the
    slide's glass and scaled to mean 0 and deviation 1 inside the tissue, so colours and light change little. Mirroring
    and half a turn are left to the comparison. The same is done for `PARTS` of the tissue, which other scans may be
    cropped to, and for both of `AXES`.

    Args:
        overview_rgb: (H, W, 3) uint8 RGB overview of the whole slide. It is shrunk to 512 px at the longest side; with
            fewer px, or with px of over 16 µm, other scans are found less surely.
        tissue: (H, W) bool, True on tissue, as `panda.wsi.tissue` finds it in that overview.

    Returns:
        The hashes; None where there are fewer than 30 px of tissue at that size, or its density is the same all over,
        so that it cannot be told from other tissue.

    Raises:
        ValueError: The arrays are not of that form.
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
    hashed = [_hash(density, part, frame) for axis in AXES for part, frame in _parts(cover, axis)]
    kept = [pair for pair in hashed if pair is not None]
    if len(kept) < len(hashed):
        return None
    texture, outline = zip(*kept, strict=True)
    along, across = _Frame.of(cover, "spread").spread
    return TissueHashes(texture, outline, round(along / across, 4))


def group_near_duplicates(hashes: Mapping[str, TissueHashes | None], *, threshold: float = THRESHOLD) -> NearDuplicates:
    """Find the slides that show the same tissue and put them into groups.

    All pairs are compared in blocks of 512 x 512 slides, by bits: some 20 MB whatever the number of slides, besides
    the hashes and the matches. Mirroring only changes the sign of odd frequencies, so one comparison of bits
    by parity serves four orientations; exchanged axes are tried for stout tissue only, whose axis may be
    mistaken. Either slide is taken whole and the other in any of its parts.

    Groups do not chain. Pairs are taken up closest first, and two groups become one only where at least half of all
    pairs across them match: of a row of slides each like its neighbours only, no more than three come together.
    A slide that matches a crowd (over 40 slides and over 0.5 % of them) has hashes that say little; it is believed
    up to the distance `SURE` only. Nothing depends on the order of `hashes`.

    Args:
        hashes: Slide id → hashes; None for a slide without, which makes a group of its own.
        threshold: Largest distance of a match.

    Returns:
        Groups, matches and crowded slides.

    Raises:
        ManifestError: The threshold is not within 0 to 0.4; unrelated slides begin there.
    """
    if not 0 <= threshold <= 0.4:
        raise ManifestError(f"a threshold of near-duplicates of {threshold}: give 0 to 0.4, such as {THRESHOLD}")
    known = {slide_id: own for slide_id, own in sorted(hashes.items()) if own is not None}
    first: dict[TissueHashes, str] = {}
    twins: dict[str, list[str]] = {}
    for slide_id, own in known.items():
        twins.setdefault(first.setdefault(own, slide_id), []).append(slide_id)
    ids = list(twins)
    match, crowd = find_matches(
        [known[slide_id].texture for slide_id in ids],
        [known[slide_id].outline for slide_id in ids],
        np.log([known[slide_id].aspect for slide_id in ids]),
        frames=len(AXES),
        near=math.floor(threshold * LARGEST + 1e-9),
        sure=math.floor(min(SURE, threshold) * LARGEST + 1e-9),
        crowd=max(LEAST_CROWD, CROWD * len(ids)),
    )
    pairs = [DuplicatePair(0.0, one, other) for one, others in twins.items() for other in others[1:]]
    apart = sorted(DuplicatePair(bits / LARGEST, ids[i], ids[j]) for i, j, bits in match.T.tolist())
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
    """Centre (x, y) in working px, unit vector of the axis, and spread (σ in px) along and across."""

    centre: tuple[float, float]
    axis: tuple[float, float]
    spread: tuple[float, float]

    @classmethod
    def of(cls, cover: Floats, axis: Axis) -> _Frame:
        moments = cv2.moments(cover)
        mass = moments["m00"]
        xx, yy, xy = (moments[name] / mass for name in ("mu20", "mu02", "mu11"))
        if axis == "spread":
            turn = 0.5 * math.atan2(2 * xy, xx - yy)
        else:
            soft = cv2.GaussianBlur(cover, (0, 0), _BLUR_PX)
            gx, gy = cv2.Sobel(soft, cv2.CV_32F, 1, 0), cv2.Sobel(soft, cv2.CV_32F, 0, 1)
            turn = 0.5 * math.atan2(-2 * float((gx * gy).sum()), float((gy * gy - gx * gx).sum()))
        c, s = math.cos(turn), math.sin(turn)
        along = c * c * xx + s * s * yy + 2 * c * s * xy
        spread = [math.sqrt(max(variance, 0.25)) for variance in (along, xx + yy - along)]
        return cls((moments["m10"] / mass, moments["m01"] / mass), (c, s), (spread[0], spread[1]))

    def lay(self, picture: Floats) -> Floats:
        """Resample a picture of the slide into the frame, (64, 64)."""
        (x, y), (c, s) = self.centre, self.axis
        along, across = (2 * _FRAME_SIGMAS * spread / _FRAME_PX for spread in self.spread)
        middle = (_FRAME_PX - 1) / 2
        into = np.array([[along * c, -across * s, 0], [along * s, across * c, 0]])
        into[:, 2] = (x, y) - into[:, :2] @ (middle, middle)
        laid = cv2.warpAffine(picture, into, (_FRAME_PX, _FRAME_PX), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
        return np.asarray(cv2.resize(laid, (_PICTURE_PX, _PICTURE_PX), interpolation=cv2.INTER_AREA), np.float32)


def _parts(cover: Floats, axis: Axis) -> Iterator[tuple[Floats, _Frame]]:
    """The tissue of each of `PARTS` along an axis, and the frame that it has by itself."""
    frame = _Frame.of(cover, axis)
    rows, columns = np.ogrid[: cover.shape[0], : cover.shape[1]]
    (x, y), (c, s), inside = frame.centre, frame.axis, cover > 0
    ways = (columns - x) * c + (rows - y) * s, (rows - y) * c - (columns - x) * s
    for at, parts in zip(ways, PARTS, strict=True):
        order = np.argsort(at[inside], kind="stable")
        places, mass = at[inside][order], np.cumsum(cover[inside][order], dtype=np.float64)
        for share, rest in parts:
            first, last = (np.searchsorted(mass, end * mass[-1]) for end in (share, rest))
            kept = (at >= places[first]) & (at <= places[min(last, len(places) - 1)])
            part = np.where(kept, cover, np.float32(0))
            yield part, _Frame.of(part, axis)


def _hash(density: Floats, cover: Floats, frame: _Frame) -> tuple[str, str] | None:
    """Hash texture and outline in the frame; None without texture."""
    where, what = frame.lay(cover), frame.lay(density * cover)
    inside = where.sum()
    texture = what - where * (what.sum() / inside)
    full = where > 0.99  # what the border cuts deviates by itself
    if (texture[full] if np.count_nonzero(full) >= _LEAST_PX else texture).std() < _LEAST_DEVIATION:
        return None
    deviation = math.sqrt(float(np.square(texture).sum() / inside))
    grey = np.clip(128 + texture * (40 / deviation), 0, 255).astype(np.uint8)
    shape = np.clip(255 * where, 0, 255).astype(np.uint8)
    return (
        str(imagehash.phash(Image.fromarray(grey), hash_size=TEXTURE, highfreq_factor=_PICTURE_PX // TEXTURE)),
        str(imagehash.phash(Image.fromarray(shape), hash_size=OUTLINE, highfreq_factor=_PICTURE_PX // OUTLINE)),
    )
