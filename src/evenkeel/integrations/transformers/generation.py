"""Choosing tokens in Hugging Face's `generate`: as its decoding function, or as one of its logits processors."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    GenerationConfig,
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopHLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)
from transformers.generation.configuration_utils import GenerationMode

from ...errors import UsageError
from ...functional import Sampled, Sampler, distribution, sample
from ...functional._sampler import chosen


def sampling(
    sampler: Sampler | None = None,
    *,
    seeds: int | Tensor | None = None,
    generator: torch.Generator | None = None,
    on_step: Callable[[Tensor, Sampled], object] | None = None,
    **options: Any,
) -> Callable[..., Any]:
    """Tokens chosen by `evenkeel.functional.sample`: `model.generate(**inputs, custom_generate=sampling(top_p=0.9))`.

    sampler, or its fields as options: see Sampler. seeds: one number for all rows, or one for each (rows,), where rows
    are prompts × num_return_sequences in the order of the result; a row's token depends only on its own seed and on how
    many tokens were generated before it. generator: torch's, instead of seeds. on_step: called in each step with the
    logits (rows, V) that the sampler saw, rows that have ended included, and what it chose, with log-probabilities.

    Everything but the choice is transformers' own: cache, padding, streamer, stopping criteria, results. The logits
    processors that `generate` has built or was given stay in force before the sampler, a repetition_penalty of the
    generation config among them. Its temperature, top_k, top_p and other filters do not: with do_sample=False
    `generate` does not build them, with do_sample=True they are taken out. `output_scores` holds the log-probabilities
    (rows, V) that were drawn from. Previous tokens, for the sampler's penalties, are the prompt without its padding and
    what was generated; those of the decoder only, where there is an encoder.

    `generate` gives no tokenizer to a custom function, so stop strings are `stopping_criteria=[StopStringCriteria(
    tokenizer, [...])]`, and does not tell it of weights that lie in several processes (FSDP), which is not supported.
    Raises UsageError for options that do not fit, inside `generate` too: for beams, assistants and other ways to
    decode, for seeds that do not fit the rows, and one seed for all of num_return_sequences, which would be the same.
    """
    resolved = chosen(sampler, options)

    def decode(
        model: Any,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        streamer: Any = None,
        **model_inputs: Any,
    ) -> Any:
        _check_mode(generation_config)
        _check_seeds(seeds, input_ids.shape[0], generation_config.num_return_sequences)
        length = input_ids.shape[1]
        mask = model_inputs.get("decoder_attention_mask" if model.config.is_encoder_decoder else "attention_mask")
        mask = None if mask is None else mask[:, mask.shape[1] - length :]  # with a cache it tells of more tokens
        choice = _Choice(resolved, seeds, generator, on_step, length, mask)
        greedy = copy(generation_config)
        greedy.do_sample = False
        return model._sample(
            input_ids,
            logits_processor=LogitsProcessorList([*_unfiltered(logits_processor, generation_config), choice]),
            stopping_criteria=StoppingCriteriaList([choice.put_scores_back, *stopping_criteria]),
            generation_config=greedy,
            streamer=streamer if streamer is not None else _argument_of_generate("streamer"),
            **model_inputs,
        )

    return decode


class SamplerLogitsProcessor(LogitsProcessor):
    """A sampler's penalties, temperature and filters for `generate(logits_processor=[...], do_sample=True, top_k=0)`.

    sampler, or its fields as options: see Sampler. attention_mask: the prompts' (rows, n), so that penalties leave out
    padding; without it, it counts as previous tokens. What is returned has the scores' shape and dtype: the
    log-probabilities of what is left, −inf elsewhere. The draw is then torch's: one multinomial in float32, in which
    a probability below about 1e-38 is 0, from one generator for all rows. `generate` filters once more after this:
    top_k=0 turns off its default of 50; a temperature or top_p in the model's generation config needs 1.0 as well.
    Raises UsageError for options that do not fit.
    """

    def __init__(self, sampler: Sampler | None = None, *, attention_mask: Tensor | None = None, **options: Any) -> None:
        self._sampler, self._mask = chosen(sampler, options), attention_mask

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Log-probabilities (rows, V) for scores (rows, V) after the tokens (rows, n)."""
        previous = _previous(input_ids, self._mask, scores.shape[-1])
        return distribution(scores, self._sampler, previous=previous).log().to(scores.dtype)


@dataclass(eq=False)
class _Choice(LogitsProcessor):
    """Comes last, chooses a token per row and leaves it as the only possible one, so that transformers' loop takes it.

    Its `put_scores_back` is the first stopping criterion, which is asked right after the loop has taken the tokens: the
    scores that the loop keeps for the user, and shows to other criteria, are then those that were drawn from.
    """

    sampler: Sampler
    seeds: int | Tensor | None
    generator: torch.Generator | None
    on_step: Callable[[Tensor, Sampled], object] | None
    prompt_length: int
    mask: Tensor | None
    """Of the prompt, 0 where it is padded."""
    seen: tuple[Tensor, Tensor | None] | None = None
    """The step's logits and previous tokens."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (rows, V), 0 for the chosen token and −inf elsewhere."""
        previous = _previous(input_ids, self.mask, scores.shape[-1]) if self.sampler.charges else None
        found = sample(
            scores,
            self.sampler,
            previous=previous,
            seeds=self.seeds,
            position=input_ids.shape[1] - self.prompt_length,
            generator=self.generator,
            return_logprobs=self.on_step is not None,
        )
        if self.on_step is not None:
            self.on_step(scores, found)
        self.seen = scores, previous
        return torch.full_like(scores, -torch.inf).scatter_(1, found.tokens[:, None], 0)

    def put_scores_back(self, input_ids: Tensor, scores: tuple[Tensor, ...] | None, **kwargs: Any) -> Tensor:
        """Ends no row; `scores` are those of all steps so far, where they are kept."""
        if scores and self.seen is not None:
            logits, previous = self.seen
            scores[-1].copy_(distribution(logits, self.sampler, previous=previous).log())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


def _previous(tokens: Tensor, mask: Tensor | None, classes: int) -> Tensor:
    """The tokens (rows, n), −1 for padding of the prompt and for what is no token of the head, such as an image's."""
    kept = tokens < classes
    if mask is not None and mask.dim() == 2:
        kept[:, : mask.shape[1]] &= mask.to(tokens.device).bool().repeat_interleave(len(tokens) // len(mask), 0)
    return torch.where(kept, tokens, -1)


_PLAIN = {
    "num_beams": 1,
    "penalty_alpha": None,
    "constraints": None,
    "force_words_ids": None,
    "dola_layers": None,
    "prompt_lookup_num_tokens": None,
    "assistant_early_exit": None,
    "use_mtp": False,
}
"""What a generation config says where it asks for no other way to decode."""


def _check_mode(config: GenerationConfig) -> None:
    mode = config.get_generation_mode(_argument_of_generate("assistant_model"))
    if mode in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        return
    given = {name: getattr(config, name, None) for name in _PLAIN}
    wrong = [name for name, value in given.items() if value not in (None, _PLAIN[name])] or ["assistant_model"]
    instead = ", ".join(f"{name}={_PLAIN.get(name)}" for name in wrong)
    raise UsageError(
        f"generate was asked for {mode.value.replace('_', ' ')} by {', '.join(wrong)}, and sampling() chooses one "
        f"token per row and step; give {instead}, or no custom_generate"
    )


def _check_seeds(seeds: int | Tensor | None, rows: int, each: int | None) -> None:
    shape = () if seeds is None else tuple(torch.as_tensor(seeds).shape)
    if shape not in ((), (rows,)):
        raise UsageError(
            f"seeds are {shape} and there are {rows} rows; give one number, or one for each row: ({rows},)"
        )
    if seeds is not None and not shape and each is not None and each > 1:
        raise UsageError(
            f"seeds is {int(seeds)} for each of num_return_sequences={each}, which would then be the same; give one "
            f"for each row, such as seeds=torch.arange({rows})"
        )


_FILTERS = {
    TemperatureLogitsWarper: ("temperature", 1.0),
    TopHLogitsWarper: ("top_h", 0.0),
    TopKLogitsWarper: ("top_k", 0),
    TopPLogitsWarper: ("top_p", 1.0),
    MinPLogitsWarper: ("min_p", 0.0),
    TypicalLogitsWarper: ("typical_p", 1.0),
    EpsilonLogitsWarper: ("epsilon_cutoff", 0.0),
    EtaLogitsWarper: ("eta_cutoff", 0.0),
}
"""What `generate` builds under do_sample=True, from which field of its config, unless that has this value or None."""


def _unfiltered(processors: LogitsProcessorList, config: GenerationConfig) -> list[LogitsProcessor]:
    """Without the config's filters, which come after those that the user gave and that may be of the same kind."""
    left = list(processors)
    for kind, (name, nothing) in _FILTERS.items():
        built = config.do_sample and getattr(config, name, None) not in (None, nothing)
        places = [place for place, item in enumerate(left) if type(item) is kind]
        if built and places:
            del left[places[-1]]
    return left


def _argument_of_generate(name: str) -> Any:
    """An argument of the `generate` that runs: it passes a custom function neither streamer nor assistant_model."""
    code = inspect.unwrap(vars(GenerationMixin)["generate"]).__code__
    frame = inspect.currentframe()
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return None if frame is None else frame.f_locals.get(name)
