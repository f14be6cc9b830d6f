"""When a text ends: EOS, stop strings, the token limit; also inside an accepted block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from specdec.errors import InputError

STOP_LOOKBACK = 64  # tokens decoded to look for a stop string: longer than any sensible one


@dataclass(frozen=True)
class StopRule:
    """eos: ids that end a text; stop: strings that end it, found with `decode`; max_new_tokens: the limit.

    Raises:
        InputError: a limit under 1, or stop strings without a way to decode.
    """

    max_new_tokens: int
    eos: frozenset[int] = frozenset()
    stop: Sequence[str] = ()
    decode: Callable[[list[int]], str] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise InputError(
                "generation.max_new_tokens", expected="an integer >= 1", got=self.max_new_tokens, fix="ask for a token"
            )
        if self.stop and self.decode is None:
            raise InputError("generation.stop", expected="a tokenizer", got="none", fix="end texts by EOS instead")

    def cut(self, text: Sequence[int], block: Sequence[int]) -> tuple[list[int], bool]:
        """How much of `block` may follow `text` (the new tokens so far), and whether the text ends with it.

        The token that ends the text (EOS, or the one that completes a stop string) is kept.
        """
        block = list(block)[: self.max_new_tokens - len(text)]
        for i, token in enumerate(block):
            if token in self.eos or self._completes_stop_string([*text, *block[: i + 1]]):
                return block[: i + 1], True
        return block, len(text) + len(block) >= self.max_new_tokens

    def _completes_stop_string(self, text: list[int]) -> bool:
        if not self.stop or self.decode is None:
            return False
        tail = self.decode(text[-STOP_LOOKBACK:])
        return any(string in tail for string in self.stop)
