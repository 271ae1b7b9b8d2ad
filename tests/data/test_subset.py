"""Subsets of training sets: balanced, nested, seeded; and what is kept for validation."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from lightning_vl.data.subset import balanced_subset, hold_out
from lightning_vl.errors import UserError


def test_subsets_are_balanced_nested_and_seeded() -> None:
    """Breaks if a smaller training set of a sweep has an image that a larger lacks, or a class is preferred."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(7), 30))
    subsets = [balanced_subset(labels, count, seed=3).tolist() for count in range(1, 211)]
    for count, subset in enumerate(subsets, start=1):
        assert len(set(subset)) == count
        assert subset == sorted(subset)
        sizes = Counter(labels[subset].tolist())
        assert max(sizes.values()) - min(sizes[label] for label in range(7)) <= 1
    assert all(set(smaller) < set(larger) for smaller, larger in pairwise(subsets))
    assert balanced_subset(labels, 50, seed=3).tolist() == subsets[49]
    assert balanced_subset(labels, 50, seed=4).tolist() != subsets[49]


def test_a_small_class_leaves_its_turns_to_the_others() -> None:
    """Breaks if a class that has run out ends the subset, or one without images is counted on."""
    labels = [0] * 3 + [2] * 20 + [3] * 20
    subset = balanced_subset(labels, 23, seed=0)
    assert Counter(np.array(labels)[subset].tolist()) == {0: 3, 2: 10, 3: 10}
    assert balanced_subset(labels, 43, seed=0).tolist() == list(range(43))


def test_held_out_is_a_share_of_each_class() -> None:
    """Breaks if an image is in both parts or in none, or a rare class is not validated on."""
    labels = [0, 1] * 20 + [2] * 3
    kept, held_out = hold_out(labels, ["a", "b", "c"], 0.1, seed=0)
    assert sorted(kept + held_out) == list(range(43))
    assert Counter(labels[place] for place in held_out) == {0: 2, 1: 2, 2: 1}
    assert hold_out(labels, ["a", "b", "c"], 0.1, seed=0) == (kept, held_out)
    assert any(hold_out(labels, ["a", "b", "c"], 0.1, seed)[1] != held_out for seed in (1, 2))


@pytest.mark.parametrize(
    ("labels", "share", "what"), [([0, 1, 1], 0.1, "class 'a' has 1"), ([0, 0], 1.0, "share is 1")]
)
def test_what_cannot_be_held_out(labels: list[int], share: float, what: str) -> None:
    """Otherwise a class would be left with nothing to train on."""
    with pytest.raises(UserError, match=what):
        hold_out(labels, ["a", "b"][: max(labels) + 1], share, 0)
