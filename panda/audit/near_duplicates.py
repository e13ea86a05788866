"""Groups of near-duplicate slides, from the hashes of their tissue; the groups do not chain."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from panda.audit.hash_distance import LARGEST, find_matches
from panda.audit.tissue_hashes import AXES, TissueHashes
from panda.errors import ManifestError

THRESHOLD = 0.30
"""Largest distance at which two slides match; docs/audit.md shows why."""

SURE = 0.15
"""Largest distance of a match of a crowded slide."""

LEAST_CROWD, CROWD = 40, 0.005
"""A slide is crowded if it matches more slides than the first, and a larger share of all than the second."""

LEAST_LINKED = 0.5
"""Two groups are merged if at least this share of the pairs across them match."""


@dataclass(frozen=True, order=True)
class DuplicatePair:
    """Two slides that match.

    Attributes:
        distance: Share of bits that differ in the best orientation, 0 to `THRESHOLD`.
        a: The slide whose id sorts first.
        b: The other slide.
    """

    distance: float
    a: str
    b: str


@dataclass(frozen=True)
class NearDuplicates:
    """Slides in groups of the same tissue.

    Attributes:
        groups: Slide id → group, named by its slide whose id sorts first; by slide id.
        pairs: The matches, closest first. Slides with equal hashes are paired only with the first of them. The slides
            of a pair can be in two groups, if most other pairs across these do not match.
        crowded: Slides, by id, that match so many others that only their matches up to `SURE` count.
    """

    groups: dict[str, str]
    pairs: tuple[DuplicatePair, ...]
    crowded: tuple[str, ...]


def group_near_duplicates(hashes: Mapping[str, TissueHashes | None], *, threshold: float = THRESHOLD) -> NearDuplicates:
    """Find the slides that show the same tissue and put them into groups.

    All pairs are compared in blocks of 512 x 512 slides, by bits, which needs about 20 MB for any number of slides,
    besides the hashes and the matches. Mirroring only changes the sign of odd frequencies, so one comparison by parity
    covers four orientations. Exchanged axes are compared only for stout tissue, whose axis is not certain. One slide is
    whole, and the other is whole or one of its parts.

    Groups do not chain. Closest pairs are processed first, and two groups are merged only if at least half of all pairs
    across them match. In a row of slides that each resemble only their neighbors, at most three are in one group. The
    hashes of a slide that matches over 40 slides and over 0.5 % of all are not reliable: only its matches up to `SURE`
    count. The result does not depend on the order of `hashes`.

    Args:
        hashes: Slide id → hashes; None for a slide without hashes, which gets its own group.
        threshold: Largest distance of a match.

    Returns:
        Groups, matches and crowded slides.

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
    return NearDuplicates(groups, tuple(sorted([*pairs, *apart])), tuple(crowded))


def _merge_groups(pairs: Sequence[DuplicatePair]) -> list[set[str]]:
    """Merge slides into groups, closest pairs first, if enough of the pairs across two groups match."""
    linked: dict[str, set[str]] = {}
    for pair in pairs:
        linked.setdefault(pair.a, set()).add(pair.b)
        linked.setdefault(pair.b, set()).add(pair.a)
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
