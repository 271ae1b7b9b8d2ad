"""Offline runs listed from W&B's files, and sent by W&B's own command to a server on this machine."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import command_line, environment
from wandb_server import KEY, WandbServer, wandb_server

from lightning_vl.__main__ import main
from lightning_vl.report.offline_runs import find_offline_runs

# a start of a run; one that is to be killed has logged more than W&B keeps before it writes, or nothing
MAKE = """
import os, signal, sys, time, wandb
folder, name, first, rows, end = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
os.makedirs(folder, exist_ok=True)
run = wandb.init(dir=folder, id=name.replace("/", "-"), name=name, project="p", group=name.split("/")[0], mode="offline",
                 resume="allow", settings={"console": "off", "silent": True})
for step in range(first, first + rows):
    run.log({"train/loss": 1 / step, "trainer/global_step": step, "note": "x" * 200})
if end == "killed":
    time.sleep(1)
    os.kill(os.getpid(), signal.SIGKILL)
run.finish()
"""
STARTS = [
    ("vit/one", 1, 5, "finished"),
    ("bit/two", 1, 500, "killed"),
    ("bit/three", 1, 0, "killed"),
    ("vit/one", 6, 5, "finished"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real offline runs, an hour old."""
    root = tmp_path_factory.mktemp("made") / "runs"
    env = environment(root.parent, {"WANDB_MODE": "offline"})
    for name, first, rows, end in STARTS:
        words = [sys.executable, "-c", MAKE, str(root / name), name, str(first), str(rows), end]
        subprocess.run(words, check=end == "finished", env=env, timeout=300, capture_output=True)
    (killed,) = root.glob("bit/two/wandb/offline-run-*/run-bit-two.wandb")
    killed.write_bytes(killed.read_bytes()[:-100])  # as a kill in the middle of a write
    for file in root.rglob("*.wandb"):
        os.utime(file, (time.time() - 3600,) * 2)
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of them to change, in the working directory."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(made, tmp_path / "runs", symlinks=True))


@pytest.fixture
def server() -> Iterator[WandbServer]:
    """W&B on this machine."""
    with wandb_server() as running:
        yield running


def test_lists_what_the_files_say(root: Path, capsys) -> None:
    """Name, experiment, project, state, last step and what is sent, though no run folder's own file is there."""
    assert main(["wandb", "list"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["vit/one", "vit", "p", "finished", "10", "0.0", "0", "of", "2"] in lines
    assert [line[:4] for line in lines if line and line[0] == "bit/two"] == [["bit/two", "bit", "p", "stopped"]]
    assert [line[:2] for line in lines if line and line[0] == "bit/three"] == [["bit/three", "empty"]]


def test_a_run_that_is_written_to_is_left_for_later(root: Path, capsys) -> None:
    """Half of a run is not sent while the other half is being written."""
    for file in root.rglob("run-bit-two.wandb"):
        os.utime(file)
    assert main(["wandb", "sync", "--dry-run"]) == 0
    captured = capsys.readouterr()
    assert "bit/two is being written to" in captured.err
    assert "vit/one" in captured.out
    assert "bit/two" not in captured.out


def test_sends_every_start_in_order_and_once(root: Path, server: WandbServer, tmp_path: Path) -> None:
    """One run at W&B whose steps go on from start to start, sent once; what a kill has torn is said; the key is nowhere."""
    env = environment(tmp_path, server.environment())
    for sent in ("1 of 2 runs sent", "0 of 1 runs sent"):
        words = command_line("wandb", "sync", "runs")
        done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert sent in done.stdout
        assert "bit/two: its file is torn" in done.stderr
        assert KEY not in done.stdout + done.stderr
    steps = [row["trainer/global_step"] for row in server.streams["/files/me/p/vit-one/file_stream"]]
    assert steps == list(range(1, 11))
    started = [variables for name, variables in server.operations if name == "UpsertBucket"]
    assert {variables["groupName"] for variables in started if variables["groupName"]} == {"vit", "bit"}
    assert [run.name for run in find_offline_runs([root]) if run.unsent] == ["bit/two"]
    assert len(list(root.rglob("*.wandb.synced"))) == 2
    for path in [path for path in tmp_path.rglob("*") if path.is_file()]:
        assert KEY.encode() not in path.read_bytes(), path


def test_a_damaged_file_keeps_no_other_from_being_sent(root: Path, server: WandbServer, tmp_path: Path) -> None:
    """W&B's command gives up at a file that it cannot read: what it was given beside it is sent all the same."""
    (file,) = root.rglob("run-bit-two.wandb")
    content = bytearray(file.read_bytes())
    content[5000:9000] = bytes(255 - byte for byte in content[5000:9000])
    file.write_bytes(content)
    os.utime(file, (time.time() - 3600,) * 2)
    assert [run.name for run in find_offline_runs([root]) if run.unsent] == ["bit/two", "vit/one"]
    done = subprocess.run(
        command_line("wandb", "sync"),
        cwd=tmp_path,
        env=environment(tmp_path, server.environment()),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "1 of 2 runs sent" in done.stdout
    assert "bit/two: its file is torn" in done.stderr
    steps = [row["trainer/global_step"] for row in server.streams["/files/me/p/vit-one/file_stream"]]
    assert steps == list(range(1, 11))


def test_a_file_that_grew_is_sent_again(root: Path) -> None:
    """W&B's mark says that something was sent, not that all was."""
    (run,) = find_offline_runs([root / "vit"])
    for file in run.files:
        file.with_name(f"{file.name}.synced").touch()
    assert run.unsent == []
    os.utime(run.files[1], (time.time() + 5,) * 2)
    assert run.unsent == [run.files[1]]


def test_without_a_key_it_is_two_lines(root: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """No prompt, and nothing is marked as sent."""
    monkeypatch.setenv("HOME", str(root))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert main(["wandb", "sync"]) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 2
    assert "there is no key" in error[0]
    assert not list(root.rglob("*.synced"))


def test_a_place_that_is_none(root: Path, capsys) -> None:
    """A typo."""
    assert main(["wandb", "list", "nowhere"]) == 2
    assert "nowhere is no folder" in capsys.readouterr().err
