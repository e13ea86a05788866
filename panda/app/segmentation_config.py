"""The configuration of a segmentation: settings of the task, and the rules between its nodes."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import suppress
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from panda.app.build import Faults
from panda.app.encoder_choice import (
    DOWNLOADED,
    describe_scale,
    describe_weights_fault,
    find_card,
    find_encoder,
)
from panda.app.hydra_job import find_idle_faults
from panda.app.loss_check import check_ignored_pixels, check_loss, check_partial_labels
from panda.app.operating_point import CHOICE_KEYS
from panda.app.registry import Slot
from panda.app.train_config import TaskSettings, TrainConfig
from panda.errors import ConfigError, name_options
from panda.inference.compute import has_compiler
from panda.models.segmentation import Segmenter, list_weights
from panda.settings import Text, rule
from panda.tasks.gleason_search import GleasonRuleSettings
from panda.tasks.threshold import check_criterion
from panda.wsi.classes import ClassSet, find_classes


class SegmentationSettings(TaskSettings):
    """Settings of the task, apart from its data, model and trainer; see the base class too.

    Args:
        name: `segmentation`.
        classes: The classes of a pixel: `binary`, a name in `conf/classes`, or the path of a YAML file.
        overlap: Overlap of neighbouring tiles when slides are mapped, as a share of the patch size, in [0, 1).
        panels: Rows of the panel pictures.
        views_every: Epochs between pictures of validation patches during training; 0 draws none.
        views: Patches that are the same in all of these pictures, see `panda.app.patch_views`.
        channels_last: Train with the channels of a pixel next to each other in memory. The network is the same, and
            training is faster (docs/performance.md).
        gleason_rule: How areas of patterns become a Gleason score, for classes of Gleason patterns.
        compile: Train through `torch.compile`, which starts slowly and then is faster. It needs a C++ compiler.
    """

    name: Literal["segmentation"] = Field(default="segmentation", description="give task=segmentation or task=grading")
    classes: Text = "binary"
    overlap: float = Field(default=0.5, ge=0, lt=1, description="0.5 lets each tile overlap half of the next")
    panels: int = Field(default=6, ge=0, description="0 draws none")
    views_every: int = Field(default=5, ge=0, description="0 draws none")
    views: int = Field(default=4, ge=0, description="0 draws none")
    channels_last: bool = True
    compile: bool = False
    gleason_rule: GleasonRuleSettings = Field(default_factory=GleasonRuleSettings)

    @functools.cached_property
    def class_set(self) -> ClassSet:
        """The classes that `classes` names."""
        return find_classes(self.classes)

    @rule
    def _check_classes(self) -> None:
        find_classes(self.classes)

    @rule
    def _check_compiler(self) -> Iterator[str]:
        if self.compile and not has_compiler():
            yield "task.compile=true needs a C++ compiler (g++ or clang++), and none was found: install one"

    @rule
    def _check_views(self) -> Iterator[str]:
        if not self.views_every:
            yield from find_idle_faults(("task.views",), "task.views_every=0, which draws none")


class SegmentationConfig(TrainConfig):
    """Configuration of `train.py task=segmentation`."""

    task: SegmentationSettings
    model: Annotated[dict[str, Any], Slot(Segmenter, ("panda.models",))]

    @property
    def downloads(self) -> bool:
        """Whether the weights of the encoder are downloaded, which happens only after every check has passed."""
        weights = self.model.get("encoder_weights")
        return weights in (DOWNLOADED if self.has_card else list_weights(str(self.model.get("encoder_name"))))

    @property
    def has_card(self) -> bool:
        """Whether the network has an encoder of `conf/encoders`, which has a card."""
        return "encoder" in self.model

    @functools.cached_property
    def network(self) -> Segmenter:
        """The network, without weights that are downloaded."""
        return self.build_network(**({"encoder_weights": None} if self.downloads else {}))

    def build_network(self, **extra: Any) -> Segmenter:
        """Build the network with the channels of its classes. `extra` replaces options."""
        channels = 1
        with suppress(ConfigError):  # the task reports it, and the options of the network are checked too
            channels = self.task.class_set.channels
        faults = Faults()
        if self.has_card:
            extra["encoder"] = "vit_tiny_patch16_224"  # in place of a wrong one, so that other faults are found too
            with faults.collect():
                extra["encoder"] = find_encoder(self.model["encoder"])
        with faults.collect():
            network: Segmenter = self.build("model", channels=channels, **extra)
        faults.raise_any()
        return network

    @rule
    def _check_encoder(self) -> Iterator[str]:
        if self.has_card and (fault := describe_weights_fault(self.model)):
            yield fault

    @rule
    def _check_scale(self) -> Iterator[str]:
        if not self.has_card or not (card := find_card(self.model["encoder"])).mpp:
            return
        asked = self.data.mpp
        if asked is None or not card.fits_mpp(asked):
            trained, nearest = describe_scale(card, asked)
            yield (
                f"data.{'level' if asked is None else 'mpp'}={self.data.level if asked is None else asked}: "
                f"model.encoder={self.model['encoder']} was trained at {trained} µm/px; give data.level=null "
                f"data.mpp={nearest:g}, to which the slides are resampled"
            )

    @rule
    def _check_channels(self) -> Iterator[str]:
        if "channels" in self.model:
            yield f"model.channels={self.model['channels']} follows from task.classes: leave it out"

    @rule
    def _check_patch_size(self) -> None:
        network = self.network
        with name_options("data"):
            network.check_patch_size(self.data.patch_size)

    @rule
    def _check_batch_size(self) -> None:
        network = self.network
        with name_options("data"):
            network.check_batch_size(self.data.batch_size)

    @rule
    def _check_loss(self) -> None:
        loss, name, classes = self.build("loss"), self.loss["_target_"], self.task.class_set
        check_loss(loss, name, torch.zeros(2, classes.channels, 8, 8), torch.ones(2, 1, 8, 8))
        if not classes.is_binary:
            check_partial_labels(loss, name, classes.channels)
        if self.data.ignore_background:
            check_ignored_pixels(loss, name, classes.channels)

    @rule
    def _check_segmentation_checkpoint(self) -> Iterator[str]:
        if self.segmentation_checkpoint is not None:
            yield "segmentation_checkpoint is for task=grading: leave it out, or give task=grading"

    @rule
    def _check_criterion(self) -> None:
        check_criterion(self.criterion, self.cost_ratio)

    @rule
    def _check_split_keys(self) -> Iterator[str]:
        idle = (*self.data.list_idle_keys(), *(CHOICE_KEYS if self.data.split == "patches" else ()))
        yield from find_idle_faults(idle, self.data.describe_split())

    @rule
    def _check_sampler_keys(self) -> Iterator[str]:
        if self.data.sampler != "balanced":
            yield from find_idle_faults(("data.tumor_share",), self.data.setting("sampler"))

    @rule
    def _check_gleason_rule(self) -> Iterator[str]:
        if self.task.class_set.is_binary:
            keys = tuple(GleasonRuleSettings.key(name) for name in GleasonRuleSettings.model_fields)
            yield from find_idle_faults(keys, self.task.setting("classes"))
