"""A run that is stopped and goes on is the run that was never stopped: RELIABILITY of training, bit for bit."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import ROOT, TINY, Command, assert_same_run, command_line, environment, same, wait_for_step

EXPERIMENT = "experiments/vivit_fact_encoder.yaml"
STEPS = 40  # enough that a signal arrives while there is something left to do
SHORT = (
    *TINY,
    f"--trainer.max_steps={STEPS}",
    "--trainer.val_check_interval=5",
    "--trainer.log_every_n_steps=1",
    "--checkpoint_last.every_n_train_steps=2",
    # randomness in every step, so that a step repeated with other numbers would show
    "--model.init_args.net.init_args.dropout=0.1",
    "--model.init_args.net.init_args.stochastic_depth=0.1",
)


def start(folder: Path, run_id: str, *extra: str) -> subprocess.Popen[str]:
    """Starts a run in the background."""
    return subprocess.Popen(
        command_line("fit", "-c", EXPERIMENT, *SHORT, *extra, f"--run.root={folder}", f"--run.id={run_id}"),
        cwd=ROOT,
        env=environment(folder),
        text=True,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )


def go(command: Command, folder: Path, run_id: str, *extra: str) -> subprocess.CompletedProcess[str]:
    """A run to its end."""
    done = command("fit", "-c", EXPERIMENT, *SHORT, *extra, f"--run.root={folder}", f"--run.id={run_id}")
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    process = start(folder, "whole")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return folder / "vivit_fact_encoder" / "whole"


# what cuts, the exit code that a script sees, and the step after which it strikes
CUTS = [(signal.SIGKILL, -9, 3), (signal.SIGINT, 130, 3), (signal.SIGTERM, 143, 7), (signal.SIGUSR1, 85, 4)]


@pytest.mark.parametrize(("cut", "code", "step"), CUTS)
def test_a_run_cut_by_a_signal_goes_on_bit_for_bit(
    whole: Path, command: Command, tmp_path: Path, cut: signal.Signals, code: int, step: int
) -> None:
    """Breaks if any state (weights, moments, rate, sample order, random numbers, best score) is not in the checkpoint."""
    # the whole process group gets the signal, as from a terminal or a batch system: workers must leave it to their parent
    process = start(tmp_path, "cut", "--data.init_args.workers=2")
    folder = tmp_path / "vivit_fact_encoder" / "cut"
    wait_for_step(folder, step, process)
    os.killpg(process.pid, cut)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == code, errors
    assert not (folder / "results.json").exists()
    if cut != signal.SIGKILL:
        assert "saved" in errors
    done = go(command, tmp_path, "cut")
    assert "going on from" in done.stderr
    assert_same_run(whole, folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [
        ("--data.init_args.workers=2",),
        ("--trainer.accumulate_grad_batches=2",),
        (
            "--trainer.accumulate_grad_batches=4",
            "--data.init_args.workers=2",
            "--checkpoint_last.every_n_train_steps=1",
        ),
    ],
    ids=["workers", "accumulation", "both"],
)
def test_workers_and_accumulation_do_not_spoil_it(command: Command, tmp_path: Path, how: tuple[str, ...]) -> None:
    """Breaks if samples that workers read ahead are lost, or a kill in the middle of an accumulated step repeats a part of it."""
    go(command, tmp_path, "whole", *how)
    process = start(tmp_path, "cut", *how)
    folder = tmp_path / "vivit_fact_encoder" / "cut"
    wait_for_step(folder, 4, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    go(command, tmp_path, "cut", *how)
    assert_same_run(tmp_path / "vivit_fact_encoder" / "whole", folder)


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_signal_during_validation_is_obeyed_after_it(command: Command, tmp_path: Path, accumulate: int) -> None:
    """Breaks if a validation is cut, lost or done twice, or a checkpoint is taken in the middle of an accumulated step."""
    how = (f"--trainer.accumulate_grad_batches={accumulate}",)
    go(command, tmp_path, "whole", *how)
    program = (
        "import os, signal, sys\n"
        "from lightning_vl.task import Task\n"
        "plain = Task._evaluate\n"
        "def evaluate(self, prefix, batch):\n"
        "    if prefix == 'val' and self.global_step == 5:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return plain(self, prefix, batch)\n"
        "Task._evaluate = evaluate\n"
        "from lightning_vl.__main__ import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    arguments = ["fit", "-c", EXPERIMENT, *SHORT, *how, f"--run.root={tmp_path}", "--run.id=cut"]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True
    )
    assert done.returncode == 143, done.stderr
    assert "stopped at step 5" in done.stderr
    go(command, tmp_path, "cut", *how)
    assert_same_run(tmp_path / "vivit_fact_encoder" / "whole", tmp_path / "vivit_fact_encoder" / "cut")


@pytest.mark.slow
def test_a_signal_while_saving_is_obeyed_after_the_next_step(whole: Path, command: Command, tmp_path: Path) -> None:
    """Breaks if a save is cut by the signal that asks for one, or the run saves twice in different places."""
    program = (
        "import os, signal, sys\n"
        "from lightning_vl.checkpoints import WholeCheckpoints\n"
        "plain = WholeCheckpoints.save_checkpoint\n"
        "def save(self, checkpoint, path, storage_options=None):\n"
        "    if checkpoint['global_step'] == 7:\n"
        "        os.kill(os.getpid(), signal.SIGUSR1)\n"
        "    return plain(self, checkpoint, path, storage_options)\n"
        "WholeCheckpoints.save_checkpoint = save\n"
        "from lightning_vl.__main__ import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    arguments = ["fit", "-c", EXPERIMENT, *SHORT, f"--run.root={tmp_path}", "--run.id=cut"]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True
    )
    assert done.returncode == 85, done.stderr
    assert "stopped at step" in done.stderr
    folder = tmp_path / "vivit_fact_encoder" / "cut"
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    go(command, tmp_path, "cut")
    assert_same_run(whole, folder)


def test_killed_while_saving_the_next_start_finds_the_last_complete_checkpoint(
    whole: Path, command: Command, tmp_path: Path
) -> None:
    """Breaks if a save that a kill cut off hides the one before it, or is passed over silently.

    The kill strikes inside of a save: a process of its own stops at the first partial file after step 4.
    """
    killer = (
        "import os, signal, sys\n"
        "import lightning_vl.checkpoints as c\n"
        "plain = os.replace\n"
        "saves = []\n"
        "def replace(source, target):\n"
        "    saves.append(target)\n"
        "    if str(target).endswith('last.ckpt') and len(saves) > 2:\n"
        "        os.truncate(source, os.path.getsize(source) // 2)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    plain(source, target)\n"
        "c.os.replace = replace\n"
        "from lightning_vl.__main__ import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    arguments = ["fit", "-c", EXPERIMENT, *SHORT, f"--run.root={tmp_path}", "--run.id=cut"]
    done = subprocess.run(
        [sys.executable, "-c", killer, *arguments], cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    folder = tmp_path / "vivit_fact_encoder" / "cut"
    assert (folder / "checkpoints" / "last.ckpt.partial").exists()
    again = go(command, tmp_path, "cut")
    assert "skipped last.ckpt.partial: a save was cut off" in again.stderr
    assert "going on from" in again.stderr
    assert_same_run(whole, folder)


def test_a_damaged_checkpoint_is_passed_over_and_named(whole: Path, command: Command, tmp_path: Path) -> None:
    """Breaks if a bit flipped on disk ends a run for good, or goes into it: the best checkpoint is older and whole."""
    shutil.copytree(whole, tmp_path / "vivit_fact_encoder" / "cut")
    folder = tmp_path / "vivit_fact_encoder" / "cut"
    (folder / "results.json").unlink()
    last = folder / "checkpoints" / "last.ckpt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 4
    last.write_bytes(content)
    done = go(command, tmp_path, "cut")
    assert "skipped last.ckpt: damaged" in done.stderr
    assert "best.ckpt" in done.stderr
    weights = [torch.load(f / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for f in (whole, folder)]
    same(*weights)


def test_cut_between_training_and_testing_only_the_test_is_done_again(
    whole: Path, command: Command, tmp_path: Path
) -> None:
    """Breaks if a run whose training is complete trains further, or cannot be finished."""
    folder = tmp_path / "vivit_fact_encoder" / "cut"
    shutil.copytree(whole, folder)
    (folder / "results.json").unlink()
    go(command, tmp_path, "cut")
    assert_same_run(whole, folder)
