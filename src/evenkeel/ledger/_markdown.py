"""A ledger as one Markdown page: what docs/claims.md is made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ._claim import MeasuredClaim
from ._documents import DOCUMENTS
from ._drawing import ROLES, cited, interval, ran, said_in, studies_run
from ._sentences import Sentence
from ._text import LANGUAGES

_INTRODUCTION = """\
# The claims ledger

Made by `evenkeel claims --format markdown --out docs/claims.md`; do not edit it by hand.

Each claim is something that five short documents say about the nonlinear parts of transformers, in our own words, with
an experiment that anyone can run again: `evenkeel claims C15` prints the page of one with all its numbers, in English,
Spanish (`--lang es`) or Portuguese (`--lang pt`); `evenkeel.claims(["C15"])` returns them as data.

A verdict is computed, never written down. Every claim has bounds on what its experiment measures:

- *holds only if*: outside this bound the claim **does not hold**;
- *caveat unless*: outside this bound it **holds with a caveat**;
- *decided only if*: outside this bound, or where a number is missing, it is **undecided**.

Inside all of its bounds a claim **holds**. Where code cannot tell, a claim has citations: each source says so, says
otherwise or does not say, and the bounds are on how many do which (`cited.for`, `cited.against`, `cited.decisive`).
Facts about public models are read from the code of the installed transformers; without it they are undecided.

Some claims rest on trained models. Their studies ([compare.md](compare.md)) take hours; what is shown is one full run
of each, kept with the package as the export of `evenkeel compare` and judged anew from its trials. It is marked
*stored*, with its date. `evenkeel claims C27 --train` runs them afresh, `--budget 30m` with as many steps as fit half
an hour.

Sentences are counted over the running text of a document, from 1; headings, references and page furniture do not count.
The measured column is from the machine that made this page.
"""


def draw_markdown(measured: Iterable[MeasuredClaim]) -> str:
    """The page of all claims given: an overview, then statement, passages, method, criterion and reasons of each."""
    return "\n".join(_page(tuple(measured)))


def draw_documents() -> str:
    """The last part of the page of the whole ledger: every sentence of the documents, and where it leads."""
    return "\n".join(_documents())


def _documents() -> Iterator[str]:
    yield "## The documents, sentence by sentence"
    yield ""
    yield "The fingerprint is the start of the SHA-256 of the sentence. `evenkeel claims --document 002` walks a"
    yield "document with its statements, experiments, numbers and verdicts."
    for name, document in DOCUMENTS.items():
        yield ""
        yield f"### {document.number} {name}: {document.title}"
        yield ""
        yield "| sentence | fingerprint | claims |"
        yield "|---|---|---|"
        for number, sentence in enumerate(document.sentences, 1):
            yield f"| {number} | `{sentence.fingerprint}` | {_claims_made(sentence)} |"


def _claims_made(sentence: Sentence) -> str:
    if sentence.no_claim:
        return f"no claim: {sentence.no_claim.en}"
    return ", ".join(f"[{name}](#{name.lower()})" for name in sentence.claims)


def _page(measured: tuple[MeasuredClaim, ...]) -> Iterator[str]:
    yield _INTRODUCTION
    yield "| claim | statement | verdict |"
    yield "|---|---|---|"
    for item in measured:
        claim = item.claim
        yield f"| [{claim.id}](#{claim.id.lower()}) | {claim.statement.en} | {item.verdict} |"
    for item in measured:
        yield from _section(item)


def _section(item: MeasuredClaim) -> Iterator[str]:
    claim = item.claim
    yield ""
    yield f"## {claim.id}"
    yield ""
    yield f"**{item.verdict}**"
    yield ""
    for language in LANGUAGES:
        yield f"- {language}: {getattr(claim.statement, language)}"
    yield ""
    yield f"Where it is said: {'; '.join(said_in(claim, 'en'))}."
    yield ""
    yield f"What is measured: {claim.method.en}"
    yield ""
    if when := ran(item, "en"):
        yield f"*{when}* ({'; '.join(studies_run(item, 'en'))})"
        yield ""
    yield "| | measurement | bound | measured |"
    yield "|---|---|---|---|"
    values = {number.name: number for number in item.measurements}
    for bound in claim.criterion:
        number = values.get(bound.measurement)
        shown = f"{number.value:.3g} {number.unit}".removesuffix(" 1").replace("|", "\\|") if number else "not measured"
        yield f"| {ROLES[bound.role].en} | `{bound.measurement}` | {interval(bound)} | {shown} |"
    for reason in item.reasons:
        yield ""
        yield f"> {reason.en}"
    for line in cited(claim, "en"):
        yield ""
        yield f"Cited: {line}"
    yield ""
    named = (("Rules", claim.rules), ("Functions", claim.ops))
    if any(names for _, names in named):
        yield " ".join(f"{title}: {', '.join(names)}." for title, names in named if names)
    yield f"Source: {claim.source}."
