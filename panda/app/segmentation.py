"""The segmentation experiment: train, freeze a threshold on validation, map and score the test slides."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from panda.app.operating_point import calibrate, freeze_operating_point, grade_by_rule, note_unknown_providers
from panda.app.patch_views import PatchViews
from panda.app.run import Run, note_level
from panda.app.segmentation_config import SegmentationConfig
from panda.app.slide_maps import list_rule_grades, map_slides
from panda.data.datamodule import PatchDataModule
from panda.data.failures import Failure
from panda.data.label_check import describe_contradiction, require_cancer
from panda.data.manifest import SlideRecord
from panda.data.splits import Split
from panda.inference.dataset_metrics import summarize
from panda.inference.predictor import SegmentationPredictor
from panda.models.segmentation import Segmenter
from panda.report.run_summary import PatchFigures, SegmentationSummary
from panda.tasks.gleason_search import GleasonRuleChoice
from panda.tasks.metadata import SegmentationMetadata, TrainedResolution
from panda.tasks.segmentation import SegmentationTask
from panda.tasks.threshold import ThresholdChoice

log = logging.getLogger(__name__)


class SegmentationExperiment:
    """Runs a segmentation as its configuration says."""

    kind = SegmentationMetadata
    monitor = "val/dice"
    mode = "max"

    def __init__(self, cfg: SegmentationConfig) -> None:
        self.cfg = cfg
        self.settings, self.quantify, self.optim = cfg.task, cfg.quantify, cfg.optim
        self.network: Segmenter = cfg.build_network() if cfg.downloads else cfg.network
        self.loss = cfg.build("loss")
        self.data = PatchDataModule(cfg.data, self.settings.class_set)
        self.engine = cfg.engine.resolve_auto()

    @property
    def segmentation(self) -> tuple[str, ...]:
        """See `Experiment.segmentation`."""
        return ()

    @property
    def feature_files(self) -> None:
        """See `Experiment.feature_files`."""
        return None

    @property
    def failures(self) -> list[Failure]:
        """See `Experiment.failures`."""
        return self.data.failures

    def prepare(self) -> SegmentationMetadata:
        """See `Experiment.prepare`: cut the patches that the store lacks, and open those of each split."""
        self.data.prepare_data()
        self.data.setup("fit")
        return self._describe_network(self._list_used())

    def run(self, run: Run) -> SegmentationSummary:
        """See `Experiment.run`."""
        data = self.data
        try:
            metadata = self.prepare()
        finally:
            run.failures.extend(self.failures)
        log.info("patches of each split, for panda.PatchSet: %s", data.get_patches("train").rows.path.parent)
        run.notes += self.network.notes
        splits = self._list_used()
        require_cancer("train", data.get_patches("train"), splits["train"])
        run.notes += require_cancer("val", data.get_patches("val"), splits["val"])
        run.notes += self._describe_left_out(splits)
        note_level(metadata.resolution, run.notes)
        task = SegmentationTask(
            self.network,
            self.loss,
            self.optim,
            metadata,
            channels_last=self.settings.channels_last,
            compiled=self.settings.compile,
        )
        if self.settings.views_every:
            views = PatchViews(
                data.get_patches("val"),
                data.list_mpp(),
                run.folder / "views",
                every=self.settings.views_every,
                fixed=self.settings.views,
                seed=self.cfg.seed,
            )
            run.trainer.callbacks.append(views)  # type: ignore[attr-defined]
        run.fit(task, data, data.list_fingerprints())
        predictor = SegmentationPredictor.from_checkpoint(run.best, self.engine)
        frozen = freeze_operating_point(run, data.settings, predictor, splits["val"], self.settings.gleason_rule)
        choice, temperature, validated = frozen.threshold, frozen.temperature, frozen.validated
        one_slide = data.settings.split == "patches"
        if one_slide:
            run.notes.append(
                "The patches of one slide were split: these figures show that the network learns, not that it "
                "generalizes to other slides."
            )
        shown: Sequence[SlideRecord] = []
        if self.cfg.test_slides:
            shown = splits["train"] if one_slide else splits.get("test", [])
        # The one slide is not a test slide, so that its table has another name.
        mapped = map_slides(
            run,
            data.settings,
            predictor,
            frozen,
            shown,
            quantify=self.quantify,
            panel_rows=self.settings.panels,
            table_path=run.folder / ("slides.csv" if one_slide else "test_slides.csv"),
        )
        scores, classes = [slide.score for slide in mapped], metadata.classes
        tested = bool(shown) and not one_slide
        if tested:
            run.notes += note_unknown_providers(choice, scores)
        for name, scored_slides in (("validation", validated), ("test" if tested else "shown", scores)):
            if contradicting := [s.record.slide_id for s in scored_slides if s.contradicts_grade]:
                found = describe_contradiction(name, contradicting, len(scored_slides))
                run.notes.append(f"Not scored: {found}.")
        calibration = None
        if temperature is not None:
            scored = {"validation": validated} | ({"test": scores} if tested and scores else {})
            calibration = calibrate(run.folder, temperature, scored)
        patch_dice = None if self.cfg.threshold != "auto" else predictor.threshold.score
        summary = SegmentationSummary(
            **run.describe(),
            data=data.summarize(),
            resolution=predictor.metadata.resolution,
            threshold=choice.value,
            threshold_choice=choice,
            calibration=calibration,
            gleason_rule=frozen.gleason_rule,
            val=summarize(validated, choice, self.cfg.seed, classes, grade_by_rule(validated, classes, frozen))
            if validated
            else PatchFigures(dice=patch_dice, of=choice.chosen_on),
            test=summarize(scores, choice, self.cfg.seed, classes, list_rule_grades(mapped)) if tested else None,
        )
        curves = ("threshold_curve", "calibration")
        if run.dashboard is not None:
            run.dashboard.log_threshold_curve(run.folder / "threshold_curve.csv")
            for name in curves:
                run.dashboard.log_csv(f"{name}_table", run.folder / f"{name}.csv")
        pictures = {f"curves/{name}": run.folder / f"{name}.png" for name in curves}
        run.log_summary(summary, pictures, task="segmentation", threshold=summary.threshold)
        return summary

    def _describe_left_out(self, splits: Mapping[Split, Sequence[SlideRecord]]) -> list[str]:
        """Return a note on the slides of training and of validation that give no patches."""
        names: dict[Split, str] = {"train": "training", "val": "validation"}
        return [
            f"No patches are taken from: {describe_contradiction(name, contradicting, len(splits[split]))}."
            for split, name in names.items()
            if (contradicting := self.data.list_contradictions(split))
        ]

    def _list_used(self) -> dict[Split, list[SlideRecord]]:
        """Return the slides of each split without those that failed."""
        failed = {failure.slide_id for failure in self.data.failures}
        return {
            name: [r for r in records if r.slide_id not in failed] for name, records in self.data.list_splits().items()
        }

    def _describe_network(self, splits: Mapping[Split, Sequence[SlideRecord]]) -> SegmentationMetadata:
        settings = self.data.settings
        assert self.engine.precision != "auto"
        providers = sorted({record.provider for record in (*splits["train"], *splits["val"])})
        classes = self.settings.class_set
        rule = GleasonRuleChoice.from_settings(self.settings.gleason_rule, "no validation yet")
        return SegmentationMetadata(
            network=self.network.options,
            resolution=TrainedResolution.from_slides(settings.resolution, self.data.list_train_mpp()),
            patch_size=settings.patch_size,
            overlap=self.settings.overlap,
            label_maps={provider: settings.find_label_map(provider) for provider in providers},
            threshold=ThresholdChoice.from_default("not searched: no validation yet"),
            precision=self.engine.precision,
            tta=self.engine.tta,
            normalize=settings.normalize,
            ignore_background=settings.ignore_background,
            train_slides=tuple(sorted(self.data.get_patches("train").slide_ids)),
            val_slides=tuple(sorted(record.slide_id for record in splits["val"])),
            classes=classes,
            gleason_rule=None if classes.is_binary else rule,
        )
