"""Continuing a text token by token with a loaded model: the same for our own models and for Hugging Face's."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from ..architectures import Directory, LoadedModel, Tokenizer
from ..architectures.texts import TextStream, context_length, end_tokens, prompt_tokens, tokenizer_for_text
from ..errors import ModelError, UsageError
from ..functional import Sampled, Sampler
from ..nn import Transformer
from ..nn.generation import steps
from ..schema import clean_name
from .explaining import Explanation, explain

_OnStep = Callable[[Tensor, Sampled], None]  # the logits (1, V) as the model gave them, and what was chosen from them


@dataclass(frozen=True)
class Step:
    """One chosen token, the text that is certain with it, and why it was chosen where that was asked for."""

    token: int
    text: str
    explanation: Explanation | None = None


@dataclass
class Continuation:
    """A prompt and what was added to it so far. ends: tokens at which a text ends; room: how many there can be."""

    tokenizer: Tokenizer
    prompt: list[int]
    ends: frozenset[int]
    room: int | None
    steps: list[Step] = field(default_factory=list)
    rest: str = ""

    @classmethod
    def of(cls, loaded: LoadedModel, directory: Directory, prompt: str) -> Continuation:
        """Of a text; raises ModelError where the model writes none, UsageError where the prompt fills its context."""
        tokenizer = tokenizer_for_text(loaded, directory)
        tokens = prompt_tokens(loaded, tokenizer, prompt)
        return cls(tokenizer, tokens, end_tokens(loaded, tokenizer, directory), _room(loaded, tokens))

    @property
    def text(self) -> str:
        return "".join(step.text for step in self.steps) + self.rest

    @property
    def stopped_by(self) -> Literal["end_of_text", "context", "tokens"]:
        """Why there are no more tokens: the text ended, the model can look at no more, so many were asked for."""
        if self.steps[-1].token in self.ends:
            return "end_of_text"
        return "context" if len(self.steps) == self.room else "tokens"

    def write(
        self,
        loaded: LoadedModel,
        sampler: Sampler,
        *,
        seed: int,
        tokens: int,
        explained: bool,
        on_step: Callable[[Step], None],
    ) -> None:
        """Add at most so many tokens, and hand on each as it is chosen.

        Raises ModelError where the model's logits leave nothing to choose from.
        """
        stream = TextStream(self.tokenizer, self.prompt)
        written = list(self.prompt)

        def step(logits: Tensor, sampled: Sampled) -> None:
            token = int(sampled.tokens)
            why = explain(logits[0], sampler, written, token) if explained else None
            text = "" if token in self.ends else stream.push(token)
            written.append(token)
            self.steps.append(Step(token, text, why))
            on_step(self.steps[-1])

        count = tokens if self.room is None else min(tokens, self.room)
        _generate(loaded, self.prompt, sampler, seed=seed, count=count, ends=self.ends, on_step=step)
        self.rest = stream.rest()


def _room(loaded: LoadedModel, prompt: list[int]) -> int | None:
    """How many tokens may follow; a model of our own goes on with the last ones, so as many as anybody wants."""
    context = context_length(loaded)
    if context is None or isinstance(loaded.model, Transformer):
        return None
    if len(prompt) >= context:
        raise UsageError(
            f"the prompt has {len(prompt):,} tokens and the model's context is {context:,}; shorten it, so that there "
            "is room for a token"
        )
    return context - len(prompt)


@torch.inference_mode()
def _generate(
    loaded: LoadedModel,
    prompt: list[int],
    sampler: Sampler,
    *,
    seed: int,
    count: int,
    ends: Collection[int],
    on_step: _OnStep,
) -> None:
    """Choose so many tokens, or fewer, up to the first that ends the text."""
    model: Any = loaded.model
    tokens = torch.tensor([prompt], device=next(model.parameters()).device)
    try:
        if isinstance(model, Transformer):
            _own(model, tokens, sampler, seed, count, on_step)
        else:
            _hugging_face(model, tokens, sampler, seed, count, ends, on_step)
    except UsageError as error:
        name = clean_name(type(model).__name__)
        raise ModelError(f"{name}: {error}; `evenkeel inspect` says where it goes wrong") from error


def _own(model: Transformer, tokens: Tensor, sampler: Sampler, seed: int, count: int, on_step: _OnStep) -> None:
    for step in steps(model, tokens, sampler, max_new_tokens=count, seeds=seed):
        on_step(step.logits, step.sampled)


def _hugging_face(
    model: Any, tokens: Tensor, sampler: Sampler, seed: int, count: int, ends: Collection[int], on_step: _OnStep
) -> None:
    from transformers import GenerationConfig

    from ..integrations.transformers import sampling

    model.generation_config = GenerationConfig()  # config.json may ask for beams and penalties: no part of a model
    model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=count,
        use_cache=True,
        eos_token_id=sorted(ends) or None,
        custom_generate=sampling(sampler, seeds=seed, on_step=on_step),
    )
