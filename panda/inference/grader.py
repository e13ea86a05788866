"""Grade a slide with a grading checkpoint, and with its canvas if its tiles are guided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from panda.data.bags import read_bag
from panda.data.feature_files import read_features
from panda.data.tile_selection import select_tile_coords_for_slide
from panda.errors import CheckpointError, ConfigError, SlideError
from panda.inference.canvas import Canvas
from panda.inference.compute import EngineSettings
from panda.inference.feature_store import FeatureStore
from panda.inference.features import TileBag, TileEncoder, encode_tiles
from panda.inference.grade import AttendedTile, AttentionScores, Grade, GradeRecord
from panda.inference.predictor import restore_network
from panda.models.mil import MILNet
from panda.tasks.checkpoint import Checkpoint, read_checkpoint
from panda.tasks.grade_metrics import compute_auroc
from panda.tasks.grading import convert_output
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
        coords: Upper left corners, (K, 2), level-0 px; None if they are unknown.
        tile_side_px: Side of a tile, level-0 px; None if it is unknown.
        stain: Stain of the slide, to change its colours to those of the reference; None to leave them unchanged.
    """

    features: NDArray[np.float32]
    coords: NDArray[np.int64] | None
    tile_side_px: float | None
    stain: StainProfile | None = None


class BagGrader:
    """A grading checkpoint, ready to grade bags of features.

    Args:
        checkpoint: Read by `read_checkpoint(path, GradingMetadata)`.
        settings: Device.

    Attributes:
        known: Slide id to its tiles and grade, if the slide is one of a patient whose bag was graded before.
    """

    def __init__(self, checkpoint: Checkpoint[GradingMetadata], settings: EngineSettings) -> None:
        self.known: dict[str, tuple[SlideBag, GradeRecord]] = {}
        self.checkpoint = checkpoint
        self.metadata = checkpoint.metadata
        self.settings = settings
        self.network = restore_network(MILNet, checkpoint).eval().to(settings.torch_device)

    def list_bag_notes(self) -> list[str]:
        """Return what a reader of grades of single slides must know of the bags of the training."""
        if self.metadata.bag == "slide":
            return []
        return [
            "The grader was trained on bags of all slides of a patient. Here each slide is graded by itself, as the "
            "only one of its patient, so its grades were not tested like this."
        ]

    def grade_patient(self, patient: str, bags: Mapping[str, SlideBag]) -> tuple[GradeRecord, dict[str, GradeRecord]]:
        """Grade one bag of the tiles of several slides.

        Args:
            patient: The patient.
            bags: Slide id to its tiles.

        Returns:
            The grade of the patient without tiles, and the same grade for each slide with its own tiles.
        """
        coords = [bag.coords for bag in bags.values()]
        known = [own for own in coords if own is not None]
        places = np.concatenate(known) if len(known) == len(coords) else None
        features = np.concatenate([bag.features for bag in bags.values()])
        grade = self.grade_features(features, places, None).model_copy(update={"patient": patient})
        ends = np.cumsum([len(bag.features) for bag in bags.values()]).tolist()
        return grade.drop_tiles(), {
            slide_id: grade.model_copy(
                update={"tiles": grade.tiles[end - len(bag.features) : end], "tile_side_px": bag.tile_side_px}
            )
            for (slide_id, bag), end in zip(bags.items(), ends, strict=True)
        }

    def grade_features(
        self, features: NDArray[np.float32], coords: NDArray[np.int64] | None, tile_side_px: float | None
    ) -> GradeRecord:
        """Grade one bag.

        Args:
            features: Output of the encoder, (K, D).
            coords: Upper left corners of the tiles, (K, 2), level-0 px; None if they are unknown or nobody sees them.
            tile_side_px: Side of a tile, level-0 px; None if it is unknown.

        Returns:
            The grade; its tiles are in the order of the features. Without coordinates there are none, and their
            contributions are not computed, which can take minutes (`MILNet.compute_contributions`).
        """
        target = self.metadata.target
        feats = torch.from_numpy(features).to(self.settings.torch_device)
        with torch.inference_mode():
            logits, weights = self.network.aggregate(feats)
            output = convert_output(logits.double(), self.metadata)
            predicted = int(output.argmax()) if target.has_classes else 0
            tiles: tuple[AttendedTile, ...] = ()
            if coords is not None:
                contributions = self.network.compute_contributions(feats, predicted)
                if (scale := self.metadata.scale) is not None:
                    contributions = contributions * scale.sd
                rows = zip(coords.tolist(), weights.float().tolist(), contributions.tolist(), strict=True)
                tiles = tuple(AttendedTile(x=x, y=y, attention=a, contribution=c) for (x, y), a, c in rows)
        record = GradeRecord(
            target=target,
            predicted=predicted if target.has_classes else output.item(),
            probabilities=tuple(output.tolist()) if target.has_classes else (),
            tile_side_px=tile_side_px,
            left_out=self.network.count_left_out(len(feats)),
            tiles=tiles,
        )
        choices = self.metadata.calibration, self.metadata.abstain_below
        return record.calibrate(*(choice.value if choice else None for choice in choices))


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
    ) -> Grade:
        """Grade one slide from its tiles, which need the canvas if they are guided.

        The label mask scores the attention and does not influence the grade. At most `shown` tiles are read again for
        the pictures; with 0 the grade has no tiles.
        """
        if slide.slide_id in self.known:
            bag, record = self.known[slide.slide_id]
        else:
            bag = self.encode(slide, tissue, canvas, self.metadata.tiles.k)
            record = self.grade_features(bag.features, bag.coords if shown else None, bag.tile_side_px)
        side, view = self.tile_size, self.resolution.resolve(slide)
        coords = bag.coords
        assert coords is not None  # of tiles that were selected
        attention = record.attention
        first = np.argsort(-attention, kind="stable")[:shown]
        drawn = read_bag(slide, coords[first], view, side, bag.stain).transpose(0, 2, 3, 1)
        if label is not None and self.metadata.target.is_grade:
            scores = score_attention(label, coords, view, side, attention)
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
        cancer_attended=float((attention * cancer).sum() / attention.sum()),
        cancer_of_tiles=float(cancer.mean()),
    )
