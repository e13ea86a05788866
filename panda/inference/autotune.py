"""Resolve `engine.precision=auto` and `engine.compile=auto` of inference by a trial on the first slide.

The threshold of a checkpoint was chosen on maps of one precision. Another precision changes single probabilities, bf16
by up to a few hundredths. It is therefore used only if the device computes in it natively, and the areas at the
threshold stay the same on tiles of this slide: that of the tumour and that of each class of cancer. The result is
stored in the output, so that a run that continues there, after a kill or with more slides, makes maps with the same
provenance.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeFloat, TypeAdapter

from panda.errors import PandaError
from panda.files import fingerprint, hold_lock, write_json
from panda.inference.batch_size import tune_batch_size
from panda.inference.codes import choose_classes
from panda.inference.compute import ComputeMode, EngineSettings, InferenceModel
from panda.inference.modes import Precision
from panda.inference.predictor import CornerReader, SegmentationPredictor
from panda.stored import Digest, Plain, read_model
from panda.wsi.classes import ClassSet
from panda.wsi.grid import Grid
from panda.wsi.slide import Slide
from panda.wsi.tissue import TissueMap, find_tissue

log = logging.getLogger(__name__)

MOST_MOVED = 0.005
"""Largest relative change of an area of cancer on the tiles of the trial, at the threshold."""

LEAST_AREA = 0.01
"""Smallest area that the change is relative to, as a share of the tissue of the trial."""

_TILES = (4, 16)  # fewest and most tiles of a trial
_TILES_PER_TRIAL_TILE = 50  # a trial takes at most one in so many of all tiles; below the fewest, there is none
_PAYS_S = 120.0  # seconds of work from which on some ten seconds of compiling pay
_FASTER = 0.9  # a compiled network must take less than this share of the time


class TunedMode(Plain, frozen=True):
    """How the slides of an output are mapped, and why in words.

    `moved` is the relative change of the tumour area in the trial, or the largest one of a class of cancer, against the
    precision of the threshold without compilation; None if nothing else was tried.
    """

    precision: Precision
    compiled: bool
    moved: NonNegativeFloat | None
    why: str


_RECORD = TypeAdapter(dict[Digest, TunedMode])


def tune_mode(
    predictor: SegmentationPredictor,
    threshold: float,
    paths: Sequence[Path],
    open_slide: Callable[[Path], Slide],
    record: Path,
    *,
    count: int | None = None,
) -> TunedMode:
    """Set the compute mode of a predictor as its settings say; `auto` takes what is best on this machine.

    The trial uses the first readable slide of `paths`. `record` is a JSON file of the output with its modes, by network
    and settings. A mode in it is used again. `count` slides are to be mapped; None means that `paths` are all of them.
    """
    settings, mode = predictor.settings, predictor.mode
    if "auto" not in (settings.precision, settings.compile):
        return _keep_mode(mode, "as asked for")
    asked = settings.model_dump(include={"precision", "compile", "tta"})
    key = fingerprint({"network": predictor.fingerprint, **asked})
    with hold_lock(record):
        known = _read_record(record)
        if tuned := known.get(key):
            if tuned.compiled and not settings.can_compile:
                log.warning("%s: says compiled, and no C++ compiler was found; slides are mapped without", record)
                tuned = tuned.model_copy(update={"compiled": False})
            predictor.model = InferenceModel(predictor.network, settings, ComputeMode(tuned.precision, tuned.compiled))
            return tuned
        found = _run_trial(predictor, threshold, paths, open_slide, count or len(paths))
        if found is None:
            return _keep_mode(mode, f"{_name_origin(settings)}; no slide could be read for a trial")
        write_json(record, _RECORD.dump_python({**known, key: found}, mode="json"))
    return found


def _keep_mode(mode: ComputeMode, why: str) -> TunedMode:
    return TunedMode(precision=mode.precision, compiled=mode.compiled, moved=None, why=why)


def _name_origin(settings: EngineSettings) -> str:
    """Return where the precision that is used without a trial is from."""
    return "that of the threshold" if settings.precision == "auto" else "as asked for"


def _read_record(record: Path) -> dict[str, TunedMode]:
    """Return the modes of an output; none, with a warning, if their file is damaged or was edited."""
    try:
        return read_model(record, _RECORD, "precision and compilation are tuned again")
    except FileNotFoundError:
        return {}
    except (OSError, PandaError) as error:
        log.warning("%s", error)
        return {}


def _run_trial(
    predictor: SegmentationPredictor,
    threshold: float,
    paths: Sequence[Path],
    open_slide: Callable[[Path], Slide],
    count: int,
) -> TunedMode | None:
    """Run the trial on the first readable slide, if there is one, and set the model of the predictor."""
    for path in paths:
        try:
            with open_slide(path) as slide:
                tissue = find_tissue(slide)
                grid = predictor.make_grid(slide, tissue)
                read = predictor.make_tile_reader(slide, tissue, grid)
                sample = _read_sample(read, tissue, grid, len(grid) * count)
        except (PandaError, OSError):
            continue  # recorded as a failure when its turn comes
        if sample is None:
            return _keep_mode(predictor.mode, f"{_name_origin(predictor.settings)}; too little to do for a trial")
        return _compare_modes(predictor, threshold, sample, len(grid) * count)
    return None


Sample = tuple[NDArray[np.uint8], NDArray[np.bool_]]
"""Tiles (n, p, p, 3) and their tissue (n, p, p)."""


def _read_sample(read: CornerReader, tissue: TissueMap, grid: Grid, work: int) -> Sample | None:
    """Return tiles from all over a slide; None if a trial would be too large a part of `work` tiles."""
    count = min(len(grid), _TILES[1], work // _TILES_PER_TRIAL_TILE)
    if count < _TILES[0]:
        return None
    size = (grid.patch_size, grid.patch_size)
    corners = [(int(x), int(y)) for x, y in grid.level0[np.linspace(0, len(grid) - 1, count).astype(int)]]
    images = np.stack([read(*corner) for corner in corners])
    return images, np.stack([tissue.crop(grid.resolution, corner, size) for corner in corners])


def _compare_modes(predictor: SegmentationPredictor, threshold: float, sample: Sample, work: int) -> TunedMode:
    """Set the fastest mode that keeps the tumour area of a sample."""
    settings, first = predictor.settings, predictor.mode
    images, in_tissue = sample
    fast = settings.fast_precision
    other = settings.precision == "auto" and fast != first.precision
    may_compile = settings.compile == "auto" and settings.torch_device.type == "cpu" and settings.can_compile
    if not other and not may_compile:
        fits = ", and fast here" if fast == first.precision else ""
        return _keep_mode(first, f"{_name_origin(settings)}{fits}")
    before, seconds = _time_model(predictor.model, images)
    base = _count_cancer(before, in_tissue, threshold, predictor.classes)
    least = max(LEAST_AREA * np.count_nonzero(in_tissue), 1)

    def measure_change(prob: NDArray[np.float32]) -> float:
        moved = np.abs(_count_cancer(prob, in_tissue, threshold, predictor.classes) - base)
        return float((moved / np.maximum(base, least)).max())

    best, moved, reasons = predictor.model, None, [f"{first.precision} is {_name_origin(settings)}"]
    if other:
        tried = InferenceModel(predictor.network, settings, ComputeMode(fast, first.compiled))
        prob, took = _time_model(tried, images)
        change = measure_change(prob)
        what = f"{fast} moves the tumour area at {threshold:.3f} by {change:.2%} on {len(images)} tiles"
        if change < MOST_MOVED and took < seconds:
            best, seconds, moved, reasons = tried, took, change, [what]
        else:
            why = f"{MOST_MOVED:.1%} is the limit" if change >= MOST_MOVED else "and is slower here"
            reasons.append(f"{what}, {why}")
    if may_compile and seconds * work >= _PAYS_S:
        tried = InferenceModel(predictor.network, settings, ComputeMode(best.mode.precision, True))
        prob, took = _time_model(tried, images)
        change, gain = measure_change(prob), f"compiled, {seconds / took:.1f} times as fast"
        if change < MOST_MOVED and took < _FASTER * seconds:
            best, moved = tried, change
            reasons.append(f"{gain}, the area moves by {change:.2%}")
        else:
            reasons.append(f"{gain} and moving the area by {change:.2%}: not worth it")
    predictor.model = best
    return _keep_mode(best.mode, "; ".join(reasons)).model_copy(update={"moved": moved})


def _count_cancer(
    prob: NDArray[np.float32], in_tissue: NDArray[np.bool_], threshold: float, classes: ClassSet
) -> NDArray[np.int64]:
    """Return how many px of tissue are cancer: of any class, then of each, (1 + k,)."""
    by_class = prob.reshape(len(prob), -1, *in_tissue.shape[1:]).swapaxes(0, 1)
    is_cancer = (by_class.sum(axis=0) >= threshold) & in_tissue
    found = np.bincount(choose_classes(by_class, classes)[is_cancer], minlength=len(classes.names))
    return np.array([found.sum(), *found[1:]])


def _time_model(model: InferenceModel, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], float]:
    """Return the probabilities of tiles, and the seconds per tile after a warm-up."""
    size = tune_batch_size(model, images.shape[1])
    model(images[:size]).cpu()
    start = time.perf_counter()
    prob = [model(images[at : at + size]).cpu().numpy() for at in range(0, len(images), size)]
    batches = -(-len(images) // size) * size if model.mode.compiled else len(images)
    return np.concatenate(prob), (time.perf_counter() - start) / batches
