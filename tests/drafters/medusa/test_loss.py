"""The heads' loss against a loop that follows its definition, and where it looks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from drafters.medusa.heads import MedusaHeads
from drafters.medusa.loss import medusa_loss
from specdec.model.load import load_tiny
from specdec.model.target import TargetModel
from specdec.training.recipe import TrainBatch
from tests.drafters.medusa.made import logits_by_hand, random_heads

#        prompt   answer        prompt  answer    padding
TOKENS = [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0, 0], [13, 14, 15, 16, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3]]
ANSWER = [[0, 0, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 0, 0], [0, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]]
HEADS = 2
SOME_TOKENS = torch.tensor([3, 5, 6, 7, 9, 11])
# roots are answer tokens with an answer token behind them; by hand, (row, root's position): those both heads learn from
ROOTS = [(0, 2), (0, 3), (0, 4), (0, 8), (0, 9), (0, 10), (1, 1), *((1, root) for root in range(4, 13))]


def batch(seed: int = 0) -> TrainBatch:
    answer = torch.tensor(ANSWER).bool()
    hidden = torch.randn(2, 14, 64, generator=torch.Generator().manual_seed(seed))
    valid = torch.ones(2, 14, dtype=torch.bool)
    valid[0, 12:] = False
    return TrainBatch(torch.tensor(TOKENS), answer, valid, {"hidden": hidden * valid[..., None]})


def by_definition(
    made: MedusaHeads, target: TargetModel, data: TrainBatch, decay: float, soft: float
) -> tuple[Tensor, dict[str, tuple[int, int]]]:
    known = set(range(target.vocab_size)) if made.vocabulary is None else set(made.vocabulary.tolist())
    lm_head, hidden = target.model.lm_head.weight, data.features["hidden"]
    total, hits = torch.zeros(()), {f"top{k}/head{i}": [0, 0] for k in (1, 5) for i in range(HEADS)}
    for row, root in ROOTS:
        for head in range(HEADS):
            place = root + 1 + head
            if place >= 14 or not all(ANSWER[row][root : place + 1]):
                continue
            label = TOKENS[row][place]
            logits = logits_by_hand(made, target, hidden[row, root - 1], head)
            for k in (1, 5):
                hits[f"top{k}/head{head}"][1] += 1
                hits[f"top{k}/head{head}"][0] += label in logits.topk(k).indices.tolist()
            if label not in known:
                continue
            log_q = logits.log_softmax(-1)
            theirs = lm_head.detach() @ hidden[row, place - 1]  # the state before the token that is guessed
            theirs[[token for token in range(target.vocab_size) if token not in known]] = -torch.inf
            p = theirs.softmax(-1)
            wanted = torch.where(p > 0, p * log_q.clamp(min=-1e30), 0.0).sum()
            total = total - decay ** (head + 1) * ((1 - soft) * log_q[label] + soft * wanted)
    return total, {name: (hit, of) for name, (hit, of) in hits.items()}


@pytest.mark.parametrize("soft", [0.0, 0.3])
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("vocabulary", [None, SOME_TOKENS], ids=["whole", "draft vocabulary"])
@pytest.mark.parametrize("chunk", [1, 5000, 1 << 24])
def test_loss_gradient_and_hits(
    tiny: TargetModel, soft: float, own: bool, vocabulary: Tensor | None, chunk: int
) -> None:
    data = batch()
    results = []
    for way in ("chunked", "by definition"):
        made = random_heads(tiny, HEADS, 2, own, vocabulary)
        if way == "chunked":
            loss = medusa_loss(made, tiny, data, data.features["hidden"], 0.8, soft, chunk)
            assert float(loss.loss.weight) == len(ROOTS)
            total = loss.loss.total
            hits = {name: (int(part.total), int(part.weight)) for name, part in loss.metrics.items()}
        else:
            total, hits = by_definition(made, tiny, data, 0.8, soft)
        total.backward()
        results.append((total.detach(), hits, [p.grad for p in made.parameters()]))
    (ours, our_hits, our_grads), (theirs, their_hits, their_grads) = results
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert our_hits == their_hits
    for our, their in zip(our_grads, their_grads, strict=True):
        assert our is not None
        torch.testing.assert_close(our, their, rtol=1e-3, atol=1e-4)


def test_only_what_the_target_wrote_is_looked_at(tiny: TargetModel) -> None:
    """Other prompts, other padding: the same loss. Another answer: another."""
    made, data = random_heads(tiny, HEADS), batch()

    def total(tokens: Tensor) -> float:
        changed = TrainBatch(tokens, data.answer, data.valid, data.features)
        return float(medusa_loss(made, tiny, changed, data.features["hidden"], 0.8, 0.0).loss.total.detach())

    before = total(data.tokens)
    assert total(torch.where(data.answer, data.tokens, 77)) == before
    assert total(torch.where(data.answer, 77, data.tokens)) != before


def test_a_batch_without_answers_is_no_loss(tiny: TargetModel) -> None:
    data = batch()
    none = TrainBatch(data.tokens, torch.zeros_like(data.answer), data.valid, data.features)
    made = random_heads(tiny, HEADS)
    loss = medusa_loss(made, tiny, none, data.features["hidden"], 0.8, 0.5)
    assert (float(loss.loss.total.detach()), float(loss.loss.weight)) == (0.0, 0.0)
    loss.loss.total.backward()
    assert not any(p.grad.any() for p in made.parameters() if p.grad is not None)
    assert all(float(part.weight) == 0 for part in loss.metrics.values())


def test_the_targets_own_output_layer_is_not_trained() -> None:
    target = load_tiny(device="cpu", runtime="stock")
    made, data = random_heads(target, HEADS), batch()
    medusa_loss(made, target, data, data.features["hidden"], 0.8, 0.5).loss.total.backward()
    assert target.model.lm_head.weight.grad is None
