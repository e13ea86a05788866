"""Store the scores of slides with their fingerprints, so that a slide is not mapped again to be scored again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeFloat, NonNegativeInt, TypeAdapter

from panda.data.manifest import SlideRecord
from panda.files import fingerprint, identity, whole_path
from panda.inference.evaluate import SlideScore
from panda.inference.predictor import SegmentationPredictor
from panda.tasks.metrics import BINS
from panda.wsi.label_maps import find_label_map
from panda.wsi.slide import Slide


class StoredScore(NamedTuple):
    """The fields of a `SlideScore` after its record."""

    histogram: NDArray[np.int64]
    pixel_area_um2: float | None
    outside_px: int


_PLAIN = TypeAdapter(dict[str, tuple[NonNegativeFloat | None, NonNegativeInt]])
"""Fingerprint to the fields of a score that are no arrays."""


def score_fingerprint(predictor: SegmentationPredictor, slide: Slide, record: SlideRecord) -> str:
    """Return the fingerprint of everything that determines the score of a slide: canvas, mask and label map.

    Args:
        predictor: The predictor that maps the slide.
        slide: The open slide.
        record: The record of the slide, with its mask.
    """
    assert record.mask_path is not None
    return fingerprint(
        {
            "canvas": predictor.canvas_fingerprint(slide, predictor.metadata.resolution.resolve(slide)),
            "mask": identity(record.mask_path),
            "codes": find_label_map(record.provider, predictor.metadata.label_maps).codes(),
            "parts": StoredScore._fields,
        }
    )


def write_scores(path: Path, scores: Mapping[str, SlideScore]) -> None:
    """Write scores as one `.npz` file, whole or not at all.

    Args:
        path: The file.
        scores: Scores by `score_fingerprint`.
    """
    plain = _PLAIN.dump_json({key: (score.pixel_area_um2, score.outside_px) for key, score in scores.items()})
    arrays: dict[str, Any] = {key: score.histogram for key, score in scores.items()}
    with whole_path(path) as partial:
        np.savez_compressed(partial, plain=np.array(plain.decode()), **arrays)


def read_scores(path: Path) -> dict[str, StoredScore]:
    """Read the scores of a file by `score_fingerprint`; none if the file is missing, damaged or was edited."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            plain = _PLAIN.validate_json(str(stored["plain"]))
            scores = {key: StoredScore(stored[key], *parts) for key, parts in plain.items()}
    except Exception:  # zip, zlib and NumPy each have errors of their own
        return {}
    whole = all(score.histogram.shape == (2, BINS) and score.histogram.dtype == np.int64 for score in scores.values())
    return scores if whole else {}
