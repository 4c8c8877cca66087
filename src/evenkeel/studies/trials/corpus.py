"""What a study trains and tries its models on: the bytes of a text, in two parts that share none."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...data import standard_library_text, texts_in
from ...errors import ConfigError
from ...schema import clean_name

SUFFIXES = (".jsonl", ".md", ".py", ".rst", ".txt")

_BLOCK = 2**15
_HELD_OUT_EVERY = 10
_ROWS = 512


@dataclass(frozen=True, eq=False)
class Corpus:
    """training: bytes to draw windows from. held_out: bytes that no window holds. digest: of all of it, in order."""

    source: str
    training: bytes
    held_out: bytes
    digest: str

    def windows(self, context: int) -> Tensor:
        """Up to 512 windows spread evenly over the held-out bytes, (rows, context) int64; the same every time."""
        data = torch.frombuffer(bytearray(self.held_out), dtype=torch.uint8)
        room = data.numel() - context
        rows = min(_ROWS, 1 + room // context)
        starts = torch.linspace(0, room, rows).long()
        return data[starts[:, None] + torch.arange(context)].long()


def read_corpus(path: str, *, context: int) -> Corpus:
    """The text of a file, or of every text file in a directory, by name; "": the sources of Python's standard library.

    Blocks of 32 KiB, every tenth of which is held out; a short text gives its last tenth. Raises DataError for what
    cannot be read whole, ConfigError for text that does not give a window to each part, none at all among it.
    """
    source = clean_name(Path(path).resolve().name) if path else "Python's standard library"
    data = _bytes_of(Path(path)) if path else standard_library_text().encode()
    block = min(_BLOCK, max(1, len(data) // _HELD_OUT_EVERY))
    blocks = [data[start : start + block] for start in range(0, len(data), block)]
    held_out = b"".join(blocks[_HELD_OUT_EVERY - 1 :: _HELD_OUT_EVERY])
    training = b"".join(item for number, item in enumerate(blocks, 1) if number % _HELD_OUT_EVERY)
    if len(held_out) <= context:
        raise ConfigError(
            f"{source} has {len(data):,} bytes and a study with a context of {context} needs at least "
            f"{(context + 2) * _HELD_OUT_EVERY:,}; give more text, or a smaller context"
        )
    return Corpus(source, training, held_out, hashlib.sha256(data).hexdigest()[:16])


def _bytes_of(path: Path) -> bytes:
    if not path.is_dir():
        return "\n\n".join(texts_in(path, whole=True)).encode()
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    if not files:
        raise ConfigError(f"{clean_name(str(path))} holds no text; give a directory with {', '.join(SUFFIXES)} files")
    return "\n\n".join(text for file in files for text in texts_in(file, whole=True)).encode()
