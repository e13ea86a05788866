"""A checkpoint is read back as it was written, and anything else is refused by name."""

from pathlib import Path
from typing import Any

import pytest
import torch

from panda.errors import CheckpointError
from panda.tasks.checkpoint import CARRIED, carried_data, read_checkpoint, replace_carried


def write(path: Path, **changes: Any) -> Path:
    carried = carried_data("segmentation", dict.fromkeys(CARRIED["segmentation"], 1) | {"network": {"a": 1}})
    torch.save({"state_dict": {"network.w": torch.ones(3), "loss.w": torch.ones(1)}, "panda": carried | changes}, path)
    return path


def test_weights_and_data_come_back(tmp_path: Path) -> None:
    found = read_checkpoint(write(tmp_path / "a.ckpt"), "segmentation")
    assert set(found.weights) == {"w"}
    assert found.carried["patch_size"] == 1


def test_the_fingerprint_follows_weights_and_network_but_not_the_threshold(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ckpt")
    before = read_checkpoint(path, "segmentation").fingerprint
    replace_carried(path, threshold={"value": 0.3})
    after = read_checkpoint(path, "segmentation")
    assert after.carried["threshold"] == {"value": 0.3}
    assert after.fingerprint == before
    assert read_checkpoint(write(path, network={"a": 2}), "segmentation").fingerprint != before


@pytest.mark.parametrize(("changes", "named"), [({"task": "grading"}, "grading"), ({"format": 99}, "99")])
def test_another_task_or_format_is_refused(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    path = write(tmp_path / "a.ckpt", **changes)
    with pytest.raises(CheckpointError, match=named) as caught:
        read_checkpoint(path, "segmentation")
    assert str(path) in str(caught.value)


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "text.ckpt"
    text.write_text("not a checkpoint")
    with pytest.raises(CheckpointError, match=r"text\.ckpt"):
        read_checkpoint(text, "segmentation")
    other = tmp_path / "other.ckpt"
    torch.save({"state_dict": {}}, other)
    with pytest.raises(CheckpointError, match="not written by this framework"):
        read_checkpoint(other, "segmentation")
    cut = tmp_path / "cut.ckpt"
    cut.write_bytes(write(tmp_path / "a.ckpt").read_bytes()[:200])
    with pytest.raises(CheckpointError, match=r"cut\.ckpt"):
        read_checkpoint(cut, "segmentation")


def test_a_missing_one_names_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path / "best.ckpt")
    with pytest.raises(CheckpointError, match=r"best\.ckpt"):
        read_checkpoint(tmp_path / "first.ckpt", "segmentation")
