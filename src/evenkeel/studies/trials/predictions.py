"""What a model's predictions of held-out tokens are like: how sure they are, and whether rightly."""

from __future__ import annotations

import torch
from torch import Tensor

from ...instruments.head import HeadInstrument
from ...nn import Transformer
from ...tracing.events import HeadEvent

_READ = {
    "confidence": "top_probability",
    "accuracy": "accuracy",
    "calibration error": "ece",
    "best temperature": "optimal_temperature",
}
_CHUNK = 32  # rows of tokens that are computed at once


@torch.no_grad()
def next_token_odds(model: Transformer, rows: Tensor) -> Tensor:
    """Of each next token: log p up to a constant of the row, (rows, length − 1, vocabulary), whatever the head is."""
    logits = model(rows[:, :-1]).logits
    return model.head.log_odds(logits.float())


@torch.no_grad()
def row_losses(model: Transformer, rows: Tensor) -> Tensor:
    """Negative log-likelihood of each next token, in nats, (rows, length − 1), of the distribution over the vocabulary.

    Of a head of independent sigmoids the distribution is p_i = σ(z_i) / Σ_j σ(z_j).
    """
    model.eval()
    found = []
    for chunk in rows.split(_CHUNK):
        odds = next_token_odds(model, chunk).log_softmax(-1)
        found.append(-odds.gather(-1, chunk[:, 1:, None])[..., 0])
    return torch.cat(found)


def copy_loss(model: Transformer, rows: Tensor) -> float:
    """The loss on the second half of rows that repeat their first half: what is left for a model that can copy is 0."""
    half = rows.shape[1] // 2
    repeated = torch.cat([rows[:, :half], rows[:, :half]], dim=1)
    return row_losses(model, repeated)[:, half:].mean().item()


@torch.no_grad()
def predictions(model: Transformer, rows: Tensor) -> dict[str, float]:
    """Numbers of a model's predictions of the tokens of rows (rows, length), by name.

    confidence: the mean of the largest probability, and of those predictions alone that are wrong. calibration error:
    in 15 bins (Guo et al. 2017). best temperature: the one of a grid at which the loss is smallest. A head of
    independent sigmoids is judged by the distribution σ(z_i) / Σ_j σ(z_j); Σ_j σ(z_j) is what "sum of probabilities" is
    about: 1 for every softmax.
    """
    model.eval()
    instrument = HeadInstrument()
    sure_and_wrong, wrong, sums = 0.0, 0, []
    for chunk in rows.split(_CHUNK):
        odds, targets = next_token_odds(model, chunk).flatten(0, 1), chunk[:, 1:].flatten()
        instrument.observe(HeadEvent(logits=odds, targets=targets))
        top, choice = odds.softmax(-1).max(-1)
        missed = choice != targets
        sure_and_wrong, wrong = sure_and_wrong + top[missed].sum().item(), wrong + int(missed.sum())
        sums.append(odds.exp().sum(-1) if model.config.head.kind == "sigmoid" else torch.ones_like(top))
    read = {stat.name: value.item() for stat, value in instrument.read().items()}
    found = {name: read[stat] for name, stat in _READ.items()}
    summed = torch.cat(sums)
    return found | {
        "confidence − accuracy": found["confidence"] - found["accuracy"],
        "confidence where wrong": sure_and_wrong / wrong if wrong else 0.0,
        "sum of probabilities": summed.mean().item(),
        "sum of probabilities: deviation": summed.std().item(),
    }
