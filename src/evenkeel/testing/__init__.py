"""Assertions in the words of the field, and the tests that an outside rule or instrument inherits.

Used by evenkeel's own tests and by those of packages that add to it; pytest is not needed to import it.
"""

from ._instruments import InstrumentConformance
from ._rules import RuleConformance
from ._ulp import UlpError, assert_ulp, ulp_error

__all__ = ["InstrumentConformance", "RuleConformance", "UlpError", "assert_ulp", "ulp_error"]
