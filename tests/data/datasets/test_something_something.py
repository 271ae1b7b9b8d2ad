"""Something-Something v2's JSON lists."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_vl.data.datasets.something_something import SomethingSomething
from lightning_vl.errors import UserError

MakeClip = Callable[[Path, int], None]
PREFIX = "something-something-v2"


@pytest.fixture
def root(tmp_path: Path, make_clip: MakeClip) -> Path:
    """The release's layout, small: a webm and an mp4."""
    make_clip(tmp_path / "20bn-something-something-v2" / "78687.webm", 6)
    make_clip(tmp_path / "20bn-something-something-v2" / "42326.mp4", 7)
    labels = {"Holding something next to something": "1", "Closing something": "0"}
    train = [{"id": "78687", "label": "holding potato", "template": "Holding [something] next to [something]"}]
    validation = [{"id": "42326", "label": "closing book", "template": "Closing [something]"}]
    for name, content in (("labels", labels), ("train", train), ("validation", validation)):
        (tmp_path / f"{PREFIX}-{name}.json").write_text(json.dumps(content))
    return tmp_path


def test_release_layout(root: Path) -> None:
    """Classes are templates without brackets, by the release's numbers; suffixes do not matter."""
    source = SomethingSomething(str(root), classes=2)
    assert source.heads == {"class": ["Closing something", "Holding something next to something"]}
    (train,) = source.clips("train")
    assert (train.id, train.frames, train.labels) == ("78687", 6, {"class": 1})
    assert [clip.id for clip in source.clips("validation")] == [clip.id for clip in source.clips("test")] == ["42326"]
    assert source.read("test", 0, [0, 6]).shape == (2, 48, 64, 3)


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        (
            "labels",
            {"Closing something": "0", "Holding something next to something": "2"},
            "does not number its classes",
        ),
        ("labels", ["Closing something"], "does not number its classes"),
        ("labels", {"Closing something": "0"}, "has a class 'Holding something next to something' that"),
        ("train", [{"id": "1", "label": "x"}], "row 1 of .* has no template; it has id, label"),
        ("train", {"id": "1"}, "is no list of objects"),
        ("train", [], "names no clips"),
    ],
)
def test_wrong_lists(name: str, content: object, what: str, root: Path) -> None:
    """Another release's files must be refused, not half read."""
    (root / f"{PREFIX}-{name}.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=what):
        SomethingSomething(str(root)).clips("train")


def test_no_json(root: Path) -> None:
    """A download page saved under the file's name."""
    (root / f"{PREFIX}-train.json").write_text("<html>")
    with pytest.raises(UserError, match=r"train\.json is no JSON"):
        SomethingSomething(str(root)).clips("train")
    with pytest.raises(UserError, match="has 2 classes"):
        SomethingSomething(str(root), classes=174).clips("validation")
