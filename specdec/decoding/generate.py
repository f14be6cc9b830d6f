"""The decoding loop (draft, verify, accept, commit), and plain autoregressive decoding.

Both use the same target, kernel, cache, sampling and stopping, so that a speedup compares like with like. This module
handles token ids only: no tokenizer, no files.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specdec.decoding.checks import require_finite
from specdec.decoding.clock import PhaseClock
from specdec.decoding.protocols import (
    AcceptanceRule,
    Drafter,
    DraftState,
    Kept,
    Rows,
    Scores,
    Session,
    Verdict,
    Verified,
    Verifier,
    traits_of,
)
from specdec.decoding.sampling import RandomStreams, SamplingParams, Streams
from specdec.decoding.stopping import StopRule
from specdec.decoding.validation import require_valid
from specdec.errors import InputError
from specdec.metrics import StepRecord
from specdec.model.block import Block, TargetOutput
from specdec.model.runtime.graphs import captures_postponed
from specdec.model.target import TargetModel
from specdec.trees.transfer import on_device
from specdec.trees.tree import PAD, TokenTree

Blocks = Sequence[Sequence[int]]  # per row, the tokens that a step appended


@dataclass(frozen=True)
class Generation:
    """The texts of a batch.

    Args:
        texts: new token ids of each row.
        seconds: wall time of the batch, prompts included.
        prefill_seconds: the part of `seconds` until the first tokens.
        steps: one record per step and live row.
    """

    texts: list[list[int]]
    seconds: float
    prefill_seconds: float
    steps: list[StepRecord]


@torch.inference_mode()
@captures_postponed()
def speculative(
    prompts: Rows,
    drafter: Drafter,
    verifier: Verifier,
    rule: AcceptanceRule,
    sampling: SamplingParams,
    stop: StopRule,
    seeds: Sequence[Sequence[int]] | RandomStreams,
    steps: list[StepRecord] | None = None,
    validate: bool = False,
    on_blocks: Callable[[Blocks], None] | None = None,
) -> Generation:
    """Generate a batch with a drafter.

    Each row's text has the same distribution as if it were generated alone. In fp32 it is the same text, if the
    drafter's trees depend on that row alone. Two kinds of trees depend on the other rows: sampled early exit numbers
    nodes by the longest row, and adaptive trees learn from all rows. Lower precision rounds differently in another
    batch.

    Args:
        prompts: token ids, of any lengths.
        drafter: proposes trees.
        verifier: scores them with the target.
        rule: decides which nodes are kept.
        sampling: how tokens are chosen.
        stop: when a text ends.
        seeds: a sequence of integers per row, or the streams that the draws come from.
        steps: a list to which records are appended as they are made, so that they survive an interrupt.
        validate: check every proposed tree (`specdec.decoding.validation`), which waits for the device.
        on_blocks: called with each row's new tokens, once after the prompts and once after every step.

    Raises:
        InputError: an empty prompt, one too long for the context window, a batch too large for memory, or a tree that
            is not valid.
    """
    target, begun = verifier.target, time.perf_counter()
    steps = [] if steps is None else steps
    capacity = longest_text(prompts, stop, target.context_window) + drafter.max_nodes
    target.rope.require_one_side(prompts, stop.max_new_tokens, target.name)
    progress = Progress(prompts, stop, on_blocks)
    sampling = sampling.bound(target.model, prompts, stop)
    random = None if rule.lossless else True  # a lossy rule may draw at temperature 0 too
    streams = seeds if isinstance(seeds, RandomStreams) else Streams(seeds, sampling, target.device, random)
    clock = PhaseClock(target.device)

    traits = traits_of(drafter)
    scores = verifier.prefill(progress.rows, sampling, capacity, traits.exit_layer)
    verified = _verified(TokenTree.root_only(_last_tokens(prompts, target.device)), scores, traits.top_k)
    first = _next_token(scores, streams, progress)
    kept = Kept(_positions(prompts, target.device), scores.hidden, scores.residual, [len(row) for row in prompts])
    progress.emit([[token] for token in first.tolist()])
    prefill_seconds = time.perf_counter() - begun
    drafter.start(Session(target, prompts, sampling, capacity, verifier.begin, stop))

    clock.start()
    while any(progress.room):
        tree = drafter.propose(DraftState(progress.rows, kept, progress.room, streams, verified))
        if validate:
            require_valid(tree, drafter, progress.rows, progress.steps, target.vocab_size)
        tree = _within_room(tree, progress.room)
        clock.lap("draft")

        scores = verifier.verify(tree, progress.rows)
        clock.lap("verify")

        if sampling.greedy and rule.lossless:
            verdict = greedy_verdict(tree, scores)
        else:
            verdict = rule.accept(tree, scores.probs, streams.draws(progress.lengths, Streams.ACCEPT, tree.nodes))
        outcome = Outcome.read(tree, verdict)  # the one wait for the device in a step
        clock.lap("accept")

        live = [r for r, room in enumerate(progress.room) if room]
        blocks = progress.emit(outcome.blocks)
        kept = _kept(verdict, scores, [len(block) for block in blocks])
        verified = _verified(tree, scores, traits.top_k)
        verifier.commit(kept.path, [len(block) for block in blocks])
        clock.lap("commit")
        steps += outcome.records(progress.steps, live, blocks, clock.take())
    clock.finish()
    return Generation(progress.texts, time.perf_counter() - begun, prefill_seconds, steps)


@torch.inference_mode()
@captures_postponed()
def autoregressive(
    prompts: Rows, target: TargetModel, sampling: SamplingParams, stop: StopRule, seeds: Sequence[Sequence[int]]
) -> Generation:
    """Generate a batch token by token: the baseline of every speedup.

    Arguments as in `speculative`.
    """
    begun = time.perf_counter()
    target.rope.require_one_side(prompts, stop.max_new_tokens, target.name)
    progress = Progress(prompts, stop)
    sampling = sampling.bound(target.model, prompts, stop)
    streams = Streams(seeds, sampling, target.device)
    cache = target.lend_cache(target, len(prompts), longest_text(prompts, stop, target.context_window))

    def sample(out: TargetOutput) -> Tensor:
        logits = sampling.scores(out.logits[:, 0], progress.rows)
        return _next_token(Scores(logits[:, None], out.hidden, sampling), streams, progress)

    token = sample(target.prefill(cache, prompts))
    progress.emit([[t] for t in token.tolist()])
    prefill_seconds = time.perf_counter() - begun
    while any(progress.room):
        token = sample(target.forward(cache, Block.chain(cache, token[:, None])))
        cache.advance([1 if room else 0 for room in progress.room])
        progress.emit([[t] for t in token.tolist()])
    return Generation(progress.texts, time.perf_counter() - begun, prefill_seconds, [])


def greedy_verdict(tree: TokenTree, scores: Scores) -> Verdict:
    """Keep the longest path of argmax tokens.

    At temperature 0 p is one-hot, and every lossless rule keeps this path; `specdec.exactness` compares rules with it.
    Allocates nothing of vocabulary size.
    """
    best = scores.argmax
    require_finite((best >= 0) | ~tree.valid)
    node = tree.deepest(tree.tokens == best.gather(1, tree.parents.clamp(min=0)))
    return Verdict(tree.path_to(node), best.gather(1, node[:, None])[:, 0])


class Progress:
    """The state of each row of a batch.

    Attributes:
        rows: committed tokens, the root last.
        texts: new tokens.
        room: how many tokens each row may still emit; 0 once its text has ended.
        steps: number of the current step, counted from 0; -1 before the first.
    """

    def __init__(self, prompts: Rows, stop: StopRule, on_blocks: Callable[[Blocks], None] | None = None) -> None:
        self._stop, self._on_blocks = stop, on_blocks
        self.rows = [list(prompt) for prompt in prompts]
        self.texts: list[list[int]] = [[] for _ in prompts]
        self.room = [stop.max_new_tokens] * len(self.rows)
        self.steps = -1  # the prompt's forward is not a step

    @property
    def lengths(self) -> list[int]:
        return [len(row) for row in self.rows]

    def emit(self, blocks: Sequence[Sequence[int]]) -> list[list[int]]:
        """Append a block of tokens to each live row, cut where its text ends. Return the appended tokens."""
        self.steps += 1
        emitted = []
        for r, (row, text) in enumerate(zip(self.rows, self.texts, strict=True)):
            block, ended = self._stop.cut(text, blocks[r]) if self.room[r] else ([], True)
            row += block
            text += block
            self.room[r] = 0 if ended else self._stop.max_new_tokens - len(text)
            emitted.append(block)
        if self._on_blocks is not None:
            self._on_blocks(emitted)
        return emitted


@dataclass(frozen=True)
class Outcome:
    """The decision of a step, on the host.

    Args:
        paths: kept nodes of each row, root first.
        blocks: tokens of each row: the accepted ones and the next one.
        offered: depth of each row's tree.
        nodes: number of drafted nodes of each row.
        parents: parents of each row's tree.
    """

    paths: list[list[int]]
    blocks: list[list[int]]
    offered: list[int]
    nodes: list[int]
    parents: list[list[int]]

    @classmethod
    def read(cls, tree: TokenTree, verdict: Verdict) -> Outcome:
        """Read all that the host must know, in one transfer."""
        width = verdict.path.shape[1]
        tokens = tree.tokens.gather(1, verdict.path.clamp(min=0))
        counts = torch.stack([verdict.next_token, tree.offered, tree.valid.sum(-1) - 1], 1)
        table = torch.cat([verdict.path, tokens, tree.parents, counts], 1).tolist()
        paths = [[node for node in row[:width] if node != PAD] for row in table]
        blocks = [[*row[width + 1 : width + len(path)], row[-3]] for row, path in zip(table, paths, strict=True)]
        parents = [row[2 * width : -3] for row in table]
        return cls(paths, blocks, [row[-2] for row in table], [row[-1] for row in table], parents)

    def records(
        self, step: int, live: Sequence[int], emitted: Sequence[list[int]], ms: dict[str, float]
    ) -> list[StepRecord]:
        """Return one record per live row. Nodes behind the end of a text are not counted.

        Args:
            step: number of the step.
            live: rows that were not finished before the step.
            emitted: appended tokens of every row.
            ms: milliseconds of each phase.
        """
        records = []
        for r in live:
            accepted = min(len(self.paths[r]) - 1, len(emitted[r]))
            whole = len(emitted[r]) == len(self.blocks[r])
            offered = self.offered[r] if whole else accepted  # nodes past the end of a text were not judged
            kept, parents = self.paths[r][: accepted + 1], self.parents[r]
            records.append(
                StepRecord(
                    r, step, len(live), self.nodes[r], offered, accepted, len(emitted[r]), kept, emitted[r], ms, parents
                )
            )
        return records


SHORTEN = "shorten the prompt or lower generation.max_new_tokens"


def longest_text(prompts: Rows, stop: StopRule, window: int | None, what: str = "prompt", fix: str = SHORTEN) -> int:
    """Return the length in tokens of the longest prompt with its text.

    Args:
        prompts: token ids.
        stop: when a text ends.
        window: context window in tokens, or None if unlimited.
        what: name used in error messages.
        fix: advice used in error messages.

    Raises:
        InputError: an empty prompt, or one that leaves no room for its text in the context window.
    """
    longest = max((len(prompt) for prompt in prompts), default=0)
    if not all(prompts) or longest == 0:
        raise InputError(what, expected="at least one token", got="an empty prompt", fix="remove it or write one")
    total = longest + stop.max_new_tokens
    if window is not None and total > window:
        raise InputError(
            what,
            expected=f"prompt and new tokens within the context window of {window} tokens",
            got=f"{longest} + {stop.max_new_tokens}",
            fix=fix,
        )
    return total


def _within_room(tree: TokenTree, room: Sequence[int]) -> TokenTree:
    """Cut nodes that cannot be kept because the text ends before them. A finished row keeps only its root."""
    if tree.nodes < min(room):
        return tree
    return tree.clip(on_device([max(r - 1, 0) for r in room], tree.tokens.device))


def _kept(verdict: Verdict, scores: Scores, counts: Sequence[int]) -> Kept:
    """Cut a verdict to the nodes that were emitted, and add the target's features of these."""
    width = max(counts)
    order = torch.arange(width, device=verdict.path.device)
    within = order < on_device(list(counts), verdict.path.device)[:, None]
    path = torch.where(within, verdict.path[:, :width], PAD)
    index = path.clamp(min=0)[..., None]

    def of_path(features: Tensor) -> Tensor:
        return features.gather(1, index.expand(-1, -1, features.shape[-1]))

    residual = None if scores.residual is None else of_path(scores.residual)
    return Kept(path, of_path(scores.hidden), residual, counts)


def _verified(tree: TokenTree, scores: Scores, top_k: int) -> Verified | None:
    """Return the target's `top_k` most likely tokens at every node, or None if 0 are wanted."""
    return Verified(tree, *scores.top(top_k)) if top_k else None


def _last_tokens(prompts: Rows, device: torch.device) -> Tensor:
    return torch.tensor([prompt[-1] for prompt in prompts], device=device)


def _positions(prompts: Rows, device: torch.device) -> Tensor:
    """Return the positions of each prompt's tokens, padded with -1, [batch longest]."""
    longest = max(map(len, prompts))
    return on_device([[*range(len(p)), *[PAD] * (longest - len(p))] for p in prompts], device)


def _next_token(scores: Scores, streams: RandomStreams, progress: Progress) -> Tensor:
    """Choose the token after each text when no tree was drafted."""
    if scores.sampling.greedy:
        require_finite(scores.argmax >= 0)
        return scores.argmax[:, 0]
    return streams.draws(progress.lengths, Streams.ACCEPT, 1).categorical(scores.probs[:, 0], 0)
