"""Reports: any document, drawn. A format is one entry here, or an entry point of the group `evenkeel.reports`."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from ..catalogue import Catalogue
from ..schema import Document, Finding
from . import json, text


class Format(Protocol):
    """Draws a document; a format that knows no width or colour does without.

    width: columns to fit in, 80 if None. color: whether terminal escapes may be used. new: where the document was
    compared with an earlier one, the findings that are not in it.
    """

    def __call__(
        self,
        document: Document,
        *,
        width: int | None = None,
        color: bool = False,
        new: Collection[Finding] | None = None,
    ) -> str: ...


FORMATS: Catalogue[Format] = Catalogue("report format", entry_point_group="evenkeel.reports")
FORMATS.add("text", text.render)
FORMATS.add("json", json.render)
