"""ViT against timm's of the same sizes, in one process: medians after a warm-up, the rivals in turn, ratios printed.

    PYTHONPATH=. python benchmarks/vit.py                                     # a tiny network in both precisions, on whatever is here
    PYTHONPATH=. python benchmarks/vit.py --size base                         # B/16 at 224 px
    PYTHONPATH=. python benchmarks/vit.py --json                              # for machines

Forward and training step, eager and compiled, in float32 and under bfloat16 autocast. Ratio: their time over ours, so
1.0 or more is at least as fast. Before any timing the two have the same weights and must give the same logits.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from timing import Bench, Run
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from lightning_vl.cli import quiet
from lightning_vl.papers.vit.convert import from_timm
from lightning_vl.papers.vit.model import ViT
from lightning_vl.run import device_name

Row = dict[str, Any]
PRECISIONS = ("fp32", "bf16")
MODES = ("eager", "compiled")


class Size(NamedTuple):
    image_size: int
    patch_size: int
    dim: int
    layers: int
    heads: int
    batch_size: int
    repeats: int


SIZES = {
    "tiny": Size(32, 4, 96, 4, 3, batch_size=8, repeats=21),
    "small": Size(224, 16, 384, 12, 6, batch_size=4, repeats=11),
    "base": Size(224, 16, 768, 12, 12, batch_size=4, repeats=11),
}
CLASSES = 1000


@dataclass(frozen=True)
class ViTBench(Bench):
    """All networks have this size."""

    size: Size

    def pair(self) -> tuple[ViT, VisionTransformer]:
        """Ours and timm's with the same weights."""
        torch.manual_seed(0)
        s = self.size
        theirs = VisionTransformer(
            img_size=s.image_size,
            patch_size=s.patch_size,
            embed_dim=s.dim,
            depth=s.layers,
            num_heads=s.heads,
            num_classes=CLASSES,
        )
        ours = ViT(s.image_size, s.patch_size, s.dim, s.layers, s.heads, 4 * s.dim, CLASSES, gelu_approximation="none")
        ours.load_state_dict(from_timm(theirs.state_dict()))
        return ours.to(self.device), theirs.to(self.device)

    def run(self, what: str, net: nn.Module, images: Tensor, labels: Tensor) -> Run:
        """What is timed of a network."""
        if what == "forward":
            return self.forward(net, images)
        return self.step(net, lambda: nn.functional.cross_entropy(logits(net(images)), labels))


def logits(output: Any) -> Tensor:
    """Ours gives features beside them."""
    return output if isinstance(output, Tensor) else output.logits


def peers(bench: ViTBench, modes: list[str]) -> Iterator[Row]:
    """Forward and training step of both, in each mode."""
    ours, theirs = bench.pair()
    (images,) = ours.example_inputs(bench.size.batch_size)
    labels = torch.randint(CLASSES, (len(images),), device=bench.device)
    with torch.inference_mode():
        torch.testing.assert_close(ours.eval()(images).logits, theirs.eval()(images), atol=1e-3, rtol=1e-3)
    for how in modes:
        if how == "compiled":
            ours.compile()
            theirs.compile()
        for what in ("forward", "training step"):
            ours.train(what != "forward")
            theirs.train(what != "forward")
            times = bench.seconds(
                {name: bench.run(what, net, images, labels) for name, net in (("ours", ours), ("theirs", theirs))}
            )
            yield {
                "name": f"{what}, {how}, {bench.precision}",
                "ratio": times["theirs"] / times["ours"],
                "ours_ms": 1e3 * times["ours"],
                "theirs_ms": 1e3 * times["theirs"],
                "images_per_second": len(images) / times["ours"],
            }
    torch.compiler.reset()


def print_table(header: str, rows: list[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("what", "ratio", "ours ms", "timm ms", "images/s", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for each in rows:
        numbers = (each["ours_ms"], each["theirs_ms"], each["images_per_second"])
        table.add_row(each["name"], f"{each['ratio']:.2f}", *(f"{number:.1f}" for number in numbers))
    console = Console(width=120)
    console.print(header)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--batch-size", type=int, help="images in a batch; the size has its own")
    parser.add_argument("--repeats", type=int, help="timed runs of each; the size has its own")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="torch's threads on the CPU; all cores if not given")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    size = SIZES[arguments.size]
    size = size._replace(batch_size=arguments.batch_size or size.batch_size, repeats=arguments.repeats or size.repeats)
    quiet()
    torch.set_float32_matmul_precision("high")  # as the command does
    device = torch.device(arguments.device)
    benches = [ViTBench(device, precision, size.repeats, size) for precision in arguments.precision]
    rows = [row for bench in benches for row in peers(bench, arguments.modes)]
    about = {
        "device": device_name(device.type),
        "size": arguments.size,
        "batch_size": size.batch_size,
        "torch": torch.__version__,
    }
    if arguments.json:
        print(json.dumps({**about, "rows": rows}))
    else:
        print_table(", ".join(f"{name} {value}" for name, value in about.items()), rows)


if __name__ == "__main__":
    main()
