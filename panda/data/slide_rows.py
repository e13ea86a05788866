"""The rows of a table of slides, faulty ones too: one reader for PANDA's layout and for tables of other layouts.

A folder in PANDA's layout has `train.csv`, `train_images/<id>.tiff` and `train_label_masks/<id>_mask.tiff`
(https://www.kaggle.com/c/prostate-cancer-grade-assessment/data). A table of another layout names the file of each slide
in its column `path`; docs/your_slides.md has its columns.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from panda.data.slide_files import find_series_members, identify_file
from panda.errors import ManifestError
from panda.tables import read_user_table
from panda.wsi.gleason import isup_grade_from_score
from panda.wsi.label_maps import describe_unknown_provider, get_label_maps

TABLE, IMAGES, MASKS = "train.csv", "train_images", "train_label_masks"
ID_COLUMNS = ("image_id", "slide_id")
"""The columns of which a table has one, with the name of a slide."""
_ID, _PROVIDER, _GRADE = ID_COLUMNS, ("data_provider", "provider"), ("isup_grade", "grade")
_FILES = ("path", "mask", "annotation")
_SYNONYMS = (_ID, _PROVIDER, _GRADE)
KNOWN = (*_FILES, *_ID, *_PROVIDER, "patient", *_GRADE, "gleason_score")
"""Columns with a meaning; a slide keeps the values of all others."""
RESERVED = ("splits", "store.json")
"""Names in a patch store that are not folders of slides."""
_LONGEST_ID = 200
"""Bytes of an id. File systems allow names of 255, and an id is a part of longer names."""
_CLOSE = 0.8
_SCORE = re.compile(r"([0-5])\s*\+\s*([0-5])(?:\s*=\s*(\d+))?")


def find_id_column(path: Path, row: Mapping[str, str]) -> str:
    """Return the column of a row that names the slide.

    Raises:
        ManifestError: If the table has none, or both.
    """
    found = [column for column in ID_COLUMNS if column in row]
    if len(found) != 1:
        raise ManifestError(f"{path}: the table must have a column {' or '.join(ID_COLUMNS)}, and only one of them")
    return found[0]


@dataclass(frozen=True)
class SlideRow:
    """A row of a table of slides, correct or not.

    Attributes:
        number: The number of its line in the file; the header is line 1.
        slide_id: The id, or else the name of the slide's file without its suffix.
        provider: The name of its label map, spelled as there if it is known.
        isup_grade: The grade as text, in one spelling if it is a grade.
        gleason: The Gleason score as text, in one spelling if it is a score.
        image_path: The file of the slide.
        mask_path: Its label file, a mask or an annotation; None without one.
        patient: The patient; empty if the table has none.
        others: Names and values of the columns without a meaning.
        faults: For each fault its name in `panda.data.findings.FINDINGS`, and a sentence. Such a row makes no record.
    """

    number: int
    slide_id: str
    provider: str
    isup_grade: str
    gleason: str
    image_path: Path
    mask_path: Path | None
    patient: str = ""
    others: tuple[tuple[str, str], ...] = ()
    faults: tuple[tuple[str, str], ...] = ()

    @property
    def grade(self) -> int | None:
        """The ISUP grade; None if there is none, or it is no whole number from 0 to 5."""
        try:
            return parse_grade(self.isup_grade)
        except ValueError:
            return None

    @property
    def has_file(self) -> bool:
        """Whether the row names a slide that can be inspected."""
        return not {"bad_id", "bad_file"} & {name for name, _ in self.faults}

    def check_score(self) -> list[tuple[str, str]]:
        """Return the fault of the Gleason score, or of the grade beside it."""
        if not self.gleason:
            return []
        try:
            by_score = isup_grade_from_score(self.gleason)
        except ValueError as error:
            return [("bad_gleason", str(error))]
        if self.grade is None or self.grade == by_score:
            return []
        return [("contradicting_row", f"gleason_score {self.gleason} is ISUP {by_score}, isup_grade is {self.grade}")]


def read_rows(
    root: Path | str,
    labels: str | None = None,
    *,
    providers: Collection[str] = (),
    mask_suffix: str = "_mask",
    needs_slides: bool = True,
) -> list[SlideRow]:
    """Read the rows of a table of slides.

    Args:
        root: A folder in PANDA's layout, or a CSV of another layout, whose files are relative to its folder.
        labels: The label map of slides without a provider.
        providers: Providers that are known besides those in `conf/label_maps`.
        mask_suffix: Suffix of a mask's file name after the slide's id, in PANDA's layout.
        needs_slides: Whether a CSV must name the files of the slides; if not, ids suffice, and a slide without a mask
            may have any provider.

    Raises:
        ManifestError: If the folder, the table or a column is missing, or the table is not a CSV in UTF-8 or has no
            rows. Two columns of one meaning and a name that resembles a known one are refused too.
    """
    root = Path(root)
    table = root if root.is_file() else find_table(root)
    numbered = read_user_table(table, (), KNOWN)
    columns = list(numbered[0][1])
    if faults := _find_column_faults(
        columns, table, needs_path=table == root and needs_slides, has_labels=labels is not None
    ):
        raise ManifestError(f"{table}: {'; '.join(faults)}; the columns found are {', '.join(map(repr, columns))}")
    suffix = None if table == root else mask_suffix
    reader = _RowReader(table, columns, labels, {*get_label_maps(), *providers}, suffix, needs_slides=needs_slides)
    rows = [reader.read(number, row) for number, row in numbered]
    further = find_series_members(row.image_path for row in rows if row.has_file)
    text = "is a further file of a DICOM series that another row has too; keep one row for each slide"
    return [
        replace(row, faults=(*row.faults, ("bad_file", f"path {row.image_path.name!r} {text}")))
        if row.image_path in further
        else row
        for row in rows
    ]


def find_table(root: Path) -> Path:
    """Return the path of the table in a folder of PANDA's layout, or raise `ManifestError` if it is missing."""
    if not root.is_dir():
        raise ManifestError(f"{root}: no such folder; data.root is the folder that holds {TABLE}")
    table = root / TABLE
    if not table.is_file():
        raise ManifestError(f"{table}: no such file; data.root is the folder that holds {TABLE} and {IMAGES}/")
    return table


def locate_image(root: Path, slide_id: str) -> Path:
    """Return the path of a slide in PANDA's layout, which need not exist."""
    return root / IMAGES / f"{slide_id}.tiff"


def locate_mask(root: Path, slide_id: str, suffix: str = "_mask") -> Path:
    """Return the path of a mask in PANDA's layout, which need not exist; its name is the slide's id and `suffix`."""
    return root / MASKS / f"{slide_id}{suffix}.tiff"


def parse_grade(text: str) -> int | None:
    """Return the ISUP grade of a cell, None if it is empty; spreadsheets write 3 as `3.0` or `3,0` too.

    Raises:
        ValueError: If it is no whole number from 0 to 5.
    """
    if not text:
        return None
    if not re.fullmatch(r"[0-5]([.,]0+)?", text, re.ASCII):
        raise ValueError(f"isup_grade {text!r} is not a whole number from 0 to 5; leave it empty if it is unknown")
    return int(text[0])


def _find_column_faults(columns: Sequence[str], table: Path, *, needs_path: bool, has_labels: bool) -> list[str]:
    """Return what is wrong with the header of a table."""
    faults = []
    needed = ("path",) if needs_path else _ID
    if not {*needed, "path"} & {*columns}:
        hint = ""
        if needs_path:
            hint = ": give the file of each slide, relative to the table or absolute" + (
                f", or the folder in PANDA's layout: data=panda data.root={table.parent}, or labels={table.parent} in "
                "inference"
                if (table.parent / IMAGES).is_dir()
                else ""
            )
        faults.append(f"no column {needed[0]!r}{hint}")
    if not has_labels and not {*_PROVIDER} & {*columns}:
        faults.append(
            f"no column {_PROVIDER[1 if needs_path else 0]!r}, the label map of each slide: add it, or in training "
            "name one label map for all of them with data.labels=NAME"
        )
    for names in _SYNONYMS:
        if {*names} <= {*columns}:
            faults.append(f"columns {' and '.join(map(repr, names))} mean the same: remove one")
    for name in columns:
        if name not in KNOWN and (known := _find_close(name)):
            faults.append(f"column {name!r}: write {known!r} if it is that, otherwise give it another name")
    return faults


def _find_close(name: str) -> str | None:
    """Return the known column that a name resembles, which is more likely a slip than another column."""
    plain = re.sub(r"\W+", "_", name.strip()).lower()
    starts = [known for known in KNOWN if known == plain or known.startswith(f"{plain}_")]
    return next(iter([*starts, *difflib.get_close_matches(plain, KNOWN, n=1, cutoff=_CLOSE)]), None)


class _RowReader:
    """Reads the rows of one table in order; it knows which files earlier rows name."""

    def __init__(
        self,
        table: Path,
        columns: Sequence[str],
        labels: str | None,
        providers: set[str],
        mask_suffix: str | None,
        *,
        needs_slides: bool,
    ) -> None:
        self.folder = table.parent
        self.columns = columns
        self.labels = labels or ""
        self.providers = providers
        self.spellings = {name.casefold(): name for name in providers}
        self.mask_suffix = mask_suffix
        self.needs_slides = needs_slides
        self.files: dict[object, tuple[int, str]] = {}  # the row and column that names a file first

    def read(self, number: int, row: Mapping[str, str]) -> SlideRow:
        """Read a row."""
        faults: list[tuple[str, str]] = []

        def find(names: Sequence[str]) -> tuple[str, str]:
            name = next((name for name in names if name in row), names[0])
            return name, row.get(name, "")

        (id_column, slide_id), (provider_column, provider) = find(_ID), find(_PROVIDER)
        if id_column not in row:
            slide_id = Path(row["path"].replace("\\", "/")).stem
        if fault := _check_id(id_column, slide_id):
            faults.append(("bad_id", fault))
        provider = provider or self.labels
        provider = self.spellings.get(provider.casefold(), provider)
        of_cells: list[tuple[str, str]] = []
        grade = self._read_grade(find(_GRADE), row, of_cells)
        image, mask = self._find_files(number, slide_id, row, of_cells)
        needs_codes = self.needs_slides or (mask is not None and mask.is_file())
        if not provider:
            faults.append(("unknown_provider", f"{provider_column} is empty; fill it in, or give data.labels=NAME"))
        elif provider not in self.providers and needs_codes:
            described = describe_unknown_provider(provider, self.providers)
            faults.append(("unknown_provider", f"{provider_column} {described}"))
        faults += of_cells
        if "patient" in row and not row["patient"]:
            faults.append(("missing_patient", "patient is empty; write one, unknown patients each under its own name"))
        gleason = _spell_score(row.get("gleason_score", ""))
        others = tuple((name, value) for name, value in row.items() if name not in KNOWN)
        found = SlideRow(number, slide_id, provider, grade, gleason, image, mask, row.get("patient", ""), others)
        # PANDA's own table has a row that contradicts itself; the audit names it.
        faults += found.check_score() if self.mask_suffix is None else ()
        return replace(found, faults=tuple(faults))

    def _read_grade(self, cell: tuple[str, str], row: Mapping[str, str], faults: list[tuple[str, str]]) -> str:
        """Return the grade in one spelling; a table without a column of grades has those of its Gleason scores."""
        column, text = cell
        try:
            if column not in row and (score := _spell_score(row.get("gleason_score", ""))):
                return str(isup_grade_from_score(score))
            grade = parse_grade(text)
        except ValueError as error:
            if column in row:
                faults.append(("bad_grade", str(error).replace("isup_grade", column, 1)))
            return text
        return "" if grade is None else str(grade)

    def _find_files(
        self, number: int, slide_id: str, row: Mapping[str, str], faults: list[tuple[str, str]]
    ) -> tuple[Path, Path | None]:
        """Return the files of a slide and of its labels."""
        named = {column: self._find_file(number, column, row[column], faults) for column in _FILES if column in row}
        image, mask, annotation = (named.get(column) for column in _FILES)
        if self.needs_slides and "path" in row and image is None:
            faults.append(("bad_file", "path is empty; give the file of the slide, or remove the row"))
        if mask and annotation:
            text = f"mask {row['mask']!r} and annotation {row['annotation']!r} are both given; remove one"
            faults.append(("bad_file", text))
        if self.mask_suffix is None or {"mask", "annotation"} & row.keys():
            return image or self.folder, mask or annotation
        return image or locate_image(self.folder, slide_id), locate_mask(self.folder, slide_id, self.mask_suffix)

    def _find_file(self, number: int, column: str, cell: str, faults: list[tuple[str, str]]) -> Path | None:
        """Return the file that a cell names; None for an empty cell."""
        if not cell:
            return None
        path = self.folder / cell
        identity, fault = identify_file(path)
        if fault:
            hint = "; write / between folders" if "\\" in cell else ""
            faults.append(("bad_file", f"{column} {cell!r}: {fault}{hint}; correct it or remove the row"))
        first = self.files.setdefault(identity, (number, column))
        if first != (number, column):
            faults.append(
                ("bad_file", f"{column} {cell!r} is the {first[1]} of row {first[0]} too; correct one of them")
            )
        return path


def _spell_score(text: str) -> str:
    """Return a Gleason score in the spelling of PANDA; another text stays as it is."""
    if (parts := _SCORE.fullmatch(text)) and (not parts[3] or int(parts[1]) + int(parts[2]) == int(parts[3])):
        return f"{parts[1]}+{parts[2]}"
    return text.lower() if text.lower() == "negative" else text


def _check_id(column: str, slide_id: str) -> str | None:
    """Return what is wrong with an id, which names files and folders."""
    folders = any(part in slide_id for part in ("/", "\\", ".."))
    if not slide_id or slide_id.startswith(".") or folders or not slide_id.isprintable():
        return f"{column} {slide_id!r} is not a plain file name without folder and suffix"
    if len(slide_id.encode()) > _LONGEST_ID:
        return f"{column} {slide_id!r} is longer than {_LONGEST_ID} bytes; give a short name in a column image_id"
    if slide_id in RESERVED:
        return f"{column} {slide_id!r} is a reserved name in patch stores; rename the slide"
    return None
