"""Compare this project on real pixels, in five folds over patients, with a plain loop and with no network.

`python -m bench.glas --root DIR` runs the missing trainings: `python train.py -m experiment=glas` and
`bench.plain_loop`, both with the same slides, patches and steps. It scores all methods on the same pixels and prints
the table of docs/training.md. `DIR` is a folder in PANDA's layout with a `patients.csv`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf

from bench import plain_loop
from panda.data.manifest import SlideRecord, apply_groups, read_groups, read_manifest
from panda.errors import PandaError
from panda.inference.slide_score import SlideScore, collect_histograms
from panda.report.folds import Figure, compute_figures, read_folds
from panda.report.paired import choose_groups, compute_differences, pair_rows
from panda.tables import read_output_table, write_table
from panda.tasks.bins import BINS
from panda.tasks.pixel_histogram import count_probabilities
from panda.tasks.threshold import search_threshold
from panda.wsi.label_mask import LabelMask
from panda.wsi.slide import Slide
from panda.wsi.tissue import find_tissue

FOLDS = 5
REPOSITORY = Path(__file__).resolve().parents[1]
SMOOTH_PX = (1, 8, 24)
"""Standard deviations of the blur before a colour is compared with a threshold."""

ALL, COLOUR = "all tissue is cancer", "a colour threshold"
PLAIN_HALF, PLAIN = "plain loop, at 0.5", "plain loop, threshold of validation"
OURS_HALF, OURS = "this project, at 0.5", "this project, threshold of validation"

Picture = NDArray[np.uint8]
Probability = NDArray[np.float32]
Mapper = Callable[[Picture], Probability]
"""Gives (h, w) in [0, 1] of a whole pyramid level (h, w, 3)."""
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Scene:
    """A whole slide at one pyramid level, which these small slides allow.

    Attributes:
        record: The slide.
        rgb: (h, w, 3).
        truth: (h, w), cancer.
        tissue: (h, w), the pixels that scores count.
        pixel_area_um2: Of a pixel, or None if µm/px is unknown.
    """

    record: SlideRecord
    rgb: Picture
    truth: NDArray[np.bool_]
    tissue: NDArray[np.bool_]
    pixel_area_um2: float | None

    @classmethod
    def read(cls, record: SlideRecord, level: int) -> Scene:
        """Read it by the project's own readers, with the mask and tissue that its runs are scored on."""
        assert record.mask_path is not None
        with Slide.open(record.image_path) as slide, LabelMask.open(record.mask_path, slide, record.provider) as mask:
            resolution = slide.choose_resolution(level=level)
            size = resolution.width, resolution.height
            return cls(
                record,
                slide.read(resolution, (0, 0), size),
                mask.read_tumor(resolution, (0, 0), size),
                find_tissue(slide).crop(resolution, (0, 0), size),
                resolution.pixel_area_um2,
            )

    def score(self, mapper: Mapper) -> SlideScore:
        """Count the pixels of a map by probability and truth, as `panda.inference.evaluate.score_canvas` does."""
        counts = count_probabilities(*map(torch.from_numpy, (mapper(self.rgb), self.truth, self.tissue))).numpy()
        outside = int(np.count_nonzero(self.truth & ~self.tissue))
        return SlideScore(self.record, counts, self.pixel_area_um2, outside)


def choose_threshold(scores: Sequence[SlideScore]) -> tuple[float, float]:
    """Return the threshold of the best pooled Dice of some slides, and that Dice."""
    choice = search_threshold(collect_histograms(scores), chosen_on="slides")
    assert choice.score is not None  # all images have cancer
    return choice.value, choice.score


def row(scored: SlideScore, threshold: float) -> dict[str, str]:
    """Return a slide's row as in `test_slides.csv` of a run."""
    return {
        key: "" if value is None else str(value) for key, value in asdict(scored.compute_metrics(threshold)).items()
    }


def predict_all_cancer(picture: Picture) -> Probability:
    """Predict cancer for every pixel."""
    return np.full(picture.shape[:2], (BINS - 1) / BINS, np.float32)


def colours() -> dict[str, Mapper]:
    """List the colours that may predict cancer: each channel, saturation and darkness, sharp or blurred, both ways."""
    of: dict[str, Callable[[Picture], NDArray[np.uint8]]] = {
        "red": lambda rgb: rgb[..., 0],
        "green": lambda rgb: rgb[..., 1],
        "blue": lambda rgb: rgb[..., 2],
        "saturation": lambda rgb: np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV)[..., 1], np.uint8),
        "grey": lambda rgb: np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), np.uint8),
    }

    def mapper(channel: Callable[[Picture], NDArray[np.uint8]], sigma: int, high: bool) -> Mapper:
        def give(picture: Picture) -> Probability:
            value = cv2.GaussianBlur(channel(picture).astype(np.float32), (0, 0), sigma) / 255
            return np.clip(value if high else 1 - value, 0, 1).astype(np.float32)

        return give

    return {
        f"{'high' if high else 'low'} {name}, blurred by {sigma} px": mapper(channel, sigma, high)
        for name, channel in of.items()
        for sigma in SMOOTH_PX
        for high in (False, True)
    }


def score_by_color(learnt: Sequence[Scene], tested: Sequence[Scene]) -> tuple[str, list[Row]]:
    """Choose the colour and threshold of the best pooled Dice on the `learnt` slides; score the tested ones."""
    of = colours()
    choices = {name: choose_threshold([scene.score(mapper) for scene in learnt]) for name, mapper in of.items()}
    name = max(choices, key=lambda name: choices[name][1])
    threshold = choices[name][0]
    return f"{name}, from {threshold:.3f} on", [row(scene.score(of[name]), threshold) for scene in tested]


def score_plain_loop(
    parts: Mapping[str, Sequence[Scene]], data: Mapping[str, Any], model: Mapping[str, Any], steps: int
) -> list[Row]:
    """Train the plain loop on `train`, choose its threshold on `val`, and score `test`.

    Args:
        parts: The slides of each split.
        data: Level, patch size, stride and batch size of the run to be compared with.
        model: Its network's encoder and decoder.
        steps: Steps of the optimizer.

    Returns:
        Rows of the tested slides, once for the threshold of validation and once for 0.5, with the seconds of training.
    """
    size = int(data["patch_size"])
    stride = int(data["stride"] or size)
    records = [scene.record for scene in parts["train"]]
    slides = [(one.image_path, one.mask_path, one.provider) for one in records if one.mask_path]
    start = time.perf_counter()
    network = plain_loop.train(
        slides,
        plain_loop.unet(model["encoder_name"], model["decoder_channels"]),
        number=data["level"],
        size=size,
        stride=stride,
        steps=steps,
        batch=data["batch_size"],
    )
    seconds = f"{time.perf_counter() - start:.0f}"

    def mapper(picture: Picture) -> Probability:
        return plain_loop.predict(network, picture, size, size // 2)

    threshold, _ = choose_threshold([scene.score(mapper) for scene in parts["val"]])
    scores = [scene.score(mapper) for scene in parts["test"]]
    return [
        {**row(one, at), "threshold": f"{at:.3f}", "choice": choice, "seconds": seconds}
        for choice, at in (("validation", threshold), ("half", 0.5))
        for one in scores
    ]


def table(methods: Mapping[str, Sequence[Row]]) -> str:
    """Set the figures of methods over the same slides side by side, in Markdown."""
    names = ("dice", "dice_mean_slide", "fp_mm2_benign_slides")
    lines = [
        "| | pooled Dice | mean Dice of slides with cancer | mm² called cancer on a slide without |",
        "|---|---|---|---|",
    ]
    for method, rows in methods.items():
        found = {figure.name: figure for figure in compute_figures(rows, "segmentation")}
        lines.append(f"| {method} | " + " | ".join(format_figure(found.get(name)) for name in names) + " |")
    return "\n".join(lines)


def format_figure(figure: Figure | None) -> str:
    """Format a figure with its interval."""
    if figure is None:
        return ""
    ends = "" if figure.interval is None else " [{:.2f}, {:.2f}]".format(*figure.interval)
    return f"{figure.value:.3f}{ends}"


def compare_pairs(names: tuple[str, str], a: Sequence[Row], b: Sequence[Row]) -> str:
    """Say how much better the second method is than the first, slide by slide."""
    pairs = pair_rows(names, (a, b), "segmentation")
    lines = []
    for found in compute_differences(pairs, choose_groups(pairs)[0], "segmentation"):
        if found.provider == "all" and found.difference is not None:
            ends = "" if found.interval is None else " [{:+.3f}, {:+.3f}]".format(*found.interval)
            lines.append(f"{names[1]} less {names[0]}, {found.figure}: {found.difference:+.3f}{ends}")
    return "\n".join(lines)


def train_folds(root: Path, name: str) -> None:
    """Train the folds of this project by its entry point, and score each at both thresholds.

    Raises:
        subprocess.CalledProcessError: If a job failed.
    """
    folds = "data.fold=" + ",".join(map(str, range(FOLDS)))
    keys = [f"data.root={root}", f"data.groups={root / 'patients.csv'}", f"name={name}"]
    command = [sys.executable, str(REPOSITORY / "train.py"), "-m", "experiment=glas", folds, "threshold=auto,0.5"]
    subprocess.run([*command, *keys, "logger=csv"], check=True, env=os.environ | {"PYTHONPATH": str(REPOSITORY)})


def compare_folds(root: Path, sweep: Path, out: Path) -> str:
    """Score all methods on the folds of a sweep.

    Args:
        root: The data folder.
        sweep: With a folder for each fold and threshold.
        out: Keeps the rows of the plain loop; a fold that is there with as many steps is not trained again.

    Returns:
        The tables as text.
    """
    jobs: dict[str, list[tuple[Path, Any]]] = {}
    for path in sorted(sweep.glob("*/config.yaml")):
        config: Any = OmegaConf.to_container(OmegaConf.load(path))
        jobs.setdefault(str(config["threshold"]), []).append((path.parent, config))
    ours = {threshold: read_folds([folder for folder, _ in found])[0] for threshold, found in jobs.items()}
    level = int(jobs["auto"][0][1]["data"]["level"])
    records = apply_groups(read_manifest(root), read_groups(root / "patients.csv")[0])
    slides = {record.slide_id: Scene.read(record, level) for record in records}
    methods: dict[str, list[Row]] = {name: [] for name in (ALL, COLOUR, PLAIN_HALF, PLAIN)}
    said = []
    for folder, config in jobs["auto"]:
        data, summary = config["data"], json.loads((folder / "summary.json").read_text())
        parts: dict[str, list[Scene]] = {}
        for line in read_output_table(folder / "splits.csv"):
            parts.setdefault(line["split"], []).append(slides[line["slide_id"]])
        steps = summary["epochs"] * -(-summary["data"]["patches"]["train"] // int(data["batch_size"]))
        kept = out / f"plain_fold{data['fold']}_{steps}steps.csv"
        if not kept.is_file():
            write_table(kept, score_plain_loop(parts, data, config["model"], steps))
        plain = read_output_table(kept)
        colour, rows = score_by_color(parts["train"] + parts["val"], parts["test"])
        methods[ALL] += [row(scene.score(predict_all_cancer), 0.0) for scene in parts["test"]]
        methods[COLOUR] += rows
        for name, choice in ((PLAIN_HALF, "half"), (PLAIN, "validation")):
            methods[name] += [line for line in plain if line["choice"] == choice]
        said.append(
            f"fold {data['fold']}: {steps} steps; this project {summary['seconds']:.0f} s, threshold "
            f"{summary['threshold']:.3f}; plain loop {plain[0]['seconds']} s, threshold {plain[0]['threshold']}; "
            f"colour: {colour}"
        )
    methods |= {OURS_HALF: list(ours["0.5"]), OURS: list(ours["auto"])}
    compared = [(PLAIN_HALF, OURS_HALF), (PLAIN, OURS)]
    gaps = [compare_pairs((a, b), methods[a], methods[b]) for a, b in compared]
    return "\n\n".join([table(methods), *gaps, "\n".join(said)])


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.glas", description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="the folder with train.csv and patients.csv")
    parser.add_argument("--name", default="glas", help="of this project's sweep, runs/segmentation/sweep-NAME")
    parser.add_argument("--out", type=Path, default=Path("out/glas"), help="keeps the results of the plain loop")
    given = parser.parse_args()
    sweep = Path("runs/segmentation") / f"sweep-{given.name}"
    if not sweep.exists():
        train_folds(given.root, given.name)
    given.out.mkdir(parents=True, exist_ok=True)
    try:
        print(compare_folds(given.root, sweep, given.out))
    except PandaError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
