"""Pictures of patches and of attended tiles."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import pytest
from PIL import Image

from panda.app import wandb_dashboard
from panda.data.targets import NAMED
from panda.inference.class_colours import PATTERN_COLOURS
from panda.inference.grade import AttendedTile, Grade, GradeRecord
from panda.inference.panel_patches import PanelRow, select_apart
from panda.inference.slide_images import write_attention
from panda.report.attention_tiles import draw_attention_tiles
from panda.report.panels import describe_dice, draw_panels
from panda.wsi.classes import ANY_CANCER, find_classes
from panda.wsi.geometry import Resolution


def _row(title: str = "slide x 1, y 2", truth: bool = True, um_per_px: float | None = 0.5) -> PanelRow:
    image = np.full((48, 64, 3), 200, np.uint8)
    probability = np.tile(np.linspace(0, 1, 64), (48, 1))
    tissue = np.ones((48, 64), bool)
    return PanelRow(image, probability, probability > 0.7 if truth else None, tissue, title, um_per_px)


def test_draw_panels_rows_with_and_without_truth_or_scale(tmp_path: Path) -> None:
    rows = [_row(), _row("$bad _math^ <title>", truth=False, um_per_px=None)]
    path = draw_panels(rows, 0.5, tmp_path / "new" / "panels.png")
    picture = cv2.imread(str(path))
    assert picture is not None
    assert picture.shape[1] > 2000  # fit for a projector
    assert [p.name for p in path.parent.iterdir()] == ["panels.png"]


def test_draw_panels_overlay_colors_hits_false_alarms_and_misses(tmp_path: Path) -> None:
    image = np.full((60, 60, 3), 255, np.uint8)
    probability, truth = np.zeros((60, 60)), np.zeros((60, 60), bool)
    probability[:, :40] = 0.9
    truth[:, 20:] = True  # columns 0-19 false alarm, 20-39 found, 40-59 missed
    path = draw_panels([PanelRow(image, probability, truth, np.ones_like(truth), "t", 1.0)], 0.5, tmp_path / "p.png")
    picture = cv2.imread(str(path))
    assert picture is not None
    colours = {tuple(c) for c in picture[::3, ::3, ::-1].reshape(-1, 3).tolist()}

    def tint(hex_colour: str, weight: float) -> tuple[int, ...]:
        return tuple(int((1 - weight) * 255 + weight * int(hex_colour[i : i + 2], 16)) for i in (1, 3, 5))

    assert {tint("#00a35a", 0.45), tint("#ffd000", 0.6), tint("#0a4dff", 0.6)} <= colours


def test_draw_panels_masks_have_a_colour_for_each_class(tmp_path: Path) -> None:
    classes = find_classes("gleason")
    labels = np.repeat(np.array([0, 1, 2, 3, ANY_CANCER], np.uint8), 12)[None].repeat(60, 0)
    by_class = np.zeros((3, 60, 60), np.float32)
    for number in (1, 2, 3):
        by_class[number - 1][labels == number] = 0.7
    by_class[:, labels == ANY_CANCER] = 0.25  # a tie has the highest pattern
    row = PanelRow(
        np.full((60, 60, 3), 255, np.uint8), by_class.sum(0), labels > 0, np.ones((60, 60), bool), "t", 1.0,
        classes=classes, by_class=by_class, labels=labels,
    )  # fmt: skip
    assert (row.predict_classes(0.5) == np.where(labels == ANY_CANCER, 3, labels)).all()
    picture = cv2.imread(str(draw_panels([row], 0.5, tmp_path / "p.png")))
    assert picture is not None
    colours = {tuple(c) for c in picture[::3, ::3, ::-1].reshape(-1, 3).tolist()}
    assert {PATTERN_COLOURS[pattern] for pattern in (3, 4, 5)} <= colours


def test_dice_text_shows_dice_or_reason() -> None:
    predicted = np.array([[True, True, False, False]])
    assert describe_dice(predicted, np.array([[True, False, False, False]])) == "Dice 0.67"
    assert "no cancer labelled" in describe_dice(predicted, np.zeros((1, 4), bool))
    assert "50.0%" in describe_dice(predicted, np.zeros((1, 4), bool))
    assert "no ground truth" in describe_dice(predicted, None)


def test_draw_panels_counts_tissue_and_thresholds_like_scores(tmp_path: Path) -> None:
    probability = np.full((60, 60), 0.6, np.float32)  # 0.600000024, to which 0.60000003 would be rounded
    truth, tissue = np.zeros((60, 60), bool), np.zeros((60, 60), bool)
    truth[:, :40] = True
    tissue[:, 20:] = True
    row = PanelRow(np.full((60, 60, 3), 255, np.uint8), probability, truth, tissue, "t", 1.0)
    assert row.predict(0.6).sum() == 60 * 40
    assert not row.predict(0.60000003).any()
    picture = cv2.imread(str(draw_panels([row], 0.5, tmp_path / "p.png")))
    assert picture is not None
    colours = {tuple(c) for c in picture[::3, ::3, ::-1].reshape(-1, 3).tolist()}
    # columns 0-19 are labelled, but no tissue: neither found nor missed
    assert tuple(int(0.4 * 255 + 0.6 * v) for v in (10, 77, 255)) not in colours
    assert tuple(int(0.55 * 255 + 0.45 * v) for v in (0, 163, 90)) in colours


def test_panel_row_other_shapes_raise(tmp_path: Path) -> None:
    row = _row()
    wrong = PanelRow(row.image, row.probability[:10], None, row.tissue, "wrong one", None)
    with pytest.raises(ValueError, match="wrong one"):
        draw_panels([wrong], 0.5, tmp_path / "p.png")
    with pytest.raises(ValueError, match="at least one"):
        draw_panels([], 0.5, tmp_path / "p.png")
    assert not list(tmp_path.iterdir())


def _make_grade(
    tiles: list[tuple[int, int, float]], side: float, target: Literal["isup", "cancer"] = "isup", predicted: int = 0
) -> Grade:
    """Make a grade from tiles, each x, y and attention, whose side is in level-0 px."""
    record = GradeRecord(
        target=NAMED[target],
        predicted=predicted,
        probabilities=(0.5, 0.5) if target == "cancer" else (0.8, 0, 0, 0.2, 0, 0),
        tile_side_px=side,
        tiles=tuple(AttendedTile(x=x, y=y, attention=weight, contribution=weight) for x, y, weight in tiles),
    )
    return Grade(record, np.zeros((min(len(tiles), 12), 16, 16, 3), np.uint8))


@pytest.mark.parametrize("count", [1, 20])
def test_draw_attention_tiles_of_any_count(tmp_path: Path, count: int) -> None:
    grade = _make_grade([(0, 0, weight / 20) for weight in range(count)], 16.0)
    path = tmp_path / "a.png"
    draw_attention_tiles(grade, path)
    assert cv2.imread(str(path)) is not None
    draw_attention_tiles(None, path)
    assert not path.exists()


@pytest.mark.parametrize(
    ("left_out", "said"),
    [(1, "contribution +0.50"), (16, "contribution ≈ +0.50, by occlusion\nof groups of 16 tiles")],
)
def test_draw_attention_tiles_names_approximate_contributions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left_out: int, said: str
) -> None:
    written: list[str] = []
    monkeypatch.setattr("panda.report.sheet.Sheet.write", lambda self, x, y, text, **style: written.append(text))
    grade = _make_grade([(0, 0, 0.5), (9, 8, 0.5)], 16.0)
    record = grade.record.model_copy(update={"left_out": left_out})
    draw_attention_tiles(Grade(record, grade.shown), tmp_path / "a.png")
    assert f"x 9, y 8\n{said}" in written


@pytest.mark.parametrize(("predicted", "said"), [(0, "no cancer"), (1, "cancer")])
def test_write_attention_benign_slide_has_no_cancer_heading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, predicted: int, said: str
) -> None:
    view = Resolution(4.0, 40, 20, 1, 1.0, (2.0, 2.0))
    grade = _make_grade([(0, 0, 1.0)], 16.0, "cancer", predicted)
    heads: list[str] = []

    def headed(laid: Any, **sheet: Any) -> tuple[Image.Image, None]:
        heads.append(sheet["subtitle"])
        return Image.fromarray(laid), None

    monkeypatch.setattr("panda.inference.slide_images.frame_image", headed)
    write_attention(np.full((20, 40, 3), 255, np.uint8), view, grade, "s", tmp_path / "attention.png")
    assert heads == [f"Attention for 1 tiles, {said} predicted; the most attended has 100.0%"]


def test_write_attention_places_weights_on_tiles(tmp_path: Path) -> None:
    view = Resolution(4.0, 400, 200, 1, 1.0, (2.0, 2.0))
    image = np.full((200, 400, 3), 255, np.uint8)
    grade = _make_grade([(40, 80, 0.8), (800, 400, 0.2)], 160.0, predicted=0)
    path = tmp_path / "attention.png"
    write_attention(image, view, grade, "s", path)
    sheet = np.asarray(Image.open(path), int)
    yellow, purple = (np.abs(sheet - (np.array(c) + 255) / 2).max(axis=2) <= 4 for c in ((253, 231, 37), (59, 82, 139)))
    top, left = np.argwhere(yellow).min(axis=0)
    # From tile to tile: (800 - 40) / 4 and (400 - 80) / 4 px; a tile is 40 px less its outline.
    assert yellow[top : top + 36, left : left + 36].all()
    assert purple[top + 80 : top + 116, left + 190 : left + 226].all()
    assert (sheet[top + 40, left + 60] == 255).all()
    write_attention(image, view, None, "s", path)
    assert not path.exists()


def test_write_attention_tile_of_less_than_a_pixel_is_shown(tmp_path: Path) -> None:
    """The last pixel has the tile, whose place is nearer to the edge of the image."""
    view = Resolution(100.0, 40, 20, 1, 1.0, (2.0, 2.0))
    grade = _make_grade([(3980, 1980, 1.0)], 16.0, predicted=0)
    write_attention(np.full((20, 40, 3), 255, np.uint8), view, grade, "s", tmp_path / "attention.png")
    assert (np.asarray(Image.open(tmp_path / "attention.png"), int) == (253, 231, 37)).all(axis=2).any()


def test_logged_masks_of_classes_have_their_numbers_and_names(monkeypatch: pytest.MonkeyPatch) -> None:
    logged: dict[str, Any] = {}
    monkeypatch.setattr("wandb.Image", lambda *_, **given: logged.update(given))
    classes = find_classes("gleason")
    by_class = np.zeros((3, 48, 64), np.float32)
    by_class[1, :, :32], by_class[2, :, 32:] = 0.6, 0.3
    labels = np.full((48, 64), ANY_CANCER, np.uint8)
    row = dataclasses.replace(
        _row(), probability=by_class.sum(axis=0), classes=classes, by_class=by_class, labels=labels
    )
    wandb_dashboard._add_masks(row, 0.5)
    predicted = logged["masks"]["prediction"]["mask_data"]
    np.testing.assert_array_equal(predicted, np.where(np.arange(64) < 32, 2, 0)[None].repeat(48, axis=0))
    np.testing.assert_array_equal(logged["masks"]["ground_truth"]["mask_data"], labels)
    names = logged["masks"]["ground_truth"]["class_labels"]
    assert [names[number] for number in range(4)] == list(classes.names)
    assert names[ANY_CANCER] == "cancer of unknown class"


def test_select_apart_shifted_last_patch_shows_no_place_twice() -> None:
    corners = np.array([[0, 0], [64, 0], [70, 0], [0, 64], [70, 64]])
    assert select_apart(corners, [1.0, 3.0, 4.0, 2.0, 5.0], 64) == [4, 2, 3, 0]
    assert select_apart(np.zeros((0, 2), np.int64), [], 64) == []
