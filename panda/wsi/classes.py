"""The classes of a segmentation: cancer or not, or the Gleason patterns of cancer.

A target is (H, W) uint8: the number of a class in `ClassSet.names`, `ANY_CANCER` or `IGNORED`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from panda.choices import find_files
from panda.errors import ConfigError, MaskError, suggest
from panda.stored import Plain, list_faults
from panda.wsi.label_maps import UNKNOWN, LabelMap, Pattern, read_yaml

OTHER = 0
"""The target of a px that is no cancer."""
IGNORED = 255
"""The target of a px that counts nowhere: without a label, or past the slide's edge."""
ANY_CANCER = 254
"""The target of a px that is cancer of an unknown class, because its label map gives its code no pattern."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+-]{0,31}")
_RESERVED = ("best", "interval", "mean_slide", "mean_slide_interval")
"""Ends of the names of other figures: `val/dice_best`, `dice_mean_slide`."""


class ClassSet(Plain, frozen=True):
    """The classes of a segmentation, and the Gleason patterns of each class of cancer.

    Attributes:
        names: The classes; the first one is every px that is no cancer.
        patterns: The Gleason patterns, 1 to 5, of every other class, ascending; no two classes share one.
    """

    names: Annotated[tuple[str, ...], Field(strict=False)]
    patterns: dict[str, Annotated[tuple[Pattern, ...], Field(strict=False)]]

    @field_validator("names")
    @classmethod
    def _check_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        folded = [name.casefold() for name in names]
        faults = ["give one class that is no cancer, and at least one of cancer"] if len(names) < 2 else []
        for name in dict.fromkeys(names):
            if not _NAME.fullmatch(name):
                faults.append(f"{name!r} is no name: give letters, digits, _ + - (32 at most), a letter or digit first")
            elif name in _RESERVED:
                faults.append(f"{name} is the name of another figure: rename it")
            elif folded.count(name.casefold()) > 1:
                faults.append(f"{name} occurs twice, in upper or lower case: rename one")
        if faults:
            raise PydanticCustomError("names", "{faults}", {"faults": "; ".join(faults)})
        return names

    @field_validator("patterns")
    @classmethod
    def _sort(cls, patterns: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        return {name: tuple(sorted(set(held))) for name, held in patterns.items()}

    @model_validator(mode="after")
    def _check_patterns(self) -> Self:
        """Require the patterns of every class of cancer, and of no other, without a pattern in two classes."""
        faults = [
            f"patterns lacks {name}: give its Gleason patterns"
            for name in self.cancer_names
            if not self.patterns.get(name)
        ]
        for name in self.patterns:
            if name == self.names[0]:
                faults.append(f"patterns has {name}, the first of names, which is no cancer: remove it there")
            elif name not in self.names:
                faults.append(f"patterns has {name}, which names lacks: add it there, or remove it here")
        for pattern in range(1, 6):
            if len(holders := [name for name, held in self.patterns.items() if pattern in held]) > 1:
                faults.append(f"pattern {pattern} is in {' and '.join(holders)}: remove it from one of them")
        if faults:
            raise PydanticCustomError("patterns", "{faults}", {"faults": "; ".join(faults)})
        return self

    @property
    def is_binary(self) -> bool:
        """Whether there is one class of cancer, so that a network has one channel and a sigmoid."""
        return len(self.names) == 2

    @property
    def channels(self) -> int:
        """Number of the network's channels: 1 for one class of cancer, else the number of classes."""
        return 1 if self.is_binary else len(self.names)

    @property
    def cancer_names(self) -> tuple[str, ...]:
        """The classes of cancer, of numbers 1, 2, …."""
        return self.names[1:]

    @property
    def by_pattern(self) -> tuple[int, ...]:
        """The numbers of the classes of cancer, the one with the highest pattern first: the order that breaks ties."""
        return tuple(sorted(range(1, len(self.names)), key=lambda number: -self.patterns[self.names[number]][-1]))

    def make_table(self, label_map: LabelMap, *, ignore_unlabelled: bool = False) -> NDArray[np.uint8]:
        """Return the target of each label code.

        Args:
            label_map: The meaning of the codes.
            ignore_unlabelled: Make unlabelled codes `IGNORED`, else `OTHER`.

        Returns:
            (256,) uint8. A code that is cancer has the class of its pattern. Without a pattern it is `ANY_CANCER`, or
            the only class of cancer. Codes that the map does not have are `UNKNOWN`.

        Raises:
            MaskError: If no class has the pattern of a code.
        """
        table = np.full(256, UNKNOWN, np.uint8)
        table[list(label_map.names)] = OTHER
        numbers = {pattern: self.names.index(name) for name, held in self.patterns.items() for pattern in held}
        for code in label_map.cancer:
            pattern = label_map.patterns.get(code)
            if pattern is None:
                table[code] = 1 if self.is_binary else ANY_CANCER
            elif pattern in numbers:
                table[code] = numbers[pattern]
            else:
                raise MaskError(
                    f"code {code} is Gleason pattern {pattern}, which none of the classes "
                    f"{', '.join(self.cancer_names)} has: add it to the patterns of one in the file of task.classes"
                )
        if ignore_unlabelled:
            table[list(label_map.unlabelled)] = IGNORED
        return table

    def describe_codes(self, label_map: LabelMap) -> dict[str, list[int]]:
        """Return the meaning of the codes that decides targets, for fingerprints."""
        codes = label_map.codes()
        if self.is_binary:
            return codes
        table = self.make_table(label_map)
        return codes | {f"target {n}": np.flatnonzero(table == n).tolist() for n in range(1, len(self.names))}


BINARY = ClassSet(names=("other", "cancer"), patterns={"cancer": (1, 2, 3, 4, 5)})
"""Cancer of any pattern, or not."""


def find_classes(choice: str) -> ClassSet:
    """Return the class set that a configuration names.

    Args:
        choice: `binary`, the name of a file in `conf/classes`, or the path of a YAML file.

    Raises:
        ConfigError: If there is no such set, or with all faults of its file.
    """
    if choice == "binary":
        return BINARY
    files = find_files("classes")
    known = ["binary", *files]
    is_path = choice.endswith((".yaml", ".yml"))
    if not is_path and choice not in known:
        raise ConfigError(f"task.classes={choice}: there is no such set{suggest(choice, known)}, or give a PATH.yaml")
    path = Path(choice) if is_path else files[choice]
    if not path.is_file():
        raise ConfigError(f"task.classes={choice}: there is no file {path}; give {', '.join(known)} or a PATH.yaml")
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: is {content!r}: give the keys {' and '.join(ClassSet.model_fields)}")
    try:
        return ClassSet.model_validate(content)
    except ValidationError as error:
        raise ConfigError([f"{path}: {fault}" for fault in list_faults(error)]) from error
