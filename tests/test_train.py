"""Runs of training, and that a resumed one equals one that never stopped."""

import copy
import gc
import os
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from panda.app.callbacks import Clock, EpochLines, Tf32
from panda.app.grading import GradingExperiment
from panda.app.grading_config import GradingSettings
from panda.app.guidance import note_leaks
from panda.app.operating_point import freeze_operating_point
from panda.app.resume import load_resumed_config
from panda.app.resume_point import ResumePoint, check_same
from panda.app.run import Run
from panda.app.train import build_trainer, find_objective
from panda.app.trainer import TrainerSettings
from panda.data.bagset import BagItem
from panda.data.loaders import Draw, find_item, make_ordered_loader, make_train_loader
from panda.data.manifest import SlideRecord
from panda.data.patchset import PatchSet
from panda.data.targets import ISUP
from panda.errors import CheckpointError, ConfigError, PandaError, SlideError
from panda.inference.grade import AttendedTile, GradeRecord
from panda.models.losses import BCELoss
from panda.models.segmentation import Segmenter
from panda.tasks.gleason_search import GleasonRuleSettings
from panda.tasks.metadata import SegmentationMetadata, TrainedResolution
from panda.tasks.optim import FiniteCheck, Optim
from panda.tasks.segmentation import SegmentationTask
from panda.tasks.threshold import search_threshold
from panda.wsi.classes import BINARY
from panda.wsi.label_maps import find_label_map
from tests.summaries import make_summary
from tests.test_config_check import compose_settings

METADATA = SegmentationMetadata(
    network={},
    resolution=TrainedResolution(level=1, mpp=None, train_mpp=(2.0, 2.0, 2.0)),
    patch_size=16,
    overlap=0.5,
    label_maps={"karolinska": find_label_map("karolinska")},
    threshold=search_threshold({}),
    precision="fp32",
    train_slides=("a", "b"),
    val_slides=("c",),
)


class Tiny(nn.Sequential):
    """A network with dropout, and with statistics of batches if these are normalized."""

    def __init__(self, *, normalized: bool = False) -> None:
        layers = (nn.Conv2d(3, 8, 3, padding=1), nn.Dropout(0.5), nn.Conv2d(8, 1, 1))
        super().__init__(*layers, *([nn.BatchNorm2d(1)] if normalized else []))


class Patches(TensorDataset):
    """Indexed by draws, as the patches of a split are."""

    def __getitem__(self, index: Draw) -> tuple[Tensor, ...]:
        return tuple(tensor[index.item] for tensor in self.tensors)


class Data(pl.LightningDataModule):
    def train_dataloader(self) -> DataLoader[Any]:
        draw = torch.Generator().manual_seed(7)
        image = torch.rand(12, 3, 16, 16, generator=draw)
        return make_train_loader(Patches(image, (image[:, :1] > 0.5).float()), 12, 4, 0, self.trainer)

    def val_dataloader(self) -> DataLoader[Any]:
        image = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(8))
        return make_ordered_loader(TensorDataset(image, (image[:, :1] > 0.5).float()), 4, 0)


class PowerCut(pl.Callback):
    """Ends the process at the start of an epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.current_epoch == self.epoch:
            raise RuntimeError("power cut")


def train_run(
    folder: Path,
    *overrides: str,
    resume: Path | None = None,
    stop: int | None = None,
    monitor: str = "val/dice",
    sweep: Path | None = None,
    normalized: bool = False,
    **metadata: Any,
) -> tuple[Run, SegmentationTask]:
    """Train three epochs over tiny patches by the run's own trainer."""
    resumed = [f"resume={resume}"] if resume else []
    small = ("model.encoder_name=resnet18", "trainer=cpu", "trainer.max_epochs=3", "logger=csv")
    cfg = compose_settings(*small, f"run_dir={folder}", *overrides, *resumed)
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    pl.seed_everything(cfg.seed, verbose=False)
    network: Any = Tiny(normalized=normalized)
    task = SegmentationTask(network, BCELoss(), Optim(lr=0.05), METADATA.model_copy(update=metadata))
    experiment: Any = SimpleNamespace(monitor=monitor, mode="max")
    point = ResumePoint.read(resume) if resume else None
    run = Run(cfg, folder, resume, build_trainer(cfg, folder, experiment, Clock(time.monotonic()), point), sweep)
    if stop is not None:
        run.trainer.callbacks.append(PowerCut(stop))  # type: ignore[attr-defined]
        with pytest.raises(RuntimeError, match="power cut"):
            run.fit(task, Data(), {})
    else:
        run.fit(task, Data(), {})
    return run, task


class Named(PatchSet):
    """Patches of a split without a store, one of which may be broken."""

    def __init__(self) -> None:
        self.images = torch.rand(12, 3, 16, 16, generator=torch.Generator().manual_seed(7))
        self.broken: int | None = None

    def __len__(self) -> int:
        return 12

    def describe_patch(self, index: int) -> str:
        return f"slide at level-0 px ({index}, 0)"

    def __getitem__(self, index: int | Draw) -> tuple[Tensor, Tensor]:
        number = find_item(index)
        image = self.images[number]
        return image * (torch.nan if number == self.broken else 1), (image[:1] > 0.5).float()


@pytest.mark.parametrize("split", ["train", "val"])
def test_run_nan_loss_names_patch_and_keeps_checkpoints(tmp_path: Path, split: str) -> None:
    sets = {name: Named() for name in ("train", "val")}

    class Broken(Data):
        def train_dataloader(self) -> DataLoader[Any]:
            return make_train_loader(sets["train"], 12, 4, 0, self.trainer)

        def val_dataloader(self) -> DataLoader[Any]:
            return make_ordered_loader(sets["val"], 4, 0)

    class Break(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            sets[split].broken = 5 if trainer.current_epoch == 1 else None

    cfg = compose_settings("trainer=cpu", "trainer.max_epochs=3", "logger=csv", f"run_dir={tmp_path}")
    (tmp_path / "checkpoints").mkdir()
    pl.seed_everything(0, verbose=False)
    task = SegmentationTask(Tiny(), BCELoss(), Optim(lr=0.05), METADATA)  # type: ignore[arg-type]
    run = Run(
        cfg,
        tmp_path,
        None,
        build_trainer(cfg, tmp_path, SimpleNamespace(monitor="val/dice", mode="max"), Clock(time.monotonic())),
    )
    run.trainer.callbacks.append(Break())  # type: ignore[attr-defined]
    with pytest.raises(PandaError, match=r"loss is nan in epoch 1.*no number for: slide at level-0 px \(5, 0\)$"):
        run.fit(task, Broken(), {})
    for name in ("best", "last"):
        state = torch.load(tmp_path / "checkpoints" / f"{name}.ckpt", weights_only=True)
        assert state["epoch"] == 0
        assert all(bool(torch.isfinite(value).all()) for value in state["state_dict"].values())


def test_finite_check_reports_batch_when_next_is_added() -> None:
    check, good = FiniteCheck(0.1), torch.zeros(2, 1, 4, 4)
    bad = good.clone()
    bad[1, 0, 2, 2] = torch.inf
    check.add(torch.tensor(1.0), good, 0, list)
    check.add(torch.tensor(torch.nan), bad, 3, lambda: ["a", "b"])
    with pytest.raises(PandaError, match=r"loss is nan in epoch 3.*optim\.lr=0\.1.*no number for: b$"):
        check.add(torch.tensor(1.0), good, 4, list)
    check.settle()
    check.add(torch.tensor(torch.inf), good, 5, lambda: ["a", "b"])
    with pytest.raises(PandaError, match=r"loss is inf in epoch 5.*the batch was: a; b$"):
        check.settle()
    check.settle()


@pytest.mark.parametrize("fused", [(False, True), (True, False)])
def test_optimizer_state_of_fused_steps_resumes_without(fused: tuple[bool, bool]) -> None:
    """A run may begin on a GPU and be resumed on a CPU, and the other way round."""

    def step(optimizer: torch.optim.Optimizer, weight: torch.nn.Parameter, times: int) -> Tensor:
        for _ in range(times):
            optimizer.zero_grad()
            torch.autograd.backward((weight**2).sum())
            optimizer.step()
        return weight.detach()

    first = torch.nn.Parameter(torch.arange(1.0, 5.0))
    begun = torch.optim.AdamW([first], lr=0.1, fused=fused[0])
    step(begun, first, 3)
    second = torch.nn.Parameter(first.detach().clone())
    resumed = torch.optim.AdamW([second], lr=0.1, fused=fused[1])
    resumed.load_state_dict(copy.deepcopy(begun.state_dict()))
    torch.testing.assert_close(step(resumed, second, 3), step(begun, first, 3))


@pytest.mark.parametrize(
    ("cuda", "bf16", "given", "chosen"),
    [
        (True, True, {}, "bf16-mixed"),
        (True, False, {}, "32-true"),
        (False, True, {}, "32-true"),
        (True, True, {"accelerator": "cpu"}, "32-true"),
        (True, True, {"precision": "16-mixed"}, "16-mixed"),
    ],
)
def test_trainer_precision_auto_follows_device(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, bf16: bool, given: dict[str, Any], chosen: str
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda **_: bf16)
    assert (
        TrainerSettings.model_construct(**{"precision": "auto", "accelerator": "auto", **given}).machine_precision
        == chosen
    )


def test_build_trainer_auto_precision_on_cpu_is_fp32(tmp_path: Path) -> None:
    cfg = compose_settings("trainer=cpu", "trainer.max_epochs=3", "logger=csv", f"run_dir={tmp_path}")
    assert cfg.trainer.precision == "auto"
    trainer = build_trainer(cfg, tmp_path, SimpleNamespace(monitor="a", mode="max"), Clock(0.0))
    assert trainer.precision == "32-true"
    (tf32,) = (callback for callback in trainer.callbacks if isinstance(callback, Tf32))  # type: ignore[attr-defined]
    before = torch.get_float32_matmul_precision()
    tf32.setup(SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cuda"))), None, "fit")  # type: ignore[arg-type]
    assert torch.get_float32_matmul_precision() == "high"
    tf32.teardown(trainer, None, "fit")  # type: ignore[arg-type]
    assert torch.get_float32_matmul_precision() == before


class Memory(pl.Callback):
    """Notes the process's memory after each epoch."""

    def __init__(self) -> None:
        self.mib: list[float] = []

    def on_train_epoch_end(self, *_: Any) -> None:
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.mib.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)


def mib_after_epochs(folder: Path) -> list[float]:
    """Train twelve epochs; an epoch's logits are 24 MiB, so that a leak of them would be seen."""

    class Large(Data):
        def train_dataloader(self) -> DataLoader[Any]:
            image = torch.rand(24, 3, 512, 512, generator=torch.Generator().manual_seed(7))
            return make_train_loader(Patches(image, (image[:, :1] > 0.5).float()), 24, 4, 0, self.trainer)

    cfg = compose_settings(
        "trainer=cpu", "trainer.max_epochs=12", "task.patience=99", "logger=csv", f"run_dir={folder}"
    )
    (folder / "checkpoints").mkdir()
    task = SegmentationTask(Tiny(), BCELoss(), Optim(), METADATA)  # type: ignore[arg-type]
    run = Run(
        cfg,
        folder,
        None,
        build_trainer(cfg, folder, SimpleNamespace(monitor="val/dice", mode="max"), Clock(time.monotonic())),
    )
    memory = Memory()
    run.trainer.callbacks.append(memory)  # type: ignore[attr-defined]
    run.fit(task, Large(), {})
    return memory.mib


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="the system does not tell a process's memory so")
def test_run_memory_does_not_grow_over_epochs(tmp_path: Path) -> None:
    with ProcessPoolExecutor(1, get_context("spawn")) as alone:  # what other tests left would blur it
        mib = alone.submit(mib_after_epochs, tmp_path).result()
    assert len(mib) == 12
    # Logits that are kept come to 24 MiB an epoch; what the allocator gives back now and then is 20 or so in all.
    assert median(mib[-4:]) < median(mib[2:6]) + 40, mib


def test_epoch_lines_have_figures_of_that_epoch_only(panda_log: pytest.LogCaptureFixture) -> None:
    figures = {"train/loss_step": torch.tensor(9.0), "train/dice": torch.tensor(0.5), "val/dice": torch.tensor(0.25)}
    trainer: Any = SimpleNamespace(
        is_global_zero=True,
        current_epoch=0,
        max_epochs=3,
        callback_metrics={"train/loss": torch.tensor(1.5)},
        progress_bar_metrics=figures,
    )
    lines, module = EpochLines(), pl.LightningModule()
    with panda_log.at_level("INFO"):
        lines.on_train_epoch_start(trainer, module)
        lines.on_validation_epoch_end(trainer, module)
        trainer.current_epoch = 1
        lines.on_train_epoch_start(trainer, module)
        trainer.current_epoch = 2
        lines.on_train_end(trainer, module)
    assert panda_log.messages == [
        "epoch 1 of 3: train/dice 0.5, train/loss 1.5, val/dice 0.25, 0 s",
        "epoch 2 of 3: train/dice 0.5, train/loss 1.5, 0 s",
    ]


def test_segmentation_task_memory_layout_changes_no_weight(tmp_path: Path) -> None:
    """But for the order in which sums are taken; a checkpoint is the same either way."""
    states = []
    for channels_last in (False, True):
        torch.manual_seed(0)
        task = SegmentationTask(
            Segmenter("Unet", "resnet18", decoder_channels=[16, 8, 8, 8, 8]),
            BCELoss(),
            Optim(name="sgd", lr=0.01),
            METADATA,
            channels_last=channels_last,
        )
        trainer = pl.Trainer(
            accelerator="cpu",
            max_steps=2,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        trainer.fit(task, Data())
        states.append(task.state_dict())
    assert list(states[0]) == list(states[1])
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_segmentation_task_compiled_keeps_weight_names() -> None:
    results = []
    for compiled in (False, True):
        torch.manual_seed(0)
        network = Segmenter("Unet", "resnet18", decoder_channels=[16, 8, 8, 8, 8])
        task = SegmentationTask(network, BCELoss(), Optim(), METADATA, compiled=compiled)
        task.setup("fit")
        assert (network._compiled_call_impl is not None) == compiled
        image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))
        logits = task(image)
        logits.square().mean().backward()
        results.append((logits.detach(), next(network.parameters()).grad, list(task.state_dict())))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-2, atol=1e-4)
    assert results[0][2] == results[1][2]


def weights(folder: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return state


@pytest.fixture
def interrupted_run(tmp_path: Path) -> Path:
    train_run(tmp_path / "interrupted", stop=1)
    return tmp_path / "interrupted"


def test_run_resumed_ends_with_weights_of_uninterrupted(tmp_path: Path, interrupted_run: Path) -> None:
    train_run(tmp_path / "whole")
    train_run(interrupted_run, resume=interrupted_run / "checkpoints" / "last.ckpt")
    whole, resumed = weights(tmp_path / "whole"), weights(interrupted_run)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_run_with_ema_keeps_and_validates_the_recursion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    averages: list[dict[str, Tensor]] = []
    states: list[dict[str, Tensor]] = []
    validated: list[dict[str, Tensor]] = []
    log_validation = SegmentationTask.on_validation_epoch_end

    def add_validation(task: SegmentationTask) -> None:
        validated.append({name: value.clone() for name, value in task.state_dict().items()})
        log_validation(task)

    def add_step(task: SegmentationTask, *_: Any) -> None:
        state = {name: value.clone() for name, value in task.state_dict().items()}
        decay = min(0.4, (1 + len(states)) / (10 + len(states))) if states else 0.0
        before = averages[-1] if averages else state
        averages.append(
            {
                name: decay * before[name] + (1 - decay) * value if value.is_floating_point() else value
                for name, value in state.items()
            }
        )
        states.append(state)

    monkeypatch.setattr(SegmentationTask, "on_train_batch_end", add_step)
    monkeypatch.setattr(SegmentationTask, "on_validation_epoch_end", add_validation)
    run, task = train_run(tmp_path, "trainer.ema=0.4", normalized=True)
    assert len(states) == 9
    last, best = (torch.load(path, weights_only=True) for path in (run.last, run.best))
    torch.testing.assert_close(last["current_model_state"], states[-1], rtol=0, atol=0)
    for stored, step in (
        (last["state_dict"], 8),
        (dict(task.state_dict()), 8),
        (validated[1], 5),
        (best["state_dict"], best["global_step"] - 1),
    ):
        torch.testing.assert_close(dict(stored), averages[step])
    assert not torch.equal(states[-1]["network.3.running_mean"], averages[-1]["network.3.running_mean"])
    network = Tiny(normalized=True).eval()
    network.load_state_dict(
        {name.removeprefix("network."): value for name, value in averages[best["global_step"] - 1].items()}
    )
    ((image, mask),) = Data().val_dataloader()
    called = network(image).sigmoid() > 0.5
    dice = 2 * (called & (mask > 0.5)).sum() / (called.sum() + mask.sum())
    (score,) = {
        float(s["best_model_score"]) for s in best["callbacks"].values() if s.get("best_model_score") is not None
    }
    assert float(dice) == pytest.approx(score, abs=1e-6)


def test_run_moved_folder_keeps_best_epoch(tmp_path: Path, interrupted_run: Path) -> None:
    moved = interrupted_run.rename(tmp_path / "moved")
    last = moved / "checkpoints" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    (key,) = [key for key in content["callbacks"] if "'monitor': 'val/dice'" in key and "Checkpoint" in key]
    state = content["callbacks"][key]
    best = {path: torch.tensor(2.0) for path in state["best_k_models"]}  # no later epoch comes near
    content["callbacks"][key] = state | {"best_k_models": best, "best_model_score": torch.tensor(2.0)}
    torch.save(content, last)
    before = (moved / "checkpoints" / "best.ckpt").read_bytes()
    run, _ = train_run(moved, resume=last)
    assert run.best.read_bytes() == before
    assert torch.load(last, weights_only=True)["epoch"] == 2
    assert sorted(path.name for path in run.best.parent.iterdir()) == ["best.ckpt", "last.ckpt"]


@pytest.mark.parametrize(("patience", "epochs"), [(2, 3), (4, 5)])
def test_run_stopped_early_resumes_only_with_more_patience(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: int, epochs: int
) -> None:
    def log_constant(task: SegmentationTask) -> None:
        task.log("val/constant", 1.0)

    monkeypatch.setattr(SegmentationTask, "on_validation_epoch_end", log_constant)
    last = tmp_path / "checkpoints" / "last.ckpt"
    train_run(tmp_path, "trainer.max_epochs=9", "task.patience=2", monitor="val/constant")
    assert torch.load(last, weights_only=True)["epoch"] == 2
    train_run(tmp_path, "trainer.max_epochs=9", f"task.patience={patience}", monitor="val/constant", resume=last)
    assert torch.load(last, weights_only=True)["epoch"] == epochs - 1


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"train_slides": ("a", "d")}, "train_slides: 1 gone, 1 new, for example b"),
        ({"val_slides": ()}, "val_slides: 1 gone, 0 new"),
        ({"patch_size": 32}, "patch_size was 16 and is 32"),
    ],
)
def test_check_same_other_data_raises(changed: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        check_same(Path("last.ckpt"), METADATA, METADATA.model_copy(update=changed))


def test_check_same_other_network_options_raise() -> None:
    """The file of an encoder may have changed; a new option of a newer version has its default."""
    before = METADATA.model_copy(update={"network": {"encoder": {"mean": [0.5, 0.5, 0.5]}}})
    for mean, named in (
        ([0.5, 0.5, 0.5], None),
        ([0.7, 0.6, 0.7], r"model.encoder.mean was \[0.5, .* and is \[0.7, 0.6, 0.7"),
    ):
        now = METADATA.model_copy(update={"network": {"encoder": {"mean": mean}, "new": 1}})
        with pytest.raises(CheckpointError, match=named) if named else nullcontext():
            check_same(Path("last.ckpt"), before, now)


def test_check_same_other_engine_precision_passes() -> None:
    check_same(Path("last.ckpt"), METADATA, METADATA.model_copy(update={"precision": "bf16", "tta": "d4"}))


@pytest.mark.parametrize(
    "text", ["- a\n", "a: [", "data: {_target_: panda.data.datamodule.PatchDataModule, root: data}\n"]
)
def test_load_resumed_config_damaged_file_raises(tmp_path: Path, text: str) -> None:
    (tmp_path / "checkpoints").mkdir()
    for name in ("last.ckpt", "best.ckpt"):
        (tmp_path / "checkpoints" / name).touch()
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.yaml .*start a new run"):
        load_resumed_config(OmegaConf.create({"debug": False}), tmp_path / "checkpoints" / "last.ckpt")


@pytest.mark.parametrize("task", ["segmentation", "grading"])
def test_load_resumed_config_grading_keeps_source_of_bags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    (tmp_path / "checkpoints").mkdir()
    for name in ("last.ckpt", "best.ckpt"):
        (tmp_path / "checkpoints" / name).touch()
    (tmp_path / "config.yaml").write_text(f"task: {{name: {task}}}\nengine: {{precision: fp32, batch_size: 8}}\n")
    monkeypatch.setattr("panda.app.resume.list_overrides", lambda: ["engine.batch_size=2", "engine.precision=bf16"])
    resume = tmp_path / "checkpoints" / "last.ckpt"
    typed = OmegaConf.create({"debug": False, "engine": {"batch_size": 2, "precision": "bf16"}})
    if task == "grading":
        with pytest.raises(ConfigError, match=r"engine\.precision=bf16: a resumed grading keeps the tiles"):
            load_resumed_config(typed, resume)
        monkeypatch.setattr("panda.app.resume.list_overrides", lambda: ["engine.batch_size=2"])
    assert load_resumed_config(typed, resume).engine.batch_size == 2


def test_bag_fingerprint_depends_on_tiles_and_features(tmp_path: Path) -> None:
    experiment: Any = object.__new__(GradingExperiment)
    experiment.settings, experiment.target = GradingSettings(), ISUP
    (tmp_path / "s.tiff").touch()
    record = SlideRecord("s", "radboud", 3, "4+3", tmp_path / "s.tiff", None, "s")
    tiles, features = np.zeros((2, 2), np.int64), tmp_path / "features"
    items = [
        BagItem(record, tiles),
        BagItem(record, tiles + 1),
        BagItem(record, tiles, None, features / "s-fp32.npz"),
        BagItem(record, tiles, None, features / "s-bf16.npz"),
    ]
    assert len({str(experiment._identify_bag(item)) for item in items}) == len(items)
    moved = BagItem(record, tiles, None, tmp_path / "s-fp32.npz")
    assert experiment._identify_bag(moved) == experiment._identify_bag(items[2])


@pytest.mark.parametrize(
    ("summary", "figure"),
    [
        ({"task": "segmentation", "val": {"dice": 0.5, "dice_mean_slide": 0.4}}, 0.5),
        ({"task": "segmentation", "val": {"dice": 0.5, "of": "patches"}}, 0.5),
        ({"task": "segmentation", "val": {"dice": None, "dice_mean_slide": None}}, float("nan")),
        ({"task": "grading", "target": "isup", "val": {"qwk": 0.3, "auroc": 0.9}}, 0.3),
        ({"task": "grading", "target": "cancer", "val": {"qwk": 0.3, "auroc": 0.9}}, 0.9),
    ],
)
def test_find_objective_takes_validation_figure(summary: dict[str, Any], figure: float) -> None:
    keys = ("dice", "dice_mean_slide") if summary["task"] == "segmentation" else ("qwk", "auroc")
    summary = summary | {"test": dict.fromkeys(keys, 1.0)}
    assert find_objective(make_summary(summary)) == pytest.approx(figure, nan_ok=True)


def test_leak_notes_name_slides_known_to_segmentation() -> None:
    items: Any = {
        name: [SimpleNamespace(record=SimpleNamespace(slide_id=slide, group=slide)) for slide in slides]
        for name, slides in {"train": "ab", "val": "cd", "test": "efg"}.items()
    }

    def known(train: str, val: str) -> SegmentationMetadata:
        return METADATA.model_copy(update={"train_slides": tuple(train), "val_slides": tuple(val)})

    (in_sample,) = note_leaks(items, known("ax", "cd"))
    assert "trained on 1 of the 2 training slides or on others of their groups: their tiles are in" in in_sample
    assert note_leaks(items, known("x", "cd")) == []
    (trained_on, chosen_on) = note_leaks(items, known("c", "fg"))
    assert "was trained on 1 validation slides" in trained_on
    assert "chose its epoch and threshold on 2 test slides" in chosen_on


def test_freeze_operating_point_failed_validation_slides_leave_no_canvas(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def predict(slide: None, tissue: None, path: Path, on_tiles: object) -> None:
        path.mkdir(parents=True)
        raise SlideError("cannot be read")

    data: Any = SimpleNamespace(split="holdout", slide_options=SimpleNamespace(open=lambda *_: nullcontext()))
    monkeypatch.setattr("panda.app.operating_point.open_label", lambda *_: nullcontext())
    monkeypatch.setattr("panda.inference.slide_loop.find_tissue", lambda _: None)
    monkeypatch.setattr("panda.app.operating_point.fingerprint_score", lambda *_: "")
    run: Any = SimpleNamespace(folder=tmp_path, failures=[])
    record = SlideRecord("a", "radboud", 0, "0+0", tmp_path, None, "a")
    predictor: Any = SimpleNamespace(
        predict=predict, threshold=None, classes=BINARY, metadata=SimpleNamespace(label_maps={})
    )
    with pytest.raises(PandaError, match="no validation slide could be scored: cannot be read"):
        freeze_operating_point(run, data, predictor, [record], GleasonRuleSettings())
    assert [failure.slide_id for failure in run.failures] == ["a"]
    assert not list(tmp_path.iterdir())


def test_grade_holds_no_tiles() -> None:
    tile = AttendedTile(x=0, y=0, attention=1.0, contribution=1.0)
    record = GradeRecord(target=ISUP, predicted=0, probabilities=(1.0,), tiles=(tile,) * 3)
    assert record.drop_tiles() == GradeRecord(target=ISUP, predicted=0, probabilities=(1.0,))
