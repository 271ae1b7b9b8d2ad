"""Multi-head attention: within a sequence, and from one sequence to another."""

import torch
from einops import rearrange
from torch import Tensor, nn

from lightning_vl.nn.initialisation import init_linear, init_query_key_value, learned_positions
from lightning_vl.nn.packing import Packing


class Attention(nn.Module):
    """Multi-head self-attention with biased projections ("Attention Is All You Need", Sec. 3.2.2).

    Args:
        dim: width d of the tokens.
        heads: number of heads; divides ``dim``.
        dropout: share of attention probabilities set to zero in training. ViT and ViViT use none.
    """

    def __init__(self, dim: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim {dim} cannot be divided among {heads} heads")
        self.heads = heads
        self.dropout = dropout
        self.query_key_value = nn.Linear(dim, 3 * dim)
        self.output = nn.Linear(dim, dim)
        init_query_key_value(self.query_key_value)
        init_linear(self.output)

    def forward(self, x: Tensor) -> Tensor:
        """Let each of n tokens attend to all n of its sequence.

        Args:
            x: (..., n, d); what stands ahead of n only numbers the sequences.

        Returns:
            (..., n, d).
        """
        projected = self.query_key_value(x)
        query, key, value = rearrange(projected, "... n (three h c) -> three (...) h n c", three=3, h=self.heads)
        attended = self.attend(query, key, value)
        return self.output(rearrange(attended, "b h n c -> b n (h c)").view(x.shape))

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """softmax(q k^T / sqrt(c)) v for (b, h, n, c) each, with dropout in training only."""
        # scaled_dot_product_attention does not know of eval mode: without this, evaluation would be random.
        dropout = self.dropout if self.training else 0.0
        return nn.functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout)


class RelativeAttention(Attention):
    """Self-attention that also sees how far apart two tokens stand in the sequence (ViT, App. D.4).

    The content's query meets an embedding of the offset between the two tokens as a second key, and the logits of
    both are added. Heads share the embeddings.

    Args:
        tokens: length n of the sequence.
        dim: width d of the tokens.
        heads: number of heads; divides ``dim``.
    """

    def __init__(self, tokens: int, dim: int, heads: int) -> None:
        super().__init__(dim, heads)
        self.offsets = learned_positions(2 * tokens - 1, dim // heads)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """softmax((q k^T + q r^T) / sqrt(c)) v for (b, h, n, c) each, r being the offset's embedding."""
        n, c = query.shape[-2:]
        logits = query @ self.offsets[0].T.to(query.dtype) / c**0.5  # (b, h, n, 2 n - 1), by offset
        places = torch.arange(n, device=query.device)
        offset = places - places[:, None] + n - 1  # (n, n), query by key
        logits = logits.gather(-1, offset.expand(*query.shape[:2], n, n))
        return nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=logits)


class PackedAttention(Attention):
    """Self-attention within each of the sequences of a packed line.

    Args:
        dim: width d of the tokens.
        heads: number of heads; divides ``dim``.
        dropout: share of attention probabilities set to zero in training.
        causal: whether a token sees only itself and those before it.
        bias: whether the projections add one: BERT's do, the Transformer's are matrices alone.
    """

    def __init__(self, dim: int, heads: int, dropout: float = 0.0, causal: bool = False, bias: bool = True) -> None:
        super().__init__(dim, heads, dropout)
        self.causal = causal
        if not bias:
            self.query_key_value.register_parameter("bias", None)
            self.output.register_parameter("bias", None)

    def forward(self, x: Tensor, packing: Packing) -> Tensor:  # type: ignore[override]
        """(t, d) to the same."""
        projected = packing.pad(self.query_key_value(x))
        query, key, value = rearrange(projected, "b n (three h c) -> three b h n c", three=3, h=self.heads)
        context = self.attend(query, key, value, packing.mask)
        return self.output(packing.unpad(rearrange(context, "b h n c -> b n (h c)")))

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """softmax(q k^T / sqrt(c)) v for (b, h, n, c) each, over the keys of the sequence; see `masked_attention`."""
        return masked_attention(query, key, value, mask, self.causal, self.dropout if self.training else 0.0)


def masked_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool = False, dropout: float = 0.0
) -> Tensor:
    """softmax(q k^T / sqrt(c)) v over the keys that are there.

    Args:
        query: (b, h, n, c).
        key: (b, h, m, c).
        value: (b, h, m, c).
        mask: (b, m) True where there is a key; None where all are.
        causal: whether query i sees keys 0 to i only.
        dropout: share of probabilities set to zero.

    Returns:
        (b, h, n, c).
    """
    seen = None if mask is None else mask[:, None, None]  # (b, 1, 1, m)
    if seen is not None and causal:
        n, m = query.shape[-2], key.shape[-2]
        seen = seen & torch.ones(n, m, dtype=torch.bool, device=query.device).tril()  # (b, 1, n, m)
        causal = False
    return nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=seen, dropout_p=dropout, is_causal=causal
    )
