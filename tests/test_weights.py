"""Files of weights as other libraries write them, the local cache of the hub, and a hub out of reach."""

import time
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import safetensors.torch
import timm
import torch
import torchvision.models
from huggingface_hub import constants
from torch import Tensor, nn

from panda.errors import ConfigError, OptionError
from panda.models import weights
from panda.models.segmentation import Segmenter, find_normalization
from panda.models.weights import find_published, load_weights, offline_if_unreachable


def make_source() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def make_target() -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def assert_same(found: nn.Module, expected: dict[str, Tensor]) -> None:
    assert found.state_dict().keys() == expected.keys()
    for name, value in found.state_dict().items():
        torch.testing.assert_close(value, expected[name])


@pytest.mark.parametrize("prefix", ["", "model.", "encoder.", "backbone.", "module.", "module.model.encoder."])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_load_weights_any_prefix_fits(tmp_path: Path, prefix: str, name: str) -> None:
    state = make_source().state_dict()
    stored = {prefix + key: value for key, value in state.items()} | {f"{prefix}head.weight": torch.zeros(2, 4)}
    if name.endswith("bin"):
        torch.save(stored, tmp_path / name)
    else:
        safetensors.torch.save_file(stored, tmp_path / name)
    target = make_target()
    note = load_weights(target, tmp_path / name, ignored=["head"])
    assert_same(target, dict(state))
    assert note == f"The encoder took 7 weights from {tmp_path / name}; not used of the file: head."


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_load_weights_of_training_checkpoint(tmp_path: Path, key: str) -> None:
    state = make_source().state_dict()
    torch.save({key: state, "epoch": 3}, tmp_path / "w.pth")
    target = make_target()
    load_weights(target, tmp_path / "w.pth")
    assert_same(target, dict(state))


def test_load_weights_of_two_networks_raises(tmp_path: Path) -> None:
    state = make_source().state_dict()
    both = {f"{prefix}.{key}": value for prefix in ("model", "backbone") for key, value in state.items()}
    torch.save(both, tmp_path / "w.pth")
    with pytest.raises(OptionError, match=r"has 0.weight twice, also as backbone.0.weight; give a file of one"):
        load_weights(make_target(), tmp_path / "w.pth")


def test_load_weights_layer_scale_names_option(tmp_path: Path) -> None:
    whole = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=1, init_values=1e-5, reg_tokens=2)
    torch.save(whole.state_dict(), tmp_path / "w.bin")
    plain = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=1)
    with pytest.raises(OptionError) as caught:
        load_weights(plain, tmp_path / "w.bin")
    for words in ("not in the network: reg_token, blocks.0.ls1.gamma", "layer scale: init_values", "reg_tokens"):
        assert words in str(caught.value)


UNUSED = {
    "resnet18": "fc",
    "convnext_atto": "head",
    "tf_efficientnet_lite0": "conv_head, bn2, classifier",
    "densenet121": "classifier",
    "hrnet_w18_small": "downsamp_modules, final_layer, classifier",
    "efficientvit_b0": "head",
}
"""Encoders that name their stages in different ways, and what a segmentation does not need of them."""


@pytest.mark.parametrize("name", UNUSED)
def test_segmenter_takes_timm_file(tmp_path: Path, name: str) -> None:
    torch.manual_seed(3)
    source = timm.create_model(name)
    torch.save(source.state_dict(), tmp_path / "timm.bin")
    network = Segmenter("unet", f"tu-{name}", str(tmp_path / "timm.bin"), decoder_channels=[8, 8, 8, 8, 8])
    expected = {key.replace(".", "_"): value for key, value in source.state_dict().items()}
    loaded = network.encoder.state_dict()
    assert len(loaded) > 0.9 * len(expected)
    for key, value in loaded.items():
        assert torch.equal(value, expected[key.removeprefix("model.").replace(".", "_")]), key
    assert network.notes == [
        f"The encoder took {len(loaded)} weights from {tmp_path / 'timm.bin'}; not used of the file: {UNUSED[name]}."
    ]
    config: Any = timm.get_pretrained_cfg(name)
    assert network.options["mean"] == list(config.mean)
    assert network.normalize.std.flatten().tolist() == pytest.approx(list(config.std))


@pytest.mark.parametrize(
    "name", ["resnet18", "tu-resnet18", "densenet121", "tu-densenet121", "vgg11_bn", "mobilenet_v2"]
)
def test_segmenter_takes_torchvision_file(tmp_path: Path, name: str) -> None:
    torch.manual_seed(3)
    source = getattr(torchvision.models, name.removeprefix("tu-"))(weights=None)
    torch.save(source.state_dict(), tmp_path / "torchvision.pth")
    network = Segmenter("unet", name, str(tmp_path / "torchvision.pth"), decoder_channels=[8, 8, 8, 8, 8])
    needed = [value for key, value in source.state_dict().items() if not key.startswith(("fc", "classifier"))]
    own, theirs = (
        sum(float(value.double().sum()) for value in part) for part in (network.encoder.state_dict().values(), needed)
    )
    assert own == pytest.approx(theirs)


@pytest.mark.parametrize(
    ("name", "given", "mean"),
    [
        ("resnet34", "imagenet", 0.485),
        ("xception", "imagenet", 0.5),
        ("inceptionv4", "imagenet", 0.5),
        ("inceptionresnetv2", "imagenet", 0.5),
        ("dpn68", "imagenet", 124 / 255),
        ("timm-tf_efficientnet_lite0", "imagenet", 0.5),
        ("tu-tf_efficientnet_lite0", "imagenet", 0.5),
        ("efficientnet-b0", "advprop", 0.5),
        ("mit_b0", "imagenet", 0.485),
        ("tu-tf_efficientnet_lite0", None, 0.485),
    ],
)
def test_find_normalization_is_that_of_the_encoder(name: str, given: str | None, mean: float) -> None:
    assert find_normalization(name, given)[0][0] == pytest.approx(mean)


def test_segmenter_given_mean_wins_and_rebuilds(tmp_path: Path) -> None:
    torch.save(timm.create_model("tf_efficientnet_lite0").state_dict(), tmp_path / "w.bin")
    options: dict[str, Any] = {"encoder_weights": str(tmp_path / "w.bin"), "mean": [0.7, 0.6, 0.5]}
    network = Segmenter("unet", "tu-tf_efficientnet_lite0", **options)
    assert (network.options["mean"], network.options["std"]) == ([0.7, 0.6, 0.5], [0.5] * 3)
    assert Segmenter(**network.options).options == network.options


def unreachable(*args: object, **kwargs: object) -> None:
    time.sleep(30)


def test_download_from_silent_hub_ends_in_three_seconds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A hub that never answers; without the check it is asked six times."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(weights, "_PATIENCE_S", 0.2)
    monkeypatch.setattr("huggingface_hub.get_session", lambda: type("Silent", (), {"head": staticmethod(unreachable)}))
    start = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        find_published("MahmoodLab/UNI2-h", None, gated=True, download=True)
    assert time.monotonic() - start < 3
    for words in ("pytorch_model.bin", "https://huggingface.co/MahmoodLab/UNI2-h", "hf auth login", "PATH"):
        assert words in str(caught.value)
    assert constants.HF_HUB_OFFLINE is False


def test_find_published_takes_cached_file_without_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The folders of the hub's own cache: a commit, and the name of a branch that refers to it."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.get_session", unreachable)
    commit, folder = "a" * 40, tmp_path / "models--OWNER--NAME"
    (folder / "snapshots" / commit).mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    file = folder / "snapshots" / commit / "model.safetensors"
    file.write_bytes(b"x")
    for revision in (None, commit):
        assert find_published("OWNER/NAME", revision, gated=False, download=True) == file
    with pytest.raises(ConfigError) as caught:
        find_published("OWNER/NAME", "b" * 40, gated=False, download=False)
    for words in ("encoder_weights=cached", "at revision bbb", f"but those of another at {file}", "=download"):
        assert words in str(caught.value)


def test_offline_mode_ends_with_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_reach_hub", lambda: False)
    with offline_if_unreachable():
        assert huggingface_hub.is_offline_mode()
    assert not huggingface_hub.is_offline_mode()
