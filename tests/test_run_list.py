"""All runs below a folder: which can be compared, their order by validation, and runs that are broken."""

from __future__ import annotations

import html
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from panda.report import compare, folds
from panda.report.run_list import find_runs, group_runs
from panda.report.runs import main
from panda.tables import read_output_table, write_table
from tests.summaries import fill_summary
from tests.test_compare import Rows, make_rows, make_run
from tests.test_report_pages import check_page


def add_run(folder: Path, rows: Rows, dice: float, *choices: str, test_dice: float = 0.5, **summary: Any) -> None:
    """Write a finished run whose validation and test slides have these rows."""
    data = {"root": "panda", "settings": {"level": 1, "mpp": None}, "slides": {"val": len(rows), "test": len(rows)}}
    make_run(folder, rows, val={"dice": dice}, data=data, **{"test": {"dice": test_dice}, **summary})
    write_table(folder / "val_slides.csv", [row | {"slide_id": f"val-{row['slide_id']}"} for row in rows])
    (folder / "overrides.txt").write_text("\n".join([f"name={folder.name}", "logger.mode=offline", *choices]))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return runs of three sets of slides, unfinished and broken ones, and folders that are no runs."""
    runs = tmp_path / "my runs"
    add_run(runs / "segmentation" / "low", make_rows(), 0.6, "model=unet", test_dice=0.9)
    add_run(runs / "segmentation" / "sweep-a" / "0", make_rows(shift=0.1), 0.7, "model=fpn", test_dice=0.8)
    add_run(runs / "segmentation" / "other", make_rows(n=12), 0.99, "model=unet")
    changed = [*make_rows()[:-1], make_rows()[-1] | {"fn_px": 7}]
    add_run(runs / "segmentation" / "relabelled", changed, 0.95, "model=fpn")
    for fold in "01":
        for model, shift in (("unet", 0.0), ("fpn", 0.15)):
            rows = [row | {"slide_id": f"fold{fold}-{row['slide_id']}"} for row in make_rows(shift=shift)]
            choices = (f"model={model}", "data.split=kfold", f"data.fold={fold}")
            add_run(runs / "folds" / f"{model}{fold}", rows, 0.5, *choices)
    for name, written in {
        "failed": {"error.json": json.dumps({"state": "failed", "message": "DISK"})},
        "lost": {"config.yaml": "task: segmentation"},
        "broken": {"summary.json": "{", "overrides.txt": "model=unet"},
        "edited": {"summary.json": json.dumps(fill_summary({"threshold": 7}))},
        "evaluation": {"summary.json": "{}", "inference.json": "{}"},
        "low/slides/s1": {"overrides.txt": ""},
        ".hidden": {"overrides.txt": ""},
        "compare-a-b": {"compare.csv": ""},
        "more/2/3/4/5/6/7/lost": {"config.yaml": "task: segmentation"},
    }.items():
        folder = runs / "segmentation" / name
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in written.items():
            (folder / file).write_text(text)
    return runs


def test_find_runs_lists_every_run_with_its_state(root: Path) -> None:
    states = {run.name: run.state for run in find_runs(root)}
    done = {*(f"folds/{name}" for name in ("fpn0", "fpn1", "unet0", "unet1"))}
    done |= {f"segmentation/{name}" for name in ("low", "other", "relabelled", "sweep-a/0")}
    assert {name for name, state in states.items() if state == "done"} == done
    rest = {name.removeprefix("segmentation/"): state for name, state in states.items() if name not in done}
    failed = dict.fromkeys(("failed", "broken", "edited"), "failed")
    assert rest == failed | {"lost": "lost", "more/2/3/4/5/6/7/lost": "lost"}


def test_group_runs_compares_only_same_slides_and_labels(root: Path) -> None:
    found = [
        [sorted(run.name.rpartition("/")[2] for run in choice.jobs) for choice in group.choices]
        for group in group_runs(root, find_runs(root))
    ]
    assert found == [[["fpn0", "fpn1"], ["unet0", "unet1"]], [["0"], ["low"]], [["other"]], [["relabelled"]]]


def test_group_runs_separates_resolutions_and_changed_data(root: Path) -> None:
    settings = {"root": "panda", "settings": {"level": 0, "mpp": None}}
    (root / "segmentation" / "low" / "summary.json").write_text(
        json.dumps(fill_summary({"val": {"dice": 0.6}, "test": {"dice": 0.5}, "data": settings}))
    )
    add_run(root / "folds" / "unet0-again", make_rows(n=9), 0.7, "model=unet", "data.split=kfold", "data.fold=0")
    groups = group_runs(root, find_runs(root))
    assert all(len(group.choices) == 1 for group in groups)
    assert sum(len(group.runs) for group in groups) == 9


def test_group_runs_same_configuration_in_other_words_is_one_choice(tmp_path: Path) -> None:
    config = "seed: {}\nmodel: {{architecture: unet, encoder_name: {}}}\ndata: {{level: 1, num_workers: {}}}\n"
    for name, words, values in (
        ("one", ("model=unet", "model.encoder_name=resnet18", "data=panda", "seed=0"), (0, "resnet18", 2)),
        ("two", ("seed=1",), (1, "resnet18", 8)),
        ("large", ("model.encoder_name=resnet50", "seed=1"), (1, "resnet50", 2)),
    ):
        add_run(tmp_path / name, make_rows(), 0.5, *words)
        (tmp_path / name / "config.yaml").write_text(config.format(*values))
    (group,) = group_runs(tmp_path, find_runs(tmp_path))
    assert sorted(sorted(run.name for run in choice.jobs) for choice in group.choices) == [["large"], ["one", "two"]]
    assert set(group.varied) == {"model.encoder_name", "seed"}


def test_runs_page_ranks_by_validation_and_commands_work(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([str(root)]) == 0
    assert capsys.readouterr().out == f"13 runs: 8 done, 3 failed, 2 lost\npage: {root / 'runs.html'}\n"
    text = html.unescape(check_page(root / "runs.html"))
    assert "Best on validation: fpn, Dice, all pixels pooled 0.700, on test 0.800." in text, "test alone prefers unet"
    best = "Best on validation: fpn, Dice, all pixels pooled 0.8"
    assert text.rindex("Group 1: ") < text.index(best) < text.rindex("Group 2: ")
    assert "2 choices have slides or labels of their own" in text
    assert 'href="segmentation/sweep-a/0/report.html"' not in text, "the run has no page"
    rows = {row["job"]: row for row in read_output_table(root / "runs.csv")}
    assert len(rows) == 13
    places = [rows[f"segmentation/{name}"]["place"] for name in ("sweep-a/0", "low", "other", "failed")]
    assert places == ["1", "2", "1", ""]
    assert rows["segmentation/failed"]["error"] == "DISK"
    commands = [shlex.split(found)[2:] for found in re.findall(r"<code>(python -m panda\.report\.[^<]*)</code>", text)]
    assert [words[0].rpartition(".")[2] for words in commands] == ["runs", "compare", "folds", "compare"]
    for module, *folders in commands[1:]:
        if module.endswith("compare"):
            assert compare.main(folders) == 0
            assert "is better on slides like these" in capsys.readouterr().out
        else:
            monkeypatch.setattr("sys.argv", ["folds", *folders])
            folds.main()
            assert "48 slides of 2 runs" in capsys.readouterr().out


def test_runs_without_any_run_is_refused(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder, said in (
        (tmp_path / "absent", "is not a folder"),
        (root / "segmentation" / "compare-a-b", "has no training run in it"),
        (root / "segmentation" / "low", "low is a run: give the folder that holds it"),
    ):
        assert main([str(folder)]) == 1
        assert said in capsys.readouterr().err
    assert not list(tmp_path.rglob("runs.html"))
