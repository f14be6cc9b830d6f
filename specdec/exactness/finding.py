"""The result of one check of a proof."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from specdec.errors import InputError

EXACT = 1e-12  # float64 rounding over some 10,000 outcomes stays far below it; any bias is far above it
ROUNDED = 1e-6  # the tolerance if p or q were computed in fp32


@dataclass(frozen=True)
class Finding:
    """The subject and the result of one check.

    Args:
        what: the check, in words.
        outcomes: number of random outcomes enumerated, or of texts compared.
        difference: largest difference between two probabilities; None if texts were compared.
        tolerance: largest difference that passes.
        failure: why the check failed; empty if it passed.
        note: further information, such as the tokens accepted per text.
    """

    what: str
    outcomes: int
    difference: float | None = None
    tolerance: float = EXACT
    failure: str = ""
    note: str = ""

    @property
    def passed(self) -> bool:
        return not self.failure


def in_words(error: Exception) -> str:
    """Describe in one line an error that the code under test raised."""
    first = str(error).partition("\n")[0]
    return first if isinstance(error, InputError) else f"{type(error).__name__}: {first}"


def require_passed(subject: str, expected: str, findings: Sequence[Finding]) -> None:
    """Refuse a rule or a drafter that failed a check.

    Args:
        subject: option that names the rule or the drafter.
        expected: the property that was checked.
        findings: results of all checks.

    Raises:
        InputError: names the first check that failed.
    """
    for finding in findings:
        if not finding.passed:
            fix = f"mend it, or declare lossless = False (`python -m experiments.prove {subject}` shows every check)"
            raise InputError(subject, expected=expected, got=f"{finding.failure} ({finding.what})", fix=fix)
