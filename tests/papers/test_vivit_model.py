import math

import pytest
import torch
from einops import rearrange
from torch import Tensor, nn

from lightning_vl.nn.blocks import Encoder
from lightning_vl.nn.embeddings import TubeletEmbedding, UniformFrameEmbedding
from lightning_vl.papers.vivit.model import (
    AveragePool,
    FactorisedDotProduct,
    FactorisedDotProductAttention,
    FactorisedEncoder,
    FactorisedSelfAttention,
    FactorisedSelfAttentionBlock,
    SpatioTemporal,
    ViViT,
)

MODELS = [SpatioTemporal, FactorisedEncoder, FactorisedSelfAttention, FactorisedDotProduct, AveragePool]


def build(model: type[ViViT], dropout: float = 0.0, stochastic_depth: float = 0.0) -> ViViT:
    """A tiny one with two heads of classification: 4 times of 2 x 2 tokens."""
    torch.manual_seed(0)
    embedding = TubeletEmbedding(frames=8, image_size=16, tubelet=(2, 8, 8), dim=24)
    classes = {"noun": 5, "verb": 3}
    return model(
        embedding, layers=2, heads=4, mlp_dim=48, classes=classes, dropout=dropout, stochastic_depth=stochastic_depth
    )


def randomise(module: nn.Module) -> None:
    """Zeros and ones, as in a fresh head, norm or class token, would hide what is left out or swapped."""
    torch.manual_seed(1)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        (SpatioTemporal, 88_954_000),
        (FactorisedEncoder, 115_062_928),
        (FactorisedSelfAttention, 117_319_312),
        (FactorisedDotProduct, 88_952_464),
        (AveragePool, 86_696_080),
    ],
)
def test_parameters_at_the_papers_size(model: type[ViViT], parameters: int) -> None:
    """Table 2 for B/16x2 and 400 classes: a class token, norm or bias too many would show."""
    with torch.device("meta"):
        embedding = TubeletEmbedding(frames=32, image_size=224, tubelet=(2, 16, 16), dim=768)
        net = model(embedding, layers=12, heads=12, mlp_dim=3072, classes={"class": 400})
    assert sum(parameter.numel() for parameter in net.parameters()) == parameters


@pytest.mark.parametrize("model", MODELS)
def test_runs_on_the_meta_device(model: type[ViViT]) -> None:
    """Costs at the paper's size are counted there; the example inputs must come from there as well."""
    with torch.device("meta"):
        net = build(model)
    (video,) = net.example_inputs(3)
    output = net(video)
    assert video.device.type == "meta"
    assert video.shape == (3, 8, 3, 16, 16)
    assert {head: logits.shape for head, logits in output.logits.items()} == {"noun": (3, 5), "verb": (3, 3)}
    assert output.features.shape == (3, 24)


@pytest.mark.parametrize("model", MODELS)
def test_first_loss_is_ln_k(model: type[ViViT]) -> None:
    """The head must start at zero, for every head of classification."""
    logits = build(model)(torch.randn(2, 8, 3, 16, 16)).logits
    for head, classes in {"noun": 5, "verb": 3}.items():
        loss = nn.functional.cross_entropy(logits[head], torch.tensor([0, 2]))
        assert loss.item() == pytest.approx(math.log(classes))


@pytest.mark.parametrize("model", MODELS)
def test_evaluation_is_deterministic(model: type[ViViT]) -> None:
    """Dropout and stochastic depth must be there in training and gone in evaluation."""
    net = build(model, dropout=0.3, stochastic_depth=0.3)
    (video,) = net.example_inputs(4)
    assert not torch.equal(net(video).features, net(video).features)
    net.eval()
    assert torch.equal(net(video).features, net(video).features)


@pytest.mark.parametrize("model", MODELS)
def test_a_clip_does_not_depend_on_its_batch(model: type[ViViT]) -> None:
    """A reshape that mixes batch and time would let clips see each other."""
    net = build(model).eval()
    randomise(net)
    (video,) = net.example_inputs(3)
    together = net(video)
    for row in range(3):
        alone = net(video[row : row + 1])
        torch.testing.assert_close(alone.features[0], together.features[row], atol=1e-5, rtol=0)
        torch.testing.assert_close(alone.logits["verb"][0], together.logits["verb"][row], atol=1e-5, rtol=0)


@pytest.mark.parametrize("model", MODELS)
def test_every_parameter_gets_a_gradient(model: type[ViViT]) -> None:
    """A parameter that is built and not used would never learn."""
    net = build(model)
    randomise(net)  # a head and a temporal branch at zero pass nothing back
    logits = net(*net.example_inputs(2)).logits
    sum(head.square().sum() for head in logits.values()).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("model", MODELS)
def test_the_order_of_frames_matters_except_to_the_average(model: type[ViViT]) -> None:
    """Models 1 to 4 must tell a clip from its reverse (in tubelets); the baseline cannot, by construction."""
    net = build(model).eval()
    randomise(net)
    (video,) = net.example_inputs(2)
    backwards = rearrange(rearrange(video, "b (n t) c h w -> b n t c h w", t=2).flip(1), "b n t c h w -> b (n t) c h w")
    same = torch.allclose(net(video).features, net(backwards).features, atol=1e-5)
    assert same == (model is AveragePool)


@pytest.mark.parametrize("model", MODELS)
def test_uniform_frame_sampling(model: type[ViViT]) -> None:
    """The other embedding of Sec. 3.2 goes into every model; frames that it skips are not seen."""
    embedding = UniformFrameEmbedding(frames=9, image_size=16, sampled_frames=2, patch_size=8, dim=24)
    net = model(embedding, layers=1, heads=4, mlp_dim=48, classes={"class": 5}).eval()
    (video,) = net.example_inputs(2)
    features = net(video).features
    unseen = video.clone()
    unseen[:, [0, 1, 2, 4, 5, 7, 8]] = 0
    assert torch.equal(net(unseen).features, features)


def test_heads_of_classification_are_one_layer_in_order() -> None:
    """EPIC-KITCHENS: one linear layer, nouns first; released heads are split so."""
    net = build(SpatioTemporal)
    randomise(net)
    output = net(*net.example_inputs(2))
    assert list(output.logits) == ["noun", "verb"]
    torch.testing.assert_close(torch.cat(list(output.logits.values()), dim=1), net.head(output.features))


def test_factorised_encoder_sees_one_time_at_a_time_in_space() -> None:
    """The spatial encoder must not look across times; all times share its one class token."""
    net = build(FactorisedEncoder).eval()
    randomise(net)
    tokens = torch.randn(2, 4, 4, 24)
    changed = tokens.clone()
    changed[0, 2] *= -1  # a constant would be taken away by the norm
    moved = (net.encode_frames(changed) - net.encode_frames(tokens)).abs().amax(dim=-1)  # (b, t)
    assert (moved > 1e-6).nonzero().tolist() == [[0, 2]]
    assert net.spatial_class_token.shape == net.temporal_class_token.shape == (1, 1, 24)


def test_factorised_encoder_takes_its_temporal_layers() -> None:
    """Table 3 varies them; the Large models of the paper's code have 24."""
    embedding = TubeletEmbedding(frames=8, image_size=16, tubelet=(2, 8, 8), dim=24)
    net = FactorisedEncoder(embedding, layers=2, heads=4, mlp_dim=48, classes={"class": 5}, temporal_layers=3)
    assert (len(net.spatial_encoder.blocks), len(net.temporal_encoder.blocks)) == (2, 3)


def test_factorised_self_attention_starts_without_its_temporal_branch() -> None:
    """At the start it must be an image ViT's blocks on each time, or an image model's weights are spoilt."""
    net = build(FactorisedSelfAttention).eval()
    image = Encoder(2, dim=24, heads=4, mlp_dim=48).eval()
    for block, image_block in zip(net.blocks, image.blocks, strict=True):
        image_block.norm_attention.load_state_dict(block.norm_space.state_dict())
        image_block.attention.load_state_dict(block.attention_space.state_dict())
        image_block.norm_mlp.load_state_dict(block.norm_mlp.state_dict())
        image_block.mlp.load_state_dict(block.mlp.state_dict())
    (video,) = net.example_inputs(2)
    x = net.embedding(video) + net.positions.reshape(1, 4, 4, 24)
    by_time = torch.stack([image(x[:, time]) for time in range(4)], dim=1)
    torch.testing.assert_close(net(video).features, by_time.mean(dim=(1, 2)), atol=1e-6, rtol=0)


def test_the_temporal_branch_learns() -> None:
    """All weights zero, as the paper puts it, is a dead branch: no gradient but the output bias's, for ever."""
    net = build(FactorisedSelfAttention)
    nn.init.normal_(net.head.weight)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    (video,) = net.example_inputs(2)

    def gradients() -> dict[str, Tensor]:
        optimizer.zero_grad()
        net(video).logits["noun"].square().sum().backward()
        return {name: parameter.grad for name, parameter in net.blocks[0].named_parameters() if "time" in name}

    first = gradients()
    assert {name for name, gradient in first.items() if gradient.any()} == {
        "attention_time.output.weight",
        "attention_time.output.bias",
    }
    optimizer.step()
    second = gradients()
    assert all(gradient.any() for gradient in second.values())
    for third in second["attention_time.query_key_value.weight"].chunk(3):  # query, key and value
        assert third.any()


def test_factorised_self_attention_attends_over_space_then_time() -> None:
    """A change at one place must reach its own time and its own place, and with both in turn every place."""
    block = FactorisedSelfAttentionBlock(24, heads=4, mlp_dim=48, dropout=0.0, stochastic_depth=0.0).eval()
    randomise(block)
    x = torch.randn(1, 3, 5, 24)
    changed = x.clone()
    changed[0, 1, 2] *= -1

    def reached() -> Tensor:
        return (block(changed) - block(x)).abs().amax(dim=-1)[0] > 1e-6  # (t, s)

    assert reached().all()  # first its time, then all times
    nn.init.zeros_(block.attention_time.output.weight)
    own_time = torch.zeros(3, 5, dtype=torch.bool)
    own_time[1] = True
    assert torch.equal(reached(), own_time)
    randomise(block)
    nn.init.zeros_(block.attention_space.output.weight)
    own_place = torch.zeros(3, 5, dtype=torch.bool)
    own_place[:, 2] = True
    assert torch.equal(reached(), own_place)


def test_factorised_dot_product_halves_its_heads_between_time_and_space() -> None:
    """The first half of the heads must see the same place at all times, the second the same time at all places."""
    attention = FactorisedDotProductAttention(24, heads=4).eval()
    randomise(attention)
    with torch.no_grad():
        attention.output.weight.copy_(torch.eye(24))  # what comes out is the heads, side by side
    x = torch.randn(1, 3, 5, 24)
    changed = x.clone()
    changed[0, 1, 2] *= -1
    moved = (attention(changed) - attention(x)).abs() > 1e-6
    time, space = moved[0].unflatten(-1, (2, 12)).any(dim=-1).unbind(dim=-1)  # (t, s) each
    assert time.nonzero().tolist() == [[t, 2] for t in range(3)]
    assert space.nonzero().tolist() == [[1, s] for s in range(5)]


def test_factorised_dot_product_splits_heads_not_channels() -> None:
    """Each head must keep its query, key and value: the same weights as full attention where t or s is 1."""
    attention = FactorisedDotProductAttention(24, heads=4).eval()
    randomise(attention)
    with torch.no_grad():
        attention.output.weight.copy_(torch.eye(24))
    x = torch.randn(2, 5, 24)
    full = super(FactorisedDotProductAttention, attention).forward(x)
    over_time = attention(rearrange(x, "b n d -> b n 1 d"))[:, :, 0]
    over_space = attention(rearrange(x, "b n d -> b 1 n d"))[:, 0]
    torch.testing.assert_close(over_time[..., :12], full[..., :12], atol=1e-6, rtol=0)
    torch.testing.assert_close(over_space[..., 12:], full[..., 12:], atol=1e-6, rtol=0)


def test_odd_heads_cannot_be_halved() -> None:
    """It would fail in a reshape that does not say why."""
    with pytest.raises(ValueError, match="3 heads cannot be halved"):
        FactorisedDotProductAttention(24, heads=3)


def test_stochastic_depth_drops_a_branch_for_all_times_of_a_clip() -> None:
    """As in the paper's code: an example is a clip, not one of its frames."""
    net = build(AveragePool, stochastic_depth=0.9)
    randomise(net)
    (video,) = net.example_inputs(1)
    video = video[:, :2].repeat(64, 4, 1, 1, 1)  # every time looks the same
    frames = net.encode_frames(net.embedding(video))  # (b, t, d)
    torch.testing.assert_close(frames, frames[:, :1].expand(-1, 4, -1), atol=1e-5, rtol=0)
    assert len(frames[:, 0].detach().round(decimals=3).unique(dim=0)) > 1
