"""Encode the tiles of bags into features, in batches that several slides may share."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import InitVar, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from panda.data.bags import read_tiles
from panda.errors import raise_exhaustion
from panda.inference.compute import EngineSettings
from panda.inference.tile_batches import TileReader, read_groups
from panda.inference.tile_model import TileModel
from panda.models.mil import MILNet
from panda.wsi.geometry import Resolution
from panda.wsi.slide import Slide
from panda.wsi.stain_normalization import StainProfile

_CPU_BATCH = 16
"""Tiles of a batch on a CPU: 64 tiles of 256 px take a quarter more CPU time each, because memory is mapped again."""


class TileEncoder(TileModel):
    """The encoder of a grading network in evaluation mode, from tiles to features, (n, D).

    Args:
        network: The network; it is moved to the device.
        settings: Device, precision and threads. `batch_size=auto` is the chunk of the network on a GPU and 16 on a CPU;
            the chunk limits any size.
    """

    def __init__(self, network: MILNet, settings: EngineSettings) -> None:
        device = settings.torch_device
        auto = _CPU_BATCH if device.type == "cpu" else network.chunk
        size = auto if settings.batch_size == "auto" else settings.batch_size
        super().__init__(network, device, min(size, network.chunk))
        self.settings = settings
        self.feature_dim = network.feature_dim
        self._encode = network.encode

    def run(self, images: Tensor) -> Tensor:
        """See `TileModel.run`."""
        with torch.inference_mode(), self.settings.autocast():
            planes = self.upload(images).permute(0, 3, 1, 2).contiguous()
            return self._encode(planes.float().div_(255)).float()


@dataclass(frozen=True, eq=False)
class TileBag:
    """Tiles of one slide.

    Attributes:
        path: The slide.
        coords: Upper left corners, (K, 2) int64, level-0 px; K is not 0.
        resolution: Resolution of the tiles.
        tile_size: Side of a tile in px.
        stain: Stain of the slide, as for `read_bag`.
    """

    path: Path
    coords: NDArray[np.int64]
    resolution: Resolution
    tile_size: int
    stain: StainProfile | None = None


@dataclass(eq=False)
class BagInProgress:
    """A bag whose tiles are encoded one by one.

    Attributes:
        bag: The bag.
        slide: The open slide.
        feature_dim: D.
    """

    bag: TileBag
    slide: Slide
    feature_dim: InitVar[int]
    _features: NDArray[np.float32] = field(init=False)
    _order: deque[int] = field(init=False)
    _fault: Exception | None = field(init=False, default=None)

    def __post_init__(self, feature_dim: int) -> None:
        self._features = np.empty((len(self.bag.coords), feature_dim), np.float32)
        # By rows of the slide, so that tiles that share stored pixels are read one after the other.
        self._order = deque(np.lexsort(self.bag.coords.T).tolist())

    def list_readers(self) -> list[TileReader]:
        """Return a reader for each tile, in the order in which `take` expects the features."""
        return [partial(self._read, number) for number in self._order]

    def _read(self, number: int) -> NDArray[np.uint8]:
        """Read a tile. One that cannot be read is black, because the batch has tiles of other slides too."""
        bag, side = self.bag, self.bag.tile_size
        if self._fault is None:
            try:
                return read_tiles(self.slide, bag.coords[number : number + 1], bag.resolution, side, bag.stain)[0]
            except Exception as error:
                raise_exhaustion(error)
                self._fault = error
        return np.zeros((side, side, 3), np.uint8)

    def take(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Store the features of the next tiles, and return the rows that belong to other bags."""
        numbers = [self._order.popleft() for _ in range(min(len(rows), len(self._order)))]
        self._features[numbers] = rows[: len(numbers)]
        return rows[len(numbers) :]

    @property
    def complete(self) -> bool:
        """Whether all tiles are encoded."""
        return not self._order

    def get_features(self) -> NDArray[np.float32]:
        """Return the features, (K, D) float32, or raise the error of the first tile that could not be read."""
        if self._fault:
            raise self._fault
        return self._features


def encode_bags(
    encoder: TileEncoder,
    bags: Iterable[tuple[TileBag, Slide]],
    tile_size: int,
    on_tiles: Callable[[int], None] = lambda _: None,
    *,
    share_batches: bool = True,
) -> Generator[BagInProgress, None, None]:
    """Encode bags of several slides in their order, while threads read the tiles of the next bags.

    The neighbours of a tile in its batch change its features by rounding at most, and so does the number of threads of
    the CPU. A tile that cannot be read is the fault of its own bag only.

    Args:
        encoder: The encoder.
        bags: Bags and their open slides, taken several ahead. A slide must stay open until its bag is yielded.
        tile_size: Side of all tiles in px.
        on_tiles: Called with the number of tiles of each finished batch.
        share_batches: Whether a batch may have tiles of several bags, which is faster for small bags. Otherwise the
            features of a bag do not depend on the other bags.

    Yields:
        The bags, complete.

    Raises:
        ExhaustedError: If memory is exhausted.
    """
    begun: deque[BagInProgress] = deque()

    def list_groups() -> Iterator[Sequence[TileReader]]:
        for bag, slide in bags:
            begun.append(BagInProgress(bag, slide, encoder.feature_dim))
            yield begun[-1].list_readers()

    def encode() -> Iterator[Tensor]:
        size, threads = encoder.batch_size or 1, encoder.settings.thread_count
        before = None
        groups: Iterable[Iterable[TileReader]] = list_groups()
        groups = [itertools.chain.from_iterable(groups)] if share_batches else groups
        for images in read_groups(groups, tile_size, size, threads=threads, device=encoder.device):
            features = encoder(images)  # a GPU computes them while those of the batch before are copied
            if before is not None:
                yield before
            before = features
        if before is not None:
            yield before

    for features in encode():
        rows: NDArray[np.float32] = features.cpu().numpy()
        on_tiles(len(rows))
        while len(rows):
            rows = begun[0].take(rows)
            if begun[0].complete:
                yield begun.popleft()


def encode_tiles(encoder: TileEncoder, slide: Slide, bag: TileBag) -> NDArray[np.float32]:
    """Encode the tiles of one open slide: (K, D) float32.

    Raises:
        SlideError: If the slide cannot be read.
    """
    (encoded,) = encode_bags(encoder, [(bag, slide)], bag.tile_size)
    return encoded.get_features()
