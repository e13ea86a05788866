"""Map slides with a checkpoint: maps, figures, grades and a report."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from panda.app.build import Faults
from panda.app.cluster import WorkerCluster
from panda.app.collection import end_run
from panda.app.config_check import check_config
from panda.app.entry_point import close_logs
from panda.app.feature_inference import infer_from_features
from panda.app.inference_config import FeatureInferenceConfig, InferenceConfig
from panda.app.inference_tables import InferenceTables
from panda.app.slide_keys import find_keys, fingerprint_command
from panda.app.slide_mapping import LoadedMapping, MappingFacts, SlideMapping
from panda.app.slide_progress import SlideProgress
from panda.app.slide_tables import parse_summary
from panda.app.slide_work import begin_log, open_work, run_on_cluster
from panda.app.slide_writing import SlideWriting
from panda.app.software import describe_making
from panda.data.run_records import RunRecord
from panda.inference.slide_loop import SlidePrefetcher
from panda.inference.slide_result import MapSettings
from panda.report.inference_summary import InferenceSummary, LastRun
from panda.tasks.figures import make_timestamp

log = logging.getLogger(__name__)

_STAGE = "inference"


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
    else:
        _map_slides(config, started)


def _map_slides(config: InferenceConfig, started: float) -> None:
    """Map every slide, see `infer`. `started` is the time of the start, in s of `time.monotonic`."""
    paths, folder = config.slide_list.paths, Path(config.run_dir)
    part, own_slides, command = config.own_shard, config.own_slides, fingerprint_command(config)
    if isinstance(config.cluster, WorkerCluster) and _end_finished_run(config, command, started):
        return
    with open_work(config.cluster, SlideMapping.from_config(config), folder) as maps:
        _log_slides(config)
        facts = maps.facts
        log.info("network in %s: %s", facts.engine, facts.engine_choice)
        notes = [*facts.notes]
        for note in notes:
            log.warning("%s", note)
        tables = InferenceTables(folder, facts.provenance.fingerprint, is_shard=part is not None)

        def write_run() -> RunRecord:
            taken = round(time.monotonic() - started, 1)
            last_run = LastRun(slides=len(own_slides), failed=len(tables.failed), seconds=taken)
            summary = _summarize(config, facts, last_run=last_run, notes=notes)
            return tables.write_run((path.stem for path in paths), summary, command)

        write_run()
        finished = _find_finished(config, tables)
        left = [path for path in own_slides if path.stem not in finished]
        if finished:
            log.info("%d of them are finished already", len(finished))
        with SlideProgress(tables, len(left), _STAGE) as progress:
            if isinstance(maps, LoadedMapping):
                _map_here(maps, config, left, progress)
                notes += maps.notes
            else:
                notes += run_on_cluster(maps, left, progress)
    end_run(tables, write_run(), part, len(own_slides))


def _log_slides(config: InferenceConfig) -> None:
    """Begin the log, with the numbers of slides."""
    begin_log(config, Path(config.run_dir), InferenceTables.command)
    if config.labels:
        log.info("labels: %d of %d slides have a mask", len(config.labelled), len(config.slide_list.paths))


def _find_finished(config: InferenceConfig, tables: InferenceTables) -> set[str]:
    """Return the slides that are finished; a run without labels leaves scored slides as they are."""
    return tables.find_finished(find_keys(config, tables.made_with), any_label=config.labels is None)


def _end_finished_run(config: InferenceConfig, command: str, started: float) -> bool:
    """End a run without workers if the same command was run before and all slides are finished; return whether."""
    folder, part, slides = Path(config.run_dir), config.own_shard, config.own_slides
    if (before := InferenceTables.find_last_run(folder, command)) is None:
        return False
    tables = InferenceTables(folder, before.made_with, is_shard=part is not None)
    finished = _find_finished(config, tables)
    if any(path.stem not in finished for path in slides):
        return False
    _log_slides(config)
    log.info("all of them are finished already: no worker is started")
    last_run = LastRun(slides=len(slides), failed=0, seconds=round(time.monotonic() - started, 1))
    changes = {"date": make_timestamp(), "last_run": last_run}
    summary = parse_summary(folder, before, InferenceSummary).model_copy(update=changes)
    run = tables.write_run((path.stem for path in config.slide_list.paths), summary, command)
    end_run(tables, run, part, len(slides))
    return True


def _map_here(mapping: LoadedMapping, config: InferenceConfig, paths: Sequence[Path], progress: SlideProgress) -> None:
    """Map slides in this process, open the next one ahead, and let processes write the folders of those before."""
    processes = config.engine.post_process_count if len(paths) > 1 else 0  # one slide has no next one
    with (
        SlideWriting(progress, processes) as writing,
        SlidePrefetcher(paths, mapping.mapper.open) as prefetcher,
    ):
        for path in paths:
            try:
                with prefetcher.open(path) as (slide, tissue):
                    writing.add(mapping.map(slide, tissue, writing.show_tiles))
            except Exception as error:
                progress.fail(path.stem, error)
            writing.record()
        writing.record(everything=True)


def check(cfg: DictConfig, faults: Faults | None = None) -> InferenceConfig | FeatureInferenceConfig:
    """Check a configuration and the files that it names. Faults that were found before are raised with its own."""
    config: InferenceConfig | FeatureInferenceConfig = check_config(cfg, "infer", faults)
    return config


def _summarize(
    config: InferenceConfig, facts: MappingFacts, *, last_run: LastRun, notes: list[str]
) -> InferenceSummary:
    """Return the settings of the maps and the notes for their reader."""
    metadata, grading = config.segmentation.metadata, config.grading.metadata if config.grading else None
    return InferenceSummary(
        **{key: getattr(facts.provenance, key) for key in MapSettings.model_fields},
        threshold_choice=metadata.threshold if config.threshold == "checkpoint" else None,
        provider=config.provider,
        resolution=metadata.resolution,
        network=metadata.network,
        patch_size=metadata.patch_size,
        engine_choice=facts.engine_choice,
        device=facts.device,
        date=make_timestamp(),
        last_run=last_run,
        labels=config.labels,
        groups=config.groups,
        gleason_rule=metadata.gleason_rule,
        calibration=grading.calibration if grading else None,
        abstention=grading.abstain_below if grading else None,
        notes=notes,
        **dict(describe_making()),
    )
