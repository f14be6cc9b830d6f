"""Guess several positions at once with several heads, and combine their candidates in a static tree."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from drafters.medusa.formats import HeadsFile, read_heads
from drafters.medusa.heads import MedusaHeads, fresh_heads, output_layer
from drafters.shared.binding import Binding
from drafters.shared.shipped import shipped_folder
from specdec.decoding.grow_fixed import choose_children, require_children
from specdec.decoding.protocols import DraftState, Rows, Session, Size, Traits
from specdec.decoding.sampling import Draws
from specdec.errors import InputError
from specdec.model.runtime import linear
from specdec.model.target import TargetModel
from specdec.trees.files import GUESSED_HEADS, first_paths, read_tree
from specdec.trees.topology import Topology
from specdec.trees.transfer import on_device
from specdec.trees.tree import PAD, TokenTree


class Medusa:
    """A drafter with heads on the target's last hidden state (arXiv 2401.10774).

    Penalties do not reorder top-k candidates. If children are drawn, q includes the penalties of the committed text.

    Args:
        heads: a folder, a file or a hub id in a layout of `layouts.py`; `auto` for the heads shipped for the target;
            `fresh` for untrained heads, which all guess the target's next token; or a loaded module.
        tree: index paths; a YAML file with index paths; or a number of drafted nodes, taken from the tree saved beside
            the heads, or from a guessed tree if none is saved (`specdec.trees.files`).
        children: `top_k` takes the candidates by rank. `with_replacement` and `without_replacement` draw them from the
            heads' distributions at a temperature above 0; the tree then gives the number of children per node.

    Raises:
        InputError: an unknown way to choose children, or a tree that is not readable or has no nodes. `start` raises it
            if the heads do not fit the target, or the tree needs more heads or candidates than there are.
    """

    def __init__(
        self,
        heads: str | MedusaHeads = "auto",
        tree: int | str | Sequence[Sequence[int]] = 15,
        children: str = "top_k",
    ) -> None:
        require_children(children)
        if isinstance(tree, int) and tree < 1:
            raise InputError("drafter.tree", expected="at least one node", got=repr(tree), fix="raise it")
        self.children = children
        self._heads = heads
        self._tree = tree if isinstance(tree, int) else read_tree(tree) if isinstance(tree, str) else Topology.of(tree)
        self._binding = Binding()
        self.traits = Traits()
        self._every_head: MedusaProducts | None = None  # made by the first call of `candidates`
        self._module: MedusaHeads

    @property
    def max_nodes(self) -> int:
        return self._tree + 1 if isinstance(self._tree, int) else self._tree.nodes

    @property
    def topology(self) -> Topology:
        return self._topology

    @property
    def depths(self) -> int:
        """Number of heads, including those that the tree does not use."""
        return self._module.heads

    def start(self, session: Session) -> None:
        self._sampling = session.sampling
        self._binding.to(session.target, self._bind)

    @torch.inference_mode()
    def propose(self, state: DraftState) -> TokenTree:
        root = on_device([row[-1] for row in state.rows], self._parents.device)
        if max(state.room) <= 1:
            return TokenTree.root_only(root)
        logits = self._products(state.kept.last_hidden)
        if self.children != "top_k" and not self._sampling.greedy:
            return self._drawn(root, self._q(logits, state.rows), state.draws(self.max_nodes))
        best = logits.topk(self._topology.ranks)
        ranked = self._module.ids(best.indices)
        tokens = torch.cat([root[:, None], ranked.flatten(1)[:, self._candidates]], 1)
        sure = (best.values - logits.logsumexp(-1, keepdim=True)).exp().flatten(1)[:, self._candidates]
        confidence = torch.cat([torch.ones_like(sure[:, :1]), sure], 1)
        return TokenTree(tokens, self._parents.expand_as(tokens), confidence=confidence)

    def candidates(
        self, hidden: Float[Tensor, "rows dim"], ranks: int
    ) -> tuple[Int[Tensor, "rows heads ranks"], Float[Tensor, "rows heads ranks"]]:
        """Return the `ranks` best tokens of every head and their log-probabilities, best first.

        All heads are computed, whatever the tree uses.
        """
        if self._every_head is None:
            chain = Topology.of([[0] * depth for depth in range(1, self.depths + 1)])
            self._every_head = MedusaProducts(self._module, self._binding.target, chain)
        logits = self._every_head(hidden)
        best = logits.topk(ranks)
        return self._module.ids(best.indices), best.values - logits.logsumexp(-1, keepdim=True)

    def _bind(self, target: TargetModel) -> None:
        fresh = GUESSED_HEADS if isinstance(self._tree, int) else self._tree.depth
        heads, file = load_heads(self._heads, target, fresh)
        tree_file = None if file is None else file.tree
        topology = self._tree if isinstance(self._tree, Topology) else first_paths(self._tree, tree_file, heads.heads)
        if topology.depth > heads.heads:
            expected, got = f"paths of at most {heads.heads}, one for each head", f"one of {topology.depth}"
            raise InputError("drafter.tree", expected=expected, got=got, fix="prune the tree, or train more heads")
        if topology.ranks > (known := heads.rows(target)):
            expected, got = f"candidates among the {known} tokens the heads know", f"{topology.ranks} of them"
            raise InputError("drafter.tree", expected=expected, got=got, fix="choose a narrower tree")
        self._products = MedusaProducts(heads, target, topology)
        self._every_head = None
        self._module, self._topology = heads, topology
        self.traits = Traits(size=Size.of(heads, None if file is None else file.training_tokens))
        self._parents, self._candidates = topology.parents.to(target.device), topology.candidates.to(target.device)
        self._drawn_from = topology.drawn_from.to(target.device)

    def _q(self, logits: Float[Tensor, "batch heads rows"], rows: Rows) -> Float[Tensor, "batch heads vocab"]:
        """Return the distributions that children are drawn from: one per depth, shared by its nodes."""
        batch, heads, _ = logits.shape
        if self._module.vocabulary is not None:
            whole = logits.new_full((batch, heads, self._binding.target.vocab_size), -torch.inf)
            logits = whole.index_copy(2, self._module.vocabulary, logits)
        histories = [row for row in rows for _ in range(heads)]
        return self._sampling.probabilities(logits.flatten(0, 1), histories, lenient=True).view_as(logits)

    def _drawn(self, root: Int[Tensor, " batch"], q: Float[Tensor, "batch heads vocab"], draws: Draws) -> TokenTree:
        """Draw every node's children from the q of its depth, siblings in the order of their numbers."""
        topology = self._topology
        tokens = root.new_full((len(root), topology.nodes), PAD)
        tokens[:, 0] = root
        for parent, depth, family in topology.families:
            children = choose_children(q[:, depth], len(family), self.children, draws, family.start)
            orphans = tokens[:, parent, None] == PAD
            tokens[:, family.start : family.stop] = children.masked_fill(orphans, PAD)
        parents = torch.where(tokens == PAD, PAD, self._parents)
        probs = torch.cat([q, torch.zeros_like(q[:, :1])], 1)[:, self._drawn_from]
        return TokenTree(tokens, parents, probs, self.children == "with_replacement" or topology.only_children)


class MedusaProducts:
    """Compute the logits of the heads, reading every weight once.

    The first blocks of all heads are one product. A shared output layer is one product over heads x batch rows. Only
    the first `topology.depth` heads are computed. The weights are those of `heads` and of the target, not copies,
    except for the rows of a draft vocabulary.
    """

    def __init__(self, heads: MedusaHeads, target: TargetModel, topology: Topology) -> None:
        fast, used, dim = target.runtime is not None, topology.depth, heads.dim
        weight, bias = heads.weight.detach()[:, :used], heads.bias.detach()[:, :used]
        blocks = list(zip(weight, bias, strict=True))
        self._first = [linear(w.reshape(-1, dim), b.reshape(-1), fast=fast) for w, b in blocks[:1]]
        self._later = [(w.mT, b[:, None]) for w, b in blocks[1:]]
        rows = heads.output_rows(target)[:used]
        if heads.output is not None:
            self._outputs = [linear(w, fast=fast) for w in rows]
        elif heads.vocabulary is not None:
            self._outputs = [linear(rows[0], heads.output_bias(target), fast=fast)]
        else:
            self._outputs = [output_layer(target)]
        self._heads, self._dtypes = used, (heads.weight.dtype, rows[0].dtype)

    def __call__(self, hidden: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch heads rows"]:
        x = hidden.to(self._dtypes[0])[:, None].expand(-1, self._heads, -1)
        for layer in self._first:
            x = x + F.silu(layer(x[:, 0]).view_as(x))
        for weight, bias in self._later:
            x = x + F.silu(torch.baddbmm(bias, x.transpose(0, 1), weight)).transpose(0, 1)
        x = x.to(self._dtypes[1])
        if len(self._outputs) == 1:
            return self._outputs[0](x)
        return torch.stack([output(x[:, head]) for head, output in enumerate(self._outputs)], 1)


def load_heads(heads: str | MedusaHeads, target: TargetModel, fresh: int) -> tuple[MedusaHeads, HeadsFile | None]:
    """Return heads on the target's device, and the file they came from (None if not from a file).

    Warns if the config beside the heads contradicts the weights.

    Args:
        heads: as in `Medusa`.
        target: the model that the heads must fit.
        fresh: number of heads if `heads` is `fresh`.

    Raises:
        InputError: no heads there, or heads that do not fit this target.
    """
    file = None
    if heads == "fresh":
        heads = fresh_heads(target, fresh).to(target.dtype)
    elif isinstance(heads, str):
        file = read_heads(str(shipped_folder(target, "medusa", "drafter.heads")) if heads == "auto" else heads)
        heads = file.heads.to(target.device, target.dtype)
        for note in file.notes:
            warnings.warn(note, stacklevel=2)
    heads.require_fits(target)
    return heads, file
