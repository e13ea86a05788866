"""Put together what the runs of an inference left in a folder: tables, `inference.json` and page."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from omegaconf import DictConfig, OmegaConf
from pydantic import TypeAdapter, ValidationError

from panda.app.config_check import check_config
from panda.app.entry_point import SomeSlidesFailed, close_logs, log_to_file
from panda.app.hydra_job import find_idle_faults, list_keys, read_key
from panda.app.inference_tables import ONLY_UNGRADED, InferenceTables, TableContents
from panda.choices import name_command
from panda.data.shard import Shard
from panda.data.slide_records import RECORDS_FOLDER, RunRecord
from panda.errors import PandaError
from panda.files import hold_lock, remove_leftovers
from panda.inference.slide_result import SlideResult
from panda.report.grade_notes import describe_mark
from panda.report.inference_page import write_inference_page
from panda.report.inference_summary import INFERENCE_FILE, InferenceSummary
from panda.settings import Settings, Text, rule
from panda.stored import describe_faults

log = logging.getLogger(__name__)

_SUMMARY = TypeAdapter(InferenceSummary)


class CollectionConfig(Settings):
    """The keys of `conf/infer.yaml` for a command that maps nothing and puts the results of a folder together."""

    node: ClassVar[str] = ""

    collect: Text
    debug: bool
    run_dir: Text

    @rule
    def _check_keys(self) -> Iterator[str]:
        idle = {*list_keys()} - {*CollectionConfig.model_fields}
        yield from find_idle_faults(idle, f"{self.setting('collect')}, which maps no slides")

    @rule
    def _check_folder(self) -> Iterator[str]:
        if not (Path(self.collect) / RECORDS_FOLDER).is_dir():
            yield (
                f"{self.setting('collect')} has no records of slides ({RECORDS_FOLDER}): give the output of a command "
                "that maps slides, or the folder of its job in a multirun"
            )


def end_run(tables: InferenceTables, run: RunRecord, part: Shard | None, count: int) -> None:
    """Write tables and page at the end of a run; of shards, only the last one that did something does.

    Args:
        tables: The tables of the run.
        run: What the run made.
        part: Its shard, None if it mapped all slides.
        count: Number of its slides.

    Raises:
        SomeSlidesFailed: If slides failed; for the last shard, also those of other shards.
    """
    if part is None:
        _write_results(tables, run)
    elif tables.has_all(run):
        _collect_once(tables, run)
    else:
        command = f"{name_command('infer')} collect={tables.folder}"
        log.info("shard %s is done; the last one writes the tables, or %s", part, command)
    if tables.failed:
        raise SomeSlidesFailed(_describe_failures(tables, count))


def _collect_once(tables: InferenceTables, run: RunRecord) -> None:
    """Write tables and page, unless another shard has written them since the last slide."""
    with hold_lock(tables.folder / RECORDS_FOLDER / "collected"):
        if tables.are_collected(run):
            log.info("tables and page have all slides already")
        else:
            _raise_faults(tables.folder, _write_results(tables, run))


@close_logs
def collect(cfg: DictConfig) -> None:
    """Write tables and page from the records of a folder, whose runs may be at work or were killed.

    It needs no torch, which takes half a gigabyte.

    Args:
        cfg: `conf/infer.yaml` as Hydra composed it, with `collect`. Its other keys are not read.

    Raises:
        ConfigError: If the folder has no records, or a key is typed that is not used.
        PandaError: If the folder has no record of a run.
        SomeSlidesFailed: If slides failed or have no result yet.
    """
    keys = OmegaConf.create({key: read_key(cfg, key) for key in CollectionConfig.model_fields})
    folder = Path(check_config(keys, "collect").collect)
    log_to_file(folder / "infer.log")
    run = InferenceTables.find_last_run(folder)
    if run is None:
        raise PandaError(f"{folder}: no run is recorded; map its slides again, the finished ones are not opened")
    _raise_faults(folder, _write_results(InferenceTables(folder, run.made_with), run))


def read_summary(run: RunRecord, folder: Path) -> InferenceSummary:
    """Return the settings and notes of a run in a folder.

    Raises:
        PandaError: If another version recorded it.
    """
    try:
        return _SUMMARY.validate_json(json.dumps(run.summary), strict=True)
    except ValidationError as error:
        raise PandaError(
            f"{folder}: a record of a run is of another version ({describe_faults(error)}): run it again"
        ) from error


def _write_results(tables: InferenceTables, run: RunRecord) -> TableContents:
    summary = read_summary(run, tables.folder)
    collected = tables.write(run)
    new = list(filter(None, (collected.describe_others(), collected.describe_missing())))
    for note in new:
        log.warning("%s", note)
    summary = summary.model_copy(update={"notes": [*summary.notes, *new]})
    with hold_lock(tables.folder / "report.html"):
        remove_leftovers(tables.folder, INFERENCE_FILE)
        summary.write(tables.folder)
        report = write_inference_page(tables.folder)
    for result in tables.shown:
        log.info("%s", _describe_slide(result))
    tables.mark_collected(run)
    log.info("report: %s", report)
    return collected


def _raise_faults(folder: Path, collected: TableContents) -> None:
    failed, missing = collected.failed, collected.missing.count
    faults = [f"{failed} slides failed: see {folder / 'failures.csv'}"] * bool(failed)
    faults += [f"{missing} slides have no result yet ({collected.missing}): map them again"] * bool(missing)
    if faults:
        raise SomeSlidesFailed("; ".join(faults))


def _describe_failures(tables: InferenceTables, count: int) -> str:
    """Return how many slides failed, as a sentence."""
    ungraded = sum(failure.stage == ONLY_UNGRADED for failure in tables.failed.values())
    but = f" ({ungraded} only in grading, with tumour figures)" if ungraded else ""
    return f"{len(tables.failed)} of {count} slides failed{but}: see {tables.folder / 'failures.csv'}" + (
        "; the others are done" if len(tables.failed) < count else ""
    )


def _describe_slide(result: SlideResult) -> str:
    """Return the figures of a slide that are read first, as one line of the log."""
    area = "area unknown (no µm/px)" if result.tumor_mm2 is None else f"{result.tumor_mm2:.3f} mm²"
    percent = result.tumor_percent_of_tissue
    share = "–" if percent is None else f"{percent:.2f} %"
    grade = "" if result.provenance.grader is None else ", not graded"
    if result.grade is not None:
        grade = f", {result.grade.describe_with_name()}"
        grade += f" ({mark})" if (mark := describe_mark(result.grade)) else ""
    if (rule := result.rule_grade) is not None:
        grade += f", Gleason {rule.score} (ISUP {rule.isup}) by areas" if rule.score else ", no Gleason score"
    held = [f"{own.name} {own.percent_of_tumor:.0f} %" for own in result.classes if own.percent_of_tumor]
    classes = f" ({', '.join(held)})" if held else ""
    return f"{result.slide_id}: tumour {share} of tissue, {area}{classes}, {result.num_regions} regions{grade}"
