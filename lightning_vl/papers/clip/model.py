"""CLIP: "Learning Transferable Visual Models From Natural Language Supervision", Radford et al., 2021 (arXiv 2103.00020)."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from lightning_vl.nn.packing import Packing
from lightning_vl.papers.clip.towers import (
    ImageTower,
    ModifiedResNet,
    TextTower,
    TextTransformer,
    VisionTransformer,
)

LARGEST_SCALE = 100.0  # beyond it training became unstable (Sec. 2.5)


class ClipOutput(NamedTuple):
    """What a batch's images and texts are in the shared space.

    Attributes:
        image: (b, d), of length one.
        text: (n, d), of length one.
        scale: what their cosines are multiplied by.
        bias: what is then added; None but for the sigmoid loss.
    """

    image: Tensor
    text: Tensor
    scale: Tensor
    bias: Tensor | None


class CLIP(nn.Module):
    """An image tower and a text tower whose outputs meet in one space (Sec. 2.3, Fig. 3).

    Args:
        image: image tower.
        text: text tower, of the same `embed_dim`.
        scale: what the logits begin with, the reciprocal of the temperature 0.07 (Sec. 2.5); learned as its logarithm and
            capped at 100.
        bias: what is added to logits in the beginning: -10 for the sigmoid loss, which needs it; none for the paper's.
        freeze_image: train no more of the image tower than its projection.
        freeze_text: likewise of the text tower.
    """

    def __init__(
        self,
        image: ImageTower,
        text: TextTower,
        scale: float = 1 / 0.07,
        bias: float | None = None,
        freeze_image: bool = False,
        freeze_text: bool = False,
    ) -> None:
        super().__init__()
        if image.embed_dim != text.embed_dim:
            raise ValueError(f"the image tower's embed_dim is {image.embed_dim}, the text tower's {text.embed_dim}")
        if not 0 < scale <= LARGEST_SCALE:
            raise ValueError(f"a scale lies in (0, {LARGEST_SCALE:g}], not at {scale}")
        self.image = image
        self.text = text
        self.logit_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.logit_bias = None if bias is None else nn.Parameter(torch.tensor(bias))
        if freeze_image:
            image.freeze()
        if freeze_text:
            text.freeze()

    @property
    def scale(self) -> Tensor:
        """exp(logit_scale), at most 100: what has grown past it is put back, so that it can fall again."""
        if self.training:
            with torch.no_grad():
                self.logit_scale.clamp_(max=math.log(LARGEST_SCALE))
            return self.logit_scale.float().exp()
        return self.logit_scale.float().exp().clamp(max=LARGEST_SCALE)

    def embed_images(self, images: Tensor) -> Tensor:
        """(b, 3, h, w) in [0, 1] to (b, d) of length one, float32."""
        return F.normalize(self.image(images).float(), dim=-1)

    def embed_texts(self, token_ids: Tensor, packing: Packing) -> Tensor:
        """Tokens (t,) of n packed sequences to (n, d) of length one, float32."""
        return F.normalize(self.text(token_ids, packing).float(), dim=-1)

    def forward(self, images: Tensor, token_ids: Tensor, packing: Packing) -> ClipOutput:
        """Embed images and texts; they need not be as many.

        Args:
            images: (b, 3, h, w) in [0, 1].
            token_ids: (t,) tokens of the texts.
            packing: where the texts lie among them.
        """
        return ClipOutput(self.embed_images(images), self.embed_texts(token_ids, packing), self.scale, self.logit_bias)

    def example_inputs(self, batch_size: int) -> tuple[Tensor, Tensor, Packing]:
        """Images and texts of the right shapes, on the network's device."""
        device, size = self.logit_scale.device, self.image.image_size
        token_ids, packing = self.text.example_inputs(batch_size)
        moved = Packing(packing.slots.to(device), packing.places.to(device), packing.mask)
        return torch.rand(batch_size, 3, size, size, device=device), token_ids.to(device), moved


RESNETS = {  # image size, blocks, stem width, embed_dim (Tables 18 and 19)
    "RN50": (224, (3, 4, 6, 3), 64, 1024),
    "RN101": (224, (3, 4, 23, 3), 64, 512),
    "RN50x4": (288, (4, 6, 10, 6), 80, 640),
    "RN50x16": (384, (6, 8, 18, 8), 96, 768),
    "RN50x64": (448, (3, 15, 36, 10), 128, 1024),
}
VISION_TRANSFORMERS = {  # image size, patch size, width, layers, embed_dim (Tables 18 and 20)
    "ViT-B/32": (224, 32, 768, 12, 512),
    "ViT-B/16": (224, 16, 768, 12, 512),
    "ViT-L/14": (224, 14, 1024, 24, 768),
    "ViT-L/14@336px": (336, 14, 1024, 24, 768),
}
TEXT_WIDTHS = {"RN50x4": 640, "RN50x16": 768, "RN50x64": 1024, "ViT-L/14": 768, "ViT-L/14@336px": 768}  # others 512


def published(name: str) -> CLIP:
    """One of the paper's nine, untrained: `published("ViT-B/32")`.

    Raises:
        ValueError: there is none of this name.
    """
    if name in RESNETS:
        size, layers, width, embed_dim = RESNETS[name]
        image: ImageTower = ModifiedResNet(size, layers, width, embed_dim)
    elif name in VISION_TRANSFORMERS:
        size, patch, dim, depth, embed_dim = VISION_TRANSFORMERS[name]
        image = VisionTransformer(size, patch, dim, depth, dim // 64, embed_dim)
    else:
        raise ValueError(f"the paper has no {name}, but {', '.join([*RESNETS, *VISION_TRANSFORMERS])}")
    dim = TEXT_WIDTHS.get(name, 512)
    return CLIP(image, TextTransformer(dim=dim, heads=dim // 64, embed_dim=embed_dim))
