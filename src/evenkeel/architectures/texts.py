"""What a causal model reads and writes: the tokens of a prompt, those that end a text, text of tokens as they come."""

from __future__ import annotations

from typing import Any

from ..directories import Directory, read_json
from ..errors import ModelError, UsageError
from ..schema import clean_name
from .inputs import check_embedded, position_limits, special_tokens, vocabulary_size
from .loading import LoadedModel
from .tokenizers import ByteTokenizer, Tokenizer

_GENERATION = "generation_config.json"
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # what a part of a character is decoded as


def tokenizer_for_text(loaded: LoadedModel, directory: Directory) -> Tokenizer:
    """The tokenizer of a model that writes text; raises ModelError where the model is of another kind, or has none."""
    if loaded.kind != "causal":
        name = clean_name(type(loaded.model).__name__)
        raise ModelError(f"{directory.name} holds a {name}, which is no causal language model; give one that is")
    if loaded.tokenizer is None:
        raise ModelError(
            f"{directory.name} has no tokenizer, so it cannot read a prompt; copy its tokenizer.json there"
        )
    bytes_only = isinstance(loaded.tokenizer, ByteTokenizer)
    if bytes_only and vocabulary_size(loaded) > ByteTokenizer.vocabulary_size:
        raise ModelError(
            f"{directory.name} has a vocabulary of {vocabulary_size(loaded):,} and its text is bytes, of which there "
            f"are {ByteTokenizer.vocabulary_size}; give a model of bytes"
        )
    return loaded.tokenizer


def prompt_tokens(loaded: LoadedModel, tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of a text that is to be continued: with those that a tokenizer puts before it, not those after it.

    An empty text is the token that texts begin with. Raises UsageError where there is none, ModelError for a token that
    the model has no embedding for.
    """
    before, _ = special_tokens(tokenizer)
    tokens = [*before, *tokenizer.encode(text, add_special_tokens=False)]
    if not tokens and tokenizer.bos_token_id is not None:
        tokens = [tokenizer.bos_token_id]
    if not tokens:
        raise UsageError("the prompt is empty and the model has no token that texts begin with; give some text")
    check_embedded(max(tokens), vocabulary_size(loaded))
    return tokens


def end_tokens(loaded: LoadedModel, tokenizer: Tokenizer, directory: Directory) -> frozenset[int]:
    """The tokens at which a text ends: the tokenizer's, the config's, and generation_config.json's."""
    path = directory.path / _GENERATION
    settings = read_json(path) if path.is_file() else {}
    config = getattr(loaded.model, "config", None)
    named: list[Any] = [tokenizer.eos_token_id]
    for value in (getattr(config, "eos_token_id", None), settings.get("eos_token_id")):
        named += value if isinstance(value, list) else [value]
    return frozenset(token for token in named if isinstance(token, int) and 0 <= token < vocabulary_size(loaded))


def context_length(loaded: LoadedModel) -> int | None:
    """The most tokens that the model can look at; None where its config names no bound."""
    return min(position_limits(loaded), default=None)


class TextStream:
    """Text of tokens as they come. What may still be a part of a character is held back until it is whole.

    before: the tokens of the prompt; they decide how the first one after it is read, with a space in front or without.
    """

    def __init__(self, tokenizer: Tokenizer, before: list[int]) -> None:
        self._tokenizer = tokenizer
        self._window = list(before)
        self._fresh: list[int] = []
        self._told = len(self._decoded())

    def push(self, token: int) -> str:
        """What a further token makes certain."""
        self._window.append(token)
        self._fresh.append(token)
        text = self._decoded()
        new = text.rstrip(_INCOMPLETE)[self._told :]
        self._told += len(new)
        if new and self._told == len(text):  # all is told: these tokens are all that the next ones need to be read
            self._window, self._fresh = self._fresh, []
            self._told = len(self._decoded())
        return new

    def rest(self) -> str:
        """What was held back to the end."""
        return self._decoded()[self._told :]

    def _decoded(self) -> str:
        return _decode(self._tokenizer, self._window, skip_special_tokens=True)


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """What a token adds to a text, with a space in front of it; replacement characters for part of a character."""
    anchor = tokenizer.encode("a", add_special_tokens=False)
    start = len(_decode(tokenizer, anchor))
    return _decode(tokenizer, [*anchor, token])[start:]


def token_name(tokenizer: Tokenizer, token: int) -> str:
    """A token as a reader tells it from others: its text, quoted; for part of a character the tokenizer's own name."""
    text = token_text(tokenizer, token)
    if text and _INCOMPLETE not in text:
        return repr(text)
    return clean_name(tokenizer.convert_ids_to_tokens(token) or f"<{token}>")


def _decode(tokenizer: Tokenizer, tokens: list[int], *, skip_special_tokens: bool = False) -> str:
    return tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False)
