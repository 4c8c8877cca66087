"""Model directories as data: config.json without what names code, and the headers of safetensors files."""

from .configuration import read_json, without_code
from .directory import OWN_MODEL_TYPE, Directory, Weight, data_only, demo_directory, open_directory

__all__ = [
    "OWN_MODEL_TYPE",
    "Directory",
    "Weight",
    "data_only",
    "demo_directory",
    "open_directory",
    "read_json",
    "without_code",
]
