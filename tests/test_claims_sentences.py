"""Every sentence of the documents leads somewhere: split, numbered, unchanged, and walked by the command."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from evenkeel.cli.main import main
from evenkeel.errors import UsageError
from evenkeel.ledger import (
    CLAIMS,
    DOCUMENTS,
    LANGUAGES,
    SourceDocument,
    _documents,
    _studies,
    document_named,
    fingerprint,
    split_sentences,
)

FOLDER = Path(os.environ.get("EVENKEEL_DOCUMENTS", Path(__file__).parents[2] / "shared" / "documents"))

A_DOCUMENT = """---
title: Front matter is no sentence.
---

### A heading is none, even with a stop.

A page's furniture › Home

It has **bold** words, e.g. these, and   spaces. Does it ask? ¿Y en español?
A line that stops nowhere is left
No line break continues a sentence.
1.  **A bold title**:
    - An entry of a list ends in a colon:
    - σ(x) is at most 1.0 and f(x) = x. Élan counts as a capital.

#### References
- [A link](https://example.org/page)
"""


def test_what_is_a_sentence() -> None:
    assert split_sentences(A_DOCUMENT) == (
        "It has bold words, e.g. these, and spaces.",
        "Does it ask?",
        "¿Y en español?",
        "No line break continues a sentence.",
        "An entry of a list ends in a colon:",
        "σ(x) is at most 1.0 and f(x) = x.",
        "Élan counts as a capital.",
    )


def test_a_fingerprint_is_of_the_words() -> None:
    (sentence,) = split_sentences("- It  costs **a cafe\u0301**.\n")
    assert sentence == "It costs a café."
    assert fingerprint(sentence) == hashlib.sha256("It costs a café.".encode()).hexdigest()[:12]
    assert fingerprint("It costs a cafe.") != fingerprint(sentence)


@pytest.mark.parametrize("document", DOCUMENTS.values(), ids=DOCUMENTS.keys())
def test_no_sentence_is_unmapped_or_changed(document: SourceDocument) -> None:
    files = sorted(FOLDER.glob(f"{document.number}_*.txt"))
    if not files:
        pytest.skip(f"document {document.number} is not at {FOLDER}; set EVENKEEL_DOCUMENTS to where it lies")
    found = [fingerprint(sentence) for sentence in split_sentences(files[0].read_text(encoding="utf-8"))]
    assert found == [sentence.fingerprint for sentence in document.sentences]


def test_every_sentence_leads_somewhere() -> None:
    assert {name: len(document.sentences) for name, document in DOCUMENTS.items()} == {
        "sigmoid-es": 23,
        "sigmoid-en": 23,
        "attention-scaling": 23,
        "softmax": 20,
        "swiglu": 20,
    }
    assert [document.number for document in DOCUMENTS.values()] == ["000", "001", "002", "003", "004"]
    sentences = [sentence for document in DOCUMENTS.values() for sentence in document.sentences]
    assert all(re.fullmatch(r"[0-9a-f]{12}", sentence.fingerprint) for sentence in sentences)
    assert len({sentence.fingerprint for sentence in sentences}) == len(sentences)
    for sentence in sentences:
        assert bool(sentence.claims) != bool(sentence.no_claim)
        assert len(set(sentence.claims)) == len(sentence.claims)
        if sentence.no_claim:
            assert all(getattr(sentence.no_claim, language).endswith(".") for language in LANGUAGES)


def test_every_claim_is_said_and_every_one_said_is_known() -> None:
    named = {name for document in DOCUMENTS.values() for name in document.claims}
    assert named == set(CLAIMS)
    assert set(CLAIMS) >= {f"C{number:02}" for number in range(1, 49)}


def test_passages_are_what_the_mapping_says() -> None:
    said = {(claim.id, passage.document, passage.sentence) for claim in CLAIMS.values() for passage in claim.passages}
    assert said == {
        (claim, name, number)
        for name, document in DOCUMENTS.items()
        for number, sentence in enumerate(document.sentences, 1)
        for claim in sentence.claims
    }
    assert ("C15", "attention-scaling", 7) in said and ("C33", "swiglu", 2) in said


def test_a_document_by_name_or_number() -> None:
    assert document_named("002") == document_named("attention-scaling") == "attention-scaling"
    with pytest.raises(UsageError, match=r"no document is called '02'; did you mean '002'\? \(000 sigmoid-es, 001"):
        document_named("02")
    with pytest.raises(UsageError, match=r"'nothing'; give one of these \(.*, 004 swiglu\)"):
        document_named("nothing")


@pytest.fixture
def a_short_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The attention document's first sentences and one on trained models, whose study has no run."""
    monkeypatch.setattr(_studies, "FOLDER", tmp_path)
    _studies.stored.cache_clear()
    whole = DOCUMENTS["attention-scaling"]
    kept = (*whole.sentences[:5], whole.sentences[6], whole.sentences[19])
    monkeypatch.setitem(
        _documents.DOCUMENTS, "attention-scaling", SourceDocument("002", whole.title, whole.languages, kept)
    )
    yield
    _studies.stored.cache_clear()


@pytest.mark.usefixtures("a_short_document")
def test_a_walk_tells_each_sentence_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["claims", "--document", "002", "--lang", "es"]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0].startswith("002 attention-scaling: “Estabilización") and "7 frases" in out
    assert max(map(len, lines)) <= 80
    assert [line[:2] for line in lines if re.match(r"[ \d]\d  ", line)] == [f"{n:2}" for n in range(1, 8)]
    assert " 1  C17  se cumple: Dividir por √d_k" in out and "    experimento: Queries" in out
    assert "número: sqrt.16.variance 1.0" in out
    assert " 2  ninguna afirmación: Solo anuncia" in out
    assert " 5  C14  se cumple con salvedades (véase la frase 4)\n" in out
    assert "número: query_gradient_without_scaling 3" in out  # the bound that it misses, not its first
    assert " 7  C19  sin decidir: Dividir por √d_k" in out and "diverged sin medir (≤ 0)" in out


@pytest.mark.usefixtures("a_short_document")
def test_a_walk_as_data_and_as_a_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["claims", "--document", "attention-scaling", "--format", "json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["schema_version"] == 1
    assert [item["id"] for item in data["claims"]] == ["C17", "C54", "C14", "C15", "C19", "C48"]
    first, second, *_, last = data["document"]["sentences"]
    assert first["claims"] == ["C17"] and first["no_claim"] is None and first["fingerprint"] == "cca6dace7100"
    assert second["claims"] == [] and set(second["no_claim"]) == set(LANGUAGES)
    assert last["claims"] == ["C19", "C48"]
    assert main(["claims", "--document", "002", "--format", "markdown", "--lang", "pt"]) == 0
    page = capsys.readouterr().out
    assert page.startswith("# 002 attention-scaling: ") and "| frase | afirmação | número | veredito |" in page
    assert "| 4 | C14: " in page and "| 7 | C19: Dividir por √d_k" in page


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--document", "02"], "no document is called '02'; did you mean '002'?"),
        (["C15", "--document", "002"], "--document 002 walks all its claims; leave out C15"),
        (["--explain"], "--explain draws the claims that you name; give ids"),
        (["C15", "--explain", "--format", "json"], "--explain draws text, not json"),
        (["--document", "002", "--explain"], "--explain draws the claims that you name"),
    ],
)
def test_wrong_requests(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["claims", *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith(f"evenkeel: {said}") and shown.err.count("\n") == 1
