"""ViT's weights to and from timm, transformers and the official files, and as a network's start."""

import json
import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isqrt
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn

import lightning_vl.weights
from lightning_vl.errors import UserError
from lightning_vl.nn.blocks import LAYER_NORM_EPS, GeluApproximation
from lightning_vl.nn.embeddings import Stem
from lightning_vl.nn.positions import Positions, PositionTables, resize_line, resize_positions
from lightning_vl.papers.vit.bit import BiT, ResNetStem
from lightning_vl.papers.vit.model import ImageClassifier, ViT
from lightning_vl.weights import (
    Weights,
    build_network,
    fuse,
    load_checked,
    part,
    read_file,
    read_weights,
    state_dict,
    translate,
)

# Another library's module (or parameter) on the left, ours on the right; * stands for the number of a block.
TIMM = {
    "cls_token": "class_token",
    "pos_embed": "positions",
    "patch_embed.proj": "embedding",
    "blocks.*.norm1": "encoder.blocks.*.norm_attention",
    "blocks.*.attn.qkv": "encoder.blocks.*.attention.query_key_value",
    "blocks.*.attn.proj": "encoder.blocks.*.attention.output",
    "blocks.*.norm2": "encoder.blocks.*.norm_mlp",
    "blocks.*.mlp.fc1": "encoder.blocks.*.mlp.hidden",
    "blocks.*.mlp.fc2": "encoder.blocks.*.mlp.output",
    "norm": "encoder.norm",
    "pre_logits.fc": "pre_logits",
    "head": "head",
}
TRANSFORMERS = {  # as in the files on the hub and those that save_pretrained writes
    "embeddings.cls_token": "class_token",
    "embeddings.position_embeddings": "positions",
    "embeddings.patch_embeddings.projection": "embedding",
    "encoder.layer.*.layernorm_before": "encoder.blocks.*.norm_attention",
    "encoder.layer.*.attention.attention.query": "encoder.blocks.*.attention.query",
    "encoder.layer.*.attention.attention.key": "encoder.blocks.*.attention.key",
    "encoder.layer.*.attention.attention.value": "encoder.blocks.*.attention.value",
    "encoder.layer.*.attention.output.dense": "encoder.blocks.*.attention.output",
    "encoder.layer.*.layernorm_after": "encoder.blocks.*.norm_mlp",
    "encoder.layer.*.intermediate.dense": "encoder.blocks.*.mlp.hidden",
    "encoder.layer.*.output.dense": "encoder.blocks.*.mlp.output",
    "layernorm": "encoder.norm",
    "pooler.dense": "pre_logits",
    "classifier": "head",
}
TRANSFORMERS_IN_MEMORY = {  # what transformers 5 calls the same modules in state_dict()
    "layers.*.layernorm_before": "encoder.blocks.*.norm_attention",
    "layers.*.attention.q_proj": "encoder.blocks.*.attention.query",
    "layers.*.attention.k_proj": "encoder.blocks.*.attention.key",
    "layers.*.attention.v_proj": "encoder.blocks.*.attention.value",
    "layers.*.attention.o_proj": "encoder.blocks.*.attention.output",
    "layers.*.layernorm_after": "encoder.blocks.*.norm_mlp",
    "layers.*.mlp.fc1": "encoder.blocks.*.mlp.hidden",
    "layers.*.mlp.fc2": "encoder.blocks.*.mlp.output",
}
NPZ = {  # the official files, as _dotted spells their names; a block's modules are numbered in the order they were made in
    "cls": "class_token",
    "embedding": "embedding",
    "Transformer.posembed_input.pos_embedding": "positions",
    "pos_embedding": "positions",
    "Transformer.blocks.*.LayerNorm_0": "encoder.blocks.*.norm_attention",
    "Transformer.blocks.*.MultiHeadDotProductAttention_1.query": "encoder.blocks.*.attention.query",
    "Transformer.blocks.*.MultiHeadDotProductAttention_1.key": "encoder.blocks.*.attention.key",
    "Transformer.blocks.*.MultiHeadDotProductAttention_1.value": "encoder.blocks.*.attention.value",
    "Transformer.blocks.*.MultiHeadDotProductAttention_1.out": "encoder.blocks.*.attention.output",
    "Transformer.blocks.*.LayerNorm_2": "encoder.blocks.*.norm_mlp",
    "Transformer.blocks.*.MlpBlock_3.Dense_0": "encoder.blocks.*.mlp.hidden",
    "Transformer.blocks.*.MlpBlock_3.Dense_1": "encoder.blocks.*.mlp.output",
    "Transformer.encoder_norm": "encoder.norm",
    "pre_logits": "pre_logits",
    "head": "head",
}
NPZ |= {  # big_vision's number each kind by itself
    theirs.replace("Attention_1", "Attention_0").replace("LayerNorm_2", "LayerNorm_1").replace("_3", "_0"): ours
    for theirs, ours in NPZ.items()
}
NPZ_PREFIXES = ("opt/target/", "params/")  # under which big_vision keeps the weights
TO_TIMM = "a ViT of timm"
STEM = ("patch_embed.backbone.", "embedding.stem.trunk.")  # of a hybrid: timm's name, ours
HEAD = ("head.", "pre_logits.")


def from_timm(weights: Mapping[str, Tensor]) -> Weights:
    """A timm ``VisionTransformer``'s state dict in the names of our ViT.

    timm's GELU is the exact one: build ``ViT(..., gelu_approximation="none")`` to compute the same.

    Raises:
        UserError: a tensor that the paper's ViT does not have (register tokens, layer scale, ...).
    """
    theirs, ours = STEM
    return {
        ours + key.removeprefix(theirs) if key.startswith(theirs) else translate(key, TIMM, "timm's ViT"): tensor
        for key, tensor in weights.items()
    }


def to_timm(weights: Mapping[str, Tensor]) -> Weights:
    """Our state dict in timm's names: the inverse of :func:`from_timm`, bit for bit.

    Raises:
        UserError: timm's ViT has no place for a tensor: the hidden layer of a pre-training head, 2-D or relative
            positions.
    """
    names = {ours: theirs for theirs, ours in TIMM.items() if ours != "pre_logits"}
    theirs, ours = STEM
    return {
        theirs + key.removeprefix(ours) if key.startswith(ours) else translate(key, names, TO_TIMM): tensor.clone()
        for key, tensor in weights.items()
    }


def from_transformers(weights: Mapping[str, Tensor], prefix: str = "vit.") -> Weights:
    """A transformers ``ViTForImageClassification``'s or ``ViTModel``'s state dict in the names of our ViT.

    The GELU is the exact one, as timm's. A pooler becomes ``pre_logits``, the hidden layer of a pre-training head.

    Args:
        weights: by the names of files or of transformers 5 in memory.
        prefix: under which a model with a head keeps the rest.

    Raises:
        UserError: a tensor that the paper's ViT does not have, or a third of query, key and value that is missing.
    """
    names = TRANSFORMERS | TRANSFORMERS_IN_MEMORY
    renamed = {translate(key.removeprefix(prefix), names, "transformers' ViT"): weights[key] for key in weights}
    return fuse(renamed)


def from_npz(arrays: Mapping[str, Tensor]) -> Weights:
    """The official files' arrays in the names and layouts of our ViT, which computes the same as it is built by default.

    Args:
        arrays: of the paper's code or AugReg's, numbered as modules were made, or of big_vision. There positions may be
            added to the patches alone, which is the same as a row of zeros for the class token.

    Raises:
        UserError: a tensor that the paper's ViT does not have (a hybrid's ResNet, attention pooling, ...).
    """
    prefix = next((p for p in NPZ_PREFIXES if any(key.startswith(p) for key in arrays)), "")
    renamed: Weights = {}
    for key, array in arrays.items():
        if key.startswith(prefix):  # the others are the optimiser's
            name = translate(_dotted(key.removeprefix(prefix)), NPZ, "an official ViT")
            renamed[name] = _from_flax(name, array).contiguous()
    rows = renamed["positions"].shape[1] if "positions" in renamed else 0
    if "class_token" in renamed and isqrt(rows) ** 2 == rows > 0:  # a row for each patch, none for the class token
        renamed["positions"] = torch.cat([torch.zeros_like(renamed["class_token"]), renamed["positions"]], dim=1)
    return fuse(renamed)


def _dotted(key: str) -> str:
    """``Transformer/encoderblock_0/LayerNorm_0/scale`` as ``Transformer.blocks.0.LayerNorm_0.weight``."""
    return re.sub(r"/(kernel|scale)$", ".weight", re.sub(r"encoderblock_(\d+)", r"blocks.\1", key)).replace("/", ".")


def _from_flax(name: str, array: Tensor) -> Tensor:
    """Kernels have the inputs ahead of the outputs, and attention's have an axis for the heads."""
    if name.endswith((".query.weight", ".key.weight", ".value.weight")):
        return rearrange(array, "d h c -> (h c) d")
    if name.endswith(".attention.output.weight"):
        return rearrange(array, "h c d -> d (h c)")
    if name.endswith((".query.bias", ".key.bias", ".value.bias")):
        return array.flatten()
    if array.ndim == 4:
        return rearrange(array, "h w c d -> d c h w")
    return array.T if array.ndim == 2 else array


def to_transformers(weights: Mapping[str, Tensor], prefix: str = "vit.") -> Weights:
    """Our state dict in the names of transformers' files: the inverse of :func:`from_transformers`, bit for bit.

    Write it as ``model.safetensors`` beside a ``config.json``; ``from_pretrained`` of any version reads that.
    """
    names = {ours: theirs for theirs, ours in TRANSFORMERS.items()}
    renamed: Weights = {}
    for key, tensor in part(weights).items():
        name = translate(key, names, "our ViT")
        renamed[name if key.startswith("head.") else prefix + name] = tensor
    return renamed


def to_vit(weights: Weights) -> Weights:
    """An image ViT's state dict, whosever it is, in our names.

    Raises:
        UserError: it is none of ours, timm's, transformers' or an official one.
    """
    if any(key.endswith("embedding/kernel") for key in weights):
        return from_npz(weights)
    if "patch_embed.proj.weight" in weights:
        return from_timm(weights)
    if any(key.removeprefix("vit.").startswith("embeddings.") for key in weights):
        return from_transformers(weights)
    if "embedding.weight" in weights and weights["embedding.weight"].ndim == 4:
        return weights
    raise UserError(
        f"{next(iter(weights))} and the other weights are not those of an image ViT",
        "start from a ViT of timm, of transformers or of this package (from a ViViT with VideoInitialisation)",
    )


def load_vit(path: str) -> ViT:
    """The ViT that a local file holds, with its weights.

    A checkpoint of ours says how its network was built, as does a ``config.json`` beside a file of transformers.
    Otherwise the shapes tell: square images, learned positions, heads of width 64 (80 in ViT-H) where the file does
    not have them, and the GELU and the epsilon of whoever wrote it. Weights without a head get a zero one of a class.

    Args:
        path: see :func:`lightning_vl.weights.read_weights`.

    Raises:
        UserError: the file cannot be read, or holds no ViT of the paper's kind.
    """
    content = read_file(path)
    raw = state_dict(content, path)
    if isinstance(content.get("network"), dict):
        net = build_network(content["network"], (ImageClassifier, Positions, Stem), path)
        if not isinstance(net, ViT):
            raise UserError(f"{path} holds a {type(net).__name__}", "name the weights of a ViT")
        return _filled(net, raw, path)

    weights = to_vit(raw)
    if "head.weight" not in weights:
        dim = len(weights["embedding.weight"])
        weights |= {"head.weight": torch.zeros(1, dim), "head.bias": torch.zeros(1)}
    heads, gelu, epsilon = _constants(raw, weights, path)
    return _filled(_from_shapes(weights, heads, gelu, epsilon, path), weights, path)


def _constants(raw: Weights, weights: Weights, path: str) -> tuple[int, GeluApproximation, float]:
    """Number of heads, form of the GELU and the norms' epsilon: what tensors in our names do not show."""
    dim = len(weights["embedding.weight"])
    heads = 16 if dim == 1280 else dim // 64  # Table 1
    queries = [tensor for key, tensor in raw.items() if key.endswith("/query/kernel")]
    if queries:
        return queries[0].shape[1], "tanh", LAYER_NORM_EPS
    config = Path(path).with_name("config.json")
    if (dim % 64 or dim > 1280) and not (config.is_file() and any("embeddings." in key for key in raw)):
        # a width of 96 may be one head or three: to guess would be wrong without a sign of it
        raise UserError(
            f"{path} does not say how many heads share its width of {dim}",
            "name a checkpoint that a run of this version wrote, which says how its network is built",
        )
    if "patch_embed.proj.weight" in raw:
        return heads, "none", 1e-6
    if "embedding.weight" in raw:
        return heads, "tanh", LAYER_NORM_EPS
    try:
        said = json.loads(config.read_text()) if config.is_file() else {}
        known = said.get("hidden_act", "gelu") == "gelu"
    except (ValueError, AttributeError) as error:
        raise UserError(f"{config} is no configuration of transformers: {error}", "fetch it anew") from error
    if not known:
        raise UserError(f"{config} has the activation {said['hidden_act']}", "load_vit reads ViTs with gelu")
    return said.get("num_attention_heads", heads), "none", said.get("layer_norm_eps", 1e-12)


def _from_shapes(weights: Weights, heads: int, gelu: GeluApproximation, epsilon: float, path: str) -> ViT:
    """A ViT into which the weights fit, if any does."""
    names = ("positions", "encoder.blocks.0.mlp.hidden.weight")
    if missing := [name for name in names if name not in weights]:
        raise UserError(f"{path} lacks {missing[0]}, which a ViT has", "name the weights of a whole ViT")
    dim, _, patch_size, _ = weights["embedding.weight"].shape
    if heads < 1 or dim % heads:
        raise UserError(f"{path} does not say how many heads share its width of {dim}", "name a checkpoint of a run")
    side = square_side(weights["positions"].shape[1] - ("class_token" in weights), path)
    stages = Counter(key.split(".")[4] for key in weights if re.search(r"trunk\.stages\.\d+\.blocks\.\d+\.conv1", key))
    stem = ResNetStem(tuple(stages.values())) if stages else None
    return ViT(
        image_size=side * patch_size * (1 if stem is None else stem.stride),
        patch_size=patch_size,
        dim=dim,
        layers=1 + max(int(key.split(".")[2]) for key in weights if key.startswith("encoder.blocks.")),
        heads=heads,
        mlp_dim=len(weights["encoder.blocks.0.mlp.hidden.weight"]),
        classes=len(weights["head.weight"]),
        gelu_approximation=gelu,
        layer_norm_eps=epsilon,
        pooled="class_token" not in weights,
        pre_logits="pre_logits.weight" in weights,
        stem=stem,
    )


def _filled(net: ViT, weights: Weights, path: str) -> ViT:
    load_checked(net, weights, path)
    return net


@dataclass
class Report(lightning_vl.weights.Report):
    """What became of every weight.

    Attributes:
        resized: positions interpolated for another grid.
    """

    resized: list[str] = field(default_factory=list)


class Initialisation(lightning_vl.weights.Initialisation):
    """Weights that an image classifier starts from, all but its head; what does not fit is an error, never skipped.

    Args:
        path: local file, see :func:`lightning_vl.weights.read_weights`.
    """

    @abstractmethod
    def trunk(self, net: ImageClassifier, report: Report) -> Weights:
        """The file's weights by the network's names; what is left out is in the report as dropped or fresh."""

    def apply(self, net: ImageClassifier) -> Report:
        """Load the trunk; the head stays as built, at zero (Sec. 3.2).

        Raises:
            UserError: the file cannot be read, has a weight that the network has no place for, lacks one that the
                network needs, or one is of another shape.
        """
        report = Report(self.path)
        weights = self.trunk(net, report)
        report.dropped += [name for name in weights if name.startswith(HEAD)]
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith(HEAD)}
        own = net.state_dict()
        report.fresh += [name for name in own if name.startswith(HEAD)]
        load_checked(net, {**{name: own[name] for name in report.fresh}, **weights}, self.path)
        report.loaded += [name for name in own if name in weights and name not in report.resized]
        return report


class ViTInitialisation(Initialisation):
    """Start from a ViT: of timm, of transformers, an official .npz or one of ours.

    Learned positions are resized for another grid of patches, bilinear and the class token's row apart (Sec. 3.2), 2-D
    ones table by table. Fixed ones stay as built; relative ones fit a grid of the same size alone.

    Args:
        path: local file with the weights.
    """

    def trunk(self, net: ImageClassifier, report: Report) -> Weights:
        if not isinstance(net, ViT):
            raise UserError(f"{self.path} is to start a {type(net).__name__}", "use BiTInitialisation for a BiT")
        weights = to_vit(read_weights(self.path))
        rows, columns = net.embedding.grid
        new: Weights = {}
        if isinstance(net.positions, PositionTables):
            lengths = {"positions.rows": rows, "positions.columns": columns}
            new = {name: resize_line(weights[name], length) for name, length in lengths.items() if name in weights}
        elif isinstance(net.positions, nn.Parameter) and not net.positions.requires_grad:
            report.fresh.append("positions")
            report.dropped += [name for name in ("positions",) if weights.pop(name, None) is not None]
        elif "positions" in weights:
            side = square_side(weights["positions"].shape[1] - ("class_token" in weights), self.path)
            new["positions"] = resize_positions(weights["positions"], (side, side), (rows, columns))
        report.resized += [name for name in new if new[name].shape != weights[name].shape]
        return weights | new


class BiTInitialisation(Initialisation):
    """Start from a BiT: one of ours, or timm's ``resnetv2_*_bit``.

    Args:
        path: local file with the weights.
    """

    def trunk(self, net: ImageClassifier, report: Report) -> Weights:
        if not isinstance(net, BiT):
            raise UserError(f"{self.path} is to start a {type(net).__name__}", "use ViTInitialisation for a ViT")
        weights = read_weights(self.path)
        ours = any(name.startswith("trunk.") for name in weights)
        return (
            weights if ours else {name if name.startswith(HEAD) else f"trunk.{name}": weights[name] for name in weights}
        )


def square_side(patches: int, path: str) -> int:
    """Rows, and columns, of a square of patches."""
    side = isqrt(patches)
    if side**2 != patches:
        raise UserError(
            f"{path} has positions of {patches} patches, which are no square grid",
            "start from a model that was trained on square images",
        )
    return side
