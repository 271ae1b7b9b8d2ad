"""CLIP's two encoders: "Learning Transferable Visual Models From Natural Language Supervision", Sec. 2.4.

An image tower makes one vector of an image, a text tower one of a text; `features` is what stands before the projection
into the space that both share, and what a linear probe sees. Any network can be one: see `injected.py` for ours, timm's
and BERT.
"""

from abc import ABC, abstractmethod
from typing import Self

import torch
from einops import rearrange
from torch import Tensor, nn

from lightning_vl.nn.attention import PackedAttention
from lightning_vl.nn.blocks import Encoder, GeluApproximation, PreNormBlock
from lightning_vl.nn.packing import Packing, pack

LAYER_NORM_EPS = 1e-5
MEAN = (0.48145466, 0.4578275, 0.40821073)  # of the training pixels, by channel
STD = (0.26862954, 0.26130258, 0.27577711)


class Tower(nn.Module, ABC):
    """What both kinds share: features, a projection, and a trunk that can be frozen.

    Attributes:
        feature_dim: width w of the features.
        embed_dim: width d of the space that both towers project into.
        projection: features (b, w) to embeddings (b, d).
        frozen: whether all but the projection stays as it is (LiT locks its image tower so).
    """

    projection: nn.Module

    def __init__(self, feature_dim: int, embed_dim: int) -> None:
        super().__init__()
        self.feature_dim = feature_dim
        self.embed_dim = embed_dim
        self.frozen = False

    def freeze(self) -> None:
        """From now on only the projection learns; the rest has no gradients, no dropout and no running statistics."""
        self.frozen = True
        self.requires_grad_(False)
        self.projection.requires_grad_(True)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """As `nn.Module`'s, but a frozen trunk stays in evaluation."""
        super().train(mode and not self.frozen)
        self.projection.train(mode)
        self.training = mode
        return self


class ImageTower(Tower):
    """From images in [0, 1] to embeddings.

    Attributes:
        image_size: height and width of the image, in pixels.

    Args:
        image_size: see above.
        feature_dim: width w of the features.
        embed_dim: width d of the shared space.
        mean: what is subtracted from each channel.
        std: what each channel is then divided by.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        image_size: int,
        feature_dim: int,
        embed_dim: int,
        mean: tuple[float, float, float] = MEAN,
        std: tuple[float, float, float] = STD,
    ) -> None:
        super().__init__(feature_dim, embed_dim)
        self.image_size = image_size
        # part of how the network is built, not of its weights; not of meta, where a network may be built for its sizes
        self.register_buffer("mean", torch.tensor(mean, device="cpu").view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, device="cpu").view(3, 1, 1), persistent=False)

    @abstractmethod
    def trunk(self, images: Tensor) -> Tensor:
        """Normalised images (b, 3, h, w) to features (b, w)."""

    def features(self, images: Tensor) -> Tensor:
        """Images (b, 3, image_size, image_size) in [0, 1] to features (b, w)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            normalised = (images - self.mean) / self.std
            return self.trunk(normalised.to(next(self.parameters()).dtype))  # of bf16-true

    def forward(self, images: Tensor) -> Tensor:
        """Images (b, 3, image_size, image_size) in [0, 1] to embeddings (b, d), not yet of length one."""
        return self.projection(self.features(images))


class TextTower(Tower):
    """From packed sequences of tokens to embeddings.

    Attributes:
        vocabulary_size: rows of the token embedding.
        context_length: tokens of the longest sequence, start and end included.
    """

    def __init__(self, vocabulary_size: int, context_length: int, feature_dim: int, embed_dim: int) -> None:
        super().__init__(feature_dim, embed_dim)
        self.vocabulary_size = vocabulary_size
        self.context_length = context_length

    @abstractmethod
    def trunk(self, token_ids: Tensor, packing: Packing) -> Tensor:
        """Tokens (t,) of n packed sequences to features (n, w)."""

    def features(self, token_ids: Tensor, packing: Packing) -> Tensor:
        """Tokens (t,) of n packed sequences to features (n, w)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self.trunk(token_ids, packing)

    def forward(self, token_ids: Tensor, packing: Packing) -> Tensor:
        """Tokens (t,) of n packed sequences to embeddings (n, d), not yet of length one."""
        return self.projection(self.features(token_ids, packing))

    def example_inputs(self, batch_size: int) -> tuple[Tensor, Packing]:
        """Sequences of the full length."""
        lengths = torch.full((batch_size,), self.context_length, device="cpu")
        tokens = torch.arange(batch_size * self.context_length, device="cpu") % self.vocabulary_size
        return tokens, pack(lengths)


class VisionTransformer(ImageTower):
    """CLIP's ViT: an extra norm ahead of the blocks, and no biases around them (Sec. 2.4).

    Args:
        image_size: height and width of the image, in pixels.
        patch_size: height and width of a patch, in pixels.
        dim: width w of the tokens.
        layers: number of blocks.
        heads: attention heads; the paper's have 64 channels each.
        embed_dim: width d of the shared space.
        gelu_approximation: "quick" for OpenAI's weights, "none" for most of open_clip's.
        mean: what is subtracted from each channel.
        std: what each channel is then divided by.
    """

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        dim: int,
        layers: int,
        heads: int,
        embed_dim: int,
        gelu_approximation: GeluApproximation = "quick",
        mean: tuple[float, float, float] = MEAN,
        std: tuple[float, float, float] = STD,
    ) -> None:
        super().__init__(image_size, dim, embed_dim, mean, std)
        if image_size % patch_size:
            raise ValueError(f"an image of {image_size} pixels has no whole number of patches of {patch_size}")
        self.patch_size = patch_size
        self.gelu_approximation = gelu_approximation
        places = (image_size // patch_size) ** 2 + 1
        self.patches = nn.Linear(3 * patch_size**2, dim, bias=False)
        self.class_token = nn.Parameter(torch.randn(1, 1, dim) * dim**-0.5)
        self.positions = nn.Parameter(torch.randn(1, places, dim) * dim**-0.5)
        self.norm_before = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.encoder = Encoder(
            layers, dim, heads, 4 * dim, gelu_approximation=gelu_approximation, layer_norm_eps=LAYER_NORM_EPS
        )
        self.projection = nn.Linear(dim, embed_dim, bias=False)
        nn.init.normal_(self.projection.weight, std=dim**-0.5)
        for block in map(_typed, self.encoder.blocks):  # the released code leaves these as torch makes them
            nn.init.xavier_uniform_(block.attention.query_key_value.weight)
            for linear in (block.attention.output, block.mlp.hidden, block.mlp.output):
                linear.reset_parameters()
            nn.init.zeros_(block.attention.output.bias)

    def trunk(self, images: Tensor) -> Tensor:
        """The class token after the last norm."""
        size = self.patch_size
        patches = rearrange(images, "b c (rows h) (columns w) -> b (rows columns) (c h w)", h=size, w=size)
        x = self.patches(patches)  # the released convolution, whose kernel is its stride
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1) + self.positions
        x = self.norm_before(x)
        for block in self.encoder.blocks:
            x = block(x)
        return self.encoder.norm(x[:, 0])  # the norm of the one token that is used


class ModifiedResNet(ImageTower):
    """CLIP's ResNet: three convolutions to begin with, blurred strides, and attention in place of the pooling (Sec. 2.4).

    Its projection is part of the attention pool, so features and embeddings are the same.

    Args:
        image_size: height and width of the image, in pixels; a multiple of 32.
        layers: blocks of the four stages.
        width: channels w_0 of the stem; the last feature map has 32 times as many.
        embed_dim: width d of the shared space.
        mean: what is subtracted from each channel.
        std: what each channel is then divided by.
    """

    def __init__(
        self,
        image_size: int,
        layers: tuple[int, int, int, int],
        width: int,
        embed_dim: int,
        mean: tuple[float, float, float] = MEAN,
        std: tuple[float, float, float] = STD,
    ) -> None:
        super().__init__(image_size, embed_dim, embed_dim, mean, std)
        if image_size % 32:
            raise ValueError(f"an image of {image_size} pixels is no multiple of the network's stride of 32")
        self.stem = nn.Sequential(
            *_convolution(3, width // 2, 3, stride=2),
            *_convolution(width // 2, width // 2, 3),
            *_convolution(width // 2, width, 3),
            nn.AvgPool2d(2),
        )
        stages, channels = [], width
        for stage, blocks in enumerate(layers):
            inner, stride = width * 2**stage, 1 if stage == 0 else 2
            stages.append(Bottleneck(channels, inner, stride))
            channels = 4 * inner
            stages.extend(Bottleneck(channels, inner, 1) for _ in range(blocks - 1))
        self.blocks = nn.Sequential(*stages)
        self.pool = AttentionPool(image_size // 32, channels, channels // 64, embed_dim)
        self.projection = nn.Identity()

    def trunk(self, images: Tensor) -> Tensor:
        """The attention pool over the last feature map."""
        return self.pool(self.blocks(self.stem(images)))

    def freeze(self) -> None:
        """Would leave nothing to learn.

        Raises:
            ValueError: always.
        """
        raise ValueError("a modified ResNet has no projection of its own and cannot be frozen")


def _convolution(channels: int, out: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(channels, out, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(out),
        nn.ReLU(inplace=True),
    ]


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3, 1 x 1, each with batch norm; where it strides, an average over 2 x 2 px does so ("blur pooling").

    Args:
        channels: of the input.
        inner: of the 3 x 3 convolution; the output has four times as many.
        stride: 1 or 2.
    """

    def __init__(self, channels: int, inner: int, stride: int) -> None:
        super().__init__()
        norm = nn.BatchNorm2d(4 * inner)
        nn.init.zeros_(norm.weight)  # a block begins as its shortcut
        self.branch = nn.Sequential(
            *_convolution(channels, inner, 1),
            *_convolution(inner, inner, 3),
            nn.AvgPool2d(stride) if stride > 1 else nn.Identity(),
            nn.Conv2d(inner, 4 * inner, 1, bias=False),
            norm,
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or channels != 4 * inner:
            self.shortcut = nn.Sequential(
                nn.AvgPool2d(stride) if stride > 1 else nn.Identity(),
                nn.Conv2d(channels, 4 * inner, 1, bias=False),
                nn.BatchNorm2d(4 * inner),
            )

    def forward(self, x: Tensor) -> Tensor:
        """(b, channels, h, w) to (b, 4 inner, h / stride, w / stride)."""
        return torch.relu(self.branch(x) + self.shortcut(x))


class AttentionPool(nn.Module):
    """One attention layer whose only query is the mean of the feature map (Sec. 2.4).

    Args:
        grid: rows and columns of the feature map.
        dim: its channels.
        heads: attention heads.
        embed_dim: width of the output.
    """

    def __init__(self, grid: int, dim: int, heads: int, embed_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.positions = nn.Parameter(torch.randn(grid**2 + 1, dim) / dim**0.5)  # the mean's first
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.output = nn.Linear(dim, embed_dim)
        for linear in (self.query, self.key, self.value, self.output):
            nn.init.normal_(linear.weight, std=dim**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, h, w) to (b, d)."""
        x = rearrange(x, "b c h w -> b (h w) c")
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1) + self.positions.to(x.dtype)
        query, key, value = (
            rearrange(linear(tokens), "b n (h c) -> b h n c", h=self.heads)
            for linear, tokens in ((self.query, x[:, :1]), (self.key, x), (self.value, x))
        )
        pooled = nn.functional.scaled_dot_product_attention(query, key, value)  # (b, h, 1, c)
        return self.output(rearrange(pooled, "b h 1 c -> b (h c)"))


class TextTransformer(TextTower):
    """CLIP's text encoder: causal, read off at the end token (Sec. 2.4).

    Nothing is computed on padding: the sequences of a batch are packed, and since attention is causal what would
    follow the end token could change nothing.

    Args:
        vocabulary_size: pieces of the vocabulary, start and end included.
        context_length: tokens of the longest sequence.
        dim: width w of the tokens.
        layers: number of blocks.
        heads: attention heads.
        embed_dim: width d of the shared space.
        gelu_approximation: see :class:`VisionTransformer`.
    """

    def __init__(
        self,
        vocabulary_size: int = 49408,
        context_length: int = 77,
        dim: int = 512,
        layers: int = 12,
        heads: int = 8,
        embed_dim: int = 512,
        gelu_approximation: GeluApproximation = "quick",
    ) -> None:
        super().__init__(vocabulary_size, context_length, dim, embed_dim)
        self.gelu_approximation = gelu_approximation
        self.tokens = nn.Embedding(vocabulary_size, dim)
        self.positions = nn.Parameter(torch.randn(1, context_length, dim) * 0.01)
        self.encoder = Encoder(
            layers,
            dim,
            heads,
            4 * dim,
            gelu_approximation=gelu_approximation,
            layer_norm_eps=LAYER_NORM_EPS,
            attention=lambda dim, heads: PackedAttention(dim, heads, causal=True),
        )
        self.projection = nn.Linear(dim, embed_dim, bias=False)
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.projection.weight, std=dim**-0.5)
        outputs = dim**-0.5 * (2 * layers) ** -0.5  # of both branches of a block
        for block in map(_typed, self.encoder.blocks):
            nn.init.normal_(block.attention.query_key_value.weight, std=dim**-0.5)
            nn.init.normal_(block.attention.output.weight, std=outputs)
            nn.init.normal_(block.mlp.hidden.weight, std=(2 * dim) ** -0.5)
            nn.init.normal_(block.mlp.output.weight, std=outputs)

    def trunk(self, token_ids: Tensor, packing: Packing) -> Tensor:
        """The end token of each sequence after the last norm."""
        x = self.tokens(token_ids) + self.positions[0, packing.positions]
        for block in self.encoder.blocks:
            x = block(x, packing)
        return self.encoder.norm(x[packing.last])


def _typed(block: nn.Module) -> PreNormBlock:
    assert isinstance(block, PreNormBlock)
    return block
