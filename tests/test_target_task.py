"""Losses, heads and training of the kinds of targets: what fits, what is refused, and what is learned."""

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from panda.app.grading_config import GradingConfig
from panda.app.loss_check import check_target_loss
from panda.data.targets import CANCER, ISUP, TargetSpec
from panda.errors import ConfigError, OptionError
from panda.models.grade_losses import CoxLoss, CumulativeLoss
from panda.models.mil import MILNet
from panda.tasks.grading import GradingTask, convert_output, score_predictions
from panda.tasks.metadata import GradingMetadata, TargetScale, TileSelection, TrainedResolution
from panda.tasks.optim import Optim
from tests.panda_folder import make_folder
from tests.test_config_check import compose_settings
from tests.test_target_figures import KI67, SCANNER, STAGE, SURVIVAL

FITS = {
    ISUP: (nn.CrossEntropyLoss, CumulativeLoss),
    CANCER: (nn.CrossEntropyLoss, CumulativeLoss),
    SCANNER: (nn.CrossEntropyLoss,),
    STAGE: (nn.CrossEntropyLoss, CumulativeLoss),
    KI67: (nn.HuberLoss, nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss),
    SURVIVAL: (CoxLoss,),
}
ALL = sorted({loss for losses in FITS.values() for loss in losses}, key=lambda loss: loss.__name__)


@pytest.mark.parametrize("loss", ALL)
@pytest.mark.parametrize("target", FITS, ids=lambda target: target.name)
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_check_target_loss_takes_only_what_fits(target: TargetSpec, loss: type[nn.Module]) -> None:
    if loss in FITS[target]:
        check_target_loss(loss(), "mine", target)
    else:
        with pytest.raises(ConfigError, match=rf"(?s)loss=mine .*task\.kind={target.kind} of .*: give loss="):
            check_target_loss(loss(), "mine", target)


def make_metadata(target: TargetSpec, scale: TargetScale | None = None) -> GradingMetadata:
    return GradingMetadata(
        network={},
        resolution=TrainedResolution(level=1, mpp=None, train_mpp=None),
        tile_size=32,
        tiles=TileSelection(how="tissue", k=2, random_fraction=1, min_tissue=0.25, seed=0),
        target=target,
        scale=scale,
        segmentation=(),
        train_slides=("a",),
        val_slides=("b",),
    )


@pytest.mark.parametrize(
    ("network", "target", "scale", "fault"),
    [
        ({"num_classes": 6}, KI67, TargetScale(mean=0, sd=1), "network.num_classes is 6, but the target ki67 needs 1"),
        ({"num_classes": 1}, KI67, None, "scale must be given with kind regression"),
        ({"num_classes": 3}, STAGE, TargetScale(mean=0, sd=1), "scale must be null with kind ordinal"),
    ],
)
def test_grading_metadata_that_contradicts_itself_raises(
    network: dict[str, Any], target: TargetSpec, scale: TargetScale | None, fault: str
) -> None:
    values = {name: getattr(make_metadata(ISUP), name) for name in GradingMetadata.model_fields}
    with pytest.raises(ValueError, match=fault):
        GradingMetadata(**values | {"network": network, "target": target, "scale": scale})


def test_grading_metadata_of_older_checkpoints_is_read() -> None:
    entry = make_metadata(ISUP).to_entry()
    assert entry["target"] == "isup"
    assert "scale" not in entry
    del entry["format"], entry["task"]
    assert GradingMetadata.model_validate(entry).target is ISUP


def test_convert_output_gives_probabilities_numbers_or_hazards() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, 3.0]])
    assert torch.allclose(convert_output(logits, make_metadata(STAGE)), logits.softmax(-1))
    one = torch.tensor([[2.0], [-1.0]])
    number = convert_output(one, make_metadata(KI67, TargetScale(mean=10, sd=3)))
    assert number.tolist() == [16.0, 7.0]
    assert convert_output(one, make_metadata(SURVIVAL)).tolist() == [2.0, -1.0]


def test_mil_net_of_one_output_has_contributions_to_it() -> None:
    torch.manual_seed(0)
    network = MILNet(None, num_classes=1, feature_dim=64, pooling="mean").eval()
    feats = torch.randn(4, network.feature_dim)
    found = network.compute_contributions(feats, 0)
    whole = network.aggregate(feats)[0]
    for tile in range(4):
        rest = torch.cat([feats[:tile], feats[tile + 1 :]])
        assert found[tile].item() == pytest.approx((whole - network.aggregate(rest)[0]).item(), abs=1e-5)
    with pytest.raises(OptionError, match="head=ordinal: needs at least two classes"):
        MILNet("resnet10t", num_classes=1, head="ordinal")


def draw_bags(target: TargetSpec) -> Any:
    """Draw 64 bags of three tiles, whose mean first feature decides the label."""
    rng = torch.Generator().manual_seed(1)
    bags = []
    for number in range(64):
        x = torch.randn(1, generator=rng).item()
        bag = torch.randn(3, 64, generator=rng)
        bag[:, :32] += x
        label = {
            "classes": torch.tensor(int(x > 0)),
            "ordinal": torch.tensor(int(x > -0.6) + int(x > 0.6)),
            "regression": torch.tensor(1000 + 50 * x),
            "survival": torch.tensor([30 * 2.718 ** (-2 * x), float(number % 3 != 0)]),
        }[target.kind]
        bags.append((bag, torch.ones(3, dtype=torch.bool), label, f"s{number}"))
    return bags


BINARY = TargetSpec(name="scanner", kind="classes", classes=("A", "B"), columns=("scanner",))


@pytest.mark.parametrize(
    ("target", "loss", "figure", "least"),
    [
        (BINARY, nn.CrossEntropyLoss(), "auroc_macro", 0.95),
        (STAGE, CumulativeLoss(), "qwk", 0.8),
        (KI67, nn.HuberLoss(), "r2", 0.8),
        (SURVIVAL, CoxLoss(), "concordance", 0.85),
    ],
)
def test_grading_task_learns_each_kind_from_drawn_features(
    target: TargetSpec, loss: nn.Module, figure: str, least: float
) -> None:
    torch.manual_seed(0)
    bags = draw_bags(target)
    scale = TargetScale.fit([bag[2].item() for bag in bags[:48]]) if target.kind == "regression" else None
    network = MILNet(None, num_classes=target.outputs, feature_dim=64, pooling="mean", dropout=0.0)
    task = GradingTask(network, loss, Optim(lr=0.01, schedule="none"), make_metadata(target, scale))
    trainer = pl.Trainer(
        max_epochs=20, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(task, DataLoader(bags[:48], 16, shuffle=True), DataLoader(bags[48:], 5))
    assert trainer.callback_metrics[f"val/{figure}"].item() > least


def test_grading_task_validation_loss_of_survival_is_over_all_slides(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    bags = draw_bags(SURVIVAL)[:9]
    network = MILNet(None, num_classes=1, feature_dim=64, pooling="mean").eval()
    task = GradingTask(network, CoxLoss(), Optim(lr=0.01, schedule="none"), make_metadata(SURVIVAL))
    logged: dict[str, float] = {}
    monkeypatch.setattr(task, "log", lambda name, value, **_: logged.update({name: float(value)}))
    monkeypatch.setattr(GradingTask, "current_epoch", 0)
    with torch.no_grad():
        for number, batch in enumerate(DataLoader(bags, 2)):
            task.validation_step(batch, number)
        task.on_validation_epoch_end()
    risk = torch.cat([network.aggregate(bag[0])[0] for bag in bags])
    expected = CoxLoss()(risk, torch.stack([bag[2] for bag in bags])).item()
    assert logged["val/loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("target", [SCANNER, STAGE, KI67, SURVIVAL], ids=lambda target: target.name)
def test_score_predictions_of_one_slide_has_no_undefined_number(target: TargetSpec) -> None:
    output = torch.full((1, 3), 1 / 3) if target.has_classes else torch.ones(1)
    label = torch.tensor([[3.0, 1.0]]) if target.kind == "survival" else torch.tensor(1)
    found = score_predictions(output, label.float() if target.kind == "regression" else label, target)
    assert not any(value is not None and math.isnan(value) for value in found.values())
    assert ("qwk" in found) == (target.kind == "ordinal")


def make_config(folder: Path, *overrides: str) -> GradingConfig:
    """Compose a grading on eight slides with more columns."""
    make_folder(folder / "data", 8)
    table = folder / "data" / "train.csv"
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows):
        row |= {"ki67": f"{number}", "months": f"{9 - number}", "dead": "1", "word": "abc"[number % 3]}
        row |= {"hole": "" if number == 3 else "xy"[number // 2 % 2], "code": f"p{number}"}
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    own = ("task=grading", "tiles=tissue", "data=panda", f"data.root={folder / 'data'}", "model.encoder=resnet10t")
    config: GradingConfig = compose_settings(*own, *overrides)
    return config


@pytest.mark.parametrize(
    ("overrides", "column"),
    [
        ((), None),
        (("task.target=word", "task.kind=classes"), "word"),
        (("task.target=ki67", "task.kind=regression"), None),
    ],
)
def test_grading_of_classes_stratifies_by_their_column(
    tmp_path: Path, overrides: tuple[str, ...], column: str | None
) -> None:
    config = make_config(tmp_path, *overrides, "data.exclude=[missing:word]")
    assert config.data_module.select().stratify_by == column


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        (("task.target=ki67",), r"task\.target=ki67: give task\.kind=.* \(ki67, months, dead, word, hole, code, isup"),
        (
            ("task.target=ki67", "task.kind=regression", "loss=cross_entropy"),
            r"CrossEntropyLoss does not fit .* give loss=huber or",
        ),
        (
            ("task.target=months", "task.kind=survival", "task.event=dead", "loss=cox", "tiles.batch_size=1"),
            r"tiles\.batch_size=1: task\.kind=survival compares each event .* give tiles\.batch_size=32",
        ),
        (
            ("task.target=ki67", "task.kind=regression", "loss=mse", "trainer.precision=bf16-true"),
            r"trainer\.precision=bf16-true would round the labels: give trainer\.precision=bf16-mixed",
        ),
        (
            ("task.target=ki67", "task.kind=regression", "loss=mse", "task.abstain_risk=0.1"),
            r"1 fault in .*task\.abstain_risk=0\.1 needs classes, not task\.kind=regression: remove it",
        ),
        (("task.target=nothing", "task.kind=regression", "loss=huber"), r"1 fault in .*task\.target=nothing is no col"),
        (
            ("task.target=word", "task.kind=classes", "model.head=ordinal"),
            r"model\.head=ordinal needs classes in order, not task\.kind=classes: give model\.head=softmax",
        ),
        (("task.target=word", "task.kind=classes", "loss=coral"), r"CumulativeLoss is for classes in order, not for"),
        (("task.target=code", "task.kind=classes"), r"8 classes on 8 slides, as ids have"),
        (("task.target=hole", "task.kind=classes"), r"1 of 8 slides have no hole.*data\.exclude=\[missing:hole\]"),
        (("task.kind=none",), r"task\.kind=none must be"),
        (("task.classes=[a]",), r"task\.classes has no meaning with task\.kind=auto"),
        (("data.exclude=[missing:holes]",), r"the table of slides has no column 'holes'; columns are ki67, "),
    ],
)
def test_grading_config_wrong_target_is_named(tmp_path: Path, overrides: tuple[str, ...], fault: str) -> None:
    with pytest.raises(ConfigError, match=rf"(?s){fault}"):
        make_config(tmp_path, *overrides)


def test_grading_config_slides_without_value_can_be_left_out(tmp_path: Path) -> None:
    config = make_config(
        tmp_path, "task.target=hole", "task.kind=classes", "data.exclude=[missing:hole]", "data.seed=3"
    )
    assert config.target.classes == ("x", "y")
    assert config.network.options["num_classes"] == 2
    assert config.data_module.select().exclusion_counts == {"missing:hole": 1}
