"""Measure precision and recall of tissue finding, on drawn slides with known truth and one artifact each.

`python -m bench.tissue OUT_DIR` draws them, prints the table and writes `OUT_DIR/<condition>.png` (red: truth,
green: found) and `OUT_DIR/conditions.png`; with `--real DIR` it writes the pictures of the slides in a folder.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from bench.difficult_slides import MPP, NO_TISSUE, SIZE, TISSUE, Drawing, Picture, Truth
from panda.errors import SlideError
from panda.files import write_beside
from panda.synthetic.pyramid_writer import write_slide
from panda.wsi.slide import Slide
from panda.wsi.tissue import TissueMap, survey


@dataclass(frozen=True)
class Result:
    """Tissue found on a drawn slide; `how` is `"none"` if the slide was refused and all its tissue missed.

    Attributes:
        overview: (h, w, 3) the picture that was searched.
        found: (h, w) tissue found.
        truth: (h, w) tissue drawn.
        how: The search that found it.
    """

    overview: Picture
    found: Truth
    truth: Truth
    how: str

    @property
    def recall(self) -> float:
        """Return the share of the tissue that was found; nan if there is none."""
        return _share(self.found & self.truth, self.truth)

    @property
    def precision(self) -> float:
        """Return the share of the found px that is tissue; nan if nothing was found."""
        return _share(self.found & self.truth, self.found)


def _share(part: Truth, whole: Truth) -> float:
    return float(part.sum() / whole.sum()) if whole.any() else math.nan


def _overview(slide: Slide) -> tuple[Picture, TissueMap | None]:
    seen = survey(slide)
    return (seen.overview, seen.tissue) if seen.tissue is not None else (slide.overview(1024)[0], None)


def write(drawing: Drawing, folder: Path) -> Path:
    """Write a drawing as a slide into a folder."""

    def draw(x: int, y: int, w: int, h: int) -> tuple[Picture, Picture]:
        rgb, codes = np.full((h, w, 3), 245, np.uint8), np.zeros((h, w), np.uint8)
        part = np.s_[y : y + h, x : x + w]
        have = drawing.truth[part].shape
        rgb[: have[0], : have[1]], codes[: have[0], : have[1]] = drawing.rgb[part], drawing.truth[part]
        return rgb, codes

    size = drawing.width, drawing.height
    path = folder / "slide.tiff"
    write_slide(path, folder / "mask.tiff", draw, np.arange(256, dtype=np.uint8), size=size, tile=256, mpp=MPP)
    return path


def measure(drawing: Drawing, folder: Path) -> Result:
    """Write a drawing as a slide into a folder, find its tissue and compare."""
    with Slide.open(write(drawing, folder)) as slide:
        picture, tissue = _overview(slide)
    height, width = picture.shape[:2]
    truth = cv2.resize(drawing.truth.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA) >= 0.5
    if tissue is None:
        return Result(picture, np.zeros((height, width), np.bool_), truth, "none")
    return Result(picture, tissue.mask, truth, tissue.how)


def draw_outlines(picture: Picture, **masks: Truth) -> Picture:
    """Draw the outlines of masks, each keyed by `red` or `green`, on a picture."""
    out = picture.copy()
    for name, mask in masks.items():
        contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(out, contours, -1, {"red": (230, 0, 0), "green": (0, 150, 0)}[name], 1)
    return out


def _save(path: Path, rgb: Picture, colours: int | None = None) -> None:
    """Write a picture, whole or absent; few colours make it small."""
    picture = Image.fromarray(rgb)
    with write_beside(path) as partial:
        (picture.quantize(colours, dither=Image.Dither.NONE) if colours else picture).save(
            partial, "png", optimize=True
        )


def _sheet(results: dict[str, Result], columns: int = 5, width: int = 220) -> Picture:
    """Draw small pictures of all conditions in a grid, with their names."""
    tiles = []
    for name, result in results.items():
        height = round(width * result.overview.shape[0] / result.overview.shape[1])
        small = cv2.resize(result.overview, (width, height), interpolation=cv2.INTER_AREA)
        masks = (
            cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST) > 0
            for mask in (result.truth, result.found)
        )
        tile = np.full((height + 17, width + 6, 3), 255, np.uint8)
        tile[17:, :width] = draw_outlines(
            np.asarray(small, np.uint8), **dict(zip(("red", "green"), masks, strict=True))
        )
        label = f"{name}: {result.how}".replace("µ", "u")
        cv2.putText(tile, label, (1, 12), cv2.FONT_HERSHEY_SIMPLEX, 0.37, (0, 0, 0), 1, cv2.LINE_AA)
        tiles.append(tile)
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % columns)
    return np.vstack([np.hstack(tiles[i : i + columns]) for i in range(0, len(tiles), columns)])


def synthetic(out: Path) -> None:
    """Measure every condition, print the table and write the pictures."""
    print("| slide | found by | precision | recall |\n|---|---|---|---|")
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, make in {**TISSUE, **NO_TISSUE}.items():
            results[name] = result = measure(make(SIZE), Path(folder))
            shown = [f"{v:.3f}" if math.isfinite(v) else "–" for v in (result.precision, result.recall)]
            print(f"| {name} | {result.how} | {shown[0]} | {shown[1]} |", flush=True)
            picture = draw_outlines(result.overview, red=result.truth, green=result.found)
            _save(out / f"{name.replace(' ', '_').replace(',', '').replace('µ', 'u')}.png", picture)
    _save(out / "conditions.png", _sheet(results), colours=256)


def real(folder: Path, out: Path) -> None:
    """Write pictures of the tissue found on the slides of a folder."""
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in {".tiff", ".tif", ".svs", ".ndpi", ".mrxs"}):
        try:
            with Slide.open(path) as slide:
                picture, tissue = _overview(slide)
        except SlideError as error:
            print(error)
            continue
        if tissue is None:
            print(f"{path.name}: no tissue")
            _save(out / f"{path.stem}.png", picture)
            continue
        print(f"{path.name}: {tissue.how}, {tissue.fraction:.1%} of {picture.shape[1]} x {picture.shape[0]} px")
        _save(out / f"{path.stem}.png", draw_outlines(picture, green=tissue.mask))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.tissue", description=__doc__)
    parser.add_argument("out", type=Path, nargs="?", default=Path("out/tissue"), help="where the pictures go")
    parser.add_argument("--real", type=Path, help="a folder of slides; their pictures are written, nothing is measured")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    if given.real is None:
        synthetic(given.out)
    else:
        real(given.real, given.out)


if __name__ == "__main__":
    main()
