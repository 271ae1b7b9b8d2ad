"""Several sources as one."""

from pathlib import Path

import pytest

from lightning_vl.data.datasets.joined_documents import JoinedDocuments
from lightning_vl.data.datasets.python_manual import PythonManual
from lightning_vl.data.datasets.text_files import TextFiles
from lightning_vl.errors import UserError


def test_one_after_another(tmp_path: Path) -> None:
    """Breaks if a source's documents are lost, or one that changes is served from the cache."""
    for name in ("train", "validation", "test"):
        (tmp_path / f"{name}.txt").write_text(f"{name} text")
    splits = {name: [f"{name}.txt"] for name in ("train", "validation", "test")}
    files, manual = TextFiles(str(tmp_path), splits), PythonManual()  # type: ignore[arg-type]
    joined = JoinedDocuments([manual, files])
    assert list(joined.documents("test")) == [*manual.documents("test"), ("test.txt:1", ["test text"])]
    before = joined.fingerprint("test")
    assert before != JoinedDocuments([files, manual]).fingerprint("test")
    (tmp_path / "test.txt").write_text("other text!")
    assert joined.fingerprint("test") != before
    assert joined.fingerprint("train") == JoinedDocuments([manual, files]).fingerprint("train")


def test_no_sources() -> None:
    """Breaks if nothing is joined in silence."""
    with pytest.raises(UserError, match="no sources"):
        JoinedDocuments([])
