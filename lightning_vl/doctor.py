"""``python -m lightning_vl doctor``: what this machine has, and what each experiment needs and whether it is there.

What is known at once is said at once: torch is imported for the devices, the rest of the package for the experiments. One
experiment by itself is also built, so that what its file says is checked as `fit` would.
"""

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import lightning_vl
from lightning_vl.data.cache import cache_folder
from lightning_vl.errors import UserError
from lightning_vl.needs import EXPERIMENTS, Readiness, look_at, look_at_sweep
from lightning_vl.report.results import read_yaml
from lightning_vl.wandb_mode import find_wandb_mode

if TYPE_CHECKING:
    from rich.console import Console

ROOT = Path(lightning_vl.__file__).parent.parent
LOCK = ROOT / "requirements-lock.txt"
SHOWN = 4  # names in one line
GIBI = 2**30
LEAST_FREE_GIB = 1.0  # a run of an embedded experiment takes some MB, a checkpoint of the paper's size some GB
CODECS = ("h264", "vp9", "mpeg4", "aac")
CHAPTERS = {  # folder of experiments: what its files have in common
    ".": "embedded data: nothing to download",
    "real": "real data of yours",
    "paper": "the paper's size: weeks of accelerators, see each file's header",
    "transfer": "transfer: a second -c",
    "sweeps": "sweeps",
    "overlays": "overlays: a second -c",
}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: of the thing.
        state: `ok`, `none` where it is not there and not needed, `note` where it may matter, `broken` where runs fail.
        text: what was found, in a line.
        cure: how to mend it, in a line; empty where nothing is to be mended.
    """

    name: str
    state: Literal["ok", "none", "note", "broken"]
    text: str
    cure: str = ""


def main(argv: Sequence[str]) -> int:
    """Runs the verb.

    Returns:
        Exit code: 0, or 1 where something is broken, or missing for the one experiment.

    Raises:
        UserError: the experiment's file is wrong.
    """
    arguments, overrides = _parser().parse_known_args(argv)
    if arguments.experiment:
        return _one(arguments.experiment, overrides, arguments.json)
    if overrides:
        raise UserError(
            f"doctor does not know {overrides[0]}", "give an experiment's file before its keys; see doctor --help"
        )
    return _all(arguments.json)


def environment() -> Iterator[Finding]:
    """Python, the lock, the disk, W&B, SLURM and video: all that is known without torch."""
    yield Finding("python", "ok", f"{platform.python_version()} in {sys.prefix}")
    yield Finding("system", "ok", platform.platform(terse=True))
    yield _packages()
    yield _disk("runs", Path("runs"))
    yield _disk("cache", cache_folder())
    yield _wandb()
    yield _slurm()
    yield _video()


def devices() -> Iterator[Finding]:
    """Processors, GPUs and TPUs, and whether torch sees them."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIBI
    yield Finding("cpu", "ok", f"{_cores()} cores, {memory:.0f} GiB of memory")
    try:
        import torch
    except (ImportError, OSError) as error:
        cure = f"pip install --require-hashes -r {LOCK.name}"
        yield Finding("torch", "broken", f"cannot be imported: {' '.join(str(error).split())[:120]}", cure)
        return
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    yield Finding("torch", "ok", f"{torch.__version__}, built for {built}")
    yield from _gpus(torch)
    if torch.backends.mps.is_available():
        yield Finding("mps", "ok", "Apple's GPU: --trainer.accelerator mps")
    if any(Path("/dev").glob("accel[0-9]*")) or os.environ.get("TPU_NAME"):
        found = importlib.util.find_spec("torch_xla") is not None
        cure = "" if found else "an environment of its own, see docs/devices.md"
        yield Finding("tpu", "ok" if found else "note", f"torch_xla is {'' if found else 'not '}installed", cure)


def _packages() -> Finding:
    """Installed versions against the lock's, and what cannot be done without."""
    installed = {_plain(found.name): found.version for found in importlib.metadata.distributions() if found.name}
    if not LOCK.is_file():  # installed from a wheel
        return Finding("packages", "note", f"{len(installed)} are installed; there is no lock to hold them against")
    cure = f"pip install --require-hashes -r {LOCK.name}"
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    broken = [name for name in (re.split(r"[^\w.-]", text)[0] for text in needed) if _plain(name) not in installed]
    if broken:
        return Finding("packages", "broken", f"not installed: {_listed(broken)}", cure)
    locked: dict[str, list[str]] = {}  # a package may have a version for each kind of machine
    for name, version in re.findall(r"^([\w.-]+)==([\w.!+-]+)", LOCK.read_text(), flags=re.MULTILINE):
        locked.setdefault(_plain(name), []).append(version)
    same = [name for name in locked if installed.get(name) in locked[name]]
    other = [f"{name} {installed[name]}" for name in locked if name in installed and name not in same]
    if other:
        return Finding("packages", "note", f"other versions than in {LOCK.name}: {_listed(other)}", cure)
    return Finding("packages", "ok", f"{len(same)}, with the versions of {LOCK.name}")


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _disk(name: str, folder: Path) -> Finding:
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free / GIBI
    text = f"{folder}: {free:.0f} GiB free"
    if not os.access(there, os.W_OK):
        cure = "LIGHTNING_VL_CACHE=FOLDER" if name == "cache" else "--run.root FOLDER"
        return Finding(name, "broken", f"{there} cannot be written", f"name another folder: {cure}")
    if free < LEAST_FREE_GIB:
        return Finding(name, "broken", text, "free some space there")
    return Finding(name, "ok", text)


def _wandb() -> Finding:
    if not importlib.util.find_spec("wandb"):
        return Finding("wandb", "broken", "it is not installed", "pip install wandb")
    try:
        mode = find_wandb_mode()
    except UserError as error:
        return Finding("wandb", "broken", error.what, error.how)
    return Finding("wandb", "ok", f"{importlib.metadata.version('wandb')}, {mode.name}: {mode.reason}")


def _slurm() -> Finding:
    if "SLURM_JOB_ID" in os.environ:
        return Finding("slurm", "ok", f"inside of job {os.environ['SLURM_JOB_ID']}")
    found = shutil.which("sbatch")
    return Finding("slurm", "ok" if found else "none", "sbatch is here" if found else "no sbatch: runs are local")


def _video() -> Finding:
    try:
        import av
        import av.codec
    except ImportError as error:
        return Finding("video", "broken", f"PyAV cannot be imported: {error}", "pip install av")
    lacking = [name for name in CODECS if name not in av.codec.codecs_available]
    ffmpeg = ".".join(map(str, av.library_versions["libavcodec"]))
    text = f"PyAV {av.__version__} with FFmpeg's libavcodec {ffmpeg} of its own"
    if lacking:
        return Finding("video", "note", f"{text}; it cannot decode {', '.join(lacking)}", "pip install av")
    return Finding("video", "ok", text)


def _gpus(torch: Any) -> Iterator[Finding]:
    """What the driver sees, and what torch does."""
    seen = _nvidia()
    if not torch.cuda.is_available():
        if not seen:
            yield Finding("gpu", "none", "none: experiments of embedded data need none")
            return
        cure = "update the driver, or install torch for the CUDA version that nvidia-smi shows (README, Install)"
        yield Finding("gpu", "broken", f"torch does not see {_listed(seen)}", cure)
        return
    for number in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(number)
        driver = f", driver {seen[0].rpartition(', ')[2]}" if seen else ""
        yield Finding("gpu", "ok", f"{found.name}, {found.total_memory / GIBI:.0f} GiB{driver}")


def _nvidia() -> list[str]:
    """Name, memory and driver of every GPU, as NVIDIA's own tool knows them."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def _all(as_json: bool) -> int:
    """Looks at everything; says what is known as soon as it is."""
    from rich.console import Console

    console = Console()
    findings: dict[str, list[Finding]] = {}
    for title, found in (("environment", environment), ("devices", devices)):
        findings[title] = list(found())
        if not as_json:
            _show_findings(title, findings[title], console)
    broken = [finding for group in findings.values() for finding in group if finding.state == "broken"]
    chapters: dict[str, list[Readiness]] = {}
    importable = all(finding.state != "broken" for finding in findings["devices"] if finding.name == "torch")
    for folder in CHAPTERS if importable else ():
        chapters[folder], unreadable = _chapter(folder)
        broken += unreadable
    if as_json:
        content: dict[str, Any] = {title: list(map(dataclasses.asdict, group)) for title, group in findings.items()}
        content["experiments"] = [_as_json(readiness) for group in chapters.values() for readiness in group]
        content["broken"] = list(map(dataclasses.asdict, broken))
        print(json.dumps(content, indent=2))
        return 1 if broken else 0
    accelerators = {finding.name for finding in findings["devices"] if finding.state == "ok"}
    for folder, group in chapters.items():
        if group and folder == "overlays":
            _show_overlays(group, accelerators, console)
        elif group:
            _show_experiments(CHAPTERS[folder], group, console)
    if importable and not any(chapters.values()):
        console.print("no experiments here: run it in the folder that has experiments/", style="yellow")
    for finding in broken:
        console.print(f"broken: {finding.name}: {finding.text}\n  {finding.cure}", style="red", highlight=False)
    if not broken:
        console.print("nothing is broken; doctor EXPERIMENT.yaml says more of one file", highlight=False)
    return 1 if broken else 0


def _chapter(folder: str) -> tuple[list[Readiness], list[Finding]]:
    """What the files of a folder need, and those that cannot be read."""
    read = look_at_sweep if folder == "sweeps" else look_at
    found, unreadable = [], []
    for file in sorted((EXPERIMENTS / folder).glob("*.yaml")):
        try:
            found.append(read(file))
        except UserError as error:
            unreadable.append(Finding(file.stem, "broken", error.what, error.how))
    return found, unreadable


def _one(file: Path, overrides: Sequence[str], as_json: bool) -> int:
    """Looks at one experiment, and builds it if it has what it needs."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    is_sweep = file.is_file() and "experiments" in (read_yaml(file) or {})
    readiness = look_at_sweep(file) if is_sweep else look_at(file, overrides)
    if not readiness.lacks and readiness.is_experiment:
        _build(file, overrides)
    if as_json:
        print(json.dumps(_as_json(readiness), indent=2))
        return 1 if readiness.lacks else 0
    console = Console()
    console.print(Text(f"{readiness.file}: {_verdict(readiness)}", style="bold"))
    if readiness.hardware:
        console.print(Text(f"hardware: {readiness.hardware}"))
    table = Table.grid(padding=(0, 2))
    for need in readiness.needs:
        state = f"{need.state}, optional" if need.optional and need.state != "there" else need.state
        table.add_row(Text(state, style=_style(need.state)), Text(f"{need.key} {need.what}"))
    if readiness.needs:
        console.print(table)
    else:
        console.print("it needs nothing that is not installed")
    if readiness.lacks:
        console.print(Text(_cure(readiness), style="yellow"))
    return 1 if readiness.lacks else 0


def _build(file: Path, overrides: Sequence[str]) -> None:
    """Finds keys, classes and values that are wrong; takes no memory for the network."""
    import torch

    from lightning_vl.cli import build

    with torch.device("meta"):
        build([str(file)], overrides)


def _verdict(readiness: Readiness) -> str:
    return "ready" if readiness.state == "ready" else f"not ready, {readiness.state}"


def _cure(readiness: Readiness) -> str:
    """How to come by the first thing that is lacking."""
    need = readiness.lacks[0]
    match need.state:
        case "not given":
            return f"give it: --{need.key} {need.what}"
        case "to be made":
            name = Path(need.what).parts[1]
            file = next(EXPERIMENTS.rglob(f"{name}.yaml"), EXPERIMENTS / f"{name}.yaml")
            return f"first: python -m lightning_vl fit -c {file.as_posix()}"
        case "download":
            return "it is downloaded when the run starts"
        case _:
            what = "; docs/data.md says what belongs in it" if need.key.endswith("root") else ""
            return f"put it there, or give another: --{need.key} PATH{what}"


def _show_findings(title: str, findings: Sequence[Finding], console: "Console") -> None:
    from rich.table import Table
    from rich.text import Text

    console.print(Text(title, style="bold"))
    table = Table.grid(padding=(0, 2))
    for finding in findings:
        text = f"{finding.text}\n{finding.cure}" if finding.cure and finding.state == "note" else finding.text
        table.add_row("", Text(finding.state, style=_style(finding.state)), finding.name, Text(text))
    console.print(table)
    console.print()


def _show_experiments(title: str, group: Sequence[Readiness], console: "Console") -> None:
    """Those that are ready in one paragraph, every other one with what it lacks."""
    from rich.table import Table
    from rich.text import Text

    ready = [readiness.file.stem for readiness in group if readiness.state == "ready"]
    console.print(Text(f"{title} ({len(ready)} of {len(group)} ready)", style="bold"))
    if ready:
        table = Table.grid(padding=(0, 2))
        table.add_row("", Text("ready", style=_style("ready")), Text(", ".join(ready)))
        console.print(table)
    others = [readiness for readiness in group if readiness.state != "ready"]
    table = Table.grid(padding=(0, 2))
    for readiness in others:
        texts = [_short(str(need)) for need in readiness.lacks]
        more = f"; {len(texts) - 2} more" if len(texts) > 2 else ""
        table.add_row("", readiness.file.stem, Text("; ".join(texts[:2]) + more, style=_style(readiness.state)))
    if others:
        console.print(table)
    console.print()


def _short(text: str) -> str:
    """Without what every key has in it."""
    return text.replace(".init_args", "").removeprefix("--")


def _show_overlays(group: Sequence[Readiness], accelerators: set[str], console: "Console") -> None:
    from rich.text import Text

    wanted = {readiness.file.stem: _accelerator(read_yaml(readiness.file)) for readiness in group}
    ready = [name for name, kind in wanted.items() if kind in (None, *accelerators)]
    console.print(Text(f"{CHAPTERS['overlays']} ({len(ready)} of {len(group)} fit this machine)", style="bold"))
    for name, kind in wanted.items():
        console.print(Text(f"  {name}: {'fits' if name in ready else f'there is no {kind}'}"), style=None)
    console.print()


def _accelerator(overlay: Any) -> str | None:
    kind = str((overlay.get("trainer") or {}).get("accelerator"))
    return {"gpu": "gpu", "cuda": "gpu", "tpu": "tpu", "mps": "mps", "cpu": "cpu"}.get(kind)


def _as_json(readiness: Readiness) -> dict[str, Any]:
    needs = [dataclasses.asdict(need) for need in readiness.needs]
    file = readiness.file.as_posix()
    return {"file": file, "state": readiness.state, "hardware": readiness.hardware, "needs": needs}


def _style(state: str) -> str:
    return {"ok": "green", "ready": "green", "there": "green", "none": "dim", "broken": "red"}.get(state, "yellow")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        return os.cpu_count() or 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lightning_vl doctor",
        usage="%(prog)s [EXPERIMENT.yaml [--KEY VALUE ...]] [--json]",
        description="What this machine has, and what each experiment needs and whether it is there. The exit code is 1 "
        "where something is broken. With an experiment's file: that one alone, with keys as they are given to fit.",
        epilog="example: python -m lightning_vl doctor experiments/paper/vivit_fact_encoder_k400.yaml "
        "--data.init_args.source.init_args.root DATA",
        allow_abbrev=False,
    )
    parser.add_argument("experiment", nargs="?", type=Path, metavar="EXPERIMENT.yaml", help="an experiment's file")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser
