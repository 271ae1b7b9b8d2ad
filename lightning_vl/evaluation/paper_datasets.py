"""The data sets that CLIP is evaluated on, each by its name: the paper's 27 (Sec. 3.1.5, App. A), and others.

Beside the table here lie, by the names of the table: `templates/<set>.txt`, the prompts; `names/<set>.csv`, words for classes
whose own names are none (several words for one class with `|` between them); `tables/*.csv`, published results in percent.
Names are matched by what they are, never by their number: other copies of a set have its classes in another order.
"""

import csv
import difflib
import glob
import math
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from lightning_vl.data.datasets.clip_benchmark import ClipBenchmarkMultiLabel, ClipBenchmarkShards
from lightning_vl.data.datasets.evaluation_folder import EvaluationFolder
from lightning_vl.data.datasets.hub_images import HubImages
from lightning_vl.data.datasets.image_folder import ImageFolder
from lightning_vl.data.datasets.medmnist import MedMnist, MedMnistMultiLabel
from lightning_vl.data.datasets.voc2007 import Voc2007
from lightning_vl.data.source import ImageSource, LabelledImage, Split
from lightning_vl.errors import UserError
from lightning_vl.evaluation.prompts import CLASS_NAMES, NamedTemplates, Templates
from lightning_vl.evaluation.zero_shot import MultiLabelSource, ZeroShot
from lightning_vl.evaluation.zero_shot_metrics import (
    ElevenPointMap,
    MeanOfTopOneAndFive,
    MeanPerClass,
    Metric,
    RocAuc,
    TopOne,
)
from lightning_vl.evaluation.zero_shot_probe import LogisticProbe

HERE = Path(__file__).parent
BETWEEN_WORDS = "|"
MODELS = (
    "RN50",
    "RN101",
    "RN50x4",
    "RN50x16",
    "RN50x64",
    "ViT-B/32",
    "ViT-B/16",
    "ViT-L/14",
    "ViT-L/14@336px",
)
WORDNET = re.compile(r"n\d{8}")  # what ImageNet calls its folders


@dataclass(frozen=True)
class HubSet:
    """Where the Hugging Face hub has a set.

    Args:
        name: the set's name there.
        images: images of the split.
        split: the split to test on.
        image: the column of images.
        label: the column of labels.
        config: the set's configuration, where it has several.
        checked: whether somebody has seen that it is there, with these columns.
    """

    name: str
    images: int | None
    split: str = "test"
    image: str = "webp"
    label: str = "cls"
    config: str | None = None
    checked: bool = False

    @property
    def shards(self) -> bool:
        """Whether it has CLIP_benchmark's form."""
        return self.name.startswith("clip-benchmark/")


@dataclass(frozen=True)
class Definition:
    """A data set.

    Args:
        name: its name here, in metrics and in files.
        title: its name in print.
        classes: how many there are.
        templates: the set of prompts.
        metric: what the paper reports.
        images: images that the paper tests on, or MedMNIST; None where that is not known for sure.
        hub: where it can be had; the first is taken.
        class_names: of sets whose files have none.
        several_labels: whether an image may show several classes.
        note: what else should be known of it.
    """

    name: str
    title: str
    classes: int
    templates: str
    metric: Metric
    images: int | None
    hub: tuple[HubSet, ...] = ()
    class_names: tuple[str, ...] = ()
    several_labels: bool = False
    note: str = ""


@dataclass(frozen=True)
class RetrievalSet:
    """A set of images with captions to search in; `tables/clip_table_13.csv` has the paper's values.

    Args:
        name: its name in that table.
        title: its name in print.
        images: of the test split.
        captions: of each image.
        hub: where it can be had.
        note: what else should be known of it.
    """

    name: str
    title: str
    images: int
    captions: int
    hub: tuple[HubSet, ...] = ()
    note: str = ""


def _wds(name: str, images: int | None, checked: bool = False, label: str = "cls") -> HubSet:
    return HubSet(f"clip-benchmark/wds_{name}", images, label=label, checked=checked)


PAPER = (
    Definition(
        "food101", "Food101", 101, "food101", TopOne(), 25_250,
        (_wds("food101", 25_250, checked=True), HubSet("ethz/food101", 25_250, "validation", "image", "label")),
    ),
    Definition(
        "cifar10", "CIFAR-10", 10, "cifar10", TopOne(), 10_000,
        (_wds("vtab-cifar10", 10_000, checked=True), HubSet("uoft-cs/cifar10", 10_000, "test", "img", "label")),
    ),
    Definition(
        "cifar100", "CIFAR-100", 100, "cifar100", TopOne(), 10_000,
        (
            _wds("vtab-cifar100", 10_000, checked=True),
            HubSet("uoft-cs/cifar100", 10_000, "test", "img", "fine_label", checked=True),
        ),
    ),
    Definition("birdsnap", "Birdsnap", 500, "birdsnap", TopOne(), 2_149),
    Definition(
        "sun397", "SUN397", 397, "sun397", TopOne(), 19_850, (_wds("sun397", 108_754),),
        note="the hub's test split is all images of the set, the paper's a part of them",
    ),
    Definition("stanford_cars", "Stanford Cars", 196, "stanford_cars", TopOne(), 8_041, (_wds("cars", 8_041),)),
    Definition(
        "fgvc_aircraft", "FGVC Aircraft", 100, "fgvc_aircraft", MeanPerClass(), 3_333, (_wds("fgvc_aircraft", 3_333),)
    ),
    Definition(
        "voc2007", "VOC2007", 20, "voc2007", ElevenPointMap(), 4_952,
        (_wds("voc2007_multilabel", None, checked=True, label="npy"),), several_labels=True,
        note="wds_voc2007 is another set, single objects cut out",
    ),
    Definition("dtd", "Describable Textures", 47, "dtd", TopOne(), 1_880, (_wds("vtab-dtd", 1_880),)),
    Definition(
        "oxford_pets", "Oxford-IIIT Pets", 37, "oxford_pets", MeanPerClass(), 3_669,
        (
            _wds("vtab-pets", 3_669, checked=True),
            HubSet("timm/oxford-iiit-pet", None, "test", "image", "label", checked=True),
        ),
    ),
    Definition(
        "caltech101", "Caltech-101", 102, "caltech101", MeanPerClass(), None,
        (_wds("vtab-caltech101", 6_084, checked=True),),
    ),
    Definition("flowers102", "Oxford Flowers 102", 102, "flowers102", MeanPerClass(), 6_149, (_wds("vtab-flowers", 6_149),)),
    Definition(
        "mnist", "MNIST", 10, "mnist", TopOne(), 10_000,
        (_wds("mnist", 10_000, checked=True), HubSet("ylecun/mnist", 10_000, "test", "image", "label")),
    ),
    Definition(
        "fer2013", "FER2013", 7, "fer2013", TopOne(), 3_574, (_wds("fer2013", 7_178),),
        note="some classes have several words; the hub's test split is both of the set's test halves",
    ),
    Definition("stl10", "STL-10", 10, "stl10", TopOne(), 8_000, (_wds("stl10", 8_000),)),
    Definition(
        "eurosat", "EuroSAT", 10, "eurosat", TopOne(), 5_000, (_wds("vtab-eurosat", 5_400),),
        note="the hub's split is not the paper's",
    ),
    Definition(
        "resisc45", "RESISC45", 45, "resisc45", TopOne(), 25_200, (_wds("vtab-resisc45", 6_300),),
        note="the hub's split is not the paper's",
    ),
    Definition("gtsrb", "GTSRB", 43, "gtsrb", TopOne(), 12_630, (_wds("gtsrb", 12_630),)),
    Definition(
        "kitti", "KITTI distance", 4, "kitti", TopOne(), 711, (_wds("vtab-kitti_closest_vehicle_distance", 711),),
        note="classes are sentences; the folders of a copy of yours: near, middle, far, none",
    ),
    Definition("country211", "Country211", 211, "country211", TopOne(), 21_100, (_wds("country211", 21_100),)),
    Definition("pcam", "PatchCamelyon", 2, "pcam", TopOne(), 32_768, (_wds("vtab-pcam", 32_768),)),
    Definition(
        "ucf101", "UCF101", 101, "ucf101", TopOne(), 1_794,
        note="the middle frame of each video, the mean over three splits in the paper",
    ),
    Definition(
        "kinetics700", "Kinetics700", 700, "kinetics700", MeanOfTopOneAndFive(), None, note="the middle frame of each video"
    ),
    Definition(
        "clevr_count", "CLEVR Counts", 8, "clevr_count", TopOne(), None, (_wds("vtab-clevr_count_all", 15_000),),
        note="the paper tests on a part",
    ),
    Definition(
        "hateful_memes", "Hateful Memes", 2, "hateful_memes", RocAuc(), 500,
        note="the folders of a copy of yours: hateful, not_hateful",
    ),
    Definition(
        "rendered_sst2", "Rendered SST2", 2, "rendered_sst2", TopOne(), 1_821, (_wds("renderedsst2", 1_821),)
    ),
    Definition(
        "imagenet", "ImageNet", 1000, "imagenet", TopOne(), 50_000,
        (_wds("imagenet1k", 50_000), HubSet("ILSVRC/imagenet-1k", 50_000, "validation", "image", "label")),
        note="its validation images; ILSVRC/imagenet-1k is given on request",
    ),
)  # fmt: skip

# other distributions of ImageNet's classes, and the frames of videos (Sec. 3.3, Table 16; Fig. 21); single digits
SHIFTED = (
    Definition("imagenet_v2", "ImageNet-V2", 1000, "imagenet", TopOne(), None, (_wds("imagenetv2", 10_000, checked=True),)),
    Definition("imagenet_a", "ImageNet-A", 200, "imagenet", TopOne(), None, (_wds("imagenet-a", 7_500, checked=True),)),
    Definition("imagenet_r", "ImageNet-R", 200, "imagenet", TopOne(), None, (_wds("imagenet-r", 30_000, checked=True),)),
    Definition("objectnet", "ObjectNet", 113, "imagenet", TopOne(), None, (_wds("objectnet", 18_574),)),
    Definition("imagenet_sketch", "ImageNet Sketch", 1000, "imagenet", TopOne(), None, (_wds("imagenet_sketch", 50_889),)),
    Definition(
        "youtube_bb", "YouTube-BB frames", 23, "youtube_bb", TopOne(), None,
        note="frames in class folders; the paper reports the anchor frames and the worst frame within ten on either side of each (from memory)",
    ),
    Definition(
        "svhn", "SVHN", 10, "svhn", TopOne(), None, (_wds("vtab-svhn", 26_032),),
        note="single digits; the paper's 51.0 is of whole numbers (Table 14)",
    ),
)  # fmt: skip

ORGANS = (
    "bladder", "femur-left", "femur-right", "heart", "kidney-left", "kidney-right", "liver", "lung-left", "lung-right",
    "pancreas", "spleen",
)  # fmt: skip
# PatchCamelyon with other prompts, and MedMNIST's two-dimensional sets, of the .npz files that it publishes (version 2)
BIOMEDICAL = (
    Definition(
        "pcam_biomedical", "PatchCamelyon, biomedical prompts", 2, "pcam_biomedical", TopOne(), 32_768,
        (_wds("vtab-pcam", 32_768),),
    ),
    Definition(
        "pathmnist", "PathMNIST", 9, "pathmnist", TopOne(), 7_180,
        class_names=(
            "adipose", "background", "debris", "lymphocytes", "mucus", "smooth muscle", "normal colon mucosa",
            "cancer-associated stroma", "colorectal adenocarcinoma epithelium",
        ),
    ),
    Definition(
        "chestmnist", "ChestMNIST", 14, "chestmnist", RocAuc(), 22_433, several_labels=True,
        class_names=(
            "atelectasis", "cardiomegaly", "effusion", "infiltration", "mass", "nodule", "pneumonia", "pneumothorax",
            "consolidation", "edema", "emphysema", "fibrosis", "pleural", "hernia",
        ),
        note="several findings an image, or none",
    ),
    Definition(
        "dermamnist", "DermaMNIST", 7, "dermamnist", TopOne(), 2_005,
        class_names=(
            "actinic keratoses and intraepithelial carcinoma", "basal cell carcinoma", "benign keratosis-like lesions",
            "dermatofibroma", "melanoma", "melanocytic nevi", "vascular lesions",
        ),
    ),
    Definition(
        "octmnist", "OCTMNIST", 4, "octmnist", TopOne(), 1_000,
        class_names=("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"),
    ),
    Definition("pneumoniamnist", "PneumoniaMNIST", 2, "pneumoniamnist", TopOne(), 624, class_names=("normal", "pneumonia")),
    Definition(
        "retinamnist", "RetinaMNIST", 5, "retinamnist", TopOne(), 400, class_names=("0", "1", "2", "3", "4"),
        note="the classes are grades, from none to the worst; top-1 makes no difference between near and far",
    ),
    Definition("breastmnist", "BreastMNIST", 2, "breastmnist", TopOne(), 156, class_names=("malignant", "normal, benign")),
    Definition(
        "bloodmnist", "BloodMNIST", 8, "bloodmnist", TopOne(), 3_421,
        class_names=(
            "basophil", "eosinophil", "erythroblast",
            "immature granulocytes(myelocytes, metamyelocytes and promyelocytes)",
            "lymphocyte", "monocyte", "neutrophil", "platelet",
        ),
    ),
    Definition(
        "tissuemnist", "TissueMNIST", 8, "tissuemnist", TopOne(), 47_280,
        class_names=(
            "Collecting Duct, Connecting Tubule", "Distal Convoluted Tubule", "Glomerular endothelial cells",
            "Interstitial endothelial cells", "Leukocytes", "Podocytes", "Proximal Tubule Segments", "Thick Ascending Limb",
        ),
    ),
    Definition("organamnist", "OrganAMNIST", 11, "organamnist", TopOne(), 17_778, class_names=ORGANS),
    Definition("organcmnist", "OrganCMNIST", 11, "organcmnist", TopOne(), 8_268, class_names=ORGANS),
    Definition("organsmnist", "OrganSMNIST", 11, "organsmnist", TopOne(), 8_829, class_names=ORGANS),
)  # fmt: skip
DEFINITIONS = {definition.name: definition for definition in (*PAPER, *SHIFTED, *BIOMEDICAL)}

RETRIEVAL = (
    RetrievalSet(
        "flickr30k", "Flickr30k", 1_000, 5,
        (
            _wds("flickr30k", 1_000, label="txt"),
            HubSet("nlphuji/flickr30k", None, "test", "image", "caption"),
            HubSet("lmms-lab/flickr30k", 31_783, "test", "image", "caption", checked=True),
        ),
        note="nlphuji/flickr30k has a column split to choose the 1,000 test images by; lmms-lab/flickr30k is the whole set",
    ),
    RetrievalSet(
        "mscoco", "MSCOCO", 5_000, 5,
        (
            _wds("mscoco_captions", 5_000, label="txt"),
            HubSet("nlphuji/mscoco_2014_5k_test_image_text_retrieval", 5_000, "test", "image", "caption", "TEST"),
        ),
        note="a few images have more captions",
    ),
)  # fmt: skip


class PaperDataset(ZeroShot):
    """One of the data sets by its name, with its prompts, class names, metric and published values.

    Args:
        name: `food101`, `imagenet_a`, `pathmnist`, ...: see docs/zero_shot_datasets.md.
        root: a folder of yours, in CLIP_benchmark's form (`classnames.txt`, `test/0.tar`, ...), with class folders
            (`<root>/test/<class>/<image>`, or `train` and `validation` beside `test`, or `<root>/<class>/<image>`),
            VOC2007's `VOCdevkit`, or MedMNIST's .npz file. None for the Hugging Face hub, which is not asked before the images are.
        templates: other prompts than this package's.
        probe: a linear classifier to compare with; needs a training split.
        workers: processes that read ahead.
        max_corrupt: largest share of the images that may turn out unreadable.

    Raises:
        UserError: there is no set of this name. One whose images cannot be had says so when they are asked for.
    """

    def __init__(
        self,
        name: str,
        root: str | None = None,
        templates: Templates | None = None,
        probe: LogisticProbe | None = None,
        workers: int = 0,
        max_corrupt: float = 0.01,
    ) -> None:
        definition = defined(name)
        super().__init__(
            name=name,
            source=source_of(definition, root),
            templates=templates or NamedTemplates(definition.templates),
            names=renames(name),
            metric=definition.metric,
            probe=probe,
            paper=column("clip_table_11", name) or column("clip_table_16", name) or None,
            released=column("clip_released", name) or None,
            workers=workers,
            max_corrupt=max_corrupt,
        )

    def words(self) -> list[list[str]]:
        """What each class is called: of the names that this package knows, those that this copy of the set uses."""
        classes = self.source.class_names
        known = wordnet_words(classes) if classes and all(map(WORDNET.fullmatch, classes)) else renames(self.name)
        self.names = {name: words for name, words in known.items() if name in classes}
        return super().words()


def defined(name: str) -> Definition:
    """The data set of a name.

    Raises:
        UserError: there is none.
    """
    if name not in DEFINITIONS:
        close = difflib.get_close_matches(name, DEFINITIONS, n=1, cutoff=0.4)
        raise UserError(
            f"there is no data set called {name!r} for zero-shot classification",
            f"did you mean {close[0]!r}?" if close else f"give one of {', '.join(DEFINITIONS)}",
        )
    return DEFINITIONS[name]


class Missing(ImageSource):
    """A set that cannot be had; every question after it is answered with the reason.

    Args:
        reason: why.
    """

    def __init__(self, reason: UserError) -> None:
        self.reason = reason

    @property
    def class_names(self) -> list[str]:
        """There are none."""
        raise self.reason

    def images(self, split: Split) -> Sequence[LabelledImage]:
        """There are none."""
        raise self.reason

    def read(self, split: Split, index: int) -> np.ndarray:
        """There is none."""
        raise self.reason


def source_of(definition: Definition, root: str | None) -> ImageSource | MultiLabelSource:
    """The set in a folder, or on the hub; `Missing` where it cannot be had, so that a list of sets may name all of them."""
    try:
        return hub_source(definition) if root is None else local_source(definition, root)
    except UserError as reason:
        return Missing(reason)


def hub_source(definition: Definition) -> ImageSource | MultiLabelSource:
    """The set on the hub; nothing is downloaded yet.

    Raises:
        UserError: it is known to be on none.
    """
    if not definition.hub:
        raise UserError(
            f"{definition.name} is on no hub that is known of",
            f"give its place: {{name: {definition.name}, root: PATH}}",
        )
    found = definition.hub[0]
    if definition.several_labels:
        return ClipBenchmarkMultiLabel(found.name, definition.classes)
    if found.shards:
        return ClipBenchmarkShards(found.name, definition.classes)
    splits: dict[Split, str] = {"train": "train", "test": found.split}
    return HubImages(found.name, found.config, found.image, found.label, splits, definition.classes)


def local_source(definition: Definition, root: str) -> ImageSource | MultiLabelSource:
    """The set in a folder, in the form that it is found in.

    Raises:
        UserError: there is nothing, or in no form that the set can have.
    """
    if not os.path.exists(root):
        raise UserError(
            f"there is no folder {root}", f"check the root of {definition.name}, or leave it out for the hub"
        )
    if definition.class_names and root.endswith(".npz"):
        names = list(definition.class_names)
        return MedMnistMultiLabel(root, names) if definition.several_labels else MedMnist(root, names)
    if os.path.exists(os.path.join(root, CLASS_NAMES)) and glob.glob(os.path.join(glob.escape(root), "*", "*.tar")):
        return (ClipBenchmarkMultiLabel if definition.several_labels else ClipBenchmarkShards)(root, definition.classes)
    if definition.name == "voc2007" and Voc2007.is_at(root):
        return Voc2007(root, definition.classes)
    if definition.several_labels:
        others = f"VOCdevkit as it unpacks, or a folder with {CLASS_NAMES} and test/*.tar"
        form = "MedMNIST's .npz file" if definition.class_names else others
        raise UserError(
            f"images of {definition.name} may show several classes, and {root} cannot say so", f"give {form}"
        )
    if os.path.isdir(os.path.join(root, "train")):
        return ImageFolder(root, definition.classes)
    alone = next((name for name in ("test", "validation", "val") if os.path.isdir(os.path.join(root, name))), "")
    return EvaluationFolder(os.path.join(root, alone), definition.classes)


def renames(name: str) -> dict[str, str | list[str]]:
    """Words for class names of a set that are none; a list where a class has several."""
    path = HERE / "names" / f"{name}.csv"
    if not path.exists():
        return {}
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        row["name"]: row["words"].split(BETWEEN_WORDS) if BETWEEN_WORDS in row["words"] else row["words"]
        for row in rows
    }


def wordnet_words(classes: list[str]) -> dict[str, str | list[str]]:
    """Words for the WordNet numbers (n01440764) that folders of ImageNet's 1,000 classes are called by.

    They are the first of WordNet's, not the curated names of the paper, which made 1.5 points more with ViT-B/32. Of two
    classes with the same word both get what WordNet says of them in brackets.
    """
    from timm.data.imagenet_info import ImageNetInfo  # it takes seconds, and few runs need it

    info = ImageNetInfo()
    known = set(info.label_names())  # type: ignore[no-untyped-call]
    words = {name: info.label_name_to_description(name).split(",")[0] for name in classes if name in known}
    counts = Counter(word.lower() for word in words.values())
    shared = {word for word in words.values() if counts[word.lower()] > 1}
    return {
        name: f"{word} ({info.label_name_to_description(name, detailed=True).split(': ')[-1]})"
        if word in shared
        else word
        for name, word in words.items()
    }


def tolerance(name: str, model: str) -> int:
    """By how many points the released weights may miss the paper's value, in other hands than the authors'.

    As much as others missed it, a point at least; several points where it is known that prompts or splits differ, and
    nothing more.
    """
    if name in ("fer2013", "clevr_count"):
        return 5
    paper, released = column("clip_table_11", name), column("clip_released", name)
    return max(1, math.ceil(round(abs(paper[model] - released.get(model, paper[model])), 6)))


def column(table: str, name: str) -> dict[str, float]:
    """What a table of `tables/` has for a data set, in percent, by model; nothing where it has no such column."""
    return {row["model"]: float(row[name]) for row in read_table(table) if name in row}


@cache
def read_table(table: str) -> list[dict[str, str]]:
    """The rows of a table of `tables/`."""
    with open(HERE / "tables" / f"{table}.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


PAGE = """\
# Data sets for zero-shot classification

Generated by `python -m lightning_vl.evaluation.paper_datasets`; do not edit. Each is called by its name under `zero_shot` of an
experiment's file:

```yaml
zero_shot:
  - {class_path: PaperDataset, init_args: {name: food101}}
  - {class_path: PaperDataset, init_args: {name: imagenet_a, root: DATA/imagenet-a}}
```

**Where the images come from.** Without `root` the set is taken from the Hugging Face hub, the first name below, and of CLIP_benchmark's
sets (`clip-benchmark/wds_...`) the test split alone is downloaded. `root` is a folder of yours, in CLIP_benchmark's form (`classnames.txt`,
`test/0.tar`, ...), with class folders (`test/<class>/<image>`, perhaps `train` and `validation` beside it, or `<class>/<image>` alone),
VOC2007's `VOCdevkit` as it unpacks, or MedMNIST's `.npz` file. A set that cannot be had is passed over, and the table says why.

**Classes** are called what the copy of the set calls them, made readable; where those are no words, as
[names/](../lightning_vl/evaluation/names) has it, by name and never by number, for copies differ in their order. Several words for a class
(FER2013's happy, smiling) are averaged over. Folders of ImageNet's WordNet numbers get WordNet's first word, not the paper's curated
names; `classnames.txt` of CLIP_benchmark's copy has those.

**Prompts.** The sets in [templates/](../lightning_vl/evaluation/templates) have as many templates as the paper's for each data set, and
the form that its released page states; `imagenet_7` is that page's choice of seven, and is within `imagenet`. The other wording is ours.
The released lists are given by a file:

```yaml
  - class_path: PaperDataset
    init_args: {name: cifar10, templates: {class_path: TemplateFile, init_args: {path: cifar10.txt}}}
```

with one template a line, and `{}` (or `{c}`) for the name. `BareName` is the name alone.

**checked** says whether somebody here has seen that the hub has a set of this name; the other names follow CLIP_benchmark's list, or are
from memory. *images* is the number that the paper (or MedMNIST) tests on, *hub* that of the hub's split: where they differ, so may the
result.
Published values are in [tables/](../lightning_vl/evaluation/tables), in percent: Tables 10, 11, 13 and 16 of the paper, and what others
measured with the released weights.
"""
SECTIONS = (
    ("The paper's 27", PAPER),
    ("Other distributions", SHIFTED),
    ("Biomedical sets", BIOMEDICAL),
)


def page() -> str:
    """docs/zero_shot_datasets.md."""
    lines = [PAGE]
    for title, definitions in SECTIONS:
        lines += [f"## {title}", ""]
        lines += ["| name | data set | classes | prompts | metric | images | hub, split, columns | hub | checked |"]
        lines += ["|" + "---|" * 9, *map(_row, definitions), ""]
        lines += [f"- `{definition.name}`: {definition.note}." for definition in definitions if definition.note] + [""]
    lines += ["## Retrieval", "", "| name | data set | captions | images | hub, split, columns | hub | checked |"]
    lines += ["|" + "---|" * 7]
    lines += [
        f"| `{found.name}` | {found.title} | {found.captions} | {found.images:,} | {_hub(found.hub)} |"
        for found in RETRIEVAL
    ]
    lines += ["", *[f"- `{found.name}`: {found.note}." for found in RETRIEVAL]]
    return "\n".join(lines) + "\n"


def _row(definition: Definition) -> str:
    images = "" if definition.images is None else f"{definition.images:,}"
    prompts = f"`{definition.templates}`, {len(NamedTemplates(definition.templates).templates)}"
    cells = [
        f"`{definition.name}`",
        definition.title,
        f"{definition.classes:,}",
        prompts,
        definition.metric.title,
        images,
    ]
    return f"| {' | '.join(cells)} | {_hub(definition.hub)} |"


def _hub(sets: tuple[HubSet, ...]) -> str:
    where = [
        f"`{found.name}`{f' ({found.config})' if found.config else ''}, {found.split}, {found.image} and {found.label}"
        for found in sets
    ]
    images = ["" if found.images is None else f"{found.images:,}" for found in sets]
    checked = ["yes" if found.checked else "no" for found in sets]
    return " | ".join("<br>".join(cells) for cells in (where, images, checked))


if __name__ == "__main__":
    Path("docs/zero_shot_datasets.md").write_text(page(), encoding="utf-8")
