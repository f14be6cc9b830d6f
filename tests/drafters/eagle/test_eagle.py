"""EAGLE heads: drafts are made as they were practised, text is the target's own, and heads learn it."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

from drafters.eagle import Eagle
from drafters.eagle.head import EagleHead, fresh_head, load_head, save_head
from drafters.eagle.layers import EagleLayers
from drafters.eagle.recipe import EagleRecipe
from specdec.decoding.generate import autoregressive, speculative
from specdec.decoding.protocols import DraftState
from specdec.decoding.sampling import SamplingParams
from specdec.decoding.stopping import StopRule
from specdec.errors import InputError
from specdec.metrics import StepMetrics
from specdec.model.load import load_tiny
from specdec.model.target import TargetModel
from specdec.training.recipe import Recipe, TrainBatch
from specdec.training.text.features import teacher_forced
from specdec.trees.tree import PAD, TokenTree
from tests.support.families import VOCAB, build
from tests.support.own_text import learn
from verifiers.acceptance.exact import Exact
from verifiers.path_by_path import PathByPath
from verifiers.tree_attention import TreeAttention

GREEDY, NEW = SamplingParams(), 20
PROMPTS = [[5, 6, 7, 8, 5, 6], [9, 3], [11, 12, 13, 14]]
SEEDS = [[0, 0], [0, 1], [0, 2]]


def noisy(head: EagleHead, scale: float = 0.02) -> EagleHead:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return head


@pytest.mark.parametrize("shape", [{"beam": 1, "depth": 4, "nodes": 4}, {"depth": 3, "beam": 3, "nodes": 9}], ids=str)
@pytest.mark.parametrize("vocabulary", [None, torch.arange(0, VOCAB, 2)], ids=["all tokens", "draft vocabulary"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt_neox", "mixtral"])
def test_greedy_text_is_the_targets_own(family: str, vocabulary: Tensor | None, shape: dict) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        target = TargetModel(build(family), name=family)
    stop = StopRule(NEW)
    drafter = Eagle(noisy(fresh_head(target, vocabulary=vocabulary)), **shape)
    done = speculative(PROMPTS, drafter, TreeAttention(target), Exact(), GREEDY, stop, SEEDS)
    assert done.texts == autoregressive(PROMPTS, target, GREEDY, stop, SEEDS).texts
    assert max(step.nodes for step in done.steps) < drafter.max_nodes


@pytest.mark.parametrize("verifier", [TreeAttention, PathByPath])
def test_a_row_is_what_it_would_be_alone(verifier: type) -> None:
    tiny = load_tiny(device="cpu", layers=3)
    for drafter in (Eagle(noisy(fresh_head(tiny)), 3, children="with_replacement"), Eagle(fresh_head(tiny), 3, 2, 6)):
        for sampling in (GREEDY, SamplingParams(temperature=0.9, top_k=30, repetition_penalty=1.1)):
            parts = (verifier(tiny), Exact(), sampling, StopRule(12))
            together = speculative(PROMPTS, drafter, *parts, SEEDS)
            alone = [speculative([p], drafter, *parts, [seed]).texts[0] for p, seed in zip(PROMPTS, SEEDS, strict=True)]
            assert together.texts == alone


def test_drafting_is_what_was_practised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every state drafted from is that of the training passes over the whole text: a level of the tree is a pass."""
    tiny = load_tiny(device="cpu", layers=3)
    head, checked = noisy(fresh_head(tiny, layers=[0, 2])), []

    class Watched(EagleLayers):
        def read_level(self, known: TokenTree, level: int, hidden: Tensor):
            out = super().read_level(known, level, hidden)
            for r, row in enumerate(self.rows):
                for place in range(known.nodes - level, known.nodes):
                    if known.tokens[r, place] == PAD:
                        continue
                    path = [int(n) for n in known.path_to(torch.full((known.batch,), place))[r] if n > 0]
                    ids = torch.tensor([[*row, *known.tokens[r, path].tolist()]])
                    true = teacher_forced(tiny, ids, ["hidden"])["hidden"][:, :-1]
                    with torch.no_grad():
                        state = head(true, ids[:, 1:], len(path) + 1)[-1][0, -1]
                    torch.testing.assert_close(out.hidden[r, place - known.nodes + level], state, atol=1e-4, rtol=1e-3)
                    checked.append(len(path))
            return out

        def read_text(self, state: DraftState):
            self.rows = [list(row) for row in state.rows]
            return super().read_text(state)

    monkeypatch.setattr("drafters.eagle.drafter.EagleLayers", Watched)
    drafter = Eagle(head, depth=4, beam=2, nodes=8)
    done = speculative(PROMPTS, drafter, TreeAttention(tiny), Exact(), GREEDY, StopRule(NEW), SEEDS)
    assert {1, 2, 3} == set(checked)
    assert len({step.accepted for step in done.steps}) > 1


def test_a_long_prompt_is_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = load_tiny(device="cpu", layers=3)
    drafter = Eagle(noisy(fresh_head(tiny)), depth=3)
    parts = (TreeAttention(tiny), Exact(), GREEDY, StopRule(8), SEEDS)
    whole = speculative(PROMPTS, drafter, *parts)
    monkeypatch.setattr("drafters.eagle.layers.PREFILL_CHUNK", 2)
    again = speculative(PROMPTS, drafter, *parts)
    assert [(s.row, s.accepted) for s in again.steps] == [(s.row, s.accepted) for s in whole.steps]


def test_heads_learn_to_draft_several_levels(target: TargetModel, batch: TrainBatch) -> None:
    made = EagleRecipe(steps=3)
    assert isinstance(made, Recipe)
    torch.manual_seed(0)
    module = made.build(target, torch.bincount(batch.tokens[batch.answer], minlength=target.vocab_size))

    def acceptance() -> list[float]:
        prompts = batch.tokens[:, :3].tolist()
        parts = (made.drafter(module, target), TreeAttention(target), Exact(), GREEDY, StopRule(40))
        return StepMetrics.of(speculative(prompts, *parts, [[0]] * len(prompts)).steps).acceptance_at_depth

    before = acceptance()
    losses = learn(made, module, target, batch, steps=80)
    assert losses[-1] < 0.5 * losses[0]
    after = acceptance()
    assert after[0] > before[0] + 0.1
    assert min(after[:3]) > 0.4
    assert not any(p.grad is not None for p in target.model.parameters())


def test_the_loss_reads_nothing_ahead(target: TargetModel, batch: TrainBatch) -> None:
    """A pass's state at t depends on hidden states before its root only, and on tokens up to t + 1."""
    module = noisy(fresh_head(target))
    hidden, tokens = batch.features["hidden"][:1, :-1], batch.tokens[:1, 1:]
    for number, states in enumerate(module(hidden.clone().requires_grad_(), tokens, 3)):
        given = hidden.clone().requires_grad_()
        states = module(given, tokens, number + 1)[number]
        states[0, 20].sum().backward()
        read = given.grad[0].abs().sum(-1) > 0
        assert read[: 21 - number].all()
        assert not read[21 - number :].any()


def test_a_head_comes_back_from_its_folder(target: TargetModel, tmp_path: Path) -> None:
    made = noisy(fresh_head(target, [0, -1], torch.tensor([3, 9, 80])))
    save_head(made, target, tmp_path)
    read = load_head(tmp_path, target)
    assert read.vocabulary.tolist() == [3, 9, 80]
    for name, tensor in made.state_dict().items():
        torch.testing.assert_close(read.state_dict()[name].to(tensor), tensor, atol=1e-3, rtol=1e-3)
    with pytest.raises(InputError, match="expected one for a target built like llama, got one for 'tiny'"):
        load_head(tmp_path, TargetModel(build("llama"), name="llama"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Eagle("nowhere"), "drafter.head: expected a folder with drafter.json"),
        (Eagle, "drafter.head=auto: expected a target that eagle weights are shipped for"),
        (lambda: Eagle("fresh", depth=0), "drafter.depth: expected an integer >= 1, got 0"),
        (lambda: Eagle("fresh", children="best"), "drafter.children: expected one of"),
        (lambda: EagleRecipe(steps=0), "recipe.steps: expected an integer >= 1, got 0"),
        (lambda: EagleRecipe(decay=0.0), "recipe.decay: expected a number in (0, 1], got 0.0"),
    ],
)
def test_bad_input(tiny: TargetModel, make, message: str) -> None:
    with pytest.raises(InputError) as error:
        speculative(PROMPTS, make(), TreeAttention(tiny), Exact(), GREEDY, StopRule(4), SEEDS)
    assert message in str(error.value)
