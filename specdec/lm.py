"""A language model with a drafter, for scripts and notebooks.

lm = specdec.load("HuggingFaceTB/SmolLM2-135M-Instruct", drafter="ngram")
text, = lm.generate(["Why is the sky blue?"], max_new_tokens=64)
print(text, text.tokens_per_step)
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import signature
from typing import Any
from urllib.parse import urlsplit

import huggingface_hub
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from specdec.components import build
from specdec.decoding.decoder import Decoder
from specdec.decoding.generate import Blocks
from specdec.decoding.protocols import AcceptanceRule, Drafter, Learner, Verifier
from specdec.decoding.sampling import SamplingParams
from specdec.decoding.stopping import stop_rule
from specdec.errors import InputError
from specdec.metrics import StepMetrics, StepRecord
from specdec.model.load import load as load_target
from specdec.model.load import load_embedded, load_hub, load_tiny
from specdec.model.target import TargetModel
from specdec.notes import note
from specdec.options import Seed, check_signature, conform, require_known
from specdec.prompts.sets import UNFINISHED, PromptEncoder

EMBEDDED_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"  # hub id of the embedded model
HUB_SECONDS = 3  # timeout of the connection to the hub
OnText = Callable[[int, str], None]
ARGUMENTS = (  # patterns of options on the command line, and the arguments of `load` and `generate` for them
    (r"\btarget\.name\b", "model"),
    (r"\b(?:target|generation)\.(?=[a-z])", ""),
    (r"\bdrafter\.([a-z_]+)=auto\b", r'drafter_options={"\1": "auto"}'),
    (r"\bdrafter\.([a-z_]+)=([A-Z]+)\b", r'drafter_options={"\1": \2}'),
    (r"\bdrafter\.([a-z_]+)\b", r'drafter_options["\1"]'),
    (r"\btarget=(\w+)$", r'model="\1"'),
)


@dataclass(frozen=True)
class Text:
    """One generated text, with the records of its steps.

    Args:
        text: the new text.
        tokens: its token ids.
        pieces: the part of the text that each token adds.
        steps: one record per step; the prefill emits the first token, which belongs to no step.
    """

    text: str
    tokens: list[int]
    pieces: list[str]
    steps: list[StepRecord] = field(repr=False)

    def __str__(self) -> str:
        return self.text

    @property
    def writers(self) -> list[str]:
        """Source of each token.

        drafted     proposed by the drafter and accepted
        prompt      the first token, from the prefill
        recovered   from the target, after a rejection
        bonus       from the target, after a path that was accepted to its leaf
        undrafted   from the target, in a step without drafts
        """
        names = ["prompt"]
        for step in self.steps:
            names += ["drafted"] * step.accepted + ([step.closing] if step.closing else [])
        return names

    @property
    def tokens_per_step(self) -> float | None:
        """Tokens per step, 1.0 for plain decoding; None if there were no steps."""
        return StepMetrics.of(self.steps).tokens_per_step

    @property
    def acceptance_rate(self) -> float | None:
        """Accepted tokens / drafted depth; None if nothing was drafted."""
        return StepMetrics.of(self.steps).acceptance_rate


@dataclass(frozen=True)
class SpeculativeLM:
    """A target with a drafter.

    With a lossless rule, the text has the distribution of the target's own text; at temperature 0 it is the same text.

    Args:
        drafter: proposes trees of tokens.
        verifier: scores them with the target, which it holds.
        rule: decides which tokens are kept.
    """

    drafter: Drafter
    verifier: Verifier
    rule: AcceptanceRule

    @property
    def target(self) -> TargetModel:
        return self.verifier.target

    def generate(
        self,
        prompts: str | Sequence[str],
        max_new_tokens: int = 128,
        *,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        stop: Sequence[str] = (),
        seed: int = 0,
        chat: bool = True,
        on_text: OnText | None = None,
    ) -> list[Text]:
        """Generate one text per prompt, as one batch.

        Args:
            prompts: one text or several.
            max_new_tokens: limit per text.
            temperature, top_k, top_p: see `SamplingParams`; temperature 0 is greedy.
            stop: strings that end a text, besides the model's EOS.
            seed: seed of sampled texts; each prompt of a batch has its own draws.
            chat: if True, encode prompts with the tokenizer's chat template, if it has one; if False, as they are.
            on_text: called with (index of the prompt, new piece of its text) during generation.

        Raises:
            InputError: there is no prompt, a prompt has no tokens or too many, or a value is out of range.
        """
        prompts = require_texts(prompts)
        conform(seed, Seed, "seed")
        conform(chat, bool, "chat")
        conform(stop, Sequence[str], "stop")
        if on_text is not None and not callable(on_text):
            fix = "pass one that takes (index of the prompt, piece of text)"
            raise InputError("on_text", expected="a function", got=repr(on_text), fix=fix)
        encoder = PromptEncoder.of(self.target)
        with python_names():
            sampling, ends = SamplingParams(temperature, top_k, top_p), stop_rule(self.target, max_new_tokens, stop)
            rows = [encoder.encode([p], []) if chat else list(encoder.tokenizer.encode(p)) for p in prompts]
            growing = None if on_text is None else _Growing(encoder, len(rows), on_text)
            decoder = Decoder(self.drafter, self.verifier, self.rule, sampling, ends)
            done = decoder.speculative(rows, [[seed, row] for row in range(len(rows))], on_blocks=growing)
        if growing is not None:
            growing.flush()
        if isinstance(self.drafter, Learner):
            self.drafter.learn([[*row, *text] for row, text in zip(rows, done.texts, strict=True)])
        steps = [[step for step in done.steps if step.row == row] for row in range(len(rows))]
        return [
            Text(encoder.decode(ids), ids, encoder.pieces(ids), own) for ids, own in zip(done.texts, steps, strict=True)
        ]


@contextmanager
def python_names() -> Iterator[None]:
    """Let errors name the arguments of `load` and `generate` instead of the options of the command line."""
    try:
        yield
    except InputError as error:
        raise error.worded(_as_arguments) from error.__cause__


def _as_arguments(words: str) -> str:
    for option, argument in ARGUMENTS:
        words = re.sub(option, argument, words)
    return words


def require_texts(prompts: object) -> list[str]:
    """Return the prompts as a list.

    Raises:
        InputError: they are not one text or a list of texts, or there is none.
    """
    fix = "pass texts; apply the chat template to messages first, with chat=False"
    texts = [prompts] if isinstance(prompts, str) else prompts
    if not isinstance(texts, list | tuple):
        raise InputError("prompts", expected="a text or a list of texts", got=type(prompts).__name__, fix=fix)
    if wrong := next((type(text).__name__ for text in texts if not isinstance(text, str)), None):
        raise InputError("prompts", expected="a text or a list of texts", got=f"a list with a {wrong}", fix=fix)
    if not texts:
        raise InputError("prompts", expected="at least one text", got="an empty list", fix="pass one")
    return list(texts)


def load(
    model: str | PreTrainedModel | TargetModel,
    drafter: str | Drafter = "ngram",
    *,
    acceptance: str | AcceptanceRule = "exact",
    verifier: str | Verifier = "tree_attention",
    drafter_options: Mapping[str, Any] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    **target_options: Any,
) -> SpeculativeLM:
    """Load a model and a drafter for it.

    Args:
        model: hub id, folder, `smollm2_135m` (embedded, needs no network), `tiny`; or a loaded causal LM.
        drafter: name in `conf/drafter/`, or an object.
        acceptance: name in `conf/acceptance/`, or an object.
        verifier: name in `conf/verifier/`, or an object.
        drafter_options: values that replace those of the drafter's YAML, such as {"nodes": 31}.
        tokenizer: tokenizer, if `model` is a loaded model.
        target_options: dtype, device, kernel, runtime and so on, as in `specdec.model.load.load_hub`.

    Raises:
        InputError: no such model or name, an unknown option, or a model that is not proven.
    """
    if not isinstance(drafter, str) and drafter_options:
        fix = "pass options to the object itself"
        raise InputError("drafter_options", expected="the name of a drafter", got="an object", fix=fix)
    conform(drafter_options or {}, Mapping[str, Any], "drafter_options")
    with python_names():
        target = _target(model, tokenizer, target_options)
        made = build("drafter", drafter, drafter_options) if isinstance(drafter, str) else drafter
        judge = build("verifier", verifier, target=target) if isinstance(verifier, str) else verifier
        rule = build("acceptance", acceptance) if isinstance(acceptance, str) else acceptance
    kinds = (("drafter", made, Drafter), ("verifier", judge, Verifier), ("acceptance", rule, AcceptanceRule))
    for option, part, kind in kinds:
        if isinstance(part, type) or not isinstance(part, kind):
            expected, fix = f"a name in conf/{option}/ or a {kind.__name__} object", "drafter='none' drafts nothing"
            raise InputError(option, expected=expected, got=repr(part), fix=fix if option == "drafter" else "pass one")
    return SpeculativeLM(made, judge, rule)


def _target(
    model: str | PreTrainedModel | TargetModel, tokenizer: PreTrainedTokenizerBase | None, options: Mapping[str, Any]
) -> TargetModel:
    if not isinstance(model, str | TargetModel | PreTrainedModel):
        expected = "a hub id, a folder, smollm2_135m, tiny, or a loaded causal LM"
        raise InputError("model", expected=expected, got=type(model).__name__, fix="pass one")
    if isinstance(model, TargetModel):
        if options or tokenizer is not None:
            given = ", ".join([*options, *(["tokenizer"] if tokenizer is not None else [])])
            fix = "pass them when it is made"
            raise InputError("model", expected="no options beside a TargetModel", got=given, fix=fix)
        return model
    loads = load_tiny if model == "tiny" else load_hub if isinstance(model, str) else TargetModel.__init__
    known = [name for name in signature(loads).parameters if name not in ("self", "model", "name", "option")]
    require_known(list(options), known, "specdec.load")
    check_signature(loads, options, "")
    if model == EMBEDDED_ID and not _to_be_had(EMBEDDED_ID):
        note(f"{model}: the hub cannot be reached; the embedded copy stands in, made from a 4-bit file")
        return load_embedded(**options)
    if isinstance(model, str):
        return load_target(model, **options)
    name = getattr(model.config, "_name_or_path", "") or type(model).__name__
    return TargetModel(model, name=name, tokenizer=tokenizer, **options)


def _to_be_had(name: str) -> bool:
    """Return whether a model is in the hub's cache, or the hub can be reached within `HUB_SECONDS`."""
    if huggingface_hub.try_to_load_from_cache(name, "config.json") is not None:
        return True
    host = urlsplit(huggingface_hub.constants.ENDPOINT)
    try:
        with socket.create_connection((host.hostname, host.port or 443), timeout=HUB_SECONDS):
            return True
    except OSError:
        return False


class _Growing:
    """Pass on the text of each row while it grows; an incomplete character is held back until its last token."""

    def __init__(self, encoder: PromptEncoder, rows: int, on_text: OnText) -> None:
        self._encoder, self._on_text = encoder, on_text
        self._ids: list[list[int]] = [[] for _ in range(rows)]
        self._shown = [0] * rows

    def __call__(self, blocks: Blocks) -> None:
        for row, block in enumerate(blocks):
            self._ids[row] += block
            if block:
                self._show(row, whole=False)

    def flush(self) -> None:
        for row in range(len(self._ids)):
            self._show(row, whole=True)

    def _show(self, row: int, *, whole: bool) -> None:
        text = self._encoder.decode(self._ids[row])
        if (whole or not text.endswith(UNFINISHED)) and len(text) > self._shown[row]:
            self._on_text(row, text[self._shown[row] :])
            self._shown[row] = len(text)
