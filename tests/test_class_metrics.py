"""Counts and Dice of the classes of cancer during training."""

from __future__ import annotations

import numpy as np
import torch

from panda.tasks.class_counts import measure_class_dice
from panda.tasks.class_metrics import ClassCounts, predict_classes
from panda.wsi.classes import ClassSet, find_classes

GLEASON = find_classes("gleason")


def test_predict_classes_highest_where_the_sum_reaches() -> None:
    probabilities = torch.tensor(
        [[0.2, 0.2, 0.1], [0.1, 0.2, 0.1], [0.3, 0.1, 0.1], [0.2, 0.2, 0.2], [0.0, 0.25, 0.25]]
    )
    found = predict_classes(probabilities.T.reshape(1, 3, 5, 1), 0.5, GLEASON)
    assert found.shape == (1, 1, 5, 1)
    assert found.flatten().tolist() == [2, 0, 1, 3, 3]  # a tie has the higher pattern


def test_predict_classes_order_of_names_changes_nothing() -> None:
    other = ClassSet(names=("benign", "G5", "G3", "G4"), patterns=GLEASON.patterns)
    probabilities = (torch.rand(2, 3, 8, 8) * 4).round() / 12
    found = predict_classes(probabilities, 0.5, GLEASON)
    permuted = predict_classes(probabilities[:, [2, 0, 1]], 0.5, other)
    names, renamed = (np.array(classes.names) for classes in (GLEASON, other))
    assert (names[found.numpy()] == renamed[permuted.numpy()]).all()


def test_class_counts_only_labels_that_tell_the_class() -> None:
    target = torch.tensor([0, 0, 1, 1, 2, 3, -1, -2]).view(1, 1, 2, 4).float()
    predicted = torch.tensor([0, 2, 1, 2, 2, 0, 1, 1]).view(1, 1, 2, 4)
    counts = ClassCounts(4)
    counts.update(predicted[..., :1, :], target[..., :1, :])
    counts.update(predicted[..., 1:, :], target[..., 1:, :])
    table = counts.compute()
    assert table.tolist() == [[1, 0, 1, 0], [0, 1, 1, 0], [0, 0, 1, 0], [1, 0, 0, 0]]
    assert int(table.sum()) == 6
    np.testing.assert_allclose(measure_class_dice(table.numpy()), [2 / (2 + 1), 2 / (1 + 3), 0])


def test_measure_class_dice_without_labels_is_nan() -> None:
    table = torch.zeros(4, 4, dtype=torch.int64)
    table[0] = torch.tensor([5, 3, 0, 0])
    table[2, 2] = 4
    dice = measure_class_dice(table.numpy())
    assert np.isnan(dice[[0, 2]]).all()
    assert dice[1] == 1


def test_class_counts_of_merged_classes_are_binary() -> None:
    rng = np.random.default_rng(0)
    target, predicted = torch.from_numpy(rng.integers(0, 4, (2, 1, 1, 40, 40)))
    counts = ClassCounts(4)
    counts.update(predicted, target.float())
    binary = ClassCounts(2)
    binary.update((predicted > 0).long(), (target > 0).float())
    table = counts.compute()
    merged = torch.stack([torch.stack([r[0], r[1:].sum()]) for r in (table[0], table[1:].sum(0))])
    assert torch.equal(merged, binary.compute())
