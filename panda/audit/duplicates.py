"""Duplicates: slides with the same file, and slides that show the same tissue."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from panda.audit.identical_files import find_identical_files
from panda.audit.inspection import Inspection
from panda.audit.near_duplicates import NearDuplicates, group_near_duplicates
from panda.data.findings import Finding

_SHOWN = 3


@dataclass(frozen=True)
class Duplicates:
    """Slides that show the same tissue.

    Attributes:
        groups: Slide id → group, for every slide whose id can name a file.
        near: Groups and pairs by the hashes of the tissue.
        identical: Ids of slides with identical files, a sequence for each group.
    """

    groups: Mapping[str, str]
    near: NearDuplicates
    identical: Sequence[Sequence[str]]

    @property
    def members(self) -> dict[str, list[str]]:
        """Group → its slides, for groups of two or more."""
        members: defaultdict[str, list[str]] = defaultdict(list)
        for slide_id, group in self.groups.items():
            members[group].append(slide_id)
        return {group: slides for group, slides in members.items() if len(slides) > 1}

    def list_findings(self) -> list[Finding]:
        """Return a finding for each exact duplicate, and for each near-duplicate that is not only an exact one."""
        exact = {slide_id: number for number, same in enumerate(self.identical) for slide_id in same}
        near = [
            slides
            for slides in self.members.values()
            if len({exact.get(slide_id, slide_id) for slide_id in slides}) > 1
        ]
        return [*report_groups("exact_duplicate", self.identical), *report_groups("near_duplicate", near)]


def report_groups(
    finding: Literal["exact_duplicate", "near_duplicate"], groups: Iterable[Sequence[str]]
) -> list[Finding]:
    """Return a finding for each slide of groups of duplicates.

    Args:
        finding: The kind of duplicates.
        groups: Ids of the slides of each group; groups of one are skipped.
    """
    found = []
    for group in groups:
        for slide_id in group if len(group) > 1 else ():
            others = [other for other in group if other != slide_id]
            more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
            found.append(Finding(slide_id, finding, f"{', '.join(others[:_SHOWN])}{more}"))
    return found


def find_duplicates(
    read_inspections: Callable[[], Iterable[Inspection]], find_path: Callable[[str], Path]
) -> Duplicates:
    """Group slides of the same tissue, by their files and by the hashes of their tissue.

    Args:
        read_inspections: Gives the inspections of all slides whose id can name a file, at each call.
        find_path: Slide id → its file.

    Raises:
        OSError: If a file cannot be read any more.
    """
    near = group_near_duplicates({inspection.slide_id: inspection.hashes for inspection in read_inspections()})
    identical = find_identical_files(read_inspections(), find_path)
    groups = dict(near.groups)
    for same in identical:  # the hashes miss files without tissue, and those in a crowd
        names = {groups[slide_id] for slide_id in same}
        if len(names) > 1:
            groups = {slide_id: min(names) if group in names else group for slide_id, group in groups.items()}
    return Duplicates(groups, near, identical)
