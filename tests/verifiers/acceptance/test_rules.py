"""Every rule keeps its promises besides its distribution: rows do not touch each other, greedy stays greedy, the
torch path at a real vocabulary draws from p."""

from __future__ import annotations

import pytest
import torch
from hydra.utils import instantiate
from scipy.stats import chisquare
from torch import Tensor

from experiments.common.parts import part
from specdec.decoding.generate import greedy_verdict
from specdec.decoding.grow_fixed import CHILDREN
from specdec.decoding.protocols import AcceptanceRule, ExactFor, Scores, exact_for
from specdec.decoding.sampling import SamplingParams, UniformDraws, draw_without_replacement
from specdec.exactness.enumeration import shape_of
from specdec.trees.tree import PAD, TokenTree
from tests.support.configs import group
from verifiers.acceptance.typical import Typical

ALL: list[AcceptanceRule] = [instantiate(part("acceptance", choice)) for choice in group("acceptance")]
LOSSLESS = [rule for rule in ALL if rule.lossless]
ANY = ExactFor(CHILDREN)  # a lossy rule takes every tree
DECLARED = [(rule, how) for rule in ALL for how in (exact_for(rule) if rule.lossless else ANY).children]
by_name = pytest.mark.parametrize("rule", ALL, ids=lambda rule: rule.name)
READING_P = [rule for rule in ALL if rule.name != "forced"]  # that one keeps nodes whatever p says of them


def drawn_tree(parents: list[int], q: Tensor, how: str, draws: UniformDraws) -> TokenTree:
    """Every node's children drawn from q [batch nodes vocab]; or ("top_k") the most likely tokens."""
    tokens = torch.zeros(q.shape[:2], dtype=torch.long)
    for node in range(len(parents)):
        children = [i for i, parent in enumerate(parents) if parent == node]
        if not children:
            continue
        if how == "top_k":
            tokens[:, children] = q[:, node].topk(len(children)).indices
        elif how == "without_replacement":
            tokens[:, children] = draw_without_replacement(q[:, node], len(children), draws, children[0])
        else:
            for child in children:
                tokens[:, child] = draws.categorical(q[:, node], child)
    shape = torch.tensor(parents).expand(len(q), -1).clone()
    return TokenTree(tokens, shape, None if how == "top_k" else q, replacement=how != "without_replacement")


def close_distributions(*shape: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(shape, generator=generator, dtype=torch.float64)
    other = logits + 0.7 * torch.randn(shape, generator=generator, dtype=torch.float64)
    return logits.softmax(-1), other.softmax(-1)


def only_chains(rule: AcceptanceRule) -> bool:
    return rule.lossless and not exact_for(rule).siblings


def uniforms(batch: int, slots: int, seed: int) -> UniformDraws:
    return UniformDraws(torch.rand(batch, slots, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


@pytest.mark.parametrize(
    ("rule", "how"),
    DECLARED,
    ids=lambda v: getattr(v, "name", v),
)
@pytest.mark.parametrize("seed", range(3))
def test_rows_are_decided_alone(rule: AcceptanceRule, how: str, seed: int) -> None:
    """Rows of different depths, as clipping leaves them; same uniforms alone and in a batch."""
    batch, parents = 12, shape_of([1] * 6 if only_chains(rule) else [3, 2, 1])
    p, q = close_distributions(batch, len(parents), 6, seed=seed)
    tree = drawn_tree(parents, q, how, uniforms(batch, len(parents), seed + 100))
    tree = tree.clip(torch.arange(batch) % 4)
    draws = uniforms(batch, len(parents), seed + 200)
    together = rule.accept(tree, p, draws)
    for row in range(batch):
        mine = slice(row, row + 1)
        q_row = None if tree.probs is None else tree.probs[mine]
        alone = TokenTree(tree.tokens[mine], tree.parents[mine], q_row, tree.replacement)
        verdict = rule.accept(alone, p[mine], UniformDraws(draws.uniforms[mine]))
        assert verdict.path.tolist() == together.path[mine].tolist()
        assert verdict.next_token.tolist() == together.next_token[mine].tolist()


@by_name
def test_rows_of_different_shapes(rule: AcceptanceRule) -> None:
    """Deterministic trees of their own shape per row (an n-gram drafter's): padding changes nothing."""
    if only_chains(rule):
        shapes = [[-1, 0, 1, 2], [-1], [-1, 0], [-1, 0, 1, 2, 3]]
    else:
        shapes = [[-1, 0, 1, 1, 0, 4], [-1], [-1, 0, 0, 0], [-1, 0, 1, 2, 0, 4, 4]]
    tokens = [[0, *((7 * i + r) % 6 for i in range(1, len(shape)))] for r, shape in enumerate(shapes)]
    tree = TokenTree.from_rows(tokens, shapes)
    p, _ = close_distributions(len(shapes), tree.nodes, 6, seed=4)
    for seed in range(20):
        draws = uniforms(len(shapes), tree.nodes, seed)
        together = rule.accept(tree, p, draws)
        for row, shape in enumerate(shapes):
            size = len(shape)
            alone = TokenTree(tree.tokens[row : row + 1, :size], tree.parents[row : row + 1, :size])
            own = UniformDraws(draws.uniforms[row : row + 1, :size])
            verdict = rule.accept(alone, p[row : row + 1, :size], own)
            assert verdict.path[0].tolist() == together.path[row, :size].tolist()
            assert verdict.next_token[0] == together.next_token[row]


@pytest.mark.parametrize("rule", READING_P, ids=lambda rule: rule.name)
@pytest.mark.parametrize("widths", [(1, 1, 1), (3, 2)])
def test_temperature_zero_keeps_the_greedy_path(rule: AcceptanceRule, widths: tuple[int, ...]) -> None:
    """One-hot p, deterministic children: every rule keeps the path of the argmax, then emits the argmax. So does what
    the loop does instead of asking."""
    parents = shape_of([1] * 4 if only_chains(rule) else widths)
    for seed in range(20):
        p, q = close_distributions(1, len(parents), 5, seed=seed)
        greedy = torch.zeros_like(p).scatter_(-1, p.argmax(-1, keepdim=True), 1.0)
        tree = drawn_tree(parents, q, "top_k", uniforms(1, 1, 0))
        verdict = rule.accept(tree, greedy, uniforms(1, len(parents), seed))
        short_cut = greedy_verdict(tree, Scores(p.log(), torch.zeros(1, len(parents), 1), SamplingParams()))
        assert short_cut.path.tolist() == verdict.path.tolist()
        assert short_cut.next_token.tolist() == verdict.next_token.tolist()
        node, path = 0, [0]
        while True:
            best = int(p[0, node].argmax())
            matching = [c for c, parent in enumerate(parents) if parent == node and tree.tokens[0, c] == best]
            if not matching:
                break
            node = matching[0]
            path.append(node)
        assert verdict.path[0, : len(path)].tolist() == path
        assert (verdict.path[0, len(path) :] == PAD).all()
        assert int(verdict.next_token) == best


def test_labelled_correctly() -> None:
    assert {rule.name for rule in ALL if not rule.lossless} == {"forced", "greedy", "typical"}


def test_typical_samples_the_next_token() -> None:
    p = torch.tensor([[[0.5, 0.3, 0.2]]], dtype=torch.float64).expand(4000, 1, 3)
    tree = TokenTree.root_only(torch.zeros(4000, dtype=torch.long))
    counts = Typical(epsilon=0.09, alpha=0.3).accept(tree, p, uniforms(4000, 1, 0)).next_token.bincount(minlength=3)
    assert chisquare(counts.numpy(), [2000, 1200, 800]).pvalue > FALSE_ALARM


def test_typical_threshold() -> None:
    """At (almost) uniform p over 4 tokens exp(-H) is (a little above) 0.25; 0.22 lies below 0.95 of that, 0.25 not."""
    p = torch.full((1, 2, 4), 0.25, dtype=torch.float64)
    tree = TokenTree.from_rows([[0, 0]], [[-1, 0]])
    rule = Typical(epsilon=0.3, alpha=0.95)
    assert rule.accept(tree, p, uniforms(1, 2, 0)).path.tolist() == [[0, 1]]
    skewed = torch.tensor([[[0.22, 0.26, 0.26, 0.26]] * 2], dtype=torch.float64)
    assert rule.accept(tree, skewed, uniforms(1, 2, 0)).path.tolist() == [[0, -1]]


VOCAB = 49_152  # the embedded model's
FALSE_ALARM = 1e-10  # a right rule fails one of the tests below with at most this probability each
SAMPLES, CHUNK, BINS = 1000, 50, 16


@pytest.mark.parametrize(
    ("rule", "how"),
    [(rule, how) for rule, how in DECLARED if rule.lossless],
    ids=lambda v: getattr(v, "name", v),
)
def test_first_token_at_a_real_vocabulary(rule: AcceptanceRule, how: str) -> None:
    """Chi-square on the torch path in fp32: the first emitted token of a step follows p, over bins of tokens."""
    generator = torch.Generator().manual_seed(11)
    parents = shape_of([1, 1] if only_chains(rule) else [2, 1])
    logits = 3 * torch.randn(len(parents), VOCAB, generator=generator)
    p, q = logits.softmax(-1), (logits + torch.randn(len(parents), VOCAB, generator=generator)).softmax(-1)
    bins = torch.randint(BINS - 8, (VOCAB,), generator=generator)
    bins[p[0].topk(8).indices] = torch.arange(BINS - 8, BINS)  # the likely tokens by themselves
    counts = torch.zeros(BINS, dtype=torch.long)
    for chunk in range(SAMPLES // CHUNK):
        q_rows, p_rows = (x.expand(CHUNK, -1, -1) for x in (q, p))
        tree = drawn_tree(parents, q_rows, how, uniforms(CHUNK, len(parents), 2 * chunk))
        verdict = rule.accept(tree, p_rows, uniforms(CHUNK, len(parents), 2 * chunk + 1))
        accepted = tree.tokens.gather(1, verdict.path[:, 1:2].clamp(min=0))[:, 0]
        first = torch.where(verdict.path[:, 1] == PAD, verdict.next_token, accepted)
        counts += bins[first].bincount(minlength=BINS)
    expected = torch.zeros(BINS, dtype=torch.float64).index_add_(0, bins, p[0].double())
    assert expected.min() * SAMPLES > 5  # or chi-square would not hold
    assert chisquare(counts.numpy(), (expected / expected.sum() * SAMPLES).numpy()).pvalue > FALSE_ALARM


def test_without_replacement_draws_each_token_once() -> None:
    q = torch.tensor([[0.5, 0.0, 0.5, 0.0], [0.1, 0.2, 0.3, 0.4]]).expand(2, 4)
    tokens = draw_without_replacement(q, 4, uniforms(2, 5, 1), first_slot=1)
    assert sorted(tokens[0].tolist()) == [PAD, PAD, 0, 2]
    assert tokens[0, 2:].tolist() == [PAD, PAD]
    assert sorted(tokens[1].tolist()) == [0, 1, 2, 3]
    assert q[0].tolist() == [0.5, 0.0, 0.5, 0.0]  # untouched
