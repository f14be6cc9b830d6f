"""The tokenizer of a checkpoint, and its chat template."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from specdec.errors import InputError
from specdec.files.checked import read_bounded
from specdec.model.loading.faults import faults
from specdec.model.loading.quiet import quiet

NO_TEMPLATE = "none"
LEAST_TOKENS = 4  # ordinary tokens: a class without its files has at most one, a nucleotide alphabet has four

TINY_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def read_tokenizer(name: str, hub: Mapping[str, Any], option: str) -> PreTrainedTokenizerBase:
    """Read the tokenizer of a hub id or a folder.

    Raises:
        InputError: there is none, or its files are missing or malformed.
    """
    expected = "a checkpoint with a tokenizer (tokenizer.json and the like)"
    fix = f"download its files, or pass {option.partition('.')[0]}.tokenizer=FOLDER or a hub id"
    with faults(name, option, expected=expected, fix=fix), quiet():
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name, **hub)
    special = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
    if len({*tokenizer.get_vocab()} - special) < LEAST_TOKENS:  # without its files, a class makes an empty one
        raise InputError(option, expected=expected, got=f"{name!r} without one", fix=fix)
    return tokenizer


def with_template(tokenizer: PreTrainedTokenizerBase, template: str | None, option: str) -> PreTrainedTokenizerBase:
    """Exchange the chat template, and return the tokenizer.

    Args:
        tokenizer: the tokenizer, which is changed.
        template: a Jinja file; `none` to join messages without a template; None to keep the tokenizer's own.
        option: name used in error messages.

    Raises:
        InputError: no such file.
    """
    if template is None:
        return tokenizer
    try:
        tokenizer.chat_template = None if template == NO_TEMPLATE else read_bounded(Path(template)).decode("utf-8")
    except (OSError, ValueError) as error:
        raise InputError(
            option, expected="a Jinja file, or none to join messages without a template", got=f"{template!r} ({error})",
            fix="check the path",
        ) from error  # fmt: skip
    return tokenizer


def require_template_kwargs(tokenizer: PreTrainedTokenizerBase, kwargs: Mapping[str, Any], option: str) -> None:
    """Refuse variables that the chat template never reads, because a misspelt one would have no effect.

    Raises:
        InputError: names the variable.
    """
    template = tokenizer.chat_template
    text = "\n".join(template.values()) if isinstance(template, dict) else template or ""
    for key in kwargs:
        if not re.search(rf"\b{re.escape(str(key))}\b", text) or key in ("messages", "add_generation_prompt"):
            raise InputError(
                option, expected="variables that the chat template reads (enable_thinking, tools and the like)",
                got=repr(key), fix="check the spelling in the tokenizer's chat template",
            )  # fmt: skip


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per byte, two chat markers, and a chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|im_start|>"), AddedToken("<|im_end|>")])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>")
    fast.chat_template = TINY_TEMPLATE
    return fast
