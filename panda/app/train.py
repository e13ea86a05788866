"""Run one training: from a configuration to the folder of the run, for either task."""

from __future__ import annotations

import logging
import math
import time
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger

from panda.app.begun_job import BegunRun, clear_failed_start, find_begun_run
from panda.app.build import Faults
from panda.app.callbacks import (
    Clock,
    EpochLines,
    EpochSeed,
    LearningRateLogger,
    MovableCheckpoint,
    Patience,
    ProgressBar,
    SignalHandling,
    Tf32,
    WarningFilter,
)
from panda.app.config_check import check_config
from panda.app.dashboard import End, end_dashboards, replay_views
from panda.app.entry_point import Interrupted, SomeSlidesFailed, close_logs, log_to_file, make_folder
from panda.app.grading import GradingExperiment
from panda.app.grading_config import GradingConfig
from panda.app.hydra_job import AUTO, is_multirun, is_unnamed, make_new_folder, read_key, write_overrides
from panda.app.joint_training import check_shared, collect_faults, follow, lead
from panda.app.learning_record import LearningRecord
from panda.app.pruning import Pruning, report_epoch
from panda.app.rank_group import RankGroup
from panda.app.ranks import find_launch, find_launch_faults, is_joint, read_ranks
from panda.app.resume import load_resumed_config
from panda.app.resume_point import ResumePoint, check_resumed
from panda.app.run import Experiment, Run
from panda.app.segmentation import SegmentationExperiment
from panda.app.segmentation_config import SegmentationConfig
from panda.app.shared_training import hold_training, look_after
from panda.app.signals import is_interruption
from panda.app.software import find_commit, list_software
from panda.app.tracking import read_metrics, replay_metrics
from panda.app.train_config import TrainConfig
from panda.app.training_reuse import select_decisive
from panda.app.wandb_dashboard import set_wandb_aside
from panda.app.weight_averaging import MovingAverage
from panda.data.failures import write_failures
from panda.errors import ConfigError, LockedError
from panda.files import fingerprint, hold_lock, remove_leftovers, write_json, write_whole
from panda.report.headline import format_headline
from panda.report.interpretation import HEADLINES, list_headlines
from panda.report.job_end import JobEnd
from panda.report.run_page import write_run_page
from panda.report.run_summary import RunSummary
from panda.report.trivial_answers import LESS_IS_BETTER
from panda.settings import escape, format_override
from panda.tables import read_output_table

log = logging.getLogger(__name__)


@close_logs
def train(cfg: DictConfig) -> float:
    """Train and evaluate.

    Args:
        cfg: `conf/train.yaml` as Hydra composed it, with `run_dir`.

    Returns:
        The figure by which sweeps rank runs, see `find_objective`.

    Raises:
        ConfigError: If the configuration has faults. All are reported, before anything slow begins.
        PandaError: If the run cannot continue; its files are kept.
        SomeSlidesFailed: If the run is complete except for some slides.
        Interrupted: If it was stopped by Ctrl-C or a signal.
    """
    launch = find_launch()
    if launch.rank:
        return follow(launch, cfg, check)
    with lead(launch, cfg) as group:
        return _begin(cfg, group)


def _begin(cfg: DictConfig, group: RankGroup | None) -> float:
    """Train in one process, or in all ranks of `group`."""
    started = time.monotonic()
    cfg, config = _check_all(cfg, group)
    folder = Path(config.run_dir)
    begun = find_begun_run(cfg, folder)
    with ExitStack() as held:
        if is_multirun():
            training = folder.parent / f"training-{fingerprint(select_decisive(config))[:16]}"
            if begun.finished:
                look_after(training)
            elif hold_training(training, folder, held, cfg, resumed=begun.last is not None, joint=group is not None):
                begun = find_begun_run(cfg, folder)  # another process may have ended it before
            else:
                return math.nan
        if begun.finished:
            log.info("%s: finished before", begun.folder)
            cfg.run_dir = escape(str(begun.folder))
            lost = len(read_output_table(begun.folder / "failures.csv"))
            return _return_figure(begun.folder, lost, find_objective(begun.finished))
        return _train(cfg, config, begun, held, group=group, started=started)


def _train(
    cfg: DictConfig, config: TrainConfig, begun: BegunRun, held: ExitStack, *, group: RankGroup | None, started: float
) -> float:
    """Begin or resume a run. `held` holds its training against other jobs of a sweep."""
    experiment: Experiment
    if isinstance(config, GradingConfig):
        experiment = GradingExperiment(config)
    else:
        assert isinstance(config, SegmentationConfig)
        experiment = SegmentationExperiment(config)
    point = check_resumed(cfg, begun.last, experiment) if begun.last else None
    folder = begun.folder
    cfg.resume, cfg.run_dir = escape(str(begun.last)) if begun.last else None, escape(str(folder))
    if is_unnamed(cfg):
        cfg.run_dir = str(folder := make_new_folder(folder))
    make_folder(folder)
    try:
        with hold_lock(folder / "run", wait=False):
            return _run(cfg, config, folder, point, experiment, held=held, group=group, started=started)
    except LockedError as error:
        if is_multirun():
            log.warning("%s: another process runs this job (%s)", folder, error)
            return math.nan
        raise ConfigError(
            f"name={config.name}: another process works in {folder}; take another name, or wait for it ({error})"
        ) from error


def _check_all(cfg: DictConfig, group: RankGroup | None) -> tuple[DictConfig, TrainConfig]:
    """Check a configuration on all ranks."""
    if group is None:
        return check(cfg)
    faults = Faults()
    with faults.collect():
        checked = check(cfg)
    faults.add(*collect_faults(group, faults.found))
    faults.raise_any()
    return checked


def check(cfg: DictConfig, faults: Faults | None = None) -> tuple[DictConfig, TrainConfig]:
    """Check a configuration, or that of the run that it resumes. Faults that were found before are raised with its own.

    The network is built in the check, so torch is seeded before.
    """
    faults = faults or Faults()
    resume = read_key(cfg, "resume")
    if resume and isinstance(resume, str) and resume != AUTO:
        with faults.collect():
            cfg = load_resumed_config(cfg, resume)
    with faults.collect():
        faults.add(*find_launch_faults(find_launch(), *read_ranks(cfg)))
    with suppress(ValueError, TypeError):  # the check names an impossible seed
        pl.seed_everything(read_key(cfg, "seed"), workers=True, verbose=False)
    return cfg, check_config(cfg, "train", faults)


def _run(
    raw: DictConfig,
    cfg: TrainConfig,
    folder: Path,
    point: ResumePoint | None,
    experiment: Experiment,
    *,
    held: ExitStack,
    group: RankGroup | None,
    started: float,
) -> float:
    """Run in a folder that no other process uses. `raw` is the configuration that `cfg` was read from."""
    if point:
        point.check_untouched()
    if group:
        check_shared(group, folder, [experiment.data.settings.source, experiment.data.settings.store_root])
    remove_leftovers(folder, deep=True)
    if point is None:
        clear_failed_start(folder)
    log_to_file(folder / "run.log")
    write_whole(folder / "config.yaml", OmegaConf.to_yaml(raw, resolve=True))
    write_overrides(folder, resumed=point is not None)
    commit = f", commit {find_commit()}" if find_commit() else ""
    log.info("run: %s%s%s", folder, f", continued after {point.epochs} epochs" if point else "", commit)
    clock = Clock(started)
    sweep = folder.parent if is_multirun() else None
    trainer = build_trainer(cfg, folder, experiment, clock, point)
    state: End = "failed"
    run = Run(cfg, folder, point.path if point else None, trainer, sweep, clock=clock, held=held, group=group)
    try:
        selection = experiment.data.select()
        selection.write(folder / "splits.csv")
        if point is None:
            today = LearningRecord.read_today(raw, selection, experiment.segmentation, experiment.feature_files)
            today.write(folder)
        with group.watch() if group else nullcontext():
            summary = experiment.run(run)
        write_json(folder / "summary.json", summary.to_dict())
        write_failures(folder / "failures.csv", run.failures)
        report = write_run_page(folder)
        log.info("%s\nreport: %s", format_headline(summary), report)
        figure, state = find_objective(summary), "finished"
    except BaseException as stop:
        state = "interrupted" if is_interruption(stop) else "failed"
        write_failures(folder / "failures.csv", run.failures)
        if not is_interruption(stop):
            raise
        if run.sweep:
            name = format_override(f"name={run.sweep.name.removeprefix('sweep-')}")
            remedy = f"the same command with {name} continues the sweep"
            JobEnd(state="interrupted", message=f"interrupted; {remedy}").write(folder)
        else:
            command = f"{find_launch().command} {format_override(f'resume={run.last}')}"
            remedy = f"resume it with: {command}" if run.last.exists() else ""
        raise Interrupted(remedy) from stop
    finally:
        end_dashboards(trainer.loggers, state)
    return _return_figure(folder, len(run.failures), figure)


def _return_figure(folder: Path, failures: int, figure: float) -> float:
    if failures:
        raise SomeSlidesFailed(
            f"the run is complete except for {failures} slides: see {folder / 'failures.csv'}", figure
        )
    return figure


def find_objective(summary: RunSummary) -> float:
    """Return the figure by which sweeps rank and optimize runs: on validation, so that nothing is tuned on the test.

    The Dice over the pixels of all slides (segmentation), which counts false alarms on benign slides, quadratic kappa
    (`task.target=isup`), AUROC (`cancer`) or the first figure of a column in `list_headlines`. NaN if it is undefined.
    """
    numbers = summary.val.numbers
    figure = next((numbers[key] for key in list_headlines(summary) if key in numbers), None)
    return math.nan if figure is None else float(figure)


def find_direction(config: TrainConfig) -> bool:
    """Return whether a large figure of `find_objective` is good."""
    scoring = config.target.scoring if isinstance(config, GradingConfig) else "segmentation"
    return HEADLINES[scoring][0] not in LESS_IS_BETTER


def build_trainer(
    cfg: TrainConfig, folder: Path, experiment: Experiment, clock: Clock, point: ResumePoint | None = None
) -> pl.Trainer:
    """Build the trainer of a run with its loggers and callbacks.

    Metrics and views before the `point` of a resumed run are logged again.
    """
    spawns = cfg.trainer.devices > 1 and not is_joint(cfg.trainer.strategy)
    loggers = _resume_loggers(cfg, folder, clock, point)
    monitor, mode = experiment.monitor, experiment.mode
    callbacks: list[Callback] = [
        WarningFilter(cfg.debug, spawned=spawns),
        SignalHandling(spawned=spawns),
        clock,
        EpochSeed(cfg.seed),
        *([Tf32()] if cfg.trainer.precision == "auto" else []),
        *([MovingAverage(cfg.trainer.ema)] if cfg.trainer.ema else []),
        MovableCheckpoint(
            dirpath=folder / "checkpoints",
            filename="best",
            monitor=monitor,
            mode=mode,
            enable_version_counter=False,
        ),
        # Lightning's save_last follows the best checkpoint and would leave an older epoch to resume from. At the end of
        # validation, which is its default with rare validations, an epoch does not count as complete.
        MovableCheckpoint(
            dirpath=folder / "checkpoints",
            filename="last",
            monitor=None,
            save_top_k=1,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        ),
        Patience(monitor=monitor, mode=mode, patience=cfg.task.patience, check_finite=False),
        LearningRateLogger(),
        EpochLines(),
        *([ProgressBar(refresh_rate=5)] if cfg.trainer.shows_bar else []),
    ]
    trainer = cfg.trainer.build(
        logger=loggers,
        callbacks=callbacks,
        default_root_dir=str(folder / "checkpoints"),
    )
    if (report := report_epoch.get()) and trainer.world_size > 1:
        log.warning("the epochs of several processes are not reported, so that this training is not pruned")
    elif report:
        trainer.callbacks.append(Pruning(report, monitor, mode))  # type: ignore[attr-defined]
    return trainer


def _resume_loggers(cfg: TrainConfig, folder: Path, clock: Clock, point: ResumePoint | None) -> list[Logger]:
    """Build the loggers. In a resumed run, restore the clock and log again what was logged before."""
    kept = read_metrics(folder, point.global_step) if point else []
    if point:
        # Lightning restores the clock too, but only in the training processes.
        clock.load_state_dict(point.clock)
        set_wandb_aside(folder)
    loggers = cfg.logger.build_loggers(
        folder,
        name=folder.name,
        task=cfg.task.name,
        # A resumed job still belongs to its sweep.
        group=folder.parent.name if is_multirun() or folder.parent.name.startswith("sweep-") else None,
        config={**cfg.model_dump(mode="json"), "software": list_software()},
        kept=kept,
        resumed=point is not None,
    )
    replay_metrics(kept, loggers[1:])  # metrics.csv has them
    if point:
        replay_views(folder, loggers, point.epochs)
    return loggers
