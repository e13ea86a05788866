"""The table of slides: its records, their groups, and an example with cancer."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from panda.data.slide_rows import TABLE, find_id_column, read_rows
from panda.errors import ManifestError, MaskError, SlideError
from panda.tables import read_user_table
from panda.wsi.label_maps import LabelMap, tumor_bool_from_gray
from panda.wsi.label_mask import LabelMask
from panda.wsi.slide import Slide

log = logging.getLogger(__name__)

GroupKind = Literal["slide", "group", "patient"]
"""The unit that is never in two splits: a slide, a group (of near-duplicates), or a patient."""
GROUP_COLUMNS: tuple[GroupKind, ...] = ("patient", "group")
_SHOWN = 5
_OVERVIEW = 2048


@dataclass(frozen=True)
class SlideRecord:
    """One row of the table of slides. Slide and mask need not exist.

    Attributes:
        slide_id: Its name in all tables and folders, such as PANDA's `image_id`.
        provider: The name of its label map, see `panda.wsi.label_maps`.
        isup_grade: ISUP grade group, 0 (no cancer) to 5; None without a grade.
        gleason: The Gleason score as in the table (`"3+4"`, `"negative"`).
        mask_path: Its label file, a mask or an annotation; None for a slide without one.
        group: Slides of one group are never in two splits: those of a patient if the table has patients, otherwise
            each slide by itself.
        patient: The patient; None if it is unknown.
        others: Names and values of the table's columns without a meaning.
    """

    slide_id: str
    provider: str
    isup_grade: int | None
    gleason: str
    image_path: Path
    mask_path: Path | None
    group: str
    patient: str | None = None
    others: tuple[tuple[str, str], ...] = ()

    @property
    def cells(self) -> dict[str, str]:
        """Columns of the table that can be learned, and the slide's values; empty ones are unknown."""
        grade = "" if self.isup_grade is None else str(self.isup_grade)
        known = {"isup_grade": grade, "gleason_score": self.gleason, "provider": self.provider}
        return {**dict(self.others), **known}

    def read_cell(self, column: str) -> str:
        """Return the value of a column, or raise `ManifestError` if the table has no such column."""
        if column not in (cells := self.cells):
            raise ManifestError(f"the table of slides has no column {column!r}; columns are {', '.join(cells)}")
        return cells[column].strip()


def read_manifest(
    root: Path | str,
    *,
    labels: str | None = None,
    mask_suffix: str = "_mask",
    label_maps: Mapping[str, LabelMap] | None = None,
    needs_slides: bool = True,
) -> list[SlideRecord]:
    """Read the table of slides.

    Args:
        root: A folder in PANDA's layout, the files of whose slides are not checked, or a CSV with the column `path`.
        labels: The label map of slides without a provider.
        mask_suffix: Suffix of a mask's file name after the slide's id, in PANDA's layout.
        label_maps: Label maps of providers that are known besides those in `conf/label_maps`.
        needs_slides: Whether a CSV must name the files of the slides, see `read_rows`.

    Returns:
        One record a row, in the order of the table.

    Raises:
        ManifestError: As `panda.data.slide_rows.read_rows`, or if rows are faulty or an id occurs twice.
    """
    rows = read_rows(root, labels, providers=label_maps or (), mask_suffix=mask_suffix, needs_slides=needs_slides)
    table = Path(root) if Path(root).is_file() else Path(root) / TABLE
    if not any(row.isup_grade for row in rows):
        log.warning("%s: no slide has a grade in a column 'isup_grade', 'grade' or 'gleason_score'", table)
    records: list[SlideRecord] = []
    faults: list[str] = []
    seen: dict[str, int] = {}
    for row in rows:
        found = [fault for _, fault in row.faults]
        if row.slide_id in seen:
            found.append(f"image_id {row.slide_id!r} occurs already in row {seen[row.slide_id]}")
        seen.setdefault(row.slide_id, row.number)
        faults += [f"row {row.number}: {fault}" for fault in found]
        if not found:
            record = SlideRecord(
                slide_id=row.slide_id,
                provider=row.provider,
                isup_grade=row.grade,
                gleason=row.gleason,
                image_path=row.image_path,
                mask_path=row.mask_path,
                group=row.patient or row.slide_id,
                patient=row.patient or None,
                others=row.others,
            )
            records.append(record)
    if faults:
        raise ManifestError(
            format_list(f"{table}: {len(faults)} fault{'s' * (len(faults) > 1)}; correct or remove these rows", faults)
        )
    return records


def read_labels(
    source: Path | str, label_maps: Mapping[str, LabelMap], provider: str | None = None, *, needs_slides: bool = True
) -> list[SlideRecord]:
    """Read the table of labels of slides that a checkpoint mapped, see `read_manifest`.

    Args:
        source: A folder in PANDA's layout or a table.
        label_maps: Label maps of the checkpoint. If there is one, it is that of rows without a provider.
        provider: Another provider of these rows.
        needs_slides: Whether a table must name the files of the slides.
    """
    only = next(iter(label_maps)) if len(label_maps) == 1 else None
    return read_manifest(source, labels=provider or only, label_maps=label_maps, needs_slides=needs_slides)


def read_groups(path: Path | str, key: str = "data.groups") -> tuple[dict[str, str], GroupKind]:
    """Read the patient (or other group) of each slide from a CSV with `slide_id` and `patient` (or `group`).

    The name of the slide can be in `image_id` too, as in PANDA's table.

    Args:
        path: The file.
        key: The key that names it, for the message if it is absent.

    Returns:
        Slide id → group, and the kind of groups: `"patient"` or `"group"` (for example near-duplicates).

    Raises:
        ManifestError: If the file or a column is missing, the table or a field is empty, or a slide has two groups.
    """
    path = Path(path)
    if not path.is_file():
        raise ManifestError(f"{path}: no such file; {key} is a CSV with slide_id and patient (or group)")
    groups: dict[str, str] = {}
    kind: GroupKind = "group"
    for number, row in read_user_table(path, (), one_of=GROUP_COLUMNS):
        kind = next(column for column in GROUP_COLUMNS if column in row)
        id_column = find_id_column(path, row)
        name, slide_id = row[kind], row[id_column]
        if not slide_id or not name:
            raise ManifestError(f"{path}, row {number}: empty {id_column} or group; fill it in or remove the row")
        if groups.setdefault(slide_id, name) != name:
            raise ManifestError(
                f"{path}, row {number}: {slide_id!r} is in {name!r} and in {groups[slide_id]!r}; a slide has one group"
            )
    return groups, kind


def apply_groups(records: Sequence[SlideRecord], groups: Mapping[str, str]) -> list[SlideRecord]:
    """Give each record its group of a patients' table, see `read_groups`; other slides in the table are ignored.

    Raises:
        ManifestError: If the table lacks records; the message counts them and names some.
    """
    absent = [repr(record.slide_id) for record in records if record.slide_id not in groups]
    if absent:
        raise ManifestError(
            format_list(
                f"{len(absent)} of {len(records)} slides are not in the table of groups; list them there, each "
                f"with a group of its own if its patient is unknown",
                absent,
            )
        )
    return [replace(record, group=groups[record.slide_id]) for record in records]


def find_one_tumor_example(root: Path | str, provider: str | None = None, labels: str | None = None) -> SlideRecord:
    """Find a slide whose mask has cancer pixels, the highest grade first.

    Masks are read at low resolution (2,048 px). Slides and masks that cannot be read are skipped.

    Args:
        root: The folder that holds `train.csv`, or a CSV, see `read_manifest`.
        provider: Only slides of this provider; None for any.
        labels: The label map of slides without a provider.

    Returns:
        The record of the first such slide, by falling grade and then by id.

    Raises:
        ManifestError: If no slide of the table has cancer pixels, or the table is faulty (see `read_manifest`).
    """
    records = [record for record in read_manifest(root, labels=labels) if provider in (None, record.provider)]
    unreadable = 0
    for record in sorted(records, key=lambda record: (-(record.isup_grade or 0), record.slide_id)):
        try:
            if _has_tumor(record):
                return record
        except (SlideError, MaskError):
            unreadable += 1
    whose = "" if provider is None else f" of provider {provider!r}"
    raise ManifestError(
        f"{root}: none of {len(records)} slides{whose} has cancer pixels in its mask ({unreadable} could not be "
        f"read); name a slide yourself with data.slide_id"
    )


def _has_tumor(record: SlideRecord) -> bool:
    """Return whether the mask has cancer pixels at low resolution."""
    if record.mask_path is None:
        return False
    with Slide.open(record.image_path) as slide:
        small = slide.choose_resolution(downsample=max(1.0, max(slide.dimensions) / _OVERVIEW))
        with LabelMask.open(record.mask_path, slide, record.provider) as mask:
            return bool(tumor_bool_from_gray(mask.overview(small), record.provider).any())


def format_list(headline: str, items: Sequence[str]) -> str:
    """Return a headline with the first few items below it."""
    more = [f"… and {len(items) - _SHOWN} more"] if len(items) > _SHOWN else []
    return "\n".join([f"{headline}:", *(f"  - {item}" for item in [*items[:_SHOWN], *more])])
