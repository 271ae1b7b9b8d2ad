"""Our reader of tar shards against webdataset on the same shards, in one process: pairs a second, in turn, ratio printed.

    PYTHONPATH=. python benchmarks/clip_shards.py                            # drawn noise, 256 px JPEGs
    PYTHONPATH=. python benchmarks/clip_shards.py --images DATA              # JPEGs below a folder
    PYTHONPATH=. python benchmarks/clip_shards.py --images DATA --pairs 20000 --out clip_shards.json

The benchmark writes the shards with webdataset's own writer: an image, a caption and an object of JSON for each pair. Both
readers shuffle: ours over all pairs of `shuffle_shards` shards, webdataset's over shards and a buffer of 1,000 pairs.

Parts:
    encoded  image and caption as they are stored: what reading costs.
    decoded  uint8 arrays of Pillow and text: what training waits for.

Ratio: our pairs a second over theirs, so above 1.0 ours is faster. Ours reads the headers once, before training; how long
that took is printed, and not in the ratio. Neither has worker processes; files are in the disk's cache for both.
"""

import argparse
import contextlib
import io
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from PIL import Image
from timing import Bench, Run

from lightning_vl.cli import quiet
from lightning_vl.data.datasets.caption_shards import CaptionShards
from lightning_vl.run import device_name

Row = dict[str, Any]
SEED = 0
BUFFER = 1000  # pairs that webdataset mixes


def images(folder: Path | None, size: int) -> Iterator[bytes]:
    """Encoded JPEGs without end: those below a folder again and again, or drawn noise of so many px."""
    if folder is not None:
        files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
        if not files:
            raise SystemExit(f"there are no .jpg files below {folder}")
        for path in itertools.cycle(files):
            yield path.read_bytes()
    drawn = []
    for number in range(32):
        small = np.random.default_rng(number).integers(256, size=(16, 16, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC).save(file, "JPEG", quality=95)
        drawn.append(file.getvalue())
    yield from itertools.cycle(drawn)


def write_shards(folder: str, encoded: Iterator[bytes], pairs: int, in_shard: int) -> int:
    """Writes so many pairs. Gives the bytes of their images."""
    total = 0
    with webdataset.ShardWriter(f"{folder}/%05d.tar", maxcount=in_shard, verbose=0) as writer:
        for number in range(pairs):
            image = next(encoded)
            total += len(image)
            caption = f"picture number {number}"
            writer.write({"__key__": f"{number:09d}", "jpg": image, "txt": caption, "json": {"caption": caption}})
    return total


def ours(shards: CaptionShards, decode: bool) -> int:
    """An epoch. Gives its pairs, so that none is lost."""
    read = shards.read_in_order if decode else shards.encoded_in_order
    return sum(1 for index in range(shards.length) if read(SEED, 0, index)[0].captions)


def theirs(files: list[str], decode: bool) -> int:
    """An epoch. Gives its pairs."""
    data = webdataset.WebDataset(files, shardshuffle=len(files), seed=SEED).shuffle(BUFFER)
    if decode:
        data = data.decode("rgb8")
    return sum(1 for _ in data.to_tuple("jpg", "txt"))


def rows(bench: Bench, shards: CaptionShards, files: list[str], pairs: int) -> Iterator[Row]:
    """Both parts."""
    for part, decode in (("encoded", False), ("decoded", True)):

        def our(decode: bool = decode) -> None:
            assert ours(shards, decode) == shards.length

        def their(decode: bool = decode) -> None:
            assert theirs(files, decode) == pairs

        rivals: dict[str, Run] = {"ours": our, "theirs": their}
        times = bench.times(rivals)
        counts = {"ours": shards.length, "theirs": pairs}
        rates = {name: [counts[name] / seconds for seconds in times[name]] for name in rivals}
        ratios = [a / b for a, b in zip(rates["ours"], rates["theirs"], strict=True)]
        yield {
            "part": part,
            "ratio": statistics.median(ratios),
            "ratio_quartiles": statistics.quantiles(ratios)[::2] if len(ratios) > 1 else ratios * 2,
            "ours_pairs_per_second": statistics.median(rates["ours"]),
            "theirs_pairs_per_second": statistics.median(rates["theirs"]),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="a folder of JPEGs, subfolders too; drawn noise if none is given")
    parser.add_argument("--size", type=int, default=256, help="of drawn noise, px")
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--pairs-in-shard", type=int, default=250)
    parser.add_argument("--passes", type=int, default=5, help="timed passes of each")
    parser.add_argument("--out", type=Path, help="write a .json record too")
    arguments = parser.parse_args()
    quiet()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        os.environ["LIGHTNING_VL_CACHE"] = f"{folder}/cache"
        total = write_shards(
            folder, images(arguments.images, arguments.size), arguments.pairs, arguments.pairs_in_shard
        )
        files = sorted(map(str, Path(folder).glob("*.tar")))
        shards = CaptionShards(folder, held_out=1)
        load = os.getloadavg()[0]
        start = time.perf_counter()
        assert shards.length == arguments.pairs - 2  # one each for validation and test
        index = time.perf_counter() - start
        timed = list(rows(Bench(torch.device("cpu"), "fp32", arguments.passes), shards, files, arguments.pairs))
    about = {
        "device": device_name("cpu"),
        "images": "given" if arguments.images else f"drawn noise, {arguments.size} px",
        "bytes_of_an_image": round(total / arguments.pairs),
        "pairs": arguments.pairs,
        "shards": len(files),
        "index_pairs_per_second": round(arguments.pairs / index),
        "webdataset": webdataset.__version__,
        "load": [round(load, 1), round(os.getloadavg()[0], 1)],  # before and after, of the whole machine
    }
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    for row in timed:
        low, high = row["ratio_quartiles"]
        print(
            f"{row['part']:<8} ratio {row['ratio']:.2f} ({low:.2f} to {high:.2f}); pairs/s:"
            f" ours {row['ours_pairs_per_second']:,.0f}, theirs {row['theirs_pairs_per_second']:,.0f}"
        )
    if arguments.out:
        arguments.out.write_text(json.dumps({**about, "rows": timed}))


if __name__ == "__main__":
    main()
