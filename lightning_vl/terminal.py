"""What is said to the person at the terminal."""

import sys

from lightning.pytorch.utilities import rank_zero_only


@rank_zero_only
def say(text: str) -> None:
    """A line on stderr, by the first process only; stdout is left to results."""
    print(text, file=sys.stderr)
