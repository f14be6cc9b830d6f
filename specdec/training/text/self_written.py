"""Let the target write prompts: an aligned model continues the opening of its chat template with a user's turn.

Magpie, arXiv 2406.08464.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from specdec.decoding.sampling import SamplingParams
from specdec.decoding.stopping import StopRule
from specdec.errors import InputError
from specdec.model.target import TargetModel
from specdec.prompts.sets import Prompt, PromptEncoder
from specdec.training.text.refill import Finished, Refill, Request
from specdec.training.text.self_distill import prompt_key

SHORTEST = 12  # characters: shorter turns are greetings and fragments
PATIENCE = 1000  # give up after this number of unusable turns in a row
_MARK = "\u2402user\u2403"


def turn_frame(encoder: PromptEncoder) -> tuple[str, str]:
    """Return the text that the chat template writes before the user's first turn, and between it and the answer.

    Raises:
        InputError: there is no chat template.
    """
    if encoder.tokenizer.chat_template is None:
        raise InputError(
            "self_written",
            expected="a target with a chat template",
            got="a tokenizer without one",
            fix="give prompts instead (prompts=jsonl)",
        )
    before, _, after = encoder.written([{"role": "user", "content": _MARK}]).partition(_MARK)
    return before, after


def write_prompts(
    target: TargetModel,
    file: Path,
    count: int,
    openings: Sequence[str],
    sampling: SamplingParams,
    *,
    longest: int = 160,
    slots: int = 32,
    seed: int = 0,
    part: int = 0,
    parts: int = 1,
    on_prompt: Callable[[Prompt], Any] = lambda prompt: None,
    left_out: Counter[str] | None = None,
) -> list[Prompt]:
    """Let the target write user turns until `file` holds `count` of them; return all of them.

    Turns that do not end, are too short or were written before are left out. Each prompt is appended to the file as
    soon as it ends, so that an interrupted run continues where it stopped.

    Args:
        target: the target.
        file: prompts in JSONL.
        count: number of prompts that the file holds in the end.
        openings: first words of the turns, used in rotation; they influence what is asked. "" lets the model choose.
        sampling: how tokens are chosen.
        longest: largest number of tokens in a turn; longer ones are left out.
        slots: number of turns generated at a time.
        seed: seed of the sampling.
        part, parts: turns are numbered over all processes; process `part` of `parts` writes every `parts`-th.
        on_prompt: called with each new prompt.
        left_out: takes the number of turns that were left out, by reason.

    Raises:
        InputError: the target has no chat template, or writes no usable turns.
    """
    encoder = PromptEncoder.of(target)
    tokenizer, (before, _) = encoder.tokenizer, turn_frame(encoder)
    prompts, tried = _read(file)
    dropped = Counter[str]() if left_out is None else left_out
    known, useless = {prompt_key(prompt) for prompt in prompts}, 0
    starts = [tokenizer.encode(before + words, add_special_tokens=False) for words in openings]

    with file.open("a", encoding="utf-8") as out:

        def requests() -> Iterator[Request]:
            number = max(tried, default=part - parts) + parts
            while len(prompts) < count:
                yield Request(starts[number % len(starts)], sampling, [seed, number], number)
                number += parts

        def finished(done: Finished) -> None:
            nonlocal useless
            number = done.request.tag
            assert isinstance(number, int)
            words = openings[number % len(openings)] + encoder.decode(done.answer)
            prompt = Prompt(f"self-{number}", "self_written", (words.strip(),))
            if len(prompts) >= count:
                return
            if reason := _unusable(prompt, done.answer[-1] in target.eos, longest, known):
                dropped[reason] += 1
                useless += 1
                if useless == PATIENCE:
                    raise _gives_up(dropped)
                return
            useless = 0
            known.add(prompt_key(prompt))
            prompts.append(prompt)
            out.write(prompt.line())
            out.flush()
            on_prompt(prompt)

        if len(prompts) < count:
            refill = Refill(target, StopRule(longest, target.eos), slots, max(map(len, starts)), None, starts[0])
            refill.run(requests(), finished)
    return prompts


def _gives_up(dropped: Counter[str]) -> InputError:
    reason, count = dropped.most_common(1)[0]
    return InputError(
        "self_written", expected="a target that writes user turns",
        got=f"{PATIENCE:,} in a row that are of no use ({count:,} {reason})",
        fix="raise self_written.longest, or give prompts instead (prompts=jsonl)",
    )  # fmt: skip


def _unusable(prompt: Prompt, ended: bool, longest: int, known: Collection[str]) -> str | None:
    """Return the reason to leave out a turn, or None to keep it.

    Args:
        prompt: the turn.
        ended: whether the target ended it with EOS.
        longest: largest number of tokens in a turn.
        known: hashes of the turns that are kept already.
    """
    if not ended:
        return f"turns that did not end within self_written.longest={longest} tokens"
    if len(prompt.turns[0]) < SHORTEST:
        return f"turns of fewer than {SHORTEST} characters"
    return "turns that were written before" if prompt_key(prompt) in known else None


def _read(file: Path) -> tuple[list[Prompt], list[int]]:
    """Return the prompts of an earlier run and their numbers; an incomplete last line is removed from the file."""
    if not file.exists():
        return [], []
    whole = file.read_bytes().rpartition(b"\n")[0]
    with file.open("r+b") as handle:
        handle.truncate(len(whole) + 1 if whole else 0)
    data = [json.loads(line) for line in whole.decode("utf-8").split("\n") if line]
    prompts = [Prompt(line["question_id"], line["category"], tuple(line["turns"])) for line in data]
    return prompts, [int(prompt.id.rpartition("-")[2]) for prompt in prompts]
