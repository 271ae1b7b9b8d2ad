"""Weights from local files: read without running code, carried between others' names and ours, loaded without a silent gap."""

import json
import os
import re
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from glob import glob
from importlib import import_module
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lightning_vl.errors import UserError

Weights = dict[str, Tensor]

THIRDS = ("query", "key", "value")
MODEL, DESCRIPTION = "model.safetensors", "config.json"  # of an export, and of folders as transformers writes them
LIBRARY = "lightning_vl"  # what an export's description says that it is of
WORD_PIECES, MERGES = "vocab.txt", "merges.txt"  # of an export: a piece, or a pair that becomes one, a line
NOT_WEIGHTS = (RuntimeError, EOFError, KeyError, ValueError, TypeError, AttributeError, OSError)  # as readers say so


def read_weights(path: str) -> Weights:
    """The state dict in a local file.

    Args:
        path: a ``.safetensors`` file, an ``.npz`` of arrays by name, or one that ``torch.save`` wrote: a plain state dict
            (``.pt``, ``.pth``, ``.bin``) or a checkpoint of a run of ours (``.ckpt``), of which the network's weights
            are taken; or the folder of an export.

    Raises:
        UserError: no such file, not a state dict, broken, or a pickle that carries more than tensors.
    """
    return state_dict(read_file(path), path)


def newest(path: str) -> str:
    """The file that was changed last of those that a pattern with * names; what has no * is as it is.

    Raises:
        UserError: there is none.
    """
    if "*" not in path:
        return path
    found = glob(path)
    if not found:
        raise UserError(f"no file is called {path}", "train one first, or name another file of weights")
    return max(found, key=os.path.getmtime)


def read_file(path: str) -> Any:
    """What a file holds, without running any of it; of an export the same as of the checkpoint that it was made of.

    Raises:
        UserError: no such file, broken, or a pickle that carries more than tensors and plain values.
    """
    file = Path(path)
    if file.is_dir() and (file / MODEL).is_file():
        file = file / MODEL
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "does not exist"
        raise UserError(
            f"{path} {what}", "name a .safetensors, .npz, .pt, .bin or .ckpt file with the weights to start from"
        )
    try:
        if file.suffix == ".safetensors":
            said = description(file)
            return load_file(file) if said is None else _as_checkpoint(file.parent, said, load_file(file))
        if file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as arrays:
                return {name: torch.from_numpy(arrays[name].astype(np.float32)) for name in arrays}
        return torch.load(file, "cpu", weights_only=True)
    except UnpicklingError as error:
        raise UserError(
            f"{path} holds something else than weights, which could run code, and was not opened",
            "where you trust it, save its state_dict() as .safetensors",
        ) from error
    except (SafetensorError, BadZipFile, zlib.error, *NOT_WEIGHTS) as error:
        raise UserError(f"{path} is broken or no file of weights", "fetch or save it anew") from error


def is_export(path: str) -> bool:
    """Whether this is the folder of an export, or the file of weights in one.

    Raises:
        UserError: the description beside the weights is broken.
    """
    return description(Path(path)) is not None


def description(file: Path) -> dict[str, Any] | None:
    """What an export says of its weights in its config.json; None of any other file or folder."""
    beside = (file if file.is_dir() else file.parent) / DESCRIPTION
    if not (file.is_dir() or file.name == MODEL) or not beside.is_file():
        return None
    try:
        said = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{beside} is broken: {_first_line(error)}", "fetch or export it anew") from error
    return said if isinstance(said, dict) and said.get("library_name") == LIBRARY else None


def _as_checkpoint(folder: Path, said: Mapping[str, Any], weights: Weights) -> dict[str, Any]:
    """An export in the form of the checkpoint that it was made of."""
    try:
        data, kept = {"preprocessing": said["preprocessing"]}, said["vocabulary"]
        if kept is not None:
            name = {WORD_PIECES: WORD_PIECES, MERGES: MERGES}[kept["file"]]  # never a path out of the folder
            text = (folder / name).read_bytes().decode()  # a piece may be any character but a line feed
            if name == WORD_PIECES:
                data["vocabulary"] = {"pieces": text.split("\n")[:-1], "lowercase": kept["lowercase"]}
            else:
                data["vocabulary"] = {"merges": text.removesuffix("\n"), "unused": kept["unused"]}
        state = {f"net.{name}": tensor for name, tensor in weights.items()}
        return {"state_dict": state, "network": said["network"], said["data"]: data}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder / DESCRIPTION}, or a file that it names, is broken: {_first_line(error)}", "export the run anew"
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def state_dict(content: Any, path: str) -> Weights:
    """The network's weights in what a file holds.

    Raises:
        UserError: there are none.
    """
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):  # a Lightning checkpoint
        state = content["state_dict"]
        content = {key.removeprefix("net."): tensor for key, tensor in state.items() if key.startswith("net.")}
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise UserError(f"{path} holds no state dict", "save a network's state_dict() and start from that")
    return content


def build_network(spec: Any, kinds: tuple[type, ...], path: str) -> Any:
    """The object that a checkpoint's class_path and init_args name; plain values as they are.

    Args:
        spec: what the checkpoint says.
        kinds: classes that a file may have built, they and what extends them: nothing else is called.
        path: the checkpoint.

    Raises:
        UserError: the class is none of these, or does not take these arguments.
    """
    if not isinstance(spec, dict) or "class_path" not in spec:
        return spec
    module, _, name = spec["class_path"].rpartition(".")
    try:
        made = getattr(import_module(module), name) if module.startswith("lightning_vl.") else None
        if isinstance(made, type) and issubclass(made, kinds):
            return made(**{key: build_network(value, kinds, path) for key, value in spec.get("init_args", {}).items()})
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{path} names {spec['class_path']}: {error}", "use the version that wrote it") from error
    raise UserError(f"{path} names {spec['class_path']}, which is no network here", "use the version that wrote it")


def translate(key: str, names: Mapping[str, str], source: str) -> str:
    """The other name of a tensor, by that of its module.

    Args:
        key: the tensor's name.
        names: from one's name of a module (or parameter) to the other's; * stands for the number of a block.
        source: whose the tensor is, to say when it is none.

    Raises:
        UserError: there is no such module.
    """
    number = re.search(r"\.(\d+)\.", key)
    pattern = key.replace(number[0], ".*.", 1) if number else key
    module, _, leaf = pattern.rpartition(".")
    if pattern in names:
        name = names[pattern]
    elif module in names and leaf in ("weight", "bias"):
        name = f"{names[module]}.{leaf}"
    else:
        raise UserError(f"{key} is no weight of {source}", "start from a plain one, without additions to the paper's")
    return name.replace("*", number[1]) if number else name


def fuse(weights: Weights) -> Weights:
    """Query, key and value as one projection.

    Raises:
        UserError: one of the three is missing.
    """
    for query in [key for key in weights if ".query." in key]:
        thirds = [query.replace("query", third) for third in THIRDS]
        if missing := [key for key in thirds if key not in weights]:
            raise UserError(f"the weights lack {missing[0]}", "fetch or save them anew")
        weights[query.replace("query", "query_key_value")] = torch.cat([weights.pop(key) for key in thirds])
    return weights


def part(weights: Mapping[str, Tensor]) -> Weights:
    """Query, key and value apart again, all tensors copied: the inverse of :func:`fuse`."""
    parted: Weights = {}
    for key, tensor in weights.items():
        fused = ".query_key_value." in key
        for third, one in zip(THIRDS, tensor.chunk(3), strict=True) if fused else [("", tensor)]:
            parted[key.replace("query_key_value", third)] = one.clone()
    return parted


@dataclass
class Report:
    """What became of every weight, by the names of the network (of the file, for those dropped).

    Attributes:
        path: the file.
        loaded: taken as they are.
        fresh: of the network, left as it was built.
        dropped: of the file, not used.
    """

    path: str
    loaded: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"started from {self.path}"]
        # a paper's report has more fields, and what was not taken comes last
        for what in sorted((item.name for item in fields(self)[1:]), key=("fresh", "dropped").__contains__):
            groups = Counter(_group(name) for name in getattr(self, what))
            if groups:
                lines.append(f"  {what:9}" + ", ".join(g if n == 1 else f"{g} ({n})" for g, n in groups.items()))
        return "\n".join(lines)


def _group(name: str) -> str:
    """A name without the number of its block, for reading: ``encoder.blocks.*.attention``."""
    name = re.sub(r"^trunk\.stages\.(\d+).*", r"trunk.stages.\1", name)
    return re.sub(r"blocks\.\d+\.(\w+).*", r"blocks.*.\1", name)


class Initialisation(ABC):
    """Weights that a network starts from; what does not fit is an error, never skipped.

    Args:
        path: local file, see :func:`read_weights`.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    @abstractmethod
    def apply(self, net: Any) -> Report:
        """Load the weights into the network.

        Raises:
            UserError: the file cannot be read, has a weight that the network has no place for, lacks one that the
                network needs, or one is of another shape.
        """


def load_checked(net: nn.Module, weights: Mapping[str, Tensor], path: str) -> None:
    """`load_state_dict` whose error names the first tensor that is unknown, missing or of another shape.

    On the meta device, where there is nothing to fill, names and shapes are all that is checked.
    """
    own, model = net.state_dict(), type(net).__name__
    for name, tensor in weights.items():
        if name not in own:
            raise UserError(
                f"{path} has {name}, which this {model} does not have", "start from weights of the same kind of network"
            )
        if tensor.shape != own[name].shape:
            raise UserError(
                f"{path} has {name} of {tuple(tensor.shape)}, this {model} of {tuple(own[name].shape)}",
                "start from weights of a network of the same sizes",
            )
    if missing := [name for name in own if name not in weights]:
        raise UserError(
            f"{path} lacks {missing[0]}, which this {model} has", "start from weights of the same kind of network"
        )
    if not any(tensor.is_meta for tensor in own.values()):
        net.load_state_dict(weights)
