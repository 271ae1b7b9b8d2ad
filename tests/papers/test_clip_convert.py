"""Weights in and out: transformers, open_clip and OpenAI's archives give the same embeddings here; a start resizes what it must."""

import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

import open_clip.model
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import CLIPConfig, CLIPModel

from lightning_vl.errors import UserError
from lightning_vl.nn.packing import Packing, pack
from lightning_vl.nn.positions import resize_positions
from lightning_vl.papers.bert.convert import BertInitialisation
from lightning_vl.papers.bert.model import Bert, BertPreTraining
from lightning_vl.papers.clip.convert import (
    ClipInitialisation,
    TowerInitialisation,
    from_openai,
    from_transformers,
    load_clip,
    to_openai,
    to_transformers,
)
from lightning_vl.papers.clip.injected import BertTower, ClassifierTower
from lightning_vl.papers.clip.model import CLIP
from lightning_vl.papers.clip.towers import (
    MEAN,
    STD,
    ModifiedResNet,
    TextTransformer,
    VisionTransformer,
)
from lightning_vl.papers.vit.convert import ViTInitialisation
from lightning_vl.papers.vit.model import ViT
from lightning_vl.weights import read_weights

IMAGE_SIZE, PATCH_SIZE, IMAGE_DIM, TEXT_DIM, EMBED_DIM = 32, 8, 128, 192, 24  # heads of width 64: 2 and 3
VOCABULARY, CONTEXT, LAYERS = 50, 9, 2
LENGTHS = [4, 9, 2, 7]
END = VOCABULARY - 1


def randomise(module: nn.Module) -> None:
    """Zeros and ones, as in fresh norms and running statistics, would hide what is left out or swapped."""
    torch.manual_seed(0)
    for name, tensor in module.state_dict().items():
        if name.endswith(("running_var", "bn1.weight", "bn2.weight", "bn3.weight", "downsample.1.weight")):
            nn.init.uniform_(tensor, 0.5, 1.5)
        elif name.endswith("num_batches_tracked"):
            tensor.fill_(7)
        elif name == "logit_scale":
            tensor.fill_(2.5)
        elif tensor.ndim != 4 or name.endswith("patch_embedding.weight"):  # convolutions have scales of their own
            nn.init.normal_(tensor, std=0.1)


def transformers_clip(hidden_act: str = "quick_gelu", text_heads: int = 3) -> CLIPModel:
    """A tiny one with random weights."""
    both = {"num_hidden_layers": LAYERS, "hidden_act": hidden_act}
    text = {"hidden_size": TEXT_DIM, "intermediate_size": 4 * TEXT_DIM, "num_attention_heads": text_heads}
    text |= {"vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT}
    text |= {"eos_token_id": END, "bos_token_id": END - 1, "pad_token_id": 0}
    image = {"hidden_size": IMAGE_DIM, "intermediate_size": 4 * IMAGE_DIM, "num_attention_heads": 2}
    image |= {"image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE}
    config = CLIPConfig(text_config=both | text, vision_config=both | image, projection_dim=EMBED_DIM)
    model = CLIPModel(config).eval()
    randomise(model)
    return model


def open_clip_clip(
    image: str = "vit", quick_gelu: bool = False, custom: bool = False, image_size: int | None = None, **more: object
) -> nn.Module:
    """A tiny one with random weights and, in a ResNet, random statistics."""
    vision: dict[str, object] = {"image_size": image_size or IMAGE_SIZE, "patch_size": PATCH_SIZE}
    vision |= {"layers": LAYERS, "width": IMAGE_DIM}
    if image == "resnet":
        vision = {"image_size": image_size or 64, "layers": (1, 2, 3, 1), "width": 8}
    text = {"context_length": CONTEXT, "vocab_size": VOCABULARY, "width": TEXT_DIM, "heads": 3, "layers": LAYERS}
    torch.manual_seed(0)
    kind = open_clip.model.CustomTextCLIP if custom else open_clip.model.CLIP
    model = kind(EMBED_DIM, vision, open_clip.model.CLIPTextCfg(**text), quick_gelu=quick_gelu, **more).eval()
    randomise(model)
    return model


def images(size: int) -> Tensor:
    """Three, in [0, 1]."""
    return torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(1))


def normalised(pixels: Tensor) -> Tensor:
    """As the others take them."""
    return (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def tokens() -> tuple[Tensor, Tensor, Packing]:
    """Padded with zeros (b, n), and the same packed (t,); each ends in the largest number, and 0 is a token too."""
    generator = torch.Generator().manual_seed(2)
    padded = torch.zeros(len(LENGTHS), CONTEXT, dtype=torch.long)
    for row, length in zip(padded, LENGTHS, strict=True):
        row[: length - 1] = torch.randint(END, (length - 1,), generator=generator)
        row[length - 1] = END
    inside = torch.arange(CONTEXT) < torch.tensor(LENGTHS)[:, None]
    return padded, padded[inside], pack(torch.tensor(LENGTHS))


def assert_equal_open_clip(ours: CLIP, theirs: nn.Module) -> None:
    """Embeddings and logits, to 1e-5."""
    ours.eval()
    padded, packed, packing = tokens()
    pixels = images(ours.image.image_size)
    with torch.no_grad():
        out = ours(pixels, packed, packing)
        logits = theirs.get_logits(normalised(pixels), padded)[0]
        image, text = theirs.encode_image(normalised(pixels)), theirs.encode_text(padded)
        torch.testing.assert_close(ours.image(pixels), image, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours.text(packed, packing), text, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out.image, F.normalize(image, dim=-1), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.text, F.normalize(text, dim=-1), atol=1e-5, rtol=0)
    bias = 0 if out.bias is None else out.bias
    torch.testing.assert_close(out.scale * out.image @ out.text.T + bias, logits, atol=1e-5, rtol=1e-5)
    assert logits.std() > 0.1  # embeddings that are all alike would agree with anything


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def save(weights: dict[str, Tensor], path: Path) -> str:
    """As safetensors."""
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)
    return str(path)


def build(image_size: int = IMAGE_SIZE, gelu: str = "quick", **more: object) -> CLIP:
    """Ours, of the sizes above."""
    image = {"dim": IMAGE_DIM, "layers": LAYERS, "heads": 2, "embed_dim": EMBED_DIM, "gelu_approximation": gelu} | more
    text = TextTransformer(VOCABULARY, CONTEXT, TEXT_DIM, LAYERS, 3, EMBED_DIM, gelu)  # type: ignore[arg-type]
    return CLIP(VisionTransformer(image_size, PATCH_SIZE, **image), text)  # type: ignore[arg-type]


# --- transformers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden_act", ["quick_gelu", "gelu"])
def test_equals_transformers_and_back(hidden_act: str, tmp_path: Path) -> None:
    """Weights that transformers trained must compute the same here, and go back unchanged into a file it reads whole."""
    theirs = transformers_clip(hidden_act, text_heads=4)  # of width 48: its config.json must be believed
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_clip(str(tmp_path / "theirs")).eval()
    assert isinstance(ours.text, TextTransformer)
    assert ours.text.gelu_approximation == {"quick_gelu": "quick", "gelu": "none"}[hidden_act]
    padded, packed, packing = tokens()
    pixels = images(IMAGE_SIZE)
    with torch.no_grad():
        out = ours(pixels, packed, packing)
        expected = theirs(input_ids=padded, pixel_values=normalised(pixels))
    torch.testing.assert_close(out.image, expected.image_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(out.text, expected.text_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(out.scale * out.image @ out.text.T, expected.logits_per_image, atol=1e-5, rtol=1e-5)

    assert same(to_transformers(ours), theirs.state_dict())
    assert same(from_transformers(to_transformers(ours)), ours.state_dict())
    folder = tmp_path / "ours"
    folder.mkdir()
    theirs.config.save_pretrained(folder)
    save_file(to_transformers(ours), folder / "model.safetensors", metadata={"format": "pt"})
    again, loading = CLIPModel.from_pretrained(folder, output_loading_info=True)
    assert not any(loading[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert same(again.state_dict(), theirs.state_dict())


def test_older_files_of_transformers(tmp_path: Path) -> None:
    """Half precision, as pytorch_model.bin, with the buffers of positions: as the hub has them."""
    theirs = transformers_clip().half()
    buffers = {f"{tower}.embeddings.position_ids": torch.arange(9)[None] for tower in ("text_model", "vision_model")}
    torch.save({**theirs.state_dict(), **buffers}, tmp_path / "pytorch_model.bin")
    theirs.config.save_pretrained(tmp_path)
    ours = load_clip(str(tmp_path))
    assert {tensor.dtype for tensor in ours.state_dict().values()} == {torch.float32}
    assert same(ours.state_dict(), from_transformers(theirs.float().state_dict()))


def test_pixels_are_normalised_as_the_preprocessor_says(tmp_path: Path) -> None:
    """Some released weights saw images of mean and std 0.5: with CLIP's usual ones they would see others."""
    theirs = transformers_clip()
    theirs.save_pretrained(tmp_path)
    said = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    assert load_clip(str(tmp_path)).image.mean.flatten().tolist() == [0.5] * 3
    with pytest.raises(UserError, match=r"image\.mean: \(0\.5, 0\.5, 0\.5\).*the network has"):
        ClipInitialisation(str(tmp_path)).apply(build())


def test_another_configuration_is_refused(tmp_path: Path) -> None:
    """Of the same names and shapes, but of another function."""
    transformers_clip().save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    said = json.loads(config.read_text())
    for changed in (
        {"model_type": "siglip"},
        {"text_config": {**said["text_config"], "hidden_act": "relu"}},
        {"vision_config": {**said["vision_config"], "layer_norm_eps": 1e-6}},
    ):
        config.write_text(json.dumps(said | changed))
        with pytest.raises(UserError, match="another model type, activation or layer_norm_eps"):
            load_clip(str(tmp_path))
    for text, what in (
        ("[1]", "is no configuration"),
        ("{", r"config\.json is broken"),
        ('{"text_config": 3}', "no configuration"),
    ):
        config.write_text(text)
        with pytest.raises(UserError, match=what):
            load_clip(str(tmp_path))
    config.write_text(json.dumps(said | {"text_config": {**said["text_config"], "num_attention_heads": 5}}))
    with pytest.raises(UserError, match="5 heads do not share a width of 192"):
        load_clip(str(tmp_path))


# --- open_clip ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("custom", [False, True])
@pytest.mark.parametrize("quick_gelu", [False, True])
@pytest.mark.parametrize("image", ["vit", "resnet"])
def test_equals_open_clip_and_back(image: str, quick_gelu: bool, custom: bool, tmp_path: Path) -> None:
    """Weights that open_clip trained must compute the same here, and go back unchanged into its own model."""
    theirs = open_clip_clip(image, quick_gelu, custom)
    path = save(theirs.state_dict(), tmp_path / "open_clip.safetensors")
    ours = load_clip(path, "quick" if quick_gelu else "none")
    assert ours.image.image_size == (IMAGE_SIZE if image == "vit" else 64)
    assert_equal_open_clip(ours, theirs)
    plain = open_clip_clip(image, quick_gelu)
    for parameter in plain.parameters():
        nn.init.zeros_(parameter)
    plain.load_state_dict(to_openai(ours))
    assert_equal_open_clip(ours, plain)
    assert custom or same(to_openai(ours), theirs.state_dict())
    assert same(from_openai(to_openai(ours)), ours.state_dict())


def test_a_bias_of_the_logits_comes_along(tmp_path: Path) -> None:
    """open_clip's for the sigmoid loss; some of its scales are lists of one number."""
    theirs = open_clip_clip(init_logit_bias=-3.0, nonscalar_logit_scale=True)
    nn.init.constant_(theirs.logit_bias, -4.0)
    ours = load_clip(save(theirs.state_dict(), tmp_path / "biased.safetensors"), "none")
    assert ours.logit_bias is not None
    assert (ours.logit_bias.shape, ours.logit_bias.item()) == ((), -4.0)
    assert_equal_open_clip(ours, theirs)


def test_a_checkpoint_of_open_clips_training(tmp_path: Path) -> None:
    """The network among the optimiser's state, wrapped for several processes."""
    theirs = open_clip_clip()
    wrapped = {f"module.{name}": tensor for name, tensor in theirs.state_dict().items()}
    file = tmp_path / "epoch_3.pt"
    torch.save({"epoch": 3, "name": "run", "state_dict": wrapped, "optimizer": {"state": {}}}, file)
    assert_equal_open_clip(load_clip(str(file), "none"), theirs)


def test_a_folder_of_open_clip_says_gelu_heads_and_pixels(tmp_path: Path) -> None:
    """What the shapes do not: here 4 heads of width 32, and mean and std of 0.5."""
    model = {"embed_dim": EMBED_DIM, "quick_gelu": True}
    model["vision_cfg"] = {"image_size": 32, "layers": LAYERS, "width": IMAGE_DIM, "head_width": 32, "patch_size": 8}
    model["text_cfg"] = {"context_length": CONTEXT, "vocab_size": VOCABULARY, "width": 192, "heads": 6, "layers": 2}
    said = {"model_cfg": model, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    config = tmp_path / "open_clip_config.json"
    config.write_text(json.dumps(said))
    theirs = open_clip.model.CLIP(**model).eval()
    randomise(theirs)
    save(theirs.state_dict(), tmp_path / "open_clip_model.safetensors")
    ours = load_clip(str(tmp_path)).eval()
    padded, packed, packing = tokens()
    pixels = images(IMAGE_SIZE)
    with torch.no_grad():
        image, text = theirs.encode_image((pixels - 0.5) / 0.25), theirs.encode_text(padded)
        torch.testing.assert_close(ours.image(pixels), image, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours.text(packed, packing), text, atol=1e-5, rtol=1e-5)
    with pytest.raises(UserError, match="has the GELU quick, not none"):
        load_clip(str(tmp_path), "none")
    config.write_text('{"model_cfg": {}}')
    with pytest.raises(UserError, match="no configuration of open_clip"):
        load_clip(str(tmp_path))


def test_what_the_file_does_not_tell_must_be_given(tmp_path: Path) -> None:
    """Either GELU runs, and the wrong one costs accuracy without a sign of it."""
    for image in ("vit", "resnet"):
        path = save(open_clip_clip(image).state_dict(), tmp_path / f"{image}.safetensors")
        with pytest.raises(UserError, match="does not say which GELU"):
            load_clip(path)


def test_heads_of_a_wide_tower_are_not_guessed(tmp_path: Path) -> None:
    """open_clip's ViT-H has 16 heads at a width of 1280, not 20."""
    weights = open_clip_clip().state_dict()
    weights["visual.conv1.weight"] = torch.zeros(1280, 3, 8, 8)
    with pytest.raises(UserError, match="does not say how many heads share its width of 1280"):
        load_clip(save(weights, tmp_path / "wide.safetensors"), "none")


def test_what_the_papers_clip_does_not_have_is_refused_by_name(tmp_path: Path) -> None:
    """Layer scale dropped silently would give other embeddings."""
    with pytest.raises(UserError, match=r"transformer\.resblocks\.0\.ls_1\.gamma is no weight of OpenAI's CLIP"):
        from_openai({"transformer.resblocks.0.ls_1.gamma": torch.ones(3)})
    with pytest.raises(UserError, match=r"vision_model\.head\.probe is no weight of transformers' CLIP"):
        from_transformers({"vision_model.head.probe": torch.ones(3)})


# --- OpenAI's archives ----------------------------------------------------------------------------------------------


def archive(model: nn.Module, path: Path) -> str:
    """As OpenAI published its models: traced, with three numbers among the buffers."""
    for name in ("context_length", "vocab_size"):
        number = getattr(model, name)
        delattr(model, name)
        model.register_buffer(name, torch.tensor(number))
    model.register_buffer("input_resolution", torch.tensor(32))
    dtype = model.logit_scale.dtype
    size = model.visual.image_size[0] if isinstance(model.visual.image_size, tuple) else model.visual.image_size
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # tracing is deprecated, and warns of what it makes constant
        inputs = (torch.zeros(1, 3, size, size, dtype=dtype), tokens()[0][:1])
        torch.jit.trace(model, inputs, check_trace=False).save(str(path))
    return str(path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("image", ["vit", "resnet"])
def test_equals_an_archive(image: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """The files that OpenAI published: half precision, code and numbers beside the weights."""
    model = open_clip_clip(image, quick_gelu=True).to(dtype)
    path = archive(model, tmp_path / "CLIP.pt")
    ours = load_clip(path)
    theirs = open_clip_clip(image, quick_gelu=True).to(dtype).float()
    assert_equal_open_clip(ours, theirs)
    assert same(to_openai(ours), theirs.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = torch.jit.load(path, "cpu").state_dict()  # torch's own reader, which runs the code
    numbers = ("input_resolution", "context_length", "vocab_size", "attn_mask")
    assert same(
        to_openai(ours), {name: loaded[name].float() for name in loaded if name not in numbers} | batches(loaded)
    )


def batches(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Counts stay whole numbers."""
    return {name: tensor for name, tensor in weights.items() if name.endswith("num_batches_tracked")}


def test_an_archive_with_the_exact_gelu(tmp_path: Path) -> None:
    """open_clip can write archives too: their code, not who made the form popular, says which GELU it is."""
    path = archive(open_clip_clip(), tmp_path / "exact.pt")
    assert_equal_open_clip(load_clip(path), open_clip_clip())


def test_an_archives_code_is_not_run(tmp_path: Path) -> None:
    """Anything but tensors in the data is refused, and code that would not even compile is not looked at."""
    path = archive(open_clip_clip(quick_gelu=True), tmp_path / "whole.pt")
    rewrite(path, tmp_path / "nonsense.pt", "/code/", b"this is no code")
    assert same(load_clip(str(tmp_path / "nonsense.pt")).state_dict(), load_clip(path).state_dict())
    harmful = b"cposix\nmkdir\n(V" + str(tmp_path / "ran").encode() + b"\ntR."
    rewrite(path, tmp_path / "harmful.pt", "/data.pkl", harmful)
    with pytest.raises(UserError, match=r"harmful\.pt holds posix\.mkdir, which could run code, and was not opened"):
        load_clip(str(tmp_path / "harmful.pt"))
    assert not (tmp_path / "ran").exists()


def rewrite(path: str, new: Path, part: str, content: bytes) -> None:
    """The archive with other bytes in some of its members."""
    with ZipFile(path) as old, ZipFile(new, "w") as written:
        for name in old.namelist():
            written.writestr(name, content if part in name else old.read(name))


def test_broken_archives_are_refused(tmp_path: Path) -> None:
    """A flipped bit, data that is cut or of nothing: two lines."""
    path = archive(open_clip_clip(quick_gelu=True), tmp_path / "whole.pt")
    flipped = bytearray(Path(path).read_bytes())
    flipped[len(flipped) // 2] ^= 1
    (tmp_path / "flipped.pt").write_bytes(flipped)
    (tmp_path / "cut.pt").write_bytes(Path(path).read_bytes()[:5000])
    for number, content in enumerate((b"", b"\x80\x02", b"not a pickle", b"N.")):
        rewrite(path, tmp_path / f"data{number}.pt", "/data.pkl", content)
    rewrite(path, tmp_path / "short.pt", "/data/3", b"1234")
    for file in sorted(tmp_path.glob("*.pt")):
        if file.name != "whole.pt":
            with pytest.raises(UserError, match="is broken or no file of weights"):
                load_clip(str(file))


# --- our own --------------------------------------------------------------------------------------------------------


def own_checkpoint(net: CLIP, network: dict[str, object], path: Path) -> str:
    """As a run writes it."""
    state = {f"net.{name}": tensor for name, tensor in net.state_dict().items()}
    torch.save({"state_dict": state, "network": network, "epoch": 1}, path)
    return str(path)


def described(gelu: str = "none") -> dict[str, object]:
    """The network of `build`, as a checkpoint says it."""
    towers = "lightning_vl.papers.clip.towers."
    image = {"image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE, "dim": IMAGE_DIM, "layers": LAYERS, "heads": 2}
    text = {"vocabulary_size": VOCABULARY, "context_length": CONTEXT, "dim": TEXT_DIM, "layers": LAYERS, "heads": 3}
    both = {"embed_dim": EMBED_DIM, "gelu_approximation": gelu}
    arguments = {
        "image": {"class_path": f"{towers}VisionTransformer", "init_args": image | both},
        "text": {"class_path": f"{towers}TextTransformer", "init_args": text | both},
    }
    return {"class_path": "lightning_vl.papers.clip.model.CLIP", "init_args": arguments}


def test_a_checkpoint_of_ours_says_how_it_is_built(tmp_path: Path) -> None:
    """Its GELU and heads are with it: no argument, no guess; and nothing is left to assume when another run starts from it."""
    net = build(gelu="none")
    path = own_checkpoint(net, described(), tmp_path / "best.ckpt")
    again = load_clip(path)
    assert same(again.state_dict(), net.state_dict())
    assert isinstance(again.image, VisionTransformer)
    assert again.image.gelu_approximation == "none"
    started = build(gelu="none")
    report = ClipInitialisation(path).apply(started)
    assert same(started.state_dict(), net.state_dict())
    assert (report.fresh, report.dropped, report.resized, report.assumed) == ([], [], [], [])
    with pytest.raises(UserError, match=r"text\.gelu: none; the network has .*text\.gelu: quick"):
        ClipInitialisation(path).apply(build(gelu="quick"))
    other = own_checkpoint(
        net, {"class_path": "torch.nn.Identity", "init_args": {}}, tmp_path / "other.ckpt"
    )  # a class from elsewhere is not called
    with pytest.raises(UserError, match="which is no network here"):
        load_clip(other)


# --- starts ---------------------------------------------------------------------------------------------------------


def test_a_start_takes_everything(tmp_path: Path) -> None:
    """Weights left as built would be trained from nothing, or tested as if they were the file's."""
    for image in ("vit", "resnet"):
        theirs = open_clip_clip(image, quick_gelu=True)
        resnet = ModifiedResNet(64, (1, 2, 3, 1), 8, EMBED_DIM)
        net = build() if image == "vit" else CLIP(resnet, build().text)
        path = save(theirs.state_dict(), tmp_path / f"{image}.safetensors")
        report = ClipInitialisation(path).apply(net)
        assert_equal_open_clip(net, theirs)
        assert sorted(report.loaded) == sorted(net.state_dict())
        assert report.fresh == report.dropped == report.resized == []
        assert {"text.heads: 3", "text.gelu: quick"} <= set(report.assumed)
        assert ("image.gelu: quick" in report.assumed) == (image == "vit")


def test_positions_are_resized_for_larger_images(tmp_path: Path) -> None:
    """As L/14@336px starts from L/14; the class token's row and everything else stays, and the report says so."""
    theirs = open_clip_clip(quick_gelu=True)
    path = save(theirs.state_dict(), tmp_path / "clip.safetensors")
    net = build(image_size=48)
    report = ClipInitialisation(path).apply(net)
    assert report.resized == ["image.positions (4 x 4 to 6 x 6)"]
    assert "resized  image.positions (4 x 4 to 6 x 6)" in str(report)
    assert "image.positions" not in report.loaded
    expected = resize_positions(theirs.visual.positional_embedding[None], (4, 4), (6, 6))
    assert torch.equal(net.state_dict()["image.positions"], expected)
    assert torch.equal(net.state_dict()["image.positions"][0, 0], theirs.visual.positional_embedding[0])
    others = {name: tensor for name, tensor in net.state_dict().items() if name != "image.positions"}
    taken = from_openai(theirs.state_dict())
    del taken["image.positions"]
    assert same(others, taken)


def test_the_text_is_the_same_after_a_start_with_larger_images(tmp_path: Path) -> None:
    """Its positions are those of words: they are not resized."""
    theirs = open_clip_clip(quick_gelu=True)
    net = build(image_size=48).eval()
    ClipInitialisation(save(theirs.state_dict(), tmp_path / "clip.safetensors")).apply(net)
    padded, packed, packing = tokens()
    with torch.no_grad():
        torch.testing.assert_close(net.text(packed, packing), theirs.encode_text(padded), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("net", "what"),
    [
        (lambda: build(layers=1), r"has image\.encoder\.blocks\.1\.\S+, which this CLIP does not have"),
        (lambda: build(layers=3), r"lacks image\.encoder\.blocks\.2\.\S+, which this CLIP has"),
        (lambda: build(dim=64), r"has image\.\S+ of \(.*\), this CLIP of"),
        (
            lambda: CLIP(build().image, TextTransformer(51, 9, 192, 2, 3, 24)),
            r"has text\.tokens\.weight of \(50, 192\)",
        ),
        (lambda: CLIP(build().image, TextTransformer(50, 8, 192, 2, 3, 24)), r"has text\.positions of \(1, 9, 192\)"),
        (
            lambda: CLIP(ModifiedResNet(64, (1, 1, 1, 1), 8, 24), build().text),
            r"has image\.class_token, which this CLIP",
        ),
        (lambda: CLIP(build().image, build().text, bias=-10.0), r"lacks logit_bias"),
        (lambda: build(gelu="none"), r"image\.gelu: quick, text\.gelu: quick; the network has image\.gelu: none"),
        (lambda: build(heads=4), r"has image\.heads: 2; the network has image\.heads: 4"),
        (lambda: build(mean=(0.5, 0.5, 0.5)), r"has image\.mean: \(0\.481\d+, .*the network has image\.mean: \(0\.5"),
        (lambda: build().image, "is to start a VisionTransformer"),
    ],
)
def test_another_network_is_refused(net: Callable[[], CLIP], what: str, tmp_path: Path) -> None:
    """Of another size, function or kind: named, on two lines, and not filled in part."""
    transformers_clip().save_pretrained(tmp_path)
    built = net()
    before = {name: tensor.clone() for name, tensor in built.state_dict().items()}
    with pytest.raises(UserError, match=what) as caught:
        ClipInitialisation(str(tmp_path)).apply(built)
    assert_two_lines(caught.value)
    assert same(built.state_dict(), before)


def assert_two_lines(error: UserError) -> None:
    assert "\n" not in error.what
    assert "\n" not in error.how


class Code:
    """Makes a folder when it is unpickled, if anything lets it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.folder),)


def test_bad_files_are_refused(tmp_path: Path) -> None:
    """Broken, pickled code, another model, half a model: two lines, and nothing is run."""
    weights = open_clip_clip(quick_gelu=True).state_dict()
    save(weights, tmp_path / "whole.safetensors")
    (tmp_path / "short.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:5000])
    torch.save({**weights, "code": Code(tmp_path / "ran")}, tmp_path / "code.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    save({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "empty").mkdir()

    def without(part: str) -> str:
        rest = {name: tensor for name, tensor in weights.items() if part not in name}
        return Path(save(rest, tmp_path / f"no-{part.replace('.', '-')}.safetensors")).name

    crooked = {**weights, "visual.positional_embedding": torch.zeros(12, IMAGE_DIM)}
    save(crooked, tmp_path / "crooked.safetensors")
    expected = {
        "gone.pt": "does not exist",
        "short.safetensors": "is broken or no file of weights",
        "code.pt": "which could run code, and was not opened",
        "list.pt": "holds no state dict",
        "other.safetensors": "are not those of a CLIP",
        "empty": r"has none of model\.safetensors",
        "crooked.safetensors": "positions of 11 patches, which are no square grid",
        without("resblocks.1.mlp.c_fc.bias"): r"lacks (text|image)\.encoder\.blocks\.1\.mlp\.hidden\.bias",
        without("visual.proj"): r"lacks image\.projection\.weight",
        without("token_embedding"): r"lacks text\.tokens\.weight",
        without("logit_scale"): "lacks logit_scale",
    }
    for name, what in expected.items():
        for use in (lambda path: load_clip(path, "quick"), lambda path: ClipInitialisation(path).apply(build())):
            with pytest.raises(UserError, match=what) as caught:
                use(str(tmp_path / name))
            assert_two_lines(caught.value)
    assert not (tmp_path / "ran").exists()


def test_layouts_without_a_place_for_a_tower_refuse_it() -> None:
    """transformers' CLIP has no ResNet, and neither has towers of other papers."""
    resnet = CLIP(ModifiedResNet(64, (1, 1, 1, 1), 8, EMBED_DIM), build().text)
    with pytest.raises(UserError, match="transformers' layout has no place for a ModifiedResNet"):
        to_transformers(resnet)
    with pytest.raises(UserError, match="OpenAI's layout has no place for a BertTower"):
        to_openai(CLIP(build().image, bert_tower()))


# --- towers of other papers -----------------------------------------------------------------------------------------


def classifier_tower() -> ClassifierTower:
    return ClassifierTower(ViT(32, 8, 64, 2, 1, 128, classes=3), EMBED_DIM)


def bert_tower() -> BertTower:
    return BertTower(Bert(VOCABULARY, 2, 64, 2, 128, positions=12), EMBED_DIM)


def test_each_tower_starts_from_its_own_file(tmp_path: Path) -> None:
    """Both networks are the files'; the projections and the scale are reported as fresh, so that none is tested untrained."""
    vit, bert = ViT(32, 8, 64, 2, 1, 128, classes=5), BertPreTraining(Bert(VOCABULARY, 2, 64, 2, 128, positions=16))
    for module in (vit, bert):
        randomise(module)
    image = save(vit.state_dict(), tmp_path / "vit.safetensors")
    tied = {name: tensor.clone() for name, tensor in bert.state_dict().items()}
    text = save(tied, tmp_path / "bert.safetensors")
    net = CLIP(classifier_tower(), bert_tower(), freeze_image=True, freeze_text=True)
    report = TowerInitialisation(ViTInitialisation(image), BertInitialisation(text)).apply(net)
    assert report.path == f"{image} and {text}"
    own = net.state_dict()
    for prefix, file in (("image.net.", image), ("text.", text)):
        loaded = [name for name in report.loaded if name.startswith(prefix)]
        weights = read_weights(file)
        assert loaded
        assert all(torch.equal(own[name], weights[name.removeprefix(prefix)]) for name in loaded)
    assert torch.equal(own["text.bert.positions.weight"], bert.bert.positions.weight[:12])
    assert report.resized == ["text.bert.positions.weight (the first 12 of 16 rows)"]
    fresh = {"logit_scale", "image.projection.weight", "text.projection.weight"}
    assert set(report.fresh) == fresh
    assert {*report.loaded, *report.fresh, "text.bert.positions.weight"} == set(own)
    assert any(name.startswith("text.words.") for name in report.dropped)
    learned = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
    assert learned == fresh  # the towers are as frozen as before


def test_one_tower_alone_can_be_started(tmp_path: Path) -> None:
    """The other stays as it is built."""
    vit = ViT(32, 8, 64, 2, 1, 128, classes=5)
    path = save(vit.state_dict(), tmp_path / "vit.safetensors")
    net = CLIP(classifier_tower(), bert_tower())
    report = TowerInitialisation(image=ViTInitialisation(path)).apply(net)
    assert all(name.startswith("image.net.") for name in report.loaded)
    assert {name for name in net.state_dict() if name.startswith("text.")} <= set(report.fresh)


def test_a_checkpoint_with_injected_towers_is_built_from_what_it_says(tmp_path: Path) -> None:
    """A checkpoint that is given to others comes alone."""
    net = CLIP(classifier_tower(), bert_tower())
    vit = {"image_size": 32, "patch_size": 8, "dim": 64, "layers": 2, "heads": 1, "mlp_dim": 128, "classes": 3}
    image = {"net": {"class_path": "lightning_vl.papers.vit.model.ViT", "init_args": vit}, "embed_dim": EMBED_DIM}
    bert = {"vocabulary_size": VOCABULARY, "layers": 2, "dim": 64, "heads": 2, "mlp_dim": 128, "positions": 12}
    text = {"bert": {"class_path": "lightning_vl.papers.bert.model.Bert", "init_args": bert}, "embed_dim": EMBED_DIM}
    towers = "lightning_vl.papers.clip.injected."
    arguments = {
        "image": {"class_path": f"{towers}ClassifierTower", "init_args": image},
        "text": {"class_path": f"{towers}BertTower", "init_args": text},
    }
    network = {"class_path": "lightning_vl.papers.clip.model.CLIP", "init_args": arguments}
    checkpoint = own_checkpoint(net, network, tmp_path / "best.ckpt")
    assert same(load_clip(checkpoint).state_dict(), net.state_dict())
    started = CLIP(classifier_tower(), bert_tower())
    report = ClipInitialisation(checkpoint).apply(started)
    assert same(started.state_dict(), net.state_dict())
    assert report.assumed == []


def test_towers_without_a_network_within_are_refused(tmp_path: Path) -> None:
    """CLIP's own towers start from a CLIP."""
    path = save(ViT(32, 8, 64, 2, 1, 128, classes=5).state_dict(), tmp_path / "vit.safetensors")
    with pytest.raises(UserError, match="a VisionTransformer has no network within"):
        TowerInitialisation(image=ViTInitialisation(path)).apply(build())
    with pytest.raises(UserError, match="a TextTransformer has no network within"):
        TowerInitialisation(text=BertInitialisation(path)).apply(build())
    with pytest.raises(UserError, match="neither image nor text"):
        TowerInitialisation().apply(build())
