"""Put together what processes of an audit left in a folder: tables, `summary.json` and page."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from omegaconf import DictConfig

from panda.app.collection import CollectionConfig, read_folder
from panda.app.entry_point import close_logs, log_to_file
from panda.app.slide_tables import PAGE
from panda.audit.audit_run import RUN_FILE, AuditRun
from panda.audit.dataset import Audit
from panda.audit.page import write_audit_page
from panda.audit.tables import AUDIT, FINDINGS_TABLE, GROUPS, SUMMARY, AuditSummary
from panda.choices import name_command
from panda.data.findings import REFUSED_ROWS, find_file_check
from panda.errors import PandaError
from panda.files import hold_lock, write_whole
from panda.settings import format_override

log = logging.getLogger(__name__)

SPOILT_LABELS = ("missing_mask", "empty_mask_graded", "benign_mask_cancer_grade", "cancer_mask_benign_grade")
"""Warnings whose slides would train a segmentation wrongly."""
_WRITTEN = ".written"
"""File beside the records: fingerprint of what shards made tables and page from."""


class AuditCollectionConfig(CollectionConfig):
    """The keys of `conf/audit.yaml` for a command that inspects nothing."""

    marker: ClassVar[str] = RUN_FILE


@close_logs
def collect(cfg: DictConfig) -> AuditSummary:
    """Compare all slides of an audit, and write tables and page, when each slide is inspected.

    Args:
        cfg: `conf/audit.yaml` as Hydra composed it, with `collect`. Its other keys are not read.

    Raises:
        ConfigError: If the folder has no audit of slides, or a key is typed that is not used.
        PandaError: If slides are not inspected yet.
    """
    folder = read_folder(cfg, "audit_collection")
    audit = Audit(AuditRun.read(folder), folder)
    require_all(audit)
    log_to_file(folder / "audit.log")
    return write_results(audit)


def require_all(audit: Audit) -> None:
    """Refuse to compare the slides of an audit before each is inspected.

    Raises:
        PandaError: If slides have no record of their present files.
    """
    if (missing := audit.list_missing()).count:
        raise PandaError(
            f"{audit.out}: {missing.count} of {len(audit.slides)} slides are not inspected yet, or their files are "
            f"others here ({missing}), and near-duplicates are found among all: inspect them with the same command; "
            "inspected slides are kept"
        )


def write_results_once(audit: Audit) -> AuditSummary:
    """Write tables and page as the last shard, unless one has written them since the last inspection."""
    written, out = audit.records.folder / _WRITTEN, audit.out
    with hold_lock(written):
        found = audit.fingerprint() if audit.is_finished() else ""
        has_all = all((out / name).is_file() for name in (SUMMARY, AUDIT, FINDINGS_TABLE, GROUPS, PAGE))
        if found and has_all and written.is_file() and written.read_text(encoding="utf-8") == found:
            log.info("tables and page have all slides already")
            return AuditSummary.read(out)
        summary = write_results(audit)
        write_whole(written, found)
        return summary


def write_results(audit: Audit) -> AuditSummary:
    """Write tables and page of an audit, and log what it found."""
    out, summary = audit.out, audit.write()
    steps = list_next_steps(summary, out, audit.run.choices)
    with hold_lock(out / AUDIT):  # as for the tables
        report = write_audit_page(out, steps).name
    for line in describe_summary(summary):
        log.info("%s", line)
    for level in summary.levels:
        log.log(logging.WARNING if level.is_mixed else logging.INFO, "%s", level.describe())
    log.info("findings of each slide: %s", out / FINDINGS_TABLE)
    log.info("report: %s", out / report)
    for step in steps:
        log.info("next: %s", step)
    return summary


def describe_summary(summary: AuditSummary) -> list[str]:
    """Return the findings in a few lines, the worst first."""
    lines = [
        f"{summary.slides:,} slides: {sum(summary.worst.values()):,} with findings ("
        + ", ".join(
            f"{count:,} at worst with {'an' if severity == 'error' else 'a'} {severity}"
            for severity, count in summary.worst.items()
        )
        + ")"
    ]
    for severity in summary.worst:
        lines += [
            f"  {severity:<8} {name:<26} {count.slides:>7,}   "
            + ", ".join(f"{provider} {slides:,}" for provider, slides in count.by_provider.items())
            for name, count in summary.findings.items()
            if count.severity == severity
        ]
    if (groups := summary.groups) is not None:
        lines.append(
            f"near-duplicates: {groups.slides:,} slides in {groups.groups:,} groups, "
            f"{groups.with_conflicting_grades:,} of them with different grades; the largest has {groups.largest}"
            if groups.groups
            else "near-duplicates: none"
        )
    return lines


def list_next_steps(summary: AuditSummary, out: Path, choices: Sequence[str]) -> list[str]:
    """Return what to do next with the data of these choices, as sentences and commands."""
    steps = []
    if refused := [name for name in summary.findings if name in REFUSED_ROWS]:
        steps.append(f"correct the table of slides first, training refuses it as it is: {', '.join(refused)}")
    kind, key = ("table", "table") if Path(summary.data).suffix == ".csv" else ("panda", "root")
    source = f"data={kind} {format_override(f'data.{key}={summary.data}')}"
    given = " ".join(map(shlex.quote, choices)) or source
    if summary.groups is None:
        steps.append(
            "only the table was read, so there is no groups.csv: near-duplicates are found by their tissue. Inspect "
            f"the slides: {name_command('audit')} {given}"
        )
        return steps
    exclude = [
        name
        for name, count in summary.findings.items()
        if name in SPOILT_LABELS or (count.severity == "error" and name not in REFUSED_ROWS)
    ]
    filters = f" data.exclude=[{','.join(exclude)}]" if exclude else ""
    tables = [f"data.groups={out / GROUPS}"]
    if any(find_file_check(name) is None for name in exclude):
        tables.insert(0, f"data.findings={out / FINDINGS_TABLE}")
    files = map(format_override, tables)
    steps.append(f"{name_command('train')} {given} {' '.join(files)}{filters}")
    return steps
