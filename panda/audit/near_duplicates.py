"""Groups of slides that show the same tissue, by identical files and by the hashes of their tissue."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from panda.audit.hash_distance import LARGEST, find_matches
from panda.audit.inspection import Inspection
from panda.audit.tissue_hashes import AXES, TissueHashes
from panda.data.findings import Finding
from panda.errors import ManifestError

THRESHOLD = 0.30
"""Largest distance at which two slides match; docs/audit.md shows why."""

SURE = 0.15
"""Largest distance of a match of a crowded slide."""

LEAST_CROWD, CROWD = 40, 0.005
"""A slide is crowded if it matches more slides than the first, and a larger share of all than the second."""

LEAST_LINKED = 0.5
"""Two groups are merged if at least this share of the pairs across them match."""

_SHOWN = 3  # other slides of the group in a finding
_BLOCK, _BLOCKS = 4096, 16  # bytes of a block of a quick digest, and their number


@dataclass(frozen=True, order=True)
class DuplicatePair:
    """The share of bits in which two matching slides differ in the best orientation, and their ids in order."""

    distance: float
    a: str
    b: str


@dataclass(frozen=True)
class Duplicates:
    """Slides in groups of the same tissue.

    Attributes:
        groups: Slide id → group, named by its slide whose id sorts first; by slide id.
        pairs: The matches of hashes, closest first. Slides with equal hashes are paired only with the first of them.
            The slides of a pair can be in two groups, if most other pairs across these do not match.
        crowded: Slides, by id, that match so many others that only their matches up to `SURE` count.
        identical: Ids of slides with identical files, a sequence for each group.
    """

    groups: dict[str, str]
    pairs: Sequence[DuplicatePair]
    crowded: Sequence[str]
    identical: Sequence[Sequence[str]] = ()

    @property
    def members(self) -> dict[str, list[str]]:
        """Group → its slides, for groups of two or more."""
        members: defaultdict[str, list[str]] = defaultdict(list)
        for slide_id, group in self.groups.items():
            members[group].append(slide_id)
        return {group: slides for group, slides in members.items() if len(slides) > 1}

    @property
    def file_numbers(self) -> dict[str, int]:
        """Slide id → a number that slides with identical files share, for these slides only."""
        return {slide_id: number for number, same in enumerate(self.identical) for slide_id in same}

    def list_findings(self) -> list[Finding]:
        """Return a finding for each exact duplicate, and for each near-duplicate that is not only an exact one."""
        files = self.file_numbers
        near = (slides for slides in self.members.values() if len({files.get(slide, slide) for slide in slides}) > 1)
        return [*report_groups("exact_duplicate", self.identical), *report_groups("near_duplicate", near)]


def report_groups(finding: str, groups: Iterable[Sequence[str]]) -> list[Finding]:
    """Return a finding of this kind for each slide of groups of two or more."""
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

    `read_inspections` gives the inspections of all slides that have a file name, at each call. `find_path` gives the
    file of an id.
    """
    near = group_near_duplicates({inspection.slide_id: inspection.hashes for inspection in read_inspections()})
    identical = find_identical_files(read_inspections(), find_path)
    groups = near.groups
    for same in identical:  # the hashes miss files without tissue, and those in a crowd
        names = {groups[slide_id] for slide_id in same}
        if len(names) > 1:
            groups = {slide_id: min(names) if group in names else group for slide_id, group in groups.items()}
    return replace(near, groups=groups, identical=identical)


def digest_quickly(path: Path) -> str:
    """Return a digest of a file's size and of 16 blocks of 4 KiB, evenly spread over it.

    Files with different digests differ. `find_identical_files` compares those with the same one.
    """
    size = path.stat().st_size
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    with path.open("rb") as file:
        for at in np.linspace(0, max(0, size - _BLOCK), _BLOCKS).astype(np.int64).tolist():
            file.seek(at)
            digest.update(file.read(_BLOCK))
    return digest.hexdigest()


def find_identical_files(inspections: Iterable[Inspection], find_path: Callable[[str], Path]) -> list[list[str]]:
    """Return the ids of slides with identical files, in ascending order, for each group of two or more.

    Only files with the same quick digest are read. `find_path` gives the file of an id.
    """
    candidates: defaultdict[str, set[str]] = defaultdict(set)
    for seen in inspections:
        if seen.digest is not None:
            candidates[seen.digest].add(seen.slide_id)
    groups = []
    for slides in candidates.values():
        by_content: defaultdict[bytes, list[str]] = defaultdict(list)
        for slide_id in sorted(slides) if len(slides) > 1 else ():
            with find_path(slide_id).open("rb") as file:
                by_content[hashlib.file_digest(file, "blake2b").digest()].append(slide_id)
        groups += [group for group in by_content.values() if len(group) > 1]
    return sorted(groups)


def group_near_duplicates(hashes: Mapping[str, TissueHashes | None], *, threshold: float = THRESHOLD) -> Duplicates:
    """Find the slides that show the same tissue by their hashes, and put them into groups.

    All pairs are compared in blocks of 512 x 512 slides, by bits, which needs about 20 MB for any number of slides,
    besides the hashes and the matches. Mirroring only changes the sign of odd frequencies, so one comparison by parity
    covers four orientations. Exchanged axes are compared only for stout tissue, whose axis is not certain. One slide is
    whole, and the other is whole or one of its parts.

    Groups do not chain. Closest pairs are processed first, and two groups are merged only if at least half of all pairs
    across them match. In a row of slides that each resemble only their neighbours, at most three are in one group. The
    hashes of a slide that matches over 40 slides and over 0.5 % of all are not reliable: only its matches up to `SURE`
    count. The result does not depend on the order of `hashes`.

    Args:
        hashes: Slide id → hashes; None for a slide without hashes, which gets its own group.
        threshold: Largest distance of a match.

    Raises:
        ManifestError: If the threshold is not within 0 to 0.4, above which unrelated slides match.
    """
    if not 0 <= threshold <= 0.4:
        raise ManifestError(f"the threshold of near-duplicates is {threshold}: give 0 to 0.4, for example {THRESHOLD}")
    known = {slide_id: own for slide_id, own in sorted(hashes.items()) if own is not None}
    first: dict[TissueHashes, str] = {}
    equal: dict[str, list[str]] = {}
    for slide_id, own in known.items():
        equal.setdefault(first.setdefault(own, slide_id), []).append(slide_id)
    ids = list(equal)
    match, crowd = find_matches(
        [known[slide_id].texture for slide_id in ids],
        [known[slide_id].outline for slide_id in ids],
        np.log([known[slide_id].aspect for slide_id in ids]),
        frames=len(AXES),
        near=math.floor(threshold * LARGEST + 1e-9),
        sure=math.floor(min(SURE, threshold) * LARGEST + 1e-9),
        crowd=max(LEAST_CROWD, CROWD * len(ids)),
    )
    pairs = [DuplicatePair(0.0, one, other) for one, others in equal.items() for other in others[1:]]
    apart = sorted(DuplicatePair(bits / LARGEST, ids[i], ids[j]) for i, j, bits in match.T.tolist())
    groups = {slide_id: slide_id for slide_id in sorted(hashes)}
    for members in _merge_groups(apart):
        every = [slide_id for member in members for slide_id in equal[member]]
        groups.update(dict.fromkeys(every, min(every)))
    for one, others in equal.items():
        groups.update(dict.fromkeys(others, groups[one]))
    crowded = sorted(slide_id for index in crowd for slide_id in equal[ids[index]])
    return Duplicates(groups, tuple(sorted([*pairs, *apart])), tuple(crowded))


def _merge_groups(pairs: Sequence[DuplicatePair]) -> list[set[str]]:
    """Merge slides into groups, closest pairs first, if enough of the pairs across two groups match."""
    linked: defaultdict[str, set[str]] = defaultdict(set)
    for pair in pairs:
        linked[pair.a].add(pair.b)
        linked[pair.b].add(pair.a)
    group = {slide_id: {slide_id} for slide_id in linked}
    merged = True
    while merged:  # a larger group can match one that the smaller did not
        merged = False
        for pair in pairs:
            one, other = group[pair.a], group[pair.b]
            if one is other or sum(len(linked[s] & other) for s in one) < LEAST_LINKED * len(one) * len(other):
                continue
            one |= other
            group.update(dict.fromkeys(other, one))
            merged = True
    return list({id(members): members for members in group.values()}.values())
