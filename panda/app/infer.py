"""`infer(cfg)`: slides in, a folder of maps, figures, grades and a report out."""

from __future__ import annotations

import contextlib
import datetime
import glob
import logging
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from panda.app.build import Faults
from panda.app.config_check import check_config
from panda.app.entry_point import SomeSlidesFailed, log_to_file, make_folder
from panda.app.inference_tables import ONLY_UNGRADED, InferenceTables
from panda.data.manifest import TABLE, SlideRecord, read_manifest
from panda.errors import CheckpointError, ConfigError, ManifestError, PandaError
from panda.files import hold_lock, read_user_table
from panda.inference.autotune import TunedMode, tune_mode
from panda.inference.compute import EngineSettings
from panda.inference.evaluate import open_label
from panda.inference.grader import GradingPredictor
from panda.inference.predictor import SegmentationPredictor
from panda.inference.quantify import QuantifySettings
from panda.inference.slide_loop import run_over_slides, tile_progress
from panda.inference.slide_mapper import SlideMapper
from panda.inference.slide_prefetcher import SlidePrefetcher
from panda.inference.slide_result import SlideResult
from panda.report.attention_tiles import draw_attention_tiles
from panda.report.inference_page import write_inference_page
from panda.report.inference_summary import InferenceSummary, LastRun
from panda.report.slide_page import write_slide_page
from panda.tasks.checkpoint import Checkpoint, read_checkpoint
from panda.tasks.metadata import SegmentationMetadata
from panda.tasks.threshold import ThresholdChoice
from panda.wsi.slide import SlideOptions

log = logging.getLogger(__name__)

SLIDE_SUFFIXES = (".tiff", ".tif", ".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".czi", ".dcm")


TABLE_EVERY = 20
"""Slides after which `quantification.csv` is written anew, so that an interrupted run leaves one."""
SHOWN = 20
"""Slides whose figures are printed."""


def infer(cfg: DictConfig) -> list[SlideResult]:
    """Map every slide, continue after bad ones, and write the report.

    Args:
        cfg: `conf/infer.yaml` as composed by Hydra, or by a test, which then gives `run_dir`.

    Returns:
        The results in `quantification.csv`: all slides in the folder with the provenance of this run.

    Raises:
        ConfigError: With all faults of the configuration, before anything slow.
        CheckpointError: If a checkpoint cannot be used.
        SomeSlidesFailed: At the end, if any slide failed or could not be graded; `failures.csv` lists them.
    """
    started = time.monotonic()
    engine, quantify, paths, labelled, checkpoint = _checked(cfg)
    if cfg.labels:
        log.info("labels: %d of %d slides have a mask", len(labelled), len(paths))
    predictor = SegmentationPredictor(checkpoint, engine)
    grader = GradingPredictor.from_checkpoint(Path(cfg.grading_checkpoint), engine) if cfg.grading_checkpoint else None
    searched = cfg.threshold == "checkpoint"
    threshold = predictor.threshold.value_for(cfg.provider) if searched else float(cfg.threshold)
    mapper = SlideMapper(predictor, threshold, quantify, grader, _slide_options(cfg), cfg.colour_map)

    # Results go to the job's folder; canvases to `output`, where all jobs of a multirun find them.
    folder, canvases = Path(cfg.run_dir), Path(cfg.output)
    make_folder(folder)
    log_to_file(folder / "infer.log")
    choice = tune_mode(predictor, threshold, paths, mapper.open, canvases / "engine.json")
    log.info("network in %s on %s: %s", predictor.mode, engine.torch_device, choice.why)
    notes = _notes(predictor, grader, searched, cfg.provider, choice)
    tables = InferenceTables(folder, mapper.provenance.fingerprint)

    def work(path: Path, bar: tqdm[Any]) -> None:
        with prefetcher.open(path) as (slide, tissue), contextlib.ExitStack() as stack:
            own = folder / slide.slide_id
            known = None
            if record := labelled.get(slide.slide_id):
                known = record, stack.enter_context(open_label(record, slide, predictor.metadata.label_maps))
            canvas_path = canvases / slide.slide_id / "canvas.zarr"
            with hold_lock(own / "slide.html"):  # so that another run's tiles and page do not come between
                mapped = mapper.map(slide, tissue, own, canvas_path, tile_progress(bar), labelled=known)
                draw_attention_tiles(mapped.grade, own / "attention_tiles.png")
                write_slide_page(own)
        tables.add(mapped.result, mapped.ungraded)
        if len(tables.done) % TABLE_EVERY == 1:
            tables.write()

    tables.write()
    with SlidePrefetcher(paths, mapper.open) as prefetcher:
        run_over_slides(paths, lambda path: path.stem, "inference", work, tables.fail)
    tables.scan()  # what another process mapped into this folder meanwhile
    results = tables.write()
    if others := tables.note():
        log.warning("%s", others)
        notes.append(others)
    last_run = LastRun(slides=len(paths), failed=len(tables.failed), seconds=round(time.monotonic() - started, 1))
    origin = predictor.threshold if searched else None
    _summarize(cfg, mapper, origin, choice.why, last_run=last_run, notes=notes).write(folder)
    report = write_inference_page(folder)
    for result in list(tables.done.values())[:SHOWN]:
        log.info("%s", _headline(result))
    log.info("report: %s", report)
    if tables.failed:
        raise SomeSlidesFailed(_failed(tables, len(paths)))
    return results


def _checked(
    cfg: DictConfig,
) -> tuple[EngineSettings, QuantifySettings, list[Path], dict[str, SlideRecord], Checkpoint[SegmentationMetadata]]:
    """What can be refused before a network is built: settings, slides, their labels and the segmentation checkpoint.

    A file that cannot be used is told after the faults that were found without it.
    """
    faults = Faults()
    check_config(cfg, "infer", faults)
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    engine: EngineSettings = faults.build(plain, "engine")
    quantify: QuantifySettings = faults.build(plain, "quantify")
    faults.add(*_slide_options(cfg).faults())
    searched = cfg.threshold == "checkpoint"
    if cfg.provider is not None and not searched:
        faults.add(f"provider={cfg.provider}: no part where threshold=… is given; leave one of them out")
    paths: list[Path] = []
    labelled: dict[str, SlideRecord] = {}
    try:
        with faults.collect():
            paths = find_slides(cfg.slides)
        checkpoint: Checkpoint[SegmentationMetadata] | CheckpointError
        try:
            checkpoint = read_checkpoint(Path(cfg.checkpoint), SegmentationMetadata)
        except CheckpointError as error:
            checkpoint = error
        with faults.collect():
            labelled = _labelled(cfg.labels, paths, checkpoint)
        if isinstance(checkpoint, CheckpointError):
            raise checkpoint
    except PandaError:
        faults.raise_any()
        raise
    if cfg.provider is not None and searched:
        with faults.collect():
            _check_provider(cfg.provider, checkpoint.metadata.threshold)
    faults.raise_any()
    return engine, quantify, paths, labelled, checkpoint


def _slide_options(cfg: DictConfig) -> SlideOptions:
    """Return how the slides are opened, from the keys `reader` and `mpp_override`."""
    return SlideOptions(cfg.reader, None if cfg.mpp_override is None else float(cfg.mpp_override))


def _labelled(
    root: str | None, paths: Sequence[Path], checkpoint: Checkpoint[SegmentationMetadata] | CheckpointError
) -> dict[str, SlideRecord]:
    """Return the slides that have a label mask, by name.

    Args:
        root: A folder in PANDA's layout, or None.
        paths: The slides; empty if they were not found, then nothing is known of their masks.
        checkpoint: The checkpoint, which can know providers that `conf/label_maps` does not have; or its fault.

    Raises:
        ConfigError: If it is no such folder, or none of them has one there.
        ManifestError: If the folder's table cannot be used.
    """
    if root is None:
        return {}
    if not (Path(root) / TABLE).is_file():
        raise ConfigError(
            f"labels={root}: there is no {Path(root) / TABLE}; give the folder that holds {TABLE} and "
            "train_label_masks/ of these slides, or leave it out"
        )
    if not paths:
        return {}
    names = {path.stem for path in paths}
    label_maps = checkpoint.metadata.label_maps if isinstance(checkpoint, Checkpoint) else {}
    found = [record for record in read_manifest(root, label_maps=label_maps) if record.slide_id in names]
    labelled = {record.slide_id: record for record in found if record.mask_path and record.mask_path.is_file()}
    if not labelled:
        raise ConfigError(
            f"labels={root}: none of the {len(names)} slides has a mask there ({len(found)} are in its table); give "
            "the folder that holds train.csv and train_label_masks/ of these slides, or leave it out"
        )
    return labelled


def _check_provider(provider: str, choice: ThresholdChoice) -> None:
    """Refuses a provider that the checkpoint does not know.

    Raises:
        ConfigError: Naming the key and the remedy.
    """
    if not choice.by_provider:
        raise ConfigError(f"provider={provider}: the checkpoint has one threshold for all providers; leave it out")
    if provider not in choice.by_provider:
        raise ConfigError(f"provider={provider}: the checkpoint has thresholds for {', '.join(choice.by_provider)}")


def find_slides(given: str) -> list[Path]:
    """The slides that `slides=` names, in a fixed order.

    Args:
        given: A slide; a folder of slides, or one in PANDA's layout; a glob; or a CSV with a column `path`, or
            `image_id` with the slides in `train_images/` or beside the table.

    Returns:
        Paths; a slide that a CSV names is returned whether or not it exists, so that its absence is recorded.

    Raises:
        ConfigError: If nothing is found, or two slides have one name.
        ManifestError: If a CSV has neither column.
    """
    path = Path(given)
    if path.is_file() and path.suffix.lower() == ".csv":
        found = _slides_of_table(path)
    elif path.is_dir():
        folder = path / "train_images" if (path / "train_images").is_dir() else path
        found = sorted(p for p in folder.iterdir() if p.suffix.lower() in SLIDE_SUFFIXES)
    elif path.exists():
        found = [path]
    else:
        found = sorted(Path(p) for p in glob.glob(given, recursive=True))
    if not found:
        raise ConfigError(
            f"slides={given}: no slide found; give a slide, a folder of {', '.join(SLIDE_SUFFIXES[:3])} … files, "
            "a quoted glob such as 'slides/*.svs', or a CSV with a column path or image_id"
        )
    twice = [name for name, count in Counter(p.stem for p in found).items() if count > 1]
    if twice:
        raise ConfigError(
            f"slides={given}: several slides are named {', '.join(sorted(twice)[:5])}; results go by name"
        )
    return found


def _slides_of_table(table: Path) -> list[Path]:
    numbered = read_user_table(table, (), ("path", "image_id"), may_be_empty=True)
    rows = [row for _, row in numbered]
    key = "path" if rows and "path" in rows[0] else "image_id"
    empty = [number for number, row in numbered if not row[key]]
    if empty:
        raise ManifestError(f"{table}: line {empty[0]} has no {key}; fill it in or remove the line")
    if key == "path":
        return [table.parent / row["path"] for row in rows]
    folder = table.parent / "train_images"
    folder = folder if folder.is_dir() else table.parent
    unsafe = [row["image_id"] for row in rows if Path(row["image_id"]).name != row["image_id"]]
    if unsafe:
        raise ManifestError(f"{table}: image_id {unsafe[0]!r} is a path; give the slide's name alone, or a column path")
    return [folder / f"{row['image_id']}.tiff" for row in rows]


def _notes(
    predictor: SegmentationPredictor,
    grader: GradingPredictor | None,
    searched: bool,
    provider: str | None,
    choice: TunedMode,
) -> list[str]:
    """What a reader of the results has to know about the checkpoints and how they are run.

    Args:
        predictor: The segmentation.
        grader: The grading, if any.
        searched: Whether the segmentation's own threshold is used.
        provider: Of the slides, if it was given.
        choice: How the network is run.
    """
    notes = []
    frozen = predictor.threshold
    if searched and frozen.by_provider and provider is None:
        own = ", ".join(f"{name} {frozen.value_for(name):.3f}" for name in frozen.by_provider)
        notes.append(
            f"The checkpoint has thresholds by provider ({own}); the provider of these slides is not known, so that of "
            f"all is used, {frozen.value:.3f}. provider=… takes another."
        )
    metadata, precision = predictor.metadata, predictor.mode.precision
    if searched and metadata.precision != precision:
        tried = "" if choice.moved is None else f"; tried on tiles of one slide, {choice.why}"
        notes.append(
            f"The threshold was chosen on maps of engine.precision={metadata.precision}; these are of {precision}, "
            f"whose probabilities differ a little{tried}."
        )
    if searched and metadata.tta != (tta := predictor.settings.tta):
        notes.append(f"The threshold was chosen on maps of engine.tta={metadata.tta}; these are of {tta}.")
    if grader is not None and (guides := grader.metadata.segmentation) and predictor.fingerprint not in guides:
        notes.append(
            "The grader was trained on tiles that another segmentation chose: its grades are outside what was tested."
        )
    for note in notes:
        log.warning("%s", note)
    return notes


def _summarize(
    cfg: DictConfig,
    mapper: SlideMapper,
    threshold: ThresholdChoice | None,
    engine_choice: str,
    *,
    last_run: LastRun,
    notes: list[str],
) -> InferenceSummary:
    """Return the settings of the maps and the notes for their reader."""
    engine = mapper.predictor.settings
    return InferenceSummary(
        checkpoint=mapper.provenance.checkpoint,
        grading_checkpoint=mapper.provenance.grading_checkpoint,
        threshold=mapper.threshold,
        threshold_choice=threshold,
        provider=cfg.provider,
        quantify=mapper.quantify,
        resolution=mapper.predictor.metadata.resolution,
        precision=mapper.predictor.mode.precision,
        compiled=mapper.predictor.mode.compiled,
        engine_choice=engine_choice,
        tta=engine.tta,
        reader=mapper.slide_options.reader,
        mpp_override=mapper.slide_options.mpp_override,
        device=str(engine.torch_device),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        last_run=last_run,
        labels=cfg.labels,
        notes=notes,
    )


def _failed(tables: InferenceTables, count: int) -> str:
    """How many slides of so many failed, in a sentence."""
    ungraded = sum(failure.stage == ONLY_UNGRADED for failure in tables.failed.values())
    but = f" ({ungraded} in grading alone, their tumour figures are there)" if ungraded else ""
    return f"{len(tables.failed)} of {count} slides failed{but}: {tables.folder / 'failures.csv'} says why" + (
        "; the others are done" if len(tables.failed) < count else ""
    )


def _headline(result: SlideResult) -> str:
    """Return the figures of a slide that are read first, as one line of the log."""
    area = "area unknown (no µm/px)" if result.tumor_mm2 is None else f"{result.tumor_mm2:.3f} mm²"
    percent = result.tumor_percent_of_tissue
    share = "–" if percent is None else f"{percent:.2f} %"
    grade = "" if result.provenance.grader is None else ", not graded"
    if result.grade is not None:
        grade = f", graded {result.grade.class_names[result.grade.predicted]}"
    return f"{result.slide_id}: tumour {share} of tissue, {area}, {result.num_regions} regions{grade}"
