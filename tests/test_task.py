"""The steps that every paper shares: what stops a run, and what the metrics count."""

import math
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from support import ROOT

from lightning_vl.cli import build
from lightning_vl.errors import UserError
from lightning_vl.papers.vivit.task import ViViTTask

EXPERIMENT = str(ROOT / "experiments/vivit_fact_encoder.yaml")
SMALL = [
    "--data.init_args.workers=0",
    "--data.init_args.batch_size=4",
    "--data.init_args.source.init_args.train_clips=24",
    "--data.init_args.source.init_args.validation_clips=24",
]


class Poison(lightning.Callback):
    """Puts a bad number into the inputs or the weights at a step."""

    def __init__(self, step: int, where: str) -> None:
        self.step = step
        self.where = where

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Poisons."""
        if trainer.global_step == self.step and self.where == "input":
            batch["video"][1, 0, 0, 0, 0] = float("nan")

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        """Poisons."""
        if trainer.global_step == self.step and self.where == "gradient":
            pl_module.net.head.weight.grad[0, 0] = float("inf")


@pytest.mark.parametrize("where", ["input", "gradient"])
def test_a_number_that_is_not_finite_stops_the_run_within_the_step(where: str, tmp_path: Path) -> None:
    """Breaks if nan or inf reaches the weights, or the message does not name the batch."""
    experiment = build([EXPERIMENT], SMALL)
    trainer = lightning.Trainer(
        max_steps=5,
        accelerator="cpu",
        callbacks=[Poison(2, where)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
        use_distributed_sampler=False,
        check_val_every_n_epoch=None,
        val_check_interval=10,
    )
    with pytest.raises(UserError, match=r"not finite at step 2 .*batch train/\d+, train/\d+") as error:
        trainer.fit(experiment.task, datamodule=experiment.data)
    assert ("loss" if where == "input" else "gradient") in error.value.what
    assert trainer.global_step == 2
    assert all(torch.isfinite(parameter).all() for parameter in experiment.task.net.parameters())


@pytest.fixture
def task() -> ViViTTask:
    """The experiment's task with a head that is not zero."""
    experiment = build([EXPERIMENT])
    torch.manual_seed(0)
    torch.nn.init.normal_(experiment.task.net.head.weight)
    return experiment.task  # type: ignore[return-value]


def test_the_first_loss_is_the_entropy_of_a_guess() -> None:
    """Breaks if the head does not start at zero, or the loss is not in nats."""
    task = build([EXPERIMENT]).task
    batch = {"video": torch.rand(2, 8, 3, 32, 32), "labels": {"class": torch.tensor([3, 5])}, "id": ["a", "b"]}
    loss = task.losses(batch, task(batch))["classification"].item()
    assert loss == pytest.approx(math.log(24), abs=1e-6)


def test_logits_of_views_are_averaged_not_probabilities(task: ViViTTask) -> None:
    """Breaks if views are mixed up between clips, or averaged after the softmax (Sec. 4.1)."""
    task.eval()
    views = torch.rand(2, 3, 8, 3, 32, 32) * 2 - 1
    together = task({"video": views}).logits["class"]
    each = torch.stack(
        [torch.stack([task({"video": view[None]}).logits["class"][0] for view in clip]).mean(0) for clip in views]
    )
    torch.testing.assert_close(together, each, atol=1e-5, rtol=1e-5)


def test_heads_are_averaged_and_smoothing_is_for_training_only(task: ViViTTask) -> None:
    """Breaks if two heads are summed, or validation losses are smoothed."""
    from lightning_vl.papers.vivit.model import ViViTOutput

    task.label_smoothing = 0.3
    logits = {"noun": torch.randn(4, 6), "verb": torch.randn(4, 3)}
    labels = {"noun": torch.tensor([0, 1, 2, 3]), "verb": torch.tensor([0, 1, 2, 0])}
    outputs = ViViTOutput(logits, torch.zeros(4, 2))
    task.eval()
    plain = task.losses({"labels": labels}, outputs)
    for head in logits:
        expected = torch.nn.functional.cross_entropy(logits[head], labels[head]) / 2
        torch.testing.assert_close(plain[head], expected)
    task.train()
    smooth = task.losses({"labels": labels}, outputs)
    target = 0.7 * torch.nn.functional.one_hot(labels["verb"], 3) + 0.1
    torch.testing.assert_close(smooth["verb"], -(target * logits["verb"].log_softmax(-1)).sum(-1).mean() / 2)


def test_mixup_weighs_a_clip_against_its_partner(task: ViViTTask) -> None:
    """Breaks if inputs and labels are mixed with different partners or weights."""
    from lightning_vl.papers.vivit.model import ViViTOutput

    logits, labels = torch.randn(4, 24), torch.tensor([1, 2, 3, 4])
    batch = {"labels": {"class": labels}, "mixup": torch.tensor(0.8)}
    loss = task.losses(batch, ViViTOutput({"class": logits}, torch.zeros(4, 2)))["classification"]
    target = 0.8 * torch.nn.functional.one_hot(labels, 24) + 0.2 * torch.nn.functional.one_hot(labels.flip(0), 24)
    torch.testing.assert_close(loss, -(target * logits.log_softmax(-1)).sum(-1).mean())


def test_every_parameter_learns_and_frozen_ones_do_not(task: ViViTTask) -> None:
    """Breaks if a part of the network is not connected to the loss, or freezing does not hold."""
    task.train()
    batch = {"video": torch.rand(2, 8, 3, 32, 32), "labels": {"class": torch.tensor([3, 5])}, "id": ["a", "b"]}
    task.net.embedding.requires_grad_(False)
    task.losses(batch, task(batch))["classification"].backward()
    for name, parameter in task.net.named_parameters():
        if name.startswith("embedding"):
            assert parameter.grad is None, name
        else:
            assert torch.isfinite(parameter.grad).all(), name
            assert parameter.grad.abs().sum() > 0, name


def test_vectors_and_learned_tokens_do_not_decay(task: ViViTTask) -> None:
    """Breaks if weight decay pulls norms, biases, class tokens or positions to zero, or spares a matrix."""
    from lightning_vl.optim import parameter_groups

    decay, spared = parameter_groups(task.net)
    names = {id(parameter): name for name, parameter in task.net.named_parameters()}
    spared_names = {names[id(parameter)] for parameter in spared["params"]}
    assert spared["weight_decay"] == 0
    assert {"spatial_class_token", "temporal_positions", "head.bias"} <= spared_names
    assert all(parameter.ndim >= 2 for parameter in decay["params"])
    assert len(decay["params"]) + len(spared["params"]) == len(list(task.net.parameters()))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_gradients_are_clipped_whatever_the_precision(precision: str, tmp_path: Path) -> None:
    """Breaks if a norm above the limit reaches the weights, or bf16 refuses to clip for a fused optimiser."""
    experiment = build([EXPERIMENT], SMALL)
    norms: list[torch.Tensor] = []

    class Look(lightning.Callback):
        def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            gradients = [p.grad for p in pl_module.net.parameters() if p.grad is not None]
            if gradients:
                norms.append(torch.nn.utils.get_total_norm(gradients))

    assert experiment.task.optimizer(experiment.task.parameters()).defaults["fused"]
    trainer = lightning.Trainer(
        max_steps=2,
        accelerator="cpu",
        precision=precision,  # type: ignore[arg-type]
        gradient_clip_val=0.01,
        callbacks=[Look()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
        use_distributed_sampler=False,
        check_val_every_n_epoch=None,
        val_check_interval=10,
    )
    trainer.fit(experiment.task, datamodule=experiment.data)
    assert norms
    assert float(norms[-1]) == pytest.approx(0.01, rel=1e-3)
