"""Batches of tiles: order, laziness, bounds and faults."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from panda.inference import tile_batches
from panda.inference.tile_batches import TileReader, read_batches

CPU = torch.device("cpu")


def make_tile(value: int) -> NDArray[np.uint8]:
    return np.full((4, 4, 3), value, np.uint8)


def test_read_batches_keeps_order_with_any_threads() -> None:
    for threads in (1, 3):
        tiles = [partial(make_tile, value) for value in range(10)]
        batches = list(read_batches(tiles, 4, 4, threads=threads, device=CPU))
        assert [batch.shape for batch in batches] == [(4, 4, 4, 3), (4, 4, 4, 3), (2, 4, 4, 3)]
        assert torch.cat(batches)[:, 3, 2, 1].tolist() == list(range(10))
    assert list(read_batches([], 4, 4, threads=1, device=CPU)) == []


def test_read_batches_of_floats_equal_converted_bytes() -> None:
    values = (np.arange(4 * 192) % 256).astype(np.uint8).reshape(4, 8, 8, 3)
    (batch,) = read_batches([values[at].copy for at in range(4)], 8, 4, threads=2, device=CPU, dtype=torch.float32)
    assert torch.equal(batch, torch.from_numpy(values).float().div_(255))


@pytest.mark.parametrize(("budget", "ahead"), [(1, 1), (2 * 2 * 48 - 1, 1), (2**30, 2)])
def test_read_batches_ahead_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch, budget: int, ahead: int) -> None:
    monkeypatch.setattr(tile_batches, "_BYTES_AHEAD", budget)
    asked = 0

    def count() -> Iterator[TileReader]:
        nonlocal asked
        for value in range(100):
            asked += 1
            yield partial(make_tile, value)

    for done, _ in enumerate(read_batches(count(), 4, 2, threads=2, device=CPU)):
        assert asked == min(2 * (done + 1 + ahead), 100)


def test_read_batches_fault_of_tile_ends_reading() -> None:
    begun: list[int] = []

    def read(value: int) -> NDArray[np.uint8]:
        begun.append(value)
        if value == 3:
            raise ValueError("tile 3 is damaged")
        return make_tile(value)

    before = threading.active_count()
    found: list[Any] = []
    tiles: list[Callable[[], NDArray[np.uint8]]] = [partial(read, value) for value in range(100)]
    with pytest.raises(ValueError, match="tile 3 is damaged"):
        found.extend(read_batches(tiles, 4, 2, threads=1, device=CPU))
    assert len(found) == 1
    assert max(begun) < 20
    assert threading.active_count() == before
