"""Transformer blocks, pre-norm as in ViT and post-norm as in the Transformer and BERT, and the encoders that stack them."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_vl.nn.attention import Attention, PackedAttention
from lightning_vl.nn.initialisation import init_linear
from lightning_vl.nn.packing import Packing

GeluApproximation = Literal["tanh", "none", "quick"]

# flax's default, with which the official ViT and ViViT weights were trained; torch's is 1e-5.
LAYER_NORM_EPS = 1e-6


class QuickGelu(nn.Module):
    """x sigmoid(1.702 x), the cheaper approximation of GELU that CLIP's weights were trained with."""

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise."""
        return x * torch.sigmoid(1.702 * x)


def gelu(approximation: GeluApproximation) -> nn.Module:
    """The activation of that name."""
    return QuickGelu() if approximation == "quick" else nn.GELU(approximate=approximation)


class Mlp(nn.Module):
    """Linear, GELU, dropout, linear, dropout.

    Args:
        dim: width d of the tokens.
        hidden_dim: width of the hidden layer.
        dropout: after each of the two linear layers.
        gelu_approximation: "tanh" as in flax and so in the official weights; "none" is the exact form with erf, as in
            timm and in transformers' ViT; "quick" is CLIP's.
    """

    def __init__(
        self, dim: int, hidden_dim: int, dropout: float = 0.0, gelu_approximation: GeluApproximation = "tanh"
    ) -> None:
        super().__init__()
        self.hidden = nn.Linear(dim, hidden_dim)
        self.gelu = gelu(gelu_approximation)
        self.output = nn.Linear(hidden_dim, dim)
        self.dropout = nn.Dropout(dropout)
        init_linear(self.hidden, bias_std=1e-6)
        init_linear(self.output, bias_std=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) to (..., d)."""
        return self.dropout(self.output(self.dropout(self.gelu(self.hidden(x)))))


class StochasticDepth(nn.Module):
    """Drops a residual branch for whole examples, each with probability p, in training only.

    As in ViViT's code, what is kept is not divided by 1 - p. Each call draws anew, so that two branches of one block
    are dropped independently.

    Args:
        probability: p, in [0, 1).
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        if not 0 <= probability < 1:
            raise ValueError(f"a probability of stochastic depth lies in [0, 1), not at {probability}")
        self.probability = probability

    def forward(self, branch: Tensor) -> Tensor:
        """(b, ...) to (b, ...), zero for the examples that are dropped."""
        if not self.training or self.probability == 0:
            return branch
        kept = torch.rand(branch.shape[0], *[1] * (branch.ndim - 1), device=branch.device) >= self.probability
        return branch * kept

    def extra_repr(self) -> str:
        return f"probability={self.probability}"


def stochastic_depth_ramp(probability: float, layers: int) -> list[float]:
    """p(l) = (l / L) p_drop for the layers l = 1 to L (ViViT, Table 7)."""
    return [layer / layers * probability for layer in range(1, layers + 1)]


class PreNormBlock(nn.Module):
    """ViT's encoder block (ViT, Eq. 2 and 3): both branches normalise first.

    Args:
        attention: how tokens see each other.
        dim: width d of the tokens.
        mlp_dim: hidden width of the MLP.
        dropout: after every linear layer but query, key and value.
        stochastic_depth: probability with which each branch is dropped.
        gelu_approximation: see :class:`Mlp`.
        layer_norm_eps: what the norms add to the variance.
    """

    def __init__(
        self,
        attention: Attention,
        dim: int,
        mlp_dim: int,
        dropout: float = 0.0,
        stochastic_depth: float = 0.0,
        gelu_approximation: GeluApproximation = "tanh",
        layer_norm_eps: float = LAYER_NORM_EPS,
    ) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(dim, eps=layer_norm_eps)
        self.attention = attention
        self.norm_mlp = nn.LayerNorm(dim, eps=layer_norm_eps)
        self.mlp = Mlp(dim, mlp_dim, dropout, gelu_approximation)
        self.dropout = nn.Dropout(dropout)
        self.stochastic_depth = StochasticDepth(stochastic_depth)

    def forward(self, x: Tensor, *packing: Packing) -> Tensor:
        """(b, ..., n, d) to the same, or (t, d) of packed sequences; a branch is dropped for all sequences of an example."""
        x = x + self.stochastic_depth(self.dropout(self.attention(self.norm_attention(x), *packing)))  # ViT, Eq. 2
        return x + self.stochastic_depth(self.mlp(self.norm_mlp(x)))  # ViT, Eq. 3


class Encoder(nn.Module):
    """A stack of pre-norm blocks and the final norm (ViT, Eq. 2 to 4).

    Args:
        layers: number of blocks L; may be 0.
        dim: width d of the tokens.
        heads: attention heads.
        mlp_dim: hidden width of the MLPs.
        dropout: after every linear layer but query, key and value.
        stochastic_depth: p_drop, the probability at the last block; see :func:`stochastic_depth_ramp`.
        gelu_approximation: see :class:`Mlp`.
        layer_norm_eps: what the norms add to the variance.
        attention: makes a block's attention from the width and the number of heads.
    """

    def __init__(
        self,
        layers: int,
        dim: int,
        heads: int,
        mlp_dim: int,
        dropout: float = 0.0,
        stochastic_depth: float = 0.0,
        gelu_approximation: GeluApproximation = "tanh",
        layer_norm_eps: float = LAYER_NORM_EPS,
        attention: Callable[[int, int], Attention] = Attention,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            PreNormBlock(attention(dim, heads), dim, mlp_dim, dropout, probability, gelu_approximation, layer_norm_eps)
            for probability in stochastic_depth_ramp(stochastic_depth, layers)
        )
        self.norm = nn.LayerNorm(dim, eps=layer_norm_eps)

    def forward(self, x: Tensor, *packing: Packing) -> Tensor:
        """(b, ..., n, d) to the same, or (t, d) of packed sequences, normalised."""
        for block in self.blocks:
            x = block(x, *packing)
        return self.norm(x)


class PostNormBlock(nn.Module):
    """The Transformer's encoder block, LayerNorm(x + Dropout(Sublayer(x))) twice ("Attention Is All You Need", Sec. 3.1).

    Args:
        attention: how tokens see each other.
        mlp: the position-wise network, (t, d) to the same.
        dim: width d of the tokens.
        dropout: on the output of both sub-layers.
        layer_norm_eps: what the norms add to the variance.
    """

    def __init__(
        self, attention: PackedAttention, mlp: nn.Module, dim: int, dropout: float, layer_norm_eps: float
    ) -> None:
        super().__init__()
        self.attention = attention
        self.norm_attention = nn.LayerNorm(dim, eps=layer_norm_eps)
        self.mlp = mlp
        self.norm_mlp = nn.LayerNorm(dim, eps=layer_norm_eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, packing: Packing) -> Tensor:
        """(t, d) to the same."""
        x = self.norm_attention(x + self.dropout(self.attention(x, packing)))
        return self.norm_mlp(x + self.dropout(self.mlp(x)))
