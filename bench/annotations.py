"""Measure how long annotations take to open and to draw: the table of docs/annotations.md.

`python -m bench.annotations` makes 10,000 polygons of 100 corners, on a slide of 100,000 px a side and crowded together
on a fifth of it, and one outline of 200,000 corners. It prints CPU times of one thread.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import shapely

from panda.wsi.annotations.geojson import parse_geojson
from panda.wsi.annotations.raster import Raster

SIDE, PATCH, DOWNSAMPLE, READS = 100_000, 512, 4, 200
"""The slide in level-0 px, a patch in working px, level-0 px per working px, and patches that are read."""


def draw_outline(middle: Sequence[float], radius: float, corners: int) -> list[list[float]]:
    """Return a closed ring with bays and bulges around a point."""
    angle = np.linspace(0, 2 * np.pi, corners + 1)
    away = radius * (1 + 0.2 * np.sin(angle * 3) + 0.05 * np.sin(angle * max(7, corners // 40)))
    ring = np.stack([middle[0] + away * np.cos(angle), middle[1] + away * np.sin(angle)], axis=1).round(2)
    ring[-1] = ring[0]
    return [[float(x), float(y)] for x, y in ring]


def measure(name: str, rings: Sequence[list[list[float]]], side: float, folder: Path) -> None:
    """Print a row of the table."""
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [ring]},
            "properties": {"objectType": "annotation", "classification": {"name": "Tumor"}},
        }
        for ring in rings
    ]
    path = folder / "a.geojson"
    path.write_text(json.dumps(features))
    start = time.process_time()
    raster = Raster([found.polygon for found in parse_geojson(path).annotations], [1] * len(rings))
    opened = time.process_time()
    rng = np.random.default_rng(0)
    covered = 0.0
    for _ in range(READS):
        x, y = rng.uniform(0, side - PATCH * DOWNSAMPLE, 2)
        px = (np.arange(PATCH) + 0.5) * DOWNSAMPLE
        covered += float(raster.draw(x + px, y + px).mean()) / READS
    spent = (time.process_time() - opened) / READS * 1e3
    size = path.stat().st_size / 1e6
    print(f"| {name} | {size:.0f} MB | {opened - start:.1f} s | {spent:.2f} ms | {covered:.0%} |", flush=True)


def main() -> None:
    """Print the table."""
    rng = np.random.default_rng(0)
    middles, radii = rng.uniform(0, 1, (10_000, 2)), rng.uniform(50, 600, 10_000)
    print("| annotations | file | opening | a patch of 512 px | covered |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, side in (("10,000 polygons", SIDE), ("the same on a fifth of each side", SIDE / 5)):
            rings = [draw_outline(middle * side, radius, 100) for middle, radius in zip(middles, radii, strict=True)]
            assert all(shapely.Polygon(ring).is_valid for ring in rings)
            measure(name, rings, side, Path(folder))
        outline = draw_outline((SIDE / 2, SIDE / 2), SIDE / 3, 200_000)
        measure("one outline of 200,000 corners", [outline], SIDE, Path(folder))


if __name__ == "__main__":
    main()
