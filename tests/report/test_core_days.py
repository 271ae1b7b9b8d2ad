"""What training costs: the paper's exaFLOPs, its core-days, and the table without a finished run."""

import csv
import json
from pathlib import Path

import pytest
import torch
import yaml
from support import ROOT

from lightning_vl.__main__ import main
from lightning_vl.errors import UserError
from lightning_vl.papers.vit.model import ViT
from lightning_vl.report.core_days import core_days, training_costs, training_exaflops
from lightning_vl.report.cost import static_cost
from lightning_vl.report.family import read_sweep

TABLE_2 = "experiments/sweeps/vit_paper_table2.yaml"
JFT = 303e6
SIZES = {  # patch, width, layers, heads, hidden width
    "B/32": (32, 768, 12, 12, 3072),
    "B/16": (16, 768, 12, 12, 3072),
    "L/32": (32, 1024, 24, 16, 4096),
    "L/16": (16, 1024, 24, 16, 4096),
    "H/14": (14, 1280, 32, 16, 5120),
}


@pytest.mark.parametrize(
    ("size", "epochs", "printed"),
    [("B/32", 7, 55), ("B/16", 7, 224), ("L/32", 7, 196), ("L/16", 7, 783), ("L/16", 14, 1567), ("H/14", 14, 4262)],
)
def test_exaflops_are_those_of_table_6(size: str, epochs: int, printed: float) -> None:
    """A multiply-add counted as one, a step as one forward or a wrong network is off by far more than 3 %."""
    patch, dim, layers, heads, mlp_dim = SIZES[size]
    with torch.device("meta"):
        net = ViT(224, patch, dim, layers, heads, mlp_dim, classes=1000)
    assert training_exaflops(static_cost(net).gmacs, epochs * JFT) == pytest.approx(printed, rel=0.03)


def test_core_days_by_hand() -> None:
    """86.4 exaFLOPs at 1 PFLOP/s are a day; half the utilisation are two."""
    assert core_days(86.4, peak_tflops=1000, utilisation=1.0) == pytest.approx(1.0)
    assert core_days(86.4, peak_tflops=1000, utilisation=0.5) == pytest.approx(2.0)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the paper's Table 2 without a run, at 2.5 dollars."""
    out = tmp_path_factory.mktemp("table2")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert main(["compare", "--sweep", TABLE_2, "--price-per-core-hour", "2.5", "--out", str(out)]) == 0
    return out


def test_the_table_stands_without_runs(table: Path) -> None:
    """Printed values and computed costs stand side by side, and nothing looks measured."""
    text = (table / "table.md").read_text()
    assert "not run" in text
    assert "±" not in text
    assert "| 12300 |" in text  # Noisy Student, which no experiment stands for
    assert "| 85.30 |" in text
    assert "$2.5 a core-hour, as given" in text
    assert (table / "index.html").stat().st_size > 0


def test_core_days_agree_with_the_printed_ones_at_a_plausible_utilisation(table: Path) -> None:
    """Steps, batch or multiply-adds of an experiment file that are off by two show here."""
    with (table / "table.csv").open() as file:
        rows = {row["experiment"]: row for row in csv.DictReader(file)}
    shares = {name: float(rows[name]["training agreeing"]) for name in ("vit_h14_jft", "vit_l16_jft", "vit_l16_i21k")}
    assert shares == pytest.approx({"vit_h14_jft": 0.32, "vit_l16_jft": 0.43, "vit_l16_i21k": 0.38}, abs=0.01)
    first = rows["vit_l16_i21k"]
    assert float(first["training dollars"]) == pytest.approx(24 * 2.5 * float(first["training core_days"]))
    # the printed 230 core-days at the price of a core-hour
    assert "| 13,800 |" in (table / "table.md").read_text()


def test_runs_are_needed_elsewhere(capsys) -> None:
    """`compare` without runs and without such a sweep says what to give."""
    assert main(["compare"]) == 2
    assert "no runs are given" in capsys.readouterr().err


def make_sweep(folder: Path, **changes: object) -> Path:
    """A sweep file with one experiment, a small ViT."""
    net = {"image_size": 32, "patch_size": 8, "dim": 64, "layers": 2, "heads": 4, "mlp_dim": 128, "classes": 10}
    experiment = {
        "model": {
            "class_path": "ViTTask",
            "init_args": {
                "net": {"class_path": "ViT", "init_args": net},
                "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}},
                "schedule": {"class_path": "Constant"},
            },
        },
        "data": {"init_args": {"batch_size": 10}},
        "trainer": {"max_steps": 100},
    }
    (folder / "small.yaml").write_text(yaml.safe_dump(experiment))
    assumed = {
        "core": "core",
        "peak_tflops": 1,
        "peak_source": "a",
        "utilisation": 0.5,
        "utilisation_source": "b",
        "price_per_core_hour": 1,
        "price_source": "c",
    }
    content = {
        "name": "cost",
        "title": "Cost",
        "experiments": ["small.yaml"],
        "seeds": [0],
        "metric": "test/top1",
        "differ_only_in": [],
        "core_days": assumed | changes,
    }
    (folder / "cost.yaml").write_text(yaml.safe_dump(content))
    return folder / "cost.yaml"


def test_a_finished_run_stands_beside_its_cost(make_run, tmp_path: Path, monkeypatch, capsys) -> None:
    """Measured accuracy and computed cost come together, and only measured rows have a spread."""
    monkeypatch.chdir(tmp_path)
    make_sweep(tmp_path)
    make_run("small", 0, {"test/top1": 0.5})
    assert main(["compare", "runs", "--sweep", "cost.yaml", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["metrics"]["test/top1"]["mean"] == 0.5
    assert row["training"]["images"] == 1000
    assert row["training"]["printed"] is None


def test_mistakes_of_the_assumptions(tmp_path: Path, monkeypatch) -> None:
    """A utilisation in percent, a column that is not there and an experiment without steps are named."""
    monkeypatch.chdir(tmp_path)
    for changes, said in (({"utilisation": 40}, "utilisation"), ({"printed": "days"}, "days")):
        with pytest.raises(UserError, match=said):
            read_sweep(make_sweep(tmp_path, **changes))
    sweep = read_sweep(make_sweep(tmp_path))
    file = tmp_path / "small.yaml"
    file.write_text(file.read_text().replace("max_steps: 100", "max_time: 100"))
    with pytest.raises(UserError, match=r"trainer\.max_steps"):
        training_costs(sweep)
