"""Every configuration composes and passes its check; every kind of fault is found, all at once."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from panda.app.build import Faults, build
from panda.app.config_check import check_config
from panda.app.loss_check import check_ignored_pixels
from panda.app.resolvers import register_resolvers, run_folder
from panda.errors import ConfigError

CONF = Path(__file__).resolve().parents[1] / "conf"
GROUPS = sorted(
    (group.name, option.stem)
    for group in CONF.iterdir()
    if group.is_dir() and group.name not in ("hydra_folders", "label_maps")
    for option in group.glob("*.yaml")
)


def composed(*overrides: str, door: str = "train") -> DictConfig:
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(door, overrides=["run_dir=somewhere", *overrides])


def plain_of(cfg: DictConfig) -> dict[str, Any]:
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    return dict(plain)


def faults_of(*overrides: str, door: str = "train") -> str:
    with pytest.raises(ConfigError) as caught:
        check_config(composed(*overrides, door=door), door)
    return str(caught.value)


@pytest.mark.parametrize(("group", "option"), GROUPS)
def test_every_option_composes_and_passes(group: str, option: str, tmp_path: Path) -> None:
    (tmp_path / "train.csv").touch()
    overrides = [f"{group}={option}"]
    if group == "tiles" or option.startswith("mil_"):
        overrides = ["task=grading", *overrides]
    if (group, option) in {("data", "panda"), ("experiment", "glas"), ("experiment", "panda_grading")}:
        overrides.append(f"data.root={tmp_path}")
    check_config(composed(*overrides), "train")


def test_the_second_door_composes_and_passes() -> None:
    check_config(composed("checkpoint=a.ckpt", "slides=b.tiff", door="infer"), "infer")


def test_a_wrong_option_names_its_neighbour() -> None:
    text = faults_of("+data.patchsize=256")
    assert "data.patchsize=256" in text
    assert "patch_size" in text


def test_a_key_of_a_group_that_was_put_beside_it_is_named() -> None:
    assert "target: there is no such key (did you mean task.target?)" in faults_of("+target=cancer", "task=grading")
    assert "modle: there is no such key (did you mean model?)" in faults_of("+modle=unet")


def test_a_wrong_kind_is_named() -> None:
    assert "data.patch_size=many" in faults_of("data.patch_size=many")
    assert "engine.precision=fp8" in faults_of("engine.precision=fp8")


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("data.level='1'", "must be a whole number or null"),
        ("data.mpp='1.0'", "must be a number or null"),
        ("trainer.max_epochs='3'", "is of the wrong kind"),
        ("optim.lr='1'", "must be a number"),
    ],
)
def test_a_number_in_quotes_is_named_with_them(override: str, wanted: str) -> None:
    assert f"{override} {wanted}" in faults_of(override)


def test_a_missing_value_is_named() -> None:
    assert "data.root is not given" in faults_of("data=panda")


def test_a_key_that_was_taken_away_is_named() -> None:
    assert "data was taken away" in faults_of("~data")
    assert "engine was taken away" in faults_of("~engine", "checkpoint=a.ckpt", "slides=b", door="infer")


def test_an_interpolation_that_leads_nowhere_is_named() -> None:
    assert "'nothing'" in faults_of("seed=${nothing}")


@pytest.mark.parametrize("value", ["2024", "1e3"])
def test_a_name_that_was_read_as_a_number_is_to_be_quoted(value: str) -> None:
    text = faults_of(f"output={value}", "checkpoint=a.ckpt", "slides=b", door="infer")
    assert "quote it" in text
    assert "output=" in text


def test_a_name_is_text_or_a_whole_number() -> None:
    check_config(composed("name=7"), "train")
    assert "quote it" in faults_of("name=1e3")
    assert "quote it" in faults_of("name=[a]")
    assert "plain name" in faults_of("name=..")


def test_an_empty_value_is_named() -> None:
    assert "output is empty" in faults_of("output=", "checkpoint=a.ckpt", "slides=b", door="infer")


def test_all_faults_come_at_once() -> None:
    text = faults_of("data.patch_size=many", "+model_name=unet", "threshold=2", "criterion=best")
    assert text.startswith("4 faults")
    for part in ("data.patch_size", "model_name", "threshold=2", "criterion=best"):
        assert part in text


def test_a_cost_and_a_provider_s_threshold_are_of_their_kind() -> None:
    text = faults_of("cost_ratio=much", "threshold_per_provider=perhaps")
    assert "cost_ratio=much" in text
    assert "threshold_per_provider=perhaps" in text
    check_config(composed("criterion=cost", "cost_ratio=5", "threshold_per_provider=true"), "train")


def test_a_target_outside_the_allowed_packages_is_refused() -> None:
    assert "os.system" in faults_of("loss._target_=os.system")


def test_a_target_that_does_not_exist_is_named() -> None:
    assert "panda.models.losses.NoLoss" in faults_of("loss._target_=panda.models.losses.NoLoss")


@pytest.mark.parametrize(
    ("node", "target", "remedy"),
    [
        ("augment", "torch.nn.Identity", "augment builds panda.data.augment.Augmentation only"),
        ("data.augment", "torch.nn.Identity", "data.augment builds panda.data.augment.Augmentation only"),
        ("optim", "torch.nn.Identity", "optim builds panda.tasks.optim.Optim only"),
        ("loss", "panda.tasks.optim.Optim", "give a class derived from Module and defined in panda.models, torch.nn"),
        ("engine", "panda.tasks.optim.Optim", "engine builds panda.inference.compute.EngineSettings only"),
        ("model", "panda.models.mil.MILNet", "give a class derived from Segmenter and defined in panda.models"),
    ],
)
def test_a_target_of_another_kind_is_refused(node: str, target: str, remedy: str) -> None:
    text = faults_of(f"{node}={{_target_: {target}}}" if "." in node else f"{node}._target_={target}")
    assert f"{node}._target_={target} is not allowed: {remedy}" in text


def test_a_node_without_a_target_is_named() -> None:
    assert "optim has no _target_: give panda.tasks.optim.Optim" in faults_of("~optim._target_")


@pytest.mark.parametrize("package", ["albumentations.HorizontalFlip", "torch.optim.Adam"])
def test_packages_that_no_group_can_use_are_not_allowed(package: str) -> None:
    assert "augment builds panda.data.augment.Augmentation only" in faults_of(f"augment._target_={package}")


def test_an_unknown_task_is_named() -> None:
    assert "task.name=detection: give task=segmentation or task=grading" in faults_of("task.name=detection")


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_is_none_is_refused(seed: int) -> None:
    assert f"seed={seed} must be from 0" in faults_of(f"seed={seed}")


@pytest.mark.parametrize("value", ["0", "1", "'often'", "'0.5'", "0.1234"])
def test_a_threshold_is_a_word_or_a_probability_of_the_histograms(value: str) -> None:
    assert f"threshold={value}" in faults_of(f"threshold={value}")


@pytest.mark.parametrize(
    "override",
    [
        "trainer.max_epochs=0",
        "trainer.max_epochs=-1",
        "trainer.max_epochs=-3",
        "+trainer.max_steps=0",
        "+trainer.limit_train_batches=0",
        "+trainer.limit_val_batches=0.0",
        "+trainer.limit_val_batches=1.5",
        "+trainer.check_val_every_n_epoch=21",
        "trainer.accumulate_grad_batches=0",
        "trainer.gradient_clip_val=-1",
        "+trainer.fast_dev_run=1",
        "+trainer.val_check_interval=0",
    ],
)
def test_a_trainer_that_would_train_or_score_nothing_is_refused(override: str) -> None:
    text = faults_of(override)
    assert text.startswith("1 fault ")
    assert override.lstrip("+") in text


@pytest.mark.parametrize(
    "overrides",
    [
        ("trainer.max_epochs=-1", "+trainer.max_steps=10"),
        ("+trainer.limit_train_batches=2", "+trainer.limit_val_batches=1.0"),
        ("trainer.gradient_clip_val=null", "trainer.max_epochs=null", "+trainer.check_val_every_n_epoch=2"),
    ],
)
def test_a_trainer_with_unusual_values_passes(overrides: tuple[str, ...]) -> None:
    check_config(composed(*overrides), "train")


def test_a_constructor_s_refusal_comes_out_unwrapped() -> None:
    cfg = composed("optim.lr=-1")
    with pytest.raises(ConfigError, match=r"optim\.lr=-1"):
        build(plain_of(cfg), "optim")


def test_the_folder_of_a_run() -> None:
    assert run_folder(None, "segmentation", None, "now") == "runs/segmentation/now"
    assert run_folder(None, "segmentation", "mine", "now") == "runs/segmentation/mine"
    assert run_folder("runs/segmentation/mine/checkpoints/last.ckpt", "segmentation", None, "now") == (
        "runs/segmentation/mine"
    )


def test_a_loss_that_would_learn_ignored_pixels_is_refused() -> None:
    node = {"_target_": "torch.nn.HuberLoss"}
    faults = Faults()
    check_ignored_pixels(torch.nn.HuberLoss(), node, faults)
    with pytest.raises(ConfigError, match=r"data.ignore_background=true: loss=torch.nn.HuberLoss learns"):
        faults.raise_any()
    of_grades = {"cross_entropy", "coral"}
    for option in {path.stem for path in (CONF / "loss").glob("*.yaml")} - of_grades:
        faults = Faults()
        check_ignored_pixels(build(plain_of(composed(f"loss={option}")), "loss"), node, faults)
        faults.raise_any()
