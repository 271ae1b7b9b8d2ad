"""Every experiment's file: parsed, built at full size on the meta device, and run for a step."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from support import ROOT, SHRUNK, SHRUNK_BERT, SHRUNK_CLIP, SHRUNK_VIT, given_by_the_user, tiny, verb

from lightning_vl.cli import build
from lightning_vl.papers.clip.model import CLIP
from lightning_vl.papers.clip.towers import TextTransformer, VisionTransformer
from lightning_vl.report.family import check_family, read_sweep

EMBEDDED = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("experiments/*.yaml"))
PAPER = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("experiments/paper/*.yaml"))
REAL = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("experiments/real/*.yaml"))
OVERLAYS = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("experiments/overlays/*.yaml"))
SWEEPS = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("experiments/sweeps/*.yaml"))
FEW_SHAPES = (
    "--zero_shot=[{name: shapes, source: {class_path: SceneShapes, init_args: {test_images: 64}}, "
    "templates: {class_path: BareName}}]"
)


@pytest.fixture(autouse=True)
def in_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are named from the repository's root."""
    monkeypatch.chdir(ROOT)


def test_there_are_experiments() -> None:
    """Breaks if the patterns above find nothing, and every test below passes by being empty."""
    assert len(EMBEDDED) >= 5
    assert len(PAPER) >= 8
    assert len(REAL) >= 5
    assert SWEEPS


# Sec. 6.3 of the paper's figures: K400 head, exact
PARAMETERS = {
    "vivit_spatiotemporal_k400": 88_954_000,
    "vivit_fact_encoder_k400": 115_062_928,
    "vivit_fact_self_attention_k400": 117_319_312,
    "vivit_fact_dot_product_k400": 88_952_464,
    "vivit_avg_pool_k400": 86_696_080,
    # 109,482,240 and the heads of pre-training
    "bert_base": 110_106_428,
}


@pytest.mark.parametrize("file", EMBEDDED + PAPER + REAL)
def test_it_is_built_at_full_size_without_memory(file: str) -> None:
    """Breaks if a file does not parse, a network allocates real memory on meta, or its size is not the paper's."""
    with torch.device("meta"):
        experiment = build([file], given_by_the_user(file))
    assert experiment.name == Path(file).stem
    parameters = list(experiment.task.net.parameters())
    assert all(parameter.is_meta for parameter in parameters)
    if experiment.name in PARAMETERS:
        assert sum(parameter.numel() for parameter in parameters) == PARAMETERS[experiment.name]


@pytest.mark.parametrize("file", EMBEDDED)
def test_it_is_fitted_validated_and_tested(file: str, tmp_path: Path) -> None:
    """Breaks if an experiment fails on its own data."""
    steps = ("--trainer.max_steps=1", "--trainer.val_check_interval=1")
    if file in ("experiments/clip_zeroshot.yaml", "experiments/clip_prompts.yaml"):  # of a run of another experiment
        other = "experiments/clip_tiny.yaml"
        assert verb("fit", "-c", other, *tiny(other), *steps, f"--run.root={tmp_path}", "--run.id=one") == 0
        start = f"--model.init_args.init_from.init_args.path={tmp_path}/clip_tiny/*/checkpoints/best.ckpt"
        words = ("test", "-c", file, *tiny(file)[:-1], start, f"--run.root={tmp_path}", "--run.id=smoke")
        assert verb(*words, FEW_SHAPES) == 0
        results = json.loads((tmp_path / Path(file).stem / "smoke-test" / "results.json").read_text())
        assert 0 <= results["metrics"]["zero_shot/shapes/top1"] <= 1
        assert "baseline/zero_shot_shapes_majority" in results["metrics"]
        return
    assert verb("fit", "-c", file, *tiny(file), *steps, f"--run.root={tmp_path}", "--run.id=smoke") == 0
    assert (tmp_path / Path(file).stem / "smoke" / "results.json").exists()


@pytest.mark.parametrize("file", PAPER)
def test_the_papers_recipe_is_fitted_validated_and_tested_when_small(file: str, tmp_path: Path) -> None:
    """Breaks if a recipe's augmentation, heads, schedule or views fail: network and video are small, the rest is the file's."""
    recipe = yaml.safe_load((ROOT / file).read_text())
    if recipe["model"]["class_path"] == "ViTTask":
        weights = small_vit(tmp_path) if recipe["model"]["init_args"].get("init_from") else []
        images = make_images(recipe["data"]["init_args"]["source"]["class_path"], tmp_path / "data")
        assert verb("fit", "-c", file, *SHRUNK_VIT, *images, *weights, f"--run.root={tmp_path}", "--run.id=smoke") == 0
        assert (tmp_path / Path(file).stem / "smoke" / "results.json").exists()
        return
    if recipe["model"]["class_path"] == "BertPreTrainingTask":
        texts = make_texts(tmp_path / "data")
        assert verb("fit", "-c", file, *SHRUNK_BERT, *texts, f"--run.root={tmp_path}", "--run.id=smoke") == 0
        assert (tmp_path / Path(file).stem / "smoke" / "results.json").exists()
        return
    if recipe["model"]["class_path"] == "ClipTask":
        if not file.endswith("_zero_shot.yaml"):
            fit_small_clip(file, recipe, tmp_path)
        return
    heads = recipe["model"]["init_args"]["net"]["init_args"]["classes"]
    source = make_source(recipe["data"]["init_args"]["source"]["class_path"], tmp_path / "data", heads)
    arguments = ("fit", "-c", file, *SHRUNK, *source, f"--run.root={tmp_path}", "--run.id=smoke")
    assert verb(*arguments) == 0
    assert (tmp_path / Path(file).stem / "smoke" / "results.json").exists()


def fit_small_clip(file: str, recipe: dict[str, Any], folder: Path) -> None:
    """The recipe on 24 pairs in a shard, from weights for smaller images where it starts from some; then its zero-shot file."""
    prefix = "--model.init_args.net.init_args.image.init_args."
    vision = recipe["model"]["init_args"]["net"]["init_args"]["image"]["class_path"] == "VisionTransformer"
    sizes = {"patch_size": 16, "dim": 32, "layers": 1, "heads": 2} if vision else {"layers": [1, 1, 1, 1], "width": 8}
    small = [*SHRUNK_CLIP, *(f"{prefix}{name}={value}" for name, value in sizes.items())]
    start = []
    if recipe["model"]["init_args"].get("init_from"):
        image = VisionTransformer(16, 16, 32, 1, 2, 16)
        torch.save(
            CLIP(image, TextTransformer(dim=32, layers=1, heads=2, embed_dim=16)).state_dict(), folder / "start.pt"
        )
        start = [f"--model.init_args.init_from.init_args.path={folder / 'start.pt'}"]
    make_pairs(folder / "data")
    source = [f"--data.init_args.source.init_args.{key}" for key in (f"root={folder / 'data'}", "held_out=4")]
    where = [f"--run.root={folder}", "--run.id=smoke"]
    assert verb("fit", "-c", file, *small, *source, *start, *where) == 0
    best = folder / Path(file).stem / "smoke" / "checkpoints" / "best.ckpt"
    evaluation = file.replace(".yaml", "_zero_shot.yaml")
    words = [f"--model.init_args.init_from.init_args.path={best}", "--data.init_args.source.init_args.test_images=20"]
    assert verb("test", "-c", evaluation, *small, *words, *where, FEW_SHAPES) == 0


def make_pairs(root: Path) -> None:
    """A shard of 24 images with captions."""
    root.mkdir()
    rng = np.random.default_rng(0)
    with tarfile.open(root / "00000.tar", "w") as shard:
        for i in range(24):
            buffer = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(buffer, "JPEG")
            for suffix, content in (("jpg", buffer.getvalue()), ("txt", f"picture number {i}".encode())):
                member = tarfile.TarInfo(f"{i:09}.{suffix}")
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))


def small_vit(folder: Path) -> list[str]:
    """A file with the weights of a ViT of that size at half the resolution, to start from."""
    from lightning_vl.papers.vit.model import ViT

    net = ViT(image_size=16, patch_size=16, dim=32, layers=2, heads=4, mlp_dim=64, classes=7, pre_logits=True)
    torch.save(net.state_dict(), folder / "weights.pt")
    return [f"--model.init_args.init_from.init_args.path={folder / 'weights.pt'}"]


def make_texts(root: Path) -> list[str]:
    """Two local sets in the hub's form, articles and single sentences of books, and a vocabulary."""
    import datasets

    from lightning_vl.data.datasets.python_manual import PythonManual
    from lightning_vl.data.tokenizer import train_pieces

    documents = [document for split in ("train", "validation", "test") for document in PythonManual().documents(split)]
    sentences = [sentence for document in documents for sentence in document.sentences]
    sources = []
    for name, rows, texts in (
        ("articles", 1, [" ".join(document.sentences) for document in documents]),
        ("books", 50, sentences),
    ):
        (root / name).mkdir(parents=True)
        datasets.Dataset.from_dict({"text": texts}).to_parquet(str(root / name / "train.parquet"))
        arguments = f"{{path: {root / name}, name: default, streaming: true, rows_of_document: {rows}, held_out: 0.2}}"
        sources.append(f"{{class_path: HubText, init_args: {arguments}}}")
    pieces = train_pieces(lambda: sentences, 300, lowercase=True)
    (root / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces))
    return [
        f"--data.init_args.source.init_args.sources=[{', '.join(sources)}]",
        f"--data.init_args.vocabulary.init_args.path={root / 'vocab.txt'}",
    ]


def make_images(class_path: str, root: Path) -> list[str]:
    """Sixteen images a split, of four classes, in the layout that the experiment's source reads."""
    rng = np.random.default_rng(0)
    prefix = "--data.init_args.source.init_args."
    pictures = [Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)) for _ in range(16)]
    splits = ("train", "validation", "test")
    match class_path:
        case "ImageFolder":
            for split in splits:
                for i, picture in enumerate(pictures):
                    (root / split / f"class{i % 4}").mkdir(parents=True, exist_ok=True)
                    picture.save(root / split / f"class{i % 4}" / f"{i}.png")
            return [f"{prefix}root={root}"]
        case "ImageShards":
            root.mkdir()
            for split in splits:
                with tarfile.open(root / f"{split}-0.tar", "w") as shard:
                    for i, picture in enumerate(pictures):
                        buffer = io.BytesIO()
                        picture.save(buffer, "PNG")
                        for name, content in ((f"{i}.png", buffer.getvalue()), (f"{i}.cls", str(i % 4).encode())):
                            member = tarfile.TarInfo(name)
                            member.size = len(content)
                            shard.addfile(member, io.BytesIO(content))
            return [f"{prefix}root={root}"]
        case "HubImages":
            import datasets

            rows = {"image": pictures * 8, "label": [i % 4 for i in range(128)]}
            table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
            datasets.DatasetDict({"train": table, "test": table}).save_to_disk(str(root))
            columns = ["image_column=image", "label_column=label"]
            return [f"{prefix}{key}" for key in (f"path={root}", "splits={train: train, test: test}", *columns)]
    raise AssertionError(f"no test data for {class_path}: write some here")


def make_source(class_path: str, root: Path, heads: dict[str, int]) -> list[str]:
    """A data set of a few real mp4 files in the layout that the experiment's source reads, with all classes declared."""

    from support import write_video

    root.mkdir()
    prefix = "--data.init_args.source.init_args."
    videos = [f"v{i}.mp4" for i in range(4)]
    match class_path:
        case "KineticsCsv":
            for name in videos:
                write_video(root / name, frames=12)
            names = [f"class {i}" for i in range(heads["class"])]
            (root / "classes.txt").write_text("\n".join(names) + "\n")
            for split in ("train", "val"):
                (root / f"{split}.csv").write_text("".join(f"{name} {i}\n" for i, name in enumerate(videos)))
            return [f"{prefix}root={root}", f"{prefix}class_names=classes.txt"]
        case "SomethingSomething":
            folder = root / "20bn-something-something-v2"
            folder.mkdir()
            for i in range(4):
                write_video(folder / f"{i}.webm", frames=12)
            labels = {f"Doing number {i}": str(i) for i in range(heads["class"])}
            (root / "something-something-v2-labels.json").write_text(json.dumps(labels))
            clips = [{"id": str(i), "template": f"Doing [number] {i}"} for i in range(4)]
            for split in ("train", "validation"):
                (root / f"something-something-v2-{split}.json").write_text(json.dumps(clips))
            return [f"{prefix}root={root}"]
        case "EpicKitchens":
            for name in videos:
                write_video(root / name, frames=12)
            header = "narration_id,participant_id,video_id,start_frame,stop_frame,verb_class,noun_class\n"
            lines = [f"n{i},P01,v{i},1,12,{i},{i}\n" for i in range(4)]
            for split in ("train", "validation"):
                (root / f"EPIC_100_{split}.csv").write_text(header + "".join(lines))
            for head in ("noun", "verb"):
                rows = "".join(f"{i},{head} {i}\n" for i in range(heads[head]))
                (root / f"EPIC_100_{head}_classes.csv").write_text("id,key\n" + rows)
            return [f"{prefix}root={root}", f"{prefix}media={{video_id}}.mp4"]
    raise AssertionError(f"no test data for {class_path}: write some here")


@pytest.mark.parametrize("file", OVERLAYS)
def test_an_overlay_says_only_how_and_where(file: str) -> None:
    """Breaks if an overlay changes the science: only these keys may stand in one."""
    overlay = yaml.safe_load((ROOT / file).read_text())
    allowed = {"trainer", "checkpoint_last", "run", "data", "execution"}
    assert overlay.keys() <= allowed, "an overlay holds how and where to run"
    how = {
        "accelerator", "devices", "num_nodes", "strategy", "precision", "log_every_n_steps", "profiler",
        "limit_train_batches", "limit_val_batches", "limit_test_batches", "max_steps", "val_check_interval",
        "accumulate_grad_batches", "enable_progress_bar", "detect_anomaly",
    }  # fmt: skip
    assert overlay.get("trainer", {}).keys() <= how
    assert overlay.get("data", {}).get("init_args", {}).keys() <= {"workers", "evaluation_batch_size"}


@pytest.mark.parametrize("file", SWEEPS)
def test_a_family_differs_only_in_what_it_declares(file: str) -> None:
    """Breaks if an experiment of a sweep is changed alone: the comparison would not be controlled."""
    sweep = read_sweep(file)
    check_family(sweep.experiments, sweep.differ_only_in)
