"""Errors that a user can cause. Each message names the file or key, the value and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence


class PandaError(Exception):
    """Base of all errors that the input causes, not the program."""


class ConfigError(PandaError):
    """One or more faults in the configuration, all reported at once.

    Args:
        faults: One sentence a fault, which names the key, the value and the remedy.
    """

    def __init__(self, faults: Sequence[str] | str) -> None:
        self.faults = [faults] if isinstance(faults, str) else list(faults)
        lines = "\n".join(f"  - {fault}" for fault in self.faults)
        super().__init__(f"{len(self.faults)} fault{'s' * (len(self.faults) > 1)} in the configuration:\n{lines}")


class OptionError(ConfigError):
    """Options that a loss or a network refuses. It knows no configuration: each fault begins with the option's name."""

    def under(self, node: str) -> ConfigError:
        """Return the same faults of the node that holds the options: `loss.alpha=2` for `alpha=2`."""
        return ConfigError([f"{node}.{fault}" for fault in self.faults])


class SlideError(PandaError):
    """A slide is missing, cannot be opened or read, or has no tissue."""


class MaskError(PandaError):
    """A label mask is missing, cannot be read, or does not fit its slide or provider."""


class ManifestError(PandaError):
    """A table of slides or patches, or a store, is missing, malformed or contradictory."""


class CheckpointError(PandaError):
    """A checkpoint or canvas is none, is for another task, or has another version."""


def suggest(name: str, known: Collection[str]) -> str:
    """Return a hint for a wrong name, which ends a message.

    Args:
        name: The wrong name.
        known: The names that exist.

    Returns:
        " (did you mean a, b?)" with the most similar names, else all names if there are at most 20, else "".
    """
    lowered = {candidate.lower(): candidate for candidate in known}
    matches = difflib.get_close_matches(name.lower(), list(lowered), n=3, cutoff=0.6)
    if matches:
        return f" (did you mean {', '.join(lowered[match] for match in matches)}?)"
    return f" (there are: {', '.join(sorted(known))})" if 0 < len(known) <= 20 else ""
