"""What made the features of a slide's tiles, and where the tiles are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, PositiveInt

from panda.stored import SAME_SCALE, Digest, PathText, Plain
from panda.wsi.geometry import floor_px, mean_mpp, round_px
from panda.wsi.slide import Slide
from panda.wsi.stain_normalization import NormalizeName

FeatureFormat = Literal["panda", "trident", "stamp", "clam", "slideflow"]

_NAMES = {
    "uni_v1": "uni",
    "uni_v2": "uni2_h",
    "uni2": "uni2_h",
    "h-optimus-0": "h_optimus_0",
    "hoptimus0": "h_optimus_0",
    "h-optimus-1": "h_optimus_1",
    "hoptimus1": "h_optimus_1",
    "h0-mini": "h0_mini",
    "kaiko-vits16": "kaiko_s16",
    "kaiko-vitb16": "kaiko_b16",
    "kaiko-vitl14": "kaiko_l14",
    "lunit-vits8": "lunit_s8",
    "virchow-full": "virchow",
}
"""Names of encoders in TRIDENT and STAMP to those of our files of them."""


class FeatureOrigin(Plain, frozen=True):
    """What made the features of a file. A field is None if the file does not state it.

    Attributes:
        format: The format of the file.
        dim: Number of features of a tile.
        encoder: Name of the encoder: of our file of it, or what another program wrote.
        tile_px0: Side of a tile in level-0 px.
        tile_um: Side of a tile in µm.
        tile_size: Side of a tile in px, as it was read for the encoder.
        mpp: µm per px of these.
        overlap: Overlap of neighbouring tiles in these px.
        weights: SHA-256 of the weights of the encoder.
        revision: Revision of the weights on their hub.
        transform: How a tile became the input of the encoder.
        pooling: How the output of the encoder became features.
        precision: Precision of the encoder's computation.
        normalize: Stain normalization of the tiles.
        fingerprint: Hash of everything that determines the features.
    """

    format: FeatureFormat
    dim: PositiveInt
    encoder: PathText | None = None
    tile_px0: PositiveFloat | None = None
    tile_um: PositiveFloat | None = None
    tile_size: PositiveInt | None = None
    mpp: PositiveFloat | None = None
    overlap: int | None = Field(default=None, ge=0)
    weights: Digest | None = None
    revision: PathText | None = None
    transform: PathText | None = None
    pooling: PathText | None = None
    precision: PathText | None = None
    normalize: NormalizeName | None = None
    fingerprint: Digest | None = None

    def describe_difference(self, other: FeatureOrigin) -> list[str]:
        """Return why features of another origin cannot be mixed with these, in sentences.

        What one of both does not state is not compared. The precision is not either, because it rounds only.
        """
        faults = []
        for name in ("dim", "encoder", "weights", "revision", "transform", "pooling"):
            own, others = getattr(self, name), getattr(other, name)
            if own is not None and others is not None and _NAMES.get(own, own) != _NAMES.get(others, others):
                faults.append(f"{name} is {own}, but {others} in the other")
        # Only our own files state it.
        if self.normalize != other.normalize and self.fingerprint and other.fingerprint:
            faults.append(f"normalize is {self.normalize or 'none'}, but {other.normalize or 'none'} in the other")
        for name, unit in (("mpp", "µm/px"), ("tile_um", "µm")):
            own, others = getattr(self, name), getattr(other, name)
            if own is not None and others is not None and abs(own / others - 1) > SAME_SCALE:
                faults.append(f"{name} is {own:.4g} {unit}, but {others:.4g} {unit} in the other")
        return faults


@dataclass(frozen=True, eq=False)
class TilePlaces:
    """Where tiles are, as other programs state it; level-0 px only follow with the slide.

    Attributes:
        values: (N, 2) float64, x and y.
        kind: Upper left corners in µm (`corner_um`), or centres in level-0 px (`centre_px0`).
    """

    values: NDArray[np.float64]
    kind: Literal["corner_um", "centre_px0"]


@dataclass(frozen=True, eq=False)
class FeatureFile:
    """The features of the tiles of one slide.

    Coordinates are those of the whole file of a slide, as OpenSlide has them. A `Slide` is a part of its file if the
    file states bounds; `locate_tiles` returns coordinates of the slide.

    Attributes:
        slide_id: The slide.
        features: What the encoder gave, (N, D) float32.
        coords: Upper left corners of the tiles, (N, 2) int64, level-0 px of the file; None if only `places` are known,
            or nothing.
        origin: What made the features.
        slide_size: (W, H) of level 0 of the file in px, None if unknown.
        places: Where the tiles are, if it needs the slide to be level-0 px.
    """

    slide_id: str
    features: NDArray[np.float32]
    coords: NDArray[np.int64] | None
    origin: FeatureOrigin
    slide_size: tuple[int, int] | None = None
    places: TilePlaces | None = None

    def take_tiles(self, rows: NDArray[np.intp]) -> FeatureFile:
        """Return the file with the tiles of some rows only."""
        coords = None if self.coords is None else self.coords[rows]
        places = None if self.places is None else replace(self.places, values=self.places.values[rows])
        return replace(self, features=self.features[rows], coords=coords, places=places)

    def locate_tiles(self, slide: Slide) -> tuple[NDArray[np.int64], float] | None:
        """Return upper left corners, (N, 2) int64, and side of the tiles in level-0 px of their slide.

        Returns:
            None if the file does not state them, or states them in µm and those per px of the slide are unknown.
        """
        side, coords = self.origin.tile_px0, self.coords
        mpp = None if slide.mpp is None else mean_mpp(slide.mpp)
        if side is None and mpp is not None and self.origin.tile_um is not None:
            side = self.origin.tile_um / mpp
        if coords is None and self.places is not None:
            if self.places.kind == "corner_um":
                coords = None if mpp is None else round_px(self.places.values / mpp)
            elif side is not None:
                coords = find_corners(self.places.values, side)
        if side is None or coords is None:
            return None
        return coords - np.array(slide.level_origins[0], np.int64), side


def find_corners(centres: NDArray[np.float64], side: float) -> NDArray[np.int64]:
    """Return upper left corners of tiles, (N, 2), from the centres that slideflow stores, in px of the same frame."""
    return floor_px(centres) - _halve(side)


def find_centres(corners: NDArray[np.int64], side: float) -> NDArray[np.int64]:
    """Return the centres of tiles as slideflow stores them, which `find_corners` turns into corners again."""
    return corners + _halve(side)


def _halve(side: float) -> NDArray[np.int64]:
    return floor_px(np.array(side)) // 2
