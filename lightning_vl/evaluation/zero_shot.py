"""Zero-shot classification: images named by nothing but the names of the classes (CLIP, Sec. 3.1).

Of each class a text tower is told some texts, templates with the name in their slot. The embeddings of the texts, each of
length one, are averaged, and the mean, again of length one, is the class's column of a linear classifier W. The logits of an
image are its cosines with the columns times the scale that was learnt with the towers (Sec. 3.1.2, 3.1.4).
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from lightning_vl.data.image_augmentation import centre_square
from lightning_vl.data.source import ImageSource, Split
from lightning_vl.data.stream import Batch, EvaluationKeys, KeyedDataset, evaluation_loader
from lightning_vl.errors import UserError
from lightning_vl.evaluation.dual_encoder import DualEncoder
from lightning_vl.evaluation.prompts import SLOT, Templates, readable
from lightning_vl.evaluation.zero_shot_metrics import Answers, Metric, TopOne, answer, join, softmax, top
from lightning_vl.evaluation.zero_shot_probe import LogisticProbe
from lightning_vl.terminal import say

TEXTS_AT_ONCE = 4096
SHOWN = 5  # classes beside an image
EACH = 4  # correct examples, and as many wrong ones


class MultiLabelledImage(NamedTuple):
    """One image that may show several classes.

    Attributes:
        id: names the image in reports and errors (a path relative to the root, say).
        labels: indices of the classes it shows.
        difficult: indices of classes that it shows so badly that for them it does not count (VOC2007).
    """

    id: str
    labels: frozenset[int]
    difficult: frozenset[int] = frozenset()


class MultiLabelSource(ABC):
    """Images with any number of labels, in three splits; pixels are read by index."""

    @property
    @abstractmethod
    def class_names(self) -> list[str]:
        """Class names in the order of the logits."""

    @abstractmethod
    def images(self, split: Split) -> Sequence[MultiLabelledImage]:
        """The images of a split; they are not opened yet.

        Raises:
            UserError: the split cannot be had.
        """

    @abstractmethod
    def read(self, split: Split, index: int) -> np.ndarray:
        """Image `index` of the split: uint8 (h, w, 3), RGB.

        Raises:
            CorruptSample: it cannot be decoded.
        """


@dataclass
class ZeroShot:
    """A data set to be classified by the names of its classes.

    Args:
        name: in the names of metrics.
        source: the images.
        templates: the sentences that a class's name is put into.
        names: what a class is called in them, by its name in the source; several words for a class are averaged over. Other
            classes are called by their own names, made readable.
        split: which images are classified.
        metric: what is reported of them; None for top-1.
        probe: a linear classifier on the same images' features, to compare with; it is trained on the other two splits.
        paper: the published models' values of the metric in the paper, in percent, by the model's name.
        released: what others measured with the released weights, likewise.
        workers: processes that read ahead.
        max_corrupt: largest share of a split's images that may turn out unreadable.
    """

    name: str
    source: ImageSource | MultiLabelSource
    templates: Templates
    names: dict[str, str | list[str]] | None = None
    split: Split = "test"
    metric: Metric | None = None
    probe: LogisticProbe | None = None
    paper: dict[str, float] | None = None
    released: dict[str, float] | None = None
    workers: int = 0
    max_corrupt: float = 0.01

    @property
    def measure(self) -> Metric:
        """The metric, whether given or not."""
        return self.metric or TopOne()

    def words(self) -> list[list[str]]:
        """What each class is called, in the order of the source's classes.

        Raises:
            UserError: the classes cannot be had, a name is of none of them, or two of them are called the same.
        """
        classes, names = self.source.class_names, self.names or {}
        if unknown := [name for name in names if name not in classes]:
            raise UserError(
                f"names of {self.name} speak of {unknown[0]!r}, which is none of its classes",
                f"its classes are {', '.join(classes[:8])}{', ...' if len(classes) > 8 else ''}",
            )
        words = [names.get(name, readable(name)) for name in classes]
        called = [[given] if isinstance(given, str) else list(given) for given in words]
        owners: dict[str, str] = {}
        for name, all_words in zip(classes, called, strict=True):
            for word in all_words or [""]:
                key = " ".join(word.lower().split())  # what the paper's text tower can tell apart
                if not key:
                    raise UserError(
                        f"the class {name!r} of {self.name} is called nothing", "give it a word under names"
                    )
                if owners.setdefault(key, name) != name:
                    raise UserError(
                        f"the classes {owners[key]!r} and {name!r} of {self.name} are both called {word!r}",
                        f"give {self.name} other words for one of them under names",
                    )
        return called


@dataclass
class Result:
    """What came out for one data set; shares in [0, 1].

    Attributes:
        task: the data set.
        images: how many were classified.
        unreadable: how many were left out.
        classes: number of classes.
        templates: number of templates.
        example: the first template.
        value: of the task's metric.
        top1: share of images whose true class comes first; of images that show several classes the best one counts.
        top5: likewise among the first five.
        confidence: mean probability of the true class.
        median_rank: of the true class, from 1; behind classes of the same logit.
        tied: share of images of which another class has the logit of the true one.
        majority: share of images of the commonest class.
        probe: the metric of the linear probe.
    """

    task: ZeroShot
    images: int
    unreadable: int
    classes: int
    templates: int
    example: str
    value: float
    top1: float
    top5: float
    confidence: float
    median_rank: float
    tied: float
    majority: float
    probe: float | None = None

    def metrics(self) -> dict[str, float]:
        """By the names under which they are logged."""
        prefix = f"zero_shot/{self.task.name}"
        found = {
            f"{prefix}/top1": self.top1,
            f"{prefix}/{self.task.measure.name}": self.value,
            f"{prefix}/confidence": self.confidence,
            f"{prefix}/median_rank": self.median_rank,
            f"baseline/zero_shot_{self.task.name}_majority": self.majority,
        }
        if self.classes > 5:
            found[f"{prefix}/top5"] = self.top5
        if self.probe is not None:
            found[f"{prefix}/probe"] = self.probe
        return found


class Absent(NamedTuple):
    """A data set that could not be classified, and why.

    Attributes:
        task: the data set.
        what: one line that says what is wrong.
        how: one line that says how to mend it.
    """

    task: ZeroShot
    what: str
    how: str


def check_all(tasks: Sequence[ZeroShot], needed: bool) -> list[Absent]:
    """Finds before training what can be wrong with its zero-shot tasks. No image is opened.

    Args:
        tasks: the data sets.
        needed: whether it is an error that none of them is here.

    Returns:
        The data sets that are not here; the run passes over them.

    Raises:
        UserError: two tasks have one name, templates cannot be had or have no slot, two classes are called the same, a metric
            does not fit its source, a probe has no images to be trained on, or none of the data sets is here.
    """
    names = [task.name for task in tasks]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"two zero-shot tasks are called {twice[0]}", "give each its own name under zero_shot")
    absent = []
    for task in tasks:
        _check_templates(task)
        if isinstance(task.source, MultiLabelSource) and not task.measure.several_labels:
            raise UserError(
                f"{task.name} is measured by {task.measure.title}, and its images may show several classes",
                "give it the metric ElevenPointMap or RocAuc",
            )
        if task.probe and task.split != "test":
            raise UserError(
                f"{task.name} is classified on its {task.split} split, on which its probe is trained",
                "leave its probe out, or classify its test split",
            )
        if reason := _missing(task):
            absent.append(reason)
            continue
        _check_words(task)
    if needed and tasks and len(absent) == len(tasks):
        raise UserError(f"no data set of zero_shot is here: {absent[0].task.name}: {absent[0].what}", absent[0].how)
    return absent


def _check_templates(task: ZeroShot) -> None:
    texts, others = task.templates.texts("zebra"), task.templates.texts("lynx")
    if not texts:
        raise UserError(f"{task.name} has no templates", "give it one or more: a photo of a {}.")
    for text, other in zip(texts, others, strict=True):
        if text == other:
            raise UserError(
                f"the template {text!r} of {task.name} has no slot", "write {} where the name of the class goes"
            )


def _missing(task: ZeroShot) -> Absent | None:
    try:
        splits: tuple[Split, ...] = ("train", "validation", "test") if task.probe else (task.split,)
        empty = [split for split in splits if not len(task.source.images(split))]
        if not empty and task.source.class_names:
            return None
        return Absent(task, f"its {empty[0]} split has no images" if empty else "it has no classes", "check its source")
    except UserError as error:
        return Absent(task, error.what, error.how)


def _check_words(task: ZeroShot) -> None:
    numbers = [
        called[0]
        for name, called in zip(task.source.class_names, task.words(), strict=True)
        if name not in (task.names or {}) and not any(letter.isalpha() for letter in called[0])
    ]
    if numbers:
        say(
            f"{task.name}: warning: {len(numbers)} classes are called by numbers ({', '.join(numbers[:3])}, ...); "
            "if these are no words for what is seen, give words under names"
        )


def run_all(encoder: DualEncoder, tasks: Sequence[ZeroShot], folder: Path, seed: int) -> dict[str, float]:
    """Classifies all data sets; those that are not here, or cannot be read, are passed over and listed.

    Writes `zero_shot.md` and `zero_shot.csv` to the run's folder, and a sheet of examples for each data set to its `figures`.

    Args:
        encoder: the towers; left as they are.
        tasks: the data sets.
        folder: the run's folder.
        seed: by which the examples are chosen.

    Returns:
        For each data set `zero_shot/<name>/top1`, `/top5` (of more than five classes), `/confidence`, `/median_rank`, its own
        metric, perhaps `/probe`, and `baseline/zero_shot_<name>_majority`.

    Raises:
        UserError: see `check_all`; that a data set is not there is said, and never takes a trained run its record.
    """
    from lightning_vl.evaluation.zero_shot_page import print_results, write_results

    if not tasks:
        return {}
    absent = {reason.task.name: reason for reason in check_all(tasks, needed=False)}
    results: list[Result | Absent] = []
    with torch.random.fork_rng([]):  # loaders draw from the global generator
        for task in tasks:
            try:
                results.append(absent.get(task.name) or run(encoder, task, folder, seed))
            except UserError as error:
                results.append(Absent(task, error.what, error.how))
    if all(isinstance(result, Absent) for result in results):
        first = results[0]
        assert isinstance(first, Absent)
        say(f"zero-shot: warning: no data set could be classified: {first.task.name}: {first.what}")
    write_results(results, folder)
    print_results(results)
    return {name: value for result in results if isinstance(result, Result) for name, value in result.metrics().items()}


def run(encoder: DualEncoder, task: ZeroShot, folder: Path, seed: int) -> Result:
    """Classifies one data set, and draws examples.

    Raises:
        UserError: its images cannot be had, or too many cannot be read.
    """
    words = task.words()
    weights = classifier(encoder, words, task.templates)  # (d, k)
    images = _Images(encoder, task, task.split)
    parts: list[Answers] = []
    kept: list[tuple[np.ndarray, np.ndarray]] = []  # what the probe is tested on
    shown = np.zeros(len(words), dtype=np.int64)  # images of each class
    for embeddings, features, places in images:
        truth = images.truth(places)
        logits = encoder.scale * embeddings @ weights  # (b, k)
        parts.append(answer(logits.numpy(), truth, places, task.measure.needs_logits))
        shown += (truth == 1).sum(0)
        if task.probe:
            kept.append((features.numpy(), truth))
    if not shown.any():
        raise UserError(f"no image of {task.name} can be read or shows a class", "check its source")
    answers = join(parts)
    result = Result(
        task=task,
        images=images.count,
        unreadable=len(images.skipped),
        classes=len(words),
        templates=len(task.templates.texts(SLOT)),
        example=task.templates.texts(SLOT)[0],
        value=task.measure(answers, len(words)),
        top1=top(answers, 1),
        top5=top(answers, 5),
        confidence=float(answers.probability.mean()),
        median_rank=float(np.median(answers.rank)),
        tied=float(answers.tied.mean()),
        majority=float(shown.max() / images.count),
    )
    if task.probe:
        others = [_all_features(_Images(encoder, task, split)) for split in ("train", "validation")]
        result.probe = task.probe(others[0], others[1], _joined(kept), task.measure)
    _draw(encoder, weights, words, answers, result, folder, seed)
    probe = "" if result.probe is None else f", linear probe {100 * result.probe:.1f} %"
    say(
        f"zero-shot on {task.name}: {task.measure.title} {100 * result.value:.1f} % of {result.images:,} images in "
        f"{result.classes} classes (majority {100 * result.majority:.1f} %){probe}"
    )
    return result


def classifier(encoder: DualEncoder, words: Sequence[Sequence[str]], templates: Templates) -> Tensor:
    """The columns of a zero-shot classifier: of each class the mean of its texts' embeddings, of length one.

    Args:
        encoder: the text tower.
        words: what each of k classes is called.
        templates: what the words are put into; a text a word and template.

    Returns:
        W (d, k), float32, on the CPU.
    """
    texts = [(label, text) for label, called in enumerate(words) for word in called for text in templates.texts(word)]
    sums: Tensor | None = None
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        part = texts[start : start + TEXTS_AT_ONCE]
        embeddings = encoder.texts([text for _, text in part])  # (t, d), each of length one
        sums = embeddings.new_zeros(len(words), embeddings.shape[1]) if sums is None else sums
        sums.index_add_(0, torch.tensor([label for label, _ in part]), embeddings)
    assert sums is not None
    return F.normalize(sums, dim=-1).T  # a mean's direction is its sum's


class _Pixels:
    """The images of a split as a loader's samples: the middle square of each, and its place."""

    def __init__(self, task: ZeroShot, split: Split, image_size: int, length: int) -> None:
        self.source, self.split, self.image_size, self.length = task.source, split, image_size, length

    def __len__(self) -> int:
        return self.length

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        image = torch.from_numpy(self.source.read(self.split, index)).permute(2, 0, 1)
        return {"image": centre_square(image, self.image_size), "id": index}

    @staticmethod
    def collate(samples: list[dict[str, Any]]) -> Batch:
        return {"image": torch.stack([sample["image"] for sample in samples]), "id": [s["id"] for s in samples]}


class _Images:
    """The readable images of a split, batch by batch: embeddings (b, d), features (b, w) and places (b,)."""

    def __init__(self, encoder: DualEncoder, task: ZeroShot, split: Split) -> None:
        self.encoder, self.task, self.split = encoder, task, split
        self.images = task.source.images(split)
        self.classes = len(task.source.class_names)
        self.count = 0  # images read
        self.skipped: list[str] = []

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, np.ndarray]]:
        pixels = _Pixels(self.task, self.split, self.encoder.image_size, len(self.images))
        dataset = KeyedDataset(pixels, pixels.collate, seed=0, replace_corrupt=False)
        keys = EvaluationKeys(len(pixels), self.encoder.batch_size)
        for batch in evaluation_loader(dataset, keys, self.task.workers, pin_memory=False):
            self._skip(batch["skipped"])
            if batch["id"]:
                self.count += len(batch["id"])
                yield *self.encoder.features(batch["image"]), np.array(batch["id"])

    def truth(self, places: np.ndarray) -> np.ndarray:
        """int8 (b, k), see `Answers`."""
        truth = np.zeros((len(places), self.classes), dtype=np.int8)
        for row, place in zip(truth, places, strict=True):
            image = self.images[place]
            if isinstance(image, MultiLabelledImage):
                row[list(image.labels)] = 1
                row[list(image.difficult)] = -1
            else:
                row[image.label] = 1
        return truth

    def _skip(self, reports: list[str]) -> None:
        for report in reports:
            say(f"{self.task.name}: left out an unreadable image: {report}")
        self.skipped += reports
        if len(self.skipped) > self.task.max_corrupt * len(self.images):
            raise UserError(
                f"{len(self.skipped)} of {len(self.images)} images of {self.task.name} cannot be read, the last one "
                f"{self.skipped[-1]}",
                f"mend or remove them, or allow more than {self.task.max_corrupt:.1%} with max_corrupt of this task",
            )


def _all_features(images: _Images) -> tuple[np.ndarray, np.ndarray]:
    return _joined([(features.numpy(), images.truth(places)) for _, features, places in images])


def _joined(parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    features, truth = zip(*parts, strict=True)
    return np.concatenate(features), np.concatenate(truth)


def _draw(
    encoder: DualEncoder,
    weights: Tensor,
    words: list[list[str]],
    answers: Answers,
    result: Result,
    folder: Path,
    seed: int,
) -> None:
    """The sheet of examples; its images are read once more."""
    from lightning_vl.evaluation.zero_shot_page import Example, picture_name, sheet

    task = result.task
    images = task.source.images(task.split)
    examples = []
    for right in (True, False):
        for row in chosen(answers.label, (answers.rank == 1) == right, EACH, np.random.default_rng([seed, right])):
            place = int(answers.place[row])
            pixels = task.source.read(task.split, place)
            embedding, _ = encoder.features(encoder.pixels(pixels)[None])
            probabilities = softmax((encoder.scale * embedding @ weights).numpy())[0]  # (k,)
            image = images[place]
            labels = image.labels if isinstance(image, MultiLabelledImage) else {image.label}
            examples.append(
                Example(
                    pixels=pixels,
                    truth=[words[label][0] for label in sorted(labels)],
                    rank=int(answers.rank[row]),
                    probability=float(answers.probability[row]),
                    bars=[
                        (words[label][0], float(probabilities[label]), label in labels)
                        for label in np.argsort(-probabilities, kind="stable")[:SHOWN].tolist()
                    ],
                )
            )
    path = folder / "figures" / picture_name(task.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet(result, examples).savefig(path, dpi=160)


def chosen(label: np.ndarray, wanted: np.ndarray, count: int, rng: np.random.Generator) -> list[int]:
    """Some of the wanted rows by chance, of as many classes as there are.

    Args:
        label: class of each row (n,).
        wanted: bool (n,).
        count: how many.
        rng: decides.
    """
    rows = rng.permutation(np.flatnonzero(wanted)).tolist()
    seen: Counter[int] = Counter()
    turns = []
    for row in rows:
        turns.append(seen[label[row]])
        seen[label[row]] += 1
    return [rows[index] for index in np.argsort(turns, kind="stable")[:count]]
