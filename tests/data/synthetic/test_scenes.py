"""Drawn scenes: what is in them is what is drawn, and nothing of the test split is seen in training."""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest
from PIL import Image

from lightning_vl.data.source import Split
from lightning_vl.data.synthetic import scenes
from lightning_vl.data.synthetic.drawn_scenes import CAPTIONS_STREAM, DrawnScenes, SceneCounts, SceneDigits, SceneShapes
from lightning_vl.data.synthetic.scattered import ScatteredDigits
from lightning_vl.data.synthetic.scenes import (
    BEYOND,
    BLOCK,
    COLOURS,
    DIGITS,
    HELD_OUT,
    LAYOUTS,
    MARGIN,
    NAMES,
    POSITIONS,
    SHAPES,
    Scene,
    SceneMaker,
    pair_shares,
)
from lightning_vl.errors import UserError

SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def drawn(train_images: int = 40, size: int = 32, noise: float = 0.04, seed: int = 0) -> DrawnScenes:
    """Few and small ones."""
    return DrawnScenes(train_images, validation_images=20, test_images=20, size=size, noise=noise, seed=seed)


@pytest.fixture(scope="module")
def many() -> list[Scene]:
    """Enough training scenes to count in."""
    return DrawnScenes(3 * BLOCK, 1, 1, size=24).scenes("train")


def test_a_scene_is_a_function_of_seed_split_and_index() -> None:
    """Breaks if two processes, or a resumed run, would see other images, or if splits or seeds shared them."""
    first, again, other = drawn(), drawn(), drawn(seed=1)
    assert first.scenes("train") == again.scenes("train")
    assert np.array_equal(first.maker.pixels("train"), again.maker.pixels("train"))
    assert not np.array_equal(first.maker.pixels("train"), other.maker.pixels("train"))
    assert first.scenes("validation") != first.scenes("train")[:20]
    assert first.read("train", 3).shape == (32, 32, 3)
    assert first.read("train", 3).dtype == np.uint8


def test_sources_of_one_seed_have_different_scenes() -> None:
    """Breaks if two sources that choose alike had the same scenes, so that what one tests the other had trained on."""
    shapes = SceneShapes(40, 1, 1, size=24).maker
    other = SceneMaker(shapes.lengths, 24, shapes.noise, 0, shapes.stream + 1, shapes.choice)
    assert shapes.scenes("train") != other.scenes("train")
    assert len({source.stream for source in (SceneShapes, SceneDigits, SceneCounts)} | {CAPTIONS_STREAM}) == 4


def test_a_shorter_training_split_is_the_beginning_of_a_longer_one() -> None:
    """Breaks if runs over the number of images would not be nested, also across the blocks that scenes are drawn in."""
    long, short = drawn(BLOCK + 8, size=24), drawn(40, size=24)
    assert long.scenes("train")[:40] == short.scenes("train")
    assert np.array_equal(long.maker.pixels("train")[:40], short.maker.pixels("train"))
    assert len(long.scenes("train")) == len(long.maker.pixels("train")) == BLOCK + 8
    assert long.scenes("train")[BLOCK:] != long.scenes("train")[:8]


def test_held_out_combinations_are_in_the_test_split_only(many: list[Scene]) -> None:
    """Breaks if a network could have learnt from examples what it is asked without."""
    assert len(set(HELD_OUT)) == len(NAMES)
    assert {name for _, name in HELD_OUT} == set(NAMES)
    assert {colour for colour, _ in HELD_OUT} == set(COLOURS)
    seen = Counter((thing.colour, thing.name) for scene in many for thing in scene.objects)
    assert len(seen) == len(COLOURS) * len(NAMES) - len(HELD_OUT)
    assert not set(seen) & set(HELD_OUT)
    assert not any(scene.unseen for scene in drawn().scenes("validation"))


def test_attributes_are_evenly_spread(many: list[Scene]) -> None:
    """Breaks if a colour, name, size, place or number were rarer than it should be."""
    first = [scene.objects[0] for scene in many]
    shares = pair_shares().reshape(len(NAMES), len(COLOURS))
    assert shares.sum(1)[: len(SHAPES)] == pytest.approx(1 / 16)  # shapes as often as digits
    assert shares.sum(1)[len(SHAPES) :] == pytest.approx(1 / 20)
    assert np.abs(shares.sum(0) - 1 / 8).max() < 0.01
    expected: list[tuple[list[object], dict[object, float]]] = [
        ([thing.name for thing in first], dict(zip(NAMES, shares.sum(1), strict=True))),
        ([thing.colour for thing in first], dict(zip(COLOURS, shares.sum(0), strict=True))),
        ([thing.size for thing in first], {"small": 0.5, "large": 0.5}),
        ([thing.position for thing in first], dict.fromkeys(POSITIONS, 1 / 9)),
        ([tuple(map(len, scene.groups)) for scene in many], dict.fromkeys(LAYOUTS, 1 / len(LAYOUTS))),
    ]
    for found, likely in expected:
        counts = Counter(found)
        assert set(counts) == set(likely)
        for value, share in likely.items():
            assert abs(counts[value] - len(many) * share) < 4.5 * math.sqrt(len(many) * share * (1 - share)), value


def test_groups_are_of_equals_and_differ(many: list[Scene]) -> None:
    """Breaks if two groups of a scene were alike, so that counts were wrong, or things of one group were not."""
    for scene in many:
        for group in scene.groups:
            assert len({(thing.size, thing.kind) for thing in group}) == 1
            assert group[0].kind == ("digit" if group[0].name in DIGITS else "shape")
        assert len({thing.position for thing in scene.objects}) == len(scene.objects) <= 4


@pytest.mark.parametrize("size", [32, 48])
def test_a_box_is_tight_around_what_is_drawn(size: int) -> None:
    """Breaks if a box were shifted, too large or too small, by more than the pixel that the light of the background is worth."""
    for source in (SceneShapes(80, 1, 1, size=size, noise=0.0), SceneDigits(80, 1, 1, size=size, noise=0.0)):
        for index, scene in enumerate(source.scenes("train")):
            (thing,) = scene.objects
            pixels = source.read("train", index).max(-1).astype(float)
            inside = pixels > (pixels.max() + np.median(pixels)) / 2
            rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
            edges = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
            assert np.abs(edges - thing.box).max() <= 1, (thing, edges)


def test_nothing_is_drawn_outside_the_boxes_and_something_in_each() -> None:
    """Breaks if a thing were missing, or more were drawn than the scene says."""
    source = drawn(60, size=48, noise=0.0)
    for scene, pixels in zip(source.scenes("train"), source.maker.pixels("train").max(-1), strict=True):
        outside = np.ones((48, 48), bool)
        for left, top, right, bottom in (thing.box for thing in scene.objects):
            outside[max(top - 1, 0) : bottom + 1, max(left - 1, 0) : right + 1] = False
            assert pixels[top:bottom, left:right].max() > 180
        assert pixels[outside].max() < 170


def test_things_are_of_their_colours() -> None:
    """Breaks if the colour drawn were not the one said, or two colours were too close to tell."""
    source = SceneShapes(112, 1, 1, size=48)
    names, values = list(COLOURS), np.array(list(COLOURS.values()))
    for scene, pixels in zip(source.scenes("train"), source.maker.pixels("train"), strict=True):
        left, top, right, bottom = scene.objects[0].box
        inner = pixels[top:bottom, left:right].reshape(-1, 3) / 255
        nearest = Counter(np.abs(inner[:, None] - values).sum(-1).argmin(1)[inner.max(1) > 0.7].tolist())
        assert names[nearest.most_common(1)[0][0]] == scene.objects[0].colour


def test_sizes_and_places_are_what_their_words_say() -> None:
    """Breaks if a small thing were as high as a large one, or a thing lay nearer to another place than to its own."""
    cell = 48 / (3 + 2 * MARGIN)
    heights: dict[tuple[str, str], list[int]] = defaultdict(list)
    for scene in DrawnScenes(BLOCK, 1, 1, size=48).scenes("train"):
        for thing in scene.objects:
            left, top, right, bottom = thing.box
            assert 0 <= left < right <= 48
            assert 0 <= top < bottom <= 48
            heights[thing.size, thing.name].append(max(bottom - top, right - left))
            row, column = divmod(POSITIONS.index(thing.position), 3)
            assert abs((top + bottom) / 2 - (row + 0.5 + MARGIN) * cell) < cell / 2
            assert abs((left + right) / 2 - (column + 0.5 + MARGIN) * cell) < cell / 2
    for name in NAMES:
        assert max(heights["small", name]) < min(heights["large", name]), name


def test_things_hardly_overlap(many: list[Scene]) -> None:
    """Breaks if one thing could hide another."""
    bound = 2 * BEYOND * 24 / (3 + 2 * MARGIN) + 1  # a pixel, as boxes are whole ones
    for scene in many:
        for first in scene.objects:
            for other in scene.objects:
                if first is not other:
                    (a, b, c, d), (e, f, g, h) = first.box, other.box
                    assert min(min(c, g) - max(a, e), min(d, h) - max(b, f)) <= bound


def test_handwriting_is_that_of_the_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if digits of the test split were drawn with writing that training has seen: most are most like their own split's."""
    monkeypatch.setattr(scenes, "TILT", 0.0)
    source = SceneDigits(40, 40, 40, size=96, noise=0.0)

    def flat(strokes: np.ndarray) -> np.ndarray:
        rows, columns = np.flatnonzero((strokes > 0.4).any(1)), np.flatnonzero((strokes > 0.4).any(0))
        cut = strokes[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        image = (
            np.asarray(Image.fromarray((cut * 255).astype(np.uint8)).resize((12, 12), Image.Resampling.BILINEAR)) / 255
        )
        return (image - image.mean()).ravel() / (image.std() * 12 + 1e-6)

    known = {split: ScatteredDigits().glyphs(split) for split in SPLITS}
    flat_known = {
        split: [np.stack([flat((g.numpy() * 2 - 0.3).clip(0, 1)) for g in of]) for of in known[split]]
        for split in SPLITS
    }
    for split in SPLITS[1:]:
        own = 0
        for scene, pixels in zip(source.scenes(split), source.maker.pixels(split), strict=True):
            left, top, right, bottom = scene.objects[0].box
            light = pixels.max(-1) / 255
            shown = flat(
                ((light - np.median(light)) / (light.max() - np.median(light))).clip(0, 1)[top:bottom, left:right]
            )
            best = {s: (flat_known[s][int(scene.objects[0].name)] @ shown).max() for s in SPLITS}
            own += max(best, key=lambda s: best[s]) == split
        assert own >= 24, split  # of 40; by chance 8


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({"train_images": 0}, "train_images"),
        ({"test_images": -1}, "test_images"),
        ({"size": 16}, "16 px"),
        ({"noise": -0.1}, "-0.1"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_arguments_are_told_in_two_lines(arguments: dict[str, int], what: str) -> None:
    """Breaks if a wrong value ended in a traceback, or in images of nothing."""
    with pytest.raises(UserError, match=what) as told:
        DrawnScenes(**arguments)
    assert len(str(told.value).splitlines()) == 2
