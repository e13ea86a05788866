"""CLAM-SB, DSMIL and TransMIL against torchmil and the formulas of their papers, on the same weights."""

from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from panda.errors import OptionError
from panda.models.bag_pooling import BagPooling
from panda.models.clam_pooling import ClamPooling
from panda.models.dsmil_pooling import DsmilPooling
from panda.models.mil import MILNet
from panda.models.pooling import POOLINGS, Pooling, parse_options
from panda.models.transmil_pooling import TransmilPooling

WIDTH = 24


def pool(name: Pooling, classes: int = 2, hidden: int = 16, **options: Any) -> BagPooling:
    torch.manual_seed(0)
    return POOLINGS[name](WIDTH, hidden, classes, parse_options(name, hidden, "softmax", options)).eval()


def ones(tiles: int) -> Tensor:
    return torch.ones(1, tiles, dtype=torch.bool)


class SmoothSvm(nn.Module):
    def forward(self, scores: Tensor, right: Tensor) -> Tensor:
        own = scores.gather(1, right.long())[:, 0]
        return nn.functional.softplus(1 + scores.sum(1) - 2 * own).mean()


@torch.no_grad()
@pytest.mark.parametrize("tiles", [16, 90])
def test_clam_matches_torchmil(tiles: int) -> None:
    models = pytest.importorskip("torchmil.models")
    model = cast(ClamPooling, pool("clam_sb", instance_tiles=6))
    assert model.instances is not None
    other = models.CLAM_SB((WIDTH,), att_dim=16, gated=True, k_sample=6, feat_ext=model.project)
    inner, own = model.gated.attention, other.pool
    for ours, theirs in ((inner.V, own.fc1.module), (inner.U, own.fc_gated.module), (inner.w, own.fc2)):
        theirs.load_state_dict(ours.state_dict())  # type: ignore[union-attr]
    for index, classifier in enumerate(other.inst_classifiers):
        classifier.module.weight.data = model.instances.weight[2 * index : 2 * index + 2].data
        classifier.module.bias.data = model.instances.bias[2 * index : 2 * index + 2].data
    # Its own loss pairs the score of each tile with the labels of all tiles, so that it can be below 0.
    other.inst_loss_fn = SmoothSvm()
    feats = torch.randn(2, tiles, WIDTH)
    mask = torch.ones(2, tiles, dtype=torch.bool)
    bags, attention = model(feats, mask)
    logits, scores, tiles_seen = other(feats, return_att=True, return_emb=True)
    torch.testing.assert_close(other.classifier(bags)[:, 0], logits)
    torch.testing.assert_close(attention, scores.softmax(1))
    label = torch.tensor([1, 0])
    loss = model.add_auxiliary_loss(torch.tensor(2.0), feats, mask, label)
    # torchmil sums over bags and classes
    torch.testing.assert_close(loss, 0.7 * 2 + 0.3 * other.compute_inst_loss(scores, tiles_seen, label) / 4)


@torch.no_grad()
@pytest.mark.parametrize("subtyping", [True, False])
def test_clam_instance_loss_is_smooth_svm_of_paper(subtyping: bool) -> None:
    model = cast(ClamPooling, pool("clam_sb", classes=3, instance_weight=0.5, instance_tiles=8, subtyping=subtyping))
    feats = torch.randn(1, 7, WIDTH)  # three tiles are at most half of seven
    hidden = model.project(feats)[0]
    assert model.instances is not None
    scores = model.instances(hidden).reshape(7, 3, 2).double().numpy()
    order = np.argsort(-model(feats, ones(7))[1][0].numpy())

    def smooth(tile: int, own_class: int, right: int) -> float:
        negative, positive = scores[tile, own_class]
        own, wrong = (positive, negative) if right else (negative, positive)
        return float(np.log(np.exp(1 + wrong - own) + np.exp(0)))

    inside = np.mean([smooth(t, 1, 1) for t in order[:3]] + [smooth(t, 1, 0) for t in order[-3:]])
    outside = [np.mean([smooth(t, c, 0) for t in order[:3]]) for c in (0, 2)]
    expected = (inside + sum(outside)) / 3 if subtyping else inside
    found = model.add_auxiliary_loss(torch.tensor(0.0), feats, ones(7), torch.tensor([1]))
    assert float(found) == pytest.approx(0.5 * expected, rel=1e-5)


@torch.no_grad()
def test_clam_instance_loss_of_one_tile_is_finite() -> None:
    model = pool("clam_sb", classes=6)
    loss = model.add_auxiliary_loss(torch.tensor(1.0), torch.randn(1, 1, WIDTH), ones(1), torch.tensor([3]))
    assert 0.7 < float(loss) < 2


def test_clam_without_classes_refuses_instance_loss() -> None:
    with pytest.raises(OptionError, match=r"instance_weight=0.3: tiles are labelled by the class .* give 0"):
        pool("clam_sb", classes=1)
    feats = torch.randn(1, 7, WIDTH)
    model = pool("clam_sb", classes=1, instance_weight=0)
    loss = model.add_auxiliary_loss(torch.tensor(2.0), feats, ones(7), torch.tensor([3.7]))
    assert float(loss) == 2


@torch.no_grad()
def test_dsmil_matches_torchmil_for_one_class() -> None:
    models = pytest.importorskip("torchmil.models")
    model = cast(DsmilPooling, pool("dsmil", classes=1))
    other = models.DSMIL((WIDTH,), att_dim=16, nonlinear_q=True).eval()
    for ours, theirs in (
        (model.instances, other.inst_classifier),
        (model.query, other.q_nn),
        (model.bags, other.bag_classifier),
    ):
        theirs.load_state_dict(ours.state_dict())
    feats = torch.randn(3, 40, WIDTH)
    logits, attention = model(feats, torch.ones(3, 40, dtype=torch.bool))
    torch.testing.assert_close(logits[:, 0], other.predict(feats))
    torch.testing.assert_close(attention, other(feats, return_att=True)[1][..., 0])


@torch.no_grad()
def test_dsmil_matches_paper_for_several_classes() -> None:
    model = cast(DsmilPooling, pool("dsmil", classes=3))
    feats = torch.randn(9, WIDTH)
    scores, queries = model.instances(feats), model.query(feats)
    averages, weights = [], []
    for own in range(3):
        critical = int(scores[:, own].argmax())
        weight = torch.softmax(queries @ queries[critical] / 4, 0)
        weights.append(weight)
        averages.append(weight @ feats)
    expected = (scores.amax(0) + model.bags(torch.cat(averages))) / 2
    logits, attention = model(feats[None], ones(9))
    torch.testing.assert_close(logits[0], expected)
    torch.testing.assert_close(attention[0], weights[int(expected.argmax())])


@torch.no_grad()
@pytest.mark.parametrize("tiles", [1, 3, 16, 70])
def test_transmil_matches_torchmil_without_residual(tiles: int) -> None:
    """The Nyström attention of torchmil has no convolution and no output layer, so both are switched off."""
    models = pytest.importorskip("torchmil.models")
    model = cast(TransmilPooling, pool("transmil"))
    for layer in model.layers:
        layer.residual.weight.zero_()  # type: ignore[union-attr,operator]
        layer.output[0].load_state_dict({"weight": torch.eye(16), "bias": torch.zeros(16)})  # type: ignore[index,union-attr]
    other = models.TransMIL((WIDTH,), att_dim=16, n_heads=8, feat_ext=model.project).eval()
    other.cls_token.data = model.token[None].data
    for norm, layer, theirs in zip(model.norms, model.layers, other.layers, strict=True):
        theirs.norm1.load_state_dict(norm.state_dict())
        theirs.att_module.qkv_nn.load_state_dict(layer.inner.state_dict())  # type: ignore[union-attr]
    for ours, name in zip(model.positions, ("proj", "proj1", "proj2"), strict=True):
        getattr(other.pos_layer, name).load_state_dict(ours.state_dict())
    other.norm.load_state_dict(model.norm.state_dict())
    feats = torch.randn(tiles, WIDTH)
    bag, attention = model.pool_bag(feats)
    logit, scores = other(feats[None], return_att=True)
    torch.testing.assert_close(other.classifier(bag)[0], logit[0], rtol=1e-4, atol=1e-5)
    if tiles in (1, 16):  # no tile is on the square twice
        scores = scores[0].clamp(min=0)
        torch.testing.assert_close(attention, scores / scores.sum(), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_transmil_residual_convolves_along_tiles() -> None:
    layer = cast(TransmilPooling, pool("transmil")).layers[0]
    tokens = torch.randn(40, 16)
    plain = layer(tokens)[0]
    kernels = layer.residual.weight[:, 0, :, 0].double().numpy()  # type: ignore[union-attr,index]
    layer.residual.weight.zero_()  # type: ignore[union-attr,operator]
    values = layer.inner(tokens)[:, 32:].double().numpy()  # type: ignore[operator]
    sums = [np.convolve(values[:, k], kernels[k // 2][::-1], "full")[16:-16] for k in range(16)]
    output = layer.output[0].weight.double().numpy()  # type: ignore[index,union-attr]
    np.testing.assert_allclose((plain - layer(tokens)[0]).numpy(), np.array(sums).T @ output.T, atol=1e-5)


@torch.no_grad()
def test_transmil_order_of_tiles_has_influence() -> None:
    model = cast(TransmilPooling, pool("transmil"))
    feats = torch.randn(9, WIDTH)
    assert float((model.pool_bag(feats)[0] - model.pool_bag(feats.flip(0))[0]).abs().max()) > 0.01


@torch.no_grad()
@pytest.mark.parametrize("name", POOLINGS)
def test_pooling_of_bag_is_independent_of_batch(name: Pooling) -> None:
    model = pool(name)
    feats = torch.randn(3, 30, WIDTH)
    mask = torch.zeros(3, 30, dtype=torch.bool)
    mask[0, 5:9] = mask[1] = mask[2, ::2] = True
    bags, attention = model(feats, mask)
    again = model(feats, mask)
    assert torch.equal(bags, again[0])
    assert torch.equal(attention, again[1])
    for bag, weights, tiles, real in zip(bags, attention, feats, mask, strict=True):
        alone, own = model(tiles[real][None], ones(int(real.sum())))
        torch.testing.assert_close(bag, alone[0])
        torch.testing.assert_close(weights[real], own[0])
        assert bool((weights[~real] == 0).all())


@torch.no_grad()
def test_contributions_of_groups_share_the_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("panda.models.bag_pooling._MOST_GROUPS", 3)
    torch.manual_seed(0)
    model = MILNet(None, pooling="transmil", hidden=16, feature_dim=WIDTH).eval()
    feats = torch.randn(8, WIDTH)
    found = model.compute_contributions(feats, 1)
    assert model.count_left_out(8) == 3
    assert model.count_left_out(3) == 1

    def odds(some: Tensor) -> float:
        return float(torch.logit(model.aggregate(some)[0].softmax(-1).double()[1]))

    for group in ((0, 1, 2), (3, 4, 5), (6, 7)):
        rest = torch.stack([feats[k] for k in range(8) if k not in group])
        expected = (odds(feats) - odds(rest)) / len(group)
        assert found[list(group)].tolist() == pytest.approx([expected] * len(group), abs=1e-4)


def test_classifying_pooling_has_no_head() -> None:
    model = MILNet(None, pooling="dsmil", feature_dim=WIDTH)
    assert isinstance(model.classifier, nn.Identity)
    assert model.dropout.p == 0
