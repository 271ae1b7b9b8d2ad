from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification, ViTModel, VivitConfig, VivitForVideoClassification

from lightning_vl.errors import UserError
from lightning_vl.nn.embeddings import TubeletEmbedding, UniformFrameEmbedding
from lightning_vl.papers.vit.model import ViT
from lightning_vl.papers.vivit.convert import (
    ImageInitialisation,
    Report,
    VideoInitialisation,
    central_frame_filter,
    from_transformers,
    inflate_filter,
    to_transformers,
)
from lightning_vl.papers.vivit.model import (
    AveragePool,
    FactorisedDotProduct,
    FactorisedEncoder,
    FactorisedSelfAttention,
    SpatioTemporal,
    ViViT,
)

MODELS = [SpatioTemporal, FactorisedEncoder, FactorisedSelfAttention, FactorisedDotProduct, AveragePool]
FRAMES, TUBELET, DIM, LAYERS, HEADS, MLP_DIM = 6, (3, 8, 8), 24, 2, 4, 48


def randomise(module: nn.Module) -> None:
    """Zeros and ones, as in a fresh head, norm or class token, would hide what is left out or swapped."""
    torch.manual_seed(1)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)


def image_model(image_size: int = 16, layers: int = LAYERS, dim: int = DIM) -> ViT:
    vit = ViT(image_size, 8, dim, layers, HEADS, MLP_DIM, classes=7)
    randomise(vit)
    return vit.eval()


def build(model: type[ViViT], image_size: int = 16, frames: int = FRAMES, classes: int = 5) -> ViViT:
    torch.manual_seed(2)
    embedding = TubeletEmbedding(frames, image_size, TUBELET, DIM)
    return model(embedding, LAYERS, HEADS, MLP_DIM, classes={"class": classes}).eval()


def save(weights: dict[str, Tensor], path: Path) -> str:
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)
    return str(path)


@pytest.fixture
def image_file(tmp_path: Path) -> str:
    return save(image_model().state_dict(), tmp_path / "vit.safetensors")


# --- what the weights compute ---------------------------------------------------------------------------------------


def test_filter_inflation_sees_a_still_video_as_the_image(image_file: str) -> None:
    """Without the division by t the tokens would be t times too large."""
    net, vit = build(AveragePool), image_model()
    ImageInitialisation(image_file, "filter_inflation").apply(net)
    (images,) = vit.example_inputs(2)
    still = images.unsqueeze(1).expand(-1, FRAMES, -1, -1, -1)
    torch.testing.assert_close(net(still).features, vit(images).features, atol=1e-5, rtol=0)


def test_central_frame_sees_the_middle_of_each_tubelet(image_file: str) -> None:
    """Of 3 frames the second, of 2 the second as well; the others must not count."""
    net, vit = build(AveragePool), image_model()
    ImageInitialisation(image_file, "central_frame").apply(net)
    (video,) = net.example_inputs(2)
    expected = torch.stack([vit(video[:, frame]).features for frame in (1, 4)]).mean(dim=0)
    torch.testing.assert_close(net(video).features, expected, atol=1e-5, rtol=0)
    two = central_frame_filter(torch.ones(1, 3, 8, 8), frames=2)
    assert two.sum(dim=(0, 1, 3, 4)).tolist() == [0, 3 * 64]


def test_random_tubelets_stay_as_they_were(image_file: str) -> None:
    """Filter and bias stay fresh together; the rest is loaded."""
    net, before = build(SpatioTemporal), build(SpatioTemporal).state_dict()
    report = ImageInitialisation(image_file, "random").apply(net)
    assert torch.equal(net.embedding.weight, before["embedding.weight"])
    assert {"embedding.weight", "embedding.bias"} <= set(report.fresh) & set(report.dropped)
    assert torch.equal(net.class_token, image_model().class_token)


def test_uniform_frames_take_the_image_filter_as_it_is(image_file: str) -> None:
    """2-D patches need no third axis."""
    embedding = UniformFrameEmbedding(frames=8, image_size=16, sampled_frames=3, patch_size=8, dim=DIM)
    net, vit = AveragePool(embedding, LAYERS, HEADS, MLP_DIM, classes={"class": 5}).eval(), image_model()
    report = ImageInitialisation(image_file).apply(net)
    (video,) = net.example_inputs(2)
    expected = torch.stack([vit(video[:, frame]).features for frame in (2, 4, 6)]).mean(dim=0)
    torch.testing.assert_close(net(video).features, expected, atol=1e-5, rtol=0)
    assert "embedding.weight" in report.loaded


def test_factorised_encoder_takes_the_image_model_in_space(image_file: str) -> None:
    """Its frames' class tokens must be the image model's; its temporal encoder stays as built."""
    net, before, vit = build(FactorisedEncoder), build(FactorisedEncoder).state_dict(), image_model()
    report = ImageInitialisation(image_file, "filter_inflation").apply(net)
    (images,) = vit.example_inputs(2)
    tokens = net.embedding(images.unsqueeze(1).expand(-1, FRAMES, -1, -1, -1))
    torch.testing.assert_close(net.encode_frames(tokens)[:, 1], vit(images).features, atol=1e-5, rtol=0)
    temporal = [name for name in before if name.startswith("temporal_")]
    assert all(torch.equal(net.state_dict()[name], before[name]) for name in temporal)
    assert set(report.fresh) == {*temporal, "head.weight", "head.bias"}


def test_spatio_temporal_tiles_the_positions(image_file: str) -> None:
    """Every time has the image's positions, the class token its own row."""
    net, vit = build(SpatioTemporal), image_model()
    report = ImageInitialisation(image_file).apply(net)
    class_row, *times = net.positions.split([1, 4, 4], dim=1)
    assert torch.equal(class_row, vit.positions[:, :1])
    assert all(torch.equal(time, vit.positions[:, 1:]) for time in times)
    assert report.tiled == ["positions"]
    assert torch.equal(net.encoder.blocks[1].mlp.output.weight, vit.encoder.blocks[1].mlp.output.weight)


@pytest.mark.parametrize("model", [FactorisedSelfAttention, FactorisedDotProduct])
def test_models_without_class_token_drop_it(model: type[ViViT], image_file: str) -> None:
    """Its row of the positions goes with it, or all positions would be shifted by one."""
    net, vit = build(model), image_model()
    report = ImageInitialisation(image_file).apply(net)
    assert torch.equal(net.positions, vit.positions[:, 1:].repeat(1, 2, 1))
    assert set(report.dropped) == {"head.weight", "head.bias", "class_token", "positions[class token]"}


def test_factorised_self_attention_takes_the_image_model_in_space(image_file: str) -> None:
    """Started from an image model it must compute that model's blocks, with the temporal branch still a no-op."""
    net, before, vit = build(FactorisedSelfAttention), build(FactorisedSelfAttention).state_dict(), image_model()
    report = ImageInitialisation(image_file, "filter_inflation").apply(net)
    (images,) = vit.example_inputs(2)
    tokens = vit.embedding(images) + vit.positions[:, 1:]
    expected = vit.encoder(tokens).mean(dim=1)
    still = images.unsqueeze(1).expand(-1, FRAMES, -1, -1, -1)
    torch.testing.assert_close(net(still).features, expected, atol=1e-5, rtol=0)
    temporal = [name for name in before if "_time." in name]
    assert all(torch.equal(net.state_dict()[name], before[name]) for name in temporal)
    assert set(report.fresh) == {*temporal, "head.weight", "head.bias"}


@pytest.mark.parametrize("model", MODELS)
def test_positions_are_resized_for_another_crop(model: type[ViViT], tmp_path: Path) -> None:
    """24 pixels are a 3 x 3 grid: its corners are those of the 2 x 2 grid that was trained."""
    path = save(image_model(image_size=16).state_dict(), tmp_path / "vit.safetensors")
    net, vit = build(model, image_size=24), image_model(image_size=16)
    report = ImageInitialisation(path).apply(net)
    name = "spatial_positions" if issubclass(model, AveragePool) else "positions"
    assert report.resized == [name]
    one_time = getattr(net, name)[0, -9:]
    torch.testing.assert_close(one_time[[0, 2, 6, 8]], vit.positions[0, 1:])


@pytest.mark.parametrize("model", MODELS)
def test_report_accounts_for_every_weight(model: type[ViViT], image_file: str) -> None:
    """What the report does not name, nobody would miss."""
    net = build(model)
    report = ImageInitialisation(image_file).apply(net)
    loaded = {*report.loaded, *report.inflated, *report.tiled, *report.resized}
    assert loaded | set(report.fresh) == set(net.state_dict())
    assert not loaded & set(report.fresh)
    assert {"head.weight", "head.bias"} <= set(report.dropped)


def test_report_reads_as_text(image_file: str) -> None:
    """One line each of what became of the weights, blocks gathered."""
    lines = str(ImageInitialisation(image_file).apply(build(FactorisedSelfAttention))).splitlines()
    assert lines == [
        f"started from {image_file}",
        "  loaded   embedding.bias, blocks.*.norm_space (4), blocks.*.attention_space (8), blocks.*.norm_mlp (4), "
        "blocks.*.mlp (8), norm.weight, norm.bias",
        "  inflated embedding.weight",
        "  tiled    positions",
        "  fresh    head.weight, head.bias, blocks.*.norm_time (4), blocks.*.attention_time (8)",
        "  dropped  class_token, head.bias, head.weight, positions[class token]",
    ]


# --- whose files are read -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_starts_from_timm(model: type[ViViT], tmp_path: Path) -> None:
    """timm's names, in a .pt file."""
    theirs = timm.models.vision_transformer.VisionTransformer(
        img_size=16, patch_size=8, embed_dim=DIM, depth=LAYERS, num_heads=HEADS, mlp_ratio=2, num_classes=7
    )
    randomise(theirs)
    torch.save(theirs.state_dict(), tmp_path / "timm.pt")
    net = build(model)
    ImageInitialisation(str(tmp_path / "timm.pt")).apply(net)
    state = net.state_dict()
    norm = next(name for name in state if name.endswith("encoder.norm.weight") or name == "norm.weight")
    assert torch.equal(state[norm], theirs.norm.weight)
    assert torch.equal(net.embedding.weight[:, :, 1], theirs.patch_embed.proj.weight)


@pytest.mark.parametrize("head", [True, False])
def test_starts_from_transformers(head: bool, tmp_path: Path) -> None:
    """A folder that save_pretrained wrote, with a classifier or with a pooler; both are dropped."""
    config = ViTConfig(
        image_size=16,
        patch_size=8,
        hidden_size=DIM,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=MLP_DIM,
    )
    theirs = (ViTForImageClassification if head else ViTModel)(config)
    randomise(theirs)
    theirs.save_pretrained(tmp_path)
    net = build(SpatioTemporal)
    report = ImageInitialisation(str(tmp_path / "model.safetensors")).apply(net)
    assert set(report.dropped) == ({"head.weight", "head.bias"} if head else {"pre_logits.weight", "pre_logits.bias"})
    vit = theirs.vit if head else theirs
    assert torch.equal(net.class_token, vit.embeddings.cls_token)
    assert torch.equal(net.encoder.blocks[1].attention.output.weight, vit.layers[1].attention.o_proj.weight)


def test_starts_from_a_checkpoint_of_a_run(tmp_path: Path) -> None:
    """Lightning keeps the network under "net." beside things that are no weights of it."""
    vit = image_model()
    state = {f"net.{name}": tensor for name, tensor in vit.state_dict().items()} | {"metric.total": torch.zeros(())}
    torch.save(
        {"state_dict": state, "epoch": 3, "hyper_parameters": {"net": {"class_path": "ViT"}}}, tmp_path / "a.ckpt"
    )
    net = build(AveragePool)
    ImageInitialisation(str(tmp_path / "a.ckpt")).apply(net)
    assert torch.equal(net.spatial_class_token, vit.class_token)


def test_image_model_without_class_token(tmp_path: Path) -> None:
    """timm has ViTs that average: token and row stay as the network built them, and the report says so."""
    theirs = timm.models.vision_transformer.VisionTransformer(
        img_size=16,
        patch_size=8,
        embed_dim=DIM,
        depth=LAYERS,
        num_heads=HEADS,
        mlp_ratio=2,
        num_classes=0,
        class_token=False,
        global_pool="avg",
        fc_norm=False,
    )
    randomise(theirs)
    path = save(theirs.state_dict(), tmp_path / "gap.safetensors")
    net, before = build(AveragePool), build(AveragePool)
    report = ImageInitialisation(path).apply(net)
    assert torch.equal(net.spatial_positions[:, 1:], theirs.pos_embed)
    assert torch.equal(net.spatial_positions[:, :1], before.spatial_positions[:, :1])
    assert {"spatial_class_token", "spatial_positions[class token]"} <= set(report.fresh)


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vit", "named"),
    [
        (image_model(layers=3), r"encoder\.blocks\.2\..*, which SpatioTemporal does not have"),
        (image_model(layers=1), r"lacks encoder\.blocks\.1\.norm_attention\.weight"),
        (image_model(dim=32), r"has class_token of \(1, 1, 32\)"),
        (ViT(16, 4, DIM, LAYERS, HEADS, MLP_DIM, classes=7), r"has embedding\.weight of \(24, 3, 3, 4, 4\)"),
    ],
)
def test_other_sizes_are_refused_by_name(vit: ViT, named: str, tmp_path: Path) -> None:
    """Loading what happens to fit would start from half a model; nothing may have been changed."""
    net, before = build(SpatioTemporal), build(SpatioTemporal).state_dict()
    path = save(vit.state_dict(), tmp_path / "vit.safetensors")
    with pytest.raises(UserError, match=named):
        ImageInitialisation(path).apply(net)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_unknown_weights_are_refused_by_name(tmp_path: Path) -> None:
    """Register tokens, say: the image model would not be itself without them."""
    weights = image_model().state_dict() | {"register_tokens": torch.zeros(1, 4, DIM)}
    with pytest.raises(UserError, match="register_tokens"):
        ImageInitialisation(save(weights, tmp_path / "vit.safetensors")).apply(build(SpatioTemporal))


def test_positions_must_be_a_square(tmp_path: Path) -> None:
    """Which grid they are of cannot be known otherwise."""
    weights = image_model().state_dict()
    weights["positions"] = torch.zeros(1, 7, DIM)
    with pytest.raises(UserError, match="positions of 6 patches"):
        ImageInitialisation(save(weights, tmp_path / "vit.safetensors")).apply(build(SpatioTemporal))


def test_weights_of_something_else_are_refused(tmp_path: Path) -> None:
    """A ViViT's, or a text model's."""
    for weights in ({"bert.weight": torch.zeros(3)}, build(SpatioTemporal).state_dict()):
        with pytest.raises(UserError, match="not those of an image ViT"):
            ImageInitialisation(save(weights, tmp_path / "other.safetensors")).apply(build(SpatioTemporal))


class Code:
    """Pickled, it is a call."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.file,))


def test_unreadable_files_are_refused_by_name(tmp_path: Path) -> None:
    """Each one line of what is wrong with which file; a pickle that carries code is not run."""
    good = tmp_path / "good.pt"
    torch.save(image_model().state_dict(), good)
    (tmp_path / "truncated.pt").write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    (tmp_path / "truncated.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{")
    (tmp_path / "empty.pt").touch()
    (tmp_path / "text.pt").write_text("no weights here")
    torch.save({"weight": Code(tmp_path / "ran")}, tmp_path / "code.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    expected = {
        "missing.pt": "does not exist",
        "": "is a folder",
        "truncated.pt": "is broken",
        "truncated.safetensors": "is broken",
        "empty.pt": "is broken",
        "text.pt": "something else than weights",
        "code.pt": "something else than weights",
        "list.pt": "no state dict",
    }
    for name, reason in expected.items():
        with pytest.raises(UserError) as error:
            ImageInitialisation(str(tmp_path / name)).apply(build(SpatioTemporal))
        assert reason in error.value.what
        assert name in error.value.what
    assert not (tmp_path / "ran").exists()


@pytest.mark.filterwarnings("error")
def test_on_the_meta_device_only_names_and_shapes_are_checked(image_file: str, tmp_path: Path) -> None:
    """Costs of an experiment that starts from weights are counted there: quietly, and what is refused is refused."""
    other = save(image_model(layers=1).state_dict(), tmp_path / "other.safetensors")
    with torch.device("meta"):
        net = build(SpatioTemporal, image_size=24)
        assert ImageInitialisation(image_file).apply(net).resized == ["positions"]
        with pytest.raises(UserError, match="lacks"):
            ImageInitialisation(other).apply(net)


# --- from one ViViT to another --------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_starts_from_the_same_model(model: type[ViViT], tmp_path: Path) -> None:
    """EPIC-KITCHENS from Kinetics: all but the head, which has another number of classes."""
    trained = build(model, classes=9)
    randomise(trained)
    net = build(model, classes=5)
    report = VideoInitialisation(save(trained.state_dict(), tmp_path / "vivit.safetensors")).apply(net)
    (video,) = net.example_inputs(2)
    torch.testing.assert_close(net(video).features, trained(video).features)
    assert report.fresh == report.dropped == ["head.weight", "head.bias"]
    assert not net.head.weight.any()

    same = build(model, classes=9)
    report = VideoInitialisation(str(tmp_path / "vivit.safetensors")).apply(same)
    torch.testing.assert_close(same(video).logits, trained(video).logits)
    assert not report.fresh


@pytest.mark.parametrize("model", MODELS)
def test_starts_from_the_same_model_at_another_crop(model: type[ViViT], tmp_path: Path) -> None:
    """Something-Something from Kinetics: positions resized at each time by itself."""
    trained = build(model, image_size=16)
    randomise(trained)
    net = build(model, image_size=24)
    report = VideoInitialisation(save(trained.state_dict(), tmp_path / "vivit.safetensors")).apply(net)
    name = "spatial_positions" if issubclass(model, AveragePool) else "positions"
    assert report.resized == [name]
    times = 1 if issubclass(model, AveragePool) else 2
    old, new = getattr(trained, name)[0], getattr(net, name)[0]
    ahead = len(old) - times * 4
    torch.testing.assert_close(new[:ahead], old[:ahead])
    for time in range(times):
        corners = new[ahead + 9 * time :][[0, 2, 6, 8]]
        torch.testing.assert_close(corners, old[ahead + 4 * time :][:4])


def test_another_model_or_length_is_refused(tmp_path: Path) -> None:
    """A baseline's weights in the factorised encoder, or half as many times."""
    path = save(build(AveragePool).state_dict(), tmp_path / "pool.safetensors")
    with pytest.raises(UserError, match="lacks temporal_class_token"):
        VideoInitialisation(path).apply(build(FactorisedEncoder))
    path = save(build(FactorisedEncoder).state_dict(), tmp_path / "encoder.safetensors")
    with pytest.raises(UserError, match=r"temporal_positions of \(1, 3, 24\)"):
        VideoInitialisation(path).apply(build(FactorisedEncoder, frames=12))
    path = save(build(SpatioTemporal).state_dict(), tmp_path / "joint.safetensors")
    with pytest.raises(UserError, match="no square grid"):
        VideoInitialisation(path).apply(build(SpatioTemporal, frames=12))
    path = save(image_model().state_dict(), tmp_path / "vit.safetensors")
    with pytest.raises(UserError, match="filters for images"):
        VideoInitialisation(path).apply(build(SpatioTemporal))


# --- transformers' ViViT --------------------------------------------------------------------------------------------


@pytest.fixture
def theirs() -> VivitForVideoClassification:
    config = VivitConfig(
        image_size=16,
        num_frames=FRAMES,
        tubelet_size=list(TUBELET),
        hidden_size=DIM,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=MLP_DIM,
        num_labels=5,
    )
    net = VivitForVideoClassification(config).eval()
    randomise(net)
    return net


def test_equals_transformers(theirs: VivitForVideoClassification, tmp_path: Path) -> None:
    """Released weights must compute the same here, from the names in memory and from those in files."""
    theirs.save_pretrained(tmp_path)
    (video,) = build(SpatioTemporal).example_inputs(2)
    expected = theirs(video).logits
    for weights in (theirs.state_dict(), load_file(tmp_path / "model.safetensors")):
        net = build(SpatioTemporal)
        net.load_state_dict(from_transformers(weights))
        torch.testing.assert_close(net(video).logits["class"], expected, atol=1e-5, rtol=0)
    net = build(SpatioTemporal)
    VideoInitialisation(str(tmp_path / "model.safetensors")).apply(net)
    torch.testing.assert_close(net(video).logits["class"], expected, atol=1e-5, rtol=0)


def test_goes_back_to_transformers_bit_for_bit(theirs: VivitForVideoClassification, tmp_path: Path) -> None:
    """Files that go through here and back must be the same files, and load there."""
    theirs.save_pretrained(tmp_path)
    file = load_file(tmp_path / "model.safetensors")
    again = to_transformers(from_transformers(file))
    assert again.keys() == file.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in file.items())

    net = build(SpatioTemporal)
    randomise(net)
    save_file(to_transformers(net.state_dict()), tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = VivitForVideoClassification.from_pretrained(tmp_path).eval()
    (video,) = net.example_inputs(2)
    torch.testing.assert_close(loaded(video).logits, net(video).logits["class"], atol=1e-5, rtol=0)


def test_half_a_state_dict_of_transformers_is_refused(theirs: VivitForVideoClassification) -> None:
    """Query, key and value become one matrix: without one of them there is none."""
    weights = theirs.state_dict()
    del weights["vivit.layers.1.attention.k_proj.weight"]
    with pytest.raises(UserError, match=r"encoder\.blocks\.1\.attention\.key\.weight"):
        from_transformers(weights)


def test_inflation_divides_by_the_number_of_frames() -> None:
    """Eq. 8."""
    weight = torch.randn(4, 3, 2, 2)
    inflated = inflate_filter(weight, frames=5)
    assert inflated.shape == (4, 3, 5, 2, 2)
    torch.testing.assert_close(inflated.sum(dim=2), weight)


def test_empty_report_says_where_from() -> None:
    """Lines without anything are left out."""
    assert str(Report("a.pt", loaded=["x"])) == "started from a.pt\n  loaded   x"
