"""Compare the texts of a run with those of the plain target: where greedy texts part, how far lossy texts stray."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from specdec.decoding.decoder import Decoder
from specdec.measure.trials import BASE, OURS, Trial
from specdec.runs.summary import Divergence, Parting, Strays

# Margins in logits that rounding errors can reverse: a few units in the last place of logits of order ten, amplified
# by some dozens of layers. A text that differs at a wider margin has another cause: a bug, or a lossy rule.
NEAR_TIE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.5}


def divergence(trials: Sequence[Trial], decoder: Decoder) -> Divergence | None:
    """Compare greedy texts with those of the baseline; None if texts are sampled.

    In lower precision they may differ after a position at which the target's two best tokens are nearly tied.
    """
    if not decoder.sampling.greedy:
        return None
    differing: dict[tuple[int, int], Parting] = {}
    for t in trials:
        if t.texts[OURS] != t.texts[BASE]:
            differing.setdefault((t.place, t.turn), _parting(t, decoder))
    total = len({(t.place, t.turn) for t in trials})
    return Divergence(identical=total - len(differing), total=total, prompts=list(differing.values()))


def _parting(trial: Trial, decoder: Decoder) -> Parting:
    ours, base = trial.texts[OURS], trial.texts[BASE]
    differing = (i for i, (a, b) in enumerate(zip(ours, base, strict=False)) if a != b)
    position = next(differing, min(len(ours), len(base)))
    before, target = [*trial.ids, *base[:position]], decoder.target
    logits = target.prefill(target.new_cache(1, len(before)), [before]).logits[:, 0]
    sampling = decoder.sampling.bound(target.model, [trial.ids], decoder.stop)
    first, second = sampling.scores(logits, [before])[0].topk(2).values.tolist()
    return Parting(
        prompt=trial.prompt.id,
        turn=trial.turn,
        position=position,
        tokens=[ours[position : position + 1], base[position : position + 1]],
        margin=first - second,
        explained=first - second <= NEAR_TIE[target.dtype],
    )


def strays(trials: Sequence[Trial], decoder: Decoder) -> Strays | None:
    """Return how far the texts of a lossy rule are from the target; None for a lossless rule."""
    if decoder.rule.lossless:
        return None
    pairs = [(t.texts[OURS], t.texts[BASE]) for t in trials]
    same = sum(a == b for ours, base in pairs for a, b in zip(ours, base, strict=False))
    return Strays(
        equal_tokens=same / sum(len(ours) for ours, _ in pairs) if decoder.sampling.greedy else None,
        mean_logprob=_mean_logprob(trials, OURS, decoder),
        autoregressive_mean_logprob=_mean_logprob(trials, BASE, decoder),
    )


def _mean_logprob(trials: Sequence[Trial], method: str, decoder: Decoder) -> float:
    """Return the mean log-probability of the method's texts under the plain target, at temperature 1, untruncated.

    Nats per token.
    """
    total, count = 0.0, 0
    with torch.inference_mode(), decoder.target.stock() as model:
        for t in trials:
            ids = torch.tensor([[*t.ids, *t.texts[method]]], device=model.device)
            new = len(t.texts[method])
            logits = model(input_ids=ids, use_cache=False, logits_to_keep=new + 1).logits[0, :-1].float()
            total += float(logits.log_softmax(-1).gather(1, ids[0, -new:, None]).sum())
            count += new
    return total / count
