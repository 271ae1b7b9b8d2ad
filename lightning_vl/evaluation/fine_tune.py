"""Transfer by fine-tuning the whole network."""

import math
from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import nn

from lightning_vl.data.image_augmentation import Augmentation, PlainResize
from lightning_vl.data.images import Place
from lightning_vl.errors import UserError
from lightning_vl.evaluation.transfer_task import Protocol, TaskImages
from lightning_vl.objectives import classification
from lightning_vl.optim import WarmupCosine
from lightning_vl.terminal import say

MOMENTUM = 0.9
CLIP = 1.0  # of the global norm of the gradient


class FineTune(Protocol):
    """The whole network with a new head, by SGD with momentum and a cosine to nought (ViT, App. B.1.1, Table 4).

    No weight decay, gradients clipped at norm 1, softmax cross-entropy. Of several learning rates the one with the best
    accuracy on the validation split is taken, of equal ones the least; then, as with a single rate, a network is trained on
    training and validation images together, and tested. Name: `fine_tune`.

    Args:
        steps: optimiser steps (VTAB: 2,500; CIFAR: 10,000; Pets and Flowers: 500).
        learning_rates: base rates (VTAB: 0.01; CIFAR, Pets, Flowers: 0.001, 0.003, 0.01, 0.03).
        batch_size: images of one step (512 in the paper).
        warmup_steps: of a linear warm-up, which the paper does not speak of and its code sets to 500.
        augmentation: what is done to training images; None for a plain resize.
    """

    def __init__(
        self,
        steps: int,
        learning_rates: tuple[float, ...],
        batch_size: int,
        warmup_steps: int = 0,
        augmentation: Augmentation | None = None,
    ) -> None:
        if not learning_rates or min(learning_rates) <= 0:
            raise UserError(f"learning_rates are {learning_rates}", "give FineTune one or more, above 0")
        self.steps = steps
        self.learning_rates = tuple(sorted(learning_rates))
        self.batch_size = batch_size
        self.schedule = WarmupCosine(warmup_steps)
        self.augmentation = augmentation or PlainResize()

    def evaluate(self, net: nn.Module, images: TaskImages, seed: int) -> dict[str, float]:
        """Accuracy on the test split.

        Raises:
            UserError: a step takes more images than there are, or the loss is not finite at the rate that is taken.
        """
        rate = self.learning_rates[0]
        if len(self.learning_rates) > 1:
            scores = {rate: self._validate(net, images, rate, seed) for rate in self.learning_rates}
            rate = max(scores, key=scores.__getitem__)
            found = ", ".join(f"{100 * score:.1f} % at {tried:g}" for tried, score in scores.items())
            say(f"fine-tuning on {images.name}: {found} of the validation split; taking {rate:g}")
        try:
            tuned = self.train(net, images, images.places("train", "validation"), rate, seed)
        except FloatingPointError as error:
            raise UserError(
                f"fine-tuning on {images.name} with learning rate {rate:g}: {error}", "give FineTune a lower one"
            ) from error
        return {"fine_tune": images.top1(tuned, "test")}

    def check(self, images: TaskImages) -> None:
        """See `Protocol`."""
        chooses = len(self.learning_rates) > 1
        self._check(images, images.places("train") if chooses else images.places("train", "validation"))

    def _check(self, images: TaskImages, places: Sequence[Place]) -> None:
        if self.batch_size > len(places):
            raise UserError(
                f"a step of fine-tuning on {images.name} takes {self.batch_size} images of {len(places)}",
                f"lower FineTune's batch_size to {len(places)} or less",
            )

    def _validate(self, net: nn.Module, images: TaskImages, rate: float, seed: int) -> float:
        try:
            tuned = self.train(net, images, images.places("train"), rate, seed)
        except FloatingPointError:
            return 0.0
        return images.top1(tuned, "validation")

    def train(self, net: nn.Module, images: TaskImages, places: Sequence[Place], rate: float, seed: int) -> nn.Module:
        """A fine-tuned copy of the network, in evaluation mode.

        Raises:
            UserError: a step takes more images than there are.
            FloatingPointError: the loss is not finite.
        """
        self._check(images, places)
        torch.manual_seed(seed)  # dropout; the order of samples has the seed of its own
        net = deepcopy(net)
        net.reset_head(len(images.class_names))  # type: ignore[operator]
        net = net.to(images.device).train()
        optimizer = torch.optim.SGD(net.parameters(), lr=rate, momentum=MOMENTUM)
        steps = images.steps(places, self.batch_size, self.steps, seed, self.augmentation)
        with torch.enable_grad():
            for step, parts in enumerate(steps):
                for group in optimizer.param_groups:
                    group["lr"] = rate * self.schedule.factor(step, self.steps)
                optimizer.zero_grad()
                loss = 0.0
                for part in parts:
                    share = len(part["label"]) / self.batch_size
                    error = share * classification(net(part["image"]).logits, part["label"])
                    error.backward()  # type: ignore[no-untyped-call]
                    loss += error.item()
                if not math.isfinite(loss):
                    raise FloatingPointError(f"the loss is {loss} at step {step + 1}")
                nn.utils.clip_grad_norm_(net.parameters(), CLIP)
                optimizer.step()
        return net.eval()
