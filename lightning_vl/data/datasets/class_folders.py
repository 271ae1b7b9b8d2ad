"""Data sets whose classes are folders: what videos and images share."""

from collections.abc import Iterable

from lightning_vl.data.datasets.listed import some
from lightning_vl.errors import UserError


def compare_classes(where: str, here: Iterable[str], trained: Iterable[str]) -> None:
    """The class folders of a split must be those of the training data.

    Args:
        where: the split's folder, for the message.
        here: its class folders.
        trained: the class folders of the training data.

    Raises:
        UserError: a class is missing on either side.
    """
    missing, new = sorted(set(trained) - set(here)), sorted(set(here) - set(trained))
    if missing:
        raise UserError(
            f"{where} has no folder for {', '.join(some(missing))}, which the training data has",
            "add the missing class folders there, or take them out of the training data",
        )
    if new:
        raise UserError(
            f"{where} has a folder {', '.join(some(new))} that the training data lacks",
            "rename or remove it: classes are learnt from the training data",
        )
