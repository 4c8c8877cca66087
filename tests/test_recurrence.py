"""LSTM and GRU against torch's own, against gradients by finite differences, and in every form torch takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import evenkeel as ek
from evenkeel.errors import ConfigError, UsageError
from evenkeel.functional import ACTIVATIONS, Activation, _recurrence, register_activation
from evenkeel.kernels import cpu
from evenkeel.nn.recurrence import GRU, LSTM

lstm: Any = _recurrence.lstm
gru: Any = _recurrence.gru
PAIRS: dict[str, tuple[Any, Any]] = {"lstm": (LSTM, nn.LSTM), "gru": (GRU, nn.GRU)}
FORMS = (
    {},
    {"batch_first": True},
    {"bias": False, "num_layers": 2},
    {"bidirectional": True, "num_layers": 2, "batch_first": True},
)
BOUNDS = {torch.float64: (1e-12, 1e-12), torch.float32: (1e-6, 1e-5)}  # of values, of gradients
GATES = ("sigmoid", "tanh", "silu", "relu")


def states_of(result) -> list[Tensor]:
    output, last = result
    output = output.data if isinstance(output, PackedSequence) else output
    return [output, *(last if isinstance(last, tuple) else (last,))]


def pair(name: str, dtype: torch.dtype, *sizes: int, **form):
    """Torch's module, and ours with its numbers."""
    ours, theirs = PAIRS[name]
    torch.manual_seed(0)
    peer = theirs(*(sizes or (5, 7)), **form).to(dtype)
    module = ours(*(sizes or (5, 7)), **form, dtype=dtype)
    module.load_state_dict(peer.state_dict(), strict=True)
    return module, peer


def agree(module: nn.Module, peer: nn.Module, dtype: torch.dtype, x, start=None) -> None:
    """The same output and last states, and the same gradients to parameters and input."""
    values, slopes = BOUNDS[dtype]
    results = [states_of(item(x) if start is None else item(x, start)) for item in (module, peer)]
    torch.manual_seed(1)
    upstream = [torch.randn_like(item) for item in results[0]]
    gradients = []
    given = (x, *(start if isinstance(start, tuple) else (start,)))
    leaves = [item for item in given if isinstance(item, Tensor) and item.requires_grad]
    for item, states in zip((module, peer), results, strict=True):
        inputs = [*item.parameters(), *leaves]
        gradients.append(torch.autograd.grad(states, inputs, upstream, allow_unused=True, materialize_grads=True))
    for ours, theirs in zip(*results, strict=True):
        assert ours.shape == theirs.shape and ours.dtype == dtype
        torch.testing.assert_close(ours, theirs, rtol=0, atol=values)
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=slopes, atol=slopes)


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("name", PAIRS)
def test_torchs_weights_give_torchs_results(name: str, form: dict, dtype: torch.dtype, poisoned: None):
    module, peer = pair(name, dtype, **form)
    x = torch.randn(6, 4, 5, dtype=dtype, requires_grad=True)
    agree(module, peer, dtype, x)
    layers, batch = len(list(peer.all_weights)), 6 if form.get("batch_first") else 4
    start = tuple(torch.randn(layers, batch, 7, dtype=dtype, requires_grad=True) for _ in range(2))
    agree(module, peer, dtype, x, start if name == "lstm" else start[0])
    alone = torch.randn(6, 5, dtype=dtype, requires_grad=True)
    agree(module, peer, dtype, alone)
    first = tuple(item[:, 0] for item in start)
    agree(module, peer, dtype, alone, first if name == "lstm" else first[0])


@pytest.mark.parametrize("sorted_", (True, False))
@pytest.mark.parametrize("name", PAIRS)
def test_packed_sequences(name: str, sorted_: bool):
    module, peer = pair(name, torch.float64, num_layers=2, bidirectional=True)
    lengths = (7, 4, 4, 1) if sorted_ else (4, 1, 7, 4)
    x = pack_sequence([torch.randn(length, 5, dtype=torch.float64) for length in lengths], enforce_sorted=sorted_)
    agree(module, peer, torch.float64, x)
    start = torch.randn(4, 4, 7, dtype=torch.float64)
    agree(module, peer, torch.float64, x, (start, start + 1) if name == "lstm" else start)
    ours, theirs = module(x)[0], peer(x)[0]
    assert torch.equal(ours.batch_sizes, theirs.batch_sizes)
    assert (ours.sorted_indices is None) == (theirs.sorted_indices is None)
    if not sorted_:
        assert torch.equal(ours.sorted_indices, theirs.sorted_indices)
        assert torch.equal(ours.unsorted_indices, theirs.unsorted_indices)


@pytest.mark.parametrize("name", PAIRS)
def test_names_order_and_first_numbers_of_parameters_are_torchs(name: str):
    ours, theirs = PAIRS[name]
    for form in FORMS:
        torch.manual_seed(3)
        module = ours(5, 7, **form)
        torch.manual_seed(3)
        peer = theirs(5, 7, **form)
        assert list(module.state_dict()) == list(peer.state_dict())
        assert all(torch.equal(*both) for both in zip(module.parameters(), peer.parameters(), strict=True))
        peer.load_state_dict(module.state_dict())
    assert repr(ours(5, 7, num_layers=2, gate="silu")) == f"{ours.__name__}(5, 7, num_layers=2, gate='silu')"


@pytest.mark.parametrize("name", PAIRS)
def test_dropout_lies_between_layers_and_only_in_training(name: str):
    module, peer = pair(name, torch.float64, num_layers=2, dropout=1.0)
    x = torch.randn(6, 4, 5, dtype=torch.float64)
    agree(module, peer, torch.float64, x)  # a second layer that reads nothing
    agree(module.eval(), peer.eval(), torch.float64, x)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("name", PAIRS)
def test_16_bits_lose_no_more_than_their_format(name: str, dtype: torch.dtype):
    """Over 200 steps, in units of the format's rounding of 1."""
    module, _ = pair(name, dtype, 16, 32)
    exact, _ = pair(name, torch.float64, 16, 32)
    exact.load_state_dict({key: value.double() for key, value in module.state_dict().items()})
    x = torch.randn(200, 3, 16).to(dtype)
    rounding = torch.finfo(dtype).eps
    for ours, wanted in zip(states_of(module(x)), states_of(exact(x.double())), strict=True):
        assert ours.dtype == dtype
        assert float((ours.double() - wanted).detach().abs().max()) < 3 * rounding
    up = torch.randn(200, 3, 32).to(dtype)
    ours = torch.autograd.grad((module(x)[0] * up).sum(), list(module.parameters()))
    wanted = torch.autograd.grad((exact(x.double())[0] * up.double()).sum(), list(exact.parameters()))
    for gradient, true in zip(ours, wanted, strict=True):
        assert float((gradient.double() - true).norm() / true.norm()) < 4 * rounding


def test_a_cell_that_counts_to_a_thousand_is_carried_in_float32():
    """Forget gate open, one added per step: in bfloat16 the count would stop at 256."""
    inputs = torch.tensor([40.0, 40.0, 40.0, 40.0], dtype=torch.bfloat16).expand(1000, 1, 4).contiguous()
    zero = torch.zeros(1, 1, dtype=torch.bfloat16)
    assert float(lstm(inputs, torch.zeros(4, 1, dtype=torch.bfloat16), zero, zero)[1][-1]) == 1000.0


def arguments(name: str, dtype: torch.dtype, length: int = 4, batch: int = 3, d: int = 5) -> list[Tensor]:
    """Drawn with both signs; no element near a kink at 0."""
    torch.manual_seed(0)
    n = 4 if name == "lstm" else 3
    third = (batch, d) if name == "lstm" else (3 * d,)
    shapes = ((length, batch, n * d), (n * d, d), *((third, third) if name == "lstm" else (third, (batch, d))))
    drawn = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    drawn[1] /= d**0.5
    return [item.to(dtype).requires_grad_() for item in drawn]


@pytest.mark.parametrize("gate", ("sigmoid", "silu"))
@pytest.mark.parametrize("name", PAIRS)
def test_derivatives_of_first_and_second_order(name: str, gate: str):
    function = lstm if name == "lstm" else gru
    given = arguments(name, torch.float64, 3, 1, 2)
    assert torch.autograd.gradcheck(lambda *items: function(*items, gate=gate), given)
    assert torch.autograd.gradgradcheck(lambda *items: function(*items, gate=gate), given)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("name", PAIRS)
def test_kernels_agree_with_the_definition_in_float64(name: str, gate: str, poisoned: None):
    function = lstm if name == "lstm" else gru
    for shape in ((1, 1, 1), (5, 3, 7), (3, 40, 130)):
        exact = arguments(name, torch.float64, *shape)
        exact = [(item / 4).detach().requires_grad_() for item in exact]
        given = [item.detach().float().requires_grad_() for item in exact]
        both = [function(*items, gate=gate) for items in (given, exact)]
        results, wanted = ([item] if isinstance(item, Tensor) else list(item) for item in both)
        up = [torch.randn(item.shape, dtype=torch.float64) for item in wanted]
        slopes = torch.autograd.grad(results, given, [item.float() for item in up])
        exact_slopes = torch.autograd.grad(wanted, exact, up)
        for ours, true in zip((*results, *slopes), (*wanted, *exact_slopes), strict=True):
            assert float((ours - true).detach().abs().max()) <= 3e-6 * max(1.0, float(true.detach().abs().max()))


@pytest.mark.parametrize("name", PAIRS)
def test_second_order_in_16_bits_keeps_the_dtypes(name: str):
    function = lstm if name == "lstm" else gru
    given = arguments(name, torch.bfloat16)
    result = function(*given)
    output = result if isinstance(result, Tensor) else result[0]
    first = torch.autograd.grad(output.square().sum(), given, create_graph=True)
    second = torch.autograd.grad([item.square().sum() for item in first], given)
    assert all(item.dtype == torch.bfloat16 and bool(item.isfinite().all()) for item in second)


@pytest.mark.parametrize("name", PAIRS)
def test_any_layout_of_the_arguments(name: str):
    function = lstm if name == "lstm" else gru
    given = [item.detach() for item in arguments(name, torch.float32)]
    strange = [item.transpose(0, -1).contiguous().transpose(0, -1) for item in given]
    torch.testing.assert_close(function(*strange), function(*given))
    for threads in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            many = [item.detach() for item in arguments(name, torch.float32, 2, 70, 130)]
            torch.testing.assert_close(function(*many), function(*(item.double() for item in many)), check_dtype=False)
        finally:
            torch.set_num_threads(before)


@pytest.mark.parametrize("name", PAIRS)
def test_without_kernels_the_torch_path_agrees(name: str, monkeypatch: pytest.MonkeyPatch):
    module, peer = pair(name, torch.float32)
    monkeypatch.setattr(cpu, "unavailable_because", lambda: "a test")
    agree(module, peer, torch.float32, torch.randn(6, 4, 5, requires_grad=True))


@pytest.mark.parametrize("name", PAIRS)
def test_function_transforms_and_compilation(name: str):
    function = lstm if name == "lstm" else gru
    given = [item.detach() for item in arguments(name, torch.float32)]
    rows = torch.stack([given[0], given[0] + 1])

    def loss(inputs: Tensor) -> Tensor:
        result = function(inputs, *given[1:])
        return (result if isinstance(result, Tensor) else result[0]).sum()

    mapped = torch.func.vmap(torch.func.grad(loss))(rows)
    assert torch.allclose(mapped, torch.stack([torch.func.grad(loss)(row) for row in rows]), atol=1e-6)
    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    x = given[0].clone().requires_grad_()
    assert torch.equal(compiled(x), loss(x))
    assert torch.equal(torch.autograd.grad(compiled(x), x)[0], torch.autograd.grad(loss(x), x)[0])
    module, _ = pair(name, torch.float32, num_layers=2)
    sequence = torch.randn(6, 4, 5)
    whole = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert torch.equal(whole(sequence)[0], module(sequence)[0])


@pytest.mark.parametrize("name", PAIRS)
def test_operators_are_registered_as_torch_wants_them(name: str):
    given = [item.detach() for item in arguments(name, torch.float32)]
    ops = torch.ops.evenkeel
    forward, backward = (ops.lstm, ops.lstm_backward) if name == "lstm" else (ops.gru, ops.gru_backward)
    torch.library.opcheck(forward.default, (*given, "sigmoid"))
    kept = forward.default(*given, "sigmoid")
    up = [torch.randn_like(item) for item in kept]
    rest = (*up[:2], *kept, *given[1:]) if name == "lstm" else (up[0], *kept, given[0], given[1], given[3])
    torch.library.opcheck(backward.default, (*rest, "sigmoid"))


def test_a_gate_of_ones_own(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ACTIVATIONS, "_entries", dict(ACTIVATIONS._entries))
    register_activation("half_cosine", lambda x: 0.5 + 0.5 * torch.cos(x))
    assert isinstance(ACTIVATIONS["half_cosine"], Activation)
    for module in (LSTM(3, 4, gate="half_cosine"), GRU(3, 4, gate="half_cosine")):
        plain = type(module)(3, 4)
        plain.load_state_dict(module.state_dict())
        x = torch.randn(5, 2, 3)
        output = module(x)[0]
        output.sum().backward()
        assert all(item.grad is not None and bool(item.grad.any()) for item in module.parameters())
        assert not torch.allclose(output, plain(x)[0], atol=1e-2)


def test_gates_as_they_were():
    """Outputs are made of what the gates let through."""
    given = [item.detach() for item in arguments("lstm", torch.float64)]
    outputs, cells = lstm(*given)
    added, kept, shown = _recurrence.lstm_gates(*given, gate="sigmoid")
    torch.testing.assert_close(added.activated * added.up + kept.activated * kept.up, cells)
    torch.testing.assert_close(shown.activated * shown.up, outputs)
    assert [item.name for item in (added, kept, shown)] == ["input", "forget", "output"]
    given = [item.detach() for item in arguments("gru", torch.float64)]
    reset, update = _recurrence.gru_gates(*given, gate="sigmoid")
    candidate = torch.tanh(given[0].chunk(3, -1)[2] + reset.activated * reset.up)
    mixed = update.activated * update.up + (1 - update.activated) * candidate
    torch.testing.assert_close(mixed, gru(*given))
    assert [item.name for item in (reset, update)] == ["reset", "update"]


@pytest.mark.parametrize("name", PAIRS)
def test_an_inspection_shows_each_gate_of_each_layer_once(name: str):
    module, _ = pair(name, torch.float32, 5, 5, num_layers=2)
    x = torch.randn(90, 4, 5)
    diagnosis = ek.inspect(module, [x], backward=False)
    wanted = {"lstm": ["lstm_input", "lstm_forget", "lstm_output"], "gru": ["gru_reset", "gru_update"]}[name]
    gates = [(site.op, site.call) for site in diagnosis.sites if site.kind == "gate"]
    assert gates == [(op, layer) for layer in range(2) for op in wanted]
    assert {site.status for site in diagnosis.sites} == {"measured"}
    last = max(site.id for site in diagnosis.sites if site.op == "lstm_output") if name == "lstm" else None
    for reading in diagnosis.readings:
        if reading.site == last and reading.stat == "product_absmax":
            assert reading.values[0] == pytest.approx(float(module(x)[0].detach().abs().max()))
    assert name == "gru" or any(reading.site == last for reading in diagnosis.readings)


def test_an_empty_batch_and_state_carried_from_call_to_call():
    for name in PAIRS:
        module, _ = pair(name, torch.float32)
        assert module(torch.randn(6, 0, 5))[0].shape == (6, 0, 7)
        x = torch.randn(6, 4, 5)
        first, middle = module(x[:2])
        second, _ = module(x[2:], middle)
        torch.testing.assert_close(torch.cat((first, second)), module(x)[0])


@pytest.mark.parametrize("name", PAIRS)
def test_autocast_decides_the_dtype_as_for_a_linear_layer(name: str):
    module, _ = pair(name, torch.float32)
    x = torch.randn(6, 4, 5)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = module(x)[0]
    assert narrow.dtype == torch.bfloat16
    torch.testing.assert_close(narrow.float(), module(x)[0], rtol=0, atol=0.02)


def test_what_does_not_fit_is_refused_with_the_remedy():
    module = LSTM(5, 7)
    with pytest.raises(UsageError, match=r"the input is \(6, 4, 3\); it must be \(length, batch, 5\)"):
        module(torch.randn(6, 4, 3))
    with pytest.raises(UsageError, match=r"the first state is \(1, 3, 7\) and must be .* \(1, 4, 7\)"):
        module(torch.randn(6, 4, 5), (torch.zeros(1, 3, 7), torch.zeros(1, 3, 7)))
    first = torch.zeros(1, 4, 7)
    with pytest.raises(UsageError, match=r"hx holds no first state; give a tuple \(h, c\)"):
        module(torch.randn(6, 4, 5), (first,))
    with pytest.raises(UsageError, match="hx holds no first state; give h, a tensor"):
        GRU(5, 7)(torch.randn(6, 4, 5), (first, first))
    with pytest.raises(UsageError, match="a length of 1 or more"):
        module(torch.randn(0, 4, 5))
    with pytest.raises(ConfigError, match="hidden_size is 0"):
        GRU(5, 0)
    with pytest.raises(ConfigError, match=r"dropout is 1\.5"):
        GRU(5, 7, dropout=1.5)
    with pytest.raises(UsageError, match="did you mean 'sigmoid'"):
        LSTM(5, 7, gate="sigmoyd")
    given = [item.detach() for item in arguments("lstm", torch.float32)]
    with pytest.raises(UsageError, match=r"weight is torch.float64, inputs are torch.float32"):
        lstm(given[0], given[1].double(), *given[2:])
    with pytest.raises(UsageError, match=r"hidden is \(2, 5\), and with inputs \(4, 3, 20\) it must be \(3, 5\)"):
        lstm(given[0], given[1], given[2][:2], given[3])
