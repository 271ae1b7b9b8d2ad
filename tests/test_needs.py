"""What an experiment's file needs is said truly: the same as its constructors, its parser and the disk say."""

from pathlib import Path

import pytest
import yaml
from support import ROOT, given_by_the_user

from lightning_vl.errors import UserError
from lightning_vl.needs import classes, look_at, look_at_sweep, parameters

EMBEDDED, REAL, PAPER, SWEEPS = (
    sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "experiments" / folder).glob("*.yaml"))
    for folder in (".", "real", "paper", "sweeps")
)


@pytest.fixture(autouse=True)
def in_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are named from the repository's root."""
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("file", EMBEDDED + PAPER + REAL)
def test_what_is_not_given_is_what_the_user_must_give(file: str) -> None:
    """Breaks if a file is called ready that does not parse, or a key is asked for that it does without.

    With the keys of `given_by_the_user` every file is built by tests/test_experiments.py.
    """
    lacks = {need.key: need.state for need in look_at(Path(file)).lacks}
    given = {words.removeprefix("--").partition("=")[0] for words in given_by_the_user(file)}
    assert {key for key, state in lacks.items() if state == "not given"} <= given
    assert given <= lacks.keys()


@pytest.mark.parametrize("file", EMBEDDED)
def test_embedded_experiments_lack_nothing_but_other_runs(file: str) -> None:
    """Breaks if the default experiments are said to need a download, or one of them does."""
    assert {need.state for need in look_at(Path(file)).lacks} <= {"to be made"}


def test_a_name_that_two_classes_have_means_the_one_that_fits() -> None:
    """Breaks if a class is looked up by its name alone: BERT's head and the objective of its data are both MaskedWords."""
    assert len(classes()["MaskedWords"]) == 2
    assert "max_predictions" in parameters("MaskedWords", {"max_predictions": 10})
    assert not parameters("MaskedWords", {"no_such_thing": 1})


def experiment(folder: Path, **source: object) -> Path:
    """A file whose data is images in class folders."""
    file = folder / "mine.yaml"
    data = {"source": {"class_path": "ImageFolder", "init_args": source}}
    file.write_text(
        "# Mine.\n# Hardware: one GPU, a day. Or two.\n"
        + yaml.safe_dump({"model": {"class_path": "ViTTask"}, "data": {"class_path": "ImageData", "init_args": data}})
    )
    return file


def test_data_is_there_or_not(tmp_path: Path) -> None:
    """Breaks if a folder that is there is called missing, the other way round, or an override is passed over."""
    key = "data.init_args.source.init_args.root"
    file = experiment(tmp_path)
    assert [(need.key, need.state) for need in look_at(file).lacks] == [(key, "not given")]
    assert look_at(file).hardware == "one GPU, a day"
    missing = look_at(file, [f"--{key}", str(tmp_path / "data")])
    assert (missing.state, missing.lacks[0].what) == ("missing", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    for words in (
        [f"--{key}={tmp_path}/data"],
        [f"--{key}", f"{tmp_path}/data"],
        [f"--data.source.root={tmp_path}/data"],
    ):
        assert look_at(file, words).state == "ready", words


def test_files_within_the_data_are_looked_for(tmp_path: Path) -> None:
    """Breaks if a list that the source reads from its folder is missing and the experiment is called ready."""
    (tmp_path / "train.csv").write_text("a.mp4 0\n")
    words = [f"--data.init_args.source.init_args.root={tmp_path}"]
    readiness = look_at(Path("experiments/paper/vivit_fact_encoder_k400.yaml"), words)
    lacking = {Path(need.what).name for need in readiness.lacks}
    assert "val.csv" in lacking
    assert "train.csv" not in lacking


def test_runs_of_other_experiments_are_told_from_missing_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if a run that has yet to be made, or is there, is called a missing file."""
    file = (ROOT / "experiments" / "clip_zeroshot.yaml").resolve()
    monkeypatch.chdir(tmp_path)
    (need,) = look_at(file).lacks
    assert str(need) == "runs/clip_tiny/*/checkpoints/best.ckpt, from a run of clip_tiny"
    checkpoint = tmp_path / "runs" / "clip_tiny" / "a" / "checkpoints" / "best.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    assert look_at(file).state == "ready"


def test_sets_of_the_hub_are_downloads() -> None:
    """Breaks if a name on the hub is called a missing folder, or a folder of weights a name on the hub."""
    file = Path("experiments/paper/vit_l16_cifar10_384.yaml")
    states = {
        need.key: need.state for need in look_at(file, ["--model.init_args.init_from.init_args.path=google/vit"]).needs
    }
    assert states == {
        "data.init_args.source.init_args.path": "download",
        "model.init_args.init_from.init_args.path": "missing",
    }


@pytest.mark.parametrize("file", SWEEPS)
def test_a_sweep_needs_what_its_experiments_need(file: str) -> None:
    """Breaks if a sweep is called ready whose data is not given, or asked for the checkpoints that it makes itself."""
    lacking = {need.key for need in look_at_sweep(Path(file)).lacks}
    scale = Path(file).stem in ("vit_cifar10_scale", "vit_fashion_scale")
    assert bool(lacking) == scale
    assert all("source" in key for key in lacking)


def test_wrong_words_and_files_are_named(tmp_path: Path) -> None:
    """Breaks if a file without keys or words that are no keys end in a traceback."""
    with pytest.raises(UserError, match="no such file"):
        look_at(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(UserError, match="holds no keys"):
        look_at(tmp_path / "list.yaml")
    with pytest.raises(UserError, match="doctor does not know 'root'"):
        look_at(experiment(tmp_path), ["root", "here"])
    (tmp_path / "odd.yaml").write_text("model: {class_path: ViTTask, init_args: [1, 2]}\n")
    assert not look_at(tmp_path / "odd.yaml").needs
