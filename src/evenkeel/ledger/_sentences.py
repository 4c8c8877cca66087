"""Every sentence of the five documents, by number and fingerprint: the claims that it makes, or why it makes none.

This is the only place that says which sentence belongs to which claim; the claims read their passages from here. The
documents' own words are not here: a fingerprint (`_splitting.fingerprint`) says whether they have changed.
"""

from __future__ import annotations

from dataclasses import dataclass

from ._text import Text


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """One sentence: its fingerprint, and the ids of the claims that it makes or the reason why it makes none."""

    fingerprint: str
    claims: tuple[str, ...] = ()
    no_claim: Text | None = None


def _sentences(fingerprints: str, meanings: tuple[str | Text, ...]) -> tuple[Sentence, ...]:
    """One sentence for each fingerprint, in order; a meaning is the ids of claims or the reason for none."""
    return tuple(
        Sentence(fingerprint=found, no_claim=meaning)
        if isinstance(meaning, Text)
        else Sentence(fingerprint=found, claims=tuple(meaning.split()))
        for found, meaning in zip(fingerprints.split(), meanings, strict=True)
    )


_ANNOUNCES = Text(
    en="It only announces the reasons that follow.",
    es="Solo anuncia las razones que siguen.",
    pt="Só anuncia as razões que seguem.",
)
_DEFINES = Text(
    en="It defines softmax; what follows from the definition is C20, C22 and C43.",
    es="Define la softmax; lo que se sigue de la definición está en C20, C22 y C43.",
    pt="Define a softmax; o que decorre da definição está em C20, C22 e C43.",
)

_SIGMOID = (
    "C49",
    "C45 C50 C51",
    _ANNOUNCES,
    "C01",
    "C01",
    "C02",
    "C02 C37",
    "C03",
    "C04 C50",
    "C04 C31",
    "C36",
    "C05",
    "C06 C40",
    "C07 C39 C40",
    "C08 C09",
    "C34 C52",
    "C10 C35",
    "C53",
    "C11 C45",
    "C12",
    "C38 C51",
    "C39",
    "C13",
)
"""The document on the sigmoid says the same in Spanish and in English, sentence by sentence."""

_ATTENTION = (
    "C17",
    _ANNOUNCES,
    "C54",
    "C14",
    "C14",
    "C14 C55",
    "C15",
    "C52",
    "C15",
    "C15",
    "C17",
    "C16",
    "C16",
    "C16",
    "C18",
    "C17",
    "C17",
    "C14 C17",
    "C15 C16 C17",
    "C19 C48",
    "C19",
    "C15 C17",
    "C16",
)

_SOFTMAX = (
    "C20 C43",
    "C20",
    "C52",
    "C52",
    "C24 C52",
    "C42",
    "C42",
    "C23 C24",
    _DEFINES,
    "C20",
    "C41",
    "C21",
    "C21",
    "C21",
    "C21",
    "C21",
    "C22",
    "C22",
    "C22",
    "C22",
)

_SWIGLU = (
    "C45",
    "C33",
    "C27 C29",
    "C26 C45",
    "C25",
    "C47",
    "C25",
    "C25",
    "C25",
    "C25",
    "C29 C32",
    "C25 C44",
    "C46",
    "C29",
    "C29",
    "C30 C46",
    "C27",
    "C56",
    "C28",
    "C45",
)

SENTENCES: dict[str, tuple[Sentence, ...]] = {
    "sigmoid-es": _sentences(
        """
        620bd63d31cd eafe030eae8c dd3b740578d1 0a6767ed09d7 08db2384ebcb f5b23569daad 7344ff45042f 32cce81899f1
        97bdb4cfa63a 68f06e8933c6 1a81b17f730b f4c0bb285c54 aa537bc1af38 b02a8d42f6f9 ba5c652a846d b568f7ab704a
        b2c3cc5d121c 817813e4a3b7 c3f5ba044652 817dc2ff1252 fac60faa3ac7 fadf2467bbca a9100312b5c8
        """,
        _SIGMOID,
    ),
    "sigmoid-en": _sentences(
        """
        a781646041e5 e57c6ee3c56a edf363f371af 524ddbc0795c c55c004661a4 516b9afc0088 c6892bbbf9b5 089ab3cc8212
        2288b2399257 3e5d73bb967f a3f631d18000 4f7fb26081d4 42ed0697c600 3f4ea89bdeaf e556f2dce35d a20a51dceede
        1915af8b554f e56b7415ede6 d03fcfc9a59b 2e629a3d7fdf 50e669583467 101f446d33de 08926d2c3e34
        """,
        _SIGMOID,
    ),
    "attention-scaling": _sentences(
        """
        cca6dace7100 dad4549e0a88 174dec49357c aee36e8cedce 1c87baa66f37 8569eb1bd6c8 6d10cd1b22a4 43363a17281b
        b9c2d5981931 9400df97fe90 d788bde32428 725c97b218ac 86cf8ef16ee1 e782134deab3 a7b35fa4b5cd 7a4305bd2993
        3a8e6f4c266c 65e380fbc6b5 1af51503c3ca d49dc4619658 827bf6b3cb5f 68aaadd0fad2 b6a417e15bf1
        """,
        _ATTENTION,
    ),
    "softmax": _sentences(
        """
        11d8df36b12b 12a65d077170 1e2577c0b8e2 757d224b3536 bd6aa06bdd1d d0448de955f4 119c6b6be4e5 f38cc2fc9c44
        21a385daed96 3770da6fc552 5fb53f630aaf 16ed8fb21f7b aba075173c17 33d6b1930c01 eae5dfec53c0 264a0dc88f30
        c82d4156374b 2ea97dd8de5a f708f46ada99 0ecda3d5f96e
        """,
        _SOFTMAX,
    ),
    "swiglu": _sentences(
        """
        4a4b25df54f5 b6fa54267ae2 8322e3418af7 096d0eaff65b b19ef8a7e7b7 9ce6fcb64ecf c1b7306087e9 80750101baf9
        8ba049e7618c 06d8562b84ab a4ecfe66d4fd 65c258e1d8fc c88c61aef609 f4117185a949 68561d18bab8 d85a964b8d21
        3a9cdd596f1d 428d40f41c45 344428dfc532 ac95f81cc2bf
        """,
        _SWIGLU,
    ),
}
"""By the document's name; the first entry of each is its sentence 1."""
