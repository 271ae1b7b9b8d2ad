"""Exports: what leaves a run is the network bit for bit, says where it is from, and goes back."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from support import ROOT, same, tiny, verb

from lightning_vl.cli import build
from lightning_vl.errors import UserError
from lightning_vl.export import export, load
from lightning_vl.papers.bert.convert import load_bert
from lightning_vl.papers.clip.convert import load_clip
from lightning_vl.papers.vit.convert import load_vit
from lightning_vl.weights import read_file

SYSTEMS = {  # an experiment of each, and what its networks start from others with
    "vit_tiny": "ViTInitialisation",
    "vivit_fact_encoder": "VideoInitialisation",
    "bert_tiny": "BertInitialisation",
    "clip_tiny": "ClipInitialisation",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished run called ID of every system in runs/, and its export in exported/."""
    folder = tmp_path_factory.mktemp("exports")
    with contextlib.chdir(folder):
        (folder / "experiments").symlink_to(ROOT / "experiments")
        for name in SYSTEMS:
            short = ("--trainer.max_steps=2", "--trainer.val_check_interval=1", "--run.id=ID")
            assert verb("fit", "-c", f"experiments/{name}.yaml", *tiny(name), *short) == 0
            assert verb("export", f"runs/{name}/ID", f"exported/{name}") == 0
        yield folder


@pytest.fixture(autouse=True)
def in_runs(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths are those that a user types beside runs/."""
    monkeypatch.chdir(runs)


def built(experiment: str, *overrides: str) -> Any:
    """The task of a run's configuration, its network as built."""
    return build([f"runs/{experiment}/ID/config.yaml"], overrides).task


@pytest.mark.parametrize("experiment", SYSTEMS)
def test_an_export_computes_what_its_checkpoint_does(experiment: str) -> None:
    """Breaks if a weight is left out, changed or misnamed, or the network is built otherwise than it was trained."""
    saved = torch.load(f"runs/{experiment}/ID/checkpoints/best.ckpt", weights_only=True)["state_dict"]
    of_net = {name.removeprefix("net."): tensor for name, tensor in saved.items() if name.startswith("net.")}
    same(load_file(f"exported/{experiment}/model.safetensors"), of_net)
    trained = built(experiment).net.eval()
    trained.load_state_dict(of_net)
    torch.manual_seed(0)
    inputs = trained.example_inputs(2)
    with torch.inference_mode():
        wanted = trained(*inputs)
        for path in (f"exported/{experiment}", f"exported/{experiment}/model.safetensors"):
            same(load(path)(*inputs), wanted)


@pytest.mark.parametrize("form", ["", "/model.safetensors"])
@pytest.mark.parametrize(("experiment", "start"), SYSTEMS.items())
def test_an_export_goes_back_by_init_from(experiment: str, start: str, form: str) -> None:
    """Breaks if a system's initialisation takes an export for another's weights, or takes less of it than of a checkpoint."""
    spec = f"{{class_path: {start}, init_args: {{path: exported/{experiment}{form}}}}}"
    task = built(experiment, f"--model.init_args.init_from={spec}")
    report = task.init_from.apply(task.net)
    head = [name for name in task.net.state_dict() if experiment == "vit_tiny" and name.startswith("head.")]
    assert report.fresh == head  # an image classifier's begins at zero (Sec. 3.2)
    assert not getattr(report, "assumed", ())  # heads and GELU are those of config.json
    torch.manual_seed(0)
    inputs = task.net.example_inputs(2)
    with torch.inference_mode():
        started, exported = task.net.eval()(*inputs), load(f"exported/{experiment}")(*inputs)
    same(started.features if head else started, exported.features if head else exported)


def test_the_papers_own_loaders_take_exports() -> None:
    """Breaks if a loader that finds sizes by itself guesses what config.json says."""
    for loader, experiment in ((load_vit, "vit_tiny"), (load_clip, "clip_tiny")):
        same(loader(f"exported/{experiment}").state_dict(), load(f"exported/{experiment}").state_dict())
    same(load_bert("exported/bert_tiny").state_dict(), load("exported/bert_tiny").bert.state_dict())  # type: ignore[union-attr]


def test_a_test_from_an_export_gives_the_runs_metrics() -> None:
    """Breaks if what is measured with an export differs from what its run has measured."""
    spec = "{class_path: ClipInitialisation, init_args: {path: exported/clip_tiny}}"
    config = "runs/clip_tiny/ID/config.yaml"
    assert verb("test", "-c", config, f"--model.init_args.init_from={spec}", "--run.id=again") == 0
    again, first = (json.loads(Path(f"runs/clip_tiny/{id}/results.json").read_text()) for id in ("again-test", "ID"))
    assert {name: value for name, value in first["metrics"].items() if not name.startswith("val/")} == again["metrics"]


@pytest.mark.parametrize("experiment", ["bert_tiny", "clip_tiny"])
def test_the_vocabulary_goes_along(experiment: str) -> None:
    """Breaks if a piece, a merge or the case is lost on the way to a file and back."""
    saved = torch.load(f"runs/{experiment}/ID/checkpoints/best.ckpt", weights_only=True)
    content = read_file(f"exported/{experiment}")
    data = next(key for key in content if key.endswith("Data"))
    assert content[data] == saved[data]
    assert content["network"] == saved["network"]


def test_the_card_says_where_the_network_is_from() -> None:
    """Breaks if the card lacks the protocol, data, licence, commit or a metric, or hubs cannot read its front matter."""
    card = Path("exported/vit_tiny/README.md").read_text()
    results = json.loads(Path("runs/vit_tiny/ID/results.json").read_text())
    _, front, text = card.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "license": "unknown",
        "library_name": "lightning_vl",
        "tags": ["vit", "arxiv:2010.11929", "vit_tiny"],
    }
    step = torch.load("runs/vit_tiny/ID/checkpoints/best.ckpt", weights_only=True)["global_step"]
    for line in (
        "| experiment | `vit_tiny` |",
        f"| checkpoint | `best.ckpt`, after {step} of 2 steps |",
        "| weights | as trained |",
        "| batch | 8 |",
        "| seed | 0 |",
        "| started from | nothing |",
        "| `ScatteredDigits` | not stated |",
        "Samples: 40 train, 24 validation, 24 test.",
        f"| `majority_top1` | {results['metrics']['baseline/majority_top1']:.4f} |",
        "init_from: {class_path: ViTInitialisation, init_args: {path: vit_tiny}}",
    ):
        assert line in text, line
    assert f"| `test/top1` | {results['metrics']['test/top1']:.4f} | 0." in text  # and what is expected
    assert (results["git"]["commit"] or "not known") in text
    assert "`val/" not in text  # those are of the last validation
    assert "not with these weights" not in text


def test_metrics_of_other_weights_are_not_passed_off_as_these() -> None:
    """Breaks if the card of the last checkpoint shows what the best one was tested with, and does not say so."""
    export(Path("runs/vit_tiny/ID"), "last", Path("exported/last"))
    assert "**Measured with `best.ckpt`, not with these weights.**" in Path("exported/last/README.md").read_text()


def test_an_unfinished_run_can_be_exported(tmp_path: Path) -> None:
    """Breaks if a run needs its results.json, or the card of one without claims metrics."""
    shutil.copytree("runs/vit_tiny/ID", tmp_path / "run", ignore=shutil.ignore_patterns("results.json"))
    export(tmp_path / "run", "last", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| finished | no: there is no results.json |" in card
    assert "None were measured: the run is not finished." in card


def test_averaged_weights_are_exported_where_they_are_what_is_tested(tmp_path: Path) -> None:
    """Breaks if a run with a moving average gives away the raw weights, or the card does not tell."""
    averaging = "--trainer.callbacks=[{class_path: MovingAverage, init_args: {decay: 0.5}}]"
    short = ("--trainer.max_steps=3", "--trainer.val_check_interval=3", f"--run.root={tmp_path}", "--run.id=ID")
    assert verb("fit", "-c", "experiments/vit_tiny.yaml", *tiny("vit_tiny"), *short, averaging) == 0
    export(tmp_path / "vit_tiny" / "ID", "best", tmp_path / "out")
    saved = torch.load(tmp_path / "vit_tiny" / "ID" / "checkpoints" / "best.ckpt", weights_only=True)
    exported = load_file(tmp_path / "out" / "model.safetensors")
    same(exported, {name: saved["state_dict"][f"net.{name}"] for name in exported})
    assert not torch.equal(exported["embedding.weight"], saved["trained_state_dict"]["net.embedding.weight"])
    assert "| weights | the moving average over training |" in (tmp_path / "out" / "README.md").read_text()


def mistake(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What the command says of a mistake: exit code 2, one line of what and one of how, and nothing is written."""
    before = sorted(Path().rglob("*"))
    capsys.readouterr()
    assert verb("export", *arguments) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 2, said
    assert said.splitlines()[0].startswith("error: ")
    assert said.splitlines()[1].startswith("  ")
    assert sorted(Path().rglob("*")) == before
    return said


def test_mistakes_are_told_in_two_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if a mistake is met by a traceback, or by half a folder."""
    run, out = "runs/vit_tiny/ID", str(tmp_path / "out")
    assert "there is no run runs/vit_tiny/none" in mistake(capsys, "runs/vit_tiny/none", out)
    assert "has no config.yaml" in mistake(capsys, "runs/vit_tiny", out)
    assert "exported/vit_tiny exists already" in mistake(capsys, run, "exported/vit_tiny")
    assert "the run has best.ckpt, last.ckpt" in mistake(capsys, run, out, "--checkpoint", "first")
    best = Path(run, "checkpoints", "best.ckpt").read_bytes()
    damaged = tmp_path / "damaged.ckpt"
    for content in (b"", best[: len(best) // 2], best[:5000] + b"\x00\xff" + best[5002:]):
        damaged.write_bytes(content)
        assert str(damaged) in mistake(capsys, run, out, "--checkpoint", str(damaged))
    torch.save({"state_dict": {"net.weight": torch.zeros(1)}}, damaged)
    assert "does not say how its network is built" in mistake(capsys, run, out, "--checkpoint", str(damaged))
    assert "cannot be written" in mistake(capsys, run, str(damaged / "out"))
    assert not Path(out).exists()


def test_a_damaged_export_is_refused(tmp_path: Path) -> None:
    """Breaks if half an export is taken for the weights of somebody else's network."""
    for name, content in {
        "model.safetensors": Path("exported/bert_tiny/model.safetensors").read_bytes()[:-1],
        "config.json": b'{"library_name": "lightning_vl",',
        "vocab.txt": None,
    }.items():
        folder = tmp_path / name
        shutil.copytree("exported/bert_tiny", folder)
        (folder / name).unlink()
        if content is not None:
            (folder / name).write_bytes(content)
        with pytest.raises(UserError, match="broken"):
            load(str(folder))
    said = json.loads(Path("exported/bert_tiny/config.json").read_text())
    said["vocabulary"]["file"] = "../secret"
    (tmp_path / "secret").write_text("[PAD]\n")
    folder = tmp_path / "outside"
    shutil.copytree("exported/bert_tiny", folder)
    (folder / "config.json").write_text(json.dumps(said))
    with pytest.raises(UserError, match="broken"):
        load(str(folder))
