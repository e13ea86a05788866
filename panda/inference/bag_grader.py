"""Grade bags of features with a grading checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from panda.inference.compute import EngineSettings
from panda.inference.grade import AttendedTile, GradeRecord
from panda.inference.predictor import restore_network
from panda.models.mil import MILNet
from panda.tasks.checkpoint import Checkpoint
from panda.tasks.grading import convert_output
from panda.tasks.metadata import GradingMetadata


@dataclass(frozen=True, eq=False)
class BagGrade:
    """The grade of a bag, or of the part of a bag that is one slide.

    Attributes:
        record: The grade, without tiles.
        attention: Attention weights of the tiles, (K,) float32, which sum to 1 over the bag.
        contributions: Contributions of the tiles, (K,) float32; None if nobody sees them.
    """

    record: GradeRecord
    attention: NDArray[np.float32]
    contributions: NDArray[np.float32] | None

    def place_tiles(self, coords: NDArray[np.int64], tile_side_px: float) -> GradeRecord:
        """Return the grade with its tiles, whose contributions are known.

        Args:
            coords: Upper left corners of the tiles, (K, 2), level-0 px.
            tile_side_px: Side of a tile, level-0 px.
        """
        assert self.contributions is not None
        rows = zip(coords.tolist(), self.attention.tolist(), self.contributions.tolist(), strict=True)
        tiles = tuple(AttendedTile(x=x, y=y, attention=a, contribution=c) for (x, y), a, c in rows)
        return self.record.model_copy(update={"tiles": tiles, "tile_side_px": tile_side_px})

    def take_part(self, start: int, end: int) -> BagGrade:
        """Return the same grade with the tiles from `start` to `end` only."""
        shares = None if self.contributions is None else self.contributions[start:end]
        return BagGrade(self.record, self.attention[start:end], shares)


class BagGrader:
    """A grading checkpoint, ready to grade bags of features.

    Args:
        checkpoint: Read by `read_checkpoint(path, GradingMetadata)`.
        settings: Device.
    """

    def __init__(self, checkpoint: Checkpoint[GradingMetadata], settings: EngineSettings) -> None:
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
            "only one of its patient, so its grades were not tested like this; features=… patients=… grades patients."
        ]

    def grade_patient(
        self, patient: str, bags: Mapping[str, NDArray[np.float32]], *, shown: bool = True
    ) -> tuple[GradeRecord, dict[str, BagGrade]]:
        """Grade one bag of the tiles of several slides.

        Args:
            patient: The patient.
            bags: Slide id to the features of its tiles, (K, D).
            shown: Whether contributions of tiles are computed.

        Returns:
            The grade of the patient without tiles, and the same grade for each slide with its own tiles.
        """
        grade = self.grade_features(np.concatenate([*bags.values()]), shown=shown)
        named = BagGrade(grade.record.model_copy(update={"patient": patient}), grade.attention, grade.contributions)
        ends = np.cumsum([len(features) for features in bags.values()]).tolist()
        starts = [0, *ends[:-1]]
        parts = {slide_id: named.take_part(*part) for slide_id, *part in zip(bags, starts, ends, strict=True)}
        return named.record, parts

    def grade_features(self, features: NDArray[np.float32], *, shown: bool = True) -> BagGrade:
        """Grade one bag.

        Args:
            features: Output of the encoder, (K, D).
            shown: Whether contributions of tiles are computed, which can take minutes, see
                `MILNet.compute_contributions`.

        Returns:
            The grade; its tiles are in the order of the features.
        """
        target = self.metadata.target
        feats = torch.from_numpy(features).to(self.settings.torch_device)
        contributions = None
        with torch.inference_mode():
            logits, weights = self.network.aggregate(feats)
            output = convert_output(logits.double(), self.metadata)
            predicted = int(output.argmax()) if target.has_classes else 0
            if shown:
                contributions = self.network.compute_contributions(feats, predicted)
                if (scale := self.metadata.scale) is not None:
                    contributions = contributions * scale.sd
        record = GradeRecord(
            target=target,
            predicted=predicted if target.has_classes else output.item(),
            probabilities=tuple(output.tolist()) if target.has_classes else (),
            left_out=self.network.count_left_out(len(feats)),
        )
        choices = self.metadata.calibration, self.metadata.abstain_below
        record = record.calibrate(*(choice.value if choice else None for choice in choices))
        shares = None if contributions is None else contributions.cpu().float().numpy()
        return BagGrade(record, weights.cpu().float().numpy(), shares)
