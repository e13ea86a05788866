"""The segmentation experiment: train, choose a threshold on validation, map and score the test slides."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from omegaconf import DictConfig, OmegaConf
from pydantic import Field
from tqdm import tqdm

from panda.app.build import Faults
from panda.app.dashboard import (
    log_checkpoints,
    log_csv,
    log_figures,
    log_pictures,
    log_rows,
    log_slides,
    log_threshold_curve,
)
from panda.app.loss_check import check_ignored_pixels, check_loss
from panda.app.operating_point import (
    CHOICE_KEYS,
    VALIDATION,
    calibrate,
    choose_threshold,
    providers_of,
    unknown_providers,
)
from panda.app.overrides import idle_faults
from panda.app.patch_views import Views
from panda.app.run import Run
from panda.app.tracking import wandb_of
from panda.app.training_reuse import SCORES
from panda.data.datamodule import DataSettings, PatchDataModule
from panda.data.manifest import SlideRecord
from panda.errors import PandaError
from panda.files import remove, write_table
from panda.inference.compute import EngineSettings
from panda.inference.dataset_metrics import summarize
from panda.inference.evaluate import SlideScore, histograms, open_label, score_canvas
from panda.inference.panel_patches import PanelRow, select_panel_rows
from panda.inference.predictor import SegmentationPredictor
from panda.inference.quantify import QuantifySettings
from panda.inference.score_store import read_scores, score_fingerprint, write_scores
from panda.inference.slide_loop import run_over_slides, tile_progress
from panda.inference.slide_mapper import SlideMapper
from panda.models.segmentation import Segmenter, weight_names
from panda.report.curves import write_threshold_curve
from panda.report.panels import draw_panels
from panda.report.run_summary import PatchDataSummary, PatchFigures, SegmentationSummary
from panda.report.slide_page import write_slide_page
from panda.settings import Count, Settings, rule
from panda.tasks.calibration import Temperature, fit_temperature
from panda.tasks.checkpoint import update_metadata
from panda.tasks.metadata import SegmentationMetadata, TrainedResolution
from panda.tasks.metrics import pooled
from panda.tasks.optim import Optim
from panda.tasks.segmentation import SegmentationTask
from panda.tasks.threshold import DEFAULT_THRESHOLD, ThresholdChoice, check_criterion
from panda.wsi.label_maps import find_label_map
from panda.wsi.slide import Slide
from panda.wsi.tissue import find_tissue

QUANTIFIED = {"tumor_percent_of_tissue", "tumor_mm2", "tissue_mm2", "num_regions"}
"""What the table of slides takes over from the quantification."""


class SegmentationSettings(Settings):
    """What belongs to the task and not to its data, model or trainer.

    Args:
        name: `segmentation`.
        overlap: Of neighbouring tiles when slides are mapped, as a share of the patch size, in [0, 1).
        panels: Rows of the panel pictures.
        views_every: Epochs between pictures of validation patches while the network learns; 0 draws none.
        views: Patches that are the same in all of them, see `panda.app.patch_views`.
        patience: Epochs without a better `val/dice` after which training stops.
        channels_last: Train with the channels of a pixel side by side in memory: the same network, faster
            (docs/performance.md).
        compile: Train through `torch.compile`: slower to begin with, then faster.

    Raises:
        ConfigError: If a value is out of range, or `compile` lacks a C++ compiler for the CPU.
    """

    node: ClassVar[str] = "task"

    name: Literal["segmentation"] = "segmentation"
    overlap: float = Field(default=0.5, ge=0, lt=1, description="0.5 lets each tile overlap half of the next")
    panels: int = Field(default=6, ge=0, description="0 draws none")
    views_every: int = Field(default=5, ge=0, description="0 draws none")
    views: int = Field(default=4, ge=0, description="0 draws none")
    patience: Count = 10
    channels_last: bool = True
    compile: bool = False

    @rule
    def _check_compiler(self) -> Iterator[str]:
        if self.compile and not any(map(shutil.which, ("g++", "clang++", "cl"))):
            yield "task.compile=true needs a C++ compiler (g++ or clang++), and none was found: install one"


class SegmentationExperiment:
    """Builds everything from the configuration, then runs it.

    Args:
        cfg: Checked by `check_config`.
        faults: Those that were found before.

    Raises:
        ConfigError: With every fault, those found before included.
    """

    monitor = "val/dice"
    mode = "max"

    def __init__(self, cfg: DictConfig, faults: Faults | None = None) -> None:
        plain: Any = OmegaConf.to_container(cfg, resolve=True)
        faults = faults or Faults()
        self.cfg = cfg
        data: DataSettings | None = faults.build(plain, "data")
        model = plain["model"]
        downloaded = model.get("encoder_weights") in weight_names(str(model.get("encoder_name")))
        # A download waits until nothing is refused any more.
        without = {"encoder_weights": None} if downloaded else {}
        self.network: Segmenter = faults.build(plain, "model", **without)
        for key in ("patch_size", "batch_size"):
            if self.network is not None and not faults.names(f"data.{key}"):
                with faults.collect("data"):
                    getattr(self.network, f"check_{key}")(plain["data"][key])
        self.loss = faults.build(plain, "loss")
        if self.loss is not None:
            fits = check_loss(self.loss, torch.zeros(2, 1, 8, 8), torch.ones(2, 1, 8, 8), plain["loss"], faults)
            if fits and plain["data"]["ignore_background"]:
                check_ignored_pixels(self.loss, plain["loss"], faults)
        if plain["segmentation_checkpoint"] is not None:
            faults.add("segmentation_checkpoint is for task=grading: leave it out, or give task=grading")
        if data is not None:
            idle = (*data.idle(), *(CHOICE_KEYS if data.split == "patches" else ()))
            faults.add(*idle_faults(idle, data.how()))
            if data.sampler != "balanced":
                faults.add(*idle_faults(("data.tumor_share",), data.setting("sampler")))
        with faults.collect():
            check_criterion(plain["criterion"], plain["cost_ratio"])
        self.optim: Optim = faults.build(plain, "optim")
        self.settings: SegmentationSettings = faults.build(plain, "task")
        if self.settings is not None and not self.settings.views_every:
            faults.add(*idle_faults(("task.views",), "task.views_every=0, which draws none"))
        self.quantify: QuantifySettings = faults.build(plain, "quantify")
        engine: EngineSettings = faults.build(plain, "engine")
        faults.raise_any()
        assert data is not None
        self.data = PatchDataModule(data)
        if downloaded:
            self.network = faults.build(plain, "model")
            faults.raise_any()
        self.engine = engine.resolve_auto()

    def run(self, run: Run) -> SegmentationSummary:
        """See `Experiment.run`."""
        data = self.data
        run.keep_splits(data.selection())
        data.prepare_data()
        try:
            data.setup("fit")
        finally:
            run.failures.extend(data.failures)
        failed = {failure.slide_id for failure in data.failures}
        splits = {name: [r for r in records if r.slide_id not in failed] for name, records in data.splits().items()}
        assert self.engine.precision != "auto"
        providers = sorted({record.provider for record in (*splits["train"], *splits["val"])})
        metadata = SegmentationMetadata(
            network=self.network.options,
            resolution=TrainedResolution.from_slides(data.settings.resolution, data.train_mpp()),
            patch_size=data.settings.patch_size,
            overlap=self.settings.overlap,
            label_maps={provider: find_label_map(provider) for provider in providers},
            threshold=ThresholdChoice.unsearched("default", DEFAULT_THRESHOLD, "not searched: no validation yet"),
            precision=self.engine.precision,
            tta=self.engine.tta,
            normalize=data.settings.normalize,
            train_slides=tuple(sorted(record.slide_id for record in splits["train"])),
            val_slides=tuple(sorted(record.slide_id for record in splits["val"])),
        )
        task = SegmentationTask(
            self.network,
            self.loss,
            self.optim,
            metadata,
            channels_last=self.settings.channels_last,
            compiled=self.settings.compile,
        )
        if self.settings.views_every:
            views = Views(
                data.patch_set("val"),
                data.um_per_px(),
                run.folder / "views",
                every=self.settings.views_every,
                fixed=self.settings.views,
                seed=self.cfg.seed,
            )
            run.trainer.callbacks.append(views)  # type: ignore[attr-defined]
        run.fit(task, data, data.learns_from())
        predictor = SegmentationPredictor.from_checkpoint(run.best, self.engine)
        choice, temperature, validated = self._freeze_threshold(run, predictor, splits["val"])
        one_slide = data.settings.split == "patches"
        if one_slide:
            run.notes.append(
                "One slide, its patches split: these figures show that the network learns, not that it generalises "
                "to another slide."
            )
        shown: Sequence[SlideRecord] = []
        if self.cfg.test_slides:
            shown = splits["train"] if one_slide else splits.get("test", [])
        # the one slide is no test slide, and no table may say so
        table = run.folder / ("slides.csv" if one_slide else "test_slides.csv")
        scores = self._map_slides(run, predictor, choice, shown, table)
        tested = bool(shown) and not one_slide
        if tested:
            run.notes += unknown_providers(choice, scores)
        calibration = None
        if temperature is not None:
            kept = {"validation": validated} | ({"test": scores} if tested and scores else {})
            calibration = calibrate(run.folder, temperature, kept)
        patch_dice = None if self.cfg.threshold != "auto" else predictor.threshold.score
        summary = SegmentationSummary(
            **run.describe(),
            data=PatchDataSummary(**data.describe()),
            threshold=choice.value,
            threshold_choice=choice,
            calibration=calibration,
            val=summarize(validated, choice, self.cfg.seed)
            if validated
            else PatchFigures(dice=patch_dice, of=choice.chosen_on),
            test=summarize(scores, choice, self.cfg.seed) if tested else None,
        )
        self._show_in_wandb(run, summary)
        return summary

    def _freeze_threshold(
        self, run: Run, predictor: SegmentationPredictor, val: Sequence[SlideRecord]
    ) -> tuple[ThresholdChoice, Temperature | None, list[SlideScore]]:
        """Choose threshold and temperature on validation and write them into the best checkpoint.

        Validation slides are mapped as in inference and scored on their blended canvases. If the patches of one slide
        were split, there is no validation slide: the threshold found on the best epoch's validation patches stays.
        """
        choice = predictor.threshold
        scores: list[SlideScore] = []
        if self.data.settings.split != "patches":
            canvases = run.folder / "validation"
            kept, scored = read_scores(run.folder / SCORES), dict[str, SlideScore]()

            def score(record: SlideRecord, bar: tqdm[Any]) -> SlideScore:
                try:
                    with self._open(record) as slide, open_label(record, slide, predictor.metadata.label_maps) as mask:
                        key = score_fingerprint(predictor, slide, record)
                        if key in kept:
                            scored[key] = SlideScore(record, *kept[key])
                            return scored[key]
                        tissue = find_tissue(slide)
                        canvas = predictor.predict(
                            slide, tissue, canvases / f"{record.slide_id}.zarr", tile_progress(bar)
                        )
                        scored[key] = score_canvas(canvas, slide, mask, tissue, record)
                        return scored[key]
                finally:
                    remove(canvases)  # counted or failed: those of a large split would fill the disk

            outcome = run_over_slides(val, lambda record: record.slide_id, "validation", score)
            run.failures.extend(outcome.failures)
            scores = outcome.results
            if not scores:
                raise PandaError(f"no validation slide could be scored: {run.failures[-1].message}")
            write_scores(run.folder / SCORES, scored)
            choice = choose_threshold(self.cfg, scores, VALIDATION.format(len(scores)))
        if self.cfg.threshold != "auto":
            choice = ThresholdChoice.given(float(self.cfg.threshold))
        temperature = None
        if scores:
            rows = [asdict(score.metrics(choice.value_for(score.record.provider))) for score in scores]
            write_table(run.folder / "val_slides.csv", rows)
            write_threshold_curve(
                histograms(scores),
                choice,
                run.folder / "threshold_curve.csv",
                run.folder / "threshold_curve.png",
                providers_of(scores),
            )
            temperature = fit_temperature(pooled(histograms(scores)), VALIDATION.format(len(scores)), choice.date)
        update_metadata(
            run.best,
            SegmentationMetadata,
            threshold=choice,
            precision=self.engine.precision,
            tta=self.engine.tta,
            calibration=temperature,
        )
        return choice, temperature, scores

    def _open(self, record: SlideRecord) -> Slide:
        return self.data.settings.slide_options.open(record.image_path)

    def _map_slides(
        self,
        run: Run,
        predictor: SegmentationPredictor,
        choice: ThresholdChoice,
        records: Sequence[SlideRecord],
        table_path: Path,
    ) -> list[SlideScore]:
        """Map, scores and writes slides at the frozen threshold, and draws the panels."""
        mappers = {
            threshold: SlideMapper(
                predictor,
                threshold,
                self.quantify,
                slide_options=self.data.settings.slide_options,
                colour_map=self.cfg.colour_map,
            )
            for threshold in {choice.value_for(record.provider) for record in records}
        }
        logger = wandb_of(run.trainer.loggers)
        per_slide = -(-self.settings.panels // max(1, len(records)))
        panels: dict[float, list[PanelRow]] = {threshold: [] for threshold in mappers}
        table: list[dict[str, Any]] = []

        def work(record: SlideRecord, bar: tqdm[Any]) -> SlideScore:
            folder = run.folder / "slides" / record.slide_id
            threshold = choice.value_for(record.provider)
            with self._open(record) as slide, open_label(record, slide, predictor.metadata.label_maps) as mask:
                tissue = find_tissue(slide)
                mapped = mappers[threshold].map(
                    slide, tissue, folder, folder / "canvas.zarr", tile_progress(bar), labelled=(record, mask)
                )
                assert mapped.score is not None  # segmentation leaves out slides without a mask
                panels[threshold].extend(
                    select_panel_rows(
                        record,
                        slide,
                        mask,
                        tissue,
                        mapped.canvas,
                        patch_size=self.data.settings.patch_size,
                        count=min(per_slide, self.settings.panels - sum(map(len, panels.values()))),
                    )
                )
            write_slide_page(folder)
            table.append(asdict(mapped.score.metrics(threshold)) | mapped.result.model_dump(include=QUANTIFIED))
            return mapped.score

        outcome = run_over_slides(records, lambda record: record.slide_id, "slides", work)
        run.failures.extend(outcome.failures)
        for threshold, rows in panels.items():
            at = "" if len(panels) == 1 else f"_at_{threshold:.3f}"
            if rows:
                path = draw_panels(rows, threshold, run.folder / "panels" / f"patches{at}.png")
                if logger is not None:
                    log_rows(logger, f"panels{at}", path, rows, threshold)
        if table:
            write_table(table_path, table)
            if logger is not None:
                log_slides(logger, table_path.stem, table, run.folder / "slides")
        return outcome.results

    def _show_in_wandb(self, run: Run, summary: SegmentationSummary) -> None:
        """Curves, figures and checkpoints for the dashboard."""
        logger = wandb_of(run.trainer.loggers)
        if logger is None:
            return
        log_threshold_curve(logger, run.folder / "threshold_curve.csv")
        log_csv(logger, "threshold_curve_table", run.folder / "threshold_curve.csv")
        log_csv(logger, "calibration_table", run.folder / "calibration.csv")
        pictures = {f"curves/{name}": run.folder / f"{name}.png" for name in ("threshold_curve", "calibration")}
        log_pictures(logger, pictures)
        log_figures(logger, summary)
        if self.cfg.logger.get("checkpoints", True):
            log_checkpoints(logger, run.best.parent, {"task": "segmentation", "threshold": summary.threshold})
