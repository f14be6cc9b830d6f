"""The only error that is meant for users."""

from __future__ import annotations

from collections.abc import Callable


class InputError(ValueError):
    """Bad input from the caller.

    Entry points print it as one line and exit with status 2. Every other exception is a bug and keeps its traceback.

    Args:
        what: name of the option or object that is wrong.
        expected: what was expected.
        got: what came instead.
        fix: what to do.
    """

    def __init__(self, what: str, *, expected: str, got: object, fix: str) -> None:
        super().__init__(f"{what}: expected {expected}, got {got}; {fix}")
        self._parts = what, expected, got, fix

    def within(self, where: str) -> InputError:
        """Return the same error with the prefix `where`, the place in which it was found."""
        what, expected, got, fix = self._parts
        return InputError(f"{where}: {what}", expected=expected, got=got, fix=fix)

    def worded(self, reword: Callable[[str], str]) -> InputError:
        """Return the same error with other words for everything but what came."""
        what, expected, got, fix = self._parts
        return InputError(reword(what), expected=reword(expected), got=got, fix=reword(fix))
