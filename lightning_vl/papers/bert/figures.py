"""What BERT's heads look at, as pictures with the numbers drawn in them: figures of ``python -m lightning_vl figure``."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from lightning_vl.errors import UserError
from lightning_vl.report.drawing import Drawing, add_caption, add_figure, blank

if TYPE_CHECKING:  # the command's help needs none of them
    from torch import Tensor

    from lightning_vl.data.tokenizer import WordPiece
    from lightning_vl.papers.bert.model import Bert

MOST_TOKENS = 48  # of a map whose labels can be read
WIDEST = 15.0  # inches of all maps abreast
CELL = 0.155  # inches of a token in a map
NARROWEST = 1.75  # inches of a map: what its title takes
HABITS = {  # fields of Habits, and what stands over their panels
    "first": "on [CLS]",
    "separator": "on [SEP]",
    "itself": "on the token itself",
    "previous": "on the token before",
    "next": "on the token after",
    "distance": "distance (tokens)",
}


class ReadText(NamedTuple):
    """A text as BERT reads it.

    Attributes:
        pieces: its n tokens, with [CLS] and [SEP].
        token_ids: (n,).
        segment_ids: (n,).
        separators: (n,) True at each [SEP].
    """

    pieces: list[str]
    token_ids: "Tensor"
    segment_ids: "Tensor"
    separators: "Tensor"


def read_text(tokenizer: "WordPiece", first: str, second: str | None = None) -> ReadText:
    """[CLS] first [SEP], or [CLS] first [SEP] second [SEP]; [MASK] in it is the token."""
    import torch

    ids = [tokenizer.cls, *tokenizer.encode(first, special=True), tokenizer.sep]
    segments = [0] * len(ids)
    if second is not None:
        ids += [*tokenizer.encode(second, special=True), tokenizer.sep]
        segments += [1] * (len(ids) - len(segments))
    token_ids = torch.tensor(ids)
    return ReadText([tokenizer.pieces[id] for id in ids], token_ids, torch.tensor(segments), token_ids == tokenizer.sep)


# -- the figures ------------------------------------------------------------------------------------------------------------


def attention_maps(net: "Bert", text: ReadText, layer: int, heads: Sequence[int] | None = None) -> Drawing:
    """How much each token of a text looks at each, a map a head of one layer.

    Args:
        net: in evaluation mode.
        text: what it reads.
        layer: from 1.
        heads: from 1; None for all.

    Raises:
        UserError: there is no such layer or head, or the text is too long to be read in a map.
    """
    from lightning_vl.evaluation.attention import habits
    from lightning_vl.report.figure import GREY

    n = len(text.pieces)
    if n > MOST_TOKENS:
        raise UserError(
            f"a map of {n} tokens cannot be read", f"give a text of at most {MOST_TOKENS}, [CLS] and [SEP] among them"
        )
    of_layers = _weights(net, text)
    layers, all_heads = len(of_layers), len(of_layers[0])
    if not 1 <= layer <= layers:
        raise UserError(f"there is no layer {layer}", f"give --layer from 1 to {layers}")
    heads = list(heads or range(1, all_heads + 1))
    if wrong := [head for head in heads if not 1 <= head <= all_heads]:
        raise UserError(f"there is no head {wrong[0]}", f"give --heads from 1 to {all_heads}")
    weights = of_layers[layer - 1][[head - 1 for head in heads]]  # (h, n, n)

    side = max(NARROWEST, CELL * n)
    columns = min(len(heads), 4, max(1, int(WIDEST / side)))
    rows = -(-len(heads) // columns)
    figure = blank(columns * (side + 0.12) + 1.7, rows * (side + 0.45) + 1.5)
    grid = figure.subplots(rows, columns, squeeze=False)
    largest = float(weights.max())
    means = habits(weights, text.separators)
    for number, axes in enumerate(grid.flat):
        if number >= len(heads):
            axes.remove()
            continue
        drawn = axes.imshow(weights[number].numpy(), vmin=0, vmax=largest, cmap="Blues", interpolation="nearest")
        axes.set_title(f"head {heads[number]}", loc="left", fontsize=10, pad=14)
        first, separator, before, after = (
            f"{100 * float(of[number]):.0f}" for of in (means.first, means.separator, means.previous, means.next)
        )
        said = f"[CLS] {first}, [SEP] {separator}, before {before}, after {after} %"
        axes.annotate(said, (0, 1), (0, 4), "axes fraction", textcoords="offset points", fontsize=6.5, color=GREY)
        lowest = number + columns >= len(heads)  # nothing of this column is below
        axes.set_xticks(range(n), text.pieces if lowest else [], rotation=90, fontsize=8)
        axes.set_yticks(range(n), text.pieces if number % columns == 0 else [], fontsize=8)
        axes.tick_params(length=0, pad=2)
        axes.spines[:].set_color("#cccccc")
    bar = figure.colorbar(drawn, ax=grid.ravel().tolist(), location="right", shrink=min(1.0, 2.4 / (rows * side)))
    bar.set_label("attention", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    figure.suptitle(f"Where the heads of layer {layer} of {layers} look", x=0.01, ha="left", fontsize=11)
    add_caption(
        figure,
        "A row is a token that looks, a column one that is looked at;\na row adds up to 1. Over a map: the rows' mean.",
    )
    table = [
        (layer, head, i + 1, text.pieces[i], j + 1, text.pieces[j], float(weights[number, i, j]))
        for number, head in enumerate(heads)
        for i in range(n)
        for j in range(n)
    ]
    return Drawing(figure, ("layer", "head", "row", "token", "column", "seen", "attention"), table)


def head_habits(net: "Bert", texts: Sequence[ReadText]) -> Drawing:
    """What is usual for each head, over depth: how much of its attention is on [CLS], on [SEP], on neighbours, and how far.

    After Clark et al. (2019), "What Does BERT Look At?", Sec. 3.

    Args:
        net: in evaluation mode.
        texts: what it reads; each counts alike.
    """
    import torch

    from lightning_vl.evaluation.attention import Habits, habits
    from lightning_vl.report.figure import COLOURS, GREY

    of_texts, of_uniform = [], []
    for text in texts:
        uniform = torch.ones(1, len(text.pieces), len(text.pieces))
        uniform = uniform if net.bidirectional else uniform.tril()
        of_uniform.append(torch.stack(habits(uniform / uniform.sum(-1, keepdim=True), text.separators)))  # (habits, 1)
        of_layers = [torch.stack(habits(weights, text.separators)) for weights in _weights(net, text)]
        of_texts.append(torch.stack(of_layers, dim=1))  # (habits, layers, heads)
    measured, uniform = torch.stack(of_texts).mean(0), torch.stack(of_uniform).mean(0)[:, 0]
    layers, heads = measured.shape[1:]

    figure = blank(8.4, 5.4)
    depth = range(1, layers + 1)
    for axes, (name, title) in zip(figure.subplots(2, 3, sharex=True).flat, HABITS.items(), strict=True):
        place = Habits._fields.index(name)
        factor = 1 if name == "distance" else 100
        values = factor * measured[place].numpy()  # (layers, heads)
        axes.axhline(factor * float(uniform[place]), color=GREY, linewidth=1.2, linestyle="--", zorder=0)
        axes.scatter(
            [d for d in depth for _ in range(heads)], values.ravel(), s=22, color=COLOURS[0], alpha=0.6, linewidths=0
        )
        axes.plot(depth, values.mean(1), color=COLOURS[1], linewidth=1.6)
        axes.set_title(f"{title}{'' if factor == 1 else ' (%)'}", loc="left", fontsize=10)
        axes.set_ylim(0, 1.1 * max(values.max(), factor * float(uniform[place])) or 1)
        axes.set_xlim(0.5, layers + 0.5)
        axes.set_xticks([layer for layer in depth if layers <= 6 or layer % 2 == 0])
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.set_xlabel("depth (layer)" if axes.get_subplotspec().is_last_row() else "")
    figure.suptitle("What is usual for each head", x=0.01, ha="left", fontsize=11)
    number = f"{len(texts)} text{'s' * (len(texts) != 1)}"
    add_caption(
        figure,
        f"A dot is a head: mean over the tokens of {number}. Line: mean of the heads. Dashed: attention to all alike.",
    )
    rows = [
        (layer + 1, head + 1, name, float(measured[place, layer, head]), float(uniform[place]))
        for layer in range(layers)
        for head in range(heads)
        for place, name in enumerate(Habits._fields)
    ]
    return Drawing(figure, ("layer", "head", "habit", "value", "uniform"), rows)


def _weights(net: "Bert", text: ReadText) -> "list[Tensor]":
    """Of each layer, (h, n, n), on the CPU.

    Raises:
        UserError: the text is not for this network.
    """
    import torch

    from lightning_vl.evaluation.attention import of_layers
    from lightning_vl.nn.packing import pack

    n = len(text.pieces)
    if n > net.longest:
        raise UserError(f"the text has {n} tokens, the network has {net.longest} positions", "give a shorter text")
    if int(text.token_ids.max()) >= net.vocabulary_size:
        raise UserError(
            f"the vocabulary has a piece {int(text.token_ids.max())}, the network {net.vocabulary_size} pieces",
            "give --vocabulary the vocab.txt that the network was trained with",
        )
    device = net.tokens.weight.device
    inputs = (text.token_ids.to(device), text.segment_ids.to(device), pack(torch.tensor([n], device=device)))
    return of_layers(net, inputs, lambda weights: weights[0].float().cpu())


# -- the command ------------------------------------------------------------------------------------------------------------


def add_figures(figures: Any) -> None:
    """The figures of BERT, to argparse's subparsers."""
    maps = add_figure(figures, "bert_attention", "where each head looks in a text", "a BERT", _draw_maps)
    maps.add_argument("--text", required=True, metavar="TEXT", help="what it reads; [MASK] in it is the token")
    maps.add_argument("--second", metavar="TEXT", help="the second text of a pair")
    maps.add_argument("--layer", type=int, metavar="N", help="from 1 (default: the last)")
    maps.add_argument("--heads", type=int, nargs="+", metavar="N", help="from 1 (default: all)")
    usual = add_figure(figures, "bert_heads", "what is usual for each head, over depth", "a BERT", _draw_habits)
    usual.add_argument(
        "--text", required=True, nargs="+", metavar="TEXT", help="what it reads; the mean is taken of several"
    )
    for figure in (maps, usual):
        figure.add_argument(
            "--vocabulary",
            metavar="FILE",
            help="an uncased vocab.txt (default: the vocabulary that the checkpoint carries)",
        )


def _draw_maps(arguments: argparse.Namespace) -> Drawing:
    net, tokenizer = _network(arguments)
    text = read_text(tokenizer, arguments.text, arguments.second)
    return attention_maps(net, text, len(net.blocks) if arguments.layer is None else arguments.layer, arguments.heads)


def _draw_habits(arguments: argparse.Namespace) -> Drawing:
    net, tokenizer = _network(arguments)
    return head_habits(net, [read_text(tokenizer, text) for text in arguments.text])


def _network(arguments: argparse.Namespace) -> "tuple[Bert, WordPiece]":
    """What a file holds, in evaluation mode, on the accelerator if there is one, and the words that it knows.

    Raises:
        UserError: there is no BERT or no vocabulary.
    """
    from lightning_vl.data.tokenizer import CheckpointVocabulary, Vocabulary, VocabularyFile, word_pieces
    from lightning_vl.papers.bert.convert import load_bert
    from lightning_vl.report.profile import find_device

    net = load_bert(arguments.weights).eval().to(find_device("auto"))
    vocabulary: Vocabulary = CheckpointVocabulary(arguments.weights)
    if arguments.vocabulary:
        vocabulary = VocabularyFile(arguments.vocabulary)
    elif not arguments.weights.endswith(".ckpt"):
        raise UserError(f"{arguments.weights} carries no vocabulary", "give its vocab.txt: --vocabulary FILE")
    return net, word_pieces(vocabulary.tokenizer(None))
