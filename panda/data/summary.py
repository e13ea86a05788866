"""The data of a run in `summary.json`: its slides, their splits, and the patches cut from them."""

from __future__ import annotations

from pydantic import Field, JsonValue, NonNegativeInt

from panda.stored import Plain


class DataSummary(Plain, frozen=True):
    """The slides of a run."""

    root: str = Field(description="Folder or table of the data.")
    slides: dict[str, NonNegativeInt] = Field(description="Split to its number of slides.")
    left_out: dict[str, NonNegativeInt] = Field(description="Reason to the number of slides left out.")
    colours: str | None = Field(
        default=None,
        description="Normalization of all slides, and augmentation of training patches. Absent in older runs.",
    )
    groups: str = Field(description="What keeps the splits apart.")


class PatchDataSummary(DataSummary, frozen=True):
    """The slides of a run and the patches that were cut from them."""

    store: str = Field(description="Folder of the patches.")
    manifests: dict[str, str] = Field(
        default={}, description="Split to its list of patches, which `panda.PatchSet` takes. Absent in older runs."
    )
    settings: dict[str, JsonValue] = Field(description="How patches were cut: keys of `data`.")
    split: str = Field(description="`holdout`, `kfold`, `patches` of one slide, or the file of the splits.")
    seed: NonNegativeInt = Field(description="Seed of the split.")
    patches: dict[str, NonNegativeInt] = Field(description="Split to its number of patches.")
    tumor_patches: dict[str, NonNegativeInt] = Field(description="Split to its number of patches with cancer.")
    failed: list[dict[str, str]] = Field(description="Slides that failed: slide_id, stage, error, message.")
