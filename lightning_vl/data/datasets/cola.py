"""CoLA: is a sentence good English? In the files of its release 1.1."""

import os
from collections.abc import Sequence

from lightning_vl.data.datasets.labelled_table import class_index, class_indices, read_rows
from lightning_vl.data.labelled_text import LabelledText, LabelledTextSource, hold_out_texts
from lightning_vl.data.source import Split


class CoLA(LabelledTextSource):
    """The Corpus of Linguistic Acceptability (BERT, Sec. 4.1).

    The labels of its test set are not public, so the test split here is GLUE's development set: the 527 sentences from
    the books of the training set and the 516 from others. The validation split, which chooses the checkpoint, is a
    seeded share of the training set; no text is on both sides.

    Args:
        root: folder with `in_domain_train.tsv`, `in_domain_dev.tsv` and `out_of_domain_dev.tsv`.
        validation_share: share of the training sentences of each class that is held out.
        seed: seed of the choice of them.
    """

    def __init__(self, root: str, validation_share: float = 0.1, seed: int = 0) -> None:
        self.root = root
        self.validation_share = validation_share
        self.seed = seed

    @property
    def class_names(self) -> list[str]:
        """0 is unacceptable, 1 is acceptable."""
        return ["unacceptable", "acceptable"]

    def texts(self, split: Split) -> Sequence[LabelledText]:
        """The sentences of a split."""
        if split == "test":
            return [*self._read("in_domain_dev.tsv"), *self._read("out_of_domain_dev.tsv")]
        texts = self._read("in_domain_train.tsv")
        train, validation = hold_out_texts(texts, self.class_names, self.validation_share, self.seed)
        return train if split == "train" else validation

    def _read(self, name: str) -> list[LabelledText]:
        path = os.path.join(self.root, name)
        indices = class_indices(self.class_names)
        rows = read_rows(path, ["label", "sentence"], header=["source", "label", "mark", "sentence"])
        return [
            LabelledText(f"{name}:{line}", cells["sentence"], None, class_index(cells["label"], indices, path, line))
            for line, cells in rows
        ]
