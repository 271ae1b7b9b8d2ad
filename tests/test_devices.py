"""Two processes are one, sharded or not: losses, evaluation, checkpoints that move, and the record of a run on two gloo ranks."""

import contextlib
import json
import os
import pickle
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import lightning
import pytest
import torch
from safetensors.torch import load_file
from support import ROOT, TINY, TINY_IMAGES, TINY_TEXT, Command, assert_same_run, same, two_ranks, verb

from lightning_vl.checkpoints import PLAN, consolidate, damage, last_complete
from lightning_vl.cli import Bench
from lightning_vl.errors import UserError
from lightning_vl.task import Task

HOW = {  # overlays
    "one": (),
    "ddp": ("-c", "experiments/overlays/cpu_ddp.yaml"),
    "fsdp": ("-c", "experiments/overlays/cpu_fsdp.yaml"),
    "shards": (
        "-c",
        "experiments/overlays/cpu_fsdp.yaml",
        "--trainer.strategy={class_path: FullySharded, init_args: {sharded_checkpoints: true}}",
    ),
}
SMALL = {  # an experiment of each system, made small
    "vivit_fact_encoder": TINY,
    "vit_tiny": TINY_IMAGES,
    "bert_tiny": TINY_TEXT,
    # towers without batch norm, whose statistics are of a process's own samples
    "clip_tiny": (
        *TINY_IMAGES,
        "--zero_shot=[]",
        "--model.init_args.net.init_args.image={class_path: VisionTransformer, init_args: {image_size: 64, patch_size: 16, "
        "dim: 32, layers: 2, heads: 2, embed_dim: 128}}",
    ),
}


@pytest.fixture(autouse=True)
def in_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands name files from the repository's root."""
    monkeypatch.chdir(ROOT)


def settings(experiment: str) -> tuple[str, ...]:
    """The words that make a short run of an experiment, with losses that change and gradients that are clipped."""
    return (
        *SMALL[experiment],
        # five samples on two ranks: two batches for one, one for the other
        *(f"{word.rpartition('=')[0]}=5" for word in SMALL[experiment] if "test_" in word),
        "--data.init_args.evaluation_batch_size=2",
        "--trainer.max_steps=4",
        "--trainer.val_check_interval=2",
        "--trainer.log_every_n_steps=1",
        "--trainer.gradient_clip_val=0.5",
        "--model.init_args.schedule={class_path: Constant}",
    )


def fit(
    root: Path, experiment: str, how: str, run_id: str, *extra: str, before: Callable[[], None] | None = None
) -> int:
    """Trains on one process or two; the exit code of the first."""
    words = ["-c", f"experiments/{experiment}.yaml", *HOW[how], *settings(experiment), *extra]
    words += [f"--run.root={root}", f"--run.id={run_id}"]
    if how == "one" and before is None:
        return verb("fit", *words)
    ranks = 1 if how == "one" else 2
    codes = two_ranks(root, "fit", *words, before=before, ranks=ranks)
    said = "".join((root / f"rank{number}.txt").read_text() for number in range(ranks))
    assert set(codes[1:]) <= {0}, said
    assert codes[0] in (0, 85), said
    return codes[0]


def stop_after_three() -> None:
    """The last rank gets a signal in the third step."""
    plain = Task.training_step

    def training_step(self: Task, batch: object, batch_idx: int) -> object:
        if self.global_step == 2 and self.global_rank == self.trainer.world_size - 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        return plain(self, batch, batch_idx)

    Task.training_step = training_step  # type: ignore[assignment,method-assign]


def record(folder: Path) -> tuple[dict[str, float], dict[int, float]]:
    """Metrics of the record, and the training losses by step."""
    results = json.loads((folder / "results.json").read_text())
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return results["metrics"], {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}


def assert_equal_to_rounding(one: Path, other: Path) -> None:
    """Losses of all steps and all metrics are equal to 1e-6."""
    (metrics, losses), (other_metrics, other_losses) = record(one), record(other)
    assert len(set(losses.values())) == 4  # something was learnt
    assert other_losses == pytest.approx(losses, abs=1e-6)
    assert other_metrics == pytest.approx(metrics, abs=1e-6, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("experiment", SMALL)
def test_two_ranks_are_one_run_with_the_same_losses(tmp_path: Path, experiment: str) -> None:
    """Breaks if ranks see other samples, gradients are not averaged, or evaluation pads or waits: 5 samples on 2 ranks count 5."""
    for how in ("one", "ddp", "fsdp"):
        assert fit(tmp_path, experiment, how, how) == 0
    folders = {path.name: path for path in (tmp_path / experiment).iterdir()}
    assert folders.keys() == {"one", "ddp", "fsdp"}
    for how in ("ddp", "fsdp"):
        assert_equal_to_rounding(folders["one"], folders[how])
    if experiment == "vit_tiny":
        top1 = 5 * record(folders["fsdp"])[0]["test/top1"]
        assert top1 == pytest.approx(round(top1), abs=1e-5)
    files = [torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True) for folder in folders.values()]
    for file in files[1:]:  # of the same form, whoever wrote it
        assert file["state_dict"].keys() == files[0]["state_dict"].keys()
        groups = [file["optimizer_states"][0]["param_groups"] for file in (files[0], file)]
        assert [group["params"] for group in groups[0]] == [group["params"] for group in groups[1]]


@pytest.mark.slow
def test_a_new_run_on_two_ranks_has_one_folder(command: Command, tmp_path: Path) -> None:
    """Breaks if each process invents a run of its own when no id is given."""
    done = command(
        "fit", "-c", "experiments/vit_tiny.yaml", *HOW["ddp"], *settings("vit_tiny"), f"--run.root={tmp_path}"
    )
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "vit_tiny").iterdir()
    assert json.loads((folder / "results.json").read_text())["devices"] == 2


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    with contextlib.chdir(ROOT):
        assert fit(folder, "vit_tiny", "one", "whole") == 0
    return folder / "vit_tiny" / "whole"


MOVES = [("ddp", "one"), ("one", "ddp"), ("fsdp", "one"), ("one", "fsdp"), ("fsdp", "ddp"), ("ddp", "fsdp")]


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), MOVES)
def test_a_run_that_was_stopped_goes_on_elsewhere(whole: Path, tmp_path: Path, first: str, then: str) -> None:
    """Breaks if ranks do not agree on when to stop, the exit code is lost, or a checkpoint is of one kind of processes only.

    Moments that come to another parameter than theirs would change the last step.
    """
    assert fit(tmp_path, "vit_tiny", first, "cut", before=stop_after_three) == 85
    assert "stopped at step 3 of 4" in (tmp_path / "rank0.txt").read_text()
    assert fit(tmp_path, "vit_tiny", then, "cut") == 0
    assert_equal_to_rounding(whole, tmp_path / "vit_tiny" / "cut")


RANDOM = (  # in every step, and state beside the weights
    "--model.init_args.net.init_args.dropout=0.1",
    "--trainer.callbacks=[{class_path: MovingAverage, init_args: {decay: 0.5}}]",
    "--trainer.accumulate_grad_batches=2",
    "--data.init_args.workers=2",
)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_two_ranks_go_on_bit_for_bit(tmp_path: Path, how: str) -> None:
    """Breaks if anything that two processes go on with is not in the checkpoint: moments, random numbers, the average."""
    assert fit(tmp_path, "vit_tiny", how, "whole", *RANDOM) == 0
    assert fit(tmp_path, "vit_tiny", how, "cut", *RANDOM, before=stop_after_three) == 85
    assert fit(tmp_path, "vit_tiny", how, "cut", *RANDOM) == 0
    assert_same_run(tmp_path / "vit_tiny" / "whole", tmp_path / "vit_tiny" / "cut")


@pytest.fixture(scope="module")
def cut_in_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with sharded checkpoints that was stopped after three steps."""
    folder = tmp_path_factory.mktemp("shards")
    with contextlib.chdir(ROOT):
        assert fit(folder, "vit_tiny", "shards", "cut", before=stop_after_three) == 85
    return folder / "vit_tiny" / "cut"


@pytest.mark.slow
def test_shards_are_gone_on_with(whole: Path, tmp_path: Path) -> None:
    """Breaks if a sharded run cannot be resumed, or leaves other folders of shards behind."""
    run = tmp_path / "vit_tiny" / "cut"
    assert fit(tmp_path, "vit_tiny", "shards", "cut", before=stop_after_three) == 85
    assert fit(tmp_path, "vit_tiny", "shards", "cut") == 0
    assert_equal_to_rounding(whole, run)
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}


@pytest.mark.slow
def test_one_process_refuses_shards_in_two_lines(
    cut_in_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks if a run without shards meets such a folder with a traceback, or begins anew without a word."""
    shutil.copytree(cut_in_shards, tmp_path / "vit_tiny" / "cut")
    assert fit(tmp_path, "vit_tiny", "one", "cut") == 2
    what, how = capsys.readouterr().err.splitlines()[-2:]
    assert "is a folder of shards" in what
    assert "experiments/overlays/fsdp.yaml" in how


@pytest.mark.slow
def test_export_makes_one_file_of_shards(cut_in_shards: Path, tmp_path: Path) -> None:
    """Breaks if a shard is lost or out of its place, the card is missing, or the export is no start for another run."""
    assert verb("export", str(cut_in_shards), str(tmp_path / "out"), "--checkpoint", "last") == 0
    assert fit(tmp_path, "vit_tiny", "fsdp", "cut", before=stop_after_three) == 85
    file = torch.load(tmp_path / "vit_tiny" / "cut" / "checkpoints" / "last.ckpt", weights_only=True)
    state = {
        name.removeprefix("net."): tensor for name, tensor in file["state_dict"].items() if name.startswith("net.")
    }
    same(load_file(tmp_path / "out" / "model.safetensors"), state)
    assert "| checkpoint | `last.ckpt`, after 3 of 4 steps |" in (tmp_path / "out" / "README.md").read_text()
    start = f"{{class_path: ViTInitialisation, init_args: {{path: {tmp_path / 'out'}}}}}"
    assert fit(tmp_path, "vit_tiny", "one", "started", f"--model.init_args.init_from={start}") == 0


GPU = {  # overlays that no test can run, and the strategy that each makes
    "one_gpu": "SingleDeviceStrategy",
    "ddp": "DDPStrategy",
    "fsdp": "FullySharded",
}


@pytest.mark.parametrize(("overlay", "strategy"), GPU.items())
def test_overlays_for_gpus_make_a_trainer(
    overlay: str, strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks if Lightning does not know what an overlay asks for; that it trains on a GPU is not shown here."""
    monkeypatch.setattr("lightning.fabric.accelerators.cuda.num_cuda_devices", lambda: 8)
    monkeypatch.setattr("lightning.pytorch.accelerators.cuda.num_cuda_devices", lambda: 8)
    monkeypatch.setattr("lightning.pytorch.accelerators.cuda.CUDAAccelerator.is_available", staticmethod(lambda: True))
    monkeypatch.setattr(
        "lightning.pytorch.accelerators.cuda.CUDAAccelerator.parse_devices",
        staticmethod(lambda devices: list(range(8)) if devices in (-1, "auto") else list(range(int(devices)))),
    )
    made = parsed_trainer(overlay)
    assert type(made.strategy).__name__ == strategy
    assert made.num_devices == (1 if overlay == "one_gpu" else 8)
    assert made.precision == "bf16-mixed"


def test_the_tpu_overlay_is_what_lightning_understands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if its keys are not a trainer's; without torch_xla it must end in two lines, not in a traceback."""
    with pytest.raises(UserError, match=r"(?i)tpu"):
        parsed_trainer("tpu")


@pytest.mark.slow
@pytest.mark.parametrize("overlay", ["bf16", "debug", "activation_checkpointing"])
def test_overlays_for_any_machine_run(overlay: str, tmp_path: Path) -> None:
    """Breaks if an overlay does not go with an experiment."""
    words = ("-c", "experiments/vit_tiny.yaml", *TINY_IMAGES, "--trainer.max_steps=2", "--trainer.val_check_interval=2")
    words += ("-c", f"experiments/overlays/{overlay}.yaml", "--trainer.accelerator=cpu", f"--run.root={tmp_path}")
    assert verb("fit", *words, "--run.id=ID") == 0


def parsed_trainer(overlay: str) -> lightning.Trainer:
    """The trainer of an experiment with an overlay."""
    files = ["-c", "experiments/vit_tiny.yaml", "-c", f"experiments/overlays/{overlay}.yaml"]
    return Bench(files, run=False).trainer


class Bomb:
    """Makes a file when it is unpickled, if anything lets it."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.file}",)


@pytest.mark.slow
def test_broken_or_evil_shards_are_refused(cut_in_shards: Path, tmp_path: Path) -> None:
    """Breaks if damage goes unnoticed, or code that a plan, a shard or the rest carries is run."""
    good = cut_in_shards / "checkpoints" / "last.ckpt"
    assert damage(good) is None
    shard = sorted(path.name for path in good.glob("*.distcp"))[0]
    bomb = pickle.dumps(Bomb(tmp_path / "touched"))
    content = (good / shard).read_bytes()
    flipped = bytearray(content)
    flipped[len(flipped) // 2] ^= 4
    harms = {"short": (shard, content[:-100]), "flipped": (shard, bytes(flipped)), "evil plan": (PLAN, bomb)}
    for name, (file, harmed) in {**harms, "evil rest": ("meta.pt", bomb), "no plan": (PLAN, b"")}.items():
        folder = tmp_path / name / "last.ckpt"
        shutil.copytree(good, folder)
        (folder / file).write_bytes(harmed)
        with pytest.raises(UserError, match=name):
            consolidate(folder)
        assert last_complete(folder.parent)[0] is None
    assert not (tmp_path / "touched").exists()
    assert consolidate(good)["global_step"] == 3
