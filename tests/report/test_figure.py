"""Figures: what is drawn is what was measured, and no label covers another."""

import io
from itertools import combinations, pairwise
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Annotation, Text
from PIL import Image

from lightning_vl.report.compare import compare
from lightning_vl.report.family import Sweep, Then
from lightning_vl.report.figure import accuracy_over_compute, apart, as_svg, curves, worth_afterwards, zero_shot_bars
from lightning_vl.report.results import find_runs
from lightning_vl.report.table import Comparison, Row, summarise


@pytest.fixture
def crowded(make_run, tmp_path: Path) -> Comparison:
    """Five experiments, three of them nearly at one point, as in Table 2 of ViViT."""
    places = {
        "one": (451.5, 0.95),
        "two": (283.3, 0.931),
        "three": (371.1, 0.93),
        "four": (276.2, 0.928),
        "pool": (282.9, 0.93),
    }
    for name, (gmacs, value) in places.items():
        for seed, offset in enumerate((-0.01, 0.0, 0.01)):
            curve = {"val/top1": {step: (value + offset) * step / 40 for step in (10, 20, 30, 40)}}
            curve["train/loss"] = {step: 1 / step + offset / 100 for step in range(1, 41)}
            model = {"parameters": 1, "gmacs": gmacs, "gflops": 2 * gmacs}
            make_run(name, seed, {"test/top1": value + offset}, curve=curve, model=model)
    return compare(*find_runs([tmp_path / "runs"]))


def test_points_and_bars_are_the_measured_ones(crowded: Comparison) -> None:
    """Each marker stands at (GMACs, mean in percent), its bar spans one sample standard deviation to either side."""
    figure = accuracy_over_compute(crowded)
    assert figure is not None
    (axes,) = figure.axes
    drawn = sorted((float(bar.lines[0].get_xdata()[0]), float(bar.lines[0].get_ydata()[0])) for bar in axes.containers)
    expected = sorted((row.gmacs, 100 * row.metrics["test/top1"].mean) for row in crowded.rows)
    assert np.allclose(drawn, expected)
    low, high = axes.containers[0].lines[2][0].get_segments()[0][:, 1]
    assert high - low == pytest.approx(2.0)  # values of -1, 0 and +1 percent around the mean
    assert "1e9" in axes.get_xlabel()
    assert "%" in axes.get_ylabel()


def test_bars_are_what_the_runs_were_worth(tmp_path: Path) -> None:
    """Breaks if a bar is not the mean, a row without a value has one, or the baseline stands elsewhere."""
    then = Then("fonts.yaml", "test/top1", {}, label="fonts", baseline=["baseline/chance"])
    sweep = Sweep("short", "Short", ["a.yaml", "b.yaml"], [0, 1], "test/loss", [], then=[then])
    rows = [
        Row("a", "A", (), {"test/loss": summarise([1.0, 3.0])}, None, None, None, ()),
        Row(
            "b",
            "B",
            (),
            {"fonts: test/top1": summarise([0.5]), "fonts: baseline/chance": summarise([0.1])},
            None,
            None,
            None,
            (),
        ),
    ]
    figure = worth_afterwards(Comparison("Short", "test/loss", tuple(rows), sweep=sweep))
    assert figure is not None
    own, fonts = figure.axes
    assert [bar.get_width() for bar in own.patches] == [2.0]
    assert [bar.get_width() for bar in fonts.patches] == [50.0]
    assert fonts.patches[0].get_y() + fonts.patches[0].get_height() / 2 == pytest.approx(1)
    assert list(fonts.lines[-1].get_xdata()) == [10.0, 10.0]
    assert [label.get_text() for label in own.get_yticklabels()] == ["A", "B"]


@pytest.mark.parametrize("draw", [accuracy_over_compute, curves])
def test_labels_do_not_overlap(crowded: Comparison, draw) -> None:
    """Readable at a glance: five labels, no two of which touch, none outside the picture."""
    figure = draw(crowded)
    assert figure is not None
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    for axes in figure.axes:
        texts = [text for text in axes.texts if isinstance(text, Annotation)]
        assert sorted(text.get_text() for text in texts) == ["four", "one", "pool", "three", "two"]
        boxes = [Text.get_window_extent(text, renderer) for text in texts]  # without the line to the marker
        assert not any(one.padded(-1).overlaps(other.padded(-1)) for one, other in combinations(boxes, 2))
        assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)


def test_crowd_is_thinned_and_says_so(make_run, tmp_path: Path) -> None:
    """Of thirty experiments at one point and curves without end nothing could be read: names give way, the best are drawn."""
    for number in range(30):
        value = 0.9 + number / 10000 if number else 0.1
        make_run(f"e{number:02d}", 0, {"test/top1": value}, curve={"val/top1": {10: 0.1, 20: value}})
    comparison = compare(*find_runs([tmp_path / "runs"]))
    scatter, lines = accuracy_over_compute(comparison), curves(comparison)
    assert scatter is not None
    assert lines is not None
    named = [text.get_text() for text in scatter.axes[0].texts]
    assert len(named) < 30
    assert f"{30 - len(named)} of 30 points are not named" in scatter.get_supxlabel()
    assert [text.get_text() for text in lines.axes[0].texts] == [f"e{number}" for number in range(18, 30)]
    assert "The 12 best of 30" in lines.get_supxlabel()


def test_curves_are_means_over_common_steps(make_run, tmp_path: Path) -> None:
    """A step that one of the seeds lacks is left out: the mean of the others would jump there."""
    make_run("a", 0, {"test/top1": 0.5}, curve={"val/top1": {10: 0.2, 20: 0.4, 30: 0.6}})
    make_run("a", 1, {"test/top1": 0.5}, curve={"val/top1": {10: 0.4, 30: 0.8}})
    figure = curves(compare(*find_runs([tmp_path / "runs"])))
    assert figure is not None
    (line,) = figure.axes[0].lines
    assert list(line.get_xdata()) == [10, 30]
    assert np.allclose(line.get_ydata(), [30, 70])


def test_long_curves_are_thinned(make_run, tmp_path: Path) -> None:
    """Three hundred steps from the first to the last, and the caption says so: more would only make the page large."""
    curve = {"val/top1": {step: step / 5000 for step in range(1, 4001)}}
    make_run("a", 0, {"test/top1": 0.5}, curve=curve)
    figure = curves(compare(*find_runs([tmp_path / "runs"])))
    assert figure is not None
    (line,) = figure.axes[0].lines
    steps = [int(step) for step in line.get_xdata()]
    assert len(steps) == 300
    assert (steps[0], steps[-1]) == (1, 4000)
    assert np.allclose(line.get_ydata(), [100 * step / 5000 for step in steps])
    assert "At most 300 steps" in figure.get_supxlabel()


def test_zero_shot_bars(make_run, tmp_path: Path) -> None:
    """A bar a row and data set, as long as the mean in percent; the commonest class dashed; no bar where none was measured."""
    for seed, shift in enumerate((-0.05, 0.05)):
        make_run(
            "clip",
            seed,
            {
                "test/loss": 1.0,
                "zero_shot/shapes/top1": 0.8 + shift,
                "zero_shot/digits/top1": 0.3,
                "zero_shot/shapes/median_rank": 1.0,
                "baseline/zero_shot_shapes_majority": 0.25,
            },
        )
    make_run("small", 0, {"test/loss": 2.0, "zero_shot/shapes/top1": 0.5})
    make_run("untested", 0, {"test/loss": 2.0})
    figure = zero_shot_bars(compare(*find_runs([tmp_path / "runs"])))
    assert figure is not None
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["shapes", "digits"]
    assert sorted(patch.get_width() for patch in axes.patches) == pytest.approx([30, 50, 80])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["clip", "small"]
    dashed = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert [list(line.get_xdata()) for line in dashed] == [[25, 25]]
    spreads = [
        bar.errorbar.lines[2][0].get_segments()[0][:, 0] for bar in axes.containers if getattr(bar, "errorbar", None)
    ]
    assert np.allclose(spreads[0], [80 - 100 * 0.05 * 2**0.5, 80 + 100 * 0.05 * 2**0.5])


def test_nothing_to_draw(make_run, tmp_path: Path) -> None:
    """Runs without curves or counted operations give no empty picture."""
    make_run("a", 0, {"test/top1": 0.5}, model={})
    comparison = compare(*find_runs([tmp_path / "runs"]))
    assert accuracy_over_compute(comparison) is None
    assert curves(comparison) is None
    assert zero_shot_bars(comparison) is None


def test_diverged_experiment_is_not_drawn(make_run, tmp_path: Path) -> None:
    """nan has no place in a picture, and must not take the others' with it."""
    make_run("a", 0, {"test/top1": 0.5})
    make_run("b", 0, {"test/top1": None})
    figure = accuracy_over_compute(compare(*find_runs([tmp_path / "runs"])))
    assert figure is not None
    assert [text.get_text() for text in figure.axes[0].texts] == ["a"]


@pytest.mark.parametrize("wanted", [[1, 2, 3], [5, 5, 5, 5], [0, 0, 50, 50.5, 99], [99, 99.5, 100]])
def test_apart(wanted: list[float]) -> None:
    """Labels keep their order and their gap inside the frame, and stay where they are when nothing collides."""
    placed = apart(wanted, 10, low=0, high=100)
    assert all(b - a >= 10 - 1e-9 for a, b in pairwise(placed))
    assert placed[0] >= 0
    assert placed[-1] <= 100
    assert apart([10, 30, 60], 10, 0, 100) == [10, 30, 60]


def test_same_runs_same_svg(crowded: Comparison) -> None:
    """No dates, no random ids: the page of unchanged runs does not change."""
    one, other = (as_svg(accuracy_over_compute(crowded), 'a "b" <c>') for _ in range(2))
    assert one == other
    assert one.startswith('<svg role="img" aria-label="a &quot;b&quot; &lt;c>"')


def test_drawing_leaves_matplotlib_alone(crowded: Comparison) -> None:
    """A notebook that imports this keeps its own style and its open figures."""
    before = dict(matplotlib.rcParams)
    figure = accuracy_over_compute(crowded)
    assert figure is not None
    as_svg(figure, "x")
    assert dict(matplotlib.rcParams) == before
    from matplotlib import pyplot

    assert pyplot.get_fignums() == []


def test_png_is_not_blank(crowded: Comparison) -> None:
    """A picture of the size that is meant, with every experiment's colour in it."""
    figure = accuracy_over_compute(crowded)
    assert figure is not None
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)
    pixels = np.asarray(Image.open(file).convert("RGB")).reshape(-1, 3)
    assert len(pixels) == 700 * 460
    for colour in ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B8860B"):
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(pixels.astype(int) - rgb).max(axis=1) < 8).sum() > 20
