"""Encode tiles into features, and cache the features of a frozen encoder on the disk."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from panda.data.bags import read_bag, read_features
from panda.errors import PandaError
from panda.files import fingerprint, hold_lock, identity, write_beside
from panda.inference.compute import EngineSettings
from panda.models.mil import MILNet
from panda.tasks.metadata import GradingMetadata
from panda.wsi.geometry import Resolution
from panda.wsi.slide import Slide
from panda.wsi.stain_normalization import STAIN_RULES, StainProfile

log = logging.getLogger(__name__)


def encode_tiles(
    network: MILNet,
    slide: Slide,
    coords: NDArray[np.int64],
    resolution: Resolution,
    *,
    tile_size: int,
    stain: StainProfile | None,
    settings: EngineSettings,
) -> NDArray[np.float32]:
    """Encode the tiles of a slide, `network.chunk` at a time, and read the next ones at the same time.

    Args:
        network: The network in evaluation mode, on the device of `settings`.
        slide: The slide.
        coords: Upper left corners, (K, 2), level-0 px.
        resolution: Resolution of the tiles.
        tile_size: Side of a tile in px.
        stain: Stain of the slide, as for `read_bag`.
        settings: Device and precision.

    Returns:
        Features, (K, D) float32.
    """
    parts = np.array_split(coords, -(-len(coords) // network.chunk))

    def read_bags() -> Iterator[NDArray[np.float32]]:
        with ThreadPoolExecutor(1) as reader:
            coming = reader.submit(read_bag, slide, parts[0], resolution, tile_size, stain)
            for part in parts[1:]:
                bag = coming.result()
                coming = reader.submit(read_bag, slide, part, resolution, tile_size, stain)
                yield bag
            yield coming.result()

    with torch.inference_mode(), settings.autocast():
        return np.concatenate(
            [
                network.encode(torch.from_numpy(bag).to(settings.torch_device)).float().cpu().numpy()
                for bag in read_bags()
            ]
        )


class FeatureCache:
    """Features of tiles by a frozen encoder, each computed once.

    The name of a file holds the hash of everything that determines it: the weights of the encoder, the slide, its tiles
    and how they are read. A file has a checksum; a damaged one is made again with a warning.

    Args:
        network: A network with a frozen encoder; it is moved to the device of `settings`.
        settings: Device and precision.
        folder: Parent folder of the files.
    """

    def __init__(self, network: MILNet, settings: EngineSettings, folder: Path) -> None:
        self.network = network.eval().to(settings.torch_device)
        self.settings = settings
        weights = hashlib.sha256()
        for name, value in sorted(network.encoder.state_dict().items()):
            weights.update(name.encode() + value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        self.encoder = fingerprint(
            {"rules": GradingMetadata.FORMAT, "weights": weights.hexdigest(), "precision": settings.precision}
            | {key: network.options[key] for key in ("encoder", "mean", "std")}
        )
        self.folder = folder / f"features-{self.encoder[:12]}"
        self.folder.mkdir(parents=True, exist_ok=True)  # before any slide, because it is no failure of a slide

    def encode(
        self,
        slide: Slide,
        coords: NDArray[np.int64],
        resolution: Resolution,
        tile_size: int,
        stain: StainProfile | None,
    ) -> Path:
        """Encode the tiles of a slide as `encode_tiles` does, unless they are stored; return a file of features."""
        key = fingerprint(
            {
                "encoder": self.encoder,
                "slide": identity(slide.path),
                "reader": slide.reader_name,
                "tiles": hashlib.sha256(np.ascontiguousarray(coords).tobytes()).hexdigest(),
                "side": [tile_size, resolution.downsample],
                "stain": None if stain is None else [STAIN_RULES, asdict(stain)],
            }
        )
        path = self.folder / f"{slide.slide_id}-{key[:16]}.npz"
        with hold_lock(path):
            if path.exists():
                try:
                    if read_features(path).shape == (len(coords), self.network.feature_dim):
                        return path
                    log.warning("%s: holds features of another shape; its tiles are encoded again", path)
                except PandaError as error:
                    log.warning("%s: damaged (%s); its tiles are encoded again", path, error.__cause__)
            features = encode_tiles(
                self.network, slide, coords, resolution, tile_size=tile_size, stain=stain, settings=self.settings
            )
            with write_beside(path) as partial, partial.open("wb") as file:
                np.savez(file, features=features)
        return path
