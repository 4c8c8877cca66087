"""Which sites stand together: blocks in one stack, what lies in a module, an activation and its gate."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from ..schema import Site


def stack_of(path: str) -> str:
    """The path of the list that a block belongs to: `h.3` and `h.4` are of `h`."""
    parts = path.split(".")
    numbers = [place for place, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[-1]]) if numbers else path


def by_stack(sites: Iterable[Site]) -> Mapping[str, list[Site]]:
    """Blocks of one list of layers, in execution order; encoder and decoder are two stacks."""
    found: dict[str, list[Site]] = defaultdict(list)
    for site in sites:
        found[stack_of(site.path)].append(site)
    return found


def peers(sites: Iterable[Site]) -> Mapping[str, list[Site]]:
    """The sites that stand at the same place of different blocks: `h.{}.ln_1` of every number."""
    found: dict[str, list[Site]] = defaultdict(list)
    for site in sites:
        found[".".join("{}" if part.isdigit() else part for part in site.path.split("."))].append(site)
    return found


def lies_in(path: str, module: str) -> bool:
    """Whether a path is a module's or below it; everything lies in the model itself, whose path is empty."""
    return not module or path == module or path.startswith(f"{module}.")


def feeds(activation: Site, gate: Site) -> bool:
    """Whether an activation lies in a gate's own module or is a direct child of it: the one that gates."""
    return gate.path in (activation.path, activation.path.rpartition(".")[0])
