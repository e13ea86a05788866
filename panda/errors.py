"""The errors a user meets. Each message names the file or key, the value and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence


class PandaError(Exception):
    """Base of every error that is the input's fault and not the program's."""


class ConfigError(PandaError):
    """One or more faults in the configuration, all reported at once.

    Args:
        faults: One sentence a fault, each naming the key, the value and the remedy.
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
    """A slide that is missing, cannot be opened or read, or holds no tissue."""


class MaskError(PandaError):
    """A label mask that is missing, cannot be read, or disagrees with its slide or provider."""


class ManifestError(PandaError):
    """A table of slides or patches, or a store, that is missing, malformed or contradicts itself."""


class CheckpointError(PandaError):
    """A checkpoint or canvas that is not one, is of the wrong task, or of another version."""


def near(name: str, known: Collection[str]) -> str:
    """Say which known names are near a wrong one.

    Args:
        name: What was given.
        known: What there is.

    Returns:
        " (did you mean a, b?)", or all names where there are at most 20, or "".
    """
    lowered = {candidate.lower(): candidate for candidate in known}
    matches = difflib.get_close_matches(name.lower(), list(lowered), n=3, cutoff=0.6)
    if matches:
        return f" (did you mean {', '.join(lowered[match] for match in matches)}?)"
    return f" (there are: {', '.join(sorted(known))})" if 0 < len(known) <= 20 else ""
