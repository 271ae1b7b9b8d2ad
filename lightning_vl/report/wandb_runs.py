"""Runs as W&B has them, for `compare`: those of a project on its server, and those in W&B's own offline files.

What runs log says enough for a row of a table: the group is the experiment, the configuration is whole, and the last value of
each metric is in the summary. What only `results.json` has (device, hours, versions) is missing there.
"""

import json
import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_vl.errors import UserError
from lightning_vl.report.results import LeftOut, Run
from lightning_vl.wandb_mode import asking_wandb, find_wandb_mode

PREFIX = "wandb:"
STEP = "trainer/global_step"
METRICS = ("val/", "test/", "baseline/", "zero_shot/", "transfer/")
SAMPLES = 1000  # of a curve, by the server
BLOCK, HEADER = 32768, 7  # bytes, of LevelDB's log format, which .wandb files have
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4  # parts of a record


@dataclass(frozen=True)
class WandbRun(Run):
    """A run whose configuration and curves come from W&B.

    Attributes:
        configuration: whole, as it was logged.
        history: of the names given, each to its curve.
    """

    configuration: Mapping[str, Any] = field(default_factory=dict)
    history: Callable[[Sequence[str]], dict[str, dict[int, float]]] = lambda names: {}

    def config(self) -> dict[str, Any]:
        """The configuration as W&B has it."""
        return dict(self.configuration)

    def curves(self, names: Sequence[str]) -> dict[str, dict[int, float]]:
        """Of these logged names, those that there are to {step: value}, steps ascending."""
        return self.history(names)


@dataclass
class OfflineRecord:
    """What an offline file says of its run, so far as the file goes.

    Attributes:
        id: of the run at W&B.
        name: as W&B shows it.
        group: its experiment.
        project: where it would be sent.
        started: seconds since 1970.
        config: dotted keys are nested.
        rows: what was logged, in order.
        exit_code: None where the process has not ended, or was killed.
        torn: whether the file ends in half a record, as a kill leaves it.
    """

    id: str = ""
    name: str = ""
    group: str = ""
    project: str = ""
    started: int = 0
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    exit_code: int | None = None
    torn: bool = False

    @property
    def last_step(self) -> int | None:
        """The last optimiser step that was logged."""
        return max((int(row[STEP]) for row in self.rows if STEP in row), default=None)


def project_runs(place: str) -> list[Run | LeftOut]:
    """The runs of a project at W&B.

    Args:
        place: ``wandb:ENTITY/PROJECT``.

    Raises:
        UserError: it is no such name, W&B cannot be asked, or refuses.
    """
    path = place.removeprefix(PREFIX)
    if path.count("/") != 1 or not all(path.split("/")):
        raise UserError(f"{place} names no project", f"give {PREFIX}ENTITY/PROJECT, as in the address of its page")
    mode = find_wandb_mode()
    if mode.name != "online":
        raise UserError(
            f"{place} is at W&B, which is {mode.name}: {mode.reason}",
            "run `wandb login` where there is a network, or compare run folders",
        )
    import wandb

    with asking_wandb(place, "see the project's name, and whose key it is"):
        read = [_online(path, run) for run in wandb.Api().runs(path, lazy=False)]
    if not read:
        raise UserError(f"{place} has no run", "name another project, or send runs to it: wandb sync")
    return read


def _online(path: str, run: Any) -> Run | LeftOut:
    place = Path(path, run.id)
    if run.state != "finished":
        return LeftOut(place, f"not finished (W&B says {run.state})")

    def history(names: Sequence[str]) -> dict[str, dict[int, float]]:
        # a request a name: rows that have all of several names there are none
        with asking_wandb(f"the curves of {place}", "give the same command again"):
            rows = [run.history(samples=SAMPLES, keys=[name], x_axis=STEP, pandas=False) for name in names]
        return _curves([row for of_name in rows for row in of_name], names)

    summary = dict(run.summary_metrics)
    return _as_run(place, run.name, run.group or "", run.config, summary, history, {"commit": run.commit})


def offline_run(files: Sequence[Path]) -> Run | LeftOut:
    """The run of offline files, one a start, the first start first."""
    records = [read_offline(file) for file in files]
    last, folder = records[-1], files[-1].parent
    if last.exit_code != 0:
        return LeftOut(folder, "not finished (no exit is recorded)" if last.exit_code is None else "failed")
    rows = [row for record in records for row in record.rows]
    summary = {key: value for row in rows for key, value in row.items()}
    return _as_run(folder, last.name, last.group, last.config, summary, lambda names: _curves(rows, names), {})


def read_offline(file: Path) -> OfflineRecord:
    """Reads a .wandb file, up to where it is torn if it is still written to, or was killed.

    Raises:
        UserError: it is no such file.
    """
    from google.protobuf.message import DecodeError
    from wandb.proto import wandb_internal_pb2 as written  # not at the top: it takes half a second

    found, record = OfflineRecord(), written.Record()  # type: ignore[attr-defined]
    complete, found.torn = _records(file)
    for raw in complete:
        try:
            record.ParseFromString(raw)
        except DecodeError:  # flipped bits: what follows cannot be trusted
            found.torn = True
            break
        match record.WhichOneof("record_type"):
            case "run":
                run = record.run
                found.id, found.name, found.group = run.run_id, run.display_name, run.run_group
                found.project, found.started = run.project, run.start_time.seconds
            case "config":
                for item in record.config.update:
                    _put(found.config, item)
            case "history":
                row: dict[str, Any] = {}
                for item in record.history.item:
                    _put(row, item)
                found.rows.append(row)
            case "exit":
                found.exit_code = record.exit.exit_code
    return found


def _records(file: Path) -> tuple[list[bytes], bool]:
    """The records of a log in LevelDB's format behind W&B's own header of 7 bytes, and whether half a one comes after them."""
    content = file.read_bytes()
    if content[:4] != b":W&B":
        raise UserError(f"{file} is no file of W&B", "name a folder offline-run-*, or the run's own folder")
    at, parts = HEADER, b""
    found: list[bytes] = []
    while at + HEADER <= len(content):
        left = BLOCK - at % BLOCK
        if left < HEADER:  # no header fits into the rest of a block
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        data = content[at + HEADER : at + HEADER + length]
        if len(data) < length or kind not in (WHOLE, FIRST, MIDDLE, LAST):
            return found, True
        at += HEADER + length
        parts = data if kind in (WHOLE, FIRST) else parts + data
        if kind in (WHOLE, LAST):
            found.append(parts)
            parts = b""
    return found, bool(parts)


def _put(values: dict[str, Any], item: Any) -> None:
    *parents, key = list(item.nested_key) or [item.key]
    for parent in parents:
        values = values.setdefault(parent, {})
    values[key] = json.loads(item.value_json)


def _curves(rows: Iterable[Mapping[str, Any]], names: Sequence[str]) -> dict[str, dict[int, float]]:
    curves: dict[str, dict[int, float]] = {}
    for row in rows:
        for name in names:
            if STEP in row and _is_number(row.get(name)):
                curves.setdefault(name, {})[int(row[STEP])] = float(row[name])
    return {name: dict(sorted(curve.items())) for name, curve in curves.items()}


def _as_run(
    place: Path,
    name: str,
    group: str,
    config: Mapping[str, Any],
    summary: Mapping[str, Any],
    history: Callable[[Sequence[str]], dict[str, dict[int, float]]],
    git: Mapping[str, Any],
) -> Run | LeftOut:
    """A run from what W&B says of it, or why it is none of this bench's."""
    seed = config.get("seed_everything")
    if not group or not isinstance(seed, int):
        return LeftOut(place, "no run of this command: it has no group or no seed_everything")
    metrics = {
        # W&B writes nan as text
        key: float(value) if _is_number(value) else math.nan
        for key, value in summary.items()
        if key.startswith(METRICS) and (_is_number(value) or value in ("NaN", "Infinity", "-Infinity"))
    }
    expected = [item for item in config.get("expected") or [] if isinstance(item, dict)]
    results = {
        "model": config.get("cost") or {},
        "data": {"name": _data_name(config)},
        "expected": [{**item, "met": _met(item, metrics)} for item in expected],
        "git": git,
    }
    return WandbRun(
        folder=place,
        experiment=group,
        id=name.rpartition("/")[2],
        seed=seed,
        metrics=metrics,
        results=results,
        configuration={key: value for key, value in config.items() if key not in ("_wandb", "cost")},
        history=history,
    )


def _met(item: Mapping[str, Any], metrics: Mapping[str, float]) -> bool | None:
    measured = metrics.get(str(item.get("metric")))
    return None if measured is None else abs(measured - item["value"]) <= item["tolerance"]


def _data_name(config: Mapping[str, Any]) -> str:
    """As in `results.json`: the class of the data's source, or of the data."""
    data = config.get("data") or {}
    source = (data.get("init_args") or {}).get("source") or data
    return str(source.get("class_path", "unnamed data")).rpartition(".")[2]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
