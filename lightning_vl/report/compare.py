"""``python -m lightning_vl compare``: finished runs by experiment, seeds together, as table, figure and page."""

import argparse
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning_vl.errors import UserError
from lightning_vl.report import data_scale
from lightning_vl.report.core_days import training_costs
from lightning_vl.report.family import HOW, NOT_SCIENCE, Sweep, nearest, read_sweep, undeclared, value_at
from lightning_vl.report.results import LeftOut, Run, find_runs
from lightning_vl.report.table import (
    Comparison,
    as_csv,
    as_json,
    as_markdown,
    best_of,
    default_metric,
    make_row,
    print_table,
    row_without_runs,
    short_value,
)

SHOWN_KEYS = 6
KEYS_IN_LABEL = 2


def compare(
    runs: Sequence[Run],
    left_out: Sequence[LeftOut] = (),
    sweep: Sweep | None = None,
    costs: Mapping[str, Mapping[str, Any]] | None = None,
    metric: str | None = None,
    price_per_core_hour: float | None = None,
) -> Comparison:
    """Group runs by experiment and find out how far they may be compared.

    Args:
        runs: at least one, but for a sweep with ``core_days``.
        left_out: run folders to name in the report.
        sweep: declares what may differ and holds the paper's columns; the table then has its order.
        costs: experiment to what ``profile`` gave for the file that the sweep names.
        metric: of the table; the sweep's, or what the experiments expect, where None.
        price_per_core_hour: in dollars; the sweep's where None.

    Raises:
        UserError: no run has the metric, or a training cost cannot be computed.
    """
    configs = {run.folder: run.config() for run in runs}
    by_label = _of_sweep(runs, sweep) if sweep else _by_configuration(runs, configs)
    training = training_costs(sweep, price_per_core_hour) if sweep else {}
    not_run = (
        [name for name in sweep.names if not by_label.get(sweep.label(name)) and name in training] if sweep else []
    )
    by_label = {label: group for label, group in by_label.items() if group}

    metric = (metric or (sweep.metric if sweep else None) or default_metric(runs)) if runs else None
    logged = sorted({name for run in runs for name in run.metrics})
    if metric is not None and metric not in logged:
        raise UserError(f"no run has the metric {metric!r}", nearest(metric, logged))

    paper = sweep.paper.rows if sweep and sweep.paper else {}
    rows = [
        make_row(label, group, (costs or {}).get(group[0].experiment), paper.get(group[0].experiment))
        for label, group in by_label.items()
    ]
    if sweep and training:
        rows = [replace(row, training=training.get(row.experiment)) for row in rows]
        rows += [row_without_runs(name, sweep.label(name), paper.get(name), training[name]) for name in not_run]
        rows.sort(key=lambda row: [*sweep.names, row.experiment].index(row.experiment))
        rows += [row_without_runs(name, name, printed) for name, printed in _printed_only(sweep)]
    best = best_of(rows, metric) if metric else None
    warnings, differing = _controls(by_label, configs, sweep)
    return Comparison(
        title=sweep.title
        if sweep
        else "Comparison of " + (", ".join(by_label) if len(rows) < 4 else f"{len(rows)} experiments"),
        metric=metric,
        rows=tuple(replace(row, best=True) if row is best else row for row in rows),
        warnings=tuple(warnings),
        left_out=tuple(left_out),
        sweep=sweep,
        differing=differing,
        price_per_core_hour=price_per_core_hour,
    )


def _of_sweep(runs: Sequence[Run], sweep: Sweep) -> dict[str, list[Run]]:
    """Label to runs, a row an experiment, the sweep's own first and in its order."""
    names = dict.fromkeys([*sweep.names, *[run.experiment for run in runs]])
    return {sweep.label(name): [run for run in runs if run.experiment == name] for name in names}


def _by_configuration(runs: Sequence[Run], configs: Mapping[Path, dict[str, Any]]) -> dict[str, list[Run]]:
    """Label to runs, a row a configuration: runs of one experiment whose science differs are no seeds of each other."""
    alike: dict[str, dict[str, list[Run]]] = {}  # experiment to configuration to runs
    for run in runs:
        alike.setdefault(run.experiment, {}).setdefault(_science(configs[run.folder]), []).append(run)
    rows: dict[str, list[Run]] = {}
    for experiment, of_experiment in alike.items():
        known = [config for group in of_experiment.values() if (config := configs[group[0].folder])]
        keys = dict.fromkeys(key for config in known[1:] for key in undeclared(known[0], config, HOW))
        for number, group in enumerate(of_experiment.values(), 1):
            config = configs[group[0].folder]
            told = [f"{key.rpartition('.')[2]} {short_value(value_at(config, key))}" for key in keys]
            told = told if len(told) <= KEYS_IN_LABEL else [f"configuration {number}"]
            told = told if config else ["configuration unknown"]
            rows[f"{experiment} ({', '.join(told)})" if told and len(of_experiment) > 1 else experiment] = group
    return rows


def _science(config: Mapping[str, Any]) -> str:
    """Everything of a configuration that makes a result but the seed, as text; a key that is null counts as absent."""

    def pruned(value: Any, prefix: str) -> Any:
        if not isinstance(value, Mapping):
            return value
        inner = {
            key: pruned(item, f"{prefix}{key}.")
            for key, item in value.items()
            if item is not None and f"{prefix}{key}" not in (*NOT_SCIENCE, *HOW)
        }
        return inner or None

    return json.dumps(pruned(config, ""), sort_keys=True, default=str)


def _printed_only(sweep: Sweep) -> Iterable[tuple[str, Mapping[str, float]]]:
    return sweep.paper.printed_only.items() if sweep.paper else ()


def write(comparison: Comparison, folder: Path) -> list[Path]:
    """Write table.csv, table.md, index.html, and what there is to draw as PNG into a folder; gives their paths."""
    from lightning_vl.report.figure import beside, of_family
    from lightning_vl.report.page import render

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.csv").write_text(as_csv(comparison), encoding="utf-8")
    (folder / "table.md").write_text(as_markdown(comparison), encoding="utf-8")
    paths = [folder / "table.csv", folder / "table.md"]
    others = beside(comparison)
    for name, figure in {"figure": of_family(comparison), **others}.items():
        if figure is not None:
            figure.savefig(folder / f"{name}.png", dpi=160)
            paths.append(folder / f"{name}.png")
    (folder / "index.html").write_text(render(comparison, others), encoding="utf-8")
    return [*paths, folder / "index.html"]


def read_costs(sweep: Sweep, folder: Path) -> dict[str, dict[str, Any]]:
    """The costs that ``sweep`` measured and kept in its folder, by experiment; empty where there are none."""
    try:
        kept = json.loads((folder / "profile.json").read_text(encoding="utf-8"))
        by_file = {entry["experiment"]: entry for entry in kept["experiments"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    files = {
        name: Path(sweep.cost.get(name, file)).stem for name, file in zip(sweep.names, sweep.experiments, strict=True)
    }
    return {name: by_file[file] for name, file in files.items() if file in by_file}


def sweep_folder(sweep: Sweep) -> Path:
    """Where a sweep keeps its logs, costs and reports."""
    return Path("runs", "sweeps", sweep.name)


def main(argv: Sequence[str]) -> int:
    """Run the verb; gives the exit code."""
    from lightning_vl.report.sweep import read_runs, with_then  # not at the top: it needs this module

    arguments = _parser().parse_args(argv)
    files = [place for place in arguments.runs if place.endswith((".yaml", ".yml")) and Path(place).stem != "config"]
    places = [place for place in arguments.runs if place not in files]
    files += [arguments.sweep] if arguments.sweep else []
    if len(files) > 1:
        raise UserError(f"{len(files)} sweep files are given", "Give one: a table has one family")
    if not files and not places:
        raise UserError("no runs are given", "Name run folders, a folder of them such as runs, or a sweep file")
    sweep = read_sweep(files[0]) if files else None
    of_sweep = sweep and not places and not sweep.core_days
    runs, left_out = read_runs(sweep) if sweep and of_sweep else find_runs(places)
    if of_sweep and not runs:
        raise UserError(f"no run of the sweep is finished: {left_out[0]}", f"python -m lightning_vl sweep {files[0]}")
    if not runs and not (sweep and sweep.core_days):
        raise UserError(
            f"none of the {len(left_out)} run folders is finished; the first is {left_out[0]}",
            "Let a run end, or go on with it: the same fit command with the same --run.id resumes it",
        )
    if sweep and sweep.over:
        return _curves(sweep, runs, left_out, arguments)
    costs = read_costs(sweep, sweep_folder(sweep)) if sweep else {}
    comparison = compare(runs, left_out, sweep, costs, arguments.metric, arguments.price_per_core_hour)
    if sweep and of_sweep:
        comparison = with_then(comparison, sweep)
    # Written before anything is printed: `compare ... | head` must not lose them.
    paths = write(comparison, arguments.out) if arguments.out else []
    if arguments.json:
        json.dump(as_json(comparison), sys.stdout, indent=2, allow_nan=False)
        print()
        for line in [*comparison.warnings, *map(str, [*left_out, *paths])]:
            print(line, file=sys.stderr)
    else:
        from rich.console import Console

        print_table(comparison, Console())
        for path in paths:
            print(path)
    return 0


def _curves(sweep: Sweep, runs: Sequence[Run], left_out: Sequence[LeftOut], arguments: argparse.Namespace) -> int:
    """What the verb shows of a sweep over a value."""
    scale = data_scale.read(
        sweep if arguments.metric is None else replace(sweep, metric=arguments.metric), runs, left_out
    )
    paths = data_scale.write(scale, arguments.out) if arguments.out else []
    if arguments.json:
        json.dump(data_scale.as_json(scale), sys.stdout, indent=2, allow_nan=False)
        print()
        for line in [*scale.crossings, *scale.warnings, *map(str, paths)]:
            print(line, file=sys.stderr)
    else:
        from rich.console import Console

        data_scale.print_scale(scale, Console())
        for path in paths:
            print(path)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lightning_vl compare",
        description="Compare finished runs: a row an experiment and configuration, mean and spread over seeds.",
        epilog="example: python -m lightning_vl compare runs/vivit_fact_encoder runs/vivit_avg_pool --out report",
        allow_abbrev=False,
    )
    parser.add_argument(
        "runs",
        nargs="*",
        metavar="WHAT",
        help="a run folder, a folder of them, W&B's own offline-run-* folder, wandb:ENTITY/PROJECT; or a sweep file, for "
        "its runs or, with other places, those of the places",
    )
    parser.add_argument("--json", action="store_true", help="print a list of objects, one a row of the table")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="write table.csv, table.md, index.html and figures there"
    )
    parser.add_argument(
        "--sweep", metavar="FILE", help="sweep file: declared differences, order, cost and paper columns"
    )
    parser.add_argument(
        "--metric", help="metric of the table and figure, as logged (default: the one that is expected)"
    )
    parser.add_argument(
        "--price-per-core-hour",
        type=_price,
        metavar="X",
        help="dollars, half of a TPUv3 chip's; for a sweep file with core_days (default: that file's)",
    )
    return parser


def _price(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no price: give dollars, 0 or more")
    return value


def _controls(
    by_label: Mapping[str, Sequence[Run]], read: Mapping[Path, dict[str, Any]], sweep: Sweep | None
) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Warn of what is not controlled; and the keys in which rows differ, with their values."""
    warnings: list[str] = []
    unknown = [run.folder for runs in by_label.values() for run in runs if not read[run.folder]]
    if unknown:
        warnings.append(f"{len(unknown)} runs have no configuration to check, the first {unknown[0]}")
    configs = {name: [read[run.folder] for run in runs if read[run.folder]] for name, runs in by_label.items()}
    for name, runs in by_label.items():
        keys = {key: None for other in configs[name][1:] for key in undeclared(configs[name][0], other)}
        if keys:
            warnings.append(f"the runs of {name} differ in more than the seed: {_listed(keys)}")
        seeds = [run.seed for run in runs]
        repeated = sorted({seed for seed in seeds if seeds.count(seed) > 1})
        if repeated:
            warnings.append(
                f"{name} has several runs of seed {', '.join(map(str, repeated))}: they are not independent"
            )
    known = {name: of_runs[0] for name, of_runs in configs.items() if of_runs}
    reference, *rest = known.values() if known else [{}]
    between = dict.fromkeys(key for config in rest for key in undeclared(reference, config))
    declared = sweep.differ_only_in if sweep else []
    undeclared_keys = dict.fromkeys(key for config in rest for key in undeclared(reference, config, declared))
    if undeclared_keys:
        source = f"{sweep.name} declares" if sweep else "is declared (no --sweep file)"
        warnings.append(f"the experiments differ in more than {source}: {_listed(undeclared_keys)}")
    if sweep:
        for name in sweep.names if by_label else []:
            missing = sorted(set(sweep.seeds) - {run.seed for run in by_label.get(sweep.label(name), [])})
            if missing:
                warnings.append(f"{name} has no finished run of seed {', '.join(map(str, missing))}")
    git = [run.results.get("git") or {} for runs in by_label.values() for run in runs]
    commits = {str(item.get("commit"))[:8] for item in git if item.get("commit")}
    if len(commits) > 1:
        warnings.append(f"the runs are of {len(commits)} commits: {_listed(sorted(commits))}")
    dirty = sum(bool(item.get("dirty")) for item in git)
    if dirty:
        warnings.append(f"{dirty} of {len(git)} runs were made with uncommitted changes")
    differing = {key: {name: value_at(config, key) for name, config in known.items()} for key in between}
    return warnings, differing


def _listed(keys: Iterable[str]) -> str:
    keys = list(keys)
    more = f" and {len(keys) - SHOWN_KEYS} more" if len(keys) > SHOWN_KEYS else ""
    return ", ".join(keys[:SHOWN_KEYS]) + more
