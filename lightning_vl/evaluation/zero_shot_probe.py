"""The linear probe that zero-shot classification is compared with (CLIP, Sec. 3.1.5 and 3.2)."""

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from lightning_vl.errors import UserError
from lightning_vl.evaluation.zero_shot_metrics import Metric, answer

WIDEST = 6  # the penalty is searched from 1e-6 to 1e6


class LogisticProbe:
    """Logistic regression on the image tower's features before the projection, by scikit-learn's L-BFGS (App. A).

    The penalty is searched between 1e-6 and 1e6 on the validation split: first 1e-6, 1e-4, ..., 1e6, then around the best
    one in steps half as wide, until they are one `steps_per_decade`th of a decade; of equally good ones the greatest is
    taken. Then training and validation images are fitted together. Where images may show several classes there is a
    regression for each class.

    Args:
        steps_per_decade: how finely the penalty is searched, a power of two; 8 in the paper (96 steps).
        iterations: most iterations of L-BFGS.
    """

    def __init__(self, steps_per_decade: int = 8, iterations: int = 1000) -> None:
        if steps_per_decade not in (1, 2, 4, 8, 16) or iterations < 1:
            raise UserError(
                f"steps_per_decade is {steps_per_decade}, iterations {iterations}",
                "give LogisticProbe 1, 2, 4, 8 or 16 steps, and 1 iteration or more",
            )
        self.steps_per_decade = steps_per_decade
        self.iterations = iterations

    def __call__(
        self,
        train: tuple[np.ndarray, np.ndarray],
        validation: tuple[np.ndarray, np.ndarray],
        test: tuple[np.ndarray, np.ndarray],
        metric: Metric,
    ) -> float:
        """The metric on the test split.

        Args:
            train: features float32 (n, w) and truth int8 (n, k), see `Answers`.
            validation: likewise.
            test: likewise.
            metric: by which the penalty is chosen, and what is reported.
        """
        scores: dict[float, float] = {}
        step, tried = 2.0, list(np.arange(-WIDEST, WIDEST + 1, 2.0))
        while tried:
            for exponent in tried:
                scores[exponent] = self._score(exponent, train, validation, metric)
            best = max(scores, key=lambda exponent: (scores[exponent], exponent))
            step /= 2
            around = [best - step, best + step] if step >= 1 / self.steps_per_decade else []
            tried = [exponent for exponent in around if abs(exponent) <= WIDEST and exponent not in scores]
        both = np.concatenate([train[0], validation[0]]), np.concatenate([train[1], validation[1]])
        return self._score(best, both, test, metric)

    def _score(
        self,
        exponent: float,
        fitted: tuple[np.ndarray, np.ndarray],
        scored: tuple[np.ndarray, np.ndarray],
        metric: Metric,
    ) -> float:
        features, truth = fitted
        logits = np.zeros(scored[1].shape)
        one_label = ((truth == 1).sum(1) == 1).all()
        if one_label:
            classes = np.unique(truth.argmax(1))
            logits[:] = -np.inf  # a class that was never seen is never the answer
            logits[:, classes] = self._fit(exponent, features, truth.argmax(1), scored[0])
        else:
            for label in range(truth.shape[1]):
                counts = truth[:, label] >= 0
                if len(np.unique(truth[counts, label])) == 2:
                    found = self._fit(exponent, features[counts], truth[counts, label], scored[0])
                    logits[:, label] = found[:, 1]
        return metric(answer(logits, scored[1], np.arange(len(logits)), keep=True), truth.shape[1])

    def _fit(self, exponent: float, features: np.ndarray, labels: np.ndarray, scored: np.ndarray) -> np.ndarray:
        """Logits (n, number of different labels)."""
        model = LogisticRegression(C=10.0**-exponent, max_iter=self.iterations)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the paper stops after so many iterations, too
            model.fit(features, labels)
        logits = model.decision_function(scored)
        return np.stack([-logits, logits], 1) / 2 if logits.ndim == 1 else logits
