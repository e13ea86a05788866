"""Find the regions of a slide where its map is wrong: cancer that is missed, and false alarms.

A px is wrong as in the score of the slide (`panda.inference.evaluate`): before the clean-up, labelled cancer outside
the tissue is missed, and tissue that no tile covered is called no cancer. So all wrong px of a kind are the false
negatives or the false positives of the slide. All classes of cancer count as one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from panda.data.manifest import SlideRecord
from panda.inference.canvas_store import Canvas
from panda.inference.regions import compute_area_mm2
from panda.inference.truth import read_bands
from panda.stored import Plain, Share
from panda.wsi.geometry import Resolution, round_px
from panda.wsi.label_mask import LabelMask
from panda.wsi.runs import ConnectedRuns, Runs, connect_runs
from panda.wsi.tissue import TissueMap

ErrorKind = Literal["missed", "false_alarm"]
KINDS: tuple[ErrorKind, ErrorKind] = ("missed", "false_alarm")
ERRORS_FILE = "errors.json"
"""The errors of a slide in its folder."""
LISTED = 20
"""Largest regions of a kind that are kept of a slide."""


class ErrorRegion(Plain, frozen=True):
    """A connected region of wrong px.

    Attributes:
        kind: Missed cancer or a false alarm.
        number: Number from 1; the largest region of its kind on the slide is first.
        x: Left edge of its box, level-0 px; the same for the next three.
        y: Upper edge.
        width: Width.
        height: Height.
        area_px: Its px of the map.
        area_mm2: Area, None if µm/px is unknown.
        mean_probability: Mean probability of cancer over its px; 0 outside the tissue.
        picture: Left, top and side of its picture in level-0 px, None without a picture.
    """

    kind: ErrorKind
    number: PositiveInt
    x: NonNegativeInt
    y: NonNegativeInt
    width: PositiveInt
    height: PositiveInt
    area_px: PositiveInt
    area_mm2: NonNegativeFloat | None
    mean_probability: Share
    picture: tuple[int, int, PositiveInt] | None = None


class ErrorTotal(Plain, frozen=True):
    """All wrong px of a kind on a slide.

    Attributes:
        regions: Regions that are not smaller than the clean-up leaves.
        area_px: All px of the map, also those of smaller regions.
        area_mm2: Their area, None if µm/px is unknown.
    """

    regions: NonNegativeInt
    area_px: NonNegativeInt
    area_mm2: NonNegativeFloat | None


class SlideErrors(Plain, frozen=True):
    """The errors of a slide: the content of its `errors.json`.

    Attributes:
        slide_id: Name of the slide.
        provider: Its provider.
        isup_grade: Its ISUP grade, None without one.
        gleason_score: Its Gleason score as in the table of labels.
        mpp: µm/px at level 0 as (x, y), None if unknown.
        threshold: Probability at which a pixel counts as tumour.
        missed: All missed cancer.
        false_alarm: All false alarms.
        regions: The largest regions, missed ones first, then from large to small.
    """

    slide_id: str
    provider: str
    isup_grade: int | None
    gleason_score: str
    mpp: tuple[float, float] | None
    threshold: Share
    missed: ErrorTotal
    false_alarm: ErrorTotal
    regions: tuple[ErrorRegion, ...]

    @classmethod
    def from_found(
        cls,
        found: Mapping[ErrorKind, FoundErrors],
        slide_id: str,
        record: SlideRecord,
        threshold: float,
        mpp: tuple[float, float] | None,
    ) -> Self:
        """Return the errors of a slide."""
        return cls(
            slide_id=slide_id,
            provider=record.provider,
            isup_grade=record.isup_grade,
            gleason_score=record.gleason,
            mpp=mpp,
            threshold=threshold,
            regions=tuple(region for kind in KINDS for region in found[kind].describe_regions(kind)),
            **{kind: found[kind].total for kind in KINDS},
        )


@dataclass(frozen=True)
class FoundErrors:
    """The regions of one kind on a slide.

    Attributes:
        objects: All regions, largest first, working px.
        mean: Mean probability of each region, (n + 1,) float64; entry 0 has no meaning.
        count: Number of regions that are not too small.
        resolution: The resolution of the map.
    """

    objects: ConnectedRuns
    mean: NDArray[np.float64]
    count: int
    resolution: Resolution

    @property
    def total(self) -> ErrorTotal:
        """All wrong px."""
        pixels = int(self.objects.area.sum())
        area = compute_area_mm2(pixels, self.resolution.pixel_area_um2)
        return ErrorTotal(regions=self.count, area_px=pixels, area_mm2=area)

    def describe_regions(self, kind: ErrorKind) -> list[ErrorRegion]:
        """Return the largest regions."""
        return [self._describe(kind, number) for number in range(1, min(self.count, LISTED) + 1)]

    def select(self, number: int) -> Runs:
        """Return the px of a region."""
        return self.objects.runs.select(self.objects.number == number)

    def _describe(self, kind: ErrorKind, number: int) -> ErrorRegion:
        left, top, right, bottom = np.minimum(self.objects.box[number], np.tile(self.resolution.extent, 2)).tolist()
        (x0, y0), (x1, y1) = (self.resolution.frame.to_level0(*corner) for corner in ((left, top), (right, bottom)))
        x, y, pixels = round_px(x0), round_px(y0), int(self.objects.area[number])
        return ErrorRegion(
            kind=kind,
            number=number,
            x=x,
            y=y,
            width=max(1, round_px(x1) - x),
            height=max(1, round_px(y1) - y),
            area_px=pixels,
            area_mm2=compute_area_mm2(pixels, self.resolution.pixel_area_um2),
            mean_probability=float(self.mean[number]),
        )


def find_errors(
    canvas: Canvas,
    mask: LabelMask,
    tissue: TissueMap,
    threshold: float,
    *,
    smallest_px: float = 0,
    connectivity: int = 8,
    ignore_background: bool = False,
) -> dict[ErrorKind, FoundErrors]:
    """Find the regions of wrong px, band by band; memory grows with their outlines.

    Args:
        canvas: The probability map.
        mask: The labels.
        tissue: The tissue.
        threshold: Probability at which a pixel counts as tumour.
        smallest_px: Regions of fewer working px are counted in the areas only.
        connectivity: 8 joins px that touch at a corner, 4 does not.
        ignore_background: Whether tissue with an unlabelled code does not count.
    """
    growing = {kind: _GrowingRuns(canvas.shape) for kind in KINDS}
    for band in read_bands(canvas, mask, tissue, ignore_background=ignore_background):
        called, prob = band.find_called(threshold), np.where(band.in_tissue, band.prob, 0)
        growing["missed"].add(band.top, band.truth & ~called, prob)
        growing["false_alarm"].add(band.top, called & ~band.truth, prob)
    return {kind: runs.connect(connectivity, smallest_px, canvas.resolution) for kind, runs in growing.items()}


@dataclass
class _GrowingRuns:
    """The runs of a mask that is read band by band, with the sum of the probabilities of each."""

    shape: tuple[int, int]
    _parts: list[NDArray[np.int32]] = field(default_factory=lambda: [np.zeros((3, 0), np.int32)])
    _sums: list[NDArray[np.float64]] = field(default_factory=lambda: [np.zeros(0)])

    def add(self, top: int, mask: NDArray[np.bool_], prob: NDArray[np.float32]) -> None:
        """Add the rows from `top` on: a mask and probabilities, (h, w)."""
        runs = Runs.from_mask(mask)
        if len(runs):
            starts = np.cumsum(runs.length) - runs.length
            self._parts.append(np.stack([runs.y + np.int32(top), runs.left, runs.right]))
            self._sums.append(np.add.reduceat(prob[mask].astype(np.float64), starts))

    def connect(self, connectivity: int, smallest_px: float, resolution: Resolution) -> FoundErrors:
        """Return the regions."""
        y, left, right = np.concatenate(self._parts, axis=1)
        objects = connect_runs(Runs(y, left, right, self.shape), connectivity)
        sums = np.bincount(objects.number, np.concatenate(self._sums), len(objects) + 1)
        mean = np.minimum(sums / np.maximum(objects.area, 1), 1)  # sums of fractions can be above 1 by rounding
        count = int(np.count_nonzero(objects.area[1:] >= smallest_px))
        return FoundErrors(objects, mean, count, resolution)
