"""Choosing and reading the tiles of a bag."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from numpy.typing import NDArray

from panda.data import tile_selection
from panda.data.augment import Augmentation
from panda.data.bag_datamodule import BagDataModule
from panda.data.bags import read_bag
from panda.data.bagset import BagItem, BagSet, BagSettings
from panda.data.image_batch import convert_bags, stack_bags
from panda.data.loaders import Draw
from panda.data.manifest import SlideRecord
from panda.data.tile_selection import select_tile_coords_for_slide
from panda.errors import ConfigError, ManifestError, SlideError
from panda.synthetic.dataset import SyntheticSpec, draw_slide
from panda.wsi.geometry import Resolution
from panda.wsi.slide import Slide
from panda.wsi.tissue import TissueMap, find_tissue
from tests.panda_folder import make_folder, picture

WIDTH, HEIGHT, TILE = 640, 448, 32


def view(downsample: float) -> Resolution:
    """Return a working resolution of a slide of 640 x 448 level-0 px."""
    width, height = int(np.ceil(WIDTH / downsample)), int(np.ceil(HEIGHT / downsample))
    return Resolution(downsample, width, height, 0, 1.0, None)


def make_tissue_map(mask: NDArray[np.bool_], downsample: float = 8.0) -> TissueMap:
    return TissueMap(mask, view(downsample), "strict")


@pytest.fixture
def tissue() -> TissueMap:
    """Tissue with a ragged border, in a map of 8 level-0 px a px."""
    rng = np.random.default_rng(0)
    mask = np.zeros((HEIGHT // 8, WIDTH // 8), bool)
    mask[6:50, 9:70] = rng.random((44, 61)) < 0.7
    return make_tissue_map(mask)


def compute_brute_force_scores(
    canvas: NDArray[np.float32], resolution: Resolution, tissue: TissueMap, coords: NDArray[np.int64], side: float
) -> list[float]:
    """Return the mean of the map over the tissue of each tile, pixel by pixel."""
    found = tissue.crop(resolution, (0, 0), resolution.size)
    scores = []
    for x, y in coords.tolist():
        left, top = round(x / resolution.downsample), round(y / resolution.downsample)
        right, bottom = round((x + side) / resolution.downsample), round((y + side) / resolution.downsample)
        where = found[top:bottom, left:right]
        scores.append(float(canvas[top:bottom, left:right][where].mean()) if where.any() else 0.0)
    return scores


class Windows:
    """A map that is read window by window, and remembers the largest."""

    def __init__(self, canvas: NDArray[np.float32]) -> None:
        self.canvas = canvas
        self.largest = 0

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width)."""
        return self.canvas.shape[0], self.canvas.shape[1]

    def read(self, x0: int, y0: int, w: int, h: int) -> NDArray[np.float32]:
        """Return a window."""
        self.largest = max(self.largest, w * h)
        return self.canvas[y0 : y0 + h, x0 : x0 + w]


@pytest.mark.parametrize(("tile_downsample", "canvas_downsample"), [(2.0, 2.0), (4.0, 2.0), (2.0, 4.0), (2.0, 1.0)])
def test_select_tile_coords_highest_scores_come_first(
    tissue: TissueMap, tile_downsample: float, canvas_downsample: float
) -> None:
    resolution = view(canvas_downsample)
    canvas = np.random.default_rng(1).random((resolution.height, resolution.width), dtype=np.float32)
    tiles = view(tile_downsample)
    every = select_tile_coords_for_slide(None, None, tissue, tiles, k=10_000, tile_size=TILE)
    coords = select_tile_coords_for_slide(canvas, resolution, tissue, tiles, k=12, tile_size=TILE, random_fraction=0.0)
    side = TILE * tile_downsample
    expected = sorted(compute_brute_force_scores(canvas, resolution, tissue, every, side), reverse=True)[:12]
    assert compute_brute_force_scores(canvas, resolution, tissue, coords, side) == pytest.approx(expected, abs=1e-6)
    assert coords.dtype == np.int64


def test_select_tile_coords_tiles_share_no_pixels_and_hold_tissue(tissue: TissueMap) -> None:
    coords = select_tile_coords_for_slide(None, None, tissue, view(2), k=10_000, tile_size=TILE)
    assert (coords % (2 * TILE) == 0).all()
    assert len(np.unique(coords, axis=0)) == len(coords)
    boxes = np.concatenate([coords, coords + 2 * TILE], axis=1)
    assert (tissue.measure_fraction(boxes) > 0).all()
    fuller = select_tile_coords_for_slide(None, None, tissue, view(2), k=10_000, tile_size=TILE, min_tissue=0.5)
    assert 0 < len(fuller) < len(coords)
    assert (tissue.measure_fraction(np.concatenate([fuller, fuller + 2 * TILE], axis=1)) >= 0.5).all()


def test_select_tile_coords_tiles_hit_drawn_cancer(tmp_path: Path) -> None:
    image, mask = tmp_path / "s.tiff", tmp_path / "s_mask.tiff"
    spec = SyntheticSpec(width=2048, height=1024)
    draw_slide(image, mask, spec, slide_id="s", provider="radboud", isup_grade=3, seed=4)
    cancer = tifffile.imread(mask)[..., 0] >= 3  # level 0; Gleason patterns 3 to 5
    with Slide.open(image) as slide:
        tissue, tiles, coarse = find_tissue(slide), slide.choose_resolution(level=0), slide.choose_resolution(level=1)
        known = cancer.reshape(coarse.height, 4, coarse.width, 4).mean(axis=(1, 3), dtype=np.float32)
        side: dict[str, Any] = {"tile_size": 128, "min_tissue": 0.5}
        guided = select_tile_coords_for_slide(known, coarse, tissue, tiles, k=12, random_fraction=0.0, **side)
        every = select_tile_coords_for_slide(None, None, tissue, tiles, k=10_000, **side)

    def held(coords: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.array([cancer[y : y + 128, x : x + 128].mean() for x, y in coords.tolist()])

    found, best = held(guided), np.sort(held(every))[::-1]
    assert (found > 0.5).all()
    # A score is over the tissue of a tile, so that one at the border may be preferred to one in the midst.
    assert found.mean() > 0.9 * best[:12].mean()
    assert found.mean() > 1.5 * best.mean()


def test_select_tile_coords_random_fraction_follows_seed(tissue: TissueMap) -> None:
    resolution = view(2)
    canvas = np.random.default_rng(1).random((resolution.height, resolution.width), dtype=np.float32)

    def choose(fraction: float, seed: int, k: int = 16) -> NDArray[np.int64]:
        return select_tile_coords_for_slide(
            canvas, resolution, tissue, view(2), k=k, tile_size=TILE, random_fraction=fraction, seed=seed
        )

    best = choose(0.0, 0)
    some = choose(0.25, 1)
    np.testing.assert_array_equal(some[:12], best[:12])
    np.testing.assert_array_equal(some, choose(0.25, 1))
    assert not np.array_equal(some, choose(0.25, 2))
    assert len(np.unique(some, axis=0)) == 16
    assert not np.array_equal(choose(1.0, 1)[:4], best[:4])
    everything = choose(0.25, 1, k=10_000)
    np.testing.assert_array_equal(everything[:16], best)


def test_select_tile_coords_equal_scores_sort_by_tissue_then_place() -> None:
    mask = np.zeros((HEIGHT // 8, WIDTH // 8), bool)
    mask[8:24, 8:24] = True
    mask[8:12, 8:16] = False  # the first tile has less tissue than its neighbours
    resolution = view(2)
    canvas = np.full((resolution.height, resolution.width), 0.5, np.float32)
    coords = select_tile_coords_for_slide(
        canvas, resolution, make_tissue_map(mask), view(2), k=3, tile_size=TILE, random_fraction=0.0
    )
    assert coords.tolist() == [[128, 64], [64, 128], [128, 128]]


def test_select_tile_coords_reads_in_bands_and_ranks_nan_last(
    tissue: TissueMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolution = view(1)
    canvas = np.random.default_rng(1).random((resolution.height, resolution.width), dtype=np.float32)
    options: dict[str, Any] = {"k": 20, "tile_size": TILE, "random_fraction": 0.0}
    whole = select_tile_coords_for_slide(canvas, resolution, tissue, view(2), **options)
    windows = Windows(canvas)
    monkeypatch.setattr(tile_selection, "_BAND_PX", 5 * WIDTH)
    np.testing.assert_array_equal(select_tile_coords_for_slide(windows, resolution, tissue, view(2), **options), whole)
    assert windows.largest == 5 * WIDTH
    canvas[:200] = np.nan
    first = select_tile_coords_for_slide(canvas, resolution, tissue, view(2), **options)[0]
    assert first[1] >= 128


def test_select_tile_coords_no_tissue_or_faulty_arguments(tissue: TissueMap) -> None:
    empty = make_tissue_map(np.zeros((HEIGHT // 8, WIDTH // 8), bool))
    assert select_tile_coords_for_slide(None, None, empty, view(2), k=3, tile_size=TILE).shape == (0, 2)
    with pytest.raises(ValueError, match="needs its resolution"):
        select_tile_coords_for_slide(np.zeros((4, 4)), None, tissue, view(2), k=3, tile_size=TILE)
    with pytest.raises(ValueError, match=r"map is \(4, 4\), its resolution says \(224, 320\)"):
        select_tile_coords_for_slide(np.zeros((4, 4)), view(2), tissue, view(2), k=3, tile_size=TILE)
    for change in ({"k": 0}, {"k": 2, "random_fraction": 1.5}):
        options: dict[str, Any] = {"tile_size": TILE, **change}
        with pytest.raises(ValueError, match="k must be at least 1"):
            select_tile_coords_for_slide(None, None, tissue, view(2), **options)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[SlideRecord]:
    return make_folder(tmp_path_factory.mktemp("data"), 4)


SETTINGS = BagSettings(k=3, tile_size=64, level=0)


def make_items(records: list[SlideRecord]) -> list[BagItem]:
    return [
        BagItem(record, np.array([[64 + 64 * tile, 64] for tile in range(1 + number)], dtype=np.int64))
        for number, record in enumerate(records)
    ]


def test_read_bag_stacks_tiles_in_order(records: list[SlideRecord]) -> None:
    coords = np.array([[64, 64], [128, 192], [736, 480]], dtype=np.int64)
    with Slide.open(records[0].image_path) as slide:
        bag = read_bag(slide, coords, slide.choose_resolution(level=0), 64)
    assert bag.shape == (3, 3, 64, 64)
    assert bag.dtype == np.float32
    expected = picture(0)[192:256, 128:192].transpose(2, 0, 1) / np.float32(255)
    np.testing.assert_array_equal(bag[1], expected)
    assert (bag[2, :, 32:] == 1).all()


def test_bag_set_items_are_padded_and_follow_draw(records: list[SlideRecord]) -> None:
    bags = BagSet(make_items(records), SETTINGS)
    tiles, *_ = convert_bags(stack_bags([bags.read(1), bags.read(3)]))
    assert torch.equal(tiles, torch.stack([bags[1][0], bags[3][0]]))
    bag, mask, label, slide_id = bags[1]
    assert bag.shape == (3, 3, 64, 64)
    assert mask.tolist() == [True, True, False]
    assert (bag[2] == 0).all()
    assert bag[1].min() > 0
    assert (int(label), slide_id) == (4, records[1].slide_id)
    assert bags[3][1].all()
    turned = BagSet(make_items(records), SETTINGS, Augmentation(name="light"))
    assert torch.equal(turned[Draw(1, 5)][0], turned[Draw(1, 5)][0])
    assert not torch.equal(turned[Draw(1, 5)][0], turned[Draw(1, 6)][0])
    assert (turned[Draw(1, 5)][0][2] == 0).all()


def test_bag_set_faulty_bags_raise(records: list[SlideRecord], tmp_path: Path) -> None:
    items = make_items(records)
    with pytest.raises(ConfigError, match=r"(?s)2 faults.*tiles\.k=0 must be at least 1.*tiles\.tile_size=0 must be"):
        BagSettings(k=0, tile_size=0)
    with pytest.raises(ManifestError, match="no slides"):
        BagSet([], SETTINGS)
    with pytest.raises(ManifestError, match="no tiles"):
        BagSet([BagItem(records[0], np.empty((0, 2), np.int64))], SETTINGS)
    with pytest.raises(ManifestError, match="no isup_grade"):
        BagSet([BagItem(dataclasses.replace(records[0], isup_grade=None), items[0].coords)], SETTINGS)
    broken = tmp_path / "broken.tiff"
    broken.write_bytes(b"no slide")
    bags = BagSet([BagItem(dataclasses.replace(records[0], image_path=broken), items[0].coords)], SETTINGS)
    with pytest.raises(SlideError, match=r"broken\.tiff"):
        bags[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_bag_datamodule_drops_single_last_training_bag(records: list[SlideRecord], workers: int) -> None:
    items = make_items(records)
    module = BagDataModule(
        {"train": items[:3], "val": items[3:], "test": []},
        SETTINGS.model_copy(update={"batch_size": 2, "num_workers": workers}),
        Augmentation(name="light"),
    )
    (batch,) = module.train_dataloader()  # the third bag would be alone
    assert batch[0].pixels.dtype == torch.uint8
    bag, mask, label, slide_ids = module.on_after_batch_transfer(batch, 0)
    assert bag.shape == (2, 3, 3, 64, 64)
    assert mask.dtype == torch.bool
    assert label.dtype == torch.int64
    assert len(slide_ids) == 2
    (batch,) = module.val_dataloader()
    assert batch[3] == [records[3].slide_id] or batch[3] == (records[3].slide_id,)
    with pytest.raises(ConfigError, match="there is no test split"):
        module.test_dataloader()
    with pytest.raises(ConfigError, match=r"tiles\.batch_size=0 must be at least 1"):
        BagSettings(batch_size=0)
