"""GLUE's metrics against scikit-learn and torchmetrics, and the bag of words beside a network."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from torchmetrics.functional.classification import multiclass_matthews_corrcoef

from lightning_vl.data.labelled_text import LabelledText
from lightning_vl.errors import UserError
from lightning_vl.evaluation.bag_of_words import bag_of_words, terms
from lightning_vl.evaluation.sentence_metrics import SentenceMetrics


def measured(predicted: list[int], labels: list[int], classes: int, batch: int = 7) -> dict[str, float]:
    """The metrics of these answers, counted in batches."""
    metric = SentenceMetrics(classes)
    for first in range(0, len(labels), batch):
        logits = torch.nn.functional.one_hot(torch.tensor(predicted[first : first + batch]), classes).float()
        metric.update(logits - 3, torch.tensor(labels[first : first + batch]))
    return {name: value.item() for name, value in metric.compute().items()}


@pytest.mark.parametrize("classes", [2, 5])
def test_metrics_are_those_of_scikit_learn(classes: int) -> None:
    """Breaks if batches are weighed wrongly, or a formula has true and predicted classes the wrong way round."""
    rng = np.random.default_rng(classes)
    labels = rng.integers(classes, size=100)
    predicted = np.where(
        rng.random(100) < 0.4, labels, rng.choice(classes, 100, p=np.arange(1, classes + 1) / sum(range(classes + 1)))
    )
    values = measured(predicted.tolist(), labels.tolist(), classes)
    assert values["accuracy"] == pytest.approx(accuracy_score(labels, predicted))
    assert values["matthews"] == pytest.approx(matthews_corrcoef(labels, predicted))
    theirs = multiclass_matthews_corrcoef(torch.tensor(predicted), torch.tensor(labels), classes)
    assert values["matthews"] == pytest.approx(theirs.item(), abs=1e-6)
    if classes == 2:
        assert values["f1"] == pytest.approx(f1_score(labels, predicted))
    else:
        assert "f1" not in values


@pytest.mark.parametrize(
    ("predicted", "labels"), [([1] * 10, [1] * 7 + [0] * 3), ([0, 1, 1], [1, 1, 1]), ([0] * 4, [0] * 4)]
)
def test_an_answer_that_never_changes_has_no_correlation(predicted: list[int], labels: list[int]) -> None:
    """Breaks if a network that says one class only gets a correlation, as from torchmetrics, or nan."""
    values = measured(predicted, labels, 2)
    assert values["matthews"] == 0 == matthews_corrcoef(labels, predicted)
    assert values["f1"] == pytest.approx(f1_score(labels, predicted, zero_division=0))


def test_counts_begin_anew() -> None:
    """Breaks if the answers of one validation count in the next."""
    metric = SentenceMetrics(2)
    metric.update(torch.tensor([[1.0, 0.0]]), torch.tensor([1]))
    metric.reset()
    metric.update(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    assert metric.compute()["accuracy"] == 1


def test_terms_by_hand() -> None:
    """Words of one letter and marks count, neighbours keep their order, and both texts of a pair are kept apart."""
    assert terms(LabelledText("", "I see.", None, 0)) == [
        "first: i", "first: see", "first: .", "first: i see", "first: see .",
    ]  # fmt: skip
    assert terms(LabelledText("", "a", "a b", 0)) == ["first: a", "second: a", "second: b", "second: a b"]


def test_a_bag_of_words_learns_words_and_sides() -> None:
    """Breaks if the baseline cannot tell what one word, or which of a pair's texts has it, tells."""
    texts = [
        LabelledText("", f"it is {word} {i}", None, label)
        for i in range(5)
        for label, word in enumerate(("bad", "good"))
    ]
    asked = [LabelledText("", "good", None, 0), LabelledText("", "really bad", None, 0)]
    assert bag_of_words(texts, asked).tolist() == [1, 0]
    pairs = [LabelledText("", a, b, label) for _ in range(5) for label, (a, b) in enumerate([("x", "y"), ("y", "x")])]
    assert bag_of_words(pairs, pairs[:2]).tolist() == [0, 1]


@pytest.mark.parametrize(
    "train", [[LabelledText("", "one", None, 0)], [LabelledText("", "", None, i) for i in range(2)]]
)
def test_nothing_to_learn(train: list[LabelledText]) -> None:
    """Breaks if a run ends in scikit-learn's traceback."""
    with pytest.raises(UserError, match="one class only, or no words"):
        bag_of_words(train, train)
