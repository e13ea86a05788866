"""The grading experiment: bags of tiles from each slide, attention MIL, grades for the test slides."""

import functools
import hashlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from panda.app.config import Faults, check_loss
from panda.app.dashboard import SHOWN, log_checkpoints, log_figures, log_pictures, log_slides
from panda.app.door import idle_faults
from panda.app.freeze import CHOICE_KEYS
from panda.app.run import Run, resolution_asked
from panda.app.tracking import wandb_of
from panda.data.bag_datamodule import BagDataModule
from panda.data.bags import BagItem
from panda.data.datamodule import PatchDataModule
from panda.data.manifest import SlideRecord
from panda.data.settings import resolution_faults
from panda.data.splits import Split
from panda.errors import ConfigError, ManifestError
from panda.files import identity, write_json, write_table
from panda.inference.canvas import Canvas
from panda.inference.engine import SlideMapper, each_slide, tiles_on
from panda.inference.figures import plain_interval
from panda.inference.grader import Grade, GradingPredictor, slide_tiles
from panda.inference.overview import write_slide
from panda.inference.predictor import EngineSettings, SegmentationPredictor, resolution_for
from panda.inference.quantify import QuantifySettings
from panda.models.mil import MILNet
from panda.report.panels import attention_tiles
from panda.report.slide_page import write_slide_page
from panda.tasks.bootstrap import percentile_interval, resampled_sums
from panda.tasks.grades import agreement, confusions, grading_scores
from panda.tasks.grading import CLASSES, GradingTask, Target, target_class
from panda.tasks.optim import Optim
from panda.wsi.normalise import told_stain
from panda.wsi.slide import Slide
from panda.wsi.tissue import TissueMap, find_tissue

log = logging.getLogger(__name__)

OF_SEGMENTATION = "segmentation"
"""`model.encoder_weights` that takes the encoder of the segmentation checkpoint."""

IDLE = (
    *CHOICE_KEYS,
    *(f"data.{key}" for key in ("batch_size", "stride", "edge", "min_tissue", "store", "extract_workers")),
)
"""What the command line may not ask for, as nothing would follow: `tiles` has its own."""


@dataclass(frozen=True)
class GradingSettings:
    """What belongs to the task and not to its data, model or trainer.

    Args:
        name: `grading`.
        target: `isup`, six classes; or `cancer`, present or absent.
        patience: Epochs without a lower `val/loss` after which training stops.

    Raises:
        ConfigError: If a number is out of range.
    """

    name: Literal["grading"] = "grading"
    target: Target = "isup"
    patience: int = 10

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise ConfigError(f"task.patience={self.patience} must be at least 1 epoch")


@dataclass(frozen=True)
class TileSettings:
    """How a slide becomes a bag.

    Args:
        how: `guided` by a segmentation checkpoint, or any `tissue`.
        k: Tiles in a bag, at most.
        tile_size: Side of a tile in px at the resolution.
        level: Pyramid level of the tiles; or
        mpp: their µm/px (the other one None).
        random_fraction: Share of the bag that is random tissue, whatever the segmentation says.
        min_tissue: Least share of tissue in a tile.
        seed: Of the random share.
        batch_size: Bags in a batch.

    Raises:
        ConfigError: With every fault.
    """

    how: Literal["guided", "tissue"] = "guided"
    k: int = 32
    tile_size: int = 256
    level: int | None = 1
    mpp: float | None = None
    random_fraction: float = 0.25
    min_tissue: float = 0.25
    seed: int = 0
    batch_size: int = 1

    def __post_init__(self) -> None:
        faults = resolution_faults(self.level, self.mpp, "tiles")
        faults += [
            f"tiles.{key}={getattr(self, key)} must be at least 1"
            for key in ("k", "tile_size", "batch_size")
            if getattr(self, key) < 1
        ]
        if self.seed < 0:
            faults.append(f"tiles.seed={self.seed} must not be negative")
        faults += [
            f"tiles.{key}={getattr(self, key)} must be a share from 0 to 1"
            for key in ("random_fraction", "min_tissue")
            if not 0 <= getattr(self, key) <= 1
        ]
        if faults:
            raise ConfigError(faults)


class GradingExperiment:
    """Builds everything from the configuration, then runs it.

    Args:
        cfg: Checked by `check_config`.

    Raises:
        ConfigError: With every fault that the parts found.
        CheckpointError: If the segmentation checkpoint cannot be used.
    """

    monitor = "val/loss"
    mode = "min"

    def __init__(self, cfg: DictConfig) -> None:
        plain: Any = OmegaConf.to_container(cfg, resolve=True)
        self.cfg = cfg
        faults = Faults()
        self.data: PatchDataModule = faults.build(plain["data"])
        if plain["data"]["split"] == "patches":
            faults.add("data.split=patches: grading needs slides in each split; use data.split=holdout or kfold")
        elif self.data is not None:
            for fault in idle_faults(self.data.choice.idle(), self.data.choice.how()):
                faults.add(fault)
        self.tiles: TileSettings = faults.build(plain["tiles"])
        self.settings: GradingSettings = faults.build(plain["task"])
        self.loss = faults.build(plain["loss"])
        if self.loss is not None:
            logits = torch.zeros(2, CLASSES[cfg.task.target])
            check_loss(self.loss, logits, torch.tensor([0, 1]), plain["loss"], faults)
        self.optim: Optim = faults.build(plain["optim"])
        self.quantify: QuantifySettings = faults.build(plain["quantify"])
        self.engine: EngineSettings = faults.build(plain["engine"])
        guided = plain["tiles"]["how"] == "guided"
        if guided and not cfg.segmentation_checkpoint:
            faults.add(
                "segmentation_checkpoint is not given: tiles=guided needs one "
                "(segmentation_checkpoint=runs/segmentation/…/checkpoints/best.ckpt), tiles=tissue needs none"
            )
        if not guided and cfg.segmentation_checkpoint:
            faults.add("segmentation_checkpoint has no part in tiles=tissue: leave it out, or give tiles=guided")
        if cfg.threshold != "auto":
            faults.add(f"threshold={cfg.threshold}: grading takes the segmentation checkpoint's; leave it out")
        from_segmentation = plain["model"].get("encoder_weights") == OF_SEGMENTATION
        if from_segmentation and not guided:
            faults.add("model.encoder_weights=segmentation needs tiles=guided and a segmentation_checkpoint")
        model = plain["model"] | ({"encoder_weights": None} if from_segmentation else {})
        self.network: MILNet = faults.build(model, num_classes=CLASSES[cfg.task.target])
        if self.network is not None and self.tiles is not None:
            with faults.collect():
                self.network.check_tile_size(self.tiles.tile_size)
        for fault in idle_faults(IDLE, "task=grading"):
            faults.add(fault)
        faults.raise_any()
        self.segmenter = (
            SegmentationPredictor.from_checkpoint(Path(cfg.segmentation_checkpoint), self.engine) if guided else None
        )
        if from_segmentation and self.segmenter is not None:
            _take_encoder(self.network, self.segmenter)

    def run(self, run: Run) -> None:
        """See `Experiment.run`."""
        splits = self.data.splits()
        run.keep_splits(self.data.selection())
        items: dict[Split, list[BagItem]] = {}
        mpps: dict[Split, list[float]] = {name: [] for name in splits}
        for name, records in splits.items():
            outcome = each_slide(
                records,
                lambda record: record.slide_id,
                f"tiles of {name}",
                functools.partial(self._bag_item, mpps[name]),
            )
            run.failures.extend(outcome.failures)
            items[name] = outcome.results
            if not items[name] and records:
                raise ManifestError(f"no slide of the {name} split could be used: {run.failures[-1].message}")
        carried = {
            "resolution": resolution_asked(self.tiles.level, self.tiles.mpp, mpps["train"]),
            "tile_size": self.tiles.tile_size,
            "tiles": {key: getattr(self.tiles, key) for key in ("how", "k", "random_fraction", "min_tissue", "seed")},
            "target": self.settings.target,
            "segmentation": self.segmenter.fingerprint if self.segmenter else None,
            "normalize": self.data.normalize,
            "train_slides": sorted(item.record.slide_id for item in items["train"]),
            "val_slides": sorted(item.record.slide_id for item in items["val"]),
        }
        settings = self.data.settings
        bags = BagDataModule(
            items,
            k=self.tiles.k,
            tile_size=self.tiles.tile_size,
            level=self.tiles.level,
            mpp=self.tiles.mpp,
            batch_size=self.tiles.batch_size,
            num_workers=self.data.num_workers,
            augment=self.data.augment,
            reader=settings.reader,
            mpp_override=settings.mpp_override,
        )
        learns_from = {
            name: {item.record.slide_id: self._identity(item) for item in items[name]} for name in ("train", "val")
        }
        run.fit(GradingTask(self.network, self.loss, self.optim, carried), bags, learns_from)
        self._notes(run, items)
        grader = GradingPredictor.from_checkpoint(run.best, self.engine)
        run.summary |= {
            "threshold": self.segmenter.threshold.value if self.segmenter else None,
            "target": self.settings.target,
            "tiles": asdict(self.tiles),
            "data": {
                "root": str(self.data.root),
                "colours": self.data.colours(),
                "slides": {name: len(found) for name, found in items.items()},
                "left_out": self.data.selection().left_out,
                "groups": self.data.selection().policy(),
            },
            "val": self._grade_slides(run, grader, items["val"], "val"),
        }
        if self.cfg.test_slides and items.get("test"):
            run.summary["test"] = self._grade_slides(run, grader, items["test"], "test")
        self._show_in_wandb(run)

    def _open(self, record: SlideRecord) -> Slide:
        settings = self.data.settings
        return Slide.open(record.image_path, reader=settings.reader, mpp_override=settings.mpp_override)

    def _class(self, record: SlideRecord) -> int:
        assert record.isup_grade is not None  # a bag without a grade is refused
        return int(target_class(torch.tensor(record.isup_grade), self.settings.target))

    def _canvas(
        self, slide: Slide, tissue: TissueMap, bar: "tqdm[Any]"
    ) -> AbstractContextManager[Canvas] | AbstractContextManager[None]:
        """The slide's canvas from the guiding segmenter, kept beside the patch stores for the next run."""
        if self.segmenter is None:
            return nullcontext()
        return self.segmenter.holding(slide, tissue, self._canvas_path(self.segmenter, slide), tiles_on(bar))

    def _canvas_path(self, segmenter: SegmentationPredictor, slide: Slide) -> Path:
        """Named by all that makes it, so that runs of another precision, say, do not replace each other's."""
        made_of = segmenter.canvas_fingerprint(slide, resolution_for(slide, segmenter.carried["resolution"]))
        folder = self.data.store_root / f"canvases-{segmenter.fingerprint[:12]}"
        return folder / f"{slide.slide_id}-{made_of[:12]}.zarr"

    def _bag_item(self, mpps: list[float], record: SlideRecord, bar: "tqdm[Any]") -> BagItem:
        with self._open(record) as slide:
            tissue = find_tissue(slide)
            asked = resolution_asked(self.tiles.level, self.tiles.mpp, [])
            with self._canvas(slide, tissue, bar) as canvas:
                coords, view = slide_tiles(slide, tissue, canvas, asked, asdict(self.tiles))
            if view.mean_mpp:
                mpps.append(view.mean_mpp)
            return BagItem(record, coords, told_stain(slide, tissue) if self.data.normalize else None)

    def _identity(self, item: BagItem) -> list[Any]:
        """Of a bag: its slide, its class and its tiles."""
        tiles = hashlib.sha256(np.ascontiguousarray(item.coords).tobytes()).hexdigest()
        return [identity(item.record.image_path), self._class(item.record), tiles]

    def _notes(self, run: Run, items: Mapping[Split, Sequence[BagItem]]) -> None:
        train = {item.record.slide_id for item in items["train"]}
        if self.segmenter is not None:
            seen = set(self.segmenter.carried["train_slides"])
            if train & seen:
                run.notes.append(
                    f"The segmentation that guides the tiles was trained on {len(train & seen)} of the {len(train)} "
                    "training slides: their tiles are in-sample."
                )
            run.notes += leak_notes(items, self.segmenter.carried)
        classes = CLASSES[self.settings.target]
        counts = Counter(self._class(item.record) for item in items["train"])
        absent = [str(c) for c in range(classes) if not counts[c]]
        if absent:
            run.notes.append(f"No training slide has class {', '.join(absent)}: it cannot be learnt.")
        for note in run.notes:
            log.warning("%s", note)

    def _grade_slides(self, run: Run, grader: GradingPredictor, items: Sequence[BagItem], split: str) -> dict[str, Any]:
        """Grades the slides of bags as inference does; of test slides it leaves map, tiles and page."""
        segmenter, settings = self.segmenter if split == "test" else None, self.data.settings
        logger = wandb_of(run.trainer.loggers) if split == "test" else None

        @functools.cache
        def mapper(network: SegmentationPredictor, threshold: float) -> SlideMapper:
            return SlideMapper(
                network,
                threshold,
                self.quantify,
                grader,
                settings.reader,
                settings.mpp_override,
                self.cfg.colour_map,
            )

        def work(record: SlideRecord, bar: "tqdm[Any]") -> tuple[SlideRecord, Grade] | None:
            folder = run.folder / "slides" / record.slide_id
            with self._open(record) as slide:
                tissue = find_tissue(slide)
                if segmenter is not None:
                    canvas_path = self._canvas_path(segmenter, slide)
                    at = mapper(segmenter, segmenter.threshold.of(record.provider))
                    mapped = at.map(slide, tissue, folder, canvas_path, tiles_on(bar), record=_labelled(record))
                    if mapped.ungraded:
                        run.failures.append(mapped.ungraded)
                    grade = mapped.grade
                else:
                    with self._canvas(slide, tissue, bar) as canvas:
                        grade = grader.grade(slide, tissue, canvas)
                    if split == "test":
                        write_slide(slide.overview()[0], folder)
            if split == "test":
                if grade is not None:
                    attention_tiles(grade.tiles, grade.attention, grade.coords, folder / "attention_tiles.png")
                    if segmenter is None:
                        facts = {"slide_id": record.slide_id, "grade": grade.plain()}
                        write_json(folder / "quantification.json", facts)
                write_slide_page(folder)
            return None if grade is None else (record, without_tiles(grade))

        outcome = each_slide(
            [item.record for item in items], lambda record: record.slide_id, f"grades of {split}", work
        )
        run.failures.extend(outcome.failures)
        graded = [result for result in outcome.results if result is not None]
        rows = [
            {
                "slide_id": record.slide_id,
                "provider": record.provider,
                "isup_grade": record.isup_grade,
                "label": self._class(record),
                "predicted": grade.predicted,
                "group": record.group,
                **{f"p{i}": p for i, p in enumerate(grade.probabilities)},
            }
            for record, grade in graded
        ]
        if rows:
            write_table(run.folder / f"{split}_slides.csv", rows)
            if logger is not None:
                log_slides(logger, "test_slides", rows, run.folder / "slides")
        return self._figures(graded)

    def _figures(self, graded: Sequence[tuple[SlideRecord, Grade]]) -> dict[str, Any]:
        figures = self._scores(graded)
        figures["by_provider"] = {
            provider: self._scores([(r, g) for r, g in graded if r.provider == provider])
            for provider in sorted({record.provider for record, _ in graded})
        }
        return figures

    def _scores(self, graded: Sequence[tuple[SlideRecord, Grade]]) -> dict[str, Any]:
        labels = np.array([self._class(record) for record, _ in graded], dtype=np.int64)
        prob = np.array([grade.probabilities for _, grade in graded]).reshape(-1, CLASSES[self.settings.target])
        found = grading_scores(labels, prob)

        groups = [record.group for record, _ in graded]
        drawn = resampled_sums(confusions(labels, prob), groups, agreement, seed=self.cfg.seed)
        kappa, right = (plain_interval(percentile_interval(column)) for column in drawn.T)
        return {
            "slides": len(graded),
            "qwk": found["qwk"],
            "qwk_interval": kappa,
            "accuracy": found["accuracy"],
            "accuracy_interval": right,
            "auroc": found["auroc_cancer"],
            "auroc_significant": found.get("auroc_significant"),
            "confusion": found["confusion"],
        }

    def _show_in_wandb(self, run: Run) -> None:
        logger = wandb_of(run.trainer.loggers)
        if logger is None:
            return
        tiles = sorted((run.folder / "slides").glob("*/attention_tiles.png"))[:SHOWN]
        log_pictures(logger, {f"attention_tiles/{path.parent.name}": path for path in tiles})
        log_figures(logger, run.summary)
        if self.cfg.logger.get("checkpoints", True):
            log_checkpoints(logger, run.best.parent, {"task": "grading", "target": self.settings.target})


def leak_notes(items: Mapping[Split, Sequence[BagItem]], carried: Mapping[str, Any]) -> list[str]:
    """Says which slides that are judged on were no news to the segmentation that guides the tiles.

    Args:
        items: Slides of each split.
        carried: Of the segmentation's checkpoint.
    """
    # On validation slides the grader chooses its epoch too: that the segmentation did adds nothing.
    checked: tuple[tuple[Split, str, str], ...] = (
        ("val", "train_slides", "was trained"),
        ("test", "train_slides", "was trained"),
        ("test", "val_slides", "chose its epoch and threshold"),
    )
    counts = [
        (did, len({item.record.slide_id for item in items.get(name, ())} & set(carried[key])), name)
        for name, key, did in checked
    ]
    return [
        f"The segmentation {did} on {count} {name} slides: their figures flatter. "
        "Use the data.seed and fractions of its run."
        for did, count, name in counts
        if count
    ]


def _labelled(record: SlideRecord) -> SlideRecord | None:
    """The slide where its label mask is there: grading itself needs none."""
    return record if record.mask_path is not None and record.mask_path.is_file() else None


def without_tiles(grade: Grade) -> Grade:
    """A grade without the pixels of its tiles: those of thousands of bags fill a memory."""
    return replace(grade, tiles=grade.tiles[:0].copy())  # a slice alone would keep them all


def _take_encoder(network: MILNet, segmenter: SegmentationPredictor) -> None:
    """Starts the tiles' encoder from the segmenter's, where both are of one architecture."""
    state = segmenter.network.encoder.state_dict()
    try:
        network.encoder.load_state_dict(state)
    except RuntimeError as error:
        used = segmenter.carried["network"]["encoder_name"]
        raise ConfigError(
            f"model.encoder_weights=segmentation: the segmentation's encoder is {used}, which does not fit the "
            f"tiles' encoder; give model.encoder={used}, or model.encoder_weights=null"
        ) from error
