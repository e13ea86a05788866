"""Every wrong key is named, alone and beside others, whichever part of the program finds it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.checkpoints import segmentation_checkpoint
from tests.integration.entry_points import run_entry_point
from tests.test_config_check import remember_networks

__all__ = ["remember_networks"]  # is a fixture here too

COMMON = {
    "modle=unet": "modle=unet: there is no such key (did you mean model?)",
    "loss=none": "loss=none: there is no such choice",
    "name=a=b": "name=a=b: the value has characters with a special meaning; quote it: 'name=\"a=b\"'",
    "+trainer.callbacks=[]": "trainer.callbacks=[]: there is no such key",
    "+model.dropuot=1": "model.dropuot=1: panda.models",
    "data.root=/nonexistent": "data.root=/nonexistent has no train.csv",
    "data.patch_size=0": "data.patch_size=0 must be from 1 to 8192",
    "data.exclude=[nothing]": "data.exclude has nothing: known are",
    "data.groups=none.csv": "data.groups=none.csv is no file",
    "data.mpp_override=99": "data.mpp_override=99 must be from 0.05 to 20.0 or null",
    "optim.lr=fast": "optim.lr=fast must be a number",
    "seed=${nothing}": "seed: Interpolation key 'nothing' not found; correct the ${…} in it, or escape it",
    "resume=${nothing}": "resume: Interpolation key 'nothing' not found; correct the ${…} in it, or escape it",
    "trainer.max_epochs=0": "trainer.max_epochs=0 must be at least 1",
    "trainer.devices=3": "trainer.devices=3 needs trainer=ddp",
    "engine.batch_size=true": "engine.batch_size=true must be a whole number",
    "quantify.connectivity=5": "quantify.connectivity=5 must be 4 or 8",
    "logger.mode=loud": "logger.mode=loud must be offline, online or disabled",
    "augment.name=heavy": "augment.name=heavy must be",
    "colour_map=red": "colour_map=red must be jet or viridis",
    "test_slides=perhaps": "test_slides=perhaps must be true or false",
    "~debug": "debug is not given",
    "task.patience={_target_: os.getcwd}": "task.patience._target_=os.getcwd is not allowed",
}
FAULTS = {
    "segmentation": (
        "train",
        ("data=panda", "data.root=."),
        COMMON
        | {
            "model.encoder_name=nope": "model.encoder_name=nope: there is no such encoder",
            "task.classes=gleeson": "task.classes=gleeson: there is no such set (did you mean gleason?)",
            "+model.channels=3": "model.channels=3 follows from task.classes",
            "task.views_every=-1": "task.views_every=-1 must be at least 0",
            "cost_ratio=5": "cost_ratio is not used with criterion=dice_pooled",
            "name=${nothing}": "name: Interpolation key 'nothing' not found",
            "segmentation_checkpoint=x": "segmentation_checkpoint is for task=grading",
            "threshold=0.1234": "threshold=0.1234 must be auto or a probability",
            "tiles.k=4": "tiles.k=4 needs task=grading: give both",
        },
    ),
    "grading": (
        "train",
        ("data=panda", "data.root=.", "task=grading", "segmentation_checkpoint=best.ckpt", "tiles.tile_size=64"),
        COMMON
        | {
            "task.views_every=0": "task.views_every=0: there is no such key",
            "model.encoder=nope": "model.encoder=nope: timm has no such model",
            "model.encoder_name=nope": "model.encoder_name=nope: there is no such key",
            "threshold=0.3": "threshold=0.3 is not used with task=grading",
            "segmentation_checkpoint=none.ckpt": "checkpoint none.ckpt does not exist",
            "criterion=best": "criterion=best must be dice_pooled",
            "tiles.k=0": "tiles.k=0 must be at least 1",
            "data.batch_size=4": "data.batch_size=4",
            "task.target=age": "task.target=age: give task.kind=classes, ordinal, regression or survival",
        },
    ),
    "infer": (
        "infer",
        ("checkpoint=best.ckpt", "slides=a.tiff"),
        {
            "provder=x": "provder=x: there is no such key (did you mean provider",
            "engine=far": "engine=far: there is no such choice",
            "checkpoint=none.ckpt": "checkpoint=none.ckpt: checkpoint none.ckpt does not exist",
            "grading_checkpoint=best.ckpt": "grading_checkpoint=best.ckpt: ",
            "slides=none/*.tiff": "slides=none/*.tiff: no slide found",
            "labels=/nonexistent": "labels=/nonexistent: there is no /nonexistent/train.csv",
            "output=2024": "output=2024 must be text: quote it, 'output=\"2024\"'",
            "threshold=1": "threshold=1 must be checkpoint or a probability between 0 and 1",
            "mpp_override=0": "mpp_override=0 must be from 0.05 to 20.0 or null",
            "reader=magic": "reader=magic must be auto, openslide or fast",
            "colour_map=${nothing}": "colour_map: Interpolation key 'nothing' not found",
            "engine.device={_target_: os.getcwd}": "engine.device._target_=os.getcwd is not allowed",
            "engine.tta=all": "engine.tta=all must be none, flip or d4",
            "quantify.min_region_px=-1": "quantify.min_region_px=-1 must be at least 0",
            "debug=1": "debug=1 must be true or false",
        },
    ),
    "features": (
        "features",
        ("encoder=test_resnet", "encoder_weights=null", "slides=a.tiff"),
        {
            "encodr=x": "encodr=x: there is no such key (did you mean encoder",
            "encoder=uni3": "encoder=uni3: timm has no such model",
            "encoder_weights=none.pt": "encoder_weights=none.pt: no such file",
            "slides=none/*.tiff": "slides=none/*.tiff: no slide found",
            "output=2024": "output=2024 must be text: quote it, 'output=\"2024\"'",
            "tile_size=0": "tile_size=0 must be from 1 to 8192 or null",
            "mpp=99": "mpp=99 must be from 0.05 to 20.0 or null",
            "overlap=1": "overlap=1 must be from 0 to 0.9",
            "min_tissue=2": "min_tissue=2 must be from 0 to 1",
            "format=tar": "format=tar must be panda, trident, stamp, clam or slideflow",
            "normalize=reinhard": "normalize=reinhard must be macenko or null",
            "mpp_override=0": "mpp_override=0 must be from 0.05 to 20.0 or null",
            "allow_unknown_mpp=true": "allow_unknown_mpp=true: a slide of unknown µm/px",
            "reader=magic": "reader=magic must be auto, openslide or fast",
            "engine.tta=flip": "engine.tta=flip is not used with features.py",
            "engine.batch_size=0": "engine.batch_size=0 must be at least 1",
            "pictures=1": "pictures=1 must be true or false",
        },
    ),
    "audit": (
        "audit",
        ("data=panda", "data.root=."),
        {
            "datta=x": "datta=x: there is no such key (did you mean data?)",
            "audit.wokers=3": "audit.wokers=3: there is no such key (did you mean workers?)",
            "data.root=/nonexistent": "data.root=/nonexistent has no train.csv",
            "data.reader=magic": "data.reader=magic must be auto, openslide or fast",
            "data.level=1": "data.level=1",
            "data.augment={_target_: os.getcwd}": "data.augment._target_=os.getcwd is not allowed",
            "audit.workers={_target_: os.getcwd}": "audit.workers._target_=os.getcwd is not allowed",
            "audit.slides=often": "audit.slides=often must be true or false",
            "audit.output=x": "audit.output=x: there is no such key (did you mean output?)",
            "output=": "output='' must be text that is not empty",
            "debug=1": "debug=1 must be true or false",
        },
    ),
}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Return a folder with the files that the commands name."""
    segmentation_checkpoint(tmp_path / "best.ckpt")
    (tmp_path / "a.tiff").touch()
    (tmp_path / "train.csv").write_text("image_id,data_provider,isup_grade,gleason_score\n")
    return tmp_path


def find_unnamed(home: Path, job: str, overrides: list[str]) -> list[str]:
    """Return the wrong overrides that the one message of a command does not name."""
    entry_point, right, faults = FAULTS[job]
    before = sorted(home.rglob("*"))
    done = run_entry_point(entry_point, home, *right, *overrides)
    assert done.returncode == 1
    assert done.stderr.startswith("ConfigError: ")
    assert done.stderr.count("ConfigError") == 1
    assert "Traceback" not in done.stderr
    assert "the arguments were" not in done.stderr
    assert sorted(home.rglob("*")) == before
    return [override for override in overrides if faults[override] not in done.stderr]


@pytest.mark.parametrize(("job", "override"), [(job, override) for job in FAULTS for override in FAULTS[job][2]])
def test_entry_point_wrong_key_is_named(home: Path, job: str, override: str) -> None:
    assert find_unnamed(home, job, [override]) == []


@pytest.mark.parametrize("job", FAULTS)
@pytest.mark.parametrize("seed", range(4))
def test_entry_point_wrong_keys_are_named_together(home: Path, job: str, seed: int) -> None:
    by_key = {override.partition("=")[0]: override for override in FAULTS[job][2]}
    wrong = sorted(by_key.values())
    chosen = wrong if seed == 0 else random.Random(seed).sample(wrong, len(wrong) // 2)
    assert find_unnamed(home, job, chosen) == []
