"""The words of a search: keys that are searched, in Hydra's syntax of sweeps, and overrides that all trials share."""

# No `from __future__ import annotations`, because Hydra checks the arguments of `log` by its annotations.

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser, create_functions
from hydra.core.override_parser.types import Glob, IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException

from panda.app.command_line import explain
from panda.errors import ConfigError

_SEARCH_KEYS = ("run_dir", "resume")
"""Keys that a search sets itself."""
_SYNTAX = "choice(a,b), range(1,10), interval(0.0,0.5), int(interval(1,8)) or log(1e-5,1e-2)"


@dataclass(frozen=True)
class Dimension:
    """The values of one key.

    Attributes:
        choices: Values as they are typed; empty for numbers.
        low: Lowest number.
        high: Highest number.
        step: Distance of two numbers, None if all between are allowed.
        is_log: Whether numbers are drawn by their logarithm.
    """

    choices: tuple[str, ...] = ()
    low: float = 0
    high: float = 0
    step: float | None = None
    is_log: bool = False

    @property
    def probes(self) -> tuple[str, ...]:
        """Values to check before the search: each choice, or the ends of the numbers."""
        return self.choices or (str(self.low), str(self.high))


@dataclass(frozen=True)
class Words:
    """The words of a command: settings of the search, what it searches, and what all trials share.

    Attributes:
        own: Settings of the search.
        space: Key, with `+` if it was typed, to its values.
        fixed: Overrides of all trials, as typed.
    """

    own: dict[str, Any] = field(default_factory=dict)
    space: dict[str, Dimension] = field(default_factory=dict)
    fixed: list[str] = field(default_factory=list)

    def list_probes(self) -> list[list[str]]:
        """Return overrides of trials that have each choice and each end of a range in one of them."""
        count = max(len(dimension.probes) for dimension in self.space.values())
        return [
            self.format_trial({key: own.probes[min(k, len(own.probes) - 1)] for key, own in self.space.items()})
            for k in range(count)
        ]

    def format_trial(self, values: Mapping[str, Any]) -> list[str]:
        """Return the overrides of a trial."""
        return [*self.fixed, *(f"{key}={value}" for key, value in values.items())]


def parse_words(arguments: Sequence[str], own: Sequence[str]) -> Words:
    """Sort the arguments of a search.

    Args:
        arguments: The words of the command line.
        own: Keys of the search itself.

    Raises:
        ConfigError: With all faults.
    """
    functions = create_functions()
    functions.register("log", _make_log_interval)
    parser, words, faults, seen = OverridesParser(functions), Words(), [], set[str]()
    for text in arguments:
        if text.startswith("-"):
            faults.append(f"{text}: a search takes no options but --help; leave it out")
            continue
        try:
            override = parser.parse_override(text)
        except HydraException as error:
            faults.append(explain(error, arguments)[0])
            continue
        key = override.get_key_element()
        name = key.lstrip("+~").partition("@")[0]
        if name in seen:
            faults.append(f"{text}: {name} is given twice; give it once")
        elif name in own:
            words.own[name] = override.value()
        elif name in _SEARCH_KEYS or name.startswith(("hydra.", "hydra/")):
            faults.append(f"{text}: a search sets this itself; leave it out")
        elif override.is_sweep_override() and name == "task":
            faults.append(f"{text}: figures of two tasks cannot be compared; search for each task")
        elif override.is_sweep_override():
            try:
                words.space[key] = _read_dimension(override)
            except ValueError as error:
                faults.append(f"{text}: {error}")
        else:
            words.fixed.append(text)
        seen.add(name)
    if not words.space and not faults:
        faults.append(f"no key is searched; give a key with its values, such as optim.lr=log(1e-5,1e-2), by {_SYNTAX}")
    if faults:
        raise ConfigError(faults)
    return words


def _make_log_interval(low: int | float, high: int | float) -> IntervalSweep:
    return IntervalSweep(start=float(low), end=float(high), tags={"log"})


def _read_dimension(override: Override) -> Dimension:
    sweep: Any = override.value()
    if isinstance(sweep, IntervalSweep):
        assert sweep.start is not None
        assert sweep.end is not None
        is_log, step = "log" in sweep.tags, 1.0 if isinstance(sweep.start, int) else None
        if not sweep.start < sweep.end:
            raise ValueError(f"{sweep.start} is not below {sweep.end}; give the lower end first")
        if is_log and sweep.start <= 0:
            raise ValueError("a logarithm needs numbers above 0")
        return Dimension(low=sweep.start, high=sweep.end, step=step, is_log=is_log)
    if isinstance(sweep, Glob) or sweep.shuffle:
        raise ValueError(f"these values cannot be searched; give {_SYNTAX}")
    if isinstance(sweep, RangeSweep):
        assert sweep.start is not None
        count = len(list(override.sweep_iterator()))
        if count < 2 or sweep.step < 0:
            raise ValueError(
                f"there is no second value; give interval({sweep.start},{sweep.stop}) for all numbers between, or a "
                "positive step as the third number"
            )
        return Dimension(low=sweep.start, high=sweep.start + sweep.step * (count - 1), step=sweep.step)
    choices = tuple(dict.fromkeys(map(str, override.sweep_string_iterator())))
    if len(choices) < 2:
        raise ValueError("there is no second value; give the key without choice(…)")
    return Dimension(choices=choices)
