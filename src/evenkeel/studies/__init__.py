"""Fair ablations: arms matched in size, tuned alike, paired by seed, judged by stated statistics."""

from .comparing import NAME, Run, begin, compare, resume, take_over
from .comparison import ArmPlan, ArmSummary, Comparison, Interval, Verdict
from .drawing import draw_comparison
from .exports import EXPORTS
from .methods import draw_methods
from .reading import read_study
from .results import Evaluation, TrialResult
from .study import Arm, Contrast, Study
from .working import Report

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
