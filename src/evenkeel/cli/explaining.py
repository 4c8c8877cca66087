"""Why a token was chosen: what the model's softmax says, and what temperature, penalties and filters make of it."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from rich.cells import cell_len, set_cell_size
from torch import Tensor

from ..functional import Sampler, distribution
from .probabilities import Spread, bar

_TOP = 4
_WIDTH, _LABEL, _COLUMN, _BAR = 80, 22, 25, 16


@dataclass(frozen=True)
class Candidate:
    """A token, its probability by the model's softmax at temperature 1, and in what the choice was drawn from."""

    token: int
    model: float
    drawn_from: float


@dataclass(frozen=True)
class Explanation:
    """The chosen token and the distributions before and after the sampler.

    model: the softmax of the model's logits, at temperature 1. drawn_from: after penalties, temperature and filters.
    candidates: the most probable tokens of both and the chosen one, by the model's probability.
    """

    token: int
    model: Spread
    drawn_from: Spread
    candidates: tuple[Candidate, ...]

    @property
    def chosen(self) -> Candidate:
        return next(candidate for candidate in self.candidates if candidate.token == self.token)

    def to_dict(self, text: Callable[[int], str]) -> dict[str, Any]:
        """As JSON has it; text: what a token adds to a text."""
        sides = (("model", self.model, self.chosen.model), ("drawn_from", self.drawn_from, self.chosen.drawn_from))
        return {
            name: {
                "probability": probability,
                "entropy_nats": spread.entropy,
                "effective_count": spread.effective_count,
                "support": spread.support,
            }
            for name, spread, probability in sides
        } | {
            "candidates": [
                {"token": item.token, "text": text(item.token), "model": item.model, "drawn_from": item.drawn_from}
                for item in self.candidates
            ]
        }


def explain(logits: Tensor, sampler: Sampler, previous: list[int], token: int) -> Explanation:
    """The choice of a token from logits (V,) after the tokens that came before."""
    logits = logits.cpu()
    model, drawn_from = distribution(logits), distribution(logits, sampler, previous=torch.tensor(previous))
    shown = {token, *_top(model), *_top(drawn_from)}
    candidates = (Candidate(item, float(model[item]), float(drawn_from[item])) for item in shown)
    return Explanation(
        token,
        Spread.of(model),
        Spread.of(drawn_from),
        tuple(sorted(candidates, key=lambda item: (-item.model, -item.drawn_from, item.token))),
    )


def _top(p: Tensor) -> list[int]:
    first = torch.sort(p, descending=True, stable=True).indices[:_TOP]
    return first[p[first] > 0].tolist()


def draw_legend(asked: list[str]) -> str:
    """What the two columns are; asked: in words what the sampler was asked for."""
    lines = ("model: the softmax of its logits, at temperature 1", f"drawn from: what is left after {', '.join(asked)}")
    wrapper = textwrap.TextWrapper(_WIDTH, subsequent_indent="  ", break_on_hyphens=False)
    return "".join(f"{part}\n" for line in lines for part in wrapper.wrap(line))


def draw(explanation: Explanation, number: int, name: Callable[[int], str]) -> str:
    """A block of lines for the so-manieth token, an empty one before it; name: how a token is shown."""
    return "".join(f"{line.rstrip()}\n" for line in _lines(explanation, number, name))


def _lines(explanation: Explanation, number: int, name: Callable[[int], str]) -> Iterator[str]:
    model, drawn_from, chosen = explanation.model, explanation.drawn_from, explanation.chosen
    yield ""
    yield f"{number}: {_cut(name(chosen.token), 40)}, probability {_probability(chosen.drawn_from)}"
    yield _line("", "model", "drawn from")
    yield _line("entropy", f"{model.entropy:.3f} nats", f"{drawn_from.entropy:.3f} nats")
    yield _line("effective vocabulary", f"{model.effective_count:,.2f}", f"{drawn_from.effective_count:,.2f}")
    yield _line("support", f"{model.support:,}", f"{drawn_from.support:,}")
    for item in explanation.candidates:
        mark = ">" if item.token == chosen.token else " "
        yield _line(name(item.token), _barred(item.model), _barred(item.drawn_from), mark)


def _line(label: str, model: str, drawn_from: str, mark: str = " ") -> str:
    return f"{mark} {set_cell_size(_cut(label, _LABEL), _LABEL)}  {model:<{_COLUMN}}  {drawn_from}"


def _barred(p: float) -> str:
    return f"{_probability(p):<7} {bar(p, _BAR)}"


def _probability(p: float) -> str:
    return f"{p:.4f}" if p >= 1e-4 else f"{p:.1e}" if p else "out"


def _cut(text: str, width: int) -> str:
    return text if cell_len(text) <= width else set_cell_size(text, width - 1) + "\N{HORIZONTAL ELLIPSIS}"
