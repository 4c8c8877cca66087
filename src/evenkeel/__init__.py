"""evenkeel keeps transformers on an even keel: it sees, chooses and builds their nonlinear parts.

Names are imported when they are first used, so that rules, records and reports never load torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import faults, functional, integrations, nn
    from .architectures.describing import describe
    from .diagnosis import Diagnosis
    from .inspection import inspect
    from .ledger import claims
    from .nn import Transformer, TransformerConfig
    from .records import Record
    from .schema import Change
    from .settings import Settings
    from .studies import compare
    from .surgery import swap
    from .watching import Watch, watch

_HOMES = {
    "Change": "schema",
    "Diagnosis": "diagnosis",
    "Record": "records",
    "Settings": "settings",
    "Transformer": "nn",
    "TransformerConfig": "nn",
    "Watch": "watching",
    "claims": "ledger",
    "compare": "studies",
    "describe": "architectures.describing",
    "inspect": "inspection",
    "swap": "surgery",
    "watch": "watching",
}
_PACKAGES = ("faults", "functional", "integrations", "nn")

__all__ = [
    "Change",
    "Diagnosis",
    "Record",
    "Settings",
    "Transformer",
    "TransformerConfig",
    "Watch",
    "claims",
    "compare",
    "describe",
    "faults",
    "functional",
    "inspect",
    "integrations",
    "nn",
    "swap",
    "watch",
]


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
