"""Pictures found by text: a folder's images in an index, and those nearest to each query on a page."""

import base64
import hashlib
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from lightning_vl.data.datasets.image_folder import IMAGE_SUFFIXES, read_image
from lightning_vl.data.image_augmentation import centre_square
from lightning_vl.data.stream import Batch, Sample
from lightning_vl.errors import CorruptSample, UserError
from lightning_vl.evaluation.dual_encoder import DualEncoder
from lightning_vl.terminal import say

INDEX, IMAGES, PAGE = "index.faiss", "images.json", "page.html"
QUERIES_HOW = 'give a list, ["a photo of a cat"], or a UTF-8 file with one on each line'
THUMBNAIL = 320  # px of the longer side: it is shown at half of that, and sharp on a fine screen
SHOWN = 200  # queries on the page, which is to remain one that a browser opens


class FolderImages:
    """Images of a folder, their middle squares.

    Args:
        folder: where they are.
        names: their paths in it.
        image_size: height and width for the network, px.
    """

    def __init__(self, folder: str, names: Sequence[str], image_size: int) -> None:
        self.folder = folder
        self.names = names
        self.image_size = image_size

    def __len__(self) -> int:
        return len(self.names)

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """`image` uint8 (c, h, w), and `id`, its path; nothing is drawn from `rng`.

        Raises:
            CorruptSample: it cannot be decoded.
        """
        name = self.names[index]
        try:
            pixels = read_image(os.path.join(self.folder, name))
        except CorruptSample as error:
            raise CorruptSample(name, error.reason) from error
        return {"image": centre_square(torch.from_numpy(pixels).permute(2, 0, 1), self.image_size), "id": name}

    @staticmethod
    def collate(samples: list[Sample]) -> Batch:
        """`image` uint8 (b, c, h, w), `id` b names."""
        return {
            "image": torch.stack([sample["image"] for sample in samples]),
            "id": [sample["id"] for sample in samples],
        }


class Index(NamedTuple):
    """Embeddings of images, and where they are from.

    Attributes:
        vectors: a FAISS index of n vectors of length one.
        names: n paths, relative to the folder.
        made_with: what another network, or other inputs of it, would have made otherwise.
    """

    vectors: Any
    names: list[str]
    made_with: dict[str, str]

    def write(self, folder: Path) -> None:
        """Writes `index.faiss` and `images.json`."""
        import faiss

        folder.mkdir(parents=True, exist_ok=True)
        faiss.write_index(self.vectors, str(folder / INDEX))
        content = {"made_with": self.made_with, "images": self.names}
        (folder / IMAGES).write_text(json.dumps(content, indent=1) + "\n")


class Found(NamedTuple):
    """One picture for a query.

    Attributes:
        name: its path in the folder.
        cosine: of its embedding and the query's.
    """

    name: str
    cosine: float


class ImageSearch:
    """What `predict` does instead of reading the test split: it finds the pictures of a folder that fit a text.

    Every image is embedded once and kept in an exact index of inner products (FAISS, IndexFlatIP), which are cosines. The
    queries go through the tokenizer as they are: a network that was trained on sentences finds more by "a photo of a cat"
    than by "cat" (Table 13 is measured with such a beginning: 1 to 2 points of R@1).

    Written into the run's folder: `search/index.faiss`, `search/images.json` and `search/page.html`.

    Args:
        folder: images, in folders within it, too.
        queries: texts, or a UTF-8 file with one on each line; empty ones are passed over.
        top: pictures for each query.
        index: the `search` folder of an earlier run with the same network; the images are not embedded again.

    Raises:
        UserError: top is below 1.
    """

    def __init__(self, folder: str, queries: list[str] | str, top: int = 10, index: str | None = None) -> None:
        if top < 1:
            raise UserError(f"top is {top}", "give data.init_args.search.init_args.top 1 or more")
        self.folder = folder
        self.queries = queries
        self.top = top
        self.index = index

    def images(self, image_size: int) -> FolderImages:
        """What there is to be embedded: nothing where an index is given.

        Args:
            image_size: height and width for the network, px.

        Raises:
            UserError: no such folder, no images in it, no queries, or an index that cannot be read.
        """
        self.texts = stated_queries(self.queries)
        self.names: list[str] = []  # of what was embedded
        self.embeddings: list[Tensor] = []
        names = images_in(self.folder)
        if self.index is None:
            return FolderImages(self.folder, names, image_size)
        indexed = set(read_index(self.index).names)
        if missing := sum(name not in indexed for name in names):
            say(
                f"{self.index} lacks {missing} of the {len(names)} images in {self.folder}: they are new, or unreadable"
            )
        return FolderImages(self.folder, [], image_size)

    def keep(self, names: Sequence[str], embeddings: Tensor) -> None:
        """Takes a batch's embeddings (b, d), of length one."""
        self.names += names
        self.embeddings.append(embeddings.float().cpu())

    def answer(self, encoder: DualEncoder, made_with: dict[str, str], folder: Path) -> list[dict[str, Any]]:
        """Once all images were kept: writes index and page, answers the queries.

        Args:
            encoder: the network that embedded the images.
            made_with: see `fingerprints`.
            folder: the run's.

        Returns:
            A row for each query, its images with their cosines, nearest first.

        Raises:
            UserError: no image could be read, or the index is another network's.
        """
        folder = folder / "search"
        if self.index is not None:
            index = read_index(self.index)
            check_made_with(self.index, index.made_with, made_with)
        elif not self.embeddings:
            raise UserError(f"none of the images in {self.folder} can be read", "give a folder of whole images")
        else:
            index = Index(index_of(torch.cat(self.embeddings)), self.names, made_with)
            index.write(folder)
        answers = nearest(index, encoder.texts(self.texts), self.top)
        folder.mkdir(parents=True, exist_ok=True)
        page = render(self.folder, len(index.names), self.texts, answers)
        (folder / PAGE).write_text(page, encoding="utf-8", errors="replace")
        say(f"pictures {folder / PAGE}")
        return [
            {
                "query": text,
                "images": [
                    {"path": os.path.join(self.folder, found.name), "cosine": found.cosine} for found in pictures
                ],
            }
            for text, pictures in zip(self.texts, answers, strict=True)
        ]


def stated_queries(queries: list[str] | str) -> list[str]:
    """The queries of a list or of a file, without white space around them and without empty ones.

    Raises:
        UserError: the file cannot be read, or there is no query.
    """
    lines, where = queries, "data.init_args.search.init_args.queries"
    if isinstance(queries, str):
        where = f"the file {queries}"
        try:
            lines = Path(queries).read_bytes().decode("utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise UserError(
                f"the queries {queries} are no UTF-8: {error.reason} at byte {error.start}", "save the file as UTF-8"
            ) from error
        except OSError as error:
            raise UserError(f"the queries {queries} cannot be read: {error.strerror}", QUERIES_HOW) from error
    texts = [text for line in lines if (text := line.strip())]
    if not texts:
        raise UserError(f"{where} has no query", QUERIES_HOW)
    return texts


def images_in(folder: str) -> list[str]:
    """Paths of all images in a folder and in those within it, relative to it, sorted; hidden ones are passed over.

    Raises:
        UserError: no such folder, or no image in it.
    """
    how = "give the folder of your pictures as data.init_args.search.init_args.folder"
    if not os.path.isdir(folder):
        raise UserError(f"there is no folder {folder}", how)
    names = []
    for inside, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        names += [
            os.path.relpath(os.path.join(inside, name), folder)
            for name in files
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")
        ]
    if not names:
        raise UserError(f"{folder} holds no images ({', '.join(IMAGE_SUFFIXES[:4])}, ...)", how)
    return sorted(names)


def fingerprints(net: nn.Module, network: dict[str, Any] | None, preprocessing: dict[str, Any]) -> dict[str, str]:
    """Short hashes of what embeddings depend on.

    Args:
        net: its weights.
        network: how it is built.
        preprocessing: of the data.
    """
    weights = hashlib.sha256()
    for name, tensor in net.state_dict().items():
        weights.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        weights.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    digests = {"weights": weights.hexdigest()}
    for name, value in (("network", network), ("preprocessing", preprocessing)):
        digests[name] = hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
    return {name: digest[:16] for name, digest in digests.items()}


def index_of(embeddings: Tensor) -> Any:
    """A FAISS index of vectors (n, d) of length one: every search compares with all of them."""
    import faiss

    vectors = faiss.IndexFlatIP(embeddings.shape[1])
    vectors.add(embeddings.numpy())
    return vectors


def nearest(index: Index, texts: Tensor, top: int) -> list[list[Found]]:
    """For each of n queries (n, d), of length one, its nearest images, nearest first."""
    cosines, places = index.vectors.search(texts.numpy(), min(top, len(index.names)))
    return [
        [Found(index.names[place], cosine) for place, cosine in zip(*row, strict=True)]
        for row in zip(places.tolist(), cosines.tolist(), strict=True)
    ]


def read_index(path: str) -> Index:
    """What `Index.write` wrote.

    Args:
        path: the folder; the file `index.faiss` in it will do.

    Raises:
        UserError: it is not there, or damaged.
    """
    import faiss

    folder = Path(path).parent if path.endswith(INDEX) else Path(path)
    how = "give the search folder of an earlier run, or leave index out: the images are then embedded again"
    try:
        content = json.loads((folder / IMAGES).read_bytes())
        names, made_with = list(content["images"]), dict(content["made_with"])
        (folder / INDEX).open("rb").close()  # says why it cannot be read, which FAISS does not
        vectors = faiss.read_index(str(folder / INDEX))
    except OSError as error:
        raise UserError(f"the index {error.filename} cannot be read: {error.strerror}", how) from error
    except (ValueError, KeyError, TypeError, RuntimeError) as error:  # FAISS raises the last one
        raise UserError(f"the index in {folder} is damaged", how) from error
    if vectors.ntotal != len(names):
        raise UserError(f"the index in {folder} holds {vectors.ntotal} vectors for {len(names)} images", how)
    return Index(vectors, names, made_with)


def check_made_with(path: str, index: dict[str, str], now: dict[str, str]) -> None:
    """An index of other weights, of a network built otherwise or of other inputs says nothing of this network's queries.

    Raises:
        UserError: it is one.
    """
    differing = [name for name, digest in now.items() if index.get(name) != digest]
    if differing:
        raise UserError(
            f"the index {path} was made with other {' and '.join(differing)}",
            "leave data.init_args.search.init_args.index out: the images are then embedded by this network",
        )


def render(folder: str, images: int, texts: Sequence[str], answers: Sequence[Sequence[Found]]) -> str:
    """The page: the pictures under each query, everything inline.

    Args:
        folder: where the pictures are.
        images: how many were searched.
        texts: the queries.
        answers: of each its pictures, nearest first.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("lightning_vl", "papers/clip"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shown = list(zip(texts, answers, strict=True))[:SHOWN]
    names = list(dict.fromkeys(found.name for _, pictures in shown for found in pictures))
    return environment.get_template("search.html").render(
        folder=folder,
        images=images,
        queries=len(texts),
        shown=shown,
        number={name: number for number, name in enumerate(names)},
        thumbnails=[thumbnail(os.path.join(folder, name)) for name in names],
    )


def thumbnail(path: str) -> str | None:
    """A small JPEG as a data URI; None where the file is gone or damaged."""
    try:
        image = Image.fromarray(read_image(path))
    except CorruptSample:
        return None
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=85, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(encoded.getvalue()).decode()}"
