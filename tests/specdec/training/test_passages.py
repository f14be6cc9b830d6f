"""Long prompts made of the target's own answers: what they hold, and that they stay what they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments import self_distill
from specdec.errors import InputError
from specdec.model.target import TargetModel
from specdec.prompts.sets import PromptEncoder, jsonl
from specdec.training.text import passages
from specdec.training.text.index import committed
from specdec.training.text.passages import SUMMARIES, passage_prompts
from specdec.training.text.store import TextStore
from tests.support.commands import Done, command


@pytest.fixture
def texts(data: Path, monkeypatch: pytest.MonkeyPatch) -> TextStore:
    monkeypatch.setattr(passages, "SHORTEST", 8)  # the tiny target's answers are short
    return TextStore(data)


def test_every_prompt_is_made_of_training_answers(texts: TextStore, tiny: TargetModel) -> None:
    assert tiny.tokenizer is not None
    decode, training = PromptEncoder(tiny.tokenizer).decode, texts.training
    assert len(training) < len(texts.texts)
    answers = {text.id: decode(texts.tokens(text)[slice(*text.answers[0])].tolist()).strip() for text in training}
    made = passage_prompts(texts, PromptEncoder.of(tiny), 60, longest=400)
    assert len({prompt.turns for prompt in made}) == len(made) == 60
    summaries = questions = 0
    for number, prompt in enumerate(made):
        (words,) = prompt.turns
        assert len(tiny.tokenizer.encode(words)) <= 400
        if number % 2:
            summaries += any(
                words.startswith(s.partition("{}")[0]) and words.endswith(s.partition("{}")[2]) for s in SUMMARIES
            )
        else:
            question = words.rpartition("\n")[2]
            asked = question.removeprefix("tell me number ")
            questions += answers[f"q{asked}"] in words
    assert (summaries, questions) == (30, 30)


def test_prompts_are_a_function_of_the_texts_and_the_seed(texts: TextStore, tiny: TargetModel) -> None:
    assert tiny.tokenizer is not None
    first, again, other = (passage_prompts(texts, PromptEncoder.of(tiny), 9, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert {prompt.turns for prompt in first}.isdisjoint(prompt.turns for prompt in other)


@pytest.mark.parametrize("options", [{"count": 500}, {"count": 1, "longest": 3}, {"count": 1, "categories": ["other"]}])
def test_too_little_text_is_said(texts: TextStore, tiny: TargetModel, options: dict) -> None:
    assert tiny.tokenizer is not None
    with pytest.raises(InputError, match=r"passages\.count: expected at most \d+: so many answers of"):
        passage_prompts(texts, PromptEncoder.of(tiny), **options)


def test_a_second_run_answers_them_and_a_third_keeps_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(passages, "SHORTEST", 8)
    call = command(self_distill.main, tmp_path / "run", monkeypatch, capsys)
    file, folder = tmp_path / "p.jsonl", tmp_path / "text"
    lines = [{"question_id": f"q{i}", "category": "c", "turns": [f"tell me {i}"]} for i in range(12)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")

    def run(*options: str) -> Done:
        return call(
            "target=tiny", "target.device=cpu", "answers.max_new_tokens=12", "slots=3", f"folder={folder}", *options
        )

    source = ("prompts=jsonl", f"prompts.path={file}")
    refused = run(*source, "passages.count=3")
    assert refused.status != 0
    assert "passages.count: expected at most 0" in refused.err
    assert run(*source).status == 0
    assert run(*source, "passages.count=3").status == 0
    kept = jsonl(str(folder / "passages.jsonl"))
    assert len(kept) == 3
    assert {prompt.id for prompt in kept} <= {text.id for text in committed(folder)}
    assert run(*source, "passages.count=5", "passages.categories=[c]").status == 0
    more = jsonl(str(folder / "passages.jsonl"))
    assert more[:3] == kept
    assert len({prompt.id for prompt in more}) == 5
    assert {prompt.id for prompt in more} <= {text.id for text in committed(folder)}
