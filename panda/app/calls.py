"""Run jobs from Python: `panda.train("model=unet", …)` takes the words of `panda train model=unet …`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

from panda.app.entry_point import set_up_logging
from panda.app.hydra_job import read_key
from panda.choices import CONF


def compose_job(name: str, words: Sequence[str]) -> DictConfig:
    """Compose the configuration of a job, as Hydra does for its command, and make it that of this process.

    Args:
        name: Its file in `conf`, such as `train`.
        words: Choices and keys, `key=value`.

    Raises:
        ConfigError: If Hydra cannot compose it.
    """
    with initialize_config_dir(str(CONF), version_base="1.3", job_name=name):
        cfg = compose(name, overrides=list(words), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


@contextmanager
def _enter_job(name: str, words: Sequence[str]) -> Iterator[DictConfig]:
    """Yield the configuration of a job, which ends with the block; messages are written as those of a command."""
    hydra = HydraConfig.instance()
    before = hydra.cfg
    try:
        set_up_logging(False)
        cfg = compose_job(name, words)
        set_up_logging(read_key(cfg, "debug") is True)
        yield cfg
    finally:
        hydra.cfg = before


def train(*words: str) -> Path:
    """Train and evaluate.

    Args:
        *words: What `panda train` takes, such as `"model=unet"`, one job without a sweep.

    Returns:
        The folder of the run, which holds `checkpoints/best.ckpt`, `summary.json` and `report.html`.

    Raises:
        PandaError: As `panda.app.train.train`.
    """
    from panda.app.train import train as run  # noqa: PLC0415  (loads torch)

    with _enter_job("train", words) as cfg:
        run(cfg)
        return Path(cfg.run_dir)


def infer(*words: str) -> Path:
    """Map slides with a checkpoint.

    Args:
        *words: What `panda infer` takes, such as `"checkpoint=best.ckpt"`, one job without a sweep.

    Returns:
        The folder of the results, which holds `quantification.csv`, `report.html` and a folder for each slide.

    Raises:
        PandaError: As `panda.app.infer.infer`.
    """
    from panda.app.infer import infer as run  # noqa: PLC0415  (loads torch)

    with _enter_job("infer", words) as cfg:
        run(cfg)
        return Path(cfg.run_dir)
