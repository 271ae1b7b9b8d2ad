"""Names of shards with braces: what a shell makes of them, and which shard of a row is not there."""

from pathlib import Path

import pytest

from lightning_vl.data.datasets.shard_names import expanded, matching


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("shard-{00000..00002}.tar", ["shard-00000.tar", "shard-00001.tar", "shard-00002.tar"]),
        ("{8..11}.tar", ["8.tar", "9.tar", "10.tar", "11.tar"]),
        ("{08..11}.tar", ["08.tar", "09.tar", "10.tar", "11.tar"]),
        ("{a,b}/{0..1}.tar", ["a/0.tar", "a/1.tar", "b/0.tar", "b/1.tar"]),
        ("{x,y{1..2}}.tar", ["x.tar", "y1.tar", "y2.tar"]),
        ("{only}.tar", ["{only}.tar"]),
        ("*.tar", ["*.tar"]),
        ("{2..1}.tar", []),
    ],
)
def test_braces_are_those_of_a_shell(pattern: str, names: list[str]) -> None:
    """Breaks if the patterns of open_clip's and img2dataset's pages name other files here than there."""
    assert sorted(expanded(pattern)) == sorted(names)


def test_the_first_shard_of_a_row_that_is_not_there_is_named(tmp_path: Path) -> None:
    """Breaks if a row with a gap is trained on unsaid."""
    for name in ("0.tar", "1.tar", "3.tar"):
        (tmp_path / name).touch()
    assert matching(str(tmp_path), "{0..1}.tar") == (["0.tar", "1.tar"], None)
    assert matching(str(tmp_path), "{0..4}.tar")[1] == "2.tar"
    assert matching(str(tmp_path), "{4..2}.tar")[1] == "{4..2}.tar"
    assert sorted(matching(str(tmp_path), "*.tar")[0]) == ["0.tar", "1.tar", "3.tar"]
