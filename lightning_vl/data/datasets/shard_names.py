"""Patterns of file names as WebDataset's users write them: `shard-{00000..00099}.tar`."""

import glob
import re

BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")  # numbers from one to another, or a choice


def expanded(pattern: str) -> list[str]:
    """The patterns that one with braces stands for, as a shell takes it; numbers keep the zeros that they begin with.

    Args:
        pattern: with any number of `{000..123}` and `{a,b}`, within each other too; other braces are left as they are.
    """
    found = BRACES.search(pattern)
    if found is None:
        return [pattern]
    first, last, choice = found.groups()
    if choice is not None:
        parts = choice.split(",")
    else:
        width = max(len(first), len(last)) if first.startswith("0") or last.startswith("0") else 0
        parts = [f"{number:0{width}}" for number in range(int(first), int(last) + 1)]
    before, after = pattern[: found.start()], pattern[found.end() :]
    return list(dict.fromkeys(whole for part in parts for whole in expanded(before + part + after)))


def matching(root: str, pattern: str) -> tuple[list[str], str | None]:
    """The files of a folder that a pattern names.

    Args:
        root: the folder.
        pattern: relative to it, with * ? [0-9] ** and braces.

    Returns:
        Their names, and what of the pattern names none: of `{00000..00099}` the first shard that is not there. None where
        all is there.
    """
    names: list[str] = []
    missing = None
    for one in expanded(pattern) or [pattern]:
        found = glob.glob(one, root_dir=root, recursive=True)
        names += found
        missing = missing or (None if found else one)
    return names, missing
