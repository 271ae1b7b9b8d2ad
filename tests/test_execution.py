"""How a network is carried out changes neither its numbers nor the names of its weights."""

import copy
import json
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from support import ROOT, batches, same, tiny, verb

from lightning_vl.cli import build
from lightning_vl.errors import UserError
from lightning_vl.execution import Execution, blocks


@pytest.fixture(autouse=True)
def in_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands name files from the repository's root."""
    monkeypatch.chdir(ROOT)


def step(task: Any, batch: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """A training step's loss and gradients, from a seed."""
    torch.manual_seed(0)
    loss = torch.stack(list(task.losses(batch, task(batch)).values())).sum()
    task.zero_grad()
    loss.backward()
    gradients = {name: p.grad for name, p in task.net.named_parameters() if p.grad is not None}
    return loss.detach(), {name: gradient.clone() for name, gradient in gradients.items()}


# networks whose every kind of randomness is switched on
RANDOM = {
    "vit_tiny": ("--model.init_args.net.init_args.dropout=0.1",),
    "vivit_fact_self_attention": (
        "--model.init_args.net.init_args.dropout=0.1",
        "--model.init_args.net.init_args.stochastic_depth=0.3",
    ),
    "bert_tiny": (
        "--model.init_args.net.init_args.bert.init_args.dropout=0.1",
        "--model.init_args.net.init_args.bert.init_args.attention_dropout=0.1",
    ),
    "clip_tiny": (),
}


@pytest.mark.parametrize("experiment", RANDOM)
def test_blocks_computed_again_give_the_same_numbers(experiment: str) -> None:
    """Breaks if a block draws other random numbers the second time, keeps what it should not, or changes a name."""
    _, (batch,) = batches(experiment, 1)
    task = build([f"experiments/{experiment}.yaml"], (*tiny(experiment), *RANDOM[experiment])).task.train()
    for parameter in task.net.parameters():  # heads that begin at zero would hide what is before them
        torch.nn.init.normal_(parameter, std=0.1)
    again = copy.deepcopy(task)
    Execution(activation_checkpointing=True).apply(again.net)
    task.trainer = again.trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        plain = step(task, batch)
        kept = sum(saved)
        saved.clear()
        other = step(again, batch)
    same(plain, other)
    assert sum(saved) < kept or not blocks(task.net)
    same(again.net.state_dict(), task.net.state_dict())
    random = torch.get_rng_state()
    same(step(task, batch), plain)  # and the generator goes on from the same place
    assert torch.equal(torch.get_rng_state(), random)


def test_what_counts_every_forward_is_left_alone() -> None:
    """Breaks if batch norm's statistics are counted twice for a batch, in the ResNet tower of CLIP."""
    net = build(["experiments/clip_tiny.yaml"]).task.net
    found = blocks(net)
    assert len(found) == 2  # of the text tower
    assert not any(block in list(net.image.modules()) for block in found)


def test_a_network_without_blocks_is_refused() -> None:
    """Breaks if a wish that cannot be met is passed over without a word."""
    net = torch.nn.Linear(2, 2)
    with pytest.raises(UserError, match="Linear has no blocks"):
        Execution(activation_checkpointing=True).apply(net)
    Execution().apply(net)


@pytest.mark.slow
def test_compiled_blocks_compute_the_same(tmp_path: Path) -> None:
    """Breaks if a compiled run has other losses, or its checkpoint other names, than a plain one."""
    words = (
        "-c",
        "experiments/vit_tiny.yaml",
        *tiny("vit_tiny"),
        "--trainer.max_steps=3",
        "--trainer.val_check_interval=3",
    )
    words += ("--trainer.log_every_n_steps=1", f"--run.root={tmp_path}")
    assert verb("fit", *words, "--run.id=plain") == 0
    both = ("-c", "experiments/overlays/compile.yaml", "-c", "experiments/overlays/activation_checkpointing.yaml")
    assert verb("fit", *words, "--run.id=compiled", *both) == 0
    losses, states = [], []
    for name in ("plain", "compiled"):
        folder = tmp_path / "vit_tiny" / name
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses.append([row["train/loss"] for row in rows if "train/loss" in row])
        states.append(torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"])
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    assert states[0].keys() == states[1].keys()
    assert not any("_orig_mod" in name for name in states[1])
