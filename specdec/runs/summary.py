"""The schema of `summary.json`: the final figures of a run. docs/run-files.md explains every key.

A figure is None, or an empty list or mapping, if it does not apply, is not known yet, or was not recorded by an older
version.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

from specdec.intervals import Interval
from specdec.metrics import StepMetrics, StepRecord
from specdec.options import NonNegative
from specdec.runs.records import sound


@dataclass(frozen=True, kw_only=True)
class Rival:
    """Another method on the same prompts, and the speedup of ours over it.

    Args:
        identical: number of our greedy texts that equal its texts; None if texts are sampled.
    """

    name: str | None = None
    tokens_per_second: float | None = None
    speedup: float | None = None
    speedup_ci95: Interval | None = None
    identical: int | None = None


@dataclass(frozen=True, kw_only=True)
class Parting:
    """The place at which a greedy text leaves the baseline's.

    Args:
        prompt, turn: which text.
        position: index of the first differing token.
        tokens: our token and the baseline's; an empty list for a text that has ended.
        margin: difference of the target's two largest logits there.
        explained: whether rounding errors can reverse that margin; None in runs of older versions.
    """

    prompt: str | None = None
    turn: int | None = None
    position: int | None = None
    tokens: list[list[int]] = field(default_factory=list)
    margin: float | None = None
    explained: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """Comparison of greedy texts with the baseline's: how many are identical, and where the others part."""

    identical: int = 0
    total: int = 0
    prompts: list[Parting] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Strays:
    """Distance of a lossy rule's texts from the target.

    Args:
        equal_tokens: share of tokens equal to the greedy baseline's token at the same position; None if sampled.
        mean_logprob: mean log-probability of our texts under the plain target, nats per token.
        autoregressive_mean_logprob: the same for the baseline's texts.
    """

    equal_tokens: float | None = None
    mean_logprob: float | None = None
    autoregressive_mean_logprob: float | None = None


@dataclass(frozen=True, kw_only=True)
class Quiet:
    """How quiet the machine was during the run.

    Args:
        rounds: number of rounds.
        disturbed, repeated: how many of them were.
        worst: reason of the largest disturbance.
        joules_per_token: energy by method; None if the machine has no energy counter.
    """

    rounds: int = 0
    disturbed: int = 0
    repeated: int = 0
    worst: str | None = None
    joules_per_token: dict[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A prompt, or a later turn of a conversation, that did not fit the context window.

    Args:
        prompt, turn: which prompt, and the index of its turn that was not answered.
        tokens: length of the prompt up to this turn.
        room: largest length that fits.
    """

    prompt: str | None = None
    turn: int = 0
    tokens: int | None = None
    room: int | None = None


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Figures of some texts: of a whole run, a category or a seed."""

    prompts: int | None = None
    tokens: int | None = None
    steps: int | None = None
    tokens_per_step: float | None = None
    acceptance_length: float | None = None
    acceptance_rate: float | None = None
    acceptance_at_depth: list[NonNegative] = field(default_factory=list)
    draft_efficiency: float | None = None
    nodes_per_step: float | None = None
    emitted_histogram: list[int] = field(default_factory=list)
    phase_ms: dict[str, NonNegative] = field(default_factory=dict)
    new_tokens: int | None = None
    tokens_per_second: float | None = None
    autoregressive_tokens_per_second: float | None = None
    speedup: float | None = None
    speedup_ci95: Interval | None = None
    tokens_per_step_ci95: Interval | None = None
    tokens_per_second_ci95: Interval | None = None
    reference: Rival | None = None
    other_references: list[Rival] = field(default_factory=list)
    divergence: Divergence | None = None
    strays: Strays | None = None

    @property
    def rivals(self) -> list[Rival]:
        """All references that were timed."""
        return [self.reference, *self.other_references] if self.reference else []


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The options and the machine of a run."""

    target: str | None = None
    drafter: str | None = None
    verifier: str | None = None
    tree: str | None = None
    acceptance: str | None = None
    lossless: bool | None = None
    device: str | None = None
    dtype: str | None = None
    kernel: str | None = None
    threads: int | None = None
    temperature: float | None = None
    batch_size: int | None = None
    max_new_tokens: int | None = None
    repeats: int | None = None
    seeds: list[int] = field(default_factory=list)
    parameters_added: int | None = None
    training_tokens: int | None = None
    known_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class Summary(Figures, Setting):
    """The figures of a run with its setting; the content of `summary.json`."""

    bandwidth_share: float | None = None
    by_category: dict[str, Figures] = field(default_factory=dict)
    by_seed: dict[str, Figures] = field(default_factory=dict)
    peak_memory_mb: float | None = None
    quiet: Quiet | None = None
    skipped: list[LeftOut] = field(default_factory=list)
    missing_references: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, found: Any) -> tuple[Summary, list[str]]:
        """Return a summary from the JSON value of a file, and the names of values of a wrong type, which are left out.

        Keys that are not in the schema are ignored.
        """
        return sound(found, cls)

    def named(self, names: Mapping[str, str], missing_references: Mapping[str, str]) -> Summary:
        """Return a copy with the names of target, drafter, verifier and tree, and the rivals that cannot run here."""
        choices: dict[str, Any] = {group: names[group] for group in ("target", "drafter", "verifier", "tree")}
        return replace(self, **choices, missing_references=dict(missing_references))

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON value to write."""
        return asdict(self)


Some = TypeVar("Some", Figures, Summary)


def completed(found: Some, records: Sequence[StepRecord]) -> Some:
    """Return a copy of some figures in which missing metrics are computed from the step records."""
    missing = [name for name in StepMetrics.__dataclass_fields__ if getattr(found, name) in (None, [], {})]
    metrics = StepMetrics.of(records) if missing else None
    return replace(found, **{name: getattr(metrics, name) for name in missing})
