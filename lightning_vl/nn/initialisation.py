"""The initial values of ViT (and so of ViViT): flax's defaults where the papers are silent."""

import math

import torch
from torch import Tensor, nn


def init_linear(linear: nn.Linear, bias_std: float = 0.0) -> None:
    """Xavier-uniform weight; bias N(0, ``bias_std``), zero by default (ViT uses 1e-6 in its MLPs)."""
    nn.init.xavier_uniform_(linear.weight)
    nn.init.normal_(linear.bias, std=bias_std)


def init_query_key_value(linear: nn.Linear) -> None:
    """Xavier-uniform for each of the three (d, d) matrices in a fused (3 d, d) projection; bias zero.

    Initialised as one matrix, the fan-out would be 3 d and the weights too small by sqrt(2).
    """
    for weight in linear.weight.chunk(3):
        nn.init.xavier_uniform_(weight)
    nn.init.zeros_(linear.bias)


def init_output_zero(linear: nn.Linear) -> None:
    """Weight and bias zero: a classification head whose first loss is ln K, or a branch that starts as a no-op."""
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)


def init_filter(weight: Tensor) -> None:
    """LeCun normal (variance 1 / fan-in) cut off at two deviations, for a convolution filter (d, c, ...)."""
    # The cut narrows a unit normal to a deviation of 0.8796; flax divides by that, so that the variance is as named.
    std = math.sqrt(1 / weight[0].numel()) / 0.87962566103423978
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


def learned_positions(length: int, dim: int) -> nn.Parameter:
    """Position embedding (1, length, dim) drawn from N(0, 0.02)."""
    return nn.Parameter(nn.init.normal_(torch.empty(1, length, dim), std=0.02))


def class_token(dim: int) -> nn.Parameter:
    """Class token (1, 1, dim), zero."""
    return nn.Parameter(torch.zeros(1, 1, dim))
