"""Contrastive losses: the published values, the same on one process and on two, in bounded memory."""

import importlib.util
import math
from pathlib import Path

import pytest
import torch
from support import allocated
from torch import Tensor, distributed, multiprocessing, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_vl.contrastive import Contrastive, InfoNCE, Sigmoid, gather
from lightning_vl.errors import UserError

PAIRS, DIM = 10, 6
LOSSES = [InfoNCE, Sigmoid]
needs_open_clip = pytest.mark.skipif(importlib.util.find_spec("open_clip") is None, reason="open_clip is not installed")


class Towers(nn.Module):
    """Two linear towers, scale and bias: all that a loss sends gradients to."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.image = nn.Parameter(torch.randn(4, DIM, generator=generator))
        self.text = nn.Parameter(torch.randn(5, DIM, generator=generator))
        self.log_scale = nn.Parameter(torch.tensor(1.5))
        self.bias = nn.Parameter(torch.tensor(-2.0))

    def forward(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        image, text = (F.normalize(x, dim=-1) for x in (images @ self.image, texts @ self.text))
        return image, text, self.log_scale.exp(), self.bias


def inputs() -> tuple[Tensor, Tensor]:
    """The batch of all processes."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(PAIRS, 4, generator=generator), torch.randn(PAIRS, 5, generator=generator)


def gradients(net: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in net.named_parameters() if parameter.grad is not None}


def oracle(loss: type[Contrastive], image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Pair by pair, as the equations are written."""
    number, terms = len(image), []
    logits = [[scale * (u * v).sum() + bias for v in text] for u in image]
    for i in range(number):
        if loss is InfoNCE:
            row = torch.stack(logits[i]).exp().sum().log()
            column = torch.stack([logits[j][i] for j in range(number)]).exp().sum().log()
            terms.append((row + column) / 2 - logits[i][i])
        else:
            terms.extend(-torch.sigmoid(logits[i][j] * (1 if i == j else -1)).log() for j in range(number))
    return torch.stack(terms).sum() / number


def close(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(
            value, other[name], atol=1e-6, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("block", [None, 1, 4, 10, 99])
@pytest.mark.parametrize("loss", LOSSES)
def test_value_and_gradients_are_the_equations(loss: type[Contrastive], block: int | None) -> None:
    """Breaks if a direction, a sign or the mean is wrong, or the last, smaller block is lost."""
    ours, theirs = Towers(), Towers()
    value = loss(block)(*ours(*inputs()), across=False)
    expected = oracle(loss, *theirs(*inputs()))
    torch.testing.assert_close(value, expected)
    value.backward()
    expected.backward()
    close(gradients(ours), gradients(theirs))
    if loss is InfoNCE:
        assert ours.bias.grad is not None
        assert ours.bias.grad.abs() < 1e-6  # what all logits share, a softmax does not see


@needs_open_clip
@pytest.mark.parametrize("loss", LOSSES)
def test_value_and_gradients_are_those_of_open_clip(loss: type[Contrastive]) -> None:
    """Breaks if runs of both cannot be compared."""
    from open_clip.loss import ClipLoss, SigLipLoss

    ours, theirs = Towers(), Towers()
    value = loss(block=3)(*ours(*inputs()), across=False)
    expected = (ClipLoss() if loss is InfoNCE else SigLipLoss())(*theirs(*inputs()))
    torch.testing.assert_close(value, expected)
    value.backward()
    expected.backward()
    close(gradients(ours), gradients(theirs))


@pytest.mark.parametrize("block", [None, 3])
@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_are_the_derivatives(loss: type[Contrastive], block: int | None) -> None:
    """Breaks if a written derivative is not that of the value, for unit lengths or others, or is not scaled by what follows."""
    torch.manual_seed(0)
    image, text = (torch.randn(5, DIM, dtype=torch.float64, requires_grad=True) for _ in range(2))
    scale, bias = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (1.7, -0.6))
    assert torch.autograd.gradcheck(lambda *x: 3 * loss(block)(*x, across=False), (image, text, scale, bias))


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_embeddings_that_know_nothing_cost_ln_n(scale: float) -> None:
    """Breaks if the first loss of a run does not say how many pairs a batch has: ln N where all cosines are the same."""
    same = F.normalize(torch.ones(64, 8), dim=-1)
    assert InfoNCE()(same, same, torch.tensor(scale), None, across=False).item() == pytest.approx(
        math.log(64), rel=1e-5
    )
    images, texts = torch.eye(128)[:64], torch.eye(128)[64:]  # at right angles to all of the other kind
    assert InfoNCE(block=7)(images, texts, torch.tensor(scale), None, across=False).item() == pytest.approx(
        math.log(64)
    )


def test_large_scales_do_not_overflow() -> None:
    """Breaks if exponentials are taken of logits as they are: exp(100) is no float32."""
    image = F.normalize(torch.randn(9, 4, generator=torch.Generator().manual_seed(0)), dim=-1).requires_grad_()
    for loss in (InfoNCE(2), Sigmoid(2)):
        value = loss(image, -image, torch.tensor(100.0), torch.tensor(0.0), across=False)
        value.backward()
        assert value.isfinite()
        assert value > 50  # the right text is the farthest
        assert image.grad is not None
        assert image.grad.isfinite().all()


@pytest.mark.parametrize("loss", LOSSES)
def test_autocast_does_not_round_the_loss(loss: type[Contrastive]) -> None:
    """Breaks if logits are made in bfloat16, where 100 has no neighbours within a half, in either direction."""
    plain, rounded = ([x.detach().requires_grad_() for x in Towers()(*inputs())] for _ in range(2))
    value = loss(block=4)(*plain, across=False)
    value.backward()
    with torch.autocast("cpu", torch.bfloat16):
        same = loss(block=4)(*rounded, across=False)
        same.backward()
    assert torch.equal(same, value)
    for one, other in zip(plain, rounded, strict=True):
        assert torch.equal(one.grad, other.grad)


def test_embeddings_of_half_precision_are_widened() -> None:
    """Breaks if what a network in bfloat16 gives is summed in bfloat16, or its gradient comes back in another type."""
    image, text, scale, _ = Towers()(*inputs())
    half = image.detach().bfloat16().requires_grad_()
    value = InfoNCE()(half, text.detach(), scale.detach(), None, across=False)
    assert value.dtype == torch.float32
    value.backward()
    assert half.grad is not None
    assert half.grad.dtype == torch.bfloat16


def test_the_sigmoid_loss_says_that_it_needs_a_bias() -> None:
    """Breaks if it trains without: nearly all pairs are wrong ones, and the loss would begin with undoing that."""
    image, text, scale, _ = Towers()(*inputs())
    with pytest.raises(UserError, match="needs a bias"):
        Sigmoid()(image, text, scale, None, across=False)


def test_what_makes_no_pairs_is_refused() -> None:
    """Breaks if images and texts that are not as many are paired somehow, or blocks have no rows."""
    image, text, scale, bias = Towers()(*inputs())
    with pytest.raises(ValueError, match="10 images and 9 texts"):
        InfoNCE()(image, text[1:], scale, bias, across=False)
    with pytest.raises(UserError, match="block is 0"):
        InfoNCE(block=0)


def test_within_a_compiled_step() -> None:
    """Breaks if a step that torch.compile traces fails at the loss, or has another value."""
    torch.compiler.reset()
    plain, traced = Towers(), Towers()
    loss = InfoNCE(block=3)
    value = loss(*plain(*inputs()), across=False)
    value.backward()
    same = torch.compile(lambda: loss(*traced(*inputs()), across=False), backend="aot_eager")()
    same.backward()
    torch.testing.assert_close(same, value)
    close(gradients(plain), gradients(traced))


class Largest(TorchDispatchMode):
    """Numbers of the largest tensor that any operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):  # type: ignore[no-untyped-def]
        made = function(*arguments, **(keywords or {}))
        for tensor in made if isinstance(made, tuple) else (made,):
            if isinstance(tensor, Tensor):
                self.numbers = max(self.numbers, tensor.untyped_storage().nbytes() // tensor.element_size())
        return made


@pytest.mark.parametrize("loss", LOSSES)
def test_no_tensor_is_larger_than_a_block(loss: type[Contrastive]) -> None:
    """Breaks if somewhere, forward or backward, all N x N similarities are held at once."""
    number, block = 256, 16
    towers = Towers()
    images, texts = torch.randn(number, 4), torch.randn(number, 5)
    sizes = {}
    for rows in (block, None):
        outputs = towers(images, texts)
        with Largest() as largest:
            loss(rows)(*outputs, across=False).backward()
        sizes[rows] = largest.numbers
    assert sizes == {block: block * number, None: number * number}


@pytest.mark.parametrize("loss", LOSSES)
def test_memory_is_that_of_a_few_blocks(loss: type[Contrastive]) -> None:
    """Breaks if blocks pile up instead of following one another, or the forward pass keeps any for the backward pass."""
    number, block = 1024, 16
    outputs = [x.detach().requires_grad_() for x in Towers()(torch.randn(number, 4), torch.randn(number, 5))]
    features, rows = 4 * 2 * number * DIM, 4 * block * number
    _, kept = allocated(lambda: loss(block)(*outputs, across=False))
    assert kept < features
    highest, _ = allocated(lambda: loss(block)(*outputs, across=False).backward())
    assert rows < highest < 4 * rows + 4 * features  # of 64 blocks


def on_one_of_two(rank: int, folder: str) -> None:
    """Half of the batch on each of two processes: the mean of values and gradients, as DistributedDataParallel makes it."""
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    own = slice(rank * PAIRS // 2, (rank + 1) * PAIRS // 2)
    for name in CASES:
        net = nn.parallel.DistributedDataParallel(Towers())
        value = objective(name)(*net(*(x[own] for x in inputs())), across=True)
        value.backward()
        distributed.all_reduce(value.detach())
        if rank == 0:
            torch.save({"value": value.detach() / 2, **gradients(net.module)}, f"{folder}/{name}.pt")
    ours, first = gather(torch.full((2, 3), float(rank)))
    assert ours.tolist() == [[0.0] * 3] * 2 + [[1.0] * 3] * 2
    assert first == 2 * rank
    alone = objective("InfoNCE-2")(*Towers()(*(x[own] for x in inputs())), across=False)
    torch.save(alone.detach(), f"{folder}/alone{rank}.pt")
    distributed.destroy_process_group()


CASES = [f"{loss.__name__}-{block}" for loss in LOSSES for block in (None, 2)]  # five pairs each: 2, 2 and 1 rows


def objective(name: str) -> Contrastive:
    loss, block = name.split("-")
    return {"InfoNCE": InfoNCE, "Sigmoid": Sigmoid}[loss](None if block == "None" else int(block))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes have found together."""
    folder = tmp_path_factory.mktemp("two")
    multiprocessing.start_processes(on_one_of_two, (str(folder),), nprocs=2, start_method="fork")
    return folder


@pytest.mark.parametrize("name", CASES)
def test_two_processes_are_one(two: Path, name: str) -> None:
    """Breaks if gradients of the other process's rows are lost or doubled, or those of scale and bias weigh more than one."""
    net = Towers()
    value = objective(name)(*net(*inputs()), across=True)  # without torch.distributed there is one process
    value.backward()
    close(torch.load(two / f"{name}.pt"), {"value": value.detach(), **gradients(net)})


def test_evaluation_stays_on_its_process(two: Path) -> None:
    """Breaks if processes wait for each other where they have different numbers of batches."""
    for rank in range(2):
        own = slice(rank * PAIRS // 2, (rank + 1) * PAIRS // 2)
        expected = InfoNCE()(*Towers()(*(x[own] for x in inputs())), across=False)
        torch.testing.assert_close(torch.load(two / f"alone{rank}.pt"), expected.detach())
