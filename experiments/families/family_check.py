"""Compare a target's texts (plain, in a ragged batch, and with a drafter) with those of `model.generate`."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from drafters.ngram import Ngram
from experiments.families.tiny_models import VOCAB, tiny_model
from specdec.decoding.decoder import Decoder
from specdec.decoding.generate import autoregressive
from specdec.decoding.protocols import Drafter, DraftState, Rows, Session
from specdec.decoding.sampling import SamplingParams
from specdec.decoding.stopping import StopRule
from specdec.errors import InputError
from specdec.model.target import TargetModel
from specdec.trees.tree import TokenTree
from verifiers.acceptance.exact import Exact
from verifiers.tree_attention import TreeAttention

LENGTHS = (9, 20, 4)  # tokens of the prompts: longer than windows of 6, and different per row
NEW = 14
WORKS, REFUSED, WRONG, NOT_BUILT = "works", "refused", "wrong text", "not built"


@dataclass(frozen=True)
class Finding:
    """The result for a family: `status` is one of the four above, `how` is `fused`, `modules` or the reason."""

    status: str
    how: str


class Misleading:
    """A drafter of branching trees in which three tokens of the main branch are right and all other nodes wrong.

    If a wrong node left anything behind in the cache, the text would change.
    """

    PARENTS = (-1, 0, 0, 1, 1, 3, 3, 5, 7, 2, 9, 8)

    def __init__(self, prompts: Rows, texts: Rows) -> None:
        self._whole = [[*prompt, *text] for prompt, text in zip(prompts, texts, strict=True)]

    @property
    def max_nodes(self) -> int:
        return len(self.PARENTS)

    def start(self, session: Session) -> None:
        """Do nothing."""

    def propose(self, state: DraftState) -> TokenTree:
        tokens = []
        for whole, row in zip(self._whole, state.rows, strict=True):
            nodes = [(row[-1] * 7 + 13 * node + len(row)) % (VOCAB - 1) + 1 for node in range(self.max_nodes)]
            for node, right in zip((1, 3, 5), whole[len(row) :], strict=False):
                nodes[node] = right
            tokens.append([row[-1], *nodes[1:]])
        return TokenTree.from_rows(tokens, [list(self.PARENTS)] * len(tokens))


def random_prompts(lengths: Sequence[int], seed: int = 1) -> list[list[int]]:
    """Return random prompts of these lengths, without token 0, because some models use it for padding."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, VOCAB, (length,), generator=generator).tolist() for length in lengths]


@torch.inference_mode()
def generated(model: PreTrainedModel, prompt: Sequence[int], new: int) -> list[int]:
    """Return the greedy text of `model.generate` for one prompt alone."""
    ids = torch.tensor([list(prompt)])
    texts = model.generate(  # type: ignore[operator]
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    text: list[int] = texts[0, len(prompt) :].tolist()
    return text


def plain(target: TargetModel, prompts: Rows, new: int) -> list[list[int]]:
    """Return our greedy texts, decoded token by token."""
    return autoregressive(prompts, target, SamplingParams(), StopRule(new), _seeds(prompts)).texts


def drafted(target: TargetModel, prompts: Rows, new: int, drafter: Drafter) -> list[list[int]]:
    """Return our greedy texts with a drafter.

    Args:
        target: the model.
        prompts: token ids.
        new: tokens per text.
        drafter: the drafter.
    """
    verifier = TreeAttention(target)
    return (
        Decoder(drafter, verifier, Exact(), SamplingParams(), StopRule(new)).speculative(prompts, _seeds(prompts)).texts
    )


def differences(target: TargetModel, prompts: Rows, expected: Rows, new: int) -> list[str]:
    """Return the ways of decoding (alone, in a batch, with a drafter) whose texts differ from the expected ones.

    Args:
        target: the model.
        prompts: token ids.
        expected: texts of `model.generate`.
        new: tokens per text.
    """
    found = [
        f"alone, prompt of {len(prompt)}"
        for prompt, text in zip(prompts, expected, strict=True)
        if plain(target, [prompt], new) != [text]
    ]
    misleading, rows = Misleading(prompts, expected), list(expected)
    found += ["ragged batch"] if plain(target, prompts, new) != rows else []
    found += ["ngram"] if drafted(target, prompts, new, Ngram(3, 1, 7, 2, 12)) != rows else []
    found += ["tree"] if drafted(target, prompts, new, misleading) != rows else []
    return found


def check_family(model_type: str, runtime: str = "auto") -> Finding:
    """Build a tiny model of the type and compare its texts with those of `model.generate`."""
    try:
        model = tiny_model(model_type)
        prompts = random_prompts(LENGTHS)
        expected = [generated(model, prompt, NEW) for prompt in prompts]
    except Exception as error:  # transformers itself fails, for any reason
        return Finding(NOT_BUILT, f"{type(error).__name__}: {_line(error)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target = TargetModel(copy.deepcopy(model), name=model_type, runtime=runtime)
        wrong = differences(target, prompts, expected, NEW)
    except InputError as error:
        return Finding(REFUSED, (_line(error).partition(", got ")[2] or _line(error)).partition("; ")[0])
    if wrong:
        return Finding(WRONG, ", ".join(wrong))
    return Finding(WORKS, "modules" if target.fused is None else "fused")


def _seeds(prompts: Rows) -> list[list[int]]:
    return [[row] for row in range(len(prompts))]


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:480]
