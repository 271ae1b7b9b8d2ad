"""ViViT: "A Video Vision Transformer", Arnab et al., ICCV 2021 (arXiv 2103.15691).

Shapes: b clips, t times, s = n_h n_w tokens of one time (row by row), d width, h heads, c width of a head.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from lightning_vl.nn.attention import Attention
from lightning_vl.nn.blocks import LAYER_NORM_EPS, Encoder, Mlp, PreNormBlock, StochasticDepth, stochastic_depth_ramp
from lightning_vl.nn.embeddings import VideoEmbedding
from lightning_vl.nn.initialisation import class_token, init_output_zero, learned_positions


class ViViTOutput(NamedTuple):
    """What every ViViT gives.

    Attributes:
        logits: head name to (b, k).
        features: what the head sees, (b, d): a class token or the mean of all tokens, after the last norm.
    """

    logits: dict[str, Tensor]
    features: Tensor


class ViViT(nn.Module, ABC):
    """What the models of Sec. 3.3 share: the embedding in front and the linear head, zero at the start, behind.

    Args:
        embedding: how a clip becomes tokens (Sec. 3.2); fixes frames, image size and width d.
        classes: head name to its number of classes, as ``{"class": 400}`` or ``{"noun": 300, "verb": 97}``. One linear
            layer gives all of them, in this order.
        dropout: after adding positions; subclasses use it in their blocks as well.
    """

    def __init__(self, embedding: VideoEmbedding, classes: dict[str, int], dropout: float) -> None:
        super().__init__()
        self.embedding = embedding
        self.classes = dict(classes)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(embedding.dim, sum(classes.values()))
        init_output_zero(self.head)

    def forward(self, video: Tensor) -> ViViTOutput:
        """Classify clips.

        Args:
            video: (b, frames, 3, image_size, image_size) in [-1, 1].
        """
        features = self.encode(self.embedding(video))
        logits = self.head(features).split(list(self.classes.values()), dim=-1)
        return ViViTOutput(dict(zip(self.classes, logits, strict=True)), features)

    @abstractmethod
    def encode(self, tokens: Tensor) -> Tensor:
        """Tokens without positions, (b, t, s, d), to features, (b, d)."""

    def example_inputs(self, batch_size: int) -> tuple[Tensor, ...]:
        """Clips of the right shape and range, on the network's device."""
        size = self.embedding.image_size
        shape = (batch_size, self.embedding.frames, 3, size, size)
        return (torch.rand(shape, device=self.head.weight.device) * 2 - 1,)


class SpatioTemporal(ViViT):
    """Model 1: all tokens of the clip attend to each other (Sec. 3.3).

    Args:
        embedding: see :class:`ViViT`.
        layers: number of encoder blocks L.
        heads: attention heads.
        mlp_dim: hidden width of the MLPs.
        classes: see :class:`ViViT`.
        dropout: after every linear layer but query, key and value, and after adding positions.
        stochastic_depth: probability at the last block with which a branch is dropped (Table 7).
    """

    def __init__(
        self,
        embedding: VideoEmbedding,
        layers: int,
        heads: int,
        mlp_dim: int,
        classes: dict[str, int],
        dropout: float = 0.0,
        stochastic_depth: float = 0.0,
    ) -> None:
        super().__init__(embedding, classes, dropout)
        times, rows, columns = embedding.grid
        self.class_token = class_token(embedding.dim)
        self.positions = learned_positions(1 + times * rows * columns, embedding.dim)
        self.encoder = Encoder(layers, embedding.dim, heads, mlp_dim, dropout, stochastic_depth)

    def encode(self, tokens: Tensor) -> Tensor:
        x = rearrange(tokens, "b t s d -> b (t s) d")
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1)  # (b, 1 + t s, d)
        x = self.encoder(self.dropout(x + self.positions))  # Eq. 1; Eq. 2 and 3 in each layer
        return x[:, 0]


class AveragePool(ViViT):
    """The baseline of Table 2: a spatial encoder alone, its class tokens averaged over time.

    Arguments as for :class:`SpatioTemporal`.
    """

    def __init__(
        self,
        embedding: VideoEmbedding,
        layers: int,
        heads: int,
        mlp_dim: int,
        classes: dict[str, int],
        dropout: float = 0.0,
        stochastic_depth: float = 0.0,
    ) -> None:
        super().__init__(embedding, classes, dropout)
        _, rows, columns = embedding.grid
        self.spatial_class_token = class_token(embedding.dim)
        self.spatial_positions = learned_positions(1 + rows * columns, embedding.dim)
        self.spatial_encoder = Encoder(layers, embedding.dim, heads, mlp_dim, dropout, stochastic_depth)

    def encode_frames(self, tokens: Tensor) -> Tensor:
        """Each time by itself: (b, t, s, d) to the class tokens (b, t, d)."""
        x = torch.cat([self.spatial_class_token.expand(*tokens.shape[:2], -1, -1), tokens], dim=2)  # (b, t, 1 + s, d)
        x = self.spatial_encoder(self.dropout(x + self.spatial_positions))
        return x[:, :, 0]

    def encode(self, tokens: Tensor) -> Tensor:
        return self.encode_frames(tokens).mean(dim=1)


class FactorisedEncoder(AveragePool):
    """Model 2: the spatial encoder's class tokens go through a temporal encoder (Sec. 3.3, Fig. 4).

    Arguments as for :class:`SpatioTemporal`, with ``layers`` those of the spatial encoder.

    Args:
        temporal_layers: number of blocks of the temporal encoder L_t; the paper's text says 4.
    """

    def __init__(
        self,
        embedding: VideoEmbedding,
        layers: int,
        heads: int,
        mlp_dim: int,
        classes: dict[str, int],
        dropout: float = 0.0,
        stochastic_depth: float = 0.0,
        temporal_layers: int = 4,
    ) -> None:
        super().__init__(embedding, layers, heads, mlp_dim, classes, dropout, stochastic_depth)
        self.temporal_class_token = class_token(embedding.dim)
        self.temporal_positions = learned_positions(1 + embedding.grid[0], embedding.dim)
        self.temporal_encoder = Encoder(temporal_layers, embedding.dim, heads, mlp_dim, dropout, stochastic_depth)

    def encode(self, tokens: Tensor) -> Tensor:
        x = self.encode_frames(tokens)  # (b, t, d)
        x = torch.cat([self.temporal_class_token.expand(len(x), -1, -1), x], dim=1)  # (b, 1 + t, d)
        x = self.temporal_encoder(self.dropout(x + self.temporal_positions))
        return x[:, 0]


class FactorisedSelfAttentionBlock(nn.Module):
    """Attention over space, then over time, then the MLP, each a residual branch (Sec. 3.3, Eq. 4 to 6, Fig. 5).

    The temporal branch starts as the identity. The paper sets all its weights to zero, but then no gradient but the
    output bias's ever leaves zero; here only the output projection is zero, and the rest learns from the second step.
    """

    def __init__(self, dim: int, heads: int, mlp_dim: int, dropout: float, stochastic_depth: float) -> None:
        super().__init__()
        self.norm_space = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attention_space = Attention(dim, heads)
        self.norm_time = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attention_time = Attention(dim, heads)
        self.norm_mlp = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(dim, mlp_dim, dropout)
        self.dropout = nn.Dropout(dropout)
        self.stochastic_depth = StochasticDepth(stochastic_depth)
        init_output_zero(self.attention_time.output)

    def forward(self, x: Tensor) -> Tensor:
        """(b, t, s, d) to (b, t, s, d)."""
        x = x + self.stochastic_depth(self.dropout(self.attention_space(self.norm_space(x))))  # Eq. 4
        y = self.attention_time(rearrange(self.norm_time(x), "b t s d -> b s t d"))  # Eq. 5
        x = x + self.stochastic_depth(self.dropout(rearrange(y, "b s t d -> b t s d")))
        return x + self.stochastic_depth(self.mlp(self.norm_mlp(x)))  # Eq. 6


class FactorisedDotProductAttention(Attention):
    """Half of the heads attend over time, the other half over space (Sec. 3.3, Model 4, Fig. 6).

    The same parameters as :class:`Attention`. The first half is the temporal one, as in the paper's code.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads)
        if heads % 2:
            raise ValueError(f"{heads} heads cannot be halved between time and space")

    def forward(self, x: Tensor) -> Tensor:
        """(b, t, s, d) to (b, t, s, d)."""
        b, t, _, _ = x.shape
        time, space = rearrange(
            self.query_key_value(x),
            "b t s (three half h c) -> half three b t s h c",
            three=3,
            half=2,
            h=self.heads // 2,
        )
        time = self.attend(*rearrange(time, "three b t s h c -> three (b s) h t c"))
        space = self.attend(*rearrange(space, "three b t s h c -> three (b t) h s c"))
        time = rearrange(time, "(b s) h t c -> b t s (h c)", b=b)
        space = rearrange(space, "(b t) h s c -> b t s (h c)", t=t)
        return self.output(torch.cat([time, space], dim=-1))


class FactorisedAttention(ViViT, ABC):
    """What Models 3 and 4 share: blocks that keep the (t, s) grid, no class token, the mean of all tokens."""

    def __init__(
        self, embedding: VideoEmbedding, blocks: list[nn.Module], classes: dict[str, int], dropout: float
    ) -> None:
        super().__init__(embedding, classes, dropout)
        times, rows, columns = embedding.grid
        self.positions = learned_positions(times * rows * columns, embedding.dim)
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(embedding.dim, eps=LAYER_NORM_EPS)

    def encode(self, tokens: Tensor) -> Tensor:
        x = tokens + rearrange(self.positions, "one (t s) d -> one t s d", t=tokens.shape[1])
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x)
        return self.norm(x).mean(dim=(1, 2))


class FactorisedSelfAttention(FactorisedAttention):
    """Model 3: each block attends over space, then over time (Sec. 3.3).

    Arguments as for :class:`SpatioTemporal`.
    """

    def __init__(
        self,
        embedding: VideoEmbedding,
        layers: int,
        heads: int,
        mlp_dim: int,
        classes: dict[str, int],
        dropout: float = 0.0,
        stochastic_depth: float = 0.0,
    ) -> None:
        blocks: list[nn.Module] = [
            FactorisedSelfAttentionBlock(embedding.dim, heads, mlp_dim, dropout, probability)
            for probability in stochastic_depth_ramp(stochastic_depth, layers)
        ]
        super().__init__(embedding, blocks, classes, dropout)


class FactorisedDotProduct(FactorisedAttention):
    """Model 4: half of the heads of every block attend over time, half over space (Sec. 3.3).

    Arguments as for :class:`SpatioTemporal`; ``heads`` must be even.
    """

    def __init__(
        self,
        embedding: VideoEmbedding,
        layers: int,
        heads: int,
        mlp_dim: int,
        classes: dict[str, int],
        dropout: float = 0.0,
        stochastic_depth: float = 0.0,
    ) -> None:
        blocks: list[nn.Module] = [
            PreNormBlock(
                FactorisedDotProductAttention(embedding.dim, heads), embedding.dim, mlp_dim, dropout, probability
            )
            for probability in stochastic_depth_ramp(stochastic_depth, layers)
        ]
        super().__init__(embedding, blocks, classes, dropout)
