"""Training of the last blocks of an encoder: what learns, what stays, and the memory it takes."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from panda.errors import ConfigError
from panda.models.mil import MILNet
from panda.models.trained_blocks import train_last_blocks
from panda.tasks.optim import Optim
from tests.test_config_check import find_faults

VIT = {"architecture": "vit_tiny_patch16_224", "pooling": "cls", "options": {"img_size": 32, "depth": 6}}


def net(**options: Any) -> MILNet:
    torch.manual_seed(0)
    return MILNet(**{"encoder": VIT, "hidden": 16, "dropout": 0, **options}).train()


def list_learning(module: nn.Module) -> set[str]:
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


def measure_kept(model: MILNet, tiles: int) -> int:
    """Return the bytes that a bag keeps for the backward pass, without those of the weights."""
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = max(kept.get(tensor.data_ptr(), 0), tensor.untyped_storage().nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        out = model(torch.rand(tiles, 3, 32, 32))
    del out
    return sum(kept.values())


def test_trained_blocks_are_the_last_ones() -> None:
    learning = list_learning(net(train_blocks=2).encoder)
    assert {name.split(".")[1] for name in learning if name.startswith("blocks")} == {"4", "5"}
    assert {name for name in learning if not name.startswith("blocks")} == {"norm.weight", "norm.bias"}
    assert list_learning(net(train_blocks=6).encoder) == list_learning(net().encoder) - {
        "cls_token",
        "pos_embed",
        "patch_embed.proj.weight",
        "patch_embed.proj.bias",
    }


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("resnet10t", {"layer4"}),
        ("convnext_femto", {"stages.3", "head.norm"}),
        ("efficientnet_b0", {"blocks.6", "conv_head", "bn2"}),
        ("swin_tiny_patch4_window7_224", {"layers.3", "norm"}),
    ],
)
def test_trained_blocks_of_other_networks_are_stages(name: str, parts: set[str]) -> None:
    with torch.device("meta"):
        encoder = timm.create_model(name, num_classes=0) if name[0] != "s" else None
    encoder = encoder or timm.create_model(name, num_classes=0)
    train_last_blocks(encoder, 1)
    learning = list_learning(encoder)
    assert all(any(learnt.startswith(f"{part}.") for learnt in learning) for part in parts)
    assert all(any(learnt.startswith(f"{part}.") for part in parts) for learnt in learning)


def test_trained_blocks_beyond_those_there_are_refused() -> None:
    for blocks in (0, 7, -1):
        with pytest.raises(ConfigError, match=f"train_blocks={blocks}: the encoder has 6 blocks; give 1 to 6, null"):
            net(train_blocks=blocks)
    with pytest.raises(ConfigError, match="train_blocks=2 is not used with freeze_encoder=true"):
        net(train_blocks=2, freeze_encoder=True)


def test_training_step_changes_trained_blocks_only() -> None:
    model = net(train_blocks=2, encoder="resnet10t")
    before = {key: value.clone() for key, value in model.encoder.state_dict().items()}
    optimizer: Any = Optim(lr=0.1, schedule="none").build(model.parameters(), 1)
    optimizer = optimizer["optimizer"]
    learning = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert {id(parameter) for group in optimizer.param_groups for parameter in group["params"]} == learning
    model(torch.rand(4, 3, 64, 64))[0].sum().backward()
    optimizer.step()
    changed = {key for key, value in model.encoder.state_dict().items() if not torch.equal(value, before[key])}
    assert changed
    assert {key.split(".")[0] for key in changed} == {"layer3", "layer4"}  # not even batch statistics of others
    assert any(key.endswith("running_mean") for key in changed)


def test_trained_blocks_with_chunks_have_the_same_gradients() -> None:
    bag = torch.rand(6, 3, 32, 32)
    whole, chunked = net(train_blocks=2), net(train_blocks=2, chunk=2)
    for model in (whole, chunked):
        model(bag)[0].sum().backward()
    for (name, parameter), other in zip(whole.named_parameters(), chunked.parameters(), strict=True):
        assert (parameter.grad is None) == (other.grad is None), name
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, other.grad)


def test_trained_blocks_keep_their_share_of_memory() -> None:
    whole, part = measure_kept(net(), 8), measure_kept(net(train_blocks=2), 8)
    assert part < whole * 2 / 6 * 1.1


def test_trained_blocks_are_restored_with_the_network() -> None:
    model = net(train_blocks=3)
    assert list_learning(MILNet(**model.options)) == list_learning(model)


def test_grading_trained_blocks_are_checked() -> None:
    faults = find_faults("task=grading", "tiles=tissue", "model.encoder=resnet10t", "model.train_blocks=9")
    assert "model.train_blocks=9: the encoder has 4 blocks; give 1 to 4" in faults
    faults = find_faults(
        "task=grading", "tiles=tissue", "model.encoder=resnet10t", "model.train_blocks=1", "model.freeze_encoder=true"
    )
    assert "model.train_blocks=1 is not used with freeze_encoder=true" in faults
