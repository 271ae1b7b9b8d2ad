"""Lists, tables, class names and splits: what the data sets on disk are described by."""

import csv
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lightning_vl.data.datasets.listed import some
from lightning_vl.data.source import Split
from lightning_vl.data.video import VIDEO_SUFFIXES
from lightning_vl.errors import UserError


def read_table(path: str, columns: Sequence[str], numbers: Sequence[str] = ()) -> list[dict[str, str]]:
    """The rows of a CSV file with a header, or of a JSON file that is a list of objects.

    Args:
        path: the file.
        columns: the columns that every row must have.
        numbers: those of them that must hold numbers.

    Raises:
        UserError: no such file, a column is missing, or a number is none.
    """
    if path.endswith(".json"):
        rows = read_json(path)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise UserError(f"{path} is no list of objects", f"make it a list of objects with {', '.join(columns)}")
    else:
        with open_list(path) as file:
            rows = list(csv.DictReader(file))
    for number, row in enumerate(rows, start=1):
        absent = [column for column in columns if row.get(column) is None]
        if absent:
            raise UserError(
                f"row {number} of {path} has no {' and no '.join(absent)}; it has {', '.join(map(str, row))}",
                f"give every row {', '.join(columns)}",
            )
        for column in numbers:
            if not re.fullmatch(r"\d+(\.\d*)?", row[column]):
                raise UserError(
                    f"row {number} of {path} has {row[column]!r} for {column}",
                    f"{column} must be a number in every row",
                )
    return rows


def read_json(path: str) -> Any:
    """What a JSON file holds.

    Raises:
        UserError: no such file, or it is no JSON.
    """
    with open_list(path) as file:
        try:
            return json.load(file)
        except ValueError as error:
            raise UserError(f"{path} is no JSON: {error}", "give the data set's own JSON file") from error


def open_list(path: str) -> Any:
    """Opens a list for reading.

    Raises:
        UserError: it cannot be opened.
    """
    try:
        return open(path, encoding="utf-8-sig", newline="")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}", "check the source's root and its lists") from error


def check_classes(where: str, names: Sequence[str], expected: int | None) -> None:
    """Holds the number of classes to what the experiment says."""
    if expected is not None and len(names) != expected:
        raise UserError(
            f"{where} has {len(names)} classes ({', '.join(some(list(names)))}), the experiment says {expected}",
            "mend the data or the source's classes (and the network's, which must agree)",
        )


def class_index(where: str, name: str, indices: Mapping[str, int]) -> int:
    """The index of a class that must be known."""
    if name not in indices:
        raise UserError(f"{where} has a class {name!r} that the training data lacks", "check the labels of both lists")
    return indices[name]


def videos_by_stem(root: str) -> dict[str, str]:
    """Every video file below the root by its name without suffix; of equal names the first path counts."""
    paths = sorted(
        os.path.relpath(os.path.join(folder, name), root)
        for folder, _, names in os.walk(root)
        for name in names
        if name.lower().endswith(VIDEO_SUFFIXES)
    )
    return {os.path.splitext(os.path.basename(path))[0]: path for path in reversed(paths)}


def seeded_split(
    groups: Mapping[str, Iterable[str]], fractions: tuple[float, float, float], seed: int
) -> dict[str, Split]:
    """Shares the groups of each label out to the splits, each split getting one at least.

    Args:
        groups: names of groups by label; what belongs together (takes of one thing) is one group and stays together.
        fractions: shares of training, validation and test; they add up to 1.
        seed: seed of the shuffle, which is part of the experiment.

    Returns:
        The split by group name.
    """
    if min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise UserError(f"fractions {fractions} are no split in three", "give three positive shares that add up to 1")
    split_of: dict[str, Split] = {}
    for number, (label, names) in enumerate(sorted(groups.items())):
        shuffled = np.random.default_rng([seed, number]).permutation(sorted(names)).tolist()
        held_out = [max(1, round(len(shuffled) * fraction)) for fraction in fractions[1:]]
        if len(shuffled) <= sum(held_out):
            raise UserError(
                f"class {label!r} has {len(shuffled)} videos (or groups of them), too few for three splits",
                "add some, leave the class out, or change the source's fractions",
            )
        for place, name in enumerate(shuffled):
            split_of[name] = "validation" if place < held_out[0] else "test" if place < sum(held_out) else "train"
    return split_of
