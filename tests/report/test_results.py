"""Reading run folders: whole ones, unfinished ones and broken ones."""

import json
import math
import shutil
from pathlib import Path

import pytest

from lightning_vl.errors import UserError
from lightning_vl.report.results import Run, find_runs, read_metrics, read_run, read_yaml


def test_finds_runs_at_any_depth_once(make_run, tmp_path: Path) -> None:
    """A folder of experiments, one experiment and one run are all good names, and naming a run twice counts it once."""
    make_run("b", 1, {"test/top1": 0.5})
    make_run("b", 0, {"test/top1": 0.5})
    one = make_run("a", 0, {"test/top1": 0.5})
    runs, left_out = find_runs([tmp_path / "runs", one, one / "results.json"])
    assert [(run.experiment, run.seed) for run in runs] == [("a", 0), ("b", 0), ("b", 1)]
    assert left_out == []


def test_does_not_look_for_runs_below_a_run(make_run, tmp_path: Path) -> None:
    """W&B keeps a config.yaml of its own inside a run folder: it is no run."""
    folder = make_run("a", 0, {"test/top1": 0.5})
    (folder / "wandb" / "run" / "files").mkdir(parents=True)
    (folder / "wandb" / "run" / "files" / "config.yaml").write_text("x: 1")
    runs, left_out = find_runs([tmp_path / "runs"])
    assert len(runs) == 1
    assert left_out == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "no results.json"),
        ('{"schema": 1, "exper', "cannot be read"),
        ("\x00\xff", "cannot be read"),
        ("[]", "no object"),
        ('{"schema": 2}', "schema 2"),
        ('{"schema": 1, "status": "running"}', "status running"),
        ('{"schema": 1, "status": "finished", "run": "x", "seed": 0, "metrics": {}}', "'experiment'"),
        (
            '{"schema": 1, "status": "finished", "experiment": "a", "run": "x", "seed": 0, "metrics": {"m": "high"}}',
            "no number",
        ),
    ],
)
def test_broken_run_is_left_out_in_one_line(make_run, tmp_path: Path, content: str | None, reason: str) -> None:
    """One run that was killed or damaged must not take the report on a hundred others down."""
    make_run("a", 0, {"test/top1": 0.5})
    broken = make_run("a", 1, {"test/top1": 0.5})
    (broken / "results.json").unlink()
    if content is not None:
        (broken / "results.json").write_text(content, encoding="latin-1")
    runs, left_out = find_runs([tmp_path / "runs"])
    assert [run.seed for run in runs] == [0]
    assert len(left_out) == 1
    assert reason in str(left_out[0])
    assert "\n" not in str(left_out[0])


def test_record_of_test_counts_only_if_named(make_run, tmp_path: Path) -> None:
    """`test` leaves a record beside the run's own: counted as another seed it would narrow the spread."""
    make_run("a", 0, {"test/top1": 0.5})
    tested = make_run("a", 1, {"test/top1": 0.5}, verb="test")
    runs, left_out = find_runs([tmp_path / "runs"])
    assert [run.seed for run in runs] == [0]
    assert "name the folder itself" in left_out[0].reason
    assert [run.seed for run in find_runs([tested])[0]] == [1]


def test_null_metric_is_no_number(make_run) -> None:
    """JSON has no nan: a diverged run's null must not become 0 or vanish from n."""
    run = read_run(make_run("a", 0, {"test/top1": None}))
    assert isinstance(run, Run)
    assert math.isnan(run.metrics["test/top1"])


def test_later_line_wins(tmp_path: Path) -> None:
    """A resumed run logs some steps again; what came before the resume at those steps was lost and does not count."""
    path = tmp_path / "metrics.jsonl"
    lines = [
        {"step": 10, "train/loss": 3.0, "train/lr": 0.1},
        {"step": 20, "train/loss": 2.0},
        {"step": 30, "train/loss": 9.0},
        {"step": 20, "train/loss": 1.5},
        {"step": 20, "val/top1": 0.5, "note": "text", "gone": None},
        {"step": 30, "train/loss": 1.0},
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 40, "train/lo')
    assert read_metrics(path) == {
        "train/loss": {10: 3.0, 20: 1.5, 30: 1.0},
        "train/lr": {10: 0.1},
        "val/top1": {20: 0.5},
    }


@pytest.mark.parametrize("content", ["", "null\n[1]\n7\n", '{"loss": 1}\n'])
def test_metrics_without_steps_are_passed_over(tmp_path: Path, content: str) -> None:
    """Damaged lines lose themselves, not the page."""
    (tmp_path / "metrics.jsonl").write_text(content)
    assert read_metrics(tmp_path / "metrics.jsonl") == {}
    assert read_metrics(tmp_path / "missing.jsonl") == {}


def test_wrong_place_is_a_user_error(tmp_path: Path) -> None:
    """A wrong path says what and how, not an empty table."""
    with pytest.raises(UserError, match="does not exist"):
        find_runs([tmp_path / "nowhere"])
    with pytest.raises(UserError, match="holds no run"):
        find_runs([tmp_path])


def test_missing_config_is_empty(make_run) -> None:
    """Without config.yaml, or with a broken one, a run still has its results."""
    folder = make_run("a", 0, {"test/top1": 0.5})
    run = read_run(folder)
    assert isinstance(run, Run)
    assert run.config()["seed_everything"] == 0
    (folder / "config.yaml").write_text("a: [1")
    assert run.config() == {}
    (folder / "config.yaml").unlink()
    assert run.config() == {}


def test_yaml_error_names_file_and_line(tmp_path: Path) -> None:
    """The user must find the line."""
    (tmp_path / "x.yaml").write_text("a: 1\nb: [1\nc: 2\n")
    with pytest.raises(UserError, match=r"x\.yaml, line 3"):
        read_yaml(tmp_path / "x.yaml")


def test_hundreds_of_runs_quickly(make_run, tmp_path: Path) -> None:
    """A folder of hundreds of runs is read in well under the time a user waits for."""
    import time

    folder = make_run("a", 0, {"test/top1": 0.5}, curve={"train/loss": dict.fromkeys(range(300), 1.0)})
    for number in range(1, 400):
        shutil.copytree(folder, tmp_path / "runs" / "a" / f"copy{number}")
    start = time.perf_counter()
    runs, _ = find_runs([tmp_path / "runs"])
    assert len(runs) == 400
    assert time.perf_counter() - start < 3
