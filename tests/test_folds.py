"""Folds of a cross-validation as one figure, against sums by hand; runs that are no folds of one are refused."""

import re
from pathlib import Path
from typing import Any

import pytest

from panda.errors import ManifestError
from panda.report.compare import main as compare_main
from panda.report.folds import compute_figures, main, read_folds
from tests.test_compare import make_rows, make_run


def test_compute_figures_pools_slides_of_folds(tmp_path: Path) -> None:
    rows = make_rows(n=9, groups=5)
    folders = [make_run(tmp_path / str(fold), part) for fold, part in enumerate((rows[:2], rows[2:]))]
    read, task = read_folds(folders)
    assert [row["slide_id"] for row in read] == [row["slide_id"] for row in rows]
    found = {figure.name: figure for figure in compute_figures(read, task)}
    tp, fp, fn = (sum(row[key] for row in rows) for key in ("tp_px", "fp_px", "fn_px"))
    assert found["dice"].value == pytest.approx(2 * tp / (2 * tp + fp + fn))
    assert found["dice"].groups == 5
    with_cancer = [row["dice"] for row in rows if row["dice"] != ""]
    assert found["dice_mean_slide"].value == pytest.approx(sum(with_cancer) / 8)
    assert found["dice_mean_slide"].slides == 8
    interval = found["dice"].interval
    assert interval is not None
    assert interval[0] < found["dice"].value < interval[1]
    assert found["fp_mm2_benign_slides"].value == 0.5
    assert found["fp_mm2_benign_slides"].interval is None  # one slide has no spread


EDITS = {
    "slide_id,": ("other,", "row 2: slide_id is None"),
    "s01,": ("s00,", "row 3: slide_id is 's00' again"),
    "dice,": ("dice,", ""),
    ",100,": (",many,", "row 2: fp_px is 'many'"),
    ",0.5,": (",-0.5,", "row 2: fp_mm2 is '-0.5'"),
    ",0.5,100": (",nan,100", "row 2: fp_mm2 is 'nan'"),
}


@pytest.mark.parametrize("old", EDITS)
def test_edited_table_of_slides_is_refused_by_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, old: str
) -> None:
    rows, (new, said) = make_rows(n=8, groups=4), EDITS[old]
    folders = [make_run(tmp_path / "a", rows[:4]), make_run(tmp_path / "b", rows[4:])]
    same = make_run(tmp_path / "c", rows[:4])
    table = folders[0] / "test_slides.csv"
    text = table.read_text()
    assert old in text
    table.write_text(text.replace(old, new, 1))
    monkeypatch.setattr("sys.argv", ["folds", *map(str, folders)])
    if not said:
        main()
        assert compare_main([str(folders[0]), str(same)]) == 0
        return
    with pytest.raises(SystemExit, match=re.escape(f"{table}, {said}")):
        main()
    assert compare_main([str(folders[0]), str(same)]) == 1
    assert f"{table}, {said}" in capsys.readouterr().err
    assert not list(tmp_path.glob("compare-*"))


def test_main_prints_each_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = make_rows(n=6)
    folders = [make_run(tmp_path / str(fold), rows[fold::2]) for fold in range(2)]
    monkeypatch.setattr("sys.argv", ["folds", *map(str, folders)])
    main()
    printed = capsys.readouterr().out
    assert printed.startswith("6 slides")
    assert "dice_mean_slide" in printed
    assert "5 slides, 5 groups" in printed


def test_read_folds_slide_tested_twice_raises(tmp_path: Path) -> None:
    rows = make_rows(n=3)
    folders = [make_run(tmp_path / name, rows) for name in ("a", "b")]
    with pytest.raises(ManifestError, match=r"s00 was tested in .*a and in .*b: give runs of data.split=kfold"):
        read_folds(folders)


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ({}, {"task": "grading"}, "task is segmentation in .*a and grading in .*b"),
        (
            {"task": "grading", "target": "isup"},
            {"task": "grading", "target": "cancer"},
            "target is isup in .*a and cancer in .*b",
        ),
        ({}, {"data": {"settings": {"level": 2, "mpp": None}}}, "data.level is 1 in .*a and 2 in .*b"),
    ],
)
def test_read_folds_unlike_runs_raise(tmp_path: Path, one: dict[str, Any], other: dict[str, Any], message: str) -> None:
    rows = make_rows(n=4)
    folders = [make_run(tmp_path / "a", rows[:2], **one), make_run(tmp_path / "b", rows[2:], **other)]
    with pytest.raises(ManifestError, match=message):
        read_folds(folders)
