"""What a segmentation run chooses on its validation slides, and how it is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from omegaconf import DictConfig

from panda.inference.evaluate import SlideScore, histograms
from panda.report.curves import write_calibration
from panda.tasks.calibration import RELIABILITY_BINS, Calibration, Temperature, calibration_scores
from panda.tasks.metrics import pooled
from panda.tasks.threshold import ThresholdChoice, search_threshold

CHOICE_KEYS = ("criterion", "cost_ratio", "threshold_per_provider")
"""Keys that say how the threshold is chosen."""
VALIDATION = "{} validation slides, blended canvases, tissue only"
"""What is chosen on, in words."""


def providers_of(scores: Sequence[SlideScore]) -> dict[str, str]:
    """Slide id to provider."""
    return {score.record.slide_id: score.record.provider for score in scores}


def choose_threshold(cfg: DictConfig, scores: Sequence[SlideScore], chosen_on: str) -> ThresholdChoice:
    """Search as `criterion`, `cost_ratio`, `threshold_per_provider` and `seed` of a checked configuration say."""
    return search_threshold(
        histograms(scores),
        cfg.criterion,
        chosen_on,
        cost_ratio=cfg.cost_ratio,
        groups={score.record.slide_id: score.record.group for score in scores},
        providers=providers_of(scores) if cfg.threshold_per_provider else None,
        seed=cfg.seed,
    )


def unknown_providers(choice: ThresholdChoice, scores: Sequence[SlideScore]) -> list[str]:
    """Says which providers were scored at the threshold of all, for want of validation slides of their own."""
    unknown = sorted(set(providers_of(scores).values()) - set(choice.by_provider)) if choice.by_provider else []
    return [
        f"No validation slide is of {provider}: its slides were scored at the threshold of all providers."
        for provider in unknown
    ]


def calibrate(folder: Path, temperature: Temperature, splits: Mapping[str, Sequence[SlideScore]]) -> Calibration:
    """Measure the calibration, and write `calibration.csv` and `.png` into the folder of a run.

    Args:
        folder: Folder of the run.
        temperature: Fitted on validation.
        splits: Scores of `validation`, and of `test` if it was scored.

    Returns:
        The temperature with the errors of each split.
    """
    hists = {split: pooled(histograms(scores)) for split, scores in splits.items()}
    write_calibration(hists, temperature.value, folder / "calibration.csv", folder / "calibration.png")
    found = {split: calibration_scores(hist, temperature.value) for split, hist in hists.items()}
    return Calibration(
        **temperature.model_dump(), bins=RELIABILITY_BINS, val=found["validation"], test=found.get("test")
    )
