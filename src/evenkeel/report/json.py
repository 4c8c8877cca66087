"""The document as JSON, for programs: pure ASCII, so that it survives every terminal and pipe."""

from __future__ import annotations

import json
from collections.abc import Collection

from ..schema import Document, Finding


def render(
    document: Document, *, width: int | None = None, color: bool = False, new: Collection[Finding] | None = None
) -> str:
    """The document as JSON text; with `new`, every finding says under "new" whether it is one of them."""
    data = document.to_dict()
    if new is not None:
        for finding, entry in zip(document.findings, data["findings"], strict=True):
            entry["new"] = finding in new
    return json.dumps(data, indent=2, allow_nan=False)
