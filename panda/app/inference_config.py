"""The configuration of inference: keys, and the files that they name."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, ClassVar

from panda.app.cluster import WorkerCluster
from panda.app.hydra_job import find_idle_faults
from panda.app.inference_slides import SlideNames, check_labels_source, find_labelled_slides, find_slides
from panda.app.output_folder import OutputKeys
from panda.app.sharded_slides import ShardedSlides
from panda.app.slide_division import Cluster
from panda.data.feature_files import find_feature_files, read_origin
from panda.data.manifest import SlideRecord, apply_groups, read_groups
from panda.data.patients import divide_over_bags, group_bags
from panda.data.settings import SlideSettings
from panda.errors import CheckpointError, ManifestError, PandaError
from panda.inference.compute import EngineSettings
from panda.inference.feature_grader import require_features
from panda.inference.geojson import Features
from panda.inference.grader import require_slides
from panda.inference.legends import ColourMap
from panda.inference.quantify import QuantifySettings
from panda.settings import Text, accept, is_number, rule
from panda.tables import PARQUET
from panda.tasks.bins import BINS, is_step
from panda.tasks.checkpoint import Checkpoint, M, read_checkpoint
from panda.tasks.metadata import GradingMetadata, SegmentationMetadata

Threshold = Annotated[
    str | float,
    accept(
        "checkpoint or a probability between 0 and 1",
        lambda value: value == "checkpoint" or (is_number(value) and 0 < value < 1),
    ),
]


MAP_KEYS = (
    *("quantify", *(f"quantify.{limit}" for limit in QuantifySettings.model_fields)),
    *("threshold", "provider", "labels", "groups", "colour_map", "geojson", "shard"),
    *(f"engine.{key}" for key in EngineSettings.model_fields if key != "device"),
    "cluster",
)
"""Keys that only affect maps of slides."""


class InferenceKeys(SlideSettings, OutputKeys):
    """Keys and nodes of `conf/infer.yaml`, which describes them."""

    node: ClassVar[str] = ""
    entry_point: ClassVar[str] = "infer"

    quantify: QuantifySettings
    engine: EngineSettings
    cluster: Cluster
    checkpoint: Text | None
    grading_checkpoint: Text | None
    slides: SlideNames | None
    features: Text | None
    patients: Text | None
    shard: Text | None
    collect: None
    threshold: Threshold
    provider: Text | None
    labels: Text | None
    groups: Text | None
    colour_map: ColourMap
    geojson: Features
    debug: bool

    def _read(self, name: str, kind: type[M]) -> Checkpoint[M]:
        try:
            return read_checkpoint(Path(getattr(self, name)), kind)
        except CheckpointError as error:
            raise CheckpointError(f"{self.setting(name)}: {error}") from error


class InferenceConfig(ShardedSlides, InferenceKeys):
    """The keys of an inference that maps slides."""

    checkpoint: Text
    slides: SlideNames

    @functools.cached_property
    def segmentation(self) -> Checkpoint[SegmentationMetadata]:
        """The checkpoint of the segmentation, without its network."""
        return self._read("checkpoint", SegmentationMetadata)

    @functools.cached_property
    def grading(self) -> Checkpoint[GradingMetadata] | None:
        """The checkpoint of the grading, if there is one."""
        return self._read("grading_checkpoint", GradingMetadata) if self.grading_checkpoint else None

    @functools.cached_property
    def labelled(self) -> dict[str, SlideRecord]:
        """The slides with a label mask, by name."""
        return find_labelled_slides(self.labels, self.slide_list.paths, self.segmentation)

    @rule
    def _check_patients(self) -> Iterator[str]:
        if self.patients is not None:
            yield f"{self.setting('patients')} is used with features=… only, because mapped slides are graded singly"

    @rule
    def _check_segmentation(self) -> None:
        _ = self.segmentation

    @rule
    def _check_grading(self) -> None:
        if self.grading is not None:
            require_slides(self.grading)

    @rule
    def _check_labels_source(self) -> None:
        check_labels_source(self.labels)

    @rule
    def _check_labels(self) -> None:
        _ = self.labelled

    @rule
    def _check_step(self) -> Iterator[str]:
        if self.labels is None or self.threshold == "checkpoint" or is_step(at := float(self.threshold)):
            return
        below = int(at * BINS)
        steps = [f"threshold={k / BINS}" for k in (below, below + 1) if 0 < k < BINS]
        yield (
            f"{self.setting('threshold')} must be a multiple of 0.001 with labels=…, the step of the scores: give "
            f"{' or '.join(steps)}"
        )

    @rule
    def _check_groups(self) -> Iterator[str]:
        if self.groups is None:
            return
        if self.labels is None:
            yield f"{self.setting('groups')} is used with labels=… only, for the intervals of its figures: remove it"
        else:
            apply_groups(list(self.labelled.values()), read_groups(self.groups, "groups")[0])

    @rule
    def _check_cluster(self) -> Iterator[str]:
        if isinstance(self.cluster, WorkerCluster):
            yield from find_idle_faults(
                ["engine.post_workers"], "a cluster, whose workers write the files of their slides"
            )

    @rule
    def _check_provider(self) -> Iterator[str]:
        if self.provider is None:
            return
        if self.threshold != "checkpoint":
            yield f"{self.setting('provider')}: not used with threshold=…: remove one of them"
        elif not (known := self.segmentation.metadata.threshold.by_provider):
            yield f"{self.setting('provider')}: the checkpoint has one threshold for all providers; remove the key"
        elif self.provider not in known:
            yield f"{self.setting('provider')}: the checkpoint has thresholds for {', '.join(known)}"


class FeatureInferenceConfig(InferenceKeys):
    """The keys of an inference that grades files of features."""

    features: Text
    grading_checkpoint: Text

    @functools.cached_property
    def grading(self) -> Checkpoint[GradingMetadata]:
        """The checkpoint of the grading."""
        return self._read("grading_checkpoint", GradingMetadata)

    @functools.cached_property
    def files(self) -> dict[str, Path]:
        """Slide id to its file of features."""
        path = Path(self.features)
        return {path.stem: path} if path.is_file() else find_feature_files(path)

    @functools.cached_property
    def images(self) -> dict[str, Path]:
        """Slide id to the file of the slide, for those that are given."""
        return {path.stem: path for path in find_slides(self.slides).paths} if self.slides else {}

    @functools.cached_property
    def records(self) -> list[SlideRecord]:
        """The slides of the files, whose labels are unknown."""
        images, nowhere = self.images, Path(self.features) / "no slide"
        return [
            SlideRecord(slide_id, "", None, "", images.get(slide_id, nowhere), None, slide_id)
            for slide_id in self.files
        ]

    @functools.cached_property
    def _groups(self) -> Mapping[str, str]:
        """Slide id to its patient, for all slides of the table."""
        assert self.patients is not None
        groups, kind = read_groups(self.patients, "patients")
        if kind != "patient":
            raise ManifestError(
                f"{self.setting('patients')}: the column must be patient, not {kind}; name the patients"
            )
        return groups

    @functools.cached_property
    def bags(self) -> dict[str, list[SlideRecord]] | None:
        """The slides of each patient; None if slides are graded one by one."""
        if self.patients is None:
            return None
        records = apply_groups(self.records, self._groups)
        divide_over_bags(records, self.grading.metadata.tiles.k, "patient")
        return group_bags(records, lambda record: record, "patient")

    def list_patient_notes(self) -> list[str]:
        """Return what a reader of grades of patients must know; nothing if slides are graded one by one."""
        if self.bags is None:
            return []
        notes = ["The grade of a patient, from the tiles of all slides of it, stands at each of these slides."]
        lacking = {
            patient for slide, patient in self._groups.items() if patient in self.bags and slide not in self.files
        }
        if lacking:
            notes.append(
                f"{len(lacking)} of {len(self.bags)} patients have more slides in {self.patients} than files in "
                f"{self.features}, such as {min(lacking)}. They were graded without these slides."
            )
        return notes

    @rule
    def _check_bags(self) -> Iterator[str]:
        if self.patients is not None and self.grading.metadata.bag == "slide":
            yield f"{self.setting('patients')}: the grader was trained on bags of one slide (task.bag=slide): remove it"
        _ = self.bags

    @rule
    def _check_keys(self) -> Iterator[str]:
        if self.checkpoint is not None:
            yield (
                f"{self.setting('checkpoint')} is not used with features=…, from which slides are graded without a "
                "map: remove one of them"
            )
        yield from find_idle_faults(MAP_KEYS, "features=…, from which slides are graded without a map")

    @rule
    def _check_slides(self) -> None:
        _ = self.images

    @rule
    def _check_results(self) -> Iterator[str]:
        table = Path(self.run_dir) / "quantification.csv"
        if table.exists() or table.with_suffix(PARQUET).exists():
            yield f"{self.setting('output')} holds maps of slides: give a folder of its own"
        source = Path(self.features)
        if Path(self.run_dir).resolve() == (source.parent if source.is_file() else source).resolve():
            yield f"{self.setting('output')} is the folder of the features: give a folder of its own"

    @rule
    def _check_origins(self) -> Iterator[str]:
        """Refuse a folder without one file that fits; one file that does not is a failure of its slide."""
        trained, misfit = require_features(self.grading), ""
        for path in self.files.values():
            try:
                faults = trained.describe_difference(read_origin(path)[0])
            except PandaError as error:
                faults = [str(error)]
            if not faults:
                return
            misfit = misfit or f"{path}: {'; '.join(faults)}"
        yield (
            f"{self.setting('features')}: none of {len(self.files)} files fits the features that the grader learned "
            f"from. The first is {misfit}"
        )
