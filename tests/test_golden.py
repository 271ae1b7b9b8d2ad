"""The first losses of every experiment, as committed: a change of them needs a reason in the same commit.

To write them anew: LIGHTNING_VL_WRITE_GOLDEN=1 python -m pytest tests/test_golden.py
"""

import json
import os
from pathlib import Path

import pytest
from support import ROOT, verb

GOLDEN = ROOT / "tests" / "golden"
EVALUATIONS = ("clip_prompts", "clip_zeroshot")  # these train nothing
EXPERIMENTS = sorted(path for path in ROOT.glob("experiments/*.yaml") if path.stem not in EVALUATIONS)
STEPS = 5


def python_manual() -> str:
    """What the text of this Python's manual is: another version has another one, and other losses."""
    from lightning_vl.data.datasets.python_manual import PythonManual

    return PythonManual().fingerprint("train")


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda path: path.stem)
def test_the_first_losses_are_the_committed_ones(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if anything of initialisation, data, loss, optimiser or schedule changes."""
    monkeypatch.chdir(ROOT)
    path = GOLDEN / f"{file.stem}.txt"
    text = f"# {python_manual()}\n" if file.stem.startswith("bert_") else ""
    if text and path.exists() and not path.read_text().startswith(text):
        pytest.skip("the manual of this Python is another text than that of the committed losses")
    images = file.stem.startswith(("vit_", "bit_", "clip_"))
    kind = "images" if images else "clips"
    arguments = (
        "--data.init_args.workers=0",
        *(("--data.init_args.source.init_args.train_images=2048",) if images else ()),  # the rest takes time to draw
        *(() if text else (f"--data.init_args.source.init_args.{split}_{kind}=24" for split in ("validation", "test"))),
        "--transfer=[]",
        "--zero_shot=[]",
        f"--trainer.max_steps={STEPS}",
        f"--trainer.val_check_interval={STEPS}",
        "--trainer.log_every_n_steps=1",
        "--trainer.precision=32-true",
    )
    assert verb("fit", "-c", f"experiments/{file.name}", *arguments, f"--run.root={tmp_path}", "--run.id=golden") == 0
    rows = [json.loads(line) for line in (tmp_path / file.stem / "golden" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    if os.environ.get("LIGHTNING_VL_WRITE_GOLDEN"):
        path.write_text(text + "".join(f"{step} {loss:.9g}\n" for step, loss in enumerate(losses)))
    golden = [float(line.split()[1]) for line in path.read_text().splitlines() if not line.startswith("#")]
    assert len(losses) == STEPS
    # other processors sum in another order; a change of the computation is far larger than this
    assert losses == pytest.approx(golden, rel=2e-5)
