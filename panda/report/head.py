"""The head of a page: what was made, from what, by which command, and the commands that follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class PageHead:
    """What a page is about.

    Attributes:
        kind: Kind of the page, such as "Training run".
        title: Name of the run, the slide or the folder.
        facts: Name and text of each fact; one with an empty text is left out.
        commands: What each command does, and the command, to be pasted into a shell.
        overview: Name and address of the page above, empty without one.
    """

    kind: str
    title: str
    facts: Sequence[tuple[str, str]] = ()
    commands: Sequence[tuple[str, str]] = ()
    overview: tuple[str, str] | tuple[()] = ()
