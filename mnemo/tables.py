"""Tables as CSV that a spreadsheet can open without running what is in them, and their columns as numbers.

A spreadsheet takes a cell for a formula if it begins with ``=``, ``+``, ``-`` or ``@`` (or with a tab or a line break
before one), whatever quotes are around it, and a cue such as ``+A==`` begins so. Such texts are written with an
apostrophe in front, as people do it by hand; plain numbers stay as they are. `read_csv` takes it off again, so mnemo
reads the very text back, and the .parquet file beside a .csv holds it as it is. Facts files (`FactSet.write`) are
what programs are given, not what people look at: they are never changed.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from mnemo.files import replacing

# A text with apostrophes before a formula gets one more, so that taking one off is always right. Japanese spreadsheets
# also take the wide forms of the signs.
_FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")  # noqa: RUF001
TEXTS = (
    "fact_id",
    "cue",
    "answer",
    "predicted",
    "concept",
    "runner_up",
    "evoked",
    "evoked_answer",
    "edit_concept",
    "top_path",
    "token",
)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def write_csv(table: pd.DataFrame, file: Path, *, float_format: str | None = None) -> None:
    """Write a table, without its index; texts that a spreadsheet would run are written as plain text.

    Args:
        table: the table.
        file: where to.
        float_format: how floats are spelled, such as ``%.6g``; None for all their digits.

    Raises:
        InputError: the file cannot be written.
    """
    text = table.columns[[not pd.api.types.is_numeric_dtype(kind) for kind in table.dtypes]]
    safe = table.assign(**{str(column): table[column].map(_safe) for column in text})
    # Until Python 3.12, csv leaves a lone carriage return bare, and a reader takes it for a line's end.
    bare = any("\r" in str(value) for column in text for value in [column, *table[column]])
    with replacing(file) as draft:
        quoting = csv.QUOTE_NONNUMERIC if bare else csv.QUOTE_MINIMAL
        safe.rename(columns=_safe).to_csv(
            draft, index=False, float_format=float_format, quoting=quoting, lineterminator="\n"
        )


def read_csv(file: str | Path, *, texts: Sequence[str] = TEXTS) -> pd.DataFrame:
    """Read a table that `write_csv` wrote: texts as they were, numbers as numbers, empty cells as missing.

    Args:
        file: the table.
        texts: columns that are text even where they look like numbers, as answers may.
    """
    table = pd.read_csv(file, keep_default_na=False, na_values=[""], dtype=dict.fromkeys(texts, "str"))
    text = table.columns[[not pd.api.types.is_numeric_dtype(kind) for kind in table.dtypes]]
    return table.assign(**{str(column): table[column].map(_exact) for column in text}).rename(columns=_exact)


def numbers(table: pd.DataFrame, column: str, *, missing: float = np.nan) -> Float[np.ndarray, " row"]:
    """Return a column as floats, with `missing` where it holds nothing, and everywhere if there is no such column."""
    if column not in table:
        return np.full(len(table), missing)
    return table[column].to_numpy(dtype=float, na_value=missing)


def mean_of_known(values: Float[np.ndarray, " row"]) -> float | None:
    """Return the mean of the finite values; None if there is none."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None


def _safe(value: Any) -> Any:
    if isinstance(value, str) and _FORMULA.match(value) and not _NUMBER.fullmatch(value):
        return f"'{value}"
    return value


def _exact(value: Any) -> Any:
    return value[1:] if isinstance(value, str) and value.startswith("'") and _FORMULA.match(value) else value
