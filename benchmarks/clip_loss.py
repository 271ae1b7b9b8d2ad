"""CLIP's loss by blocks against the full matrix: seconds of forward and backward together, and memory at the peak.

    PYTHONPATH=. python benchmarks/clip_loss.py                                     # 8,192 pairs
    PYTHONPATH=. python benchmarks/clip_loss.py --pairs 32768 --blocks 1024 4096    # the paper's batch

The full matrix is open_clip's ClipLoss: all N x N logits, once for each direction. A block is so many rows of ours.
Ratio: the time of the full matrix over that of blocks, turn by turn, so above 1.0 blocks are faster; the median of all
turns, with the quartiles. Memory is what tensors hold beyond the embeddings: on a GPU what torch's allocator says, on the CPU
the sum of what its profiler sees allocated and freed. All values must agree.
"""

import argparse
import json
import math
import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.loss import ClipLoss
from timing import Bench
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from lightning_vl.contrastive import InfoNCE
from lightning_vl.run import device_name

Row = dict[str, Any]


@dataclass(frozen=True)
class LossBench(Bench):
    """All losses have this batch.

    Attributes:
        pairs: N.
        dim: of an embedding.
    """

    pairs: int
    dim: int

    def run(self, block: int | None) -> Callable[[], float]:
        """What is timed: the value and all gradients, by blocks of so many rows, or (None) from open_clip's matrix."""
        torch.manual_seed(0)
        embeddings = [F.normalize(torch.randn(self.pairs, self.dim), dim=-1) for _ in range(2)]
        image, text, scale = (x.to(self.device).requires_grad_() for x in (*embeddings, torch.tensor(1 / 0.07)))

        def loss() -> Tensor:
            if block is None:
                return ClipLoss()(image, text, scale)
            return InfoNCE(block)(image, text, scale, None, across=False)

        def run() -> float:
            value = loss()
            value.backward()
            image.grad = text.grad = scale.grad = None
            return value.item()

        return run

    def peak(self, block: int | None) -> int:
        """Bytes held at the peak, the embeddings aside."""
        if self.device.type == "cuda":
            run = self.run(block)
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            run()
            return torch.cuda.max_memory_allocated() - before
        run = self.run(block)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
            run()
        events = (event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]")
        changes = sorted((event.start_ns(), event.nbytes()) for event in events)
        return max(accumulate(change for _, change in changes))


def rows_of(bench: LossBench, blocks: list[int]) -> list[Row]:
    """The full matrix, and blocks of each size."""
    rivals = {block: bench.run(block) for block in (None, *blocks)}
    values = {block: run() for block, run in rivals.items()}
    for block, value in values.items():
        assert math.isclose(value, values[None], rel_tol=1e-3), f"blocks of {block}: {value}, not {values[None]}"
    times = bench.times({str(block): run for block, run in rivals.items()})
    rows = []
    for block in rivals:
        ratios = [full / own for full, own in zip(times[str(None)], times[str(block)], strict=True)]
        rows.append(
            {
                "block": block,
                "ratio": statistics.median(ratios),
                "ratio_quartiles": statistics.quantiles(ratios)[::2] if len(ratios) > 1 else ratios * 2,
                "seconds": statistics.median(times[str(block)]),
                "peak_bytes": bench.peak(block),
            }
        )
    return rows


def print_table(header: str, rows: list[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("rows at once", "ratio", "quartiles", "ms", "peak MiB", "of the full matrix's", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for each in rows:
        low, high = each["ratio_quartiles"]
        table.add_row(
            "the full matrix" if each["block"] is None else f"{each['block']:,}",
            f"{each['ratio']:.2f}",
            f"{low:.2f} to {high:.2f}",
            f"{1e3 * each['seconds']:,.1f}",
            f"{each['peak_bytes'] / 2**20:,.0f}",
            f"{each['peak_bytes'] / rows[0]['peak_bytes']:.1%}",
        )
    console = Console(width=140)
    console.print(header)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=8192, help="of the global batch")
    parser.add_argument("--blocks", nargs="+", type=int, default=[256, 1024], help="rows held at once")
    parser.add_argument("--dim", type=int, default=512, help="of an embedding")
    parser.add_argument("--repeats", type=int, default=5, help="timed passes of each")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="torch's threads on the CPU; all cores if not given")
    parser.add_argument("--out", type=Path, help="write a .json record too")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.set_float32_matmul_precision("high")  # as the command does
    device = torch.device(arguments.device)
    about: Row = {
        "device": device_name(device.type),
        "pairs": arguments.pairs,
        "dim": arguments.dim,
        "torch": torch.__version__,
        "open_clip": open_clip.__version__,
        "load": [round(os.getloadavg()[0], 1)],
    }
    rows = rows_of(LossBench(device, "fp32", arguments.repeats, arguments.pairs, arguments.dim), arguments.blocks)
    about["load"].append(round(os.getloadavg()[0], 1))  # before and after, of the whole machine
    print_table(", ".join(f"{name} {value}" for name, value in about.items()), rows)
    if arguments.out:
        arguments.out.write_text(json.dumps({**about, "rows": rows}))


if __name__ == "__main__":
    main()
