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


def test_refusal_in_process_of_job_reaches_its_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = tmp_path / "sweep-${x}"  # Hydra keeps the folder of a job as it is, and that of the sweep escaped
    folders = {"runtime": {"output_dir": str(sweep / "0")}, "sweep": {"dir": escape(str(sweep))}}
    hydra = {"mode": RunMode.MULTIRUN, "overrides": {"task": [], "hydra": []}, **folders}
    cfg, page = OmegaConf.create({"hydra": hydra, "allow_packages": [], "name": "x"}), SweepPage()
    HydraConfig.instance().cfg = cfg  # type: ignore[assignment]
    set_up_logging(False)
    forget_refusals()
    (sweep / "0").mkdir(parents=True)
    refuse(PandaError("it is another run"), sweep / "0")
    page.on_job_end(cfg, JobReturn())
    forget_refusals()  # the process of the launcher
    page.on_multirun_end(cfg)
    assert exit_status() == 1
    assert "job 0: it is another run" in capsys.readouterr().err
    assert not list((sweep / "0").iterdir())

    forget_refusals()
    page.on_multirun_start(cfg)
    page.on_multirun_end(cfg)
    assert exit_status() == 0
    forget_refusals()
