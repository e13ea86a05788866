"""Settings of the `data` config: how slides are opened, how patches are cut, which slides are used."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from panda.choices import name_command
from panda.data.findings import FINDINGS, MISSING, REFUSED_ROWS, find_file_check
from panda.data.slide_rows import TABLE
from panda.data.splits import check_fractions
from panda.errors import suggest
from panda.settings import Names, PathValue, Seed, Settings, Share, rule
from panda.stored import PatchSide
from panda.synthetic.dataset import SyntheticSpec
from panda.wsi.annotations.source import AnnotationSource
from panda.wsi.classes import BINARY, ClassSet
from panda.wsi.geometry import Resolution
from panda.wsi.grid import Grid, tissue_grid
from panda.wsi.label_maps import LabelMap, find_label_map, get_label_maps
from panda.wsi.label_mask import LabelMask
from panda.wsi.mpp import MPP_MAX, MPP_MIN
from panda.wsi.readers import ReaderName
from panda.wsi.slide import ResolutionRequest, Slide, SlideOptions
from panda.wsi.tissue import TissueMap

SplitMethod = Literal["holdout", "kfold", "patches"]
StoreKind = Literal["png", "packed", "slide"]
AUDIT = f"{name_command('audit')} data=panda data.root=…"
"""The command that finds the findings."""
_FILES = {
    "findings": f"findings.csv of an audit ({AUDIT})",
    "groups": "a CSV with slide_id and patient (or group)",
    "splits": "splits.csv of a run",
}


class ResolutionSettings(Settings):
    """The resolution of patches or tiles, given one way or the other.

    Attributes:
        level: Pyramid level; None if `mpp` is given.
        mpp: µm per px: read at the nearest finer level and resampled. None if `level` is given.
    """

    level: int | None = Field(default=1, ge=0, description="0 is full resolution")
    mpp: float | None = Field(default=None, ge=MPP_MIN, le=MPP_MAX, description="µm per px")

    @rule
    def _check_resolution(self) -> Iterator[str]:
        if (self.level is None) == (self.mpp is None):
            given = "neither" if self.level is None else "both"
            yield f"{self.setting('level')} and {self.setting('mpp')}: give exactly one, not {given} (the other null)"

    @property
    def resolution(self) -> ResolutionRequest:
        """The request that resolves to a working resolution for each slide."""
        return ResolutionRequest(self.level, self.mpp)


class SlideSettings(Settings):
    """How slides are opened, see `SlideOptions`."""

    node: ClassVar[str] = "data"

    reader: ReaderName = "auto"
    mpp_override: float | None = Field(default=None, ge=MPP_MIN, le=MPP_MAX, description="µm per level-0 px")
    allow_unknown_mpp: bool = Field(default=False, exclude=True)  # it changes no patch

    @property
    def slide_options(self) -> SlideOptions:
        """The options that open slides."""
        return SlideOptions(self.reader, self.mpp_override, self.allow_unknown_mpp)


class LabelSettings(Settings):
    """What labels mean, besides their label maps.

    Attributes:
        empty_means_benign: A file of annotations without any object means a slide without cancer; else it is refused.
    """

    node: ClassVar[str] = "data"

    empty_means_benign: bool = False

    def find_label_map(self, provider: str) -> LabelMap:
        """Return the label map of a provider with these settings, see `panda.wsi.label_maps.find_label_map`."""
        found = find_label_map(provider)
        return found.model_copy(update={"empty_means_benign": True}) if self.empty_means_benign else found


class TableSettings(SlideSettings, LabelSettings):
    """The table of slides: of a folder in PANDA's layout, or of another layout.

    Attributes:
        root: The folder that holds `train.csv`; None if `table` is given.
        table: A CSV whose column `path` has the file of each slide; None if `root` is given.
        labels: The label map of slides without a provider; None if the table has a provider for each.
        draw: Draws the embedded slides at `root` on first use; None for slides that exist.
    """

    root: PathValue | None = None
    table: PathValue | None = None
    labels: str | None = None
    draw: SyntheticSpec | None = None

    @rule
    def _check_table(self) -> Iterator[str]:
        if (self.root is None) == (self.table is None):
            yield "data.root and data.table: give one of them, root for PANDA's layout, table for a CSV of your own"
        elif self.table is not None and not self.table.is_file():
            yield f"{self.setting('table')} is no file: give a CSV with a column path and one row a slide"
        elif self.root is not None and self.draw is None and not (self.root / TABLE).is_file():
            yield f"{self.setting('root')} has no {TABLE}: give the folder that holds it and train_images/"

    @rule
    def _check_labels(self) -> Iterator[str]:
        if self.labels is not None and self.labels not in (known := get_label_maps()):
            yield (
                f"{self.setting('labels')} is no label map{suggest(self.labels, known)}: describe the codes of your "
                f"masks in conf/label_maps/{self.labels}.yaml, or give another"
            )

    @property
    def source(self) -> Path:
        """The folder or the table of the slides."""
        source = self.root if self.table is None else self.table
        assert source is not None
        return source


class CutSettings(ResolutionSettings, SlideSettings, LabelSettings):
    """How patches are cut. See also the base classes.

    Attributes:
        patch_size: Side of a patch in px at that resolution.
        stride: Distance of neighbouring patches in px at that resolution; None for `patch_size`.
        edge: `"pad"`: white past the slide's edge; `"shift"`: the last patch moves inside.
        min_tissue: Least share of tissue in a patch.
        store: Which pixels are stored: `"png"`: files; `"packed"`: mapped arrays; `"slide"`: none.
        ignore_background: Px with an unlabelled mask code (see `conf/label_maps`) and px past the slide's edge count
            in no loss.
    """

    patch_size: PatchSide = 256
    stride: int | None = Field(default=None, ge=1, description="null lays patches side by side")
    edge: Literal["pad", "shift"] = "pad"
    min_tissue: Share = 0.1
    store: StoreKind = "png"
    ignore_background: bool = False

    @rule
    def _check_stride(self) -> Iterator[str]:
        if self.stride is not None and self.stride > self.patch_size:
            yield (
                f"{self.setting('stride')} must be at most {self.setting('patch_size')}, or null for patches side by "
                "side: a larger stride would leave tissue out"
            )

    @property
    def step(self) -> int:
        """Distance of neighbouring patches in px at the patches' resolution."""
        return self.patch_size if self.stride is None else self.stride

    def lay_grid(self, resolution: Resolution, tissue: TissueMap) -> Grid:
        """Return the patches of a slide."""
        return tissue_grid(resolution, tissue, self.patch_size, self.step, edge=self.edge, min_tissue=self.min_tissue)


class PatchSettings(CutSettings):
    """What defines the content of a patch store, with its slides.

    Attributes:
        classes: The classes of its targets.
    """

    classes: ClassSet = BINARY

    def open_labels(self, path: Path, slide: Slide, provider: str, saved: Path | None = None) -> LabelMask:
        """Open the label file of a slide, see `LabelMask.open`; `saved` may have annotations as arrays."""
        label_maps = {provider: self.find_label_map(provider)}
        if saved is not None and (source := AnnotationSource.load(path, saved)) is not None:
            return LabelMask(source, provider, label_maps)
        return LabelMask.open(path, slide, provider, label_maps)

    def read_target(self, mask: LabelMask, resolution: Resolution, corner: tuple[int, int]) -> NDArray[np.uint8]:
        """Read the target of the patch at a corner in level-0 px, see `LabelMask.read_target`."""
        size = (self.patch_size, self.patch_size)
        return mask.read_target(
            resolution, corner, size, ignore_background=self.ignore_background, classes=self.classes
        )


class SelectionSettings(Settings):
    """Which slides are used and how they are split.

    Attributes:
        split: `"holdout"`: three parts; `"kfold"`: of `folds` folds, `fold` is the test and the next one
            validation; `"patches"`: the patches of one slide.
        folds: Number of folds, at least 3 (2 with `test_provider`).
        fold: Number of the test fold, from 0.
        seed: Seed of the split.
        val_fraction: Share of the slides for validation.
        test_fraction: Share for the test; 0 for none.
        slide_id: The slide of `split="patches"`; None for one that has cancer.
        provider: Only this provider's slides; None for all.
        test_provider: Its slides are the test split and all others train and validate; None for no such test.
        exclude: Findings whose slides are left out.
        findings: `findings.csv` of an audit; None if `exclude` only has findings that the files themselves show.
        groups: CSV with image_id and patient (or group), which never straddle the split.
        splits: `splits.csv` of a run, whose split is used unchanged.
    """

    node: ClassVar[str] = "data"

    split: SplitMethod = "holdout"
    folds: int = 5
    fold: int = 0
    seed: Seed = 0
    val_fraction: float = 0.2
    test_fraction: float = 0.2
    slide_id: str | None = None
    provider: str | None = None
    test_provider: str | None = None
    exclude: Names = ()
    findings: PathValue | None = None
    groups: PathValue | None = None
    splits: PathValue | None = None

    @rule
    def _check_fractions(self) -> Iterator[str]:
        if self.split != "kfold":
            yield from check_fractions(self.val_fraction, 0.0 if self.split == "patches" else self.test_fraction)

    @rule
    def _check_folds(self) -> Iterator[str]:
        least = 2 if self.test_provider else 3
        if self.split == "kfold" and self.folds < least:
            yield f"{self.setting('folds')} must be at least {least}, one per split"
        elif self.split == "kfold" and not 0 <= self.fold < self.folds:
            yield f"{self.setting('fold')} must be from 0 to {self.folds - 1}, of {self.setting('folds')}"

    @rule
    def _check_providers(self) -> Iterator[str]:
        known = get_label_maps()
        for key in ("provider", "test_provider"):
            if getattr(self, key) not in (None, *known):
                yield f"{self.setting(key)} must be {', '.join(known)}, or null"
        if self.provider and self.test_provider:
            yield "data.provider and data.test_provider are both set: the test needs both providers' slides"

    @rule
    def _check_slide_id(self) -> Iterator[str]:
        if self.slide_id is not None and self.split != "patches":
            yield f"{self.setting('slide_id')} is for data.split=patches: set one of them"

    @rule
    def _check_exclude(self) -> Iterator[str]:
        if unknown := [name for name in self.exclude if name not in FINDINGS and not name.startswith(MISSING)]:
            yield f"data.exclude has {', '.join(unknown)}: known are {', '.join(FINDINGS)}, {MISSING}COLUMN"
        if refused := [name for name in self.exclude if name in REFUSED_ROWS]:
            yield f"data.exclude has {', '.join(refused)}: such rows are refused anyway; correct or remove them"

    @rule
    def _check_findings(self) -> Iterator[str]:
        known = FINDINGS.keys() - {*REFUSED_ROWS}
        audited = [name for name in self.exclude if name in known and find_file_check(name) is None]
        if audited and self.findings is None:
            yield f"data.exclude has {', '.join(audited)}: give data.findings=audit/findings.csv, from {AUDIT}"

    @rule
    def _check_files(self) -> Iterator[str]:
        for key, what in _FILES.items():
            path = getattr(self, key)
            if path is not None and not path.is_file():
                yield f"{self.setting(key)} is no file: give {what}"

    @rule
    def _check_split_keys(self) -> Iterator[str]:
        if self.split == "patches":
            for key in ("groups", "splits", "test_provider"):
                if getattr(self, key) is not None:
                    yield f"data.{key} is set, but data.split=patches has one slide: remove one of them"
        if self.splits is not None and self.test_provider is not None:
            yield "data.splits and data.test_provider are both set: the file says what is tested on"

    def describe_split(self) -> str:
        """Return how the slides are split, as typed on a command line."""
        if self.splits is not None:
            return f"data.splits={self.splits}"
        return f"data.split={self.split}" + (
            f" with data.test_provider={self.test_provider}" * bool(self.test_provider)
        )

    def list_idle_keys(self) -> tuple[str, ...]:
        """Return the keys that have no effect on the split of `describe_split`."""
        if self.splits is not None:
            return tuple(f"data.{key}" for key in ("split", "folds", "fold", "seed", "val_fraction", "test_fraction"))
        if self.split == "kfold":
            return "data.val_fraction", "data.test_fraction"
        kfold = ("data.folds", "data.fold")
        if self.split == "patches":
            return (*kfold, "data.test_fraction")
        return (*kfold, "data.test_fraction") if self.test_provider else kfold
