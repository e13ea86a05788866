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
"""A slide that matches a crowd is believed only up to this distance."""

LEAST_CROWD, CROWD = 40, 0.005
"""A crowd is more slides than that, and a larger share of all."""

LEAST_LINKED = 0.5
"""Two groups become one where at least this share of their slides match each other across."""


@dataclass(frozen=True, order=True)
class DuplicatePair:
    """Two slides that match.

    Attributes:
        distance: Share of bits that differ in the best orientation, 0 to `THRESHOLD`.
        a: The slide whose id sorts first.
        b: The other.
    """

    distance: float
    a: str
    b: str


@dataclass(frozen=True)
class NearDuplicates:
    """Slides in groups of the same tissue.

    Attributes:
        groups: Slide id → group, named by its slide whose id sorts first; by slide id.
        pairs: The matches, closest first. Slides of the very same hashes are paired with the first of them only.
            A pair may lie in two groups where the rest of these does not match.
        crowded: Slides that match so many others that their hashes say little, by id; only their matches up to
            `SURE` were believed.
    """

    groups: dict[str, str]
    pairs: tuple[DuplicatePair, ...]
    crowded: tuple[str, ...]


def group_near_duplicates(hashes: Mapping[str, TissueHashes | None], *, threshold: float = THRESHOLD) -> NearDuplicates:
    """Find the slides that show the same tissue and put them into groups.

    All pairs are compared in blocks of 512 x 512 slides, by bits: some 20 MB whatever the number of slides, besides
    the hashes and the matches. Mirroring only changes the sign of odd frequencies, so one comparison of bits
    by parity serves four orientations; exchanged axes are tried for stout tissue only, whose axis may be
    mistaken. Either slide is taken whole and the other in any of its parts.

    Groups do not chain. Pairs are taken up closest first, and two groups become one only where at least half of all
    pairs across them match: of a row of slides each like its neighbours only, no more than three come together.
    A slide that matches a crowd (over 40 slides and over 0.5 % of them) has hashes that say little; it is believed
    up to the distance `SURE` only. Nothing depends on the order of `hashes`.

    Args:
        hashes: Slide id → hashes; None for a slide without, which makes a group of its own.
        threshold: Largest distance of a match.

    Returns:
        Groups, matches and crowded slides.

    Raises:
        ManifestError: The threshold is not within 0 to 0.4; unrelated slides begin there.
    """
    if not 0 <= threshold <= 0.4:
        raise ManifestError(f"a threshold of near-duplicates of {threshold}: give 0 to 0.4, such as {THRESHOLD}")
    known = {slide_id: own for slide_id, own in sorted(hashes.items()) if own is not None}
    first: dict[TissueHashes, str] = {}
    twins: dict[str, list[str]] = {}
    for slide_id, own in known.items():
        twins.setdefault(first.setdefault(own, slide_id), []).append(slide_id)
    ids = list(twins)
    match, crowd = find_matches(
        [known[slide_id].texture for slide_id in ids],
        [known[slide_id].outline for slide_id in ids],
        np.log([known[slide_id].aspect for slide_id in ids]),
        frames=len(AXES),
        near=math.floor(threshold * LARGEST + 1e-9),
        sure=math.floor(min(SURE, threshold) * LARGEST + 1e-9),
        crowd=max(LEAST_CROWD, CROWD * len(ids)),
    )
    pairs = [DuplicatePair(0.0, one, other) for one, others in twins.items() for other in others[1:]]
    apart = sorted(DuplicatePair(bits / LARGEST, ids[i], ids[j]) for i, j, bits in match.T.tolist())
    groups = {slide_id: slide_id for slide_id in sorted(hashes)}
    for members in _grouped(apart):
        every = [slide_id for member in members for slide_id in twins[member]]
        groups.update(dict.fromkeys(every, min(every)))
    for one, others in twins.items():
        groups.update(dict.fromkeys(others, groups[one]))
    crowded = sorted(slide_id for index in crowd for slide_id in twins[ids[index]])
    return NearDuplicates(groups, tuple(sorted([*pairs, *apart])), tuple(crowded))


def _grouped(pairs: Sequence[DuplicatePair]) -> list[set[str]]:
    """Merge slides into groups, closest pairs first, where enough of the pairs across two groups match."""
    linked: dict[str, set[str]] = {}
    for pair in pairs:
        linked.setdefault(pair.a, set()).add(pair.b)
        linked.setdefault(pair.b, set()).add(pair.a)
    group = {slide_id: {slide_id} for slide_id in linked}
    merged = True
    while merged:  # a group that has grown may now match one that it did not before
        merged = False
        for pair in pairs:
            one, other = group[pair.a], group[pair.b]
            if one is other or sum(len(linked[s] & other) for s in one) < LEAST_LINKED * len(one) * len(other):
                continue
            one |= other
            group.update(dict.fromkeys(other, one))
            merged = True
    return list({id(members): members for members in group.values()}.values())
