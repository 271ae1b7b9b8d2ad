"""GLUE's metrics of classified sentences; usable without a Trainer."""

import torch
from torch import Tensor
from torchmetrics import Metric


class SentenceMetrics(Metric):
    """Accuracy, Matthews' correlation and, for two classes, F1 of the second class: what GLUE counts (BERT, Sec. 4.1).

    Matthews' correlation of an answer that is always the same is 0, as in scikit-learn, which GLUE scores with; torchmetrics
    has a limit there, which is not 0.

    Names: `accuracy`, `matthews`, `f1`.

    Args:
        classes: number of classes k.
    """

    full_state_update = False
    counts: Tensor  # (k, k): true by predicted class

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(classes, classes, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Counts a batch.

        Args:
            logits: (b, k).
            labels: (b,) class indices.
        """
        classes = len(self.counts)
        pairs = classes * labels + logits.argmax(-1)
        self.counts += torch.bincount(pairs, minlength=classes**2).view(classes, classes)

    def compute(self) -> dict[str, Tensor]:
        """By name; accuracy is nan where nothing was counted."""
        values = {"accuracy": self.counts.trace() / self.counts.sum(), "matthews": matthews(self.counts)}
        if len(self.counts) == 2:
            right = self.counts[1, 1]
            wrong = self.counts[0, 1] + self.counts[1, 0]
            values["f1"] = torch.where(right + wrong > 0, 2 * right / (2 * right + wrong), 0.0)
        return {name: value.float() for name, value in values.items()}


def matthews(counts: Tensor) -> Tensor:
    """Matthews' correlation of true and predicted classes; 0 where either is always the same.

    With s samples, c of them right, t_k of class k and p_k said to be: (c s - sum t p) / sqrt((s^2 - sum p^2)(s^2 - sum t^2)).

    Args:
        counts: float (k, k), true by predicted class.
    """
    true, predicted, total = counts.sum(1), counts.sum(0), counts.sum()
    spread = (total**2 - predicted.square().sum()) * (total**2 - true.square().sum())
    covariance = counts.trace() * total - true @ predicted
    return torch.where(spread > 0, covariance / spread.sqrt(), 0.0)
