"""How patches are cut and which slides are used, checked in words of the config."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, get_args

from pydantic import Field

from panda.data.findings import FILE_FINDINGS, FINDINGS, REFUSED_ROWS
from panda.data.manifest import TABLE
from panda.data.pixel_stores import StoreKind
from panda.data.splits import fraction_faults
from panda.settings import PathValue, Settings, rule
from panda.synthetic.dataset import SyntheticSpec
from panda.wsi.label_maps import known_label_maps
from panda.wsi.resolution_request import ResolutionRequest
from panda.wsi.slide import ReaderName, SlideOptions

How = Literal["holdout", "kfold", "patches"]
AUDIT = "python audit.py data=panda data.root=…"
"""The command that looks for findings."""


class ResolutionSettings(Settings):
    """The resolution of patches or tiles, given one way or the other.

    Attributes:
        level: Pyramid level; None if `mpp` is given.
        mpp: µm per px: read at the nearest finer level and resampled. None if `level` is given.
    """

    level: int | None = Field(default=1, ge=0, description="0 is full resolution")
    mpp: float | None = Field(default=None, gt=0, description="µm per px")

    @rule
    def _check_one_is_given(self) -> Iterator[str]:
        if (self.level is None) == (self.mpp is None):
            given = "neither" if self.level is None else "both"
            yield f"{self.setting('level')} and {self.setting('mpp')}: give exactly one, not {given} (the other null)"

    @property
    def resolution(self) -> ResolutionRequest:
        """The same as the object that finds the resolution of a slide."""
        return ResolutionRequest(self.level, self.mpp)


class SlideSettings(Settings):
    """How slides are opened.

    Attributes:
        reader: See `SlideOptions`.
        mpp_override: See `SlideOptions`.
    """

    node: ClassVar[str] = "data"

    reader: ReaderName = "auto"
    mpp_override: float | None = None

    @property
    def slide_options(self) -> SlideOptions:
        """The same as the object that opens slides."""
        return SlideOptions(self.reader, self.mpp_override)

    @rule
    def _check_slide_options(self) -> Iterator[str]:
        yield from self.slide_options.faults(f"{self.node}.")


class FolderSettings(SlideSettings):
    """A folder in PANDA's layout.

    Attributes:
        root: The folder that holds `train.csv`.
        draw: Draws the embedded slides at `root` on first use; None for a folder that exists.
    """

    root: PathValue
    draw: SyntheticSpec | None = None

    @rule
    def _check_root(self) -> Iterator[str]:
        if self.draw is None and not (self.root / TABLE).is_file():
            yield f"{self.setting('root')} has no {TABLE}: give the folder that holds it and train_images/"


@dataclass(frozen=True)
class PatchSettings:
    """How patches are cut; together with the slides it says what a patch store holds.

    Attributes:
        level: Pyramid level of the patches, see `ResolutionRequest`.
        mpp: µm per patch px, see `ResolutionRequest`.
        patch_size: Side of a patch in px at that resolution.
        stride: Distance of neighbouring patches in px at that resolution; None for `patch_size`.
        edge: `"pad"`: white past the slide's edge; `"shift"`: the last patch moves inside.
        min_tissue: Least share of tissue in a patch.
        reader: See `SlideOptions`.
        mpp_override: See `SlideOptions`.
        store: What is kept of the pixels: `"png"`: files; `"packed"`: mapped arrays; `"slide"`: nothing.
        ignore_background: Px with an unlabelled mask code (see `conf/label_maps`) and px past the slide's edge count
            in no loss.
    """

    level: int | None = 1
    mpp: float | None = None
    patch_size: int = 256
    stride: int | None = None
    edge: Literal["pad", "shift"] = "pad"
    min_tissue: float = 0.1
    reader: ReaderName = "auto"
    mpp_override: float | None = None
    store: StoreKind = "png"
    ignore_background: bool = False

    def faults(self) -> list[str]:
        """Say what is wrong with the settings, one sentence a fault, in words of the `data` config."""
        faults = self.resolution.faults("data.")
        if self.patch_size < 1:
            faults.append(f"data.patch_size is {self.patch_size}: give at least 1 px")
        if self.stride is not None and not 1 <= self.stride <= self.patch_size:
            faults.append(
                f"data.stride is {self.stride}: give 1 to data.patch_size ({self.patch_size}) px, or null for "
                f"patches side by side; a larger stride would leave tissue out"
            )
        if self.edge not in ("pad", "shift"):
            faults.append(f"data.edge is {self.edge!r}: give pad or shift")
        if not 0 <= self.min_tissue <= 1:
            faults.append(f"data.min_tissue is {self.min_tissue}: give a share from 0 to 1")
        if self.store not in get_args(StoreKind):
            faults.append(f"data.store is {self.store!r}: give {', '.join(get_args(StoreKind))}")
        return faults + self.slide_options.faults("data.")

    @property
    def slide_options(self) -> SlideOptions:
        """How the slides are opened."""
        return SlideOptions(self.reader, self.mpp_override)

    @property
    def resolution(self) -> ResolutionRequest:
        """The resolution of the patches."""
        return ResolutionRequest(self.level, self.mpp)

    @property
    def step(self) -> int:
        """Distance of neighbouring patches in px at the patches' resolution."""
        return self.patch_size if self.stride is None else self.stride


@dataclass(frozen=True)
class SelectionSettings:
    """Which slides are used and how they are split, in words of the `data` config.

    Attributes:
        split: `"holdout"`: three parts; `"kfold"`: of `folds` folds, `fold` is the test and the next one
            validation; `"patches"`: the patches of one slide.
        folds: Number of folds, at least 3 (2 with `test_provider`).
        fold: From 0.
        seed: Of the split.
        val_fraction: Share of the slides for validation.
        test_fraction: Share for the test; 0 for none.
        slide_id: The slide of `split="patches"`.
        provider: Only this provider's slides; None for all.
        test_provider: All of its slides are the test, the others' are trained and validated on; None for no such test.
        exclude: Findings whose slides are left out.
        findings: `findings.csv` of an audit; None where `exclude` asks only for what the files show.
        groups: CSV with image_id and patient (or group), which never straddle the split.
        splits: `splits.csv` of a run: its split is taken over as it is.
    """

    split: How = "holdout"
    folds: int = 5
    fold: int = 0
    seed: int = 0
    val_fraction: float = 0.2
    test_fraction: float = 0.2
    slide_id: str | None = None
    provider: str | None = None
    test_provider: str | None = None
    exclude: tuple[str, ...] = ()
    findings: Path | None = None
    groups: Path | None = None
    splits: Path | None = None

    def faults(self) -> list[str]:
        """Say what is wrong with the settings, one sentence a fault."""
        return [*self._split_faults(), *self._slide_faults(), *self._file_faults()]

    def _split_faults(self) -> list[str]:
        faults = []
        if self.split not in get_args(How):
            faults.append(f"data.split is {self.split!r}: give {', '.join(get_args(How))}")
        least = 2 if self.test_provider else 3
        if self.split != "kfold":
            faults += fraction_faults(self.val_fraction, self.test_fraction)
        elif self.folds < least:
            faults.append(f"data.folds is {self.folds}: give at least {least}, one a split")
        elif not 0 <= self.fold < self.folds:
            faults.append(f"data.fold is {self.fold}: give 0 to {self.folds - 1}, of data.folds={self.folds}")
        if not 0 <= self.seed < 2**32:
            faults.append(f"data.seed is {self.seed}: give 0 to {2**32 - 1}")
        return faults

    def _slide_faults(self) -> list[str]:
        known = known_label_maps()
        faults = [
            f"data.{key} is {value!r}: give {', '.join(known)}, or null"
            for key, value in (("provider", self.provider), ("test_provider", self.test_provider))
            if value not in (None, *known)
        ]
        if self.provider and self.test_provider:
            faults.append("data.provider and data.test_provider are both set: the test needs both providers' slides")
        if self.slide_id is not None and self.split != "patches":
            faults.append(f"data.slide_id is {self.slide_id!r}, which is for data.split=patches: set one of them")
        if unknown := [name for name in self.exclude if name not in FINDINGS]:
            faults.append(f"data.exclude has {', '.join(unknown)}: known are {', '.join(FINDINGS)}")
        if refused := [name for name in self.exclude if name in REFUSED_ROWS]:
            faults.append(
                f"data.exclude has {', '.join(refused)}: such rows are refused anyway; correct or remove them"
            )
        audited = [name for name in self.exclude if name in FINDINGS and name not in (*FILE_FINDINGS, *REFUSED_ROWS)]
        if audited and self.findings is None:
            faults.append(f"data.exclude has {', '.join(audited)}: give data.findings=audit/findings.csv, from {AUDIT}")
        return faults

    def _file_faults(self) -> list[str]:
        files = {
            "findings": (self.findings, f"findings.csv of an audit ({AUDIT})"),
            "groups": (self.groups, "a CSV with image_id and patient (or group)"),
            "splits": (self.splits, "splits.csv of a run"),
        }
        faults = [
            f"data.{key}={path} is no file: give {what}"
            for key, (path, what) in files.items()
            if path is not None and not path.is_file()
        ]
        if self.split == "patches":
            faults += [
                f"data.{key} is set, but data.split=patches has one slide: remove one of them"
                for key in ("groups", "splits", "test_provider")
                if getattr(self, key) is not None
            ]
        if self.splits is not None and self.test_provider is not None:
            faults.append("data.splits and data.test_provider are both set: the file says what is tested on")
        return faults

    def how(self) -> str:
        """How the slides are split, in the words of the command line."""
        if self.splits is not None:
            return f"data.splits={self.splits}"
        return f"data.split={self.split}" + (
            f" with data.test_provider={self.test_provider}" * bool(self.test_provider)
        )

    def idle(self) -> tuple[str, ...]:
        """Keys of the config that decide nothing with `how`."""
        if self.splits is not None:
            return tuple(f"data.{key}" for key in ("split", "folds", "fold", "seed", "val_fraction", "test_fraction"))
        if self.split == "kfold":
            return "data.val_fraction", "data.test_fraction"
        kfold = ("data.folds", "data.fold")
        if self.split == "patches":
            return (*kfold, "data.test_fraction")
        return (*kfold, "data.test_fraction") if self.test_provider else kfold
