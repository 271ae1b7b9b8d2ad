"""`doctor` finds what is there, what is not and what is broken, and its exit code says so."""

import importlib.metadata
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support import ROOT, verb

from lightning_vl import doctor

KEY = "--data.init_args.source.init_args.root"


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two experiments: one that needs nothing and one that needs data."""
    (tmp_path / "experiments" / "real").mkdir(parents=True)
    shutil.copy(ROOT / "experiments" / "vit_tiny.yaml", tmp_path / "experiments")
    shutil.copy(ROOT / "experiments" / "real" / "vit_cifar10.yaml", tmp_path / "experiments" / "real")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def look(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    """Exit code and JSON of the verb."""
    capsys.readouterr()
    code = verb("doctor", *words, "--json")
    return code, json.loads(capsys.readouterr().out)


def found(content: dict[str, Any], name: str) -> dict[str, str]:
    """The one thing of a name that was looked at."""
    (finding,) = (entry for entry in content["environment"] + content["devices"] if entry["name"] == name)
    return finding


def test_it_says_what_is_here(capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if versions, disk, devices or the experiments of the folder are left out or wrong."""
    code, content = look(capsys)
    assert code == 0
    assert content["broken"] == []
    assert sys.version.split()[0] in found(content, "python")["text"]
    assert found(content, "torch")["text"].startswith(torch.__version__)
    assert importlib.metadata.version("wandb") in found(content, "wandb")["text"]
    free = shutil.disk_usage(".").free / 2**30
    assert f"{free:.0f} GiB free" in found(content, "runs")["text"]
    assert {Path(entry["file"]).stem: entry["state"] for entry in content["experiments"]} == {
        "vit_tiny": "ready",
        "vit_cifar10": "not given",
    }


def test_a_person_can_read_it(capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if the page leaves out what the JSON has."""
    assert verb("doctor") == 0
    text = capsys.readouterr().out
    assert "ready  vit_tiny" in text
    assert "vit_cifar10  data.source.root DATA" in text
    assert "nothing is broken" in text


def test_a_broken_file_is_named_beside_the_others(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if one file that is no YAML, or a sweep of experiments that are not there, hides all others."""
    (workplace / "experiments" / "mine.yaml").write_text("model: [\n")
    (workplace / "experiments" / "sweeps").mkdir()
    shutil.copy(ROOT / "experiments" / "sweeps" / "vivit_variants.yaml", workplace / "experiments" / "sweeps")
    code, content = look(capsys)
    assert code == 1
    assert [(entry["name"], "is no valid YAML" in entry["text"]) for entry in content["broken"]] == [
        ("mine", True),
        ("vivit_variants", False),
    ]
    assert "does not exist" in content["broken"][1]["text"]
    assert len(content["experiments"]) == 2


def test_a_folder_without_experiments_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks if doctor outside of the repository fails, or does not say why it lists nothing."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert verb("doctor") == 0
    assert "no experiments here" in capsys.readouterr().out


def test_one_experiment_with_and_without_its_data(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if missing data passes for ready, or data that is there for missing."""
    file = "experiments/real/vit_cifar10.yaml"
    assert verb("doctor", file) == 1
    assert f"give it: {KEY} DATA" in capsys.readouterr().out
    assert verb("doctor", file, KEY, "DATA") == 1
    assert "not ready, missing" in capsys.readouterr().out
    (workplace / "DATA").mkdir()
    assert verb("doctor", file, KEY, "DATA") == 0
    text = capsys.readouterr().out
    assert f"{file}: ready" in text
    assert "hardware: one CPU core" in text


def test_a_wrong_key_is_a_mistake_not_ready(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if a file that fit refuses is called ready."""
    file = workplace / "experiments" / "vit_tiny.yaml"
    file.write_text(file.read_text().replace("patch_size", "pach_size"))
    assert verb("doctor", "experiments/vit_tiny.yaml") == 2
    what, how = capsys.readouterr().err.splitlines()
    assert "pach_size" in what
    assert "patch_size" in how
    assert verb("doctor", "experiments/none.yaml") == 2
    assert verb("doctor", "--root", "DATA") == 2


def test_a_run_that_is_still_to_be_made_is_named(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if the command that makes what is lacking names a file that is not there."""
    (workplace / "experiments" / "real" / "mine.yaml").write_text(
        "model: {init_args: {init_from: {class_path: ViTInitialisation, "
        "init_args: {path: runs/vit_cifar10/*/checkpoints/best.ckpt}}}}\n"
    )
    assert verb("doctor", "experiments/real/mine.yaml") == 1
    assert "first: python -m lightning_vl fit -c experiments/real/vit_cifar10.yaml" in capsys.readouterr().out


def test_a_sweep_by_itself(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if a sweep is read as an experiment, which needs nothing."""
    monkeypatch.chdir(ROOT)
    code, content = look(capsys, "experiments/sweeps/vit_fashion_scale.yaml")
    assert code == 1
    assert [need["key"] for need in content["needs"]] == ["data.init_args.source.init_args.root"]


@pytest.mark.parametrize(
    ("lock", "state", "text"),
    [
        ("packaging==0.1\npillow==0.2\n", "note", "packaging "),
        (
            "packaging=={version} ; python_version >= '3.11'\npackaging==0.1\nnot-here==1\n",
            "ok",
            "1, with the versions",
        ),
    ],
)
def test_other_versions_than_the_locks_are_noted(
    lock: str, state: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks if an environment that has drifted from the lock passes for the lock's."""
    (tmp_path / "requirements-lock.txt").write_text(lock.format(version=importlib.metadata.version("packaging")))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    monkeypatch.setattr(doctor, "ROOT", tmp_path)
    monkeypatch.setattr(doctor, "LOCK", tmp_path / "requirements-lock.txt")
    finding = next(entry for entry in doctor.environment() if entry.name == "packages")
    assert finding.state == state
    assert text in finding.text


def test_what_cannot_be_done_without_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if a dependency that is not installed is passed over."""
    text = (ROOT / "pyproject.toml").read_text().replace('"einops>=0.8"', '"einops-of-another-world>=0.8"')
    (tmp_path / "pyproject.toml").write_text(text)
    (tmp_path / "requirements-lock.txt").touch()
    monkeypatch.setattr(doctor, "ROOT", tmp_path)
    monkeypatch.setattr(doctor, "LOCK", tmp_path / "requirements-lock.txt")
    finding = next(entry for entry in doctor.environment() if entry.name == "packages")
    assert finding.state == "broken"
    assert "einops-of-another-world" in finding.text


def test_a_full_disk_is_broken(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if too little space for a checkpoint passes unseen."""
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2**20))
    code, content = look(capsys)
    assert code == 1
    assert {entry["name"] for entry in content["broken"]} == {"runs", "cache"}


def test_a_gpu_that_torch_does_not_see_is_broken(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks if a driver too old for torch, which trains on the CPU without a word, passes for no GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor, "_nvidia", lambda: ["NVIDIA A100, 81920 MiB, 470.1"])
    code, content = look(capsys)
    assert code == 1
    assert "torch does not see NVIDIA A100" in found(content, "gpu")["text"]


def test_overlays_for_other_devices_are_said(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if an overlay for a GPU or a TPU is said to fit a machine without."""
    (workplace / "experiments" / "overlays").mkdir()
    for name in ("cpu", "tpu"):
        (workplace / "experiments" / "overlays" / f"on_{name}.yaml").write_text(f"trainer: {{accelerator: {name}}}\n")
    assert verb("doctor") == 0
    text = capsys.readouterr().out
    assert "on_cpu: fits" in text
    assert "on_tpu: there is no tpu" in text


def test_no_key_is_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if doctor prints a secret of the environment."""
    secret = "0123456789abcdef" * 2
    monkeypatch.setenv("WANDB_API_KEY", secret)
    monkeypatch.setenv("WANDB_MODE", "offline")
    _, content = look(capsys)
    assert "offline: WANDB_MODE says so" in found(content, "wandb")["text"]
    assert secret not in json.dumps(content)
