"""Which repeated layers are blocks: those that hold a nonlinear place, at the level at which a block is whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..schema import Site

_MIXING = frozenset(("attention", "recurrence"))
_FEED_FORWARD = frozenset(("activation", "gate", "router"))


def without_other_layers(sites: Sequence[Site]) -> tuple[Site, ...]:
    """The sites without the residual sites of layers that are no blocks.

    Layers nest (T5's block has sub-layers, a mixture has experts, Swin has stages of blocks). Among nested layers that
    hold a nonlinear place, the innermost that both mix tokens and feed forward are the blocks; where none does both,
    the outermost are.
    """
    kinds: dict[str, set[str]] = {site.path: set() for site in sites if site.kind == "residual"}
    for site in sites:
        if site.kind in _MIXING | _FEED_FORWARD:
            for path in _enclosing(site.path):
                if path in kinds:
                    kinds[path].add(site.kind)
    holding = [path for path, found in kinds.items() if found]
    whole = {path for path in holding if kinds[path] & _MIXING and kinds[path] & _FEED_FORWARD}
    blocks = {path for path in holding if _is_block(path, holding, whole)}
    return tuple(site for site in sites if site.kind != "residual" or site.path in blocks)


def _is_block(path: str, holding: Iterable[str], whole: set[str]) -> bool:
    inside = any(other.startswith(path + ".") for other in whole)
    around = [other for other in holding if path.startswith(other + ".")]
    return not inside and (path in whole or not around)


def _enclosing(path: str) -> Iterable[str]:
    parts = path.split(".")
    return (".".join(parts[:end]) for end in range(1, len(parts) + 1))
