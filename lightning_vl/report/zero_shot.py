"""What published runs reach on data sets that they were told nothing of but the names of the classes, one table for all."""

from collections.abc import Sequence

from lightning_vl.report.table import Row, markdown_row, mean_and_spread

PREFIX = "zero_shot/"
COLUMNS = {
    "top1": "top-1 (%)",
    "top5": "top-5 (%)",
    "confidence": "probability of the true class (%)",
    "median_rank": "its median rank",
    "probe": "linear probe (%)",
}


def zero_shot_table(rows: Sequence[Row]) -> list[str]:
    """A line for each data set of each experiment; nothing where no run was tested so.

    A metric of the data set's own that is not top-1 stands in a column behind.
    """
    lines = []
    for row in rows:
        names = [name.removeprefix(PREFIX).rpartition("/") for name in row.metrics if name.startswith(PREFIX)]
        for data_set in dict.fromkeys(name for name, _, _ in names):
            others = [metric for name, _, metric in names if name == data_set and metric not in COLUMNS]
            measured = [_measured(row, f"{PREFIX}{data_set}/{metric}") for metric in COLUMNS]
            chance = _measured(row, f"baseline/zero_shot_{data_set}_majority")
            own = ", ".join(f"{metric} {_measured(row, f'{PREFIX}{data_set}/{metric}')}" for metric in others)
            lines.append(markdown_row([row.label, data_set, str(len(row.runs)), *measured, own or "-", chance]))
    if not lines:
        return []
    columns = ["experiment", "data set", "n", *COLUMNS.values(), "its own metric (%)", "commonest class (%)"]
    return ["", "## Zero-shot", "", markdown_row(columns), "|" + "---|" * len(columns), *lines]


def _measured(row: Row, metric: str) -> str:
    return mean_and_spread(row.metrics[metric], metric) if metric in row.metrics else "-"
