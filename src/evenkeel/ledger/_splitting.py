"""The sentences of a document's running text, and a fingerprint of each that says whether its words have changed."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from hashlib import sha256

_FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
_LIST_MARK = re.compile(r"^(?:[-*]|\d+\.)\s+")
_TITLE = re.compile(r"^#|^\*\*[^*]+\*\*:?$")
_ENDS = re.compile(r"[.?!:]$")
_BREAK = re.compile(r"(?<=[.?!])\s+(?=[¿¡\"“«]?[^\W\d_a-zà-öø-ÿ])")
_FINGERPRINT = 12


def split_sentences(document: str) -> tuple[str, ...]:
    """The sentences of a document in its order, normalised.

    What is no running text is left out: front matter, headings (Markdown's, and list entries that are nothing but bold
    words), and every line that does not end in one of . ? ! or a colon: page furniture, titles, lists of references. A
    sentence ends at . ? or ! before white space and a capital letter, and with its line.
    """
    return tuple(sentence for line in _running_lines(document) for sentence in _BREAK.split(line))


def normalised(line: str) -> str:
    """A line in Unicode's form NFC without list mark and bold marks, every run of white space one space."""
    line = _LIST_MARK.sub("", unicodedata.normalize("NFC", line).strip())
    return " ".join(line.replace("**", "").split())


def fingerprint(sentence: str) -> str:
    """The first 12 hexadecimal digits of the SHA-256 of a normalised sentence in UTF-8."""
    return sha256(sentence.encode()).hexdigest()[:_FINGERPRINT]


def _running_lines(document: str) -> Iterator[str]:
    for line in _FRONT_MATTER.sub("", document).splitlines():
        if not _TITLE.match(_LIST_MARK.sub("", line.strip())) and _ENDS.search(text := normalised(line)):
            yield text
