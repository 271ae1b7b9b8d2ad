"""`Task`: the training, validation and test steps that every paper shares."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import lightning
import numpy as np
import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric

from lightning_vl.data.module import DataModule
from lightning_vl.data.stream import Batch
from lightning_vl.errors import UserError
from lightning_vl.evaluation.examples import Example
from lightning_vl.execution import Execution
from lightning_vl.optim import Schedule, parameter_groups
from lightning_vl.sharding import FullySharded, gathered, hold_whole, is_cut, let_go, scale, shard, total_norm
from lightning_vl.terminal import say
from lightning_vl.weights import Initialisation


class Task(lightning.LightningModule, ABC):
    """A network, its losses and its metrics, under one loop.

    A paper says how a batch goes through the network (`forward`), what the losses are (`losses`) and which metrics
    evaluation collects; the steps themselves are final. The optimised loss is the sum of the losses.

    Every step draws its randomness (dropout, stochastic depth) from (seed, rank, batch), so a resumed run repeats nothing
    and misses nothing, and ranks differ.

    Args:
        net: the network, with `example_inputs(batch_size)`.
        optimizer: takes parameter groups; learning rate and decay are set there.
        schedule: factor on the learning rate over the `trainer.max_steps` of the run.
        init_from: weights to start from.
        evaluation: a metric for each of validation and test; `update(outputs, batch)`, and `compute()` gives a dict.
    """

    unit = "samples"  # what one is called in the progress bar
    net: Any  # a subclass says which network; nn.Module's own attributes are all tensors or modules to a type checker

    def __init__(
        self,
        net: nn.Module,
        optimizer: OptimizerCallable,
        schedule: Schedule,
        init_from: Initialisation | None,
        evaluation: Mapping[str, Metric],
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)  # loggers get the whole configuration from the command
        self.net = net
        self.optimizer = optimizer
        self.schedule = schedule
        self.evaluation = nn.ModuleDict(evaluation)
        self.mean_loss = nn.ModuleDict({prefix: MeanMetric() for prefix in evaluation})
        self._micro_batches: list[dict[str, Tensor]] = []
        self.init_from = init_from
        self.from_weights = True  # whether setup begins with them: the command says no where a checkpoint is given
        self.seed = 0  # the run's seed: set by the command before the run starts
        self.network: dict[str, Any] | None = None  # class_path and init_args of the network, likewise
        self.execution = Execution()  # how the network is carried out, likewise
        self._arranged = False
        self._whole: list[Any] = []  # the network as it was before it was cut into shards

    def setup(self, stage: str) -> None:
        """The network starts from other weights, unless a checkpoint of its own is given; an evaluation needs all of them."""
        if self.init_from is None or not self.from_weights:
            return
        report = self.init_from.apply(self.net)
        self.from_weights = False  # the test after a fit has the run's own
        say(str(report))
        if stage != "fit" and report.fresh:
            raise UserError(
                f"no checkpoint is given, and {report.path} has no {', '.join(report.fresh[:4])}",
                "name a checkpoint, --ckpt_path runs/<experiment>/<id>/checkpoints/best.ckpt, or weights that have all",
            )

    def configure_model(self) -> None:
        """The network is arranged as `execution` says, and cut into shards where the strategy wants that: once."""
        if self._arranged:
            return
        self._arranged = True
        if isinstance(self.trainer.strategy, FullySharded) and self.global_rank == 0:
            self._whole = [copy.deepcopy(self.net)]
        self.execution.apply(self.net)
        if isinstance(self.trainer.strategy, FullySharded):
            shard(self, self.net, self.device_mesh["data_parallel"])  # type: ignore[index]

    def gather(self) -> None:
        """What comes after the steps has a network without shards, in the first process; all must ask for it."""
        if not is_cut(self):
            return
        state = gathered(self.net.state_dict())
        if self._whole:
            net = self._whole.pop().to(self.device).eval()
            net.load_state_dict(state)
            self.net = net

    @abstractmethod
    def losses(self, batch: Batch, outputs: Any) -> dict[str, Tensor]:
        """The terms of the objective by name, scalars in nats, weighted as they are summed."""

    @final
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One micro-batch: the sum of the losses, which must be finite."""
        losses = self.losses(batch, self(batch))
        total = torch.stack(list(losses.values())).sum()
        if not torch.isfinite(total):
            values = ", ".join(f"{name} {value.item():.4g}" for name, value in losses.items())
            raise UserError(
                f"the loss is not finite at step {self.global_step} ({values}) for {_names(batch)}",
                "look at these samples, lower the learning rate, or clip gradients with trainer.gradient_clip_val",
            )
        self._ids = batch["id"]
        self._log_losses({"loss": total} if len(losses) == 1 else {"loss": total, **losses}, batch_idx)
        return total

    def _log_losses(self, losses: dict[str, Tensor], batch_idx: int) -> None:
        """Logs, when it is time, the mean over the micro-batches of a step and over ranks."""
        if not self._is_written_down:
            return
        self._micro_batches.append({name: value.detach() for name, value in losses.items()})
        if (batch_idx + 1) % self.trainer.accumulate_grad_batches:
            return
        for name in losses:
            mean = torch.stack([micro_batch[name] for micro_batch in self._micro_batches]).mean()
            self.log(f"train/{name}", mean, prog_bar=name == "loss", sync_dist=True, batch_size=1)
        self.log("step", float(self.global_step + 1))
        self._micro_batches.clear()

    @property
    def _is_written_down(self) -> bool:
        """Whether the optimiser step under way is one whose numbers are logged."""
        return (self.global_step + 1) % self.trainer.log_every_n_steps == 0  # type: ignore[attr-defined]

    @final
    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collects metrics and losses under `val/`."""
        self._evaluate("val", batch)

    @final
    def test_step(self, batch: Batch, batch_idx: int) -> Any:
        """Collects metrics and losses under `test/`; gives the outputs to callbacks."""
        return self._evaluate("test", batch)

    @final
    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Any]]:
        """What the network says of each sample that could be read."""
        return self.predictions(batch, self(batch)) if batch["id"] else []

    def predictions(self, batch: Batch, outputs: Any) -> list[dict[str, Any]]:
        """For each sample of a batch a row of plain values, `id` first."""
        return [{"id": name} for name in batch["id"]]

    def conclusions(self, folder: Path) -> list[dict[str, Any]]:
        """Rows that `predict` can say only once all samples were seen; may write files into the run's folder."""
        return []

    def examples(self, batch: Batch, outputs: Any) -> list[Example]:
        """A batch's samples and predictions as a person sees them; none by default."""
        return []

    def on_validation_start(self) -> None:
        """Processes evaluate by themselves: the weights are gathered before."""
        hold_whole(self)

    def on_test_start(self) -> None:
        """Likewise."""
        hold_whole(self)

    def on_predict_start(self) -> None:
        """Likewise."""
        hold_whole(self)

    def _evaluate(self, prefix: str, batch: Batch) -> Any:
        if not batch["id"]:  # nothing of this batch could be read
            return None
        outputs = self(batch)
        losses = self.losses(batch, outputs)
        total = torch.stack(list(losses.values())).sum()
        self._metric(self.mean_loss, prefix).update(total, weight=len(batch["id"]))
        self._metric(self.evaluation, prefix).update(outputs, batch)
        return outputs

    def on_validation_epoch_end(self) -> None:
        """Logs what the validation metrics make of all batches of all ranks."""
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        """Logs what the test metrics make of all batches of all ranks, and what trivial predictors reach."""
        self._log_evaluation("test")
        data = getattr(self.trainer, "datamodule", None)
        baselines = data.baselines() if isinstance(data, DataModule) else {}
        self.log_dict({f"baseline/{name}": value for name, value in baselines.items()})

    def _log_evaluation(self, prefix: str) -> None:
        metric, mean_loss = self._metric(self.evaluation, prefix), self._metric(self.mean_loss, prefix)
        values = {"loss": mean_loss.compute(), **metric.compute()}  # sums over ranks, however unevenly they share
        metric.reset()
        mean_loss.reset()
        let_go(self)
        self.log_dict(
            {name if "/" in name else f"{prefix}/{name}": value for name, value in values.items()},
            prog_bar=prefix == "val",
        )
        self.log(
            "step", float(self.global_step)
        )  # Lightning takes the row's step from here; its own counter is one short

    @staticmethod
    def _metric(metrics: nn.ModuleDict, prefix: str) -> Metric:
        metric = metrics[prefix]
        assert isinstance(metric, Metric)
        return metric

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seeds the step: the batch counter goes on over a resume, so the random numbers do too."""
        seed = int(np.random.SeedSequence([self.seed, self.global_rank, batch_idx]).generate_state(1, np.uint64)[0])
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Stops on gradients that are not finite, before they reach the weights."""
        gradients = [parameter.grad for parameter in self.net.parameters() if parameter.grad is not None]
        norm = total_norm(gradients) if is_cut(self) else torch.nn.utils.get_total_norm(gradients)
        self._norm = norm
        if not torch.isfinite(norm) and self.trainer.precision != "16-mixed":  # float16 has its own scaler for this
            raise UserError(
                f"the gradient is not finite at step {self.global_step} for {_names({'id': self._ids})}",
                "look at these samples, lower the learning rate, or clip gradients with trainer.gradient_clip_val",
            )
        if self._is_written_down:
            self.log("train/gradient_norm", norm)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Lightning's, which does not know gradients that partly lie in shards, nor bf16 with a fused optimiser."""
        if not gradient_clip_val or gradient_clip_algorithm == "value" or self.trainer.precision == "16-mixed":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif is_cut(self):
            gradients = [parameter.grad for parameter in self.net.parameters() if parameter.grad is not None]
            scale(gradients, (gradient_clip_val / (self._norm + 1e-6)).clamp(max=1.0))  # as torch does
        else:
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, gradient_clip_val)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Says how the network is built, so that the file alone is enough to use it."""
        checkpoint["network"] = self.network

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Before the weights are loaded, the data must be prepared as it was for them."""
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, DataModule) and type(data).__qualname__ in checkpoint:
            data.accept(checkpoint[type(data).__qualname__]["preprocessing"])

    def configure_optimizers(self) -> Any:
        """The optimiser over two parameter groups, its learning rate following the schedule step by step."""
        optimizer = self.optimizer(parameter_groups(self))
        total = self.trainer.max_steps
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.schedule.factor(step, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _names(batch: Batch) -> str:
    ids = [str(name) for name in batch["id"]]
    return f"batch {', '.join(ids[:4])}" + (f" and {len(ids) - 4} more" if len(ids) > 4 else "")
