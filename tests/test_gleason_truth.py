"""From a map that equals the label mask to areas, scores and grades, on drawn slides of known truth."""

from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from panda.data.manifest import SlideRecord
from panda.errors import PandaError
from panda.inference.canvas import Canvas, CanvasWriter
from panda.inference.class_areas import ClassArea
from panda.inference.class_figures import RuleGradedSlide, summarize_classes, summarize_rule_grades
from panda.inference.evaluate import score_canvas
from panda.inference.quantify import Quantification, QuantifySettings, slide_quantification
from panda.inference.rule_grade import RuleGrader
from panda.inference.slide_score import SlideScore, read_score, read_scores, write_score, write_scores
from panda.synthetic.dataset import GRADE_RULE, SlideTruth, SyntheticSpec, draw_slide
from panda.tasks.threshold import ThresholdChoice
from panda.wsi.classes import BINARY, ClassSet, find_classes
from panda.wsi.geometry import Resolution
from panda.wsi.label_mask import LabelMask
from panda.wsi.slide import Slide
from panda.wsi.tissue import TissueMap
from tests.drawn_scores import make_record

GLEASON = find_classes("gleason")
AT = ThresholdChoice.from_user(0.5)
NO_LIMITS = QuantifySettings(min_region_um2=0, min_hole_um2=0, min_region_px=0, min_hole_px=0)
PATTERNS = {"G3": 3, "G4": 4, "G5": 5}


@dataclass(frozen=True)
class DrawnSlide:
    slide: Slide
    mask: LabelMask
    truth: SlideTruth

    @property
    def record(self) -> SlideRecord:
        truth = self.truth
        return SlideRecord(
            truth.image_id,
            truth.provider,
            truth.isup_grade,
            truth.gleason,
            self.slide.path,
            self.mask.path,
            truth.image_id,
        )


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> list[DrawnSlide]:
    """Return one drawn slide of each grade."""
    folder, spec, found = tmp_path_factory.mktemp("drawn"), SyntheticSpec(width=1280, height=800), []
    for grade in range(6):
        image, mask = folder / f"s{grade}.tiff", folder / f"s{grade}_mask.tiff"
        truth = draw_slide(image, mask, spec, slide_id=f"s{grade}", provider="radboud", isup_grade=grade, seed=grade)
        slide = Slide.open(image)
        found.append(DrawnSlide(slide, LabelMask.open(mask, slide, "radboud"), truth))
    return found


def read_mask(one: DrawnSlide, resolution: Resolution, classes: ClassSet) -> NDArray[np.float32]:
    """Return the map that a perfect network would give, (k, H, W)."""
    codes = one.mask.read(resolution, (0, 0), resolution.size)
    return np.stack(
        [np.isin(codes, sorted({3, 4, 5} & {*classes.patterns[name]})) for name in classes.cancer_names]
    ).astype(np.float32)


def write_canvas(path: Path, prob: NDArray[np.float32], resolution: Resolution, classes: ClassSet) -> Canvas:
    side, (width, height) = 256, resolution.size
    padded = np.pad(prob, ((0, 0), (0, side), (0, side)))
    with CanvasWriter(path, resolution, side, "f", {}, classes=classes) as writer:
        for y in range(0, height, side):
            for x in range(0, width, side):
                tile = padded[:, y : y + side, x : x + side]
                writer.add((tile[0] if classes.is_binary else tile)[None], [(x, y)])
        return writer.close()


def make_tissue(resolution: Resolution) -> TissueMap:
    return TissueMap(np.ones((resolution.height, resolution.width), np.bool_), resolution, "strict")


def measure(one: DrawnSlide, path: Path, level: int, classes: ClassSet = GLEASON) -> Quantification:
    resolution = one.slide.choose_resolution(level=level)
    canvas = write_canvas(path, read_mask(one, resolution, classes), resolution, classes)
    tissue = make_tissue(resolution)
    return slide_quantification(canvas, one.slide, resolution, 0.5, settings=NO_LIMITS, tissue=tissue)


def make_grader(classes: ClassSet = GLEASON) -> RuleGrader:
    return RuleGrader(classes, GRADE_RULE, 0.5, (0.4, 0.6))


def test_perfect_map_has_areas_and_grade_of_the_table(drawn: list[DrawnSlide], tmp_path: Path) -> None:
    grades = []
    for one in drawn:
        truth, resolution = one.truth, one.slide.choose_resolution(level=0)
        found = measure(one, tmp_path / truth.image_id, 0)
        assert {part.name: part.area_px for part in found.classes} == {
            name: getattr(truth, f"pattern{pattern}_px") for name, pattern in PATTERNS.items()
        }
        px_mm2 = truth.mpp**2 / 1e6
        areas = [part.area_mm2 for part in found.classes]
        assert areas == pytest.approx([getattr(truth, f"pattern{n}_px") * px_mm2 for n in (3, 4, 5)])
        grade = make_grader().grade_areas(found.classes, resolution.pixel_area_um2)
        assert (grade.score, grade.isup) == (truth.gleason.replace("negative", "0+0"), truth.isup_grade)
        assert grade.isup_interval == (truth.isup_grade, truth.isup_grade)
        grades.append(RuleGradedSlide(one.record, grade))
    agreement = summarize_rule_grades(grades, seed=0)
    assert (agreement.qwk, agreement.accuracy, agreement.within_band) == (1.0, 1.0, 1.0)
    assert agreement.confusion == np.eye(6, dtype=int).tolist()


def test_perfect_map_at_level_1_has_areas_to_its_resolution(drawn: list[DrawnSlide], tmp_path: Path) -> None:
    for one in drawn:
        found = measure(one, tmp_path / one.truth.image_id, 1)
        downsample = one.slide.choose_resolution(level=1).downsample
        for part in found.classes:
            true_px = getattr(one.truth, f"pattern{PATTERNS[part.name]}_px") / downsample**2
            assert part.area_px == pytest.approx(true_px, rel=0.03, abs=5)
        grade = make_grader().grade_areas(found.classes, one.slide.choose_resolution(level=1).pixel_area_um2)
        assert grade.isup == one.truth.isup_grade


def test_order_and_merging_of_classes_keep_areas_and_grade(drawn: list[DrawnSlide], tmp_path: Path) -> None:
    one = drawn[5]
    merged = measure(one, tmp_path / "binary", 1, BINARY)
    area = one.slide.choose_resolution(level=1).pixel_area_um2
    for number, order in enumerate(permutations(GLEASON.cancer_names)):
        classes = ClassSet(names=("benign", *order), patterns={name: GLEASON.patterns[name] for name in order})
        found = measure(one, tmp_path / str(number), 1, classes)
        assert found.tumor_px == merged.tumor_px == sum(part.area_px for part in found.classes)
        assert make_grader(classes).grade_areas(found.classes, area).score == one.truth.gleason


def test_merged_patterns_have_areas_and_no_score(drawn: list[DrawnSlide], tmp_path: Path) -> None:
    one, classes = drawn[5], ClassSet(names=("benign", "G3", "high"), patterns={"G3": (3,), "high": (4, 5)})
    found = measure(one, tmp_path / "c", 0, classes)
    truth = one.truth
    assert [part.area_px for part in found.classes] == [truth.pattern3_px, truth.pattern4_px + truth.pattern5_px]
    grade = make_grader(classes).grade_areas(found.classes, 0.23)
    assert (grade.score, grade.isup, grade.isup_interval) == (None, None, None)
    assert "high holds 4 and 5" in grade.note


def test_perfect_map_scores_one_in_each_class(drawn: list[DrawnSlide], tmp_path: Path) -> None:
    scores = []
    for one in drawn:
        resolution = one.slide.choose_resolution(level=0)
        canvas = write_canvas(tmp_path / one.truth.image_id, read_mask(one, resolution, GLEASON), resolution, GLEASON)
        scores.append(score_canvas(canvas, one.slide, one.mask, make_tissue(resolution), one.record))
    found = summarize_classes(scores, AT, GLEASON, seed=0)
    assert {name: part.dice for name, part in found.by_class.items()} == {"G3": 1.0, "G4": 1.0, "G5": 1.0}
    mm2 = np.array(found.confusion.mm2)
    for row, pattern in enumerate((3, 4, 5), start=1):
        true_px = sum(getattr(one.truth, f"pattern{pattern}_px") for one in drawn)
        assert mm2[row, row] == pytest.approx(true_px * drawn[0].truth.mpp ** 2 / 1e6)
    assert mm2.sum() == pytest.approx(np.trace(mm2))
    assert [make_grader().grade_score(score).isup for score in scores] == [one.truth.isup_grade for one in drawn]
    # without tissue found beside the labels, glass has no label and counts nowhere
    px = sum(one.truth.tissue_px for one in drawn)
    assert mm2.sum() == pytest.approx(px * drawn[0].truth.mpp ** 2 / 1e6)
    write_scores(tmp_path / "scores.npz", dict(zip("abcdef", scores, strict=True)))
    stored = read_scores(tmp_path / "scores.npz", GLEASON)
    for key, score in zip("abcdef", scores, strict=True):
        np.testing.assert_array_equal(stored[key][3], score.by_class)


@pytest.mark.parametrize("shape", [None, (6, 3, 1000), (7,)])
def test_read_scores_counts_of_other_classes_are_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, shape: tuple[int, ...] | None
) -> None:
    record, by_class = make_record(1, "radboud", "a"), None if shape is None else np.zeros(shape, np.int64)
    write_scores(tmp_path / "s.npz", {"a": SlideScore(record, np.zeros((2, 1000), np.int64), 0.25, 0, by_class)})
    assert read_scores(tmp_path / "s.npz", GLEASON) == {}
    write_score(tmp_path / "a.npz", SlideScore(record, np.zeros((2, 1000), np.int64), 0.25, 0, by_class))
    with pytest.raises(PandaError, match=r"a\.npz: it cannot be read \(counts of classes"):
        read_score(tmp_path / "a.npz", GLEASON)
    assert "counts of classes are not those of benign, G3, G4, G5" in caplog.text


def make_areas(*px: tuple[int, int, int]) -> tuple[ClassArea, ...]:
    """Return areas with these px: at thresholds up to 0.45, above it, and after the clean-up at 0.5."""
    names = zip(GLEASON.cancer_names, px, strict=True)
    return tuple(
        ClassArea(
            name=name,
            patterns=GLEASON.patterns[name],
            area_px=clean,
            area_mm2=None,
            percent_of_tumor=None,
            percent_of_tissue=None,
            px_at_threshold=(low,) * 450 + (high,) * 551,
        )
        for name, (low, high, clean) in names
    )


def test_grade_interval_spans_threshold_band() -> None:
    areas = make_areas((50, 50, 50), (40, 0, 30), (0, 0, 0))
    grade = make_grader().grade_areas(areas, 1.0)
    assert (grade.score, grade.isup, grade.isup_interval, grade.band) == ("3+4", 2, (1, 2), (0.4, 0.6))
    narrow = RuleGrader(GLEASON, GRADE_RULE, 0.5, (0.45, 0.5)).grade_areas(areas, 1.0)
    assert narrow.isup_interval == (1, 2)  # the threshold itself counts, after the clean-up


def test_grade_unknown_resolution_needs_rule_without_area() -> None:
    areas = make_areas((50, 50, 50), (60, 60, 60), (0, 0, 0))
    assert make_grader().grade_areas(areas, None).score == "4+3"
    strict = RuleGrader(GLEASON, GRADE_RULE.model_copy(update={"min_area_mm2": 0.1}), 0.5, (0.4, 0.6))
    assert "µm/px of the slide is unknown" in strict.grade_areas(areas, None).note


@pytest.mark.parametrize(
    ("changes", "provider", "band"),
    [
        ({"interval": (0.3124, 0.66)}, None, (0.312, 0.66)),
        ({"interval": (0.6, 0.7)}, None, (0.5, 0.7)),  # the choice itself is always inside
        ({}, None, (0.4, 0.6)),
        ({"value": 0.95}, None, (0.85, 0.999)),
        ({"by_provider": {"radboud": AT.model_copy(update={"value": 0.05})}}, "radboud", (0.0, 0.15)),
    ],
)
def test_threshold_band(changes: dict[str, Any], provider: str | None, band: tuple[float, float]) -> None:
    assert AT.model_copy(update=changes).find_band(provider) == pytest.approx(band)
