"""Map the slides of one command: one function for this process and for the workers of a cluster."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from panda.app.inference_config import InferenceConfig
from panda.app.slide_division import require_slides_here, sample_slides
from panda.app.slide_work import DoneSlide
from panda.errors import PandaError
from panda.inference.autotune import TunedMode, tune_mode
from panda.inference.evaluate import open_label
from panda.inference.grader import GradingPredictor
from panda.inference.predictor import SegmentationPredictor
from panda.inference.rule_grade import RuleGrader
from panda.inference.slide_mapper import MappedSlide, SlideMapper
from panda.inference.slide_result import Provenance, SlideResult
from panda.report.slide_folder import write_slide_folder
from panda.tasks.threshold import ThresholdChoice
from panda.wsi.slide import Slide
from panda.wsi.tissue import TissueMap, find_tissue


@dataclass(frozen=True)
class MappingFacts:
    """What the loaded networks say of all slides.

    Attributes:
        provenance: Everything on which the figures depend.
        device: Where the networks run.
        engine: Precision, device and batch size in words.
        engine_choice: Why the precision was chosen.
        notes: For a reader of the results.
    """

    provenance: Provenance
    device: str
    engine: str = field(compare=False)  # the batch size of a GPU is found by a trial
    engine_choice: str = field(compare=False)
    notes: tuple[str, ...] = field(compare=False)


@dataclass(frozen=True)
class SlideMapping:
    """How slides are mapped, without networks, so that it can be pickled to a worker of a cluster.

    Attributes:
        config: The keys; a worker reads the files that they name itself.
        fingerprints: Of the checkpoints as the driver read them.
        sample: Slides to tune the network with, which exist.
        count: The number of all slides.
    """

    config: InferenceConfig
    fingerprints: tuple[str | None, str | None]
    sample: Sequence[Path]
    count: int

    @classmethod
    def from_config(cls, config: InferenceConfig) -> SlideMapping:
        """Return the mapping of a configuration."""
        paths = config.slide_list.paths
        return cls(config.divide_threads(), _read_fingerprints(config), sample_slides(paths), len(paths))

    def load(self) -> LoadedMapping:
        """Load the networks.

        Raises:
            PandaError: If a checkpoint or a slide here is not the one of the driver.
        """
        paths = (self.config.checkpoint, self.config.grading_checkpoint)
        for path, found, given in zip(paths, _read_fingerprints(self.config), self.fingerprints, strict=True):
            if found != given:
                raise PandaError(
                    f"checkpoint {path} is another one there than for this command: share one folder of checkpoints"
                )
        require_slides_here(self.sample)
        return LoadedMapping(self.config, self.sample, self.count)


class LoadedMapping:
    """Networks that map slides.

    Args:
        config: The keys.
        sample: Slides to tune the network with.
        count: The number of all slides.
    """

    def __init__(self, config: InferenceConfig, sample: Sequence[Path], count: int) -> None:
        self._config, engine = config, config.engine
        self._folder, self._canvases = Path(config.run_dir), Path(config.output)
        self._predictor = predictor = SegmentationPredictor(config.segmentation, engine)
        self._grader = grader = GradingPredictor(config.grading, engine) if config.grading else None
        searched = config.threshold == "checkpoint"
        threshold = predictor.threshold.value_for(config.provider) if searched else float(config.threshold)
        choice = predictor.threshold if searched else ThresholdChoice.from_user(threshold)
        rule_grader = RuleGrader.from_choice(
            predictor.metadata.classes, predictor.metadata.gleason_rule, choice, config.provider
        )
        self.mapper = SlideMapper(
            predictor,
            threshold,
            config.quantify,
            grader,
            config.slide_options,
            config.colour_map,
            rule_grader,
            config.geojson,
        )
        self._sample, self._count, self._searched = sample, count, searched

    @functools.cached_property
    def facts(self) -> MappingFacts:
        """What is known after the networks were tuned, which the first access does."""
        predictor, record = self._predictor, self._canvases / "engine.json"
        tuned = tune_mode(predictor, self.mapper.threshold, self._sample, self.mapper.open, record, count=self._count)
        device = predictor.settings.torch_device
        return MappingFacts(
            provenance=self.mapper.provenance,
            device=str(device),
            engine=f"{predictor.mode} on {device}, batches of {predictor.batch_size} tiles",
            engine_choice=tuned.why,
            notes=tuple(_list_notes(predictor, self._grader, self._searched, self._config.provider, tuned)),
        )

    def __call__(self, path: Path) -> DoneSlide[SlideResult]:
        """Open and map a slide, and write its folder."""
        with self.mapper.open(path) as slide, self.map(slide, find_tissue(slide)) as mapped:
            return DoneSlide(write_slide_folder(mapped.files), mapped.ungraded, self.notes)

    def map(self, slide: Slide, tissue: TissueMap, on_tiles: Callable[[int, int], None] | None = None) -> MappedSlide:
        """Map an open slide, whose folder is still to be written."""
        folder, labels = self._folder / slide.slide_id, self._predictor.metadata.label_maps
        canvas = self._canvases / slide.slide_id / "canvas.zarr"
        with contextlib.ExitStack() as stack:
            known = None
            if record := self._config.labelled.get(slide.slide_id):
                known = record, stack.enter_context(open_label(record, slide, labels))
            return self.mapper.map(slide, tissue, folder, canvas, on_tiles, labelled=known)

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes that the networks made while they ran."""
        return (*self._predictor.model.notes, *(self._grader.notes if self._grader else ()))


def _read_fingerprints(config: InferenceConfig) -> tuple[str | None, str | None]:
    return config.segmentation.fingerprint, config.grading.fingerprint if config.grading else None


def _list_notes(
    predictor: SegmentationPredictor,
    grader: GradingPredictor | None,
    searched: bool,
    provider: str | None,
    choice: TunedMode,
) -> list[str]:
    """Return the notes on checkpoints and compute mode for a reader of the results."""
    notes = []
    frozen = predictor.threshold
    if searched and frozen.by_provider and provider is None:
        own = ", ".join(f"{name} {frozen.value_for(name):.3f}" for name in frozen.by_provider)
        notes.append(
            f"The checkpoint has a threshold for each provider ({own}). The provider of these slides is not known, so "
            f"the threshold of all providers is used, {frozen.value:.3f}. provider=… selects another."
        )
    metadata, precision = predictor.metadata, predictor.mode.precision
    if searched and metadata.precision != precision:
        tried = "" if choice.moved is None else f"; tried on tiles of one slide, {choice.why}"
        notes.append(
            f"The threshold was chosen on maps with engine.precision={metadata.precision}. These maps have "
            f"{precision}, whose probabilities differ slightly{tried}."
        )
    if searched and metadata.tta != (tta := predictor.settings.tta):
        notes.append(f"The threshold was chosen on maps with engine.tta={metadata.tta}. These maps have {tta}.")
    if grader is not None and (guides := grader.metadata.segmentation) and predictor.fingerprint not in guides:
        notes.append(
            "The grader was trained on tiles that another segmentation chose, so its grades were not tested like this."
        )
    notes += grader.list_bag_notes() if grader else []
    if (rule := metadata.gleason_rule) is not None and rule.is_default:
        notes.append(f"The limits of the Gleason rule are the default ones, because they were {rule.chosen_on}.")
    return notes
