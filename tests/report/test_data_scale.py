"""Curves over a value: crossings, the two readings, what the files and the page hold."""

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_vl.__main__ import main
from lightning_vl.errors import UserError
from lightning_vl.report.data_scale import (
    Cell,
    Panel,
    _gap,
    as_markdown,
    crossings,
    read,
    slope_per_doubling,
    write,
)
from lightning_vl.report.family import Sweep, quick_sweep, read_sweep
from lightning_vl.report.results import Run, find_runs
from lightning_vl.report.table import summarise

MakeRun = Callable[..., Path]

VALUES = [512, 4096, 32768, 131072]
# share of 1 at each of VALUES: the small ViT overtakes the ResNet between 4,096 and 32,768, the large one never does
ACCURACY = {
    "vit_tiny": [0.20, 0.50, 0.80, 0.90],
    "vit_small": [0.10, 0.40, 0.60, 0.65],
    "bit_tiny": [0.60, 0.66, 0.70, 0.72],
}
GMACS = {"vit_tiny": 0.004, "vit_small": 0.008, "bit_tiny": 0.002}


@pytest.fixture
def sweep_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sweep over a value with two pairs; its experiments' files are there and empty of content."""
    monkeypatch.chdir(tmp_path)
    for name in ACCURACY:
        (tmp_path / f"{name}.yaml").write_text("model: {}\n")
    content = {
        "name": "scale",
        "title": "Accuracy over pre-training images",
        "experiments": [f"{name}.yaml" for name in ACCURACY],
        "seeds": [0, 1, 2],
        "metric": "transfer/letters/5_shot",
        "metrics": ["test/top1"],
        "differ_only_in": ["model"],
        "labels": {"vit_tiny": "ViT-Ti", "vit_small": "ViT-S", "bit_tiny": "ResNet"},
        "over": {"key": "data.init_args.train_images", "label": "pre-training images", "values": VALUES},
        "pairs": [["vit_tiny", "bit_tiny"], ["vit_small", "bit_tiny"]],
        "quick": {"seeds": [0], "values": [512, 4096], "overrides": ["--trainer.max_steps=5"]},
    }
    (tmp_path / "scale.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "scale.yaml"


def fill(
    make_run: MakeRun, seeds: tuple[int, ...] = (0, 1, 2), capped: frozenset[tuple[str, int]] = frozenset()
) -> None:
    """Finished runs of the sweep: seed s lies (s - 1) points from the mean, those named in `capped` took all steps."""
    for name, means in ACCURACY.items():
        for value, mean in zip(VALUES, means, strict=True):
            for seed in seeds:
                accuracy = mean + 0.01 * (seed - 1)
                cap = (name, value) in capped
                make_run(
                    name,
                    seed,
                    {"transfer/letters/5_shot": accuracy, "test/top1": accuracy / 2, "baseline/letters_majority": 0.04},
                    config={
                        "model": {"init_args": {"net": {"class_path": "x.BiT" if name == "bit_tiny" else "x.ViT"}}},
                        "data": {"init_args": {"train_images": value, "batch_size": 10}},
                        "trainer": {"max_steps": 1000},
                    },
                    curve={"val/top1": {100: accuracy / 4, 200: accuracy / 2, 300: accuracy / 3}},
                    folder=f"scale-{value}-seed{seed}",
                    steps=1000 if cap else 300,
                    model={"parameters": 10, "gmacs": GMACS[name], "gflops": 2 * GMACS[name]},
                )


def runs(folder: Path) -> list[Run]:
    """All finished ones."""
    return find_runs([folder / "runs"])[0]


def test_crossings_are_linear_in_the_logarithm() -> None:
    """The point where the lines of the figure meet, whose axis is logarithmic, and the direction."""
    (value, overtakes), *others = crossings([100, 10000], [-1.0, 1.0])
    assert value == pytest.approx(1000)  # half-way in the logarithm
    assert overtakes
    assert not others
    found = crossings([1, 10, 100, 1000], [-3.0, 1.0, -1.0, -2.0])
    assert [up for _, up in found] == [True, False]
    assert found[0][0] == pytest.approx(10**0.75)
    assert found[1][0] == pytest.approx(10**1.5)
    assert crossings([1, 2, 4], [-3.0, -2.0, -1.0]) == []


def test_a_tie_is_no_second_crossing() -> None:
    """A difference of exactly nought is where it overtakes, once."""
    assert crossings([1, 2, 4], [-1.0, 0.0, 1.0]) == [(pytest.approx(2.0), True)]


def test_slope_is_per_doubling() -> None:
    """Two points more an eightfold of the data are two thirds of a point a doubling."""
    assert slope_per_doubling([8, 64, 512], [1.0, 3.0, 5.0]) == pytest.approx(2 / 3)


def test_lines_say_where_and_whether_the_curves_cross(sweep_file: Path, make_run: MakeRun) -> None:
    """The overtaking with each seed's own, and for the pair that does not cross the gap and that it closes."""
    fill(make_run)
    scale = read(read_sweep(sweep_file), runs(sweep_file.parent))
    crossed, apart = scale.crossings[:2]
    # the difference goes from -16 to +10 points between 4,096 and 32,768
    exact = math.exp(math.log(4096) + 16 / 26 * math.log(8))
    assert exact == pytest.approx(14727, abs=1)
    assert "ViT-Ti against ResNet: overtakes at 15000 (seed 0: 15000, seed 1: 15000, seed 2: 15000)" in crossed
    assert "no crossing up to 131072; the gap goes from -50.0 at 512 to -7.0 points at 131072" in apart
    assert apart.endswith(": closing")


def test_a_gap_that_opened_first_may_still_close() -> None:
    """Breaks if sizes at which both are at chance hide that the gap closes, or a gap that only opens is said to close."""
    sizes = {"one": [10, 40, 60, 85], "other": [10, 90, 93, 94], "worse": [10, 30, 25, 20]}
    values = [128, 1024, 8192, 65536]
    curves = {
        name: {v: Cell(summarise([share / 100]), 0) for v, share in zip(values, shares, strict=True)}
        for name, shares in sizes.items()
    }
    panel = Panel("as trained", "test/top1", "test/top1", curves, [])
    closing = _gap(panel, ("one", "other"), values)
    assert "from +0.0 at 128, widest -50.0 at 1024, to -9.0 points at 65536, +6.8 a doubling: closing" in closing
    assert _gap(panel, ("worse", "other"), values).endswith("to -74.0 points at 65536: not closing")


def test_a_run_that_hit_the_cap_is_marked(sweep_file: Path, make_run: MakeRun) -> None:
    """A network stopped before its criterion is not the data's doing: the table, the lines and the warnings say so."""
    fill(make_run, capped=frozenset({("vit_small", 131072)}))
    scale = read(read_sweep(sweep_file), runs(sweep_file.parent))
    first = scale.panels[0]
    assert first.curves["vit_small"][131072].incomplete == 3
    assert first.curves["vit_small"][32768].incomplete == 0
    assert any("3 of 36 runs were ended by trainer.max_steps" in warning for warning in scale.warnings)
    assert "3 of the runs had not converged" in scale.crossings[1]
    assert "65.0 ± 1.0 (3) †3" in as_markdown(scale)


def test_equal_compute_takes_the_best_within_the_budget(sweep_file: Path, make_run: MakeRun) -> None:
    """The dearer network may take fewer steps: at a budget of 200 steps of the dearest, its 300th is not looked at."""
    fill(make_run, seeds=(0,))
    content = yaml.safe_load(sweep_file.read_text())
    content["compute_budget"] = 3 * 0.008 * 10 * 150  # 150 steps of vit_small, 300 of vit_tiny, 600 of bit_tiny
    sweep_file.write_text(yaml.safe_dump(content))
    scale = read(read_sweep(sweep_file), runs(sweep_file.parent))
    matched = scale.panels[-1]
    assert matched.reading == "at equal compute"
    assert matched.curves["vit_small"][512].summary.mean == pytest.approx(0.09 / 4)  # step 100 alone
    assert matched.curves["vit_tiny"][512].summary.mean == pytest.approx(0.19 / 2)  # the best of three, not the last
    del content["compute_budget"]
    sweep_file.write_text(yaml.safe_dump(content))
    scale = read(read_sweep(sweep_file), runs(sweep_file.parent))
    assert scale.budget == pytest.approx(3 * 0.002 * 10 * 300)  # the least total


def test_files_hold_every_point(sweep_file: Path, make_run: MakeRun) -> None:
    """The CSV has each run in each panel; page, figure and table are there."""
    fill(make_run)
    scale = read(read_sweep(sweep_file), runs(sweep_file.parent))
    paths = write(scale, sweep_file.parent / "out")
    assert [path.name for path in paths] == ["data_scale.csv", "table.md", "figure.png", "index.html"]
    assert all(path.stat().st_size > 500 for path in paths)
    with paths[0].open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 * 36 + 24  # within the default budget vit_small had not validated once
    assert any("12 runs had not validated once" in warning for warning in scale.warnings)
    shown = {(line["metric"], line["experiment"], line["value"], line["seed"]): line for line in lines}
    line = shown["transfer/letters/5_shot", "vit_tiny", "512", "2"]
    assert float(line["measured"]) == pytest.approx(0.21)
    assert float(line["training_gmacs"]) == pytest.approx(3 * 0.004 * 10 * 300)
    page = paths[3].read_text()
    assert "overtakes at 15000" in page
    assert "Trivial baseline: 4.0" in page
    assert page.count("<svg") == 2
    assert "http" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "")


def test_unfinished_runs_leave_an_early_picture(sweep_file: Path, make_run: MakeRun) -> None:
    """One seed is enough to draw; what is missing is counted."""
    fill(make_run, seeds=(0,))
    scale = read(read_sweep(sweep_file), runs(sweep_file.parent))
    assert any(warning.startswith("24 of 36 runs are not finished") for warning in scale.warnings)
    assert "| 19.0 (1) |" in as_markdown(scale)


def test_runs_of_other_values_and_undeclared_differences(sweep_file: Path, make_run: MakeRun) -> None:
    """A run at a size that the sweep does not have stands in no cell, and an uncontrolled key is named."""
    fill(make_run, seeds=(0,))
    common: dict[str, Any] = {"trainer": {"max_steps": 10}, "model": {"init_args": {}}}
    stray = {**common, "data": {"init_args": {"train_images": 77, "batch_size": 10}}}
    make_run("vit_tiny", 0, {"transfer/letters/5_shot": 0.5}, config=stray, folder="stray")
    other = {**common, "data": {"init_args": {"train_images": 512, "batch_size": 99}}}
    make_run("vit_tiny", 1, {"transfer/letters/5_shot": 0.5}, config=other, folder="other")
    scale = read(read_sweep(sweep_file), runs(sweep_file.parent))
    assert any("77, none of the sweep's values" in str(item) for item in scale.left_out)
    assert any("differ in more than scale declares" in line and "batch_size" in line for line in scale.warnings)


def test_compare_draws_a_sweep_over_a_value(sweep_file: Path, make_run: MakeRun, capsys) -> None:
    """`compare RUNS --sweep FILE` shows the curves, not one mean over all sizes."""
    fill(make_run, seeds=(0,))
    assert main(["compare", "runs", "--sweep", "scale.yaml", "--out", "out"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "overtakes at 15000" in out
    assert (sweep_file.parent / "out" / "data_scale.csv").exists()


def test_a_metric_nobody_has_is_named(sweep_file: Path, make_run: MakeRun) -> None:
    """A sweep file with a mistyped metric gets the nearest one, not an empty figure."""
    fill(make_run, seeds=(0,))
    content = yaml.safe_load(sweep_file.read_text()) | {"metric": "transfer/letter/5_shot"}
    sweep_file.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match="letters/5_shot"):
        read(read_sweep(sweep_file), runs(sweep_file.parent))


def test_quick_look_has_a_name_of_its_own(sweep_file: Path) -> None:
    """Its runs and its folder are never those of the whole sweep."""
    quick = quick_sweep(read_sweep(sweep_file))
    assert (quick.name, quick.seeds, quick.over and quick.over.values) == ("scale-quick", [0], [512, 4096])
    assert quick.overrides == ["--trainer.max_steps=5"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"over": {"key": "a", "label": "b", "values": [4, 2]}}, "ascending"),
        ({"over": {"key": "a", "label": "b", "values": []}}, "empty"),
        ({"pairs": [["vit_tiny", "vit_tiny"]]}, "two experiments"),
        ({"pairs": [["vit_tiny", "bit_tny"]]}, "bit_tiny"),
        ({"over": None}, "belong to a sweep over a value"),
    ],
)
def test_mistakes_of_the_file(sweep_file: Path, changes: dict[str, Any], said: str) -> None:
    """Each is named before anything runs."""
    sweep_file.write_text(yaml.safe_dump(yaml.safe_load(sweep_file.read_text()) | changes))
    with pytest.raises(UserError, match=said):
        read_sweep(sweep_file)


def test_order_and_ids_of_runs(sweep_file: Path) -> None:
    """Every experiment at every size has seed 0 before any has seed 1, and ids tell sizes apart."""
    from lightning_vl.report.sweep import tasks

    sweep: Sweep = read_sweep(sweep_file)
    every = tasks(sweep)
    assert [task.seed for task in every] == sorted(task.seed for task in every)
    assert len({task.folder for task in every}) == len({task.log for task in every}) == 36
    assert every[0].folder == Path("runs/vit_tiny/scale-512-seed0")
    assert "--data.init_args.train_images=512" in every[0].arguments
    assert {task.folder for task in tasks(quick_sweep(sweep))}.isdisjoint({task.folder for task in every})
