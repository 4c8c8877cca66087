"""LSTM and GRU over a whole sequence: per step one matrix product and one pass over the gates, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from ..errors import UsageError
from ..kernels import cpu
from ..reference import recurrence as reference
from ..reference.activations import REFERENCES, SLOPES
from ._activations import ACTIVATIONS
from ._dtypes import computing_dtype, widened
from ._operators import is_differentiated, operator


class SeenGate(NamedTuple):
    """One gate over all steps: f(gate) and what it lets through, each (length, batch, d)."""

    name: str
    activated: Tensor
    up: Tensor


def lstm(inputs: Tensor, weight: Tensor, hidden: Tensor, cell: Tensor, gate: str = "sigmoid") -> tuple[Tensor, Tensor]:
    """The states of a long short-term memory, (outputs, cells), after each step.

    c ← g(f)·c + g(i)·tanh(n), h ← g(o)·tanh(c), with i, f, n, o = input + h·weightᵀ in this order.
    inputs: (length, batch, 4·d), the input's share of the gates, biases included; length at least 1. weight: (4·d, d).
    hidden, cell: (batch, d), the state before the first step. Results: (length, batch, d). gate: g, a name in
    ACTIVATIONS. All of one floating-point dtype, which the results have; of 16 bits, the cell is carried in float32.
    Matrix products run in the tensors' dtype; what lies between them, in float32 at least.
    Raises UsageError for shapes or dtypes that do not fit, and for an unknown gate.
    Source: Hochreiter and Schmidhuber 1997; with a forget gate: Gers, Schmidhuber and Cummins 2000.
    """
    given = (inputs, weight, hidden, cell)
    if has_torch_function(given):
        return handle_torch_function(lstm, given, *given, gate)
    _check(4, gate, inputs, weight, hidden=hidden, cell=cell)
    if gate not in SLOPES:
        outputs, cells, _ = _lstm_steps(*given, ACTIVATIONS[gate].function)
    else:
        run = _LSTM.apply if is_differentiated(*given) else _lstm
        outputs, cells, _ = run(inputs, weight, hidden, cell.to(computing_dtype(cell)), gate)
    return outputs, cells.to(outputs.dtype)


def gru(inputs: Tensor, weight: Tensor, bias: Tensor, hidden: Tensor, gate: str = "sigmoid") -> Tensor:
    """The states of a gated recurrent unit after each step.

    h ← (1 − g(z))·n + g(z)·h, n = tanh(n_input + g(r)·n_recurrent); r, z and n have a share of the input and one of
    the hidden state, h·weightᵀ + bias, in this order, and those of r and z are added.
    inputs: (length, batch, 3·d), the input's share; length at least 1. weight: (3·d, d). bias: (3·d,). hidden:
    (batch, d), the state before the first step. The result is (length, batch, d). gate: g, a name in ACTIVATIONS.
    All of one floating-point dtype, which the result has. Matrix products run in it; what lies between them, in float32
    at least.
    Raises UsageError for shapes or dtypes that do not fit, and for an unknown gate.
    Source: Cho et al. 2014; with the reset gate behind the product, as in cuDNN.
    """
    given = (inputs, weight, bias, hidden)
    if has_torch_function(given):
        return handle_torch_function(gru, given, *given, gate)
    _check(3, gate, inputs, weight, bias=bias, hidden=hidden)
    if gate not in SLOPES:
        return _gru_steps(*given, ACTIVATIONS[gate].function)[0]
    run = _GRU.apply if is_differentiated(*given) else _gru
    return run(*given, gate)[0]


def lstm_gates(inputs: Tensor, weight: Tensor, hidden: Tensor, cell: Tensor, gate: str) -> list[SeenGate]:
    """What an LSTM's gates did: input, forget and output gate. Arguments as of lstm."""
    outputs, cells = lstm(inputs, weight, hidden, cell, gate)
    function = ACTIVATIONS[gate].function
    i, f, n, o = (inputs + torch.cat((hidden[None], outputs[:-1])) @ weight.t()).chunk(4, -1)
    return [
        SeenGate("input", function(i), torch.tanh(n)),
        SeenGate("forget", function(f), torch.cat((cell[None], cells[:-1]))),
        SeenGate("output", function(o), torch.tanh(cells)),
    ]


def gru_gates(inputs: Tensor, weight: Tensor, bias: Tensor, hidden: Tensor, gate: str) -> list[SeenGate]:
    """What a GRU's gates did: reset and update gate. Arguments as of gru."""
    before = torch.cat((hidden[None], gru(inputs, weight, bias, hidden, gate)[:-1]))
    function = ACTIVATIONS[gate].function
    (r, z, _), (to_r, to_z, to_n) = inputs.chunk(3, -1), (before @ weight.t() + bias).chunk(3, -1)
    return [SeenGate("reset", function(r + to_r), to_n), SeenGate("update", function(z + to_z), before)]


def _check(gates: int, gate: str, inputs: Tensor, weight: Tensor, **others: Tensor) -> None:
    ACTIVATIONS[gate]
    d = weight.shape[-1]
    if inputs.dim() != 3 or inputs.shape[0] == 0:
        raise UsageError(f"inputs are {tuple(inputs.shape)}, not (length, batch, {gates}·d) with a length of 1 or more")
    batch = inputs.shape[1]
    wanted = {"inputs": (len(inputs), batch, gates * d), "weight": (gates * d, d), "bias": (gates * d,)}
    for name, item in {"inputs": inputs, "weight": weight, **others}.items():
        shape = wanted.get(name, (batch, d))
        if tuple(item.shape) != shape:
            raise UsageError(f"{name} is {tuple(item.shape)}, and with inputs {tuple(inputs.shape)} it must be {shape}")
        if item.dtype != inputs.dtype or not item.is_floating_point():
            raise UsageError(
                f"{name} is {item.dtype}, inputs are {inputs.dtype}; give both in one floating-point dtype with .to()"
            )


# --- operators ---------------------------------------------------------------------------------------------------


def _lstm_steps(
    inputs: Tensor, weight: Tensor, hidden: Tensor, cell: Tensor, gate: reference.Pointwise
) -> tuple[Tensor, ...]:
    wide = (widened(item) for item in (inputs, weight, hidden, cell))
    outputs, cells, gates = reference.lstm(*wide, gate=gate)
    return outputs.to(inputs.dtype), cells, gates.to(inputs.dtype)


def _lstm_in_torch(inputs: Tensor, weight: Tensor, hidden: Tensor, cell: Tensor, gate: str) -> tuple[Tensor, ...]:
    return _lstm_steps(inputs, weight, hidden, cell, REFERENCES[gate])


def _lstm_on_cpu(inputs: Tensor, weight: Tensor, hidden: Tensor, cell: Tensor, gate: str) -> tuple[Tensor, ...]:
    if not cpu.serves(inputs, weight, hidden):
        return _lstm_in_torch(inputs, weight, hidden, cell, gate)
    from ..kernels.cpu import recurrence

    out = _shaped_lstm(inputs, weight, hidden, cell, gate)
    recurrence.lstm(inputs, weight, hidden, cell, out, gate)
    return out


def _shaped_lstm(inputs: Tensor, weight: Tensor, hidden: Tensor, cell: Tensor, gate: str) -> tuple[Tensor, ...]:
    shape = (inputs.shape[0], *cell.shape)
    return inputs.new_empty(shape), cell.new_empty(shape), inputs.new_empty(inputs.shape)


def _lstm_back_in_torch(
    to_outputs: Tensor,
    to_cells: Tensor,
    outputs: Tensor,
    cells: Tensor,
    gates: Tensor,
    weight: Tensor,
    hidden: Tensor,
    cell: Tensor,
    gate: str,
) -> tuple[Tensor, ...]:
    states = reference.LSTMStates(*(widened(item) for item in (outputs, cells, gates)))
    wide = (widened(item) for item in (weight, hidden, cell))
    pair = reference.Gate(REFERENCES[gate], SLOPES[gate])
    results = reference.lstm_gradients(widened(to_outputs), to_cells, states, *wide, gate=pair)
    return tuple(item.to(like.dtype) for item, like in zip(results, (gates, weight, hidden, cell), strict=True))


def _lstm_back_on_cpu(*given: Any) -> tuple[Tensor, ...]:
    to_outputs, to_cells, outputs, cells, gates, weight, hidden, cell, gate = given
    if not cpu.serves(to_outputs, outputs, gates, weight, hidden):
        return _lstm_back_in_torch(*given)
    from ..kernels.cpu import recurrence

    to_gates = gates.clone(memory_format=torch.contiguous_format)
    to_hidden, to_cell = recurrence.lstm_back(to_outputs, to_cells, to_gates, cells, weight, cell, gate)
    return to_gates, _to_weight(to_gates, outputs, hidden), to_hidden, to_cell


def _shaped_lstm_back(*given: Any) -> tuple[Tensor, ...]:
    return tuple(item.new_empty(item.shape) for item in given[4:8])


def _gru_steps(
    inputs: Tensor, weight: Tensor, bias: Tensor, hidden: Tensor, gate: reference.Pointwise
) -> tuple[Tensor, ...]:
    wide = (widened(item) for item in (inputs, weight, bias, hidden))
    return tuple(item.to(inputs.dtype) for item in reference.gru(*wide, gate=gate))


def _gru_in_torch(inputs: Tensor, weight: Tensor, bias: Tensor, hidden: Tensor, gate: str) -> tuple[Tensor, ...]:
    return _gru_steps(inputs, weight, bias, hidden, REFERENCES[gate])


def _gru_on_cpu(inputs: Tensor, weight: Tensor, bias: Tensor, hidden: Tensor, gate: str) -> tuple[Tensor, ...]:
    if not cpu.serves(inputs, weight, bias, hidden):
        return _gru_in_torch(inputs, weight, bias, hidden, gate)
    from ..kernels.cpu import recurrence

    out = _shaped_gru(inputs, weight, bias, hidden, gate)
    recurrence.gru(inputs, weight, bias, hidden, out, gate)
    return out


def _shaped_gru(inputs: Tensor, weight: Tensor, bias: Tensor, hidden: Tensor, gate: str) -> tuple[Tensor, ...]:
    return inputs.new_empty((inputs.shape[0], *hidden.shape)), inputs.new_empty(inputs.shape)


def _gru_back_in_torch(
    to_outputs: Tensor, outputs: Tensor, recurrent: Tensor, inputs: Tensor, weight: Tensor, hidden: Tensor, gate: str
) -> tuple[Tensor, ...]:
    states = reference.GRUStates(widened(outputs), widened(recurrent))
    wide = (widened(item) for item in (inputs, weight, hidden))
    pair = reference.Gate(REFERENCES[gate], SLOPES[gate])
    results = reference.gru_gradients(widened(to_outputs), states, *wide, gate=pair)
    return tuple(item.to(inputs.dtype) for item in results)


def _gru_back_on_cpu(*given: Any) -> tuple[Tensor, ...]:
    to_outputs, outputs, recurrent, inputs, weight, hidden, gate = given
    if not cpu.serves(to_outputs, outputs, recurrent, inputs, weight, hidden):
        return _gru_back_in_torch(*given)
    from ..kernels.cpu import recurrence

    to_inputs, to_recurrent = (item.clone(memory_format=torch.contiguous_format) for item in (inputs, recurrent))
    to_hidden = recurrence.gru_back(to_outputs, to_inputs, to_recurrent, outputs, weight, hidden, gate)
    return to_inputs, _to_weight(to_recurrent, outputs, hidden), to_recurrent.sum((0, 1)), to_hidden


def _shaped_gru_back(*given: Any) -> tuple[Tensor, ...]:
    _, _, _, inputs, weight, hidden, _ = given
    return tuple(item.new_empty(item.shape) for item in (inputs, weight, inputs[0, 0], hidden))


def _to_weight(to_gates: Tensor, outputs: Tensor, hidden: Tensor) -> Tensor:
    """Of all steps at once."""
    before = torch.cat((hidden[None], outputs[:-1]))
    return to_gates.flatten(0, 1).t() @ before.flatten(0, 1)


def _slice_by_slice(name: str) -> Callable[..., Any]:
    """The batching rule of an operator whose steps follow one another."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *given: Any) -> tuple[Any, Any]:
        run = getattr(torch.ops.evenkeel, name).default
        results = [
            run(*(item if dim is None else item.select(dim, place) for item, dim in zip(given, in_dims, strict=True)))
            for place in range(info.batch_size)
        ]
        stacked = tuple(torch.stack(items) for items in zip(*results, strict=True))
        return stacked, (0,) * len(stacked)

    return rule


_lstm = operator(
    "lstm(Tensor inputs, Tensor weight, Tensor hidden, Tensor cell, str gate) -> (Tensor, Tensor, Tensor)",
    cpu=_lstm_on_cpu,
    composite=_lstm_in_torch,
    fake=_shaped_lstm,
    vmap=_slice_by_slice("lstm"),
)
_lstm_back = operator(
    "lstm_backward(Tensor to_outputs, Tensor to_cells, Tensor outputs, Tensor cells, Tensor gates, Tensor weight, "
    "Tensor hidden, Tensor cell, str gate) -> (Tensor, Tensor, Tensor, Tensor)",
    cpu=_lstm_back_on_cpu,
    composite=_lstm_back_in_torch,
    fake=_shaped_lstm_back,
    vmap=_slice_by_slice("lstm_backward"),
)
_gru = operator(
    "gru(Tensor inputs, Tensor weight, Tensor bias, Tensor hidden, str gate) -> (Tensor, Tensor)",
    cpu=_gru_on_cpu,
    composite=_gru_in_torch,
    fake=_shaped_gru,
    vmap=_slice_by_slice("gru"),
)
_gru_back = operator(
    "gru_backward(Tensor to_outputs, Tensor outputs, Tensor recurrent, Tensor inputs, Tensor weight, Tensor hidden, "
    "str gate) -> (Tensor, Tensor, Tensor, Tensor)",
    cpu=_gru_back_on_cpu,
    composite=_gru_back_in_torch,
    fake=_shaped_gru_back,
    vmap=_slice_by_slice("gru_backward"),
)


# --- gradients ---------------------------------------------------------------------------------------------------


class _LSTM(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(inputs: Tensor, weight: Tensor, hidden: Tensor, cell: Tensor, gate: str) -> tuple[Tensor, ...]:
        return _lstm(inputs, weight, hidden, cell, gate)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(output[2])
        ctx.save_for_backward(*inputs[:4], *output)
        ctx.gate = inputs[4]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        return *_LSTMBackward.apply(*gradients[:2], *ctx.saved_tensors, ctx.gate), None


class _LSTMBackward(torch.autograd.Function):
    """Its own gradient goes to the inputs by way of the definition, and not by what was kept of the forward pass."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        to_outputs: Tensor,
        to_cells: Tensor,
        inputs: Tensor,
        weight: Tensor,
        hidden: Tensor,
        cell: Tensor,
        outputs: Tensor,
        cells: Tensor,
        gates: Tensor,
        gate: str,
    ) -> tuple[Tensor, ...]:
        return _lstm_back(to_outputs, to_cells, outputs, cells, gates, weight, hidden, cell, gate)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:6])
        ctx.gate = inputs[9]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        pair = reference.Gate(ACTIVATIONS[ctx.gate].function, SLOPES[ctx.gate])

        def gradient(to_outputs: Tensor, to_cells: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
            wide = [widened(item) for item in given]
            states = reference.lstm(*wide, gate=pair.value)
            results = reference.lstm_gradients(widened(to_outputs), to_cells, states, *wide[1:], gate=pair)
            return tuple(item.to(like.dtype) for item, like in zip(results, given, strict=True))

        return *torch.func.vjp(gradient, *ctx.saved_tensors)[1](gradients), None, None, None, None


class _GRU(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(inputs: Tensor, weight: Tensor, bias: Tensor, hidden: Tensor, gate: str) -> tuple[Tensor, ...]:
        return _gru(inputs, weight, bias, hidden, gate)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*inputs[:4], *output)
        ctx.gate = inputs[4]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        return *_GRUBackward.apply(gradients[0], *ctx.saved_tensors, ctx.gate), None


class _GRUBackward(torch.autograd.Function):
    """Its own gradient goes to the inputs by way of the definition, and not by what was kept of the forward pass."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        to_outputs: Tensor,
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor,
        hidden: Tensor,
        outputs: Tensor,
        recurrent: Tensor,
        gate: str,
    ) -> tuple[Tensor, ...]:
        return _gru_back(to_outputs, outputs, recurrent, inputs, weight, hidden, gate)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:5])
        ctx.gate = inputs[7]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        pair = reference.Gate(ACTIVATIONS[ctx.gate].function, SLOPES[ctx.gate])

        def gradient(to_outputs: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
            inputs, weight, bias, hidden = (widened(item) for item in given)
            states = reference.gru(inputs, weight, bias, hidden, pair.value)
            results = reference.gru_gradients(widened(to_outputs), states, inputs, weight, hidden, pair)
            return tuple(item.to(to_outputs.dtype) for item in results)

        return *torch.func.vjp(gradient, *ctx.saved_tensors)[1](gradients), None, None, None
