"""The stain of a slide, and the normalization of its pixels to the colours of a reference.

The method is Macenko's (Macenko et al., A method for normalizing histology slides for quantitative analysis, ISBI
2009). Optical density, `ln(glass / light)`, adds up over stains. So each pixel is a sum of two vectors, haematoxylin
and eosin, which are the outermost directions of a slide's pixels. The amounts stay; the vectors and the strength become
the reference's.

There are two differences from the paper. The part of a pixel off the plane of the two stains (ink, pigment, noise) is
kept, so that a slide in the reference's colours stays as it is. Light is compared with the slide's own glass, which
becomes white. All tiles of a slide share one estimate, so that neighbours agree.
"""

from __future__ import annotations

import functools
import logging
import math
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic.dataclasses import dataclass

from panda.wsi.grid import tissue_grid
from panda.wsi.slide import Slide
from panda.wsi.tissue import TissueMap

log = logging.getLogger(__name__)

NormalizeName = Literal["macenko"]
"""Ways to normalize, as the configuration names them."""
STAIN_RULES = 1
"""Version of the estimate and of the pixels. A new number makes old canvases invalid."""
WHITE = 255.0
_DOWNSAMPLE = 4.0  # 2 µm/px on a scan of 0.5: nuclei are still distinct
_TILE, _TILES = 256, 32  # px, and the number of tiles, spread evenly over the tissue
_TISSUE = 0.25  # least share of tissue in such a tile, if there are any
_STAINED = 0.15  # optical density, the paper's: paler px have too little stain
_BLACK = 30  # grey value: darker px, such as padding, are nothing but noise
_LEAST = 1000  # stained px that are enough for an estimate
_OUTERMOST = 1.0  # percent, the paper's
_STRONGEST = 99.0  # percent, the paper's
_APART = math.radians(4)  # closer vectors are not two stains: one is missing, or all px have one colour

Vector = tuple[float, float, float]


@dataclass(frozen=True)
class StainProfile:
    """The stain of a slide, checked when it is made.

    Attributes:
        glass: Colour of its glass, RGB.
        haematoxylin: Optical density of haematoxylin in R, G, B, of length 1.
        eosin: Optical density of eosin, in the same way.
        strength: The amounts of both that 1 % of the pixels exceed.
    """

    glass: Vector
    haematoxylin: Vector
    eosin: Vector
    strength: tuple[float, float]


REFERENCE = StainProfile(
    (WHITE, WHITE, WHITE), (0.5626, 0.7201, 0.4062), (0.2159, 0.8012, 0.5581), strength=(1.9705, 1.0308)
)
"""The reference of M. Veta's code for Macenko's method, which most other programs use; on white glass."""


def find_stain(slide: Slide, tissue: TissueMap) -> StainProfile | None:
    """Estimate the stain of a slide from 32 tiles spread over its tissue.

    Returns:
        The estimate, rounded to four decimals. None, with a warning, if
        there are not two stains: too little stained tissue, or all of one colour.
    """
    glass = tissue.glass or (WHITE, WHITE, WHITE)
    resolution = slide.choose_resolution(downsample=_DOWNSAMPLE)
    grid = tissue_grid(resolution, tissue, _TILE, _TILE)
    chosen = np.flatnonzero(grid.tissue_fraction >= min(_TISSUE, grid.tissue_fraction.max(initial=0.0)))
    chosen = chosen[np.linspace(0, len(chosen) - 1, min(_TILES, len(chosen))).round().astype(np.int64)]
    tiles = [slide.read(resolution, (x, y), (_TILE, _TILE)) for x, y in grid.level0[chosen].tolist()]
    profile = estimate_stain(np.concatenate(tiles), glass) if tiles else None
    if profile is None:
        log.warning("%s: its tissue does not show two stains, so its colours are not normalized", slide.path)
    return profile


def estimate_stain(rgb: NDArray[np.uint8], glass: Vector) -> StainProfile | None:
    """Estimate a stain from pixels.

    Args:
        rgb: Tissue and its surroundings, (H, W, 3) uint8 RGB.
        glass: Colour of the glass, RGB.

    Returns:
        See `find_stain`.
    """
    density = compute_density(rgb, glass).reshape(-1, 3)
    # haematoxylin and eosin absorb green most, as no ink and no dirt does (see `panda.wsi.appearance`)
    stained = (density.min(axis=1) > _STAINED) & (density[:, 1] > density[:, ::2].min(axis=1))
    stained &= rgb.max(axis=2).ravel() > _BLACK
    density = density[stained].astype(np.float64)
    if len(density) < _LEAST:
        return None
    _, axes = np.linalg.eigh(np.cov(density.T))
    plane = axes[:, 1:]
    plane = plane * np.where(plane.sum(axis=0) < 0, -1, 1)
    first, second = (density @ plane).T
    # measured from the mean direction, so that no angle jumps by a whole turn
    middle = math.atan2(first.mean(), second.mean())
    turned = np.angle(np.exp(1j * (np.arctan2(first, second) - middle)))
    low, high = np.percentile(turned, (_OUTERMOST, 100 - _OUTERMOST))
    if high - low < _APART:
        return None
    vectors = np.stack([plane @ (math.sin(middle + of), math.cos(middle + of)) for of in (low, high)])
    vectors = np.maximum(vectors, 0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    if math.acos(min(1.0, float(vectors[0] @ vectors[1]))) < _APART:
        return None
    vectors = vectors[np.argsort(-vectors[:, 0])]  # haematoxylin absorbs red, eosin hardly
    amounts = density @ np.linalg.pinv(vectors)
    strength = np.percentile(amounts, _STRONGEST, axis=0)
    if strength.min() < _STAINED:
        return None
    named = {"glass": list(glass), "haematoxylin": vectors[0], "eosin": vectors[1], "strength": strength}
    return StainProfile(**{key: np.round(value, 4).tolist() for key, value in named.items()})


def compute_density(rgb: NDArray[np.uint8], glass: Vector) -> NDArray[np.float32]:
    """Return the optical density, (h, w, 3): 0 for glass and brighter px."""
    return np.asarray(cv2.LUT(rgb, _tabulate_density(glass)), np.float32)


@functools.lru_cache(4096)
def _tabulate_density(glass: Vector) -> NDArray[np.float32]:
    """Return the optical density of each value of each channel, (1, 256, 3)."""
    light = np.maximum(np.arange(256, dtype=np.float64), 1)[:, None]
    return np.maximum(np.log(np.maximum(glass, 1) / light), 0).astype(np.float32)[None]


def _build_basis(profile: StainProfile) -> NDArray[np.float64]:
    """Return, in rows, the two stains at full strength and the direction that is perpendicular to both."""
    stains = np.array([profile.haematoxylin, profile.eosin])
    neither = np.cross(*stains)
    return np.vstack([stains * np.array(profile.strength)[:, None], neither / np.linalg.norm(neither)])


@functools.lru_cache(4096)
def _build_change(profile: StainProfile, reference: StainProfile) -> NDArray[np.float64]:
    """Return the matrix (3, 3) that maps the optical density of a pixel, a column, to the reference's."""
    return np.asarray(_build_basis(reference).T @ np.linalg.inv(_build_basis(profile).T))


def normalize_stain(
    rgb: NDArray[np.uint8], profile: StainProfile, reference: StainProfile = REFERENCE
) -> NDArray[np.uint8]:
    """Bring pixels to the colours of a reference.

    Args:
        rgb: (h, w, 3) uint8 RGB of a slide.
        profile: The stain of the slide.
        reference: The stain of the result.

    Returns:
        (h, w, 3) uint8 RGB. Px as bright as the slide's glass, or brighter, get the colour of the reference's glass.
    """
    density = cv2.transform(compute_density(rgb, profile.glass), _build_change(profile, reference).astype(np.float32))
    light = cv2.exp(-density) * np.array(reference.glass, np.float32)
    return np.asarray(np.rint(np.minimum(light, WHITE)), np.uint8)
