"""Models of torchmil as poolings, against torchmil itself on the same weights."""

import copy
import json
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from panda.errors import OptionError
from panda.models.mil import MILNet
from panda.models.torchmil_pooling import TorchmilPooling

models = pytest.importorskip("torchmil.models")

WIDTH = 12
BUILT: list[dict[str, Any]] = [
    {"name": "ABMIL", "gated": True, "att_dim": 8},
    {"name": "TransformerABMIL", "transf_att_dim": 8, "transf_n_heads": 2, "pool_att_dim": 8},
    {"name": "TransMIL", "att_dim": 8, "n_heads": 2},
]


def net(options: dict[str, Any], classes: int = 3) -> MILNet:
    torch.manual_seed(0)
    return MILNet(None, feature_dim=WIDTH, num_classes=classes, pooling="torchmil", pooling_options=options).eval()


@torch.no_grad()
@pytest.mark.parametrize("options", BUILT, ids=lambda options: options["name"])
def test_torchmil_pooling_equals_model_of_torchmil(options: dict[str, Any]) -> None:
    network = net(options)
    assert isinstance(network.pool, TorchmilPooling)
    whole = copy.deepcopy(network.pool.model)
    last = "last_layer" if options["name"] == "TransformerABMIL" else "classifier"
    setattr(whole, last, nn.Linear(network.pool.features, 1))
    feats = torch.randn(20, WIDTH)
    scaled = nn.functional.layer_norm(feats, (WIDTH,))
    logit, scores = whole(scaled[None], return_att=True)
    bags, attention = network.pool(scaled[None], torch.ones(1, 20, dtype=torch.bool))
    torch.testing.assert_close(getattr(whole, last)(bags)[:, 0], logit)
    weights = scores[0].clamp(min=0) if options["name"] == "TransMIL" else scores[0].exp()
    torch.testing.assert_close(attention[0], weights / weights.sum())
    logits, again = network.aggregate(feats)
    torch.testing.assert_close(logits, network.classifier(bags)[0])
    torch.testing.assert_close(again, attention[0])


@torch.no_grad()
@pytest.mark.parametrize("options", BUILT, ids=lambda options: options["name"])
def test_torchmil_pooling_padding_changes_nothing(options: dict[str, Any]) -> None:
    network = net(options)
    feats = torch.randn(2, 11, WIDTH)
    mask = torch.ones(2, 11, dtype=torch.bool)
    mask[0, 3:9] = False
    padded = feats.masked_fill(~mask[..., None], float("nan"))
    logits, attention = network.aggregate(padded, mask)
    alone, weights = network.aggregate(feats[0][mask[0]])
    torch.testing.assert_close(logits[0], alone)
    torch.testing.assert_close(attention[0, mask[0]], weights)
    assert bool((attention[0, 3:9] == 0).all())
    torch.testing.assert_close(logits[1], network.aggregate(feats[1])[0])


@pytest.mark.parametrize("options", BUILT, ids=lambda options: options["name"])
def test_torchmil_pooling_learns_with_all_weights(options: dict[str, Any]) -> None:
    network = net(options).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, _, _ = network(torch.randn(2, 9, WIDTH), torch.ones(2, 9, dtype=torch.bool))
        nn.functional.cross_entropy(logits.float(), torch.tensor([0, 2])).backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None for parameter in network.parameters())


@torch.no_grad()
@pytest.mark.parametrize("options", BUILT, ids=lambda options: options["name"])
def test_torchmil_options_rebuild_model(options: dict[str, Any]) -> None:
    network = net(options)
    plain = json.loads(json.dumps(network.options))
    assert plain["pooling_options"] == options
    twin = MILNet(**plain).eval()
    twin.load_state_dict(network.state_dict())
    feats = torch.randn(7, WIDTH)
    torch.testing.assert_close(twin.aggregate(feats)[0], network.aggregate(feats)[0], rtol=0, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("options", BUILT, ids=lambda options: options["name"])
def test_torchmil_contributions_equal_shorter_bags(options: dict[str, Any]) -> None:
    network = net(options, classes=2)
    feats = torch.randn(6, WIDTH)

    def odds(some: Tensor) -> float:
        logits = network.aggregate(some)[0]
        return float(logits[1] - logits[0])

    found = network.compute_contributions(feats, 1)
    for k in range(6):
        without = torch.cat([feats[:k], feats[k + 1 :]])
        assert float(found[k]) == pytest.approx(odds(feats) - odds(without), abs=1e-5)


def test_torchmil_models_that_do_not_fit_are_refused_with_reason() -> None:
    others = {"MILModel", "MILModelWrapper"}
    names = {name for name, kind in vars(models).items() if isinstance(kind, type)} - others
    for name in names - {options["name"] for options in BUILT}:
        with pytest.raises(OptionError, match=f"pooling_options.name={name}: this model of torchmil "):
            net({"name": name})


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"name": "GTP"}, "GTP: this model of torchmil needs the adjacency of tiles, which bags do not have"),
        ({"name": "DSMIL"}, "for two classes; give model=mil_dsmil"),
        ({"name": "ABMill"}, r"name=ABMill: give ABMIL or .* \(did you mean ABMIL"),
        ({"name": "os.system"}, r"name=os.system: give ABMIL or TransformerABMIL or TransMIL"),
        ({"name": "ABMIL", "feat_ext": "x"}, r"pooling_options.feat_ext=x: ABMIL of torchmil has no such option"),
        ({"name": "ABMIL", "att_dims": 8}, r"att_dims=8: ABMIL .* \(did you mean att_dim\?\)"),
        ({"name": "ABMIL", "att_act": "sin"}, "ABMIL of torchmil refuses its options: .*'tanh', 'relu' or 'gelu'"),
        ({"name": "ABMIL", "att_dim": [8]}, r"pooling_options.att_dim.* is \[8\]"),
    ],
)
def test_torchmil_pooling_refuses_other_names_and_options(options: dict[str, Any], fault: str) -> None:
    with pytest.raises(OptionError, match=fault):
        net(options)


def test_torchmil_not_installed_names_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmil.models", None)
    with pytest.raises(OptionError, match=r"torchmil is not installed; give pip install 'panda-wsi\[mil\]'"):
        net({"name": "ABMIL"})


def test_torchmil_model_is_built_first_on_the_meta_device() -> None:
    code = (
        "import torch; from panda.models.mil import MILNet; torch.set_default_device('meta'); "
        "print(next(MILNet(None, feature_dim=4, num_classes=2, pooling='torchmil').parameters()).device)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "meta", done.stderr
