"""Claims on softmax as what language models predict with, and on what cross-entropy needs (C52, C53)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .. import functional as F
from ._claim import Bound, Claim, Measurement
from ._families import TOKENS, installed_families, instance, predicted, transformers_installed
from ._stacks import normal
from ._text import Text

_FAMILIES = ("gpt2", "opt", "llama", "mistral", "qwen3", "gemma2")
_ENOUGH_FAMILIES = 50
_CLASSES, _STEPS, _RATE = 8, 2000, 0.5


def _loss_error(family: str) -> float:
    """How far a family's own loss is from the mean of −log softmax(logits) at each next token."""
    loss, logits = predicted(instance(family))
    log_chances = F.log_softmax(logits.double(), dim=-1)
    return abs(loss + log_chances.gather(-1, torch.tensor(TOKENS[1:])[:, None]).mean().item())


def _places() -> Iterator[Measurement]:
    if not transformers_installed():
        return
    found = [sites for sites in installed_families().values() if sites is not None]
    attending = sum(any(site.kind == "attention" and site.op == "softmax" for site in sites) for sites in found)
    yield Measurement("families.traced", len(found), "families")
    yield Measurement("families.softmax_attention", attending / max(len(found), 1), "share")
    errors = {family: _loss_error(family) for family in _FAMILIES}
    for family, error in errors.items():
        yield Measurement(f"{family}.loss_distance_from_log_softmax", error, "nats")
    yield Measurement("largest_loss_distance_from_log_softmax", max(errors.values()), "nats")


C52 = Claim(
    id="C52",
    statement=Text(
        en="In language models softmax is everywhere: attention weighs its keys with it, and at the output it turns "
        "the logits into the probabilities of the next token.",
        es="En los modelos de lenguaje la softmax está en todas partes: la atención pondera con ella sus keys, y en la "
        "salida convierte los logits en las probabilidades del siguiente token.",
        pt="Nos modelos de linguagem a softmax está em toda parte: a atenção pondera com ela suas keys, e na saída ela "
        "converte os logits nas probabilidades do próximo token.",
    ),
    method=Text(
        en="Every causal language model class of transformers, as a tiny instance, traced: the share with a softmax in "
        "attention; and for six families, how far the loss that the model itself returns is from −log softmax of its "
        "logits at the next token.",
        es="Cada clase de modelo de lenguaje causal de transformers, como modelo diminuto, trazada: qué parte tiene "
        "una softmax en la atención; y en seis familias, a qué distancia está la pérdida que devuelve el propio modelo "
        "de −log softmax de sus logits en el siguiente token.",
        pt="Cada classe de modelo de linguagem causal de transformers, como modelo minúsculo, rastreada: que parte tem "
        "uma softmax na atenção; e em seis famílias, a que distância a perda que o próprio modelo devolve está de "
        "−log softmax dos seus logits no próximo token.",
    ),
    measure=_places,
    criterion=(
        Bound(measurement="families.traced", low=_ENOUGH_FAMILIES, role="noise"),
        Bound(measurement="families.softmax_attention", low=0.8),
        Bound(measurement="largest_loss_distance_from_log_softmax", high=1e-5),
        Bound(
            measurement="families.softmax_attention",
            low=1.0,
            role="caveat",
            otherwise=Text(
                en="Not in every one: recurrent families such as Mamba, RWKV and xLSTM have no softmax inside, only at "
                "the output.",
                es="No en todos: las familias recurrentes como Mamba, RWKV y xLSTM no tienen softmax en su interior, "
                "solo en la salida.",
                pt="Não em todos: as famílias recorrentes como Mamba, RWKV e xLSTM não têm softmax no interior, só na "
                "saída.",
            ),
        ),
    ),
    ops=("softmax", "log_softmax", "attention"),
    source="Vaswani et al. 2017, section 3; traced here from the code of transformers",
)


def _fitted(loss: Callable[[Tensor], Tensor]) -> Tensor:
    """The logits, (8,), at which gradient descent from 0 arrives."""
    logits = torch.zeros(_CLASSES, dtype=torch.float64, requires_grad=True)
    for _ in range(_STEPS):
        (gradient,) = torch.autograd.grad(loss(logits), logits)
        with torch.no_grad():
            logits -= _RATE * gradient
    return logits.detach()


def _scores() -> Iterator[Measurement]:
    truth = F.softmax(normal(torch.Generator().manual_seed(0), _CLASSES), dim=-1)
    chances = {
        "softmax": F.softmax(_fitted(lambda z: -(truth * F.log_softmax(z, dim=-1)).sum()), dim=-1),
        "sigmoids": F.sigmoid(_fitted(lambda z: -(truth * torch.nn.functional.logsigmoid(z)).sum())),
        "binary": F.sigmoid(
            _fitted(lambda z: torch.nn.functional.binary_cross_entropy_with_logits(z, truth, reduction="sum"))
        ),
    }
    least = -torch.xlogy(truth, truth).sum().item()
    for name, found in chances.items():
        yield Measurement(f"{name}.sum", found.sum().item(), "1")
        yield Measurement(f"{name}.distance_from_truth", (found - truth).abs().max().item(), "1")
    for name in ("softmax", "sigmoids"):
        loss = -(truth * chances[name].log()).sum().item()
        yield Measurement(f"{name}.cross_entropy_over_entropy", loss / least, "ratio")


C53 = Claim(
    id="C53",
    statement=Text(
        en="Softmax makes sure of a valid distribution, and without one cross-entropy loses its meaning.",
        es="La softmax asegura una distribución válida, y sin ella la entropía cruzada pierde su sentido.",
        pt="A softmax garante uma distribuição válida, e sem ela a entropia cruzada perde o sentido.",
    ),
    method=Text(
        en="Eight classes with known probabilities q; logits fitted by gradient descent on −Σ q log p with p from "
        "softmax, on the same with p from a sigmoid for each class, and on binary cross-entropy, class by class: the "
        "sum of p, its distance from q, and the loss over the entropy of q, below which no distribution comes.",
        es="Ocho clases con probabilidades q conocidas; logits ajustados por descenso de gradiente con −Σ q log p y p "
        "de softmax, con lo mismo y p de una sigmoide por clase, y con entropía cruzada binaria, clase por clase: la "
        "suma de p, su distancia a q y la pérdida entre la entropía de q, de la que ninguna distribución baja.",
        pt="Oito classes com probabilidades q conhecidas; logits ajustados por descida de gradiente com −Σ q log p e p "
        "da softmax, com o mesmo e p de uma sigmoide por classe, e com entropia cruzada binária, classe por classe: a "
        "soma de p, sua distância de q e a perda sobre a entropia de q, abaixo da qual nenhuma distribuição chega.",
    ),
    measure=_scores,
    criterion=(
        Bound(measurement="softmax.sum", low=1 - 1e-12, high=1 + 1e-12),
        Bound(measurement="softmax.distance_from_truth", high=1e-3),
        Bound(measurement="softmax.cross_entropy_over_entropy", low=1 - 1e-9),
        Bound(measurement="sigmoids.distance_from_truth", low=0.5),
        Bound(measurement="sigmoids.cross_entropy_over_entropy", high=0.1),
        Bound(
            measurement="binary.distance_from_truth",
            low=0.1,
            role="caveat",
            otherwise=Text(
                en="Crucial for this form of the loss only: binary cross-entropy, which also counts the classes that "
                "are not there, finds the same probabilities with sigmoids, and they come to sum to 1.",
                es="Crucial solo para esta forma de la pérdida: la entropía cruzada binaria, que cuenta también las "
                "clases que no se dan, halla las mismas probabilidades con sigmoides, y acaban sumando 1.",
                pt="Crucial só para esta forma da perda: a entropia cruzada binária, que conta também as classes que "
                "não ocorrem, acha as mesmas probabilidades com sigmoides, e elas acabam somando 1.",
            ),
        ),
    ),
    ops=("softmax", "sigmoid", "log_softmax"),
    source="Gibbs' inequality: −Σ q log p ≥ H(q) where p sums to 1 at most; Gneiting and Raftery 2007",
)
