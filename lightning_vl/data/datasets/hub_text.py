"""Text sets that the `datasets` library reads: of the Hugging Face hub, or in local files."""

import os
from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from lightning_vl.data.datasets.hub_images import load, nearest
from lightning_vl.data.documents import Document, HeldOutSource, Punctuation, SentenceSplit, fingerprint_of
from lightning_vl.data.source import Split
from lightning_vl.errors import UserError


class HubText(HeldOutSource):
    """Any text set of the hub by its name, or a local folder: parquet, JSON lines, or what `save_to_disk` wrote.

    A row is a document, or several rows are. Nothing is downloaded before the documents are asked for, and then once for each split: afterwards their tokens are
    in the cache.

    Args:
        path: the set's name on the hub (`wikimedia/wikipedia`), or a local folder.
        name: the set's configuration (`20231101.en`), where it has several.
        text_column: the column of texts.
        splits: the set's name of `train` and, where it has them, of `validation` and `test`.
        sentences: how a text becomes sentences; by default `Punctuation`.
        rows_of_document: so many rows in sequence are one document: for sets whose rows are the sentences of one text after
            another (`bookcorpus/bookcorpus`), in which a row by itself has nothing that could follow it.
        streaming: read the set as it comes, without keeping a copy of it on disk. It then has no fingerprint of its own: a
            set that changes on the hub without a change of its stated size is not noticed.
        held_out: share of the training documents for each of validation and test that the set lacks.
        split_seed: seed of the choice, which is part of the experiment.
    """

    def __init__(
        self,
        path: str,
        name: str | None = None,
        text_column: str = "text",
        splits: dict[Split, str] | None = None,
        sentences: SentenceSplit | None = None,
        rows_of_document: int = 1,
        streaming: bool = False,
        held_out: float = 0.05,
        split_seed: int = 0,
    ) -> None:
        self.splits: dict[Split, str] = {"train": "train"} if splits is None else splits
        super().__init__(self.splits, held_out, split_seed)
        self.path = path
        self.name = name
        self.text_column = text_column
        self.sentences = Punctuation() if sentences is None else sentences
        self.rows_of_document = rows_of_document
        self.streaming = streaming
        if rows_of_document < 1:
            raise UserError(f"rows_of_document is {rows_of_document}", "give 1 or more")

    def stored(self, split: Split) -> Iterator[Document]:
        """The documents of a split of the set, in the order of its rows."""
        texts = enumerate(self._texts(split))
        while stretch := list(islice(texts, self.rows_of_document)):
            sentences = self.sentences.sentences("\n".join(text for _, text in stretch))
            yield Document(f"{self.splits[split]}/{stretch[0][0]}", sentences)

    def _texts(self, split: Split) -> Iterator[str]:
        import datasets

        name = self.splits[split]
        rows = enumerate(self._tables[split])
        while True:
            try:
                number, row = next(rows, (-1, None))
            except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
                raise UserError(
                    f"{self.path}, split {name}, cannot be read on: {' '.join(str(error).split())}",
                    "check the network and the disk, and run the same command again",
                ) from error
            if row is None:
                return
            text = row[self.text_column]
            if text is not None and not isinstance(text, str):
                raise UserError(
                    f"{self.path}, split {name}, row {number}, holds no text under {self.text_column!r}",
                    "say which column does with the source's text_column",
                )
            yield text or ""

    def stored_fingerprint(self, split: Split) -> str:
        """That of `datasets`; where it has none, of what the set or the folder says of itself."""
        table = self._tables[split]
        known = getattr(table, "_fingerprint", None) or self._description(table)
        rule = (self.path, self.name, self.splits[split], self.text_column, self.rows_of_document)
        return fingerprint_of("hub text 1", known, self.sentences.description, *map(str, rule))

    def _description(self, table: Any) -> str:
        files = (
            [path for path in sorted(Path(self.path).rglob("*")) if path.is_file()] if os.path.isdir(self.path) else []
        )
        stamps = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
        info = table.info
        return str((stamps, info.version, info.splits, info.download_size, info.dataset_size))

    @cached_property
    def _tables(self) -> dict[Split, Any]:
        """A `datasets.Dataset` or `IterableDataset` of one column for each split."""
        found = load(self.path, self.name, streaming=self.streaming)
        tables: dict[Split, Any] = {}
        for split, name in self.splits.items():
            table = nearest(self.path, "split", name, found)
            nearest(self.path, "column", self.text_column, table.features or next(iter(table.take(1)), {}))
            tables[split] = table.select_columns([self.text_column])
        return tables

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_tables"}  # opened anew in each process
