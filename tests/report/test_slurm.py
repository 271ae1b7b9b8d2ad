"""A sweep as SLURM arrays: what is printed, planned, submitted and refused, with stand-ins for sbatch and squeue."""

import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from support import ROOT

from lightning_vl.__main__ import main
from lightning_vl.report import slurm
from lightning_vl.report.family import read_sweep
from lightning_vl.report.sweep import tasks

NAMES = ("vivit_fact_encoder", "vivit_avg_pool")
START = {"model.init_args.init_from": {"class_path": "BenchWeights", "init_args": {"path": "CHECKPOINT"}}}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository's root with a sweep of two runs, each with one that starts from it."""
    monkeypatch.chdir(tmp_path)
    for name in ("slurm", "experiments"):
        (tmp_path / name).mkdir()
    for name in NAMES:
        (tmp_path / "experiments" / f"{name}.yaml").write_bytes((ROOT / "experiments" / f"{name}.yaml").read_bytes())
    for name in ("fit.sbatch", "sweep.sbatch"):
        (tmp_path / "slurm" / name).symlink_to(ROOT / "slurm" / name)
    then = {"experiment": f"experiments/{NAMES[0]}.yaml", "metric": "test/top1", "label": "more", "start": START}
    content = {
        "name": "short",
        "title": "Short",
        "experiments": [f"experiments/{name}.yaml" for name in NAMES],
        "seeds": [0],
        "metric": "test/top1",
        "differ_only_in": ["model.init_args.net"],
        "overrides": ["--trainer.max_steps=4"],
        "then": [then],
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(content))
    return tmp_path


@pytest.fixture
def cluster(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins that write down how sbatch was called, and give the queue that a file holds."""
    programs = here / "bin"
    programs.mkdir()
    sbatch = '#!/bin/sh\necho "$SBATCH_PARTITION $*" >>sbatch.txt\nwc -l <sbatch.txt\n'
    for name, text in (("sbatch", sbatch), ("squeue", "#!/bin/sh\ncat queue.txt\n")):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    (here / "queue.txt").write_text("")
    return here


def submitted(here: Path) -> list[str]:
    """How sbatch was called."""
    path = here / "sbatch.txt"
    return path.read_text().splitlines() if path.exists() else []


def finish(folder: Path) -> None:
    """Leave what a finished run leaves."""
    folder.mkdir(parents=True)
    record = {"schema": 1, "experiment": folder.parent.name, "run": folder.name, "status": "finished", "seed": 0}
    (folder / "results.json").write_text(json.dumps(record | {"metrics": {"test/top1": 0.5}, "finished": "2026"}))


def test_dry_run_prints_what_would_be_submitted(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if the lines are not those of a submission, need a cluster, or leave something behind."""
    words = ["--launcher", "slurm", "--jobs", "3", "--sbatch=--time=4:00:00 --gpus-per-node=1", "--dry-run"]
    assert main(["sweep", "sweep.yaml", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:4]] == ["# 0", "# 1", "# 2", "# 3"]
    assert all("python -m lightning_vl fit" in line for line in lines[:4])
    common = "--job-name=short --array={}%3 --output='runs/sweeps/short/logs/slurm-%A_%a.out' --time=4:00:00 --gpus-per-node=1 "
    common += "slurm/sweep.sbatch runs/sweeps/short/slurm/1/plan.json"
    assert [shlex.split(line) for line in lines[4:6]] == [
        shlex.split("sbatch --parsable " + common.format("0-1")),
        shlex.split("sbatch --dependency=afterany:JOB --parsable " + common.format("2-3")),
    ]
    assert not (here / "runs").exists()


def test_two_arrays_are_submitted_and_the_second_waits(cluster: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if runs that need a checkpoint do not wait for it, or the site's settings do not reach sbatch."""
    (cluster / "slurm" / "site.sh").write_text("export SBATCH_PARTITION=small\n")
    assert main(["sweep", "sweep.yaml", "--launcher", "slurm"]) == 0
    first, second = submitted(cluster)
    assert first.startswith("small --parsable --job-name=short --array=0-1 ")
    assert second.startswith("small --dependency=afterany:1 --parsable --job-name=short --array=2-3 ")
    said = capsys.readouterr()
    assert ". slurm/site.sh && sbatch --parsable" in said.out
    assert "4 runs submitted as 1 and 2" in said.err
    assert "when they are done: python -m lightning_vl sweep sweep.yaml --report" in said.err


def test_what_is_edited_later_changes_nothing_of_what_was_submitted(cluster: Path) -> None:
    """Breaks if a task reads the experiment as it is when its turn comes."""
    assert main(["sweep", "sweep.yaml", "--launcher", "slurm"]) == 0
    plan = cluster / "runs" / "sweeps" / "short" / "slurm" / "1" / "plan.json"
    before = (cluster / "experiments" / f"{NAMES[1]}.yaml").read_bytes()
    for path in cluster.glob("*/*.yaml"):
        path.unlink()
    done = run_task(plan, 1)
    assert done.returncode == 0, done.stderr
    words = done.stdout.split("\0")
    assert words[0] == "-c"
    assert (cluster / words[1]).read_bytes() == before
    run = ["--seed_everything", "0", "--run.id", "short-seed0", '--run.tags=["short"]']
    assert words[2:] == [*run, "--trainer.max_steps=4", ""]
    digests = json.loads((cluster / "runs" / "sweeps" / "short" / "runs.json").read_text())
    assert list(digests) == [f"{NAMES[1]}-seed0"]


def run_task(plan: Path, number: int) -> subprocess.CompletedProcess[str]:
    """What sweep.sbatch asks: the arguments of a run."""
    command = ["python", "-m", "lightning_vl.report.slurm", str(plan), str(number)]
    return subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60
    )


def test_a_run_without_what_it_starts_from_is_refused(cluster: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if a run whose predecessor failed starts from nothing, or gets another path than that of the best checkpoint."""
    assert main(["sweep", "sweep.yaml", "--launcher", "slurm"]) == 0
    plan = Path("runs", "sweeps", "short", "slurm", "1", "plan.json")
    capsys.readouterr()
    assert slurm.main([str(plan), "2"]) == 2
    what, how = capsys.readouterr().err.splitlines()
    assert what == f"error: {NAMES[0]} from {NAMES[0]} seed 0 starts from {NAMES[0]} seed 0, which has not finished"
    assert "submitted again" in how
    finish(cluster / "runs" / NAMES[0] / "short-seed0")
    assert slurm.main([str(plan), "2"]) == 0
    assert f'"path": "runs/{NAMES[0]}/short-seed0/checkpoints/best.ckpt"' in capsys.readouterr().out


def test_finished_runs_are_not_submitted(cluster: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if a sweep submitted again repeats what is done, or submits an empty array."""
    every = tasks(read_sweep("sweep.yaml"))
    for task in every[:3]:
        finish(task.folder)
    assert main(["sweep", "sweep.yaml", "--launcher", "slurm"]) == 0
    (line,) = submitted(cluster)
    assert "--array=0 " in line
    assert "--dependency" not in line
    finish(every[3].folder)
    assert main(["sweep", "sweep.yaml", "--launcher", "slurm"]) == 0
    assert len(submitted(cluster)) == 1
    assert capsys.readouterr().err.count("finished before") == 3 + 4


def test_a_sweep_in_the_queue_is_not_submitted_again(cluster: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if two jobs could work on one run."""
    assert main(["sweep", "sweep.yaml", "--launcher", "slurm"]) == 0
    (cluster / "queue.txt").write_text("2\n77\n")
    capsys.readouterr()
    assert main(["sweep", "sweep.yaml", "--launcher", "slurm"]) == 2
    what, how = capsys.readouterr().err.splitlines()
    assert what == "error: jobs 2 of this sweep are still in the queue"
    assert how == "  wait for them, or end them first: scancel 2"
    assert len(submitted(cluster)) == 2
    (cluster / "queue.txt").write_text("77\n")
    assert main(["sweep", "sweep.yaml", "--launcher", "slurm"]) == 0


def test_mistakes_are_two_lines(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks if a missing cluster, a refusal of sbatch or a wrong folder end in a traceback, or leave jobs half submitted."""

    def refused() -> list[str]:
        capsys.readouterr()
        assert main(["sweep", "sweep.yaml", "--launcher", "slurm"]) == 2
        return capsys.readouterr().err.splitlines()

    programs = here / "bin"
    programs.mkdir()
    (programs / "bash").symlink_to("/bin/bash")
    monkeypatch.setenv("PATH", str(programs))
    assert refused()[0] == "error: there is no sbatch here"
    (programs / "sbatch").write_text("#!/bin/bash\necho sbatch: error: invalid partition >&2\nexit 1\n")
    (programs / "sbatch").chmod(0o755)
    assert refused()[-2:] == [
        "error: sbatch refused: sbatch: error: invalid partition",
        "  see slurm/site.sh, and --sbatch for nodes, devices and time",
    ]
    (here / "slurm" / "sweep.sbatch").unlink()
    assert refused()[0] == "error: slurm/sweep.sbatch is not here"
    assert main(["sweep", "sweep.yaml", "--sbatch=--time=1"]) == 2
