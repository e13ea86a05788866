"""Select the slides of the table: which are used, in which split, and why the others are left out.

The split is made over the whole table before any slide is left out, so that excluding slides or a provider moves no
other slide. A model of both providers and a model of one have the same test slides of that provider.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from panda.data.findings import FINDINGS, find_file_check
from panda.data.manifest import GroupKind, SlideRecord, apply_groups, read_groups
from panda.data.settings import AUDIT, SelectionSettings
from panda.data.splits import SPLITS, Split, fold_slides, split_slides
from panda.errors import ManifestError
from panda.tables import read_user_table, write_table

log = logging.getLogger(__name__)

LEFT_OUT = "left_out"
SPLIT_COLUMNS = ("slide_id", "group", "groups_are", "provider", "isup_grade", "split", "why")
"""Columns of `splits.csv`; `why` is the reason why a slide is left out."""
_SHOWN = 5


@dataclass(frozen=True)
class Selection:
    """The slides of a table, used or left out.

    Attributes:
        settings: How the slides were selected.
        records: All slides with their groups, in the order of the table.
        split: Slide id → split, for the slides that are used (with `split="patches"` all are `"train"`).
        why: Slide id → the reason, for the slides that are left out.
        groups_are: The kind of groups that are never in two splits.
        stratify_by: Column by which the split is stratified, None for the grade.
    """

    settings: SelectionSettings
    records: tuple[SlideRecord, ...]
    split: Mapping[str, Split]
    why: Mapping[str, str]
    groups_are: GroupKind
    stratify_by: str | None = None

    @property
    def used(self) -> list[SlideRecord]:
        """The slides that are used, in the order of the table."""
        return [record for record in self.records if record.slide_id in self.split]

    @property
    def exclusion_counts(self) -> dict[str, int]:
        """Reason → slides that are left out for it."""
        return dict(sorted(Counter(self.why.values()).items()))

    def describe_policy(self) -> str:
        """Return how the slides were split, by which groups, and what that means for the figures."""
        asked = self.settings
        if asked.split == "patches":
            return (
                f"None: the patches of one slide ({self.used[0].slide_id}) are split at random. "
                f"The figures are not valid for other slides: they do not measure generalization."
            )
        count = len({record.group for record in self.used})
        source = asked.splits or asked.groups or "the table of slides"
        words = {
            "slide": "By slide: no slide is in two splits. Patients and near-duplicates are unknown, so two slides of "
            "one patient may be in two splits: the figures may be too good.",
            "group": f"By group: {count} groups of {source}; no group is in two splits. Near-duplicates are in one "
            f"group. Patients are unknown: slides of one patient that look different may be in two splits, and the "
            f"figures may be slightly too good.",
            "patient": f"By patient: {count} patients of {source}; no patient is in two splits. The figures are for "
            f"patients that the network has not seen.",
        }[self.groups_are]
        if asked.splits is not None:
            words += f" The split comes from {asked.splits}."
        elif self.stratify_by is not None:
            words += f" It is stratified by provider and {self.stratify_by}."
        if asked.splits is None and asked.split == "kfold":
            words += f" Fold {asked.fold} of {asked.folds} (from 0) is " + (
                "validation." if asked.test_provider else f"the test, fold {(asked.fold + 1) % asked.folds} validation."
            )
        if asked.test_provider:
            words += f" Tested on {asked.test_provider} only, trained and validated on the others."
        return words

    def list_rows(self) -> list[dict[str, str]]:
        """Return the rows of `splits.csv` by slide id, see `SPLIT_COLUMNS`."""
        rows = []
        for record in sorted(self.records, key=lambda record: record.slide_id):
            split = "patches" if self.settings.split == "patches" else self.split.get(record.slide_id, "")
            why = self.why.get(record.slide_id, "")
            grade = "" if record.isup_grade is None else str(record.isup_grade)
            values = (record.slide_id, record.group, self.groups_are, record.provider, grade)
            own = dict(zip(SPLIT_COLUMNS, (*values, LEFT_OUT if why else split, why), strict=True))
            rows.append({**own, **{name: value for name, value in record.others if name not in own}})
        return rows

    def write(self, path: Path) -> None:
        """Write `splits.csv`: a row for each slide of the table, by slide id, with the table's other columns."""
        others = (name for record in self.records for name, _ in record.others if name not in SPLIT_COLUMNS)
        write_table(path, self.list_rows(), [*SPLIT_COLUMNS, *dict.fromkeys(others)])


def select_slides(
    records: Sequence[SlideRecord], settings: SelectionSettings, stratify_by: str | None = None
) -> Selection:
    """Select the slides that are used, and the split of each.

    Args:
        records: The slides of the table.
        settings: The choice.
        stratify_by: Column of the table with classes by which a split is stratified, in place of the grade.

    Raises:
        ManifestError: If a table or file is faulty or does not fit the slides, a group is in two splits of a given
            file, or a split has no slide.
    """
    why = _find_reasons(records, settings)
    kept = {record.slide_id for record in records} - why.keys()
    grouped, kind = _add_groups(records, kept, settings)
    if settings.split == "patches":
        split: dict[str, Split] = dict.fromkeys(kept, "train")
        wanted: list[Split] = ["train"]
    elif settings.splits is not None:
        split, not_used, grouped, kind = _read_split(grouped, kind, settings)
        why = not_used | why
        wanted = [name for name in SPLITS if name != "test" or name in split.values()]
    else:
        split, straddling = _make_split(grouped, settings, stratify_by)
        why |= dict.fromkeys(straddling & kept, "group_is_trained_on")
        tested = settings.split == "kfold" or settings.test_provider is not None or settings.test_fraction > 0
        wanted = [name for name in SPLITS if name != "test" or tested]
    split = {slide_id: name for slide_id, name in split.items() if slide_id not in why}
    selection = Selection(settings, tuple(grouped), split, why, kind, stratify_by)
    if empty := [name for name in wanted if name not in split.values()]:
        counts = ", ".join(f"{reason}: {count}" for reason, count in selection.exclusion_counts.items()) or "none"
        raise ManifestError(
            f"no slide is left for {', '.join(empty)}: of {len(records)} slides in "
            f"{len({record.group for record in grouped})} groups {len(split)} are used, left out are {counts}; change "
            f"data.provider, data.exclude, data.slide_id or data.seed, or give more slides, or data.test_fraction=0"
        )
    return selection


def _find_reasons(records: Sequence[SlideRecord], settings: SelectionSettings) -> dict[str, str]:
    """Return slide id → the first reason that leaves it out of every split."""
    ids = {record.slide_id for record in records}
    found: Mapping[str, set[str]] = {}
    if settings.findings is not None:
        wants_slides = any(find_file_check(name) is None for name in settings.exclude)
        found = _read_findings(settings.findings, ids, wants_slides=wants_slides)
        if not wants_slides:
            _warn_of_idle_findings(found, settings)
    why: dict[str, str] = {}
    for record in records:
        if settings.slide_id is not None and record.slide_id != settings.slide_id:
            why[record.slide_id] = "other_slide"
        elif settings.provider not in (None, record.provider):
            why[record.slide_id] = "other_provider"
        else:
            for name in settings.exclude:
                looked = find_file_check(name)
                if name in found.get(record.slide_id, ()) or (looked is not None and looked(record)):
                    why[record.slide_id] = name
                    break
    return why


def _warn_of_idle_findings(found: Mapping[str, set[str]], settings: SelectionSettings) -> None:
    """Say that no slide is left out by a table of findings, and which findings it has."""
    counts = Counter(name for names in found.values() for name in names)
    known = ", ".join(f"{name} ({count})" for name, count in counts.most_common()) or "none"
    log.warning(
        "data.findings=%s is not used: data.exclude=[%s] names no finding of an audit; those of the file are %s",
        *(settings.findings, ",".join(settings.exclude), known),
    )


def _read_findings(path: Path, ids: Collection[str], *, wants_slides: bool) -> dict[str, set[str]]:
    """Return slide id → its findings in `findings.csv` of an audit that has all slides."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for number, row in read_user_table(path, ("slide_id", "finding"), may_be_empty=True):
        if row["finding"] not in FINDINGS:
            raise ManifestError(
                f"{path}, row {number}: finding {row['finding']!r} is not known; run the audit again: {AUDIT}"
            )
        found[row["slide_id"]].add(row["finding"])
    seen = path.with_name("audit.csv")
    if seen.is_file():
        rows = [row for _, row in read_user_table(seen, ("slide_id",), may_be_empty=True)]
        audited = {row["slide_id"] for row in rows}
        if wants_slides and not all("group" in row for row in rows):
            raise ManifestError(
                f"{path}: this audit read only the table (audit.slides=false); run it again with slides: {AUDIT}"
            )
        if missing := sorted(set(ids) - audited):
            raise ManifestError(
                f"{path}: the audit lacks {len(missing)} of {len(ids)} slides ({', '.join(map(repr, missing[:_SHOWN]))}"
                f"{' …' * (len(missing) > _SHOWN)}); run it again, it keeps the other slides: {AUDIT}"
            )
    return found


def _add_groups(
    records: Sequence[SlideRecord], kept: Collection[str], settings: SelectionSettings
) -> tuple[list[SlideRecord], GroupKind]:
    """Return the records with their groups; slides that are left out need none in the file of groups.

    If the table has patients too, slides that share a patient or a group of the file are in one group.
    """
    has_patients = any(record.patient for record in records)
    if settings.groups is None:
        return list(records), "patient" if has_patients else "slide"
    groups, kind = read_groups(settings.groups)
    known = [record for record in records if record.slide_id in kept or record.slide_id in groups]
    with_groups = {record.slide_id: record for record in apply_groups(known, groups)}
    grouped = [with_groups.get(record.slide_id, record) for record in records]
    return (_join_patients(grouped), "patient") if has_patients else (grouped, kind)


def _join_patients(records: Sequence[SlideRecord]) -> list[SlideRecord]:
    """Give slides one group that are connected by patients and groups: the smallest patient of them."""
    groups = {name: number for number, name in enumerate(sorted({record.group for record in records}))}
    names = sorted({record.patient or "" for record in records})
    patients = {name: len(groups) + number for number, name in enumerate(names)}
    rows = [groups[record.group] for record in records]
    columns = [patients[record.patient or ""] for record in records]
    size = len(groups) + len(patients)
    graph = coo_array((np.ones(len(rows)), (rows, columns)), shape=(size, size))
    _, component = connected_components(graph, directed=False)
    first: dict[int, str] = {}
    for patient, number in patients.items():
        first.setdefault(int(component[number]), patient)
    return [replace(record, group=first[int(component[row])]) for record, row in zip(records, rows, strict=True)]


def _make_split(
    records: Sequence[SlideRecord], settings: SelectionSettings, stratify_by: str | None
) -> tuple[dict[str, Split], set[str]]:
    """Return the split of the whole table, and the slides of the test provider whose group is in training."""
    tested = {record.slide_id for record in records if record.provider == settings.test_provider}
    others = [record for record in records if record.slide_id not in tested]
    if settings.test_provider is not None and not (tested and others):
        raise ManifestError(
            f"data.test_provider={settings.test_provider}: it has {len(tested)} slides, the others have {len(others)}; "
            f"give slides of both"
        )
    if settings.split == "kfold":
        split = fold_slides(
            others,
            seed=settings.seed,
            folds=settings.folds,
            fold=settings.fold,
            test=settings.test_provider is None,
            stratify_by=stratify_by,
        )
    else:
        split = split_slides(
            others,
            seed=settings.seed,
            val_fraction=settings.val_fraction,
            test_fraction=0.0 if settings.test_provider else settings.test_fraction,
            stratify_by=stratify_by,
        )
    trained = {record.group for record in others}
    straddling = {r.slide_id for r in records if r.slide_id in tested and r.group in trained}
    return split | dict.fromkeys(sorted(tested - straddling), "test"), straddling


def _read_split(
    records: Sequence[SlideRecord], kind: GroupKind, settings: SelectionSettings
) -> tuple[dict[str, Split], dict[str, str], list[SlideRecord], GroupKind]:
    """Return the split of a file, the reasons for slides left out, the records with their groups, and their kind.

    The groups come from the file if `settings.groups` gives none.
    """
    path = settings.splits
    assert path is not None
    listed = read_user_table(path, SPLIT_COLUMNS)
    rows = {row["slide_id"]: (number, row) for number, row in listed}
    known = {record.slide_id: record for record in records}
    times = Counter(row["slide_id"] for _, row in listed)
    faults = [f"{slide_id!r} is in {count} rows" for slide_id, count in times.items() if count > 1]
    faults += [
        f"row {number}: {slide_id!r} is in no row of the table of slides"
        for slide_id, (number, row) in rows.items()
        if slide_id not in known and row["split"] != LEFT_OUT
    ]
    faults += [
        f"row {number}: split is {row['split']!r}: give {', '.join(SPLITS)} or {LEFT_OUT}"
        for number, row in rows.values()
        if row["split"] not in (*SPLITS, LEFT_OUT)
    ]
    kinds = {row["groups_are"] for _, row in rows.values()}
    if len(kinds) != 1 or not kinds <= set(get_args(GroupKind)):
        faults.append(
            f"groups_are has {', '.join(map(repr, sorted(kinds)))}: give one of {', '.join(get_args(GroupKind))}"
        )
    if not faults:
        if settings.groups is None:
            kind = next(word for word in get_args(GroupKind) if word in kinds)
            records = [replace(r, group=rows[r.slide_id][1]["group"]) if r.slide_id in rows else r for r in records]
        sides: defaultdict[str, set[str]] = defaultdict(set)
        for record in records:
            if record.slide_id in rows and (name := rows[record.slide_id][1]["split"]) != LEFT_OUT:
                sides[record.group].add(name)
        faults += [
            f"group {group!r} is in {' and '.join(sorted(names))}" for group, names in sides.items() if len(names) > 1
        ]
    if faults:
        more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise ManifestError(f"data.splits={path}: {'; '.join(faults[:_SHOWN])}{more}")
    split: dict[str, Split] = {}
    why: dict[str, str] = {}
    for slide_id in known:
        if slide_id not in rows:
            why[slide_id] = "not_in_splits"
        elif (row := rows[slide_id][1])["split"] == LEFT_OUT:
            why[slide_id] = row["why"] or LEFT_OUT
        else:
            split[slide_id] = next(name for name in SPLITS if name == row["split"])
    return split, why, list(records), kind
