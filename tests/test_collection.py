"""The commands that put the results of a folder together, in a process of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from bench.tables import write_run
from panda.app.collection import log_shard_end
from panda.app.entry_point import list_refusals, run_guarded
from panda.app.feature_tables import FeatureTables, collect_features
from panda.data.feature_origin import FeatureOrigin
from panda.data.shard import Shard
from panda.errors import PandaError
from panda.inference.feature_output import FeatureOutput, FeatureSettings, TilePlan
from panda.report.job_end import JobEnd
from panda.stored import Making

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
    FeatureTables(output).write_run(["a", "b"], output.summarize("cpu", [], Making()))
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


def test_collect_refused_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "in" / ".records").mkdir(parents=True)
    run_guarded(collect_features, _configure(tmp_path / "in", tmp_path / "out"))
    (refusal,) = list_refusals()
    assert "no run is recorded" in refusal
    assert [path.name for path in tmp_path.rglob("*")] == ["in", ".records"]


def test_collect_failed_leaves_error_in_its_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise PandaError("no")

    monkeypatch.setattr("panda.app.collection._write_results", fail)
    run_guarded(collect_features, _configure(folder / "features", tmp_path / "out"))
    assert JobEnd.read(folder / "features") == JobEnd(state="failed", message="PandaError: no")
    assert not (tmp_path / "out").exists()


def _configure(folder: Path, run_dir: Path) -> DictConfig:
    return OmegaConf.create({"collect": str(folder), "debug": False, "run_dir": str(run_dir)})


def test_log_shard_end_gives_command_that_can_be_pasted(panda_log: pytest.LogCaptureFixture) -> None:
    with panda_log.at_level("INFO"):
        log_shard_end(Shard(1, 2), "infer", Path("my out"))
    command = """python infer.py 'collect="my out"'"""
    assert panda_log.messages == [f"shard 1/2 is done; the last one writes the tables, or {command}"]
