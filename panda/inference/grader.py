"""From a grading checkpoint and a slide, with its canvas where tiles are guided, to a grade."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from panda.data.bags import read_bag, select_tile_coords_for_slide
from panda.errors import ConfigError, SlideError
from panda.inference.canvas import Canvas
from panda.inference.predictor import EngineSettings, resolution_for, restored
from panda.models.mil import MILNet
from panda.tasks.checkpoint import Checkpoint, read_checkpoint
from panda.wsi.geometry import Resolution
from panda.wsi.normalise import told_stain
from panda.wsi.slide import Slide
from panda.wsi.tissue import TissueMap


@dataclass(frozen=True)
class Grade:
    """The grade of one slide.

    Attributes:
        target: `isup` or `cancer`.
        predicted: The class with the highest probability.
        probabilities: Of each class; they sum to 1.
        coords: (K, 2) upper left corners of the tiles, level-0 px.
        attention: (K,) weights of the tiles; they sum to 1.
        tiles: (K, h, w, 3) uint8, as the network sees them.
        tile_side: Side of a tile in level-0 px.
    """

    target: str
    predicted: int
    probabilities: list[float]
    coords: NDArray[np.int64]
    attention: NDArray[np.float32]
    tiles: NDArray[np.uint8]
    tile_side: float

    def plain(self) -> dict[str, Any]:
        """Target, predicted class, probabilities and tiles as plain data for JSON."""
        tiles = [
            {"x": int(x), "y": int(y), "attention": float(weight)}
            for (x, y), weight in zip(self.coords, self.attention, strict=True)
        ]
        return {
            "target": self.target,
            "predicted": self.predicted,
            "probabilities": self.probabilities,
            "tile_side_px": self.tile_side,
            "tiles": tiles,
        }


def slide_tiles(
    slide: Slide, tissue: TissueMap, canvas: Canvas | None, resolution: Mapping[str, Any], tiles: Mapping[str, Any]
) -> tuple[NDArray[np.int64], Resolution]:
    """The tiles of a slide's bag, the same for training and inference.

    Args:
        slide: The slide.
        tissue: Its tissue.
        canvas: Its probability canvas; needed for guided tiles.
        resolution: As for `resolution_for`.
        tiles: `how` (guided | tissue), `k`, `tile_size` (px at the resolution), `random_fraction`, `min_tissue`,
            `seed`.

    Returns:
        Coordinates (n ≤ k, 2) in level-0 px, and the resolution the tiles are read at.

    Raises:
        ConfigError: If guided tiles are asked for without a canvas.
        SlideError: If no tile holds enough tissue.
    """
    guided = tiles["how"] == "guided"
    if guided and canvas is None:
        raise ConfigError("tiles=guided needs a segmentation checkpoint; give one, or use tiles=tissue")
    view = resolution_for(slide, resolution)
    coords = select_tile_coords_for_slide(
        canvas if guided else None,
        canvas.resolution if guided and canvas is not None else None,
        tissue,
        view,
        k=tiles["k"],
        tile_size=tiles["tile_size"],
        random_fraction=tiles["random_fraction"],
        min_tissue=tiles["min_tissue"],
        seed=tiles["seed"],
    )
    if len(coords) == 0:
        raise SlideError(
            f"{slide.path}: no tile of {tiles['tile_size']} px holds at least {tiles['min_tissue']:.0%} tissue; "
            "lower tiles.min_tissue"
        )
    return coords, view


class GradingPredictor:
    """A grading checkpoint, ready to grade slides.

    Args:
        checkpoint: Read by `read_checkpoint(path, "grading")`.
        settings: Device, precision, batch.
    """

    def __init__(self, checkpoint: Checkpoint, settings: EngineSettings) -> None:
        self.checkpoint = checkpoint
        self.carried = checkpoint.carried
        self.settings = settings
        self.network = restored(MILNet, checkpoint).eval().to(settings.torch_device)

    @classmethod
    def from_checkpoint(cls, path: Path, settings: EngineSettings) -> "GradingPredictor":
        """Reads the checkpoint at `path`.

        Raises:
            CheckpointError: If it is missing, broken, or of another task.
        """
        return cls(read_checkpoint(path, "grading"), settings)

    def grade(self, slide: Slide, tissue: TissueMap, canvas: Canvas | None) -> Grade:
        """Grades one slide from its tiles.

        Args:
            slide: The slide.
            tissue: Its tissue.
            canvas: Its probability canvas, for guided tiles.
        """
        tiles = {**self.carried["tiles"], "tile_size": self.carried["tile_size"]}
        coords, view = slide_tiles(slide, tissue, canvas, self.carried["resolution"], tiles)
        stain = told_stain(slide, tissue) if self.carried["normalize"] else None
        bag = torch.from_numpy(read_bag(slide, coords, view, tiles["tile_size"], stain))
        with torch.inference_mode(), self.settings.autocast():
            logits, attention, _ = self.network(bag.to(self.settings.torch_device))
        probabilities = logits.float().softmax(-1).cpu().numpy()
        return Grade(
            target=self.carried["target"],
            predicted=int(probabilities.argmax()),
            probabilities=[float(p) for p in probabilities],
            coords=coords,
            attention=attention.float().cpu().numpy(),
            tiles=(bag.permute(0, 2, 3, 1).numpy() * 255).round().astype(np.uint8),
            tile_side=tiles["tile_size"] * view.downsample,
        )
