"""A decoder-only transformer whose every choice is a field of its config."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..functional import Sampler
from . import storage
from .attention import Surroundings, make_positions
from .block import Block
from .caches import Cache
from .config import TransformerConfig
from .families import Origin, read_directory, write_directory
from .generation import check_rows, generate
from .heads import Head
from .initialisation import first_deviations, initialise
from .norms import make_norm


class TransformerOutput(NamedTuple):
    """logits: (batch, length, vocabulary), where no labels were given. loss: in nats per token, where they were."""

    logits: Tensor | None
    loss: Tensor | None


class Transformer(nn.Module):
    """A decoder: embedding, `depth` blocks, norm and head.

    Embeddings start from N(0, 1), or N(0, 1/d_model) where the head is tied to them, matrices from N(0, 1/fan_in), so
    that every product keeps its input's variance; norms start at 1, biases, sinks and learned positions at 0. Each
    parameter draws from its own stream, keyed by (seed, parameter name): variants of one seed share what they have in
    common. origin: where the model came from, where that was a Hugging Face directory.
    """

    origin: Origin | None = None

    def __init__(self, config: TransformerConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        width, attention, position = config.d_model, config.attention, config.position
        self.embedding = nn.Embedding(config.vocabulary, width)
        self.positions = nn.Embedding(config.context, width) if position.kind == "learned" else None
        shared = None if position.kind == "learned" else position
        self.rotary, self.bias = make_positions(shared, attention.heads, config.head_dim)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.depth))
        self.norm = make_norm(width, config.norm) if config.norm.before_head else nn.Identity()
        self.head = Head(width, config.vocabulary, config.head)
        initialise(self, seed, deviations=first_deviations(config))

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        *,
        attention_mask: Tensor | None = None,
        cache: Cache | None = None,
    ) -> TransformerOutput:
        """Logits for every position of `input_ids` (batch, length) int64, length at most `config.context`; or a loss.

        labels: (batch, length), the tokens themselves; they are shifted here (position t is judged by label t + 1), and
        -100 counts in no loss. With labels no logits are kept: see Head. attention_mask: (batch, length), 0 where a
        token is padding, which nobody sees and which takes no position. cache: the tokens before these; it takes these
        as well.
        Raises UsageError for what are no rows of token ids, a sequence longer than the context, and an attention_mask
        of another shape.
        """
        x = self.hidden(input_ids, attention_mask=attention_mask, cache=cache)
        if labels is None:
            return TransformerOutput(self.head(x, self.embedding.weight), None)
        return TransformerOutput(None, self.head(x[:, :-1], self.embedding.weight, labels[:, 1:]))

    def hidden(self, input_ids: Tensor, *, attention_mask: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """What the head is given, (batch, length, d_model); arguments as in forward."""
        check_rows(input_ids)
        start = 0 if cache is None else cache.length
        end = start + input_ids.shape[1]
        if end > self.config.context:
            raise UsageError(
                f"the sequence has {end} tokens and the model's context is {self.config.context}; cut the sequence "
                f"or make the model with context={end}"
            )
        places, visible = _places(input_ids, start, end, attention_mask, cache)
        x = self._embedded(input_ids)
        factor = self.config.embedding.factor(self.config.d_model)
        x = x if factor == 1 else x * factor
        queries = places[:, start:]
        x = x if self.positions is None else x + self.positions(queries)
        surroundings = Surroundings(
            rotation=None if self.rotary is None else self.rotary(queries, x.dtype),
            bias=None if self.bias is None else self.bias(queries, places, x.dtype),
            visible=None if visible is None else visible[:, None, None, :],
            start=start,
            cache=cache,
            span=self.config.context,
        )
        for block in self.blocks:
            x = block(x, surroundings)
        if cache is not None:
            cache.advance(input_ids.shape[1])
        return self.norm(x)

    def _embedded(self, input_ids: Tensor) -> Tensor:
        try:
            return self.embedding(input_ids)
        except IndexError as error:
            raise UsageError(
                f"input_ids run from {int(input_ids.min())} to {int(input_ids.max())} and the vocabulary is "
                f"{self.config.vocabulary}; give the tokens of the tokenizer that belongs to the model"
            ) from error

    def generate(
        self,
        input_ids: Tensor,
        *,
        max_new_tokens: int,
        sampler: Sampler | None = None,
        seeds: int | Tensor = 0,
        attention_mask: Tensor | None = None,
        stop_tokens: Collection[int] = (),
    ) -> Tensor:
        """Continue token rows (batch, length) int64 with keys and values kept: see evenkeel.nn.generation.generate."""
        return generate(
            self,
            input_ids,
            max_new_tokens=max_new_tokens,
            sampler=sampler,
            seeds=seeds,
            attention_mask=attention_mask,
            stop_tokens=stop_tokens,
        )

    def parameter_count(self) -> int:
        """How many parameters there are, each counted once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def save(self, directory: str | Path) -> None:
        """Write config.json and model.safetensors into a directory, which is made where there is none.

        Raises UsageError for a model under a swap, which no file keeps.
        """
        self._check_forwards()
        storage.save(directory, self.config, self.state_dict())

    @classmethod
    def load(cls, directory: str | Path) -> Self:
        """The model that `save` wrote, in the dtype that it had.

        Raises ModelError for files that cannot be read, ConfigError for bad fields.
        """
        config, weights = storage.load(directory)
        with torch.device("meta"):
            model = cls(config)
        storage.fill(model, weights, directory)
        return model

    @classmethod
    def from_directory(cls, directory: str | Path, *, dtype: torch.dtype | None = None) -> Self:
        """The model of a Hugging Face directory of a known family (evenkeel.nn.families): config.json and safetensors.

        Its logits are those of transformers, which need not be there. No code of the directory runs. dtype: of all
        weights; by default that of the files, the narrowest that holds them all where they have several. Dropout is not
        read: there is none.
        Raises ConfigError for a field that cannot be mapped, which it names, ModelError for files that cannot be read
        and weights that are missing, too many or of other shapes.
        """
        return read_directory(cls, directory, dtype)

    def save_directory(
        self, directory: str | Path, *, family: str | None = None, max_shard_size: int | None = None
    ) -> None:
        """Write config.json and safetensors as transformers reads them; weights that were there before are replaced.

        family: a name in evenkeel.nn.families.FAMILIES; by default the one that the model came from, else the first
        that has such a model. max_shard_size: bytes of a file, a tensor at least; None for one file. The tokenizer is
        not written: copy its files.
        Raises ConfigError, which says what the families lack, where none has such a model, UsageError as `save`.
        """
        self._check_forwards()
        write_directory(self, directory, family, max_shard_size)

    def _check_forwards(self) -> None:
        changed = [name for name, module in self.named_modules() if "forward" in vars(module)]
        if changed:
            raise UsageError(
                f"{changed[0] or type(self).__name__} has another forward than its class, as a swap gives it, and no "
                "file keeps that; restore() the swap, or put the weights into Transformer(config.changed(change))"
            )


def _places(
    input_ids: Tensor, start: int, end: int, attention_mask: Tensor | None, cache: Cache | None
) -> tuple[Tensor, Tensor | None]:
    """Positions of all tokens so far, (batch or 1, end), and which of them are no padding, where some may be."""
    if attention_mask is not None and attention_mask.shape != input_ids.shape:
        raise UsageError(
            f"attention_mask has shape {tuple(attention_mask.shape)} and input_ids {tuple(input_ids.shape)}; give one "
            "number for each token, with a cache too"
        )
    visible = None if attention_mask is None else attention_mask.bool()
    if cache is not None:
        visible = cache.see(visible, start, end, input_ids)
    if visible is None:
        return torch.arange(end, device=input_ids.device)[None], None
    return (visible.cumsum(-1) - 1).clamp(min=0), visible
