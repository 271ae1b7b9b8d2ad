"""Metrics of zero-shot classification against slow versions of their definitions, and the probe against scikit-learn."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from lightning_vl.errors import UserError
from lightning_vl.evaluation.zero_shot_metrics import (
    Answers,
    ElevenPointMap,
    MeanOfTopOneAndFive,
    MeanPerClass,
    RocAuc,
    TopOne,
    answer,
    eleven_points,
    join,
    ranks,
    softmax,
    top,
)
from lightning_vl.evaluation.zero_shot_probe import LogisticProbe


def drawn(n: int, k: int, seed: int = 0, steps: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Logits with many ties (n, k), and labels of which some classes have few and the last none."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(k - 1, size=n) * rng.integers(2, size=n)
    logits = np.round(rng.normal(size=(n, k)) * steps) / steps + np.eye(k)[labels]
    return logits.astype(np.float32), labels


def answers(logits: np.ndarray, labels: np.ndarray) -> Answers:
    """In two batches, as a run makes them."""
    truth = np.eye(logits.shape[1], dtype=np.int8)[labels]
    half = len(logits) // 2
    parts = [(slice(0, half)), (slice(half, None))]
    return join([answer(logits[part], truth[part], np.arange(len(logits))[part], keep=True) for part in parts])


def naive_rank(logits: Sequence[float], label: int) -> int:
    """One more than the classes that are not below."""
    return 1 + sum(1 for other, logit in enumerate(logits) if other != label and not logit < logits[label])


def test_ranks_with_ties() -> None:
    """Breaks if of equal logits the true class counts as the higher, by which a constant network would be right."""
    logits, labels = drawn(200, 7)
    assert ranks(logits, labels).tolist() == [naive_rank(row, label) for row, label in zip(logits, labels, strict=True)]
    found = answers(logits, labels)
    ties = [list(row).count(row[label]) > 1 for row, label in zip(logits, labels, strict=True)]
    assert found.tied.tolist() == ties
    assert 10 < sum(ties) < 190
    assert answers(np.zeros((4, 3), np.float32), np.array([0, 1, 2, 0])).rank.tolist() == [3, 3, 3, 3]


def test_what_is_no_number_is_last() -> None:
    """Breaks if a network whose logits are not finite gets answers right."""
    logits = np.array([[1.0, math.nan, 0.0], [math.nan] * 3, [0.0, 2.0, math.nan]], np.float32)
    assert ranks(logits, np.array([1, 0, 1])).tolist() == [3, 3, 2]


def test_probability_is_the_softmax() -> None:
    """Breaks if the confidence is not the true class's softmax, overflows, or loses what is far below."""
    logits, labels = drawn(50, 5)
    for row, label, probability in zip(logits, labels, answers(logits, labels).probability, strict=True):
        assert probability == pytest.approx(math.exp(row[label]) / sum(math.exp(logit) for logit in row))
    assert softmax(np.array([[1000.0, 0.0]], np.float32)).tolist() == [[1.0, 0.0]]


def test_top_one_and_five() -> None:
    """Breaks if a place is counted off by one, or the mean is not that of the two."""
    logits, labels = drawn(200, 9)
    found, places = answers(logits, labels), [naive_rank(row, label) for row, label in zip(logits, labels, strict=True)]
    one, five = (sum(place <= most for place in places) / 200 for most in (1, 5))
    assert 0.05 < one < five < 1
    assert TopOne()(found, 9) == pytest.approx(one)
    assert top(found, 5) == pytest.approx(five)
    assert MeanOfTopOneAndFive()(found, 9) == pytest.approx((one + five) / 2)


def test_mean_per_class() -> None:
    """Breaks if classes count by their images, or a class without images counts as wrong."""
    logits, labels = drawn(300, 6)
    shares = []
    for label in range(6):
        own = [naive_rank(row, label) == 1 for row, true in zip(logits, labels, strict=True) if true == label]
        if own:
            shares.append(sum(own) / len(own))
    assert len(shares) == 5
    assert MeanPerClass()(answers(logits, labels), 6) == pytest.approx(sum(shares) / 5)
    assert abs(sum(shares) / 5 - TopOne()(answers(logits, labels), 6)) > 0.01


def test_roc_auc_of_two_classes() -> None:
    """Breaks if equal scores do not count half, or the first class is taken for the positive one."""
    logits, labels = drawn(120, 3)
    logits, labels = logits[:, :2], labels.clip(max=1)
    scores = (logits[:, 1] - logits[:, 0]).astype(float)
    pairs = [(p > n) + (p == n) / 2 for p in scores[labels == 1] for n in scores[labels == 0]]
    assert any(pair == 0.5 for pair in pairs)
    assert RocAuc()(answers(logits, labels), 2) == pytest.approx(sum(pairs) / len(pairs))
    assert RocAuc()(answers(logits, labels), 2) == pytest.approx(roc_auc_score(labels, scores))


def test_roc_auc_of_more_classes() -> None:
    """Breaks if the mean over classes is weighted, by logits instead of probabilities, or stumbles at a class without images."""
    logits, labels = drawn(150, 5, steps=8)
    found = RocAuc()(answers(logits, labels), 5)
    every = [roc_auc_score(labels == label, softmax(logits)[:, label]) for label in range(4)]
    assert found == pytest.approx(np.mean(every))
    with pytest.raises(UserError, match="of one"):
        RocAuc()(answers(logits, np.zeros(150, int)), 5)


def naive_eleven_points(scores: Sequence[float], positive: Sequence[bool]) -> float:
    """By the definition: at each recall the best precision of all thresholds that reach it."""
    points = []
    for threshold in set(scores):
        above = [is_positive for score, is_positive in zip(scores, positive, strict=True) if score >= threshold]
        points.append((sum(above) / sum(positive), sum(above) / len(above)))
    return (
        sum(max(precision for recall, precision in points if recall >= tenth / 10 - 1e-12) for tenth in range(11)) / 11
    )


@pytest.mark.parametrize("seed", range(5))
def test_eleven_points(seed: int) -> None:
    """Breaks if the average precision is another (area, 101 points), or depends on the order of equal scores."""
    rng = np.random.default_rng(seed)
    scores, positive = rng.integers(12, size=40).astype(float), rng.random(40) < 0.3
    expected = naive_eleven_points(scores.tolist(), positive.tolist())
    assert eleven_points(scores, positive) == pytest.approx(expected)
    order = rng.permutation(40)
    assert eleven_points(scores[order], positive[order]) == pytest.approx(expected)


def test_eleven_points_by_hand() -> None:
    """Breaks if VOC's own example of thought does: right, wrong, right of two gives 6 times 1 and 5 times 2/3."""
    found = eleven_points(np.array([3.0, 2.0, 1.0]), np.array([True, False, True]))
    assert found == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)


def test_map_of_images_with_several_labels() -> None:
    """Breaks if difficult images count, a class that nothing shows counts, or an image without labels is lost as a negative."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(60, 4)).astype(np.float32)
    truth = rng.choice(np.array([-1, 0, 0, 1], np.int8), size=(60, 4))
    truth[:, 3] = 0
    assert (truth != 1).all(1).any()
    found = answer(logits, truth, np.arange(60), keep=True)
    every = []
    for label in range(3):
        rows = [row for row in range(60) if truth[row, label] != -1]
        every.append(naive_eleven_points(logits[rows, label].tolist(), (truth[rows, label] == 1).tolist()))
    assert ElevenPointMap()(found, 4) == pytest.approx(sum(every) / 3)
    areas = [
        roc_auc_score(truth[truth[:, label] >= 0, label], logits[truth[:, label] >= 0, label]) for label in range(3)
    ]
    assert RocAuc()(found, 4) == pytest.approx(np.mean(areas))  # MedMNIST's ChestMNIST


def test_of_several_labels_the_best_counts() -> None:
    """Breaks if rank and confidence are of any other label, or images that show nothing are ranked."""
    logits = np.array([[0.0, 2.0, 3.0, 1.0], [1.0, 0.0, 0.0, 0.0]], np.float32)
    truth = np.array([[1, 1, 0, -1], [0, 0, -1, 0]], np.int8)
    found = answer(logits, truth, np.array([7, 8]), keep=False)
    assert (found.place.tolist(), found.label.tolist(), found.rank.tolist()) == ([7], [1], [2])
    assert found.logits.shape == found.truth.shape == (2, 0)


# -- the probe ----------------------------------------------------------------------------------------------------------


def clouds(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features (n, 6) of three classes that overlap, and their truth."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=n)
    features = rng.normal(size=(n, 6)) * 2
    features[:, :3] += 1.5 * np.eye(3)[labels]
    return features.astype(np.float32), np.eye(3, dtype=np.int8)[labels]


def test_the_probe_is_scikit_learns() -> None:
    """Breaks if the penalty is turned round, chosen on the test split, or the last fit leaves out the validation split."""
    train, validation, test = clouds(30, 0), clouds(60, 1), clouds(400, 2)

    def share(
        exponent: int, fitted: Sequence[tuple[np.ndarray, np.ndarray]], scored: tuple[np.ndarray, np.ndarray]
    ) -> float:
        model = LogisticRegression(C=10.0**-exponent, max_iter=1000)
        model.fit(np.concatenate([part[0] for part in fitted]), np.concatenate([part[1] for part in fitted]).argmax(1))
        return float((model.predict(scored[0]) == scored[1].argmax(1)).mean())

    coarse = {exponent: share(exponent, [train], validation) for exponent in range(-6, 7, 2)}
    best = max(coarse, key=lambda exponent: (coarse[exponent], exponent))
    for exponent in (best - 1, best + 1):
        coarse[exponent] = share(exponent, [train], validation)
    best = max(coarse, key=lambda exponent: (coarse[exponent], exponent))
    assert len(set(coarse.values())) > 2
    expected = share(best, [train, validation], test)
    assert LogisticProbe(steps_per_decade=1)(train, validation, test, TopOne()) == pytest.approx(expected)


def test_the_probe_with_several_labels_and_unseen_classes() -> None:
    """Breaks if an image with two labels, none, or difficult ones stops the probe, or an unseen class is ever its answer."""

    def both(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        truth = (rng.random((n, 3)) < [0.5, 0.3, 0.0]).astype(np.int8)
        features = (3 * truth + rng.normal(size=(n, 3))).astype(np.float32)
        truth[0, 0] = -1
        return features, truth

    assert LogisticProbe(1)(both(80, 0), both(40, 1), both(100, 2), ElevenPointMap()) > 0.9
    features, truth = clouds(60, 0)
    wider = features, np.pad(truth, ((0, 0), (1, 0)))
    assert LogisticProbe(1)(wider, wider, wider, TopOne()) == LogisticProbe(1)(
        (features, truth), (features, truth), (features, truth), TopOne()
    )
    with pytest.raises(UserError, match="steps_per_decade"):
        LogisticProbe(3)
