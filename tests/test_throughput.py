"""How fast a training is said to go: counted from what was done, and unknown where nobody can tell."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from support import ROOT, Command, batches, tiny, verb
from torch import Tensor
from torch.utils._pytree import tree_map_only

from lightning_vl.cli import build
from lightning_vl.nn.packing import pack
from lightning_vl.report.cost import count_operations, static_cost
from lightning_vl.throughput import ForwardOperations, Throughput, Work, count_tokens

SHORT = ("--trainer.max_steps=4", "--trainer.val_check_interval=4", "--trainer.log_every_n_steps=2", "--run.id=ID")


@pytest.fixture(autouse=True)
def in_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands name files from the repository's root."""
    monkeypatch.chdir(ROOT)


def counted(task: Any, batch: Any) -> float:
    """The operations of a forward of this very batch."""
    alone = copy.deepcopy(task).to("meta").eval().requires_grad_(False)
    return 2.0 * count_operations(alone, tree_map_only(Tensor, lambda tensor: tensor.to("meta"), batch)).macs


@pytest.mark.parametrize(("experiment", "tokens"), [("vit_tiny", 16), ("vivit_fact_encoder", 64)])
def test_fixed_sizes_cost_what_profile_says(experiment: str, tokens: int, tmp_path: Path) -> None:
    """Breaks if samples, tokens or operations are counted otherwise than once each, or a rate is of another time."""
    root = f"--run.root={tmp_path}"
    assert verb("fit", "-c", f"experiments/{experiment}.yaml", *tiny(experiment), *SHORT, root) == 0
    folder = tmp_path / experiment / "ID"
    results = json.loads((folder / "results.json").read_text())
    assert results["samples_seen"] == 32
    assert results["tokens_seen"] == 32 * tokens
    assert results["tokens_per_second"] == pytest.approx(tokens * results["samples_per_second"])
    each = 3 * results["model"]["gflops"] / 1000  # 1e12 operations of a training step, a sample
    assert results["teraflops_per_second"] == pytest.approx(each * results["samples_per_second"])
    assert results["utilisation"] is None  # a processor's peak is not known
    assert results["peak_teraflops_per_second"] is None
    assert 0.1 < results["peak_memory_gib"] < 64
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    rows = [row for row in lines if "train/samples_per_second" in row]
    assert [row["step"] for row in rows] == [2, 4]
    for row in rows:
        assert row["train/tokens_per_second"] == pytest.approx(tokens * row["train/samples_per_second"], rel=1e-5)
        assert row["train/teraflops_per_second"] == pytest.approx(each * row["train/samples_per_second"], rel=1e-5)
        assert 0 <= row["train/data_wait"] <= 1
        assert 0.1 < row["train/memory_gib"] <= results["peak_memory_gib"] + 1e-6
        assert "train/utilisation" not in row  # W&B would draw a line at nothing


def test_the_progress_line_has_them(tmp_path: Path, command: Command) -> None:
    """Breaks if a user who looks at the terminal misses one of the numbers."""
    done = command("fit", "-c", "experiments/bert_tiny.yaml", *tiny("bert_tiny"), *SHORT, f"--run.root={tmp_path}")
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stderr.splitlines() if line.startswith("training 4/4"))
    for what in ("sequences/s", "tokens/s", "data wait", "FLOP/s", "GiB", "train/loss"):
        assert what in line
    assert "of peak" not in line


def test_text_is_counted_without_padding() -> None:
    """Breaks if padding counts as tokens, or texts shorter than the network's longest as long ones."""
    task, (first, second) = batches("bert_tiny", 2)
    assert count_tokens(task.net, first) == int((first["packing"].last - first["packing"].first + 1).sum())
    forward = ForwardOperations(task)
    tokens = [count_tokens(task.net, batch) for batch in (first, second)]
    exact = [counted(task, batch) for batch in (first, second)]
    assert forward.operations(first, 8, tokens[0]) == exact[0]
    assert forward.operations(second, 8, tokens[1]) == pytest.approx(exact[1], rel=0.05)
    assert exact[0] <= 2 * 8e9 * static_cost(task.net).gmacs


def test_operations_follow_when_texts_become_longer() -> None:
    """Breaks if BERT's second phase, with longer sequences, is counted by the first: attention grows with the square."""
    _, (short,) = batches("bert_tiny", 1)
    task = build(
        ["experiments/bert_tiny.yaml"],
        (*tiny("bert_tiny"), "--model.init_args.net.init_args.bert.init_args.positions=512"),
    ).task
    _, many = batches("bert_tiny", 1, size=64)
    # the same tokens as a few long sequences
    total = len(many[0]["token_ids"])
    lengths = torch.full((total // 512,), 512)
    kept = int(lengths.sum())
    long = {
        **many[0],
        "token_ids": many[0]["token_ids"][:kept],
        "segment_ids": many[0]["segment_ids"][:kept],
        "packing": pack(lengths),
        "places": torch.arange(16),
        "id": ["long"] * len(lengths),
    }
    forward = ForwardOperations(task)
    forward.operations(short, 8, len(short["token_ids"]))
    for _ in range(200):
        said = forward.operations(long, len(lengths), kept)
    assert said == counted(task, long)


def test_pairs_are_counted_with_both_towers() -> None:
    """Breaks if CLIP's image tower is left out, or scaled with the length of the captions."""
    task, (first, second) = batches("clip_tiny", 2)
    forward = ForwardOperations(task)
    for batch in (first, second):
        tokens = count_tokens(task.net, batch)
        assert tokens == len(batch["token_ids"])
        assert forward.operations(batch, 8, tokens) == pytest.approx(counted(task, batch), rel=0.05)


def test_the_network_is_left_as_it_is() -> None:
    """Breaks if counting moves, casts, freezes or evaluates the network in training, or draws random numbers."""
    task, (batch,) = batches("vit_tiny", 1)
    task.net.train()
    state = {name: tensor.clone() for name, tensor in task.net.state_dict().items()}
    drawn = torch.get_rng_state()
    ForwardOperations(task).operations(batch, 8, 128)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert task.training
    assert task.net.training
    assert all(one.requires_grad and one.device.type == "cpu" for one in task.net.parameters())
    assert all(torch.equal(tensor, state[name]) for name, tensor in task.net.state_dict().items())


def test_half_precision_is_counted_too() -> None:
    """Breaks if a network in bf16, whose inputs are not, cannot be counted."""
    task, (batch,) = batches("vit_tiny", 1)
    exact = counted(task, batch)
    task.net.to(torch.bfloat16)
    assert ForwardOperations(task).operations(batch, 8, 128) == exact


def test_a_frozen_part_makes_operations_unknown() -> None:
    """Breaks if a frozen tower, which has no backward, is counted as three forwards."""
    task, (batch,) = batches("clip_tiny", 1)
    task.net.text.freeze()
    assert ForwardOperations(task).operations(batch, 8, 100) == 0.0
    assert Work(8, 100, 0.0, 1.0, 0.0).rates(1e12).teraflops_per_second is None


def test_a_forward_that_asks_for_values_is_unknown() -> None:
    """Breaks if training dies of a network that cannot be counted without its inputs' values."""
    task, (batch,) = batches("vit_tiny", 1)
    task.net.dropout.register_forward_pre_hook(lambda module, inputs: float(inputs[0].sum()) and None)
    forward = ForwardOperations(task)
    assert forward.operations(batch, 8, 128) == 0.0
    assert forward.operations(batch, 8, 128) == 0.0


def test_rates_are_of_all_devices_and_their_peak() -> None:
    """Breaks if utilisation is held against one device's peak, or a rate against another time."""
    work = Work(samples=64, tokens=640, operations=3e12, seconds=2.0, waited=0.5)
    rates = work.rates(peak=2 * 5e12)
    assert rates == (32.0, 320.0, 0.25, 1.5, 0.15)
    assert work.rates(None).utilisation is None
    assert work.rates(None).teraflops_per_second == 1.5


def test_totals_go_on_over_a_restart() -> None:
    """Breaks if a resumed run counts from its restart."""
    before = Throughput()
    before.total = Work(64, 640, 3e12, 2.0, 0.5)
    after = Throughput()
    after.load_state_dict(before.state_dict())
    assert after.total == before.total
    assert math.isclose(after.summary(torch.device("cpu"))["samples_per_second"], 32.0)


def test_two_processes_are_counted_together(tmp_path: Path, command: Command) -> None:
    """Breaks if the record of several devices has one device's samples, tokens or operations."""
    overlay = ("-c", "experiments/overlays/cpu_ddp.yaml")
    words = ("-c", "experiments/vit_tiny.yaml", *overlay, *tiny("vit_tiny"), *SHORT, f"--run.root={tmp_path}")
    done = command("fit", *words)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "vit_tiny" / "ID" / "results.json").read_text())
    assert results["devices"] == 2
    assert results["samples_seen"] == 32
    assert results["tokens_seen"] == 32 * 16
    each = 3 * results["model"]["gflops"] / 1000
    assert results["teraflops_per_second"] == pytest.approx(each * results["samples_per_second"])
