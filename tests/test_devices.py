"""Two processes are one: losses, evaluation and the record of a run on two gloo ranks."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT, TINY, TINY_IMAGES, TINY_TEXT, Command, environment

DDP = ("-c", "experiments/overlays/cpu_ddp.yaml")
FSDP = ("-c", "experiments/overlays/cpu_fsdp.yaml")
EXPERIMENT = "experiments/vivit_fact_encoder.yaml"
STEPS = (
    *TINY,
    "--trainer.max_steps=4",
    "--trainer.val_check_interval=2",
    "--trainer.log_every_n_steps=1",
    # seven samples: an uneven number for two ranks
    "--data.init_args.source.init_args.test_clips=7",
)


def record(folder: Path) -> tuple[dict[str, float], dict[int, float]]:
    """Metrics of the record, and the training losses by step."""
    results = json.loads((folder / "results.json").read_text())
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return results["metrics"], {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}


SMALL = {  # an experiment of each system, made small; losses that change, gradients that are clipped
    "vivit_fact_encoder": TINY,
    "vit_tiny": TINY_IMAGES,
    "bert_tiny": TINY_TEXT,
    # towers without batch norm, which is of a process's own samples
    "clip_tiny": (
        *TINY_IMAGES,
        "--zero_shot=[]",
        "--model.init_args.net.init_args.image={class_path: VisionTransformer, init_args: {image_size: 64, patch_size: 16, "
        "dim: 32, layers: 2, heads: 2, embed_dim: 128}}",
    ),
}


def settings(experiment: str) -> tuple[str, ...]:
    """The words that make a short run of an experiment."""
    source = [word for word in SMALL[experiment] if "test_" in word]  # seven samples: an uneven number for two ranks
    return (
        *SMALL[experiment],
        *(f"{word.rpartition('=')[0]}=7" for word in source),
        "--data.init_args.evaluation_batch_size=2",  # 7 are 2 batches of one rank and 2 of the other, 24 are 6
        "--trainer.max_steps=4",
        "--trainer.val_check_interval=2",
        "--trainer.log_every_n_steps=1",
        "--trainer.gradient_clip_val=0.5",
        "--model.init_args.schedule={class_path: Constant}",
    )


@pytest.mark.slow
@pytest.mark.parametrize("experiment", SMALL)
def test_two_ranks_are_one_run_with_the_same_losses(command: Command, tmp_path: Path, experiment: str) -> None:
    """Breaks if ranks see other samples, gradients are not averaged, or evaluation pads: 7 samples on 2 ranks count 7."""
    for name, devices in (("one", ()), ("ddp", DDP), ("fsdp", FSDP)):
        words = ("-c", f"experiments/{experiment}.yaml", *devices, *settings(experiment))
        done = command("fit", *words, f"--run.root={tmp_path}", f"--run.id={name}")
        assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / experiment).iterdir()} == {"one", "ddp", "fsdp"}
    one, losses_of_one = record(tmp_path / experiment / "one")
    assert len(losses_of_one) == 4
    assert len(set(losses_of_one.values())) == 4
    for name in ("ddp", "fsdp"):
        two, losses_of_two = record(tmp_path / experiment / name)
        assert losses_of_two == pytest.approx(losses_of_one, abs=1e-6)
        for metric, value in one.items():
            assert two[metric] == pytest.approx(value, abs=1e-6), metric
        if experiment == EXPERIMENT:
            assert two["test/top1"] * 7 == pytest.approx(round(two["test/top1"] * 7), abs=1e-5)


@pytest.mark.slow
def test_a_new_run_on_two_ranks_has_one_folder(command: Command, tmp_path: Path) -> None:
    """Breaks if each process invents a run of its own when no id is given."""
    overlay = ("-c", "experiments/overlays/cpu_ddp.yaml")
    done = command("fit", "-c", EXPERIMENT, *overlay, *STEPS, f"--run.root={tmp_path}")
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "vivit_fact_encoder").iterdir()
    assert json.loads((folder / "results.json").read_text())["devices"] == 2


@pytest.mark.slow
def test_two_ranks_stopped_by_a_signal_go_on_as_one(command: Command, tmp_path: Path) -> None:
    """Breaks if ranks do not agree on when to stop, the exit code is lost, or the position counts one rank's samples only."""
    done = command("fit", "-c", EXPERIMENT, *STEPS, f"--run.root={tmp_path}", "--run.id=whole")
    assert done.returncode == 0, done.stderr
    program = (
        "import os, signal, sys\n"
        "from lightning_vl.task import Task\n"
        "plain = Task.training_step\n"
        "def training_step(self, batch, batch_idx):\n"
        "    if self.global_step == 2 and self.global_rank == 1:\n"
        "        os.kill(os.getpid(), signal.SIGUSR1)\n"
        "    return plain(self, batch, batch_idx)\n"
        "Task.training_step = training_step\n"
        "from lightning_vl.__main__ import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    script = tmp_path / "cut.py"
    script.write_text(program)
    arguments = ["fit", "-c", EXPERIMENT, "-c", "experiments/overlays/cpu_ddp.yaml", *STEPS]
    cut = subprocess.run(
        [sys.executable, str(script), *arguments, f"--run.root={tmp_path}", "--run.id=cut"],
        cwd=ROOT,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
    )
    assert cut.returncode == 85, cut.stderr
    assert "stopped at step 3" in cut.stderr
    done = command("fit", "-c", EXPERIMENT, *STEPS, f"--run.root={tmp_path}", "--run.id=cut")
    assert done.returncode == 0, done.stderr
    assert "going on from" in done.stderr
    whole, losses = record(tmp_path / "vivit_fact_encoder" / "whole")
    resumed, resumed_losses = record(tmp_path / "vivit_fact_encoder" / "cut")
    assert resumed_losses == pytest.approx(losses, abs=1e-6)
    assert resumed == pytest.approx(whole, abs=1e-6)
