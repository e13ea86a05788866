"""Put together what the runs of a command left in a folder: tables, settings with notes, and page."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from omegaconf import DictConfig, OmegaConf

from panda.app.config_check import check_config
from panda.app.entry_point import SomeSlidesFailed, close_logs, log_to_file
from panda.app.hydra_job import find_idle_faults, list_keys, read_key
from panda.app.slide_tables import FAILURES, ONLY_UNGRADED, PAGE, SlideTables, TableContents
from panda.choices import name_command
from panda.data.run_records import RECORDS_FOLDER, RunRecord
from panda.data.shard import Shard
from panda.data.slide_records import NamedSlides
from panda.files import hold_lock
from panda.settings import Settings, Text, format_override, rule

log = logging.getLogger(__name__)


class CollectionConfig(Settings):
    """The keys of a command that works on no slide and puts the results of a folder together."""

    node: ClassVar[str] = ""
    marker: ClassVar[str] = RECORDS_FOLDER

    collect: Text
    debug: bool
    run_dir: Text

    @rule
    def _check_keys(self) -> Iterator[str]:
        idle = {*list_keys()} - {*CollectionConfig.model_fields}
        yield from find_idle_faults(idle, f"{self.setting('collect')}, which opens no slides")

    @rule
    def _check_folder(self) -> Iterator[str]:
        if not (Path(self.collect) / self.marker).exists():
            yield (
                f"{self.setting('collect')} has no records of slides ({self.marker}): give the output of this command, "
                "or the folder of its job in a multirun"
            )


def end_run(tables: SlideTables[Any], run: RunRecord, part: Shard | None, count: int) -> None:
    """Write tables and page at the end of a run; of shards, only the last one that did something does.

    Args:
        tables: The tables of the run.
        run: What the run made.
        part: Its shard, None if it did all slides.
        count: Number of its slides.

    Raises:
        SomeSlidesFailed: If slides failed; for the last shard, also those of other shards.
    """
    if part is None:
        _write_results(tables, run)
    elif tables.has_all(run):
        _collect_once(tables, run)
    else:
        log_shard_end(part, tables.command, tables.folder)
    if tables.failed:
        raise SomeSlidesFailed(_describe_failures(tables, count))


def log_shard_end(part: Shard, command: str, folder: Path) -> None:
    """Log that a shard is done before others are, and the command that writes tables and page."""
    collect_it = f"{name_command(command)} {format_override(f'collect={folder}')}"
    log.info("shard %s is done; the last one writes the tables, or %s", part, collect_it)


def _collect_once(tables: SlideTables[Any], run: RunRecord) -> None:
    """Write tables and page, unless another shard has written them since the last slide."""
    with hold_lock(tables.folder / RECORDS_FOLDER / "collected"):
        if tables.are_collected(run):
            log.info("tables and page have all slides already")
        else:
            collected = _write_results(tables, run)
            # Slides are missing if files changed since their records; the other shards do them again.
            _raise_faults(tables.folder, replace(collected, missing=NamedSlides()))


@close_logs
def collect(cfg: DictConfig, kind: type[SlideTables[Any]]) -> None:
    """Write tables and page from the records of a folder, whose runs may be at work or were killed.

    It needs no torch, which takes half a gigabyte.

    Args:
        cfg: The configuration of an entry point as Hydra composed it, with `collect`. Its other keys are not read.
        kind: The tables of the entry point.

    Raises:
        ConfigError: If the folder has no records, or a key is typed that is not used.
        PandaError: If the folder has no record of a run.
        SomeSlidesFailed: If slides failed or have no result yet.
    """
    folder = read_folder(cfg, "collect")
    tables, run = kind.open_last(folder)
    log_to_file(folder / f"{kind.command}.log")
    _raise_faults(folder, _write_results(tables, run))


def read_folder(cfg: DictConfig, entry_point: str) -> Path:
    """Return the folder that `collect` names; the other keys of the configuration are not read."""
    keys = OmegaConf.create({key: read_key(cfg, key) for key in CollectionConfig.model_fields})
    return Path(check_config(keys, entry_point).collect)


def _write_results(tables: SlideTables[Any], run: RunRecord) -> TableContents:
    collected = tables.write(run)
    notes = list(filter(None, (collected.describe_others(), collected.describe_missing())))
    for note in notes:
        log.warning("%s", note)
    with hold_lock(tables.folder / PAGE):
        tables.write_summary(run, notes)
        report = tables.write_page()
    for line in tables.shown:
        log.info("%s", line)
    tables.mark_collected(run)
    log.info("report: %s", report)
    return collected


def _raise_faults(folder: Path, collected: TableContents) -> None:
    failed, missing = collected.failed, collected.missing.count
    faults = [f"{failed} slides failed: see {folder / FAILURES}"] * bool(failed)
    faults += [f"{missing} slides have no result yet ({collected.missing}): run their command again"] * bool(missing)
    if faults:
        raise SomeSlidesFailed("; ".join(faults))


def _describe_failures(tables: SlideTables[Any], count: int) -> str:
    """Return how many slides failed, as a sentence."""
    ungraded = sum(failure.stage == ONLY_UNGRADED for failure in tables.failed.values())
    but = f" ({ungraded} only in grading, with tumour figures)" if ungraded else ""
    return f"{len(tables.failed)} of {count} slides failed{but}: see {tables.folder / FAILURES}" + (
        "; the others are done" if len(tables.failed) < count else ""
    )
