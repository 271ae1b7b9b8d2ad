"""Runs that W&B has logged offline: what there is, what W&B has of it, and sending the rest.

A start of a run writes one folder ``wandb/offline-run-<time>-<id>`` in the run's folder; a run that was resumed has
several, of the same id. Name, experiment and progress are read from W&B's own file, and its ``.wandb.synced`` mark says what
was sent.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_vl.errors import UserError
from lightning_vl.report.wandb_runs import read_offline
from lightning_vl.wandb_mode import has_key, host, is_reachable

SECONDS_OF_SILENCE = 60  # W&B writes the machine's state every 15 seconds: a file that rests longer is not written to
FILES_AT_ONCE = 200  # in one command line


@dataclass(frozen=True)
class OfflineRun:
    """A run's offline starts.

    Attributes:
        folder: the run's folder.
        files: the .wandb file of each start, the first start first, but those that a kill has left empty.
        name: as W&B shows it.
        experiment: W&B's group.
        project: where it would be sent.
        exit_code: of the last start; None where it has not ended, or was killed.
        torn: whether a file ends in half a record.
        last_step: last optimiser step that the run has logged; None if none.
        megabytes: of all its offline folders, in 1e6 bytes.
        written_to: whether a process is still writing to it.
    """

    folder: Path
    files: tuple[Path, ...]
    name: str
    experiment: str
    project: str
    exit_code: int | None
    torn: bool
    last_step: int | None
    megabytes: float
    written_to: bool

    @property
    def state(self) -> str:
        """In a word or two."""
        if self.exit_code == 0:
            return "finished"
        return "running" if self.written_to else "stopped" if self.files else "empty"

    @property
    def unsent(self) -> list[Path]:
        """The files that W&B does not have, or of which it has a part."""
        return [file for file in self.files if not _is_sent(file)]


def find_offline_runs(places: Iterable[Path]) -> list[OfflineRun]:
    """Every run with offline starts at or below the given places, by name.

    Raises:
        UserError: a place does not exist.
    """
    found: dict[Path, list[Path]] = {}
    for place in places:
        if not place.is_dir():
            raise UserError(f"{place} is no folder", "name a run folder or a folder of runs, such as runs")
        for parent, folders, _ in os.walk(place):
            if "wandb" in folders:
                files = sorted(
                    Path(parent, "wandb").glob("offline-run-*/run-*.wandb")
                )  # their names begin with the time
                if files:
                    found[Path(parent)] = files
            folders[:] = sorted(set(folders) - {"wandb", "checkpoints", "figures"})
    return [_read(folder, files) for folder, files in found.items()]


def show(places: Sequence[Path]) -> int:
    """Prints a table of offline runs; gives the exit code."""
    runs = find_offline_runs(places)
    _print(runs)
    if any(run.unsent for run in runs):
        print("to send them: python -m lightning_vl wandb sync")
    return 0


def sync(places: Sequence[Path], dry_run: bool) -> int:
    """Sends what W&B does not have, through its own command; gives the exit code: 1 if something whole was not sent.

    W&B's command sends the files of one run one after the other, in the order of their starts, so that a resumed run is
    one run there.

    Raises:
        UserError: there is no key, or no way to W&B.
    """
    runs = [run for run in find_offline_runs(places) if run.unsent]
    ready = [run for run in runs if not run.written_to]
    for run in runs:
        if run.written_to:
            print(f"{run.name} is being written to; it is left for later", file=sys.stderr)
    if dry_run or not ready:
        _print(ready)
        return 0
    if not has_key():
        raise UserError(
            f"there is no key for {host()}", "run `wandb login`, or set WANDB_API_KEY; --dry-run needs none"
        )
    if not is_reachable():
        raise UserError(f"{host()} cannot be reached", "run the same command where there is a network")
    for part in _parts(ready):
        _send(part)
        for run in part if len(part) > 1 else []:
            if run.unsent:  # one file that W&B cannot read keeps it from sending the others
                _send([run])
    left = [run for run in ready if run.unsent]
    print(f"{len(ready) - len(left)} of {len(ready)} runs sent")
    for run in left:
        again = (
            "its file is torn, as a kill leaves it: W&B has at most what comes before, and does not count it as sent"
        )
        print(f"{run.name}: {again if run.torn else 'not sent; the same command tries again'}", file=sys.stderr)
    return 1 if any(not run.torn for run in left) else 0


def _send(runs: Sequence[OfflineRun]) -> None:
    files = [str(file) for run in runs for file in run.unsent]
    # a file that has grown since it was sent counts as sent for W&B
    command = [sys.executable, "-m", "wandb", "sync", "--include-synced", *files]
    environment = {key: value for key, value in os.environ.items() if key not in ("WANDB_MODE", "WANDB_SILENT")}
    subprocess.run(command, env=environment, check=False)


def _read(folder: Path, files: Sequence[Path]) -> OfflineRun:
    read = {file: read_offline(file) for file in files}
    records = {file: record for file, record in read.items() if record.id}
    last = [*read.values(), *records.values()][-1]
    steps = [record.last_step for record in records.values() if record.last_step is not None]
    sizes = [path.stat().st_size for file in files for path in file.parent.rglob("*") if path.is_file()]
    rests = time.time() - max(file.stat().st_mtime for file in files)
    return OfflineRun(
        folder=folder,
        files=tuple(records),
        name=last.name or f"{folder.parent.name}/{folder.name}",  # of a run killed before it said so
        experiment=last.group,
        project=last.project,
        exit_code=last.exit_code,
        torn=any(record.torn for record in records.values()),
        last_step=max(steps, default=None),
        megabytes=sum(sizes) / 1e6,
        written_to=last.exit_code is None and rests < SECONDS_OF_SILENCE,
    )


def _is_sent(file: Path) -> bool:
    mark = file.with_name(f"{file.name}.synced")
    return mark.exists() and mark.stat().st_mtime >= file.stat().st_mtime


def _parts(runs: Sequence[OfflineRun]) -> Iterable[list[OfflineRun]]:
    """Runs in parts that a command line has room for, the files of one run together."""
    part: list[OfflineRun] = []
    for run in runs:
        if part and sum(len(other.unsent) for other in part) + len(run.unsent) > FILES_AT_ONCE:
            yield part
            part = []
        part.append(run)
    yield part


def _print(runs: Sequence[OfflineRun]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.show_edge = False
    table.add_column("run", overflow="fold")
    for title in ("experiment", "project", "state"):
        table.add_column(title, overflow="fold")
    for title in ("step", "MB", "sent"):
        table.add_column(title, justify="right", no_wrap=True)
    for run in runs:
        step = "-" if run.last_step is None else f"{run.last_step:,}"
        sent = f"{len(run.files) - len(run.unsent)} of {len(run.files)}"
        table.add_row(run.name, run.experiment, run.project, run.state, step, f"{run.megabytes:.1f}", sent)
    if runs:
        Console().print(table)
    unsent = [run for run in runs if run.unsent]
    megabytes = sum(run.megabytes for run in unsent)
    print(f"{len(runs)} offline runs, {len(unsent)} of them not or not wholly at W&B ({megabytes:.1f} MB)")
