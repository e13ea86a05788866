"""Slides whose file states bounds are the part inside, as QuPath shows them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import numpy as np
import openslide
import pytest
import tifffile
from numpy.typing import NDArray

from panda.data.feature_origin import FeatureFile, FeatureOrigin
from panda.errors import MaskError
from panda.inference.compute import EngineSettings
from panda.inference.predictor import SegmentationPredictor
from panda.inference.quantify import QuantifySettings
from panda.inference.slide_mapper import SlideMapper
from panda.wsi.label_mask import LabelMask
from panda.wsi.readers import OpenSlideReader, ReaderName
from panda.wsi.slide import Slide, SlideOptions
from panda.wsi.tissue import find_tissue
from tests.checkpoints import segmentation_checkpoint
from tests.pyramids import drop_tiles, write_pyramid

BOUNDS = (256, 512, 1280, 768)
X, Y, WIDTH, HEIGHT = BOUNDS
BOX = (400, 600, 1100, 1000)
"""Tissue, x0, y0, x1, y1 in level-0 px of the file."""


def draw(size: tuple[int, int] = (1800, 1500)) -> NDArray[np.uint8]:
    image = np.full((size[1], size[0], 3), 244, np.uint8)
    x0, y0, x1, y1 = BOX
    image[y0:y1, x0:x1] = (215, 120, 180)
    image[y0:y1:7, x0:x1] = (150, 90, 160)
    return image


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    whole = write_pyramid(tmp_path_factory.mktemp("bounds") / "s.tiff", draw(), (1, 4), mpp=0.5)
    return drop_tiles(whole, (X, Y, X + WIDTH, Y + HEIGHT))


def test_openslide_states_bounds_of_a_tiff_without_some_tiles(path: Path) -> None:
    properties = openslide.OpenSlide(path).properties
    stated = tuple(int(properties[f"openslide.bounds-{name}"]) for name in ("x", "y", "width", "height"))
    assert stated == BOUNDS


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        (("0", "0", "1800", "1500"), None),
        (("100", "x", "5", "5"), None),
        (("1800", "0", "5", "5"), None),
        (("-10", "1490", "30", "30"), (0, 1490, 20, 10)),
    ],
)
def test_openslide_reader_impossible_bounds_are_cut_or_ignored(
    path: Path, monkeypatch: pytest.MonkeyPatch, stated: tuple[str, ...], expected: object
) -> None:
    names = [f"openslide.bounds-{name}" for name in ("x", "y", "width", "height")]
    monkeypatch.setattr(openslide.OpenSlide, "properties", dict(zip(names, stated, strict=True)))
    assert OpenSlideReader(path).bounds == expected


@pytest.mark.parametrize("reader", get_args(ReaderName))
def test_slide_with_bounds_is_the_part_inside(path: Path, reader: ReaderName) -> None:
    slide, image = SlideOptions(reader=reader).open(path), draw()
    assert (slide.bounds, slide.dimensions, slide.level_dimensions[1]) == (BOUNDS, (WIDTH, HEIGHT), (320, 192))
    inside = image[Y : Y + HEIGHT, X : X + WIDTH]
    np.testing.assert_array_equal(slide.read_region((0, 0), 0, slide.dimensions), inside)
    around = slide.read_region((-40, -40), 0, (WIDTH + 80, HEIGHT + 80))
    np.testing.assert_array_equal(around, np.pad(inside, ((40, 40), (40, 40), (0, 0)), constant_values=255))
    reduced = slide.read_region((0, 0), 1, (320, 192)).astype(int)
    expected = inside.reshape(192, 4, 320, 4, 3).mean(axis=(1, 3))
    assert np.abs(reduced - expected).max() <= 1
    resampled = slide.choose_resolution(mpp=1.5)
    assert resampled.size == (427, 256)
    pixels = slide.read(resampled, (0, 0), resampled.size).astype(int)
    assert np.abs(pixels[:, :426] - inside[:, :1278].reshape(256, 3, 426, 3, 3).mean(axis=(1, 3))).max() <= 2


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("shrink", [1, 2])
@pytest.mark.parametrize("mpp", [0.5, 2.0, 1.3])
def test_label_mask_spans_file_or_bounds(tmp_path: Path, path: Path, *, whole: bool, shrink: int, mpp: float) -> None:
    codes = np.zeros((1500, 1800), np.uint8)
    codes[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 2
    codes[:200] = 2  # on the part of the file that is not the slide
    if not whole:
        codes = codes[Y : Y + HEIGHT, X : X + WIDTH]
    slide = Slide.open(path)
    mask_path = write_pyramid(tmp_path / "m.tiff", np.ascontiguousarray(codes[::shrink, ::shrink]), (1, 4))
    resolution = slide.choose_resolution(mpp=mpp)
    with LabelMask.open(mask_path, slide, "karolinska") as mask:
        found = mask.read_tumor(resolution, (-200, -400), tuple(size + 400 for size in resolution.size))  # type: ignore[arg-type]
    rows, columns = np.nonzero(found)
    d = resolution.downsample
    edges = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) * d - [200, 400, 200, 400]
    assert np.abs(edges - [BOX[0] - X, BOX[1] - Y, BOX[2] - X, BOX[3] - Y]).max() <= d + shrink


def test_label_mask_that_fits_file_and_bounds_is_refused(tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "s.tiff", draw((1800, 1800)), (1, 4), mpp=0.5)
    slide = Slide.open(drop_tiles(path, (256, 256, 1280, 1280)))
    write_pyramid(tmp_path / "m.tiff", np.zeros((900, 900), np.uint8), (1,))
    with pytest.raises(MaskError, match=r"900 x 900 px, which fits the whole file and its bounds.*1800 x 1800.*1024 x"):
        LabelMask.open(tmp_path / "m.tiff", slide, "karolinska")


def test_mapped_slide_with_bounds_is_in_the_frame_of_qupath(tmp_path: Path, path: Path) -> None:
    checkpoint = segmentation_checkpoint(tmp_path / "best.ckpt")
    predictor = SegmentationPredictor.from_checkpoint(checkpoint, EngineSettings(device="cpu"))
    mapper = SlideMapper(predictor, 0.0, QuantifySettings())
    with mapper.open(path) as slide:
        tissue = find_tissue(slide)
        with mapper.map(slide, tissue, tmp_path / "out", tmp_path / "out" / "canvas.zarr") as mapped:
            result = mapped.files.write()
    assert result.bounds == BOUNDS
    assert "(256, 512); add 256 and 512" in result.frame
    box = np.array(BOX) - [X, Y, X, Y]
    assert np.abs(np.array(result.regions[0].bbox) - box).max() <= 24
    assert result.tissue_mm2 == pytest.approx(700 * 400 * 0.25e-6, rel=0.1)
    collection = json.loads((tmp_path / "out" / "regions.geojson").read_text())
    assert collection["frame"] == result.frame
    with tifffile.TiffFile(tmp_path / "out" / "probability.ome.tiff") as tif:
        scale = result.downsample
        assert tif.pages[0].shape == (round(HEIGHT / scale), round(WIDTH / scale))
        assert result.frame in str(tif.ome_metadata)
    assert json.loads((tmp_path / "out" / "quantification.json").read_text())["bounds"] == list(BOUNDS)


def test_tiles_of_feature_file_are_moved_to_the_slide(path: Path) -> None:
    """A feature file has coordinates of the whole file, as OpenSlide has them."""
    origin = FeatureOrigin(format="panda", dim=1, tile_px0=64)
    file = FeatureFile(path.stem, np.zeros((1, 1), np.float32), np.array([[X + 64, Y + 32]]), origin)
    with Slide.open(path) as slide:
        placed = file.locate_tiles(slide)
    assert placed is not None
    assert (placed[0].tolist(), placed[1]) == ([[64, 32]], 64)
