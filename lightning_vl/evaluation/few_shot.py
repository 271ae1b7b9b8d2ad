"""Transfer with frozen features: few-shot ridge regression in closed form, and logistic regression."""

import numpy as np
from sklearn.linear_model import LogisticRegression
from torch import nn

from lightning_vl.errors import UserError
from lightning_vl.evaluation.transfer_task import Features, Protocol, TaskImages

BIAS = 100.0  # the constant feature that stands for the bias
L2 = 2.0**10
EPSILON = 1e-5  # added to standard deviations


class Standardised:
    """Features on the scale of the training ones: mean 0, standard deviation 1.

    Args:
        training: (n, d).
    """

    def __init__(self, training: np.ndarray) -> None:
        self.mean = training.mean(0, dtype=np.float64)
        self.std = training.std(0, dtype=np.float64) + EPSILON

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """(n, d) -> float64 (n, d)."""
        return (values - self.mean) / self.std


def ridge(inputs: np.ndarray, targets: np.ndarray, l2: float) -> np.ndarray:
    """argmin_W |X W - Y|^2 + l2 |W|^2 in closed form, by the smaller of two systems of equations.

    Args:
        inputs: X (n, d), float64.
        targets: Y (n, k).

    Returns:
        W (d, k): (X'X + l2 I)^-1 X'Y, or what is the same, X'(XX' + l2 I)^-1 Y.
    """
    count, dim = inputs.shape
    if count < dim:
        return inputs.T @ np.linalg.solve(inputs @ inputs.T + l2 * np.eye(count), targets)
    return np.linalg.solve(inputs.T @ inputs + l2 * np.eye(dim), inputs.T @ targets)


class FewShot(Protocol):
    """Ridge regression from frozen features to {-1, 1}^K with a few training images of each class (ViT, Sec. 4.1).

    The paper gives no more than that; the rest follows the authors' public code: features are standardised over the images
    drawn, a constant feature of 100 stands for the bias, l2 is 2^10. Accuracy on the test split is averaged over several
    draws, which are the same for every network and run; in one draw, fewer shots lie within more. An unreadable image is
    left out of its draws. Names: `1_shot`, `5_shot`, ...

    Args:
        shots: images of each class.
        draws: how many times they are drawn.
    """

    def __init__(self, shots: tuple[int, ...] = (1, 5, 10, 25), draws: int = 3) -> None:
        if not shots or min(shots) < 1 or draws < 1:
            raise UserError(f"shots are {shots}, draws {draws}", "give FewShot one or more of each")
        self.shots = shots
        self.draws = draws

    def evaluate(self, net: nn.Module, images: TaskImages, seed: int) -> dict[str, float]:
        """Mean accuracy over the draws, for each number of shots.

        Raises:
            UserError: a class has fewer training images than shots.
        """
        drawn = self._draw(images)  # (draws, k, shots)
        wanted = np.unique(drawn)
        places = images.places("train")
        train = images.features_at(net, [places[index] for index in wanted])
        readable = wanted[train.places]  # indices into the training split
        test = images.features(net, "test")
        accuracy = {}
        for shots in self.shots:
            right = []
            for draw in drawn:
                rows = np.isin(readable, draw[:, :shots])
                weights, scale = self._fit(train.values[rows], train.labels[rows], len(images.class_names))
                answers = (_with_bias(scale(test.values)) @ weights).argmax(1)
                right.append(float((answers == test.labels).mean()))
            accuracy[f"{shots}_shot"] = sum(right) / len(right)
        return accuracy

    def check(self, images: TaskImages) -> None:
        """See `Protocol`."""
        self._draw(images)

    def _draw(self, images: TaskImages) -> np.ndarray:
        """Indices into the training split, (draws, k, most shots)."""
        labels, most = images.labels("train"), max(self.shots)
        counts = np.bincount(labels, minlength=len(images.class_names))
        if counts.min() < most:
            raise UserError(
                f"class {images.class_names[counts.argmin()]!r} of {images.name} has {counts.min()} training images, "
                f"and FewShot takes {most} of each class",
                "give FewShot's shots no more than that, or the task more train_images",
            )
        by_class = [np.flatnonzero(labels == label) for label in range(len(counts))]
        return np.array(
            [
                [np.random.default_rng([draw, label]).permutation(own)[:most] for label, own in enumerate(by_class)]
                for draw in range(self.draws)
            ]
        )

    @staticmethod
    def _fit(values: np.ndarray, labels: np.ndarray, classes: int) -> tuple[np.ndarray, Standardised]:
        scale = Standardised(values)
        targets = 2 * np.eye(classes)[labels] - 1  # (n, k)
        return ridge(_with_bias(scale(values)), targets, L2), scale


def _with_bias(values: np.ndarray) -> np.ndarray:
    """(n, d) -> (n, d + 1)."""
    return np.pad(values, ((0, 0), (0, 1)), constant_values=BIAS)


class LinearProbe(Protocol):
    """Logistic regression on frozen, standardised features, by scikit-learn's L-BFGS. Name: `linear_probe`.

    The penalty is chosen on the validation split; then training and validation images are fitted together.

    Args:
        inverse_penalties: scikit-learn's C, one of which is chosen; of equally good ones the least.
        iterations: most iterations of L-BFGS.
    """

    def __init__(
        self, inverse_penalties: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 0.1, 1.0), iterations: int = 1000
    ) -> None:
        if not inverse_penalties or min(inverse_penalties) <= 0:
            raise UserError(f"inverse_penalties are {inverse_penalties}", "give LinearProbe positive numbers")
        self.inverse_penalties = tuple(sorted(inverse_penalties))
        self.iterations = iterations

    def evaluate(self, net: nn.Module, images: TaskImages, seed: int) -> dict[str, float]:
        """Accuracy on the test split.

        Raises:
            UserError: there is but one class to train on.
        """
        train, validation, test = (images.features(net, split) for split in ("train", "validation", "test"))
        if len(np.unique(train.labels)) < 2:
            raise UserError(f"the training images of {images.name} are all of one class", "check the task's source")
        scores = [self._score(c, train, validation) for c in self.inverse_penalties]
        both = train._replace(
            values=np.concatenate([train.values, validation.values]),
            labels=np.concatenate([train.labels, validation.labels]),
        )
        return {"linear_probe": self._score(self.inverse_penalties[int(np.argmax(scores))], both, test)}

    def _score(self, inverse_penalty: float, fitted: Features, scored: Features) -> float:
        scale = Standardised(fitted.values)
        model = LogisticRegression(C=inverse_penalty, max_iter=self.iterations)
        model.fit(scale(fitted.values), fitted.labels)
        return float((model.predict(scale(scored.values)) == scored.labels).mean())
