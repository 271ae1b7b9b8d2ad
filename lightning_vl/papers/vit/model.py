"""ViT: "An Image is Worth 16x16 Words", Dosovitskiy et al., ICLR 2021 (arXiv 2010.11929)."""

from abc import ABC, abstractmethod
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_vl.nn.blocks import LAYER_NORM_EPS, Encoder, GeluApproximation
from lightning_vl.nn.embeddings import PatchEmbedding, Stem
from lightning_vl.nn.initialisation import class_token, init_filter, init_output_zero
from lightning_vl.nn.positions import LearnedPositions, Positions


class ViTOutput(NamedTuple):
    """What every image classifier gives.

    Attributes:
        logits: (b, k).
        features: what the last linear layer sees, (b, d): the class token or the mean of the patches after the last norm,
            of a pre-training head its tanh; of a ResNet the mean over the last feature map.
    """

    logits: Tensor
    features: Tensor


class ImageClassifier(nn.Module, ABC):
    """What a network for labelled images offers to its task, to transfer and to the figures.

    Attributes:
        image_size: height and width of the image, in pixels.
        feature_dim: width d of what the head sees.
        head: the last linear layer, (d, K).
    """

    head: nn.Linear

    def __init__(self, image_size: int, feature_dim: int) -> None:
        super().__init__()
        self.image_size = image_size
        self.feature_dim = feature_dim

    @property
    def classes(self) -> int:
        """Number of classes K."""
        return self.head.out_features

    @abstractmethod
    def forward(self, images: Tensor) -> ViTOutput:
        """(b, 3, image_size, image_size) in [-1, 1] to logits (b, k) and features (b, d)."""

    def reset_head(self, classes: int) -> None:
        """Put in the head of fine-tuning, one linear layer at zero, in place of the whole head (Sec. 3.2)."""
        self.head = zero_head(self.feature_dim, classes).to(self.head.weight)

    def example_inputs(self, batch_size: int) -> tuple[Tensor, ...]:
        """Images of the right shape and range, on the network's device."""
        size = self.image_size
        return (torch.rand(batch_size, 3, size, size, device=self.head.weight.device) * 2 - 1,)


def zero_head(dim: int, classes: int) -> nn.Linear:
    """A linear layer whose first loss is ln K."""
    head = nn.Linear(dim, classes)
    init_output_zero(head)
    return head


class ViT(ImageClassifier):
    """Vision Transformer (Sec. 3.1). Its head starts at zero, so that the first loss is ln K.

    Args:
        image_size: height and width of the image, in pixels.
        patch_size: height and width of a patch, in pixels; behind a stem in places of its feature map.
        dim: width d of the tokens.
        layers: number of encoder blocks L.
        heads: attention heads.
        mlp_dim: hidden width of the MLPs.
        classes: number of classes K.
        dropout: after every linear layer but query, key and value, and after adding positions (App. B.1).
        stochastic_depth: probability at the last block with which a branch is dropped; not in the paper.
        gelu_approximation: "tanh" for official weights, "none" for timm's and transformers'.
        layer_norm_eps: what the norms add to the variance.
        pooled: no class token; the head sees the mean of the patches after the last norm (App. D.3).
        pre_logits: the head of pre-training, with a hidden layer of width d and tanh (Sec. 3.1), in place of the one
            linear layer of fine-tuning.
        positions: learned 1-D ones by default; the others are those of App. D.4.
        stem: what the patches are taken of in a hybrid (Sec. 3.1); the image itself by default.
    """

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        dim: int,
        layers: int,
        heads: int,
        mlp_dim: int,
        classes: int,
        dropout: float = 0.0,
        stochastic_depth: float = 0.0,
        gelu_approximation: GeluApproximation = "tanh",
        layer_norm_eps: float = LAYER_NORM_EPS,
        pooled: bool = False,
        pre_logits: bool = False,
        positions: Positions | None = None,
        stem: Stem | None = None,
    ) -> None:
        super().__init__(image_size, dim)
        positions = positions or LearnedPositions()
        self.embedding = PatchEmbedding(image_size, patch_size, dim, stem)
        grid, class_row = self.embedding.grid, not pooled
        self.class_token = class_token(dim) if class_row else None
        self.positions = positions.embedding(grid, dim, class_row)
        self.dropout = nn.Dropout(dropout)
        self.encoder = Encoder(
            layers,
            dim,
            heads,
            mlp_dim,
            dropout,
            stochastic_depth,
            gelu_approximation,
            layer_norm_eps,
            attention=partial(positions.attention, grid, class_row),
        )
        self.pre_logits = nn.Linear(dim, dim) if pre_logits else None
        if self.pre_logits is not None:
            init_filter(self.pre_logits.weight)
            nn.init.zeros_(self.pre_logits.bias)
        self.head = zero_head(dim, classes)

    def forward(self, images: Tensor) -> ViTOutput:
        """Classify images.

        Args:
            images: (b, 3, image_size, image_size) in [-1, 1].
        """
        x = self.embedding(images)  # (b, s, d)
        if self.class_token is not None:
            x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1)  # (b, 1 + s, d)
        positions = self.position_embedding()
        if positions is not None:
            x = x + positions  # Eq. 1
        x = self.encoder(self.dropout(x))  # Eq. 2 and 3
        features = x.mean(dim=1) if self.class_token is None else x[:, 0]  # Eq. 4
        if self.pre_logits is not None:
            features = self.pre_logits(features).tanh()
        return ViTOutput(self.head(features), features)

    def position_embedding(self) -> Tensor | None:
        """What is added to the tokens, (1, n, d), the class token's row first; None where nothing is."""
        return self.positions() if isinstance(self.positions, nn.Module) else self.positions

    def reset_head(self, classes: int) -> None:
        """Put in the head of fine-tuning; the hidden layer of the pre-training head goes too (Sec. 3.2)."""
        self.pre_logits = None
        super().reset_head(classes)
