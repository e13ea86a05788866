"""The audit of a data set: inspect every slide and mask once, and report their faults.

`python audit.py data=panda data.root=…`; `docs/audit.md` lists the findings.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

from panda.audit import tables
from panda.audit.audit_run import RUN_FILE, AuditRun
from panda.audit.inspection import RULE_VERSIONS, Inspection
from panda.audit.near_duplicates import find_duplicates
from panda.audit.process_pool import run_in_processes
from panda.audit.records import RecordFolder
from panda.audit.slide_table import check_table, index_by_slide
from panda.data.shard import Shard
from panda.data.slide_files import sort_slide_files
from panda.data.slide_records import NamedSlides
from panda.data.slide_rows import IMAGES, TABLE, SlideRow, read_rows
from panda.errors import ConfigError, PandaError, describe_path_error
from panda.files import fingerprint, hold_lock, identity, is_locked, remove_leftovers
from panda.progress import Progress
from panda.tables import write_table
from panda.wsi.slide import SlideOptions

log = logging.getLogger(__name__)

RECORDS = "slides"
WHOLE = Shard(1, 1)
"""All slides as one shard."""

Inspector = Callable[[Sequence[SlideRow]], Generator[tuple[SlideRow, int | None], None, None]]
"""Inspects slides and writes their records; yields each with its number of findings, None if its process crashed."""


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
    """Audit a table of slides in this process and its workers, and return the content of `summary.json`.

    Args:
        root: The folder that holds `train.csv`, or a CSV, see `panda.data.slide_rows.read_rows`.
        out: The folder to write to.
        labels: The label map of slides without a provider.
        slides: Inspect slides and masks; otherwise only the table is read, and there are no groups and pairs.
        workers: Slides inspected at the same time, each in its own process. A crash is a finding of its slide.
        deep: Decode every tile of every slide and count masks at level 0.
        options: Options to open slides.
        empty_means_benign: An annotation file without any object means a slide without cancer.
        progress: Show the progress.

    Raises:
        ManifestError: If the table is missing or not a table.
        ConfigError: See `check_output`.
        OSError: If `out` cannot be written, or a slide has been removed since its inspection.
    """
    run = AuditRun(data=str(root), labels=labels, options=options, deep=deep, empty_means_benign=empty_means_benign)
    audit = Audit(run, Path(out), slides=slides)
    if slides:
        audit.inspect(audit.use_processes(workers), progress=progress)
    return audit.write()


class Audit:
    """The audit of a table of slides in a folder.

    `out` gets `audit.csv` with a row for each slide, `findings.csv` with a row for each finding, and `summary.json`.
    If slides are inspected, `groups.csv` has the near-duplicate group of each slide, and `pairs.csv` the slides that
    match. `slides/` then has the inspection and a picture of each slide.

    The process may be killed at any moment. The next one inspects only slides without a record, or whose row or files
    changed, and leaves the same bytes as one without interruption. Processes with different shards divide the slides;
    a second one with the same shard waits for the first. Memory holds some kilobytes of each slide to compare all of
    them, and no picture.

    Args:
        run: What is inspected, and how.
        out: The folder to write to.
        slides: Inspect slides and masks, or read only the table.

    Raises:
        ManifestError: If the table is missing or not a table.
        ConfigError: See `check_output`.
    """

    def __init__(self, run: AuditRun, out: Path, *, slides: bool = True) -> None:
        self.run, self.out, self._has_slides = run, out, slides
        self._root = Path(run.data)
        self._table = read_rows(self._root, run.labels)
        self._rows = index_by_slide(self._table)
        self.slides = [row for row in self._rows.values() if row.has_file]
        check_output(out, self._root, slides=slides)
        folder = self._root if self._root.is_dir() else self._root.parent
        self.records = RecordFolder(out / RECORDS, folder, run.options, run.deep, run.empty_means_benign)

    def use_processes(self, workers: int) -> Inspector:
        """Return an inspector with processes of this machine."""
        return lambda rows: run_in_processes(self.records.inspect, rows, min(workers, len(rows)))

    def inspect(self, inspect: Inspector, shard: Shard = WHOLE, *, progress: bool = True) -> None:
        """Inspect every slide of a shard that has no record of its present files."""
        own = [row for row in self.slides if shard.holds(row.slide_id)]
        part = self.out / (RECORDS if shard == WHOLE else shard.name_part(RECORDS))
        with hold_lock(part):
            self._begin(part)
            pending = [row for row in own if not self.records.is_current(row)]
            if kept := len(own) - len(pending):
                log.info(
                    "%s: %s of %s slides have not changed since their inspection", self.records.folder, kept, len(own)
                )
            if not pending:
                return
            crashed = found = 0
            bar = Progress(stage="audit", total=len(own), initial=kept, hidden=not progress)
            with bar, closing(inspect(pending)) as results:
                for row, findings in results:
                    if findings is None:
                        self.records.write_crash(row)
                        crashed += 1
                        log.warning("slide %s: the process that inspected it crashed; see its finding", row.slide_id)
                    found += 1 if findings is None else findings
                    bar.set_postfix(findings=found, **({"crashed": crashed} if crashed else {}), refresh=False)
                    bar.update()

    def _begin(self, part: Path) -> None:
        """Leave `audit.json`, and remove what killed processes left if no other one is at work."""
        with hold_lock(self.out / tables.AUDIT):
            check_output(self.out, self._root)  # another one may have begun
            remove_leftovers(self.out)
            self.run.write(self.out)
            locks = self.out.glob(f".{RECORDS}*.lock")
            parts = {path.with_name(path.name[1:].removesuffix(".lock")) for path in locks}
            # A process that begins now holds its lock already, and waits for the other one before it writes a record.
            if not any(map(is_locked, parts - {part})):
                remove_leftovers(self.records.folder)
        if self._root.is_dir():
            _log_unlisted(self._table, self._root / IMAGES)

    def is_finished(self) -> bool:
        """Return whether no slide is left to inspect."""
        return all(map(self.records.is_current, self.slides))

    def has_all(self) -> bool:
        """Return whether each slide has a record, also if the system refused its files."""
        return all(map(self.records.has_record, self.slides))

    def fingerprint(self) -> str:
        """Return a hash of all that tables and page are made from, if each slide has a record of its present files."""
        table = self._root / TABLE if self._root.is_dir() else self._root
        records = {row.slide_id: self.records.fingerprint_slide(row) for row in self.slides}
        return fingerprint(
            {"records": records, "table": identity(table), "choices": self.run.choices, "version": version("panda-wsi")}
        )

    def list_missing(self) -> NamedSlides:
        """Return the slides without a record of their present files."""
        missing = NamedSlides()
        for row in self.slides:
            if not self.records.has_record(row):
                missing.add(row.slide_id)
        return missing

    def write(self) -> tables.AuditSummary:
        """Write all tables, from the records of all slides; the summary last."""
        with hold_lock(self.out / tables.AUDIT):
            remove_leftovers(self.out)
            return _write_all(self._table, self.records if self._has_slides else None, self.out, self._root)


def check_output(out: Path, root: Path, *, slides: bool = True) -> None:
    """Refuse a folder that has something else than an audit of these data, which may have been moved.

    Raises:
        ConfigError: If `out` has the audit of other data, or another `summary.json`; or if it has an audit of slides
            and `slides` is False, because the findings of the table would replace those of the slides.
    """
    if not slides and ((out / RUN_FILE).exists() or (out / tables.GROUPS).exists()):
        raise ConfigError(
            f"audit.slides=false: {out} has an audit of the slides, whose findings those of the table alone would "
            f"replace; give another output, or remove audit.slides=false: inspected slides are kept"
        )
    for name, kind in ((RUN_FILE, AuditRun), (tables.SUMMARY, tables.AuditSummary)):
        if not (out / name).exists():
            continue
        try:
            other = Path(kind.read(out).data)
        except (OSError, PandaError) as error:
            raise ConfigError(
                f"output={out}: its {name} is not that of an audit of this version ({error}); give another folder"
            ) from error
        if ((other / TABLE).is_file() or other.is_file()) and other.resolve() != root.resolve():
            raise ConfigError(
                f"output={out} holds the audit of {other}, and that of {root} would replace it; give another folder"
            )


def _log_unlisted(table: Sequence[SlideRow], folder: Path) -> None:
    """Log how many files in the folder of the slides are in no row of the table."""
    listed = {row.image_path.name for row in table}
    try:
        files = sort_slide_files(path for path in folder.iterdir() if path.name not in listed)
    except OSError as error:
        log.warning("files in no row of %s cannot be listed: %s", TABLE, describe_path_error(error))
        return
    unlisted = [f"{len(files.slides)} slides"] * bool(files.slides)
    if text := ", ".join([*unlisted, files.describe_passed_over()]).removesuffix(", "):
        log.info("%s: in no row of %s: %s", folder, TABLE, text)


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
