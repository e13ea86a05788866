"""Label maps: the meaning of the codes of each provider's masks, one YAML file a provider in `conf/label_maps`."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, get_args

import cv2
import numpy as np
import yaml  # type: ignore[import-untyped]
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError, ValidationInfo, field_validator

from panda.choices import CONF, find_own_conf, list_yaml
from panda.errors import ConfigError, MaskError, suggest

FOLDER = CONF / "label_maps"
"""The label maps of the package; the file name is the provider."""
Code = Annotated[int, Field(ge=0, le=255)]
Pattern = Annotated[int, Field(ge=1, le=5)]
Channel = Literal["red", "green", "blue", "alpha"]
CHANNELS: tuple[Channel, ...] = get_args(Channel)

UNKNOWN = 253
"""Entry of a table of codes for a code that the label map does not have."""


class LabelMap(BaseModel, frozen=True, extra="forbid"):
    """The meaning of the codes of one provider's masks.

    Attributes:
        names: The meaning of each code that occurs.
        cancer: The codes that are cancer, ascending.
        unlabelled: The codes of px without a label, ascending.
        patterns: The Gleason pattern of a code that has one.
        aliases: Further names of classes in annotations, each with its code.
        channel: The channel of a mask that has the codes; None to find it, see `panda.wsi.mask_image.open_codes`.
        empty_means_benign: A file of annotations without any object means a slide without cancer; else it is refused.
    """

    names: dict[Code, str] = Field(min_length=1, description="a name for each code, 0 to 255")
    cancer: tuple[Code, ...] = Field(description="a list of codes, 0 to 255")
    unlabelled: tuple[Code, ...] = Field(description="a list of codes, 0 to 255, [] for none")
    patterns: dict[Code, Pattern] = Field(default={}, description="the Gleason pattern, 1 to 5, of each such code")
    aliases: dict[str, Code] = Field(default={}, description="a code, 0 to 255, for each further name of a class")
    channel: Channel | None = Field(default=None, description="red, green, blue or alpha")
    empty_means_benign: bool = Field(default=False, description="true or false")

    @field_validator("cancer", "unlabelled")
    @classmethod
    def _sort(cls, codes: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(set(codes)))

    @field_validator("cancer", "unlabelled", "patterns")
    @classmethod
    def _check_codes(cls, codes: Collection[int], info: ValidationInfo) -> Collection[int]:
        """Refuse codes without a name, codes that are cancer and unlabelled at once, and patterns of no cancer."""
        if unnamed := sorted(set(codes) - set(info.data.get("names", codes))):
            raise ValueError(f"has {_list_codes(unnamed)} without a name: add it to names, or remove it here")
        if info.field_name == "unlabelled" and (both := sorted(set(codes) & set(info.data.get("cancer", ())))):
            raise ValueError(f"has {_list_codes(both)}, which cancer has too: remove it from one of them")
        if info.field_name == "patterns" and (benign := sorted(set(codes) - set(info.data.get("cancer", codes)))):
            raise ValueError(f"has {_list_codes(benign)}, which cancer lacks: add it to cancer, or remove it here")
        return codes

    @field_validator("aliases")
    @classmethod
    def _check_aliases(cls, aliases: dict[str, int], info: ValidationInfo) -> dict[str, int]:
        """Refuse codes without a name."""
        cls._check_codes(aliases.values(), info)
        return aliases

    def find_codes(self, name: str) -> list[int]:
        """Return the codes of a class by its name or alias, in upper or lower case; [] if there is none."""
        known = [*((text, code) for code, text in self.names.items()), *self.aliases.items()]
        return sorted({code for text, code in known if _fold(text) == _fold(name)})

    def list_classes(self) -> str:
        """Return the names of all classes, for messages."""
        return ", ".join(map(repr, [*self.names.values(), *self.aliases]))

    def describe_classes(self) -> dict[str, list[int]]:
        """Return what decides the codes of annotations, for fingerprints."""
        classes = {f"class {_fold(name)}": self.find_codes(name) for name in (*self.names.values(), *self.aliases)}
        return classes | {"empty": [int(self.empty_means_benign)]}

    def codes(self) -> dict[str, list[int]]:
        """Return the codes without their names, for fingerprints."""
        codes = {"known": sorted(self.names), "cancer": list(self.cancer), "unlabelled": list(self.unlabelled)}
        # Nothing for red, as before channels could be named, so that patches of PANDA's masks stay usable.
        if self.channel == "red":
            return codes
        return {**codes, "channel": [] if self.channel is None else [CHANNELS.index(self.channel)]}


def get_label_maps() -> Mapping[str, LabelMap]:
    """Return the label map of each provider in `FOLDER` and in the user's own `conf/label_maps`."""
    own = find_own_conf()
    return load_label_maps(FOLDER, *([own / "label_maps"] if own else []))


@functools.cache
def load_label_maps(*folders: Path) -> Mapping[str, LabelMap]:
    """Return the label maps in folders by provider, one YAML file each; a process reads them once.

    A name that an earlier folder has is passed over: `check_own_conf` allows it for copies alone.

    Raises:
        ConfigError: If there are no files, or with all faults of all files.
    """
    found: dict[str, LabelMap] = {}
    faults: list[str] = []
    paths: dict[str, Path] = {}
    for path in [path for folder in folders for path in list_yaml(folder)]:
        if path.stem in found:
            continue
        if (other := paths.setdefault(path.stem.casefold(), path)) is not path:
            faults.append(f"{other} and {path.name} differ in upper and lower case only: remove or rename one")
        try:
            found[path.stem] = _read_label_map(path)
        except ConfigError as error:
            faults += error.faults
    if not found and not faults:
        faults = [f"{folders[0]}: there is no label map; restore this folder from the checkout that holds the package"]
    if faults:
        raise ConfigError(faults)
    return MappingProxyType(found)


def _read_label_map(path: Path) -> LabelMap:
    """Read one file; raise ConfigError with all its faults."""
    content = read_yaml(path)
    try:
        if isinstance(content, dict):
            lists = {key: tuple(content[key]) for key in ("cancer", "unlabelled") if isinstance(content.get(key), list)}
            content |= lists
        # Strict, because YAML's true would count as code 1.
        return LabelMap.model_validate(content, strict=True)
    except ValidationError as error:
        raise ConfigError([f"{path}: {_describe(fault)}" for fault in error.errors()]) from error


def read_yaml(path: Path) -> Any:
    """Read a YAML file of settings; raise ConfigError if it cannot be read, or a key is given twice."""
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        document = loader.get_single_node()
        content = loader.construct_document(document) if document else None
        twice = _find_repeated_keys(loader, document)
    except Exception as error:  # errors of the system and of the YAML parser
        raise ConfigError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())}); correct it") from error
    if twice:
        raise ConfigError([f"{path}: {key} is given twice: remove one" for key in twice])
    return content


def _find_repeated_keys(loader: yaml.SafeLoader, document: yaml.Node | None) -> list[str]:
    """Return the keys of a document and of its tables that occur twice, which the parser accepts."""
    keys = document.value if isinstance(document, yaml.MappingNode) else []
    given: list[tuple[Any, ...]] = [(key.value,) for key, _ in keys]
    tables = [(key.value, node) for key, node in keys if isinstance(node, yaml.MappingNode)]
    given += [(key, loader.construct_object(code)) for key, node in tables for code, _ in node.value]
    return [".".join(map(str, key)) for key in dict.fromkeys(given) if given.count(key) > 1]


def _describe(fault: Mapping[str, Any]) -> str:
    """Return key, value and remedy of a fault that pydantic found."""
    if not fault["loc"]:
        return f"is {fault['input']!r}: give the keys {', '.join(LabelMap.model_fields)}"
    field = str(fault["loc"][0])
    key = ".".join(str(part) for part in fault["loc"] if part != "[key]")
    if fault["type"] == "extra_forbidden":
        return f"{key}={fault['input']!r}: there is no such key{suggest(field, LabelMap.model_fields)}"
    if fault["type"] == "value_error":
        return f"{key} {fault['ctx']['error']}"
    value = "missing" if fault["type"] == "missing" else repr(fault["input"])
    return f"{key} is {value}: give {LabelMap.model_fields[field].description}"


def describe_unknown_provider(provider: str, known: Collection[str]) -> str:
    """Return the message and the remedy for a provider without a label map."""
    return (
        f"{provider!r} is unknown; known are {', '.join(sorted(known))}; correct it, or describe its mask codes in "
        f"conf/label_maps/{provider}.yaml"
    )


def find_label_map(provider: str, label_maps: Mapping[str, LabelMap] | None = None) -> LabelMap:
    """Return the label map of a provider.

    Args:
        provider: A name in `label_maps` or in `FOLDER`.
        label_maps: Maps that take precedence over those in `FOLDER`, such as the ones of a checkpoint.

    Raises:
        MaskError: If the provider is not known.
        ConfigError: If a file in `FOLDER` is faulty.
    """
    if label_maps is not None and provider in label_maps:
        return label_maps[provider]
    known = get_label_maps()
    if provider not in known:
        raise MaskError(f"provider {describe_unknown_provider(provider, known)}")
    return known[provider]


def tumor_bool_from_gray(
    mask_gray: NDArray[np.uint8], provider: str, label_maps: Mapping[str, LabelMap] | None = None
) -> NDArray[np.bool_]:
    """Return which px are cancer.

    Args:
        mask_gray: Label codes, the red channel of a mask, (H, W) uint8.
        provider: The provider, such as `"radboud"` (cancer is 3, 4, 5) or `"karolinska"` (cancer is 2).
        label_maps: As in `find_label_map`.

    Returns:
        (H, W) bool, True if the code is cancer.

    Raises:
        MaskError: If the provider is unknown, the array is no plane of uint8, or it holds a code that the provider
            does not use. All such codes are named, with their counts.
    """
    label_map = find_label_map(provider, label_maps)
    table = np.full(256, UNKNOWN, np.uint8)
    table[list(label_map.names)] = 0
    table[list(label_map.cancer)] = 1
    return look_up_codes(mask_gray, table, provider).view(np.bool_)


def look_up_codes(mask_gray: NDArray[np.uint8], table: NDArray[np.uint8], provider: str) -> NDArray[np.uint8]:
    """Return the entry of each label code in a table, (H, W) uint8.

    Args:
        mask_gray: Label codes, (H, W) uint8.
        table: (256,) uint8, with `UNKNOWN` for codes that the provider does not use.
        provider: The provider, for the message.

    Raises:
        MaskError: If the array is no plane of uint8, or holds codes that the provider does not use.
    """
    if mask_gray.ndim != 2 or mask_gray.dtype != np.uint8:
        raise MaskError(
            f"label codes are (H, W) uint8, not {mask_gray.shape} {mask_gray.dtype}; pass the red channel of the mask"
        )
    found = np.asarray(cv2.LUT(mask_gray, table), np.uint8) if mask_gray.size else mask_gray.copy()
    if (unknown := found == UNKNOWN).any():
        codes, counts = np.unique(mask_gray[unknown], return_counts=True)
        listed = ", ".join(f"{code} ({count} px)" for code, count in zip(codes, counts, strict=True))
        every = {*np.unique(mask_gray).tolist()}
        fitting = " or ".join(name for name, known in get_label_maps().items() if every <= known.names.keys())
        hint = f" (the codes fit {fitting})" if fitting else ""
        raise MaskError(
            f"label codes {listed} are not among {provider}'s {np.flatnonzero(table != UNKNOWN).tolist()}; "
            f"is the provider right{hint}, and the mask stored without loss?"
        )
    return found


def _fold(name: str) -> str:
    """Return a name of a class in lower case, with single blanks."""
    return " ".join(name.casefold().split())


def _list_codes(codes: Collection[int]) -> str:
    return f"code{'s' * (len(codes) > 1)} {', '.join(map(str, codes))}"
