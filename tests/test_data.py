"""Text to batches: what files are read and refused, and what rows, labels and masks come of them."""

from __future__ import annotations

import json
import sysconfig
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from evenkeel.architectures import ByteTokenizer, Kind, LoadedModel
from evenkeel.data import make_batches, read_texts, standard_library_text, token_pieces
from evenkeel.errors import DataError, ModelError, UsageError


def _file(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


class TestReading:
    def test_plain_text_is_one_text(self, tmp_path: Path) -> None:
        assert read_texts(_file(tmp_path, "a.txt", "uno\n\ndós\n")) == ["uno\n\ndós\n"]

    def test_a_byte_order_mark_is_no_text(self, tmp_path: Path) -> None:
        assert read_texts(_file(tmp_path, "a.txt", b"\xef\xbb\xbfone")) == ["one"]

    def test_json_lines_give_text_and_conversations(self, tmp_path: Path) -> None:
        lines = [
            {"text": "first"},
            {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]},
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image"}]}]},
            {"messages": [{"role": "assistant", "content": None}, {"role": "tool", "content": "42"}]},
        ]
        path = _file(tmp_path, "a.jsonl", "\n\n".join(json.dumps(line) for line in lines) + "\r\n")
        assert read_texts(path) == ["first", "user: hi\nassistant: hello", "user: a", "tool: 42"]

    def test_half_a_character_in_json_becomes_text_that_can_be_encoded(self, tmp_path: Path) -> None:
        (text,) = read_texts(_file(tmp_path, "a.jsonl", '{"text": "a\\ud800b"}'))
        assert text.encode("utf-8") == b"a?b"

    def test_only_the_first_bytes_of_a_large_file_are_read(self, tmp_path: Path) -> None:
        path = _file(tmp_path, "a.txt", "é" * 100)
        assert read_texts(path, limit_bytes=51) == ["é" * 25]  # the limit cuts through the 26th
        lines = _file(tmp_path, "a.jsonl", '{"text": "one"}\n{"text": "two"}\n')
        assert read_texts(lines, limit_bytes=20) == ["one"]

    @pytest.mark.parametrize(
        ("name", "content", "said"),
        [
            ("a.txt", "", "holds no text"),
            ("a.txt", " \n\t\n", "holds no text"),
            ("a.txt", b"abc\0def", "binary"),
            ("a.txt", b"caf\xe9 au lait, s'il vous plait", "offset 3"),
            ("a.txt", "text".encode("utf-16"), "binary"),
            ("a.jsonl", "", "holds no text"),
            ("a.jsonl", '{"text": "a"}\n\n{oops}\n', "line 3"),
            ("a.jsonl", '{"text": "a"}\n[1]\n', "line 2"),
            ("a.jsonl", '{"text": 5}', "line 1"),
            ("a.jsonl", '{"messages": [{"role": "user"}]}', "line 1"),
            ("a.jsonl", '{"messages": 5}', "line 1"),
            ("a.jsonl", "[" * 100_000, "line 1"),
        ],
    )
    def test_what_is_no_text_is_refused_in_one_line(
        self, tmp_path: Path, name: str, content: str | bytes, said: str
    ) -> None:
        with pytest.raises(DataError, match=said) as caught:
            read_texts(_file(tmp_path, name, content))
        assert "\n" not in str(caught.value)

    def test_missing_files_directories_and_impossible_names_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="No such file"):
            read_texts(tmp_path / "none.txt")
        with pytest.raises(DataError, match="is a directory"):
            read_texts(tmp_path)
        with pytest.raises(DataError, match="cannot be read"):
            read_texts("a\0b")
        with pytest.raises(DataError) as caught:
            read_texts(tmp_path / ("\x1b[31m" + "n" * 10_000))
        assert "\x1b" not in str(caught.value) and len(str(caught.value)) < 400


def test_the_standard_library_is_text_in_the_order_of_names() -> None:
    text = standard_library_text(200_000)
    assert len(text.encode()) == 200_000
    first = min(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    assert text.startswith(first.read_text(encoding="utf-8"))
    assert standard_library_text(100) == text[:100]


class TestPieces:
    def test_a_long_text_is_shown_from_all_over(self) -> None:
        text = "".join(chr(97 + index // 1000) for index in range(26_000))
        pieces = token_pieces(ByteTokenizer(), [text], length=10, tokens=40, joined=True)
        assert [len(piece) for piece in pieces] == [10] * 4
        assert ["".join(map(chr, piece))[0] for piece in pieces] == ["a", "g", "n", "t"]

    def test_a_short_text_is_used_up_in_order(self) -> None:
        pieces = token_pieces(ByteTokenizer(), ["abcde", "fgh"], length=4, tokens=100, joined=True)
        assert [bytes(piece) for piece in pieces] == [b"abcd", b"e\n\nf", b"gh"]

    def test_texts_that_are_not_joined_share_no_piece(self) -> None:
        pieces = token_pieces(ByteTokenizer(), ["abcde", "fgh", "i"], length=4, tokens=100, joined=False)
        assert [bytes(piece) for piece in pieces] == [b"abcd", b"fgh"]

    def test_there_are_never_more_tokens_than_asked_for(self) -> None:
        for tokens in range(2, 40):
            for joined in (True, False):
                pieces = token_pieces(ByteTokenizer(), ["abcdefghijk"] * 5, length=4, tokens=tokens, joined=joined)
                assert 2 <= sum(map(len, pieces)) <= tokens

    def test_too_little_text_is_refused(self) -> None:
        with pytest.raises(DataError, match="shorter than two tokens"):
            token_pieces(ByteTokenizer(), ["a"], length=4, tokens=100, joined=True)


class FramedTokenizer(ByteTokenizer):
    """Bytes between 300 and 301, padded with 302, masked by 303."""

    pad_token_id = 302
    mask_token_id = 303

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        plain = super().encode(text)
        return [300, *plain, 301] if add_special_tokens else plain


class Plain(nn.Module):
    """A model that takes whatever token models take."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.config = SimpleNamespace(**{"vocab_size": 400, "max_position_embeddings": 32, **settings})

    def forward(self, input_ids, attention_mask=None, labels=None, decoder_input_ids=None, decoder_attention_mask=None):
        return input_ids


def _loaded(kind: Kind, tokenizer: Any = None, **settings: Any) -> LoadedModel:
    return LoadedModel(Plain(**settings), tokenizer, kind, {})


_TEXT = "It is a truth universally acknowledged, that a single byte in possession of a good meaning ..."


class TestBatches:
    def test_causal_rows_are_framed_and_their_labels_are_themselves(self) -> None:
        made = make_batches(_loaded("causal", FramedTokenizer()), [_TEXT], source="book", tokens=60)
        (batch,) = made.batches
        assert batch["input_ids"].shape == (2, 32) and batch["input_ids"][:, 0].tolist() == [300, 300]
        assert bytes(batch["input_ids"][0, 1:31].tolist()).decode() in _TEXT
        assert batch["attention_mask"].sum(dim=1).tolist() == [32, 28]
        assert torch.equal(batch["labels"][0], batch["input_ids"][0])
        assert (made.info.source, made.info.kind, made.info.tokens, made.notes) == ("book", "text", 60, ())

    def test_what_is_short_is_padded_and_padding_counts_nowhere(self) -> None:
        made = make_batches(_loaded("encoder", FramedTokenizer()), ["abcdef", "xyz"], source="s", tokens=64)
        (batch,) = made.batches
        assert batch["input_ids"].tolist() == [[300, *b"abcdef", 301], [300, *b"xyz", 301, 302, 302, 302]]
        assert batch["attention_mask"].sum(dim=1).tolist() == [8, 5] and "labels" not in batch
        assert made.info.tokens == 13
        (batch,) = make_batches(_loaded("causal", FramedTokenizer()), ["abcdef" * 6], source="s", tokens=64).batches
        assert (batch["labels"] == -100).equal(batch["attention_mask"] == 0) and (batch["labels"] == -100).any()

    def test_masked_labels_are_the_tokens_behind_the_mask_and_no_others(self) -> None:
        made = make_batches(_loaded("masked", FramedTokenizer()), [_TEXT * 10], source="s", tokens=960)
        (batch,) = made.batches
        ids, labels = batch["input_ids"], batch["labels"]
        assert (labels != -100).equal(ids == 303)
        assert (ids == 303).sum(dim=1).tolist() == [round(0.15 * 30)] * 30
        assert (ids[:, 0] == 300).all() and (ids[:, -1] == 301).all()
        restored = torch.where(labels != -100, labels, ids)
        assert all(bytes(row[1:31]).decode() in _TEXT * 10 for row in restored.tolist())

    def test_an_encoder_decoder_reads_a_half_and_predicts_the_other(self) -> None:
        made = make_batches(_loaded("encoder_decoder", FramedTokenizer()), [_TEXT], source="s", tokens=32)
        (batch,) = made.batches
        source, target = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
        assert bytes(source[1:-1] + target[1:-1]).decode() in _TEXT and "decoder_input_ids" not in batch
        assert made.info.tokens == len(source) + len(target) == 32

    def test_without_a_tokenizer_tokens_are_random_within_the_vocabulary_and_said_to_be(self) -> None:
        made = make_batches(_loaded("causal", vocab_size=7, pad_token_id=3), [_TEXT], source="s", tokens=320)
        ids = torch.cat([batch["input_ids"] for batch in made.batches])
        assert ids.unique().tolist() == [0, 1, 2, 4, 5, 6]
        assert made.info.kind == "random" and "weak evidence" in made.notes[0]

    def test_the_same_call_makes_the_same_batches_and_leaves_the_random_state_alone(self) -> None:
        state = torch.get_rng_state()
        first = make_batches(_loaded("masked"), None, source="s", tokens=64).batches[0]
        second = make_batches(_loaded("masked"), None, source="s", tokens=64).batches[0]
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert torch.equal(torch.get_rng_state(), state)

    def test_rows_end_before_position_tables_do(self) -> None:
        loaded = _loaded("causal")
        loaded.model.positions = nn.Embedding(32, 4, padding_idx=1)  # positions count from 2, as in RoBERTa
        assert make_batches(loaded, None, source="s", tokens=64).batches[0]["input_ids"].shape[1] == 30

    def test_no_batch_holds_more_than_1024_tokens(self) -> None:
        loaded = _loaded("causal", max_position_embeddings=100_000)
        sizes = [batch["input_ids"].shape for batch in make_batches(loaded, None, source="s", tokens=3000).batches]
        assert sizes == [(2, 512), (2, 512), (1, 512)]
        short = make_batches(_loaded("encoder", FramedTokenizer()), ["abcd"] * 400, source="s", tokens=1707).batches
        assert [batch["input_ids"].shape for batch in short] == [(170, 6), (170, 6), (60, 6)]

    def test_a_tokenizer_of_another_model_is_refused(self) -> None:
        with pytest.raises(ModelError, match=r"token 301 .* embeddings for 260"):
            make_batches(_loaded("causal", FramedTokenizer(), vocab_size=260), [_TEXT], source="s")

    def test_a_vocabulary_that_is_not_known_is_refused(self) -> None:
        with pytest.raises(ModelError, match="vocab_size"):
            make_batches(_loaded("causal", vocab_size=None), None, source="s")

    def test_too_few_tokens_are_refused(self) -> None:
        with pytest.raises(UsageError, match="at least 16"):
            make_batches(_loaded("causal"), None, source="s", tokens=15)


class Seeing(Plain):
    """A model that takes pictures."""

    def forward(self, pixel_values):  # pyright: ignore[reportIncompatibleMethodOverride]
        return pixel_values


class Hearing(Plain):
    """A model that takes waveforms."""

    main_input_name = "input_values"

    def forward(self, input_values):  # pyright: ignore[reportIncompatibleMethodOverride]
        return input_values


def test_pictures_have_the_size_of_the_config_and_are_smooth_and_normalised() -> None:
    loaded = LoadedModel(Seeing(image_size=[24, 48], num_channels=2), None, "vision", {})
    made = make_batches(loaded, None, source="s")
    pictures = torch.cat([batch["pixel_values"] for batch in made.batches])
    assert pictures.shape == (4, 2, 24, 48) and made.info.kind == "random" and made.info.tokens == 0
    assert abs(pictures.mean()) < 0.2 and 0.5 < pictures.std() < 1.5
    steps = pictures.diff(dim=3).square().mean()
    assert steps < pictures.var()  # for white noise it would be twice the variance
    with pytest.raises(ModelError, match="image_size"):
        make_batches(LoadedModel(Seeing(), None, "vision", {}), None, source="s")


def test_sounds_are_waveforms_or_features() -> None:
    made = make_batches(LoadedModel(Hearing(), None, "audio", {}), None, source="s")
    assert made.batches[0]["input_values"].shape == (2, 16_000) and "made-up sounds" in made.notes[0]
    with pytest.raises(ModelError, match="num_mel_bins"):
        make_batches(LoadedModel(Plain(), None, "audio", {}), None, source="s")
