"""LSTM and GRU by definition, one step after another, and their gradients backwards through time.

Tensors: inputs (length, batch, n·d), each step's share of the n gates that comes from the input; weight (n·d, d), what
the hidden state is multiplied by; hidden and cell (batch, d), the state before the first step. A function and its slope
come as a pair; the gates take the one that is given, everything else tanh.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .activations import SLOPES

Pointwise = Callable[[Tensor], Tensor]
_tanh_slope = SLOPES["tanh"]


class Gate(NamedTuple):
    """A pointwise function and its slope."""

    value: Pointwise
    slope: Pointwise


class LSTMStates(NamedTuple):
    """After each step: outputs and cells (length, batch, d); gates (length, batch, 4·d), before their functions."""

    outputs: Tensor
    cells: Tensor
    gates: Tensor


def lstm(inputs: Tensor, weight: Tensor, hidden: Tensor, cell: Tensor, gate: Pointwise) -> LSTMStates:
    """c ← g(f)·c + g(i)·tanh(n), h ← g(o)·tanh(c); i, f, n, o = input + h·weightᵀ, in this order."""
    states = []
    for share in inputs:
        gates = share + hidden @ weight.t()
        i, f, n, o = gates.chunk(4, -1)
        cell = gate(f) * cell + gate(i) * torch.tanh(n)
        hidden = gate(o) * torch.tanh(cell)
        states.append((hidden, cell, gates))
    outputs, cells, gates = zip(*states, strict=True)
    return LSTMStates(torch.stack(outputs), torch.stack(cells), torch.stack(gates))


def lstm_gradients(
    to_outputs: Tensor, to_cells: Tensor, states: LSTMStates, weight: Tensor, hidden: Tensor, cell: Tensor, gate: Gate
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients to inputs, weight, hidden and cell."""
    outputs, cells, gates = states
    to_hidden, to_cell = torch.zeros_like(hidden), torch.zeros_like(cell)
    to_inputs: list[Tensor] = []
    for t in reversed(range(len(gates))):
        i, f, n, o = gates[t].chunk(4, -1)
        to_hidden = to_hidden + to_outputs[t]
        to_cell = to_cell + to_cells[t] + to_hidden * gate.value(o) * _tanh_slope(cells[t])
        to_i = to_cell * torch.tanh(n) * gate.slope(i)
        to_f = to_cell * (cells[t - 1] if t else cell) * gate.slope(f)
        to_n = to_cell * gate.value(i) * _tanh_slope(n)
        to_o = to_hidden * torch.tanh(cells[t]) * gate.slope(o)
        to_inputs.insert(0, torch.cat((to_i, to_f, to_n, to_o), -1))
        to_cell = to_cell * gate.value(f)
        to_hidden = to_inputs[0] @ weight
    to_gates = torch.stack(to_inputs)
    return to_gates, _to_weight(to_gates, outputs, hidden), to_hidden, to_cell


class GRUStates(NamedTuple):
    """After each step: outputs (length, batch, d), and recurrent (length, batch, 3·d), the hidden state's shares."""

    outputs: Tensor
    recurrent: Tensor


def gru(inputs: Tensor, weight: Tensor, bias: Tensor, hidden: Tensor, gate: Pointwise) -> GRUStates:
    """h ← (1 − g(z))·n + g(z)·h with n = tanh(n_input + g(r)·n_recurrent); r, z, n_recurrent = h·weightᵀ + bias.

    r and z get the input's share added; bias: (3·d,).
    """
    outputs, shares = [], []
    for share in inputs:
        recurrent = hidden @ weight.t() + bias
        (r, z, n), (to_r, to_z, to_n) = share.chunk(3, -1), recurrent.chunk(3, -1)
        candidate = torch.tanh(n + gate(r + to_r) * to_n)
        update = gate(z + to_z)
        hidden = (1 - update) * candidate + update * hidden
        outputs.append(hidden)
        shares.append(recurrent)
    return GRUStates(torch.stack(outputs), torch.stack(shares))


def gru_gradients(
    to_outputs: Tensor, states: GRUStates, inputs: Tensor, weight: Tensor, hidden: Tensor, gate: Gate
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients to inputs, weight, bias and hidden."""
    outputs, recurrent = states
    to_hidden = torch.zeros_like(hidden)
    to_inputs: list[Tensor] = []
    to_recurrent: list[Tensor] = []
    for t in reversed(range(len(inputs))):
        (r, z, n), (share_r, share_z, share_n) = inputs[t].chunk(3, -1), recurrent[t].chunk(3, -1)
        r, z = r + share_r, z + share_z
        before, reset, update = outputs[t - 1] if t else hidden, gate.value(r), gate.value(z)
        n = n + reset * share_n
        to_hidden = to_hidden + to_outputs[t]
        to_z = to_hidden * (before - torch.tanh(n)) * gate.slope(z)
        to_n = to_hidden * (1 - update) * _tanh_slope(n)
        to_r = to_n * share_n * gate.slope(r)
        to_inputs.insert(0, torch.cat((to_r, to_z, to_n), -1))
        to_recurrent.insert(0, torch.cat((to_r, to_z, to_n * reset), -1))
        to_hidden = to_hidden * update + to_recurrent[0] @ weight
    to_shares = torch.stack(to_recurrent)
    return torch.stack(to_inputs), _to_weight(to_shares, outputs, hidden), to_shares.sum((0, 1)), to_hidden


def _to_weight(to_gates: Tensor, outputs: Tensor, hidden: Tensor) -> Tensor:
    """Σ over steps and batch of the gates' gradient times the hidden state that came before."""
    return torch.einsum("tbg,tbd->gd", to_gates, torch.cat((hidden[None], outputs[:-1])))
