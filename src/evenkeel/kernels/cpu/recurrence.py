"""LSTM and GRU on a CPU: per step one matrix product by torch and one pass over the gates, forward and backward.

A pass's arrays are flat memory of (batch, columns). It is cut into loops that write to few arrays: where more than
eight pairs of them could overlap, LLVM does not vectorise. float32 states and 16-bit gates may meet in one pass:
everything is widened, and rounded as the array that is written wants it.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from ._compile import as_array, inline, narrow, widen
from ._spread import Spread, spread
from ._threads import Division, divided
from .activations import FORMULAS, formula

_LEAST = 2**12  # elements of a state worth a thread
_tanh, _tanh_slope, _ = FORMULAS["tanh"]
_ONE = np.float32(1)


@inline
def _part(array, row, parts, place, d):
    """One of the parts of a row, each of d columns."""
    start = (row * parts + place) * d
    return array[start : start + d]


@cache
def _lstm_step(gate: str, dtype: torch.dtype) -> Spread:
    """The kernel (division, gates, cell, new_cell, output, d): new_cell and output from the gates and the old cell."""
    value = formula(gate, dtype).value

    @spread(name=f"{gate}-{dtype}")
    def lstm(start, stop, gates, cell, new_cell, output, d):
        for row in range(start, stop):
            i, f = _part(gates, row, 4, 0, d), _part(gates, row, 4, 1, d)
            n, o = _part(gates, row, 4, 2, d), _part(gates, row, 4, 3, d)
            old, new, y = _part(cell, row, 1, 0, d), _part(new_cell, row, 1, 0, d), _part(output, row, 1, 0, d)
            for k in range(d):
                added = value(widen(i[k])) * _tanh(widen(n[k]))
                new[k] = narrow(value(widen(f[k])) * widen(old[k]) + added, new_cell)
            for k in range(d):
                y[k] = narrow(value(widen(o[k])) * _tanh(widen(new[k])), output)

    return lstm


@cache
def _lstm_step_back(gate: str, dtype: torch.dtype) -> Spread:
    """The kernel (division, gates, cell, new_cell, to_output, to_new_cell, to_hidden, to_cell, d).

    gates is left with the gradients to the gates. to_hidden and to_cell come with what the step after passes on; they
    are left with all that arrives at this step's output, and with the gradient to the old cell.
    """
    value, slope, _ = formula(gate, dtype)

    @spread(name=f"{gate}-{dtype}")
    def lstm_back(start, stop, gates, cell, new_cell, to_output, to_new_cell, to_hidden, to_cell, d):
        for row in range(start, stop):
            i, f = _part(gates, row, 4, 0, d), _part(gates, row, 4, 1, d)
            n, o = _part(gates, row, 4, 2, d), _part(gates, row, 4, 3, d)
            old, new = _part(cell, row, 1, 0, d), _part(new_cell, row, 1, 0, d)
            above, beside = _part(to_output, row, 1, 0, d), _part(to_new_cell, row, 1, 0, d)
            dh, dc = _part(to_hidden, row, 1, 0, d), _part(to_cell, row, 1, 0, d)
            for k in range(d):
                dh[k] = narrow(widen(dh[k]) + widen(above[k]), to_hidden)
            for k in range(d):
                c, x, g = widen(new[k]), widen(o[k]), widen(dh[k])
                dc[k] = narrow(widen(dc[k]) + widen(beside[k]) + g * value(x) * _tanh_slope(c), to_cell)
                o[k] = narrow(g * _tanh(c) * slope(x), gates)
            for k in range(d):
                g, x, y = widen(dc[k]), widen(i[k]), widen(n[k])
                i[k] = narrow(g * _tanh(y) * slope(x), gates)
                n[k] = narrow(g * value(x) * _tanh_slope(y), gates)
            for k in range(d):
                g, x = widen(dc[k]), widen(f[k])
                f[k] = narrow(g * widen(old[k]) * slope(x), gates)
                dc[k] = narrow(g * value(x), to_cell)

    return lstm_back


@cache
def _gru_step(gate: str, dtype: torch.dtype) -> Spread:
    """The kernel (division, inputs, recurrent, hidden, output, d): output from both shares and the old hidden state."""
    value = formula(gate, dtype).value

    @spread(name=f"{gate}-{dtype}")
    def gru(start, stop, inputs, recurrent, hidden, output, d):
        for row in range(start, stop):
            r, to_r = _part(inputs, row, 3, 0, d), _part(recurrent, row, 3, 0, d)
            z, to_z = _part(inputs, row, 3, 1, d), _part(recurrent, row, 3, 1, d)
            n, to_n = _part(inputs, row, 3, 2, d), _part(recurrent, row, 3, 2, d)
            old, y = _part(hidden, row, 1, 0, d), _part(output, row, 1, 0, d)
            for k in range(d):
                reset, update = value(widen(r[k]) + widen(to_r[k])), value(widen(z[k]) + widen(to_z[k]))
                candidate = _tanh(np.float32(widen(n[k]) + reset * widen(to_n[k])))
                y[k] = narrow(candidate + update * (widen(old[k]) - candidate), output)

    return gru


@cache
def _gru_step_back(gate: str, dtype: torch.dtype) -> Spread:
    """The kernel (division, inputs, recurrent, hidden, to_output, to_hidden, d).

    inputs and recurrent are left with their gradients. to_hidden comes with what the step after passes on, and is left
    with what the old hidden state is to get beside that of `recurrent`.
    """
    value, slope, _ = formula(gate, dtype)

    @spread(name=f"{gate}-{dtype}")
    def gru_back(start, stop, inputs, recurrent, hidden, to_output, to_hidden, d):
        for row in range(start, stop):
            r, to_r = _part(inputs, row, 3, 0, d), _part(recurrent, row, 3, 0, d)
            z, to_z = _part(inputs, row, 3, 1, d), _part(recurrent, row, 3, 1, d)
            n, to_n = _part(inputs, row, 3, 2, d), _part(recurrent, row, 3, 2, d)
            old, above, dh = _part(hidden, row, 1, 0, d), _part(to_output, row, 1, 0, d), _part(to_hidden, row, 1, 0, d)
            sums, candidates = np.empty(2 * d, np.float32), np.empty(d, np.float32)
            before, to_candidate = sums[:d], sums[d:]
            for k in range(d):
                dh[k] = narrow(widen(dh[k]) + widen(above[k]), to_hidden)
            for k in range(d):
                before[k] = widen(r[k]) + widen(to_r[k])
            for k in range(d):
                candidates[k] = widen(n[k]) + value(before[k]) * widen(to_n[k])
            for k in range(d):
                z[k] = narrow(widen(z[k]) + widen(to_z[k]), inputs)
            for k in range(d):
                to_candidate[k] = widen(dh[k]) * (_ONE - value(widen(z[k]))) * _tanh_slope(candidates[k])
            for k in range(d):
                g, x = widen(dh[k]), widen(z[k])
                dh[k] = narrow(g * value(x), to_hidden)
                z[k] = narrow(g * (widen(old[k]) - _tanh(candidates[k])) * slope(x), inputs)
            for k in range(d):
                r[k] = narrow(to_candidate[k] * widen(to_n[k]) * slope(before[k]), inputs)
            for k in range(d):
                to_n[k] = narrow(to_candidate[k] * value(before[k]), recurrent)
            for k in range(d):
                n[k] = narrow(to_candidate[k], inputs)
            to_r[:], to_z[:] = r, z

    return gru_back


def lstm(inputs: Tensor, weight: Tensor, hidden: Tensor, cell: Tensor, out: tuple[Tensor, ...], gate: str) -> None:
    """Fill out = (outputs, cells, gates); see reference.recurrence.lstm. cell and cells are float32."""
    outputs, cells, gates = out
    step, division, transposed, d = _lstm_step(gate, gates.dtype), _over_batch(hidden), weight.t(), cell.shape[1]
    before, arrays = _flat(cell), zip(_flat_steps(gates), _flat_steps(cells), _flat_steps(outputs), strict=True)
    for share, sums, output, (at, after, result) in zip(inputs, gates, outputs, arrays, strict=True):
        torch.addmm(share, hidden, transposed, out=sums)
        step.on_arrays(division, at, before, after, result, d)
        before, hidden = after, output


def lstm_back(
    to_outputs: Tensor, to_cells: Tensor, to_gates: Tensor, cells: Tensor, weight: Tensor, cell: Tensor, gate: str
) -> tuple[Tensor, Tensor]:
    """The gradients to hidden and cell; to_gates holds the gates and is left with their gradients."""
    step, d = _lstm_step_back(gate, to_gates.dtype), cell.shape[1]
    to_hidden, to_cell = weight.new_zeros(cell.shape), torch.zeros_like(cell)
    division, passed_on = _over_batch(cell), (_flat(to_hidden), _flat(to_cell))
    states = [_flat(cell), *_flat_steps(cells)]
    above, beside, at = (_flat_steps(item) for item in (to_outputs, to_cells, to_gates))
    for t in reversed(range(len(at))):
        step.on_arrays(division, at[t], states[t], states[t + 1], above[t], beside[t], *passed_on, d)
        torch.mm(to_gates[t], weight, out=to_hidden)
    return to_hidden, to_cell


def gru(inputs: Tensor, weight: Tensor, bias: Tensor, hidden: Tensor, out: tuple[Tensor, ...], gate: str) -> None:
    """Fill out = (outputs, recurrent); see reference.recurrence.gru."""
    outputs, recurrent = out
    step, division, transposed, d = _gru_step(gate, inputs.dtype), _over_batch(hidden), weight.t(), hidden.shape[1]
    before = _flat(hidden)
    arrays = zip(_flat_steps(inputs), _flat_steps(recurrent), _flat_steps(outputs), strict=True)
    for sums, output, (share, at, result) in zip(recurrent, outputs, arrays, strict=True):
        torch.addmm(bias, hidden, transposed, out=sums)
        step.on_arrays(division, share, at, before, result, d)
        before, hidden = result, output


def gru_back(
    to_outputs: Tensor,
    to_inputs: Tensor,
    to_recurrent: Tensor,
    outputs: Tensor,
    weight: Tensor,
    hidden: Tensor,
    gate: str,
) -> Tensor:
    """The gradient to hidden; to_inputs and to_recurrent hold both shares and are left with their gradients."""
    step, division, d = _gru_step_back(gate, to_inputs.dtype), _over_batch(hidden), hidden.shape[1]
    to_hidden = torch.zeros_like(hidden, memory_format=torch.contiguous_format)
    passed_on, states = _flat(to_hidden), [_flat(hidden), *_flat_steps(outputs)]
    above, share, at = (_flat_steps(item) for item in (to_outputs, to_inputs, to_recurrent))
    for t in reversed(range(len(at))):
        step.on_arrays(division, share[t], at[t], states[t], above[t], passed_on, d)
        to_hidden.addmm_(to_recurrent[t], weight)
    return to_hidden


def _over_batch(state: Tensor) -> Division:
    return divided(state.shape[0], max(1, _LEAST // max(1, state.shape[1])))


def _flat(tensor: Tensor) -> np.ndarray:
    return as_array(tensor.contiguous().flatten())


def _flat_steps(tensor: Tensor) -> list[np.ndarray]:
    """Every step's memory."""
    return list(as_array(tensor.contiguous().flatten(1)))
