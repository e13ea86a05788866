"""Label masks are read in the frame of their slide."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from panda.errors import MaskError
from panda.wsi.classes import ANY_CANCER, IGNORED, OTHER, find_classes
from panda.wsi.geometry import round_px
from panda.wsi.label_maps import LabelMap, find_label_map, get_label_maps
from panda.wsi.label_mask import LabelMask
from panda.wsi.mask_file import MaskFile
from panda.wsi.slide import Slide
from tests.pyramids import level_size, sample_centers, write_levels, write_pyramid

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the real slides are not at {DATA}")

WIDTH, HEIGHT = 1005, 803


@pytest.fixture(scope="module")
def codes() -> NDArray[np.uint8]:
    """Codes 0 and 5 in blocks: any interpolation between them shows as 1 to 4."""
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


def open_file(path: Path, slide: Slide) -> MaskFile:
    return MaskFile.open(path, slide, find_label_map("radboud"))


def test_label_mask_open_unknown_provider_raises(mask_path: Path, slide: Slide) -> None:
    with pytest.raises(MaskError, match="leuven"):
        LabelMask.open(mask_path, slide, "leuven")


def test_label_mask_target_ignores_unlabelled_and_outside_px(
    tmp_path: Path, slide: Slide, codes: NDArray[np.uint8]
) -> None:
    level0, past = slide.choose_resolution(level=0), (WIDTH - 8, 0)
    binary = LabelMask.open(write_pyramid(tmp_path / "b.tiff", codes // 5, tile=64), slide, "binary")
    radboud = LabelMask.open(write_pyramid(tmp_path / "r.tiff", codes, tile=64), slide, "radboud")
    inside = codes[:16, -8:]
    for mask, other in ((binary, OTHER), (radboud, IGNORED)):
        target = mask.read_target(level0, past, (16, 16), ignore_background=True)
        assert (target[:, :8] == np.where(inside == 5, 1, other)).all()
        assert (target[:, 8:] == IGNORED).all()
        target = mask.read_target(level0, past, (16, 16), ignore_background=False)
        assert (target == np.pad(np.where(inside == 5, 1, OTHER), ((0, 0), (0, 8)))).all()


def test_label_mask_given_label_maps_precede_known(mask_path: Path, slide: Slide) -> None:
    own = LabelMap(names={0: "glass", 5: "tissue"}, cancer=(0,), unlabelled=())
    level0 = slide.choose_resolution(level=0)
    with (
        LabelMask.open(mask_path, slide, "radboud", {"radboud": own}) as given,
        LabelMask.open(mask_path, slide, "elsewhere", {"elsewhere": own}) as third,
        LabelMask.open(mask_path, slide, "radboud", {"elsewhere": own}) as known,
    ):
        tumor = known.read_tumor(level0, (0, 0), slide.dimensions)
        for mask in (given, pickle.loads(pickle.dumps(third))):
            assert (mask.read_tumor(level0, (0, 0), slide.dimensions) == ~tumor).all()


def test_label_mask_level_0_is_exact_and_0_outside(mask: LabelMask, slide: Slide, codes: NDArray[np.uint8]) -> None:
    level0 = slide.choose_resolution(level=0)
    assert (mask.overview(level0) == codes).all()
    around = mask.read(level0, (-10, -20), (WIDTH + 30, HEIGHT + 50))
    assert (around[20 : 20 + HEIGHT, 10 : 10 + WIDTH] == codes).all()
    around[20 : 20 + HEIGHT, 10 : 10 + WIDTH] = 0
    assert not around.any()
    for far in [(-5000, 0), (0, -5000), (5000, 0), (0, 5000)]:
        assert not mask.read(level0, far, (7, 5)).any()


def test_label_mask_lower_levels_are_stored_px(mask: LabelMask, slide: Slide, mask_path: Path) -> None:
    with tifffile.TiffFile(mask_path) as tif:
        stored = [page.asarray()[..., 0] for page in tif.pages]
    for level in (1, 2):
        view = slide.choose_resolution(level=level)
        assert (mask.overview(view) == stored[level]).all()
        for x, y in [(3, 5), (20, 17), (40, 30)]:
            at = round_px(x * view.downsample), round_px(y * view.downsample)
            assert (mask.read(view, at, (20, 20)) == stored[level][y : y + 20, x : x + 20]).all()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Slide:
    blank = np.full((223, 301, 3), 255, np.uint8)
    return Slide.open(write_pyramid(tmp_path_factory.mktemp("small") / "s.tiff", blank, (1, 4.0004), tile=64))


def make_channels(codes: NDArray[np.uint8], stored: str, seed: int) -> NDArray[np.uint8]:
    """Codes as a file stores them: one channel, or the first of several whose others hold anything."""
    if stored in {"minisblack", "palette"}:
        return codes
    rubbish = np.random.default_rng(seed).integers(0, 256, (*codes.shape, 3 if stored == "rgba" else 2), np.uint8)
    return np.concatenate([codes[..., None], rubbish], axis=2)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    stored=st.sampled_from(["rgb", "rgba", "minisblack", "palette"]),
    compression=st.sampled_from([None, "adobe_deflate", "lzw", "zstd"]),
    tile=st.sampled_from([16, 48, 256, None]),
    scale=st.sampled_from([1.0, 2.0]) | st.floats(0.3, 1),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_label_mask_reads_stored_codes_only(  # noqa: PLR0917 - one argument each of what is varied
    tmp_path_factory: pytest.TempPathFactory,
    small: Slide,
    stored: str,
    compression: str | None,
    tile: int | None,
    scale: float,
    seed: int,
    data: st.DataObject,
) -> None:
    """At any resolution a code is one that is stored, and at that of the mask all are where they are stored."""
    kept = sorted(data.draw(st.sets(st.integers(0, 255), min_size=2, max_size=4)))
    size = level_size(small.dimensions, 1 / scale, "nearest")
    rng = np.random.default_rng(seed)
    first = np.array(kept, np.uint8)[rng.integers(0, len(kept), (size[1], size[0]))]
    levels = [first, *(sample_centers(first, level_size(size, by, "down"), (by, by)) for by in (2.5, 7))]
    every: dict[str, Any] = {"photometric": stored.removesuffix("a"), "compression": compression}
    if compression is not None and data.draw(st.booleans()):
        every["predictor"] = True
    if stored == "palette":
        every["colormap"] = rng.integers(0, 2**16, (3, 256), np.uint16)
    path = tmp_path_factory.mktemp("stored") / "m.tiff"
    write_levels(path, [make_channels(level, stored, seed) for level in levels], tile, **every)
    with LabelMask.open(path, small, "radboud") as mask:
        assert len(open_file(path, small).level_dimensions) == 3
        view = small.choose_resolution(downsample=data.draw(st.floats(0.9, 20)))
        # px whose centre is on the slide, not on its very edge
        columns, rows = (math.ceil(side / view.downsample - 0.5 - 1e-9) for side in small.dimensions)
        assert set(np.unique(mask.overview(view)[:rows, :columns]).tolist()) <= set(kept)
        if scale == 1:
            x, y = data.draw(st.integers(0, 300)), data.draw(st.integers(0, 222))
            window = mask.read(small.choose_resolution(level=0), (x, y), (90, 70))
            assert (window[: 223 - y, : 301 - x] == first[y : y + 70, x : x + 90]).all()


@settings(max_examples=25, deadline=None, derandomize=True)
@given(provider=st.sampled_from(sorted(get_label_maps())), seed=st.integers(0, 99), data=st.data())
def test_label_mask_unknown_codes_are_named_with_file_and_count(
    tmp_path_factory: pytest.TempPathFactory, small: Slide, provider: str, seed: int, data: st.DataObject
) -> None:
    known = sorted(find_label_map(provider).names)
    unknown = st.integers(1, 254).filter(lambda code: code not in known)
    counts = data.draw(st.dictionaries(unknown, st.integers(1, 400), min_size=1, max_size=3))
    rng = np.random.default_rng(seed)
    codes = rng.choice(np.array(known, np.uint8), 223 * 301)
    places = iter(rng.permutation(codes.size))
    for code, count in counts.items():
        codes[[next(places) for _ in range(count)]] = code
    path = write_levels(tmp_path_factory.mktemp("odd") / "odd_mask.tiff", [codes.reshape(223, 301)], 64)
    named = ", ".join(f"{code} ({counts[code]} px)" for code in sorted(counts))
    with LabelMask.open(path, small, provider) as mask, pytest.raises(MaskError) as error:
        mask.read_tumor(small.choose_resolution(level=0), (0, 0), small.dimensions)
    assert str(error.value).startswith(f"{path}: label codes {named} are not among {provider}'s {known}")


def test_label_mask_reads_coarsest_sufficient_level(
    mask_path: Path, slide: Slide, tmp_path: Path, codes: NDArray[np.uint8]
) -> None:
    mask = open_file(mask_path, slide)
    assert [mask._choose_level(slide.choose_resolution(level=level)) for level in (0, 1, 2)] == [0, 1, 2]
    assert [mask._choose_level(slide.choose_resolution(downsample=d)) for d in (3.0, 8.0, 40.0)] == [0, 1, 2]
    half = open_file(write_pyramid(tmp_path / "h.tiff", codes[::2, ::2], tile=64), slide)
    assert [half._choose_level(slide.choose_resolution(level=level)) for level in (0, 1, 2)] == [0, 0, 1]


def test_label_mask_large_window_is_read_in_blocks(tmp_path: Path) -> None:
    stripes = np.zeros((63, 9000), np.uint8)
    stripes[:, ::2] = 2
    slide = Slide.open(write_pyramid(tmp_path / "s.tiff", np.full((63, 9000, 3), 255, np.uint8), (1,)))
    mask = LabelMask.open(write_pyramid(tmp_path / "m.tiff", stripes, (1,)), slide, "karolinska")
    assert (mask.overview(slide.choose_resolution(level=0)) == stripes).all()
    assert (mask.overview(slide.choose_resolution(downsample=3.0)) == stripes[1::3, 1::3]).all()


def test_read_tumor_bad_code_names_file(
    mask: LabelMask, slide: Slide, codes: NDArray[np.uint8], mask_path: Path
) -> None:
    view = slide.choose_resolution(level=0)
    assert (mask.read_tumor(view, (0, 0), (200, 100)) == (codes[:100, :200] == 5)).all()
    with (
        LabelMask.open(mask_path, slide, "karolinska") as wrong,
        pytest.raises(MaskError, match=r"s_mask\.tiff: label codes 5"),
    ):
        wrong.read_tumor(view, (0, 0), (200, 100))


def test_label_mask_single_channel_and_strips_are_read(tmp_path: Path, slide: Slide, codes: NDArray[np.uint8]) -> None:
    tifffile.imwrite(tmp_path / "g.tiff", codes, rowsperstrip=50, metadata=None, compression="lzw")
    mask = LabelMask.open(tmp_path / "g.tiff", slide, "radboud")
    assert (mask.overview(slide.choose_resolution(level=0)) == codes).all()


def test_label_mask_levels_in_sub_ifds_are_found(tmp_path: Path, slide: Slide, codes: NDArray[np.uint8]) -> None:
    mask = open_file(write_pyramid(tmp_path / "o.tiff", codes, subifds=True), slide)
    assert mask.level_dimensions == slide.level_dimensions


def test_label_mask_survives_pickle(mask: LabelMask, slide: Slide, codes: NDArray[np.uint8]) -> None:
    copy = pickle.loads(pickle.dumps(mask))
    assert (copy.read(slide.choose_resolution(level=0), (0, 0), (50, 60)) == codes[:60, :50]).all()
    copy.close()


@pytest.mark.parametrize("what", ["missing.tiff", "folder", "text.tiff", "wide.tiff", "deep.tiff", "cut.tiff"])
def test_label_mask_of_other_slide_raises(tmp_path: Path, slide: Slide, what: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.tiff").write_text("no mask at all")
    tifffile.imwrite(tmp_path / "wide.tiff", np.zeros((HEIGHT, WIDTH * 2), np.uint8), metadata=None)
    tifffile.imwrite(tmp_path / "deep.tiff", np.full((HEIGHT, WIDTH), 300, np.uint16), metadata=None)
    tifffile.imwrite(tmp_path / "cut.tiff", np.zeros((HEIGHT, WIDTH), np.uint8), metadata=None)
    with (tmp_path / "cut.tiff").open("rb+") as file:
        file.truncate(1000)
    with pytest.raises(MaskError, match=what):
        LabelMask.open(tmp_path / what, slide, "radboud")


def test_label_mask_other_shape_raises_with_both_sizes(tmp_path: Path, slide: Slide) -> None:
    path = write_pyramid(tmp_path / "w.tiff", np.zeros((500, 500), np.uint8), (1,), tile=64)
    with pytest.raises(MaskError, match="mask is 500 x 500 px, slide is 1005 x 803 px"):
        LabelMask.open(path, slide, "radboud")


def test_label_mask_damaged_region_raises_when_read(tmp_path: Path, slide: Slide, mask_path: Path) -> None:
    content = bytearray(mask_path.read_bytes())
    with tifffile.TiffFile(mask_path) as tif:
        start, count = tif.pages.first.dataoffsets[0], tif.pages.first.databytecounts[0]
    content[start : start + count] = b"\xff" * count
    (tmp_path / "d.tiff").write_bytes(content)
    mask = LabelMask.open(tmp_path / "d.tiff", slide, "radboud")
    view = slide.choose_resolution(level=0)
    mask.read(view, (128, 128), (10, 10))
    with pytest.raises(MaskError, match=r"d\.tiff: cannot read 10 x 10 px at \(0, 0\) of mask level 0"):
        mask.read(view, (0, 0), (10, 10))
    with pytest.raises(MaskError, match="at least 1"):
        mask.read(view, (0, 0), (0, 10))


@pytest.mark.real_data
@needs_data
@pytest.mark.parametrize(("number", "provider"), [(0, "karolinska"), (1, "radboud")])
def test_label_mask_real_masks_fit_their_slides(number: int, provider: str) -> None:
    table = (DATA / "glas_wsi" / "train.csv").read_text().split()[1:]
    image_id = sorted(row.split(",")[0] for row in table if provider in row)[number]
    slide = Slide.open(DATA / "glas_wsi" / "train_images" / f"{image_id}.tiff")
    path = DATA / "glas_wsi" / "train_label_masks" / f"{image_id}_mask.tiff"
    with LabelMask.open(path, slide, provider) as mask:
        view = slide.choose_resolution(level=1)
        codes = mask.overview(view)
        assert codes.shape == (view.height, view.width)
        picture = slide.read(view, (0, 0), view.size)
        labelled = codes > 0
        assert picture[labelled].mean() < picture[~labelled].mean() - 20
        mask.read_tumor(slide.choose_resolution(mpp=5.0), (0, 0), (100, 100))


def test_label_mask_target_of_patterns_merges_to_binary(tmp_path: Path, slide: Slide) -> None:
    gleason, level0 = find_classes("gleason"), slide.choose_resolution(level=0)
    expected = {"radboud": [0, 0, 0, 1, 2, 3], "karolinska": [0, 0, ANY_CANCER]}
    for provider, targets in expected.items():
        codes = np.random.default_rng(0).integers(0, len(targets), (HEIGHT, WIDTH)).astype(np.uint8)
        mask = LabelMask.open(write_pyramid(tmp_path / f"{provider}.tiff", codes, tile=64), slide, provider)
        for ignore in (True, False):
            binary = mask.read_target(level0, (0, 0), (WIDTH + 8, 40), ignore_background=ignore)
            target = mask.read_target(level0, (0, 0), (WIDTH + 8, 40), ignore_background=ignore, classes=gleason)
            assert (np.where((target == OTHER) | (target == IGNORED), target, 1) == binary).all()
            assert (target[:, WIDTH:] == (IGNORED if ignore else OTHER)).all()
        assert (target[:, :WIDTH] == np.array(targets, np.uint8)[codes[:40]]).all()
