"""How tests start the command: a process of its own, without keys or a network."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK_NETWORK = ROOT / "tests" / "no_network"  # a sitecustomize that blocks sockets in child processes

Command = Callable[..., subprocess.CompletedProcess[str]]

TINY = (
    # an experiment's file made small enough for a test: a few steps on few, small clips
    "--data.init_args.workers=0",
    "--data.init_args.batch_size=8",
    "--data.init_args.evaluation_batch_size=8",
    "--data.init_args.source.init_args.train_clips=40",
    "--data.init_args.source.init_args.validation_clips=24",
    "--data.init_args.source.init_args.test_clips=24",
)


def command_line(*arguments: str) -> list[str]:
    """The command under test."""
    return [sys.executable, "-m", "lightning_vl", *arguments]


def environment(folder: Path, extra: dict[str, str] | None = None) -> dict[str, str]:
    """An environment without keys and network, its home and caches in the test's folder."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "SLURM_", "LIGHTNING_VL_RUN"))}
    return {
        **kept,
        "HOME": str(folder),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "PYTHONPATH": os.pathsep.join([str(BLOCK_NETWORK), str(ROOT)]),
        "WANDB_MODE": "disabled",
        **(extra or {}),
    }
