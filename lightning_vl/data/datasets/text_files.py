"""Text files with a blank line between documents, and what every corpus in files shares."""

import glob
import hashlib
import os
from abc import abstractmethod
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from lightning_vl.data.documents import Document, HeldOutSource, Lines, SentenceSplit, fingerprint_of
from lightning_vl.data.source import Split
from lightning_vl.errors import UserError


class FileSource(HeldOutSource):
    """Documents in files below a root, read line by line.

    Args:
        root: the folder.
        splits: names or globs of files, relative to the root, by split; `**` is any folders.
        held_out: share of the training documents for each of validation and test that has no files.
        split_seed: seed of the choice, which is part of the experiment.
        encoding: of the files; one in which a line feed is one byte, as in UTF-8, latin-1 and cp1252.
    """

    def __init__(
        self, root: str, splits: dict[Split, list[str]], held_out: float, split_seed: int, encoding: str
    ) -> None:
        super().__init__(splits, held_out, split_seed)
        self.root = root
        self.splits = splits
        self.encoding = encoding

    @abstractmethod
    def documents_of(self, name: str, lines: Iterator[str]) -> Iterator[Document]:
        """The documents of a file, given its name and its lines from the first on."""

    @property
    def description(self) -> str:
        """What besides the files' bytes makes the documents, for fingerprints."""
        return f"{type(self).__name__} {self.encoding}"

    def stored(self, split: Split) -> Iterator[Document]:
        """The documents of the split's files, in the order of their names."""
        for name in self.files(split):
            yield from self.documents_of(name, read_lines(Path(self.root, name), self.encoding))

    def stored_fingerprint(self, split: Split) -> str:
        """Of the split's files: names and bytes."""
        names = self.files(split)
        return fingerprint_of(self.description, *names, *(file_hash(Path(self.root, name)) for name in names))

    def files(self, split: Split) -> list[str]:
        """The split's files relative to the root; those of one pattern by name.

        Raises:
            UserError: no such folder, a pattern that fits no file, or a file in two splits.
        """
        if not os.path.isdir(self.root):
            raise UserError(f"there is no folder {self.root}", "give the data's folder as the source's root")
        found: dict[str, Split] = {}
        for each, patterns in self.splits.items():
            for pattern in patterns:
                names = glob.glob(pattern, root_dir=self.root, recursive=True)
                names = sorted(name for name in names if os.path.isfile(os.path.join(self.root, name)))
                if not names:
                    raise UserError(f"no file of {self.root} fits {pattern!r}", f"mend the source's splits for {each}")
                for name in names:
                    if found.setdefault(name, each) != each:
                        raise UserError(
                            f"{name} is in the {found[name]} and in the {each} split",
                            "change the source's splits: what is tested on must not be trained on",
                        )
        return [name for name, each in found.items() if each == split]


class TextFiles(FileSource):
    """Text files: a blank line ends a document, and so does the end of a file.

    Args:
        root: the folder.
        splits: names or globs of files, relative to the root, by split; by default every .txt file is for training.
        sentences: how a document becomes sentences; by default a line is one, as the paper's released code reads them.
        held_out: share of the training documents for each of validation and test that has no files.
        split_seed: seed of the choice, which is part of the experiment.
        encoding: of the files; one in which a line feed is one byte, as in UTF-8, latin-1 and cp1252.
    """

    def __init__(
        self,
        root: str,
        splits: dict[Split, list[str]] | None = None,
        sentences: SentenceSplit | None = None,
        held_out: float = 0.05,
        split_seed: int = 0,
        encoding: str = "utf-8",
    ) -> None:
        super().__init__(root, {"train": ["**/*.txt"]} if splits is None else splits, held_out, split_seed, encoding)
        self.sentences = Lines() if sentences is None else sentences

    @property
    def description(self) -> str:
        """Encoding and rule of sentences."""
        return f"{super().description} {self.sentences.description}"

    def documents_of(self, name: str, lines: Iterator[str]) -> Iterator[Document]:
        """Each stretch of lines that are not blank; its id is the file and the number of its first line."""
        stretch: list[str] = []
        start = 0
        for number, line in enumerate(lines, start=1):
            if line.strip():
                start = start if stretch else number
                stretch.append(line)
            elif stretch:
                yield Document(f"{name}:{start}", self.sentences.sentences("\n".join(stretch)))
                stretch = []
        if stretch:
            yield Document(f"{name}:{start}", self.sentences.sentences("\n".join(stretch)))


def read_lines(path: Path, encoding: str) -> Iterator[str]:
    """The lines of a file without their ends (LF, CRLF or CR) and without a byte order mark.

    Raises:
        UserError: it cannot be read, or is in another encoding.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    text = line.decode(encoding)
                except (UnicodeDecodeError, LookupError) as error:
                    reason = f"byte {line[error.start]:#04x}" if isinstance(error, UnicodeDecodeError) else str(error)
                    raise UserError(
                        f"{path}, line {number}, is no {encoding}: {reason}",
                        "convert the file: iconv -f latin1 -t utf-8, or give the source its encoding (latin-1, cp1252)",
                    ) from error
                text = text.removeprefix("\ufeff") if number == 1 else text
                yield from text.removesuffix("\n").removesuffix("\r").split("\r")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}", "check the source's root and splits") from error


def file_hash(path: Path) -> str:
    """A hash of a file's bytes; read again only when size or time of change differ.

    Raises:
        UserError: it cannot be read.
    """
    try:
        status = path.stat()
        return _file_hash(path.resolve(), status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}", "check the source's root and splits") from error


@cache
def _file_hash(path: Path, size: int, changed_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
