"""What `engine.precision=auto` and `engine.compile=auto` come to in inference: a trial on the first slide, kept.

The threshold of a checkpoint was chosen on maps of one precision. Another one moves single probabilities, bf16 by up
to a few hundredths; so it is taken only if the device computes in it natively and the tumour area at the threshold
stays on tiles of the slide at hand. What was chosen is kept in the output: whoever goes on there, after a kill or with
more slides, gets maps of the same making.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from panda.errors import PandaError
from panda.files import fingerprint, hold_lock, write_json
from panda.inference.compute import ComputeMode, EngineSettings, InferenceModel, Precision
from panda.inference.predictor import SegmentationPredictor, TileReader
from panda.wsi.grid import Grid
from panda.wsi.slide import Slide
from panda.wsi.tissue import TissueMap, find_tissue

log = logging.getLogger(__name__)

MOST_MOVED = 0.005
"""By how much of itself the tumour area on the trial's tiles may move, at the threshold."""

LEAST_AREA = 0.01
"""Share of the trial's tissue that an area counts as at least: where a few pixels are tumour, one more is nothing."""

_TILES = (4, 16)  # of a trial, at least and at most
_SHARE = 50  # of all tiles, so many for one that is tried; where there are fewer than for the least trial, none is
_PAYS_S = 120.0  # of work, from which on some ten seconds of compiling are well spent
_FASTER = 0.9  # of the time without it: what a compiled network has to stay under


@dataclass(frozen=True)
class TunedMode:
    """How an output's slides are mapped, and why.

    Attributes:
        precision: Of the network.
        compiled: Whether it goes through `torch.compile`.
        moved: Share of itself by which the tumour area moved in the trial, against the precision of the threshold
            without compilation; None where nothing else was tried.
        why: For people.
    """

    precision: Precision
    compiled: bool
    moved: float | None
    why: str


def tune_mode(
    predictor: SegmentationPredictor,
    threshold: float,
    paths: Sequence[Path],
    open_slide: Callable[[Path], Slide],
    record: Path,
) -> TunedMode:
    """Make a predictor run its network as its settings say, or as is best here, and keeps the choice.

    Args:
        predictor: Its network is run in the chosen way from then on.
        threshold: At which tumour is told.
        paths: The slides to be mapped; the first that can be read is tried.
        open_slide: Opens one.
        record: A JSON file of the output: its choices, by network and settings. One that is there stands.

    Returns:
        The choice.
    """
    settings, mode = predictor.settings, predictor.mode
    if "auto" not in (settings.precision, settings.compile):
        return TunedMode(mode.precision, mode.compiled, None, "as asked for")
    asked = {"precision": settings.precision, "compile": settings.compile, "tta": settings.tta}
    key = fingerprint({"network": predictor.fingerprint, **asked})
    with hold_lock(record):
        choices = _kept(record)
        if key in choices:
            choice = choices[key]
            if choice.compiled and not settings.can_compile:
                log.warning("%s: says compiled, and no C++ compiler was found; slides are mapped without", record)
                choice = replace(choice, compiled=False)
            predictor.model = InferenceModel(
                predictor.network, settings, ComputeMode(choice.precision, choice.compiled)
            )
            return choice
        found = _tried(predictor, threshold, paths, open_slide)
        if found is None:
            why = f"{_stands(settings)}; no slide could be read for a trial"
            return TunedMode(mode.precision, mode.compiled, None, why)
        choice = found
        write_json(record, {name: asdict(value) for name, value in {**choices, key: choice}.items()})
    return choice


def _stands(settings: EngineSettings) -> str:
    """Where the precision is from that is taken without a trial."""
    return "that of the threshold" if settings.precision == "auto" else "as asked for"


def _kept(record: Path) -> dict[str, TunedMode]:
    """The choices of an output; none, and a warning, where their file is damaged."""
    try:
        return {key: TunedMode(**plain) for key, plain in json.loads(record.read_text(encoding="utf-8")).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        log.warning("%s: cannot be read (%s); precision and compilation are chosen anew", record, error)
        return {}


def _tried(
    predictor: SegmentationPredictor, threshold: float, paths: Sequence[Path], open_slide: Callable[[Path], Slide]
) -> TunedMode | None:
    """Try on the first slide that can be read, if any, and leaves the predictor in the way that was chosen."""
    for path in paths:
        try:
            with open_slide(path) as slide:
                tissue = find_tissue(slide)
                grid = predictor.grid(slide, tissue)
                read = predictor.tile_reader(slide, tissue, grid)
                sample = _sample(read, tissue, grid, len(grid) * len(paths))
        except (PandaError, OSError):
            continue  # its own turn comes, and then it is recorded
        if sample is None:
            mode = predictor.mode
            why = f"{_stands(predictor.settings)}; too little to do for a trial"
            return TunedMode(mode.precision, mode.compiled, None, why)
        return _choice(predictor, threshold, sample, len(grid) * len(paths))
    return None


Sample = tuple[NDArray[np.uint8], NDArray[np.bool_]]
"""Tiles (n, p, p, 3) and where tissue is on them (n, p, p)."""


def _sample(read: TileReader, tissue: TissueMap, grid: Grid, work: int) -> Sample | None:
    """Tiles from all over a slide; None where they would be too much of all the work.

    Args:
        read: Of the slide's tiles.
        tissue: Its tissue.
        grid: Its tiles.
        work: Tiles of all slides together, about.
    """
    count = min(len(grid), _TILES[1], work // _SHARE)
    if count < _TILES[0]:
        return None
    size = (grid.patch_size, grid.patch_size)
    corners = [(int(x), int(y)) for x, y in grid.level0[np.linspace(0, len(grid) - 1, count).astype(int)]]
    images = np.stack([read(*corner) for corner in corners])
    return images, np.stack([tissue.crop(grid.resolution, corner, size) for corner in corners])


def _choice(predictor: SegmentationPredictor, threshold: float, sample: Sample, work: int) -> TunedMode:
    settings, first = predictor.settings, predictor.mode
    images, where = sample
    fast = settings.fast_precision
    other = settings.precision == "auto" and fast != first.precision
    may_compile = settings.compile == "auto" and settings.torch_device.type == "cpu" and settings.can_compile
    if not other and not may_compile:
        fits = ", and fast here" if fast == first.precision else ""
        return TunedMode(first.precision, first.compiled, None, f"{_stands(settings)}{fits}")
    before, seconds = _run(predictor.model, images)
    base = int(np.count_nonzero((before >= threshold) & where))
    least = max(LEAST_AREA * np.count_nonzero(where), 1)

    def moved(prob: NDArray[np.float32]) -> float:
        return abs(int(np.count_nonzero((prob >= threshold) & where)) - base) / max(base, least)

    best, shift, said = predictor.model, None, [f"{first.precision} is {_stands(settings)}"]
    if other:
        tried = InferenceModel(predictor.network, settings, ComputeMode(fast, first.compiled))
        prob, took = _run(tried, images)
        by = moved(prob)
        what = f"{fast} moves the tumour area at {threshold:.3f} by {by:.2%} on {len(images)} tiles"
        if by < MOST_MOVED and took < seconds:
            best, seconds, shift, said = tried, took, by, [what]
        else:
            why = f"{MOST_MOVED:.1%} is the limit" if by >= MOST_MOVED else "and is slower here"
            said.append(f"{what}, {why}")
    if may_compile and seconds * work >= _PAYS_S:
        tried = InferenceModel(predictor.network, settings, ComputeMode(best.mode.precision, True))
        prob, took = _run(tried, images)
        by = moved(prob)
        if by < MOST_MOVED and took < _FASTER * seconds:
            best, shift = tried, by
            said.append(f"compiled, {seconds / took:.1f} times as fast, the area moves by {by:.2%}")
        else:
            said.append(f"compiled, {seconds / took:.1f} times as fast and moving the area by {by:.2%}: not worth it")
    predictor.model = best
    return TunedMode(best.mode.precision, best.mode.compiled, shift, "; ".join(said))


def _run(model: InferenceModel, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], float]:
    """Probabilities of some tiles, and seconds a tile once the network is warm."""
    size = model.settings.batch_size
    model(images[:size])
    start = time.perf_counter()
    prob = [model(images[at : at + size]) for at in range(0, len(images), size)]
    batches = -(-len(images) // size) * size if model.mode.compiled else len(images)
    return np.concatenate(prob), (time.perf_counter() - start) / batches
