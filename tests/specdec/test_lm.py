"""The front door: `specdec.load`."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch

import specdec
from specdec.components import CONF, build, described
from specdec.decoding.generate import autoregressive
from specdec.decoding.protocols import DraftState, Kept
from specdec.decoding.sampling import SamplingParams, Streams
from specdec.decoding.stopping import stop_rule
from specdec.errors import InputError
from specdec.model.target import TargetModel
from specdec.prompts.sets import PromptEncoder

PROMPTS = ["one two one two one two", "Grüße, grüße, grüße"]


@pytest.mark.parametrize("drafter", ["none", "ngram", "ngram_lm"])
def test_greedy_texts_are_the_targets_own(tiny: TargetModel, drafter: str) -> None:
    texts = specdec.load(tiny, drafter=drafter).generate(PROMPTS, max_new_tokens=24)
    rows = [PromptEncoder.of(tiny).encode([prompt], []) for prompt in PROMPTS]
    right = autoregressive(rows, tiny, SamplingParams(), stop_rule(tiny, 24), [[0], [1]]).texts
    assert [text.tokens for text in texts] == right
    for text in texts:
        assert text.text == "".join(text.pieces) == str(text)
        assert len(text.writers) == len(text.tokens)
        assert text.writers[0] == "prompt"
        assert text.writers.count("drafted") == sum(step.accepted for step in text.steps)


def test_a_sampled_text_depends_on_its_seed(tiny: TargetModel) -> None:
    lm = specdec.load(tiny)
    first, again, other = (lm.generate("hello", 24, temperature=1.0, seed=seed)[0].tokens for seed in (1, 1, 2))
    assert first == again != other


def test_pieces_are_handed_out_as_they_come(tiny: TargetModel) -> None:
    pieces: dict[int, list[str]] = {0: [], 1: []}
    texts = specdec.load(tiny).generate(PROMPTS, 24, on_text=lambda row, piece: pieces[row].append(piece))
    for row, text in enumerate(texts):
        assert "".join(pieces[row]) == text.text
        assert len(pieces[row]) > 1


def test_a_loaded_model_is_taken(tiny: TargetModel) -> None:
    lm = specdec.load(tiny.model, drafter="ngram", tokenizer=tiny.tokenizer, runtime="stock")
    assert lm.generate("hello", 4)[0].tokens == specdec.load(tiny).generate("hello", 4)[0].tokens


@pytest.mark.parametrize("file", sorted((CONF / "drafter").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_yaml_of_a_drafter_is_read_as_hydra_reads_it(file: object) -> None:
    from omegaconf import OmegaConf

    from experiments.common.parts import part

    name = file.stem  # type: ignore[attr-defined]
    assert described("drafter", name) == OmegaConf.to_container(part("drafter", name))
    assert isinstance(build("drafter", name), specdec.Drafter)


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda t: specdec.load(t, drafter="ngrm"), "got 'ngrm'; did you mean ngram?"),
        (lambda t: specdec.load(t, drafter_options={"depht": 3}), "got 'depht'; did you mean depth?"),
        (lambda t: specdec.load(t, acceptance="lucky"), "acceptance: expected one of block, exact, "),
        (lambda t: specdec.load(t, drafter=specdec.Drafter), "or a Drafter object, got <class"),
        (lambda t: specdec.load(t, dtype="float32"), "expected no options beside a TargetModel, got dtype"),
        (lambda _: specdec.load("tiny", weights="int8"), "got 'weights'; it is called storage now"),
        (lambda _: specdec.load("nowhere", layers="model.layers"), "got 'layers'; it is called layer_path now"),
        (lambda t: specdec.load(t).generate("x", seed=-1), "seed: expected an integer >= 0, got -1; "),
        (lambda t: specdec.load(t).generate([]), "prompts: expected at least one text, got an empty list"),
        (lambda t: specdec.load(t).generate("", chat=False), "expected at least one token"),
        (
            lambda t: specdec.load(t).generate("x", 0),
            "max_new_tokens: expected an integer >= 1, got 0; ask for a token",
        ),
        (lambda t: specdec.load(t).generate("x", temperature=-1), "temperature"),
    ],
)
def test_bad_input_is_one_clear_line(tiny: TargetModel, call: object, line: str) -> None:
    with pytest.raises(InputError) as error:
        call(tiny)  # type: ignore[operator]
    assert line in str(error.value)


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (
            lambda t: specdec.load(t, drafter_options={"depth": 0}),
            'drafter_options["depth"]: expected an integer >= 1, ',
        ),
        (lambda t: specdec.load(t, drafter_options={"depth": "4"}), "expected an integer, got '4'; "),
        (lambda t: specdec.load(t, drafter_options={"depth": True}), "expected an integer, got true; "),
        (lambda t: specdec.load(t, "early_exit").generate("x"), 'drafter_options["exit_layer"]: expected 1 to 1, '),
        (lambda t: specdec.load(t, "medusa").generate("x"), 'and pass drafter_options={"heads": FOLDER}'),
        (lambda _: specdec.load("tiny", device="cuda:99"), "device: expected one of auto, cpu"),
        (lambda _: specdec.load("tiny", storage="int3"), "storage: expected one of "),
        (lambda _: specdec.load("tiny", seed="3"), "seed: expected an integer, got '3'; "),
        (lambda t: specdec.load(t).generate("x " * 5000, 4), "shorten the prompt or lower max_new_tokens"),
        (lambda t: specdec.load(t).generate("x", 4, top_p=2.0), "top_p: expected a number in (0, 1], got 2.0; "),
    ],
)
def test_errors_name_arguments_and_no_options_of_the_command_line(tiny: TargetModel, call: object, line: str) -> None:
    with pytest.raises(InputError) as error:
        call(tiny)  # type: ignore[operator]
    message = str(error.value)
    assert line in message
    assert not re.search(r"(drafter|target|generation)\.\w", message)


def test_a_draft_state_names_its_parts() -> None:
    state = DraftState(
        [[1]],
        Kept(torch.tensor([[0]]), torch.zeros(1, 1, 2)),
        [1],
        Streams([[0]], SamplingParams(), torch.device("cpu")),
    )
    with pytest.raises(
        AttributeError, match=r"no 'verdict', but rows, kept \(the nodes kept in the step before\), room"
    ):
        _ = state.verdict


def test_the_front_door_is_cheap_and_complete() -> None:
    code = (
        "import sys, specdec; print('torch' in sys.modules); print(all(getattr(specdec, n) for n in specdec.__all__))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = specdec.nothing


def test_values_of_other_types_are_one_clear_line() -> None:
    """In a process of its own, without the run-time type checker of the tests."""
    code = """
import specdec
lm = specdec.load("tiny", device="cpu")
for call in (lambda: specdec.load("tiny", drafter=None), lambda: specdec.load(3), lambda: lm.generate(None),
             lambda: lm.generate([{"role": "user"}]), lambda: lm.generate(["a", 1]),
             lambda: lm.generate("a", "4"), lambda: lm.generate("a", 4, temperature="1"),
             lambda: lm.generate("a", stop="b"), lambda: lm.generate("a", on_text=3)):
    try:
        call()
    except specdec.InputError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    expected = (
        "drafter: expected a name in conf/drafter/ or a Drafter object, got None; drafter='none' drafts nothing",
        "model: expected a hub id, a folder, smollm2_135m, tiny, or a loaded causal LM, got int; pass one",
        "prompts: expected a text or a list of texts, got NoneType; ",
        "prompts: expected a text or a list of texts, got a list with a dict; ",
        "prompts: expected a text or a list of texts, got a list with a int; ",
        "max_new_tokens: expected an integer >= 1, got '4'; ",
        "temperature: expected a number >= 0, got '1'; ",
        "stop: expected a list of texts, got 'b'; ",
        "on_text: expected a function, got 3; ",
    )
    assert len(lines) == len(expected)
    assert all(line.startswith(words) for line, words in zip(lines, expected, strict=True))
