from functools import partial

import pytest
import torch
from timm.models.vision_transformer import Block
from torch import nn

from lightning_vl.nn.attention import Attention
from lightning_vl.nn.blocks import Encoder, Mlp, PreNormBlock, StochasticDepth, gelu, stochastic_depth_ramp


def test_block_equals_timm() -> None:
    """Post-norm instead of pre-norm, a missing residual or another epsilon would change the outputs."""
    torch.manual_seed(0)
    theirs = Block(24, num_heads=3, mlp_ratio=4, qkv_bias=True, norm_layer=partial(nn.LayerNorm, eps=1e-6)).eval()
    ours = PreNormBlock(Attention(24, heads=3), dim=24, mlp_dim=96, gelu_approximation="none").eval()
    modules = {
        ours.norm_attention: theirs.norm1,
        ours.attention.query_key_value: theirs.attn.qkv,
        ours.attention.output: theirs.attn.proj,
        ours.norm_mlp: theirs.norm2,
        ours.mlp.hidden: theirs.mlp.fc1,
        ours.mlp.output: theirs.mlp.fc2,
    }
    for ours_module, theirs_module in modules.items():
        for parameter in theirs_module.parameters():  # norms and biases too: at 1 and 0 they would hide a swap
            nn.init.normal_(parameter, std=0.3)
        ours_module.load_state_dict(theirs_module.state_dict())
    x = 1e-2 * torch.randn(2, 7, 24)  # small, so that epsilon counts
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=0)


def test_gelu_is_the_tanh_form_unless_told_otherwise() -> None:
    """The official weights were trained with it; the exact form is off by up to 5e-4."""
    x = torch.linspace(-4, 4, 101)
    assert torch.equal(Mlp(4, 8).gelu(x), nn.functional.gelu(x, approximate="tanh"))
    assert torch.equal(Mlp(4, 8, gelu_approximation="none").gelu(x), nn.functional.gelu(x))


def test_quick_gelu_is_transformers() -> None:
    """Breaks if CLIP's weights meet another activation than the one they were trained with."""
    from transformers.activations import QuickGELUActivation

    x = torch.linspace(-5, 5, 101)
    torch.testing.assert_close(gelu("quick")(x), QuickGELUActivation()(x))
    assert not torch.allclose(gelu("quick")(x), gelu("none")(x), atol=1e-3)


def test_stochastic_depth_drops_whole_examples_and_does_not_rescale() -> None:
    """Rescaling by 1 / (1 - p), as timm does, would be another regulariser than the paper's code has."""
    torch.manual_seed(0)
    drop = StochasticDepth(0.3)
    out = drop(torch.ones(10_000, 2, 3))
    values = out.flatten(1)
    assert torch.equal(values.min(dim=1).values, values.max(dim=1).values)  # an example stays or goes as a whole
    assert set(values.unique().tolist()) == {0.0, 1.0}
    assert values[:, 0].mean() == pytest.approx(0.7, abs=0.02)


def test_stochastic_depth_of_the_two_branches_is_independent() -> None:
    """With one draw for both, a block would be either whole or absent."""
    torch.manual_seed(0)
    block = PreNormBlock(Attention(8, heads=2), dim=8, mlp_dim=16, stochastic_depth=0.5)
    x = torch.randn(1, 3, 8).expand(200, -1, -1)
    outcomes = block(x).flatten(1).unique(dim=0)
    assert len(outcomes) == 4  # neither, attention alone, MLP alone, both


def test_stochastic_depth_is_off_in_evaluation() -> None:
    """Evaluation would be random."""
    x = torch.randn(8, 2)
    assert torch.equal(StochasticDepth(0.9).eval()(x), x)


def test_stochastic_depth_ramp_is_the_papers() -> None:
    """p(l) = (l / L) p_drop reaches p_drop at the last layer and is not zero at the first."""
    assert stochastic_depth_ramp(0.3, 3) == pytest.approx([0.1, 0.2, 0.3])
    encoder = Encoder(3, dim=8, heads=2, mlp_dim=16, stochastic_depth=0.3)
    assert [block.stochastic_depth.probability for block in encoder.blocks] == pytest.approx([0.1, 0.2, 0.3])


def test_dropout_is_off_in_evaluation() -> None:
    """Evaluation would be random."""
    encoder = Encoder(2, dim=8, heads=2, mlp_dim=16, dropout=0.5, stochastic_depth=0.5)
    x = torch.randn(4, 3, 8)
    assert not torch.equal(encoder(x), encoder(x))
    encoder.eval()
    assert torch.equal(encoder(x), encoder(x))


def test_probability_of_one_is_refused() -> None:
    """Every branch would be dropped and nothing would be learned."""
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        StochasticDepth(1.0)
