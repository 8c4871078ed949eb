"""Foreign text made fit to be shown: names, paths and messages may be hostile.

A class name may hold an ANSI escape, a right-to-left override, a line break or ten thousand
letters. Every text that is not ours goes through `clean_text` before a person sees it. Escaping
for HTML or Markdown comes after that.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

LIMIT = 200
"""Characters that are shown where nothing else is said."""
MARKS = 3
"""Combining marks on one letter; more would paint over the lines above and below."""
HIDDEN = frozenset({"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"})
"""Unicode categories of characters that are invisible, move the cursor or reorder the text."""
BLANK = frozenset("\u115f\u1160\u3164\uffa0\u2800")
"""Letters that look like nothing."""


def clean_text(text: str, limit: int = LIMIT) -> str:
    """`text` on one line, every character visible, at most `limit` characters long.

    ASCII control characters become their pictures (␛ for ESC, ␊ for a line feed); other invisible
    and reordering characters become their number in angle brackets (⟨U+202E⟩). What is too long
    loses its middle, because paths and reprs differ at their ends.
    """
    if text.isascii() and text.isprintable():
        return _shortened(text, limit)
    # Twice what is needed at most: one character may become ten, but never none.
    shown = text if len(text) <= 2 * limit else text[:limit] + text[-limit:]
    visible: list[str] = []
    marks = 0
    for character in shown:
        category = unicodedata.category(character)
        marks = marks + 1 if category in ("Mn", "Me") else 0
        if category in HIDDEN or character in BLANK or marks > MARKS:
            visible.append(_picture(character))
        elif category == "Zs":
            visible.append(" ")
        else:
            visible.append(character)
    return _shortened(visible, limit, cut=len(shown) < len(text))


def is_hidden(character: str) -> bool:
    """True where a character is invisible, moves the cursor or reorders what surrounds it."""
    return unicodedata.category(character) in HIDDEN or character in BLANK


def slug(text: str, otherwise: str) -> str:
    """Small letters, digits and dashes of a text, as probe ids have; `otherwise` if it has none."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or otherwise


def listed(parts: Sequence[str], most: int, separator: str = ", ") -> str:
    """`a, b and 3 more`: the first `most` parts as they are, and how many others there are."""
    more = f" and {len(parts) - most} more" if len(parts) > most else ""
    return f"{separator.join(parts[:most])}{more}"


def counted(number: int, what: str) -> str:
    """`1 image`, `2 images`."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def _picture(character: str) -> str:
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"⟨U+{code:04X}⟩"


def _shortened(parts: str | list[str], limit: int, *, cut: bool = False) -> str:
    """The first two thirds and the last third of `limit`, with an ellipsis between, if too long."""
    whole = "".join(parts)
    if len(whole) <= limit and not cut:
        return whole
    tail = (limit - 1) // 3
    head = limit - 1 - tail
    return f"{whole[:head]}…{whole[len(whole) - tail :]}"
