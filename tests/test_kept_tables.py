"""Tables of a folder that runs with other settings share."""

from __future__ import annotations

from pathlib import Path

import pytest

from panda.data.kept_tables import KEPT_TABLES, keep_table
from panda.data.run_records import RECORDS_FOLDER

A, B = "a" * 32, "b" * 32


@pytest.fixture
def table(tmp_path: Path) -> Path:
    (tmp_path / RECORDS_FOLDER).mkdir()
    return tmp_path / "quantification.csv"


def read_kept(table: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in (table.parent / KEPT_TABLES).glob("*")}


def test_keep_table_moves_that_of_other_settings_only(table: Path) -> None:
    for made_with, text, kept in (
        (A, "10 rows", {}),
        (A, "11 rows", {}),
        (B, "1 row", {"quantification_aaaaaaaaaaaa.csv": "11 rows"}),
        (B, "2 rows", {"quantification_aaaaaaaaaaaa.csv": "11 rows"}),
        (A, "11 rows", {"quantification_aaaaaaaaaaaa.csv": "11 rows", "quantification_bbbbbbbbbbbb.csv": "2 rows"}),
        (B, "2 rows", {"quantification_aaaaaaaaaaaa.csv": "11 rows", "quantification_bbbbbbbbbbbb.csv": "2 rows"}),
    ):
        keep_table(table, made_with)
        assert read_kept(table) == kept
        table.write_text(text)


def test_keep_table_of_the_same_settings_loses_no_earlier_one(table: Path) -> None:
    """One slide with the first settings replaces the table of all again."""
    scores = table.with_name("test_slides.csv")
    for made_with, text in ((A, "10 rows"), (B, "10 others"), (A, "1 row"), (B, "1 other")):
        keep_table(table, made_with, [scores.name])
        table.write_text(text)
        scores.write_text(f"{text} of scores")
    assert read_kept(table) == {
        "quantification_aaaaaaaaaaaa.csv": "10 rows",
        "quantification_aaaaaaaaaaaa-2.csv": "1 row",
        "quantification_bbbbbbbbbbbb.csv": "10 others",
        "test_slides_aaaaaaaaaaaa.csv": "10 rows of scores",
        "test_slides_aaaaaaaaaaaa-2.csv": "1 row of scores",
        "test_slides_bbbbbbbbbbbb.csv": "10 others of scores",
    }


def test_keep_table_killed_before_the_new_one_loses_nothing(table: Path) -> None:
    keep_table(table, A)
    table.write_text("10 rows")
    keep_table(table, B)
    keep_table(table, B)
    assert read_kept(table) == {"quantification_aaaaaaaaaaaa.csv": "10 rows"}


def test_keep_table_large_one_is_kept_as_parquet(table: Path) -> None:
    keep_table(table, A)
    table.with_suffix(".parquet").write_text("rows")
    keep_table(table, B)
    assert read_kept(table) == {"quantification_aaaaaaaaaaaa.parquet": "rows"}
    assert not table.with_suffix(".parquet").exists()


@pytest.mark.parametrize("note", ["../../x", "", "\xff"])
def test_keep_table_edited_note_keeps_the_table(table: Path, note: str) -> None:
    table.write_text("10 rows")
    (table.parent / RECORDS_FOLDER / "table").write_text(note)
    keep_table(table, A)
    assert read_kept(table) == {"quantification_unknown.csv": "10 rows"}
