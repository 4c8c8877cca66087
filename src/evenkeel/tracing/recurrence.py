"""evenkeel's own LSTM and GRU: each gate a site, over all steps, made again from what the call was given."""

from __future__ import annotations

import torch

from .. import functional
from ..functional._recurrence import SeenGate, gru_gates, lstm_gates
from .call import Call
from .events import GateEvent
from .trace import Trace


def own(trace: Trace, call: Call) -> None:
    """Show the gates of a call of evenkeel.functional.lstm or gru that has run."""
    for name, activated, up in _gates(call):
        site = trace.site("gate", f"{call.name}_{name}")
        trace.emit(site, GateEvent(activated=activated, up=up, product=activated * up))


def _gates(call: Call) -> list[SeenGate]:
    given = [item.detach() for item in call.args[:4]]
    gate = call.argument(4, "gate", "sigmoid")
    with torch.no_grad(), torch._C.DisableTorchFunction():
        return (lstm_gates if call.func is functional.lstm else gru_gates)(*given, gate=gate)
