"""Text of the tiny target's own, as training meets it; short enough for tests to learn."""

from __future__ import annotations

import torch

from specdec.decoding.generate import autoregressive
from specdec.decoding.sampling import SamplingParams
from specdec.decoding.stopping import StopRule
from specdec.model.target import TargetModel
from specdec.training.recipe import Recipe, TrainBatch
from specdec.training.text.features import teacher_forced
from specdec.training.text.texts import HIDDEN

PROMPTS = [[i, 2 * i + 1, 7] for i in range(12)]
NEW = 40


def own_text(target: TargetModel, temperature: float = 0.0) -> TrainBatch:
    """Its answers to PROMPTS, with its last hidden states."""
    seeds = [[0, row] for row in range(len(PROMPTS))]
    texts = autoregressive(PROMPTS, target, SamplingParams(temperature), StopRule(NEW), seeds).texts
    tokens = torch.tensor([p + t for p, t in zip(PROMPTS, texts, strict=True)])
    answer = torch.ones_like(tokens, dtype=torch.bool)
    answer[:, : len(PROMPTS[0])] = False
    hidden = teacher_forced(target, tokens, [HIDDEN])[HIDDEN].clone()  # usable where gradients are made
    return TrainBatch(tokens, answer, torch.ones_like(answer), {HIDDEN: hidden})


def learn(made: Recipe, module: torch.nn.Module, target: TargetModel, batch: TrainBatch, steps: int) -> list[float]:
    """Train on the one batch; the losses, one a step."""
    optimizer, losses = torch.optim.AdamW(module.parameters(), lr=3e-3), []
    for _ in range(steps):
        loss = made.loss(module, target, batch)
        optimizer.zero_grad()
        (loss.loss.total / loss.loss.weight).backward()
        optimizer.step()
        losses.append(float(loss.loss.total.detach() / loss.loss.weight))
    return losses
