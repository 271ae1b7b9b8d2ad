"""Runs to rows: mean and spread over seeds, what is best, and the table as text, CSV, Markdown and JSON.

Spread is the sample standard deviation over the runs of one experiment (n - 1 in the denominator). The best row is
marked only where the spread allows: it and every other row have at least :data:`SEEDS_TO_MARK` runs, and its interval
mean +- spread meets no other row's.
"""

import csv
import io
import json
import math
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from lightning_vl.report.family import SCRATCH, Sweep, Then
from lightning_vl.report.results import LeftOut, Run

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable

    from lightning_vl.report.core_days import TrainingCost

SEEDS_TO_MARK = 3
GUTTER = 3  # between groups on a terminal
VALUE_WIDTH = 160  # of a configuration's value
MOST_ABREAST = 4  # rows whose configurations stand side by side
DIFFERING_LINES = 20  # on a terminal
LEFT_OUT_LINES = 5  # of run folders that take no part

_SHARES = re.compile(r"top\d|accuracy|matthews|f1|recall|r@\d|_r\d|transfer/|zero_shot(?!.*median_rank)")
_LOWER_IS_BETTER = re.compile(r"loss|error|perplexity|rank")


@dataclass(frozen=True)
class Summary:
    """One metric over the runs of one experiment.

    Attributes:
        mean: arithmetic mean.
        spread: sample standard deviation; None of a single run.
        values: one a run, in the order of the row's runs.
    """

    mean: float
    spread: float | None
    values: tuple[float, ...]


@dataclass(frozen=True)
class Expectation:
    """What an experiment's file expects, against the mean of its runs.

    Attributes:
        metric: logged name.
        value: expected.
        tolerance: how far off it may be.
        kind: "ours" or "paper".
        source: where the value is from.
        met: number of runs that met it.
        runs: number of runs that were held against it.
    """

    metric: str
    value: float
    tolerance: float
    kind: str
    source: str
    met: int
    runs: int


@dataclass(frozen=True)
class Row:
    """One experiment.

    Attributes:
        experiment: its name.
        label: its name in tables and figures.
        runs: by seed.
        metrics: logged name to summary; a metric that some of the runs lack is summarised over the others.
        parameters: of the network of the runs.
        gmacs: multiply-adds of its forward of one sample, in 1e9.
        gflops: twice ``gmacs``.
        expected: see :class:`Expectation`.
        best: whether the table marks it.
        cost: what ``profile`` gave for the experiment that the sweep takes the cost from.
        paper: column key to printed value.
        training: what its file's training costs; None where the sweep has no ``core_days``.
        after: the runs of the sweep's ``then`` that start from this row's, whose metrics are among ``metrics`` too, as
            ``<title>: <logged name>``.
    """

    experiment: str
    label: str
    runs: tuple[Run, ...]
    metrics: dict[str, Summary]
    parameters: int | None
    gmacs: float | None
    gflops: float | None
    expected: tuple[Expectation, ...]
    best: bool = False
    cost: Mapping[str, Any] | None = None
    paper: Mapping[str, float] | None = None
    training: "TrainingCost | None" = None
    after: tuple[Run, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """Everything that a report shows.

    Attributes:
        title: heading.
        metric: that the table is about; None if the runs have none in common.
        rows: one an experiment.
        warnings: one line each.
        left_out: run folders that take no part.
        sweep: the sweep file, if known.
        differing: keys in which the configurations of the rows differ, to {label: value}.
        price_per_core_hour: of the training costs, in dollars; None for the sweep file's.
    """

    title: str
    metric: str | None
    rows: tuple[Row, ...]
    warnings: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    sweep: Sweep | None = None
    differing: dict[str, dict[str, Any]] = field(default_factory=dict)
    price_per_core_hour: float | None = None


def summarise(values: Sequence[float]) -> Summary:
    """Mean and sample standard deviation."""
    spread = statistics.stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else None
    return Summary(math.fsum(values) / len(values), spread, tuple(values))


def make_row(
    label: str, runs: Sequence[Run], cost: Mapping[str, Any] | None = None, paper: Mapping[str, float] | None = None
) -> Row:
    """Summarise the runs of one experiment, at least one."""
    names = dict.fromkeys(name for run in runs for name in run.metrics)
    model = runs[-1].results.get("model") or {}
    return Row(
        experiment=runs[0].experiment,
        label=label,
        runs=tuple(runs),
        metrics={name: summarise([run.metrics[name] for run in runs if name in run.metrics]) for name in names},
        parameters=model.get("parameters"),
        gmacs=model.get("gmacs"),
        gflops=model.get("gflops"),
        expected=tuple(_expectations(runs)),
        cost=cost,
        paper=paper,
    )


def row_without_runs(
    name: str, label: str, paper: Mapping[str, float] | None, training: "TrainingCost | None" = None
) -> Row:
    """A row of printed and computed values alone."""
    return Row(name, label, (), {}, None, None, None, (), paper=paper, training=training)


def add_then(comparison: Comparison, sweep: Sweep, read: Mapping[tuple[str, str, int], Run | LeftOut]) -> Comparison:
    """The rows of a sweep with what was started from their runs, and a row of what was started from nothing.

    Args:
        comparison: of the sweep's own runs.
        sweep: with ``then``.
        read: experiment of ``then``, experiment started from or ``scratch``, and seed, to the run.
    """
    rows, warnings = [*comparison.rows], [*comparison.warnings]
    if any(then.scratch is not None for then in sweep.then):
        rows.append(row_without_runs(SCRATCH, "from scratch", None))
    for number, row in enumerate(rows):
        for then in sweep.then:
            runs = [read.get((then.name, row.experiment, seed)) for seed in sweep.seeds]
            done = [run for run in runs if isinstance(run, Run)]
            missing = [str(seed) for run, seed in zip(runs, sweep.seeds, strict=True) if not isinstance(run, Run)]
            if missing and (row.experiment != SCRATCH or then.scratch is not None):
                warnings.append(f"{then.title} from {row.label} has no finished run of seed {', '.join(missing)}")
            found = {
                then_metric(then, name): summarise([run.metrics[name] for run in done if name in run.metrics])
                for name in (then.metric, *then.baseline)
                if any(name in run.metrics for run in done)
            }
            if done and then_metric(then, then.metric) not in found:
                warnings.append(f"{then.title} from {row.label} has no metric {then.metric}")
            row = replace(row, metrics=row.metrics | found, after=(*row.after, *done))
        rows[number] = row
    left_out = [run for run in read.values() if isinstance(run, LeftOut)]
    return replace(comparison, rows=tuple(rows), warnings=tuple(warnings), left_out=(*comparison.left_out, *left_out))


def then_metric(then: Then, name: str) -> str:
    """How a row calls a metric of what was started from its runs."""
    return f"{then.title}: {name}"


def default_metric(runs: Sequence[Run]) -> str | None:
    """The metric that the runs' experiments expect something of, or else the first of the test metrics."""
    shared = [name for name in runs[0].metrics if all(name in run.metrics for run in runs)]
    expected = [item.get("metric") for run in runs for item in run.results.get("expected") or []]
    tested = [name for name in shared if name.startswith("test/")]
    preferred = [name for name in tested if not lower_is_better(name)]
    return next((name for name in [*expected, *preferred, *tested, *shared] if name in shared), None)


def best_of(rows: Sequence[Row], metric: str) -> Row | None:
    """The row to mark, by the rule at the top of this file; None where the spread does not allow one."""
    if len(rows) < 2 or not all(metric in row.metrics for row in rows):
        return None
    sign = -1 if lower_is_better(metric) else 1
    ranked = sorted(rows, key=lambda row: sign * row.metrics[metric].mean, reverse=True)
    summaries = [row.metrics[metric] for row in ranked]
    if any(summary.spread is None or len(summary.values) < SEEDS_TO_MARK for summary in summaries):
        return None
    first, *others = [(sign * summary.mean, summary.spread or 0.0) for summary in summaries]
    clear = all(first[0] - first[1] > mean + spread for mean, spread in others)
    return ranked[0] if clear else None


def lower_is_better(metric: str) -> bool:
    """Whether a metric's name says that less is better."""
    return bool(_LOWER_IS_BETTER.search(metric))


def is_share(metric: str) -> bool:
    """Whether a metric is a share of 1, which tables show in percent."""
    return bool(_SHARES.search(metric))


def heading(metric: str) -> str:
    """A metric's name with its unit in tables."""
    return f"{metric} (%)" if is_share(metric) else metric


def mean_and_spread(summary: Summary, metric: str) -> str:
    """A summary as tables print it: ``93.1 ± 0.4``."""
    scale, digits = (100, 1) if is_share(metric) else (1, 3)
    mean = f"{scale * summary.mean:.{digits}f}"
    return mean if summary.spread is None else f"{mean} ± {scale * summary.spread:.{digits}f}"


def quantity(value: float | None, digits: int = 4) -> str:
    """A number with so many significant digits and no exponent; a dash for None."""
    if value is None:
        return "-"
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(decimals, 6)}f}"


def short_value(value: Any) -> str:
    """A value of a configuration in one line: an object as ``Class(key=value)``, and cut where it is long."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    if isinstance(value, str) and re.fullmatch(r"lightning_vl(\.\w+)+", value):
        text = value.rpartition(".")[2]
    if isinstance(value, dict) and "class_path" in value:
        inner = ", ".join(f"{key}={short_value(item)}" for key, item in (value.get("init_args") or {}).items())
        text = f"{str(value['class_path']).rpartition('.')[2]}({inner})"
    return text if len(text) <= VALUE_WIDTH else text[: VALUE_WIDTH - 1] + "…"


def differing_table(comparison: Comparison) -> list[list[str]]:
    """The keys in which configurations differ: a heading, then a line a key.

    A column a row of the table where these are few; else the values of a key with the rows that have them.
    """
    labels = list(next(iter(comparison.differing.values()), {}))
    if len(labels) <= MOST_ABREAST:
        lines = [[key, *map(short_value, values.values())] for key, values in comparison.differing.items()]
        return [["key", *labels], *lines]
    result = [["key", "value", "of"]]
    for key, values in comparison.differing.items():
        having: dict[str, list[str]] = {}
        for label, value in values.items():
            having.setdefault(short_value(value), []).append(label)
        for number, (value, names) in enumerate(having.items()):
            more = f" and {len(names) - MOST_ABREAST} more" if len(names) > MOST_ABREAST else ""
            result.append(["" if number else key, value, ", ".join(names[:MOST_ABREAST]) + more])
    return result


# What the table shows, in groups of columns


@dataclass(frozen=True)
class Group:
    """Columns that belong together, one cell a row.

    Attributes:
        title: over the columns.
        columns: heading to cells. A heading may have a line break.
    """

    title: str
    columns: dict[str, list[str]]


def groups(comparison: Comparison) -> list[Group]:
    """The table's columns: measured by these runs, the cost at the size the sweep names, the paper's."""
    rows = comparison.rows
    ours: dict[str, list[str]] = {
        "runs": [str(len(row.runs)) if row.runs else "-" if row.after else "not run" for row in rows]
    }
    for metric in _shown_metrics(comparison):
        name, _, unit = heading(metric).rpartition(" ") if is_share(metric) else (metric, "", "")
        ours[f"{name}\n{unit}"] = [
            (mean_and_spread(row.metrics[metric], metric) if metric in row.metrics else "-")
            + (" *" if row.best and metric == comparison.metric else "")
            for row in rows
        ]
    if any(row.expected for row in rows):
        ours["expected\n(met by)"] = [_expected_cell(row, comparison.metric) for row in rows]
    costed = any(row.cost for row in rows)
    if not costed and any(row.runs for row in rows):
        ours["params\n(1e6)"] = [quantity(_millions(row.parameters)) for row in rows]
        ours["MACs\n(1e9)"] = [quantity(row.gmacs) for row in rows]
    result = [Group("measured", ours)]
    if any(row.after for row in rows) and comparison.sweep:
        result += [Group(f"then: {then.title}", _then_columns(then, rows)) for then in comparison.sweep.then]
    if costed:
        result.append(Group("cost at the paper's size", _cost_columns(rows)))
    if comparison.sweep and comparison.sweep.paper:
        result.append(Group("paper", _paper_columns(comparison.sweep, rows)))
    if any(row.training for row in rows):
        result.append(Group("training, computed", _training_columns(comparison)))
    return result


def notes(comparison: Comparison) -> list[str]:
    """What a reader must know to read the table, one sentence a line."""
    rows, sweep = comparison.rows, comparison.sweep
    data = sorted(
        {str((run.results.get("data") or {}).get("name", "unnamed data")) for row in rows for run in row.runs}
    )
    lines = []
    if data:
        lines.append(f"Measured on {', '.join(data)}: mean ± sample standard deviation over the runs (one a seed).")
    if comparison.metric:
        better = "lowest" if lower_is_better(comparison.metric) else "highest"
        rule = f"* {better} {comparison.metric}, marked where mean ± spread meets no other row's"
        rule += f" (at least {SEEDS_TO_MARK} runs each)"
        lines.append(rule + ("." if any(row.best for row in rows) else ": no row stands out."))
    if sweep and any(row.after for row in rows):
        lines += [
            f"Then {then.title}: {then.name}, started from the best checkpoint of each run"
            + (", and from nothing." if then.scratch is not None else ".")
            for then in sweep.then
        ]
    costs = [row.cost for row in rows if row.cost]
    if costs:
        first = costs[0]
        lines.append(
            "Cost of one forward of the experiment files of the paper's size: MACs of products and convolutions; FLOPs as "
            "the paper counts them, element-wise operations at half weight."
        )
        if first.get("latency_ms") is not None:
            base = next((cost["experiment"] for cost in costs if cost.get("runtime_ratio") == 1), None)
            lines.append(
                f"Runtime over that of {base}: median, batch {first['batch_size']}, {first['precision']}, "
                f"{first['device']}."
            )
    if sweep and sweep.paper:
        apart = "; the measured accuracy is of neither" if sweep.cost else ""
        lines.append(f"Paper: {sweep.paper.source}, as printed, on the paper's data and at its size{apart}.")
    if sweep and sweep.core_days and any(row.training for row in rows):
        from lightning_vl.report.core_days import notes as assumptions

        lines += assumptions(sweep.core_days, comparison.price_per_core_hour)
    return lines


def _shown_metrics(comparison: Comparison) -> list[str]:
    first = [comparison.metric] if comparison.metric else []
    names = dict.fromkeys(name for row in comparison.rows for name in row.metrics)
    others = [name for name in names if name.startswith("test/") and name not in first and is_share(name)]
    return [*first, *others[:2]]


def _then_columns(then: Then, rows: Sequence[Row]) -> dict[str, list[str]]:
    found = [row.metrics.get(then_metric(then, then.metric)) for row in rows]
    columns = {"runs": [str(len(summary.values)) if summary else "-" for summary in found]}
    for name in (then.metric, *then.baseline):  # a baseline has the metric's unit
        cells = [row.metrics.get(then_metric(then, name)) for row in rows]
        unit = "(%)" if is_share(then.metric) else ""
        columns[f"{name}\n{unit}"] = [mean_and_spread(cell, then.metric) if cell else "-" for cell in cells]
    return columns


def _expected_cell(row: Row, metric: str | None) -> str:
    for item in row.expected:
        if item.metric == metric and item.kind == "ours":
            scale, digits = (100, 1) if is_share(item.metric) else (1, 3)
            span = f"{scale * item.value:.{digits}f} ± {scale * item.tolerance:.{digits}f}"
            return f"{span} ({item.met}/{item.runs})"
    return "-"


def _millions(value: float | None) -> float | None:
    return None if value is None else value / 1e6


def _cost_columns(rows: Sequence[Row]) -> dict[str, list[str]]:
    def column(make: Callable[[Mapping[str, Any]], str]) -> list[str]:
        return [make(row.cost) if row.cost else "-" for row in rows]

    columns = {
        "params\n(1e6)": column(lambda cost: f"{cost['parameters'] / 1e6:.1f}"),
        "MACs\n(1e9)": column(lambda cost: quantity(cost["gmacs"])),
        "paper's\nFLOPs (1e9)": column(lambda cost: quantity(cost["paper_gflops"])),
    }
    if any(row.cost and row.cost.get("runtime_ratio") is not None for row in rows):
        columns["runtime\n(ratio)"] = column(lambda cost: ratio(cost.get("runtime_ratio")))
    return columns


def _training_columns(comparison: Comparison) -> dict[str, list[str]]:
    rows, assumed = comparison.rows, comparison.sweep.core_days if comparison.sweep else None
    assert assumed is not None
    price, printed = comparison.price_per_core_hour, assumed.printed or ""
    price = assumed.price_per_core_hour if price is None else price

    def column(make: Callable[["TrainingCost"], str]) -> list[str]:
        return [make(row.training) if row.training else "-" for row in rows]

    days = [(row.paper or {}).get(printed) for row in rows]
    return {
        "images\n(1e6)": column(lambda cost: quantity(cost.images / 1e6)),
        "MACs\n(1e9)": column(lambda cost: quantity(cost.gmacs)),
        "exaFLOPs\n": column(lambda cost: f"{cost.exaflops:.0f}"),
        "core-\ndays": column(lambda cost: f"{cost.core_days:.0f}"),
        "agreeing\n(%)": column(lambda cost: "-" if cost.agreeing is None else f"{100 * cost.agreeing:.1f}"),
        "price\n($)": column(lambda cost: f"{cost.dollars:,.0f}"),
        "of printed\n($)": ["-" if value is None else f"{24 * price * value:,.0f}" for value in days],
    }


def _paper_columns(sweep: Sweep, rows: Sequence[Row]) -> dict[str, list[str]]:
    paper = sweep.paper
    assert paper is not None
    columns = {}
    for key, title in paper.columns.items():
        name, _, unit = title.partition(" (")
        values = [(row.paper or {}).get(key) for row in rows]
        decimals = max((len(f"{value:g}".partition(".")[2]) for value in values if value is not None), default=0)
        columns[f"{name}\n({unit}" if unit else title] = [
            "-" if value is None else f"{value:.{decimals}f}" for value in values
        ]
        if key == paper.runtime:
            columns["runtime\n(ratio)"] = [ratio(paper_runtime_ratio(sweep, row)) for row in rows]
    return columns


def paper_runtime_ratio(sweep: Sweep, row: Row) -> float | None:
    """The paper's runtime of an experiment over that of the sweep's baseline."""
    paper = sweep.paper
    if paper is None or paper.runtime is None or row.paper is None:
        return None
    base = paper.rows.get(sweep.runtime_baseline or sweep.names[0], {}).get(paper.runtime)
    value = row.paper.get(paper.runtime)
    return value / base if value is not None and base else None


def ratio(value: float | None) -> str:
    """A ratio to two decimals; a dash for None."""
    return "-" if value is None else f"{value:.2f}"


def _expectations(runs: Sequence[Run]) -> Iterable[Expectation]:
    # An experiment's file may have changed between runs: what the last one expects is held against it alone if so.
    for item in runs[-1].results.get("expected") or []:
        same = [
            other
            for run in runs
            for other in run.results.get("expected") or []
            if all(other.get(key) == item.get(key) for key in ("metric", "value", "tolerance", "kind", "source"))
        ]
        yield Expectation(
            metric=str(item.get("metric")),
            value=float(item.get("value", math.nan)),
            tolerance=float(item.get("tolerance", 0.0)),
            kind=str(item.get("kind", "ours")),
            source=str(item.get("source", "")),
            met=sum(bool(other.get("met")) for other in same),
            runs=sum(other.get("met") is not None for other in same),
        )


# Renderings


def as_json(comparison: Comparison) -> list[dict[str, Any]]:
    """A list of objects, one an experiment, that is valid JSON: what is no number is null."""
    result = []
    for row in comparison.rows:
        result.append(
            {
                "experiment": row.experiment,
                "label": row.label,
                "parameters": row.parameters,
                "gmacs": row.gmacs,
                "gflops": row.gflops,
                "n": len(row.runs),
                "seeds": [run.seed for run in row.runs],
                "runs": [run.folder.as_posix() for run in row.runs],
                "metrics": {
                    name: {
                        "mean": _finite(summary.mean),
                        "spread": _finite(summary.spread),
                        "values": [_finite(value) for value in summary.values],
                    }
                    for name, summary in row.metrics.items()
                },
                "best": row.best,
                "differs_in": {key: values.get(row.label) for key, values in comparison.differing.items()},
                "expected": [vars(item) for item in row.expected],
                "cost": None if row.cost is None else dict(row.cost),
                "paper": None if row.paper is None else dict(row.paper),
                "training": None if row.training is None else asdict(row.training),
            }
        )
    return result


def as_csv(comparison: Comparison) -> str:
    """One line an experiment, one column a number, unrounded and in the units of the logged metrics."""
    lines: list[dict[str, Any]] = []
    for row in comparison.rows:
        line: dict[str, Any] = {
            "experiment": row.experiment,
            "n": len(row.runs),
            "seeds": " ".join(str(run.seed) for run in row.runs),
            "parameters": row.parameters,
            "gmacs": row.gmacs,
            "gflops": row.gflops,
            "best": row.best,
        }
        for key, values in comparison.differing.items():
            value = values.get(row.label)
            line[f"config {key}"] = value if isinstance(value, str) else json.dumps(value, default=str)
        for name, summary in row.metrics.items():
            line |= {f"{name} mean": summary.mean, f"{name} spread": summary.spread}
        for then in comparison.sweep.then if comparison.sweep else ():
            name = then_metric(then, then.metric)
            if name in row.metrics:
                line[f"{name} n"] = len(row.metrics[name].values)
        for key in ("experiment", "parameters", "gmacs", "gflops", "paper_gflops", "latency_ms", "runtime_ratio"):
            if row.cost is not None:
                line[f"cost {key}"] = row.cost.get(key)
        line |= {f"paper {key}": value for key, value in (row.paper or {}).items()}
        line |= {f"training {key}": value for key, value in (asdict(row.training) if row.training else {}).items()}
        lines.append(line)
    text = io.StringIO()
    fields = list(dict.fromkeys(key for line in lines for key in line))
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def as_markdown(comparison: Comparison) -> str:
    """The table with its notes and warnings."""
    names, cells = ["experiment"], [[row.label] for row in comparison.rows]
    several = groups(comparison)
    for group in several:
        for column, values in group.columns.items():
            prefix = f"{group.title}: " if len(several) > 1 else ""
            names.append(prefix + column.replace("\n", " ").strip())
            for line, value in zip(cells, values, strict=True):
                line.append(value)
    lines = [f"## {comparison.title}", "", markdown_row(names), "|---|" + "---:|" * (len(names) - 1)]
    lines += [markdown_row(line) for line in cells]
    lines += ["", *[f"{note}  " for note in notes(comparison)]]
    if comparison.warnings:
        lines += ["", *[f"- Warning: {warning}" for warning in comparison.warnings]]
    if comparison.differing and comparison.sweep is None:  # a sweep's file says in what its experiments differ
        first, *others = differing_table(comparison)
        lines += ["", "Where the configurations differ:", "", markdown_row(first), "|" + "---|" * len(first)]
        lines += [markdown_row(line) for line in others]
    if comparison.left_out:
        lines += ["", *[f"- Left out: {item}" for item in comparison.left_out]]
    return "\n".join(lines) + "\n"


def markdown_row(cells: Sequence[str]) -> str:
    """One row of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def print_table(comparison: Comparison, console: "Console") -> None:
    """The table with notes and warnings on a terminal."""
    from rich.text import Text

    console.print(Text(comparison.title, style="bold"), end="\n\n")
    labels = [row.label for row in comparison.rows]
    print_groups(labels, groups(comparison), console, bold=[row.best for row in comparison.rows])
    for note in notes(comparison):
        console.print(Text(note, style="dim"))
    if comparison.differing:
        console.print(_differing(comparison))
    for warning in comparison.warnings:
        console.print(Text(f"warning: {warning}", style="yellow"))
    for item in comparison.left_out[:LEFT_OUT_LINES]:
        console.print(Text(f"left out: {item}", style="yellow"))
    if len(comparison.left_out) > LEFT_OUT_LINES:
        console.print(Text(f"left out: {len(comparison.left_out) - LEFT_OUT_LINES} more run folders", style="yellow"))


def _differing(comparison: Comparison) -> "RichTable":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    first, *lines = differing_table(comparison)
    table = Table(
        title="\nKeys that differ, without init_args", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD
    )
    table.show_edge = table.pad_edge = False
    for name in first:
        table.add_column(name, overflow="fold", no_wrap=name == "key")
    for line in lines[:DIFFERING_LINES]:
        table.add_row(Text(line[0].replace("init_args.", "")), *map(Text, line[1:]))  # else too long for a line
    if len(lines) > DIFFERING_LINES:
        table.caption = f"and {len(lines) - DIFFERING_LINES} more lines: --out DIR writes them all"
    return table


def print_groups(labels: Sequence[str], shown: Sequence[Group], console: "Console", bold: Sequence[bool] = ()) -> None:
    """Groups side by side where the terminal is wide enough, else one under the other, each with the labels."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    def make(title: str, columns: Mapping[str, list[str]], labelled: bool = True) -> Table:
        table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
        table.show_edge = False
        if labelled:
            table.add_column("\nexperiment", no_wrap=True)
        for column in columns:
            table.add_column(column if "\n" in column else f"{column}\n", justify="right", no_wrap=True)
        for number, label in enumerate(labels):
            cells = [label] * labelled + [cells[number] for cells in columns.values()]
            table.add_row(*map(Text, cells), style="bold" if bold and bold[number] else None)
        return table

    def width(table: Table) -> int:
        return console.measure(table, options=console.options.update(width=10_000)).maximum

    together = [make(group.title, group.columns, labelled=number == 0) for number, group in enumerate(shown)]
    if sum(map(width, together)) + GUTTER * (len(together) - 1) <= console.width:
        line = Table.grid(padding=(0, GUTTER))
        line.add_row(*together)
        console.print(line)
        console.print()
        return
    for group in shown:
        part: dict[str, list[str]] = {}
        for column, cells in group.columns.items():
            if part and width(make(group.title, {**part, column: cells})) > console.width:
                console.print(make(group.title, part))
                console.print()
                part = {}
            part[column] = cells
        console.print(make(group.title, part))
        console.print()


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
