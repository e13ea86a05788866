"""Which patches an epoch draws."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from panda.data.loaders import DrawSampler
from panda.data.samplers import BalancedDraws, HardDraws, find_kinds


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=1, max_size=12),
    share=st.sampled_from([0.2, 0.5, 0.8]),
    seed=st.integers(0, 99),
)
def test_balanced_draws_keep_share_and_draw_every_slide(sizes: list[tuple[int, int]], share: float, seed: int) -> None:
    tumor = np.concatenate([np.r_[np.ones(a, bool), np.zeros(b, bool)] for a, b in sizes] or [np.zeros(0, bool)])
    slides = np.repeat(np.arange(len(sizes)), [a + b for a, b in sizes])
    if not len(tumor):
        return
    draws = BalancedDraws(tumor, slides, share)
    order = draws(np.random.default_rng(seed))
    assert len(order) == len(tumor)
    if tumor.any() and not tumor.all():
        assert int(tumor[order].sum()) == round(share * len(tumor))
    for kind in (True, False):
        having = set(slides[tumor == kind].tolist())
        got = Counter(slides[order[tumor[order] == kind]].tolist())
        if sum(got.values()) >= len(having):
            assert set(got) == having
        for slide in got:  # none again before all of its slide and kind have been
            times = Counter(order[(slides[order] == slide) & (tumor[order] == kind)].tolist())
            of = int(((slides == slide) & (tumor == kind)).sum())
            assert max(times.values()) - (min(times.values()) if len(times) == of else 0) <= 1
    np.testing.assert_array_equal(draws(np.random.default_rng(seed)), order)


def test_balanced_draws_kinds_of_cancer_share_alike() -> None:
    kinds = np.repeat([0, 1, 2, 4], [600, 300, 80, 20])
    slides = np.arange(1000) % 5
    order = BalancedDraws(kinds, slides, 0.6)(np.random.default_rng(0))
    assert Counter(kinds[order].tolist()) == {0: 400, 1: 200, 2: 200, 4: 200}


def test_find_kinds_rarest_class_counts() -> None:
    classes = np.array([[0.1, 0, 0], [0.1, 0.2, 0], [0.5, 0.1, 0.01], [0, 0, 0], [0, 0, 0], [0.2, 0, 0]])
    kinds = find_kinds(classes, np.array([0.1, 0.3, 0.61, 0.4, 0, 0.2]))
    assert kinds.tolist() == [1, 2, 3, 4, 0, 1]


def test_find_kinds_binary_is_cancer() -> None:
    shares = np.random.default_rng(0).choice([0, 0.2, 1.0], 50)
    kinds = find_kinds(shares[:, None], shares)
    assert (kinds == (shares > 0)).all()
    draws = [BalancedDraws(k, np.arange(50) % 3, 0.5)(np.random.default_rng(1)) for k in (kinds, shares > 0)]
    assert np.array_equal(draws[0], draws[1])


def test_balanced_draws_weigh_slides_by_root_of_size() -> None:
    tumor = np.r_[np.ones(1000, bool), np.ones(10, bool), np.zeros(990, bool)]
    slides = np.r_[np.zeros(1000, int), np.ones(10, int), np.full(990, 2)]
    got = Counter(slides[BalancedDraws(tumor, slides, 0.5)(np.random.default_rng(0))].tolist())
    assert got[0] + got[1] == got[2] == 1000
    assert got[0] / got[1] == pytest.approx(10, rel=0.1)


def test_hard_draws_prefer_patches_with_errors() -> None:
    draws = HardDraws(1000)
    rng = np.random.default_rng(0)
    first = Counter(draws(rng).tolist())
    assert sum(first.values()) == 1000
    draws.record_losses(range(1000), torch.where(torch.arange(1000) < 100, 2.0, 0.01))
    order = draws(np.random.default_rng(1))
    assert len(order) == 1000
    assert (order < 100).mean() > 0.4  # of 1/10 of the patches
    assert len(set(order[order >= 100].tolist())) > 400  # half of all come in any case
    np.testing.assert_array_equal(draws(np.random.default_rng(1)), order)


def test_hard_draws_unseen_patches_count_as_hardest() -> None:
    draws = HardDraws(200)
    draws.record_losses(range(100), torch.cat([torch.full((99,), 0.01), torch.tensor([5.0])]))
    order = draws(np.random.default_rng(0))
    assert (order >= 100).sum() > 130


@pytest.mark.parametrize("choose", [None, HardDraws(50), BalancedDraws(np.arange(50) < 5, np.arange(50) % 7, 0.5)])
def test_draw_sampler_epoch_follows_seed_and_number(choose: Any) -> None:
    sampler = DrawSampler(50, seed=3, choose=choose)
    epochs = [list(sampler) for _ in range(3)]
    assert epochs[0] != epochs[1]
    later = DrawSampler(50, seed=3, choose=choose)
    later.set_epoch(2)
    assert list(later) == epochs[2]
    assert later.order == [draw.item for draw in epochs[2]]
