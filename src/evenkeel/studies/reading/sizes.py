"""How large a study's models are where nobody says: a default study is to end in 10 minutes on two cores."""

VOCABULARY, CONTEXT, DEPTH, WIDTH = 256, 64, 2, 64
"""Bytes, so many in a sequence; blocks, d_model."""
