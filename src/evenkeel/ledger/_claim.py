"""What a claim is: a sentence of the documents, an experiment, and bounds that turn its numbers into a verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ..rules import RULES
from ..schema import encode_number
from ._documents import Passage, passages_of
from ._studies import MEASURED, Comparisons, Provenance
from ._text import Text

Verdict = Literal["holds", "holds with a caveat", "does not hold", "undecided"]
Role = Literal["claim", "caveat", "noise"]
Stance = Literal["says so", "says otherwise", "does not say"]

VERDICTS: tuple[Verdict, ...] = get_args(Verdict)


@dataclass(frozen=True)
class Measurement:
    """One number of an experiment. `name` is dotted, from the arm to the quantity, and never changes its meaning."""

    name: str
    value: float
    unit: str

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "value": encode_number(self.value), "unit": self.unit}


@dataclass(frozen=True, kw_only=True)
class Citation:
    """What a source says about something that code cannot measure.

    source: who, when, and where in it. says: its content, in our own words. stance: whether that is what the claim
    says, something else, or nothing about it. A claim counts its citations (`count_citations`), and its bounds are on
    these counts, so a verdict that rests on sources is computed as every other.
    """

    source: str
    says: Text
    stance: Stance

    def to_dict(self) -> dict[str, Any]:
        return {"source": self.source, "says": self.says.to_dict(), "stance": self.stance}


def count_citations(citations: Iterable[Citation]) -> tuple[Measurement, Measurement, Measurement]:
    """How many sources are for a claim (`cited.for`), against it (`cited.against`) and either (`cited.decisive`)."""
    stances = [citation.stance for citation in citations]
    says_so, says_otherwise = stances.count("says so"), stances.count("says otherwise")
    return (
        Measurement("cited.for", says_so, "sources"),
        Measurement("cited.against", says_otherwise, "sources"),
        Measurement("cited.decisive", says_so + says_otherwise, "sources"),
    )


@dataclass(frozen=True, kw_only=True)
class Bound:
    """The interval [low, high] that a measurement must lie in, and what follows if it does not.

    role: a miss of a "claim" bound means that the claim does not hold, of a "caveat" bound that it holds with a caveat,
    of a "noise" bound that nothing can be decided: too noisy, or no source says. otherwise: what a miss says, in words.
    """

    measurement: str
    low: float = -math.inf
    high: float = math.inf
    role: Role = "claim"
    otherwise: Text | None = None

    def met(self, value: float) -> bool:
        """Whether the value lies in the interval; NaN lies in none."""
        return self.low <= value <= self.high

    def to_dict(self) -> dict[str, Any]:
        return {
            "measurement": self.measurement,
            "low": encode_number(self.low),
            "high": encode_number(self.high),
            "role": self.role,
            "otherwise": self.otherwise.to_dict() if self.otherwise else None,
        }


def _no_numbers(comparisons: Comparisons) -> tuple[Measurement, ...]:
    return ()


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A statement that the documents make, and how it is tested.

    id: C01, C02, ...; permanent. statement: in our own words. method: what is measured. measure: the experiment; with
    seeds of its own, so that the same numbers come each time, clocks aside. criterion: the bounds that give the
    verdict. ops: the functions it is about. source: of the fact or of the experiment.
    citations: what sources say, where code cannot tell. studies: the ledger's studies it rests on, which take too long
    to run each time. trained: the numbers that it takes from their comparisons, once all of them have one.
    """

    id: str
    statement: Text
    method: Text
    measure: Callable[[], Iterable[Measurement]] = tuple
    criterion: tuple[Bound, ...]
    ops: tuple[str, ...]
    source: str
    citations: tuple[Citation, ...] = ()
    studies: tuple[str, ...] = ()
    trained: Callable[[Comparisons], Iterable[Measurement]] = _no_numbers

    @property
    def passages(self) -> tuple[Passage, ...]:
        """Where it is said."""
        return passages_of(self.id)

    @property
    def rules(self) -> tuple[str, ...]:
        """Codes of the rules that rest on this claim."""
        return tuple(rule.code for rule in RULES.values() if self.id in rule.claims)


_VERDICT_OF: dict[Role, Verdict] = {"noise": "undecided", "claim": "does not hold", "caveat": "holds with a caveat"}
"""What a miss of a bound of each role leads to, the weightiest first."""


@dataclass(frozen=True, kw_only=True)
class MeasuredClaim:
    """A claim with the numbers of its experiment; the verdict follows from them. run: where they come from."""

    claim: Claim
    measurements: tuple[Measurement, ...]
    run: Provenance = MEASURED

    @property
    def verdict(self) -> Verdict:
        """What the bounds say to the numbers; a number that is NaN or missing leaves the claim undecided."""
        if self.lacks_a_number:
            return "undecided"
        return _VERDICT_OF[self.deciding[0].role] if self.deciding else "holds"

    @property
    def missed(self) -> tuple[Bound, ...]:
        """The bounds whose measurement lies outside."""
        return tuple(bound for bound in self.claim.criterion if not bound.met(self._value(bound)))

    @property
    def deciding(self) -> tuple[Bound, ...]:
        """The missed bounds that the verdict follows from; none where it holds."""
        for role in _VERDICT_OF:
            if found := tuple(bound for bound in self.missed if bound.role == role):
                return found
        return ()

    @property
    def reasons(self) -> tuple[Text, ...]:
        """Why the verdict is no plain "holds": what the missed bounds say, or that a study has no run."""
        if self.run.kind == "none":
            return (_not_run(self.claim.id),)
        return tuple(dict.fromkeys(bound.otherwise for bound in self.missed if bound.otherwise))

    @property
    def lacks_a_number(self) -> bool:
        """Whether a number of the criterion is NaN or missing."""
        return any(math.isnan(self._value(bound)) for bound in self.claim.criterion)

    def _value(self, bound: Bound) -> float:
        values = (item.value for item in self.measurements if item.name == bound.measurement)
        return next(values, math.nan)

    def to_dict(self) -> dict[str, Any]:
        claim = self.claim
        return {
            "id": claim.id,
            "verdict": self.verdict,
            "statement": claim.statement.to_dict(),
            "passages": [passage.to_dict() for passage in claim.passages],
            "method": claim.method.to_dict(),
            "measurements": [item.to_dict() for item in self.measurements],
            "criterion": [{**bound.to_dict(), "met": bound not in self.missed} for bound in claim.criterion],
            "reasons": [reason.to_dict() for reason in self.reasons],
            "rules": list(claim.rules),
            "ops": list(claim.ops),
            "source": claim.source,
            "citations": [citation.to_dict() for citation in claim.citations],
            "run": self.run.to_dict(),
        }


def _not_run(name: str) -> Text:
    command = f"evenkeel claims {name} --train"
    return Text(
        en=f"It rests on trained models, and no finished run of them is at hand: {command} makes one, with "
        "evenkeel[compare] installed; --budget 30m makes a short one; the same command goes on with what was begun.",
        es=f"Se apoya en modelos entrenados y no hay a mano ninguna ejecución terminada: {command} hace una, con "
        "evenkeel[compare] instalado; --budget 30m hace una corta, y la misma orden continúa lo que se empezó.",
        pt=f"Baseia-se em modelos treinados e não há à mão nenhuma execução terminada: {command} faz uma, com "
        "evenkeel[compare] instalado; --budget 30m faz uma curta, e o mesmo comando continua o que foi iniciado.",
    )
