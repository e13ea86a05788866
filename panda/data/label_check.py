"""Check what the labels of slides teach: cancer that the grades promise, and px without a label.

A label in another channel than red, the codes of another provider or an empty mask leave no cancer pixel. A network
would then learn that cancer is benign.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from panda.choices import name_command
from panda.data.manifest import SlideRecord
from panda.data.settings import PatchSettings
from panda.errors import ManifestError
from panda.wsi.annotations.source import is_annotation_file
from panda.wsi.label_codes import describe_label

if TYPE_CHECKING:
    from panda.data.patchset import PatchSet  # loads torch, which processes that cut patches do without

log = logging.getLogger(__name__)

REMEDY = (
    f"`{name_command('audit')}` with the same data names such slides; correct their masks, or leave them out with "
    "data.findings=audit/findings.csv data.exclude=[empty_mask_graded,benign_mask_cancer_grade]"
)
_SHOWN = 3


def require_cancer(split: Literal["train", "val"], patches: PatchSet, records: Sequence[SlideRecord]) -> list[str]:
    """Refuse a split of which no patch has a cancer pixel, unless it is a validation of benign slides.

    A training without a pixel of a class of cancer is refused too.

    Args:
        split: Its name.
        patches: Its patches.
        records: Its slides.

    Returns:
        A note if a validation of benign slides has no cancer, or a validation lacks a class; otherwise nothing.

    Raises:
        ManifestError: If there is no cancer; names what looks like the label, or what to change if no slide has a grade
            of 1 or more. Also if a class is missing in training; names all such classes.
    """
    if (patches.rows.fractions[:, 1] > 0).any():
        return _check_classes(split, patches)
    name = {"train": "training", "val": "validation"}[split]
    graded = [record for record in records if record.isup_grade]
    if not graded:
        text = f"no {name} patch has a cancer pixel, and no {name} slide has a grade of 1 or more"
        if split == "val":
            return [f"{text[0].upper()}{text[1:]}, so neither epoch nor threshold is chosen by a Dice."]
        raise ManifestError(
            f"{text}, so there is nothing to learn: give slides with cancer, or another data.seed or data.splits"
        )
    lines = [f"{record.slide_id!r}: {describe_label(record.mask_path, record.provider)}" for record in graded[:_SHOWN]]
    more = [f"… and {len(graded) - _SHOWN} more"] if len(graded) > _SHOWN else []
    raise ManifestError(
        f"no {name} patch has a cancer pixel, although {len(graded)} of {len(records)} {name} slides have a grade of "
        f"1 or more; {REMEDY}:\n" + "\n".join(f"  - {line}" for line in [*lines, *more])
    )


def _check_classes(split: Literal["train", "val"], patches: PatchSet) -> list[str]:
    """Refuse training patches that lack a class of cancer, and return a note for validation patches that do."""
    classes, shares = patches.rows.settings.classes, patches.rows.class_fractions
    missing = [name for number, name in enumerate(classes.cancer_names) if not shares[:, number].any()]
    if not missing or classes.is_binary:
        return []
    if split == "val":
        return [f"No validation patch has a pixel of {', '.join(missing)}, so no Dice of it is known."]
    patterns = sorted(pattern for name in missing for pattern in classes.patterns[name])
    raise ManifestError(
        f"no training patch has a pixel of {', '.join(missing)} (Gleason pattern {', '.join(map(str, patterns))}), "
        "so it cannot be learned. Give slides with it whose label map has patterns, or another data.seed or "
        "data.splits. Or let another class in the file of task.classes hold its pattern, such as high: [4, 5]"
    )


def describe_contradiction(split: str, slides: Sequence[str], count: int) -> str:
    """Return how many of the `count` slides of a split contradict their grade, with the first of them."""
    shown = ", ".join(map(repr, slides[:_SHOWN])) + " …" * (len(slides) > _SHOWN)
    return (
        f"{len(slides)} of {count} {split} slides have a grade of 1 or more and no labelled cancer ({shown}). {REMEDY}"
    )


def warn_of_unlabelled(records: Sequence[SlideRecord], settings: PatchSettings) -> None:
    """Warn if px without an annotation are said to be unlabelled, and would be learned as no cancer."""
    drawn = [record for record in records if record.mask_path is not None and is_annotation_file(record.mask_path)]
    unlabelled = [record.slide_id for record in drawn if 0 in settings.find_label_map(record.provider).unlabelled]
    if unlabelled and not settings.ignore_background:
        log.warning(
            "%d slides have annotations (%s, …), and what they leave out is unlabelled: it is learned as no cancer, "
            "unless data.ignore_background=true",
            len(unlabelled),
            unlabelled[0],
        )
