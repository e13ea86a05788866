"""Bags of tiles: which tiles stand for a slide, their pixels, and bags as a dataset.

A bag is at most K tiles of one slide: most of them where a segmentation sees tumour, the rest anywhere on tissue.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from panda.data.augment import Augmentation
from panda.data.loaders import Draw, drawn
from panda.data.manifest import SlideRecord
from panda.errors import ConfigError, ManifestError
from panda.wsi.geometry import Resolution, round_px
from panda.wsi.grid import Grid, tissue_grid
from panda.wsi.resolution_request import ResolutionRequest
from panda.wsi.slide import Slide, SlideOptions
from panda.wsi.stain_normalization import StainProfile, normalized
from panda.wsi.tissue import TissueMap

_BAND_PX = 2**24


class ProbabilityMap(Protocol):
    """A probability map over a slide that is read window by window, as an inference canvas is."""

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) in px of the map."""

    def read(self, x0: int, y0: int, w: int, h: int) -> NDArray[np.float32]:
        """Probabilities of a window in px of the map, (h, w), 0 where nothing was scored."""


@dataclass(frozen=True)
class BagSettings:
    """What a bag is made of.

    Attributes:
        k: Tiles of a bag, at most.
        tile_size: Side of a tile in px at the tiles' resolution.
        resolution: The resolution of the tiles.
        slide_options: How slides are opened.
    """

    k: int = 32
    tile_size: int = 256
    resolution: ResolutionRequest = ResolutionRequest(level=1)
    slide_options: SlideOptions = SlideOptions()

    def faults(self) -> list[str]:
        """Say what is wrong with the settings, one sentence a fault, in words of the `tiles` config."""
        faults = self.resolution.faults("tiles.")
        if self.k < 1:
            faults.append(f"tiles.k is {self.k}: give at least 1 tile")
        if self.tile_size < 1:
            faults.append(f"tiles.tile_size is {self.tile_size}: give at least 1 px")
        return faults


@dataclass(frozen=True, eq=False)
class BagItem:
    """A slide and the tiles that stand for it.

    Attributes:
        record: The slide.
        coords: (n, 2) int64, top-left corners in level-0 px, the most important first.
        stain: That of the slide, whose colours are brought to the reference's; None: they stay.
        features: A file of what an encoder made of the tiles, which then stands for their pixels; None: pixels.
    """

    record: SlideRecord
    coords: NDArray[np.int64]
    stain: StainProfile | None = None
    features: Path | None = None


def select_tile_coords_for_slide(
    pred_canvas: NDArray[Any] | ProbabilityMap | None,
    canvas_resolution: Resolution | None,
    tissue: TissueMap,
    tile_resolution: Resolution,
    *,
    k: int,
    tile_size: int,
    random_fraction: float = 0.25,
    min_tissue: float = 0.0,
    seed: int = 0,
) -> NDArray[np.int64]:
    """Choose the K most tumour-like tiles of a slide, and some random ones.

    Tiles lie side by side over the tissue. A tile's score is the mean probability over its tissue; equal scores
    go by more tissue, then y, then x. The share of random tiles shows the grading network benign tissue too, and
    keeps it from depending on the segmentation alone.

    Args:
        pred_canvas: (H, W) probability map over the slide in [0, 1], read a row of tiles at a time; not a number
            counts as 0. None: all tiles are random ones.
        canvas_resolution: Resolution of the map; None without one.
        tissue: The slide's tissue.
        tile_resolution: Resolution of the tiles.
        k: Tiles wanted.
        tile_size: Side of a tile in px at `tile_resolution`.
        random_fraction: Share of the K tiles that is drawn from the tissue at random, in [0, 1].
        min_tissue: Least share of tissue in a tile; 0 for any tissue at all.
        seed: Of the draw.

    Returns:
        (n <= k, 2) int64 level-0 px, top-left corners: first by falling score, then the random ones. Empty where
        no tile has the tissue.

    Raises:
        ValueError: The map's shape is not that of its resolution, the map or its resolution is missing, or `k`
            or `random_fraction` is out of range.
    """
    if k < 1 or not 0 <= random_fraction <= 1:
        raise ValueError(f"k must be at least 1 and random_fraction in [0, 1], not {k} and {random_fraction}")
    grid = tissue_grid(tile_resolution, tissue, tile_size, tile_size, min_tissue=min_tissue)
    count = len(grid.level0)
    if pred_canvas is None:
        best = np.empty(0, dtype=np.int64)
    else:
        if canvas_resolution is None:
            raise ValueError("a probability map needs its resolution")
        score = _tile_scores(pred_canvas, canvas_resolution, tissue, grid)
        order = np.lexsort((grid.level0[:, 0], grid.level0[:, 1], -grid.tissue_fraction, -score))
        best = order[: k - round_px(k * random_fraction)] if count > k else order
    rest = np.setdiff1d(np.arange(count), best)
    # Drawn from the rest in its fixed order, so that the draw depends on the seed alone.
    others = np.random.default_rng(seed).permutation(rest)[: k - len(best)]
    chosen: NDArray[np.int64] = grid.level0[np.concatenate([best, others])]
    return chosen


def _tile_scores(
    canvas: NDArray[Any] | ProbabilityMap, resolution: Resolution, tissue: TissueMap, grid: Grid
) -> NDArray[np.float64]:
    """Mean probability over the tissue of each tile, (N,); 0 where a tile has none at the map's resolution."""
    height, width = resolution.height, resolution.width
    if tuple(canvas.shape) != (height, width):
        raise ValueError(f"probability map is {tuple(canvas.shape)}, its resolution says {(height, width)}")
    edges = round_px(
        np.concatenate([grid.working, grid.working + grid.patch_size], axis=1)
        * (grid.resolution.downsample / resolution.downsample)
    )
    x0, x1 = np.clip(edges[:, 0], 0, width), np.clip(edges[:, 2], 0, width)
    scores = np.zeros(len(edges))
    for top, bottom in np.unique(edges[:, [1, 3]], axis=0).tolist():
        y0, y1 = max(top, 0), min(bottom, height)
        if y1 <= y0:
            continue
        row = np.flatnonzero(edges[:, 1] == top)
        # Bands of a row of tiles: their sums are differences of one running sum of the columns.
        total, area = np.zeros(width), np.zeros(width)
        step = max(1, _BAND_PX // width)
        for y in range(y0, y1, step):
            h = min(step, y1 - y)
            where = tissue.crop(resolution, (0, round_px(y * resolution.downsample)), (width, h))
            probability = np.nan_to_num(_window(canvas, 0, y, width, h), nan=0.0)
            total += np.where(where, probability, 0).sum(axis=0, dtype=np.float64)
            area += where.sum(axis=0)
        total, area = _between(total, x0[row], x1[row]), _between(area, x0[row], x1[row])
        # Rounded, as a running sum gives equal tiles scores that differ in the last digits.
        scores[row] = np.round(total / np.maximum(area, 1), 9)
    return scores


def _between(columns: NDArray[np.float64], x0: NDArray[np.int64], x1: NDArray[np.int64]) -> NDArray[np.float64]:
    """Sum of `columns[x0:x1]` for many pairs."""
    running = np.concatenate([[0.0], np.cumsum(columns)])
    return np.asarray(running[x1] - running[x0])


def _window(canvas: NDArray[Any] | ProbabilityMap, x: int, y: int, w: int, h: int) -> NDArray[Any]:
    """A window of an array or of a map that is read."""
    if isinstance(canvas, np.ndarray):
        return canvas[y : y + h, x : x + w]
    return canvas.read(x, y, w, h)


def read_bag(
    slide: Slide, coords: NDArray[np.int64], resolution: Resolution, tile_size: int, stain: StainProfile | None = None
) -> NDArray[np.float32]:
    """Read the tiles of a bag.

    Args:
        slide: The slide.
        coords: (K, 2) top-left corners in level-0 px.
        resolution: Of the tiles.
        tile_size: Side of a tile in px at that resolution.
        stain: Of the slide, whose colours are brought to the reference's; None: they stay.

    Returns:
        (K, 3, h, w) float32 in [0, 1], RGB; white past the slide's edge.

    Raises:
        SlideError: The slide cannot be read.
    """
    bag = np.empty((len(coords), 3, tile_size, tile_size), dtype=np.float32)
    for number, tile in enumerate(_tiles(slide, coords, resolution, tile_size, stain)):
        bag[number] = _planes(tile)
    return bag


def _tiles(
    slide: Slide, coords: NDArray[np.int64], resolution: Resolution, tile_size: int, stain: StainProfile | None
) -> list[NDArray[np.uint8]]:
    """The tiles as the slide gives them, normalised if asked for, (h, w, 3) uint8."""
    tiles = [slide.read(resolution, (x, y), (tile_size, tile_size)) for x, y in coords.tolist()]
    return tiles if stain is None else [normalized(tile, stain) for tile in tiles]


def _planes(tile: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(h, w, 3) uint8 → (3, h, w) float32 in [0, 1]."""
    return tile.transpose(2, 0, 1).astype(np.float32) / np.float32(255)


def read_features(path: Path) -> NDArray[np.float32]:
    """Read the features of a slide's tiles, (K, D); the file's own checksum is looked at.

    Raises:
        ManifestError: The file is missing or damaged.
    """
    try:
        with path.open("rb") as raw, np.load(raw) as file:
            features: NDArray[np.float32] = file["features"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ManifestError(
            f"{path}: features cannot be read ({type(error).__name__}: {error}); remove it and run again"
        ) from error
    return features


class BagSet(Dataset[tuple[Tensor, Tensor, int, str]]):
    """Bags with the grade of their slide.

    An item is `(bag, mask, label, slide_id)`: (k, 3, h, w) float32 in [0, 1], or (k, D) features where the items have
    some; (k,) bool, False where the bag has fewer tiles and the rest is padding (zeros); the ISUP grade; the slide.

    Args:
        items: Slides with their tiles; of more than k the first k are used.
        settings: Of the bags.
        transform: Applied to each tile by itself, None for none; see `panda.data.patchset.PatchSet`.

    Raises:
        ConfigError: The settings are faulty.
        ManifestError: There are no items, or one has no tiles or no grade.
        SlideError: On access, a slide that cannot be read.
    """

    def __init__(self, items: Sequence[BagItem], settings: BagSettings, transform: Augmentation | None = None) -> None:
        if faults := settings.faults():
            raise ConfigError(faults)
        if not items:
            raise ManifestError("no slides to make bags of")
        self.labels: list[int] = []
        for item in items:
            if len(item.coords) == 0:
                raise ManifestError(f"{item.record.slide_id}: no tiles; lower tiles.min_tissue or leave it out")
            if item.record.isup_grade is None:
                raise ManifestError(f"{item.record.slide_id}: no isup_grade; grade it in the table or leave it out")
            self.labels.append(item.record.isup_grade)
        self.items = list(items)
        self.settings = settings
        # No bag is longer, however many tiles were asked for.
        self.k = min(settings.k, max(len(item.coords) for item in items))
        self.transform = transform

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int | Draw) -> tuple[Tensor, Tensor, int, str]:
        number, seed = drawn(index)
        settings = self.settings
        item = self.items[number]
        record, coords = item.record, item.coords[: self.k]
        if item.features is not None:
            found = read_features(item.features)[: self.k]
            padded = np.pad(found, ((0, self.k - len(found)), (0, 0)))
            mask = torch.arange(self.k) < len(found)
            return torch.from_numpy(padded), mask, self.labels[number], record.slide_id
        with settings.slide_options.open(record.image_path) as slide:
            resolution = settings.resolution.resolve(slide)
            tiles = _tiles(slide, coords, resolution, settings.tile_size, item.stain)
        if self.transform is not None:
            tiles = [self.transform.image(tile, seed + offset) for offset, tile in enumerate(tiles)]
        bag = np.zeros((self.k, 3, settings.tile_size, settings.tile_size), dtype=np.float32)
        for offset, tile in enumerate(tiles):
            bag[offset] = _planes(tile)
        mask = torch.arange(self.k) < len(tiles)
        return torch.from_numpy(bag), mask, self.labels[number], record.slide_id
