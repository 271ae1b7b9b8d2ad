"""The Transformer: equal to torch's, to the paper's formulas and sizes, and able to learn."""

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from lightning_vl.nn.packing import Packing, pack
from lightning_vl.nn.positions import sinusoids
from lightning_vl.nn.transformer import (
    LAYER_NORM_EPS,
    CrossAttention,
    Transformer,
    TransformerDecoder,
    TransformerEncoder,
)
from lightning_vl.optim import WarmupInverseSquareRoot

DIM, HEADS, HIDDEN, LAYERS, WORDS = 16, 4, 24, 2, 11


def spread_out(net: nn.Module) -> None:
    """Weights and norms far from where they start, at which a swap could not be seen."""
    torch.manual_seed(0)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.4)


def torchs_encoder(ours: TransformerEncoder) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(
        DIM, HEADS, HIDDEN, dropout=0.1, layer_norm_eps=LAYER_NORM_EPS, batch_first=True, norm_first=False
    )
    theirs = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False).eval()
    for block, other in zip(ours.blocks, theirs.layers, strict=True):
        take(other.self_attn, block.attention.query_key_value.weight, block.attention.output.weight)
        for mine, its in (
            (block.norm_attention, other.norm1),
            (block.mlp.hidden, other.linear1),
            (block.mlp.output, other.linear2),
            (block.norm_mlp, other.norm2),
        ):
            its.load_state_dict(mine.state_dict())
    return theirs


def torchs_decoder(ours: TransformerDecoder) -> nn.TransformerDecoder:
    layer = nn.TransformerDecoderLayer(
        DIM, HEADS, HIDDEN, dropout=0.1, layer_norm_eps=LAYER_NORM_EPS, batch_first=True, norm_first=False
    )
    theirs = nn.TransformerDecoder(layer, LAYERS).eval()
    for block, other in zip(ours.blocks, theirs.layers, strict=True):
        take(other.self_attn, block.attention.query_key_value.weight, block.attention.output.weight)
        cross = block.cross_attention
        take(other.multihead_attn, torch.cat([cross.query.weight, cross.key_value.weight]), cross.output.weight)
        for mine, its in (
            (block.norm_attention, other.norm1),
            (block.norm_cross_attention, other.norm2),
            (block.mlp.hidden, other.linear1),
            (block.mlp.output, other.linear2),
            (block.norm_mlp, other.norm3),
        ):
            its.load_state_dict(mine.state_dict())
    return theirs


def take(theirs: nn.MultiheadAttention, projections: Tensor, output: Tensor) -> None:
    """Our matrices without bias, theirs zero."""
    weights: Mapping[str, Tensor] = {
        "in_proj_weight": projections,
        "in_proj_bias": torch.zeros(len(projections)),
        "out_proj.weight": output,
        "out_proj.bias": torch.zeros(len(output)),
    }
    theirs.load_state_dict(weights)


@pytest.mark.parametrize("lengths", [[5, 2, 3], [4, 4, 4]], ids=["mixed", "equal"])
@torch.no_grad()
def test_the_encoder_equals_torchs(lengths: list[int]) -> None:
    """Breaks if the norm stands elsewhere, one comes after the stack, or padding is seen."""
    ours = TransformerEncoder(LAYERS, DIM, HEADS, HIDDEN).eval()
    spread_out(ours)
    packing = pack(torch.tensor(lengths))
    line = torch.randn(sum(lengths), DIM)
    expected = torchs_encoder(ours)(packing.pad(line), src_key_padding_mask=hidden(packing))
    torch.testing.assert_close(ours(line, packing), packing.unpad(expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("lengths", "read"), [([2, 5, 3], [6, 1, 4]), ([4, 4, 4], [3, 3, 3]), ([2, 2, 2], [3, 1, 2])], ids=str
)
@torch.no_grad()
def test_the_decoder_equals_torchs(lengths: list[int], read: list[int]) -> None:
    """Breaks if the sub-layers come in another order, or either mask is of the other side."""
    ours = TransformerDecoder(LAYERS, DIM, HEADS, HIDDEN).eval()
    spread_out(ours)
    packing, memory_packing = pack(torch.tensor(lengths)), pack(torch.tensor(read))
    line, memory = torch.randn(sum(lengths), DIM), torch.randn(sum(read), DIM)
    later = torch.ones(packing.longest, packing.longest, dtype=torch.bool).triu(1)
    expected = torchs_decoder(ours)(
        packing.pad(line),
        memory_packing.pad(memory),
        tgt_mask=later,
        tgt_key_padding_mask=hidden(packing),
        memory_key_padding_mask=hidden(memory_packing),
    )
    torch.testing.assert_close(ours(line, packing, memory, memory_packing), packing.unpad(expected), atol=1e-5, rtol=0)


def hidden(packing: Packing) -> Tensor | None:
    """What torch's mask says: True where there is no token."""
    return None if packing.mask is None else ~packing.mask


def test_sinusoids_are_the_papers() -> None:
    """Breaks if sines and cosines do not alternate, or a wavelength is another."""
    table = sinusoids(torch.arange(60), 10)
    for position in range(60):
        for i in range(5):
            angle = position / 10_000 ** (2 * i / 10)
            assert table[position, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-5)
            assert table[position, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-5)


def test_sinusoids_of_an_odd_width_are_refused() -> None:
    """It would fail much later, in a sum that does not say why."""
    with pytest.raises(ValueError, match="pairs"):
        sinusoids(torch.arange(3), 5)


@torch.no_grad()
def test_the_whole_is_its_parts() -> None:
    """Breaks if embeddings are not scaled, positions do not start anew in each sequence, or the logits have another matrix."""
    net, source, read, target, said = example()
    memory = net.encoder(net.tokens.weight[source] * 4 + sinusoids(torch.tensor([0, 1, 2, 0, 1]), DIM), read)
    x = net.tokens.weight[target] * 4 + sinusoids(torch.tensor([0, 1, 0, 1, 2, 3]), DIM)
    expected = net.decoder(x, said, memory, read) @ net.tokens.weight.T
    torch.testing.assert_close(net(source, read, target, said), expected)


def example() -> tuple[Transformer, Tensor, Packing, Tensor, Packing]:
    """A network and a batch of two."""
    net = Transformer(WORDS, LAYERS, DIM, HEADS, HIDDEN).eval()
    spread_out(net)
    source, target = torch.randint(WORDS, (5,)), torch.randint(WORDS, (6,))
    return net, source, pack(torch.tensor([3, 2])), target, pack(torch.tensor([2, 4]))


@torch.no_grad()
def test_a_later_word_changes_no_earlier_one() -> None:
    """Breaks if the decoder sees the word that it is to say, and so learns to copy it."""
    net, source, read, target, said = example()
    before = net(source, read, target, said)
    target[4] = (target[4] + 1) % WORDS  # the third of the second sequence
    after = net(source, read, target, said)
    assert torch.equal(after[:4], before[:4])
    assert not torch.isclose(after[4:], before[4:]).all(-1).any()


@torch.no_grad()
def test_a_source_reaches_its_own_target_alone() -> None:
    """Breaks if cross-attention looks at the wrong sequence, or does not look at all."""
    net, source, read, target, said = example()
    before = net(source, read, target, said)
    source[4] = (source[4] + 1) % WORDS  # of the second sequence
    after = net(source, read, target, said)
    assert torch.equal(after[:2], before[:2])
    assert not torch.isclose(after[2:], before[2:]).all(-1).any()


@torch.no_grad()
def test_company_changes_nothing() -> None:
    """Breaks if a sequence in a batch, padded on either side, gives something else than by itself."""
    net, source, read, target, said = example()
    together = net(source, read, target, said)
    first = net(source[:3], pack(torch.tensor([3])), target[:2], pack(torch.tensor([2])))
    second = net(source[3:], pack(torch.tensor([2])), target[2:], pack(torch.tensor([4])))
    torch.testing.assert_close(together, torch.cat([first, second]), atol=1e-5, rtol=0)


def test_every_parameter_learns() -> None:
    """Breaks if a part is built and not used."""
    net, source, read, target, said = example()
    nn.functional.cross_entropy(net(source, read, target, said), torch.randint(WORDS, (6,))).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize(
    ("name", "sizes", "stack", "whole"),
    [("base", (6, 512, 8, 2048), 18_902_016, 63_045_632), ("big", (6, 1024, 16, 4096), 75_552_768, 214_171_648)],
)
def test_sizes_are_the_papers(name: str, sizes: tuple[int, int, int, int], stack: int, whole: int) -> None:
    """Breaks if a layer has a bias, norm or matrix more or less than the paper's (Table 3 rounds to 65 M and 213 M)."""
    with torch.device("meta"):
        net = Transformer(37_000, *sizes)
    assert sum(parameter.numel() for parameter in net.encoder.parameters()) == stack
    assert sum(parameter.numel() for parameter in net.parameters()) == whole


def test_dropout_is_off_in_evaluation() -> None:
    """Breaks if evaluation is random, or training is not."""
    net, *batch = example()
    assert torch.equal(net(*batch), net(*batch))
    net.train()
    assert not torch.equal(net(*batch), net(*batch))


def test_as_many_sources_as_targets() -> None:
    """Breaks if one source is silently spread over several targets, or the other way round."""
    attention = CrossAttention(DIM, HEADS)
    with pytest.raises(ValueError, match="2 sequences cannot look at 1"):
        attention(torch.randn(6, DIM), pack(torch.tensor([2, 4])), torch.randn(3, DIM), pack(torch.tensor([3])))
    with pytest.raises(ValueError, match="16 cannot be divided among 3"):
        CrossAttention(DIM, 3)


@torch.no_grad()
def test_generation_takes_the_likeliest_word_each_time() -> None:
    """Breaks if generation sees padding, reads the logits of another token, or does not stop."""
    net, source, read, _, _ = example()
    begin, end = 0, 1
    by_hand = []
    for sequence in source.split([3, 2]):
        said = [begin]
        for _ in range(8):
            logits = net(
                sequence, pack(torch.tensor([len(sequence)])), torch.tensor(said), pack(torch.tensor([len(said)]))
            )
            said.append(int(logits[-1].argmax()))
            if said[-1] == end:
                break
        by_hand.append([word for word in said[1:] if word != end])
    assert net.generate(source, read, begin, end, longest=8) == by_hand
    assert [words[:1] for words in by_hand] == net.generate(source, read, begin, end, longest=1)
    # what it says first is now what ends it
    first = by_hand[0][0]
    assert net.generate(source, read, begin, first, longest=8)[0] == []


def test_weights_of_half_precision() -> None:
    """Breaks if positions, computed in float32, make the sum another type than the weights."""
    net = Transformer(12, layers=1, dim=16, heads=2, mlp_dim=32).bfloat16()
    line, packing = torch.arange(5), pack(torch.tensor([2, 3]))
    assert net(line, packing, line, packing).dtype == torch.bfloat16


@pytest.mark.slow
def test_it_learns_to_reverse() -> None:
    """Breaks if a mask, a position or the shared matrix is wrong in a way that two equal mistakes would hide from the parity tests."""
    torch.manual_seed(0)
    begin, end = 10, 11
    net = Transformer(12, layers=2, dim=32, heads=4, mlp_dim=64, dropout=0.0)
    optimiser = torch.optim.Adam(net.parameters(), betas=(0.9, 0.98), eps=1e-9)
    steps, warmup = 500, 100
    schedule, highest = WarmupInverseSquareRoot(warmup), 32**-0.5 * warmup**-0.5
    for step in range(1, steps + 1):
        for group in optimiser.param_groups:
            group["lr"] = highest * schedule.factor(step - 1, steps)  # Eq. 3
        lengths = torch.randint(2, 7, (32,))
        words = [torch.randint(10, (int(length),)) for length in lengths]
        target = torch.cat([torch.cat([torch.tensor([begin]), word.flip(0)]) for word in words])
        wanted = torch.cat([torch.cat([word.flip(0), torch.tensor([end])]) for word in words])
        logits = net(torch.cat(words), pack(lengths), target, pack(lengths + 1))
        optimiser.zero_grad()
        nn.functional.cross_entropy(logits, wanted).backward()
        optimiser.step()
    net.eval()
    lengths = torch.randint(2, 7, (50,))
    words = torch.randint(10, (int(lengths.sum()),))
    said = net.generate(words, pack(lengths), begin, end, longest=8)
    right = [word.flip(0).tolist() == one for word, one in zip(words.split(lengths.tolist()), said, strict=True)]
    assert sum(right) >= 40  # a guess is right once in a hundred at the shortest
