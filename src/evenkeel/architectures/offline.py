"""Transformers without the network and without its own messages, for the length of a context."""

from __future__ import annotations

import logging as levels
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import huggingface_hub.constants
from transformers.utils import logging

_SWITCH = "HF_HUB_OFFLINE"


@contextmanager
def offline_and_quiet() -> Iterator[None]:
    """Hub access is refused and logs, warnings and progress bars are silent inside; as before afterwards."""
    environment, constant = os.environ.get(_SWITCH), huggingface_hub.constants.HF_HUB_OFFLINE
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    os.environ[_SWITCH] = "1"
    huggingface_hub.constants.HF_HUB_OFFLINE = True  # read from the environment once, when the package is imported
    logging.set_verbosity(levels.CRITICAL)
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
        huggingface_hub.constants.HF_HUB_OFFLINE = constant
        if environment is None:
            del os.environ[_SWITCH]
        else:
            os.environ[_SWITCH] = environment
