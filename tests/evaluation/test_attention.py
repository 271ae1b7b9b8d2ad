"""What weights and attention show, against the definitions written out."""

from itertools import product
from math import hypot, sqrt

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_vl.evaluation.attention import (
    attention_distance,
    attention_weights,
    habits,
    mean_distance,
    of_layers,
    pixel_distances,
    position_similarity,
    principal_filters,
    rollout,
    rollout_map,
    uniform_distance,
)
from lightning_vl.nn.attention import Attention, PackedAttention, RelativeAttention
from lightning_vl.nn.packing import pack
from lightning_vl.papers.bert.model import Bert
from lightning_vl.papers.vit.model import ViT

GRID, PATCH = (3, 3), 4


def spread_out(net: nn.Module) -> nn.Module:
    """Weights large enough that attention is far from uniform."""
    torch.manual_seed(0)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.5)
    return net.eval()


@pytest.fixture
def vit() -> ViT:
    net = ViT(12, PATCH, dim=8, layers=3, heads=2, mlp_dim=8, classes=2, dropout=0.5)
    spread_out(net)
    return net


def images(number: int) -> Tensor:
    return torch.randn(number, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def softmax_by_hand(attention: Attention, x: Tensor, head: int) -> Tensor:
    """softmax(q k^T / sqrt(c)) of one head of one sequence, (n, n), from the projection's rows."""
    query, key, _ = (x @ attention.query_key_value.weight.T + attention.query_key_value.bias).chunk(3, dim=-1)
    width = x.shape[-1] // attention.heads
    of_head = slice(head * width, (head + 1) * width)
    return (query[:, of_head] @ key[:, of_head].T / sqrt(width)).softmax(-1)


@torch.no_grad()
def test_weights_are_the_softmax() -> None:
    """Breaks if heads, query and key are taken apart wrongly, or the scale is forgotten."""
    attention = Attention(12, 3)
    spread_out(attention)
    x = torch.randn(2, 5, 12)
    weights = attention_weights(attention, x)
    for image, head in product(range(2), range(3)):
        torch.testing.assert_close(weights[image, head], softmax_by_hand(attention, x[image], head))


@pytest.mark.parametrize("attention", [Attention(12, 3), RelativeAttention(5, 12, 3)], ids=["plain", "relative"])
@torch.no_grad()
def test_weights_are_those_that_the_module_used(attention: Attention) -> None:
    """Breaks if what a module adds to the logits is forgotten: weights times values must give its own output."""
    spread_out(attention)
    x = torch.randn(2, 5, 12)
    weights = attention_weights(attention, x)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 5))
    value = attention.query_key_value(x)[..., 24:].unflatten(-1, (3, 4)).transpose(1, 2)  # (b, h, n, c)
    again = attention.output((weights @ value).transpose(1, 2).flatten(2))
    torch.testing.assert_close(again, attention(x))


@pytest.mark.parametrize("causal", [False, True], ids=["both ways", "causal"])
@pytest.mark.parametrize("lengths", [[3, 5, 1], [4, 4]], ids=str)
@torch.no_grad()
def test_weights_of_packed_sequences(lengths: list[int], causal: bool) -> None:
    """Breaks if a token's weights are not those of its own sequence, or a causal token has some on a later one."""
    attention = PackedAttention(12, 3, dropout=0.5, causal=causal)
    spread_out(attention)
    line = torch.randn(sum(lengths), 12)
    weights = attention_weights(attention, line, pack(torch.tensor(lengths)))
    assert weights.shape == (len(lengths), 3, max(lengths), max(lengths))
    for sequence, of_sequence, n in zip(line.split(lengths), weights, lengths, strict=True):
        assert not of_sequence[:, :n, n:].any()
        for head in range(3):
            by_hand = softmax_by_hand(attention, sequence, head)
            by_hand = by_hand.tril() / by_hand.tril().sum(-1, keepdim=True) if causal else by_hand
            torch.testing.assert_close(of_sequence[head, :n, :n], by_hand)


def test_layers_of_a_network_with_several_inputs() -> None:
    """Breaks if a network on packed lines cannot be looked into, or its packing does not reach the weights."""
    net = Bert(11, layers=2, dim=8, heads=2, mlp_dim=8, positions=6)
    spread_out(net)
    ids, packing = torch.randint(11, (6,)), pack(torch.tensor([2, 4]))
    heads = of_layers(net, (ids, torch.zeros_like(ids), packing), lambda weights: weights)
    assert [tuple(weights.shape) for weights in heads] == [(2, 2, 4, 4)] * 2
    first = net.norm(net.tokens(ids) + net.segments(torch.zeros_like(ids)) + net.positions(packing.positions))
    torch.testing.assert_close(heads[0], attention_weights(net.blocks[0].attention, first, packing))


def test_habits_equal_two_loops() -> None:
    """Breaks if before and after change places, a token without a neighbour is counted, or one [SEP] alone is."""
    weights = torch.rand(3, 5, 5).softmax(-1)
    separators = torch.tensor([False, False, True, False, True])
    of_heads = habits(weights, separators)
    for head, of_head in enumerate(weights.tolist()):
        expected = {
            "first": sum(row[0] for row in of_head) / 5,
            "separator": sum(row[2] + row[4] for row in of_head) / 5,
            "previous": sum(of_head[i][i - 1] for i in range(1, 5)) / 4,
            "itself": sum(of_head[i][i] for i in range(5)) / 5,
            "next": sum(of_head[i][i + 1] for i in range(4)) / 4,
            "distance": sum(of_head[i][j] * abs(i - j) for i in range(5) for j in range(5)) / 5,
        }
        assert {name: of[head].item() for name, of in of_heads._asdict().items()} == pytest.approx(expected)


def test_looking_changes_nothing_and_leaves_nothing(vit: ViT) -> None:
    """Breaks if hooks stay in the network, also after an error, or layers come in another order or number."""
    before = vit(images(2)).logits
    heads = of_layers(vit, images(2), lambda weights: weights)
    assert [tuple(weights.shape) for weights in heads] == [(2, 2, 10, 10)] * 3
    first = vit.encoder.blocks[0]
    tokens = torch.cat([vit.class_token.expand(2, -1, -1), vit.embedding(images(2))], dim=1) + vit.positions
    torch.testing.assert_close(heads[0], attention_weights(first.attention, first.norm_attention(tokens)))

    def fail(weights: Tensor) -> Tensor:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        of_layers(vit, images(1), fail)
    assert not any(module._forward_pre_hooks for module in vit.modules())
    assert torch.equal(vit(images(2)).logits, before)


def distance_by_hand(weights: np.ndarray, columns: int, patch_size: int) -> float:
    """One head of one image, (1 + s, 1 + s): over all pairs of patches, in two loops."""
    total = 0.0
    patches = range(1, len(weights))
    for query in patches:
        remaining = sum(weights[query, key] for key in patches)
        for key in patches:
            down = (query - 1) // columns - (key - 1) // columns
            right = (query - 1) % columns - (key - 1) % columns
            total += weights[query, key] / remaining * patch_size * hypot(down, right)
    return total / len(patches)


def test_attention_distance_equals_two_loops(vit: ViT) -> None:
    """Breaks if the class token counts, rows are not renormalised, or x and y, heads or layers change places."""
    measured = attention_distance(vit, [images(3)], GRID, PATCH)
    layers = of_layers(vit, images(3), lambda weights: weights)
    assert measured.shape == (3, 2)
    for layer, head in product(range(3), range(2)):
        by_hand = [distance_by_hand(layers[layer][image, head].double().numpy(), 3, PATCH) for image in range(3)]
        assert measured[layer, head].item() == pytest.approx(np.mean(by_hand), rel=1e-5)


def test_every_image_counts_alike(vit: ViT) -> None:
    """Breaks if batches are averaged instead of images: the last batch is smaller."""
    together = attention_distance(vit, [images(5)], GRID, PATCH)
    torch.testing.assert_close(attention_distance(vit, images(5).split(4), GRID, PATCH), together)


def test_distances_of_a_grid_that_is_not_square() -> None:
    """Breaks if patches are not counted row by row."""
    distances = pixel_distances((2, 3), 10)
    assert distances.shape == (6, 6)
    assert distances[0].tolist() == pytest.approx([0, 10, 20, 10, 10 * sqrt(2), 10 * sqrt(5)])
    assert torch.equal(distances, distances.T)


@pytest.mark.parametrize("grid", [(1, 2), (2, 3), (14, 14)])
def test_uniform_distance_is_the_mean_over_all_pairs(grid: tuple[int, int]) -> None:
    """Breaks if the closed form counts a shift of patches too often or too rarely."""
    assert uniform_distance(grid, 16) == pytest.approx(pixel_distances(grid, 16).mean().item(), rel=1e-5)


@torch.no_grad()
def test_a_network_that_attends_uniformly_has_the_uniform_distance(vit: ViT) -> None:
    """Queries of zero make every logit the same; breaks if the line in the figure is of something else than its dots."""
    for block in vit.encoder.blocks:
        block.attention.query_key_value.weight[:8] = 0
        block.attention.query_key_value.bias[:8] = 0
    measured = attention_distance(vit, [images(2)], GRID, PATCH)
    torch.testing.assert_close(measured, torch.full((3, 2), uniform_distance(GRID, PATCH)))


def test_a_query_that_sees_the_class_token_alone_is_not_counted() -> None:
    """Breaks if 0 / 0 makes the distance of a whole head NaN."""
    weights = torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [0.5, 0.25, 0.25]])[None, None]
    assert mean_distance(weights, pixel_distances((1, 2), 8)).tolist() == [[4.0]]


def test_rollout_equals_the_product_by_hand() -> None:
    """Breaks if layers are multiplied the other way round or the residual is added otherwise."""
    rng = np.random.default_rng(0)
    layers = rng.dirichlet(np.ones(4), size=(3, 2, 4))  # layers, images, queries, keys
    expected = np.empty((2, 4, 4))
    for image in range(2):
        joint = np.eye(4)
        for layer in range(3):
            mixed = np.empty((4, 4))
            for query in range(4):
                for key in range(4):
                    mixed[query, key] = (layers[layer, image, query, key] + (query == key)) / 2
            joint = np.array([[sum(mixed[i, k] * joint[k, j] for k in range(4)) for j in range(4)] for i in range(4)])
        expected[image] = joint
    assert np.allclose(rollout([torch.from_numpy(layer) for layer in layers]).numpy(), expected)


def test_the_map_is_the_class_tokens_row(vit: ViT) -> None:
    """Breaks if another row is taken, heads are not averaged, or the grid is filled column by column."""
    attention = of_layers(vit, images(2), lambda weights: weights.mean(1).double())
    mixed = [(layer + torch.eye(10)) / 2 for layer in attention]
    row = (mixed[2] @ mixed[1] @ mixed[0])[:, 0, 1:]
    expected = (row / row.sum(-1, keepdim=True)).reshape(2, 3, 3)
    torch.testing.assert_close(rollout_map(vit, images(2), GRID).double(), expected, rtol=1e-4, atol=1e-6)


def test_without_a_class_token_the_map_is_the_mean_row() -> None:
    """Breaks if the first patch of a pooled network is taken for a class token."""
    pooled = spread_out(ViT(12, PATCH, dim=8, layers=3, heads=2, mlp_dim=8, classes=2, pooled=True))
    attention = of_layers(pooled, images(2), lambda weights: weights.mean(1).double())
    mixed = [(layer + torch.eye(9)) / 2 for layer in attention]
    expected = (mixed[2] @ mixed[1] @ mixed[0]).mean(1).reshape(2, 3, 3)
    torch.testing.assert_close(rollout_map(pooled, images(2), GRID).double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("class_row", [0, 1])
def test_position_similarity_is_the_cosine_of_patches(class_row: int) -> None:
    """Breaks if the class token's row is compared, or tiles are not in the grid's order."""
    positions = torch.randn(1, class_row + 6, 5)
    similarity = position_similarity(positions, (2, 3))
    assert similarity.shape == (2, 3, 2, 3)
    vectors = positions[0, class_row:].double().numpy()
    for row, column, other_row, other_column in product(range(2), range(3), range(2), range(3)):
        one, other = vectors[3 * row + column], vectors[3 * other_row + other_column]
        cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
        assert similarity[row, column, other_row, other_column].item() == pytest.approx(cosine)


def test_principal_filters_are_singular_vectors() -> None:
    """Breaks if filters are not centred, not in order, or their channels and pixels are mixed up."""
    weight = torch.randn(20, 3, 2, 2) * torch.arange(1, 13).reshape(3, 2, 2) + 1
    found = principal_filters(weight, 5)
    assert found.components.shape == (5, 3, 2, 2)
    filters = weight.double().numpy().reshape(20, 12)
    _, singular, directions = np.linalg.svd(filters - filters.mean(0))
    for component, direction in zip(found.components, directions, strict=False):
        sign = np.sign(component.ravel() @ direction)
        assert np.allclose(component, sign * direction.reshape(3, 2, 2))
    assert np.allclose(found.variance, (singular**2 / (singular**2).sum())[:5])
