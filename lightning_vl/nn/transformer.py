"""The Transformer of "Attention Is All You Need": an encoder, a decoder that looks at it, and both over one vocabulary.

All of it works on packed lines (see :mod:`lightning_vl.nn.packing`). Padded tensors become one by `pack(lengths)`:
`padded[packing.mask]` is the line, `packing.pad(line)` the way back.
"""

import torch
from einops import rearrange
from torch import Tensor, nn

from lightning_vl.nn.attention import PackedAttention, masked_attention
from lightning_vl.nn.blocks import PostNormBlock
from lightning_vl.nn.initialisation import init_linear
from lightning_vl.nn.packing import Packing, pack
from lightning_vl.nn.positions import sinusoids

LAYER_NORM_EPS = 1e-6  # of the authors' code; the paper gives none


class FeedForward(nn.Module):
    """FFN(x) = max(0, x W_1 + b_1) W_2 + b_2 (Eq. 2).

    Args:
        dim: width d of the tokens.
        hidden_dim: d_ff, width of the hidden layer.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(dim, hidden_dim)
        self.output = nn.Linear(hidden_dim, dim)
        init_linear(self.hidden)
        init_linear(self.output)

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) to (..., d)."""
        return self.output(self.hidden(x).relu())


class CrossAttention(nn.Module):
    """Multi-head attention whose queries are of one packed line, and keys and values of another (Sec. 3.2.3).

    Sequence i of the one looks at sequence i of the other. The projections are matrices alone, as the paper writes them.

    Args:
        dim: width d of the tokens of both.
        heads: number of heads; divides ``dim``.
        dropout: share of attention probabilities set to zero in training.
    """

    def __init__(self, dim: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim {dim} cannot be divided among {heads} heads")
        self.heads = heads
        self.dropout = dropout
        self.query = nn.Linear(dim, dim, bias=False)
        self.key_value = nn.Linear(dim, 2 * dim, bias=False)
        self.output = nn.Linear(dim, dim, bias=False)
        for weight in (self.query.weight, *self.key_value.weight.chunk(2), self.output.weight):
            nn.init.xavier_uniform_(weight)  # each (d, d) by itself

    def forward(self, x: Tensor, packing: Packing, memory: Tensor, memory_packing: Packing) -> Tensor:
        """Let each token of one line attend to all tokens of its sequence in the other.

        Args:
            x: (t, d) the line that asks.
            packing: where its sequences lie.
            memory: (s, d) the line that is looked at.
            memory_packing: where its sequences lie; as many.

        Returns:
            (t, d).
        """
        if len(packing.slots) != len(memory_packing.slots):
            raise ValueError(f"{len(packing.slots)} sequences cannot look at {len(memory_packing.slots)}, one at one")
        query = rearrange(packing.pad(self.query(x)), "b n (h c) -> b h n c", h=self.heads)
        projected = memory_packing.pad(self.key_value(memory))
        key, value = rearrange(projected, "b m (two h c) -> two b h m c", two=2, h=self.heads)
        dropout = self.dropout if self.training else 0.0
        context = masked_attention(query, key, value, memory_packing.mask, dropout=dropout)
        return self.output(packing.unpad(rearrange(context, "b h n c -> b n (h c)")))


class DecoderBlock(nn.Module):
    """LayerNorm(x + Dropout(Sublayer(x))) three times: what was said, what was read, each token by itself (Sec. 3.1).

    Args:
        attention: how tokens see those before them.
        cross_attention: how they see the encoder's.
        mlp: the position-wise network, (t, d) to the same.
        dim: width d of the tokens.
        dropout: on the output of every sub-layer.
        layer_norm_eps: what the norms add to the variance.
    """

    def __init__(
        self,
        attention: PackedAttention,
        cross_attention: CrossAttention,
        mlp: nn.Module,
        dim: int,
        dropout: float,
        layer_norm_eps: float,
    ) -> None:
        super().__init__()
        self.attention = attention
        self.norm_attention = nn.LayerNorm(dim, eps=layer_norm_eps)
        self.cross_attention = cross_attention
        self.norm_cross_attention = nn.LayerNorm(dim, eps=layer_norm_eps)
        self.mlp = mlp
        self.norm_mlp = nn.LayerNorm(dim, eps=layer_norm_eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, packing: Packing, memory: Tensor, memory_packing: Packing) -> Tensor:
        """(t, d) to the same, given the encoder's (s, d)."""
        x = self.norm_attention(x + self.dropout(self.attention(x, packing)))
        x = self.norm_cross_attention(x + self.dropout(self.cross_attention(x, packing, memory, memory_packing)))
        return self.norm_mlp(x + self.dropout(self.mlp(x)))


class TransformerEncoder(nn.Module):
    """A stack of post-norm blocks (Sec. 3.1); their last norm is the stack's, and none comes after it.

    Args:
        layers: N, number of blocks.
        dim: d_model, width d of the tokens.
        heads: h, attention heads.
        mlp_dim: d_ff, hidden width of the feed-forward networks.
        dropout: P_drop, on the output of every sub-layer.
    """

    def __init__(self, layers: int, dim: int, heads: int, mlp_dim: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            PostNormBlock(
                PackedAttention(dim, heads, bias=False), FeedForward(dim, mlp_dim), dim, dropout, LAYER_NORM_EPS
            )
            for _ in range(layers)
        )

    def forward(self, x: Tensor, packing: Packing) -> Tensor:
        """(s, d) to the same."""
        for block in self.blocks:
            x = block(x, packing)
        return x


class TransformerDecoder(nn.Module):
    """A stack of post-norm blocks that see what was said so far, and what the encoder made of the source (Sec. 3.1).

    Args:
        layers: N, number of blocks.
        dim: d_model, width d of the tokens.
        heads: h, attention heads.
        mlp_dim: d_ff, hidden width of the feed-forward networks.
        dropout: P_drop, on the output of every sub-layer.
    """

    def __init__(self, layers: int, dim: int, heads: int, mlp_dim: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            DecoderBlock(
                PackedAttention(dim, heads, causal=True, bias=False),
                CrossAttention(dim, heads),
                FeedForward(dim, mlp_dim),
                dim,
                dropout,
                LAYER_NORM_EPS,
            )
            for _ in range(layers)
        )

    def forward(self, x: Tensor, packing: Packing, memory: Tensor, memory_packing: Packing) -> Tensor:
        """(t, d) to the same, given the encoder's (s, d)."""
        for block in self.blocks:
            x = block(x, packing, memory, memory_packing)
        return x


class Transformer(nn.Module):
    """Encoder and decoder over one vocabulary (Fig. 1); the defaults are the base model's, Table 3.

    One matrix embeds source and target and makes the logits (Sec. 3.4).

    Args:
        vocabulary_size: v, number of tokens of source and target together.
        layers: N, number of blocks of each stack.
        dim: d_model, width d of the tokens.
        heads: h, attention heads.
        mlp_dim: d_ff, hidden width of the feed-forward networks.
        dropout: P_drop, on the sum of embedding and position and on the output of every sub-layer.
    """

    def __init__(
        self,
        vocabulary_size: int = 37_000,
        layers: int = 6,
        dim: int = 512,
        heads: int = 8,
        mlp_dim: int = 2048,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.tokens = nn.Embedding(vocabulary_size, dim)
        self.dropout = nn.Dropout(dropout)
        self.encoder = TransformerEncoder(layers, dim, heads, mlp_dim, dropout)
        self.decoder = TransformerDecoder(layers, dim, heads, mlp_dim, dropout)
        nn.init.normal_(self.tokens.weight, std=dim**-0.5)  # times sqrt(d) it is as large as a position

    def forward(self, source: Tensor, source_packing: Packing, target: Tensor, target_packing: Packing) -> Tensor:
        """What comes after each token of the target.

        Args:
            source: (s,) token ids.
            source_packing: where the source's sequences lie.
            target: (t,) token ids, a token of beginning first in each sequence.
            target_packing: where the target's sequences lie; as many.

        Returns:
            (t, v) logits.
        """
        memory = self.encode(source, source_packing)
        return self.logits(self.decode(target, target_packing, memory, source_packing))

    def embed(self, token_ids: Tensor, packing: Packing) -> Tensor:
        """(t,) to (t, d): embeddings times sqrt(d) (Sec. 3.4) and sinusoids (Sec. 3.5)."""
        x = self.tokens(token_ids) * self.dim**0.5
        return self.dropout(x + sinusoids(packing.positions, self.dim).to(x.dtype))

    def encode(self, source: Tensor, packing: Packing) -> Tensor:
        """(s,) to (s, d), the memory that the decoder looks at."""
        return self.encoder(self.embed(source, packing), packing)

    def decode(self, target: Tensor, packing: Packing, memory: Tensor, memory_packing: Packing) -> Tensor:
        """(t,) to (t, d), given the encoder's (s, d)."""
        return self.decoder(self.embed(target, packing), packing, memory, memory_packing)

    def logits(self, hidden: Tensor) -> Tensor:
        """(t, d) to (t, v), by the matrix that embeds (Sec. 3.4)."""
        return hidden @ self.tokens.weight.T

    @torch.no_grad()
    def generate(self, source: Tensor, packing: Packing, begin: int, end: int, longest: int) -> list[list[int]]:
        """The likeliest token, one after the other: greedy, without a search; in evaluation mode.

        Args:
            source: (s,) token ids.
            packing: where the source's sequences lie.
            begin: the token that a target begins with.
            end: the token that ends one.
            longest: most tokens of a target, ``begin`` and ``end`` not counted.

        Returns:
            The tokens of each target without ``begin`` and ``end``; ``longest`` of them where none ended it.
        """
        memory = self.encode(source, packing)
        said = source.new_full((len(packing.slots), 1), begin)  # (b, n)
        while said.shape[1] <= longest and not (said[:, 1:] == end).any(1).all():
            so_far = pack(torch.full_like(said[:, 0], said.shape[1]))
            hidden = self.decode(said.flatten(), so_far, memory, packing)
            said = torch.cat([said, self.logits(hidden[so_far.last]).argmax(-1, keepdim=True)], dim=1)
        targets = said[:, 1:].tolist()
        return [target[: target.index(end)] if end in target else target for target in targets]
