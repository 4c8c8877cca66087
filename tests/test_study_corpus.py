"""The text that studies train on: what is read of files and directories, and the windows that are held out."""

from __future__ import annotations

import random
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

from evenkeel.data import LARGEST_FILE
from evenkeel.errors import ConfigError, DataError
from evenkeel.studies.trials.corpus import Corpus, read_corpus


@pytest.mark.parametrize("blank", ["", " \n\t\n", "\N{ZERO WIDTH NO-BREAK SPACE}"])
@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_blank_files_of_a_directory_are_skipped(tmp_path: Path, blank: str, suffix: str) -> None:
    (tmp_path / f"a{suffix}").write_text(blank, encoding="utf-8")
    (tmp_path / "b.txt").write_text("b" * 2000)
    corpus = read_corpus(str(tmp_path), context=16)
    assert corpus.training + corpus.held_out == b"b" * 2000


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("x" * 100, ConfigError, "at least 180; give more text"),
        ("", ConfigError, "has 0 bytes"),
        (None, DataError, "cannot be read"),
    ],
)
def test_too_little_text_is_a_wrong_study_and_none_that_can_be_read_wrong_data(
    tmp_path: Path, text: str | None, error: type[Exception], message: str
) -> None:
    path = tmp_path / "text.txt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(error, match=message):
        read_corpus(str(path), context=16)


def test_an_empty_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no text"):
        read_corpus(str(tmp_path), context=16)


def test_a_directory_of_blank_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n")
    with pytest.raises(ConfigError, match="has 0 bytes"):
        read_corpus(str(tmp_path), context=16)


@pytest.mark.parametrize("given", ["file", "directory", "pipe"])
def test_a_text_of_which_only_a_part_would_be_read_is_refused(tmp_path: Path, given: str) -> None:
    path = tmp_path / "large.txt"
    with path.open("wb") as file:
        file.truncate(LARGEST_FILE + 1)
    with subprocess.Popen(["cat", str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        paths = {"file": path, "directory": tmp_path, "pipe": f"/dev/fd/{process.stdout.fileno()}"}
        with pytest.raises(DataError, match=r"has more than the 67,108,864 bytes .* split it"):
            read_corpus(str(paths[given]), context=16)
        process.stdout.close()


def test_held_out_windows_are_spread_evenly_and_as_many_as_there_is_room_for() -> None:
    letters = random.Random(0).randbytes(100_000)  # 16 of them are there once
    starts = [letters.find(bytes(row.tolist())) for row in Corpus("", b"", letters, "").windows(16)]
    gaps = {after - before for before, after in pairwise(starts)}
    assert (len(starts), starts[0], starts[-1]) == (512, 0, 100_000 - 16)
    assert gaps == {195, 196}  # 99,984 / 511 is 195.7
    assert Corpus("", b"", letters[:4100], "").windows(16).shape == (256, 16)
