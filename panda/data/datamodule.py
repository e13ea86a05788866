"""The patches of a data folder, split and loaded, as a Lightning data module."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, get_args

import pytorch_lightning as pl
from torch import Tensor
from torch.utils.data import DataLoader

from panda.data.augment import Augmentation
from panda.data.extraction import extract_store
from panda.data.failures import Failure
from panda.data.loaders import loader_faults, ordered_loader, train_loader
from panda.data.manifest import TABLE, SlideRecord, find_one_tumor_example, read_manifest
from panda.data.patch_manifests import write_one_slide_manifests, write_patch_manifests
from panda.data.patchset import PatchSet
from panda.data.pixel_stores import StoreKind
from panda.data.samplers import BalancedDraws, HardDraws, SamplerName
from panda.data.settings import How, PatchSettings, SelectionSettings
from panda.data.slide_selection import Selection, select
from panda.data.splits import SPLITS, Split
from panda.data.stain_estimates import Stains, find_stains
from panda.data.store import StoreResult, load_store, store_path
from panda.errors import ConfigError, ManifestError
from panda.synthetic.dataset import SyntheticSpec, draw_dataset
from panda.wsi.geometry import mean_mpp
from panda.wsi.readers import ReaderName
from panda.wsi.stain_normalization import NormalizeName


class PatchDataModule(pl.LightningDataModule):
    """Patches of the slides of a folder in PANDA's layout.

    Args:
        root: The folder that holds `train.csv`.
        level: Pyramid level of the patches, or None where `mpp` is given.
        mpp: µm per patch px, or None where `level` is given.
        patch_size: Side of a patch in px at that resolution.
        stride: Distance of neighbouring patches in px at that resolution; None for `patch_size`.
        edge: What happens at the slide's edge, see `PatchSettings`.
        min_tissue: Least share of tissue in a patch.
        store_root: The folder of the patch stores.
        store: What is kept of the pixels, see `panda.data.pixel_stores`.
        batch_size: Patches a batch.
        num_workers: Processes that load, for each loader; 0 for none.
        seed: Of the split. Loaders and augmentation follow torch's seed.
        split: `"holdout"`, `"kfold"` or `"patches"`: the patches of one slide are split into training and
            validation, without a test, whatever `test_fraction` is; its figures are not generalisation.
        folds: See `SelectionSettings`, as for all of the following up to `splits`.
        fold: Which of them.
        val_fraction: Share of the slides (or patches) for validation.
        test_fraction: Share of the slides for the test; 0 for none.
        slide_id: The slide of `split="patches"`; None for one that has cancer.
        provider: Only this provider's slides.
        test_provider: Test on this provider's slides, train on the others.
        exclude: Findings whose slides are left out.
        findings: Those of an audit.
        groups: CSV of groups that never straddle the split.
        splits: The split of another run.
        reader: See `SlideOptions`.
        mpp_override: See `SlideOptions`.
        augment: Applied to training patches; None for none.
        extract_workers: Slides cut at the same time, in threads.
        ignore_background: See `PatchSettings`.
        sampler: Which training patches an epoch draws: `"uniform"`: each once; `"balanced"`: by cancer, see
            `BalancedDraws`; `"hard"`: those that the network is wrong on more often, see `HardDraws`.
        tumor_share: Of the draws that have cancer, with `sampler="balanced"`.
        normalize: `"macenko"`: the colours of each slide, in all splits, are brought to those of a reference, see
            `panda.wsi.stain_normalization`; None: they stay.
        draw: Draws the embedded slides at `root` on first use; None for a folder that exists.

    Raises:
        ConfigError: All faults of the arguments at once.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        level: int | None = 1,
        mpp: float | None = None,
        patch_size: int = 256,
        stride: int | None = None,
        edge: Literal["pad", "shift"] = "pad",
        min_tissue: float = 0.1,
        store_root: str | Path = "patches",
        batch_size: int = 16,
        num_workers: int = 2,
        seed: int = 0,
        split: How = "holdout",
        folds: int = 5,
        fold: int = 0,
        val_fraction: float = 0.2,
        test_fraction: float = 0.2,
        slide_id: str | None = None,
        provider: str | None = None,
        test_provider: str | None = None,
        exclude: Sequence[str] = (),
        findings: str | Path | None = None,
        groups: str | Path | None = None,
        splits: str | Path | None = None,
        reader: ReaderName = "auto",
        mpp_override: float | None = None,
        augment: Augmentation | None = None,
        extract_workers: int = 2,
        draw: SyntheticSpec | None = None,
        store: StoreKind = "png",
        ignore_background: bool = False,
        sampler: SamplerName = "uniform",
        tumor_share: float = 0.5,
        normalize: NormalizeName | None = None,
    ) -> None:
        super().__init__()
        self.root = Path(root)
        self.settings = PatchSettings(
            level, mpp, patch_size, stride, edge, min_tissue, reader, mpp_override, store, ignore_background
        )
        self.store_root = Path(store_root)
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.choice = SelectionSettings(
            split=split,
            folds=folds,
            fold=fold,
            seed=seed,
            val_fraction=val_fraction,
            test_fraction=test_fraction if split != "patches" else 0.0,
            slide_id=slide_id,
            provider=provider,
            test_provider=test_provider,
            exclude=tuple(exclude),
            findings=None if findings is None else Path(findings),
            groups=None if groups is None else Path(groups),
            splits=None if splits is None else Path(splits),
        )
        self.augment = augment
        self.sampler = sampler
        self.tumor_share = tumor_share
        self.normalize = normalize
        self._stains: Stains | None = None
        self._losses: Tensor | None = None
        self._hard: HardDraws | None = None
        self.extract_workers = extract_workers
        self.draw = draw
        self.failures: list[Failure] = []
        self._selection: Selection | None = None
        self._result: StoreResult | None = None
        self._sets: dict[Split, PatchSet] = {}
        if faults := [*self.settings.faults(), *self._faults()]:
            raise ConfigError(faults)

    def _faults(self) -> list[str]:
        """What is wrong with the arguments beside the patch settings."""
        faults = loader_faults(self.batch_size, self.num_workers)
        faults += self.choice.faults()
        if self.sampler not in get_args(SamplerName):
            faults.append(f"data.sampler is {self.sampler!r}: give {', '.join(get_args(SamplerName))}")
        if self.normalize not in (None, *get_args(NormalizeName)):
            faults.append(f"data.normalize is {self.normalize!r}: give {', '.join(get_args(NormalizeName))}, or null")
        if not 0 < self.tumor_share < 1:
            faults.append(f"data.tumor_share is {self.tumor_share}: give a share over 0 and under 1")
        if self.extract_workers < 1:
            faults.append(f"data.extract_workers is {self.extract_workers}: give at least 1")
        if self.draw is None and not (self.root / TABLE).is_file():
            faults.append(f"data.root={self.root} has no {TABLE}: give the folder that holds it and train_images/")
        if self.choice.split == "patches" and self.settings.step < self.settings.patch_size:
            faults.append(
                f"data.stride is {self.settings.stride}: with data.split=patches validation patches would overlap "
                f"training patches; give null"
            )
        if self.choice.split == "patches" and self.settings.edge == "shift":
            faults.append(
                "data.edge is 'shift': with data.split=patches the last patches would overlap others; give pad"
            )
        return faults

    @property
    def store_folder(self) -> Path:
        """Folder of the patch store."""
        return store_path(self.store_root, self.root, self.settings)

    def selection(self) -> Selection:
        """What becomes of each slide of the table.

        Raises:
            ManifestError: The tables are faulty, or no slide is left for a split.
        """
        if self._selection is None:
            if self.draw is not None:
                draw_dataset(self.root, self.draw)
            choice = self.choice
            if choice.split == "patches" and choice.slide_id is None:
                choice = replace(choice, slide_id=find_one_tumor_example(self.root, choice.provider).slide_id)
            self._selection = select(read_manifest(self.root), choice)
        return self._selection

    def records(self) -> list[SlideRecord]:
        """Slides that are used, with their groups, in the order of the table (one where `split="patches"`).

        Raises:
            ManifestError: As `selection`.
        """
        return self.selection().used

    def splits(self) -> dict[Split, list[SlideRecord]]:
        """Slides of each split.

        Returns:
            Split → records by slide id. Where `split="patches"`, training and validation share the slide.

        Raises:
            ManifestError: As `selection`.
        """
        records, split = self.records(), self.selection().split
        if self.choice.split == "patches":
            return {"train": records, "val": records}
        ordered = sorted(records, key=lambda record: record.slide_id)
        return {
            name: [record for record in ordered if split[record.slide_id] == name]
            for name in SPLITS
            if name in split.values()
        }

    def prepare_data(self) -> None:
        """Draw the embedded slides if asked for, and cut the patches the store lacks.

        Raises:
            ManifestError: As `splits`.
            PandaError: The store cannot be written.
        """
        if self._result is None:
            self.splits()  # a split that cannot be made is known before hours of cutting
            self._result = extract_store(
                self.records(), self.settings, self.store_root, self.root, workers=self.extract_workers
            )
            self._result = self._stained(self._result)

    def setup(self, stage: str | None = None) -> None:
        """Write the manifests of the splits, and open them.

        Args:
            stage: All stages are set up at once.

        Raises:
            ManifestError: A split has no patches, or the manifests are faulty.
        """
        if self._sets:
            return
        records = self.records()
        # Processes that did not cut the patches themselves read what the first one left in the store.
        result = self._result or self._stained(load_store(records, self.settings, self.store_root, self.root))
        self._result, self.failures = result, result.failures
        if self.choice.split != "patches":
            manifests = write_patch_manifests(result, self.selection().split)
        elif result.failures:
            raise ManifestError(f"{records[0].slide_id}: {result.failures[0].message}")
        else:
            manifests = write_one_slide_manifests(
                result.store,
                result.slides[records[0].slide_id],
                seed=self.choice.seed,
                val_fraction=self.choice.val_fraction,
            )
        self._sets = {
            name: PatchSet(path, self.augment if name == "train" else None, self._stains)
            for name, path in manifests.items()
        }

    def _stained(self, result: StoreResult) -> StoreResult:
        """Find how the slides are stained, where that is needed; slides that cannot be read fail."""
        if self.normalize is None:
            return result
        result, self._stains = find_stains(result, self.settings, workers=self.extract_workers)
        return result

    def patch_set(self, split: Split) -> PatchSet:
        """Patches of a split.

        Args:
            split: `"train"`, `"val"` or `"test"`.

        Raises:
            ConfigError: There is no such split.
        """
        self.setup()
        if split not in self._sets:
            raise ConfigError(
                f"there is no {split} split: data.split is {self.choice.split}, data.test_fraction "
                f"{self.choice.test_fraction}"
            )
        return self._sets[split]

    def train_dataloader(self) -> DataLoader[Any]:
        """Training patches as `sampler` draws them; a last batch of one patch is left out (see `train_loader`)."""
        patches = self.patch_set("train")
        choose: BalancedDraws | HardDraws | None = None
        if self.sampler == "balanced":
            choose = BalancedDraws(patches.rows.fractions[:, 1] > 0, patches.rows.slide_index, self.tumor_share)
        elif self.sampler == "hard":
            choose = self._hard = HardDraws(len(patches))
            if self._losses is not None:
                choose.losses = self._losses
        return train_loader(patches, len(patches), self.batch_size, self.num_workers, self.trainer, choose=choose)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside the configuration: the losses that `sampler="hard"` draws by."""
        return {} if self._hard is None else {"losses": self._hard.losses}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self._losses = state_dict.get("losses")
        if self._hard is not None and self._losses is not None:
            self._hard.losses = self._losses

    def val_dataloader(self) -> DataLoader[Any]:
        """Validation patches in the order of their manifest."""
        return ordered_loader(self.patch_set("val"), self.batch_size, self.num_workers, self.trainer)

    def test_dataloader(self) -> DataLoader[Any]:
        """Test patches in the order of their manifest.

        Raises:
            ConfigError: There is no test split.
        """
        return ordered_loader(self.patch_set("test"), self.batch_size, self.num_workers)

    def train_mpp(self) -> list[float]:
        """µm per patch px of each training slide that has patches and states it: the mean of x and y."""
        self.setup()
        assert self._result is not None
        slides = [self._result.slides.get(record.slide_id) for record in self.splits()["train"]]
        return [mean_mpp(slide.mpp) for slide in slides if slide is not None and slide.mpp is not None]

    def um_per_px(self) -> dict[str, float | None]:
        """µm per patch px (the mean of x and y) of each slide that has patches, None where it is unknown."""
        self.setup()
        assert self._result is not None
        slides = self._result.slides.items()
        return {slide_id: mean_mpp(slide.mpp) if slide.mpp else None for slide_id, slide in slides}

    def learns_from(self) -> dict[str, dict[str, str]]:
        """Training and validation slides by id with what their patches were made from: slide, mask, row, settings."""
        self.setup()
        assert self._result is not None
        slides, splits = self._result.slides, self.splits()
        return {
            name: {r.slide_id: slides[r.slide_id].fingerprint for r in splits[name] if r.slide_id in slides}
            for name in ("train", "val")
        }

    def colours(self, augmented: bool = True) -> str:
        """What is done to the colours of slides, and of training patches alone, in words of the command line.

        Args:
            augmented: Whether what is trained on passes through the augmentation at all.
        """
        augment = self.augment.name if self.augment and augmented else "none"
        return f"data.normalize={self.normalize or 'null'} augment={augment}"

    def describe(self) -> dict[str, Any]:
        """Return the fields of `panda.report.run_summary.PatchDataSummary`: the data, its splits and what failed."""
        self.setup()
        return {
            "root": str(self.root),
            "store": str(self.store_folder),
            "settings": asdict(self.settings),
            "colours": self.colours(),
            "split": self.choice.split if self.choice.splits is None else str(self.choice.splits),
            "seed": self.choice.seed,
            "groups": self.selection().policy(),
            "slides": {name: len(patches.slide_ids) for name, patches in self._sets.items()},
            "patches": {name: len(patches) for name, patches in self._sets.items()},
            "tumor_patches": {
                name: int((patches.rows.fractions[:, 1] > 0).sum()) for name, patches in self._sets.items()
            },
            "left_out": self.selection().left_out,
            "failed": [asdict(failure) for failure in self.failures],
        }
