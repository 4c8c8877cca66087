"""Text to batches: files, or the sources of Python's own standard library, as token pieces of a model's length."""

from __future__ import annotations

import json
import math
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .architectures import LoadedModel, Tokenizer
from .architectures.inputs import Batch, Rows, picture_batches, sound_batches, token_batches
from .errors import DataError, UsageError
from .schema import DataInfo, clean_name

DEFAULT_TOKENS = 2048

LARGEST_FILE = 64 * 2**20
"""Bytes of a file that are read."""

_CHARACTERS_PER_TOKEN = 16
_FEWEST_TOKENS = 16
_MADE_UP = {"vision": ("pictures", picture_batches), "audio": ("sounds", sound_batches)}


def read_texts(path: str | Path, *, limit_bytes: int = LARGEST_FILE) -> list[str]:
    """The texts of a file, as many as its first `limit_bytes` bytes hold.

    `.jsonl`: one text per line, from the field `text` or from `messages` (a list of `{"role", "content"}`). Every
    other file is one plain text in UTF-8. Raises DataError for a file that is missing, blank or binary, for a line
    that is no JSON object and for one without a usable field. A directory is refused: give one file.
    """
    texts = texts_in(path, limit_bytes=limit_bytes)
    if not texts:
        raise DataError(f"{clean_name(str(path))!r} holds no text; give a file with some")
    return texts


def texts_in(path: str | Path, *, limit_bytes: int = LARGEST_FILE, whole: bool = False) -> list[str]:
    """As `read_texts`, but none where the file is blank. whole: raises DataError for a file with more bytes."""
    path = Path(path)
    name = repr(clean_name(str(path)))
    try:
        with path.open("rb") as file:
            raw = file.read(limit_bytes + 1)
    except IsADirectoryError as error:
        raise DataError(f"{name} is a directory; give one .txt or .jsonl file") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no valid file name"
        raise DataError(f"{name} cannot be read: {reason}; give a .txt or .jsonl file") from error
    if whole and len(raw) > limit_bytes:
        raise DataError(
            f"{name} has more than the {limit_bytes:,} bytes that are read of a file; split it into files of one "
            "directory, and give that"
        )
    text = _decoded(raw[:limit_bytes], name, cut=len(raw) > limit_bytes)
    if path.suffix.lower() == ".jsonl":
        lines = text.split("\n")
        texts = list(_json_lines(lines[:-1] if len(raw) > limit_bytes else lines, name))
    else:
        texts = [text]
    return [item for item in texts if item.strip()]


def _decoded(raw: bytes, name: str, *, cut: bool) -> str:
    if b"\0" in raw:
        raise DataError(f"{name} is a binary file (it holds NUL bytes); give text in UTF-8")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if cut and len(raw) - error.start < 4:  # the limit cut through a character
            return raw[: error.start].decode("utf-8-sig")
        raise DataError(
            f"{name} is no text in UTF-8 (byte {raw[error.start]:#04x} at offset {error.start:,}); convert it to UTF-8"
        ) from error


def _json_lines(lines: Sequence[str], name: str) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"line {number} of {name} is no JSON: {error}; mend or remove it") from error
        text = _text_of(entry)
        if text is None:
            raise DataError(
                f"line {number} of {name} has neither a string `text` nor `messages` with role and content; "
                "name the field so"
            )
        yield text


def _text_of(entry: Any) -> str | None:
    if not isinstance(entry, dict):
        return None
    text = entry.get("text")
    if not isinstance(text, str):
        messages = entry.get("messages")
        spoken = [_message(item) for item in messages] if isinstance(messages, list) else []
        text = "\n".join(item for item in spoken if item is not None) if any(spoken) else None
    return text and text.encode("utf-8", errors="replace").decode("utf-8")  # JSON can hold halves of characters


def _message(message: Any) -> str | None:
    """One line of a conversation, `role: content`; None where there is no text in it, as in a call of a tool."""
    if not isinstance(message, dict):
        return None
    content = message.get("content")
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        content = "".join(part for part in parts if isinstance(part, str))
    return f"{message.get('role', 'user')}: {content}" if isinstance(content, str) and content else None


def standard_library_text(limit_bytes: int | None = None) -> str:
    """The top-level modules of Python's standard library as one text, by name, at most `limit_bytes` bytes of UTF-8.

    Raises DataError where Python was installed without its sources.
    """
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    parts, size = [], 0
    for file in files:
        if limit_bytes is not None and size >= limit_bytes:
            break
        parts.append(file.read_bytes())
        size += len(parts[-1])
    if not parts:
        raise DataError("this Python has no standard library sources to read; give a text with --data")
    return b"".join(parts)[:limit_bytes].decode("utf-8", errors="ignore")


def token_pieces(
    tokenizer: Tokenizer, texts: Sequence[str], *, length: int, tokens: int, joined: bool
) -> list[list[int]]:
    """At most `tokens` tokens of some texts, in pieces of at most `length`, without special tokens.

    joined: the texts are taken as one long text; else no piece holds more than one text. The pieces of a long text are
    spread evenly over it, so that a few show all of it. Raises DataError where no piece of two tokens comes out.
    """
    if joined:
        texts = ["\n\n".join(texts)]
    share = math.ceil(tokens / length / len(texts))
    pieces, left = [], tokens
    for text in texts:
        for piece in _pieces_of(tokenizer, text, length, share):
            piece = piece[:left]
            if len(piece) > 1:
                pieces.append(piece)
                left -= len(piece)
        if left < 2:
            break
    if not pieces:
        raise DataError("the text is shorter than two tokens; give more of it")
    return pieces


def _pieces_of(tokenizer: Tokenizer, text: str, length: int, count: int) -> Iterator[list[int]]:
    window = length * _CHARACTERS_PER_TOKEN
    if len(text) < count * window:
        encoded = tokenizer.encode(text, add_special_tokens=False)
        yield from (encoded[start : start + length] for start in range(0, min(len(encoded), count * length), length))
        return
    for index in range(count):
        start = index * len(text) // count
        yield tokenizer.encode(text[start : start + window], add_special_tokens=False)[:length]


@dataclass(frozen=True)
class Batches:
    """Keyword arguments for a model, on its device; what they are; and what a reader of the results has to know."""

    batches: tuple[Batch, ...]
    info: DataInfo
    notes: tuple[str, ...] = ()


def make_batches(
    loaded: LoadedModel, texts: Sequence[str] | None, *, source: str, tokens: int = DEFAULT_TOKENS
) -> Batches:
    """A few batches for a loaded model, the same every time: about `tokens` tokens in rows of at most 512.

    texts: what a model with a tokenizer reads; with None, or without a tokenizer, the tokens are random. Vision and
    audio models get made-up pictures and sounds. source: what the report calls the texts. Raises UsageError for fewer
    than 16 tokens, DataError for too little text, ModelError where the inputs cannot be made from the config.
    """
    if tokens < _FEWEST_TOKENS:
        raise UsageError(f"tokens is {tokens} and must be at least {_FEWEST_TOKENS}")
    if loaded.kind in _MADE_UP:
        what, make = _MADE_UP[loaded.kind]
        note = f"the inputs are made-up {what}: every number here is weak evidence"
        return Batches(tuple(make(loaded)), DataInfo(source=f"made-up {what}", kind="random"), (note,))
    rows = Rows.of(loaded, tokens)
    if texts is None or loaded.tokenizer is None:
        pieces = rows.random(tokens)
        info = DataInfo(source="random tokens", kind="random", tokens=rows.tokens(pieces))
        notes = ("the tokens are random: every number here is weak evidence",)
    else:
        joined = loaded.kind in ("causal", "encoder_decoder")
        room = rows.room(tokens)
        pieces = token_pieces(loaded.tokenizer, texts, length=rows.length, tokens=room, joined=joined)
        info, notes = DataInfo(source=source, kind="text", tokens=rows.tokens(pieces)), ()
    return Batches(tuple(token_batches(loaded, rows, pieces)), info, notes)
