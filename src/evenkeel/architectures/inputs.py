"""Inputs of a loaded model, by its kind: token rows with their labels, made-up pictures, made-up sounds."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelError
from .loading import LoadedModel
from .tokenizers import Tokenizer

Batch = dict[str, Tensor]
Pieces = Sequence[Sequence[int]]

BATCH_TOKENS = 1024
"""The most tokens in one batch; this decides how much memory a batch takes."""
LONGEST_ROW = 512
"""The most tokens in one row."""

_IGNORED = -100
_MASKED_SHARE = 0.15  # Devlin et al. 2019, section 3.1; here all of them become the mask token
_PICTURES, _SOUNDS, _SAMPLES, _TARGET = 4, 2, 16_000, 16


@dataclass(frozen=True)
class Rows:
    """How token pieces become rows of a model: what stands around each, what fills the rest, how many fit.

    length: room for tokens in a piece, special tokens not counted. vocabulary: ids run below it. sequences: how many
    rows a piece becomes, two for a source and a target.
    """

    length: int
    vocabulary: int
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    padding: int = 0
    mask: int | None = None
    sequences: int = 1

    @classmethod
    def of(cls, loaded: LoadedModel, tokens: int) -> Rows:
        """The rows of a loaded model when there are `tokens` tokens in all; raises ModelError without a vocabulary."""
        tokenizer, vocabulary = loaded.tokenizer, vocabulary_size(loaded)
        before, after = special_tokens(tokenizer) if tokenizer is not None else ((), ())
        longest = min(LONGEST_ROW, tokens, *_row_limits(loaded))
        sequences = 2 if loaded.kind == "encoder_decoder" else 1
        length = max(longest - sequences * (len(before) + len(after)), 2)
        if tokenizer is None:
            return cls(length, vocabulary, padding=_id_of(loaded, "pad_token_id") or 0, sequences=sequences)
        candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        padding = next(item for item in candidates if item is not None and item < vocabulary)
        return cls(length, vocabulary, before, after, padding, tokenizer.mask_token_id, sequences)

    @property
    def special(self) -> int:
        """How many special tokens stand around a piece."""
        return self.sequences * (len(self.before) + len(self.after))

    def room(self, tokens: int) -> int:
        """How many of some tokens are left for pieces, when the special tokens around whole pieces count as well."""
        return max(tokens * self.length // (self.length + self.special), 2)

    def tokens(self, pieces: Pieces) -> int:
        """How many tokens the rows of some pieces hold, padding not counted."""
        return sum(len(piece) + self.special for piece in pieces)

    def random(self, tokens: int) -> list[list[int]]:
        """Pieces of uniformly random ids, the padding id left out; the same every time."""
        count = max(tokens // self.length, 1)
        drawn = torch.randint(1, self.vocabulary, (count, self.length), generator=_generator())
        drawn[drawn == self.padding] = 0
        return drawn.tolist()

    def around(self, piece: Sequence[int]) -> list[int]:
        """A row: the piece between the special tokens."""
        return [*self.before, *piece, *self.after]


def token_batches(loaded: LoadedModel, rows: Rows, pieces: Pieces) -> list[Batch]:
    """Batches of rows with `attention_mask`, and with `labels` where the kind of the model has a loss.

    causal: labels are the tokens. encoder_decoder: a piece's second half is the target of its first. masked: 15% of
    the tokens (at least one per row) stand behind the mask token and are the labels. What counts in no loss is -100.
    Raises ModelError for a token that the model has no embedding for.
    """
    check_embedded(max(max(rows.around(piece)) for piece in pieces), rows.vocabulary)
    make = {"causal": _causal, "encoder_decoder": _encoder_decoder, "masked": _masked}.get(loaded.kind, _unlabelled)
    batches = [make(rows, group) for group in _groups(rows, pieces)]
    if "pixel_values" in _parameters(loaded) and loaded.kind == "encoder":  # text and pictures, as in CLIP
        batches = [batch | {"pixel_values": _pictures(loaded, len(batch["input_ids"]))} for batch in batches]
    return [_accepted(loaded, batch) for batch in batches]


def check_embedded(largest: int, vocabulary: int) -> None:
    """Raise ModelError for a token that is beyond the vocabulary of the model."""
    if largest >= vocabulary:
        raise ModelError(
            f"the tokenizer makes token {largest:,} and the model has embeddings for {vocabulary:,}; "
            "give the model the tokenizer that belongs to it"
        )


def _groups(rows: Rows, pieces: Pieces) -> Iterator[Pieces]:
    """The pieces in order, as many at a time as make no more than a batch's tokens, padding counted."""
    group: list[Sequence[int]] = []
    for piece in pieces:
        longest = max(len(rows.around(item)) for item in (*group, piece))
        if group and (len(group) + 1) * longest > BATCH_TOKENS:
            yield group
            group = []
        group.append(piece)
    if group:
        yield group


def picture_batches(loaded: LoadedModel) -> list[Batch]:
    """Smooth made-up pictures, two to a batch; raises ModelError where the config names no picture size."""
    pictures = _pictures(loaded, _PICTURES)
    return [_accepted(loaded, {"pixel_values": pair}) for pair in pictures.split(2)]


def sound_batches(loaded: LoadedModel) -> list[Batch]:
    """Made-up sounds as waveforms or features; raises ModelError where the config does not say how many features."""
    if getattr(loaded.model, "main_input_name", "") == "input_values":
        batch = {"input_values": _waves(_SOUNDS, _SAMPLES)}
    else:
        bins, frames = _setting(loaded, "num_mel_bins"), _setting(loaded, "max_source_positions")
        if bins is None or frames is None:
            raise ModelError("inputs cannot be made: the config names no num_mel_bins and max_source_positions")
        batch = {"input_features": _waves(_SOUNDS * bins, 2 * frames).view(_SOUNDS, bins, 2 * frames)}
    if getattr(getattr(loaded.model, "config", None), "is_encoder_decoder", False):
        shape = (_SOUNDS, _TARGET)
        batch["labels"] = torch.randint(vocabulary_size(loaded), shape, generator=_generator())
    return [_accepted(loaded, batch)]


def _unlabelled(rows: Rows, pieces: Pieces) -> Batch:
    ids, mask = _padded([rows.around(piece) for piece in pieces], rows.padding)
    return {"input_ids": ids, "attention_mask": mask}


def _causal(rows: Rows, pieces: Pieces) -> Batch:
    batch = _unlabelled(rows, pieces)
    return batch | {"labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, _IGNORED)}


def _encoder_decoder(rows: Rows, pieces: Pieces) -> Batch:
    halves = [(piece[: len(piece) // 2], piece[len(piece) // 2 :]) for piece in pieces]
    source = _unlabelled(rows, [first for first, _ in halves])
    target = _causal(rows, [second for _, second in halves])
    return source | {
        "decoder_input_ids": _shifted(target["input_ids"], rows.padding),
        "decoder_attention_mask": target["attention_mask"],
        "labels": target["labels"],
    }


def _shifted(ids: Tensor, start: int) -> Tensor:
    return torch.cat([torch.full_like(ids[:, :1], start), ids[:, :-1]], dim=1)


def _masked(rows: Rows, pieces: Pieces) -> Batch:
    batch = _unlabelled(rows, pieces)
    ids, generator = batch["input_ids"], _generator()
    labels = torch.full_like(ids, _IGNORED)
    for row, piece in enumerate(pieces):
        count = max(round(_MASKED_SHARE * len(piece)), 1)
        chosen = torch.randperm(len(piece), generator=generator)[:count] + len(rows.before)
        labels[row, chosen] = ids[row, chosen]
        hidden = torch.randint(rows.vocabulary, (count,), generator=generator) if rows.mask is None else rows.mask
        ids[row, chosen] = hidden
    return batch | {"labels": labels}


def _padded(rows: Sequence[Sequence[int]], padding: int) -> tuple[Tensor, Tensor]:
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *itertools.repeat(padding, longest - len(row))] for row in rows])
    lengths = torch.tensor([[len(row)] for row in rows])
    return ids, (torch.arange(longest) < lengths).long()


def _pictures(loaded: LoadedModel, count: int) -> Tensor:
    size, channels = _setting(loaded, "image_size"), _setting(loaded, "num_channels") or 3
    if size is None:
        raise ModelError("inputs cannot be made: the config names no image_size")
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return (_waves(count * channels, height)[:, :, None] * _waves(count * channels, width)[:, None, :]).view(
        count, channels, height, width
    )


def _waves(count: int, length: int) -> Tensor:
    """Curves of mean about 0 and variance about 1: (count, length) float32, five random low frequencies each."""
    generator = _generator()
    position = torch.linspace(0, 2 * math.pi, length)
    frequency = torch.randint(1, 9, (count, 5, 1), generator=generator)
    phase = 2 * math.pi * torch.rand(count, 5, 1, generator=generator)
    return (frequency * position + phase).sin().sum(dim=1) * math.sqrt(2 / 5)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _parameters(loaded: LoadedModel) -> set[str]:
    return set(inspect.signature(loaded.model.forward).parameters)


def _accepted(loaded: LoadedModel, batch: Batch) -> Batch:
    """What of a batch the model takes, on its device; decoder inputs only where labels do not make them."""
    names = _parameters(loaded)
    if "labels" in names:
        names -= {"decoder_input_ids"}
    device = next(loaded.model.parameters()).device
    dtype = next(loaded.model.parameters()).dtype
    return {
        name: value.to(device, dtype if value.is_floating_point() else value.dtype)
        for name, value in batch.items()
        if name in names
    }


def special_tokens(tokenizer: Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What a tokenizer puts before and after a text, found by encoding one with and without."""
    plain = tokenizer.encode("text", add_special_tokens=False)
    full = tokenizer.encode("text", add_special_tokens=True)
    for start in range(len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            return tuple(full[:start]), tuple(full[start + len(plain) :])
    return (), ()


def vocabulary_size(loaded: LoadedModel) -> int:
    """How many tokens the config names; raises ModelError where it does not."""
    size = _setting(loaded, "vocab_size")
    size = loaded.config.get("vocabulary") if size is None else size
    if not isinstance(size, int) or size < 2:
        raise ModelError(f"inputs cannot be made: the config's vocab_size is {size} and must be 2 or more")
    return size


def _row_limits(loaded: LoadedModel) -> Iterator[int]:
    """Every bound on a row's length: the model's and the tokenizer's."""
    yield from position_limits(loaded)
    if loaded.tokenizer is not None:
        yield loaded.tokenizer.model_max_length


def position_limits(loaded: LoadedModel) -> Iterator[int]:
    """Every bound of the model on a row's length: the config's, that of position tables behind a padding row."""
    for name in ("max_position_embeddings", "max_target_positions"):
        limit = _setting(loaded, name)
        if isinstance(limit, int) and limit > 0:
            yield limit
            for module in loaded.model.modules():
                if (
                    isinstance(module, nn.Embedding)
                    and module.num_embeddings == limit
                    and module.padding_idx is not None
                ):
                    yield limit - module.padding_idx - 1
    if "context" in loaded.config:
        yield loaded.config["context"]


def _id_of(loaded: LoadedModel, name: str) -> int | None:
    value = _setting(loaded, name)
    return value if isinstance(value, int) and value >= 0 else None


def _setting(loaded: LoadedModel, name: str) -> Any:
    """A value of the model's config, or of the first of its parts that has one."""
    config = getattr(loaded.model, "config", None)
    parts = [
        getattr(config, part, None) for part in ("text_config", "vision_config", "audio_config", "encoder", "decoder")
    ]
    found = (getattr(part, name, None) for part in (config, *parts))
    return next((value for value in found if value is not None), None)
