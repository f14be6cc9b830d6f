"""Record what a drafter would propose at every position of a run's texts, for `replay.py`.

Greedy text does not depend on the drafts. So other trees can be replayed on it exactly, if the proposals are known at
every position, including those inside accepted blocks. To get them, each text is read once more after it was generated;
this is not timed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from specdec.decoding.protocols import (
    Drafter,
    DraftState,
    Kept,
    Session,
    traits_of,
)
from specdec.decoding.sampling import SamplingParams, Streams
from specdec.decoding.stopping import StopRule
from specdec.errors import InputError
from specdec.model.block import Block
from specdec.model.target import TargetModel
from specdec.replay.trace import NOTHING, TextTrace, Trace, TraceOrigin, bytes_per_position, token_type
from specdec.trees.topology import Topology
from specdec.trees.tree import TokenTree

CHUNK = 32  # positions per forward, whose logits are in memory together


@runtime_checkable
class RankingDrafter(Drafter, Protocol):
    """A drafter whose candidates at a depth do not depend on those above, so that any tree of them can be replayed."""

    @property
    def topology(self) -> Topology:
        """Static tree of the drafter; available after `start`."""
        ...

    @property
    def depths(self) -> int:
        """Largest depth at which it can draft; available after `start`."""
        ...

    def candidates(
        self, hidden: Float[Tensor, "rows dim"], ranks: int
    ) -> tuple[Int[Tensor, "rows depths ranks"], Float[Tensor, "rows depths ranks"]]:
        """Return the most probable tokens at every depth below a root, best first, and their log-probabilities.

        Args:
            hidden: the target's last hidden state at the token before the root.
            ranks: number of tokens per depth.
        """
        ...


class Recorder:
    """Record the traces of texts.

    The drafter proposes a tree at every position. If a ranking drafter draws children at random, they are recorded as
    if chosen by rank; other drafters with drawn children are refused.

    Args:
        drafter: the drafter.
        target: the target.
        sampling: how tokens are chosen.
        stop: ends texts.
        ranks: number of candidates to record per distribution.

    Raises:
        InputError: `ranks` is < 1 or larger than the vocabulary, or the drafter uses the target's own layers or learns
            from its trees.
    """

    def __init__(
        self, drafter: Drafter, target: TargetModel, sampling: SamplingParams, stop: StopRule, ranks: int = 16
    ) -> None:
        if not 1 <= ranks <= target.vocab_size:
            expected = f"1 to {target.vocab_size} candidates"
            raise InputError("record_ranks", expected=expected, got=ranks, fix="16 are enough for most trees")
        if traits_of(drafter).exit_layer is not None:
            expected, got = "a drafter with layers of its own", "one that drafts with the target's"
            raise InputError("record", expected=expected, got=got, fix="record another, or use record=false")
        if traits_of(drafter).remembers:
            expected = "a drafter whose tree depends on the text alone"
            got, fix = f"{type(drafter).__name__}, which learns from its trees", "record what it drafts with"
            raise InputError("record", expected=expected, got=got, fix=fix)
        self._drafter, self._target, self._sampling, self._stop = drafter, target, sampling, stop
        self._ranks = ranks
        self._type = token_type(target.vocab_size)
        self._texts: list[TextTrace] = []

    def predicted_bytes(self, texts: int) -> int:
        """Return the largest size of the trace of a number of texts, in bytes before compression."""
        drafter = self._drafter
        depths = drafter.depths if isinstance(drafter, RankingDrafter) else None
        each = bytes_per_position(self._target.vocab_size, self._ranks, depths, drafter.max_nodes - 1)
        return texts * self._stop.max_new_tokens * each

    @torch.inference_mode()
    def add(self, ids: Sequence[int], text: Sequence[int], **names: str | int) -> None:
        """Record one text; texts of fewer than two tokens have no step and are left out.

        Args:
            ids: token ids of the prompt.
            text: new token ids.
            names: prompt, category, turn, repeat and batch, as in `TextTrace`.
        """
        if len(text) < 2:
            return  # no step was made
        row = [*ids, *text]
        roots = range(len(ids), len(row) - 1)  # positions of the trees' roots in `row`
        sampling = self._sampling.bound(self._target.model, [ids], self._stop)
        hidden, best = self._read(row, roots, sampling)
        if isinstance(self._drafter, RankingDrafter):
            proposals = self._candidates(hidden)
        else:
            proposals = self._trees(row, roots, hidden, sampling)
        self._texts.append(
            TextTrace(
                **names,  # type: ignore[arg-type]
                **proposals,  # type: ignore[arg-type]
                prompt_tokens=len(ids),
                tokens=np.array(text, dtype=self._type),
                target_ids=best[1].numpy().astype(self._type),
                target_logp=best[0].numpy().astype(np.float16),
            )
        )

    def trace(self, names: dict[str, str], batch_size: int) -> Trace:
        """Return the trace of all texts that were added.

        Args:
            names: names of drafter and target, as in the summary.
            batch_size: rows per batch of the run.

        Raises:
            InputError: no text of at least two tokens was added.
        """
        if not self._texts:
            fix = "raise generation.max_new_tokens"
            raise InputError("record", expected="a text of two tokens or more", got="none", fix=fix)
        drafter = self._drafter
        ranking = drafter if isinstance(drafter, RankingDrafter) else None
        return Trace(
            TraceOrigin(
                drafter=names["drafter"],
                target=names["target"],
                vocabulary=self._target.vocab_size,
                temperature=self._sampling.temperature,
                max_new_tokens=self._stop.max_new_tokens,
                batch_size=batch_size,
                depths=ranking.depths if ranking else 0,
                ranks=self._ranks,
                tree=[list(path) for path in ranking.topology.paths] if ranking else None,
                parameters=traits_of(drafter).size.parameters if ranking else 0,
            ),
            self._texts,
        )

    def _read(self, row: Sequence[int], roots: range, sampling: SamplingParams) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return the target's hidden state before each root, and (log-probabilities, ids) of its best tokens after it.

        Args:
            row: token ids of prompt and text.
            roots: positions of the roots in `row`.
            sampling: sampling bound to the prompt.
        """
        target = self._target
        cache = target.new_cache(1, len(row))
        hidden = [target.prefill(cache, [row[: roots.start]]).hidden[0, -1:]]
        best = []
        for first in range(roots.start, roots.stop, CHUNK):
            tokens = row[first : min(first + CHUNK, roots.stop)]
            out = target.forward(cache, Block.chain(cache, torch.tensor([tokens], device=target.device)))
            cache.advance([len(tokens)])
            histories = [row[: first + i + 1] for i in range(len(tokens))] if sampling.needs_history else None
            scores = sampling.scores(out.logits[0], histories)
            best.append(scores.log_softmax(-1).topk(self._ranks))
            hidden.append(out.hidden[0])
        values, ids = zip(*best, strict=True)
        return torch.cat(hidden)[: len(roots)], (torch.cat(values).cpu(), torch.cat(ids).cpu())

    def _candidates(self, hidden: Tensor) -> dict[str, np.ndarray]:
        assert isinstance(self._drafter, RankingDrafter)
        ids, logq = [], []
        for part in hidden.split(CHUNK):
            found = self._drafter.candidates(part, self._ranks)
            ids.append(found[0].cpu())
            logq.append(found[1].cpu())
        return {
            "ids": torch.cat(ids).numpy().astype(self._type),
            "logq": torch.cat(logq).float().numpy().astype(np.float16),
        }

    def _trees(
        self, row: Sequence[int], roots: range, hidden: Tensor, sampling: SamplingParams
    ) -> dict[str, np.ndarray]:
        """Return the tree that the drafter proposes at each root, as if each earlier step had accepted nothing.

        Args:
            row: token ids of prompt and text.
            roots: positions of the roots in `row`.
            hidden: the target's last hidden state before each root.
            sampling: sampling bound to the prompt.
        """
        drafter, target, prompt = self._drafter, self._target, row[: roots.start]
        longest = len(prompt) + self._stop.max_new_tokens + drafter.max_nodes
        drafter.start(Session(target, [prompt], sampling, longest, stop=self._stop))
        streams = Streams([[0]], sampling, target.device)
        path = torch.arange(len(prompt), device=target.device)[None]
        trees: list[TokenTree] = []
        for i, root in enumerate(roots):
            state = hidden[None, i : i + 1].expand(-1, path.shape[1], -1)
            kept = Kept(path, state)
            room = self._stop.max_new_tokens - (i + 1)
            tree = drafter.propose(DraftState([row[: root + 1]], kept, [room], streams))
            if tree.probs is not None:
                fix = "record with drafter.children=top_k or generation.temperature=0"
                raise InputError("record", expected="children chosen by rank", got="children that are drawn", fix=fix)
            trees.append(tree)
            path = path.new_zeros(1, 1)
        most = max(tree.nodes for tree in trees) - 1
        nodes = np.full((len(trees), most), NOTHING, dtype=self._type)
        parents = np.full((len(trees), most), NOTHING, dtype=np.int16)
        confidence = np.full((len(trees), most), NOTHING, dtype=np.float16)
        for i, tree in enumerate(trees):
            nodes[i, : tree.nodes - 1] = tree.tokens[0, 1:].cpu().numpy()
            parents[i, : tree.nodes - 1] = tree.parents[0, 1:].cpu().numpy()
            if tree.confidence is not None:
                confidence[i, : tree.nodes - 1] = tree.confidence[0, 1:].cpu().numpy()
        return {"nodes": nodes, "parents": parents, "confidence": confidence}
