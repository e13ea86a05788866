"""Grade slides from files of features, without their pixels."""

from __future__ import annotations

from pathlib import Path

from panda.data.feature_files import FeatureFile, FeatureOrigin, read_feature_file
from panda.data.tile_selection import sample_tiles
from panda.errors import CheckpointError, ManifestError
from panda.inference.bag_grader import BagGrader
from panda.inference.compute import EngineSettings
from panda.tasks.checkpoint import Checkpoint, read_checkpoint
from panda.tasks.metadata import GradingMetadata


def require_features(checkpoint: Checkpoint[GradingMetadata]) -> FeatureOrigin:
    """Return what made the features that a grader learned from, or refuse a grader of slides."""
    if (origin := checkpoint.metadata.features) is None:
        raise CheckpointError(
            f"checkpoint {checkpoint.path} grades slides by their pixels: give checkpoint=… and slides=… instead of "
            "features=…, or a grader that was trained with tiles=features"
        )
    return origin


class FeatureGrader(BagGrader):
    """A checkpoint of a grading of feature files, ready to grade others.

    Args:
        checkpoint: Read by `read_checkpoint(path, GradingMetadata)`.
        settings: Device.
    """

    def __init__(self, checkpoint: Checkpoint[GradingMetadata], settings: EngineSettings) -> None:
        self.origin = require_features(checkpoint)
        super().__init__(checkpoint, settings)

    @classmethod
    def from_checkpoint(cls, path: Path, settings: EngineSettings) -> FeatureGrader:
        """Read the checkpoint at `path`."""
        return cls(read_checkpoint(path, GradingMetadata), settings)

    def encode(self, path: Path, k: int) -> FeatureFile:
        """Read a feature file, of which at most k tiles are drawn.

        Raises:
            ManifestError: If the file cannot be read, or its features are not of the kind that the grader learned from.
        """
        file = read_feature_file(path)
        if faults := self.origin.describe_difference(file.origin):
            raise ManifestError(
                f"{path}: the grader learned from other features: {'; '.join(faults)}. Compute the features as those "
                "of the training"
            )
        return file.take_tiles(sample_tiles(len(file.features), k, self.metadata.tiles.seed))
