"""Tasks made of CPython's manual: balanced, the same in every process, and no text in two splits."""

from collections import Counter

import pytest

from lightning_vl.data.datasets.manual_sentences import ManualNeighbours, ManualTopics
from lightning_vl.data.datasets.python_manual import PythonManual
from lightning_vl.data.documents import SPLITS
from lightning_vl.data.labelled_text import LabelledTextSource, same_text
from lightning_vl.evaluation.bag_of_words import bag_of_words


@pytest.mark.parametrize("source", [ManualNeighbours, ManualTopics])
def test_splits_are_balanced_and_apart(source: type[LabelledTextSource]) -> None:
    """Breaks if a class is larger than another, a text is in two splits, or two makings differ."""
    first, again = source(), source()
    splits = {split: first.texts(split) for split in SPLITS}
    assert splits == {split: again.texts(split) for split in SPLITS}
    for texts in splits.values():
        counts = Counter(text.label for text in texts)
        assert counts.keys() == set(range(len(first.class_names)))
        assert len(set(counts.values())) == 1
        assert len({text.id for text in texts}) == len({same_text(text) for text in texts}) == len(texts)
    seen = [{same_text(text) for text in texts} for texts in splits.values()]
    assert not seen[0] & seen[1] | seen[0] & seen[2] | seen[1] & seen[2]


def test_neighbours() -> None:
    """Breaks if a second sentence does not follow the first, or one from elsewhere is from the same document or split."""
    manual = PythonManual()
    source = ManualNeighbours()
    for split in SPLITS:
        of = {document.id: document.sentences for document in manual.documents(split)}
        texts = source.texts(split)
        for follows, elsewhere in zip(texts[::2], texts[1::2], strict=True):
            assert (follows.label, elsewhere.label) == (0, 1)
            assert follows.first == elsewhere.first
            name = follows.id.split("/")[0]
            assert of[name].index(follows.first) < len(of[name]) - 1 - of[name][::-1].index(follows.second)
            assert any(elsewhere.second in sentences for other, sentences in of.items() if other != name)


def test_a_bag_of_words_on_neighbours() -> None:
    """Breaks if the words of one sentence alone give away whether it belongs there."""
    source = ManualNeighbours()
    said = bag_of_words(source.texts("train"), source.texts("test"))
    right = sum(label == text.label for label, text in zip(said, source.texts("test"), strict=True)) / len(said)
    assert 0.4 < right < 0.6


def test_topics() -> None:
    """Breaks if a sentence gets another chapter's name, or few sentences are held out."""
    source = ManualTopics(classes=5)
    assert len(source.class_names) == 5
    sizes = [len(source.texts(split)) for split in SPLITS]
    assert sizes[1] == sizes[2]
    assert sizes[0] == pytest.approx(3 * sizes[1], abs=10)
    manual = PythonManual()
    of = {document.id: document.sentences for split in SPLITS for document in manual.documents(split)}
    for text in source.texts("test"):
        assert text.first in of[source.class_names[text.label]]
