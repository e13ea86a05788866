"""Opening slides, their resolution, and reading them."""

from __future__ import annotations

import multiprocessing
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

import numpy as np
import openslide
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from panda.errors import SlideError
from panda.wsi.mpp import read_tag_mpp
from panda.wsi.readers import ReaderName, blend_over_white
from panda.wsi.slide import Slide, SlideOptions
from tests.pyramids import write_pyramid

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the real slides are not at {DATA}")


def picture(width: int = 1005, height: int = 803, seed: int = 0) -> NDArray[np.uint8]:
    """Draw a picture in which every place looks different, smooth enough to be shrunk."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return np.ascontiguousarray(np.repeat(np.repeat(coarse, 8, 0), 8, 1)[:height, :width])


@pytest.fixture(scope="module")
def image() -> NDArray[np.uint8]:
    return picture()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, image: NDArray[np.uint8]) -> Path:
    return write_pyramid(tmp_path_factory.mktemp("slide") / "a1b2.tiff", image, tile=64, mpp=0.5)


@pytest.fixture
def slide(path: Path) -> Slide:
    return Slide.open(path)


def test_slide_open_returns_levels_and_mpp(slide: Slide) -> None:
    assert slide.slide_id == "a1b2"
    assert slide.dimensions == (1005, 803)
    assert slide.level_dimensions == ((1005, 803), (251, 200), (62, 50))
    assert slide.level_downsamples == (1.0, 4.0, 16.0)
    assert slide.usable_levels == (0, 1, 2)
    assert slide.mpp == pytest.approx((0.5, 0.5))
    assert slide.mpp_source == "openslide"
    assert "1005 x 803" in repr(slide)


def test_slide_read_level_0_is_exact_and_white_outside(slide: Slide, image: NDArray[np.uint8]) -> None:
    assert (slide.read_region((100, 50), 0, (300, 200)) == image[50:250, 100:400]).all()
    around = slide.read_region((-10, -20), 0, (1005 + 30, 803 + 50))
    assert (around[20 : 20 + 803, 10 : 10 + 1005] == image).all()
    around[20 : 20 + 803, 10 : 10 + 1005] = 255
    assert (around == 255).all()
    for far in [(-5000, 0), (0, -5000), (5000, 0), (0, 5000)]:
        assert (slide.read_region(far, 0, (7, 5)) == 255).all()


def test_slide_read_lower_level_is_close_to_stored(slide: Slide, path: Path) -> None:
    with tifffile.TiffFile(path) as tif:
        stored = tif.pages[1].asarray()
    for x, y in [(0, 0), (64, 64), (100, 37), (201, 150)]:
        at = round(x * slide.level_downsamples[1]), round(y * slide.level_downsamples[1])
        read = slide.read_region(at, 1, (50, 50))
        assert read.shape == (50, 50, 3)
        there, beside = stored[y : y + 50, x : x + 49], stored[y : y + 50, x + 1 : x + 50]
        assert np.abs(read[:, :49].astype(int) - there).mean() < 10
        assert np.abs(read[:, :49].astype(int) - beside).mean() > 30


def test_slide_read_absent_level_raises(slide: Slide) -> None:
    for call in (lambda: slide.choose_resolution(level=3), lambda: slide.read_region((0, 0), -1, (5, 5))):
        with pytest.raises(SlideError, match=r"levels are 0 to 2"):
            call()


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (-1, 5)])
def test_slide_read_empty_window_raises(slide: Slide, size: tuple[int, int]) -> None:
    with pytest.raises(SlideError, match="at least 1"):
        slide.read_region((0, 0), 0, size)
    with pytest.raises(SlideError, match="at least 1"):
        slide.read(slide.choose_resolution(mpp=1.3), (0, 0), size)


def test_choose_resolution_level_is_unchanged(slide: Slide) -> None:
    resolution = slide.choose_resolution(level=1)
    assert resolution.size == (251, 200)
    assert not resolution.is_resampled
    assert resolution.mpp == pytest.approx((2.0, 2.0))


def test_choose_resolution_mpp_resamples_nearest_finer_level(slide: Slide) -> None:
    resolution = slide.choose_resolution(mpp=3.0)
    assert (resolution.level, resolution.is_resampled) == (1, True)
    assert resolution.downsample == pytest.approx(6.0)
    assert resolution.size == (168, 134)
    assert resolution.mpp == pytest.approx((3.0, 3.0))
    assert slide.choose_resolution(mpp=1.9).level == 0


def test_choose_resolution_level_within_one_percent_is_unchanged(slide: Slide) -> None:
    resolution = slide.choose_resolution(mpp=2.01)
    assert (resolution.level, resolution.is_resampled) == (1, False)


def test_choose_resolution_finer_than_scan_raises(slide: Slide) -> None:
    assert slide.choose_resolution(mpp=0.46).size == (1093, 873)
    with pytest.raises(SlideError, match=r"0\.25 µm/px is finer than the scan, 0\.5 µm/px"):
        slide.choose_resolution(mpp=0.25)
    with pytest.raises(ValueError, match=r"0\.9 or more"):
        slide.choose_resolution(downsample=0.5)


@pytest.mark.parametrize("asked", [{}, {"level": 1, "mpp": 1.0}, {"mpp": 0.0}, {"mpp": float("nan")}])
def test_choose_resolution_takes_exactly_one_argument(slide: Slide, asked: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="µm/px"):
        slide.choose_resolution(**asked)


def test_slide_read_resampled_equals_area_mean(tmp_path: Path, image: NDArray[np.uint8]) -> None:
    slide = Slide.open(write_pyramid(tmp_path / "one.tiff", image, downsamples=(1,)))
    resolution = slide.choose_resolution(downsample=3.0)
    read = slide.read(resolution, (30, 60), (20, 10))
    window = image[60:90, 30:90].reshape(10, 3, 20, 3, 3).mean(axis=(1, 3))
    assert np.abs(read - window).max() <= 1


def test_slide_read_resampled_windows_fit_together(slide: Slide) -> None:
    resolution = slide.choose_resolution(mpp=3.0)
    whole = slide.read(resolution, (0, 0), resolution.size)
    part = slide.read(resolution, (round(6.0 * 80), round(6.0 * 40)), (40, 40))
    # Windows begin at whole source px, so that two may differ by half a source px, not by a working px.
    assert np.abs(part.astype(int) - whole[40:80, 80:120]).mean() < 18
    assert np.abs(part.astype(int) - whole[40:80, 81:121]).mean() > 36
    magnified = slide.read(slide.choose_resolution(mpp=0.46), (0, 0), (50, 50))
    assert magnified.shape == (50, 50, 3)


def test_slide_read_resampled_blocks_have_no_seams(tmp_path: Path) -> None:
    ramp = np.broadcast_to((np.arange(6000) // 24).astype(np.uint8)[None, :, None], (40, 6000, 3))
    slide = Slide.open(write_pyramid(tmp_path / "ramp.tiff", np.ascontiguousarray(ramp), downsamples=(1,)))
    resolution = slide.choose_resolution(downsample=10.0)  # 600 px wide, of which one block holds 409
    read = slide.read(resolution, (0, 0), resolution.size)[0, :, 0].astype(int)
    assert np.abs(read - (np.arange(600) * 10 + 5) / 24).max() <= 1


def test_overview_uses_lowest_useful_level(slide: Slide) -> None:
    for side, size in [(4000, (1005, 803)), (300, (251, 200)), (125, (125, 100)), (600, (600, 480))]:
        overview, resolution = slide.overview(side)
        assert resolution.size == size
        assert overview.shape == (size[1], size[0], 3)
    assert not slide.overview(300)[1].is_resampled


def test_slide_is_shared_by_threads(slide: Slide, image: NDArray[np.uint8]) -> None:
    places = [(x, y) for x in range(0, 960, 96) for y in range(0, 720, 96)] * 2
    with ThreadPoolExecutor(8) as pool:
        reads = list(pool.map(lambda place: slide.read_region(place, 0, (40, 40)), places))
    for (x, y), read in zip(places, reads, strict=True):
        assert (read == image[y : y + 40, x : x + 40]).all()


def test_slide_pickle_opens_lazily(slide: Slide, image: NDArray[np.uint8]) -> None:
    copy = pickle.loads(pickle.dumps(slide))
    assert copy.mpp == slide.mpp
    assert copy._reader.tiff._file._handle is None
    assert (copy.read_region((0, 0), 0, (30, 30)) == image[:30, :30]).all()


def _mean(slide: Slide) -> float:
    return float(slide.read_region((0, 0), 0, (100, 100)).mean())


def test_slide_forked_process_opens_own_handle(slide: Slide) -> None:
    here = _mean(slide)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 on: forking beside threads
        with multiprocessing.get_context("fork").Pool(2) as pool:
            assert pool.map(_mean, [slide] * 4) == [here] * 4


def test_slide_close_releases_and_read_reopens(path: Path) -> None:
    with Slide.open(path) as slide:
        before = _mean(slide)
    assert _mean(slide) == before
    slide.close()
    slide.close()


def test_blend_over_white_applies_alpha() -> None:
    rgba = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 100, 200, 128]]], np.uint8)
    assert blend_over_white(rgba).tolist() == [[[10, 20, 30], [255, 255, 255], [127, 177, 227]]]


@pytest.mark.parametrize("what", ["missing.tiff", "folder", "text.tiff", "empty.tiff", "cut.tiff"])
def test_slide_open_no_slide_raises_with_name(tmp_path: Path, path: Path, what: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.tiff").write_text("no slide at all")
    (tmp_path / "empty.tiff").touch()
    (tmp_path / "cut.tiff").write_bytes(path.read_bytes()[:100])
    with pytest.raises(SlideError, match=what):
        Slide.open(tmp_path / what)


def test_slide_options_unknown_reader_raises(path: Path) -> None:
    with pytest.raises(SlideError, match="auto, openslide, fast"):
        SlideOptions(reader="magic").open(path)  # type: ignore[arg-type]


def test_slide_read_damaged_region_raises_and_rest_is_readable(
    tmp_path: Path, path: Path, image: NDArray[np.uint8]
) -> None:
    damaged = tmp_path / "damaged.tiff"
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tif:
        page = tif.pages.first
        start, count = page.dataoffsets[0], page.databytecounts[0]
    content[start : start + count] = b"\xff" * count
    damaged.write_bytes(content)
    slide = Slide.open(damaged)
    with pytest.raises(SlideError, match=r"damaged\.tiff: cannot read 10 x 10 px at \(0, 0\) of level 0"):
        slide.read_region((0, 0), 0, (10, 10))
    assert (slide.read_region((128, 128), 0, (10, 10)) == image[128:138, 128:138]).all()


def test_slide_open_auto_falls_back_to_tiff_reader(tmp_path: Path, image: NDArray[np.uint8]) -> None:
    strips = tmp_path / "strips.tiff"
    tifffile.imwrite(strips, image, rowsperstrip=16, photometric="rgb", resolution=(20000, 20000),
                     resolutionunit="CENTIMETER", metadata=None)  # fmt: skip
    with pytest.raises(SlideError, match="OpenSlide cannot open it"):
        SlideOptions(reader="openslide").open(strips)
    slide = pickle.loads(pickle.dumps(Slide.open(strips)))
    assert (slide.read_region((-3, 700), 0, (50, 200))[:103, 3:] == image[700:, :47]).all()
    assert (slide.mpp_source, slide.mpp) == ("tiff tags", (0.5, 0.5))
    slide.close()


def test_slide_open_tiff_reader_requires_color(tmp_path: Path, image: NDArray[np.uint8]) -> None:
    pair = tmp_path / "pair.tiff"
    tifffile.imwrite(pair, np.ascontiguousarray(image[..., :2]), rowsperstrip=16, metadata=None, planarconfig="contig")
    with pytest.raises(SlideError, match="2 channels"):
        Slide.open(pair)


def test_slide_level_without_common_downsample_is_refused(tmp_path: Path) -> None:
    odd = tmp_path / "odd.tiff"
    with tifffile.TiffWriter(odd) as writer:
        for number, (w, h) in enumerate([(800, 600), (400, 200), (200, 150)]):
            writer.write(picture(w, h), tile=(64, 64), subfiletype=int(number > 0), metadata=None)
    slide = Slide.open(odd)
    assert slide.usable_levels == (0, 2)
    with pytest.raises(SlideError, match=r"choose data\.level from \[0, 2\]"):
        slide.choose_resolution(level=1)
    assert slide.choose_resolution(downsample=2.0).level == 0


def write_small(folder: Path, **tags: Any) -> Path:
    return write_pyramid(folder / "slide.tiff", picture(100, 80), downsamples=(1,), tile=64, **tags)


def test_tag_mpp_reads_inch_and_centimeter(tmp_path: Path) -> None:
    for unit, per_unit in [("INCH", 50800), ("CENTIMETER", 20000)]:
        path = write_small(tmp_path, resolution=(per_unit, per_unit), unit=unit)
        assert Slide.open(path).mpp == pytest.approx((0.5, 0.5))
        assert read_tag_mpp(path)[0] == pytest.approx((0.5, 0.5))


@pytest.mark.parametrize("dpi", [72, 96])
def test_slide_open_screen_resolution_raises_with_both_values(tmp_path: Path, dpi: int) -> None:
    slide = Slide.open(write_small(tmp_path, resolution=(dpi, dpi), unit="INCH"))
    assert (slide.mpp, slide.mpp_source) == (None, None)
    value = f"{25400 / dpi:.4g}"
    assert f"{value} x {value} µm/px, outside 0.05..20: give data.mpp_override" in slide.mpp_note
    with pytest.raises(SlideError, match=r"outside 0\.05\.\.20"):
        slide.choose_resolution(mpp=1.0)


def test_slide_open_resolution_without_unit_is_none(tmp_path: Path) -> None:
    slide = Slide.open(write_small(tmp_path, resolution=(20000, 20000), unit="NONE"))
    assert slide.mpp is None
    assert "no unit" in slide.mpp_note
    assert slide.choose_resolution(level=0).mpp is None


def test_slide_open_tags_are_used_if_openslide_has_no_mpp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_small(tmp_path, mpp=0.25)
    monkeypatch.setattr(openslide, "PROPERTY_NAME_MPP_X", "openslide.absent")
    slide = Slide.open(path)
    assert slide.mpp_source == "tiff tags"
    assert slide.mpp == pytest.approx((0.25, 0.25))


def test_slide_options_mpp_override_replaces_missing_or_invalid(tmp_path: Path) -> None:
    unknown = SlideOptions(mpp_override=0.5).open(write_small(tmp_path))
    assert (unknown.mpp, unknown.mpp_source) == ((0.5, 0.5), "override")
    nonsense = SlideOptions(mpp_override=0.6).open(write_small(tmp_path, resolution=(72, 72), unit="INCH"))
    assert (nonsense.mpp, nonsense.mpp_source) == ((0.6, 0.6), "override")
    assert "352.8" in nonsense.mpp_note
    stated = SlideOptions(mpp_override=0.5).open(write_small(tmp_path, mpp=0.25))
    assert stated.mpp == pytest.approx((0.25, 0.25))
    assert stated.mpp_source == "openslide"


def write_ome(path: Path, tags: dict[str, Any], **metadata: Any) -> Path:
    tifffile.imwrite(path, picture(100, 80), tile=(64, 64), photometric="rgb", metadata=metadata, **tags)
    return path


@pytest.mark.parametrize(
    ("unit", "value"),
    [(None, 0.25), ("µm", 0.25), ("nm", 250.0), ("mm", 0.00025), ("m", 2.5e-7), ("in", 0.25 / 25400), ("Å", 2500)],
)
def test_slide_open_ome_xml_gives_mpp_in_any_unit(tmp_path: Path, unit: str | None, value: float) -> None:
    units = {} if unit is None else {f"PhysicalSize{axis}Unit": unit for axis in "XY"}
    path = write_ome(tmp_path / "s.ome.tiff", {}, PhysicalSizeX=value, PhysicalSizeY=2 * value, **units)
    for reader in get_args(ReaderName):
        slide = SlideOptions(reader=reader).open(path)
        assert slide.mpp == pytest.approx((0.25, 0.5))
        assert slide.mpp_source == "ome-xml"


def test_slide_open_ome_xml_without_length_is_unknown(tmp_path: Path) -> None:
    for metadata in ({"PhysicalSizeX": 0.25}, {"PhysicalSizeX": 1, "PhysicalSizeY": 1, "PhysicalSizeXUnit": "pixel"}):
        assert Slide.open(write_ome(tmp_path / "s.ome.tiff", {}, **metadata)).mpp is None
    thumbnail = write_ome(tmp_path / "s.ome.tiff", {}, PhysicalSizeX=0.25, PhysicalSizeY=0.25)
    thumbnail.write_bytes(thumbnail.read_bytes().replace(b'SizeX="100"', b'SizeX="900"'))
    assert Slide.open(thumbnail).mpp is None


def test_slide_open_tags_and_ome_xml_that_differ_are_named(tmp_path: Path) -> None:
    um: dict[str, Any] = {"PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25}
    tags = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}
    slide = Slide.open(write_ome(tmp_path / "s.ome.tiff", tags, **um))
    assert slide.mpp == pytest.approx((0.5, 0.5))
    assert slide.mpp_source == "openslide"
    assert slide.mpp_note.endswith("0.5 x 0.5 µm/px, but its OME-XML says 0.25 x 0.25 µm/px: check which is right")
    tags = {"resolution": (40_000, 40_000), "resolutionunit": "CENTIMETER"}
    assert "OME-XML" not in Slide.open(write_ome(tmp_path / "s.ome.tiff", tags, **um)).mpp_note
    screen = Slide.open(write_ome(tmp_path / "s.ome.tiff", {"resolution": (72, 72), "resolutionunit": "INCH"}, **um))
    assert (screen.mpp, screen.mpp_source) == ((0.25, 0.25), "ome-xml")
    assert "352.8 x 352.8 µm/px, outside 0.05..20" in screen.mpp_note


@pytest.mark.parametrize("override", [0.0, 0.01, 352.8, float("nan"), 50.0])
def test_slide_options_impossible_override_raises(tmp_path: Path, override: float) -> None:
    with pytest.raises(SlideError, match=rf"mpp_override={override} must be 0.05 to 20 µm per level-0 px, or null"):
        SlideOptions(mpp_override=override).open(write_small(tmp_path))


def test_tag_mpp_zero_or_absent_has_reason(tmp_path: Path) -> None:
    assert read_tag_mpp(write_small(tmp_path, resolution=(0, 0)))[0] is None
    (tmp_path / "no.tiff").write_text("x")
    assert read_tag_mpp(tmp_path / "no.tiff") == (None, "it has no TIFF resolution tags")


@settings(max_examples=12, deadline=None)
@given(width=st.integers(150, 700), height=st.integers(150, 700), downsample=st.floats(1.0, 20.0))
def test_slide_landmark_at_far_corner_is_within_one_px(
    tmp_path_factory: pytest.TempPathFactory, width: int, height: int, downsample: float
) -> None:
    image = np.full((height, width, 3), 255, np.uint8)
    image[-64:, -64:] = 0
    path = write_pyramid(tmp_path_factory.mktemp("far") / "s.tiff", image, downsamples=(1, 2, 4, 16), tile=64)
    with Slide.open(path) as slide:
        views = [slide.choose_resolution(level=level) for level in range(4)] + [
            slide.choose_resolution(downsample=downsample)
        ]
        for view in views:
            white = slide.read(view, (0, 0), view.size)[..., 0] / 255
            x, y = int((width - 32) / view.downsample), int((height - 32) / view.downsample)
            assert abs(white[y, :x].sum() - (width - 64) / view.downsample) <= 1
            assert abs(white[:y, x].sum() - (height - 64) / view.downsample) <= 1


@pytest.mark.real_data
@needs_data
def test_slide_open_real_aperio_slide() -> None:
    slide = Slide.open(DATA / "wsi" / "CMU-1-Small-Region.svs")
    assert slide.dimensions == (2220, 2967)
    assert slide.mpp == (0.499, 0.499)
    overview, resolution = slide.overview(512)
    assert overview.shape[:2] == (512, resolution.width)
    assert 100 < overview.mean() < 245


@pytest.mark.real_data
@needs_data
def test_slide_open_real_slide_without_mpp() -> None:
    slide = Slide.open(DATA / "wsi" / "jpeg2000_no_mpp.svs")
    assert slide.mpp is None
    assert "give data.mpp_override" in slide.mpp_note
    assert slide.read_region((4400, 3500), 1, (100, 100)).shape == (100, 100, 3)
    assert SlideOptions(mpp_override=0.5).open(slide.path).choose_resolution(mpp=1.0).level == 1


@pytest.mark.real_data
@needs_data
def test_slide_open_real_slide_with_nonsense_mpp() -> None:
    slide = Slide.open(DATA / "wsi" / "nonsense_mpp.tiff")
    assert slide.mpp is None
    assert "352.8 x 352.8" in slide.mpp_note
    assert slide.level_downsamples == (1, 2, 4, 8)


@pytest.mark.real_data
@needs_data
@pytest.mark.parametrize("reader", ["auto", "openslide"])
def test_slide_open_real_unopenable_file_raises(reader: Any) -> None:
    with pytest.raises(SlideError, match=r"unopenable\.tiff"):
        SlideOptions(reader=reader).open(DATA / "wsi" / "unopenable.tiff")


@pytest.mark.real_data
@needs_data
def test_slide_open_real_mosaic() -> None:
    path = min((DATA / "glas_wsi" / "train_images").glob("*.tiff"))
    slide = Slide.open(path)
    assert slide.mpp == pytest.approx((0.62, 0.62))
    assert slide.choose_resolution(level=1).mpp == pytest.approx((2.48, 2.48))
