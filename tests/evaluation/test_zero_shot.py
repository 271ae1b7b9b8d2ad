"""Zero-shot classification with small towers: against a plain loop, what is written, and what is refused."""

import csv
import string
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.cli import LightningArgumentParser
from matplotlib.figure import Figure
from PIL import Image

from lightning_vl.data.source import ImageSource, LabelledImage, Split
from lightning_vl.data.synthetic.scattered import ScatteredDigits, ScatteredLetters
from lightning_vl.data.tokenizer import SPECIAL, WordPiece
from lightning_vl.errors import CorruptSample, UserError
from lightning_vl.evaluation.dual_encoder import DualEncoder
from lightning_vl.evaluation.prompts import GivenTemplates, Templates
from lightning_vl.evaluation.zero_shot import (
    MultiLabelledImage,
    MultiLabelSource,
    Result,
    ZeroShot,
    check_all,
    chosen,
    classifier,
    run_all,
)
from lightning_vl.evaluation.zero_shot_metrics import ElevenPointMap, MeanPerClass
from lightning_vl.evaluation.zero_shot_page import Example, middle, sheet, shortened
from lightning_vl.evaluation.zero_shot_probe import LogisticProbe
from lightning_vl.papers.clip.model import CLIP
from lightning_vl.papers.clip.towers import TextTransformer, VisionTransformer

LETTERS = string.ascii_lowercase + string.digits + string.punctuation
DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
NAMES: dict[str, str | list[str]] = {str(digit): name for digit, name in enumerate(DIGITS)}
PROMPTS = GivenTemplates(["a photo of a {}.", "the {}", "{} {}!"])


class Colours(ImageSource):
    """Plain images of three colours; `corrupt` of each split cannot be read."""

    def __init__(self, names: Sequence[str] = ("red", "green", "blue"), corrupt: int = 0, count: int = 30) -> None:
        self.names, self.corrupt, self.count = list(names), corrupt, count

    @property
    def class_names(self) -> list[str]:
        return self.names

    def images(self, split: Split) -> Sequence[LabelledImage]:
        return [LabelledImage(f"{split}/{index}", index % len(self.names)) for index in range(self.count)]

    def read(self, split: Split, index: int) -> np.ndarray:
        if index < self.corrupt:
            raise CorruptSample(f"{split}/{index}", "is spoilt")
        shade = np.random.default_rng([len(split), index]).integers(0, 80, (9, 12, 3))
        shade[..., index % 3] += 120
        return shade.astype(np.uint8)


class Several(MultiLabelSource):
    """Images that show none, one or two of three colours."""

    class_names = ["red", "green", "blue"]  # noqa: RUF012 (as short as a property is not)
    labels = (frozenset({0}), frozenset({0, 1}), frozenset({2}), frozenset[int]())

    def images(self, split: Split) -> Sequence[MultiLabelledImage]:
        difficult = (frozenset({1}), frozenset[int](), frozenset[int](), frozenset({0}))
        return [MultiLabelledImage(f"{i}", self.labels[i % 4], difficult[i % 4]) for i in range(24)]

    def read(self, split: Split, index: int) -> np.ndarray:
        return Colours().read(split, index)


class NotHere(ScatteredDigits):
    """A set whose folder is missing."""

    @property
    def class_names(self) -> list[str]:
        raise UserError("there is no folder DATA", "give the data's folder as the source's root")

    def images(self, split: Split) -> Sequence[LabelledImage]:
        raise UserError("there is no folder DATA", "give the data's folder as the source's root")


class NoSlot(Templates):
    """Templates of which one forgets the name."""

    templates = ["a photo of a {}.", "a photo."]  # noqa: RUF012


@pytest.fixture(scope="module")
def encoder() -> DualEncoder:
    """Towers as small as they get, with a scale at which probabilities differ."""
    tokenizer = WordPiece([*SPECIAL, *LETTERS, *(f"##{letter}" for letter in LETTERS)])
    torch.manual_seed(0)
    image = VisionTransformer(16, 8, 16, 1, 2, 12)
    net = CLIP(image, TextTransformer(len(tokenizer), 32, 16, 1, 2, 12), scale=50.0)
    return DualEncoder(net, tokenizer, 32, batch_size=16)


def digits(**settings: object) -> ZeroShot:
    """A data set of the package."""
    source = ScatteredDigits(40, 20, 50, size=20)
    return ZeroShot(**{"name": "digits", "source": source, "templates": PROMPTS, "names": NAMES, **settings})  # type: ignore[arg-type]


def test_texts_that_are_too_long_are_said(encoder: DualEncoder, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if a class is told apart by half of its prompt, and nobody learns of it."""
    encoder.texts(["a" * 30, "b"])
    assert not capsys.readouterr().err
    encoder.texts(["b", "a" * 31])
    assert f"1 of 2 texts have more than 32 tokens and were cut, the first: {'a' * 31}" in capsys.readouterr().err


# -- the classifier -----------------------------------------------------------------------------------------------------


def test_ensembling_is_the_naive_loop(encoder: DualEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if texts are not of length one before they are averaged, the mean is not after it, or synonyms are left out."""
    words = [["happy", "smiling"], ["sad"], ["surprised", "shocked", "spooked"]]
    columns = []
    for called in words:
        embeddings = []
        for word in called:
            for template in ("a photo of a {}.", "the {}", "{} {}!"):
                embedding = encoder.texts([template.replace("{}", word)])[0]
                embeddings.append(embedding / embedding.norm())
        mean = torch.stack(embeddings).mean(0)
        columns.append(mean / mean.norm())
    expected = torch.stack(columns, 1)
    assert torch.stack(columns, 1).shape == (12, 3)
    torch.testing.assert_close(classifier(encoder, words, PROMPTS), expected)
    monkeypatch.setattr("lightning_vl.evaluation.zero_shot.TEXTS_AT_ONCE", 4)  # parts that end within a class
    torch.testing.assert_close(classifier(encoder, words, PROMPTS), expected)


def test_metrics_are_those_of_a_plain_loop(encoder: DualEncoder, tmp_path: Path) -> None:
    """Breaks if images are prepared otherwise than the encoder does, mixed up, left out, or the scale is forgotten."""
    task = digits(metric=MeanPerClass())
    before, random = deepcopy(encoder.net.state_dict()), torch.get_rng_state()
    found = run_all(encoder, [task], tmp_path, seed=0)
    weights = classifier(encoder, [[name] for name in DIGITS], PROMPTS)
    ranks, probabilities, right = [], [], {label: [] for label in range(10)}  # type: ignore[var-annotated]
    for index, image in enumerate(task.source.images("test")):
        embedding, _ = encoder.features(encoder.pixels(task.source.read("test", index))[None])
        logits = (50 * embedding @ weights)[0]
        ranks.append(1 + int((logits > logits[image.label]).sum()))  # type: ignore[union-attr]
        probabilities.append(float(logits.softmax(0)[image.label]))  # type: ignore[union-attr]
        right[image.label].append(ranks[-1] == 1)  # type: ignore[union-attr]
    assert found == pytest.approx(
        {
            "zero_shot/digits/top1": np.mean(np.array(ranks) == 1),
            "zero_shot/digits/mean_per_class": np.mean([np.mean(own) for own in right.values()]),
            "zero_shot/digits/top5": np.mean(np.array(ranks) <= 5),
            "zero_shot/digits/confidence": np.mean(probabilities),
            "zero_shot/digits/median_rank": np.median(ranks),
            "baseline/zero_shot_digits_majority": 0.1,
        },
        rel=1e-4,
    )
    assert 0 < found["zero_shot/digits/top5"] < 1
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in encoder.net.state_dict().items())


def test_workers_and_batches_change_nothing(encoder: DualEncoder, tmp_path: Path) -> None:
    """Breaks if the loader's workers or the last, shorter batch change what is measured."""
    one = run_all(encoder, [digits()], tmp_path, seed=0)
    other = DualEncoder(encoder.net, encoder.tokenizer, 32, batch_size=7)
    assert run_all(other, [digits(workers=1)], tmp_path, seed=1) == pytest.approx(one, rel=1e-4)


def test_the_probe_sees_the_features_before_the_projection(encoder: DualEncoder, tmp_path: Path) -> None:
    """Breaks if the probe is left out, sees embeddings, or is given other images than those that are classified."""
    task = ZeroShot("colours", Colours(), PROMPTS, probe=LogisticProbe(1))
    found = run_all(encoder, [task], tmp_path, seed=0)
    assert found["zero_shot/colours/probe"] > 0.9  # colours are easily learnt
    splits = []
    for split in ("train", "validation", "test"):
        pixels = torch.stack([encoder.pixels(Colours().read(split, index)) for index in range(30)])
        splits.append((encoder.features(pixels)[1].numpy(), np.eye(3, dtype=np.int8)[np.arange(30) % 3]))
    assert splits[0][0].shape == (30, 16)
    assert found["zero_shot/colours/probe"] == LogisticProbe(1)(splits[0], splits[1], splits[2], task.measure)
    assert "zero_shot/colours/top5" not in found  # of three classes


def test_images_with_several_labels(encoder: DualEncoder, tmp_path: Path) -> None:
    """Breaks if sets of labels cannot be measured, or another metric than theirs is accepted."""
    task = ZeroShot("several", Several(), PROMPTS, metric=ElevenPointMap(), probe=LogisticProbe(1))
    found = run_all(encoder, [task], tmp_path, seed=0)
    assert 0 < found["zero_shot/several/map_11_point"] <= 1
    assert found["baseline/zero_shot_several_majority"] == 0.5  # half of the images show red
    assert found["zero_shot/several/probe"] > 0.5
    with pytest.raises(UserError, match="several is measured by top-1"):
        check_all([ZeroShot("several", Several(), PROMPTS)], needed=True)


# -- what is missing or wrong -------------------------------------------------------------------------------------------


def test_a_data_set_that_is_not_here(encoder: DualEncoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if one missing folder ends the evaluation of all data sets, or is passed over in silence."""
    gone = ZeroShot("gone", NotHere(), PROMPTS, paper={"RN50": 60.0})
    found = run_all(encoder, [gone, digits(paper={"ViT-B/32": 51.9}, released={"ViT-B/32": 48.4})], tmp_path, seed=0)
    assert not any("gone" in name for name in found)
    assert "zero_shot/digits/top1" in found
    told = " ".join(capsys.readouterr().out.split())
    assert "gone is not here: there is no folder DATA — give the data's folder as the source's root" in told
    page = (tmp_path / "zero_shot.md").read_text()
    measured = f"{100 * found['zero_shot/digits/top1']:.1f}"
    assert "| gone |  |  |  |  | not here |" in page
    assert f"| digits | 50 | 10 | 3 | top-1 | {measured} |" in page
    assert "| gone | not here | paper | 60.0 | - |" in page
    assert f"| digits | {measured} | paper | - | 51.9 |" in page
    assert f"| digits | {measured} | released weights | - | 48.4 |" in page
    with (tmp_path / "zero_shot.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["not_here"].startswith("there is no folder DATA")
    assert float(rows[1]["value"]) == found["zero_shot/digits/top1"]
    assert rows[1]["paper ViT-B/32 (%)"] == "51.9"
    assert run_all(encoder, [gone], tmp_path, seed=0) == {}
    assert "warning: no data set could be classified: gone: there is no folder DATA" in capsys.readouterr().err
    assert run_all(encoder, [], tmp_path, seed=0) == {}


def test_unreadable_images(encoder: DualEncoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if a corrupt image ends the run, counts as wrong, is not named, or too many of them go unnoticed."""
    some = ZeroShot("some", Colours(corrupt=3), PROMPTS, max_corrupt=0.1)
    many = ZeroShot("many", Colours(corrupt=3), PROMPTS)
    found = run_all(encoder, [some, many], tmp_path, seed=0)
    out, err = capsys.readouterr()
    assert "some: left out an unreadable image: test/0: is spoilt" in err
    assert "some: 3 unreadable images were left out" in out
    assert "many is not here: 3 of 30 images of many cannot be read" in " ".join(out.split())
    assert found["baseline/zero_shot_some_majority"] == pytest.approx(1 / 3)  # of 27
    assert not any("many" in name for name in found)


def test_two_classes_of_one_name() -> None:
    """Breaks if two classes get the same column of the classifier: their images could never be told apart."""
    renamed = ZeroShot("birds", Colours(["crane", "crane_bird", "wren"]), PROMPTS, names={"crane_bird": "Crane"})
    with pytest.raises(UserError, match="the classes 'crane' and 'crane_bird' of birds are both called 'Crane'") as one:
        check_all([renamed], needed=True)
    assert len(str(one.value).splitlines()) == 2
    synonyms = ZeroShot("faces", Colours(["happy", "sad", "bored"]), PROMPTS, names={"sad": ["low", "bored"]})
    with pytest.raises(UserError, match="'sad' and 'bored' of faces are both called 'bored'"):
        check_all([synonyms], needed=True)


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (ZeroShot("a", Colours(), NoSlot()), "the template 'a photo.' of a has no slot"),
        (ZeroShot("a", Colours(), PROMPTS, names={"pink": "rose"}), "names of a speak of 'pink'"),
        (ZeroShot("a", Colours(), PROMPTS, names={"red": []}), "the class 'red' of a is called nothing"),
        (
            ZeroShot("a", Colours(), PROMPTS, split="validation", probe=LogisticProbe()),
            "a is classified on its validation split",
        ),
    ],
    ids=["slot", "unknown", "nothing", "probe"],
)
def test_mistakes_are_found_before_training(task: ZeroShot, said: str) -> None:
    """Breaks if a mistake of the file is found only after hours, or is not said in two lines."""
    with pytest.raises(UserError, match=said) as error:
        check_all([task], needed=True)
    assert len(str(error.value).splitlines()) == 2


def test_checks_without_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if a missing data set is not reported, numbers as names go unnoticed, or words that were given are doubted."""
    absent = check_all([digits(), ZeroShot("gone", NotHere(), PROMPTS)], needed=True)
    assert [(reason.task.name, reason.what) for reason in absent] == [("gone", "there is no folder DATA")]
    assert "warning" not in capsys.readouterr().err
    check_all([digits(names=None)], needed=True)
    assert "digits: warning: 10 classes are called by numbers (0, 1, 2, ...)" in capsys.readouterr().err
    assert check_all([], needed=True) == []
    gone = ZeroShot("gone", NotHere(), PROMPTS)
    assert [reason.task for reason in check_all([gone], needed=False)] == [gone]
    with pytest.raises(UserError, match="no data set of zero_shot is here: gone"):
        check_all([gone], needed=True)
    with pytest.raises(UserError, match="two zero-shot tasks are called digits"):
        check_all([digits(), digits()], needed=True)
    empty = ZeroShot("empty", Colours(count=0), PROMPTS)
    assert check_all([empty, digits()], needed=True)[0].what == "its test split has no images"


def test_an_experiment_s_file_reads_back(tmp_path: Path) -> None:
    """Breaks if a task cannot be written in YAML, or the configuration that a run keeps does not read back."""
    file = tmp_path / "tasks.yaml"
    file.write_text(
        "zero_shot:\n"
        "  - name: digits\n"
        "    source: {class_path: ScatteredDigits, init_args: {test_images: 20}}\n"
        '    templates: {class_path: GivenTemplates, init_args: {templates: ["a {}."]}}\n'
        '    names: {"0": zero, "1": [one, single]}\n'
        "    metric: {class_path: MeanPerClass}\n"
        "    probe: {class_path: LogisticProbe}\n"
        "    paper: {ViT-B/32: 51.9}\n"
        "  - name: letters\n"
        "    source: {class_path: ScatteredLetters}\n"
        "    templates: {class_path: NamedTemplates, init_args: {name: cifar10}}\n"
    )
    assert ScatteredLetters
    parser = LightningArgumentParser()
    parser.add_argument("--zero_shot", type=list[ZeroShot], default=[])
    parser.add_argument("-c", action="config")
    file.write_text(parser.dump(parser.parse_args(["-c", str(file)]), skip_unset=False))
    one, two = parser.instantiate_classes(parser.parse_args(["-c", str(file)])).zero_shot
    assert one.words()[:3] == [["zero"], ["one", "single"], ["2"]]
    assert (one.measure.name, two.measure.name) == ("mean_per_class", "top1")
    assert one.paper == {"ViT-B/32": 51.9}


# -- the sheet of examples ----------------------------------------------------------------------------------------------


def said(figure: Figure) -> list[str]:
    """Every text of a figure."""
    return [text.get_text() for text in [*figure.texts, *(text for axes in figure.axes for text in axes.texts)]]


def test_the_sheet_says_what_was_measured(encoder: DualEncoder, tmp_path: Path) -> None:
    """Breaks if no picture is written, or a name of a data set leads out of the folder."""
    run_all(encoder, [digits(name="own/digits")], tmp_path, seed=0)
    (picture,) = (tmp_path / "figures").iterdir()
    assert picture.name == "zero_shot_own_digits.png"
    with Image.open(picture) as image:
        assert image.width > 1500
    assert "![own/digits](figures/zero_shot_own_digits.png)" in (tmp_path / "zero_shot.md").read_text()


def test_a_sheet_of_five_hundred_long_names() -> None:
    """Breaks if rank and probability are wrong, the true class is not marked beyond the first five, or text runs over."""
    long = "the black and white or yellow and black common lesser-spotted woodpecker of the $northern$ hemisphere"
    pixels = np.zeros((40, 60, 3), np.uint8)
    wrong = Example(pixels, [long], 17, 0.0123, [(f"bird {i}", 0.2, False) for i in range(5)])
    right = Example(pixels, ["wren"], 1, 0.228, [("wren", 0.228, True), *[("owl", 0.0001, False)] * 4])
    result = Result(
        ZeroShot("birdsnap", Colours(), PROMPTS),
        2149,
        0,
        500,
        1,
        "a photo of a {}.",
        0.378,
        0.378,
        0.6,
        0.3,
        2,
        0,
        0.01,
    )
    texts = said(sheet(result, [right, wrong]))
    assert "rank 1 of 500, 22.8 %" in texts
    assert "rank 17 of 500, 1.2 %" in texts
    assert "birdsnap, zero-shot: top-1 37.8 % of 2,149 images in 500 classes" in texts
    assert {"wren ✓", "owl", "<0.1 %", "named correctly", "named wrongly"} <= set(texts)
    cut = [text for text in texts if text.startswith("the black")]
    assert [text.endswith(("…", "… ✓")) for text in cut] == [True, True]

    figure = sheet(result, [wrong, wrong, wrong])
    assert "named correctly" not in said(figure)
    figure.draw_without_rendering()
    for axes in figure.axes:
        boxes = [text.get_window_extent() for text in axes.texts]
        assert all(box.x1 <= axes.get_window_extent().x1 + 1 for box in boxes)
        for one, other in zip(boxes[0::2], boxes[1::2], strict=True):  # a class and its probability, or label over rank
            assert one.x1 <= other.x0 or one.y0 >= other.y1 - 3


def test_names_are_cut_where_they_stop_fitting() -> None:
    """Breaks if short names are cut, or long ones by so much more than they must."""
    assert shortened("wren", 2.0, 8.5) == "wren"
    assert shortened("W" * 50, 2.0, 8.5).endswith("…")
    assert len(shortened("i" * 200, 2.0, 8.5)) > 2 * len(shortened("W" * 200, 2.0, 8.5))


def test_the_middle_square_is_shown() -> None:
    """Breaks if another part is shown than the network sees, or huge images are drawn in full."""
    image = np.zeros((10, 30, 3), np.uint8)
    image[:, 10:20] = 255
    assert middle(image).shape == (10, 10, 3)
    assert (middle(image) == 255).all()
    assert middle(np.zeros((900, 700, 3), np.uint8)).shape == (512, 512, 3)


def test_examples_are_of_many_classes() -> None:
    """Breaks if one frequent class fills the sheet, an unwanted row is shown, or chance decides anew each time."""
    label = np.array([0] * 50 + [1, 2, 2, 3])
    wanted = np.arange(54) != 53
    rows = chosen(label, wanted, 4, np.random.default_rng(0))
    assert sorted({int(label[row]) for row in rows}) == [0, 1, 2]
    assert len(rows) == len(set(rows)) == 4
    assert rows == chosen(label, wanted, 4, np.random.default_rng(0))
    assert chosen(label, np.zeros(54, bool), 4, np.random.default_rng(0)) == []
