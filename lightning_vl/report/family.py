"""Families of experiments: the sweep file, and what may differ between members of one family.

A comparison is controlled or it is worth nothing: a sweep file declares the keys in which its experiments may differ
(``differ_only_in``), and everything else must be the same.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_vl.errors import UserError
from lightning_vl.report.results import read_yaml

# Keys that say who, where and what to expect, never what was done.
NOT_SCIENCE = ("seed_everything", "expected", "run", "trainer.default_root_dir", "trainer.logger", "ckpt_path")
# How and where a run is carried out: may change when it goes on. Everything else is science.
HOW = (
    "run",
    "expected",
    "execution",
    "checkpoint_last",
    "transfer",  # is measured after training, which it cannot change
    "zero_shot",  # likewise
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
    "trainer.enable_progress_bar",
    "trainer.log_every_n_steps",
    "trainer.logger",
    "trainer.profiler",
    "data.init_args.workers",
    "data.init_args.evaluation_batch_size",
)
CHECKPOINT = "CHECKPOINT"  # in the values of `then`: path of the best checkpoint of the run before
SCRATCH = "scratch"  # in a run's id, for the experiment that it would have started from


@dataclass(frozen=True)
class Paper:
    """The printed table that the sweep is held against.

    Attributes:
        source: where it is printed, with version and table.
        columns: key to heading with unit, in the order of the table.
        rows: experiment to {column key: printed value}.
        figure: the two columns that the figure shows, keys ``x`` (compute) and ``y`` (accuracy).
        runtime: column of the runtimes, of which a ratio is made.
        printed_only: label to {column key: printed value}, for rows that no experiment of the bench stands for.
    """

    source: str
    columns: dict[str, str]
    rows: dict[str, dict[str, float]]
    figure: dict[str, str] | None = None
    runtime: str | None = None
    printed_only: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class CoreDays:
    """What turns the operations of training into core-days and money: assumptions, none of them measured.

    Attributes:
        core: what a core is.
        peak_tflops: of one core, in 1e12 operations a second.
        peak_source: where that is from.
        utilisation: share of the peak that training reaches.
        utilisation_source: where that is from.
        price_per_core_hour: in dollars.
        price_source: where that is from.
        printed: column of the paper that has core-days.
    """

    core: str
    peak_tflops: float
    peak_source: str
    utilisation: float
    utilisation_source: str
    price_per_core_hour: float
    price_source: str
    printed: str | None = None


@dataclass(frozen=True)
class Over:
    """The one value that a sweep varies beside experiment and seed: the figure's horizontal axis.

    Attributes:
        key: dotted key of the experiment files, as ``data.init_args.train_images``.
        label: what it is, for the axis and the table.
        values: ascending positive numbers.
    """

    key: str
    label: str
    values: list[int]


@dataclass(frozen=True)
class Quick:
    """What ``--quick`` puts in the place of the sweep's own, for a look: its runs never mix with the sweep's.

    Attributes:
        seeds: of the look.
        values: of ``over``; the sweep's where absent.
        overrides: ``--key=value`` after those of the sweep.
    """

    seeds: list[int]
    values: list[int] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Then:
    """An experiment that starts from the best checkpoint of each run of the sweep: what was its training worth?

    Attributes:
        experiment: file, relative to the working directory.
        metric: as logged; its column in the table.
        start: dotted keys of that file to the values that they get, in which ``CHECKPOINT`` stands for the path.
        keep: dotted keys that get the value of the experiment started from, where its own file has them.
        label: over its columns; the experiment's name where absent.
        baseline: logged ``baseline/...`` names, a column each.
        scratch: dotted keys to values, as ``start``, of a run that starts from nothing, once a seed; ``{}`` where the
            file as it is does. Kept keys, and a ``CHECKPOINT`` (of which only a vocabulary is taken, say), are of the
            sweep's first experiment. No such runs where absent.
    """

    experiment: str
    metric: str
    start: dict[str, Any]
    keep: list[str] = field(default_factory=list)
    label: str | None = None
    baseline: list[str] = field(default_factory=list)
    scratch: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """The experiment's name."""
        return Path(self.experiment).stem

    @property
    def title(self) -> str:
        """Over its columns, and before its metrics' names."""
        return self.label or self.name


@dataclass(frozen=True)
class Sweep:
    """A sweep file: a family of experiments and seeds that make one table.

    Attributes:
        name: of the folder ``runs/sweeps/<name>`` and the front of every run's id.
        title: heading of table and page.
        experiments: files, relative to the working directory.
        seeds: each experiment runs once with each.
        metric: the metric of the table and the figure, as logged (``test/top1``).
        differ_only_in: dotted keys, each with all below it, in which the experiments may differ.
        labels: experiment to its name in tables and figures; the experiment's own where absent.
        overrides: ``--key=value`` for every run.
        cost: experiment to the file whose network the cost columns are taken from; its own where absent.
        runtime_baseline: experiment whose runtime is 1; the first where absent.
        paper: printed values.
        over: a value to vary; every experiment runs at each.
        metrics: further metrics of a sweep over a value, a panel and a table each.
        pairs: two experiments each: where does the first overtake the second.
        compute_budget: training multiply-adds (1e9) at which the experiments are compared; the least total of a
            finished run where absent.
        quick: what ``--quick`` runs instead.
        core_days: what training costs are computed with; such a sweep's table needs no finished run.
        then: experiments that start from the best checkpoint of each run.
    """

    name: str
    title: str
    experiments: list[str]
    seeds: list[int]
    metric: str
    differ_only_in: list[str]
    labels: dict[str, str] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)
    cost: dict[str, str] = field(default_factory=dict)
    runtime_baseline: str | None = None
    paper: Paper | None = None
    over: Over | None = None
    metrics: list[str] = field(default_factory=list)
    pairs: list[list[str]] = field(default_factory=list)
    compute_budget: float | None = None
    quick: Quick | None = None
    core_days: CoreDays | None = None
    then: list[Then] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """The experiments' names, in the order of the file."""
        return [Path(file).stem for file in self.experiments]

    def label(self, experiment: str) -> str:
        """The experiment's name in tables and figures."""
        return self.labels.get(experiment, experiment)


def read_sweep(path: str | Path) -> Sweep:
    """Read and check a sweep file.

    Raises:
        UserError: no such file, an unknown or missing key, a value of the wrong kind, an experiment that is not there.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist", "Name a sweep file, such as experiments/sweeps/vivit_variants.yaml")
    sweep: Sweep = _typed(Sweep, read_yaml(path), str(path))
    if not sweep.experiments or not sweep.seeds:
        raise UserError(f"{path}: experiments or seeds is empty", "List at least one of each")
    for file in [*sweep.experiments, *sweep.cost.values(), *(then.experiment for then in sweep.then)]:
        if not Path(file).is_file():
            raise UserError(f"{path}: {file} does not exist", "Paths are relative to the working directory")
    for override in [*sweep.overrides, *(sweep.quick.overrides if sweep.quick else [])]:
        if not override.startswith("--") or override.startswith(("--run.", "--seed_everything")):
            raise UserError(
                f"{path}: overrides has {override!r}",
                "Write --key=value; seed, id and place of a run are the sweep's own to give",
            )
    named = {
        "labels": [*sweep.labels],
        "cost": [*sweep.cost],
        "paper.rows": [*(sweep.paper.rows if sweep.paper else [])],
        "pairs": [experiment for pair in sweep.pairs for experiment in pair],
    }
    if sweep.runtime_baseline:
        named["runtime_baseline"] = [sweep.runtime_baseline]
    for key, experiments in named.items():
        for experiment in experiments:
            if experiment not in sweep.names:
                raise UserError(
                    f"{path}: {key} names {experiment!r}, no experiment of it", nearest(experiment, sweep.names)
                )
    if sweep.paper:
        _check_paper(path, sweep.paper)
    if sweep.core_days:
        _check_core_days(path, sweep, sweep.core_days)
    _check_values(path, sweep)
    _check_then(path, sweep)
    return sweep


def quick_sweep(sweep: Sweep) -> Sweep:
    """The sweep that ``--quick`` runs, under a name of its own.

    Raises:
        UserError: the file has no ``quick``.
    """
    quick = sweep.quick
    if quick is None:
        raise UserError(f"the sweep {sweep.name} has no quick", "Add quick: {seeds: [0], ...} to its file, or run all")
    over = dataclasses.replace(sweep.over, values=quick.values or sweep.over.values) if sweep.over else None
    return dataclasses.replace(
        sweep,
        name=f"{sweep.name}-quick",
        title=f"{sweep.title} (quick look)",
        seeds=quick.seeds,
        over=over,
        overrides=[*sweep.overrides, *quick.overrides],
        compute_budget=None,  # shorter runs have spent less: the least of theirs
    )


def check_family(files: Sequence[str | Path], differ_only_in: Sequence[str]) -> None:
    """Check that experiment files differ in the declared keys alone.

    Raises:
        UserError: they differ elsewhere; names the keys and the two files.
    """
    configs = {str(file): read_yaml(Path(file)) for file in files}
    first, *others = configs
    for other in others:
        keys = undeclared(configs[first], configs[other], differ_only_in)
        if keys:
            raise UserError(
                f"{other} differs from {first} in {', '.join(keys)}",
                f"Make them equal, or declare the key in differ_only_in: {', '.join(differ_only_in) or 'it is empty'}",
            )


def undeclared(one: Any, other: Any, differ_only_in: Sequence[str] = ()) -> list[str]:
    """The dotted keys in which two configurations differ, but for those declared and :data:`NOT_SCIENCE`."""
    return differences_outside((*NOT_SCIENCE, *differ_only_in), one, other)


def differences_outside(allowed: Sequence[str], one: Any, other: Any) -> list[str]:
    """The dotted keys in which two configurations differ, without these and all below them."""
    return [key for key in differences(one, other) if not any(_is_under(key, prefix) for prefix in allowed)]


def differences(one: Any, other: Any, prefix: str = "") -> list[str]:
    """The dotted keys in which two configurations differ; a key that one of them lacks counts as null there."""
    if one == other:
        return []
    if not isinstance(one, Mapping | None) or not isinstance(other, Mapping | None):
        return [prefix]
    one, other = one or {}, other or {}
    dot = f"{prefix}." if prefix else ""
    keys = dict.fromkeys([*one, *other])
    return [found for key in keys for found in differences(one.get(key), other.get(key), f"{dot}{key}")]


def value_at(config: Any, key: str) -> Any:
    """The value of a dotted key, or None."""
    for part in key.split("."):
        config = config.get(part) if isinstance(config, Mapping) else None
    return config


def nearest(name: str, names: Iterable[str]) -> str:
    """One line that names the nearest valid name, or all of them."""
    names = list(names)
    close = difflib.get_close_matches(name, names, n=1)
    return f"Did you mean {close[0]!r}?" if close else f"Valid: {', '.join(names)}"


def _is_under(key: str, prefix: str) -> bool:
    return key == prefix or key.startswith(prefix + ".")


def _check_values(path: Path, sweep: Sweep) -> None:
    quick = sweep.quick.values if sweep.quick else []
    if sweep.over is None:
        if sweep.metrics or sweep.pairs or sweep.compute_budget is not None or quick:
            raise UserError(
                f"{path}: metrics, pairs, compute_budget and quick.values belong to a sweep over a value",
                "Add over: {key: ..., label: ..., values: [...]}, or leave them out",
            )
        return
    for key, values in (("over.values", sweep.over.values), ("quick.values", quick)):
        if values != sorted(set(values)) or any(value < 1 for value in values):
            raise UserError(f"{path}: {key} is {values}", "List different positive numbers, ascending")
    if not sweep.over.values:
        raise UserError(f"{path}: over.values is empty", "List at least one value")
    for pair in sweep.pairs:
        if len(set(pair)) != 2:
            raise UserError(f"{path}: pairs has {pair}", "Name two experiments: [which overtakes, which is overtaken]")


def _check_then(path: Path, sweep: Sweep) -> None:
    if sweep.then and sweep.over:
        raise UserError(f"{path}: then and over do not go together", "Leave one of them out, or make two sweep files")
    if sweep.then and SCRATCH in sweep.names:
        raise UserError(f"{path}: an experiment is called {SCRATCH!r}, as runs from nothing are", "Rename its file")
    for what in ("name", "title"):
        values = [getattr(then, what) for then in sweep.then]
        if len(values) != len(set(values)):
            raise UserError(f"{path}: then has the same experiment or label twice", "Give each its own")
    before = [read_yaml(Path(file)) for file in sweep.experiments]
    for number, then in enumerate(sweep.then, 1):
        where, after = f"{path}: then: item {number}", read_yaml(Path(then.experiment))
        if not mentions_checkpoint(then.start):
            raise UserError(
                f"{where}: start does not mention {CHECKPOINT}", f"As in: KEY: {{class_path: ..., path: {CHECKPOINT}}}"
            )
        for key in [*then.start, *then.keep, *(then.scratch or {})]:
            if not _has_place(after, key):
                raise UserError(
                    f"{where}: {then.experiment} has no place for the key {key!r}", "Mend the key's spelling"
                )
        for key in then.keep:
            if all(value_at(config, key) is None for config in before):
                raise UserError(f"{where}: keep: no experiment of the sweep has the key {key!r}", "Mend its spelling")


def mentions_checkpoint(value: Any) -> bool:
    """Whether ``CHECKPOINT`` is somewhere in a value."""
    if isinstance(value, Mapping):
        return any(map(mentions_checkpoint, value.values()))
    return any(map(mentions_checkpoint, value)) if isinstance(value, list) else value == CHECKPOINT


def _has_place(config: Any, key: str) -> bool:
    """Whether a dotted key may be set in a configuration: what it is a part of is there, its name is not checked."""
    parent = key.rpartition(".")[0]
    if parent.endswith(".init_args") and value_at(config, parent) is None:
        return value_at(config, parent.removesuffix("init_args") + "class_path") is not None
    return bool(parent) and isinstance(value_at(config, parent), Mapping)


def _check_core_days(path: Path, sweep: Sweep, assumed: CoreDays) -> None:
    if not 0 < assumed.utilisation <= 1 or assumed.peak_tflops <= 0 or assumed.price_per_core_hour < 0:
        raise UserError(
            f"{path}: core_days has a utilisation, peak or price out of range",
            "Give 0 < utilisation <= 1, peak_tflops > 0 and price_per_core_hour >= 0",
        )
    columns = [*(sweep.paper.columns if sweep.paper else [])]
    if assumed.printed and assumed.printed not in columns:
        raise UserError(
            f"{path}: core_days.printed names the column {assumed.printed!r}", nearest(assumed.printed, columns)
        )


def _check_paper(path: Path, paper: Paper) -> None:
    used = [("paper.runtime", paper.runtime)] if paper.runtime else []
    used += [("paper.figure", column) for column in (paper.figure or {}).values()]
    for part, rows in (("rows", paper.rows), ("printed_only", paper.printed_only)):
        used += [(f"paper.{part}.{name}", column) for name, row in rows.items() for column in row]
    for key, column in used:
        if column not in paper.columns:
            raise UserError(f"{path}: {key} names the column {column!r}", nearest(column, paper.columns))
    if paper.figure is not None and set(paper.figure) != {"x", "y"}:
        raise UserError(f"{path}: paper.figure has the keys {', '.join(paper.figure)}", "It needs x and y")


def _typed(kind: Any, value: Any, where: str) -> Any:
    """Check a YAML value against a type: a dataclass, list[..], dict[str, ..], a union with None, or a scalar."""
    if kind is Any:
        return value
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        present = [argument for argument in arguments if argument is not types.NoneType]
        return None if value is None else _typed(present[0], value, where)
    if dataclasses.is_dataclass(kind):
        _expect(value, dict, where, "keys and values")
        hints = typing.get_type_hints(kind)
        for key in value:
            if key not in hints:
                raise UserError(f"{where}: unknown key {key!r}", nearest(str(key), hints))
        for item in dataclasses.fields(kind):
            optional = item.default is not dataclasses.MISSING or item.default_factory is not dataclasses.MISSING
            if item.name not in value and not optional:
                raise UserError(f"{where}: {item.name!r} is missing", f"Add the key {item.name!r}")
        return typing.cast(type, kind)(
            **{key: _typed(hints[key], inner, f"{where}: {key}") for key, inner in value.items()}
        )
    if origin is list:
        _expect(value, list, where, "a list")
        return [_typed(arguments[0], inner, f"{where}: item {number}") for number, inner in enumerate(value, 1)]
    if origin is dict:
        _expect(value, dict, where, "keys and values")
        return {str(key): _typed(arguments[1], inner, f"{where}: {key}") for key, inner in value.items()}
    if kind is float:
        _expect(value, (int, float), where, "a number")
        return float(value)
    _expect(value, kind, where, {str: "text", int: "a whole number"}[kind])
    return value


def _expect(value: Any, kind: Any, where: str, wanted: str) -> None:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise UserError(f"{where} is {value!r}", f"It must be {wanted}")
