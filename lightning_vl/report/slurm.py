"""A sweep's runs as SLURM job arrays.

At submission the runs still to do are written to a plan, with copies of their experiments' files, and an array is
submitted whose tasks each take one run of the plan: what is edited afterwards changes nothing of what was submitted.
Runs that start from another's checkpoint are a second array, which waits for the first. ``slurm/sweep.sbatch`` asks
this module, by its array task's number, for the arguments of its run.
"""

import argparse
import dataclasses
import itertools
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from lightning_vl.errors import UserError
from lightning_vl.report.compare import sweep_folder
from lightning_vl.report.family import Sweep
from lightning_vl.report.results import Run, read_run
from lightning_vl.report.sweep import Task, digests_file, is_outdated, read_json, say, set_aside, write_json

SCRIPT = Path("slurm", "sweep.sbatch")
SITE = Path("slurm", "site.sh")
PLAN = "plan.json"


def submit(sweep: Sweep, todo: Sequence[Task], jobs: int | None, options: Sequence[str], dry_run: bool) -> None:
    """Submit the runs as one array, and those that start from them as a second one.

    Args:
        sweep: the family.
        todo: runs that are not finished.
        jobs: array tasks at once, all of them if None.
        options: of ``sbatch``, for every run: nodes, devices, time.
        dry_run: print what would be done, and do nothing.

    Raises:
        UserError: SLURM or its script is not here, jobs of the sweep are still in the queue, or ``sbatch`` refuses.
    """
    if not SCRIPT.is_file():
        raise UserError(f"{SCRIPT} is not here", "give the command from the repository's root")
    missing = {task.folder for task in todo}
    first = [task for task in todo if not (task.after and task.after.folder in missing)]
    second = [task for task in todo if task not in first]
    folder = _next_folder(sweep)
    arrays = [(0, first), (len(first), second)]
    commands = [_sbatch(sweep, folder, start, len(part), jobs, options) for start, part in arrays if part]
    if dry_run:
        for number, task in enumerate([*first, *second]):
            print(f"# {number}: {task.command}")
        for command, waits in zip(commands, ([], ["--dependency=afterany:JOB"]), strict=False):
            print(_shown([*command[:1], *waits, *command[1:]]))
        if second:
            print("# JOB is the number that the first array gets")
        return
    if shutil.which("sbatch") is None:
        raise UserError("there is no sbatch here", "submit from a login node of the cluster, or leave --launcher out")
    if queued := _queued(sweep):
        raise UserError(
            f"jobs {', '.join(queued)} of this sweep are still in the queue",
            f"wait for them, or end them first: scancel {' '.join(queued)}",
        )
    _write_plan(sweep, folder, [*first, *second])
    (sweep_folder(sweep) / "logs").mkdir(parents=True, exist_ok=True)
    submitted: list[str] = []
    for command in commands:
        waits = [f"--dependency=afterany:{submitted[0]}"] if submitted else []
        submitted.append(_run([*command[:1], *waits, *command[1:]]))
        write_json(folder / "jobs.json", {"jobs": submitted})
    say(f"{len(first) + len(second)} runs submitted as {' and '.join(submitted)}; squeue --me shows them")


def _sbatch(sweep: Sweep, folder: Path, start: int, count: int, jobs: int | None, options: Sequence[str]) -> list[str]:
    last = f"-{start + count - 1}" if count > 1 else ""
    array = f"{start}{last}{f'%{jobs}' if jobs else ''}"
    output = sweep_folder(sweep) / "logs" / "slurm-%A_%a.out"
    given = ["--parsable", f"--job-name={sweep.name}", f"--array={array}", f"--output={output}", *options]
    return ["sbatch", *given, str(SCRIPT), str(folder / PLAN)]


def _shown(command: Sequence[str]) -> str:
    """As a user would type it: with the site's settings, which sbatch takes from the environment."""
    return (f". {SITE} && " if SITE.is_file() else "") + shlex.join(command)


def _run(command: Sequence[str]) -> str:
    """Submit; gives the job's number."""
    print(_shown(command), flush=True)
    done = subprocess.run(["bash", "-c", _shown(command)], capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise UserError(f"sbatch refused: {reason}", "see slurm/site.sh, and --sbatch for nodes, devices and time")
    return done.stdout.strip().splitlines()[-1].split(";")[0]  # a cluster's name may follow


def _next_folder(sweep: Sweep) -> Path:
    base = sweep_folder(sweep) / "slurm"
    return next(base / str(number) for number in itertools.count(1) if not (base / str(number)).exists())


def _queued(sweep: Sweep) -> list[str]:
    """Jobs of earlier submissions that are not done: two processes must not work on one run."""
    ours = [job for path in (sweep_folder(sweep) / "slurm").glob("*/jobs.json") for job in read_json(path)["jobs"]]
    if not ours:
        return []
    done = subprocess.run(["squeue", "-h", "--me", "-o", "%F"], capture_output=True, text=True)
    return sorted(set(ours) & set(done.stdout.split()))


def _write_plan(sweep: Sweep, folder: Path, every: Sequence[Task]) -> None:
    folder.mkdir(parents=True)
    frozen = []
    for task in every:
        verb, option, file, *rest = task.arguments
        copy = folder / Path(file).name  # the stem names the run's folder
        shutil.copyfile(file, copy)
        frozen.append(dataclasses.replace(task, arguments=(verb, option, str(copy), *rest)))
    write_json(folder / PLAN, {"digests": str(digests_file(sweep)), "tasks": [_plain(task) for task in frozen]})


def _plain(task: Task) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(task), default=str))


def _task(values: dict[str, Any]) -> Task:
    after = values["after"]
    return Task(
        **{
            **values,
            "arguments": tuple(values["arguments"]),
            "folder": Path(values["folder"]),
            "log": Path(values["log"]),
            "after": None if after is None else _task(after),
        }
    )


def begin(plan: Path, number: int) -> list[str]:
    """Make ready for a run of a plan, by one process; gives the arguments of ``fit``.

    Raises:
        UserError: the run that it starts from has not finished.
    """
    content = json.loads(plan.read_text(encoding="utf-8"))
    task = _task(content["tasks"][number])
    if task.after and not isinstance(read_run(task.after.folder), Run):
        raise UserError(
            f"{task.name} starts from {task.after.name}, which has not finished",
            "see that run's log; the same sweep submitted again runs both",
        )
    digests = Path(content["digests"])
    with FileLock(digests.with_suffix(".lock")):  # other tasks of the array write to it too
        kept = read_json(digests)
        if is_outdated(task, kept) and task.start is not None and task.folder.exists():
            say(f"{task.name}: what it starts from has changed; its earlier run is kept in {set_aside(task.folder)}")
        write_json(digests, kept | {task.log.stem: task.digest})
    return task.words()[1:]


def main(argv: Sequence[str]) -> int:
    """Print a run's arguments, each ended by a null byte, for ``slurm/sweep.sbatch``."""
    parser = argparse.ArgumentParser(prog="python -m lightning_vl.report.slurm", description=main.__doc__)
    parser.add_argument("plan", type=Path)
    parser.add_argument("number", type=int)
    arguments = parser.parse_args(argv)
    try:
        words = begin(arguments.plan, arguments.number)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    sys.stdout.write("".join(f"{word}\0" for word in words))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
