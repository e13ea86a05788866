"""The study of a search, in a database or a journal that processes share: its trials, and who runs them."""

from __future__ import annotations

import contextlib
import math
import re
import sqlite3
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import MedianPruner, NopPruner
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from panda.app.search_space import Dimension
from panda.errors import ConfigError, LockedError, PandaError
from panda.files import hold_lock, write_whole
from panda.report.job_end import JobEnd

_RECORD = "search"
"""Attribute of a study: what all its trials share."""
_PLACE = ".search"
"""File in the folder of a search with the identity of its study."""
_MOST_STARTS = 3
"""Starts of a trial that made no progress since the one before."""
_JOURNAL, _SQLITE = "journal:///", "sqlite:///"
_ENTRY = b'{"op_code":'
"""Begin of each line of a journal."""
_NETWORK = ("nfs", "lustre", "cifs", "smb", "gpfs", "beegfs", "ceph", "afs", "panfs", "orangefs", "9p")
_NETWORK_FUSE = ("fuse.glusterfs", "fuse.sshfs", "fuse.ceph", "fuse.gcsfuse", "fuse.s3fs", "fuse.juicefs")
"""File systems that several machines mount."""


class _JournalLock(JournalFileOpenLock):
    """The lock of a journal, in place of the file of optuna, which two processes can take over at once."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.path = path
        self._held = contextlib.ExitStack()

    def acquire(self) -> bool:
        """Wait for the lock."""
        self._held.enter_context(hold_lock(self.path))
        return True

    def release(self) -> None:
        """Release the lock."""
        self._held.close()


def open_storage(address: str) -> BaseStorage:
    """Open the storage of studies, or make it.

    Raises:
        ConfigError: If the address is none, or cannot be opened, or is a file of SQLite on a network file system.
    """
    try:
        if address.startswith(_JOURNAL):
            return _open_journal(_find_file(address, _JOURNAL))
        if address.startswith(_SQLITE):
            return _open_sqlite(address, _find_file(address, _SQLITE))
        return RDBStorage(address)
    except PandaError:
        raise
    except Exception as error:  # SQLAlchemy, its drivers and a damaged journal have errors of their own
        reason = getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"study={_hide_password(address)} cannot be opened ({reason}); give {_SQLITE}FILE.db, {_JOURNAL}FILE.log "
            "or the address of a database server whose driver is installed"
        ) from error


def _hide_password(address: str) -> str:
    return re.sub(r"(://[^:@/]*):[^@]*@", r"\1:***@", address)


def _find_file(address: str, scheme: str) -> Path:
    path = Path(address.removeprefix(scheme))
    if not path.name or (path.exists() and not path.is_file()):
        raise ValueError("it names no plain file")
    return path


def _open_journal(path: Path) -> BaseStorage:
    with hold_lock(path):
        if path.exists() and not _ENTRY.startswith(head := _read_head(path)):
            raise ValueError(f"the file begins with {head!r} and is no journal of optuna")
    return JournalStorage(JournalFileBackend(str(path), _JournalLock(path)))


def _read_head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(len(_ENTRY))


def _open_sqlite(address: str, path: Path) -> BaseStorage:
    if (kind := _find_file_system(path)).startswith(_NETWORK + _NETWORK_FUSE):
        raise ConfigError(
            f"study={address}: the file is on {kind}, and databases of SQLite break on network file systems; give "
            f"study={_JOURNAL}{path.with_suffix('.log')}, a local path, or a database server"
        )
    # Two processes that make the tables at the same time would both fail.
    with hold_lock(path):
        with contextlib.closing(sqlite3.connect(path)) as database:
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if tables and "version_info" not in tables:
            raise ValueError("the file is a database of another program")
        return RDBStorage(address, engine_kwargs={"connect_args": {"timeout": 60}})


def _find_file_system(path: Path) -> str:
    """Return the kind of the file system of a path that may not exist yet, such as `nfs4`; empty if unknown."""
    whole, mounts = path.absolute().resolve(), {}
    with contextlib.suppress(OSError):  # only Linux has the file
        for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            fields, _, source = line.partition(" - ")
            point = Path(fields.split()[4].replace("\\040", " "))
            if whole.is_relative_to(point):
                mounts[point] = source.split()[0]
    return mounts[max(mounts, key=lambda point: len(point.parts))] if mounts else ""


@dataclass(frozen=True)
class Plan:
    """What all trials of a study share.

    Attributes:
        name: Name of the study.
        space: Key to its values.
        fixed: Overrides of all trials that decide their result.
        task: The task.
        maximize: Whether the objective is to be large.
        prune: Whether trials are stopped that are worse than the median of the others.
        seed: Seed of the sampler.
    """

    name: str
    space: Mapping[str, Dimension]
    fixed: tuple[str, ...]
    task: str
    maximize: bool
    prune: bool
    seed: int

    def describe(self) -> dict[str, Any]:
        """Return what a command that continues the study must share."""
        space = {key: {k: list(v) if k == "choices" else v for k, v in asdict(own).items()}
                 for key, own in self.space.items()}  # fmt: skip
        return {"task": self.task, "space": space, "overrides": sorted(self.fixed)}


class SearchStudy:
    """A study, and the folder of its trials.

    Each trial is held by a lock in the folder while a process runs it, so that the trial of a killed process is seen.
    """

    def __init__(self, storage: BaseStorage, plan: Plan, folder: Path) -> None:
        self.plan, self.folder = plan, folder
        folder.mkdir(parents=True, exist_ok=True)
        with self._hold():
            self.study = optuna.create_study(
                storage=storage,
                study_name=plan.name,
                direction="maximize" if plan.maximize else "minimize",
                load_if_exists=True,
                pruner=MedianPruner() if plan.prune else NopPruner(),
            )
            self._check()

    def _hold(self) -> contextlib.AbstractContextManager[None]:
        return hold_lock(self.folder / "search")

    def _check(self) -> None:
        """Check that the study is of this command, and that its trials are in this folder."""
        mark, now = self.folder / _PLACE, self.plan.describe()
        record = self.study.user_attrs.get(_RECORD)
        is_empty = all(path.name.startswith(".") for path in self.folder.iterdir()) and not mark.exists()
        if record is None and is_empty and not self.study.get_trials(deepcopy=False):
            record = {**now, "place": uuid.uuid4().hex}
            write_whole(mark, record["place"])
            self.study.set_user_attr(_RECORD, record)
        if record is None or not mark.is_file() or mark.read_text(encoding="utf-8") != record["place"]:
            raise ConfigError(
                f"name={self.plan.name}: the study and the folder {self.folder} do not belong together; run all "
                "processes in a working folder that they share, or give another name"
            )
        for key, value in now.items():
            if record[key] != value:
                raise ConfigError(
                    f"name={self.plan.name}: the study has {key} {_format(record[key])}, not {_format(value)}; give "
                    "the command that it began with, or another name"
                )
        if (self.study.direction == optuna.study.StudyDirection.MAXIMIZE) != self.plan.maximize:
            raise ConfigError(f"name={self.plan.name}: the study has the other direction; give another name")

    @contextlib.contextmanager
    def take_trial(self, most: int) -> Iterator[optuna.Trial | None]:
        """Hold the next trial: one whose process was killed, or a new one if there are fewer than `most`, else None."""
        with contextlib.ExitStack() as held:
            with self._hold():
                trial = self._adopt(held)
                trials = self.study.get_trials(deepcopy=False)
                if trial is None and len(trials) < most:
                    # Processes that sample with one seed would draw the same values.
                    self.study.sampler = optuna.samplers.TPESampler(seed=self.plan.seed + len(trials))
                    trial = self.study.ask({key: _distribute(own) for key, own in self.plan.space.items()})
                    held.enter_context(self._hold_trial(trial.number))
            yield trial

    def _hold_trial(self, number: int) -> contextlib.AbstractContextManager[None]:
        return hold_lock(self.folder / f"trial-{number}", wait=False)

    def _adopt(self, held: contextlib.ExitStack) -> optuna.Trial | None:
        """Hold a trial that has begun and that no process holds, except for one whose processes die."""
        for found in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            with contextlib.suppress(LockedError), contextlib.ExitStack() as own:
                own.enter_context(self._hold_trial(found.number))
                trial = optuna.Trial(self.study, found._trial_id)
                if self._count_starts(trial) > _MOST_STARTS:
                    self.fail(trial, f"its process was killed {_MOST_STARTS} times without progress")
                    continue
                held.enter_context(own.pop_all())
                return trial
        return None

    def _count_starts(self, trial: optuna.Trial) -> int:
        """Count and record the starts of a trial since its last complete epoch."""
        last = self.folder / str(trial.number) / "checkpoints" / "last.ckpt"
        changed = last.stat().st_mtime_ns if last.is_file() else 0
        before, starts = trial.user_attrs.get("starts", (changed, 1))
        starts = starts + 1 if before == changed else 1
        trial.set_user_attr("starts", (changed, starts))
        return int(starts)

    def report(self, trial: optuna.Trial, epoch: int, value: float) -> bool:
        """Report the figure of an epoch, the larger the better if the objective is; return whether to stop."""
        if epoch not in self.study.get_trials(deepcopy=False)[trial.number].intermediate_values:
            trial.report(value, epoch)
        return trial.should_prune()

    def end(self, trial: optuna.Trial, figure: float) -> None:
        """End a trial; without a figure it failed."""
        if math.isnan(figure):
            self.study.tell(trial, state=TrialState.FAIL)
        else:
            self.study.tell(trial, figure)

    def fail(self, trial: optuna.Trial, reason: str) -> None:
        """End a trial that failed, with the reason in its folder."""
        folder = self.folder / str(trial.number)
        folder.mkdir(exist_ok=True)
        JobEnd(state="failed", message=reason).write(folder)
        self.study.tell(trial, state=TrialState.FAIL)

    def prune(self, trial: optuna.Trial) -> None:
        """End a trial that was stopped."""
        self.study.tell(trial, state=TrialState.PRUNED)

    def find_best(self) -> FrozenTrial | None:
        """Return the best complete trial."""
        done = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return self.study.best_trial if done else None

    def count_states(self) -> dict[str, int]:
        """Return how many trials there are of each state."""
        states = [trial.state.name.lower() for trial in self.study.get_trials(deepcopy=False)]
        return {state: states.count(state) for state in dict.fromkeys(states)}


def _distribute(own: Dimension) -> BaseDistribution:
    if own.choices:
        return CategoricalDistribution(own.choices)
    if all(isinstance(number, int) for number in (own.low, own.high)):
        return IntDistribution(int(own.low), int(own.high), log=own.is_log, step=int(own.step or 1))
    return FloatDistribution(own.low, own.high, log=own.is_log, step=own.step)


def _format(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(value)
    return ", ".join(value) if isinstance(value, list) else str(value)
