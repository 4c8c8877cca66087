"""Statistics of a set of numbers by their definitions, in float64 and two passes: the oracle."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor


def tensor_statistics(x: Tensor, bounds: Sequence[float] = ()) -> dict[str, Any]:
    """Of all elements of x, by the names of the fields of `evenkeel.functional.TensorStatistics`.

    Sums are exact and rounded once, and what the rounding of the mean leaves over is taken out of each deviation.
    """
    values = [float(value) for value in x.double().reshape(-1)]
    finite = [value for value in values if math.isfinite(value)]
    mean = math.fsum(finite) / max(1, len(finite))
    rest = math.fsum(value - mean for value in finite) / max(1, len(finite))
    deviations = [value - mean - rest for value in finite]
    return {
        "count": len(finite),
        "mean": mean,
        "second": math.fsum(deviation**2 for deviation in deviations),
        "third": math.fsum(deviation**3 for deviation in deviations),
        "fourth": math.fsum(deviation**4 for deviation in deviations),
        "minimum": min(finite, default=math.inf),
        "maximum": max(finite, default=-math.inf),
        "nan": sum(math.isnan(value) for value in values),
        "infinite": sum(math.isinf(value) for value in values),
        "below": [sum(value < bound for value in finite) for bound in bounds],
        "above": [sum(value > bound for value in finite) for bound in bounds],
    }
