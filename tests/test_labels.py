"""Label codes and masks read in the frame of their slide."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from panda.errors import MaskError
from panda.wsi.geometry import round_px
from panda.wsi.labels import PROVIDERS, LabelMask, tumor_bool_from_gray
from panda.wsi.slide import Slide
from tests.pyramids import write_pyramid

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the real slides are not at {DATA}")

WIDTH, HEIGHT = 1005, 803


@pytest.fixture(scope="module")
def codes() -> NDArray[np.uint8]:
    """Codes 0 and 5 in blocks: whatever interpolates between them shows as 1 to 4."""
    rng = np.random.default_rng(1)
    blocks = rng.integers(0, 2, (HEIGHT // 16 + 1, WIDTH // 16 + 1)) * 5
    return np.repeat(np.repeat(blocks, 16, 0), 16, 1)[:HEIGHT, :WIDTH].astype(np.uint8)


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Slide:
    blank = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    return Slide.open(write_pyramid(tmp_path_factory.mktemp("s") / "s.tiff", blank, mpp=0.5))


@pytest.fixture(scope="module")
def mask_path(tmp_path_factory: pytest.TempPathFactory, codes: NDArray[np.uint8]) -> Path:
    return write_pyramid(tmp_path_factory.mktemp("m") / "s_mask.tiff", codes, tile=64)


@pytest.fixture
def mask(mask_path: Path, slide: Slide) -> LabelMask:
    return LabelMask.open(mask_path, slide, "radboud")


def test_cancer_codes_of_each_provider() -> None:
    row = np.array([[0, 1, 2, 3, 4, 5]], np.uint8)
    assert tumor_bool_from_gray(row, "radboud").tolist() == [[False, False, False, True, True, True]]
    assert tumor_bool_from_gray(row[:, :3], "karolinska").tolist() == [[False, False, True]]
    assert PROVIDERS["radboud"].names[2] == "benign epithelium"


def test_unknown_codes_are_named_with_their_counts() -> None:
    with pytest.raises(MaskError, match=r"3 \(2 px\), 255 \(1 px\) are not among karolinska's \[0, 1, 2\]"):
        tumor_bool_from_gray(np.array([[3, 3, 0], [1, 2, 255]], np.uint8), "karolinska")


def test_an_unknown_provider_is_named_with_the_known(mask_path: Path, slide: Slide) -> None:
    with pytest.raises(MaskError, match=r"'leuven'.*karolinska, radboud"):
        tumor_bool_from_gray(np.zeros((2, 2), np.uint8), "leuven")
    with pytest.raises(MaskError, match="leuven"):
        LabelMask.open(mask_path, slide, "leuven")


@pytest.mark.parametrize("bad", [np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2), np.float32)])
def test_codes_must_be_a_plane_of_uint8(bad: NDArray[np.uint8]) -> None:
    with pytest.raises(MaskError, match="red channel"):
        tumor_bool_from_gray(bad, "radboud")


def test_an_empty_plane_has_no_cancer() -> None:
    assert tumor_bool_from_gray(np.zeros((0, 4), np.uint8), "radboud").shape == (0, 4)


def test_level_0_reads_are_exact_and_0_past_every_edge(mask: LabelMask, slide: Slide, codes: NDArray[np.uint8]) -> None:
    level0 = slide.at(level=0)
    assert (mask.overview(level0) == codes).all()
    around = mask.read(level0, (-10, -20), (WIDTH + 30, HEIGHT + 50))
    assert (around[20 : 20 + HEIGHT, 10 : 10 + WIDTH] == codes).all()
    around[20 : 20 + HEIGHT, 10 : 10 + WIDTH] = 0
    assert not around.any()
    for far in [(-5000, 0), (0, -5000), (5000, 0), (0, 5000)]:
        assert not mask.read(level0, far, (7, 5)).any()


def test_lower_levels_are_the_stored_px(mask: LabelMask, slide: Slide, mask_path: Path) -> None:
    with tifffile.TiffFile(mask_path) as tif:
        stored = [page.asarray()[..., 0] for page in tif.pages]
    for level in (1, 2):
        view = slide.at(level=level)
        assert (mask.overview(view) == stored[level]).all()
        for x, y in [(3, 5), (20, 17), (40, 30)]:
            at = round_px(x * view.downsample), round_px(y * view.downsample)
            assert (mask.read(view, at, (20, 20)) == stored[level][y : y + 20, x : x + 20]).all()


@pytest.mark.parametrize("scale", [1.0, 0.5, 0.37, 2.0])
@pytest.mark.parametrize("downsample", [1.0, 1.5, 5.0, 17.3])
def test_codes_are_never_interpolated(
    tmp_path: Path, slide: Slide, codes: NDArray[np.uint8], scale: float, downsample: float
) -> None:
    size = round(WIDTH * scale), round(HEIGHT * scale)
    rows = ((np.arange(size[1]) + 0.5) * HEIGHT / size[1]).astype(int)
    columns = ((np.arange(size[0]) + 0.5) * WIDTH / size[0]).astype(int)
    path = write_pyramid(tmp_path / "m.tiff", codes[np.ix_(rows, columns)], tile=64)
    view = slide.at_downsample(downsample)
    overview = LabelMask.open(path, slide, "radboud").overview(view)
    assert overview.shape == (view.height, view.width)
    assert set(np.unique(overview)) <= {0, 5}
    x = np.minimum((np.arange(view.width) + 0.5) * downsample, WIDTH - 1).astype(int)
    y = np.minimum((np.arange(view.height) + 0.5) * downsample, HEIGHT - 1).astype(int)
    if downsample < 5:
        assert (overview == codes[np.ix_(y, x)]).mean() > 0.8


def test_the_coarsest_sufficient_mask_level_is_read(
    mask: LabelMask, slide: Slide, tmp_path: Path, codes: NDArray[np.uint8]
) -> None:
    assert [mask._level_for(slide.at(level=level)) for level in (0, 1, 2)] == [0, 1, 2]
    assert [mask._level_for(slide.at_downsample(d)) for d in (3.0, 8.0, 40.0)] == [0, 1, 2]
    half = LabelMask.open(write_pyramid(tmp_path / "h.tiff", codes[::2, ::2], tile=64), slide, "radboud")
    assert [half._level_for(slide.at(level=level)) for level in (0, 1, 2)] == [0, 0, 1]


def test_large_windows_are_read_in_blocks(tmp_path: Path) -> None:
    stripes = np.zeros((63, 9000), np.uint8)
    stripes[:, ::2] = 2
    slide = Slide.open(write_pyramid(tmp_path / "s.tiff", np.full((63, 9000, 3), 255, np.uint8), (1,)))
    mask = LabelMask.open(write_pyramid(tmp_path / "m.tiff", stripes, (1,)), slide, "karolinska")
    assert (mask.overview(slide.at(level=0)) == stripes).all()
    assert (mask.overview(slide.at_downsample(3.0)) == stripes[1::3, 1::3]).all()


def test_read_tumor_names_the_file_of_a_bad_code(
    mask: LabelMask, slide: Slide, codes: NDArray[np.uint8], mask_path: Path
) -> None:
    view = slide.at(level=0)
    assert (mask.read_tumor(view, (0, 0), (200, 100)) == (codes[:100, :200] == 5)).all()
    with (
        LabelMask.open(mask_path, slide, "karolinska") as wrong,
        pytest.raises(MaskError, match=r"s_mask\.tiff: label codes 5"),
    ):
        wrong.read_tumor(view, (0, 0), (200, 100))


def test_single_channel_and_stripped_masks_are_read(tmp_path: Path, slide: Slide, codes: NDArray[np.uint8]) -> None:
    tifffile.imwrite(tmp_path / "g.tiff", codes, rowsperstrip=50, metadata=None, compression="lzw")
    mask = LabelMask.open(tmp_path / "g.tiff", slide, "radboud")
    assert (mask.overview(slide.at(level=0)) == codes).all()


def test_levels_in_sub_ifds_are_found(tmp_path: Path, slide: Slide, codes: NDArray[np.uint8]) -> None:
    mask = LabelMask.open(write_pyramid(tmp_path / "o.tiff", codes, subifds=True), slide, "radboud")
    assert mask.level_dimensions == slide.level_dimensions


def test_a_mask_travels_by_pickle(mask: LabelMask, slide: Slide, codes: NDArray[np.uint8]) -> None:
    copy = pickle.loads(pickle.dumps(mask))
    assert (copy.read(slide.at(level=0), (0, 0), (50, 60)) == codes[:60, :50]).all()
    copy.close()


@pytest.mark.parametrize("what", ["missing.tiff", "folder", "text.tiff", "wide.tiff", "deep.tiff", "cut.tiff"])
def test_what_is_no_mask_of_the_slide_is_refused(tmp_path: Path, slide: Slide, what: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.tiff").write_text("no mask at all")
    tifffile.imwrite(tmp_path / "wide.tiff", np.zeros((HEIGHT, WIDTH * 2), np.uint8), metadata=None)
    tifffile.imwrite(tmp_path / "deep.tiff", np.zeros((HEIGHT, WIDTH), np.uint16), metadata=None)
    tifffile.imwrite(tmp_path / "cut.tiff", np.zeros((HEIGHT, WIDTH), np.uint8), metadata=None)
    with (tmp_path / "cut.tiff").open("rb+") as file:
        file.truncate(1000)
    with pytest.raises(MaskError, match=what):
        LabelMask.open(tmp_path / what, slide, "radboud")


def test_both_sizes_are_named_when_the_shapes_differ(tmp_path: Path, slide: Slide) -> None:
    path = write_pyramid(tmp_path / "w.tiff", np.zeros((500, 500), np.uint8), (1,), tile=64)
    with pytest.raises(MaskError, match="mask is 500 x 500 px, slide is 1005 x 803 px"):
        LabelMask.open(path, slide, "radboud")


def test_a_damaged_region_is_an_error_where_it_is_read(tmp_path: Path, slide: Slide, mask_path: Path) -> None:
    content = bytearray(mask_path.read_bytes())
    with tifffile.TiffFile(mask_path) as tif:
        start, count = tif.pages.first.dataoffsets[0], tif.pages.first.databytecounts[0]
    content[start : start + count] = b"\xff" * count
    (tmp_path / "d.tiff").write_bytes(content)
    mask = LabelMask.open(tmp_path / "d.tiff", slide, "radboud")
    view = slide.at(level=0)
    mask.read(view, (128, 128), (10, 10))
    with pytest.raises(MaskError, match=r"d\.tiff: cannot read 10 x 10 px at \(0, 0\) of mask level 0"):
        mask.read(view, (0, 0), (10, 10))
    with pytest.raises(MaskError, match="at least 1"):
        mask.read(view, (0, 0), (0, 10))


@settings(max_examples=12, deadline=None)
@given(
    width=st.integers(200, 700),
    height=st.integers(200, 700),
    ratio=st.floats(0.4, 1.3),
    downsample=st.floats(1.0, 20.0),
)
def test_a_landmark_at_the_far_corner_lands_within_one_px(
    tmp_path_factory: pytest.TempPathFactory, width: int, height: int, ratio: float, downsample: float
) -> None:
    folder = tmp_path_factory.mktemp("far")
    blank = np.full((height, width, 3), 255, np.uint8)
    slide = Slide.open(write_pyramid(folder / "s.tiff", blank, (1, 2, 4, 16), tile=64))
    mask_width, mask_height = round(width * ratio), round(height * ratio)
    sx, sy = width / mask_width, height / mask_height
    codes = np.zeros((mask_height, mask_width), np.uint8)
    codes[round_px((height - 64) / sy) :, round_px((width - 64) / sx) :] = 2
    mask = LabelMask.open(write_pyramid(folder / "m.tiff", codes, (1, 2, 4, 16), tile=64), slide, "karolinska")
    for view in [slide.at(level=level) for level in range(4)] + [slide.at_downsample(downsample)]:
        found = mask.overview(view) == 2
        assert found.any()
        # A mask px that spans more than a working px is the limit of what the mask can say.
        limit_x, limit_y = max(1.0, sx / view.downsample), max(1.0, sy / view.downsample)
        assert abs(found.any(axis=0).argmax() - (width - 64) / view.downsample) <= limit_x
        assert abs(found.any(axis=1).argmax() - (height - 64) / view.downsample) <= limit_y


@pytest.mark.real_data
@needs_data
@pytest.mark.parametrize(("number", "provider"), [(0, "karolinska"), (1, "radboud")])
def test_real_masks_fit_their_slides(number: int, provider: str) -> None:
    table = (DATA / "glas_wsi" / "train.csv").read_text().split()[1:]
    image_id = sorted(row.split(",")[0] for row in table if provider in row)[number]
    slide = Slide.open(DATA / "glas_wsi" / "train_images" / f"{image_id}.tiff")
    path = DATA / "glas_wsi" / "train_label_masks" / f"{image_id}_mask.tiff"
    with LabelMask.open(path, slide, provider) as mask:
        view = slide.at(level=1)
        codes = mask.overview(view)
        assert codes.shape == (view.height, view.width)
        picture = slide.read(view, (0, 0), view.size)
        labelled = codes > 0
        assert picture[labelled].mean() < picture[~labelled].mean() - 20
        mask.read_tumor(slide.at(mpp=5.0), (0, 0), (100, 100))
