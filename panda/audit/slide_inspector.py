"""A look at one slide and its mask: what is seen, and what is found wrong."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from panda.audit.mask_codes import count_codes, counted_level
from panda.audit.near_duplicates import tissue_hashes
from panda.audit.readability import SMALL_PX, unreadable
from panda.audit.sharpness import BLURRED, measure_sharpness
from panda.audit.slide_table import TableRow
from panda.data.findings import Finding
from panda.errors import MaskError, SlideError
from panda.wsi.geometry import mean_mpp
from panda.wsi.label_maps import known_label_maps
from panda.wsi.label_mask import LabelMask
from panda.wsi.mpp import MPP_MAX, MPP_MIN
from panda.wsi.slide import Slide, SlideOptions
from panda.wsi.tiff.pyramid import TiffPyramid
from panda.wsi.tiff.tables import CutShortError
from panda.wsi.tissue import Survey, survey

THUMBNAIL_PX = 512
BLURRED_SLIDE = 0.5
"""Share of blurred windows from which on a slide counts as blurred."""

ON_TISSUE = 0.5
"""A mask of which less than this share of what it labels lies on tissue does not fit its slide."""

_BLOCK = 4096  # bytes
_BLOCKS = 16


class Look:
    """A slide being looked at: `seen` fills with the fields of `Inspection`."""

    def __init__(self, row: TableRow, options: SlideOptions, deep: bool) -> None:
        self.row, self.options, self.deep = row, options, deep
        self.seen: dict[str, Any] = {}
        self.findings: list[Finding] = []
        self.thumbnail: NDArray[np.uint8] | None = None
        self.slide: Slide | None = None
        self.survey: Survey | None = None
        self.seed = int.from_bytes(hashlib.blake2b(row.slide_id.encode(), digest_size=8).digest())

    def found(self, finding: str, value: str) -> None:
        """Note a finding."""
        self.findings.append(Finding(self.row.slide_id, finding, value))

    def at_slide(self, path: Path) -> None:
        """Look at the slide."""
        if not path.is_file():
            self.found("missing_slide", f"{path}: there is no such file")
            return
        try:
            self.seen["file_bytes"], self.seen["digest"] = path.stat().st_size, quick_digest(path)
            slide = self.options.open(path)
        except (SlideError, OSError) as error:
            cut = isinstance(error.__cause__, CutShortError)
            self.found("unreadable_region" if cut else "unopenable", str(error))
            return
        with slide:
            self.slide = slide
            self._tables(slide)
            if (fault := unreadable(slide, seed=self.seed, deep=self.deep)) is not None:
                self.found("unreadable_region", fault)
            try:
                self._pixels(slide)
            except SlideError as error:
                if fault is None:
                    self.found("unreadable_region", str(error))

    def _tables(self, slide: Slide) -> None:
        """What the slide says of itself."""
        self.seen |= {
            "level_dimensions": slide.level_dimensions,
            "downsamples": slide.level_downsamples,
            "mpp": slide.mpp,
            "mpp_source": slide.mpp_source,
            "reader": slide.reader_name,
            "vendor": slide.vendor,
        }
        if slide.stated_mpp is None:
            self.found("mpp_missing", slide.mpp_note)
        elif not all(MPP_MIN <= value <= MPP_MAX for value in slide.stated_mpp):
            self.found("mpp_nonsense", slide.mpp_note)
        odd = [level for level in range(len(slide.level_dimensions)) if level not in slide.usable_levels]
        if odd:
            sizes = ", ".join(f"{level} of {'x'.join(map(str, slide.level_dimensions[level]))}" for level in odd)
            self.found("unusual_levels", f"level {sizes} px: no uniform shrinking of {slide.dimensions}")
        elif len(slide.level_dimensions) == 1 and math.prod(slide.dimensions) > SMALL_PX:
            self.found("unusual_levels", f"{slide.dimensions[0]} x {slide.dimensions[1]} px and no smaller level")

    def _pixels(self, slide: Slide) -> None:
        """What is to be seen on the slide.

        Raises:
            SlideError: It cannot be read.
        """
        self.survey = view = survey(slide)
        self.thumbnail = _thumbnail(view.overview)
        area = view.resolution.pixel_area_um2
        ink = view.picture.pen(view.overview)
        self.seen["pen_fraction"] = float(ink.mean())
        if ink.any():
            how_much = "" if area is None else f", {float(ink.sum()) * area / 1e6:.2f} mm²"
            self.found("pen_marks", f"ink on {ink.mean():.2%} of the slide{how_much}")
        if (tissue := view.tissue) is None:
            self.found("no_tissue", f"nothing but glass, ink, lines and specks at {view.resolution.width} x "
                                    f"{view.resolution.height} px")  # fmt: skip
            return
        self.seen |= {
            "tissue_how": tissue.how,
            "hashes": tissue_hashes(view.overview, tissue.mask),
            "tissue_fraction": tissue.fraction,
            "tissue_mm2": None if area is None else float(tissue.mask.sum()) * area / 1e6,
        }
        focus = measure_sharpness(slide, tissue, seed=self.seed)
        if focus is not None:
            self.seen |= {"sharpness": focus.median, "blurred": focus.blurred}
            if focus.blurred >= BLURRED_SLIDE:
                self.found(
                    "blur",
                    f"{focus.blurred:.0%} of {focus.windows} windows of tissue are out of focus (sharpness below "
                    f"{BLURRED}, its median is {focus.median:.2f})",
                )

    def at_mask(self, path: Path) -> None:
        """Look at the mask."""
        if not path.is_file():
            self.found("missing_mask", f"{path}: there is no such file")
            return
        try:
            tiff = TiffPyramid(path, red_only=True)
        except (OSError, ValueError) as error:
            self.found("unopenable_mask", f"{path}: {error}")
            return
        try:
            self.seen["mask_dimensions"] = tiff.level_dimensions[0]
            mask = self._fitting(path, tiff)
            self._codes(tiff, mask)
            if mask is not None:
                self._place(mask)
        except (OSError, ValueError, MaskError) as error:
            self.found("unopenable_mask", f"{path}: {error}")
        finally:
            tiff.close()

    def _fitting(self, path: Path, tiff: TiffPyramid) -> LabelMask | None:
        """The mask in its slide's frame; None where there is no slide, or it is another's."""
        if self.slide is None:
            return None
        try:
            return LabelMask(path, self.slide, self.row.provider, known_label_maps(), tiff)
        except MaskError as error:
            self.found("mask_geometry", str(error))
            return None

    def _codes(self, tiff: TiffPyramid, mask: LabelMask | None) -> None:
        """Count codes, and compare them with the provider's and with the grade."""
        um = None
        if mask is not None and self.slide is not None and self.slide.mpp is not None:
            um = mean_mpp(self.slide.mpp) * math.sqrt(mask.frame.sx * mask.frame.sy)
        level = 0 if self.deep else counted_level(tiff, um)
        counts = count_codes(tiff, level)
        labels = known_label_maps().get(self.row.provider)
        grade = self.row.grade
        # That there is no cancer is said of level 0 only: the coarser ones can miss a sliver.
        while labels is not None and grade and level and not counts[list(labels.cancer)].any():
            level -= 1
            counts = count_codes(tiff, level)
        self.seen["mask_level"] = level
        self.seen["mask_codes"] = {str(code): int(counts[code]) for code in np.flatnonzero(counts)}
        if labels is None:
            return
        if unknown := [code for code in np.flatnonzero(counts).tolist() if code not in labels.names]:
            said = ", ".join(f"{code} ({counts[code]} px)" for code in unknown)
            self.found("unknown_mask_code", f"{said} at level {level}; {self.row.provider} has {sorted(labels.names)}")
        unlabelled = int(counts[list(labels.unlabelled)].sum())
        cancer, labelled = int(counts[list(labels.cancer)].sum()), int(counts.sum()) - unlabelled
        self.seen["cancer_fraction"] = cancer / labelled if labelled else None
        size = ""
        if um is not None:
            scale = math.prod(tiff.level_dimensions[0]) / math.prod(tiff.level_dimensions[level])
            self.seen["cancer_mm2"] = cancer * um * um * scale / 1e6
            size = f", {self.seen['cancer_mm2']:.4g} mm²"
        if grade and not labelled:
            self.found("empty_mask_graded", f"isup_grade is {grade}, the mask labels no px")
        elif grade and not cancer:
            self.found("benign_mask_cancer_grade", f"isup_grade is {grade}, the mask holds no cancer at level 0")
        elif grade == 0 and cancer:
            share = f"{cancer / labelled:.2%} of what the mask labels is cancer{size}"
            self.found("cancer_mask_benign_grade", f"isup_grade is 0, {share}")

    def _place(self, mask: LabelMask) -> None:
        """Check that what the mask labels is on tissue."""
        if self.survey is None or self.survey.tissue is None:
            return
        codes, labels = mask.overview(self.survey.resolution), known_label_maps().get(self.row.provider)
        # Code 0 is glass too, even if it says that there is no cancer.
        labelled = ~np.isin(codes, (0, *(labels.unlabelled if labels is not None else ())))
        if not labelled.any():
            return
        self.seen["labelled_on_tissue"] = on_tissue = float(self.survey.tissue.mask[labelled].mean())
        if on_tissue < ON_TISSUE:
            self.found("mask_geometry", f"only {on_tissue:.0%} of what the mask labels lies on tissue")


def _thumbnail(overview: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture of at most `THUMBNAIL_PX` a side."""
    height, width = overview.shape[:2]
    shrink = min(1.0, THUMBNAIL_PX / max(height, width))
    size = max(1, round(width * shrink)), max(1, round(height * shrink))
    return np.asarray(cv2.resize(overview, size, interpolation=cv2.INTER_AREA), np.uint8)


def quick_digest(path: Path) -> str:
    """Digest a file's size and `_BLOCKS` blocks of 4 KiB, evenly spread from its beginning to its end.

    Files of other digests differ; those of the same one mostly are the same, which `same_files` tells.

    Raises:
        OSError: The file cannot be read.
    """
    size = path.stat().st_size
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    with path.open("rb") as file:
        for at in np.linspace(0, max(0, size - _BLOCK), _BLOCKS).astype(np.int64).tolist():
            file.seek(at)
            digest.update(file.read(_BLOCK))
    return digest.hexdigest()
