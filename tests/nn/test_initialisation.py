import math

import pytest
import torch
from torch import nn

from lightning_vl.nn.attention import Attention
from lightning_vl.nn.blocks import Mlp
from lightning_vl.nn.initialisation import class_token, init_filter, init_output_zero, learned_positions


def test_query_key_value_are_initialised_one_by_one() -> None:
    """Xavier over the fused matrix would bound each third by sqrt(6 / 4 d), not sqrt(6 / 2 d)."""
    torch.manual_seed(0)
    attention = Attention(256, heads=4)
    bound = math.sqrt(6 / (2 * 256))
    for third in attention.query_key_value.weight.chunk(3):
        assert 0.99 * bound < third.abs().max() <= bound
    assert 0.99 * bound < attention.output.weight.abs().max() <= bound
    assert not attention.query_key_value.bias.any()
    assert not attention.output.bias.any()


def test_mlp_biases_are_tiny_and_random() -> None:
    """N(0, 1e-6) as in the official code; torch's default would be a thousand times larger."""
    torch.manual_seed(0)
    mlp = Mlp(256, 1024)
    assert mlp.hidden.bias.std().item() == pytest.approx(1e-6, rel=0.1)
    assert mlp.hidden.weight.abs().max() <= math.sqrt(6 / (256 + 1024))


def test_filters_have_the_deviation_of_their_fan_in() -> None:
    """Without flax's correction the cut-off normal would be 12 % narrower."""
    torch.manual_seed(0)
    weight = torch.empty(256, 3, 2, 8, 8)
    init_filter(weight)
    assert weight.std().item() == pytest.approx(math.sqrt(1 / (3 * 2 * 8 * 8)), rel=0.01)


def test_tokens_positions_and_heads() -> None:
    """Positions N(0, 0.02), class token and head zero."""
    torch.manual_seed(0)
    positions = learned_positions(100, 64)
    assert positions.shape == (1, 100, 64)
    assert positions.std().item() == pytest.approx(0.02, rel=0.05)
    assert not class_token(64).any()
    head = nn.Linear(8, 4)
    init_output_zero(head)
    assert not head.weight.any()
    assert not head.bias.any()
