"""`train(cfg)`: one run from a checked configuration to its folder, for either task."""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import wandb
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint

from panda.app.build import Faults, build
from panda.app.callbacks import Bar, Clock, LearningRate, MovableCheckpoint, Quiet, SeedOfEpoch
from panda.app.config_check import check_config
from panda.app.dashboard import replay_views
from panda.app.distributed import device_faults
from panda.app.entry_point import Interrupted, SomeSlidesFailed, log_to_file, make_folder
from panda.app.grading import GradingExperiment
from panda.app.overrides import is_typed, overrides, write_overrides
from panda.app.resolvers import is_multirun
from panda.app.run import Experiment, Run
from panda.app.segmentation import SegmentationExperiment
from panda.app.tracking import read_metrics, replay, set_wandb_aside
from panda.app.training_reuse import software_versions
from panda.data.failures import write_failures
from panda.errors import ConfigError
from panda.files import hold_lock, write_json, write_whole
from panda.report.headline import headline
from panda.report.interpretation import headline_keys
from panda.report.run_page import write_run_page
from panda.report.run_summary import RunSummary
from panda.report.sweep_page import write_sweep
from panda.tasks.checkpoint import WholeCheckpoints

log = logging.getLogger(__name__)

RESUMABLE = (
    "trainer.max_epochs",
    "task.patience",
    "task.panels",
    "task.views",
    "data.num_workers",
    "engine.",
    "logger.",
    "quantify.",
    "colour_map",
)
"""How the keys begin that a resumed run may be given anew: nothing that decides what it learns from."""
DECIDES_BAGS = ("engine.precision", "engine.compile", "engine.tta")
"""What does not belong to them in grading: tiles are chosen on maps, and a frozen encoder's features kept, by these."""
_OLD_DATA = "panda.data.datamodule.PatchDataModule"
"""Target of the data of runs before their settings had a class of their own."""
EXPERIMENTS: dict[str, type[SegmentationExperiment] | type[GradingExperiment]] = {
    "segmentation": SegmentationExperiment,
    "grading": GradingExperiment,
}


def train(cfg: DictConfig) -> float:
    """Trains and evaluates.

    Args:
        cfg: `conf/train.yaml` as composed by Hydra, or by a test, which then gives `run_dir`.

    Returns:
        The figure that runs are compared by, see `compared_by`.

    Raises:
        ConfigError: With all faults of the configuration, before anything slow.
        PandaError: If the run cannot go on; what it did is kept.
        SomeSlidesFailed: At the end of a run that is whole but for some slides.
        Interrupted: After Ctrl-C.
    """
    started = time.monotonic()
    resume = Path(cfg.resume) if cfg.resume and isinstance(cfg.resume, str) else None
    if resume:
        cfg = _config_of_resumed(cfg, resume)
    faults = Faults()
    check_config(cfg, "train", faults)
    folder = Path(cfg.run_dir)
    _check_run(cfg, folder, resume, faults)
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    experiment: Experiment = EXPERIMENTS[cfg.task.name](cfg, faults)

    make_folder(folder)
    try:
        with hold_lock(folder / "run", wait=False):
            return _run(cfg, folder, resume, experiment, started)
    except BlockingIOError as error:
        raise ConfigError(f"name={cfg.name}: another process is at work in {folder}; take another name") from error


def _run(cfg: DictConfig, folder: Path, resume: Path | None, experiment: Experiment, started: float) -> float:
    """The run itself, in a folder that no other process works in."""
    log_to_file(folder / "run.log")
    write_whole(folder / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
    write_overrides(folder, resumed=resume is not None)
    (folder / "error.txt").unlink(missing_ok=True)
    log.info("run: %s", folder)
    clock = Clock(started)
    sweep = folder.parent if is_multirun() else None
    run = Run(cfg, folder, resume, _trainer(cfg, folder, experiment, clock, resume), sweep, clock=clock)
    try:
        summary = experiment.run(run)
        _finish(run, summary)
        figure = compared_by(summary)
    except KeyboardInterrupt as stop:
        write_failures(folder / "failures.csv", run.failures)
        remedy = f"go on with: python train.py resume={run.last}" if run.last.exists() else "nothing to go on from yet"
        if run.sweep:
            write_whole(folder / "error.txt", f"interrupted; {remedy}\n")
            write_sweep(run.sweep)
        if run.last.exists():
            raise Interrupted(remedy) from stop
        raise
    except BaseException:
        write_failures(folder / "failures.csv", run.failures)
        raise
    finally:
        # Left open, the next job of a multirun would log into this run.
        if wandb.run is not None:
            wandb.finish()
    if run.failures:
        raise SomeSlidesFailed(
            f"the run is done, but without {len(run.failures)} slide(s): {folder / 'failures.csv'} says why",
            figure,
        )
    return figure


def compared_by(summary: RunSummary) -> float:
    """Return the figure by which sweeps rank and optimize runs: on validation, so that nothing is tuned on the test.

    Returns:
        The first of the task's `headline_keys` that validation has: the slides' mean Dice (segmentation; pooled
        Dice with `data=one_slide`), quadratic kappa (`task.target=isup`) or AUROC (`cancer`). NaN if it is undefined.
    """
    numbers = summary.val.numbers
    figure = next((numbers[key] for key in headline_keys(summary) if key in numbers), None)
    return math.nan if figure is None else float(figure)


def _finish(run: Run, summary: RunSummary) -> None:
    """Write summary, failures and page of a run."""
    write_json(run.folder / "summary.json", summary.to_dict())
    write_failures(run.folder / "failures.csv", run.failures)
    report = write_run_page(run.folder)
    log.info("%s\nreport: %s", headline(summary), report)


def _check_run(cfg: DictConfig, folder: Path, resume: Path | None, faults: Faults) -> None:
    """What no single node of the configuration can know: the run's folder, and the number of devices."""
    if not resume and ((folder / "checkpoints").exists() or (folder / "summary.json").exists()):
        last = folder / "checkpoints" / "last.ckpt"
        faults.add(
            f"name={cfg.name}: {folder} holds a run already; take another name, or remove the folder"
            + (f", or go on with resume={last}" if last.exists() else " (it has no checkpoint to go on from)")
        )
    found = device_faults(cfg.trainer)
    faults.add(*found)
    faults.build(_plain(cfg), "logger")
    if not found:
        # Lightning says what it refuses (a GPU that is not there, say) before the run has a folder.
        faults.build(_plain(cfg), "trainer", logger=False, callbacks=[ModelCheckpoint()])


def _config_of_resumed(cfg: DictConfig, resume: Path) -> DictConfig:
    """The resumed run's own configuration, with the values of this command line on top."""
    folder = resume.parent.parent
    written = folder / "config.yaml"
    for needed in (resume, resume.with_name("best.ckpt"), written):
        if not needed.is_file():
            raise ConfigError(f"resume={resume}: {needed} does not exist; give runs/…/checkpoints/last.ckpt of a run")
    try:
        own = OmegaConf.load(written)
    except Exception as error:  # the YAML reader has errors of its own
        raise ConfigError(f"{written} cannot be read ({str(error).splitlines()[0]}): start a new run") from error
    if not isinstance(own, DictConfig) or not own:
        raise ConfigError(f"{written} holds no keys: start a new run")
    if isinstance(data := own.get("data"), DictConfig) and data.get("_target_") == _OLD_DATA:
        raise ConfigError(f"{written} is of an earlier version (data._target_={_OLD_DATA}): start a new run")
    faults = Faults()
    for override in overrides():
        key, _, value = override.partition("=")
        if key.lstrip("+") in ("resume", "debug", "allow_packages"):
            continue
        if OmegaConf.select(own, "task.name") == "grading" and key in DECIDES_BAGS:
            faults.add(f"{override}: a resumed grading keeps the tiles and features that it learns from; leave it out")
        elif key.startswith(RESUMABLE):
            own.merge_with_dotlist([f"{key}={value}"])
        else:
            faults.add(f"{override}: a resumed run keeps its choices; what can be changed is {', '.join(RESUMABLE)}")
    faults.raise_any()
    own.resume, own.run_dir, own.debug = str(resume), str(folder), cfg.debug
    # The run's folder may have been sent by somebody: it allows nothing.
    own.allow_packages = cfg.allow_packages if is_typed("allow_packages") else []
    return own


def _plain(cfg: DictConfig) -> dict[str, Any]:
    """Return the resolved configuration as plain data."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _trainer(
    cfg: DictConfig, folder: Path, experiment: Experiment, clock: Clock, resume: Path | None = None
) -> pl.Trainer:
    # Read before the loggers begin theirs.
    begun = torch.load(resume, weights_only=True) if resume else None
    kept = read_metrics(folder, begun["global_step"]) if begun else []
    if begun:
        # Lightning does so too, but in the processes that train alone.
        clock.load_state_dict(begun["callbacks"][clock.state_key])
        set_wandb_aside(folder)
    config = _plain(cfg)
    loggers = build(config, "logger").loggers(
        folder,
        name=folder.name,
        task=cfg.task.name,
        # a job that is resumed by itself still belongs to its sweep
        group=folder.parent.name if is_multirun() or folder.parent.name.startswith("sweep-") else None,
        config=config | software_versions(),
    )
    replay(kept, loggers)
    if begun:
        replay_views(folder, loggers, begun["epoch"] + 1)
    monitor, mode = experiment.monitor, experiment.mode
    callbacks: list[Callback] = [
        Quiet(cfg.debug is True),
        clock,
        SeedOfEpoch(cfg.seed),
        MovableCheckpoint(
            dirpath=folder / "checkpoints",
            filename="best",
            monitor=monitor,
            mode=mode,
            enable_version_counter=False,
        ),
        # Of its own: Lightning's save_last follows the best one and would leave an older epoch to resume from.
        MovableCheckpoint(
            dirpath=folder / "checkpoints", filename="last", monitor=None, save_top_k=1, enable_version_counter=False
        ),
        EarlyStopping(monitor=monitor, mode=mode, patience=cfg.task.patience, check_finite=False),
        LearningRate(),
        Bar(refresh_rate=5),
    ]
    trainer: pl.Trainer = build(
        config,
        "trainer",
        logger=loggers,
        callbacks=callbacks,
        plugins=[WholeCheckpoints()],
        default_root_dir=str(folder),
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # the loaders share an epoch out themselves
        enable_model_summary=False,
    )
    return trainer
