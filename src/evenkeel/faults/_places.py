"""Where the parts of a live model are: found from one traced run, by following tensors and gradients, never names."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import NotApplicable, UsageError
from ..schema import Site
from ..surgery.activating import Activating, activatings, in_feedforward, is_below
from ..surgery.attending import Attending, MultiHead, attendings
from ..surgery.by_hand import ByHand
from ..surgery.places import Survey, as_found
from ..surgery.scores import factors
from ..surgery.tape import Entry, Frame
from ._fault import Batch, Patient
from ._parts import Attended, Head, Hidden, Map, Norm, Writer

_ROWS = 2  # of a batch are enough to find places, and keep the traced run small


class Anatomy:
    """The parts of a patient's model. Raises NotApplicable, with the reason, where there is none of a kind."""

    def __init__(self, patient: Patient) -> None:
        self.model, self.patient = patient.model, patient
        self.batch = first_rows(patient.batches[0], _ROWS)
        self.survey = Survey(self.model, self.batch)
        self._frames: dict[int, Frame] = {}
        for frame in self.survey.tape.frames:
            self._frames.setdefault(id(frame.module), frame)

    @cached_property
    def blocks(self) -> tuple[str, ...]:
        """The paths of the blocks, in the order in which they run."""
        found = tuple(dict.fromkeys(site.path for site in self.survey.sites if site.kind == "residual"))
        if not found:
            raise NotApplicable(f"{type(self.model).__name__} has no repeated blocks")
        return found

    def block_of(self, path: str) -> str:
        """The block around a path, or the path itself."""
        return max((block for block in self.blocks if is_below(path, block)), key=len, default=path)

    def module(self, path: str) -> nn.Module:
        """The module of a path."""
        return self.survey.module_at(path)

    @cached_property
    def attended(self) -> tuple[Attended, ...]:
        """Every attention whose queries and keys can be followed to the maps that make them."""
        found, reason = [], f"{type(self.model).__name__} has no attention"
        for site, entry, form in attendings(self.survey):
            if entry is None or isinstance(form, str | MultiHead):
                reason = form if isinstance(form, str) else f"{site.path} has its maps inside one call"
                continue
            made = self._attended(site, entry, form)
            reason = f"the maps of queries and keys of {site.path} cannot be followed"
            found += [] if made is None else [made]
        if not found:
            raise NotApplicable(reason)
        return tuple(found)

    def _attended(self, site: Site, entry: Entry, form: Attending) -> Attended | None:
        given = factors(form.product.args, form.product.kwargs) if isinstance(form, ByHand) else None
        if given is not None:
            query, key = [item for item in given if isinstance(item, Tensor)][-2:]
            key_rows = key.mT
        else:
            query, key = form.product.argument(0, "query"), form.product.argument(1, "key")
            key_rows = key
        block = self.block_of(site.path)
        query_map, key_map = (self._map_behind(item, site.path, block) for item in (query, key))
        if query_map is None or key_map is None:
            return None
        norms = self._norm_behind(query, site.path), self._norm_behind(key, site.path)
        return Attended(site, block, entry, form, query, key_rows, query_map, key_map, *norms)

    @cached_property
    def hidden(self) -> tuple[Hidden, ...]:
        """Every activation of a feed-forward in a block, with the map that leads into it."""
        found, reason = [], f"{type(self.model).__name__} has no feed-forward activation in a block"
        for item in in_feedforward(self.survey, list(activatings(self.survey))):
            block = self.block_of(item.site.path)
            into = self._into(item, block) if block in self.blocks else None
            reason = f"the map into {item.site.path} cannot be followed"
            found += [] if into is None else [Hidden(item, block, into)]
        if not found:
            raise NotApplicable(reason)
        return tuple(found)

    def _into(self, item: Activating, block: str) -> Map | None:
        if item.module is not None:
            given, gated = self._frames[id(item.module)].given, None
        else:
            try:
                (entry, action), *_ = item.calls(self.survey, "relu" if item.op != "relu" else "silu")
            except UsageError:
                return None
            position = getattr(action, "position", None)
            given, gated = entry.args[position or 0], entry if position is None else None
        found = None if given is None else self._map_behind(given, block)
        if found is None or given is None or gated is None:
            return None if found is None or given is None or len(found.channels) != given.shape[-1] else found
        packed = gated.name == "glu" or sum(isinstance(item, Tensor) for item in gated.args) == 1
        if not packed:
            return found
        half = len(found.channels) // 2  # torch's glu has its gate behind, evenkeel's in front
        return found.some(torch.arange(half) + (half if gated.name == "glu" else 0))

    @cached_property
    def gates(self) -> frozenset[str]:
        """The paths of modules in which an activation multiplies another tensor."""
        return frozenset(site.path for site in self.survey.sites if site.kind == "gate")

    def is_gate(self, hidden: Hidden) -> bool:
        """Whether an activation is that of a gate."""
        path = hidden.site.path
        return path in self.gates or path.rpartition(".")[0] in self.gates

    @cached_property
    def norms(self) -> tuple[Norm, ...]:
        """Every module with a gain that takes the size out of what it is given, in the order in which they ran."""
        found = (self._norm(frame) for frame in self._frames.values())
        return tuple(norm for norm in found if norm is not None)

    def block_norms(self) -> tuple[Norm, ...]:
        """The norms of the residual stream that stand in blocks; those of queries and keys are left out."""
        heads: set[int] = set()
        try:
            for item in self.attended:
                heads |= {id(norm.module) for norm in (item.query_norm, item.key_norm) if norm is not None}
        except NotApplicable:
            pass
        found = tuple(
            norm for norm in self.norms if self.block_of(norm.path) in self.blocks and id(norm.module) not in heads
        )
        if not found:
            raise NotApplicable(f"{type(self.model).__name__} has no norm with a gain in its blocks")
        return found

    def writer(self, block: str, width: int) -> Writer:
        """The last thing with weights in a block that gives its whole width."""
        inside = [frame for frame in self._frames.values() if is_below(self.survey.path_of(frame.module), block)]
        norms = {id(norm.module): norm for norm in self.norms}
        for frame in sorted(inside, key=lambda frame: frame.index, reverse=True):
            path, norm = self.survey.path_of(frame.module), norms.get(id(frame.module))
            if norm is not None:
                return Writer(frame.module, norm)
            dim = _out_dim(frame) if _matrix(frame.module) is not None else None
            weight = _matrix(frame.module)
            if dim is not None and weight is not None and weight.shape[dim] == width:
                return Writer(frame.module, Map(path, frame.module, dim, torch.arange(width)))
        raise NotApplicable(f"what {block} adds to its stream comes from no single map")

    @cached_property
    def head(self) -> Head:
        """The head whose logits go into the loss."""
        found = [(site, event) for site, event, _ in self.survey.events("head")]
        if not found:
            raise NotApplicable(f"{type(self.model).__name__} has no output head that the loss reads")
        site, event = found[-1]
        logits: Any = event
        module = self.survey.module_at(site.path)
        weight, bias = (
            item if isinstance(item := getattr(module, name, None), nn.Parameter) else None
            for name in ("weight", "bias")
        )
        holders = [
            other for other in self.model.modules() if other is not module and getattr(other, "weight", None) is weight
        ]
        outside = [norm for norm in self.norms if self.block_of(norm.path) not in self.blocks]
        last = self._frames[id(self.survey.module_at(self.blocks[-1]))].index
        behind = [norm for norm in outside if self._frames[id(norm.module)].index > last]
        tied = weight is None or bool(holders)
        return Head(site, site.path, weight, bias, behind[-1] if behind else None, logits.logits, tied)

    def embedding(self) -> tuple[str, nn.Embedding]:
        """The embedding of tokens: the first one that is given the model's own ids."""
        ids = self.batch.get("input_ids")
        for frame in self._frames.values():
            given = frame.given if isinstance(frame.module, nn.Embedding) else None
            if given is not None and ids is not None and given.shape == ids.shape and torch.equal(given, ids):
                assert isinstance(frame.module, nn.Embedding)
                return self.survey.path_of(frame.module), frame.module
        raise NotApplicable(f"{type(self.model).__name__} has no embedding of token ids")

    def matrices(self, within: str = "") -> Iterator[tuple[str, nn.Module, nn.Parameter]]:
        """Every matrix of floats in a module, with the module that holds it; tied ones once."""
        seen: set[int] = set()
        for path, module in self.model.named_modules():
            for parameter in module._parameters.values():
                if (
                    parameter is None
                    or parameter.dim() < 2
                    or not parameter.is_floating_point()
                    or id(parameter) in seen
                ):
                    continue
                seen.add(id(parameter))
                if is_below(path, within):
                    yield path, module, parameter

    def first_call(self, module: nn.Module) -> Frame | None:
        """The first run of a module."""
        return self._frames.get(id(module))

    def _map_behind(self, tensor: Tensor, *within: str) -> Map | None:
        """The linear map, in the first of some modules that has one, that a tensor comes out of."""
        if not tensor.requires_grad:
            return None
        for path in within:
            candidates = [
                frame
                for frame in self._frames.values()
                if is_below(self.survey.path_of(frame.module), path) and _matrix(frame.module) is not None
            ]
            candidates.sort(key=lambda frame: frame.index, reverse=True)
            weights = [_matrix(frame.module) for frame in candidates]
            for frame, gradient in zip(candidates, _gradients(tensor, weights), strict=True):
                dim = None if gradient is None or not gradient.any() else _out_dim(frame)
                if gradient is not None and dim is not None:
                    channels = gradient.abs().movedim(dim, 0).sum(1).nonzero().flatten()
                    return Map(self.survey.path_of(frame.module), frame.module, dim, channels)
        return None

    def _norm_behind(self, tensor: Tensor, within: str) -> Norm | None:
        """The norm in a module that a tensor has passed on its way."""
        found = [norm for norm in self.norms if is_below(norm.path, within)]
        weights = [norm.module.weight for norm in found]
        for norm, gradient in zip(found, _gradients(tensor, weights), strict=True):
            if gradient is not None and gradient.any():
                return norm
        return None

    def _norm(self, frame: Frame) -> Norm | None:
        module, given = frame.module, frame.given
        gain = getattr(module, "weight", None)
        if not isinstance(gain, nn.Parameter) or gain.dim() != 1 or next(module.children(), None) is not None:
            return None
        if given is None or not given.is_floating_point() or given.shape[-1:] != gain.shape:
            return None
        with as_found(self.model):
            unit = given.detach() / given.detach().float().square().mean().sqrt().clamp(min=1e-12).to(given.dtype)
            small, large = module(unit * 8), module(unit * 64)
            if small.shape != given.shape or not torch.allclose(small, large, rtol=0.05, atol=0.05):
                return None
            kept = gain.data.clone()
            gain.data.zero_()
            moved = module(unit * 8)
            gain.data.copy_(kept)
        return Norm(self.survey.path_of(module), module, offset=_differs(moved))


def _differs(output: Tensor) -> bool:
    """Whether what comes out depends on the token."""
    rows = output.reshape(-1, output.shape[-1])
    return bool((rows - rows[:1]).abs().max() > 0.01)


def first_rows(batch: Batch, rows: int) -> Batch:
    """The first rows of a batch whose tensors all have as many."""
    sizes = {item.shape[0] for item in batch.values() if item.dim() > 0}
    return {name: item[:rows] for name, item in batch.items()} if len(sizes) == 1 else batch


def _matrix(module: nn.Module) -> nn.Parameter | None:
    weight = getattr(module, "weight", None)
    own = isinstance(weight, nn.Parameter) and weight.dim() == 2 and weight.is_floating_point()
    return weight if own and not isinstance(module, nn.Embedding) else None


def _gradients(tensor: Tensor, weights: list[Any]) -> list[Tensor | None]:
    """The gradient of a random sum of a tensor with respect to weights; None where it does not depend on one."""
    needed = [weight for weight in weights if weight.requires_grad]
    if not needed or not tensor.requires_grad:
        return [None] * len(weights)
    mixed = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0)).to(tensor)
    found = iter(torch.autograd.grad((tensor * mixed).sum(), needed, retain_graph=True, allow_unused=True))
    return [next(found) if weight.requires_grad else None for weight in weights]


def _out_dim(frame: Frame) -> int | None:
    """Along which dimension of its weight a map's outputs lie: of torch's Linear the first, of GPT-2's the second."""
    weight, given, gave = _matrix(frame.module), frame.given, frame.gave
    if weight is None or given is None or not isinstance(gave, Tensor):
        return None
    given, gave, weight = given.detach().float(), gave.detach().float(), weight.detach().float()
    bias = getattr(frame.module, "bias", None)
    gave = gave - bias.detach().float() if isinstance(bias, Tensor) else gave
    errors: dict[int, float] = {}
    for dim, matrix in ((0, weight.T), (1, weight)):
        if matrix.shape == (given.shape[-1], gave.shape[-1]):
            errors[dim] = float((given @ matrix - gave).square().mean())
    return min(errors, key=lambda dim: errors[dim], default=None)
