"""The content of `inference.json`: the settings of an inference and the notes for its reader."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, JsonValue, NonNegativeFloat, NonNegativeInt, TypeAdapter

from panda.files import write_json
from panda.inference.slide_result import MapSettings
from panda.stored import Making, PatchSide, PathText, Plain, Timestamp, read_model
from panda.tasks.calibration import Temperature
from panda.tasks.gleason_search import GleasonRuleChoice
from panda.tasks.grade_calibration import AbstentionChoice
from panda.tasks.metadata import TrainedResolution
from panda.tasks.threshold import ThresholdChoice

INFERENCE_FILE = "inference.json"
_REMEDY = "it was edited or written by another version: run the inference again"


class LastRun(Plain, frozen=True):
    """Slides of the last process, how many of them failed, and its time in s."""

    slides: NonNegativeInt
    failed: NonNegativeInt
    seconds: NonNegativeFloat


class InferenceSummary(Making, MapSettings, frozen=True):
    """The settings of the maps in a folder, and the notes for its reader.

    Attributes:
        threshold_choice: Origin of the threshold; None if it was given.
        engine_choice: Reason for precision and compilation, as a sentence.
        labels: Folder of the label masks, or None.
        groups: Table of the patients of labelled slides, or None.
        gleason_rule: The rule from areas to a Gleason score, or None.
        calibration: Temperature of the grader's probabilities, or None.
        abstention: Confidence below which a slide is not certain enough to grade, or None.
        network: Arguments that build the segmentation network; None in older folders.
        patch_size: Side of its patches in working px; None in older folders.
    """

    threshold_choice: ThresholdChoice | None
    provider: str | None
    resolution: TrainedResolution
    engine_choice: str
    device: Annotated[str, Field(pattern=r"^(cpu|mps|cuda(:\d+)?)$")]
    date: Timestamp
    last_run: LastRun
    labels: PathText | None
    groups: PathText | None = None
    gleason_rule: GleasonRuleChoice | None = Field(default=None, exclude_if=lambda rule: rule is None)
    calibration: Temperature | None = Field(default=None, exclude_if=lambda choice: choice is None)
    abstention: AbstentionChoice | None = Field(default=None, exclude_if=lambda choice: choice is None)
    network: dict[str, JsonValue] | None = None
    patch_size: PatchSide | None = None
    notes: list[str]

    def write(self, folder: Path) -> None:
        """Write `inference.json`."""
        write_json(folder / INFERENCE_FILE, self.model_dump(mode="json"))

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read `inference.json`.

        Raises:
            FileNotFoundError: If the folder has none.
            PandaError: If the file was edited or written by another version.
        """
        return read_model(folder / INFERENCE_FILE, TypeAdapter(cls), _REMEDY)
