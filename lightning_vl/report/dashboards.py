"""``python -m lightning_vl wandb``: a family's workspace and report at W&B, its sweep in W&B's format, offline runs.

What a dashboard draws is what runs log: every run is in the group of its experiment (:class:`lightning_vl.loggers.WandbRun`),
those of a sweep carry its name as a tag, and their configuration says what the network costs (``cost``).
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_vl.errors import UserError
from lightning_vl.report import data_scale, offline_runs
from lightning_vl.report.compare import compare, read_costs, sweep_folder
from lightning_vl.report.family import Sweep, Then, quick_sweep, read_sweep
from lightning_vl.report.sweep import read_runs, with_then
from lightning_vl.report.table import as_markdown, lower_is_better
from lightning_vl.wandb_mode import asking_wandb, find_wandb_mode

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2.interface import Report
    from wandb_workspaces.workspaces.interface import Workspace

PROJECT = "lightning_vl"  # that runs go to unless they are told another one
STEP = "trainer/global_step"
SPEEDS = {
    "train/samples_per_second": "samples a second",
    "train/data_wait": "share of time spent waiting for data",
    "train/utilisation": "share of the device's peak rate",
    "train/memory_gib": "memory (GiB)",
}
COSTS = {"cost.gmacs": "multiply-adds of a forward (1e9)", "cost.parameters": "parameters"}
LINKS = "wandb_links.json"
NO_TABLE = "No run of this sweep is finished: make the dashboard again when some are."


def main(argv: Sequence[str]) -> int:
    """Run the verb; gives the exit code."""
    arguments = _parser().parse_args(argv)
    match arguments.action:
        case "dashboard":
            return _dashboard(arguments)
        case "sweep":
            return _sweep(arguments)
        case "list":
            return offline_runs.show(arguments.runs)
        case _:
            return offline_runs.sync(arguments.runs, dry_run=arguments.dry_run)


@dataclass(frozen=True)
class _Chapter:
    """Panels under a heading: a section of the workspace, a grid of the report."""

    title: str
    experiments: list[str]
    groupby: list[str]
    panels: list[Any]


def make_workspace(sweep: Sweep, entity: str, project: str) -> "Workspace":
    """The workspace of a sweep: the runs that carry its name as a tag, grouped by experiment."""
    from wandb_workspaces import expr
    from wandb_workspaces.workspaces import interface as workspaces

    grouped: list[Any] = [expr.Metric("Group"), *([expr.Config(sweep.over.key)] if sweep.over else [])]
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=sweep.title,
        sections=[
            workspaces.Section(name=chapter.title, panels=chapter.panels, is_open=True) for chapter in _chapters(sweep)
        ],
        settings=workspaces.WorkspaceSettings(x_axis=STEP, max_runs=100),
        runset_settings=workspaces.RunsetSettings(
            filters=_filter(sweep, [*sweep.names, *(then.name for then in sweep.then)]),
            groupby=grouped,
            pinned_columns=["run:displayName", f"summary:{sweep.metric}"],
        ),
    )


def make_report(sweep: Sweep, entity: str, project: str) -> "Report":
    """The report of a sweep: the tables that `compare` makes of its finished runs, and the workspace's panels."""
    from wandb_workspaces.reports.v2 import interface as reports

    blocks: list[Any] = [reports.MarkdownBlock(text=_tables(sweep))]
    for chapter in _chapters(sweep):
        # over a value, an experiment has a run set of its own, whose lines are the values
        shown = {sweep.label(name): [name] for name in chapter.experiments} if sweep.over else None
        sets = [
            reports.Runset(
                entity=entity,
                project=project,
                name=name,
                filters=_filter(sweep, experiments),
                groupby=chapter.groupby,
            )
            for name, experiments in (shown or {sweep.name: chapter.experiments}).items()
        ]
        blocks += [reports.H2(text=chapter.title), reports.PanelGrid(runsets=sets, panels=chapter.panels)]
    return reports.Report(
        entity=entity,
        project=project,
        title=sweep.title[:128],
        description=f"Sweep {sweep.name}: {len(sweep.names)} experiments, seeds {', '.join(map(str, sweep.seeds))}.",
        blocks=blocks,
        width="fluid",
    )


def as_wandb_sweep(sweep: Sweep, project: str) -> dict[str, Any]:
    """A sweep in W&B's own format: a grid over experiment files, seeds and the values that it is over."""
    parameters: dict[str, dict[str, Any]] = {"config": {"values": sweep.experiments}}
    if sweep.over:
        parameters[sweep.over.key] = {"values": sweep.over.values}
    parameters["seed_everything"] = {"values": sweep.seeds}
    fit = ["fit", "${args}", f"--run.project={project}", f"--run.tags={json.dumps([sweep.name])}", *sweep.overrides]
    return {
        "name": sweep.name,
        "description": sweep.title,
        "project": project,
        "program": "lightning_vl/__main__.py",
        "command": ["${env}", "${interpreter}", "-m", "lightning_vl", *fit],
        "method": "grid",
        "metric": {"name": sweep.metric, "goal": "minimize" if lower_is_better(sweep.metric) else "maximize"},
        "parameters": parameters,
    }


def _dashboard(arguments: argparse.Namespace) -> int:
    """Makes workspace and report, or changes those that were made before; or writes their JSON."""
    sweep = _read(arguments)
    folder = sweep_folder(sweep)
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.dry_run:
        for name, content in _offline(sweep, arguments.entity or "", arguments.project).items():
            (folder / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            print(folder / name)
        return 0
    mode = find_wandb_mode()
    if mode.name != "online":
        raise UserError(
            f"the dashboard is made at W&B, which is {mode.name}: {mode.reason}",
            "run `wandb login` where there is a network, or give --dry-run to write its JSON here",
        )
    links = _save(sweep, arguments.entity, arguments.project, folder / LINKS)
    for kind in ("workspace", "report"):
        print(f"{kind}: {links[kind]}")
    return 0


def _save(sweep: Sweep, entity: str | None, project: str, kept: Path) -> dict[str, str]:
    """Saves both at W&B; the second time the same two are changed, whose addresses were kept."""
    import wandb
    from wandb_workspaces.workspaces import interface as workspaces

    links = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    try:
        with asking_wandb("the dashboard", f"see --entity and --project; remove {kept} if they were deleted at W&B"):
            owner = entity or str(wandb.Api().default_entity)
            workspace: Any = make_workspace(sweep, owner, project)
            report: Any = make_report(sweep, owner, project)
            if "workspace" in links:
                before = workspaces.Workspace.from_url(links["workspace"])
                before.name, before.sections = workspace.name, workspace.sections
                before.settings, before.runset_settings = workspace.settings, workspace.runset_settings
                workspace = before
            links["workspace"] = workspace.save().url
            report.id = links.get("report id", "")  # its address would not give it, were a slash in the title
            links["report"] = report.save().url
            links["report id"] = report.id
    finally:
        if links:
            kept.write_text(json.dumps(links, indent=1) + "\n", encoding="utf-8")
    return links


def _offline(sweep: Sweep, entity: str, project: str) -> dict[str, dict[str, Any]]:
    """The JSON of both, as it would be sent, by file name.

    A run set of a report names its project by a number that only the server knows. The library asks for it unless the run
    set has no project, so it is left out there and added with its names alone.
    """
    from wandb_workspaces.reports.v2.internal import PanelGrid, Project

    workspace: Any = make_workspace(sweep, entity, project)
    report: Any = make_report(sweep, entity, project)
    for block in report.blocks:
        for runs in getattr(block, "runsets", []):
            runs.entity = runs.project = ""
    content = report._to_model()
    for block in content.spec.blocks:
        if isinstance(block, PanelGrid):
            for runs in block.metadata.run_sets:
                runs.project = Project(name=project, entity_name=entity)
    views = {"wandb_workspace.json": workspace._to_model(), "wandb_report.json": content}
    return {name: view.model_dump(mode="json", by_alias=True, exclude_none=True) for name, view in views.items()}


def _filter(sweep: Sweep, experiments: Sequence[str]) -> str:
    """The runs of the sweep that are of these experiments."""
    return f"Metric('Group') in {json.dumps([*experiments])} and Tags() in {json.dumps([sweep.name])}"


def _chapters(sweep: Sweep) -> list[_Chapter]:
    """The panels: what it came to, how it got there, and at what speed."""
    metrics = [sweep.metric, *sweep.metrics]
    # over a value, a mean over the runs of an experiment would mix the values
    outcome = _over(sweep, metrics) if sweep.over else [_bars(metric) for metric in metrics]
    course = {name: name for name in dict.fromkeys(map(_during_training, metrics)) if name}
    course |= {"train/loss": "loss in training", "val/loss": "loss in validation"}
    panels = {
        "What it came to": [*outcome, *_costs(sweep)],
        "How it got there": [_curves(sweep, name, title) for name, title in course.items()],
        "At what speed": [_curves(sweep, name, title) for name, title in SPEEDS.items()],
    }
    groupby = [f"config.{sweep.over.key}" if sweep.over else "Group"]
    return [
        *(_Chapter(title, sweep.names, groupby, _in_rows(shown)) for title, shown in panels.items()),
        *(_Chapter(f"Then: {then.title}", [then.name], [], _in_rows(_after(then))) for then in sweep.then),
    ]


def _during_training(metric: str) -> str | None:
    """What validation logs of a metric of the test; nothing of one that is measured after training alone."""
    return metric.replace("test/", "val/", 1) if metric.startswith("test/") else None


def _curves(sweep: Sweep, metric: str, title: str) -> Any:
    """A line an experiment, or a value of those that the sweep is over: the mean over seeds in the band of their range."""
    from wandb_workspaces.reports.v2 import interface as reports

    return reports.LinePlot(
        title=title,
        x=STEP,
        y=[metric],
        groupby=reports.Config(sweep.over.key) if sweep.over else "Group",
        groupby_aggfunc="mean",
        groupby_rangefunc="minmax",
    )


def _bars(metric: str) -> Any:
    """A bar an experiment, the mean over its seeds with their range."""
    from wandb_workspaces.reports.v2 import interface as reports

    return reports.BarPlot(
        title=metric, metrics=[metric], groupby="Group", groupby_aggfunc="mean", groupby_rangefunc="minmax"
    )


def _costs(sweep: Sweep) -> list[Any]:
    """A dot a run: the metric over what its network costs."""
    return [_dots(sweep.metric, key, title) for key, title in COSTS.items()]


def _over(sweep: Sweep, metrics: Sequence[str]) -> list[Any]:
    """A dot a run: every metric over the value that the sweep varies."""
    assert sweep.over is not None
    return [_dots(metric, sweep.over.key, sweep.over.label) for metric in metrics]


def _dots(metric: str, key: str, title: str) -> Any:
    from wandb_workspaces.reports.v2 import interface as reports

    return reports.ScatterPlot(
        title=f"{metric} over {title}", x=reports.Config(key), y=reports.SummaryMetric(metric), log_x=True
    )


def _after(then: Then) -> list[Any]:
    """A bar a run, whose name says what it started from."""
    from wandb_workspaces.reports.v2 import interface as reports

    return [
        reports.BarPlot(title=f"{then.title}: {metric}", metrics=[metric], max_bars_to_show=100)
        for metric in [then.metric, *then.baseline]
    ]


def _in_rows(panels: list[Any]) -> list[Any]:
    """Three panels in each row of the 24 columns that a grid has: the library would put them on top of each other."""
    from wandb_workspaces.reports.v2.interface import Layout

    for number, panel in enumerate(panels):
        panel.layout = Layout(x=8 * (number % 3), y=6 * (number // 3), w=8, h=6)
    return panels


def _tables(sweep: Sweep) -> str:
    """What `compare` makes of the sweep's finished runs, as Markdown."""
    runs, left_out = read_runs(sweep)
    if not runs:
        return NO_TABLE
    if sweep.over:
        return data_scale.as_markdown(data_scale.read(sweep, runs, left_out))
    return as_markdown(with_then(compare(runs, left_out, sweep, read_costs(sweep, sweep_folder(sweep))), sweep))


def _sweep(arguments: argparse.Namespace) -> int:
    """Writes a sweep in W&B's format, and says how to start it."""
    import yaml

    sweep = _read(arguments)
    path = sweep_folder(sweep) / "wandb_sweep.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = as_wandb_sweep(sweep, arguments.project)
    path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
    print(path)
    print(f"wandb sweep {path}  # prints its id; then on every machine, in this folder: wandb agent ID")
    if sweep.then:
        print(
            f"# without {', '.join(then.name for then in sweep.then)}: these start from other runs, which no grid can say"
        )
    return 0


def _read(arguments: argparse.Namespace) -> Sweep:
    sweep = read_sweep(arguments.file)
    sweep = quick_sweep(sweep) if arguments.quick else sweep
    return replace(sweep, experiments=[Path(file).as_posix() for file in sweep.experiments])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lightning_vl wandb",
        description="A family's workspace and report at W&B, its sweep in W&B's own format, and runs made offline.",
        epilog="example: python -m lightning_vl wandb dashboard experiments/sweeps/vivit_variants.yaml --dry-run",
        allow_abbrev=False,
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    dashboard = actions.add_parser(
        "dashboard",
        help="make the workspace and the report of a sweep file",
        description="Make the workspace and the report of a sweep file at W&B; given again, change the same two.",
        allow_abbrev=False,
    )
    dashboard.add_argument("--entity", help="W&B user or team (default: the key's own)")
    dashboard.add_argument(
        "--dry-run", action="store_true", help="write their JSON to runs/sweeps/<name>; needs no key and no network"
    )
    sweep = actions.add_parser(
        "sweep",
        help="write a sweep file in W&B's own format",
        description="Write a sweep file in W&B's own format, for `wandb sweep` and `wandb agent`.",
        allow_abbrev=False,
    )
    for action in (dashboard, sweep):
        action.add_argument("file", metavar="FILE", help="the sweep file")
        action.add_argument("--project", default=PROJECT, help=f"W&B project (default: {PROJECT})")
        action.add_argument("--quick", action="store_true", help="the sweep file's quick look")
    listing = actions.add_parser(
        "list",
        help="offline runs, and which of them W&B has",
        description="List the runs that were logged offline, and which of them W&B has.",
        allow_abbrev=False,
    )
    sync = actions.add_parser(
        "sync",
        help="send offline runs to W&B",
        description="Send every offline run that W&B does not have, or has in part.",
        allow_abbrev=False,
    )
    for action in (listing, sync):
        action.add_argument(
            "runs", nargs="*", type=Path, default=[Path("runs")], help="run folders, or folders of them (default: runs)"
        )
    sync.add_argument("--dry-run", action="store_true", help="say what would be sent, and send nothing")
    return parser
