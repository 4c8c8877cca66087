"""An even sample of a table's rows, for statistics whose sampling error is far below their bounds."""

from __future__ import annotations

from torch import Tensor

_VALUES = 2**14
_LEAST = 32


def some_rows(table: Tensor) -> Tensor:
    """(rows, columns): all of them, or every so manieth of a large table, some 16,384 values or 32 rows."""
    return table[:: stride(table.shape[0], max(_LEAST, _VALUES // max(1, table.shape[1])))]


def stride(rows: int, least: int) -> int:
    """Every how manieth of so many rows is taken where at least so many are wanted.

    It is odd: rows are sequences one behind the other, and an even stride would meet the same few positions of each.
    """
    even = max(1, rows // max(1, least))
    return even - 1 + even % 2
