"""Transfer: closed forms against scikit-learn, fine-tuning against a plain loop, and what must be left as it was."""

import itertools
import math
import random
from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.cli import LightningArgumentParser
from PIL import Image
from sklearn.linear_model import LogisticRegression, Ridge
from support import ROOT
from torch.nn import functional as F  # noqa: N812

import lightning_vl.data.datasets.hub_images
import lightning_vl.data.synthetic.scattered  # noqa: F401 (files call these sources by their short names)
from lightning_vl.data.datasets.image_folder import ImageFolder
from lightning_vl.data.image_augmentation import Augmentation, RandomResizedCrop, resize
from lightning_vl.data.source import ImageSource, LabelledImage, Split
from lightning_vl.errors import CorruptSample, UserError
from lightning_vl.evaluation.few_shot import L2, Standardised, ridge
from lightning_vl.evaluation.transfer import (
    FewShot,
    FineTune,
    LinearProbe,
    Protocol,
    TransferTask,
    check_tasks,
    means,
    run,
    run_all,
)
from lightning_vl.evaluation.transfer_task import TaskImages
from lightning_vl.nn.positions import SinCosPositions
from lightning_vl.papers.vit.model import ViT

CPU = torch.device("cpu")
KEYS: dict[Split, int] = {"train": 0, "validation": 1, "test": 2}
RATES = (0.001, 0.1)
COLOURS = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200]])


class Colours(ImageSource):
    """Noisy images of three colours, a third of each; `noise` says how hard they are to tell apart."""

    def __init__(self, counts: tuple[int, int, int] = (60, 30, 30), noise: float = 60.0, corrupt: int = 0) -> None:
        self.counts = dict(zip(KEYS, counts, strict=True))
        self.noise = noise
        self.corrupt = corrupt  # so many of the first of each split cannot be read

    @property
    def class_names(self) -> list[str]:
        return ["red", "green", "blue"]

    def images(self, split: Split) -> Sequence[LabelledImage]:
        return [LabelledImage(f"{split}/{index}", index % 3) for index in range(self.counts[split])]

    def read(self, split: Split, index: int) -> np.ndarray:
        if index < self.corrupt:
            raise CorruptSample(f"{split}/{index}", "is spoilt")
        rng = np.random.default_rng([KEYS[split], index])
        image = COLOURS[index % 3] + rng.normal(0, self.noise, 3) + rng.normal(0, 10, (10, 12, 3))
        return image.clip(0, 255).astype(np.uint8)


def make_net(dropout: float = 0.0) -> ViT:
    """As small as it gets, with a head for other classes."""
    torch.manual_seed(0)
    return ViT(8, 4, 16, 1, 2, 32, 7, dropout=dropout)


def make_images(source: ImageSource | None = None, **settings: object) -> TaskImages:
    """The task's images at the size of the small network."""
    task = TransferTask("colours", source or Colours(), [], **settings)  # type: ignore[arg-type]
    return TaskImages(task, 8, CPU)


# -- few shots ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "dim"), [(5, 30), (30, 30), (40, 7)])
def test_ridge_is_the_solution_of_the_normal_equations(count: int, dim: int) -> None:
    """Breaks if one of the two closed forms (fewer images than features, or more) is wrong, in scale, sign or penalty."""
    rng = np.random.default_rng(0)
    inputs, targets = rng.normal(size=(count, dim)), rng.choice([-1.0, 1.0], size=(count, 4))
    found = ridge(inputs, targets, 3.0)
    naive = np.linalg.inv(inputs.T @ inputs + 3.0 * np.eye(dim)) @ inputs.T @ targets
    theirs = Ridge(alpha=3.0, fit_intercept=False, solver="svd").fit(inputs, targets).coef_.T
    np.testing.assert_allclose(found, naive, atol=1e-10)
    np.testing.assert_allclose(found, theirs, atol=1e-10)


def test_one_shot_of_two_classes_in_closed_form() -> None:
    """Breaks if standardisation, bias or penalty change: two images standardise to u and -u, so W = 2 u / (2 |u|^2 + l2)."""
    rng = np.random.default_rng(0)
    pair = rng.normal(size=(2, 50)).astype(np.float32)
    weights, _ = FewShot._fit(pair, np.array([0, 1]), 2)
    first = pair[0].astype(float)
    mean, std = pair.astype(float).mean(0), pair.astype(float).std(0)
    u = (first - mean) / (std + 1e-5)
    assert weights.shape == (51, 2)
    np.testing.assert_allclose(weights[:-1, 0], 2 * u / (2 * u @ u + 2**10), atol=1e-12)
    np.testing.assert_allclose(weights[:, 1], -weights[:, 0], atol=1e-12)
    np.testing.assert_allclose(weights[-1], 0, atol=1e-12)  # balanced classes: no bias


def test_few_shot_agrees_with_scikit_learn() -> None:
    """Breaks if the protocol changes: draws, design matrix (bias 100), targets, penalty, mean over draws."""
    net, images = make_net().eval(), make_images(Colours((60, 30, 90), noise=80))
    found = FewShot(shots=(1, 4), draws=3).evaluate(net, images, seed=0)
    train, test = images.features(net, "train"), images.features(net, "test")

    def design(values: np.ndarray, on: np.ndarray) -> np.ndarray:
        scaled = (values.astype(float) - on.astype(float).mean(0)) / (on.astype(float).std(0) + 1e-5)
        return np.concatenate([scaled, np.full((len(scaled), 1), 100.0)], 1)

    for shots in (1, 4):
        accuracies = []
        for draw in range(3):
            rows = [
                row
                for label in range(3)
                for row in np.random.default_rng([draw, label]).permutation(np.arange(label, 60, 3))[:shots]
            ]
            targets = np.where(np.arange(3) == train.labels[rows][:, None], 1.0, -1.0)
            model = Ridge(alpha=L2, fit_intercept=False).fit(design(train.values[rows], train.values[rows]), targets)
            answers = model.predict(design(test.values, train.values[rows])).argmax(1)
            accuracies.append((answers == test.labels).mean())
        assert found[f"{shots}_shot"] == pytest.approx(np.mean(accuracies))
    assert 1 / 3 < found["4_shot"] < 1  # neither chance nor trivial, so that a difference could show


def test_the_draws_do_not_depend_on_the_seed_of_the_run() -> None:
    """Breaks if two networks are compared on different shots."""
    net, images = make_net().eval(), make_images(Colours(noise=80))
    assert FewShot((2,)).evaluate(net, images, seed=0) == FewShot((2,)).evaluate(net, images, seed=1)


def test_too_few_images_of_a_class() -> None:
    """Breaks if a class with fewer images than shots is passed over in silence, or not named."""
    images = make_images(Colours((14, 30, 30)))  # 5, 5 and 4
    with pytest.raises(UserError, match=r"class 'blue' of colours has 4 training images, and FewShot takes 5"):
        FewShot(shots=(1, 5)).evaluate(make_net(), images, seed=0)


# -- features ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [7, 128])
def test_features_are_those_of_the_resized_images(batch_size: int) -> None:
    """Breaks if images are resized, put into range, ordered or batched otherwise than in evaluation, or dropout is on."""
    net, source = make_net(dropout=0.5).eval(), Colours()
    found = make_images(source, batch_size=batch_size).features(net, "test")
    pixels = [torch.from_numpy(source.read("test", i)).permute(2, 0, 1) for i in range(30)]
    with torch.no_grad():
        expected = net(torch.stack([resize(image, 8) for image in pixels]).float() / 127.5 - 1).features
    np.testing.assert_allclose(found.values, expected.numpy(), atol=1e-5)
    assert found.values.dtype == np.float32
    assert found.labels.tolist() == [i % 3 for i in range(30)]


def test_unreadable_images_are_skipped_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if one bad file ends the transfer, shifts the labels of the others, or goes unsaid: real files."""
    for split, name in itertools.product(("train", "validation", "test"), ("blue", "red")):
        folder = tmp_path / split / name
        folder.mkdir(parents=True)
        for number in range(10):
            Image.new("RGB", (9, 9), (name == "red", number, 0)).save(folder / f"{number}.png")
    (tmp_path / "test" / "blue" / "3.png").write_bytes(b"no image")
    source = ImageFolder(str(tmp_path))
    images = make_images(source, max_corrupt=0.05)
    found = images.features(make_net().eval(), "test")
    assert found.labels.tolist() == [0] * 9 + [1] * 10
    assert found.places.tolist() == [*range(3), *range(4, 20)]
    images.features_at(make_net().eval(), images.places("test"))  # again: counted once
    assert [report.partition(":")[0] for report in images.skipped] == ["test/blue/3.png"]
    assert "skipped an unreadable image: test/blue/3.png" in capsys.readouterr().err
    with pytest.raises(UserError, match="1 of 60 images of colours cannot be read"):
        make_images(source).features(make_net().eval(), "test")


def test_every_protocol_goes_on_without_unreadable_images() -> None:
    """Breaks if a bad image among the shots, the probe's or the batches ends the run."""
    protocols: list[Protocol] = [FewShot((3,)), LinearProbe((0.1,)), FineTune(2, (0.01,), 8)]
    task = TransferTask("colours", Colours(corrupt=2), protocols, max_corrupt=0.06)
    metrics = run(make_net(), task, 0, CPU)
    assert {name: value for name, value in metrics.items() if not 0 <= value <= 1} == {}
    assert len(metrics) == 4


# -- linear probe ------------------------------------------------------------------------------------------------------


def test_the_penalty_is_chosen_on_validation_then_all_is_fitted() -> None:
    """Breaks if the test split chooses, if validation images are not fitted at last, or features are not standardised."""
    net, images = make_net().eval(), make_images(Colours((30, 60, 90), noise=90))
    candidates = (1e-4, 1e-2, 1.0, 100.0)
    found = LinearProbe(candidates).evaluate(net, images, seed=0)["linear_probe"]
    train, validation, test = (images.features(net, split) for split in KEYS)

    def fit(c: float, values: np.ndarray, labels: np.ndarray, on: np.ndarray, answers: np.ndarray) -> float:
        mean, std = values.mean(0), values.std(0) + 1e-5
        model = LogisticRegression(C=c, max_iter=1000).fit((values - mean) / std, labels)
        return (model.predict((on - mean) / std) == answers).mean()

    scores = [fit(c, train.values, train.labels, validation.values, validation.labels) for c in candidates]
    both = np.concatenate([train.values, validation.values]), np.concatenate([train.labels, validation.labels])
    assert found == fit(candidates[int(np.argmax(scores))], *both, test.values, test.labels)
    assert len(set(scores)) > 1


# -- fine-tuning -------------------------------------------------------------------------------------------------------


def state(net: torch.nn.Module) -> list[torch.Tensor]:
    """A network's tensors."""
    return [tensor.clone() for tensor in net.state_dict().values()]


def test_fine_tuning_is_the_papers_optimiser() -> None:
    """Breaks if momentum, clipping, schedule, warm-up, head or loss differ from a plain loop's, here with whole-set steps."""
    net, images = make_net().eval(), make_images()
    places = images.places("train")
    tuned = FineTune(4, (0.5,), 60, warmup_steps=2).train(net, images, places, 0.5, seed=0)
    (batch,) = images.batches(places)
    naive = deepcopy(net).train()
    naive.reset_head(3)
    velocity = [torch.zeros_like(parameter) for parameter in naive.parameters()]
    clipped = 0
    for step in range(4):
        rate = 0.5 * ((step + 1) / 2 if step < 2 else (1 + math.cos(math.pi * (step - 2) / 2)) / 2)
        loss = F.cross_entropy(naive(batch["image"]).logits, batch["label"])
        if step == 0:
            assert loss.item() == pytest.approx(math.log(3))
        gradients = torch.autograd.grad(loss, list(naive.parameters()))
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
        clipped += int(norm > 1)
        with torch.no_grad():
            for parameter, v, gradient in zip(naive.parameters(), velocity, gradients, strict=True):
                v.mul_(0.9).add_(gradient / max(1.0, float(norm)))
                parameter -= rate * v
    assert clipped > 0
    for ours, theirs in zip(state(tuned), state(naive), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_a_step_may_be_cut_into_parts() -> None:
    """Breaks if images of one forward pass, which only the memory decides, change what is learnt."""
    fitted = [
        FineTune(3, (0.1,), 24).train(make_net().eval(), images, images.places("train"), 0.1, seed=0)
        for images in (make_images(batch_size=24), make_images(batch_size=7))
    ]
    for whole, cut in zip(*(state(net) for net in fitted), strict=True):
        torch.testing.assert_close(whole, cut, atol=1e-6, rtol=1e-4)


def test_fine_tuning_learns() -> None:
    """Breaks if the network is not trained at all: three colours without much noise are easy."""
    task = TransferTask("colours", Colours(noise=10), [FineTune(40, (0.1,), 24)])
    assert run(make_net(), task, 0, CPU)["transfer/colours/fine_tune"] > 0.9


def test_everything_is_left_as_it_was() -> None:
    """Breaks if transfer changes the network, its mode or device, what is frozen, or the global random state."""
    net = make_net(dropout=0.1).train()
    net.class_token.requires_grad_(False)
    before, frozen = state(net), [parameter.requires_grad for parameter in net.parameters()]
    torch.manual_seed(5)
    torch_state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    protocols: list[Protocol] = [FewShot((2,)), LinearProbe(), FineTune(2, (0.1, 0.01), 8)]
    run(net, TransferTask("colours", Colours(), protocols), 0, CPU)
    assert all(torch.equal(one, other) for one, other in zip(before, state(net), strict=True))
    assert net.training
    assert net.classes == 7
    assert [parameter.requires_grad for parameter in net.parameters()] == frozen
    assert all(parameter.grad is None for parameter in net.parameters())
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()
    assert random.getstate() == python_state


def test_the_same_seed_trains_the_same_network() -> None:
    """Breaks if fine-tuning draws from anything but its seed: order, crops and dropout, with and without workers."""
    fine_tune = FineTune(3, (0.1,), 8, augmentation=RandomResizedCrop())
    net = make_net(dropout=0.3).eval()
    fitted = []
    for seed, workers in ((0, 0), (0, 1), (1, 0)):
        torch.rand(3)
        images = make_images(workers=workers)
        fitted.append(state(fine_tune.train(net, images, images.places("train"), 0.1, seed)))
    assert all(torch.equal(one, other) for one, other in zip(fitted[0], fitted[1], strict=True))
    assert not all(torch.equal(one, other) for one, other in zip(fitted[0], fitted[2], strict=True))


def test_the_learning_rate_is_chosen_on_validation(capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if the rate is not the best of the validation split, or the last training leaves validation images out."""
    net, images = make_net().eval(), make_images(Colours((48, 48, 48)))
    several = FineTune(10, RATES, 24).evaluate(net, images, seed=0)
    scores = {}
    for rate in RATES:
        tuned = FineTune(10, (rate,), 24).train(net, images, images.places("train"), rate, seed=0)
        scores[rate] = images.top1(tuned, "validation")
    best = max(scores, key=scores.__getitem__)
    assert scores[0.001] < scores[best]
    assert f"taking {best:g}" in capsys.readouterr().err
    tuned = FineTune(10, (best,), 24).train(net, images, images.places("train", "validation"), best, seed=0)
    assert several["fine_tune"] == images.top1(tuned, "test")
    assert several == FineTune(10, (best,), 24).evaluate(net, images, seed=0)


def test_a_rate_that_diverges_is_never_taken() -> None:
    """Breaks if a network of nan wins the choice, or counts as right wherever the first class is."""
    net, images = make_net().eval(), make_images()
    tuned = deepcopy(net)
    tuned.head.weight.data.fill_(float("nan"))
    assert images.top1(tuned, "test") == 0
    assert FineTune(5, (0.1, 3e38), 24).evaluate(net, images, seed=0)["fine_tune"] > 0
    with pytest.raises(UserError, match=r"fine-tuning on colours with learning rate 3e\+38: the loss is"):
        FineTune(5, (3e38,), 24).evaluate(net, images, seed=0)


def test_a_step_larger_than_the_task() -> None:
    """Breaks if a batch that the task cannot fill is trained on repeats, or the message names another key."""
    with pytest.raises(UserError, match="takes 512 images of 90"):
        FineTune(1, (0.1,), 512).evaluate(make_net().eval(), make_images(), seed=0)


class Black(Augmentation):
    """Blackens every image."""

    def __call__(self, image: torch.Tensor, size: int, rng: np.random.Generator) -> torch.Tensor:
        return torch.zeros(3, size, size, dtype=torch.uint8)


def test_augmentation_is_for_training_alone() -> None:
    """Breaks if an injected augmentation is not applied to training images, or is applied to evaluated ones."""
    images = make_images()
    (parts,) = images.steps(images.places("train"), 8, 1, 0, Black())
    assert all((part["image"] == -1).all() for part in parts)
    assert all((batch["image"] != -1).any() for batch in images.batches(images.places("train")))


# -- tasks -------------------------------------------------------------------------------------------------------------


def test_train_images_are_shared_out_as_vtab_does() -> None:
    """Breaks if a task gets more labelled images than it says, or smaller subsets hold images that larger ones lack."""
    source = Colours((1000, 300, 30))
    chosen = {count: make_images(source, train_images=count) for count in (50, 1000)}
    assert [len(chosen[1000].places(split)) for split in KEYS] == [800, 200, 30]
    assert [len(chosen[50].places(split)) for split in KEYS] == [40, 10, 30]
    for split in ("train", "validation"):
        assert set(chosen[50].places(split)) < set(chosen[1000].places(split))
    assert len(chosen[1000].labels("train")) == 800
    with pytest.raises(UserError, match="the train split of colours has 60 images, 80 are wanted"):
        make_images(train_images=100)


def test_the_majority_is_given_beside_it() -> None:
    """Breaks if a result can be read without what a constant answer makes."""
    task = TransferTask("natural/colours", Colours((9, 3, 4)), [FewShot((1, 3))])  # red, green, blue, red
    assert run(make_net(), task, 0, CPU).keys() == {
        "transfer/natural/colours/1_shot",
        "transfer/natural/colours/3_shot",
        "baseline/natural/colours_majority",
    }
    assert run(make_net(), task, 0, CPU)["baseline/natural/colours_majority"] == 0.5


def test_one_name_for_two_tasks() -> None:
    """Breaks if one task's results silently take the place of another's."""
    task = TransferTask("colours", Colours(), [])
    with pytest.raises(UserError, match="two transfer tasks are called colours"):
        run_all(make_net(), [task, task], 0, CPU)


def test_means_are_vtabs() -> None:
    """Breaks if the mean is not over the 19 tasks, or a group's not over its own: H/14's row of Table 9."""
    row = {
        "natural": [95.3, 85.5, 75.2, 99.7, 97.2, 65.0, 88.9],
        "specialized": [83.3, 96.7, 91.4, 76.6],
        "structured": [91.7, 63.8, 53.1, 79.4, 63.3, 84.5, 33.2, 51.2],
    }
    metrics = {f"transfer/{group}/t{i}/fine_tune": v for group, values in row.items() for i, v in enumerate(values)}
    found = means({**metrics, "test/top1": 1.0, "baseline/natural/t1_majority": 3.0})
    assert {name: round(value, 2) for name, value in found.items()} == {
        "transfer/mean/fine_tune": 77.63,
        "transfer/natural/mean/fine_tune": 86.69,
        "transfer/specialized/mean/fine_tune": 87.0,
        "transfer/structured/mean/fine_tune": 65.03,
    }
    assert means({"transfer/alone/5_shot": 0.5}) == {}
    assert set(means({"transfer/one/5_shot": 0.5, "transfer/two/5_shot": 0.7})) == {"transfer/mean/5_shot"}


def test_standardisation_of_a_constant_feature() -> None:
    """Breaks if a feature that never varies divides by nought."""
    assert np.isfinite(Standardised(np.ones((3, 2)))(np.ones((1, 2)))).all()


TASKS = """
transfer:
  - name: natural/flowers
    source: {class_path: ImageFolder, init_args: {root: DATA}}
    train_images: 1000
    protocols:
      - {class_path: FewShot, init_args: {shots: [1, 5]}}
      - {class_path: LinearProbe}
      - class_path: FineTune
        init_args: {steps: 5, learning_rates: [0.01, 3e-3], batch_size: 16, augmentation: {class_path: RandomResizedCrop}}
"""


def load(path: Path) -> list[TransferTask]:
    """The tasks of a file."""
    parser = make_parser()
    return parser.instantiate(parser.parse_args(["-c", str(path)])).transfer


def make_parser() -> LightningArgumentParser:
    """As the command's, with tasks alone."""
    parser = LightningArgumentParser()
    parser.add_argument("-c", "--config", action="config")
    parser.add_argument("--transfer", type=list[TransferTask], default=[])
    return parser


def test_tasks_are_built_from_yaml(tmp_path: Path) -> None:
    """Breaks if an experiment's file cannot name sources, protocols and augmentation, or its saved form reads otherwise."""
    file, saved = tmp_path / "tasks.yaml", tmp_path / "saved.yaml"
    file.write_text(TASKS)
    parser = make_parser()
    settings = parser.parse_args(["-c", str(file)])
    (task,) = load(file)
    assert isinstance(task, TransferTask)
    assert isinstance(task.source, ImageFolder)
    few_shot, probe, fine_tune = task.protocols
    assert isinstance(few_shot, FewShot)
    assert few_shot.shots == (1, 5)
    assert isinstance(probe, LinearProbe)
    assert isinstance(fine_tune, FineTune)
    assert fine_tune.learning_rates == (0.003, 0.01)
    assert isinstance(fine_tune.augmentation, RandomResizedCrop)
    saved.write_text(parser.dump(settings))
    assert parser.dump(parser.parse_args(["-c", str(saved)])) == saved.read_text()


@pytest.mark.parametrize("path", sorted((ROOT / "experiments" / "transfer").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_files_are_built(path: Path) -> None:
    """Breaks if a list of tasks names a class or an argument that is not there, or two tasks alike. Nothing is opened."""
    tasks = load(path)
    assert len({task.name for task in tasks}) == len(tasks) > 0
    assert all(task.protocols for task in tasks)


def test_vtab_is_the_papers_protocol() -> None:
    """Breaks if a task is lost, or one of them gets other images, steps or rates than the rest."""
    tasks = load(ROOT / "experiments" / "transfer" / "vtab.yaml")
    groups = Counter(task.name.split("/")[0] for task in tasks)
    assert groups == {"natural": 7, "specialized": 4, "structured": 8}
    for task in tasks:
        assert task.train_images == 1000
        (protocol,) = task.protocols
        assert isinstance(protocol, FineTune)
        assert (protocol.steps, protocol.learning_rates, protocol.batch_size) == (2500, (0.01,), 512)


def test_mistakes_in_tasks_are_found_before_training() -> None:
    """Breaks if a run of hours could end without a record because a transfer task cannot be had."""
    few = [FineTune(steps=1, learning_rates=(0.1,), batch_size=10_000), FewShot(shots=(10_000,))]
    for protocol in few:
        with pytest.raises(UserError, match="images"):
            check_tasks(make_net(), [TransferTask("few", make_images()._task.source, [protocol])])
    with pytest.raises(UserError, match="Linear"):
        check_tasks(torch.nn.Linear(1, 1), [TransferTask("few", make_images()._task.source, [FewShot()])])


def test_fine_tuning_leaves_fixed_positions_alone() -> None:
    """Breaks if fine-tuning trained what the network says is fixed."""
    images = make_images()
    net = ViT(images._image_size, 4, 16, 1, 2, 32, classes=3, positions=SinCosPositions())
    tuner = FineTune(steps=2, learning_rates=(0.1,), batch_size=4)
    tuned = tuner.train(net, images, images.places("train"), 0.1, seed=0)
    assert torch.equal(tuned.positions, net.positions)
    assert not torch.equal(tuned.embedding.weight, net.embedding.weight)
