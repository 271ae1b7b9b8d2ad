"""What weights and attention show: the numbers behind the analyses of ViT, Fig. 6, 7 and 11, and of BERT's heads."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from math import hypot
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from lightning_vl.nn.attention import Attention, PackedAttention
from lightning_vl.nn.packing import Packing

Grid = tuple[int, int]  # rows and columns of the patches


def attention_weights(attention: Attention, x: Tensor, packing: Packing | None = None) -> Tensor:
    """The softmax that the module computes within its fused kernel, dropout aside.

    Attention is linear in the values, so that attending to the unit vectors gives the weights themselves, and with
    them whatever the module adds to the logits or hides.

    Args:
        attention: in evaluation mode.
        x: its input, (b, n, d), or the line (t, d) of a `PackedAttention`.
        packing: of the line.

    Returns:
        (b, h, n, n): query by key, each row adding up to 1. Rows of padding mean nothing.
    """
    projected = attention.query_key_value(x)
    if packing is not None:
        projected = packing.pad(projected)
    query, key, _ = rearrange(projected, "... n (three h c) -> three (...) h n c", three=3, h=attention.heads)
    unit_vectors = torch.eye(query.shape[-2], dtype=query.dtype, device=query.device).expand(*query.shape[:2], -1, -1)
    if packing is not None:
        assert isinstance(attention, PackedAttention)
        return attention.attend(query, key, unit_vectors, packing.mask)
    return attention.attend(query, key, unit_vectors)


def of_layers(net: nn.Module, inputs: Tensor | tuple[Any, ...], measure: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """What `measure` makes of each layer's attention weights, (b, h, n, n), from the first layer on.

    Args:
        net: a network with `Attention` modules, in evaluation mode.
        inputs: a batch of its input; a tuple where it takes several.
        measure: is called while the network computes, so that only one layer's weights are held at a time.
    """
    measured: list[Tensor] = []

    def look(attention: nn.Module, given: tuple[Any, ...]) -> None:
        assert isinstance(attention, Attention)
        measured.append(measure(attention_weights(attention, *given)))

    hooks = [module.register_forward_pre_hook(look) for module in net.modules() if isinstance(module, Attention)]
    try:
        with torch.no_grad():
            net(*inputs) if isinstance(inputs, tuple) else net(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return measured


class Habits(NamedTuple):
    """Where heads look in a text, as means over its tokens (Clark et al., 2019, Sec. 3).

    Attributes:
        first: share of attention on the first token, [CLS].
        separator: on all [SEP] together.
        previous: on the token before; the first token, which has none, is not counted.
        itself: on the token itself.
        next: on the token after; the last token, which has none, is not counted.
        distance: mean distance in tokens, weighted by attention.
    """

    first: Tensor
    separator: Tensor
    previous: Tensor
    itself: Tensor
    next: Tensor
    distance: Tensor


def habits(weights: Tensor, separators: Tensor) -> Habits:
    """What is usual for each head in one text.

    Args:
        weights: (h, n, n), query by key; n at least 2.
        separators: (n,) True at every [SEP].

    Returns:
        (h,) each.
    """
    places = torch.arange(weights.shape[-1], device=weights.device)
    return Habits(
        first=weights[..., 0].mean(-1),
        separator=weights[..., separators].sum(-1).mean(-1),
        previous=weights.diagonal(-1, -2, -1).mean(-1),
        itself=weights.diagonal(0, -2, -1).mean(-1),
        next=weights.diagonal(1, -2, -1).mean(-1),
        distance=(weights * (places - places[:, None]).abs()).sum(-1).mean(-1),
    )


def pixel_distances(grid: Grid, patch_size: int) -> Tensor:
    """Euclidean distance between the centres of any two patches, in pixels: (s, s)."""
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    centres = patch_size * torch.stack([rows.flatten(), columns.flatten()], dim=-1).float()  # (s, 2)
    return torch.linalg.vector_norm(centres[:, None] - centres, dim=-1)  # not cdist, which rounds in large grids


def mean_distance(weights: Tensor, distances: Tensor) -> Tensor:
    """How far each head looks: sum over keys of weight times distance, mean over queries.

    The paper does not say what becomes of the class token. Here it is left out, as a query and as a key, and the rows
    are divided by what remains of them; a query that sees nothing but the class token is not counted.

    Args:
        weights: (b, h, n, n) with n = s, or s + 1 for the class token, which comes first.
        distances: between patches, in pixels, (s, s).

    Returns:
        Pixels, (b, h).
    """
    ahead = weights.shape[-1] - len(distances)
    among_patches = weights[..., ahead:, ahead:]
    among_patches = among_patches / among_patches.sum(-1, keepdim=True)
    return (among_patches * distances).sum(-1).nanmean(-1)


def attention_distance(net: nn.Module, batches: Iterable[Tensor], grid: Grid, patch_size: int) -> Tensor:
    """Mean attention distance of each head, averaged over images (ViT, Fig. 7 right and Fig. 11).

    Args:
        net: a network with `Attention` modules over patches of images, in evaluation mode.
        batches: images as it takes them.
        grid: rows and columns of its patches.
        patch_size: height and width of a patch, in pixels.

    Returns:
        Pixels, (layers, heads).
    """
    of_batches = []
    for images in batches:
        distances = pixel_distances(grid, patch_size).to(images.device)
        layers = of_layers(net, images, partial(mean_distance, distances=distances))
        of_batches.append(torch.stack(layers))  # (layers, b, heads)
    return torch.cat(of_batches, dim=1).nanmean(1)


def uniform_distance(grid: Grid, patch_size: int) -> float:
    """The mean distance of a head that looks at all patches alike, in pixels.

    (rows - |y|) (columns - |x|) of all pairs of patches are (y, x) patches apart.
    """
    rows, columns = grid
    apart = [
        (rows - abs(y)) * (columns - abs(x)) * hypot(y, x)
        for y in range(1 - rows, rows)
        for x in range(1 - columns, columns)
    ]
    return patch_size * sum(apart) / (rows * columns) ** 2


def rollout(layers: Sequence[Tensor]) -> Tensor:
    """Attention roll-out (Abnar & Zuidema, 2020): how much of each input token is in each output token.

    Args:
        layers: attention averaged over the heads, (b, n, n), from the first layer on. Half of a token is what attention
            gives, the other half comes by the residual connection.

    Returns:
        (b, n, n): output by input token, each row adding up to 1.
    """
    identity = torch.eye(layers[0].shape[-1], dtype=layers[0].dtype, device=layers[0].device)
    product = identity.expand_as(layers[0])
    for attention in layers:
        mixed = 0.5 * attention + 0.5 * identity
        product = (mixed / mixed.sum(-1, keepdim=True)) @ product
    return product


def rollout_map(net: nn.Module, images: Tensor, grid: Grid) -> Tensor:
    """Each patch's share in what is classified, by roll-out over all layers (ViT, Fig. 6).

    What is classified is the class token or, in a network without one, the mean over the patches' rows. The class
    token's share in itself is left out, and what remains adds up to 1.

    Args:
        net: a network with `Attention` modules over patches of images, in evaluation mode.
        images: (b, 3, h, w) as it takes them.
        grid: rows and columns of its patches.

    Returns:
        (b, rows, columns).
    """
    product = rollout(of_layers(net, images, lambda weights: weights.mean(1)))
    ahead = product.shape[-1] - grid[0] * grid[1]
    row = product[:, 0] if ahead else product.mean(1)
    patches = row[:, ahead:]
    patches = patches / patches.sum(-1, keepdim=True)
    return rearrange(patches, "b (rows columns) -> b rows columns", rows=grid[0])


def position_similarity(positions: Tensor, grid: Grid) -> Tensor:
    """Cosine similarity of each patch's position embedding with every other's (ViT, Fig. 7 centre).

    Args:
        positions: (1, n, d) with n = s, or s + 1 for the class token, whose row comes first and is left out.
        grid: rows and columns of the patches.

    Returns:
        (rows, columns, rows, columns): of one patch with another.
    """
    ahead = positions.shape[1] - grid[0] * grid[1]
    directions = nn.functional.normalize(positions[0, ahead:].double(), dim=-1)
    return rearrange(directions @ directions.T, "(r c) (r2 c2) -> r c r2 c2", r=grid[0], r2=grid[0])


class Filters(NamedTuple):
    """Principal components of a patch embedding, the first explaining most.

    Attributes:
        components: of length 1 each, (k, 3, p, p).
        variance: share of the filters' variance that each explains, (k,).
    """

    components: np.ndarray
    variance: np.ndarray


def principal_filters(weight: Tensor, components: int) -> Filters:
    """The first principal components of the d filters of a patch embedding (ViT, Fig. 7 left).

    Args:
        weight: (d, 3, p, p).
        components: how many, k; no more than min(d, 3 p p).
    """
    from sklearn.decomposition import PCA

    filters = weight.detach().cpu().double().numpy()
    # all of them exactly: the solver that PCA takes for large filters draws random numbers
    found = PCA(components, svd_solver="full").fit(filters.reshape(len(filters), -1))
    return Filters(found.components_.reshape(-1, *filters.shape[1:]), found.explained_variance_ratio_)
