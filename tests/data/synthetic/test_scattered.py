"""Scattered digits and letters: what an image is made of, and what it must not give away."""

import numpy as np
import pytest

from lightning_vl.data.synthetic.scattered import BLOCK, FONTS, Scattered, ScatteredDigits, ScatteredLetters
from lightning_vl.errors import UserError


def digits(train_images: int = 60, seed: int = 0, noise: float = 0.05, fragments: int = 6) -> ScatteredDigits:
    """Few and small ones."""
    return ScatteredDigits(
        train_images, validation_images=20, test_images=20, size=16, fragments=fragments, noise=noise, seed=seed
    )


def pixels(source: Scattered, split: str, count: int) -> np.ndarray:
    """The first images of a split."""
    return np.stack([source.read(split, index) for index in range(count)])  # type: ignore[arg-type]


def test_an_image_is_a_function_of_seed_split_and_index() -> None:
    """Breaks if two processes, or a resumed run, would see other images, or if splits or seeds shared them."""
    first = pixels(digits(), "train", 20)
    assert np.array_equal(first, pixels(digits(), "train", 20))
    assert not np.array_equal(first, pixels(digits(seed=1), "train", 20))
    assert not np.array_equal(first, pixels(digits(), "test", 20))
    assert first.shape == (20, 16, 16, 3)
    assert first.dtype == np.uint8


def test_a_shorter_training_split_is_the_beginning_of_a_longer_one() -> None:
    """Breaks if runs over the number of images would not be nested, also across the blocks that images are drawn in."""
    long, short = digits(BLOCK + 40), digits(60)
    assert np.array_equal(pixels(long, "train", 60), pixels(short, "train", 60))
    assert len(long.images("train")) == BLOCK + 40
    longer = digits(2 * BLOCK)
    assert np.array_equal(long.read("train", BLOCK + 39), longer.read("train", BLOCK + 39))


@pytest.mark.parametrize("source", [digits(), ScatteredLetters(60, 52, 52, size=16)], ids=["digits", "letters"])
def test_every_split_is_balanced_and_labels_are_the_glyphs(source: Scattered) -> None:
    """Breaks if a class were rarer than another by more than one, or a label not that of the glyph drawn."""
    for split in ("train", "validation", "test"):
        counts = np.bincount([image.label for image in source.images(split)], minlength=len(source.class_names))
        assert counts.max() - counts.min() <= 1


def test_the_label_is_that_of_the_glyph_that_is_drawn() -> None:
    """Breaks if labels and glyphs go out of step: upright, centred and without clutter, neighbours in pixels agree."""
    source = ScatteredDigits(600, 20, 100, size=16, fragments=0, scale=(1.0, 1.0), angle=0.0, noise=0.0)
    train, test = pixels(source, "train", 600), pixels(source, "test", 100)
    labels = np.array([image.label for image in source.images("train")])
    flat, asked = train[..., 0].reshape(600, -1).astype(float), test[..., 0].reshape(100, -1).astype(float)
    flat, asked = ((x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True) for x in (flat, asked))
    nearest = labels[(asked @ flat.T).argmax(1)]
    assert (nearest == np.array([image.label for image in source.images("test")])).mean() > 0.9


def test_no_glyph_is_in_two_splits() -> None:
    """Breaks if a handwriting sample or a font of the test split were seen in training."""
    source = digits()
    seen = {split: {glyph.numpy().tobytes() for of in source.glyphs(split) for glyph in of} for split in FONTS}
    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["validation"]
    assert not set(FONTS["train"]) & set(FONTS["test"])
    assert not set(FONTS["validation"]) & set(FONTS["test"])


def test_glyphs_are_spread_over_the_canvas_and_lie_within_it() -> None:
    """Breaks if places were not drawn evenly, so that nothing about translation would have to be learnt."""
    source = ScatteredDigits(1000, 20, 20, size=32, fragments=0, scale=(0.3, 0.3), angle=0.0, noise=0.0)
    images = pixels(source, "train", 1000)[..., 0].astype(float)
    bright = images * (images > 130)  # above the light of any background
    weight = bright.sum((1, 2))
    rows = (bright.sum(2) @ np.arange(32))[weight > 0] / weight[weight > 0]
    assert rows.min() < 7
    assert rows.max() > 24
    share = np.histogram(rows, bins=4, range=(5, 27))[0] / len(rows)
    assert share.min() > 0.15


def test_clutter_and_noise_are_there() -> None:
    """Breaks if fragments or noise were left out."""
    plain = pixels(digits(noise=0.0, fragments=0), "train", 20)
    assert (pixels(digits(noise=0.0), "train", 20) > plain).mean() > 0.02
    assert pixels(digits(fragments=0), "train", 20).std() > plain.std()


def test_letters_are_drawn_in_every_font() -> None:
    """Breaks if a font lacked a letter or drew an empty one."""
    for split in ("train", "validation", "test"):
        glyphs = ScatteredLetters().glyphs(split)  # type: ignore[arg-type]
        assert len(glyphs) == 26
        assert all(glyph.max() > 0.5 for of_letter in glyphs for glyph in of_letter)


def test_a_wrong_scale_is_refused() -> None:
    """Breaks if a glyph larger than the image were drawn without a word."""
    with pytest.raises(UserError, match="scale"):
        ScatteredDigits(scale=(0.5, 1.5))


def test_a_split_without_images_is_refused() -> None:
    """Breaks if a length of nought ended in a traceback."""
    with pytest.raises(UserError, match="0"):
        ScatteredDigits(train_images=0)
