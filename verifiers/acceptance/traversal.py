"""Traversal verification: judge a tree from the leaves to the root (arXiv 2505.12398).

The rule is exact for siblings drawn with or without replacement and for deterministic ones. On a chain it is block
verification. The paper gives the order of the walk and the update after a rejection. This module derives both from one
statement about what a node may still emit, which is the same for the three kinds of siblings. It also does the update
without a vector per node.

**The statement.** A node v is visited with a rate a and a distribution P. With probability a the visit ends at v or
below it; then the token after v has the distribution P, and the text after that has the target's. These probabilities
include the draws of the nodes below v. The statement holds by induction:

- If no child is left, end at v with probability a, and draw the token after it from P.
- Otherwise let the next child x be drawn from Q. Visit x with rate min(1, a P(x) / Q(x)) and the target's p there. So
  token x is emitted after v with probability min(Q(x), a P(x)), while a P(x) is required. Still required is
  R = relu(a P - Q). The visit of x ends without acceptance with probability 1 - a + |R|. Given that,

      a <- |R| / (1 - a + |R|),    P <- R / |R|,

  which do not depend on x. So v with its other children must emit exactly what these a and P require, and by induction
  it does.

At the root a is 1 and stays 1.

**Without a vector per node.** Let a P = s relu(p - c q). At first s = a and c = 0. Let Q = q / z, where z is the mass
of q without the siblings before x (1 if drawn with replacement). Then R = s relu(p - c q - q / (s z)), so

    c <- c + 1 / (s z),    s <- s / (1 - a + |R|).

A sibling drawn before had a P(x) < Q(x) when it was rejected, so c keeps its probability at 0. For deterministic
children R is a P with 0 at x.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from specdec.decoding.grow_fixed import CHILDREN
from specdec.decoding.protocols import ExactFor, Verdict
from specdec.decoding.sampling import Draws
from specdec.model.runtime.vocabulary import mass, masses
from specdec.trees import transfer
from specdec.trees.tree import PAD, TokenTree
from verifiers.acceptance.rejection import HUGE, at, none_of, normalised, ratios, tried, untaken, untaken_mass
from verifiers.acceptance.requirements import require_exact_for, require_probabilities


class Traversal:
    """Visit leaves first and siblings in the order of their index, and end at the first node that accepts.

    Draw slot i decides on the i-th node whose visit ends. It does not depend on the other rows.
    """

    name = "traversal"
    lossless = True
    exact_for = ExactFor(CHILDREN)

    def accept(self, tree: TokenTree, target_probs: Float[Tensor, "batch nodes vocab"], draws: Draws) -> Verdict:
        require_exact_for(self, tree)
        require_probabilities(tree, target_probs)
        alone = tree.batch == 1 and transfer.on_host(tree.tokens)
        end, taken = (Row if alone else Rows)(tree, target_probs).visit_all(draws)
        left = untaken(tree, target_probs, end, taken)
        return Verdict(tree.path_to(end), draws.categorical(normalised(left, at(target_probs, end)), 0))


class Rows:
    """The a, s, c and z of every node, as in the module's docstring, for a batch of rows of any shapes.

    A node is one index per row. No operation waits for the device.

    Args:
        tree: the tree to judge.
        target_probs: p after each node.
    """

    def __init__(self, tree: TokenTree, target_probs: Float[Tensor, "batch nodes vocab"]) -> None:
        self._tree, self._target_probs = tree, target_probs
        self._ratio = ratios(tree, target_probs)
        self._spines = Spines.of(tree, self._ratio)
        self._rows = torch.arange(tree.batch, device=tree.tokens.device)
        self._a, self._s = torch.ones_like(self._ratio), torch.ones_like(self._ratio)
        self._c, self._z = torch.zeros_like(self._ratio), torch.ones_like(self._ratio)

    def visit_all(self, draws: Draws) -> tuple[Int[Tensor, " batch"], Float[Tensor, " batch"]]:
        """Return the node at which each row's walk ends, and the node's c."""
        end = torch.zeros_like(self._rows)
        climbing = self._tree.valid[:, 0]
        node = self.enter(end)
        for slot in range(1, self._tree.nodes):
            climbing = climbing & (node != 0)
            if none_of(climbing):
                break
            accepted = climbing & draws.bernoulli(torch.where(climbing, self._a[self._rows, node], 0), slot)
            end, climbing = torch.where(accepted, node, end), climbing & ~accepted
            if not none_of(climbing):
                node = self.leave(node, climbing)
        return end, self._c[self._rows, end]

    def enter(self, x: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        """Begin the visits of x, of its first child, and so on down to a leaf. Returns the leaf."""
        v = self._rows, self._tree.parents.clamp(min=0)[self._rows, x]
        rate = self._s[v] * self._z[v] * (self._ratio[self._rows, x] - self._c[v])
        rate = torch.where(x == 0, 1, rate.clamp(min=0, max=1))[:, None]
        rates = torch.minimum(self._spines.cap, rate * self._spines.reach)
        spine = self._spines.top == x[:, None]
        self._a, self._s = torch.where(spine, rates, self._a), torch.where(spine, rates, self._s)
        return self._spines.leaf[self._rows, x]

    def leave(self, x: Int[Tensor, " batch"], rows: Bool[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        """Update the parent of x after a visit of x that accepted nothing, in the marked rows.

        Returns the node whose visit ends next.
        """
        tree, parent = self._tree, self._tree.parents.clamp(min=0)[self._rows, x]
        v = self._rows, parent
        if tree.probs is not None:
            self._c[v] += torch.where(rows, 1 / (self._s[v] * self._z[v]).clamp(min=1 / HUGE), 0)
            if not tree.replacement:
                self._z[v] = masses(at(tree.probs, parent).to(self._target_probs), without=tried(tree, parent, x))
        rest = self._s[v] * untaken_mass(tree, self._target_probs, parent, self._c[v], x)
        vain = (1 - self._a[v] + rest).clamp(min=1 / HUGE)
        self._a[v], self._s[v] = rest / vain, (self._s[v] / vain).clamp(max=HUGE)
        sibling = self._spines.sibling[self._rows, x]
        return torch.where(sibling > 0, self.enter(sibling), parent)


class Row:
    """`Rows` for a single row on a CPU, with Python floats, ten times cheaper than one-element tensors."""

    def __init__(self, tree: TokenTree, target_probs: Float[Tensor, "1 nodes vocab"]) -> None:
        self._tree, self._p = tree, target_probs[0].unbind()
        self._q = None if tree.probs is None else tree.probs[0].to(target_probs).unbind()
        self._ratio, self._tokens = ratios(tree, target_probs)[0].tolist(), tree.tokens[0].tolist()
        self._parents: list[int] = tree.parents[0].tolist()
        self._children: list[list[int]] = [[] for _ in self._parents]
        for node, parent in enumerate(self._parents):
            if parent >= 0:
                self._children[parent].append(node)
        self._a, self._s = [1.0] * tree.nodes, [1.0] * tree.nodes
        self._c, self._z = [0.0] * tree.nodes, [1.0] * tree.nodes

    def visit_all(self, draws: Draws) -> tuple[Int[Tensor, " 1"], Float[Tensor, " 1"]]:
        node, end = self.enter(0), 0
        for slot in range(1, self._tree.nodes):
            if node == 0:
                break
            if self._a[node] > 0 and bool(draws.bernoulli(number(self._a[node]), slot)):
                end = node
                break
            node = self.leave(node)
        return self._tree.tokens.new_tensor([end]), number(self._c[end])

    def enter(self, x: int) -> int:
        while True:
            v = self._parents[x]
            if v >= 0:
                rate = self._s[v] * self._z[v] * (self._ratio[x] - self._c[v])
                self._a[x] = self._s[x] = min(max(rate, 0.0), 1.0)
            if not self._children[x]:
                return x
            x = self._children[x][0]

    def leave(self, x: int) -> int:
        v = self._parents[x]
        s, a = self._s[v], self._a[v]
        done = self._children[v].index(x) + 1
        tried = [self._tokens[child] for child in self._children[v][:done]]
        if self._q is None:
            rest = s * mass(self._p[v], None, 0, tried)
        else:
            self._c[v] += 1 / max(s * self._z[v], 1 / HUGE)
            if not self._tree.replacement:
                self._z[v] = mass(self._q[v], None, 0, tried)
            rest = s * mass(self._p[v], self._q[v], self._c[v], [])
        vain = max(1 - a + rest, 1 / HUGE)
        self._a[v], self._s[v] = rest / vain, min(s / vain, HUGE)
        return self.enter(self._children[v][done]) if done < len(self._children[v]) else v


def number(x: float) -> Float[Tensor, " 1"]:
    return torch.full((1,), x, dtype=torch.float64)


@dataclass(frozen=True)
class Spines:
    """The spine of every node: the path to it by first children only, from the node `top`.

    Args:
        top: first node of the spine.
        sibling: next sibling of the node, -1 if it is the last.
        leaf: end of the spine that starts at the node.
        cap, reach: a rate r at `top` is min(cap, r x reach) at the node.
    """

    top: Int[Tensor, "batch nodes"]
    sibling: Int[Tensor, "batch nodes"]
    leaf: Int[Tensor, "batch nodes"]
    cap: Float[Tensor, "batch nodes"]
    reach: Float[Tensor, "batch nodes"]

    @classmethod
    def of(cls, tree: TokenTree, ratio: Float[Tensor, "batch nodes"]) -> Spines:
        index = torch.arange(tree.nodes, device=ratio.device)
        drafted = tree.valid & (index > 0)
        siblings = (tree.parents[:, :, None] == tree.parents[:, None]) & drafted[:, None]
        after = siblings & (index > index[:, None])
        first = drafted & ~(siblings & (index < index[:, None])).any(-1)
        up = torch.where(first, tree.parents, index)
        reach = torch.where(first, ratio, 1)
        cap = reach.clamp(max=1)
        for _ in range((tree.nodes - 1).bit_length()):  # each pass doubles the distance
            cap = torch.minimum(cap, cap.gather(1, up) * reach)
            reach = (reach * reach.gather(1, up)).clamp(max=HUGE)
            up = up.gather(1, up)
        behind_the_end = tree.nodes
        has_child = torch.zeros(tree.batch, tree.nodes + 1, dtype=torch.bool, device=ratio.device)
        has_child = has_child.scatter_(1, torch.where(drafted, tree.parents, behind_the_end), True)[:, :-1]
        ends = torch.where(tree.valid & ~has_child, up, behind_the_end)
        leaf = torch.zeros(tree.batch, tree.nodes + 1, dtype=torch.long, device=ratio.device)
        leaf = leaf.scatter_(1, ends, index.expand_as(ends))[:, :-1]
        sibling = torch.where(after.any(-1), after.int().argmax(-1), PAD)
        return cls(up, sibling, leaf, cap, reach)
