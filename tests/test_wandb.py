"""W&B without a key and without a network: real offline runs, read back from their files."""

import json
from pathlib import Path

import pytest
from support import TINY, Command, offline_runs

from lightning_vl.report.results import Run, find_runs
from lightning_vl.report.wandb_runs import offline_run

EXPERIMENT = "experiments/vivit_fact_encoder.yaml"
STEPS = (*TINY, "--trainer.max_steps=2", "--trainer.val_check_interval=1", "--trainer.log_every_n_steps=1")
SECRET = "canary-0123456789abcdef0123456789abcdef01234567"


def test_offline_without_a_key_with_the_whole_configuration(command: Command, tmp_path: Path) -> None:
    """Breaks if W&B prompts, waits for a network, misses a part of the configuration, or finds a secret in its files."""
    keys = {"HF_TOKEN": SECRET, "AWS_SECRET_ACCESS_KEY": SECRET, "WANDB_MODE": ""}
    done = command(
        "fit", "-c", EXPERIMENT, *STEPS, f"--run.root={tmp_path}", "--run.id=one", "--run.tags=[tried]", env=keys
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "vivit_fact_encoder" / "one"
    (run,) = offline_runs(folder)
    text = json.dumps(run)
    for value in (
        "vivit_fact_encoder-one",
        "vivit_fact_encoder/one",
        "tried",
        "MovingDigits",
        "WarmupCosine",
        "val/top1",
    ):
        assert value in text, value
    assert "test/examples" in text
    record = json.loads((folder / "results.json").read_text())
    read = offline_run(list(folder.glob("wandb/offline-run-*/*.wandb")))
    assert isinstance(read, Run)  # what `compare` makes of W&B's file is what it makes of the run folder
    assert read.metrics == pytest.approx(record["metrics"])
    assert (read.experiment, read.id, read.seed) == (record["experiment"], record["run"], record["seed"])
    assert read.results["model"] == record["model"]
    assert read.results["data"]["name"] == record["data"]["name"]
    assert [item["met"] for item in read.results["expected"]] == [item["met"] for item in record["expected"]]
    ours = find_runs([folder])[0][0]
    assert read.config() == ours.config()
    assert read.curves(["val/top1", "train/loss"]) == ours.curves(["val/top1", "train/loss"])
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path
    assert SECRET not in done.stdout + done.stderr


def test_a_key_of_the_user_reaches_no_file(command: Command, tmp_path: Path) -> None:
    """Breaks if the key is written into a configuration, a log, a checkpoint or W&B's files, or a missing network hangs."""
    keys = {"WANDB_API_KEY": SECRET[-40:], "WANDB_MODE": "online"}
    done = command("fit", "-c", EXPERIMENT, *STEPS, f"--run.root={tmp_path}", "--run.id=one", env=keys)
    assert done.returncode == 0, done.stderr
    assert "cannot be reached: W&B logs offline" in done.stderr
    assert list(tmp_path.glob("vivit_fact_encoder/one/wandb/offline-run-*/*.wandb"))
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert SECRET[-40:].encode() not in path.read_bytes(), path


def test_a_resumed_run_is_one_run_whose_steps_do_not_go_back(command: Command, tmp_path: Path) -> None:
    """Breaks if a restart is another run at W&B, or logs a step for a second time."""
    folder = tmp_path / "vivit_fact_encoder" / "one"
    arguments = ("fit", "-c", EXPERIMENT, *STEPS, f"--run.root={tmp_path}", "--run.id=one")
    for _ in range(2):
        assert command(*arguments, env={"WANDB_MODE": "offline"}).returncode == 0
        (folder / "results.json").unlink()
        (folder / "checkpoints" / "last.ckpt").unlink()  # goes on from the best one, which is older
    runs = offline_runs(folder)
    assert len(runs) == 2
    logged: list[tuple[int, str]] = []
    for records in runs:
        assert "vivit_fact_encoder-one" in json.dumps(records)
        for record in records:
            if record["type"] == "history":
                row = record["history"]["item"]
                logged += [(int(row["trainer/global_step"]), key) for key in row if key.startswith(("train/", "val/"))]
    assert any(key == "train/loss" for _, key in logged)
    assert len(logged) == len(set(logged)), "a step was logged twice"
    assert [step for step, _ in logged] == sorted(step for step, _ in logged), "a step went back"
