"""Differences are judged by each row's own spread."""

from __future__ import annotations

import torch
from torch import Tensor

from specdec.model.proof.difference import LARGEST, shares


def rows(scale: float = 1.0) -> Tensor:
    return scale * torch.randn(3, 200, generator=torch.Generator().manual_seed(0))


def test_a_share_does_not_depend_on_scale_or_on_other_rows() -> None:
    for scale in (1e-3, 1.0, 1e4):
        theirs = rows(scale)
        ours = theirs.clone()
        ours[1] += 0.1 * scale
        assert shares(ours, theirs)[[0, 2]].tolist() == [0, 0]
        assert 0.05 < float(shares(ours, theirs)[1]) < 0.1  # the quartiles of a normal distribution are 1.35 apart


def test_a_masked_logit_hides_nothing() -> None:
    theirs = rows()
    theirs[:, 0] = -1e4
    ours = theirs.clone()
    ours[:, 1:] += 0.1 * rows().flip(1)[:, 1:]
    assert (shares(ours, theirs) > 10 * LARGEST[torch.float32]).all()


def test_rounding_of_a_large_value_is_no_difference() -> None:
    theirs = rows()
    theirs[:, 0] = -1e7
    ours = theirs.clone()
    ours[:, 0] += 1.0  # the distance of floats there
    assert shares(ours, theirs).tolist() == [0, 0, 0]


def test_infinities_agree_where_both_have_them() -> None:
    theirs = rows()
    theirs[:, 5] = -torch.inf
    assert shares(theirs.clone(), theirs).tolist() == [0, 0, 0]
    for value in (torch.inf, torch.nan, 0.0):
        ours = theirs.clone()
        ours[1, 5] = value
        assert shares(ours, theirs).tolist() == [0, torch.inf, 0]


def test_rows_without_spread() -> None:
    flat = torch.ones(2, 8)
    assert shares(flat, flat).tolist() == [0, 0]
    assert shares(flat + 0.5, flat).min() > 1
