"""The compiled passes over the vocabulary against PyTorch in float64, and what is done without a compiler."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from specdec.model.runtime import vocabulary
from specdec.model.runtime.vocabulary import argmaxes, entropies, mass, masses, picks
from specdec.trees.tree import PAD

SIZES = [3, 37, 1024, 49_152]  # below a vector, ragged, a block, the embedded model's
ROUNDING = 1e-6  # of a sum of fp32 numbers that is at most 1


@pytest.fixture(params=["compiled", "torch"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "torch":
        monkeypatch.setattr(vocabulary, "_kernels", lambda: None)
    elif vocabulary._kernels() is None:
        pytest.skip("no C++ compiler")
    return request.param


def distributions(size: int, seed: int = 0) -> Tensor:
    return (3 * torch.randn(3, size, generator=torch.Generator().manual_seed(seed))).softmax(-1)


@pytest.mark.parametrize("size", SIZES)
def test_masses(path: str, size: int) -> None:
    p, q = distributions(size), distributions(size, 1)
    times = torch.tensor([0.0, 0.7, 1e30], dtype=torch.float64)
    rest = torch.relu(p.double() - times[:, None] * q.double())
    torch.testing.assert_close(masses(p, q, times), rest.sum(-1), rtol=0, atol=ROUNDING)
    assert mass(p[1], q[1], 0.7, []) == pytest.approx(float(rest[1].sum()), abs=ROUNDING)


@pytest.mark.parametrize("size", SIZES)
def test_masses_without_tokens(path: str, size: int) -> None:
    """Tokens in any order, repeated, next to each other, at both ends; -1 is none. What little is left is not
    the difference of two large numbers."""
    p = distributions(size)
    p[1] = 1e-9
    p[1, 1] = 1.0
    without = torch.tensor([[size - 1, PAD, 0, 1, 1], [1, PAD, PAD, PAD, PAD], [PAD] * 5])
    left = p.double()
    left[0, [0, 1, size - 1]] = 0
    left[1, 1] = 0
    torch.testing.assert_close(masses(p, without=without), left.sum(-1), rtol=ROUNDING, atol=0)
    assert mass(p[1], None, 0, [1]) == pytest.approx((size - 1) * 1e-9, rel=ROUNDING)


@pytest.mark.parametrize("size", SIZES)
def test_entropies(path: str, size: int) -> None:
    p = distributions(size)
    p[0] = 0
    p[0, 1] = 1.0
    p[1] = 1 / size
    torch.testing.assert_close(entropies(p), torch.special.entr(p.double()).sum(-1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_argmaxes(path: str, size: int) -> None:
    """The first of equals; -1 where a value is NaN or the largest infinite; minus infinity is a value like others."""
    x = torch.randn(6, size, generator=torch.Generator().manual_seed(0))
    x[0] = -1.0
    x[1, [1, size - 1]] = 9.0
    x[2, size - 1] = float("nan")
    x[3, 0] = float("inf")
    x[4] = float("-inf")
    x[4, size - 1] = -5.0
    x[5] = float("-inf")
    assert argmaxes(x).tolist() == [0, 1, -1, -1, size - 1, -1]


@pytest.mark.parametrize("size", SIZES)
def test_picks_follow_the_cdf_and_never_what_has_no_probability(path: str, size: int) -> None:
    p = distributions(size)[:1]
    p[0, ::2] = 0
    p = p.expand(200, -1)
    u = torch.linspace(0, 1 - 2**-53, 200, dtype=torch.float64)
    picked = picks(p, u)
    assert (p.gather(1, picked[:, None]) > 0).all()
    cdf = p[0].double().cumsum(0) / p[0].double().sum()
    above, below = cdf[picked], cdf[picked] - p[0].double()[picked] / p[0].double().sum()
    assert (above >= u - ROUNDING).all()
    assert (below <= u + ROUNDING).all()


def test_other_dtypes_go_to_torch() -> None:
    p, q = distributions(37).double(), distributions(37, 1).double()
    times = torch.ones(3, dtype=torch.float64)
    torch.testing.assert_close(masses(p, q, times), torch.relu(p - q).sum(-1), rtol=0, atol=1e-15)


def test_rows_that_are_not_contiguous() -> None:
    x = torch.randn(37, 3, generator=torch.Generator().manual_seed(0))
    assert argmaxes(x.T).tolist() == x.argmax(0).tolist()
    wide = distributions(100)
    torch.testing.assert_close(masses(wide[:, 10:60]), wide[:, 10:60].double().sum(-1), rtol=0, atol=ROUNDING)
