"""Writes docs/faults.md from evenkeel.faults: python docs/faults.py > docs/faults.md."""

from __future__ import annotations

from collections.abc import Iterator

from evenkeel.faults import FAULTS, Fault

TEXT = """\
# Faults

Made by `python docs/faults.py` from `evenkeel.faults.FAULTS`; a test compares the two.

```python
import torch
import evenkeel as ek
from evenkeel.faults import FAULTS, Patient

healthy = Patient(model, batches)  # batches: a tuple of keyword arguments for the model
injury = FAULTS["dead_relu"].inject(healthy, torch.Generator().manual_seed(0))  # in place
ek.inspect(injury.patient.model, injury.patient.batches).findings
injury.places  # the module paths where the fault sits
```

A fault is done to any model whose places tracing can follow: ours, and Hugging Face's. What is left open, which block,
how many units, how large, is drawn from the generator. A model that has no such place raises `NotApplicable`, with the
reason, and is left as it was. **Found by**: the fault counts as found when one of these codes is reported. **May**:
codes of consequences, which may come with it. **Remedy**: the change that clears it, with `swap` or in the config and
with new training; a fault without one is mended by hand.
"""

RUNS = """
## Of a training run

`FAULTS[name].train` does it to a `Recipe`; `evenkeel.faults.run(recipe, patient, stream, watch)` trains by it.
"""

OWN = """
## A fault of one's own

A `Fault` is a value. A package offers one by an entry point, under its name:

```toml
[project.entry-points."evenkeel.faults"]
my_fault = "my_package:FAULT"
```
"""

_HEADING = ("fault", "what was done", "found by", "may", "remedy", "source")


def page() -> Iterator[str]:
    """The page, line by line."""
    yield TEXT.rstrip()
    yield "\n## Of a model\n"
    yield from _table([fault for fault in FAULTS.values() if fault.train is None])
    yield RUNS.rstrip() + "\n"
    yield from _table([fault for fault in FAULTS.values() if fault.train is not None])
    yield OWN.rstrip()


def _table(faults: list[Fault]) -> Iterator[str]:
    yield f"| {' | '.join(_HEADING)} |"
    yield f"|{'---|' * len(_HEADING)}"
    for fault in faults:
        remedy = "" if fault.remedy is None else f"`{fault.remedy.axis} = {fault.remedy.value!r}`"
        cells = (f"`{fault.name}`", fault.story, _codes(fault.codes), _codes(fault.may), remedy, fault.source)
        yield f"| {' | '.join(cells)} |"


def _codes(codes: tuple[str, ...]) -> str:
    return ", ".join(codes)


if __name__ == "__main__":
    print("\n".join(page()))
