"""Canvases of several classes of cancer: blending, storage and merged reads."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from panda.errors import CheckpointError
from panda.inference.canvas import Canvas, CanvasWriter
from panda.inference.canvas_metadata import ARRAY, CHUNK, METADATA, describe_array
from panda.inference.codes import STEPS, choose_classes, merge_codes
from panda.inference.window import blend_window
from panda.wsi.classes import BINARY, ClassSet
from panda.wsi.geometry import Resolution

GLEASON = ClassSet(names=("benign", "G3", "G4", "G5"), patterns={"G3": (3,), "G4": (4,), "G5": (5,)})


def reorder(classes: ClassSet, order: tuple[int, ...]) -> ClassSet:
    """Return the classes of cancer in another order, by their places from 0."""
    names = [classes.cancer_names[place] for place in order]
    return ClassSet(names=(classes.names[0], *names), patterns={name: classes.patterns[name] for name in names})


def draw_tiles(rng: np.random.Generator, count: int, patch: int) -> NDArray[np.float32]:
    """Return softmax probabilities of three classes of cancer, (count, 3, patch, patch)."""
    raw = np.exp(3 * rng.standard_normal((count, 4, patch, patch)))
    return np.asarray((raw / raw.sum(axis=1, keepdims=True))[:, 1:], np.float32)


def write(
    path: Path,
    tiles: NDArray[np.float32],
    positions: NDArray[np.int64],
    size: tuple[int, int],
    overlap: int,
    *,
    batch: int = 3,
    classes: ClassSet = GLEASON,
    **options: Any,
) -> Canvas:
    patch = tiles.shape[-1]
    resolution = Resolution(4.0, *size, 1, 4.0, (1.92, 1.92))
    with CanvasWriter(path, resolution, patch, "f", {}, overlap=overlap, classes=classes, **options) as writer:
        for at in range(0, len(tiles), batch):
            writer.add(tiles[at : at + batch], positions[at : at + batch])
        return writer.close()


def blend_in_float64(
    tiles: NDArray[np.float32], positions: NDArray[np.int64], size: tuple[int, int], overlap: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the weighted mean of each class over whole arrays, and where any tile is."""
    patch, (width, height) = tiles.shape[-1], size
    weight = np.outer(*[blend_window(patch, overlap).astype(np.float64)] * 2)
    sums = np.zeros((tiles.shape[1] + 1, height + 2 * patch, width + 2 * patch))
    for tile, (x, y) in zip(tiles, positions, strict=True):
        sums[:-1, y + patch : y + 2 * patch, x + patch : x + 2 * patch] += tile * weight
        sums[-1, y + patch : y + 2 * patch, x + patch : x + 2 * patch] += weight
    sums = sums[:, patch : patch + height, patch : patch + width]
    scored = sums[-1] > 0
    return sums[:-1] / np.where(scored, sums[-1], 1), scored


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 9999), patch=st.integers(2, 40), overlap=st.integers(0, 39))
def test_canvas_of_classes_equals_float64_blending(seed: int, patch: int, overlap: int) -> None:
    overlap = min(overlap, patch - 1)
    rng = np.random.default_rng(seed)
    size = int(rng.integers(1, 120)), int(rng.integers(1, 120))
    count = int(rng.integers(1, 12))
    positions = np.stack([rng.integers(1 - patch, side, count) for side in size], axis=1)
    tiles = draw_tiles(rng, count, patch)
    want, scored = blend_in_float64(tiles, positions, size, overlap)
    with TemporaryDirectory() as folder:
        canvas = write(Path(folder) / "c", tiles, positions, size, overlap)
        found, merged = canvas.read_classes(0, 0, *size), np.asarray(canvas)
        np.testing.assert_allclose(found, want, atol=0.5 / STEPS + 1e-6, rtol=0)
        np.testing.assert_allclose(merged, want.sum(axis=0), atol=1.5 / STEPS + 3e-6, rtol=0)
        codes = canvas.read_class_codes(0, 0, *size)
        np.testing.assert_array_equal(codes > 0, np.broadcast_to(scored, codes.shape))
        np.testing.assert_array_equal(
            canvas.read_codes(0, 0, *size), np.where(scored, np.minimum(codes.sum(0) - 2.0, STEPS + 1), 0)
        )
        classes = canvas.read_class_map(0, 0, *size, 0.5)
        np.testing.assert_array_equal(classes > 0, merged >= 0.5)
        clear = np.sort(want, axis=0)[-1] - np.sort(want, axis=0)[-2] > 3 / STEPS
        np.testing.assert_array_equal(classes[clear & (classes > 0)], 1 + want.argmax(0)[clear & (classes > 0)])


def test_canvas_of_classes_equal_for_all_budgets_and_orders(tmp_path: Path) -> None:
    size, patch = (2 * CHUNK + 60, CHUNK + 77), 300
    rng = np.random.default_rng(3)
    positions = np.array([(x, y) for y in range(-30, size[1], 170) for x in range(-30, size[0], 170)])
    tiles = draw_tiles(rng, len(positions), patch)
    first = write(tmp_path / "c", tiles, positions, size, 130)
    codes, merged = first.read_class_codes(0, 0, *size), first.read_codes(0, 0, *size)
    class_map = first.read_class_map(0, 0, *size, 0.4)
    for budget, batch, expected in ((1, 1, positions), (2**30, 7, None), (5 * 4 * CHUNK**2, 40, positions)):
        canvas = write(tmp_path / "d", tiles, positions, size, 130, batch=batch, budget=budget, expected=expected)
        np.testing.assert_array_equal(canvas.read_class_codes(0, 0, *size), codes)
        np.testing.assert_array_equal(Canvas.open(canvas.path, 2**30).read_codes(0, 0, *size), merged)
    for order in list(permutations(range(3)))[1:]:
        own = tiles[:, list(order)]
        canvas = write(tmp_path / "e", own, positions, size, 130, classes=reorder(GLEASON, order))
        np.testing.assert_array_equal(canvas.read_class_codes(0, 0, *size), codes[list(order)])
        np.testing.assert_array_equal(canvas.read_codes(0, 0, *size), merged)
        numbers = np.array([0, *(1 + np.array(order))])
        np.testing.assert_array_equal(numbers[canvas.read_class_map(0, 0, *size, 0.4)], class_map)


def test_canvas_of_classes_has_the_chunks_that_zarr_writes(tmp_path: Path) -> None:
    size = CHUNK + 9, CHUNK + 40
    tiles = draw_tiles(np.random.default_rng(4), 2, 64)
    canvas = write(tmp_path / "c", tiles, np.array([[CHUNK - 30, CHUNK - 30], [0, 0]]), size, 0)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / METADATA).write_bytes(describe_array(canvas.resolution, GLEASON))
    zarr.open_array(tmp_path / "other", mode="r+")[:] = canvas.read_class_codes(0, 0, *size)
    written = [
        {file.relative_to(array): file.read_bytes() for file in (array / "c").glob("*/*/*")}
        for array in (tmp_path / "c" / ARRAY, tmp_path / "other")
    ]
    assert len(written[0]) == 3 * 4
    assert written[0] == written[1]


def test_canvas_states_classes_unless_there_is_one(tmp_path: Path) -> None:
    tiles, corner = draw_tiles(np.random.default_rng(0), 1, 8), np.array([[0, 0]])
    several = write(tmp_path / "several", tiles, corner, (8, 8), 0)
    one = write(tmp_path / "one", tiles[:, 0], corner, (8, 8), 0, classes=BINARY)
    stated = [json.loads((canvas.path / "zarr.json").read_text())["attributes"] for canvas in (several, one)]
    assert stated[0]["classes"] == GLEASON.model_dump(mode="json")
    assert "classes" not in stated[1]
    image, channels = stated[0]["ome"]["multiscales"][0], stated[0]["ome"]["omero"]["channels"]
    assert [axis["name"] for axis in image["axes"]] == ["c", "y", "x"]
    assert image["axes"][0]["type"] == "channel"
    assert [step[step["type"]][0] for step in image["datasets"][0]["coordinateTransformations"]] == [1, 0]
    assert [channel["label"].split()[0] for channel in channels] == list(GLEASON.cancer_names)
    assert several.classes == GLEASON
    assert one.classes == BINARY
    assert one.read_classes(0, 0, 8, 8).shape == (1, 8, 8)
    assert set(np.unique(one.read_class_map(0, 0, 8, 8, 0.2))) == {0, 1}


@pytest.mark.parametrize("shape", [(2, 8, 8), (2, 2, 8, 8), (2, 3, 8, 9)])
def test_canvas_writer_tiles_of_other_classes_raise(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"they must be \(n, 3, 8, 8\)"):
        write_one(tmp_path / "c", np.zeros(shape, np.float32))


def write_one(path: Path, tiles: NDArray[np.float32]) -> None:
    resolution = Resolution(4.0, 20, 20, 1, 4.0, None)
    with CanvasWriter(path, resolution, 8, "f", {}, classes=GLEASON) as writer:
        writer.add(tiles, np.zeros((len(tiles), 2), np.int64))


@pytest.mark.parametrize("plane", [0, 1, 2])
@pytest.mark.parametrize("how", ["lost", "damaged", "shortened"])
def test_canvas_of_classes_lost_or_damaged_chunk_raises(tmp_path: Path, plane: int, how: str) -> None:
    tiles = draw_tiles(np.random.default_rng(0), 1, 64)
    canvas = write(tmp_path / "c", tiles, np.array([[CHUNK, 0]]), (CHUNK + 64, 64), 0)
    chunk = tmp_path / "c" / ARRAY / "c" / str(plane) / "0" / "1"
    content = bytearray(chunk.read_bytes())
    if how == "damaged":
        content[len(content) // 2] ^= 0xFF
        chunk.write_bytes(content)
        with pytest.raises(CheckpointError, match="cannot be read at working px"):
            Canvas.open(canvas.path).check()
        return
    chunk.unlink() if how == "lost" else chunk.write_bytes(content[:9])
    with pytest.raises(CheckpointError, match="part of it is lost"):
        Canvas.open(canvas.path)


def test_canvas_of_classes_with_other_class_count_raises(tmp_path: Path) -> None:
    canvas = write(tmp_path / "c", draw_tiles(np.random.default_rng(0), 1, 8), np.array([[0, 0]]), (8, 8), 0)
    path = canvas.path / "zarr.json"
    content = json.loads(path.read_text())
    del content["attributes"]["classes"]
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="map the slide again"):
        Canvas.open(canvas.path)


def test_choose_classes_tie_takes_the_highest_pattern() -> None:
    values = np.array([[3, 1, 2, 0], [3, 2, 2, 0], [1, 2, 2, 0]])[:, None]
    assert choose_classes(values, GLEASON).tolist() == [[2, 3, 3, 3]]
    assert choose_classes(values, reorder(GLEASON, (2, 1, 0))).tolist() == [[1, 2, 1, 1]]


def test_merge_codes_sum_is_cut_at_probability_1() -> None:
    codes = np.array([[0, 1, 1, 32768, 32769], [0, 1, 2, 32768, 32769], [0, 1, 3, 1, 1]], np.uint16)[:, None]
    assert merge_codes(codes).tolist() == [[0, 1, 4, 65535, 65535]]


@pytest.mark.parametrize(
    ("classes", "fault"),
    [
        (None, r"attributes\.classes is None"),
        ({"names": ["benign"], "patterns": {}}, r"attributes\.classes\.names"),
        ({"names": ["benign", "G3", "G4"], "patterns": {"G3": [3], "G4": [4]}}, "shape is"),
        ({"names": ["benign", "G3", "G4", "G5"], "patterns": {"G3": [3]}}, "patterns lacks G4"),
        ({"names": ["benign", "G3", "G4", "G5"], "patterns": {"G3": [3], "G4": [3], "G5": [5]}}, "pattern 3 is in"),
        ({"names": [f"c{n}" for n in range(5)], "patterns": {f"c{n}": [n] for n in range(1, 5)}}, "shape is"),
    ],
)
def test_canvas_with_edited_classes_raises(tmp_path: Path, classes: Any, fault: str) -> None:
    canvas = write(tmp_path / "c", draw_tiles(np.random.default_rng(0), 1, 8), np.array([[0, 0]]), (8, 8), 0)
    path = canvas.path / "zarr.json"
    content = json.loads(path.read_text())
    content["attributes"]["classes"] = classes
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=rf"zarr\.json.*{fault}.*map the slide again with infer.py"):
        Canvas.open(canvas.path)
