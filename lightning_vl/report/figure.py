"""Figures of a comparison, drawn without matplotlib's global state.

Labels stand beside what they name; colours are those of Okabe and Ito, which the colour-blind tell apart, the orange
darker so that text in it can be read.
"""

import io
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox

from lightning_vl.report.data_scale import DataScale, Panel
from lightning_vl.report.table import Comparison, Row, heading, is_share, lower_is_better, summarise, then_metric
from lightning_vl.report.zero_shot import PREFIX as ZERO_SHOT

# Of each family of networks a hue, light to dark: the shades are its sizes.
HUES = (("#56B4E9", "#0072B2", "#00365A"), ("#F0A868", "#D55E00", "#7A2E00"), ("#66C2A5", "#009E73", "#004D38"))
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B8860B", "#56B4E9", "#000000")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
GREY = "#555555"
MOST_CURVES = 12
MOST_STEPS = 300  # of a curve: more than its pixels would only make the page large
MOST_NAMES = 15  # in a scatter
MOST_BARS = 6  # of a data set
PANELS_ABREAST = 2
NEAR = 9  # points between a marker and its label
ANCHORS = {"left": (0.0, 0.5), "right": (1.0, 0.5), "center": (0.5, 0.5)}  # where a line leaves a label
LOG_FROM = 10.0  # compute that spans more than this factor is drawn on a logarithmic axis


def of_family(comparison: Comparison, titled: bool = True) -> Figure | None:
    """What a family's figure shows: what its runs were worth afterwards where it has ``then``, else accuracy over compute."""
    draw = worth_afterwards if comparison.sweep and comparison.sweep.then else accuracy_over_compute
    return draw(comparison, titled)


def beside(comparison: Comparison) -> dict[str, Figure]:
    """What stands beside the family's figure, by the name of its file, where there is something to draw."""
    drawn = {"zero_shot": zero_shot_bars(comparison), "curves": curves(comparison)}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def accuracy_over_compute(comparison: Comparison, titled: bool = True) -> Figure | None:
    """The metric over the multiply-adds of a forward, spread as bars; the paper's figures in a panel of their own.

    None where the runs have no metric in common or no row has its operations counted.

    Args:
        comparison: what to draw.
        titled: whether the comparison's title stands over it.
    """
    metric = comparison.metric
    rows = [
        row
        for row in comparison.rows
        if metric in row.metrics and math.isfinite(row.metrics[metric].mean) and _compute(row) is not None
    ]
    if metric is None or not rows:
        return None
    scale = 100 if is_share(metric) else 1
    points = [
        _Point(
            x=_compute(row) or 0.0,
            y=scale * row.metrics[metric].mean,
            spread=scale * (row.metrics[metric].spread or 0.0),
            label=row.label,
            style=comparison.rows.index(row),
        )
        for row in rows
    ]
    paper = _paper_points(comparison)
    figure = _figure(11.5 if paper else 7.0, 4.6)
    axes = figure.subplots(1, 2 if paper else 1, squeeze=False)[0]
    data = sorted({str((run.results.get("data") or {}).get("name", "")) for row in rows for run in row.runs} - {""})
    counts = sorted({len(row.runs) for row in rows})
    number = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    size = "paper's size, " if any(row.cost for row in rows) else ""
    _scatter(
        axes[0],
        points,
        title=f"Measured{' on ' + ', '.join(data) if data else ''}",
        x=f"multiply-adds of a forward ({size}1e9)",
        y=heading(metric) + (", lower is better" if lower_is_better(metric) else ""),
    )
    if paper and comparison.sweep and comparison.sweep.paper and comparison.sweep.paper.figure:
        columns, keys = comparison.sweep.paper.columns, comparison.sweep.paper.figure
        _scatter(
            axes[1], paper, title=f"Paper: {comparison.sweep.paper.source}", x=columns[keys["x"]], y=columns[keys["y"]]
        )
    if titled:
        figure.suptitle(comparison.title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    bars = f"Bars: ± sample standard deviation over {number} runs." if any(point.spread for point in points) else ""
    bars = bars or f"{number} run{'s' * (number != '1')} each."
    caption = figure.supxlabel(bars, x=0.01, ha="left", fontsize=9, color=GREY)
    figure.draw_without_rendering()  # settles the layout, so that labels can be placed
    figure.set_layout_engine("none")
    unlabelled = _direct_labels(axes[0], points)
    if unlabelled:
        caption.set_text(
            f"{caption.get_text()} {unlabelled} of {len(points)} points are not named: the table has them."
        )
    if paper:
        _direct_labels(axes[1], paper)
    return figure


def worth_afterwards(comparison: Comparison, titled: bool = True) -> Figure | None:
    """A panel for the sweep's metric and one for each experiment of ``then``: a bar a row, spread as a line, baselines dashed.

    None where no run is there.

    Args:
        comparison: of a sweep with ``then``.
        titled: whether the comparison's title stands over it.
    """
    assert comparison.sweep is not None
    panels: list[tuple[str, str, Sequence[str]]] = []  # title, metric of the rows, baselines
    if comparison.metric is not None:
        panels.append(("measured", comparison.metric, ()))
    for then in comparison.sweep.then:
        names = [then_metric(then, baseline) for baseline in then.baseline]
        panels.append((f"then: {then.title}", then_metric(then, then.metric), names))
    panels = [panel for panel in panels if any(panel[1] in row.metrics for row in comparison.rows)]
    if not panels:
        return None
    rows = comparison.rows
    figure = _figure(3.2 + 3.0 * len(panels), 1.6 + 0.42 * len(rows))
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for panel, (title, metric, baselines) in zip(axes, panels, strict=True):
        _bars_panel(panel, rows, title, metric, baselines)
    axes[0].set_yticks(range(len(rows)), [row.label for row in rows])
    axes[0].invert_yaxis()
    if titled:
        figure.suptitle(comparison.title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    counts = sorted(
        {len(row.metrics[metric].values) for row in rows for _, metric, _ in panels if metric in row.metrics}
    )
    number = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    text = f"{number} run{'s' * (number != '1')} each; a line is ± the sample standard deviation over several."
    if any(baselines for _, _, baselines in panels):
        text += " Dashed: baselines of the same runs, " + ", ".join(
            dict.fromkeys(name.removeprefix("baseline/") for then in comparison.sweep.then for name in then.baseline)
        )
    figure.supxlabel(text, x=0.01, ha="left", fontsize=9, color=GREY)
    return figure


def _bars_panel(axes: Axes, rows: Sequence[Row], title: str, metric: str, baselines: Sequence[str]) -> None:
    scale = 100 if is_share(metric) else 1
    longest = 0.0
    for place, row in enumerate(rows):
        if metric in row.metrics:
            value, spread = scale * row.metrics[metric].mean, scale * (row.metrics[metric].spread or 0.0)
            axes.barh(place, value, 0.62, color=COLOURS[0], xerr=spread or None, ecolor="black", capsize=3)
            at, backed = (value + spread, place), {"facecolor": "white", "edgecolor": "none", "pad": 1}
            axes.annotate(f"{value:.1f}", at, (5, 0), textcoords="offset points", va="center", fontsize=9, bbox=backed)
            longest = max(longest, value + spread)
    for name in baselines:
        values = [scale * row.metrics[name].mean for row in rows if name in row.metrics]
        if values:
            axes.axvline(statistics.mean(values), color=GREY, linestyle="--", linewidth=1.2)
            longest = max(longest, *values)
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel(heading(metric.rpartition(": ")[2]))
    axes.set_xlim(0, 1.18 * longest)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def zero_shot_bars(comparison: Comparison) -> Figure | None:
    """A group of bars for each data set of zero-shot classification: a bar a row, spread as a line, the commonest class dashed.

    None where no run was tested so. Of many rows the best by the mean over the data sets are drawn.
    """
    names = dict.fromkeys(name for row in comparison.rows for name in row.metrics if name.startswith(ZERO_SHOT))
    data_sets = [name.removeprefix(ZERO_SHOT).removesuffix("/top1") for name in names if name.endswith("/top1")]
    if not data_sets:
        return None
    metrics = {data_set: f"{ZERO_SHOT}{data_set}/top1" for data_set in data_sets}
    tested = [row for row in comparison.rows if any(metric in row.metrics for metric in metrics.values())]
    ranked = sorted(
        tested, key=lambda row: -statistics.fmean(row.metrics[m].mean for m in metrics.values() if m in row.metrics)
    )
    rows = [row for row in tested if row in ranked[:MOST_BARS]]
    thickness = 0.8 / len(rows)
    figure = _figure(8.0, 1.5 + len(data_sets) * (0.2 + 0.22 * len(rows)))
    axes = figure.subplots()
    for group, data_set in enumerate(data_sets):
        for number, row in enumerate(rows):
            if metrics[data_set] in row.metrics:
                found, place = row.metrics[metrics[data_set]], group - 0.4 + thickness * (number + 0.5)
                value, spread = 100 * found.mean, 100 * (found.spread or 0)
                colour = COLOURS[number % len(COLOURS)]
                axes.barh(place, value, 0.9 * thickness, color=colour, xerr=spread or None, ecolor="black", capsize=2)
                at = (value + spread, place)
                axes.annotate(f"{value:.1f}", at, (4, 0), textcoords="offset points", va="center", fontsize=8)
        chance = [
            row.metrics[name].mean for row in rows if (name := f"baseline/zero_shot_{data_set}_majority") in row.metrics
        ]
        if chance:
            ends = (group - 0.45, group + 0.45)
            axes.plot([100 * statistics.fmean(chance)] * 2, ends, color="black", linestyle="--", linewidth=1.2)
    axes.set_yticks(range(len(data_sets)), [name.replace("_", " ") for name in data_sets])
    axes.set_ylim(len(data_sets) - 0.5, -0.5)  # the first on top
    axes.set_xlim(0, 108)  # room for the number of a whole bar
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("zero-shot top-1 (%)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    if len(rows) > 1:
        handles = [
            Line2D([], [], color=COLOURS[number % len(COLOURS)], linewidth=6, label=row.label)
            for number, row in enumerate(rows)
        ]
        figure.legend(handles=handles, loc="outside upper left", ncols=min(len(rows), 3), frameon=False)
    few = f" The {len(rows)} best of {len(tested)}." if len(rows) < len(tested) else ""
    text = f"Bars: mean over the runs; a line is ± the sample standard deviation.{few} Dashed: the commonest class."
    figure.supxlabel(text, x=0.01, ha="left", fontsize=9, color=GREY)
    return figure


def curves(comparison: Comparison) -> Figure | None:
    """The validation metric and the training loss over steps: mean of the runs, and a band of ± the spread.

    None where no run has logged either.
    """
    suffix = (comparison.metric or "").partition("/")[2]
    wanted = [name for name in (f"val/{suffix}", "train/loss") if suffix or name == "train/loss"]
    rows = _best(comparison)
    logged = {row.label: [run.curves(wanted) for run in row.runs] for row in rows}
    panels = [name for name in wanted if any(name in curve for runs in logged.values() for curve in runs)]
    if not panels:
        return None
    figure = _figure(6.6 * len(panels), 4.4)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    ends = [_curves_panel(panel, name, logged) for panel, name in zip(axes, panels, strict=True)]
    few = f" The {len(rows)} best of {len(comparison.rows)} experiments." if len(rows) < len(comparison.rows) else ""
    longest = max(len(curve) for runs in logged.values() for run in runs for curve in run.values())
    few += f" At most {MOST_STEPS} steps of a curve are drawn." if longest > MOST_STEPS else ""
    figure.supxlabel(
        f"Lines: mean over the runs. Bands: ± sample standard deviation.{few}",
        x=0.01,
        ha="left",
        fontsize=9,
        color=GREY,
    )
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for panel, end in zip(axes, ends, strict=True):
        _end_labels(panel, end)
    return figure


def metric_over_value(scale: DataScale, titled: bool = True) -> Figure:
    """Every panel of a sweep over a value: one line an experiment, a band of ± the spread, the trivial baseline dashed.

    A hollow marker stands for at least one run that the reading is not fair to (see :class:`Cell`).

    Args:
        scale: what to draw.
        titled: whether the sweep's title stands over it.
    """
    assert scale.sweep.over is not None
    rows = -(-len(scale.panels) // PANELS_ABREAST)
    abreast = min(len(scale.panels), PANELS_ABREAST)
    figure = _figure(6.8 * abreast, 4.5 * rows + 0.3)
    grid = list(figure.subplots(rows, abreast, squeeze=False).flat)
    for unused in grid[len(scale.panels) :]:
        unused.remove()
    if titled:
        figure.suptitle(scale.sweep.title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    ends = [_value_panel(axes, panel, scale) for axes, panel in zip(grid, scale.panels, strict=False)]
    counts = sorted({len(cell.summary.values) for p in scale.panels for c in p.curves.values() for cell in c.values()})
    number = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    figure.supxlabel(
        f"Lines: mean over {number} seed{'s' * (number != '1')}. Bands: ± sample standard deviation. "
        "Hollow: not all runs had converged.",
        x=0.01,
        ha="left",
        fontsize=9,
        color=GREY,
    )
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes, end in zip(grid, ends, strict=False):
        _end_labels(axes, end)
    return figure


def convergence(scale: DataScale) -> Figure | None:
    """Validation top-1 over steps of every run, a panel a value; a dot where its criterion ended a run, a cross at the cap.

    None where no run has logged it.
    """
    values = sorted({point.value for point in scale.points if point.curve})
    if not values:
        return None
    assert scale.sweep.over is not None
    abreast = min(len(values), 3)
    rows = -(-len(values) // abreast)
    figure = _figure(4.4 * abreast, 2.9 * rows + 0.5)
    grid = list(figure.subplots(rows, abreast, squeeze=False, sharey=True).flat)
    for unused in grid[len(values) :]:
        unused.remove()
    styles = _styles(scale)
    for axes, value in zip(grid, values, strict=False):
        for point in scale.points:
            if point.value == value and point.curve:
                colour, _ = styles[point.run.experiment]
                steps, shares = [*point.curve], [100 * share for share in point.curve.values()]
                axes.plot(steps, shares, color=colour, linewidth=1.2)
                axes.plot(steps[-1], shares[-1], color=colour, marker="o" if point.converged else "x", markersize=6)
        _plain(axes, f"{value} {scale.sweep.over.label}", "step", "val/top1 (%)")
        axes.set_xlim(left=0)
    handles = [
        Line2D([], [], color=styles[name][0], label=scale.sweep.label(name))
        for name in scale.sweep.names
        if name in styles
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles), frameon=False)
    figure.supxlabel(
        "A line a run. Dot: ended by its stopping criterion. Cross: ended by the cap on the steps.",
        x=0.01,
        ha="left",
        fontsize=9,
        color=GREY,
    )
    return figure


def _styles(scale: DataScale) -> dict[str, tuple[str, str]]:
    """Experiment to colour and marker: a hue a family, a shade a size, ordered by the multiply-adds of a forward."""
    sizes = {point.run.experiment: point.gmacs or 0.0 for point in scale.points}
    families = {point.run.experiment: point.family for point in scale.points}
    styles = {}
    for hue, family in enumerate(dict.fromkeys(families[name] for name in scale.sweep.names if name in families)):
        members = sorted((name for name in families if families[name] == family), key=lambda name: sizes[name])
        shades = HUES[hue % len(HUES)]
        for rank, name in enumerate(members):
            shade = 1 if len(members) == 1 else round(rank * (len(shades) - 1) / (len(members) - 1))
            styles[name] = (shades[shade], MARKERS[(hue * 3 + rank) % len(MARKERS)])
    return styles


def _value_panel(axes: Axes, panel: Panel, scale: DataScale) -> list[tuple[float, float, str, str]]:
    """Draw one metric in one reading; gives the ends of the lines for their labels."""
    assert scale.sweep.over is not None
    factor = 100 if is_share(panel.metric) else 1
    styles, ends, shown = _styles(scale), [], set[int]()
    for name, curve in panel.curves.items():
        colour, marker = styles[name]
        values = [*curve]
        means = [factor * cell.summary.mean for cell in curve.values()]
        spreads = [factor * (cell.summary.spread or 0.0) for cell in curve.values()]
        axes.plot(values, means, color=colour, linewidth=1.8)
        low = [mean - spread for mean, spread in zip(means, spreads, strict=True)]
        high = [mean + spread for mean, spread in zip(means, spreads, strict=True)]
        axes.fill_between(values, low, high, color=colour, alpha=0.18, linewidth=0)
        for value, mean, cell in zip(values, means, curve.values(), strict=True):
            face = "white" if cell.incomplete else colour
            axes.plot(value, mean, color=colour, marker=marker, markersize=7, markerfacecolor=face, markeredgewidth=1.6)
        ends.append((float(values[-1]), means[-1], scale.sweep.label(name), colour))
        shown |= set(values)
    _plain(axes, panel.title, scale.sweep.over.label, heading(panel.metric))
    axes.set_xscale("log")
    ticks = sorted(shown)
    axes.set_xticks(ticks, [f"{value:,}" for value in ticks], fontsize=9)
    axes.set_xticks([], minor=True)
    span = math.log(ticks[-1] / ticks[0]) or 1.0
    axes.set_xlim(ticks[0] * math.exp(-0.05 * span), ticks[-1] * math.exp(0.38 * span))  # room for the labels
    if panel.baseline is not None:
        axes.axhline(factor * panel.baseline, color=GREY, linestyle="--", linewidth=1)
        axes.annotate(
            "trivial baseline",
            (0.99, factor * panel.baseline),
            xycoords=("axes fraction", "data"),
            xytext=(0, 3),
            textcoords="offset points",
            fontsize=8,
            color=GREY,
            ha="right",
        )
    return ends


def as_svg(figure: Figure, description: str) -> str:
    """A figure as an SVG element to stand inside an HTML page, without a network or a font of its own."""
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": description}):  # the same figure gives the same text
        figure.savefig(text, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    label = description.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


class _Point:
    """A marker with a label and a vertical bar; ``style`` numbers its colour and form."""

    def __init__(self, x: float, y: float, spread: float, label: str, style: int) -> None:
        self.x, self.y, self.spread, self.label = x, y, spread, label
        self.colour = COLOURS[style % len(COLOURS)]
        self.marker = MARKERS[style % len(MARKERS)]


def _best(comparison: Comparison) -> list[Row]:
    """As many rows as a panel of curves can hold, the best by the metric, in the table's order."""
    metric = comparison.metric
    if metric is None or len(comparison.rows) <= MOST_CURVES:
        return list(comparison.rows[:MOST_CURVES])
    sign = 1 if lower_is_better(metric) else -1
    ranked = sorted(
        (row for row in comparison.rows if metric in row.metrics), key=lambda row: sign * row.metrics[metric].mean
    )
    return [row for row in comparison.rows if row in ranked[:MOST_CURVES]]


def _figure(width: float, height: float) -> Figure:
    """A figure of so many inches with a canvas of its own, which pyplot knows nothing of."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _compute(row: Row) -> float | None:
    value = row.cost.get("gmacs") if row.cost else row.gmacs
    return None if value is None else float(value)


def _paper_points(comparison: Comparison) -> list[_Point]:
    paper = comparison.sweep.paper if comparison.sweep else None
    if paper is None or paper.figure is None:
        return []
    x, y = paper.figure["x"], paper.figure["y"]
    return [
        _Point(row.paper[x], row.paper[y], 0.0, row.label, number)
        for number, row in enumerate(comparison.rows)
        if row.paper and x in row.paper and y in row.paper
    ]


def _scatter(axes: Axes, points: Sequence[_Point], title: str, x: str, y: str) -> None:
    _plain(axes, title, x, y)
    for point in points:
        axes.errorbar(
            point.x,
            point.y,
            yerr=point.spread or None,
            color=point.colour,
            marker=point.marker,
            markersize=7,
            capsize=3,
            linewidth=1.5,
        )
    low, high = min(point.x for point in points), max(point.x for point in points)
    if low > 0 and high / low > LOG_FROM:
        axes.set_xscale("log")
        axes.set_xlim(low / 2, high * 4)
    else:
        margin = (high - low) or abs(high) or 1.0
        axes.set_xlim(low - 0.12 * margin, high + 0.35 * margin)  # labels stand to the right
    axes.margins(y=0.15)


def _direct_labels(axes: Axes, points: Sequence[_Point]) -> int:
    """Writes each label at the nearest free place around its marker, with a thin line to it where that is not close.

    Gives the number of points for whose labels there was no place.
    """
    unlabelled = 0
    figure = axes.figure
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    frame = axes.get_window_extent(renderer)
    unit = figure.dpi / 72  # pixels of a point
    taken = []
    for point in points:
        x, low = axes.transData.transform((point.x, point.y - point.spread))
        _, high = axes.transData.transform((point.x, point.y + point.spread))
        taken.append(Bbox.from_extents(x - 5 * unit, low - 4 * unit, x + 5 * unit, high + 4 * unit))
    # From the top down, so that labels which must give way keep the order of their markers.
    ordered = sorted(points, key=lambda point: -point.y)
    unlabelled += len(ordered[MOST_NAMES:])
    for point in ordered[:MOST_NAMES]:
        x, y = axes.transData.transform((point.x, point.y))
        probe = axes.text(0, 0, point.label, fontsize=10)
        size = probe.get_window_extent(renderer)
        probe.remove()
        for dx, dy, side in _places():
            left = x + dx * unit - {"left": 0, "center": size.width / 2, "right": size.width}[side]
            box = Bbox.from_bounds(left, y + dy * unit - size.height / 2, size.width, size.height)
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            if inside and not any(box.overlaps(other) for other in taken):
                break
        else:
            unlabelled += 1  # nothing can be read where names cover each other: the table has them all
            continue
        taken.append(box)
        far = abs(dx) > NEAR or abs(dy) > 1.5 * NEAR
        axes.annotate(
            point.label,
            (point.x, point.y),
            xytext=(dx, dy),
            textcoords="offset points",
            color=point.colour,
            fontsize=10,
            va="center",
            ha=side,
            arrowprops={
                "arrowstyle": "-",
                "color": point.colour,
                "linewidth": 0.7,
                "shrinkA": 1,
                "shrinkB": 4,
                "relpos": ANCHORS[side],
            }
            if far
            else None,
        )
    return unlabelled


def _places() -> list[tuple[int, int, str]]:
    """Offsets in points and the label's side that is held there, the best first: right, then left, near before far."""
    places = [(NEAR, dy, "left") for dy in _outwards(1)] + [(24, dy, "left") for dy in _outwards(6)]
    places += [(-NEAR, dy, "right") for dy in _outwards(1)] + [(-24, dy, "right") for dy in _outwards(6)]
    places += [(0, dy, "center") for dy in (14, -14, 28, -28)]
    return sorted(
        places, key=lambda place: abs(place[0]) + 1.5 * abs(place[1]) + {"left": 0, "center": 8, "right": 10}[place[2]]
    )


def _outwards(steps: int) -> list[int]:
    """0, 8, -8, 16, -16, ... points."""
    return [sign * 8 * step for step in range(steps + 1) for sign in (1, -1)]


def _curves_panel(
    axes: Axes, name: str, logged: Mapping[str, Sequence[Mapping[str, Any]]]
) -> list[tuple[float, float, str, str]]:
    """Draw one metric of all experiments; gives the ends of the lines for their labels."""
    scale = 100 if is_share(name) else 1
    ends: list[tuple[float, float, str, str]] = []
    last = 0
    for number, (label, runs) in enumerate(logged.items()):
        of_runs = [run[name] for run in runs if name in run]
        # Steps that every run has logged: otherwise the mean jumps where a run is missing.
        steps = sorted(set.intersection(*[set(curve) for curve in of_runs])) if of_runs else []
        if not steps:
            continue
        steps = _thinned(steps)
        summaries = [summarise([scale * curve[step] for curve in of_runs]) for step in steps]
        means = [summary.mean for summary in summaries]
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(steps, means, color=colour, linewidth=1.6)
        if len(of_runs) > 1:
            low = [summary.mean - (summary.spread or 0) for summary in summaries]
            high = [summary.mean + (summary.spread or 0) for summary in summaries]
            axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
        ends.append((steps[-1], means[-1], label, colour))
        last = max(last, steps[-1])
    _plain(axes, name, "step", heading(name))
    axes.set_xlim(0, 1.5 * max(last, 1))  # room for the labels
    axes.set_xticks([tick for tick in axes.get_xticks() if 0 <= tick <= last])
    return ends


def _thinned(steps: Sequence[int]) -> list[int]:
    """At most so many of the steps that a curve has, evenly, the first and the last among them."""
    if len(steps) <= MOST_STEPS:
        return list(steps)
    return [steps[round(number * (len(steps) - 1) / (MOST_STEPS - 1))] for number in range(MOST_STEPS)]


def _end_labels(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Writes each line's name at its end, pushed apart where lines end together."""
    if not ends:
        return
    order = sorted(ends, key=lambda end: end[1])
    wanted = [float(axes.transData.transform((x, y))[1]) for x, y, _, _ in order]
    frame, gap = axes.get_window_extent(), 13 * axes.figure.dpi / 72
    placed = apart(wanted, gap, low=frame.y0 + gap / 2, high=frame.y1 - gap / 2)
    inverse = axes.transData.inverted()
    right = max(float(axes.transData.transform((x, y))[0]) for x, y, _, _ in ends)
    beside = float(inverse.transform((right + 0.04 * frame.width, 0))[0])
    for (x, y, label, colour), position in zip(order, placed, strict=True):
        at = float(inverse.transform((0, position))[1])
        axes.annotate(
            label,
            (x, y),
            xytext=(beside, at),
            color=colour,
            fontsize=9,
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.6,
                "shrinkA": 1,
                "shrinkB": 1,
                "relpos": ANCHORS["left"],
            },
        )


def apart(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """The positions nearest to ascending wanted ones that keep a gap, within low and high if they fit.

    Positions that would collide form a pile around the mean of what they want (isotonic regression).
    """
    piles: list[list[float]] = []  # of position less its share of the gaps, which must not decrease
    for number, position in enumerate(wanted):
        piles.append([position - number * gap])
        while len(piles) > 1 and statistics.fmean(piles[-2]) > statistics.fmean(piles[-1]):
            piles[-2:] = [piles[-2] + piles[-1]]
    levels = [statistics.fmean(pile) for pile in piles for _ in pile]
    highest = max(low, high - (len(wanted) - 1) * gap)
    return [min(max(level, low), highest) + number * gap for number, level in enumerate(levels)]


def _plain(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
