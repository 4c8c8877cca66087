"""How tokens are chosen, as options of the command line: temperature, filters and penalties, declared once."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..functional import Sampler

_Options = dict[str, tuple[type, str, str]]

_FILTERS: _Options = {
    "top-k": (int, "K", "keep the K most probable"),
    "top-p": (float, "P", "keep the shortest prefix whose mass reaches P"),
    "min-p": (float, "P", "keep what has at least this share of the largest probability"),
    "typical-p": (float, "P", "keep the most typical ones whose mass reaches P"),
    "top-n-sigma": (float, "N", "keep logits within N standard deviations of the largest"),
    "epsilon": (float, "P", "keep probabilities of at least this size"),
}
_PENALTIES: _Options = {
    "repetition-penalty": (float, "R", "divide positive and multiply negative logits of earlier tokens by R"),
    "presence-penalty": (float, "A", "subtract A from the logits of earlier tokens"),
    "frequency-penalty": (float, "A", "subtract A for each time that they came"),
}


def add_sampler_options(parser: argparse.ArgumentParser, *, penalties: bool = False) -> None:
    """Add the temperature, the filters and their order; penalties for what has tokens that came before."""
    parser.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        metavar="T",
        help="divide logits by it; 0 takes the largest (default: 1)",
    )
    for name, (kind, letter, text) in (_FILTERS | _PENALTIES if penalties else _FILTERS).items():
        parser.add_argument(f"--{name}", type=kind, metavar=letter, help=text)
    parser.add_argument(
        "--order", choices=("transformers", "llama.cpp"), default="transformers", help="temperature first, or last"
    )


def given(arguments: argparse.Namespace) -> dict[str, Any]:
    """The filters and penalties that were given, by the names of a Sampler's fields."""
    names = (name.replace("-", "_") for name in _FILTERS | _PENALTIES)
    values = {name: getattr(arguments, name, None) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def chosen_sampler(arguments: argparse.Namespace) -> Sampler:
    """The Sampler that the options describe; raises UsageError for a value out of its range."""
    from ..functional import Sampler

    return Sampler(temperature=arguments.temperature, order=arguments.order, **given(arguments))
