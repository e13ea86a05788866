"""Grade a slide with a grading checkpoint, and with its canvas if its tiles are guided."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from panda.data.bags import read_bag
from panda.data.feature_files import read_features
from panda.data.tile_selection import select_tile_coords_for_slide
from panda.errors import CheckpointError, ConfigError, SlideError
from panda.inference.bag_grader import BagGrade, BagGrader
from panda.inference.canvas import Canvas
from panda.inference.compute import EngineSettings
from panda.inference.feature_store import FeatureStore
from panda.inference.features import TileBag, TileEncoder, encode_tiles
from panda.inference.grade import AttentionScores, Grade
from panda.tasks.checkpoint import Checkpoint, read_checkpoint
from panda.tasks.grade_metrics import compute_auroc
from panda.tasks.metadata import GradingMetadata, TileSelection, TrainedResolution
from panda.wsi.geometry import Resolution
from panda.wsi.label_mask import LabelMask
from panda.wsi.slide import Slide
from panda.wsi.stain_normalization import StainProfile, find_stain
from panda.wsi.tissue import TissueMap

MOST_SHOWN = 12
"""Most tiles of a slide that are drawn."""
CANCER_TILE = 0.1
"""Share of labelled cancer from which a tile counts as one that holds cancer."""


def select_tiles(
    slide: Slide, view: Resolution, tissue: TissueMap, canvas: Canvas | None, tiles: TileSelection, *, tile_size: int
) -> NDArray[np.int64]:
    """Select the tiles of a slide's bag, the same for training and inference.

    Args:
        slide: The slide.
        view: Working resolution of the tiles.
        tissue: Its tissue.
        canvas: Its probability canvas; None if the tiles are not guided.
        tiles: How they are selected.
        tile_size: Side of a tile in px of `view`.

    Returns:
        Upper left corners, (n ≤ k, 2) int64, level-0 px; n is not 0.
    """
    guided = tiles.how == "guided"
    if guided and canvas is None:
        raise ConfigError("tiles=guided needs a segmentation checkpoint; give one, or use tiles=tissue")
    coords = select_tile_coords_for_slide(
        canvas if guided else None,
        canvas.resolution if guided and canvas is not None else None,
        tissue,
        view,
        k=tiles.k,
        tile_size=tile_size,
        random_fraction=tiles.random_fraction,
        min_tissue=tiles.min_tissue,
        seed=tiles.seed,
    )
    if len(coords) == 0:
        raise SlideError(
            f"{slide.path}: no tile of {tile_size} px holds at least {tiles.min_tissue:.0%} tissue; "
            "lower tiles.min_tissue"
        )
    return coords


@dataclass(frozen=True, eq=False)
class SlideBag:
    """The tiles of one slide.

    Attributes:
        features: Output of the encoder, (K, D).
        coords: Upper left corners, (K, 2), level-0 px.
        tile_side_px: Side of a tile, level-0 px.
        stain: Stain of the slide, to change its colours to those of the reference; None to leave them unchanged.
    """

    features: NDArray[np.float32]
    coords: NDArray[np.int64]
    tile_side_px: float
    stain: StainProfile | None = None


def require_slides(checkpoint: Checkpoint[GradingMetadata]) -> tuple[TrainedResolution, int]:
    """Return resolution and size in px of a grader's tiles, or refuse a grader of feature files."""
    metadata = checkpoint.metadata
    if metadata.resolution is None or metadata.tile_size is None:
        made = metadata.features.encoder if metadata.features else None
        raise CheckpointError(
            f"checkpoint {checkpoint.path} grades files of features{(made and f' of {made}') or ''}, not the pixels of "
            "slides: leave checkpoint=… out, and give features=… with the folder of the feature files"
        )
    return metadata.resolution, metadata.tile_size


class GradingPredictor(BagGrader):
    """A grading checkpoint, ready to grade slides.

    Args:
        checkpoint: Read by `read_checkpoint(path, GradingMetadata)`.
        settings: Device and precision.
        store_root: Folder of the features of a frozen encoder, as in training; None stores none.
    """

    def __init__(
        self, checkpoint: Checkpoint[GradingMetadata], settings: EngineSettings, store_root: Path | None = None
    ) -> None:
        self.resolution, self.tile_size = require_slides(checkpoint)
        super().__init__(checkpoint, settings)
        self._store = FeatureStore(self.network, settings, store_root) if store_root and self.network.frozen else None
        self._encoder = self._store.encoder if self._store else TileEncoder(self.network, settings)

    @property
    def notes(self) -> list[str]:
        """What a reader of the grades should know, in sentences."""
        return self._encoder.notes

    @classmethod
    def from_checkpoint(cls, path: Path, settings: EngineSettings, store_root: Path | None = None) -> GradingPredictor:
        """Read the checkpoint at `path`."""
        return cls(read_checkpoint(path, GradingMetadata), settings, store_root)

    def encode(self, slide: Slide, tissue: TissueMap, canvas: Canvas | None, k: int) -> SlideBag:
        """Select at most k tiles of a slide, and compute their features."""
        side, view = self.tile_size, self.resolution.resolve(slide)
        tiles = self.metadata.tiles.model_copy(update={"k": k})
        coords = select_tiles(slide, view, tissue, canvas, tiles, tile_size=side)
        stain = find_stain(slide, tissue) if self.metadata.normalize else None
        bag = TileBag(slide.path, coords, view, side, stain)
        if self._store is not None:
            features = read_features(self._store.encode(slide, bag))
        else:
            features = encode_tiles(self._encoder, slide, bag)
        return SlideBag(features, coords, side * view.downsample, stain)

    def grade(
        self,
        slide: Slide,
        tissue: TissueMap,
        canvas: Canvas | None,
        label: LabelMask | None = None,
        *,
        shown: int = MOST_SHOWN,
        graded: tuple[SlideBag, BagGrade] | None = None,
    ) -> Grade:
        """Grade one slide from its tiles, which need the canvas if they are guided.

        Args:
            slide: The slide.
            tissue: Its tissue.
            canvas: Its probability canvas; None if the tiles are not guided.
            label: Its label mask, which scores the attention and does not influence the grade.
            shown: Most tiles that are read again for the pictures; with 0 the grade has no tiles.
            graded: The tiles of the slide and their grade, if they were graded with those of its patient.
        """
        if graded is None:
            encoded = self.encode(slide, tissue, canvas, self.metadata.tiles.k)
            graded = encoded, self.grade_features(encoded.features, shown=shown > 0)
        bag, grade = graded
        side, view = self.tile_size, self.resolution.resolve(slide)
        first = np.argsort(-grade.attention, kind="stable")[:shown]
        drawn = read_bag(slide, bag.coords[first], view, side, bag.stain).transpose(0, 2, 3, 1)
        record = grade.place_tiles(bag.coords, bag.tile_side_px) if shown else grade.record
        if label is not None and self.metadata.target.is_grade:
            scores = score_attention(label, bag.coords, view, side, grade.attention)
            record = record.model_copy(update={"against_label": scores})
        return Grade(record, (drawn * 255).round().astype(np.uint8))


def score_attention(
    label: LabelMask, coords: NDArray[np.int64], view: Resolution, side: int, attention: NDArray[np.float32]
) -> AttentionScores:
    """Score how much of the attention is on labelled cancer.

    Args:
        label: The label mask of the slide.
        coords: Upper left corners of the tiles, (K, 2) int64, level-0 px.
        view: Resolution of the tiles.
        side: Side of a tile in px of `view`.
        attention: (K,) attention weights.
    """
    cancer = np.array([label.read_tumor(view, (x, y), (side, side)).mean() for x, y in coords.tolist()])
    holds = cancer >= CANCER_TILE
    if not holds.any():
        return AttentionScores()
    area = None if holds.all() else float(compute_auroc(attention.astype(np.float64), holds, np.ones(len(holds))))
    return AttentionScores(
        attention_auroc=area,
        cancer_attended=float((attention * cancer).sum() / total) if (total := attention.sum()) > 0 else None,
        cancer_of_tiles=float(cancer.mean()),
    )
