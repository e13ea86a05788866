"""What a command line that Hydra refuses has wrong, in our words: the key, what is near it, how to quote."""

import re
import shlex
from collections.abc import Mapping, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from panda.errors import near

OWN = {"hydra", "run_dir"}
"""Keys that are not for the command line."""


def explain(error: Exception, arguments: Sequence[str]) -> str:
    """Says in a sentence why no configuration could be made.

    Args:
        error: What Hydra raised.
        arguments: Of the command line.
    """
    cause = error.__cause__
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        return f"{group}={choice}: there is no such choice{near(choice, error.options)}"
    if (several := re.search(r"Ambiguous value for argument '(.*)'\n", str(error))) is not None:
        return (
            f"{several[1]}: a comma separates values; sweep over them with -m, or quote a value that holds one: "
            f"{quoted(several[1])}"
        )
    if isinstance(cause, OmegaConfBaseException) and str(error).startswith("Could not override"):
        key = str(cause.full_key)
        given = next((text for text in arguments if text.partition("=")[0] == key), key)
        known = [str(name) for name in cause.parent_node] if isinstance(cause.parent_node, Mapping) else []
        return f"{given}: there is no such key{near(str(cause.key), [name for name in known if name not in OWN])}"
    return f"{str(error).splitlines()[0]}; given was {shlex.join(arguments)}, --help lists choices and keys"


def quoted(override: str) -> str:
    """An override as one types it in a shell, its value taken as it stands.

    Args:
        override: `key=value` with any characters in the value.
    """
    key, _, value = override.partition("=")
    # Hydra wants a quote escaped, and doubled the backslashes that come before one.
    text = re.sub(r'(\\*)("|\Z)', lambda found: found[1] * 2 + ('\\"' if found[2] else ""), value)
    return shlex.quote(f'{key}="{text}"')


def _unreadable(override: str) -> str:
    wanted = "is no key=value; --help lists the keys"
    if "=" not in override:
        return f"{override} {wanted}"
    suggested = quoted(override)
    try:
        OverridesParser.create().parse_override(shlex.split(suggested)[0])
    except HydraException:
        return f"{override} {wanted}"
    return f"{override}: the value holds characters with a meaning of their own; quote it: {suggested}"
