"""Claims that rest on sources: their verdicts follow from counts, and pages, Markdown and JSON show every source."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from evenkeel.ledger import (
    CLAIMS,
    LANGUAGES,
    Bound,
    Citation,
    Claim,
    Language,
    MeasuredClaim,
    Measurement,
    Text,
    claims,
    draw_markdown,
    draw_pages,
)
from evenkeel.ledger._claim import Stance, count_citations

CITED = ("C08", "C37", "C48", "C51")
WITH_SOURCES = (*CITED, "C06", "C07", "C32", "C45", "C56")


def judged(claim: Claim, *stances: Stance) -> MeasuredClaim:
    """The claim, had its sources said these things."""
    said = Text(en="A.", es="B.", pt="C.")
    citations = tuple(Citation(source="someone", says=said, stance=stance) for stance in stances)
    return MeasuredClaim(claim=claim, measurements=count_citations(citations))


@pytest.mark.parametrize("name", CITED)
@pytest.mark.parametrize(
    ("stances", "verdict"),
    [
        (("says so",), "holds"),
        (("does not say", "says so"), "holds"),
        (("says otherwise",), "does not hold"),
        (("says so", "says otherwise"), "does not hold"),
        (("does not say", "does not say"), "undecided"),
        ((), "undecided"),
    ],
)
def test_verdicts_follow_from_the_sources(name: str, stances: tuple[Stance, ...], verdict: str) -> None:
    assert judged(CLAIMS[name], *stances).verdict == verdict


def test_what_is_cited_is_counted() -> None:
    """By hand from the lists of sources."""
    counts = {
        **{"C06": (0, 2), "C07": (0, 0), "C08": (0, 0), "C32": (0, 1), "C37": (0, 0), "C45": (0, 0), "C48": (1, 0)},
        **{"C51": (1, 0), "C56": (2, 0)},
    }
    assert {name for name, claim in CLAIMS.items() if claim.citations} == set(WITH_SOURCES) == set(counts)
    for name, (in_favour, against) in counts.items():
        numbers = {item.name: item.value for item in count_citations(CLAIMS[name].citations)}
        assert numbers == {
            "cited.for": in_favour,
            "cited.against": against,
            "cited.decisive": in_favour + against,
        }


@pytest.mark.parametrize("name", WITH_SOURCES)
def test_a_source_says_who_when_and_where(name: str) -> None:
    for citation in CLAIMS[name].citations:
        assert re.search(r"\b(19|20)\d\d\b", citation.source)
        assert re.search(r"section \d|train\.py|model\.py", citation.source)
        assert not citation.source.endswith(".")


def test_bounds_on_sources_have_sources() -> None:
    for claim in CLAIMS.values():
        on_sources = [bound for bound in claim.criterion if bound.measurement.startswith("cited.")]
        assert bool(on_sources) == bool(claim.citations), claim.id


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_page_shows_its_sources(language: Language) -> None:
    measured = claims(["C37"]).claims
    page = " ".join(draw_pages(measured, language).split())
    stance = {"en": "does not say", "es": "no lo dice", "pt": "não diz"}[language]
    reason = {"en": "Undisclosed", "es": "No divulgado", "pt": "Não divulgado"}[language]
    assert f"OpenAI 2023, GPT-4 Technical Report, section 2 ({stance}): " in page
    assert reason in page and "noisy" not in page and "ruido" not in page and "ruído" not in page
    assert "Functions" not in page and "Funciones" not in page and "Funções" not in page  # it is about none


def test_markdown_and_json_show_sources() -> None:
    measured = claims(["C48", "C34", "C37"])
    page = draw_markdown(measured.claims)
    assert "Cited: Vaswani et al. 2017, Attention Is All You Need, section 3.2.1 (says so): Scaled" in page
    assert "| holds only if | `cited.for` | ≥ 1 | 1 sources |" in page
    assert "Functions: attention.\n" in page and "Functions: .\n" not in page
    cited, plain, _ = (item["citations"] for item in measured.to_dict()["claims"])
    assert [item["stance"] for item in cited] == ["says so", "does not say"]
    assert set(cited[0]["says"]) == set(LANGUAGES)
    assert plain == []


def test_noise_is_named_where_no_source_is_lacking() -> None:
    claim = CLAIMS["C37"]
    silent = replace(claim, criterion=(Bound(measurement="spread", high=1.0, role="noise"),))
    measured = MeasuredClaim(claim=silent, measurements=(Measurement("spread", 2.0, "1"),))
    assert "too noisy to decide" in " ".join(draw_pages([measured], "en").split())


@pytest.mark.parametrize(
    ("name", "changed", "verdict"),
    [
        ("C06", {"openai_gpt.distance_from_relu": 0.0, "cited.against": 0}, "holds"),
        ("C07", {"gpt2.distance_from_gelu": 0.2}, "does not hold"),
        ("C11", {"sigmoid.long.right": 0.6}, "does not hold"),  # gates that forget
        ("C11", {"sigmoid_over_identity.long.right.low": -0.1}, "does not hold"),  # gates without which it goes as well
        ("C12", {"full_range.linear.outside": 0.0}, "does not hold"),  # nothing to be bounded
        ("C12", {"full_range.loss_of_linear_over_sigmoid.low": 0.9}, "does not hold"),
        ("C25", {"gated.parameters_over_plain": 1.5}, "does not hold"),
        ("C29", {"gated.gain_explained_by_own_input": 1.0}, "does not hold"),  # a gate as fixed as an activation
        ("C29", {"loss_of_frozen_gate_over_learned.low": 1.0}, "does not hold"),  # a gate that need not be learned
        ("C29", {"gelu.selectivity": 0.0}, "holds"),
        ("C44", {"released.share_near_8_over_3": 0.8}, "holds"),
        ("C45", {"families.gated_silu": 0.2}, "does not hold"),
        ("C45", {"families.sigmoid": 0.4}, "does not hold"),
    ],
)
def test_another_world_gets_another_verdict(name: str, changed: dict[str, float], verdict: str) -> None:
    """Numbers that meet every bound, but for those given."""
    assert claim_with(name, changed).verdict == verdict


def claim_with(name: str, changed: dict[str, float]) -> MeasuredClaim:
    claim = CLAIMS[name]
    values: dict[str, float] = {}
    for bound in claim.criterion:  # a value inside: an end of the interval that is finite
        inside = bound.low if bound.high == float("inf") else bound.high
        known = values.get(bound.measurement, inside)
        values[bound.measurement] = known if bound.met(known) else inside
    values |= changed
    return MeasuredClaim(claim=claim, measurements=tuple(Measurement(n, v, "1") for n, v in values.items()))
