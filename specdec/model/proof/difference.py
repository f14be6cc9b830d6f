"""The difference between two computations of the same logits, and how large it may be."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

# Largest difference that rounding may explain, as a share of a row's spread. A different computation gives 0.1 and
# more; fp32 rounding gives 1e-6 in trained models and up to 1e-4 in random ones. In 16 bit a token may be routed to
# another expert at a near tie. So there the median over tokens is checked too, and a small twin in fp32 is compared.
LARGEST = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 0.5, torch.bfloat16: 0.5}
MEDIAN = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 0.03, torch.bfloat16: 0.1}
ROUNDING = 8  # units in the last place by which one value may differ, however large it is


def shares(ours: Float[Tensor, "rows width"], theirs: Float[Tensor, "rows width"]) -> Float[Tensor, " rows"]:
    """Return the root mean square of the differences in each row, as a share of the row's spread.

    The spread is the distance between the quartiles of `theirs`, so that a few values of -1e4 (as masked logits have)
    do not hide anything. Values that are infinite in both rows agree; a NaN, or an infinity in one row only, counts as
    different.
    """
    ours, theirs = ours.double(), theirs.double()
    finite = ours.isfinite() & theirs.isfinite()
    other = ~finite & ~(ours == theirs)
    known = theirs.where(finite, 0.0)
    rounding = ROUNDING * torch.finfo(torch.float32).eps * known.abs()
    apart = ((ours.where(finite, 0.0) - known).abs() - rounding).clamp(min=0).square().mean(-1).sqrt()
    quartiles = torch.quantile(known, torch.tensor([0.25, 0.75], dtype=known.dtype, device=known.device), dim=-1)
    spread = torch.maximum(quartiles[1] - quartiles[0], 1e-6 * known.abs().amax(-1))
    share = torch.where(apart > 0, apart / spread, 0.0)
    return share.masked_fill(other.any(-1), torch.inf)
