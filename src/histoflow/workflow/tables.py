"""Tables that people open in a spreadsheet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from histoflow._files import atomic_path

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def write_csv(path: str | Path, table: pd.DataFrame) -> None:
    """Write a table as CSV, whole or not at all, in which no text is a formula for the spreadsheet that opens it.

    Texts and names of columns that begin with ``= + - @``, a tab or a line break get an apostrophe in front, which
    spreadsheets take for "this is text"; numbers stay as they are.

    Parameters
    ----------
    path
        File to write.
    table
        Its index is not written.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    plain = table.rename(columns=_as_text)
    for column in plain.columns[[not pd.api.types.is_numeric_dtype(kind) for kind in plain.dtypes]]:
        plain[column] = plain[column].map(_as_text)
    with atomic_path(path) as temporary:
        plain.to_csv(temporary, index=False)


def _as_text(value: Any) -> Any:
    """A text that a spreadsheet takes for one; a carriage return, which the csv module does not quote, ends no row."""
    if not isinstance(value, str):
        return value
    text = value.replace("\r\n", "\n").replace("\r", "\n")
    return f"'{text}" if value.startswith(_FORMULA) else text
