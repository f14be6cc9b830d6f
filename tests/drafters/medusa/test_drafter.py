"""Proposals against a second implementation, heads that are right at the right positions, and every rule."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from drafters.medusa import Medusa
from drafters.medusa.formats import write_official
from drafters.medusa.heads import MedusaHeads
from drafters.shared import shipped
from specdec.decoding.generate import autoregressive, speculative
from specdec.decoding.protocols import AcceptanceRule, DraftState, Kept, Session
from specdec.decoding.sampling import SamplingParams, Streams
from specdec.decoding.stopping import StopRule
from specdec.errors import InputError
from specdec.metrics import StepMetrics
from specdec.model.target import TargetModel
from specdec.trees.tree import PAD, TokenTree
from tests.drafters.medusa.made import logits_by_hand, perfect_heads, random_heads
from verifiers.acceptance.exact import Exact
from verifiers.acceptance.spectr import SpecTr
from verifiers.acceptance.traversal import Traversal
from verifiers.acceptance.without_replacement import WithoutReplacement
from verifiers.tree_attention import TreeAttention

PROMPTS = [[5, 6, 7], [8, 9], [40, 41, 42, 43, 44], [200]]
PATHS = [[0], [1], [2], [0, 0], [0, 1], [1, 0], [0, 0, 0], [1, 0, 1]]
GREEDY, WARM = SamplingParams(), SamplingParams(temperature=0.9, top_p=0.95)
TOKENS = torch.arange(0, 258, 2)


def seeds(count: int) -> list[list[int]]:
    return [[0, row] for row in range(count)]


def run(drafter: Medusa, target: TargetModel, rule: AcceptanceRule, sampling: SamplingParams, prompts=PROMPTS, new=16):
    stop = StopRule(new, target.eos)
    return speculative(prompts, drafter, TreeAttention(target), rule, sampling, stop, seeds(len(prompts)))


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("batch", [1, 4])
def test_heads_that_are_always_right_draft_whole_paths(tiny: TargetModel, heads: int, batch: int) -> None:
    """Head i reads the state that predicts the root and guesses the token i + 1 places after the root: one place
    off, and next to nothing would be accepted. tau is K + 1: all heads, and the bonus token."""
    new = 1 + 3 * (heads + 1)  # the first token comes from the prompt's forward; then three whole steps
    made = perfect_heads(tiny, PROMPTS[:batch], heads, new)
    chain = [[0] * depth for depth in range(1, heads + 1)]
    stop = StopRule(new)
    drafter, parts = Medusa(made, chain), (Exact(), GREEDY, stop, seeds(batch))
    done = speculative(PROMPTS[:batch], drafter, TreeAttention(tiny), *parts)
    metrics = StepMetrics.of(done.steps)
    assert metrics.tokens_per_step == heads + 1
    assert metrics.acceptance_rate == 1.0
    assert done.texts == autoregressive(PROMPTS[:batch], tiny, GREEDY, stop, seeds(batch)).texts


@dataclass
class Watched:
    """A drafter whose every proposal is compared with what the definition says."""

    drafter: Medusa
    heads: MedusaHeads
    target: TargetModel
    compared: list[int] = field(default_factory=list)

    @property
    def max_nodes(self) -> int:
        return self.drafter.max_nodes

    def start(self, session: Session) -> None:
        self.drafter.start(session)

    def propose(self, state: DraftState) -> TokenTree:
        tree = self.drafter.propose(state)
        tree.validate(self.target.vocab_size)
        for row, (text, room) in enumerate(zip(state.rows, state.room, strict=True)):
            if room and max(state.room) > 1:  # else nothing is left to draft for
                assert dict(zip(*self.by_hand(text), strict=True)) == self.paths_of(tree, row)
                self.compared.append(row)
        return tree

    def by_hand(self, text) -> tuple[list, list]:
        """Tokens of every index path after a committed text whose last token is the root."""
        before = list(text)[:-1]
        hidden = self.target.prefill(self.target.new_cache(1, len(before)), [before]).hidden[0, -1]
        ranked = [logits_by_hand(self.heads, self.target, hidden, head).argsort(descending=True) for head in range(3)]
        drafted = [tuple(int(ranked[depth][rank]) for depth, rank in enumerate(path)) for path in PATHS]
        return [(), *drafted], [text[-1], *(path[-1] for path in drafted)]

    @staticmethod
    def paths_of(tree: TokenTree, row: int) -> dict[tuple[int, ...], int]:
        tokens, parents = tree.tokens[row].tolist(), tree.parents[row].tolist()
        paths: list[tuple[int, ...]] = []
        for token, parent in zip(tokens, parents, strict=True):
            paths.append(() if parent < 0 else (*paths[parent], token))
        return dict(zip(paths, tokens, strict=True))


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("vocabulary", [None, TOKENS], ids=["whole", "draft vocabulary"])
def test_every_proposal_is_what_the_definition_says(
    tiny: TargetModel, own: bool, vocabulary: torch.Tensor | None
) -> None:
    """Through a batch of prompts of different lengths, whose rows accept different numbers of tokens and end early."""
    made = random_heads(tiny, 3, 2, own, vocabulary)
    watched = Watched(Medusa(made, PATHS), made, tiny)
    stop = StopRule(16, tiny.eos)
    done = speculative(PROMPTS, watched, TreeAttention(tiny), Exact(), GREEDY, stop, seeds(4))
    assert done.texts == autoregressive(PROMPTS, tiny, GREEDY, stop, seeds(4)).texts
    assert set(watched.compared) == {0, 1, 2, 3}
    assert len({step.emitted for step in done.steps}) > 1
    if vocabulary is not None:
        drafted = {token for step in done.steps for token in step.tokens[: step.accepted]}
        assert drafted <= set(vocabulary.tolist())


RULES = [
    (Exact(), "top_k"),
    (WithoutReplacement(), "top_k"),
    (SpecTr(), "top_k"),
    (Traversal(), "top_k"),
    (Exact(), "with_replacement"),
    (SpecTr(), "with_replacement"),
    (Traversal(), "with_replacement"),
    (WithoutReplacement(), "without_replacement"),
    (Traversal(), "without_replacement"),
]


@pytest.mark.parametrize(("rule", "children"), RULES, ids=lambda v: getattr(v, "name", v))
def test_sampled_text_of_a_row_is_what_it_would_be_alone(
    tiny: TargetModel, rule: AcceptanceRule, children: str
) -> None:
    vocabulary = None if children == "top_k" else TOKENS
    drafter = Medusa(random_heads(tiny, 3, vocabulary=vocabulary), PATHS, children)
    together = run(drafter, tiny, rule, WARM).texts
    stop = StopRule(16, tiny.eos)
    for row, prompt in enumerate(PROMPTS):
        alone = speculative([prompt], drafter, TreeAttention(tiny), rule, WARM, stop, [[0, row]])
        assert alone.texts[0] == together[row]


@pytest.mark.parametrize("children", ["top_k", "with_replacement", "without_replacement"])
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_text_is_the_targets_own_however_children_are_chosen(
    tiny: TargetModel, children: str, penalty: float
) -> None:
    sampling, stop = SamplingParams(repetition_penalty=penalty), StopRule(16, tiny.eos)
    done = run(Medusa(random_heads(tiny, 3), PATHS, children), tiny, Exact(), sampling)
    assert done.texts == autoregressive(PROMPTS, tiny, sampling, stop, seeds(4)).texts


def proposal(drafter: Medusa, target: TargetModel, sampling: SamplingParams, seed: int) -> TokenTree:
    rows = [[1, 2, 3], [4, 5, 6]]
    out = target.prefill(target.new_cache(2, 8), [row[:-1] for row in rows])
    drafter.start(Session(target, rows, sampling, 32))
    return drafter.propose(
        DraftState(
            rows,
            Kept(torch.tensor([[0, 1], [0, 1]]), out.hidden),
            [9, 9],
            Streams([[seed], [seed + 1]], sampling, target.device),
        )
    )


@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_drawn_children_come_from_q_and_q_from_the_heads(tiny: TargetModel, penalty: float) -> None:
    sampling = SamplingParams(temperature=0.7, top_k=3, repetition_penalty=penalty)
    made = random_heads(tiny, 2, vocabulary=TOKENS)
    drafter = Medusa(made, [[0], [1], [0, 0], [1, 0]], "with_replacement")
    tree = proposal(drafter, tiny, sampling, 0)
    assert tree.probs is not None
    hidden = tiny.prefill(tiny.new_cache(1, 2), [[1, 2]]).hidden[0, -1]
    for node, head in ((0, 0), (1, 1), (2, 1)):
        expected = sampling.probabilities(logits_by_hand(made, tiny, hidden, head)[None], [[1, 2, 3]])[0]
        torch.testing.assert_close(tree.probs[0, node], expected, atol=1e-5, rtol=1e-4)
    assert not tree.probs[:, 3:].any()
    drawn = torch.cat([proposal(drafter, tiny, sampling, seed).tokens[:1, 1:3].flatten() for seed in range(0, 200, 2)])
    often = torch.bincount(drawn, minlength=tiny.vocab_size) / len(drawn)
    # 200 draws: a share has a standard deviation of at most 0.036; 0.22 is six of them, chance below 1e-8
    assert (often - tree.probs[0, 0]).abs().max() < 0.22


def test_siblings_drawn_without_replacement_differ_and_missing_ones_are_padding(tiny: TargetModel) -> None:
    sampling = SamplingParams(temperature=1.0, top_k=2)
    drafter = Medusa(random_heads(tiny, 2), [[0], [1], [2], [0, 0], [2, 0]], "without_replacement")
    tree = proposal(drafter, tiny, sampling, 0)
    tree.validate(tiny.vocab_size)
    assert not tree.replacement
    assert (tree.tokens[:, 1] != tree.tokens[:, 2]).all()
    assert (tree.tokens == PAD).tolist() == [[False, False, False, True, False, True]] * 2


def test_an_only_child_has_no_siblings(tiny: TargetModel) -> None:
    chain = Medusa(random_heads(tiny, 2), [[0], [0, 0]], "without_replacement")
    assert proposal(chain, tiny, SamplingParams(temperature=1.0), 0).replacement


def test_a_number_of_nodes_is_a_tree(tiny: TargetModel) -> None:
    drafter = Medusa(random_heads(tiny, 2), 9)
    assert drafter.max_nodes == 10
    tree = proposal(drafter, tiny, GREEDY, 0)
    assert tree.nodes == 10
    assert int(tree.depth.max()) == 2


def test_heads_are_read_once_and_again_for_another_target(tiny: TargetModel, tmp_path: Path) -> None:
    write_official(random_heads(tiny, 2), tmp_path, "tiny")
    drafter = Medusa(str(tmp_path), 4)
    first = proposal(drafter, tiny, GREEDY, 0)
    (tmp_path / "medusa_lm_head.safetensors").unlink()
    assert torch.equal(proposal(drafter, tiny, GREEDY, 0).tokens, first.tokens)


def test_heads_shipped_for_a_target_are_found_by_its_name(
    tiny: TargetModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipped, "WEIGHTS", tmp_path)
    with pytest.raises(InputError) as error:
        proposal(Medusa("auto"), tiny, GREEDY, 0)
    assert str(error.value) == (
        "drafter.heads=auto: expected a target that medusa weights are shipped for (none so far), got tiny; train some "
        "with `python -m experiments.train drafter=medusa target=...` and pass drafter.heads=FOLDER"
    )
    write_official(random_heads(tiny, 2), tmp_path / "tiny" / "medusa", "tiny")
    assert proposal(Medusa("auto", 3), tiny, GREEDY, 0).nodes == 4


def test_a_tree_deeper_than_the_heads_is_refused(tiny: TargetModel) -> None:
    with pytest.raises(InputError) as error:
        proposal(Medusa(random_heads(tiny, 2), PATHS), tiny, GREEDY, 0)
    assert str(error.value) == (
        "drafter.tree: expected paths of at most 2, one for each head, got one of 3; "
        "prune the tree, or train more heads"
    )


def test_more_candidates_than_tokens_are_refused(tiny: TargetModel) -> None:
    few = random_heads(tiny, 2, vocabulary=torch.tensor([3, 4]))
    with pytest.raises(InputError, match=r"drafter.tree: expected candidates among the 2 tokens the heads know, got 3"):
        proposal(Medusa(few, [[0], [1], [2]]), tiny, GREEDY, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tree": 0}, "drafter.tree: expected at least one node, got 0; raise it"),
        ({"tree": [[0], [1, 0]]}, "drafter.tree: expected every path's parent among the paths, got [1, 0] without [1]"),
        ({"tree": "nowhere.yaml"}, "drafter.tree: expected a YAML file with index paths, got 'nowhere.yaml'"),
        ({"children": "twins"}, "drafter.children: expected one of with_replacement, without_replacement, top_k, got"),
    ],
)
def test_options_out_of_range_are_named(options: dict, message: str) -> None:
    with pytest.raises(InputError) as error:
        Medusa(**options)
    assert message in str(error.value)


def test_heads_that_are_nowhere_are_named(tiny: TargetModel, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"drafter.heads: expected in .* one of medusa_lm_head.safetensors, .* none of"
    ):
        proposal(Medusa(str(tmp_path)), tiny, GREEDY, 0)
