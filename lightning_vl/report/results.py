"""Finished runs on disk, read without torch.

A run folder is ``runs/<experiment>/<id>/`` with ``config.yaml`` (resolved), ``metrics.jsonl`` (append-only) and, once
the run has ended, ``results.json``. A run that has not ended, or whose files cannot be read, is named in one line and
left out.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_vl.errors import UserError

SCHEMA = 1
OFFLINE = "run-*.wandb"
_MARKS = ("results.json", "config.yaml", "metrics.jsonl")


@dataclass(frozen=True)
class Run:
    """One finished run.

    Attributes:
        folder: where it lies.
        experiment: stem of the experiment's file.
        id: name of the run among those of the experiment.
        seed: the run's seed.
        metrics: logged name (``test/top1``) to value; not a number where the file says null.
        results: everything in ``results.json``.
    """

    folder: Path
    experiment: str
    id: str
    seed: int
    metrics: Mapping[str, float]
    results: Mapping[str, Any]

    def config(self) -> dict[str, Any]:
        """The resolved configuration; empty if the file is missing or cannot be read."""
        path = self.folder / "config.yaml"
        try:
            config = read_yaml(path)
        except (OSError, UserError):
            return {}
        return config if isinstance(config, dict) else {}

    def curves(self, names: Sequence[str]) -> dict[str, dict[int, float]]:
        """Of these logged names, those that there are to {step: value}, steps ascending."""
        return read_metrics(self.folder / "metrics.jsonl", names)


@dataclass(frozen=True)
class LeftOut:
    """A run folder that cannot take part, and why, in one line."""

    folder: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.folder}: {self.reason}"


def find_runs(places: Iterable[str | Path]) -> tuple[list[Run], list[LeftOut]]:
    """Read every run folder at or below the given places, by experiment, seed and id.

    Args:
        places: folders; W&B's own folders of offline runs; ``wandb:ENTITY/PROJECT``.

    Raises:
        UserError: a place does not exist or has no run folder in it, or W&B cannot be asked.
    """
    from lightning_vl.report import wandb_runs  # not at the top: it needs this module

    runs: dict[Path, Run] = {}
    left_out: dict[Path, LeftOut] = {}
    offline: dict[str, list[Path]] = {}  # id of a run at W&B to its starts

    def keep(run: Run | LeftOut) -> None:
        if isinstance(run, Run):
            runs[run.folder.resolve()] = run
        else:
            left_out[run.folder.resolve()] = run

    for place in places:
        if str(place).startswith(wandb_runs.PREFIX):
            for of_project in wandb_runs.project_runs(str(place)):
                keep(of_project)
            continue
        folders = _run_folders(Path(place))
        if not folders:
            raise UserError(
                f"{place} holds no run: no results.json, config.yaml or metrics.jsonl at or below it",
                "Name a run folder such as runs/vivit_fact_encoder/<id>, or a folder of them such as runs",
            )
        for folder in folders:
            if starts := sorted(folder.glob(OFFLINE)):
                offline.setdefault(starts[0].name, []).extend(starts)
                continue
            run = read_run(folder)
            if isinstance(run, Run) and folder != Path(place) and run.results.get("verb", "fit") != "fit":
                # Else a run would count twice: once as it ended, and once as somebody tested its checkpoint again.
                run = LeftOut(folder, f"a record of {run.results['verb']!r}; name the folder itself to compare it")
            keep(run)
    for files in offline.values():
        keep(wandb_runs.offline_run(sorted(set(files), key=lambda file: file.parent.name)))
    return sorted(runs.values(), key=lambda run: (run.experiment, run.seed, run.id)), list(left_out.values())


def read_run(folder: Path) -> Run | LeftOut:
    """Read one run folder."""
    return parse_results(folder / "results.json", folder)


def parse_results(path: Path, folder: Path) -> Run | LeftOut:
    """Read the record of a run, wherever it lies."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return LeftOut(folder, "not finished (no results.json)")
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        return LeftOut(folder, f"{path.name} cannot be read ({error})")
    problem = _problem(results)
    if problem:
        return LeftOut(folder, problem)
    metrics = {name: math.nan if value is None else float(value) for name, value in results["metrics"].items()}
    return Run(folder, results["experiment"], results["run"], results["seed"], metrics, results)


def read_metrics(path: Path, names: Sequence[str] | None = None) -> dict[str, dict[int, float]]:
    """Read ``metrics.jsonl``: logged name to {step: value}, steps ascending; of these names alone, where they are given.

    A resumed run logs some steps again: the later line wins. A line torn by a kill is passed over.
    """
    quoted = None if names is None else [json.dumps(name) for name in names]
    curves: dict[str, dict[int, float]] = {}
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    for line in text.splitlines():
        if quoted is not None and not any(name in line for name in quoted):
            continue  # spares the parsing of most lines
        try:
            record = json.loads(line)
            step = record.pop("step")
        except (json.JSONDecodeError, AttributeError, KeyError, TypeError):
            continue
        for name, value in record.items():
            if isinstance(value, int | float) and (names is None or name in names):
                curves.setdefault(name, {})[step] = float(value)
    return {name: dict(sorted(curve.items())) for name, curve in curves.items()}


def read_yaml(path: Path) -> Any:
    """Parse a YAML file.

    Raises:
        UserError: the file is no YAML.
    """
    import yaml  # not at the top: `--help` must not wait for it

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast where libyaml is there
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        reason = getattr(error, "problem", None) or "it is no text"
        raise UserError(f"{path}{line} is no valid YAML: {reason}", "Mend the file at that line") from None


def _run_folders(place: Path) -> list[Path]:
    if not place.exists():
        raise UserError(f"{place} does not exist", "Name a run folder or a folder of runs, such as runs")
    if place.is_file():
        place = place.parent
    found = []
    for folder, subfolders, files in os.walk(place):
        if any(mark in files for mark in _MARKS) or any(Path(file).match(OFFLINE) for file in files):
            found.append(Path(folder))
            subfolders.clear()  # checkpoints, W&B files: no runs below a run
        subfolders.sort()
    return found


def _problem(results: Any) -> str | None:
    """What is wrong with the content of a results.json, or None."""
    if not isinstance(results, dict):
        return "results.json is no object"
    if results.get("schema") != SCHEMA:
        return f"results.json has schema {results.get('schema')}, this version reads {SCHEMA}"
    if results.get("status") != "finished":
        return f"not finished (status {results.get('status')})"
    for key, kind in (("experiment", str), ("run", str), ("seed", int), ("metrics", dict)):
        if not isinstance(results.get(key), kind):
            return f"results.json has no valid {key!r}"
    if not all(value is None or isinstance(value, int | float) for value in results["metrics"].values()):
        return "results.json has a metric that is no number"
    return None
