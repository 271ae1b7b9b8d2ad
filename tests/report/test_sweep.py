"""The verb `sweep`: its plan, what it runs again, and the real thing on experiments of a few steps."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from support import ROOT, TINY, command_line, environment

from lightning_vl.__main__ import main
from lightning_vl.report import sweep as module
from lightning_vl.report.family import read_sweep
from lightning_vl.report.sweep import tasks

NAMES = ("vivit_fact_encoder", "vivit_avg_pool")
SHORT = (*TINY, "--trainer.max_steps=4", "--trainer.val_check_interval=2", "--trainer.log_every_n_steps=1")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with two of the repository's experiments and a sweep of a few steps over them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").mkdir()
    for name in NAMES:
        (tmp_path / "experiments" / f"{name}.yaml").write_bytes((ROOT / "experiments" / f"{name}.yaml").read_bytes())
    write(tmp_path)
    return tmp_path


def write(folder: Path, **changes: object) -> None:
    """Write the sweep file."""
    content: dict[str, object] = {
        "name": "short",
        "title": "Short",
        "experiments": [f"experiments/{name}.yaml" for name in NAMES],
        "seeds": [0, 1],
        "metric": "test/top1",
        "differ_only_in": ["model.init_args.net"],
        "overrides": list(SHORT),
    }
    (folder / "sweep.yaml").write_text(yaml.safe_dump(content | changes))


def finish(task: module.Task) -> None:
    """Leave what a finished run leaves."""
    task.folder.mkdir(parents=True)
    record = {"schema": 1, "experiment": task.experiment, "run": task.folder.name, "status": "finished"}
    (task.folder / "results.json").write_text(json.dumps({**record, "seed": task.seed, "metrics": {"test/top1": 0.5}}))


def test_dry_run_prints_the_commands(here: Path, capsys) -> None:
    """What is printed can be pasted: every experiment with every seed, a fixed run id, the overrides, and nothing is run."""
    assert main(["sweep", "sweep.yaml", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    fits = [line for line in lines if " fit " in line]
    assert fits == [
        f"python -m lightning_vl fit -c experiments/{name}.yaml --seed_everything {seed} --run.id short-seed{seed} "
        + " ".join(SHORT)
        for seed in (0, 1)
        for name in NAMES
    ]
    assert any(line.startswith("python -m lightning_vl profile experiments/vivit_fact_encoder.yaml") for line in lines)
    assert not (here / "runs").exists()


def test_finished_runs_are_skipped(here: Path, capsys) -> None:
    """A second call runs what is missing and nothing else."""
    first, *others = tasks(read_sweep("sweep.yaml"))
    finish(first)
    assert main(["sweep", "sweep.yaml", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert f"# finished: {first.name}" in out
    assert first.command not in out
    assert all(task.command in out for task in others)


def test_finished_run_of_another_configuration_is_refused(here: Path, capsys) -> None:
    """Seeds trained before and after a change of the experiment must not end up in one mean."""
    every = tasks(read_sweep("sweep.yaml"))
    finish(every[0])
    (here / "runs" / "sweeps" / "short").mkdir(parents=True)
    kept = {task.log.stem: task.digest for task in every}
    (here / "runs" / "sweeps" / "short" / "runs.json").write_text(json.dumps(kept))
    file = here / "experiments" / f"{every[0].experiment}.yaml"
    text = file.read_text()

    file.write_text("# a comment\n" + text + "\nexpected: [{metric: test/top1, value: 0.9}]\n")
    assert main(["sweep", "sweep.yaml", "--dry-run"]) == 0  # neither changes what was run
    file.write_text(text.replace("batch_size: 32", "batch_size: 64"))
    (here / "experiments" / f"{every[1].experiment}.yaml").write_text(file.read_text())  # the family stays one
    capsys.readouterr()
    write(here, differ_only_in=["model.init_args.net", "data"])
    assert main(["sweep", "sweep.yaml", "--dry-run"]) == 2
    what, how = capsys.readouterr().err.splitlines()
    assert "was made before" in what
    assert "new name" in how


def test_uncontrolled_family_is_refused_before_anything_runs(here: Path, capsys) -> None:
    """A key in which the experiments differ without saying so ends the sweep at once, not after hours."""
    file = here / "experiments" / f"{NAMES[1]}.yaml"
    file.write_text(file.read_text().replace("batch_size: 32", "batch_size: 64"))
    assert main(["sweep", "sweep.yaml"]) == 2
    assert "differs from experiments/vivit_fact_encoder.yaml in data.init_args.batch_size" in capsys.readouterr().err
    assert not (here / "runs").exists()


@pytest.mark.slow
def test_sweep_runs_compares_and_goes_on_after_a_failure(here: Path) -> None:
    """The whole verb: a failing run does not end the others, the table is drawn, the next call runs only what failed."""
    env = environment(here)
    write(here, seeds=[0])
    blocked = here / "runs" / "vivit_avg_pool" / "short-seed0"
    blocked.parent.mkdir(parents=True)
    blocked.write_text("a file where the run's folder should be")

    def sweep() -> "subprocess.CompletedProcess[str]":
        command = command_line("sweep", "sweep.yaml", "--jobs", "2")
        return subprocess.run(command, cwd=here, env=env, capture_output=True, text=True, timeout=500)

    done = sweep()
    folder = here / "runs" / "sweeps" / "short"
    assert done.returncode == 1, done.stderr
    assert "failed: vivit_avg_pool seed 0" in done.stderr
    assert "has no finished run of seed 0" in done.stdout
    for file in (
        "table.csv",
        "table.md",
        "figure.png",
        "index.html",
        "profile.json",
        "logs/vivit_fact_encoder-seed0.log",
    ):
        assert (folder / file).stat().st_size > 0
    costs = json.loads((folder / "profile.json").read_text())["experiments"]
    assert [row["experiment"] for row in costs] == list(NAMES)
    results = here / "runs" / "vivit_fact_encoder" / "short-seed0" / "results.json"
    before, measured = results.stat().st_mtime_ns, (folder / "profile.json").stat().st_mtime_ns

    blocked.unlink()
    done = sweep()
    assert done.returncode == 0, done.stderr
    assert "vivit_fact_encoder seed 0: finished before" in done.stderr
    assert results.stat().st_mtime_ns == before
    assert (folder / "profile.json").stat().st_mtime_ns == measured
    assert "has no finished run" not in done.stdout


@pytest.mark.slow
def test_ctrl_c_stops_the_runs_and_the_next_call_goes_on(here: Path) -> None:
    """The run under way keeps a checkpoint, no process is left behind, and the same command resumes it."""
    write(
        here,
        seeds=[0],
        experiments=[f"experiments/{NAMES[0]}.yaml"],
        overrides=[*SHORT[:-3], "--trainer.max_steps=100000"],
    )
    env = environment(here)
    # a shell gives its background jobs a Ctrl-C that is ignored: the one of a person at a terminal is not
    process = subprocess.Popen(
        command_line("sweep", "sweep.yaml"),
        cwd=here,
        env=env,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    metrics = here / "runs" / NAMES[0] / "short-seed0" / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while not (metrics.exists() and metrics.read_text().count("\n") > 1) and time.monotonic() < deadline:
        time.sleep(0.2)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    assert len(children) == 1
    os.kill(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "the same command goes on" in said
    assert not Path(f"/proc/{children[0]}").exists()
    assert (metrics.parent / "checkpoints" / "last.ckpt").exists()

    log = (here / "runs" / "sweeps" / "short" / "logs" / f"{NAMES[0]}-seed0.log").read_text()
    step = int(log.split("stopped at step ")[1].split()[0])
    process = subprocess.Popen(
        command_line("sweep", "sweep.yaml"), cwd=here, env=env, stderr=subprocess.PIPE, text=True
    )
    steps: list[int] = []
    while not [s for s in steps if s > step] and time.monotonic() < deadline + 200:
        time.sleep(0.2)
        steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines() if line.endswith("}")]
    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 143
    assert "going on from" in (here / "runs" / "sweeps" / "short" / "logs" / f"{NAMES[0]}-seed0.log").read_text()
    assert sorted(steps) == steps


def over(key: str, values: list[int]) -> dict[str, object]:
    """A sweep over a value of one experiment."""
    return {
        "experiments": [f"experiments/{NAMES[1]}.yaml"],
        "seeds": [0],
        "over": {"key": key, "label": "a value", "values": values},
        "metrics": ["val/top1"],
    }


@pytest.mark.slow
def test_a_failing_value_leaves_the_others_done_and_is_tried_again(here: Path) -> None:
    """Five heads do not divide the width: that run fails, the other is done and drawn, the next call tries the one again."""
    write(here, **over("model.init_args.net.init_args.heads", [4, 5]))

    def sweep(*options: str) -> "subprocess.CompletedProcess[str]":
        command = command_line("sweep", "sweep.yaml", *options)
        return subprocess.run(command, cwd=here, env=environment(here), capture_output=True, text=True, timeout=200)

    done = sweep()
    assert done.returncode == 1, done.stderr
    assert "failed: vivit_avg_pool 5 seed 0" in done.stderr
    assert "1 of 2 runs are not finished: vivit_avg_pool at 5 seed 0" in " ".join(done.stdout.split())
    folder = here / "runs" / "sweeps" / "short"
    for name in ("data_scale.csv", "table.md", "figure.png", "index.html"):
        assert (folder / name).stat().st_size > 0
    results = here / "runs" / NAMES[1] / "short-4-seed0" / "results.json"
    written = results.stat().st_mtime_ns

    done = sweep()
    assert done.returncode == 1
    assert "vivit_avg_pool 4 seed 0: finished before" in done.stderr
    assert results.stat().st_mtime_ns == written
    assert (folder / "logs" / "vivit_avg_pool-5-seed0.log").read_text().count("$ python -m lightning_vl fit") == 2

    (folder / "data_scale.csv").unlink()
    done = sweep("--report")
    assert done.returncode == 0, done.stderr
    assert (folder / "data_scale.csv").exists()
    assert (folder / "logs" / "vivit_avg_pool-5-seed0.log").read_text().count("$ python -m lightning_vl fit") == 2


@pytest.mark.slow
def test_an_interrupted_sweep_ends_in_the_table_of_one_that_was_not(here: Path) -> None:
    """Ctrl-C in the first run, a kill of the sweep in the second, which then runs on alone: the points are the same."""
    steps = [*SHORT[:-3], "--trainer.max_steps=24", "--trainer.val_check_interval=4", "--trainer.log_every_n_steps=1"]
    values = over("data.init_args.source.init_args.train_clips", [16, 40])

    def start(name: str) -> "subprocess.Popen[str]":
        write(here, name=name, overrides=steps, **values)
        return subprocess.Popen(
            command_line("sweep", "sweep.yaml"),
            cwd=here,
            env=environment(here),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def wait_for_steps(value: int) -> None:
        metrics = here / "runs" / NAMES[1] / f"broken-{value}-seed0" / "metrics.jsonl"
        deadline = time.monotonic() + 200
        while not (metrics.exists() and metrics.read_text().count("\n") > 5):
            assert time.monotonic() < deadline
            time.sleep(0.05)

    whole = start("whole")
    _, said = whole.communicate(timeout=500)
    assert whole.returncode == 0, said
    broken = start("broken")
    wait_for_steps(16)
    os.kill(broken.pid, signal.SIGINT)
    broken.communicate(timeout=300)
    assert broken.returncode == 130
    broken = start("broken")
    wait_for_steps(40)
    os.kill(broken.pid, signal.SIGKILL)
    broken.communicate(timeout=300)
    broken = start("broken")
    _, said = broken.communicate(timeout=500)
    assert broken.returncode == 0, said
    assert "an earlier sweep's process is still at it" in said
    tables = [(here / "runs" / "sweeps" / name / "data_scale.csv").read_text() for name in ("whole", "broken")]
    assert len(tables[0].splitlines()) > 4
    assert tables[0].replace("whole-", "broken-") == tables[1]
    logs = here / "runs" / "sweeps" / "broken" / "logs"
    assert "going on from" in (logs / f"{NAMES[1]}-16-seed0.log").read_text()


def test_keys_of_the_experiments_go_to_every_run(here: Path, capsys) -> None:
    """Breaks if a user could not say where the data lies, or a misspelt option of the sweep's went to the runs unseen."""
    assert main(["sweep", "sweep.yaml", "--dry-run", "--data.init_args.batch_size", "16"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if " fit " in line]
    assert lines
    assert all(line.endswith(" --data.init_args.batch_size=16") for line in lines)
    for wrong in (["--job", "2"], ["data.init_args.batch_size"], ["--run.id=x"]):
        assert main(["sweep", "sweep.yaml", "--dry-run", *wrong]) == 2
        assert "sweep does not know" in capsys.readouterr().err
