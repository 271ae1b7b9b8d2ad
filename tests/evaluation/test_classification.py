"""Accuracies against a slow version, ties, several heads, and ranks of processes."""

import itertools

import pytest
import torch
from torchmetrics.functional.classification import multiclass_accuracy

from lightning_vl.evaluation.classification import ClassificationMetrics


def test_one_head_agrees_with_torchmetrics() -> None:
    """Breaks if top-1 or top-5 are counted otherwise than the field does."""
    torch.manual_seed(0)
    logits, labels = torch.randn(200, 12), torch.randint(12, (200,))
    metrics = ClassificationMetrics({"class": 12}, baseline=True)
    for rows in torch.arange(200).split(7):
        metrics.update({"class": logits[rows]}, {"class": labels[rows]})
    values = metrics.compute()
    for k in (1, 5):
        expected = multiclass_accuracy(logits, labels, 12, average="micro", top_k=k)
        assert values[f"top{k}"] == pytest.approx(expected.item())
    assert values["baseline/majority_top1"] == labels.bincount().max() / 200


def test_the_action_is_the_product_of_the_softmaxes() -> None:
    """Breaks if the action's rank is not that of the pair among all pairs (EPIC-KITCHENS): a naive loop over pairs agrees."""
    torch.manual_seed(1)
    nouns, verbs = torch.randn(40, 5), torch.randn(40, 4)
    labels = {"noun": torch.randint(5, (40,)), "verb": torch.randint(4, (40,))}
    top = {1: 0, 5: 0}
    for i in range(40):
        score = {
            (n, v): float(nouns[i].softmax(0)[n] * verbs[i].softmax(0)[v])
            for n, v in itertools.product(range(5), range(4))
        }
        order = sorted(score, key=score.__getitem__, reverse=True)
        rank = order.index((int(labels["noun"][i]), int(labels["verb"][i])))
        for k in top:
            top[k] += rank < k
    metrics = ClassificationMetrics({"noun": 5, "verb": 4}, baseline=False)
    metrics.update({"noun": nouns, "verb": verbs}, labels)
    values = metrics.compute()
    assert values["action_top1"] == pytest.approx(top[1] / 40)
    assert values["action_top5"] == pytest.approx(top[5] / 40)
    both = (nouns.argmax(1) == labels["noun"]) & (verbs.argmax(1) == labels["verb"])
    assert values["action_top1"] == pytest.approx(both.float().mean().item())
    assert "noun_top1" in values


def test_a_constant_answer_is_right_by_chance_only() -> None:
    """Breaks if ties count as right: equal logits must not be an accuracy of one."""
    metrics = ClassificationMetrics({"class": 4}, baseline=False)
    metrics.update({"class": torch.zeros(4, 4)}, {"class": torch.arange(4)})
    assert metrics.compute()["top1"] == 0.25


def test_nan_is_wrong() -> None:
    """Breaks if comparisons with nan make a broken network right."""
    metrics = ClassificationMetrics({"class": 10}, baseline=False)
    metrics.update({"class": torch.full((4, 10), float("nan"))}, {"class": torch.zeros(4, dtype=torch.long)})
    assert metrics.compute()["top1"] == 0
    assert metrics.compute()["top5"] == 0


def test_half_precision_logits_are_ranked_as_they_are() -> None:
    """Breaks if bfloat16 logits fail or are ranked by something else."""
    logits = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.bfloat16)
    metrics = ClassificationMetrics({"class": 3}, baseline=False)
    metrics.update({"class": logits}, {"class": torch.tensor([2])})
    assert metrics.compute()["top1"] == 1
