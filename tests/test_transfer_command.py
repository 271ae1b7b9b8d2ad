"""Transfer as a user asks for it: a key of the experiment's file, or a second file with `test`."""

import json
from pathlib import Path

import pytest
from support import TINY_IMAGES, Command

OVERLAY = """\
transfer:
  - name: letters
    source:
      class_path: ScatteredLetters
      init_args: {train_images: 104, validation_images: 52, test_images: 52, size: 16}
    protocols:
      - class_path: FewShot
        init_args: {shots: [1, 2], draws: 2}
      - class_path: FineTune
        init_args: {steps: 3, learning_rates: [0.03], batch_size: 16}
"""


def test_fit_and_test_measure_the_same_transfer(tmp_path: Path, command: Command) -> None:
    """Breaks if transfer were left out of the record or the log, used other weights than the tested ones, or drew at random."""
    overlay = tmp_path / "letters.yaml"
    overlay.write_text(OVERLAY)
    small = [option for option in TINY_IMAGES if not option.startswith("--transfer")]
    steps = ("--trainer.max_steps=4", "--trainer.val_check_interval=2")
    files = ("-c", "experiments/vit_tiny.yaml", "-c", str(overlay))
    root = f"--run.root={tmp_path}"
    fitted = command("fit", *files, *small, *steps, root, "--run.id=one")
    assert fitted.returncode == 0, fitted.stderr
    folder = tmp_path / "vit_tiny" / "one"
    metrics = json.loads((folder / "results.json").read_text())["metrics"]
    names = {"transfer/letters/1_shot", "transfer/letters/2_shot", "transfer/letters/fine_tune"}
    assert names <= metrics.keys()
    assert metrics["baseline/letters_majority"] == pytest.approx(2 / 52)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert any(names <= row.keys() for row in rows)
    assert "transfer to letters: 1_shot" in fitted.stderr + fitted.stdout

    best = f"--ckpt_path={folder / 'checkpoints' / 'best.ckpt'}"
    again = command("test", *files, *small, best, root, "--run.id=one")
    assert again.returncode == 0, again.stderr
    tested = json.loads((tmp_path / "vit_tiny" / "one-test" / "results.json").read_text())["metrics"]
    assert {name: tested[name] for name in names} == {name: metrics[name] for name in names}
    assert tested["test/top1"] == metrics["test/top1"]
