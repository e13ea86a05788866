"""Part j: all of `features.py`, beside the encoder alone on the same tiles from memory.

Run as a program, `python -m bench.features FOLDER SLIDE…` measures one round and prints a line of JSON.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from hydra import compose, initialize_config_dir
from numpy.typing import NDArray
from omegaconf import DictConfig

from bench.project import ENCODING
from bench.results import Results
from bench.slides import CACHE, make_slide
from panda.app.features import check, extract_features
from panda.app.hydra_job import register_resolvers
from panda.inference.features import TileEncoder
from panda.wsi.grid import tissue_grid
from panda.wsi.slide import Slide
from panda.wsi.tissue import find_tissue

ENCODER = "kaiko_s16"
"""A small one, so that the work around it shows."""
PART, CPU, WHOLE, ALONE = "features", "features cpu", "features.py", "the encoder alone"
SLIDE = (3072, 4096)
_SLIDES, _QUICK_SLIDES = 5, 2
_CONF = Path(__file__).parents[1] / "conf"
_TIMEOUT_S = 1800.0


def measure(quick: bool, rounds: int, results: Results) -> None:
    """Measure the command and the encoder alone in turn, each round in a fresh process.

    Args:
        quick: On fewer slides.
        rounds: How many times each.
        results: Gets the rows, in tiles/s, and in ms of CPU a tile.
    """
    drawn = make_slide(*SLIDE).image_path.resolve()
    with tempfile.TemporaryDirectory(dir=CACHE) as made:
        paths = [Path(made) / f"slide{number}.tiff" for number in range(_QUICK_SLIDES if quick else _SLIDES)]
        for path in paths:
            path.symlink_to(drawn)
        for _ in range(rounds):
            command = [sys.executable, "-m", "bench.features", str(Path(made) / "out"), *map(str, paths)]
            ran = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
            if ran.returncode:
                raise RuntimeError(f"bench.features failed: {ran.stderr.strip()}")
            took = json.loads(ran.stdout.splitlines()[-1])
            for name, (wall, cpu) in ((WHOLE, took["whole"]), (ALONE, took["alone"])):
                results.add(PART, name, ENCODING, took["tiles"] / wall, f"{took['tiles'] // len(paths)} tiles a slide")
                results.add(CPU, name, ENCODING, 1000 * cpu / took["tiles"])


def main(folder: Path, paths: Sequence[Path]) -> None:
    """Run the encoder alone and the command, after one batch that is not counted."""
    table = folder.with_suffix(".csv")
    table.write_text("\n".join(["path", *map(str, paths)]) + "\n", encoding="utf-8")
    cfg = _compose(table, folder)
    config = check(cfg)
    encoder = TileEncoder(config.network, config.compute)
    size = encoder.batch_size or 1
    with Slide.open(paths[0]) as slide:
        view, side = config.plan.request.resolve(slide), config.plan.tile_size
        grid = tissue_grid(view, find_tissue(slide), side, side, min_tissue=config.plan.min_tissue)
        tiles: NDArray[np.uint8] = np.stack([slide.read(view, (x, y), (side, side)) for x, y in grid.level0.tolist()])

    def encode() -> None:
        for at in [*range(0, len(tiles), size)] * len(paths):
            encoder(tiles[at : at + size]).cpu().numpy()

    encoder(tiles[:size])
    found = {"tiles": len(tiles) * len(paths), "alone": _time(encode), "whole": _time(lambda: extract_features(cfg))}
    shutil.rmtree(folder)
    print(json.dumps(found))


def _compose(table: Path, folder: Path) -> DictConfig:
    register_resolvers()
    with initialize_config_dir(str(_CONF), version_base="1.3"):
        given = [f"encoder={ENCODER}", "encoder_weights=null", f"slides='{table}'", f"run_dir='{folder}'"]
        return compose("features", overrides=[*given, "engine.device=cpu", "reader=fast"])


def _time(work: Callable[[], object]) -> tuple[float, float]:
    """Do some work; return its wall time and the CPU time of this process, in s."""
    cpu, start = _read_cpu(), time.perf_counter()
    work()
    return time.perf_counter() - start, _read_cpu() - cpu


def _read_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(path) for path in sys.argv[2:]])
