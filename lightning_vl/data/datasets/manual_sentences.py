"""Labelled sentences that every Python carries, made of CPython's manual: what follows what, and topics."""

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise

from lightning_vl.data.datasets.python_manual import PythonManual
from lightning_vl.data.documents import SPLITS, share
from lightning_vl.data.labelled_text import LabelledText, LabelledTextSource, same_text
from lightning_vl.data.source import Split

FEWEST_WORDS = 4  # of a sentence: headings and remains of lists have fewer
HELD_OUT = 0.2  # of a topic's sentences for validation, and as many for the test


class ManualNeighbours(LabelledTextSource):
    """Pairs of sentences: does the second follow the first in its topic, or is it from another topic?

    Every first sentence is in both classes, and the splits are `PythonManual`'s, of whole documents. The sentences'
    own text decides which other one stands beside the first.
    """

    @property
    def class_names(self) -> list[str]:
        """0 where the second sentence follows the first."""
        return ["follows", "elsewhere"]

    def texts(self, split: Split) -> Sequence[LabelledText]:
        """Following and other sentence in turn."""
        return self._splits[split]

    @cached_property
    def _splits(self) -> dict[Split, list[LabelledText]]:
        manual = PythonManual()
        seen: set[tuple[str, ...]] = set()  # what a split before has is left out of a later one
        splits: dict[Split, list[LabelledText]] = {}
        for split in SPLITS:
            documents = [
                (document.id, [sentence for sentence in document.sentences if len(sentence.split()) >= FEWEST_WORDS])
                for document in manual.documents(split)
            ]
            splits[split] = texts = []
            for number, (name, sentences) in enumerate(documents):
                others = [text for other, (_, those) in enumerate(documents) if other != number for text in those]
                for place, (first, second) in enumerate(pairwise(sentences)):
                    elsewhere = others[int(share(f"{first}\n{second}") * len(others))]
                    id = f"{name}/{place}"
                    pair = [LabelledText(id, first, second, 0), LabelledText(f"{id} elsewhere", first, elsewhere, 1)]
                    same = {same_text(text) for text in pair}
                    if len(same) == 2 and not same & seen:
                        texts += pair
                    seen |= same
        return splits


class ManualTopics(LabelledTextSource):
    """Single sentences: which of the manual's longest topics is it from?

    The sentences of each topic are divided among the splits by their own text, 60, 20 and 20 %, so the network has seen
    others of every topic. Every topic has as many as the shortest; a sentence that stands in two of them is left out.

    Args:
        classes: number of topics, the longest ones.
    """

    def __init__(self, classes: int = 10) -> None:
        manual = PythonManual()
        sentences = {
            document.id: [sentence for sentence in document.sentences if len(sentence.split()) >= FEWEST_WORDS]
            for split in SPLITS
            for document in manual.documents(split)
        }
        longest = sorted(sentences, key=lambda name: (-len(sentences[name]), name))[:classes]
        self.names = sorted(longest)
        topics: dict[tuple[str, ...], set[int]] = {}
        different: list[list[LabelledText]] = []
        for label, name in enumerate(self.names):
            texts = [LabelledText(f"{name}/{i}", text, None, label) for i, text in enumerate(sentences[name])]
            for text in texts:
                topics.setdefault(same_text(text), set()).add(label)
            different.append(list({same_text(text): text for text in texts}.values()))
        own = [[text for text in texts if len(topics[same_text(text)]) == 1] for texts in different]
        self.count = min(map(len, own))
        self.by_topic = [sorted(texts, key=lambda text: share(text.first))[: self.count] for texts in own]

    @property
    def class_names(self) -> list[str]:
        """The topics in alphabetical order."""
        return self.names

    def texts(self, split: Split) -> Sequence[LabelledText]:
        """As many of each topic, one topic after the other."""
        held_out = round(HELD_OUT * self.count)
        first, stop = {"validation": (0, held_out), "test": (held_out, 2 * held_out)}.get(split, (2 * held_out, None))
        return [text for texts in self.by_topic for text in texts[first:stop]]
