"""Escape text that comes from users (categories, names, paths), in one way for each medium.

terminal   `SafeConsole`: no markup, no emoji codes, control characters as escapes
HTML       jinja's autoescape in pages, Dash's own in the dashboard; `words` in Plotly's labels
CSV        `csv_cell`: spreadsheets do not read it as a formula
"""

from __future__ import annotations

import re
from html import escape
from typing import Any

from rich.console import Console
from rich.text import Text

# C0 without newline and tab, DEL, C1, marks that turn the direction of text, halves of surrogate pairs
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def visible(text: str) -> str:
    """Escape control characters, so that no text moves the cursor, renames the window or changes direction."""
    return _CONTROL.sub(
        lambda found: f"\\x{ord(found[0]):02x}" if ord(found[0]) < 256 else f"\\u{ord(found[0]):04x}", text
    )


class SafeConsole(Console):
    """A console that prints brackets as they are. Styles are given as `rich.text.Text`, never as markup."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Escape every printed text, and every cell, title and column of a table; otherwise as in rich."""
        return super().render_str(visible(text), **options)


def csv_cell(cell: Any) -> Any:
    """Put an apostrophe before a text that begins like a formula; numbers stay numbers."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) else cell


def words(text: str) -> str:
    """Escape a text for labels of Plotly, which interprets some HTML."""
    return escape(visible(text), quote=False)
