"""A comparison for other programs: a spreadsheet, a paper, a script, a browser."""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from ...catalogue import Catalogue
from ...report.quantities import share
from ...schema import clean_name, encode_number
from ..comparison import ArmSummary, Comparison, Verdict
from ..results import TrialResult
from .figure import draw_svg
from .wording import MISSING, Wording, shown

_DIGITS = 12  # of a hash
_LATEX = {
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "−": r"$-$",
    "±": r"$\pm$",
    "–": "--",
    "\N{REPLACEMENT CHARACTER}": "?",
    **{character: f"\\{character}" for character in "{}$&#_%"},
}
_ESCAPED = re.compile("|".join(map(re.escape, _LATEX)))
_SIGN = re.compile(r"(?<![\w.])[-+](?=\d)")


def draw_csv(comparison: Comparison) -> str:
    """A row for each trial; numbers with all their digits, NaN and Infinity by name, hashes by their first digits."""
    stats = list(dict.fromkeys(stat for item in comparison.results for stat in item.health))
    rows = [_row(item, stats) for item in comparison.results]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_row_names(stats))
    writer.writerows(rows)
    return text.getvalue()


def _row_names(stats: Iterable[str]) -> list[str]:
    fixed = """arm role learning_rate seed loss counted start diverged last_step last_evaluation copy_loss seconds
        tokens_per_second findings batches held_out first_weights worker finished""".split()
    return [*fixed, *(f"health.{clean_name(stat)}" for stat in stats)]


def _row(result: TrialResult, stats: Iterable[str]) -> list[Any]:
    point, last = result.point, result.evaluations[-1:]
    weights = sorted(f"{name} {value}" for name, value in result.hashes.items() if name.startswith("parameter "))
    digest = hashlib.sha256("\n".join(weights).encode()).hexdigest() if weights else ""
    return [
        clean_name(point.arm),
        point.role,
        point.learning_rate,
        point.seed,
        *map(encode_number, (result.loss, result.counted, result.start)),
        int(result.diverged),
        *([last[0].step, encode_number(last[0].loss)] if last else ["", ""]),
        *map(encode_number, (result.copy_loss, result.seconds, result.tokens_per_second)),
        " ".join(result.findings),
        *(result.hashes.get(name, "")[:_DIGITS] for name in ("batches", "held_out")),
        digest[:_DIGITS],
        clean_name(result.worker),
        result.finished,
        *(encode_number(result.health[stat]) if stat in result.health else "" for stat in stats),
    ]


def draw_latex(comparison: Comparison) -> str:
    """Two tables, of arms and of contrasts, for a document that loads booktabs."""
    wording = Wording(comparison)
    unit = f" in {wording.unit}" if wording.unit else ""
    margin = f"{comparison.study.margin:g}"
    arms = _latex_table(
        f"Arms: loss{unit} (mean ± SD over the seeds), tuned learning rate, and sensitivity to it.",
        "tab:arms",
        ("arm", "parameters", "loss", "diverged", "rate", "sensitivity", "copy loss"),
        (_arm_cells(arm, wording) for arm in comparison.arms),
    )
    contrasts = _latex_table(
        f"Contrasts: mean difference of paired losses{unit} with 95% intervals; p adjusted by Holm; margin {margin}.",
        "tab:contrasts",
        ("contrast", "difference", "95% interval", "bootstrap", "p", "P(better)", "verdict"),
        (_contrast_cells(verdict, wording) for verdict in comparison.verdicts),
    )
    return f"% \\usepackage{{booktabs}} and \\usepackage[T1]{{fontenc}}\n{arms}\n{contrasts}"


def _arm_cells(arm: ArmSummary, wording: Wording) -> Iterator[str]:
    yield clean_name(arm.plan.arm.name)
    yield f"{arm.plan.parameters:,}" if arm.plan.parameters else MISSING
    yield f"{wording.loss(arm.mean)} ± {wording.loss(arm.deviation)}" if arm.losses else MISSING
    yield f"{arm.diverged} of {len(arm.losses)}" if arm.losses else MISSING
    yield shown(arm.learning_rate, lambda rate: f"{rate:.3g}") + (" (at the edge)" if arm.at_edge else "")
    yield wording.loss(arm.sensitivity)
    yield wording.loss(arm.copy_loss)


def _contrast_cells(verdict: Verdict, wording: Wording) -> Iterator[str]:
    yield f"{clean_name(verdict.arm)} − {clean_name(verdict.against)}"
    yield wording.difference(verdict.interval.mean)
    yield wording.interval(verdict.interval)
    yield wording.interval(verdict.bootstrap)
    yield wording.p_value(verdict, verdict.adjusted)
    yield shown(verdict.probability, share)
    yield verdict.word


def _latex_table(caption: str, label: str, heads: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    """A booktabs table; a column in which nothing was measured is left out."""
    columns = [column for column in zip(heads, *rows, strict=True) if set(column[1:]) != {MISSING}]
    lines = [" & ".join(map(_latex, row)) + r" \\" for row in zip(*columns, strict=True)]
    lines = ["{}" * line.startswith(("[", "*")) + line for line in lines]  # which the \\ above would take for its own
    return "\n".join(
        [
            r"\begin{table}",
            r"  \centering\small\setlength{\tabcolsep}{4pt}",  # seven columns within an article's line
            rf"  \caption{{{_latex(caption)}}}",
            rf"  \label{{{label}}}",
            rf"  \begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}",
            r"    \toprule",
            f"    {lines[0]}",
            r"    \midrule",
            *(f"    {line}" for line in lines[1:]),
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _latex(text: str) -> str:
    escaped = _ESCAPED.sub(lambda found: _LATEX[found[0]], text)
    return _SIGN.sub(lambda found: f"${found[0]}$", escaped)


EXPORTS: Catalogue[Callable[[Comparison], str]] = Catalogue("export format")
EXPORTS.add("csv", draw_csv)
EXPORTS.add("latex", draw_latex)
EXPORTS.add("json", Comparison.to_json)
EXPORTS.add("svg", draw_svg)
