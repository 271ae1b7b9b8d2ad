"""BiT, the baseline: timm's sizes and outputs, nets for small images, the same contract as ViT, and that it learns."""

import math

import pytest
import timm
import torch
from torch import nn

from lightning_vl.papers.vit.bit import BiT, ResNetStem
from lightning_vl.papers.vit.model import ViT


def small(classes: int = 4, image_size: int = 32) -> BiT:
    """For images of 32 px."""
    return BiT(image_size, [1, 1, 1], classes, channels=[16, 32, 64], stem_channels=16, small_images=True, groups=8)


@pytest.mark.parametrize(
    ("name", "layers", "width"),
    [
        ("resnetv2_50x1_bit", [3, 4, 6, 3], 1),
        ("resnetv2_101x1_bit", [3, 4, 23, 3], 1),
        ("resnetv2_152x2_bit", [3, 8, 36, 3], 2),
    ],
)
def test_the_papers_sizes_are_timms(name: str, layers: list[int], width: int) -> None:
    """A stage, norm or projection too many: not the network whose results the paper gives."""
    with torch.device("meta"):
        theirs, ours = timm.create_model(name), BiT(224, layers, 1000, width=width)
    shapes = {f"trunk.{key}": value.shape for key, value in theirs.state_dict().items() if not key.startswith("head")}
    assert {key: value.shape for key, value in ours.state_dict().items() if not key.startswith("head")} == shapes
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


def test_equals_timm() -> None:
    """Another padding of the stem's pooling, epsilon or order of norm and mean would change the logits."""
    torch.manual_seed(0)
    theirs = timm.create_model("resnetv2_50x1_bit", num_classes=5).eval()
    theirs.stages = theirs.stages[:1]  # one stage of three blocks is as telling as all, and sooner done
    theirs.norm = type(theirs.norm)(256)
    theirs.head = type(theirs.head)(256, 5, use_conv=True)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    ours = BiT(33, [3], 5).eval()
    weights = {f"trunk.{key}": tensor for key, tensor in theirs.state_dict().items() if not key.startswith("head")}
    weights |= {"head.weight": theirs.head.fc.weight.flatten(1), "head.bias": theirs.head.fc.bias}
    ours.load_state_dict(weights)
    images = torch.randn(2, 3, 33, 33)
    logits = theirs(images)
    torch.testing.assert_close(ours(images).logits, logits, atol=1e-5 * logits.abs().max().item(), rtol=0)


def test_small_images_keep_their_places() -> None:
    """A stem that divides by 4 would leave 2 x 2 places of 32 px; the small one sees every pixel."""
    net = small().eval()
    (images,) = net.example_inputs(2)
    assert images.shape == (2, 3, 32, 32)
    assert images.min() < -0.9
    assert images.max() > 0.9
    assert net.trunk.stem(images).shape == (2, 16, 32, 32)
    assert net.trunk.forward_features(images).shape == (2, 64, 8, 8)
    assert net(images).features.shape == (2, net.feature_dim) == (2, 64)


def test_widths_must_be_given_for_every_stage() -> None:
    """timm stops at the last width without a word: a stage less than was asked for."""
    with pytest.raises(ValueError, match="3 stages have 2 widths"):
        BiT(32, [1, 1, 1], 2, channels=[32, 64])


def test_contract_and_first_loss() -> None:
    """The head starts at zero, and a new one does too, whatever the first has become."""
    net = small(classes=7)
    (images,) = net.example_inputs(4)
    labels = torch.tensor([0, 1, 2, 3])
    assert (net.image_size, net.classes) == (32, 7)
    assert nn.functional.cross_entropy(net(images).logits, labels).item() == pytest.approx(math.log(7))
    nn.init.normal_(net.head.weight)
    net.reset_head(4)
    assert net.classes == 4
    assert nn.functional.cross_entropy(net(images).logits, labels).item() == pytest.approx(math.log(4))


def test_every_parameter_gets_a_gradient() -> None:
    """A parameter that is built and not used would never learn."""
    net = small()
    nn.init.normal_(net.head.weight)  # at zero it passes nothing back
    net(*net.example_inputs(2)).logits.square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_it_learns() -> None:
    """Bars that lie or stand, anywhere in the image: a few steps tell them apart."""
    torch.manual_seed(0)
    net = small(classes=2, image_size=16)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    labels = torch.arange(32) % 2
    for _ in range(15):
        images = -torch.ones(32, 3, 16, 16)
        for image, label in zip(images, labels, strict=True):
            place = int(torch.randint(16, ()))
            (image[:, place] if label else image[:, :, place]).fill_(1)
        logits = net(images).logits
        loss = nn.functional.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (logits.argmax(1) == labels).float().mean() > 0.9


def test_a_stem_gives_the_feature_map_it_says() -> None:
    """Channels and stride fix the hybrid's tokens."""
    stem = ResNetStem((1, 1)).eval()
    assert (stem.channels, stem.stride) == (512, 8)
    with torch.no_grad():
        assert stem(torch.randn(1, 3, 32, 32)).shape == (1, 512, 4, 4)


def test_sizes_that_do_not_fit_are_mended_or_refused() -> None:
    """Breaks if a stem of a width that timm rounds, or an image that is no multiple of a hybrid's stride, failed in training."""
    net = BiT(16, [1], 3, channels=[16], stem_channels=20, small_images=True, groups=8)
    assert net(*net.example_inputs(1)).logits.shape == (1, 3)
    with pytest.raises(ValueError, match="stride"):
        ViT(40, 1, 32, 1, 2, 64, 3, stem=ResNetStem((1, 1, 1)))
