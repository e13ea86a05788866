"""Measure which faults of a slide the audit finds, and how fast: the tables of docs/audit.md.

`python -m bench.findings` measures on drawn slides; `--real FOLDER` blurs slides of a folder instead;
`--speed` times their inspection.
"""

from __future__ import annotations

import argparse
import math
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray

from bench.difficult_slides import NO_TISSUE, PENS, SIZE, TISSUE, Drawing
from bench.tissue import write
from panda.audit.readability import find_unreadable
from panda.audit.sharpness import measure_sharpness
from panda.audit.slide_inspector import inspect_slide
from panda.data.slide_rows import read_rows
from panda.synthetic.dataset import SyntheticSpec, draw_dataset
from panda.synthetic.pyramid_writer import write_slide
from panda.wsi.slide import Slide, SlideOptions
from panda.wsi.tiff.pyramid import TiffPyramid
from panda.wsi.tissue import survey

UM = 0.5
"""µm per level-0 px of the masks."""
DOWNSAMPLES = (4, 16, 32, 64)
SIGMAS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0)

STOCK = SyntheticSpec()
LARGE = SyntheticSpec(slides=8, width=20480, height=18432, tile=512)
"""As large as the median slide of PANDA, 0.37 gigapixel."""
DRAWN = Path("drawn slides")
CODES = np.arange(256, dtype=np.uint8)

Codes = NDArray[np.uint8]


def _row(*cells: object) -> None:
    print("|", " | ".join(str(cell) for cell in cells), "|", flush=True)


def _head(*cells: str) -> None:
    print()
    _row(*cells)
    _row(*("---" for _ in cells))


def _disc(um2: float) -> Callable[[Codes, float, float, float], None]:
    radius = math.sqrt(um2 / math.pi) / UM

    def draw(cell: Codes, x: float, y: float, _: float) -> None:
        rows, columns = np.ogrid[: cell.shape[0], : cell.shape[1]]
        cell[(rows - y) ** 2 + (columns - x) ** 2 <= radius**2] = 1

    return draw


def _sliver(width_um: float, length_um: float) -> Callable[[Codes, float, float, float], None]:
    def draw(cell: Codes, x: float, y: float, angle: float) -> None:
        rows, columns = np.mgrid[: cell.shape[0], : cell.shape[1]]
        along = (columns - x) * math.cos(angle) + (rows - y) * math.sin(angle)
        across = (rows - y) * math.cos(angle) - (columns - x) * math.sin(angle)
        cell[(np.abs(along) <= length_um / UM / 2) & (np.abs(across) <= width_um / UM / 2)] = 1

    return draw


def small_cancer(places: int = 300) -> None:
    """Measure which small areas a mask's levels keep, shrunk by nearest neighbours from 0.5 µm/px."""
    shapes = {f"disc of {um2:g} µm²": _disc(um2) for um2 in (20, 50, 100, 200, 500, 1_000, 10_000)}
    shapes |= {f"sliver, {width} x 200 µm": _sliver(width, 200) for width in (2, 5, 10)}
    _head("area", *(f"kept at {d * UM:g} µm/px" for d in DOWNSAMPLES), *(f"total at {d * UM:g} µm/px" for d in (4, 16)))
    for name, draw in shapes.items():
        rng = np.random.default_rng(0)
        kept, total, drawn = Counter[int](), Counter[int](), 0
        for _ in range(places):
            cell = np.zeros((512, 512), np.uint8)
            x, y = rng.uniform(224, 288, 2)
            draw(cell, x, y, rng.uniform(0, math.pi))
            drawn += int(cell.sum())
            for d in DOWNSAMPLES:
                px = int(cell[d // 2 :: d, d // 2 :: d].sum())
                kept[d] += px > 0
                total[d] += px * d * d
        shares = [f"{kept[d] / places:.0%}" for d in DOWNSAMPLES]
        _row(name, *shares, *(f"{total[d] / drawn - 1:+.0%}" for d in (4, 16)))


def pens(folder: Path) -> None:
    """Measure which drawn slides have pen marks, by kind, and how broad a line must be."""
    makes = {**TISSUE, **NO_TISSUE}
    false = [name for name, make in makes.items() if "pen" not in name and _ink(make(SIZE), folder)]
    right = [name for name, make in makes.items() if "pen" in name and _ink(make(SIZE), folder)]
    marked = sum("pen" in name for name in makes)
    print(f"\nmarked slides found: {len(right)} of {marked}; others taken for marked: {len(false)} of "
          f"{len(makes) - marked}{': ' if false else ''}{', '.join(false)}")  # fmt: skip
    widths = (20, 40, 60, 80, 120, 220)
    _head("pen", *(f"{um} µm" for um in widths))
    for name, colour in PENS.items():
        _row(name, *("yes" if _ink(Drawing(SIZE).pen(colour, um=um), folder) else "no" for um in widths))


def _ink(drawing: Drawing, folder: Path) -> bool:
    with Slide.open(write(drawing, folder)) as slide:
        seen = survey(slide)
        return bool(seen.picture.find_pen(seen.overview).any())


def _make_draw(rgb: Codes) -> Callable[[int, int, int, int], tuple[Codes, Codes]]:
    """Return a function that gives parts of a picture to `write_slide`, with its edges repeated past it."""
    whole = np.asarray(cv2.copyMakeBorder(rgb, 0, 256, 0, 256, cv2.BORDER_REPLICATE), np.uint8)

    def draw(x: int, y: int, w: int, h: int) -> tuple[Codes, Codes]:
        part = np.ascontiguousarray(whole[y : y + h, x : x + w])
        return part, np.zeros(part.shape[:2], np.uint8)

    return draw


def blur(slides: Sequence[Path], folder: Path) -> None:
    """Measure the sharpness of slides, blurred by Gaussians and stored again."""
    _head("sigma, µm", "lowest sharpness", "median", "highest", "slides found blurred")
    for sigma in SIGMAS:
        found = []
        for path in slides:
            with Slide.open(path) as slide:
                assert slide.mpp is not None
                um, size = slide.mpp[0], slide.dimensions
                rgb = slide.read_region((0, 0), 0, size)
            if sigma:
                rgb = np.asarray(cv2.GaussianBlur(rgb, (0, 0), sigma / um), np.uint8)
            out = folder / "blurred.tiff"
            write_slide(out, folder / "mask.tiff", _make_draw(rgb), CODES, size=size, tile=256, mpp=um)
            with Slide.open(out) as slide:
                if (tissue := survey(slide).tissue) is not None:
                    found.append(measure_sharpness(slide, tissue, seed=0))
        values = [focus.median for focus in found if focus is not None]
        blurred = sum(focus.blurred >= 0.5 for focus in found if focus is not None)
        _row(f"{sigma:g}", f"{min(values):.2f}", f"{np.median(values):.2f}", f"{max(values):.2f}",
             f"{blurred} of {len(values)}")  # fmt: skip


def damage(folder: Path, places: int = 25) -> None:
    """Measure how often a stretch of zeros among the tiles of a slide of 50 megapixels is found."""
    root = draw_dataset(folder / "damage", SyntheticSpec(slides=2, width=8192, height=6144), progress=False)
    lengths = (0.001, 0.005, 0.02, 0.05, 0.13)
    _head("compression", *(f"{length:.1%} of the file" for length in lengths))
    spoilt = folder / "spoilt.tiff"
    for compression in ("jpeg", "adobe_deflate"):
        seen = Counter[float]()
        for path in sorted((root / "train_images").iterdir()):
            levels = [tifffile.imread(path, level=level) for level in range(3)]
            with tifffile.TiffWriter(spoilt) as tiff:
                for level, pixels in enumerate(levels):
                    tiff.write(pixels, tile=(256, 256), photometric="rgb", compression=compression,
                               subfiletype=int(level > 0), metadata=None)  # fmt: skip
            first = TiffPyramid(spoilt).levels[0]
            begin, end = int(first.offsets.min()), int((first.offsets + first.byte_counts).max())
            content, rng = spoilt.read_bytes(), np.random.default_rng(0)
            for length in lengths:
                count = round(length * len(content))
                for _ in range(places):
                    start = int(rng.integers(begin, end - count))
                    spoilt.write_bytes(content[:start] + bytes(count) + content[start + count :])
                    with SlideOptions("fast").open(spoilt) as slide:
                        seen[length] += find_unreadable(slide, seed=int(rng.integers(2**32))) is not None
        _row(compression, *(f"{seen[length] / places / 2:.0%}" for length in lengths))


def speed(root: Path, deep: bool) -> None:
    """Time the inspection of each slide of a folder, on one core."""
    cv2.setNumThreads(1)
    rows = read_rows(root)
    inspect_slide(rows[0], deep=deep)
    began, worked, counts = time.perf_counter(), time.process_time(), Counter[str]()
    for row in rows:
        inspection, _ = inspect_slide(row, deep=deep)
        counts.update(found.finding for found in inspection.findings)
    worked, began = time.process_time() - worked, time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    print(f"{len(rows)} slides: {len(rows) / began:.1f} a second, {len(rows) / worked:.1f} a second of processor time; "
          f"at most {peak:.0f} MiB; findings {dict(counts)}")  # fmt: skip


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.findings", description=__doc__)
    parser.add_argument("--real", type=Path, help="a folder of slides to be blurred")
    parser.add_argument(
        "--speed",
        nargs="?",
        const=DRAWN,
        type=Path,
        metavar="ROOT",
        help="a folder in PANDA's layout to be timed; without it drawn slides, small ones and some as large as PANDA's",
    )
    parser.add_argument("--deep", action="store_true", help="with --speed: decode everything")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.speed is not None:
            roots = {"small": STOCK, "large": LARGE} if given.speed == DRAWN else {}
            for size, spec in roots.items():
                print(f"{spec.width} x {spec.height} px, ", end="", flush=True)
                with ProcessPoolExecutor(1, get_context("spawn")) as other:  # whose memory does not count
                    root = other.submit(draw_dataset, folder / size, spec, progress=False).result()
                speed(root, given.deep)
            if not roots:
                speed(given.speed, given.deep)
        elif given.real is not None:
            blur([path for path in sorted(given.real.iterdir()) if path.suffix in {".tiff", ".svs"}], folder)
        else:
            small_cancer()
            pens(folder)
            root = draw_dataset(folder / "slides", SyntheticSpec(slides=12), progress=False)
            blur(sorted((root / "train_images").iterdir()), folder)
            damage(folder)


if __name__ == "__main__":
    main()
