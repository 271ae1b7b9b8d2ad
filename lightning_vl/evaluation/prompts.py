"""Prompts: what a text tower is told of a class (CLIP, Sec. 3.1.4).

The sets of prompts lie in `templates/`, one file each, one template a line, with `{}` where the name of the class goes. For
the paper's data sets they have as many templates as the released ones, and the form that the paper or its released page
states; the wording beyond that is ours. `TemplateFile` reads the released ones, or any others.
"""

import difflib
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from lightning_vl.errors import UserError

FOLDER = Path(__file__).with_name("templates")
SLOT = "{}"
OTHER_SLOT = "{c}"  # of CLIP_benchmark's files
CLASS_NAMES = "classnames.txt"  # beside such a file: the names of class 0, 1, ... line by line
CAMEL_CASE = re.compile(r"([A-Z][a-z]+){2,}")


class Templates(ABC):
    """Sentences in which the name of a class is put; the classifier of a class is the mean of their embeddings."""

    @property
    @abstractmethod
    def templates(self) -> list[str]:
        """The sentences, each with `{}` at least once, in the order they are used.

        Raises:
            UserError: they cannot be had, there is none, or one has no slot.
        """

    def texts(self, class_name: str) -> list[str]:
        """One text a template: the name in its slots, as it is.

        Raises:
            UserError: see `templates`.
        """
        return [template.replace(SLOT, class_name) for template in self.templates]


class BareName(Templates):
    """The name alone: what a prompt is compared with."""

    @property
    def templates(self) -> list[str]:
        """The slot."""
        return [SLOT]


class GivenTemplates(Templates):
    """Templates of the experiment's file.

    Args:
        templates: the sentences, with `{}` for the name.

    Raises:
        UserError: there is none, or one has no slot.
    """

    def __init__(self, templates: list[str]) -> None:
        self._templates = checked(templates, "the experiment's templates")

    @property
    def templates(self) -> list[str]:
        """As given."""
        return self._templates


class NamedTemplates(Templates):
    """A set of this package.

    Args:
        name: that of its file in `lightning_vl/evaluation/templates/`, `imagenet` say, without the suffix.

    Raises:
        UserError: there is no such set.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        if name not in known_sets():
            close = difflib.get_close_matches(name, known_sets(), n=1, cutoff=0.4)
            raise UserError(
                f"there is no set of templates called {name!r}",
                f"did you mean {close[0]!r}?" if close else f"give one of {', '.join(known_sets()[:8])}, ...",
            )

    @cached_property
    def templates(self) -> list[str]:
        """Those of the file."""
        return read_templates(str(FOLDER / f"{self.name}.txt"))


class TemplateFile(Templates):
    """Templates of a file of yours: one a line, with `{}` or, as CLIP_benchmark has it, `{c}` for the name.

    Args:
        path: the file, or a folder with CLIP_benchmark's `zeroshot_classification_templates.txt`.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    @cached_property
    def templates(self) -> list[str]:
        """Those of the file."""
        if os.path.isdir(self.path):
            return read_templates(os.path.join(self.path, "zeroshot_classification_templates.txt"))
        return read_templates(self.path)


def known_sets() -> list[str]:
    """The names of the package's sets, in alphabetical order."""
    return sorted(path.stem for path in FOLDER.glob("*.txt"))


def read_templates(path: str) -> list[str]:
    """The templates of a file, `{c}` written as `{}`; empty lines are left out.

    Raises:
        UserError: no such file, none in it, or one has no slot.
    """
    lines = read_lines(path)
    return checked([line.replace(OTHER_SLOT, SLOT) for line in lines], path)


IMAGENET = 1000
# of the released list's names of ImageNet's classes two stand for two classes each; one of each pair is called otherwise here
IMAGENET_TWICE = {(744, "missile"): "projectile", (836, "sunglasses"): "sunglass"}


def read_class_names(path: str) -> list[str]:
    """The names of class 0, 1, ... of a file, one a line; several words for one class are left as they are.

    Raises:
        UserError: no such file, none in it, or one of them twice.
    """
    names = read_lines(path)
    if not names:
        raise UserError(f"{path} is empty", "write the name of a class in each line, in the order of their numbers")
    if len(names) == IMAGENET:
        names = [IMAGENET_TWICE.get((number, name), name) for number, name in enumerate(names)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"{path} has the class {twice[0]!r} twice", "give each class a name of its own")
    return names


def read_lines(path: str) -> list[str]:
    """The lines of a text file, without those that are empty and without white space at their ends.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            return [line.strip() for line in file if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8"
        raise UserError(
            f"{path} cannot be read: {reason}", "check the path; the file is text, one entry a line"
        ) from error


def checked(templates: Sequence[str], where: str) -> list[str]:
    """Templates that can be used.

    Raises:
        UserError: there is none, or one has no slot.
    """
    if not templates:
        raise UserError(f"{where}: there is no template", f"write one a line, with {SLOT} where the name goes")
    for template in templates:
        if SLOT not in template:
            raise UserError(
                f"{where}: the template {template!r} has no slot", f"write {SLOT} where the name of the class goes"
            )
    return list(templates)


def readable(name: str) -> str:
    """A class's name as words: `apple_pie` as "apple pie", EuroSAT's `AnnualCrop` as "annual crop".

    Underscores become spaces. Capitals within are split and lowered only where the whole name is made of such words,
    so that names like DC-10, iPod, Egyptian_Mau and Boeing 707-320 keep their spelling. Digits stay.
    """
    if CAMEL_CASE.fullmatch(name):
        return " ".join(re.findall(r"[A-Z][a-z]+", name)).lower()
    return " ".join(name.replace("_", " ").split())
