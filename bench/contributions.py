"""Measure the CPU time of the contributions of tiles: `python -m bench.contributions [--tiles 4000]`."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from omegaconf import OmegaConf

from panda.models.mil import MILNet
from panda.models.pooling import POOLINGS, Pooling

FEATURES = 1536
CONF = Path(__file__).parents[1] / "conf" / "model"


def main() -> None:
    """Print seconds of one thread for each pooling, with the width and the options of its file in `conf/model`."""
    parser = argparse.ArgumentParser(description="CPU time of the contributions of tiles")
    parser.add_argument("--tiles", type=int, default=4000)
    tiles = parser.parse_args().tiles
    torch.set_num_threads(1)
    for pooling in POOLINGS:
        print(f"{pooling}: {_measure(pooling, tiles):.2f} s", flush=True)


def _measure(pooling: Pooling, tiles: int) -> float:
    node = OmegaConf.merge(*(OmegaConf.load(CONF / f"mil_{name}.yaml") for name in ("gated", pooling)))
    torch.manual_seed(0)
    network = MILNet(None, feature_dim=FEATURES, pooling=pooling, hidden=node.hidden).eval()
    feats = torch.randn(tiles, FEATURES)
    with torch.inference_mode():
        start = time.process_time()
        network.compute_contributions(feats, 0)
        return time.process_time() - start


if __name__ == "__main__":
    main()
