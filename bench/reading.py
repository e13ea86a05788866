"""Part a: reads of 512 x 512 px at level 0, by this project, plain OpenSlide and other readers."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import openslide
import tifffile
from numpy.typing import NDArray

from bench.project import MIN_TISSUE, READER, TILE
from bench.results import Results
from bench.slides import CACHE
from bench.worker import LeftOutError, confine, time_work, workers
from panda.data.manifest import SlideRecord
from panda.wsi.grid import tissue_grid
from panda.wsi.slide import Slide, SlideOptions
from panda.wsi.tissue import find_tissue

Read = Callable[[int, int], NDArray[np.uint8]]
"""Reads the 512 px at (x, y) of level 0 as RGB; safe from several threads."""

LIMIT = "decode limit"
PATTERNS = ("aligned", "rows", "random")
READS = 256
TIMEOUT_S = 300.0
LARGEST_DEVIATION = 3.0
"""Mean difference in grey values by which a reader may differ from OpenSlide (decoders smooth chroma differently)."""


def measure(slide: SlideRecord, rounds: int, results: Results) -> None:
    """Time all readers on all patterns, round by round in turn.

    Args:
        slide: With JPEG tiles of 512 px.
        rounds: How many times each is timed.
        results: Gets the rows, in Mpx/s.
    """
    patterns = positions(slide)
    path = str(slide.image_path)
    contenders = {name: (f"{__name__}:contender", (name, path)) for name in READERS}
    with workers(contenders, CACHE / "log", results.left_out) as started:
        seen = started["openslide"].ask(*patterns["random"][0], timeout_s=TIMEOUT_S)
        for turn in range(-1, rounds):
            for pattern, places in patterns.items():
                for threads in (1, 2):
                    for name, worker in list(started.items()):
                        try:
                            if turn < 0:  # a warm-up, which also checks the pixels
                                _check(worker.ask(*patterns["random"][0], timeout_s=TIMEOUT_S), seen, name)
                            # the limit: as many px, whole tiles, none twice
                            of = patterns["aligned"] if name == LIMIT else places
                            seconds = worker.ask(of, threads, pattern, timeout_s=TIMEOUT_S)
                        except LeftOutError as error:
                            results.left_out[name] = str(error)
                            started.pop(name).close()
                            continue
                        if turn >= 0:
                            speed = len(places) * TILE * TILE / 1e6 / seconds
                            results.add("reading", name, f"{pattern}, {threads} thread{'s'[: threads - 1]}", speed)


def positions(slide: SlideRecord) -> dict[str, list[tuple[int, int]]]:
    """Return the places of the reads, all on tissue, by pattern.

    Returns:
        `aligned` with the file's tiles, in row order; `rows`: the same, shifted by a part of a tile, so that
        each touches four; `random`: within a tile's distance of these, in random order. (x, y) in level-0 px.
    """
    with Slide.open(slide.image_path) as opened:
        width, height = opened.dimensions
        grid = tissue_grid(opened.choose_resolution(level=0), find_tissue(opened), TILE, TILE, min_tissue=MIN_TISSUE)
    inner = grid.level0[(grid.level0 < (width - 2 * TILE, height - 2 * TILE)).all(axis=1)]
    aligned = inner[inner.min(axis=1) >= TILE][:READS]
    rng = np.random.Generator(np.random.PCG64(1))
    near = rng.permutation(aligned) + rng.integers(1 - TILE, TILE, aligned.shape)
    found = zip(PATTERNS, (aligned, aligned + np.array((209, 157)), near), strict=True)
    return {name: [(int(x), int(y)) for x, y in places] for name, places in found}


def contender(name: str, path: str) -> Callable[..., Any]:
    """Return the function that reads one place in a process, or times the reads of many."""
    make = READERS[name]
    make(Path(path))  # so that what is missing shows at once

    def answer(first: Any, second: int, pattern: str | None = None) -> Any:
        if pattern is None:
            return make(Path(path))(first, second)
        # Opened again, so that no reader has anything cached from an earlier round.
        return _seconds(make(Path(path)), first, second)

    return answer


def _check(pixels: NDArray[np.uint8], right: NDArray[np.uint8], name: str) -> None:
    if name == LIMIT:  # it decodes the tile under a place
        return
    off = float(np.abs(pixels.astype(np.int16) - right).mean()) if pixels.shape == right.shape else np.inf
    if off > LARGEST_DEVIATION:
        raise LeftOutError(f"its pixels are not OpenSlide's: {pixels.shape}, mean difference {off:.1f}")


def _seconds(read: Read, places: list[tuple[int, int]], threads: int) -> float:
    confine(threads)
    read(0, 0)  # what is opened late is open now; no tile of the places is cached by it

    def run(part: list[tuple[int, int]]) -> int:
        for x, y in part:
            read(x, y)
        return len(part)

    if threads == 1:
        return time_work(lambda: run(places))[0]
    cut = len(places) // threads
    parts = [places[i * cut : (i + 1) * cut if i < threads - 1 else None] for i in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(run, [part[:1] for part in parts]))  # the threads are there
        return time_work(lambda: sum(pool.map(run, parts)))[0]


def _panda(path: Path) -> Read:
    slide = SlideOptions(reader=READER).open(path)
    return lambda x, y: slide.read_region((x, y), 0, (TILE, TILE))


def _openslide(path: Path) -> Read:
    slide = openslide.OpenSlide(path)
    return lambda x, y: np.asarray(slide.read_region((x, y), 0, (TILE, TILE)).convert("RGB"))


def _decode_limit(path: Path) -> Read:
    """Decode the stored tile under (x, y) by libjpeg-turbo alone: no more px than asked, none twice."""
    with tifffile.TiffFile(path) as tiff:
        page: Any = tiff.pages[0]
        across = -(-page.imagewidth // TILE)
        stored = list(zip(page.dataoffsets, page.databytecounts, strict=True))
        tables = page.jpegtables
        assert page.chunks[:2] == (TILE, TILE)
    handle = os.open(path, os.O_RDONLY)
    local = threading.local()

    def read(x: int, y: int) -> NDArray[np.uint8]:
        if not hasattr(local, "out"):
            local.out = np.empty((TILE, TILE, 3), np.uint8)
        offset, count = stored[y // TILE * across + x // TILE]
        data = os.pread(handle, count, offset)
        decoded: NDArray[np.uint8] = imagecodecs.jpeg8_decode(
            data, tables=tables, colorspace="YCBCR", outcolorspace="RGB", out=local.out
        )
        return decoded

    return read


def _pyvips(path: Path) -> Read:
    """Read by the TIFF loader of libvips, with a region for each thread (regions are not thread-safe)."""
    pyvips: Any = import_module("pyvips")
    pyvips.cache_set_max(0)
    local = threading.local()

    def read(x: int, y: int) -> NDArray[np.uint8]:
        if not hasattr(local, "region"):
            local.region = pyvips.Region.new(pyvips.Image.tiffload(str(path), access="random"))
        data = local.region.fetch(x, y, TILE, TILE)
        return np.frombuffer(data, np.uint8).reshape(TILE, TILE, -1)[..., :3]

    return read


def _cucim(path: Path) -> Read:
    """Read by cuCIM on the processor; its tile cache is off, as it is by default."""
    cucim: Any = import_module("cucim")
    slide = cucim.CuImage(str(path))
    return lambda x, y: np.asarray(slide.read_region((x, y), (TILE, TILE), 0))


def _tifffile(path: Path) -> Read:
    zarr: Any = import_module("zarr")
    level = zarr.open(tifffile.TiffFile(path).aszarr(level=0), mode="r")
    return lambda x, y: np.asarray(level[y : y + TILE, x : x + TILE])


def _fastslide(path: Path) -> Read:
    fastslide: Any = import_module("fastslide")
    slide = fastslide.FastSlide.from_file_path(str(path))
    return lambda x, y: np.asarray(slide.read_region((x, y), 0, (TILE, TILE)).numpy())


READERS: dict[str, Callable[[Path], Read]] = {
    "panda": _panda,
    "openslide": _openslide,
    LIMIT: _decode_limit,
    "pyvips": _pyvips,
    "cucim": _cucim,
    "tifffile": _tifffile,
    "fastslide": _fastslide,
}
