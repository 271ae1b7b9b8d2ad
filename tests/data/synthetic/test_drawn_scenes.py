"""Sources of drawn scenes: captions for training, classes for zero-shot evaluation."""

from itertools import product

import numpy as np
import pytest

from lightning_vl.data.synthetic.drawn_scenes import DrawnScenes, LabelledScenes, SceneCounts, SceneDigits, SceneShapes
from lightning_vl.data.synthetic.scenes import HELD_OUT


def test_captions_and_images_belong_together() -> None:
    """Breaks if captions changed from process to process, or with what is asked for first."""
    first, again = (DrawnScenes(30, 10, 10, size=24) for _ in range(2))
    pixels = again.read("train", 7)
    assert first.images("train") == again.images("train")
    assert np.array_equal(pixels, first.read("train", 7))
    assert first.images("train")[7].captions == tuple(s.text() for s in first.statements("train", 7))
    assert first.images("train")[7].id == "train/7"
    assert list(first.captions("train")) == [image.captions for image in first.images("train")]


def test_every_second_test_image_has_one_held_out_combination() -> None:
    """Breaks if seen and unseen images of the test split could not be told apart, or were not evenly many."""
    source = DrawnScenes(1, 1, 400, size=24)
    for index, (scene, image) in enumerate(zip(source.scenes("test"), source.images("test"), strict=True)):
        held_out = [group[0] for group in scene.groups if (group[0].colour, group[0].name) in HELD_OUT]
        assert len(held_out) == index % 2
        assert ("unseen" in image.id) == scene.unseen == (index % 2 == 1)


def test_best_recall_counts_the_images_that_a_caption_is_true_of() -> None:
    """Breaks if the bound were not that of one who sees everything: held against counting one by one."""
    source = DrawnScenes(1, 60, 1, size=24)
    scenes = source.scenes("validation")
    for k in (1, 5):
        shares = [
            min(1, k / sum(statement.holds(scene) for scene in scenes))
            for index in range(60)
            for statement in source.statements("validation", index)
        ]
        assert source.best_recall("validation", k) == pytest.approx(np.mean(shares))
    assert 0.5 < source.best_recall("validation") < 1.0
    assert source.best_recall("validation", 60) == 1.0


@pytest.mark.parametrize(("kind", "unseen"), list(product((SceneShapes, SceneDigits, SceneCounts), (False, True))))
def test_labels_are_what_is_drawn(kind: type[LabelledScenes], unseen: bool) -> None:
    """Breaks if a label were not that of the scene, a class rarer than another, or a held-out combination in training."""
    source = kind(120, 64, 112, size=24, unseen=unseen)
    for split in ("train", "validation", "test"):
        held_out = unseen and split == "test"
        images, scenes = source.images(split), source.scenes(split)  # type: ignore[arg-type]
        counts = np.bincount([image.label for image in images], minlength=len(source.class_names))
        assert counts.max() - counts[counts > 0].min() <= 1
        for image, scene in zip(images, scenes, strict=True):
            name = source.class_names[image.label]
            thing = scene.objects[0]
            asked = {
                SceneShapes: f"{thing.colour} {thing.name}",
                SceneDigits: thing.name,
                SceneCounts: ("", "one", "two", "three", "four")[len(scene.objects)],
            }
            assert name == asked[kind]
            assert len(scene.groups) == 1
            assert scene.unseen == held_out == ("unseen" in image.id)
    assert source.read("test", 0).shape == (24, 24, 3)


def test_class_names_are_words_of_the_captions() -> None:
    """Breaks if zero-shot evaluation asked for what no caption of training ever says."""
    words = {
        word.strip(",:")
        for captions in DrawnScenes(600, 1, 1, size=24).captions("train")
        for word in " ".join(captions).split()
    }
    for source in (SceneShapes(), SceneDigits(), SceneCounts()):
        assert len(set(source.class_names)) == len(source.class_names)
        assert {word for name in source.class_names for word in name.split()} <= words


def test_unseen_digits_are_the_seen_ones_in_another_colour() -> None:
    """Breaks if seen and unseen digits differed by more than their colour, so that their accuracies could not be compared."""
    seen, unseen = (SceneDigits(1, 1, 60, size=24, unseen=unseen) for unseen in (False, True))
    for ours, theirs in zip(seen.scenes("test"), unseen.scenes("test"), strict=True):
        assert [thing._replace(colour="") for thing in ours.objects] == [t._replace(colour="") for t in theirs.objects]
        assert ours.objects[0].colour != theirs.objects[0].colour
