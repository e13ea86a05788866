"""A provider of one's own is one YAML file, from training to the scores of inference."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from panda.choices import CONF
from panda.tasks.checkpoint import read_checkpoint
from panda.tasks.metadata import SegmentationMetadata
from panda.wsi.label_maps import find_label_map
from tests.integration.entry_points import run_entry_point, table
from tests.panda_folder import CANCER, HEADER, HEIGHT, WIDTH, picture
from tests.pyramids import write_pyramid

pytestmark = pytest.mark.slow

TINY = (
    "data=panda",
    "data.root=slides",
    "data.level=2",
    "data.patch_size=64",
    "data.batch_size=8",
    "data.num_workers=0",
    "model.encoder_name=resnet18",
    "model.decoder_channels=[16,16,8,8,8]",
    "trainer=cpu",
    "trainer.max_epochs=1",
    "task.panels=0",
    "task.views_every=0",
    "name=own",
)


def _draw(root: Path) -> None:
    """Write slides of the provider `mylab`, whose masks hold 1 for cancer and 0 for everything else."""
    lines = [HEADER]
    for number in range(8):
        codes = np.zeros((HEIGHT, WIDTH), np.uint8)
        if cancer := number % 2:
            codes[CANCER] = 1
        write_pyramid(root / "train_images" / f"s{number}.tiff", picture(number), (1, 2, 4), mpp=2.0)
        write_pyramid(root / "train_label_masks" / f"s{number}_mask.tiff", codes, (1, 2, 4), mpp=2.0)
        lines.append(f"s{number},mylab,{4 * cancer},{'4+4' if cancer else '0+0'}")
    (root / "train.csv").write_text("\n".join(lines) + "\n")


def test_label_map_yaml_of_third_provider_trains_and_is_scored(tmp_path: Path) -> None:
    _draw(tmp_path / "slides")
    refused = run_entry_point("train", tmp_path, *TINY)
    assert refused.returncode == 1
    assert "'mylab' is unknown; known are annotations, binary, binary_255, gleason, " in refused.stderr
    assert "conf/label_maps/mylab.yaml" in refused.stderr

    own = tmp_path / "conf" / "label_maps" / "mylab.yaml"
    own.parent.mkdir(parents=True)
    shutil.copy(CONF / "label_maps" / "binary.yaml", own)
    done = run_entry_point("train", tmp_path, *TINY)
    assert done.returncode == 0, done.stderr[-3000:]
    shutil.rmtree(tmp_path / "conf")
    run = tmp_path / "runs" / "segmentation" / "own"
    checkpoint = run / "checkpoints" / "best.ckpt"
    assert read_checkpoint(checkpoint, SegmentationMetadata).metadata.label_maps == {"mylab": find_label_map("binary")}
    assert json.loads((run / "summary.json").read_text())["test"]["slides"] > 0

    # mylab.yaml is gone: the checkpoint says what the codes mean
    given = ("slides=slides/train_images/s1.tiff", "labels=slides", f"checkpoint={checkpoint}", "output=out")
    done = run_entry_point("infer", tmp_path, *given)
    assert done.returncode == 0, done.stderr[-3000:]
    (row,) = table(tmp_path / "out" / "quantification.csv")
    assert float(row["true_tumor_mm2"]) == pytest.approx(192 * 256 * 4e-6, rel=0.05)
