"""The verb `profile` on the experiments as they are."""

import json
from pathlib import Path

import pytest
import torch
from support import ROOT, Command

from lightning_vl.__main__ import main
from lightning_vl.cli import build
from lightning_vl.report.cost import static_cost
from lightning_vl.report.profile import build_network

FACT_ENCODER, POOL = "experiments/vivit_fact_encoder.yaml", "experiments/vivit_avg_pool.yaml"
EXPERIMENTS = sorted(
    file for file in ROOT.glob("experiments/**/*.yaml") if file.parent.name not in ("sweeps", "overlays", "transfer")
)
PAPER = {  # parameters, GMACs, the paper's GFLOPs
    "spatiotemporal": (88_954_000, 451.5, 455.2),
    "fact_encoder": (115_062_928, 283.3, 284.4),
    "fact_self_attention": (117_319_312, 371.1, 372.3),
    "fact_dot_product": (88_952_464, 276.2, 277.1),
    "avg_pool": (86_696_080, 282.9, 283.9),
}


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Experiments are named from the repository's root."""
    monkeypatch.chdir(ROOT)


def test_paper_size_experiments_are_table_2(capsys) -> None:
    """The files under experiments/paper build the networks whose cost the paper printed, to 0.1 G and the last parameter."""
    files = [f"experiments/paper/vivit_{name}_k400.yaml" for name in PAPER]
    assert main(["profile", *files, "--json", "--no-latency"]) == 0
    for row, (parameters, gmacs, paper_gflops) in zip(json.loads(capsys.readouterr().out), PAPER.values(), strict=True):
        assert row["parameters"] == parameters
        assert row["gmacs"] == pytest.approx(gmacs, abs=0.05)
        assert row["gflops"] == 2 * row["gmacs"]
        assert row["paper_gflops"] == pytest.approx(paper_gflops, abs=0.1)
        assert row["latency_ms"] is None


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_experiment_is_counted(file: Path) -> None:
    """Any experiment can be profiled without its data: one whose network is not built from its file alone fails here."""
    with torch.device("meta"):
        cost = static_cost(build_network(str(file)))
    assert cost.parameters > 0
    assert 0 < cost.gmacs < cost.paper_gflops < cost.gflops


def test_network_is_the_one_that_fit_trains() -> None:
    """Profile builds from the key `model` alone: it must be what the whole command builds."""
    with torch.device("meta"):
        alone, whole = build_network(FACT_ENCODER), build([FACT_ENCODER]).task.net
    assert str(alone) == str(whole)
    assert {n: p.shape for n, p in alone.named_parameters()} == {n: p.shape for n, p in whole.named_parameters()}


def test_json_alone_on_stdout(command: Command) -> None:
    """Scripts read stdout: whatever libraries say must not be in it."""
    done = command("profile", FACT_ENCODER, POOL, "--json", "--runs", "2", "--batch-size", "2", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    first, second = json.loads(done.stdout)
    assert [first["experiment"], second["experiment"]] == ["vivit_fact_encoder", "vivit_avg_pool"]
    assert first["runtime_ratio"] == 1
    assert second["runtime_ratio"] == pytest.approx(second["latency_ms"] / first["latency_ms"])
    assert (first["runs"], first["batch_size"], first["precision"]) == (2, 2, "fp32")
    assert first["peak_memory_gib"] > 4 * first["parameters"] / 2**30
    assert "thread" in first["device"]


def test_ratio_to_the_named_baseline(capsys) -> None:
    """--baseline names the experiment whose runtime is 1."""
    arguments = ["profile", FACT_ENCODER, POOL, "--json", "--runs", "1", "--device", "cpu", "--precision", "bf16"]
    assert main([*arguments, "--baseline", "vivit_avg_pool"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert second["runtime_ratio"] == 1
    assert first["runtime_ratio"] == pytest.approx(first["latency_ms"] / second["latency_ms"])
    assert first["precision"] == "bf16"


def test_table(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers, their units and what they are of, also on a narrow terminal."""
    monkeypatch.setenv("COLUMNS", "70")
    assert main(["profile", FACT_ENCODER, "--no-latency"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 70
    for part in ("vivit_fact_encoder", "params", "MACs", "(1e9)", "twice that", "Table 2"):
        assert part in text


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ([FACT_ENCODER, "--baseline", "vivit_fact_encode"], "baseline 'vivit_fact_encode' is none of the experiments"),
        ([FACT_ENCODER, "--device", "warp"], "no device 'warp'"),
        (["experiments/vivit_nothing.yaml", "--no-latency"], "vivit_nothing.yaml"),
    ],
)
def test_mistakes_are_two_lines(arguments: list[str], what: str, capsys) -> None:
    """What is wrong, and how to mend it; exit code 2."""
    assert main(["profile", *arguments]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line]
    assert what in error[-2]
    assert len(error[-1]) > 5
