"""Assumptions of the measurements."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from bench import ablation
from bench.project import DEFAULT_STORE

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
