"""A Comparison drawn: as text, as a figure, as tables of other tools, as a paragraph on methods."""
