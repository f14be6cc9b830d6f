"""Other methods, timed on the same prompts: `transformers`, llama.cpp, and our loop with another drafter."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel

from specdec.decoding.decoder import Decoder
from specdec.decoding.generate import longest_text
from specdec.decoding.processors import obeyed, plain_config
from specdec.decoding.protocols import AcceptanceRule, Drafter, Rows, Verifier
from specdec.decoding.sampling import SamplingParams
from specdec.decoding.stopping import StopRule
from specdec.errors import InputError
from specdec.measure.gguf_file import gguf_file, require_plain_llama
from specdec.model.target import TargetModel
from specdec.model.vocabularies import differing_tokens

SMALLEST_CONTEXT = 1024  # context of llama.cpp; doubled when a text needs more, so that it is rarely loaded again


@runtime_checkable
class Reference(Protocol):
    """Another method of generating with the same weights. `name` is its name in results."""

    name: str

    def missing(self, target: TargetModel, sampling: SamplingParams) -> str | None:
        """Return what is missing on this machine to run it, or None if it can run.

        Raises:
            InputError: it can never run with this target or sampling.
        """
        ...

    def generate(
        self, prompts: Rows, target: TargetModel, sampling: SamplingParams, stop: StopRule, seed: int
    ) -> tuple[list[list[int]], float]:
        """Return new token ids of each row, and the seconds: prefill included, loading excluded.

        Args:
            prompts: token ids of each row.
            target: the target, whose weights are used.
            sampling: how tokens are chosen.
            stop: ends texts.
            seed: seed of sampled texts.
        """
        ...


def runnable(
    references: Sequence[Reference], target: TargetModel, sampling: SamplingParams
) -> tuple[list[Reference], dict[str, str]]:
    """Return the references that can run on this machine, and what the others lack, by name."""
    missing = {reference.name: reference.missing(target, sampling) for reference in references}
    here = [reference for reference in references if missing[reference.name] is None]
    return here, {name: why for name, why in missing.items() if why is not None}


@contextmanager
def _generating_by(config: GenerationConfig, model: PreTrainedModel) -> Iterator[None]:
    """Replace the generation config of a model in the body; `generate` takes all unset options from it."""
    before, model.generation_config = model.generation_config, config
    try:
        yield
    finally:
        model.generation_config = before


class TransformersGenerate:
    """Generate with `model.generate`. Speculative methods run one prompt at a time, because `transformers` requires it.

    Args:
        name: name in results.
        options: keyword arguments for `model.generate` that choose a method (none: plain decoding;
            `prompt_lookup_num_tokens`: prompt lookup).
        assistant: name of a draft model for assisted generation. Its number of logits may differ from the target's by
            padding.
        assistant_options: options for that model's generation config, such as the number of drafted tokens.
    """

    def __init__(
        self,
        name: str,
        options: dict[str, Any] | None = None,
        assistant: str | None = None,
        assistant_options: dict[str, Any] | None = None,
    ) -> None:
        self.name, self._options, self._assistant_name = name, dict(options or {}), assistant
        self._assistant_options = dict(assistant_options or {})
        self._assistant: PreTrainedModel | None = None

    def missing(self, target: TargetModel, sampling: SamplingParams) -> None:
        if self._assistant_name is not None:
            self._load_assistant(self._assistant_name, target)

    @property
    def batched(self) -> bool:
        return not self._options and self._assistant_name is None

    @torch.inference_mode()
    def generate(
        self, prompts: Rows, target: TargetModel, sampling: SamplingParams, stop: StopRule, seed: int
    ) -> tuple[list[list[int]], float]:
        """Return new token ids of each row, and the seconds. Arguments as in `Reference.generate`."""
        extra = {**self._options}
        config = plain_config(target.model, sorted(stop.eos), **self._sampling(sampling))
        groups = self._groups(prompts, bool(sampling.processors), bool(obeyed(target.model.generation_config)))
        own = [copy.deepcopy(sampling.processors) for _ in groups]  # some processors keep the state of a text
        if self._assistant_name is not None:
            extra["assistant_model"] = self._load_assistant(self._assistant_name, target)
        texts: list[list[int]] = []
        torch.manual_seed(seed)
        pad = min(target.eos, default=0)
        with target.stock() as stock, _generating_by(config, stock):
            model: Any = stock
            begun = time.perf_counter()
            for group, processors in zip(groups, own, strict=True):
                longest = max(map(len, group))
                ids = torch.tensor([[pad] * (longest - len(p)) + list(p) for p in group], device=target.device)
                real = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in group], device=target.device)
                out = model.generate(
                    ids, attention_mask=real, max_new_tokens=stop.max_new_tokens, pad_token_id=pad,
                    logits_processor=LogitsProcessorList(processors), **extra,
                )  # fmt: skip
                texts += [stop.cut([], row)[0] for row in out[:, longest:].tolist()]
            seconds = time.perf_counter() - begun
        return texts, seconds

    def _groups(self, prompts: Rows, alone: bool, evenly: bool) -> list[list[Sequence[int]]]:
        """Return the prompts in groups that are generated together.

        Args:
            prompts: token ids of each row.
            alone: whether every prompt needs its own group, because a processor may keep the state of one text.
            evenly: whether only prompts of equal length may form a group, because the processors of the model's config
                would treat padding as text.
        """
        if alone or not self.batched or (evenly and len({*map(len, prompts)}) > 1):
            return [[prompt] for prompt in prompts]
        return [list(prompts)]

    @staticmethod
    def _sampling(params: SamplingParams) -> dict[str, Any]:
        shared = {"repetition_penalty": params.repetition_penalty, "do_sample": not params.greedy}
        if params.greedy:
            return shared
        kept = {"temperature": params.temperature, "top_k": params.top_k, "top_p": params.top_p}
        return {**shared, **kept, **({"min_p": params.min_p} if params.min_p else {})}

    def _load_assistant(self, name: str, target: TargetModel) -> PreTrainedModel:
        """Load the draft model with the target's number of logits, by which `transformers` compares vocabularies.

        Raises:
            InputError: no such model, or its tokens differ from the target's.
        """
        if self._assistant is None:
            from specdec.model.load import load

            if name == "auto":
                expected, got = "a draft model that transformers runs by itself", "'auto', a student of the target"
                raise InputError(self.name, expected=expected, got=got, fix="name one with drafter.model=NAME")
            loaded = load(name, device=str(target.device), runtime="stock", option="drafter.model")
            if differing_tokens(target, loaded):
                expected = f"a draft model with the tokens of the target {target.name}"
                raise InputError(self.name, expected=expected, got=name, fix="leave it out: choose another reference")
            with loaded.stock() as model:
                stock_attention = model.config._attn_implementation
            if loaded.vocab_size != target.vocab_size:
                model.resize_token_embeddings(target.vocab_size, mean_resizing=False)
            model.set_attn_implementation(stock_attention)  # permanently: only transformers uses this copy
            assert model.generation_config is not None
            model.generation_config.update(**self._assistant_options)
            self._assistant = model
        return self._assistant


class Speculative:
    """Our own loop with another drafter, to compare drafters in one run.

    Args:
        name: name in results.
        drafter: the other drafter.
        verifier: makes a verifier for a target.
        rule: acceptance rule.
    """

    def __init__(
        self, name: str, drafter: Drafter, verifier: Callable[[TargetModel], Verifier], rule: AcceptanceRule
    ) -> None:
        self.name, self._drafter, self._make_verifier, self._rule = name, drafter, verifier, rule
        self._verifier: Verifier | None = None

    def missing(self, target: TargetModel, sampling: SamplingParams) -> None:
        return None

    def generate(
        self, prompts: Rows, target: TargetModel, sampling: SamplingParams, stop: StopRule, seed: int
    ) -> tuple[list[list[int]], float]:
        if self._verifier is None or self._verifier.target is not target:
            self._verifier = self._make_verifier(target)
        seeds = [[seed, row] for row in range(len(prompts))]
        done = Decoder(self._drafter, self._verifier, self._rule, sampling, stop).speculative(prompts, seeds)
        return done.texts, done.seconds


class LlamaCpp:
    """llama.cpp through `llama-cpp-python`, with a KV cache in fp32 and torch's thread count.

    Prompts run one at a time, and greedy only, because its samplers draw in another order.

    Args:
        name: name in results.
        num_pred_tokens: tokens drafted by the library's own prompt lookup; 0 for plain decoding.
        max_ngram_size: longest suffix that the prompt lookup searches for.
        as_stored: whether it reads the GGUF file that the target was read from, as people run it. It then rounds
            activations to 8 bits, so its texts may differ. Otherwise it reads the target's weights in fp32.
    """

    def __init__(self, name: str, num_pred_tokens: int = 0, max_ngram_size: int = 2, as_stored: bool = False) -> None:
        self.name, self._drafted, self._ngram, self._as_stored = name, num_pred_tokens, max_ngram_size, as_stored
        self._file: Path | None = None
        self._target: TargetModel | None = None
        self._loaded: Any = None

    def missing(self, target: TargetModel, sampling: SamplingParams) -> str | None:
        if find_spec("llama_cpp") is None:
            return "not installed (pip install -e '.[llama]')"
        if not sampling.greedy or sampling.asks(target.model, StopRule(1, target.eos)):
            asked = sampling.bound(target.model, [[0]], StopRule(1, target.eos)).names or "none"
            raise InputError(
                self.name,
                expected="temperature 0 without processors of logits",
                got=f"temperature {sampling.temperature}, processors: {asked}",
                fix="leave it out: choose another reference",
            )
        if self._as_stored:
            return None if target.gguf is not None else f"{target.name} was not read from a GGUF file"
        require_plain_llama(target)
        return None

    def generate(
        self, prompts: Rows, target: TargetModel, sampling: SamplingParams, stop: StopRule, seed: int
    ) -> tuple[list[list[int]], float]:
        llama = self._load(target, longest_text(prompts, stop, target.context_window) + self._drafted)
        texts: list[list[int]] = []
        begun = time.perf_counter()
        for prompt in prompts:
            llama.reset()  # otherwise it reuses the cache of a prefix shared with the last prompt
            text: list[int] = []
            for token in llama.generate(list(prompt), temp=0.0):
                kept, ended = stop.cut(text, [token])
                text += kept
                if ended:
                    break
            texts.append(text)
        return texts, time.perf_counter() - begun

    def _load(self, target: TargetModel, capacity: int) -> Any:
        """Return the model with room for `capacity` tokens; load and warm it up again if it has less."""
        if self._target is not target:
            self._target, self._loaded = target, None
            self._file = target.gguf if self._as_stored else gguf_file(target)
        if self._loaded is None or self._loaded.n_ctx() < capacity:
            from llama_cpp import GGML_TYPE_F32, Llama
            from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

            threads = torch.get_num_threads()
            self._loaded = Llama(
                str(self._file),
                n_ctx=max(SMALLEST_CONTEXT, 1 << (capacity - 1).bit_length()),
                n_threads=threads,
                n_threads_batch=threads,
                type_k=GGML_TYPE_F32,
                type_v=GGML_TYPE_F32,
                draft_model=LlamaPromptLookupDecoding(self._ngram, self._drafted) if self._drafted else None,
                logits_all=self._drafted > 0,  # its verification needs them
                verbose=False,
            )
            self._loaded.eval([0])
        return self._loaded
