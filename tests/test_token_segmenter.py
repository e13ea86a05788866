"""Segmentation over a vision transformer: shapes, the frozen part, sizes and scales, checkpoints."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from panda.app.encoder_choice import find_encoder
from panda.errors import ConfigError
from panda.inference.compute import EngineSettings
from panda.inference.predictor import SegmentationPredictor
from panda.models.token_segmenter import TokenSegmenter
from panda.wsi.classes import find_classes
from tests.checkpoints import segmentation_checkpoint
from tests.test_config_check import compose_settings, find_faults

SMALL: dict[str, Any] = {"depth": 4, "embed_dim": 48, "num_heads": 2}
VITS: dict[str, Any] = {
    "plain": {"architecture": "vit_small_patch16_224", "options": SMALL | {"img_size": 64}},
    "registers": {"architecture": "vit_small_patch14_reg4_dinov2", "options": SMALL | {"img_size": 70}},
}
SIDES = {"plain": 16, "registers": 14}


def net(kind: str = "plain", **options: Any) -> TokenSegmenter:
    torch.manual_seed(0)
    return TokenSegmenter(**{"encoder": VITS[kind], "decoder_channels": 16, **options})


@pytest.mark.parametrize("kind", VITS)
@pytest.mark.parametrize("decoder", ["conv", "linear"])
def test_token_segmenter_scores_each_pixel_at_any_size(kind: str, decoder: Any) -> None:
    network = net(kind, decoder=decoder, channels=4).eval()
    side = SIDES[kind]
    assert network.output_stride == side
    for size in (4 * side, 7 * side):
        network.check_patch_size(size)
        with torch.no_grad():
            assert network(torch.rand(2, 3, size, size)).shape == (2, 4, size, size)
    with pytest.raises(ConfigError) as caught:
        network.check_patch_size(4 * side + 1)
    for words in (
        f"patch_size={4 * side + 1}",
        f"a multiple of {side} is needed",
        f"nearest accepted sizes: {4 * side}",
    ):
        assert words in str(caught.value)
    network.check_batch_size(1)


@pytest.mark.parametrize("kind", VITS)
@torch.no_grad()
def test_token_segmenter_linear_matches_tokens_written_out(kind: str) -> None:
    network, side = net(kind, decoder="linear").eval(), SIDES[kind]
    image = torch.rand(1, 3, 3 * side, 5 * side)
    tokens: Tensor = network.encoder.forward_features(network.normalize(image))  # type: ignore[operator]
    tokens = tokens[:, 1 if kind == "plain" else 5 :].reshape(3, 5, -1)
    weights = network.network.decoder.state_dict()  # type: ignore[union-attr]
    scores = (tokens @ weights["weight"][0, :, 0, 0] + weights["bias"])[None, None]
    torch.testing.assert_close(network(image), functional.interpolate(scores, image.shape[-2:], mode="bilinear"))


def test_token_segmenter_frozen_encoder_takes_no_gradient() -> None:
    network = net().train()
    assert not network.encoder.training
    assert network.network.get_submodule("decoder").training
    network(torch.rand(2, 3, 64, 64)).mean().backward()
    assert all(parameter.grad is None for parameter in network.encoder.parameters())
    assert all(parameter.grad is not None for parameter in network.network.get_submodule("decoder").parameters())
    tokens = network.encoder(torch.rand(1, 3, 64, 64))
    assert not tokens.requires_grad


def test_token_segmenter_trains_last_blocks() -> None:
    network = net(freeze_encoder=False, train_blocks=1)
    learning = {name for name, parameter in network.encoder.named_parameters() if parameter.requires_grad}
    assert {name.partition(".")[0] + name.split(".")[1] for name in learning} == {"blocks3", "normweight", "normbias"}
    assert all(parameter.requires_grad for parameter in net(freeze_encoder=False).parameters())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"encoder": "resnet10t"}, "encoder=resnet10t: it is no vision transformer"),
        ({"encoder": "swin_tiny_patch4_window7_224"}, "encoder=swin_tiny_patch4_window7_224: it is no vision"),
        ({"encoder": VITS["plain"] | {"pooling": "attention", "dim": 8}}, "with pooling attention has no tokens"),
        ({"encoder": "vit_tinny"}, "timm has no such model"),
        ({"decoder": "dpt"}, "decoder=dpt: there is no such decoder; give conv or linear"),
        ({"decoder_channels": 0}, "decoder_channels=0: must be at least 4"),
        ({"train_blocks": 1}, "train_blocks=1 needs freeze_encoder=false"),
        ({"train_blocks": 5, "freeze_encoder": False}, "train_blocks=5: the encoder has 4 blocks; give 1 to 4"),
    ],
)
def test_token_segmenter_faults_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        net(**options)
    assert words in str(caught.value)


@pytest.mark.parametrize("classes", ["binary", "gleason"])
def test_token_segmenter_checkpoint_maps_as_before(tmp_path: Path, classes: str) -> None:
    found = find_classes(classes)
    network = net(channels=found.channels).eval()
    path = segmentation_checkpoint(tmp_path / "a.ckpt", found, segmenter=network)
    predictor = SegmentationPredictor.from_checkpoint(path, EngineSettings(device="cpu"))
    assert isinstance(predictor.network, TokenSegmenter)
    assert predictor.network.options == network.options
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(predictor.network(image), network(image))


def test_token_segmenter_card_normalizes() -> None:
    card = find_encoder("lunit_s16")
    assert isinstance(card, dict)
    card["options"] = {"depth": 1}
    network = TokenSegmenter(card)
    assert network.options["mean"] == [0.70322989, 0.53606487, 0.66096631]
    assert TokenSegmenter(card, mean=(0.5, 0.5, 0.5)).options["mean"] == [0.5, 0.5, 0.5]
    assert TokenSegmenter(**network.options).options == network.options


FM = ("model=fm_decoder", "model.encoder=kaiko_s16")


def test_segmentation_scale_of_encoder_is_asked_for() -> None:
    faults = find_faults(*FM, "data.level=1")
    assert "data.level=1: model.encoder=kaiko_s16 was trained at 0.25 or 0.5 or 1 or 2 µm/px" in faults
    assert "give data.level=null data.mpp=0.5, to which the slides are resampled" in faults
    faults = find_faults(*FM, "data.level=null", "data.mpp=1.3", "data.patch_size=200")
    assert "data.mpp=1.3: model.encoder=kaiko_s16 was trained at" in faults
    assert "give data.level=null data.mpp=1, to which" in faults
    assert "data.patch_size=200: the decoder conv over vit_small_patch16_224 does not accept it" in faults


def test_segmentation_with_encoder_at_its_scale_passes() -> None:
    config = compose_settings(*FM, "data.level=null", "data.mpp=1.05", "data.patch_size=128", "task.classes=gleason")
    assert config.network.options["channels"] == 4
    assert config.network.card.hub == "1aurent/vit_small_patch16_224.kaiko_ai_towards_large_pathology_fms"
    assert not config.downloads


def test_segmentation_wrong_encoder_hides_no_other_fault() -> None:
    faults = find_faults("model=fm_decoder", "model.encoder=virchow3", "model.decoder=dpt")
    assert "model.encoder=virchow3: timm has no such model" in faults
    assert "model.decoder=dpt" in faults
    faults = find_faults(*FM, "model.encoder_weights=imagenet", "data.level=null", "data.mpp=0.5")
    assert "model.encoder_weights=imagenet: the weights of this encoder are those of 1aurent" in faults
    faults = find_faults(*FM, "model.encoder_weights=none.bin", "data.level=null", "data.mpp=0.5")
    assert "model.encoder_weights=none.bin: no such file" in faults
