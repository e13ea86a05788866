"""Resolve `engine.batch_size=auto` by a trial on the GPU, on tiles of random pixels."""

from __future__ import annotations

import time

import torch

from panda.inference.compute import ComputeMode, InferenceModel

_SIZES = (4, 8, 16, 32, 64, 128)
_ENOUGH = 0.97
"""Share of the best rate that a smaller batch must reach."""
_MOST_MEMORY = 0.8
"""Share of the free memory of the GPU that a batch may take; the canvas and other programs need some too."""
_TRIAL_S = 0.3


def tune_batch_size(model: InferenceModel, side: int) -> int:
    """Return the batch size of a model; set it first if it is `auto` and was not tried yet.

    The smallest size with at least 97 % of the best rate is taken, among those that fit in the memory of the GPU.

    Args:
        model: The model that maps tiles.
        side: Side of a tile in px.
    """
    if model.batch_size is None:
        # The sizes of a compiled network would each be compiled, so its eager form stands for it.
        eager = InferenceModel(model.network, model.settings, ComputeMode(model.mode.precision))
        model.batch_size = choose_batch_size(_measure_rates(eager, side))
    return model.batch_size


def choose_batch_size(rates: dict[int, float]) -> int:
    """Return the smallest batch size with at least 97 % of the best rate; 1 if none fits.

    Args:
        rates: Tiles per s by batch size, without the sizes that do not fit in memory.
    """
    best = max(rates.values(), default=0.0)
    return min((size for size, rate in rates.items() if rate >= _ENOUGH * best), default=1)


def _measure_rates(model: InferenceModel, side: int) -> dict[int, float]:
    """Return the tiles per s by batch size, up to the size that takes too much memory."""
    device = model.settings.torch_device
    rates: dict[int, float] = {}
    limit = _MOST_MEMORY * torch.cuda.mem_get_info(device)[0]
    before = torch.cuda.memory_allocated(device)
    for size in _SIZES:
        tiles = torch.randint(0, 256, (size, side, side, 3), dtype=torch.uint8, pin_memory=True)
        torch.cuda.reset_peak_memory_stats(device)
        try:
            for _ in range(2):  # the first call chooses algorithms
                model.run(tiles)
            torch.cuda.synchronize(device)
            if torch.cuda.max_memory_allocated(device) - before > limit:
                break
            start, count = time.perf_counter(), 0
            while time.perf_counter() - start < _TRIAL_S:
                model.run(tiles)
                torch.cuda.synchronize(device)
                count += size
            rates[size] = count / (time.perf_counter() - start)
        except torch.OutOfMemoryError:
            break
    torch.cuda.empty_cache()
    return rates
