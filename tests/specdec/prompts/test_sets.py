"""Prompt sets and what is wrong with them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments import bench
from specdec.errors import InputError
from specdec.model.load import byte_tokenizer, load_tiny
from specdec.prompts.sets import Prompt, PromptEncoder, builtin, dataset, even_share, jsonl


@pytest.mark.parametrize("text", ["plain words,  two spaces\n", "héllo 日本語 👩‍👩‍👧", ""])
def test_pieces_join_to_the_text_and_characters_stay_whole(text: str) -> None:
    encoder, ids = PromptEncoder(byte_tokenizer()), byte_tokenizer().encode(text)
    pieces = encoder.pieces(ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == encoder.decode(ids)
    assert [piece for piece in pieces if piece] == list(text)
    cut = ids[:-1]  # in the middle of a character, perhaps
    assert "".join(encoder.pieces(cut)) == encoder.decode(cut)


def test_builtin_prompts_cover_six_categories() -> None:
    prompts = builtin()
    assert len(prompts) >= 48
    assert len({p.id for p in prompts}) == len(prompts)
    counts = Counter(p.category for p in prompts)
    assert len(counts) == 6
    assert min(counts.values()) >= 8
    assert any(len(p.turns) > 1 for p in prompts)


def test_a_limit_takes_an_even_share_of_each_category() -> None:
    prompts = [Prompt(str(i), c, ("x",)) for i, c in enumerate("aaaabbbcd")]
    assert [p.category for p in even_share(prompts, 6)] == list("aabbcd")
    assert [p.id for p in even_share(prompts, 4)] == ["0", "4", "7", "8"]
    assert even_share(prompts, None) == prompts
    assert even_share(prompts, 99) == prompts


GOOD = {"question_id": 1, "category": "a", "turns": ["hi"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected at least one prompt, got an empty file; write lines with question_id, category, turns"),
        (json.dumps(GOOD) + "\n{oops", "line 2: expected a JSON object, got malformed JSON"),
        ("[1]", "row 1: expected a JSON object, got int; write question_id, category, turns"),
        ("1", "line 1: expected a JSON object, got int; write question_id, category, turns"),
        ('{"question_id": 1, "turns": ["x"]}', "line 1: expected the fields question_id, category, turns, got no cat"),
        (json.dumps({**GOOD, "turns": []}), "line 1: expected turns: a list of non-empty strings, got []; mend"),
        (json.dumps({**GOOD, "turns": ["a", " "]}), "line 1: expected turns: a list of non-empty strings"),
    ],
)
def test_bad_files_are_named_with_the_line(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text(content, "utf-8")
    with pytest.raises(InputError) as error:
        jsonl(str(file))
    assert message in str(error.value)
    assert str(file) in str(error.value)


def test_only_newlines_end_a_line(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text(json.dumps({**GOOD, "turns": ["one\u2028two\x85three"]}, ensure_ascii=False) + "\n\n", "utf-8")
    assert jsonl(str(file))[0].turns == ("one\u2028two\x85three",)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(InputError, match=r"prompts.path: expected a readable JSONL file, got 'nowhere.jsonl'"):
        jsonl("nowhere.jsonl")


def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(InputError, match=r"prompts.limit: expected an integer >= 1, or null for all, got 0"):
        builtin(0)


def test_turns_and_answers_go_through_the_chat_template() -> None:
    tokenizer = byte_tokenizer()
    encoder = PromptEncoder(tokenizer)
    ids = encoder.encode(["hi", "more"], ["hello"])
    assert tokenizer.decode(ids) == (
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nhello<|im_end|>\n"
        "<|im_start|>user\nmore<|im_end|>\n<|im_start|>assistant\n"
    )
    assert encoder.decode(tokenizer.encode("ok<|im_end|>")) == "ok"


def test_without_a_template_messages_are_joined() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    assert tokenizer.decode(PromptEncoder(tokenizer).encode(["hi", "more"], ["hello"])) == "hi\n\nhello\n\nmore"


def templated(template: str, **variables: Any) -> PromptEncoder:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return PromptEncoder(tokenizer, variables)


@pytest.mark.parametrize(
    ("template", "got"),
    [
        (
            "{{ raise_exception('only tools') }}",
            "can write this conversation, got TemplateError: only tools; mend the te",
        ),
        ("{% for m in messages %}{{ m['a']['b'] }}{% endfor %}", "got UndefinedError: 'dict object' has no attribute"),
        ("{% for m in messages %}{{ m['content'] ", "got TemplateSyntaxError: unexpected end of template"),
        ("{{ messages[0]['content'][0]['text'] }}", "leaves out or changes 'hi you'; mend the template"),
        (
            "<user>",
            "expected a chat template that writes what is said, got one that leaves out or changes 'hi yo",
        ),
        (
            "{% for m in messages %}{{ m['content'][3:] }}{% endfor %}",
            "leaves out or changes 'hi you'; mend the template",
        ),
        (
            "{{ messages[-1]['content'] }}",
            "leaves out or changes 'hi you'; mend the template (target.chat_template=FILE)",
        ),
    ],
)
def test_templates_that_cannot_write_a_prompt_are_named_with_it(template: str, got: str) -> None:
    with pytest.raises(InputError) as error:
        templated(template).encode(["hi you", "more"], ["hello"], "prompt q7")
    assert str(error.value).startswith("prompt q7: expected a chat template that ")
    assert got in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("form", ["m['content'] | trim", "m['content'] | tojson", "m['content'] | replace('\\n', ' ')"])
def test_templates_may_trim_and_escape_what_the_user_says(form: str) -> None:
    encoder = templated("{% for m in messages %}{{ " + form + " }}|{% endfor %}")
    assert len(encoder.encode(['  say "é"\n twice ', "<b> & more"], ["x"])) > 20


THINKING = (
    "{% for m in messages %}{% set c = m['content'] %}{% if '</think>' in c %}{% set c = c.split('</think>')[-1] %}"
    "{% endif %}<{{ m['role'] }}>{{ c | trim }}\n{% endfor %}"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
    "{% for tool in tools or [] %}[{{ tool['function']['name'] }}]{% endfor %}"
)


def test_variables_reach_the_template_in_every_turn() -> None:
    turns, answers = ["hi", "more"], ["<think>so</think> hello "]
    plain = byte_tokenizer().decode(templated(THINKING).encode(turns, answers))
    assert plain == "<user>hi\n<assistant>hello\n<user>more\n"
    tool = {"type": "function", "function": {"name": "add", "parameters": {}}}
    encoder = templated(THINKING, enable_thinking=False, tools=[tool])
    assert byte_tokenizer().decode(encoder.encode(turns, answers)) == plain + "<think></think>[add]"
    assert encoder.template != templated(THINKING).template == THINKING


def test_options_exchange_the_template_and_fill_it(tmp_path: Path) -> None:
    file = tmp_path / "chat.jinja"
    file.write_text(THINKING, "utf-8")
    target = load_tiny(chat_template=str(file), chat_template_kwargs={"enable_thinking": False})
    assert target.tokenizer is not None
    assert target.tokenizer.decode(PromptEncoder.of(target).encode(["hi"], [])) == "<user>hi\n<think></think>"
    assert PromptEncoder.of(load_tiny(chat_template="none")).encode(["hi", "you"], ["a"]) == byte_tokenizer().encode(
        "hi\n\na\n\nyou"
    )
    with pytest.raises(InputError) as error:
        load_tiny(chat_template=str(file), chat_template_kwargs={"enable_thinkin": False})
    assert str(error.value) == (
        "target.chat_template_kwargs: expected variables that the chat template reads (enable_thinking, tools and the "
        "like), got 'enable_thinkin'; check the spelling in the tokenizer's chat template"
    )
    with pytest.raises(InputError, match=r"target\.chat_template: expected a Jinja file, or none to join messages"):
        load_tiny(chat_template=str(tmp_path / "nowhere"))


@pytest.mark.parametrize("trims", ["", " | trim"])
def test_conversations_go_on_under_templates_that_rewrite_answers(tmp_path: Path, call: Callable, trims: str) -> None:
    """Two turns through a bench: the answer comes back as the template writes it."""
    prompts, template = tmp_path / "p.jsonl", tmp_path / "t.jinja"
    prompts.write_text(json.dumps({**GOOD, "turns": [" one \n", "two"]}) + "\n", "utf-8")
    template.write_text(THINKING.replace(" | trim", trims), "utf-8")
    options = ["target=tiny", "drafter=ngram", "tracker=none", "report=false", "generation.max_new_tokens=6"]
    options += ["prompts=jsonl", f"prompts.path={prompts}", f"target.chat_template={template}"]
    status, summary, _ = call(bench.main, *options, "target.chat_template_kwargs={enable_thinking:false}")
    assert status == 0
    assert summary["divergence"] == {"identical": 2, "total": 2, "prompts": []}


@pytest.fixture
def saved(tmp_path: Path) -> dict[str, str]:
    """A data set of the kinds of column there are, as the library reads it from a file."""
    pytest.importorskip("datasets", reason="the optional library `datasets` is not installed")
    messages = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
    ]
    rows = [
        {"text": "first", "turns": ["one", "two"], "messages": [*messages, {"role": "user", "content": "c"}], "n": 1},
        {"text": " ", "turns": [], "messages": [], "n": 2},
        {"text": "third", "turns": ["three"], "messages": messages, "n": 3},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return {"name": "json", "data_files": str(file), "cache_dir": str(tmp_path / "cache")}


@pytest.mark.parametrize(
    ("column", "turns"),
    [("text", [("first",), ("third",)]), ("turns", [("one", "two"), ("three",)]), ("messages", [("a", "c"), ("a",)])],
)
def test_data_sets_of_texts_turns_and_messages(
    saved: dict[str, str], column: str, turns: list[tuple[str, ...]]
) -> None:
    prompts = dataset(column=column, **saved)
    assert [prompt.turns for prompt in prompts] == turns
    assert [prompt.id for prompt in prompts] == ["json-0", "json-2"]
    assert dataset(column=column, limit=1, **saved) == prompts[:1]


def test_data_sets_that_cannot_be_read(saved: dict[str, str]) -> None:
    with pytest.raises(InputError, match=r"prompts.column: expected one of text, turns, messages, n, got 'prompt'"):
        dataset(**saved)
    with pytest.raises(
        InputError, match=r"prompts.column: expected texts, or lists of texts or messages, got none in 'n'"
    ):
        dataset(column="n", **saved)
    with pytest.raises(InputError, match=r"prompts.name: expected a data set that can be loaded, got 'json'"):
        dataset(**{**saved, "data_files": "nowhere.jsonl"})
