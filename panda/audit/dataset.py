"""The audit of a data set: inspect every slide and mask once, and report their faults.

`python audit.py data=panda data.root=…`; `docs/audit.md` lists the findings.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

from tqdm import tqdm

from panda.audit import tables
from panda.audit.inspection import RULE_VERSIONS, Inspection
from panda.audit.near_duplicates import find_duplicates
from panda.audit.process_pool import run_in_processes
from panda.audit.records import RecordFolder
from panda.audit.slide_table import check_table, index_by_slide
from panda.data.slide_files import sort_slide_files
from panda.data.slide_rows import IMAGES, TABLE, SlideRow, read_rows
from panda.errors import ConfigError, PandaError
from panda.files import hold_lock, remove_leftovers
from panda.tables import write_table
from panda.wsi.slide import SlideOptions

log = logging.getLogger(__name__)

RECORDS = "slides"


def audit_folder(
    root: Path | str,
    out: Path | str,
    *,
    labels: str | None = None,
    slides: bool = True,
    workers: int = 2,
    deep: bool = False,
    options: SlideOptions = SlideOptions(),
    empty_means_benign: bool = False,
    progress: bool = True,
) -> tables.AuditSummary:
    """Audit a table of slides, and return the content of `summary.json`.

    `out` gets `audit.csv` with a row for each slide, `findings.csv` with a row for each finding, and `summary.json`.
    If slides are inspected, `groups.csv` has the near-duplicate group of each slide, and `pairs.csv` the slides that
    match. `slides/` then has the inspection and a picture of each slide.

    The process may be killed at any moment. The next call inspects only slides without a record, or whose row or files
    changed, and leaves the same bytes as one call without interruption. A second process on the same folder waits for
    the first. Memory holds some kilobytes of each slide to compare all of them, and no picture.

    Args:
        root: The folder that holds `train.csv`, or a CSV, see `panda.data.slide_rows.read_rows`.
        out: The folder to write to.
        labels: The label map of slides without a provider.
        slides: Inspect slides and masks; otherwise only the table is read, and there are no groups and pairs.
        workers: Slides inspected at the same time, each in its own process. A crash is a finding of its slide.
        deep: Decode every tile of every slide and count masks at level 0.
        options: Options to open slides.
        empty_means_benign: An annotation file without any object means a slide without cancer.
        progress: Show a bar over the slides.

    Raises:
        ManifestError: If the table is missing or not a table.
        ConfigError: If `out` has the audit of other data, or another `summary.json`; or if it has an audit of slides
            and `slides` is False, because the findings of the table would replace those of the slides.
        OSError: If `out` cannot be written, or a slide has been removed since its inspection.
    """
    root, out = Path(root), Path(out)
    table = read_rows(root, labels)
    if not slides and (out / tables.GROUPS).exists():
        raise ConfigError(
            f"audit.slides=false: {out} has an audit of the slides, whose findings those of the table alone would "
            f"replace; give another audit.output, or remove audit.slides=false: inspected slides are kept"
        )
    _check_output(out, root)
    folder = root if root.is_dir() else root.parent
    records = RecordFolder(out / RECORDS, folder, options, deep, empty_means_benign)
    with hold_lock(out / tables.AUDIT):
        remove_leftovers(out)
        if slides:
            if root.is_dir():
                _log_unlisted(table, root / IMAGES)
            _inspect_all([row for row in index_by_slide(table).values() if row.has_file], records, workers, progress)
        return _write_all(table, records if slides else None, out, root)


def _log_unlisted(table: Sequence[SlideRow], folder: Path) -> None:
    """Log how many files in the folder of the slides are in no row of the table."""
    listed = {row.image_path.name for row in table}
    files = sort_slide_files(path for path in folder.glob("*") if path.name not in listed)
    unlisted = [f"{len(files.slides)} slides"] * bool(files.slides)
    if text := ", ".join([*unlisted, files.describe_passed_over()]).removesuffix(", "):
        log.info("%s: in no row of %s: %s", folder, TABLE, text)


def _check_output(out: Path, root: Path) -> None:
    """Refuse a folder that has something else than an audit of these data, which may have been moved."""
    if not (out / tables.SUMMARY).exists():
        return
    try:
        other = Path(tables.AuditSummary.read(out).data)
    except (OSError, PandaError) as error:
        raise ConfigError(
            f"audit.output={out}: its {tables.SUMMARY} is not that of an audit of this version ({error}); "
            "give another folder"
        ) from error
    if ((other / TABLE).is_file() or other.is_file()) and other.resolve() != root.resolve():
        raise ConfigError(
            f"audit.output={out} holds the audit of {other}, and that of {root} would replace it; give another folder"
        )


def _inspect_all(rows: Sequence[SlideRow], records: RecordFolder, workers: int, progress: bool) -> None:
    """Inspect every slide that has no record of its present files."""
    remove_leftovers(records.folder)
    pending = [row for row in rows if not records.is_current(row)]
    if kept := len(rows) - len(pending):
        log.info("%s: %s of %s slides have not changed since their inspection", records.folder, kept, len(rows))
    if not pending:
        return
    bar = tqdm(total=len(rows), initial=kept, desc="slides", unit="slide", disable=not progress, smoothing=0.05)
    crashed = found = 0
    with bar, closing(run_in_processes(records.inspect, pending, min(workers, len(pending)))) as results:
        for row, findings in results:
            if findings is None:
                records.write_crash(row)
                crashed += 1
                log.warning("slide %s: the process that inspected it crashed; see its finding", row.slide_id)
            found += 1 if findings is None else findings
            bar.set_postfix(findings=found, **({"crashed": crashed} if crashed else {}), refresh=False)
            bar.update()


def _write_all(table: Sequence[SlideRow], records: RecordFolder | None, out: Path, root: Path) -> tables.AuditSummary:
    """Write all tables from the records; the summary last."""
    rows = index_by_slide(table)

    def read_inspections() -> Iterator[Inspection]:
        if records is not None:
            yield from (records.read(row) for row in rows.values() if row.has_file)

    duplicates = settings = None
    if records is not None:
        duplicates = find_duplicates(read_inspections, lambda slide_id: rows[slide_id].image_path)
        options = {key: getattr(records.options, key) for key in ("reader", "mpp_override")}
        values = {**options, "deep": records.deep, **RULE_VERSIONS}
        settings = tables.InspectionSettings.model_validate(values)
        # A slide whose id cannot name a file has no group.
        named = ((row.slide_id, duplicates.groups[row.slide_id]) for row in rows.values() if row.has_file)
        write_table(out / tables.GROUPS, named, ("image_id", "group"))
        tables.write_pairs(out / tables.PAIRS, duplicates, rows)
    findings = tables.collect_findings(rows, check_table(table), read_inspections, duplicates)
    tables.write_findings(out / tables.FINDINGS_TABLE, findings)
    tables.write_audit(out / tables.AUDIT, rows.values(), findings, records.read if records else None, duplicates)
    levels = tables.measure_levels(read_inspections())
    summary = tables.summarize(table, rows, findings, duplicates, data=str(root), settings=settings, levels=levels)
    summary.write(out)
    return summary
