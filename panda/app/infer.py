"""Map slides with a checkpoint: maps, figures, grades and a report."""

from __future__ import annotations

import contextlib
import logging
import time
from pathlib import Path

from omegaconf import DictConfig

from panda.app.build import Faults
from panda.app.config_check import check_config
from panda.app.entry_point import close_logs, log_to_file, make_folder
from panda.app.feature_inference import infer_from_features
from panda.app.inference_collection import collect_inference, end_run
from panda.app.inference_config import CollectionConfig, FeatureInferenceConfig, InferenceConfig
from panda.app.inference_tables import InferenceTables, find_keys
from panda.app.slide_writing import SlideWriting
from panda.data.slide_records import RunRecord
from panda.inference.autotune import TunedMode, tune_mode
from panda.inference.evaluate import open_label
from panda.inference.grader import GradingPredictor
from panda.inference.predictor import SegmentationPredictor
from panda.inference.rule_grade import RuleGrader
from panda.inference.slide_loop import SlidePrefetcher
from panda.inference.slide_mapper import SlideMapper
from panda.inference.slide_result import MapSettings
from panda.report.inference_summary import InferenceSummary, LastRun
from panda.tasks.figures import make_timestamp
from panda.tasks.threshold import ThresholdChoice

log = logging.getLogger(__name__)


@close_logs
def infer(cfg: DictConfig) -> None:
    """Map every slide, or grade files of features, continue after bad ones, and write the report.

    Slides that are finished are not opened.

    Args:
        cfg: `conf/infer.yaml` as Hydra composed it, with `run_dir`.

    Raises:
        ConfigError: If the configuration has faults. All are reported, before anything slow begins.
        CheckpointError: If a checkpoint cannot be used.
        SomeSlidesFailed: If any slide failed or could not be graded, after all others are done.
    """
    started = time.monotonic()
    config = check(cfg)
    if isinstance(config, FeatureInferenceConfig):
        infer_from_features(config)
    elif isinstance(config, CollectionConfig):
        collect_inference(Path(config.collect))
    else:
        _map_slides(config, started)


def _map_slides(config: InferenceConfig, started: float) -> None:
    """Map every slide, see `infer`. `started` is the time of the start, in s of `time.monotonic`."""
    engine, (paths, passed_over), labelled = config.engine, config.slide_list, config.labelled
    part, own_slides = config.own_shard, config.own_slides
    if config.labels:
        log.info("labels: %d of %d slides have a mask", len(labelled), len(paths))
    predictor = SegmentationPredictor(config.segmentation, engine)
    grader = GradingPredictor(config.grading, engine) if config.grading else None
    searched = config.threshold == "checkpoint"
    threshold = predictor.threshold.value_for(config.provider) if searched else float(config.threshold)
    choice = predictor.threshold if searched else ThresholdChoice.from_user(threshold)
    rule_grader = RuleGrader.from_choice(
        predictor.metadata.classes, predictor.metadata.gleason_rule, choice, config.provider
    )
    mapper = SlideMapper(
        predictor, threshold, config.quantify, grader, config.slide_options, config.colour_map, rule_grader
    )

    # Results are written to the job's folder, and canvases to `output`, which all jobs of a multirun share.
    folder, canvases = Path(config.run_dir), Path(config.output)
    make_folder(folder)
    log_to_file(folder / ("infer.log" if part is None else f"infer-{part.number}-of-{part.count}.log"))
    log.info("slides=%s: %d slides%s", config.slides, len(paths), passed_over and f"; passed over: {passed_over}")
    if part:
        log.info("shard %s: %d of them", part, len(own_slides))
    tuned = tune_mode(predictor, threshold, paths, mapper.open, canvases / "engine.json")
    log.info(
        "network in %s on %s, batches of %d tiles, %d read threads, %d post workers: %s",
        predictor.mode,
        engine.torch_device,
        predictor.batch_size,
        engine.thread_count,
        engine.post_process_count,
        tuned.why,
    )
    notes = _list_notes(predictor, grader, searched, config.provider, tuned)
    tables = InferenceTables(folder, mapper.provenance.fingerprint, is_shard=part is not None)

    def write_run() -> RunRecord:
        taken = round(time.monotonic() - started, 1)
        last_run = LastRun(slides=len(own_slides), failed=len(tables.failed), seconds=taken)
        origin = predictor.threshold if searched else None
        summary = _summarize(config, mapper, origin, tuned.why, last_run=last_run, notes=notes)
        return tables.write_run((path.stem for path in paths), summary)

    write_run()
    finished = tables.find_finished(find_keys(config, tables.made_with))
    left = [path for path in own_slides if path.stem not in finished]
    if finished:
        log.info("%d of them are finished already", len(finished))

    def map_slide(path: Path) -> None:
        with prefetcher.open(path) as (slide, tissue), contextlib.ExitStack() as stack:
            known = None
            if record := labelled.get(slide.slide_id):
                known = record, stack.enter_context(open_label(record, slide, predictor.metadata.label_maps))
            canvas_path, own = canvases / slide.slide_id / "canvas.zarr", folder / slide.slide_id
            writing.add(mapper.map(slide, tissue, own, canvas_path, writing.show_tiles, labelled=known))

    processes = engine.post_process_count if len(left) > 1 else 0  # one slide has no next one
    with SlideWriting(tables, len(left), processes) as writing, SlidePrefetcher(left, mapper.open) as prefetcher:
        for path in left:
            try:
                map_slide(path)
            except Exception as error:
                writing.fail(path.stem, error)
            writing.record()
        writing.record(everything=True)
    notes += [*predictor.model.notes, *(grader.notes if grader else [])]
    end_run(tables, write_run(), part, len(own_slides))


def check(cfg: DictConfig, faults: Faults | None = None) -> InferenceConfig | FeatureInferenceConfig | CollectionConfig:
    """Check a configuration and the files that it names. Faults that were found before are raised with its own."""
    config: InferenceConfig | FeatureInferenceConfig | CollectionConfig = check_config(cfg, "infer", faults)
    return config


def _list_notes(
    predictor: SegmentationPredictor,
    grader: GradingPredictor | None,
    searched: bool,
    provider: str | None,
    choice: TunedMode,
) -> list[str]:
    """Return and log the notes on checkpoints and compute mode for a reader of the results."""
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
    for note in notes:
        log.warning("%s", note)
    return notes


def _summarize(
    config: InferenceConfig,
    mapper: SlideMapper,
    threshold: ThresholdChoice | None,
    engine_choice: str,
    *,
    last_run: LastRun,
    notes: list[str],
) -> InferenceSummary:
    """Return the settings of the maps and the notes for their reader."""
    return InferenceSummary(
        **{key: getattr(mapper.provenance, key) for key in MapSettings.model_fields},
        threshold_choice=threshold,
        provider=config.provider,
        resolution=mapper.predictor.metadata.resolution,
        engine_choice=engine_choice,
        device=str(mapper.predictor.settings.torch_device),
        date=make_timestamp(),
        last_run=last_run,
        labels=config.labels,
        gleason_rule=mapper.predictor.metadata.gleason_rule,
        calibration=mapper.grader.metadata.calibration if mapper.grader else None,
        abstention=mapper.grader.metadata.abstain_below if mapper.grader else None,
        notes=notes,
    )
