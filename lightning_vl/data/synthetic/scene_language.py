"""What can be said of a scene: captions, questions with answers, and expressions that refer to one thing.

All are pure functions of a scene and, where there is a choice, of a generator of chance. What they make says whether it is
true: `Statement.holds`, `Reference.denotes`.
"""

import random
from collections.abc import Callable, Sequence
from itertools import product, starmap
from typing import NamedTuple

from lightning_vl.data.synthetic.scenes import COLOURS, EXTENTS, MOST, NAMES, POSITIONS, Scene, SceneObject

COUNTS = ("zero", "one", "two", "three", "four")
RELATIONS = ("above", "below", "to the left of", "to the right of")
TOTAL = "{total}: {}"  # "three objects: a red circle and two green squares"
OPENINGS = ("{}", "{}", "there {is} {}", "a picture of {}", "a drawing of {}", TOTAL)
ANSWERS = ("yes", "no", *COUNTS, *COLOURS, *EXTENTS, *POSITIONS, *NAMES)  # all that a question may have


class Description(NamedTuple):
    """Properties of a thing; those that are None are left open.

    Attributes:
        size: small or large.
        colour: one of `COLOURS`.
        name: one of `NAMES`.
        position: one of `POSITIONS`.
    """

    size: str | None = None
    colour: str | None = None
    name: str | None = None
    position: str | None = None

    def fits(self, thing: SceneObject) -> bool:
        """Whether the thing has all these properties."""
        return all(
            asked is None or asked == found
            for asked, found in zip(self, (thing.size, thing.colour, thing.name, thing.position), strict=True)
        )

    def noun(self, plural: bool = False) -> str:
        """As "large red circles at the top left", without an article."""
        name = self.name or "object"
        if plural:
            name += "es" if name.endswith("s") else "s"
        return " ".join(filter(None, [self.size, self.colour, name, self.position and at(self.position)]))


class Mention(NamedTuple):
    """So many things of a description, as part of a caption.

    Attributes:
        number: how many; one is read as "one or more", others as "so many and no more".
        what: the description, without position.
        positions: where they are; none where that is left open.
    """

    number: int
    what: Description
    positions: tuple[str, ...] = ()

    def holds(self, scene: Scene) -> bool:
        """Whether the scene has them."""
        found = [thing.position for thing in scene.objects if self.what.fits(thing)]
        if self.number == 1:
            return bool(found) and set(self.positions) <= set(found)
        return len(found) == self.number and (not self.positions or set(self.positions) == set(found))

    def text(self) -> str:
        """As "two green squares at the top and in the middle"."""
        noun = self.what.noun(self.number > 1)
        words = with_article(noun) if self.number == 1 else f"{COUNTS[self.number]} {noun}"
        return f"{words} {listed([at(position) for position in self.positions])}" if self.positions else words


class Statement(NamedTuple):
    """A caption, taken apart.

    Attributes:
        mentions: what is in the image; two, if they are related.
        relation: of the first mention to the second, if any.
        opening: one of `OPENINGS`.
        things: of the whole scene; said where the opening is `TOTAL`.
    """

    mentions: tuple[Mention, ...]
    relation: str | None = None
    opening: str = "{}"
    things: int = 0

    def holds(self, scene: Scene) -> bool:
        """Whether it is true of a scene, of which it need not tell everything."""
        if self.opening == TOTAL and len(scene.objects) != self.things:
            return False
        if self.relation is None:
            return all(mention.holds(scene) for mention in self.mentions)
        first, second = self.mentions
        return any(
            first.what.fits(a) and second.what.fits(b) and is_related(a, self.relation, b)
            for a in scene.objects
            for b in scene.objects
        )

    def text(self) -> str:
        """The caption."""
        said = [mention.text() for mention in self.mentions]
        if self.relation is not None:
            words = f" {self.relation} ".join(said)
        elif any(mention.positions for mention in self.mentions) and len(said) > 1:
            words = f"{', '.join(said[:-1])}, and {said[-1]}"  # as places are joined by "and", too
        else:
            words = listed(said)
        return self.opening.format(
            words,
            total=f"{COUNTS[self.things]} {Description().noun(self.things > 1)}",
            **{"is": "are" if self.mentions[0].number > 1 else "is"},
        )


class Question(NamedTuple):
    """A question about a scene.

    Attributes:
        kind: existence, count, colour, name, size, position or relation.
        text: the question.
        answer: one of `ANSWERS`.
    """

    kind: str
    text: str
    answer: str


class Reference(NamedTuple):
    """An expression for a thing in its scene.

    Attributes:
        what: properties of the thing.
        relation: of the thing to the landmark, if any.
        landmark: properties of another thing, with which the relation is.
    """

    what: Description
    relation: str | None = None
    landmark: Description | None = None

    def denotes(self, scene: Scene) -> list[SceneObject]:
        """The things that it may mean."""
        fitting = [thing for thing in scene.objects if self.what.fits(thing)]
        if self.relation is None or self.landmark is None:
            return fitting
        landmarks = [thing for thing in scene.objects if self.landmark.fits(thing)]
        return [thing for thing in fitting if any(is_related(thing, self.relation, other) for other in landmarks)]

    def text(self) -> str:
        """As "the circle above the blue 7"."""
        words = f"the {self.what.noun()}"
        return words if self.landmark is None else f"{words} {self.relation} the {self.landmark.noun()}"


def with_article(noun: str) -> str:
    """ "a red circle", "an orange circle", "an 8"."""
    return f"{'an' if noun[0] in 'aeiou8' else 'a'} {noun}"


def at(position: str) -> str:
    """ "at the top left", "on the left", "in the middle"."""
    preposition = {"left": "on", "right": "on", "middle": "in"}.get(position, "at")
    return f"{preposition} the {position}"


def listed(parts: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


def _related(position: str, relation: str, other: str) -> bool:
    (row, column), (other_row, other_column) = (divmod(POSITIONS.index(place), 3) for place in (position, other))
    down, across = other_row - row, other_column - column
    ahead, aside = {
        "above": (down, across),
        "below": (-down, across),
        "to the left of": (across, down),
        "to the right of": (-across, down),
    }[relation]
    return ahead > 0 and ahead >= abs(aside)


RELATED = {relation: set[tuple[str, str]]() for relation in RELATIONS}
for _relation, _first, _second in product(RELATIONS, POSITIONS, POSITIONS):
    if _related(_first, _relation, _second):
        RELATED[_relation].add((_first, _second))


def is_related(first: SceneObject, relation: str, second: SceneObject) -> bool:
    """Whether the first is above (and so on) the second: in a row further up, and no further aside than above."""
    return (first.position, second.position) in RELATED[relation]


def captions(scene: Scene, rng: random.Random) -> tuple[Statement, ...]:
    """Five true statements, the most specific one first: all things with sizes and places.

    The second leaves out places, the third sizes too; the fourth says how two things lie to each other, or where those of one
    group are; the fifth names things without colour.
    """
    groups = scene.groups
    rng.shuffle(groups)
    every = [
        (len(group), Description(group[0].size, group[0].colour, group[0].name), _places(group)) for group in groups
    ]
    things = len(scene.objects)
    with_size = tuple(Mention(count, what) for count, what, _ in every)
    plain = tuple(Mention(count, what._replace(size=None)) for count, what, _ in every)
    return (
        Statement(tuple(Mention(*facts) for facts in every)),
        Statement(with_size, opening=rng.choice(OPENINGS), things=things),
        Statement(plain, opening=rng.choice(OPENINGS), things=things),
        _placed(scene, rng),
        _colourless(scene),
    )


def _placed(scene: Scene, rng: random.Random) -> Statement:
    """Two things that are alone in their groups, related; or else one group and where it is."""
    groups = scene.groups
    single = [group[0] for group in groups if len(group) == 1]
    related = [(a, relation, b) for a, relation, b in product(single, RELATIONS, single) if is_related(a, relation, b)]
    if related:
        first, relation, second = rng.choice(related)
        sizes = [thing.size if rng.random() < 0.5 else None for thing in (first, second)]
        whats = [Description(size, t.colour, t.name) for size, t in zip(sizes, (first, second), strict=True)]
        return Statement(tuple(Mention(1, what) for what in whats), relation)
    group = rng.choice(groups)
    what = Description(None, group[0].colour, group[0].name)
    return Statement((Mention(len(group), what, _places(group)),))


def _colourless(scene: Scene) -> Statement:
    """How many of each name there are; where they are, if all are the same."""
    by_name: dict[str, list[SceneObject]] = {}
    for thing in scene.objects:
        by_name.setdefault(thing.name, []).append(thing)
    return Statement(
        tuple(
            Mention(len(things), Description(name=name), _places(things) if len(by_name) == 1 else ())
            for name, things in by_name.items()
        )
    )


def _places(things: list[SceneObject]) -> tuple[str, ...]:
    """Positions, as one reads."""
    return tuple(sorted((thing.position for thing in things), key=POSITIONS.index))


def references(scene: Scene, thing: SceneObject) -> list[Reference]:
    """Expressions that mean this thing and no other, those without relation first.

    None says more than it needs to, but for the name. A relation is used where the name alone would not do, and the landmark is
    unambiguous by itself.
    """
    found = [Reference(what) for what in _shortest(thing, lambda what: len(_meant(scene, what)) == 1)]
    if len(_meant(scene, Description(name=thing.name))) == 1:
        return found
    for other, relation in product(scene.objects, RELATIONS):
        if not is_related(thing, relation, other):
            continue
        for landmark in _shortest(other, lambda what: len(_meant(scene, what)) == 1):
            if landmark.name is None or landmark.position is not None:
                continue
            candidates = _shortest(
                thing,
                lambda what: len(Reference(what, relation, landmark).denotes(scene)) == 1,  # noqa: B023 (used at once)
            )
            found += [
                Reference(what, relation, landmark)
                for what in candidates
                if what.name is not None and not what.position
            ]
    return found


def _shortest(thing: SceneObject, is_enough: Callable[[Description], bool]) -> list[Description]:
    """Descriptions of a thing that are enough, with name or without, and would not be if any other part were left out."""
    found: list[Description] = []
    choices = product((None, thing.size), (None, thing.colour), (None, thing.name), (None, thing.position))
    for what in sorted(starmap(Description, choices), key=lambda what: sum(part is not None for part in what)):
        needless = any(
            less.name == what.name and all(part in (None, own) for part, own in zip(less, what, strict=True))
            for less in found
        )
        if not needless and is_enough(what):
            found.append(what)
    return found


def _meant(scene: Scene, what: Description) -> list[SceneObject]:
    return [thing for thing in scene.objects if what.fits(thing)]


def questions(scene: Scene, rng: random.Random) -> list[Question]:
    """Questions of every kind that the scene allows, all answers among `ANSWERS`."""
    asked = [
        Question("count", "how many objects are there?", COUNTS[len(scene.objects)]),
        *_existence(scene, rng),
    ]
    for group in scene.groups:
        thing = group[0]
        pair = Description(None, thing.colour, thing.name)
        asked.append(Question("count", f"how many {pair.noun(True)} are there?", COUNTS[len(group)]))
        same_name = _meant(scene, Description(name=thing.name))
        if len({other.colour for other in same_name}) == 1:
            verb, plural = ("are", True) if len(group) > 1 else ("is", False)
            noun = Description(name=thing.name).noun(plural)
            asked.append(Question("colour", f"what colour {verb} the {noun}?", thing.colour))
        if len(group) > 1:
            continue
        asked.append(Question("size", f"is the {pair.noun()} large or small?", thing.size))
        asked.append(Question("position", f"where is the {pair.noun()}?", thing.position))
        asked.append(Question("name", f"what is {at(thing.position)}?", thing.name))
        for relation in RELATIONS:
            others = [other for other in scene.objects if is_related(other, relation, thing)]
            if len(others) == 1:
                asked.append(Question("relation", f"what is {relation} the {pair.noun()}?", others[0].name))
    return asked


def _existence(scene: Scene, rng: random.Random) -> list[Question]:
    """As many questions to be answered with yes as with no; the latter are about colours and names of the scene if possible."""
    there = [(group[0].colour, group[0].name) for group in scene.groups]
    mixed = [pair for pair in product(*map(sorted, map(set, zip(*there, strict=True)))) if pair not in there]
    absent = [pair for pair in product(COLOURS, NAMES) if pair not in there]
    chosen = rng.sample(mixed, 1) if mixed else []
    chosen += rng.sample([pair for pair in absent if pair not in chosen], len(there) - len(chosen))
    return [
        Question("existence", f"is there {with_article(f'{colour} {name}')}?", answer)
        for pairs, answer in ((there, "yes"), (chosen, "no"))
        for colour, name in pairs
    ]


assert len(COUNTS) == MOST + 1
