"""The command as a user types it: what it prints, where it writes, and what it says of mistakes."""

import json
from pathlib import Path

import pytest
import yaml
from support import ROOT, TINY, Command, verb

EXPERIMENT = "experiments/vivit_fact_encoder.yaml"
ONE_STEP = (*TINY, "--trainer.max_steps=1", "--trainer.val_check_interval=1")


@pytest.fixture(autouse=True)
def in_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands name files from the repository's root."""
    monkeypatch.chdir(ROOT)


def test_a_run_leaves_its_record_and_says_where(tmp_path: Path, command: Command) -> None:
    """Breaks if a run's folder misses a part of its record, or the summary misses what the file expects."""
    expected = "--expected=[{metric: test/top1, value: 0.5, tolerance: 0.6, kind: ours, source: a test}]"
    done = command("fit", "-c", EXPERIMENT, *ONE_STEP, expected, f"--run.root={tmp_path}", "--run.id=one")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "vivit_fact_encoder" / "one"
    assert str(folder) in done.stderr
    assert "as expected" in done.stdout
    assert "expected (ours): a test" in done.stdout
    assert "clips/s" in done.stderr
    assert "data wait" in done.stderr
    assert "ETA" in done.stderr
    results = json.loads((folder / "results.json").read_text())
    assert results["experiment"] == "vivit_fact_encoder"
    assert results["status"] == "finished"
    assert {"test/top1", "test/top5", "test/loss", "val/top1", "baseline/majority_top1"} <= results["metrics"].keys()
    assert results["expected"][0]["met"] is True
    assert results["expected"][0]["measured"] == results["metrics"]["test/top1"]
    assert results["model"]["parameters"] == 277_912
    assert results["model"]["gflops"] == 2 * results["model"]["gmacs"] > 0
    assert results["samples_seen"] == 8
    assert results["git"].keys() == {"commit", "dirty"}
    assert results["versions"]["lightning"]
    for key in ("device", "devices", "hours", "peak_memory_gib", "seed", "steps", "started", "finished"):
        assert results[key] is not None, key
    for file in (
        "config.yaml",
        "metrics.jsonl",
        "checkpoints/last.ckpt",
        "checkpoints/best.ckpt",
        "figures/examples.png",
    ):
        assert (folder / file).stat().st_size > 0, file
    assert list((folder / "figures").glob("*.gif"))


def test_the_saved_configuration_runs_again_as_it_is(tmp_path: Path) -> None:
    """Breaks if config.yaml is not complete: a run made from it has the same metrics and the same config.yaml."""
    assert verb("fit", "-c", EXPERIMENT, *ONE_STEP, f"--run.root={tmp_path}", "--run.id=one") == 0
    config = tmp_path / "vivit_fact_encoder" / "one" / "config.yaml"
    assert verb("fit", "-c", str(config), "--run.id=again") == 0
    again = config.parent.with_name("again")
    assert (again / "config.yaml").read_text() == config.read_text()
    one, other = (json.loads((folder / "results.json").read_text()) for folder in (config.parent, again))
    assert one["metrics"] == other["metrics"]


def test_print_config_reruns_to_itself(tmp_path: Path, command: Command) -> None:
    """Breaks if what --print_config shows is not what would run."""
    first = command("fit", "-c", EXPERIMENT, "--print_config")
    saved = tmp_path / "vivit_fact_encoder.yaml"
    saved.write_text(first.stdout)
    second = command("fit", "-c", str(saved), "--print_config")
    assert yaml.safe_load(second.stdout) == yaml.safe_load(first.stdout) != {}


def test_same_seed_same_metrics_another_seed_another(tmp_path: Path) -> None:
    """Breaks if something is drawn outside of the seed, or the seed is not used."""
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert (
            verb(
                "fit",
                "-c",
                EXPERIMENT,
                *ONE_STEP,
                f"--seed_everything={seed}",
                f"--run.root={tmp_path}",
                f"--run.id={name}",
            )
            == 0
        )

    def rows(name: str) -> list[dict[str, float]]:
        lines = (tmp_path / "vivit_fact_encoder" / name / "metrics.jsonl").read_text().splitlines()
        return [
            {k: v for k, v in json.loads(line).items() if "samples_per" not in k and "wait" not in k} for line in lines
        ]

    assert rows("a") == rows("b")
    assert rows("a") != rows("c")


def test_validate_test_and_predict_take_a_checkpoint(tmp_path: Path, command: Command) -> None:
    """Breaks if a verb fails on a finished run's checkpoint, or touches the run's record."""
    assert verb("fit", "-c", EXPERIMENT, *ONE_STEP, f"--run.root={tmp_path}", "--run.id=one") == 0
    folder = tmp_path / "vivit_fact_encoder" / "one"
    record = (folder / "results.json").read_text()
    arguments = ("-c", str(folder / "config.yaml"), "--ckpt_path", str(folder / "checkpoints" / "best.ckpt"))
    for name in ("validate", "test"):
        assert verb(name, *arguments, "--run.id=one") == 0
        results = json.loads((folder.with_name(f"one-{name}") / "results.json").read_text())
        assert results["verb"] == name
    assert results["metrics"]["test/top1"] == json.loads(record)["metrics"]["test/top1"]
    assert (folder / "results.json").read_text() == record
    predicted = command("predict", *arguments)
    assert predicted.returncode == 0, predicted.stderr
    rows = [json.loads(line) for line in predicted.stdout.splitlines()]
    assert [row["id"] for row in rows] == [f"test/{i}" for i in range(24)]
    assert len(rows[0]["class"]) == 5
    assert " then " in rows[0]["class"][0]["class"]


def test_the_same_command_twice_is_told_that_it_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if a finished run is trained again or overwritten."""
    arguments = ("fit", "-c", EXPERIMENT, *ONE_STEP, f"--run.root={tmp_path}", "--run.id=one")
    assert verb(*arguments) == 0
    before = (tmp_path / "vivit_fact_encoder/one/metrics.jsonl").read_text()
    capsys.readouterr()
    assert verb(*arguments) == 0
    assert "is finished" in capsys.readouterr().err
    assert (tmp_path / "vivit_fact_encoder/one/metrics.jsonl").read_text() == before


def test_another_experiment_under_the_same_id_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if two different runs mix in one folder; where and how to run may change."""
    common = (f"--run.root={tmp_path}", "--run.id=one")
    assert verb("fit", "-c", EXPERIMENT, *ONE_STEP, *common) == 0
    (tmp_path / "vivit_fact_encoder/one/results.json").unlink()
    assert verb("fit", "-c", EXPERIMENT, *ONE_STEP, *common, "--model.init_args.label_smoothing=0.1") == 2
    assert "another model.init_args.label_smoothing" in capsys.readouterr().err
    assert verb("fit", "-c", EXPERIMENT, *ONE_STEP, *common, "--trainer.log_every_n_steps=1") == 0


def test_a_second_file_overlays_the_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if an overlay replaces more than it says, or the name of the experiment is taken from it."""
    overlay = tmp_path / "short.yaml"
    overlay.write_text("trainer: {max_steps: 1, val_check_interval: 1}\ncheckpoint_best: {monitor: val/top5}\n")
    assert verb("fit", "-c", EXPERIMENT, "-c", str(overlay), *TINY, f"--run.root={tmp_path}", "--run.id=one") == 0
    config = yaml.safe_load((tmp_path / "vivit_fact_encoder/one/config.yaml").read_text())
    assert config["checkpoint_best"]["monitor"] == "val/top5"
    assert config["checkpoint_best"]["filename"] == "best"
    assert config["trainer"]["gradient_clip_val"] == 1.0
    assert (tmp_path / "vivit_fact_encoder/one/checkpoints/last.ckpt").exists()


MISTAKES = [
    (("fot",), "no verb 'fot'", "did you mean 'fit'?"),
    (("fit",), "no experiment is given", "name its file"),
    (
        ("fit", "-c", "experiments/vivit_fact_encodr.yaml"),
        "no such file",
        "did you mean experiments/vivit_fact_encoder.yaml",
    ),
    (
        ("fit", "-c", EXPERIMENT, "--trainer.max_epoch=3"),
        "no key 'trainer.max_epoch'",
        "did you mean 'trainer.max_epochs'?",
    ),
    (("fit", "-c", EXPERIMENT, "--data.init_args.batchsize=3"), "no key 'batchsize'", "did you mean 'batch_size'?"),
    (
        ("fit", "-c", EXPERIMENT, "--data.init_args.batch_size=x"),
        "data.init_args.batch_size: Expected a <class 'int'>",
        "",
    ),
    (
        ("fit", "-c", EXPERIMENT, "--model.init_args.net=FactorizedEncoder"),
        "no class 'FactorizedEncoder'",
        "'FactorisedEncoder'?",
    ),
    (
        ("fit", "-c", EXPERIMENT, "--model.init_args.net=os.system"),
        "'os.system' is outside",
        "use a class of lightning_vl",
    ),
    (("fit", "-c", EXPERIMENT, "--model.init_args.optimizer=os.system"), "'os.system' is outside", "use a class of"),
    (("fit", "-c", EXPERIMENT, "--trainer.strategy=dpp"), "invalid strategy name", "change these values"),
    (("fit", "-c", EXPERIMENT, "--trainer.accelerator=gpu", "--trainer.devices=64"), "", "change these values"),
    (("fit", "-c", EXPERIMENT, "--model.init_args.net.init_args.heads=5"), "5", "change these values"),
    (
        ("fit", "-c", EXPERIMENT, "--data.init_args.source.init_args.train_clips=8"),
        "32 samples and the training data has 8",
        "batch_size",
    ),
    (
        ("fit", "-c", EXPERIMENT, "--model.init_args.net.init_args.classes={class: 7}"),
        "the network has classes",
        "{'class': 24}",
    ),
    (("fit", "-c", EXPERIMENT, "--data.init_args.sampling.init_args.frames=4"), "takes 8 frames", "the same sizes"),
    (
        ("fit", "-c", "experiments/paper/vivit_fact_encoder_k400.yaml"),
        "source.init_args.root is not given",
        "give it: --data",
    ),
    (("test", "-c", EXPERIMENT), "no checkpoint is given", "--ckpt_path"),
    (("test", "-c", EXPERIMENT, "--ckpt_path=nowhere.ckpt"), "nowhere.ckpt: no such file", "give another"),
    (("compare", "nowhere"), "nowhere", ""),
    (("profile", "nowhere.yaml"), "nowhere.yaml", ""),
    (("sweep", "nowhere.yaml"), "nowhere.yaml", ""),
]


@pytest.mark.parametrize(
    ("arguments", "what", "how"), MISTAKES, ids=lambda value: " ".join(value)[:60] if isinstance(value, tuple) else ""
)
def test_a_mistake_gets_two_lines_and_exit_code_2(
    arguments: tuple[str, ...], what: str, how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks if a mistake ends in a traceback, a page of usage, another exit code, or leaves a run folder behind."""
    root = (f"--run.root={tmp_path}",) if arguments[0] == "fit" and len(arguments) > 1 else ()
    assert verb(*arguments, *root) == 2
    captured = capsys.readouterr().err.strip().splitlines()
    error = next(i for i, line in enumerate(captured) if line.startswith("error: "))
    assert what in captured[error]
    assert captured[error + 1].startswith("  ")
    assert how in captured[error + 1]
    assert len(captured) == error + 2
    assert not list(tmp_path.glob("*/*/checkpoints"))


BAD_FILES = {
    "tag": ("a: !!python/object/apply:os.system ['touch {touched}']\n", "not plain YAML"),
    "twice": ("trainer: {max_steps: 1}\ntrainer: {max_steps: 2}\n", "gives 'trainer' a second time"),
    "typo": ("trainer: {max_stps: 1}\n", "no key 'trainer.max_stps'"),
    "list": ("- 1\n", "holds no keys"),
    "torn": ("trainer: {max_steps: 1\n", "not plain YAML"),
    "foreign": ("model: {class_path: subprocess.Popen, init_args: {args: touch}}\n", "'subprocess.Popen' is outside"),
    "binary": (b"\xff\xfe\x00\x01", "cannot be read"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_refused_in_two_lines(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if a file can run code, or if a mistake in it passes silently."""
    content, what = BAD_FILES[name]
    touched = tmp_path / "touched"
    path = tmp_path / "bad.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.replace("{touched}", str(touched)).encode())
    assert verb("fit", "-c", EXPERIMENT, "-c", str(path), f"--run.root={tmp_path}") == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert what in errors[-2]
    assert len(errors) == 2
    assert not touched.exists()


def test_hyper_parameters_in_a_checkpoint_do_not_override_the_command_line(tmp_path: Path) -> None:
    """Breaks if --ckpt_path brings back values that the file and the command line do not have."""
    assert verb("fit", "-c", EXPERIMENT, *ONE_STEP, f"--run.root={tmp_path}", "--run.id=one") == 0
    checkpoint = tmp_path / "vivit_fact_encoder/one/checkpoints/last.ckpt"
    arguments = ("--model.init_args.label_smoothing=0.3", "--trainer.max_steps=2", f"--ckpt_path={checkpoint}")
    assert verb("fit", "-c", EXPERIMENT, *TINY, *arguments, f"--run.root={tmp_path}", "--run.id=two") == 0
    config = yaml.safe_load((tmp_path / "vivit_fact_encoder/two/config.yaml").read_text())
    assert config["model"]["init_args"]["label_smoothing"] == 0.3


def test_preprocessing_travels_with_the_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if a checkpoint is used on inputs made otherwise than those it was trained on."""
    assert verb("fit", "-c", EXPERIMENT, *ONE_STEP, f"--run.root={tmp_path}", "--run.id=one") == 0
    checkpoint = tmp_path / "vivit_fact_encoder/one/checkpoints/last.ckpt"
    larger = (
        "--model.init_args.net.init_args.embedding.init_args.image_size=40",
        "--data.init_args.evaluation.init_args={short_side: 40, crop: 40}",
    )
    assert verb("test", "-c", EXPERIMENT, *TINY, *larger, f"--ckpt_path={checkpoint}", f"--run.root={tmp_path}") == 2
    assert "crop 32" in capsys.readouterr().err
