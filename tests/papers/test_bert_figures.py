"""The figures of BERT: the picture and the table beside it show the weights that the network used, and can be read."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from PIL import Image
from support import environment
from torch import nn

from lightning_vl.data.tokenizer import WordPiece
from lightning_vl.errors import UserError
from lightning_vl.evaluation.attention import Habits, habits, of_layers
from lightning_vl.nn.packing import pack
from lightning_vl.papers.bert.figures import ReadText, attention_maps, head_habits, read_text
from lightning_vl.papers.bert.model import Bert, BertPreTraining
from lightning_vl.report.drawing import Drawing, main

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "mat", "##s", "on", "."]
SIZES = {"vocabulary_size": len(PIECES), "layers": 3, "dim": 12, "heads": 2, "mlp_dim": 16, "positions": 60}


@pytest.fixture
def tokenizer() -> WordPiece:
    return WordPiece(PIECES)


@pytest.fixture
def bert() -> Bert:
    """A network whose attention is far from uniform."""
    torch.manual_seed(0)
    net = Bert(**SIZES)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.7)
    return net.eval()


@pytest.fixture
def text(tokenizer: WordPiece) -> ReadText:
    return read_text(tokenizer, "The cats sat on the [MASK].")


def weights_of(net: Bert, text: ReadText) -> list[torch.Tensor]:
    inputs = (text.token_ids, text.segment_ids, pack(torch.tensor([len(text.pieces)])))
    return of_layers(net, inputs, lambda weights: weights[0])


def table(drawing: Drawing, folder: Path) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the CSV, as it is written."""
    picture, file = drawing.write(folder / "figure")
    assert Image.open(picture).format == "PNG"
    with file.open(newline="", encoding="utf-8") as lines:
        header, *rows = csv.reader(lines)
    return header, rows


def test_a_pair_is_read_as_in_training(tokenizer: WordPiece) -> None:
    """Breaks if [SEP], segments or [MASK] of what is drawn are others than those that the network has learned from."""
    text = read_text(tokenizer, "the cats", "on the [MASK].")
    assert text.pieces == ["[CLS]", "the", "cat", "##s", "[SEP]", "on", "the", "[MASK]", ".", "[SEP]"]
    assert [PIECES[id] for id in text.token_ids] == text.pieces
    assert text.segment_ids.tolist() == [0] * 5 + [1] * 5
    assert text.separators.nonzero().flatten().tolist() == [4, 9]


def test_maps_are_the_weights(bert: Bert, text: ReadText, tmp_path: Path) -> None:
    """Breaks if another layer or head is drawn, query and key change places, or labels are not the tokens."""
    drawing = attention_maps(bert, text, layer=2)
    expected = weights_of(bert, text)[1].numpy()
    panels = drawing.figure.axes[:2]
    for panel, weights in zip(panels, expected, strict=True):
        assert np.allclose(panel.images[0].get_array(), weights)
        assert panel.images[0].get_clim() == pytest.approx((0, expected.max()))
        assert [label.get_text() for label in panel.get_xticklabels()] == text.pieces
    assert [label.get_text() for label in panels[0].get_yticklabels()] == text.pieces
    assert [panel.get_title(loc="left") for panel in panels] == ["head 1", "head 2"]
    means = habits(torch.from_numpy(expected), text.separators)
    for head, panel in enumerate(panels):
        shares = [100 * of[head].item() for of in (means.first, means.separator, means.previous, means.next)]
        said = "[CLS] {:.0f}, [SEP] {:.0f}, before {:.0f}, after {:.0f} %".format(*shares)
        assert said in [found.get_text() for found in panel.texts]
    header, rows = table(drawing, tmp_path)
    assert header == ["layer", "head", "row", "token", "column", "seen", "attention"]
    n = len(text.pieces)
    assert len(rows) == 2 * n * n
    assert rows[n + 2][:6] == ["2", "1", "2", "the", "3", "cat"]
    assert np.allclose([float(row[-1]) for row in rows], expected.ravel())


def test_some_heads_by_their_numbers(bert: Bert, text: ReadText) -> None:
    """Breaks if heads that are asked for are numbered anew."""
    drawing = attention_maps(bert, text, layer=3, heads=[2])
    assert {row[:2] for row in drawing.rows} == {(3, 2)}
    assert np.allclose([row[-1] for row in drawing.rows], weights_of(bert, text)[2][1].flatten())
    assert drawing.figure.axes[0].get_title(loc="left") == "head 2"


def test_habits_of_heads_are_means_over_texts(bert: Bert, text: ReadText, tokenizer: WordPiece, tmp_path: Path) -> None:
    """Breaks if a longer text counts more, panels show another habit, or layers and heads change places."""
    texts = [text, read_text(tokenizer, "the mat.")]
    drawing = head_habits(bert, texts)
    expected = torch.stack(
        [
            torch.stack([torch.stack(habits(weights, one.separators)) for weights in weights_of(bert, one)])
            for one in texts
        ]
    ).mean(0)  # (layers, habits, heads)
    titles = {
        "on [CLS] (%)": "first",
        "on [SEP] (%)": "separator",
        "on the token itself (%)": "itself",
        "on the token before (%)": "previous",
        "on the token after (%)": "next",
        "distance (tokens)": "distance",
    }
    assert [panel.get_title(loc="left") for panel in drawing.figure.axes] == list(titles)
    for panel, name in zip(drawing.figure.axes, titles.values(), strict=True):
        of_habit = expected[:, Habits._fields.index(name)] * (1 if name == "distance" else 100)
        dots = np.asarray(panel.collections[0].get_offsets())
        assert dots[:, 0].tolist() == [1, 1, 2, 2, 3, 3]
        assert np.allclose(dots[:, 1], of_habit.flatten())
        assert np.allclose(panel.lines[1].get_ydata(), of_habit.mean(1))
    header, rows = table(drawing, tmp_path)
    assert header == ["layer", "head", "habit", "value", "uniform"]
    assert [row[:3] for row in rows[5:8]] == [["1", "1", "distance"], ["1", "2", "first"], ["1", "2", "separator"]]
    assert np.allclose([float(row[3]) for row in rows], expected.transpose(1, 2).flatten())
    uniform = {row[2]: float(row[4]) for row in rows}
    n, m = (len(one.pieces) for one in texts)
    assert uniform["first"] == uniform["separator"] == uniform["next"] == pytest.approx((1 / n + 1 / m) / 2)
    assert uniform["distance"] == pytest.approx(((n - 1 / n) / 3 + (m - 1 / m) / 3) / 2)


def test_uniform_attention_of_a_left_to_right_network(tokenizer: WordPiece) -> None:
    """Breaks if the dashed line is of a network that sees both ways."""
    net = Bert(**SIZES, bidirectional=False).eval()
    with torch.no_grad():
        for block in net.blocks:
            block.attention.query_key_value.weight.zero_()
    for _, _, _, value, uniform in head_habits(net, [read_text(tokenizer, "the cat sat.")]).rows:
        assert value == pytest.approx(uniform, abs=1e-6)


@pytest.mark.parametrize("words", [1, 12, 46])
def test_everything_written_can_be_read(words: int, bert: Bert, tokenizer: WordPiece) -> None:
    """Breaks if labels, titles or captions overlap or are cut off, for the shortest text or the longest."""
    text = read_text(tokenizer, " ".join((["cat", "on", "sat"] * 16)[:words]))
    assert_legible(attention_maps(bert, text, layer=1))


def test_the_habits_can_be_read(bert: Bert, text: ReadText) -> None:
    """Breaks if labels, titles or captions overlap or are cut off."""
    assert_legible(head_habits(bert, [text]))


def assert_legible(drawing: Drawing) -> None:
    """Every text lies within the figure, and none on another."""
    FigureCanvasAgg(drawing.figure).draw()
    axes = drawing.figure.axes
    beyond = [  # matplotlib keeps labels of ticks outside the axes, and does not draw them
        label
        for axis, (low, high) in [(a.xaxis, a.get_xlim()) for a in axes] + [(a.yaxis, a.get_ylim()) for a in axes]
        for tick in axis.get_major_ticks()
        if not min(low, high) - 1e-6 <= tick.get_loc() <= max(low, high) + 1e-6
        for label in (tick.label1, tick.label2)
    ]
    shown = [
        found
        for found in drawing.figure.findobj(Text)
        if found.get_visible() and found.get_text().strip() and found not in beyond
    ]
    boxes = [(found.get_text(), found.get_window_extent()) for found in shown]
    for i, (said, box) in enumerate(boxes):
        assert box.x0 >= -1, said
        assert box.y0 >= -1, said
        assert box.x1 <= drawing.figure.bbox.x1 + 1, said
        assert box.y1 <= drawing.figure.bbox.y1 + 1, said
        for other, other_box in boxes[:i]:
            # a label's box has room above and below its letters, which may touch
            width = min(box.x1, other_box.x1) - max(box.x0, other_box.x0)
            height = min(box.y1, other_box.y1) - max(box.y0, other_box.y0)
            assert width <= 1 or height <= 0.25 * min(box.height, other_box.height, 10), f"{said!r} lies on {other!r}"


@pytest.fixture
def checkpoint(bert: Bert, tmp_path: Path) -> Path:
    """A checkpoint of a run, with the words that it knows."""
    net = BertPreTraining(bert)
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text("seed_everything: 0\n")
    path = run / "checkpoints" / "best.ckpt"
    encoder = {"class_path": "lightning_vl.papers.bert.model.Bert", "init_args": SIZES}
    network = {"class_path": "lightning_vl.papers.bert.model.BertPreTraining", "init_args": {"bert": encoder}}
    state = {f"net.{name}": tensor for name, tensor in net.state_dict().items()}
    data = {"preprocessing": {}, "vocabulary": {"pieces": PIECES, "lowercase": True}}
    torch.save({"state_dict": state, "network": network, "PreTrainingData": data}, path)
    return path


def test_a_checkpoint_is_enough(
    checkpoint: Path, bert: Bert, text: ReadText, capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks if the command draws other weights than the checkpoint's, other words, or another layer than the last."""
    assert main(["bert_attention", str(checkpoint), "--text", "The cats sat on the [MASK]."]) == 0
    picture, file = map(Path, capsys.readouterr().out.split())
    assert picture == checkpoint.parent.parent / "figures" / "bert_attention.png"
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert {row["layer"] for row in rows} == {"3"}
    assert [row["seen"] for row in rows[: len(text.pieces)]] == text.pieces
    expected = weights_of(bert, text)[2].flatten()
    assert np.allclose([float(row["attention"]) for row in rows], expected, atol=1e-6)


def test_a_vocabulary_beside_the_weights(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if --vocabulary, --second, --out or several texts are ignored."""
    words = tmp_path / "vocab.txt"
    words.write_text("\n".join([*PIECES[:5], *reversed(PIECES[5:])]) + "\n")
    options = ["--vocabulary", str(words), "--out", str(tmp_path / "out")]
    assert main(["bert_attention", str(checkpoint), "--text", "the", "--second", "cat", "--layer", "1", *options]) == 0
    assert main(["bert_heads", str(checkpoint), "--text", "the cat", "the mat sat", *options]) == 0
    assert {path.parent for path in map(Path, capsys.readouterr().out.split())} == {tmp_path / "out"}
    with (tmp_path / "out" / "bert_attention.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [row["seen"] for row in rows[:5]] == ["[CLS]", "the", "[SEP]", "cat", "[SEP]"]


def test_mistakes_are_said_in_two_lines(checkpoint: Path, tmp_path: Path, tokenizer: WordPiece) -> None:
    """Breaks if a mistake ends in a traceback, or in a picture that nobody can read."""
    more = tmp_path / "more.txt"
    more.write_text("\n".join([*PIECES, "dog"]) + "\n")
    weights = tmp_path / "bert.pt"
    torch.save(Bert(**{**SIZES, "dim": 128}).state_dict(), weights)
    for arguments, what in (
        ([str(checkpoint), "--text", "the", "--layer", "4"], "no layer 4"),
        ([str(checkpoint), "--text", "the", "--layer", "0"], "no layer 0"),
        ([str(checkpoint), "--text", "the", "--heads", "1", "3"], "no head 3"),
        ([str(checkpoint), "--text", "the " * 47], "49 tokens cannot be read"),
        ([str(checkpoint), "--text", "dog", "--vocabulary", str(more)], "a piece 12, the network 12"),
        ([str(checkpoint), "--text", "the", "--vocabulary", str(tmp_path / "none.txt")], "cannot be read"),
        ([str(weights), "--text", "the"], "carries no vocabulary"),
        ([str(tmp_path / "nowhere.ckpt"), "--text", "the"], "does not exist"),
    ):
        with pytest.raises(UserError, match=what) as error:
            main(["bert_attention", *arguments])
        assert str(error.value).count("\n") == 1, arguments
    with pytest.raises(UserError, match="62 tokens, the network has 60"):
        main(["bert_heads", str(checkpoint), "--text", "the " * 60])


def test_help_needs_no_torch(tmp_path: Path) -> None:
    """Breaks if asking what figures there are waits for torch or matplotlib."""
    script = (
        "import sys\nfrom lightning_vl.report.drawing import main\n"
        "try:\n    main(['bert_attention', '--help'])\n"
        "except SystemExit:\n    print({'torch', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(tmp_path), capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "set()"
    assert "--second" in done.stdout
