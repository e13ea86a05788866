"""Compare guided tiles with random ones and with all of them, and encoders, on drawn slides.

`python -m bench.ablation [--folds 3] [--seeds 5] [--slides 96] [--output bench/ablation] [--arms guided …]`

For each fold a segmentation is trained on its training slides alone. Its frozen encoder makes the features of three
arms, and in the guided arm it also chooses the tiles. The arm `random_encoder` has the guided tiles too. Its encoder is
of the same kind, with random weights, others for each seed. No part has seen the test slides. Each seed grades each
slide once, over the folds, so that it gives one figure; their mean and spread are printed. A finished training, or
finished seeds of an arm in a fold, are not repeated; interrupted ones start over.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import torch

from panda.errors import LockedError
from panda.files import hold_lock, remove
from panda.inference.predictor import restore_network
from panda.models.segmentation import Segmenter
from panda.tables import read_output_table, write_table
from panda.tasks.checkpoint import read_checkpoint
from panda.tasks.grade_metrics import score_grades
from panda.tasks.metadata import SegmentationMetadata

ROOT = Path(__file__).parents[1]
ARMS = {
    "guided": ("tiles=guided", "tiles.k=8"),
    "random": ("tiles=tissue", "tiles.k=8"),
    "all": ("tiles=all",),
    "random_encoder": ("tiles=guided", "tiles.k=8"),
}
DRAWN = (
    *("data=synthetic", "data.draw.width=3072", "data.draw.height=2048", "data.patch_size=64", "data.split=kfold"),
    *("logger=csv", "trainer=cpu", "data.num_workers=0"),
)
FIGURES = ("qwk", "accuracy", "auroc_cancer", "auroc_significant")
TILES = ("attention_auroc", "cancer_of_tiles")


def main() -> None:
    """Run the missing trainings, and print the figures."""
    parser = argparse.ArgumentParser(description="Guided, random and all tiles, on drawn slides")
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--slides", type=int, default=96, help="that are drawn")
    parser.add_argument("--output", type=Path, default=ROOT / "bench" / "ablation")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    options = parser.parse_args()
    output = options.output.absolute()
    try:
        with hold_lock(output / "ablation", wait=False):
            _compare(options, output)
    except LockedError as error:
        sys.exit(f"{error}: wait for it, or give another --output")


def _compare(options: argparse.Namespace, output: Path) -> None:
    """Train and print in a folder that no other command uses."""
    shared = [*DRAWN, f"data.root={output / 'data'}", f"data.store_root={output / 'patches'}"]
    shared += [f"data.draw.slides={options.slides}", f"data.folds={options.folds}"]
    seeds = ",".join(map(str, range(options.seeds)))
    for fold in range(options.folds):
        segmentation = output / "runs" / "segmentation" / f"fold{fold}"
        if not (segmentation / "summary.json").is_file():
            common = [*shared, f"data.fold={fold}", f"name=fold{fold}", "experiment=demo", "test_slides=false"]
            _train(output, segmentation, *common)
        best = segmentation / "checkpoints" / "best.ckpt"
        weights = output / f"encoder{fold}.pt"
        segmenter = restore_network(Segmenter, read_checkpoint(best, SegmentationMetadata))
        torch.save(segmenter.encoder.state_dict(), weights)
        for arm in options.arms:
            sweep = output / "runs" / "grading" / f"sweep-{arm}{fold}"
            if len(list(sweep.glob("*/summary.json"))) < options.seeds:
                guide = str(best) if "tiles=guided" in ARMS[arm] else "null"
                encoder = "null" if arm == "random_encoder" else str(weights)
                _train(
                    output, sweep, "-m", *shared, "experiment=demo_grading", *ARMS[arm], f"data.fold={fold}",
                    f"seed={seeds}", f"name={arm}{fold}", f"segmentation_checkpoint={guide}",
                    f"model.encoder_weights={encoder}",
                )  # fmt: skip
    table = [_figures(output, arm, options.folds, options.seeds) for arm in options.arms]
    write_table(output / "ablation.csv", table)
    for row in table:
        print("; ".join(f"{key} {value}" for key, value in row.items()))


def _train(folder: Path, makes: Path, *arguments: str) -> None:
    """Train from `folder`, after removing the folder `makes` that an interrupted training left."""
    remove(makes)
    subprocess.run([sys.executable, ROOT / "train.py", *arguments], cwd=folder, check=True)


def _figures(output: Path, arm: str, folds: int, seeds: int) -> dict[str, str]:
    """Return mean and standard deviation over the seeds, each of which graded every slide once."""
    scores: dict[str, list[float]] = {}
    slides = 0
    for seed in range(seeds):
        rows = [
            row
            for fold in range(folds)
            for row in read_output_table(
                output / "runs" / "grading" / f"sweep-{arm}{fold}" / str(seed) / "test_slides.csv"
            )
        ]
        slides = len(rows)
        prob = np.array([[float(row[f"p{k}"]) for k in range(6)] for row in rows])
        found = score_grades([int(row["label"]) for row in rows], prob)
        for key in FIGURES:
            scores.setdefault(key, []).append(float(getattr(found, key)))
        for key in TILES:
            scores.setdefault(key, []).append(fmean(float(row[key]) for row in rows if row[key]))
    shown = {key: f"{fmean(v):.3f} ± {stdev(v) if len(v) > 1 else 0:.3f}" for key, v in scores.items()}
    return {"tiles": arm, "slides": str(slides), "seeds": str(seeds), **shown}


if __name__ == "__main__":
    main()
