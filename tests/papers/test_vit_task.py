"""ViT's data and task: random crops, batches, the first loss, and that it learns."""

import json
import math
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
from PIL import Image
from support import Command

from lightning_vl.data.datasets.image_folder import ImageFolder
from lightning_vl.errors import UserError
from lightning_vl.nn.attention import RelativeAttention
from lightning_vl.optim import Constant
from lightning_vl.papers.vit.bit import BiT
from lightning_vl.papers.vit.convert import ViTInitialisation, load_vit
from lightning_vl.papers.vit.data import EvaluationImages, ImageData, RandomResizedCrop, TrainingImages, collate
from lightning_vl.papers.vit.model import ViT
from lightning_vl.papers.vit.task import ViTTask

CLASSES = {"blue": (30, 60, 220), "red": (220, 60, 30)}


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes that differ in colour alone: <root>/{train,test}/{blue,red}."""
    root = tmp_path_factory.mktemp("colours")
    rng = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 6)):
        for name, colour in CLASSES.items():
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                noise = rng.integers(-25, 26, (20, 24, 3)) + np.array(colour)
                Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(root / split / name / f"{number}.png")
    return root


def network(classes: int = 2) -> ViT:
    """A ViT that learns in a moment."""
    return ViT(image_size=16, patch_size=8, dim=32, layers=1, heads=2, mlp_dim=64, classes=classes)


def task(net: ViT) -> ViTTask:
    """It, with an optimiser."""
    return ViTTask(net, lambda parameters: torch.optim.AdamW(parameters, lr=3e-3), Constant())


def data(root: Path, image_size: int = 16, batch_size: int = 8) -> ImageData:
    """The two colours."""
    return ImageData(ImageFolder(str(root)), image_size, RandomResizedCrop(area=(0.3, 1.0)), batch_size, workers=0)


def gradient(height: int, width: int) -> torch.Tensor:
    """uint8 (3, h, w): the row in red, the column in green, so that a crop tells where it is from."""
    image = torch.zeros(3, height, width)
    image[0] = torch.linspace(0, 255, height)[:, None]
    image[1] = torch.linspace(0, 255, width)
    return image.round().byte()


def test_crops_have_the_area_that_is_asked_for() -> None:
    """Breaks if the crop is always the same, leaves the image, or its area or proportions leave their ranges."""
    crop = RandomResizedCrop(area=(0.2, 0.4), flip=0.0)
    image = gradient(60, 90)
    boxes = []
    for seed in range(200):
        top, left, height, width = crop._box(60, 90, np.random.default_rng(seed))
        assert 0 <= top <= 60 - height
        assert 0 <= left <= 90 - width
        assert 0.18 < height * width / (60 * 90) < 0.42
        assert 0.7 < width / height < 1.42
        boxes.append((top, left, height, width))
        shown = crop(image, 16, np.random.default_rng(seed)).float()
        assert shown.shape == (3, 16, 16)
        assert shown[0].mean().item() == pytest.approx(255 * (top + (height - 1) / 2) / 59, abs=4)
        assert shown[1].mean().item() == pytest.approx(255 * (left + (width - 1) / 2) / 89, abs=4)
    assert len(set(boxes)) > 150


def test_flips() -> None:
    """Never with probability 0, always with 1, about half of the time by default."""
    image = gradient(8, 8)
    whole = {"area": (1.0, 1.0), "aspect_ratio": (1.0, 1.0)}
    for seed in range(10):
        rng = np.random.default_rng(seed)
        assert torch.equal(RandomResizedCrop(**whole, flip=0.0)(image, 8, rng), image)
        assert torch.equal(RandomResizedCrop(**whole, flip=1.0)(image, 8, rng), image.flip(-1))
    rng = np.random.default_rng(0)
    flipped = sum(torch.equal(RandomResizedCrop(**whole)(image, 8, rng), image.flip(-1)) for _ in range(200))
    assert 70 < flipped < 130


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1)])
def test_odd_shapes_are_resized(size: tuple[int, int]) -> None:
    """No crop of the proportions asked for fits into a line of pixels: all of it is taken."""
    image = gradient(*size)
    assert RandomResizedCrop()(image, 16, np.random.default_rng(0)).shape == (3, 16, 16)


def test_a_crop_of_nothing_is_refused() -> None:
    """An area of 0 would crop nothing, and one above 1 never fit."""
    for area in ((0.0, 1.0), (0.5, 0.2), (0.5, 1.5)):
        with pytest.raises(UserError, match="area is"):
            RandomResizedCrop(area=area)


def test_samples_are_functions_of_their_generator(colours: Path) -> None:
    """Workers and resume rest on it; evaluation draws nothing."""
    source = ImageFolder(str(colours))
    training = TrainingImages(source, 16, RandomResizedCrop())
    one, again, other = (training.sample(3, np.random.default_rng(seed))["image"] for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    evaluation = EvaluationImages(source, "test", 16)
    one, other = (evaluation.sample(3, np.random.default_rng(seed)) for seed in (0, 1))
    assert torch.equal(one["image"], other["image"])
    assert (one["id"], one["label"]) == ("test/blue/3.png", 0)
    batch = collate([one, evaluation.sample(8, np.random.default_rng(0))])
    assert batch["image"].shape == (2, 3, 16, 16)
    assert batch["image"].dtype == torch.uint8
    assert batch["label"].tolist() == [0, 1]


def test_the_network_sees_minus_one_to_one(colours: Path) -> None:
    """ViT's weights expect x * 2 / 255 - 1, not the mean and deviation of ImageNet."""
    values = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    batch = {"image": values, "label": torch.zeros(1), "id": ["a"]}
    shown = data(colours).on_after_batch_transfer(batch, 0)["image"]
    assert shown.flatten().tolist() == pytest.approx([-1.0, -0.6, 1.0])
    assert data(colours).on_after_batch_transfer({"id": []}, 0) == {"id": []}  # nothing could be read


@pytest.mark.parametrize("classes", [2, 10])
def test_the_first_loss_is_the_logarithm_of_the_classes(classes: int) -> None:
    """The head starts at zero: every class is as likely as any other, whatever the image."""
    module = task(network(classes))
    batch = {"image": torch.rand(4, 3, 16, 16), "label": torch.tensor([0, 1, 1, 0]), "id": list("abcd")}
    losses = module.losses(batch, module(batch))
    assert list(losses) == ["classification"]
    assert losses["classification"].item() == pytest.approx(math.log(classes), abs=1e-6)


def test_two_colours_are_learnt(colours: Path, tmp_path: Path) -> None:
    """Labels, images, gradients and metrics belong together: 25 steps take chance to (nearly) all right."""
    lightning.seed_everything(0, verbose=False)
    module = task(network())
    trainer = lightning.Trainer(
        max_steps=25,
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=tmp_path,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, datamodule=data(colours))
    (metrics,) = trainer.test(module, datamodule=data(colours), verbose=False)
    assert metrics["test/top1"] >= 0.9
    assert metrics["test/loss"] < 0.5
    assert metrics["baseline/majority_top1"] == 0.5
    (rows,) = trainer.predict(module, datamodule=data(colours))
    assert rows[0]["id"] == "test/blue/0.png"
    assert [answer["class"] for answer in rows[0]["class"]] == ["blue", "red"]
    assert sum(answer["probability"] for answer in rows[0]["class"]) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("net", "size", "what"),
    [(network(3), 16, "the network has 3 classes, the data 2"), (network(), 24, "images of 16 px, the data gives 24")],
)
def test_network_and_data_must_agree(colours: Path, tmp_path: Path, net: ViT, size: int, what: str) -> None:
    """Otherwise a class is never learnt, or the first forward pass fails deep in the network."""
    trainer = lightning.Trainer(max_steps=1, accelerator="cpu", logger=False, default_root_dir=tmp_path)
    with pytest.raises(UserError, match=what):
        trainer.fit(task(net), datamodule=data(colours, size))


def test_the_command_fits_a_folder_of_images(colours: Path, command: Command, tmp_path: Path) -> None:
    """The experiment's file, a root on the command line, and one bad image: counted, and the run goes on."""
    root = tmp_path / "colours"
    for path in colours.rglob("*.png"):
        target = root / path.relative_to(colours)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    (root / "test" / "red" / "0.png").write_text("no image")
    done = command(
        "fit",
        "-c=experiments/real/vit_cifar10.yaml",
        f"--data.init_args.source.init_args.root={root}",
        "--data.init_args.source.init_args.classes=2",
        "--model.init_args.net.init_args.classes=2",
        "--data.init_args.batch_size=8",
        "--data.init_args.max_corrupt=0.2",
        "--trainer.max_steps=2",
        "--trainer.val_check_interval=2",
        f"--run.root={tmp_path / 'runs'}",
        "--run.id=a",
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "runs" / "vit_cifar10" / "a" / "results.json").read_text())
    assert results["data"]["test"] == 12
    assert [name.split(":")[0] for name in results["data"]["skipped"]] == ["test/red/0.png"]
    assert results["metrics"]["baseline/majority_top1"] == pytest.approx(6 / 11)
    net = load_vit(str(tmp_path / "runs" / "vit_cifar10" / "a" / "checkpoints" / "best.ckpt"))  # says how it was built
    assert (net.image_size, net.classes, net.encoder.blocks[0].attention.heads) == (48, 2, 3)


def built(colours: Path, *overrides: str) -> ViTTask:
    """The experiment's file over the two colours, with these options, as the command builds it."""
    from lightning_vl.cli import build

    root = f"--data.init_args.source.init_args.root={colours}"
    experiment = build(["experiments/real/vit_cifar10.yaml"], [root, *overrides])
    assert isinstance(experiment.task, ViTTask)
    return experiment.task


def test_a_file_says_all_of_the_network(colours: Path) -> None:
    """Kinds of positions, heads, constants and a hybrid's stem by their names, nothing but plain YAML."""
    prefix = "--model.init_args.net.init_args"
    net = built(colours).net
    assert isinstance(net, ViT)
    assert net.pre_logits is None
    assert isinstance(net.positions, torch.nn.Parameter)
    net = built(
        colours,
        f"{prefix}.positions={{class_path: RelativePositions}}",
        f"{prefix}.pooled=true",
        f"{prefix}.pre_logits=true",
        f"{prefix}.layer_norm_eps=1e-5",
        f"{prefix}.gelu_approximation=none",
        f"{prefix}.patch_size=1",
        f"{prefix}.stem={{class_path: ResNetStem, init_args: {{layers: [1, 1]}}}}",
    ).net
    assert net.embedding.grid == (6, 6)
    assert isinstance(net.encoder.blocks[0].attention, RelativeAttention)
    assert net.encoder.norm.eps == 1e-5
    assert net.class_token is None
    assert net.pre_logits is not None


def test_a_file_says_another_family(colours: Path) -> None:
    """The baseline goes through the same task and data: only the network's part of the file differs."""
    sizes = "{image_size: 48, layers: [1, 1], classes: 10, channels: [16, 32], stem_channels: 16, groups: 8}"
    net = built(colours, f"--model.init_args.net={{class_path: BiT, init_args: {sizes}}}").net
    assert isinstance(net, BiT)
    assert net.classes == 10


def test_training_starts_from_a_file(colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The trunk is the file's when training begins, and the report says so; a test of a checkpoint takes nothing from it."""
    before = network(classes=5)
    torch.nn.init.normal_(before.head.weight)
    torch.nn.init.normal_(before.class_token)
    torch.save(before.state_dict(), tmp_path / "vit.pt")
    net = network()
    module = ViTTask(
        net,
        lambda parameters: torch.optim.AdamW(parameters, lr=0.0),
        Constant(),
        init_from=ViTInitialisation(str(tmp_path / "vit.pt")),
    )
    trainer = lightning.Trainer(
        max_steps=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=tmp_path,
        num_sanity_val_steps=0,
    )
    with pytest.raises(UserError, match=r"has no head\.weight, head\.bias"):
        trainer.test(module, datamodule=data(colours), verbose=False)
    net.class_token.data.zero_()
    module.from_weights = False  # as the command says where it is given a checkpoint
    trainer.test(module, datamodule=data(colours), verbose=False)
    assert not torch.equal(net.class_token, before.class_token)
    module.from_weights = True
    trainer.fit(module, datamodule=data(colours))
    assert torch.equal(net.class_token, before.class_token)
    assert not net.head.weight.any()
    assert "started from" in "".join(capsys.readouterr())
