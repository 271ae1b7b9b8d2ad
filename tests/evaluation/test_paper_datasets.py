"""The table of data sets: complete, consistent with its files, and a set found in whatever form it lies on disk."""

import io
import json
import tarfile
from pathlib import Path

import jsonargparse
import numpy as np
import pytest
import yaml
from PIL import Image
from support import ROOT

from lightning_vl.data.datasets.clip_benchmark import ClipBenchmarkMultiLabel, ClipBenchmarkShards
from lightning_vl.data.datasets.evaluation_folder import EvaluationFolder
from lightning_vl.data.datasets.hub_images import HubImages
from lightning_vl.data.datasets.image_folder import ImageFolder
from lightning_vl.data.datasets.medmnist import MedMnist, MedMnistMultiLabel
from lightning_vl.data.datasets.voc2007 import Voc2007
from lightning_vl.errors import UserError
from lightning_vl.evaluation.paper_datasets import (
    BIOMEDICAL,
    DEFINITIONS,
    MODELS,
    PAPER,
    RETRIEVAL,
    SHIFTED,
    Definition,
    HubSet,
    PaperDataset,
    column,
    hub_source,
    page,
    read_table,
    renames,
    tolerance,
)
from lightning_vl.evaluation.prompts import NamedTemplates, TemplateFile
from lightning_vl.evaluation.zero_shot import ZeroShot
from lightning_vl.evaluation.zero_shot_metrics import TopOne

ZERO_SHOT = sorted(ROOT.glob("experiments/paper/clip_*_zero_shot.yaml"))


def make_folder(root: Path, *names: str) -> None:
    """One image of each class in a folder of its name."""
    for name in names:
        (root / name).mkdir(parents=True)
        Image.new("RGB", (4, 3)).save(root / name / "0.png")


def make_shards(root: Path, names: list[str], label: bytes = b"0", suffix: str = "cls") -> None:
    """A test shard of one image, and the names of the classes."""
    (root / "test").mkdir(parents=True)
    (root / "classnames.txt").write_text("".join(f"{name}\n" for name in names))
    picture = io.BytesIO()
    Image.new("RGB", (4, 3)).save(picture, "WEBP")
    with tarfile.open(root / "test" / "0.tar", "w") as tar:
        for name, content in (("s0.webp", picture.getvalue()), (f"s0.{suffix}", label)):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def test_the_27_have_a_value_for_each_of_the_nine_models() -> None:
    """Breaks if a data set, a model or a cell of Tables 10 and 11 is lost, or no share."""
    assert len(PAPER) == 27
    assert len(MODELS) == 9
    for table in ("clip_table_10", "clip_table_11"):
        assert [row["model"] for row in read_table(table)] == list(MODELS)
        assert set(read_table(table)[0]) == {"model", *(definition.name for definition in PAPER)}
        cells = [value for definition in PAPER for value in column(table, definition.name).values()]
        assert len(cells) == 27 * 9
        assert all(0 < value < 100 for value in cells)


def test_published_values() -> None:
    """Breaks if columns or rows of the tables are shifted against each other."""
    assert column("clip_table_11", "food101")["RN50"] == 81.1
    assert column("clip_table_11", "imagenet")["ViT-L/14@336px"] == 76.2
    assert column("clip_table_11", "mnist")["ViT-L/14"] == 87.2
    assert column("clip_table_10", "country211")["ViT-L/14@336px"] == 46.4
    assert column("clip_table_16", "imagenet_a") == {"ViT-L/14@336px": 77.2}
    assert column("clip_released", "imagenet_v2")["ViT-B/32"] == 55.92
    assert column("clip_table_11", "imagenet_a") == {}
    # the means of Table 11 over its 27 sets rise from the smallest ViT to the largest
    means = [np.mean([column("clip_table_11", d.name)[model] for d in PAPER]) for model in MODELS[5:]]
    assert means == sorted(means)
    table_13 = {row["set"]: row for row in read_table("clip_table_13")}
    assert set(table_13) == {found.name for found in RETRIEVAL}
    assert float(table_13["flickr30k"]["text_to_image_r1"]) == 68.7


def test_released_weights_agree_with_the_paper() -> None:
    """Breaks if a tolerance is below what others got with the released weights, or one swallows a gap that is unknown."""
    for definition in PAPER:
        paper, released = column("clip_table_11", definition.name), column("clip_released", definition.name)
        for model, value in released.items():
            assert abs(value - paper[model]) <= tolerance(definition.name, model)
    assert tolerance("food101", "ViT-B/32") == 1
    assert tolerance("fer2013", "ViT-B/32") == 5
    assert tolerance("mnist", "ViT-L/14") == 11
    assert tolerance("birdsnap", "RN101") == 1


@pytest.mark.parametrize("definition", DEFINITIONS.values(), ids=str)
def test_a_definition_agrees_with_its_files(definition: Definition) -> None:
    """Breaks if prompts or words are missing, a class has no name, or two words of one set would be told apart by nothing."""
    assert NamedTemplates(definition.templates).templates
    if definition.class_names:
        assert len(definition.class_names) == definition.classes
        assert set(renames(definition.name)) <= set(definition.class_names)
    for words in renames(definition.name).values():
        for word in [words] if isinstance(words, str) else words:
            assert word == " ".join(word.split()) != ""
    assert {hub.name.split("/")[0] for hub in definition.hub} <= {
        "clip-benchmark", "uoft-cs", "ethz", "timm", "ylecun", "ILSVRC"
    }  # fmt: skip


def test_every_name_is_there_once() -> None:
    """Breaks if a set is defined twice, or a file of words belongs to none."""
    assert len(DEFINITIONS) == len(PAPER) + len(SHIFTED) + len(BIOMEDICAL)
    files = {path.stem for path in (ROOT / "lightning_vl/evaluation/names").glob("*.csv")}
    assert files <= set(DEFINITIONS)


def test_words_are_matched_by_name_in_any_order(tmp_path: Path) -> None:
    """Breaks if a copy of a set with another order of classes, or with words already, gets other classes' words."""
    names = ["River", "Forest", "SeaLake", "Highway", "Pasture", "AnnualCrop", "Residential", "Industrial"]
    names += ["PermanentCrop", "HerbaceousVegetation"]
    make_shards(tmp_path / "original", names)
    words = PaperDataset("eurosat", str(tmp_path / "original")).words()
    assert words[:3] == [["river"], ["forest"], ["lake or sea"]]
    assert words[9] == ["brushland or shrubland"]
    renamed = [word for (word,) in words]
    make_shards(tmp_path / "renamed", renamed)
    assert PaperDataset("eurosat", str(tmp_path / "renamed")).words() == words


def test_several_words_for_a_class(tmp_path: Path) -> None:
    """Breaks if FER2013's synonyms are lost, which are averaged over."""
    make_folder(tmp_path / "test", "angry", "disgust", "fear", "happy", "neutral", "sad", "surprise")
    words = PaperDataset("fer2013", str(tmp_path)).words()
    assert words[1] == ["disgusted"]
    assert words[3] == ["happy", "smiling"]
    assert words[6] == ["surprised", "shocked", "spooked"]


def test_wordnet_numbers_become_words(tmp_path: Path) -> None:
    """Breaks if folders of ImageNet are called n02012849, or the two cranes are called the same."""
    names = ["n01440764", "n02012849", "n03126707"]
    task = PaperDataset("imagenet_a")
    make_folder(tmp_path, *names)
    task.source = EvaluationFolder(str(tmp_path))
    (tench,), (bird,), (machine,) = task.words()
    assert tench == "tench"
    assert bird.startswith("crane (large")
    assert machine.startswith("crane (lifts")


def test_a_set_is_found_in_the_form_that_it_has(tmp_path: Path) -> None:
    """Breaks if one of the local layouts is taken for another, or not found."""
    make_shards(tmp_path / "shards", [f"class {i}" for i in range(10)])
    assert isinstance(PaperDataset("cifar10", str(tmp_path / "shards")).source, ClipBenchmarkShards)
    make_shards(tmp_path / "voc", [f"class {i}" for i in range(20)], suffix="npy")
    assert isinstance(PaperDataset("voc2007", str(tmp_path / "voc")).source, ClipBenchmarkMultiLabel)
    (tmp_path / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main").mkdir(parents=True)
    assert isinstance(PaperDataset("voc2007", str(tmp_path / "VOCdevkit")).source, Voc2007)
    assert isinstance(PaperDataset("voc2007", str(tmp_path / "VOCdevkit" / "VOC2007")).source, Voc2007)
    for split in ("train", "test"):
        make_folder(tmp_path / "splits" / split, *"abcdefghij")
    source = PaperDataset("cifar10", str(tmp_path / "splits")).source
    assert isinstance(source, ImageFolder)
    assert source.class_names == list("abcdefghij")
    make_folder(tmp_path / "alone" / "val", *"abcdefghij")
    source = PaperDataset("cifar10", str(tmp_path / "alone")).source
    assert isinstance(source, EvaluationFolder)
    assert len(source.images("test")) == 10
    labels = {f"{split}_labels": np.zeros((1, 1), np.uint8) for split in ("train", "val", "test")}
    np.savez(tmp_path / "pathmnist_224.npz", **labels)  # type: ignore[arg-type]
    task = PaperDataset("pathmnist", str(tmp_path / "pathmnist_224.npz"))
    assert isinstance(task.source, MedMnist)
    assert task.words()[0] == ["adipose tissue"]
    assert isinstance(PaperDataset("chestmnist", str(tmp_path / "pathmnist_224.npz")).source, MedMnistMultiLabel)


def test_what_is_not_here_says_so_when_it_is_asked_for(tmp_path: Path) -> None:
    """Breaks if one set without images stops a list of all, or does not say how to get it."""
    for task, message in (
        (PaperDataset("birdsnap"), "is on no hub"),
        (PaperDataset("food101", str(tmp_path / "none")), "there is no folder"),
        (PaperDataset("voc2007", str(tmp_path)), "may show several classes"),
    ):
        with pytest.raises(UserError, match=message):
            task.source.images("test")
    with pytest.raises(UserError) as error:
        PaperDataset("food-101")
    assert "'food101'" in error.value.how


def test_a_set_of_the_hub_knows_its_columns() -> None:
    """Breaks if a plain set of the hub is read with CLIP_benchmark's columns, or its validation split is not its test."""
    hub = (HubSet("uoft-cs/cifar100", 10_000, "validation", "img", "fine_label"),)
    source = hub_source(Definition("cifar100", "CIFAR-100", 100, "cifar100", TopOne(), 10_000, hub))
    assert isinstance(source, HubImages)
    assert (source.image_column, source.label_column, source.splits["test"]) == ("img", "fine_label", "validation")


def test_a_set_of_plain_columns_is_read(tmp_path: Path) -> None:
    """Breaks if the local copy of such a set cannot be classified without a training split of its own."""
    (tmp_path / "classnames.txt").write_text("0\n1\n")
    (tmp_path / "note.json").write_text(json.dumps({}))
    make_folder(tmp_path / "test", "hateful", "not_hateful")
    task = PaperDataset("hateful_memes", str(tmp_path))
    assert task.words() == [["hatespeech meme"], ["meme"]]
    assert task.metric.name == "roc_auc"
    assert task.paper is not None
    assert task.paper["ViT-B/32"] == 57.6


def test_a_file_calls_sets_by_name() -> None:
    """Breaks if experiments cannot name a set, give it a folder, other prompts or a probe."""
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--zero_shot", type=list[ZeroShot | PaperDataset])
    text = """
    - class_path: lightning_vl.evaluation.paper_datasets.PaperDataset
      init_args: {name: food101}
    - class_path: lightning_vl.evaluation.paper_datasets.PaperDataset
      init_args:
        name: cifar10
        root: /data
        templates: {class_path: TemplateFile, init_args: {path: cifar10.txt}}
        probe: {}
    """
    parsed = parser.parse_args([f"--zero_shot={json.dumps(yaml.safe_load(text))}"])
    food, cifar = parser.instantiate(parsed).zero_shot
    assert isinstance(food, PaperDataset)
    assert food.templates.texts("ramen") == ["a photo of ramen, a type of food."]
    assert isinstance(cifar.templates, TemplateFile)
    assert cifar.probe is not None


@pytest.mark.parametrize("path", ZERO_SHOT, ids=lambda path: path.stem)
def test_experiments_expect_what_the_tables_have(path: Path) -> None:
    """Breaks if a value, a metric's name or a tolerance of a file is not the table's, or a set of the 27 is left out."""
    recipe = yaml.safe_load(path.read_text())
    model = {
        "clip_rn50": "RN50", "clip_vit_b32": "ViT-B/32", "clip_vit_b16": "ViT-B/16", "clip_vit_l14": "ViT-L/14",
        "clip_vit_l14_336": "ViT-L/14@336px",
    }[path.stem.removesuffix("_zero_shot")]  # fmt: skip
    names = [entry["init_args"]["name"] for entry in recipe["zero_shot"]]
    assert names[:27] == [definition.name for definition in PAPER]
    assert set(names) <= set(DEFINITIONS)
    expected = {entry["metric"]: entry for entry in recipe["expected"]}
    for definition in PAPER:
        entry = expected[f"zero_shot/{definition.name}/{definition.metric.name}"]
        assert entry["value"] == pytest.approx(column("clip_table_11", definition.name)[model] / 100)
        assert entry["tolerance"] == pytest.approx(tolerance(definition.name, model) / 100)


def test_there_are_files_of_five_models() -> None:
    """Breaks if the pattern above finds nothing and its test passes by being empty."""
    assert len(ZERO_SHOT) == 5


def test_the_page_is_up_to_date() -> None:
    """Breaks if the table changes and docs/zero_shot_datasets.md does not: python -m lightning_vl.evaluation.paper_datasets."""
    assert (ROOT / "docs" / "zero_shot_datasets.md").read_text() == page()
