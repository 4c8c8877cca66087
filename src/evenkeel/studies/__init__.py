"""Fair ablations: arms matched in size, tuned alike, paired by seed, judged by stated statistics.

Names are imported when they are first used, so that judging and drawing what was measured never load torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .comparing import NAME, Run, begin, compare, resume, take_over
    from .comparison import ArmPlan, ArmSummary, Comparison, Interval, Verdict
    from .drawing.exports import EXPORTS
    from .drawing.methods import draw_methods
    from .drawing.text import draw_comparison
    from .reading.specifications import read_study
    from .results import Evaluation, TrialResult
    from .running.working import Report
    from .study import Arm, Contrast, Study

_HOMES = {
    "EXPORTS": "drawing.exports",
    "NAME": "comparing",
    "Arm": "study",
    "ArmPlan": "comparison",
    "ArmSummary": "comparison",
    "Comparison": "comparison",
    "Contrast": "study",
    "Evaluation": "results",
    "Interval": "comparison",
    "Report": "running.working",
    "Run": "comparing",
    "Study": "study",
    "TrialResult": "results",
    "Verdict": "comparison",
    "begin": "comparing",
    "compare": "comparing",
    "draw_comparison": "drawing.text",
    "draw_methods": "drawing.methods",
    "read_study": "reading.specifications",
    "resume": "comparing",
    "take_over": "comparing",
}

__all__ = [
    "EXPORTS",
    "NAME",
    "Arm",
    "ArmPlan",
    "ArmSummary",
    "Comparison",
    "Contrast",
    "Evaluation",
    "Interval",
    "Report",
    "Run",
    "Study",
    "TrialResult",
    "Verdict",
    "begin",
    "compare",
    "draw_comparison",
    "draw_methods",
    "read_study",
    "resume",
    "take_over",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
