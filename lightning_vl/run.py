"""A run: its folder, its identity over restarts and processes, and the record that it leaves."""

import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import lightning_vl
from lightning_vl.errors import UserError

RESULTS = "results.json"
CONFIG = "config.yaml"
RUN_ID = "LIGHTNING_VL_RUN_ID"  # rank 0 decides, processes that it starts inherit


@dataclass
class RunOptions:
    """Where a run is kept and how it is called.

    Args:
        root: folder of all runs.
        experiment: the experiment's name; by default the stem of the first -c file.
        id: the run's name in <root>/<experiment>/; a run that exists under it goes on from its last checkpoint. By default
            a new one from the clock, or the job's number under SLURM.
        project: W&B project.
        entity: W&B user or team; by default the key's own.
        tags: W&B tags.
    """

    root: str = "runs"
    experiment: str | None = None
    id: str | None = None
    project: str = "lightning_vl"
    entity: str | None = None
    tags: list[str] = field(default_factory=list)


@dataclass
class Expected:
    """What an experiment's file expects of a metric.

    Args:
        metric: logged name, as `test/top1`.
        value: expected value.
        tolerance: largest difference that counts as met.
        kind: `ours` was measured here, `paper` is the paper's and may be out of reach.
        source: where the value comes from: table of the paper, or runs, seeds and spread of ours.
    """

    metric: str
    value: float
    tolerance: float
    kind: Literal["ours", "paper"]
    source: str

    def judge(self, metrics: dict[str, float]) -> dict[str, Any]:
        """This expectation with what was measured, and whether it is met (None: not measured)."""
        measured = metrics.get(self.metric)
        met = None if measured is None else abs(measured - self.value) <= self.tolerance
        return {**dataclasses.asdict(self), "measured": measured, "met": met}


def run_id() -> str:
    """A name for this run that all its processes agree on, and that survives a requeue."""
    if RUN_ID in os.environ:
        return os.environ[RUN_ID]
    if "SLURM_JOB_ID" in os.environ and "SLURM_NTASKS" in os.environ:
        array = os.environ.get("SLURM_ARRAY_JOB_ID")
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]
        return f"slurm-{job}"
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise UserError(
            "processes started by torchrun cannot agree on a new run's name",
            "give it: --run.id NAME, the same everywhere",
        )
    clock = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    os.environ[RUN_ID] = f"{clock}-{os.getpid() % 0x1000:03x}"
    return os.environ[RUN_ID]


def read_results(folder: Path) -> dict[str, Any] | None:
    """The record of a finished run, or None."""
    path = folder / RESULTS
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError):
        return None


def write_results(folder: Path, results: dict[str, Any]) -> None:
    """Writes the record: whole, or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{RESULTS}.partial"
    partial.write_text(json.dumps(results, indent=1) + "\n")
    os.replace(partial, folder / RESULTS)


def provenance() -> dict[str, Any]:
    """Which code and which libraries a run was made with."""
    packages = ("torch", "lightning", "torchmetrics", "timm", "numpy", "av", "wandb")
    return {
        "git": _git(),
        "versions": {
            "lightning_vl": lightning_vl.__version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in packages},
        },
    }


def _git() -> dict[str, Any]:
    folder = Path(lightning_vl.__file__).parent

    def ask(*arguments: str) -> str | None:
        try:
            return subprocess.run(
                ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=30
            ).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return None

    if ask("rev-parse", "--is-inside-work-tree") != "true" or not ask("ls-files", "--", str(folder / "run.py")):
        return {"commit": None, "dirty": None}  # installed from a wheel
    return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(ask("status", "--porcelain", "--untracked-files=no"))}


def device_name(kind: str) -> str:
    """The device as a reader of results knows it."""
    import torch

    if kind == "cuda":
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    return f"{kind if kind != 'cpu' else _processor()} ({threads} thread{'s' * (threads > 1)})"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def now() -> str:
    """The time, UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
