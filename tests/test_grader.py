"""Attention scores against labelled cancer, compared with figures taken pixel by pixel."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn import metrics as oracle

from panda.inference.grade import AttentionScores
from panda.inference.grader import score_attention
from panda.wsi.geometry import Resolution

SIDE = 10
VIEW = Resolution(2.0, 50, 40, 0, 1.0, None)


def hold_attention(cancer: NDArray[np.bool_], attention: NDArray[np.float32]) -> AttentionScores:
    """Attention on the tiles of a view, side by side, against a mask of the view's size."""

    def read_tumor(view: Resolution, location: tuple[int, int], size: tuple[int, int]) -> NDArray[np.bool_]:
        assert view == VIEW
        x, y = (value // 2 for value in location)  # level-0 px
        return cancer[y : y + size[1], x : x + size[0]]

    label: Any = SimpleNamespace(read_tumor=read_tumor)
    coords = np.array([[2 * x, 2 * y] for y in range(0, 40, SIDE) for x in range(0, 50, SIDE)], np.int64)
    return score_attention(label, coords, VIEW, SIDE, attention)


def test_score_attention_matches_oracle() -> None:
    rng = np.random.default_rng(0)
    part = rng.choice([0.0, 0.05, 0.1, 0.6, 1.0], 20)
    cancer = np.zeros((40, 50), np.bool_)
    for number, share in enumerate(part):
        y, x = divmod(number, 5)
        tile = np.arange(SIDE * SIDE) < round(share * SIDE * SIDE)
        cancer[y * SIDE : (y + 1) * SIDE, x * SIDE : (x + 1) * SIDE] = tile.reshape(SIDE, SIDE)
    attention = np.round(rng.dirichlet(np.ones(20)), 2).astype(np.float32)  # some are equal
    found = hold_attention(cancer, attention)
    assert found.attention_auroc == pytest.approx(oracle.roc_auc_score(part >= 0.1, attention), abs=1e-9)
    assert found.cancer_of_tiles == pytest.approx(part.mean())
    assert found.cancer_attended == pytest.approx(np.average(part, weights=attention))


def test_score_attention_benign_or_all_cancer_tiles_have_no_auroc() -> None:
    even = np.full(20, 0.05, np.float32)
    assert hold_attention(np.zeros((40, 50), np.bool_), even) == AttentionScores()
    found = hold_attention(np.ones((40, 50), np.bool_), even)
    assert found.attention_auroc is None
    assert (found.cancer_attended, found.cancer_of_tiles) == pytest.approx((1, 1))
