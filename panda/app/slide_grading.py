"""Grade the slides of a run with its trained network, as inference does."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from panda.app.guidance import Guidance
from panda.app.patient_grading import BagPart
from panda.data.failures import Failure
from panda.data.manifest import SlideRecord
from panda.errors import MaskError
from panda.inference.bag_grader import BagGrade
from panda.inference.evaluate import open_label
from panda.inference.grade import Grade, GradeRecord
from panda.inference.grader import GradingPredictor, SlideBag
from panda.inference.legends import ColourMap
from panda.inference.predictor import SegmentationPredictor
from panda.inference.quantify import QuantifySettings
from panda.inference.rule_grade import RuleGrader
from panda.inference.slide_images import write_attention, write_slide
from panda.inference.slide_loop import SlidePrefetcher, make_tile_callback
from panda.inference.slide_mapper import SlideMapper
from panda.inference.slide_result import SlideFacts, SlidePaths
from panda.report.attention_tiles import draw_attention_tiles
from panda.report.slide_folder import write_slide_folder
from panda.report.slide_page import write_slide_page
from panda.wsi.label_mask import LabelMask
from panda.wsi.levels import describe_frame
from panda.wsi.slide import Slide, SlideOptions
from panda.wsi.tissue import TissueMap, list_slide_notes

log = logging.getLogger(__name__)


@dataclass(eq=False)
class SlideGrading:
    """Grades slides one by one.

    Attributes:
        folder: Gets one folder per slide with its page, its pictures, and its map if a segmentation guides. Attention
            is scored against label masks. If None, slides are only graded.
        failures: Gets the failures of slides that were mapped and not graded.
        unusable_masks: Faults of the label masks of slides that were graded without them.
    """

    grader: GradingPredictor
    guidance: Guidance
    quantify: QuantifySettings
    slide_options: SlideOptions
    colour_map: ColourMap
    folder: Path | None
    failures: list[Failure]
    unusable_masks: list[str] = field(default_factory=list)
    _mappers: dict[tuple[SegmentationPredictor, str], SlideMapper] = field(default_factory=dict, init=False)

    def grade_slide(
        self,
        record: SlideRecord,
        slide: Slide,
        tissue: TissueMap,
        bar: tqdm[Any],
        graded: tuple[SlideBag, BagGrade] | None = None,
    ) -> tuple[SlideRecord, GradeRecord] | None:
        """Grade an open slide, or take its grade with its patient; return None if it was mapped and not graded."""
        labelled = self.folder is not None and record.mask_path is not None and record.mask_path.is_file()
        try:
            grade = self._grade(record, slide, tissue, bar, graded=graded, labelled=labelled)
        except MaskError as error:  # a grade needs no mask
            log.warning("%s is graded without its label mask: %s", record.slide_id, error)
            self.unusable_masks.append(str(error))
            grade = self._grade(record, slide, tissue, bar, graded=graded, labelled=False)
        return None if grade is None else (record, grade.record.drop_tiles())

    def open_slide(self, record: SlideRecord) -> Slide:
        """Open the slide of a record."""
        return self.slide_options.open(record.image_path, record.slide_id)

    def open_part(
        self, prefetcher: SlidePrefetcher[SlideRecord], record: SlideRecord, k: int, bar: tqdm[Any], stack: ExitStack
    ) -> BagPart:
        """See `PatientGrading`: open a slide, and select and encode its part in the bag of its patient."""
        slide, tissue = stack.enter_context(prefetcher.open(record))
        with self.guidance.hold_canvas(slide, tissue, bar) as canvas:
            bag = self.grader.encode(slide, tissue, canvas, k)
        return BagPart(bag.features, lambda grade: self.grade_slide(record, slide, tissue, bar, (bag, grade)))

    def _grade(
        self,
        record: SlideRecord,
        slide: Slide,
        tissue: TissueMap,
        bar: tqdm[Any],
        *,
        graded: tuple[SlideBag, BagGrade] | None,
        labelled: bool,
    ) -> Grade | None:
        with ExitStack() as stack:
            if self.folder is None:
                with self.guidance.hold_canvas(slide, tissue, bar) as canvas:
                    return self.grader.grade(slide, tissue, canvas, shown=0)  # nothing is drawn
            own = self.folder / record.slide_id
            segmenter = self.guidance.find_segmenter(record.slide_id)
            label_maps = None if segmenter is None else segmenter.metadata.label_maps
            label = stack.enter_context(open_label(record, slide, label_maps)) if labelled else None
            if segmenter is None:
                return self._grade_unguided(slide, tissue, label, graded, own)
            mapper = self._find_mapper(segmenter, record.provider)
            canvas_path = self.guidance.find_canvas_path(segmenter, slide)
            known = (record, label) if label else None
            tiles = make_tile_callback(bar)
            with mapper.map(slide, tissue, own, canvas_path, tiles, labelled=known, graded=graded) as mapped:
                if mapped.ungraded:
                    self.failures.append(mapped.ungraded)
                write_slide_folder(mapped.files)
                return mapped.files.grade

    def _grade_unguided(
        self,
        slide: Slide,
        tissue: TissueMap,
        label: LabelMask | None,
        graded: tuple[SlideBag, BagGrade] | None,
        own: Path,
    ) -> Grade:
        """Grade a slide that has no map, and write its pictures and page to `own`."""
        grade = self.grader.grade(slide, tissue, None, label, graded=graded)
        image, view = slide.overview()
        write_slide(image, own)
        write_attention(image, view, grade, slide.slide_id, own / "attention.png")
        SlideFacts(
            slide_id=slide.slide_id,
            paths=SlidePaths.find(slide, label),
            mpp=slide.mpp,
            view_downsample=view.downsample,
            tissue_how=tissue.how,
            bounds=slide.bounds,
            frame=describe_frame(slide.bounds),
            notes=(*list_slide_notes(slide, tissue), *self.grader.resolution.list_notes(slide)),
            grade=grade.record,
            label_maps=label.label_maps if label else {},
        ).write(own)
        draw_attention_tiles(grade, own / "attention_tiles.png")
        write_slide_page(own)
        return grade

    def _find_mapper(self, segmenter: SegmentationPredictor, provider: str) -> SlideMapper:
        if (segmenter, provider) not in self._mappers:
            choice, metadata = segmenter.threshold, segmenter.metadata
            self._mappers[segmenter, provider] = SlideMapper(
                segmenter,
                choice.value_for(provider),
                self.quantify,
                self.grader,
                self.slide_options,
                self.colour_map,
                RuleGrader.from_choice(metadata.classes, metadata.gleason_rule, choice, provider),
            )
        return self._mappers[segmenter, provider]
