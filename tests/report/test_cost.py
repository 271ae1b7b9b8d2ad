"""Counting against hand-computed numbers and the paper's Table 2; time and memory of a forward."""

import subprocess
import sys

import pytest
import timm
import torch
from torch import Tensor, nn

from lightning_vl.nn.embeddings import TubeletEmbedding
from lightning_vl.papers.vivit.model import (
    AveragePool,
    FactorisedDotProduct,
    FactorisedEncoder,
    FactorisedSelfAttention,
    SpatioTemporal,
    ViViT,
)
from lightning_vl.report.cost import GIBI, count_operations, measure_speed, peak_memory_gib, static_cost

# Each class with parameters, multiply-adds and the paper's FLOPs at B/16x2, 32 x 224 x 224, 400 classes, the last in 1e9.
TABLE_2 = [
    (SpatioTemporal, 88_954_000, 451.525, 455.2),
    (FactorisedEncoder, 115_062_928, 283.342, 284.4),
    (FactorisedSelfAttention, 117_319_312, 371.094, 372.3),
    (FactorisedDotProduct, 88_952_464, 276.182, 277.1),
    (AveragePool, 86_696_080, 282.859, 283.9),
]


def vivit(kind: type[ViViT], tubelet: tuple[int, int, int] = (2, 16, 16)) -> ViViT:
    """A ViViT-B on 32 frames of 224 x 224."""
    embedding = TubeletEmbedding(frames=32, image_size=224, tubelet=tubelet, dim=768)
    return kind(embedding, layers=12, heads=12, mlp_dim=3072, classes={"class": 400})  # type: ignore[call-arg]


class Calls(nn.Module):
    """A module that calls a function, and gives its own example inputs."""

    def __init__(self, function, *inputs: Tensor) -> None:
        super().__init__()
        self.function = function
        self.inputs = inputs

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)

    def example_inputs(self, batch_size: int) -> tuple[Tensor, ...]:
        return self.inputs


@pytest.mark.parametrize(("kind", "parameters", "gmacs", "paper_gflops"), TABLE_2)
def test_table_2_of_the_paper(kind: type[ViViT], parameters: int, gmacs: float, paper_gflops: float) -> None:
    """A module whose operations, or a rule whose count, departs from the paper's shows in its own column."""
    with torch.device("meta"):
        cost = static_cost(vivit(kind))
    assert cost.parameters == parameters
    assert cost.gmacs == pytest.approx(gmacs, abs=0.001)
    assert cost.gflops == 2 * cost.gmacs
    assert cost.paper_gflops == pytest.approx(paper_gflops, abs=0.1)


@pytest.mark.parametrize(
    ("kind", "of_16x4", "of_16x8"),
    [
        (SpatioTemporal, 183.5, 82.1),
        (FactorisedEncoder, 144.1, 73.9),
        (FactorisedSelfAttention, 187.8, 95.7),
        (FactorisedDotProduct, 140.3, 72.0),
    ],
)
def test_other_tubelets(kind: type[ViViT], of_16x4: float, of_16x8: float) -> None:
    """The count follows the shapes: numbers fitted to Table 2 alone would miss these."""
    with torch.device("meta"):
        costs = [static_cost(vivit(kind, (t, 16, 16))).paper_gflops for t in (4, 8)]
    assert costs == pytest.approx([of_16x4, of_16x8], abs=0.1)


def test_timm_vit_equals_closed_form() -> None:
    """Attention hidden in a fused kernel, or counted twice, would not give timm's ViT its closed form."""
    with torch.device("meta"):
        net = timm.create_model("vit_base_patch16_224")
        macs = count_operations(net.eval(), torch.empty(1, 3, 224, 224)).macs
    tokens, dim = 197, 768
    blocks = 12 * (12 * tokens * dim**2 + 2 * tokens**2 * dim)
    assert macs == 196 * (3 * 16 * 16) * dim + blocks + dim * 1000


SHAPE = (2, 3, 5)
N = 30
RULES = [
    ("addition", lambda x: x + x, [SHAPE], N),
    ("broadcast position", lambda x, p: x + p, [SHAPE, (3, 5)], N),
    ("in place", lambda x: x.clone().add_(x), [SHAPE], N),
    ("product with a number", lambda x: 2 * x, [SHAPE], N),
    ("difference, quotient", lambda x: (x - x) / x, [SHAPE], 2 * N),
    ("1 - x", lambda x: 1 - x, [SHAPE], N),
    ("tanh GELU", lambda x: nn.functional.gelu(x, approximate="tanh"), [SHAPE], 8 * N),
    ("erf GELU", nn.functional.gelu, [SHAPE], 4 * N),
    ("ReLU", nn.functional.relu, [SHAPE], N),
    ("transcendentals are free", lambda x: x.exp().tanh().rsqrt().sigmoid(), [SHAPE], 0),
    ("softmax over rows of 5", lambda x: x.softmax(-1), [SHAPE], 4 * N - 2 * 6),
    ("softmax over columns of 3", lambda x: x.softmax(1), [SHAPE], 4 * N - 2 * 10),
    (
        "LayerNorm 7 + 4 a row",
        lambda x, w, b: nn.functional.layer_norm(x, (5,), w, b),
        [SHAPE, (5,), (5,)],
        7 * N + 4 * 6,
    ),
    ("LayerNorm without weights", lambda x: nn.functional.layer_norm(x, (5,)), [SHAPE], 5 * N + 4 * 6),
    ("mean", lambda x: x.mean(1), [SHAPE], N),
    ("sum", lambda x: x.sum(1), [SHAPE], N - 10),
    ("length", lambda x: torch.linalg.vector_norm(x, dim=-1), [SHAPE], N + (N - 6)),
    ("moving data is free", lambda x: torch.cat([x.transpose(0, 1).flatten(), x.reshape(-1)]), [SHAPE], 0),
    ("matrix product", lambda x, w: x @ w, [(3, 5), (5, 7)], 0),
    ("linear with bias", nn.functional.linear, [SHAPE, (7, 5), (7,)], 2 * 3 * 7),
    ("linear without bias", nn.functional.linear, [SHAPE, (7, 5)], 0),
    ("convolution with bias", nn.functional.conv2d, [(1, 3, 8, 8), (4, 3, 2, 2), (4,)], 4 * 7 * 7),
    ("convolution without bias", nn.functional.conv2d, [(1, 3, 8, 8), (4, 3, 2, 2)], 0),
]


@pytest.mark.parametrize(
    ("function", "shapes", "expected"), [rule[1:] for rule in RULES], ids=[rule[0] for rule in RULES]
)
def test_elementwise_rule(function, shapes: list[tuple[int, ...]], expected: int) -> None:
    """Each rule of the paper's way of counting by itself: a wrong one may hide in the sum of a whole network."""
    inputs = [torch.empty(shape, device="meta") for shape in shapes]
    assert count_operations(Calls(function), *inputs).elementwise == expected


@pytest.mark.parametrize("masked", [False, True])
def test_attention(masked: bool) -> None:
    """Scaled queries, softmax over the keys and both products, however torch would compute them; a mask adds once."""
    b, h, queries, keys, c = 2, 3, 5, 7, 4
    q, k, v = (torch.empty(b, h, n, c, device="meta") for n in (queries, keys, keys))
    mask = torch.empty(queries, keys, device="meta") if masked else None
    counted = count_operations(
        Calls(lambda q, k, v: nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)), q, k, v
    )
    scores = b * h * queries * keys
    assert counted.macs == 2 * scores * c
    assert counted.elementwise == b * h * queries * c + 4 * scores - 2 * b * h * queries + masked * scores


def test_attention_written_out_counts_the_same() -> None:
    """A module with products and a softmax of its own must cost what the fused one does."""
    q = torch.empty(2, 3, 5, 4, device="meta")

    def written_out(q: Tensor) -> Tensor:
        return ((q * 0.5) @ q.transpose(-2, -1)).softmax(-1) @ q

    fused = count_operations(Calls(lambda q: nn.functional.scaled_dot_product_attention(q, q, q)), q)
    assert count_operations(Calls(written_out), q) == fused


@pytest.mark.parametrize("training", [True, False])
def test_static_cost_leaves_the_network_alone(training: bool) -> None:
    """It runs at the end of a run on the trained network: values, modes and random state stay; dropout does not count."""
    torch.manual_seed(0)
    embedding = TubeletEmbedding(frames=4, image_size=16, tubelet=(2, 8, 8), dim=16)
    net = SpatioTemporal(embedding, layers=2, heads=2, mlp_dim=32, classes={"class": 3}, dropout=0.5)
    net.train(training)
    net.encoder.norm.eval()  # modes may differ between modules
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    random = torch.get_rng_state()
    cost = static_cost(net)
    assert torch.equal(torch.get_rng_state(), random)
    assert net.training == training
    assert not net.encoder.norm.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    with torch.device("meta"):
        fresh = SpatioTemporal(embedding.to("meta"), layers=2, heads=2, mlp_dim=32, classes={"class": 3})
    assert static_cost(fresh) == cost


def test_shared_parameters_count_once() -> None:
    """Tied weights counted twice would give BERT and CLIP too many parameters."""
    net = Calls(lambda x: x, torch.empty(1, 4, device="meta"))
    net.one = nn.Linear(4, 4, device="meta")
    net.two = nn.Linear(4, 4, device="meta")
    net.two.weight = net.one.weight
    assert static_cost(net).parameters == 16 + 4 + 4


def test_peak_memory_on_the_cpu() -> None:
    """What is alive at once: not the sum of all tensors, not a high-water mark of the process."""
    size = 4 * 1000

    def chain(x: Tensor) -> Tensor:
        for _ in range(10):
            x = x + 1  # the old one is dropped when the new one is there: three alive with the caller's input
        return x

    def keeps(x: Tensor) -> Tensor:
        kept = [x + number for number in range(10)]
        return torch.stack(kept)  # ten, and ten of the stack

    def views(x: Tensor) -> Tensor:
        return (x + 1).view(10, 100).transpose(0, 1)[3:]

    x = torch.zeros(1000)
    assert peak_memory_gib(Calls(keeps), x) == 21 * size / GIBI
    assert peak_memory_gib(Calls(chain), x) == 3 * size / GIBI  # after the larger one: nothing is left over from it
    assert peak_memory_gib(Calls(views), x) == 2 * size / GIBI


def test_speed_is_measured_on_the_batch_asked_for() -> None:
    """So many runs, of the whole batch, in the precision that was asked for."""
    seen: list[tuple[int, torch.dtype, bool]] = []

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def example_inputs(self, batch_size: int) -> tuple[Tensor, ...]:
            return (torch.zeros(batch_size, 8),)

        def forward(self, x: Tensor) -> Tensor:
            y = self.linear(x)
            seen.append((len(y), y.dtype, self.training))
            return y

    speed = measure_speed(Net(), batch_size=3, precision="bf16", runs=4)
    assert speed.runs == 4
    assert speed.latency_ms > 0
    assert seen == [(3, torch.bfloat16, False)] * 5  # a warm-up first
    assert measure_speed(Net(), batch_size=3, precision="fp32").runs >= 3
    assert seen[-1] == (3, torch.float32, False)


def test_report_without_torch() -> None:
    """`compare` and the dry run of `sweep` answer at once only as long as neither pulls in torch or matplotlib."""
    code = (
        "import sys, lightning_vl.report.compare, lightning_vl.report.sweep, lightning_vl.report.profile\n"
        "heavy = {'torch', 'lightning', 'matplotlib', 'rich', 'numpy', 'jinja2', 'yaml'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
