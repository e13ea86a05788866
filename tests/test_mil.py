"""The network over bags of tiles, against gated attention written out in numpy."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from panda.errors import ConfigError
from panda.models.grade_losses import CumulativeLoss
from panda.models.mil import MILNet
from panda.models.pooling import POOLINGS, OrdinalHead, Pooling

ENCODER = "resnet10t"


def net(**options: Any) -> MILNet:
    torch.manual_seed(0)
    if options.get("pooling") in ("clam_sb", "transmil") and options.get("dropout") == 0:
        options["pooling_options"] = {"dropout": 0}
    return MILNet(**{"encoder": ENCODER, "hidden": 16, **options})


@pytest.fixture(scope="module")
def model() -> MILNet:
    return net().eval()


def draw_features(*shape: int) -> torch.Tensor:
    """Draw features with mean 0 and variance 1 in each tile, which `MILNet.aggregate` leaves as they are."""
    return torch.nn.functional.layer_norm(torch.randn(*shape), shape[-1:])


def reference(model: MILNet, feats: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Equations 8 and 9 of Ilse et al. 2018, tile by tile."""
    w = {key: value.double().numpy() for key, value in model.state_dict().items()}
    scores = []
    for h in feats:
        inner = np.tanh(w["pool.attention.V.weight"] @ h + w["pool.attention.V.bias"])
        if "pool.attention.U.weight" in w:
            inner = inner / (1 + np.exp(-(w["pool.attention.U.weight"] @ h + w["pool.attention.U.bias"])))
        scores.append(float(w["pool.attention.w.weight"][0] @ inner))
    a = np.exp(scores) / np.exp(scores).sum()
    z = sum(weight * h for weight, h in zip(a, feats, strict=True))
    return w["classifier.weight"] @ z + w["classifier.bias"], a


@pytest.mark.parametrize("pooling", ["gated", "attention"])
def test_milnet_matches_paper(pooling: Pooling) -> None:
    model = net(pooling=pooling).eval()
    feats = draw_features(7, model.feature_dim)
    with torch.no_grad():
        logits, attention = model.aggregate(feats)
    expected_logits, expected_attention = reference(model, feats.double().numpy())
    np.testing.assert_allclose(attention.numpy(), expected_attention, rtol=1e-4)
    np.testing.assert_allclose(logits.numpy(), expected_logits, rtol=1e-3, atol=1e-5)


@torch.no_grad()
def test_milnet_output_shapes_and_attention_sums(model: MILNet) -> None:
    bag = torch.rand(5, 3, 32, 32)
    logits, attention, feats = model(bag)
    assert (logits.shape, attention.shape, feats.shape) == ((6,), (5,), (5, model.feature_dim))
    torch.testing.assert_close(attention.sum(), torch.tensor(1.0))
    many = model(torch.stack([bag, bag.flip(0)]))
    assert [tuple(part.shape) for part in many] == [(2, 6), (2, 5), (2, 5, model.feature_dim)]
    torch.testing.assert_close(many[0][0], logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(many[1][1].flip(0), attention, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_milnet_mean_and_max_pooling() -> None:
    feats = draw_features(7, 512)
    for pooling, bag in (("mean", feats.mean(0)), ("max", feats.amax(0))):
        model = net(pooling=pooling).eval()
        logits, attention = model.aggregate(feats)
        torch.testing.assert_close(logits, model.classifier(bag), rtol=1e-4, atol=1e-5)
        shares = [
            (feats[k] == feats.amax(0)).float().mean() if pooling == "max" else torch.tensor(1 / 7) for k in range(7)
        ]
        torch.testing.assert_close(attention, torch.stack(shares))


@torch.no_grad()
@pytest.mark.parametrize("pooling", [pooling for pooling in POOLINGS if pooling != "transmil"])
def test_milnet_tile_order_changes_nothing(pooling: Pooling) -> None:
    model = net(pooling=pooling).eval()
    bag = torch.rand(6, 3, 32, 32)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    logits, attention, feats = model(bag)
    other_logits, other_attention, other_feats = model(bag[order])
    torch.testing.assert_close(other_logits, logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(other_attention, attention[order], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(other_feats, feats[order], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("filler", [0.0, 7.0, float("nan")])
@pytest.mark.parametrize("training", [True, False])
def test_milnet_padding_changes_nothing(filler: float, training: bool) -> None:
    padded = torch.full((2, 5, 3, 32, 32), filler)
    padded[:, 1:4] = torch.rand(2, 3, 3, 32, 32)
    assert_padding_changes_nothing(net(dropout=0).train(training), net(dropout=0).train(training), padded)


@pytest.mark.parametrize("filler", [0.0, 7.0, float("nan")])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_milnet_padding_of_features_changes_nothing(pooling: Pooling, filler: float, training: bool) -> None:
    padded = torch.full((2, 5, 24), filler)
    padded[:, 1:4] = torch.randn(2, 3, 24)
    plain, other = (net(encoder=None, feature_dim=24, dropout=0, pooling=pooling).train(training) for _ in range(2))
    assert_padding_changes_nothing(plain, other, padded)


def assert_padding_changes_nothing(plain: MILNet, with_padding: MILNet, padded: Tensor) -> None:
    """Pool bags of the three real tiles 1 to 3, and the same bags with two tiles of padding, by equal networks."""
    mask = torch.tensor([[False, True, True, True, False]] * 2)
    logits, attention, feats = plain(padded[:, 1:4])
    padded_logits, padded_attention, padded_feats = with_padding(padded, mask)
    torch.testing.assert_close(padded_logits, logits)
    torch.testing.assert_close(padded_attention[:, 1:4], attention)
    torch.testing.assert_close(padded_feats[:, 1:4], feats)
    for outside in (padded_attention, padded_feats):
        assert bool((outside[:, [0, 4]] == 0).all())
    label, every = torch.tensor([1, 4]), torch.ones(2, 3, dtype=torch.bool)
    torch.autograd.backward(plain.add_auxiliary_loss(logits.sum(), feats, every, label))
    torch.autograd.backward(with_padding.add_auxiliary_loss(padded_logits.sum(), padded_feats, mask, label))
    for one, two in zip(plain.parameters(), with_padding.parameters(), strict=True):
        assert one.grad is not None
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-4, atol=1e-5)
    for here, there in zip(plain.buffers(), with_padding.buffers(), strict=True):  # batch statistics too
        torch.testing.assert_close(here, there)


@torch.no_grad()
def test_milnet_bags_of_different_sizes(model: MILNet) -> None:
    feats = torch.randn(2, 4, model.feature_dim)
    mask = torch.tensor([[True, True, False, False], [True, True, True, True]])
    logits, _ = model.aggregate(feats, mask)
    torch.testing.assert_close(logits[0], model.aggregate(feats[0, :2])[0])
    torch.testing.assert_close(logits[1], model.aggregate(feats[1])[0])


@torch.no_grad()
@pytest.mark.parametrize("tiles", [1, 4000])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_milnet_small_and_large_bags(pooling: Pooling, tiles: int) -> None:
    model = net(pooling=pooling).eval()
    feats = torch.randn(tiles, model.feature_dim) * 3
    logits, attention = model.aggregate(feats)
    assert bool(torch.isfinite(logits).all())
    torch.testing.assert_close(attention.sum(), torch.tensor(1.0))
    if tiles == 1:
        assert attention.tolist() == [1.0]


@torch.no_grad()
def test_milnet_features_instead_of_tiles_give_same_result(model: MILNet) -> None:
    bag = torch.rand(2, 4, 3, 32, 32)
    mask = torch.tensor([[True, True, True, False], [True] * 4])
    logits, attention, feats = model(bag, mask)
    padded = feats.masked_fill(~mask[..., None], float("nan"))
    again = model(padded, mask)
    torch.testing.assert_close(again[0], logits)
    torch.testing.assert_close(again[1], attention)
    torch.testing.assert_close(again[2], feats, msg="0 for tiles that are not real")


@torch.no_grad()
def test_ordinal_head_is_cumulative_logit_model() -> None:
    model = net(head="ordinal").eval()
    feats = draw_features(9, 5, model.feature_dim)
    fresh = model(feats * 0)[0].softmax(-1)
    torch.testing.assert_close(fresh, torch.full((9, 6), 1 / 6))
    head = model.classifier
    assert isinstance(head, OrdinalHead)
    for parameter in head.parameters():
        parameter.copy_(torch.randn_like(parameter))
    prob = model(feats)[0].softmax(-1).double()
    bags = model.pool(feats, torch.ones(9, 5, dtype=torch.bool))[0].double()
    first, steps, weight = (value.double().numpy() for value in (head.first, head.steps, head.score.weight))
    thresholds = first - np.concatenate([[0], np.cumsum(np.log1p(np.exp(steps)) + 1e-4)])
    above = 1 / (1 + np.exp(-(bags.numpy() @ weight.T + thresholds)))
    edges = np.concatenate([np.ones((9, 1)), above, np.zeros((9, 1))], axis=1)
    np.testing.assert_allclose(prob.numpy(), -np.diff(edges, axis=1), atol=1e-6)


def test_ordinal_head_extreme_scores_stay_finite() -> None:
    head = OrdinalHead(1, 6)
    bags = torch.tensor([[-1e4], [0.0], [1e4]], requires_grad=True)
    logits = head(bags)
    torch.autograd.backward(nn.functional.cross_entropy(logits, torch.tensor([5, 3, 0])))
    assert torch.isfinite(logits).all()
    for parameter in head.parameters():
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()


def test_cumulative_loss_matches_hand_computed() -> None:
    logits = torch.randn(4, 6, dtype=torch.float64)
    label = torch.tensor([0, 2, 5, 3])
    prob = logits.softmax(-1).numpy()
    terms = []
    for row, given in zip(prob, label.tolist(), strict=True):
        for k in range(5):
            above = row[k + 1 :].sum()
            terms.append(-np.log(above if given > k else 1 - above))
    assert float(CumulativeLoss()(logits, label)) == pytest.approx(np.mean(terms), rel=1e-5)
    near, far = torch.tensor([[0.0, 0, 0, 4, 0, 0]]), torch.tensor([[4.0, 0, 0, 0, 0, 0]])
    loss = CumulativeLoss()
    assert loss(near, torch.tensor([4])) < loss(far, torch.tensor([4])), "cross-entropy would give both the same loss"


@torch.no_grad()
@pytest.mark.parametrize("pooling", POOLINGS)
def test_contributions_equal_loss_of_leaving_out_tile(pooling: Pooling, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("panda.models.transformer_pooling._ROWS_AT_ONCE", 12)
    model = net(pooling=pooling, head="softmax" if pooling == "dsmil" else "ordinal").eval()
    for parameter in model.classifier.parameters():
        parameter.copy_(torch.randn_like(parameter))
    if pooling == "dsmil":  # nearly all attention of a class on one tile
        model.pool.query[2].weight.mul_(20)  # type: ignore[union-attr,index]
    feats = torch.randn(5, model.feature_dim)
    if pooling in ("gated", "attention"):  # nearly all attention on one tile
        model.pool.attention.w.weight.mul_(2000)  # type: ignore[union-attr,operator]
        assert float(model.aggregate(feats)[1].max()) > 0.99
    if pooling == "transformer":  # attention between tiles that some tiles take nearly alone
        model.pool.between.self_attn.in_proj_weight.mul_(6)  # type: ignore[union-attr,operator]
    feats[1, :9] = feats[3, :9] = 7  # greatest values that two tiles share
    found = model.compute_contributions(feats, 2)

    def odds(some: Tensor) -> float:
        prob = model.aggregate(some)[0].softmax(-1).double()
        return float(torch.log(prob[2] / (1 - prob[2])))

    for k in range(5):
        without = torch.cat([feats[:k], feats[k + 1 :]])
        assert float(found[k]) == pytest.approx(odds(feats) - odds(without), abs=2e-3)
    assert model.compute_contributions(feats[:1], 0).tolist() == [0.0]


def test_milnet_invalid_input_raises(model: MILNet) -> None:
    feats = torch.randn(2, 3, model.feature_dim)
    with pytest.raises(ValueError, match=r"bag 1 .*no real tile"):
        model.aggregate(feats, torch.tensor([[True] * 3, [False] * 3]))
    with pytest.raises(ValueError, match="no real tile"):
        model(torch.rand(2, 3, 32, 32), torch.zeros(2, dtype=torch.bool))
    with pytest.raises(ValueError, match="no real tile"):
        model(torch.rand(0, 3, 32, 32))
    with pytest.raises(ValueError, match="mask is"):
        model.aggregate(feats, torch.ones(2, 3))
    with pytest.raises(ValueError, match="mask is"):
        model.aggregate(feats, torch.ones(3, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="features are"):
        model(torch.rand(3, 32, 32))
    with pytest.raises(ValueError, match="a bag is"):
        model(torch.rand(2, 1, 32, 32))
    with pytest.raises(ValueError, match="features are"):
        model.aggregate(torch.randn(3, 7))


def test_milnet_chunks_equal_one_pass() -> None:
    """Against the same parts without recomputing: features, gradients and running statistics."""
    bag = torch.rand(7, 3, 48, 48)
    model, other = net(chunk=3, dropout=0), net(chunk=3, dropout=0)
    logits, _, feats = model(bag)
    expected = torch.cat([other._encode_part(part) for part in torch.tensor_split(bag, 3)])
    torch.testing.assert_close(feats, expected)
    logits.sum().backward()
    torch.autograd.backward(other.aggregate(expected)[0].sum())
    for (name, one), two in zip(model.named_parameters(), other.parameters(), strict=True):
        assert one.grad is not None
        assert two.grad is not None
        torch.testing.assert_close(one.grad, two.grad, msg=name)
    for (name, here), there in zip(model.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(here, there, msg=name)
    norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
    assert {norm.momentum for norm in norms} == {0.1}
    assert {int(norm.num_batches_tracked or 0) for norm in norms} == {3}


@torch.no_grad()
def test_milnet_chunks_in_evaluation_change_nothing(model: MILNet) -> None:
    small = net(chunk=2).eval()
    bag = torch.rand(5, 3, 32, 32)
    torch.testing.assert_close(small(bag)[0], model(bag)[0], rtol=1e-4, atol=1e-5)


def test_milnet_chunks_bound_activation_memory() -> None:
    def kept(chunk: int) -> int:
        size = 0

        def count(tensor: Tensor) -> Tensor:
            nonlocal size
            size += tensor.numel()
            return tensor

        model = net(chunk=chunk)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            model(torch.rand(8, 3, 64, 64))
        return size

    assert kept(2) < kept(8) / 5


def test_milnet_frozen_encoder_stays_unchanged() -> None:
    model = net(freeze_encoder=True, chunk=2, dropout=0).train()
    assert not model.encoder.training
    assert model.pool.training
    before = {key: value.clone() for key, value in model.encoder.state_dict().items()}
    logits, _, feats = model(torch.rand(5, 3, 32, 32))
    logits.sum().backward()
    assert not feats.requires_grad
    assert all(parameter.grad is None for parameter in model.encoder.parameters())
    assert model.classifier.weight.grad is not None
    for key, value in model.encoder.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)


def test_milnet_half_precision() -> None:
    assert_finite_in_half_precision(net(dropout=0), torch.rand(2, 3, 3, 32, 32), torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_milnet_half_precision_of_features(pooling: Pooling, dtype: torch.dtype) -> None:
    model = net(encoder=None, feature_dim=24, dropout=0, pooling=pooling)
    assert_finite_in_half_precision(model, torch.randn(2, 3, 24), dtype)


def assert_finite_in_half_precision(model: MILNet, bag: Tensor, dtype: torch.dtype) -> None:
    with torch.autocast("cpu", dtype=dtype):
        mask = torch.tensor([[True, True, False], [True, True, True]])
        logits, attention, feats = model(bag, mask)
        loss = model.add_auxiliary_loss(logits.float().sum(), feats, mask, torch.tensor([0, 5]))
        loss.backward()  # type: ignore[no-untyped-call]
    assert bool(torch.isfinite(loss))
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert attention.dtype == torch.float32
    assert bool(torch.isfinite(feats).all())
    torch.testing.assert_close(attention.sum(dim=1), torch.ones(2))


def test_milnet_options_rebuild_model(tmp_path: Path) -> None:
    model = net(num_classes=2, pooling="max", head="ordinal", freeze_encoder=True, chunk=5, mean=(0.7, 0.5, 0.7)).eval()
    plain = json.loads(json.dumps(model.options))
    assert plain["encoder_weights"] is None
    torch.manual_seed(1)
    twin = MILNet(**plain).eval()
    twin.load_state_dict(model.state_dict())
    bag = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(twin(bag)[0], model(bag)[0])
    assert twin.options == model.options


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "convnext_atto", "vit_tiny_patch16_224"])
@torch.no_grad()
def test_milnet_feature_width_follows_encoder(name: str) -> None:
    model = MILNet(name).eval()
    assert model.encode(torch.rand(1, 3, 224, 224)).shape == (1, model.feature_dim)


def test_milnet_tile_size_of_fixed_size_encoder() -> None:
    net().check_tile_size(100)
    with pytest.raises(ConfigError, match=r"tile_size=256: vit_tiny_patch16_224 .*sizes: 224"):
        MILNet("vit_tiny_patch16_224").check_tile_size(256)


def test_milnet_local_weights(tmp_path: Path) -> None:
    path = tmp_path / "encoder.pt"
    torch.manual_seed(3)
    source = timm.create_model(ENCODER, num_classes=10)
    torch.save(source.state_dict(), path)  # with its classifier, which is left out
    state = net(encoder_weights=str(path)).encoder.state_dict()
    for key, value in state.items():
        torch.testing.assert_close(value, source.state_dict()[key])
    with pytest.raises(ConfigError, match=r"encoder.pt.*missing in the file"):
        net(encoder="resnet18", encoder_weights=str(path))
    with pytest.raises(ConfigError, match="no such file"):
        net(encoder_weights=str(tmp_path / "none.pt"))


def test_milnet_downloaded_weights_keep_their_normalization(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("timm.models._builder.load_pretrained", lambda *_, **__: None)
    vit = MILNet("vit_tiny_patch16_224", "imagenet")
    assert (vit.options["mean"], vit.options["std"]) == ([0.5] * 3, [0.5] * 3)
    assert vit.normalize.mean.flatten().tolist() == [0.5] * 3
    for other in (net(encoder_weights="imagenet"), MILNet("vit_tiny_patch16_224")):
        assert other.options["mean"] == [0.485, 0.456, 0.406]
    assert net(encoder_weights="imagenet", mean=(0.7, 0.5, 0.7)).options["mean"] == [0.7, 0.5, 0.7]


def test_milnet_failed_download_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: Any, **kwargs: Any) -> None:
        raise OSError("the network is away")

    monkeypatch.setattr("timm.models._builder.load_pretrained", offline)
    with pytest.raises(ConfigError) as caught:
        net(encoder_weights="imagenet")
    for words in ("encoder_weights=imagenet", ENCODER, "network is away", "encoder_weights=null"):
        assert words in str(caught.value)


def test_milnet_all_faults_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        MILNet("resnet_18", num_classes=0, hidden=0, chunk=0, dropout=1.0)
    assert len(caught.value.faults) == 5
    assert "resnet18" in str(caught.value)
    with pytest.raises(ConfigError, match="hidden=18: must be a multiple of 4"):
        net(pooling="transformer", hidden=18)
    with pytest.raises(ConfigError) as caught:
        net(pooling="clam_sb", pooling_options={"instance_weight": 1, "instance_tile": 8})
    assert caught.value.faults == [
        "pooling_options.instance_weight is 1, but must be less than 1 for pooling=clam_sb",
        "pooling_options.instance_tile is 8, but there is no such key for pooling=clam_sb",
    ]
    with pytest.raises(ConfigError, match=r"pooling_options\.instance_weight is 0.3, but there is no such key"):
        net(pooling_options={"instance_weight": 0.3})
    with pytest.raises(ConfigError, match="head=ordinal: pooling=dsmil classifies itself; give head=softmax"):
        net(pooling="dsmil", head="ordinal")
    with pytest.raises(ConfigError, match="nonesuch"):
        MILNet("resnet18.nonesuch")


def test_ordinal_head_equal_thresholds_can_separate() -> None:
    head = OrdinalHead(4, 6)
    with torch.no_grad():
        head.steps.fill_(-12.0)
    torch.autograd.backward(nn.functional.nll_loss(head(torch.randn(8, 4)), torch.full((8,), 2)))
    assert head.steps.grad is not None
    assert bool((head.steps.grad[:2] < 0).any()), "wider for the class that is seen"


@torch.no_grad()
def test_milnet_aggregate_standardizes_features_of_any_scale() -> None:
    model = net().eval()
    tiles = torch.rand(3, 3, 32, 32)
    raw = model.encoder(model.normalize(tiles))
    torch.testing.assert_close(model.encode(tiles), raw)
    torch.testing.assert_close(model(tiles)[2], raw)
    feats = 70 * raw + 3
    double = feats.double()
    standard = ((double - double.mean(-1, keepdim=True)) / double.std(-1, unbiased=False, keepdim=True)).float()
    mask = torch.ones(1, 3, dtype=torch.bool)
    expected = model.classifier(model.pool(standard[None], mask)[0])[0]
    torch.testing.assert_close(model.aggregate(feats)[0], expected, rtol=1e-4, atol=1e-4)
    contributions = model.compute_contributions(standard, 1)
    torch.testing.assert_close(model.compute_contributions(feats, 1), contributions, rtol=1e-3, atol=1e-4)


def test_milnet_without_encoder_grades_features_only() -> None:
    """The network has a pooling and a head, rebuilds from its options, and refuses tiles."""
    model = MILNet(None, feature_dim=7, hidden=8, mean=(0.5, 0.5, 0.5)).eval()
    assert not any(name.startswith("encoder") for name in model.state_dict())
    again = MILNet(**model.options).eval()
    again.load_state_dict(model.state_dict())
    bag = torch.rand(2, 5, 7)
    assert [part.shape for part in model(bag)] == [(2, 6), (2, 5), (2, 5, 7)]
    torch.testing.assert_close(again(bag)[0], model(bag)[0])
    with pytest.raises(ValueError, match="takes features, not tiles"):
        model(torch.rand(3, 3, 32, 32))


def test_milnet_feature_dim_is_for_networks_without_encoder() -> None:
    with pytest.raises(ConfigError, match="feature_dim=None: must be at least 1"):
        MILNet(None)
    with pytest.raises(ConfigError, match="feature_dim=512: the encoder decides it"):
        MILNet("resnet18", feature_dim=512)
