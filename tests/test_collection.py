"""The commands that put the results of a folder together, in a process of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench.tables import write_run
from panda.app.collection import log_shard_end
from panda.app.feature_tables import FeatureTables
from panda.data.feature_origin import FeatureOrigin
from panda.data.shard import Shard
from panda.inference.feature_output import FeatureOutput, FeatureSettings, TilePlan

REPOSITORY = Path(__file__).resolve().parents[1]


def collect(command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    started = [sys.executable, "-X", "importtime", f"{command}.py", *arguments]
    return subprocess.run(started, cwd=REPOSITORY, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("out")
    write_run(made / "infer", ["a", "b"])
    plan = TilePlan(tile_size=64, level=None, mpp=0.5, overlap=0.0, min_tissue=0.25, normalize=None, reader="auto")
    origin = FeatureOrigin(format="panda", dim=8, encoder="drawn", weights="0" * 64)
    output = FeatureOutput(made / "features", FeatureSettings(format="panda", plan=plan, origin=origin))
    FeatureTables(output).write_run(["a", "b"], output.summarize("cpu", []))
    return made


@pytest.mark.parametrize(("command", "page"), [("infer", "inference_page"), ("features", "features_page")])
def test_collect_writes_page_without_torch(folder: Path, command: str, page: str) -> None:
    ran = collect(command, f"collect={folder / command}")
    imported = {line.rpartition("|")[2].strip() for line in ran.stderr.splitlines()}
    assert "2 slides have no result yet" in ran.stderr
    assert (folder / command / "report.html").is_file()
    assert f"panda.report.{page}" in imported
    assert not imported & {"torch", "torchvision", "torchmetrics", "timm", "pytorch_lightning", "matplotlib.pyplot"}


def test_collect_refuses_all_other_keys(folder: Path) -> None:
    ran = collect("infer", f"collect={folder / 'infer'}", "slides=x", "engine.device=cpu", "+odd=1")
    assert "slides=x, engine.device=cpu, +odd=1 are not used with collect=" in ran.stderr


def test_log_shard_end_gives_command_that_can_be_pasted(panda_log: pytest.LogCaptureFixture) -> None:
    with panda_log.at_level("INFO"):
        log_shard_end(Shard(1, 2), "infer", Path("my out"))
    command = """python infer.py 'collect="my out"'"""
    assert panda_log.messages == [f"shard 1/2 is done; the last one writes the tables, or {command}"]
