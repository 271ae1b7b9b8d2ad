"""Which samples a smaller data set has: seeded, balanced over the classes, and nested."""

from collections.abc import Sequence

import numpy as np

from lightning_vl.errors import UserError


def balanced_subset(labels: Sequence[int] | np.ndarray, count: int, seed: int) -> np.ndarray:
    """As many of each class as can be: with the same seed, the smaller of two subsets lies within the larger.

    Every class is shuffled; the subset takes the first of each class in turn, then the second of each, and so on. A class
    that has run out leaves its turns to the others.

    Args:
        labels: class index of each sample.
        count: size of the subset.
        seed: seed of the shuffle.

    Returns:
        Ascending places in `labels`, int64 (count,).
    """
    labels = np.asarray(labels)
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(labels))
    turn = np.empty(len(labels), np.int64)  # of each sample among those of its class
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    sizes = np.bincount(labels)
    turn[by_class] = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    taken = np.lexsort((rng.permutation(len(labels)), turn))[:count]  # by turn; within one, classes in random order
    return np.sort(taken)


def hold_out(labels: Sequence[int], class_names: Sequence[str], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Keeps a share of each class for validation, one of each at least.

    Args:
        labels: class index of each training sample.
        class_names: names of the classes.
        share: share of each class that is held out, between 0 and 1.
        seed: seed of the choice.

    Returns:
        Ascending places of the samples to train on and of those held out.

    Raises:
        UserError: a class is too small to keep some for validation.
    """
    if not 0 < share < 1:
        raise UserError(f"validation_share is {share}", "give a share between 0 and 1")
    kept: list[int] = []
    held_out: list[int] = []
    by_class = np.argsort(np.asarray(labels), kind="stable")
    ends = np.cumsum(np.bincount(np.asarray(labels), minlength=len(class_names)))
    for label, name in enumerate(class_names):
        places = by_class[ends[label - 1] if label else 0 : ends[label]]
        count = max(1, round(len(places) * share))
        if count >= len(places):
            raise UserError(
                f"class {name!r} has {len(places)} training samples, too few to keep some for validation",
                "add some, or give the data a validation split with the same classes",
            )
        order = np.random.default_rng([seed, label]).permutation(len(places))
        held_out += places[order[:count]].tolist()
        kept += places[order[count:]].tolist()
    return sorted(kept), sorted(held_out)
