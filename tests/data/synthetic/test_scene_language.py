"""What is said of scenes: read back by a parser of its own, and held against the scene."""

import random
import re
from collections import Counter

import pytest

from lightning_vl.data.synthetic.drawn_scenes import DrawnScenes
from lightning_vl.data.synthetic.scene_language import (
    ANSWERS,
    RELATIONS,
    Description,
    at,
    is_related,
    listed,
    questions,
    references,
    with_article,
)
from lightning_vl.data.synthetic.scenes import COLOURS, MARGIN, NAMES, POSITIONS, Scene, SceneObject

COUNTS = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4}
POSITION = rf"(?:at|on|in) the (?:{'|'.join(sorted(POSITIONS, key=len, reverse=True))})"
NOUN = rf"(?:(small|large) )?(?:({'|'.join(COLOURS)}) )?({'|'.join(NAMES)}|object)(es|s)?"
MENTION = rf"\b(an?|two|three|four) {NOUN}(( {POSITION}(?:(?:,| and) {POSITION})*)?)"
RELATION = "|".join(RELATIONS)
Parsed = tuple[int, str, str, str, list[str]]  # number, size, colour, name, positions


@pytest.fixture(scope="module")
def source() -> DrawnScenes:
    """Small images with all that may be said."""
    return DrawnScenes(train_images=600, validation_images=200, test_images=200, size=24)


def parse(words: str) -> list[Parsed]:
    """The mentions of a caption without opening; fails where it is not English as we know it."""
    anonymous = re.sub(r"\((?!\?)", "(?:", MENTION)
    assert re.fullmatch(
        rf"{anonymous}(?:(?:, and |, | and |{'|'.join(f' {r} ' for r in RELATIONS)}){anonymous})*", words
    )
    mentions = []
    for number, size, colour, name, plural, places, _ in re.findall(MENTION, words):
        assert bool(plural) == (COUNTS[number] > 1), words
        assert (plural == "es") == (bool(plural) and name == "cross"), words
        following = re.search(rf"\b{number} (\S+)", words)
        assert following is not None
        positions = [place.split(" the ")[1] for place in re.findall(POSITION, places)]
        mentions.append((COUNTS[number], size, colour, name, positions))
    for article, following in re.findall(r"\b(an?) (\S)", words):
        assert (article == "an") == (following in "aeio8"), words
    return mentions


def fitting(scene: Scene, size: str, colour: str, name: str) -> list[SceneObject]:
    """Things of these properties; an empty one is open."""
    return [
        thing
        for thing in scene.objects
        if size in ("", thing.size) and colour in ("", thing.colour) and name in ("", "object", thing.name)
    ]


def opened(caption: str, scene: Scene) -> str:
    """The caption without its opening, which is checked."""
    total = re.match(r"(one|two|three|four) objects?: ", caption)
    if total:
        assert COUNTS[total[1]] == len(scene.objects)
        assert ("objects" in total[0]) == (len(scene.objects) > 1)
        return caption[total.end() :]
    there = re.match(r"there (is|are) (\w+)", caption)
    if there:
        assert (there[1] == "are") == (there[2] in ("two", "three", "four"))
    return re.sub(r"^(a (picture|drawing) of|there (is|are)) ", "", caption)


def is_true(caption: str, scene: Scene) -> bool:
    """Whether what is said is so."""
    words = opened(caption, scene)
    mentions = parse(words)
    relation = re.search(rf" ({RELATION}) (?=an? )", words)
    if relation:
        first, second = (fitting(scene, *mention[1:4]) for mention in mentions)
        return any(is_related(a, relation[1], b) for a in first for b in second)
    for number, size, colour, name, positions in mentions:
        found = fitting(scene, size, colour, name)
        if number != len(found) or (positions and Counter(positions) != Counter(thing.position for thing in found)):
            return False
    return True


def test_every_caption_is_english_and_true(source: DrawnScenes) -> None:
    """Breaks if a caption lied about its image, had the wrong article or plural, or was said twice."""
    for split in ("train", "validation", "test"):
        for scene, image in zip(source.scenes(split), source.images(split), strict=True):  # type: ignore[arg-type]
            assert len(set(image.captions)) == 5
            for caption in image.captions:
                assert is_true(caption, scene), (caption, scene)


def test_the_parser_of_these_tests_tells_a_lie(source: DrawnScenes) -> None:
    """Breaks if the test above could not fail: captions of other images are mostly false."""
    scenes, images = source.scenes("train"), source.images("train")
    false = [not is_true(images[index].captions[4], scenes[index - 1]) for index in range(1, 600)]
    assert sum(false) > 500


def test_the_first_caption_tells_everything(source: DrawnScenes) -> None:
    """Breaks if the most specific caption left something out, so that retrieval by it had no single answer."""
    for scene, image in zip(source.scenes("train"), source.images("train"), strict=True):
        told = [
            (size, colour, name, position)
            for number, size, colour, name, positions in parse(image.captions[0])
            for position in positions
        ]
        assert Counter(told) == Counter((t.size, t.colour, t.name, t.position) for t in scene.objects)


def test_statements_know_where_they_hold(source: DrawnScenes) -> None:
    """Breaks if `holds` denied a caption of its own scene, or affirmed one where the parser finds that it is not so."""
    scenes = source.scenes("validation")
    for index, scene in enumerate(scenes):
        for statement in source.statements("validation", index):
            assert statement.holds(scene)
            for other in scenes[:15]:
                if len(other.objects) != statement.things and ":" in statement.opening:
                    assert not statement.holds(other)
                elif is_true(statement.text(), other):
                    assert statement.holds(other)
                elif all(mention.number > 1 for mention in statement.mentions):  # "a" may be one of several
                    assert not statement.holds(other)


def test_captions_use_every_form(source: DrawnScenes) -> None:
    """Breaks if a form were never said: plurals, relations, places, openings."""
    said = " | ".join(caption for image in source.images("train") for caption in image.captions)
    forms = (
        "there is a",
        "there are ",
        "a picture of",
        "a drawing of",
        "objects: ",
        "one object: ",
        "crosses",
        "an 8",
        "8s",
    )
    for form in (*forms, *RELATIONS, *map(at, POSITIONS), "an orange", "two", "three", "four", *NAMES, *COLOURS):
        assert form in said, form


def test_relations_are_those_of_the_boxes(source: DrawnScenes) -> None:
    """Breaks if "above" were below, or a matter of a pixel."""
    cell = 24 / (3 + 2 * MARGIN)
    met = Counter[str]()
    for scene in source.scenes("train"):
        for first in scene.objects:
            for second in scene.objects:
                (a, b, c, d), (e, f, g, h) = first.box, second.box
                across, down = ((e + g) - (a + c)) / 2, ((f + h) - (b + d)) / 2
                ahead = {"above": down, "below": -down, "to the left of": across, "to the right of": -across}
                for relation in RELATIONS:
                    if is_related(first, relation, second):
                        met[relation] += 1
                        assert ahead[relation] > 0.4 * cell
                    else:  # in the same row or column, or further aside than ahead
                        aside = abs(across) if relation in ("above", "below") else abs(down)
                        assert ahead[relation] < 0.6 * cell or aside > ahead[relation] - 0.6 * cell
    assert min(met[relation] for relation in RELATIONS) > 100


def test_references_mean_one_thing_only(source: DrawnScenes) -> None:
    """Breaks if an expression could mean another thing of its scene, or none, read by its words alone."""
    kinds = Counter[bool]()
    pattern = rf"the {NOUN}( {POSITION})?"
    for scene in source.scenes("train"):
        for thing in scene.objects:
            expressions = [reference.text() for reference in references(scene, thing)]
            assert expressions
            assert len(set(expressions)) == len(expressions)
            for words in expressions:
                match = re.fullmatch(rf"{pattern}(?: ({RELATION}) {pattern})?", words)
                assert match is not None, words
                size, colour, name, plural, place, relation, *landmark = (part or "" for part in match.groups())
                assert not plural
                found = [t for t in fitting(scene, size, colour, name) if not place or at(t.position) == place.strip()]
                if relation:
                    others = fitting(scene, *landmark[:3])
                    assert len(others) == 1, words
                    found = [t for t in found if is_related(t, relation, others[0])]
                kinds[bool(relation)] += 1
                assert found == [thing], words
    assert min(kinds[True], kinds[False]) > 50


def test_answers_are_right(source: DrawnScenes) -> None:
    """Breaks if an answer were wrong or not among `ANSWERS`, or a question had two."""
    kinds = Counter[str]()
    assert len(set(ANSWERS)) == len(ANSWERS)
    numbers = ["zero", "one", "two", "three", "four"]
    for number, scene in enumerate(source.scenes("train")):
        asked = questions(scene, random.Random(number))
        assert len({question.text for question in asked}) == len(asked)
        for kind, text, answer in asked:
            kinds[kind] += 1
            assert answer in ANSWERS
            words = re.search(NOUN + r"\b", text.replace("is there an ", "").replace("large or small", ""))
            size, colour, name = (part or "" for part in words.groups()[:3]) if words else ("", "", "")
            found = fitting(scene, size, colour, name)
            match kind:
                case "existence":
                    assert answer == ("yes" if found else "no"), text
                case "count":
                    assert answer == numbers[len(found)], text
                case "colour":
                    assert {thing.colour for thing in found} == {answer}, text
                    assert (" are the " in text) == (len(found) > 1)
                case "size":
                    assert [thing.size for thing in found] == [answer], text
                case "position":
                    assert [thing.position for thing in found] == [answer], text
                case "name":
                    assert [t.name for t in scene.objects if at(t.position) == text[len("what is ") : -1]] == [answer]
                case "relation":
                    relation = re.match(rf"what is ({RELATION}) the ", text)
                    assert relation is not None
                    assert len(found) == 1
                    assert [t.name for t in scene.objects if is_related(t, relation[1], found[0])] == [answer], text
    assert set(kinds) == {"existence", "count", "colour", "size", "position", "name", "relation"}


def test_as_many_things_are_there_as_not(source: DrawnScenes) -> None:
    """Breaks if "yes" were the better guess, or absent things were never of colours and names that are there."""
    hard = 0
    for number, scene in enumerate(source.scenes("train")):
        asked = [question for question in questions(scene, random.Random(number)) if question.kind == "existence"]
        assert Counter(question.answer for question in asked) == {"yes": len(asked) // 2, "no": len(asked) // 2}
        for question in asked:
            colour, name = question.text[:-1].split()[-2:]
            here = {thing.colour for thing in scene.objects}, {thing.name for thing in scene.objects}
            hard += question.answer == "no" and colour in here[0] and name in here[1]
    assert hard > 200


def test_articles_plurals_and_lists() -> None:
    """Breaks the grammar of all else."""
    assert [with_article(noun) for noun in ("red 8", "8", "orange star", "object", "7")] == [
        "a red 8",
        "an 8",
        "an orange star",
        "an object",
        "a 7",
    ]
    assert Description(None, "red", "cross").noun(plural=True) == "red crosses"
    assert Description("small", None, "7", "left").noun() == "small 7 on the left"
    assert [listed(parts) for parts in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]
