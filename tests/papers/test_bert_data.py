"""BERT's pre-training data: which segments become pairs, what a batch holds, and in which order batches come."""

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from scipy import stats

from lightning_vl.data.documents import Document, DocumentSource
from lightning_vl.data.masking import MaskedWords, NextWords
from lightning_vl.data.source import Split
from lightning_vl.data.token_store import TokenStore, token_store
from lightning_vl.data.tokenizer import Vocabulary, WordPiece
from lightning_vl.errors import UserError
from lightning_vl.papers.bert.data import Phase, PhasedStream, PreTrainingData
from lightning_vl.papers.bert.pairs import NextSentencePairs

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CLS, SEP = 2, 3


class Told(DocumentSource):
    """Documents of given sentence lengths, no word of which occurs twice: a token says where in the text it stands."""

    def __init__(self, lengths: list[list[int]]) -> None:
        self.lengths = lengths
        self.words = sum(sum(document) for document in lengths)

    def documents(self, split: Split) -> Iterator[Document]:
        word = 0
        for number, lengths in enumerate(self.lengths):
            sentences = []
            for length in lengths:
                sentences.append(" ".join(f"w{word + i}" for i in range(length)))
                word += length
            yield Document(f"{split}{number}", sentences)

    def fingerprint(self, split: Split) -> str:
        return f"{split} {self.lengths}"


class Words(Vocabulary):
    """Every word of `Told` is one piece: word i is token 5 + i."""

    def tokenizer(self, source: DocumentSource | None) -> WordPiece:
        assert isinstance(source, Told)
        return WordPiece([*SPECIAL, *(f"w{number}" for number in range(source.words))])


def varied(documents: int, seed: int = 0, sentences: int = 12, longest: int = 15) -> Told:
    """Documents of 1 to `sentences` sentences of 1 to `longest` words."""
    rng = np.random.default_rng(seed)
    return Told([rng.integers(1, longest + 1, rng.integers(1, sentences + 1)).tolist() for _ in range(documents)])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("LIGHTNING_VL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def stored(source: Told) -> TokenStore:
    """The documents' tokens, each unknown: pairs are of places in the text."""
    return token_store(source, "train", WordPiece(SPECIAL))


def packed(source: Told, length: int, seed: int = 0, **rules: Any) -> np.ndarray:
    """The pairs of one pass."""
    return np.concatenate(list(NextSentencePairs(**rules).pack(stored(source), length, np.random.default_rng(seed))))


def document_of(store: TokenStore, tokens: np.ndarray) -> np.ndarray:
    """The document in which each token stands."""
    return np.searchsorted(store.sentence_starts[store.document_starts], tokens, side="right") - 1


def test_what_pairs_hold() -> None:
    """A and B are stretches of one document each; the right B follows A, the random one is of another document."""
    source = varied(60)
    store = stored(source)
    pairs = packed(source, 4096)  # nothing is cut to the length
    starts = set(store.sentence_starts.tolist())
    assert set(pairs[:, :4].flatten().tolist()) <= starts
    assert (pairs[:, 1] > pairs[:, 0]).all()
    assert (pairs[:, 3] > pairs[:, 2]).all()
    a, b = document_of(store, pairs[:, 0]), document_of(store, pairs[:, 2])
    assert (document_of(store, pairs[:, 1] - 1) == a).all()
    assert (document_of(store, pairs[:, 3] - 1) == b).all()
    random = pairs[:, 4] == 1
    assert (pairs[~random, 1] == pairs[~random, 2]).all()
    assert (a[~random] == b[~random]).all()
    assert (a[random] != b[random]).all()
    assert 0 < random.sum() < len(pairs)


@pytest.mark.parametrize("length", [16, 64, 4096])
@pytest.mark.parametrize("single_sentence_random", [True, False])
def test_no_sentence_is_lost_or_read_twice(length: int, single_sentence_random: bool) -> None:
    """Breaks if sentences behind a random B are not put back: A and the B that follows it go through every document once."""
    source = varied(60)
    store = stored(source)
    follows = packed(source, length, single_sentence_random=single_sentence_random)
    # cut to the length, segments lose tokens; where they do not, each one begins where the last one has ended
    read = [[row[:2]] if row[4] else [row[:2], row[2:4]] for row in follows.tolist()]
    segments = [segment for row in read for segment in row]
    assert all(start >= end for (_, end), (start, _) in pairwise(segments))
    whole = [row[1] - row[0] + row[3] - row[2] < length - 3 for row in follows.tolist()]
    if length == 4096:
        assert all(whole)
        assert segments[0][0] == 0
        assert segments[-1][1] == source.words
        assert all(start == end for (_, end), (start, _) in pairwise(segments))
    assert set(document_of(store, follows[:, 0]).tolist()) == set(range(60))


@pytest.mark.parametrize("length", [8, 9, 16, 33, 128])
def test_pairs_are_cut_to_the_length(length: int) -> None:
    """The longer segment loses tokens, front and back alike, until the pair fits and both have about as many."""
    source = varied(100, longest=40)
    cut = packed(source, length, short=0.0)
    a, b = cut[:, 1] - cut[:, 0], cut[:, 3] - cut[:, 2]
    assert ((a > 0) & (b > 0)).all()
    assert (a + b <= length - 3).all()
    store = stored(source)
    front = np.isin(cut[:, [0, 2]], store.sentence_starts, invert=True)
    back = np.isin(cut[:, [1, 3]], store.sentence_starts, invert=True)
    both = (front | back).all(1)
    full = a + b == length - 3
    assert full[(front | back).any(1)].all()
    assert (abs(a - b)[both] <= 1).all()
    assert (a - b)[both].min() >= 0  # of two equal ones B loses a token
    assert both.any()


def test_tokens_are_dropped_front_and_back_alike() -> None:
    """Breaks if only one end is cut, or the ends by halves: two sentences of 60 words in 43 tokens lose 40 words each."""
    source = Told([[60, 60]] * 100)
    pairs = packed(source, 43, short=0.0)
    assert len(pairs) == 200
    lost = (pairs[:, [0, 2]] % 60).flatten()  # at the front
    assert lost.mean() == pytest.approx(20, abs=4 * np.sqrt(10 / 400))
    assert lost.var() == pytest.approx(10, rel=0.25)


def naive(store: TokenStore, length: int, rng: np.random.Generator) -> list[tuple[int, int, bool]]:
    """Lengths of A and B and whether B is random, sentence after sentence and token after token."""
    sizes = np.diff(store.sentence_starts)
    documents = [sizes[start:end].tolist() for start, end in pairwise(store.document_starts)]
    rows = []
    for number, document in enumerate(documents):
        target = int(rng.integers(2, length - 2)) if rng.random() < 0.1 else length - 3
        chunk: list[int] = []
        i = 0
        while i < len(document):
            chunk.append(document[i])
            if i == len(document) - 1 or sum(chunk) >= target:
                cut = int(rng.integers(1, len(chunk))) if len(chunk) > 1 else 1
                a, random = sum(chunk[:cut]), len(chunk) == 1 or rng.random() < 0.5
                if random:
                    while (other := int(rng.integers(len(documents)))) == number:
                        pass
                    b = 0
                    for size in documents[other][int(rng.integers(len(documents[other]))) :]:
                        b += size
                        if b >= target - a:
                            break
                    i -= len(chunk) - cut
                else:
                    b = sum(chunk[cut:])
                while a + b > length - 3:
                    a, b = (a - 1, b) if a > b else (a, b - 1)
                rows.append((a, b, random))
                chunk = []
            i += 1
    return rows


@pytest.mark.parametrize("length", [16, 48])
def test_pairs_are_distributed_as_by_the_released_code(length: int) -> None:
    """Number, lengths and share of random ones, against the rules carried out word by word."""
    source = varied(700)
    pairs = packed(source, length)
    slow = np.array(naive(stored(source), length, np.random.default_rng(1)))
    assert len(pairs) == pytest.approx(len(slow), rel=0.05)
    a, b = pairs[:, 1] - pairs[:, 0], pairs[:, 3] - pairs[:, 2]
    for ours, theirs in ((a, slow[:, 0]), (b, slow[:, 1]), (a[pairs[:, 4] == 1], slow[slow[:, 2] == 1, 0])):
        assert stats.ks_2samp(ours, theirs).pvalue > 1e-4
    table = [[(column == value).sum() for value in (0, 1)] for column in (pairs[:, 4], slow[:, 2])]
    assert stats.chi2_contingency(table).pvalue > 1e-4
    assert pairs[:, 4].mean() > 0.52  # chunks of one sentence are always random


def test_the_share_of_pairs_that_follow() -> None:
    """`next` holds exactly where no chunk is of one sentence, and with `single_sentence_random: false` everywhere."""
    many, single = Told([[2] * 40] * 150), Told([[20]] * 1000)
    even = packed(many, 16, short=0.0)
    # a chunk's last sentences are left over to make one of a single sentence only at a document's end
    inner = even[(even[:, 0] % 80) < 64]
    assert stats.binomtest(int(inner[:, 4].sum()), len(inner), 0.5).pvalue > 1e-4
    assert packed(single, 128)[:, 4].all()
    for share in (0.5, 0.8):
        split = packed(single, 128, single_sentence_random=False, next=share)
        assert len(split) == 1000
        assert stats.binomtest(int(split[:, 4].sum()), 1000, 1 - share).pvalue > 1e-4
        following = split[split[:, 4] == 0]
        assert (following[:, 0] % 20 == 0).all()
        assert (following[:, 3] % 20 == 0).all()
        assert (following[:, 1] == following[:, 2]).all()
        assert set((following[:, 1] % 20).tolist()) == set(range(1, 20))
    assert not packed(many, 16, next=1.0, single_sentence_random=False)[:, 4].any()


def test_a_tenth_of_the_documents_is_cut_shorter() -> None:
    """Breaks if the short sequences are lost, or their length is not any one from 2 tokens on."""
    source = Told([[1] * 40] * 1000)  # one word a sentence: chunks reach their target to the word
    pairs = packed(source, 19, next=1.0)
    longest = np.zeros(1000, int)
    np.maximum.at(longest, document_of(stored(source), pairs[:, 0]), pairs[:, 3] - pairs[:, 0])
    short = longest[longest < 16]
    assert stats.binomtest(len(short), 1000, 0.1 * 14 / 15).pvalue > 1e-4  # 2 to 16
    assert set(short.tolist()) <= set(range(2, 16))
    assert len(set(short.tolist())) > 10


def test_one_document_has_no_other() -> None:
    """Breaks if a random B comes from its own document, or the search for another one never ends."""
    with pytest.raises(UserError, match="train split: next-sentence pairs need two documents, and there are 1"):
        ready(Told([[5, 5, 5]]))


def ready(
    source: Told | None = None, stage: str = "fit", seed: int = 0, steps: int = 12, **arguments: Any
) -> PreTrainingData:
    """Data set up for a run of one process."""
    settings: dict[str, Any] = {
        "length": 24,
        "batch_size": 4,
        "workers": 0,
        "duplicates": 2,
        "evaluation_batch_size": 7,
    }
    objective = arguments.pop("objective", MaskedWords(20))
    data = PreTrainingData(source or varied(12), Words(), objective, **(settings | arguments))
    data.trainer = lightning.Trainer(max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False)
    data.seed = seed
    data.setup(stage)
    return data


def batches(data: PreTrainingData, start: int = 0) -> list[dict[str, Any]]:
    """What training sees from a step on."""
    loader = data.train_dataloader()
    loader.load_state_dict({"seed": data.seed, "position": start * data.batch_size})
    return list(loader)


def same(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> bool:
    """Whether names and tokens are equal."""
    keys = ("token_ids", "segment_ids", "places", "words", "next_sentence")
    return len(one) == len(other) and all(
        a["id"] == b["id"] and all(torch.equal(a[key], b[key]) for key in keys) for a, b in zip(one, other, strict=True)
    )


def sequences(batch: dict[str, Any]) -> list[tuple[str, list[int], list[int], int]]:
    """Of each sequence its name, its tokens with the words asked for put back, its segments and its label."""
    tokens = batch["token_ids"].clone()
    tokens[batch["places"]] = batch["words"]
    packing = batch["packing"]
    return [
        (id, tokens[first : last + 1].tolist(), batch["segment_ids"][first : last + 1].tolist(), label)
        for id, first, last, label in zip(
            batch["id"], packing.first.tolist(), packing.last.tolist(), batch["next_sentence"].tolist(), strict=True
        )
    ]


def test_a_batch() -> None:
    """[CLS] A [SEP] B [SEP] of the documents that the name and the label say, in one line without padding."""
    data = ready()
    store, seen = data.stores["train"], 0
    for batch in batches(data):
        assert len(batch["token_ids"]) == len(batch["packing"].places)
        assert batch["packing"].longest <= 24
        for id, tokens, segments, label in sequences(batch):
            first = tokens.index(SEP)
            a, b = np.array(tokens[1:first]) - 5, np.array(tokens[first + 1 : -1]) - 5  # words of the text
            assert tokens[0] == CLS
            assert tokens[-1] == SEP
            assert segments == [0] * (first + 1) + [1] * (len(tokens) - first - 1)
            assert (np.diff(a) == 1).all()
            assert (np.diff(b) == 1).all()
            one, other = document_of(store, a), document_of(store, b)
            assert store.document_ids[int(one[0])] == id.split("/")[0]
            assert (one[0] == other[0]) == (label == 0)
            assert label == 1 or b[0] > a[-1]
            seen += 1
    assert seen == 48


@pytest.mark.parametrize("accumulate", [1, 2])
def test_an_epoch_shows_every_pair_once(accumulate: int) -> None:
    """Breaks if sequences are repeated or missed within an epoch, on one process or on two."""
    data = ready()
    length = len(data.datasets["train"])
    first = data.datasets["train"].first
    ranks = [PhasedStream([Phase(24, length)], first, 4, 0, rank, 2, accumulate) for rank in (0, 1)]
    together = [key for steps in zip(*ranks, strict=True) for keys in steps for key in keys]
    alone = [key for keys in PhasedStream([Phase(24, length)], first, 4, 0) for key in keys]
    assert together == alone
    for epoch in range(4):
        assert sorted(key.index for key in alone if key.epoch == epoch) == list(range(length))
    assert {id.split("/")[1] for id in _ids(data)} == {str(index) for index in range(length)}


def _ids(data: PreTrainingData) -> list[str]:
    rng = np.random.default_rng(0)
    return [data.datasets["train"].sample(index, rng)["id"] for index in range(len(data.datasets["train"]))]


def test_masks_stay_or_change() -> None:
    """Static ones are the same in every epoch, and differ between duplicates; dynamic ones are new each time."""
    source = Told([[6, 6]] * 8)
    for dynamic in (False, True):
        data = ready(source, dynamic=dynamic, duplicates=3, steps=60)
        seen: dict[str, set[tuple[int, ...]]] = {}
        for batch in batches(data):
            packing = batch["packing"]
            for id, first, last in zip(batch["id"], packing.first.tolist(), packing.last.tolist(), strict=True):
                seen.setdefault(id, set()).add(tuple(batch["token_ids"][first : last + 1].tolist()))
        kinds = Counter(len(sequences) for sequences in seen.values())
        assert (set(kinds) == {1}) == (not dynamic)
        if not dynamic:  # a document has a pair in each of the three passes, read with other masks
            passes = Counter(id.split("/")[0] for id in seen)
            assert min(passes.values()) >= 3
            assert len({next(iter(sequences)) for sequences in seen.values()}) > 0.9 * len(seen)


@pytest.mark.parametrize("dynamic", [False, True])
def test_workers_and_restarts_change_nothing(dynamic: bool) -> None:
    """Exact resume: a step's sequences and masks depend on the seed and the step alone."""
    whole = batches(ready(dynamic=dynamic))
    assert len(whole) == 12
    assert same(whole, batches(ready(dynamic=dynamic, workers=2)))
    assert same(whole[5:], batches(ready(dynamic=dynamic), start=5))
    assert not same(whole, batches(ready(dynamic=dynamic, seed=1)))


PHASES = [Phase(12, 5), Phase(24, 7)]


def test_phases_change_at_their_step() -> None:
    """The sixth step is the first with long sequences, each phase goes through its own, and a restart finds its place."""
    data = ready(phases=PHASES)
    assert data.longest == 24
    whole = batches(data)
    assert len(whole) == 12
    longest = [batch["packing"].longest for batch in whole]
    assert max(longest[:5]) <= 12
    assert min(longest[5:]) > 12
    short = batches(ready(length=12, steps=5))
    assert same(whole[:5], short)  # a phase is what a run of its length alone would be
    assert same(whole[5:], batches(ready(steps=7)))
    for start in (3, 5, 8):
        assert same(whole[start:], batches(ready(phases=PHASES), start=start))
    assert same(whole, batches(ready(phases=PHASES, workers=2)))


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({"length": 7}, "sequences of 7 tokens are too short"),
        ({"phases": [Phase(4, 5), Phase(24, 7)]}, "sequences of 4 tokens are too short"),
        ({"phases": [Phase(12, 5), Phase(24, 6)]}, "the phases have 11 steps, trainer.max_steps is 12"),
        ({"phases": [Phase(24, 5), Phase(12, 7)]}, "length is 24, the last phase's is 12"),
        ({"phases": [Phase(12, 0), Phase(24, 12)]}, "a phase without steps"),
        ({"phases": []}, "a phase without steps"),
        ({"duplicates": 0}, "duplicates is 0"),
        ({"steps": -1}, "trainer.max_steps is not set"),
        ({"batch_size": 1000}, "a step takes 1000 samples and the training data has"),
    ],
)
def test_settings_that_cannot_be(arguments: dict[str, Any], what: str) -> None:
    """Refused before training, in words."""
    with pytest.raises(UserError, match=what):
        ready(**arguments).train_dataloader()


def test_evaluation_is_the_same_every_time() -> None:
    """One pass over the split, its masks fixed by the seed: epochs of a run are compared on the same words."""
    data = ready(dynamic=True)
    once, again = list(data.val_dataloader()), list(data.val_dataloader())
    assert same(once, again)
    names = [id for batch in once for id in batch["id"]]
    assert len(names) == len(set(names)) == len(data.datasets["validation"])
    assert all(name.startswith("validation") for name in names)
    passes = packed_size(data)
    assert len(names) < 0.75 * passes
    other = list(ready(seed=1).val_dataloader())
    assert not same(once, other)


def packed_size(data: PreTrainingData) -> int:
    """Pairs of the training split, whose text is as long, in its two passes."""
    return len(data.datasets["train"])


def test_both_objectives_are_evaluated_on_the_same_words() -> None:
    """Otherwise the accuracies of the ablation's runs are not comparable."""
    masked = list(ready(stage="test").test_dataloader())
    told = list(ready(stage="test", objective=NextWords(20)).test_dataloader())
    for one, other in zip(masked, told, strict=True):
        assert one["id"] == other["id"]
        assert torch.equal(one["words"], other["words"])
        assert torch.equal(one["places"], other["places"] + 1)
        assert torch.equal(other["token_ids"][other["places"] + 1], other["words"])


class Common(Told):
    """Training documents that prefer some words; the other splits are as `Told`."""

    def documents(self, split: Split) -> Iterator[Document]:
        for id, sentences in super().documents(split):
            yield Document(
                id, [f"{sentence} w7 w7 w9" if split == "train" else f"{sentence} w7" for sentence in sentences]
            )


def test_baselines() -> None:
    """Against counting word by word: the commonest word, the smoothed perplexity, the larger class."""
    data = ready(Common(varied(12).lengths), "test")
    counts = Counter(range(5 + data.source.words))  # every piece once
    for document in data.source.documents("train"):
        for sentence in document.sentences:
            counts.update(data.tokenizer.encode(sentence))
    total = sum(counts.values())
    words, labels = [], []
    for batch in data.test_dataloader():
        words += batch["words"].tolist()
        labels += batch["next_sentence"].tolist()
    top = counts.most_common(1)[0][0]
    assert data.tokenizer.pieces[top] == "w7"
    baselines = data.baselines()
    assert baselines["unigram_accuracy"] == pytest.approx(words.count(top) / len(words))
    assert baselines["unigram_accuracy"] > 0.02
    naive = np.exp(-sum(np.log(counts[word] / total) for word in words) / len(words))
    assert baselines["unigram_perplexity"] == pytest.approx(naive)
    share = sum(labels) / len(labels)
    assert baselines["next_sentence_majority"] == pytest.approx(max(share, 1 - share))


def test_the_vocabulary_travels_with_the_checkpoint() -> None:
    """Breaks if a network is read with other pieces than it was trained with, or the message is a page of them."""
    data = ready()
    state = data.state_dict()
    assert state["vocabulary"] == {"pieces": data.tokenizer.pieces, "lowercase": True}
    data.accept(state["preprocessing"])
    ready(length=48).accept(state["preprocessing"])  # a network reads any length that it has positions for
    with pytest.raises(UserError, match="trained with another vocabulary") as refused:
        ready(varied(11)).accept(state["preprocessing"])
    assert len(refused.value.what) < 200


def test_pairs_are_kept_and_made_again_where_they_are_damaged(cache: Path) -> None:
    """Breaks if every start packs a large corpus anew, or one that was cut off by a full disk is trained on."""
    whole = batches(ready())
    files = {path: path.stat().st_mtime_ns for path in (cache / "pairs").iterdir() if path.suffix != ".lock"}
    assert len(files) == 2  # train and validation
    assert same(whole, batches(ready()))
    assert all(path.stat().st_mtime_ns == time for path, time in files.items())
    for path in files:
        path.write_bytes(path.read_bytes()[:-80])
    assert same(whole, batches(ready()))
    batches(ready(pairs=NextSentencePairs(next=0.7)))
    assert len([path for path in (cache / "pairs").iterdir() if path.suffix != ".lock"]) == 4


def test_sentences_take_the_place_of_the_test_split_in_predict(tmp_path: Path) -> None:
    """Breaks if `predict` answers for the test split though a file was given."""
    path = tmp_path / "sentences.txt"
    path.write_text('w1 w2 [MASK]\n{"text": "w1 [MASK] w3", "options": ["w4", "w5 w6"]}\n')
    data = ready(stage="predict", sentences=str(path))
    (batch,) = data.predict_dataloader()
    assert batch["id"] == [f"{path}:1", f"{path}:2"]
    assert len(batch["token_ids"]) == len(batch["segment_ids"]) == 5 + 5 + 6
    names = [id for batch in ready(stage="predict").predict_dataloader() for id in batch["id"]]
    assert names[0].startswith("test")
