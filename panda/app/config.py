"""Checks a configuration before anything slow begins, and builds objects from it."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from panda.app.command_line import likely, quoted
from panda.app.group_types import KINDS_OF_AUDIT, imported, kinds_of
from panda.app.value_checks import value_faults
from panda.errors import ConfigError, OptionError, PandaError, near
from panda.settings import REFUSED, Settings

# What a `_target_` may name. A configuration is data; it must not be able to call anything that is installed.
ALLOWED_TARGETS = (
    "panda.",
    "torch.nn.",
    "pytorch_lightning.",
    "segmentation_models_pytorch.",
    "torchmetrics.",
)

KEYS = {
    "train": {
        "data", "model", "loss", "augment", "optim", "trainer", "logger", "quantify", "engine", "task", "tiles",
        "name", "seed", "threshold", "criterion", "cost_ratio", "threshold_per_provider", "test_slides", "resume",
        "colour_map", "segmentation_checkpoint", "debug", "run_dir",
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
        return str(Path(resume).parent.parent)
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

    def build(self, node: Any, key: str = "", /, **extra: Any) -> Any:
        """Build a node; return None and take over the faults if the object's constructor refuses. See `build`."""
        with self.collect(key):
            return build(node, **extra)

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
    kinds = KINDS_OF_AUDIT if door == "audit" else kinds_of(plain.get("task"))
    for node_key, node in plain.items():
        _check_node(str(node_key), node, kinds, faults, refused_here)
    faults.add(*value_faults({str(key): value for key, value in plain.items()}, door))
    if door == "train":
        from panda.tasks.threshold import Criterion  # noqa: PLC0415

        _check_type("criterion", plain.get("criterion"), Criterion, faults)
    for key, hint in PLAIN_TYPES[door].items():
        value = plain.get(key)
        if value == "":
            faults.add(f"{key} is empty: write {key}=…")
        elif hint in (str, str | None) and isinstance(value, int | float):
            faults.add(f"{key}={value} was read as a number: quote it, {quoted(f'{key}={value}')}")
        else:
            _check_type(key, value, hint, faults)
    if faults.found or refused is None:
        faults.add(*refused_here.found)
    else:
        refused.add(*refused_here.found)
    faults.raise_any()


def _check_node(key: str, node: Any, kinds: Mapping[str, str], faults: Faults, refused: Faults) -> None:
    """Check a node with a `_target_` and all nodes below it.

    Args:
        key: Of the node.
        node: As plain data.
        kinds: Class of a node's object by key.
        faults: Takes what keeps the node from being built.
        refused: Takes the faults of settings.
    """
    if isinstance(node, Mapping):
        for name, child in node.items():
            _check_node(f"{key}.{name}", child, kinds, faults, refused)
        if "_target_" in node:
            target = _target(key, str(node["_target_"]), kinds.get(key), faults)
            if inspect.isclass(target) and issubclass(target, Settings):
                _check_settings(key, node, target, faults, refused)
            elif target is not None:
                _check_options(key, node, target, faults)
            return
    if key in kinds and not (node is None and "." in key):
        faults.add(f"{key} has no _target_: give {kinds[key]}, or what is derived from it")


def _target(key: str, path: str, kind: str | None, faults: Faults) -> Any:
    """What a `_target_` names; None, and a fault, where it must not or cannot be used."""
    if not path.startswith(ALLOWED_TARGETS):
        faults.add(
            f"{key}._target_={path} is outside the packages a configuration may use ({', '.join(ALLOWED_TARGETS)})"
        )
        return None
    try:
        target = imported(path)
    except (ImportError, AttributeError) as error:
        faults.add(f"{key}._target_={path} cannot be used: {error}")
        return None
    if kind and not (inspect.isclass(target) and issubclass(target, imported(kind))):
        faults.add(f"{key}._target_={path} is no {kind.rpartition('.')[2]}, which a run needs there")
        return None
    return target


def _check_settings(key: str, node: Mapping[str, Any], target: type[Settings], faults: Faults, refused: Faults) -> None:
    """Check a node by making its settings, whose nodes below it are checked already."""
    values = {name: value for name, value in node.items() if name != "_target_" and value != "???"}
    for name, value in values.items():
        if isinstance(value, Mapping) and "_target_" in value:
            values[name] = REFUSED
            if not faults.names(f"{key}.{name}"):
                with refused.collect():
                    values[name] = build(value)
    with refused.collect(key):
        target(**values)


def _check_options(key: str, node: Mapping[str, Any], target: Any, faults: Faults) -> None:
    path = node["_target_"]
    call = target.__init__ if inspect.isclass(target) else target
    parameters = {name: parameter for name, parameter in inspect.signature(call).parameters.items() if name != "self"}
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    try:
        hints = typing.get_type_hints(call)
    except (NameError, TypeError):
        hints = {}
    for name, value in node.items():
        if name in ("_target_", "_partial_") or value == "???":
            continue
        if name not in parameters:
            # an open-ended target checks what it takes when it is built
            if not open_ended:
                faults.add(f"{key}.{name}={value}: {path} has no such option{near(str(name), parameters)}")
        elif name in hints and not isinstance(value, Mapping):
            _check_type(f"{key}.{name}", value, hints[name], faults)


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


def build(node: Any, **extra: Any) -> Any:
    """Make the object that a node describes.

    Args:
        node: A mapping with `_target_`.
        extra: Arguments that no configuration can hold.

    Raises:
        PandaError: What the object's constructor raised, unwrapped.
        ConfigError: For any other error of the constructor, with the node's target.
    """
    import hydra.utils  # noqa: PLC0415
    from hydra.errors import InstantiationException  # noqa: PLC0415

    try:
        return hydra.utils.instantiate(node, **extra, _convert_="all")
    except InstantiationException as error:
        cause: BaseException = error
        while isinstance(cause, InstantiationException) and cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, PandaError):
            raise cause from None
        raise ConfigError(f"{node['_target_']} refuses its options: {cause}") from cause
