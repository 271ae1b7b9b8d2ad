"""JSON lines: fields, ids, and lines that are wrong are named by file and number."""

import json
from pathlib import Path
from typing import Any

import pytest

from lightning_vl.data.datasets.json_lines import JsonLines
from lightning_vl.data.documents import Lines
from lightning_vl.data.source import Split
from lightning_vl.errors import UserError

SPLITS: dict[Split, list[str]] = {"train": ["a.jsonl"], "validation": ["v.jsonl"], "test": ["v.json"]}


def written(root: Path, *lines: object) -> str:
    """A folder whose training file has these lines."""
    for name in ("v.jsonl", "v.json"):
        (root / name).write_text('{"text": "held out"}\n')
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (root / "a.jsonl").write_text("\n".join(texts))
    return str(root)


def test_fields_and_ids(tmp_path: Path) -> None:
    """Breaks if another field is read, or a document loses its name."""
    root = written(
        tmp_path, {"text": "One. Two.", "n": 7}, "", {"text": "", "n": "x"}, {"text": "Thr\u00e9e\nfour", "n": 9}
    )
    assert list(JsonLines(root, SPLITS).documents("train")) == [
        ("a.jsonl:1", ["One.", "Two."]),
        ("a.jsonl:3", []),
        ("a.jsonl:4", ["Thrée", "four"]),
    ]
    named = JsonLines(root, SPLITS, id_field="n", sentences=Lines())
    assert list(named.documents("train"))[:2] == [("7", ["One. Two."]), ("x", [])]
    other = written(tmp_path, {"body": "Text."})
    assert list(JsonLines(other, SPLITS, text_field="body").documents("train")) == [("a.jsonl:1", ["Text."])]


def test_held_out(tmp_path: Path) -> None:
    """Breaks if a single file cannot be trained on."""
    (tmp_path / "all.jsonl").write_text("".join(f'{{"text": "document {number}"}}\n' for number in range(200)))
    source = JsonLines(str(tmp_path), held_out=0.1)
    splits: tuple[Split, ...] = ("train", "validation", "test")
    counts = [len(list(source.documents(split))) for split in splits]
    assert sum(counts) == 200
    assert min(counts) > 5


@pytest.mark.parametrize(
    ("line", "arguments", "said"),
    [
        ('{"text": "cut', {}, r"a\.jsonl:2 is no JSON"),
        ("[" * 100_000, {}, r"a\.jsonl:2 is no JSON"),
        ('["text"]', {}, r"a\.jsonl:2 is no JSON object"),
        ({"txt": "a", "id": 1}, {}, r"a\.jsonl:2 has no field 'text'; it has 'txt', 'id'"),
        ({}, {}, "it has none"),
        ({"text": None}, {}, r"a\.jsonl:2 holds no text under 'text'"),
        ({"text": ["a"]}, {}, "holds no text"),
        ({"text": "a"}, {"id_field": "id"}, r"a\.jsonl:2 has no field 'id'"),
    ],
)
def test_wrong_lines(tmp_path: Path, line: Any, arguments: dict[str, Any], said: str) -> None:
    """Breaks if a broken line is skipped in silence, or its place is not said."""
    root = written(tmp_path, {"text": "fine", "id": 0}, line)
    with pytest.raises(UserError, match=said):
        list(JsonLines(root, SPLITS, **arguments).documents("train"))


def test_fingerprint(tmp_path: Path) -> None:
    """Breaks if another field's text is served from the cache."""
    root = written(tmp_path, {"text": "a", "body": "b"})
    sources = [
        JsonLines(root, SPLITS),
        JsonLines(root, SPLITS, text_field="body"),
        JsonLines(root, SPLITS, id_field="text"),
    ]
    assert len({source.fingerprint("train") for source in sources}) == 3
