"""Compare acceptance rules on the same trees.

The comparison follows texts that the target generated alone. At every position a drafter proposes a tree, the target
scores it once, and every rule judges it several times with different draws; then the text continues with its own next
token. So only the rules differ. In separate runs each rule would lead to other prefixes and therefore to other trees.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from specdec.decoding.generate import Outcome, autoregressive, longest_text
from specdec.decoding.protocols import (
    AcceptanceRule,
    Drafter,
    DraftState,
    Kept,
    Scores,
    Session,
    Verifier,
    traits_of,
)
from specdec.decoding.sampling import SamplingParams, Streams
from specdec.decoding.stopping import StopRule
from specdec.exactness.rules import require_greedy
from specdec.intervals import bootstrap_tau
from specdec.metrics import StepMetrics, StepRecord
from specdec.trees.tree import TokenTree


@dataclass(frozen=True)
class Trees:
    """A drafter, whose trees are called `name` in results, and the rules that judge its trees."""

    name: str
    drafter: Drafter
    rules: Sequence[AcceptanceRule]


@dataclass(frozen=True)
class RuleComparison:
    """Compare acceptance rules on the same trees.

    Args:
        verifier: scores the trees.
        prompts: token ids of each prompt.
        stop: ends the texts.
        draws: number of times that each rule judges each tree.
        seed: seed of texts, drafts and rules.
    """

    verifier: Verifier
    prompts: Sequence[Sequence[int]]
    stop: StopRule
    draws: int
    seed: int = 0

    def run(self, trees: Trees, sampling: SamplingParams) -> list[dict[str, Any]]:
        """Return one dict per rule: tau with its interval over prompts, acceptance by depth, accept time per step.

        Raises:
            InputError: a lossless rule keeps other tokens than the greedy verdict at temperature 0.
        """
        judged: dict[str, list[list[StepRecord]]] = {rule.name: [] for rule in trees.rules}
        for number, prompt in enumerate(self.prompts):
            for of_rule in judged.values():
                of_rule.append([])
            for position, (tree, scores) in enumerate(self._walk(trees.drafter, prompt, sampling, number)):
                for rule in trees.rules:
                    if sampling.greedy and rule.lossless:
                        require_greedy(rule, tree, scores)
                    judged[rule.name][-1] += self._judge(rule, tree, scores.probs, sampling, (number, position))
        return [self._figures(rule, trees, sampling, judged[rule.name]) for rule in trees.rules]

    @torch.inference_mode()
    def _walk(
        self, drafter: Drafter, prompt: Sequence[int], sampling: SamplingParams, number: int
    ) -> Iterator[tuple[TokenTree, Scores]]:
        """Yield the tree at every position of the text, with the target's scores of its nodes.

        Args:
            drafter: proposes the trees.
            prompt: token ids.
            sampling: how tokens are chosen.
            number: index of the prompt.
        """
        target, seeds = self.verifier.target, [[self.seed, number]]
        sampling = sampling.bound(target.model, [prompt], self.stop)
        (text,) = autoregressive([prompt], target, sampling, self.stop, seeds).texts
        capacity = longest_text([prompt], self.stop, target.context_window) + drafter.max_nodes
        streams = Streams(seeds, sampling, target.device)
        scores = self.verifier.prefill([prompt], sampling, capacity, traits_of(drafter).exit_layer)
        drafter.start(Session(target, [prompt], sampling, capacity, self.verifier.begin, self.stop))
        path = torch.arange(len(prompt), device=target.device)[None]
        for i in range(len(text)):
            row = [*prompt, *text[: i + 1]]
            residual = None if scores.residual is None else scores.residual[:, : path.shape[1]]
            kept = Kept(path, scores.hidden[:, : path.shape[1]], residual)
            tree = drafter.propose(DraftState([row], kept, [drafter.max_nodes + 1], streams))
            scores = self.verifier.verify(tree, [row])
            yield tree, scores
            path = torch.zeros(1, 1, dtype=torch.long, device=target.device)  # only the root is kept
            self.verifier.commit(path, [1])

    def _judge(
        self,
        rule: AcceptanceRule,
        tree: TokenTree,
        probs: torch.Tensor,
        sampling: SamplingParams,
        place: tuple[int, int],
    ) -> list[StepRecord]:
        records = []
        streams = Streams([[self.seed, *place]], sampling, probs.device, None if rule.lossless else True)
        for repeat in range(self.draws):
            draws = streams.draws([repeat], Streams.ACCEPT, tree.nodes)
            begun = time.perf_counter()
            verdict = rule.accept(tree, probs, draws)
            outcome = Outcome.read(tree, verdict)
            ms = {"draft": 0.0, "verify": 0.0, "accept": 1e3 * (time.perf_counter() - begun), "commit": 0.0}
            records += outcome.records(place[1], [0], outcome.blocks, ms)
        return records

    @staticmethod
    def _figures(
        rule: AcceptanceRule, trees: Trees, sampling: SamplingParams, judged: Sequence[Sequence[StepRecord]]
    ) -> dict[str, Any]:
        metrics = StepMetrics.of([record for of_prompt in judged for record in of_prompt])
        emitted = [sum(record.emitted for record in of_prompt) for of_prompt in judged]
        tau, interval = bootstrap_tau(emitted, [len(of_prompt) for of_prompt in judged])
        return {
            "trees": trees.name,
            "rule": rule.name,
            "lossless": rule.lossless,
            "temperature": sampling.temperature,
            "tokens_per_step": tau,
            "tokens_per_step_ci95": interval,
            "acceptance_at_depth": metrics.acceptance_at_depth,
            "accept_ms": metrics.phase_ms["accept"],
            "judgements": metrics.steps,
        }
