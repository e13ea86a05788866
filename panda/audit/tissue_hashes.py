"""Perceptual hashes of the tissue of a slide, which do not depend on its orientation.

A near-duplicate is the same tissue on another scan: turned, mirrored, cropped, or in other light, colours or quality.
`docs/audit.md` shows how well it is separated from other tissue.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import cv2
import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from panda.audit.hash_distance import OUTLINE, TEXTURE

HASH_RULES = 1
"""Increase it if the same overview would give other hashes, so that slides are inspected again."""

PARTS = (
    ((0.0, 1.0), (0.06, 1.0), (0.0, 0.94), (0.12, 1.0), (0.0, 0.88), (0.08, 0.92)),
    ((0.09, 1.0), (0.0, 0.91)),
)
"""Parts of the tissue that are hashed, as shares of its area along its axis (first all of it), then across."""

Axis = Literal["edges", "spread"]
AXES: tuple[Axis, ...] = ("edges", "spread")
"""Axes of the tissue: the direction of its edges, which follows needle cores even if several are side by side. Then the
direction of its largest spread, which is stable if the edges have no main direction."""

_HASHES = len(AXES) * sum(map(len, PARTS))
_WORK_PX = 512  # longest side at which the tissue is measured
_FRAME_PX, _PICTURE_PX = 256, 64
_FRAME_SIGMAS = 2.0  # an evenly filled bar ends at 1.73
_BLUR_PX = 2.0
_LEAST_PX = 30.0
_LEAST_DEVIATION = 0.01  # of optical density; real tissue has 0.1, scanner noise on a uniform colour 0.005

Floats = NDArray[np.float32]

_TextureHash = Annotated[str, Field(pattern=f"^[0-9a-f]{{{TEXTURE * TEXTURE // 4}}}$")]
_OutlineHash = Annotated[str, Field(pattern=f"^[0-9a-f]{{{OUTLINE * OUTLINE // 4}}}$")]


@dataclass(frozen=True)
class TissueHashes:
    """Hashes of a slide's tissue, to find other scans of it.

    Attributes:
        texture: Perceptual hashes (DCT, 1,024 bits, hex) of the optical density inside each of `PARTS`, along the
            first of `AXES`, then along the second.
        outline: Perceptual hashes (DCT, 256 bits, hex) of the area of each part.
        aspect: Largest spread of the tissue divided by the spread across, at least 1.
    """

    texture: Annotated[tuple[_TextureHash, ...], Field(min_length=_HASHES, max_length=_HASHES)]
    outline: Annotated[tuple[_OutlineHash, ...], Field(min_length=_HASHES, max_length=_HASHES)]
    aspect: Annotated[float, Field(ge=1, allow_inf_nan=False)]


def hash_tissue(overview_rgb: NDArray[np.uint8], tissue: NDArray[np.bool_]) -> TissueHashes | None:
    """Hash the tissue of a slide, to find another scan of it in any orientation.

    The tissue is resampled into its own frame: centred, rotated along its axis, each direction scaled by its spread.
    So rotation and the size of glass or pixels have no effect. Optical density is relative to the slide's glass, and
    scaled to mean 0 and deviation 1 inside the tissue, so colours and light have little effect. The comparison of
    hashes covers mirroring and half a turn. `PARTS` of the tissue are hashed in the same way, because other scans may
    be cropped, and so are both of `AXES`.

    Args:
        overview_rgb: Overview of the whole slide, (H, W, 3) uint8 RGB. Its longest side is reduced to 512 px; with
            fewer px, or px of over 16 µm, other scans are found less reliably.
        tissue: Tissue in the overview, (H, W) bool, see `panda.wsi.tissue`.

    Returns:
        The hashes. None if there are fewer than 30 px of tissue at that size, or if its density is uniform, because it
        cannot be separated from other tissue.

    Raises:
        ValueError: If the arrays have another shape or dtype.
    """
    if overview_rgb.ndim != 3 or overview_rgb.shape[2] != 3 or overview_rgb.dtype != np.uint8:
        raise ValueError(f"an overview is (H, W, 3) uint8, not {overview_rgb.shape} {overview_rgb.dtype}")
    if tissue.shape != overview_rgb.shape[:2] or tissue.dtype != np.bool_:
        raise ValueError(
            f"the tissue is bool and of the size of the overview, {overview_rgb.shape[:2]}, not {tissue.shape} "
            f"{tissue.dtype}"
        )
    if not tissue.any():
        return None
    density, cover = _compute_density(overview_rgb, tissue)
    if cover.sum() < _LEAST_PX:
        return None
    hashed = [_hash_part(density, part, frame) for axis in AXES for part, frame in _cut_parts(cover, axis)]
    kept = [pair for pair in hashed if pair is not None]
    if len(kept) < len(hashed):
        return None
    texture, outline = zip(*kept, strict=True)
    along, across = _Frame.measure(cover, "spread").spread
    return TissueHashes(texture, outline, round(along / across, 4))


def _compute_density(rgb: NDArray[np.uint8], tissue: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Return optical density relative to the glass, and share of tissue, both (h, w) at the working size."""
    scale = min(1.0, _WORK_PX / max(tissue.shape))
    size = max(1, round(tissue.shape[1] * scale)), max(1, round(tissue.shape[0] * scale))
    small = np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), np.float32)
    cover = np.asarray(cv2.resize(tissue.astype(np.float32), size, interpolation=cv2.INTER_AREA), np.float32)
    bare = small[cover < 0.02]
    glass = np.maximum(np.median(bare, axis=0), 1) if len(bare) else np.full(3, 255.0)
    return np.asarray(-np.log(np.clip(small / glass, 0.02, 1)).mean(axis=2), np.float32), cover


@dataclass(frozen=True)
class _Frame:
    """A frame of tissue: centre (x, y) in working px, unit vector of the axis, spread (σ in px) along and across."""

    centre: tuple[float, float]
    axis: tuple[float, float]
    spread: tuple[float, float]

    @classmethod
    def measure(cls, cover: Floats, axis: Axis) -> _Frame:
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

    def resample(self, picture: Floats) -> Floats:
        """Resample a picture of the slide into the frame, (64, 64)."""
        (x, y), (c, s) = self.centre, self.axis
        along, across = (2 * _FRAME_SIGMAS * spread / _FRAME_PX for spread in self.spread)
        middle = (_FRAME_PX - 1) / 2
        into = np.array([[along * c, -across * s, 0], [along * s, across * c, 0]])
        into[:, 2] = (x, y) - into[:, :2] @ (middle, middle)
        laid = cv2.warpAffine(picture, into, (_FRAME_PX, _FRAME_PX), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
        return np.asarray(cv2.resize(laid, (_PICTURE_PX, _PICTURE_PX), interpolation=cv2.INTER_AREA), np.float32)


def _cut_parts(cover: Floats, axis: Axis) -> Iterator[tuple[Floats, _Frame]]:
    """Yield the tissue of each of `PARTS` along an axis, and its own frame."""
    frame = _Frame.measure(cover, axis)
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
            yield part, _Frame.measure(part, axis)


def _hash_part(density: Floats, cover: Floats, frame: _Frame) -> tuple[str, str] | None:
    """Return the hashes of texture and outline in the frame; None without texture."""
    shape, mass = frame.resample(cover), frame.resample(density * cover)
    inside = shape.sum()
    texture = mass - shape * (mass.sum() / inside)
    full = shape > 0.99  # px that the border cuts deviate by themselves
    if (texture[full] if np.count_nonzero(full) >= _LEAST_PX else texture).std() < _LEAST_DEVIATION:
        return None
    deviation = math.sqrt(float(np.square(texture).sum() / inside))
    grey = np.clip(128 + texture * (40 / deviation), 0, 255).astype(np.uint8)
    outline = np.clip(255 * shape, 0, 255).astype(np.uint8)
    return (
        str(imagehash.phash(Image.fromarray(grey), hash_size=TEXTURE, highfreq_factor=_PICTURE_PX // TEXTURE)),
        str(imagehash.phash(Image.fromarray(outline), hash_size=OUTLINE, highfreq_factor=_PICTURE_PX // OUTLINE)),
    )
