"""BERT: the released sizes, its post-norm forward pass against a slow one, packing, directions and heads."""

import math

import pytest
import torch
from torch import Tensor, nn

from lightning_vl.nn.packing import Packing, pack
from lightning_vl.papers.bert.model import Bert, BertClassifier, BertPreTraining

SIZES = {  # pieces, layers, width, heads: parameters of the encoder with its pooler, and with the heads of pre-training
    "base uncased": (30522, 12, 768, 12, 109_482_240, 110_106_428),
    "base cased": (28996, 12, 768, 12, 108_310_272, 108_932_934),
    "large uncased": (30522, 24, 1024, 16, 335_141_888, 336_226_108),
    "large cased": (28996, 24, 1024, 16, 333_579_264, 334_661_958),
    "tiny": (30522, 2, 128, 2, 4_385_920, None),
    "mini": (30522, 4, 256, 4, 11_170_560, None),
    "small": (30522, 4, 512, 8, 28_763_648, None),
    "medium": (30522, 8, 512, 8, 41_373_184, None),
}
VOCABULARY, LAYERS, DIM, HEADS, POSITIONS = 50, 2, 32, 4, 12
LENGTHS = [5, 1, 12, 7]


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("size", SIZES)
def test_parameters_at_the_released_sizes(size: str) -> None:
    """A bias, a norm or an untied decoder too many would show."""
    vocabulary, layers, dim, heads, alone, with_heads = SIZES[size]
    with torch.device("meta"):
        bert = Bert(vocabulary, layers, dim, heads, 4 * dim)
        net = BertPreTraining(bert)
    assert parameters(bert) == alone
    assert with_heads is None or parameters(net) == with_heads
    assert parameters(bert.blocks[0]) == 12 * dim**2 + 13 * dim


def tiny(**more: object) -> Bert:
    """With weights that hide nothing: no bias is zero, no norm is one."""
    torch.manual_seed(0)
    settings = {"vocabulary_size": VOCABULARY, "layers": LAYERS, "dim": DIM, "heads": HEADS, "mlp_dim": 48}
    bert = Bert(**(settings | {"positions": POSITIONS} | more))  # type: ignore[arg-type]
    for parameter in bert.parameters():
        nn.init.normal_(parameter, std=0.3)
    return bert.eval()


def batch(lengths: list[int] = LENGTHS) -> tuple[Tensor, Tensor, Packing]:
    """Random pieces; the second half of each sequence is sentence B."""
    generator = torch.Generator().manual_seed(len(lengths))
    ids = torch.randint(VOCABULARY, (sum(lengths),), generator=generator)
    segments = torch.cat([(torch.arange(length) >= length / 2).long() for length in lengths])
    return ids, segments, pack(torch.tensor(lengths))


# --- the forward pass -----------------------------------------------------------------------------------------------


def gelu(x: Tensor, approximation: str) -> Tensor:
    """Both forms, written out."""
    if approximation == "none":
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def slow_forward(bert: Bert, ids: Tensor, segments: Tensor, approximation: str, causal: bool) -> Tensor:
    """One sequence (n,) to (n, d), head by head and query by query, from the released code's order of operations."""
    weights = bert.state_dict()

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        deviation = (centred.square().mean(-1, keepdim=True) + 1e-12).sqrt()
        return centred / deviation * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    n = len(ids)
    x = weights["tokens.weight"][ids] + weights["segments.weight"][segments] + weights["positions.weight"][:n]
    x = norm(x, "norm")
    for number in range(LAYERS):
        block = f"blocks.{number}"
        query, key, value = linear(x, f"{block}.attention.query_key_value").split(DIM, dim=-1)
        context = torch.zeros_like(x)
        for head in range(HEADS):
            own = slice(head * DIM // HEADS, (head + 1) * DIM // HEADS)
            for i in range(n):
                seen = i + 1 if causal else n
                scores = key[:seen, own] @ query[i, own] / math.sqrt(DIM // HEADS)
                context[i, own] = scores.softmax(0) @ value[:seen, own]
        a = norm(x + linear(context, f"{block}.attention.output"), f"{block}.norm_attention")
        hidden = gelu(linear(a, f"{block}.mlp.hidden"), approximation)
        x = norm(a + linear(hidden, f"{block}.mlp.output"), f"{block}.norm_mlp")
    return x


@pytest.mark.parametrize("approximation", ["tanh", "none"])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_equals_a_slow_forward_pass(approximation: str, bidirectional: bool) -> None:
    """A norm ahead of its branch, a missing scale, the other GELU, a token that sees another sequence or later ones."""
    bert = tiny(gelu_approximation=approximation, bidirectional=bidirectional).double()
    ids, segments, packing = batch()
    hidden, pooled = bert(ids, segments, packing)
    start = 0
    for number, length in enumerate(LENGTHS):
        own = slice(start, start + length)
        expected = slow_forward(bert, ids[own], segments[own], approximation, causal=not bidirectional)
        torch.testing.assert_close(hidden[own], expected, atol=1e-10, rtol=0)
        speaker = expected[0 if bidirectional else -1]
        expected = torch.tanh(bert.pooler.weight @ speaker + bert.pooler.bias)
        torch.testing.assert_close(pooled[number], expected, atol=1e-10, rtol=0)
        start += length


@pytest.mark.parametrize("bidirectional", [True, False])
def test_what_else_is_in_the_batch_changes_nothing(bidirectional: bool) -> None:
    """Attention over padding or over a neighbour, or positions that run on from one sequence to the next."""
    bert = tiny(bidirectional=bidirectional)
    ids, segments, packing = batch()
    together = bert(ids, segments, packing)
    start = 0
    for number, length in enumerate(LENGTHS):
        own = slice(start, start + length)
        alone = bert(ids[own], segments[own], pack(torch.tensor([length])))
        torch.testing.assert_close(together.hidden[own], alone.hidden, atol=1e-5, rtol=0)
        torch.testing.assert_close(together.pooled[number], alone.pooled[0], atol=1e-5, rtol=0)
        start += length


def test_segments_and_positions_are_used() -> None:
    """Without them A and B would be one sentence, and a sentence a bag of words."""
    bert = tiny()
    ids, segments, packing = batch([8])
    pooled = bert(ids, segments, packing).pooled
    assert not torch.allclose(bert(ids, 1 - segments, packing).pooled, pooled, atol=1e-3)
    swapped = ids.clone()
    swapped[[2, 3]] = ids[[3, 2]]  # both of sentence A
    assert ids[2] != ids[3]
    assert not torch.allclose(bert(swapped, segments, packing).pooled, pooled, atol=1e-3)


def test_left_to_right_sees_nothing_later() -> None:
    """A model that sees the word it is to say would learn nothing; bidirectional it must see it (Sec. 3.1)."""
    for bidirectional in (False, True):
        bert = tiny(bidirectional=bidirectional)
        ids, segments, packing = batch([8, 5])
        changed = ids.clone()
        changed[4] = (ids[4] + 1) % VOCABULARY
        before, after = bert(ids, segments, packing), bert(changed, segments, packing)
        earlier = torch.isclose(before.hidden[:4], after.hidden[:4], atol=1e-6).all()
        assert bool(earlier) is not bidirectional
        assert not torch.allclose(before.hidden[4:8], after.hidden[4:8], atol=1e-3)
        assert not torch.allclose(
            before.pooled[0], after.pooled[0], atol=1e-3
        )  # of the last token, or of a first that sees
        torch.testing.assert_close(before.hidden[8:], after.hidden[8:], atol=1e-6, rtol=0)


def test_evaluation_is_deterministic_and_training_is_not() -> None:
    """Dropout that stays on, on the probabilities of attention above all, or that is nowhere."""
    for dropout in ({"dropout": 0.5, "attention_dropout": 0.0}, {"dropout": 0.0, "attention_dropout": 0.5}):
        net = BertClassifier(tiny(**dropout), classes=3, dropout=0.5).eval()
        assert torch.equal(net(*batch()).logits, net(*batch()).logits)
        bert = net.bert.train()
        assert not torch.equal(bert(*batch()).hidden, bert(*batch()).hidden)
    assert not torch.equal(net.train()(*batch()).logits, net(*batch()).logits)


# --- initialisation -------------------------------------------------------------------------------------------------


def test_initial_values_are_the_released_codes() -> None:
    """Xavier weights of ViT's blocks left in place, a tail beyond two deviations, or a bias that is not zero."""
    torch.manual_seed(0)
    net = BertPreTraining(Bert(1000, layers=1, dim=128, heads=2, mlp_dim=512, positions=64))
    classifier = BertClassifier(net.bert, classes=100)
    for name, parameter in [*net.named_parameters(), ("head.weight", classifier.head.weight)]:
        if parameter.ndim == 2:
            assert parameter.abs().max() <= 0.04, name
            if parameter.numel() > 1000:  # a normal of deviation 0.02 cut off at two of them has 0.88 of it
                assert parameter.std().item() == pytest.approx(0.02 * 0.87963, rel=0.05), name
        else:
            expected = float("norm" in name and name.endswith("weight"))
            assert (parameter == expected).all(), name
    for third in net.bert.blocks[0].attention.query_key_value.weight.chunk(3):
        assert third.std().item() == pytest.approx(0.02 * 0.87963, rel=0.05)


def test_first_losses_are_those_of_guessing() -> None:
    """Logits that are large at the start, as from embeddings scaled by sqrt(d)."""
    torch.manual_seed(0)
    net = BertPreTraining(Bert(1000, layers=2, dim=64, heads=2, mlp_dim=128, positions=16)).eval()
    packing = pack(torch.tensor([16] * 32))
    ids = torch.randint(1000, (512,))
    outputs = net(ids, torch.zeros_like(ids), packing, torch.arange(512))
    words = nn.functional.cross_entropy(outputs.words, torch.randint(1000, (512,)))
    assert words.item() == pytest.approx(math.log(1000), abs=0.1)
    following = nn.functional.cross_entropy(outputs.next_sentence, torch.arange(32) % 2)
    assert following.item() == pytest.approx(math.log(2), abs=0.05)


# --- heads ----------------------------------------------------------------------------------------------------------


def pre_training(next_sentence: bool = True) -> BertPreTraining:
    net = BertPreTraining(tiny(), next_sentence)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    return net.eval()


def test_words_are_asked_for_at_their_places_alone() -> None:
    """The logits of another token, or of one sequence's places counted from its own start."""
    net = pre_training()
    ids, segments, packing = batch()
    places = torch.tensor([4, 5, 20])
    outputs = net(ids, segments, packing, places)
    everywhere = net(ids, segments, packing, torch.arange(len(ids))).words
    assert outputs.words.shape == (3, VOCABULARY)
    torch.testing.assert_close(outputs.words, everywhere[places], atol=1e-5, rtol=0)
    hidden, pooled = net.bert(ids, segments, packing)
    x = hidden[places] @ net.words.transform.weight.T + net.words.transform.bias
    x = nn.functional.layer_norm(gelu(x, "tanh"), (DIM,), net.words.norm.weight, net.words.norm.bias, 1e-12)
    expected = x @ net.bert.tokens.weight.T + net.words.bias
    torch.testing.assert_close(outputs.words, expected, atol=1e-4, rtol=1e-5)
    expected = pooled @ net.next_sentence.weight.T + net.next_sentence.bias  # on the pooled vector, not on C itself
    torch.testing.assert_close(outputs.next_sentence, expected, atol=1e-5, rtol=0)


def test_the_words_are_said_by_the_embeddings_that_read_them() -> None:
    """A copy of the embeddings, or one of the two ways cut, would train another model."""
    net = pre_training()
    ids, segments, packing = batch()
    tokens, places = net.bert.tokens.weight, torch.tensor([0, 7])
    right = torch.tensor([1, 2])

    def gradient(logits: Tensor) -> Tensor:
        return torch.autograd.grad(nn.functional.cross_entropy(logits, right), tokens)[0]

    both = gradient(net(ids, segments, packing, places).words)
    hidden = net.bert(ids, segments, packing).hidden[places]
    reading, saying = gradient(net.words(hidden, tokens.detach())), gradient(net.words(hidden.detach(), tokens))
    assert reading.any()
    assert saying.any()
    torch.testing.assert_close(both, reading + saying, atol=1e-5, rtol=1e-4)
    assert not any("decoder" in name for name in net.state_dict())


def test_without_next_sentences_there_is_no_head_for_them() -> None:
    """The ablation would train it all the same."""
    net = pre_training(next_sentence=False)
    assert net(*batch(), torch.tensor([0])).next_sentence is None
    assert not any(name.startswith("next_sentence") for name in net.state_dict())


@pytest.mark.parametrize("bidirectional", [True, False])
def test_every_parameter_gets_a_gradient(bidirectional: bool) -> None:
    """A parameter that is built and not used would never learn."""
    bert = tiny(bidirectional=bidirectional)
    net, classifier = BertPreTraining(bert).train(), BertClassifier(bert, classes=3).train()
    outputs = net(*batch(), torch.tensor([0, 3, 9]))
    loss = outputs.words.square().sum() + outputs.next_sentence.square().sum()
    (loss + classifier(*batch()).logits.square().sum()).backward()
    for name, parameter in [*net.named_parameters(), *classifier.head.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_example_inputs_are_of_full_length() -> None:
    """Costs measured on shorter sequences would be too low."""
    bert = tiny()
    assert bert(*bert.example_inputs(3)).hidden.shape == (3 * POSITIONS, DIM)
    net, classifier = pre_training(), BertClassifier(bert, 5)
    assert net(*net.example_inputs(3)).words.shape == (3 * round(0.15 * POSITIONS), VOCABULARY)
    assert classifier(*classifier.example_inputs(3)).logits.shape == (3, 5)
