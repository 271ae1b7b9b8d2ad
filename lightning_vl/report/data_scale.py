"""A metric over a value that a sweep varies: the lecture's figure of accuracy over the size of pre-training.

Two readings stand apart. *As trained*: what each run came to where its own stopping criterion ended it; a run that was
ended by ``trainer.max_steps`` instead counts as not converged, is drawn hollow and marked in the tables. *At equal
compute*: the best validation top-1 that each run had reached when it had spent the same number of training
multiply-adds, 3 (forward and backward) x those of a forward x images.

Spread is the sample standard deviation over seeds (n - 1), as in every table. Nothing here needs torch.
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_vl.errors import UserError
from lightning_vl.report.family import Sweep, nearest, undeclared, value_at
from lightning_vl.report.results import LeftOut, Run
from lightning_vl.report.table import (
    Group,
    Summary,
    heading,
    is_share,
    markdown_row,
    mean_and_spread,
    quantity,
    summarise,
)

if TYPE_CHECKING:
    from rich.console import Console

TRAINING = 3  # times the multiply-adds of a forward: forward, gradient of the inputs, gradient of the weights
VALIDATION = "val/top1"  # what the reading at equal compute goes by
LISTED = 8  # left-out runs and keys of a line on a terminal


@dataclass(frozen=True)
class Point:
    """One finished run.

    Attributes:
        value: of the key that the sweep is over.
        run: its record.
        batch: images of a step.
        max_steps: cap on the steps.
        curve: step to validation top-1.
        family: class of the network, of which families of lines have their hue.
    """

    value: int
    run: Run
    batch: int
    max_steps: int
    curve: Mapping[int, float]
    family: str

    @property
    def steps(self) -> int:
        """Taken."""
        return int(self.run.results.get("steps", 0))

    @property
    def converged(self) -> bool:
        """Whether its stopping criterion ended it, not the cap on the steps."""
        return self.steps < self.max_steps

    @property
    def gmacs(self) -> float | None:
        """Multiply-adds of a forward of one image, in 1e9."""
        value = (self.run.results.get("model") or {}).get("gmacs")
        return None if value is None else float(value)

    @property
    def total(self) -> float | None:
        """Multiply-adds of its training, in 1e9; None where those of a forward are not known."""
        return None if self.gmacs is None else self._training(self.steps)

    def within(self, budget: float) -> float | None:
        """The best validation top-1 that it had reached within so many multiply-adds (1e9); None before the first."""
        if self.gmacs is None:
            return None
        return max((value for step, value in self.curve.items() if self._training(step) <= budget), default=None)

    def _training(self, steps: int) -> float:
        return TRAINING * (self.gmacs or 0.0) * self.batch * steps


@dataclass(frozen=True)
class Cell:
    """One experiment at one value: a point of a curve.

    Attributes:
        summary: over the seeds.
        incomplete: how many of the runs the reading is not fair to: not converged, or ended before the budget was spent
            without having converged.
    """

    summary: Summary
    incomplete: int


@dataclass(frozen=True)
class Panel:
    """One metric in one reading.

    Attributes:
        reading: "as trained" or "at equal compute".
        metric: logged name.
        title: of the panel and the table.
        curves: experiment to {value: cell}, values ascending.
        measured: one (point, metric's value) a run.
        baseline: the trivial baseline of the metric; None where no run logged one.
    """

    reading: str
    metric: str
    title: str
    curves: Mapping[str, Mapping[int, Cell]]
    measured: Sequence[tuple[Point, float]]
    baseline: float | None = None


@dataclass(frozen=True)
class DataScale:
    """Everything that the report shows.

    Attributes:
        sweep: the sweep file.
        points: finished runs.
        panels: as trained, one a metric; then at equal compute.
        budget: multiply-adds (1e9) of the reading at equal compute; None without one.
        crossings: a line on every declared pair and panel.
        warnings: one line each.
        left_out: runs that take no part.
    """

    sweep: Sweep
    points: Sequence[Point]
    panels: Sequence[Panel]
    budget: float | None
    crossings: Sequence[str]
    warnings: Sequence[str]
    left_out: Sequence[LeftOut]


def read(sweep: Sweep, runs: Sequence[Run], left_out: Sequence[LeftOut] = ()) -> DataScale:
    """Arrange the finished runs of a sweep over a value.

    Args:
        sweep: has ``over``.
        runs: finished ones.
        left_out: runs to name in the report.

    Raises:
        UserError: none of the runs belongs to the sweep, or none has its metric.
    """
    points, others = [], list(left_out)
    for run in runs:
        point = _point(sweep, run)
        if isinstance(point, Point):
            points.append(point)
        else:
            others.append(point)
    if not points:
        first = f"; the first: {others[0]}" if others else ""
        raise UserError(
            f"no finished run of the sweep {sweep.name}{first}", "Let a run end, or name the folder of its runs"
        )
    logged = sorted({name for point in points for name in point.run.metrics})
    if sweep.metric not in logged:
        raise UserError(f"no run has the metric {sweep.metric!r}", nearest(sweep.metric, logged))
    points.sort(key=lambda point: (sweep.names.index(point.run.experiment), point.value, point.run.seed))
    panels = [_as_trained(sweep, points, metric) for metric in [sweep.metric, *sweep.metrics] if metric in logged]
    totals = [point.total for point in points if point.total]
    budget = sweep.compute_budget if sweep.compute_budget is not None else min(totals, default=None)
    if budget is not None:
        matched = _at_equal_compute(sweep, points, budget)
        if matched.measured:
            panels.append(matched)
    return DataScale(
        sweep=sweep,
        points=points,
        panels=panels,
        budget=budget,
        crossings=[line for panel in panels for line in _crossing_lines(sweep, panel)],
        warnings=[*_warnings(sweep, points, logged), *_too_dear(points, budget)],
        left_out=others,
    )


def _point(sweep: Sweep, run: Run) -> Point | LeftOut:
    assert sweep.over is not None
    config = run.config()
    value = value_at(config, sweep.over.key)
    batch = value_at(config, "data.init_args.batch_size")
    max_steps = value_at(config, "trainer.max_steps")
    if run.experiment not in sweep.names:
        return LeftOut(run.folder, f"{run.experiment} is no experiment of {sweep.name}")
    if value not in sweep.over.values:
        return LeftOut(run.folder, f"{sweep.over.key} is {value}, none of the sweep's values")
    if not isinstance(batch, int) or not isinstance(max_steps, int):
        return LeftOut(run.folder, "config.yaml has no data.init_args.batch_size or no trainer.max_steps")
    network = str(value_at(config, "model.init_args.net.class_path")).rpartition(".")[2]
    return Point(value, run, batch, max_steps, run.curves([VALIDATION]).get(VALIDATION, {}), network)


def _as_trained(sweep: Sweep, points: Sequence[Point], metric: str) -> Panel:
    measured = [(point, point.run.metrics[metric]) for point in points if metric in point.run.metrics]
    return Panel(
        reading="as trained",
        metric=metric,
        title=f"{metric}, as trained",
        curves=_curves(sweep, measured, {id(point): not point.converged for point, _ in measured}),
        measured=measured,
        baseline=_baseline(points, metric),
    )


def _at_equal_compute(sweep: Sweep, points: Sequence[Point], budget: float) -> Panel:
    measured = [(point, value) for point in points if (value := point.within(budget)) is not None]
    unspent = {id(point): not point.converged and (point.total or 0) < budget for point, _ in measured}
    return Panel(
        reading="at equal compute",
        metric=VALIDATION,
        title=f"best {VALIDATION} within {quantity(budget / 1000, 3)}e12 training multiply-adds",
        curves=_curves(sweep, measured, unspent),
        measured=measured,
        baseline=_baseline(points, VALIDATION),
    )


def _curves(
    sweep: Sweep, measured: Sequence[tuple[Point, float]], incomplete: Mapping[int, bool]
) -> dict[str, dict[int, Cell]]:
    assert sweep.over is not None
    curves: dict[str, dict[int, Cell]] = {}
    for name in sweep.names:
        for value in sweep.over.values:
            here = [(p, measure) for p, measure in measured if p.run.experiment == name and p.value == value]
            if here:
                cell = Cell(
                    summarise([measure for _, measure in here]), sum(incomplete[id(point)] for point, _ in here)
                )
                curves.setdefault(name, {})[value] = cell
    return curves


def _baseline(points: Sequence[Point], metric: str) -> float | None:
    """The mean of the trivial baseline that was logged beside a metric, under the names that the bench gives those."""
    front, *task, last = metric.split("/")
    if front not in ("test", "transfer"):
        return None
    name = f"baseline/majority_{last}" if front == "test" else f"baseline/{'/'.join(task)}_majority"
    values = [point.run.metrics[name] for point in points if name in point.run.metrics]
    return math.fsum(values) / len(values) if values else None


# Where curves cross


def crossings(values: Sequence[int], differences: Sequence[float]) -> list[tuple[float, bool]]:
    """Where a difference changes its sign, linear in the logarithm of the value between two of them.

    Args:
        values: ascending.
        differences: one a value; 0 counts as ahead.

    Returns:
        The value, and whether it is an overtaking (from below to above).
    """
    found = []
    for (left, before), (right, after) in pairwise(zip(values, differences, strict=True)):
        if (before < 0) != (after < 0):
            share = before / (before - after)
            found.append((math.exp(math.log(left) + share * math.log(right / left)), after >= 0))
    return found


def slope_per_doubling(values: Sequence[int], differences: Sequence[float]) -> float:
    """Least-squares slope of the difference over log2 of the value."""
    x = [math.log2(value) for value in values]
    centre, level = math.fsum(x) / len(x), math.fsum(differences) / len(differences)
    return math.fsum((a - centre) * (d - level) for a, d in zip(x, differences, strict=True)) / math.fsum(
        (a - centre) ** 2 for a in x
    )


def _crossing_lines(sweep: Sweep, panel: Panel) -> list[str]:
    lines = []
    for first, second in sweep.pairs:
        one, other = panel.curves.get(first, {}), panel.curves.get(second, {})
        values = [value for value in one if value in other]
        start = f"{panel.metric}, {panel.reading}: {sweep.label(first)} against {sweep.label(second)}: "
        if len(values) < 2:
            lines.append(start + f"{len(values)} value{'s' * (len(values) != 1)} in common, nothing to say yet")
            continue
        lines.append(start + _gap(panel, (first, second), values))
    return lines


def _gap(panel: Panel, pair: tuple[str, str], values: Sequence[int]) -> str:
    """One line on a pair: where the first overtakes, or how the gap goes."""
    scale, unit = (100, " points") if is_share(panel.metric) else (1, "")
    one, other = panel.curves[pair[0]], panel.curves[pair[1]]
    differences = [scale * (one[value].summary.mean - other[value].summary.mean) for value in values]
    hollow = sum(cell.incomplete for curve in (one, other) for value, cell in curve.items() if value in values)
    doubt = f" ({hollow} of the runs had not converged)" if hollow and panel.reading == "as trained" else ""
    widest = differences.index(min(differences))
    last = len(values) - 1
    ends = f"from {differences[0]:+.1f} at {values[0]}"
    if 0 < widest < last:
        ends += f", widest {differences[widest]:+.1f} at {values[widest]},"
    gap = f"the gap goes {ends} to {differences[-1]:+.1f}{unit} at {values[-1]}"
    if differences[-1] < 0:
        # what comes before the widest gap (both at chance, say) does not speak of catching up
        slope = slope_per_doubling(values[widest:], differences[widest:]) if widest < last else 0.0
        gap += f", {slope:+.1f} a doubling: closing" if round(slope, 1) > 0 else ": not closing"
    found = crossings(values, differences)
    if not found:
        start = f"ahead from {values[0]} on" if differences[0] >= 0 else f"no crossing up to {values[-1]}"
        return f"{start}; {gap}{doubt}"
    turns = ", ".join(f"{'overtakes' if up else 'falls behind'} at {_rounded(value)}" for value, up in found)
    seeds = f" ({_per_seed(panel, pair, values)})" if any(up for _, up in found) else ""
    return f"{turns}{seeds}; {gap}{doubt}"


def _per_seed(panel: Panel, pair: tuple[str, str], values: Sequence[int]) -> str:
    """The first overtaking of each seed that has both experiments at all the values."""
    of: dict[tuple[str, int, int], float] = {
        (point.run.experiment, point.run.seed, point.value): measure for point, measure in panel.measured
    }
    parts = []
    for seed in sorted({point.run.seed for point, _ in panel.measured}):
        keys = [[(name, seed, value) for value in values] for name in pair]
        if not all(key in of for side in keys for key in side):
            continue
        differences = [of[one] - of[other] for one, other in zip(*keys, strict=True)]
        overtaken = next((value for value, up in crossings(values, differences) if up), None)
        parts.append(f"seed {seed}: {'none' if overtaken is None else _rounded(overtaken)}")
    return ", ".join(parts) or "no seed has all values"


def _rounded(value: float) -> str:
    """To two digits: an interpolation between two sizes is not known better."""
    digits = max(0, math.floor(math.log10(value)) - 1)
    return str(int(round(value / 10**digits) * 10**digits))


def _warnings(sweep: Sweep, points: Sequence[Point], logged: Sequence[str]) -> list[str]:
    assert sweep.over is not None
    lines = []
    absent = [metric for metric in sweep.metrics if metric not in logged]
    if absent:
        lines.append(f"no run has the metric {', '.join(absent)}")
    there = {(point.run.experiment, point.value, point.run.seed) for point in points}
    wanted = [(name, value, seed) for seed in sweep.seeds for value in sweep.over.values for name in sweep.names]
    missing = [item for item in wanted if item not in there]
    if missing:
        some = ", ".join(f"{name} at {value} seed {seed}" for name, value, seed in missing[:LISTED])
        more = f" and {len(missing) - LISTED} more" if len(missing) > LISTED else ""
        lines.append(f"{len(missing)} of {len(wanted)} runs are not finished: {some}{more}")
    if len(points) > len(there):
        lines.append(f"{len(points) - len(there)} runs repeat an experiment, value and seed: they are not independent")
    capped = sum(not point.converged for point in points)
    if capped:
        lines.append(f"{capped} of {len(points)} runs were ended by trainer.max_steps: they had not converged")
    unknown = sum(not point.curve for point in points)
    if unknown:
        lines.append(f"{unknown} runs have no {VALIDATION} in metrics.jsonl and are left out at equal compute")
    allowed = [sweep.over.key, *sweep.differ_only_in]
    configs = [(point.run.experiment, point.run.config()) for point in points]
    references: dict[str, dict[str, Any]] = {}
    keys: dict[str, None] = {}
    for name, config in configs:
        own = references.setdefault(name, config)
        keys |= dict.fromkeys(undeclared(own, config, [sweep.over.key]))
        keys |= dict.fromkeys(undeclared(configs[0][1], config, allowed))
    if keys:
        lines.append(f"the runs differ in more than {sweep.name} declares: {', '.join([*keys][:LISTED])}")
    git = [point.run.results.get("git") or {} for point in points]
    commits = sorted({str(item["commit"])[:8] for item in git if item.get("commit")})
    if len(commits) > 1:
        lines.append(f"the runs are of {len(commits)} commits: {', '.join(commits[:LISTED])}")
    dirty = sum(bool(item.get("dirty")) for item in git)
    if dirty:
        lines.append(f"{dirty} of {len(git)} runs were made with uncommitted changes")
    return lines


def _too_dear(points: Sequence[Point], budget: float | None) -> list[str]:
    absent = sum(bool(point.curve) and budget is not None and point.within(budget) is None for point in points)
    return [f"{absent} runs had not validated once within the compute_budget of {budget:.4g}e9"] if absent else []


# Renderings


def columns(scale: DataScale, panel: Panel) -> dict[str, list[str]]:
    """A panel's table: one column a value, one cell an experiment of the sweep, ``61.2 ± 0.4 (3)``."""
    assert scale.sweep.over is not None
    result = {}
    for value in scale.sweep.over.values:
        if any(value in curve for curve in panel.curves.values()):
            result[str(value)] = [
                _cell(panel.curves.get(name, {}).get(value), panel.metric) for name in scale.sweep.names
            ]
    return result


def _cell(cell: Cell | None, metric: str) -> str:
    if cell is None:
        return "-"
    mark = f" †{cell.incomplete}" if cell.incomplete else ""
    return f"{mean_and_spread(cell.summary, metric)} ({len(cell.summary.values)}){mark}"


def note(panel: Panel) -> str:
    """What a reader must know to read a panel's table."""
    meaning = (
        "ended by the cap on the steps before their stopping criterion"
        if panel.reading == "as trained"
        else "ended before the budget was spent, not converged"
    )
    baseline = ""
    if panel.baseline is not None:
        scale, digits = (100, 1) if is_share(panel.metric) else (1, 3)
        baseline = f" Trivial baseline: {scale * panel.baseline:.{digits}f}."
    return (
        f"{heading(panel.metric)}, {panel.reading}: mean ± sample standard deviation over seeds (number of runs); "
        f"†k: k of them {meaning}.{baseline}"
    )


def as_csv(scale: DataScale) -> str:
    """One line a run and metric, unrounded."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    header = ["reading", "metric", "experiment", "value", "seed", "measured", "steps", "max_steps", "converged"]
    writer.writerow([*header, "batch_size", "forward_gmacs", "training_gmacs", "budget_gmacs", "run"])
    for panel in scale.panels:
        budget = scale.budget if panel.reading == "at equal compute" else None
        for point, measured in panel.measured:
            run = point.run
            line = [panel.reading, panel.metric, run.experiment, point.value, run.seed, measured]
            line += [point.steps, point.max_steps, point.converged]
            writer.writerow([*line, point.batch, point.gmacs, point.total, budget, run.id])
    return text.getvalue()


def as_markdown(scale: DataScale) -> str:
    """A table a panel, the lines on crossings, and the warnings."""
    assert scale.sweep.over is not None
    lines = [f"## {scale.sweep.title}", "", f"Columns: {scale.sweep.over.label}."]
    for panel in scale.panels:
        shown = columns(scale, panel)
        lines += ["", f"### {panel.title}", "", markdown_row(["experiment", *shown])]
        lines.append("|---|" + "---:|" * len(shown))
        for number, name in enumerate(scale.sweep.names):
            lines.append(markdown_row([scale.sweep.label(name), *(cells[number] for cells in shown.values())]))
        lines += ["", note(panel)]
    if scale.crossings:
        lines += ["", "### Crossings", "", *[f"- {line}" for line in scale.crossings]]
        lines += [
            "",
            "Between two sizes: linear in the logarithm of the size. A doubling: least squares from the widest gap on.",
        ]
    if scale.warnings:
        lines += ["", *[f"- Warning: {warning}" for warning in scale.warnings]]
    return "\n".join(lines) + "\n"


def as_json(scale: DataScale) -> list[dict[str, Any]]:
    """A list of objects, one a panel, experiment and value."""
    return [
        {
            "reading": panel.reading,
            "metric": panel.metric,
            "experiment": name,
            "value": value,
            "mean": cell.summary.mean if math.isfinite(cell.summary.mean) else None,
            "spread": cell.summary.spread,
            "n": len(cell.summary.values),
            "incomplete": cell.incomplete,
        }
        for panel in scale.panels
        for name, curve in panel.curves.items()
        for value, cell in curve.items()
    ]


def print_scale(scale: DataScale, console: "Console") -> None:
    """Tables, crossings and warnings on a terminal."""
    from rich.text import Text

    from lightning_vl.report.table import print_groups

    console.print(Text(scale.sweep.title, style="bold"), end="\n\n")
    labels = [scale.sweep.label(name) for name in scale.sweep.names]
    for panel in scale.panels:
        print_groups(labels, [Group(panel.title, columns(scale, panel))], console)
        console.print(Text(note(panel), style="dim"), end="\n\n")
    for line in scale.crossings:
        console.print(Text(line))
    for warning in scale.warnings:
        console.print(Text(f"warning: {warning}", style="yellow"))


def write(scale: DataScale, folder: Path) -> list[Path]:
    """Write data_scale.csv, table.md, figure.png and index.html into a folder; gives their paths."""
    from lightning_vl.report.figure import metric_over_value
    from lightning_vl.report.page import render_data_scale

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "data_scale.csv").write_text(as_csv(scale), encoding="utf-8")
    (folder / "table.md").write_text(as_markdown(scale), encoding="utf-8")
    metric_over_value(scale).savefig(folder / "figure.png", dpi=160)
    (folder / "index.html").write_text(render_data_scale(scale), encoding="utf-8")
    return [folder / name for name in ("data_scale.csv", "table.md", "figure.png", "index.html")]
