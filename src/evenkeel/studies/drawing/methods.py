"""The methods of a study in words that can be printed in a paper: every number is the comparison's, with citations."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ...report.quantities import count, number, share
from ...report.terminal import WIDTH
from ...schema import clean_name, printable
from ..comparison import ArmPlan, Comparison, Verdict
from ..results import TrialResult
from .text import described, what_would_decide
from .wording import Wording, counted_where_diverged

_REFERENCES: Mapping[str, str] = {
    "Bouthillier et al. 2021": "Accounting for variance in machine learning benchmarks. MLSys 3. arXiv:2103.03098.",
    "Efron 1987": "Better bootstrap confidence intervals. Journal of the American Statistical Association 82(397), "
    "171–185.",
    "Holm 1979": "A simple sequentially rejective multiple test procedure. Scandinavian Journal of Statistics 6(2), "
    "65–70.",
    "Loshchilov & Hutter 2019": "Decoupled weight decay regularization. ICLR. arXiv:1711.05101.",
    "Schuirmann 1987": "A comparison of the two one-sided tests procedure and the power approach for assessing the "
    "equivalence of average bioavailability. Journal of Pharmacokinetics and Biopharmaceutics 15(6), 657–680.",
    "Shazeer 2020": "GLU variants improve Transformer. arXiv:2002.05202.",
    "Student 1908": "The probable error of a mean. Biometrika 6(1), 1–25.",
    "Wortsman et al. 2023": "Small-scale proxies for large-scale Transformer training instabilities. arXiv:2309.14322.",
}  # fmt: skip
_SHAPE = (("depth", "depth"), ("d_model", "width"), ("context", "context"), ("vocabulary", "vocabulary"))


def draw_methods(comparison: Comparison, *, width: int | None = None) -> str:
    """Methods, results and references as paragraphs. width: columns, 80 if None."""
    wording = Wording(comparison)
    paragraphs = [
        " ".join(sentence for part in (_arms, _training, _tuning, _pairs, _statistics) for sentence in part(wording)),
        " ".join(_results(wording)),
        f"Made with {_listed(f'{name} {version}' for name, version in comparison.versions.items())} on "
        f"{comparison.device}, {comparison.begun} to {comparison.finished or 'now'}.",
    ]
    body = [textwrap.fill(printable(text), width or WIDTH, break_on_hyphens=False) for text in paragraphs]
    cited = " ".join(paragraphs)
    references = [f"{key}. {title}" for key, title in _REFERENCES.items() if key in cited]
    hanging = [
        textwrap.fill(text, width or WIDTH, subsequent_indent="  ", break_on_hyphens=False) for text in references
    ]
    return "\n\n".join([*body, "References\n" + "\n".join(hanging)]) + "\n"


def _arms(wording: Wording) -> Iterator[str]:
    comparison, study = wording.comparison, wording.comparison.study
    names = _listed(map(clean_name, study.names))
    yield f"We compared {count(len(study.arms), 'arm')}: {names}; {clean_name(study.baseline)} is the baseline."
    plans = [arm.plan for arm in comparison.arms if arm.plan.config]
    if not plans:
        return
    if shape := ", ".join(f"{word} {plans[0].config[field]:,}" for field, word in _SHAPE if _agree(plans, field)):
        yield f"Every arm is a decoder-only Transformer ({shape})."
    if any(_is_gated(plan) for plan in plans):
        yield "Gated feed-forward layers are those of Shazeer 2020."
    sizes = [plan.parameters for plan in plans]
    yield f"Arms have {_span(f'{min(sizes):,}', f'{max(sizes):,}')} parameters."
    if study.match != "nothing":
        farthest = max(abs(plan.difference) for plan in plans)
        yield f"They are matched in {study.match}: the largest difference from the baseline is {100 * farthest:.2f}%."


def _training(wording: Wording) -> Iterator[str]:
    comparison, study = wording.comparison, wording.comparison.study
    if study.objective:
        yield f"The loss of an arm at a learning rate and a seed is what the objective {study.objective} gives."
        return
    yield (
        f"Every trial trained for {count(comparison.steps, 'step')} of {count(study.rows, 'sequence')}, "
        f"{count(comparison.tokens, 'token')} in all, with AdamW (Loshchilov & Hutter 2019)."
    )
    yield f"The data: {described(comparison.data)}."
    yield "The loss is the mean of the last evaluations on the same held-out tokens, in nats per token."


def _tuning(wording: Wording) -> Iterator[str]:
    comparison, study = wording.comparison, wording.comparison.study
    low, high = study.learning_rates
    yield (
        f"The learning rate was tuned for each arm by itself, on seeds that no pair uses: {study.tuning_trials} rates "
        f"evenly spaced in their logarithm from {low:g} to {high:g}, and further ones where the best lay at an end."
    )
    tuned = [arm for arm in comparison.arms if not math.isnan(arm.learning_rate)]
    if tuned:
        counts = [len(arm.tuned) for arm in tuned]
        rates = [rate for arm in tuned for rate, _ in arm.tuned]
        chosen = _listed(
            f"{clean_name(arm.plan.arm.name)} {number(arm.learning_rate)}{' (at the edge)' if arm.at_edge else ''}"
            for arm in tuned
        )
        tried = f"{_span(f'{min(counts)}', f'{max(counts)}')} rates for an arm, {min(rates):g} to {max(rates):g}"
        yield f"Tried were {tried}; chosen were {chosen}."


def _pairs(wording: Wording) -> Iterator[str]:
    comparison, study = wording.comparison, wording.comparison.study
    if study.objective:
        yield f"Arms were then compared on {count(study.seeds, 'seed')}, the same for every arm."
    else:
        yield (
            f"Arms were then compared in {count(study.seeds, 'pair')}: in a pair, parameters of one name start from "
            "the same random stream, and every arm sees the same batches in the same order."
        )
    if _verified(comparison.results):
        yield "Batches and held-out tokens were verified by hash to be the same."
    if not comparison.finished:
        done = len(comparison.results)
        yield f"The study is unfinished: {done} of {done + comparison.wanted} trials have run."
    trials = sum(len(arm.losses) for arm in comparison.arms)
    diverged = [arm for arm in comparison.arms if arm.diverged]
    if diverged:
        where = _listed(f"{clean_name(arm.plan.arm.name)} {arm.diverged}" for arm in diverged)
        total = sum(arm.diverged for arm in diverged)
        counted = counted_where_diverged(comparison)
        yield f"Of {trials} paired trials {total} diverged, counted {counted}: {where}."
    elif trials:
        yield f"None of {trials} paired trials diverged."


def _statistics(wording: Wording) -> Iterator[str]:
    verdicts, study = wording.comparison.verdicts, wording.comparison.study
    unit = f" {wording.unit}" if wording.unit else ""
    founded = wording.comparison.founded
    kept = (founded.contrasts, founded.margin) == (study.contrasts, study.margin)
    stated = (
        "We stated {} before the first trial." if kept else "We look at {}, other than stated before the first trial."
    )
    yield (
        f"{stated.format(count(len(verdicts), 'contrast'))} For each we give the mean paired "
        "difference with its 95% interval by Student's t (Student 1908), the p-value of no difference, and the share "
        "of pairs in which the arm is better (Bouthillier et al. 2021)."
    )
    if any(item.bootstrap for item in verdicts):
        yield "From 20 pairs on, a bias-corrected and accelerated bootstrap interval (Efron 1987) stands beside it."
    yield (
        f"Losses that differ by less than {study.margin:g}{unit} count as equal: a tie is a difference that two "
        "one-sided tests (Schuirmann 1987) place within that margin; better and worse are differences that Student's "
        "test shows; what neither shows is undecided. Over the contrasts, the p-values of either kind are adjusted by "
        "Holm's step-down procedure (Holm 1979)."
    )
    yield (
        "Sensitivity to the learning rate is the mean over the range of min(loss, loss at the start) − best loss "
        "(Wortsman et al. 2023)."
    )


def _results(wording: Wording) -> Iterator[str]:
    for arm in wording.comparison.arms:
        if arm.losses:
            loss = f"{wording.loss(arm.mean)} ± {wording.loss(arm.deviation)}"
            seeds = count(len(arm.losses), "seed")
            yield (
                f"{clean_name(arm.plan.arm.name)}: loss {loss} (mean ± SD of {seeds}), "
                f"sensitivity {wording.loss(arm.sensitivity)}."
            )
    for verdict in wording.comparison.verdicts:
        yield _result(verdict, wording)


def _result(verdict: Verdict, wording: Wording) -> str:
    said = f"{clean_name(verdict.arm)} against {clean_name(verdict.against)}: {verdict.word}"
    if len(verdict.differences) > 1:
        said += f", {wording.difference(verdict.interval.mean)} {wording.interval(verdict.interval)}"
        if verdict.bootstrap:
            said += f" (bootstrap {wording.interval(verdict.bootstrap)})"
        said += f", p {wording.p_value(verdict, verdict.p)}, adjusted {wording.p_value(verdict, verdict.adjusted)}"
        said += f", better in {share(verdict.probability)} of {count(len(verdict.differences), 'pair')}"
    return f"{said}; {what_would_decide(verdict)}." if verdict.word == "undecided" else f"{said}."


def _is_gated(plan: ArmPlan) -> bool:
    feedforward: Mapping[str, Any] = plan.config.get("feedforward", {})
    return bool(feedforward.get("gated"))


def _agree(plans: Sequence[ArmPlan], field: str) -> bool:
    return field in plans[0].config and len({plan.config.get(field) for plan in plans}) == 1


def _verified(results: Iterable[TrialResult]) -> bool:
    """Whether the hashes of all pairs are there and the same in every arm."""
    paired = [item for item in results if item.point.role == "paired"]
    found: dict[tuple[int, str], set[str]] = {}
    for item in paired:
        for name in ("batches", "held_out"):
            found.setdefault((item.point.seed, name), set()).add(item.hashes.get(name, ""))
    return bool(found) and all(len(hashes) == 1 and "" not in hashes for hashes in found.values())


def _listed(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def _span(low: str, high: str) -> str:
    return low if low == high else f"{low} to {high}"
