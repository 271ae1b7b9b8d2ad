"""Classification metrics over one or several heads; usable without a Trainer."""

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor
from torchmetrics import Metric


class ClassificationMetrics(Metric):
    """Top-1 and top-5 accuracy by head; with several heads also of the action, which is right when every head is.

    Ranks of the true action among all pairs come from the product of the heads' softmaxes, as EPIC-KITCHENS scores it:
    top-1 means that every head is right, top-5 uses the products. The majority class of the evaluated samples is given
    beside it: what a classifier reaches that has seen only their labels.

    Names: one head gives `top1`, `top5` and `baseline/majority_top1`; several give `<head>_top1`, `<head>_top5` each,
    and `action_top1`, `action_top5`.

    Args:
        classes: head to its number of classes, in the order of the heads.
        baseline: whether to give the majority baseline.
    """

    full_state_update = False
    correct: Tensor  # (names, 2): right within one, within five
    total: Tensor

    def __init__(self, classes: Mapping[str, int], baseline: bool) -> None:
        super().__init__()
        self.classes = dict(classes)
        self.baseline = baseline
        names = list(self.classes) + (["action"] if len(self.classes) > 1 else [])
        self.names = names
        self.add_state("correct", torch.zeros(len(names), 2), dist_reduce_fx="sum")  # top-1, top-5
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        for head, count in self.classes.items():
            self.add_state(f"seen_{head}", torch.zeros(count), dist_reduce_fx="sum")

    def update(self, logits: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> None:
        """Counts a batch.

        Args:
            logits: head to (b, k), already averaged over views.
            labels: head to (b,) class indices.
        """
        ranks = [_rank(logits[head], labels[head]) for head in self.classes]
        if len(self.classes) > 1:
            ranks.append(_action_rank(logits, labels, list(self.classes)))
        for row, rank in enumerate(ranks):
            self.correct[row] += torch.stack([(rank < 1).sum(), (rank < 5).sum()]).to(self.correct)
        self.total += len(ranks[0])
        for head, count in self.classes.items():
            getattr(self, f"seen_{head}").add_(torch.bincount(labels[head], minlength=count))

    def compute(self) -> dict[str, Tensor]:
        """Shares in [0, 1] by name; nan where nothing was counted."""
        share = self.correct / self.total
        prefix = dict(zip(self.names, ("",) if len(self.names) == 1 else (f"{n}_" for n in self.names), strict=True))
        values = {
            f"{prefix[name]}top{k}": share[row, column]
            for row, name in enumerate(self.names)
            for column, k in enumerate((1, 5))
        }
        if self.baseline:
            for head in self.classes:
                values[f"baseline/{prefix[head]}majority_top1"] = getattr(self, f"seen_{head}").max() / self.total
        return values


def _rank(logits: Tensor, labels: Tensor) -> Tensor:
    """How many classes stand before the true one, (b,); of equal ones those with a smaller index; nan stands last."""
    true = logits.gather(1, labels[:, None])
    index = torch.arange(logits.shape[1], device=logits.device)
    behind = (true > logits) | ((true == logits) & (index >= labels[:, None]))
    return (~behind).sum(1)


def _action_rank(logits: Mapping[str, Tensor], labels: Mapping[str, Tensor], heads: list[str]) -> Tensor:
    """Rank of the true combination among all, by the product of softmaxes (b,)."""
    joint = logits[heads[0]].log_softmax(-1)
    label = labels[heads[0]]
    for _, head in pairwise(heads):
        joint = (joint[:, :, None] + logits[head].log_softmax(-1)[:, None, :]).flatten(1)
        label = label * logits[head].shape[1] + labels[head]
    return _rank(joint, label)
