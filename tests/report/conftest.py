"""Run folders as `fit` leaves them."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Writes one finished run under `tmp_path/runs` and gives its folder; any key of results.json can be set."""

    def make(
        experiment: str,
        seed: int,
        metrics: Mapping[str, float | None],
        config: Mapping[str, Any] | None = None,
        curve: Mapping[str, Mapping[int, float]] | None = None,
        folder: str | None = None,
        **results: Any,
    ) -> Path:
        place = tmp_path / "runs" / experiment / (folder or f"s{seed}")
        place.mkdir(parents=True)
        record = {
            "schema": 1,
            "experiment": experiment,
            "run": place.name,
            "verb": "fit",
            "status": "finished",
            "seed": seed,
            "metrics": dict(metrics),
            "expected": [],
            "model": {"parameters": 1000, "gmacs": 0.5, "gflops": 1.0},
            "data": {"name": "MovingDigits", "train": 100, "test": 50},
            "steps": 60,
            "hours": 0.05,
            "device": "some CPU (2 threads)",
            "precision": "32-true",
            "git": {"commit": "0123456789abcdef", "dirty": False},
            "versions": {"torch": "2.15.0"},
            "finished": "2026-11-23T15:44:00Z",
            **results,
        }
        (place / "results.json").write_text(json.dumps(record))
        configured = {"model": {"init_args": {"net": {"class_path": experiment}}}, "data": {"batch_size": 32}}
        configured |= dict(config or {})
        (place / "config.yaml").write_text(yaml.safe_dump({"seed_everything": seed, **configured}))
        lines = [
            {"step": step, name: value} for name, values in (curve or {}).items() for step, value in values.items()
        ]
        (place / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return place

    return make
