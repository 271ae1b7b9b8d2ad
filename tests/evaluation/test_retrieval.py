"""Retrieval: ranks against a written-out search, repeated texts, ties, processes, and what chance reaches."""

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import ROOT, allocated, environment
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from lightning_vl.evaluation.retrieval import (
    CHUNK,
    RetrievalMetrics,
    chance,
    median_rank,
    pairs_loss,
    recall_at,
    retrieval_ranks,
)
from lightning_vl.papers.clip.model import ClipOutput

CAPTIONS = [  # of seven images; one text stands at three of them, once with other white space and case
    ("a red square", "one square"),
    ("a dog",),
    ("two circles", "circles", "A  dog"),
    ("a blue triangle",),
    ("a dog", "an animal"),
    ("a line", "a long line"),
    ("nothing", "an empty picture", "a white one"),
]


def unit(*shape: int, seed: int = 0) -> Tensor:
    """Vectors of length one."""
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def embedded(text: str) -> Tensor:
    """A vector of length one that belongs to the text."""
    return unit(8, seed=sum(map(ord, " ".join(text.lower().split()))))


def fill(metric: RetrievalMetrics, images: Sequence[int], batch_size: int) -> RetrievalMetrics:
    """The metric after these images of `CAPTIONS`."""
    image = unit(len(CAPTIONS), 8)
    for start in range(0, len(images), batch_size):
        chosen = images[start : start + batch_size]
        texts = [text for number in chosen for text in CAPTIONS[number]]
        image_of = torch.tensor([place for place, number in enumerate(chosen) for _ in CAPTIONS[number]])
        outputs = ClipOutput(
            image[list(chosen)], torch.stack([embedded(text) for text in texts]), torch.tensor(9.0), None
        )
        metric.update(outputs, {"image_of": image_of, "text": texts})
    return metric


def values(metric: RetrievalMetrics) -> dict[str, float]:
    """What it computes."""
    return {name: value.item() for name, value in metric.compute().items()}


def written_out() -> dict[str, float]:
    """The same by loops over Python lists."""
    image = unit(len(CAPTIONS), 8).numpy()
    texts = [[" ".join(text.lower().split()) for text in of_image] for of_image in CAPTIONS]
    distinct = sorted({text for of_image in texts for text in of_image})
    cosine = {(i, text): float(image[i] @ embedded(text).numpy()) for i in range(len(image)) for text in distinct}
    to_image, to_text = [], []
    for i, of_image in enumerate(texts):
        for text in of_image:
            right = [j for j, others in enumerate(texts) if text in others]
            best = max(cosine[j, text] for j in right)
            to_image.append(1 + sum(cosine[j, text] >= best for j in range(len(texts)) if j not in right))
        best = max(cosine[i, text] for text in of_image)
        to_text.append(1 + sum(cosine[i, text] >= best for text in distinct if text not in of_image))
    logits = 9 * np.array([[cosine[i, of_image[0]] for of_image in texts] for i in range(len(texts))])
    rows, columns = (np.diag(x) - np.log(np.exp(x).sum(1)) for x in (logits, logits.T))
    expected = {"loss": -(rows.mean() + columns.mean()) / 2}
    for way, ranks in (("text_to_image", to_image), ("image_to_text", to_text)):
        expected |= {f"{way}_r{k}": float(np.mean([rank <= k for rank in ranks])) for k in (1, 5, 10)}
        expected[f"{way}_median_rank"] = float(np.median(ranks))
    return expected


def test_values_against_a_written_out_search() -> None:
    """Breaks if a caption is taken for another image's, a repeated text counts as wrong, or the loss is of other pairs."""
    assert values(fill(RetrievalMetrics(), range(7), 7)) == pytest.approx(written_out(), abs=1e-6)


def test_batches_and_their_order_change_nothing() -> None:
    """Breaks if a value is a mean over batches, or images and captions lose each other between them."""
    whole = values(fill(RetrievalMetrics(), range(7), 7))
    for batch_size, order in ((1, range(7)), (3, range(7)), (2, (6, 2, 0, 5, 1, 4, 3))):
        assert values(fill(RetrievalMetrics(), order, batch_size)) == pytest.approx(whole, abs=1e-6)


@pytest.mark.slow
def test_two_processes_are_one(tmp_path: Path) -> None:
    """Breaks if processes that share a split unevenly, or of which one saw nothing, are gathered wrongly."""
    program = (
        "import json, sys, torch\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_retrieval import RetrievalMetrics, fill, values\n"
        "rank = int(sys.argv[1])\n"
        "torch.distributed.init_process_group('gloo', f'file://{sys.argv[2]}', rank=rank, world_size=2)\n"
        "shares = [[0, 2, 4, 6], [1, 3, 5]], [[4, 1, 2, 3, 6, 5, 0], []]\n"
        "print(json.dumps([values(fill(RetrievalMetrics(), share[rank], 2)) for share in shares]))\n"
    )
    script = tmp_path / "share.py"
    script.write_text(program)
    env = environment(tmp_path)
    env["PYTHONPATH"] += f":{ROOT / 'tests'}"
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(tmp_path / "meeting")],
            env=env,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    whole = values(fill(RetrievalMetrics(), range(7), 7))
    for process in processes:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        for found in json.loads(out.splitlines()[-1]):
            assert found == pytest.approx(whole, abs=1e-6)


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
def test_nothing_counted_is_no_number() -> None:
    """Breaks if an empty split stops the run, or names change with what was seen."""
    found = values(RetrievalMetrics())
    assert all(math.isnan(value) for value in found.values())
    assert found.keys() == values(fill(RetrievalMetrics(), range(7), 7)).keys()


def test_a_metric_begins_anew() -> None:
    """Breaks if a validation still holds the images of the one before."""
    metric = fill(RetrievalMetrics(), range(7), 7)
    metric.compute()
    metric.reset()
    assert values(fill(metric, range(3), 2)) == pytest.approx(values(fill(RetrievalMetrics(), range(3), 3)), abs=1e-6)


def written_out_ranks(similarity: Tensor, pairs: set[tuple[int, int]]) -> list[int]:
    """Ranks by sorting each query's items, wrong ones first among equal ones."""
    ranks = []
    for query, row in enumerate(similarity.tolist()):
        right_last = sorted((-cosine, (query, item) in pairs) for item, cosine in enumerate(row))
        ranks.append(1 + [right for _, right in right_last].index(True))
    return ranks


@pytest.mark.parametrize("chunk", [1, 40, 97, 2**22])
def test_ranks_in_chunks_are_exact(chunk: int) -> None:
    """Breaks if a chunk's pairs are cut at the wrong place; similarities have many ties, and pairs come in any order."""
    rng = np.random.default_rng(0)
    queries, items = (torch.tensor(rng.integers(-1, 2, (count, 4))).float() for count in (23, 31))
    pairs = {(int(q), int(rng.integers(31))) for q in [*range(23), *rng.integers(0, 23, 40)]}
    shuffled = rng.permutation(sorted(pairs))
    query, positive = torch.tensor(shuffled).T
    ranks = retrieval_ranks(queries, items, query, positive, chunk)
    assert ranks.tolist() == written_out_ranks(queries @ items.T, pairs)
    assert len(set(ranks.tolist())) > 5


def test_ties_count_against_the_right_one() -> None:
    """Breaks if a network that gives the same embedding for everything, or no numbers at all, finds all it is asked for."""
    one_point = torch.ones(6, 3)
    pairs = torch.arange(6)
    assert retrieval_ranks(one_point, one_point, pairs, pairs).tolist() == [6] * 6
    assert retrieval_ranks(one_point * math.nan, one_point, pairs, pairs).tolist() == [6] * 6


def test_a_query_without_a_right_item_is_refused() -> None:
    """Breaks if it silently gets some rank."""
    with pytest.raises(ValueError, match="query 1 has no positive"):
        retrieval_ranks(unit(2, 3), unit(4, 3), torch.tensor([0]), torch.tensor([3]))


def test_products_are_plain_float32() -> None:
    """Breaks if the precision that the command sets for products decides, or is not put back."""
    seen = []

    class Watched(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.__name__ in ("matmul", "__matmul__"):
                seen.append(torch.get_float32_matmul_precision())
            return func(*args, **(kwargs or {}))

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with Watched():
            retrieval_ranks(unit(3, 4), unit(3, 4), torch.arange(3), torch.arange(3))
            pairs_loss(unit(3, 4), unit(3, 4), torch.tensor(2.0))
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
    assert set(seen) == {"highest"}


def test_memory_is_that_of_a_chunk() -> None:
    """Breaks if all similarities are held at once, or many times more than those of a chunk."""
    image, text, pairs = unit(3_000, 4), unit(3_000, 4, seed=1), torch.arange(3_000)
    for work in (
        lambda: retrieval_ranks(image, text, pairs, pairs),
        lambda: pairs_loss(image, text, torch.tensor(20.0)),
    ):
        highest, _ = allocated(work)
        assert 4 * CHUNK < highest < 20 * CHUNK  # bytes; the whole matrix would take 100 million and more


@pytest.mark.parametrize("chunk", [1, 25, 2**22])
def test_the_loss_in_chunks_is_that_of_the_whole_matrix(chunk: int) -> None:
    """Breaks if a chunk's right logits are taken from the wrong diagonal."""
    image, text, scale = unit(11, 5), unit(11, 5, seed=1), torch.tensor(20.0)
    logits, right = scale * image @ text.T, torch.arange(11)
    whole = (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2
    assert pairs_loss(image, text, scale, chunk).item() == pytest.approx(whole.item(), rel=1e-6)


def test_recall_and_median() -> None:
    """Ranks begin at 1; the median of an even number lies between."""
    ranks = torch.tensor([1, 5, 6, 10, 11, 200])
    assert [recall_at(ranks, k).item() for k in (1, 5, 10)] == pytest.approx([1 / 6, 2 / 6, 4 / 6])
    assert median_rank(ranks).item() == 8
    assert median_rank(ranks[:5]).item() == 6


def test_chance_is_what_random_embeddings_reach() -> None:
    """Against a thousand draws, of captions of which some repeat; and the plain case by hand."""
    plain = chance([(str(number),) for number in range(20)])
    assert plain["loss"] == pytest.approx(math.log(20))
    for way in ("text_to_image", "image_to_text"):
        assert [plain[f"{way}_r{k}"] for k in (1, 5, 10)] == pytest.approx([1 / 20, 5 / 20, 10 / 20])
        assert plain[f"{way}_median_rank"] == 10
    few = chance([("one", "another")] * 2)
    assert few["text_to_image_r1"] == few["image_to_text_r10"] == 1.0  # fewer items than are asked for

    said = chance(CAPTIONS)
    texts = sorted({text.lower().replace("  ", " ") for captions in CAPTIONS for text in captions})
    owns = [{texts.index(text.lower().replace("  ", " ")) for text in captions} for captions in CAPTIONS]
    rng = np.random.default_rng(0)
    first_ranks = [[1 + min(rng.permutation(len(texts))[list(own)]) for own in owns] for _ in range(2000)]
    for k in (1, 5, 10):
        assert said[f"image_to_text_r{k}"] == pytest.approx(np.mean(np.array(first_ranks) <= k), abs=0.02)
    assert said["image_to_text_median_rank"] == np.median(first_ranks)


@pytest.mark.parametrize(("n", "dim", "rows"), [(101, 64, 3), (50, 512, 7), (333, 32, 10)])
def test_rounding_decides_no_tie(n: int, dim: int, rows: int) -> None:
    """Breaks if equal embeddings, whose products differ in the last bit, are ranked by how a product of matrices is cut."""
    one = torch.nn.functional.normalize(torch.randn(dim, generator=torch.Generator().manual_seed(0)), dim=0)
    collapsed, places = one.repeat(n, 1), torch.arange(n)
    assert retrieval_ranks(collapsed, collapsed, places, places, chunk=rows * n).tolist() == [n] * n
