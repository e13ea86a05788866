"""A checkpoint is read back as it was written, and anything else is refused by name."""

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from panda import files
from panda.errors import CheckpointError
from panda.tasks.calibration import Temperature, fit_temperature
from panda.tasks.checkpoint import STATE_HASH, AtomicCheckpointIO, hash_state, read_checkpoint, update_metadata
from panda.tasks.metadata import GradingMetadata, SegmentationMetadata, TrainedResolution
from panda.tasks.threshold import ThresholdChoice, search_threshold
from panda.wsi.classes import BINARY, find_classes
from panda.wsi.label_maps import LabelMap, find_label_map
from panda.wsi.slide import ResolutionRequest
from tests.checkpoints import segmentation_checkpoint

DATE = "2026-01-01T00:00:00Z"

RESOLUTION = {"level": 1, "mpp": None, "train_mpp": [1.9, 2.0, 2.1]}
DATA: dict[str, Any] = {
    "network": {"a": 1},
    "resolution": RESOLUTION,
    "patch_size": 64,
    "overlap": 0.5,
    "label_maps": {"karolinska": find_label_map("karolinska").model_dump(mode="json")},
    "threshold": {
        "value": 0.4,
        "criterion": "dice_pooled",
        "score": None,
        "chosen_on": "here",
        "date": "2026-01-01T00:00:00Z",
    },
    "precision": "fp32",
    "train_slides": ["a"],
    "val_slides": [],
}


def write(path: Path, **changes: Any) -> Path:
    entry = SegmentationMetadata.model_validate(DATA).to_entry() | changes
    torch.save({"state_dict": {"network.w": torch.ones(3), "loss.w": torch.ones(1)}, "panda": entry}, path)
    return path


def test_read_checkpoint_returns_weights_and_metadata(tmp_path: Path) -> None:
    found = read_checkpoint(write(tmp_path / "a.ckpt"), SegmentationMetadata)
    assert set(found.weights) == {"w"}
    assert found.metadata == SegmentationMetadata.model_validate(DATA)


def test_checkpoint_fingerprint_ignores_threshold(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ckpt")
    before = read_checkpoint(path, SegmentationMetadata).fingerprint
    changed = ThresholdChoice.model_validate(DATA["threshold"] | {"value": 0.3})
    update_metadata(path, SegmentationMetadata, threshold=changed)
    after = read_checkpoint(path, SegmentationMetadata)
    assert after.metadata.threshold == changed
    assert after.fingerprint == before
    assert read_checkpoint(write(path, network={"a": 2}), SegmentationMetadata).fingerprint != before


def test_update_metadata_keeps_thresholds_and_temperature(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ckpt")
    hists = {"a": np.eye(2, 1000, 400, dtype=np.int64), "b": np.eye(2, 1000, 600, dtype=np.int64)}
    choice = search_threshold(hists, "cost", cost_ratio=3, groups={"a": "p", "b": "q"}, providers={"a": "x", "b": "y"})
    temperature = fit_temperature(np.ones((2, 1000), np.int64), "here", "2026-01-01T00:00:00Z")
    update_metadata(path, SegmentationMetadata, threshold=choice, calibration=temperature)
    found = read_checkpoint(path, SegmentationMetadata).metadata
    assert found.threshold == choice
    assert set(choice.by_provider) == {"x", "y"}
    assert found.calibration == temperature


def test_read_checkpoint_without_classes_is_binary(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ckpt")
    content = torch.load(path, weights_only=True)
    del content["panda"]["classes"]
    torch.save(content, path)
    assert read_checkpoint(path, SegmentationMetadata).metadata.classes == BINARY


def test_read_checkpoint_classes_are_read_back(tmp_path: Path) -> None:
    path = segmentation_checkpoint(tmp_path / "a.ckpt", find_classes("gleason"))
    assert read_checkpoint(path, SegmentationMetadata).metadata.classes == find_classes("gleason")


def test_read_checkpoint_channels_of_other_classes_raise(tmp_path: Path) -> None:
    path = segmentation_checkpoint(tmp_path / "a.ckpt", find_classes("gleason"))
    content = torch.load(path, weights_only=True)
    content["panda"]["classes"] = BINARY.model_dump(mode="json")
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"network\.channels is 4, but classes has other, cancer, which need 1"):
        read_checkpoint(path, SegmentationMetadata)


def test_read_checkpoint_classes_without_rule_raise(tmp_path: Path) -> None:
    path = segmentation_checkpoint(tmp_path / "a.ckpt", find_classes("gleason"))
    entry = torch.load(path, weights_only=True)
    entry["panda"]["gleason_rule"] = None
    torch.save(entry, path)
    with pytest.raises(CheckpointError, match="gleason_rule must be a rule with the classes benign, G3, G4, G5"):
        read_checkpoint(path, SegmentationMetadata)


def test_read_checkpoint_without_temperature_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ckpt")
    content = torch.load(path, weights_only=True)
    del content["panda"]["calibration"]
    torch.save(content, path)
    assert read_checkpoint(path, SegmentationMetadata).metadata.calibration is None
    temperature = Temperature(value=2.0, note="", chosen_on="here", date="2026-01-01T00:00:00Z")
    update_metadata(path, SegmentationMetadata, calibration=temperature)
    assert read_checkpoint(path, SegmentationMetadata).metadata.calibration == temperature


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"task": "grading"}, "grading"), ({"format": 99}, "99"), ({"format": 0}, "train again")],
)
def test_read_checkpoint_other_task_or_format_raises(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    path = write(tmp_path / "a.ckpt", **changes)
    with pytest.raises(CheckpointError, match=named) as caught:
        read_checkpoint(path, SegmentationMetadata)
    assert str(path) in str(caught.value)


def test_read_checkpoint_no_checkpoint_file_raises(tmp_path: Path) -> None:
    text = tmp_path / "text.ckpt"
    text.write_text("not a checkpoint")
    with pytest.raises(CheckpointError, match=r"text\.ckpt"):
        read_checkpoint(text, SegmentationMetadata)
    other = tmp_path / "other.ckpt"
    torch.save({"state_dict": {}}, other)
    with pytest.raises(CheckpointError, match="not written by this framework"):
        read_checkpoint(other, SegmentationMetadata)
    cut = tmp_path / "cut.ckpt"
    cut.write_bytes(write(tmp_path / "a.ckpt").read_bytes()[:200])
    with pytest.raises(CheckpointError, match=r"cut\.ckpt"):
        read_checkpoint(cut, SegmentationMetadata)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"network": "unet"}, "panda.network is 'unet'"),
        ({"resolution": 1}, "panda.resolution is 1"),
        ({"resolution": {"level": "1", "mpp": None, "train_mpp": None}}, "panda.resolution.level is '1'"),
        ({"resolution": {"level": 1, "mpp": None, "train_mpp": [2.0]}}, "panda.resolution.train_mpp.1 is missing"),
        ({"resolution": RESOLUTION | {"mpp": 1.0}}, "exactly one of level and mpp must be given"),
        ({"resolution": RESOLUTION | {"level": None}}, "exactly one of level and mpp must be given"),
        ({"resolution": RESOLUTION | {"level": None, "mpp": 0.01}}, "panda.resolution.mpp is 0.01"),
        ({"resolution": RESOLUTION | {"level": None, "mpp": float("inf")}}, "panda.resolution.mpp is inf"),
        ({"resolution": RESOLUTION | {"train_mpp": [3.0, 2.0, 1.0]}}, "the lowest, the median and the highest"),
        ({"threshold": 0.4}, "panda.threshold is 0.4"),
        ({"threshold": DATA["threshold"] | {"value": "high"}}, "panda.threshold.value is 'high'"),
        ({"threshold": DATA["threshold"] | {"value": float("nan")}}, "panda.threshold.value is nan"),
        ({"threshold": DATA["threshold"] | {"interval": [0.1]}}, "panda.threshold.interval.1 is missing"),
        ({"threshold": DATA["threshold"] | {"cost_ratio": 0.0}}, "panda.threshold.cost_ratio is 0.0"),
        (
            {"threshold": DATA["threshold"] | {"by_provider": {"radboud": {"value": 2.0}}}},
            "panda.threshold.by_provider.radboud.value is 2.0",
        ),
        ({"calibration": {"value": -1.0}}, "panda.calibration.value is -1.0"),
        ({"normalise": None}, "panda.normalise is None, but there is no such key"),
        ({"patch_size": 0}, "panda.patch_size is 0"),
        ({"overlap": 1.0}, "panda.overlap is 1.0"),
        ({"precision": "fp8"}, "panda.precision is 'fp8'"),
        ({"train_slides": [1]}, "panda.train_slides.0 is 1"),
    ],
)
def test_read_checkpoint_wrong_entry_is_named(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    path = write(tmp_path / "a.ckpt", **changes)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path, SegmentationMetadata)
    assert named in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("labels", [{"karolinska": [1, 2]}, {"nobody": [2]}])
def test_read_checkpoint_other_mask_codes_raise(tmp_path: Path, labels: dict[str, list[int]]) -> None:
    with pytest.raises(CheckpointError, match=rf"a\.ckpt: the mask codes .* of {next(iter(labels))}"):
        read_checkpoint(write(tmp_path / "a.ckpt", labels=labels), SegmentationMetadata)


def test_read_checkpoint_weight_that_is_no_tensor_raises(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ckpt")
    content = torch.load(path, weights_only=True)
    for key, value in (("network.w", 3), (3, torch.ones(1))):
        torch.save(content | {"state_dict": {key: value}}, path)
        with pytest.raises(CheckpointError, match=rf"a\.ckpt: state_dict\[{key!r}\]"):
            read_checkpoint(path, SegmentationMetadata)


def test_read_checkpoint_folder_raises(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    write(tmp_path / "run" / "checkpoints" / "best.ckpt")
    with pytest.raises(CheckpointError, match=r"run is a folder; there are .*best\.ckpt"):
        read_checkpoint(tmp_path / "run", SegmentationMetadata)


def test_read_checkpoint_missing_file_names_neighbors(tmp_path: Path) -> None:
    write(tmp_path / "best.ckpt")
    with pytest.raises(CheckpointError, match=r"best\.ckpt"):
        read_checkpoint(tmp_path / "first.ckpt", SegmentationMetadata)
    with pytest.raises(CheckpointError, match=r"nowhere/best\.ckpt does not exist; train it, or give a \.ckpt file"):
        read_checkpoint(tmp_path / "nowhere" / "best.ckpt", SegmentationMetadata)


def test_whole_checkpoints_failed_write_keeps_previous(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"epoch": 0}, path)

    def full(target: Path) -> None:
        raise OSError(errno.ENOSPC, "full", str(target))

    monkeypatch.setattr(files, "sync", full)
    with pytest.raises(OSError, match="full"):
        AtomicCheckpointIO().save_checkpoint({"epoch": 1}, path)
    assert torch.load(path, weights_only=True) == {"epoch": 0, STATE_HASH: hash_state({"epoch": 0})}
    assert list(tmp_path.iterdir()) == [path]


def test_read_checkpoint_cancer_codes_only_gets_known_label_maps(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ckpt", labels={"karolinska": [2]})
    content = torch.load(path, weights_only=True)
    del content["panda"]["label_maps"]
    torch.save(content, path)
    assert read_checkpoint(path, SegmentationMetadata).metadata.label_maps == {
        "karolinska": find_label_map("karolinska")
    }


def test_read_checkpoint_takes_label_maps_from_file_only(tmp_path: Path) -> None:
    own = LabelMap(names={0: "other", 9: "cancer"}, cancer=(9,), unlabelled=())
    path = write(tmp_path / "a.ckpt", label_maps={name: own.model_dump(mode="json") for name in ("leuven", "radboud")})
    assert read_checkpoint(path, SegmentationMetadata).metadata.label_maps == {"leuven": own, "radboud": own}
    path = write(path, label_maps={"leuven": {"names": {"0": "other"}, "cancer": [9], "unlabelled": []}})
    with pytest.raises(CheckpointError, match=r"panda\.label_maps\.leuven\.cancer: has code 9 without a name"):
        read_checkpoint(path, SegmentationMetadata)


def test_read_checkpoint_missing_entries_are_all_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ckpt")
    content = torch.load(path, weights_only=True)
    del content["panda"]["patch_size"], content["panda"]["threshold"]["date"]
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"patch_size is missing; panda\.threshold\.date is missing; .*train"):
        read_checkpoint(path, SegmentationMetadata)


def test_checkpoint_entry_is_plain_data(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ckpt")
    entry = torch.load(path, weights_only=True)["panda"]
    assert json.loads(json.dumps(entry)) == entry
    assert (entry["task"], entry["format"], entry["train_slides"]) == ("segmentation", 1, ["a"])


def test_read_checkpoint_grading_of_segmentation_raises(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="of the task 'segmentation', but a grading checkpoint is needed: give"):
        read_checkpoint(path, GradingMetadata)


def test_trained_resolution_from_slides_summarizes_mpp() -> None:
    assert TrainedResolution.from_slides(ResolutionRequest(level=1), [3.0, 1.0, 2.5]).train_mpp == (1.0, 2.5, 3.0)
    asked = TrainedResolution.from_slides(ResolutionRequest(mpp=1.0))
    assert asked.train_mpp is None
    assert asked.request == ResolutionRequest(mpp=1.0)
