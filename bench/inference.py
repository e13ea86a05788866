"""Part h: mapping a slide, against the network alone and other libraries, and the memory that it takes.

An untrained network; tiles of 512 px at level 0 that overlap by a quarter; a slide of which a fifth is
tissue. `python -m bench.inference SIDE` maps a slide of that size with a network that computes nothing and prints the
peak of the process; `python -m bench.inference ways` times the network alone in each precision and layout.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bench.memory import in_processes, peak_mib
from bench.project import MAPPED_TILE, MAPPED_TISSUE, MAPPING, NETWORKS, OVERLAP, READER, UNET
from bench.results import Results
from bench.segmenters import SEGMENTERS
from bench.slides import CACHE, shared_tiles_slide
from bench.worker import LeftOutError, workers
from panda.files import remove
from panda.inference.autotune import tune_mode
from panda.inference.compute import ComputeMode, EngineSettings, InferenceModel
from panda.inference.predictor import SegmentationPredictor
from panda.inference.slide_loop import SlidePrefetcher
from panda.models.segmentation import Segmenter
from panda.tasks.metadata import SegmentationMetadata, TrainedResolution
from panda.tasks.threshold import search_threshold
from panda.wsi.slide import Slide, SlideOptions
from panda.wsi.tissue import find_tissue

WALL = "this project, all of it"
ALONE = "the network alone"
OWN = {"panda": EngineSettings(device="cpu"), "panda compiled": EngineSettings(device="cpu", compile="always")}
"""As used for one slide, and compiled as used for many; the compilation is in the warm-up."""
_SIDE, _QUICK_SIDE = 4096, 2048
_SLIDES = 3
_TIMEOUT_S = 1800.0
_BATCH, _ROUNDS = 8, 4
WAYS: dict[str, tuple[torch.dtype, torch.memory_format, bool]] = {
    "fp32": (torch.float32, torch.contiguous_format, False),
    "fp32, channels last": (torch.float32, torch.channels_last, False),
    "bf16": (torch.bfloat16, torch.contiguous_format, False),
    "bf16, channels last": (torch.bfloat16, torch.channels_last, False),
    "bf16, channels last, compiled": (torch.bfloat16, torch.channels_last, True),
}
"""Precision, memory layout, and whether the network goes through `torch.compile`, as `InferenceModel` compiles it."""
_PEER_ROUNDS = 3
"""At most: MONAI runs all tiles of the slide, tissue or not."""


def measure(quick: bool, rounds: int, results: Results) -> None:
    """Time the network alone and the whole mapping in turn, then all libraries in turn; then measure the memory.

    Args:
        quick: On a smaller slide.
        rounds: How many times each.
        results: Gets the rows.
    """
    path = shared_tiles_slide(_QUICK_SIDE if quick else _SIDE, MAPPED_TISSUE).image_path
    for network in NETWORKS:
        _time_wall(path, network, rounds, results)
    _compare_libraries(path, min(rounds, _PEER_ROUNDS), results)
    checkpoint(UNET)
    in_processes("bench.inference", "panda inference", rounds, results)


def checkpoint(network: str) -> Path:
    """Write the checkpoint of an untrained network, or take the one written before.

    It carries the precision that training on this machine would have chosen its threshold at.
    """
    precision = EngineSettings(device="cpu").fast_precision
    path = CACHE / f"untrained_{network}_{precision}_{MAPPED_TILE}.ckpt"
    if not path.is_file():
        torch.manual_seed(0)
        made = Segmenter(*NETWORKS[network])
        metadata = SegmentationMetadata(
            network=made.options,
            resolution=TrainedResolution(level=0, mpp=None, train_mpp=None),
            patch_size=MAPPED_TILE,
            overlap=OVERLAP,
            label_maps={},
            threshold=search_threshold({}),
            precision=precision,
            train_slides=(),
            val_slides=(),
        )
        state = {f"network.{key}": value for key, value in made.state_dict().items()}
        torch.save({"state_dict": state, "panda": metadata.to_entry()}, path)
    return path


def open_slide(path: Path) -> Slide:
    """Open a slide with the reader that is measured."""
    return SlideOptions(reader=READER).open(path)


def _time_wall(path: Path, network: str, rounds: int, results: Results) -> None:
    """Time several slides from opening to canvas, against the network on the same tiles from memory."""
    predictor = SegmentationPredictor.from_checkpoint(checkpoint(network), EngineSettings(device="cpu"))
    with open_slide(path) as slide:
        grid = predictor.make_grid(slide, find_tissue(slide))
        size = (grid.patch_size, grid.patch_size)
        tiles = np.stack([slide.read(grid.resolution, (int(x), int(y)), size) for x, y in grid.level0])
    batch = predictor.batch_size
    # Linked under several names: a slide is opened ahead of its turn by its path.
    slides = [CACHE / "out" / f"slide{number}.tiff" for number in range(_SLIDES)]
    slides[0].parent.mkdir(parents=True, exist_ok=True)
    for link in slides:
        link.unlink(missing_ok=True)
        link.symlink_to(path.resolve())

    def run_network() -> None:
        for _ in slides:
            for at in range(0, len(tiles), batch):
                predictor.model(tiles[at : at + batch]).cpu()

    def run_mapping() -> None:
        with SlidePrefetcher(slides, open_slide) as prefetcher:
            for link in slides:
                with prefetcher.open(link) as (slide, tissue):
                    predictor.predict(slide, tissue, link.with_suffix(".zarr"))

    for turn in range(-1, rounds):
        for name, work in ((ALONE, run_network), (WALL, run_mapping)):
            for link in slides:
                remove(link.with_suffix(".zarr"))
            start = time.perf_counter()
            work()
            if turn >= 0:
                seconds = (time.perf_counter() - start) / (_SLIDES * len(tiles))
                results.add("inference", name, network, 1 / seconds, f"{len(tiles)} tiles a slide, {predictor.mode}")
    shutil.rmtree(CACHE / "out", ignore_errors=True)


def ways(rounds: int, results: Results) -> None:
    """Time one batch from memory through an untrained UNet in each of `WAYS` in turn; a first round warms up.

    Args:
        rounds: How many times each.
        results: Gets the rows.
    """
    torch.manual_seed(0)
    images = torch.rand(_BATCH, 3, MAPPED_TILE, MAPPED_TILE)
    networks: dict[str, Callable[[Tensor], Tensor]] = {}
    for name, (_, layout, compiled) in WAYS.items():
        network = Segmenter(*NETWORKS[UNET]).eval().to(memory_format=layout)
        networks[name] = torch.compile(network, dynamic=False, options={"freezing": True}) if compiled else network
    for turn in range(-1, rounds):
        for name, (dtype, layout, _) in WAYS.items():
            batch = images.contiguous(memory_format=layout)
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
                start = time.perf_counter()
                networks[name](batch)
            if turn >= 0:
                results.add("inference", name, f"{ALONE}, {UNET}", _BATCH / (time.perf_counter() - start))


def _compare_libraries(path: Path, rounds: int, results: Results) -> None:
    """Time one slide from opening to a map on the disk, each contender in a process of its own."""
    contenders = {name: (f"{__name__}:contender", (name,)) for name in SEGMENTERS}
    contenders = {name: (f"{__name__}:contender", (name,)) for name in OWN} | contenders
    with workers(contenders, CACHE / "log" / "inference", results.left_out) as started:
        for turn in range(-1, rounds):
            for name, worker in list(started.items()):
                out = CACHE / "out" / name
                shutil.rmtree(out, ignore_errors=True)
                out.mkdir(parents=True)
                try:
                    seconds, mean, peak = worker.ask(path, out, timeout_s=_TIMEOUT_S)
                except LeftOutError as error:
                    results.left_out[name] = str(error)
                    started.pop(name).close()
                    continue
                finally:
                    shutil.rmtree(out, ignore_errors=True)
                if turn >= 0:
                    pixels = open_slide(path).dimensions
                    note = f"mean probability where scored {mean:.3f}"
                    results.add("mapping", name, MAPPING, pixels[0] * pixels[1] / 1e6 / seconds, note)
                    results.add("mapping memory", name, MAPPING, peak)


def contender(name: str) -> Callable[[Path, Path], tuple[float, float, float]]:
    """Return the function that maps a slide in a process: seconds, the mean of the map, and peak memory in MiB."""
    torch.manual_seed(0)
    run = _panda(OWN[name]) if name in OWN else SEGMENTERS[name](checkpoint(UNET))

    def answer(path: Path, out: Path) -> tuple[float, float, float]:
        start = time.perf_counter()
        prob = run(path, out)
        seconds = time.perf_counter() - start
        return seconds, prob(), peak_mib()

    return answer


def _panda(settings: EngineSettings) -> Callable[[Path, Path], Callable[[], float]]:
    predictor = SegmentationPredictor.from_checkpoint(checkpoint(UNET), settings)

    def run(path: Path, out: Path) -> Callable[[], float]:
        tune_mode(predictor, 0.5, [path], open_slide, out / "engine.json")
        with open_slide(path) as slide:
            canvas = predictor.predict(slide, find_tissue(slide), out / "canvas.zarr")

        def mean() -> float:
            values: NDArray[np.float32] = np.asarray(canvas)
            return float(values[values > 0].mean())

        return mean

    return run


class Nothing(nn.Module):
    """A network that takes no time: the logit is the grey value."""

    def forward(self, image: Tensor) -> Tensor:
        """Map (n, 3, h, w) to (n, 1, h, w)."""
        return image.mean(dim=1, keepdim=True)


def main(side: int) -> None:
    """Map a slide, and print, in MiB, the peak of this process, what it was before, and the number of tiles."""
    settings = EngineSettings(device="cpu")
    predictor = SegmentationPredictor.from_checkpoint(checkpoint(UNET), settings)
    predictor.model = InferenceModel(Nothing(), settings, ComputeMode("fp32"))
    before = peak_mib()
    out = CACHE / "out" / f"memory_{side}"
    remove(out)
    with open_slide(shared_tiles_slide(side).image_path) as slide:
        canvas = predictor.predict(slide, find_tissue(slide), out / "canvas.zarr")
    print(json.dumps([peak_mib(), before, canvas.attrs["tiles"]]))
    remove(out)


if __name__ == "__main__":
    if sys.argv[1] == "ways":
        measured = Results()
        ways(_ROUNDS, measured)
        print(measured.table())
        for asked in WAYS:
            case = f"{ALONE}, {UNET}"
            print(f"{asked}: {measured.ratio('inference', (asked, 'fp32'), (case, case)):.2f} x fp32")
    else:
        main(int(sys.argv[1]))
