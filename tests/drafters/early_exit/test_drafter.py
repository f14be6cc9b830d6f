"""Drafting with the target's own first layers: the target's text, the target's own keys and values, nothing twice."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from drafters.early_exit import EarlyExit
from drafters.early_exit.adapter import ExitAdapter, fresh_adapter, load_adapter, save_adapter
from specdec.decoding.generate import autoregressive, speculative
from specdec.decoding.grow_fixed import TreeShape
from specdec.decoding.protocols import traits_of
from specdec.decoding.sampling import Draws, SamplingParams
from specdec.decoding.stopping import StopRule
from specdec.errors import InputError
from specdec.exactness.cases import KINDS, tables
from specdec.exactness.enumeration import Tables, emission, shape_of
from specdec.metrics import StepMetrics
from specdec.model.load import load_tiny
from specdec.model.target import TargetModel
from specdec.trees.tree import PAD, TokenTree
from tests.support.families import VOCAB, build
from verifiers.acceptance.exact import Exact
from verifiers.path_by_path import PathByPath
from verifiers.tree_attention import TreeAttention

GREEDY, NEW = SamplingParams(), 20
PROMPTS = [[5, 6, 7, 8, 5, 6], [9, 3], [11, 12, 13, 14]]
SEEDS = [[0, 0], [0, 1], [0, 2]]
SOME = torch.arange(0, VOCAB, 2)


@pytest.fixture(scope="module", params=["llama", "qwen3", "gpt_neox", "mixtral"])
def target(request: pytest.FixtureRequest) -> TargetModel:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return TargetModel(build(request.param), name=request.param)


def noisy(adapter: ExitAdapter, scale: float = 0.05) -> ExitAdapter:
    """Different from any layer of the target, so that drafts are sometimes wrong."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return adapter


EXITS: dict[str, Callable[[TargetModel], str | ExitAdapter]] = {
    "plain": lambda target: "plain",
    "block": lambda target: noisy(fresh_adapter(target, 1, blocks=2)),
    "block, draft vocabulary": lambda target: noisy(fresh_adapter(target, 1, blocks=1, vocabulary=SOME)),
    "rest of the layers": lambda target: fresh_adapter(target, 1, layers=[1, 2]),
    "layer, draft vocabulary": lambda target: noisy(fresh_adapter(target, 1, layers=[-1], vocabulary=SOME)),
}


@pytest.mark.parametrize("shape", [{"depth": 4}, {"depth": 3, "beam": 3, "nodes": 9, "threshold": 0.02}], ids=str)
@pytest.mark.parametrize("exit_", EXITS)
def test_greedy_text_is_the_targets_own(target: TargetModel, exit_: str, shape: dict) -> None:
    stop = StopRule(NEW)
    expected = autoregressive(PROMPTS, target, GREEDY, stop, SEEDS).texts
    drafter = EarlyExit(1, EXITS[exit_](target), **shape)
    assert traits_of(drafter).exit_layer is not None
    done = speculative(PROMPTS, drafter, TreeAttention(target), Exact(), GREEDY, stop, SEEDS)
    assert done.texts == expected
    metrics = StepMetrics.of(done.steps)
    assert metrics.acceptance_rate is not None
    if (
        exit_ == "rest of the layers"
    ):  # the adapter is the rest of the target: right every time, or its cache has a hole
        assert metrics.acceptance_rate == 1.0
    assert max(step.nodes for step in done.steps) < drafter.max_nodes


@pytest.mark.parametrize("verifier", [TreeAttention, PathByPath])
def test_a_row_is_what_it_would_be_alone(verifier: type) -> None:
    """Greedy and sampled, also through the verifier that computes everything anew: what the drafter gets from the
    fast one is what the stock model says."""
    tiny = load_tiny(device="cpu", layers=3)
    drafter = EarlyExit(
        2, noisy(fresh_adapter(tiny, 2, layers=[2]), 0.02), depth=3, threshold=0.05, children="with_replacement"
    )
    for sampling in (GREEDY, SamplingParams(temperature=0.9, top_k=30, repetition_penalty=1.1)):
        parts = (verifier(tiny), Exact(), sampling, StopRule(12))
        together = speculative(PROMPTS, drafter, *parts, SEEDS)
        alone = [speculative([p], drafter, *parts, [seed]).texts[0] for p, seed in zip(PROMPTS, SEEDS, strict=True)]
        assert together.texts == alone
        assert 0 < (StepMetrics.of(together.steps).acceptance_rate or 0) < 1


def test_an_adapters_cache_has_no_hole() -> None:
    """Every logit drafted from equals the adapter run over the whole text at once."""
    tiny = load_tiny(device="cpu", layers=3)
    adapter = noisy(fresh_adapter(tiny, 1, layers=[1, 2]), 0.01)
    drafter, checked = EarlyExit(1, adapter, depth=3, beam=2, nodes=8), []
    session_begin = TreeAttention.begin

    class Watching(TreeAttention):
        def begin(self, tree: TokenTree, rows, new: int) -> Tensor:
            self.now = (tree, [list(row) for row in rows], new)
            return session_begin(self, tree, rows, new)

    verifier = Watching(tiny)
    drafter.start_again = drafter.start  # type: ignore[attr-defined]

    def start(session) -> None:
        EarlyExit.start(drafter, session)
        logits = drafter._exit.logits

        def watched(known: TokenTree, residual: Tensor) -> Tensor:
            ours, (tree, rows, new) = logits(known, residual), verifier.now
            for r, row in enumerate(rows):
                for place in range(tree.nodes - new, tree.nodes):
                    if tree.tokens[r, place] == PAD:
                        continue
                    path = [int(n) for n in tree.path_to(torch.full((tree.batch,), place))[r] if n > 0]
                    ids = torch.tensor([[*row, *tree.tokens[r, path].tolist()]])
                    with tiny.stock() as model, torch.no_grad():
                        states = model.base_model(input_ids=ids, output_hidden_states=True).hidden_states[1]
                        theirs = adapter(states)[0, -1] @ model.get_output_embeddings().weight.T
                    torch.testing.assert_close(ours[r, place - tree.nodes + new], theirs, atol=1e-4, rtol=1e-4)
                    checked.append(place)
            return ours

        drafter._exit.logits = watched

    drafter.start = start  # type: ignore[method-assign]
    done = speculative(PROMPTS, drafter, verifier, Exact(), GREEDY, StopRule(NEW), SEEDS)
    assert len(checked) > 60
    assert len({step.accepted for step in done.steps}) > 2  # nothing, something and more were accepted


def test_nothing_is_stored_or_computed_twice() -> None:
    """The lower layers see each node once, whether while drafting or verifying, and share the target's tensors."""
    tiny = load_tiny(device="cpu", layers=3, runtime="stock")
    ours = {p.data_ptr() for p in tiny.model.parameters()}
    adapter = fresh_adapter(tiny, 1, layers=[-1])
    trained = {p.data_ptr() for p in adapter.parameters()}
    assert not trained & ours
    assert {p.data_ptr() for p in adapter.student.as_model(tiny).parameters()} <= trained | ours
    calls: list[tuple[int, int]] = []
    for number, layer in enumerate(tiny.model.model.layers):
        layer.register_forward_hook(lambda _m, args, _o, n=number: calls.append((n, args[0].shape[1])))
    drafter = EarlyExit(1, "plain", depth=3)
    done = speculative(PROMPTS[:1], drafter, TreeAttention(tiny), Exact(), GREEDY, StopRule(NEW), SEEDS[:1])
    steps, nodes = len(done.steps), sum(step.nodes + 1 for step in done.steps)
    prompt = len(PROMPTS[0])
    for layer in range(3):
        assert sum(count for n, count in calls if n == layer) == prompt + nodes
    assert sum(n == 2 for n, _ in calls) == 1 + steps  # one upper half a step


def test_a_threshold_shortens_drafts() -> None:
    tiny = load_tiny(device="cpu", layers=3)
    offered = []
    for threshold in (0.0, 0.02, 0.9):
        drafter = EarlyExit(2, "plain", depth=5, nodes=5, threshold=threshold)
        done = speculative(PROMPTS, drafter, TreeAttention(tiny), Exact(), GREEDY, StopRule(NEW), SEEDS)
        offered.append(sum(step.nodes for step in done.steps) / len(done.steps))
    assert offered[0] > offered[1] > offered[2] > 0


@pytest.mark.parametrize("threshold", [0.2, 0.5])
@pytest.mark.parametrize("kind", KINDS)
def test_stopping_by_confidence_is_exact(kind: str, threshold: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chain drawn from q that is not continued below unlikely nodes leaves the target's distribution as it is."""
    stopped = []

    @dataclass
    class WithOneMore:
        """A row more, which never stops: the others' decisions must not depend on when all of them have."""

        draws: Draws

        def categorical(self, probs: Tensor, slot: int) -> Tensor:
            return torch.cat([self.draws.categorical(probs[:-1], slot), torch.zeros(1, dtype=torch.long)])

        def bernoulli(self, probs: Tensor, slot: int) -> Tensor:
            raise NotImplementedError

    def draft(parents: list[int], q: Tables, how: str, draws: Draws, rows: int) -> TokenTree:
        def next_q(known: TokenTree, level: int) -> Tensor:
            prefix = torch.zeros(rows, dtype=torch.long)
            for token in known.tokens[:-1, 1:].unbind(1):
                prefix = prefix * q.vocab + token.clamp(min=0)
            sure = torch.eye(q.vocab, dtype=torch.float64)[:1]
            return torch.cat([q.after(prefix, known.nodes - 1), sure])[:, None]

        chain, root = TreeShape([1] * (len(parents) - 1), how), torch.zeros(rows + 1, dtype=torch.long)
        tree = chain.grow(root, next_q, WithOneMore(draws), chain.depth, how, threshold)
        stopped.append(bool((tree.tokens == PAD).any()))
        return TokenTree(tree.tokens[:-1], tree.parents[:-1], tree.probs[:-1])

    monkeypatch.setattr("specdec.exactness.enumeration.draft", draft)
    widths = (1, 1, 1)
    assert len(shape_of(widths)) == 4
    p, q = tables(kind, 3, 3, seed=4)
    assert float((emission(Exact(), widths, p, q, "with_replacement").joint - p.joint()).abs().max()) < 1e-12
    assert any(stopped) or kind == "disjoint"  # there q is sure of every token


@pytest.mark.parametrize("kind", ["block", "layer"])
def test_an_adapter_comes_back_from_its_folder(tmp_path: Path, kind: str) -> None:
    tiny = load_tiny(device="cpu", layers=3)
    made = noisy(
        fresh_adapter(tiny, 2, blocks=2 if kind == "block" else 0, layers=[0, -1], vocabulary=torch.tensor([3, 9, 80]))
    )
    save_adapter(made, tiny, tmp_path)
    read = load_adapter(tmp_path, tiny)
    assert (read.exit_layer, read.blocks, read.student is None) == (2, made.blocks, made.student is None)
    for name, tensor in made.state_dict().items():
        torch.testing.assert_close(read.state_dict()[name].to(tensor), tensor, atol=1e-3, rtol=1e-3)
    other = load_tiny(device="cpu", layers=3, seed=1)
    with pytest.warns(UserWarning, match="drafter.adapter: trained on other weights"):
        load_adapter(tmp_path, other)
    with pytest.raises(InputError, match="expected one for a target built like llama, got one for 'tiny'"):
        load_adapter(tmp_path, TargetModel(build("llama"), name="llama"))
    file = tmp_path / "drafter.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"expected a folder with drafter.json and drafter.safetensors .*Error"):
        load_adapter(tmp_path, tiny)


def drafted(drafter: EarlyExit, target: TargetModel) -> None:
    speculative(PROMPTS, drafter, TreeAttention(target), Exact(), GREEDY, StopRule(4), SEEDS)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda tiny: EarlyExit(2),
            "drafter.exit_layer: expected 1 to 1, fewer than the 2 layers of the target tiny, got 2",
        ),
        (lambda tiny: EarlyExit(0), "drafter.exit_layer: expected 1 to 1"),
        (
            lambda tiny: EarlyExit(1, fresh_adapter(load_tiny(device="cpu", layers=4), 3)),
            "drafter.adapter: expected an adapter for drafter.exit_layer=1, got one that was trained for 3",
        ),
        (lambda tiny: EarlyExit(1, "nowhere"), "drafter.adapter: expected a folder with drafter.json"),
        (
            lambda tiny: EarlyExit(1, "auto"),
            "drafter.adapter=auto: expected a target that early_exit weights are shipped",
        ),
        (lambda tiny: EarlyExit(1, depth=0), "drafter.depth: expected an integer >= 1, got 0"),
        (lambda tiny: EarlyExit(1, threshold=1.0), "drafter.threshold: expected a probability in [0, 1), got 1.0"),
        (lambda tiny: EarlyExit(1, children="best"), "drafter.children: expected one of"),
        (lambda tiny: fresh_adapter(tiny, 1, layers=[2]), "recipe.layers: expected layers of the target tiny"),
        (lambda tiny: fresh_adapter(tiny, 1, layers=[]), "recipe.layers: expected layers of the target tiny"),
    ],
)
def test_bad_input(tiny: TargetModel, make: Callable[[TargetModel], EarlyExit], message: str) -> None:
    with pytest.raises(InputError) as error:
        drafted(make(tiny), tiny)
    assert message in str(error.value)
