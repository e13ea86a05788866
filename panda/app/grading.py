"""The grading experiment: bags of tiles from each slide, attention MIL, grades for the test slides."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from panda.app.confidence import UNCALIBRATED, freeze_confidence, measure_calibration
from panda.app.encoder_choice import copy_encoder
from panda.app.feature_grading import describe_tiles, find_feature_items
from panda.app.grading_config import SEGMENTATION_ENCODER, GradingConfig, list_guided_splits
from panda.app.run import Run, note_level
from panda.app.slide_bags import make_items
from panda.app.split_grading import grade_split, read_values
from panda.data.bag_datamodule import BagDataModule
from panda.data.bagset import BagItem, BagSettings
from panda.data.failures import Failure
from panda.data.manifest import SlideRecord
from panda.data.patients import choose_labelled, divide_over_bags, group_bags, list_incomplete, name_bag
from panda.data.splits import Split
from panda.data.summary import DataSummary
from panda.errors import ManifestError
from panda.files import identity
from panda.inference.feature_grader import FeatureGrader
from panda.inference.feature_store import FeatureStore
from panda.inference.features import TileBag
from panda.inference.grader import GradingPredictor, select_tiles
from panda.inference.grading_metrics import GradedSlide, summarize_grades, summarize_test_grades
from panda.inference.slide_loop import run_over_slides
from panda.inference.target_figures import summarize_target
from panda.report.run_summary import GradingSummary
from panda.tables import write_table
from panda.tasks.grading import GradingTask
from panda.tasks.metadata import GradingMetadata, TargetScale, TrainedResolution
from panda.wsi.slide import Slide
from panda.wsi.stain_normalization import find_stain
from panda.wsi.tissue import TissueMap

log = logging.getLogger(__name__)

MAX_TILE_PICTURES = 20
"""Number of pictures of attended tiles that are logged, because they are copied at full size."""


class GradingExperiment:
    """Runs a grading as its configuration says."""

    kind = GradingMetadata
    monitor = "val/loss"
    mode = "min"

    def __init__(self, cfg: GradingConfig) -> None:
        self.cfg = cfg
        self.tiles, self.settings, self.quantify, self.engine = cfg.tiles, cfg.task, cfg.quantify, cfg.engine
        self.optim, self.guidance, self.network = cfg.optim, cfg.guidance, cfg.network
        self.loss = cfg.build("loss")
        self.data, self.target = cfg.data_module, cfg.target
        self.features = cfg.feature_folder
        self.failures: list[Failure] = []
        self._items: dict[Split, list[BagItem]] = {}
        self._mpps: list[float] = []
        self._parts: dict[str, int] = {}
        self._metadata: GradingMetadata | None = None
        self._store: FeatureStore | None = None
        if cfg.unloaded_weights == SEGMENTATION_ENCODER:
            copy_encoder(self.network, self.guidance.segmenters[0])
        elif cfg.unloaded_weights:
            self.network = cfg.build_network()

    @property
    def segmentation(self) -> tuple[str, ...]:
        """See `Experiment.segmentation`."""
        return tuple(segmenter.fingerprint for segmenter in self.guidance.segmenters)

    @property
    def feature_files(self) -> Mapping[str, Path] | None:
        """See `Experiment.feature_files`."""
        return None if self.features is None else self.features.files

    def prepare(self) -> GradingMetadata:
        """See `Experiment.prepare`: select the tiles of each slide, and compute their features if they are stored.

        Tiles of feature files are drawn when these are read.
        """
        if self._metadata is not None:
            return self._metadata
        splits = list_guided_splits(self.data, self.guidance, self.target)
        self.cfg.check_bags()
        self._parts = divide_over_bags(self.data.select().used, self.tiles.selection.k, self.settings.bag)
        if self.network.frozen and self.features is None:
            self._store = FeatureStore(self.network, self.engine, self.data.settings.store_root)
        items = self._items
        for name, records in splits.items():
            if name == "test" and not self.cfg.test_slides:
                continue
            if self.features is not None:
                items[name] = find_feature_items(records, self.features, f"features of {name}", self.failures.append)
            else:
                items[name] = self._choose_tiles(records, name)
            used = [item.record for item in items[name]]
            if incomplete := list_incomplete(records, used, self.settings.bag, f"bags of {name}"):
                self.failures += incomplete
                lost = {failure.slide_id for failure in incomplete}
                items[name] = [item for item in items[name] if item.record.slide_id not in lost]
            if not items[name] and records:
                raise ManifestError(f"no slide of the {name} split could be used: {self.failures[-1].message}")
        of_slides = self.features is None
        self._metadata = GradingMetadata(
            network=self.network.options,
            resolution=TrainedResolution.from_slides(self.tiles.resolution, self._mpps) if of_slides else None,
            tile_size=self.tiles.tile_size if of_slides else None,
            features=None if self.features is None else self.features.origin,
            tiles=self.tiles.selection,
            target=self.target,
            scale=self._find_scale(splits["train"]),
            segmentation=self.segmentation,
            bag=self.settings.bag,
            normalize=self.data.settings.normalize if of_slides else None,
            train_slides=tuple(sorted(item.record.slide_id for item in items["train"])),
            val_slides=tuple(sorted(item.record.slide_id for item in items["val"])),
        )
        return self._metadata

    def run(self, run: Run) -> GradingSummary:
        """See `Experiment.run`."""
        splits = list_guided_splits(self.data, self.guidance, self.target)
        try:
            metadata = self.prepare()
        finally:
            run.failures.extend(self.failures)
        items = self._items
        settings = BagSettings(
            k=self.tiles.selection.k,
            bag=self.settings.bag,
            **self.tiles.model_dump(include={"tile_size", "level", "mpp", "batch_size", "seed"}),
            **self.data.settings.model_dump(include={"num_workers", "reader", "mpp_override"}),
            allow_unknown_mpp=self.data.settings.allow_unknown_mpp,
        )
        bags = BagDataModule(items, settings, self.data.settings.augment, self.target)
        learns_from = {
            name: {item.record.slide_id: self._identify_bag(item) for item in items[name]} for name in ("train", "val")
        }
        self._list_notes(run, items)
        if metadata.resolution is not None:
            note_level(metadata.resolution, run.notes)
        run.fit(GradingTask(self.network, self.loss, self.optim, metadata), bags, learns_from)
        graded = self._grade_validation(run, items["val"])
        risk, unit = self.settings.abstain_risk, self.settings.bag
        frozen = freeze_confidence(run.best, graded, risk, unit) if self.target.has_classes else None
        if frozen and (abstention := frozen.abstention) and abstention.note:
            run.notes.append(f"No confidence to abstain below was found, so every slide is graded: {abstention.note}.")
        graded_by_split = {"validation": frozen.validated if frozen else graded}
        if items.get("test"):
            graded_by_split["test"] = grade_split(run, self.cfg, self._load_grader(run), items["test"], "test")
        self._write_slides(run, graded_by_split)
        calibration = measure_calibration(run.folder, frozen, graded_by_split) if frozen else None
        summary = GradingSummary(
            **run.describe(),
            threshold=self.guidance.threshold,
            target=self.target,
            tiles=describe_tiles(self.tiles, self.features),
            data=DataSummary(
                root=str(self.data.settings.source),
                colours=self.data.describe_colors(augmented=not (self.features or self.network.frozen)),
                slides={name: len(items.get(name, records)) for name, records in splits.items()},
                left_out=self.data.select().exclusion_counts,
                groups=self.data.select().describe_policy(),
            ),
            calibration=calibration,
            val=self._summarize(graded_by_split["validation"], summarize_grades),
            test=self._summarize(graded_by_split["test"], summarize_test_grades) if "test" in graded_by_split else None,
        )
        drawn = sorted((run.folder / "slides").glob("*/attention_tiles.png"))[:MAX_TILE_PICTURES]
        pictures = {f"attention_tiles/{path.parent.name}": path for path in drawn}
        run.log_summary(summary, pictures, task="grading", target=self.target.name)
        return summary

    def _grade_validation(self, run: Run, items: Sequence[BagItem]) -> list[GradedSlide]:
        """Grade the validation slides without any temperature."""
        grader = self._load_grader(run)
        grader.metadata = grader.metadata.model_copy(update=UNCALIBRATED)
        return grade_split(run, self.cfg, grader, items, "val")

    def _load_grader(self, run: Run) -> GradingPredictor | FeatureGrader:
        if self.features is not None:
            return FeatureGrader.from_checkpoint(run.best, self.engine)
        return GradingPredictor.from_checkpoint(run.best, self.engine, self.data.settings.store_root)

    def _list_labels(self, records: Sequence[SlideRecord]) -> list[tuple[float, ...]]:
        """Return the label of each bag."""
        bags = group_bags(records, lambda record: record, self.settings.bag).values()
        return [read_values(choose_labelled(own, self.target), self.target) for own in bags]

    def _find_scale(self, train: Sequence[SlideRecord]) -> TargetScale | None:
        if self.target.kind != "regression":
            return None
        return TargetScale.fit([values[0] for values in self._list_labels(train)])

    def _summarize(
        self, graded: Sequence[GradedSlide], summarize: Callable[[Sequence[GradedSlide], int, int], Any]
    ) -> Any:
        """Summarize grades by `summarize`, and other targets by their kind."""
        if self.target.is_grade:
            return summarize(graded, self.target.outputs, self.cfg.seed)
        return summarize_target(graded, self.target, self.cfg.seed)

    def _choose_tiles(self, records: Sequence[SlideRecord], split: Split) -> list[BagItem]:
        """Select the tiles of slides, and encode them if features are stored."""
        bags = run_over_slides(
            records,
            self.data.settings.slide_options,
            f"tiles of {split}",
            self._make_bag,
            self.failures.append,
            ahead=self.engine.thread_count,
        )
        if split == "train":
            self._mpps = [mpp for _, bag in bags if (mpp := bag.resolution.mean_mpp)]
        return make_items(bags, self._store, self.data.settings.slide_options, split, self.failures.append)

    def _make_bag(
        self, record: SlideRecord, slide: Slide, tissue: TissueMap, bar: tqdm[Any]
    ) -> tuple[SlideRecord, TileBag]:
        view, size = self.tiles.resolution.resolve(slide), self.tiles.tile_size
        tiles = self.tiles.selection.model_copy(update={"k": self._parts[record.slide_id]})
        with self.guidance.hold_canvas(slide, tissue, bar) as canvas:
            coords = select_tiles(slide, view, tissue, canvas, tiles, tile_size=size)
        stain = find_stain(slide, tissue) if self.data.settings.normalize else None
        return record, TileBag(record.image_path, coords, view, size, stain)

    def _identify_bag(self, item: BagItem) -> list[Any]:
        """Return the identity of a slide: its file, label, tiles, the file of its features if stored, and its bag.

        The identity of a slide of any feature file is that of the file.
        """
        label, bag = list(read_values(item.record, self.target)), name_bag(item.record, self.settings.bag)
        if item.features is not None and item.drawn_from is not None:
            return [identity(item.features), label, bag]
        tiles = hashlib.sha256(np.ascontiguousarray(item.coords).tobytes()).hexdigest()
        features = None if item.features is None else item.features.name
        return [identity(item.record.image_path), label, tiles, features, bag]

    def _list_notes(self, run: Run, items: Mapping[Split, Sequence[BagItem]]) -> None:
        run.notes += self.network.notes
        run.notes += self.guidance.list_notes(items, self.tiles)
        run.notes += self._store.encoder.notes if self._store else []
        run.notes += self.features.notes if self.features else []
        train, val = (self._list_labels([item.record for item in items[name]]) for name in ("train", "val"))
        names = range(len(self.target.classes)) if self.target.is_grade else self.target.classes
        if absent := [str(name) for k, name in enumerate(names) if (k,) not in train]:
            run.notes.append(f"No training slide has class {', '.join(absent)}, so the grader cannot learn it.")
        if self.target.kind == "survival":
            if not any(event for _, event in val):
                run.notes.append("No validation slide has an event, so the best epoch says nothing.")
        elif len({*val}) == 1:
            what = "class" if self.target.has_classes else "value"
            run.notes.append(f"All validation slides have one {what}, so the best epoch says little.")
        if self.settings.bag == "patient":
            run.notes.append(
                "A bag has the tiles of all slides of a patient (task.bag=patient). What figures and tables call a "
                "slide is a patient."
            )
        for note in run.notes:
            log.warning("%s", note)

    def _write_slides(self, run: Run, graded: Mapping[str, Sequence[GradedSlide]]) -> None:
        """Write the table of each split that has slides."""
        for split, slides in graded.items():
            tested = split == "test"
            rows = [slide.to_row(attention=tested) for slide in slides]
            if rows:
                write_table(run.folder / ("test_slides.csv" if tested else "val_slides.csv"), rows)
            if rows and tested and run.dashboard is not None:
                run.dashboard.log_slides("test_slides", rows, run.folder / "slides")
