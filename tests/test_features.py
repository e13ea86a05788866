"""The feature cache: its content, when it is renewed, and bags of features."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from panda.data.bags import read_bag, read_features
from panda.data.bagset import BagItem, BagSet, BagSettings
from panda.data.manifest import SlideRecord
from panda.errors import ManifestError
from panda.inference.compute import EngineSettings
from panda.inference.features import FeatureCache, encode_tiles
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
def cache(tmp_path: Path) -> FeatureCache:
    return FeatureCache(net(), SETTINGS, tmp_path / "patches")


def encode(cache: FeatureCache, path: Path, coords: Any = COORDS, side: int = 64) -> Path:
    with Slide.open(path) as slide:
        return cache.encode(slide, coords, slide.choose_resolution(level=1), side, None)


def test_feature_cache_features_equal_network_output(cache: FeatureCache, path: Path) -> None:
    features = read_features(encode(cache, path))
    assert features.dtype == np.float32
    with Slide.open(path) as slide, torch.inference_mode():
        bag = torch.from_numpy(read_bag(slide, COORDS, slide.choose_resolution(level=1), 64))
        whole, direct = net().eval()(bag), net().eval().encode(bag)
    torch.testing.assert_close(torch.from_numpy(features), direct, rtol=1e-4, atol=1e-4)
    logits = net().eval()(torch.from_numpy(features))[0]
    torch.testing.assert_close(logits, whole[0], rtol=1e-4, atol=1e-4)


def test_feature_cache_folder_cannot_be_made_raises(tmp_path: Path) -> None:
    (tmp_path / "patches").write_text("a file where the store should be")
    with pytest.raises(OSError, match="patches"):
        FeatureCache(net(), SETTINGS, tmp_path / "patches")


def test_feature_cache_encodes_each_tile_once(cache: FeatureCache, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = encode(cache, path)
    monkeypatch.setattr("panda.inference.features.encode_tiles", None)
    assert encode(cache, path) == first
    again = FeatureCache(net(), SETTINGS, cache.folder.parent)
    assert encode(again, path) == first, "a new process with the same weights finds them"


def test_feature_cache_other_inputs_use_other_file(cache: FeatureCache, path: Path) -> None:
    others = [
        encode(cache, path),
        encode(cache, path, COORDS[:4]),
        encode(cache, path, side=32),
        encode(FeatureCache(net(seed=1), SETTINGS, cache.folder.parent), path),
        encode(FeatureCache(net(mean=(0.5, 0.5, 0.5)), SETTINGS, cache.folder.parent), path),
        encode(FeatureCache(net(), EngineSettings(device="cpu", precision="bf16"), cache.folder.parent), path),
    ]
    assert len(set(others)) == len(others)


@pytest.mark.parametrize("how", ["byte", "cut", "empty", "other"])
def test_feature_cache_damaged_file_warns_and_is_rewritten(
    cache: FeatureCache, path: Path, how: str, panda_log: pytest.LogCaptureFixture
) -> None:
    file = encode(cache, path)
    before = read_features(file)
    data = bytearray(file.read_bytes())
    if how == "other":
        np.savez(file, features=before[:2])
    else:
        data[len(data) // 2] ^= 255
        file.write_bytes({"byte": bytes(data), "cut": bytes(data[:-30]), "empty": b""}[how])
        with pytest.raises(ManifestError, match=r"features cannot be read .*run again, which makes it again"):
            read_features(file)
    assert encode(cache, path) == file
    np.testing.assert_array_equal(read_features(file), before)
    assert "its tiles are encoded again" in panda_log.text
    assert "run again" not in panda_log.text
    assert str(file) in panda_log.text


def test_bag_set_of_features_is_padded_and_masked(cache: FeatureCache, path: Path) -> None:
    record = SlideRecord("s", "radboud", 3, "4+3", path, None, "s")
    item = BagItem(record, COORDS, None, encode(cache, path))
    longer = np.concatenate([COORDS, COORDS[:3]])
    bags = BagSet([item, BagItem(record, longer, None, encode(cache, path, longer))], BagSettings(k=4000))
    bag, mask, label, name = bags[0]
    assert bag.shape == (8, cache.network.feature_dim), "as long as the longest bag that there is"
    assert mask.tolist() == [True] * 5 + [False] * 3
    assert (label, name) == (3, "s")
    assert not bag[5:].any()
    assert BagSet([item], BagSettings(k=3))[0][0].shape[0] == 3
    plain = BagSet([BagItem(record, COORDS), BagItem(record, longer)], BagSettings(k=8, tile_size=64))[0][0]
    torch.manual_seed(0)
    network = net().eval()
    with torch.inference_mode():
        torch.testing.assert_close(network(bag, mask)[0], network(plain, mask)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("frozen", [True, False])
def test_grading_predictor_reads_cached_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frozen: bool) -> None:
    torch.manual_seed(0)
    network = MILNet("resnet10t", freeze_encoder=frozen, hidden=8)
    tiles = {"how": "tissue", "k": 3, "random_fraction": 1.0, "min_tissue": 0.25, "seed": 0}
    ready = grading_checkpoint(tmp_path / "grade.ckpt", network, tiles=tiles)
    (record, *_) = make_folder(tmp_path / "data", 2)
    encoded: list[int] = []

    def counted(network: MILNet, slide: Slide, coords: Any, *args: Any, **options: Any) -> Any:
        encoded.append(len(coords))
        return encode_tiles(network, slide, coords, *args, **options)

    for module in ("features", "grader"):
        monkeypatch.setattr(f"panda.inference.{module}.encode_tiles", counted)
    grader = GradingPredictor.from_checkpoint(ready, SETTINGS, tmp_path / "patches")
    with Slide.open(record.image_path) as slide:
        tissue = find_tissue(slide)
        alone = GradingPredictor.from_checkpoint(ready, SETTINGS).grade(slide, tissue, None)
        metadata = grader.metadata
        view = metadata.resolution.resolve(slide)
        coords = select_tiles(slide, view, tissue, None, metadata.tiles, tile_size=64)
        if frozen:
            FeatureCache(network, SETTINGS, tmp_path / "patches").encode(slide, coords, view, 64, None)
        encoded.clear()
        found = grader.grade(slide, tissue, None)
    assert encoded == ([] if frozen else [3])
    assert found.record.probabilities == pytest.approx(alone.record.probabilities, abs=1e-6)


def test_encode_tiles_any_count_keeps_order(path: Path) -> None:
    with Slide.open(path) as slide:
        for count in (1, 2, 5):
            found = encode_tiles(
                net().eval(),
                slide,
                COORDS[:count],
                slide.choose_resolution(level=1),
                tile_size=64,
                stain=None,
                settings=SETTINGS,
            )
            assert len(found) == count
            one = encode_tiles(
                net().eval(), slide, COORDS[count - 1 : count], slide.choose_resolution(level=1),
                tile_size=64, stain=None, settings=SETTINGS,
            )  # fmt: skip
            np.testing.assert_allclose(found[-1], one[0], rtol=1e-3, atol=1e-3)
