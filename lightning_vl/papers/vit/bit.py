"""BiT, the ResNet that ViT is measured against (Sec. 4.1): "Big Transfer", Kolesnikov et al., ECCV 2020 (1912.11370)."""

from functools import partial

from timm.layers.norm_act import GroupNormAct
from timm.layers.std_conv import StdConv2d, StdConv2dSame
from timm.models.resnetv2 import ResNetV2
from torch import Tensor, nn

from lightning_vl.nn.embeddings import Stem
from lightning_vl.papers.vit.model import ImageClassifier, ViTOutput, zero_head


class BiT(ImageClassifier):
    """Pre-activation ResNet with group norm and standardised convolutions, timm's ``ResNetV2``, and a head at zero.

    R50x1 is ``BiT(224, [3, 4, 6, 3], classes)``; R101x1 has ``[3, 4, 23, 3]``, R152x2 ``[3, 8, 36, 3]`` and ``width=2``.

    Args:
        image_size: height and width of the image, in pixels.
        layers: number of blocks of each stage; from the second on, a stage halves height and width.
        classes: number of classes K.
        channels: width of each stage's output, before it is multiplied by `width`.
        width: factor on all widths, the 2 of R152x2.
        stem_channels: width of the first convolution, before it is multiplied by `width`.
        small_images: begin with a 3 x 3 convolution, where images of about 32 px would be lost in the paper's 7 x 7
            convolution and max-pooling, which together divide height and width by 4.
        bottleneck: width of a block's 3 x 3 convolution over that of its output (rounded to a multiple of 8).
        groups: groups of the norms; divides all widths.
    """

    def __init__(
        self,
        image_size: int,
        layers: list[int],
        classes: int,
        channels: list[int] | None = None,
        width: int = 1,
        stem_channels: int = 64,
        small_images: bool = False,
        bottleneck: float = 0.25,
        groups: int = 32,
    ) -> None:
        channels = channels or [256, 512, 1024, 2048]
        if len(layers) > len(channels):
            raise ValueError(f"{len(layers)} stages have {len(channels)} widths: channels is {channels}")
        convolution = partial(StdConv2d, eps=1e-8)  # as in BiT's code
        trunk = ResNetV2(
            layers,
            tuple(channels),
            num_classes=0,
            width_factor=width,
            stem_chs=stem_channels,
            stem_type="fixed",  # pads before the max-pooling as BiT's code does
            bottle_ratio=bottleneck,
            norm_layer=partial(GroupNormAct, num_groups=groups),
            conv_layer=convolution,
        )
        if small_images:
            theirs = trunk.stem.get_submodule("conv")
            assert isinstance(theirs, nn.Conv2d)
            trunk.stem = nn.Sequential()
            trunk.stem.add_module("conv", convolution(3, theirs.out_channels, 3))  # timm rounds the number
        super().__init__(image_size, trunk.num_features)
        self.trunk = trunk
        self.head = zero_head(self.feature_dim, classes)

    def forward(self, images: Tensor) -> ViTOutput:
        """Classify images.

        Args:
            images: (b, 3, image_size, image_size) in [-1, 1].
        """
        features = self.trunk.forward_features(images).mean(dim=(2, 3))  # (b, d)
        return ViTOutput(self.head(features), features)


class ResNetStem(Stem):
    """The ResNet in front of a hybrid's patches (Sec. 3.1): as in BiT, but activated after each block, padded as TF does.

    R50+B/16 is a ViT-B with `patch_size=1` behind the three stages of the default: the third has the blocks of the
    third and the fourth, so that a stride of 16 is left (App. B.1 and the official code).

    Args:
        layers: number of blocks of each stage; from the second on, a stage halves height and width.
    """

    def __init__(self, layers: tuple[int, ...] = (3, 4, 9)) -> None:
        super().__init__()
        self.trunk = ResNetV2(
            list(layers),
            num_classes=0,
            global_pool="",
            preact=False,
            stem_type="same",
            conv_layer=partial(StdConv2dSame, eps=1e-8),
        )
        self.channels = self.trunk.num_features
        self.stride = 2 ** (len(layers) + 1)

    def forward(self, images: Tensor) -> Tensor:
        """(b, 3, h, w) to (b, channels, h / stride, w / stride)."""
        return self.trunk(images)
