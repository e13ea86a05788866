"""Tables of other programs and of this one: what is read, what is refused, and what a spreadsheet would run."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from panda.data.manifest import read_groups, read_manifest
from panda.errors import ConfigError, ManifestError
from panda.tables import OutputTable, RowSpool, read_output_table, read_user_table, write_rows, write_table

ROWS = (
    ("image_id", "data_provider", "isup_grade", "gleason_score"),
    ("a", "radboud", "0", "0+0"),
    ("b 2", "karolinska", "", ""),
    ("c", "radboud", "3", "4+3"),
)
Grid = tuple[tuple[str, ...], ...]


def _join(rows: Grid, delimiter: str = ",", end: str = "\n", quoting: int = csv.QUOTE_MINIMAL) -> str:
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter, lineterminator=end, quoting=quoting).writerows(rows)  # type: ignore[arg-type]
    return out.getvalue()


def _pad(rows: Grid, before: str, after: str) -> Grid:
    return tuple(tuple(f"{before}{value}{after}" for value in row) for row in rows)


def _index(rows: Grid) -> Grid:
    return (("", *rows[0]), *((str(number), *row) for number, row in enumerate(rows[1:])))


def _float_grades(rows: Grid) -> Grid:
    return (rows[0], *((*row[:2], f"{row[2]}.0" if row[2] else "", row[3]) for row in rows[1:]))


WRITERS: dict[str, Callable[[], str]] = {
    "plain": lambda: _join(ROWS),
    "Excel, German": lambda: "\ufeff" + _join(ROWS, ";", "\r\n"),
    "Excel, CSV UTF-8": lambda: "\ufeff" + _join(ROWS, ",", "\r\n"),
    "LibreOffice, all quoted": lambda: _join(ROWS, ",", "\r\n", csv.QUOTE_ALL),
    "LibreOffice, tabs": lambda: _join(ROWS, "\t"),
    "old Mac": lambda: _join(ROWS, ",", "\r"),
    "pandas, gaps in grades": lambda: _join(_float_grades(ROWS)),
    "pandas, index": lambda: _join(_index(_float_grades(ROWS))),
    "blanks around": lambda: _join(_pad(ROWS, " ", "  ")),
    "tabs behind": lambda: _join(_pad(ROWS, "", "\t")),
    "no-break blanks": lambda: _join(_pad(ROWS, "\u00a0", "\u00a0")),
    "empty columns and rows behind": lambda: _join((*((*row, "", "") for row in ROWS), ("",) * 6)),
    "no end of line": lambda: _join(ROWS).removesuffix("\n"),
    "blank lines": lambda: "\n" + _join(ROWS).replace("\n", "\n\n"),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_read_manifest_any_writer_gives_same_records(tmp_path: Path, writer: str) -> None:
    (tmp_path / "train.csv").write_bytes(WRITERS[writer]().encode())
    found = [(each.slide_id, each.provider, each.isup_grade, each.gleason) for each in read_manifest(tmp_path)]
    assert found == [("a", "radboud", 0, "0+0"), ("b 2", "karolinska", None, ""), ("c", "radboud", 3, "4+3")]


@pytest.mark.parametrize("writer", WRITERS)
def test_read_groups_any_writer_gives_same_groups(tmp_path: Path, writer: str) -> None:
    text = WRITERS[writer]().replace("data_provider", "patient").replace("isup_grade", "note")
    (tmp_path / "patients.csv").write_bytes(text.encode())
    groups = {"a": "radboud", "b 2": "karolinska", "c": "radboud"}
    assert read_groups(tmp_path / "patients.csv") == (groups, "patient")


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (_join(ROWS).encode("utf-16"), "cannot be read as a CSV in UTF-8"),
        (_join(ROWS).replace("b 2", "ä").encode("latin-1"), "save it again as CSV in UTF-8"),
        (b'image_id,data_provider\na,"radboud\nb,radboud\n', "line 3: unexpected end of data"),
        (b'image_id,data_provider\na,"rad"boud\n', "line 2"),
        (b"image_id,data_provider,image_id\na,radboud,b\n", "column 'image_id' occurs twice"),
        (b"image_id, data_provider,data_provider \na,radboud,b\n", "column 'data_provider' occurs twice"),
        (b"image_id,data provider\na,radboud\n", "no column 'data_provider'.* are 'image_id', 'data provider'"),
        (b"image_id|data_provider\na|radboud\n", "separated by commas, semicolons or tabs"),
        (b"image_id;data_provider\na;radboud;x\n", "row 2 has 3 fields, the header has 2; .* that has ';' in it"),
        (b"image_id,data_provider\na\n", "row 2 has 1 fields"),
        (b"image_id,data_provider\n,,\n", "no rows"),
        (b"", "found are none"),
        (b'image_id,data_provider\n"a\nb",radboud\n', "image_id 'a\\\\nb' is not a plain file name"),
        (b'image_id,data_provider\n"a\tb",radboud\n', "image_id 'a\\\\tb' is not a plain file name"),
        (b"image_id,data_provider,isup_grade\na,radboud,3.5\n", "isup_grade '3.5' is not a whole number from 0 to 5"),
        (b"image_id;data_provider;isup_grade\na;radboud;3,5\n", "isup_grade '3,5' is not a whole number"),
    ],
)
def test_read_manifest_broken_table_is_refused_by_name(tmp_path: Path, data: bytes, fault: str) -> None:
    (tmp_path / "train.csv").write_bytes(data)
    with pytest.raises(ManifestError, match=f"(?s)train.csv.*{fault}"):
        read_manifest(tmp_path)


def test_read_manifest_no_grade_column_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "train.csv").write_text("image_id,data_provider,stage\na,radboud,3\n")
    assert [each.isup_grade for each in read_manifest(tmp_path)] == [None]
    assert "no slide has a grade in a column 'isup_grade', 'grade' or 'gleason_score'" in caplog.text


def test_read_user_table_numbers_lines_of_file(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('\nx,y\n\n"1\n2",3\n4,5\n')
    rows = read_user_table(tmp_path / "a.csv", ("x",))
    assert rows == [(5, {"x": "1\n2", "y": "3"}), (6, {"x": "4", "y": "5"})]


def test_write_table_has_every_key_as_column(tmp_path: Path) -> None:
    write_table(tmp_path / "a.csv", [{"a": 1, "b": None}, {"a": 2, "c": "x,y"}])
    assert (tmp_path / "a.csv").read_text() == 'a,b,c\n1,,\n2,,"x,y"\n'
    write_table(tmp_path / "a.csv", [], ["a", "b"])
    assert (tmp_path / "a.csv").read_text() == "a,b\n"
    with pytest.raises(ValueError, match="no column 'b'"):
        write_table(tmp_path / "a.csv", [{"a": 1, "b": 2}], ["a"])


FORMULAS = ("=1+1", "+SUM(A1)", "-a", "@x", "\tx", "\r=x", "'=x", "''@x", '=HYPERLINK("http://x","y")')


def test_write_table_no_cell_begins_like_a_formula(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    write_table(path, [dict.fromkeys(("=name", "b"), text) for text in FORMULAS])
    with path.open(newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not [cell for cell in cells if cell[0] in "=+-@\t\r"]
    assert [row["b"] for row in read_output_table(path)] == list(FORMULAS)
    assert [row["=name"] for _, row in read_user_table(path, ("=name", "b"))] == list(FORMULAS)


def test_write_table_numbers_stay_numbers(tmp_path: Path) -> None:
    numbers = (-1, -0.5, np.int64(-3), np.float32(-2.5), "-4.25", "+1e-05", float("-inf"), True)
    write_table(tmp_path / "a.csv", [numbers], list("abcdefgh"))
    assert (tmp_path / "a.csv").read_text().splitlines()[1] == "-1,-0.5,-3,-2.5,-4.25,+1e-05,-inf,True"


@given(st.lists(st.lists(st.text(), min_size=2, max_size=2), max_size=5))
def test_write_table_any_text_reads_back_the_same(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]]
) -> None:
    rows = [[text.replace("\x00", "").encode("utf-8", "ignore").decode() for text in row] for row in rows]
    path = tmp_path_factory.mktemp("table") / "a.csv"
    write_table(path, rows, ("a", "b"))
    assert [list(row.values()) for row in read_output_table(path)] == rows


def spool(folder: Path, rows: list[dict[str, str | int | float | None]]) -> RowSpool:
    made = RowSpool(folder)
    for row in rows:
        made.add(row)
    return made


def test_write_rows_long_table_is_parquet_with_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[dict[str, str | int | float | None]] = [
        {"slide_id": "a", "share": 1, "count": 3, "grade": 2, "none": None},
        {"slide_id": "=b", "share": 0.1, "count": 4, "grade": "3 to 4", "more": "ü"},
        {"slide_id": "c", "share": None},
    ]
    path = tmp_path / "slides.csv"
    with spool(tmp_path, rows) as made:
        assert write_rows(path, made, ["slide_id"]) == path
        listed = list(OutputTable(path))
        monkeypatch.setattr("panda.tables.MOST_CSV_ROWS", 2)
        monkeypatch.setattr("panda.tables._PARQUET_ROWS", 2)
        other = write_rows(path, made, ["slide_id"])
    assert [one.name for one in tmp_path.iterdir()] == ["slides.parquet"]
    schema = parquet.read_schema(other)
    assert [str(schema.field(name).type) for name in schema.names] == [
        *("string", "double", "int64", "string", "string", "string"),
    ]
    assert list(OutputTable(path)) == [listed[0] | {"share": "1.0"}, *listed[1:]]
    other.write_bytes(b"PAR1")
    assert list(OutputTable(path)) == []
    with spool(tmp_path, []) as made:
        assert write_rows(path, made, ["slide_id"]) == path
    assert path.read_text() == "slide_id\n"
    assert not other.exists()


def test_write_rows_without_pyarrow_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("panda.tables.MOST_CSV_ROWS", 0)
    monkeypatch.setattr("panda.tables.find_spec", lambda name: None)
    with spool(tmp_path, [{"slide_id": "a"}]) as made, pytest.raises(ConfigError, match=r"panda-wsi\[cluster\]"):
        write_rows(tmp_path / "slides.csv", made, ["slide_id"])
