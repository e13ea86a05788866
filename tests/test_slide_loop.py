"""Slides that are opened ahead of a loop over them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from panda.data.failures import Failure
from panda.data.manifest import SlideRecord
from panda.errors import SlideError
from panda.inference.slide_loop import SlidePrefetcher, run_over_slides
from panda.wsi.slide import Slide, SlideOptions
from panda.wsi.tissue import TissueMap
from tests.pyramids import write_pyramid

PINK = (200, 140, 180)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    image = np.full((600, 600, 3), PINK, np.uint8)
    return write_pyramid(tmp_path_factory.mktemp("slides") / "a.tiff", image, mpp=0.5)


def make_record(number: int, path: Path) -> SlideRecord:
    return SlideRecord(f"s{number}", "radboud", 0, "0+0", path, None, f"s{number}")


def wait_for(done: Callable[[], bool]) -> None:
    """Wait until something is done by other threads."""
    until = time.monotonic() + 60
    while not done():
        assert time.monotonic() < until, "not done"
        time.sleep(0.01)


def test_prefetcher_opens_next_slides_and_closes_unused(path: Path) -> None:
    opened: dict[int, Slide] = {}

    def open_slide(number: int) -> Slide:
        opened[number] = Slide.open(path)
        return opened[number]

    closed: list[Slide] = []
    close = Slide.close

    def note(slide: Slide) -> None:
        closed.append(slide)
        close(slide)

    with pytest.MonkeyPatch.context() as patch, SlidePrefetcher(range(6), open_slide, ahead=2) as prefetcher:
        patch.setattr(Slide, "close", note)
        with prefetcher.open(0) as (slide, tissue):
            wait_for(lambda: len(opened) == 3)
            assert slide is opened[0]
            assert isinstance(tissue, TissueMap)
        assert closed == [opened[0]]
        with prefetcher.open(1):
            wait_for(lambda: len(opened) == 4)
        assert {*opened} == {0, 1, 2, 3}
        prefetcher.__exit__()
    assert {id(slide) for slide in closed} == {id(slide) for slide in opened.values()}


def test_run_over_slides_bad_slide_fails_alone(path: Path) -> None:
    records = [make_record(0, path), make_record(1, path.with_name("no.tiff")), *(make_record(n, path) for n in (2, 3))]
    failures: list[Failure] = []

    def work(record: SlideRecord, slide: Slide, tissue: TissueMap, _: Any) -> str:
        if record.slide_id == "s3":
            raise SlideError("damaged")
        assert tissue.crop(slide.choose_resolution(level=0), (0, 0), (8, 8)).shape == (8, 8)
        return slide.slide_id

    assert run_over_slides(records, SlideOptions(), "test", work, failures.append, ahead=3) == ["s0", "s2"]
    assert [(failure.slide_id, failure.stage) for failure in failures] == [("s1", "test"), ("s3", "test")]
