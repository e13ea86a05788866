"""The patches of a data folder, split and loaded, as a Lightning data module."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pydantic import Field
from torch import Tensor
from torch.utils.data import DataLoader

from panda.data.augment import Augmentation
from panda.data.extraction import extract_store
from panda.data.failures import Failure
from panda.data.image_batch import PatchBatch, RawItems, convert_patches, stack_patches
from panda.data.loaders import Workers, convert_to_precision, make_ordered_loader, make_train_loader
from panda.data.manifest import SlideRecord, find_one_tumor_example, read_manifest
from panda.data.patch_manifests import write_one_slide_manifests, write_patch_manifests
from panda.data.patches import SlidePatches
from panda.data.patchset import PatchSet
from panda.data.samplers import BalancedDraws, HardDraws, SamplerName, find_kinds
from panda.data.settings import CutSettings, PatchSettings, SelectionSettings, TableSettings
from panda.data.slide_selection import Selection, select_slides
from panda.data.splits import SPLITS, Split
from panda.data.stain_estimates import Stains, estimate_stains
from panda.data.store import StoreResult, load_store, locate_store
from panda.data.summary import PatchDataSummary
from panda.errors import ConfigError, ManifestError, MaskError
from panda.settings import Count, PathValue, rule
from panda.synthetic.dataset import draw_dataset
from panda.wsi.classes import BINARY, ClassSet
from panda.wsi.geometry import mean_mpp
from panda.wsi.stain_normalization import NormalizeName


class DataSettings(CutSettings, SelectionSettings, TableSettings):
    """Slides, patches, split and loading, in words of the `data` config. See the base classes for their fields.

    Attributes:
        store_root: The folder of the patch stores.
        batch_size: Patches per batch.
        num_workers: Processes that load, for each loader; 0 for none; `"auto"`: see `count_workers`.
        extract_workers: Slides cut at the same time, in threads.
        augment: Applied to training patches; None for none.
        sampler: Which training patches an epoch draws: `"uniform"`: each once; `"balanced"`: by cancer, see
            `BalancedDraws`; `"hard"`: those with a high loss more often, see `HardDraws`.
        tumor_share: Share of the draws that have cancer, with `sampler="balanced"`.
        normalize: `"macenko"`: match the colours of each slide, in all splits, to a reference, see
            `panda.wsi.stain_normalization`; None: leave them.
    """

    store_root: PathValue = Path("patches")
    batch_size: Count = 16
    num_workers: Workers = Field(default="auto", description="auto or a number; 0 loads without processes")
    extract_workers: Count = 2
    augment: Augmentation | None = None
    sampler: SamplerName = "uniform"
    tumor_share: float = Field(default=0.5, gt=0, lt=1)
    normalize: NormalizeName | None = None

    @rule
    def _check_patches_of_one_slide(self) -> Iterator[str]:
        if self.split == "patches" and self.step < self.patch_size:
            yield (
                f"{self.setting('stride')}: with data.split=patches validation patches would overlap training "
                "patches; give null"
            )
        if self.split == "patches" and self.edge == "shift":
            yield "data.edge=shift: with data.split=patches the last patches would overlap others; give pad"


class PatchDataModule(pl.LightningDataModule):
    """Patches of the slides of a table.

    Loaders and augmentation follow torch's seed; `settings.seed` is that of the split. `split="patches"` splits the
    patches of one slide into training and validation without a test: its figures say nothing about other slides.
    Without `needs_slides`, a CSV need not name the files of its slides. `stratify_by` is a column, see `select_slides`.
    """

    def __init__(
        self,
        settings: DataSettings,
        classes: ClassSet = BINARY,
        *,
        needs_slides: bool = True,
        stratify_by: str | None = None,
    ) -> None:
        super().__init__()
        self.stratify_by = stratify_by
        self.needs_slides = needs_slides
        self.settings = settings
        self.patch_settings = PatchSettings(**dict(settings.part(CutSettings)), classes=classes)
        self._stains: Stains | None = None
        self._losses: Tensor | None = None
        self._hard: HardDraws | None = None
        self.failures: list[Failure] = []
        self._selection: Selection | None = None
        self._result: StoreResult | None = None
        self._sets: dict[Split, PatchSet] = {}

    @property
    def store_folder(self) -> Path:
        """The folder of the patch store."""
        return locate_store(self.settings.store_root, self.settings.source, self.patch_settings)

    def select(self) -> Selection:
        """Return which slides of the table are used and which split each belongs to.

        Raises:
            ManifestError: If the tables are faulty, or no slide is left for a split.
        """
        if self._selection is None:
            settings = self.settings
            if settings.draw is not None and settings.root is not None:
                draw_dataset(settings.root, settings.draw)
            if settings.split == "patches" and settings.slide_id is None:
                example = find_one_tumor_example(settings.source, settings.provider, settings.labels)
                settings = settings.model_copy(update={"slide_id": example.slide_id})
            records = read_manifest(settings.source, labels=settings.labels, needs_slides=self.needs_slides)
            self._selection = select_slides(records, settings, self.stratify_by)
        return self._selection

    def list_splits(self) -> dict[Split, list[SlideRecord]]:
        """Return the slides of each split by slide id; with `split="patches"`, training and validation share one."""
        records, split = self.select().used, self.select().split
        if self.settings.split == "patches":
            return {"train": records, "val": records}
        ordered = sorted(records, key=lambda record: record.slide_id)
        return {
            name: [record for record in ordered if split[record.slide_id] == name]
            for name in SPLITS
            if name in split.values()
        }

    def prepare_data(self) -> None:
        """Draw the embedded slides if asked for, and cut the patches the store lacks."""
        if self._result is None:
            settings, records = self.settings, self.select().used  # a faulty split is reported before hours of cutting
            self._check_patterns(records)
            result = extract_store(
                records, self.patch_settings, settings.store_root, settings.source, workers=settings.extract_workers
            )
            self._result = self._add_stains(result)

    def _check_patterns(self, records: Sequence[SlideRecord]) -> None:
        """Raise `ConfigError` if none of the classes has a Gleason pattern of a label map."""
        faults = []
        for provider in sorted({record.provider for record in records}):
            try:
                self.patch_settings.classes.make_table(self.settings.find_label_map(provider))
            except MaskError as error:
                faults.append(f"label map {provider}: {error}")
        if faults:
            raise ConfigError(faults)

    def setup(self, stage: str | None = None) -> None:
        """Write the manifests of the splits, and open them; all stages are set up at once."""
        if self._sets:
            return
        records = self.select().used
        # Only the first process cuts patches: the others read the store.
        result = self._result or self._add_stains(
            load_store(records, self.patch_settings, self.settings.store_root, self.settings.source)
        )
        self._result, self.failures = result, result.failures
        if self.settings.split != "patches":
            manifests = write_patch_manifests(result, self.select().split)
        elif result.failures:
            raise ManifestError(f"{records[0].slide_id}: {result.failures[0].message}")
        else:
            manifests = write_one_slide_manifests(
                result.store,
                result.slides[records[0].slide_id],
                seed=self.settings.seed,
                val_fraction=self.settings.val_fraction,
            )
        self._sets = {
            name: PatchSet(path, self.settings.augment if name == "train" else None, self._stains)
            for name, path in manifests.items()
        }

    def _add_stains(self, result: StoreResult) -> StoreResult:
        """Estimate the stain of each slide if `normalize` needs it; a slide that cannot be read becomes a failure."""
        if self.settings.normalize is None:
            return result
        result, self._stains = estimate_stains(result, self.patch_settings, workers=self.settings.extract_workers)
        return result

    def get_patches(self, split: Split) -> PatchSet:
        """Return the patches of a split, or raise `ConfigError` if there is no such split."""
        self.setup()
        if split not in self._sets:
            raise ConfigError(
                f"there is no {split} split with {self.settings.describe_split()} and "
                f"{self.settings.setting('test_fraction')}: give a share above 0, or another split"
            )
        return self._sets[split]

    def train_dataloader(self) -> DataLoader[Any]:
        """Load training patches as `sampler` draws them, see `make_train_loader`."""
        patches = self.get_patches("train")
        choose: BalancedDraws | HardDraws | None = None
        if self.settings.sampler == "balanced":
            kinds = find_kinds(patches.rows.class_fractions, patches.rows.fractions[:, 1])
            choose = BalancedDraws(kinds, patches.rows.slide_index, self.settings.tumor_share)
        elif self.settings.sampler == "hard":
            choose = self._hard = HardDraws(len(patches))
            if self._losses is not None:
                choose.losses = self._losses
        return make_train_loader(
            RawItems(patches),
            len(patches),
            self.settings.batch_size,
            self.settings.num_workers,
            self.trainer,
            choose=choose,
            collate=stack_patches,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the patch losses that `sampler="hard"` draws by, which a resumed run needs."""
        return {} if self._hard is None else {"losses": self._hard.losses}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the patch losses of `state_dict`."""
        self._losses = state_dict.get("losses")
        if self._hard is not None and self._losses is not None:
            self._hard.losses = self._losses

    def val_dataloader(self) -> DataLoader[Any]:
        """Load validation patches in the order of their manifest."""
        return self._make_ordered_loader("val", self.trainer)

    def test_dataloader(self) -> DataLoader[Any]:
        """Load test patches in the order of their manifest."""
        return self._make_ordered_loader("test")

    def _make_ordered_loader(self, split: Split, trainer: pl.Trainer | None = None) -> DataLoader[Any]:
        patches, settings = RawItems(self.get_patches(split)), self.settings
        return make_ordered_loader(patches, settings.batch_size, settings.num_workers, trainer, collate=stack_patches)

    def on_after_batch_transfer(self, batch: PatchBatch, dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Convert a batch on its device, see `convert_patches`, to the precision of the trainer."""
        return convert_to_precision(convert_patches(batch), self.trainer)

    @property
    def _patches(self) -> dict[str, SlidePatches]:
        """Slide id → its patches, for the slides that have some."""
        self.setup()
        assert self._result is not None
        return self._result.slides

    def list_mpp(self) -> dict[str, float | None]:
        """Return µm per patch px (mean of x and y) of each slide that has patches; None if it is unknown."""
        return {slide_id: mean_mpp(slide.mpp) if slide.mpp else None for slide_id, slide in self._patches.items()}

    def list_train_mpp(self) -> list[float]:
        """Return µm per patch px (mean of x and y) of each training slide that has patches and a known resolution."""
        known = self.list_mpp()
        return [mpp for record in self.list_splits()["train"] if (mpp := known.get(record.slide_id)) is not None]

    def list_contradictions(self, split: Split) -> list[str]:
        """Return the slides of a split that have patches, a grade of 1 or more and no cancer pixel in any patch."""
        patches = self._patches
        return [
            record.slide_id
            for record in self.list_splits()[split]
            if record.slide_id in patches and patches[record.slide_id].contradicts_grade
        ]

    def list_fingerprints(self) -> dict[str, dict[str, str]]:
        """Return the fingerprint of the patches of each training and validation slide, by split and slide id."""
        patches, splits = self._patches, self.list_splits()
        return {
            name: {r.slide_id: patches[r.slide_id].fingerprint for r in splits[name] if r.slide_id in patches}
            for name in ("train", "val")
        }

    def describe_colors(self, augmented: bool = True) -> str:
        """Return how colours are changed, as typed on a command line: normalization of slides, augmentation of patches.

        If `augmented` is False, training patches do not pass through the augmentation.
        """
        augment = self.settings.augment.name if self.settings.augment and augmented else "none"
        return f"data.normalize={self.settings.normalize or 'null'} augment={augment}"

    def summarize(self) -> PatchDataSummary:
        """Return the data of the run, its splits and its failures."""
        self.setup()
        sets = self._sets.items()
        return PatchDataSummary(
            root=str(self.settings.source),
            store=str(self.store_folder),
            manifests={name: str(patches.rows.path) for name, patches in sets},
            settings=self.patch_settings.model_dump(mode="json"),
            colours=self.describe_colors(),
            split=self.settings.split if self.settings.splits is None else str(self.settings.splits),
            seed=self.settings.seed,
            groups=self.select().describe_policy(),
            slides={name: len(patches.slide_ids) for name, patches in sets},
            patches={name: len(patches) for name, patches in sets},
            tumor_patches={name: int((patches.rows.fractions[:, 1] > 0).sum()) for name, patches in sets},
            left_out=self.select().exclusion_counts,
            failed=[asdict(failure) for failure in self.failures],
        )
