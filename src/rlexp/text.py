"""Text from outside, made safe for a terminal, a CSV file or a plot. Imports no torch."""

from __future__ import annotations

import math

# Spreadsheets read a cell that begins like this as a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def printable(text: object, keep: str = "") -> str:
    r"""The text with every character escaped that a terminal obeys, or that hides or reorders what is next to it.

    These are control characters, line ends, bidirectional marks, other invisible characters and surrogates.

    Args:
        text: anything; it is converted to text.
        keep: characters to leave as they are, such as ``"\n"``.
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def csv_cell(value: object) -> object:
    """A value as a CSV file should hold it: printable, and no formula to a spreadsheet.

    Numbers stay as they are, those that are not finite and None become empty. Text that begins like a formula gets a
    ``'`` in front, unless it is a number.
    """
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if not isinstance(value, str):
        return value
    text = printable(value, keep="\n")
    return f"'{text}" if value.startswith(_FORMULA) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
