"""Load prompt sets: built in, from a JSONL file, or from any data set. `PromptEncoder` turns them into token ids."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from specdec.errors import InputError
from specdec.extras import require_extra
from specdec.files.checked import read_bounded
from specdec.model.target import TargetModel
from specdec.notes import note
from specdec.prompts.conversations import FIELDS, KINDS, Reader, rows

UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # a tokenizer decodes incomplete characters to this
TOO_LONG = ("refuse", "skip")
BUILTIN = {"mixed": "builtin_prompts.jsonl", "edits": "edit_prompts.jsonl", "agent": "agent_prompts.jsonl"}
MOST_FILE = 4 * 2**30  # largest file of prompts, in bytes


@dataclass(frozen=True)
class Prompt:
    """One conversation whose answers are to be generated.

    Args:
        id: unique in its set.
        category: kind of prompt, for figures by category.
        turns: the user's messages.
        system: the system message before them, or None.
    """

    id: str
    category: str
    turns: tuple[str, ...]
    system: str | None = None

    def line(self) -> str:
        """Return the prompt as a line of a JSONL file that `jsonl` reads."""
        data: dict[str, Any] = dict(zip(FIELDS, (self.id, self.category, self.turns), strict=True))
        if self.system is not None:
            data["system"] = self.system
        return json.dumps(data, ensure_ascii=False) + "\n"


@dataclass(frozen=True)
class Skipped:
    """A prompt that was left out because it was too long, or a turn of a conversation that became too long.

    Args:
        prompt: id of the prompt.
        turn: index of the turn that was not answered.
        tokens: length of the prompt up to this turn.
        room: largest length that fits.
    """

    prompt: str
    turn: int
    tokens: int
    room: int


class PromptSet(list[Prompt]):
    """The prompts of a source, in its order.

    Args:
        prompts: the prompts.
        too_long: "refuse" to raise an error for prompts that do not fit the context window, "skip" to leave them out.

    Raises:
        InputError: `too_long` is neither.
    """

    def __init__(self, prompts: Iterable[Prompt], too_long: str = TOO_LONG[0]) -> None:
        super().__init__(prompts)
        if too_long not in TOO_LONG:
            expected, got = " or ".join(TOO_LONG), repr(too_long)
            raise InputError("prompts.too_long", expected=expected, got=got, fix="choose one")
        self.too_long = too_long

    @property
    def skips(self) -> bool:
        return self.too_long == "skip"

    def fitting(self, tokens: Callable[[Prompt], int], room: int | None) -> tuple[list[Prompt], list[Skipped]]:
        """Return the prompts to run, and those that are left out because they have more than `room` tokens.

        A line on stderr tells how many were left out. Without `skips`, no prompt is left out.

        Args:
            tokens: counts the tokens of a prompt.
            room: largest number of tokens; None for no limit.

        Raises:
            InputError: all prompts are too long.
        """
        if not self.skips or room is None:
            return list(self), []
        lengths = [tokens(prompt) for prompt in self]
        skipped = [Skipped(p.id, 0, n, room) for p, n in zip(self, lengths, strict=True) if n > room]
        if len(skipped) == len(self):
            raise InputError(
                "prompts", expected=f"one of at most {room:,} tokens: the context window less the new ones",
                got=f"{min(lengths):,} tokens in the shortest", fix="shorten one or lower generation.max_new_tokens",
            )  # fmt: skip
        if skipped:
            note(f"prompts: left out {len(skipped):,} longer than {room:,} tokens")
        return [prompt for prompt, n in zip(self, lengths, strict=True) if n <= room], skipped


def first_turns(prompts: PromptSet, encoder: PromptEncoder, window: int | None, new_tokens: int) -> list[list[int]]:
    """Return the token ids of every prompt's first turn, up to the answer; prompts that are skipped are left out.

    Args:
        prompts: the prompts.
        encoder: tokenizer and chat template.
        window: the context window in tokens; None for no limit.
        new_tokens: tokens of the context window to leave free for the answer.
    """
    room = None if window is None else window - new_tokens

    def first(prompt: Prompt) -> list[int]:
        return encoder.encode(prompt.turns[:1], [], f"prompt {prompt.id}", prompt.system)

    kept, _ = prompts.fitting(lambda prompt: len(first(prompt)), room)
    return [first(prompt) for prompt in kept]


def builtin(limit: int | None = None, too_long: str = TOO_LONG[0], kind: str = "mixed") -> PromptSet:
    """Return built-in prompts.

    Args:
        limit: as in `jsonl`.
        too_long: as in `jsonl`.
        kind: `mixed`, ten in each of six categories; `edits`, texts to return with a change; `agent`, conversations of
            tool calls and records that repeat a system message and each other's form.

    Raises:
        InputError: another kind.
    """
    if kind not in BUILTIN:
        raise InputError("prompts.kind", expected=f"one of {', '.join(BUILTIN)}", got=repr(kind), fix="choose one")
    source = resources.files("specdec") / "data" / BUILTIN[kind]
    return PromptSet(even_share(_parse(source.read_bytes(), f"built-in prompts ({kind})"), limit), too_long)


def jsonl(path: str, limit: int | None = None, too_long: str = TOO_LONG[0]) -> PromptSet:
    """Return the prompts of a JSON file: one object per line, or one array of objects.

    Kinds of objects: `question_id`, `category`, `turns` and optionally `system` (the format of Spec-Bench); `messages`
    (role, content); `conversations` (ShareGPT: from, value). If an id occurs again, a number is appended to it.

    Args:
        path: the file, in UTF-8 or with a byte order mark.
        limit: largest number of prompts, taken evenly from the categories; None for all.
        too_long: "refuse" or "skip", see `PromptSet`.

    Raises:
        InputError: no such file, an empty file, a malformed line, a missing field, or an empty turn.
    """
    try:
        data = read_bounded(Path(path), MOST_FILE)
    except (OSError, ValueError) as error:
        raise InputError(
            "prompts.path", expected="a readable JSONL file", got=f"{path!r} ({error})", fix="check the path"
        ) from error
    return PromptSet(even_share(_parse(data, path), limit), too_long)


def dataset(
    name: str,
    split: str = "train",
    column: str = "prompt",
    subset: str | None = None,
    limit: int | None = None,
    too_long: str = TOO_LONG[0],
    **options: Any,
) -> PromptSet:
    """Return prompts from any source of the `datasets` library.

    Args:
        name: hub id, folder, or format ("json", "parquet") with data_files=...
        split: name of a split.
        column: name of a column with texts (one turn), lists of texts (the user's turns), or lists of messages (role
            and content, or from and value). Rows without a user message are left out.
        subset: name of a configuration of the data set.
        limit: number of prompts, from the beginning; None for all.
        too_long: "refuse" or "skip", see `PromptSet`.
        options: passed to `datasets.load_dataset`.

    Raises:
        InputError: the library is missing, or there is no such data set, split or column, or the column has no text.
    """
    require_extra("datasets", "prompts=dataset")
    import datasets

    try:
        table = datasets.load_dataset(name, subset, split=split, **options)
    except Exception as error:  # the library raises exceptions of many kinds
        raise InputError(
            "prompts.name", expected="a data set that can be loaded", got=f"{name!r} ({str(error).splitlines()[0]})",
            fix="check the name, its subset and split, and your access",
        ) from error  # fmt: skip
    if column not in table.column_names:
        raise InputError(
            "prompts.column", expected=f"one of {', '.join(table.column_names)}", got=repr(column), fix="choose one"
        )
    reader, prompts = Reader(f"prompts.column={column}"), list[Prompt]()
    for number, value in enumerate(table[column]):
        if limit is not None and len(prompts) >= limit:
            break
        if found := reader.cell(value, f"{name}, row {number}"):
            prompts.append(Prompt(f"{name}-{number}", name, found.turns, found.system))
    if not prompts:
        raise InputError(
            "prompts.column", expected="texts, or lists of texts or messages", got=f"none in {column!r}",
            fix="choose another column",
        )  # fmt: skip
    _tell(reader.summary())
    return PromptSet(prompts, too_long)


def even_share(prompts: Sequence[Prompt], limit: int | None) -> list[Prompt]:
    """Return at most `limit` prompts, taken evenly from the categories, in the order of the file.

    The categories take turns; if one runs out, the others take its turns.

    Raises:
        InputError: `limit` < 1.
    """
    if limit is None or limit >= len(prompts):
        return list(prompts)
    if limit < 1:
        raise InputError("prompts.limit", expected="an integer >= 1, or null for all", got=repr(limit), fix="raise it")
    rank: dict[str, int] = {}
    order = []  # (number of prompts of its category before it, index in the file)
    for place, prompt in enumerate(prompts):
        rank[prompt.category] = rank.get(prompt.category, -1) + 1
        order.append((rank[prompt.category], place))
    return [prompts[place] for place in sorted(place for _, place in sorted(order)[:limit])]


def distinct(prompts: Sequence[Prompt], where: str) -> list[Prompt]:
    """Return the prompts with unique ids. If an id occurs again, append a number to it and print a line about it."""
    known, repeated, named = {prompt.id for prompt in prompts}, Counter[str](), []
    for prompt in prompts:
        repeated[prompt.id] += 1
        name, number = prompt.id, repeated[prompt.id]
        if number > 1:
            while (name := f"{prompt.id}#{number}") in known:
                number += 1
            known.add(name)
        named.append(replace(prompt, id=name))
    if again := [(old.id, new.id) for old, new in zip(prompts, named, strict=True) if old.id != new.id]:
        several = list(dict.fromkeys(old for old, _ in again))
        shown = ", ".join(several[:5]) + (", ..." if len(several) > 5 else "")
        ids = f"{len(several):,} ids stand on several rows ({shown})"
        note(f"{where}: {ids}; the later ones are called {again[0][1]} and so on")
    return named


def _parse(data: bytes, where: str) -> list[Prompt]:
    reader, prompts = Reader(where), list[Prompt]()
    for number, (row, place) in enumerate(rows(data, where), 1):
        if found := reader.conversation(row, place):
            chat = "turns" not in row
            missing = [] if chat else [field for field in FIELDS if field not in row]
            if missing:
                raise InputError(
                    place, expected=f"the fields {', '.join(FIELDS)}", got=f"no {', '.join(missing)}", fix="add them"
                )
            name = row.get("question_id", row.get("id", number) if chat else None)
            category = row.get("category", Path(where).stem)
            names = [reader.text(_name(value, place, field)) for value, field in ((name, "id"), (category, "category"))]
            prompts.append(Prompt(names[0], names[1], found.turns, found.system))
    _tell(reader.summary())
    if not prompts:
        expected, got = "at least one prompt", "no row in which the user says something"
        raise InputError(where, expected=expected, got=got, fix=f"write lines with {KINDS}")
    return distinct(prompts, where)


def _name(value: Any, where: str, field: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise InputError(where, expected=f"{field}: text or a number", got=f"{value!r:.60}", fix="mend the line")
    return str(value)


def _tell(words: str | None) -> None:
    if words is not None:
        note(words)


class PromptEncoder:
    """Encode conversations with the tokenizer's chat template; without one, join the messages by blank lines.

    Args:
        tokenizer: tokenizer of the target.
        variables: variables of the chat template besides the messages (enable_thinking, tools).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, variables: Mapping[str, Any] | None = None) -> None:
        self._tokenizer, self._variables = tokenizer, dict(variables or {})

    @classmethod
    def of(cls, target: TargetModel) -> PromptEncoder:
        """Return an encoder with a target's tokenizer and template variables.

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
        """The chat template and its variables, as one text that identifies the format of conversations."""
        return str(self._tokenizer.chat_template) + (
            json.dumps(self._variables, default=str) if self._variables else ""
        )

    def encode(
        self, turns: Sequence[str], answers: Sequence[str], option: str = "prompt", system: str | None = None
    ) -> list[int]:
        """Return the token ids of a conversation, up to the answer to its last turn.

        Args:
            turns: the user's messages.
            answers: answers to all turns except the last.
            option: name used in error messages, for example that of the prompt.
            system: system message before the first turn, or None.

        Raises:
            InputError: the chat template does not parse, raises an exception, or leaves out a message.
        """
        if self._tokenizer.chat_template is None:
            texts = [text for pair in zip(turns, [*answers, ""], strict=True) for text in pair if text]
            return list(self._tokenizer.encode("\n\n".join([system, *texts] if system else texts)))
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": turns[0]})
        for answer, turn in zip(answers, turns[1:], strict=True):
            messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": turn}]
        text = self.written(messages, option)
        if lost := next((turn for turn in [*filter(None, [system]), *turns] if not _contains(text, turn)), None):
            expected = "a chat template that writes what is said"
            raise _bad_template(option, expected, f"one that leaves out or changes {lost!r:.60}")
        ids = self._apply(messages, tokenize=True, return_dict=False)
        return list(ids)

    def written(self, messages: Sequence[Mapping[str, str]], option: str = "prompt") -> str:
        """Return the conversation as text of the chat template, up to the answer.

        Raises:
            InputError: the template does not parse, or raises an exception.
        """
        try:
            return str(self._apply(messages, tokenize=False))
        except Exception as error:  # Jinja's exceptions, and all that an expression in a template can raise
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
        """Return the text that each token adds; joined, they equal `decode(ids)`.

        A character that consists of several tokens is added by the last one.
        """
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
    """Return whether `text` contains `turn`, as it is or as a JSON string; white space is ignored."""
    plain = " ".join(text.split())
    return any(
        " ".join(form.split()) in plain
        for form in (turn, json.dumps(turn, ensure_ascii=False)[1:-1], json.dumps(turn)[1:-1])
    )


def _bad_template(option: str, expected: str, got: str) -> InputError:
    fix = "mend the template (target.chat_template=FILE), or join messages without one (target.chat_template=none)"
    return InputError(option, expected=expected, got=got, fix=fix)
