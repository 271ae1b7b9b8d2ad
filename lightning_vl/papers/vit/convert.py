"""Weights of image ViTs from local files, and between timm's, transformers' and our names."""

import re
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lightning_vl.errors import UserError

Weights = dict[str, Tensor]

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
THIRDS = ("query", "key", "value")


def read_weights(path: str) -> Weights:
    """The state dict in a local file.

    Args:
        path: a ``.safetensors`` file, or one that ``torch.save`` wrote: a plain state dict (``.pt``, ``.pth``,
            ``.bin``) or a checkpoint of a run of ours (``.ckpt``), of which the network's weights are taken.

    Raises:
        UserError: no such file, not a state dict, broken, or a pickle that carries more than tensors.
    """
    file = Path(path)
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "does not exist"
        raise UserError(f"{path} {what}", "name a .safetensors, .pt, .bin or .ckpt file with the weights to start from")
    try:
        safe = file.suffix == ".safetensors"
        content: Any = load_file(file) if safe else torch.load(file, "cpu", weights_only=True)
    except UnpicklingError as error:
        raise UserError(
            f"{path} holds something else than weights, which could run code, and was not opened",
            "where you trust it, save its state_dict() as .safetensors",
        ) from error
    except (SafetensorError, RuntimeError, EOFError, KeyError, ValueError, OSError) as error:
        raise UserError(f"{path} is broken or no file of weights", "fetch or save it anew") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):  # a Lightning checkpoint
        state = content["state_dict"]
        content = {key.removeprefix("net."): tensor for key, tensor in state.items() if key.startswith("net.")}
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise UserError(f"{path} holds no state dict", "save a network's state_dict() and start from that")
    return content


def from_timm(weights: Mapping[str, Tensor]) -> Weights:
    """A timm ``VisionTransformer``'s state dict in the names of our ViT.

    timm's GELU is the exact one: build ``ViT(..., gelu_approximation="none")`` to compute the same.

    Raises:
        UserError: a tensor that the paper's ViT does not have (register tokens, layer scale, ...).
    """
    return {_translate(key, TIMM, "timm's ViT"): tensor for key, tensor in weights.items()}


def from_transformers(weights: Mapping[str, Tensor], prefix: str = "vit.") -> Weights:
    """A transformers ``ViTForImageClassification``'s or ``ViTModel``'s state dict in the names of our ViT.

    The GELU is the exact one, as timm's. A pooler becomes ``pre_logits``, which our ViT does not have.

    Args:
        weights: by the names of files or of transformers 5 in memory.
        prefix: under which a model with a head keeps the rest.

    Raises:
        UserError: a tensor that the paper's ViT does not have, or a third of query, key and value that is missing.
    """
    names = TRANSFORMERS | TRANSFORMERS_IN_MEMORY
    renamed = {_translate(key.removeprefix(prefix), names, "transformers' ViT"): weights[key] for key in weights}
    for query in [key for key in renamed if ".query." in key]:
        thirds = [query.replace("query", third) for third in THIRDS]
        if missing := [key for key in thirds if key not in renamed]:
            raise UserError(f"the weights lack {missing[0]}", "fetch or save them anew")
        renamed[query.replace("query", "query_key_value")] = torch.cat([renamed.pop(key) for key in thirds])
    return renamed


def to_transformers(weights: Mapping[str, Tensor], prefix: str = "vit.") -> Weights:
    """Our state dict in the names of transformers' files: the inverse of :func:`from_transformers`, bit for bit.

    Write it as ``model.safetensors`` beside a ``config.json``; ``from_pretrained`` of any version reads that.
    """
    names = {ours: theirs for theirs, ours in TRANSFORMERS.items()}
    renamed: Weights = {}
    for key, tensor in weights.items():
        fused = ".query_key_value." in key
        parts = zip(THIRDS, tensor.chunk(3), strict=True) if fused else [("", tensor)]
        for third, part in parts:
            name = _translate(key.replace("query_key_value", third), names, "our ViT")
            renamed[name if key.startswith("head.") else prefix + name] = part.clone()
    return renamed


def to_vit(weights: Weights) -> Weights:
    """An image ViT's state dict, whosever it is, in our names.

    Raises:
        UserError: it is none of ours, timm's or transformers'.
    """
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


def _translate(key: str, names: Mapping[str, str], source: str) -> str:
    """The other name of a tensor, by that of its module."""
    number = re.search(r"\.(\d+)\.", key)
    pattern = key.replace(number[0], ".*.", 1) if number else key
    module, _, leaf = pattern.rpartition(".")
    if pattern in names:
        name = names[pattern]
    elif module in names and leaf in ("weight", "bias"):
        name = f"{names[module]}.{leaf}"
    else:
        raise UserError(f"{key} is no weight of {source}", "start from a plain ViT, without additions to the paper's")
    return name.replace("*", number[1]) if number else name
