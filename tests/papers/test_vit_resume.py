"""A run of an image classifier that is stopped and goes on is the run that was never stopped, bit for bit."""

import json
from pathlib import Path

import pytest
from support import TINY_IMAGES, Command, assert_same_run, kill_after_step

SHORT = (
    "-c",
    "experiments/vit_tiny.yaml",
    *TINY_IMAGES,
    "--trainer.max_steps=30",
    "--trainer.val_check_interval=5",
    "--trainer.log_every_n_steps=1",
    "--checkpoint_last.every_n_train_steps=2",
    # randomness in every step, so that a step repeated with other numbers would show
    "--model.init_args.net.init_args.dropout=0.1",
    "--data.init_args.augmentation=ShiftedCrop",
    "--data.init_args.mixing=MixupCutMix",
)
PATIENT = "--trainer.callbacks=[{class_path: EarlyStopping, init_args: {monitor: val/top1, mode: max, patience: 99}}]"


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_bit_for_bit(command: Command, tmp_path: Path, workers: int) -> None:
    """Breaks if augmentation, mixing, dropout or the state of the stopping criterion were not those of the run."""
    arguments = ("fit", *SHORT, PATIENT, f"--data.init_args.workers={workers}", f"--run.root={tmp_path}")
    assert command(*arguments, "--run.id=whole").returncode == 0
    folder = tmp_path / "vit_tiny" / "cut"
    kill_after_step(7, folder, *arguments, "--run.id=cut")
    done = command(*arguments, "--run.id=cut")
    assert done.returncode == 0, done.stderr
    assert "going on from" in done.stderr
    assert_same_run(tmp_path / "vit_tiny" / "whole", folder)


def test_a_run_that_had_converged_does_not_train_on(command: Command, tmp_path: Path) -> None:
    """Breaks if a run that was killed between the end of its training and its test would train to the next validation."""
    impatient = PATIENT.replace("99", "1").replace(
        "}}]", ", min_delta: 1.0}}]"
    )  # no validation is better by 100 points
    arguments = ("fit", *SHORT, impatient, f"--run.root={tmp_path}", "--run.id=one")
    assert command(*arguments).returncode == 0
    record = tmp_path / "vit_tiny" / "one" / "results.json"
    first = json.loads(record.read_text())
    assert first["steps"] == 10  # the second validation
    record.unlink()
    assert command(*arguments).returncode == 0
    again = json.loads(record.read_text())
    assert again["steps"] == first["steps"]
    assert again["metrics"] == first["metrics"]
