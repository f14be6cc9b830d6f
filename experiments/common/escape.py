"""Text that comes from users (categories, names, paths), made harmless where it is shown: one place for each medium.

terminal   `SafeConsole`: no markup, no emoji codes, control characters as escapes
HTML       jinja's autoescape in pages, Dash's own in the dashboard; `words` in Plotly's labels
CSV        `csv_cell`: no spreadsheet takes it for a formula
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
    """Control characters as escapes: nothing moves the cursor, renames the window or turns the text around."""
    return _CONTROL.sub(
        lambda found: f"\\x{ord(found[0]):02x}" if ord(found[0]) < 256 else f"\\u{ord(found[0]):04x}", text
    )


class SafeConsole(Console):
    """A console on which brackets are brackets: styles are given as `rich.text.Text`, never as markup in a text."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """As in rich, for every text that is printed and every cell, title and column of a table."""
        return super().render_str(visible(text), **options)


def csv_cell(cell: Any) -> Any:
    """A text that begins like a formula begins with an apostrophe instead; numbers stay numbers."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) else cell


def words(text: str) -> str:
    """For Plotly, which reads a little HTML in its labels."""
    return escape(visible(text), quote=False)
