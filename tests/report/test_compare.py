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
from lightning_vl.report.family import Sweep
from lightning_vl.report.results import find_runs
from lightning_vl.report.table import differing_table

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
    """Two learning rates are no seeds of one experiment: two rows by themselves, a warning where a sweep makes them one."""
    make_run("a", 0, {"test/top1": 0.5}, config={"lr": 0.1, "run": {"id": "s0"}})
    make_run("a", 1, {"test/top1": 0.5}, config={"lr": 0.2, "run": {"id": "s1"}})
    runs, left_out = find_runs([tmp_path / "runs"])
    comparison = compare(runs, left_out)
    assert [row.label for row in comparison.rows] == ["a (lr 0.1)", "a (lr 0.2)"]
    assert comparison.differing == {"lr": {"a (lr 0.1)": 0.1, "a (lr 0.2)": 0.2}}
    assert comparison.warnings == ("the experiments differ in more than is declared (no --sweep file): lr",)
    sweep = Sweep("one", "One", ["a.yaml"], [0, 1], "test/top1", [])
    comparison = compare(runs, left_out, sweep)
    assert [len(row.runs) for row in comparison.rows] == [2]
    assert comparison.warnings == ("the runs of a differ in more than the seed: lr",)


def test_where_a_run_was_carried_out_makes_no_row(make_run, tmp_path: Path) -> None:
    """Seeds on other devices or with other workers are seeds, and the warning says so; an explicit null is no difference."""
    make_run("a", 0, {"test/top1": 0.5}, config={"trainer": {"devices": 1, "gradient_clip_val": None}})
    make_run("a", 1, {"test/top1": 0.5}, config={"trainer": {"devices": 2}})
    comparison = compare(*find_runs([tmp_path / "runs"]))
    assert [row.label for row in comparison.rows] == ["a"]
    assert comparison.warnings == ("the runs of a differ in more than the seed: trainer.devices",)


def test_many_keys_make_a_number_of_the_label(make_run, tmp_path: Path) -> None:
    """A label stays readable; what differs stands in the section of the keys."""
    make_run("a", 0, {"test/top1": 0.5}, config={"x": 1, "y": 1, "z": {"init_args": {"w": 1}}})
    make_run("a", 1, {"test/top1": 0.5}, config={"x": 2, "y": 2, "z": {"init_args": {"w": 2}}})
    comparison = compare(*find_runs([tmp_path / "runs"]))
    assert [row.label for row in comparison.rows] == ["a (configuration 1)", "a (configuration 2)"]
    assert list(comparison.differing) == ["x", "y", "z.init_args.w"]


def test_a_run_without_its_configuration_is_said(make_run, tmp_path: Path) -> None:
    """Nothing can be checked then: no long list of keys that are missing, and no silence."""
    make_run("a", 0, {"test/top1": 0.5})
    (make_run("b", 0, {"test/top1": 0.5}) / "config.yaml").unlink()
    comparison = compare(*find_runs([tmp_path / "runs"]))
    assert comparison.differing == {}
    (warning,) = comparison.warnings
    assert warning.startswith("1 runs have no configuration to check, the first ")


def test_keys_that_differ_are_in_every_output(here: Path, make_run, capsys) -> None:
    """`compare A B`: terminal, CSV, Markdown, JSON and page each have the key with both values."""
    one = make_run("a", 0, {"test/top1": 0.5}, config={"optimizer": {"init_args": {"lr": 0.125}}})
    two = make_run("a", 1, {"test/top1": 0.5}, config={"optimizer": {"init_args": {"lr": 0.25}}})
    assert main(["compare", str(one), str(two), "--out", "report"]) == 0
    text = capsys.readouterr().out
    assert "Keys that differ" in text
    (line,) = [line.split() for line in text.splitlines() if line.startswith("optimizer.lr")]
    assert line == ["optimizer.lr", "0.125", "0.25"]
    table = (here / "report" / "table.md").read_text()
    assert "| optimizer.init_args.lr | 0.125 | 0.25 |" in table
    lines = list(csv.DictReader(io.StringIO((here / "report" / "table.csv").read_text())))
    assert [line["config optimizer.init_args.lr"] for line in lines] == ["0.125", "0.25"]
    page = (here / "report" / "index.html").read_text()
    assert (
        '<tr><th>optimizer.init_args.lr</th><td class="left wrap">0.125</td><td class="left wrap">0.25</td></tr>'
        in page
    )
    assert main(["compare", str(one), str(two), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["differs_in"] for row in rows] == [{"optimizer.init_args.lr": 0.125}, {"optimizer.init_args.lr": 0.25}]


def test_of_many_rows_the_values_are_listed_with_who_has_them(make_run, tmp_path: Path) -> None:
    """Hundreds of columns could not be read."""
    for number in range(6):
        make_run(f"e{number}", 0, {"test/top1": 0.5}, config={"model": {"depth": 12 if number else 24}})
    heading, *lines = differing_table(compare(*find_runs([tmp_path / "runs"])))
    assert heading == ["key", "value", "of"]
    assert lines == [["model.depth", "24", "e0"], ["", "12", "e1, e2, e3, e4 and 1 more"]]


def test_a_sweep_file_alone_is_its_runs(here: Path, make_run, capsys) -> None:
    """Its own runs, not others of the same experiments; what is missing is said."""
    make_run("a", 0, {"test/top1": 0.8}, folder="two-seed0")
    make_run("a", 1, {"test/top1": 0.2}, folder="something-else")
    make_run("b", 0, {"test/top1": 0.5}, folder="two-seed0")
    assert main(["compare", "sweep.yaml", "--json"]) == 0
    captured = capsys.readouterr()
    first, second = json.loads(captured.out)
    assert (first["label"], first["n"], first["metrics"]["test/top1"]["values"]) == ("Model A", 1, [0.8])
    assert (second["label"], second["paper"]["acc"]) == ("b", 70.5)
    assert "a has no finished run of seed 1" in captured.err
    assert main(["compare", "sweep.yaml", "runs/a", "--json"]) == 0  # with a place, the place's runs
    assert json.loads(capsys.readouterr().out)[0]["n"] == 2


def test_a_sweep_file_without_runs(here: Path, capsys) -> None:
    """Two lines that say how to run it."""
    assert main(["compare", "sweep.yaml"]) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 2
    assert error[1].strip() == "python -m lightning_vl sweep sweep.yaml"
    assert main(["compare", "sweep.yaml", "sweep.yaml"]) == 2
    assert "2 sweep files" in capsys.readouterr().err


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
    """CSV, Markdown, PNG of the figure and of the curves, and page, each with its content."""
    assert main(["compare", "runs", "--sweep", "sweep.yaml", "--out", "report"]) == 0
    assert "report/index.html" in capsys.readouterr().out
    lines = list(csv.DictReader(io.StringIO((here / "report" / "table.csv").read_text())))
    assert [float(line["test/top1 mean"]) for line in lines] == pytest.approx([0.85, 0.55])
    assert "85.0 ± 7.1" in (here / "report" / "table.md").read_text()
    for name in ("figure.png", "curves.png"):
        assert (here / "report" / name).read_bytes().startswith(b"\x89PNG")
    assert not (here / "report" / "zero_shot.png").exists()  # no run was tested so
    assert "85.0 ± 7.1" in (here / "report" / "index.html").read_text()


def test_no_secret_is_in_a_report(here: Path, two: None, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """A key of the environment gets into nothing that is compared, listed or made for W&B."""
    secret = "canary-0123456789abcdef0123456789abcdef01234567"
    for name in ("WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, secret)
    for words in (
        ["compare", "runs", "--out", "report"],
        ["compare", "runs", "sweep.yaml", "--json"],
        ["wandb", "list"],
        ["wandb", "dashboard", "sweep.yaml", "--dry-run"],
        ["wandb", "sweep", "sweep.yaml"],
    ):
        assert main(words) == 0
    captured = capsys.readouterr()
    assert secret not in captured.out + captured.err
    written = [path for path in here.rglob("*") if path.is_file()]
    assert len(written) > 10
    for path in written:
        assert secret.encode() not in path.read_bytes(), path


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
