"""Surgery on live models: a Change applied in place, and taken back."""

from .axes import AXES
from .swapping import Swapped, swap

__all__ = ["AXES", "Swapped", "swap"]
