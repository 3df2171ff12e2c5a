"""Text that somebody else wrote, such as names in a record, as it is shown."""

from __future__ import annotations


def visible(text: str) -> str:
    """The text with escapes for all characters that cannot be printed, line ends included.

    Example:
        >>> visible("a\\n\\x1b[1mb")
        'a\\\\n\\\\x1b[1mb'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def cut(text: str, most: int) -> str:
    """The text, shortened to at most `most` characters."""
    return text if len(text) <= most else f"{text[: most - 4]} ..."
