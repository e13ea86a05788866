"""The configuration of the extraction of features: keys, the encoder, and the files that they name."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from panda.app.encoder_choice import USUAL_MPP, describe_scale, find_encoder
from panda.app.hydra_job import find_idle_faults
from panda.app.output_folder import OutputKeys
from panda.app.sharded_slides import ShardedSlides
from panda.data.feature_origin import FeatureFormat
from panda.errors import ConfigError
from panda.inference.compute import EngineSettings
from panda.inference.feature_output import SUMMARY, FeatureOutput, FeatureSettings, TilePlan
from panda.inference.feature_store import describe_encoder
from panda.inference.modes import Precision
from panda.models.encoder_cards import PUBLISHED, EncoderCard
from panda.models.mil import MILNet
from panda.models.weights import find_published
from panda.settings import Share, Text, rule
from panda.stored import MOST_PATCH_PX
from panda.wsi.mpp import MPP_MAX, MPP_MIN
from panda.wsi.stain_normalization import NormalizeName

DOWNLOADED = ("imagenet", "download")
"""Values of `encoder_weights` that are downloaded, which a check does not do."""
IDLE_KEYS = tuple(f"engine.{key}" for key in ("compile", "tta", "canvas_mib", "post_workers"))
_USUAL_SIZE = 256
_MOST_OVERLAP = 0.9


class FeaturesConfig(ShardedSlides, OutputKeys):
    """Keys and nodes of `conf/features.yaml`, which describes them."""

    entry_point: ClassVar[str] = "features"

    encoder: Text
    encoder_weights: Text | None
    tile_size: int | None = Field(ge=1, le=MOST_PATCH_PX)
    mpp: float | None = Field(ge=MPP_MIN, le=MPP_MAX)
    level: int | None = Field(ge=0)
    overlap: Annotated[float, Field(ge=0, le=_MOST_OVERLAP)]
    min_tissue: Share
    format: FeatureFormat
    normalize: NormalizeName | None
    pictures: bool
    debug: bool
    collect: None

    @functools.cached_property
    def card(self) -> EncoderCard:
        """What is known of the encoder."""
        with _name_own_keys():
            encoder = find_encoder(self.encoder)
            return EncoderCard.parse({"architecture": encoder} if isinstance(encoder, str) else encoder)

    @functools.cached_property
    def network(self) -> MILNet:
        """The encoder as a network without weights that would be downloaded."""
        return self.build_network(None if self.encoder_weights in DOWNLOADED else self.encoder_weights)

    @functools.cached_property
    def encoder_network(self) -> MILNet:
        """The encoder with its weights, which are downloaded if they are to be."""
        return self.build_network(self.encoder_weights) if self.encoder_weights in DOWNLOADED else self.network

    @functools.cached_property
    def feature_output(self) -> FeatureOutput:
        """The folder of the files, with their settings; it takes the hash of all weights."""
        return FeatureOutput(Path(self.run_dir), self.describe(self.encoder_network), self.mpp_override)

    def build_network(self, weights: str | None) -> MILNet:
        """Build the network of the encoder. Random weights are the same each time, so that a command can continue."""
        self._find_weights()
        size = self.engine.batch_size
        with _name_own_keys(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return MILNet(
                find_encoder(self.encoder),
                weights,
                pooling="mean",
                freeze_encoder=True,
                chunk=64 if size == "auto" else size,
            ).eval()

    @property
    def plan(self) -> TilePlan:
        """The tiles, with what the encoder was trained on in place of keys that are not given."""
        usual = describe_scale(self.card, None)[1] if self.card.mpp else USUAL_MPP
        mpp = usual if self.mpp is None else self.mpp
        return TilePlan(
            tile_size=self.tile_size or self.card.tile_size or _USUAL_SIZE,
            level=self.level,
            mpp=mpp if self.level is None else None,
            overlap=float(self.overlap),
            min_tissue=float(self.min_tissue),
            normalize=self.normalize,
            reader=self.reader,
        )

    @property
    def compute(self) -> EngineSettings:
        """The engine with the precision of the features; `auto` means fp32, as in grading."""
        precision: Precision = "bf16" if self.engine.precision == "bf16" else "fp32"
        return self.engine.model_copy(update={"precision": precision})

    def describe(self, network: MILNet) -> FeatureSettings:
        """Return the settings of the files that this configuration makes."""
        own = self.encoder.endswith((".yaml", ".yml"))
        name = Path(self.encoder).stem if own else self.encoder
        origin = describe_encoder(network, self.compute.precision, name)
        if self.encoder_weights not in PUBLISHED:  # the revision is that of the published weights
            origin = origin.model_copy(update={"revision": None})
        return FeatureSettings(
            format="panda" if self.format == "trident" else self.format, plan=self.plan, origin=origin
        )

    def _find_weights(self) -> None:
        """Refuse missing weights before a large network is built."""
        weights = self.encoder_weights
        if weights not in (None, "cached", *DOWNLOADED) and not Path(weights).is_file():
            raise ConfigError(f"encoder_weights={weights}: no such file; give null, a known name, or a state dict")
        if weights == "cached" and (hub := self.card.hub) is not None:
            with _name_own_keys():
                find_published(hub, self.card.revision, gated=self.card.gated, download=False)

    @rule
    def _check_resolution(self) -> Iterator[str]:
        if self.level is not None and self.mpp is not None:
            yield f"{self.setting('level')} and {self.setting('mpp')}: give at most one of them"

    @rule
    def _check_unknown_mpp(self) -> Iterator[str]:
        if self.allow_unknown_mpp and self.level is None:
            yield (
                "allow_unknown_mpp=true: a slide of unknown µm/px cannot be read at a µm/px; give mpp_override=… for "
                "such slides, or level=… too"
            )

    @rule
    def _check_scale(self) -> Iterator[str]:
        card, key = self.card, self.setting("encoder")
        if not card.mpp:
            return
        size = f" tile_size={card.tile_size}" if card.tile_size else ""
        trained, mpp = describe_scale(card, self.mpp)
        remedy = f"give mpp={mpp:g}{size}, to which the slides are resampled, or leave these keys out"
        if self.level is not None:
            yield (
                f"{self.setting('level')}: a level has other µm/px on other slides, but {key} was trained at {trained} "
                f"µm/px; remove it"
            )
        elif (plan := self.plan).mpp and (fault := card.describe_scale_fault(plan.mpp, plan.tile_size)):
            yield f"{key}: {fault}; {remedy}"

    @rule
    def _check_weights(self) -> None:
        self._find_weights()

    @rule
    def _check_network(self) -> None:
        network, plan = self.network, self.plan
        with _name_own_keys():
            network.check_tile_size(plan.tile_size)

    @rule
    def _check_folder(self) -> Iterator[str]:
        # A folder without other features needs no comparison, which takes the hash of all weights.
        folder, known = Path(self.run_dir), self.encoder_weights not in DOWNLOADED
        if known and (folder / SUMMARY).exists():
            yield from filter(None, [self.feature_output.find_fault()])

    @rule
    def _check_idle_keys(self) -> Iterator[str]:
        yield from find_idle_faults(IDLE_KEYS, "features.py")


@contextmanager
def _name_own_keys() -> Iterator[None]:
    """Name keys as they are typed here in refusals of an encoder, which is an option of a network in a training."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError([fault.replace("model.encoder", "encoder") for fault in error.faults]) from error
