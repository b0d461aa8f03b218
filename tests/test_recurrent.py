"""RNN, LSTM and GRU: kernels of both regimes against float64 torch.nn over the option grid, resets, cells, capture."""

from __future__ import annotations

import copy
import functools
import itertools
import pickle
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from compile_matrix.cases import pairwise
from forced_tiles import forced_tiles
from helpers import UNIT, PlannerOf, assert_close, counted_launches, nan_filled_memory, non_contiguous
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import tinynet
from tinynet.nn import recurrent as layers
from tinynet.ops.recurrent import recurrent, recurrent_operator
from tinynet_kernels import launch
from tinynet_kernels.recurrent import layer as kernels
from tinynet_kernels.recurrent.tiles import RecurrentTile
from tinynet_kernels.tiles import GemmTile, current_target

pytestmark = pytest.mark.kernels

REGIMES = ("persistent", "step")
INPUTS = 7
PERSISTENT_TILE = kernels.recurrent_tile
WEIGHT_GRADIENT = "recurrent_weight_gradient_kernel"
ERRORS = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}


@pytest.fixture(params=REGIMES)
def regime(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Both regimes, with 16 sequences per program, so that a batch of 18 takes two."""

    def rule(*arguments: Any) -> Any:
        tile: Any = PERSISTENT_TILE(*arguments)
        return None if request.param == "step" or tile is None else tile._replace(block_batch=16)

    monkeypatch.setattr(kernels, "recurrent_tile", rule)
    yield request.param


def build(
    kind: str, dtype: torch.dtype, device: str, hidden: int = 12, inputs: int = INPUTS, **options: Any
) -> tuple[Any, Any]:
    """Ours, and torch.nn's in float64 with the same parameters."""
    torch.manual_seed(hidden)
    recompute = {"recompute": options.pop("recompute")} if "recompute" in options else {}
    ours = getattr(layers, kind)(inputs, hidden, device=device, dtype=dtype, **recompute, **options)
    exact = getattr(torch.nn, kind)(inputs, hidden, device=device, dtype=torch.float64, **options)
    exact.load_state_dict(ours.state_dict())
    return ours, exact


def states(layer: Any, batch: int | None) -> tuple[Tensor, ...]:
    """Random h0, and c0 for the LSTM; unbatched where batch is None."""
    count = layer.num_layers * (2 if layer.bidirectional else 1)
    middle = () if batch is None else (batch,)
    weight = layer.weight_hh_l0
    shapes = [(count, *middle, layer.proj_size or layer.hidden_size), (count, *middle, layer.hidden_size)]
    wanted = shapes if layer.mode == "LSTM" else shapes[:1]
    return tuple(torch.randn(shape, device=weight.device).to(weight.dtype) for shape in wanted)


def run(
    layer: Any,
    x: Tensor,
    hx: tuple[Tensor, ...] | None,
    upstream: list[Tensor] | None,
    lengths: Any = None,
    **more: Any,
) -> tuple[list[Tensor], list[Tensor]]:
    """(outputs, gradients of input, states and parameters) in the layer's dtype."""
    dtype = layer.weight_hh_l0.dtype
    x = x.detach().to(dtype).requires_grad_()
    hx = None if hx is None else tuple(state.detach().to(dtype).requires_grad_() for state in hx)
    given: Any = x
    if lengths is not None:
        given = pack_padded_sequence(x, lengths, batch_first=layer.batch_first, enforce_sorted=False)
    start = None if hx is None else hx if layer.mode == "LSTM" else hx[0]
    y, last = layer(given, start, **more)
    y = y.data if isinstance(y, PackedSequence) else y
    outputs = [y, *(last if isinstance(last, tuple) else (last,))]
    if upstream is None:
        upstream = [torch.randn_like(output) for output in outputs]
    leaves = [x, *(hx or ()), *layer.parameters()]
    gradients = torch.autograd.grad(outputs, leaves, [grad.to(dtype) for grad in upstream])
    return outputs, list(gradients)


def check(
    ours: Any, exact: Any, x: Tensor, hx: Any = None, lengths: Any = None, reset: Tensor | None = None
) -> list[str]:
    """Compares outputs and every gradient with float64; returns the names of the launches.

    torch.nn has no reset: there the oracle is our reference, which other tests compare with torch.nn.
    """
    error = ERRORS[x.dtype]
    before = x.clone()
    torch.manual_seed(1)
    shapes = exact(x.double() if lengths is None else _packed(exact, x.double(), lengths), _start(exact, hx))
    upstream = [torch.randn_like(output).to(x.dtype) for output in _flat(shapes)]
    more = {} if reset is None else {"reset": reset}
    with nan_filled_memory(), counted_launches() as launches:
        actual, gradients = run(ours, x, hx, upstream, lengths, **more)
    with tinynet.engine("reference"):
        oracle = exact if reset is None else copy.deepcopy(ours).double()
        expected, exact_gradients = run(oracle, x, hx, upstream, lengths, **more)
    assert any("forward_kernel" in name for name in launches) and any("backward" in name for name in launches)
    for position, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert a.dtype == x.dtype
        assert_close(a, e, error, f"output {position}")
    for position, (a, e) in enumerate(zip(gradients, exact_gradients, strict=True)):
        assert_close(a, e, error, f"gradient {position}")
    assert torch.equal(x, before)
    return launches


def _packed(layer: Any, x: Tensor, lengths: Any) -> PackedSequence:
    return pack_padded_sequence(x, lengths, batch_first=layer.batch_first, enforce_sorted=False)


def _start(layer: Any, hx: Any) -> Any:
    if hx is None:
        return None
    doubles = tuple(state.double() for state in hx)
    return doubles if layer.mode == "LSTM" else doubles[0]


def _flat(result: Any) -> list[Tensor]:
    y, last = result
    return [y.data if isinstance(y, PackedSequence) else y, *(last if isinstance(last, tuple) else (last,))]


# Every value of an option meets every value of every other one. relu's derivative jumps where rounding changes a sign,
# so 16-bit relu has a separate test.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "tanh": ("RNN", {}),
    "relu": ("RNN", {"nonlinearity": "relu"}),
    "lstm": ("LSTM", {}),
    "projected": ("LSTM", {"proj_size": 5}),
    "gru": ("GRU", {}),
}
GRID = pairwise({
    "kind": tuple(KINDS),
    "num_layers": (1, 2),
    "bidirectional": (False, True),
    "bias": (True, False),
    "batch_first": (False, True),
    "packed": (False, True),
    "reset": (False, True),
    "recompute": (False, True),
    "initial": (True, False),
    "dtype": (torch.float32, torch.bfloat16),
})  # fmt: skip


@pytest.mark.parametrize(
    "row", [row for row in GRID if (row["kind"], row["dtype"]) != ("relu", torch.bfloat16)], ids=str
)
def test_option_grid(row: dict[str, Any], regime: str, device: str) -> None:
    kind, own = KINDS[row["kind"]]
    options = {name: row[name] for name in ("num_layers", "bidirectional", "bias", "batch_first", "recompute")}
    ours, exact = build(kind, row["dtype"], device, **options, **own)
    x = torch.randn(4, 5, INPUTS, device=device).to(row["dtype"])
    batch = 4 if ours.batch_first else 5
    check(
        ours,
        exact,
        x,
        states(ours, batch) if row["initial"] else None,
        torch.tensor([3, 4, 1, 4, 2][:batch]) if row["packed"] else None,
        torch.rand(4, 5, device=device) < 0.3 if row["reset"] else None,
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_relu_in_16_bit_away_from_its_kink(dtype: torch.dtype, regime: str, device: str) -> None:
    ours, exact = build("RNN", dtype, device, nonlinearity="relu", bidirectional=True)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            parameter.mul_(0.3)
            if name.startswith("bias_ih"):
                parameter.copy_(torch.tensor([1.5, -1.5], device=device).repeat(6))
    exact.load_state_dict(ours.state_dict())
    check(ours, exact, torch.randn(5, 4, INPUTS, device=device).to(dtype), states(ours, 4), torch.tensor([3, 5, 1, 4]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_16_bit(kind: str, dtype: torch.dtype, regime: str, device: str) -> None:
    ours, exact = build(kind, dtype, device, bidirectional=True)
    check(ours, exact, torch.randn(3, 4, INPUTS, device=device).to(dtype), states(ours, 4))


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_two_blocks_of_sequences_and_units_past_a_tile(kind: str, regime: str, device: str) -> None:
    ours, exact = build(kind, torch.float32, device, hidden=20, bidirectional=True)
    lengths = torch.tensor([1, 3, *[2] * 16])
    check(ours, exact, torch.randn(3, 18, INPUTS, device=device), states(ours, 18), lengths)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_gradients_of_several_tiles(kind: str, regime: str, device: str) -> None:
    """The GRU's dr and dz, dn and dq fill separate tiles, of weights and of biases, the last ones partial."""
    ours, exact = build(kind, torch.float32, device, hidden=40, bidirectional=True)
    check(ours, exact, torch.randn(3, 4, INPUTS, device=device), states(ours, 4), torch.tensor([2, 3, 1, 2]))


# The persistent kernels' tile, or None for kernels of one step; the layer, and its options.
SMALL_TILES: dict[str, tuple[RecurrentTile | None, str, dict[str, Any]]] = {
    "tanh steps": (None, "RNN", {}),
    "relu steps": (None, "RNN", {"nonlinearity": "relu", "bias": False}),
    "lstm steps, dense": (None, "LSTM", {}),
    "projected steps": (None, "LSTM", {"proj_size": 18}),
    "gru steps": (None, "GRU", {}),
    "projected, dense": (RecurrentTile(16, 32, 32, 4), "LSTM", {"proj_size": 18, "recompute": True}),
    "gru": (RecurrentTile(16, 32, 32, 4), "GRU", {"inputs": 16, "hidden": 24, "recompute": True}),
    "gru without bias": (RecurrentTile(16, 32, 32, 4, True), "GRU", {"bias": False, "recompute": True}),
}


@pytest.mark.parametrize("name", SMALL_TILES)
def test_small_tiles(name: str, device: str) -> None:
    """Blocks of sequences and units, the last ones partial, several steps of each product, two splits of the rows."""
    tile, kind, options = SMALL_TILES[name]
    T, B = 4, 19
    ours, exact = build(kind, torch.float32, device, **{"hidden": 20, "bidirectional": True, **options})
    lengths = None if name.endswith("dense") else torch.tensor([3, 4, 1, *[4] * 8, *[3] * 8])
    reset = torch.rand(T, B, device=device) < 0.2
    with forced_tiles(
        recurrent_tile=tile,
        recurrent_step_tile=GemmTile(16, 16, 16, 4, 1),
        recurrent_gates_tile=GemmTile(16, 16, 8, 4, 1),
        linear_tile=GemmTile(16, 32, 16, 4, 1),
        split_count=2,
        GROUP=2,
    ):
        check(ours, exact, torch.randn(T, B, ours.input_size, device=device), states(ours, B), lengths, reset)


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("batch", [1, 5, 17, 33])
@pytest.mark.parametrize("kind", KINDS)
def test_interleaved_sequences(
    kind: str, batch: int, reset: bool, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    """One, two and three programs, each with every first, second or third sequence of the sorted batch."""
    tile: Any = PERSISTENT_TILE
    monkeypatch.setattr(kernels, "recurrent_tile", lambda *rest: tile(*rest)._replace(block_batch=16, interleaved=True))
    name, own = KINDS[kind]
    ours, exact = build(name, torch.float32, device, bidirectional=True, recompute=batch == 17, **own)
    lengths = torch.randint(1, 7, (batch,))
    lengths[batch // 2] = 6
    mask = torch.rand(6, batch, device=device) < 0.2 if reset else None
    check(ours, exact, torch.randn(6, batch, INPUTS, device=device), states(ours, batch), lengths, mask)


@pytest.mark.parametrize(("steps", "batch"), [(1, 1), (1, 3), (3, 1)])
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_one_step_or_one_sequence(kind: str, steps: int, batch: int, regime: str, device: str) -> None:
    ours, exact = build(kind, torch.float32, device, bidirectional=True)
    check(ours, exact, torch.randn(steps, batch, INPUTS, device=device))


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_batch_first_and_unbatched_and_strides(kind: str, device: str) -> None:
    ours, exact = build(kind, torch.float32, device, batch_first=True)
    x = torch.randn(4, 3, INPUTS, device=device)
    check(ours, exact, x, states(ours, 4))
    check(ours, exact, non_contiguous(x).detach(), states(ours, 4))
    check(ours, exact, x, states(ours, 4), torch.tensor([2, 3, 3, 1]))
    check(ours, exact, x[0], states(ours, None))


def test_packed_keeps_its_order_and_batch_sizes(device: str) -> None:
    ours, exact = build("LSTM", torch.float32, device, batch_first=True)
    x = torch.randn(3, 4, INPUTS, device=device)
    packed = pack_padded_sequence(x, torch.tensor([2, 4, 3]), batch_first=True, enforce_sorted=False)
    y, (h, _) = ours(packed)
    expected, (expected_h, _) = exact(packed.to(torch.float64))
    assert torch.equal(y.batch_sizes, packed.batch_sizes)
    assert y.unsorted_indices is packed.unsorted_indices
    assert_close(y.data, expected.data, 1e-5)
    assert_close(h, expected_h, 1e-5)


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_recompute_saves_only_y_and_c(kind: str, device: str) -> None:
    ours, _ = build(kind, torch.float32, device, recompute=True, bidirectional=True)
    T, B, D, H = 5, 4, 2, ours.hidden_size
    x, hx = torch.randn(T, B, INPUTS, device=device), states(ours, B)

    def saved_elements() -> int:
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()), lambda t: t):
            ours(x, hx if kind == "LSTM" else hx[0])
        return sum(sizes)

    given = x.numel() + hx[0].numel() + sum(parameter.numel() for parameter in ours.parameters())
    y_and_c = T * B * D * H * (2 if kind == "LSTM" else 1)
    assert saved_elements() == given + y_and_c
    assert "recompute=True" in repr(ours)
    ours.recompute = False
    assert saved_elements() >= given + y_and_c + T * B * D * H and "recompute" not in repr(ours)


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_the_reference_is_torch_nns(kind: str, device: str) -> None:
    """An all-false mask takes the loop in plain PyTorch, no mask PyTorch's own operator."""
    options = {"proj_size": 5} if kind == "LSTM" else {}
    ours, exact = build(kind, torch.float64, device, bidirectional=True, num_layers=2, **options)
    x = torch.randn(5, 4, INPUTS, device=device, dtype=torch.float64)
    hx, lengths = states(ours, 4), torch.tensor([3, 5, 1, 4])
    with tinynet.engine("reference"):
        for given in (None, lengths):
            torch.manual_seed(4)
            expected = run(exact, x, hx, None, given)
            for more in ({}, {"reset": torch.zeros(5, 4, dtype=torch.bool, device=device)}):
                torch.manual_seed(4)
                actual = run(ours, x, hx, None, given, **more)
                for a, e in zip((*actual[0], *actual[1]), (*expected[0], *expected[1]), strict=True):
                    torch.testing.assert_close(a, e)


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_reset_starts_a_sequence_afresh(kind: str, regime: str, device: str) -> None:
    """Each part between resets is a separate sequence, forwards and backwards, regardless of the initial state."""
    ours, _ = build(kind, torch.float32, device, bidirectional=True)
    x = torch.randn(6, INPUTS, device=device)
    reset = torch.tensor([True, False, True, True, False, False], device=device)
    hx = states(ours, None)
    y, _ = ours(x, hx if kind == "LSTM" else hx[0], reset=reset)
    forward = torch.cat([ours(part)[0] for part in x.split([2, 1, 3])])[:, :12]
    assert_close(y[:, :12], forward, 1e-6)
    backward = torch.cat([ours(part)[0] for part in x[1:].split([2, 1, 2])])[:, 12:]
    assert_close(y[:5][[1, 2, 3]][:, 12:], backward[[0, 1, 2]], 1e-6)


def test_reset_of_packed_sequences_goes_with_its_tokens(device: str) -> None:
    """A mask packed like the input, a padded one, and one cut to the longest sequence give the same results."""
    ours, _ = build("GRU", torch.float32, device, batch_first=True)
    x, reset = torch.randn(4, 6, INPUTS, device=device), torch.rand(4, 6, device=device) < 0.4
    for lengths, is_sorted in ((torch.tensor([2, 5, 1, 4]), False), (torch.tensor([5, 4, 2, 1]), True)):
        pack = functools.partial(pack_padded_sequence, lengths=lengths, batch_first=True, enforce_sorted=is_sorted)
        y, h = ours(pack(x), reset=reset)
        for mask in (pack(reset), reset[:, :5]):
            again, h_again = ours(pack(x), reset=mask)
            assert torch.equal(again.data, y.data) and torch.equal(h_again, h)
        for b, length in enumerate(lengths):
            alone, last = ours(x[b, :length], reset=reset[b, :length])
            assert_close(pad_packed_sequence(y, batch_first=True)[0][b, :length], alone, 1e-6)
            assert_close(h[:, b], last, 1e-6)


def test_dropout_between_layers_uses_pytorchs_generator(device: str) -> None:
    ours, _ = build("GRU", torch.float32, device, num_layers=2, dropout=0.5)
    x = torch.randn(4, 3, INPUTS, device=device)
    torch.manual_seed(5)
    y, _ = ours(x)
    groups = ours.all_weights
    torch.manual_seed(5)
    between, _, _ = recurrent("gru", x, None, None, groups[:1])
    between = torch.nn.functional.dropout(between.view(12, -1), 0.5).view_as(between)
    assert torch.equal(y, recurrent("gru", between, None, None, groups[1:])[0])
    ours.eval()
    assert torch.equal(ours(x)[0], ours(x)[0])
    with pytest.warns(UserWarning, match="num_layers greater than 1"):
        layers.LSTM(3, 4, dropout=0.5)


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_eval_mode_retained_graph_and_bitwise_equal_reruns(kind: str, regime: str, device: str) -> None:
    ours, _ = build(kind, torch.float32, device, bidirectional=True)
    ours.eval()
    x = torch.randn(4, 3, INPUTS, device=device, requires_grad=True)
    results = []
    for _ in range(2):
        y, _ = ours(x)
        upstream = torch.ones_like(y).cumsum(0)
        for _ in range(2):
            results.append(torch.autograd.grad(y, (x, *ours.parameters()), upstream, retain_graph=True))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_long_sequences_drift_no_more_than_pytorchs(kind: str, dtype: torch.dtype, device: str) -> None:
    """After 4,096 steps, and for gradients after as many back, the error is PyTorch's in that dtype or a rounding."""
    if current_target().kind == "interpreter":
        pytest.skip("the interpreter would take minutes")
    T, H = 4096, 16
    ours, exact = build(kind, dtype, device, hidden=H)
    theirs = getattr(torch.nn, kind)(INPUTS, H, device=device, dtype=dtype)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(T, 1, INPUTS, device=device)
    upstream = [torch.randn_like(output).to(dtype) for output in _flat(exact(x.double()))]
    results = []
    for layer in (exact, theirs, ours):
        outputs, gradients = run(layer, x.to(dtype), None, upstream)
        y, dx = outputs[0], gradients[0]
        results.append((y[:256], y[-256:], *outputs[1:], dx[-256:], dx[:256], *gradients[1:]))

    def errors(result: tuple[Tensor, ...]) -> list[float]:
        pairs = zip(result, results[0], strict=True)
        return [((a - e).norm() / e.norm()).item() for a, e in ((a.double(), e.double()) for a, e in pairs)]

    theirs_off, ours_off = errors(results[1]), errors(results[2])
    parameters = len(list(ours.parameters()))  # their gradients are sums over all steps, too
    allowed = [2 * UNIT[dtype]] * (len(ours_off) - parameters) + [ERRORS[dtype]] * parameters
    for a, e, rounding in zip(ours_off, theirs_off, allowed, strict=True):
        assert a <= max(1.2 * e, rounding)
    assert ours_off[1] < 1.5 * ours_off[0], "the error of y grows"


def test_gradient_through_the_last_state_alone(regime: str, device: str) -> None:
    ours, exact = build("LSTM", torch.float32, device)
    x = torch.randn(4, 3, INPUTS, device=device)
    for layer in (ours, exact):
        layer(x.to(layer.weight_hh_l0.dtype))[1][1].square().sum().backward()
    for (name, a), b in zip(ours.named_parameters(), exact.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None
        assert_close(a.grad, b.grad, 1e-5, name)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["RNN", "LSTM", "LSTM projected", "GRU"])
def test_launches(
    kind: str, packed: bool, recompute: bool, regime: str, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    """Per layer: persistent 2 forward, at most 6 backward; per step T + 1 and at most T + 5, or 2 T if projected.

    Launches are counted, not run, and the reduction over the rows is split in two.
    """
    monkeypatch.setattr(launch, "planner", PlannerOf(lambda *_: True))
    kind, *projected = kind.split()
    T, B, H = 4, 100, 12
    lengths = torch.arange(B) % T + 1 if packed else None
    own = {"proj_size": 5} if projected else {}
    for layers_, bidirectional, bias, reset in itertools.product((1, 3), (False, True), (True, False), (False, True)):
        options = {"num_layers": layers_, "bidirectional": bidirectional, "bias": bias, **own}
        layer = getattr(layers, kind)(INPUTS, H, device=device, recompute=recompute, **options)
        x = torch.randn(T, B, INPUTS, device=device, requires_grad=True)
        given = x if lengths is None else pack_padded_sequence(x, lengths, enforce_sorted=False)
        hx = tuple(state.requires_grad_() for state in states(layer, B))
        mask = torch.zeros(T, B, dtype=torch.bool, device=device) if reset else None
        with forced_tiles(split_count=2), counted_launches() as forward:
            outputs = _flat(layer(given, hx if kind == "LSTM" else hx[0], reset=mask))
        with forced_tiles(split_count=2), counted_launches() as backward:
            leaves = [x, *hx, *layer.parameters()]
            torch.autograd.grad(outputs, leaves, [torch.ones_like(output) for output in outputs])
        steps = (2 * T if projected else T) if regime == "step" else 1
        assert len(forward) == layers_ * (steps + 1), options
        assert len(backward) <= layers_ * (steps + 5), options
        assert forward.count("linear_forward_kernel") == layers_
        assert backward.count(WEIGHT_GRADIENT) == backward.count("sum_partials_kernel") == layers_


def test_long_reduction_is_split_within_the_launches_allowed(device: str) -> None:
    ours, exact = build("GRU", torch.float32, device, bidirectional=True)
    launches = check(ours, exact, torch.randn(13, 11, INPUTS, device=device), states(ours, 11))
    if current_target().kind == "interpreter":
        assert "sum_partials_kernel" in launches
    assert len(launches) <= 2 + 6


def test_every_launch_has_a_cost(monkeypatch: pytest.MonkeyPatch, regime: str, device: str) -> None:
    """An LSTM's recurrence takes 2 R (4 H P + H P) operations in either regime and direction of time."""
    operations: list[int] = []

    def run(kernel: Any, grid: Any, arguments: tuple[Any, ...], constants: Mapping[str, Any]) -> bool:
        cost = launch.cost_of(kernel, {**dict(zip(kernel.arg_names, arguments, strict=False)), **constants})
        assert cost is not None and cost.bytes > 0, kernel.__name__
        operations.append(cost.flops if kernel.__name__.startswith(("lstm", "step")) else 0)
        return False

    monkeypatch.setattr(launch, "planner", PlannerOf(run))
    ours, _ = build("LSTM", torch.float32, device, proj_size=5)
    x = torch.randn(4, 3, INPUTS, device=device)
    y, _ = ours(x)
    rows, hidden, outputs = 12, 12, 5
    assert sum(operations) == 2 * rows * (4 * hidden + hidden) * outputs
    operations.clear()
    y.sum().backward()
    assert sum(operations) == 2 * rows * (4 * hidden + hidden) * outputs


def test_only_the_wanted_gradients(device: str) -> None:
    ours, _ = build("GRU", torch.float32, device)
    x = torch.randn(4, 3, INPUTS, device=device)
    ours.requires_grad_(False)
    ours.weight_hh_l0.requires_grad_()
    with counted_launches() as launches:
        ours(x)[0].sum().backward()
    assert launches == ["linear_forward_kernel", "gru_forward_kernel", "gru_backward_kernel", WEIGHT_GRADIENT]
    with torch.no_grad():
        assert ours(x)[0].grad_fn is None


def test_autocast(device: str) -> None:
    ours, exact = build("LSTM", torch.float32, device)
    x = torch.randn(4, 3, INPUTS, device=device)
    with torch.autocast(device, dtype=torch.bfloat16), counted_launches() as launches:
        y, (h, c) = ours(x)
    assert y.dtype is h.dtype is c.dtype is torch.bfloat16 and "lstm_forward_kernel" in launches
    assert_close(y, exact(x.double())[0], 2e-2)
    y.float().sum().backward()
    assert ours.weight_hh_l0.grad.dtype is torch.float32


@pytest.mark.parametrize(
    ("kind", "options"), [("RNN", {}), ("LSTM", {"bidirectional": True, "proj_size": 5}), ("GRU", {"recompute": True})]
)
def test_compiled_fullgraph(kind: str, options: dict[str, Any], device: str) -> None:
    ours, _ = build(kind, torch.float32, device, **options)
    x = torch.randn(3, 4, INPUTS, device=device)
    hx = states(ours, 4)
    torch.manual_seed(6)
    expected, gradients = run(ours, x, hx, None)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    with counted_launches() as launches:
        torch.manual_seed(6)
        actual, compiled_gradients = run(compiled, x, hx, None)
    assert any("forward_kernel" in name for name in launches) and any("backward" in name for name in launches)
    for a, e in zip((*actual, *compiled_gradients), (*expected, *gradients), strict=True):
        torch.testing.assert_close(a, e)


@pytest.mark.parametrize("mode", ["rnn_relu", "lstm", "gru"])
def test_registered_operators(mode: str, device: str) -> None:
    gates, H = {"rnn_relu": 1, "lstm": 4, "gru": 3}[mode], 6
    shapes = [(8, INPUTS), (gates * H, INPUTS), (1, gates * H, H), (gates * H,), (gates * H,)]
    tensors: list[Any] = [torch.randn(shape, device=device, requires_grad=True) for shape in shapes]
    h0 = torch.randn(1, 4, H, device=device, requires_grad=True)
    c0 = torch.randn(1, 4, H, device=device, requires_grad=True) if mode == "lstm" else None
    arguments = (*tensors, None, h0, c0, None, None, mode, False, True)
    torch.library.opcheck(recurrent_operator.forward, arguments)
    with torch.no_grad():
        y, h_n, c_n, *saved = recurrent_operator.registered(*arguments)
        read = [*tensors, None, y, h0, *saved, None, None]
        wanted = [True, True, True, True, False, False, True, mode == "lstm", False, False]
        torch.library.opcheck(recurrent_operator.backward, ([y, h_n, c_n], read, mode, False, wanted))


@pytest.mark.parametrize("name", ["RNNCell", "LSTMCell", "GRUCell"])
def test_cells(name: str, device: str) -> None:
    for options, batch in (({}, 3), ({"bias": False}, None)):
        torch.manual_seed(7)
        ours = getattr(layers, name)(INPUTS, 6, device=device, **options)
        exact = getattr(torch.nn, name)(INPUTS, 6, device=device, dtype=torch.float64, **options)
        exact.load_state_dict(ours.state_dict())
        leading = () if batch is None else (batch,)
        x = torch.randn(*leading, INPUTS, device=device)
        h, c = torch.randn(*leading, 6, device=device), torch.randn(*leading, 6, device=device)
        results = []
        for cell, dtype in ((ours, torch.float32), (exact, torch.float64)):
            leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in (x, h, c)]
            given = (leaves[1], leaves[2]) if name == "LSTMCell" else leaves[1]
            out = cell(leaves[0], given)
            outputs = out if isinstance(out, tuple) else (out,)
            targets = [*leaves[: len(outputs) + 1], *cell.parameters()]
            upstream = [torch.ones_like(output).cumsum(-1) for output in outputs]
            results.append(
                (*outputs, *torch.autograd.grad(outputs, targets, upstream), *_cell_outputs(cell, leaves[0]))
            )
        for a, e in zip(*results, strict=True):
            assert_close(a, e, 1e-5)


def _cell_outputs(cell: Any, x: Tensor) -> tuple[Tensor, ...]:
    out = cell(x)
    return out if isinstance(out, tuple) else (out,)


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_parameters_are_torch_nns(kind: str) -> None:
    options: dict[str, Any] = {"num_layers": 2, "bidirectional": True} | ({"proj_size": 3} if kind == "LSTM" else {})
    torch.manual_seed(8)
    ours = getattr(layers, kind)(5, 4, **options)
    torch.manual_seed(8)
    theirs = getattr(torch.nn, kind)(5, 4, **options)
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert repr(ours) == repr(theirs)
    ours.flatten_parameters()
    x = torch.randn(3, 2, 5)
    for copied in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(copied(x)[0], ours(x)[0])
    assert [len(group) for group in ours.all_weights] == [len(group) for group in theirs.all_weights]


def test_positional_arguments_are_torch_nns() -> None:
    layer = layers.RNN(5, 4, 2, "relu", False, True)
    assert (layer.num_layers, layer.nonlinearity, layer.bias, layer.batch_first) == (2, "relu", False, True)
    layer = layers.LSTM(5, 4, 2, False, True, 0.25, True, 3)
    assert (layer.bias, layer.batch_first, layer.dropout, layer.bidirectional, layer.proj_size) == (
        *(False, True, 0.25, True),
        3,
    )


def test_refuses_what_does_not_fit(device: str) -> None:
    lstm = layers.LSTM(5, 4, device=device)
    x = torch.randn(3, 2, 5, device=device)
    h, c = torch.zeros(1, 2, 4, device=device), torch.zeros(1, 2, 4, device=device)
    with pytest.raises(ValueError, match="input must have 5 features"):
        lstm(x[..., :4])
    with pytest.raises(ValueError, match="2 or 3 dimensions"):
        lstm(x[None])
    with pytest.raises(ValueError, match="at least one step"):
        lstm(x[:0])
    with pytest.raises(ValueError, match=r"lstm: h0 must be \[1, 2, 4\]"):
        lstm(x, (h[:, :1], c))
    with pytest.raises(ValueError, match=r"lstm: c0 must be \[1, 2, 4\]"):
        lstm(x, (h, c[..., :3]))
    with pytest.raises(ValueError, match="hx must have 3 dimensions"):
        lstm(x, (h[0], c[0]))
    with pytest.raises(TypeError, match="h0 has dtype"):
        lstm(x, (h.half(), c.half()))
    with pytest.raises(TypeError, match="has dtype"):
        lstm(x.half())
    with pytest.raises(ValueError, match="reset must be"):
        lstm(x, reset=torch.zeros(2, 3, dtype=torch.bool, device=device))
    with pytest.raises(TypeError, match="unexpected keyword argument .proj_size"):
        layers.GRU(5, 4, proj_size=2)  # pyright: ignore[reportCallIssue]
    with pytest.raises(ValueError, match="nonlinearity must be"):
        layers.RNN(5, 4, nonlinearity="gelu")
    with pytest.raises(ValueError, match="mode must be one of"):
        recurrent("elman", x, None, None, lstm.all_weights)
    with pytest.raises(ValueError, match="as many dimensions as input"):
        layers.GRUCell(5, 4, device=device)(x[0], h)


def test_packed_sequences_under_another_default_device():
    from tinynet_kernels.recurrent import packed_sequences

    with torch.device("meta"):
        sequences = packed_sequences(torch.tensor([3, 2, 2], device="cpu"), torch.device("cpu"))
    assert sequences.lengths is not None and sequences.lengths.tolist() == [3, 3, 1]
