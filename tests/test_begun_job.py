"""Folders that an earlier command left: which can be used again, and how a sweep is continued."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from panda.app.begun_job import BegunRun, clear_failed_start, find_begun_run, holds_run
from panda.app.hydra_job import make_new_folder
from panda.app.training_reuse import Training
from panda.errors import ConfigError
from tests.summaries import fill_summary

CFG = DictConfig({"name": "a", "run_dir": "x", "resume": None, "debug": False, "seed": 1, "optim": {"lr": 0.1}})


@pytest.fixture
def leave(tmp_path: Path) -> Callable[..., Path]:
    def leave_files(*names: str) -> Path:
        for name in names:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text("{}")
        if "config.yaml" in names:
            OmegaConf.save(CFG, tmp_path / "config.yaml")
        return tmp_path

    return leave_files


@pytest.mark.parametrize(
    ("names", "held"),
    [
        ((), False),
        (("config.yaml", "metrics.csv", "wandb/x"), False),
        (("config.yaml", "checkpoints/best.ckpt"), False),
        (("config.yaml", "checkpoints/last.ckpt"), True),
        (("checkpoints/best.ckpt",), True),
        (("summary.json",), True),
        (("config.yaml", "training.json"), True),
    ],
)
def test_holds_run_is_false_before_first_checkpoint(
    leave: Callable[..., Path], names: tuple[str, ...], held: bool
) -> None:
    assert holds_run(leave(*names)) == held


def test_clear_failed_start_keeps_files_of_others(leave: Callable[..., Path]) -> None:
    folder = leave("config.yaml", "checkpoints/best.ckpt", "checkpoints/mine.ckpt", "views/epoch_001_0.png")
    (folder / "wandb" / "offline-run-1").mkdir(parents=True)
    clear_failed_start(folder)
    left = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    own = {"wandb", "wandb/interrupted", "wandb/interrupted/offline-run-1"}
    assert left == {"config.yaml", "checkpoints", "checkpoints/mine.ckpt", *own}


def test_find_begun_begins_resumes_or_reuses(leave: Callable[..., Path]) -> None:
    folder = leave("config.yaml", "checkpoints/best.ckpt")
    assert find_begun_run(CFG, folder) == BegunRun(folder)
    leave("checkpoints/last.ckpt")
    last = folder / "checkpoints" / "last.ckpt"
    assert find_begun_run(CFG, folder) == BegunRun(folder, last)
    training = Training(fingerprint="0" * 64, epochs=1, decided={}, trained_by="0")
    training.write(folder)
    assert find_begun_run(CFG, folder) == BegunRun(folder)
    training.model_copy(update={"trained_by": None}).write(folder)
    (folder / "summary.json").write_text(json.dumps(fill_summary({})))
    assert find_begun_run(CFG, folder) == BegunRun(folder, last), "it was killed before its page"
    leave("report.html")
    begun = find_begun_run(CFG, folder)
    assert begun.last is None
    assert begun.finished is not None


@pytest.mark.parametrize("result", ["summary.json", "training.json", "checkpoints/last.ckpt/a folder"])
def test_find_begun_without_its_checkpoint_is_refused(leave: Callable[..., Path], result: str) -> None:
    folder = leave("config.yaml")
    (folder / result).parent.mkdir(parents=True, exist_ok=True)
    (folder / result).write_text("{}")
    with pytest.raises(ConfigError, match=r"no file \S+last\.ckpt to continue from: restore it"):
        find_begun_run(CFG, folder)


def test_find_begun_of_other_configuration_is_refused(leave: Callable[..., Path]) -> None:
    folder = leave("config.yaml", "checkpoints/last.ckpt")
    assert find_begun_run(OmegaConf.merge(CFG, {"name": "b", "debug": True, "run_dir": "y"}), folder).last  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"run with optim\.lr=0\.1, not 0\.2 and 1 other key; give another name"):
        find_begun_run(OmegaConf.merge(CFG, {"optim": {"lr": 0.2}, "seed": 2}), folder)  # type: ignore[arg-type]


def test_find_begun_takes_text_of_written_config_as_text(leave: Callable[..., Path]) -> None:
    folder = leave("checkpoints/last.ckpt")
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(CFG).replace("seed: 1", "seed: 1\nroot: /data/${seed}"))
    assert find_begun_run(OmegaConf.merge(CFG, {"root": r"/data/\${seed}"}), folder).last  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"run with root=/data/\$\{seed\}, not /data/1"):
        find_begun_run(OmegaConf.merge(CFG, {"root": "/data/1"}), folder)  # type: ignore[arg-type]


def test_make_new_folder_of_same_second_gets_number(tmp_path: Path) -> None:
    made = [make_new_folder(tmp_path / "runs" / "2026").name for _ in range(3)]
    assert made == ["2026", "2026-2", "2026-3"]
