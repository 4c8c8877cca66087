"""Hugging Face directories for tests: tiny models of public families, a tokenizer trained on the spot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from evenkeel.data import standard_library_text

VOCABULARY = 300

_SIZES = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
_HEADS = {"num_attention_heads": 4, "max_position_embeddings": 64}
_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_PICTURE = {"image_size": 32, "patch_size": 8, "num_labels": 5}

CONFIGS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", _SIZES | _HEADS | _IDS),
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4} | _IDS,
    ),
    "bert": ("BertForMaskedLM", "BertConfig", _SIZES | _HEADS | {"pad_token_id": 0}),
    "t5": (
        "T5ForConditionalGeneration",
        "T5Config",
        {"vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
        | {"pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0},
    ),
    "vit": ("ViTForImageClassification", "ViTConfig", _SIZES | {"num_attention_heads": 4} | _PICTURE),
}


def make_model(family: str) -> transformers.PreTrainedModel:
    """A tiny model of a family, its weights drawn with seed 0."""
    model_class, config_class, settings = CONFIGS[family]
    torch.manual_seed(0)
    return getattr(transformers, model_class)(getattr(transformers, config_class)(**settings)).eval()


def make_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Byte-level BPE with BERT's frame, `[CLS] text [SEP]`, and a mask token."""
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([standard_library_text(50_000)], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        unk_token="[UNK]",
    )


def save(family: str, directory: Path, *, tokenizer: bool = True) -> Path:
    """A directory as `save_pretrained` writes it."""
    make_model(family).save_pretrained(directory)
    if tokenizer and family != "vit":
        make_tokenizer().save_pretrained(directory)
    return directory


def edit_config(directory: Path, **changes: Any) -> None:
    """Set keys of config.json."""
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
