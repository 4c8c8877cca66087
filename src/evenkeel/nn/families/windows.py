"""Sliding windows: layer_types, and the settings that older files have in their place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...errors import ConfigError
from ..config import TransformerConfig
from .parts import Axes, Settings, checked, refusal

FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True)
class Windows:
    """A window for the layers that layer_types names, all of them or all but every so many-th.

    usual: the layer types of a file that names none. switch: the field without which there is no window.
    """

    usual: Callable[[Settings, int], list[str]]
    switch: str | None = None

    @property
    def fields(self) -> tuple[str, ...]:
        named = ("sliding_window", "layer_types")
        return named if self.switch is None else (self.switch, *named)

    @property
    def axes(self) -> tuple[str, ...]:
        return ("attention.window", "attention.global_every")

    def read(self, settings: Settings) -> Axes:
        depth = checked("num_hidden_layers", settings.get("num_hidden_layers"), int)
        types = settings.get("layer_types") or self.usual(settings, depth)
        if not isinstance(types, list) or len(types) != depth or not all(kind in (FULL, SLIDING) for kind in types):
            raise refusal("layer_types", types, f"it takes {depth} words, each {FULL} or {SLIDING}")
        if SLIDING not in types:
            return {"attention.window": None, "attention.global_every": None}
        if self.switch is not None and not settings.get(self.switch, False):
            raise ConfigError(
                f"config.json has {SLIDING} among its layer_types and {self.switch} false; set one as the other is"
            )
        window = checked("sliding_window", settings.get("sliding_window", 4096), int)
        return {"attention.window": window, "attention.global_every": _global_every(types)}

    def write(self, config: TransformerConfig) -> dict[str, Any]:
        attention = config.attention
        types = [FULL if attention.window_of(layer) is None else SLIDING for layer in range(config.depth)]
        slides = SLIDING in types
        switch = {} if self.switch is None else {self.switch: slides}
        return {**switch, "sliding_window": attention.window if slides else config.context, "layer_types": types}


def alternating(settings: Settings, depth: int) -> list[str]:
    """Sliding and full in turn."""
    return [SLIDING if layer % 2 == 0 else FULL for layer in range(depth)]


def behind_the_first(settings: Settings, depth: int) -> list[str]:
    """Full in the first max_window_layers, sliding behind them; full everywhere without a window."""
    slides = settings.get("use_sliding_window", False) and settings.get("sliding_window", 4096) is not None
    first = checked("max_window_layers", settings.get("max_window_layers", 28), int) if slides else depth
    return [FULL if layer < first else SLIDING for layer in range(depth)]


def _global_every(types: list[str]) -> int | None:
    full = [number for number, kind in enumerate(types, start=1) if kind == FULL]
    if not full:
        return None
    every = full[0]
    if every == 1 or full != list(range(every, len(types) + 1, every)):
        raise refusal(
            "layer_types",
            types,
            "the layers that see all tokens must be every so many-th, as with attention.global_every",
        )
    return every
