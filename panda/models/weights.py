"""Published weights: files with other prefixes or classifiers, the local cache of the hub, downloads."""

from __future__ import annotations

import logging
import pickle
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub
import safetensors
import safetensors.torch
import torch
from huggingface_hub import constants
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError
from torch import Tensor, nn

from panda.errors import OptionError, raise_exhaustion
from panda.models.conch import convert_conch
from panda.models.dinov2_names import convert_dinov2

log = logging.getLogger(__name__)

_PREFIXES = ("module.", "model.", "encoder.", "backbone.")
"""What trainers and other libraries put before the name of a weight."""
_WRAPPERS = ("state_dict", "model")
"""Keys under which a file may hold the state dict."""
_HINTS = {
    "ls1.gamma": "layer scale: init_values",
    "reg_token": "register tokens: reg_tokens",
    "pos_embed": "size of image and patch: img_size, patch_size, no_embed_class",
    "mlp.fc1.weight": "feed-forward layer: mlp_ratio, mlp_layer",
}
"""Part of a name of a weight that does not fit: the option of the encoder that causes it."""
_FILES = ("model.safetensors", "pytorch_model.bin", "pytorch_model_vision.bin")
"""Names of the file of weights in a repository of the hub; the last one is that of an encoder with a text part."""
_PATIENCE_S = 2.0
"""Longest time that the hub has to answer."""


def load_weights(module: nn.Module, path: Path, ignored: Collection[str] = ()) -> str:
    """Load a file of weights into a module. Every weight of the module must be in the file.

    A name may have other prefixes in the file than in the module (`module.`, `model.`, `encoder.`, `backbone.`).

    Args:
        module: Takes the weights.
        path: A state dict, `.safetensors` or written by `torch.save`.
        ignored: Names of weights or submodules, such as a classifier, that the file may have and the module has not.

    Returns:
        A sentence on what was used of the file and what was not; it is logged too.

    Raises:
        OptionError: If the file cannot be read, or keys or shapes differ; the first of each are named.
    """
    own = module.state_dict()
    simplify: Callable[[str], str] = _simplify
    if len({_simplify(name) for name in own}) < len(own):
        simplify = str  # two weights differ in their prefixes only
    names = {simplify(name): name for name in own}
    heads = tuple(f"{name}." for name in ignored)
    unneeded = {simplify(name) for name in ignored}
    state: dict[str, Tensor] = {}
    unused: list[str] = []
    for stored, value in convert_conch(convert_dinov2(_read_weights(path), own), own).items():
        name = names.get(simplify(stored))
        if name in state:
            raise OptionError(f"encoder_weights={path}: has {name} twice, also as {stored}; give a file of one network")
        if name is not None:
            state[name] = value
        elif simplify(stored) in unneeded or _strip(stored).startswith(heads):
            unused.append(_strip(stored))
        else:
            state[_strip(stored)] = value  # some encoders of smp rename it
    try:
        module.load_state_dict(dict(state))  # a copy, because some encoders of smp remove keys from it
    except RuntimeError as error:
        raise OptionError(_describe_misfit(module, path, own, state)) from error
    parts = list(dict.fromkeys(name.partition(".")[0] for name in unused))
    note = f"The encoder took {len(own)} weights from {path}; not used of the file: {', '.join(parts) or 'nothing'}."
    log.info("%s", note)
    return note


def find_published(hub: str, revision: str | None, *, gated: bool, download: bool) -> Path:
    """Return the file of an encoder's published weights in the local cache of the hub.

    Args:
        hub: Repository of the hub, `OWNER/NAME`.
        revision: Commit of the repository; None is the newest one.
        gated: Whether its owner must grant access.
        download: Download the file if the cache lacks it.

    Raises:
        OptionError: If the file is not there, or cannot be downloaded, with the file to get.
    """
    if cached := _find_cached(hub, revision):
        return cached
    url = f"https://huggingface.co/{hub}"
    access = f" (log in at {url}, accept the terms there, then run `hf auth login`)" if gated else ""
    files = f"{', '.join(_FILES[:-1])} or {_FILES[-1]}"
    remedy = f"get {files} from {url}{access}, and give model.encoder_weights=PATH of that file"
    if not download:
        other = _find_cached(hub, None)
        raise OptionError(
            f"encoder_weights=cached: the local cache of the hub ({constants.HF_HUB_CACHE}) has no weights of {hub}"
            + f" at revision {revision}" * bool(revision)
            + (f", but those of another at {other}, which can be given as a path" if other else "")
            + f"; {remedy}, or give model.encoder_weights=download"
        )
    try:
        with offline_if_unreachable():
            return _download(hub, revision)
    except GatedRepoError as error:
        raise OptionError(
            f"encoder_weights=download: {hub} is gated and this account has no access; {remedy}"
        ) from error
    except Exception as error:  # hub and transport have their own classes
        raise_exhaustion(error)
        raise OptionError(
            f"encoder_weights=download: the weights of {hub} could not be downloaded ({type(error).__name__}: "
            f"{str(error)[:200]}); {remedy}"
        ) from error


def _find_cached(hub: str, revision: str | None) -> Path | None:
    found = (huggingface_hub.try_to_load_from_cache(hub, name, revision=revision) for name in _FILES)
    return next((Path(path) for path in found if isinstance(path, str)), None)


def _download(hub: str, revision: str | None) -> Path:
    for name in _FILES[:-1]:
        try:
            return Path(huggingface_hub.hf_hub_download(hub, name, revision=revision))
        except EntryNotFoundError:
            if constants.HF_HUB_OFFLINE:
                raise
    return Path(huggingface_hub.hf_hub_download(hub, _FILES[-1], revision=revision))


@contextmanager
def offline_if_unreachable() -> Iterator[None]:
    """Let the hub use its cache only, if it does not answer at once. Otherwise each file waits half a minute."""
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _reach_hub()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def explain_failed_download(weights: str, encoder: str, error: Exception) -> str:
    """Return the message for pretrained weights that could not be downloaded."""
    return (
        f"encoder_weights={weights}: the weights of {encoder} could not be downloaded "
        f"({type(error).__name__}: {str(error)[:200]}); without a network connection give "
        "model.encoder_weights=null or the path of a local state dict"
    )


def _reach_hub() -> bool:
    """Return whether the hub answers in time. The look-up of its name has no time limit of its own."""
    answers: list[Any] = []

    def ask() -> None:
        try:
            answers.append(huggingface_hub.get_session().head(constants.ENDPOINT, timeout=_PATIENCE_S))
        except Exception as error:  # each transport has its own classes
            log.debug("%s does not answer: %s", constants.ENDPOINT, error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PATIENCE_S)
    return bool(answers)


def _simplify(name: str) -> str:
    """Return what two names of one weight have in common.

    Trainers add prefixes. A network of timm that gives the features of its stages calls `stages.0.` `stages_0.`.
    """
    return _strip(name).replace(".", "_")


def _strip(name: str) -> str:
    while name.startswith(_PREFIXES):
        name = name.partition(".")[2]
    return name


def _read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict, also one under a key such as `state_dict`, onto the CPU without running code of the file."""
    key = f"encoder_weights={path}"
    if not path.is_file():
        raise OptionError(f"{key}: no such file; give null, a known name, or the path of a state dict")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path, device="cpu")
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError, safetensors.SafetensorError) as error:
        raise OptionError(
            f"{key}: cannot be read as weights ({type(error).__name__}: {str(error)[:200]}); give a file "
            "written by torch.save(module.state_dict(), path), or .safetensors"
        ) from error
    inner = [loaded[name] for name in _WRAPPERS if name in loaded] if isinstance(loaded, Mapping) else []
    state = next((part for part in inner if isinstance(part, Mapping)), loaded)
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise OptionError(f"{key}: holds {type(state).__name__}, not a dict of named tensors; give a state dict")
    return dict(state)


def _describe_misfit(module: nn.Module, path: Path, own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    missing = [name for name in own if name not in state]
    surplus = [name for name in state if name not in own]
    reshaped = [name for name, value in own.items() if name in state and state[name].shape != value.shape]
    groups = {
        "missing in the file": missing,
        "not in the network": surplus,
        "of another shape": [f"{name} {tuple(state[name].shape)} for {tuple(own[name].shape)}" for name in reshaped],
    }
    report = "; ".join(
        f"{len(names)} {what}: {', '.join(names[:3])}{', …' * (len(names) > 3)}"
        for what, names in groups.items()
        if names
    )
    hints = [
        hint for part, hint in _HINTS.items() if any(name.endswith(part) for name in (*missing, *surplus, *reshaped))
    ]
    related = len(missing) + len(reshaped) < len(own)
    return (
        f"encoder_weights={path}: does not fit {type(module).__name__} ({report}); give the weights of the same encoder"
        + f", or correct the options of the encoder ({'; '.join(hints)})" * bool(hints and related)
    )
