"""Kinds of findings: everything that can be wrong with a slide of a data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

from panda.data.manifest import SlideRecord

Severity = Literal["error", "warning", "note"]
"""`error`: training refuses the table, the slide or its mask as it is. `warning`: training would use it, and it may
mislead. `note`: worth a look."""


@dataclass(frozen=True)
class FindingKind:
    """One kind of finding, with its meaning and its remedy in one or two sentences each."""

    severity: Severity
    meaning: str
    remedy: str


_error, _warning, _note = (partial(FindingKind, severity) for severity in get_args(Severity))

FINDINGS: Mapping[str, FindingKind] = {
    "bad_id": _error(
        "The image_id is empty or not a plain file name.",
        "Correct the row, or remove it from the table.",
    ),
    "bad_file": _error(
        "A cell for a file is empty, names no file or one of another row, or both a mask and an annotation are given.",
        "Correct the row, or remove it from the table.",
    ),
    "missing_patient": _error(
        "The row has no patient, though the table has a column for it.",
        "Fill in patient. If it is unknown, give the slide a patient of its own.",
    ),
    "unknown_provider": _error(
        "The row's data_provider has no label map.",
        "Correct data_provider, or remove the row from the table.",
    ),
    "bad_grade": _error(
        "The row's isup_grade is not a whole number from 0 to 5.",
        "Correct isup_grade, or leave it empty if it is unknown.",
    ),
    "missing_grade": _note(
        "The row has no isup_grade.",
        "Segmentation needs none. Fill in isup_grade, or leave the slide out of grading.",
    ),
    "bad_gleason": _note(
        "The row's gleason_score is neither a score such as 3+4 nor negative nor 0+0.",
        "Correct gleason_score; the grade itself is taken from isup_grade.",
    ),
    "duplicate_row": _error(
        "An earlier row has the same image_id.",
        "Keep one row for each image_id. If they differ, ask the authors of the table which one is right.",
    ),
    "contradicting_row": _warning(
        "The ISUP grade does not match the Gleason score.",
        "Correct the row if you know which one is right, otherwise leave the slide out of grading.",
    ),
    "missing_slide": _error(
        "The table lists the slide, but its file is missing.",
        "Download the file, or leave the slide out.",
    ),
    "unopenable": _error(
        "The slide's file exists, but no reader can open it.",
        "Download the file again, or leave the slide out.",
    ),
    "unreadable_region": _error(
        "The slide opens, or its tables can be read, but some of its pixels are missing or cannot be decoded.",
        "Download the file again, or leave the slide out.",
    ),
    "no_tissue": _error(
        "The slide shows only glass, ink, lines and specks.",
        "Look at the slide; leave it out if it is blank.",
    ),
    "missing_mask": _warning(
        "The slide has no label mask.",
        "Leave the slide out of segmentation, because a missing mask does not mean no cancer. Grading needs no mask.",
    ),
    "unopenable_mask": _error(
        "The mask's file exists, but it cannot be opened or some of it cannot be decoded.",
        "Download the mask again, or leave the slide out of segmentation.",
    ),
    "unknown_mask_code": _error(
        "The mask has codes that its provider does not use.",
        "Check that data_provider is right and that the mask has lossless compression, otherwise leave the slide out.",
    ),
    "faulty_annotations": _error(
        "The annotation file cannot be used: it cannot be read, has areas that are none, are outside the slide or have "
        "an unknown class, belongs to another slide, or is empty.",
        "Correct what the finding lists in the program that drew it, or leave the slide out of segmentation.",
    ),
    "repaired_annotations": _note(
        "Some annotations were repaired, such as an outline that crosses itself, or ignored, such as a point.",
        "Look at the areas that the finding names; correct them if they are not what was meant.",
    ),
    "mask_geometry": _error(
        "The mask has another shape than its slide, so it is not the mask of this slide.",
        "Check which mask belongs to the slide, otherwise leave the slide out of segmentation.",
    ),
    "averaged_mask": _error(
        "Smaller levels of the mask have codes that its larger levels do not have there: they are means of codes.",
        "Write the mask again with levels of codes, for example by vips with region-shrink=mode (docs/your_slides.md).",
    ),
    "turned_mask": _warning(
        "The labels fit the tissue much better if the mask is turned or mirrored.",
        "Look at the slide and its mask; turn the mask, or leave the slide out of segmentation.",
    ),
    "empty_mask_graded": _warning(
        "The slide has a grade of 1 or more, but its mask has no labels.",
        "Leave the slide out of segmentation: the network would learn its unlabelled cancer as benign.",
    ),
    "benign_mask_cancer_grade": _warning(
        "The slide has a grade of 1 or more, but its mask labels only benign tissue.",
        "Leave the slide out of segmentation, unless the table is wrong.",
    ),
    "cancer_mask_benign_grade": _warning(
        "The slide has grade 0, but its mask labels cancer.",
        "Look at the slide: the grade or the mask is wrong. Leave the slide out if you cannot decide which.",
    ),
    "mpp_missing": _warning(
        "The slide has no µm/px.",
        "Set data.mpp_override if you know it. Otherwise areas in mm² are unknown and data.mpp cannot be used.",
    ),
    "mpp_nonsense": _warning(
        "The slide has a µm/px that no scanner has.",
        "Set data.mpp_override if you know it. Otherwise areas in mm² are unknown and data.mpp cannot be used.",
    ),
    "mpp_anisotropic": _warning(
        "The slide's µm/px differs along x and y by over 2 %, so the network sees its tissue stretched.",
        "Check µm/px; leave the slide out if its px are not square.",
    ),
    "black_background": _warning(
        "A part of the slide is plain black, where nothing was scanned.",
        "Export the slide with white there: networks learn white beside tissue, and maps can be wrong near the black.",
    ),
    "mpp_unlike_provider": _note(
        "The slide's µm/px differs from that of nearly all other slides of its provider.",
        "Use data.mpp instead of data.level; check the value if it differs by much.",
    ),
    "unusual_levels": _note(
        "The slide's pyramid differs from nearly all others of its provider, or lacks usable levels.",
        "Use data.mpp instead of data.level; reading is slow if small levels are missing.",
    ),
    "pen_marks": _note(
        "The slide has pen marks.",
        "Look at the slide: ink can hide tissue, and a network can learn ink beside cancer.",
    ),
    "blur": _warning(
        "The tissue is out of focus.",
        "Look at the slide; leave it out if single nuclei cannot be seen.",
    ),
    "exact_duplicate": _warning(
        "Another slide has the same file content.",
        "Keep one of them, or set data.groups so that all of them are in the same split.",
    ),
    "near_duplicate": _warning(
        "Another slide shows nearly the same tissue.",
        "Set data.groups so that all of them are in the same split, and compare their grades.",
    ),
}
"""Every kind of finding by its name in `data.exclude` and in the tables of the audit, in display order."""

REFUSED_ROWS = ("bad_id", "bad_file", "missing_patient", "unknown_provider", "bad_grade", "duplicate_row")
"""Findings whose rows `panda.data.manifest.read_manifest` refuses: the table must be corrected.

It also refuses bad and contradicting Gleason scores in a table of another layout than PANDA's.
"""

FILE_FINDINGS: Mapping[str, Callable[[SlideRecord], bool]] = {
    "missing_slide": lambda record: not record.image_path.is_file(),
    "missing_grade": lambda record: record.isup_grade is None,
    "missing_mask": lambda record: record.mask_path is None or not record.mask_path.is_file(),
}
"""Findings that the table and the file names show: `data.exclude` needs no audit for them."""

MISSING = "missing:"
"""Begins the name of a finding that a column of the table shows: `missing:COLUMN`, the slide has no value there."""


def find_file_check(name: str) -> Callable[[SlideRecord], bool] | None:
    """Return whether a slide has a finding that needs no audit; None for a finding of an audit."""
    if name.startswith(MISSING):
        column = name.removeprefix(MISSING)
        return lambda record: not record.read_cell(column)
    return FILE_FINDINGS.get(name)


@dataclass(frozen=True)
class Finding:
    """A fault of one slide: its name in `FINDINGS`, and the details in words and numbers."""

    slide_id: str
    finding: str
    value: str

    def __post_init__(self) -> None:
        assert self.finding in FINDINGS, f"{self.finding} is not in FINDINGS"

    @property
    def kind(self) -> FindingKind:
        """Severity, meaning and remedy."""
        return FINDINGS[self.finding]
