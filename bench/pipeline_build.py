"""Measure one build of this project from inside; `bench.pipeline` copies this file into the builds that it compares.

Run in the folder of a build, `python -m bench.pipeline_build STEP FOLDER SLIDE…` prints one line of JSON. So this file
uses what both builds have, and `begin_canvas` of the newer one.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from numpy.typing import NDArray
from torch import Tensor, nn

import panda.app.entry_point
from bench.inference import checkpoint, open_slide
from bench.project import UNET
from panda.app.infer import infer
from panda.files import remove
from panda.inference.compute import EngineSettings, InferenceModel
from panda.inference.predictor import SegmentationPredictor
from panda.inference.slide_loop import SlidePrefetcher
from panda.wsi.tissue import find_tissue

CONF = Path(panda.__file__).parents[1] / "conf"
_PERIOD = 192
"""A divisor of the stride of the tiles, so that tiles that overlap have the same map."""
_BATCH = 8


class Pattern(nn.Module):
    """A network that computes nothing: for any image it returns the same map of round spots with steep edges."""

    def __init__(self, side: int) -> None:
        super().__init__()
        wave = torch.sin(torch.arange(side) * (2 * torch.pi / _PERIOD))
        self.register_buffer("logits", 20 * (wave[:, None] * wave - 0.4))

    def forward(self, image: Tensor) -> Tensor:
        """Map (n, 3, h, w) to (n, 1, h, w)."""
        return self.get_buffer("logits").expand(len(image), 1, -1, -1)


def map_slides(folder: Path, paths: Sequence[Path]) -> dict[str, float]:
    """Map slides by the network that computes nothing, from opening to closed canvas; then run this network alone.

    The canvases are left in `folder`, as `infer.py` with `write_files` reuses them.
    """
    predictor = _make_predictor("fp32")
    network = Pattern(predictor.metadata.patch_size)
    predictor.model = InferenceModel(network, predictor.settings, predictor.mode)
    tiles = _read_tiles(predictor, paths[0])

    def run(slides: Sequence[Path]) -> None:
        with SlidePrefetcher(slides, open_slide) as prefetcher, ExitStack() as closing:
            for path in slides:
                canvas = folder / path.stem / "canvas.zarr"
                remove(canvas)
                with prefetcher.open(path) as (slide, tissue):
                    if begin := getattr(predictor, "begin_canvas", None):  # closes it beside the next slide
                        closing.enter_context(begin(slide, tissue, canvas))
                    else:
                        predictor.predict(slide, tissue, canvas)

    run(paths[:1])
    wall, cpu = _time(lambda: run(paths))
    _, alone = _time(lambda: _run_network(predictor, tiles, len(paths)))
    return {"wall": wall, "cpu": cpu, "tiles": len(tiles) * len(paths), "alone_cpu": alone}


def write_files(folder: Path, paths: Sequence[Path]) -> dict[str, float]:
    """Write all files of slides whose canvases are in `folder`, in this process."""
    engine = ["engine.precision=fp32", *(["engine.post_workers=0"] * ("post_workers" in EngineSettings.model_fields))]
    _infer(folder, paths[:1], engine)
    wall, cpu = _time(lambda: _infer(folder, paths, engine))
    return {"wall": wall, "cpu": cpu}


def infer_all(folder: Path, paths: Sequence[Path]) -> dict[str, float]:
    """Run a UNet over slides with all files and the page, and the UNet alone on the same tiles from memory."""
    predictor = _make_predictor("auto")
    tiles = _read_tiles(predictor, paths[0])
    _run_network(predictor, tiles[:_BATCH])
    alone, _ = _time(lambda: _run_network(predictor, tiles, len(paths)))
    wall, cpu = _time(lambda: _infer(folder, paths, []))
    return {"wall": wall, "cpu": cpu, "tiles": len(tiles) * len(paths), "alone": alone}


def _make_predictor(precision: str) -> SegmentationPredictor:
    settings = EngineSettings.model_validate({"device": "cpu", "precision": precision})
    return SegmentationPredictor.from_checkpoint(checkpoint(UNET), settings)


def _read_tiles(predictor: SegmentationPredictor, path: Path) -> NDArray[np.uint8]:
    with open_slide(path) as slide:
        grid = predictor.make_grid(slide, find_tissue(slide))
        size = (grid.patch_size, grid.patch_size)
        return np.stack([slide.read(grid.resolution, (int(x), int(y)), size) for x, y in grid.level0])


def _run_network(predictor: SegmentationPredictor, tiles: NDArray[np.uint8], times: int = 1) -> None:
    for at in [*range(0, len(tiles), _BATCH)] * times:
        predictor.model(tiles[at : at + _BATCH])


def _infer(folder: Path, paths: Sequence[Path], engine: Sequence[str]) -> None:
    """Run the job of `infer.py` over slides."""
    table = folder.with_suffix(".csv")
    table.write_text("\n".join(["path", *map(str, paths)]) + "\n", encoding="utf-8")
    given = {"checkpoint": checkpoint(UNET), "slides": table, "output": folder, "reader": "fast"}
    with initialize_config_dir(str(CONF), version_base="1.3"):
        values = [f"{key}='{value}'" for key, value in given.items()]
        cfg = compose("infer", overrides=[*values, "engine.device=cpu", "engine.compile=never", *engine])
    infer(cfg)


def _time(work: Callable[[], object]) -> tuple[float, float]:
    """Do some work; return its wall time, and the CPU time of this process and of its ended children, in s."""
    cpu, start = _read_cpu(), time.perf_counter()
    work()
    return time.perf_counter() - start, _read_cpu() - cpu


def _read_cpu() -> float:
    used = [resource.getrusage(which) for which in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


STEPS = {"map": map_slides, "files": write_files, "infer": infer_all}

if __name__ == "__main__":
    print(json.dumps(STEPS[sys.argv[1]](Path(sys.argv[2]), [Path(path) for path in sys.argv[3:]])))
