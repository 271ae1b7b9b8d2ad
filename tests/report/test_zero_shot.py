"""The table of zero-shot results of published runs."""

from collections.abc import Callable
from pathlib import Path

from lightning_vl.report.results import find_runs
from lightning_vl.report.table import heading, make_row
from lightning_vl.report.zero_shot import zero_shot_table


def test_a_line_for_each_data_set(make_run: Callable[..., Path], tmp_path: Path) -> None:
    """Breaks if seeds are not averaged, a metric stands in another's column, or a rank is shown in percent."""
    for seed, top1 in ((0, 0.5), (1, 0.7)):
        found = {"top1": top1, "top5": 0.9, "confidence": 0.25, "median_rank": 2.0, "mean_per_class": top1 - 0.1}
        metrics = {f"zero_shot/shapes/{name}": value for name, value in found.items()}
        make_run("clip", seed, {**metrics, "baseline/zero_shot_shapes_majority": 0.125, "test/loss": 1.0})
    make_run("vit", 0, {"test/top1": 0.5})
    runs, _ = find_runs([str(tmp_path / "runs")])
    rows = [make_row(name, [run for run in runs if run.experiment == name]) for name in ("clip", "vit")]
    lines = zero_shot_table(rows)
    assert lines[-1] == (
        "| clip | shapes | 2 | 60.0 ± 14.1 | 90.0 ± 0.0 | 25.0 ± 0.0 | 2.000 ± 0.000 | - "
        "| mean_per_class 50.0 ± 14.1 | 12.5 ± 0.0 |"
    )
    assert len([line for line in lines if line.startswith("| clip")]) == 1
    assert zero_shot_table(rows[1:]) == []


def test_shares_are_shown_in_percent() -> None:
    """Breaks if a recall is taken for a loss, or a rank for a share."""
    assert heading("test/text_to_image_r10").endswith("(%)")
    assert heading("zero_shot/x/confidence").endswith("(%)")
    assert not heading("test/text_to_image_median_rank").endswith("(%)")
    assert not heading("zero_shot/x/median_rank").endswith("(%)")
