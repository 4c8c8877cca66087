"""A ledger as text: a table of verdicts, a page for each claim, or one Markdown page; in three languages."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator

from ..rules import RULES
from ._claim import Bound, Claim, MeasuredClaim, Role, Stance, Verdict
from ._documents import DOCUMENTS
from ._studies import RunKind
from ._text import Language, Text, in_language

_WIDEST = 100
_INDENT = "  "

VERDICTS_IN_WORDS: dict[Verdict, Text] = {
    "holds": Text(en="holds", es="se cumple", pt="vale"),
    "holds with a caveat": Text(en="holds with a caveat", es="se cumple con salvedades", pt="vale com ressalvas"),
    "does not hold": Text(en="does not hold", es="no se cumple", pt="não vale"),
    "undecided": Text(en="undecided", es="sin decidir", pt="em aberto"),
}
ROLES: dict[Role, Text] = {
    "claim": Text(en="holds only if", es="se cumple solo si", pt="só vale se"),
    "caveat": Text(en="caveat unless", es="salvedad a menos que", pt="ressalva a menos que"),
    "noise": Text(en="decided only if", es="decidible solo si", pt="decidível só se"),
}
STANCES: dict[Stance, Text] = {
    "says so": Text(en="says so", es="lo dice", pt="diz isso"),
    "says otherwise": Text(en="says otherwise", es="dice otra cosa", pt="diz outra coisa"),
    "does not say": Text(en="does not say", es="no lo dice", pt="não diz"),
}
_SAID = Text(en="Where it is said", es="Dónde se dice", pt="Onde se diz")
_SENTENCE = Text(en="sentence", es="frase", pt="frase")
SENTENCES = Text(en="sentences", es="frases", pt="frases")
_METHOD = Text(en="What is measured", es="Qué se mide", pt="O que se mede")
_MEASURED = Text(en="Measured", es="Medido", pt="Medido")
_CRITERION = Text(en="Criterion", es="Criterio", pt="Critério")
_WHY = Text(en="Why this verdict", es="Por qué este veredicto", pt="Por que este veredito")
_NOT_A_NUMBER = Text(
    en="A number that the criterion needs could not be measured.",
    es="No se pudo medir un número que el criterio necesita.",
    pt="Um número de que o critério precisa não pôde ser medido.",
)
_TOO_NOISY = Text(
    en="The measurement is too noisy to decide; run it on a quieter machine.",
    es="La medición tiene demasiado ruido para decidir; repítala en una máquina más tranquila.",
    pt="A medição tem ruído demais para decidir; repita em uma máquina mais tranquila.",
)
_RUNS: dict[RunKind, Text] = {
    "stored": Text(
        en="stored: run on {date} with torch {torch}",
        es="guardado: ejecutado el {date} con torch {torch}",
        pt="guardado: executado em {date} com torch {torch}",
    ),
    "trained": Text(
        en="trained: run on {date} with torch {torch}",
        es="entrenado: ejecutado el {date} con torch {torch}",
        pt="treinado: executado em {date} com torch {torch}",
    ),
}
_RUN = Text(en="Run", es="Ejecución", pt="Execução")
_TRIALS = Text(en="trials", es="ensayos", pt="ensaios")
_CITED = Text(en="Cited", es="Citado", pt="Citado")
_SOURCE = Text(en="Source", es="Fuente", pt="Fonte")
_RULES = Text(en="Rules", es="Reglas", pt="Regras")
_OPS = Text(en="Functions", es="Funciones", pt="Funções")
YES = Text(en="yes", es="sí", pt="sim")
NO = Text(en="no", es="no", pt="não")
_HINT = Text(
    en="evenkeel claims ID shows the numbers behind a verdict, beside its criterion.",
    es="evenkeel claims ID muestra los números de un veredicto junto a su criterio.",
    pt="evenkeel claims ID mostra os números de um veredito ao lado do seu critério.",
)


def draw_table(measured: Iterable[MeasuredClaim], language: Language, width: int | None = None) -> str:
    """One entry for each claim: id, verdict, statement."""
    return "\n".join(_table(tuple(measured), language, _within(width)))


def draw_pages(measured: Iterable[MeasuredClaim], language: Language, width: int | None = None) -> str:
    """A page for each claim, with every number and the bound that it was held against."""
    return "\n\n\n".join("\n".join(_page(item, language, _within(width))) for item in measured)


def _within(width: int | None) -> int:
    return min(width or _WIDEST, _WIDEST)


def _table(measured: tuple[MeasuredClaim, ...], language: Language, width: int) -> Iterator[str]:
    verdicts = {item.claim.id: in_language(VERDICTS_IN_WORDS[item.verdict], language) for item in measured}
    longest = max(len(verdict) for verdict in verdicts.values())
    for item in measured:
        start = f"{item.claim.id}  {verdicts[item.claim.id]:{longest}}  "
        mark = f" [{when}]" if (when := ran(item, language)) else ""
        yield wrapped(f"{in_language(item.claim.statement, language)}{mark}", width, start, " " * len(start))
    yield ""
    yield wrapped(in_language(_HINT, language), width)


def _page(item: MeasuredClaim, language: Language, width: int) -> Iterator[str]:
    claim = item.claim

    def section(title: Text, lines: Iterable[str]) -> Iterator[str]:
        yield ""
        yield in_language(title, language)
        yield from lines

    def paragraph(text: str) -> str:
        return wrapped(text, width, _INDENT, _INDENT)

    yield f"{claim.id}  {in_language(VERDICTS_IN_WORDS[item.verdict], language)}"
    yield wrapped(in_language(claim.statement, language), width)
    yield from section(_SAID, (paragraph(line) for line in said_in(claim, language)))
    yield from section(_METHOD, [paragraph(in_language(claim.method, language))])
    if when := ran(item, language):
        yield from section(_RUN, [paragraph(when), *(paragraph(line) for line in studies_run(item, language))])
    yield from section(_MEASURED, _numbers(item))
    yield from section(_CRITERION, _bounds(item, language))
    reasons = [paragraph(in_language(reason, language)) for reason in _reasons(item)]
    if reasons:
        yield from section(_WHY, reasons)
    if claim.citations:
        yield from section(_CITED, (paragraph(line) for line in cited(claim, language)))
    if claim.rules:
        yield from section(
            _RULES, (paragraph(f"{code} {RULES[code].name}: evenkeel rules {code}") for code in claim.rules)
        )
    if claim.ops:
        yield from section(_OPS, [paragraph(", ".join(claim.ops))])
    yield from section(_SOURCE, [paragraph(claim.source)])


def said_in(claim: Claim, language: Language) -> Iterator[str]:
    """One line for each document that says it: its title and the numbers of the sentences."""
    for name in dict.fromkeys(passage.document for passage in claim.passages):
        document = DOCUMENTS[name]
        numbers = [str(passage.sentence) for passage in claim.passages if passage.document == name]
        word = in_language(_SENTENCE if len(numbers) == 1 else SENTENCES, language)
        yield f"“{document.title}” ({', '.join(document.languages)}), {word} {', '.join(numbers)}"


def cited(claim: Claim, language: Language) -> Iterator[str]:
    """One line for each source: where, whether it says what the claim says, and its words in ours."""
    for citation in claim.citations:
        stance = in_language(STANCES[citation.stance], language)
        yield f"{citation.source} ({stance}): {in_language(citation.says, language)}"


def ran(item: MeasuredClaim, language: Language) -> str:
    """When its studies were run, and with which torch; "" where it has none."""
    words = _RUNS.get(item.run.kind)
    return in_language(words, language).format(date=item.run.date, **item.run.versions) if words else ""


def studies_run(item: MeasuredClaim, language: Language) -> Iterator[str]:
    """One line for each of its studies."""
    for run in item.run.studies:
        yield f"{run.name}: {run.trials} {in_language(_TRIALS, language)}, {run.identity}, {run.date}"


def _numbers(item: MeasuredClaim) -> Iterator[str]:
    longest = max((len(number.name) for number in item.measurements), default=0)
    for number in item.measurements:
        unit = "" if number.unit == "1" else number.unit  # a pure number needs no unit
        yield f"{_INDENT}{number.name:{longest}}  {number.value:>10.4g}  {unit}".rstrip()


def _bounds(item: MeasuredClaim, language: Language) -> Iterator[str]:
    values = {number.name: number.value for number in item.measurements}
    rows = [
        (
            in_language(ROLES[bound.role], language),
            bound.measurement,
            interval(bound),
            f"{values.get(bound.measurement, float('nan')):.4g}",
            in_language(NO if bound in item.missed else YES, language),
        )
        for bound in item.claim.criterion
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for row in rows:
        cells = (f"{cell:{width}}" for cell, width in zip(row, widths, strict=True))
        yield f"{_INDENT}{'  '.join(cells)}".rstrip()


def interval(bound: Bound) -> str:
    """Where the measurement must lie: "≤ 0.01", "≥ 2", "= 1" or "0.9 … 1.1"."""
    if bound.low == bound.high:
        return f"= {bound.low:g}"
    if bound.low == float("-inf"):
        return f"≤ {bound.high:g}"
    return f"≥ {bound.low:g}" if bound.high == float("inf") else f"{bound.low:g} … {bound.high:g}"


def _reasons(item: MeasuredClaim) -> tuple[Text, ...]:
    if item.lacks_a_number and item.run.kind != "none":
        return (_NOT_A_NUMBER,)
    if item.verdict == "undecided" and item.run.kind != "none":
        return tuple(bound.otherwise for bound in item.missed if bound.role == "noise" and bound.otherwise) or (
            _TOO_NOISY,
        )
    return item.reasons


def wrapped(text: str, width: int, first: str = "", others: str = "") -> str:
    """A paragraph in lines of some columns; words with hyphens stay whole."""
    return textwrap.fill(text, width, initial_indent=first, subsequent_indent=others, break_on_hyphens=False)
