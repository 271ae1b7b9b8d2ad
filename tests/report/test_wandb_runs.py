"""Runs as W&B has them: real offline files against W&B's own reader, and a project over HTTP."""

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import command_line, environment
from wandb_server import KEY, WandbServer, pages_of, run_node, wandb_server

from lightning_vl.__main__ import main
from lightning_vl.errors import UserError
from lightning_vl.report.results import LeftOut, find_runs
from lightning_vl.report.wandb_runs import offline_run, read_offline

CONFIG = {
    "seed_everything": 3,
    "data": {"class_path": "lightning_vl.x.Images", "init_args": {"source": {"class_path": "lightning_vl.x.Digits"}}},
    "expected": [{"metric": "test/top1", "value": 0.5, "tolerance": 0.1, "kind": "ours", "source": "one seed"}],
    "cost": {"parameters": 1000, "gmacs": 0.5, "gflops": 1.0},
}
STEPS = 400  # enough for records that cross the blocks of the file

# what the run logger of the package does, without its imports: two starts of one run
MAKE = f"""
import sys, time, wandb
for start in range(2):
    run = wandb.init(dir=sys.argv[1], id="small-one", name="small/one", project="p", group="small", mode="offline",
                     resume="allow", settings={{"console": "off", "silent": True}})
    run.config.update({CONFIG!r}, allow_val_change=True)
    for step in range(1 + {STEPS} * start, 1 + {STEPS} * (start + 1)):
        run.log({{"train/loss": 1 / step, "trainer/global_step": step, "note": "x" * 50}})
    run.log({{"val/top1": 0.4 + 0.1 * start, "trainer/global_step": {STEPS} * (start + 1)}})
    run.log({{"test/top1": 0.55, "test/loss": float("nan"), "trainer/global_step": {STEPS} * (start + 1)}})
    run.finish()
    time.sleep(1.1 * (1 - start))  # their folders are named after the second
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a real offline run that was started twice."""
    folder = tmp_path_factory.mktemp("offline") / "small" / "one"
    folder.mkdir(parents=True)
    env = environment(folder.parent, {"WANDB_MODE": "offline"})
    subprocess.run([sys.executable, "-c", MAKE, str(folder)], check=True, env=env, timeout=300)
    return folder


@pytest.fixture
def server() -> Iterator[WandbServer]:
    """W&B on this machine."""
    with wandb_server() as running:
        yield running


def files_of(folder: Path) -> list[Path]:
    """The offline files of a run folder, the first start first."""
    return sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))


def test_reads_what_wandb_itself_reads(made: Path) -> None:
    """Breaks if a record is missed or torn where a block of the file ends: W&B's own viewer is the judge."""
    for file in files_of(made):
        assert file.stat().st_size > 32768
        done = subprocess.run(
            [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)], capture_output=True, check=True
        )
        records = [json.loads(line) for line in done.stdout.splitlines()]
        rows = [record["history"]["item"] for record in records if record["type"] == "history"]
        record = read_offline(file)
        assert len(rows) == len(record.rows) == STEPS + 2
        assert [row["trainer/global_step"] for row in rows] == [row["trainer/global_step"] for row in record.rows]
        assert (record.id, record.name, record.group, record.project) == ("small-one", "small/one", "small", "p")
        assert record.exit_code == 0


def test_an_offline_run_of_two_starts_is_one_run(made: Path) -> None:
    """Breaks if a resumed run counts twice, or its curve ends with its first start."""
    runs, left_out = find_runs([made / "wandb"])
    (run,) = runs
    assert left_out == []
    assert (run.experiment, run.id, run.seed) == ("small", "one", 3)
    assert run.metrics["test/top1"] == 0.55
    assert math.isnan(run.metrics["test/loss"])
    assert run.curves(["val/top1", "train/loss", "none"])["val/top1"] == {STEPS: 0.4, 2 * STEPS: 0.5}
    assert run.config()["data"] == CONFIG["data"]
    assert run.results["expected"][0]["met"] is True
    assert run.results["model"]["gmacs"] == 0.5
    assert run.results["data"]["name"] == "Digits"


@pytest.mark.parametrize("end", [100, 40_000])
def test_a_torn_file_is_read_up_to_there(made: Path, tmp_path: Path, end: int) -> None:
    """A run that is going on, or was killed, has half a record at the end of its file and no exit."""
    file = tmp_path / "offline-run-1-small-one" / "run-small-one.wandb"
    file.parent.mkdir()
    file.write_bytes(files_of(made)[0].read_bytes()[:end])
    assert len(read_offline(file).rows) < STEPS
    left_out = offline_run([file])
    assert isinstance(left_out, LeftOut)
    assert "no exit is recorded" in left_out.reason
    file.write_bytes(b"something else")
    with pytest.raises(UserError, match="no file of W&B"):
        offline_run([file])


def test_compares_an_offline_folder_with_a_run_folder(made: Path, make_run, tmp_path: Path, capsys) -> None:
    """What was copied from a cluster without its run folder takes part as what it is."""
    copied = shutil.copytree(made / "wandb", tmp_path / "copied", symlinks=True)
    make_run("other", 0, {"test/top1": 0.9}, config=CONFIG)
    assert main(["compare", str(copied), str(tmp_path / "runs"), "--json"]) == 0
    other, small = json.loads(capsys.readouterr().out)
    assert (small["experiment"], small["metrics"]["test/top1"]["mean"], small["n"]) == ("small", 0.55, 1)
    assert small["metrics"]["test/loss"]["mean"] is None
    assert other["metrics"]["test/top1"]["mean"] == 0.9


def compare_project(server: WandbServer, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command on the server's project, in a process of its own, since W&B's client keeps its settings."""
    env = environment(folder, {**server.environment(), "WANDB_MODE": "online"})
    words = command_line("compare", "wandb:me/digits", *arguments)
    return subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=300)


def test_compares_a_project(server: WandbServer, tmp_path: Path) -> None:
    """Seeds together, curves by the server's sampling, what is no finished run of ours left out, and the key nowhere."""
    curve = [{"trainer/global_step": step, "val/top1": step / 100} for step in (10, 20)]
    nodes = [
        run_node(f"vit/s{seed}", "vit", {**CONFIG, "seed_everything": seed}, {"test/top1": 0.5 + seed / 10})
        for seed in range(3)
    ]
    nodes += [
        run_node("vit/s9", "vit", CONFIG, {}, state="running"),
        run_node("of somebody else", "", {"lr": 1}, {"accuracy": 1.0}),
    ]
    server.answers["Runs"] = pages_of(nodes)
    server.answers["RunSampledHistory"] = {"project": {"run": {"sampledHistory": [curve]}}}
    done = compare_project(server, tmp_path, "--json", "--out", "report")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    assert (row["experiment"], row["seeds"]) == ("vit", [0, 1, 2])
    assert row["metrics"]["test/top1"]["mean"] == pytest.approx(0.6)
    assert row["metrics"]["test/top1"]["spread"] == pytest.approx(0.1)
    assert row["gmacs"] == 0.5
    assert "me/digits/vit-s9: not finished (W&B says running)" in done.stderr
    assert "it has no group or no seed_everything" in done.stderr
    assert (tmp_path / "report" / "curves.png").read_bytes().startswith(b"\x89PNG")
    asked = [variables for name, variables in server.operations if name == "RunSampledHistory"]
    assert {variables["name"] for variables in asked} == {"vit-s0", "vit-s1", "vit-s2"}
    for path in [path for path in tmp_path.rglob("*") if path.is_file()]:
        assert KEY.encode() not in path.read_bytes(), path
    assert KEY not in done.stdout + done.stderr


def test_a_refused_project_is_two_lines(server: WandbServer, tmp_path: Path) -> None:
    """No such project, or no right to see it."""
    server.answers["Runs"] = {"project": None}
    done = compare_project(server, tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 2, done.stderr
    assert "W&B refuses wandb:me/digits: Could not find project" in done.stderr


@pytest.mark.parametrize(
    ("place", "line"), [("wandb:me/p", "there is no key"), ("wandb:p", "names no project"), ("wandb:/", "no project")]
)
def test_a_project_without_a_key_or_a_name(
    place: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """Two lines at once, never a prompt or a wait."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert main(["compare", place]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 2
    assert line in error
