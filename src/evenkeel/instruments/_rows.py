"""An even sample of a table's rows, for statistics whose sampling error is far below their bounds."""

from __future__ import annotations

from torch import Tensor

_VALUES = 2**14
_LEAST = 32


def some_rows(table: Tensor) -> Tensor:
    """(rows, columns): all of them, or every so manieth of a large table, at most 16,384 values or 32 rows."""
    most = max(_LEAST, _VALUES // max(1, table.shape[1]))
    return table[:: -(-table.shape[0] // most)] if table.shape[0] > most else table
