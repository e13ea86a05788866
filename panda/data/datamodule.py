"""The patches of a data folder, split and loaded, as a Lightning data module."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
from torch.utils.data import DataLoader

from panda.data.augment import Augmentation
from panda.data.loaders import loader_faults, ordered_loader, train_loader
from panda.data.manifest import (
    TABLE,
    SlideRecord,
    apply_groups,
    find_one_tumor_example,
    read_groups,
    read_manifest,
)
from panda.data.patches import Failure
from panda.data.patchset import PatchSet, write_one_slide_manifests, write_patch_manifests
from panda.data.settings import PatchSettings, StoreKind
from panda.data.splits import SPLITS, Split, fraction_faults, split_slides
from panda.data.store import StoreResult, extract_store, load_store, store_path
from panda.errors import ConfigError, ManifestError
from panda.wsi.geometry import mean_mpp
from panda.wsi.labels import PROVIDERS
from panda.wsi.readers import ReaderName
from panda.wsi.synthetic import SyntheticSpec, draw_dataset

FINDINGS: Mapping[str, Callable[[SlideRecord], bool]] = {
    "missing_slide": lambda record: not record.image_path.is_file(),
    "missing_mask": lambda record: record.mask_path is None or not record.mask_path.is_file(),
}
"""What may be found about a slide, by the name ``exclude`` uses."""


class PatchDataModule(pl.LightningDataModule):
    """Patches of the slides of a folder in PANDA's layout.

    Args:
        root: the folder that holds ``train.csv``.
        level: pyramid level of the patches, or None where ``mpp`` is given.
        mpp: µm per patch px, or None where ``level`` is given.
        patch_size: side of a patch in px at that resolution.
        stride: distance of neighbouring patches in px at that resolution; None for ``patch_size``.
        edge: what happens at the slide's edge, see `PatchSettings`.
        min_tissue: least share of tissue in a patch.
        store_root: the folder of the patch stores.
        store: what is kept of the pixels, see `panda.data.pixels`.
        batch_size: patches a batch.
        num_workers: processes that load, for each loader; 0 for none.
        seed: of the split. Loaders and augmentation follow torch's seed.
        split: ``"holdout"``: by slide or group. ``"patches"``: the patches of one slide are split into training
            and validation, without a test, whatever ``test_fraction`` is; its figures are not generalisation.
        val_fraction: share of the slides (or patches) for validation.
        test_fraction: share of the slides for the test; 0 for none.
        slide_id: the slide of ``split="patches"``; None for one that has cancer.
        provider: only this provider's slides; None for all.
        exclude: findings whose slides are left out: ``missing_mask``, ``missing_slide``.
        groups: CSV with image_id and patient (or group), which never straddle the split.
        reader: of the slides, see `Slide.open`.
        mpp_override: µm per level-0 px where the slides do not say, or say nonsense.
        augment: applied to training patches; None for none.
        extract_workers: slides cut at the same time, in threads.
        ignore_background: see `PatchSettings`.
        draw: draws the embedded slides at ``root`` on first use; None for a folder that exists.

    Raises:
        ConfigError: all faults of the arguments at once.
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
        split: Literal["holdout", "patches"] = "holdout",
        val_fraction: float = 0.2,
        test_fraction: float = 0.2,
        slide_id: str | None = None,
        provider: str | None = None,
        exclude: Sequence[str] = (),
        groups: str | Path | None = None,
        reader: ReaderName = "auto",
        mpp_override: float | None = None,
        augment: Augmentation | None = None,
        extract_workers: int = 2,
        draw: SyntheticSpec | None = None,
        store: StoreKind = "png",
        ignore_background: bool = False,
    ) -> None:
        super().__init__()
        self.root = Path(root)
        self.settings = PatchSettings(
            level, mpp, patch_size, stride, edge, min_tissue, reader, mpp_override, store, ignore_background
        )
        self.store_root = Path(store_root)
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.split = split
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction if split == "holdout" else 0.0
        self.slide_id = slide_id
        self.provider = provider
        self.exclude = tuple(exclude)
        self.groups = None if groups is None else Path(groups)
        self.augment = augment
        self.extract_workers = extract_workers
        self.draw = draw
        self.left_out: dict[str, int] = {}
        self.failures: list[Failure] = []
        self._records: list[SlideRecord] | None = None
        self._result: StoreResult | None = None
        self._sets: dict[Split, PatchSet] = {}
        if faults := [*self.settings.faults(), *self._faults()]:
            raise ConfigError(faults)

    def _faults(self) -> list[str]:
        """What is wrong with the arguments beside the patch settings."""
        faults = loader_faults(self.batch_size, self.num_workers)
        faults += fraction_faults(self.val_fraction, self.test_fraction)
        if self.split not in ("holdout", "patches"):
            faults.append(f"data.split is {self.split!r}: give holdout or patches")
        if self.seed < 0:
            faults.append(f"data.seed is {self.seed}: give 0 or more")
        if self.extract_workers < 1:
            faults.append(f"data.extract_workers is {self.extract_workers}: give at least 1")
        if self.provider is not None and self.provider not in PROVIDERS:
            known = ", ".join(sorted(PROVIDERS))
            faults.append(f"data.provider is {self.provider!r}: give {known}, or null for all")
        if unknown := [name for name in self.exclude if name not in FINDINGS]:
            faults.append(f"data.exclude has {', '.join(unknown)}: known are {', '.join(FINDINGS)}")
        if self.slide_id is not None and self.split == "holdout":
            faults.append(f"data.slide_id is {self.slide_id!r}, which is for data.split=patches: set one of them")
        if self.draw is None and not (self.root / TABLE).is_file():
            faults.append(f"data.root={self.root} has no {TABLE}: give the folder that holds it and train_images/")
        if self.groups is not None and not self.groups.is_file():
            faults.append(f"data.groups={self.groups} is no file: give a CSV with image_id and patient (or group)")
        if self.split == "patches" and self.settings.step < self.settings.patch_size:
            faults.append(
                f"data.stride is {self.settings.stride}: with data.split=patches validation patches would overlap "
                f"training patches; give null"
            )
        if self.split == "patches" and self.settings.edge == "shift":
            faults.append(
                "data.edge is 'shift': with data.split=patches the last patches would overlap others; give pad"
            )
        if self.groups is not None and self.split == "patches":
            faults.append("data.groups is set, but data.split=patches has one slide: remove one of them")
        return faults

    @property
    def store_folder(self) -> Path:
        """Folder of the patch store."""
        return store_path(self.store_root, self.root, self.settings)

    def records(self) -> list[SlideRecord]:
        """Slides that are used; those left out are counted in ``left_out`` by reason.

        Returns:
            The records with their groups, in the order of the table (one record where ``split="patches"``).

        Raises:
            ManifestError: the tables are faulty, or no slide is left.
        """
        if self._records is None:
            if self.draw is not None:
                draw_dataset(self.root, self.draw)
            records = read_manifest(self.root)
            kept: list[SlideRecord] = []
            left_out: Counter[str] = Counter()
            chosen = self._chosen_id() if self.split == "patches" else None
            for record in records:
                if reason := self._reason_to_leave_out(record, chosen):
                    left_out[reason] += 1
                else:
                    kept.append(record)
            self.left_out = dict(sorted(left_out.items()))
            if not kept:
                counts = ", ".join(f"{reason}: {count}" for reason, count in self.left_out.items())
                raise ManifestError(
                    f"{self.root}: none of {len(records)} slides is left ({counts}); change data.provider, "
                    f"data.exclude or data.slide_id"
                )
            if self.groups is not None:
                kept = apply_groups(kept, read_groups(self.groups))
            self._records = kept
        return list(self._records)

    def _chosen_id(self) -> str:
        """The slide of ``split="patches"``."""
        if self.slide_id is not None:
            return self.slide_id
        return find_one_tumor_example(self.root, self.provider).slide_id

    def _reason_to_leave_out(self, record: SlideRecord, chosen: str | None) -> str | None:
        """Why a slide is not used, the first reason that holds."""
        if chosen is not None and record.slide_id != chosen:
            return "other_slide"
        if self.provider not in (None, record.provider):
            return "other_provider"
        return next((name for name in self.exclude if FINDINGS[name](record)), None)

    def splits(self) -> dict[Split, list[SlideRecord]]:
        """Slides of each split.

        Returns:
            Split → records by slide id. Where ``split="patches"``, training and validation share the slide.

        Raises:
            ManifestError: as `records`, or a split would be empty.
        """
        records = self.records()
        if self.split == "patches":
            return {"train": records, "val": records}
        split = self._split_of(records)
        ordered = sorted(records, key=lambda record: record.slide_id)
        return {
            name: [record for record in ordered if split[record.slide_id] == name]
            for name in SPLITS
            if name in split.values()
        }

    def _split_of(self, records: Sequence[SlideRecord]) -> dict[str, Split]:
        """Slide id → split."""
        return split_slides(records, seed=self.seed, val_fraction=self.val_fraction, test_fraction=self.test_fraction)

    def prepare_data(self) -> None:
        """Draw the embedded slides if asked for, and cut the patches the store lacks.

        Raises:
            ManifestError: as `splits`.
            PandaError: the store cannot be written.
        """
        if self._result is None:
            self.splits()  # a split that cannot be made is known before hours of cutting
            self._result = extract_store(
                self.records(), self.settings, self.store_root, self.root, workers=self.extract_workers
            )

    def setup(self, stage: str | None = None) -> None:
        """Write the manifests of the splits, and open them.

        Args:
            stage: all stages are set up at once.

        Raises:
            ManifestError: a split has no patches, or the manifests are faulty.
        """
        if self._sets:
            return
        records = self.records()
        # Processes that did not cut the patches themselves read what the first one left in the store.
        result = self._result or load_store(records, self.settings, self.store_root, self.root)
        self._result, self.failures = result, result.failures
        if self.split == "holdout":
            manifests = write_patch_manifests(result, self._split_of(records))
        elif result.failures:
            raise ManifestError(f"{records[0].slide_id}: {result.failures[0].message}")
        else:
            manifests = write_one_slide_manifests(
                result.store,
                result.slides[records[0].slide_id],
                seed=self.seed,
                val_fraction=self.val_fraction,
            )
        self._sets = {
            name: PatchSet(path, self.augment if name == "train" else None) for name, path in manifests.items()
        }

    def patch_set(self, split: Split) -> PatchSet:
        """Patches of a split.

        Args:
            split: ``"train"``, ``"val"`` or ``"test"``.

        Raises:
            ConfigError: there is no such split.
        """
        self.setup()
        if split not in self._sets:
            raise ConfigError(
                f"there is no {split} split: data.split is {self.split}, data.test_fraction {self.test_fraction}"
            )
        return self._sets[split]

    def train_dataloader(self) -> DataLoader[Any]:
        """Training patches in random order; a last batch of a single patch is left out (see `train_loader`)."""
        patches = self.patch_set("train")
        return train_loader(patches, len(patches), self.batch_size, self.num_workers, self.trainer)

    def val_dataloader(self) -> DataLoader[Any]:
        """Validation patches in the order of their manifest."""
        return ordered_loader(self.patch_set("val"), self.batch_size, self.num_workers)

    def test_dataloader(self) -> DataLoader[Any]:
        """Test patches in the order of their manifest.

        Raises:
            ConfigError: there is no test split.
        """
        return ordered_loader(self.patch_set("test"), self.batch_size, self.num_workers)

    def train_mpp(self) -> list[float]:
        """µm per patch px of each training slide that has patches and states it: the mean of x and y."""
        self.setup()
        assert self._result is not None
        slides = [self._result.slides.get(record.slide_id) for record in self.splits()["train"]]
        return [mean_mpp(slide.mpp) for slide in slides if slide is not None and slide.mpp is not None]

    def describe(self) -> dict[str, Any]:
        """Say what the data is, as plain data for ``summary.json``.

        Returns:
            Where it lies, how it was split, slides and patches of each split, what was left out and what failed.
        """
        self.setup()
        return {
            "root": str(self.root),
            "store": str(self.store_folder),
            "settings": asdict(self.settings),
            "split": self.split,
            "seed": self.seed,
            "groups": self.policy(),
            "slides": {name: len(patches.slide_ids) for name, patches in self._sets.items()},
            "patches": {name: len(patches) for name, patches in self._sets.items()},
            "tumor_patches": {
                name: int((patches.rows.fractions[:, 1] > 0).sum()) for name, patches in self._sets.items()
            },
            "left_out": dict(self.left_out),
            "failed": [asdict(failure) for failure in self.failures],
        }

    def policy(self) -> str:
        """What keeps the splits apart, in a sentence."""
        if self.split == "patches":
            return (
                f"None: the patches of one slide ({self.records()[0].slide_id}) are split at random. "
                f"The figures say nothing of other slides: they are not generalisation."
            )
        if self.groups is None:
            return (
                "By slide: no patch of a slide straddles the split. Patients are unknown, so two slides of one "
                "patient may be on both sides."
            )
        count = len({record.group for record in self.records()})
        return f"By group: {count} groups of {self.groups}; no slide of a group straddles the split."
