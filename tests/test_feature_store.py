"""The feature store: its content, when it is renewed, and bags of features."""

import contextlib
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from panda.data.bags import read_bag
from panda.data.bagset import BagItem, BagSet, BagSettings
from panda.data.feature_files import read_feature_file, read_features, write_feature_file
from panda.data.manifest import SlideRecord
from panda.errors import ExhaustedError, ManifestError, SlideError
from panda.files import hold_lock
from panda.inference.compute import EngineSettings
from panda.inference.feature_store import FeatureStore
from panda.inference.features import TileBag, TileEncoder, encode_tiles
from panda.inference.grader import GradingPredictor, select_tiles
from panda.models.mil import MILNet
from panda.wsi.slide import Slide
from panda.wsi.tissue import find_tissue
from tests.checkpoints import grading_checkpoint
from tests.panda_folder import make_folder
from tests.pyramids import write_pyramid

SETTINGS = EngineSettings(device="cpu", precision="fp32")
COORDS = np.array([[0, 0], [256, 128], [512, 256], [128, 384], [64, 64]], np.int64)


def net(seed: int = 0, **options: Any) -> MILNet:
    torch.manual_seed(seed)
    return MILNet("resnet10t", freeze_encoder=True, hidden=8, chunk=2, **options)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    image = np.random.default_rng(0).integers(0, 255, (768, 1024, 3)).astype(np.uint8)
    return write_pyramid(tmp_path_factory.mktemp("slide") / "s.tiff", image, mpp=0.5)


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(net(), SETTINGS, tmp_path / "patches")


def encode(store: FeatureStore, path: Path, coords: Any = COORDS, side: int = 64) -> Path:
    with Slide.open(path) as slide:
        return store.encode(slide, TileBag(path, coords, slide.choose_resolution(level=1), side))


def test_feature_store_features_equal_network_output(store: FeatureStore, path: Path) -> None:
    features = read_features(encode(store, path))
    assert features.dtype == np.float32
    with Slide.open(path) as slide, torch.inference_mode():
        bag = torch.from_numpy(read_bag(slide, COORDS, slide.choose_resolution(level=1), 64))
        whole, direct = net().eval()(bag), net().eval().encode(bag)
    torch.testing.assert_close(torch.from_numpy(features), direct, rtol=1e-4, atol=1e-4)
    logits = net().eval()(torch.from_numpy(features))[0]
    torch.testing.assert_close(logits, whole[0], rtol=1e-4, atol=1e-4)


def test_feature_store_folder_cannot_be_made_raises(tmp_path: Path) -> None:
    (tmp_path / "patches").write_text("a file where the store should be")
    with pytest.raises(OSError, match="patches"):
        FeatureStore(net(), SETTINGS, tmp_path / "patches")


def test_feature_store_encodes_each_tile_once(store: FeatureStore, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = encode(store, path)
    monkeypatch.setattr("panda.inference.feature_store.encode_tiles", None)
    assert encode(store, path) == first
    again = FeatureStore(net(), SETTINGS, store.folder.parent)
    assert encode(again, path) == first, "a new process with the same weights finds them"


def test_feature_store_other_inputs_use_other_file(store: FeatureStore, path: Path) -> None:
    others = [
        encode(store, path),
        encode(store, path, COORDS[:4]),
        encode(store, path, side=32),
        encode(FeatureStore(net(seed=1), SETTINGS, store.folder.parent), path),
        encode(FeatureStore(net(mean=(0.5, 0.5, 0.5)), SETTINGS, store.folder.parent), path),
        encode(FeatureStore(net(), EngineSettings(device="cpu", precision="bf16"), store.folder.parent), path),
    ]
    assert len(set(others)) == len(others)


@pytest.mark.parametrize("how", ["byte", "cut", "empty", "other"])
def test_feature_store_damaged_file_warns_and_is_rewritten(
    store: FeatureStore, path: Path, how: str, panda_log: pytest.LogCaptureFixture
) -> None:
    file = encode(store, path)
    before = read_features(file)
    data = bytearray(file.read_bytes())
    if how == "other":
        whole = read_feature_file(file)
        write_feature_file(file, replace(whole, features=before[:2], coords=COORDS[:2]))
    else:
        data[len(data) // 2] ^= 255
        file.write_bytes({"byte": bytes(data), "cut": bytes(data[:-30]), "empty": b""}[how])
        with pytest.raises(ManifestError, match=r"features cannot be read .*make the file again"):
            read_features(file)
    assert encode(store, path) == file
    np.testing.assert_array_equal(read_features(file), before)
    assert "its tiles are encoded again" in panda_log.text
    assert str(file) in panda_log.text


def test_bag_set_of_features_is_padded_and_masked(store: FeatureStore, path: Path) -> None:
    record = SlideRecord("s", "radboud", 3, "4+3", path, None, "s")
    item = BagItem(record, COORDS, None, encode(store, path))
    longer = np.concatenate([COORDS, COORDS[:3]])
    bags = BagSet([item, BagItem(record, longer, None, encode(store, path, longer))], BagSettings(k=4000))
    bag, mask, label, name = bags[0]
    assert bag.shape == (8, store.encoder.feature_dim), "as long as the longest bag that there is"
    assert mask.tolist() == [True] * 5 + [False] * 3
    assert (int(label), name) == (3, "s")
    assert not bag[5:].any()
    assert BagSet([item], BagSettings(k=3))[0][0].shape[0] == 3
    plain = BagSet([BagItem(record, COORDS), BagItem(record, longer)], BagSettings(k=8, tile_size=64))[0][0]
    torch.manual_seed(0)
    network = net().eval()
    with torch.inference_mode():
        torch.testing.assert_close(network(bag, mask)[0], network(plain, mask)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("frozen", [True, False])
def test_grading_predictor_reads_stored_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frozen: bool) -> None:
    torch.manual_seed(0)
    network = MILNet("resnet10t", freeze_encoder=frozen, hidden=8)
    tiles = {"how": "tissue", "k": 3, "random_fraction": 1.0, "min_tissue": 0.25, "seed": 0}
    ready = grading_checkpoint(tmp_path / "grade.ckpt", network, tiles=tiles)
    (record, *_) = make_folder(tmp_path / "data", 2)
    encoded: list[int] = []

    def counted(encoder: TileEncoder, slide: Slide, bag: TileBag) -> Any:
        encoded.append(len(bag.coords))
        return encode_tiles(encoder, slide, bag)

    for module in ("feature_store", "grader"):
        monkeypatch.setattr(f"panda.inference.{module}.encode_tiles", counted)
    grader = GradingPredictor.from_checkpoint(ready, SETTINGS, tmp_path / "patches")
    with Slide.open(record.image_path) as slide:
        tissue = find_tissue(slide)
        alone = GradingPredictor.from_checkpoint(ready, SETTINGS).grade(slide, tissue, None)
        metadata = grader.metadata
        view = grader.resolution.resolve(slide)
        coords = select_tiles(slide, view, tissue, None, metadata.tiles, tile_size=64)
        if frozen:
            FeatureStore(network, SETTINGS, tmp_path / "patches").encode(slide, TileBag(slide.path, coords, view, 64))
        encoded.clear()
        found = grader.grade(slide, tissue, None)
        assert encoded == ([] if frozen else [3])
        monkeypatch.setattr(MILNet, "compute_contributions", None)
        unseen = grader.grade(slide, tissue, None, shown=0)
    assert unseen.record == found.record.model_copy(update={"tiles": (), "tile_side_px": None})
    assert len(unseen.shown) == 0
    assert found.record.probabilities == pytest.approx(alone.record.probabilities, abs=1e-6)


def test_feature_store_coordinates_are_of_the_whole_file(store: FeatureStore, path: Path) -> None:
    with Slide.open(path) as slide:
        slide.level_origins = ((256, 128), *slide.level_origins[1:])
        found = read_feature_file(store.encode(slide, TileBag(path, COORDS[:2], slide.choose_resolution(level=1), 64)))
        placed = found.locate_tiles(slide)
    assert found.coords is not None
    np.testing.assert_array_equal(found.coords, COORDS[:2] + np.array([256, 128]))
    assert placed is not None
    np.testing.assert_array_equal(placed[0], COORDS[:2])


def test_encode_tiles_any_count_keeps_order(path: Path) -> None:
    encoder = TileEncoder(net(), SETTINGS)
    with Slide.open(path) as slide:
        view = slide.choose_resolution(level=1)
        for count in (1, 2, 5):
            found = encode_tiles(encoder, slide, TileBag(path, COORDS[:count], view, 64))
            assert len(found) == count
            for at in range(count):
                one = encode_tiles(encoder, slide, TileBag(path, COORDS[at : at + 1], view, 64))
                np.testing.assert_allclose(found[at], one[0], rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def bags(tmp_path_factory: pytest.TempPathFactory) -> list[TileBag]:
    """Bags of three slides, of 5, 3 and 4 tiles."""
    made = []
    for number, count in enumerate((5, 3, 4)):
        image = np.random.default_rng(number).integers(0, 255, (768, 1024, 3)).astype(np.uint8)
        path = write_pyramid(tmp_path_factory.mktemp("bag") / f"s{number}.tiff", image, mpp=0.5)
        with Slide.open(path) as slide:
            made.append(TileBag(path, COORDS[:count], slide.choose_resolution(level=1), 64))
    return made


def encode_all(store: FeatureStore, bags: list[TileBag]) -> dict[TileBag, Path | Exception]:
    found: dict[TileBag, Path | Exception] = {}
    store.encode_all(bags, Slide.open, found.__setitem__)
    return found


def find_alone(bag: TileBag) -> Any:
    with Slide.open(bag.path) as slide:
        return encode_tiles(TileEncoder(net(), SETTINGS), slide, bag)


def test_feature_store_slides_share_batches(
    store: FeatureStore, bags: list[TileBag], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    run = store.encoder.run

    def count(images: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images))
        return run(images)

    monkeypatch.setattr(store.encoder, "run", count)
    with Slide.open(bags[1].path) as slide:
        stored = store.encode(slide, bags[1])
    sizes.clear()
    found = encode_all(store, bags)
    assert sizes == [2, 2, 2, 2, 1], "the fifth tile of the first slide is with the first one of the third"
    assert found[bags[1]] == stored
    for bag in bags:
        file = found[bag]
        assert isinstance(file, Path)
        np.testing.assert_allclose(read_features(file), find_alone(bag), rtol=1e-4, atol=1e-4)


def test_feature_store_damaged_slide_fails_alone(
    store: FeatureStore, bags: list[TileBag], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Slide.read

    def fail(slide: Slide, resolution: Any, corner: tuple[int, int], size: tuple[int, int]) -> Any:
        if slide.path == bags[0].path and corner == (512, 256):
            raise SlideError(f"{slide.path}: damaged")
        return read(slide, resolution, corner, size)

    monkeypatch.setattr(Slide, "read", fail)
    absent = TileBag(tmp_path / "absent.tiff", COORDS, bags[0].resolution, 64)
    found = encode_all(store, [bags[0], absent, *bags[1:]])
    assert isinstance(found[bags[0]], SlideError)
    assert isinstance(found[absent], SlideError)
    for bag in bags[1:]:
        file = found[bag]
        assert isinstance(file, Path)
        np.testing.assert_allclose(read_features(file), find_alone(bag), rtol=1e-4, atol=1e-4)
    assert len(list(store.folder.glob("*.h5"))) == 2


def test_feature_store_exhausted_memory_ends_work(
    store: FeatureStore, bags: list[TileBag], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("panda.inference.features.read_tiles", fail)
    before = threading.active_count()
    with pytest.raises(ExhaustedError):
        encode_all(store, bags)
    assert threading.active_count() == before


def test_feature_store_bag_of_another_run_waits_for_end(store: FeatureStore, bags: list[TileBag]) -> None:
    with Slide.open(bags[0].path) as slide:
        path = store._find_file(slide, bags[0])
    order: list[TileBag] = []
    with contextlib.ExitStack() as other:
        other.enter_context(hold_lock(path))

        def on_bag(bag: TileBag, found: Path | Exception) -> None:
            order.append(bag)
            assert isinstance(found, Path)
            if bag is bags[2]:
                other.close()

        store.encode_all(bags, Slide.open, on_bag)
    assert order == [bags[1], bags[2], bags[0]]
