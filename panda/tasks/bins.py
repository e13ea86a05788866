"""The bins of histograms of probabilities; a process that computes without torch can import them."""

from __future__ import annotations

BINS = 1000
"""Number of thresholds: 0, 0.001, … 0.999."""


def is_step(value: float) -> bool:
    """Return whether a probability is one of the thresholds at which histograms give scores."""
    return round(value * BINS) / BINS == value
