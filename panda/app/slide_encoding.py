"""Encode the slides of one command: one function for this process and for the workers of a cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from panda.app.features_config import FeaturesConfig
from panda.app.slide_division import require_slides_here, sample_slides
from panda.app.slide_work import DoneSlide
from panda.errors import PandaError
from panda.inference.feature_extraction import FeatureExtractor, OnSlide
from panda.inference.feature_output import FeatureRecord
from panda.inference.features import TileEncoder


@dataclass(frozen=True)
class EncodingFacts:
    """What a loaded encoder says of all slides.

    Attributes:
        made_with: Fingerprint of the settings of the files, with that of the weights.
        device: Where the encoder runs.
        engine: Device, precision, tiles and batches in words.
    """

    made_with: str
    device: str
    engine: str = field(compare=False)


@dataclass(frozen=True)
class SlideEncoding:
    """How slides are encoded, so that it can be pickled to a worker of a cluster.

    Attributes:
        config: The keys; a worker reads the files that they name itself.
        made_with: Fingerprint of the settings of the files, as the driver found it.
        sample: Some of the slides, which exist.
    """

    config: FeaturesConfig
    made_with: str
    sample: Sequence[Path]

    @classmethod
    def from_config(cls, config: FeaturesConfig) -> SlideEncoding:
        """Return the encoding of a configuration."""
        made_with = config.feature_output.settings.fingerprint
        return cls(config.divide_threads(), made_with, sample_slides(config.slide_list.paths))

    def load(self) -> LoadedEncoding:
        """Load the encoder.

        Raises:
            PandaError: If the encoder or a slide here is not the one of the driver.
        """
        if self.config.feature_output.settings.fingerprint != self.made_with:
            raise PandaError(
                f"encoder {self.config.encoder} has other weights or settings there than for this command: share one "
                "checkout, and the file of the weights or the cache of the hub"
            )
        require_slides_here(self.sample)
        return LoadedEncoding(self.config)


class LoadedEncoding:
    """An encoder that writes features of slides.

    Args:
        config: The keys.
    """

    def __init__(self, config: FeaturesConfig) -> None:
        self._config, self._output = config, config.feature_output
        self._encoder = TileEncoder(config.encoder_network, config.compute)

    @property
    def facts(self) -> EncodingFacts:
        """What is known of the encoder."""
        config, encoder, settings = self._config, self._encoder, self._output.settings
        plan = settings.plan
        return EncodingFacts(
            made_with=settings.fingerprint,
            device=str(encoder.device),
            engine=f"{config.encoder} on {encoder.device} in {config.compute.precision}: {encoder.feature_dim} "
            f"features of tiles of {plan.tile_size} px at {plan.request}, batches of {encoder.batch_size}, "
            f"{config.engine.thread_count} read threads",
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes that the encoder made while it ran."""
        return tuple(self._encoder.notes)

    def extract(self, paths: Sequence[Path], on_slide: OnSlide, on_tiles: Callable[[int], None]) -> None:
        """Write the features of slides, see `FeatureExtractor`."""
        config = self._config
        extractor = FeatureExtractor(
            self._encoder, self._output, config.slide_options, on_slide, on_tiles, pictures=config.pictures
        )
        extractor.extract(paths)

    def __call__(self, path: Path) -> DoneSlide[FeatureRecord]:
        """Write the features of one slide."""
        found: list[FeatureRecord | Exception] = []
        self.extract([path], lambda _, result: found.append(result), lambda _: None)
        (result,) = found
        if isinstance(result, Exception):
            raise result
        return DoneSlide(result, None, self.notes)
