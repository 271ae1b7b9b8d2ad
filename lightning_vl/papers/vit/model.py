"""ViT: "An Image is Worth 16x16 Words", Dosovitskiy et al., ICLR 2021 (arXiv 2010.11929)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_vl.nn.blocks import Encoder, GeluApproximation
from lightning_vl.nn.embeddings import PatchEmbedding
from lightning_vl.nn.initialisation import class_token, init_output_zero, learned_positions


class ViTOutput(NamedTuple):
    """Attributes: logits: (b, k). features: the class token after the last norm, (b, d)."""

    logits: Tensor
    features: Tensor


class ViT(nn.Module):
    """Vision Transformer (Sec. 3.1) with the head of fine-tuning: one linear layer that starts at zero.

    Args:
        image_size: height and width of the image, in pixels.
        patch_size: height and width of a patch, in pixels.
        dim: width d of the tokens.
        layers: number of encoder blocks L.
        heads: attention heads.
        mlp_dim: hidden width of the MLPs.
        classes: number of classes K.
        dropout: after every linear layer but query, key and value, and after adding positions (App. B.1).
        stochastic_depth: probability at the last block with which a branch is dropped; not in the paper.
        gelu_approximation: "tanh" for official weights, "none" for timm's and transformers'.
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
    ) -> None:
        super().__init__()
        self.embedding = PatchEmbedding(image_size, patch_size, dim)
        rows, columns = self.embedding.grid
        self.class_token = class_token(dim)
        self.positions = learned_positions(1 + rows * columns, dim)
        self.dropout = nn.Dropout(dropout)
        self.encoder = Encoder(layers, dim, heads, mlp_dim, dropout, stochastic_depth, gelu_approximation)
        self.head = nn.Linear(dim, classes)
        init_output_zero(self.head)

    def forward(self, images: Tensor) -> ViTOutput:
        """Classify images.

        Args:
            images: (b, 3, image_size, image_size) in [-1, 1].
        """
        x = self.embedding(images)  # (b, s, d)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1)  # (b, 1 + s, d)
        x = self.encoder(self.dropout(x + self.positions))  # Eq. 1 to 3
        features = x[:, 0]  # Eq. 4
        return ViTOutput(self.head(features), features)

    def example_inputs(self, batch_size: int) -> tuple[Tensor, ...]:
        """Images of the right shape and range, on the network's device."""
        size = self.embedding.image_size
        return (torch.rand(batch_size, 3, size, size, device=self.positions.device) * 2 - 1,)
