"""Labelled sentences and pairs of sentences: what BERT is fine-tuned on (BERT, Sec. 4.1)."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from lightning_vl.data.source import Split
from lightning_vl.data.subset import hold_out


class LabelledText(NamedTuple):
    """One labelled sentence, or pair of sentences.

    Attributes:
        id: names it in reports and errors (file and line, say).
        first: the sentence, or the first of the pair.
        second: the second of the pair; None for a single sentence.
        label: class index.
    """

    id: str
    first: str
    second: str | None
    label: int


class LabelledTextSource(ABC):
    """Labelled texts in three splits."""

    @property
    @abstractmethod
    def class_names(self) -> list[str]:
        """Class names in the order of the logits."""

    @abstractmethod
    def texts(self, split: Split) -> Sequence[LabelledText]:
        """The texts of a split.

        Raises:
            UserError: the split cannot be had (missing file or column, wrong encoding, a label that is no class).
        """


def same_text(text: LabelledText) -> tuple[str, ...]:
    """What two texts share that are one to a reader: their words, whatever the case and the spaces between them."""
    parts = (text.first,) if text.second is None else (text.first, text.second)
    return tuple(" ".join(part.casefold().split()) for part in parts)


def hold_out_texts(
    texts: Sequence[LabelledText], class_names: Sequence[str], share: float, seed: int
) -> tuple[list[LabelledText], list[LabelledText]]:
    """Keeps a share of each class for validation; a text that occurs more than once is on one side alone.

    Args:
        texts: the training texts.
        class_names: names of the classes.
        share: share of each class's different texts that is held out, between 0 and 1.
        seed: seed of the choice.

    Returns:
        The texts to train on and those held out, in their order.

    Raises:
        UserError: a class is too small to keep some for validation.
    """
    label_of: dict[tuple[str, ...], int] = {}  # by its first occurrence, where they disagree
    for text in texts:
        label_of.setdefault(same_text(text), text.label)
    different = list(label_of)
    _, places = hold_out(list(label_of.values()), class_names, share, seed)
    held_out = {different[place] for place in places}
    kept = [text for text in texts if same_text(text) not in held_out]
    return kept, [text for text in texts if same_text(text) in held_out]
