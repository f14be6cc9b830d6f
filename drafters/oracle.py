"""Draft the target's own recorded text, right as often as prescribed.

It needs no training, and gives any number of tokens per step, so that the loop, a kernel, a server or a GPU is measured
apart from the quality of a drafter. The text is exactly the target's: a wrong token is never accepted. At temperature 0
only, because a sampled text cannot be known beforehand.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from zlib import crc32

import numpy as np
import torch

from specdec.decoding.generate import autoregressive
from specdec.decoding.protocols import DraftState, Rows, Session, Traits
from specdec.decoding.sampling import SamplingParams, Streams, UniformDraws
from specdec.decoding.stopping import StopRule
from specdec.errors import InputError
from specdec.model.target import TargetModel
from specdec.replay.prescribed import GivenRates, prescribed
from specdec.trees.files import read_tree
from specdec.trees.topology import Topology
from specdec.trees.transfer import on_device
from specdec.trees.tree import TokenTree

SAMPLED = SamplingParams(temperature=1.0)  # the oracle's own draws are random at temperature 0 too


class Oracle:
    """A drafter that knows the target's greedy text.

    At every position and depth a draw decides which child of the right path is right: that of rank r with probability
    `rates[depth][rank]`. The draws depend on the seed, the prompt and the number of committed tokens only, so a row's
    drafts are the same alone and in any batch. The tree has the same shape in every step.

    Args:
        tree: length of a chain; index paths; or a YAML file with index paths.
        schedule, tokens_per_step, shares: see `specdec.trees.schedules.scheduled`.
        rates: rates by depth, or by depth and rank, in place of a schedule; or a run folder, whose rates are measured.
        lengths: a published curve in place of a schedule, see `specdec.trees.schedules.of_lengths`.
        seed: seed of the draws.

    Raises:
        InputError: an option out of range. `start` raises it at a temperature above 0, or if the vocabulary is too
            small for the tree's ranks.
    """

    traits = Traits(greedy_only=True)

    def __init__(
        self,
        tree: int | str | Sequence[Sequence[int]] = 4,
        schedule: str = "constant",
        tokens_per_step: float = 3.0,
        shares: Sequence[float] = (1.0,),
        rates: GivenRates = None,
        lengths: Sequence[float] | None = None,
        seed: int = 0,
    ) -> None:
        if isinstance(tree, int):
            if tree < 1:
                raise InputError("drafter.tree", expected="at least one token", got=repr(tree), fix="raise it")
            tree = [[0] * depth for depth in range(1, tree + 1)]
        self.topology = read_tree(tree) if isinstance(tree, str) else Topology.of(tree)
        paths = self.topology.paths
        self.rates = prescribed(schedule, tokens_per_step, paths, shares, rates, lengths, "drafter")
        self._numbers = {path: node for node, path in enumerate(paths, 1)}
        self._ranks = np.array([0, *(path[-1] for path in paths)])
        self._limits = [np.cumsum(level) for level in self.rates[: self.topology.depth]]
        self._sure = [1.0, *(self._rate(len(path) - 1, path[-1]) for path in paths)]
        self._seed = seed
        self._memory = Memory()

    @property
    def max_nodes(self) -> int:
        return self.topology.nodes

    def prepare(self, target: TargetModel, rows: Rows, sampling: SamplingParams, stop: StopRule) -> None:
        """Record the texts of prompts, before a clock starts. Arguments as in `Preparing`."""
        self._require_greedy(sampling)
        self._memory.record(target, rows, sampling, stop)

    def start(self, session: Session) -> None:
        self._require_greedy(session.sampling)
        if self.topology.ranks >= session.target.vocab_size:
            expected = f"fewer candidates than the vocabulary's {session.target.vocab_size} tokens"
            raise InputError("drafter.tree", expected=expected, got=self.topology.ranks, fix="choose a narrower tree")
        new = max(1, session.capacity - self.max_nodes - max(map(len, session.rows)))
        stop = session.stop or StopRule(new, session.target.eos)
        self._memory.record(session.target, session.rows, session.sampling, stop)
        self._target, self._prompts = session.target, [tuple(row) for row in session.rows]
        device = session.target.device
        self._parents = self.topology.parents.to(device)
        keys = [[self._seed, crc32(np.array(row).tobytes())] for row in session.rows]
        self._streams = Streams(keys, SAMPLED, torch.device("cpu"))

    def propose(self, state: DraftState) -> TokenTree:
        draws = self._streams.draws([len(row) for row in state.rows], Streams.DRAFT, self.topology.depth)
        assert isinstance(draws, UniformDraws)
        tokens = [
            self._tokens(prompt, row, uniforms)
            for prompt, row, uniforms in zip(self._prompts, state.rows, draws.uniforms.numpy(), strict=True)
        ]
        nodes = torch.from_numpy(np.stack(tokens)).to(self._parents.device)
        sure = on_device(self._sure, nodes.device).expand(nodes.shape)
        return TokenTree(nodes, self._parents.expand_as(nodes), confidence=sure)

    def _tokens(self, prompt: tuple[int, ...], row: Sequence[int], uniforms: np.ndarray) -> np.ndarray:
        """Return the tokens of one row's tree.

        Every node gets the token after the right one, plus its rank; then those on the path that the draws choose get
        the right ones. So siblings differ, and no other node is right.
        """
        following = self._memory.following(prompt, row)
        depth, vocab = self.topology.depth, self._target.vocab_size
        right = np.array([row[-1], *following[:depth], *[row[-1]] * max(0, depth - len(following))])
        depths = np.array([0, *map(len, self.topology.paths)])
        tokens = (right[depths] + 1 + self._ranks) % vocab
        tokens[0] = row[-1]
        path: tuple[int, ...] = ()
        for level in range(min(depth, len(following), len(self._limits))):
            rank = int(np.searchsorted(self._limits[level], uniforms[level], side="right"))
            path = (*path, rank)
            if rank == len(self._limits[level]) or path not in self._numbers:
                break
            tokens[self._numbers[path]] = right[level + 1]
        return tokens

    def _rate(self, depth: int, rank: int) -> float:
        known = depth < len(self.rates) and rank < len(self.rates[depth])
        return self.rates[depth][rank] if known else 0.0

    @staticmethod
    def _require_greedy(sampling: SamplingParams) -> None:
        if not sampling.greedy:
            fix = "use generation.temperature=0, or acceptance=forced, whose text is not the target's"
            expected = "temperature 0, at which the text can be known beforehand"
            raise InputError("drafter=oracle", expected=expected, got=sampling.temperature, fix=fix)


class Memory:
    """The target's plain texts, by prompt."""

    def __init__(self) -> None:
        self._texts: dict[tuple[int, ...], list[int]] = {}
        self._made_with: tuple[object, ...] = ()
        self._parts: tuple[TargetModel, SamplingParams, StopRule]

    def record(self, target: TargetModel, rows: Rows, sampling: SamplingParams, stop: StopRule) -> None:
        """Decode the prompts that are not known yet, token by token. Other settings forget all texts.

        Arguments as in `Preparing`.
        """
        made_with = (id(target), sampling, stop)
        if made_with != self._made_with:
            self._texts, self._made_with = {}, made_with
        self._parts = target, sampling, stop
        new = [list(row) for row in dict.fromkeys(map(tuple, rows)) if row not in self._texts]
        if new:
            texts = autoregressive(new, target, sampling, stop, [[0]] * len(new)).texts
            self._texts |= {tuple(row): text for row, text in zip(new, texts, strict=True)}

    def following(self, prompt: tuple[int, ...], row: Sequence[int]) -> list[int]:
        """Return the recorded tokens after `row`, which begins with `prompt`.

        In low precision a text may leave the plain one at a near tie. It is then recorded anew from there.
        """
        done, text = list(row[len(prompt) :]), self._texts[prompt]
        if text[: len(done)] == done:
            return text[len(done) :]
        target, sampling, stop = self._parts
        left = stop.max_new_tokens - len(done)
        if left < 1:
            return []
        if tuple(row) not in self._texts:
            line = f"a text left the recorded one at new token {len(done)}; it is recorded again, within the timed part"
            warnings.warn(line, stacklevel=2)
            again = autoregressive([list(row)], target, sampling, replace(stop, max_new_tokens=left), [[0]])
            self._texts[tuple(row)] = again.texts[0]
        self._texts[prompt] = [*done, *self._texts[tuple(row)]]
        return self._texts[tuple(row)]
