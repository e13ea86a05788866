"""Probabilities of classes: sigmoid or softmax, and their sum over the classes of cancer."""

from __future__ import annotations

import numpy as np
import torch

from panda.models.probabilities import compute_cancer_classes, compute_cancer_probability


def test_compute_cancer_probability_one_channel_is_sigmoid() -> None:
    logits = torch.randn(2, 1, 5, 4)
    assert torch.equal(compute_cancer_classes(logits), logits.sigmoid())
    assert torch.equal(compute_cancer_probability(logits), logits.sigmoid())


def test_compute_cancer_probability_sums_softmax_of_cancer() -> None:
    logits = torch.randn(2, 4, 5, 6) * 3
    exact = np.exp(logits.double().numpy())
    exact /= exact.sum(1, keepdims=True)
    np.testing.assert_allclose(compute_cancer_classes(logits), exact[:, 1:], rtol=1e-5)
    np.testing.assert_allclose(compute_cancer_probability(logits), 1 - exact[:, :1], atol=1e-6)


def test_compute_cancer_probability_sum_is_a_probability() -> None:
    torch.manual_seed(0)
    logits = torch.randn(64, 4, 32, 32) * 4
    logits[:, 0] = -60
    found = compute_cancer_probability(logits)
    assert (compute_cancer_classes(logits).sum(1) > 1).any(), "some sums are above 1 by rounding"
    assert ((found >= 0) & (found <= 1)).all()


def test_compute_cancer_probability_is_float32_of_half_precision() -> None:
    assert compute_cancer_probability(torch.randn(1, 4, 2, 2).bfloat16()).dtype == torch.float32
