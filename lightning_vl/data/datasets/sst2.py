"""SST-2: is a sentence of a film review favourable? In GLUE's files."""

import os
from collections.abc import Sequence

from lightning_vl.data.datasets.labelled_table import LabelledTable
from lightning_vl.data.labelled_text import LabelledText, LabelledTextSource
from lightning_vl.data.source import Split


class SST2(LabelledTextSource):
    """The Stanford Sentiment Treebank with two classes, as GLUE has it (BERT, Sec. 4.1).

    GLUE keeps the labels of its test set, so the test split here is GLUE's development set of 872 sentences. The validation
    split, which chooses the checkpoint, is a seeded share of the training set, whose 67,349 texts are phrases: no text is
    on both sides, but a phrase and its part may be, so validation accuracy is higher than the test's.

    Args:
        root: folder with `train.tsv` and `dev.tsv`.
        validation_share: share of the training texts of each class that is held out.
        seed: seed of the choice of them.
    """

    def __init__(self, root: str, validation_share: float = 0.02, seed: int = 0) -> None:
        self.table = LabelledTable(
            train=os.path.join(root, "train.tsv"),
            test=os.path.join(root, "dev.tsv"),
            class_names=self.class_names,
            validation_share=validation_share,
            seed=seed,
        )

    @property
    def class_names(self) -> list[str]:
        """0 is negative, 1 is positive."""
        return ["negative", "positive"]

    def texts(self, split: Split) -> Sequence[LabelledText]:
        """The sentences of a split."""
        return self.table.texts(split)
