"""The verb `sweep`: its plan, what it runs again, and the real thing on experiments of a few steps."""

import csv
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from support import ROOT, TINY, TINY_IMAGES, command_line, environment

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


def finish(task: module.Task, finished: str = "2026-11-23T12:00:00Z", **metrics: float) -> None:
    """Leave what a finished run leaves."""
    task.folder.mkdir(parents=True, exist_ok=True)
    record = {"schema": 1, "experiment": task.experiment, "run": task.folder.name, "status": "finished"}
    record |= {"seed": task.seed, "finished": finished, "metrics": {"test/top1": 0.5, **metrics}}
    (task.folder / "results.json").write_text(json.dumps(record))


def test_dry_run_prints_the_commands(here: Path, capsys) -> None:
    """What is printed can be pasted: every experiment with every seed, a fixed run id, the overrides, and nothing is run."""
    assert main(["sweep", "sweep.yaml", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    fits = [line for line in lines if " fit " in line]
    assert fits == [
        f"python -m lightning_vl fit -c experiments/{name}.yaml --seed_everything {seed} --run.id short-seed{seed} "
        + "'--run.tags=[\"short\"]' "  # by which W&B's dashboards find them
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


START = {"model.init_args.init_from": {"class_path": "ViTInitialisation", "init_args": {"path": "CHECKPOINT"}}}


@pytest.fixture
def letters(here: Path) -> Path:
    """A sweep of two ViTs of another width on digits, and then letters, from each of the two and from nothing."""
    text = (ROOT / "experiments" / "vit_tiny.yaml").read_text()
    files = {
        "digits": text,
        "digits_narrow": text.replace("mlp_dim: 128", "mlp_dim: 64"),
        "letters": text.replace("ScatteredDigits", "ScatteredLetters", 1).replace("classes: 10", "classes: 26"),
    }
    for name, content in files.items():
        (here / "experiments" / f"{name}.yaml").write_text(content)
    write_letters(here)
    return here


def write_letters(here: Path, **changes: object) -> None:
    """Write that sweep's file, with changes to its `then`."""
    then = {
        "experiment": "experiments/letters.yaml",
        "metric": "test/top1",
        "label": "fonts",
        "start": START,
        "keep": ["model.init_args.net.init_args.mlp_dim"],
        "baseline": ["baseline/majority_top1"],
        "scratch": {},
    }
    write(
        here,
        experiments=["experiments/digits.yaml", "experiments/digits_narrow.yaml"],
        differ_only_in=["model.init_args.net"],
        overrides=[*TINY_IMAGES, *SHORT[-3:]],
        then=[then | changes],
    )


def test_what_comes_then_is_planned_after_each_run(letters: Path, capsys) -> None:
    """Every run is followed by one from its checkpoint with its own network, each seed by one from nothing."""
    assert main(["sweep", "sweep.yaml", "--dry-run"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if " fit " in line]
    assert len(lines) == 2 * (2 + 3)
    after = [line for line in lines if "letters.yaml" in line]
    for seed, (one, narrow, scratch) in enumerate((after[:3], after[3:])):
        assert f"--seed_everything {seed} --run.id short-digits-seed{seed} " in one
        assert "init_args.mlp_dim=128 " in one
        assert f'"path": "runs/digits/short-seed{seed}/checkpoints/best.ckpt"' in one
        assert f"--run.id short-digits_narrow-seed{seed} " in narrow
        assert "init_args.mlp_dim=64 " in narrow
        assert f"runs/digits_narrow/short-seed{seed}/checkpoints/best.ckpt" in narrow
        assert f"--run.id short-scratch-seed{seed} " in scratch
        assert "init_from" not in scratch
        assert all(line.endswith(" ".join(SHORT[-3:])) for line in (one, narrow, scratch))
    places = [lines.index(line) for line in after]
    assert places == [2, 3, 4, 7, 8, 9]  # a seed's runs, then what starts from them


def test_a_run_made_again_makes_what_followed_it_again(letters: Path, capsys) -> None:
    """A value measured from a checkpoint that is no longer there must not stand in the table."""
    every = tasks(read_sweep("sweep.yaml"))
    for task in every:
        finish(task)
    folder = letters / "runs" / "sweeps" / "short"
    folder.mkdir(parents=True)
    (folder / "runs.json").write_text(json.dumps({task.log.stem: task.digest for task in every}))

    def planned() -> list[str]:
        capsys.readouterr()
        assert main(["sweep", "sweep.yaml", "--dry-run"]) == 0
        out = capsys.readouterr().out
        return [task.name for task in every if task.command in out]

    assert planned() == []
    finish(every[0], finished="2026-11-24T12:00:00Z")  # digits, seed 0
    assert planned() == ["letters from digits seed 0"]
    assert main(["sweep", "sweep.yaml", "--report"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "fonts from digits has no finished run of seed 0" in out
    assert "the run that it starts from was made again since" in out

    write_letters(letters, keep=[])
    every = tasks(read_sweep("sweep.yaml"))
    assert planned() == [task.name for task in every if task.start is not None]
    (folder / "runs.json").unlink()
    (every[0].folder / "results.json").unlink()
    assert planned() == ["digits seed 0"]


def test_table_has_what_the_runs_are_worth(letters: Path, capsys) -> None:
    """A column for what was started from the runs of each row, with its number of runs, beside the row's own metric."""
    for number, task in enumerate(tasks(read_sweep("sweep.yaml"))):
        if task.start != "digits_narrow" or task.seed == 0:
            finish(task, **{"test/top1": number / 100, "baseline/majority_top1": 0.04})
    assert main(["sweep", "sweep.yaml", "--report"]) == 0
    assert "fonts from digits_narrow has no finished run of seed 1" in " ".join(capsys.readouterr().out.split())
    folder = letters / "runs" / "sweeps" / "short"
    lines = [line for line in (folder / "table.md").read_text().splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    column = cells[0].index("then: fonts: test/top1 (%)")
    assert cells[0][column - 1 : column + 2] == [
        "then: fonts: runs",
        "then: fonts: test/top1 (%)",
        "then: fonts: baseline/majority_top1 (%)",
    ]
    rows = {row[0]: row[1:3] + row[column - 1 : column + 2] for row in cells[1:]}
    assert rows == {
        "digits": ["2", "2.5 ± 3.5", "2", "4.5 ± 3.5", "4.0 ± 0.0"],
        "digits_narrow": ["2", "3.5 ± 3.5", "1", "3.0", "4.0"],
        "from scratch": ["-", "-", "2", "6.5 ± 3.5", "4.0 ± 0.0"],
    }
    with (folder / "table.csv").open() as file:
        by_name = {line["experiment"]: line for line in csv.DictReader(file)}
    assert by_name["digits_narrow"]["fonts: test/top1 n"] == "1"
    assert float(by_name["digits"]["fonts: test/top1 mean"]) == pytest.approx(0.045)
    page = (folder / "index.html").read_text()
    assert "then: fonts" in page
    assert "runs/letters/short-scratch-seed1" in page
    assert "What each is worth" in page
    assert (folder / "figure.png").stat().st_size > 10_000


@pytest.mark.slow
def test_then_starts_from_the_best_checkpoints(letters: Path) -> None:
    """The whole thing: weights arrive, what follows a failed run is left out and caught up, what has changed is redone."""
    content = yaml.safe_load((letters / "sweep.yaml").read_text())
    (letters / "sweep.yaml").write_text(yaml.safe_dump(content | {"seeds": [0]}))
    blocked = letters / "runs" / "digits" / "short-seed0"
    blocked.parent.mkdir(parents=True)
    blocked.write_text("a file where the run's folder should be")

    def sweep() -> "subprocess.CompletedProcess[str]":
        command = command_line("sweep", "sweep.yaml", "--jobs", "2")
        env = environment(letters)
        return subprocess.run(command, cwd=letters, env=env, capture_output=True, text=True, timeout=500)

    def starts(start: str) -> int:
        log = letters / "runs" / "sweeps" / "short" / "logs" / f"letters-{start}-seed0.log"
        return log.read_text().count("$ python") if log.exists() else 0

    done = sweep()
    assert done.returncode == 1, done.stderr
    assert "failed: digits seed 0" in done.stderr
    assert "not run: letters from digits seed 0: it starts from digits seed 0, which failed" in done.stderr
    assert [starts(start) for start in ("digits", "digits_narrow", "scratch")] == [0, 1, 1]

    blocked.unlink()
    done = sweep()
    assert done.returncode == 0, done.stderr
    assert [starts(start) for start in ("digits", "digits_narrow", "scratch")] == [1, 1, 1]
    folder = letters / "runs" / "letters"
    log = (letters / "runs" / "sweeps" / "short" / "logs" / "letters-digits-seed0.log").read_text()
    assert "going on from" not in log
    config = yaml.safe_load((folder / "short-digits-seed0" / "config.yaml").read_text())["model"]["init_args"]
    assert config["init_from"]["init_args"]["path"] == "runs/digits/short-seed0/checkpoints/best.ckpt"
    assert config["net"]["init_args"]["mlp_dim"] == 128
    config = yaml.safe_load((folder / "short-scratch-seed0" / "config.yaml").read_text())["model"]["init_args"]
    assert config["init_from"] is None

    shutil.rmtree(letters / "runs" / "digits_narrow")
    before = json.loads((folder / "short-digits_narrow-seed0" / "results.json").read_text())
    done = sweep()
    assert done.returncode == 0, done.stderr
    assert [starts(start) for start in ("digits", "digits_narrow", "scratch")] == [1, 2, 1]
    kept = json.loads((folder / "short-digits_narrow-seed0-outdated1" / "results.json").read_text())
    assert kept == before | {"status": "outdated"}
    assert (folder / "short-digits_narrow-seed0" / "results.json").exists()
