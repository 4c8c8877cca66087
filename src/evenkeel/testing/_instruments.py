"""What every instrument must do, tested on a few events of its kind of site."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from ..instruments import Instrument, Stat, flaw_of_instrument
from ..tracing.events import Event


class InstrumentConformance:
    """The tests of an instrument: inherit it in a class that pytest collects, set `instrument`, and give events.

    name: what it is entered under. events: at least three of its kind of site, with finite values; called again and
    again, it must give the same ones each time.
    """

    instrument: ClassVar[type[Instrument]]
    name: ClassVar[str] = ""

    def events(self) -> Sequence[Event]:
        """What is observed in the tests."""
        raise NotImplementedError(f"{type(self).__name__} must say which events {self.instrument.__name__} observes")

    def test_it_keeps_the_protocol(self) -> None:
        assert flaw_of_instrument(self.name, self.instrument) == ""
        assert len(self.events()) >= 3, "give three events at least, so that merging can be tested"

    def test_it_reads_what_it_declares(self) -> None:
        found = _observed(self.instrument, self.events()).read()
        assert found, "of these events nothing is read"
        undeclared = found.keys() - set(self.instrument.stats)
        assert not undeclared, f"{sorted(stat.name for stat in undeclared)} are not among its stats"
        for stat, value in found.items():
            wanted = 1 if stat.axis else 0
            assert value.dim() == wanted, f"{stat.name} has {value.dim()} dimensions and must have {wanted}"

    def test_nothing_seen_is_nothing_read(self) -> None:
        assert not self.instrument().read()

    def test_merging_is_observing_together_and_associative(self) -> None:
        events = self.events()
        together = _observed(self.instrument, events)
        for right_first in (False, True):
            first, second, third = (_observed(self.instrument, part) for part in (events[:1], events[1:2], events[2:]))
            if right_first:
                second.merge(third)
                first.merge(second)
            else:
                first.merge(second)
                first.merge(third)
            _assert_same(first, together, "merged in two orders and observed together")

    def test_merging_with_nothing_seen_changes_nothing(self) -> None:
        wanted = _observed(self.instrument, self.events())
        seen, empty = _observed(self.instrument, self.events()), self.instrument()
        seen.merge(self.instrument())
        empty.merge(_observed(self.instrument, self.events()))
        _assert_same(seen, wanted, "merged with nothing")
        _assert_same(empty, wanted, "nothing merged with it")

    def test_it_never_waits_for_the_device(self) -> None:
        """Fake tensors have no values: `.item()`, or a branch on a value, raises."""
        mode = FakeTensorMode()
        fakes = [_mapped(event, mode.from_tensor) for event in self.events()]
        with mode:
            first, second = (_observed(self.instrument, fakes) for _ in range(2))
            first.merge(second)
            first.read()

    def test_it_draws_no_random_numbers(self) -> None:
        state = torch.get_rng_state()
        _observed(self.instrument, self.events()).read()
        assert torch.equal(torch.get_rng_state(), state), "the random state has changed"

    def test_it_leaves_what_it_sees_as_it_was(self) -> None:
        events = self.events()
        before = [tensor.clone() for event in events for tensor in _tensors(event)]
        _observed(self.instrument, events).read()
        after = [tensor for event in events for tensor in _tensors(event)]
        assert all(map(torch.equal, after, before)), "an event's tensor was written to"

    def test_it_keeps_no_tensor_of_the_model(self) -> None:
        """A kept tensor, or a view of it, keeps the model's memory alive."""
        events = self.events()
        given = {tensor.untyped_storage().data_ptr() for event in events for tensor in _tensors(event)}
        kept = {tensor.untyped_storage().data_ptr() for tensor in _held(_observed(self.instrument, events), set())}
        assert not given & kept, "a tensor of an event, or a view of one, is kept"


def _observed(instrument: type[Instrument], events: Iterable[Event]) -> Instrument:
    made = instrument()
    with torch.no_grad():
        for event in events:
            made.observe(event)
    return made


def _assert_same(found: Instrument, wanted: Instrument, how: str) -> None:
    ours, theirs = found.read(), wanted.read()
    assert ours.keys() == theirs.keys(), f"{how}: {_names(ours)} and {_names(theirs)} were read"
    for stat, value in theirs.items():
        close = torch.allclose(ours[stat].double(), value.double(), rtol=1e-6, atol=1e-9, equal_nan=True)
        assert close, f"{how}: {stat.name} is {ours[stat]} and {value}"


def _names(found: Mapping[Stat, Tensor]) -> list[str]:
    return [stat.name for stat in found]


def _mapped(event: Event, function: Any) -> Event:
    """The event with another tensor in place of each of its own."""
    values = {item.name: getattr(event, item.name) for item in fields(event)}
    changed = {name: function(value) for name, value in values.items() if isinstance(value, Tensor)}
    return replace(event, **changed)


def _tensors(event: Event) -> list[Tensor]:
    values = [getattr(event, item.name) for item in fields(event)]
    return [value for value in values if isinstance(value, Tensor)]


def _held(item: Any, seen: set[int]) -> Iterator[Tensor]:
    """Every tensor that can be reached from an object through its attributes and containers."""
    if id(item) in seen or isinstance(item, type) or callable(item):
        return
    seen.add(id(item))
    if isinstance(item, Tensor):
        yield item
        return
    slots = [getattr(item, name) for kind in type(item).__mro__ for name in getattr(kind, "__slots__", ())]
    inside = item if isinstance(item, list | tuple | set) else item.values() if isinstance(item, Mapping) else ()
    for part in (*inside, *slots, *getattr(item, "__dict__", {}).values()):
        yield from _held(part, seen)
