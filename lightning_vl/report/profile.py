"""``python -m lightning_vl profile``: parameters, operations, latency and memory of experiments, side by side."""

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_vl.errors import UserError
from lightning_vl.report.family import nearest
from lightning_vl.report.results import read_yaml

if TYPE_CHECKING:
    import torch

MEASURED = ("latency_ms", "runtime_ratio", "peak_memory_gib", "runs", "batch_size", "device", "precision")


def profile(
    files: Sequence[str],
    batch_size: int = 1,
    device: str = "auto",
    precision: str = "fp32",
    latency: bool = True,
    runs: int | None = None,
    baseline: str | None = None,
) -> list[dict[str, Any]]:
    """Measure experiments one after the other in this process.

    Args:
        files: experiment files.
        batch_size: of the timed forward.
        device: of the timed forward: "auto", "cpu", "cuda", ...; operations are always counted on meta.
        precision: of the timed forward, "fp32" or "bf16" (autocast).
        latency: whether to time at all.
        runs: timed runs; None for as many as fit ten seconds an experiment, at least three.
        baseline: experiment whose runtime is 1; the first where None.

    Returns:
        One dict an experiment: experiment, parameters, gmacs, gflops, paper_gflops, and with ``latency`` latency_ms,
        runtime_ratio, peak_memory_gib, runs, batch_size, device, precision (else None).

    Raises:
        UserError: a file cannot be built, the baseline is none of the experiments, or there is no such device.
    """
    import torch

    from lightning_vl.report.cost import measure_speed, static_cost
    from lightning_vl.run import device_name

    names = [Path(file).stem for file in files]
    if baseline is not None and baseline not in names:
        raise UserError(f"the baseline {baseline!r} is none of the experiments", nearest(baseline, names))
    place = find_device(device)
    rows: list[dict[str, Any]] = []
    for file, name in zip(files, names, strict=True):
        with torch.device("meta"):
            cost = static_cost(build_network(file))
        row: dict[str, Any] = {"experiment": name, **cost._asdict()}
        row |= dict.fromkeys(
            ("latency_ms", "runtime_ratio", "peak_memory_gib", "runs", "batch_size", "device", "precision")
        )
        if latency:
            with torch.device(place):
                net = build_network(file)
            row |= measure_speed(net, batch_size, precision, runs)._asdict()
            row |= {"batch_size": batch_size, "device": device_name(place.type), "precision": precision}
            del net
        rows.append(row)
    if latency:
        base = rows[names.index(baseline) if baseline else 0]["latency_ms"]
        for row in rows:
            row["runtime_ratio"] = row["latency_ms"] / base
    return rows


def find_device(name: str) -> "torch.device":
    """The device of that name; "auto" is the accelerator if there is one, else the CPU.

    Raises:
        UserError: there is no such device here.
    """
    import torch

    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"there is no device {name!r} here ({str(error).splitlines()[0]})", "Try --device cpu"
        ) from None
    return device


def build_network(file: str) -> "torch.nn.Module":
    """The network of an experiment's file, on torch's default device.

    Only what the key ``model`` says, and no weights to start from: where data and checkpoints lie is for the command line
    of ``fit`` to say and changes no cost.

    Raises:
        UserError: the file is no experiment or has a wrong key or value under ``model``.
    """
    import warnings

    import jsonargparse

    import lightning_vl.cli  # noqa: F401  # imports all that an experiment may name
    from lightning_vl.parser import ALLOWED, Parser, check_yaml
    from lightning_vl.task import Task

    check_yaml(Path(file))
    jsonargparse.set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=ALLOWED)
    parser = Parser()
    parser.add_subclass_arguments(Task, "model", required=True)
    with warnings.catch_warnings(action="ignore"):  # Lightning's, on saving hyper-parameters
        model = read_yaml(Path(file)).get("model")
        if isinstance(model, dict) and isinstance(model.get("init_args"), dict):
            model["init_args"].pop("init_from", None)
        task: Task = parser.instantiate(parser.parse_object({"model": model}))["model"]
    return task.net


def main(argv: Sequence[str]) -> int:
    """Run the verb; gives the exit code."""
    arguments = _parser().parse_args(argv)
    # Whatever a library prints while it builds goes to stderr: stdout is the table or the JSON alone.
    with contextlib.redirect_stdout(sys.stderr):
        rows = profile(
            arguments.experiments,
            arguments.batch_size,
            arguments.device,
            arguments.precision,
            arguments.latency,
            arguments.runs,
            arguments.baseline,
        )
    if arguments.json:
        json.dump(rows, sys.stdout, indent=2)
        print()
    else:
        _print(rows)
    return 0


def _print(rows: Sequence[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.text import Text

    from lightning_vl.report.table import Group, print_groups, quantity, ratio

    def column(key: str, scale: float = 1) -> list[str]:
        return [quantity(row[key] / scale if row[key] is not None else None) for row in rows]

    counted = {
        "params\n(1e6)": column("parameters", 1e6),
        "MACs\n(1e9)": column("gmacs"),
        "FLOPs\n(1e9)": column("gflops"),
        "paper's\nFLOPs (1e9)": column("paper_gflops"),
    }
    shown = [Group("counted", counted)]
    notes = [
        "One forward of one sample. MACs: multiply-adds of matrix products and convolutions. FLOPs: twice that. Paper's "
        "FLOPs: as in ViViT's Table 2, MACs and half of all element-wise operations."
    ]
    first = rows[0]
    if first["latency_ms"] is not None:
        measured = {
            "latency\n(ms)": column("latency_ms"),
            "runtime\n(ratio)": [ratio(row["runtime_ratio"]) for row in rows],
            "memory\n(GiB)": column("peak_memory_gib"),
        }
        shown.append(Group("measured", measured))
        counts = sorted({row["runs"] for row in rows})
        runs = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        notes.append(
            f"Latency: median of {runs} forwards of batch {first['batch_size']}, {first['precision']}, "
            f"{first['device']}. Memory: most held at once in it, parameters included."
        )
    console = Console()
    print_groups([row["experiment"] for row in rows], shown, console)
    for note in notes:
        console.print(Text(note, style="dim"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lightning_vl profile",
        description="Count parameters and operations of experiments, and time a forward of each.",
        epilog="example: python -m lightning_vl profile experiments/paper/vivit_*_k400.yaml --no-latency",
        allow_abbrev=False,
    )
    parser.add_argument("experiments", nargs="+", metavar="EXPERIMENT", help="an experiment's YAML file")
    parser.add_argument("--json", action="store_true", help="print a list of objects, one an experiment")
    parser.add_argument("--no-latency", dest="latency", action="store_false", help="count only, in seconds at any size")
    parser.add_argument("--batch-size", type=_positive, default=1, help="samples in the timed forward (default: 1)")
    parser.add_argument("--device", default="auto", help="of the timed forward: auto, cpu, cuda, ... (default: auto)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="default: fp32")
    parser.add_argument("--runs", type=_positive, help="timed forwards (default: what fits 10 s, at least 3)")
    parser.add_argument("--baseline", metavar="NAME", help="experiment whose runtime is 1 (default: the first)")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value
