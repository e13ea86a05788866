"""Write the files of one slide whose canvas is closed: figures, pictures and exports."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from panda.data.mapped_slide import RESULT_FILE
from panda.data.slide_entry import FileIdentity
from panda.files import remove_leftovers, sync_entry, sync_folders_once
from panda.inference.canvas_store import Canvas
from panda.inference.error_pictures import ErrorPainter, remove_errors, write_errors
from panda.inference.error_regions import SlideErrors, find_errors
from panda.inference.geojson import Features, write_geojson
from panda.inference.grade import Grade, RuleGrade
from panda.inference.legends import ColourMap
from panda.inference.ome_tiff import write_ome_tiff
from panda.inference.polygons import Outlines
from panda.inference.quantify import Measurements, Quantification, QuantifySettings, slide_quantification
from panda.inference.rule_grade import RuleGrader
from panda.inference.slide_images import Overview, write_attention, write_heatmap, write_overlay, write_view
from panda.inference.slide_result import LabelMetrics, Provenance, SlidePaths, SlideResult
from panda.inference.slide_score import SCORE_FILE, SlideScore, write_score
from panda.stored import InSample
from panda.wsi.geometry import Resolution
from panda.wsi.label_maps import LabelMap
from panda.wsi.label_mask import LabelMask
from panda.wsi.levels import describe_frame
from panda.wsi.slide import Slide
from panda.wsi.tissue import TissueMap

_KEPT_BYTES = 64 * 2**20
"""Bytes of a decoded canvas in memory: most are decoded once."""


@dataclass(frozen=True)
class SlideFiles:
    """All that the files of a slide are made from. It can be pickled to another process.

    Attributes:
        slide: The slide.
        tissue: Its tissue.
        folder: Gets the files.
        canvas_path: The zarr folder of the canvas, locked against other runs by the process that mapped the slide.
        threshold: Probability at which a pixel counts as tumour.
        quantify: Limits of the clean-up.
        colour_map: Colours of the pictures.
        features: What a feature of `regions.geojson` is.
        notes: What a reader of the figures must know of the scan.
        in_sample: Role of the slide when the networks were trained.
        provenance: What made the result.
        label_maps: Label maps of the checkpoint, by provider.
        label: The label mask, if there is one.
        score: The score against the mask.
        against_label: Metrics against the mask; the difference of the areas is added when the tumour is measured.
        grade: The grade, None without a grader, or if the slide could not be graded.
        grade_note: Why a slide has no grade although there is a grader.
        rule_grader: Grades the slide by the areas of its patterns; None with one class of cancer.
        ignore_background: Whether tissue with an unlabelled code does not count in the score.
    """

    slide: Slide
    tissue: TissueMap
    folder: Path
    canvas_path: Path
    threshold: float
    quantify: QuantifySettings
    colour_map: ColourMap
    notes: tuple[str, ...]
    in_sample: InSample | None
    provenance: Provenance
    label_maps: Mapping[str, LabelMap]
    label: LabelMask | None = None
    against_label: LabelMetrics | None = None
    score: SlideScore | None = None
    grade: Grade | None = None
    grade_note: str | None = None
    rule_grader: RuleGrader | None = None
    features: Features = "regions"
    ignore_background: bool = False

    def write(self) -> SlideResult:
        """Write the files and return the result.

        The result is removed first and written last. If it exists, all other files exist and have its provenance.
        """
        with contextlib.ExitStack() as stack:
            slide = stack.enter_context(self.slide)
            if self.label:
                stack.callback(self.label.close)
            canvas = Canvas.open(self.canvas_path, _KEPT_BYTES)
            remove_leftovers(self.folder)  # the lock of the canvas keeps other writers out
            found = slide_quantification(
                canvas, slide, canvas.resolution, self.threshold, settings=self.quantify, tissue=self.tissue
            )
            with contextlib.suppress(FileNotFoundError):
                (self.folder / RESULT_FILE).unlink()
                sync_entry(self.folder)  # no file of another result may be on the disk before
            outlines = found.outlines
            with sync_folders_once(), ThreadPoolExecutor(1) as beside:
                # The heatmap takes as long as all other files.
                heatmap = beside.submit(copy_context().run, self._write_heatmap, canvas, found, outlines)
                view = self._write_overview(canvas, found)
                write_geojson(found, slide, canvas.resolution, self.folder / "regions.geojson", self.features)
                write_ome_tiff(canvas, slide, self.folder / "probability.ome.tiff")
                self._write_score()
                self._write_errors(canvas)
                heatmap.result()
            result = self._make_result(found, canvas, view)
            result.write(self.folder)
        return result

    def _write_heatmap(self, canvas: Canvas, found: Quantification, outlines: Outlines) -> None:
        write_heatmap(
            canvas,
            outlines,
            self.threshold,
            self.folder / "heatmap.png",
            tissue=self.tissue,
            areas=found.classes,
            colour_map=self.colour_map,
        )

    def _write_overview(self, canvas: Canvas, found: Quantification) -> Resolution:
        """Write the pictures that show the slide, and return their resolution."""
        folder = self.folder
        overview = Overview.from_canvas(self.slide, canvas, self.tissue)
        shown: dict[str, Any] = {"areas": found.classes, "colour_map": self.colour_map}
        write_overlay(overview, found.outlines, self.threshold, folder / "overlay.png", **shown)
        image, view = overview.image, overview.resolution
        write_attention(image, view, self.grade, self.slide.slide_id, folder / "attention.png")
        write_view(overview, folder, self.label.read_tumor(view, (0, 0), view.size) if self.label else None)
        return view

    def _grade_by_rule(self, found: Quantification, resolution: Resolution) -> RuleGrade | None:
        grader = self.rule_grader
        return None if grader is None else grader.grade_areas(found.classes, resolution.pixel_area_um2)

    def _write_score(self) -> None:
        """Write the score against the mask, or remove that of an earlier mask."""
        if self.score is None:
            (self.folder / SCORE_FILE).unlink(missing_ok=True)
        else:
            write_score(self.folder / SCORE_FILE, self.score)

    def _write_errors(self, canvas: Canvas) -> None:
        """Write the wrong regions of a slide that was scored, or remove earlier ones."""
        remove_errors(self.folder)
        label, score = self.label, self.score
        if label is None or score is None or score.contradicts_grade:
            return
        ignore = self.ignore_background
        smallest, _ = self.quantify.convert_limits(canvas.resolution.pixel_area_um2)
        found = find_errors(
            canvas,
            label,
            self.tissue,
            self.threshold,
            smallest_px=smallest,
            connectivity=self.quantify.connectivity,
            ignore_background=ignore,
        )
        errors = SlideErrors.from_found(found, self.slide.slide_id, score.record, self.threshold, self.slide.mpp)
        painter = ErrorPainter(self.slide, canvas, label, self.tissue, self.threshold, ignore_background=ignore)
        write_errors(self.folder, found, errors, painter)

    def _make_result(self, found: Quantification, canvas: Canvas, view: Resolution) -> SlideResult:
        slide, resolution = self.slide, canvas.resolution
        return SlideResult(
            **{name: getattr(found, name) for name in Measurements.model_fields},
            slide_id=slide.slide_id,
            paths=SlidePaths.find(slide, self.label),
            file=FileIdentity.read(slide.path),
            mpp=slide.mpp,
            mpp_source=slide.mpp_source,
            mpp_note=slide.mpp_note,
            reader=slide.reader_name,
            downsample=resolution.downsample,
            view_downsample=view.downsample,
            tissue_how=self.tissue.how,
            bounds=slide.bounds,
            frame=describe_frame(slide.bounds),
            notes=self.notes,
            in_sample=self.in_sample,
            grade=self.grade.record if self.grade else None,
            grade_note=self.grade_note,
            rule_grade=self._grade_by_rule(found, resolution),
            against_label=self.against_label and self.against_label.add_difference(found.tumor_mm2),
            provenance=self.provenance,
            canvas=canvas.fingerprint,
            label_maps={**self.label_maps, **(self.label.label_maps if self.label else {})},
        )
