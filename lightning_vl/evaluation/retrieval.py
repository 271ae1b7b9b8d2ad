"""Texts that find their images and images that find their texts: recall, median rank and the loss over a whole split."""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_vl.papers.clip.model import ClipOutput

RECALLS = (1, 5, 10)  # of Table 13
CHUNK = 2**22  # similarities held at once: 16 MiB
TIE = 1e-6  # what rounding alone may part


class RetrievalMetrics(Metric):
    """Retrieval over all images and captions of a split, in both directions.

    A text that stands word for word at several images (case and white space aside) is one text: it is right for each of
    them, and each of them is right for it. Where none repeats, this is the usual protocol: a caption has one right
    image, an image several right captions, of which the best counts. Ties count against the right one, see
    `retrieval_ranks`.

    All embeddings of the split are kept, and gathered over the processes, so that neither the size of the batches nor the
    number of processes, nor how unevenly they share the split, changes a value.

    Names: `text_to_image_r1`, `_r5`, `_r10` and `_median_rank`, over captions; `image_to_text_r1` and so on, over images;
    `loss`, the symmetric InfoNCE in nats over all images with the first caption of each. There a repeated text is wrong at
    another image, as it is in training; without any knowledge the loss is ln n.
    """

    full_state_update = False
    image: list[Tensor]  # (b, d)
    text: list[Tensor]  # (n, d), the captions of the first image, then those of the second
    captions: list[Tensor]  # (b,), how many each image has
    same: list[Tensor]  # (n,), equal for the same text
    scale: Tensor

    def __init__(self) -> None:
        super().__init__(dist_sync_fn=_of_all_processes)
        for name in ("image", "text", "captions", "same"):
            self.add_state(name, [], dist_reduce_fx="cat")
        self.add_state("scale", torch.zeros(()), dist_reduce_fx="max")  # the same on all processes that saw a batch

    def update(self, outputs: ClipOutput, batch: Mapping[str, Any]) -> None:
        """Keeps a batch; the captions of an image follow one another, in the order of the images.

        Args:
            outputs: embeddings of the images and of all their captions.
            batch: a `CaptionBatch` of evaluation.
        """
        self.image.append(outputs.image.float())
        self.text.append(outputs.text.float())
        self.captions.append(torch.bincount(batch["image_of"], minlength=len(outputs.image)))
        self.same.append(torch.tensor([_number(text) for text in batch["text"]], device=outputs.text.device))
        self.scale = outputs.scale.detach().float()

    def compute(self) -> dict[str, Tensor]:
        """By name; nan where nothing was counted."""
        if not len(self.image):
            return dict.fromkeys(_names(), self.scale.new_full((), math.nan))
        image, text, captions, same = (dim_zero_cat(state) for state in self._kept)
        image_of = torch.repeat_interleave(torch.arange(len(image), device=image.device), captions)
        distinct, which = torch.unique(same, return_inverse=True)
        place = torch.arange(len(text), device=text.device)
        first = place.new_full((len(distinct),), len(text)).scatter_reduce(0, which, place, "amin")
        ranks = {
            "text_to_image": retrieval_ranks(text[first], image, which, image_of)[which],
            "image_to_text": retrieval_ranks(image, text[first], image_of, which),
        }
        values = {"loss": pairs_loss(image, text[captions.cumsum(0) - captions], self.scale)}
        for direction, found in ranks.items():
            values |= {f"{direction}_r{k}": recall_at(found, k) for k in RECALLS}
            values[f"{direction}_median_rank"] = median_rank(found)
        return values

    @property
    def _kept(self) -> tuple[list[Tensor], ...]:
        return self.image, self.text, self.captions, self.same


def retrieval_ranks(queries: Tensor, items: Tensor, query: Tensor, positive: Tensor, chunk: int = CHUNK) -> Tensor:
    """For each query the rank of its best positive among all items, by similarity; exact, in bounded memory.

    The rank is one more than the number of items, those that are positives of the same query aside, that are no less
    similar than the best positive. A tie therefore counts against the positive: embeddings that have collapsed into one
    point score the worst rank, not the best. So does a similarity that is no number. Similarities that are no more than 1e-6
    apart are a tie: rounding parts equal ones by less, and differently for each size of a product of matrices.

    Similarities are float32, whatever the precision that is set for products of matrices. They are computed for as many
    queries at once as `chunk` allows, at least for one: beside the inputs about 13 bytes for each of them are held, 52 MiB
    by default, whatever the number of queries and items.

    Args:
        queries: (q, d), of length one.
        items: (n, d), of length one.
        query: int64 (p,), pairs of a query and an item that is right for it: the query's place.
        positive: int64 (p,), the item's place.
        chunk: similarities held at once.

    Returns:
        int64 (q,), from 1 on.

    Raises:
        ValueError: a query has no positive.
    """
    missing = torch.bincount(query, minlength=len(queries)) == 0
    if missing.any():
        raise ValueError(f"query {int(missing.nonzero()[0])} has no positive")
    query, order = query.sort()
    positive = positive[order]
    rows = max(1, chunk // max(1, len(items)))
    ranks = torch.empty(len(queries), dtype=torch.int64, device=queries.device)
    with _plain_float32():
        for start in range(0, len(queries), rows):
            pairs = slice(*torch.searchsorted(query, torch.tensor([start, start + rows]).to(query)).tolist())
            some = slice(start, start + rows)
            ranks[some] = _ranks(queries[some], items, query[pairs] - start, positive[pairs])
    return ranks


def _ranks(queries: Tensor, items: Tensor, query: Tensor, positive: Tensor) -> Tensor:
    similarity = queries.float() @ items.float().T  # (r, n)
    best = similarity.new_full((len(queries),), -math.inf)
    best = best.scatter_reduce(0, query, similarity[query, positive], "amax")
    before = (similarity < best[:, None] - TIE).logical_not_()
    before[query, positive] = False
    return 1 + before.sum(1)


def recall_at(ranks: Tensor, k: int) -> Tensor:
    """The share of queries whose best positive is among the first k (R@k)."""
    return (ranks <= k).double().mean().float()


def median_rank(ranks: Tensor) -> Tensor:
    """The median of the ranks; of an even number the mean of the middle two."""
    middle = ranks.sort().values[[(len(ranks) - 1) // 2, len(ranks) // 2]]
    return middle.double().mean().float()


def pairs_loss(image: Tensor, text: Tensor, scale: Tensor, chunk: int = CHUNK) -> Tensor:
    """The symmetric InfoNCE (Fig. 3) of all pairs as one batch, in nats, in bounded memory, see `retrieval_ranks`.

    Args:
        image: (n, d), of length one.
        text: (n, d), of length one; row i of both makes a pair.
        scale: what cosines are multiplied by. What else is added to all of them alike changes nothing.
        chunk: similarities held at once.
    """
    with _plain_float32():
        total = _cross_entropy(image, text, scale, chunk) + _cross_entropy(text, image, scale, chunk)
    return (total / (2 * len(image))).float()


def _cross_entropy(queries: Tensor, items: Tensor, scale: Tensor, chunk: int) -> Tensor:
    """Sum over the queries, float64: its order says nothing in the result."""
    rows = max(1, chunk // len(items))
    total = torch.zeros((), dtype=torch.float64, device=queries.device)
    for start in range(0, len(queries), rows):
        logits = scale * (queries[start : start + rows].float() @ items.float().T)  # (r, n)
        right = logits.diagonal(start)
        total += (logits.logsumexp(1) - right).sum(dtype=torch.float64)
    return total


def chance(captions: Sequence[Sequence[str]]) -> dict[str, float]:
    """What embeddings without any knowledge reach, by the names of `RetrievalMetrics`: all orders are equally likely.

    A query with p positives among n items finds one among the first k but for C(n - p, k) of C(n, k) orders.

    Args:
        captions: of each image.
    """
    texts = [[_plain(text) for text in of_image] for of_image in captions]
    images: dict[str, set[int]] = {}
    for number, of_image in enumerate(texts):
        for text in of_image:
            images.setdefault(text, set()).add(number)
    right = {  # of each query the number of its positives, and the number of items
        "text_to_image": ([len(images[text]) for of_image in texts for text in of_image], len(texts)),
        "image_to_text": ([len(set(of_image)) for of_image in texts], len(images)),
    }
    values = {"loss": math.log(len(texts))}
    for direction, (positives, items) in right.items():
        count = torch.tensor(positives, dtype=torch.float64)
        values |= {f"{direction}_r{k}": _within(k, count, items) for k in RECALLS}
        low, high = 0, items  # the first rank that half of the queries reach lies in (low, high]
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if _within(middle, count, items) >= 0.5 else (middle, high)
        values[f"{direction}_median_rank"] = float(high)
    return values


def _within(k: int, positives: Tensor, items: int) -> float:
    """The share of queries that find one of their positives among the first k of all items, all orders equally likely."""
    left = items - positives
    choices = [torch.lgamma(n + 1) - torch.lgamma(n - k + 1) for n in (left, torch.tensor(float(items)).to(left))]
    none = torch.where(left >= k, (choices[0] - choices[1]).exp(), 0.0)
    return float((1 - none).mean())


def _of_all_processes(state: Tensor, group: Any = None) -> list[Tensor]:
    """A state of every process; torchmetrics' own way expects that each of them saw something."""
    states: list[Any] = [None] * torch.distributed.get_world_size(group)
    torch.distributed.all_gather_object(states, state.cpu(), group)
    return [other.to(state.device) for other in states if other.numel()] or [state]


@contextmanager
def _plain_float32() -> Iterator[None]:
    """The command lets products of matrices round to TF32, which would decide between near items by chance."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _number(text: str) -> int:
    """64 bits that every process makes alike of the same text."""
    digest = hashlib.blake2b(_plain(text).encode(errors="replace"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _names() -> list[str]:
    measures = [*(f"r{k}" for k in RECALLS), "median_rank"]
    return ["loss", *(f"{way}_{measure}" for way in ("text_to_image", "image_to_text") for measure in measures)]
