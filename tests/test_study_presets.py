"""Each preset is the feed-forward of that name: as many matrices and the function that torch has."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from evenkeel.functional import ACTIVATIONS
from evenkeel.nn import FeedForward, TransformerConfig
from evenkeel.nn.config.axes import nested
from evenkeel.studies.reading.axes import choices_of
from evenkeel.studies.reading.presets import PRESETS

SHAZEER: dict[str, tuple[int, Any]] = {  # matrices, and the function by torch
    "relu": (2, F.relu),
    "gelu": (2, F.gelu),
    "swish": (2, F.silu),
    "glu": (3, torch.sigmoid),
    "bilinear": (3, lambda x: x),
    "reglu": (3, F.relu),
    "geglu": (3, F.gelu),
    "swiglu": (3, F.silu),
}
OTHERS = {
    "silu": (2, F.silu),
    "sigmoid": (2, torch.sigmoid),
    "tanh": (2, torch.tanh),
    "relu2": (2, lambda x: F.relu(x) ** 2),
    "geglu_tanh": (3, lambda x: F.gelu(x, approximate="tanh")),
    "softplus": (2, F.softplus),
    "mish": (2, F.mish),
}


@pytest.mark.parametrize(("name", "wanted"), [*SHAZEER.items(), *OTHERS.items()])
def test_a_preset_is_the_layer_of_that_name(name: str, wanted: tuple[int, Any]) -> None:
    matrices, function = wanted
    config = TransformerConfig.from_dict(nested(choices_of("feedforward", name)))
    layer = FeedForward(config.d_model, config.feedforward)
    weights = dict(layer.named_parameters())
    assert len(weights) == matrices
    x = torch.randn(3, config.d_model, generator=torch.Generator().manual_seed(0))
    first = function(x @ weights["gate.weight" if matrices == 3 else "up.weight"].T)
    hidden = first * (x @ weights["up.weight"].T) if matrices == 3 else first
    torch.testing.assert_close(layer(x), hidden @ weights["down.weight"].T)


def test_every_activation_is_a_preset_and_every_preset_is_tested() -> None:
    assert set(PRESETS) <= {*SHAZEER, *OTHERS}
    for name in set(ACTIVATIONS) - set(PRESETS):
        assert choices_of("feedforward", name) == {"feedforward.activation": name, "feedforward.gated": False}
