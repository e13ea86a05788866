"""Bags of patients: the slides of a patient, their label, and how the tiles of a bag are divided over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

from panda.data.failures import Failure
from panda.data.manifest import GroupKind, SlideRecord, format_list
from panda.data.targets import TargetSpec
from panda.errors import ManifestError

BagUnit = Literal["slide", "patient"]
"""Whose tiles form one bag."""
PatientLabel = Literal["same", "highest"]
"""The label of a patient: that of all its slides, which must agree, or the highest of them."""

T = TypeVar("T")


def name_bag(record: SlideRecord, unit: BagUnit) -> str:
    """Return the name of the bag of a slide: its id, or its patient, who may only be known by the slide's group."""
    return record.slide_id if unit == "slide" else record.patient or record.group


def group_bags(items: Sequence[T], get_record: Callable[[T], SlideRecord], unit: BagUnit) -> dict[str, list[T]]:
    """Return the items of each bag, by slide id; bags are in the order of their first item."""
    found: dict[str, list[T]] = {}
    for item in items:
        found.setdefault(name_bag(get_record(item), unit), []).append(item)
    return {name: sorted(own, key=lambda item: get_record(item).slide_id) for name, own in found.items()}


def divide_tiles(k: int, slides: int) -> list[int]:
    """Return the most tiles of each slide of a bag of k: equal parts, of which the first ones have one more.

    A slide with fewer tiles does not pass its part on, so the tiles of a slide do not depend on those of another.
    """
    whole, rest = divmod(k, slides)
    return [whole + (number < rest) for number in range(slides)]


def divide_over_bags(records: Sequence[SlideRecord], k: int, unit: BagUnit) -> dict[str, int]:
    """Return the most tiles of each slide, by id.

    Raises:
        ManifestError: If a bag has more slides than tiles.
    """
    bags = group_bags(records, lambda record: record, unit)
    name, most = max(bags.items(), key=lambda pair: len(pair[1]), default=("", []))
    if len(most) > k:
        raise ManifestError(
            f"tiles.k={k}: patient {name!r} has {len(most)} slides, and each needs a tile; give tiles.k={len(most)} or "
            "more"
        )
    parts = (zip(own, divide_tiles(k, len(own)), strict=True) for own in bags.values())
    return {record.slide_id: part for bag in parts for record, part in bag}


def choose_labelled(records: Sequence[SlideRecord], target: TargetSpec) -> SlideRecord:
    """Return the slide of a bag that has the highest label, the first of them."""
    return max(records, key=lambda record: target.read_values(record) or ())


def check_patients(
    records: Sequence[SlideRecord], groups_are: GroupKind, target: TargetSpec, rule: PatientLabel, k: int
) -> None:
    """Refuse slides that cannot form the bags of patients.

    Args:
        records: The slides.
        groups_are: The kind of their groups, see `Selection`.
        target: What is learned.
        rule: How the label of a patient follows from those of its slides.
        k: Most tiles of a bag.

    Raises:
        ManifestError: If patients are unknown, have different labels, or have more slides than tiles.
    """
    if groups_are != "patient":
        raise ManifestError(
            "task.bag=patient: the patients of the slides are unknown; give the table a column patient, or "
            "data.groups=FILE with image_id and patient, or task.bag=slide"
        )
    if rule == "same":
        require_common_labels(records, target)
    divide_over_bags(records, k, "patient")


def require_common_labels(records: Sequence[SlideRecord], target: TargetSpec) -> None:
    """Refuse patients whose slides have different labels.

    Raises:
        ManifestError: If there are any; the message names patients, slides and labels.
    """
    faults = []
    for name, own in group_bags(records, lambda record: record, "patient").items():
        labels = {record.slide_id: target.read_values(record) or () for record in own}
        if len({*labels.values()}) > 1:
            each = ", ".join(f"{slide_id}: {describe_label(values, target)}" for slide_id, values in labels.items())
            faults.append(f"{name} ({each})")
    if faults:
        remedy = "correct the table"
        if has_highest(target):
            remedy += ", or give task.patient_label=highest, which takes the highest of a patient's slides"
        count = f"{len(faults)} patient{'s have' if len(faults) > 1 else ' has'}"
        raise ManifestError(format_list(f"{count} slides with different labels; {remedy}", faults))


def has_highest(target: TargetSpec) -> bool:
    """Return whether the highest label of several slides means something: for grades and ordered classes."""
    return target.is_grade or target.kind == "ordinal"


def describe_label(values: Sequence[float], target: TargetSpec) -> str:
    """Write a label: a class, a number, or time and event."""
    return " ".join(map(target.describe, values)) if target.has_classes else " ".join(f"{value:g}" for value in values)


def list_incomplete(
    records: Sequence[SlideRecord], used: Sequence[SlideRecord], unit: BagUnit, stage: str
) -> list[Failure]:
    """Return a failure for each slide that can be used, though another one of its bag cannot.

    Args:
        records: The slides of a split.
        used: Those that can be used.
        unit: Whose tiles form one bag.
        stage: Name of the step.
    """
    known = {record.slide_id for record in used}
    lost = {name_bag(record, unit): record.slide_id for record in records if record.slide_id not in known}
    return [
        Failure(
            record.slide_id,
            stage,
            "ManifestError",
            f"slide {lost[name]} of patient {name} cannot be used, so the patient is left out",
        )
        for record in used
        if (name := name_bag(record, unit)) in lost
    ]
