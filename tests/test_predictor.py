"""From checkpoint and slide to canvas: the resolution a slide is read at, reuse, and scores against a mask."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from panda.data.manifest import SlideRecord
from panda.errors import CheckpointError, LockedError, PandaError, SlideError
from panda.files import hold_lock
from panda.inference.canvas import Canvas, CanvasWriter
from panda.inference.compute import EngineSettings
from panda.inference.dataset_metrics import summarize
from panda.inference.evaluate import score_canvas
from panda.inference.predictor import SegmentationPredictor
from panda.inference.quantify import QuantifySettings
from panda.inference.slide_mapper import SlideMapper
from panda.tasks.bins import BINS
from panda.tasks.metadata import TrainedResolution
from panda.tasks.threshold import ThresholdChoice
from panda.wsi.classes import find_classes
from panda.wsi.label_mask import LabelMask
from panda.wsi.slide import ResolutionRequest, Slide, SlideOptions
from panda.wsi.tissue import find_tissue
from tests.checkpoints import segmentation_checkpoint
from tests.pyramids import write_pyramid

PINK = (215, 120, 180)
CPU = EngineSettings(device="cpu")


@pytest.fixture
def slide_path(tmp_path: Path) -> Path:
    image = np.full((1024, 1280, 3), 244, np.uint8)
    image[200:700, 150:1000] = PINK
    return write_pyramid(tmp_path / "slide.tiff", image, mpp=0.5)


@pytest.fixture
def mask_path(tmp_path: Path) -> Path:
    codes = np.zeros((1024, 1280), np.uint8)
    codes[200:700, 150:1000] = 1
    codes[300:500, 300:600] = 2
    return write_pyramid(tmp_path / "slide_mask.tiff", codes)


def make_resolution(level: int | None, mpp: float | None, *train_mpp: float) -> TrainedResolution:
    return TrainedResolution.from_slides(ResolutionRequest(level, mpp), train_mpp)


def test_trained_resolution_decides_reading_resolution(slide_path: Path) -> None:
    with Slide.open(slide_path) as slide:
        assert make_resolution(1, None, 2.0).resolve(slide).level == 1
        assert not make_resolution(1, None, 2.05).resolve(slide).is_resampled
        coarser = make_resolution(1, None, 4.0).resolve(slide)
        assert coarser.mpp == pytest.approx((4.0, 4.0))
        # a level whose µm/px training saw among others is read as training read it
        assert not make_resolution(1, None, 2.0, 2.3, 2.4).resolve(slide).is_resampled
        assert make_resolution(1, None).resolve(slide).level == 1
        assert make_resolution(None, 1.0, 1.0).resolve(slide).mpp == pytest.approx((1.0, 1.0))
        assert make_resolution(5, None, 2.0).resolve(slide).mpp == pytest.approx((2.0, 2.0))
        with pytest.raises(SlideError, match="level"):
            make_resolution(5, None).resolve(slide)
        slide.mpp = (0.25, 1.0)  # as many µm² a px as before
        assert not make_resolution(1, None, 2.0).resolve(slide).is_resampled


def test_trained_resolution_unknown_mpp_needs_permission(slide_path: Path) -> None:
    with Slide.open(slide_path) as slide:
        assert make_resolution(1, None, 2.0).list_notes(slide) == ()
        slide.mpp, slide.mpp_note = None, "it states none: give data.mpp_override (infer.py, features.py: mpp_override)"
        for level in (1, 5):  # with or without that level
            with pytest.raises(
                SlideError,
                match=r"slide\.tiff: µm/px is unknown, and the network was trained at 2 µm/px.*mpp_override.*"
                r"infer\.py: allow_unknown_mpp=true",
            ):
                make_resolution(level, None, 2.0).resolve(slide)
        assert make_resolution(1, None).resolve(slide).level == 1  # training knows no µm/px either
        slide.allow_unknown_mpp = True
        assert make_resolution(1, None, 2.0).resolve(slide).level == 1
        (note,) = make_resolution(1, None, 2.0).list_notes(slide)
        assert "level 1 was read as it is by a network that was trained at 2 µm/px" in note
        assert make_resolution(1, None).list_notes(slide) == ()
        with pytest.raises(SlideError, match=r"has no level 5.*infer\.py needs no level if.*give mpp_override"):
            make_resolution(5, None, 2.0).resolve(slide)


def test_predict_canvas_covers_tissue_and_is_reused(slide_path: Path, tmp_path: Path) -> None:
    predictor = SegmentationPredictor.from_checkpoint(
        segmentation_checkpoint(tmp_path / "a.ckpt"), EngineSettings(device="cpu")
    )
    seen: list[tuple[int, int]] = []
    with Slide.open(slide_path) as slide:
        tissue = find_tissue(slide)
        canvas = predictor.predict(slide, tissue, tmp_path / "c.zarr", lambda done, total: seen.append((done, total)))
        where = tissue.crop(canvas.resolution, (0, 0), canvas.shape[::-1])
        assert (canvas.read_codes(0, 0, *canvas.shape[::-1]) > 0)[where].all()
        assert seen[-1][0] == seen[-1][1] > 0
        seen.clear()
        again = predictor.predict(slide, tissue, tmp_path / "c.zarr", lambda done, total: seen.append((done, total)))
        assert not seen
        assert np.array_equal(np.asarray(again), np.asarray(canvas))


def test_predict_of_classes_gives_each_and_their_sum(slide_path: Path, tmp_path: Path) -> None:
    path = segmentation_checkpoint(tmp_path / "a.ckpt", find_classes("gleason"))
    predictor = SegmentationPredictor.from_checkpoint(path, EngineSettings(device="cpu"))
    with Slide.open(slide_path) as slide:
        tissue = find_tissue(slide)
        canvas = predictor.predict(slide, tissue, tmp_path / "c.zarr")
        grid = predictor.make_grid(slide, tissue)
        (x, y), (left, top) = grid.working[0].tolist(), grid.level0[0].tolist()
        tile = slide.read(canvas.resolution, (left, top), (64, 64))
    assert canvas.classes == predictor.classes
    assert canvas.read_classes(0, 0, *canvas.shape[::-1]).shape == (3, *canvas.shape)
    # the corner of the first tile has no neighbour that is blended into it
    with torch.no_grad():
        logits = predictor.network(torch.from_numpy(tile / np.float32(255)).permute(2, 0, 1)[None])
    corner = canvas.read_classes(x, y, 8, 8)
    np.testing.assert_allclose(corner, logits[0].softmax(0)[1:, :8, :8].numpy(), atol=1e-4)
    np.testing.assert_allclose(canvas.read(x, y, 8, 8), corner.sum(axis=0), atol=1e-6)


def test_predict_other_names_of_classes_make_other_canvas(slide_path: Path, tmp_path: Path) -> None:
    gleason = find_classes("gleason")
    others = (gleason, gleason.model_copy(update={"names": ("other", "G3", "G4", "G5")}))
    prints = set()
    with Slide.open(slide_path) as slide:
        for number, classes in enumerate(others):
            path = segmentation_checkpoint(tmp_path / f"{number}.ckpt", classes)
            predictor = SegmentationPredictor.from_checkpoint(path, EngineSettings(device="cpu"))
            prints.add(predictor.fingerprint_canvas(slide, slide.choose_resolution(level=1)))
    assert len(prints) == 2


def test_predict_other_network_makes_other_canvas(slide_path: Path, tmp_path: Path) -> None:
    engine = EngineSettings(device="cpu")
    with Slide.open(slide_path) as slide:
        tissue = find_tissue(slide)
        first = SegmentationPredictor.from_checkpoint(segmentation_checkpoint(tmp_path / "a.ckpt"), engine)
        one = first.predict(slide, tissue, tmp_path / "c.zarr").fingerprint
        other = SegmentationPredictor.from_checkpoint(
            segmentation_checkpoint(tmp_path / "b.ckpt", overlap=0.25), engine
        )
        assert other.predict(slide, tissue, tmp_path / "c.zarr").fingerprint != one


def test_predict_other_reader_makes_other_canvas(slide_path: Path, tmp_path: Path) -> None:
    path = segmentation_checkpoint(tmp_path / "a.ckpt")
    predictor = SegmentationPredictor.from_checkpoint(path, EngineSettings(device="cpu"))
    made = {}
    for reader in ("auto", "fast", "openslide"):
        with SlideOptions(reader=reader).open(slide_path) as slide:
            made[reader] = predictor.fingerprint_canvas(slide, slide.choose_resolution(level=1))
    assert made["auto"] == made["fast"] != made["openslide"]


def test_predict_batch_size_does_not_change_canvas(slide_path: Path, tmp_path: Path) -> None:
    maps = []
    for batch_size in (1, 7):
        engine = EngineSettings(device="cpu", batch_size=batch_size)
        predictor = SegmentationPredictor.from_checkpoint(segmentation_checkpoint(tmp_path / "a.ckpt"), engine)
        with Slide.open(slide_path) as slide:
            maps.append(np.asarray(predictor.predict(slide, find_tissue(slide), tmp_path / f"{batch_size}.zarr")))
    assert np.abs(maps[0] - maps[1]).max() < 1e-4


def test_from_checkpoint_takes_weights_and_draws_none(tmp_path: Path) -> None:
    path = segmentation_checkpoint(tmp_path / "a.ckpt")
    before = torch.get_rng_state()
    predictor = SegmentationPredictor.from_checkpoint(path, EngineSettings(device="cpu"))
    assert torch.equal(torch.get_rng_state(), before)
    weights, found = predictor.checkpoint.weights, predictor.network.state_dict()
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[key], weights[key]) for key in found)


def test_from_checkpoint_weights_that_do_not_fit_raise(tmp_path: Path) -> None:
    path = segmentation_checkpoint(tmp_path / "a.ckpt")
    content = torch.load(path, weights_only=True)
    content["panda"]["network"]["decoder_channels"] = [8, 8, 8, 8, 8]
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="do not fit"):
        SegmentationPredictor.from_checkpoint(path, EngineSettings(device="cpu"))


def test_from_checkpoint_without_mean_is_refused(tmp_path: Path) -> None:
    path = segmentation_checkpoint(tmp_path / "a.ckpt")
    content = torch.load(path, weights_only=True)
    content["panda"]["network"]["mean"] = None  # a new network would take the mean of its encoder
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"a\.ckpt: panda\.network\.mean is missing"):
        SegmentationPredictor.from_checkpoint(path, EngineSettings(device="cpu"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("architecture", "hourglass"),
        ("encoder_name", 5),
        ("decoder_channels", ["wide"]),
        ("mean", "red"),
        ("colour", 1),
    ],
)
def test_from_checkpoint_invalid_network_is_named(tmp_path: Path, key: str, value: object) -> None:
    path = segmentation_checkpoint(tmp_path / "a.ckpt")
    content = torch.load(path, weights_only=True)
    content["panda"]["network"][key] = value
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"a\.ckpt: panda\.network describes no Segmenter"):
        SegmentationPredictor.from_checkpoint(path, EngineSettings(device="cpu"))


def test_score_canvas_matches_plain_count(slide_path: Path, mask_path: Path, tmp_path: Path) -> None:
    predictor = SegmentationPredictor.from_checkpoint(
        segmentation_checkpoint(tmp_path / "a.ckpt"), EngineSettings(device="cpu")
    )
    record = SlideRecord("slide", "karolinska", 3, "4+3", slide_path, mask_path, "slide")
    with Slide.open(slide_path) as slide, LabelMask.open(mask_path, slide, "karolinska") as mask:
        tissue = find_tissue(slide)
        canvas = predictor.predict(slide, tissue, tmp_path / "c.zarr")
        score = score_canvas(canvas, slide, mask, tissue, record)
        labelled = score_canvas(canvas, slide, mask, tissue, record, ignore_background=True)
        size = canvas.shape[::-1]
        where = tissue.crop(canvas.resolution, (0, 0), size)
        truth = mask.read_tumor(canvas.resolution, (0, 0), size)
        unlabelled = where & (mask.read(canvas.resolution, (0, 0), size) == 0)
        prob = np.asarray(canvas, dtype=np.float64)
    assert score.histogram.shape == (2, BINS)
    assert score.histogram.sum() == where.sum()
    assert 0 < unlabelled.sum() < where.sum()
    assert labelled.histogram.sum() == where.sum() - unlabelled.sum()
    assert (labelled.histogram[0] == score.histogram[0]).all()
    threshold = float(np.round(np.median(prob[where]), 3))
    called = (prob >= threshold) & where
    tp, fp, fn = (called & truth).sum(), (called & ~truth).sum(), (~called & truth & where).sum()
    figures = summarize([score], ThresholdChoice.from_user(threshold), seed=0).model_dump()
    assert figures["dice"] == pytest.approx(2 * tp / (2 * tp + fp + fn), abs=1e-9)
    assert figures["all_tissue_dice"] == pytest.approx(
        2 * (truth & where).sum() / ((truth & where).sum() + where.sum()), abs=1e-9
    )
    assert figures["dice_interval"] is None


def test_score_canvas_counts_cancer_outside_tissue(slide_path: Path, mask_path: Path, tmp_path: Path) -> None:
    codes = np.ones((1024, 1280), np.uint8)
    codes[800:1000, 200:400] = 2  # on glass, 50 x 50 px of level 1, which are 2 µm wide
    astray = write_pyramid(tmp_path / "astray_mask.tiff", codes)
    path = segmentation_checkpoint(tmp_path / "a.ckpt")
    predictor = SegmentationPredictor.from_checkpoint(path, EngineSettings(device="cpu"))
    scores = []
    with Slide.open(slide_path) as slide:
        tissue = find_tissue(slide)
        canvas = predictor.predict(slide, tissue, tmp_path / "c.zarr")
        for found in (astray, mask_path):
            record = SlideRecord(found.stem, "karolinska", 0, "0+0", slide_path, found, found.stem)
            with LabelMask.open(found, slide, "karolinska") as mask:
                scores.append(score_canvas(canvas, slide, mask, tissue, record))
    row = scores[0].compute_metrics(0.5)
    assert row.cancer_outside_tissue_px == 2500
    assert row.cancer_outside_tissue_mm2 == pytest.approx(0.01)
    assert (row.dice, row.recall, row.fn_px) == (0.0, 0.0, 2500)
    assert row.true_tumor_mm2 == pytest.approx(0.01)
    assert scores[1].compute_metrics(0.5).cancer_outside_tissue_px == 0
    figures = summarize(scores, ThresholdChoice.from_user(0.5), seed=0).model_dump()
    assert figures["cancer_outside_tissue_px"] == 2500
    assert figures["recall"] == pytest.approx((scores[1].compute_metrics(0.5).tp_px or 0) / (2500 + 50 * 75))
    assert figures["cancer_outside_tissue_mm2"] == pytest.approx(0.01)
    assert figures["cancer_outside_tissue_percent"] == pytest.approx(100 * 2500 / (2500 + 50 * 75))
    # cancer is labelled on it: it is no benign slide
    assert figures["fp_mm2_benign_slides"] is None


def test_score_canvas_benign_slide_has_area_and_no_dice(slide_path: Path, tmp_path: Path) -> None:
    blank = write_pyramid(tmp_path / "blank_mask.tiff", np.ones((1024, 1280), np.uint8))
    record = SlideRecord("slide", "karolinska", 0, "0+0", slide_path, blank, "slide")
    predictor = SegmentationPredictor.from_checkpoint(
        segmentation_checkpoint(tmp_path / "a.ckpt"), EngineSettings(device="cpu")
    )
    with Slide.open(slide_path) as slide, LabelMask.open(blank, slide, "karolinska") as mask:
        tissue = find_tissue(slide)
        score = score_canvas(predictor.predict(slide, tissue, tmp_path / "c.zarr"), slide, mask, tissue, record)
    row = score.compute_metrics(0.001)
    assert row.dice is None
    assert row.fp_px is not None
    assert row.fp_mm2 == pytest.approx(row.fp_px * 4.0 / 1e6)
    assert summarize([score], ThresholdChoice.from_user(0.001), seed=0).fp_mm2_benign_slides == pytest.approx(
        row.fp_mm2
    )


def test_predict_failed_network_ends_reads_before_slide_closes(
    slide_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = EngineSettings(device="cpu", batch_size=1, read_threads=4)
    predictor = SegmentationPredictor.from_checkpoint(segmentation_checkpoint(tmp_path / "a.ckpt"), settings)
    reading: list[int] = []
    begun: list[int] = []

    def read(x: int, y: int) -> NDArray[np.uint8]:
        begun.append(x)
        reading.append(x)
        time.sleep(0.1)
        reading.remove(x)
        return np.zeros((64, 64, 3), np.uint8)

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(predictor, "make_tile_reader", lambda *_: read)
    monkeypatch.setattr(type(predictor.model), "run", fail)
    with Slide.open(slide_path) as slide:
        tissue = find_tissue(slide)
        try:
            predictor.predict(slide, tissue, tmp_path / "c.zarr")
        except KeyboardInterrupt:  # its traceback keeps the frames alive
            assert begun
            assert not reading
        else:
            pytest.fail("the network failed")
    count = len(begun)
    time.sleep(0.2)
    assert len(begun) == count


def test_begin_canvas_closes_beside_the_caller(
    slide_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = SegmentationPredictor.from_checkpoint(segmentation_checkpoint(tmp_path / "a.ckpt"), CPU)
    go, close = threading.Event(), CanvasWriter.close

    def close_late(writer: CanvasWriter) -> Canvas:
        assert go.wait(30)
        return close(writer)

    monkeypatch.setattr(CanvasWriter, "close", close_late)
    path = tmp_path / "c.zarr"
    with Slide.open(slide_path) as slide:
        begun = predictor.begin_canvas(slide, find_tissue(slide), path)
        canvas = begun.__enter__()
    assert not canvas.done()
    assert not path.exists()
    go.set()
    begun.__exit__(None, None, None)
    assert canvas.done(), "the lock is held until the canvas is closed"
    assert canvas.result().fingerprint == Canvas.open(path).fingerprint


def test_mapped_slide_that_is_not_closed_frees_its_canvas(
    slide_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = SegmentationPredictor.from_checkpoint(segmentation_checkpoint(tmp_path / "a.ckpt"), CPU)

    def fail(_: CanvasWriter) -> Canvas:
        raise PandaError("tiles are missing")

    monkeypatch.setattr(CanvasWriter, "close", fail)
    path = tmp_path / "c.zarr"
    with Slide.open(slide_path) as slide:
        mapped = SlideMapper(predictor, 0.5, QuantifySettings()).map(slide, find_tissue(slide), tmp_path / "out", path)
    with pytest.raises(LockedError), hold_lock(path, wait=False):
        pass
    with pytest.raises(PandaError, match="tiles are missing"), mapped:
        pass
    with hold_lock(path, wait=False):
        assert not path.exists()
        assert not list(tmp_path.glob(".*.partial*"))
