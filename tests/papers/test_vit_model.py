import math

import pytest
import timm
import torch
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

from lightning_vl.errors import UserError
from lightning_vl.papers.vit.convert import from_timm, from_transformers, to_transformers
from lightning_vl.papers.vit.model import ViT


def randomise(module: nn.Module) -> None:
    """Zeros and ones, as in a fresh head, norm or class token, would hide what is left out or swapped."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)


@pytest.mark.parametrize(
    ("patch_size", "dim", "layers", "heads", "parameters"),
    [(16, 768, 12, 12, 86_567_656), (32, 768, 12, 12, 88_224_232), (16, 1024, 24, 16, 304_326_632)],
)
def test_parameters_at_the_papers_sizes(patch_size: int, dim: int, layers: int, heads: int, parameters: int) -> None:
    """A bias, norm or position too many would show."""
    with torch.device("meta"):
        vit = ViT(224, patch_size, dim, layers, heads, 4 * dim, classes=1000)
    assert sum(parameter.numel() for parameter in vit.parameters()) == parameters


def test_equals_timm() -> None:
    """Weights that timm trained must compute the same here."""
    theirs = timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=5
    ).eval()
    randomise(theirs)
    ours = ViT(32, 8, dim=24, layers=2, heads=3, mlp_dim=96, classes=5, gelu_approximation="none").eval()
    ours.load_state_dict(from_timm(theirs.state_dict()))
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours(images).logits, theirs(images), atol=1e-5, rtol=0)


def test_equals_transformers_and_back() -> None:
    """Weights that transformers trained must compute the same here, and go back unchanged."""
    config = ViTConfig(
        image_size=32,
        patch_size=8,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=96,
        num_labels=5,
        layer_norm_eps=1e-6,
    )
    theirs = ViTForImageClassification(config).eval()
    randomise(theirs)
    ours = ViT(32, 8, dim=24, layers=2, heads=3, mlp_dim=96, classes=5, gelu_approximation="none").eval()
    ours.load_state_dict(from_transformers(theirs.state_dict()))
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours(images).logits, theirs(images).logits, atol=1e-5, rtol=0)
    again = from_transformers(to_transformers(ours.state_dict()))
    assert again.keys() == ours.state_dict().keys()
    assert all(torch.equal(again[key], tensor) for key, tensor in ours.state_dict().items())


def test_foreign_weights_are_refused_by_name() -> None:
    """Layer scale, say, changes what the network computes: dropping it silently would give a worse model."""
    theirs = timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=24, depth=1, num_heads=3, num_classes=5, init_values=0.1
    )
    with pytest.raises(UserError, match=r"blocks\.0\.ls1\.gamma"):
        from_timm(theirs.state_dict())


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
