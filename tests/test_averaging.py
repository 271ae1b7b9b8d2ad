"""The moving average of the weights is what is validated, kept and tested; training goes on with the weights."""

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from support import ROOT, TINY

from lightning_vl.callbacks import MovingAverage
from lightning_vl.cli import build


class Look(lightning.Callback):
    """Keeps a matrix as it is after every step, and as it is validated."""

    def __init__(self) -> None:
        self.weights: list[torch.Tensor] = []
        self.validated: list[torch.Tensor] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Looks."""
        self.weights.append(pl_module.net.head.weight.detach().clone())

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Looks."""
        self.weights.append(pl_module.net.head.weight.detach().clone())

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, *rest: Any) -> None:
        """Looks."""
        self.validated.append(pl_module.net.head.weight.detach().clone())


def test_the_average_is_validated_and_saved_and_training_goes_on_with_the_weights(tmp_path: Path) -> None:
    """Breaks if another average than the equation's is validated, or training goes on with it."""
    experiment, look = build([str(ROOT / "experiments/vivit_fact_encoder.yaml")], TINY), Look()
    trainer = lightning.Trainer(
        max_steps=4,
        accelerator="cpu",
        callbacks=[MovingAverage(0.7), look],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
        use_distributed_sampler=False,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        val_check_interval=2,
        limit_val_batches=1,
    )
    trainer.fit(experiment.task, datamodule=experiment.data)
    averages = [look.weights[0]]
    for weight in look.weights[1:]:
        averages.append(0.7 * averages[-1] + 0.3 * weight)
    assert len(look.weights) == 5
    torch.testing.assert_close(look.validated, [averages[2], averages[4]])
    assert not torch.equal(look.weights[3], look.weights[2])
    torch.testing.assert_close(experiment.task.net.head.weight.detach(), look.weights[4], atol=0, rtol=0)
    path = tmp_path / "last.ckpt"
    trainer.save_checkpoint(path)
    saved = torch.load(path, weights_only=False)
    torch.testing.assert_close(saved["state_dict"]["net.head.weight"], averages[4])
    torch.testing.assert_close(saved["trained_state_dict"]["net.head.weight"], look.weights[4], atol=0, rtol=0)


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_that_is_none_is_refused(decay: float) -> None:
    """Breaks if an average that never moves, or runs away, is trained with."""
    with pytest.raises(ValueError, match="decay"):
        MovingAverage(decay)
