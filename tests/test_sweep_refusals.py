"""Jobs of a sweep that are refused in processes of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn
from hydra.types import RunMode
from omegaconf import OmegaConf

from panda.app.entry_point import exit_status, forget_refusals, refuse, set_up_logging
from panda.app.sweep import SweepPage
from panda.errors import PandaError
from panda.settings import escape
from tests.integration.entry_points import run_entry_point
from tests.panda_folder import make_folder


def test_refusal_in_process_of_job_reaches_its_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = tmp_path / "sweep-${x}"  # Hydra keeps the folder of a job as it is, and that of the sweep escaped
    folders = {"runtime": {"output_dir": str(sweep / "0")}, "sweep": {"dir": escape(str(sweep))}}
    hydra = {"mode": RunMode.MULTIRUN, "overrides": {"task": [], "hydra": []}, **folders}
    cfg, page = OmegaConf.create({"hydra": hydra, "allow_packages": [], "name": "x"}), SweepPage()
    HydraConfig.instance().cfg = cfg  # type: ignore[assignment]
    set_up_logging(False)
    for name in ("0", "1"):
        (sweep / name).mkdir(parents=True)
        cfg.hydra.runtime.output_dir = str(sweep / name)
        forget_refusals()
        refuse(PandaError("it is another run"), sweep / name)
        page.on_job_end(cfg, JobReturn())
    capsys.readouterr()
    forget_refusals()  # the process of the launcher
    page.on_multirun_end(cfg)
    assert exit_status() == 1
    assert capsys.readouterr().err.count("it is another run") == 1
    assert not list((sweep / "0").iterdir())

    forget_refusals()
    page.on_multirun_start(cfg)
    page.on_multirun_end(cfg)
    assert exit_status() == 0


def test_sweep_fault_of_all_jobs_is_said_once_before_first(tmp_path: Path) -> None:
    done = run_entry_point("audit", tmp_path, "-m", "data=panda", "data.root=none", "audit.workers=1,2,3", "output=out")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "ConfigError: 1 fault in the configuration:",
        "  - data.root=none has no train.csv: give the folder that holds it and train_images/",
    ]


def test_sweep_jobs_that_replace_each_other_are_refused(tmp_path: Path) -> None:
    done = run_entry_point("infer", tmp_path, "-m", "checkpoint=a.ckpt,b.ckpt", "slides=s", "threshold=0.3,0.5")
    assert done.returncode == 1
    assert done.stderr.count("ConfigError") == 1
    assert "jobs that differ in checkpoint would replace each other's results in " in done.stderr
    assert "start them one by one, each with an output of its own" in done.stderr
    assert not list(tmp_path.rglob("quantification*"))


def test_sweep_jobs_that_add_to_one_output_are_no_fault(tmp_path: Path) -> None:
    done = run_entry_point("infer", tmp_path, "-m", "checkpoint=a.ckpt", "slides=s,t")
    assert done.returncode == 1
    assert "would replace" not in done.stderr
    assert "slides=t: " in done.stderr


def test_sweep_fault_of_some_jobs_is_said_once_and_others_run(tmp_path: Path) -> None:
    make_folder(tmp_path / "data", 2)
    choices = ("data=panda", "data.root=data,none", "audit.slides=false", "debug=false,false")
    done = run_entry_point("audit", tmp_path, "-m", *choices, "output=out")
    assert done.returncode == 1
    assert "2 of 4 jobs will be refused:\n  - jobs 2, 3: data.root=none has no train.csv" in done.stderr
    assert done.stderr.count("has no train.csv") == 1
    assert done.stderr.count("refused, see above") == 2
    assert "job 1 (" in done.stderr
    assert "of 4): data.root=data" in done.stderr
    assert sorted(path.parent.name for path in (tmp_path / "out").glob("*/audit.csv")) == ["0", "1"]
