"""CLIP against open_clip's with the same weights, in one process: turn by turn, ratios printed.

    PYTHONPATH=. python benchmarks/clip.py                                       # a tiny network, on whatever is here
    PYTHONPATH=. python benchmarks/clip.py --size B/32                           # the paper's
    PYTHONPATH=. python benchmarks/clip.py --texts captions.txt --out clip.json  # lengths of a file's captions; the record as a file

Texts:
    captions   lengths of captions: of the file, one a line; without one drawn around 13 tokens, from 6 to 40
    full       all of the whole context of 77 tokens
Of each, a training step: forward, loss, backward, AdamW. QuickGELU in both, as the paper's networks have it.

open_clip gets what its loader makes: images that are normalised already, texts padded to 77 tokens. Ours normalises within
the step, and gets the packed line. Before any timing losses of both must agree.
Ratio: their time over ours of one pass over the same batches, so above 1.0 ours is faster; the median of all turns, with
the quartiles. FLOP/s count what the paper's network needs: no padding, no token that follows the one attended from.
"""

import argparse
import json
import os
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import open_clip
import torch
from open_clip.loss import ClipLoss
from timing import Bench
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from lightning_vl.cli import quiet
from lightning_vl.contrastive import InfoNCE
from lightning_vl.data.byte_pair import ClipVocabulary
from lightning_vl.nn.packing import Packing, pack
from lightning_vl.papers.clip.convert import from_openai
from lightning_vl.papers.clip.model import CLIP
from lightning_vl.papers.clip.towers import TextTransformer, VisionTransformer
from lightning_vl.run import device_name

Row = dict[str, Any]
Loss = Callable[[], Tensor]
PRECISIONS = ("fp32", "bf16")
MODES = ("eager", "compiled")
TEXTS = ("captions", "full")
MIXED = 2  # batches of different lengths in a pass
CONTEXT = 77


class Size(NamedTuple):
    image_size: int
    patch_size: int
    image_dim: int
    text_dim: int
    layers: int
    embed_dim: int
    vocabulary_size: int
    batch_size: int
    repeats: int


SIZES = {  # heads are of 64 channels
    "tiny": Size(64, 16, 128, 128, 2, 64, vocabulary_size=4096, batch_size=16, repeats=11),
    "B/32": Size(224, 32, 768, 512, 12, 512, vocabulary_size=49408, batch_size=8, repeats=7),
}


class Batch(NamedTuple):
    """The same pairs for both.

    Attributes:
        image: (b, 3, h, w) in [0, 1].
        token_ids: (t,) of the packed line.
        packing: where the texts lie.
        lengths: (b,) tokens of each.
        normalised: (b, 3, h, w), what open_clip's network is called with.
        padded: (b, 77), likewise; 0 behind the end.
    """

    image: Tensor
    token_ids: Tensor
    packing: Packing
    lengths: Tensor
    normalised: Tensor
    padded: Tensor


def lengths_of_captions(number: int, captions: str | None) -> Tensor:
    """Start, a caption, end: of a file, or 6 and then geometric with a mean of 13 tokens, to 40."""
    if captions is None:
        return (6 - 7 * torch.rand(number).log()).long().clamp(max=40)
    tokenizer = ClipVocabulary().tokenizer(None)
    with open(captions, encoding="utf-8") as file:
        lengths = torch.tensor([len(tokenizer.sequence(line, CONTEXT)) for line in file if line.strip()])
    return lengths[torch.randint(len(lengths), (number,))]


@dataclass(frozen=True)
class ClipBench(Bench):
    """All networks have this size.

    Attributes:
        size: of the networks.
        batch_size: pairs.
        captions: a file that lengths of captions are taken from.
    """

    size: Size
    batch_size: int
    captions: str | None

    def networks(self) -> tuple[CLIP, nn.Module]:
        """Ours and open_clip's with the same weights."""
        torch.manual_seed(0)
        s = self.size
        theirs = open_clip.CLIP(
            s.embed_dim,
            {
                "image_size": s.image_size,
                "patch_size": s.patch_size,
                "width": s.image_dim,
                "layers": s.layers,
            },
            {
                "context_length": CONTEXT,
                "vocab_size": s.vocabulary_size,
                "width": s.text_dim,
                "heads": s.text_dim // 64,
                "layers": s.layers,
            },
            quick_gelu=True,
        )
        image = VisionTransformer(s.image_size, s.patch_size, s.image_dim, s.layers, s.image_dim // 64, s.embed_dim)
        text = TextTransformer(s.vocabulary_size, CONTEXT, s.text_dim, s.layers, s.text_dim // 64, s.embed_dim)
        ours = CLIP(image, text)
        ours.load_state_dict(from_openai(theirs.state_dict()))
        return ours.to(self.device), theirs.to(self.device)

    def batches(self, texts: str) -> list[Batch]:
        torch.manual_seed(1)
        if texts == "full":
            lengths = torch.full((1, self.batch_size), CONTEXT)
        else:
            lengths = lengths_of_captions(MIXED * self.batch_size, self.captions).view(MIXED, -1)
        return [self.batch(each) for each in lengths]

    def batch(self, lengths: Tensor) -> Batch:
        """Random pixels, and random tokens between a start and an end in texts of these lengths."""
        size, end = self.size.image_size, self.size.vocabulary_size - 1
        packing = pack(lengths)
        token_ids = torch.randint(1, end - 1, (int(lengths.sum()),))
        token_ids[packing.first], token_ids[packing.last] = end - 1, end
        inside = torch.arange(packing.longest) < lengths[:, None]  # (b, n)
        padded = F.pad(packing.pad(token_ids).where(inside, 0), (0, CONTEXT - packing.longest))
        images = torch.rand(len(lengths), 3, size, size)
        mean, std = (
            torch.tensor(each).view(3, 1, 1) for each in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
        )
        on = [each.to(self.device) for each in (images, token_ids, lengths, (images - mean) / std, padded)]
        moved = Packing(*(None if field is None else field.to(self.device) for field in packing))
        return Batch(*on[:2], moved, *on[2:])

    def multiply_adds(self, batches: list[Batch]) -> int:
        """Of the forward pass over the batches, as the paper's network needs them."""
        s, counted = self.size, 0
        patches = (s.image_size // s.patch_size) ** 2
        places = patches + 1
        per_image = patches * 3 * s.patch_size**2 * s.image_dim + s.image_dim * s.embed_dim
        per_image += s.layers * (12 * places * s.image_dim**2 + 2 * places**2 * s.image_dim)
        for batch in batches:
            seen = int((batch.lengths * (batch.lengths + 1) // 2).sum())  # pairs of query and key
            counted += len(batch.image) * (per_image + s.text_dim * s.embed_dim + len(batch.image) * s.embed_dim)
            counted += s.layers * (12 * len(batch.token_ids) * s.text_dim**2 + 2 * seen * s.text_dim)
        return counted


def our_loss(net: CLIP, batch: Batch) -> Tensor:
    return InfoNCE()(*net(batch.image, batch.token_ids, batch.packing), across=False)


def their_loss(net: nn.Module, batch: Batch) -> Tensor:
    return ClipLoss()(*net(batch.normalised, batch.padded))


def check(ours: list[Loss], theirs: list[Loss]) -> None:
    """The same losses, in whatever precision torch's matrix products have."""
    with torch.inference_mode():
        for our, their in zip(ours, theirs, strict=True):
            torch.testing.assert_close(our(), their(), atol=1e-3, rtol=1e-4)


def peers(bench: ClipBench, texts: str, modes: list[str]) -> Iterator[Row]:
    """The training step of both, in each mode."""
    batches = bench.batches(texts)
    pairs = sum(len(batch.image) for batch in batches)
    tokens = sum(len(batch.token_ids) for batch in batches)
    ours, theirs = bench.networks()
    losses: dict[str, list[Loss]] = {
        "ours": [lambda batch=batch: our_loss(ours, batch) for batch in batches],
        "theirs": [lambda batch=batch: their_loss(theirs, batch) for batch in batches],
    }
    ours.eval()
    theirs.eval()
    check(**losses)
    for how in modes:
        if how == "compiled":
            ours.compile()
            theirs.compile()
        steps = {}
        for name, net in (("ours", ours), ("theirs", theirs)):
            net.train()
            steps[name] = bench.steps(torch.optim.AdamW(net.parameters(), lr=1e-4, fused=True), losses[name])
        times = bench.times(steps)
        ratios = [their / our for our, their in zip(times["ours"], times["theirs"], strict=True)]
        seconds = {name: statistics.median(values) for name, values in times.items()}
        yield {
            "texts": texts,
            "mode": how,
            "precision": bench.precision,
            "ratio": statistics.median(ratios),
            "ratio_quartiles": statistics.quantiles(ratios)[::2] if len(ratios) > 1 else ratios * 2,
            "aim": 1.0,
            "ours_ms": 1e3 * seconds["ours"],
            "theirs_ms": 1e3 * seconds["theirs"],
            "padding": 1 - tokens / (CONTEXT * pairs),
            "pairs_per_second": pairs / seconds["ours"],
            "flops_per_second": 2 * 3 * bench.multiply_adds(batches) / seconds["ours"],
        }
    torch.compiler.reset()


def print_table(header: str, rows: list[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "training step", "padding", "ratio", "quartiles", "aim", "ours ms", "theirs ms", "pairs/s", "GFLOP/s", box=None
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for each in rows:
        low, high = each["ratio_quartiles"]
        table.add_row(
            f"{each['texts']}, {each['mode']}, {each['precision']}",
            f"{each['padding']:.0%}",
            f"{each['ratio']:.2f}",
            f"{low:.2f} to {high:.2f}",
            f"{each['aim']:.1f}",
            f"{each['ours_ms']:.1f}",
            f"{each['theirs_ms']:.1f}",
            f"{each['pairs_per_second']:,.1f}",
            f"{each['flops_per_second'] / 1e9:,.0f}",
        )
    console = Console(width=140)
    console.print(header)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--batches", nargs="+", choices=TEXTS, default=TEXTS, help="which texts")
    parser.add_argument("--texts", help="a file with a caption a line, for lengths of captions")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--batch-size", type=int, help="pairs in a batch; the size has its own")
    parser.add_argument("--repeats", type=int, help="timed passes of each; the size has its own")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="torch's threads on the CPU; all cores if not given")
    parser.add_argument("--out", type=Path, help="write a .json record too")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    quiet()
    torch.set_float32_matmul_precision("high")  # as the command does
    device, size = torch.device(arguments.device), SIZES[arguments.size]
    batch_size, repeats = arguments.batch_size or size.batch_size, arguments.repeats or size.repeats
    about: Row = {
        "device": device_name(device.type),
        "size": arguments.size,
        "batch_size": batch_size,
        "torch": torch.__version__,
        "open_clip": open_clip.__version__,
        "load": [round(os.getloadavg()[0], 1)],
    }
    rows = []
    for precision in arguments.precision:
        bench = ClipBench(device, precision, repeats, size, batch_size, arguments.texts)
        for texts in arguments.batches:
            rows += peers(bench, texts, arguments.modes)
    about["load"].append(round(os.getloadavg()[0], 1))  # before and after, of the whole machine
    print_table(", ".join(f"{name} {value}" for name, value in about.items()), rows)
    if arguments.out:
        arguments.out.write_text(
            json.dumps({**about, "captions": arguments.texts and Path(arguments.texts).name, "rows": rows})
        )


if __name__ == "__main__":
    main()
