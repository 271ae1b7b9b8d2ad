"""Published runs: ``results/<experiment>/<id>.json`` in git, and RESULTS.md, which is generated from them.

    python -m lightning_vl.report.published runs/vivit_fact_encoder --note "two CPU cores"
    python -m lightning_vl.report.published runs --sweep experiments/sweeps/vivit_variants.yaml
    python -m lightning_vl.report.published

The first copies the records of finished runs, without paths and host names, and writes RESULTS.md anew; the second only
those of a sweep, and its table and figure with them; the third only writes the page anew.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_vl.errors import UserError
from lightning_vl.report.compare import sweep_folder
from lightning_vl.report.family import Sweep, read_sweep
from lightning_vl.report.results import LeftOut, Run, find_runs, parse_results
from lightning_vl.report.sweep import tasks
from lightning_vl.report.table import Row, default_metric, heading, make_row, markdown_row, mean_and_spread, quantity
from lightning_vl.report.zero_shot import zero_shot_table

RESULTS = Path("results")
PAGE = Path("RESULTS.md")
NO_EXPERIMENTS = ("sweeps", "overlays", "transfer")  # folders of other files under experiments/
_LOCAL = ("checkpoint", "host", "hostname", "user")

_HEAD = """\
# Results

Generated from `results/` by `python -m lightning_vl.report.published`; do not edit. Measured values are mean ± sample
standard deviation over n runs, one a seed. A result on embedded or small data is never the paper's: the column *paper* has
what the paper printed for its own data and size, where the experiment's file quotes it.
"""


def publish(places: Sequence[str], note: str, command: str | None = None, sweep: Sweep | None = None) -> list[Path]:
    """Copy the records of finished runs into ``results/``.

    Args:
        places: run folders, or folders of them.
        note: a line on these runs for RESULTS.md.
        command: that makes them again, for one seed; that of the experiment's file where None.
        sweep: whose runs alone are copied, with its table and figure; each with the sweep's own command.

    Raises:
        UserError: nothing is finished, the sweep has no report, or the command or note names an absolute path.
    """
    for text in (note, command or ""):
        absolute = [word for word in text.replace("=", " ").split() if os.path.isabs(word)]
        if absolute:
            raise UserError(f"{absolute[0]} is a path of this machine", "Write a placeholder such as PATH instead")
    runs, left_out = find_runs(places)
    commands = _commands_of(sweep) if sweep else {}
    starts = {(task.experiment, task.folder.name): task.start for task in tasks(sweep)} if sweep else {}
    if sweep:
        runs = [run for run in runs if (run.experiment, run.id) in commands]
    if not runs:
        first = f": {left_out[0]}" if left_out else ""
        raise UserError(f"no finished run{first}", "Let a run end before it is published")
    paths = _copy_report(sweep) if sweep else []
    for run in runs:
        path = RESULTS / run.experiment / f"{run.id}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        made_by = command or commands.get((run.experiment, run.id)) or _command_of(run.experiment)
        record = {**_without_local(run.results), "command": made_by, "note": note}
        if start := starts.get((run.experiment, run.id)):
            record["start"] = start
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        paths.append(path)
    return paths


def page() -> str:
    """RESULTS.md, from what lies in ``results/`` and ``experiments/``."""
    alike: dict[tuple[str, str, int, str], list[Run]] = {}  # of one experiment, started alike, on as many images
    for path in sorted(RESULTS.glob("*/*.json")):
        run = parse_results(path, path.parent)
        if isinstance(run, LeftOut):
            raise UserError(f"{path}: {run.reason}", "Publish that run again, or delete the file")
        trained_on = (run.results.get("data") or {}).get("train")
        size = trained_on if isinstance(trained_on, int) else 0
        start = run.results.get("start")
        label = run.experiment if start is None else f"{run.experiment} from {start}"
        alike.setdefault((run.experiment, label, size, _data(run.results)), []).append(run)
    rows = [make_row(key[1], sorted(runs, key=lambda run: (run.seed, run.id))) for key, runs in sorted(alike.items())]
    columns = [
        "experiment",
        "data",
        "n",
        "metric",
        "measured",
        "also",
        "baselines",
        "expected",
        "paper",
        "params (1e6)",
    ]
    columns += ["MACs (1e9)", "steps", "minutes a run", "device"]
    lines = [_HEAD, markdown_row(columns), "|" + "---|" * len(columns)]
    lines += [markdown_row(_cells(row)) for row in rows]
    lines += zero_shot_table(rows)
    for table in sorted(RESULTS.glob("*/table.md")):
        lines += ["", table.read_text(encoding="utf-8").rstrip()]
        figure = table.with_name("figure.png")
        lines += ["", f"![{table.parent.name}]({figure.as_posix()})"] if figure.exists() else []
    lines += ["", "## Notes and commands", ""]
    for row in rows:
        for note, command in dict.fromkeys((run.results.get("note", ""), run.results["command"]) for run in row.runs):
            same = [run for run in row.runs if (run.results.get("note", ""), run.results["command"]) == (note, command)]
            seeds = ", ".join(str(run.seed) for run in same)
            commits = ", ".join(sorted({_commit(run) for run in same}))
            lines.append(f"- **{row.label}**, seed {seeds}, commit {commits}{': ' + note if note else ''}  ")
            lines.append(f"  `{command} --seed_everything {same[0].seed}`")
    published = {row.experiment for row in rows}
    files = sorted(file for file in Path("experiments").rglob("*.yaml") if file.parent.name not in NO_EXPERIMENTS)
    missing = [f"`{file.as_posix()}`" for file in files if file.stem not in published]
    if missing:
        lines += ["", "## Not run", "", ", ".join(missing)]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str]) -> int:
    """Publish the runs named, if any, and write RESULTS.md; gives the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m lightning_vl.report.published",
        description="Copy the records of finished runs into results/ and write RESULTS.md anew.",
        epilog='example: python -m lightning_vl.report.published runs/vivit_fact_encoder --note "two CPU cores"',
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="*", metavar="RUN_OR_FOLDER", help="runs to publish; none: only RESULTS.md")
    parser.add_argument("--note", default="", help="a line on these runs")
    parser.add_argument(
        "--command", help="that makes them again, without the seed (default: that of the file's header)"
    )
    parser.add_argument("--sweep", metavar="FILE", help="copy this sweep's runs alone, and its table and figure")
    arguments = parser.parse_args(argv)
    try:
        sweep = read_sweep(arguments.sweep) if arguments.sweep else None
        for path in publish(arguments.runs, arguments.note, arguments.command, sweep) if arguments.runs else []:
            print(path)
        PAGE.write_text(page(), encoding="utf-8")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(PAGE)
    return 0


def _cells(row: Row) -> list[str]:
    metric = default_metric(row.runs)
    results = [run.results for run in row.runs]
    baselines = [
        name for name in row.metrics if name.startswith("baseline/") and not name.startswith("baseline/zero_shot_")
    ]
    also = [name for name in row.metrics if name.startswith("test/") and name not in (metric, "test/loss")]
    hours = [item["hours"] for item in results if item.get("hours") is not None]
    expected = {
        kind: [item for item in row.expected if item.kind == kind and item.metric == metric]
        for kind in ("ours", "paper")
    }
    return [
        row.label,
        ", ".join(sorted({_data(item) for item in results})),
        str(len(row.runs)),
        heading(metric) if metric else "-",
        mean_and_spread(row.metrics[metric], metric) if metric else "-",
        ", ".join(f"{heading(name)} {mean_and_spread(row.metrics[name], name)}" for name in also) or "-",
        ", ".join(f"{heading(name.partition('/')[2])} {mean_and_spread(row.metrics[name], name)}" for name in baselines)
        or "-",
        "; ".join(f"{_scaled(item, item.value)} ± {_scaled(item, item.tolerance)}" for item in expected["ours"]) or "-",
        "; ".join(f"{_scaled(item, item.value)} ({item.source})" for item in expected["paper"]) or "-",
        quantity(row.parameters / 1e6 if row.parameters is not None else None),
        quantity(row.gmacs),
        ", ".join(sorted({str(item.get("steps", "-")) for item in results})),
        f"{60 * sum(hours) / len(hours):.1f}" if hours else "-",
        ", ".join(sorted({str(item.get("device", "-")) for item in results})),
    ]


def _scaled(item: Any, value: float) -> str:
    return f"{100 * value:.1f}" if heading(item.metric).endswith("(%)") else f"{value:.3f}"


def _data(results: Any) -> str:
    data = results.get("data") or {}
    sizes = [f"{data[split]} {split}" for split in ("train", "test") if isinstance(data.get(split), int)]
    return f"{data.get('name', '-')}" + (f" ({', '.join(sizes)})" if sizes else "")


def _commit(run: Run) -> str:
    git = run.results.get("git") or {}
    return str(git.get("commit") or "unknown")[:8] + (" with changes" if git.get("dirty") else "")


def _command_of(name: str) -> str:
    """The command that the header of an experiment's file gives, or the plain ``fit`` where it gives none."""
    found = sorted(Path("experiments").rglob(f"{name}.yaml"))
    if not found:
        raise UserError(
            f"there is no experiments/**/{name}.yaml", "Give --command, the command that makes the runs again"
        )
    header = re.search(
        r"^# Command: (python -m lightning_vl (?:fit|test) .*(?:\n# +--.*)*)", found[0].read_text(), re.MULTILINE
    )
    return re.sub(r"\n# +", " ", header[1]) if header else f"python -m lightning_vl fit -c {found[0].as_posix()}"


def _commands_of(sweep: Sweep) -> dict[tuple[str, str], str]:
    """Experiment and id of a sweep's runs to the command that makes one, without seed and id."""
    commands = {}
    for task in tasks(sweep):
        words = task.words(task.after.folder.with_name("ID") / "checkpoints" / "best.ckpt" if task.after else None)
        overrides = shlex.join(words[8:])  # after fit -c FILE --seed_everything SEED --run.id ID and the sweep's tag
        commands[task.experiment, task.folder.name] = f"{_command_of(task.experiment)} {overrides}".strip()
    return commands


def _copy_report(sweep: Sweep) -> list[Path]:
    """Table, figure and points of a sweep as its last report left them."""
    source, target = sweep_folder(sweep), RESULTS / sweep.name
    if not (source / "table.md").exists():
        raise UserError(f"{source} has no table.md", "Draw it: python -m lightning_vl sweep FILE --report")
    target.mkdir(parents=True, exist_ok=True)
    names = [name for name in ("table.md", "figure.png", "data_scale.csv") if (source / name).exists()]
    return [Path(shutil.copyfile(source / name, target / name)) for name in names]


def _without_local(value: Any) -> Any:
    """A record without what names this machine: absolute paths, host, user."""
    if isinstance(value, dict):
        kept = {key: item for key, item in value.items() if key not in _LOCAL}
        return {key: _without_local(item) for key, item in kept.items() if not _is_local(item)}
    if isinstance(value, list):
        return [_without_local(item) for item in value if not _is_local(item)]
    return value


def _is_local(value: Any) -> bool:
    return isinstance(value, str) and os.path.isabs(value)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
