"""Captions in tables: a row a pair."""

import csv
import difflib
import io
import os
from collections.abc import Sequence

from lightning_vl.data.datasets.labelled_table import read_text
from lightning_vl.data.datasets.listed_captions import CaptionedFile, ListedCaptions, by_file
from lightning_vl.data.source import Split
from lightning_vl.errors import UserError

Column = int | str


class CaptionTable(ListedCaptions):
    """Tables with an image file and a caption in each row: open_clip's, Conceptual Captions', or any of your own.

    Columns that are named stand in a header; columns given by number, from 0, need none. Cells are separated by tabs where
    the first line has one, otherwise by commas. Cells between commas may be quoted; those between tabs are taken as they
    are unless `quoted` says otherwise, for captions may begin with a quotation mark. Several rows of one image are its
    captions. All is UTF-8, and kept in memory: some millions of rows; more belong into `CaptionShards`.

    Args:
        root: the folder of tables and images.
        train: the table of training pairs, relative to the root.
        validation: that of validation; None for a share of the training images.
        test: that of test; None for a share of the training images.
        image_column: name or number of the column of image files, which are relative to the root or absolute.
        caption_column: name or number of the column of captions.
        quoted: cells between tabs may be quoted, too, as pandas writes them.
        held_out: share of the training images for each split without a table.
        split_seed: seed of that choice, which is part of the experiment.
    """

    def __init__(
        self,
        root: str,
        train: str,
        validation: str | None = None,
        test: str | None = None,
        image_column: Column = "filepath",
        caption_column: Column = "title",
        quoted: bool = False,
        held_out: float = 0.05,
        split_seed: int = 0,
    ) -> None:
        tables: dict[Split, str | None] = {"train": train, "validation": validation, "test": test}
        self.tables = {split: table for split, table in tables.items() if table is not None}
        super().__init__(root, self.tables.keys(), held_out, split_seed)
        self.image_column = image_column
        self.caption_column = caption_column
        self.quoted = quoted

    def listed(self, split: Split) -> Sequence[CaptionedFile]:
        """The rows of the split's table, those of one image together.

        Raises:
            UserError: no such table or column, another encoding, or a row without a cell; it names the line.
        """
        path = os.path.join(self.root, self.tables[split])
        rows = self._rows(path, read_text(path))
        image, caption = self.image_column, self.caption_column
        if isinstance(image, str) or isinstance(caption, str):
            _, header = rows.pop(0) if rows else (1, [])
            image, caption = (_place(path, header, column) for column in (image, caption))
        for line, cells in rows:
            if len(cells) <= max(image, caption):
                raise UserError(
                    f"line {line} of {path} has {len(cells)} cells, and images are in number {image}, captions in {caption} "
                    "(from 0)",
                    "mend the line, or say which columns they are with image_column and caption_column",
                )
        return by_file((cells[image].strip(), cells[caption]) for _, cells in rows if cells[image].strip())

    def _rows(self, path: str, text: str) -> list[tuple[int, list[str]]]:
        """The rows that are not blank, and in which line each ends."""
        tabs = "\t" in text.partition("\n")[0]
        quoted = self.quoted or not tabs
        lines = io.StringIO(text, newline="" if quoted else None)
        reader = csv.reader(
            lines,
            delimiter="\t" if tabs else ",",
            quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
            strict=True,
        )
        try:
            return [(reader.line_num, cells) for cells in reader if any(cells)]
        except csv.Error as error:
            raise UserError(f"line {reader.line_num} of {path} cannot be read: {error}", "mend its quotes") from error


def _place(path: str, header: list[str], column: Column) -> int:
    """The number of a column."""
    if isinstance(column, int):
        return column
    if column not in header:
        close = difflib.get_close_matches(column, header, n=3, cutoff=0.4) or [name[:40] for name in header[:8]]
        raise UserError(
            f"{path} has no column {column!r}",
            f"did you mean {' or '.join(map(repr, close))}? Without a header give numbers, from 0",
        )
    return header.index(column)
