"""The table of slides: records of a folder in PANDA's layout, their groups, and an example with cancer.

A folder has PANDA's layout: `train_images/<id>.tiff`, `train_label_masks/<id>_mask.tiff` and `train.csv`
with the columns `image_id`, `data_provider`, `isup_grade`, `gleason_score`
(https://www.kaggle.com/c/prostate-cancer-grade-assessment/data).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from panda.errors import ManifestError, MaskError, SlideError
from panda.tables import read_user_table
from panda.wsi.label_maps import LabelMap, describe_unknown_provider, get_label_maps, tumor_bool_from_gray
from panda.wsi.label_mask import LabelMask
from panda.wsi.slide import Slide

log = logging.getLogger(__name__)

TABLE = "train.csv"
IMAGES = "train_images"
MASKS = "train_label_masks"
COLUMNS = ("image_id", "data_provider", "isup_grade", "gleason_score")
NEEDED = COLUMNS[:2]
"""Columns that the table must have. Grades are needed for grading only, see `require_grades`."""
GroupKind = Literal["slide", "group", "patient"]
"""The unit that is never in two splits: a slide, a group (of near-duplicates), or a patient."""
GROUP_COLUMNS: tuple[GroupKind, ...] = ("patient", "group")
RESERVED = ("splits", "store.json")
"""Names in a patch store that are not folders of slides."""
_SHOWN = 5
_OVERVIEW = 2048


@dataclass(frozen=True)
class SlideRecord:
    """One row of the table of slides. Slide and mask need not exist.

    Attributes:
        slide_id: PANDA's `image_id`.
        provider: The name of its label map, see `panda.wsi.label_maps`.
        isup_grade: ISUP grade group, 0 (no cancer) to 5; None without a grade.
        gleason: The Gleason score as in the table (`"3+4"`, `"negative"`).
        mask_path: Its label mask; None for a slide without one.
        group: Slides of one group are never in two splits; the slide's own id if its group is unknown.
    """

    slide_id: str
    provider: str
    isup_grade: int | None
    gleason: str
    image_path: Path
    mask_path: Path | None
    group: str


def read_manifest(
    root: Path | str, *, mask_suffix: str = "_mask", label_maps: Mapping[str, LabelMap] | None = None
) -> list[SlideRecord]:
    """Read the table of slides of a folder in PANDA's layout; the files of the slides are not checked.

    Args:
        root: The folder that holds `train.csv`.
        mask_suffix: Suffix of a mask's file name after the slide's id.
        label_maps: Label maps of providers that are known besides those in `conf/label_maps`.

    Returns:
        One record a row, in the order of the table; each is its own group.

    Raises:
        ManifestError: If the folder, the table or a column is missing, the table is empty, or rows are faulty. An id
            must be a plain name that occurs once, the provider known, the grade a whole number from 0 to 5 or empty.
    """
    root = Path(root)
    table = find_table(root)
    rows = read_user_table(table, NEEDED)
    if "isup_grade" not in rows[0][1]:
        log.warning("%s: no column 'isup_grade', so no slide has a grade; the columns are %s", table, [*rows[0][1]])
    records: list[SlideRecord] = []
    faults: list[str] = []
    seen: dict[str, int] = {}
    for number, row in rows:
        slide_id = row["image_id"]
        found = [fault for _, fault in check_row(row, label_maps or ())]
        if slide_id in seen:
            found.append(f"image_id {slide_id!r} occurs already in row {seen[slide_id]}")
        seen.setdefault(slide_id, number)
        faults += [f"row {number}: {fault}" for fault in found]
        if not found:
            record = SlideRecord(
                slide_id=slide_id,
                provider=row["data_provider"],
                isup_grade=parse_grade(row.get("isup_grade", "")),
                gleason=row.get("gleason_score", ""),
                image_path=locate_image(root, slide_id),
                mask_path=locate_mask(root, slide_id, mask_suffix),
                group=slide_id,
            )
            records.append(record)
    if faults:
        raise ManifestError(
            _format_list(f"{table}: {len(faults)} fault{'s' * (len(faults) > 1)}; correct or remove these rows", faults)
        )
    return records


def find_table(root: Path) -> Path:
    """Return the path of the table in a folder of PANDA's layout, or raise `ManifestError` if it is missing."""
    if not root.is_dir():
        raise ManifestError(f"{root}: no such folder; data.root is the folder that holds {TABLE}")
    table = root / TABLE
    if not table.is_file():
        raise ManifestError(f"{table}: no such file; data.root is the folder that holds {TABLE} and {IMAGES}/")
    return table


def locate_image(root: Path, slide_id: str) -> Path:
    """Return the path of a slide, which need not exist."""
    return root / IMAGES / f"{slide_id}.tiff"


def locate_mask(root: Path, slide_id: str, suffix: str = "_mask") -> Path:
    """Return the path of a slide's label mask, which need not exist; `suffix` follows the slide's id in its name."""
    return root / MASKS / f"{slide_id}{suffix}.tiff"


def read_groups(path: Path | str) -> tuple[dict[str, str], GroupKind]:
    """Read the patient (or other group) of each slide from a CSV with `image_id` and `patient` (or `group`).

    Returns:
        Slide id → group, and the kind of groups: `"patient"` or `"group"` (for example near-duplicates).

    Raises:
        ManifestError: If the file or a column is missing, the table or a field is empty, or a slide has two groups.
    """
    path = Path(path)
    if not path.is_file():
        raise ManifestError(f"{path}: no such file; data.groups is a CSV with image_id and patient (or group)")
    groups: dict[str, str] = {}
    kind: GroupKind = "group"
    for number, row in read_user_table(path, ("image_id",), one_of=GROUP_COLUMNS):
        kind = next(column for column in GROUP_COLUMNS if column in row)
        name = row[kind]
        slide_id = row["image_id"]
        if not slide_id or not name:
            raise ManifestError(f"{path}, row {number}: empty image_id or group; fill it in or remove the row")
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
            _format_list(
                f"{len(absent)} of {len(records)} slides are not in the table of groups; list them there, each "
                f"with a group of its own if its patient is unknown",
                absent,
            )
        )
    return [replace(record, group=groups[record.slide_id]) for record in records]


def find_one_tumor_example(root: Path | str, provider: str | None = None) -> SlideRecord:
    """Find a slide whose mask has cancer pixels, the highest grade first.

    Masks are read at low resolution (2,048 px). Slides and masks that cannot be read are skipped.

    Args:
        root: The folder that holds `train.csv`.
        provider: Only slides of this provider; None for any.

    Returns:
        The record of the first such slide, by falling grade and then by id.

    Raises:
        ManifestError: If no slide of the table has cancer pixels, or the table is faulty (see `read_manifest`).
    """
    records = [record for record in read_manifest(root) if provider in (None, record.provider)]
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


def check_row(row: Mapping[str, str], providers: Collection[str] = ()) -> list[tuple[str, str]]:
    """Return the faults of a row of the table of slides, for which it makes no record.

    Args:
        row: Values by column; there need be no `isup_grade`.
        providers: Providers that are known besides those in `conf/label_maps`.

    Returns:
        The name of each fault in `panda.data.findings.FINDINGS`, and a sentence.
    """
    faults = []
    slide_id, provider = row["image_id"], row["data_provider"]
    if (
        not slide_id
        or slide_id.startswith(".")
        or any(part in slide_id for part in ("/", "\\", ".."))
        or not slide_id.isprintable()
    ):
        faults.append(("bad_id", f"image_id {slide_id!r} is not a plain file name without folder and suffix"))
    elif slide_id in RESERVED:
        faults.append(("bad_id", f"image_id {slide_id!r} is a reserved name in patch stores; rename the slide"))
    known = {*get_label_maps(), *providers}
    if provider not in known:
        faults.append(("unknown_provider", f"data_provider {describe_unknown_provider(provider, known)}"))
    try:
        parse_grade(row.get("isup_grade", ""))
    except ValueError as error:
        faults.append(("bad_grade", str(error)))
    return faults


def parse_grade(text: str) -> int | None:
    """Return the ISUP grade of a cell, None if it is empty; a table with gaps may have 3 as `3.0`.

    Raises:
        ValueError: If it is no whole number from 0 to 5.
    """
    if not text:
        return None
    if not re.fullmatch(r"[0-5](\.0+)?", text, re.ASCII):
        raise ValueError(f"isup_grade {text!r} is not a whole number from 0 to 5; leave it empty if it is unknown")
    return int(text[0])


def require_grades(records: Sequence[SlideRecord]) -> None:
    """Refuse slides without a grade, which grading cannot use.

    Raises:
        ManifestError: If there are any; the message counts them and names some.
    """
    if absent := [repr(record.slide_id) for record in records if record.isup_grade is None]:
        raise ManifestError(
            _format_list(
                f"{len(absent)} of {len(records)} slides have no isup_grade, which grading needs; fill in the column, "
                "or leave these slides out with data.exclude=[missing_grade]",
                absent,
            )
        )


def _format_list(headline: str, items: Sequence[str]) -> str:
    """Return a headline with the first few items below it."""
    more = [f"… and {len(items) - _SHOWN} more"] if len(items) > _SHOWN else []
    return "\n".join([f"{headline}:", *(f"  - {item}" for item in [*items[:_SHOWN], *more])])
