"""Model directories as data: config.json without what names code, and the headers of safetensors files."""

from .configuration import read_json, without_code
from .directory import (
    CONFIG_FILE,
    INDEX_FILE,
    OWN_MODEL_TYPE,
    WEIGHTS_FILE,
    Directory,
    Weight,
    cache_directory,
    data_only,
    demo_directory,
    named,
    open_directory,
)

__all__ = [
    "CONFIG_FILE",
    "INDEX_FILE",
    "OWN_MODEL_TYPE",
    "WEIGHTS_FILE",
    "Directory",
    "Weight",
    "cache_directory",
    "data_only",
    "demo_directory",
    "named",
    "open_directory",
    "read_json",
    "without_code",
]
