"""Checks a configuration before anything slow begins, and builds objects from it."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from panda.app.command_line import likely, quoted
from panda.app.overrides import is_typed
from panda.app.registry import find_class, find_undeclared, slots_of
from panda.app.value_checks import value_faults
from panda.errors import ConfigError, OptionError, PandaError, near
from panda.settings import REFUSED, Settings

KEYS = {
    "train": {
        "data", "model", "loss", "augment", "optim", "trainer", "logger", "quantify", "engine", "task", "tiles",
        "name", "seed", "threshold", "criterion", "cost_ratio", "threshold_per_provider", "test_slides", "resume",
        "colour_map", "segmentation_checkpoint", "allow_packages", "debug", "run_dir",
    },
    "infer": {
        "quantify", "engine", "checkpoint", "grading_checkpoint", "slides", "output", "threshold", "provider",
        "labels", "mpp_override", "reader", "colour_map", "debug", "run_dir",
    },
    "audit": {"data", "audit", "debug", "run_dir"},
}  # fmt: skip


PLAIN_TYPES: dict[str, dict[str, Any]] = {
    "train": {
        "seed": int, "test_slides": bool, "debug": bool, "resume": str | None, "segmentation_checkpoint": str | None,
        "cost_ratio": float | None, "threshold_per_provider": bool, "colour_map": Literal["jet", "viridis"],
        "allow_packages": list[str],
    },
    "infer": {
        "checkpoint": str, "grading_checkpoint": str | None, "slides": str, "output": str, "debug": bool,
        "provider": str | None, "labels": str | None, "mpp_override": float | None,
        "reader": Literal["auto", "openslide", "fast"], "colour_map": Literal["jet", "viridis"],
    },
    "audit": {"debug": bool},
}  # fmt: skip
"""Types of the keys that belong to no group."""


def register_resolvers() -> None:
    """Make the names of run folders, and what was chosen, available to `conf/`."""
    OmegaConf.register_new_resolver("choices_made", choices_made, replace=True)
    OmegaConf.register_new_resolver("job_folder", job_folder, replace=True)
    OmegaConf.register_new_resolver("run_folder", run_folder, replace=True)
    OmegaConf.register_new_resolver("sweep_folder", sweep_folder, replace=True)


def is_multirun() -> bool:
    """Whether this is a job of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def choices_made() -> list[str]:
    """What this job takes of each group of `conf/`, `model=unet`; nothing where no command line was read."""
    if not HydraConfig.initialized():
        return []
    chosen = HydraConfig.get().runtime.choices
    return [f"{group}={choice}" for group, choice in sorted(chosen.items()) if choice and group.isidentifier()]


def job_folder(own: str | None) -> str | None:
    """The folder of a job: its own, or in a multirun the one that Hydra made for it."""
    if is_multirun():
        return str(HydraConfig.get().runtime.output_dir)
    return own


def run_folder(resume: str | None, task: str, name: str | None, now: str) -> str:
    """The folder of a run: that of the run which is resumed, else `runs/<task>/<name or time>`."""
    if resume:
        return str(Path(str(resume)).parent.parent)
    return str(Path("runs") / task / (str(name) if name is not None else now))


def sweep_folder(task: str, name: str | None, now: str) -> str:
    """The folder of a multirun; its jobs lie below by number."""
    return str(Path("runs") / task / f"sweep-{name if name is not None else now}")


class Faults:
    """Collects the faults of a configuration, so that all are reported at once."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def add(self, *faults: str) -> None:
        """Add sentences that each name key, value and remedy; one that is known already is left out."""
        self.found += [fault for fault in dict.fromkeys(faults) if fault not in self.found]

    def names(self, key: str) -> bool:
        """Return whether a fault is about a key or one below it."""
        return any(fault.startswith((f"{key}=", f"{key}.")) for fault in self.found)

    @contextmanager
    def collect(self, key: str = "") -> Iterator[None]:
        """Take over the faults of a ConfigError raised inside.

        Args:
            key: Node that holds the options of an `OptionError`.
        """
        try:
            yield
        except OptionError as error:
            self.add(*error.under(key).faults)
        except ConfigError as error:
            self.add(*error.faults)

    def build(self, plain: Mapping[str, Any], key: str, /, **extra: Any) -> Any:
        """Build a node as `build` does. If its constructor refuses, take over its faults and return None."""
        with self.collect(key):
            return build(plain, key, **extra)

    def raise_any(self) -> None:
        """Raise what was collected.

        Raises:
            ConfigError: With every fault, if there is any.
        """
        if self.found:
            raise ConfigError(self.found)


def check_config(cfg: DictConfig, door: str, refused: Faults | None = None) -> None:
    """Check keys, mandatory values, targets and argument types of a composed configuration.

    Args:
        cfg: As Hydra composed it.
        door: `train`, `infer` or `audit`.
        refused: Takes the faults of settings if there are no others, so that a caller adds what its parts refuse and
            raises all at once. None: they are raised here.

    Raises:
        ConfigError: With every fault that was found.
    """
    faults, refused_here = Faults(), Faults()
    asked: Any = OmegaConf.to_container(cfg, resolve=False)
    for key in map(str, cfg):
        if key not in KEYS[door]:
            faults.add(f"{key}: there is no such key{likely(key, {name: asked.get(name) for name in KEYS[door]})}")
    absent = sorted(KEYS[door] - set(map(str, cfg)) - {"tiles"})
    faults.add(*(f"{key} was taken away, and a run needs it: leave out ~{key}" for key in absent))
    try:
        missing = sorted(map(str, OmegaConf.missing_keys(cfg)))
        faults.add(*(f"{key} is not given: write {key}=… on the command line" for key in missing))
        plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False)
    except OmegaConfBaseException as error:
        faults.add(f"{str(error).splitlines()[0]}; mend the ${{…}} it names")
        faults.raise_any()
    assert isinstance(plain, dict)
    settings = {str(key): value for key, value in plain.items()}
    slots, allowed = slots_of(settings), _allowed_packages(settings, faults)
    for key, node in settings.items():
        faults.add(*find_undeclared(key, node, slots))
    for key in slots:
        _check_slot(key, settings, allowed, faults, refused_here)
    faults.add(*value_faults(settings, door))
    _check_plain_values(settings, door, faults)
    if faults.found or refused is None:
        faults.add(*refused_here.found)
    else:
        refused.add(*refused_here.found)
    faults.raise_any()


def _allowed_packages(settings: Mapping[str, Any], faults: Faults) -> Sequence[str]:
    """Return the user's own packages that may define a class. They count only when typed."""
    given = settings.get("allow_packages")
    if given and not is_typed("allow_packages"):
        faults.add(
            f"allow_packages={given} comes from a file: remove it there, and type it with the command if you trust "
            "these packages"
        )
        return []
    return given if isinstance(given, list) and all(isinstance(name, str) for name in given) else []


def _check_plain_values(settings: Mapping[str, Any], door: str, faults: Faults) -> None:
    """Check the types of the keys that belong to no group."""
    if door == "train":
        from panda.tasks.threshold import Criterion  # noqa: PLC0415

        _check_type("criterion", settings.get("criterion"), Criterion, faults)
    for key, hint in PLAIN_TYPES[door].items():
        value = settings.get(key)
        if value == "":
            faults.add(f"{key} is empty: write {key}=…")
        elif hint in (str, str | None) and isinstance(value, int | float):
            faults.add(f"{key}={value} was read as a number: quote it, {quoted(f'{key}={value}')}")
        else:
            _check_type(key, value, hint, faults)


def _check_slot(key: str, settings: Mapping[str, Any], allowed: Sequence[str], faults: Faults, refused: Faults) -> None:
    """Check that a node names a class that its slot allows, and that the class takes its options.

    Args:
        key: Key of the node.
        settings: The resolved configuration.
        allowed: The user's own packages.
        faults: Takes what keeps the node from being built.
        refused: Takes the faults of settings.
    """
    slot = slots_of(settings)[key]
    parent, _, name = key.rpartition(".")
    above = settings.get(parent) if parent else settings
    if not isinstance(above, Mapping) or name not in above or (parent and above[name] is None):
        return
    node = above[name]
    if not isinstance(node, Mapping) or "_target_" not in node:
        derived = ", or a class derived from it" if slot.packages else ""
        faults.add(f"{key} has no _target_: give {slot.base}{derived}")
        return
    with faults.collect():
        built = find_class(key, slot, str(node["_target_"]), allowed)
        options = {option: value for option, value in node.items() if option != "_target_" and value != "???"}
        if issubclass(built, Settings):
            _check_settings(key, options, built, settings, refused)
        else:
            _check_options(key, options, built, settings, faults)


def _check_settings(
    key: str, options: dict[str, Any], built: type[Settings], settings: Mapping[str, Any], refused: Faults
) -> None:
    """Check options by making the settings from them."""
    slots = slots_of(settings)
    for name, value in options.items():
        if f"{key}.{name}" in slots and value is not None:
            options[name] = REFUSED
            with suppress(ConfigError):  # the check of its own slot reports it
                options[name] = build(settings, f"{key}.{name}")
    with refused.collect(key):
        built(**options)


def _check_options(
    key: str, options: Mapping[str, Any], built: type, settings: Mapping[str, Any], faults: Faults
) -> None:
    """Check options against the signature of a class."""
    known, hints = _signature(built, options)
    for name, value in options.items():
        if name not in known:
            faults.add(
                f"{key}.{name}={value}: {built.__module__}.{built.__name__} has no such option{near(name, known)}"
            )
        elif name in hints and f"{key}.{name}" not in slots_of(settings):
            _check_type(f"{key}.{name}", value, hints[name], faults)


def _signature(built: type, options: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """Return the names of the options that a class takes, and the types of those that state one.

    A class that passes `**kwargs` on takes the options of its bases too, and of the class that it wraps, if it names
    them by `wrapped_options`.
    """
    known: list[str] = []
    hints: dict[str, Any] = {}
    for kind in built.__mro__:
        if "__init__" not in vars(kind):
            continue
        parameters = inspect.signature(kind.__init__).parameters  # type: ignore[misc]
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        known += [name for name, parameter in parameters.items() if parameter.kind in named and name != "self"]
        with suppress(NameError, TypeError):
            hints = typing.get_type_hints(kind.__init__) | hints  # type: ignore[misc]
        if all(parameter.kind is not inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
            return known, hints
    wrapped = getattr(built, "wrapped_options", None)
    return known + (list(wrapped(options)) if wrapped else []), hints


def _check_type(key: str, value: Any, hint: Any, faults: Faults) -> None:
    from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError  # noqa: PLC0415
    from pydantic.errors import PydanticSchemaGenerationError  # noqa: PLC0415

    try:
        adapter = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
    except (PydanticSchemaGenerationError, PydanticUserError):
        return  # a library's own type that cannot be checked ahead: its constructor will
    try:
        # Lax lets YAML lists stand for tuples and text for paths, but would also take "3" for a number.
        adapter.validate_python(value, strict=isinstance(value, str) and _kinds(hint) <= {int, float, bool, NoneType})
    except ValidationError as error:
        wanted = "; ".join(dict.fromkeys(e["msg"].lower() for e in error.errors()))
        # With its quotes where they are what is wrong.
        shown = repr(value) if isinstance(value, str) and _is_number(value) else value
        faults.add(f"{key}={shown} is of the wrong kind: {wanted}")


def _kinds(hint: Any) -> set[Any]:
    """The members of a union, and of unions in it; else the type itself."""
    if typing.get_origin(hint) not in (typing.Union, UnionType):
        return {hint}
    return set().union(*map(_kinds, typing.get_args(hint)))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def check_loss(loss: Any, logits: Any, target: Any, node: Mapping[str, Any], faults: Faults) -> bool:
    """Run a loss once on tensors of the task's shapes: one that cannot teach the task is a fault of the config.

    Args:
        loss: The module.
        logits: As the task's network gives them, wrong everywhere.
        target: As the task's data gives it.
        node: The loss' configuration, for the message.
        faults: Takes the fault.

    Returns:
        Whether it can.
    """
    logits = logits.clone().requires_grad_()
    try:
        value = loss(logits, target)
        value.backward()
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        faults.add(f"loss={node['_target_']} does not fit the task: {str(error).splitlines()[0]}")
        return False
    teaches = bool(logits.grad.any())
    if not teaches:
        faults.add(
            f"loss={node['_target_']} gives no gradient for this task's logits {tuple(logits.shape)}: take another"
        )
    return teaches


def check_ignoring(loss: Any, node: Mapping[str, Any], faults: Faults) -> None:
    """Sees to it that a loss leaves out ignored pixels (target below 0): another one would learn them as a target.

    Args:
        loss: The module, over logits and target of one class, which `check_loss` found to fit.
        node: Its configuration, for the message.
        faults: Takes the fault.
    """
    import torch  # noqa: PLC0415

    target = torch.tensor([[1.0, -1.0], [0.0, -1.0]]).view(1, 1, 2, 2)
    logits = torch.zeros(1, 1, 2, 2, requires_grad=True)
    loss(logits, target).backward()
    assert logits.grad is not None
    if bool(logits.grad[target < 0].any()):
        faults.add(
            f"data.ignore_background=true: loss={node['_target_']} learns from ignored pixels too; take one of "
            "panda.models.losses"
        )


def build(plain: Mapping[str, Any], key: str, /, **extra: Any) -> Any:
    """Build the object that a node describes, and the objects of its options that have a slot.

    Args:
        plain: The resolved configuration, which `check_config` passed.
        key: Key of the node.
        extra: Arguments that no configuration can hold; they replace the node's own.

    Raises:
        PandaError: What the constructor raised.
        ConfigError: If the slot does not allow the class, or for any other error of the constructor.
    """
    parent, _, name = key.rpartition(".")
    node, slots = (plain[parent] if parent else plain)[name], slots_of(plain)
    built = find_class(key, slots[key], str(node["_target_"]), plain.get("allow_packages") or [])
    options = {
        name: build(plain, f"{key}.{name}") if f"{key}.{name}" in slots and value is not None else value
        for name, value in node.items()
        if name != "_target_"
    }
    try:
        return built(**options | extra)
    except PandaError:
        raise
    except Exception as error:
        raise ConfigError(f"{key}._target_={node['_target_']} refuses its options: {error}") from error
