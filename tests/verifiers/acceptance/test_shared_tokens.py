"""A draft model whose logits are padded differently, or which lacks tokens, leaves the target's distribution as it is.

The whole step is enumerated: every outcome of drafting with real models and of accepting, in float64.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from drafters.draft_model.drafter import DraftModel
from specdec.decoding.generate import Outcome, autoregressive, speculative
from specdec.decoding.protocols import AcceptanceRule, DraftState, Session
from specdec.decoding.sampling import Draws, SamplingParams, Streams
from specdec.decoding.stopping import StopRule
from specdec.errors import InputError
from specdec.exactness.enumeration import every_outcome
from specdec.model.target import TargetModel
from specdec.trees.tree import PAD
from tests.support.states import kept
from verifiers.acceptance.exact import Exact
from verifiers.acceptance.traversal import Traversal
from verifiers.acceptance.without_replacement import WithoutReplacement
from verifiers.tree_attention import TreeAttention

EXACT = 1e-12  # float64 rounding over some thousand outcomes stays far below; any bias lies far above
SAMPLED = SamplingParams(temperature=1.0)


def model(vocab: int, seed: int, dtype: torch.dtype = torch.float64, window: int = 64) -> TargetModel:
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=window, initializer_range=0.5,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        llama = LlamaForCausalLM(config)
    return TargetModel(llama.to(dtype), name=f"tokens{vocab}", runtime="stock")


class Scripted(Streams):
    """Streams whose draws are enumerated: the drafter's slots come before those of acceptance."""

    def __init__(self, draws: Draws) -> None:
        self._draws = draws

    def draws(self, lengths: Sequence[int], phase: int, slots: int) -> Draws:
        assert phase == Streams.DRAFT
        return self._draws


class Behind:
    """Draws whose slots are numbered from `first`."""

    def __init__(self, draws: Draws, first: int) -> None:
        self._draws, self._first = draws, first

    def bernoulli(self, probs: Tensor, slot: int) -> Tensor:
        return self._draws.bernoulli(probs, self._first + slot)

    def categorical(self, probs: Tensor, slot: int) -> Tensor:
        return self._draws.categorical(probs, self._first + slot)


def target_joint(target: TargetModel, prompt: list[int], tokens: int) -> dict[tuple[int, ...], float]:
    """The stock model's probability of each continuation of that many tokens."""
    joint: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(tokens):
        texts = list(joint)
        with torch.inference_mode(), target.stock() as stock:
            logits = stock(input_ids=torch.tensor([[*prompt, *text] for text in texts])).logits[:, -1]
        p = logits.softmax(-1).tolist()
        joint = {(*text, i): joint[text] * p[r][i] for r, text in enumerate(texts) for i in range(len(p[r]))}
    return joint


def drafted_joint(
    target: TargetModel, drafter: DraftModel, rule: AcceptanceRule, prompt: list[int], tokens: int
) -> dict[tuple[int, ...], float]:
    """The distribution of the first tokens of a text of which one step is drafted and the target writes the rest."""
    verifier, slots = TreeAttention(target), drafter.max_nodes

    def run(draws: Draws, start: Tensor) -> tuple[Tensor, ...]:
        rows = [prompt] * len(start)
        verifier.prefill([row[:-1] for row in rows], SAMPLED, len(prompt) + 8)
        drafter.start(Session(target, [row[:-1] for row in rows], SAMPLED, len(prompt) + 8))
        tree = drafter.propose(DraftState(rows, kept([[PAD]] * len(rows)), [tokens] * len(rows), Scripted(draws)))
        tree.validate(target.vocab_size)
        verdict = rule.accept(tree, verifier.verify(tree, rows).probs, Behind(draws, slots))
        blocks = Outcome.read(tree, verdict).blocks
        return (torch.tensor([[*block, *[PAD] * (tokens - len(block))] for block in blocks]),)

    with torch.inference_mode():
        _, weights, (blocks,) = every_outcome(run, 1, 2 * slots, torch.ones(1, dtype=torch.float64))
    rest = {}
    joint = dict.fromkeys(itertools.product(range(target.vocab_size), repeat=tokens), 0.0)
    for weight, block in zip(weights.tolist(), blocks.tolist(), strict=True):
        text = tuple(token for token in block if token != PAD)
        if text not in rest:
            rest[text] = target_joint(target, [*prompt, *text], tokens - len(text))
        for more, p in rest[text].items():
            joint[(*text, *more)] += weight * p
    return joint


SHAPES = [((1, 1), "with_replacement", Exact()), ((2, 1), "with_replacement", Exact()),
          ((2, 1), "without_replacement", WithoutReplacement()), ((2, 1), "without_replacement", Traversal()),
          ((5, 1), "top_k", Exact()), (None, "top_k", Exact())]  # fmt: skip


@pytest.mark.parametrize(("widths", "how", "rule"), SHAPES, ids=lambda v: getattr(v, "name", str(v)))
@pytest.mark.parametrize(("of_target", "of_draft", "shared"), [(4, 3, "abc"), (3, 4, "abc"), (4, 4, "abd")])
def test_one_drafted_step_keeps_the_joint_distribution(
    of_target: int, of_draft: int, shared: str, widths: tuple[int, ...] | None, how: str, rule: AcceptanceRule
) -> None:
    """Either model padded, or another token in the middle; the prompt holds whatever the draft lacks."""
    target, draft = model(of_target, 0), model(of_draft, 1)
    lacks = [token for token in range(of_target) if "abcd"[token] not in shared]
    if lacks == [2]:
        target.tokenizer, draft.tokenizer = words("abcd"), words("abxd")
    read = tokens_read(draft)
    drafter = DraftModel(draft, widths, how, nodes=3, depth=2, beam=2, vocabulary="shared")
    prompt = [1, *lacks, 0, *lacks]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        ours = drafted_joint(target, drafter, rule, prompt, 3)
    assert read <= {"abcd".index(token) for token in shared}
    assert any("lacks tokens of the text and reads id 0 in their place" in str(w.message) for w in said) == bool(lacks)
    theirs = target_joint(target, prompt, 3)
    assert max(abs(ours[text] - theirs[text]) for text in theirs) < EXACT


def words(alphabet: str) -> PreTrainedTokenizerFast:
    """A tokenizer with a token per letter."""
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({c: i for i, c in enumerate(alphabet)})))


def tokens_read(draft: TargetModel) -> set[int]:
    """Every id that the model is fed from now on."""
    read: set[int] = set()
    embedding = draft.model.get_input_embeddings()
    embedding.register_forward_pre_hook(lambda _, args: read.update(args[0].flatten().tolist()))
    return read


@pytest.mark.parametrize(("of_target", "of_draft"), [(97, 96), (96, 97)])
@pytest.mark.parametrize("widths", [(3, 2), (99,), None])
def test_greedy_text_is_the_targets_alone_and_in_a_batch(
    of_target: int, of_draft: int, widths: tuple[int, ...] | None
) -> None:
    target, draft = model(of_target, 0), model(of_draft, 0)
    drafter, stop, greedy = DraftModel(draft, widths, nodes=6), StopRule(8), SamplingParams()
    prompts = [[3, 1, 4, 1, 5], [9, 2]]
    base = autoregressive(prompts, target, greedy, stop, [[0], [1]]).texts
    assert speculative(prompts, drafter, TreeAttention(target), Exact(), greedy, stop, [[0], [1]]).texts == base
    alone = speculative(prompts[1:], drafter, TreeAttention(target), Exact(), greedy, stop, [[1]])
    assert alone.texts == base[1:]


@pytest.mark.parametrize("how", ["with_replacement", "without_replacement", "top_k"])
@pytest.mark.parametrize(("of_target", "of_draft"), [(97, 32), (32, 97)])
def test_sampled_text_with_every_kind_of_children(of_target: int, of_draft: int, how: str) -> None:
    """Most ids are padding, so that texts are full of tokens that the draft lacks."""
    target, draft = model(of_target, 0), model(of_draft, 1)
    rule = WithoutReplacement() if how == "without_replacement" else Exact()
    read = tokens_read(draft)
    for penalty in (1.0, 1.3):
        sampling = SamplingParams(temperature=1.0, top_k=20, repetition_penalty=penalty)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*lacks tokens of the text")
            done = speculative(
                [[3, 1], [4]], DraftModel(draft, [2, 2], how), TreeAttention(target), rule, sampling, StopRule(8),
                [[0], [1]],
            )  # fmt: skip
        assert [len(text) for text in done.texts] == [8, 8]
    assert max(read) < of_draft


def test_different_tokens_are_refused_by_name_or_ignored_by_an_option() -> None:
    target, draft = model(4, 0), model(4, 1)
    target.tokenizer, draft.tokenizer = words("abcd"), words("abxd")
    session = Session(target, [[1]], SAMPLED, 8)
    with pytest.raises(InputError) as error:
        DraftModel(draft, [1]).start(session)
    assert str(error.value) == (
        "drafter.model: expected the tokens of the target tokens4 (id 2 is 'c'), got tokens4, where id 2 is 'x' "
        "(differing ids: 1); choose a draft model with the same tokenizer, "
        "or ignore what differs: drafter.vocabulary=shared"
    )
    with pytest.warns(UserWarning, match=r"reads otherwise \(differing ids: 1\): 2 \('c', not 'x'\)"):
        DraftModel(draft, [1], vocabulary="shared").start(session)
    draft.tokenizer = words("dcba")
    with pytest.raises(InputError, match="expected a draft model that shares most tokens with the target tokens4, "):
        DraftModel(draft, [1], vocabulary="shared").start(session)
    with pytest.raises(InputError, match=r"choose a draft model with the same tokenizer$"):
        DraftModel(draft, [1]).start(session)
    with pytest.raises(InputError, match=r"drafter\.vocabulary: expected same or shared, got 'any'; choose one"):
        DraftModel(draft, [1], vocabulary="any")


@pytest.mark.parametrize("widths", [(1, 1, 1), (2, 2), None])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nothing_is_drafted_past_the_drafts_window(widths: tuple[int, ...] | None, temperature: float) -> None:
    """One row crosses the window, one does not, one begins past it; each is what it would be alone."""
    target, draft = model(32, 0), model(32, 0, window=12)
    stop, sampling = StopRule(12), SamplingParams(temperature)
    prompts, seeds = [[1, 2, 3, 4, 5], [6], [7] * 14], [[0], [1], [2]]
    drafter = DraftModel(draft, widths, nodes=5, depth=3)
    with pytest.warns(UserWarning, match="tokens32 drafts nothing past its context window of 12 tokens"):
        done = speculative(prompts, drafter, TreeAttention(target), Exact(), sampling, stop, seeds)
    lengths = [len(prompt) + 1 for prompt in prompts]
    for step in done.steps:
        assert step.offered <= max(12 - lengths[step.row] + 1, 0)
        lengths[step.row] += step.emitted
    assert max(lengths) > 20
    for prompt, seed, text in zip(prompts, seeds, done.texts, strict=True):
        alone = speculative([prompt], drafter, TreeAttention(target), Exact(), sampling, stop, [seed]).texts
        assert alone == [text]
        if temperature == 0:
            assert autoregressive([prompt], target, sampling, stop, [seed]).texts == [text]
