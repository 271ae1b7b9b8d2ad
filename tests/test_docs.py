"""The documents keep up with the code: their commands parse or run, their links lead somewhere, their lists are the code's."""

import contextlib
import importlib.util
import io
import json
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import ROOT, tiny, verb

import lightning_vl
from lightning_vl import doctor, export
from lightning_vl.__main__ import USAGE, VERBS
from lightning_vl.report import compare, dashboards, drawing, experiments_page, profile, sweep
from lightning_vl.report.family import check_family, read_sweep

NOT_OURS = {".git", ".venv", "runs", "build", "dist", "__pycache__", "lightning_vl.egg-info"}
NOT_OURS |= {".mypy_cache", ".ruff_cache", ".pytest_cache", "shared"}
HEADERS = sorted((ROOT / "experiments").rglob("*.yaml"))
TEXT = {".md", ".py", ".yaml", ".yml", ".toml", ".txt", ".cff", ".html", ".sh", ".json", ""}
COMMAND = re.compile(r"python -m (lightning_vl[\w.]*)(?: ([^`\n]*))?")
ANY = "experiments/vivit_fact_encoder.yaml"
REPORTS = {"profile": profile, "compare": compare, "sweep": sweep, "figure": drawing, "wandb": dashboards}
REPORTS |= {"doctor": doctor, "export": export}


def own_files() -> list[Path]:
    """Every file of the repository."""
    found = []
    for folder, subfolders, names in os.walk(ROOT):
        subfolders[:] = [name for name in subfolders if name not in NOT_OURS]
        found += [Path(folder, name) for name in names if name not in NOT_OURS]
    return sorted(found)


PAGES = [path for path in own_files() if path.suffix == ".md"]


def commands(text: str) -> list[tuple[str, list[str]]]:
    """Module and words of every command in a text: whole lines, and what stands in backticks within one."""
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"\n#? +(?=--)", " ", text)  # options go on in the next line
    found = [(match[1], shlex.split(match[2] or "")) for match in COMMAND.finditer(text)]
    # options by themselves, to be added to any experiment of the same model
    alone = re.findall(r"^(?!.*python -m)(?:.*: | *)(--\w+\.\S+ [^\n`]+)$", text, flags=re.MULTILINE)
    return found + [("lightning_vl", ["fit", "-c", ANY, *shlex.split(options)]) for options in alone]


def texts() -> dict[str, str]:
    """Everything that tells users what to type: pages, headers of experiments, the command's own help."""
    found = {path: path.read_text() for path in PAGES} | {ROOT / "lightning_vl" / "__main__.py": USAGE}
    for path in HEADERS:
        found[path] = "\n".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    return {path.relative_to(ROOT).as_posix(): text for path, text in found.items()}


def all_commands() -> list[tuple[str, str]]:
    """Where a command stands, and the command, each once."""
    found: dict[str, str] = {}
    for place, text in texts().items():
        for module, words in commands(text):
            found.setdefault(shlex.join([module, *words]), place)
    return [(place, command) for command, place in found.items()]


@pytest.fixture(scope="module")
def parser() -> Any:
    """The parser of `fit`, `validate`, `test` and `predict`, as the command builds it."""
    from lightning_vl import cli

    class OnlyParser(cli.Bench):
        """Builds and runs nothing."""

        def instantiate_classes(self) -> None:
            pass

        def _run_subcommand(self, subcommand: str) -> None:
            pass

    return OnlyParser(["fit", "-c", str(ROOT / "experiments" / "vivit_fact_encoder.yaml")]).parser


@pytest.mark.parametrize(("place", "command"), all_commands())
def test_commands_in_documents_parse(
    place: str, command: str, parser: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks if a document names a verb, option, key, class or file that is not there."""
    monkeypatch.chdir(ROOT)
    # placeholders: the configuration of a run is that of its experiment, and a FILE for sweep is any
    command = re.sub(r"runs/(\w+)/ID/config\.yaml", r"experiments/\1.yaml", command)
    command = command.replace("sweep FILE", "sweep experiments/sweeps/vivit_variants.yaml")
    module, *words = shlex.split(command)
    if module != "lightning_vl":
        assert importlib.util.find_spec(module), f"{place}: there is no {module}"
        return
    if not words or words[0] in ("VERB", "--help"):
        return
    assert words[0] in VERBS, f"{place}: there is no verb {words[0]}"
    if words[0] not in REPORTS:
        with contextlib.suppress(SystemExit):  # what a .help option ends with
            parser.parse_args(words)
        return
    options, given = REPORTS[words[0]]._parser().parse_known_args(words[1:])
    assert not given or words[0] in ("sweep", "doctor"), f"{place}: {command}"
    if given and words[0] == "doctor":
        parser.parse_args(["fit", "-c", str(options.experiment), *given])
    if words[0] == "sweep":
        assert sweep.as_overrides(given) is not None
        family = read_sweep(options.file)
        check_family(family.experiments, family.differ_only_in)
    if words[0] == "profile":
        assert all(Path(file).is_file() for file in options.experiments), f"{place}: {command}"


def test_every_kind_of_document_has_commands() -> None:
    """Breaks if a header has no command, or the search above stops finding commands and with it stops testing them."""
    places = {path.relative_to(ROOT).as_posix() for path in HEADERS} | {"lightning_vl/__main__.py"}
    for place in places | {"README.md", "CONTRIBUTING.md", "docs/data.md", "docs/results.md", "docs/synthetic.md"}:
        assert commands(texts()[place]), place
    assert len(all_commands()) > 30


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the experiments and a finished run called ID of two of them, as the documents have it."""
    folder = tmp_path_factory.mktemp("workplace")
    (folder / "experiments").symlink_to(ROOT / "experiments")
    with contextlib.chdir(folder):
        for name in ("vivit_fact_encoder", "vivit_avg_pool"):
            assert verb("fit", "-c", f"experiments/{name}.yaml", *small(name), "--run.id=ID") == 0
        yield folder


def small(file: str) -> tuple[str, ...]:
    """What makes an experiment of the documents end within seconds."""
    return (*tiny(file), "--trainer.max_steps=1", "--trainer.val_check_interval=1")


def readme_commands() -> list[str]:
    """What the README tells to type, each once."""
    found = commands((ROOT / "README.md").read_text())
    return list(dict.fromkeys(shlex.join(words) for module, words in found if module == "lightning_vl" and words))


@pytest.mark.parametrize("command", readme_commands())
def test_commands_of_the_readme_run(command: str, workplace: Path) -> None:
    """Breaks if a reader who copies a line of the README gets an error. Training is cut short, a sweep only planned."""
    words = shlex.split(command)
    if words[0] == "fit" and "--print_config" not in words:
        words += [*small(words[words.index("-c") + 1]), f"--run.id=readme{readme_commands().index(command)}"]
    elif words[0] == "sweep":
        words.append("--dry-run")
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert verb(*words) == 0
    assert out.getvalue()


def documented_fields(name: str) -> set[str]:
    """The names in the first column of a marked table of docs/results.md."""
    text = (ROOT / "docs" / "results.md").read_text().partition(f"<!-- fields: {name} -->\n")[2]
    table = text[: text.index("\n\n")].splitlines()[2:]
    return {field for line in table for field in re.findall(r"`(\w+)`", line.split("|")[1])}


def test_documented_fields_are_the_fields(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if a field of what machines read is added without being documented, or a documented one disappears."""
    results = json.loads((workplace / "runs" / "vivit_fact_encoder" / "ID" / "results.json").read_text())
    assert documented_fields("results") == results.keys()
    capsys.readouterr()
    assert verb("profile", "experiments/vivit_fact_encoder.yaml", "--no-latency", "--json") == 0
    assert documented_fields("profile") == json.loads(capsys.readouterr().out)[0].keys()
    assert verb("compare", "runs/vivit_fact_encoder/ID", "--json") == 0
    assert documented_fields("compare") == json.loads(capsys.readouterr().out)[0].keys()


def headings(path: Path) -> set[str]:
    """The anchors that a page's headings make, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", path.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    """Breaks if a file or heading that a page links to is renamed or removed."""
    text = re.sub(r"<!--.*?-->|```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^()\s]+)\)", text):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), f"{page}: {target}"
        assert not anchor or anchor in headings(file), f"{page}: {target}"


def test_the_index_of_experiments_is_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if an experiment was added or changed and `python -m lightning_vl.report.experiments_page` not run."""
    monkeypatch.chdir(ROOT)
    assert (ROOT / "experiments" / "README.md").read_text() == experiments_page.page()


def test_a_header_without_its_parts_is_refused(tmp_path: Path) -> None:
    """Breaks if an experiment's header may leave out what it shows, its command or its hardware."""
    file = tmp_path / "bare.yaml"
    file.write_text("# A title.\n# Shows: something, in\n#   two lines\n# Hardware: any\nseed_everything: 0\n")
    with pytest.raises(lightning_vl.errors.UserError, match="has no Command"):
        experiments_page.read_header(file)
    file.write_text(file.read_text().replace("# Hardware", "# Command: none\n# Hardware"))
    header = experiments_page.read_header(file)
    assert header.title == "A title."
    assert header.parts == {"Shows": "something, in two lines", "Command": "none", "Hardware": "any"}


def test_the_readme_lists_the_verbs() -> None:
    """Breaks if a verb is added, removed or described otherwise by --help than by the README."""
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    assert dict(rows) == VERBS


def test_the_readme_claims_no_system_that_is_not_there() -> None:
    """Breaks if a system is begun or dropped and its state in the README stays."""
    rows = re.findall(
        r"^\| \[?([\w-]+)\]?\S* \| \[\d{4}\.\d{5}\].*\| (.+) \|$", (ROOT / "README.md").read_text(), flags=re.MULTILINE
    )
    assert len(rows) == 10
    for system, state in rows:
        begun = (ROOT / "lightning_vl" / "papers" / system.lower().replace("-", "_") / "model.py").exists()
        assert begun == (state != "not yet"), system


def test_the_public_checks_are_the_documented_ones() -> None:
    """Breaks if .ci/run, the Makefile, the README and the public CI run different tests."""
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert re.search(r"^python -m pytest\b(?!.*(-m |-k |--ignore|--deselect))", script.read_text(), flags=re.MULTILINE)
    readme = (ROOT / "README.md").read_text()
    assert "\n    python -m pytest\n" in readme
    makefile = (ROOT / "Makefile").read_text()
    assert "\n\t.venv/bin/python -m pytest\n" in makefile
    assert "\n\t.venv/bin/python -m lightning_vl fit -c experiments/vivit_fact_encoder.yaml\n" in makefile
    steps = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]["test"]["steps"]
    assert steps[-1] == {"run": ".ci/run"}


def test_nothing_names_a_folder_of_one_machine() -> None:
    """Breaks if a file names a folder below somebody's home or work folder: it would work on that machine alone."""
    somewhere = re.compile(r"(?<![\w.<>{}$])/(?:home|root|Users|work)/(?!somebody)\w+")
    for path in own_files():
        if path.suffix in TEXT and path.stat().st_size < 2**22:
            found = somewhere.search(path.read_text(errors="ignore"))
            assert not found, f"{path}: {found and found[0]}"
