"""What the measurements take for granted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from bench import ablation
from bench.project import DEFAULT_STORE

REPOSITORY = Path(__file__).resolve().parents[1]


def test_contenders_do_not_get_torch_with_the_door() -> None:
    # each has a process that imports the door's module first; cuCIM hangs where torch was there before it
    code = "import sys, bench.run, bench.extraction, bench.reading; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)


def test_the_headline_store_is_the_one_of_data_panda() -> None:
    assert OmegaConf.load(REPOSITORY / "conf" / "data" / "panda.yaml").store == DEFAULT_STORE


def test_an_interrupted_part_of_the_ablation_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = tmp_path / "sweep-all0" / "0" / "checkpoints"
    left.mkdir(parents=True)
    begun: list[bool] = []
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: begun.append(left.exists()))
    ablation._train(tmp_path, tmp_path / "sweep-all0", "name=all0")
    assert begun == [False], "a run refuses a folder that holds one"
