"""How patches are cut, checked in words of the config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from panda.wsi.mpp import MPP_MAX, MPP_MIN
from panda.wsi.readers import ReaderName

StoreKind = Literal["png", "packed", "slide"]
"""How a store keeps pixels, see `panda.data.pixels`."""


@dataclass(frozen=True)
class PatchSettings:
    """How patches are cut; together with the slides it says what a patch store holds.

    Attributes:
        level: pyramid level of the patches, or None where ``mpp`` is given.
        mpp: µm per patch px: read at the nearest finer level and resampled. None where ``level`` is given.
        patch_size: side of a patch in px at that resolution.
        stride: distance of neighbouring patches in px at that resolution; None for ``patch_size``.
        edge: ``"pad"``: white past the slide's edge; ``"shift"``: the last patch moves inside.
        min_tissue: least share of tissue in a patch.
        reader: of the slides, see `Slide.open`.
        mpp_override: µm per level-0 px where the slides do not say, or say nonsense.
        store: what is kept of the pixels: ``"png"``: files; ``"packed"``: mapped arrays; ``"slide"``: nothing.
        ignore_background: pixels of mask code 0 (background or unknown) and past the slide's edge count in no loss.
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
        """Say what is wrong with the settings, one sentence a fault, in words of the ``data`` config."""
        faults = resolution_faults(self.level, self.mpp)
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
        if self.reader not in get_args(ReaderName):
            faults.append(f"data.reader is {self.reader!r}: give {', '.join(get_args(ReaderName))}")
        if self.store not in get_args(StoreKind):
            faults.append(f"data.store is {self.store!r}: give {', '.join(get_args(StoreKind))}")
        if self.mpp_override is not None and not MPP_MIN <= self.mpp_override <= MPP_MAX:
            faults.append(
                f"data.mpp_override is {self.mpp_override}: give µm per level-0 px, {MPP_MIN} to {MPP_MAX:g}, or null"
            )
        return faults

    @property
    def step(self) -> int:
        """Distance of neighbouring patches in px at the patches' resolution."""
        return self.patch_size if self.stride is None else self.stride


def resolution_faults(level: int | None, mpp: float | None, prefix: str = "data") -> list[str]:
    """Say what is wrong with a request for a resolution, in words of the config.

    Args:
        level: pyramid level, or None.
        mpp: µm per px, or None.
        prefix: the config node that holds both keys.

    Returns:
        One sentence a fault, none where exactly one of the two is given and in range.
    """
    if (level is None) == (mpp is None):
        given = "neither" if level is None else "both"
        return [f"{prefix}.level is {level} and {prefix}.mpp is {mpp}: give exactly one, not {given} (the other null)"]
    if level is not None and level < 0:
        return [f"{prefix}.level is {level}: give 0 (full resolution) or a higher pyramid level"]
    if mpp is not None and not mpp > 0:
        return [f"{prefix}.mpp is {mpp}: give µm per px, over 0"]
    return []
