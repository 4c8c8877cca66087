"""What evenkeel asks of a tokenizer, and the one of its own models: bytes."""

from __future__ import annotations

from typing import Protocol


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that is used here."""

    @property
    def pad_token_id(self) -> int | None: ...

    @property
    def bos_token_id(self) -> int | None: ...

    @property
    def eos_token_id(self) -> int | None: ...

    @property
    def mask_token_id(self) -> int | None: ...

    @property
    def model_max_length(self) -> int: ...

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...

    def decode(
        self,
        tokens: list[int],
        /,
        *,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool = False,
    ) -> str: ...

    def convert_ids_to_tokens(self, token: int, /) -> str | None: ...


class ByteTokenizer:
    """The bytes of the text in UTF-8 are its tokens: 256 of them, none special."""

    vocabulary_size = 256
    pad_token_id = None
    bos_token_id = None
    eos_token_id = None
    mask_token_id = None
    model_max_length = 2**31

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return list(text.encode("utf-8"))

    def decode(
        self,
        tokens: list[int],
        /,
        *,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool = False,
    ) -> str:
        """The text of the tokens; what is no UTF-8 becomes the replacement character."""
        return bytes(tokens).decode("utf-8", errors="replace")

    def convert_ids_to_tokens(self, token: int, /) -> str:
        """A byte's name, as Llama's tokenizer has it: <0x0A>."""
        return f"<0x{token:02X}>"
