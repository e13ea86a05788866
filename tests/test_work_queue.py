"""Threads beside the network: order, bounds, errors, and threads of torch."""

from __future__ import annotations

import threading

import pytest
import torch

from panda.inference.work_queue import WorkQueue, make_blending_queue


def wait_for(event: threading.Event) -> None:
    event.wait(60)


def run_in_thread() -> int:
    """Return the number of threads of torch in a thread that starts now."""
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found[0]


def test_blending_queue_takes_one_thread_of_torch_alone() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        found: list[int] = []
        with make_blending_queue(2) as queue:
            queue.submit(lambda: found.append(torch.get_num_threads()))
            queue.finish()
        assert (found, torch.get_num_threads(), run_in_thread()) == ([1], 3, 3)
    finally:
        torch.set_num_threads(before)


def test_work_queue_one_thread_keeps_order_and_raises_first_error() -> None:
    done: list[int] = []

    def work(number: int) -> None:
        if number in (3, 4):
            raise ValueError(f"number {number}")
        done.append(number)

    with WorkQueue(1, 9) as queue:
        for number in range(6):
            queue.submit(work, number)
        with pytest.raises(ValueError, match="number 3"):
            queue.finish()
    assert done == [0, 1, 2, 5]


def test_work_queue_submit_waits_if_too_many_calls_wait() -> None:
    may_end = threading.Event()
    with WorkQueue(1, 2) as queue:
        for _ in range(2):
            queue.submit(wait_for, may_end)
        third = threading.Thread(target=queue.submit, args=(lambda: None,))
        third.start()
        third.join(0.05)
        assert third.is_alive()
        may_end.set()
        third.join(60)
        assert not third.is_alive()


def test_work_queue_abort_drops_waiting_calls() -> None:
    begun, may_end, done = threading.Event(), threading.Event(), threading.Event()
    queue = WorkQueue(1, 3)

    def wait() -> None:
        begun.set()
        may_end.wait(60)

    queue.submit(wait)
    dropped = queue.submit(done.set)
    assert begun.wait(60)
    ended = threading.Thread(target=queue.abort)
    ended.start()
    while not dropped.cancelled():
        ended.join(0.01)
    may_end.set()
    ended.join(60)
    assert not done.is_set()
