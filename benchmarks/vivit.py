"""ViViT against its peers, in one process: medians after a warm-up, the rivals in turn, ratios printed.

    PYTHONPATH=. python benchmarks/vivit.py                                  # a small network, on whatever is here
    PYTHONPATH=. python benchmarks/vivit.py --size paper --parts peers       # B/16x2 on 32 x 224 x 224
    PYTHONPATH=. python benchmarks/vivit.py --json                           # for machines

Parts:
    peers    our Model 1 over transformers' ViViT of the same shape and weights: forward and training step, eager and
             compiled. Ratio: their time over ours, so 1.0 or more is at least as fast.
    loop     our task under Lightning's trainer, with our callbacks and logger, over a bare loop of the same module.
             Ratio: Lightning's time of a step over the bare loop's, so 1.0 is no overhead.
    loader   training clips a second from mp4 files: our loader over a plain PyAV loop that decodes whole videos.
    models   the five models: clips a second in training, runtime over Model 2's as in the paper's Table 2, arithmetic
             throughput over that of a large matrix product, compiled, and under FSDP on one device.
"""

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import av
import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from timing import Bench, Run
from torch import Tensor, nn
from torch.distributed import destroy_process_group, init_process_group
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils.data import DataLoader, IterableDataset
from transformers import VivitConfig, VivitForVideoClassification

from lightning_vl.cli import quiet
from lightning_vl.data.augmentation import TrainingTransform
from lightning_vl.data.datasets.video_folder import VideoFolder
from lightning_vl.data.sampling import StridedClip
from lightning_vl.data.stream import KeyedDataset, TrainingLoader, TrainingStream
from lightning_vl.loggers import MetricsFile
from lightning_vl.nn.blocks import PreNormBlock
from lightning_vl.nn.embeddings import TubeletEmbedding
from lightning_vl.optim import Constant
from lightning_vl.papers.vivit.convert import from_transformers
from lightning_vl.papers.vivit.data import TrainingClips, collate
from lightning_vl.papers.vivit.model import (
    AveragePool,
    FactorisedDotProduct,
    FactorisedEncoder,
    FactorisedSelfAttention,
    FactorisedSelfAttentionBlock,
    SpatioTemporal,
    ViViT,
)
from lightning_vl.papers.vivit.task import ViViTTask
from lightning_vl.progress import Progress
from lightning_vl.report.cost import static_cost
from lightning_vl.run import device_name
from lightning_vl.throughput import Throughput

Row = dict[str, Any]


class Size(NamedTuple):
    frames: int
    image_size: int
    tubelet: tuple[int, int, int]
    dim: int
    layers: int
    heads: int
    batch_size: int
    repeats: int


SIZES = {
    "tiny": Size(8, 32, (2, 8, 8), 64, 3, 4, batch_size=32, repeats=15),  # as experiments/vivit_*.yaml
    "small": Size(16, 64, (2, 16, 16), 192, 4, 4, batch_size=8, repeats=15),
    "paper": Size(32, 224, (2, 16, 16), 768, 12, 12, batch_size=8, repeats=10),
}
CLASSES = 400


@dataclass(frozen=True)
class ViViTBench(Bench):
    """All networks have this size."""

    size: Size

    def build(self, model: type[ViViT]) -> ViViT:
        torch.manual_seed(0)
        s = self.size
        embedding = TubeletEmbedding(s.frames, s.image_size, s.tubelet, s.dim)
        return model(embedding, s.layers, s.heads, 4 * s.dim, classes={"class": CLASSES}).to(self.device)

    def classify(self, net: nn.Module, logits: Callable[[Any], Tensor], video: Tensor, labels: Tensor) -> Run:
        """A training step."""
        return self.step(net, lambda: nn.functional.cross_entropy(logits(net(video)), labels))


def our_logits(output: Any) -> Tensor:
    return output.logits["class"]


def their_logits(output: Any) -> Tensor:
    return output.logits


def peers(bench: ViViTBench) -> Iterator[Row]:
    """Model 1 and transformers' ViViT with the same weights; the outputs are compared before the times."""
    s = bench.size
    config = VivitConfig(
        image_size=s.image_size,
        num_frames=s.frames,
        tubelet_size=list(s.tubelet),
        hidden_size=s.dim,
        num_hidden_layers=s.layers,
        num_attention_heads=s.heads,
        intermediate_size=4 * s.dim,
        num_labels=CLASSES,
    )
    theirs = VivitForVideoClassification(config).to(bench.device).eval()
    ours = bench.build(SpatioTemporal).eval()
    ours.load_state_dict(from_transformers(theirs.state_dict()))
    (video,) = ours.example_inputs(s.batch_size)
    labels = torch.randint(CLASSES, (s.batch_size,), device=bench.device)
    with torch.inference_mode():
        torch.testing.assert_close(our_logits(ours(video)), their_logits(theirs(video)), atol=1e-3, rtol=1e-3)

    for how in ("eager", "compiled"):
        if how == "compiled":
            ours.compile()
            theirs.compile()
        for mode in ("forward", "training step"):
            ours.train(mode != "forward")
            theirs.train(mode != "forward")
            if mode == "forward":
                rivals = {"ours": bench.forward(ours, video), "theirs": bench.forward(theirs, video)}
            else:
                rivals = {
                    "ours": bench.classify(ours, our_logits, video, labels),
                    "theirs": bench.classify(theirs, their_logits, video, labels),
                }
            times = bench.seconds(rivals)
            yield row(f"{mode}, {how}, over transformers", times["theirs"] / times["ours"], "1.0 or more", times)


class Endless(IterableDataset):
    """The same batch again and again, on the CPU as a loader gives it."""

    def __init__(self, batch: dict[str, Any]) -> None:
        self.batch = batch

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            yield dict(self.batch)


class Stopwatch(Callback):
    """Seconds a step, after some to warm up."""

    def __init__(self, bench: ViViTBench, warm_up: int) -> None:
        self.bench, self.warm_up = bench, warm_up
        self.steps = 0

    def on_train_batch_end(self, *args: Any) -> None:
        self.tick()

    def tick(self) -> None:
        self.steps += 1
        if self.steps == self.warm_up:
            self.bench.synchronise()
            self.start = time.perf_counter()

    def seconds(self) -> float:
        self.bench.synchronise()
        return (time.perf_counter() - self.start) / (self.steps - self.warm_up)


def loop(bench: ViViTBench) -> Iterator[Row]:
    """Blocks of steps under Lightning and in a bare loop, in turn, over the same network, batch and optimiser."""
    net = bench.build(SpatioTemporal).train()
    s = bench.size
    (video,) = net.example_inputs(s.batch_size)
    batch = {
        "video": video.cpu(),
        "labels": {"class": torch.randint(CLASSES, (s.batch_size,))},
        "id": [str(number) for number in range(s.batch_size)],
    }
    make_optimizer = partial(torch.optim.SGD, lr=1e-3, momentum=0.9)
    task = ViViTTask(net, make_optimizer, Constant())
    warm_up, steps, blocks = 5, 25, 7

    def under_lightning(folder: str) -> float:
        stopwatch, throughput = Stopwatch(bench, warm_up), Throughput()
        trainer = lightning.Trainer(
            accelerator=bench.device.type,
            devices=1,
            precision="bf16-mixed" if bench.precision == "bf16" else "32-true",
            max_steps=steps,
            gradient_clip_val=1.0,
            logger=MetricsFile(Path(folder)),
            callbacks=[throughput, Progress(throughput, task.unit), stopwatch],
            log_every_n_steps=20,
            enable_checkpointing=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        loader = DataLoader(Endless(batch), batch_size=None)
        loader.seconds_waited = 0.0  # what `Throughput` asks our own loaders for
        trainer.fit(task, loader)
        return stopwatch.seconds()

    def bare() -> float:
        net.to(bench.device)
        optimizer = make_optimizer(net.parameters())
        stopwatch = Stopwatch(bench, warm_up)
        for number, loaded in enumerate(DataLoader(Endless(batch), batch_size=None)):
            if number == steps:
                break
            loaded_video, labels = loaded["video"].to(bench.device), loaded["labels"]["class"].to(bench.device)
            with bench.autocast():
                loss = nn.functional.cross_entropy(our_logits(net(loaded_video)), labels)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            stopwatch.tick()
        return stopwatch.seconds()

    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        for _ in range(blocks):
            times["ours"].append(under_lightning(folder))
            times["theirs"].append(bare())
    medians = {name: statistics.median(values) for name, values in times.items()}
    yield row("step under Lightning, over a bare loop", medians["ours"] / medians["theirs"], "1.05 or less", medians)


def loader(bench: ViViTBench) -> Iterator[Row]:
    """32 frames at stride 2 from ten seconds of 340 x 256, cropped to 224, as for Kinetics."""
    sampling, transform = StridedClip(frames=32, stride=2), TrainingTransform(short_side=256, crop=224)
    for keyframes in (30, 250):
        with tempfile.TemporaryDirectory() as root:
            for split in ("train", "validation", "test"):
                for name in ("one", "other"):
                    folder = Path(root, split, name)
                    folder.mkdir(parents=True)
                    for number in range(3 if split == "train" else 1):
                        write_video(folder / f"{number}.mp4", keyframes, seed=number)
            source = VideoFolder(root)
            clips = TrainingClips(source, sampling, transform)
            files = sorted(Path(root, "train").rglob("*.mp4"))
            rng = np.random.default_rng(0)
            passes = range(3)

            def ours(clips: TrainingClips = clips, rng: np.random.Generator = rng) -> None:
                for index in range(len(clips)):
                    clips.sample(index, rng)

            def theirs(files: list[Path] = files, rng: np.random.Generator = rng) -> None:
                for file in files:
                    decode_whole(file, sampling, transform, rng)

            ours()
            theirs()
            times: dict[str, list[float]] = {"ours": [], "theirs": []}
            for _ in passes:
                for name, run in (("ours", ours), ("theirs", theirs)):
                    start = time.perf_counter()
                    run()
                    times[name].append((time.perf_counter() - start) / len(clips))
            medians = {name: statistics.median(values) for name, values in times.items()}
            yield row(
                f"clips/s over whole decoding, a keyframe every {keyframes} frames",
                medians["theirs"] / medians["ours"],
                "more than 1.0",
                medians,
                clips_per_second=1 / medians["ours"],
            )
            workers = min(2, os.cpu_count() or 1)
            stream = TrainingStream(len(clips), batch_size=len(clips), steps=4, seed=0)
            keyed = KeyedDataset(clips, lambda samples: dict(collate(samples)), seed=0, replace_corrupt=False)
            batches = iter(TrainingLoader(keyed, stream, workers, pin_memory=False))
            next(batches)
            start = time.perf_counter()
            counted = sum(len(batch["id"]) for batch in batches)
            seconds = (time.perf_counter() - start) / counted
            yield row(
                f"the same with {workers} workers",
                medians["theirs"] / seconds,
                "more than 1.0",
                {"ours": seconds, "theirs": medians["theirs"]},
                clips_per_second=1 / seconds,
            )


def write_video(path: Path, keyframes: int, seed: int) -> None:
    """Ten seconds of a textured background and a moving square, so that the encoder has something to do."""
    rng = np.random.default_rng(seed)
    background = np.kron(rng.integers(0, 255, (32, 43, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8))[:256, :340]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 340, 256, "yuv420p"
        stream.options = {"g": str(keyframes), "preset": "veryfast"}
        for number in range(300):
            image = np.roll(background, number, axis=1)
            image[100:140, number : number + 40] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def decode_whole(file: Path, sampling: StridedClip, transform: TrainingTransform, rng: np.random.Generator) -> Tensor:
    """The plain way: decode every frame of the video, keep those wanted; then the same augmentation as ours."""
    with av.open(str(file)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    chosen = np.stack([frames[index] for index in sampling.training(len(frames), rng)])
    return transform(torch.from_numpy(chosen).permute(0, 3, 1, 2), rng)


MODELS = (FactorisedEncoder, SpatioTemporal, FactorisedSelfAttention, FactorisedDotProduct, AveragePool)
PAPER_RUNTIME = {  # Table 2, milliseconds on a TPU-v3
    SpatioTemporal: 58.9,
    FactorisedEncoder: 17.4,
    FactorisedSelfAttention: 31.7,
    FactorisedDotProduct: 22.9,
    AveragePool: 17.3,
}


def models(bench: ViViTBench) -> Iterator[Row]:
    """Inference, the five in turn; then training of each: eager, compiled and sharded in turn."""
    s = bench.size
    nets = {model: bench.build(model) for model in MODELS}
    flops = {model: static_cost(net).gflops * 1e9 * s.batch_size for model, net in nets.items()}
    (video,) = nets[MODELS[0]].example_inputs(s.batch_size)
    labels = torch.randint(CLASSES, (s.batch_size,), device=bench.device)

    product_flops, product = matrix_product(bench)
    forwards = {model.__name__: bench.forward(net.eval(), video) for model, net in nets.items()}
    times = bench.seconds({**forwards, "product": product})
    base, peak = times[FactorisedEncoder.__name__], product_flops / times["product"]
    for model in MODELS:
        forward = times[model.__name__]
        yield row(
            f"{model.__name__}: forward, over FactorisedEncoder's",
            forward / base,
            f"paper {PAPER_RUNTIME[model] / PAPER_RUNTIME[FactorisedEncoder]:.2f}",
            {"ours": forward, "theirs": base},
            clips_per_second=s.batch_size / forward,
            utilisation=flops[model] / forward / peak,
        )

    for model in MODELS:
        net = nets.pop(model).train()
        memory = None
        if bench.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            bench.classify(net, our_logits, video, labels)()
            memory = torch.cuda.max_memory_allocated() / 2**30
        with sharded(bench, model) as fsdp:
            steps = {
                "eager": bench.classify(net, our_logits, video, labels),
                "compiled": bench.classify(torch.compile(net), our_logits, video, labels),
                "FSDP": bench.classify(fsdp, our_logits, video, labels),
            }
            times = bench.seconds({**steps, "product": product})
        peak = product_flops / times["product"]
        for how in steps:
            yield row(
                f"{model.__name__}: training step, {how}" + (", over eager" if how != "eager" else ""),
                times[how] / times["eager"],
                "1.0 or less" if how == "compiled" else "",
                {"ours": times[how], "theirs": times["eager"]},
                clips_per_second=s.batch_size / times[how],
                utilisation=3 * flops[model] / times[how] / peak,  # backward: twice the forward
                peak_memory_gib=memory if how == "eager" else None,
            )
        torch.compiler.reset()


def matrix_product(bench: ViViTBench) -> tuple[float, Callable[[], object]]:
    """Floating-point operations of a large matrix product, and the product: what the device gives in practice."""
    n = 8192 if bench.device.type == "cuda" else 1024
    dtype = torch.bfloat16 if bench.precision == "bf16" else torch.float32
    a, b = (torch.randn(n, n, device=bench.device, dtype=dtype) for _ in range(2))
    return 2.0 * n**3, lambda: a @ b


@contextlib.contextmanager
def sharded(bench: ViViTBench, model: type[ViViT]) -> Iterator[ViViT]:
    """The network under FSDP2, its blocks one by one, in a group of one."""
    cuda = bench.device.type == "cuda"
    with tempfile.TemporaryDirectory() as folder:
        init_process_group("nccl" if cuda else "gloo", init_method=f"file://{folder}/meet", rank=0, world_size=1)
        try:
            mesh = init_device_mesh(bench.device.type, (1,))
            policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16 if bench.precision == "bf16" else None)
            net = bench.build(model).train()
            for module in net.modules():
                if isinstance(module, PreNormBlock | FactorisedSelfAttentionBlock):
                    fully_shard(module, mesh=mesh, mp_policy=policy)
            yield fully_shard(net, mesh=mesh, mp_policy=policy)
        finally:
            destroy_process_group()


def row(name: str, ratio: float, aim: str, seconds: dict[str, float], **more: float | None) -> Row:
    return {
        "name": name,
        "ratio": ratio,
        "aim": aim,
        "ours_ms": 1e3 * seconds["ours"],
        "theirs_ms": 1e3 * seconds["theirs"],
        **more,
    }


def print_table(header: str, rows: list[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("what", "ratio", "aim", "ours ms", "theirs ms", "clips/s", "utilisation", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for each in rows:
        rate, use = each.get("clips_per_second"), each.get("utilisation")
        table.add_row(
            each["name"],
            f"{each['ratio']:.2f}",
            each["aim"],
            f"{each['ours_ms']:.1f}",
            f"{each['theirs_ms']:.1f}",
            "" if rate is None else f"{rate:.1f}",
            "" if use is None else f"{use:.0%}",
        )
    console = Console(width=140)
    console.print(header)
    console.print(table)


def main() -> None:
    parts: dict[str, Callable[[ViViTBench], Iterator[Row]]] = {
        "peers": peers,
        "loop": loop,
        "loader": loader,
        "models": models,
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=parts, default=["peers", "loop", "loader"])
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--batch-size", type=int, help="clips in a batch; the size has its own")
    parser.add_argument("--repeats", type=int, help="timed runs of each; the size has its own")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--threads", type=int, help="torch's threads on the CPU; all cores if not given")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    size = SIZES[arguments.size]
    size = size._replace(batch_size=arguments.batch_size or size.batch_size, repeats=arguments.repeats or size.repeats)
    quiet()
    torch.set_float32_matmul_precision("high")  # as the command does
    bench = ViViTBench(torch.device(arguments.device), arguments.precision, size.repeats, size)
    rows = [{"part": part, **each} for part in arguments.parts for each in parts[part](bench)]
    about = {
        "device": device_name(bench.device.type),
        "precision": bench.precision,
        "size": arguments.size,
        "batch_size": size.batch_size,
        "torch": torch.__version__,
    }
    if arguments.json:
        print(json.dumps({**about, "rows": rows}, indent=2))
    else:
        print_table(", ".join(f"{key} {value}" for key, value in about.items()), rows)


if __name__ == "__main__":
    main()
