"""TokenTree: a batch of trees of tokens, proposed by a drafter and checked by a verifier.

Chains, Medusa trees, EAGLE trees and sampled trees all have this one type. It depends on no model and no
acceptance rule, and holds no probabilities but the drafter's.

    tokens   [ r  a  b  c  d ]          r            ancestor_mask (row = node, 1 = may see)
    parents  [-1  0  0  1  1 ]        /   \\          r a b c d
    depth    [ 0  1  1  2  2 ]       a     b       r  1 0 0 0 0
                                    / \\            a  1 1 0 0 0
                                   c   d           b  1 0 1 0 0
                                                   c  1 1 0 1 0
                                                   d  1 1 0 0 1
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from specdec.errors import InputError
from specdec.trees import transfer
from specdec.trees.transfer import on_device

PAD = -1


@dataclass(frozen=True)
class TokenTree:
    """A batch of token trees with a common number of nodes.

    Args:
        tokens: [batch nodes]. `tokens[:, 0]` is the root: the last committed token, whose KV is not yet cached. A
            padding node has token -1 (0 is a real token in most vocabularies).
        parents: [batch nodes]. `parents[:, 0] == -1` and `parents[i] < i`, so that mask, depth and paths follow from
            one forward sweep. A padding node has parent -1 and sees only itself.
        probs: [batch nodes vocab]. q at node i, the distribution from which i's children were drawn. None if children
            were chosen deterministically.
        replacement: how children were drawn. True: independently of each other, duplicates allowed. False: one after
            the other, in order of their index, never the same token twice.
        confidence: [batch nodes]. The drafter's own estimate of the probability that a node is right if its parent is;
            None if it makes none. Acceptance rules ignore it: it serves to choose among nodes.
    """

    tokens: Int[Tensor, "batch nodes"]
    parents: Int[Tensor, "batch nodes"]
    probs: Float[Tensor, "batch nodes vocab"] | None = None
    replacement: bool = True
    confidence: Float[Tensor, "batch nodes"] | None = None

    @classmethod
    def root_only(cls, root: Int[Tensor, " batch"]) -> TokenTree:
        """Return the tree that drafts nothing: one step of autoregressive decoding."""
        return cls(root[:, None], torch.full_like(root[:, None], -1))

    @classmethod
    def from_rows(
        cls,
        tokens: Sequence[Sequence[int]],
        parents: Sequence[Sequence[int]],
        device: torch.device | str = "cpu",
        confidence: Sequence[Sequence[float]] | None = None,
    ) -> TokenTree:
        """Build trees of different sizes, one list per row, padded on the right to the largest.

        Args:
            tokens: tokens of each row's nodes, the root first.
            parents: parents of each row's nodes, -1 for the root.
            device: where the tensors are put.
            confidence: confidence of each row's nodes, padded with 0, or None.
        """
        size = max(len(row) for row in tokens)

        def padded(rows: Sequence[Sequence[float]], fill: float = PAD) -> Tensor:
            return on_device([[*row, *[fill] * (size - len(row))] for row in rows], device)

        sure = None if confidence is None else padded(confidence, 0.0)
        return cls(padded(tokens), padded(parents), confidence=sure)

    @property
    def batch(self) -> int:
        return self.tokens.shape[0]

    @property
    def nodes(self) -> int:
        """Number of nodes, root and padding included."""
        return self.tokens.shape[1]

    @cached_property
    def valid(self) -> Bool[Tensor, "batch nodes"]:
        """False for padding nodes."""
        return self.tokens >= 0

    @cached_property
    def ancestor_mask(self) -> Bool[Tensor, "batch nodes nodes"]:
        """`mask[b, i, j]`: whether j is i or an ancestor of i. Static shapes, no wait for the host.

        On a CPU masks are cached by `parents`, because trees of one shape come back step after step.
        """
        if transfer.on_host(self.parents):
            return _remembered_mask(tuple(map(tuple, self.parents.tolist())))
        return _ancestor_mask(self.parents)

    @cached_property
    def depth(self) -> Int[Tensor, "batch nodes"]:
        """Number of edges from the root; 0 for padding nodes."""
        return self.ancestor_mask.sum(-1) - 1

    @cached_property
    def offered(self) -> Int[Tensor, " batch"]:
        """Depth of the deepest node of each row: the most tokens that could be accepted."""
        return self.depth.amax(-1)

    def path_to(self, node: Int[Tensor, " batch"]) -> Int[Tensor, "batch nodes"]:
        """Return the nodes from the root to `node`, root first, padded on the right with -1."""
        rows, index = (torch.arange(size, device=node.device) for size in self.tokens.shape)
        behind_the_end = self.nodes
        path = torch.where(self.ancestor_mask[rows, node], index, behind_the_end).sort(1).values  # parents come first
        return path.masked_fill(path == behind_the_end, PAD)

    def deepest(self, accepted: Bool[Tensor, "batch nodes"]) -> Int[Tensor, " batch"]:
        """Return the last node of the longest path of accepted nodes; of equally long paths, the first.

        The root always counts as accepted.
        """
        refused = ~(accepted & self.valid)
        refused[:, 0] = False
        behind = (self.ancestor_mask & refused[:, None]).any(-1)
        return self.depth.masked_fill(behind, -1).argmax(-1)

    def clip(self, max_depth: Int[Tensor, " batch"]) -> TokenTree:
        """Return the same tree with every node deeper than its row's `max_depth` turned into padding.

        Depth does not depend on the drafted tokens, so clipping keeps every acceptance rule exact.
        """
        keep = self.depth <= max_depth[:, None]
        return replace(self, tokens=torch.where(keep, self.tokens, PAD), parents=torch.where(keep, self.parents, PAD))

    def validate(self, vocab_size: int) -> None:
        """Check what the types cannot express. Waits for the host, so it is for tests and new drafters.

        Raises:
            InputError: a root that is padding, a parent not before its child, a padding node with a parent, a token
                outside the vocabulary, or q of another vocabulary size.
        """
        fix = "mend the drafter's propose()"
        if bool((self.tokens[:, 0] < 0).any() or (self.parents[:, 0] != -1).any()):
            raise InputError(
                "tree", expected="a real token with parent -1 as the root", got="a root that is not", fix=fix
            )
        if int(self.tokens.max()) >= vocab_size:
            raise InputError("tree", expected=f"tokens below {vocab_size}", got=int(self.tokens.max()), fix=fix)
        index = torch.arange(self.nodes, device=self.tokens.device)
        real_parent = (self.parents >= 0) & (self.parents < index)
        bad = torch.where(self.valid, ~real_parent, self.parents != PAD)
        bad[:, 0] = False
        # a real node under a padding node would be reachable by no path
        bad |= self.valid & (self.parents >= 0) & ~self.valid.gather(1, self.parents.clamp(min=0))
        if bool(bad.any()):
            row, node = bad.nonzero()[0].tolist()
            got = f"parent {int(self.parents[row, node])} at node {node} of row {row}"
            raise InputError("tree", expected="every node's parent to be a real node before it", got=got, fix=fix)
        if self.probs is not None and self.probs.shape != (*self.tokens.shape, vocab_size):
            expected = f"probs of shape {(*self.tokens.shape, vocab_size)}"
            raise InputError("tree", expected=expected, got=tuple(self.probs.shape), fix=fix)


def histories(tree: TokenTree, rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return the tokens up to and including each node, row by row: committed text, then the path to the node.

    rows: committed tokens, the root last. A padding node gets its row's committed text.
    """
    tokens, parents = tree.tokens.tolist(), tree.parents.tolist()
    result: list[list[int]] = []
    for row, row_tokens, row_parents in zip(rows, tokens, parents, strict=True):
        paths: list[list[int]] = []
        for token, parent in zip(row_tokens, row_parents, strict=True):
            paths.append([*paths[parent], token] if parent >= 0 else list(row))
        result += paths
    return result


def _ancestor_mask(parents: Int[Tensor, "batch nodes"]) -> Bool[Tensor, "batch nodes nodes"]:
    """Start from "sees itself and its parent", and square the relation until it is transitive."""
    batch, nodes = parents.shape
    itself = torch.eye(nodes, dtype=torch.bool, device=parents.device)
    if nodes == 1:
        return itself.expand(batch, 1, 1)
    is_parent = parents[:, :, None] == torch.arange(nodes, device=parents.device)
    reach = (is_parent | itself).float()
    for _ in range((nodes - 1).bit_length()):
        reach = ((reach @ reach) > 0).float()
    return reach.bool()


@lru_cache(maxsize=256)
@torch.inference_mode(False)  # a cached mask must also serve in training
def _remembered_mask(parents: tuple[tuple[int, ...], ...]) -> Tensor:
    return _ancestor_mask(torch.tensor(parents))
