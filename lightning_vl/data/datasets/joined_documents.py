"""Several corpora as one."""

from collections.abc import Iterator

from lightning_vl.data.documents import Document, DocumentSource, fingerprint_of
from lightning_vl.data.source import Split
from lightning_vl.errors import UserError


class JoinedDocuments(DocumentSource):
    """The documents of several sources, one source after another.

    Args:
        sources: where they come from.
    """

    def __init__(self, sources: list[DocumentSource]) -> None:
        if not sources:
            raise UserError("JoinedDocuments has no sources", "give it a list of one source or more")
        self.sources = sources

    def documents(self, split: Split) -> Iterator[Document]:
        """Those of each source's split."""
        for source in self.sources:
            yield from source.documents(split)

    def fingerprint(self, split: Split) -> str:
        """Of all sources, in order."""
        return fingerprint_of(*(source.fingerprint(split) for source in self.sources))
