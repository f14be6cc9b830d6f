"""Tokens that a target and a draft model share.

Two models with one tokenizer may pad their logits differently (Qwen2.5: 151,936 and 152,064 for the same tokens), and
two nearly equal tokenizers may differ in a few added tokens. A draft model proposes only ids that both models have with
the same meaning. For every other committed id it is given a stand-in.

    id         0   1   2   3   4   5   6        proposed: 0 1 2 4
    target     a   b   c   <x> d   .   .        fed as the stand-in: 3 5 6
    draft      a   b   c   <y> d                (. is padding)
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from specdec.errors import InputError
from specdec.model.target import TargetModel

SAME, SHARED = "same", "shared"
LEAST_SHARED = 0.5  # share of the draft's tokens; below it, two tokenizers have ids in common by accident
NAMED = 4  # differing tokens that are named in a message


@dataclass(frozen=True)
class SharedTokens:
    """The ids that have the same meaning for target and draft model.

    Args:
        ids: these ids, ascending, Int [rows]; None for all logits of both models.
        stand_in: the id fed to the draft model in place of one that it lacks.
    """

    ids: Int[Tensor, " rows"] | None = None
    stand_in: int = 0

    def fed(self, row: Sequence[int]) -> list[int]:
        """Return the row as it is fed to the draft model."""
        known = self._known
        if known is None:
            return list(row)
        return [token if token in known else self.stand_in for token in row]

    def of_draft(self, logits: Float[Tensor, "batch level draft"]) -> Float[Tensor, "batch level rows"]:
        """Return the draft model's logits of the shared ids."""
        known = self._known
        if self.ids is None or known is None or len(known) == logits.shape[-1]:
            return logits
        return logits[..., : len(known)] if isinstance(known, range) else logits[..., self.ids]

    @cached_property
    def _known(self) -> range | frozenset[int] | None:
        """`ids` on the host; a range if the models differ in padding only."""
        if self.ids is None:
            return None
        ids = self.ids.tolist()
        return range(len(ids)) if ids[-1] == len(ids) - 1 else frozenset(ids)


def shared_tokens(target: TargetModel, draft: TargetModel, vocabulary: str = SAME) -> SharedTokens:
    """Compare token-to-id maps and numbers of logits.

    Args:
        target: the target.
        draft: the draft model.
        vocabulary: `same` refuses differing tokens; `shared` ignores them and names them in a warning.

    Raises:
        InputError: tokens differ and the option does not ignore them, or most of them differ.
    """
    require_vocabulary(vocabulary)
    both = min(target.vocab_size, draft.vocab_size)
    differ = differing_tokens(target, draft)
    if differ and vocabulary == SAME:
        raise _other_tokens(target, draft, differ)
    ids = [i for i in range(both) if i not in differ]
    if differ:
        if len(ids) < LEAST_SHARED * draft.vocab_size:
            raise InputError(
                "drafter.model", expected=f"a draft model that shares most tokens with the target {target.name}",
                got=f"{draft.name}, which shares {len(ids):,} of its {draft.vocab_size:,}",
                fix="choose a draft model with the same tokenizer",
            )  # fmt: skip
        named = _named(target, draft, differ)
        warnings.warn(f"drafter.vocabulary=shared: {draft.name} never drafts {named}", stacklevel=2)
    if len(ids) == target.vocab_size == draft.vocab_size:
        return SharedTokens(None)
    return SharedTokens(torch.tensor(ids, device=draft.device), _stand_in(draft.tokenizer, ids))


def require_vocabulary(vocabulary: str) -> None:
    """Refuse an unknown way of comparing vocabularies.

    Raises:
        InputError: names the known ones.
    """
    if vocabulary not in (SAME, SHARED):
        expected = f"{SAME} or {SHARED}"
        raise InputError("drafter.vocabulary", expected=expected, got=repr(vocabulary), fix="choose one")


def differing_tokens(target: TargetModel, draft: TargetModel) -> dict[int, tuple[str | None, str | None]]:
    """Return (target's token, draft's token) for each id that differs, ascending; empty if a tokenizer is missing."""
    if target.tokenizer is None or draft.tokenizer is None or target.tokenizer is draft.tokenizer:
        return {}
    ours, theirs = ({i: t for t, i in m.tokenizer.get_vocab().items()} for m in (target, draft))  # type: ignore[union-attr]
    if ours == theirs:
        return {}
    return {i: (ours.get(i), theirs.get(i)) for i in sorted({*ours, *theirs}) if ours.get(i) != theirs.get(i)}


def _named(target: TargetModel, draft: TargetModel, differ: dict[int, tuple[str | None, str | None]]) -> str:
    first = [f"{i} ({ours!r}, not {theirs!r})" for i, (ours, theirs) in list(differ.items())[:NAMED]]
    more = f" and {len(differ) - NAMED:,} more" if len(differ) > NAMED else ""
    return f"what {target.name} reads otherwise (differing ids: {len(differ):,}): {', '.join(first)}{more}"


def _other_tokens(
    target: TargetModel, draft: TargetModel, differ: dict[int, tuple[str | None, str | None]]
) -> InputError:
    first, (ours, theirs) = next(iter(differ.items()))
    share = 1 - len(differ) / max(len(target.tokenizer or ()), 1)
    advice = ", or ignore what differs: drafter.vocabulary=shared" if share >= LEAST_SHARED else ""
    return InputError(
        "drafter.model",
        expected=f"the tokens of the target {target.name} (id {first} is {ours!r})",
        got=f"{draft.name}, where id {first} is {theirs!r} (differing ids: {len(differ):,})",
        fix=f"choose a draft model with the same tokenizer{advice}",
    )


def _stand_in(tokenizer: PreTrainedTokenizerBase | None, shared: Sequence[int]) -> int:
    """Return the draft's unknown token, else its padding or EOS, else the first shared id."""
    known = set(shared)
    for name in ("unk_token_id", "pad_token_id", "eos_token_id"):
        token = getattr(tokenizer, name, None)
        if isinstance(token, int) and token in known:
            return token
    return shared[0]
