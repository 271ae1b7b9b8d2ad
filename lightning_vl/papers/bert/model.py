"""BERT: a bidirectional post-norm Transformer over words (Sec. 3), with the heads of its two phases."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_vl.nn.attention import PackedAttention
from lightning_vl.nn.blocks import GeluApproximation, Mlp, PostNormBlock
from lightning_vl.nn.packing import Packing

LAYER_NORM_EPS = 1e-12  # of TensorFlow's layer norm at the time, with which the official weights were trained


class BertOutput(NamedTuple):
    """What the encoder makes of a batch.

    Attributes:
        hidden: (t, d) T_i, the final hidden vector of every token.
        pooled: (b, d) C of each sequence, through a linear layer and tanh.
    """

    hidden: Tensor
    pooled: Tensor


class Bert(nn.Module):
    """The encoder, the same in pre-training and fine-tuning (Sec. 3).

    Args:
        vocabulary_size: number of WordPieces.
        layers: L, number of blocks.
        dim: H, width d of the tokens.
        heads: A, attention heads.
        mlp_dim: hidden width of the MLPs, 4 H in the paper.
        positions: the longest sequence.
        segments: kinds of segments, A and B.
        dropout: on the sum of the embeddings and on the output of every sub-layer.
        attention_dropout: on the attention probabilities.
        gelu_approximation: "tanh" as in the released code's last version; "none" is the exact form of its first version
            and of transformers. It is kept with the checkpoint.
        bidirectional: False lets every token see only those before it, the paper's left-to-right comparison (Sec. 5.1); the
            last token then speaks for the sequence, since the first sees itself alone.
    """

    def __init__(
        self,
        vocabulary_size: int = 30522,
        layers: int = 12,
        dim: int = 768,
        heads: int = 12,
        mlp_dim: int = 3072,
        positions: int = 512,
        segments: int = 2,
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        gelu_approximation: GeluApproximation = "tanh",
        bidirectional: bool = True,
    ) -> None:
        super().__init__()
        self.vocabulary_size = vocabulary_size
        self.dim = dim
        self.longest = positions
        self.gelu_approximation: GeluApproximation = gelu_approximation
        self.bidirectional = bidirectional
        self.tokens = nn.Embedding(vocabulary_size, dim)
        self.segments = nn.Embedding(segments, dim)
        self.positions = nn.Embedding(positions, dim)
        self.norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            PostNormBlock(
                PackedAttention(dim, heads, attention_dropout, causal=not bidirectional),
                Mlp(dim, mlp_dim, gelu_approximation=gelu_approximation),
                dim,
                dropout,
                LAYER_NORM_EPS,
            )
            for _ in range(layers)
        )
        self.pooler = nn.Linear(dim, dim)
        self.apply(initialise)

    def forward(self, token_ids: Tensor, segment_ids: Tensor, packing: Packing) -> BertOutput:
        """Encodes a batch of packed sequences.

        Args:
            token_ids: (t,) WordPieces, [CLS] first and [SEP] last in each sequence.
            segment_ids: (t,) 0 for sentence A, 1 for sentence B.
            packing: where the sequences lie.
        """
        x = self.tokens(token_ids) + self.segments(segment_ids) + self.positions(packing.positions)  # Fig. 2
        x = self.dropout(self.norm(x))
        for block in self.blocks:
            x = block(x, packing)
        speaker = packing.first if self.bidirectional else packing.last
        return BertOutput(hidden=x, pooled=torch.tanh(self.pooler(x[speaker])))

    def example_inputs(self, batch_size: int) -> tuple[Tensor, Tensor, Packing]:
        """Sequences of the greatest length, for measuring."""
        device = self.tokens.weight.device
        slots = torch.arange(batch_size * self.longest, device=device)
        ids = torch.zeros_like(slots)
        return ids, ids, Packing(slots.view(batch_size, self.longest), slots, mask=None)


class MaskedWords(nn.Module):
    """Says which word stands at a place, by the embeddings that it was read with (Sec. 3.1, Task #1).

    Args:
        tokens: the encoder's embeddings, shared.
        gelu_approximation: as the encoder's.
    """

    def __init__(self, tokens: nn.Embedding, gelu_approximation: GeluApproximation) -> None:
        super().__init__()
        self.transform = nn.Linear(tokens.embedding_dim, tokens.embedding_dim)
        self.gelu = nn.GELU(approximate=gelu_approximation)
        self.norm = nn.LayerNorm(tokens.embedding_dim, eps=LAYER_NORM_EPS)
        self.bias = nn.Parameter(torch.zeros(tokens.num_embeddings))
        self.apply(initialise)

    def forward(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """(m, d) hidden vectors and (v, d) embeddings to (m, v) logits."""
        return nn.functional.linear(self.norm(self.gelu(self.transform(hidden))), tokens, self.bias)


class PreTrainingOutput(NamedTuple):
    """What the heads of pre-training say.

    Attributes:
        words: (m, v) logits over the vocabulary at the places asked for.
        next_sentence: (b, 2) logits: B is the sentence after A, B is a random one. None without that head.
        hidden: (t, d) the final hidden vector of every token.
        pooled: (b, d) C of each sequence.
    """

    words: Tensor
    next_sentence: Tensor | None
    hidden: Tensor
    pooled: Tensor


class BertPreTraining(nn.Module):
    """BERT with the heads of its two unsupervised tasks (Sec. 3.1).

    Args:
        bert: the encoder.
        next_sentence: whether it has the second task's head.
    """

    def __init__(self, bert: Bert, next_sentence: bool = True) -> None:
        super().__init__()
        self.bert = bert
        self.words = MaskedWords(bert.tokens, bert.gelu_approximation)
        self.next_sentence = nn.Linear(bert.dim, 2) if next_sentence else None
        if self.next_sentence is not None:
            initialise(self.next_sentence)

    def forward(self, token_ids: Tensor, segment_ids: Tensor, packing: Packing, places: Tensor) -> PreTrainingOutput:
        """Encodes packed sequences, and asks for the words at some places alone.

        Args:
            token_ids: (t,) WordPieces.
            segment_ids: (t,) 0 for sentence A, 1 for sentence B.
            packing: where the sequences lie.
            places: (m,) tokens of the line at which words are asked for.
        """
        hidden, pooled = self.bert(token_ids, segment_ids, packing)
        return PreTrainingOutput(
            words=self.words(hidden[places], self.bert.tokens.weight),
            next_sentence=None if self.next_sentence is None else self.next_sentence(pooled),
            hidden=hidden,
            pooled=pooled,
        )

    def example_inputs(self, batch_size: int) -> tuple[Tensor, Tensor, Packing, Tensor]:
        """Sequences of the greatest length, 15 % of whose words are asked for, for measuring."""
        ids, segments, packing = self.bert.example_inputs(batch_size)
        asked = round(0.15 * self.bert.longest)
        return ids, segments, packing, packing.slots[:, :asked].flatten()


class ClassifierOutput(NamedTuple):
    """What a fine-tuned classifier says.

    Attributes:
        logits: (b, k).
        pooled: (b, d) C of each sequence.
    """

    logits: Tensor
    pooled: Tensor


class BertClassifier(nn.Module):
    """BERT with a linear layer over C, for single sentences and pairs (Sec. 4.1).

    The layer is applied to the pooled vector, as in the released code; the paper's formula has C itself.

    Args:
        bert: the encoder, whose pre-trained pooler is kept.
        classes: k.
        dropout: on the pooled vector.
    """

    def __init__(self, bert: Bert, classes: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.bert = bert
        self.classes = classes
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(bert.dim, classes)
        initialise(self.head)

    def forward(self, token_ids: Tensor, segment_ids: Tensor, packing: Packing) -> ClassifierOutput:
        """Classifies packed sequences.

        Args:
            token_ids: (t,) WordPieces.
            segment_ids: (t,) 0 for sentence A, 1 for sentence B.
            packing: where the sequences lie.
        """
        pooled = self.bert(token_ids, segment_ids, packing).pooled
        return ClassifierOutput(logits=self.head(self.dropout(pooled)), pooled=pooled)

    def example_inputs(self, batch_size: int) -> tuple[Tensor, Tensor, Packing]:
        """Sequences of the greatest length, for measuring."""
        return self.bert.example_inputs(batch_size)


def initialise(module: nn.Module) -> None:
    """Weights normal with deviation 0.02, cut off at two deviations; biases zero (the released code)."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.trunc_normal_(module.weight, std=0.02, a=-0.04, b=0.04)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
