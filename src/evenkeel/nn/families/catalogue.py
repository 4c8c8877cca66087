"""The families that are known."""

from __future__ import annotations

from ...catalogue import Catalogue
from .family import Family
from .gemma import GEMMA, GEMMA2
from .gpt import GPT1, GPT2
from .llama import LLAMA
from .mistral import MISTRAL
from .nemotron import NEMOTRON
from .opt import OPT
from .qwen import QWEN2, QWEN3

FAMILIES: Catalogue[Family] = Catalogue("family", entry_point_group="evenkeel.families")
"""By model_type. A model that came from none is written as the first that has such a model."""

for _family in (LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA, GEMMA2, NEMOTRON, GPT2, OPT, GPT1):
    FAMILIES.add(_family.model_type, _family)
