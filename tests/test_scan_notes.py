"""Scans with black past the tissue, px that are not square, or very little tissue."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from panda.audit.slide_inspector import SlideInspector
from panda.data.slide_rows import SlideRow
from panda.errors import SlideError
from panda.inference.compute import EngineSettings
from panda.inference.predictor import SegmentationPredictor
from panda.inference.quantify import QuantifySettings
from panda.inference.slide_mapper import SlideMapper
from panda.report.slide_page import write_slide_page
from panda.wsi.slide import Slide, SlideOptions
from panda.wsi.tissue import find_tissue, list_slide_notes
from tests.checkpoints import segmentation_checkpoint
from tests.pyramids import write_pyramid

MPP = 2.0
GLASS = (244, 243, 245)


def draw_piece(side: int, diameter: float, ground: tuple[int, int, int] = GLASS) -> NDArray[np.uint8]:
    """Draw a round piece of stained tissue on glass, at 2 µm/px."""
    rng = np.random.default_rng(0)
    image = np.full((side, side, 3), ground, np.int16)
    inside = cv2.circle(np.zeros((side, side), np.uint8), (side // 2, side // 2), round(diameter / 2), 1, -1) > 0
    image[inside] = (205, 120, 180)
    image[inside & (rng.random((side, side)) < 0.1)] = (120, 80, 150)
    return np.clip(image + rng.normal(0, 1.5, image.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("um", [16, 64, 128])
def test_find_tissue_field_without_glass_is_tissue(tmp_path: Path, um: int) -> None:
    side = um * 2
    field = draw_piece(2 * side, 4 * side)[:side, :side]
    slide = Slide.open(write_pyramid(tmp_path / "s.tiff", np.ascontiguousarray(field), (1,), 16, mpp=0.5))
    assert find_tissue(slide).fraction > 0.9


def test_find_tissue_field_of_glass_has_none(tmp_path: Path) -> None:
    with pytest.raises(SlideError, match="no tissue found"):
        find_tissue(Slide.open(write_pyramid(tmp_path / "s.tiff", draw_piece(128, 0), (1,), 16, mpp=0.5)))


def test_find_tissue_piece_of_a_fifth_of_mm_is_found(tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "s.tiff", draw_piece(1000, 100), (1,), mpp=MPP)
    assert find_tissue(Slide.open(path)).area_mm2 == pytest.approx(np.pi * 0.1**2, rel=0.25)


def test_find_tissue_small_piece_is_refused_with_the_limit(tmp_path: Path) -> None:
    image = draw_piece(1000, 25)
    with pytest.raises(SlideError, match=r"Pieces under 0\.2 mm can count as specks, at 8 µm per px"):
        find_tissue(Slide.open(write_pyramid(tmp_path / "a.tiff", image, (1,), mpp=MPP)))
    with pytest.raises(SlideError, match=r"µm/px is unknown and 8 are assumed in the overview: give data"):
        find_tissue(Slide.open(write_pyramid(tmp_path / "b.tiff", draw_piece(1000, 5), (1,))))


def test_mapped_slide_notes_black_and_stretched_px(tmp_path: Path) -> None:
    image = draw_piece(1000, 600)
    image[:, 810:] = 0
    path = write_pyramid(tmp_path / "s.tiff", image, (1, 4), resolution=(1e4 / 0.5, 1e4 / 1.0))
    checkpoint = segmentation_checkpoint(tmp_path / "best.ckpt")
    predictor = SegmentationPredictor.from_checkpoint(checkpoint, EngineSettings(device="cpu"))
    with SlideOptions().open(path) as slide:
        tissue = find_tissue(slide)
        mapper = SlideMapper(predictor, 0.5, QuantifySettings())
        with mapper.map(slide, tissue, tmp_path / "out", tmp_path / "out" / "canvas.zarr") as mapped:
            result = mapped.files.write()
    stretched, black = result.notes
    assert stretched.startswith("µm/px is 0.5 along x and 1 along y.")
    assert "of the slide is plain black." in black
    assert result.tissue_mm2 == pytest.approx(np.pi * 300**2 * 0.5 * 1.0 / 1e6, rel=0.05)
    assert json.loads((tmp_path / "out" / "quantification.json").read_text())["notes"] == list(result.notes)
    page = write_slide_page(tmp_path / "out").read_text()
    assert black in page

    inspector = SlideInspector(
        SlideRow(2, "s", "radboud", "0", "negative", Path("s.tiff"), None), SlideOptions(), deep=False
    )
    inspector.inspect_image(path)
    assert [found.finding for found in inspector.inspection.findings] == ["mpp_anisotropic", "black_background"]


def test_list_slide_notes_ordinary_slide_has_none(tmp_path: Path) -> None:
    image = draw_piece(1000, 600)
    image[:60, :60] = (30, 30, 35)  # a stroke of a marker, less than 1 %
    slide = Slide.open(write_pyramid(tmp_path / "s.tiff", image, (1, 4), resolution=(1e4 / 0.5, 1e4 / 0.505)))
    assert list_slide_notes(slide, find_tissue(slide)) == ()
