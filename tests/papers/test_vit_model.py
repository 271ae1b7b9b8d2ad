"""ViT: the paper's sizes, positions and heads."""

import math

import pytest
import timm
import torch
from torch import nn

from lightning_vl.nn.positions import (
    NoPositions,
    Positions,
    RelativePositions,
    SinCosPositions,
    TwoDimensionalPositions,
)
from lightning_vl.optim import parameter_groups
from lightning_vl.papers.vit.bit import ResNetStem
from lightning_vl.papers.vit.model import ViT

SIZES = {  # width, layers, heads, patch: parameters without a head, with 1000 classes, with i21k's head (App. B.1, Table 1)
    "Ti/16": (192, 12, 3, 16, 5_524_416, 5_717_416, None),
    "S/16": (384, 12, 6, 16, 21_665_664, 22_050_664, None),
    "B/16": (768, 12, 12, 16, 85_798_656, 86_567_656, 103_186_515),
    "B/32": (768, 12, 12, 32, 87_455_232, 88_224_232, 104_843_091),
    "L/16": (1024, 24, 16, 16, 303_301_632, 304_326_632, 326_740_307),
    "L/32": (1024, 24, 16, 32, 305_510_400, 306_535_400, 328_949_075),
    "H/14": (1280, 32, 16, 14, 630_764_800, 632_045_800, 660_385_363),
}


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("size", SIZES)
def test_parameters_at_the_papers_sizes(size: str) -> None:
    """A bias, norm or position too many would show."""
    dim, layers, heads, patch_size, backbone, with_head, pre_training = SIZES[size]
    with torch.device("meta"):
        vit = ViT(224, patch_size, dim, layers, heads, 4 * dim, classes=1000)
        pre_trained = ViT(224, patch_size, dim, layers, heads, 4 * dim, classes=21_843, pre_logits=True)
    assert parameters(vit) == with_head
    assert parameters(vit) - parameters(vit.head) == backbone
    assert pre_training is None or parameters(pre_trained) == pre_training


def test_the_hybrid_at_the_papers_size_is_timms() -> None:
    """R50+B/16: stages of 3, 4 and 9 blocks, patches of one place of their map."""
    with torch.device("meta"):
        theirs = timm.create_model("vit_base_r50_s16_224", num_classes=1000)
        ours = ViT(224, 1, 768, 12, 12, 3072, classes=1000, stem=ResNetStem())
    assert ours.embedding.grid == (14, 14)
    assert parameters(ours) == parameters(theirs)


def vit(positions: Positions | None = None, pooled: bool = False, image_size: int = 32) -> ViT:
    torch.manual_seed(0)
    net = ViT(image_size, 8, dim=24, layers=2, heads=3, mlp_dim=48, classes=7, pooled=pooled, positions=positions)
    nn.init.normal_(net.head.weight)  # at zero it would hide everything
    return net.eval()


def shuffled(images: torch.Tensor) -> torch.Tensor:
    """The same patches in another order."""
    patches = nn.functional.unfold(images, 8, stride=8)
    return nn.functional.fold(patches.roll(5, dims=-1), images.shape[-2:], 8, stride=8)


def test_without_positions_the_patches_are_a_bag() -> None:
    """Something adds a position after all, or the switch does nothing."""
    net = vit(NoPositions())
    (images,) = net.example_inputs(2)
    torch.testing.assert_close(net(shuffled(images)).logits, net(images).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "positions",
    [None, TwoDimensionalPositions(), SinCosPositions(), RelativePositions()],
    ids=lambda p: type(p).__name__,
)
@pytest.mark.parametrize("pooled", [False, True])
def test_positions_tell_the_order_of_the_patches(positions: Positions | None, pooled: bool) -> None:
    """Positions that reach nothing; every parameter must get a gradient, the fixed ones none, and none of them decay."""
    net = vit(positions, pooled)
    (images,) = net.example_inputs(2)
    assert not torch.allclose(net(shuffled(images)).logits, net(images).logits, atol=1e-3)
    net(images).logits.square().sum().backward()
    for name, parameter in net.named_parameters():
        fixed = name == "positions" and isinstance(positions, SinCosPositions)
        assert (parameter.grad is None) if fixed else parameter.grad is not None and parameter.grad.any(), name
    decay = {id(parameter) for parameter in parameter_groups(net)[0]["params"]}
    learned = [p for name, p in net.named_parameters() if "positions" in name or "offsets" in name]
    assert learned
    assert not any(id(parameter) in decay for parameter in learned)


def test_position_embedding_has_a_row_for_each_token() -> None:
    """The figures compare these rows, whatever their kind."""
    for positions in (None, TwoDimensionalPositions(), SinCosPositions()):
        for pooled in (False, True):
            embedding = vit(positions, pooled).position_embedding()
            assert embedding is not None
            assert embedding.shape == (1, 16 + (not pooled), 24)
    assert vit(RelativePositions()).position_embedding() is None


def test_pooled_features_are_the_mean_of_the_patches() -> None:
    """After the last norm, as the docstring says, and without a class token among them."""
    net = vit(pooled=True)
    (images,) = net.example_inputs(2)
    tokens = net.encoder(net.embedding(images) + net.positions)
    assert tokens.shape == (2, 16, 24)
    assert net.class_token is None
    torch.testing.assert_close(net(images).features, tokens.mean(1), atol=1e-6, rtol=0)


def test_the_pre_training_head_goes_as_a_whole() -> None:
    """Its hidden layer's tanh is the representation; fine-tuning must start from the class token again, at ln K."""
    torch.manual_seed(0)
    net = ViT(32, 8, dim=24, layers=1, heads=3, mlp_dim=48, classes=7, pre_logits=True).eval()
    (images,) = net.example_inputs(4)
    labels = torch.tensor([0, 1, 2, 3])
    features = net(images).features
    assert features.abs().max() < 1
    assert net.pre_logits is not None
    assert net.pre_logits.weight.var().item() == pytest.approx(1 / 24, rel=0.2)  # LeCun normal
    assert nn.functional.cross_entropy(net(images).logits, labels).item() == pytest.approx(math.log(7))
    nn.init.normal_(net.head.weight)
    net.reset_head(4)
    assert (net.classes, net.feature_dim, net.image_size) == (4, 24, 32)
    assert not any(name.startswith("pre_logits") for name in net.state_dict())
    assert not torch.allclose(net(images).features, features)
    assert nn.functional.cross_entropy(net(images).logits, labels).item() == pytest.approx(math.log(4))


def test_constants_reach_every_norm_and_mlp() -> None:
    """One left at its default would make weights of another library compute something else."""
    net = ViT(32, 8, 24, 2, 3, 48, 7, gelu_approximation="none", layer_norm_eps=1e-3)
    norms = [module for module in net.modules() if isinstance(module, nn.LayerNorm)]
    assert len(norms) == 5
    assert all(norm.eps == 1e-3 for norm in norms)
    assert all(m.approximate == "none" for m in net.modules() if isinstance(m, nn.GELU))


def test_first_loss_is_ln_k_and_evaluation_is_deterministic() -> None:
    """A head that does not start at zero, or dropout that stays on."""
    vit = ViT(32, 8, dim=24, layers=2, heads=3, mlp_dim=48, classes=7, dropout=0.5, stochastic_depth=0.5)
    (images,) = vit.example_inputs(4)
    loss = nn.functional.cross_entropy(vit(images).logits, torch.tensor([0, 1, 2, 3]))
    assert loss.item() == pytest.approx(math.log(7))
    vit.eval()
    assert torch.equal(vit(images).features, vit(images).features)


def test_every_parameter_gets_a_gradient() -> None:
    """A parameter that is built and not used would never learn."""
    vit = ViT(32, 8, dim=24, layers=2, heads=3, mlp_dim=48, classes=7)
    nn.init.normal_(vit.head.weight)  # at zero it passes nothing back
    vit(*vit.example_inputs(2)).logits.square().sum().backward()
    for name, parameter in vit.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
