"""The audit: look at every slide and mask of a data set once, and say what is wrong with them.

`python audit.py data=panda data.root=…`; `docs/audit.md` says what is looked for.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from panda.audit.inspection import MADE_BY, Inspection
from panda.audit.process_pool import in_processes
from panda.audit.records import Records
from panda.audit.slide_table import TableRow, check_table, read_table
from panda.audit.tables import (
    AUDIT,
    FINDINGS_TABLE,
    GROUPS,
    PAIRS,
    all_findings,
    find_duplicates,
    summary,
    write_audit,
    write_findings,
    write_groups,
    write_pairs,
)
from panda.data.manifest import TABLE, image_path
from panda.errors import ConfigError
from panda.files import hold_lock, remove_leftovers, write_json
from panda.wsi.slide import SlideOptions

log = logging.getLogger(__name__)

RECORDS = "slides"
SUMMARY = "summary.json"
SCHEMA = 1


def audit_folder(
    root: Path | str,
    out: Path | str,
    *,
    slides: bool = True,
    workers: int = 2,
    deep: bool = False,
    options: SlideOptions = SlideOptions(),
    progress: bool = True,
) -> dict[str, Any]:
    """Audit a folder in PANDA's layout.

    `out` gets `audit.csv` (a row a slide), `findings.csv` (a row a finding), `groups.csv` (the near-duplicate
    group of each slide), `pairs.csv` (slides that match), `summary.json` and `slides/`: of each slide what was
    seen, and a picture. The process may be killed at any moment: the next call looks only at the slides that have no
    record yet, or whose row or files changed, and leaves the same bytes as if nothing had happened. A second process
    on the same folder waits for the first. Memory holds what the comparison of all slides needs of each, some
    kilobytes, and no picture.

    Args:
        root: The folder that holds `train.csv`.
        out: The folder to write to.
        slides: Look at slides and masks; else at the table alone, and there are no groups and pairs.
        workers: Slides looked at at the same time, in processes of their own. One that crashes is that slide's
            finding.
        deep: Decode every tile of every slide and count masks at level 0.
        options: How slides are opened.
        progress: Show a bar over the slides.

    Returns:
        The content of `summary.json`, see `panda.audit.tables.summary`.

    Raises:
        ManifestError: The table is missing or no table.
        ConfigError: `out` has an audit of slides, and one of the table alone would replace it; or the audit of
            other data, or what is no audit.
        OSError: `out` cannot be written, or a slide that was there is not any more.
    """
    root, out = Path(root), Path(out)
    table = read_table(root)
    first: dict[str, TableRow] = {}
    for row in table:
        first.setdefault(row.slide_id, row)
    rows = list(first.values())
    if not slides and (out / GROUPS).exists():
        raise ConfigError(
            f"audit.slides=false: {out} has an audit of the slides, whose findings those of the table alone would "
            f"replace; give another audit.output, or leave audit.slides=false out: what was looked at is kept"
        )
    _require_own(out, root)
    records = Records(out / RECORDS, root, options, deep)
    with hold_lock(out / AUDIT):
        if slides:
            _look_at_all([row for row in rows if row.has_file], records, workers, progress)
        return _write_all(table, rows, records if slides else None, out, root)


def _require_own(out: Path, root: Path) -> None:
    """Refuse a folder that holds something else than an audit of these data (which may have been moved)."""
    if not (out / SUMMARY).exists():
        return
    try:
        before = json.loads((out / SUMMARY).read_text(encoding="utf-8"))
        other = Path(before["data"])
        known = {"schema", "rows", "findings"} <= before.keys()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        known = False
    if not known:
        raise ConfigError(f"audit.output={out}: its {SUMMARY} is not that of an audit; give another folder")
    if (other / TABLE).is_file() and other.resolve() != root.resolve():
        raise ConfigError(
            f"audit.output={out} holds the audit of {other}, and that of {root} would replace it; give another folder"
        )


def _look_at_all(rows: list[TableRow], records: Records, workers: int, progress: bool) -> None:
    """Look at every slide that has no record of its files as they are."""
    remove_leftovers(records.folder)
    pending = [row for row in rows if not records.is_current(row)]
    if kept := len(rows) - len(pending):
        log.info("%s: %s of %s slides are as they were when last looked at", records.folder, kept, len(rows))
    if not pending:
        return
    bar = tqdm(total=len(rows), initial=kept, desc="slides", unit="slide", disable=not progress, smoothing=0.05)
    crashed = found = 0
    with bar, closing(in_processes(records.look, pending, min(workers, len(pending)))) as looks:
        for row, findings in looks:
            if findings is None:
                records.keep_crash(row)
                crashed += 1
                log.warning("slide %s: the process that looked at it crashed; see its finding", row.slide_id)
            found += 1 if findings is None else findings
            bar.set_postfix(findings=found, **({"crashed": crashed} if crashed else {}), refresh=False)
            bar.update()


def _write_all(
    table: list[TableRow], rows: list[TableRow], records: Records | None, out: Path, root: Path
) -> dict[str, Any]:
    """Write all tables from the records; the summary last."""
    files = [row for row in rows if row.has_file]

    def seen() -> Iterator[Inspection]:
        if records is not None:
            yield from map(records.read, files)

    duplicates = None if records is None else find_duplicates(seen, lambda slide_id: image_path(root, slide_id))
    findings = all_findings(rows, check_table(table), seen, duplicates)
    if duplicates is not None:
        write_groups(out / GROUPS, rows, duplicates.groups)
        write_pairs(out / PAIRS, rows, duplicates)
    write_findings(out / FINDINGS_TABLE, findings)
    write_audit(out / AUDIT, rows, findings, None if records is None else records.read, duplicates)
    counts = {"schema": SCHEMA, "data": str(root), "rows": len(table), **summary(rows, findings, duplicates)}
    if records is not None:
        counts |= {"looked_with": asdict(records.options) | {"deep": records.deep} | dict(MADE_BY)}
    write_json(out / SUMMARY, counts)
    return counts
