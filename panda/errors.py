"""Errors that a user can cause. Each message names the file or key, the value and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence


class PandaError(Exception):
    """Base of all errors that the input causes, not the program."""


class ConfigError(PandaError):
    """One or more faults in the configuration, each a sentence with key, value and remedy."""

    def __init__(self, faults: Sequence[str] | str) -> None:
        self.faults = [faults] if isinstance(faults, str) else list(faults)
        lines = "\n".join(f"  - {fault}" for fault in self.faults)
        super().__init__(f"{len(self.faults)} fault{'s' * (len(self.faults) > 1)} in the configuration:\n{lines}")


class OptionError(ConfigError):
    """Options that a loss or a network refuses; each fault begins with the option's name, as they know no nodes."""

    def prefix_node(self, node: str) -> ConfigError:
        """Return the same faults with the node that holds the options: `loss.alpha=2` for `alpha=2`."""
        return ConfigError([f"{node}.{fault}" for fault in self.faults])


class SlideError(PandaError):
    """A slide is missing, cannot be opened or read, or has no tissue."""


class MaskError(PandaError):
    """A label mask is missing, cannot be read, or does not fit its slide or provider."""


class ManifestError(PandaError):
    """A table of slides or patches, or a store, is missing, malformed or contradictory."""


class CheckpointError(PandaError):
    """A file is no checkpoint or canvas, or one for another task or of another version."""


def suggest(name: str, known: Collection[str]) -> str:
    """Return the hint that ends a message about a wrong name: similar known names, else all if at most 20, else ""."""
    lowered = {candidate.lower(): candidate for candidate in known}
    matches = difflib.get_close_matches(name.lower(), list(lowered), n=3, cutoff=0.6)
    if matches:
        return f" (did you mean {', '.join(lowered[match] for match in matches)}?)"
    return f" (there are: {', '.join(sorted(known))})" if 0 < len(known) <= 20 else ""
