"""The patches of a folder as a Lightning data module."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from panda.data.augment import Augmentation
from panda.data.datamodule import DataSettings, PatchDataModule
from panda.data.splits import SPLITS
from panda.data.summary import PatchDataSummary
from panda.errors import ConfigError, ManifestError
from panda.models.losses import BCELoss
from panda.synthetic.dataset import SyntheticSpec
from panda.tasks.optim import Optim
from panda.tasks.segmentation import SegmentationTask
from tests.panda_folder import make_folder, slide_name
from tests.test_train import METADATA

OPTIONS: dict[str, Any] = {"patch_size": 64, "batch_size": 8, "num_workers": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "small"
    make_folder(root, 8)
    return root


def make_module(folder: Path, **change: Any) -> PatchDataModule:
    settings = {**OPTIONS, "store_root": folder.parent / "patches", **change}
    return PatchDataModule(DataSettings(root=folder, **settings))


def prepare_module(folder: Path, **change: Any) -> PatchDataModule:
    module = make_module(folder, **change)
    module.prepare_data()
    module.setup("fit")
    return module


def test_data_settings_all_faults_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        DataSettings(
            root=tmp_path,
            level=None,
            patch_size=0,
            stride=0,
            min_tissue=2.0,
            batch_size=0,
            num_workers=-1,
            seed=-1,
            val_fraction=0.7,
            test_fraction=0.5,
            slide_id="a",
            provider="nobody",
            exclude=("near_duplicate",),
            extract_workers=0,
        )
    assert len(caught.value.faults) == 13
    text = str(caught.value)
    for name in ("level", "stride", "val_fraction + data.test_fraction is 1.2", "slide_id", "extract_workers"):
        assert f"data.{name}" in text
    assert "data.exclude has near_duplicate: give data.findings=audit/findings.csv" in text
    with pytest.raises(ConfigError, match=r"data\.groups is set"):
        DataSettings(root=tmp_path, split="patches", groups=Path("patients.csv"))


def test_datamodule_overlapping_patches_of_one_slide_raise(folder: Path) -> None:
    for change, named in (
        ({"stride": 32}, r"data\.stride=32: with data\.split=patches"),
        ({"edge": "shift"}, r"data\.edge=shift: with"),
    ):
        with pytest.raises(ConfigError, match=named):
            make_module(folder, split="patches", **change)
        make_module(folder, **change)


@pytest.mark.parametrize("value", [0.0, 0.04, 21.0])
def test_datamodule_invalid_mpp_override_raises(folder: Path, value: float) -> None:
    with pytest.raises(
        ConfigError, match=rf"data\.mpp_override={value} must be from 0.05 to 20.0 or null: µm per level-0 px"
    ):
        make_module(folder, mpp_override=value)


@pytest.mark.parametrize("workers", [0, 2])
def test_datamodule_loaders_yield_splits(folder: Path, workers: int) -> None:
    module = prepare_module(folder, num_workers=workers, augment=Augmentation(name="light"))
    sides = {name: {record.slide_id for record in records} for name, records in module.list_splits().items()}
    assert sum(map(len, sides.values())) == 8
    loaders = {"train": module.train_dataloader(), "val": module.val_dataloader(), "test": module.test_dataloader()}
    for name in SPLITS:
        loader = loaders[name]
        batches = list(loader)
        assert batches[0][0].pixels.dtype == batches[0][1].dtype == torch.uint8
        image, mask = module.on_after_batch_transfer(batches[0], 0)
        assert image.shape == (8, 3, 64, 64)
        assert mask.shape == (8, 1, 64, 64)
        assert image.dtype == mask.dtype == torch.float32
        patches = module.get_patches(name)
        assert set(patches.slide_ids) == sides[name]
        left = len(patches) - sum(len(batch[0]) for batch in batches)
        assert left in ((0, 1) if name == "train" else (0,))
    assert module.failures == []


def test_datamodule_spawned_worker_yields_the_same(folder: Path) -> None:
    change = {"augment": Augmentation(name="light"), "seed": 3}
    own, spawned = (prepare_module(folder, num_workers=workers, **change).train_dataloader() for workers in (0, 1))
    spawned.multiprocessing_context = "spawn"  # as on Windows and macOS
    for (image, mask), (other_image, other_mask) in zip(own, spawned, strict=True):
        assert torch.equal(image.pixels, other_image.pixels)
        assert torch.equal(mask, other_mask)


def test_datamodule_summarize_counts_slides_and_patches(folder: Path) -> None:
    module = prepare_module(folder)
    found = module.summarize()
    assert PatchDataSummary.model_validate_json(found.model_dump_json()) == found
    assert sum(found.slides.values()) == 8
    assert [*found.patches] == ["train", "val", "test"]
    assert found.patches["train"] == len(module.get_patches("train"))
    assert 0 < sum(found.tumor_patches.values()) < sum(found.patches.values())
    assert found.split == "holdout"
    assert found.seed == 0
    assert "Patients and near-duplicates are unknown" in found.groups
    assert (found.left_out, found.failed) == ({}, [])
    assert found.store == str(module.store_folder)
    assert module.list_train_mpp() == pytest.approx([4.0] * 4)


def test_datamodule_store_is_read_by_other_process(folder: Path) -> None:
    first = prepare_module(folder)
    other = make_module(folder)
    other.setup("fit")
    assert other.summarize() == first.summarize()
    fresh = make_module(folder, store_root=folder.parent / "nowhere")
    with pytest.raises(ManifestError, match=r"all slides of train, val, test failed .*has no patches"):
        fresh.setup("fit")


def test_datamodule_split_patches_uses_one_slide(folder: Path) -> None:
    module = prepare_module(folder, split="patches", slide_id=slide_name(1), val_fraction=0.25)
    assert [*module.list_splits()] == ["train", "val"]
    found = module.summarize()
    assert found.slides == {"train": 1, "val": 1}
    assert found.left_out == {"other_slide": 7}
    assert "do not measure generalization" in found.groups
    with pytest.raises(ConfigError, match="there is no test split"):
        module.test_dataloader()
    anyone = make_module(folder, split="patches", provider="karolinska")
    assert [record.slide_id for record in anyone.select().used] == [slide_name(1)]
    with pytest.raises(ManifestError, match=r"of 8 slides in 8 groups 0 are used, left out are other_slide: 8"):
        make_module(folder, split="patches", slide_id="unknown").select()


def test_datamodule_provider_groups_and_no_test_split(folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "patients.csv"
    table.write_text("image_id,patient\n" + "".join(f"{slide_name(number)},{number // 4}\n" for number in range(8)))
    module = prepare_module(folder, provider="radboud", groups=table, test_fraction=0.0)
    found = module.summarize()
    assert found.left_out == {"other_provider": 4}
    assert found.slides == {"train": 2, "val": 2}
    assert found.groups.startswith("By patient: 2 patients")
    groups = {name: {record.group for record in records} for name, records in module.list_splits().items()}
    assert not groups["train"] & groups["val"]
    with pytest.raises(ManifestError, match="2 groups cannot make train, val, test"):
        make_module(folder, provider="radboud", groups=table).list_splits()


def test_datamodule_missing_files_are_failures(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "small"
    shutil.copytree(folder, copy)
    (copy / "train_label_masks" / f"{slide_name(2)}_mask.tiff").unlink()
    (copy / "train_images" / f"{slide_name(3)}.tiff").unlink()
    module = prepare_module(copy, test_fraction=0.0)
    assert [(failure.slide_id, failure.stage) for failure in module.failures] == [
        (slide_name(2), "mask"),
        (slide_name(3), "slide"),
    ]
    assert sum(module.summarize().slides.values()) == 6
    assert module.summarize().failed[0]["error"] == "MaskError"
    module = prepare_module(copy, test_fraction=0.0, exclude=["missing_mask", "missing_slide"])
    assert module.select().exclusion_counts == {"missing_mask": 1, "missing_slide": 1}
    assert module.failures == []
    with pytest.raises(ManifestError, match="put the mask at"):
        prepare_module(copy, split="patches", slide_id=slide_name(2))


def test_datamodule_embedded_slides_are_drawn_on_first_use(tmp_path: Path) -> None:
    spec = SyntheticSpec(slides=4, width=512, height=384)
    options = {**OPTIONS, "store_root": tmp_path / "patches", "draw": spec, "test_fraction": 0.0}
    module = PatchDataModule(DataSettings(root=tmp_path / "drawn", **options))
    assert not (tmp_path / "drawn").exists()
    module.prepare_data()
    module.setup()
    assert sum(module.summarize().slides.values()) == 4


class _Net(pl.LightningModule):
    """Keeps what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: dict[int, list[float]] = {}

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Keep the batch's sum."""
        self.seen.setdefault(self.current_epoch, []).append(float(batch[0].sum()))
        return (self.weight * batch[0].mean()).sum()

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> None:
        """Nothing to do."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Any."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


def _fit(task: pl.LightningModule, module: PatchDataModule, path: Path, epochs: int, ckpt: Path | None = None) -> None:
    """Train, and keep the checkpoint."""
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        limit_val_batches=0,
    )
    trainer.fit(task, module, ckpt_path=ckpt, weights_only=True)
    trainer.save_checkpoint(path, weights_only=False)


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # Lightning 2.6 on torch 2.15
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*The number of training batches")
def test_datamodule_resumed_run_sees_same_batches(folder: Path, tmp_path: Path) -> None:
    def fit(epochs: int, path: Path, ckpt: Path | None = None) -> _Net:
        pl.seed_everything(11, verbose=False)
        net = _Net()
        _fit(net, make_module(folder, augment=Augmentation(name="light"), test_fraction=0.0), path, epochs, ckpt)
        return net

    whole = fit(3, tmp_path / "whole.ckpt")
    assert whole.seen[0] != whole.seen[1]
    fit(1, tmp_path / "part.ckpt")
    resumed = fit(3, tmp_path / "rest.ckpt", tmp_path / "part.ckpt")
    assert resumed.seen == {epoch: whole.seen[epoch] for epoch in (1, 2)}


class _Small(torch.nn.Conv2d):
    def __init__(self) -> None:
        super().__init__(3, 1, 3, padding=1)

    def plain(self) -> dict[str, Any]:
        return {}


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # Lightning 2.6 on torch 2.15
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*The number of training batches")
def test_datamodule_resumed_run_draws_same_hard_patches(folder: Path, tmp_path: Path) -> None:
    def fit(epochs: int, path: Path, ckpt: Path | None = None) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        pl.seed_everything(11, verbose=False)
        module = make_module(folder, sampler="hard", test_fraction=0.0)
        task = SegmentationTask(_Small(), BCELoss(), Optim(lr=0.05, schedule="none"), METADATA)  # type: ignore[arg-type]
        _fit(task, module, path, epochs, ckpt)
        return task.state_dict(), module.state_dict()["losses"].clone()

    weights, losses = fit(3, tmp_path / "whole.ckpt")
    assert not losses.isnan().all()
    fit(1, tmp_path / "part.ckpt")
    resumed, same = fit(3, tmp_path / "rest.ckpt", tmp_path / "part.ckpt")
    torch.testing.assert_close(same, losses, rtol=0, atol=0, equal_nan=True)
    for key, value in weights.items():
        assert torch.equal(resumed[key], value)


def test_datamodule_balanced_sampler_meets_tumor_share(folder: Path) -> None:
    module = prepare_module(folder, sampler="balanced", tumor_share=0.75, test_fraction=0.0)
    loader = module.train_dataloader()
    tumor = module.get_patches("train").rows.fractions[:, 1] > 0
    drawn = [draw.item for draw in loader.sampler]
    assert tumor[drawn].mean() == pytest.approx(0.75, abs=0.01)
