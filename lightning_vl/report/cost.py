"""What a network costs: parameters, operations, time and memory of one forward.

Operations are counted on the meta device, where tensors have shapes and no values, with torch's FlopCounterMode: it
sees every operation that the modules as built dispatch. Two countings stand side by side:

- *pure*: the multiply-adds of matrix products and convolutions, nothing else. ``gflops`` is twice ``gmacs``.
- *the paper's* (ViViT, Table 2): the "flops" of XLA's cost analysis, halved. A multiply-add is 1, and an element-wise
  addition or multiplication is half of one; exp, tanh, rsqrt and the like are not counted. :data:`ELEMENTWISE` has the
  number of operations of each kind, as the JAX formulas of the official code (flax) spell them out.
"""

import contextlib
import statistics
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode

aten = torch.ops.aten

GIGA = 1e9
GIBI = 2**30

# Without a number of runs: at least 3, at most 30, and no new one once this time is spent.
LATENCY_SECONDS = 10.0
LATENCY_RUNS = (3, 30)

Shape = Sequence[int]
Count = Callable[..., int]


class Cost(NamedTuple):
    """What a forward of one sample costs, from shapes alone.

    Attributes:
        parameters: their exact number, shared ones once.
        gmacs: multiply-adds of matrix products and convolutions, in 1e9.
        gflops: twice ``gmacs``.
        paper_gflops: as ViViT's Table 2 counts: ``gmacs`` and half of the element-wise operations, in 1e9.
    """

    parameters: int
    gmacs: float
    gflops: float
    paper_gflops: float


class Speed(NamedTuple):
    """How a forward ran on a device.

    Attributes:
        latency_ms: median of the runs, in milliseconds.
        runs: number of timed runs.
        peak_memory_gib: see :func:`peak_memory_gib`; None where the device does not tell.
    """

    latency_ms: float
    runs: int
    peak_memory_gib: float | None


# The element-wise operations of one call. FlopCounterMode hands over shapes in place of tensors.


def _each_output(*args: Any, out_shape: Shape, **kwargs: Any) -> int:
    return prod(out_shape)


def _sum(x: Shape, *args: Any, out_shape: Shape, **kwargs: Any) -> int:
    return prod(x) - prod(out_shape)


def _mean(x: Shape, *args: Any, out_shape: Shape, **kwargs: Any) -> int:
    return prod(x)  # the additions of the sum, and one division for each mean


def _norm(x: Shape, *args: Any, out_shape: Shape, **kwargs: Any) -> int:
    return 2 * prod(x) - prod(out_shape)  # squares and their sum


def _convolution(x: Shape, weight: Shape, bias: Shape | None, *args: Any, out_shape: Shape, **kwargs: Any) -> int:
    return prod(out_shape) if bias is not None else 0


def _softmax(x: Shape, dim: int, *args: Any, **kwargs: Any) -> int:
    # Over a row of n: maximum n - 1, subtraction n, sum n - 1, division n.
    return 4 * prod(x) - 2 * prod(x) // x[dim]


def _attention(
    query: Shape, key: Shape, value: Shape, attn_mask: Shape | None = None, *args: Any, **kwargs: Any
) -> int:
    scores = (*query[:-1], key[-2])
    masked = prod(scores) if attn_mask is not None else 0
    return prod(query) + masked + _softmax(scores, -1)  # prod(query): the queries are scaled by 1 / sqrt(c)


def _gelu(x: Shape, approximate: str = "none", **kwargs: Any) -> int:
    # 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) has 8; 0.5 x (1 + erf(x / sqrt(2))) has 4.
    return (8 if approximate == "tanh" else 4) * prod(x)


def _layer_norm(
    x: Shape, normalized_shape: Shape, weight: Shape | None, bias: Shape | None, *args: Any, **kwargs: Any
) -> int:
    # Over a row of d: sum d - 1, squares d, their sum d - 1, x - mean d, rsqrt(..) * scale d, product d, bias d; and
    # once a row: two divisions, square of the mean, variance, its maximum with 0, eps. Together 7 d + 4.
    rows = prod(x) // prod(normalized_shape)
    return (5 + (weight is not None) + (bias is not None)) * prod(x) + 4 * rows


ELEMENTWISE: dict[Any, Count] = {
    # A product's own multiply-adds are not here, only the bias.
    aten.addmm: _each_output,
    aten.baddbmm: _each_output,
    aten.convolution: _convolution,
    # Caught whole, before torch chooses one of its kernels: what is counted does not depend on the choice.
    aten.scaled_dot_product_attention: _attention,
    aten._softmax: _softmax,
    aten._log_softmax: _softmax,
    aten.gelu: _gelu,
    aten.native_layer_norm: _layer_norm,
    aten.add: _each_output,
    aten.add_: _each_output,
    aten.sub: _each_output,
    aten.sub_: _each_output,
    aten.rsub: _each_output,
    aten.mul: _each_output,
    aten.mul_: _each_output,
    aten.div: _each_output,
    aten.div_: _each_output,
    aten.neg: _each_output,
    aten.relu: _each_output,
    aten.relu_: _each_output,
    aten.silu: _each_output,
    aten.sum: _sum,
    aten.mean: _mean,
    aten.linalg_vector_norm: _norm,
}


class Operations(NamedTuple):
    """Of one forward.

    Attributes:
        macs: multiply-adds of matrix products and convolutions.
        elementwise: element-wise operations by the rules of :data:`ELEMENTWISE`.
    """

    macs: int
    elementwise: int


def count_operations(net: nn.Module, *inputs: Any) -> Operations:
    """Count what ``net(*inputs)`` dispatches. Nothing is computed if both are on the meta device."""
    # In inference mode attention reaches the counters before torch has taken it apart.
    with (
        torch.inference_mode(),
        FlopCounterMode(display=False) as products,
        FlopCounterMode(display=False, custom_mapping=ELEMENTWISE) as elementwise,
    ):
        net(*inputs)
    counts = elementwise.get_flop_counts().get("Global", {})
    return Operations(
        macs=products.get_total_flops() // 2,  # FlopCounterMode counts a multiply-add as two
        elementwise=sum(count for operation, count in counts.items() if operation in ELEMENTWISE),
    )


def count_parameters(net: nn.Module) -> int:
    """The exact number of parameters; one that two modules share counts once."""
    return sum(parameter.numel() for parameter in net.parameters())


def static_cost(net: nn.Module) -> Cost:
    """Count parameters and operations of one forward in eval mode of one sample, on the meta device.

    The network is left as it is: a trained one on a GPU gives the same numbers as a freshly built one on meta.

    Args:
        net: has ``example_inputs(batch_size) -> tuple``, tensors and named tuples of tensors.
    """
    device = next(net.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):  # the inputs are random
        inputs = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), _example_inputs(net, batch_size=1))
    tensors = dict(net.named_parameters(remove_duplicate=False)) | dict(net.named_buffers(remove_duplicate=False))
    on_meta = _Substituted(net, {name: tensor.detach().to("meta") for name, tensor in tensors.items()})
    with _eval_mode(net):
        operations = count_operations(on_meta, *inputs)
    return Cost(
        parameters=count_parameters(net),
        gmacs=operations.macs / GIGA,
        gflops=2 * operations.macs / GIGA,
        paper_gflops=(operations.macs + operations.elementwise / 2) / GIGA,
    )


def measure_speed(net: nn.Module, batch_size: int, precision: str, runs: int | None = None) -> Speed:
    """Time the forward in eval mode on the network's device: one warm-up, then the median of several runs.

    Args:
        net: has ``example_inputs(batch_size) -> tuple``, tensors and named tuples of tensors; its parameters are on the device to measure.
        batch_size: samples in one forward.
        precision: "fp32", or "bf16" for autocast.
        runs: number of timed runs; None for as many as fit :data:`LATENCY_SECONDS`, within :data:`LATENCY_RUNS`.
    """
    inputs = _example_inputs(net, batch_size)
    device = inputs[0].device
    at_least, at_most = LATENCY_RUNS if runs is None else (runs, runs)
    seconds: list[float] = []
    with _eval_mode(net), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        memory = peak_memory_gib(net, *inputs)  # the warm-up
        with torch.inference_mode():
            while len(seconds) < at_least or (len(seconds) < at_most and sum(seconds) < LATENCY_SECONDS):
                _synchronise(device)
                start = time.perf_counter()
                net(*inputs)
                _synchronise(device)
                seconds.append(time.perf_counter() - start)
    return Speed(latency_ms=1000 * statistics.median(seconds), runs=len(seconds), peak_memory_gib=memory)


def peak_memory_gib(net: nn.Module, *inputs: Any) -> float | None:
    """The most memory that one forward without gradients holds at once, parameters and inputs included, in GiB.

    On CUDA the allocator's own ``max_memory_allocated``. On the CPU, where the process's high-water mark never falls
    again and so says nothing about the second network, the tensors alive at once are added up as the operations make
    and drop them; scratch space inside a kernel is not seen. None on other devices.
    """
    device = inputs[0].device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        with torch.no_grad():
            net(*inputs)
        return torch.cuda.max_memory_allocated(device) / GIBI
    if device.type != "cpu":
        with torch.no_grad():
            net(*inputs)
        return None
    # no_grad, not inference mode: composite operations are then taken apart before they get here.
    held = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
    with torch.no_grad(), _LiveTensors([*net.parameters(), *net.buffers(), *held]) as live:
        net(*inputs)
    return live.peak_bytes / GIBI


class _LiveTensors(TorchDispatchMode):
    """Adds up the storages alive at once: those given and those that operations return, each until it is freed."""

    def __init__(self, held: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage() for tensor in held}
        self._seen = set(storages)
        self.live_bytes = self.peak_bytes = sum(storage.nbytes() for storage in storages.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._add(value)
        return result

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._seen:  # a view, or an operation in place
            return
        self._seen.add(key)
        self.live_bytes += storage.nbytes()
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        weakref.finalize(storage, self._freed, key, storage.nbytes()).atexit = False

    def _freed(self, key: int, size: int) -> None:
        self._seen.remove(key)
        self.live_bytes -= size


class _Substituted(nn.Module):
    """Calls a network with other tensors in the place of its own."""

    def __init__(self, net: nn.Module, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.net = net
        self.tensors = tensors

    def forward(self, *inputs: Any) -> Any:
        return torch.func.functional_call(self.net, self.tensors, inputs, tie_weights=False)


def _example_inputs(net: nn.Module, batch_size: int) -> tuple[Any, ...]:
    make: Callable[[int], tuple[Any, ...]] = net.example_inputs  # type: ignore[assignment]
    return make(batch_size)


@contextlib.contextmanager
def _eval_mode(net: nn.Module) -> Iterator[None]:
    training = [module for module in net.modules() if module.training]
    net.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _synchronise(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
