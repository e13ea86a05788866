"""Store the features of a frozen encoder on the disk."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from panda.data.feature_files import VERSION, FeatureFile, FeatureOrigin, read_features, write_feature_file
from panda.errors import LockedError, PandaError
from panda.files import fingerprint, hold_lock, identity
from panda.inference.compute import EngineSettings
from panda.inference.features import TileBag, TileEncoder, encode_bags, encode_tiles
from panda.models.mil import MILNet
from panda.wsi.slide import Slide
from panda.wsi.stain_normalization import STAIN_RULES

log = logging.getLogger(__name__)

OpenSlide = Callable[[Path], Slide]
OnBag = Callable[[TileBag, Path | Exception], None]
"""Takes a bag with the file of its features, or its error. What it raises ends the work on all bags."""


def describe_encoder(network: MILNet, precision: str, name: str | None = None) -> FeatureOrigin:
    """Return what is known of features by the encoder of a network, without their tiles.

    Args:
        network: The network.
        precision: Precision of its computation.
        name: Name of the encoder; None is that of its weights on the hub, or of its architecture.
    """
    weights = hashlib.sha256()
    for key, value in sorted(network.encoder.state_dict().items()):
        weights.update(key.encode() + value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    card, options = network.card, network.options
    scaled = "" if card.resize is None else f"resize {card.resize} {card.interpolation}, "
    cut = "" if card.input_size is None else f"centre {card.input_size}, "
    return FeatureOrigin(
        format="panda",
        dim=network.feature_dim,
        encoder=name or card.hub or card.architecture,
        weights=weights.hexdigest(),
        revision=card.revision,
        transform=f"{scaled}{cut}mean {options['mean']}, std {options['std']}",
        pooling=card.pooling,
        precision=precision,
    )


def describe_features(
    encoder: FeatureOrigin, slide: Slide, bag: TileBag, features: NDArray[np.float32], *, key: str, overlap: int = 0
) -> FeatureFile:
    """Return features of the tiles of an open slide with their origin.

    Args:
        encoder: What is known of the encoder.
        slide: The slide.
        bag: Its tiles.
        features: Features of the tiles, (K, D).
        key: Hash of everything that determines the features.
        overlap: Overlap of neighbouring tiles in px.
    """
    mpp = bag.resolution.mean_mpp
    known = {
        "tile_px0": float(bag.tile_size * bag.resolution.downsample),
        "tile_um": mpp and float(bag.tile_size * mpp),
        "tile_size": bag.tile_size,
        "mpp": mpp and float(mpp),
        "overlap": overlap,
        "normalize": bag.stain and "macenko",
        "fingerprint": key,
    }
    origin = FeatureOrigin.model_validate(encoder.model_dump() | known)
    coords = bag.coords + np.array(slide.level_origins[0], np.int64)
    return FeatureFile(slide.slide_id, features, coords, origin, slide.file_level_dimensions[0])


class FeatureStore:
    """Features of tiles by a frozen encoder, each computed once.

    The name of a file holds the hash of everything that determines it: the weights of the encoder, the slide, its tiles
    and how they are read. Batches are no part of it, because they change features by rounding at most. A file has a
    checksum; a damaged one is made again with a warning.

    Args:
        network: A network with a frozen encoder; it is moved to the device of `settings`.
        settings: Device and precision.
        folder: Parent folder of the files.
    """

    def __init__(self, network: MILNet, settings: EngineSettings, folder: Path) -> None:
        self.encoder = TileEncoder(network, settings)
        self._origin = describe_encoder(network, settings.precision)
        self.fingerprint = fingerprint(
            {"rules": VERSION, "weights": self._origin.weights, "precision": settings.precision}
            | {key: network.options[key] for key in ("encoder", "mean", "std")}
        )
        self.folder = folder / f"features-{self.fingerprint[:12]}"
        self.folder.mkdir(parents=True, exist_ok=True)  # before any slide, because it is no failure of a slide

    def encode(self, slide: Slide, bag: TileBag) -> Path:
        """Encode the tiles of an open slide, unless they are stored; return a file of features."""
        path = self._find_file(slide, bag)
        with hold_lock(path):
            if not self._holds(path, bag):
                write_feature_file(path, self._describe(slide, bag, encode_tiles(self.encoder, slide, bag)))
        return path

    def encode_all(self, bags: Sequence[TileBag], open_slide: OpenSlide, on_bag: OnBag) -> None:
        """Encode the tiles of many slides, unless they are stored, in batches that the slides share.

        A bag that another run encodes at the same time waits for the end. Otherwise two runs that wait for each other,
        each with locks of its own, would never end.

        Args:
            bags: The bags, with tiles of one size.
            open_slide: Opens a slide.
            on_bag: Called once for each bag.

        Raises:
            ExhaustedError: If memory is exhausted.
        """
        for bag in self._encode(bags, open_slide, on_bag, wait=False):
            self._encode([bag], open_slide, on_bag, wait=True)

    def _encode(self, bags: Sequence[TileBag], open_slide: OpenSlide, on_bag: OnBag, *, wait: bool) -> list[TileBag]:
        """Encode bags and return those that another run has locked; there are none if `wait` is true."""
        begun: dict[TileBag, tuple[Path, contextlib.ExitStack]] = {}  # with open slide and lock
        busy: list[TileBag] = []

        def begin() -> Iterator[tuple[TileBag, Slide]]:
            for bag in bags:
                with contextlib.ExitStack() as stack:
                    try:
                        slide = stack.enter_context(open_slide(bag.path))
                        path = self._find_file(slide, bag)
                        stack.enter_context(hold_lock(path, wait=wait))
                        stored = self._holds(path, bag)
                    except LockedError:
                        busy.append(bag)
                        continue
                    except Exception as error:
                        on_bag(bag, error)
                        continue
                    if stored:
                        on_bag(bag, path)
                        continue
                    begun[bag] = path, stack.pop_all()
                yield bag, slide

        try:
            # Its threads read the slides, so it is closed first.
            with contextlib.closing(encode_bags(self.encoder, begin(), bags[0].tile_size if bags else 1)) as done:
                for encoded in done:
                    path, stack = begun.pop(encoded.bag)
                    found: Path | Exception = path
                    with stack:
                        try:
                            write_feature_file(path, self._describe(encoded.slide, encoded.bag, encoded.get_features()))
                        except Exception as error:
                            found = error
                    on_bag(encoded.bag, found)
        finally:
            for _, stack in begun.values():
                stack.close()
        return busy

    def _describe(self, slide: Slide, bag: TileBag, features: NDArray[np.float32]) -> FeatureFile:
        return describe_features(self._origin, slide, bag, features, key=self._find_key(slide, bag))

    def _find_key(self, slide: Slide, bag: TileBag) -> str:
        """Return a hash of everything that determines the features of a bag."""
        return fingerprint(
            {
                "encoder": self.fingerprint,
                "slide": identity(slide.path),
                "reader": slide.reader_name,
                "tiles": hashlib.sha256(np.ascontiguousarray(bag.coords).tobytes()).hexdigest(),
                "side": [bag.tile_size, bag.resolution.downsample],
                "stain": None if bag.stain is None else [STAIN_RULES, asdict(bag.stain)],
            }
        )

    def _find_file(self, slide: Slide, bag: TileBag) -> Path:
        """Return the path of the features of a bag, which need not exist."""
        return self.folder / f"{slide.slide_id}-{self._find_key(slide, bag)[:16]}.h5"

    def _holds(self, path: Path, bag: TileBag) -> bool:
        """Return whether the features of a bag are stored; warn of a damaged file."""
        if not path.exists():
            return False
        try:
            if read_features(path).shape == (len(bag.coords), self.encoder.feature_dim):
                return True
            log.warning("%s: holds features of another shape; its tiles are encoded again", path)
        except PandaError as error:
            log.warning("%s: damaged (%s); its tiles are encoded again", path, error.__cause__)
        return False
