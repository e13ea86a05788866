"""Assumptions of the measurements."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from bench import ablation, pipeline, pipeline_build
from bench.project import DEFAULT_STORE
from bench.worker import LeftOutError
from panda.files import hold_lock
from panda.inference.canvas import Canvas
from tests.panda_folder import make_folder

REPOSITORY = Path(__file__).resolve().parents[1]


def test_bench_imports_leave_torch_unloaded() -> None:
    # each has a process that imports the module of its entry point first; cuCIM hangs if torch was imported before
    code = "import sys, bench.run, bench.extraction, bench.reading; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)


def test_bench_default_store_equals_panda_config() -> None:
    assert OmegaConf.load(REPOSITORY / "conf" / "data" / "panda.yaml").store == DEFAULT_STORE


def test_ablation_train_interrupted_run_starts_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = tmp_path / "sweep-all0" / "0" / "checkpoints"
    left.mkdir(parents=True)
    begun: list[bool] = []
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: begun.append(left.exists()))
    ablation._train(tmp_path, tmp_path / "sweep-all0", "name=all0")
    assert begun == [False], "a run refuses a folder that holds one"


def test_ablation_second_command_in_a_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["ablation", f"--output={tmp_path}"])
    monkeypatch.setattr(ablation, "_train", lambda *_: pytest.fail("it trains beside the first"))
    with hold_lock(tmp_path / "ablation"), pytest.raises(SystemExit, match=r"another run holds .* another --output"):
        ablation.main()


def test_unpack_commit_that_is_absent_is_left_out(tmp_path: Path) -> None:
    with pytest.raises(LeftOutError, match=r"0000000 is not there .* full clone"):
        pipeline.unpack_commit("0" * 40, tmp_path / "before")


def test_pipeline_steps_files_reuse_canvases_of_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.inference.CACHE", tmp_path)
    (record,) = make_folder(tmp_path / "data", 1)
    out = tmp_path / "out"
    out.mkdir()
    found = pipeline_build.map_slides(out, [record.image_path])
    canvas = out / record.slide_id / "canvas.zarr"
    assert Canvas.open(canvas).attrs["tiles"] == found["tiles"] > 0
    made = canvas.stat().st_ino
    pipeline_build.write_files(out, [record.image_path])
    assert (canvas.with_name("quantification.json").is_file(), canvas.stat().st_ino) == (True, made)
