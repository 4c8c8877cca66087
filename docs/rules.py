"""Writes docs/rules/ from evenkeel.rules: python docs/rules.py [--measure [CODE ...]]."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from evenkeel.report.rule_page import as_markdown, page
from evenkeel.rules import RULES

FOLDER = Path(__file__).parent / "rules"

TEXT = """\
# Rules

Made by `python docs/rules.py` from `evenkeel.rules.RULES`; a test compares the two. `evenkeel rules CODE` prints the
same pages, with the bounds and severities that a project has set ([settings](../settings.md)). The sick and healthy
examples were measured on small models that really have the fault (`python docs/rules.py --measure`), but for those that
say "by hand".

| code | name | severities | measures |
|---|---|---|---|"""


def pages() -> dict[str, str]:
    """The text of every file of docs/rules, by its name."""
    drawn = {f"{code}.md": as_markdown(rule, page(rule, RULES)) for code, rule in RULES.items()}
    return {"README.md": "\n".join(_index()) + "\n", **drawn}


def _index() -> Iterator[str]:
    yield TEXT
    for code, rule in RULES.items():
        measures = rule.measures.replace("|", "\\|")
        yield f"| [{code}]({code}.md) | {rule.name} | {', '.join(rule.severities)} | {measures} |"


def write() -> None:
    """Write all pages, and remove those of rules that there are no more."""
    FOLDER.mkdir(exist_ok=True)
    drawn = pages()
    for stale in set(FOLDER.glob("*.md")) - {FOLDER / name for name in drawn}:
        stale.unlink()
    for name, text in drawn.items():
        (FOLDER / name).write_text(text)


if __name__ == "__main__":
    if "--measure" in sys.argv:
        import rule_examples  # needs torch, transformers and some minutes

        rule_examples.write(sys.argv[sys.argv.index("--measure") + 1 :] or RULES)
    write()
