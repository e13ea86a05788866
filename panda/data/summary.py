"""The data of a run in `summary.json`: its slides, their splits, and the patches cut from them."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field, JsonValue, NonNegativeInt


class DataSummary(BaseModel, frozen=True, strict=True, extra="forbid", allow_inf_nan=False):
    """The slides of a run."""

    root: Annotated[str, Field(description="Folder of the data.")]
    slides: Annotated[dict[str, NonNegativeInt], Field(description="Split to its number of slides.")]
    left_out: Annotated[dict[str, NonNegativeInt], Field(description="Reason to the number of slides left out.")]
    colours: Annotated[
        str | None,
        Field(description="Normalization of all slides, and augmentation of training patches. Absent in older runs."),
    ] = None
    groups: Annotated[str, Field(description="What keeps the splits apart.")]


class PatchDataSummary(DataSummary, frozen=True):
    """The slides of a run and the patches that were cut from them."""

    store: Annotated[str, Field(description="Folder of the patches.")]
    settings: Annotated[dict[str, JsonValue], Field(description="How patches were cut: keys of `data`.")]
    split: Annotated[str, Field(description="`holdout`, `kfold`, `patches` of one slide, or the file of the splits.")]
    seed: Annotated[int, Field(description="Seed of the split.")]
    patches: Annotated[dict[str, NonNegativeInt], Field(description="Split to its number of patches.")]
    tumor_patches: Annotated[
        dict[str, NonNegativeInt], Field(description="Split to its number of patches with cancer.")
    ]
    failed: Annotated[list[dict[str, str]], Field(description="Slides that failed: slide_id, stage, error, message.")]
