"""Where metrics go: an append-only file in the run folder, and W&B."""

import contextlib
import json
import math
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from lightning_vl.terminal import say
from lightning_vl.wandb_mode import choose_wandb_mode as choose_wandb_mode

METRICS = "metrics.jsonl"


class MetricsFile(Logger):
    """Appends every row of metrics to `metrics.jsonl`: one JSON object a line, `step` first.

    Rows are never rewritten: after a resume a step may occur again, and the later line holds.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.path = folder / METRICS
        self._first = True

    @property
    def name(self) -> str:
        """Lightning asks for it; the run folder's name."""
        return self.path.parent.name

    @property
    def version(self) -> str:
        """Lightning asks for it; a run has no versions."""
        return ""

    @property
    def log_dir(self) -> str:
        """The run folder: Lightning's `trainer.log_dir`."""
        return str(self.path.parent)

    @property
    def save_dir(self) -> str:
        """The run folder."""
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml has them all."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Appends one row."""
        row = {"step": int(step or 0), **{key: value for key, value in metrics.items() if key != "epoch"}}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        torn = self.path.exists() and not self.path.read_bytes().endswith(b"\n") if self._first else False
        self._first = False
        with self.path.open("a") as file:
            if torn:  # a kill in the middle of a line
                file.write("\n")
            file.write(json.dumps({key: _plain(value) for key, value in row.items()}) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no nan
    return value


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file; a last line cut off by a kill is left out."""
    rows: list[dict[str, Any]] = []
    for line in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows


def known_rows(path: Path) -> set[tuple[int, str]]:
    """Every (step, key) in a metrics file."""
    return {(row["step"], key) for row in read_rows(path) for key in row if key != "step"}


def last_validation(path: Path) -> dict[str, float]:
    """The `val/` metrics of the last validation in a metrics file; none if there was none."""
    rows = [{key: row[key] for key in row if key.startswith("val/")} for row in read_rows(path)]
    return next((row for row in reversed(rows) if row), {})


class WandbRun(WandbLogger):
    """W&B with one run per run folder, over restarts: a step that the run has logged before is not logged again.

    Args:
        folder: the run folder; W&B's files go to `wandb/` in it.
        id: the run's id at W&B.
        name: shown name.
        project: W&B project.
        entity: W&B user or team; none takes the key's own.
        group: W&B group: the experiment.
        tags: W&B tags.
    """

    def __init__(
        self, folder: Path, id: str, name: str, project: str, entity: str | None, group: str, tags: list[str]
    ) -> None:
        # read before this start appends to it
        self._known = known_rows(folder / METRICS)
        self._lost = False  # W&B's process
        super().__init__(
            name=name,
            save_dir=folder,
            id=id,
            project=project,
            entity=entity,
            group=group,
            tags=tags,
            resume="allow",
            settings={"console": "off", "silent": True},
        )
        self._wandb_init.pop("anonymous")  # W&B warns of it, whatever its value

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Logs what the run has not logged before at this step."""
        fresh = {key: value for key, value in metrics.items() if (step, key) not in self._known and key != "epoch"}
        if fresh and not self._lost:
            try:
                super().log_metrics(fresh, step)
            except ConnectionError:  # a signal to every process of a job ends W&B's own at once
                self._lost = True
                say("W&B's process has ended: metrics.jsonl goes on, W&B gets the rest of this start no more")

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run; its folder exists by now."""
        Path(self._save_dir or ".").mkdir(parents=True, exist_ok=True)
        return super().experiment
