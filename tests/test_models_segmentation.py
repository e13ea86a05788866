"""One contract for all segmentation networks."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from omegaconf import OmegaConf
from torch import Tensor

from panda.errors import ConfigError
from panda.models import segmentation
from panda.models.encoders import IMAGENET_MEAN, IMAGENET_STD
from panda.models.segmentation import ARCHITECTURES, Segmenter

CONF = Path(__file__).resolve().parents[1] / "conf"
OTHER_ENCODER = {"dpt": "tu-vit_tiny_patch16_224"}  # takes plain transformers only
OTHER_SIZE = {"dpt": 224, "pan": 128}  # PAN halves three times more after stride 16
# The decoders as narrow as they go, for speed.
NARROW: dict[str, dict[str, Any]] = {
    "deeplabv3": {"decoder_channels": 16},
    "deeplabv3plus": {"decoder_channels": 16},
    "dpt": {"decoder_fusion_channels": 16, "decoder_intermediate_channels": (16, 16, 16, 16)},
    "fpn": {"decoder_pyramid_channels": 32, "decoder_segmentation_channels": 32},
    "manet": {"decoder_channels": (32, 16, 16, 8, 8)},
    "pspnet": {"psp_out_channels": 32},
    "segformer": {"decoder_segmentation_channels": 32},
    "unet": {"decoder_channels": (32, 16, 16, 8, 8)},
    "unetplusplus": {"decoder_channels": (32, 16, 16, 8, 8)},
    "upernet": {"decoder_channels": 32},
}


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_segmenter_every_architecture_meets_contract(architecture: str) -> None:
    torch.manual_seed(0)
    size = OTHER_SIZE.get(architecture, 64)
    encoder = OTHER_ENCODER.get(architecture, "resnet18")
    network = Segmenter(architecture, encoder, **NARROW.get(architecture, {}))
    network.check_patch_size(size)
    assert network.training
    image = torch.rand(2, 3, size, size)
    logits = network(image)
    assert logits.shape == (2, 1, size, size)
    logits.square().mean().backward()
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    assert gradients
    assert all(bool(torch.isfinite(g).all()) for g in gradients)

    plain = json.loads(json.dumps(network.options))
    assert plain == network.options
    torch.manual_seed(1)
    twin = Segmenter(**plain)
    assert list(twin.state_dict()) == list(network.state_dict())
    twin.load_state_dict(network.state_dict())
    network.eval()
    twin.eval()
    with torch.no_grad():
        torch.testing.assert_close(twin(image[:1]), network(image[:1]))


def test_segmenter_channels_of_classes_are_restored() -> None:
    network = Segmenter("Unet", "resnet18", decoder_channels=[8, 8, 8, 8, 8], channels=4).eval()
    with torch.no_grad():
        logits = network(torch.rand(2, 3, 32, 32))
        assert logits.shape == (2, 4, 32, 32)
        assert Segmenter(**network.options)(torch.rand(2, 3, 32, 32)).shape == (2, 4, 32, 32)


@pytest.mark.parametrize(
    "option", sorted({path.stem for path in (CONF / "model").glob("[!m]*.yaml")} - {"fm_decoder", "torchmil"})
)
@pytest.mark.parametrize("encoder", ["resnet18", "efficientnet-b0", "mit_b0", "tu-convnext_atto"])
def test_segmenter_every_model_takes_encoders_of_all_families(option: str, encoder: str) -> None:
    if (option, encoder) == ("unetplusplus", "mit_b0"):
        pytest.skip("UNet++ takes convolutional encoders only: refused by name, see below")
    plain: Any = OmegaConf.to_container(OmegaConf.load(CONF / "model" / f"{option}.yaml"))
    network = Segmenter(**{key: value for key, value in plain.items() if key != "_target_"} | {"encoder_name": encoder})
    network.check_patch_size(128)
    with torch.no_grad():
        assert network.eval()(torch.rand(1, 3, 128, 128)).shape == (1, 1, 128, 128)


def test_segmenter_normalizes_inside() -> None:
    torch.manual_seed(0)
    ours = Segmenter("Unet", "resnet18").eval()
    image = torch.rand(1, 3, 32, 32)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.no_grad():
        torch.testing.assert_close(ours(image), ours.network((image - mean) / std))
    assert not any("mean" in key and "normalise" in key for key in ours.state_dict())
    with pytest.raises(TypeError, match=r"uint8.*\[0, 1\]"):
        ours(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


def test_segmenter_options_reach_decoder_and_metadata() -> None:
    network = Segmenter("unetplusplus", "resnet18", encoder_depth=3, decoder_channels=(32, 16, 8))
    assert network.options["decoder_channels"] == [32, 16, 8]
    assert network.options["architecture"] == "UnetPlusPlus"
    assert network.options["encoder_weights"] is None
    assert network.output_stride == 8
    assert Segmenter(**network.options).state_dict().keys() == network.state_dict().keys()


@pytest.mark.parametrize(
    ("architecture", "options", "stride", "good", "bad"),
    [
        ("Unet", {}, 1, 65, None),
        ("FPN", {}, 32, 96, 80),
        ("DeepLabV3", {}, 8, 72, 100),
        ("DeepLabV3", {"encoder_output_stride": 16}, 16, 80, 72),
        ("DeepLabV3Plus", {}, 16, 80, 72),
        ("PAN", {}, 16, 128, 64),
    ],
)
def test_segmenter_patch_size_must_fit_stride(
    architecture: str, options: dict[str, Any], stride: int, good: int, bad: int | None
) -> None:
    network = Segmenter(architecture, "resnet18", **options)
    assert network.output_stride == stride
    network.check_patch_size(good)
    with torch.no_grad():
        assert network.eval()(torch.rand(1, 3, good, good)).shape[-1] == good
    if bad is None:
        return
    with pytest.raises(ConfigError, match=rf"patch_size={bad}: .*multiple of {stride}.*nearest") as caught:
        network.check_patch_size(bad)
    named = str(caught.value).split("sizes: ")[1].split(".")[0].split(", ")
    assert len(named) == 2
    for size in named:
        network.check_patch_size(int(size))
    with pytest.raises(RuntimeError), torch.no_grad():
        network(torch.rand(1, 3, bad, bad))


def test_check_patch_size_of_0_or_less_raises() -> None:
    network = Segmenter("Unet", "resnet18")
    for size in (0, -8):
        with pytest.raises(ConfigError, match=f"patch_size={size}: .*above 0"):
            network.check_patch_size(size)


def test_check_patch_size_keeps_training_modes() -> None:
    network = Segmenter("FPN", "resnet18")
    network.network.encoder.eval()  # type: ignore[union-attr]
    before = [part.training for part in network.modules()]
    network.check_patch_size(64)
    assert [part.training for part in network.modules()] == before


def test_segmenter_fixed_size_encoder_names_its_size() -> None:
    network = Segmenter("DPT", "tu-vit_tiny_patch16_224")
    with pytest.raises(ConfigError, match=r"patch_size=256: .*sizes: 224"):
        network.check_patch_size(256)


def test_segmenter_options_that_change_output_size_raise() -> None:
    network = Segmenter("FPN", "resnet18", upsampling=2)
    with pytest.raises(ConfigError, match=r"patch_size=64: .*upsampling"):
        network.check_patch_size(64)
    with pytest.raises(ValueError, match="FPN gives"):
        network(torch.rand(2, 3, 64, 64))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"architecture": "Unett"}, ["architecture=Unett", "Unet"]),
        ({"architecture": "zzzz"}, ["architecture=zzzz", "DeepLabV3Plus", "UPerNet"]),
        ({"encoder_name": "resnet_34"}, ["encoder_name=resnet_34", "resnet34"]),
        ({"encoder_name": "tu-convnext_atoo"}, ["encoder_name=tu-convnext_atoo", "tu-convnext_atto"]),
        ({"decoder_chanels": [1]}, ["decoder_chanels=[1]", "Unet", "decoder_channels"]),
        ({"classes": 3}, ["classes=3"]),
        ({"architecture": "FPN", "decoder_attention_type": "scse"}, ["decoder_attention_type=scse", "FPN"]),
        ({"architecture": "DeepLabV3", "encoder_output_stride": 7}, ["DeepLabV3", "output stride"]),
        ({"decoder_channels": [16, 8]}, ["decoder_channels", "cannot be built"]),
        ({"architecture": "DeepLabV3", "encoder_name": "densenet121"}, ["densenet121", "cannot be built"]),
        ({"architecture": "UnetPlusPlus", "encoder_name": "mit_b0"}, ["UnetPlusPlus", "mit_b0", "another encoder"]),
        ({"architecture": "DeepLabV3", "encoder_name": "tu-swin_tiny_patch4_window7_224"}, ["swin", "another encoder"]),
        ({"decoder_use_norm": object()}, ["decoder_use_norm", "object"]),
        ({"mean": [0.5]}, ["mean=[0.5]", "three"]),
        ({"std": [1, 0, 1]}, ["std=[1, 0, 1]", "above 0"]),
        ({"encoder_weights": "imagnet"}, ["encoder_weights=imagnet", "imagenet"]),
        ({"encoder_weights": "nowhere/weights.pt"}, ["encoder_weights=nowhere/weights.pt", "no such file"]),
    ],
)
def test_segmenter_faults_name_key_and_remedy(arguments: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        Segmenter(**{"encoder_name": "resnet18", **arguments})
    for word in words:
        assert word in str(caught.value)


def test_segmenter_all_faults_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        Segmenter("Unet", "resnet_18", decoder_chanels=[1], depth=3)
    assert len(caught.value.faults) == 3


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_segmenter_local_weights(tmp_path: Path, suffix: str) -> None:
    torch.manual_seed(0)
    source = Segmenter("Unet", "resnet18")
    state: dict[str, Tensor] = source.network.encoder.state_dict()  # type: ignore[union-attr]
    path = tmp_path / f"encoder{suffix}"
    _save({**state, "fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}, path)
    loaded = Segmenter("FPN", "resnet18", encoder_weights=str(path))
    for key, value in loaded.network.encoder.state_dict().items():  # type: ignore[union-attr]
        torch.testing.assert_close(value, state[key])
    assert loaded.options["encoder_weights"] is None


def test_segmenter_weights_that_do_not_fit_raise(tmp_path: Path) -> None:
    path = tmp_path / "encoder.pt"
    state: dict[str, Tensor] = Segmenter("Unet", "resnet18").network.encoder.state_dict()  # type: ignore[union-attr]
    state.pop("conv1.weight")
    state["stray"] = torch.zeros(1)
    state["bn1.bias"] = torch.zeros(5)
    _save(state, path)
    with pytest.raises(ConfigError) as caught:
        Segmenter("Unet", "resnet18", encoder_weights=str(path))
    for words in (
        str(path),
        "1 missing in the file: conv1.weight",
        "1 not in the network: stray",
        "bn1.bias (5,) for (64,)",
    ):
        assert words in str(caught.value)


@pytest.mark.parametrize("content", ["text", "list", "object"])
def test_segmenter_invalid_weights_file_raises(tmp_path: Path, content: str) -> None:
    path = tmp_path / "encoder.pt"
    if content == "text":
        path.write_text("not weights")
    else:
        torch.save([1, 2] if content == "list" else {"a": Path("x")}, path)
    with pytest.raises(ConfigError, match=r"encoder\.pt"):
        Segmenter("Unet", "resnet18", encoder_weights=str(path))


def test_segmenter_failed_download_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: Any, **kwargs: Any) -> None:
        raise OSError("the network is away")

    monkeypatch.setattr("segmentation_models_pytorch.encoders.hf_hub_download", offline)
    with pytest.raises(ConfigError) as caught:
        Segmenter("Unet", "resnet18", encoder_weights="imagenet")
    for words in ("encoder_weights=imagenet", "resnet18", "network is away", "encoder_weights=null", "local"):
        assert words in str(caught.value)


def test_segmenter_named_weights_are_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.manual_seed(0)
    state: dict[str, Tensor] = Segmenter("Unet", "resnet18").network.encoder.state_dict()  # type: ignore[union-attr]
    path = tmp_path / "model.safetensors"
    _save(state, path)
    monkeypatch.setattr("segmentation_models_pytorch.encoders.hf_hub_download", lambda *a, **k: str(path))
    loaded = Segmenter("DeepLabV3", "resnet18", encoder_weights="imagenet")
    for key, value in loaded.network.encoder.state_dict().items():  # type: ignore[union-attr]
        torch.testing.assert_close(value, state[key])
    assert "imagenet" in segmentation.list_weights("resnet18")
    assert segmentation.list_weights("tu-resnet18") == ["imagenet"]


def _save(state: dict[str, Tensor], path: Path) -> None:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file({key: value.contiguous() for key, value in state.items()}, path)
    else:
        torch.save(state, path)
