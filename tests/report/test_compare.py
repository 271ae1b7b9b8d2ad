"""The verb: grouping, warnings about what is not controlled, files and exit codes."""

import csv
import io
import json
import sys
from pathlib import Path

import pytest
import yaml

from lightning_vl.__main__ import main
from lightning_vl.errors import UserError
from lightning_vl.report.compare import compare
from lightning_vl.report.results import find_runs

SWEEP = {
    "name": "two",
    "title": "Two ways",
    "experiments": ["a.yaml", "b.yaml"],
    "seeds": [0, 1],
    "metric": "test/top1",
    "differ_only_in": ["model.init_args.net"],
    "labels": {"a": "Model A"},
    "cost": {"a": "big.yaml"},
    "paper": {
        "source": "Table 1",
        "columns": {"acc": "acc (%)", "flops": "FLOPs (1e9)", "ms": "runtime (ms)"},
        "rows": {"a": {"acc": 80, "flops": 10, "ms": 30}, "b": {"acc": 70.5, "flops": 5, "ms": 10}},
        "runtime": "ms",
        "figure": {"x": "flops", "y": "acc"},
    },
    "runtime_baseline": "b",
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a sweep file and the experiments that it names."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "big"):
        (tmp_path / f"{name}.yaml").write_text("x: 1\n")
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(SWEEP))
    return tmp_path


@pytest.fixture
def two(make_run) -> None:
    """Two experiments with two seeds each, alike but for the net."""
    for name, values in {"b": (0.5, 0.6), "a": (0.8, 0.9)}.items():
        for seed, value in enumerate(values):
            make_run(name, seed, {"test/top1": value}, curve={"val/top1": {10: value / 2, 20: value}})


def test_seeds_of_an_experiment_are_one_row(two: None, tmp_path: Path) -> None:
    """Grouped by experiment, whatever the order of the folders."""
    comparison = compare(*find_runs([tmp_path / "runs"]))
    assert {row.experiment: row.metrics["test/top1"].values for row in comparison.rows} == {
        "a": (0.8, 0.9),
        "b": (0.5, 0.6),
    }


def test_undeclared_difference_between_seeds_is_warned_of(make_run, tmp_path: Path) -> None:
    """Seeds with two learning rates are no seeds of one experiment: their spread says something else."""
    make_run("a", 0, {"test/top1": 0.5}, config={"lr": 0.1, "run": {"id": "s0"}})
    make_run("a", 1, {"test/top1": 0.5}, config={"lr": 0.2, "run": {"id": "s1"}})
    (warning,) = compare(*find_runs([tmp_path / "runs"])).warnings
    assert warning == "the runs of a differ in more than the seed: lr"


def test_declared_difference_between_experiments_is_not_warned_of(here: Path, two: None, make_run, capsys) -> None:
    """A sweep's declared keys are free, all others are warned of; without a sweep nothing is declared."""
    assert main(["compare", "runs", "--sweep", "sweep.yaml", "--json"]) == 0
    assert capsys.readouterr().err == ""
    assert main(["compare", "runs", "--json"]) == 0
    assert (
        "differ in more than is declared (no --sweep file): model.init_args.net.class_path" in capsys.readouterr().err
    )
    make_run("a", 2, {"test/top1": 0.5}, config={"data": {"batch_size": 64}})
    assert main(["compare", "runs/a/s2", "runs/b/s0", "--sweep", "sweep.yaml", "--json"]) == 0
    warnings = capsys.readouterr().err
    assert "the experiments differ in more than two declares: data.batch_size" in warnings
    assert "a has no finished run of seed 0, 1" in warnings


def test_other_warnings(make_run, tmp_path: Path) -> None:
    """Seeds counted twice, several commits, uncommitted changes: each can make a difference of its own."""
    folder = make_run("a", 0, {"test/top1": 0.5}, git={"commit": "f" * 40, "dirty": True})
    make_run("a", 1, {"test/top1": 0.5})
    again = folder.with_name("again")
    again.mkdir()
    for name in ("results.json", "config.yaml"):
        (again / name).write_bytes((folder / name).read_bytes())
    assert compare(*find_runs([tmp_path / "runs"])).warnings == (
        "a has several runs of seed 0: they are not independent",
        "the runs are of 2 commits: 01234567, ffffffff",
        "2 of 3 runs were made with uncommitted changes",
    )


def test_sweep_gives_order_labels_paper_and_cost(here: Path, two: None, capsys) -> None:
    """The sweep's order and names, the printed values beside ours, the cost of the file that it names."""
    kept = here / "runs" / "sweeps" / "two"
    kept.mkdir(parents=True)
    costs = [
        {"experiment": "big", "parameters": 9_000_000, "gmacs": 9.5, "gflops": 19.0, "paper_gflops": 9.9},
        {"experiment": "b", "parameters": 4_000_000, "gmacs": 4.5, "gflops": 9.0, "paper_gflops": 4.7},
    ]
    (kept / "profile.json").write_text(json.dumps({"experiments": costs}))
    assert main(["compare", "runs/a", "runs/b", "--sweep", "sweep.yaml", "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (first["experiment"], first["label"], second["label"]) == ("a", "Model A", "b")
    assert first["paper"] == {"acc": 80.0, "flops": 10.0, "ms": 30.0}
    assert (first["cost"]["experiment"], first["cost"]["paper_gflops"]) == ("big", 9.9)
    assert first["gmacs"] == 0.5  # of the network that was trained
    assert main(["compare", "runs/a", "runs/b", "--sweep", "sweep.yaml"]) == 0
    text = capsys.readouterr().out
    for cell in ("Model A", "9.900", "80.0", "70.5", "3.00", "Table 1"):  # 3.00: the paper's runtime over b's
        assert cell in text


def test_out_writes_all_four_files(here: Path, two: None, capsys) -> None:
    """CSV, Markdown, PNG and page, each with its content."""
    assert main(["compare", "runs", "--sweep", "sweep.yaml", "--out", "report"]) == 0
    assert "report/index.html" in capsys.readouterr().out
    lines = list(csv.DictReader(io.StringIO((here / "report" / "table.csv").read_text())))
    assert [float(line["test/top1 mean"]) for line in lines] == pytest.approx([0.85, 0.55])
    assert "85.0 ± 7.1" in (here / "report" / "table.md").read_text()
    assert (here / "report" / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert "85.0 ± 7.1" in (here / "report" / "index.html").read_text()


def test_unfinished_run_is_named_and_left_out(here: Path, two: None, capsys) -> None:
    """One line, not a traceback, and the rest is compared."""
    (here / "runs" / "a" / "s1" / "results.json").write_text('{"sche')
    assert main(["compare", "runs"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "left out: runs/a/s1: results.json cannot be read" in text


def test_nothing_finished(here: Path, two: None, capsys) -> None:
    """Two lines and exit code 2."""
    for path in here.glob("runs/*/*/results.json"):
        path.unlink()
    assert main(["compare", "runs"]) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 2
    assert "none of the 4 run folders is finished" in error[0]


def test_wrong_metric_names_the_nearest(two: None, tmp_path: Path) -> None:
    """A typo in --metric."""
    with pytest.raises(UserError, match="test/top_1") as error:
        compare(*find_runs([tmp_path / "runs"]), metric="test/top_1")
    assert "'test/top1'" in error.value.how


@pytest.mark.parametrize("verb", ["compare", "sweep", "profile"])
def test_help_has_an_example(verb: str, capsys) -> None:
    """`--help` of each verb shows a command that can be typed."""
    with pytest.raises(SystemExit) as done:
        main([verb, "--help"])
    assert done.value.code == 0
    assert f"example: python -m lightning_vl {verb} " in " ".join(capsys.readouterr().out.split())
    assert sys.argv[0] not in capsys.readouterr().out
