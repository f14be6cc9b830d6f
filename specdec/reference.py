"""`transformers`' own `generate`, timed on the same prompts: an outside reference for speedups."""

from __future__ import annotations

import time
from typing import Any

import torch
from transformers import PreTrainedModel

from specdec.protocols import Rows
from specdec.sampling import SamplingParams
from specdec.stopping import StopRule
from specdec.target import TargetModel


class TransformersGenerate:
    """name: as it is called in results; options: keyword arguments for `model.generate` that choose a method
    (none: plain decoding; `prompt_lookup_num_tokens`: prompt lookup); assistant: name of a draft model for
    assisted generation. Methods that speculate take one prompt at a time, as `transformers` does.
    """

    def __init__(self, name: str, options: dict[str, Any] | None = None, assistant: str | None = None) -> None:
        self.name, self._options, self._assistant_name = name, dict(options or {}), assistant
        self._assistant: PreTrainedModel | None = None

    @property
    def batched(self) -> bool:
        return not self._options and self._assistant_name is None

    @torch.inference_mode()
    def generate(
        self, prompts: Rows, target: TargetModel, sampling: SamplingParams, stop: StopRule, seed: int
    ) -> tuple[list[list[int]], float]:
        """New token ids of each row, and the seconds they took."""
        groups = [list(prompts)] if self.batched else [[prompt] for prompt in prompts]
        extra = {**self._options, **self._sampling(sampling)}
        if self._assistant_name is not None:
            extra["assistant_model"] = self._load_assistant(target)
        texts: list[list[int]] = []
        torch.manual_seed(seed)
        pad = min(target.eos, default=0)
        begun = time.perf_counter()
        with target.stock() as stock:
            model: Any = stock
            for group in groups:
                longest = max(map(len, group))
                ids = torch.tensor([[pad] * (longest - len(p)) + list(p) for p in group], device=target.device)
                real = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in group], device=target.device)
                out = model.generate(
                    ids, attention_mask=real, max_new_tokens=stop.max_new_tokens, pad_token_id=pad, **extra
                )
                texts += [stop.cut([], row)[0] for row in out[:, longest:].tolist()]
        return texts, time.perf_counter() - begun

    @staticmethod
    def _sampling(params: SamplingParams) -> dict[str, Any]:
        shared = {"repetition_penalty": params.repetition_penalty, "do_sample": not params.greedy}
        if params.greedy:
            return shared
        return {**shared, "temperature": params.temperature, "top_k": params.top_k, "top_p": params.top_p}

    def _load_assistant(self, target: TargetModel) -> PreTrainedModel:
        if self._assistant is None:
            from specdec.models import load

            assert self._assistant_name is not None
            self._assistant = load(self._assistant_name, device=str(target.device)).model
            self._assistant.set_attn_implementation("sdpa")
        return self._assistant
