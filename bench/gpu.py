"""Rates on one GPU: network, reading, mapping, loading and training, as one JSON line a measurement.

Run it as `python -m bench.gpu`. `--cpu` tries it out on two cores, with little of everything.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from pathlib import Path
from statistics import mean
from typing import get_args

import numpy as np
import torch

from bench.inference import checkpoint, open_slide
from bench.project import MAPPED_TILE, MAPPED_TISSUE, NETWORKS, OVERLAP, UNET, settings
from bench.slides import CACHE, shared_tiles_slide
from bench.training import Device, SegmentationSteps, endless, make_patch_loader
from panda.data.augment import Augmentation, Name
from panda.data.extraction import extract_store
from panda.data.image_batch import PatchBatch
from panda.data.patch_manifests import write_patch_manifests
from panda.data.patchset import PatchSet
from panda.inference.canvas import CanvasWriter
from panda.inference.compute import ComputeMode, EngineSettings, InferenceModel
from panda.inference.modes import Precision
from panda.inference.predictor import SegmentationPredictor
from panda.inference.tile_batches import TileReader, read_batches
from panda.models.segmentation import Segmenter
from panda.wsi.tissue import find_tissue

_SAMPLE_MS = 100
"""Interval at which nvidia-smi reads the share of time in which the GPU was busy."""


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    Attributes:
        device: Where networks run.
        side: Side of the square slide in level-0 px.
        batches: Tiles in a batch of the network alone.
        mapping: Tiles in a batch, and threads that read.
        threads: Threads that read when nothing else runs.
        tiles: Tiles through the network in one measurement.
        workers: Worker processes of the loader; training uses the most.
        patches: Patches of 512 px in a training batch.
        steps: Training steps in one measurement.
    """

    device: Device
    side: int
    batches: tuple[int, ...]
    mapping: tuple[tuple[int, int], ...]
    threads: tuple[int, ...]
    tiles: int
    workers: tuple[int, ...]
    patches: int
    steps: int


_GPU = Scale("cuda", 49_152, (8, 32, 64), ((8, 2), (32, 8), (64, 14)), (1, 2, 4, 8, 14), 640, (2, 14), 16, 40)
_CPU = Scale("cpu", 4096, (2,), ((8, 2),), (1, 2), 2, (0, 2), 2, 1)


def measure_network(scale: Scale) -> None:
    """Measure the network alone on tiles that lie on the device, and with arrays in and out."""
    for name in NETWORKS:
        for precision in get_args(Precision):
            for size in scale.batches:
                _report(
                    "network alone", name, precision, batch=size, tiles_s=_time_network(scale, name, precision, size)
                )
        for size in scale.batches:
            engine = EngineSettings(device=scale.device, batch_size=size)
            model = InferenceModel(_make_network(name), engine, ComputeMode("bf16"))
            images = np.random.default_rng(0).integers(0, 255, (size, MAPPED_TILE, MAPPED_TILE, 3), np.uint8)
            model(images)
            count = max(1, scale.tiles // size)
            with _timed() as clock:
                for _ in range(count):
                    model(images).cpu()
            _report(
                "inference model, arrays in and out", name, "bf16", batch=size, tiles_s=count * size / clock.seconds
            )


def measure_reading(scale: Scale) -> None:
    """Measure reading of all tissue tiles by threads, and blending of as many maps."""
    path = shared_tiles_slide(scale.side, MAPPED_TISSUE).image_path
    predictor = SegmentationPredictor.from_checkpoint(checkpoint(UNET), EngineSettings(device="cpu"))
    with open_slide(path) as slide, tempfile.TemporaryDirectory(dir=CACHE) as out:
        with _timed() as clock:
            tissue = find_tissue(slide)
        _report("tissue search", seconds=clock.seconds)
        grid = predictor.make_grid(slide, tissue)
        read = predictor.make_tile_reader(slide, tissue, grid)
        for threads in scale.threads:
            corners = grid.level0[grid.reading_order()].tolist()
            tiles: list[TileReader] = [partial(read, x, y) for x, y in corners]
            with _timed() as clock:
                for _ in read_batches(tiles, MAPPED_TILE, 32, threads=threads, device=torch.device(scale.device)):
                    pass
            _report("reading", threads=threads, tiles=len(tiles), tiles_s=len(tiles) / clock.seconds)
        prob = torch.rand((32, MAPPED_TILE, MAPPED_TILE), device=scale.device)
        overlap = grid.patch_size - grid.stride
        with (
            _timed() as clock,
            CanvasWriter(
                Path(out) / "canvas.zarr",
                grid.resolution,
                grid.patch_size,
                "blending",
                {"slide_id": slide.slide_id},
                overlap=overlap,
                expected=grid.working,
                device=scale.device,
            ) as writer,
        ):
            for start in range(0, len(grid), len(prob)):
                positions = grid.working[start : start + len(prob)]
                writer.add(prob[: len(positions)], positions)
            writer.close()
        _report("blending and writing", tiles=len(grid), tiles_s=len(grid) / clock.seconds)


def measure_mapping(scale: Scale) -> None:
    """Measure mapping of a slide, its share of the network's own rate, and how busy the GPU is."""
    path = shared_tiles_slide(scale.side, MAPPED_TISSUE).image_path
    for name in NETWORKS:
        for size, threads in scale.mapping:
            engine = EngineSettings(
                device=scale.device, precision="bf16", compile="never", batch_size=size, read_threads=threads
            )
            predictor = SegmentationPredictor.from_checkpoint(checkpoint(name), engine)
            predictor.model(np.zeros((size, MAPPED_TILE, MAPPED_TILE, 3), np.uint8))
            with open_slide(path) as slide, tempfile.TemporaryDirectory(dir=CACHE) as out:
                tissue = find_tissue(slide)
                tiles = len(predictor.make_grid(slide, tissue))
                with _sample_gpu(scale.device) as busy, _timed() as clock:
                    predictor.predict(slide, tissue, Path(out) / "canvas.zarr")
            alone = _time_network(scale, name, "bf16", size)
            rate = tiles / clock.seconds
            figures = {"tiles_s": rate, "share_of_network": rate / alone, **({"gpu_busy": mean(busy)} if busy else {})}
            _report("mapping a slide", name, "bf16", batch=size, read_threads=threads, tiles=tiles, **figures)


def measure_training(scale: Scale) -> None:
    """Measure training steps from one batch in memory, loading alone, and both together, for each augmentation."""
    record = shared_tiles_slide(scale.side, MAPPED_TISSUE)
    with tempfile.TemporaryDirectory(dir=CACHE) as out:
        cut = extract_store([record], settings("slide", MAPPED_TILE), out, CACHE, workers=2, progress=False)
        manifest = write_patch_manifests(cut, {record.slide_id: "train"})["train"]
        patches = PatchSet(manifest, Augmentation(name="none"))
        cached = next(iter(make_patch_loader(patches, scale.patches, 0)))
        trained, alone = {}, {}
        for name in NETWORKS:
            trained[name] = SegmentationSteps(torch.bfloat16, network=name, device=scale.device)
            batch = tuple(part.to(scale.device) for part in cached)
            trained[name].seconds(repeat(batch), scale.steps // 4)
            alone[name] = scale.steps * scale.patches / trained[name].seconds(repeat(batch), scale.steps)
            _report("training, one batch", name, "bf16", batch=scale.patches, patches_s=alone[name])
        for augmentation in get_args(Name):
            patches = PatchSet(manifest, Augmentation(name=augmentation))
            for workers in scale.workers:
                batches = endless(make_patch_loader(patches, scale.patches, workers))
                given = {"augment": augmentation, "workers": workers}
                _report("loading", **given, patches_s=_time_loading(batches, scale, workers))
                if workers < max(scale.workers):
                    continue
                for name, steps in trained.items():
                    rate = scale.steps * scale.patches / steps.seconds(batches, scale.steps)
                    share = rate / alone[name]
                    _report("training, loader", name, "bf16", **given, patches_s=rate, share_of_one_batch=share)


def _time_loading(batches: Iterator[PatchBatch], scale: Scale, workers: int) -> float:
    """Return the patches per s of a loader, without the batches that its workers prepare ahead."""
    count = scale.steps + 2 * workers
    for _ in range(1 + 2 * workers):
        next(batches)
    with _timed() as clock:
        for _ in range(count):
            next(batches)
    return count * scale.patches / clock.seconds


def _time_network(scale: Scale, name: str, precision: Precision, size: int) -> float:
    """Return the tiles per s of a network alone, from pixels on the device to probabilities there."""
    network = _make_network(name).eval().to(scale.device).to(memory_format=torch.channels_last)
    batch = torch.rand(size, 3, MAPPED_TILE, MAPPED_TILE, device=scale.device)
    batch = batch.contiguous(memory_format=torch.channels_last)
    count = max(1, scale.tiles // size)
    half = precision == "bf16"
    with torch.inference_mode(), torch.autocast(scale.device, torch.bfloat16, enabled=half):
        for _ in range(max(1, count // 8)):
            network(batch)
        with _timed() as clock:
            for _ in range(count):
                torch.sigmoid(network(batch).float())
    return count * size / clock.seconds


def _make_network(name: str) -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(*NETWORKS[name])


class _Clock:
    """Seconds of a block, with all work on the GPU."""

    seconds = 0.0


@contextlib.contextmanager
def _timed() -> Iterator[_Clock]:
    """Time a block."""
    clock = _Clock()
    _wait_for_gpu()
    start = time.perf_counter()
    yield clock
    _wait_for_gpu()
    clock.seconds = time.perf_counter() - start


def _wait_for_gpu() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@contextlib.contextmanager
def _sample_gpu(device: Device) -> Iterator[list[float]]:
    """Collect the share of time in which the GPU is busy, in %, during a block; nothing on a CPU."""
    busy: list[float] = []
    if device == "cpu":
        yield busy
        return
    command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", f"-lms={_SAMPLE_MS}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:

        def collect() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                busy.append(float(line))

        reader = threading.Thread(target=collect)
        reader.start()
        try:
            yield busy
        finally:
            process.terminate()
            reader.join()


def _report(part: str, network: str | None = None, precision: str | None = None, **figures: float | str) -> None:
    """Print a measurement as a line of JSON."""
    given = {"part": part, "network": network, "precision": precision}
    rounded = {key: round(value, 3) if isinstance(value, float) else value for key, value in figures.items()}
    print(json.dumps({key: value for key, value in given.items() if value} | rounded), flush=True)


PARTS: dict[str, Callable[[Scale], None]] = {
    "network": measure_network,
    "reading": measure_reading,
    "mapping": measure_mapping,
    "training": measure_training,
}


def main() -> None:
    """Measure the parts in turn."""
    parser = argparse.ArgumentParser(description="Rates of this project on one GPU")
    parser.add_argument("--cpu", action="store_true", help="little of everything on a CPU: to try it out, not to quote")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=list(PARTS), help="parts to measure")
    options = parser.parse_args()
    if not options.cpu and not torch.cuda.is_available():
        parser.error("no CUDA device was found; --cpu tries it out without one")
    gpu = None if options.cpu else torch.cuda.get_device_name()
    _report("machine", gpu=str(gpu), cores=os.cpu_count() or 0, torch=torch.__version__, overlap=OVERLAP)
    for part in options.only:
        PARTS[part](_CPU if options.cpu else _GPU)


if __name__ == "__main__":
    main()
