"""Attention over packed sequences, against the softmax of one sequence and one head at a time."""

from math import sqrt

import pytest
import torch
from torch import Tensor, nn

from lightning_vl.nn.attention import Attention, PackedAttention, masked_attention
from lightning_vl.nn.packing import pack

DIM, HEADS = 12, 3


def spread_out(module: nn.Module) -> nn.Module:
    """Weights large enough that attention is far from uniform."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module.eval()


def by_hand(attention: PackedAttention, sequence: Tensor, causal: bool) -> Tensor:
    """One sequence, (n, d), token by token and head by head."""
    n, width = len(sequence), DIM // HEADS
    query, key, value = attention.query_key_value(sequence).chunk(3, dim=-1)
    context = torch.empty(n, DIM)
    for head in range(HEADS):
        of_head = slice(head * width, (head + 1) * width)
        for i in range(n):
            seen = range(i + 1 if causal else n)
            scores = [float(query[i, of_head] @ key[j, of_head]) / sqrt(width) for j in seen]
            weights = torch.tensor(scores).softmax(0)
            context[i, of_head] = sum(w * value[j, of_head] for w, j in zip(weights, seen, strict=True))
    return attention.output(context)


@pytest.mark.parametrize("causal", [False, True], ids=["both ways", "causal"])
@pytest.mark.parametrize("lengths", [[3, 1, 5], [4, 4]], ids=str)
@torch.no_grad()
def test_equals_a_softmax_per_sequence(lengths: list[int], causal: bool) -> None:
    """Breaks if sequences see each other or the padding, a causal token sees a later one, or heads are mixed up."""
    attention = PackedAttention(DIM, HEADS, causal=causal)
    spread_out(attention)
    line = torch.randn(sum(lengths), DIM)
    expected = torch.cat([by_hand(attention, sequence, causal) for sequence in line.split(lengths)])
    torch.testing.assert_close(attention(line, pack(torch.tensor(lengths))), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_equals_attention_where_lengths_are_equal() -> None:
    """Breaks if the packed form reads the same weights otherwise than the form that ViT has."""
    packed, plain = PackedAttention(DIM, HEADS), Attention(DIM, HEADS)
    spread_out(plain)
    packed.load_state_dict(plain.state_dict())
    x = torch.randn(2, 5, DIM)
    torch.testing.assert_close(packed(x.flatten(0, 1), pack(torch.tensor([5, 5]))), plain(x).flatten(0, 1))


def test_dropout_only_in_training() -> None:
    """Breaks if evaluation is random, or training is not."""
    attention = PackedAttention(DIM, HEADS, dropout=0.5)
    line, packing = torch.randn(6, DIM), pack(torch.tensor([4, 2]))
    assert not torch.equal(attention(line, packing), attention(line, packing))
    attention.eval()
    assert torch.equal(attention(line, packing), attention(line, packing))


def test_projections_without_bias_are_matrices_alone() -> None:
    """Breaks if the Transformer's attention has more parameters than the paper's, or without them cannot run."""
    attention = PackedAttention(DIM, HEADS, bias=False)
    assert {name: tuple(tensor.shape) for name, tensor in attention.named_parameters()} == {
        "query_key_value.weight": (3 * DIM, DIM),
        "output.weight": (DIM, DIM),
    }
    assert not attention(torch.zeros(3, DIM), pack(torch.tensor([3]))).any()


@pytest.mark.parametrize("causal", [False, True], ids=["both ways", "causal"])
def test_gradients_are_finite_and_stay_in_their_sequence(causal: bool) -> None:
    """Breaks if masked places make gradients NaN, or a loss of one sequence reaches another."""
    attention = PackedAttention(DIM, HEADS, causal=causal)
    line = torch.randn(6, DIM, requires_grad=True)
    attention(line, pack(torch.tensor([2, 4])))[:2].square().sum().backward()
    assert line.grad is not None
    assert line.grad.isfinite().all()
    assert line.grad[:2].any(-1).all()
    assert not line.grad[2:].any()


def test_runs_in_bfloat16() -> None:
    """Breaks if the mask or a type in the padded form does not go with half precision."""
    attention = PackedAttention(DIM, HEADS)
    with torch.autocast("cpu", torch.bfloat16):
        out = attention(torch.randn(6, DIM), pack(torch.tensor([2, 4])))
    assert out.dtype == torch.bfloat16
    assert out.isfinite().all()


def test_the_values_of_masked_keys_do_not_count() -> None:
    """Breaks if a key that is not there has a weight, however small."""
    query, key, value = torch.randn(3, 1, 2, 4, 8)
    mask = torch.tensor([[True, True, False, True]])
    before = masked_attention(query, key, value, mask)
    value[:, :, 2] = 1e30
    assert torch.equal(masked_attention(query, key, value, mask), before)
