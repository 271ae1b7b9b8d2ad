"""The sweep file's keys and types, and the rule that a family differs in declared keys alone."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from support import ROOT

from lightning_vl.errors import UserError
from lightning_vl.report.family import check_family, differences, read_sweep, undeclared

SWEEP = "experiments/sweeps/vivit_variants.yaml"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes a sweep file of two experiments, some keys changed or, where None, left out."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "big"):
        Path(f"{name}.yaml").write_text(f"net: {name}\n")

    def make(**changes: Any) -> Path:
        content: dict[str, Any] = {
            "name": "two",
            "title": "Two",
            "experiments": ["a.yaml", "b.yaml"],
            "seeds": [0, 1],
            "metric": "test/top1",
            "differ_only_in": ["net"],
            "paper": {"source": "Table 1", "columns": {"acc": "acc (%)"}, "rows": {"a": {"acc": 80}}},
        } | changes
        Path("sweep.yaml").write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not None}))
        return Path("sweep.yaml")

    return make


def test_reads_a_sweep(write) -> None:
    """Values arrive with their types, absent ones with their defaults."""
    sweep = read_sweep(write(labels={"a": "Model A"}, cost={"b": "big.yaml"}))
    assert sweep.names == ["a", "b"]
    assert [sweep.label(name) for name in sweep.names] == ["Model A", "b"]
    assert sweep.overrides == []
    assert sweep.paper is not None
    assert sweep.paper.rows == {"a": {"acc": 80.0}}


@pytest.mark.parametrize(
    ("changes", "what", "how"),
    [
        ({"seed": [0]}, "unknown key 'seed'", "'seeds'"),
        ({"paper": {"source": "x", "colums": {}, "rows": {}}}, "paper: unknown key 'colums'", "'columns'"),
        ({"metric": None}, "'metric' is missing", "metric"),
        ({"seeds": ["zero"]}, "seeds: item 1 is 'zero'", "whole number"),
        ({"seeds": [True]}, "seeds: item 1 is True", "whole number"),
        ({"seeds": 3}, "seeds is 3", "list"),
        ({"seeds": []}, "seeds is empty", "at least one"),
        ({"title": 5}, "title is 5", "text"),
        ({"experiments": ["c.yaml"]}, "c.yaml does not exist", "working directory"),
        ({"cost": {"aa": "big.yaml"}}, "cost names 'aa'", "Did you mean 'a'"),
        ({"overrides": ["--run.root=elsewhere"]}, "overrides has '--run.root=elsewhere'", "--key=value"),
        ({"overrides": ["trainer.max_steps=1"]}, "overrides has 'trainer.max_steps=1'", "--key=value"),
        ({"labels": {"c": "x"}}, "labels names 'c'", "Valid: a, b"),
        ({"runtime_baseline": "c"}, "runtime_baseline names 'c'", "Valid: a, b"),
        ({"paper": {"source": "x", "columns": {"acc": "acc"}, "rows": {"a": {"ac": 1}}}}, "column 'ac'", "'acc'"),
        (
            {"paper": {"source": "x", "columns": {"acc": "acc"}, "rows": {"z": {"acc": 1}}}},
            "paper.rows names 'z'",
            "a, b",
        ),
        ({"paper": {"source": "x", "columns": {"acc": "acc"}, "rows": {"a": {"acc": "high"}}}}, "'high'", "a number"),
        ({"paper": {"source": "x", "columns": {}, "rows": {}, "figure": {"x": "n"}}}, "column 'n'", ""),
    ],
)
def test_mistake_in_a_sweep_file(write, changes: dict[str, Any], what: str, how: str) -> None:
    """A typo in a key must not be silently ignored: the sweep would run for hours without what it asked for."""
    with pytest.raises(UserError) as error:
        read_sweep(write(**changes))
    assert what in error.value.what
    assert how in error.value.how


START = {"model.init_args.init_from": {"class_path": "Weights", "init_args": {"path": "CHECKPOINT"}}}
THEN: dict[str, Any] = {"experiment": "after.yaml", "metric": "test/accuracy", "start": START}


def test_reads_what_comes_then(write) -> None:
    """A key below a class that the file gives no arguments is as good as one beside those that it gives."""
    Path("after.yaml").write_text("model: {init_args: {init_from: {class_path: Weights}}}")
    (then,) = read_sweep(write(then=[THEN])).then
    assert (then.name, then.title, then.start, then.scratch) == ("after", "after", START, None)
    path = {"model.init_args.init_from.init_args.path": "CHECKPOINT"}
    (then,) = read_sweep(write(then=[THEN | {"start": path, "scratch": {"model.init_args.init_from": None}}])).then
    assert then.scratch == {"model.init_args.init_from": None}


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"experiment": "gone.yaml"}, "gone.yaml does not exist"),
        ({"metrics": ["test/top1"]}, "then: item 1: unknown key 'metrics'"),
        ({"start": {"model.init_args.init_from": "best.ckpt"}}, "start does not mention CHECKPOINT"),
        ({"start": {"modle.init_args.init_from": "CHECKPOINT"}}, "no place for the key 'modle.init_args.init_from'"),
        ({"start": {"run.id": "CHECKPOINT"}}, "no place for the key 'run.id'"),
        ({"start": {"seed_everything": "CHECKPOINT"}}, "no place for the key 'seed_everything'"),
        ({"scratch": {"model.net.init_args.dim": 1}}, "no place for the key 'model.net.init_args.dim'"),
        ({"keep": ["model.init_args.width"]}, "no experiment of the sweep has the key 'model.init_args.width'"),
        ({"scratch": True}, "scratch is True"),
    ],
)
def test_mistake_in_what_comes_then(write, changes: dict[str, Any], what: str) -> None:
    """A mistake is found before the runs that come first have taken hours."""
    Path("after.yaml").write_text("model: {init_args: {lr: 1}}")
    with pytest.raises(UserError) as error:
        read_sweep(write(then=[THEN | changes]))
    assert what in error.value.what


def test_what_comes_then_has_a_place_of_its_own(write) -> None:
    """Two of one experiment would share folders, and curves over a value have no column for it."""
    Path("after.yaml").write_text("model: {init_args: {lr: 1}}")
    with pytest.raises(UserError, match="twice"):
        read_sweep(write(then=[THEN, THEN | {"label": "again"}]))
    over = {"key": "net", "label": "x", "values": [1]}
    with pytest.raises(UserError, match="then and over"):
        read_sweep(write(then=[THEN], over=over))


def test_missing_sweep_file(tmp_path: Path) -> None:
    """No such file says so."""
    with pytest.raises(UserError, match="does not exist"):
        read_sweep(tmp_path / "no.yaml")


def test_differences_are_dotted_keys() -> None:
    """A difference deep in a configuration is named by its whole path; an absent key equals null."""
    one = {"a": {"b": [1, 2], "c": None}, "d": 1, "same": {"x": 1}}
    other = {"a": {"b": [1, 3]}, "d": {"e": 1}, "same": {"x": 1}, "new": 2}
    assert differences(one, other) == ["a.b", "d", "new"]


def test_declared_keys_cover_what_is_below_them() -> None:
    """`model.net` covers `model.net.dim`, not `model.network`; who and where a run is never counts."""
    one = {"model": {"net": {"dim": 1}, "network": 1}, "run": {"id": "x"}, "seed_everything": 1, "expected": []}
    other = {"model": {"net": {"dim": 2}, "network": 2}, "run": {"id": "y"}, "seed_everything": 2}
    assert undeclared(one, other) == ["model.net.dim", "model.network"]
    assert undeclared(one, other, ["model.net"]) == ["model.network"]


def test_family_that_differs_elsewhere_is_refused(write) -> None:
    """A comparison in which the learning rate differs as well is worth nothing."""
    write()
    Path("a.yaml").write_text("net: a\nlr: 0.1\n")
    Path("b.yaml").write_text("net: b\nlr: 0.2\n")
    with pytest.raises(UserError, match=r"b\.yaml differs from a\.yaml in lr") as error:
        check_family(["a.yaml", "b.yaml"], ["net"])
    assert "differ_only_in" in error.value.how
    check_family(["a.yaml", "b.yaml"], ["net", "lr"])


@pytest.mark.parametrize("file", sorted((ROOT / "experiments" / "sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_sweep_of_the_repository(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sweep file is read, its experiments exist and differ in nothing but what it declares, and so do its costs."""
    monkeypatch.chdir(ROOT)
    sweep = read_sweep(file)
    check_family(sweep.experiments, sweep.differ_only_in)
    if sweep.cost:
        check_family(list(sweep.cost.values()), sweep.differ_only_in)


def test_paper_columns_are_table_2(monkeypatch: pytest.MonkeyPatch) -> None:
    """The printed values of Table 2: a slip in the file would be shown as the paper's."""
    monkeypatch.chdir(ROOT)
    paper = read_sweep(SWEEP).paper
    assert paper is not None
    assert paper.source == "arXiv:2103.15691v2, Table 2"
    assert {name: tuple(row.values()) for name, row in paper.rows.items()} == {
        "vivit_spatiotemporal": (80.0, 43.1, 455.2, 88.9, 58.9),
        "vivit_fact_encoder": (78.8, 43.7, 284.4, 115.1, 17.4),
        "vivit_fact_self_attention": (77.4, 39.1, 372.3, 117.3, 31.7),
        "vivit_fact_dot_product": (76.3, 39.5, 277.1, 88.9, 22.9),
        "vivit_avg_pool": (75.8, 38.8, 283.9, 86.7, 17.3),
    }
