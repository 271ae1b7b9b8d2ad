import pytest
import torch
from einops import rearrange
from timm.models.vision_transformer import Attention as TimmAttention

from lightning_vl.nn.attention import Attention, RelativeAttention


def test_equals_timm() -> None:
    """A wrong order of query, key, value and heads, or a wrong scale, would change the outputs."""
    torch.manual_seed(0)
    theirs = TimmAttention(24, num_heads=3, qkv_bias=True).eval()
    ours = Attention(24, heads=3).eval()
    ours.query_key_value.load_state_dict(theirs.qkv.state_dict())
    ours.output.load_state_dict(theirs.proj.state_dict())
    x = torch.randn(2, 7, 24)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=0)


def test_sequences_do_not_see_each_other() -> None:
    """With dimensions ahead of the tokens, each sequence would otherwise leak into its neighbours."""
    attention = Attention(24, heads=3).eval()
    x = torch.randn(2, 5, 7, 24)
    by_itself = rearrange(
        torch.stack([attention(one) for one in rearrange(x, "b t n d -> t b n d")]), "t b ... -> b t ..."
    )
    torch.testing.assert_close(attention(x), by_itself, atol=1e-6, rtol=0)


def test_dropout_only_in_training() -> None:
    """scaled_dot_product_attention drops in evaluation as well unless it is told not to."""
    attention = Attention(24, heads=3, dropout=0.5)
    x = torch.randn(2, 7, 24)
    assert not torch.equal(attention(x), attention(x))
    attention.eval()
    assert torch.equal(attention(x), attention(x))


def test_heads_must_divide_the_width() -> None:
    """It would fail much later, in a reshape that does not say why."""
    with pytest.raises(ValueError, match="25 cannot be divided among 3"):
        Attention(25, heads=3)


def test_relative_attention_equals_a_loop_over_pairs() -> None:
    """An offset of the wrong sign, or one too far, would give each pair another pair's embedding."""
    torch.manual_seed(0)
    attention = RelativeAttention(5, dim=8, heads=2).eval()
    torch.nn.init.normal_(attention.offsets)
    query, key, value = torch.randn(3, 1, 2, 5, 4)
    logits = torch.empty(1, 2, 5, 5)
    for i in range(5):
        for j in range(5):
            content = (query[:, :, i] * key[:, :, j]).sum(-1)
            logits[:, :, i, j] = (content + query[:, :, i] @ attention.offsets[0, j - i + 4]) / 2  # sqrt(4)
    torch.testing.assert_close(attention.attend(query, key, value), logits.softmax(-1) @ value, atol=1e-5, rtol=0)


def test_relative_attention_runs_in_bfloat16() -> None:
    """The embeddings stay float32 under autocast; mixed with half-precision logits the kernel would refuse them."""
    attention = RelativeAttention(5, dim=8, heads=2)
    with torch.autocast("cpu", torch.bfloat16):
        attention(torch.randn(2, 5, 8)).float().sum().backward()
    assert attention.offsets.grad is not None
