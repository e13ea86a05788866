"""A configuration builds only what the registry of its group allows, for every source of a configuration."""

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from panda.app.audit import audit
from panda.app.build import build
from panda.app.cluster import ClusterSettings
from panda.app.config_check import check_config
from panda.app.features import extract_features
from panda.app.hydra_check import check_hydra_node
from panda.app.hydra_job import remember_arguments
from panda.app.infer import infer
from panda.app.registry import Slot, find_class, list_slots
from panda.app.resume import load_resumed_config
from panda.app.segmentation_config import SegmentationConfig
from panda.app.train import train
from panda.errors import ConfigError
from tests.integration.entry_points import run_entry_point
from tests.test_config_check import compose_config, compose_plain_config, remember_networks

__all__ = ["remember_networks"]  # is a fixture here too
SENTINEL = "tests.sentinel.Sentinel"
NODE = f"{{_target_: {SENTINEL}}}"
SHAPES: tuple[Any, ...] = (
    {"_target_": SENTINEL},
    [{"deep": {"_target_": SENTINEL}}],
    {"_args_": [1], "_target_": SENTINEL, "_partial_": True},
    f"${{oc.create:'{NODE}'}}",
)
INFER = ("checkpoint=a.ckpt", "slides=b.tiff")
FEATURES = ("encoder=test_resnet", "encoder_weights=null", "slides=b.tiff")
ENTRY_POINTS: dict[str, tuple[Callable[[DictConfig], Any], tuple[str, ...], str]] = {
    "segmentation": (train, ("logger=csv", "data.patch_size=32"), "train"),
    "grading": (train, ("task=grading", "tiles=tissue", "data.patch_size=32", "+trainer.profiler=null"), "train"),
    "infer": (infer, INFER, "infer"),
    "audit": (audit, (), "audit"),
    "features": (extract_features, FEATURES, "features"),
}


@pytest.fixture(autouse=True)
def sentinel_is_never_imported() -> Iterator[None]:
    sys.modules.pop("tests.sentinel", None)
    yield
    sys.modules.pop("tests.sentinel", None)


def list_keys(node: Any, path: str = "") -> list[str]:
    """Every key of a configuration, nodes included."""
    if not isinstance(node, dict):
        return []
    below = [(f"{path}{key}", child) for key, child in node.items()]
    return [key for name, child in below for key in (name, *list_keys(child, f"{name}."))]


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_registry_no_key_of_entry_point_builds_nested_node(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run, overrides, entry_point = ENTRY_POINTS[name]
    cfg = compose_config(*overrides, entry_point=entry_point)
    keys = list_keys(OmegaConf.to_container(cfg, resolve=False))
    assert len(keys) > 20
    for number, key in enumerate(keys):
        changed = cfg.copy()
        # An audit drops the options of data that it does not use, interpolations unresolved.
        shapes = SHAPES[:-1] if name == "audit" else SHAPES
        OmegaConf.update(changed, key, shapes[number % len(shapes)], merge=False, force_add=True)
        with pytest.raises(ConfigError) as caught:
            run(changed)
        assert "_target_" in str(caught.value) or "${" in str(caught.value) or key in str(caught.value), key
        assert "tests.sentinel" not in sys.modules, key


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("key", ["engine.device", "engine.batch_size", "engine", "data.draw.seed", "name", "new"])
def test_registry_each_shape_of_node_is_refused(key: str, shape: Any) -> None:
    cfg = compose_config()
    OmegaConf.update(cfg, key, shape, merge=False, force_add=True)
    with pytest.raises(ConfigError):
        check_config(cfg, "train")
    assert "tests.sentinel" not in sys.modules


@pytest.mark.parametrize("key", [key for key in list_slots(SegmentationConfig) if key != "augment"])
@pytest.mark.parametrize("target", [SENTINEL, "builtins.print", "pathlib.Path", "torch.nn.functional.relu"])
def test_registry_slot_refuses_target_of_other_group(key: str, target: str) -> None:
    cfg = compose_config()
    OmegaConf.update(cfg, key, {"_target_": target}, merge=False)
    with pytest.raises(ConfigError, match=f"{key}._target_={target} is not allowed"):
        check_config(cfg, "train")
    with pytest.raises(ConfigError, match="is not allowed"):
        build(SegmentationConfig, compose_plain_config(cfg), key.partition(".")[0])
    assert "tests.sentinel" not in sys.modules


@pytest.mark.parametrize(
    "target", ["panda.models.segmentation.Path", "panda.models.losses.nn", "torch.nn.modules.loss.Tensor"]
)
def test_registry_class_imported_into_allowed_package_is_refused(target: str) -> None:
    cfg = compose_config()
    OmegaConf.update(cfg, "loss", {"_target_": target}, merge=False)
    with pytest.raises(ConfigError, match="is not allowed: give a class derived from Module and defined in"):
        check_config(cfg, "train")


@pytest.mark.parametrize(
    "target",
    ["torch.nn.HuberLoss", "segmentation_models_pytorch.losses.LovaszLoss", "torchmetrics.MeanSquaredError"],
)
def test_registry_loss_of_allowed_library_is_built(target: str) -> None:
    cfg = compose_config()
    options = {"mode": "binary"} if "segmentation" in target else {}
    OmegaConf.update(cfg, "loss", {"_target_": target, **options}, merge=False)
    check_config(cfg, "train")
    module, _, name = target.rpartition(".")
    assert type(build(SegmentationConfig, compose_plain_config(cfg), "loss")) is getattr(
        importlib.import_module(module), name
    )


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("+model.decoder_chanels=4", "model.decoder_chanels=4: panda.models.segmentation.Segmenter has no such option"),
        ("+loss.nothing=4", "loss.nothing=4"),
        ("+trainer.max_epoch=4", "did you mean max_epochs"),
    ],
)
def test_registry_unknown_option_is_refused_before_build(override: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_config(compose_config(override), "train")
    assert said in str(caught.value)


def test_registry_library_class_takes_named_options_only() -> None:
    cfg = compose_config()
    OmegaConf.update(cfg, "loss", {"_target_": "torchmetrics.MeanSquaredError", "anything": 1}, merge=False)
    with pytest.raises(ConfigError, match=r"loss\.anything=1"):
        check_config(cfg, "train")


def compose_with_own_loss(*overrides: str) -> DictConfig:
    cfg = compose_config(*overrides)
    OmegaConf.update(cfg, "loss", {"_target_": "tests.sentinel.OwnLoss", "weight": 2.0}, merge=False)
    return cfg


def test_registry_package_from_command_line_is_allowed() -> None:
    cfg = compose_with_own_loss("allow_packages=[tests.sentinel]")
    with remember_arguments(["model=unet", "allow_packages=[tests.sentinel]"]):
        check_config(cfg, "train")
    assert build(SegmentationConfig, compose_plain_config(cfg), "loss").weight == 2.0


def test_registry_package_from_file_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        check_config(compose_with_own_loss("allow_packages=[tests.sentinel]"), "train")
    assert "allow_packages=['tests.sentinel'] comes from a file" in str(caught.value)
    assert "loss._target_=tests.sentinel.OwnLoss is not allowed" in str(caught.value)
    assert "tests.sentinel" not in sys.modules


def test_registry_allowed_package_defines_no_settings() -> None:
    cfg = compose_config("allow_packages=[tests]")
    OmegaConf.update(cfg, "engine", {"_target_": SENTINEL}, merge=False)
    with remember_arguments(["allow_packages=[tests]"]), pytest.raises(ConfigError, match="engine builds panda"):
        check_config(cfg, "train")
    assert "tests.sentinel" not in sys.modules


def compose_received_run(folder: Path, cfg: DictConfig) -> DictConfig:
    """Compose the configuration that resumes a run whose folder somebody sent."""
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    for name in ("last.ckpt", "best.ckpt"):
        (folder / "checkpoints" / name).write_bytes(b"")
    OmegaConf.save(cfg, folder / "config.yaml")
    return compose_config(f"resume={folder}/checkpoints/last.ckpt")


def test_registry_no_key_of_received_run_builds_nested_node(tmp_path: Path) -> None:
    plain = compose_plain_config(compose_config("logger=csv", "data.patch_size=32"))
    own = ("resume", "run_dir", "debug", "allow_packages")  # are given by the command that resumes
    for number, key in enumerate(key for key in (*list_keys(plain), "hydra", "new") if key not in own):
        sent = OmegaConf.create(plain)
        OmegaConf.update(sent, key, SHAPES[number % (len(SHAPES) - 1)], merge=False, force_add=True)
        with pytest.raises(ConfigError):
            train(compose_received_run(tmp_path, sent))
        assert "tests.sentinel" not in sys.modules, key


@pytest.mark.parametrize("text", [SHAPES[-1], "${oc.env:HOME}", "a\\${seed}b"])
def test_load_resumed_config_interpolation_is_text(tmp_path: Path, text: str) -> None:
    sent = compose_plain_config(compose_config("logger=csv"))
    sent["logger"]["project"] = sent["data"]["exclude"] = text
    cfg = compose_received_run(tmp_path, OmegaConf.create({}))
    (tmp_path / "config.yaml").write_text(json.dumps(sent))
    own = load_resumed_config(cfg, tmp_path / "checkpoints" / "last.ckpt")
    assert own.logger.project == own.data.exclude == text
    assert "tests.sentinel" not in sys.modules


def test_registry_received_run_allows_no_package(tmp_path: Path) -> None:
    cfg = compose_received_run(tmp_path, compose_with_own_loss("allow_packages=[tests.sentinel]"))
    with pytest.raises(ConfigError) as caught:
        train(cfg)
    assert "type it with each command, also with resume=…" in str(caught.value)
    assert "tests.sentinel" not in sys.modules


@pytest.mark.parametrize(
    ("entry_point", "overrides"),
    [
        ("infer", (*INFER, f"engine.device={NODE}")),
        ("infer", (*INFER, f"provider={NODE}")),
        ("audit", (f"audit.workers={NODE}",)),
        ("features", (*FEATURES, f"engine.device={NODE}")),
        ("features", (*FEATURES, f"encoder_weights={NODE}")),
        ("audit", (f"data.augment={NODE}",)),
        ("train", (f"resume={NODE}",)),
        ("train", (f"+trainer.callbacks=[{NODE}]",)),
        ("train", ("loss._target_=tests.sentinel.OwnLoss", "~loss.bce_weight", "~loss.dice_weight")),
        ("train", ("-m", "+hydra.sweeper.params.allow_packages='[tests.sentinel]'", "seed=1")),
    ],
)
def test_entry_point_nested_node_is_refused_in_one_message(
    tmp_path: Path, entry_point: str, overrides: tuple[str, ...]
) -> None:
    done = run_entry_point(entry_point, tmp_path, *overrides)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "ConfigError" in done.stderr
    assert "tests.sentinel" not in sys.modules


def test_entry_point_typed_package_reaches_next_check(tmp_path: Path) -> None:
    overrides = ("loss._target_=tests.sentinel.OwnLoss", "~loss.bce_weight", "~loss.dice_weight", "seed=-1")
    done = run_entry_point("train", tmp_path, *overrides, "allow_packages=[tests.sentinel]")
    assert "seed=-1" in done.stderr
    assert "loss" not in done.stderr
    assert "tests.sentinel" in sys.modules


@pytest.mark.parametrize(
    "node",
    [
        {"callbacks": {"own": {"_target_": SENTINEL}}},
        {"callbacks": {"own": f"${{oc.create:'{NODE}'}}"}},
        {"callbacks": {"own": {"_target_": "panda.app.sweep.Path"}}},
        {"callbacks": {"own": {"_target_": "panda.app.sweep.SweepPage", "deep": [{"_target_": SENTINEL}]}}},
        {"launcher": {"_target_": SENTINEL}},
        {"sweeper": {"_target_": "hydra_plugins.x.Sweeper", "sampler": {"_target_": SENTINEL}}},
        {"sweeper": {"custom_search_space": SENTINEL}},
        {"job_logging": {"handlers": {"own": {"()": SENTINEL}}}},
        {"hydra_logging": {"root": {"handlers": [f"ext://{SENTINEL}"]}}},
    ],
)
def test_hydra_object_from_file_is_refused(node: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"hydra\.\w+.*is not allowed: remove it from the file that sets it"):
        check_hydra_node(OmegaConf.create({"hydra": node}))
    assert "tests.sentinel" not in sys.modules


def test_hydra_builds_its_plugins_and_sweep_callback() -> None:
    joblib = {"_target_": "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher", "n_jobs": 2}
    basic = {"_target_": "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"}
    page = {"_target_": "panda.app.sweep.SweepPage"}
    node = {"launcher": joblib, "sweeper": basic, "callbacks": {"sweep_page": page}}
    check_hydra_node(OmegaConf.create({"hydra": node}))


def test_sweeper_that_searches_for_the_worst_is_refused_from_file() -> None:
    optuna = {"_target_": "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper"}
    with pytest.raises(ConfigError, match=r"default direction is minimize.*panda\.app\.search"):
        check_hydra_node(OmegaConf.create({"hydra": {"sweeper": optuna}}))


@pytest.mark.parametrize("name", ["a/b", "..", "/tmp/x"])
def test_sweep_name_of_no_folder_is_refused(tmp_path: Path, name: str) -> None:
    done = run_entry_point("train", tmp_path, "-m", f"name={name}", "optim.lr=1,2")
    assert done.returncode == 1
    assert f"name={name} must be a plain name" in done.stderr
    assert not list(tmp_path.iterdir())


def test_sweeper_that_searches_for_the_worst_is_refused(tmp_path: Path) -> None:
    done = run_entry_point("train", tmp_path, "-m", "hydra/sweeper=optuna", "model=unett", "optim.lr=1,2")
    assert done.returncode == 1
    assert "default direction is minimize" in done.stderr
    assert "model=unett: there is no such choice" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("entry_point", ["train", "infer", "audit", "features"])
def test_entry_point_hydra_callback_is_refused(tmp_path: Path, entry_point: str) -> None:
    done = run_entry_point(entry_point, tmp_path, f"+hydra.callbacks.own._target_={SENTINEL}")
    assert done.returncode == 1
    assert f"hydra.callbacks.own._target_={SENTINEL} is not allowed" in done.stderr
    assert "Traceback" not in done.stderr
    assert "tests.sentinel" not in sys.modules


@pytest.mark.parametrize("option", ["callbacks=[]", "default_root_dir=x", "logger=false", "num_sanity_val_steps=2"])
def test_registry_trainer_option_set_by_run_is_refused(option: str) -> None:
    with pytest.raises(ConfigError, match=r"trainer\.\w+=.*: there is no such key"):
        check_config(compose_config(f"+trainer.{option}"), "train")


@pytest.mark.parametrize("key", ["loss", "data", "trainer"])
def test_registry_option_named_by_number_is_refused(key: str) -> None:
    cfg = compose_config()
    OmegaConf.update(cfg, key, {**cfg[key], 5: 3}, merge=False)
    with pytest.raises(ConfigError, match=rf"{key}\.5=3"):
        check_config(cfg, "train")


def test_registry_abstract_class_is_refused() -> None:
    slot = Slot(ClusterSettings, ("panda.app.cluster",))
    with pytest.raises(ConfigError, match=r"cluster\._target_=panda\.app\.cluster\.WorkerCluster is abstract: give"):
        find_class("cluster", slot, "panda.app.cluster.WorkerCluster")
