"""The configuration of a grading: settings of the task, and the rules between its nodes."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import suppress
from typing import Annotated, Any, Literal

from pydantic import Field

from panda.app.build import Faults
from panda.app.encoder_choice import DOWNLOADED, describe_scale, describe_weights_fault, find_card, find_encoder
from panda.app.grading_keys import AUGMENT_KEYS, IDLE_KEYS, MAP_KEYS, PIXEL_KEYS
from panda.app.guidance import Guidance, TileSettings
from panda.app.hydra_job import find_idle_faults
from panda.app.loss_check import check_target_loss
from panda.app.registry import Slot
from panda.app.train_config import TaskSettings, TrainConfig
from panda.data.datamodule import PatchDataModule
from panda.data.feature_folder import FeatureFolder, read_feature_folder
from panda.data.manifest import SlideRecord
from panda.data.patients import BagUnit, PatientLabel, check_patients, has_highest
from panda.data.splits import Split
from panda.data.target_choice import find_target, require_labels, require_learnable
from panda.data.targets import CLASS_KINDS, ISUP, NAMED, Kind, TargetSpec
from panda.errors import PandaError, name_options
from panda.models.mil import MILNet
from panda.models.pooling import POOLINGS
from panda.settings import Text, accept, rule

SEGMENTATION_ENCODER = "segmentation"
"""Value of `model.encoder_weights` that takes the encoder of the segmentation checkpoint."""


def _are_classes(names: Any) -> bool:
    return names is None or (
        isinstance(names, list | tuple)
        and all(isinstance(name, str | int) and not isinstance(name, bool) for name in names)
    )


class GradingSettings(TaskSettings):
    """Settings of the task, apart from its data, model and trainer; see the base class too.

    Args:
        name: `grading`.
        target: `isup` (six classes), `cancer` (absent or present), or a column of the table.
        kind: Kind of a column; `auto` for `isup` and `cancer`.
        classes: Classes of a column in order; None for those that it has.
        time: Column of the time of a survival; None if `target` is that column.
        event: Column of its event.
        bag: Whose tiles form one bag: those of a `slide`, or of all slides of a `patient`.
        patient_label: Label of a patient: `same` refuses slides with different labels, `highest` takes the highest.
        abstain_risk: Largest share of wrong classes among the graded validation slides. The least certain slides are
            marked as not certain enough to grade. None grades every slide.
    """

    name: Literal["grading"] = Field(default="grading", description="give task=segmentation or task=grading")
    target: Text = "isup"
    kind: Kind | Literal["auto"] = "auto"
    classes: Annotated[Any, accept("a list of names, or null", _are_classes)] = None
    time: Text | None = None
    event: Text | None = None
    bag: BagUnit = "slide"
    patient_label: PatientLabel = "same"
    abstain_risk: Annotated[float, Field(gt=0, lt=1)] | None = None


class GradingConfig(TrainConfig):
    """Configuration of `train.py task=grading`."""

    task: GradingSettings
    tiles: TileSettings
    model: Annotated[dict[str, Any], Slot(MILNet, ("panda.models",))]

    @functools.cached_property
    def target(self) -> TargetSpec:
        """What is learned; a column's classes are those of the slides that are used."""
        task = self.task
        records: list[SlideRecord] = []
        if task.kind != "auto":
            records = self.data_module.select().used
        elif task.target not in NAMED:
            with suppress(PandaError, AttributeError):  # the refused table has faults of its own
                records = self.data_module.select().used
        classes = None if task.classes is None else [str(name) for name in task.classes]
        return find_target(records, task.target, task.kind, classes=classes, time=task.time, event=task.event)

    @property
    def _checked_target(self) -> TargetSpec:
        """The target; the ISUP grades if it is refused, so that the rest is still checked."""
        try:
            return self.target
        except (PandaError, AttributeError):  # a refused field has no attribute
            return ISUP

    def check_bags(self) -> None:
        """Refuse slides whose tiles cannot form the bags of patients that are asked for."""
        if self.task.bag == "patient":
            selection, label = self.data_module.select(), self.task.patient_label
            check_patients(selection.used, selection.groups_are, self.target, label, self.tiles.selection.k)

    @property
    def unloaded_weights(self) -> str | None:
        """The weights that are not loaded by a check: those of the segmentation, and those that are downloaded."""
        weights = None if self.tiles.how == "features" else self.model.get("encoder_weights")
        return weights if weights in (SEGMENTATION_ENCODER, *DOWNLOADED) else None

    @functools.cached_property
    def network(self) -> MILNet:
        """The network, without `unloaded_weights`."""
        return self.build_network(**{"encoder_weights": None} if self.unloaded_weights else {})

    def build_network(self, **extra: Any) -> MILNet:
        """Build the network with the encoder that `model.encoder` names; `extra` replaces options.

        A network of features that were computed before has no encoder.
        """
        if self.feature_folder is not None:
            found: MILNet = self.build(
                "model",
                num_classes=self._checked_target.outputs,
                **dict.fromkeys(("encoder", "encoder_weights", "mean", "std")),
                feature_dim=self.feature_folder.origin.dim,
            )
            return found
        faults = Faults()
        encoder: Any = "resnet18"  # in place of a wrong one, so that other faults of the model are found too
        with faults.collect():
            encoder = find_encoder(self.model.get("encoder"))
        with faults.collect():
            network: MILNet = self.build("model", num_classes=self._checked_target.outputs, encoder=encoder, **extra)
        faults.raise_any()
        return network

    @functools.cached_property
    def guidance(self) -> Guidance:
        """The segmentations that guide the tiles."""
        return Guidance.load(self.segmentation_checkpoint, self.tiles.cross_fit, self.engine, self.data.store_root)

    @functools.cached_property
    def feature_folder(self) -> FeatureFolder | None:
        """The feature files of the slides that are used; None if features are computed from pixels.

        Of slides that are drawn first, all files count.
        """
        if self.tiles.how != "features" or self.tiles.features is None:
            return None
        drawn = self.data.draw is not None
        used = None if drawn else [record.slide_id for record in self.data_module.select().used]
        return read_feature_folder(self.tiles.features, used)

    @functools.cached_property
    def data_module(self) -> PatchDataModule:
        """The slides, whose table is read once.

        A column of classes stratifies the split, unless tiles are guided: the segmentation has held out the slides of
        its own split.
        """
        stratify_by = self.task.target if self.task.kind in CLASS_KINDS and self.tiles.how != "guided" else None
        return PatchDataModule(self.data, needs_slides=self.tiles.how != "features", stratify_by=stratify_by)

    @rule
    def _check_tile_size(self) -> None:
        network = self.network
        if self.feature_folder is not None:
            return
        with name_options("tiles"):
            network.check_tile_size(self.tiles.tile_size)

    @rule
    def _check_scale(self) -> Iterator[str]:
        if self.tiles.how == "features":
            return
        card, tiles = find_card(self.model.get("encoder")), self.tiles
        if not card.mpp:
            return
        trained, mpp = describe_scale(card, tiles.mpp)
        size = f" tiles.tile_size={card.tile_size}" if card.tile_size not in (None, tiles.tile_size) else ""
        remedy = f"give tiles.level=null tiles.mpp={mpp:g}{size}, to which the slides are resampled"
        if tiles.mpp is None:
            yield (
                f"{tiles.setting('level')}: a level has other µm/px on other slides, but model.encoder="
                f"{self.model['encoder']} was trained at {trained} µm/px; {remedy}"
            )
        elif fault := card.describe_scale_fault(tiles.mpp, tiles.tile_size):
            yield f"model.encoder={self.model['encoder']}: {fault}; {remedy}"

    @rule
    def _check_loss(self) -> None:
        check_target_loss(self.build("loss"), self.loss["_target_"], self.target)

    @rule
    def _check_target(self) -> Iterator[str]:
        target, batch = self.target, self.tiles.batch_size
        if self.model.get("head") == "ordinal" and target.kind != "ordinal" and target.outputs != 2:
            yield f"model.head=ordinal needs classes in order, not task.kind={target.kind}: give model.head=softmax"
        if target.kind == "survival" and batch < 2:
            yield (
                f"tiles.batch_size={batch}: task.kind=survival compares each event with the other slides of its batch; "
                "give tiles.batch_size=32, or as many as fit into memory"
            )
        if not target.has_classes and self.trainer.precision in ("bf16-true", "16-true"):
            mixed = self.trainer.precision.replace("true", "mixed")
            yield f"{self.trainer.setting('precision')} would round the labels: give trainer.precision={mixed}"

    @rule
    def _check_split_keys(self) -> Iterator[str]:
        if self.data.split == "patches":
            yield "data.split=patches: grading needs slides in each split; use data.split=holdout or kfold"
        else:
            yield from find_idle_faults(self.data.list_idle_keys(), self.data.describe_split())

    @rule
    def _check_segmentation_checkpoint(self) -> Iterator[str]:
        guided, given = self.tiles.how == "guided", self.segmentation_checkpoint
        if guided and not given:
            which = "'runs/segmentation/sweep-NAME/*" if self.tiles.cross_fit else "runs/segmentation/…"
            quote = "'" * which.startswith("'")
            yield (
                "segmentation_checkpoint is not given: tiles=guided needs one "
                f"(segmentation_checkpoint={which}/checkpoints/best.ckpt{quote}), tiles=tissue needs none"
            )
        elif given and not guided:
            how = "features" if self.tiles.how == "features" else "tissue or all"
            yield f"segmentation_checkpoint is not used with tiles={how}: remove it, or give tiles=guided"
        elif given:
            _ = self.guidance

    @rule
    def _check_slides(self) -> None:
        if self.data.draw is None and (self.segmentation_checkpoint or self.tiles.how != "guided"):
            list_guided_splits(self.data_module, self.guidance, self.target)
            self.check_bags()

    @rule
    def _check_encoder(self) -> Iterator[str]:
        if self.tiles.how != "features" and (fault := describe_weights_fault(self.model)):
            yield fault
        if self.unloaded_weights == SEGMENTATION_ENCODER:
            if self.tiles.how != "guided":
                yield "model.encoder_weights=segmentation needs tiles=guided and a segmentation_checkpoint"
            if self.tiles.cross_fit:
                yield (
                    "model.encoder_weights=segmentation with tiles.cross_fit=true: there is an encoder for each fold, "
                    "and each was trained on slides that others hold out; give another model.encoder_weights"
                )

    @rule
    def _check_tile_keys(self) -> Iterator[str]:
        if self.tiles.how == "features":
            yield from find_idle_faults(PIXEL_KEYS, "tiles=features, whose features were computed before")
        elif self.tiles.how != "guided":
            idle = ("tiles.random_fraction", *MAP_KEYS)
            yield from find_idle_faults(idle, "tiles=tissue or all, which no segmentation guides")
        if self.tiles.how == "all":
            yield from find_idle_faults(("tiles.k",), "tiles=all (tiles=tissue takes some)")

    @rule
    def _check_model_keys(self) -> Iterator[str]:
        if self.model.get("freeze_encoder") and self.tiles.how != "features":
            yield from find_idle_faults(AUGMENT_KEYS, "model.freeze_encoder=true, which encodes each tile once")
        pooling: Any = self.model.get("pooling")
        if pooling in POOLINGS and not POOLINGS[pooling].uses_hidden:
            yield from find_idle_faults(("model.hidden",), f"model.pooling={pooling}")
        if pooling in POOLINGS and POOLINGS[pooling].classifies:
            yield from find_idle_faults(("model.dropout",), f"model.pooling={pooling}, which has no head")

    @rule
    def _check_classes_only(self) -> Iterator[str]:
        target, task = self._checked_target, self.task
        if task.abstain_risk is not None and not target.has_classes:
            yield f"{self.task.setting('abstain_risk')} needs classes, not task.kind={target.kind}: remove it"
        if task.patient_label == "highest" and not has_highest(target):
            yield (
                f"{self.task.setting('patient_label')} needs ordered classes, not task.kind={target.kind}: give "
                "task.patient_label=same"
            )

    @rule
    def _check_bag(self) -> Iterator[str]:
        if self.task.bag == "slide":
            yield from find_idle_faults(("task.patient_label",), "task.bag=slide")

    @rule
    def _check_idle_keys(self) -> Iterator[str]:
        yield from find_idle_faults(IDLE_KEYS, "task=grading")

    @rule
    def _check_threshold(self) -> Iterator[str]:
        if self.threshold != "auto":
            yield (
                f"{self.setting('threshold')} is not used with task=grading, which takes it from the segmentation "
                "checkpoint: remove it"
            )


def list_guided_splits(data: PatchDataModule, guidance: Guidance, target: TargetSpec) -> dict[Split, list[SlideRecord]]:
    """Return the slides of each split, after checking that they have labels to learn and segmentations as guides."""
    splits = data.list_splits()
    records = [record for own in splits.values() for record in own]
    require_labels(records, target)
    require_learnable(splits["train"], target)
    guidance.check(records)
    return splits
