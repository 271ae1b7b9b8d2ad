"""Labels as tables and shards hold them, numbers or names, as class indices."""

from collections.abc import Sequence
from typing import Any

from lightning_vl.errors import UserError


def names_of(where: str, labels: Sequence[Any]) -> list[str]:
    """Class names that labels without a list of names stand for.

    Args:
        where: where the labels are from, for the message.
        labels: those of the training data.

    Returns:
        The names among them in alphabetical order, or "0", "1", ... up to the greatest number.

    Raises:
        UserError: they are neither all numbers nor all names.
    """
    if all(isinstance(label, int) for label in labels):
        return [str(number) for number in range(max(labels, default=-1) + 1)]
    if all(isinstance(label, str) for label in labels):
        return sorted(set(labels))
    odd = next(label for label in labels if type(label) is not type(labels[0]) or not isinstance(label, int | str))
    raise UserError(
        f"{where} has a label {odd!r}", "give every image a label, all of them numbers or all of them names"
    )


def class_indices(where: str, labels: Sequence[Any], class_names: Sequence[str]) -> list[int]:
    """The class index of each label.

    Args:
        where: where the labels are from, for the message.
        labels: class indices or names.
        class_names: names of the classes.

    Raises:
        UserError: a label is no class.
    """
    known: dict[Any, int] = {name: index for index, name in enumerate(class_names)}
    known.update((index, index) for index in range(len(class_names)))
    unknown = next((label for label in labels if label not in known), None)
    if unknown is not None or None in labels:
        raise UserError(
            f"{where} has a label {unknown!r}, the {len(class_names)} classes are "
            f"{', '.join(class_names[:4])}{', ...' if len(class_names) > 4 else ''}",
            "mend the labels, or leave the images without a known class out",
        )
    return [known[label] for label in labels]
