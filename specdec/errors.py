"""The one error a user is meant to see."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input from the caller: what was expected, what came instead, and what to do.

    Entry points print it as one line and exit with status 2; everything else is a bug and keeps
    its traceback.
    """

    def __init__(self, what: str, *, expected: str, got: object, fix: str) -> None:
        super().__init__(f"{what}: expected {expected}, got {got}; {fix}")
        self._parts = what, expected, got, fix

    def within(self, where: str) -> InputError:
        """The same error with the place where it was found in front."""
        what, expected, got, fix = self._parts
        return InputError(f"{where}: {what}", expected=expected, got=got, fix=fix)
