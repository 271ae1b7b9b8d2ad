"""BERT's weights to and from transformers and the released TensorFlow code, and as a network's start."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import lightning_vl.weights
from lightning_vl.data.tokenizer import kept_vocabulary
from lightning_vl.errors import UserError
from lightning_vl.nn.blocks import GeluApproximation, Mlp, PostNormBlock
from lightning_vl.papers.bert.model import LAYER_NORM_EPS, Bert, BertClassifier, BertPreTraining
from lightning_vl.weights import Weights, build_network, fuse, load_checked, part, read_file, state_dict, translate

# transformers' module (or parameter) on the left, ours on the right; * stands for the number of a block. A network with
# heads has those of the encoder under "bert." here and there.
TRANSFORMERS = {
    "embeddings.word_embeddings": "tokens",
    "embeddings.token_type_embeddings": "segments",
    "embeddings.position_embeddings": "positions",
    "embeddings.LayerNorm": "norm",
    "encoder.layer.*.attention.self.query": "blocks.*.attention.query",
    "encoder.layer.*.attention.self.key": "blocks.*.attention.key",
    "encoder.layer.*.attention.self.value": "blocks.*.attention.value",
    "encoder.layer.*.attention.output.dense": "blocks.*.attention.output",
    "encoder.layer.*.attention.output.LayerNorm": "blocks.*.norm_attention",
    "encoder.layer.*.intermediate.dense": "blocks.*.mlp.hidden",
    "encoder.layer.*.output.dense": "blocks.*.mlp.output",
    "encoder.layer.*.output.LayerNorm": "blocks.*.norm_mlp",
    "pooler.dense": "pooler",
    "cls.predictions.transform.dense": "words.transform",
    "cls.predictions.transform.LayerNorm": "words.norm",
    "cls.predictions.bias": "words.bias",
    "cls.seq_relationship": "next_sentence",
    "classifier": "head",
}
TIED = {  # what files may hold twice: the words are said by the embeddings that they are read with
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
ENCODER = "bert."
BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")
OPTIMISER = re.compile(r"global_step$|/adam_[mv]$")  # in a checkpoint of the released code

HIDDEN_ACT: dict[str, GeluApproximation] = {"gelu": "none", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}
FIXED = {  # what config.json must say, if it says it: here there is nothing else
    "model_type": "bert",  # RoBERTa's tensors have the same names, and other positions
    "layer_norm_eps": LAYER_NORM_EPS,
    "position_embedding_type": "absolute",
    "is_decoder": False,
}
OFFICIAL_WIDTHS = (128, 256, 512, 768, 1024)  # of the released models, whose heads are all 64 wide
OPTIONAL = ("bert.pooler.", "words.", "next_sentence.", "head.")  # what some files and networks have


def from_transformers(weights: Mapping[str, Tensor]) -> Weights:
    """A transformers ``BertModel``'s state dict in the names of :class:`Bert`; one with heads in those of ours with heads.

    The file may be of ``BertForPreTraining``, ``BertForMaskedLM`` or ``BertForSequenceClassification``, and old enough to
    say gamma and beta. transformers' usual GELU is the exact one, ``gelu_approximation="none"`` here.

    Raises:
        UserError: a tensor that the paper's BERT does not have, a third of query, key and value that is missing, or words
            that are said by other embeddings than they are read with.
    """
    return _renamed(weights, "transformers' BERT")


def _renamed(weights: Mapping[str, Tensor], source: str) -> Weights:
    weights = {re.sub("gamma$", "weight", re.sub("beta$", "bias", key)): weights[key] for key in weights}
    for decoder, tied in TIED.items():
        if decoder in weights and not torch.equal(weights[decoder], weights.setdefault(tied, weights[decoder])):
            raise UserError(f"{decoder} is not {tied}", "start from a model in which the two are tied, as in the paper")
    renamed: Weights = {}
    for key, tensor in weights.items():
        module = key.removeprefix(ENCODER)
        if key not in TIED and module not in BUFFERS:
            prefix = ENCODER if key.startswith(ENCODER) else ""
            renamed[prefix + translate(module, TRANSFORMERS, source)] = tensor
    return fuse(renamed)


def to_transformers(weights: Mapping[str, Tensor]) -> Weights:
    """Our state dict in the names of transformers' files: the inverse of :func:`from_transformers`, bit for bit.

    Write it as ``model.safetensors`` beside a ``config.json``; ``from_pretrained`` ties the decoder by itself.
    """
    names = {ours: theirs for theirs, ours in TRANSFORMERS.items()}
    renamed: Weights = {}
    for key, tensor in part(weights).items():
        prefix = ENCODER if key.startswith(ENCODER) else ""
        renamed[prefix + translate(key.removeprefix(ENCODER), names, "our BERT")] = tensor
    return renamed


def from_tensorflow(arrays: Mapping[str, Tensor | np.ndarray]) -> Weights:
    """The arrays of a checkpoint of the released TensorFlow code in the names and layouts of :class:`BertPreTraining`.

    Its last version has the approximate GELU, ``gelu_approximation="tanh"`` here.

    Args:
        arrays: by name; the optimiser's are left out.

    Raises:
        UserError: see :func:`from_transformers`.
    """
    renamed: Weights = {}
    for key, array in arrays.items():
        if OPTIMISER.search(key):
            continue
        tensor = torch.as_tensor(array)
        if key.endswith("/kernel"):  # inputs by outputs; seq_relationship/output_weights is outputs by inputs as it is
            tensor = tensor.T.contiguous()
        name = re.sub("^output_", "classifier/output_", re.sub(r"/layer_(\d+)/", r"/layer/\1/", key)).replace("/", ".")
        name = re.sub(r"\.(kernel|output_weights)$", ".weight", name).replace(".output_bias", ".bias")
        renamed[name + ".weight" if name.endswith("_embeddings") else name] = tensor
    return _renamed(renamed, "the released BERT")


def to_tensorflow(weights: Mapping[str, Tensor]) -> Weights:
    """Our state dict in TensorFlow's names and layouts: the inverse of :func:`from_tensorflow`, bit for bit.

    Args:
        weights: of a :class:`BertPreTraining` or a :class:`BertClassifier`.
    """
    renamed: Weights = {}
    for key, tensor in to_transformers(weights).items():
        module, _, leaf = key.rpartition(".")
        if module.endswith("LayerNorm"):
            leaf = {"weight": "gamma", "bias": "beta"}[leaf]
        elif module.startswith(("cls.", "classifier")) and not module.endswith("dense"):
            leaf = {"weight": "output_weights", "bias": "output_bias"}[leaf]
        elif module.endswith("_embeddings"):
            leaf = ""
        elif leaf == "weight":
            leaf, tensor = "kernel", tensor.T.contiguous()
        name = re.sub(r"/layer/(\d+)/", r"/layer_\1/", f"{module}.{leaf}".replace(".", "/"))
        renamed[name.removesuffix("/").removeprefix("classifier/")] = tensor
    return renamed


def to_bert(weights: Weights) -> Weights:
    """A BERT's state dict, whosever it is, in our names, the encoder's under "bert.".

    Raises:
        UserError: it is none of ours, transformers' or the released code's.
    """
    if any(key.startswith("bert/embeddings/") for key in weights):
        return from_tensorflow(weights)
    if _is_transformers(weights):
        weights = from_transformers(weights)
    if "bert.tokens.weight" in weights:
        return weights
    if "tokens.weight" in weights and "segments.weight" in weights:
        return {name if name.startswith(OPTIONAL) else ENCODER + name: weights[name] for name in weights}
    raise UserError(
        f"{next(iter(weights))} and the other weights are not those of a BERT",
        "start from a BERT of transformers, of the released code (as .npz) or of this package",
    )


def _is_transformers(weights: Weights) -> bool:
    return any(key.removeprefix(ENCODER).startswith("embeddings.") for key in weights)


class Sizes(NamedTuple):
    """What the shapes of the weights tell, by the names of :class:`Bert`'s arguments."""

    vocabulary_size: int
    layers: int
    dim: int
    mlp_dim: int
    positions: int
    segments: int


class Constants(NamedTuple):
    """What the shapes do not tell, by the names of :class:`Bert`'s arguments; None where the file does not say it."""

    heads: int | None = None
    gelu_approximation: GeluApproximation | None = None
    bidirectional: bool | None = None
    dropout: float = 0.1
    attention_dropout: float = 0.1


class Contents(NamedTuple):
    """A BERT in a file.

    Attributes:
        weights: in our names, the encoder's under "bert.".
        sizes: its sizes.
        constants: what else the file says of it.
        usual_gelu: the form of whoever wrote it, unless the file says another.
    """

    weights: Weights
    sizes: Sizes
    constants: Constants
    usual_gelu: GeluApproximation


def load_bert(path: str) -> Bert:
    """The encoder that a local file holds, with its weights.

    A checkpoint of ours says how its network was built, as does a ``config.json`` beside a file of transformers. Otherwise
    the GELU is that of whoever wrote it, and the heads are 64 wide if the width is one of the released models'. Without a
    pooler in the file, that of the network is zero.

    Args:
        path: see :func:`lightning_vl.weights.read_weights`; or a folder with ``model.safetensors`` or
            ``pytorch_model.bin`` and the ``config.json``.

    Raises:
        UserError: the file cannot be read, or holds no BERT of the paper's kind.
    """
    contents = _read(path)
    bert = _built(contents, path)
    weights = _with_pooler(contents)
    encoder = [name for name in weights if name.startswith(ENCODER)]
    load_checked(bert, {name.removeprefix(ENCODER): weights[name] for name in encoder}, path)
    return bert


def load_pre_training(path: str) -> BertPreTraining:
    """The BERT with the heads of pre-training that a local file holds; that of next sentences may be missing.

    Args:
        path: see :func:`load_bert`.

    Raises:
        UserError: the file cannot be read, or holds no BERT of the paper's kind, or none with a head for masked words.
    """
    contents = _read(path)
    if "words.bias" not in contents.weights:
        raise UserError(f"{path} has no head for masked words", "name a BertForPreTraining or a run of pre-training")
    net = BertPreTraining(_built(contents, path), next_sentence="next_sentence.weight" in contents.weights)
    weights = _with_pooler(contents)
    load_checked(net, {name: tensor for name, tensor in weights.items() if not name.startswith("head.")}, path)
    return net


def _read(path: str) -> Contents:
    file = Path(path)
    if file.is_dir():
        files = [file / name for name in ("model.safetensors", "pytorch_model.bin") if (file / name).is_file()]
        if not files:
            raise UserError(f"{path} has no model.safetensors or pytorch_model.bin", "name a file with the weights")
        file = files[0]
    content = read_file(str(file))
    raw = state_dict(content, path)
    weights = to_bert(raw)
    sizes = _sizes(weights, path)
    config = file.with_name("config.json")
    if isinstance(content.get("network"), dict):
        with torch.device("meta"):
            net = build_network(content["network"], (Bert, BertPreTraining, BertClassifier), path)
        if not isinstance(net, Bert | BertPreTraining | BertClassifier):
            raise UserError(f"{path} does not name the class of its network", "use the version that wrote it")
        constants = _constants(net if isinstance(net, Bert) else net.bert)
    else:
        constants = _said(config, sizes.dim) if config.is_file() else Constants()
    return Contents(weights, sizes, constants, "none" if _is_transformers(raw) else "tanh")


def _with_pooler(contents: Contents) -> Weights:
    """The weights, a zero pooler among them where there is none: BertForMaskedLM has none."""
    dim = contents.sizes.dim
    return {"bert.pooler.weight": torch.zeros(dim, dim), "bert.pooler.bias": torch.zeros(dim), **contents.weights}


def _sizes(weights: Weights, path: str) -> Sizes:
    tables = ("bert.tokens.weight", "bert.blocks.0.mlp.hidden.weight", "bert.positions.weight", "bert.segments.weight")
    for name in tables:
        if name not in weights or weights[name].ndim != 2:
            raise UserError(f"{path} lacks {name}, which a BERT has", "name the weights of a whole BERT")
    words, hidden, positions, segments = (weights[name] for name in tables)
    blocks = {name.split(".")[2] for name in weights if name.startswith("bert.blocks.")}
    return Sizes(len(words), len(blocks), words.shape[1], len(hidden), len(positions), len(segments))


def _constants(bert: Bert) -> Constants:
    block = bert.blocks[0]
    assert isinstance(block, PostNormBlock)
    attention = block.attention
    return Constants(attention.heads, bert.gelu_approximation, bert.bidirectional, bert.dropout.p, attention.dropout)


def _said(config: Path, dim: int) -> Constants:
    """What transformers' config.json says."""
    try:
        said = json.loads(config.read_text(encoding="utf-8"))
        other = [f"{key}: {said[key]}" for key, value in FIXED.items() if said.get(key, value) != value]
        activation = str(said.get("hidden_act", "gelu"))
        heads = said.get("num_attention_heads")
        dropout = [float(said.get(f"{where}_dropout_prob", 0.1)) for where in ("hidden", "attention_probs")]
        if not all(0 <= probability < 1 for probability in dropout):
            raise ValueError(f"{dropout} are no probabilities of dropout")
        if heads is not None and (heads < 1 or dim % heads):
            raise ValueError(f"{heads} heads do not share a width of {dim}")
    except (ValueError, TypeError, AttributeError, OSError) as error:
        raise UserError(f"{config} is no configuration of a BERT: {error}", "fetch it anew") from error
    if activation not in HIDDEN_ACT:
        other.append(f"hidden_act: {activation}")
    if other:
        raise UserError(f"{config} has {other[0]}", "start from a BERT as the paper has it")
    return Constants(heads, HIDDEN_ACT[activation], True, *dropout)


def _built(contents: Contents, path: str) -> Bert:
    """A BERT into which the weights fit, if any does."""
    sizes, constants = contents.sizes, contents.constants
    if constants.heads is None and sizes.dim not in OFFICIAL_WIDTHS:
        # a width of 384 has 6 heads here and 12 there: to guess would be wrong without a sign of it
        raise UserError(
            f"{path} does not say how many heads share its width of {sizes.dim}",
            "put the config.json of transformers beside it, or name a checkpoint of a run",
        )
    return Bert(
        sizes.vocabulary_size,
        sizes.layers,
        sizes.dim,
        constants.heads or sizes.dim // 64,
        sizes.mlp_dim,
        sizes.positions,
        sizes.segments,
        constants.dropout,
        constants.attention_dropout,
        constants.gelu_approximation or contents.usual_gelu,
        constants.bidirectional is not False,
    )


def stored_vocabulary(path: str) -> dict[str, Any] | None:
    """The vocabulary that a checkpoint of ours keeps beside the weights, as its tokeniser's `stored` gives it.

    Args:
        path: any file or folder of weights; those of others keep none.

    Raises:
        UserError: the checkpoint cannot be read.
    """
    if Path(path).suffix != ".ckpt":
        return None
    content = read_file(path)
    return kept_vocabulary(content) if isinstance(content, dict) else None


@dataclass
class Report(lightning_vl.weights.Report):
    """What became of every weight.

    Attributes:
        shorter: tables of which the first rows were taken.
        assumed: what the file does not say of itself; it was taken to be as in the network.
    """

    shorter: list[str] = field(default_factory=list)
    assumed: list[str] = field(default_factory=list)


class BertInitialisation(lightning_vl.weights.Initialisation):
    """Start from a BERT: of transformers, of the released code (as .npz) or one of ours.

    The encoder comes from it, its pooler too, and the heads of pre-training where the network and the file both have them.
    A classifier's own head stays as built. A network for shorter sequences takes the first positions.

    Args:
        path: local file or folder, see :func:`load_bert`.
    """

    def apply(self, net: BertPreTraining | BertClassifier) -> Report:
        """Load the encoder, and heads that both have.

        Raises:
            UserError: the file cannot be read, or its sizes, its vocabulary, its GELU or its direction are not the
                network's.
        """
        if not isinstance(net, BertPreTraining | BertClassifier):
            raise UserError(f"{self.path} is to start a {type(net).__name__}", "use BertInitialisation for a BERT")
        weights, sizes, constants, _ = _read(self.path)
        report = Report(self.path)
        own = net.state_dict()
        self._compare(net.bert, sizes, constants, report)
        rows, name = net.bert.longest, "bert.positions.weight"
        if rows < sizes.positions:
            weights = {**weights, name: weights[name][:rows]}
            report.shorter.append(f"{name} (the first {rows} of {sizes.positions} rows)")
        for group in OPTIONAL:
            theirs, ours = ([key for key in keys if key.startswith(group)] for keys in (weights, own))
            if not theirs or not ours or group == "head.":
                report.dropped += theirs
                report.fresh += ours
        weights = {key: tensor for key, tensor in weights.items() if key not in report.dropped}
        load_checked(net, {**{key: own[key] for key in report.fresh}, **weights}, self.path)
        report.loaded += [key for key in own if key in weights and not (key == name and report.shorter)]
        return report

    def _compare(self, bert: Bert, sizes: Sizes, constants: Constants, report: Report) -> None:
        """What the file has and what the network has must be the same, but for rows of positions that are not needed."""
        if sizes.vocabulary_size != bert.vocabulary_size:
            raise UserError(
                f"{self.path} has a vocabulary of {sizes.vocabulary_size} pieces, the network one of {bert.vocabulary_size}",
                f"set vocabulary_size: {sizes.vocabulary_size}, and read the texts with the vocabulary of these weights",
            )
        if sizes.positions < bert.longest:
            raise UserError(
                f"{self.path} has {sizes.positions} positions, the network {bert.longest}",
                f"set positions: {sizes.positions} or fewer, and no longer sequences",
            )
        block = bert.blocks[0]
        assert isinstance(block, PostNormBlock)
        assert isinstance(block.mlp, Mlp)
        own = _constants(bert)
        both = {  # the file's, the network's
            "layers": (sizes.layers, len(bert.blocks)),
            "dim": (sizes.dim, bert.dim),
            "heads": (constants.heads, own.heads),
            "mlp_dim": (sizes.mlp_dim, block.mlp.hidden.out_features),
            "segments": (sizes.segments, bert.segments.num_embeddings),
            "gelu_approximation": (constants.gelu_approximation, own.gelu_approximation),
            "bidirectional": (constants.bidirectional, own.bidirectional),
        }
        report.assumed += [f"{key}: {ours}" for key, (theirs, ours) in both.items() if theirs is None]
        other = [key for key, (theirs, ours) in both.items() if theirs not in (None, ours)]
        if other:
            theirs, ours = (", ".join(f"{key}: {both[key][side]}".lower() for key in other) for side in (0, 1))
            raise UserError(f"{self.path} has {theirs}; the network has {ours}", f"set {theirs} in the network")
