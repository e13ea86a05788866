"""Train a segmentation over a vision transformer from the command line, with its own scale, and map slides with it."""

import json
from pathlib import Path

import pytest
import timm
import torch

from panda.tasks.checkpoint import read_checkpoint
from panda.tasks.metadata import SegmentationMetadata
from tests.integration.entry_points import run_entry_point
from tests.integration.test_entry_points import TINY

pytestmark = pytest.mark.slow

CARD = "architecture: vit_tiny_patch16_224\npooling: cls\nmpp: [4.0]\noptions: {depth: 2, img_size: 64}\n"
OPTIONS = [option for option in TINY if not option.startswith("model.")]
MODEL = ("model=fm_decoder", "model.encoder=mine.yaml", "model.decoder_channels=16", "data.level=null", "data.mpp=4")


def test_train_and_infer_over_frozen_transformer(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(CARD)
    torch.manual_seed(1)
    source = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=2, img_size=64)
    torch.save({f"module.{name}": value for name, value in source.state_dict().items()}, tmp_path / "w.bin")
    chosen = (*MODEL, "model.encoder_weights=w.bin", "task.classes=gleason", "data.draw.slides=20", "logger=csv")
    done = run_entry_point("train", tmp_path, *OPTIONS, *chosen, "test_slides=false", "name=fm")
    assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / "runs" / "segmentation" / "fm"
    assert "The encoder took" in json.dumps(json.loads((run / "summary.json").read_text())["notes"])
    best = read_checkpoint(run / "checkpoints" / "best.ckpt", SegmentationMetadata)
    trained = {name.removeprefix("network.encoder."): value for name, value in best.weights.items()}
    for name, value in source.state_dict().items():
        assert torch.equal(trained[name], value), name
    last = run / "checkpoints" / "last.ckpt"
    (tmp_path / "mine.yaml").write_text(CARD.replace("[4.0]", "[3.8]"))
    done = run_entry_point("train", tmp_path, f"resume={last}", "trainer.max_epochs=2")
    assert done.returncode == 1
    assert "encoder" in done.stderr
    (tmp_path / "mine.yaml").unlink()
    (tmp_path / "w.bin").unlink()
    slide = next((tmp_path / "data").rglob("train_images/*.tiff"))
    done = run_entry_point("infer", tmp_path, f"checkpoint={best.path}", f"slides={slide}", "output=out")
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "out" / slide.stem / "heatmap.png").is_file()
