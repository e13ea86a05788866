"""Paths with characters that mean something to a shell, to Hydra, to a glob or to OmegaConf, through whole commands."""

from __future__ import annotations

import glob
import shlex
import shutil
from pathlib import Path

import pytest

from panda.settings import format_override, quote
from tests.integration.entry_points import run_entry_point, table
from tests.integration.test_entry_points import TINY
from tests.panda_folder import make_folder

ODD = ("a=b,c[d] #e {f} (g)", "-a*b?'c \"d ${e} $f é漢 %n \\")
TRAIN = (
    *(o for o in TINY if not o.startswith(("data.draw", "task.panels"))),
    "data=panda",
    "test_slides=false",
    "+trainer.limit_train_batches=1",
    "+trainer.limit_val_batches=1",
    "task.panels=0",
    "logger=csv",
)
GRADING = ("task=grading", "data=panda", "trainer=cpu", "trainer.max_epochs=1", "logger=csv", "tiles.k=4")
KEYS = {
    "train": ("data.root", "name", "data.groups", "data.findings", "data.splits", "resume"),
    "infer": ("checkpoint", "slides", "labels", "grading_checkpoint"),
    "audit": ("data.root",),
    "features": ("encoder", "encoder_weights", "slides"),
}


def give(key: str, value: object) -> str:
    """Return an override as the shell passes it on after it was quoted as messages say."""
    (typed,) = shlex.split(format_override(f"{key}={value}"))
    return typed


def run(home: Path, entry_point: str, *overrides: str) -> None:
    done = run_entry_point(entry_point, home, *overrides)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("odd", ODD)
def test_odd_path_works_in_all_entry_points(tmp_path: Path, odd: str) -> None:
    home, place = tmp_path, Path(odd)
    records = make_folder(home / place / "data", 8)
    root, store = give("data.root", place / "data"), give("data.store_root", place / "store")
    run(home, "audit", "data=panda", root, give("output", place / "audit"))
    tables = (give("data.groups", place / "audit/groups.csv"), give("data.findings", place / "audit/findings.csv"))
    shares = ("data.val_fraction=0.4", "data.test_fraction=0.2")
    run(home, "train", *TRAIN, root, store, *tables, give("name", odd), "data.exclude=[empty_mask_graded]", *shares)
    made = home / "runs" / "segmentation" / odd
    assert len(table(made / "splits.csv")) == len(records)

    moved = place / "runs" / "segmentation" / "moved"
    shutil.copytree(made, home / moved)
    run(home, "train", give("resume", moved / "checkpoints/last.ckpt"), "trainer.max_epochs=2")
    assert [row["epoch"] for row in table(home / moved / "metrics.csv") if row["val/loss"]] == ["0", "1"]
    split = give("data.splits", moved / "splits.csv")
    run(home, "train", "-m", *TRAIN, root, store, split, give("name", odd), "threshold=auto")
    assert [row["state"] for row in table(home / f"runs/segmentation/sweep-{odd}/sweep.csv")] == ["done"]

    best = moved / "checkpoints/best.ckpt"
    guide = (give("segmentation_checkpoint", best), "model.encoder_weights=segmentation", "data.num_workers=0")
    run(home, "train", *GRADING, root, store, split, *guide, give("name", odd))
    grader = give("grading_checkpoint", f"runs/grading/{odd}/checkpoints/best.ckpt")
    labels, folder = give("labels", place / "data"), place / "data" / "train_images"
    run(home, "infer", give("checkpoint", best), give("slides", folder), grader, labels, give("output", place / "out"))
    rows = table(home / place / "out" / "quantification.csv")
    assert len(rows) == len(records)
    assert all(row["isup_predicted"] for row in rows)
    for row in rows:
        assert (home / place / "out" / row["slide_id"] / "regions.geojson").is_file()

    encoder = ("encoder=test_resnet", "encoder_weights=null", "tile_size=64", "mpp=4")
    run(home, "features", *encoder, give("slides", folder), give("output", place / "features"))
    assert len(table(home / place / "features" / "features.csv")) == len(records)

    slide = home / place / f"{odd}.tiff"
    shutil.copy(records[0].image_path, slide)
    (home / place / "list, 1.csv").write_text('path\n"{}"\n'.format(slide.name.replace('"', '""')))
    found = glob.escape(str(place)) + "/*.tiff"
    for number, slides in enumerate((place / slide.name, found, place / "list, 1.csv")):
        out = place / f"out{number}"
        sweep = ("-m", "threshold=0.5") if number == 0 else ()
        run(home, "infer", *sweep, give("checkpoint", best), give("slides", slides), give("output", out))
        result = home / out / ("threshold=0.5" if sweep else "") / slide.stem / "quantification.json"
        assert result.is_file()


@pytest.mark.parametrize(
    "odd", ["a=b", "a,b", "[a]", "#a", "a#b", "a b", "it's", '"a', "(a)", "{a}", "${a}", "é漢", "*~:@!"]
)
def test_odd_path_unquoted_is_named_or_quoted_in_message(tmp_path: Path, odd: str) -> None:
    for entry_point, keys in KEYS.items():
        typed = [f"{key}=x{odd}/y" for key in keys]
        done = run_entry_point(entry_point, tmp_path, *["data=panda"] * (entry_point in ("train", "audit")), *typed)
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        for override in [one.partition(",")[0] if one.startswith("slides=") else one for one in typed]:
            assert f"{override} " in done.stderr or f"{override}:" in done.stderr or quote(override) in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_glob_with_bracket_in_name_says_how_to_write_it(tmp_path: Path) -> None:
    make_folder(tmp_path / "a[1]", 2)
    done = run_entry_point("infer", tmp_path, "checkpoint=x", give("slides", "a[1]/train_images/*"))
    assert "slides=a[1]/train_images/*: no slide found" in done.stderr
    assert "in a glob, write [[] for a [ in a name" in done.stderr
