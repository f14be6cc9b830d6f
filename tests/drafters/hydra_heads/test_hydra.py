"""Hydra heads: what they read, that drafting is what was trained, and that text is the target's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from drafters.hydra_heads import Hydra
from drafters.hydra_heads.heads import HydraHeads, fresh_prefix, load_heads, save_heads
from drafters.hydra_heads.recipe import HydraRecipe
from drafters.medusa.formats import write_official
from drafters.medusa.heads import MedusaHeads, output_weight
from specdec.decoding.generate import autoregressive, speculative
from specdec.decoding.protocols import DraftState
from specdec.decoding.sampling import SamplingParams
from specdec.decoding.stopping import StopRule
from specdec.errors import InputError
from specdec.metrics import StepMetrics
from specdec.model.target import TargetModel
from specdec.training.recipe import Recipe, TrainBatch
from specdec.training.text.features import teacher_forced
from specdec.trees.tree import PAD
from tests.drafters.medusa.made import random_heads
from tests.support.families import VOCAB, build
from tests.support.own_text import learn
from verifiers.acceptance.exact import Exact
from verifiers.path_by_path import PathByPath
from verifiers.tree_attention import TreeAttention

GREEDY, NEW = SamplingParams(), 20
PROMPTS = [[5, 6, 7, 8, 5, 6], [9, 3], [11, 12, 13, 14]]
SEEDS = [[0, 0], [0, 1], [0, 2]]


def made(
    target: TargetModel,
    heads: int = 4,
    layers: int = 1,
    own: bool = False,
    vocabulary: Tensor | None = None,
    prefix: bool = False,
) -> HydraHeads:
    """Heads that look at everything they are given."""
    medusa = random_heads(target, heads, layers, own, vocabulary)
    hydra = HydraHeads.of(medusa, fresh_prefix(target, [-1]) if prefix else None)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        hydra.join += 0.1 * torch.randn(hydra.join.shape, generator=generator)
        if prefix:
            for parameter in (hydra.mix, *hydra.prefix.parameters()):
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return hydra


def entering_by_hand(heads: HydraHeads, target: TargetModel, row: list[int]) -> Tensor:
    """Return the input of the heads behind a text whose last token is the root, from a forward over all of it."""
    ids = torch.tensor([row])
    hidden = teacher_forced(target, ids, ["hidden"])["hidden"][:, :-1]
    if heads.prefix is None:
        return hidden[0, -1]
    with torch.no_grad():
        (states,) = heads.prefix(hidden, ids[:, 1:], 1)
        return hidden[0, -1] + heads.mix @ states[0, -1]


def logits_by_hand(heads: HydraHeads, target: TargetModel, hidden: Tensor, path: list[int]) -> Tensor:
    """Return q of the head that reads so many tokens, over the tokens it knows, one token after the other."""
    head, x = len(path) - 1, hidden.clone()
    for place, token in enumerate(path):
        x += heads.join[head * (head + 1) // 2 + place] @ target.model.get_input_embeddings().weight[token]
    for layer in range(heads.layers):
        y = heads.weight[layer, head] @ x + heads.bias[layer, head]
        x = x + y / (1 + torch.exp(-y))
    output = output_weight(target) if heads.output is None else heads.output[head]
    if heads.output is None and heads.vocabulary is not None:
        output = output[heads.vocabulary]
    return output @ x


@pytest.mark.parametrize(
    "options",
    [{}, {"layers": 2, "vocabulary": torch.arange(0, VOCAB, 2)}, {"own": True}, {"prefix": True}],
    ids=["", "vocabulary", "own", "prefix"],
)
def test_a_tree_holds_what_the_heads_say_of_every_path(options: dict) -> None:
    target = TargetModel(build("llama"), name="llama")
    heads, checked = made(target, **options), set()

    class Watched(Hydra):
        def propose(self, state: DraftState):
            tree = super().propose(state)
            for r, row in enumerate(state.rows):
                hidden = entering_by_hand(heads, target, list(row))
                for node in range(1, tree.nodes):
                    if tree.tokens[r, node] == PAD:
                        continue
                    parent = torch.full((tree.batch,), int(tree.parents[r, node]))
                    path = [int(n) for n in tree.path_to(parent)[r] if n > 0]
                    tokens = [row[-1], *tree.tokens[r, path].tolist()]
                    q = logits_by_hand(heads, target, hidden, tokens).softmax(-1)
                    column = int(tree.tokens[r, node])
                    if heads.vocabulary is not None:
                        column = heads.vocabulary.tolist().index(column)
                    assert float(tree.confidence[r, node]) == pytest.approx(float(q[column]), rel=1e-3)
                    checked.add(len(tokens))
            return tree

    stop = StopRule(NEW)
    done = speculative(PROMPTS, Watched(heads, 4, 3, 30, 0.0), TreeAttention(target), Exact(), GREEDY, stop, SEEDS)
    assert done.texts == autoregressive(PROMPTS, target, GREEDY, stop, SEEDS).texts
    assert checked == {1, 2, 3, 4}


@pytest.mark.parametrize("verifier", [TreeAttention, PathByPath])
def test_a_row_is_what_it_would_be_alone(tiny: TargetModel, verifier: type) -> None:
    vocabulary = torch.arange(0, tiny.vocab_size, 3)
    heads, informed = made(tiny, vocabulary=vocabulary), made(tiny, prefix=True)
    for drafter in (
        Hydra(heads, 3, children="with_replacement"),
        Hydra(informed, 3, 2, 6, 0.0),
        Hydra(heads, 4, 1, 4, 0.0),
    ):
        for sampling in (GREEDY, SamplingParams(temperature=0.9, top_k=30, repetition_penalty=1.1)):
            parts = (verifier(tiny), Exact(), sampling, StopRule(12))
            together = speculative(PROMPTS, drafter, *parts, SEEDS)
            alone = [speculative([p], drafter, *parts, [seed]).texts[0] for p, seed in zip(PROMPTS, SEEDS, strict=True)]
            assert together.texts == alone


def test_fresh_heads_are_the_medusa_heads_they_are_made_of(tiny: TargetModel) -> None:
    medusa = random_heads(tiny, 3, 2, vocabulary=torch.tensor([2, 7, 11]))
    hydra = HydraHeads.of(medusa, fresh_prefix(tiny, [0, -1]))
    hidden, path = torch.randn(5, medusa.dim), torch.randint(0, tiny.vocab_size, (5, 3))
    assert torch.equal(hydra.guesses(hidden, path, tiny), medusa(hidden))
    assert torch.equal(hydra.entering(hidden[None], path[None, :, 0]), hidden[None])


def test_a_head_reads_no_token_it_has_to_guess(target: TargetModel) -> None:
    """Head i reads tokens t + 1 to t + 1 + i, and each of them."""
    heads, hidden = made(target), torch.randn(1, output_weight(target).shape[1])
    path = torch.tensor([[1, 2, 3, 4]])
    for place in range(4):
        other = path.clone()
        other[0, place] = 9
        changed = (heads.guesses(hidden, path, target) != heads.guesses(hidden, other, target)).any(-1)[:, 0]
        assert changed.tolist() == [head >= place for head in range(4)]


def test_a_prefix_reads_no_token_a_head_has_to_guess(target: TargetModel) -> None:
    """At t it reads h up to t, and the tokens up to t + 1."""
    heads, dim = made(target, prefix=True), output_weight(target).shape[1]
    hidden, tokens = torch.randn(1, 9, dim, requires_grad=True), torch.arange(9)[None]
    (read,) = torch.autograd.grad(heads.entering(hidden, tokens)[0, 4].sum(), hidden)
    assert (read[0].abs().sum(-1) > 0).tolist() == [True] * 5 + [False] * 4
    for place in range(9):
        other = tokens.clone()
        other[0, place] = 20
        changed = not torch.equal(heads.entering(hidden, other)[0, 4], heads.entering(hidden, tokens)[0, 4])
        assert changed == (1 <= place <= 5)


@pytest.mark.parametrize("prefix", [False, True])
def test_the_loss_is_of_the_tokens_that_came(target: TargetModel, batch: TrainBatch, prefix: bool) -> None:
    heads, decay = made(target, 3, prefix=prefix), 0.7
    loss = HydraRecipe(heads=3, decay=decay).loss(heads, target, batch).loss
    expected, roots = 0.0, 0
    entering = heads.entering(batch.features["hidden"], batch.tokens).detach()
    for tokens, answer, hidden in zip(batch.tokens, batch.answer, entering, strict=True):
        for t in range(len(tokens) - 2):
            if not (answer[t + 1] and answer[t + 2]):
                continue
            roots += 1
            for head in range(3):
                if t + 2 + head >= len(tokens) or not answer[t + 1 : t + 3 + head].all():
                    break
                logits = logits_by_hand(heads, target, hidden[t], tokens[t + 1 : t + 2 + head].tolist())
                expected += decay ** (head + 1) * float(F.cross_entropy(logits.detach(), tokens[t + 2 + head]))
    assert float(loss.weight) == roots
    assert float(loss.total.detach()) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("options", [{}, {"vocabulary": 80, "soft": 0.3, "prefix": [-1]}], ids=str)
def test_heads_learn_the_targets_text(target: TargetModel, batch: TrainBatch, tmp_path: Path, options: dict) -> None:
    recipe = HydraRecipe(heads=3, **options)
    assert isinstance(recipe, Recipe)
    module = recipe.build(target, torch.bincount(batch.tokens[batch.answer], minlength=target.vocab_size))

    def tau(drafter: Hydra) -> float:
        prompts = batch.tokens[:, :3].tolist()
        parts = (drafter, TreeAttention(target), Exact(), GREEDY, StopRule(40), [[0]] * len(prompts))
        return StepMetrics.of(speculative(prompts, *parts).steps).tokens_per_step or 0.0

    before = tau(Hydra(module, 3))
    losses = learn(recipe, module, target, batch, steps=80)
    assert losses[-1] < 0.7 * losses[0]  # soft labels leave the target's own entropy
    drafter = recipe.drafter(module, target)
    assert isinstance(drafter, Hydra)
    after = tau(drafter)
    assert after > max(1.5, before + 0.3)
    recipe.save(module, target, tmp_path)
    again = Hydra(str(tmp_path), 3, recipe.beam, recipe.nodes, 0.0)
    assert tau(again) == pytest.approx(after, abs=0.1)


def test_training_goes_on_from_either_kind_of_heads(tiny: TargetModel, tmp_path: Path) -> None:
    medusa, hydra = random_heads(tiny, 2), made(tiny, 3, 2, vocabulary=torch.tensor([3, 9, 80]))
    for folder in ("medusa", "hydra"):
        (tmp_path / folder).mkdir()
    write_official(medusa, tmp_path / "medusa", "tiny", torch.float32)
    save_heads(hydra, tiny, tmp_path / "hydra")
    none = torch.zeros(tiny.vocab_size, dtype=torch.long)
    begun = HydraRecipe(start=str(tmp_path / "medusa")).build(tiny, none)
    assert isinstance(begun, HydraHeads)
    assert torch.equal(begun.weight, medusa.weight)
    assert not begun.join.any()
    again = HydraRecipe(start=str(tmp_path / "hydra")).build(tiny, none)
    for name, tensor in hydra.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name].to(tensor), tensor, atol=1e-3, rtol=1e-3)
    informed = HydraRecipe(start=str(tmp_path / "hydra"), prefix=[-1]).build(tiny, none)
    assert isinstance(informed, HydraHeads)
    assert informed.prefix is not None
    torch.testing.assert_close(informed.join, again.join)
    save_heads(informed, tiny, tmp_path / "hydra")
    assert load_heads(tmp_path / "hydra", tiny).prefix is not None
    wider = HydraRecipe(start=str(tmp_path / "hydra"), vocabulary=5).build(tiny, none)
    assert isinstance(wider, MedusaHeads)
    assert wider.vocabulary is not None
    assert wider.vocabulary.tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(InputError, match="expected one for a target built like llama, got one for 'tiny'"):
        load_heads(tmp_path / "hydra", TargetModel(build("llama"), name="llama"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda t: Hydra("nowhere"), "drafter.heads: expected a folder with drafter.json"),
        (lambda t: Hydra(), "drafter.heads=auto: expected a target that hydra_heads weights are shipped for"),
        (lambda t: Hydra("fresh", depth=0), "drafter.depth: expected an integer >= 1, got 0"),
        (lambda t: Hydra("fresh", storage="int3"), "drafter.storage: expected one of exact, stored, bf16, int8, int4"),
        (lambda t: Hydra("fresh", children="best"), "drafter.children: expected one of"),
        (lambda t: Hydra(made(t, 2), depth=3), "drafter.depth: expected at most 2, as there are heads, got 3"),
        (lambda t: HydraRecipe(heads=0), "recipe.heads: expected an integer >= 1, got 0"),
    ],
)
def test_bad_input(tiny: TargetModel, make, message: str) -> None:
    with pytest.raises(InputError) as error:
        speculative(PROMPTS, make(tiny), TreeAttention(tiny), Exact(), GREEDY, StopRule(4), SEEDS)
    assert message in str(error.value)
