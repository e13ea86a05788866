"""Outliers: slides whose µm/px or pyramid differs from nearly all others of their provider."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from panda.audit.inspection import Inspection
from panda.data.findings import Finding

_ALIKE = 0.02  # relative difference of µm/px, and of downsamples, that counts as none
_FEW = 0.05  # share of a provider's slides below which a value is unusual
_MOST = 2 / 3  # share of slides that must have usual values


def find_outliers(inspections: Iterable[Inspection]) -> list[Finding]:
    """Find slides whose µm/px or pyramid differs from the rest of their provider.

    A value is unusual if less than 5 % of the provider's slides (or no other one) have it within 2 %, and two thirds of
    the slides have usual values.

    Args:
        inspections: The inspections of all slides.

    Returns:
        The findings, by provider and slide.
    """
    mpps: defaultdict[str, dict[str, tuple[float, ...]]] = defaultdict(dict)
    levels: defaultdict[str, dict[str, tuple[float, ...]]] = defaultdict(dict)
    for seen in inspections:
        if seen.mpp is not None and seen.mpp_source != "override":
            mpps[seen.provider][seen.slide_id] = seen.mpp
        if seen.downsamples:
            levels[seen.provider][seen.slide_id] = seen.downsamples
    found = []
    for finding, by_provider, word in (
        ("mpp_unlike_provider", mpps, "µm/px is"),
        ("unusual_levels", levels, "its levels are shrunk by"),
    ):
        for provider, values in sorted(by_provider.items()):
            usual, unusual = _split_usual(values)
            for slide_id, value in sorted(unusual.items()):
                text = f"{word} {_format_values(value)}; the others of {provider} have {' or '.join(usual)}"
                found.append(Finding(slide_id, finding, text))
    return found


def _split_usual(values: Mapping[str, tuple[float, ...]]) -> tuple[list[str], dict[str, tuple[float, ...]]]:
    """Return the usual values as text, the most frequent first, and the slides with unusual values."""
    rounded = {slide_id: tuple(float(f"{number:.3g}") for number in value) for slide_id, value in values.items()}
    counts = Counter(rounded.values())
    alike = {value: sum(count for other, count in counts.items() if _are_alike(value, other)) for value in counts}
    least = max(2.0, _FEW * len(values))
    unusual = {slide_id: values[slide_id] for slide_id, value in rounded.items() if alike[value] < least}
    if len(values) - len(unusual) < _MOST * len(values):
        return [], {}
    named: list[tuple[float, ...]] = []
    for value in sorted(alike, key=lambda value: (-alike[value], value)):
        if alike[value] >= least and not any(_are_alike(value, other) for other in named):
            named.append(value)
    return [_format_values(value) for value in named], unusual


def _are_alike(a: Sequence[float], b: Sequence[float]) -> bool:
    return len(a) == len(b) and all(abs(x / y - 1) <= _ALIKE for x, y in zip(a, b, strict=True))


def _format_values(values: Sequence[float]) -> str:
    return " / ".join(f"{value:.3g}" for value in values)
