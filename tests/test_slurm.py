"""SLURM for real: two slurmd on this machine, jobs that lose their time, their place and their nodes, and a sweep as arrays.

Where SLURM is not installed only the batch script is tested, with stand-ins for srun and scontrol.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import yaml
from support import ROOT, TINY, TINY_IMAGES, assert_same_run, command_line, environment, offline_runs, rows

EXPERIMENT = "experiments/vivit_fact_encoder.yaml"
NAME = Path(EXPERIMENT).stem
SBIN = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
MISSING = [name for name in PROGRAMS if shutil.which(name, path=SBIN) is None]
SHORT = (
    *TINY,
    "--trainer.accelerator=cpu",
    "--trainer.val_check_interval=5",
    "--trainer.log_every_n_steps=1",
    # randomness in every step, so that a step repeated with other numbers would show
    "--model.init_args.net.init_args.dropout=0.1",
)
TWO = (*SHORT, "--trainer.max_steps=24", "--checkpoint_last.every_n_train_steps=2")
needs_slurm = pytest.mark.skipif(
    bool(MISSING), reason=f"no SLURM here ({', '.join(MISSING)}): apt-get install slurm-wlm munge"
)


def wait(for_what: str, until: Callable[[], object], seconds: float = 300) -> None:
    """Until it is true, on a machine that is busy with other things."""
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, for_what
        time.sleep(0.1)


class Cluster(NamedTuple):
    """A SLURM of two nodes, and the folder that its jobs work in: a repository's root as far as they can see."""

    folder: Path
    env: dict[str, str]

    def run(self, *words: str, cwd: Path | None = None) -> str:
        """A command on the login node: its output."""
        done = subprocess.run(words, cwd=cwd or self.folder, env=self.env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout

    def submit(self, *words: str, patient: bool = False) -> str:
        """The number of a new job of fit.sbatch; options of sbatch before `-c`. A patient one leaves others the processors."""
        at = words.index("-c")
        sbatch = ["nice", "sbatch"] if patient else ["sbatch"]
        return self.run(*sbatch, "--parsable", *words[:at], "slurm/fit.sbatch", *words[at:]).strip()

    def show(self, job: str, key: str) -> str:
        """What SLURM knows of a job."""
        found = re.search(rf"\b{key}=(\S+)", self.run("scontrol", "show", "job", "--oneliner", job))
        assert found, key
        return found[1]

    def processes(self, job: str, node: str, step: str = "") -> set[int]:
        """Process ids of a job on a node, of its batch script and of the step of srun."""
        command = ["scontrol", "listpids", f"{job}.{step}" if step else job, node]
        listed = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=60).stdout.splitlines()
        return {int(line.split()[0]) for line in listed[1:] if line.split()[0] != "-1"}

    def log(self, job: str) -> str:
        """What the job has printed, all its starts."""
        path = self.folder / "slurm" / "logs" / f"fit-{job}.out"
        return path.read_text() if path.exists() else ""

    def wait_for(self, job: str, text: str) -> None:
        """Until the job has printed a text, or has ended without."""
        ends = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
        wait(text, lambda: text in self.log(job) or self.show(job, "JobState") in ends)
        assert text in self.log(job), self.log(job)

    def wait_for_rows(self, job: str, folder: Path, more: int) -> None:
        """Until the job's present start has logged so many rows more."""
        path = folder / "metrics.jsonl"
        lines = lambda: len(path.read_text().splitlines()) if path.exists() else 0  # noqa: E731
        goal = lines() + more
        wait(f"{more} rows of job {job}", lambda: lines() >= goal or self.show(job, "JobState") == "FAILED")
        assert lines() >= goal, self.log(job)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Starts SLURM, and ends it after the last test."""
    folder = tmp_path_factory.mktemp("slurm")
    place = make_workplace(folder / "repository")
    env = environment(folder, {"SLURM_CONF": str(folder / "slurm.conf")})
    up = subprocess.run([ROOT / "tests/slurm/up.sh", folder], env=env, capture_output=True, text=True, timeout=120)
    try:
        assert up.returncode == 0, up.stderr
        yield Cluster(place, env)
    finally:
        subprocess.run([ROOT / "tests/slurm/down.sh", folder], env=env, check=True, timeout=120)


def make_workplace(place: Path) -> Path:
    """A folder with what jobs look for in the repository, and a site's settings."""
    (place / "slurm" / "logs").mkdir(parents=True)
    (place / "experiments").symlink_to(ROOT / "experiments")
    for name in ("fit.sbatch", "sweep.sbatch"):
        (place / "slurm" / name).symlink_to(ROOT / "slurm" / name)
    (place / "slurm" / "site.sh").write_text(
        # nodes of one machine have no names that resolve
        f"export MASTER_ADDR=127.0.0.1 GLOO_SOCKET_IFNAME=lo OMP_NUM_THREADS=1 PATH={Path(sys.executable).parent}:$PATH\n"
    )
    return place


@pytest.fixture(scope="module")
def limited(cluster: Cluster) -> str:
    """A job without an end, of two minutes at a time, on the second node; they pass while other tests run.

    It is told to stop before there is anything to save, and starts again.
    """
    endless = (*SHORT, "--trainer.max_steps=1000000", "--checkpoint_last.every_n_train_steps=1000000")
    options = ("--time=2", "--signal=USR1@1", "--nodelist=node2")
    job = cluster.submit(*options, "-c", EXPERIMENT, *endless, "--trainer.val_check_interval=1000000", patient=True)
    wait("its process", lambda: cluster.processes(job, "node2", step="0"))
    cluster.run("scancel", "--signal=USR1", job)
    cluster.wait_for(job, "stopped with exit code 138: to be requeued")
    return job


@pytest.fixture(scope="module")
def whole(cluster: Cluster, limited: str) -> str:
    """The job on two nodes that nothing stops."""
    job = cluster.submit("--nodes=2", "-c", EXPERIMENT, *TWO)
    cluster.wait_for(job, "finished")
    return job


@pytest.mark.slow
@needs_slurm
def test_a_signal_a_preemption_and_a_lost_node_leave_no_trace(cluster: Cluster, whole: str) -> None:
    """Breaks if a restart is not the same run: in a metric, a parameter, the order of samples, or at W&B."""
    folder = cluster.folder / "runs" / NAME / "slurm-{}"
    job = cluster.submit("--nodes=2", "--export=ALL,WANDB_MODE=offline", "-c", EXPERIMENT, *TWO)
    mine = Path(str(folder).format(job))

    cluster.wait_for_rows(job, mine, 3)
    cluster.run("scancel", "--signal=USR1", job)  # what SLURM does before the time limit
    cluster.wait_for(job, "stopped with exit code 85: to be requeued")
    cluster.wait_for(job, "start 2 of job")

    cluster.wait_for_rows(job, mine, 4)
    cluster.run(
        "sbatch", "--partition=urgent", "--exclusive", "--nodelist=node1", "--output=/dev/null", "--wrap=sleep 1"
    )
    cluster.wait_for(job, "start 3 of job")

    cluster.wait_for_rows(job, mine, 4)
    lose_node(cluster, "node1", job)
    cluster.wait_for(job, "start 4 of job")
    cluster.wait_for(job, "finished")

    log = cluster.log(job)
    assert log.count("going on from") == 3
    assert re.findall(r"stopped with exit code (\d+): to be requeued", log) == ["85", "143"]
    assert cluster.show(job, "ExitCode") == "0:0"
    assert_same_run(Path(str(folder).format(whole)), mine)
    starts = [records for records in offline_runs(mine) if records]
    assert {record["run"]["run_id"] for records in starts for record in records if record["type"] == "run"} == {
        f"{NAME}-slurm-{job}"
    }
    history = [record["history"]["item"] for records in starts for record in records if record["type"] == "history"]
    steps = [int(row["trainer/global_step"]) for row in history if "train/loss" in row]
    assert steps == sorted(set(steps)), "a step went back or was logged twice"
    assert not list((cluster.folder / "runs").rglob("hpc_ckpt*"))


def lose_node(cluster: Cluster, node: str, job: str) -> None:
    """Everything on a node dies at once, and the controller finds out; then the node starts again and is in service."""
    spool = cluster.folder.parent
    pids = cluster.processes(job, node)
    parents = {int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) for pid in pids}
    steps = {pid for pid in parents if Path(f"/proc/{pid}/comm").read_text().startswith("slurmstepd")}
    assert len(steps) == 2, "the batch step and the step of srun"
    for pid in (int((spool / f"{node}.pid").read_text()), *steps, *pids):
        os.kill(pid, signal.SIGKILL)
    # without waiting for SlurmdTimeout
    cluster.run("scontrol", "update", f"nodename={node}", "state=down", "reason=lost")
    subprocess.run(["slurmd", "-c", "-N", node], env={**cluster.env, "PATH": SBIN}, check=True, timeout=60)


@pytest.mark.slow
@needs_slurm
def test_success_and_failure_are_told_apart(cluster: Cluster, whole: str) -> None:
    """Breaks if a mistake looks like success to jobs that depend on this one, or a finished job that starts again trains again."""
    folder = cluster.folder / "runs" / NAME
    wrong = cluster.submit("-c", EXPERIMENT, "--trainer.max_step=1")
    before = (folder / f"slurm-{whole}" / "metrics.jsonl").read_bytes()
    cluster.run("scontrol", "requeue", whole)
    cluster.wait_for(wrong, "failed with exit code 2")
    wait("the end", lambda: cluster.show(wrong, "JobState") == "FAILED")
    assert cluster.show(wrong, "ExitCode") == "2:0"
    assert "did you mean 'trainer.max_steps'?" in cluster.log(wrong)
    assert not (folder / f"slurm-{wrong}").exists()

    cluster.wait_for(whole, "start 2 of job")
    wait("the end", lambda: cluster.show(whole, "JobState") == "COMPLETED")
    assert f"slurm-{whole} is finished" in cluster.log(whole)
    assert (folder / f"slurm-{whole}" / "metrics.jsonl").read_bytes() == before
    assert json.loads((folder / f"slurm-{whole}" / "results.json").read_text())["status"] == "finished"


@pytest.mark.slow
@needs_slurm
def test_a_sweep_runs_as_arrays(cluster: Cluster) -> None:
    """Breaks if a task of the array runs another run than its own, or one starts before what it starts from."""
    folder = cluster.folder
    start = {"model.init_args.init_from": {"class_path": "ViTInitialisation", "init_args": {"path": "CHECKPOINT"}}}
    then = {"experiment": "experiments/vit_tiny.yaml", "metric": "test/top1", "label": "more", "start": start}
    content = {
        "name": "short",
        "title": "Short",
        "experiments": ["experiments/vit_tiny.yaml"],
        "seeds": [0, 1],
        "metric": "test/top1",
        "differ_only_in": [],
        "overrides": [*TINY_IMAGES, "--trainer.max_steps=2", "--trainer.val_check_interval=1"],
        "then": [then],
    }
    (folder / "sweep.yaml").write_text(yaml.safe_dump(content))
    cluster.run(*command_line("sweep", "sweep.yaml", "--launcher=slurm", "--sbatch=--time=30"))
    wait("the arrays", lambda: "short" not in cluster.run("squeue", "--noheader", "--format=%j"))
    logs = sorted((folder / "runs" / "sweeps" / "short" / "logs").iterdir())
    assert [path.read_text().count("== ") for path in logs] == [2] * 4, [path.read_text() for path in logs]
    found = {
        path.parent.name: json.loads(path.read_text()) for path in (folder / "runs").glob("vit_tiny/*/results.json")
    }
    assert found.keys() == {"short-seed0", "short-seed1", "short-vit_tiny-seed0", "short-vit_tiny-seed1"}
    assert {name: results["seed"] for name, results in found.items()} == {name: int(name[-1]) for name in found}
    for seed in "01":
        config = (folder / "runs" / "vit_tiny" / f"short-vit_tiny-seed{seed}" / "config.yaml").read_text()
        assert f"runs/vit_tiny/short-seed{seed}/checkpoints/best.ckpt" in config
    assert (
        "finished before"
        in subprocess.run(
            command_line("sweep", "sweep.yaml", "--launcher=slurm"),
            cwd=folder,
            env=cluster.env,
            capture_output=True,
            text=True,
        ).stderr
    )


@pytest.mark.slow
@needs_slurm
def test_what_the_page_tells_to_type(cluster: Cluster, whole: str) -> None:
    """Breaks if slurm/README.md names an option that sbatch does not have, or a command that fails."""
    lines = re.findall(r"^    (.+)$", (ROOT / "slurm" / "README.md").read_text(), flags=re.MULTILINE)
    options = [
        word for line in lines if "sbatch " in line for word in re.findall(r"(?<!\S|\w)--[\w-]+", line.split(" -c ")[0])
    ]
    ours = {"--launcher", "--sbatch", "--dry-run"}
    known = cluster.run("sbatch", "--help")
    assert len(set(options) - ours) >= 4
    assert not [option for option in options if option not in known and option not in ours]
    looks = [line.replace("JOB", whole) for line in lines if line.startswith(("squeue", "scontrol", "tail -n"))]
    assert len(looks) == 3
    assert cluster.run("bash", "-c", looks[0]).rstrip().endswith("finished")
    for line in looks[1:]:
        cluster.run("bash", "-c", line)
    (cluster.folder / "slurm" / "site.example.sh").write_bytes((ROOT / "slurm" / "site.example.sh").read_bytes())
    theirs = "set -eu; . slurm/site.example.sh; echo $SBATCH_PARTITION; SLURM_JOB_ID=1; mkdir -p .venv/bin; touch .venv/bin/activate; . slurm/site.example.sh"
    assert cluster.run("bash", "-c", theirs) == "gpu\n"


@pytest.mark.slow
@needs_slurm
def test_a_time_limit_ends_in_a_requeue_and_scancel_in_the_last_step(cluster: Cluster, limited: str) -> None:
    """Breaks if steps are lost: those before the time limit, or before scancel, which are saved nowhere else."""
    cluster.wait_for(limited, "stopped with exit code 85: to be requeued")
    cluster.wait_for(limited, "start 3 of job")
    folder = cluster.folder / "runs" / NAME / f"slurm-{limited}"
    cluster.wait_for_rows(limited, folder, 3)
    cluster.run("scancel", limited)
    cluster.wait_for(limited, "stopped with exit code 143: the job is ended by SLURM")
    codes = re.findall(r"stopped with exit code (\d+): to be requeued", cluster.log(limited))
    assert codes == ["138", *["85"] * (len(codes) - 1)]
    assert cluster.log(limited).count("going on from") == len(codes) - 1 > 0
    stops = [int(step) for step in re.findall(r"stopped at step (\d+)", cluster.log(limited))]
    assert stops == sorted(set(stops))
    assert list(rows(folder)) == list(range(1, stops[-1] + 1))
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == stops[-1]
    assert not (folder / "results.json").exists()
    wait("the end", lambda: cluster.show(limited, "JobState") == "CANCELLED")


STAND_IN = """#!/bin/bash
echo "$(basename "$0") $*" >>calls.txt
case $(basename "$0") in
    srun) exit "$CODE" ;;
    scontrol) if [ "$1" = show ]; then echo "JobId=7 JobState=$STATE Reason=None"; else exit "${REFUSED:-0}"; fi ;;
esac
"""


@pytest.fixture
def batch(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs fit.sbatch as SLURM would, with srun and scontrol that only write down how they were called."""
    place = make_workplace(tmp_path / "repository")
    (place / "slurm" / "site.sh").unlink()
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("srun", "scontrol"):
        (programs / name).write_text(STAND_IN)
        (programs / name).chmod(0o755)
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"

    def run(code: int, state: str = "RUNNING", cwd: Path = place, **extra: str) -> subprocess.CompletedProcess[str]:
        job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1", "SLURM_JOB_NUM_NODES": "1"}
        env = environment(tmp_path, {"PATH": path, "CODE": str(code), "STATE": state, **job, **extra})
        (place / "calls.txt").unlink(missing_ok=True)
        script = ["bash", str(ROOT / "slurm" / "fit.sbatch"), "-c", "a file.yaml"]
        done = subprocess.run(script, cwd=cwd, env=env, capture_output=True, text=True, timeout=60)
        calls = place / "calls.txt"
        done.stderr += calls.read_text() if calls.exists() else ""
        return done

    return run


@pytest.mark.parametrize(
    ("code", "state", "said", "requeued"),
    [
        (0, "RUNNING", "finished", False),
        (1, "RUNNING", "failed with exit code 1", False),
        (2, "RUNNING", "failed with exit code 2", False),
        (137, "RUNNING", "failed with exit code 137", False),
        (85, "RUNNING", "stopped with exit code 85: to be requeued", True),
        (143, "RUNNING", "stopped with exit code 143: to be requeued", True),
        (138, "RUNNING", "stopped with exit code 138: to be requeued", True),
        (143, "COMPLETING", "stopped with exit code 143: the job is ended by SLURM", False),
        (85, "TIMEOUT", "stopped with exit code 85: the job is ended by SLURM", False),
    ],
)
def test_what_the_batch_script_makes_of_an_exit_code(
    batch: Callable[..., subprocess.CompletedProcess[str]], code: int, state: str, said: str, requeued: bool
) -> None:
    """Breaks if the job's exit code is not that of the run, or it is requeued when it failed, or twice."""
    done = batch(code, state)
    assert done.returncode == code
    assert done.stdout.endswith(f" {said}\n")
    assert done.stderr.count("scontrol requeue 7") == requeued


def test_stopped_twice_where_nothing_is_gained_it_gives_up(
    batch: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    """Breaks if a time limit that is too short for a start-up requeues a job for ever, or progress in between is not seen."""
    for code, requeued in ((138, True), (138, False), (138, True), (85, True), (138, True), (0, False), (138, True)):
        done = batch(code)
        assert ("scontrol requeue 7" in done.stderr) == requeued
        assert done.returncode == code
        assert requeued or code == 0 or "failed: stopped twice outside of training" in done.stdout


def test_the_batch_script_passes_on_what_it_was_given(
    batch: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """Breaks if arguments are split, the array's task is not named, or mistakes of the submission go unseen."""
    array = {
        "SLURM_ARRAY_JOB_ID": "5",
        "SLURM_ARRAY_TASK_ID": "3",
        "SLURM_NTASKS_PER_NODE": "4",
        "SLURM_CPUS_PER_TASK": "6",
    }
    done = batch(85, SLURM_GPUS_ON_NODE="4", **array)
    fit = (
        "srun --kill-on-bad-exit=0 python -m lightning_vl fit -c a file.yaml --trainer.num_nodes=1 --trainer.devices=4"
    )
    assert done.stderr.splitlines() == [fit, "scontrol show job --oneliner 5_3", "scontrol requeue 5_3"]
    done = batch(85, REFUSED="1")  # a job of --no-requeue
    assert done.returncode == 85
    assert done.stdout.endswith(" failed: job 7 could not be requeued; the same --run.id goes on by hand\n")
    done = batch(0, SLURM_GPUS_ON_NODE="8", **array)
    assert done.returncode == 2
    assert done.stdout == "error: 8 GPUs and 4 tasks a node\n  one task a GPU: sbatch --ntasks-per-node=8\n"
    done = batch(0, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout.splitlines()[1] == "  submit from there, or give sbatch --chdir=ROOT"


@pytest.mark.slow
def test_a_signal_in_the_test_saves_and_requeues_nothing(tmp_path: Path) -> None:
    """Breaks if Lightning's own requeue is left on: its checkpoint would be found by the next start of another verb."""
    place = tmp_path / "bin"
    place.mkdir()
    (place / "scontrol").write_text(STAND_IN)
    (place / "scontrol").chmod(0o755)
    program = (
        "import os, signal, sys\n"
        "from lightning_vl.task import Task\n"
        "plain = Task._evaluate\n"
        "def evaluate(self, prefix, batch):\n"
        "    if prefix == 'test':\n"
        "        os.kill(os.getpid(), signal.SIGUSR1)\n"
        "    return plain(self, prefix, batch)\n"
        "Task._evaluate = evaluate\n"
        "from lightning_vl.__main__ import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    inside = {
        "SLURM_JOB_ID": "7",
        "SLURM_NTASKS": "1",
        "SLURM_JOB_NAME": "fit",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
    }
    inside |= {"SLURM_NODEID": "0", "PATH": f"{place}{os.pathsep}{os.environ['PATH']}"}
    arguments = ["fit", "-c", EXPERIMENT, *SHORT, "--trainer.max_steps=2", f"--run.root={tmp_path / 'runs'}"]

    def run(*start: str) -> subprocess.CompletedProcess[str]:
        env = environment(tmp_path, inside)
        return subprocess.run([sys.executable, *start], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)

    assert run("-c", program, *arguments).returncode == -signal.SIGUSR1
    folder = tmp_path / "runs" / NAME / "slurm-7"
    assert not (folder / "results.json").exists()
    # what Lightning would restore, left by somebody else wherever it looks
    for place in (folder, folder.parent, folder.parents[1], folder.with_name("slurm-7-test")):
        place.mkdir(exist_ok=True)
        (place / "hpc_ckpt_1.ckpt").write_bytes(b"of another run")
    done = run("-m", "lightning_vl", *arguments)
    assert done.returncode == 0, done.stderr
    assert "going on from" in done.stderr
    assert set(rows(folder)) == {1, 2}
    checkpoint = folder / "checkpoints" / "last.ckpt"
    done = run("-m", "lightning_vl", "test", *arguments[1:], f"--ckpt_path={checkpoint}")
    assert done.returncode == 0, done.stderr
    tested = json.loads((folder.with_name("slurm-7-test") / "results.json").read_text())["metrics"]
    of_fit = json.loads((folder / "results.json").read_text())["metrics"]
    assert tested == {key: of_fit[key] for key in tested}
    assert len(list((tmp_path / "runs").rglob("hpc_ckpt*"))) == 4
    assert not (ROOT / "calls.txt").exists()


def test_shell_files_are_clean() -> None:
    """Breaks if shellcheck has something to say of a shell file of the repository."""
    shell = [path for pattern in ("*/*.sh", "*/*/*.sh", "slurm/*.sbatch", ".ci/run") for path in ROOT.glob(pattern)]
    shell = [path for path in shell if path.relative_to(ROOT) != Path("slurm/site.sh")]  # a user's own
    assert {"fit.sbatch", "site.example.sh", "run", "up.sh", "gpu.sh"} <= {path.name for path in shell}
    done = subprocess.run(["shellcheck", *shell], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
