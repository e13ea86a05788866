"""Which slides of the table are used, in which split, and why the others are not.

The split is made over the whole table, before any slide is left out: what is excluded, or a provider that is not
asked for, moves no other slide. So do two models, of both providers and of one, have the same test slides of that one.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from panda.data.findings import FILE_FINDINGS, FINDINGS
from panda.data.manifest import GroupKind, SlideRecord, apply_groups, read_groups
from panda.data.settings import AUDIT, SelectionSettings
from panda.data.splits import SPLITS, Split, fold_slides, split_slides
from panda.errors import ManifestError
from panda.files import read_user_table, write_table

LEFT_OUT = "left_out"
SPLIT_COLUMNS = ("slide_id", "group", "groups_are", "provider", "isup_grade", "split", "why")
"""Of `splits.csv`; `why` says why a slide is left out."""
_SHOWN = 5


@dataclass(frozen=True)
class Selection:
    """What became of each slide of the table.

    Attributes:
        settings: What was asked.
        records: All slides of the table, with their groups, in its order.
        split: Slide id → split, of those that are used (with `split="patches"` all are `"train"`).
        why: Slide id → why it is left out, of the others.
        groups_are: What keeps the splits apart.
    """

    settings: SelectionSettings
    records: tuple[SlideRecord, ...]
    split: Mapping[str, Split]
    why: Mapping[str, str]
    groups_are: GroupKind

    @property
    def used(self) -> list[SlideRecord]:
        """The slides that are used, in the order of the table."""
        return [record for record in self.records if record.slide_id in self.split]

    @property
    def left_out(self) -> dict[str, int]:
        """Reason → slides that are left out for it."""
        return dict(sorted(Counter(self.why.values()).items()))

    def policy(self) -> str:
        """How the slides were split, what keeps the splits apart, and what the figures therefore mean."""
        asked = self.settings
        if asked.split == "patches":
            return (
                f"None: the patches of one slide ({self.used[0].slide_id}) are split at random. "
                f"The figures say nothing of other slides: they are not generalisation."
            )
        count = len({record.group for record in self.used})
        source = asked.splits or asked.groups
        words = {
            "slide": "By slide: no patch of a slide straddles the split. Patients are unknown and near-duplicates were "
            "not looked for, so two slides of one patient may be on both sides: the figures may flatter.",
            "group": f"By group: {count} groups of {source}; no slide of a group straddles the split. Near-duplicates "
            f"are kept together, patients are unknown: slides of one patient that look different may be on both sides, "
            f"and the figures may flatter a little.",
            "patient": f"By patient: {count} patients of {source}; no patient straddles the split. The figures are of "
            f"patients new to the network.",
        }[self.groups_are]
        if asked.splits is not None:
            words += f" The split is that of {asked.splits}."
        elif asked.split == "kfold":
            words += f" Fold {asked.fold} of {asked.folds} (from 0) is " + (
                "validated on."
                if asked.test_provider
                else f"the test, fold {(asked.fold + 1) % asked.folds} validation."
            )
        if asked.test_provider:
            words += f" Tested on {asked.test_provider} only, trained and validated on the others."
        return words

    def rows(self) -> list[dict[str, str]]:
        """The rows of `splits.csv`, by slide id: see `SPLIT_COLUMNS`."""
        rows = []
        for record in sorted(self.records, key=lambda record: record.slide_id):
            split = "patches" if self.settings.split == "patches" else self.split.get(record.slide_id, "")
            why = self.why.get(record.slide_id, "")
            grade = "" if record.isup_grade is None else str(record.isup_grade)
            values = (record.slide_id, record.group, self.groups_are, record.provider, grade)
            rows.append(dict(zip(SPLIT_COLUMNS, (*values, LEFT_OUT if why else split, why), strict=True)))
        return rows

    def write(self, path: Path) -> None:
        """Write `splits.csv`: a row a slide of the table, by slide id."""
        write_table(path, self.rows(), SPLIT_COLUMNS)

    def changed_since(self, path: Path) -> list[str]:
        """Slides whose split or group is not what `splits.csv` of an earlier session says, by id.

        Raises:
            ManifestError: The file cannot be read.
        """
        keys = ("group", "split")
        before = {row["slide_id"]: [row[key] for key in keys] for _, row in read_user_table(path, SPLIT_COLUMNS)}
        today = {row["slide_id"]: [row[key] for key in keys] for row in self.rows()}
        return sorted(
            slide_id for slide_id in before.keys() | today.keys() if before.get(slide_id) != today.get(slide_id)
        )


def select(records: Sequence[SlideRecord], settings: SelectionSettings) -> Selection:
    """Say of each slide of the table whether it is used, and in which split.

    Args:
        records: All slides of the table.
        settings: Without faults.

    Raises:
        ManifestError: A table or file is faulty or does not fit the slides, groups straddle a given split, or no slide
            of a split is left.
    """
    why = _reasons(records, settings)
    kept = {record.slide_id for record in records} - why.keys()
    grouped, kind = _grouped(records, kept, settings)
    if settings.split == "patches":
        split: dict[str, Split] = dict.fromkeys(kept, "train")
        wanted: list[Split] = ["train"]
    elif settings.splits is not None:
        split, not_used, grouped, kind = _given(grouped, kind, settings)
        why = not_used | why
        wanted = [name for name in SPLITS if name != "test" or name in split.values()]
    else:
        split, straddling = _made(grouped, settings)
        why |= dict.fromkeys(straddling & kept, "group_is_trained_on")
        tested = settings.split == "kfold" or settings.test_provider is not None or settings.test_fraction > 0
        wanted = [name for name in SPLITS if name != "test" or tested]
    split = {slide_id: name for slide_id, name in split.items() if slide_id not in why}
    selection = Selection(settings, tuple(grouped), split, why, kind)
    if empty := [name for name in wanted if name not in split.values()]:
        counts = ", ".join(f"{reason}: {count}" for reason, count in selection.left_out.items()) or "none"
        raise ManifestError(
            f"no slide is left for {', '.join(empty)}: of {len(records)} slides in "
            f"{len({record.group for record in grouped})} groups {len(split)} are used, left out are {counts}; change "
            f"data.provider, data.exclude, data.slide_id or data.seed, or give more slides, or data.test_fraction=0"
        )
    return selection


def _reasons(records: Sequence[SlideRecord], settings: SelectionSettings) -> dict[str, str]:
    """Slide id → why it is left out whatever the split, the first reason that holds."""
    ids = {record.slide_id for record in records}
    found: Mapping[str, set[str]] = {}
    if settings.findings is not None:
        found = _found(settings.findings, ids, wants_slides=bool(set(settings.exclude) - FILE_FINDINGS.keys()))
    why: dict[str, str] = {}
    for record in records:
        if settings.slide_id is not None and record.slide_id != settings.slide_id:
            why[record.slide_id] = "other_slide"
        elif settings.provider not in (None, record.provider):
            why[record.slide_id] = "other_provider"
        else:
            for name in settings.exclude:
                looked = FILE_FINDINGS.get(name)
                if name in found.get(record.slide_id, ()) or (looked is not None and looked(record)):
                    why[record.slide_id] = name
                    break
    return why


def _found(path: Path, ids: Collection[str], *, wants_slides: bool) -> dict[str, set[str]]:
    """Slide id → its findings.

    Raises:
        ManifestError: The file is faulty, names a finding that is not known, or the audit did not see all slides.
    """
    found: defaultdict[str, set[str]] = defaultdict(set)
    for number, row in read_user_table(path, ("slide_id", "finding"), may_be_empty=True):
        if row["finding"] not in FINDINGS:
            raise ManifestError(f"{path}, row {number}: finding {row['finding']!r} is not known; make the audit anew")
        found[row["slide_id"]].add(row["finding"])
    seen = path.with_name("audit.csv")
    if seen.is_file():
        rows = [row for _, row in read_user_table(seen, ("slide_id",), may_be_empty=True)]
        audited = {row["slide_id"] for row in rows}
        if wants_slides and not all("group" in row for row in rows):  # what was seen of the slides is not there
            raise ManifestError(f"{path}: that audit read the table alone (audit.slides=false); make it anew: {AUDIT}")
        if missing := sorted(set(ids) - audited):
            raise ManifestError(
                f"{path}: the audit has not seen {len(missing)} of {len(ids)} slides ({', '.join(missing[:_SHOWN])}"
                f"{' …' * (len(missing) > _SHOWN)}); run it again, what it has seen is kept: {AUDIT}"
            )
    return found


def _grouped(
    records: Sequence[SlideRecord], kept: Collection[str], settings: SelectionSettings
) -> tuple[list[SlideRecord], GroupKind]:
    """The records with their groups; slides that are left out anyway need none."""
    if settings.groups is None:
        return list(records), "slide"
    groups, kind = read_groups(settings.groups)
    known = [record for record in records if record.slide_id in kept or record.slide_id in groups]
    with_groups = {record.slide_id: record for record in apply_groups(known, groups)}
    return [with_groups.get(record.slide_id, record) for record in records], kind


def _made(records: Sequence[SlideRecord], settings: SelectionSettings) -> tuple[dict[str, Split], set[str]]:
    """The split over the whole table; and slides of the test provider whose group is trained on."""
    tested = {record.slide_id for record in records if record.provider == settings.test_provider}
    others = [record for record in records if record.slide_id not in tested]
    if settings.test_provider is not None and not (tested and others):
        raise ManifestError(
            f"data.test_provider={settings.test_provider}: {len(tested)} slides are of it and {len(others)} of others; "
            f"both are needed"
        )
    if settings.split == "kfold":
        split = fold_slides(
            others, seed=settings.seed, folds=settings.folds, fold=settings.fold, test=settings.test_provider is None
        )
    else:
        split = split_slides(
            others,
            seed=settings.seed,
            val_fraction=settings.val_fraction,
            test_fraction=0.0 if settings.test_provider else settings.test_fraction,
        )
    trained = {record.group for record in others}
    straddling = {r.slide_id for r in records if r.slide_id in tested and r.group in trained}
    return split | dict.fromkeys(sorted(tested - straddling), "test"), straddling


def _given(
    records: Sequence[SlideRecord], kind: GroupKind, settings: SelectionSettings
) -> tuple[dict[str, Split], dict[str, str], list[SlideRecord], GroupKind]:
    """The split of a file, why it leaves slides out, and the groups it names unless others are given."""
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
        faults.append(f"groups_are has {', '.join(sorted(kinds))}: give one of {', '.join(get_args(GroupKind))}")
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
        row = rows[slide_id][1] if slide_id in rows else None
        if row is None:
            why[slide_id] = "not_in_splits"
        elif row["split"] == LEFT_OUT:
            why[slide_id] = row["why"] or LEFT_OUT
        else:
            split[slide_id] = next(name for name in SPLITS if name == row["split"])
    return split, why, list(records), kind
