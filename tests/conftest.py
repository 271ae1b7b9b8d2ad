"""What every test has: no network, W&B offline, small experiments, and the command in a process of its own."""

import os
import socket
import subprocess
from pathlib import Path

import pytest
from support import ROOT, Command, command_line, environment

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["OMP_NUM_THREADS"] = "1"  # the same bits whatever the machine's cores
os.environ.pop("LIGHTNING_VL_CACHE", None)  # every test has a cache of its own
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("WANDB_MODE", "disabled")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections leave this machine nowhere in the suite: training must not need them."""
    connect = socket.socket.connect

    def only_local(self: socket.socket, address: object) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            host = address[0] if isinstance(address, tuple) else address
            if host not in ("127.0.0.1", "::1", "localhost"):
                raise OSError(f"the test suite trains without a network, and something asked for {address}")
        connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", only_local)
    return


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """Runs `python -m lightning_vl` as a user does, from the repository's root, runs in the test's folder."""

    def run(
        *arguments: str, env: dict[str, str] | None = None, timeout: float = 600
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command_line(*arguments),
            cwd=ROOT,
            env=environment(tmp_path, env),
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run
