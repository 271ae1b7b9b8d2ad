"""FSDP2: weights, gradients and moments cut into shards, a process each, in checkpoints that any number of processes reads."""

import os
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map_only

from lightning_vl.checkpoints import PARTIAL, damage, is_sharded, load_whole
from lightning_vl.errors import UserError
from lightning_vl.execution import blocks, has_batch_norm


class FullySharded(ModelParallelStrategy):
    """Lightning's strategy with all processes in one group of shards.

    Checkpoints are whole files, the same as those of one process: a run may go on with any number of processes, sharded
    or not. Where a network is too large to be gathered in one process's memory, each process writes its own shard.

    Args:
        sharded_checkpoints: a folder with a file of each process in place of one file. Only sharded runs go on from
            such a folder; `export` makes one file of it.
        timeout: seconds after which a process that waits for another gives up.
    """

    def __init__(self, sharded_checkpoints: bool = False, timeout: int = 1800) -> None:
        super().__init__(save_distributed_checkpoint=sharded_checkpoints, timeout=timedelta(seconds=timeout))
        self.sharded_checkpoints = sharded_checkpoints

    def setup_environment(self) -> None:
        """All processes share the weights out among them."""
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The weights as one process has them; of a sharded checkpoint the shards."""
        if self.sharded_checkpoints:
            return super().lightning_module_state_dict()
        assert self.lightning_module is not None
        return gathered(self.lightning_module.state_dict())

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """The optimiser's state as one process has it; of a sharded checkpoint the shards."""
        return super().optimizer_state(optimizer) if self.sharded_checkpoints else gathered(optimizer.state_dict())

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Writes beside the target and moves, as `WholeCheckpoints` does with files."""
        path = Path(self.broadcast(filepath))
        if not self.sharded_checkpoints:
            if self.is_global_zero:
                self.checkpoint_io.save_checkpoint(checkpoint, path)
            self.barrier()
            return
        partial = path.with_name(path.name + PARTIAL)
        if self.is_global_zero:
            shutil.rmtree(partial, ignore_errors=True)
        self.barrier()
        super().save_checkpoint(checkpoint, partial, storage_options)
        self.barrier()
        if self.is_global_zero:
            earlier = path.with_name(f"{path.stem}.earlier{path.suffix}")  # found where a kill comes between
            if path.exists():
                os.replace(path, earlier)
            os.replace(partial, path)
            shutil.rmtree(earlier, ignore_errors=True)
        self.barrier()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Reads a file of any run, or a folder of a sharded one."""
        path = Path(self.broadcast(checkpoint_path))
        assert self.lightning_module is not None
        if is_sharded(path):
            reason = self.broadcast(damage(path) if self.is_global_zero else None)
            if reason:
                raise UserError(f"{path}: {reason}", "give another checkpoint, or remove this one")
            return super().load_checkpoint(path, weights_only=True)
        checkpoint = load_whole(path)
        load_weights(self.lightning_module, checkpoint["state_dict"])
        if self.lightning_module.trainer.state.fn == "fit":
            for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
                optimizer.load_state_dict(_shared_out(state, optimizer))
        return checkpoint


# --- the network ----------------------------------------------------------------------------------------------------


def shard(task: nn.Module, net: nn.Module, mesh: DeviceMesh) -> None:
    """Cuts a task's network: each block by itself, and what is left together.

    Args:
        task: goes forward through the network.
        net: the network.
        mesh: the processes.

    Raises:
        UserError: the network has batch norm, whose statistics would be another's on every process.
    """
    if has_batch_norm(net):
        raise UserError(
            f"{type(net).__name__} has batch norm, whose statistics processes with shards do not share",
            "use the strategy ddp: experiments/overlays/ddp.yaml",
        )
    scalars = {parameter for parameter in net.parameters() if parameter.ndim == 0}  # they cannot be cut
    for parameter in scalars:
        if parameter.requires_grad:
            parameter.register_hook(_mean_over_processes)  # type: ignore[no-untyped-call]
    for block in blocks(net):
        fully_shard(block, mesh=mesh)
    fully_shard(task, mesh=mesh, ignored_params=scalars)


def _mean_over_processes(gradient: Tensor) -> Tensor:
    gradient = gradient.clone()
    distributed.all_reduce(gradient)
    return gradient / distributed.get_world_size()


def hold_whole(task: nn.Module) -> None:
    """Gathers the weights for an evaluation: processes that have another number of batches need not wait for each other."""
    for module in _cut(task):
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()


def let_go(task: nn.Module) -> None:
    """Each process has its shards alone again."""
    for module in _cut(task):
        module.reshard()
        module.set_reshard_after_forward(module is not task, recurse=False)


def _cut(task: nn.Module) -> Iterator[Any]:
    return (module for module in task.modules() if isinstance(module, FSDPModule))


def is_cut(task: nn.Module) -> bool:
    """Whether its network lies in shards."""
    return isinstance(task, FSDPModule)


def total_norm(gradients: list[Tensor]) -> Tensor:
    """The norm of gradients of which some, or all, lie in shards."""
    shards = [gradient.to_local() for gradient in gradients if isinstance(gradient, DTensor)]
    squares = torch.stack(torch._foreach_norm(shards)).square().sum()
    distributed.all_reduce(squares)
    whole = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
    return torch.stack([squares, *(gradient.square().sum() for gradient in whole)]).sum().sqrt()


def scale(gradients: list[Tensor], factor: Tensor) -> None:
    """Multiplies gradients of which some, or all, lie in shards."""
    torch._foreach_mul_([one.to_local() if isinstance(one, DTensor) else one for one in gradients], factor)


# --- states ---------------------------------------------------------------------------------------------------------


def gathered(state: Any) -> Any:
    """The same on every process, without shards, in the CPU's memory."""
    state = tree_map_only(DTensor, lambda tensor: tensor.full_tensor(), state)
    return tree_map_only(Tensor, lambda tensor: tensor.detach().cpu().clone(), state)


def load_weights(module: nn.Module, state: dict[str, Any]) -> None:
    """`load_state_dict` of whole tensors into a module that may lie in shards."""
    own = module.state_dict()
    module.load_state_dict({name: _like(tensor, own.get(name)) for name, tensor in state.items()})


def _like(tensor: Any, own: Any) -> Any:
    """This process's shard of a tensor, where its own is one; all processes have the same to cut it from."""
    if not isinstance(own, DTensor):
        return tensor
    return distribute_tensor(tensor.to(own.device), own.device_mesh, own.placements, src_data_rank=None)


def _shared_out(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimiser's state of one process, cut as its parameters are; they are numbered in the order of the groups."""
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    of = dict(zip(numbers, parameters, strict=True))
    return {
        **state,
        "state": {
            number: {
                name: _like(value, of[number]) if isinstance(value, Tensor) and value.ndim else value
                for name, value in values.items()
            }
            for number, values in state["state"].items()
        },
    }
