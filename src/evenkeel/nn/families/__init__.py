"""Public architectures: configs and weights of Hugging Face mapped to ours, and back, without transformers."""

from .catalogue import FAMILIES
from .family import Family, Origin
from .layout import Form, Layout, Place
from .parts import Choice, Field, Fixed, Only, Part
from .reading import read_directory
from .rotary import Rope
from .windows import Windows
from .writing import write_directory

__all__ = [
    "FAMILIES",
    "Choice",
    "Family",
    "Field",
    "Fixed",
    "Form",
    "Layout",
    "Only",
    "Origin",
    "Part",
    "Place",
    "Rope",
    "Windows",
    "read_directory",
    "write_directory",
]
