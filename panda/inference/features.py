"""Features of tiles: encoded part by part, and kept on the disk where the encoder does not learn."""

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
from panda.files import fingerprint, hold_lock, identity, whole_path
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
    """Encode the tiles of a slide, `network.chunk` at a time, the next ones being read meanwhile.

    Args:
        network: In evaluation mode, on the device of `settings`.
        slide: The slide.
        coords: (K, 2) upper left corners, level-0 px.
        resolution: Of the tiles.
        tile_size: Side of a tile in px.
        stain: As for `read_bag`.
        settings: Device and precision.

    Returns:
        (K, D) float32.
    """
    parts = np.array_split(coords, -(-len(coords) // network.chunk))

    def bags() -> Iterator[NDArray[np.float32]]:
        with ThreadPoolExecutor(1) as reader:
            coming = reader.submit(read_bag, slide, parts[0], resolution, tile_size, stain)
            for part in parts[1:]:
                bag = coming.result()
                coming = reader.submit(read_bag, slide, part, resolution, tile_size, stain)
                yield bag
            yield coming.result()

    with torch.inference_mode(), settings.autocast():
        return np.concatenate(
            [network.encode(torch.from_numpy(bag).to(settings.torch_device)).float().cpu().numpy() for bag in bags()]
        )


class FeatureCache:
    """Features that a frozen encoder gave to tiles, each encoded once.

    Files are named by all that makes them: the encoder's weights, the slide, its tiles and how they are read. They
    hold their own checksum; one that is damaged is told and made anew.

    Args:
        network: Its encoder is frozen; it is moved to the device of `settings`.
        settings: Device and precision.
        folder: Where the files lie.

    Raises:
        OSError: If there is no such folder and it cannot be made.
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
        self.folder.mkdir(parents=True, exist_ok=True)  # a folder that cannot be made is no fault of a slide

    def of(
        self,
        slide: Slide,
        coords: NDArray[np.int64],
        resolution: Resolution,
        tile_size: int,
        stain: StainProfile | None,
    ) -> Path:
        """Encode a slide's tiles, or finds that it has been done.

        Args:
            slide: The slide.
            coords: (K, 2) upper left corners, level-0 px.
            resolution: Of the tiles.
            tile_size: Side of a tile in px.
            stain: As for `read_bag`.

        Returns:
            A file for `read_features`.

        Raises:
            SlideError: If the slide cannot be read.
        """
        made_of = fingerprint(
            {
                "encoder": self.encoder,
                "slide": identity(slide.path),
                "reader": slide.reader_name,
                "tiles": hashlib.sha256(np.ascontiguousarray(coords).tobytes()).hexdigest(),
                "side": [tile_size, resolution.downsample],
                "stain": None if stain is None else [STAIN_RULES, asdict(stain)],
            }
        )
        path = self.folder / f"{slide.slide_id}-{made_of[:16]}.npz"
        with hold_lock(path):
            if path.exists():
                try:
                    if read_features(path).shape == (len(coords), self.network.feature_dim):
                        return path
                    log.warning("%s: holds features of another shape; its tiles are encoded anew", path)
                except PandaError as error:
                    log.warning("%s: damaged (%s); its tiles are encoded anew", path, error.__cause__)
            features = encode_tiles(
                self.network, slide, coords, resolution, tile_size=tile_size, stain=stain, settings=self.settings
            )
            with whole_path(path) as partial, partial.open("wb") as file:
                np.savez(file, features=features)
        return path
