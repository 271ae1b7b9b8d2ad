"""``python -m lightning_vl sweep``: run a family of experiments over seeds, then print and draw its table.

Every run is a process of its own, ``fit`` with a fixed run id: a sweep that was stopped goes on where it was when the
same command is given again. A sweep ``over`` a value runs every experiment at each value, and draws curves over it
(:mod:`lightning_vl.report.data_scale`). Experiments named under ``then`` start from the best checkpoint of each run.
Nothing here needs torch until all runs are done and costs are measured.
"""

import argparse
import fcntl
import hashlib
import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightning_vl.errors import UserError
from lightning_vl.report import data_scale
from lightning_vl.report.compare import compare, read_costs, sweep_folder, write
from lightning_vl.report.family import (
    CHECKPOINT,
    NOT_SCIENCE,
    SCRATCH,
    Sweep,
    check_family,
    mentions_checkpoint,
    quick_sweep,
    read_sweep,
    value_at,
)
from lightning_vl.report.results import LeftOut, Run, read_run, read_yaml
from lightning_vl.report.table import Comparison, add_then, print_table

POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Task:
    """One run of a sweep.

    Attributes:
        experiment: name.
        seed: its seed.
        value: of the key that the sweep is over, or None.
        metric: that the sweep wants of it.
        arguments: of ``python -m lightning_vl``; ``CHECKPOINT`` in them stands for that of ``after``.
        folder: the run's folder.
        log: where its output goes.
        inputs: everything that makes its result, but for the run that it starts from.
        start: of a run of ``then``, the name of the experiment that it starts from, or ``scratch``; None of others.
        after: the run whose best checkpoint it needs.
    """

    experiment: str
    seed: int
    value: int | None
    metric: str
    arguments: tuple[str, ...]
    folder: Path
    log: Path
    inputs: str
    start: str | None = None
    after: "Task | None" = None

    @property
    def name(self) -> str:
        """For lines on the terminal."""
        start = "" if self.start is None else f" from {self.start}"
        return f"{self.experiment}{'' if self.value is None else f' {self.value}'}{start} seed {self.seed}"

    @property
    def digest(self) -> str:
        """Of everything that makes its result: a run before it that was made again makes another one."""
        before = f"{self.after.digest} {_finished(self.after)}" if self.after else ""
        return hashlib.sha256((self.inputs + before).encode()).hexdigest()

    @property
    def checkpoint(self) -> Path:
        """What the run was tested with, or will be: its best checkpoint."""
        run = read_run(self.folder)
        tested = run.results.get("checkpoint") if isinstance(run, Run) else None
        return self.folder / "checkpoints" / Path(tested or "best.ckpt").name  # wherever the folder has been moved to

    @property
    def command(self) -> str:
        """As a user would type it."""
        return shlex.join(["python", "-m", "lightning_vl", *self.words()])

    def words(self, checkpoint: Path | None = None) -> list[str]:
        """The arguments with the checkpoint that it starts from, by default that of ``after``."""
        if self.after is None:
            return [*self.arguments]
        path = (checkpoint or self.after.checkpoint).as_posix()
        return [word.replace(CHECKPOINT, path) for word in self.arguments]


def tasks(sweep: Sweep) -> list[Task]:
    """The runs of a sweep, seed by seed, so that a first table or curve over all experiments is there early."""
    result = []
    for seed in sweep.seeds:
        for value in sweep.over.values if sweep.over else [None]:
            for file in sweep.experiments:
                end = f"seed{seed}" if value is None else f"{value}-seed{seed}"
                set_here = [f"--{sweep.over.key}={value}"] if sweep.over else []
                task = _task(sweep, file, sweep.metric, seed, end, [*sweep.overrides, *set_here])
                result.append(replace(task, value=value))
        if sweep.then:
            result += _tasks_after(sweep, seed, result[-len(sweep.experiments) :])
    return result


def _tasks_after(sweep: Sweep, seed: int, before: Sequence[Task]) -> list[Task]:
    """The runs of ``then`` after those of a seed."""
    result = []
    for then in sweep.then:
        starts: list[tuple[str, str, Task | None, dict[str, Any]]] = [
            (task.experiment, file, task, then.start) for task, file in zip(before, sweep.experiments, strict=True)
        ]
        if then.scratch is not None:
            first = before[0] if mentions_checkpoint(then.scratch) else None
            starts.append((SCRATCH, sweep.experiments[0], first, then.scratch))
        for start, file, after, given in starts:
            config = read_yaml(Path(file))
            kept = {key: value_at(config, key) for key in then.keep if value_at(config, key) is not None}
            # text as it is: where text is expected, quotes would be a part of it
            set_here = [
                f"--{key}={value if isinstance(value, str) else json.dumps(value)}"
                for key, value in {**kept, **given}.items()
            ]
            task = _task(
                sweep, then.experiment, then.metric, seed, f"{start}-seed{seed}", [*set_here, *sweep.overrides]
            )
            result.append(replace(task, start=start, after=after))
    return result


def _task(sweep: Sweep, file: str, metric: str, seed: int, end: str, overrides: list[str]) -> Task:
    name, id = Path(file).stem, f"{sweep.name}-{end}"
    content = read_yaml(Path(file))
    if isinstance(content, dict):
        content = {key: value for key, value in content.items() if key not in NOT_SCIENCE}
    return Task(
        experiment=name,
        seed=seed,
        value=None,
        metric=metric,
        # the tag is what W&B's dashboards of the sweep find its runs by
        arguments=("fit", "-c", file, "--seed_everything", str(seed), "--run.id", id, _tag(sweep), *overrides),
        folder=Path("runs", name, id),
        log=sweep_folder(sweep) / "logs" / f"{name}-{end}.log",
        inputs=json.dumps([content, seed, overrides], sort_keys=True, default=str),
    )


def _tag(sweep: Sweep) -> str:
    return f"--run.tags={json.dumps([sweep.name])}"


def _finished(task: Task) -> Any:
    """When a run ended, or None."""
    run = read_run(task.folder)
    return run.results.get("finished") if isinstance(run, Run) else None


def main(argv: Sequence[str]) -> int:
    """Run the verb; gives the exit code: 0, or 1 if a run failed."""
    arguments, given = _parser().parse_known_args(argv)
    sweep = read_sweep(arguments.file)
    sweep = replace(sweep, overrides=[*sweep.overrides, *as_overrides(given)])
    if arguments.quick:
        sweep = quick_sweep(sweep)
    check_family(sweep.experiments, sweep.differ_only_in)
    if arguments.report:
        _report(sweep, [])
        return 0
    todo, done = _split(sweep, tasks(sweep))
    if arguments.launcher == "slurm":
        _submit(sweep, todo, done, arguments)
        return 0
    if arguments.sbatch:
        raise UserError("--sbatch is of --launcher slurm", "give that too, or leave --sbatch out")
    if arguments.dry_run:
        _print_plan(sweep, todo, done)
        return 0
    for task in done:
        say(f"{task.name}: finished before")
    failed = _run_all(sweep, todo, arguments.jobs or 1)
    # over a value each run's own cost counts, which its record has; core-days are computed, not measured
    warnings = [] if sweep.over or sweep.core_days else _measure_costs(sweep)
    _report(sweep, warnings)
    for task, reason in failed:
        say(f"failed: {task.name}: {reason}\n  {task.command}\n  {task.log}")
        for other in todo:
            if other.after == task:
                say(f"not run: {other.name}: it starts from {task.name}, which failed")
    return 1 if failed else 0


def _submit(sweep: Sweep, todo: Sequence[Task], done: Sequence[Task], arguments: argparse.Namespace) -> None:
    """Leave the runs to SLURM, and say what comes after them."""
    from lightning_vl.report.slurm import submit

    for task in done:
        say(f"{task.name}: finished before")
    if todo:
        submit(sweep, todo, arguments.jobs, shlex.split(arguments.sbatch), arguments.dry_run)
    words = ["sweep", arguments.file, *(["--quick"] if arguments.quick else []), "--report"]
    say(f"when they are done: {shlex.join(['python', '-m', 'lightning_vl', *words])}")


def _split(sweep: Sweep, every: Sequence[Task]) -> tuple[list[Task], list[Task]]:
    """What is to be run and what is finished.

    A run of ``then`` whose inputs have changed is to be run again: it follows from the others.

    Raises:
        UserError: a finished run was made by another experiment file or other overrides than now.
    """
    kept = read_json(digests_file(sweep))
    todo, done = [], []
    for task in every:
        if not isinstance(read_run(task.folder), Run) or (task.start is not None and is_outdated(task, kept)):
            todo.append(task)
        elif is_outdated(task, kept):
            raise UserError(
                f"{task.folder} was made before {task.experiment} or the overrides were changed",
                "Move that folder away to run it again, or give the sweep a new name",
            )
        else:
            done.append(task)
    return todo, done


def is_outdated(task: Task, kept: Mapping[str, str]) -> bool:
    """Whether a run was made from something else than now; one of which no digest was kept counts as it is."""
    return kept.get(task.log.stem, task.digest) != task.digest


def _print_plan(sweep: Sweep, todo: Sequence[Task], done: Sequence[Task]) -> None:
    for task in done:
        print(f"# finished: {task.name}")
    for task in todo:
        print(task.command)
    if not (sweep.over or sweep.core_days):
        print(shlex.join(["python", "-m", "lightning_vl", "profile", *_cost_files(sweep)]))
    table = "data_scale.csv" if sweep.over else "table.csv"
    print(f"# {table}, table.md, figure.png and index.html go to {sweep_folder(sweep)}")


def _run_all(sweep: Sweep, todo: Sequence[Task], jobs: int) -> list[tuple[Task, str]]:
    """Run every task, so many at once; gives those that failed, with a line of why."""
    digests = read_json(digests_file(sweep))
    environment = {key: value for key, value in os.environ.items() if key != "LIGHTNING_VL_RUN_ID"}
    if jobs > 1:  # else every run takes all cores and they get in each other's way
        environment["OMP_NUM_THREADS"] = str(max(1, _cores() // jobs))
    waiting, failed = dict(enumerate(todo, 1)), list[tuple[Task, str]]()
    pending = {task.folder for task in todo}  # waiting or running: what starts from one of them waits for it
    running: dict[int, tuple[Task, subprocess.Popen[bytes], float]] = {}
    seconds: list[float] = []
    held: set[int] = set()
    previous = signal.signal(signal.SIGTERM, _terminated)
    try:
        while waiting or running:
            for number, task in list(waiting.items()):
                if len(running) == jobs:
                    break
                if task.after and task.after.folder in pending:
                    continue
                if task.after and any(task.after == other for other, _ in failed):
                    pending.remove(waiting.pop(number).folder)
                    continue
                process = _start(task, environment, is_outdated(task, digests))
                if process is None:
                    if number not in held:
                        say(f"[{number}/{len(todo)}] {task.name}: an earlier sweep's process is still at it; waiting")
                        held.add(number)
                    continue
                del waiting[number]
                digests[task.log.stem] = task.digest
                write_json(digests_file(sweep), digests)
                say(f"[{number}/{len(todo)}] {task.name}: {task.command}")
                running[number] = (task, process, time.monotonic())
            time.sleep(POLL_SECONDS)
            _show_progress([task for task, _, _ in running.values()])
            for number, (task, process, started) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[number]
                pending.remove(task.folder)
                seconds.append(time.monotonic() - started)
                reason = _outcome(task, process.returncode)
                if reason:
                    failed.append((task, reason))
                outcome = reason or _result(task)
                left = (len(waiting) + len(running)) * sum(seconds) / len(seconds) / jobs
                say(
                    f"[{number}/{len(todo)}] {task.name}: {outcome} after {_minutes(seconds[-1])}"
                    + (f", about {_minutes(left)} left" if left else "")
                )
    except (KeyboardInterrupt, SystemExit):
        _stop([process for _, process, _ in running.values()])
        say("stopped; the runs have kept their checkpoints: the same command goes on with them")
        raise
    finally:
        signal.signal(signal.SIGTERM, previous)
    return failed


def _start(task: Task, environment: dict[str, str], outdated: bool) -> "subprocess.Popen[bytes] | None":
    """Start a run, or give None where a process of an earlier sweep, which was killed, still works on it.

    What was made of earlier inputs of a run of ``then`` is set aside first.
    """
    task.log.parent.mkdir(parents=True, exist_ok=True)
    with task.log.open("ab") as log:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the run's process holds it as its output, until it ends
        except BlockingIOError:
            return None
        except OSError:  # a file system without locks
            pass
        if outdated and task.start is not None and task.folder.exists():
            say(f"{task.name}: what it starts from has changed; its earlier run is kept in {set_aside(task.folder)}")
        log.write(f"$ {task.command}\n".encode())
        log.flush()
        return subprocess.Popen(
            [sys.executable, "-m", "lightning_vl", *task.words()],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # a Ctrl-C at the terminal reaches the sweep alone, which passes it on once
        )


def set_aside(folder: Path) -> Path:
    """Move a run's folder to a name of its own, with a record that no comparison takes for a finished run."""
    number = next(n for n in itertools.count(1) if not folder.with_name(f"{folder.name}-outdated{n}").exists())
    record = read_json(folder / "results.json")
    if record:
        write_json(folder / "results.json", record | {"status": "outdated"})
    return folder.rename(folder.with_name(f"{folder.name}-outdated{number}"))


def _stop(processes: Sequence["subprocess.Popen[bytes]"]) -> None:
    """Ask the runs to stop, which they do with a checkpoint; a second Ctrl-C ends them at once."""
    for process in processes:
        process.send_signal(signal.SIGINT)
    if processes:
        say("stopping: the runs write their checkpoints (Ctrl-C again loses the steps since their last ones)")
    try:
        for process in processes:
            process.wait()
    except KeyboardInterrupt:
        for process in processes:
            process.kill()
            process.wait()


def _terminated(number: int, frame: Any) -> None:
    raise SystemExit(128 + number)


def _outcome(task: Task, code: int) -> str | None:
    """Why a run failed, in one line, or None."""
    if code == 0:
        run = read_run(task.folder)
        return f"ended, but {run.reason}" if isinstance(run, LeftOut) else None
    lines = [line for line in task.log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error:")]
    return f"exit code {code}, {(errors or lines or ['no output'])[-1].strip()[:200]}"


def _result(task: Task) -> str:
    run = read_run(task.folder)
    value = run.metrics.get(task.metric) if isinstance(run, Run) else None
    return f"{task.metric} {value:.4f}" if value is not None else f"no {task.metric}"


def _cost_files(sweep: Sweep) -> list[str]:
    return [sweep.cost.get(name, file) for name, file in zip(sweep.names, sweep.experiments, strict=True)]


def _measure_costs(sweep: Sweep) -> list[str]:
    """Profile the files that the sweep takes its costs from, unless that was done before here; gives warnings."""
    import torch

    from lightning_vl.report.profile import find_device, profile
    from lightning_vl.run import device_name

    files = _cost_files(sweep)
    kept_under = {
        "device": device_name(find_device("auto").type),
        "torch": torch.__version__,
        "files": {file: hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files},
    }
    path = sweep_folder(sweep) / "profile.json"
    kept = read_json(path)
    if all(kept.get(key) == value for key, value in kept_under.items()) and "experiments" in kept:
        return []
    say(f"measuring the cost of {len(files)} networks on {kept_under['device']}, minutes at the paper's size")
    base = sweep.runtime_baseline or sweep.names[0]
    try:
        rows = profile(files, baseline=Path(files[sweep.names.index(base)]).stem)
    except UserError as error:
        return [f"the cost could not be measured: {error.what}"]
    write_json(path, {**kept_under, "experiments": rows})
    return []


def read_runs(sweep: Sweep) -> tuple[list[Run], list[LeftOut]]:
    """The sweep's own runs that are finished, and those that are not; without those of ``then``."""
    read = [read_run(task.folder) for task in tasks(sweep) if task.start is None]
    return [run for run in read if isinstance(run, Run)], [run for run in read if isinstance(run, LeftOut)]


def with_then(comparison: Comparison, sweep: Sweep) -> Comparison:
    """The comparison of the sweep's own runs with what was started from them."""
    if not sweep.then:
        return comparison
    after = {(task.experiment, task.start, task.seed): _read_after(task) for task in tasks(sweep) if task.start}
    return add_then(comparison, sweep, after)


def _report(sweep: Sweep, warnings: Sequence[str]) -> None:
    """Compare what is finished, and write and print it."""
    from rich.console import Console

    runs, left_out = read_runs(sweep)
    if not runs:
        say("no run is finished: there is nothing to compare")
        return
    if sweep.over:
        scale = data_scale.read(sweep, runs, left_out)
        paths = data_scale.write(scale, sweep_folder(sweep))
        data_scale.print_scale(scale, Console())
        for path in paths:
            print(path)
        return
    comparison = compare(runs, left_out, sweep, read_costs(sweep, sweep_folder(sweep)))
    comparison = with_then(replace(comparison, warnings=(*comparison.warnings, *warnings)), sweep)
    paths = write(comparison, sweep_folder(sweep))
    print_table(comparison, Console())
    for path in paths:
        print(path)


def _read_after(task: Task) -> Run | LeftOut:
    """A run of ``then``, unless the run that it starts from was made again since."""
    run, own, before = read_run(task.folder), _finished(task), _finished(task.after) if task.after else ""
    if isinstance(run, Run) and (before is None or own is None or own < before):
        return LeftOut(task.folder, "the run that it starts from was made again since")
    return run


def _show_progress(running: Sequence[Task]) -> None:
    """On a terminal, the last line of the first run's log, in place."""
    if not (sys.stderr.isatty() and running):
        return
    with running[0].log.open("rb") as log:
        log.seek(max(0, log.seek(0, os.SEEK_END) - 400))
        lines = log.read().decode(errors="replace").replace("\r", "\n").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    width = os.get_terminal_size(sys.stderr.fileno()).columns
    sys.stderr.write(f"\r\x1b[2K  {last[: width - 3]}")
    sys.stderr.flush()


def say(line: str) -> None:
    clear = "\r\x1b[2K" if sys.stderr.isatty() else ""  # what _show_progress left there
    print(f"{clear}{line}", file=sys.stderr, flush=True)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        return os.cpu_count() or 1


def digests_file(sweep: Sweep) -> Path:
    """Where it is kept from what each run was made."""
    return sweep_folder(sweep) / "runs.json"


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)


def as_overrides(words: Sequence[str]) -> list[str]:
    """Options that are not the sweep's own, as ``--key=value`` for every run: where the data lies, say.

    Raises:
        UserError: a word is no key of an experiment's file with its value, or is the sweep's to give.
    """
    found: list[str] = []
    for word in words:
        if word.startswith("--"):
            found.append(word)
        elif found and "=" not in found[-1]:
            found[-1] += f"={word}"
        else:
            raise UserError(f"sweep does not know {word!r}", "Write --key value, as for fit; see sweep --help")
    for override in found:
        key, _, value = override.partition("=")
        if "." not in key or not value or key.startswith("--run."):
            raise UserError(
                f"sweep does not know {key}",
                "Give its own options (sweep --help), or keys of the experiments but run's: --data.init_args.batch_size 32",
            )
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lightning_vl sweep",
        usage="%(prog)s FILE [--jobs N] [--quick] [--launcher slurm [--sbatch=OPTIONS]] [--dry-run | --report] "
        "[--KEY VALUE ...]",
        description="Run every experiment of a sweep file with every seed, then print and draw the table. Finished runs "
        "are not run again; stopped ones go on. Any key of the experiments may be given for all runs, as to fit.",
        epilog="example: python -m lightning_vl sweep experiments/sweeps/vivit_variants.yaml --dry-run",
        allow_abbrev=False,
    )
    parser.add_argument("file", metavar="FILE", help="the sweep file")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and run nothing")
    parser.add_argument("--report", action="store_true", help="draw what is finished and run nothing")
    parser.add_argument(
        "--quick", action="store_true", help="the sweep file's quick look, kept apart in runs/sweeps/<name>-quick"
    )
    parser.add_argument(
        "--jobs", type=_positive, help="runs at once: here they share the cores (default: 1), under SLURM no limit"
    )
    parser.add_argument(
        "--launcher", choices=["local", "slurm"], default="local", help="here, or as an array of SLURM jobs"
    )
    parser.add_argument(
        "--sbatch",
        default="",
        metavar="OPTIONS",
        help='of every SLURM job: --sbatch="--time=4:00:00 --gpus-per-node=1"',
    )
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value
