"""Public architectures: model directories read safely, as data."""

from ..directories import Directory, demo_directory, open_directory
from .loading import Kind, LoadedModel, load_directory, quiet
from .tokenizers import ByteTokenizer, Tokenizer

__all__ = [
    "ByteTokenizer",
    "Directory",
    "Kind",
    "LoadedModel",
    "Tokenizer",
    "demo_directory",
    "load_directory",
    "open_directory",
    "quiet",
]
