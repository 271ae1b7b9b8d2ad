"""Starting a ViViT from other weights (Sec. 3.4), and Model 1 to and from transformers."""

import re
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

import lightning_vl.weights
from lightning_vl.errors import UserError
from lightning_vl.nn.embeddings import TubeletEmbedding
from lightning_vl.nn.positions import resize_positions, tile_positions
from lightning_vl.papers.vit import convert as vit
from lightning_vl.papers.vivit.model import AveragePool, FactorisedAttention, FactorisedSelfAttention, ViViT
from lightning_vl.weights import Weights, read_weights

TubeletInitialisation = Literal["random", "filter_inflation", "central_frame"]

# What an image model or another task does not have, and what this network builds anew.
HEAD: tuple[str, ...] = ("head.", "pre_logits.")
TEMPORAL = re.compile(r"temporal_|blocks\.\d+\.(attention|norm)_time\.")


@dataclass
class Report(vit.Report):
    """What became of every weight; what an image's becomes for a video beside it.

    Attributes:
        inflated: filters of an image made filters of tubelets.
        tiled: positions repeated for every time; they may be resized as well.
    """

    inflated: list[str] = field(default_factory=list)
    tiled: list[str] = field(default_factory=list)


class Initialisation(lightning_vl.weights.Initialisation):
    """Weights that a ViViT starts from; what does not fit is an error, never skipped.

    Args:
        path: local file, see :func:`lightning_vl.weights.read_weights`.
    """

    @abstractmethod
    def apply(self, net: ViViT) -> Report:
        """Load the weights into the network."""

    def _load(self, net: ViViT, weights: Mapping[str, Tensor], report: Report) -> None:
        """Load weights by the network's names; those absent must be in the report as fresh."""
        model = type(net).__name__
        own = net.state_dict()
        for name, tensor in weights.items():
            if name not in own:
                raise UserError(
                    f"{self.path} has {name}, which {model} does not have",
                    "start from weights of as many layers, or from another file",
                )
            if tensor.shape != own[name].shape:
                raise UserError(
                    f"{self.path} has {name} of {tuple(tensor.shape)}, {model} of {tuple(own[name].shape)}",
                    "start from weights of the same width, MLP and patch size",
                )
        if missing := [name for name in own if name not in weights and name not in report.fresh]:
            raise UserError(
                f"{self.path} lacks {missing[0]}, which {model} has",
                "start from weights of as many layers, or from another file",
            )
        if not own["head.weight"].is_meta:  # there, names and shapes are all that can be checked
            net.load_state_dict({**own, **weights})


class ImageInitialisation(Initialisation):
    """Start from an image ViT (Sec. 3.4): of timm, of transformers or one of ours.

    Spatial encoder, class token and embedding come from it, the positions are the image's at every time, resized for
    another grid. The head, a temporal encoder (Model 2) and the temporal attention (Model 3) stay as built. Models 3
    and 4 have no class token: the image's is dropped.

    Args:
        path: local file with the weights.
        tubelet: how a filter for images becomes one for tubelets: not at all, repeated over time and divided by the
            number of frames, or as the middle frame's among zeros. Uniform frame sampling takes it as it is.
    """

    def __init__(self, path: str, tubelet: TubeletInitialisation = "central_frame") -> None:
        super().__init__(path)
        self.tubelet = tubelet

    def apply(self, net: ViViT) -> Report:
        image = vit.to_vit(read_weights(self.path))
        own = net.state_dict()
        report = Report(self.path)

        unused = HEAD
        if self.tubelet == "random" and isinstance(net.embedding, TubeletEmbedding):
            unused += ("embedding.",)
        if image_name(net, "class_token") not in own:
            unused += ("class_token",)
        report.dropped += sorted(name for name in image if name.startswith(unused))
        weights = {image_name(net, name): image[name] for name in image if not name.startswith(unused)}
        may_be_fresh = unused if "class_token" in image else (*unused, image_name(net, "class_token"))
        report.fresh += [name for name in own if name.startswith(may_be_fresh) or TEMPORAL.search(name)]

        if isinstance(net.embedding, TubeletEmbedding) and "embedding.weight" in weights:
            inflate = inflate_filter if self.tubelet == "filter_inflation" else central_frame_filter
            weights["embedding.weight"] = inflate(weights["embedding.weight"], net.embedding.weight.shape[2])
            report.inflated.append("embedding.weight")
        positions = image_name(net, "positions")
        if positions in weights:
            weights[positions] = self._positions(net, weights[positions], "class_token" in image, report)
        changed = report.inflated + report.resized + report.tiled
        report.loaded += [name for name in own if name in weights and name not in changed]
        self._load(net, weights, report)
        return report

    def _positions(self, net: ViViT, positions: Tensor, class_row: bool, report: Report) -> Tensor:
        """The image's positions for the net: resized, tiled, with the class token's row where the net has one."""
        name = image_name(net, "positions")
        times, rows, columns = net.embedding.grid
        side = vit.square_side(positions.shape[1] - class_row, self.path)
        if (side, side) != (rows, columns):
            positions = resize_positions(positions, (side, side), (rows, columns))
            report.resized.append(name)
        row, patches = positions[:, : int(class_row)], positions[:, int(class_row) :]
        if not isinstance(net, AveragePool):  # nor the factorised encoder: their frames share one set of positions
            patches = tile_positions(patches, times)
            report.tiled.append(name)
        own = net.state_dict()
        wants_row = image_name(net, "class_token") in own
        if wants_row and not class_row:
            row = own[name][:, :1]
            report.fresh.append(f"{name}[class token]")
        if class_row and not wants_row:
            row = row[:, :0]
            report.dropped.append("positions[class token]")
        return torch.cat([row, patches], dim=1)


class VideoInitialisation(Initialisation):
    """Start from a ViViT of the same model and number of times: one of ours or, for Model 1, of transformers.

    Positions are resized over space for another crop. The head is dropped if it has another number of classes.

    Args:
        path: local file with the weights.
    """

    def apply(self, net: ViViT) -> Report:
        weights = read_weights(self.path)
        if any(key.startswith("vivit.") for key in weights):
            weights = from_transformers(weights)
        report = Report(self.path)
        own = net.state_dict()
        if "embedding.weight" in weights and weights["embedding.weight"].ndim < net.embedding.weight.ndim:
            raise UserError(f"{self.path} has filters for images, not for tubelets", "use ImageInitialisation for it")
        if "head.weight" in weights and weights["head.weight"].shape != own["head.weight"].shape:
            report.dropped += ["head.weight", "head.bias"]
            report.fresh += ["head.weight", "head.bias"]
            weights = {name: tensor for name, tensor in weights.items() if not name.startswith("head.")}
        for name in ("positions", "spatial_positions"):
            if name in weights and name in own and weights[name].shape[1] != own[name].shape[1]:
                weights[name] = self._resize(net, name, weights[name])
                report.resized.append(name)
        report.loaded += [name for name in own if name in weights and name not in report.resized]
        self._load(net, weights, report)
        return report

    def _resize(self, net: ViViT, name: str, positions: Tensor) -> Tensor:
        """Positions of another crop, at each time by themselves."""
        times, rows, columns = net.embedding.grid
        if name == "spatial_positions":
            times = 1
        class_row = int(name.replace("positions", "class_token") in net.state_dict())
        row, patches = positions[:, :class_row], positions[:, class_row:]
        if patches.shape[1] % times:
            raise UserError(
                f"{self.path} has positions of {patches.shape[1]} tokens, which are not {times} times of as many",
                "start from a ViViT with as many frames and the same tubelet",
            )
        side = vit.square_side(patches.shape[1] // times, self.path)
        resized = [resize_positions(one, (side, side), (rows, columns)) for one in patches.chunk(times, dim=1)]
        return torch.cat([row, *resized], dim=1)


def image_name(net: ViViT, name: str) -> str:
    """Where a network keeps what an image ViT calls ``name``."""
    if isinstance(net, AveragePool):  # and the factorised encoder, which extends it
        return f"spatial_{name}" if name.startswith(("class_token", "positions", "encoder.")) else name
    if isinstance(net, FactorisedAttention):
        name = name.removeprefix("encoder.")
    if isinstance(net, FactorisedSelfAttention):
        name = name.replace(".norm_attention.", ".norm_space.").replace(".attention.", ".attention_space.")
    return name


def inflate_filter(weight: Tensor, frames: int) -> Tensor:
    """Filter inflation: (d, c, h, w) to (d, c, t, h, w), every frame an equal part (Eq. 8)."""
    return weight.unsqueeze(2).expand(-1, -1, frames, -1, -1) / frames


def central_frame_filter(weight: Tensor, frames: int) -> Tensor:
    """Central frame: (d, c, h, w) to (d, c, t, h, w), zero but for frame floor(t / 2) (Eq. 9)."""
    inflated = weight.new_zeros(*weight.shape[:2], frames, *weight.shape[2:])
    inflated[:, :, frames // 2] = weight
    return inflated


def from_transformers(weights: Mapping[str, Tensor]) -> Weights:
    """A transformers ``VivitForVideoClassification``'s state dict in the names of :class:`SpatioTemporal`.

    Args:
        weights: by the names of files or of transformers 5 in memory.

    Raises:
        UserError: a tensor that Model 1 does not have, or a third of query, key and value that is missing.
    """
    return vit.from_transformers(weights, prefix="vivit.")


def to_transformers(weights: Mapping[str, Tensor]) -> Weights:
    """:class:`SpatioTemporal`'s state dict in the names of transformers' files: the inverse, bit for bit."""
    return vit.to_transformers(weights, prefix="vivit.")
