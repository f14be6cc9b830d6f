"""Heads made by hand, and what they compute written down a second time."""

from __future__ import annotations

import torch
from torch import Tensor

from drafters.medusa.heads import MedusaHeads, fresh_heads, output_weight
from specdec.decoding.generate import autoregressive
from specdec.decoding.sampling import SamplingParams
from specdec.decoding.stopping import StopRule
from specdec.model.target import TargetModel


def random_heads(
    target: TargetModel, heads: int = 3, layers: int = 1, own: bool = False, vocabulary: Tensor | None = None
) -> MedusaHeads:
    """Blocks that change something, but not so much that they never agree with the target."""
    made = fresh_heads(target, heads, layers, own, vocabulary)
    generator = torch.Generator().manual_seed(heads + 10 * layers)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return made


def logits_by_hand(heads: MedusaHeads, target: TargetModel, hidden: Tensor, head: int) -> Tensor:
    """Over the whole vocabulary, -inf where the head knows no token; one block after the other, no product shared."""
    x = hidden
    for layer in range(heads.layers):
        y = heads.weight[layer, head] @ x + heads.bias[layer, head]
        x = x + y / (1 + torch.exp(-y))
    output = output_weight(target) if heads.output is None else heads.output[head]
    if heads.vocabulary is None:
        return output @ x
    whole = torch.full((target.vocab_size,), -torch.inf)
    for row, token in enumerate(heads.vocabulary.tolist()):
        whole[token] = (output[token] if heads.output is None else output[row]) @ x
    return whole


def perfect_heads(target: TargetModel, prompts: list[list[int]], heads: int, new_tokens: int) -> MedusaHeads:
    """Heads that are right about every token of the target's greedy text: their own output layers map each of its
    hidden states to the token that came (fewer hidden states than dimensions, so a linear map can)."""
    stop, greedy = StopRule(new_tokens + heads), SamplingParams()
    texts = autoregressive(prompts, target, greedy, stop, [[0]] * len(prompts)).texts
    states: list[Tensor] = []
    wanted: list[list[int]] = []
    for prompt, text in zip(prompts, texts, strict=True):
        row = [*prompt, *text]
        hidden = target.prefill(target.new_cache(1, len(row)), [row]).hidden[0]
        for t in range(len(prompt) - 1, len(prompt) + new_tokens - 2):
            states.append(hidden[t])
            wanted.append([row[t + 2 + head] for head in range(heads)])
    made = fresh_heads(target, heads, own_output=True)
    assert made.output is not None
    assert len(states) < made.dim
    solved = torch.linalg.pinv(torch.stack(states).double())
    with torch.no_grad():
        for head in range(heads):
            one_hot = torch.zeros(len(states), target.vocab_size, dtype=torch.float64)
            one_hot[torch.arange(len(states)), [tokens[head] for tokens in wanted]] = 1
            made.output[head] = (solved @ one_hot).T.float()
    return made
