"""Weights in and out: timm, transformers and the official .npz give the same logits here; a start resizes what it must."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification, ViTModel

from lightning_vl.errors import UserError
from lightning_vl.nn.positions import RelativePositions, SinCosPositions, TwoDimensionalPositions, resize_positions
from lightning_vl.papers.vit.bit import BiT, ResNetStem
from lightning_vl.papers.vit.convert import (
    BiTInitialisation,
    ViTInitialisation,
    from_timm,
    from_transformers,
    load_vit,
    to_timm,
    to_transformers,
)
from lightning_vl.papers.vit.model import ViT
from lightning_vl.weights import read_weights

DIM, HEADS = 128, 2  # heads of width 64, which is what files without a number of heads are taken to have


def randomise(module: nn.Module) -> None:
    """Zeros and ones, as in a fresh head, norm or class token, would hide what is left out or swapped."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.1)


def timm_vit(**more: object) -> VisionTransformer:
    """A tiny one with random weights."""
    settings = {"img_size": 32, "patch_size": 8, "embed_dim": DIM, "depth": 2, "num_heads": HEADS, "num_classes": 5}
    vit = VisionTransformer(**(settings | more)).eval()
    randomise(vit)
    return vit


def transformers_config() -> ViTConfig:
    """Of the same sizes; the library's own default epsilon."""
    return ViTConfig(
        image_size=32,
        patch_size=8,
        hidden_size=DIM,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        intermediate_size=4 * DIM,
        num_labels=5,
    )


def build(image_size: int = 32, layers: int = 2, classes: int = 7, **more: object) -> ViT:
    """Ours."""
    return ViT(image_size, 8, DIM, layers, HEADS, 4 * DIM, classes, **more).eval()


def save(weights: dict[str, Tensor], path: Path) -> str:
    """As safetensors."""
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)
    return str(path)


def images() -> Tensor:
    """Two, of 32 px."""
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- timm -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooled", [False, True])
def test_equals_timm_and_back(pooled: bool, tmp_path: Path) -> None:
    """Weights that timm trained must compute the same here, and go back unchanged into timm's own model."""
    settings = {"class_token": False, "global_pool": "avg", "fc_norm": False} if pooled else {}
    theirs = timm_vit(**settings)
    ours = load_vit(save(theirs.state_dict(), tmp_path / "timm.safetensors")).eval()
    torch.testing.assert_close(ours(images()).logits, theirs(images()), atol=1e-5, rtol=0)
    again = timm_vit(**settings)
    nn.init.zeros_(again.head.weight)
    again.load_state_dict(to_timm(ours.state_dict()))
    assert torch.equal(again(images()), theirs(images()))
    assert same(to_timm(ours.state_dict()), theirs.state_dict())
    assert same(from_timm(to_timm(ours.state_dict())), ours.state_dict())


def test_a_hybrid_equals_timms(tmp_path: Path) -> None:
    """The ResNet's padding, its activations and the order of its feature map as tokens."""
    theirs = timm.create_model(
        "vit_tiny_r_s16_p8_224", img_size=64, embed_dim=DIM, depth=1, num_heads=HEADS, num_classes=5
    )
    backbone = ResNetStem((1, 1)).trunk  # the model above has a stem without stages; a hybrid of the paper has both
    theirs.patch_embed.backbone = backbone
    theirs.patch_embed.proj = nn.Conv2d(backbone.num_features, DIM, 1)
    theirs.pos_embed = nn.Parameter(torch.zeros(1, 1 + 8 * 8, DIM))
    theirs.patch_embed.grid_size = (8, 8)
    theirs.eval()
    randomise(theirs)
    ours = load_vit(save(theirs.state_dict(), tmp_path / "hybrid.safetensors")).eval()
    assert (ours.image_size, ours.embedding.grid) == (64, (8, 8))
    pictures = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours(pictures).logits, theirs(pictures), atol=1e-5, rtol=0)
    assert same(to_timm(ours.state_dict()), theirs.state_dict())


def test_what_timm_has_no_place_for_is_refused_by_name() -> None:
    """Layer scale in, a pre-training head out: dropped silently, the logits would be others."""
    with pytest.raises(UserError, match=r"blocks\.0\.ls1\.gamma"):
        from_timm(timm_vit(init_values=0.1).state_dict())
    with pytest.raises(UserError, match=r"pre_logits\.weight is no weight of a ViT of timm"):
        to_timm(build(pre_logits=True).state_dict())


# --- transformers ---------------------------------------------------------------------------------------------------


def test_equals_transformers_and_back(tmp_path: Path) -> None:
    """Weights that transformers trained must compute the same here, and go back unchanged into a file it reads whole."""
    theirs = ViTForImageClassification(transformers_config()).eval()
    randomise(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_vit(str(tmp_path / "theirs" / "model.safetensors")).eval()
    assert ours.encoder.norm.eps == 1e-12  # from the config.json beside the weights
    torch.testing.assert_close(ours(images()).logits, theirs(images()).logits, atol=1e-5, rtol=0)
    assert same(from_transformers(theirs.state_dict()), ours.state_dict())  # the names in memory
    assert same(from_transformers(to_transformers(ours.state_dict())), ours.state_dict())

    folder = tmp_path / "ours"
    folder.mkdir()
    theirs.config.save_pretrained(folder)
    save_file(to_transformers(ours.state_dict()), folder / "model.safetensors", metadata={"format": "pt"})
    again, loading = ViTForImageClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(loading[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert same(again.state_dict(), theirs.state_dict())


def test_a_pooler_is_the_hidden_layer_of_the_pre_training_head(tmp_path: Path) -> None:
    """The features of ImageNet-21k's models in transformers; without a head the logits are one zero."""
    theirs = ViTModel(transformers_config()).eval()
    randomise(theirs)
    ours = load_vit(save(theirs.state_dict(), tmp_path / "model.safetensors")).eval()
    torch.testing.assert_close(ours(images()).features, theirs(images()).pooler_output, atol=1e-5, rtol=0)
    assert not ours(images()).logits.any()


# --- the official .npz ----------------------------------------------------------------------------------------------


def arrays(vit: VisionTransformer, mha: int, mlp: int, norm: int, positions: str) -> dict[str, np.ndarray]:
    """timm's weights as the official code names and lays them out."""

    def linear(name: str, module: nn.Linear) -> dict[str, np.ndarray]:
        return {f"{name}/kernel": module.weight.detach().numpy().T, f"{name}/bias": module.bias.detach().numpy()}

    def layer_norm(name: str, module: nn.LayerNorm) -> dict[str, np.ndarray]:
        return {f"{name}/scale": module.weight.detach().numpy(), f"{name}/bias": module.bias.detach().numpy()}

    projection = vit.patch_embed.proj
    out = {
        "cls": vit.cls_token.detach().numpy(),
        positions: vit.pos_embed.detach().numpy(),
        "embedding/kernel": projection.weight.detach().numpy().transpose(2, 3, 1, 0),
        "embedding/bias": projection.bias.detach().numpy(),
        **layer_norm("Transformer/encoder_norm", vit.norm),
        **linear("head", vit.head),
    }
    for number, block in enumerate(vit.blocks):
        name = f"Transformer/encoderblock_{number}"
        attention = f"{name}/MultiHeadDotProductAttention_{mha}"
        weights, biases = block.attn.qkv.weight.detach().numpy(), block.attn.qkv.bias.detach().numpy()
        for part, weight, bias in zip(
            ("query", "key", "value"), np.split(weights, 3), np.split(biases, 3), strict=True
        ):
            out[f"{attention}/{part}/kernel"] = weight.T.reshape(DIM, HEADS, -1)
            out[f"{attention}/{part}/bias"] = bias.reshape(HEADS, -1)
        output = block.attn.proj
        out[f"{attention}/out/kernel"] = output.weight.detach().numpy().T.reshape(HEADS, -1, DIM)
        out[f"{attention}/out/bias"] = output.bias.detach().numpy()
        out |= layer_norm(f"{name}/LayerNorm_0", block.norm1) | layer_norm(f"{name}/LayerNorm_{norm}", block.norm2)
        out |= linear(f"{name}/MlpBlock_{mlp}/Dense_0", block.mlp.fc1)
        out |= linear(f"{name}/MlpBlock_{mlp}/Dense_1", block.mlp.fc2)
    return out


@pytest.mark.parametrize("layout", ["original", "params", "opt/target", "positions of patches alone"])
def test_equals_the_official_npz_as_timm_reads_it(layout: str, tmp_path: Path) -> None:
    """timm's reader is another's work: a transposed kernel or swapped norm here would not be there too."""
    alone = layout == "positions of patches alone"  # big_vision's: added ahead of the class token
    prefix = {"params": "params/", "opt/target": "opt/target/", "positions of patches alone": "params/"}.get(layout, "")
    numbers = (1, 3, 2) if layout in ("original", "opt/target") else (0, 0, 1)
    # for timm, numbers of the newer kind go with the newer name of the positions
    positions = "Transformer/posembed_input/pos_embedding" if numbers[0] else "pos_embedding"
    written = timm_vit(act_layer=lambda: nn.GELU(approximate="tanh"), no_embed_class=alone)
    file = tmp_path / "vit.npz"
    contents = {prefix + name: array for name, array in arrays(written, *numbers, positions).items()}
    np.savez(file, **contents, **({"opt/state/step": np.zeros(1)} if layout == "opt/target" else {}))

    theirs = timm_vit(act_layer=lambda: nn.GELU(approximate="tanh"), no_embed_class=alone)
    nn.init.zeros_(theirs.blocks[0].attn.qkv.weight)
    theirs.load_pretrained(str(file))
    assert torch.equal(theirs(images()), written(images()))
    ours = load_vit(str(file)).eval()
    assert ours.encoder.blocks[0].attention.heads == HEADS
    torch.testing.assert_close(ours(images()).logits, theirs(images()), atol=1e-5, rtol=0)


def test_newer_numbers_under_the_older_name_of_the_positions(tmp_path: Path) -> None:
    """timm's reader does not know this mixture; the weights must be those of the older numbers."""
    position = "Transformer/posembed_input/pos_embedding"
    for name, numbers, prefix in (("older", (1, 3, 2), ""), ("newer", (0, 0, 1), "params/")):
        contents = arrays(timm_vit(), *numbers, position)
        np.savez(tmp_path / f"{name}.npz", **{prefix + key: array for key, array in contents.items()})
    older, newer = (load_vit(str(tmp_path / f"{name}.npz")) for name in ("older", "newer"))
    assert same(older.state_dict(), newer.state_dict())


def test_the_npz_of_imagenet_21k_has_a_hidden_layer_in_its_head(tmp_path: Path) -> None:
    """timm drops it; transposed, or left out, the representation would be another."""
    contents = arrays(timm_vit(), 1, 3, 2, "Transformer/posembed_input/pos_embedding")
    rng = np.random.default_rng(0)
    kernel, bias = rng.normal(size=(DIM, DIM)).astype(np.float32), rng.normal(size=DIM).astype(np.float32)
    np.savez(tmp_path / "plain.npz", **contents)
    np.savez(tmp_path / "hidden.npz", **contents, **{"pre_logits/kernel": kernel, "pre_logits/bias": bias})
    plain, hidden = (load_vit(str(tmp_path / f"{name}.npz")).eval() for name in ("plain", "hidden"))
    with torch.no_grad():
        expected = torch.tanh(plain(images()).features @ torch.from_numpy(kernel) + torch.from_numpy(bias))
    torch.testing.assert_close(hidden(images()).features, expected, atol=1e-5, rtol=0)


def test_bad_npz_files_are_refused(tmp_path: Path) -> None:
    """A truncated download, a pickle among the arrays, another model: two lines, and no code is run."""
    contents = arrays(timm_vit(), 1, 3, 2, "Transformer/posembed_input/pos_embedding")
    whole, broken, pickled, other = (tmp_path / f"{name}.npz" for name in ("whole", "broken", "pickled", "other"))
    np.savez(whole, **contents)
    broken.write_bytes(whole.read_bytes()[:5000])
    flipped = bytearray(whole.read_bytes())
    flipped[2000] ^= 1
    (tmp_path / "flipped.npz").write_bytes(flipped)
    np.savez(pickled, **contents, extra=np.array([{"code": 1}], dtype=object))
    np.savez(other, **contents, **{"MAPHead_0/probe": np.zeros((1, 1, DIM))})
    (tmp_path / "empty.npz").write_bytes(b"")
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    for file in (broken, tmp_path / "flipped.npz", pickled, tmp_path / "empty.npz", tmp_path / "array.npz"):
        with pytest.raises(UserError, match=rf"{file.name} is broken or no file of weights"):
            load_vit(str(file))
    with pytest.raises(UserError, match=r"MAPHead_0\.probe is no weight of an official ViT"):
        load_vit(str(other))


# --- our checkpoints ------------------------------------------------------------------------------------------------


def network(**init_args: object) -> dict[str, object]:
    """What a checkpoint says of its network."""
    sizes = {"image_size": 32, "patch_size": 8, "dim": 24, "layers": 1, "heads": 3, "mlp_dim": 48, "classes": 5}
    return {"class_path": "lightning_vl.papers.vit.model.ViT", "init_args": sizes | init_args}


def checkpoint(net: nn.Module, path: Path, said: dict[str, object] | None) -> str:
    """As a run writes it."""
    content = {"state_dict": {f"net.{name}": tensor for name, tensor in net.state_dict().items()}}
    torch.save(content | ({} if said is None else {"network": said}), path)
    return str(path)


def test_a_checkpoint_builds_its_own_network(tmp_path: Path) -> None:
    """Constants, kind of positions and number of heads do not show in the shapes."""
    net = ViT(
        32,
        8,
        24,
        1,
        3,
        48,
        5,
        gelu_approximation="none",
        layer_norm_eps=1e-3,
        pooled=True,
        positions=RelativePositions(),
    ).eval()
    randomise(net)
    positions = {"class_path": "lightning_vl.nn.positions.RelativePositions", "init_args": {}}
    said = network(gelu_approximation="none", layer_norm_eps=1e-3, pooled=True, positions=positions)
    loaded = load_vit(checkpoint(net, tmp_path / "best.ckpt", said)).eval()
    assert torch.equal(loaded(images()).logits, net(images()).logits)


def test_a_checkpoint_of_before_is_read_by_its_shapes(tmp_path: Path) -> None:
    """Those written before networks were stored; where heads cannot be told, that is said."""
    net = build()
    randomise(net)
    loaded = load_vit(checkpoint(net, tmp_path / "best.ckpt", None)).eval()
    assert torch.equal(loaded(images()).logits, net(images()).logits)
    narrow = ViT(32, 8, 24, 1, 3, 48, 5)
    with pytest.raises(UserError, match="does not say how many heads"):
        load_vit(checkpoint(narrow, tmp_path / "narrow.ckpt", None))


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ({"class_path": "os.path.join", "init_args": {}}, "names os.path.join, which is no network here"),
        ({"class_path": "lightning_vl.errors.UserError", "init_args": {}}, "which is no network here"),
        ({"class_path": "lightning_vl.papers.vit.model.Gone"}, "has no attribute 'Gone'"),
        (network(depth=2), "unexpected keyword argument 'depth'"),
        (network(layers=2), r"lacks encoder\.blocks\.1"),
        (
            {
                "class_path": "lightning_vl.papers.vit.bit.BiT",
                "init_args": {"image_size": 32, "layers": [1], "classes": 2},
            },
            "holds a BiT",
        ),
    ],
)
def test_a_checkpoint_names_networks_of_ours_alone(said: dict[str, object], what: str, tmp_path: Path) -> None:
    """A file must not have any other code called, and a network that its weights do not fill is no network."""
    with pytest.raises(UserError, match=what):
        load_vit(checkpoint(ViT(32, 8, 24, 1, 3, 48, 5), tmp_path / "best.ckpt", said))


# --- starting from a file -------------------------------------------------------------------------------------------


def test_a_start_takes_the_trunk_and_leaves_the_head_at_zero(tmp_path: Path) -> None:
    """A head carried over by chance, as there are as many classes, or a trunk that stays random."""
    theirs = timm_vit(num_classes=7)
    net = build(gelu_approximation="none")
    report = ViTInitialisation(save(theirs.state_dict(), tmp_path / "timm.safetensors")).apply(net)
    with torch.no_grad():
        expected = theirs.forward_head(theirs.forward_features(images()), pre_logits=True)
    torch.testing.assert_close(net(images()).features, expected, atol=1e-5, rtol=0)
    assert not net(images()).logits.any()
    assert set(report.dropped) == set(report.fresh) == {"head.weight", "head.bias"}
    assert "positions" in report.loaded
    assert str(report).startswith("started from ")


def test_a_pre_training_head_is_dropped_whole(tmp_path: Path) -> None:
    """Its hidden layer belongs to it (Sec. 3.2)."""
    before = build(pre_logits=True)
    randomise(before)
    net = build()
    report = ViTInitialisation(save(before.state_dict(), tmp_path / "vit.safetensors")).apply(net)
    assert set(report.dropped) == {"pre_logits.weight", "pre_logits.bias", "head.weight", "head.bias"}
    assert torch.equal(net.encoder.norm.weight, before.encoder.norm.weight)


def test_another_resolution_resizes_the_positions(tmp_path: Path) -> None:
    """The class token's row must stay, a ramp over the grid stay a ramp, and a grid of the same size stay as it is."""
    before = build()
    randomise(before)
    ramp = torch.linspace(0, 1, 4)
    with torch.no_grad():
        before.positions[0, 1:, 0] = ramp.repeat_interleave(4)  # over the rows
        before.positions[0, 1:, 1] = ramp.repeat(4)
    path = save(before.state_dict(), tmp_path / "vit.safetensors")
    larger, equal = build(image_size=56), build()
    assert ViTInitialisation(path).apply(larger).resized == ["positions"]
    finer = torch.linspace(0, 1, 7)
    torch.testing.assert_close(larger.positions[0, 1:, 0], finer.repeat_interleave(7), atol=1e-6, rtol=0)
    torch.testing.assert_close(larger.positions[0, 1:, 1], finer.repeat(7), atol=1e-6, rtol=0)
    assert torch.equal(larger.positions[:, 0], before.positions[:, 0])
    assert torch.equal(larger.positions, resize_positions(before.positions, (4, 4), (7, 7)))
    assert ViTInitialisation(path).apply(equal).resized == []
    assert torch.equal(equal.positions, before.positions)


def test_other_positions_at_another_resolution(tmp_path: Path) -> None:
    """2-D tables are resized along their axis, fixed ones are those of the new grid, relative ones are refused."""
    tables = build(positions=TwoDimensionalPositions())
    with torch.no_grad():
        tables.positions.rows[0, :, 0] = torch.linspace(0, 1, 4)
    path = save(tables.state_dict(), tmp_path / "tables.safetensors")
    larger = build(image_size=56, positions=TwoDimensionalPositions())
    report = ViTInitialisation(path).apply(larger)
    assert sorted(report.resized) == ["positions.columns", "positions.rows"]
    torch.testing.assert_close(larger.positions.rows[0, :, 0], torch.linspace(0, 1, 7), atol=1e-6, rtol=0)
    assert torch.equal(larger.positions.class_row, tables.positions.class_row)

    path = save(build(positions=SinCosPositions()).state_dict(), tmp_path / "fixed.safetensors")
    larger = build(image_size=56, positions=SinCosPositions())
    expected = larger.positions.clone()
    assert "positions" in ViTInitialisation(path).apply(larger).fresh
    assert torch.equal(larger.positions, expected)

    path = save(build(positions=RelativePositions()).state_dict(), tmp_path / "relative.safetensors")
    assert ViTInitialisation(path).apply(build(positions=RelativePositions())).dropped[0].startswith("head")
    with pytest.raises(UserError, match=r"encoder\.blocks\.0\.attention\.offsets of \(1, 33, 64\)"):
        ViTInitialisation(path).apply(build(image_size=56, positions=RelativePositions()))


@pytest.mark.parametrize(
    ("net", "what"),
    [
        (build(layers=3), r"lacks encoder\.blocks\.2"),
        (build(layers=1), r"has encoder\.blocks\.1.*, which this ViT does not have"),
        (build(pooled=True), "has class_token, which this ViT does not have"),
        (ViT(32, 8, 64, 2, 1, 256, 5), r"of \(1, 1, 128\), this ViT of \(1, 1, 64\)"),
        (BiT(32, [1], 5), "use BiTInitialisation"),
    ],
)
def test_what_does_not_fit_is_an_error(net: nn.Module, what: str, tmp_path: Path) -> None:
    """Skipped, it would be a network that is half random; and the network stays as it was."""
    path = save(build().state_dict(), tmp_path / "vit.safetensors")
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(UserError) as error:
        ViTInitialisation(path).apply(net)
    assert what.replace("\\", "").split(".*")[0] in str(error.value) or error.match(what)
    assert same(net.state_dict(), before)


def test_a_bit_starts_from_ours_or_timms(tmp_path: Path) -> None:
    """Both are the same trunk; the head starts at zero."""
    sizes = {"layers": [1, 1], "channels": [32, 64], "stem_channels": 32, "groups": 8}
    theirs = BiT(32, classes=5, **sizes)
    randomise(theirs)
    ours = save(theirs.state_dict(), tmp_path / "ours.safetensors")
    as_timm = {**theirs.trunk.state_dict(), "head.fc.weight": torch.ones(5, 64, 1, 1), "head.fc.bias": torch.ones(5)}
    for path in (ours, save(as_timm, tmp_path / "timm.safetensors")):
        net = BiT(48, classes=7, **sizes).eval()
        report = BiTInitialisation(path).apply(net)
        assert same(net.trunk.state_dict(), theirs.trunk.state_dict())
        assert not net(*net.example_inputs(2)).logits.any()
        assert all(name.startswith("head.") for name in report.dropped)
        assert "trunk.stages.1" in str(report)
    with pytest.raises(UserError, match="use ViTInitialisation for a ViT"):
        BiTInitialisation(ours).apply(build())
    with pytest.raises(UserError, match="which this BiT does not have"):
        BiTInitialisation(save(build().state_dict(), tmp_path / "vit.safetensors")).apply(BiT(32, classes=7, **sizes))


def test_files_without_weights_are_refused(tmp_path: Path) -> None:
    """Two lines each."""
    (tmp_path / "text.safetensors").write_text(json.dumps({}))
    torch.save({"epoch": 1}, tmp_path / "other.ckpt")
    for name, what in (("text.safetensors", "is broken"), ("other.ckpt", "no state dict"), ("none.npz", "not exist")):
        with pytest.raises(UserError, match=what):
            read_weights(str(tmp_path / name))
    with pytest.raises(UserError, match="not those of an image ViT"):
        load_vit(save({"a": torch.zeros(1)}, tmp_path / "a.safetensors"))
    weights = {name: tensor for name, tensor in build().state_dict().items() if name != "positions"}
    with pytest.raises(UserError, match=r"lacks positions"):
        load_vit(save(weights, tmp_path / "b.safetensors"))
