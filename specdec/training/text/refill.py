"""Generate for throughput (continuous batching): a fixed number of slots; the next prompt takes a free slot.

Each text equals that of `specdec.decoding.generate.autoregressive` (same forward, sampling and stopping); only the
batch composition differs. This module handles token ids, not text.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from specdec.decoding.generate import longest_text
from specdec.decoding.sampling import SamplingParams, Streams
from specdec.decoding.stopping import StopRule
from specdec.model.block import Block
from specdec.model.target import TargetModel


@dataclass(frozen=True)
class Request:
    """A prompt to answer.

    Args:
        prompt: token ids.
        sampling: how tokens are chosen.
        seed: seed of the random draws.
        tag: any object, for the caller's use.
    """

    prompt: list[int]
    sampling: SamplingParams
    seed: Sequence[int]
    tag: object = None


@dataclass(frozen=True)
class Finished:
    """A finished text.

    Args:
        request: the request that it answers.
        answer: new token ids.
        hidden: the target's last hidden state at every token of prompt and answer, on the CPU; None if not requested.
    """

    request: Request
    answer: list[int]
    hidden: Float[Tensor, "seq dim"] | None


@dataclass
class _Text:
    request: Request
    sampling: SamplingParams  # the request's, bound to its prompt
    answer: list[int]
    ended: bool = False  # complete, but the last token may still have to be read for its hidden state

    @property
    def length(self) -> int:
        return len(self.request.prompt) + len(self.answer)


TOGETHER = {"cuda": 16}  # prompts per prefill, by device: launching the kernels takes as long as for a single prompt


class Refill:
    """Generate many texts, a fixed number at a time.

    Args:
        target: the target.
        stop: ends texts.
        slots: number of slots, the batch size.
        longest: tokens of the longest prompt.
        hidden: dtype in which hidden states are kept; None to keep none.
        shared: shared prefix of the prompts (the opening of a chat template), which is read only once.
        together: size of a prefill batch; prompts are read when at least this number of slots is free. None for a
            default that suits the device.

    Raises:
        InputError: prompts do not fit the context window, or slots do not fit memory.
    """

    def __init__(
        self,
        target: TargetModel,
        stop: StopRule,
        slots: int,
        longest: int,
        hidden: torch.dtype | None = None,
        shared: Sequence[int] = (),
        together: int | None = None,
    ) -> None:
        self._target, self._stop, self._shared = target, stop, list(shared)
        capacity = longest_text([[0] * longest], stop, target.context_window)
        self._cache = target.new_cache(slots, capacity)
        self._together = min(together or TOGETHER.get(target.device.type, 1), slots)
        # cache of the prefill batch; prompts are read here, then moved to their slots
        self._entrance = target.new_cache(self._together, max(longest, len(shared)))
        self._slots: list[_Text | None] = [None] * slots
        dim = target.model.config.get_text_config().hidden_size if hidden is not None else 0
        self._hidden = torch.empty(slots, capacity, dim, dtype=hidden or target.dtype, device=target.device)
        self._opened = bool(self._shared)  # whether the prefill cache holds the shared prefix
        if self._shared:
            opening = target.prefill(self._entrance, [self._shared] * self._together).hidden[0]
            self._opening_hidden = opening[:, :dim].to(self._hidden.dtype)

    @torch.inference_mode()
    def run(
        self,
        requests: Iterable[Request],
        finished: Callable[[Finished], Request | None],
        step: Callable[[int], None] = lambda tokens: None,
    ) -> None:
        """Answer all requests.

        Args:
            requests: taken from this iterable when slots become free.
            finished: called with each text when it ends; may return another request (the next turn of a conversation),
                which goes before the remaining ones.
            step: called after each forward with the number of texts in it.
        """
        waiting, source = deque[Request](), iter(requests)

        def following() -> Request | None:
            return waiting.popleft() if waiting else next(source, None)

        while True:
            free = [slot for slot, text in enumerate(self._slots) if not text]
            for begin in range(0, len(free) - self._together + 1, self._together):
                slots = free[begin : begin + self._together]
                self._admit({slot: request for slot in slots if (request := following()) is not None})
            live = [slot for slot, text in enumerate(self._slots) if text]
            if not live:
                return
            self._step(live)
            for slot in live:
                text = self._slots[slot]
                assert text is not None
                if text.length == self._cache.host_lengths[slot]:  # ended, and its last token was read
                    self._slots[slot] = None
                    hidden = self._hidden[slot, : text.length].to("cpu", copy=True) if self._hidden.shape[-1] else None
                    if more := finished(Finished(text.request, text.answer, hidden)):
                        waiting.append(more)
            self._cache.crop([n if text else 0 for n, text in zip(self._cache.host_lengths, self._slots, strict=True)])
            step(len(live))

    def _admit(self, requests: Mapping[int, Request]) -> None:
        """Read the prompts of a prefill batch, move each to its slot, and choose its first token."""
        if not requests:
            return
        prompts, opening = [request.prompt for request in requests.values()], len(self._shared)
        prompts += prompts[:1] * (self._together - len(prompts))  # fill up the prefill batch; these rows are not used
        known = opening if all(len(p) > opening and p[:opening] == self._shared for p in prompts) else 0
        self._entrance.crop([known if self._opened else 0] * self._together)
        if known and not self._opened:  # the last batch did not begin with the shared prefix
            self._target.prefill(self._entrance, [self._shared] * self._together)
        self._opened = known > 0
        out = self._target.prefill(self._entrance, [prompt[known:] for prompt in prompts])
        texts = [
            _Text(request, request.sampling.bound(self._target.model, [request.prompt], self._stop), [])
            for request in requests.values()
        ]
        for row, (slot, text) in enumerate(zip(requests, texts, strict=True)):
            self._cache.adopt(slot, self._entrance, row)
            self._slots[slot] = text
            if self._hidden.shape[-1]:
                length = len(text.request.prompt)
                self._hidden[slot, :known] = self._opening_hidden[:known]
                self._hidden[slot, known:length] = out.hidden[row, : length - known].to(self._hidden.dtype)
        self._choose(texts, out.logits[: len(texts), 0])

    def _step(self, live: Sequence[int]) -> None:
        """Run one forward over all slots, and choose the next token of every text that continues."""
        texts = [text for slot in live if (text := self._slots[slot])]
        tokens = torch.full((len(self._slots), 1), -1)  # free slots are padding
        tokens[list(live), 0] = torch.tensor([text.answer[-1] for text in texts])
        lengths = self._cache.lengths
        out = self._target.forward(self._cache, Block.chain(self._cache, tokens.to(lengths.device)))
        if self._hidden.shape[-1]:
            every = torch.arange(len(self._slots), device=lengths.device)
            self._hidden[every, lengths] = out.hidden[:, 0].to(self._hidden.dtype)
        self._cache.advance([1 if text else 0 for text in self._slots])
        going = [i for i, text in enumerate(texts) if not text.ended]
        self._choose([texts[i] for i in going], out.logits[[live[i] for i in going], 0])

    def _choose(self, texts: Sequence[_Text], logits: Float[Tensor, "texts vocab"]) -> None:
        """Append a token to each text. Texts with the same sampling are drawn together, unless it needs the history."""
        alike: dict[object, list[int]] = {}
        for i, text in enumerate(texts):
            alike.setdefault(i if text.sampling.needs_history else text.request.sampling, []).append(i)
        for index in alike.values():
            some = [texts[i] for i in index]
            sampling = some[0].sampling
            histories = [[*text.request.prompt, *text.answer] for text in some] if sampling.needs_history else None
            if sampling.greedy:
                chosen = sampling.scores(logits[index], histories).argmax(-1)
            else:
                streams = Streams([text.request.seed for text in some], sampling, logits.device)
                draws = streams.draws([text.length for text in some], Streams.ACCEPT, 1)
                chosen = draws.categorical(sampling.probabilities(logits[index], histories), 0)
            for text, token in zip(some, chosen.tolist(), strict=True):
                block, text.ended = self._stop.cut(text.answer, [token])
                text.answer += block
