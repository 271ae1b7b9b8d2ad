"""Losses as pure functions, with the equation that they implement."""

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812


def classification(
    logits: Tensor,
    labels: Tensor,
    smoothing: float = 0.0,
    mixed_labels: Tensor | None = None,
    weight: float | Tensor = 1.0,
) -> Tensor:
    """Cross-entropy with label smoothing and mixup.

    With K classes the target is (1 - s) y + s / K; with mixup y = w y_1 + (1 - w) y_2.

    Args:
        logits: (b, k).
        labels: (b,) class indices, or (b, k) shares of the classes.
        smoothing: s.
        mixed_labels: (b,) class indices of the partners, when the inputs were mixed.
        weight: w, the share of the first input.

    Returns:
        Scalar, nats, mean over the batch.
    """
    loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    if mixed_labels is None:
        return loss
    return torch.lerp(F.cross_entropy(logits, mixed_labels, label_smoothing=smoothing), loss, weight)


def masked_words(logits: Tensor, words: Tensor) -> Tensor:
    """Cross-entropy of the words at the masked places (BERT, Sec. 3.1, Task #1).

    Args:
        logits: (m, v).
        words: (m,) the right ones.

    Returns:
        Scalar, nats, sum over the places.
    """
    return F.cross_entropy(logits, words, reduction="sum")
