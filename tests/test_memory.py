"""Memory of large arrays: used again when nothing refers to it, and never before."""

from __future__ import annotations

import os

import numpy as np
import pytest

from panda.memory import MemoryPool

MIB = (1024, 1024)


def find_place(array: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> int:
    return array.ctypes.data


def test_memory_is_used_again_after_last_view() -> None:
    pool = MemoryPool(2**30)
    first = pool.empty(MIB)
    place, view = find_place(first), first[1:3, 2:]
    view[:] = 7
    del first
    other = pool.empty(MIB)
    other[:] = 0
    assert find_place(other) != place  # a view still refers to it
    assert (view == 7).all()
    del view
    again = pool.empty((512, 512), np.float32)
    assert (find_place(again), str(again.dtype), again.shape) == (place, "float32", (512, 512))
    assert find_place(pool.empty((1024, 512))) not in (place, find_place(other))


def test_memory_unused_is_bounded_and_last_used_stays() -> None:
    pool = MemoryPool(2 * 2**20)
    arrays = [pool.empty(MIB) for _ in range(4)]
    places = [find_place(array) for array in arrays]
    while arrays:
        arrays.pop(0)
    found = [pool.empty(MIB) for _ in range(2)]
    assert [find_place(array) for array in found] == [places[3], places[2]]
    assert len(pool._unused) == 1  # of four, one was given back to the system


def test_memory_small_arrays_are_from_heap() -> None:
    pool = MemoryPool(2**30)
    assert pool.empty((3, 4), np.int16).flags.owndata
    assert not pool.empty((512, 512)).flags.owndata
    assert pool.empty((0, 4)).shape == (0, 4)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_memory_forked_process_has_its_own() -> None:
    pool = MemoryPool(2**30)
    array = pool.empty(MIB)
    array[:] = 1
    child = os.fork()
    if not child:
        array[:] = 2
        os._exit(int(find_place(pool.empty(MIB)) == find_place(array)))
    assert os.waitpid(child, 0)[1] == 0
    assert (array == 1).all()
