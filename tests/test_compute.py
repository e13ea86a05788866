"""How networks are run: test-time augmentation, layouts, precisions, and the choice of `auto`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from panda.errors import ConfigError, ExhaustedError
from panda.inference import autotune as choosing
from panda.inference.autotune import TunedMode, tune_mode
from panda.inference.batch_size import choose_batch_size
from panda.inference.compute import ComputeMode, EngineSettings, InferenceModel
from panda.inference.modes import TTA
from panda.inference.predictor import SegmentationPredictor
from panda.inference.quantify import QuantifySettings
from panda.inference.slide_mapper import SlideMapper
from panda.wsi.classes import find_classes
from panda.wsi.slide import Slide
from panda.wsi.tissue import find_tissue
from tests.checkpoints import segmentation_checkpoint
from tests.pyramids import write_pyramid

FP32 = ComputeMode("fp32")


class Lopsided(nn.Module):
    """Turns and mirrorings of a picture give other logits, and other ones at each place."""

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        down = torch.linspace(-1, 1, height)[:, None]
        across = torch.linspace(0, 3, width)[None, :]
        return (image[:, :1] - 0.5) * (down + across**2) + image[:, 1:2] * across


class LopsidedClasses(nn.Module):
    """The same for four classes."""

    def forward(self, image: Tensor) -> Tensor:
        one = Lopsided()(image)
        return torch.cat([one, 0.5 * one**2, image[:, 2:] - one, 2 * image[:, :1]], dim=1)


def pictures(count: int = 3, side: int = 16) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)


def model(tta: Any, network: nn.Module | None = None) -> InferenceModel:
    return InferenceModel(network or Lopsided(), EngineSettings(device="cpu", tta=tta), FP32)


@pytest.mark.parametrize(("tta", "copies"), [("none", 1), ("flip", 4), ("d4", 8)])
def test_tta_copies_are_averaged_in_place(tta: str, copies: int) -> None:
    one = model("none")
    images = pictures()
    maps = []
    for mirrored in (False, True):
        for quarters in range(4) if copies == 8 else (0, 2):
            turned = np.rot90(images, quarters, (1, 2))
            turned = turned[:, :, ::-1] if mirrored else turned
            prob = one(np.ascontiguousarray(turned)).numpy()
            prob = prob[:, :, ::-1] if mirrored else prob
            maps.append(np.rot90(prob, -quarters, (1, 2)))
    wanted = np.mean(maps, axis=0) if copies > 1 else maps[0]
    np.testing.assert_allclose(model(tta)(images), wanted, atol=1e-6)


def test_tta_all_copies_rotated_tile_gives_rotated_map() -> None:
    images, run = pictures(), model("d4")
    turned = run(np.ascontiguousarray(np.rot90(images, 1, (1, 2))))
    np.testing.assert_allclose(turned, np.rot90(run(images).numpy(), 1, (1, 2)), atol=1e-6)
    assert (model("flip")(np.ascontiguousarray(np.rot90(images, 1, (1, 2)))) - turned).abs().max() > 0.01


def test_predictor_batch_size_changes_nothing(tmp_path: Path) -> None:
    network = SegmentationPredictor.from_checkpoint(
        segmentation_checkpoint(tmp_path / "a.ckpt"), EngineSettings(device="cpu")
    ).network
    images, run = pictures(5, 64), model("none", network)
    np.testing.assert_allclose(run(images), np.concatenate([run(images[:2]), run(images[2:])]), atol=1e-5)


@pytest.mark.slow
def test_predictor_compiled_network_equals_eager_to_rounding(tmp_path: Path) -> None:
    settings = EngineSettings(device="cpu", compile="always", batch_size=4)
    predictor = SegmentationPredictor.from_checkpoint(segmentation_checkpoint(tmp_path / "a.ckpt"), settings)
    assert predictor.mode == ComputeMode("fp32", True)
    images = pictures(6, 64)
    eager = InferenceModel(predictor.network, settings, FP32)
    made = np.concatenate([predictor.model(images[:4]), predictor.model(images[4:])])
    np.testing.assert_allclose(made, np.concatenate([eager(images[:4]), eager(images[4:])]), atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "engine.batch_size=0 must be at least 1 or auto"),
        ({"read_threads": "all"}, "engine.read_threads=all must be a whole number or auto"),
        ({"canvas_mib": 0}, "engine.canvas_mib=0"),
        ({"post_workers": -1}, "engine.post_workers=-1 must be at least 0 or auto"),
    ],
)
def test_engine_settings_invalid_values_raise(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EngineSettings(device="cpu", **changes)


def test_engine_settings_auto_follows_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, threads, processes in ((1, 1, 0), (3, 3, 0), (4, 4, 1), (64, 8, 4)):
        monkeypatch.setattr("panda.inference.compute.count_cores", lambda cores=cores: cores)
        settings = EngineSettings(device="cpu")
        assert (settings.thread_count, settings.post_process_count) == (threads, processes)
    assert EngineSettings(device="cpu", read_threads=20).thread_count == 20
    assert EngineSettings(device="cpu", post_workers=0).post_process_count == 0
    assert model("none").batch_size == 8


def test_choose_batch_size_takes_smallest_that_is_fast() -> None:
    assert choose_batch_size({4: 500, 8: 900, 16: 971, 32: 1000, 64: 990}) == 16
    assert choose_batch_size({4: 500}) == 4
    assert choose_batch_size({}) == 1


class Hungry(Lopsided):
    """Needs more memory than there is for more than `most` tiles."""

    most = 2

    def forward(self, image: Tensor) -> Tensor:
        if len(image) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return super().forward(image)


def test_model_memory_exhausted_halves_batch_once(panda_log: pytest.LogCaptureFixture) -> None:
    images = pictures(5)
    settings = EngineSettings(device="cpu", batch_size=5)
    network = Hungry()
    run = InferenceModel(network, settings, FP32)
    np.testing.assert_allclose(run(images), model("none")(images), atol=1e-6)
    assert run.batch_size == 2
    (note,) = run.notes
    assert "too small for batches of 5 tiles; batches of 2 are used. engine.batch_size=2" in note
    assert note in panda_log.text
    network.most = 1
    with pytest.raises(ExhaustedError, match=r"batches of 2 tiles.*give engine\.batch_size=1"):
        run(images)
    network.most = 0
    run = InferenceModel(network, settings, FP32)
    with pytest.raises(ExhaustedError, match=r"give engine\.batch_size=1, or free the GPU"):
        run(images)


def test_engine_settings_compile_without_compiler_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(ConfigError, match=r"engine.compile=always needs a C\+\+ compiler"):
        EngineSettings(device="cpu", compile="always")
    assert not EngineSettings(device="cpu").can_compile


@pytest.mark.parametrize(("device", "asked"), [("cuda", "cuda.is_available"), ("mps", "backends.mps.is_available")])
def test_engine_settings_missing_device_raises(
    device: Literal["cuda", "mps"], asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"torch.{asked}", lambda: False)
    with pytest.raises(ConfigError, match=f"engine.device={device}: no .* was found; use engine.device=cpu"):
        EngineSettings(device=device)


@pytest.mark.parametrize(("native", "precision"), [(True, "bf16"), (False, "fp32")])
def test_engine_settings_auto_precision_follows_cpu(
    monkeypatch: pytest.MonkeyPatch, native: bool, precision: str
) -> None:
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: native)
    assert EngineSettings(device="cpu").resolve_auto().precision == precision
    assert EngineSettings(device="cpu", precision="fp32").resolve_auto().precision == "fp32"


Seconds = Callable[[ComputeMode], float]


@pytest.fixture
def predictor(tmp_path: Path) -> SegmentationPredictor:
    return SegmentationPredictor.from_checkpoint(
        segmentation_checkpoint(tmp_path / "a.ckpt"), EngineSettings(device="cpu")
    )


@pytest.fixture
def slide_path(tmp_path: Path) -> Path:
    image = np.full((1024, 1024, 3), 244, np.uint8)
    image[200:900, 100:900] = (215, 120, 180)
    return write_pyramid(tmp_path / "slide.tiff", image, mpp=0.5)


@pytest.fixture
def trial(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[ComputeMode]]:
    """Stands in for what is measured: how long each way takes, and the share of pixels that reach the threshold."""

    def stand_in(seconds: Seconds, area: Seconds = lambda _: 0.5) -> list[ComputeMode]:
        tried: list[ComputeMode] = []

        def run(model: InferenceModel, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], float]:
            tried.append(model.mode)
            prob = np.zeros(images.shape[:3], np.float32)
            prob.reshape(-1)[: round(area(model.mode) * prob.size)] = 1
            return prob, seconds(model.mode)

        monkeypatch.setattr(choosing, "_time_model", run)
        monkeypatch.setattr(choosing, "_TILES_PER_TRIAL_TILE", 1)
        monkeypatch.setattr(EngineSettings, "fast_precision", property(lambda _: "bf16"))
        monkeypatch.setattr(EngineSettings, "can_compile", property(lambda _: True))
        return tried

    return stand_in


def tune(predictor: SegmentationPredictor, path: Path, folder: Path, slides: int = 1) -> TunedMode:
    return tune_mode(predictor, 0.5, [path] * slides, Slide.open, folder / "engine.json")


def test_tune_mode_takes_fast_precision_if_area_stays(
    predictor: SegmentationPredictor, slide_path: Path, tmp_path: Path, trial: Callable[..., list[ComputeMode]]
) -> None:
    tried = trial(lambda mode: 1e-4 if mode.precision == "bf16" else 2e-4, lambda mode: 0.5 + 1e-4 * (mode != FP32))
    choice = tune(predictor, slide_path, tmp_path)
    assert (choice.precision, choice.compiled, predictor.mode) == ("bf16", False, ComputeMode("bf16"))
    assert choice.moved is not None
    assert 0 < choice.moved < choosing.MOST_MOVED
    assert tried == [FP32, ComputeMode("bf16")]
    # a canvas of it is another one than that of fp32
    with Slide.open(slide_path) as slide:
        made = predictor.fingerprint_canvas(slide, slide.choose_resolution(level=1))
        predictor.model = InferenceModel(predictor.network, predictor.settings, FP32)
        assert predictor.fingerprint_canvas(slide, slide.choose_resolution(level=1)) != made


def test_tune_mode_keeps_precision_if_the_area_of_a_class_moves(
    slide_path: Path, tmp_path: Path, trial: Callable[..., list[ComputeMode]], monkeypatch: pytest.MonkeyPatch
) -> None:
    trial(lambda _: 0.0)

    def run(model: InferenceModel, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], float]:
        fast = model.mode.precision == "bf16"
        prob = np.zeros((len(images), 3, *images.shape[1:3]), np.float32)
        prob[:, 0], prob[:, 1, : 30 if fast else 20] = 0.4, 0.5
        return prob, 1e-4 if fast else 2e-4

    monkeypatch.setattr(choosing, "_time_model", run)
    checkpoint = segmentation_checkpoint(tmp_path / "gleason.ckpt", find_classes("gleason"))
    predictor = SegmentationPredictor.from_checkpoint(checkpoint, EngineSettings(device="cpu"))
    found = tune_mode(predictor, 0.3, [slide_path], Slide.open, tmp_path / "engine.json")
    assert found.precision == "fp32"
    assert "bf16 moves the tumour area" in found.why


@pytest.mark.parametrize("tta", ["none", "flip", "d4"])
def test_inference_model_of_classes_averages_softmax_over_copies(tta: TTA) -> None:
    network = LopsidedClasses()
    images = torch.from_numpy(pictures())
    moves = {
        "none": [(0, False)],
        "flip": [(0, False), (0, True), (2, False), (2, True)],
        "d4": [(quarters, mirrored) for quarters in range(4) for mirrored in (False, True)],
    }[tta]
    want = torch.zeros(3, 3, 16, 16, dtype=torch.float64)
    for quarters, mirrored in moves:
        batch = (images / 255).permute(0, 3, 1, 2).rot90(quarters, (2, 3))
        batch = batch.flip(3) if mirrored else batch
        prob = network(batch).double().softmax(1)[:, 1:]
        want += (prob.flip(3) if mirrored else prob).rot90(-quarters, (2, 3)) / len(moves)
    np.testing.assert_allclose(model(tta, network)(images).numpy(), want.numpy(), atol=1e-6)


def test_slide_mapper_fingerprint_depends_on_compute_mode(predictor: SegmentationPredictor) -> None:
    made = set()
    for mode in (FP32, ComputeMode("bf16"), ComputeMode("fp32", True)):
        predictor.model = InferenceModel(predictor.network, predictor.settings, mode)
        made.add(SlideMapper(predictor, 0.5, QuantifySettings()).provenance.fingerprint)
    assert len(made) == 3


@pytest.mark.parametrize(
    ("seconds", "area", "message"),
    [
        (1e-4, 0.51, "moves the tumour area at 0.500 by"),
        (3e-4, 0.5, "slower here"),
    ],
)
def test_tune_mode_keeps_threshold_precision_otherwise(
    predictor: SegmentationPredictor,
    slide_path: Path,
    tmp_path: Path,
    trial: Callable[..., list[ComputeMode]],
    *,
    seconds: float,
    area: float,
    message: str,
) -> None:
    trial(lambda mode: seconds if mode != FP32 else 2e-4, lambda mode: area if mode != FP32 else 0.5)
    choice = tune(predictor, slide_path, tmp_path)
    assert (choice.precision, predictor.mode, choice.moved) == ("fp32", FP32, None)
    assert message in choice.why


def test_tune_mode_compiles_if_slides_are_many(
    predictor: SegmentationPredictor, slide_path: Path, tmp_path: Path, trial: Callable[..., list[ComputeMode]]
) -> None:
    tried = trial(lambda mode: 0.1 if mode.compiled else 0.2)
    few = tune(predictor, slide_path, tmp_path / "few")
    assert not few.compiled
    assert not any(mode.compiled for mode in tried)
    many = tune(predictor, slide_path, tmp_path / "many", slides=1000)
    assert many.compiled
    assert "2.0 times as fast" in many.why


def test_tune_mode_choice_is_reused_per_output(
    predictor: SegmentationPredictor, slide_path: Path, tmp_path: Path, trial: Callable[..., list[ComputeMode]]
) -> None:
    trial(lambda mode: 1e-4 if mode.precision == "bf16" else 2e-4)
    first = tune(predictor, slide_path, tmp_path)
    assert first.precision == "bf16"
    tried = trial(lambda mode: 3e-4 if mode.precision == "bf16" else 2e-4)
    again = SegmentationPredictor.from_checkpoint(tmp_path / "a.ckpt", predictor.settings)
    assert tune(again, slide_path, tmp_path) == first
    assert (again.mode, tried) == (ComputeMode("bf16"), [])
    # another network has a choice of its own, and both stay
    other = SegmentationPredictor.from_checkpoint(
        segmentation_checkpoint(tmp_path / "b.ckpt", network=predictor.metadata.network | {"mean": [0.4, 0.4, 0.4]}),
        predictor.settings,
    )
    assert tune(other, slide_path, tmp_path).precision == "fp32"
    assert len(json.loads((tmp_path / "engine.json").read_text())) == 2


def test_tune_mode_damaged_choice_warns_and_repeats(
    predictor: SegmentationPredictor,
    slide_path: Path,
    tmp_path: Path,
    trial: Callable[..., list[ComputeMode]],
    panda_log: pytest.LogCaptureFixture,
) -> None:
    trial(lambda _: 1e-4)
    (tmp_path / "engine.json").write_text('{"x": ')
    assert tune(predictor, slide_path, tmp_path).precision == "fp32"
    assert "engine.json: invalid json" in panda_log.text
    (key,) = json.loads((tmp_path / "engine.json").read_text())
    edited = {"precision": "int3", "compiled": False, "moved": None, "why": ""}
    (tmp_path / "engine.json").write_text(json.dumps({key: edited}))
    assert tune(predictor, slide_path, tmp_path).precision == "fp32"
    assert f"{key}.precision is 'int3', but must be 'fp32' or 'bf16'; precision and" in panda_log.text
    assert json.loads((tmp_path / "engine.json").read_text())[key]["precision"] == "fp32"


def test_tune_mode_given_precision_is_reported_as_given(
    tmp_path: Path, slide_path: Path, trial: Callable[..., list[ComputeMode]]
) -> None:
    tried = trial(lambda mode: 0.1 if mode.compiled else 0.2)
    settings = EngineSettings(device="cpu", precision="bf16")
    predictor = SegmentationPredictor.from_checkpoint(segmentation_checkpoint(tmp_path / "a.ckpt"), settings)
    choice = tune(predictor, slide_path, tmp_path, slides=1000)
    assert {mode.precision for mode in tried} == {"bf16"}
    assert choice.compiled
    assert choice.why.startswith("bf16 is as asked for; compiled, 2.0 times as fast")


def test_tune_mode_few_tiles_runs_no_trial(predictor: SegmentationPredictor, slide_path: Path, tmp_path: Path) -> None:
    assert "too little" in tune(predictor, slide_path, tmp_path).why
    assert predictor.mode == FP32


def test_tune_mode_unreadable_slides_leave_choice_open(
    predictor: SegmentationPredictor, tmp_path: Path, trial: Callable[..., list[ComputeMode]]
) -> None:
    trial(lambda _: 1e-4)
    assert "no slide could be read" in tune(predictor, tmp_path / "none.tiff", tmp_path).why
    assert not (tmp_path / "engine.json").exists()


def test_tune_mode_real_trial_measures(
    predictor: SegmentationPredictor, slide_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choosing, "_TILES_PER_TRIAL_TILE", 1)
    monkeypatch.setattr(EngineSettings, "fast_precision", property(lambda _: "bf16"))
    with Slide.open(slide_path) as slide:
        tissue = find_tissue(slide)
        canvas = predictor.predict(slide, tissue, tmp_path / "c.zarr")
        prob = np.asarray(canvas)[(canvas.read_codes(0, 0, *canvas.shape[::-1]) > 0)]
    # beyond all that the untrained network gives, nothing can move
    choice = tune_mode(predictor, float(prob.max()) + 0.05, [slide_path], Slide.open, tmp_path / "far.json")
    assert "moves the tumour area" in choice.why
    assert "by 0.00%" in choice.why
