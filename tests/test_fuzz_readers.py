"""Thousands of damaged TIFFs: opening and reading any file ends in pixels or a `PandaError`.

The cases run in processes of their own, so that a decoder that crashes, hangs or takes the memory fails the test and
names the case. `python -m tests.test_fuzz_readers FOLDER FIRST LAST` runs a range of them again.
"""

from __future__ import annotations

import contextlib
import faulthandler
import itertools
import logging
import random
import re
import resource
import struct
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args

import cv2
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from panda.errors import PandaError, SlideError
from panda.wsi.label_mask import LabelMask
from panda.wsi.readers import ReaderName
from panda.wsi.slide import Slide, SlideOptions
from panda.wsi.tiff.codecs import JPEG
from panda.wsi.tiff.segments import CACHE_BYTES, SEGMENT_BYTES, Decoder
from panda.wsi.tissue import find_tissue

CASES = 2400
PROCESSES = 2
_REPOSITORY = Path(__file__).resolve().parents[1]
CASE_SECONDS = 20
"""A case takes a few hundredths of a second."""
GROWTH_BYTES = max(CACHE_BYTES, SEGMENT_BYTES) + 5 * SEGMENT_BYTES
"""What a process may take beside what it has after importing: `panda.wsi.tiff.segments` says why."""
_GUARD_BYTES = 4 * 2**30  # of address space, so that a fault found here does not take the machine

WIDTH, HEIGHT, TILE = 200, 150, 64


def _picture() -> NDArray[np.uint8]:
    """Pink tissue on glass."""
    rng = np.random.default_rng(3)
    image = np.full((HEIGHT, WIDTH, 3), 240, np.uint8)
    image[20:120, 30:170] = np.array([200, 120, 180]) + rng.integers(-25, 25, (100, 140, 3))
    return image


def _codes() -> NDArray[np.uint8]:
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[20:120, 30:170] = 1
    labels[40:90, 50:100] = 4
    return labels


_TILED: dict[str, Any] = {"tile": (TILE, TILE), "photometric": "rgb"}
BASES: dict[str, dict[str, Any]] = {
    "JPEG YCbCr": {**_TILED, "compression": "jpeg", "subsampling": (2, 2)},
    "JPEG RGB": {**_TILED, "compression": "jpeg", "compressionargs": {"outcolorspace": "rgb"}, "subsampling": (1, 1)},
    "deflate": {**_TILED, "compression": "adobe_deflate"},
    "deflate, predictor": {**_TILED, "compression": "adobe_deflate", "predictor": True},
    "LZW": {**_TILED, "compression": "lzw"},
    "LZW, predictor": {**_TILED, "compression": "lzw", "predictor": True},
    "PackBits": {**_TILED, "compression": "packbits"},
    "none": dict(_TILED),
    "zstd": {**_TILED, "compression": "zstd"},
    "strips": {"rowsperstrip": 16, "photometric": "rgb", "compression": "adobe_deflate"},
    "strips of JPEG": {"rowsperstrip": 16, "photometric": "rgb", "compression": "jpeg"},
    "BigTIFF": {**_TILED, "compression": "jpeg"},
    "sub-IFDs": {**_TILED, "compression": "lzw"},
    "Aperio": {**_TILED, "compression": "jpeg", "description": "Aperio Image Library v1\n|AppMag = 20|MPP = 0.5"},
    "Aperio JPEG 2000": {
        **_TILED, "compression": "aperio_jp2000_rgb", "description": "Aperio Image Library v1\n|MPP = 0.5",
    },
    "RGBA": {**_TILED, "compression": "adobe_deflate", "extrasamples": ["unassalpha"]},
    "CMYK": {"tile": (TILE, TILE), "photometric": "separated", "compression": "lzw"},
    "16 bit": {**_TILED, "compression": "adobe_deflate"},
    "grey": {"tile": (TILE, TILE), "photometric": "minisblack", "compression": "adobe_deflate"},
    "JPEG 2000": {**_TILED, "compression": "jpeg2000"},
    "JPEG XL": {**_TILED, "compression": "jpegxl"},
    "WebP": {**_TILED, "compression": "webp"},
    "planes": {"rowsperstrip": 16, "photometric": "rgb", "planarconfig": "separate", "compression": "lzw"},
    "one strip": {"rowsperstrip": HEIGHT, "photometric": "rgb"},
    "palette": {"rowsperstrip": 16, "photometric": "palette", "colormap": np.full((3, 256), 4000, np.uint16)},
}  # fmt: skip


def _write(path: Path, kind: str) -> Path:
    image = _picture()
    if kind in {"grey", "palette"}:
        image = _codes()
    if kind in {"RGBA", "CMYK"}:
        image = np.dstack([image, np.full((HEIGHT, WIDTH), 200, np.uint8)])
    with tifffile.TiffWriter(path, bigtiff=kind == "BigTIFF") as tiff:
        for level, downsample in enumerate((1, 2, 4)):
            part = np.ascontiguousarray(image[: HEIGHT // 4 * 4 : downsample, : WIDTH // 4 * 4 : downsample])
            options = dict(BASES[kind])
            if kind == "sub-IFDs" and level == 0:
                options["subifds"] = 2
            pixels = part.astype(np.uint16) * 257 if kind == "16 bit" else part
            if kind == "planes":
                pixels = np.ascontiguousarray(np.moveaxis(part, 2, 0))
            tiff.write(pixels, subfiletype=int(level > 0), metadata=None, resolution=(5000, 5000),
                       resolutionunit="CENTIMETER", **options)  # fmt: skip
    return path


class _Tag(NamedTuple):
    """Offsets of a tag in a file: its code, its twelve or twenty bytes, and its values."""

    code: int
    entry: int
    values: int
    value_bytes: int


class _Base(NamedTuple):
    """A sound file and where its parts are."""

    name: str
    content: bytes
    big: bool
    tags: list[_Tag]
    ifds: list[int]
    segments: list[tuple[int, int]]


_ASKED_FOR = (
    254, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 282, 284, 296, 317, 322, 323, 324, 325, 330, 338, 339,
    347, 530,
)  # fmt: skip
"""Tags that decide what is read; random flips seldom hit them."""


def _base(path: Path, name: str) -> _Base:
    with tifffile.TiffFile(path) as tif:
        pages = [*tif.pages, *(page.aspage() for page in (tif.pages.first.pages or []))]
        tags = [
            _Tag(tag.code, tag.offset, tag.valueoffset, tag.valuebytecount)
            for page in pages
            for tag in page.tags
            if tag.code in _ASKED_FOR
        ]
        segments = [pair for page in pages for pair in zip(page.dataoffsets, page.databytecounts, strict=True)]
        return _Base(name, path.read_bytes(), tif.is_bigtiff, tags, [page.offset for page in pages], segments)


_NUMBERS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 15, 16, 17, 63, 65, 128, 255, 256, 4096, 16384, 32767, 32768, 65535, 65536,
            100_000, 2**24, 2**28, 2**31 - 1, 2**31, 2**32 - 1)  # fmt: skip


def _number(rng: random.Random) -> int:
    return rng.choice(_NUMBERS) if rng.random() < 0.8 else rng.randrange(2**32)


def _cut(rng: random.Random, base: _Base) -> bytes:
    return base.content[: rng.randrange(len(base.content))]


def _flip(rng: random.Random, base: _Base) -> bytes:
    content = bytearray(base.content)
    for _ in range(rng.randint(1, 12)):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(content)


def _overwrite(rng: random.Random, base: _Base) -> bytes:
    content = bytearray(base.content)
    count = rng.randint(1, 200)
    at = rng.randrange(len(content) - count)
    content[at : at + count] = rng.choice((bytes(count), b"\xff" * count, rng.randbytes(count)))
    return bytes(content)


def _patch_tags(rng: random.Random, base: _Base) -> bytes:
    """Change the code, the value, the type or the count of one to three tags."""
    content = bytearray(base.content)
    for _ in range(rng.randint(1, 3)):
        tag = rng.choice(base.tags)
        what = rng.random()
        if what < 0.1:  # its meaning; there may be two of that then
            struct.pack_into("<H", content, tag.entry, rng.choice(_ASKED_FOR))
        elif what < 0.7:  # a value, of the tag's own width
            width = 2 if struct.unpack_from("<H", content, tag.entry + 2)[0] == 3 else 4
            at = tag.values + rng.randrange(max(1, tag.value_bytes // width)) * width
            content[at : at + width] = _number(rng).to_bytes(4, "little")[:width]
        elif what < 0.85:
            struct.pack_into("<H", content, tag.entry + 2, rng.randrange(20))
        else:
            struct.pack_into("<I", content, tag.entry + 4, _number(rng))
    return bytes(content)


def _patch_size(rng: random.Random, base: _Base) -> bytes:
    """Give all levels, or the first, another width, height, tile width or tile height."""
    content = bytearray(base.content)
    code, number, everywhere = rng.choice((256, 257, 322, 323, 278)), _number(rng), rng.random() < 0.5
    for tag in base.tags:
        if tag.code == code:
            width = 2 if struct.unpack_from("<H", content, tag.entry + 2)[0] == 3 else 4
            content[tag.values : tag.values + width] = number.to_bytes(4, "little")[:width]
            if not everywhere:
                break
    return bytes(content)


def _patch_tables(rng: random.Random, base: _Base) -> bytes:
    """Point one tile to another one's data, to a table, to its neighbour or past the end."""
    content = bytearray(base.content)
    tag = rng.choice([tag for tag in base.tags if tag.code in {324, 325, 273, 279}])
    width = 4 if struct.unpack_from("<H", content, tag.entry + 2)[0] == 4 else 2
    at = tag.values + rng.randrange(max(1, tag.value_bytes // width)) * width
    places = [*base.ifds, *(place for pair in base.segments for place in pair), len(content), len(content) - 1]
    content[at : at + width] = rng.choice(places).to_bytes(4, "little")[:width]
    return bytes(content)


def _patch_chain(rng: random.Random, base: _Base) -> bytes:
    """Damage the list of pages: the offset of the next one, or the number of tags of one."""
    content = bytearray(base.content)
    ifd = rng.choice(base.ifds)
    if base.big:
        count, entry = struct.unpack_from("<Q", content, ifd)[0], 20
        after = ifd + 8 + count * entry
    else:
        count, entry = struct.unpack_from("<H", content, ifd)[0], 12
        after = ifd + 2 + count * entry
    if rng.random() < 0.7:
        struct.pack_into("<I", content, after, rng.choice([*base.ifds, 0, 4, 8, len(content), rng.randrange(2**32)]))
    else:
        struct.pack_into("<H", content, ifd, rng.choice((0, 1, count - 1, count + 1, 1000, 65535)))
    return bytes(content)


def _patch_jpeg(rng: random.Random, base: _Base) -> bytes:
    """Change what the frame header of a JPEG says: process, precision, size, components, sampling."""
    content = bytearray(base.content)
    frames = [at for at in range(len(content) - 12) if content[at : at + 2] == b"\xff\xc0"]
    if not frames:
        return _patch_tags(rng, base)
    for at in rng.sample(frames, min(len(frames), rng.randint(1, 20))):
        what = rng.randrange(6)
        if what == 0:
            content[at + 1] = rng.choice((0xC1, 0xC2, 0xC3, 0xC9, 0xCA, 0xDB, 0xC4, 0xDA))
        elif what == 1:
            content[at + 4] = rng.choice((1, 7, 12, 16))
        elif what == 2:  # with the process that keeps the whole picture in memory, half of the time
            struct.pack_into(">HH", content, at + 5, *(rng.choice((0, 1, 63, 65, 8192, 65500, 65535)) for _ in "hw"))
            content[at + 1] = rng.choice((0xC0, 0xC2))
        elif what == 3:
            content[at + 9] = rng.choice((0, 1, 2, 4, 255))
        elif what == 4:
            content[at + 11] = rng.choice((0, 0x11, 0x14, 0x41, 0x44, 0x22, 0xFF))
        else:
            content[at + 2 + rng.randrange(60)] = rng.randrange(256)
    return bytes(content)


_DAMAGES: tuple[Callable[[random.Random, _Base], bytes], ...] = (
    _cut, _flip, _overwrite, _patch_tags, _patch_tags, _patch_size, _patch_tables, _patch_chain, _patch_jpeg,
)  # fmt: skip


def _case(seed: int, bases: list[_Base]) -> tuple[str, bytes]:
    """Return the name and content of the damaged file of a seed."""
    rng = random.Random(seed)
    base, damage = bases[seed % len(bases)], rng.choice(_DAMAGES)
    return f"seed {seed}: {base.name}, {damage.__name__.strip('_')}", damage(rng, base)


@contextlib.contextmanager
def _allow_refusal() -> Iterator[None]:
    """Let a refusal pass, which is a sentence."""
    with contextlib.suppress(PandaError):
        yield


def _read_all(path: Path, slide_of_mask: Slide) -> None:
    """Read a file every way there is."""
    for reader in get_args(ReaderName):
        with _allow_refusal(), SlideOptions(reader=reader).open(path) as slide:
            for level, (width, height) in enumerate(slide.level_dimensions):
                for corner in (0, 1):
                    location = (corner * max(0, slide.dimensions[0] - 150), corner * max(0, slide.dimensions[1] - 99))
                    with _allow_refusal():
                        pixels = slide.read_region(location, level, (min(width, 300), min(height, 300)))
                        assert pixels.shape == (min(height, 300), min(width, 300), 3)
            with _allow_refusal():
                slide.overview(100)
            with _allow_refusal():
                find_tissue(slide)
    with _allow_refusal(), LabelMask.open(path, slide_of_mask, "radboud") as mask:
        for level in range(3):
            with _allow_refusal():
                mask.read_tumor(slide_of_mask.choose_resolution(level=level), (-5, -5), (180, 170))


def _run(folder: Path, first: int, last: int) -> list[str]:
    """Run cases in this process; the faults found."""
    logging.disable()  # the parser's remarks on damaged files
    bases = [_base(folder / f"{number}.tiff", name) for number, name in enumerate(BASES)]
    sound = Slide.open(folder / "0.tiff")
    path = folder / f"case {first}.tiff"
    faults = []
    with _limit_memory():
        before = peak = _peak()
        for seed in range(first, last):
            name, content = _case(seed, bases)
            print(name, flush=True)
            path.write_bytes(content)
            faulthandler.dump_traceback_later(CASE_SECONDS, exit=True)
            try:
                _read_all(path, sound)
            except Exception:
                faults.append(f"{name}\n{traceback.format_exc()}")
            faulthandler.cancel_dump_traceback_later()
            if (now := _peak()) > peak:
                peak = now
                if peak - before > GROWTH_BYTES:
                    faults.append(f"{name}\ntakes memory: {(peak - before) / 2**20:.0f} MiB")
                    break
    print(f"peak: {(peak - before) / 2**20:.0f} MiB", flush=True)
    return faults


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextlib.contextmanager
def _limit_memory() -> Iterator[None]:
    """Bound this process's address space."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    now = pages * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + _GUARD_BYTES, resource.RLIM_INFINITY))
    yield


@pytest.mark.slow
def test_damaged_files_end_in_pixels_or_refusal(tmp_path: Path) -> None:
    for number, kind in enumerate(BASES):
        _write(tmp_path / f"{number}.tiff", kind)
    bounds = np.linspace(0, CASES, PROCESSES + 1).astype(int).tolist()
    with contextlib.ExitStack() as stack:
        running = []
        for first, last in itertools.pairwise(bounds):
            log = stack.enter_context((tmp_path / f"{first}.log").open("w+"))  # a full pipe would look like a hang
            command = [sys.executable, "-m", __name__, str(tmp_path), str(first), str(last)]
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=_REPOSITORY)
            running.append((stack.enter_context(process), log))
        for process, log in running:
            try:
                status = process.wait(240)
            except subprocess.TimeoutExpired:
                process.kill()
                status = process.wait()
            log.seek(0)
            said = log.read()
            if status:
                begun = re.findall(r"^seed \d+: .*$", said, re.MULTILINE)[-1:]
                pytest.fail(f"status {status}, the last case begun is {begun}:\n{said[-6000:]}")
            assert len(re.findall(r"^seed \d+: ", said, re.MULTILINE)) == CASES // PROCESSES


def test_progressive_jpeg_memory_is_bounded() -> None:
    """All of such a picture is kept: 16,000 x 16,000 px, claimed by a tile of 64 px, took 734 MiB."""
    picture = np.random.default_rng(0).integers(0, 255, (TILE, TILE, 3), dtype=np.uint8)
    data = bytearray(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes())
    decoder = Decoder(JPEG, 1, 6, 3, None)
    assert decoder.decode(bytes(data), TILE, TILE).shape == picture.shape
    struct.pack_into(">HH", data, data.index(b"\xff\xc2") + 5, 16_000, 16_000)
    before = _peak()
    with pytest.raises(ValueError, match=r"says \(height, width, samples\) \(16000, 16000, 3\), not \(64, 64, 3\)"):
        decoder.decode(bytes(data), TILE, TILE)
    with pytest.raises(ValueError, match="tables hold a picture"):
        Decoder(JPEG, 1, 6, 3, bytes(data)).check(TILE**2 * 3)
    assert _peak() - before < 2**24


@pytest.mark.parametrize("reader", get_args(ReaderName))
def test_too_large_tiles_are_refused(tmp_path: Path, reader: ReaderName) -> None:
    path = tmp_path / "large.tiff"
    blank = (bytes(0) for _ in range(1))
    tifffile.imwrite(path, blank, shape=(5000, 5000), dtype=np.uint8, tile=(5008, 5008), compression="deflate",
                     photometric="minisblack", metadata=None)  # fmt: skip
    with pytest.raises(
        SlideError, match=r"large\.tiff: its tiles.*100320256 bytes each.*write it with tiles of 256 px"
    ):
        SlideOptions(reader=reader).open(path)


if __name__ == "__main__":
    found = _run(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    print(*found, sep="\n", file=sys.stderr)
    sys.exit(bool(found))
