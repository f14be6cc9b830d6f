"""Descriptions of a sequence of text (`Text`) and of the model that wrote it (`Origin`)."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import torch

from specdec.errors import InputError
from specdec.model.runtime.packed import named_weights
from specdec.model.target import TargetModel
from specdec.prompts.sets import PromptEncoder

VALIDATION_SHARE = 1 / 25  # share of the prompts, chosen by hash, so that it is the same prompts in every folder
TOKEN_BYTES, FEATURE_BYTES = 4, 2
HIDDEN = "hidden"


@dataclass(frozen=True)
class Origin:
    """The model that wrote the text of a folder.

    Args:
        target: name of the target.
        weights: fingerprint of its weights.
        chat_template: hash of its chat template.
        vocab_size: size of its vocabulary.
        dim: dimension of the features.
        dtype: dtype of the stored features, "bfloat16" or "float16".
    """

    target: str
    weights: str
    chat_template: str
    vocab_size: int
    dim: int
    dtype: str

    @classmethod
    def of(cls, target: TargetModel) -> Origin:
        template = PromptEncoder.of(target).template if target.tokenizer is not None else "None"
        dim = target.model.config.get_text_config().hidden_size
        dtype = "bfloat16" if target.dtype is torch.bfloat16 else "float16"
        return cls(target.name, fingerprint(target), digest(template), target.vocab_size, dim, dtype)

    @property
    def feature_dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.dtype == "bfloat16" else torch.float16

    def require_same(self, other: Origin, where: Path) -> None:
        """Refuse text made with another target or chat template than `other`.

        Args:
            other: the expected origin.
            where: the folder or file, used in the error message.

        Raises:
            InputError: the target or the chat template differs; the message says which.
        """
        for field, what in (("weights", "target"), ("chat_template", "chat template")):
            ours, theirs = getattr(self, field), getattr(other, field)
            if ours != theirs:
                raise InputError(
                    str(where),
                    expected=f"text made with the {what} of {other.target} ({theirs})",
                    got=f"text of {self.target} made with another {what} ({ours})",
                    fix="choose the target it was made with, or another folder",
                )


@dataclass(frozen=True)
class Text:
    """One sequence: a conversation, or its beginning.

    Args:
        key: hash of the prompt's turns.
        sample: index among several answers to the same prompt.
        id, category: as in `Prompt`.
        temperature: temperature of the answers.
        start: index of its first token in the shard's data files.
        tokens: number of tokens.
        answers: [begin, end) of each answer, relative to `start`.
        shard: number of the shard.
    """

    key: str
    sample: int
    id: str
    category: str
    temperature: float
    start: int
    tokens: int
    answers: list[list[int]]
    shard: int = 0

    def require_sound(self, ids: int | None = None) -> None:
        """Check values that were read from a file.

        Args:
            ids: number of token ids in the file; None to skip this check.

        Raises:
            ValueError: a span is outside the sequence, the sequence is outside the ids, or a value has another type.
        """
        numbers = [self.sample, self.start, self.tokens, *(edge for span in self.answers for edge in span)]
        if not all(type(number) is int for number in numbers) or not isinstance(self.temperature, float | int):
            raise ValueError(f"{self.id!r}: numbers that are none")
        if not all(isinstance(text, str) for text in (self.key, self.id, self.category)):
            raise ValueError(f"{self.id!r}: texts that are none")
        if self.start < 0 or self.tokens < 1 or (ids is not None and self.start + self.tokens > ids):
            raise ValueError(f"{self.id!r}: {self.tokens} tokens from {self.start} on")
        for span in self.answers:
            if len(span) != 2 or not 0 <= span[0] < span[1] <= self.tokens:
                raise ValueError(f"{self.id!r}: an answer at {span} of {self.tokens} tokens")
        int(self.key, 16)

    @property
    def answer_tokens(self) -> int:
        return self.answer_tokens_within(self.tokens)

    def answer_tokens_within(self, longest: int) -> int:
        """Return the number of answer tokens among the first `longest` tokens."""
        return sum(min(end, longest) - min(begin, longest) for begin, end in self.answers)


def file_suffix(feature: str) -> str:
    """Return the file suffix of a feature: "layer:8" becomes "layer-8", because some systems allow no colons."""
    return feature.replace(":", "-")


def is_validation(key: str) -> bool:
    return int(key[:8], 16) < VALIDATION_SHARE * 2**32


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fingerprint(target: TargetModel) -> str:
    """Return a hash of a model's weights: names, shapes and a few values of each.

    Values are rounded to bfloat16, so that the hash does not depend on the precision in which the model was loaded; nor
    does it depend on an exact storage format.
    """
    state = hashlib.sha256()
    for name, shape, values_at in named_weights(target.model):
        count = math.prod(shape)
        some = values_at(torch.arange(0, count, max(count // 16, 1))[:16]).to(torch.bfloat16).cpu()
        state.update(f"{name} {shape} {some.view(torch.uint16).tolist()}".encode())
    return state.hexdigest()[:16]
