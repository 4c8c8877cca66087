"""A document walked in its order: what each sentence states, how it is tested, what came out; as text, page or data."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ._claim import MeasuredClaim
from ._documents import DOCUMENTS, SourceDocument
from ._drawing import SENTENCES, VERDICTS_IN_WORDS, interval, ran, wrapped
from ._running import Ledger, claims
from ._sentences import Sentence
from ._text import Language, Text, in_language

_WIDTH = 80
_INDENT = " " * 4

_NO_CLAIM = Text(en="no claim", es="ninguna afirmación", pt="nenhuma afirmação")
_SEE = Text(en="see sentence", es="véase la frase", pt="ver a frase")
_EXPERIMENT = Text(en="experiment", es="experimento", pt="experimento")
_NUMBER = Text(en="number", es="número", pt="número")
_HEADS = Text(
    en="| sentence | claim | number | verdict |",
    es="| frase | afirmación | número | veredicto |",
    pt="| frase | afirmação | número | veredito |",
)
_NOT_MEASURED = Text(en="not measured", es="sin medir", pt="não medido")


@dataclass(frozen=True, kw_only=True)
class Walk:
    """A document with the measured claims that its sentences make. name: in `DOCUMENTS`."""

    name: str
    ledger: Ledger

    @property
    def document(self) -> SourceDocument:
        """The document walked."""
        return DOCUMENTS[self.name]

    @property
    def measured(self) -> Mapping[str, MeasuredClaim]:
        """The measured claims by their ids."""
        return {item.claim.id: item for item in self.ledger.claims}

    def to_dict(self) -> dict[str, Any]:
        """The ledger of the document's claims, and beside it the document, sentence by sentence."""
        document = self.document
        return {
            **self.ledger.to_dict(),
            "document": {
                "name": self.name,
                "number": document.number,
                "title": document.title,
                "languages": list(document.languages),
                "sentences": [
                    {
                        "sentence": number,
                        "fingerprint": sentence.fingerprint,
                        "claims": list(sentence.claims),
                        "no_claim": sentence.no_claim.to_dict() if sentence.no_claim else None,
                    }
                    for number, sentence in enumerate(document.sentences, 1)
                ],
            },
        }

    def to_json(self, *, indent: int | None = 2) -> str:
        """The walk as JSON text; every text in all its languages."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False, ensure_ascii=False)


def walk(name: str, *, progress: Callable[[int, int], object] | None = None) -> Walk:
    """Measure the claims of a document, given by its name in `DOCUMENTS`, each once; progress as of `claims`."""
    return Walk(name=name, ledger=claims(DOCUMENTS[name].claims, progress=progress))


def draw_walk(found: Walk, language: Language, width: int | None = None) -> str:
    """Each sentence's number with its statements, experiments, numbers and verdicts, or the reason why it has none.

    A claim that an earlier sentence makes is told there, and named here with its verdict.
    """
    return "\n".join(_walk(found, language, min(width or _WIDTH, _WIDTH)))


def _walk(found: Walk, language: Language, width: int) -> Iterator[str]:
    document, measured = found.document, found.measured
    title = f"{document.number} {found.name}: “{document.title}” ({', '.join(document.languages)}), "
    yield wrapped(f"{title}{len(document.sentences)} {in_language(SENTENCES, language)}", width)
    told: dict[str, int] = {}
    for number, sentence in enumerate(document.sentences, 1):
        yield ""
        start = f"{number:2}  "
        for text in _sentence(sentence, measured, told, language):
            yield wrapped(text, width, start, _INDENT)
            start = _INDENT
        told |= {name: number for name in sentence.claims if name not in told}


def _sentence(
    sentence: Sentence, measured: Mapping[str, MeasuredClaim], told: Mapping[str, int], language: Language
) -> Iterator[str]:
    if sentence.no_claim:
        yield f"{in_language(_NO_CLAIM, language)}: {in_language(sentence.no_claim, language)}"
    for name in sentence.claims:
        item = measured[name]
        verdict = in_language(VERDICTS_IN_WORDS[item.verdict], language)
        if name in told:
            yield f"{name}  {verdict} ({in_language(_SEE, language)} {told[name]})"
            continue
        yield f"{name}  {verdict}: {in_language(item.claim.statement, language)}"
        yield f"{in_language(_EXPERIMENT, language)}: {in_language(item.claim.method, language)}"
        mark = f" [{when}]" if (when := ran(item, language)) else ""
        yield f"{in_language(_NUMBER, language)}: {deciding_number(item, language)}{mark}"


def deciding_number(item: MeasuredClaim, language: Language) -> str:
    """The measurement on which the verdict hangs, beside its bound: of the first one missed, else of the claim's."""
    bound = min(item.deciding or item.claim.criterion, key=lambda bound: bound.role != "claim")
    number = next((number for number in item.measurements if number.name == bound.measurement), None)
    if number is None:
        return f"{bound.measurement} {in_language(_NOT_MEASURED, language)} ({interval(bound)})"
    unit = "" if number.unit == "1" else f" {number.unit}"
    return f"{bound.measurement} {number.value:.4g}{unit} ({interval(bound)})"


def draw_walk_in_markdown(found: Walk, language: Language) -> str:
    """The same as a page with one table."""
    return "\n".join(_page(found, language))


def _page(found: Walk, language: Language) -> Iterator[str]:
    document, measured = found.document, found.measured
    yield f"# {document.number} {found.name}: {document.title}"
    yield ""
    yield in_language(_HEADS, language)
    yield "|---|---|---|---|"
    for number, sentence in enumerate(document.sentences, 1):
        if sentence.no_claim:
            yield f"| {number} | {in_language(_NO_CLAIM, language)}: {in_language(sentence.no_claim, language)} | | |"
        for name in sentence.claims:
            item = measured[name]
            said = f"{name}: {in_language(item.claim.statement, language)}"
            verdict = in_language(VERDICTS_IN_WORDS[item.verdict], language)
            shown = deciding_number(item, language).replace("|", "\\|")
            mark = f" ({when})" if (when := ran(item, language)) else ""
            yield f"| {number} | {said} | {shown} | {verdict}{mark} |"
