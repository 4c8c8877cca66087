"""Text as tokens come: whole characters, nothing lost, and a token's name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import transformers
from model_directories import make_tokenizer
from tokenizers import Tokenizer, decoders, models

from evenkeel.architectures.texts import TextStream, token_name, token_text
from evenkeel.architectures.tokenizers import ByteTokenizer


def fallback_tokenizer() -> Any:
    """As Llama's: spaces are ▁, and what is not in the vocabulary is bytes."""
    words = ["<unk>", "a", "▁sea", "▁", "é", *(f"<0x{byte:02X}>" for byte in range(256))]
    model = models.BPE({word: place for place, word in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True)
    tokenizer = Tokenizer(model)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)  # pyright: ignore[reportAttributeAccessIssue]
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def byte_level_tokenizer() -> Any:
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def streamed(tokenizer: Any, prompt: list[int], tokens: list[int]) -> list[str]:
    stream = TextStream(tokenizer, prompt)
    return [*map(stream.push, tokens), stream.rest()]


class TestStream:
    TEXT = "a sea é 你好 🛶!"

    @pytest.mark.parametrize("make", [ByteTokenizer, byte_level_tokenizer], ids=["bytes", "byte level"])
    def test_pieces_are_whole_characters_and_add_up(self, make: Callable[[], Any]) -> None:
        tokenizer = make()
        tokens = tokenizer.encode(self.TEXT, add_special_tokens=False)
        pieces = streamed(tokenizer, tokenizer.encode("b", add_special_tokens=False), tokens)
        assert "".join(pieces) == self.TEXT and "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)
        assert pieces.count("") >= 3 + 2 * 2 + 1 - (make is byte_level_tokenizer)  # the character's earlier bytes
        assert pieces[0] == "a"  # nothing is held back that is whole

    def test_spaces_in_front_and_bytes_between_words(self) -> None:
        tokenizer = fallback_tokenizer()
        byte = {value: 5 + value for value in range(256)}
        tokens = [2, 1, *(byte[value] for value in "你é".encode()), 2, *(byte[value] for value in "🛶".encode())]
        pieces = streamed(tokenizer, [1], tokens)
        assert pieces == [" sea", "a", "", "", "你", "", "é", " sea", "", "", "", "🛶", ""]

    def test_what_never_becomes_a_character_comes_at_the_end_or_with_the_next_one(self) -> None:
        assert streamed(ByteTokenizer(), [], [0xFF, 0x61, 0xC3]) == ["", "\ufffda", "", "\ufffd"]
        assert streamed(ByteTokenizer(), [0x61], [0xE2, 0x82, 0xAC, 0xC3]) == ["", "", "€", "", "\ufffd"]

    def test_special_tokens_are_no_text(self) -> None:
        tokenizer = byte_level_tokenizer()
        word = tokenizer.encode("x", add_special_tokens=False)
        assert "".join(streamed(tokenizer, [1], [2, *word, 2, *word])) == "xx"

    def test_a_tokens_name(self) -> None:
        fallback = fallback_tokenizer()
        assert [token_text(fallback, token) for token in (1, 2, 4)] == ["a", " sea", "é"]
        assert [token_name(fallback, token) for token in (2, 5 + 0xC3)] == ["' sea'", "<0xC3>"]
        names = [token_name(ByteTokenizer(), byte) for byte in b"a \n\x1b\xc3"]
        assert names == ["'a'", "' '", "'\\n'", "'\\x1b'", "<0xC3>"]
