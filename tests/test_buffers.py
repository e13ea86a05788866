"""Memory of large tensors: used again when nothing refers to it, and never before."""

from __future__ import annotations

import torch

from panda.inference.buffers import Buffers


def test_buffers_memory_is_used_again_after_last_view() -> None:
    buffers = Buffers(torch.device("cpu"))
    first = buffers.empty((400, 500), torch.float32)
    place, view = first.data_ptr(), first[1:3, 2:].numpy()
    view[:] = 7
    del first
    other = buffers.empty((400, 500), torch.float32)
    assert other.data_ptr() != place  # a view still refers to it
    other.fill_(0)
    assert (view == 7).all()
    del view
    again = buffers.empty((1000, 200), torch.int32)
    assert (again.data_ptr(), again.dtype) == (place, torch.int32)
    assert buffers.zeros((1000, 200)).sum() == 0
    assert buffers.empty((2**20,), torch.uint8).data_ptr() not in (place, other.data_ptr())
