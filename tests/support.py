"""How tests start the command: a process of its own, without keys or a network."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BLOCK_NETWORK = ROOT / "tests" / "no_network"  # a sitecustomize that blocks sockets in child processes

Command = Callable[..., subprocess.CompletedProcess[str]]

# metrics that no two runs share
SPEEDS = {
    f"train/{name}"
    for name in (
        "samples_per_second",
        "tokens_per_second",
        "data_wait",
        "teraflops_per_second",
        "utilisation",
        "memory_gib",
    )
}

# an experiment's file at the paper's size, made small: network, video and batch; its data is embedded video
SHRUNK = (
    "--model.init_args.net.init_args.embedding.init_args={frames: 8, image_size: 32, tubelet: [2, 16, 16], dim: 32}",
    "--model.init_args.net.init_args.layers=2",
    "--model.init_args.net.init_args.heads=4",
    "--model.init_args.net.init_args.mlp_dim=64",
    "--data.init_args.sampling.init_args={frames: 8, stride: 1}",
    "--data.init_args.training.init_args.short_side=36",
    "--data.init_args.training.init_args.crop=32",
    "--data.init_args.evaluation.init_args={short_side: 36, crop: 32}",
    "--data.init_args.batch_size=4",
    "--data.init_args.evaluation_batch_size=4",
    "--data.init_args.workers=0",
    "--trainer.max_steps=1",
    "--trainer.val_check_interval=1",
)

TINY = (
    # an experiment's file made small enough for a test: a few steps on few, small clips
    "--data.init_args.workers=0",
    "--data.init_args.batch_size=8",
    "--data.init_args.evaluation_batch_size=8",
    "--data.init_args.source.init_args.train_clips=40",
    "--data.init_args.source.init_args.validation_clips=24",
    "--data.init_args.source.init_args.test_clips=24",
)

TINY_IMAGES = (
    # the same for embedded images; transfer is tested by itself
    "--data.init_args.workers=0",
    "--data.init_args.batch_size=8",
    "--data.init_args.evaluation_batch_size=8",
    "--data.init_args.source.init_args.train_images=40",
    "--data.init_args.source.init_args.validation_images=24",
    "--data.init_args.source.init_args.test_images=24",
    "--transfer=[]",
)

TINY_TEXT = (
    # the same for embedded text, which is small as it is
    "--data.init_args.workers=0",
    "--data.init_args.batch_size=8",
    "--data.init_args.evaluation_batch_size=64",
)

SHRUNK_BERT = (
    # BERT at the paper's size, made small
    "--model.init_args.net.init_args.bert.init_args.vocabulary_size=300",
    "--model.init_args.net.init_args.bert.init_args.layers=2",
    "--model.init_args.net.init_args.bert.init_args.dim=32",
    "--model.init_args.net.init_args.bert.init_args.heads=4",
    "--model.init_args.net.init_args.bert.init_args.mlp_dim=64",
    "--data.init_args.phases=[{length: 32, steps: 1}, {length: 512, steps: 1}]",
    "--data.init_args.batch_size=4",
    "--data.init_args.evaluation_batch_size=4",
    "--data.init_args.workers=0",
    "--trainer.max_steps=2",
    "--trainer.val_check_interval=1",
)

SHRUNK_VIT = (
    # a ViT at the paper's size, made small, on images of a few colours
    "--model.init_args.net.init_args.image_size=32",
    "--model.init_args.net.init_args.patch_size=16",
    "--model.init_args.net.init_args.dim=32",
    "--model.init_args.net.init_args.layers=2",
    "--model.init_args.net.init_args.heads=4",
    "--model.init_args.net.init_args.mlp_dim=64",
    "--model.init_args.net.init_args.classes=4",
    "--data.init_args.source.init_args.classes=4",
    "--data.init_args.image_size=32",
    "--data.init_args.batch_size=4",
    "--data.init_args.evaluation_batch_size=4",
    "--data.init_args.workers=0",
    "--trainer.max_steps=1",
    "--trainer.val_check_interval=1",
)

SHRUNK_CLIP = (
    # a CLIP at the paper's size, made small; the text tower keeps the vocabulary
    "--model.init_args.net.init_args.text.init_args.dim=32",
    "--model.init_args.net.init_args.text.init_args.layers=1",
    "--model.init_args.net.init_args.text.init_args.heads=2",
    "--model.init_args.net.init_args.text.init_args.embed_dim=16",
    "--model.init_args.net.init_args.image.init_args.embed_dim=16",
    "--model.init_args.net.init_args.image.init_args.image_size=32",
    "--data.init_args.image_size=32",
    "--data.init_args.batch_size=4",
    "--data.init_args.evaluation_batch_size=8",
    "--data.init_args.workers=0",
    "--trainer.max_steps=1",
    "--trainer.val_check_interval=1",
)


def tiny(file: str) -> tuple[str, ...]:
    """What makes an experiment on embedded data small enough for a test."""
    stem = Path(file).stem
    if stem.startswith("clip_"):
        return (*TINY_IMAGES, "--zero_shot=[]")
    return TINY_TEXT if stem.startswith("bert_") else TINY_IMAGES if stem.startswith(("vit_", "bit_")) else TINY


def given_by_the_user(file: str) -> list[str]:
    """What an experiment's file leaves to the command line: where the data is, and the weights to start from."""
    if Path(file).parent.name == "experiments":  # on embedded data
        return []
    import yaml

    recipe = yaml.safe_load((ROOT / file).read_text())
    start = ["--model.init_args.init_from.init_args.path=/weights.ckpt"]
    if (recipe["model"]["init_args"].get("init_from") or {}).get("class_path") == "TowerInitialisation":
        start = [
            f"--model.init_args.init_from.init_args.{tower}.init_args.path=/{tower}.pt" for tower in ("image", "text")
        ]
    source = recipe["data"]["init_args"]["source"]
    root = "--data.init_args.source.init_args.root=/data"
    if source["class_path"] == "InMemory":
        root = root.replace("source.init_args", "source.init_args.source.init_args")
    if source["class_path"] in ("JoinedDocuments", "JoinedCaptions", "DrawnScenes") or "path" in source.get(
        "init_args", {}
    ):
        root = ""  # a set of the hub has its name, joined ones have theirs, and scenes are drawn
    vocabulary = recipe["data"]["init_args"].get("vocabulary", {"class_path": "TrainedVocabulary"})["class_path"]
    given = vocabulary in ("VocabularyFile", "CheckpointVocabulary")
    return [
        *([root] if root else []),
        *(["--data.init_args.vocabulary.init_args.path=/vocab.txt"] if given else []),
        *(start if recipe["model"]["init_args"].get("init_from") else []),
    ]


def verb(*arguments: str) -> int:
    """The command in this process: the exit code."""
    from lightning_vl.__main__ import main

    return main(arguments)


def command_line(*arguments: str) -> list[str]:
    """The command under test."""
    return [sys.executable, "-m", "lightning_vl", *arguments]


def environment(folder: Path, extra: dict[str, str] | None = None) -> dict[str, str]:
    """An environment without keys and network, its home and caches in the test's folder."""
    kept = {
        key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "SLURM_", "LIGHTNING_VL_RUN"))
    }
    return {
        **kept,
        "HOME": str(folder),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "PYTHONPATH": os.pathsep.join([str(BLOCK_NETWORK), str(ROOT)]),
        "WANDB_MODE": "disabled",
        **(extra or {}),
    }


def write_video(path: Path, frames: int, size: tuple[int, int] = (48, 64), rate: int = 12) -> None:
    """A real video file: frame i is a grey of brightness 8 i with a moving white square, h x w pixels."""
    import av
    import numpy as np

    codec = "libvpx-vp9" if path.suffix == ".webm" else "libx264"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        for i in range(frames):
            image = np.full((*size, 3), min(8 * i, 250), np.uint8)
            left = (3 * i) % (size[1] - 8)
            image[8:16, left : left + 8] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def rows(folder: Path) -> dict[int, dict[str, float]]:
    """Metrics by step, the later line holding, speeds left out."""
    merged: dict[int, dict[str, float]] = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        merged.setdefault(row.pop("step"), {}).update(row)
    return {step: {k: v for k, v in row.items() if k not in SPEEDS} for step, row in merged.items()}


def same(one: object, other: object, path: str = "") -> None:
    """Asserts bit equality of nested tensors and values."""
    import torch

    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), path  # type: ignore[arg-type]
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), path  # type: ignore[attr-defined]
        for key in one:
            same(one[key], other[key], f"{path}.{key}")  # type: ignore[index]
    elif isinstance(one, list | tuple):
        for i, (a, b) in enumerate(zip(one, other, strict=True)):  # type: ignore[call-overload]
            same(a, b, f"{path}[{i}]")
    else:
        assert one == other, path


def assert_same_run(one: Path, other: Path) -> None:
    """Parameters, optimiser, schedule, position of the data and every logged value are equal."""
    assert rows(one) == rows(other)
    import torch

    a, b = (torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True) for folder in (one, other))
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        same(a[key], b[key], key)
    position = [c["loops"]["fit_loop"]["state_dict"]["combined_loader"] for c in (a, b)]
    assert position[0] == position[1]
    results = [json.loads((folder / "results.json").read_text()) for folder in (one, other)]
    assert results[0]["metrics"] == results[1]["metrics"]
    assert results[0]["samples_seen"] == results[1]["samples_seen"]


def offline_runs(folder: Path) -> list[list[dict[str, Any]]]:
    """The records that W&B's own reader finds in each of a run folder's offline runs."""
    found = []
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        done = subprocess.run(
            [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        found.append([json.loads(line) for line in done.stdout.splitlines()])
    return found


def kill_after_step(step: int, folder: Path, *arguments: str) -> None:
    """Runs the command until the run's metrics file has a step, then kills it and all its processes."""
    process = subprocess.Popen(
        command_line(*arguments),
        cwd=ROOT,
        env=environment(folder.parents[1]),
        text=True,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    wait_for_step(folder, step, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=600)


def wait_for_step(folder: Path, step: int, process: subprocess.Popen[str]) -> None:
    """Waits until the metrics file has a step."""
    path = folder / "metrics.jsonl"
    end = time.monotonic() + 600  # of a machine that is busy with other things
    while time.monotonic() < end:
        if path.exists() and any(json.loads(line)["step"] >= step for line in path.read_text().splitlines()[:-1]):
            return
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.02)
    raise AssertionError(f"step {step} was not reached")


def two_ranks(folder: Path, *arguments: str, before: Callable[[], None] | None = None, ranks: int = 2) -> list[int]:
    """The command on two processes of this machine, as torchrun would start them: their exit codes.

    They are forked from this one, which has imported everything already.

    Args:
        folder: for what they print, in rank0.txt and rank1.txt.
        arguments: of the command, --run.id among them.
        before: called in each process first.
        ranks: or on another number.
    """
    import multiprocessing

    from lightning_vl.__main__ import main

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def rank(number: int) -> None:
        out = os.open(folder / f"rank{number}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"}
        os.environ |= {
            "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks),
            "GROUP_RANK": "0",
            "GROUP_WORLD_SIZE": "1",
        }
        os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number)}
        if before is not None:
            before()
        code = 1
        try:
            code = main(arguments)
        except SystemExit as error:
            code = int(error.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=rank, args=(number,)) for number in range(ranks)]
    for process in processes:
        process.start()
    codes = []
    for process in processes:
        process.join(600)
        if process.is_alive():
            process.kill()
            process.join()
        codes.append(process.exitcode if process.exitcode is not None else 1)
    return codes


def batches(experiment: str, number: int, size: int = 8) -> tuple[Any, list[Any]]:
    """An experiment's task and the first training batches of its data, on the device as they would be."""
    from lightning_vl.cli import build
    from lightning_vl.data.stream import Key, KeyedDataset

    made = build([str(ROOT / "experiments" / f"{experiment}.yaml")], tiny(experiment))
    made.data.setup("fit")
    keyed = KeyedDataset(made.data.datasets["train"], made.data.collate, 0, replace_corrupt=True)
    found = []
    for first in range(0, number * size, size):
        batch = keyed.__getitems__([Key(0, index) for index in range(first, first + size)])
        found.append(made.data.on_after_batch_transfer(batch, 0))
    return made.task, found


def allocated(work: Callable[[], object]) -> tuple[int, int]:
    """Bytes held at once while something works, at the most and in the end, beyond those held before."""
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept = work()
    results = profiler.profiler.kineto_results
    changes = sorted((event.start_ns(), event.nbytes()) for event in results.events() if event.name() == "[memory]")
    held = list(accumulate(change for _, change in changes))
    del kept
    return max(held), held[-1]
