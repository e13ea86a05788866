"""The command that puts the results of a folder together, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench.tables import write_run

REPOSITORY = Path(__file__).resolve().parents[1]


def collect(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-X", "importtime", "infer.py", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("out")
    write_run(made, ["a", "b"])
    return made


def test_collect_writes_page_without_torch(folder: Path) -> None:
    ran = collect(f"collect={folder}")
    imported = {line.rpartition("|")[2].strip() for line in ran.stderr.splitlines()}
    assert "2 slides have no result yet" in ran.stderr
    assert (folder / "report.html").is_file()
    assert "panda.report.inference_page" in imported
    assert not imported & {"torch", "torchvision", "torchmetrics", "timm", "pytorch_lightning", "matplotlib.pyplot"}


def test_collect_refuses_all_other_keys(folder: Path) -> None:
    ran = collect(f"collect={folder}", "slides=x", "engine.device=cpu", "+odd=1")
    assert "slides=x, engine.device=cpu, +odd=1 are not used with collect=" in ran.stderr
