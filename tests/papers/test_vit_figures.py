"""The figures of ViT: the table beside a picture is what was measured, the picture shows the table, and all of it can be read."""

import csv
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from support import environment
from torch import nn

from lightning_vl.data.module import to_signed_unit_range
from lightning_vl.errors import UserError
from lightning_vl.evaluation import attention
from lightning_vl.nn.positions import RelativePositions
from lightning_vl.papers.vit import figures
from lightning_vl.papers.vit.bit import BiT
from lightning_vl.papers.vit.figures import Pictures
from lightning_vl.papers.vit.model import ViT
from lightning_vl.report.drawing import Drawing, main

SIZE, PATCH, GRID = 24, 6, (4, 4)
NETWORK = {
    "image_size": SIZE,
    "patch_size": PATCH,
    "dim": 16,
    "layers": 3,
    "heads": 2,
    "mlp_dim": 16,
    "classes": 2,
}


@pytest.fixture
def vit() -> ViT:
    """A network whose attention is far from uniform."""
    torch.manual_seed(0)
    net = ViT(**NETWORK)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.5)
    return net.eval()


@pytest.fixture
def pictures() -> Pictures:
    pixels = torch.randint(0, 256, (3, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Pictures(["somewhere/cat/one.png", "somewhere/cat/two.png", f"somewhere/{'long' * 20}/three.png"], pixels)


def table(drawing: Drawing, folder: Path) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the CSV, as it is written."""
    picture, file = drawing.write(folder / "figure")
    assert Image.open(picture).format == "PNG"
    with file.open(newline="", encoding="utf-8") as lines:
        header, *rows = csv.reader(lines)
    return header, rows


def column(rows: list[list[str]], place: int) -> np.ndarray:
    return np.array([float(row[place]) for row in rows])


def test_attention_distance_is_what_was_measured(vit: ViT, pictures: Pictures, tmp_path: Path) -> None:
    """Breaks if dots, line or table show other numbers than the function, or layers and heads change places."""
    images = to_signed_unit_range(pictures.pixels)
    expected = attention.attention_distance(vit, [images], GRID, PATCH).numpy()
    uniform = attention.uniform_distance(GRID, PATCH)
    drawing = figures.attention_distance(vit, pictures)
    (axes,) = drawing.figure.axes
    drawn = np.asarray(axes.collections[0].get_offsets())
    assert drawn[:, 0].tolist() == [1, 1, 2, 2, 3, 3]
    assert np.allclose(drawn[:, 1], expected.ravel())
    mean, line = axes.lines
    assert np.allclose(mean.get_ydata(), expected.mean(1))
    assert np.allclose(line.get_ydata(), uniform)
    assert "px" in axes.get_ylabel()
    header, rows = table(drawing, tmp_path)
    assert header == ["layer", "head", "distance_px", "uniform_px"]
    assert [row[:2] for row in rows] == [["1", "1"], ["1", "2"], ["2", "1"], ["2", "2"], ["3", "1"], ["3", "2"]]
    assert np.allclose(column(rows, 2), expected.ravel())
    assert np.allclose(column(rows, 3), uniform)


def test_more_images_than_fit_a_batch_are_all_measured(vit: ViT, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if only the first batch is seen, or the last one counts more."""
    pixels = torch.randint(0, 256, (5, 3, SIZE, SIZE), dtype=torch.uint8)
    pictures = Pictures(["a"] * 5, pixels)
    at_once = figures.attention_distance(vit, pictures).rows
    monkeypatch.setattr(figures, "BATCH", 2)
    assert np.allclose(figures.attention_distance(vit, pictures).rows, at_once)


def test_rollout_shows_each_image_and_its_own_map(vit: ViT, pictures: Pictures, tmp_path: Path) -> None:
    """Breaks if maps and images are paired wrongly, the darkening is not the map's, or colours differ between rows."""
    images = to_signed_unit_range(pictures.pixels)
    maps = attention.rollout_map(vit, images, GRID).numpy()
    drawing = figures.rollout(vit, pictures)
    panels = np.array(drawing.figure.axes[:9]).reshape(3, 3)
    for row, (image, share) in enumerate(zip(pictures.pixels, maps, strict=True)):
        seen, dark, by_patch = [panel.images[0] for panel in panels[row]]
        assert np.allclose(seen.get_array(), image.permute(1, 2, 0) / 255)
        assert np.allclose(by_patch.get_array(), share * 16, rtol=1e-4)
        assert by_patch.get_clim() == pytest.approx((maps.min() * 16, maps.max() * 16), rel=1e-4)
        brightness = np.asarray(dark.get_array()) / np.maximum(np.asarray(seen.get_array()), 1e-9)
        assert (dark.get_array() <= seen.get_array()).all()
        # in the corners there is nothing to interpolate with: they are as dark as their patches
        assert np.nanmax(brightness[0, 0]) == pytest.approx(share[0, 0] / share.max(), rel=1e-4)
        assert np.nanmax(brightness[-1, 0]) == pytest.approx(share[-1, 0] / share.max(), rel=1e-4)
    assert panels[0, 0].get_title(loc="left") == "cat/one.png"
    assert panels[2, 0].get_title(loc="left").endswith("/three.png")
    header, rows = table(drawing, tmp_path)
    assert header == ["image", "row", "column", "share"]
    assert [row[0] for row in rows[::16]] == pictures.names
    assert rows[17][1:3] == ["1", "2"]
    assert np.allclose(column(rows, 3), maps.ravel(), rtol=1e-4)


def test_the_figures_say_whether_there_is_a_class_token(vit: ViT, pictures: Pictures) -> None:
    """Breaks if a pooled network's figure speaks of a class token, or the other's does not say what became of it."""
    pooled = ViT(**NETWORK, pooled=True).eval()
    for name in ("attention_distance", "rollout", "position_similarity"):
        with_token, without = [DRAWINGS[name](net, pictures).figure.get_supxlabel() for net in (vit, pooled)]
        assert "class token" in with_token, name
        assert "no class token" in without or "class token" not in without, name


def test_position_similarity_is_a_tile_a_patch(vit: ViT, tmp_path: Path) -> None:
    """Breaks if a tile stands in another patch's place, or ticks beside other tiles."""
    expected = attention.position_similarity(vit.positions, GRID).detach().numpy()
    drawing = figures.position_similarity(vit)
    axes = drawing.figure.axes[0]
    picture = np.ma.filled(axes.images[0].get_array(), np.nan)
    for row, column_ in np.ndindex(4, 4):
        tile = picture[5 * row : 5 * row + 4, 5 * column_ : 5 * column_ + 4]  # 4 patches and a gap of 1
        assert np.allclose(tile, expected[row, column_])
    assert np.isnan(picture[4]).all()
    assert axes.get_xticks().tolist() == [1.5, 6.5, 11.5, 16.5]
    assert axes.images[0].get_clim() == (-1, 1)
    header, rows = table(drawing, tmp_path)
    assert header == ["row", "column", "other_row", "other_column", "cosine"]
    assert rows[16 * 5 + 2][:4] == ["2", "2", "1", "3"]
    assert np.allclose(column(rows, 4), expected.ravel())


def test_filters_are_the_components_in_colour(vit: ViT, tmp_path: Path) -> None:
    """Breaks if channels and pixels change places, zero is no longer grey, or tiles are out of order."""
    expected = attention.principal_filters(vit.embedding.weight, 9)
    drawing = figures.filters(vit, 9)
    picture = np.asarray(drawing.figure.axes[0].images[0].get_array())
    assert picture.shape == (13, 48, 3)  # two rows of tiles, seven in a row, a gap of 1
    for number in range(9):
        top, left = 7 * (number // 7), 7 * (number % 7)
        component = expected.components[number]
        tile = picture[top : top + 6, left : left + 6].transpose(2, 0, 1)
        assert np.allclose((tile - 0.5) * 2 * np.abs(component).max(), component)
    assert (picture[7:, 14:] == 1).all()
    header, rows = table(drawing, tmp_path)
    assert header == ["component", "variance", "channel", "row", "column", "value"]
    assert rows[108 + 36 + 6][:1] + rows[108 + 36 + 6][2:5] == ["2", "G", "2", "1"]
    assert np.allclose(column(rows, 5), expected.components.ravel())
    assert np.allclose(column(rows, 1)[::108], expected.variance)


def test_what_a_network_does_not_have_is_said(vit: ViT) -> None:
    """Breaks if relative positions or too few filters end in a traceback."""
    with pytest.raises(UserError, match="no position embeddings"):
        figures.position_similarity(ViT(**NETWORK, positions=RelativePositions()))
    with pytest.raises(UserError, match="16 principal components, not 17"):
        figures.filters(vit, 17)


DRAWINGS: dict[str, Callable[[ViT, Pictures], Drawing]] = {
    "attention_distance": figures.attention_distance,
    "rollout": figures.rollout,
    "position_similarity": lambda vit, pictures: figures.position_similarity(vit),
    "filters": lambda vit, pictures: figures.filters(vit, 16),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_all_text_can_be_read(name: str, vit: ViT, pictures: Pictures) -> None:
    """Breaks if a caption runs out of the picture or labels cover each other, as uniform attention's and the mean's would."""
    figure = DRAWINGS[name](vit, pictures).figure
    texts = {text.get_text(): text for text in figure.findobj(Text) if text.get_text() and text.get_visible()}
    boxes = extents(figure, list(texts.values()))
    whole = figure.bbox
    for text, box in zip(texts, boxes, strict=True):
        assert box.x0 >= whole.x0 - 1 and box.x1 <= whole.x1 + 1, text  # noqa: PT018 (one statement about one box)
        assert box.y0 >= whole.y0 - 1 and box.y1 <= whole.y1 + 1, text  # noqa: PT018
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:number]), list(texts)[number]


def extents(figure: Figure, texts: list[Text]) -> list:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return [text.get_window_extent(canvas.get_renderer()) for text in texts]


# -- the command ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Class folders of small images, one of them damaged."""
    rng = np.random.default_rng(0)
    for split, number in (("train", 3), ("test", 4)):
        for name in ("cat", "dog"):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for image in range(number):
                Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(folder / f"{image}.png")
    (tmp_path / "data" / "test" / "dog" / "3.png").write_bytes(b"no image")
    return tmp_path / "data"


@pytest.fixture
def checkpoint(vit: ViT, data: Path, tmp_path: Path) -> Path:
    """The best checkpoint of a run, with the run's configuration beside it."""
    folder = tmp_path / "runs" / "experiment" / "seed0"
    (folder / "checkpoints").mkdir(parents=True)
    network = {"class_path": "lightning_vl.papers.vit.model.ViT", "init_args": NETWORK}
    state = {f"net.{name}": tensor for name, tensor in vit.state_dict().items()}
    torch.save({"state_dict": state, "network": network}, folder / "checkpoints" / "best.ckpt")
    source = {"class_path": "ImageFolder", "init_args": {"root": str(data)}}
    (folder / "config.yaml").write_text(
        yaml.safe_dump(
            {
                "model": {
                    "class_path": "ViTTask",
                    "init_args": {
                        "net": network,
                        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.001}},
                        "schedule": {"class_path": "WarmupCosine", "init_args": {"warmup_steps": 1}},
                    },
                },
                "data": {
                    "class_path": "ImageData",
                    "init_args": {
                        "source": source,
                        "image_size": SIZE,
                        "augmentation": {"class_path": "RandomResizedCrop"},
                        "batch_size": 2,
                    },
                },
                "trainer": {"max_steps": 1},
            }
        )
    )
    return folder / "checkpoints" / "best.ckpt"


def test_a_checkpoint_is_shown_on_its_own_test_set(
    checkpoint: Path, data: Path, vit: ViT, capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks if the run's test images are not found, resized otherwise than for the test, or what is damaged stops it."""
    assert main(["attention_distance", str(checkpoint)]) == 0
    out, err = capsys.readouterr()
    picture, file = map(Path, out.split())
    assert picture == checkpoint.parent.parent / "figures" / "attention_distance.png"
    assert "skipped" in err
    assert "3.png" in err
    from lightning_vl.data.datasets.image_folder import ImageFolder
    from lightning_vl.papers.vit.data import EvaluationImages

    dataset = EvaluationImages(ImageFolder(str(data)), "test", SIZE)
    pixels = torch.stack([dataset.sample(index, np.random.default_rng())["image"] for index in range(7)])
    expected = attention.attention_distance(vit, [to_signed_unit_range(pixels)], GRID, PATCH)
    with file.open(newline="") as lines:
        assert np.allclose([float(row["distance_px"]) for row in csv.DictReader(lines)], expected.ravel(), rtol=1e-5)


def test_images_are_taken_from_all_over_the_folders(
    checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks if only the first class is shown, --number or --out is ignored, or a file cannot be named by itself."""
    out = tmp_path / "out"
    arguments = ["rollout", str(checkpoint), "--number", "2", "--out", str(out), "--images"]
    assert main([*arguments, str(data / "test")]) == 0
    assert capsys.readouterr().out.split() == [str(out / "rollout.png"), str(out / "rollout.csv")]
    with (out / "rollout.csv").open(newline="") as lines:
        shown = list(dict.fromkeys(row["image"] for row in csv.DictReader(lines)))
    assert shown == [str(data / "test" / name) for name in ("cat/0.png", "dog/0.png")]
    one = str(data / "train" / "dog" / "1.png")
    assert main([*arguments, one]) == 0
    with (out / "rollout.csv").open(newline="") as lines:
        assert {row["image"] for row in csv.DictReader(lines)} == {one}


@pytest.mark.parametrize("name", ["position_similarity", "filters --components 5"])
def test_weights_need_no_run(name: str, vit: ViT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if figures of weights alone ask for images, or cannot be drawn of another library's file."""
    import timm

    theirs = timm.models.vision_transformer.VisionTransformer(
        img_size=24, patch_size=6, embed_dim=64, depth=1, num_heads=1, num_classes=5
    )
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    monkeypatch.chdir(tmp_path)
    figure, *options = name.split()
    assert main([figure, "timm.pth", *options]) == 0
    with (tmp_path / "figures" / f"{figure}.csv").open() as lines:
        last = list(csv.DictReader(lines))[-1]
    assert last["row"] == ("4" if figure == "position_similarity" else "6")


def test_mistakes_are_said_in_two_lines(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    """Breaks if a mistake ends in a traceback, or in a figure of something else."""
    (tmp_path / "empty").mkdir()
    weights = tmp_path / "alone.ckpt"
    weights.write_bytes(checkpoint.read_bytes())
    net = BiT(32, [1], 2, channels=[32], stem_channels=8, small_images=True, groups=4)
    bit = tmp_path / "bit.ckpt"
    init_args = {"image_size": 32, "layers": [1], "classes": 2, "channels": [32], "stem_channels": 8}
    init_args |= {"small_images": True, "groups": 4}
    state = {f"net.{name}": tensor for name, tensor in net.state_dict().items()}
    network = {"class_path": "lightning_vl.papers.vit.bit.BiT", "init_args": init_args}
    torch.save({"state_dict": state, "network": network}, bit)
    damaged = str(data / "test" / "dog" / "3.png")
    for arguments, what in (
        ([str(checkpoint), "--images", str(tmp_path / "empty")], "holds no images"),
        ([str(checkpoint), "--images", str(tmp_path / "nowhere")], "there is no file or folder"),
        ([str(checkpoint), "--images", damaged], "none of 1 image can be read"),
        ([str(checkpoint), "--number", "0"], "--number is 0"),
        ([str(weights)], "no checkpoint of a run"),
        ([str(tmp_path / "nowhere.ckpt")], "does not exist"),
        ([str(bit), "--images", str(data)], "BiT"),
    ):
        with pytest.raises(UserError, match=what) as error:
            main(["attention_distance", *arguments])
        assert str(error.value).count("\n") == 1, arguments


def test_help_needs_no_torch(tmp_path: Path) -> None:
    """Breaks if asking what figures there are waits for torch or matplotlib."""
    script = (
        "import sys\nfrom lightning_vl.report.drawing import main\n"
        "try:\n    main(['attention_distance', '--help'])\n"
        "except SystemExit:\n    print({'torch', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(tmp_path), capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "set()"
    assert "--images" in done.stdout
