"""Train in ranks that srun or torchrun started: rank 0 works as one process does, the others enter its training only.

Rank 0 checks, cuts patches and makes the folder, chooses the threshold, maps and scores. Before the training it writes
what Lightning would pass to spawned processes, and the others read it. So the weights are those of `trainer=ddp`.
The others then wait for the end of rank 0, because `srun --wait` and `WaitTime` of SLURM count from the first exit.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import pickle
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Self

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from pytorch_lightning.callbacks import Callback, GradientAccumulationScheduler

from panda.app.hydra_job import AUTO, read_key
from panda.app.rank_group import RankGroup
from panda.app.rank_meeting import JOIN_SECONDS, gather, join
from panda.app.ranks import Launch, RankError, is_joint, read_ranks
from panda.app.resume import load_resumed_config
from panda.app.signals import STOPPING
from panda.app.software import describe_difference, list_software
from panda.app.trainer import TrainerSettings
from panda.errors import ConfigError, PandaError, find_exhaustion
from panda.files import partial_path, remove, sync

log = logging.getLogger(__name__)

_SIGHT_SECONDS = 90.0
"""A new file appears within this time on other machines; NFS caches the list of a folder for up to a minute."""
_ANSWER_SECONDS = 300.0
_ended: set[str] = set()


@dataclass(frozen=True)
class JointTraining:
    """What the other ranks need to enter the training of rank 0."""

    settings: TrainerSettings
    callbacks: list[Callback]
    task: pl.LightningModule
    data: pl.LightningDataModule
    resume: Path | None
    seed: int

    @classmethod
    def read(cls, path: Path, digest: str) -> Self:
        """Read what rank 0 wrote a moment ago. Code of a pickle is run, so nothing else is read."""
        if not _appears(path) or _digest(path) != digest:
            raise PandaError(f"{path} is not what rank 0 wrote: give a folder that all machines share")
        found = pickle.loads(path.read_bytes())
        assert isinstance(found, cls)
        return found

    def fit(self) -> None:
        """Train as rank 0 does, without its logs."""
        pl.seed_everything(self.seed, workers=True, verbose=False)
        trainer = self.settings.build(logger=False, callbacks=self.callbacks)
        trainer.fit(self.task, datamodule=self.data, ckpt_path=self.resume, weights_only=True)


@contextmanager
def lead(launch: Launch, cfg: DictConfig) -> Iterator[RankGroup | None]:
    """Connect rank 0 to the other ranks while it works; None if there are none, or if the configuration wants none.

    A later job of this process, which uses the training of the first, has none: the others ended with the first.
    """
    if launch.size == 1 or launch.job in _ended or not _wants_ranks(launch, cfg):
        yield None
        return
    group, status = gather(launch), 1
    try:
        with group.watch():
            yield group
        status = 0
    except KeyboardInterrupt:
        status = 130
        raise
    finally:
        _ended.add(launch.job)
        group.end(status)


def follow(launch: Launch, cfg: DictConfig, check: Callable[[DictConfig], Any]) -> float:
    """Take part in the training of rank 0. Nothing is logged, unless rank 0 cannot.

    Args:
        launch: How this rank was started.
        cfg: The configuration of the command, which all ranks have.
        check: Raises ConfigError for its faults on this machine.

    Raises:
        RankError: If rank 0 ended without success, or will say why this rank ends.
    """
    wanted = _wants_ranks(launch, cfg)
    if wanted is False:
        raise RankError("rank 0 finds the same fault")
    logging.getLogger("panda").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    faults: Sequence[str] = ()
    try:
        check(cfg)
    except ConfigError as error:
        faults = error.faults
    try:
        # Without its run, this rank only says so, if rank 0 sees it.
        group = join(launch, JOIN_SECONDS if wanted else 60, faults=faults, software=list_software())
    except PandaError as error:
        if launch.rank == 1 and wanted:
            raise
        raise RankError("rank 0 misses this rank") from error
    with _heed(group):
        try:
            while True:
                _act(group, group.wait())
        except RankError:
            return _leave(group)
        except BaseException as error:
            group.report_failure(_describe(error))
            raise RankError("rank 0 says why") from error


def collect_faults(group: RankGroup, own: Sequence[str]) -> list[str]:
    """Return the faults that other ranks found, without those that rank 0 found too."""
    found, own_software = [], list_software()
    for link in group.links:
        theirs, ours = describe_difference(link.hello["software"], own_software)
        if theirs:
            name = group.name(link)
            found.append(f"{name} runs {theirs}, and rank 0 {ours}: start all ranks in the same environment")
        found += [f"{group.name(link)}: {fault}" for fault in link.hello["faults"] if fault not in own]
    return found


def check_shared(group: RankGroup, folder: Path, inputs: Sequence[Path]) -> None:
    """Check that all ranks see the folder of the run, and the inputs that rank 0 sees.

    Raises:
        ConfigError: If a rank does not.
    """
    probe = partial_path(folder / "ranks")
    probe.touch()
    seen = [str(path) for path in inputs if path.exists()]
    try:
        answers = group.ask("see", _SIGHT_SECONDS + 30, probe=str(probe), inputs=seen)
    finally:
        remove(probe)
    faults = [
        f"{group.name(link)} does not see {', '.join(missing)}, but rank 0 does: use paths on a disk that all machines "
        "share, and start all ranks in one folder"
        for link in group.links
        if (missing := answers[link.rank]["missing"])
    ]
    if faults:
        raise ConfigError(faults)


@contextmanager
def share_training(group: RankGroup, training: JointTraining, folder: Path) -> Iterator[None]:
    """Let the other ranks enter the training while rank 0 trains inside, and end its processes' connections."""
    path = partial_path(folder / "training.pickle")
    threads, variable = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    try:
        path.write_bytes(pickle.dumps(training, pickle.HIGHEST_PROTOCOL))  # torch.save cannot save a memory format
        sync(path)
        group.send("train", path=str(path), digest=_digest(path))
        yield
        leave_processes()
        group.collect(_ANSWER_SECONDS)
        group.release()
    finally:
        remove(path)
        # Lightning divided the cores among the ranks of this machine.
        torch.set_num_threads(threads)
        if variable is None:
            os.environ.pop("OMP_NUM_THREADS", None)


def make_joint(trainer: pl.Trainer, **given: Any) -> JointTraining:
    """Describe the training of a trainer to the other ranks."""
    callbacks = [own for own in trainer.callbacks if not isinstance(own, GradientAccumulationScheduler)]  # type: ignore[attr-defined]
    return JointTraining(callbacks=callbacks, **given)


def leave_processes() -> None:
    """Leave the group of processes, because metrics would wait for the others afterwards."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _wants_ranks(launch: Launch, cfg: DictConfig) -> bool | None:
    """Return whether the configuration is one for these ranks; None if it is that of a run that cannot be read."""
    resume = read_key(cfg, "resume")
    if resume and isinstance(resume, str) and resume != AUTO:
        try:
            cfg = load_resumed_config(cfg, resume)
        except PandaError:
            return None
    strategy, devices, num_nodes = read_ranks(cfg)
    return is_joint(strategy) and launch.fits(devices, num_nodes)


def _act(group: RankGroup, message: dict[str, Any]) -> None:
    """Do what rank 0 says."""
    if message["kind"] == "see":
        probe = Path(message["probe"])
        missing = [path for path in message["inputs"] if not Path(path).exists()]
        group.send("seen", missing=missing if _appears(probe) else [str(probe.parent), *missing])
    elif message["kind"] == "train":
        training = JointTraining.read(Path(message["path"]), message["digest"])
        with group.watch():
            training.fit()
            leave_processes()
        del training
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        group.send("trained")


def _leave(group: RankGroup) -> float:
    """End this rank as rank 0 ended; if rank 0 was killed, the next rank says so."""
    if group.status == 0:
        return math.nan
    if group.status == 130:
        raise SystemExit(130)
    if group.launch.rank == 1 and not group.is_explained:
        raise PandaError(str(group.failure))
    raise RankError(group.failure)


@contextmanager
def _heed(group: RankGroup) -> Iterator[None]:
    """Ignore signals, because rank 0 has them too and says what follows; its end interrupts this rank."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        if group.interrupts:
            raise KeyboardInterrupt

    numbers = (signal.SIGINT, *STOPPING)
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _describe(error: BaseException) -> str:
    error = find_exhaustion(error) or error
    if isinstance(error, PandaError):
        return str(error)
    return f"{type(error).__name__}: {error}\n{''.join(traceback.format_exception(error))}"


def _appears(path: Path) -> bool:
    end = time.monotonic() + _SIGHT_SECONDS
    while not path.exists():
        if time.monotonic() > end or not path.parent.parent.exists():
            return False
        time.sleep(0.2)
    return True


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
