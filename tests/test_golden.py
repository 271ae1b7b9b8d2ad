"""The first losses of every experiment, as committed: a change of them needs a reason in the same commit.

To write them anew: LIGHTNING_VL_WRITE_GOLDEN=1 python -m pytest tests/test_golden.py
"""

import json
import os
from pathlib import Path

import pytest
from support import ROOT, verb

GOLDEN = ROOT / "tests" / "golden"
EXPERIMENTS = sorted(ROOT.glob("experiments/*.yaml"))
STEPS = 5


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda path: path.stem)
def test_the_first_losses_are_the_committed_ones(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if anything of initialisation, data, loss, optimiser or schedule changes."""
    monkeypatch.chdir(ROOT)
    images = file.stem.startswith(("vit_", "bit_"))
    kind = "images" if images else "clips"
    arguments = (
        "--data.init_args.workers=0",
        *(("--data.init_args.source.init_args.train_images=2048",) if images else ()),  # the rest takes time to draw
        f"--data.init_args.source.init_args.validation_{kind}=24",
        f"--data.init_args.source.init_args.test_{kind}=24",
        "--transfer=[]",
        f"--trainer.max_steps={STEPS}",
        f"--trainer.val_check_interval={STEPS}",
        "--trainer.log_every_n_steps=1",
        "--trainer.precision=32-true",
    )
    assert verb("fit", "-c", f"experiments/{file.name}", *arguments, f"--run.root={tmp_path}", "--run.id=golden") == 0
    rows = [json.loads(line) for line in (tmp_path / file.stem / "golden" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    path = GOLDEN / f"{file.stem}.txt"
    if os.environ.get("LIGHTNING_VL_WRITE_GOLDEN"):
        path.write_text("".join(f"{step} {loss:.9g}\n" for step, loss in enumerate(losses)))
    golden = [float(line.split()[1]) for line in path.read_text().splitlines()]
    assert len(losses) == STEPS
    # other processors sum in another order; a change of the computation is far larger than this
    assert losses == pytest.approx(golden, rel=2e-5)
