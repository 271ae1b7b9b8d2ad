"""What zero-shot classification is measured by: the metric that each of CLIP's 27 data sets is reported with (Table 9)."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np

from lightning_vl.errors import UserError

RECALLS = np.arange(11) / 10  # 0, 0.1, ..., 1


class Answers(NamedTuple):
    """What is kept of answered images: of all n, or of the m that show something.

    Attributes:
        logits: float32 (n, k); k = 0 unless the metric asks for them.
        truth: int8 (n, k): 1 for what an image shows, 0 for what it does not, -1 for what does not count; as `logits`.
        place: which image of the split, int64 (m,).
        label: the true class, int64 (m,); of several the one with the greatest logit.
        rank: its place among the logits, from 1, int64 (m,); see `ranks`.
        probability: its softmax probability, float64 (m,).
        tied: whether another class has its logit, bool (m,).
    """

    logits: np.ndarray
    truth: np.ndarray
    place: np.ndarray
    label: np.ndarray
    rank: np.ndarray
    probability: np.ndarray
    tied: np.ndarray


def answer(logits: np.ndarray, truth: np.ndarray, place: np.ndarray, keep: bool) -> Answers:
    """What is kept of a batch.

    Args:
        logits: float32 (b, k).
        truth: int8 (b, k), see `Answers`.
        place: int64 (b,).
        keep: whether logits and truth are kept.
    """
    showing = (truth == 1).any(1)
    of_showing = logits[showing]  # (m, k)
    label = np.where(truth[showing] == 1, of_showing, -np.inf).argmax(1)
    own = np.take_along_axis(of_showing, label[:, None], 1)  # (m, 1)
    kept = logits.shape[1] if keep else 0
    return Answers(
        logits=logits[:, :kept],
        truth=truth[:, :kept],
        place=place[showing],
        label=label,
        rank=ranks(of_showing, label),
        probability=np.take_along_axis(softmax(of_showing), label[:, None], 1)[:, 0],
        tied=(of_showing == own).sum(1) > 1,
    )


def join(parts: list[Answers]) -> Answers:
    """The answers of all batches."""
    return Answers(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def ranks(logits: np.ndarray, label: np.ndarray) -> np.ndarray:
    """The place of each true class, from 1: behind all classes of the same logit, and last if its own is not a number.

    Args:
        logits: (n, k).
        label: true classes (n,).

    Returns:
        int64 (n,).
    """
    return (~(logits < np.take_along_axis(logits, label[:, None], 1))).sum(1)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis, float64."""
    exponentials = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


class Metric(ABC):
    """A number that says how well images were classified; shares in [0, 1].

    Attributes:
        name: of the metric, as it stands in results.
        title: of the metric, as a person reads it.
        needs_logits: whether `Answers` must keep them.
        several_labels: whether an image may show several classes.
    """

    name: str
    title: str
    needs_logits = False
    several_labels = False

    @abstractmethod
    def __call__(self, answers: Answers, classes: int) -> float:
        """The metric of all answers.

        Args:
            answers: of images of which some show something.
            classes: number of classes k.

        Raises:
            UserError: it is not defined for these images.
        """


class TopOne(Metric):
    """Accuracy: the share of images whose true class comes first."""

    name, title = "top1", "top-1"

    def __call__(self, answers: Answers, classes: int) -> float:
        """See `Metric`."""
        return top(answers, 1)


class MeanPerClass(Metric):
    """Accuracy of each class, averaged over the classes that have images: Aircraft, Pets, Caltech-101, Flowers."""

    name, title = "mean_per_class", "mean per class"

    def __call__(self, answers: Answers, classes: int) -> float:
        """See `Metric`."""
        images = np.bincount(answers.label, minlength=classes)
        right = np.bincount(answers.label[answers.rank == 1], minlength=classes)
        return float((right[images > 0] / images[images > 0]).mean())


class MeanOfTopOneAndFive(Metric):
    """The mean of top-1 and top-5 accuracy: Kinetics-700."""

    name, title = "mean_top1_top5", "mean of top-1 and top-5"

    def __call__(self, answers: Answers, classes: int) -> float:
        """See `Metric`."""
        return (top(answers, 1) + top(answers, 5)) / 2


class RocAuc(Metric):
    """Area under the ROC curve: Hateful Memes.

    The probability that an image of a class scores above one that is not of it; equal scores count half. Of two classes it is
    the second one's, by the difference of the logits. Of more it is the mean over the classes that have images and lack
    some: by the softmax probability where each image shows one class, by the logit where it may show several.
    """

    name, title = "roc_auc", "ROC AUC"
    needs_logits = True
    several_labels = True

    def __call__(self, answers: Answers, classes: int) -> float:
        """See `Metric`."""
        truth, logits = answers.truth, answers.logits.astype(np.float64)
        one_label = bool(((truth == 1).sum(1) == 1).all())
        if one_label and classes == 2:
            columns = [(logits[:, 1] - logits[:, 0], truth[:, 1])]
        else:
            scores = softmax(logits) if one_label else logits
            columns = list(zip(scores.T, truth.T, strict=True))
        areas = [area(score[of >= 0], of[of >= 0] == 1) for score, of in columns if (of == 1).any() and (of == 0).any()]
        if not areas:
            raise UserError("a ROC curve needs images of two classes, and all are of one", "check the source")
        return float(np.mean(areas))


class ElevenPointMap(Metric):
    """Mean average precision as VOC2007 has it, of images that may show several classes.

    Of each class the mean, over recall 0, 0.1, ..., 1, of the best precision at that recall or more; then the mean over the
    classes that have images. Images in which a class is marked difficult do not count for it. Images of equal logits are
    taken together.
    """

    name, title = "map_11_point", "11-point mAP"
    needs_logits = True
    several_labels = True

    def __call__(self, answers: Answers, classes: int) -> float:
        """See `Metric`."""
        precisions = []
        for logits, truth in zip(answers.logits.T, answers.truth.T, strict=True):
            if (truth == 1).any():
                precisions.append(eleven_points(logits[truth >= 0], truth[truth >= 0] == 1))
        return float(np.mean(precisions))


def top(answers: Answers, places: int) -> float:
    """Share of images whose true class is among the first `places`."""
    return float((answers.rank <= places).mean())


def area(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve, by the ranks of the positives (Mann and Whitney's U).

    Args:
        scores: (n,).
        positive: bool (n,), some of either kind.
    """
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts - 1) / 2  # of those with equal scores, the mean of their ranks from 1
    positives = int(positive.sum())
    above = middle[place][positive].sum() - positives * (positives + 1) / 2
    return float(above / (positives * (len(positive) - positives)))


def eleven_points(scores: np.ndarray, positive: np.ndarray) -> float:
    """Average precision at eleven recalls.

    Args:
        scores: (n,).
        positive: bool (n,), some of them true.
    """
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)  # where a threshold may lie
    found = positive[order].cumsum()[ends]  # positives above each threshold
    precision, recall = found / (ends + 1), found / positive.sum()
    best = [precision[recall >= wanted - 1e-12].max() for wanted in RECALLS]
    return float(np.mean(best))
