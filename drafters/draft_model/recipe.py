"""Distill a draft model from its target (DistillSpec, arXiv 2310.08461).

The student starts as copies of some of the target's layers and learns to predict the output of all of them. Embeddings
and output layer stay those of the target.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor, nn

from drafters.shared.trained import CONFIG, fill, read_parts, save_parts
from specdec.decoding.generate import autoregressive
from specdec.decoding.protocols import Drafter
from specdec.decoding.sampling import SamplingParams
from specdec.decoding.stopping import StopRule
from specdec.errors import InputError
from specdec.model.students import Student, new_student, sharing
from specdec.model.target import TargetModel
from specdec.training.loss.draft_vocabulary import frequent_tokens
from specdec.training.loss.imitation import next_token_loss, require_kind
from specdec.training.recipe import Loss, Sum, TrainBatch
from specdec.training.text.features import teacher_forced

DRAFTER, WHOLE = "draft_model", "model"


class DistillRecipe:
    """Train a student of some of the target's layers.

    Args:
        layers: target layers to initialise from, in this order (-1 = last).
        vocabulary: number of most frequent tokens to guess among; None guesses all tokens.
        loss: kind of loss, as in `next_token_loss`.
        on_policy: share of texts whose answers the student writes itself, in [0, 1], at temperature 1. The target's
            distributions on these answers are the labels (arXiv 2306.13649).
        on_policy_tokens: largest length of such an answer, in tokens.
        whole: also save an ordinary transformers model.
        depth: length of the chain with which tokens per step are measured while training.

    Raises:
        InputError: an option out of range, or `on_policy` with a loss that does not use the target.
    """

    live = False
    features: Sequence[str] = ("hidden",)
    lr_scale: Mapping[str, float] = {}

    def __init__(
        self,
        layers: Sequence[int],
        vocabulary: int | None = None,
        loss: str = "forward_kl",
        on_policy: float = 0.0,
        on_policy_tokens: int = 64,
        whole: bool = True,
        depth: int = 4,
    ) -> None:
        require_kind(loss)
        if not 0 <= on_policy <= 1:
            raise InputError("recipe.on_policy", expected="a share in [0, 1]", got=repr(on_policy), fix="try 0.5")
        if on_policy and loss == "token":
            raise InputError(
                "recipe.on_policy",
                expected="a loss that asks the target (forward_kl, reverse_kl, total_variation, cross_entropy)",
                got="loss=token, by which the student would learn its own text",
                fix="change recipe.loss, or use on_policy=0",
            )
        if on_policy_tokens < 1:
            got = on_policy_tokens
            raise InputError("recipe.on_policy_tokens", expected="an integer >= 1", got=repr(got), fix="raise it")
        self.layers, self.vocabulary, self.kind = layers, vocabulary, loss
        self.on_policy, self.on_policy_tokens, self.whole, self.depth = on_policy, on_policy_tokens, whole, depth

    def build(self, target: TargetModel, frequencies: Int[Tensor, " vocab"]) -> nn.Module:
        vocabulary = None
        if self.vocabulary is not None:
            vocabulary = frequent_tokens(frequencies, self.vocabulary).to(target.device)
        return new_student(target, self.layers, vocabulary)

    def loss(self, module: nn.Module, target: TargetModel, batch: TrainBatch) -> Loss:
        assert isinstance(module, Student)
        learning = torch.is_grad_enabled()  # validation uses only the target's own text
        own = round(self.on_policy * len(batch.tokens)) if learning else 0
        parts = []
        if own:
            parts.append(self._loss(module, target, self.own_text(module, target, _rows(batch, 0, own))))
        if own < len(batch.tokens):
            parts.append(self._loss(module, target, _rows(batch, own, len(batch.tokens))))
        return _total(parts)

    def save(self, module: nn.Module, target: TargetModel, folder: Path) -> None:
        assert isinstance(module, Student)
        save_parts(module, {"drafter": DRAFTER, "layers": len(module.layers)}, target, folder)
        if self.whole:
            save_whole(module, target, folder / WHOLE)

    def drafter(self, module: nn.Module, target: TargetModel) -> Drafter:
        from drafters.draft_model.drafter import DraftModel  # here, because drafter.py imports this file

        assert isinstance(module, Student)
        return DraftModel(module.in_precision_of(target), [1] * self.depth)

    def own_text(self, student: Student, target: TargetModel, batch: TrainBatch) -> TrainBatch:
        """Return the batch's prompts with answers written by the student, and the target's hidden states for them.

        The random numbers depend only on the training's progress and the row.
        """
        begins = batch.answer.int().argmax(1).tolist()
        prompts = [row[: max(begin, 1)].tolist() for row, begin in zip(batch.tokens, begins, strict=True)]
        model = student.in_precision_of(target)
        runner = TargetModel(sharing(model.model), name="student", kernel=target.kernel.name, runtime="stock")
        stop = StopRule(self.on_policy_tokens, target.eos)
        seeds = [[int(batch.progress * 2**30), row] for row in range(len(prompts))]
        texts = autoregressive(prompts, runner, SamplingParams(temperature=1.0), stop, seeds).texts
        longest = max(len(p) + len(t) for p, t in zip(prompts, texts, strict=True))
        tokens = batch.tokens.new_zeros(len(prompts), longest)
        answer = torch.zeros_like(tokens, dtype=torch.bool)
        valid = torch.zeros_like(answer)
        for row, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
            end = len(prompt) + len(text)
            tokens[row, :end] = torch.tensor(prompt + text)
            answer[row, len(prompt) : end], valid[row, :end] = True, True
        made = teacher_forced(target, tokens, ["hidden"])["hidden"].float().clone()  # a copy that autograd may use
        return TrainBatch(tokens, answer, valid, {"hidden": made}, batch.progress)

    def _loss(self, module: Student, target: TargetModel, batch: TrainBatch) -> Loss:
        states = module(batch.tokens).float()
        return next_token_loss(states, batch.features["hidden"], batch, target, self.kind, module.vocabulary)


def is_student(model: object) -> bool:
    """Return whether `model` names a folder with a trained student."""
    return isinstance(model, str) and (Path(model) / CONFIG).exists()


def load_student(folder: Path, target: TargetModel, what: str = "drafter.model") -> Student:
    """Load a student from its folder, on the target's device and in its precision.

    Args:
        folder: the folder that training wrote.
        target: the model that the student was made from.
        what: name used in error messages.

    Raises:
        InputError: the student is missing, corrupt, or made for a target of another shape.
    """
    config, state = read_parts(folder, DRAFTER, target, what, {"layers": int})
    student = new_student(target, [0] * config["layers"], state.get("vocabulary"))
    fill(student, config, state, target, what)
    return student


def save_whole(student: Student, target: TargetModel, folder: Path) -> None:
    """Save the student as an ordinary transformers model in fp16.

    The target's embeddings, output layer and tokenizer are included; a draft vocabulary is not.
    """
    model = copy.deepcopy(
        student.model
    ).half()  # a deep copy, so that the tensors shared with the target stay as they are
    model.save_pretrained(folder)
    if target.tokenizer is not None:
        target.tokenizer.save_pretrained(folder)


def _rows(batch: TrainBatch, begin: int, end: int) -> TrainBatch:
    tensors = [tensor[begin:end] for tensor in (batch.tokens, batch.answer, batch.valid)]
    return replace(
        batch, tokens=tensors[0], answer=tensors[1], valid=tensors[2],
        features={name: values[begin:end] for name, values in batch.features.items()},
    )  # fmt: skip


def _total(parts: Sequence[Loss]) -> Loss:
    """Add up the losses and metrics of the parts of a batch."""

    def added(sums: Sequence[Sum]) -> Sum:
        return Sum(torch.stack([s.total for s in sums]).sum(), torch.stack([s.weight for s in sums]).sum())

    names = parts[0].metrics
    return Loss(added([p.loss for p in parts]), {name: added([p.metrics[name] for p in parts]) for name in names})
