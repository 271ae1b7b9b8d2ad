"""What the user is told when something is wrong: one line of what, one line of how to mend it."""


class UserError(Exception):
    """A mistake that the user can mend; the command prints both lines and exits with 2.

    Args:
        what: one line that says what is wrong, naming the file, key or value.
        how: one line that says how to mend it.
    """

    def __init__(self, what: str, how: str) -> None:
        super().__init__(what, how)
        self.what = what
        self.how = how

    def __str__(self) -> str:
        return f"{self.what}\n  {self.how}"


class CorruptSample(Exception):  # noqa: N818 (it names the sample's state; nothing went wrong in the program)
    """One item of a data set cannot be read; the loader skips it, counts it, and stops past a stated share.

    Args:
        id: the item's id, as its source names it.
        reason: one line that says what is wrong with it.
    """

    def __init__(self, id: str, reason: str) -> None:
        super().__init__(id, reason)
        self.id = id
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.id}: {self.reason}"
