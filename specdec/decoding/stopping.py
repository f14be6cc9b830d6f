"""When a text ends: at EOS, at a stop string, at the token limit; also inside an accepted block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from specdec.errors import InputError
from specdec.model.target import TargetModel

# Number of characters at the beginning of a tail that may decode differently than within the whole text: bytes of a
# character that was cut in two, and a space that tokenizers drop in front
UNSURE = 8


@dataclass(frozen=True)
class StopRule:
    """When a text ends. Only new tokens count: a stop string never begins in the prompt.

    Args:
        max_new_tokens: maximum number of new tokens.
        eos: ids that end a text.
        stop: strings that end it, of any length.
        decode: turns token ids into text, special tokens included; needed with `stop`.

    Raises:
        InputError: a limit under 1, an empty stop string, or stop strings without a way to decode.
    """

    max_new_tokens: int
    eos: frozenset[int] = frozenset()
    stop: Sequence[str] = ()
    decode: Callable[[list[int]], str] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if type(self.max_new_tokens) is not int or self.max_new_tokens < 1:
            raise InputError(
                "generation.max_new_tokens",
                expected="an integer >= 1",
                got=repr(self.max_new_tokens),
                fix="ask for a token",
            )
        require_stop_strings(self.stop)
        if self.stop and self.decode is None:
            raise InputError("generation.stop", expected="a tokenizer", got="none", fix="end texts by EOS instead")

    def cut(self, text: Sequence[int], block: Sequence[int]) -> tuple[list[int], bool]:
        """Return the part of `block` that may follow `text` (the new tokens so far), and whether the text ends with it.

        The token that ends the text (EOS, or the one that completes a stop string) is kept.
        """
        block = list(block)[: self.max_new_tokens - len(text)]
        for i, token in enumerate(block):
            if token in self.eos or self._completes_stop_string([*text, *block[: i + 1]]):
                return block[: i + 1], True
        return block, len(text) + len(block) >= self.max_new_tokens

    def _completes_stop_string(self, text: list[int]) -> bool:
        """Whether a stop string ends within the last token.

        Decodes as many tokens as may hold the longest stop string. A token may have no character of its own (a part of
        one, a special token), so decoded characters are counted.
        """
        if not self.stop or self.decode is None:
            return False
        needed = max(map(len, self.stop)) + UNSURE + len(self.decode(text[-1:]))
        size, tail = 0, ""
        while len(tail) < needed and size < len(text):
            size = min(max(2 * size, needed), len(text))
            tail = self.decode(text[-size:])
        return any(string in tail for string in self.stop)


def stop_rule(target: TargetModel, max_new_tokens: int, stop: Sequence[str] = ()) -> StopRule:
    """Return the stop rule of a target: the limit, `stop`, and the EOS ids and stop strings of the model's generation
    config.

    Raises:
        InputError: as in `StopRule`.
    """
    config = target.model.generation_config
    decode: Any = None
    if target.tokenizer is not None:
        decode = partial(target.tokenizer.decode, clean_up_tokenization_spaces=False)  # as `generate` matches them
    own = (config.stop_strings if config is not None else None) or []
    return StopRule(max_new_tokens, target.eos, (*stop, *([own] if isinstance(own, str) else own)), decode)


def require_stop_strings(stop: Sequence[str]) -> None:
    """Refuse stop strings that cannot end a text.

    Raises:
        InputError: not a list of strings of one character or more.
    """
    fix = "write a list of strings, [] for none"
    if isinstance(stop, str) or not all(isinstance(string, str) for string in stop):
        raise InputError("generation.stop", expected="a list of strings", got=repr(stop), fix=fix)
    if "" in stop:
        got = "an empty one, which would end every text at once"
        raise InputError("generation.stop", expected="strings of one character or more", got=got, fix="remove it")
