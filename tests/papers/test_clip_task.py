"""CLIP's training as a run: chunks and processes change nothing, it goes on exactly, and mistakes are said before it."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from support import ROOT, Command, assert_same_run, kill_after_step, verb
from torch import Tensor, distributed, multiprocessing, nn

from lightning_vl.contrastive import Contrastive, InfoNCE, Sigmoid
from lightning_vl.errors import UserError
from lightning_vl.nn.packing import pack
from lightning_vl.optim import Constant
from lightning_vl.papers.clip.model import CLIP
from lightning_vl.papers.clip.task import ClipTask
from lightning_vl.papers.clip.towers import ModifiedResNet, TextTransformer, VisionTransformer

EXPERIMENT = "experiments/clip_tiny.yaml"
SHORT = (
    "-c",
    EXPERIMENT,
    "--data.init_args.source.init_args={train_images: 40, validation_images: 12, test_images: 15}",
    "--data.init_args.workers=0",
    "--data.init_args.batch_size=8",
    "--data.init_args.evaluation_batch_size=8",
    # without batch norm, which sees a process's own images alone
    "--model.init_args.net.init_args.image={class_path: VisionTransformer, "
    "init_args: {image_size: 64, patch_size: 16, dim: 32, layers: 1, heads: 2, embed_dim: 128}}",
    "--model.init_args.net.init_args.text.init_args.layers=1",
    "--model.init_args.schedule.init_args.warmup_steps=2",
    "--trainer.max_steps=12",
    "--trainer.val_check_interval=5",
    "--trainer.log_every_n_steps=1",
    "--checkpoint_last.every_n_train_steps=2",
    "--zero_shot=[]",
)
SIGMOID = (
    "--model.init_args.objective=Sigmoid",
    "--model.init_args.objective.init_args.block=3",
    "--model.init_args.net.init_args={scale: 10, bias: -10}",
)
CHUNKS = "--model.init_args.chunk=3"

PAIRS, VOCABULARY, CONTEXT = 8, 30, 9
LENGTHS = [5, 9, 3, 4, 9, 6, 7, 3]


def network(**further: Any) -> CLIP:
    torch.manual_seed(0)
    image = VisionTransformer(image_size=16, patch_size=8, dim=16, layers=1, heads=2, embed_dim=8)
    text = TextTransformer(VOCABULARY, CONTEXT, dim=16, layers=1, heads=2, embed_dim=8)
    return CLIP(image, text, **further)


def task(net: CLIP, objective: Contrastive | None = None, chunk: int | None = None) -> ClipTask:
    return ClipTask(net, objective or InfoNCE(), partial(torch.optim.AdamW, lr=1e-3), Constant(), chunk=chunk)


def batch(own: slice = slice(None)) -> dict[str, Any]:
    """Eight pairs with texts of different lengths, or a process's part of them."""
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(PAIRS, 3, 16, 16, generator=generator)
    texts = torch.randint(VOCABULARY, (sum(LENGTHS),), generator=generator).split(LENGTHS)
    count = len(LENGTHS[own])
    return {
        "image": images[own],
        "token_ids": torch.cat(texts[own]),
        "packing": pack(torch.tensor(LENGTHS[own])),
        "image_of": torch.arange(count),
        "id": [f"{i}" for i in range(count)],
    }


class Step(nn.Module):
    """What Lightning's strategy wraps: a batch goes in, the loss comes out."""

    def __init__(self, task: ClipTask) -> None:
        super().__init__()
        self.task = task

    def forward(self, batch: dict[str, Any]) -> Tensor:
        return self.task.losses(batch, self.task(batch))["contrastive"]


def gradients(net: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in net.named_parameters() if parameter.grad is not None}


def close(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """To float32's rounding: two millionths of the largest gradient."""
    assert one.keys() == other.keys()
    largest = max(value.abs().max().item() for value in other.values())
    for name, value in one.items():
        assert (value - other[name]).abs().max() < 2e-6 * largest, name


@pytest.mark.parametrize("frozen", [{}, {"freeze_image": True}, {"freeze_text": True}], ids=["none", "image", "text"])
@pytest.mark.parametrize("chunk", [1, 3, 8, 100])
def test_chunks_have_the_gradients_of_the_whole_batch(chunk: int, frozen: dict[str, bool]) -> None:
    """Breaks if a pair is compared within its chunk alone, a chunk is lost, or what is frozen learns when it is computed again."""
    whole, chunked = (task(network(**frozen), chunk=size) for size in (None, chunk))
    values = [Step(each)(batch()) for each in (whole, chunked)]
    torch.testing.assert_close(values[1], values[0])
    for value in values:
        value.backward()
    close(gradients(chunked.net), gradients(whole.net))


def test_chunks_keep_only_embeddings() -> None:
    """Breaks if what lies within the towers is kept for the backward pass all the same."""
    kept: dict[int | None, int] = {}
    pairs = batch()
    for chunk in (None, 2):
        each = task(network(), chunk=chunk)
        there = {tensor.untyped_storage().data_ptr() for tensor in (*each.net.parameters(), pairs["image"])}
        saved: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, saved=saved: saved.append(x) or x, lambda x: x):  # type: ignore[func-returns-value]
            Step(each)(pairs)
        kept[chunk] = sum(x.numel() for x in saved if x.untyped_storage().data_ptr() not in there)
    embeddings = 2 * PAIRS * 8
    assert kept[2] < 6 * embeddings < 60 * embeddings < kept[None]  # as the towers give them, and of length one


@pytest.mark.parametrize(("tower", "other"), [("image", "text"), ("text", "image")])
def test_a_frozen_tower_learns_its_projection_only(tower: str, other: str) -> None:
    """Breaks if a locked tower (LiT) goes on learning, or the other one stops."""
    each = task(network(**{f"freeze_{tower}": True}))
    Step(each)(batch()).backward()
    learning = set(gradients(each.net))
    assert {name for name in learning if name.startswith(tower)} == {f"{tower}.projection.weight"}
    assert {name for name in learning if name.startswith(other)} == {
        f"{other}.{name}" for name, _ in getattr(each.net, other).named_parameters()
    }


def test_evaluation_has_the_loss_of_the_first_captions() -> None:
    """Breaks if images with more captions than others are compared with texts that are not theirs."""
    each = task(network()).eval()
    several = {**batch(), "image": batch()["image"][:3], "image_of": torch.tensor([0, 0, 0, 1, 2, 2, 2, 2])}
    outputs = each(several)
    value = each.losses(several, outputs)["contrastive"]
    expected = InfoNCE()(outputs.image, outputs.text[[0, 3, 4]], outputs.scale, None, across=False)
    assert torch.equal(value, expected)


def test_predictions_put_captions_beside_their_images() -> None:
    """Breaks if a caption is said to have another's cosine, or an image another's caption."""
    each = task(network()).eval()
    several = {**batch(), "image": batch()["image"][:2], "image_of": torch.tensor([0, 0, 0, 0, 0, 1, 1, 1])}
    several |= {"id": ["a", "b"], "text": list("stuvwxyz")}
    with torch.no_grad():
        outputs = each(several)
        rows = each.predictions(several, outputs)
    assert [row["id"] for row in rows] == ["a", "b"]
    assert ["".join(entry["caption"] for entry in row["captions"]) for row in rows] == ["stuvw", "xyz"]
    assert rows[1]["captions"][2]["cosine"] == pytest.approx((outputs.image[1] @ outputs.text[7]).item(), abs=1e-6)


def on_one_of_two(rank: int, folder: str) -> None:
    """Half of the pairs on each of two processes, in chunks; gradients are averaged by DistributedDataParallel."""
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    half = PAIRS // 2
    for name, make in OBJECTIVES.items():
        each = task(network(bias=-1.0), make(3), chunk=3)
        # a bias cancels in InfoNCE, but it has a gradient; so no parameter is left out
        step = nn.parallel.DistributedDataParallel(Step(each))
        step(batch(slice(rank * half, (rank + 1) * half))).backward()
        if rank == 0:
            torch.save(gradients(each.net), f"{folder}/{name}.pt")
    distributed.destroy_process_group()


OBJECTIVES = {"InfoNCE": InfoNCE, "Sigmoid": Sigmoid}


def test_two_processes_with_chunks_have_the_gradients_of_one_without(tmp_path: Path) -> None:
    """Breaks if recomputing a chunk disturbs the averaging, or pairs of the other process are left out."""
    multiprocessing.start_processes(on_one_of_two, (str(tmp_path),), nprocs=2, start_method="fork")
    for name, make in OBJECTIVES.items():
        each = task(network(bias=-1.0), make())
        Step(each)(batch()).backward()
        close(torch.load(tmp_path / f"{name}.pt"), gradients(each.net))


def test_a_chunk_has_pairs() -> None:
    """Breaks if a chunk of nothing ends in a traceback of torch's."""
    with pytest.raises(UserError, match="chunk is 0"):
        task(network(), chunk=0)


@pytest.mark.parametrize(
    ("argument", "what"),
    [
        pytest.param(
            "--data.init_args.image_size=32",
            "the image tower takes images of 64 px, the data gives 32 px",
            marks=pytest.mark.slow,
        ),
        ("--data.init_args.vocabulary.init_args.size=700", "the text tower reads 768 pieces, the vocabulary has 700"),
        pytest.param(
            "--data.init_args.context_length=60",
            "captions of 60 tokens, the text tower places for 48",
            marks=pytest.mark.slow,
        ),
        ("--trainer.accumulate_grad_batches=2", "compared with those of its micro-batch alone"),
        ("--model.init_args.objective=Sigmoid", "the sigmoid loss needs a bias"),
    ],
    ids=["image size", "vocabulary", "context", "accumulation", "bias"],
)
def test_a_mistake_is_said_before_training(
    argument: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks if one of these ends in a traceback, or after the first step."""
    monkeypatch.chdir(ROOT)
    assert verb("fit", *SHORT, argument, f"--run.root={tmp_path}") == 2
    said = capsys.readouterr().err
    assert what in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    "further", [(), pytest.param((*SIGMOID, CHUNKS), marks=pytest.mark.slow)], ids=["InfoNCE", "Sigmoid, chunks"]
)
def test_a_killed_run_goes_on_bit_for_bit(command: Command, tmp_path: Path, further: tuple[str, ...]) -> None:
    """Breaks if captions, crops, the scale or the optimiser's state were not those of the run."""
    arguments = ("fit", *SHORT, *further, "--data.init_args.workers=2", f"--run.root={tmp_path}")
    whole = command(*arguments, "--run.id=whole")
    assert whole.returncode == 0, whole.stderr
    folder = tmp_path / "clip_tiny" / "cut"
    kill_after_step(7, folder, *arguments, "--run.id=cut")
    done = command(*arguments, "--run.id=cut")
    assert done.returncode == 0, done.stderr
    assert "going on from" in done.stderr
    assert_same_run(tmp_path / "clip_tiny" / "whole", folder)


@pytest.mark.slow
@pytest.mark.parametrize("further", [(), (*SIGMOID, CHUNKS)], ids=["InfoNCE", "Sigmoid, chunks"])
def test_two_ranks_have_the_losses_of_one(command: Command, tmp_path: Path, further: tuple[str, ...]) -> None:
    """Breaks if each rank compares its own pairs only, or evaluation is that of a rank's share: 15 images on 2 ranks."""
    runs = []
    for name, devices in (("one", ()), ("two", ("-c", "experiments/overlays/cpu_ddp.yaml"))):
        done = command(
            "fit",
            *SHORT[:2],
            *devices,
            *SHORT[2:],
            *further,
            "--trainer.max_steps=4",
            f"--run.root={tmp_path}",
            f"--run.id={name}",
        )
        assert done.returncode == 0, done.stderr
        folder = tmp_path / "clip_tiny" / name
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses = [row["train/loss"] for row in lines if "train/loss" in row]
        runs.append((losses, json.loads((folder / "results.json").read_text())["metrics"]))
    assert len(runs[0][0]) == 4
    assert runs[1][0] == pytest.approx(runs[0][0], abs=1e-6)
    for name, value in runs[0][1].items():
        assert runs[1][1][name] == pytest.approx(value, abs=1e-5, rel=1e-5), name


def test_chunks_count_once_in_batch_norm() -> None:
    """Breaks if what is computed again for the gradients moves the running statistics a second time."""
    images = torch.rand(PAIRS, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    towers = []
    for _ in range(2):
        torch.manual_seed(0)
        towers.append(ModifiedResNet(32, (1, 1, 1, 1), 8, 8).train())
    once, chunked = towers
    for part in images.split(4):
        once(part)
    text = TextTransformer(VOCABULARY, 16, 8, 1, 2, 8)
    Step(task(CLIP(chunked, text), chunk=4))({**batch(), "image": images}).backward()
    statistics = {name: value for name, value in once.named_buffers() if "running" in name}
    assert statistics
    for name, value in statistics.items():
        torch.testing.assert_close(chunked.get_buffer(name), value)
