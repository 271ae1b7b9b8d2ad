"""A comparison as one HTML page that opens from disk without a network."""

import json
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from lightning_vl.report.data_scale import DataScale, columns, note
from lightning_vl.report.figure import as_svg, convergence, metric_over_value, of_family
from lightning_vl.report.table import (
    Comparison,
    Expectation,
    differing_table,
    groups,
    heading,
    is_share,
    mean_and_spread,
    notes,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MANY = 30  # lines of a table that the page shows in a window of its own
HEADINGS = {"zero_shot": "Zero-shot", "curves": "Curves"}


def render(comparison: Comparison, others: Mapping[str, "Figure"]) -> str:
    """The page: table, figures, expectations, differences, runs; everything inline.

    Args:
        comparison: what to show.
        others: of :func:`lightning_vl.report.figure.beside`.
    """
    scatter = of_family(comparison, titled=False)
    runs = [run for row in comparison.rows for run in (*row.runs, *row.after)]
    metrics = list(dict.fromkeys(name for row in comparison.rows for name in row.metrics))
    return (
        _environment()
        .get_template("page.html")
        .render(
            many=MANY,
            title=comparison.title,
            warnings=comparison.warnings,
            left_out=comparison.left_out,
            metric=comparison.metric,
            comparison=comparison,
            groups=groups(comparison),
            notes=notes(comparison),
            scatter=as_svg(scatter, f"{comparison.metric} over multiply-adds") if scatter else None,
            others={HEADINGS[name]: as_svg(figure, HEADINGS[name]) for name, figure in others.items()},
            metrics=[
                (
                    heading(name),
                    [
                        mean_and_spread(row.metrics[name], name) if name in row.metrics else "-"
                        for row in comparison.rows
                    ],
                )
                for name in metrics
            ],
            expectations=[
                (row.label, _expected(item, row.metrics)) for row in comparison.rows for item in row.expected
            ],
            differing=differing_table(comparison) if comparison.differing else None,
            runs=[_run(run, comparison.metric) for run in runs],
            provenance=_provenance([run.results for run in runs]),
        )
    )


def render_data_scale(scale: DataScale) -> str:
    """The page of a sweep over a value: figure, tables, crossings, curves, runs; everything inline."""
    lines = convergence(scale)
    metric = scale.sweep.metric
    return (
        _environment()
        .get_template("data_scale.html")
        .render(
            many=MANY,
            title=scale.sweep.title,
            warnings=scale.warnings,
            left_out=scale.left_out,
            metric=metric,
            over=scale.sweep.over,
            figure=as_svg(
                metric_over_value(scale, titled=False), f"{metric} over {scale.sweep.over and scale.sweep.over.label}"
            ),
            panels=[(panel.title, columns(scale, panel), note(panel)) for panel in scale.panels],
            labels=[scale.sweep.label(name) for name in scale.sweep.names],
            crossings=scale.crossings,
            convergence=as_svg(lines, "validation top-1 over steps") if lines else None,
            runs=[_run(point.run, metric) for point in scale.points],
            provenance=_provenance([point.run.results for point in scale.points]),
        )
    )


def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("lightning_vl", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _expected(item: Expectation, metrics: dict[str, Any]) -> dict[str, str]:
    scale, digits = (100, 1) if is_share(item.metric) else (1, 3)
    return {
        "metric": heading(item.metric),
        "kind": item.kind,
        "expected": f"{scale * item.value:.{digits}f} ± {scale * item.tolerance:.{digits}f}",
        "measured": mean_and_spread(metrics[item.metric], item.metric) if item.metric in metrics else "-",
        "met": f"{item.met} of {item.runs} runs",
        "source": item.source,
    }


def _run(run: Any, metric: str | None) -> dict[str, str]:
    results = run.results
    git = results.get("git") or {}
    value = run.metrics.get(metric) if metric else None
    hours = results.get("hours")
    return {
        "experiment": run.experiment,
        "id": run.id,
        "seed": str(run.seed),
        "value": "-" if value is None or metric is None else f"{(100 if is_share(metric) else 1) * value:.3g}",
        "steps": str(results.get("steps", "-")),
        "minutes": "-" if hours is None else f"{60 * hours:.1f}",
        "precision": str(results.get("precision", "-")),
        "device": str(results.get("device", "-")),
        "commit": str(git.get("commit") or "-")[:8] + (" + changes" if git.get("dirty") else ""),
        "finished": str(results.get("finished", "-")),
        "folder": run.folder.as_posix(),
    }


def _provenance(results: list[Any]) -> str:
    """Library versions of most of the runs."""
    versions = Counter(json.dumps(item.get("versions") or {}, sort_keys=True) for item in results)
    most = json.loads(versions.most_common(1)[0][0]) if versions else {}
    text = ", ".join(f"{name} {version}" for name, version in most.items())
    return text + (f" (of most runs; {len(versions)} sets of versions in all)" if len(versions) > 1 else "")
