"""What an experiment's file needs beyond this package: data, weights, packages, devices; and whether it is there.

Read from the YAML and from the constructors of the classes that it names: nothing is built or opened. What is inside a folder
of data is checked when a run starts.
"""

import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from glob import glob
from pathlib import Path
from typing import Any, Literal

from lightning_vl.errors import UserError
from lightning_vl.report.family import CHECKPOINT, read_sweep
from lightning_vl.report.results import read_yaml

State = Literal["there", "not given", "missing", "to be made", "download"]
EXPERIMENTS = Path("experiments")
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
FILES = re.compile(r"[\w.*/-]+\.(csv|json|jsonl|tsv|txt|tar|token|npz|parquet)")
PACKAGES = {"ClipVocabulary": "open_clip"}  # classes that read a file of a package where they are given no path


@dataclass(frozen=True)
class Need:
    """One thing that an experiment needs.

    Attributes:
        key: the dotted key that says it, as on the command line.
        what: the path, the name on the hub, or what the key would have to say.
        state: whether it is there. `to be made`: a run of another experiment makes it; `download`: it is on the hub, and the
            run fetches what is not in the hub's own cache.
        optional: a run passes over it where it is missing.
    """

    key: str
    what: str
    state: State
    optional: bool = False

    def __str__(self) -> str:
        match self.state:
            case "not given":
                return f"--{self.key} {self.what}"
            case "missing":
                return f"{self.what} is not there"
            case "to be made":
                return f"{self.what}, from a run of {Path(self.what).parts[1]}"
            case "download":
                return f"{self.what}, from the hub"
        return self.what


@dataclass(frozen=True)
class Readiness:
    """Whether an experiment can be run here now.

    Attributes:
        file: its path.
        needs: all that it needs, there or not.
        hardware: what its header says of the hardware; empty where it says nothing.
        is_experiment: it can be run by itself: no sweep, overlay or list of tasks.
    """

    file: Path
    needs: tuple[Need, ...]
    hardware: str
    is_experiment: bool

    @property
    def lacks(self) -> list[Need]:
        """What stands between the file and a run."""
        return [need for need in self.needs if need.state != "there" and not need.optional]

    @property
    def state(self) -> str:
        """In a word or two: the state that takes most to mend."""
        order: tuple[State, ...] = ("missing", "not given", "to be made", "download")
        return next((state for state in order if any(need.state == state for need in self.lacks)), "ready")


def look_at(file: Path, overrides: Sequence[str] = ()) -> Readiness:
    """Finds what an experiment needs.

    Args:
        file: an experiment's file, or one that is given after another (`transfer`).
        overrides: `--key=value` or `--key value`, as on the command line.

    Raises:
        UserError: no such file, no YAML, or words that are no overrides.
    """
    if not file.is_file():
        raise UserError(f"{file}: no such file", "ls experiments shows what there is")
    config = read_yaml(file)
    if not isinstance(config, dict):
        raise UserError(f"{file}: holds no keys", "give an experiment's file")
    for key, value in _pairs(overrides):
        _put(config, key.split("."), value)
    found = {need.key: need for need in _walk(config, "")}
    return Readiness(file, tuple(found.values()), _hardware(file), is_experiment="model" in config)


def look_at_sweep(file: Path) -> Readiness:
    """What the experiments of a sweep need, together; what they start from, the sweep makes itself.

    Raises:
        UserError: the file is no sweep, or one of its experiments cannot be read.
    """
    sweep = read_sweep(file)
    files = [] if sweep.core_days else [*sweep.experiments, *(then.experiment for then in sweep.then)]
    given = tuple(key for then in sweep.then for key in then.start)
    needs = {
        (need.key, need.what): need
        for each in files
        for need in look_at(Path(each), sweep.overrides).needs
        if not need.key.startswith(given)
    }
    return Readiness(file, tuple(needs.values()), _hardware(file), is_experiment=False)


@cache
def classes() -> dict[str, list[type]]:
    """The classes of this package by the short names that experiments call them by."""
    import lightning_vl.cli  # noqa: F401  # imports all that an experiment may name

    found: dict[str, list[type]] = {}
    for name, module in sorted(sys.modules.items()):
        for cls in vars(module).values() if name.startswith("lightning_vl.") else ():
            if inspect.isclass(cls) and cls.__module__ == name:
                found.setdefault(cls.__name__, []).append(cls)
    return found


def parameters(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """What the constructor of a class takes, and its defaults; `...` stands for none.

    Args:
        name: of a class of this package; others take nothing that is looked for here.
        given: its arguments in the file. Of several classes of a name it is the one that takes them.
    """
    for cls in classes().get(name, ()):
        taken = inspect.signature(cls).parameters
        if given.keys() <= taken.keys():
            return {key: ... if each.default is each.empty else each.default for key, each in taken.items()}
    return {}


def _walk(node: Any, key: str) -> Iterator[Need]:
    """Every class that a configuration names, and what it needs."""
    if isinstance(node, list):
        for number, item in enumerate(node):
            yield from _walk(item, f"{key}[{number}]")
    elif isinstance(node, dict):
        if isinstance(node.get("class_path"), str):
            given = node.get("init_args")
            yield from _needs(node["class_path"].rpartition(".")[2], given if isinstance(given, dict) else {}, key)
        dot = f"{key}." if key else ""
        for name, item in node.items():
            yield from _walk(item, f"{dot}{name}")


def _needs(name: str, given: Mapping[str, Any], key: str) -> Iterator[Need]:
    taken = parameters(name, given)
    optional = key.startswith("zero_shot")
    if name == "PaperDataset" and not given.get("root"):
        yield Need(key, str(given.get("name")), "download", optional)
        return
    if name in PACKAGES and not given.get("path"):
        found = importlib.util.find_spec(PACKAGES[name]) is not None
        yield Need(
            f"{key}.init_args.path",
            "FILE" if not found else f"the file of {PACKAGES[name]}",
            "there" if found else "not given",
        )
    for parameter, default in taken.items():
        value = given.get(parameter, default)
        where = f"{key}.init_args.{parameter}"
        if parameter in ("root", "path") and value is ...:
            yield Need(where, "DATA" if parameter == "root" else "FILE", "not given", optional)
        elif parameter in ("root", "path") and isinstance(value, str):
            yield Need(where, value, _state(value, may_be_on_hub="Hub" in name), optional)
    root = given.get("root")
    if isinstance(root, str) and _state(root, may_be_on_hub=False) == "there":
        for parameter, default in taken.items():
            value = given.get(parameter, default)
            if isinstance(value, str) and FILES.fullmatch(value) and not glob(os.path.join(root, value)):
                yield Need(f"{key}.init_args.{parameter}", os.path.join(root, value), "missing", optional)


def _state(path: str, may_be_on_hub: bool) -> State:
    if CHECKPOINT in path or glob(os.path.expanduser(path)):
        return "there"
    if path.startswith("runs/"):
        return "to be made"
    return "download" if may_be_on_hub and HUB_ID.fullmatch(path) else "missing"


def _pairs(words: Sequence[str]) -> list[tuple[str, Any]]:
    """`--key=value` and `--key value` as pairs."""
    import yaml

    joined: list[str] = []
    for word in words:
        if word.startswith("--") and len(word) > 2:
            joined.append(word[2:])
        elif word != "--" and joined and "=" not in joined[-1]:
            joined[-1] += f"={word}"
        elif word != "--":
            raise UserError(
                f"doctor does not know {word!r}", "give keys as to fit: --data.init_args.source.init_args.root DATA"
            )
    return [(key, yaml.safe_load(value)) for key, _, value in (item.partition("=") for item in joined)]


def _put(node: dict[str, Any], parts: list[str], value: Any) -> None:
    """Sets a dotted key as the command does: a class may be given by its name, its arguments without `init_args`."""
    first, *rest = parts
    if "class_path" in node and first not in ("class_path", "init_args"):
        node = node.setdefault("init_args", {})
    if not rest:
        node[first] = value
        if isinstance(value, str) and value in classes():
            node[first] = {"class_path": value}
        return
    if not isinstance(node.get(first), dict):
        node[first] = {}
    _put(node[first], rest, value)


def _hardware(file: Path) -> str:
    """The part of the header on the hardware, up to its first sentence's end."""
    text = " ".join(line[1:].strip() for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#"))
    found = re.search(r"Hardware: (.+?)(?:\. |; no network|$)", text)
    return found[1].rstrip(".") if found else ""
