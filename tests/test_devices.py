"""Two processes are one: losses, evaluation and the record of a run on two gloo ranks."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT, TINY, Command, environment

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


@pytest.mark.slow
def test_two_ranks_are_one_run_with_the_same_losses(command: Command, tmp_path: Path) -> None:
    """Breaks if ranks see other samples, gradients are not averaged, or evaluation pads: 7 samples on 2 ranks count 7."""
    for name, devices in (("one", ()), ("two", ("-c", "experiments/overlays/cpu_ddp.yaml"))):
        done = command("fit", "-c", EXPERIMENT, *devices, *STEPS, f"--run.root={tmp_path}", f"--run.id={name}")
        assert done.returncode == 0, done.stderr
    assert [path.name for path in sorted((tmp_path / "vivit_fact_encoder").iterdir())] == ["one", "two"]
    one, losses_of_one = record(tmp_path / "vivit_fact_encoder" / "one")
    two, losses_of_two = record(tmp_path / "vivit_fact_encoder" / "two")
    assert len(losses_of_one) == 4
    assert losses_of_two == pytest.approx(losses_of_one, abs=1e-6)
    for name, value in one.items():
        assert two[name] == pytest.approx(value, abs=1e-6), name
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
