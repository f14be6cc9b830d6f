"""Replay a recorded run with adaptive trees: the same choice of nodes, without a model or a clock."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

import numpy as np

from drafters.adaptive.choice import NodeChoice
from drafters.shared.estimates import SILENT, Estimates, Proposal
from specdec.errors import InputError
from specdec.replay.replay import Costs, Replay, batches, right_nodes
from specdec.replay.trace import NOTHING, TextTrace, Trace, TraceOrigin
from specdec.trees.topology import Topology


def replay_adaptive(trace: Trace, costs: Costs, temperature: float | None = None) -> Replay:
    """Replay a run in which each step keeps the nodes of the recorded tree that pay.

    Every step drafts as deep as the recorded one.

    Args:
        trace: the recorded run.
        costs: seconds of a verify and of drafting.
        temperature: None means that of the run; only 0 is supported.

    Raises:
        InputError: a temperature other than 0.
    """
    if temperature := trace.origin.temperature if temperature is None else temperature:
        fix = "replay a greedy run"
        raise InputError("temperature", expected="0, for adaptive trees", got=temperature, fix=fix)
    estimates, steps, nodes = Estimates(), np.zeros(len(trace.texts), dtype=np.int64), []
    for batch in batches(trace).values():
        drafted = _batch([trace.texts[i] for i in batch], trace.origin, costs, estimates)
        steps[batch] = (drafted >= 0).sum(0)
        nodes.append(drafted.clip(min=0))
    tokens = np.array([text.positions for text in trace.texts])
    return Replay(trace, steps, tokens, nodes, [], exact=False)


def _batch(texts: Sequence[TextTrace], origin: TraceOrigin, costs: Costs, estimates: Estimates) -> np.ndarray:
    """Return the number of drafted nodes [steps rows], -1 after the end of a text.

    Args:
        texts: the recorded texts of one batch.
        origin: options of the recorded run.
        costs: seconds of a verify and of drafting.
        estimates: P(right | parent right); learns from every proposal.
    """
    topology = None if origin.tree is None else Topology.of(origin.tree)
    most = topology.nodes if topology else 1 + max(text.nodes.shape[1] for text in texts if text.nodes is not None)
    rows, context = len(texts), max(text.prompt_tokens for text in texts)
    verify = np.array([costs.verify.seconds(n, rows, context) for n in range(1, most + 1)])
    right = [right_nodes(text, topology or most) for text in texts]
    written, at, found = [text.tokens.tolist() for text in texts], [0] * rows, []
    choice = NodeChoice([0] * rows, verify, estimates, skips_padding=not costs.padded)
    while any(i < text.positions for i, text in zip(at, texts, strict=True)):
        room = [origin.max_new_tokens - (i + 1) if i < text.positions else 0 for i, text in zip(at, texts, strict=True)]
        choice.read([tokens[: i + 1] for i, tokens in zip(at, written, strict=True)], room)
        proposals = [_proposal(text, min(i, text.positions - 1), topology) for i, text in zip(at, texts, strict=True)]
        deepest = max((proposal.shape.levels for proposal in proposals), key=len)
        drafting = costs.draft.seconds([len(level) for level in deepest], rows, context)
        kept, _ = choice.choose(proposals, room, drafting)
        found.append([len(nodes) - 1 if left > 0 else NOTHING for nodes, left in zip(kept, room, strict=True)])
        for row, left in enumerate(room):
            if left > 0:
                path = takewhile(set(kept[row]).__contains__, right[row][at[row]].tolist())
                at[row] = min(at[row] + 1 + len(list(path)), texts[row].positions)
    return np.array(found, dtype=np.int64)


def _proposal(text: TextTrace, at: int, tree: Topology | None) -> Proposal:
    root = int(text.tokens[at])
    if tree is not None:
        assert text.ids is not None
        assert text.logq is not None
        depth, rank = np.array([(len(path) - 1, path[-1]) for path in tree.paths]).T
        sure = np.exp(text.logq[at, depth, rank].astype(np.float64)).tolist()
        return Proposal([root, *text.ids[at, depth, rank].tolist()], tree.parents.tolist(), [1.0, *sure])
    assert text.nodes is not None
    assert text.parents is not None
    there = text.nodes[at] >= 0
    sure = [SILENT] * int(there.sum()) if text.confidence is None else text.confidence[at, there].tolist()
    return Proposal([root, *text.nodes[at, there].tolist()], [-1, *text.parents[at, there].tolist()], [1.0, *sure])
