"""The package as it is installed: what it imports and when, what the lock holds, what a wheel carries."""

import ast
import importlib
import importlib.metadata
import pkgutil
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from support import ROOT, environment

import lightning_vl

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "requirements-lock.txt").read_text()
HEAVY = {
    "torch",
    "torchvision",
    "lightning",
    "torchmetrics",
    "matplotlib",
    "transformers",
    "wandb",
    "sklearn",
    "jsonargparse",
}


def test_every_module_imports() -> None:
    """Breaks if a module that nothing else imports has a wrong import."""
    names = [info.name for info in pkgutil.walk_packages(lightning_vl.__path__, "lightning_vl.")]
    assert len(names) > 30
    for name in names:
        importlib.import_module(name)


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("", 0),
        ("--help", 0),
        ("fti", 2),
        ("profile --help", 0),
        ("compare --help", 0),
        ("compare runs/nothing", 2),
        ("sweep --help", 0),
        ("sweep experiments/sweeps/vivit_variants.yaml --dry-run", 0),
    ],
)
def test_what_needs_no_torch_does_not_wait_for_it(command: str, code: int, tmp_path: Path) -> None:
    """Breaks if something heavy is imported at the top of a module that help, mistakes, compare or sweep go through."""
    program = f"""
import runpy, sys
sys.argv = ["lightning_vl", *{command.split()!r}]
code = None
try:
    runpy.run_module("lightning_vl", run_name="__main__")
except SystemExit as exit:
    code = exit.code or 0
print("exit", code, *sorted({HEAVY!r} & sys.modules.keys()))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines()[-1:] == [f"exit {code}"], done.stdout + done.stderr


def imported(folder: str) -> set[str]:
    """Top-level modules that the Python files of a folder import, but for the standard library's and our own."""
    names = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.split(".")[0])
    return names - sys.stdlib_module_names - {"lightning_vl", "support", "timing", "wandb_server"}


def declared(requirements: list[str]) -> dict[str, Requirement]:
    """Requirements by canonical name."""
    return {canonicalize_name(Requirement(line).name): Requirement(line) for line in requirements}


def distributions(modules: set[str]) -> dict[str, set[str]]:
    """Canonical names of the packages that hold each module."""
    known = importlib.metadata.packages_distributions()
    return {module: {canonicalize_name(name) for name in known.get(module, [])} for module in modules}


def test_what_is_imported_is_declared_and_the_other_way_round() -> None:
    """Breaks if the package leans on something that only another dependency brings, or asks users to install for nothing."""
    needed = distributions(imported("lightning_vl"))
    runtime = declared(PROJECT["dependencies"]).keys()
    for module, packages in needed.items():
        assert packages & runtime, f"{module} is imported, and pyproject.toml declares none of {packages}"
    assert runtime <= set().union(*needed.values())
    beside = runtime | declared(PROJECT["optional-dependencies"]["test"]).keys()
    for module, packages in distributions(imported("tests") | imported("benchmarks")).items():
        assert packages & beside, f"{module} is imported by tests or benchmarks, and not declared"


def locked() -> dict[str, list[tuple[Version, str]]]:
    """Versions of each package in the lock, with the text of the entry: several where they depend on the Python version."""
    entries: dict[str, list[tuple[Version, str]]] = {}
    for match in re.finditer(r"^([\w.-]+)==(\S+)(.*(?:\n    --hash.*)*)", LOCK, flags=re.MULTILINE):
        entries.setdefault(canonicalize_name(match[1]), []).append((Version(match[2]), match[3]))
    return entries


def test_every_entry_of_the_lock_is_pinned_by_hash() -> None:
    """Breaks if an entry could be satisfied by another file than the one that was tested."""
    lines = [line for line in LOCK.splitlines() if line and not line.startswith((" ", "#"))]
    entries = [entry for versions in locked().values() for entry in versions]
    assert len(lines) == len(entries) > 80
    for version, text in entries:
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", text), (version, text)


def test_the_lock_holds_what_pyproject_asks_for() -> None:
    """Breaks if a dependency was added or moved and the lock not made anew."""
    entries = locked()
    for name, requirement in declared(PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]).items():
        assert name in entries, f"{name} is not in the lock"
        for version, _ in entries[name]:
            assert requirement.specifier.contains(version), f"{name} {version} is outside {requirement}"


def test_the_malicious_uploads_of_lightning_stay_out() -> None:
    """Breaks if lightning 2.6.2 or 2.6.3 could be installed."""
    requirement = declared(PROJECT["dependencies"])["lightning"]
    for name in ("lightning", "pytorch-lightning"):
        versions = {str(version) for version, _ in locked()[name]}
        assert versions
        assert not versions & {"2.6.2", "2.6.3"}
    for version in ("2.6.2", "2.6.3"):
        assert f"!={version}" in str(requirement)
        assert not requirement.specifier.contains(version)


def test_one_version_everywhere() -> None:
    """Breaks if a release changes the version in one place only."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert PROJECT["version"] == lightning_vl.__version__ == citation["version"]
    assert f"## [{lightning_vl.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_licence_is_there() -> None:
    """Breaks if the licence is missing, or pyproject and citation name another."""
    text = (ROOT / "LICENSE").read_text()
    assert text.lstrip().startswith("Apache License\n                           Version 2.0, January 2004")
    assert "END OF TERMS AND CONDITIONS" in text
    assert "Copyright 2026 The lightning_vl authors" in text
    assert PROJECT["license-files"] == ["LICENSE"]
    assert PROJECT["license"] == yaml.safe_load((ROOT / "CITATION.cff").read_text())["license"] == "Apache-2.0"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the tree."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree / name)
    shutil.copytree(ROOT / "lightning_vl", tree / "lightning_vl", ignore=shutil.ignore_patterns("__pycache__"))
    build = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    done = subprocess.run([sys.executable, "-c", build], cwd=tree, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return next((tree / "dist").glob("*.whl"))


def test_a_wheel_carries_everything_and_runs(wheel: Path, tmp_path: Path) -> None:
    """Breaks if a file that the package reads, or a module, is left out of the wheel, or a test gets in."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    ours = {path.relative_to(ROOT).as_posix() for path in (ROOT / "lightning_vl").rglob("*") if path.is_file()}
    ours = {name for name in ours if not name.endswith((".pyc", ".md"))}
    packed = {name for name in names if ".dist-info/" not in name}
    assert {"lightning_vl/defaults.yaml", "lightning_vl/report/page.html"} <= ours
    assert packed == ours
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    experiment = ROOT / "experiments" / "vivit_fact_encoder.yaml"
    done = subprocess.run(
        [sys.executable, "-P", "-m", "lightning_vl", "fit", "-c", str(experiment), "--print_config"],
        cwd=tmp_path,
        env=environment(tmp_path, {"PYTHONPATH": str(tmp_path / "site")}),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    # from defaults.yaml, which lies in the package
    assert yaml.safe_load(done.stdout)["trainer"]["use_distributed_sampler"] is False
