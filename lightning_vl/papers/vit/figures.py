"""What a ViT has learned, as pictures with the numbers drawn in them: figures of ``python -m lightning_vl figure``."""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from lightning_vl.errors import CorruptSample, UserError
from lightning_vl.report.drawing import Drawing, add_caption, add_figure, blank, run_folder
from lightning_vl.run import CONFIG

if TYPE_CHECKING:  # the command's help needs none of them
    from torch import Tensor

    from lightning_vl.papers.vit.model import ViT

BATCH = 16  # images at once: what a layer's weights of ViT-L at 384 px take in memory
COLUMNS = 7  # of tiles in the picture of the filters
NAME_LENGTH = 24  # of an image in its title
TICKS = 10  # at most so many patches of a row are numbered

Item = TypeVar("Item")


class Pictures(NamedTuple):
    """Images at a network's size.

    Attributes:
        names: of the images.
        pixels: uint8 (b, 3, size, size).
    """

    names: list[str]
    pixels: "Tensor"


# -- the figures ------------------------------------------------------------------------------------------------------------


def attention_distance(net: "ViT", pictures: Pictures) -> Drawing:
    """Mean attention distance of each head over depth, beside that of uniform attention (ViT, Fig. 7 right, Fig. 11)."""
    from lightning_vl.evaluation import attention
    from lightning_vl.report.figure import COLOURS, GREY, apart

    grid, patch_size = net.embedding.grid, _patch_size(net)
    distances = attention.attention_distance(net, _batches(net, pictures), grid, patch_size).cpu().numpy()
    uniform = attention.uniform_distance(grid, patch_size)
    layers, heads = distances.shape
    depth = np.arange(1, layers + 1)

    figure = blank(6.4, 4.6)
    axes = figure.subplots()
    axes.scatter(np.repeat(depth, heads), distances.ravel(), s=26, color=COLOURS[0], alpha=0.7, linewidths=0)
    mean = distances.mean(1)
    axes.plot(depth, mean, color=COLOURS[1], linewidth=1.6)
    axes.axhline(uniform, color=GREY, linewidth=1.2, linestyle="--", zorder=0)
    top = 1.12 * max(uniform, float(distances.max()))
    axes.set_ylim(0, top)
    axes.set_xlim(0.5, layers + 0.5)
    named = sorted(
        [(float(mean[-1]), "mean of\nthe heads", COLOURS[1]), (uniform, "uniform\nattention", GREY)],
        key=lambda label: label[0],
    )
    heights = apart([height for height, _, _ in named], gap=0.1 * top, low=0.05 * top, high=0.95 * top)
    for (_, text, colour), height in zip(named, heights, strict=True):
        axes.annotate(
            text,
            (1.02, height),
            xycoords=axes.get_yaxis_transform(),
            color=colour,
            fontsize=9,
            va="center",
            annotation_clip=False,
        )
    axes.set_xticks([layer for layer in depth if layers <= 2 * TICKS or layer % 2 == 0])
    axes.set_title("How far each head looks", loc="left", fontsize=11)
    axes.set_xlabel("depth (layer)")
    axes.set_ylabel("mean attention distance (px)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    caption = f"A dot is a head: mean over {_count(len(pictures.names), 'image')} of {net.image_size} px, "
    caption += f"patches of {patch_size} px."
    if net.class_token is not None:
        caption += "\nThe class token is left out, and each row of what remains divided by its sum."
    add_caption(figure, caption)
    rows = [(layer + 1, head + 1, distances[layer, head], uniform) for layer in range(layers) for head in range(heads)]
    return Drawing(figure, ("layer", "head", "distance_px", "uniform_px"), rows)


def rollout(net: "ViT", pictures: Pictures) -> Drawing:
    """Images beside what of them attention brings to the classifier, by attention roll-out (ViT, Fig. 6)."""
    import torch

    from lightning_vl.data.image_augmentation import resize
    from lightning_vl.evaluation.attention import rollout_map

    grid, size = net.embedding.grid, pictures.pixels.shape[-1]
    maps = torch.cat([rollout_map(net, batch, grid) for batch in _batches(net, pictures)]).cpu()

    figure = blank(6.6, 0.9 + 2.1 * len(maps))
    axes = figure.subplots(len(maps), 3, squeeze=False)
    uniform = 1 / (grid[0] * grid[1])
    least, most = float(maps.min()) / uniform, float(maps.max()) / uniform
    for row, (name, image, share) in enumerate(zip(pictures.names, pictures.pixels, maps, strict=True)):
        seen = image.permute(1, 2, 0).numpy() / 255  # (size, size, 3)
        brightness = resize(share[None] / share.max(), size)[0, :, :, None].numpy()
        axes[row, 0].imshow(seen)
        axes[row, 1].imshow(seen * brightness)
        drawn = axes[row, 2].imshow(share.numpy() / uniform, vmin=least, vmax=most, cmap="viridis")
        axes[row, 0].set_title(_shortened(name), fontsize=9, loc="left")
    axes[0, 1].set_title("darkened by roll-out", fontsize=9, loc="left")
    axes[0, 2].set_title("roll-out by patch", fontsize=9, loc="left")
    for panel in axes.flat:
        panel.set_axis_off()
    bar = figure.colorbar(drawn, ax=axes[:, 2].tolist(), location="right", shrink=min(1.0, 2 / len(maps)))
    bar.set_label("share of a patch (1: uniform)", fontsize=9)
    bar.outline.set_visible(False)
    figure.suptitle("What attention gathers from the image", x=0.01, ha="left", fontsize=11)
    of = "the mean of the patches' rows (no class token)" if net.class_token is None else "the class token's row"
    add_caption(
        figure,
        f"Mean of the heads, mixed half and half with the residual, multiplied through {len(net.encoder.blocks)} layers:\n"
        f"{of}. The largest share is as bright as the image.",
    )
    rows = [
        (name, row + 1, column + 1, value)
        for name, share in zip(pictures.names, maps, strict=True)
        for (row, column), value in np.ndenumerate(share.numpy())
    ]
    return Drawing(figure, ("image", "row", "column", "share"), rows)


def position_similarity(net: "ViT") -> Drawing:
    """Cosine similarity of the patches' position embeddings, a tile a patch (ViT, Fig. 7 centre).

    Raises:
        UserError: nothing is added to the patches that would say where they are.
    """
    from lightning_vl.evaluation.attention import position_similarity as similarity_of

    positions = net.position_embedding()
    if positions is None:
        raise UserError(
            "this ViT has no position embeddings that could be compared: none, or relative ones",
            "give the weights of one that adds positions to its patches",
        )
    rows, columns = net.embedding.grid
    similarity = similarity_of(positions, (rows, columns)).detach().cpu().numpy()

    gap = max(1, round(0.1 * columns))
    picture = _tiled(list(similarity.reshape(-1, rows, columns)), columns, gap, fill=np.nan)
    side = min(9.0, max(4.4, 0.5 * columns))
    figure = blank(side + 1.0, side * rows / columns + 0.6)
    axes = figure.subplots()
    drawn = axes.imshow(picture, vmin=-1, vmax=1, cmap="viridis", interpolation="nearest")
    for axis, count, tile in ((axes.xaxis, columns, columns), (axes.yaxis, rows, rows)):
        numbers = range(0, count, -(-count // TICKS))
        axis.set_ticks([number * (tile + gap) + (tile - 1) / 2 for number in numbers], [str(n + 1) for n in numbers])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("column of the patch")
    axes.set_ylabel("row of the patch")
    axes.set_title("Similarity of position embeddings", loc="left", fontsize=11)
    bar = figure.colorbar(drawn, ax=axes, shrink=0.8)
    bar.set_label("cosine similarity")
    bar.outline.set_visible(False)
    caption = "A tile shows how alike one patch's embedding is to each patch's."
    add_caption(figure, caption + ("" if net.class_token is None else "\nThe class token's is left out."))
    table = [(*(index + 1 for index in place), value) for place, value in np.ndenumerate(similarity)]
    return Drawing(figure, ("row", "column", "other_row", "other_column", "cosine"), table)


def filters(net: "ViT", components: int) -> Drawing:
    """The first principal components of the patch embedding's filters in colour (ViT, Fig. 7 left).

    Raises:
        UserError: the patch embedding does not have so many, or is one of a hybrid.
    """
    from lightning_vl.evaluation.attention import principal_filters

    weight = net.embedding.weight
    if net.embedding.stem is not None:
        raise UserError(
            f"this ViT is a hybrid: its filters see {weight.shape[1]} channels of a ResNet, not colours",
            "give the weights of one that takes its patches of the image",
        )
    possible = min(len(weight), weight[0].numel())
    if not 1 <= components <= possible:
        raise UserError(
            f"the filters have {possible} principal components, not {components}",
            f"give --components from 1 to {possible}",
        )
    found = principal_filters(weight, components)

    # each by itself, 0 mid-grey: their lengths are all 1, and their signs mean nothing
    largest = np.abs(found.components).max(axis=(1, 2, 3), keepdims=True)
    tiles = (0.5 + 0.5 * found.components / largest).transpose(0, 2, 3, 1)  # (k, p, p, 3)
    columns = min(COLUMNS, components)
    picture = _tiled(list(tiles), columns, gap=max(1, round(0.08 * tiles.shape[1])), fill=1.0)
    figure = blank(max(4.4, 0.8 * columns), 0.9 + 0.8 * -(-components // columns))
    axes = figure.subplots()
    axes.imshow(picture, interpolation="nearest")
    axes.set_axis_off()
    axes.set_title(f"First {components} principal components of the patch filters", loc="left", fontsize=11)
    patch = f"{tiles.shape[1]} x {tiles.shape[2]} px"
    add_caption(
        figure,
        f"{len(weight)} filters of {patch}, whose variance these explain to {100 * found.variance.sum():.0f} %; in rows,\n"
        "the first explains most. Each is scaled by itself: grey is 0.",
    )
    rows = [
        (component + 1, found.variance[component], "RGB"[channel], row + 1, column + 1, value)
        for (component, channel, row, column), value in np.ndenumerate(found.components)
    ]
    return Drawing(figure, ("component", "variance", "channel", "row", "column", "value"), rows)


# -- the command ------------------------------------------------------------------------------------------------------------


def add_figures(figures: Any) -> None:
    """The figures of ViT, to argparse's subparsers."""

    def add(name: str, text: str, draw: Callable[["ViT", argparse.Namespace], Drawing]) -> argparse.ArgumentParser:
        return add_figure(figures, name, text, "a ViT", lambda given: draw(_network(given.weights), given))

    def add_images(figure: argparse.ArgumentParser, number: int) -> None:
        figure.add_argument(
            "--images",
            nargs="+",
            metavar="FOLDER_OR_FILE",
            help="images, and folders of images (default: the test set of the checkpoint's experiment)",
        )
        figure.add_argument(
            "--number", type=int, default=number, help=f"how many of them, evenly spread (default: {number})"
        )

    distance = add(
        "attention_distance",
        "how far each head looks, over depth",
        lambda net, arguments: attention_distance(net, _pictures(net, arguments)),
    )
    add_images(distance, 128)
    roll = add(
        "rollout",
        "what attention gathers from images",
        lambda net, arguments: rollout(net, _pictures(net, arguments)),
    )
    add_images(roll, 4)
    add(
        "position_similarity",
        "how alike the patches' position embeddings are",
        lambda net, arguments: position_similarity(net),
    )
    pca = add(
        "filters",
        "the principal components of the patch filters",
        lambda net, arguments: filters(net, arguments.components),
    )
    pca.add_argument("--components", type=int, default=28, help="how many (default: 28)")


def _network(path: str) -> "ViT":
    """The ViT that a file holds, in evaluation mode, on the accelerator if there is one.

    Raises:
        UserError: there is none in it.
    """
    from lightning_vl.papers.vit.convert import load_vit
    from lightning_vl.report.profile import find_device

    return load_vit(path).eval().to(find_device("auto"))


def _pictures(net: "ViT", arguments: argparse.Namespace) -> Pictures:
    """The images that were asked for, or some of the test set of the run.

    Raises:
        UserError: there are none.
    """
    import torch

    from lightning_vl.data.datasets.image_folder import read_image
    from lightning_vl.data.image_augmentation import resize
    from lightning_vl.papers.vit.data import EvaluationImages, ImageData

    size = net.image_size
    if arguments.number < 1:
        raise UserError(f"--number is {arguments.number}", "give one or more")
    if arguments.images:

        def of_file(path: Path) -> tuple[str, "Tensor"]:
            return str(path), resize(torch.from_numpy(read_image(str(path))).permute(2, 0, 1), size)

        return _read(_spread(_find(arguments.images), arguments.number), of_file)
    run = run_folder(arguments.weights)
    if run is None:
        raise UserError(
            f"{arguments.weights} is no checkpoint of a run, whose test images could be shown",
            "name images: --images FOLDER_OR_FILE",
        )
    from lightning_vl.cli import build

    data = build([str(run / CONFIG)]).data
    if not isinstance(data, ImageData):
        raise UserError(f"the experiment of {run} has no images", "name some: --images FOLDER_OR_FILE")
    dataset = EvaluationImages(data.source, "test", size)
    rng = np.random.default_rng(0)  # evaluation draws nothing from it

    def of_test_set(index: int) -> tuple[str, "Tensor"]:
        sample = dataset.sample(index, rng)
        return sample["id"], sample["image"]

    return _read(_spread(range(len(dataset)), arguments.number), of_test_set)


def _find(places: Sequence[str]) -> list[Path]:
    """The files that are named, and all images in the folders that are, whatever lies in between."""
    from lightning_vl.data.datasets.image_folder import IMAGE_SUFFIXES

    found: list[Path] = []
    for place in map(Path, places):
        if place.is_dir():
            inside = sorted(path for path in place.rglob("*") if path.name.lower().endswith(IMAGE_SUFFIXES))
            if not inside:
                raise UserError(
                    f"the folder {place} holds no images", f"name one with {', '.join(IMAGE_SUFFIXES)} in it"
                )
            found += inside
        elif place.is_file():
            found.append(place)
        else:
            raise UserError(f"there is no file or folder {place}", "give --images what exists")
    return found


def _spread(items: Sequence[Item], number: int) -> list[Item]:
    """So many items, evenly spread: those of all classes where they stand class by class."""
    number = min(number, len(items))
    return [items[place * len(items) // number] for place in range(number)]


def _read(items: Sequence[Item], read: Callable[[Item], tuple[str, "Tensor"]]) -> Pictures:
    """What can be read of the items; a line on stderr names each that cannot."""
    import torch

    names, pixels = [], []
    for item in items:
        try:
            name, image = read(item)
        except CorruptSample as error:
            print(f"skipped {error}", file=sys.stderr)
            continue
        names.append(name)
        pixels.append(image)
    if not pixels:
        raise UserError(f"none of {_count(len(items), 'image')} can be read", "give --images that a viewer opens")
    return Pictures(names, torch.stack(pixels))


def _batches(net: "ViT", pictures: Pictures) -> Iterable["Tensor"]:
    """Few at a time, as the network takes them."""
    import torch

    from lightning_vl.data.module import to_signed_unit_range

    for pixels in torch.split(pictures.pixels, BATCH):
        yield to_signed_unit_range(pixels.to(net.embedding.weight.device))


def _patch_size(net: "ViT") -> int:
    """Of a patch as the image has it, in pixels."""
    stem = net.embedding.stem
    return net.embedding.weight.shape[-1] * (1 if stem is None else stem.stride)


# -- drawing ----------------------------------------------------------------------------------------------------------------


def _tiled(tiles: Sequence[np.ndarray], columns: int, gap: int, fill: float) -> np.ndarray:
    """Tiles of one size, (h, w) or (h, w, 3), in rows of so many, with gaps between them: one picture is drawn at once."""
    height, width, *channels = tiles[0].shape
    rows = -(-len(tiles) // columns)
    picture = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, *channels), fill)
    for number, tile in enumerate(tiles):
        top, left = number // columns * (height + gap), number % columns * (width + gap)
        picture[top : top + height, left : left + width] = tile
    return picture


def _shortened(name: str) -> str:
    """An image's folder, often its class, and name, or the end of them."""
    name = "/".join(Path(name).parts[-2:])
    return name if len(name) <= NAME_LENGTH else f"...{name[3 - NAME_LENGTH :]}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
