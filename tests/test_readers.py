"""The fast reader against OpenSlide: the same levels, the same pixels, the same white, on every kind it takes."""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Callable
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
from panda.wsi.readers import OpenSlideReader, ReaderName, TiffReader, open_reader
from panda.wsi.slide import Slide, SlideOptions
from panda.wsi.tiff.pyramid import TiffPyramid
from panda.wsi.tiff.segments import CACHE, SEGMENT_BYTES, Decoder, SegmentCache

WIDTH, HEIGHT = 1373, 1101
KINDS: dict[str, dict[str, Any]] = {
    "YCbCr 4:2:0": {"compression": "jpeg", "subsampling": (2, 2)},
    "YCbCr 4:2:2": {"compression": "jpeg", "subsampling": (2, 1)},
    "YCbCr 4:4:4": {"compression": "jpeg", "subsampling": (1, 1)},
    "RGB JPEG": {"compression": "jpeg", "compressionargs": {"outcolorspace": "rgb"}, "subsampling": (1, 1)},
    "deflate": {"compression": "adobe_deflate"},
    "deflate, predictor": {"compression": "adobe_deflate", "predictor": True},
    "LZW": {"compression": "lzw"},
    "LZW, predictor": {"compression": "lzw", "predictor": True},
    "PackBits": {"compression": "packbits"},
    "none": {"compression": None},
}


def _picture(width: int = WIDTH, height: int = HEIGHT) -> NDArray[np.uint8]:
    """Smooth colours with sharp edges and noise, so that chroma upsampling and rounding both show."""
    rng = np.random.default_rng(7)
    y, x = np.mgrid[:height, :width]
    image = np.stack([128 + 100 * np.sin(x / 17 + c) * np.cos(y / (23 + c)) for c in range(3)], axis=-1)
    image[(x // 40 + y // 56) % 3 == 0] = (190, 60, 150)
    return np.clip(image + rng.normal(0, 6, image.shape), 0, 255).astype(np.uint8)


def _write(path: Path, kind: str, tile: int) -> Path:
    image = _picture()
    with tifffile.TiffWriter(path) as tiff:
        for level, downsample in enumerate((1, 4, 16)):
            rows, columns = HEIGHT // downsample * downsample, WIDTH // downsample * downsample
            tiff.write(
                np.ascontiguousarray(image[:rows:downsample, :columns:downsample]),
                tile=(tile, tile),
                photometric="rgb",
                subfiletype=int(level > 0),
                metadata=None,
                **KINDS[kind],
            )
    return path


def _make_other_kind(kind: str) -> tuple[NDArray[Any], dict[str, Any]]:
    """Return px that are not RGB of 8 bits side by side, and tifffile's options for them."""
    image = _picture()
    fine = image.astype(np.uint16) * 256 + np.random.default_rng(1).integers(0, 256, image.shape, dtype=np.uint16)
    table = np.random.default_rng(2).integers(0, 2**16, (3, 256), dtype=np.uint16)
    kinds: dict[str, tuple[NDArray[Any], dict[str, Any]]] = {
        "planes": (np.moveaxis(image, 2, 0), {"photometric": "rgb", "planarconfig": "separate"}),
        "16 bits": (fine, {"photometric": "rgb", "predictor": True, "compression": "lzw"}),
        "16 bits in planes": (np.moveaxis(fine, 2, 0), {"photometric": "rgb", "planarconfig": "separate"}),
        "big-endian": (
            fine,
            {"photometric": "rgb", "compression": "deflate", "predictor": True, "byteorder": ">", "bigtiff": True},
        ),
        "grey": (image[..., 0], {"photometric": "minisblack"}),
        "grey JPEG": (image[..., 0], {"photometric": "minisblack", "compression": "jpeg"}),
        "white is 0": (image[..., 0], {"photometric": "miniswhite"}),
        "16 bits of grey": (fine[:1024, :1280, 0], {"photometric": "minisblack"}),
        "palette": (image[..., 0], {"photometric": "palette", "colormap": table}),
    }
    return kinds[kind]


OTHER_KINDS = (
    "planes", "16 bits", "16 bits in planes", "big-endian", "grey", "grey JPEG", "white is 0", "16 bits of grey",
    "palette",
)  # fmt: skip


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_fast_reader_other_colours_equal_openslide(tmp_path: Path, kind: str) -> None:
    """Tiles as OpenSlide shows them; it opens no strips, which show the same."""
    pixels, options = _make_other_kind(kind)
    for name, stored in (("tiles", {"tile": (256, 256)}), ("strips", {"rowsperstrip": 100})):
        path = tmp_path / f"{name}.tiff"
        tifffile.imwrite(path, np.ascontiguousarray(pixels), metadata=None, **stored, **options)
    reference = SlideOptions(reader="openslide").open(tmp_path / "tiles.tiff")
    size = reference.dimensions
    shown = reference.read_region((0, 0), 0, size)
    limit = 2 if kind == "grey JPEG" else 0  # strips are other JPEG pictures than tiles
    for name, most in (("tiles", 0), ("strips", limit)):
        slide = Slide.open(tmp_path / f"{name}.tiff")
        assert isinstance(slide._reader, TiffReader)
        assert np.abs(slide.read_region((0, 0), 0, size).astype(int) - shown).mean() <= most
        part = slide.read_region((37, 91), 0, (300, 200)).astype(int)
        assert np.abs(part - shown[91:291, 37:337]).mean() <= most


def test_fast_reader_grey_of_16_bits_is_whole_at_the_edge(tmp_path: Path) -> None:
    """Libtiff shears the tiles there, see findings/libtiff_grey16_edge_tiles.sh."""
    grey = np.repeat(_picture()[..., :1].astype(np.uint16) * 257, 1, axis=2)[..., 0]
    tifffile.imwrite(tmp_path / "s.tiff", grey, tile=(256, 256), photometric="minisblack", metadata=None)
    read = Slide.open(tmp_path / "s.tiff").read_region((0, 0), 0, (WIDTH, HEIGHT))
    assert (read == (grey >> 8)[..., None]).all()


@pytest.mark.parametrize("compression", ["webp", "jpegxl", "jpeg2000", "zstd"])
@pytest.mark.parametrize("stored", [{"tile": (256, 256)}, {"rowsperstrip": 100}])
def test_fast_reader_reads_codecs_that_openslide_lacks(
    tmp_path: Path, compression: str, stored: dict[str, Any]
) -> None:
    image = _picture(613, 401)  # stored without loss
    tifffile.imwrite(tmp_path / "s.tiff", image, photometric="rgb", compression=compression, metadata=None, **stored)
    assert (Slide.open(tmp_path / "s.tiff").read_region((-5, -7), 0, (700, 500))[7:408, 5:618] == image).all()


def test_fast_reader_one_huge_strip_is_read_in_bands(tmp_path: Path) -> None:
    image = np.repeat(_picture(6000, 4)[None], 1000, axis=0).reshape(4000, 6000, 3)
    tifffile.imwrite(tmp_path / "s.tiff", image, photometric="rgb", rowsperstrip=4000, metadata=None)
    slide = Slide.open(tmp_path / "s.tiff")
    assert image.nbytes > SEGMENT_BYTES
    assert slide.tiff is not None
    assert slide.tiff.levels[0].segment_px * 3 <= 2**23
    assert (slide.read_region((5500, 3000), 0, (500, 1000)) == image[3000:, 5500:]).all()
    # Compressed, the whole strip would have to be decoded for any window.
    tifffile.imwrite(
        tmp_path / "z.tiff", image, photometric="rgb", rowsperstrip=4000, compression="zstd", metadata=None
    )
    with pytest.raises(SlideError, match=r"strips take 72000000 bytes each.*vips copy \S+z\.tiff \S+z_converted\.tiff"):
        Slide.open(tmp_path / "z.tiff")


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "jpeg"},
        {"compression": "lzw", "predictor": True},
        {"compression": "jpeg2000"},
        {"compression": "zlib", "planarconfig": "separate"},
    ],
)
@pytest.mark.parametrize("layout", [{}, {"bigtiff": True, "byteorder": ">"}])
def test_open_reader_ome_tiff_keeps_its_levels(tmp_path: Path, options: dict[str, Any], layout: dict[str, Any]) -> None:
    """QuPath, raw2ometiff and tifffile write reduced levels to sub-IFDs, which OpenSlide does not see."""
    image, path = _picture(), tmp_path / "s.ome.tiff"
    levels = [image, image[::2, ::2], image[::4, ::4]]
    separate = options.get("planarconfig") == "separate"
    with tifffile.TiffWriter(path, ome=True, **layout) as tif:
        for number, level in enumerate(levels):
            pixels = np.ascontiguousarray(np.moveaxis(level, 2, 0) if separate else level)
            own: dict[str, Any] = {"subifds": 2} if number == 0 else {"subfiletype": 1}
            tif.write(pixels, tile=(256, 256), photometric="rgb", **own, **options)
    slide = Slide.open(path)
    assert slide.level_dimensions == tuple(level.shape[1::-1] for level in levels)
    for number, level in enumerate(levels):
        read = slide.read_region((0, 0), number, slide.level_dimensions[number]).astype(int)
        assert np.abs(read - level).mean() <= (8 if options["compression"] == "jpeg" else 0)
    if "jpeg2000" not in options.values():
        assert len(SlideOptions(reader="openslide").open(path).level_dimensions) == 1


@pytest.mark.parametrize("tile", [256, 512])
@pytest.mark.parametrize("kind", KINDS)
def test_fast_reader_pixels_equal_openslide(tmp_path: Path, kind: str, tile: int) -> None:
    path = _write(tmp_path / "slide.tiff", kind, tile)
    fast, reference = SlideOptions(reader="fast").open(path), SlideOptions(reader="openslide").open(path)
    assert isinstance(Slide.open(path)._reader, TiffReader)
    assert fast.level_dimensions == reference.level_dimensions
    rng = np.random.default_rng(tile)
    largest = 0
    for _ in range(40):
        # at level 0 OpenSlide falls on whole pixels everywhere, edges and beyond included
        x, y = int(rng.integers(-80, WIDTH)), int(rng.integers(-80, HEIGHT))
        size = int(rng.integers(1, 600)), int(rng.integers(1, 600))
        a, b = (slide.read_region((x, y), 0, size).astype(int) for slide in (fast, reference))
        largest = max(largest, int(np.abs(a - b).max()))
    assert largest == 0, f"largest difference {largest} grey values"
    for level in (1, 2):
        a, b = (
            slide.read_region((0, 0), level, slide.level_dimensions[level]).astype(int) for slide in (fast, reference)
        )
        assert np.abs(a - b).max() == 0


def test_readers_odd_downsample_returns_stored_pixels(tmp_path: Path) -> None:
    """OpenSlide interpolates there; both are held to what is stored."""
    image = _picture(1203, 907)
    path = tmp_path / "slide.tiff"
    small = np.ascontiguousarray(image[:221, :293])
    downsample = 1203 / 293
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(image, tile=(256, 256), photometric="rgb", compression="jpeg", metadata=None)
        tiff.write(small, tile=(256, 256), photometric="rgb", compression="jpeg", subfiletype=1, metadata=None)
    with tifffile.TiffFile(path) as tif:
        stored = tif.pages[1].asarray()
    slide = Slide.open(path)
    assert slide.level_downsamples[1] == downsample
    for x, y in [(0, 0), (131, 77), (262, 190)]:
        location = round(x * downsample), round(y * downsample)
        assert (slide.read_region(location, 1, (31, 31)) == stored[y : y + 31, x : x + 31]).all()
        near = SlideOptions(reader="openslide").open(path).read_region(location, 1, (31, 31)).astype(int)
        assert np.abs(near - stored[y : y + 31, x : x + 31]).mean() < 8


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_tiff_pyramid_any_window_equals_crop_of_level(tiled: Path, data: st.DataObject) -> None:
    x, y = data.draw(st.integers(0, WIDTH - 1)), data.draw(st.integers(0, HEIGHT - 1))
    width, height = data.draw(st.integers(1, WIDTH - x)), data.draw(st.integers(1, HEIGHT - y))
    with tifffile.TiffFile(tiled) as tif:
        stored = tif.pages[0].asarray()
    assert (TiffPyramid(tiled).read(0, x, y, width, height) == stored[y : y + height, x : x + width]).all()


@pytest.fixture(scope="module")
def tiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write(tmp_path_factory.mktemp("tiled") / "slide.tiff", "YCbCr 4:2:0", 256)


def test_readers_absent_tiles_are_white(tmp_path: Path) -> None:
    path = tmp_path / "sparse.tiff"
    whole = _picture(1024, 768)

    def tiles() -> Any:
        for number in range(12):
            y, x = divmod(number, 4)
            yield None if number in {5, 6} else whole[y * 256 : y * 256 + 256, x * 256 : x * 256 + 256]

    with tifffile.TiffWriter(path) as tiff:
        tiff.write(tiles(), shape=whole.shape, dtype=np.uint8, tile=(256, 256), photometric="rgb",
                   compression="jpeg", metadata=None)  # fmt: skip
    fast, reference = (
        SlideOptions(reader=reader).open(path).read_region((0, 0), 0, (1024, 768)) for reader in _list_readers()
    )
    assert (fast == reference).all()
    assert (fast[256:512, 256:768] == 255).all()
    assert (fast[:256] != 255).any()


def _list_readers() -> tuple[ReaderName, ReaderName]:
    return "fast", "openslide"


def test_open_reader_auto_falls_back_to_openslide(tmp_path: Path) -> None:
    image = _picture(600, 600)
    alpha = tmp_path / "alpha.tiff"
    rgba = np.dstack([image, np.full(image.shape[:2], 200, np.uint8)])
    tifffile.imwrite(alpha, rgba, tile=(256, 256), photometric="rgb", extrasamples=["unassalpha"], metadata=None)
    auto, reference = open_reader(alpha, "auto"), open_reader(alpha, "openslide")
    assert isinstance(auto, OpenSlideReader)
    assert (auto.read(0, 9, 9, 300, 300) == reference.read(0, 9, 9, 300, 300)).all()


def _write_float(path: Path) -> None:
    tifffile.imwrite(path, np.zeros((300, 300, 3), np.float32), tile=(256, 256), photometric="rgb", metadata=None)


def _write_channel_pages(path: Path) -> None:
    tifffile.imwrite(path, np.zeros((3, 300, 300), np.uint8), tile=(256, 256), photometric="minisblack", metadata=None)


def _write_turned(path: Path) -> None:
    tifffile.imwrite(path, _picture(600, 600), tile=(256, 256), photometric="rgb", metadata=None,
                     extratags=[(274, 3, 1, 3, True)])  # fmt: skip


def test_openslide_turns_tiles_and_not_the_picture(tmp_path: Path) -> None:
    _write_turned(tmp_path / "turned.tiff")
    stored = tifffile.imread(tmp_path / "turned.tiff")
    first = np.asarray(openslide.OpenSlide(tmp_path / "turned.tiff").read_region((0, 0), 0, (256, 256)))[..., :3]
    assert (first == stored[:256, :256][::-1, ::-1]).all()
    assert (first != stored[::-1, ::-1][:256, :256]).any()


@pytest.mark.parametrize("reader", get_args(ReaderName))
@pytest.mark.parametrize(
    ("write", "said"),
    [
        (
            _write_float,
            r"float32 of 32 bits, which no reader shows as colours; .*vips linear \S+slide\.tiff .*255 0 --uch",
        ),
        (
            _write_channel_pages,
            r"3 pages of one channel at full size.*vips bandjoin '\S+page=0\] .*page=2\]' \S+ && vip",
        ),
        (_write_turned, r"Orientation tag is 3, by which OpenSlide turns each tile.*: vips autorot \S+slide\.tiff '"),
    ],
)
def test_open_reader_picture_that_no_reader_shows_is_refused(
    tmp_path: Path, reader: ReaderName, write: Callable[[Path], None], said: str
) -> None:
    write(tmp_path / "slide.tiff")
    with pytest.raises(SlideError, match=f"slide.tiff: .*{said}.*, or leave the slide out"):
        open_reader(tmp_path / "slide.tiff", reader)
    with pytest.raises(ValueError, match=said):
        TiffPyramid(tmp_path / "slide.tiff", red_only=True)


def test_open_reader_several_channels_of_grey_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "slide.tiff"
    how: dict[str, Any] = {"tile": (256, 256), "photometric": "minisblack", "planarconfig": "contig", "metadata": None}
    tifffile.imwrite(path, np.zeros((300, 300, 5), np.uint8), **how)
    for reader in get_args(ReaderName):
        with pytest.raises(
            SlideError, match=r"its 5 channels are stored as grey, .*vips extract_band \S+ \S+ 0 --n 3 && "
        ):
            open_reader(path, reader)


def test_open_reader_fast_names_file_and_remedy(tmp_path: Path) -> None:
    path = tmp_path / "other.tiff"
    tifffile.imwrite(path, np.zeros((300, 300, 3), np.uint8), tile=(256, 256), photometric="rgb", compression="lzma",
                     metadata=None)  # fmt: skip
    with pytest.raises(SlideError, match=r"other\.tiff: the fast reader cannot open it: its compression.*reader=auto"):
        SlideOptions(reader="fast").open(path)
    with pytest.raises(SlideError, match=r"other\.tiff: .*its compression is 34925 .*bfconvert .* \S+other\.tiff"):
        Slide.open(path)
    assert set(get_args(ReaderName)) == {"auto", "openslide", "fast"}


def test_readers_resolution_is_same(tmp_path: Path) -> None:
    path = tmp_path / "slide.tiff"
    tifffile.imwrite(path, _picture(600, 600), tile=(256, 256), photometric="rgb", compression="jpeg",
                     resolution=(20833, 20833), resolutionunit="CENTIMETER", metadata=None)  # fmt: skip
    auto, fast, reference = (SlideOptions(reader=reader).open(path) for reader in ("auto", *_list_readers()))
    assert auto.mpp == reference.mpp
    assert fast.mpp == pytest.approx(reference.mpp)
    assert (auto.mpp_source, fast.mpp_source) == ("openslide", "tiff tags")


@pytest.mark.parametrize("reader", get_args(ReaderName))
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9, 0.9999])
def test_readers_truncated_file_is_refused_when_opened(
    tiled: Path, tmp_path: Path, share: float, reader: ReaderName
) -> None:
    whole = tiled.read_bytes()
    cut = tmp_path / "cut.tiff"
    cut.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(SlideError, match=r"cut\.tiff.*cut short"):
        SlideOptions(reader=reader).open(cut)


def test_readers_truncated_file_with_tables_first_is_refused(tiled: Path, tmp_path: Path) -> None:
    """Where the tables come first, as in a cloud-optimised TIFF, a cut file opens and fails in the middle."""
    path = tmp_path / "slide.tiff"
    content = bytearray(tiled.read_bytes())
    with tifffile.TiffFile(tiled) as tif:
        at = tif.pages.first.tags["TileOffsets"].valueoffset
    content[at : at + 4] = len(content).to_bytes(4, "little")
    path.write_bytes(content)
    assert openslide.OpenSlide(path).dimensions == (WIDTH, HEIGHT)
    for reader in get_args(ReaderName):
        with pytest.raises(SlideError, match=r"slide\.tiff.*cut short"):
            SlideOptions(reader=reader).open(path)


def test_fast_reader_tile_that_inflates_too_far_is_refused(tmp_path: Path) -> None:
    """A tile that says 256 x 256 px and inflates to a gigabyte must not be given the memory."""
    path = tmp_path / "bomb.tiff"
    bomb = zlib.compress(bytes(2**28), 9)
    tifffile.imwrite(path, np.zeros((256, 256, 3), np.uint8), tile=(256, 256), photometric="rgb",
                     compression="adobe_deflate", metadata=None)  # fmt: skip
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tif:
        tags = tif.pages.first.tags
        offset, count = tags["TileOffsets"].valueoffset, tags["TileByteCounts"].valueoffset
    content[offset : offset + 4] = len(content).to_bytes(4, "little")
    content[count : count + 4] = len(bomb).to_bytes(4, "little")
    path.write_bytes(content + bomb)
    with pytest.raises(SlideError, match=r"bomb\.tiff.*does not decode"):
        SlideOptions(reader="fast").open(path).read_region((0, 0), 0, (10, 10))


def _count_bytes(cache: SegmentCache) -> int:
    return sum(segment.nbytes for segment in cache._segments.values())


def test_segment_cache_memory_is_bounded(tmp_path: Path) -> None:
    cache = SegmentCache(1000)

    def put(key: tuple[int, int, int], segment: NDArray[np.uint8]) -> None:
        cache.decode_once(key, lambda: segment)

    for number in range(50):
        put((number % 3, 0, number), np.zeros(90 + number, np.uint8))
    assert 800 < _count_bytes(cache) <= 1000
    assert cache._segments.currsize == _count_bytes(cache)
    cache.drop(1)
    assert cache.get((1, 0, 49)) is None
    assert cache.get((0, 0, 48)) is not None
    assert cache._segments.currsize == _count_bytes(cache)
    put((9, 0, 0), np.zeros(5000, np.uint8))
    assert (_count_bytes(cache), len(cache._segments)) == (5000, 1), "larger than all of it: kept until the next"
    put((0, 0, 50), np.zeros(90, np.uint8))
    assert (_count_bytes(cache), len(cache._segments)) == (90, 1)


def test_tiff_pyramid_threads_decode_each_tile_once(tiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Overlapping windows in reading order, of which several threads need the same tile at the same time."""
    decoded = []
    decode = Decoder.decode

    def count(self: Decoder, data: bytes, height: int, width: int) -> NDArray[np.uint8]:
        decoded.append(data)
        time.sleep(0.002)  # others ask for it at the same time
        return decode(self, data, height, width)

    monkeypatch.setattr(Decoder, "decode", count)
    pyramid = TiffPyramid(tiled)
    level = pyramid.levels[0]
    corners = [(x, y) for y in range(0, HEIGHT - 300, 100) for x in range(0, WIDTH - 300, 100)]
    with ThreadPoolExecutor(8) as pool:
        windows = list(pool.map(lambda corner: pyramid.read(0, corner[0], corner[1], 300, 300), corners))
    assert len(windows) == len(corners)
    rows = (corners[-1][1] + 299) // level.segment_height + 1
    columns = (corners[-1][0] + 299) // level.segment_width + 1
    assert len(decoded) == rows * columns


def test_segment_cache_failed_decoding_is_tried_again() -> None:
    cache, key = SegmentCache(1000), (0, 0, 0)

    def fail() -> NDArray[np.uint8]:
        raise ValueError("damaged")

    for _ in range(2):
        with pytest.raises(ValueError, match="damaged"):
            cache.decode_once(key, fail)
    assert len(cache.decode_once(key, lambda: np.zeros(9, np.uint8))) == 9
    assert not cache._decoding


def test_tiff_pyramid_without_pread_reads_same_pixels(tiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_pread = TiffPyramid(tiled).read(0, 10, 20, 300, 200)
    monkeypatch.delattr(os, "pread")
    assert np.array_equal(TiffPyramid(tiled).read(0, 10, 20, 300, 200), with_pread)


def test_tiff_pyramid_close_frees_memory(tiled: Path) -> None:
    pyramid = TiffPyramid(tiled)
    pyramid.read(0, 0, 0, WIDTH, HEIGHT)
    number = pyramid._file.get().number
    assert any(key[0] == number for key in CACHE._segments)
    pyramid.close()
    assert not any(key[0] == number for key in CACHE._segments)


@pytest.mark.parametrize(
    ("compression", "red_only"), [("jpeg", False), ("adobe_deflate", False), ("adobe_deflate", True)]
)
def test_tiff_pyramid_window_of_one_tile_is_a_copy(tmp_path: Path, compression: str, red_only: bool) -> None:
    image = np.random.default_rng(2).integers(0, 256, (128, 192, 3), dtype=np.uint8)
    path = tmp_path / "small.tiff"
    tifffile.imwrite(path, image, tile=(64, 64), photometric="rgb", compression=compression, metadata=None)
    pyramid = TiffPyramid(path, red_only=red_only)
    number = pyramid._file.get().number

    def kept() -> int:
        return sum(key[0] == number for key in CACHE._segments)

    tile = pyramid.read(0, 64, 64, 64, 64)
    whole = pyramid.read(0, 0, 0, 192, 128, keep=False)
    assert kept() == 0
    assert (whole[64:128, 64:128] == tile).all()
    tile[:] = 0
    assert (pyramid.read(0, 64, 64, 64, 64) == whole[64:128, 64:128]).all()
    assert (pyramid.read(0, 60, 60, 64, 64) == whole[60:124, 60:124]).all()
    assert kept() == 4
    tile = pyramid.read(0, 64, 64, 64, 64)  # of those that are kept
    tile[:] = 0
    assert (pyramid.read(0, 64, 64, 64, 64) == whole[64:128, 64:128]).all()


def test_tiff_pyramid_modified_read_leaves_next_unchanged(tiled: Path) -> None:
    pyramid = TiffPyramid(tiled)
    first = pyramid.read(0, 0, 0, 256, 256)
    first[:] = 0
    assert pyramid.read(0, 0, 0, 256, 256).any()


def test_openslide_opens_written_tiff(tiled: Path) -> None:
    assert openslide.OpenSlide.detect_format(tiled) == "generic-tiff"
