"""How long `compare` takes over a folder of hundreds of runs, and how large its page is.

    PYTHONPATH=. python benchmarks/compare_page.py --experiments 100 --seeds 3 --steps 20000

Writes the run folders into a temporary directory: configuration, record and a metrics file of a row every 20 steps, as `fit`
leaves them, with made-up numbers. No test holds it to a time.
"""

import argparse
import json
import math
import random
import tempfile
import time
from pathlib import Path

import yaml

from lightning_vl.report.compare import compare, write
from lightning_vl.report.results import find_runs

CONFIG = Path("experiments/vit_tiny.yaml")


def make_runs(root: Path, experiments: int, seeds: int, steps: int) -> None:
    """Run folders of made-up experiments that differ in width."""
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    rng = random.Random(0)
    for number in range(experiments):
        name, width = f"vit_width_{64 + number}", 64 + number
        for seed in range(seeds):
            folder = root / name / f"s{seed}"
            folder.mkdir(parents=True)
            config["seed_everything"] = seed
            config["model"]["init_args"]["net"]["init_args"]["dim"] = width
            (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
            top1 = 0.9 - math.exp(-width / 60) + rng.gauss(0, 0.01)
            with (folder / "metrics.jsonl").open("w", encoding="utf-8") as file:
                for step in range(20, steps + 1, 20):
                    speed = {name: rng.random() for name in ("train/samples_per_second", "train/data_wait")}
                    row = {"step": step, "train/loss": 2.3 / (1 + step / 500) + rng.gauss(0, 0.05), **speed}
                    file.write(json.dumps(row) + "\n")
                    if step % 200 == 0:
                        shown = {"val/top1": top1 * (1 - math.exp(-step / 2000)), "val/loss": 1 / step}
                        file.write(json.dumps({"step": step, **shown}) + "\n")
            record = {
                "schema": 1,
                "experiment": name,
                "run": folder.name,
                "verb": "fit",
                "status": "finished",
                "seed": seed,
                "metrics": {"test/top1": top1, "test/top5": min(1, top1 + 0.08), "test/loss": 1 - top1},
                "expected": [],
                "model": {"parameters": 4 * width**2, "gmacs": width**2 / 1e6, "gflops": 2 * width**2 / 1e6},
                "data": {"name": "ScatteredDigits", "train": 5000, "test": 1000},
                "steps": steps,
                "hours": 0.1,
                "git": {"commit": "0" * 40, "dirty": False},
                "versions": {},
                "finished": "2026-11-28T00:00:00Z",
            }
            (folder / "results.json").write_text(json.dumps(record), encoding="utf-8")


def main() -> None:
    """Makes the runs and prints what reading, comparing and writing took."""
    parser = argparse.ArgumentParser(description="Time compare over many runs.")
    parser.add_argument("--experiments", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--out", type=Path, help="keep the report here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary, "runs")
        make_runs(root, arguments.experiments, arguments.seeds, arguments.steps)
        start = time.process_time()
        runs, left_out = find_runs([root])
        read = time.process_time()
        comparison = compare(runs, left_out)
        compared = time.process_time()
        paths = write(comparison, arguments.out or Path(temporary, "report"))
        end = time.process_time()
        print(f"{len(runs)} runs of {arguments.experiments} experiments, {arguments.steps} steps each")
        print(f"processor: read {read - start:.1f} s, compare {compared - read:.1f} s, write {end - compared:.1f} s")
        for path in paths:
            print(f"{path.name:16s}{path.stat().st_size / 1e6:8.2f} MB")


if __name__ == "__main__":
    main()
