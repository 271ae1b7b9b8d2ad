"""Emoji: captions, splits by style, classes, and the real set where it is."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lightning_vl.data.datasets.emoji import Emoji, EmojiCategories, EmojiNames
from lightning_vl.errors import UserError


def row(number: int, name: str, short_names: list[str], category: str = "Objects") -> dict[str, Any]:
    """One emoji of both styles."""
    styles = ["google", "twitter"]
    return {"image": f"{number}.png", "name": name, "short_names": short_names, "category": category, "styles": styles}


ROWS = [
    row(0, "tiger", ["tiger2"], "Animals & Nature"),
    row(1, "tiger face", ["tiger"], "Animals & Nature"),
    row(2, "police officer", ["cop"], "People & Body"),
    row(3, "thumbs up sign", ["+1", "thumbs_up"], "People & Body"),
    row(4, "clock face one oclock", ["clock1"]),
    row(5, "clock face two oclock", ["clock2"]),
    row(6, "squared cjk unified ideograph-6307", ["u6307"]),
    row(7, "sark flag", ["flag-cq"], "Flags"),
    row(8, "man in tuxedo", ["man_in_tuxedo"], "People & Body"),
    row(9, "man in tuxedo", ["person_in_tuxedo"], "People & Body"),
    row(10, "cross mark", ["x"]),
    *(row(number, f"thing {number}", [f"a_thing-of-{number}s"]) for number in range(11, 40)),
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Forty emoji in two styles: a number, and the same the other way round; transparent ones."""
    for style in ("google", "twitter"):
        (tmp_path / style).mkdir()
        for number in range(40):
            shade = number if style == "google" else 255 - number
            Image.new("RGBA", (3, 2), (shade, shade, shade, 255 if number else 0)).save(
                tmp_path / style / f"{number}.png"
            )
    (tmp_path / "emoji.json").write_text(json.dumps(ROWS))
    return tmp_path


def test_captions_are_words_that_name_one_emoji(root: Path) -> None:
    """Breaks if codes, letters or words that fit several emoji become captions."""
    captions = [image.captions for image in Emoji(str(root)).images("test")]
    assert captions[:11] == [
        ("tiger",),
        ("tiger face",),
        ("police officer", "cop"),
        ("thumbs up sign", "thumbs up"),
        ("clock face one oclock",),
        ("clock face two oclock",),
        ("squared cjk unified ideograph-6307",),
        ("sark flag",),
        ("man in tuxedo",),
        ("man in tuxedo", "person in tuxedo"),
        ("cross mark",),
    ]
    assert captions[12] == ("thing 12", "a thing of 12s")


def test_one_style_is_trained_on_and_the_other_tested_on(root: Path) -> None:
    """Breaks if a test drawing is trained on, or a held-out emoji is; transparent pixels are white."""
    source = Emoji(str(root), held_out=0.2)
    train, validation, test = (source.images(split) for split in ("train", "validation", "test"))
    assert {image.id.split("/")[0] for image in [*train, *validation]} == {"google"}
    assert [image.id for image in test] == [f"twitter/{number}.png" for number in range(40)]
    assert sorted(image.id for image in [*train, *validation]) == sorted(f"google/{number}.png" for number in range(40))
    assert 0 < len(validation) < 20
    assert source.read("test", 30)[0, 0, 0] == 225
    assert source.read("test", 0)[0, 0, 0] == 255
    other = Emoji(str(root), train_style="twitter", test_style="google", held_out=0.2)
    assert [Path(image.id).name for image in other.images("validation")] == [
        Path(image.id).name for image in validation
    ]


def test_classes(root: Path) -> None:
    """Breaks if two emoji are one class, or if a label is another emoji's."""
    names = EmojiNames(str(root))
    assert len(names.class_names) == 40
    labels = [names.class_names[image.label] for image in names.images("test")]
    assert labels[:3] + labels[8:10] == ["tiger", "tiger face", "police officer", "man in tuxedo", "person in tuxedo"]
    assert names.read("test", 30)[0, 0, 0] == 225
    categories = EmojiCategories(str(root))
    assert categories.class_names == ["animals and nature", "flags", "objects", "people and body"]
    assert [image.label for image in categories.images("test")][:8] == [0, 0, 3, 3, 2, 2, 2, 1]


def test_mistakes_take_two_lines(root: Path) -> None:
    """A style or file that is not there, and JSON of another kind."""
    with pytest.raises(UserError, match="no emoji of the style 'apple'") as error:
        Emoji(str(root), test_style="apple").images("test")
    assert error.value.how == "take one of google, twitter"
    (root / "emoji.json").write_text('[{"image": "a.png"}]')
    with pytest.raises(UserError, match="is JSON of another kind"):
        EmojiNames(str(root)).images("test")
    (root / "emoji.json").unlink()
    with pytest.raises(UserError, match="cannot be read"):
        Emoji(str(root)).images("test")


def test_the_real_set(real_data: Path) -> None:
    """Breaks if the set that experiments train on changes its numbers: 1,911 emoji, 10 categories, 64 px."""
    root = str(real_data / "emoji")
    source = Emoji(root)
    assert [len(source.images(split)) for split in ("train", "validation", "test")] == [1743, 168, 1911]
    assert source.read("test", 0).shape == source.read("train", 0).shape == (64, 64, 3)
    assert len(EmojiNames(root).class_names) == 1911
    assert len(EmojiCategories(root).class_names) == 10
