"""Make prompts with long inputs from the target's own answers: summaries, and questions about several passages.

A small model cannot write good user turns of five hundred tokens itself. Its answers are texts of that length, and each
has a question that it answers.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from specdec.errors import InputError
from specdec.prompts.sets import Prompt, PromptEncoder
from specdec.training.text.self_written import turn_frame
from specdec.training.text.store import TextStore

SHORTEST = 96  # tokens; shorter answers are not used as passages
CATEGORY = "passages"
SUMMARIES = (
    "Summarize: {}",
    "Summarize the following text:\n\n{}",
    "{}\n\nSummarize this in two sentences.",
    "{}\n\nTL;DR",
)
MOST = 4  # largest number of passages in a prompt


def passage_prompts(
    store: TextStore,
    encoder: PromptEncoder,
    count: int,
    *,
    longest: int = 600,
    categories: Sequence[str] | None = None,
    seed: int = 0,
) -> list[Prompt]:
    """Return prompts made of the answers in a folder's training split. They depend on the texts and the seed only.

    Half of them ask for a summary, in one of several wordings. The others show several passages, followed by the
    question that one of them answers. Validation texts are not used, because training must not read them.

    Args:
        store: the text folder.
        encoder: tokenizer and chat template.
        count: number of prompts.
        longest: largest number of tokens in a prompt's text; prompts that would be longer get fewer passages.
        categories: use answers to prompts of these categories only; None for all.
        seed: seed of the choices.

    Raises:
        InputError: the folder has too few long answers, or the target has no chat template.
    """
    found, tokenizer = _passages(store, encoder, categories), encoder.tokenizer
    rng = random.Random(seed)
    rng.shuffle(found)
    prompts: list[Prompt] = []
    for number, (question, passage) in enumerate(found):
        if len(prompts) == count:
            break
        others = [text for _, text in rng.sample(found, min(rng.randrange(MOST), len(found) - 1)) if text != passage]
        for few in range(len(others), -1, -1):
            passages = [passage, *others[:few]]
            words = _summary(rng, passages) if number % 2 else _question(rng, question, passages)
            if len(tokenizer.encode(words, add_special_tokens=False)) <= longest:
                prompts.append(Prompt(f"passages-{seed}-{number}", CATEGORY, (words,)))
                break
    if len(prompts) < count:
        here = f"so many answers of {store.folder} have {SHORTEST} tokens or more and make prompts of at most {longest}"
        expected, fix = f"at most {len(prompts):,}: {here}", "distil other prompts first, or lower it"
        raise InputError("passages.count", expected=expected, got=count, fix=fix)
    return prompts


def _summary(rng: random.Random, passages: Sequence[str]) -> str:
    return rng.choice(SUMMARIES).format("\n".join(passages))


def _question(rng: random.Random, question: str, passages: Sequence[str]) -> str:
    return "\n".join([*rng.sample(passages, len(passages)), question])


def _passages(store: TextStore, encoder: PromptEncoder, categories: Sequence[str] | None) -> list[tuple[str, str]]:
    """Return (question, answer) of the first turn of every training text with a long answer, in folder order."""
    (before, after), found = turn_frame(encoder), []
    for text in store.training:
        begin, end = text.answers[0] if text.answers else (0, 0)
        wanted = text.category != CATEGORY and (categories is None or text.category in categories)
        if not wanted or end - begin < SHORTEST:
            continue
        ids = store.tokens(text).tolist()
        question = str(encoder.tokenizer.decode(ids[:begin])).removeprefix(before).removesuffix(after)
        found.append((question, encoder.decode(ids[begin:end]).strip()))
    return found
