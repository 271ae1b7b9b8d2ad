"""CLIP's towers: the nine published sizes, packed texts, the capped scale, frozen trunks, and a loss of ln N to begin with."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from lightning_vl.nn.packing import Packing, pack
from lightning_vl.papers.clip.model import CLIP, published
from lightning_vl.papers.clip.towers import ModifiedResNet, TextTransformer, Tower, VisionTransformer

SIZES = {  # parameters of the image tower, of the text tower, and of both with the scale
    "RN50": (38_316_896, 63_690_240, 102_007_137),
    "RN101": (56_259_936, 63_428_096, 119_688_033),
    "RN50x4": (87_137_080, 91_163_520, 178_300_601),
    "RN50x16": (167_328_912, 123_650_304, 290_979_217),
    "RN50x64": (420_380_352, 202_877_952, 623_258_305),
    "ViT-B/32": (87_849_216, 63_428_096, 151_277_313),
    "ViT-B/16": (86_192_640, 63_428_096, 149_620_737),
    "ViT-L/14": (303_966_208, 123_650_304, 427_616_513),
    "ViT-L/14@336px": (304_293_888, 123_650_304, 427_944_193),
}
VOCABULARY, CONTEXT, EMBED_DIM = 40, 10, 24
LENGTHS = [4, 10, 2, 7]


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", SIZES)
def test_parameters_at_the_published_sizes(name: str) -> None:
    """A bias, a norm or a projection too many would show, and in which tower."""
    with torch.device("meta"):
        net = published(name)
    assert (parameters(net.image), parameters(net.text), parameters(net)) == SIZES[name]


def test_there_is_no_tenth() -> None:
    """A misspelt name must not give some network."""
    with pytest.raises(ValueError, match=r"the paper has no ViT-B/8, but RN50, .*ViT-L/14@336px"):
        published("ViT-B/8")


def vision_transformer() -> VisionTransformer:
    return VisionTransformer(image_size=16, patch_size=8, dim=32, layers=2, heads=4, embed_dim=EMBED_DIM)


def resnet() -> ModifiedResNet:
    return ModifiedResNet(image_size=32, layers=(1, 2, 1, 1), width=8, embed_dim=EMBED_DIM)


def text_transformer(embed_dim: int = EMBED_DIM) -> TextTransformer:
    return TextTransformer(VOCABULARY, CONTEXT, dim=32, layers=2, heads=4, embed_dim=embed_dim)


def tiny(**more: object) -> CLIP:
    """With a ViT, as it is built."""
    torch.manual_seed(0)
    return CLIP(vision_transformer(), text_transformer(), **more)  # type: ignore[arg-type]


def randomised(module: nn.Module) -> nn.Module:
    """With weights that hide nothing: no bias is zero, no norm is one."""
    torch.manual_seed(1)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module.eval()


def texts(lengths: list[int] = LENGTHS) -> list[Tensor]:
    """Random tokens of these lengths."""
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(VOCABULARY, (length,), generator=generator) for length in lengths]


def packed(tokens: list[Tensor]) -> tuple[Tensor, Packing]:
    return torch.cat(tokens), pack(torch.tensor([len(one) for one in tokens]))


def images(count: int, size: int = 16) -> Tensor:
    """In [0, 1]."""
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(3))


# --- text -----------------------------------------------------------------------------------------------------------


def test_a_text_is_the_same_alone_and_among_others() -> None:
    """Attention across texts, positions that count on, or a wrong last token would change it; so would another order."""
    tower = randomised(text_transformer())
    tokens = texts()
    together = tower(*packed(tokens))
    alone = torch.cat([tower(*packed([one])) for one in tokens])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    order = [2, 0, 3, 1]
    torch.testing.assert_close(tower(*packed([tokens[i] for i in order])), together[order], atol=1e-5, rtol=1e-5)


def test_a_text_is_read_off_at_its_end_token_before_any_padding() -> None:
    """The released code pads to the full context and takes the end token's place: the same must come out of the packed form."""
    tower = randomised(text_transformer())
    tokens = texts()
    padded = torch.stack([F.pad(one, (0, CONTEXT - len(one))) for one in tokens])  # (b, n)
    x = tower.tokens(padded) + tower.positions
    full = pack(torch.full((len(tokens),), CONTEXT))
    x = x.flatten(0, 1)
    for block in tower.encoder.blocks:
        x = block(x, full)
    ends = torch.arange(len(tokens)) * CONTEXT + torch.tensor(LENGTHS) - 1
    expected = tower.projection(tower.encoder.norm(x[ends]))
    torch.testing.assert_close(tower(*packed(tokens)), expected, atol=1e-5, rtol=1e-5)


def test_text_is_causal() -> None:
    """A token must not see those after it, as the released weights never did."""
    tower = randomised(text_transformer())
    one = texts([6])[0]
    longer = torch.cat([one, texts([3])[0]])
    states = []
    for tokens in (one, longer):
        token_ids, packing = packed([tokens])
        x = tower.tokens(token_ids) + tower.positions[0, packing.positions]
        for block in tower.encoder.blocks:
            x = block(x, packing)
        states.append(x)
    torch.testing.assert_close(states[0], states[1][:6], atol=1e-5, rtol=1e-5)


# --- both -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image", [vision_transformer, resnet])
def test_embeddings_have_length_one(image: type) -> None:
    """Cosines of anything else are none; the towers' own outputs must have another length for this to say something."""
    tower = image()
    net = randomised(CLIP(tower, text_transformer()))
    pictures = images(3, tower.image_size)
    out = net(pictures, *packed(texts()))
    assert (out.image.shape, out.text.shape, out.bias) == ((3, EMBED_DIM), (4, EMBED_DIM), None)
    for embeddings in (out.image, out.text):
        torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(len(embeddings)))
    assert (tower(pictures).norm(dim=-1) - 1).abs().min() > 1e-3


def test_pixels_are_normalised_by_the_tower() -> None:
    """Towers of different origin read the same batch; forgotten, or done twice, released weights would see other images."""
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    one = VisionTransformer(16, 8, 32, 1, 4, EMBED_DIM)
    other = VisionTransformer(16, 8, 32, 1, 4, EMBED_DIM, mean=mean, std=std)
    other.load_state_dict(one.state_dict())
    pictures = images(2)
    raw = pictures * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)
    usual = pictures * one.std + one.mean
    torch.testing.assert_close(one(usual), other(raw), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(one(pictures), other(pictures))


def test_the_first_loss_is_about_ln_n() -> None:
    """In a space as wide as the paper's, cosines of untrained towers are small: far from ln N, one begins badly scaled."""
    count = 32
    torch.manual_seed(0)
    net = CLIP(VisionTransformer(16, 8, 64, 2, 1, 512), TextTransformer(VOCABULARY, CONTEXT, 64, 2, 1, 512)).eval()
    out = net(images(count), *packed(texts([6] * count)))
    logits = out.scale * out.image @ out.text.T
    labels = torch.arange(count)
    loss = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    assert abs(loss.item() - math.log(count)) < 0.5


def test_the_scale_is_capped_and_can_fall_again() -> None:
    """Past the cap an exponential in the loss would blow up; a clamp in the forward pass alone would have no gradient."""
    net = tiny()
    assert net.scale.item() == pytest.approx(1 / 0.07)
    with torch.no_grad():
        net.logit_scale.fill_(math.log(300))
    net.train()
    scale = net.scale
    assert scale.item() == pytest.approx(100)
    scale.backward()  # a loss that grows with the scale
    assert net.logit_scale.grad is not None
    assert net.logit_scale.grad > 0
    torch.optim.SGD([net.logit_scale], lr=1e-3).step()
    assert net.scale.item() < 99


def test_a_bias_is_learned_where_it_is_wanted() -> None:
    """The sigmoid loss needs one; the paper's has none to train or to save."""
    assert "logit_bias" not in tiny().state_dict()
    net = tiny(scale=10.0, bias=-10.0)
    bias = net(images(1), *packed(texts([3]))).bias
    assert bias is net.logit_bias
    assert bias.item() == -10.0
    assert bias.requires_grad


# --- frozen towers --------------------------------------------------------------------------------------------------


class Normed(VisionTransformer):
    """With what a trunk changes without gradients, running statistics, and with dropout."""

    def __init__(self) -> None:
        super().__init__(16, 8, 32, 1, 4, EMBED_DIM)
        self.statistics = nn.Sequential(nn.BatchNorm1d(32), nn.Dropout(0.5))

    def trunk(self, images: Tensor) -> Tensor:
        return self.statistics(super().trunk(images))


def test_a_frozen_tower_trains_its_projection_alone() -> None:
    """Weights, running statistics or dropout of a locked tower that still move would make it none (LiT)."""
    torch.manual_seed(0)
    net = CLIP(Normed(), text_transformer(), freeze_image=True).train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    pictures, text = images(4), packed(texts())
    assert torch.equal(net.image.features(pictures), net.image.features(pictures))  # no dropout
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=0.1)
    out = net(pictures, *text)
    F.cross_entropy(out.scale * out.image @ out.text.T, torch.arange(4)).backward()
    optimizer.step()
    moved = {name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name for name in moved if name.startswith("image.")} == {"image.projection.weight"}
    assert {"text.tokens.weight", "logit_scale"} <= moved


def test_a_frozen_tower_stays_in_evaluation_when_training_goes_on() -> None:
    """Lightning puts the whole network into training after each validation."""
    net = CLIP(Normed(), text_transformer(), freeze_image=True, freeze_text=True)
    for mode in (False, True):
        net.train(mode)
        assert net.image.training is net.image.projection.training is net.text.projection.training is mode
        assert not any(module.training for module in (net.image.statistics, net.image.encoder, net.text.encoder))
    assert not net.text.features(*packed(texts())).requires_grad
    assert net.text(*packed(texts())).requires_grad


def test_a_resnet_cannot_be_frozen() -> None:
    """Its projection is part of the pool: nothing would learn, and nobody would know."""
    with pytest.raises(ValueError, match="no projection of its own"):
        CLIP(resnet(), text_transformer(), freeze_image=True)


# --- bad settings ---------------------------------------------------------------------------------------------------


def test_towers_of_different_spaces_are_refused() -> None:
    """Their cosine does not exist."""
    with pytest.raises(ValueError, match="the image tower's embed_dim is 24, the text tower's 32"):
        CLIP(vision_transformer(), text_transformer(embed_dim=32))


@pytest.mark.parametrize("scale", [0.0, -1.0, 101.0])
def test_a_scale_outside_of_its_range_is_refused(scale: float) -> None:
    """There is no logarithm of it, or it would be cut at the first step."""
    with pytest.raises(ValueError, match="a scale lies in"):
        tiny(scale=scale)


def test_images_that_the_towers_cannot_divide_are_refused() -> None:
    """Pixels at the border would be left out."""
    with pytest.raises(ValueError, match="no whole number of patches"):
        VisionTransformer(20, 8, 32, 1, 4, EMBED_DIM)
    with pytest.raises(ValueError, match="no multiple of the network's stride"):
        ModifiedResNet(48, (1, 1, 1, 1), 8, EMBED_DIM)


@pytest.mark.parametrize("image", [vision_transformer, resnet])
def test_example_inputs_fit(image: type) -> None:
    """The sizes' benchmark and the summary feed them."""
    net = CLIP(image(), text_transformer()).eval()
    assert isinstance(net.image, Tower)
    out = net(*net.example_inputs(2))
    assert out.image.shape == out.text.shape == (2, EMBED_DIM)


def test_the_scale_is_capped_in_evaluation_too() -> None:
    """Breaks if the last step's growth past the cap is what a test multiplies cosines by, or a test changes weights."""
    net = CLIP(vision_transformer(), text_transformer()).eval()
    with torch.no_grad():
        net.logit_scale.fill_(5.0)
    assert float(net.scale) == pytest.approx(100)
    assert float(net.logit_scale) == 5.0


def test_pure_bf16_is_embedded() -> None:
    """Breaks if the pixels keep another precision than the weights."""
    net = CLIP(vision_transformer(), text_transformer()).bfloat16().eval()
    assert net.embed_images(torch.rand(2, 3, net.image.image_size, net.image.image_size)).isfinite().all()
