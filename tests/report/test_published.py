"""RESULTS.md comes from results/ alone, and what is published names no machine."""

import json
from pathlib import Path

import pytest
from support import ROOT

from lightning_vl.errors import UserError
from lightning_vl.report.published import main, page, publish


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with two experiments, one of them at the paper's size."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments" / "paper").mkdir(parents=True)
    for file in ("experiments/small.yaml", "experiments/paper/big.yaml"):
        (tmp_path / file).write_text("x: 1\n")
    return tmp_path


EXPECTED = [
    {"metric": "test/top1", "value": 0.9, "tolerance": 0.05, "kind": "ours", "source": "3 seeds", "met": True},
    {"metric": "test/top1", "value": 0.788, "tolerance": 0.01, "kind": "paper", "source": "Table 2", "met": None},
]


def test_results_md_is_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    """Edited by hand, or forgotten after a run was published: `python -m lightning_vl.report.published` mends it."""
    monkeypatch.chdir(ROOT)
    if not (ROOT / "RESULTS.md").exists():
        assert not list((ROOT / "results").glob("*/*.json"))
        pytest.skip("nothing is published yet")
    assert (ROOT / "RESULTS.md").read_text() == page()


def test_page_from_published_runs(here: Path, make_run) -> None:
    """Mean and spread, baselines, expectation, the paper's value, command and note; what was not run is said."""
    for seed, value in enumerate((0.90, 0.91, 0.92)):
        metrics = {"test/top1": value, "baseline/majority_top1": 0.25}
        make_run("small", seed, metrics, expected=EXPECTED)
    assert main(["runs", "--note", "two cores"]) == 0
    text = (here / "RESULTS.md").read_text()
    for part in (
        "| small | MovingDigits (100 train, 50 test) | 3 |",
        "91.0 ± 1.0",
        "majority_top1 (%) 25.0 ± 0.0",
        "90.0 ± 5.0",
        "78.8 (Table 2)",
        "two cores",
        "`python -m lightning_vl fit -c experiments/small.yaml --seed_everything 0`",
        "## Not run\n\n`experiments/paper/big.yaml`",
    ):
        assert part in text
    assert text == page()  # published again from results/ alone
    assert main([]) == 0
    assert text == (here / "RESULTS.md").read_text()


def test_command_is_that_of_the_file(here: Path, make_run) -> None:
    """Real data needs its folder on the command line: the header of the experiment's file says how."""
    (here / "experiments" / "real").mkdir()
    header = "# Command: python -m lightning_vl fit -c experiments/real/clips.yaml --data.root DATA\n#   --init.path ID\n# More.\n"
    (here / "experiments" / "real" / "clips.yaml").write_text(header + "x: 1\n")
    make_run("clips", 2, {"test/top1": 0.5})
    assert main(["runs"]) == 0
    command = (
        "python -m lightning_vl fit -c experiments/real/clips.yaml --data.root DATA --init.path ID --seed_everything 2"
    )
    assert f"`{command}`" in (here / "RESULTS.md").read_text()


def test_published_record_names_no_machine(here: Path, make_run) -> None:
    """No absolute path, host or user reaches the repository."""
    make_run(
        "small",
        0,
        {"test/top1": 0.5},
        checkpoint="runs/small/s0/checkpoints/best.ckpt",
        hostname="node17",
        data={"name": "VideoFolder", "root": "/home/somebody/clips", "skipped": ["/data/x.mp4", "y.mp4"]},
    )
    (path,) = publish(["runs"], "")
    text = path.read_text()
    assert path == Path("results/small/s0.json")
    assert not any(word in text for word in ("somebody", "node17", "/data", "checkpoints"))
    assert json.loads(text)["data"] == {"name": "VideoFolder", "skipped": ["y.mp4"]}


def test_command_and_note_with_a_path_are_refused(here: Path, make_run) -> None:
    """A command with this machine's data root is of no use to others."""
    make_run("small", 0, {"test/top1": 0.5})
    with pytest.raises(UserError, match="/data/clips"):
        publish(["runs"], "", "python -m lightning_vl fit -c x.yaml --data.root=/data/clips")
    assert not (here / "results").exists()


def test_unfinished_run_is_not_published(here: Path, make_run) -> None:
    """Only what ended counts as a result."""
    (make_run("small", 0, {"test/top1": 0.5}) / "results.json").unlink()
    with pytest.raises(UserError, match="no finished run"):
        publish(["runs"], "")


def test_experiment_without_a_file_needs_a_command(here: Path, make_run) -> None:
    """Every published run says how to make it again."""
    make_run("gone", 0, {"test/top1": 0.5})
    with pytest.raises(UserError, match="gone"):
        publish(["runs"], "")
    assert len(publish(["runs"], "", "python -m lightning_vl fit -c x.yaml")) == 1


def test_runs_on_subsets_are_not_one_mean(here: Path, make_run) -> None:
    """An experiment trained on two sizes of data has two rows, the smaller first: their mean would mean nothing."""
    for size, value in ((1000, 0.8), (128, 0.2)):
        make_run("small", 0, {"test/top1": value}, folder=f"s-{size}", data={"name": "Digits", "train": size})
    assert main(["runs"]) == 0
    rows = [line for line in (here / "RESULTS.md").read_text().splitlines() if line.startswith("| small")]
    assert [row.split(" | ")[1:5] for row in rows] == [
        ["Digits (128 train)", "1", "test/top1 (%)", "20.0"],
        ["Digits (1000 train)", "1", "test/top1 (%)", "80.0"],
    ]


def test_a_sweep_is_published_with_its_commands_table_and_figure(here: Path, make_run) -> None:
    """Its runs alone, each with the overrides that made it, and the table as the sweep last drew it."""
    (here / "sweep.yaml").write_text(
        "{name: scale, title: Scale, experiments: [experiments/small.yaml], seeds: [0], metric: test/top1, "
        "differ_only_in: [], over: {key: data.init_args.train_images, label: images, values: [128]}}"
    )
    make_run("small", 0, {"test/top1": 0.2}, folder="scale-128-seed0")
    make_run("small", 0, {"test/top1": 0.9}, folder="another")
    assert main(["runs", "--sweep", "sweep.yaml"]) == 2  # not drawn yet
    report = here / "runs" / "sweeps" / "scale"
    report.mkdir(parents=True)
    (report / "table.md").write_text("## Scale\n\n| a table |\n")
    (report / "figure.png").write_bytes(b"png")
    assert main(["runs", "--sweep", "sweep.yaml"]) == 0
    assert sorted(path.name for path in (here / "results" / "small").iterdir()) == ["scale-128-seed0.json"]
    text = (here / "RESULTS.md").read_text()
    assert "fit -c experiments/small.yaml --data.init_args.train_images=128 --seed_everything 0`" in text
    assert "| a table |\n\n![scale](results/scale/figure.png)" in text
    assert (here / "results" / "scale" / "figure.png").exists()


def test_what_came_then_is_published_by_its_start(here: Path, make_run) -> None:
    """Runs of one experiment from two starts and from nothing are three rows, each with a command to make it again."""
    (here / "experiments" / "after.yaml").write_text("model: {init_args: {lr: 1}}\n")
    (here / "experiments" / "large.yaml").write_text("x: 2\n")
    (here / "sweep.yaml").write_text(
        "{name: ab, title: Worth, experiments: [experiments/small.yaml, experiments/large.yaml], seeds: [0, 1], "
        "metric: test/top1, differ_only_in: [x], then: [{experiment: experiments/after.yaml, metric: test/accuracy, "
        "start: {model.init_args.init_from: CHECKPOINT}, scratch: {}}]}"
    )
    for seed in (0, 1):
        for start, value in (("small", 0.2), ("large", 0.4), ("scratch", 0.1)):
            make_run("after", seed, {"test/accuracy": value}, folder=f"ab-{start}-seed{seed}")
    report = here / "runs" / "sweeps" / "ab"
    report.mkdir(parents=True)
    (report / "table.md").write_text("## Worth\n")
    assert main(["runs", "--sweep", "sweep.yaml"]) == 0
    text = (here / "RESULTS.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| after")]
    assert [[row.split(" | ")[i].strip("| ") for i in (0, 2, 4)] for row in rows] == [
        ["after from large", "2", "40.0 ± 0.0"],
        ["after from scratch", "2", "10.0 ± 0.0"],
        ["after from small", "2", "20.0 ± 0.0"],
    ]
    command = "python -m lightning_vl fit -c experiments/after.yaml"
    start = "--model.init_args.init_from=runs/small/ID/checkpoints/best.ckpt"
    assert f"- **after from small**, seed 0, 1, commit 01234567  \n  `{command} {start} --seed_everything 0`" in text
    assert f"`{command} --seed_everything 0`" in text
