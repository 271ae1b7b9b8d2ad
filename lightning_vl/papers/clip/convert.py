"""CLIP's weights to and from the files of OpenAI, open_clip and transformers, and as a network's start."""

import json
import pickle
import re
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from math import isqrt
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile, ZipFile, is_zipfile

import torch
from einops import rearrange
from torch import Tensor, nn

import lightning_vl.weights
from lightning_vl.errors import UserError
from lightning_vl.nn.blocks import GeluApproximation, PreNormBlock
from lightning_vl.nn.embeddings import Stem
from lightning_vl.nn.positions import Positions, resize_positions
from lightning_vl.papers.bert.model import Bert, BertPreTraining
from lightning_vl.papers.clip.injected import TimmTower
from lightning_vl.papers.clip.model import CLIP
from lightning_vl.papers.clip.towers import (
    LAYER_NORM_EPS,
    MEAN,
    STD,
    ImageTower,
    ModifiedResNet,
    TextTransformer,
    VisionTransformer,
)
from lightning_vl.papers.vit.convert import square_side
from lightning_vl.weights import (
    NOT_WEIGHTS,
    Initialisation,
    Weights,
    build_network,
    fuse,
    load_checked,
    newest,
    part,
    read_file,
    state_dict,
)

# Another's module (or parameter) on the left, ours on the right; * stands for the number of a block.
OPENAI_BLOCK = {
    "ln_1": "norm_attention",
    "attn.in_proj_weight": "attention.query_key_value.weight",
    "attn.in_proj_bias": "attention.query_key_value.bias",
    "attn.out_proj": "attention.output",
    "ln_2": "norm_mlp",
    "mlp.c_fc": "mlp.hidden",
    "mlp.c_proj": "mlp.output",
}
OPENAI = {
    "logit_scale": "logit_scale",
    "logit_bias": "logit_bias",
    "token_embedding": "text.tokens",
    "positional_embedding": "text.positions",
    **{f"transformer.resblocks.*.{a}": f"text.encoder.blocks.*.{b}" for a, b in OPENAI_BLOCK.items()},
    "ln_final": "text.encoder.norm",
    "text_projection": "text.projection.weight",
}
OPENAI_VIT = {
    "visual.conv1": "image.patches",
    "visual.class_embedding": "image.class_token",
    "visual.positional_embedding": "image.positions",
    "visual.ln_pre": "image.norm_before",
    **{f"visual.transformer.resblocks.*.{a}": f"image.encoder.blocks.*.{b}" for a, b in OPENAI_BLOCK.items()},
    "visual.ln_post": "image.encoder.norm",
    "visual.proj": "image.projection.weight",
}
OPENAI_RESNET = {
    **{f"visual.conv{i + 1}": f"image.stem.{3 * i}" for i in range(3)},
    **{f"visual.bn{i + 1}": f"image.stem.{3 * i + 1}" for i in range(3)},
    "visual.blocks.*.conv1": "image.blocks.*.branch.0",
    "visual.blocks.*.bn1": "image.blocks.*.branch.1",
    "visual.blocks.*.conv2": "image.blocks.*.branch.3",
    "visual.blocks.*.bn2": "image.blocks.*.branch.4",
    "visual.blocks.*.conv3": "image.blocks.*.branch.7",
    "visual.blocks.*.bn3": "image.blocks.*.branch.8",
    "visual.blocks.*.downsample.0": "image.blocks.*.shortcut.1",
    "visual.blocks.*.downsample.1": "image.blocks.*.shortcut.2",
    "visual.attnpool.positional_embedding": "image.pool.positions",
    "visual.attnpool.q_proj": "image.pool.query",
    "visual.attnpool.k_proj": "image.pool.key",
    "visual.attnpool.v_proj": "image.pool.value",
    "visual.attnpool.c_proj": "image.pool.output",
}
STAGE = re.compile(r"^visual\.layer(\d)\.(\d+)\.")  # where OpenAI counts the blocks of each stage by themselves
TRANSFORMERS_BLOCK = {
    "layer_norm1": "norm_attention",
    "self_attn.q_proj": "attention.query",
    "self_attn.k_proj": "attention.key",
    "self_attn.v_proj": "attention.value",
    "self_attn.out_proj": "attention.output",
    "layer_norm2": "norm_mlp",
    "mlp.fc1": "mlp.hidden",
    "mlp.fc2": "mlp.output",
}
TRANSFORMERS = {
    "logit_scale": "logit_scale",
    "text_model.embeddings.token_embedding": "text.tokens",
    "text_model.embeddings.position_embedding.weight": "text.positions",
    **{f"text_model.encoder.layers.*.{a}": f"text.encoder.blocks.*.{b}" for a, b in TRANSFORMERS_BLOCK.items()},
    "text_model.final_layer_norm": "text.encoder.norm",
    "text_projection": "text.projection",
    "vision_model.embeddings.patch_embedding": "image.patches",
    "vision_model.embeddings.class_embedding": "image.class_token",
    "vision_model.embeddings.position_embedding.weight": "image.positions",
    "vision_model.pre_layrnorm": "image.norm_before",  # so written there
    **{f"vision_model.encoder.layers.*.{a}": f"image.encoder.blocks.*.{b}" for a, b in TRANSFORMERS_BLOCK.items()},
    "vision_model.post_layernorm": "image.encoder.norm",
    "visual_projection": "image.projection",
}
LEAVES = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
PROJECTIONS = ("image.projection.weight", "text.projection.weight")  # matrices on the right of the features at OpenAI
BUFFERS = ("input_resolution", "context_length", "vocab_size", "attn_mask", "position_ids")  # no weights, by last name

FILES = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")
HIDDEN_ACT: dict[str, GeluApproximation] = {"quick_gelu": "quick", "gelu": "none", "gelu_pytorch_tanh": "tanh"}
HEAD_WIDTH = 64
WIDEST = 1024  # of image towers whose heads are surely 64 wide: open_clip's larger ones have others


def from_openai(weights: Mapping[str, Tensor]) -> Weights:
    """A state dict as OpenAI's code and open_clip's lay it out, in the names and shapes of :class:`CLIP`.

    The image tower is a ViT or a modified ResNet; open_clip's models with a text tower apart ("text.") are read too.

    Raises:
        UserError: a tensor that the paper's CLIP does not have (layer scale, attention pooling of a ViT, timm, ...).
    """
    weights = {key.removeprefix("text."): tensor for key, tensor in weights.items()}
    stages = {(int(found[1]), int(found[2])) for found in map(STAGE.match, weights) if found}
    starts = [0, *accumulate(sum(one == stage for one, _ in stages) for stage in (1, 2, 3, 4))]
    names = OPENAI | (OPENAI_RESNET if stages else OPENAI_VIT)
    renamed: Weights = {}
    for key, tensor in weights.items():
        if _is_buffer(key):
            continue
        if found := STAGE.match(key):
            key = f"visual.blocks.{starts[int(found[1]) - 1] + int(found[2])}.{key[found.end() :]}"
        name = _translate(key, names, "OpenAI's CLIP")
        renamed[name] = _laid_out(name, tensor, transposed=True)
    for key in [key for key in renamed if key.endswith("running_mean")]:  # old archives do not count their batches
        renamed.setdefault(key.replace("running_mean", "num_batches_tracked"), torch.tensor(0))
    return renamed


def to_openai(net: CLIP) -> Weights:
    """Our weights in the layout of OpenAI's code and open_clip's: the inverse of :func:`from_openai`, bit for bit.

    Raises:
        UserError: a tower is none of the paper's.
    """
    _check_towers(net, "OpenAI's", (VisionTransformer, ModifiedResNet))
    names = {ours: theirs for theirs, ours in (OPENAI | OPENAI_VIT).items()}
    starts: list[int] = []
    if isinstance(net.image, ModifiedResNet):
        names = {ours: theirs for theirs, ours in (OPENAI | OPENAI_RESNET).items()}
        starts = _stage_starts(net.state_dict())
    renamed: Weights = {}
    for name, tensor in net.state_dict().items():
        key = _translate(name, names, "our CLIP")
        if found := re.match(r"visual\.blocks\.(\d+)\.", key):
            block = int(found[1])
            stage = bisect_right(starts, block)
            key = f"visual.layer{stage}.{block - starts[stage - 1]}.{key[found.end() :]}"
        renamed[key] = _laid_back(name, tensor, net, transposed=True)
    return renamed


def from_transformers(weights: Mapping[str, Tensor]) -> Weights:
    """A transformers ``CLIPModel``'s state dict in the names and shapes of :class:`CLIP`.

    Raises:
        UserError: a tensor that the paper's CLIP does not have, or a third of query, key and value that is missing.
    """
    renamed: Weights = {}
    for key, tensor in weights.items():
        if not _is_buffer(key):
            name = _translate(key, TRANSFORMERS, "transformers' CLIP")
            renamed[name] = _laid_out(name, tensor, transposed=False)
    return fuse(renamed)


def to_transformers(net: CLIP) -> Weights:
    """Our weights in the names of transformers' ``CLIPModel``: the inverse of :func:`from_transformers`, bit for bit.

    Write them as ``model.safetensors`` beside a ``config.json``.

    Raises:
        UserError: a tower is none of the paper's, or the image tower is a ResNet, which transformers' CLIP cannot be.
    """
    _check_towers(net, "transformers'", (VisionTransformer,))
    names = {ours: theirs for theirs, ours in TRANSFORMERS.items()}
    laid_back = {name: _laid_back(name, tensor, net, transposed=False) for name, tensor in net.state_dict().items()}
    return {_translate(name, names, "transformers' CLIP"): tensor for name, tensor in part(laid_back).items()}


def _translate(key: str, names: Mapping[str, str], whose: str) -> str:
    """As :func:`lightning_vl.weights.translate`, but only a block's number is one: the stem's layers are named by theirs."""
    number = re.search(r"(?:blocks|layers)\.(\d+)\.", key)
    pattern = f"{key[: number.start(1)]}*{key[number.end(1) :]}" if number else key
    module, _, leaf = pattern.rpartition(".")
    if pattern in names:
        name = names[pattern]
    elif module in names and leaf in LEAVES:
        name = f"{names[module]}.{leaf}"
    else:
        raise UserError(f"{key} is no weight of {whose}", "start from a plain one, without additions to the paper's")
    return name.replace("*", number[1]) if number else name


def _is_buffer(key: str) -> bool:
    return key.rpartition(".")[2] in BUFFERS


def _laid_out(name: str, tensor: Tensor, transposed: bool) -> Tensor:
    """Another's tensor in our shape; one that cannot be stays as it is, to be refused by name and shape."""
    if name == "image.patches.weight" and tensor.ndim == 4:
        return rearrange(tensor, "d c h w -> d (c h w)")
    if name == "image.class_token":
        return tensor.reshape(1, 1, -1)
    if name in ("image.positions", "text.positions"):
        return tensor[None]
    if name in PROJECTIONS and transposed and tensor.ndim == 2:
        return tensor.T.contiguous()
    return tensor.reshape(()) if name.startswith("logit_") and tensor.numel() == 1 else tensor


def _laid_back(name: str, tensor: Tensor, net: CLIP, transposed: bool) -> Tensor:
    """Our tensor, copied, in another's shape: the inverse of :func:`_laid_out`."""
    if name == "image.patches.weight" and isinstance(net.image, VisionTransformer):
        tensor = rearrange(tensor, "d (c h w) -> d c h w", c=3, h=net.image.patch_size)
    elif name == "image.class_token":
        tensor = tensor.flatten()
    elif name in ("image.positions", "text.positions"):
        tensor = tensor[0]
    elif name in PROJECTIONS and transposed:
        tensor = tensor.T
    return tensor.clone(memory_format=torch.contiguous_format)


def _check_towers(net: CLIP, whose: str, image: tuple[type, ...]) -> None:
    for tower, kinds in ((net.image, image), (net.text, (TextTransformer,))):
        if not isinstance(tower, kinds):
            raise UserError(
                f"{whose} layout has no place for a {type(tower).__name__}",
                f"write a CLIP with a {' or '.join(kind.__name__ for kind in kinds)}, or keep our own checkpoint",
            )


def _stage_starts(weights: Mapping[str, Tensor]) -> list[int]:
    """Numbers of the blocks with which a ResNet's stages begin: those whose shortcut is a convolution."""
    found = (re.match(r"image\.blocks\.(\d+)\.shortcut\.1\.weight", name) for name in weights)
    return sorted(int(one[1]) for one in found if one)


# --- files ----------------------------------------------------------------------------------------------------------


class Constants(NamedTuple):
    """What the shapes of weights do not tell, None where the file does not say it (or the tower has no such thing)."""

    image_heads: int | None = None
    image_gelu: GeluApproximation | None = None
    image_mean: tuple[float, ...] | None = None
    image_std: tuple[float, ...] | None = None
    text_heads: int | None = None
    text_gelu: GeluApproximation | None = None


class Contents(NamedTuple):
    """A CLIP in a file.

    Attributes:
        weights: in our names, float32.
        constants: what the file says of the network besides.
        network: how to build the network, if a run of ours wrote the file.
    """

    weights: Weights
    constants: Constants
    network: dict[str, Any] | None


def read_clip(path: str) -> Contents:
    """The CLIP in a local file, without running any of it.

    Half precision becomes float32. OpenAI's ``.pt`` files are TorchScript archives, which carry code and run it when they
    are loaded as modules; here only the tensors within are read, and of the code only which GELU it calls.

    Args:
        path: OpenAI's archive; a state dict of open_clip (``.safetensors``, ``.pt``, ``.bin``) or a checkpoint of its
            training, where an ``open_clip_config.json`` beside it is believed; one of transformers, with its
            ``config.json`` beside it; a folder with either; or a checkpoint of a run of ours (``.ckpt``).

    Raises:
        UserError: the file cannot be read, carries more than weights, or holds no CLIP of the paper's kind.
    """
    file = _file_in(Path(path))
    constants = Constants()
    if _is_archive(file):
        content, gelu = _read_archive(file)
        constants = Constants(image_gelu=gelu, text_gelu=gelu)
    else:
        content = read_file(str(file))
    network = content.get("network") if isinstance(content, dict) else None
    raw = _raw(content, path)
    if isinstance(network, dict):
        with torch.device("meta"):
            return Contents(raw, _constants(_from_network(network, path)), network)
    if any(key.startswith(("vision_model.", "text_model.")) for key in raw):
        config = file.with_name("config.json")
        return Contents(from_transformers(raw), _said_by_transformers(config), None)
    if any(key.startswith("visual.") for key in raw):
        config = file.with_name("open_clip_config.json")
        return Contents(from_openai(raw), _said_by_open_clip(config) if config.is_file() else constants, None)
    if any(key.startswith("image.") for key in raw) and "logit_scale" in raw:
        return Contents(raw, constants, None)
    raise UserError(
        f"{path}: {next(iter(raw))} and the other weights are not those of a CLIP",
        "name a CLIP of OpenAI, of open_clip, of transformers (CLIPModel) or of this package",
    )


def _file_in(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in FILES:
        if (path / name).is_file():
            return path / name
    raise UserError(f"{path} has none of {', '.join(FILES)}", "name a file with the weights")


def _raw(content: Any, path: str) -> Weights:
    """The state dict, out of a checkpoint and of the wrapper for several processes, in float32."""
    if isinstance(content, dict) and isinstance(state := content.get("state_dict"), dict) and "network" not in content:
        content = state
    raw = {key.removeprefix("module."): tensor for key, tensor in state_dict(content, path).items()}
    return {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in raw.items()}


def _from_network(network: dict[str, Any], path: str) -> CLIP:
    net = build_network(network, (nn.Module, Positions, Stem), path)
    if not isinstance(net, CLIP):
        raise UserError(f"{path} holds a {type(net).__name__}", "name the weights of a CLIP")
    return net


def _constants(net: CLIP) -> Constants:
    image, text = net.image, net.text
    mean, std = (
        tuple(round(float(one), 7) for one in each.flatten()) for each in (image.mean, image.std)
    )  # as written
    constants = Constants(image_mean=mean, image_std=std)
    if isinstance(image, VisionTransformer):
        constants = constants._replace(image_heads=_heads(image), image_gelu=image.gelu_approximation)
    if isinstance(text, TextTransformer):
        constants = constants._replace(text_heads=_heads(text), text_gelu=text.gelu_approximation)
    return constants


def _heads(tower: VisionTransformer | TextTransformer) -> int:
    block = tower.encoder.blocks[0]
    assert isinstance(block, PreNormBlock)
    return block.attention.heads


def _said_by_transformers(config: Path) -> Constants:
    """What ``config.json`` says, and the ``preprocessor_config.json`` beside it; what they leave out is the library's default."""
    if not config.is_file():
        return Constants()
    said = _json(config)
    preprocessor = config.with_name("preprocessor_config.json")
    pixels = _json(preprocessor) if preprocessor.is_file() else {}
    try:
        image, text = said.get("vision_config") or {}, said.get("text_config") or {}
        fixed: list[tuple[Any, Any]] = [(said.get("model_type", "clip"), "clip")]
        fixed += [(tower.get("layer_norm_eps", LAYER_NORM_EPS), LAYER_NORM_EPS) for tower in (image, text)]
        gelus = [HIDDEN_ACT.get(tower.get("hidden_act", "quick_gelu")) for tower in (image, text)]
        constants = Constants(
            image_heads=int(image.get("num_attention_heads", 12)),
            image_gelu=gelus[0],
            image_mean=_triple(pixels.get("image_mean", MEAN)),
            image_std=_triple(pixels.get("image_std", STD)),
            text_heads=int(text.get("num_attention_heads", 8)),
            text_gelu=gelus[1],
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{config} is no configuration of a CLIP: {error}", "fetch it anew") from error
    if None in gelus or any(theirs != ours for theirs, ours in fixed):
        raise UserError(
            f"{config} has another model type, activation or layer_norm_eps than a CLIP of the paper",
            f"name a CLIP with hidden_act {' or '.join(HIDDEN_ACT)} and layer_norm_eps {LAYER_NORM_EPS}",
        )
    return constants


def _said_by_open_clip(config: Path) -> Constants:
    """What an ``open_clip_config.json`` says; what it leaves out is open_clip's default."""
    said = _json(config)
    try:
        model, pixels = said["model_cfg"], said.get("preprocess_cfg", {})
        image, text = model["vision_cfg"], model["text_cfg"]
        gelu: GeluApproximation = "quick" if model.get("quick_gelu", False) else "none"
        is_vit = isinstance(image["layers"], int)
        return Constants(
            image_heads=image["width"] // image.get("head_width", HEAD_WIDTH) if is_vit else None,
            image_gelu=gelu if is_vit else None,
            image_mean=_triple(pixels.get("mean", MEAN)),
            image_std=_triple(pixels.get("std", STD)),
            text_heads=int(text.get("heads", 8)),
            text_gelu=gelu,
        )
    except (ValueError, TypeError, AttributeError, KeyError, ZeroDivisionError) as error:
        raise UserError(f"{config} is no configuration of open_clip: {error}", "fetch it anew") from error


def _json(file: Path) -> dict[str, Any]:
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{file} is no JSON: {error}", "fetch it anew") from error
    if not isinstance(said, dict):
        raise UserError(f"{file} is no configuration", "fetch it anew")
    return said


def _triple(values: Any) -> tuple[float, ...]:
    red, green, blue = values
    return float(red), float(green), float(blue)


# --- TorchScript archives -------------------------------------------------------------------------------------------


STORAGES = {
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "BoolStorage": torch.bool,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
}


def _is_archive(file: Path) -> bool:
    """Whether it is TorchScript: a zip with constants beside the data."""
    try:
        if not is_zipfile(file):
            return False
        with ZipFile(file) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (BadZipFile, OSError):
        return False  # what reads other files says so


def _read_archive(file: Path) -> tuple[Weights, GeluApproximation]:
    """The tensors by name, and the GELU that the code calls: OpenAI's spells the quick one out."""
    try:
        with ZipFile(file) as archive:
            root = next(name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl"))
            module = _TensorUnpickler(archive, root.removesuffix("data.pkl")).load()
            code = [name for name in archive.namelist() if "/code/" in name and name.endswith(".py")]
            exact = any(b"torch.gelu(" in archive.read(name) for name in code)
        return dict(_tensors(module, "")), "none" if exact else "quick"
    except (BadZipFile, pickle.UnpicklingError, StopIteration, IndexError, RecursionError, *NOT_WEIGHTS) as error:
        raise UserError(f"{file} is broken or no file of weights", "fetch or save it anew") from error


class _Module:
    """A place for the attributes of a TorchScript module, in whose stead it is built."""


class _TensorUnpickler(pickle.Unpickler):
    """Builds tensors and places for them out of an archive's data, and nothing else."""

    def __init__(self, archive: ZipFile, root: str) -> None:
        super().__init__(archive.open(f"{root}data.pkl"))
        self._archive, self._root = archive, root

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name in the archive; other names are refused."""
        if module.partition(".")[0] == "__torch__":
            return _Module
        if module == "torch.jit._pickle":  # lists, and values with a note of their type
            return _plain
        known = {("collections", "OrderedDict"): OrderedDict, ("torch._utils", "_rebuild_tensor_v2"): _tensor}
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if (module, name) not in known:
            raise UserError(
                f"{self._archive.filename} holds {module}.{name}, which could run code, and was not opened",
                "where you trust it, save its state_dict() as .safetensors",
            )
        return known[module, name]

    def persistent_load(self, storage: Any) -> Tensor:
        """The numbers of a storage."""
        _, dtype, key, *_ = storage
        return torch.frombuffer(bytearray(self._archive.read(f"{self._root}data/{key}")), dtype=dtype)


def _plain(value: Any, *_: Any) -> Any:
    return value


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    return storage.as_strided(size, stride, offset)


def _tensors(module: _Module, prefix: str) -> Iterator[tuple[str, Tensor]]:
    for name, value in vars(module).items():
        if isinstance(value, Tensor):
            yield prefix + name, value
        elif isinstance(value, _Module):
            yield from _tensors(value, f"{prefix}{name}.")


# --- networks -------------------------------------------------------------------------------------------------------


def load_clip(path: str, gelu_approximation: GeluApproximation | None = None) -> CLIP:
    """The CLIP that a local file holds, with its weights.

    A checkpoint of ours says how its network was built. Otherwise the shapes tell, and what they do not is taken from
    the configuration of transformers or open_clip beside the file, as are the mean and std of pixels if they are not
    CLIP's usual ones; without any, heads are 64 wide. OpenAI's archives have the quick GELU. A bare file of open_clip
    does not tell its GELU: most were trained with the exact one, those named "quickgelu" (and OpenAI's weights in
    open_clip's layout) with the quick one.

    Args:
        path: see :func:`read_clip`.
        gelu_approximation: what the file does not tell.

    Raises:
        UserError: the file cannot be read, holds no CLIP of the paper's kind, does not tell its GELU when none is given,
            or tells another than the one given.
    """
    weights, constants, network = read_clip(path)
    if network is not None:
        net = _from_network(network, path)
    else:
        try:
            net = _from_shapes(weights, constants, gelu_approximation, path)
        except ValueError as error:
            raise UserError(f"{path} is no CLIP of the paper's kind: {error}", "name the weights of another") from error
    load_checked(net, weights, path)
    return net


def _from_shapes(weights: Weights, said: Constants, given: GeluApproximation | None, path: str) -> CLIP:
    """A CLIP into which the weights fit, if any does."""
    image: ImageTower
    red, green, blue = said.image_mean or MEAN
    mean = (red, green, blue)
    red, green, blue = said.image_std or STD
    std = (red, green, blue)
    if "image.pool.positions" in weights:
        starts = _stage_starts(weights)
        if len(starts) != 4:
            raise UserError(f"{path} has a ResNet of {len(starts)} stages", "name one of four stages, as the paper's")
        blocks = _count(weights, "image.blocks.")
        first, second, third, fourth = (b - a for a, b in zip(starts, [*starts[1:], blocks], strict=True))
        side = square_side(_shape(weights, "image.pool.positions", 2, path)[0] - 1, path)
        width = _shape(weights, "image.stem.6.weight", 4, path)[0]
        embed_dim = _shape(weights, "image.pool.output.weight", 2, path)[0]
        image = ModifiedResNet(32 * side, (first, second, third, fourth), width, embed_dim, mean, std)
    else:
        dim, numbers = _shape(weights, "image.patches.weight", 2, path)
        side = square_side(_shape(weights, "image.positions", 3, path)[1] - 1, path)
        embed_dim = _shape(weights, "image.projection.weight", 2, path)[0]
        patch_size, layers = isqrt(numbers // 3), _count(weights, "image.encoder.blocks.")
        if said.image_heads is None and dim > WIDEST:
            raise UserError(
                f"{path} does not say how many heads share its width of {dim}",
                "put the open_clip_config.json or config.json beside it that belongs to it",
            )
        heads = said.image_heads or dim // HEAD_WIDTH
        gelu = _gelu(said.image_gelu, given, path)
        image = VisionTransformer(
            side * patch_size, patch_size, dim, layers, _divides(heads, dim), embed_dim, gelu, mean, std
        )
    vocabulary_size, dim = _shape(weights, "text.tokens.weight", 2, path)
    text = TextTransformer(
        vocabulary_size,
        context_length=_shape(weights, "text.positions", 3, path)[1],
        dim=dim,
        layers=_count(weights, "text.encoder.blocks."),
        heads=_divides(said.text_heads or dim // HEAD_WIDTH, dim),
        embed_dim=_shape(weights, "text.projection.weight", 2, path)[0],
        gelu_approximation=_gelu(said.text_gelu, given, path),
    )
    return CLIP(image, text, bias=0.0 if "logit_bias" in weights else None)


def _shape(weights: Weights, name: str, dimensions: int, path: str) -> tuple[int, ...]:
    if name not in weights:
        raise UserError(f"{path} lacks {name}, which a CLIP has", "name the weights of a whole CLIP")
    if weights[name].ndim != dimensions:
        raise UserError(f"{path} has {name} of {tuple(weights[name].shape)}", "name the weights of a CLIP")
    return tuple(weights[name].shape)


def _count(weights: Weights, prefix: str) -> int:
    return len({name.removeprefix(prefix).partition(".")[0] for name in weights if name.startswith(prefix)})


def _divides(heads: int, dim: int) -> int:
    if heads < 1 or dim % heads:
        raise ValueError(f"{heads} heads do not share a width of {dim}")
    return heads


def _gelu(said: GeluApproximation | None, given: GeluApproximation | None, path: str) -> GeluApproximation:
    gelu = said or given
    if gelu is None:
        raise UserError(
            f"{path} does not say which GELU its network has",
            "give gelu_approximation: none for most of open_clip's, quick for OpenAI's and those named quickgelu",
        )
    if given not in (None, gelu):
        raise UserError(f"{path} has the GELU {gelu}, not {given}", f"give gelu_approximation {gelu}, or none at all")
    return gelu


# --- starts ---------------------------------------------------------------------------------------------------------


@dataclass
class Report(lightning_vl.weights.Report):
    """What became of every weight.

    Attributes:
        resized: positions interpolated for another grid of patches.
        assumed: what the file does not say of itself; it was taken to be as in the network.
    """

    resized: list[str] = field(default_factory=list)
    assumed: list[str] = field(default_factory=list)


class ClipInitialisation(Initialisation):
    """Start from a CLIP: of OpenAI, of open_clip, of transformers or one of ours; everything is taken.

    The network has the file's sizes. Only a ViT's positions are resized, for images of another size (bilinear, the class
    token's row apart), as L/14@336px starts from L/14 (Sec. 2.5); the report says so, and what the file does not tell of
    heads, GELU and pixels.

    Args:
        path: local file or folder, see :func:`read_clip`; a pattern with * for the newest file that it names.
    """

    def apply(self, net: CLIP) -> Report:
        """Load both towers and the scale.

        Raises:
            UserError: the file cannot be read, or its sizes, heads, GELU or pixels' mean and std are not the network's.
        """
        if not isinstance(net, CLIP):
            raise UserError(f"{self.path} is to start a {type(net).__name__}", "use ClipInitialisation for a CLIP")
        self.path = newest(self.path)
        weights, said, _ = read_clip(self.path)
        report = Report(self.path)
        both = {
            name.replace("_", ".", 1): (theirs, ours)
            for name, theirs, ours in zip(Constants._fields, said, _constants(net), strict=True)
            if ours is not None
        }
        report.assumed += [f"{name}: {ours}" for name, (theirs, ours) in both.items() if theirs is None]
        if other := [name for name, (theirs, ours) in both.items() if theirs is not None and _differ(theirs, ours)]:
            theirs, ours = (", ".join(f"{name}: {both[name][side]}" for name in other) for side in (0, 1))
            raise UserError(f"{self.path} has {theirs}; the network has {ours}", f"set {theirs} in the network")
        name = "image.positions"
        if isinstance(net.image, VisionTransformer) and name in weights and weights[name].ndim == 3:
            side, wanted = (
                square_side(weights[name].shape[1] - 1, self.path),
                net.image.image_size // net.image.patch_size,
            )
            if side != wanted:
                weights[name] = resize_positions(weights[name], (side, side), (wanted, wanted))
                report.resized.append(f"{name} ({side} x {side} to {wanted} x {wanted})")
        load_checked(net, weights, self.path)
        report.loaded += [key for key in weights if not (key == name and report.resized)]
        return report


def _differ(one: Any, other: Any) -> bool:
    """Not the same; of pixels' mean and std the fourth decimal is precise enough."""
    if isinstance(one, tuple):
        return any(abs(a - b) > 1e-4 for a, b in zip(one, other, strict=True))
    return bool(one != other)


class TowerInitialisation(Initialisation):
    """Start from encoders that were trained apart: each tower's own network from its own file.

    The projections, and the scale, stay as built.

    Args:
        image: what a `ClassifierTower`'s network starts from, as `ViTInitialisation`, or a `TimmTower`, which is
            `TimmInitialisation`; None to leave it as built.
        text: what a `BertTower`'s BERT starts from, as `BertInitialisation`; None to leave it as built.
    """

    def __init__(self, image: Initialisation | None = None, text: Initialisation | None = None) -> None:
        super().__init__(" and ".join(one.path for one in (image, text) if one is not None))
        self.image = image
        self.text = text

    def apply(self, net: CLIP) -> Report:
        """Load the networks within the towers.

        Raises:
            UserError: no initialisation is given, a tower has no such network, or see the initialisations.
        """
        if self.image is None and self.text is None:
            raise UserError("TowerInitialisation has neither image nor text", "give it one of both, or leave it out")
        report = Report(self.path)
        if self.image is not None:
            if isinstance(net.image, TimmTower):
                _adopt(report, _start(self.image, net.image, False), "image.")
            else:
                inner = _inner(net.image, "net", "an image tower of a ViT or BiT of ours (ClassifierTower)")
                _adopt(report, _start(self.image, inner, net.image.frozen), "image.net.")
        if self.text is not None:
            inner = _inner(net.text, "bert", "a text tower of a BERT of ours (BertTower)")
            # what starts a BERT knows it by its heads; these here are thrown away
            with_heads = BertPreTraining(inner, next_sentence=False) if isinstance(inner, Bert) else inner
            _adopt(report, _start(self.text, with_heads, net.text.frozen), "text.")
        own = net.state_dict()
        report.dropped += [name for name in report.loaded if name not in own]
        report.loaded = [name for name in report.loaded if name in own]
        taken = {*report.loaded, *(what.partition(" ")[0] for what in report.resized)}
        report.fresh = [name for name in own if name not in taken]
        return report


def _inner(tower: nn.Module, name: str, wanted: str) -> nn.Module:
    inner = getattr(tower, name, None)
    if not isinstance(inner, nn.Module):
        raise UserError(f"a {type(tower).__name__} has no network within that could start apart", f"use {wanted}")
    return inner


def _start(start: Initialisation, net: nn.Module, frozen: bool) -> lightning_vl.weights.Report:
    """Apply it as if the network were not frozen: weights that are not learned are known by that, and left as built."""
    if frozen:
        net.requires_grad_(True)
    report = start.apply(net)
    if frozen:
        net.requires_grad_(False)
    return report


def _adopt(report: Report, inner: lightning_vl.weights.Report, prefix: str) -> None:
    """The report of a network within, by the names of the whole."""
    report.loaded += [prefix + name for name in inner.loaded]
    report.resized += [prefix + name for name in (*getattr(inner, "resized", ()), *getattr(inner, "shorter", ()))]
    report.assumed += [f"{prefix}{what}" for what in getattr(inner, "assumed", ())]
    report.dropped += [prefix + name for name in inner.dropped]
