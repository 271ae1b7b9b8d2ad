"""Workspace and report of a family without a network, saved over HTTP, and its sweep in W&B's own format."""

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import ROOT, command_line, environment
from wandb_server import KEY, VIEWER, WandbServer, wandb_server

from lightning_vl.__main__ import main
from lightning_vl.report.dashboards import as_wandb_sweep
from lightning_vl.report.family import read_sweep

SWEEPS = sorted((ROOT / "experiments" / "sweeps").glob("*.yaml"))
SWEEP = {
    "name": "two",
    "title": "Two ways",
    "experiments": ["a.yaml", "b.yaml"],
    "seeds": [0, 1],
    "metric": "test/top1",
    "differ_only_in": ["model"],
    "labels": {"a": "Model A"},
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a sweep file, and no way to W&B."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text("model: {}\n")
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(SWEEP))
    return tmp_path


@pytest.fixture
def server() -> Iterator[WandbServer]:
    """W&B on this machine, with a project that views can be saved in."""
    views: dict[str, dict[str, Any]] = {}
    project = {"id": "1", "name": "p", "entityName": "me", "createdAt": "2026-11-28T00:00:00", "isBenchmark": False}
    project |= {"user": VIEWER | {"name": "me", "admin": False, "deletedAt": None, "apiKeys": None}}

    def upsert(variables: dict[str, Any]) -> dict[str, Any]:
        id = variables.get("id") or base64.b64encode(f"View:{len(views)}".encode()).decode()
        view = {key: variables.get(key) for key in ("name", "displayName", "description", "type", "spec")}
        view |= {"id": id, "project": project, "createdAt": "2026-11-28T00:00:00", "updatedAt": "2026-11-28T00:00:00"}
        views[id] = view
        return {"upsertView": {"view": view, "inserted": True}}

    def find(variables: dict[str, Any]) -> dict[str, Any]:
        nodes = [{"node": view} for view in views.values() if view["name"] == variables["viewName"]]
        return {"project": {"allViews": {"edges": nodes}}}

    with wandb_server() as running:
        page = {"edges": [{"node": project, "cursor": "1"}], "pageInfo": {"endCursor": None, "hasNextPage": False}}
        running.answers |= {
            "UpsertView2": upsert,
            "upsertView": upsert,
            "View": find,
            "ProjectInternalId": {"project": {"id": "1", "internalId": "1"}},
            "GetProjects": {"models": page},
            "Viewer": {"viewer": VIEWER},
        }
        yield running


def dashboard(server: WandbServer, folder: Path) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, since W&B's client keeps its settings."""
    env = environment(folder, {**server.environment(), "WANDB_MODE": "online"})
    words = command_line("wandb", "dashboard", "sweep.yaml", "--project", "p")
    return subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=300)


def panels_of(view: Any) -> list[dict[str, Any]]:
    """Every panel anywhere in a view's JSON."""
    if isinstance(view, list):
        return [panel for item in view for panel in panels_of(item)]
    if not isinstance(view, dict):
        return []
    own = [view] if "viewType" in view and "config" in view else []
    return own + [panel for item in view.values() for panel in panels_of(item)]


def test_dry_run_needs_no_network(here: Path, make_run, capsys) -> None:
    """Panels of the metric and its curve, run sets by tag and group, and the table that `compare` prints."""
    for name, value in (("a", 0.8), ("b", 0.6)):
        for seed in (0, 1):
            make_run(name, seed, {"test/top1": value}, folder=f"two-seed{seed}")
    assert main(["wandb", "dashboard", "sweep.yaml", "--dry-run"]) == 0
    folder = here / "runs" / "sweeps" / "two"
    workspace, report = (json.loads((folder / f"wandb_{name}.json").read_text()) for name in ("workspace", "report"))
    for view in (workspace, report):
        text = json.dumps(panels_of(view))
        assert {panel["viewType"] for panel in panels_of(view)} >= {
            "Bar Chart",
            "Run History Line Plot",
            "Scatter Plot",
        }
        for name in ("test/top1", "val/top1", "train/loss", "cost.value.gmacs", "train/samples_per_second"):
            assert name in text, name
    (runs, *_) = [block["metadata"]["runSets"] for block in report["spec"]["blocks"] if block["type"] == "panel-grid"]
    assert (runs[0]["project"]["name"], runs[0]["name"]) == ("lightning_vl", "two")
    filters = json.dumps(runs[0]["filters"])
    for part in ('"group"', '"a", "b"', '"tags"', '"two"'):
        assert part in filters, filters
    (table,) = [block["content"] for block in report["spec"]["blocks"] if block["type"] == "markdown-block"]
    assert main(["compare", "sweep.yaml", "--out", "report"]) == 0
    assert table == (here / "report" / "table.md").read_text()
    assert "| Model A | 2 | 80.0 ± 0.0 |" in table


@pytest.mark.parametrize("file", SWEEPS, ids=lambda file: file.stem)
def test_every_family_has_a_dashboard(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep file of the repository that W&B's library refuses is found here, without runs and without a network."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    path = f"experiments/sweeps/{file.name}"
    assert main(["wandb", "dashboard", path, "--dry-run"]) == 0
    sweep = read_sweep(path)
    for name in ("workspace", "report"):
        text = (tmp_path / "runs" / "sweeps" / sweep.name / f"wandb_{name}.json").read_text()
        assert sweep.metric in text
    assert main(["wandb", "sweep", path]) == 0


def test_without_a_key_it_is_two_lines(here: Path, capsys) -> None:
    """And says what writes the JSON here."""
    assert main(["wandb", "dashboard", "sweep.yaml"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "there is no key" in first
    assert "--dry-run" in second


def test_saves_both_and_the_second_time_the_same_two(here: Path, server: WandbServer) -> None:
    """Given again, the command changes what it made: a family has one workspace and one report."""
    links = []
    for _ in range(2):
        done = dashboard(server, here)
        assert done.returncode == 0, done.stderr
        links.append(done.stdout)
        assert KEY not in done.stdout + done.stderr
    assert links[0] == links[1]
    assert "workspace: http" in links[0]
    assert "report: http" in links[0]
    saved = [(name, variables.get("id")) for name, variables in server.operations if name.lower().startswith("upsert")]
    ids = [base64.b64encode(f"View:{number}".encode()).decode().rstrip("=") for number in (0, 1)]
    assert [name for name, _ in saved] == ["UpsertView2", "upsertView"] * 2
    assert [id and id.rstrip("=") for _, id in saved] == [None, None, *ids]
    for path in [path for path in here.rglob("*") if path.is_file()]:
        assert KEY.encode() not in path.read_bytes(), path


def test_a_refusal_is_two_lines(here: Path, server: WandbServer) -> None:
    """W&B's client raises an error of its own for it, which must not reach the user as a traceback."""
    del server.answers["UpsertView2"]
    done = dashboard(server, here)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 2, done.stderr
    assert "W&B refuses the dashboard" in done.stderr


def test_wandb_takes_the_exported_sweep(here: Path, server: WandbServer) -> None:
    """W&B's own command reads the file, checks it and sends all of it."""
    assert main(["wandb", "sweep", "sweep.yaml", "--project", "p"]) == 0
    sweep = {"id": "1", "name": "abc", "project": {"id": "1", "name": "p", "entity": {"id": "1", "name": "me"}}}
    server.answers["UpsertSweep"] = {"upsertSweep": {"sweep": sweep, "configValidationWarnings": []}}
    done = subprocess.run(
        [sys.executable, "-m", "wandb", "sweep", "runs/sweeps/two/wandb_sweep.yaml"],
        cwd=here,
        env=environment(here, {**server.environment(), "WANDB_MODE": "online"}),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    (sent,) = [yaml.safe_load(v["config"]) for name, v in server.operations if name == "UpsertSweep"]
    assert sent["method"] == "grid"
    assert sent["metric"] == {"name": "test/top1", "goal": "maximize"}
    assert sent["parameters"] == {"config": {"values": ["a.yaml", "b.yaml"]}, "seed_everything": {"values": [0, 1]}}


@pytest.mark.parametrize("file", SWEEPS, ids=lambda file: file.stem)
def test_an_agents_command_is_one_of_ours(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What W&B's agent puts in the place of its macros gives `fit` the file first, then the value and the seed."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    monkeypatch.chdir(ROOT)
    sweep = read_sweep(file.relative_to(ROOT))
    content = as_wandb_sweep(sweep, "p")
    chosen = {key: {"value": values["values"][-1]} for key, values in content["parameters"].items()}
    flags = create_sweep_command_args({"args": chosen})["args"]
    at = content["command"].index("${args}")
    words = [*content["command"][:at], *flags, *content["command"][at + 1 :]][2:]
    over = [f"--{sweep.over.key}={sweep.over.values[-1]}"] if sweep.over else []
    assert words[:3] == ["-m", "lightning_vl", "fit"]
    assert words[3 : 5 + len(over)] == [
        f"--config={sweep.experiments[-1]}",
        *over,
        f"--seed_everything={sweep.seeds[-1]}",
    ]
    assert words[5 + len(over) :] == ["--run.project=p", f'--run.tags=["{sweep.name}"]', *sweep.overrides]


@pytest.mark.slow
def test_an_agents_command_runs(tmp_path: Path) -> None:
    """Breaks if `fit` does not understand the words, or the file's values win over the sweep's."""
    sweep = read_sweep(ROOT / "experiments" / "sweeps" / "vit_data_scale.yaml")
    content = as_wandb_sweep(sweep, "p")
    flags = [f"--{key}={values['values'][0]}" for key, values in content["parameters"].items()]
    words = [word for part in content["command"][4:] for word in (flags if part == "${args}" else [part])]
    done = subprocess.run(
        [*command_line(*words), "--print_config"], cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load(done.stdout)
    assert config["data"]["init_args"]["source"]["init_args"]["train_images"] == sweep.over.values[0]
    assert config["run"]["tags"] == ["vit_data_scale"]
    assert config["run"]["project"] == "p"
