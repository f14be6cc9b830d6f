"""Chunked losses against the plain formula, values and gradients; and that no rows x vocab is ever held."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from specdec.training.loss.vocabulary_loss import DIVERGENCES, cross_entropy, divergence

ROWS, DIM, VOCAB = 23, 8, 31
CHUNKS = [1, 5 * VOCAB, ROWS * VOCAB, 1 << 20]  # logits: a row at a time, a torn last chunk, exactly all, more


def tensors(*shapes: tuple[int, ...], seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*s, dtype=torch.float64, generator=generator).requires_grad_() for s in shapes]


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("with_bias", [False, True])
def test_cross_entropy(chunk: int, with_bias: bool) -> None:
    hidden, weight, bias = tensors((ROWS, DIM), (VOCAB, DIM), (VOCAB,))
    labels = torch.randint(-1, VOCAB, (ROWS,), generator=torch.Generator().manual_seed(1))
    assert (labels == -1).any()
    inputs = [hidden, weight, bias] if with_bias else [hidden, weight]
    logits = F.linear(*inputs)
    plain = F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum")
    total, hits = cross_entropy(hidden, weight, labels, bias if with_bias else None, chunk=chunk)
    torch.testing.assert_close(total, plain)
    known = labels >= 0
    for k, hit in zip((1, 5), hits, strict=True):
        assert hit == (logits.topk(k).indices[known] == labels[known, None]).sum()
    expected = torch.autograd.grad(3 * plain, inputs)
    torch.testing.assert_close(torch.autograd.grad(3 * total, inputs), expected)


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("kind", DIVERGENCES)
def test_divergence(chunk: int, kind: str) -> None:
    hidden, weight, theirs, target_weight = tensors((ROWS, DIM), (VOCAB, DIM), (ROWS, 5), (VOCAB, 5))
    p = (theirs.detach() @ target_weight.detach().T / 0.7).softmax(-1)
    q = (hidden @ weight.T / 0.7).softmax(-1)
    plain = {
        "cross_entropy": -(p * q.log()).sum(),
        "forward_kl": F.kl_div(q.log(), p, reduction="sum"),
        "reverse_kl": F.kl_div(p.log(), q, reduction="sum"),
        "total_variation": (p - q).abs().sum() / 2,
    }[kind]
    total, accepted = divergence(hidden, weight, theirs, target_weight, kind, 0.7, chunk)
    torch.testing.assert_close(total, plain)
    torch.testing.assert_close(accepted, torch.minimum(p, q).sum())
    expected = torch.autograd.grad(plain, [hidden, weight])
    torch.testing.assert_close(torch.autograd.grad(total, [hidden, weight]), expected)
    assert not accepted.requires_grad


def test_the_target_gets_no_gradient() -> None:
    inputs = tensors((ROWS, DIM), (VOCAB, DIM), (ROWS, 5), (VOCAB, 5))
    divergence(*inputs)[0].backward()
    assert [t.grad is None for t in inputs] == [False, False, True, True]


def test_without_rows_and_without_gradients() -> None:
    hidden, weight = tensors((0, DIM), (VOCAB, DIM))
    total, hits = cross_entropy(hidden, weight, torch.zeros(0, dtype=torch.long))
    total.backward()
    assert (total.item(), hits.tolist()) == (0.0, [0.0, 0.0])
    assert weight.grad is not None
    assert not weight.grad.any()
    with torch.no_grad():
        assert not cross_entropy(hidden, weight, torch.zeros(0, dtype=torch.long))[0].requires_grad


class LargestTensor(torch.utils._python_dispatch.TorchDispatchMode):
    """Remembers the largest result of any operation."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


def test_rows_times_vocab_is_never_held() -> None:
    hidden, weight = tensors((200, DIM), (500, DIM))
    with LargestTensor() as seen:
        cross_entropy(hidden, weight, torch.zeros(200, dtype=torch.long), chunk=10 * 500)[0].backward()
    assert seen.elements == 10 * 500
