"""The job that Hydra runs: its overrides, choices and folders, also as resolvers for `conf/`."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from panda.files import write_whole

AUTO = "auto"
"""Value of `resume` for the run that the same command began."""
_LOSS_CLASSES = {
    "ordinal": "panda.models.grade_losses.CumulativeLoss",
    "regression": "torch.nn.HuberLoss",
    "survival": "panda.models.grade_losses.CoxLoss",
}
"""Losses of targets that are no classes without order."""
_arguments: list[list[str]] = []


def register_resolvers() -> None:
    """Register resolvers under the names of their functions."""
    for resolver in (choices_made, job_folder, loss_of_kind, plain_name, run_folder, sweep_folder):
        OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)


def is_multirun() -> bool:
    """Return whether this is a job of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def is_unnamed(cfg: Any) -> bool:
    """Return whether the time of the start names the folder of a job, which is neither resumed nor in a sweep."""
    return HydraConfig.initialized() and not is_multirun() and cfg.name is None and cfg.resume in (None, AUTO)


def is_plain_name(name: Any) -> bool:
    """Return whether a value can name the folder of a run or sweep; None stands for the time."""
    if name is None or (isinstance(name, int) and not isinstance(name, bool)):
        return True
    return isinstance(name, str) and bool(name.strip()) and Path(name).name == name and name != ".."


def make_new_folder(folder: Path) -> Path:
    """Make the folder of an unnamed run or sweep, with a number if another of the same second has it; return it."""
    names = itertools.chain([folder.name], (f"{folder.name}-{number}" for number in itertools.count(2)))
    for new in map(folder.with_name, names):
        with contextlib.suppress(FileExistsError):
            new.mkdir(parents=True)
            return new
    raise AssertionError("the names do not end")


def read_key(cfg: DictConfig, key: str) -> Any:
    """Return the value of a key, or None if it has none, which is a fault that the job's check names."""
    with contextlib.suppress(OmegaConfBaseException):
        return cfg.get(key)
    return None


def choices_made() -> ListConfig:
    """Return the choice of each group of `conf/`, such as `model=unet`; an empty list without a command line."""
    chosen = HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}
    made = [f"{group}={choice}" for group, choice in sorted(chosen.items()) if choice and group.isidentifier()]
    return OmegaConf.create(made)  # OmegaConf.resolve refuses a plain list


def job_folder(own: str | None) -> str | None:
    """Return the folder of a job: in a multirun the one that Hydra made for it, otherwise its own."""
    return str(find_output_folder()) if is_multirun() else own


def find_output_folder() -> Path:
    """Return the folder that Hydra made for the job of this process."""
    # Not resolved, because Hydra writes the path as it is, and a ${…} in it is text.
    runtime: Any = OmegaConf.to_container(HydraConfig.get().runtime, resolve=False)
    return Path(runtime["output_dir"])


def loss_of_kind(kind: str) -> str:
    """Return the class of the loss of a kind of target, see `conf/loss/by_kind.yaml`; `auto` is `isup` or `cancer`."""
    return _LOSS_CLASSES.get(str(kind), "torch.nn.CrossEntropyLoss")


def plain_name(text: str) -> str:
    """Return a text as one name of a folder: a path in it, such as that of `features`, makes no folders in folders."""
    return str(text).replace("/", "_").replace(os.sep, "_")


def run_folder(resume: str | None, task: str, name: str | None, now: str) -> str:
    """Return the folder of the resumed run, otherwise `runs/<task>/<name or time>`."""
    if resume and resume != AUTO:
        return str(find_resumed(str(resume)).parent.parent)
    return str(Path("runs") / task / str(now if name is None else name))


def find_resumed(resume: Path | str) -> Path:
    """Return the checkpoint that `resume` names, itself or by the folder of its run."""
    path = Path(resume)
    return path / "checkpoints" / "last.ckpt" if path.is_dir() else path


def describe_subdir_fault() -> str | None:
    """Return the fault of `hydra.sweep.subdir` of this job if it is no name of a folder in that of the sweep."""
    if not is_multirun():
        return None
    try:
        subdir = HydraConfig.get().sweep.subdir
    except OmegaConfBaseException:  # the number of a job that is refused is not known yet
        return None
    if is_plain_name(subdir):
        return None
    return (
        f"hydra.sweep.subdir={subdir} must be one name without a slash, because the table of a sweep has the folders "
        "in that of the sweep; leave it out for the number of the job"
    )


def sweep_folder(task: str, name: str | None, now: str) -> str:
    """Return the folder of a multirun, which holds the folders of its jobs by number."""
    return str(Path("runs") / task / f"sweep-{now if name is None else name}")


@contextlib.contextmanager
def remember_arguments(arguments: Sequence[str]) -> Iterator[None]:
    """Remember the arguments of the command line while its jobs run.

    Hydra's list of a job's overrides cannot stand for them: a file adds to it by `hydra.sweeper.params`.
    """
    _arguments.append(list(arguments))
    try:
        yield
    finally:
        _arguments.pop()


def list_overrides() -> list[str]:
    """Return the overrides of this job, `key=value`; an empty list without a command line."""
    if not HydraConfig.initialized():
        return []
    # Not resolved, because the text of an override may have ${…}, which means nothing in Hydra's own configuration.
    typed: Any = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    return list(map(str, typed))


def list_keys() -> list[str]:
    """Return the keys of the overrides of this job."""
    return [*map(_read_key, list_overrides())]


def has_arguments() -> bool:
    """Return whether this process has the arguments of the command line; that of a launcher's job has none."""
    return bool(_arguments)


def is_typed(key: str) -> bool:
    """Return whether a key was typed on the command line.

    A process of a launcher has no command line of its own, so that the job's overrides count there.
    """
    return any(_read_key(text) == key for text in (_arguments[-1] if _arguments else list_overrides()))


def find_idle_faults(idle: Collection[str], cause: str) -> list[str]:
    """Return one fault that names all typed keys which `cause`, a setting, makes idle, or an empty list."""
    given = [text for text in list_overrides() if _read_key(text) in idle]
    verb, them = ("are", "them") if len(given) > 1 else ("is", "it")
    return [f"{', '.join(given)} {verb} not used with {cause}: remove {them}"] if given else []


def write_overrides(folder: Path, resumed: bool = False) -> None:
    """Write the job's overrides to `overrides.txt`: columns of a sweep's table, and labels in a comparison.

    A resumed run keeps its overrides, except for keys that are typed again.
    """
    path, lines = folder / "overrides.txt", list_overrides()
    if resumed:
        lines = [line for line in lines if _read_key(line) not in ("resume", "debug")]
        typed = {_read_key(line) for line in lines}
        before = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        lines = [line for line in before if _read_key(line) not in typed] + lines
    write_whole(path, "".join(f"{line}\n" for line in lines))


def _read_key(override: str) -> str:
    return override.lstrip("+").partition("=")[0]
