"""Inspect one slide and its mask: their properties and their faults."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from panda.audit.annotations import count_drawn_codes
from panda.audit.inspection import Inspection
from panda.audit.mask_codes import choose_level, count_codes
from panda.audit.mask_fit import find_turn
from panda.audit.mask_levels import find_averaging
from panda.audit.near_duplicates import digest_quickly
from panda.audit.readability import SMALL_PX, find_unreadable
from panda.audit.sharpness import BLURRED, measure_sharpness
from panda.audit.tissue_hashes import hash_tissue
from panda.data.findings import Finding
from panda.data.slide_rows import SlideRow
from panda.errors import MaskError, SlideError, raise_exhaustion
from panda.wsi.annotations.source import is_annotation_file
from panda.wsi.geometry import mean_mpp
from panda.wsi.label_codes import describe_label
from panda.wsi.label_maps import LabelMap, get_label_maps
from panda.wsi.label_source import LabelSource
from panda.wsi.mask_file import MaskFile
from panda.wsi.mask_image import CodeImage, open_codes
from panda.wsi.mpp import is_anisotropic, is_plausible
from panda.wsi.slide import Slide, SlideOptions
from panda.wsi.tiff.tables import CutShortError
from panda.wsi.tissue import BLACK_SLIDE, Survey, survey

THUMBNAIL_PX = 512
BLURRED_SLIDE = 0.5
"""Least share of blurred windows of a blurred slide."""

ON_TISSUE = 0.5
"""Least share of labelled px of a mask that are on tissue, if the mask fits its slide."""


class SlideInspector:
    """Inspect a slide, then its mask; `inspection` grows with each. See `inspect_slide`."""

    def __init__(self, row: SlideRow, options: SlideOptions, deep: bool, labels: LabelMap | None = None) -> None:
        self.row, self.options, self.deep = row, options, deep
        self.inspection = Inspection(row.slide_id, row.provider)
        self.labels = labels
        self.thumbnail: NDArray[np.uint8] | None = None
        self.slide: Slide | None = None
        self.survey: Survey | None = None
        self.seed = int.from_bytes(hashlib.blake2b(row.slide_id.encode(), digest_size=8).digest())

    def add_finding(self, finding: str, value: str) -> None:
        """Add a finding to the inspection."""
        found = Finding(self.row.slide_id, finding, value)
        self.inspection = replace(self.inspection, findings=(*self.inspection.findings, found))

    def inspect_image(self, path: Path) -> None:
        """Inspect the file of the slide; a fault is a finding and not an error."""
        if not path.is_file():
            self.add_finding("missing_slide", f"{path}: there is no such file")
            return
        try:
            size, digest = path.stat().st_size, digest_quickly(path)
            self.inspection = replace(self.inspection, file_bytes=size, digest=digest)
            slide = self.options.open(path)
        except (SlideError, OSError) as error:
            raise_exhaustion(error)
            cut = isinstance(error.__cause__, CutShortError)
            self.add_finding("unreadable_region" if cut else "unopenable", str(error))
            return
        with slide:
            self.slide = slide
            self._read_properties(slide)
            if (fault := find_unreadable(slide, seed=self.seed, deep=self.deep)) is not None:
                self.add_finding("unreadable_region", fault)
            try:
                self._inspect_pixels(slide)
            except SlideError as error:
                if fault is None:
                    self.add_finding("unreadable_region", str(error))

    def _read_properties(self, slide: Slide) -> None:
        """Read levels and µm/px from the metadata of the slide."""
        self.inspection = replace(
            self.inspection,
            level_dimensions=slide.level_dimensions,
            downsamples=slide.level_downsamples,
            mpp=slide.mpp,
            mpp_source=slide.mpp_source,
            reader=slide.reader_name,
            vendor=slide.vendor,
        )
        if slide.stated_mpp is None:
            self.add_finding("mpp_missing", slide.mpp_note)
        elif not is_plausible(*slide.stated_mpp):
            self.add_finding("mpp_nonsense", slide.mpp_note)
        elif is_anisotropic(slide.stated_mpp):
            self.add_finding("mpp_anisotropic", slide.mpp_note)
        odd = [level for level in range(len(slide.level_dimensions)) if level not in slide.usable_levels]
        if odd:
            sizes = ", ".join(f"{level} of {'x'.join(map(str, slide.level_dimensions[level]))}" for level in odd)
            self.add_finding("unusual_levels", f"level {sizes} px: not a uniform reduction of {slide.dimensions}")
        elif len(slide.level_dimensions) == 1 and math.prod(slide.dimensions) > SMALL_PX:
            self.add_finding("unusual_levels", f"{slide.dimensions[0]} x {slide.dimensions[1]} px and no smaller level")

    def _inspect_pixels(self, slide: Slide) -> None:
        """Find tissue, ink and blur on the slide."""
        self.survey = view = survey(slide)
        height, width = view.overview.shape[:2]
        shrink = min(1.0, THUMBNAIL_PX / max(height, width))
        size = max(1, round(width * shrink)), max(1, round(height * shrink))
        self.thumbnail = np.asarray(cv2.resize(view.overview, size, interpolation=cv2.INTER_AREA), np.uint8)
        area = view.resolution.pixel_area_um2
        if view.picture.black >= BLACK_SLIDE:
            self.add_finding("black_background", f"{view.picture.black:.1%} of the slide is plain black")
        ink = view.picture.find_pen(view.overview)
        self.inspection = replace(self.inspection, pen_fraction=float(ink.mean()))
        if ink.any():
            ink_area = "" if area is None else f", {float(ink.sum()) * area / 1e6:.2f} mm²"
            self.add_finding("pen_marks", f"ink on {ink.mean():.2%} of the slide{ink_area}")
        if (tissue := view.tissue) is None:
            at = f"{view.resolution.width} x {view.resolution.height} px"
            self.add_finding("no_tissue", f"only glass, ink, lines and specks at {at}")
            return
        self.inspection = replace(
            self.inspection,
            tissue_how=tissue.how,
            hashes=hash_tissue(view.overview, tissue.mask),
            tissue_fraction=tissue.fraction,
            tissue_mm2=tissue.area_mm2,
        )
        if (focus := measure_sharpness(slide, tissue, seed=self.seed)) is not None:
            self.inspection = replace(self.inspection, sharpness=focus.median, blurred=focus.blurred)
            if focus.blurred >= BLURRED_SLIDE:
                self.add_finding(
                    "blur",
                    f"{focus.blurred:.0%} of {focus.windows} windows of tissue are out of focus (sharpness below "
                    f"{BLURRED}; the median is {focus.median:.2f})",
                )

    def inspect_mask(self, path: Path | None) -> None:
        """Inspect the mask or the annotations, after the slide; a fault is a finding and not an error."""
        if path is None:
            self.add_finding("missing_mask", "the table gives neither a mask nor an annotation")
            return
        if not path.is_file():
            self.add_finding("missing_mask", f"{path}: there is no such file")
            return
        if is_annotation_file(path):
            self._inspect_annotations(path)
            return
        try:
            image = open_codes(path, self.labels)
        except (OSError, ValueError) as error:
            raise_exhaustion(error)
            self.add_finding("unopenable_mask", f"{path}: {error}")
            return
        try:
            self.inspection = replace(self.inspection, mask_dimensions=image.level_dimensions[0])
            mask = self._align_mask(path, image)
            self._inspect_codes(path, image, mask)
            if (averaged := find_averaging(image)) is not None:
                self.add_finding("averaged_mask", averaged)
            if mask is not None:
                self._check_position(mask)
        except (OSError, ValueError, MaskError) as error:
            raise_exhaustion(error)
            self.add_finding("unopenable_mask", f"{path}: {error}")
        finally:
            image.close()

    def _inspect_annotations(self, path: Path) -> None:
        """Inspect annotations, which have a meaning only on their slide and with their label map."""
        if self.slide is None or self.labels is None:
            return
        try:
            drawn = count_drawn_codes(path, self.slide, self.labels)
        except MaskError as error:
            self.add_finding("faulty_annotations", str(error))
            return
        if drawn.source.notes:
            self.add_finding("repaired_annotations", f"{path}: {'; '.join(drawn.source.notes)}")
        codes = {str(code): int(drawn.counts[code]) for code in np.flatnonzero(drawn.counts)}
        self.inspection = replace(self.inspection, mask_codes=codes)
        area_um2 = drawn.resolution.pixel_area_um2
        self._compare_codes(drawn.counts, area_um2, self.labels, lambda: describe_label(path, self.row.provider))
        self._check_position(drawn.source)

    def _align_mask(self, path: Path, image: CodeImage) -> MaskFile | None:
        """Return the mask in the frame of its slide; None if there is no slide, or the mask does not fit it."""
        if self.slide is None:
            return None
        try:
            return MaskFile(path, self.slide, image)
        except MaskError as error:
            self.add_finding("mask_geometry", str(error))
            return None

    def _inspect_codes(self, path: Path, image: CodeImage, mask: MaskFile | None) -> None:
        """Count the codes, and compare them with the label map and with the grade."""
        um = None
        if mask is not None and self.slide is not None and self.slide.mpp is not None:
            um = mean_mpp(self.slide.mpp) * math.sqrt(mask.frame.sx * mask.frame.sy)
        level = 0 if self.deep else choose_level(image, um)
        counts = count_codes(image, level)
        labels, grade = self.labels, self.row.grade
        # Coarser levels can miss a sliver of cancer, so only level 0 can show that there is none.
        while labels is not None and grade and level and not counts[list(labels.cancer)].any():
            level -= 1
            counts = count_codes(image, level)
        codes = {str(code): int(counts[code]) for code in np.flatnonzero(counts)}
        self.inspection = replace(self.inspection, mask_level=level, mask_codes=codes)
        if labels is None:
            return
        if unknown := [code for code in np.flatnonzero(counts).tolist() if code not in labels.names]:
            found = ", ".join(f"{code} ({counts[code]} px)" for code in unknown)
            names = sorted(labels.names)
            self.add_finding("unknown_mask_code", f"{found} at level {level}; {self.row.provider} has {names}")
        area_um2 = None
        if um is not None:
            area_um2 = um * um * math.prod(image.level_dimensions[0]) / math.prod(image.level_dimensions[level])
        self._compare_codes(counts, area_um2, labels, lambda: describe_label(path, self.row.provider))

    def _compare_codes(
        self, counts: NDArray[np.int64], area_um2: float | None, labels: LabelMap, describe: Callable[[], str]
    ) -> None:
        """Compare px of each code, (256,), with the grade; `area_um2` is that of a px, if known."""
        grade = self.row.grade
        unlabelled = int(counts[list(labels.unlabelled)].sum())
        cancer, labelled = int(counts[list(labels.cancer)].sum()), int(counts.sum()) - unlabelled
        area_mm2 = None if area_um2 is None else cancer * area_um2 / 1e6
        share = cancer / labelled if labelled else None
        self.inspection = replace(self.inspection, cancer_fraction=share, cancer_mm2=area_mm2)
        if grade and not labelled:
            self.add_finding("empty_mask_graded", f"isup_grade is {grade}, the mask labels no px: {describe()}")
        elif grade and not cancer:
            self.add_finding("benign_mask_cancer_grade", f"isup_grade is {grade}, no cancer at level 0: {describe()}")
        elif grade == 0 and cancer:
            size = "" if area_mm2 is None else f", {area_mm2:.4g} mm²"
            found = f"{cancer / labelled:.2%} of the labelled px are cancer{size}"
            self.add_finding("cancer_mask_benign_grade", f"isup_grade is 0, {found}")

    def _check_position(self, mask: LabelSource) -> None:
        """Check that the labelled px of the mask are on tissue."""
        if self.survey is None or self.survey.tissue is None:
            return
        view = self.survey.resolution
        # Code 0 is glass too, even if its name is a tissue without cancer.
        unlabelled = (0, *(self.labels.unlabelled if self.labels is not None else ()))
        labelled = ~np.isin(mask.read(view, (0, 0), view.size)[0], unlabelled)
        if not labelled.any():
            return
        on_tissue = float(self.survey.tissue.mask[labelled].mean())
        self.inspection = replace(self.inspection, labelled_on_tissue=on_tissue)
        if (turned := find_turn(labelled, self.survey.tissue.mask)) is not None:
            self.add_finding("turned_mask", turned)
        elif on_tissue < ON_TISSUE:
            self.add_finding("mask_geometry", f"only {on_tissue:.0%} of the labelled px are on tissue")


def inspect_slide(
    row: SlideRow, options: SlideOptions = SlideOptions(), *, deep: bool = False, empty_means_benign: bool = False
) -> tuple[Inspection, NDArray[np.uint8] | None]:
    """Inspect a slide and its mask, each opened once. A part that cannot be read is a finding and not an error.

    Faults of the row are left to `check_table`. With `deep` every tile of the slide is decoded and the mask is counted
    at level 0, which takes as long as reading all. With `empty_means_benign` an annotation file without any object
    means a slide without cancer.

    Returns:
        The inspection, and a picture of the slide, (h, w, 3) uint8 RGB of at most 512 px a side. The picture is None
        if the slide cannot be read.
    """
    labels = get_label_maps().get(row.provider)
    if labels is not None and empty_means_benign:
        labels = labels.model_copy(update={"empty_means_benign": True})
    inspector = SlideInspector(row, options, deep, labels)
    if row.has_file:
        inspector.inspect_image(row.image_path)
        inspector.inspect_mask(row.mask_path)
    return inspector.inspection, inspector.thumbnail
