"""The text that studies train on: what is read of files and directories, and the windows that are held out."""

from __future__ import annotations

from pathlib import Path

import pytest

from evenkeel.data import LARGEST_FILE
from evenkeel.errors import DataError
from evenkeel.studies.corpus import read_corpus


@pytest.mark.parametrize("blank", ["", " \n\t\n", "\N{ZERO WIDTH NO-BREAK SPACE}"])
@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_blank_files_of_a_directory_are_skipped(tmp_path: Path, blank: str, suffix: str) -> None:
    (tmp_path / f"a{suffix}").write_text(blank, encoding="utf-8")
    (tmp_path / "b.txt").write_text("b" * 2000)
    corpus = read_corpus(str(tmp_path), context=16)
    assert corpus.training + corpus.held_out == b"b" * 2000


def test_a_directory_of_blank_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n")
    with pytest.raises(DataError, match="has 0 bytes"):
        read_corpus(str(tmp_path), context=16)


@pytest.mark.parametrize("whole", [True, False])
def test_a_file_of_which_only_a_part_would_be_read_is_refused(tmp_path: Path, whole: bool) -> None:
    path = tmp_path / "large.txt"
    with path.open("wb") as file:
        file.truncate(LARGEST_FILE + 1)
    with pytest.raises(DataError, match=r"has 67,108,865 bytes and at most 67,108,864 .* split it"):
        read_corpus(str(path if whole else tmp_path), context=16)
