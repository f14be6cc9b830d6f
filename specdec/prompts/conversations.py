"""Parse rows of prompt files and data sets as conversations: the user's turns, and the system message before them.

There are three kinds of rows: `turns` (Spec-Bench), `messages` (role and content) and `conversations` (ShareGPT: from
and value). Everything that is left out is counted and reported.
"""

from __future__ import annotations

import codecs
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from specdec.errors import InputError

FIELDS = ("question_id", "category", "turns")
KINDS = f"{', '.join(FIELDS)}; or messages (role, content); or conversations (from, value)"
ROLES = {
    "user": "user", "human": "user",
    "system": "system", "developer": "system",
    "assistant": "answer", "gpt": "answer", "chatgpt": "answer", "bing": "answer", "bard": "answer", "model": "answer",
}  # fmt: skip
MARKS = (  # longer ones first, because UTF-16's mark is the beginning of UTF-32's
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"), (codecs.BOM_UTF8, "utf-8-sig"),
)  # fmt: skip


@dataclass(frozen=True)
class Conversation:
    """The user's messages in order (`turns`), and the system message before them, or None."""

    turns: tuple[str, ...]
    system: str | None = None


@dataclass
class Reader:
    """Parse the rows of one source.

    Args:
        where: name of the source, used in messages.
        left_out: number of things that were left out, by kind.
    """

    where: str
    left_out: Counter[str] = field(default_factory=Counter)

    def conversation(self, row: dict[str, Any], where: str) -> Conversation | None:
        """Return the conversation of a row; None if it has no user message.

        Raises:
            InputError: the row is malformed or of an unknown kind.
        """
        if "turns" in row:
            turns, system = row["turns"], row.get("system")
            if not isinstance(turns, list) or not turns or not all(isinstance(t, str) and t.strip() for t in turns):
                expected = "turns: a list of non-empty strings"
                raise InputError(where, expected=expected, got=f"{turns!r:.60}", fix="mend the line")
            if system is not None and not isinstance(system, str):
                raise InputError(where, expected="system: text", got=f"{system!r:.60}", fix="mend the line")
            return Conversation(tuple(map(self.text, turns)), None if system is None else self.text(system))
        for name in ("messages", "conversations", "conversation"):
            if name in row:
                return self.messages(row[name], f"{where}, {name}")
        missing = [name for name in FIELDS if name not in row]
        expected, got = f"the fields {KINDS}", f"no {', '.join(missing)}"
        raise InputError(where, expected=expected, got=got, fix="add them")

    def cell(self, value: Any, where: str) -> Conversation | None:
        """Return the conversation of a data set's cell: a text, a list of the user's texts, or a list of messages.

        None if it has no user message.
        """
        if isinstance(value, list) and any(isinstance(part, dict) for part in value):
            return self.messages(value, where)
        parts = value if isinstance(value, list) else [value]
        texts = tuple(self.text(part) for part in parts if isinstance(part, str) and part.strip())
        if not texts:
            self.left_out["rows in which the user says nothing"] += 1
        elif len(texts) < len(parts):
            self.left_out["empty messages"] += len(parts) - len(texts)
        return Conversation(texts) if texts else None

    def messages(self, messages: Any, where: str) -> Conversation | None:
        """Return the conversation of a list of messages (role and content, or from and value).

        None if there is no user message. System messages after the first turn are left out.

        Raises:
            InputError: it is not a list of messages with a role.
        """
        if not isinstance(messages, list):
            raise InputError(where, expected="a list of messages", got=f"{messages!r:.60}", fix="mend the row")
        turns: list[str] = []
        system: list[str] = []
        for message in messages:
            role, text = self._message(message, where)
            if role == "user" and text:
                turns.append(text)
            elif role == "system" and text and not turns:
                system.append(text)
            else:
                self.left_out[_name(role, text)] += 1
        if not turns:
            self.left_out["rows in which the user says nothing"] += 1
            return None
        return Conversation(tuple(turns), "\n\n".join(system) or None)

    def text(self, words: str) -> str:
        """Return text that a tokenizer can read: surrogate pairs become characters, lone surrogates U+FFFD."""
        if words.isascii() or not any("\ud800" <= character <= "\udfff" for character in words):
            return words
        whole = words.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        self.left_out["halves of a character (now U+FFFD)"] += whole.count("\ufffd") - words.count("\ufffd")
        return whole

    def summary(self) -> str | None:
        """Return a line about what was left out, or None if nothing was."""
        counts = [f"{count:,} {name}" for name, count in sorted(self.left_out.items()) if count]
        return f"{self.where}: left out {', '.join(counts)}" if counts else None

    def _message(self, message: Any, where: str) -> tuple[str, str]:
        """Return a message's role ("user", "system", "answer", or the role's own name) and its text."""
        here = message if isinstance(message, dict) else {}
        role = here.get("role", here.get("from"))
        if not isinstance(role, str):
            expected = "messages with role and content, or from and value"
            raise InputError(where, expected=expected, got=f"{message!r:.60}", fix="mend the row")
        content = here.get("content", here.get("value"))
        parts = content if isinstance(content, list) else [content]
        texts = [part.get("text") if isinstance(part, dict) else part for part in parts if part is not None]
        kept = [self.text(text) for text in texts if isinstance(text, str)]
        self.left_out["parts that are not text"] += len(texts) - len(kept)
        return ROLES.get(role.lower(), role), "\n".join(kept) if any(text.strip() for text in kept) else ""


def rows(data: bytes, where: str) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the objects of a file of JSON lines or of one JSON array, each with its position for error messages.

    Raises:
        InputError: the file is empty, has another encoding than `decoded` accepts, or holds anything but JSON objects.
    """
    text = decoded(data, where).replace("\r\n", "\n").replace("\r", "\n")  # in JSON strings they are escaped
    if text.lstrip().startswith("["):
        found = _json(text, where)
        numbered = ((row, f"{where}, row {number}") for number, row in enumerate(found, 1))
    else:
        lines = enumerate(text.split("\n"), 1)  # not splitlines: texts may hold U+2028 and the like
        places = ((line, f"{where}, line {number}") for number, line in lines if line.strip())
        numbered = ((_json(line, place), place) for line, place in places)
    empty = True
    for row, place in numbered:
        empty = False
        if not isinstance(row, dict):
            raise InputError(place, expected="a JSON object", got=type(row).__name__, fix=f"write {KINDS}")
        yield row, place
    if empty:
        expected, fix = "at least one prompt", f"write lines with {KINDS}"
        raise InputError(where, expected=expected, got="an empty file", fix=fix)


def decoded(data: bytes, where: str) -> str:
    """Return the text of a file in UTF-8, or in the encoding of its byte order mark.

    Raises:
        InputError: it is neither.
    """
    encoding = next((name for mark, name in MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        got, expected = f"{error.reason} at byte {error.start:,}", f"text in {encoding.upper()}"
        raise InputError(where, expected=expected, got=got, fix="save the file as UTF-8") from error
    if "\0" in text:
        got = "zero bytes (UTF-16 without a byte order mark?)"
        raise InputError(where, expected="text in UTF-8", got=got, fix="save the file as UTF-8")
    return text


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        got = f"malformed JSON ({error})"
        raise InputError(where, expected="a JSON object", got=got, fix="mend the line") from error


def _name(role: str, text: str) -> str:
    """Return the kind of a message that is left out, for `Reader.left_out`."""
    if role == "answer":
        return "answers (the target writes its own)"
    if not text:
        return "empty messages"
    return "system messages behind a turn" if role == "system" else f"messages of {role:.20}"
