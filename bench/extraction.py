"""Part b: extraction of tissue tiles, by this project, plain loops over OpenSlide and other libraries.

A contender finds the tissue, lays a grid of 512 px at level 0, reads each tile with tissue and its mask, and writes
both. Rates are per tile that was written, so that it does not matter that tissue is found a little differently.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import openslide

from bench.peers import PEERS, CutOne, cancer_png, find_saturated, picture_png
from bench.project import MIN_TISSUE, STORES, TILE, settings
from bench.results import Results
from bench.slides import CACHE, mask_path
from bench.worker import LeftOutError, confine, time_work, workers
from panda.data.extraction import extract_store
from panda.data.manifest import SlideRecord
from panda.data.settings import StoreKind

Cut = Callable[[list[SlideRecord], Path], int]
"""Cuts slides into a folder, each in a thread of its own; returns how many tiles it wrote."""

TIMEOUT_S = 900.0


def measure(slide: SlideRecord, warm_up: SlideRecord, rounds: int, results: Results) -> None:
    """Time all contenders, round by round in turn, on one slide and (if they can) on two at a time.

    Args:
        slide: To be cut.
        warm_up: A small slide that each cuts first, untimed.
        rounds: How many times each is timed.
        results: Gets the rows, in tiles/s.
    """
    contenders = {name: (f"{__name__}:contender", (name,)) for name in CUTS}
    with workers(contenders, CACHE / "log", results.left_out) as started:
        for turn in range(-1, rounds):
            for threads in (1, 2):
                for name, worker in list(started.items()):
                    if threads == 2 and name not in TWO_THREADS:
                        continue
                    out = CACHE / "out" / name
                    shutil.rmtree(out, ignore_errors=True)
                    out.mkdir(parents=True)
                    os.sync()  # nobody pays for what another has written
                    try:
                        cut = warm_up if turn < 0 else slide
                        seconds, tiles = worker.ask(_copy_slide(cut, threads), out, timeout_s=TIMEOUT_S)
                        if not tiles:
                            raise LeftOutError("it wrote no tile")
                    except LeftOutError as error:
                        results.left_out[name] = str(error)
                        started.pop(name).close()
                        continue
                    finally:
                        shutil.rmtree(out, ignore_errors=True)
                    if turn >= 0:
                        case = f"{threads} thread{'s'[: threads - 1]}"
                        results.add("extraction", name, case, tiles / seconds, f"{tiles} tiles")


def _copy_slide(slide: SlideRecord, threads: int) -> list[SlideRecord]:
    """Return a copy of the slide for each thread, each with its own id."""
    return [replace(slide, slide_id=f"slide{number}") for number in range(threads)]


def contender(name: str) -> Callable[[list[SlideRecord], Path], tuple[float, int]]:
    """Return the function that cuts slides in a process and takes the time."""
    cut = CUTS[name]()

    def answer(slides: list[SlideRecord], out: Path) -> tuple[float, int]:
        confine(len(slides))
        return time_work(lambda: cut(slides, out))

    return answer


def _panda(store: StoreKind) -> Cut:
    def cut(slides: list[SlideRecord], out: Path) -> int:
        done = extract_store(slides, settings(store), out, CACHE, workers=len(slides), progress=False)
        if done.failures:
            raise RuntimeError(done.failures[0].message)
        return sum(len(patches) for patches in done.slides.values())

    return cut


def _cut_in_threads(one: CutOne) -> Cut:
    """Return a function that cuts several slides in threads by one that cuts a single slide."""

    def cut(slides: list[SlideRecord], out: Path) -> int:
        folders = [out / slide.slide_id for slide in slides]
        for folder in folders:
            (folder / "img").mkdir(parents=True)
            (folder / "msk").mkdir()
        if len(slides) == 1:
            return one(slides[0], folders[0])
        with ThreadPoolExecutor(len(slides)) as pool:
            return sum(pool.map(one, slides, folders))

    return cut


def _openslide(slide: SlideRecord, out: Path) -> int:
    """Cut a slide by the loop that one writes without any library but OpenSlide."""
    picture, mask = openslide.OpenSlide(slide.image_path), openslide.OpenSlide(mask_path(slide))
    overview = np.asarray(picture.get_thumbnail(picture.level_dimensions[-1]))
    tissue = find_saturated(overview)
    width, height = picture.dimensions
    scale = tissue.shape[1] / width
    tiles = 0
    for y in range(0, height, TILE):
        for x in range(0, width, TILE):
            x0, x1, y0, y1 = (round(v * scale) for v in (x, x + TILE, y, y + TILE))
            share = tissue[y0:y1, x0:x1]
            if share.size == 0 or share.mean() < MIN_TISSUE:
                continue
            tile = picture.read_region((x, y), 0, (TILE, TILE)).convert("RGB")
            codes = np.asarray(mask.read_region((x, y), 0, (TILE, TILE)))[..., 0]
            picture_png(tile, out, x, y)
            cancer_png(codes, out, x, y)
            tiles += 1
    return tiles


def _clam_style(slide: SlideRecord, out: Path) -> int:
    """Cut a slide as CLAM does, written from its description (Lu et al., Nat Biomed Eng 2021).

    It traces the tissue at the lowest level and lays a grid in the box of each contour. It keeps tiles whose centre is
    in the contour and in none of its holes, and reads them by OpenSlide one by one. It leaves out the masks, which CLAM
    does not have. It writes the pictures, which CLAM leaves in the slide until features are computed.
    """
    picture = openslide.OpenSlide(slide.image_path)
    level = picture.level_count - 1
    lowest = np.asarray(picture.read_region((0, 0), level, picture.level_dimensions[level]).convert("RGB"))
    tissue = cv2.morphologyEx(find_saturated(lowest).astype(np.uint8), cv2.MORPH_CLOSE, np.ones((4, 4), np.uint8))
    contours, levels = cv2.findContours(tissue, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    scale = picture.level_downsamples[level]
    least = (TILE / scale) ** 2 / 4
    tiles: set[tuple[int, int]] = set()
    for number, contour in enumerate(contours):
        if levels[0][number][3] >= 0 or cv2.contourArea(contour) < least:
            continue
        holes = [c for c, place in zip(contours, levels[0], strict=True) if place[3] == number]
        holes = [hole for hole in holes if cv2.contourArea(hole) >= least]
        left, top, w, h = (int(v * scale) for v in cv2.boundingRect(contour))
        for y in range(top, top + h, TILE):
            for x in range(left, left + w, TILE):
                centre = ((x + TILE / 2) / scale, (y + TILE / 2) / scale)
                if cv2.pointPolygonTest(contour, centre, False) < 0:
                    continue
                if not any(cv2.pointPolygonTest(hole, centre, False) > 0 for hole in holes):
                    tiles.add((x, y))
    for x, y in sorted(tiles):
        picture_png(picture.read_region((x, y), 0, (TILE, TILE)).convert("RGB"), out, x, y)
    return len(tiles)


def _peer(make: Callable[[], CutOne]) -> Cut:
    return _cut_in_threads(make())


CUTS: dict[str, Callable[[], Cut]] = {
    **{f"panda {store}": partial(_panda, store) for store in STORES},
    "openslide": partial(_cut_in_threads, _openslide),
    "clam_style": partial(_cut_in_threads, _clam_style),
    **{name: partial(_peer, make) for name, make in PEERS.items()},
}
TWO_THREADS = {*(f"panda {store}" for store in STORES), "openslide"}
