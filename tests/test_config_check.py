"""Every configuration composes and passes its check; every kind of fault is found, all at once."""

import importlib
import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from panda.app.build import build
from panda.app.cluster import NoCluster
from panda.app.config_check import check_config
from panda.app.hydra_job import register_resolvers, run_folder
from panda.app.loss_check import check_ignored_pixels, check_partial_labels
from panda.app.segmentation_config import SegmentationConfig
from panda.app.train_config import TrainConfig
from panda.errors import ConfigError
from panda.models.grade_losses import CoxLoss, CumulativeLoss
from tests.checkpoints import segmentation_checkpoint

CONF = Path(__file__).resolve().parents[1] / "conf"
BUILD = TrainConfig.build
BUILT: dict[Any, Any] = {}
GROUPS = sorted(
    (group.name, option.stem)
    for group in CONF.iterdir()
    if group.is_dir() and group.name not in ("hydra_folders", "label_maps", "classes", "encoders", "cluster")
    for option in group.glob("*.yaml")
)

SLIDE_LOSSES = {"by_kind", "cross_entropy", "coral", "huber", "mse", "cox"}
LOSSES = sorted({option for group, option in GROUPS if group == "loss"} - SLIDE_LOSSES)
"""The losses of segmentation."""


PIP = "pip install 'panda-wsi[{}]'"


def list_missing(logger: str) -> str:
    """Return the packages that a logger needs and that are not installed here."""
    packages = {"tensorboard": ["tensorboard"], "mlflow": ["mlflow", "sqlalchemy", "alembic"]}.get(logger, [])
    return ", ".join(name for name in packages if importlib.util.find_spec(name) is None)


def hide_packages(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let packages look as if they were not installed."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name in names else find(name, *more))


def compose_config(*overrides: str, entry_point: str = "train") -> DictConfig:
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(entry_point, overrides=["run_dir=somewhere", *overrides])


def compose_plain_config(cfg: DictConfig) -> dict[str, Any]:
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    return dict(plain)


@pytest.fixture(autouse=True)
def remember_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Build each network once, because a check takes most of its time for it."""
    monkeypatch.setattr(TrainConfig, "build", build_once)


def build_once(config: TrainConfig, key: str, **extra: Any) -> Any:
    given = (type(config), key, repr(getattr(config, key)), repr(extra), repr(config.allow_packages))
    if given not in BUILT:
        BUILT[given] = BUILD(config, key, **extra)
    return BUILT[given]


def compose_settings(*overrides: str, entry_point: str = "train") -> Any:
    return check_config(compose_config(*overrides, entry_point=entry_point), entry_point)


def find_faults(*overrides: str, entry_point: str = "train") -> str:
    with pytest.raises(ConfigError) as caught:
        check_config(compose_config(*overrides, entry_point=entry_point), entry_point)
    return str(caught.value)


@pytest.mark.parametrize(("group", "option"), GROUPS)
def test_check_config_every_option_passes(group: str, option: str, tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("image_id,data_provider,isup_grade,gleason_score\n")
    grading = ("task=grading", f"segmentation_checkpoint={segmentation_checkpoint(tmp_path / 'best.ckpt')}")
    overrides = {
        "tiles": grading,
        "task": grading if option == "grading" else (),
        "model": (*grading, "tiles.tile_size=64") if option.startswith("mil_") or option == "torchmil" else (),
        "loss": grading if option in ("by_kind", "coral", "cross_entropy") else (),
        "experiment": grading[1:] if option.endswith("_grading") else (),
    }.get(group, ())
    expected = set()
    if option in ("tissue", "all"):
        expected.add("segmentation_checkpoint is not used with tiles=tissue or all: remove it, or give tiles=guided")
    if option == "features":
        expected.add("segmentation_checkpoint is not used with tiles=features: remove it, or give tiles=guided")
        expected.add("tiles.features is not given: tiles=features needs the folder of the feature files")
    if option in ("huber", "mse", "cox"):
        overrides = ("task=grading", "tiles=tissue", "tiles.tile_size=64")
        remedy = "task.kind=ordinal of task.target=isup: give loss=cross_entropy or loss=coral"
    if option == "gpu" and not torch.cuda.is_available():
        expected.add("trainer: Lightning refuses these options: No supported gpu backend found!")
    if (group, option) in {("data", "panda"), ("experiment", "glas")}:
        overrides = (*overrides, f"data.root={tmp_path}")
    if (group, option) == ("data", "table"):
        overrides = (f"data.table={tmp_path / 'train.csv'}",)
    if option == "panda_grading":
        overrides = (*overrides, "data=synthetic", "tiles.cross_fit=false")
    if group == "logger" and (missing := list_missing(option)):
        expected.add(f"logger={option} needs the package {missing}, which is not installed: {PIP.format(option)}")
    found = set()
    try:
        compose_settings(f"{group}={option}", *overrides)
    except ConfigError as error:
        found = set(error.faults)
    if option in ("huber", "mse", "cox"):
        assert [fault.endswith(remedy) for fault in found] == [True]
    else:
        assert found == expected


@pytest.mark.parametrize(
    ("typed", "loss"),
    [
        ((), torch.nn.CrossEntropyLoss),
        (("task.kind=classes",), torch.nn.CrossEntropyLoss),
        (("task.kind=ordinal",), CumulativeLoss),
        (("task.kind=regression",), torch.nn.HuberLoss),
        (("task.kind=survival",), CoxLoss),
        (("task.kind=survival", "loss=mse"), torch.nn.MSELoss),
        (("task.kind=ordinal", "experiment=panda_grading", "loss=cross_entropy"), torch.nn.CrossEntropyLoss),
    ],
)
def test_loss_follows_kind_unless_it_is_chosen(typed: tuple[str, ...], loss: type) -> None:
    cfg = compose_config("task=grading", *typed)
    module, _, name = cfg.loss["_target_"].rpartition(".")
    assert getattr(importlib.import_module(module), name) is loss


@pytest.mark.parametrize("name", ["train", "infer", "audit", "features"])
def test_conf_no_plain_key_has_the_name_of_a_folder(name: str) -> None:
    """Hydra takes `KEY=VALUE` for the choice of a group if `conf/KEY` exists."""
    content: Any = OmegaConf.load(CONF / f"{name}.yaml")
    folders = {path.name for path in CONF.iterdir() if path.is_dir()}
    groups = {str(key).split()[-1].split("@")[0] for choice in content.defaults if choice != "_self_" for key in choice}
    assert not folders & (set(content) - groups)


def test_check_config_infer_passes(tmp_path: Path) -> None:
    (tmp_path / "b.tiff").touch()
    checkpoint = segmentation_checkpoint(tmp_path / "a.ckpt")
    config = compose_settings(f"checkpoint={checkpoint}", f"slides={tmp_path / 'b.tiff'}", entry_point="infer")
    assert config.slide_list.paths == [tmp_path / "b.tiff"]


@pytest.mark.parametrize("option", ["none", "local", "slurm", "address"])
def test_check_config_every_cluster_is_known(option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/sbatch")
    (tmp_path / "b.tiff").touch()
    given = [f"checkpoint={segmentation_checkpoint(tmp_path / 'a.ckpt')}", f"slides={tmp_path / 'b.tiff'}"]
    if option == "address":
        assert "cluster.address is not given" in find_faults(f"cluster={option}", *given, entry_point="infer")
        given.append("cluster.address=tcp://host:8786")
    config = compose_settings(f"cluster={option}", *given, entry_point="infer")
    assert (option == "none") == isinstance(config.cluster, NoCluster)


def test_check_config_cluster_faults_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    hide_packages(monkeypatch, "distributed", "dask_jobqueue")
    slurm = ("cluster=slurm", "cluster.memory=16", "cluster.gpus=-1", "cluster.tasks=2")
    found = find_faults(*slurm, entry_point="infer")
    assert "cluster.memory=16 must be" in found
    for part in (
        "cluster.gpus=-1 must be at least 0",
        "cluster.tasks=2: there is no such key",
        "cluster=slurm: there is no command sbatch here",
        "distributed, dask_jobqueue, which is not installed: pip install 'panda-wsi[cluster]'",
    ):
        assert part in found


def test_check_config_missing_loggers_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    hide_packages(monkeypatch, "tensorboard", "mlflow", "sqlalchemy", "alembic")
    for logger in ("tensorboard", "mlflow"):
        assert f"not installed: {PIP.format(logger)}" in find_faults(f"logger={logger}")
    for address in ("file:///runs", "runs/mlflow.db"):
        assert f"logger.tracking_uri={address} must be" in find_faults(
            "logger=mlflow", f"logger.tracking_uri={address}"
        )


def test_check_config_unknown_option_names_neighbor() -> None:
    text = find_faults("+data.patchsize=256")
    assert "data.patchsize=256" in text
    assert "patch_size" in text


def test_check_config_key_beside_its_group_is_named() -> None:
    assert "target: there is no such key (did you mean task.target?)" in find_faults("+target=cancer", "task=grading")
    assert "modle: there is no such key (did you mean model?)" in find_faults("+modle=unet")


def test_check_config_wrong_type_is_named() -> None:
    assert "data.patch_size=many" in find_faults("data.patch_size=many")
    assert "engine.precision=fp8" in find_faults("engine.precision=fp8")


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("data.level='1'", "must be a whole number or null"),
        ("data.mpp='1.0'", "must be a number or null"),
        ("trainer.max_epochs='3'", "must be a whole number or null"),
        ("optim.lr='1'", "must be a number"),
    ],
)
def test_check_config_quoted_number_is_named(override: str, wanted: str) -> None:
    assert f"{override} {wanted}" in find_faults(override)


def test_check_config_missing_value_is_named() -> None:
    assert "data.root is not given" in find_faults("data=panda")


def test_check_config_removed_key_is_named() -> None:
    assert "data is not given: write data=…" in find_faults("~data")
    assert "engine is not given" in find_faults("~engine", "checkpoint=a.ckpt", "slides=b", entry_point="infer")


def test_check_config_dangling_interpolation_is_named() -> None:
    assert "'nothing'" in find_faults("seed=${nothing}")


@pytest.mark.parametrize("value", ["2024", "1e3"])
def test_check_config_name_parsed_as_number_asks_for_quotes(value: str) -> None:
    text = find_faults(f"output={value}", "checkpoint=a.ckpt", "slides=b", entry_point="infer")
    assert "quote it" in text
    assert "output=" in text


def test_check_config_name_is_text_or_whole_number() -> None:
    check_config(compose_config("name=7"), "train")
    assert "name=1000.0 must be a plain name or null: " in find_faults("name=1e3")
    assert "must be a plain name" in find_faults("name=[a]")
    assert "plain name" in find_faults("name=..")


def test_check_config_empty_value_is_named() -> None:
    assert "output='' must be text that is not empty" in find_faults(
        "output=", "checkpoint=a.ckpt", "slides=b", entry_point="infer"
    )


def test_check_config_all_faults_at_once() -> None:
    text = find_faults("data.patch_size=many", "+model_name=unet", "threshold=2", "criterion=best")
    assert text.startswith("4 faults")
    for part in ("data.patch_size", "model_name", "threshold=2", "criterion=best"):
        assert part in text


def test_check_config_cost_and_threshold_per_provider_types() -> None:
    text = find_faults("cost_ratio=much", "threshold_per_provider=perhaps")
    assert "cost_ratio=much" in text
    assert "threshold_per_provider=perhaps" in text
    check_config(compose_config("criterion=cost", "cost_ratio=5", "threshold_per_provider=true"), "train")


def test_check_config_target_outside_registry_is_refused() -> None:
    assert "os.system" in find_faults("loss._target_=os.system")


def test_check_config_unknown_target_is_named() -> None:
    assert "panda.models.losses.NoLoss" in find_faults("loss._target_=panda.models.losses.NoLoss")


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
def test_check_config_target_of_other_kind_is_refused(node: str, target: str, remedy: str) -> None:
    text = find_faults(f"{node}={{_target_: {target}}}" if "." in node else f"{node}._target_={target}")
    assert f"{node}._target_={target} is not allowed: {remedy}" in text


def test_check_config_node_without_target_is_named() -> None:
    assert "optim has no _target_: give panda.tasks.optim.Optim" in find_faults("~optim._target_")


@pytest.mark.parametrize("package", ["albumentations.HorizontalFlip", "torch.optim.Adam"])
def test_check_config_target_of_other_package_is_refused(package: str) -> None:
    assert "augment builds panda.data.augment.Augmentation only" in find_faults(f"augment._target_={package}")


def test_check_config_unknown_task_is_named() -> None:
    assert "task.name=detection must be segmentation: give task=segmentation or task=grading" in find_faults(
        "task.name=detection"
    )


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_check_config_invalid_seed_is_refused(seed: int) -> None:
    assert f"seed={seed} must be from 0" in find_faults(f"seed={seed}")


@pytest.mark.parametrize("value", ["0", "1", "often", "'0.5'", "0.1234"])
def test_check_config_threshold_is_word_or_bin_probability(value: str) -> None:
    assert f"threshold={value}" in find_faults(f"threshold={value}")


@pytest.mark.parametrize(
    "override",
    [
        "trainer.max_epochs=0",
        "trainer.max_epochs=-1",
        "trainer.max_epochs=-3",
        "+trainer.max_steps=10",
        "+trainer.reload_dataloaders_every_n_epochs=1",
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
def test_check_config_trainer_without_work_is_refused(override: str) -> None:
    text = find_faults(override)
    assert text.startswith("1 fault ")
    assert override.lstrip("+") in text


@pytest.mark.parametrize(
    "overrides",
    [
        ("+trainer.limit_train_batches=2", "+trainer.limit_val_batches=1.0"),
        ("trainer.gradient_clip_val=null", "trainer.max_epochs=null", "+trainer.check_val_every_n_epoch=2"),
    ],
)
def test_check_config_unusual_trainer_passes(overrides: tuple[str, ...]) -> None:
    check_config(compose_config(*overrides), "train")


def test_build_constructor_error_is_unwrapped() -> None:
    plain = compose_plain_config(compose_config("optim.lr=-1"))
    with pytest.raises(ConfigError, match=r"optim\.lr=-1"):
        build(SegmentationConfig, plain, "optim")


def test_run_folder_follows_name_and_resume() -> None:
    assert run_folder(None, "segmentation", None, "now") == "runs/segmentation/now"
    assert run_folder(None, "segmentation", "mine", "now") == "runs/segmentation/mine"
    assert run_folder("runs/segmentation/mine/checkpoints/last.ckpt", "segmentation", None, "now") == (
        "runs/segmentation/mine"
    )


def test_run_folder_of_resumed_folder_is_itself(tmp_path: Path) -> None:
    assert run_folder(str(tmp_path), "segmentation", None, "now") == str(tmp_path)


def test_check_ignored_pixels_loss_without_ignore_raises() -> None:
    with pytest.raises(ConfigError, match=r"data.ignore_background=true: loss=torch.nn.HuberLoss does not skip"):
        check_ignored_pixels(torch.nn.HuberLoss(), "torch.nn.HuberLoss")
    config = compose_settings()
    for option in LOSSES:
        node = compose_plain_config(compose_config(f"loss={option}"))["loss"]
        check_ignored_pixels(config.model_copy(update={"loss": node}).build("loss"), option)


@pytest.mark.parametrize("option", LOSSES)
def test_compose_settings_every_loss_takes_classes(option: str) -> None:
    config = compose_settings(f"loss={option}", "task.classes=gleason", "data.ignore_background=true")
    assert config.network.options["channels"] == 4
    assert config.task.class_set.names == ("benign", "G3", "G4", "G5")


def test_check_partial_labels_loss_of_plain_classes_raises() -> None:
    class Plain(torch.nn.Module):
        def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.cross_entropy(logits, target[:, 0].long().clamp_min(0))

    with pytest.raises(ConfigError, match=r"task\.classes: loss=mine does not take labels that say"):
        check_partial_labels(Plain(), "mine", 4)
    with pytest.raises(ConfigError, match="loss=mine does not skip ignored pixels"):
        check_ignored_pixels(Plain(), "mine", 4)
