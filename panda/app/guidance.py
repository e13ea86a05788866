"""Select the tiles of a slide for grading: the settings of bags, and the segmentations that guide them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field
from tqdm import tqdm

from panda.app.inference_slides import describe_brackets
from panda.data.bagset import BagItem
from panda.data.manifest import SlideRecord
from panda.data.settings import ResolutionSettings
from panda.data.splits import Split
from panda.errors import CheckpointError, ConfigError
from panda.files import find_paths
from panda.inference.canvas import Canvas
from panda.inference.compute import EngineSettings
from panda.inference.predictor import SegmentationPredictor
from panda.inference.slide_loop import make_tile_callback
from panda.settings import Count, PathValue, Share, rule
from panda.stored import PatchSide
from panda.tasks.metadata import SegmentationMetadata, TileSelection
from panda.wsi.slide import Slide
from panda.wsi.tissue import TissueMap

log = logging.getLogger(__name__)

MOST_TILES = 4096
"""Maximum number of tiles in a bag with `tiles=all`."""


class TileSettings(ResolutionSettings):
    """How a slide becomes a bag.

    Args:
        how: `guided` by a segmentation checkpoint, any `tissue`, `all` of it, or those of files of `features`.
        features: Folder of the feature files with `how="features"`, otherwise None.
        k: Maximum number of tiles in a bag, which are drawn from those of a feature file. With `all` the maximum is
            `MOST_TILES`, and `k` is not used.
        tile_size: Side of a tile in px at the resolution.
        level: Pyramid level of the tiles, see `ResolutionRequest`.
        mpp: µm per tile px, see `ResolutionRequest`.
        random_fraction: Share of the bag that is random tissue.
        min_tissue: Minimum share of tissue in a tile.
        seed: Seed of the random tiles.
        batch_size: Bags in a batch.
        cross_fit: Guide each slide by a segmentation that was not trained or validated on any slide of its group.
    """

    node: ClassVar[str] = "tiles"

    how: Literal["guided", "tissue", "all", "features"] = "guided"
    features: PathValue | None = None
    k: Count = 32
    tile_size: PatchSide = 256
    random_fraction: Share = 0.25
    min_tissue: Share = 0.25
    seed: int = Field(default=0, ge=0)
    batch_size: Count = 1
    cross_fit: bool = False

    @rule
    def _check_cross_fit(self) -> Iterator[str]:
        if self.cross_fit and self.how != "guided":
            yield f"tiles.cross_fit=true is not used with tiles={self.how}: remove it, or give tiles=guided"

    @rule
    def _check_features(self) -> Iterator[str]:
        if self.features is not None and self.how != "features":
            yield f"{self.setting('features')} is not used with tiles={self.how}: remove it, or give tiles=features"
        elif self.features is None and self.how == "features":
            yield "tiles.features is not given: tiles=features needs the folder of the feature files"

    @property
    def selection(self) -> TileSelection:
        """Settings by which a grader selects the tiles of a slide, see `panda.inference.grader.select_tiles`."""
        return TileSelection(
            how="tissue" if self.how == "all" else self.how,
            k=MOST_TILES if self.how == "all" else self.k,
            random_fraction=self.random_fraction if self.how == "guided" else 1.0,
            min_tissue=0.0 if self.how == "features" else self.min_tissue,
            seed=self.seed,
        )


class Guidance:
    """The segmentations that guide the tiles of slides, and the canvases that they make.

    Args:
        segmenters: No segmentation, one, or with `cross_fit` one of each fold of a cross-validation.
        cross_fit: Whether a slide gets the first segmentation that saw neither it nor, after `check`, its group.
        folder: Folder of the canvases, which later runs reuse.
    """

    def __init__(self, segmenters: Sequence[SegmentationPredictor], cross_fit: bool, folder: Path) -> None:
        self.segmenters = segmenters
        self._seen = [{*s.metadata.train_slides, *s.metadata.val_slides} for s in segmenters]
        self.cross_fit = cross_fit
        self.folder = folder

    @classmethod
    def load(cls, given: str | None, cross_fit: bool, engine: EngineSettings, folder: Path) -> Guidance:
        """Load a checkpoint, with `cross_fit` all that match a glob, or none.

        With `cross_fit` there must be two or more, each of another fold and all of one resolution.
        """
        paths = [] if given is None else [Path(given)]
        if not cross_fit and given and not Path(given).exists() and (several := find_paths(given)):
            raise ConfigError(
                f"segmentation_checkpoint={given} matches {len(several)} files: give one of them, or "
                "tiles.cross_fit=true to guide each slide by one that has not seen it"
            )
        if cross_fit:
            paths = find_paths(str(given))
            if len(paths) < 2:
                raise ConfigError(
                    f"segmentation_checkpoint={given}: tiles.cross_fit=true needs checkpoints of several folds, and "
                    f"there are {len(paths)}; train them with -m data.split=kfold data.fold=0,1,2,3,4 and give a glob, "
                    "as 'runs/segmentation/sweep-NAME/*/checkpoints/best.ckpt'" + describe_brackets(str(given))
                )
        try:
            segmenters = [SegmentationPredictor.from_checkpoint(path, engine) for path in paths]
        except CheckpointError as error:
            raise CheckpointError(f"segmentation_checkpoint={given}: {error}") from error
        folds: dict[tuple[frozenset[str], ...], Path] = {}
        for s in segmenters:
            path, fold = s.checkpoint.path, (frozenset(s.metadata.train_slides), frozenset(s.metadata.val_slides))
            if (other := folds.setdefault(fold, path)) is not path:
                raise ConfigError(
                    f"segmentation_checkpoint={given}: {other} and {path} were trained on the same slides: they are "
                    "one fold, not two; give one checkpoint of each, as "
                    "'runs/segmentation/sweep-NAME/*/checkpoints/best.ckpt'"
                )
        requests = dict.fromkeys(str(s.metadata.resolution.request) for s in segmenters)
        if len(requests) > 1:
            raise ConfigError(
                f"segmentation_checkpoint={given}: the folds have several resolutions ({', '.join(requests)}); give "
                "the checkpoints of one sweep"
            )
        return cls(segmenters, cross_fit, folder)

    @property
    def threshold(self) -> float | None:
        """Threshold of the segmentation, or None if there is none or several."""
        return self.segmenters[0].threshold.value if len(self.segmenters) == 1 else None

    def find_segmenter(self, slide_id: str) -> SegmentationPredictor | None:
        """Return the segmentation that guides the tiles of a slide, or None if there is no suitable one."""
        if not self.cross_fit:
            return self.segmenters[0] if self.segmenters else None
        new_to = (s for s, seen in zip(self.segmenters, self._seen, strict=True) if slide_id not in seen)
        return next(new_to, None)

    def check(self, slides: Sequence[SlideRecord]) -> None:
        """With cross_fit, check that every slide has a segmentation checkpoint trained without any slide of its group.

        From then on a slide counts as seen if a slide of its group was.
        """
        if not self.cross_fit:
            return
        for seen in self._seen:
            groups = {record.group for record in slides if record.slide_id in seen}
            seen |= {record.slide_id for record in slides if record.group in groups}
        unguided = [record.slide_id for record in slides if self.find_segmenter(record.slide_id) is None]
        if unguided:
            raise ConfigError(
                f"tiles.cross_fit=true: {len(unguided)} of {len(slides)} slides are new to none of the "
                f"{len(self.segmenters)} segmentations ({', '.join(unguided[:3])}{' …' * (len(unguided) > 3)}). Each "
                "segmentation saw slides of their groups: give the checkpoints of all folds, trained on the same "
                "data.splits or data.seed and data.groups"
            )

    def hold_canvas(
        self, slide: Slide, tissue: TissueMap, bar: tqdm[Any]
    ) -> AbstractContextManager[Canvas] | AbstractContextManager[None]:
        """Hold the canvas of a slide while it is used; without a segmentation there is none."""
        segmenter = self.find_segmenter(slide.slide_id)
        if segmenter is None:
            return nullcontext()
        return segmenter.hold_canvas(slide, tissue, self.find_canvas_path(segmenter, slide), make_tile_callback(bar))

    def find_canvas_path(self, segmenter: SegmentationPredictor, slide: Slide) -> Path:
        """Return the path of a canvas. Its fingerprint in the name keeps runs with other settings from replacing it."""
        fingerprint = segmenter.fingerprint_canvas(slide, segmenter.metadata.resolution.resolve(slide))
        return self.folder / f"canvases-{segmenter.fingerprint[:12]}" / f"{slide.slide_id}-{fingerprint[:12]}.zarr"

    def list_notes(self, items: Mapping[Split, Sequence[BagItem]], tiles: TileSettings) -> list[str]:
        """Return notes on slides that leaked into the segmentation, and on maps that are resampled to the tiles."""
        notes = []
        for segmenter in self.segmenters[:1]:  # all have the same resolution
            if (mapped := segmenter.metadata.resolution.request) != tiles.resolution:
                notes.append(
                    f"The segmentation maps slides at {mapped}, tiles are read at {tiles.resolution}: its maps are "
                    "resampled to the tiles."
                )
        if self.cross_fit:
            return [
                *notes,
                f"The tiles of each slide were chosen by one of {len(self.segmenters)} segmentations that was "
                "not trained or validated on any slide of its group.",
            ]
        return notes + [note for segmenter in self.segmenters for note in note_leaks(items, segmenter.metadata)]


def note_leaks(items: Mapping[Split, Sequence[BagItem]], metadata: SegmentationMetadata) -> list[str]:
    """Report the slides that leaked into the segmentation that guides the tiles, by themselves or by their groups."""
    seen = {"train": set(metadata.train_slides), "val": set(metadata.val_slides)}

    def count_leaks(split: Split, source: str) -> int:
        records = [item.record for item in items.get(split, ())]
        groups = {record.group for record in records if record.slide_id in seen[source]}
        return sum(record.group in groups for record in records)

    notes = []
    if count := count_leaks("train", "train"):
        notes.append(
            f"The segmentation that guides the tiles was trained on {count} of the {len(items['train'])} training "
            "slides or on others of their groups: their tiles are in-sample, better chosen than the tiles of new "
            "slides. tiles.cross_fit=true guides each slide by a segmentation that has not seen it."
        )
    # The grader chooses its epoch on validation slides too, so that it adds nothing if the segmentation did.
    checked: tuple[tuple[Split, str, str], ...] = (
        ("val", "train", "was trained"),
        ("test", "train", "was trained"),
        ("test", "val", "chose its epoch and threshold"),
    )
    for name, source, did in checked:
        if count := count_leaks(name, source):
            notes.append(
                f"The segmentation {did} on {count} {'validation' if name == 'val' else name} slides or others of "
                "their groups: their figures are too good. Use the data.groups, data.seed and fractions of its run, or "
                "data.splits=splits.csv of its folder."
            )
    return notes
