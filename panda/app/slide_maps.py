"""Map and score the slides that a segmentation run shows: maps, pages, panels and a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from panda.app.operating_point import OperatingPoint
from panda.app.run import Run
from panda.data.datamodule import DataSettings
from panda.data.manifest import SlideRecord
from panda.inference.class_figures import RuleGradedSlide
from panda.inference.evaluate import open_label
from panda.inference.grade import RuleGrade
from panda.inference.panel_patches import PanelRow, select_panel_rows
from panda.inference.predictor import SegmentationPredictor
from panda.inference.quantify import QuantifySettings
from panda.inference.rule_grade import RuleGrader
from panda.inference.scored_row import make_scored_row
from panda.inference.slide_loop import make_tile_callback, run_over_slides
from panda.inference.slide_mapper import SlideMapper
from panda.inference.slide_score import SlideScore
from panda.report.error_table import ERROR_TABLE, CollectedErrors
from panda.report.panels import draw_panels
from panda.report.slide_folder import write_slide_folder
from panda.tables import write_table
from panda.wsi.slide import Slide
from panda.wsi.tissue import TissueMap


@dataclass(frozen=True)
class ScoredSlide:
    """The score of a mapped slide, and its grade by the rule; None with one class of cancer."""

    score: SlideScore
    rule_grade: RuleGrade | None


def list_rule_grades(slides: Sequence[ScoredSlide]) -> list[RuleGradedSlide]:
    """Return the slides that have a grade by the rule, without those that contradict their given grade."""
    return [
        RuleGradedSlide(slide.score.record, slide.rule_grade)
        for slide in slides
        if slide.rule_grade and not slide.score.contradicts_grade
    ]


def map_slides(
    run: Run,
    data: DataSettings,
    predictor: SegmentationPredictor,
    frozen: OperatingPoint,
    records: Sequence[SlideRecord],
    *,
    quantify: QuantifySettings,
    panel_rows: int,
    table_path: Path,
) -> list[ScoredSlide]:
    """Map and score slides with masks at the frozen threshold, and write their pages, panels and table.

    A slide that fails is added to `run.failures` and has no score. All panels together have `panel_rows` rows.
    """
    choice, classes = frozen.threshold, predictor.metadata.classes
    mappers = {
        provider: SlideMapper(
            predictor,
            choice.value_for(provider),
            quantify,
            slide_options=data.slide_options,
            colour_map=run.cfg.colour_map,
            rule_grader=RuleGrader.from_choice(classes, frozen.gleason_rule, choice, provider),
        )
        for provider in {record.provider for record in records}
    }
    per_slide = -(-panel_rows // max(1, len(records)))
    panels: dict[float, list[PanelRow]] = {mapper.threshold: [] for mapper in mappers.values()}
    table: list[dict[str, Any]] = []

    def work(record: SlideRecord, slide: Slide, tissue: TissueMap, bar: tqdm[Any]) -> ScoredSlide:
        folder = run.folder / "slides" / record.slide_id
        threshold = choice.value_for(record.provider)
        with open_label(record, slide, predictor.metadata.label_maps) as mask:
            mapper, tiles = mappers[record.provider], make_tile_callback(bar)
            with mapper.map(slide, tissue, folder, folder / "canvas.zarr", tiles, labelled=(record, mask)) as mapped:
                assert mapped.score is not None  # segmentation leaves out slides without a mask
                panels[threshold].extend(
                    select_panel_rows(
                        record,
                        slide,
                        None if mapped.score.contradicts_grade else mask,
                        tissue,
                        mapped.canvas,
                        patch_size=data.patch_size,
                        count=min(per_slide, panel_rows - sum(map(len, panels.values()))),
                    )
                )
                result = write_slide_folder(mapped.files)
        table.append(make_scored_row(mapped.score, result, threshold, classes))
        return ScoredSlide(mapped.score, result.rule_grade)

    scores = run_over_slides(records, data.slide_options, "slides", work, run.failures.append)
    _draw_panels(run, panels)
    if table:
        write_table(table_path, table)
        CollectedErrors.read(table_path, run.folder / "slides").write(run.folder / ERROR_TABLE)
        if run.dashboard is not None:
            run.dashboard.log_slides(table_path.stem, table, run.folder / "slides")
    return scores


def _draw_panels(run: Run, panels: dict[float, list[PanelRow]]) -> None:
    """Draw one picture for each threshold, and log it."""
    for threshold, rows in panels.items():
        if rows:
            at = "" if len(panels) == 1 else f"_at_{threshold:.3f}"
            path = draw_panels(rows, threshold, run.folder / "panels" / f"patches{at}.png")
            if run.dashboard is not None:
                run.dashboard.log_rows(f"panels{at}", path, rows, threshold)
