"""The probability canvas: blending, storage and refusals."""

from __future__ import annotations

import errno
import json
import os
import pickle
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from panda.errors import CheckpointError, PandaError
from panda.inference.canvas import _MOST_WAITING, Canvas, CanvasWriter
from panda.inference.canvas_metadata import ARRAY, CHUNK, METADATA, describe_array
from panda.inference.canvas_store import read_chunk
from panda.inference.codes import STEPS, dequantize
from panda.inference.quantize import quantize, read_quantized
from panda.inference.window import blend_window
from panda.wsi.geometry import Resolution

HALF_STEP = 0.5 / STEPS + 1e-6  # quantisation, and float32's own rounding in the weighted mean of up to 16 tiles


def resolution(width: int, height: int) -> Resolution:
    return Resolution(4.0, width, height, 1, 4.0, (1.92, 1.92))


def tile_starts(length: int, patch: int, stride: int, edge: str) -> list[int]:
    """List tile starts that cover `[0, length)`: the last reaches past the edge, or is shifted back inside."""
    count = max(0, -(-(length - patch) // stride)) + 1
    found = [i * stride for i in range(count)]
    if edge == "shift":
        found[-1] = max(0, length - patch)
    return found


def cut_tiles(truth: NDArray[np.float32], patch: int, x: int, y: int) -> NDArray[np.float32]:
    """Return the output of the identity network: the map, and 0.77 past the slide's edge."""
    height, width = truth.shape
    tile = np.full((patch, patch), 0.77, np.float32)
    y0, y1, x0, x1 = max(y, 0), min(y + patch, height), max(x, 0), min(x + patch, width)
    tile[y0 - y : y1 - y, x0 - x : x1 - x] = truth[y0:y1, x0:x1]
    return tile


def write(
    path: Path,
    truth: NDArray[np.float32],
    patch: int,
    positions: Sequence[tuple[int, int]],
    *,
    overlap: int = 0,
    batch: int = 3,
    fingerprint: str = "a",
    **options: Any,
) -> Canvas:
    height, width = truth.shape
    with CanvasWriter(
        path, resolution(width, height), patch, fingerprint, {"slide_id": "S1"}, overlap=overlap, **options
    ) as writer:
        for at in range(0, len(positions), batch):
            some = positions[at : at + batch]
            writer.add(np.stack([cut_tiles(truth, patch, x, y) for x, y in some]), np.array(some))
        return writer.close()


@given(patch=st.integers(1, 80), data=st.data())
def test_blend_window_is_positive_symmetric_and_flat_without_overlap(patch: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, patch - 1))
    window = blend_window(patch, overlap)
    assert window.shape == (patch,)
    assert window.dtype == np.float32
    assert window.min() >= 0.01
    assert window.max() <= 1
    np.testing.assert_allclose(window, window[::-1])
    if overlap == 0:
        assert (window == 1).all()
    assert (window[overlap : patch - overlap] == 1).all()


@pytest.mark.parametrize("overlap", [-1, 8, 9])
def test_blend_window_impossible_overlap_raises(overlap: int) -> None:
    with pytest.raises(ValueError, match="overlap"):
        blend_window(8, overlap)


def test_quantize_is_exact_at_ends_and_middle() -> None:
    def make_codes(prob: NDArray[np.float32]) -> NDArray[np.uint16]:
        codes = torch.empty(prob.shape, dtype=torch.int16)
        return read_quantized(quantize(torch.tensor(prob), codes).numpy())

    given_prob = np.array([0, 0.5, 1, np.nan, -1e-4, 1 + 1e-4], np.float32)
    assert make_codes(given_prob).tolist() == [1, 32768, 65535, 0, 1, 65535]
    assert dequantize(make_codes(given_prob[:4])).tolist() == [0, 0.5, 1, 0]
    every = np.arange(1, 65536).astype(np.uint16)
    np.testing.assert_array_equal(make_codes(dequantize(every)), every)
    assert dequantize(np.zeros(2, np.uint16)).tolist() == [0, 0]


@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(1, 70),
    height=st.integers(1, 90),
    patch=st.integers(1, 33),
    edge=st.sampled_from(["pad", "shift"]),
    before=st.integers(0, 5),
    seed=st.integers(0, 999),
    data=st.data(),
)
def test_canvas_identity_network_returns_input(
    *, width: int, height: int, patch: int, edge: str, before: int, seed: int, data: st.DataObject
) -> None:
    before = min(before, patch - 1)
    stride = data.draw(st.integers(1 + (patch - 1) // 4, patch), label="stride")
    truth = np.random.default_rng(seed).random((height, width), np.float32)
    ys = [y - before for y in tile_starts(height + before, patch, stride, edge)]
    xs = [x - before for x in tile_starts(width + before, patch, stride, edge)]
    with TemporaryDirectory() as folder:
        positions = [(x, y) for y in ys for x in xs]
        expected = positions if data.draw(st.booleans(), label="tiles known beforehand") else None
        canvas = write(Path(folder) / "c.zarr", truth, patch, positions, overlap=patch - stride, expected=expected)
        np.testing.assert_allclose(np.asarray(canvas), truth, atol=HALF_STEP, rtol=0)
        assert canvas.read_codes(0, 0, width, height).all()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 9999), patch=st.integers(2, 40), overlap=st.integers(0, 39))
def test_canvas_blending_equals_weighted_mean(seed: int, patch: int, overlap: int) -> None:
    """Tiles that disagree, scattered and sparse, against two whole float64 arrays."""
    overlap = min(overlap, patch - 1)
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 120, 2)
    count = int(rng.integers(1, 12))
    x = rng.integers(-patch, width + 1, count)
    y = np.sort(rng.integers(-patch, height + 1, count))
    tiles = rng.random((count, patch, patch)).astype(np.float32)
    weight = np.outer(*[blend_window(patch, overlap).astype(np.float64)] * 2)
    value_sum, weight_sum = np.zeros((2, height + 2 * patch + 1, width + 2 * patch + 1))
    for tile, i, j in zip(tiles, y + patch, x + patch, strict=True):
        value_sum[i : i + patch, j : j + patch] += tile * weight
        weight_sum[i : i + patch, j : j + patch] += weight
    inside = slice(patch, patch + height), slice(patch, patch + width)
    value_sum, weight_sum = value_sum[inside], weight_sum[inside]
    want = np.divide(value_sum, weight_sum, out=np.zeros_like(value_sum), where=weight_sum > 0)
    with TemporaryDirectory() as folder:
        res = resolution(int(width), int(height))
        with CanvasWriter(Path(folder) / "c", res, patch, "f", {}, overlap=overlap) as writer:
            writer.add(tiles, np.stack([x, y], 1))
        canvas = Canvas.open(Path(folder) / "c")
        np.testing.assert_allclose(np.asarray(canvas), want, atol=HALF_STEP + 1e-6, rtol=0)
        np.testing.assert_array_equal((canvas.read_codes(0, 0, int(width), int(height)) > 0), weight_sum > 0)


@pytest.mark.parametrize("known", [True, False])
def test_canvas_codes_equal_for_all_budgets_and_batches(tmp_path: Path, known: bool) -> None:
    """Tiles that disagree, over several blocks: within a step of float64, and equal to the bit."""
    height, width, patch, stride = 2 * CHUNK - 60, 3 * CHUNK + 77, 400, 230
    rng = np.random.default_rng(3)
    grid = [(x, y) for y in tile_starts(height, patch, stride, "pad") for x in tile_starts(width, patch, stride, "pad")]
    positions = [(x - 30, y - 30) for x, y in grid if rng.random() < 0.8]
    tiles = rng.random((len(positions), patch, patch)).astype(np.float32) ** 4
    weight = np.outer(*[blend_window(patch, patch - stride).astype(np.float64)] * 2)
    value_sum, weight_sum = np.zeros((2, height + 2 * patch, width + 2 * patch))
    for tile, (x, y) in zip(tiles, positions, strict=True):
        place = slice(y + patch, y + 2 * patch), slice(x + patch, x + 2 * patch)
        value_sum[place] += tile * weight
        weight_sum[place] += weight
    inside = slice(patch, patch + height), slice(patch, patch + width)
    value_sum, weight_sum = value_sum[inside], weight_sum[inside]
    scored = weight_sum > 0
    assert 0 < scored.mean() < 1
    want = np.where(scored, np.rint(value_sum / np.where(scored, weight_sum, 1) * STEPS) + 1, 0)
    first: NDArray[np.uint16] | None = None
    for budget, batch in ((2**30, 5), (1, 1), (2 * 4 * CHUNK**2, 40)):
        with CanvasWriter(
            tmp_path / "c",
            resolution(width, height),
            patch,
            "f",
            {},
            overlap=patch - stride,
            expected=positions if known else None,
            budget=budget,
        ) as writer:
            for at in range(0, len(tiles), batch):
                writer.add(torch.from_numpy(tiles[at : at + batch]), positions[at : at + batch])
        codes = Canvas.open(tmp_path / "c").read_codes(0, 0, width, height)
        assert np.abs(codes.astype(int) - want).max() <= 1
        first = codes if first is None else first
        np.testing.assert_array_equal(codes, first)


def test_canvas_chunks_are_those_that_zarr_writes(tmp_path: Path) -> None:
    truth = np.random.default_rng(4).random((CHUNK + 40, CHUNK + 9)).astype(np.float32)
    canvas = write(tmp_path / "c", truth, 64, [(CHUNK - 30, CHUNK - 30), (0, 0)])
    codes = canvas.read_codes(0, 0, CHUNK + 9, CHUNK + 40)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / METADATA).write_bytes(describe_array(canvas.resolution))
    zarr.open_array(tmp_path / "other", mode="r+")[:] = codes
    written = [
        {file.relative_to(array): file.read_bytes() for file in (array / "c").glob("*/*")}
        for array in (tmp_path / "c" / ARRAY, tmp_path / "other")
    ]
    assert len(written[0]) == 4
    assert written[0] == written[1]


@pytest.mark.parametrize("value", [0.0, 0.25, 0.5, 1.0])
def test_canvas_constant_tiles_stay_constant(tmp_path: Path, value: float) -> None:
    truth = np.full((100, 75), value, np.float32)
    positions = [(x, y) for y in tile_starts(100, 32, 13, "shift") for x in tile_starts(75, 32, 13, "shift")]
    canvas = write(tmp_path / "c", truth, 32, positions, overlap=19)
    assert np.unique(canvas.read_codes(0, 0, 75, 100)).tolist() == [round(value * STEPS) + 1]


def test_canvas_chunk_and_band_borders_leave_no_seam(tmp_path: Path) -> None:
    """A canvas of several chunks each way, tiles that straddle their borders, a gap of a whole chunk row."""
    height, width, patch = 2 * CHUNK + 37, CHUNK + 9, 96
    truth = np.random.default_rng(1).random((height, width), np.float32)
    positions = [
        (x, y) for y in tile_starts(CHUNK + 60, patch, 70, "pad") for x in tile_starts(width, patch, 70, "pad")
    ]
    positions.append((width - 40, height - 30))
    canvas = write(tmp_path / "c", truth, patch, positions, overlap=26)
    scored = canvas.read_codes(0, 0, width, height) > 0
    last = positions[-2][1] + patch
    assert scored[:last].all()
    assert not scored[last : height - 30].any()
    assert scored[height - 30 :, width - 40 :].all()
    np.testing.assert_allclose(np.asarray(canvas), np.where(scored, truth, 0), atol=HALF_STEP, rtol=0)
    bands = [canvas.read(0, y0, width, min(100, height - y0)) for y0 in range(0, height, 100)]
    np.testing.assert_array_equal(np.concatenate(bands), np.asarray(canvas))
    window = canvas.read(CHUNK - 7, CHUNK - 5, 16, 11)
    np.testing.assert_array_equal(window, np.asarray(canvas)[CHUNK - 5 : CHUNK + 6, CHUNK - 7 : CHUNK + 9])


def test_canvas_unscored_differs_from_0_and_takes_no_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = np.zeros((CHUNK * 3, CHUNK), np.float32)
    canvas = write(tmp_path / "c", truth, 64, [(10, CHUNK + 10)])
    scored = canvas.read_codes(0, 0, CHUNK, CHUNK * 3) > 0
    assert scored.sum() == 64 * 64
    assert scored[CHUNK + 10 : CHUNK + 74, 10:74].all()
    assert canvas.read(0, 0, CHUNK, 3 * CHUNK).max() == 0
    assert len([p for p in (tmp_path / "c" / ARRAY / "c").rglob("*") if p.is_file()]) == 1
    read = MagicMock(side_effect=read_chunk)
    monkeypatch.setattr("panda.inference.canvas_store.read_chunk", read)
    Canvas.open(canvas.path).read_codes(0, 0, CHUNK, CHUNK * 3)
    assert [call.args[1] for call in read.call_args_list] == [(1, 0)], "chunks that do not exist are not asked for"


def test_canvas_kept_blocks_are_decoded_once_within_budget(tmp_path: Path) -> None:
    truth = np.random.default_rng(0).random((1100, 1100), np.float32)
    whole = write(tmp_path / "c", truth, 1100, [(0, 0)]).read_codes(0, 0, 1100, 1100)
    enough, one_block = Canvas.open(tmp_path / "c", 2**30), Canvas.open(tmp_path / "c", 2 * 1024**2)
    for canvas in (enough, one_block):
        np.testing.assert_array_equal(canvas.read_codes(0, 0, 1100, 1100), whole)
    shutil.rmtree(tmp_path / "c" / ARRAY / "c")
    for window in ((-3, 5, 1200, 1200), (1000, 1020, 77, 50), (1024, 0, 5, 9)):
        np.testing.assert_array_equal(enough.read_codes(*window), pad(whole, window))
    np.testing.assert_array_equal(one_block.read_codes(0, 0, 1024, 1024), whole[:1024, :1024])
    with pytest.raises(CheckpointError, match="cannot be read at working px"):
        one_block.read_codes(0, 0, 1100, 1100)  # lost since it was opened


def pad(codes: NDArray[np.uint16], window: tuple[int, int, int, int]) -> NDArray[np.uint16]:
    """Cut a window whose sides may be past the edges of the map; 0 there."""
    x0, y0, width, height = window
    around = np.pad(codes, 200)
    return around[y0 + 200 : y0 + 200 + height, x0 + 200 : x0 + 200 + width]


def test_canvas_read_past_edge_is_unscored(tmp_path: Path) -> None:
    canvas = write(tmp_path / "c", np.full((20, 30), 0.5, np.float32), 16, [(0, 0), (14, 0), (0, 4), (14, 4)])
    np.testing.assert_array_equal(canvas.read(-5, -4, 10, 8)[4:, 5:], np.full((4, 5), 0.5, np.float32))
    assert (canvas.read_codes(-5, -4, 10, 8) > 0).sum() == 20
    assert not canvas.read_codes(30, 0, 5, 5).any()
    assert canvas.read(100, 100, 3, 2).shape == (2, 3)


def test_canvas_writer_keeps_resolution_and_attributes(tmp_path: Path) -> None:
    res = Resolution(4.0004, 40, 30, 1, 4.0004, None)
    with CanvasWriter(tmp_path / "c", res, 16, "print", {"slide_id": "S1", "tiles": 3}) as writer:
        assert writer.close().resolution == res
    canvas = pickle.loads(pickle.dumps(Canvas.open(tmp_path / "c")))
    assert (canvas.shape, canvas.resolution, canvas.fingerprint) == ((30, 40), res, "print")
    assert (canvas.patch_size, canvas.attrs) == (16, {"slide_id": "S1", "tiles": 3})
    assert np.asarray(canvas).dtype == np.float32
    assert np.asarray(canvas, np.float64).dtype == np.float64
    with pytest.raises(ValueError, match="copies"):
        np.asarray(canvas, copy=False)


@pytest.mark.parametrize(
    ("value", "message"),
    [(np.nan, "NaN or infinite"), (np.inf, "NaN or infinite"), (7.5, "7.5.*not logits"), (-3, "-3")],
)
def test_canvas_writer_non_probability_raises_with_place(tmp_path: Path, value: float, message: str) -> None:
    tiles = np.full((2, 8, 8), 0.5, np.float32)
    tiles[1, 2, 3:6] = value
    with (
        pytest.raises(PandaError, match=rf"slide S1: tile at working px \(8, 4\), level-0 px \(32, 16\).*{message}"),
        CanvasWriter(tmp_path / "c", resolution(40, 30), 8, "f", {"slide_id": "S1"}) as writer,
    ):
        writer.add(tiles, [[0, 4], [8, 4]])
    assert list(tmp_path.iterdir()) == []


def test_canvas_writer_rounding_past_0_and_1_is_clipped(tmp_path: Path) -> None:
    tiles = np.stack([np.full((8, 8), 1 + 1e-6), np.full((8, 8), -1e-6)]).astype(np.float32)
    with CanvasWriter(tmp_path / "c", resolution(16, 8), 8, "f", {}) as writer:
        writer.add(tiles, [[0, 0], [8, 0]])
    assert np.unique(Canvas.open(tmp_path / "c").read(0, 0, 16, 8)).tolist() == [0, 1]


def test_canvas_writer_wrong_or_unexpected_tile_raises(tmp_path: Path) -> None:
    with CanvasWriter(tmp_path / "c", resolution(40, 30), 8, "f", {}) as writer:
        with pytest.raises(ValueError, match=r"\(n, 8, 8\)"):
            writer.add(np.zeros((1, 8, 9)), [[0, 9]])
        with pytest.raises(ValueError, match=r"and \(n, 2\)"):
            writer.add(np.zeros((2, 8, 8)), [[0, 9]])
    with pytest.raises(ValueError, match="is closed"):
        writer.add(np.zeros((1, 8, 8)), [[0, 9]])
    with CanvasWriter(tmp_path / "c", resolution(40, 30), 8, "f", {}, expected=[[0, 9]]) as writer:
        writer.add(np.zeros((1, 8, 8)), [[0, 9]])
        with pytest.raises(ValueError, match=r"tile at \(0, 9\) was not expected, or comes twice"):
            writer.add(np.zeros((1, 8, 8)), [[0, 9]])


def test_canvas_writer_missing_tiles_raises_and_leaves_no_file(tmp_path: Path) -> None:
    with (
        pytest.raises(PandaError, match="1 of its tiles are missing"),
        CanvasWriter(tmp_path / "c", resolution(40, 30), 8, "f", {}, expected=[[0, 9], [8, 9]]) as writer,
    ):
        writer.add(np.zeros((1, 8, 8)), [[0, 9]])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("known", [True, False])
def test_canvas_writer_tile_order_and_budget_change_nothing(tmp_path: Path, known: bool) -> None:
    """With memory for two blocks, most open blocks of a wide canvas written by columns are on disk, exactly."""
    height, width, patch = CHUNK + 200, 5 * CHUNK + 9, 300
    truth = np.random.default_rng(2).random((height, width), np.float32)
    grid = [(x, y) for y in tile_starts(height, patch, 150, "shift") for x in tile_starts(width, patch, 150, "shift")]
    canvases = {}
    for name, order, budget in (
        ("rows", grid, 2**30),
        ("rows, tight", grid, 2 * 4 * CHUNK**2),
        ("columns", sorted(grid), 2 * 4 * CHUNK**2),
    ):
        expected = grid if known else None
        canvases[name] = write(tmp_path / name, truth, patch, order, overlap=150, expected=expected, budget=budget)
    codes = {name: canvas.read_codes(0, 0, width, height) for name, canvas in canvases.items()}
    np.testing.assert_array_equal(codes["rows, tight"], codes["rows"])
    np.testing.assert_allclose(codes["columns"].astype(int), codes["rows"].astype(int), atol=1)
    np.testing.assert_allclose(np.asarray(canvases["columns"]), truth, atol=HALF_STEP, rtol=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(canvases)


def test_canvas_writer_open_sums_stay_in_budget(tmp_path: Path) -> None:
    height, width, patch, block = 3 * CHUNK, 40 * CHUNK, 256, 4 * CHUNK**2
    grid = [(x, y) for y in tile_starts(height, patch, 256, "pad") for x in tile_starts(width, patch, 256, "pad")]
    with CanvasWriter(
        tmp_path / "c", resolution(width, height), patch, "f", {}, expected=grid, budget=3 * block
    ) as writer:
        peak, spilled = 0, 0
        for at, (x, y) in enumerate(grid):
            writer.add(np.full((1, patch, patch), 0.5), [(x, y)])
            peak = max(peak, sum(sums.nbytes for sums in writer.blocks._held.values()))
            spilled = max(spilled, len(writer.blocks._away))
            if at + 1 == len(grid) // 3:
                # the first row of blocks has all its tiles: it is on disk, and no block is held
                assert writer.blocks.list_unfinished() == []
                assert len(list(tmp_path.glob(".*.partial.c/0/c/0/*"))) >= 40 - _MOST_WAITING
    assert block < peak <= 3 * block
    assert spilled > 0


def test_canvas_writer_full_disk_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, data: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    with (
        pytest.raises(OSError, match="No space left"),
        CanvasWriter(tmp_path / "c", resolution(2 * CHUNK, 8), 8, "f", {}, budget=1) as writer,
    ):
        writer.add(np.zeros((2, 8, 8)), [[0, 0], [CHUNK, 0]])
    assert list(tmp_path.iterdir()) == []


def test_canvas_writer_keeps_old_canvas_until_new_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "c.zarr"
    everywhere = [(x, y) for y in (0, 8) for x in (0, 8)]
    write(path, np.full((16, 16), 0.25, np.float32), 8, everywhere, fingerprint="old")

    def fail(writer: CanvasWriter) -> None:
        writer.add(np.ones((1, 8, 8)), [[0, 0]])
        raise KeyboardInterrupt

    with (
        pytest.raises(KeyboardInterrupt),
        CanvasWriter(path, resolution(16, 16), 8, "new", {}) as writer,
    ):
        fail(writer)
    assert Canvas.open(path).fingerprint == "old"
    write(path, np.full((16, 16), 0.75, np.float32), 8, everywhere, fingerprint="new")
    canvas = Canvas.open(path)
    assert canvas.fingerprint == "new"
    assert canvas.read(0, 0, 16, 16).min() > 0.7
    assert list(path.parent.iterdir()) == [path]


def test_canvas_writer_removes_leftovers_of_killed_run(tmp_path: Path) -> None:
    killed = CanvasWriter(tmp_path / "c", resolution(16, 16), 8, "killed", {})
    killed.add(np.ones((1, 8, 8)), [[0, 0]])
    assert not (tmp_path / "c").exists()
    with CanvasWriter(tmp_path / "c", resolution(16, 16), 8, "f", {}) as writer:
        writer.add(np.ones((1, 8, 8)), [[0, 0]])
        # Were the first one alive after all, it may not slip in what it has.
        with pytest.raises(PandaError, match="one run at a time"):
            killed.close()
    assert [p.name for p in tmp_path.iterdir()] == ["c"]
    assert Canvas.open(tmp_path / "c").fingerprint == "f"


@pytest.mark.parametrize("mpp", [(0.97, 1.01), None])
def test_canvas_is_an_ngff_image_with_its_scale(tmp_path: Path, mpp: tuple[float, float] | None) -> None:
    """The form is that of OME-NGFF 0.5: axes, multiscales with their transformations, and omero."""
    res = Resolution(4.0, 40, 30, 1, 4.0, mpp)
    with CanvasWriter(tmp_path / "c", res, 40, "f", {"slide_id": "S1"}) as writer:
        writer.add(np.full((1, 40, 40), 0.25), [[0, 0]])
    group = zarr.open_group(tmp_path / "c", mode="r")
    ome: Any = group.attrs["ome"]
    assert ome["version"] == "0.5"
    [image] = ome["multiscales"]
    unit = {} if mpp is None else {"unit": "micrometer"}
    assert image["axes"] == [{"name": name, "type": "space"} | unit for name in "yx"]
    [level] = image["datasets"]
    scale, shift = level["coordinateTransformations"]
    assert scale == {"type": "scale", "scale": [1.01, 0.97] if mpp else [1, 1]}
    # The centre of the first px is 1.5 level-0 px from that of the first level-0 px.
    want = [1.5 * 1.01 / 4, 1.5 * 0.97 / 4] if mpp else [0, 0]
    assert shift == {"type": "translation", "translation": pytest.approx(want)}
    array: Any = group[level["path"]]
    assert array.metadata.dimension_names == ("y", "x")
    assert array.shape == (30, 40)
    assert (array[:] == writer.close().read_codes(0, 0, 40, 30)).all()
    [channel] = ome["omero"]["channels"]
    assert re.fullmatch("[0-9A-F]{6}", channel["color"])
    assert channel["window"] == {"min": 0, "max": 65535, "start": 1, "end": 65535}


def test_canvas_of_version_2_is_refused_with_remedy(tmp_path: Path) -> None:
    """Its array was the whole folder and had the attributes."""
    path = tmp_path / "c.zarr"
    write(path, np.full((40, 40), 0.3, np.float32), 40, [(0, 0)])
    attributes = json.loads((path / METADATA).read_text())["attributes"]
    array = json.loads((path / ARRAY / METADATA).read_text())
    shutil.move(path / ARRAY / "c", path / "c")
    shutil.rmtree(path / ARRAY)
    (path / METADATA).write_text(json.dumps(array | {"attributes": attributes | {"panda_canvas": 2}}))
    with pytest.raises(CheckpointError, match="panda_canvas is 2, this version reads 3; map the slide again"):
        Canvas.open(path)


FAULTS = {
    "no array": "broken one",
    "other scale": "attributes.ome is",
    "truncated metadata": "broken one",
    "no metadata": "broken one",
    "truncated chunk": "part of it is lost",
    "missing chunk": "part of it is lost",
    "other version": "panda_canvas is 99, this version reads 3",
    "other array": "panda_canvas is None",
    "incomplete": "attributes.resolution.level is missing",
    "other shape": r"shape is \[5, 5\], but must be \[40, 40\]",
}


def damage(path: Path, how: str) -> None:
    meta = path / ARRAY / METADATA if how == "other shape" else path / METADATA
    chunk = next(p for p in (path / ARRAY / "c").rglob("*") if p.is_file())
    plain = json.loads(meta.read_text())
    if how == "other version":
        plain["attributes"]["panda_canvas"] = 99
    elif how == "other array":
        plain["attributes"] = {}
    elif how == "incomplete":
        del plain["attributes"]["resolution"]["level"]
    elif how == "other shape":
        plain["shape"] = [5, 5]
    elif how == "other scale":
        plain["attributes"]["ome"]["multiscales"][0]["datasets"][0]["coordinateTransformations"][0]["scale"] = [2, 2]
    elif how == "no array":
        (path / ARRAY / METADATA).unlink()
    elif how == "truncated chunk":
        chunk.write_bytes(chunk.read_bytes()[:9])
    elif how == "missing chunk":
        chunk.unlink()
    text = json.dumps(plain)
    meta.write_text(text[:50] if how == "truncated metadata" else text)
    if how == "no metadata":
        meta.unlink()


@pytest.mark.parametrize("how", FAULTS)
def test_canvas_broken_raises_with_path_and_remedy(tmp_path: Path, how: str) -> None:
    path = tmp_path / "c.zarr"
    write(path, np.full((40, 40), 0.3, np.float32), 40, [(0, 0)])
    damage(path, how)
    with pytest.raises(CheckpointError, match=rf"c\.zarr.*{FAULTS[how]}.*map the slide again with infer.py"):
        Canvas.open(path)


def test_canvas_missing_or_damaged_bytes_raises(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no such canvas"):
        Canvas.open(tmp_path / "none")
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="is no canvas"):
        Canvas.open(tmp_path / "file")
    truth = np.random.default_rng(0).random((64, 64)).astype(np.float32)
    canvas = write(tmp_path / "c", truth, 64, [(0, 0)])
    chunk = tmp_path / "c" / ARRAY / "c" / "0" / "0"
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 0xFF
    chunk.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"/c/0/c/0/0: .* at working px \(0, 0\).*; move it away, and map"):
        canvas.read(0, 0, 10, 10)
