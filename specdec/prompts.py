"""Prompt sets: built in, a JSONL file, or any data set. Text only; turning it into token ids is `PromptEncoder`'s."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from specdec.errors import InputError
from specdec.target import TargetModel

UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # how a tokenizer shows the first bytes of a character
FIELDS = ("question_id", "category", "turns")


@dataclass(frozen=True)
class Prompt:
    """One conversation: `turns` are the user's messages, the answers are generated."""

    id: str
    category: str
    turns: tuple[str, ...]

    def line(self) -> str:
        """Its line in a JSONL file, as `jsonl` reads it."""
        data = dict(zip(FIELDS, (self.id, self.category, self.turns), strict=True))
        return json.dumps(data, ensure_ascii=False) + "\n"


def builtin(limit: int | None = None) -> list[Prompt]:
    """The project's own prompts: ten in each of six categories."""
    source = resources.files("specdec") / "data" / "builtin_prompts.jsonl"
    return even_share(_parse(source.read_text("utf-8"), "built-in prompts"), limit)


def jsonl(path: str, limit: int | None = None) -> list[Prompt]:
    """A file with one object a line: `question_id`, `category`, `turns` (the format of Spec-Bench).

    Raises:
        InputError: no such file, an empty file, a malformed line, a missing field, an empty turn.
    """
    file = Path(path)
    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            "prompts.path", expected="a readable JSONL file in UTF-8", got=f"{path!r} ({error})", fix="check the path"
        ) from error
    return even_share(_parse(text, path), limit)


def dataset(
    name: str,
    split: str = "train",
    column: str = "prompt",
    subset: str | None = None,
    limit: int | None = None,
    **options: Any,
) -> list[Prompt]:
    """Any source of the `datasets` library: a hub id, a folder, or a format ("json", "parquet") with data_files=...

    column: a text (one turn), a list of texts (the user's turns), or a list of messages with role and content (their
    user messages). Rows without any text are skipped; limit: the first so many that have one.

    Raises:
        InputError: the library is missing, there is no such data set, split or column, or no text in it.
    """
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            "prompts=dataset", expected="the library `datasets`", got="no such installation",
            fix="pip install datasets",
        ) from error  # fmt: skip
    try:
        rows = datasets.load_dataset(name, subset, split=split, **options)
    except Exception as error:  # it raises its own kinds for what is missing, unreachable or malformed
        raise InputError(
            "prompts.name", expected="a data set that can be loaded", got=f"{name!r} ({str(error).splitlines()[0]})",
            fix="check the name, its subset and split, and your access",
        ) from error  # fmt: skip
    if column not in rows.column_names:
        raise InputError(
            "prompts.column", expected=f"one of {', '.join(rows.column_names)}", got=repr(column), fix="choose one"
        )
    prompts: list[Prompt] = []
    for number, value in enumerate(rows[column]):
        if limit is not None and len(prompts) >= limit:
            break
        if turns := _user_turns(value):
            prompts.append(Prompt(f"{name}-{number}", name, turns))
    if not prompts:
        raise InputError(
            "prompts.column", expected="texts, or lists of texts or messages", got=f"none in {column!r}",
            fix="choose another column",
        )  # fmt: skip
    return prompts


def _user_turns(value: Any) -> tuple[str, ...]:
    """The user's texts in a data set's cell: a text, texts, or messages."""
    parts = value if isinstance(value, list) else [value]
    texts = [part["content"] if isinstance(part, dict) and part.get("role") == "user" else part for part in parts]
    return tuple(text for text in texts if isinstance(text, str) and text.strip())


def even_share(prompts: Sequence[Prompt], limit: int | None) -> list[Prompt]:
    """At most `limit` prompts, taken evenly from the categories, in the order of the file.

    Categories take turns; one that runs out leaves its share to the others.
    """
    if limit is None or limit >= len(prompts):
        return list(prompts)
    if limit < 1:
        raise InputError("prompts.limit", expected="an integer >= 1, or null for all", got=limit, fix="raise it")
    rank: dict[str, int] = {}
    order = []  # (how many of its category come before, place in the file)
    for place, prompt in enumerate(prompts):
        rank[prompt.category] = rank.get(prompt.category, -1) + 1
        order.append((rank[prompt.category], place))
    return [prompts[place] for place in sorted(place for _, place in sorted(order)[:limit])]


def _parse(text: str, where: str) -> list[Prompt]:
    prompts = []
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: texts may hold U+2028 and the like
        if line.strip():
            prompts.append(_prompt(line, f"{where}, line {number}"))
    if not prompts:
        raise InputError(
            where, expected="at least one prompt", got="an empty file", fix=f"write lines with {_fields()}"
        )
    return prompts


def _prompt(line: str, where: str) -> Prompt:
    try:
        data = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(
            where, expected="a JSON object", got=f"malformed JSON ({error})", fix="mend the line"
        ) from error
    if not isinstance(data, dict):
        raise InputError(where, expected="a JSON object", got=type(data).__name__, fix=f"write {_fields()}")
    missing = [field for field in FIELDS if field not in data]
    if missing:
        raise InputError(where, expected=f"the fields {_fields()}", got=f"no {', '.join(missing)}", fix="add them")
    turns = data["turns"]
    if not isinstance(turns, list) or not turns or not all(isinstance(t, str) and t.strip() for t in turns):
        raise InputError(
            where, expected="turns: a list of non-empty strings", got=f"{turns!r:.60}", fix="mend the line"
        )
    return Prompt(str(data["question_id"]), str(data["category"]), tuple(turns))


def _fields() -> str:
    return ", ".join(FIELDS)


class PromptEncoder:
    """Token ids of a conversation so far: by the tokenizer's chat template, or, if it has none, of the messages joined
    by blank lines.

    Args:
        tokenizer: of the target.
        variables: what the chat template is given beside the messages (enable_thinking, tools).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, variables: Mapping[str, Any] | None = None) -> None:
        self._tokenizer, self._variables = tokenizer, dict(variables or {})

    @classmethod
    def of(cls, target: TargetModel) -> PromptEncoder:
        """With a target's tokenizer and the variables that were given for its template.

        Raises:
            InputError: the target has no tokenizer.
        """
        if target.tokenizer is None:
            raise InputError("target", expected="a target with a tokenizer", got=target.name, fix="load one by name")
        return cls(target.tokenizer, target.chat_template_kwargs)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self._tokenizer

    @property
    def template(self) -> str:
        """Identifies how conversations are written: the template, with its variables if there are any."""
        return str(self._tokenizer.chat_template) + (
            json.dumps(self._variables, default=str) if self._variables else ""
        )

    def encode(self, turns: Sequence[str], answers: Sequence[str], option: str = "prompt") -> list[int]:
        """Token ids up to the answer to the last turn.

        Args:
            turns: the user's messages.
            answers: the replies to all turns but the last.
            option: name used in error messages, which names the prompt.

        Raises:
            InputError: the chat template does not parse, raises, or leaves out what the user says.
        """
        if self._tokenizer.chat_template is None:
            texts = [text for pair in zip(turns, [*answers, ""], strict=True) for text in pair if text]
            return list(self._tokenizer.encode("\n\n".join(texts)))
        messages = [{"role": "user", "content": turns[0]}]
        for answer, turn in zip(answers, turns[1:], strict=True):
            messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": turn}]
        text = self.written(messages, option)
        if lost := next((turn for turn in turns if not _contains(text, turn)), None):
            expected = "a chat template that writes what the user says"
            raise _bad_template(option, expected, f"one that leaves out or changes {lost!r:.60}")
        ids = self._apply(messages, tokenize=True, return_dict=False)
        return list(ids)

    def written(self, messages: Sequence[Mapping[str, str]], option: str = "prompt") -> str:
        """The conversation as the chat template writes it, up to the answer.

        Raises:
            InputError: the template does not parse, or raises.
        """
        try:
            return str(self._apply(messages, tokenize=False))
        except Exception as error:  # Jinja's kinds, and whatever an expression in a template can raise
            lines = str(error).splitlines() or [""]
            got = f"{type(error).__name__}: {lines[0]}"
            raise _bad_template(option, "a chat template that can write this conversation", got) from error

    def _apply(self, messages: Sequence[Mapping[str, str]], **options: Any) -> Any:
        return self._tokenizer.apply_chat_template(
            [dict(message) for message in messages], add_generation_prompt=True, **options, **self._variables
        )

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """What each token adds to the text; joined they are `decode(ids)`. A character of several tokens stands at its
        last one."""
        pieces: list[str] = []
        begin = end = 0  # ids[begin:end]: the last whole characters; tokens read alone would lose the space before them
        for i in range(1, len(ids) + 1):
            known, now = self.decode(ids[begin:end]), self.decode(ids[begin:i])
            whole = i == len(ids) or not now.endswith(UNFINISHED)
            pieces.append(now[len(known) :] if whole else "")
            if whole:
                begin, end = end, i
        return pieces


def _contains(text: str, turn: str) -> bool:
    """Whether the template wrote the turn, white space aside: as it is, or as a JSON string."""
    plain = " ".join(text.split())
    return any(
        " ".join(form.split()) in plain
        for form in (turn, json.dumps(turn, ensure_ascii=False)[1:-1], json.dumps(turn)[1:-1])
    )


def _bad_template(option: str, expected: str, got: str) -> InputError:
    fix = "mend the template (target.chat_template=FILE), or join messages without one (target.chat_template=none)"
    return InputError(option, expected=expected, got=got, fix=fix)
