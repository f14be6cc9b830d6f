"""Self-distillation: the target answers prompts, and a folder stores its tokens and hidden states.

A drafter predicts its target, so it is trained on the target's own text; human answers to the same prompts have another
distribution (arXiv 2310.08461, 2401.10774).
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise, takewhile

import torch
from torch import Tensor

from specdec.decoding.sampling import SamplingParams
from specdec.decoding.stopping import StopRule
from specdec.errors import InputError
from specdec.model.target import TargetModel
from specdec.prompts.sets import Prompt, PromptEncoder
from specdec.training.text.refill import Finished, Refill, Request
from specdec.training.text.shard import Shard, require_disk
from specdec.training.text.texts import FEATURE_BYTES, HIDDEN, TOKEN_BYTES, Text, digest

SPARE = 1.05  # factor on the predicted size, for the file system and index lines
TRIAL_TOKENS = 6


@dataclass(frozen=True)
class Forecast:
    """Upper bounds of what a run will produce; texts may end earlier.

    Args:
        texts: number of texts.
        prompt_tokens, answer_tokens: tokens in all prompts and answers.
        bytes: size on disk.
        free_bytes: free space on the disk.
        seconds: predicted time.
        rate: measured answer tokens per second.
    """

    texts: int
    prompt_tokens: int
    answer_tokens: int
    bytes: int
    free_bytes: int
    seconds: float
    rate: float

    def __str__(self) -> str:
        hours, minutes = divmod(round(self.seconds / 60), 60)
        return (
            f"{self.texts:,} texts: at most {self.answer_tokens:,} answer tokens to {self.prompt_tokens:,} of prompts; "
            f"{self.bytes / 2**30:.2f} GiB, {self.free_bytes / 2**30:.1f} GiB are free; {hours} h {minutes:02d} min "
            f"at {self.rate:.0f} answer tokens/s"
        )


@dataclass
class _Conversation:
    """The state of one conversation.

    Args:
        prompt: the user's turns.
        key: hash of the prompt's text.
        sample: index among several answers to the same prompt.
        texts: answers so far.
        ids: token ids of the conversation so far.
        answers: [begin, end) of each answer in `ids`.
        hidden: the target's last hidden state at every token of `ids`.
    """

    prompt: Prompt
    key: str
    sample: int
    texts: list[str] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    answers: list[list[int]] = field(default_factory=list)
    hidden: Tensor | None = None


@dataclass(frozen=True)
class SelfDistillation:
    """Let the target answer prompts.

    Args:
        target: the target.
        prompts: the prompts.
        stop: ends answers.
        temperatures: each prompt gets one, chosen by its hash; a value listed twice is used twice as often. Drafters
            are used in greedy and sampled decoding: greedy text alone does not cover the contexts that sampling leads
            to, and sampled text alone blurs the greedy continuation.
        samples: answers per prompt.
        longest_prompt: largest number of tokens in a prompt. Longer prompts are left out; a conversation that becomes
            longer ends.
        slots: number of texts generated at a time.
        seed: seed of sampled answers.
        answer_tokens: begin no new text after this number of answer tokens; None for no limit.
        hidden: whether to store hidden states.
        done: (key, sample) of texts that exist already.
        left_out: takes the number of prompts and turns that are not answered, by reason.

    Raises:
        InputError: a number is out of range, or no prompt is short enough.
    """

    target: TargetModel
    prompts: Sequence[Prompt]
    stop: StopRule
    temperatures: Sequence[float] = (0.0, 0.0, 0.8)
    samples: int = 1
    longest_prompt: int = 512
    slots: int = 32
    seed: int = 0
    answer_tokens: int | None = None
    hidden: bool = True
    done: Collection[tuple[str, int]] = ()
    left_out: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        for name, low in (("samples", 1), ("slots", 1), ("longest_prompt", 1)):
            if getattr(self, name) < low:
                raise InputError(name, expected=f"an integer >= {low}", got=getattr(self, name), fix="raise it")
        if not self.temperatures:
            raise InputError("temperatures", expected="at least one", got="none", fix="use [0.0] for greedy text")

    def plan(self, shard: Shard, processes: int = 1) -> Forecast:
        """Return a plan of the remaining work, with its speed measured on the first prompts.

        Args:
            shard: the shard to write; texts that are in `done` are not counted.
            processes: number of processes that write to the same disk, each about as much.

        Raises:
            InputError: the disk is too small.
        """
        left = list(self._conversations())
        prompts = [self._encode(conversation.prompt, len(conversation.prompt.turns)) for conversation in left]
        answers = self.stop.max_new_tokens * sum(len(conversation.prompt.turns) for conversation in left)
        if self.answer_tokens is not None:
            # texts that are in progress when the limit is reached are still finished
            answers = min(answers, self.answer_tokens + self.slots * self.stop.max_new_tokens)
        prompt_tokens = sum(map(len, prompts))
        row = TOKEN_BYTES + (FEATURE_BYTES * shard.origin.dim if self.hidden else 0)
        size = int(SPARE * row * (prompt_tokens + answers))
        free = require_disk(
            shard.folder, size * processes, f"at most {(prompt_tokens + answers) * processes:,} tokens",
            "set answers.answer_tokens, lower answers.max_new_tokens, or choose a folder on a larger disk",
        )  # fmt: skip
        read, write = self._measure(prompts[: self.slots]) if prompts else (1.0, 1.0)
        return Forecast(len(left), prompt_tokens, answers, size, free, prompt_tokens / read + answers / write, write)

    def run(self, shard: Shard, on_text: Callable[[Text], None] = lambda text: None) -> None:
        """Answer the remaining prompts; each text is committed to the shard when it ends."""
        left, made = list(self._conversations()), 0
        if not left:
            return

        def requests() -> Iterator[Request]:
            for conversation in left:
                if self.answer_tokens is not None and made >= self.answer_tokens:
                    return
                yield self._request(conversation, self._encode(conversation.prompt, 1))

        def finished(done: Finished) -> Request | None:
            nonlocal made
            conversation = done.request.tag
            assert isinstance(conversation, _Conversation)
            made += len(done.answer)
            if more := self._next_turn(conversation, done):
                return more
            features = {HIDDEN: conversation.hidden} if conversation.hidden is not None else {}
            text = Text(
                conversation.key, conversation.sample, conversation.prompt.id, conversation.prompt.category,
                self._sampling(conversation).temperature, shard.end, len(conversation.ids), conversation.answers,
                shard.number,
            )  # fmt: skip
            shard.append(text, conversation.ids, features)
            on_text(text)
            return None

        hidden = shard.origin.feature_dtype if self.hidden else None
        self._refill(self.stop, hidden, len(left)).run(requests(), finished)

    def _conversations(self) -> Iterator[_Conversation]:
        """Return the conversations to run, in the order of their prompts' hashes.

        This order mixes the sources, so that an interrupted run is a random sample.

        Raises:
            InputError: no prompt is short enough.
        """
        by_key = {prompt_key(prompt): prompt for prompt in self.prompts}
        short = [key for key in sorted(by_key) if len(self._encode(by_key[key], 1)) <= self.longest_prompt]
        self.left_out[f"prompts longer than answers.longest_prompt={self.longest_prompt} tokens"] = len(by_key) - len(
            short
        )
        self.left_out["prompts that say the same as another"] = len(self.prompts) - len(by_key)
        if by_key and not short:
            raise InputError(
                "prompts", expected=f"prompts of at most longest_prompt={self.longest_prompt} tokens",
                got=f"{len(by_key)} longer ones", fix="raise longest_prompt",
            )  # fmt: skip
        return (
            _Conversation(by_key[key], key, sample)
            for sample in range(self.samples)
            for key in short
            if (key, sample) not in self.done
        )

    def _next_turn(self, conversation: _Conversation, done: Finished) -> Request | None:
        """Add an answer to its conversation; return the request for the next turn, or None if the conversation ends."""
        ids = [*done.request.prompt, *done.answer]
        if ids[: len(conversation.ids)] != conversation.ids:  # the template or the tokenizer rewrote an earlier answer:
            self.left_out["answers that the chat template rewrote"] += len(conversation.answers)
            conversation.answers = []  # the tokens there are no longer those that the target wrote
        conversation.ids, conversation.hidden = ids, done.hidden
        conversation.answers.append([len(done.request.prompt), len(ids)])
        conversation.texts.append(PromptEncoder.of(self.target).decode(done.answer))
        turn = len(conversation.texts)
        if turn == len(conversation.prompt.turns):
            return None
        prompt = self._encode(conversation.prompt, turn + 1, conversation.texts)
        if len(prompt) > self.longest_prompt:
            late = f"turns of conversations that grew past answers.longest_prompt={self.longest_prompt} tokens"
            self.left_out[late] += len(conversation.prompt.turns) - turn
            return None
        return self._request(conversation, prompt)

    def _request(self, conversation: _Conversation, prompt: list[int]) -> Request:
        seed = [self.seed, int(conversation.key, 16), conversation.sample, len(conversation.texts)]
        return Request(prompt, self._sampling(conversation), seed, conversation)

    def _sampling(self, conversation: _Conversation) -> SamplingParams:
        turn = int(conversation.key, 16) + conversation.sample
        return SamplingParams(self.temperatures[turn % len(self.temperatures)])

    def _encode(self, prompt: Prompt, turns: int, answers: Sequence[str] | None = None) -> list[int]:
        encoder = PromptEncoder.of(self.target)
        answers = [""] * (turns - 1) if answers is None else answers
        return encoder.encode(prompt.turns[:turns], answers, f"prompt {prompt.id}", prompt.system)

    def _refill(self, stop: StopRule, hidden: torch.dtype | None, texts: int) -> Refill:
        encoder = PromptEncoder.of(self.target)
        pairs = takewhile(
            lambda pair: pair[0] == pair[1], zip(*(encoder.encode([turn], []) for turn in "ab"), strict=False)
        )
        opening = [token for token, _ in pairs]
        return Refill(self.target, stop, min(self.slots, texts), self.longest_prompt, hidden, opening)

    def _measure(self, prompts: Sequence[list[int]]) -> tuple[float, float]:
        """Return prompt tokens read and answer tokens generated per second, measured on these prompts."""
        cut = [prompt[-self.longest_prompt :] for prompt in prompts]
        refill = self._refill(replace(self.stop, max_new_tokens=TRIAL_TOKENS, eos=frozenset(), stop=()), None, len(cut))
        marks = [time.perf_counter()]
        sampling = SamplingParams(max(self.temperatures))
        requests = [Request(prompt, sampling, [i]) for i, prompt in enumerate(cut)]
        refill.run(requests, lambda done: None, lambda live: marks.append(time.perf_counter()))
        step = statistics.median(after - before for before, after in pairwise(marks[1:]))
        return sum(map(len, cut)) / max(marks[1] - marks[0] - step, 1e-9), len(cut) / step


def prompt_key(prompt: Prompt) -> str:
    """Return the hash of a prompt's text, so that the same prompt from two sources is answered once."""
    system = [] if prompt.system is None else [f"\x1d{prompt.system}"]
    return digest("\x1e".join([*system, *prompt.turns]))
