"""Scores of slides that are kept with what made them, so that nothing is mapped again to be counted again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from panda.data.manifest import SlideRecord
from panda.files import fingerprint, identity, whole_path
from panda.inference.evaluate import SlideScore
from panda.inference.predictor import SegmentationPredictor, resolution_for
from panda.wsi.label_maps import find_label_map
from panda.wsi.slide import Slide

_KEPT = tuple(field.name for field in fields(SlideScore) if field.name != "record")


def score_made_of(predictor: SegmentationPredictor, slide: Slide, record: SlideRecord) -> str:
    """Return the fingerprint of all that makes a slide's score: its canvas, its mask and what the codes mean.

    Args:
        predictor: That maps it.
        slide: The open slide.
        record: With its mask.
    """
    assert record.mask_path is not None
    return fingerprint(
        {
            "canvas": predictor.canvas_fingerprint(slide, resolution_for(slide, predictor.carried["resolution"])),
            "mask": identity(record.mask_path),
            "codes": find_label_map(record.provider, predictor.label_maps).codes(),
            "parts": _KEPT,
        }
    )


def write_scores(path: Path, scores: Mapping[str, SlideScore]) -> None:
    """Write scores as one `.npz` file, whole or not at all.

    Args:
        path: The file.
        scores: By `score_made_of`.
    """
    arrays: dict[str, Any] = {}
    plain: dict[str, dict[str, Any]] = {}
    for key, score in scores.items():
        parts = {name: getattr(score, name) for name in _KEPT}
        arrays |= {f"{key}/{name}": part for name, part in parts.items() if isinstance(part, np.ndarray)}
        plain[key] = {name: part for name, part in parts.items() if not isinstance(part, np.ndarray)}
    with whole_path(path) as partial:
        np.savez_compressed(partial, plain=np.array(json.dumps(plain)), **arrays)


def read_scores(path: Path) -> dict[str, dict[str, Any]]:
    """Read what `write_scores` wrote.

    Args:
        path: The file.

    Returns:
        The parts of each score but its record, by `score_made_of`; none where there is no file, or a damaged one.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            found: dict[str, dict[str, Any]] = json.loads(str(stored["plain"]))
            for name in stored.files:
                key, _, part = name.partition("/")
                if part:
                    found[key][part] = stored[name]
    except Exception:  # zip, zlib and NumPy each have errors of their own
        return {}
    return {key: parts for key, parts in found.items() if set(parts) == set(_KEPT)}
