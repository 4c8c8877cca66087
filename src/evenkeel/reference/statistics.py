"""Statistics of a set of numbers by their definitions, in float64 and two passes: the oracle."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor


def tensor_statistics(x: Tensor, bounds: Sequence[float] = ()) -> dict[str, float | list[float]]:
    """Of all elements of x, by the names of the fields of `evenkeel.functional.TensorStatistics`.

    Sums are exact and rounded once, the mean's own rounding is all that is left: moments are off by less than 1e-15
    of their size about the exact mean.
    """
    values = [float(value) for value in x.double().reshape(-1)]
    finite = [value for value in values if math.isfinite(value)]
    mean = math.fsum(finite) / max(1, len(finite))
    return {
        "count": len(finite),
        "mean": mean,
        "second": math.fsum((value - mean) ** 2 for value in finite),
        "third": math.fsum((value - mean) ** 3 for value in finite),
        "fourth": math.fsum((value - mean) ** 4 for value in finite),
        "minimum": min(finite, default=math.inf),
        "maximum": max(finite, default=-math.inf),
        "nan": sum(math.isnan(value) for value in values),
        "infinite": sum(math.isinf(value) for value in values),
        "below": [sum(value < bound for value in finite) for bound in bounds],
        "above": [sum(value > bound for value in finite) for bound in bounds],
    }
