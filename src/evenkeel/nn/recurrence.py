"""LSTM and GRU with evenkeel's own functions: torch's parameters, arguments and results, and a gate of one's choice."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from ..errors import ConfigError, UsageError
from ..functional import ACTIVATIONS
from ..functional._recurrence import gru, lstm

States = tuple[Tensor, ...]


class Recurrence(nn.Module):
    """What LSTM and GRU share: layers, directions, parameters by torch's names, and sequences in torch's forms."""

    gates: ClassVar[int]
    states: ClassVar[int]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        gate: str = "sigmoid",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, size in (("input_size", input_size), ("hidden_size", hidden_size), ("num_layers", num_layers)):
            if size < 1:
                raise ConfigError(f"{name} is {size} and must be at least 1")
        if not 0 <= dropout <= 1:
            raise ConfigError(f"dropout is {dropout}, a probability; give a number from 0 to 1")
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.dropout, self.bidirectional = bias, batch_first, dropout, bidirectional
        self.gate = ACTIVATIONS[gate].name
        self._suffixes = [
            [f"_l{layer}{side}" for side in ("", "_reverse")[: 1 + bidirectional]] for layer in range(num_layers)
        ]
        rows = self.gates * hidden_size
        for layer, suffixes in enumerate(self._suffixes):
            width = hidden_size * len(suffixes) if layer else input_size
            shapes: dict[str, tuple[int, ...]] = {"weight_ih": (rows, width), "weight_hh": (rows, hidden_size)}
            shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)} if bias else {}
            for suffix in suffixes:
                for name, shape in shapes.items():
                    self.register_parameter(
                        f"{name}{suffix}", nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
                    )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Every parameter from U(−1/√hidden_size, 1/√hidden_size), in torch's order: one seed gives torch's numbers."""
        bound = 1 / math.sqrt(self.hidden_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def flatten_parameters(self) -> None:
        """Nothing: torch's modules lay their weights out for cuDNN here, and code that calls it finds it."""

    def extra_repr(self) -> str:
        shown = {"num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0, "bidirectional": False}
        given = [f"{name}={value}" for name in shown if (value := getattr(self, name)) != shown[name]]
        return ", ".join([f"{self.input_size}, {self.hidden_size}", *given, f"gate={self.gate!r}"])

    def _run(self, x: Tensor, suffix: str, start: States) -> States:
        """The states after each step of one layer in one direction, the output first; x: (length, batch, width)."""
        raise NotImplementedError

    def _projected(self, x: Tensor, suffix: str, bias: Tensor | None) -> Tensor:
        """The input's share of the gates: one product over all steps."""
        return F.linear(x, getattr(self, f"weight_ih{suffix}"), bias)

    def _over_sequence(self, given: Any, start: States | None) -> tuple[Any, States]:
        """Output and last states, in the form in which the input was given."""
        if start is not None and (len(start) != self.states or not all(isinstance(item, Tensor) for item in start)):
            raise UsageError(f"hx holds no first state; give {('h, a tensor', 'a tuple (h, c)')[self.states - 1]}")
        if isinstance(given, PackedSequence):
            padded, lengths = pad_packed_sequence(given)
            outputs, states = self._through_layers(padded, self._start(padded, start), lengths.to(padded.device))
            order = given.sorted_indices
            outputs = outputs if order is None else outputs.index_select(1, order)
            lengths = lengths if order is None else lengths[order.cpu()]
            packed = pack_padded_sequence(outputs, lengths)
            return PackedSequence(packed.data, packed.batch_sizes, order, given.unsorted_indices), states
        if given.dim() not in (2, 3) or given.shape[-1] != self.input_size:
            raise UsageError(
                f"the input is {tuple(given.shape)}; it must be (length, batch, {self.input_size}), with batch_first "
                f"(batch, length, {self.input_size}), or (length, {self.input_size}) without a batch"
            )
        alone, first = given.dim() == 2, self.batch_first and given.dim() == 3
        x = given.unsqueeze(1) if alone else given.transpose(0, 1) if first else given
        start = tuple(item.unsqueeze(1) for item in start) if alone and start is not None else start
        outputs, states = self._through_layers(x, self._start(x, start), None)
        if alone:
            return outputs.squeeze(1), tuple(item.squeeze(1) for item in states)
        return outputs.transpose(0, 1) if first else outputs, states

    def _start(self, x: Tensor, start: States | None) -> States:
        shape = (self.num_layers * (1 + self.bidirectional), x.shape[1], self.hidden_size)
        if start is None:
            return (x.new_zeros(shape),) * self.states
        for item in start:
            if tuple(item.shape) != shape:
                raise UsageError(f"the first state is {tuple(item.shape)} and must be (layers, batch, size) = {shape}")
        return start

    def _through_layers(self, x: Tensor, start: States, lengths: Tensor | None) -> tuple[Tensor, States]:
        last: list[States] = []
        for layer, suffixes in enumerate(self._suffixes):
            if layer and self.dropout:
                x = F.dropout(x, self.dropout, self.training)
            results = []
            for suffix in suffixes:
                outputs, end = self._direction(x, suffix, tuple(item[len(last)] for item in start), lengths)
                results.append(outputs)
                last.append(end)
            x = torch.cat(results, -1) if len(results) > 1 else results[0]
        return x, tuple(torch.stack(items) for items in zip(*last, strict=True))

    def _direction(self, x: Tensor, suffix: str, start: States, lengths: Tensor | None) -> tuple[Tensor, States]:
        """One layer in one direction: its output, in the order of x, and its states after the last step."""
        backwards = suffix.endswith("_reverse")
        states = self._run(_reversed(x, lengths) if backwards else x, suffix, start)
        if lengths is None:
            end = tuple(item[-1] for item in states)
        else:
            end = tuple(item[lengths - 1, torch.arange(len(lengths), device=x.device)] for item in states)
        return _reversed(states[0], lengths) if backwards else states[0], end


class LSTM(Recurrence):
    """Long short-term memory: torch.nn.LSTM's parameters, arguments and results, on evenkeel's gates.

    c ← g(f)·c + g(i)·tanh(n), h ← g(o)·tanh(c), where i, f, n, o = W_ih·x + b_ih + W_hh·h + b_hh.
    input_size, hidden_size: widths of x and h. num_layers: each layer reads the one before; dropout is the share of
    that reading which is dropped in training. bias: without it the b are not there. batch_first: (batch, length, ...)
    instead of (length, batch, ...), for sequences, not for states. bidirectional: a second direction from the end, its
    output behind the first's. gate: g, a name in evenkeel.functional.ACTIVATIONS. torch's proj_size is left out.
    A torch.nn.LSTM's state_dict loads into it and the other way round. Raises ConfigError for sizes that cannot be.
    Source: Hochreiter and Schmidhuber 1997; Gers, Schmidhuber and Cummins 2000 (forget gate).
    """

    gates, states = 4, 2

    def forward(
        self, input: Tensor | PackedSequence, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Any, tuple[Tensor, Tensor]]:
        """(output, (h, c)) of input (length, batch, input_size), (length, input_size), or packed sequences.

        hx: (h, c) before the first step, each (num_layers·directions, batch, hidden_size), in an unbatched call
        without batch; None for zeros. output has the input's form, with hidden_size·directions columns; h and c are the
        states after each sequence's last step, in the form of hx. All in the dtype of the weights.
        Raises UsageError for shapes that do not fit.
        """
        output, (hidden, cell) = self._over_sequence(input, hx)
        return output, (hidden, cell)

    def _run(self, x: Tensor, suffix: str, start: States) -> States:
        bias = getattr(self, f"bias_ih{suffix}") + getattr(self, f"bias_hh{suffix}") if self.bias else None
        inputs = self._projected(x, suffix, bias)
        rest = (getattr(self, f"weight_hh{suffix}"), *start)
        return lstm(inputs, *(item.to(inputs.dtype) for item in rest), gate=self.gate)


class GRU(Recurrence):
    """Gated recurrent unit: torch.nn.GRU's parameters, arguments and results, on evenkeel's gates.

    h ← (1 − g(z))·n + g(z)·h, n = tanh(W_in·x + b_in + g(r)·(W_hn·h + b_hn)), where r and z = W_ih·x + b_ih +
    W_hh·h + b_hh. Arguments, errors and state_dict as of LSTM.
    Source: Cho et al. 2014; with the reset gate behind the product, as in cuDNN.
    """

    gates, states = 3, 1

    def forward(self, input: Tensor | PackedSequence, hx: Tensor | None = None) -> tuple[Any, Tensor]:
        """(output, h) of input; hx: h before the first step. Shapes, dtypes and errors as of LSTM.forward."""
        output, (hidden,) = self._over_sequence(input, None if hx is None else (hx,))
        return output, hidden

    def _run(self, x: Tensor, suffix: str, start: States) -> States:
        inputs = self._projected(x, suffix, getattr(self, f"bias_ih{suffix}") if self.bias else None)
        weight = getattr(self, f"weight_hh{suffix}")
        bias = getattr(self, f"bias_hh{suffix}") if self.bias else weight.new_zeros(len(weight))
        return (gru(inputs, *(item.to(inputs.dtype) for item in (weight, bias, *start)), gate=self.gate),)


def _reversed(sequence: Tensor, lengths: Tensor | None) -> Tensor:
    """Each sequence (length, batch, ...) from its end; beyond its length stands its first step, which nobody reads."""
    if lengths is None:
        return sequence.flip(0)
    steps = torch.arange(len(sequence), device=sequence.device)[:, None]
    return sequence.take_along_dim((lengths - 1 - steps).clamp(min=0)[..., None], 0)
