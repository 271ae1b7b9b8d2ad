"""JSON lines: one document an object, one object a line."""

import json
from collections.abc import Iterator

from lightning_vl.data.datasets.text_files import FileSource
from lightning_vl.data.documents import Document, Punctuation, SentenceSplit
from lightning_vl.data.source import Split
from lightning_vl.errors import UserError


class JsonLines(FileSource):
    """JSON lines: each line that is not blank is an object, one of whose fields is a document's text.

    Args:
        root: the folder.
        splits: names or globs of files, relative to the root, by split; by default every .jsonl file is for training.
        text_field: the field of the text.
        id_field: the field of the document's id; by default file and line are its id.
        sentences: how a text becomes sentences; by default `Punctuation`.
        held_out: share of the training documents for each of validation and test that has no files.
        split_seed: seed of the choice, which is part of the experiment.
    """

    def __init__(
        self,
        root: str,
        splits: dict[Split, list[str]] | None = None,
        text_field: str = "text",
        id_field: str | None = None,
        sentences: SentenceSplit | None = None,
        held_out: float = 0.05,
        split_seed: int = 0,
    ) -> None:
        super().__init__(root, {"train": ["**/*.jsonl"]} if splits is None else splits, held_out, split_seed, "utf-8")
        self.text_field = text_field
        self.id_field = id_field
        self.sentences = Punctuation() if sentences is None else sentences

    @property
    def description(self) -> str:
        """Fields and rule of sentences."""
        return f"{super().description} {self.text_field} {self.id_field} {self.sentences.description}"

    def documents_of(self, name: str, lines: Iterator[str]) -> Iterator[Document]:
        """A document for each object.

        Raises:
            UserError: a line is no object, or has no such field; it names file and line.
        """
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            place = f"{name}:{number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(
                    f"{place} is no JSON: {error}", "give one JSON object a line, none of them cut off"
                ) from error
            if not isinstance(row, dict):
                raise UserError(f"{place} is no JSON object", f'give objects: {{"{self.text_field}": "..."}}')
            text = row.get(self.text_field)
            if not isinstance(text, str):
                held = (
                    f"holds no text under {self.text_field!r}"
                    if self.text_field in row
                    else _lacks(row, self.text_field)
                )
                raise UserError(
                    f"{place} {held}", "say which field does with the source's text_field, or mend the line"
                )
            if self.id_field is not None and self.id_field not in row:
                raise UserError(f"{place} {_lacks(row, self.id_field)}", "mend the source's id_field, or leave it out")
            id = place if self.id_field is None else str(row[self.id_field])
            yield Document(id, self.sentences.sentences(text))


def _lacks(row: dict[str, object], field: str) -> str:
    return f"has no field {field!r}; it has {', '.join(map(repr, list(row)[:8])) or 'none'}"
