"""Means, spreads, what is marked best, and the renderings of the table."""

import csv
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from lightning_vl.report.compare import compare
from lightning_vl.report.results import find_runs
from lightning_vl.report.table import (
    Comparison,
    Row,
    as_csv,
    as_json,
    as_markdown,
    best_of,
    default_metric,
    groups,
    lower_is_better,
    mean_and_spread,
    print_table,
    quantity,
    summarise,
)


def row(name: str, *values: float, metric: str = "test/top1") -> Row:
    """A row with one metric."""
    return Row(name, name, (), {metric: summarise(values)}, None, None, None, ())


@pytest.fixture
def comparison(make_run, tmp_path: Path) -> Comparison:
    """Two experiments, three seeds each, one of them far better."""
    for name, values in {"low": (0.50, 0.52, 0.54), "high": (0.90, 0.91, 0.92)}.items():
        for seed, value in enumerate(values):
            expected = {"metric": "test/top1", "value": 0.9, "tolerance": 0.05, "kind": "ours", "source": "3 seeds"}
            expected |= {"measured": value, "met": abs(value - 0.9) <= 0.05}
            make_run(name, seed, {"test/top1": value, "test/loss": 1 - value}, expected=[expected])
    return compare(*find_runs([tmp_path / "runs"]))


@pytest.mark.parametrize("values", [(0.1, 0.7, 0.4), (5.0, 5.0), (1e9, 1e9 + 1, 1e9 + 2), (0.913, 0.927, 0.921, 0.9)])
def test_mean_and_spread_are_numpys(values: tuple[float, ...]) -> None:
    """Sample standard deviation, n - 1 in the denominator, also where a naive sum of squares loses all digits."""
    summary = summarise(values)
    assert summary.mean == pytest.approx(np.mean(values), rel=1e-12)
    assert summary.spread == pytest.approx(np.std(values, ddof=1), rel=1e-12)
    assert summary.values == values


def test_one_run_has_no_spread() -> None:
    """A spread of 0 for a single seed would look like certainty."""
    assert summarise([0.5]).spread is None
    assert mean_and_spread(summarise([0.5]), "test/top1") == "50.0"


def test_diverged_run_shows_in_the_mean() -> None:
    """nan must not be dropped: the mean over the surviving seeds is a better result than was had."""
    assert math.isnan(summarise([0.5, math.nan]).mean)
    assert summarise([0.5, math.nan]).spread is None


def test_best_is_marked_where_intervals_do_not_meet() -> None:
    """mean ± spread of the best is free of every other's."""
    clear, second = row("a", 0.90, 0.91, 0.92), row("b", 0.85, 0.86, 0.87)
    assert best_of([second, clear], "test/top1") is clear
    close = row("c", 0.88, 0.90, 0.92)  # 0.90 ± 0.02 meets 0.91 ± 0.01
    assert best_of([clear, close], "test/top1") is None


def test_best_needs_three_runs_each() -> None:
    """Of two seeds, or one, a spread says too little to call a winner."""
    assert best_of([row("a", 0.90, 0.91), row("b", 0.1, 0.1, 0.1)], "test/top1") is None
    assert best_of([row("a", 0.90, 0.91, 0.92), row("b", 0.1)], "test/top1") is None
    assert best_of([row("a", 0.90, 0.91, 0.92)], "test/top1") is None


def test_lower_is_better_for_losses() -> None:
    """The best loss is the lowest."""
    low, high = row("low", 0.1, 0.1, 0.1, metric="test/loss"), row("high", 0.9, 0.9, 0.9, metric="test/loss")
    assert best_of([low, high], "test/loss") is low
    assert lower_is_better("val/perplexity")
    assert not lower_is_better("test/top1")


def test_default_metric(make_run, tmp_path: Path) -> None:
    """What the experiments expect something of, else a test metric of which more is better."""
    make_run("a", 0, {"val/top1": 1.0, "test/loss": 1.0, "test/top1": 1.0})
    runs, _ = find_runs([tmp_path / "runs"])
    assert default_metric(runs) == "test/top1"
    make_run("a", 1, {"test/loss": 1.0, "test/top1": 1.0}, expected=[{"metric": "test/loss", "value": 1}])
    runs, _ = find_runs([tmp_path / "runs"])
    assert default_metric(runs) == "test/loss"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (451.524, "451.5"),
        (0.0223, "0.02230"),
        (88.954, "88.95"),
        (12345.6, "12346"),
        (0, "0"),
        (1e-9, "0.000000"),
    ],
)
def test_quantity(value: float | None, text: str) -> None:
    """Four digits that count, whatever the size, and no exponent."""
    assert quantity(value) == text


def test_json_has_the_stable_keys(comparison: Comparison) -> None:
    """The keys that the documentation calls stable, as valid JSON."""
    low, high = sorted(
        json.loads(json.dumps(as_json(comparison), allow_nan=False)),
        key=lambda row: row["metrics"]["test/top1"]["mean"],
    )
    assert {"experiment", "parameters", "gmacs", "gflops", "n", "metrics"} <= high.keys()
    assert (high["experiment"], high["parameters"], high["gmacs"], high["gflops"], high["n"]) == (
        "high",
        1000,
        0.5,
        1.0,
        3,
    )
    assert high["metrics"]["test/top1"]["mean"] == pytest.approx(0.91)
    assert high["metrics"]["test/top1"]["spread"] == pytest.approx(0.01)
    assert high["metrics"]["test/top1"]["values"] == [0.90, 0.91, 0.92]
    assert (high["best"], low["best"]) == (True, False)
    assert high["expected"][0] == {
        "metric": "test/top1", "value": 0.9, "tolerance": 0.05, "kind": "ours", "source": "3 seeds", "met": 3, "runs": 3
    }  # fmt: skip
    assert low["expected"][0]["met"] == 0


def test_json_of_a_diverged_run_is_valid(make_run, tmp_path: Path) -> None:
    """nan is no JSON: readers other than Python's refuse it."""
    make_run("a", 0, {"test/top1": None})
    rows = as_json(compare(*find_runs([tmp_path / "runs"])))
    assert json.loads(json.dumps(rows, allow_nan=False))[0]["metrics"]["test/top1"]["mean"] is None


def test_csv_round_trip(comparison: Comparison) -> None:
    """Every number comes back from the CSV to the last bit."""
    lines = list(csv.DictReader(io.StringIO(as_csv(comparison))))
    assert [line["experiment"] for line in lines] == [row.experiment for row in comparison.rows]
    for line, of in zip(lines, comparison.rows, strict=True):
        for name, summary in of.metrics.items():
            assert float(line[f"{name} mean"]) == summary.mean
            assert float(line[f"{name} spread"]) == summary.spread
        assert int(line["parameters"]) == of.parameters
        assert float(line["gmacs"]) == of.gmacs


def test_markdown_is_one_table(comparison: Comparison) -> None:
    """Every row has as many cells as the head, a bar in a name does not make another."""
    table, _, keys = as_markdown(comparison).partition("Where the configurations differ:")
    assert "| model.init_args.net.class_path | high | low |" in keys
    lines = [line for line in table.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 2
    assert len({line.count("|") for line in lines}) == 1
    assert "91.0 ± 1.0 *" in lines[2 + [row.experiment for row in comparison.rows].index("high")]


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_terminal_shows_every_cell_at_any_width(comparison: Comparison, width: int) -> None:
    """A narrow terminal gets more tables, never cut-off numbers."""
    out = io.StringIO()
    print_table(comparison, Console(file=out, width=width))
    text = out.getvalue()
    cells = [cell for group in groups(comparison) for column in group.columns.values() for cell in column]
    assert [cell for cell in cells if cell not in text] == []
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    assert "sample standard deviation" in " ".join(text.split())
