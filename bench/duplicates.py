"""Measure recall and precision of near-duplicate finding, on slides that are scanned again by known changes.

`python -m bench.duplicates` draws unrelated slides, several of each layout, scans each again in many ways, and prints
the recall of each, the curve over thresholds and the content of the groups; `--real DIR` does so with the slides of a
folder; `--speed` groups 10,616 slides of random hashes instead.
"""

from __future__ import annotations

import argparse
import dataclasses
import resource
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from panda.audit.hash_distance import LARGEST, OUTLINE, TEXTURE, find_matches
from panda.audit.near_duplicates import THRESHOLD, group_near_duplicates
from panda.audit.tissue_hashes import AXES, PARTS, TissueHashes, hash_tissue
from panda.synthetic.layout import plan_scene
from panda.synthetic.painter import STYLES, Painter
from panda.wsi.slide import Slide
from panda.wsi.tissue import tissue_mask_rgb

Picture = NDArray[np.uint8]
Floats = NDArray[np.float64]
Rescan = Callable[[Picture, np.random.Generator], Picture]

DRAWN_MPP = 2.0
LAYOUTS = (
    *((3072, 2048), (3072, 1280), (2048, 3072), (2560, 640), (2304, 2304), (2048, 2048)),
    *((3072, 400), (3072, 560), (2048, 400)),
)
"""Sizes of the slides in px: three, two and one needle core, lying or standing, and as broad as long."""


def draw(number: int, *, other: bool = False, blocks: bool = True) -> Picture:
    """Draw slide `number` at 4 µm/px, in the other provider's colours, or without grey blocks."""
    width, height = LAYOUTS[number % len(LAYOUTS)]
    provider = tuple(STYLES)[(number + number // len(LAYOUTS) + other) % 2]
    painter = Painter(plan_scene(width, height, DRAWN_MPP, number % 6, 1000 + number), provider)
    if not blocks:
        painter.style = dataclasses.replace(painter.style, grey=None)
    return half(painter.draw(0, 0, width, height)[0])


def half(rgb: Picture) -> Picture:
    """Shrink a picture to half its width and height."""
    size = rgb.shape[1] // 2, rgb.shape[0] // 2
    return np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), np.uint8)


def _turn(degrees: float | None) -> Rescan:
    """Lay the slide at an angle, None for any; new px are glass."""

    def rescan(rgb: Picture, rng: np.random.Generator) -> Picture:
        height, width = rgb.shape[:2]
        angle = float(rng.uniform(-180, 180)) if degrees is None else degrees
        glass = tuple(float(v) for v in np.percentile(rgb.reshape(-1, 3)[::97], 90, axis=0))
        matrix = cv2.getRotationMatrix2D((width / 2, height / 2), angle, 1)
        c, s = abs(matrix[0, 0]), abs(matrix[0, 1])
        size = int(height * s + width * c) + 1, int(height * c + width * s) + 1
        matrix[:, 2] += (size[0] - width) / 2, (size[1] - height) / 2
        return np.asarray(cv2.warpAffine(rgb, matrix, size, borderValue=glass), np.uint8)

    return rescan


def _crop(share: float, *, both: bool = False) -> Rescan:
    """Cut a share of the tissue's length off, at one end or at both."""

    def rescan(rgb: Picture, rng: np.random.Generator) -> Picture:
        spans = [2 * np.array([at.min(), at.max()]) for at in np.nonzero(tissue_mask_rgb(half(rgb)))]
        tall = np.ptp(spans[0]) > np.ptp(spans[1])
        low, high = spans[0 if tall else 1].tolist()
        cut = round(share * (high - low))
        first = rng.random() < 0.5
        keep = slice(low + cut if both or first else 0, high - cut if both or not first else None)
        return rgb[keep] if tall else rgb[:, keep]

    return rescan


def _light(gain: float, gamma: float) -> Rescan:
    return lambda rgb, rng: np.clip(255 * gain * (rgb / 255.0) ** gamma, 0, 255).astype(np.uint8)


def _jpeg(quality: int) -> Rescan:
    def rescan(rgb: Picture, rng: np.random.Generator) -> Picture:
        encoded = cv2.imencode(".jpg", rgb, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        return np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR), np.uint8)

    return rescan


def _noise(sigma: float) -> Rescan:
    return lambda rgb, rng: np.clip(rgb + rng.normal(0, sigma, rgb.shape), 0, 255).astype(np.uint8)


def _all(*steps: Rescan) -> Rescan:
    def rescan(rgb: Picture, rng: np.random.Generator) -> Picture:
        for step in steps:
            rgb = np.ascontiguousarray(step(rgb, rng))
        return rgb

    return rescan


RESCANS: dict[str, Rescan] = {
    "turned by 90°": lambda rgb, rng: np.rot90(rgb),
    "turned by 180°": lambda rgb, rng: np.rot90(rgb, 2),
    "turned by 270°": lambda rgb, rng: np.rot90(rgb, 3),
    "mirrored": lambda rgb, rng: rgb[:, ::-1],
    "mirrored and turned by 90°": lambda rgb, rng: np.rot90(rgb[:, ::-1]),
    "turned by 7°": _turn(7),
    "turned by 30°": _turn(30),
    "turned by any angle": _turn(None),
    "cropped by 5 %": _crop(0.05),
    "cropped by 10 %": _crop(0.10),
    "cropped by 15 %": _crop(0.15),
    "cropped by 20 %": _crop(0.20),
    "cropped by 8 % at both ends": _crop(0.08, both=True),
    "darker, more contrast": _light(0.85, 1.3),
    "paler": _light(1.0, 0.6),
    "JPEG quality 40": _jpeg(40),
    "noise": _noise(12),
    "half resolution": lambda rgb, rng: half(rgb),
    "half resolution, JPEG quality 40": _all(lambda rgb, rng: half(rgb), _jpeg(40)),
}
"""Changes of a picture at 4 µm/px."""

COLOURS = "other provider's colours"
MIXED = "other colours, crop 5 %, any angle, light, JPEG 60"
_MIX = _all(_crop(0.05), _turn(None), _light(0.95, 1.15), _jpeg(60))


def _hash(rgb: Picture) -> TissueHashes | None:
    overview = half(rgb)
    return hash_tissue(overview, tissue_mask_rgb(overview))


def scans(number: int) -> dict[str, TissueHashes | None]:
    """Return the hashes of drawn slide `number` and of all its other scans, by name; the first is the slide itself."""
    rng = np.random.default_rng(number)
    # blocks that were not scanned lie along the picture: they come after the slide was turned, and are left out here
    plain, first, other = draw(number, blocks=False), draw(number), draw(number, other=True)
    found = {"": _hash(first), COLOURS: _hash(other)}
    for name, rescan in RESCANS.items():
        found[name] = _hash(np.ascontiguousarray(rescan(plain if "°" in name or "angle" in name else first, rng)))
    found[MIXED] = _hash(_MIX(draw(number, other=True, blocks=False), rng))
    return found


def real_scans(path: Path) -> dict[str, TissueHashes | None]:
    """Return the same for a slide in a file, from a picture of 1,536 px at the longest side."""
    with Slide.open(path) as slide:
        resolution = slide.choose_resolution(downsample=max(1.0, max(slide.dimensions) / 1536))
        rgb = slide.read(resolution, (0, 0), resolution.size)
    rng = np.random.default_rng(0)
    return {"": _hash(rgb)} | {
        name: _hash(np.ascontiguousarray(rescan(rgb, rng))) for name, rescan in [*RESCANS.items(), (MIXED, _MIX)]
    }


def distances(hashes: list[TissueHashes | None]) -> Floats:
    """Return the distance of each to each, (N, N), as grouping takes it; 1 if they are not compared."""
    known = [(i, own) for i, own in enumerate(hashes) if own is not None]
    stretch = np.log([own.aspect for _, own in known])
    texture, outline = [own.texture for _, own in known], [own.outline for _, own in known]
    match, _ = find_matches(texture, outline, stretch, frames=len(AXES), near=LARGEST, sure=LARGEST, crowd=np.inf)
    out = np.ones((len(hashes), len(hashes)))
    i, j = np.array([at for at, _ in known])[match[:2]]
    out[i, j] = out[j, i] = match[2] / LARGEST
    return out


def report(slides: list[dict[str, TissueHashes | None]]) -> None:
    """Print the recall, the curve and the content of the groups."""
    names = list(slides[0])
    count = len(slides)
    matrix = distances([scan[name] for scan in slides for name in names]).reshape(count, len(names), count, len(names))
    same = np.eye(count, dtype=np.bool_)
    again = {name: matrix[:, 0, :, k][same] for k, name in enumerate(names) if name}
    unrelated = matrix[:, 0][~same]
    print(f"{count} slides, {unrelated.size} comparisons of a slide with scans of unrelated ones\n")
    print("| scanned again | found again | distance, median | largest |\n|---|---|---|---|")
    for name, distance in again.items():
        print(f"| {name} | {(distance <= THRESHOLD).mean():.3f} | {np.median(distance):.2f} | {distance.max():.2f} |")
    print("\n| threshold | found again | of the hardest change | precision | unrelated that match, of a million |")
    print("|---|---|---|---|---|")
    pooled = np.concatenate(list(again.values()))
    for step in range(-6, 5):
        threshold = THRESHOLD + 0.02 * step
        right, wrong = int((pooled <= threshold).sum()), int((unrelated <= threshold).sum())
        worst = min((distance <= threshold).mean() for distance in again.values())
        shown = [right / pooled.size, worst, right / max(right + wrong, 1)]
        print(f"| {threshold:.2f} | {' | '.join(f'{v:.4f}' for v in shown)} | {1e6 * wrong / unrelated.size:.0f} |")
    found = group_near_duplicates({f"{i:04d} {name}": scan[name] for i, scan in enumerate(slides) for name in names})
    members: dict[str, list[str]] = {}
    for slide_id, group in found.groups.items():
        members.setdefault(group, []).append(slide_id[:4])
    together = [one == other for group in members.values() for one, other in combinations(group, 2)]
    possible = count * len(names) * (len(names) - 1) // 2
    print(
        f"\ngroups of all {count * len(names)} scans: {len(members)}, the largest of "
        f"{max(map(len, members.values()))}; pairs within a group: precision {np.mean(together):.4f}, "
        f"recall {sum(together) / possible:.4f}; crowded: {len(found.crowded)}"
    )


def speed(count: int) -> None:
    """Group random hashes, of which every tenth has a twin that differs in a sixth of its bits; hash an overview."""
    rng = np.random.default_rng(0)

    def some(rows: int) -> list[Picture]:
        return [rng.integers(0, 256, rows * rows // 8, dtype=np.uint8) for _ in range(len(AXES) * sum(map(len, PARTS)))]

    def changed(words: Picture) -> str:
        bits = np.unpackbits(words)
        bits[rng.choice(bits.size, bits.size // 6, replace=False)] ^= 1
        return np.packbits(bits).tobytes().hex()

    hashes: dict[str, TissueHashes | None] = {}
    while len(hashes) < count:
        texture, outline = some(TEXTURE), some(OUTLINE)
        aspect = float(np.exp(rng.uniform(0, 3)))
        for twin in range(2 if len(hashes) % 10 == 0 else 1):
            as_text = changed if twin else lambda words: words.tobytes().hex()
            kinds = [tuple(as_text(words) for words in kind) for kind in (texture, outline)]
            hashes[f"{rng.integers(2**60):015x}"] = TissueHashes(kinds[0], kinds[1], aspect)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, cpu = time.perf_counter(), time.process_time()
    found = group_near_duplicates(hashes)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{len(hashes)} slides, {len(found.pairs)} pairs: {wall:.1f} s, {cpu:.1f} s of one core, {more:.0f} MiB more")
    cv2.setNumThreads(1)
    overview = np.asarray(cv2.resize(draw(0), (2448, 1632)), np.uint8)
    tissue = tissue_mask_rgb(overview)
    cpu = time.process_time()
    for _ in range(20):
        hash_tissue(overview, tissue)
    print(f"hashing an overview of {overview[..., 0].size} px: {(time.process_time() - cpu) / 20:.3f} s of one core")


def _several(paths: list[Path], slides: int) -> Iterator[dict[str, TissueHashes | None]]:
    cv2.setNumThreads(1)
    with ProcessPoolExecutor(2) as pool:
        yield from pool.map(real_scans, paths) if paths else pool.map(scans, range(slides))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.duplicates", description=__doc__)
    parser.add_argument("--slides", type=int, default=108, help="how many are drawn")
    parser.add_argument("--real", type=Path, help="a folder of slides to scan again instead")
    parser.add_argument("--speed", action="store_true", help="measure the grouping of 10,616 random hashes")
    given = parser.parse_args()
    if given.speed:
        speed(10_616)
    else:
        report(list(_several(sorted(given.real.glob("*.tiff")) if given.real else [], given.slides)))


if __name__ == "__main__":
    main()
