"""The parts of the comparison on real pixels, on drawn slides of known truth."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench import plain_loop
from bench.glas import Scene, compare_pairs, predict_all_cancer, row, score_by_color, score_plain_loop, table
from panda.data.manifest import SlideRecord
from panda.inference.canvas import CanvasWriter
from panda.inference.evaluate import score_canvas
from panda.wsi.label_mask import LabelMask
from panda.wsi.slide import Slide
from panda.wsi.tissue import find_tissue
from tests.panda_folder import make_folder


def draw_scene(name: str, seed: int) -> Scene:
    """Grey tissue with a red square of cancer, on glass."""
    rgb = np.full((96, 128, 3), 250, np.uint8)
    rgb[:, :96] = np.random.default_rng(seed).integers(100, 130, (96, 96, 1))
    rgb[20:70, 20:70] = (190, 90, 90)
    truth, tissue = np.zeros((2, 96, 128), np.bool_)
    truth[20:70, 20:70] = tissue[:, :96] = True
    return Scene(SlideRecord(name, "radboud", 4, "4+4", Path(name), None, name), rgb, truth, tissue, 4.0)


def test_scene_score_equals_score_canvas(tmp_path: Path) -> None:
    record = make_folder(tmp_path, slides=1)[0]
    scene = Scene.read(record, 1)
    # in the middle of bins, which a canvas' rounding does not leave
    prob = ((np.random.default_rng(0).integers(0, 1000, scene.truth.shape) + 0.5) / 1000).astype(np.float32)
    assert record.mask_path is not None
    with Slide.open(record.image_path) as slide, LabelMask.open(record.mask_path, slide, "radboud") as mask:
        resolution, tissue = slide.choose_resolution(level=1), find_tissue(slide)
        with CanvasWriter(tmp_path / "canvas.zarr", resolution, 64, "made", {}, overlap=0) as writer:
            height, width = prob.shape
            corners = [(x, y) for y in range(0, height, 64) for x in range(0, width, 64)]
            writer.add(np.stack([prob[y : y + 64, x : x + 64] for x, y in corners]), np.array(corners))
            canvas = writer.close()
        known = score_canvas(canvas, slide, mask, tissue, record)
    found = scene.score(lambda _: prob)
    assert (found.histogram == known.histogram).all()
    assert (found.outside_px, found.pixel_area_um2) == (known.outside_px, known.pixel_area_um2)


def test_predict_all_cancer_has_dice_of_cancer_share() -> None:
    scene = draw_scene("a", 0)
    scored = row(scene.score(predict_all_cancer), 0.0)
    assert float(scored["dice"]) == pytest.approx(2 * 2500 / (2500 + 96 * 96))
    assert int(scored["fn_px"]) == 0


def test_score_by_color_chooses_color_and_scores_test() -> None:
    name, rows = score_by_color([draw_scene("a", 1), draw_scene("b", 2)], [draw_scene("c", 3)])
    assert "red" in name or "saturation" in name
    assert float(rows[0]["dice"]) > 0.97


def test_table_pools_slides_and_compare_pairs_subtracts() -> None:
    scenes = [draw_scene(name, 0) for name in "abcdefg"]
    worse = [row(scene.score(predict_all_cancer), 0.0) for scene in scenes]
    better = [row(scene.score(lambda rgb: (rgb[..., 0] > 150).astype(np.float32)), 0.5) for scene in scenes]
    assert "| better | 1.000 [1.00, 1.00] | 1.000 [1.00, 1.00] |" in table({"worse": worse, "better": better})
    assert f"dice: {1 - 5000 / (2500 + 96 * 96):+.3f}" in compare_pairs(("worse", "better"), worse, better)


def test_turn_gives_eight_views_with_aligned_mask() -> None:
    image = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3)
    turns = [plain_loop.turn(image, image[..., 0], way) for way in range(8)]
    assert len({picture.tobytes() for picture, _ in turns}) == 8
    assert all((picture[..., 0] == mask).all() for picture, mask in turns)


class Red(nn.Module):
    """Takes a normalised red back to [0, 1] as a logit."""

    def forward(self, image: Tensor) -> Tensor:
        return image[:, :1] * plain_loop.STD[0] + plain_loop.MEAN[0]


def test_plain_loop_predict_averages_overlapping_patches() -> None:
    picture = draw_scene("a", 0).rgb
    found = plain_loop.predict(Red(), picture, 32, 16)
    known = torch.sigmoid(torch.from_numpy(picture[..., 0] / 255.0)).numpy()
    assert found[:, :96] == pytest.approx(known[:, :96], abs=1e-5)
    assert not found[:, 112:].any()  # no patch there has a tenth of tissue


def test_score_plain_loop_trains_and_scores_two_thresholds(tmp_path: Path) -> None:
    scenes = [Scene.read(record, 2) for record in make_folder(tmp_path, slides=2)]
    data = {"level": 2, "patch_size": 64, "stride": None, "batch_size": 2}
    model = {"encoder_name": "resnet18", "decoder_channels": [8, 8, 8, 8, 8]}
    before = plain_loop.unet("resnet18", [8, 8, 8, 8, 8]).state_dict()
    records = [scene.record for scene in scenes]
    slides = [(one.image_path, one.mask_path, one.provider) for one in records if one.mask_path]
    net = plain_loop.unet("resnet18", [8, 8, 8, 8, 8])
    after = plain_loop.train(slides, net, number=2, size=64, stride=64, steps=1, batch=2).state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before if name.endswith("weight"))
    rows = score_plain_loop({"train": scenes, "val": scenes[:1], "test": scenes[1:]}, data, model, steps=1)
    assert [line["choice"] for line in rows] == ["validation", "half"]
    assert float(rows[1]["threshold"]) == 0.5
    assert int(rows[0]["tp_px"]) + int(rows[0]["fn_px"]) == int(scenes[1].score(predict_all_cancer).histogram[0].sum())
