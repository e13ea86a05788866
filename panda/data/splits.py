"""Splits by group, stratified by provider and grade."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np

from panda.data.manifest import SlideRecord
from panda.errors import ManifestError

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")

_MAX_FOLDS = 100
_CLOSE = 0.01
_Stratum = Callable[[SlideRecord], str]
_STRATA: tuple[_Stratum, ...] = (
    lambda record: f"{record.provider} {record.isup_grade}",
    lambda record: f"{record.provider} {bool(record.isup_grade)}",
    lambda record: record.provider,
)
"""Strata, the finest first: provider × grade, provider × cancer, provider."""


def check_fractions(val_fraction: float, test_fraction: float) -> list[str]:
    """Return what is wrong with the shares of a split.

    Args:
        val_fraction: Share of the slides for validation.
        test_fraction: Share of the slides for the test, 0 for none.

    Returns:
        One sentence a fault; empty if there is none.
    """
    faults = []
    if not 0 < val_fraction < 1:
        faults.append(f"data.val_fraction={val_fraction} must be above 0 and below 1: the threshold is chosen on it")
    if not 0 <= test_fraction < 1:
        faults.append(f"data.test_fraction={test_fraction} must be at least 0 (no test) and below 1")
    if not faults and val_fraction + test_fraction >= 1:
        faults.append(
            f"data.val_fraction + data.test_fraction is {val_fraction + test_fraction:g}: it must be below 1, as "
            "the rest is for training"
        )
    return faults


def split_slides(
    records: Sequence[SlideRecord],
    *,
    seed: int,
    val_fraction: float,
    test_fraction: float,
    stratify_by: str | None = None,
) -> dict[str, Split]:
    """Split slides into training, validation and test; a group is always in one split.

    scikit-learn's `StratifiedGroupKFold` makes folds, as many as make both shares whole numbers of folds (to within
    0.01). Each split gets its number of folds. Strata are provider × grade. If the largest stratum has fewer slides
    than there are folds, strata are provider × cancer, then provider, then none. With `stratify_by` they are provider ×
    value of that column, then the value, then provider, then none.

    tests/test_splits.py checks how close the shares are, over thousands of random tables; this is not proven. A fold,
    and each stratum in it, differs by at most the largest group and one slide. A split differs by at most the largest
    group, one slide a stratum, and 1 % of all. The split depends on the ids and on numpy's `RandomState(seed)`, whose
    shuffle is the same in all versions of numpy.

    Args:
        records: The slides; their order does not matter.
        seed: Seed of the shuffle.
        val_fraction: Share for validation, over 0.
        test_fraction: Share for the test; 0 for no test.
        stratify_by: Column of the table with classes, in place of the grade.

    Returns:
        Slide id → `"train"`, `"val"` or `"test"`, by slide id.

    Raises:
        ManifestError: If the shares are out of range, or a split would be empty.
    """
    if faults := check_fractions(val_fraction, test_fraction):
        raise ManifestError("; ".join(faults))
    wanted = [split for split in SPLITS if split != "test" or test_fraction > 0]
    ordered = sorted(records, key=lambda record: record.slide_id)
    count = len({record.group for record in ordered})
    if count < len(wanted):
        raise ManifestError(
            f"{len(ordered)} slides in {count} groups cannot make {', '.join(wanted)}: give more slides, "
            f"or data.test_fraction=0, or train on one slide with data.split=patches"
        )
    folds, val_folds, test_folds = _choose_fold_counts(val_fraction, test_fraction, count)
    names: dict[int, Split] = dict.fromkeys(range(test_folds + val_folds), "val")
    return _assign_folds(ordered, folds, seed, names | dict.fromkeys(range(test_folds), "test"), stratify_by)


def fold_slides(
    records: Sequence[SlideRecord],
    *,
    seed: int,
    folds: int,
    fold: int,
    test: bool = True,
    stratify_by: str | None = None,
) -> dict[str, Split]:
    """Use `fold` of `folds` (from 0) as the test and the next one as validation; a group is always in one split.

    Over all values of `fold`, each slide is in the test once and in validation once. Folds are made as in
    `split_slides`. If `test` is False, `fold` is validation.

    Returns:
        Slide id → `"train"`, `"val"` or `"test"`, by slide id.

    Raises:
        ManifestError: If there are fewer groups than folds, or a split would be empty.
    """
    ordered = sorted(records, key=lambda record: record.slide_id)
    count = len({record.group for record in ordered})
    if count < folds:
        raise ManifestError(
            f"{len(ordered)} slides in {count} groups cannot make data.folds={folds}: give fewer folds or more slides"
        )
    names: dict[int, Split] = {fold: "test", (fold + 1) % folds: "val"} if test else {fold: "val"}
    return _assign_folds(ordered, folds, seed, names, stratify_by)


def _assign_folds(
    ordered: Sequence[SlideRecord], folds: int, seed: int, names: Mapping[int, Split], stratify_by: str | None
) -> dict[str, Split]:
    """Return the split of each slide: that of its fold's number, else `"train"`; refuse an empty split."""
    # Processes that only cut or inspect slides do not need the 120 MiB of scikit-learn.
    from sklearn.model_selection import StratifiedGroupKFold  # noqa: PLC0415

    groups = np.array([record.group for record in ordered])
    splitter = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # A stratum with fewer slides than folds can only be spread over as many folds as it has slides.
        warnings.filterwarnings("ignore", message="The least populated class in y", category=UserWarning)
        shares = list(splitter.split(groups, _choose_strata(ordered, folds, stratify_by), groups))
    split = {
        ordered[index].slide_id: names.get(number, "train")
        for number, (_, members) in enumerate(shares)
        for index in members
    }
    if empty := {"train", *names.values()} - set(split.values()):
        raise ManifestError(
            f"{len(ordered)} slides in {len({record.group for record in ordered})} groups leave "
            f"{', '.join(sorted(empty, key=SPLITS.index))} empty: the groups are too unequal; give more slides, "
            "another data.seed or larger fractions"
        )
    return {record.slide_id: split[record.slide_id] for record in ordered}


def _choose_fold_counts(val_fraction: float, test_fraction: float, groups: int) -> tuple[int, int, int]:
    """Return the number of folds, of folds for validation and of folds for the test."""
    candidates = []
    for folds in range(2 + (test_fraction > 0), min(groups, _MAX_FOLDS) + 1):
        test = max(1, round(test_fraction * folds)) if test_fraction > 0 else 0
        val = max(1, round(val_fraction * folds))
        if folds - test - val < 1:
            continue
        error = max(abs(val / folds - val_fraction), abs(test / folds - test_fraction))
        candidates.append((0.0 if error <= _CLOSE else error, folds, val, test))
    if not candidates:
        raise ManifestError(
            f"{groups} groups cannot be split with data.val_fraction={val_fraction} and "
            f"data.test_fraction={test_fraction} so that one is left for training: give smaller fractions"
        )
    _, folds, val, test = min(candidates)
    return folds, val, test


def _choose_strata(records: Sequence[SlideRecord], folds: int, stratify_by: str | None) -> list[str]:
    """Return the finest strata of which one has a slide for every fold, because the splitter requires that."""
    strata = _STRATA
    if stratify_by is not None:

        def read_class(record: SlideRecord) -> str:
            return record.cells.get(stratify_by, "").strip()

        strata = (lambda record: f"{record.provider} {read_class(record)}", read_class, _STRATA[-1])
    for stratum in strata:
        found = [stratum(record) for record in records]
        if max(Counter(found).values()) >= folds:
            return found
    return [""] * len(records)
