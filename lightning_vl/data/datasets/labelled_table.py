"""Labelled texts of your own, as tables: CSV, TSV or JSON lines."""

import csv
import io
import json
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

from lightning_vl.data.labelled_text import LabelledText, LabelledTextSource, hold_out_texts
from lightning_vl.data.source import Split
from lightning_vl.errors import UserError


class Row(NamedTuple):
    """One row of a table.

    Attributes:
        line: its line in the file, from 1.
        cells: by column.
    """

    line: int
    cells: dict[str, str]


class LabelledTable(LabelledTextSource):
    """Sentences or pairs with a label each, a row a text.

    A ``.csv`` file has a header and may quote its cells; a ``.tsv`` file has a header and no quoting, as GLUE's; a
    ``.jsonl`` file has an object a line. All are UTF-8.

    Args:
        train: file with the training texts.
        test: file with the test texts.
        validation: file with the validation texts; without it a share of the training texts is held out.
        first: column of the sentence, or of the pair's first.
        second: column of the pair's second; None for single sentences.
        label: column of the label: a class's name or number.
        class_names: the classes in order; by default those of the training texts, in alphabetical order (numbers by
            value).
        validation_share: the share that is held out, of each class; texts that occur twice stay together.
        seed: seed of the choice of them.
    """

    def __init__(
        self,
        train: str,
        test: str,
        validation: str | None = None,
        first: str = "sentence",
        second: str | None = None,
        label: str = "label",
        class_names: list[str] | None = None,
        validation_share: float = 0.1,
        seed: int = 0,
    ) -> None:
        self.files: dict[Split, str | None] = {"train": train, "validation": validation, "test": test}
        self.first = first
        self.second = second
        self.label = label
        self.named = class_names
        self.validation_share = validation_share
        self.seed = seed

    @cached_property
    def class_names(self) -> list[str]:
        """As given, or those of the training texts."""
        if self.named is not None:
            return self.named
        labels = {row.cells[self.label] for row in self._rows("train")}
        return sorted(labels, key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name))

    def texts(self, split: Split) -> Sequence[LabelledText]:
        """The rows of the split's file, or of the training file, part of which is then for validation."""
        if self.files["validation"] is not None or split == "test":
            return self._labelled(split)
        train, validation = hold_out_texts(self._labelled("train"), self.class_names, self.validation_share, self.seed)
        return train if split == "train" else validation

    def _labelled(self, split: Split) -> list[LabelledText]:
        path = self._path(split)
        indices = class_indices(self.class_names)
        return [
            LabelledText(
                f"{os.path.basename(path)}:{line}",
                cells[self.first],
                None if self.second is None else cells[self.second],
                class_index(cells[self.label], indices, path, line),
            )
            for line, cells in self._rows(split)
        ]

    def _rows(self, split: Split) -> list[Row]:
        pair = [] if self.second is None else [self.second]
        return read_rows(self._path(split), [self.first, *pair, self.label])

    def _path(self, split: Split) -> str:
        path = self.files[split]
        assert path is not None
        return path


def class_indices(class_names: Sequence[str]) -> dict[str, int]:
    """Class index by name and by number."""
    # where names are numbers themselves, a number is a name
    named = any(name.isdecimal() for name in class_names)
    numbers = {} if named else {str(index): index for index in range(len(class_names))}
    return numbers | {name: index for index, name in enumerate(class_names)}


def class_index(label: str, indices: dict[str, int], path: str, line: int) -> int:
    """The class index of a label.

    Raises:
        UserError: it is no class.
    """
    if label not in indices:
        names = [name for name, index in indices.items() if name != str(index)] or list(indices)
        raise UserError(
            f"line {line} of {path} has a label {label!r}, the classes are "
            f"{', '.join(names[:4])}{', ...' if len(names) > 4 else ''}",
            "mend the label, or say which classes there are",
        )
    return indices[label]


def read_rows(path: str, columns: Sequence[str], header: Sequence[str] | None = None) -> list[Row]:
    """The rows of a ``.csv``, ``.tsv`` or ``.jsonl`` file.

    Args:
        path: the file.
        columns: the columns that every row must have.
        header: names of the columns where the file does not begin with them.

    Raises:
        UserError: no such file, not UTF-8, nothing in it, or a row without a column; it names the line.
    """
    text = read_text(path)
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in (".csv", ".tsv", ".jsonl"):
        raise UserError(f"{path} is no .csv, .tsv or .jsonl", "name a file of one of these, with its suffix")
    rows = list(_objects(path, text) if suffix == ".jsonl" else _table(path, text, suffix == ".csv", header))
    if not rows:
        raise UserError(f"{path} has no rows", "give a file with texts in it")
    for line, cells in rows:
        if absent := [column for column in columns if column not in cells]:
            raise UserError(
                f"line {line} of {path} has no column {' and no '.join(absent)}; it has {', '.join(cells)}",
                f"give every row {', '.join(columns)}, or name the file's own columns",
            )
    return rows


def read_text(path: str) -> str:
    """A UTF-8 file.

    Raises:
        UserError: it cannot be read, or is in another encoding; it names the line.
    """
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}", "check the source's paths") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"line {line} of {path} is not UTF-8", "convert the file to UTF-8") from error


def _table(path: str, text: str, quoted: bool, header: Sequence[str] | None) -> Iterator[Row]:
    for line, cells in _quoted(path, text) if quoted else _unquoted(text):
        if header is None:
            header = cells
        elif len(cells) != len(header):
            raise UserError(
                f"line {line} of {path} has {len(cells)} columns, not {len(header)} ({', '.join(header)})",
                "mend the line",
            )
        else:
            yield Row(line, dict(zip(header, cells, strict=True)))


def _unquoted(text: str) -> Iterator[tuple[int, list[str]]]:
    for line, content in enumerate(text.split("\n"), start=1):  # str.splitlines would also split within sentences
        if content.strip():
            yield line, content.rstrip("\r").split("\t")


def _quoted(path: str, text: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    line = 1  # where a row begins; a cell in quotes may go over several lines
    try:
        for cells in reader:
            if cells:
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"line {line} of {path} cannot be read: {error}", "mend its quotes") from error


def _objects(path: str, text: str) -> Iterator[Row]:
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        try:
            row = json.loads(content)
        except ValueError as error:
            raise UserError(f"line {line} of {path} is no JSON: {error}", "write one object a line") from error
        if not isinstance(row, dict):
            raise UserError(f"line {line} of {path} is no JSON object", "write one object a line")
        yield Row(line, {name: str(value) for name, value in row.items() if value is not None})
