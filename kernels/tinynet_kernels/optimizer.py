"""Optimizer steps over many tensors in one launch: SGD with momentum, Adam and AdamW.

SGD, with g = (-) gradient + weight_decay p:

    b <- momentum b + grad_weight g
    p <- p - lr (g + momentum b  if nesterov  else  b)

Adam, with g as above (AdamW: g = (-) gradient and p <- decay p first):

    m <- beta1 m + (1 - beta1) g
    v <- beta2 v + (1 - beta2) g^2           amsgrad: u <- max(u, v), and u stands for v below
    p <- p - step_size m / (sqrt(v) inverse_root_correction + eps)

with step_size = lr / (1 - beta1^step) and inverse_root_correction = 1 / sqrt(1 - beta2^step).

Tiling: the parameters, gradients and states of a launch share a dtype, and those of one parameter a dense layout, so
each is walked flat, one block per program. A `PointerTable` in device memory says where they lie: one row per
parameter, (elements, address of the parameter, of its gradient, of its states), and one pair per program, (row, block).
The number of launches so depends neither on the number of tensors nor on their sizes. Arithmetic is fp32 whatever the
dtype; what depends on hyperparameters alone is computed in float64, on the host or, for CUDA graphs, on the device by
PyTorch (`device_numbers`). Every element is loaded once and stored once, by one lane.

Source: torch.optim.SGD; Kingma and Ba 2015, "Adam"; Loshchilov and Hutter 2019, "Decoupled weight decay
regularization"; Reddi et al. 2018, "On the convergence of Adam and beyond" (amsgrad, as PyTorch computes it).
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from tinynet_kernels import replays
from tinynet_kernels.constants import constexpr
from tinynet_kernels.device_numbers import Number, device_numbers, numbers_of_block
from tinynet_kernels.launch import Cost, Problem, Reached, costs
from tinynet_kernels.tiles import ceil_div, current_target, flat_block

ALIGNMENT = 16  # bytes that the widest load of a lane takes at once
TRITON_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


class Sgd(NamedTuple):
    """What `sgd_kernel` is compiled for, beside its tile; the flags are torch.optim.SGD's."""

    has_momentum: bool
    nesterov: bool
    has_weight_decay: bool
    maximize: bool


class Adam(NamedTuple):
    """What `adam_kernel` is compiled for, beside its tile.

    Attributes:
        has_weight_decay: Adam's, into the gradient; AdamW's comes as `decay` = 1 - lr weight_decay, 1 for Adam.
        amsgrad: whether the table has a column for the largest exp_avg_sq.
        maximize: as in torch.optim.Adam.
    """

    has_weight_decay: bool
    amsgrad: bool
    maximize: bool


class TableTile(NamedTuple):
    """How a `PointerTable` is walked.

    Attributes:
        columns: entries of one row.
        block: elements of one program.
        aligned: whether every address is a multiple of 16 bytes. Full blocks then take loads of 16 bytes; a mask would
            split them.
    """

    columns: int
    block: int
    aligned: bool


@triton.jit
def table_block(table_ptr, block_ptr, number, TILE: constexpr):
    """Block `number`: its row of the table, its first element (int64), and how many elements are left from there on."""
    number = tl.cast(number, tl.int64)
    row = tl.load(block_ptr + 2 * number)  # in bounds: one pair per block
    block = tl.load(block_ptr + 2 * number + 1)  # in bounds: as above
    row_ptr = table_ptr + row.to(tl.int64) * TILE.columns
    start = block.to(tl.int64) * TILE.block
    left = tl.load(row_ptr) - start  # in bounds: the row's first column
    return row_ptr, start, tl.minimum(left, TILE.block).to(tl.int32)


@triton.jit
def tensor_pointer(column_ptr, start, DTYPE: constexpr, TILE: constexpr):
    """Pointer to element `start` of the tensor whose address is at `column_ptr`."""
    address = tl.load(column_ptr)  # in bounds: a column of the program's row
    pointer = address.to(tl.pointer_type(DTYPE)) + start  # pyright: ignore[reportArgumentType]
    return tl.multiple_of(pointer, 16) if TILE.aligned else pointer  # start counts whole blocks


@triton.jit
def load_block(pointer, left, TILE: constexpr):
    """The first `left` elements of a block in fp32, 0 after them; all elements where `left` is None."""
    offset = tl.arange(0, TILE.block)
    if left is None:
        return tl.load(pointer + offset).to(tl.float32)  # in bounds: a full block
    else:
        return tl.load(pointer + offset, mask=offset < left, other=0.0).to(tl.float32)


@triton.jit
def store_block(pointer, values, left, TILE: constexpr):
    """The first `left` elements of a block; all where `left` is None."""
    offset = tl.arange(0, TILE.block)
    mask = None if left is None else offset < left
    tl.store(pointer + offset, values.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def sgd_block(row_ptr, start, left, scalars, SPEC: constexpr, DTYPE: constexpr, TILE: constexpr):
    """The step of the first `left` elements of one block; all of them where `left` is None."""
    lr, momentum, grad_weight, weight_decay = scalars
    parameter_ptr = tensor_pointer(row_ptr + 1, start, DTYPE, TILE)
    updated = load_block(parameter_ptr, left, TILE)
    gradient = load_block(tensor_pointer(row_ptr + 2, start, DTYPE, TILE), left, TILE)
    if SPEC.maximize:
        gradient = -gradient
    if SPEC.has_weight_decay:
        gradient += weight_decay * updated
    if SPEC.has_momentum:
        buffer_ptr = tensor_pointer(row_ptr + 3, start, DTYPE, TILE)
        velocity = momentum * load_block(buffer_ptr, left, TILE) + grad_weight * gradient
        gradient = gradient + momentum * velocity if SPEC.nesterov else velocity
    updated -= lr * gradient
    tl.debug_barrier()  # in a small block several warps hold the same element: all load before any stores
    if SPEC.has_momentum:
        store_block(buffer_ptr, velocity, left, TILE)
    store_block(parameter_ptr, updated, left, TILE)


@triton.jit
def sgd_kernel(
    table_ptr,
    block_ptr,
    numbers_ptr,
    lr,
    momentum,
    grad_weight,
    weight_decay,
    SPEC: constexpr,
    DTYPE: constexpr,
    TILE: constexpr,
):
    """One SGD step in place; columns: elements, parameter, gradient and, with momentum, its buffer."""
    row_ptr, start, left = table_block(table_ptr, block_ptr, tl.program_id(0), TILE)
    scalars = (lr, momentum, grad_weight, weight_decay)
    if numbers_ptr is not None:
        left, scalars = numbers_of_block(numbers_ptr, block_ptr, tl.program_id(0), left, 4)
    if TILE.aligned and left == TILE.block:
        sgd_block(row_ptr, start, None, scalars, SPEC, DTYPE, TILE)
    else:
        sgd_block(row_ptr, start, left, scalars, SPEC, DTYPE, TILE)


@triton.jit
def adam_block(row_ptr, start, left, scalars, SPEC: constexpr, DTYPE: constexpr, TILE: constexpr):
    """The step of the first `left` elements of one block; all of them where `left` is None."""
    step_size, beta1, one_minus_beta1, beta2, one_minus_beta2 = scalars[:5]
    eps, inverse_root_correction, weight_decay, decay = scalars[5:]
    parameter_ptr = tensor_pointer(row_ptr + 1, start, DTYPE, TILE)
    exp_avg_ptr = tensor_pointer(row_ptr + 3, start, DTYPE, TILE)
    exp_avg_sq_ptr = tensor_pointer(row_ptr + 4, start, DTYPE, TILE)
    updated = load_block(parameter_ptr, left, TILE)
    gradient = load_block(tensor_pointer(row_ptr + 2, start, DTYPE, TILE), left, TILE)
    exp_avg = load_block(exp_avg_ptr, left, TILE)
    exp_avg_sq = load_block(exp_avg_sq_ptr, left, TILE)
    if SPEC.maximize:
        gradient = -gradient
    if SPEC.has_weight_decay:
        gradient += weight_decay * updated
    exp_avg = beta1 * exp_avg + one_minus_beta1 * gradient
    exp_avg_sq = beta2 * exp_avg_sq + one_minus_beta2 * gradient * gradient
    second_moment = exp_avg_sq
    if SPEC.amsgrad:
        max_exp_avg_sq_ptr = tensor_pointer(row_ptr + 5, start, DTYPE, TILE)
        largest = load_block(max_exp_avg_sq_ptr, left, TILE)
        second_moment = tl.maximum(largest, exp_avg_sq, propagate_nan=tl.PropagateNan.ALL)
    denominator = tl.sqrt(second_moment) * inverse_root_correction + eps
    updated = decay * updated - step_size * exp_avg / denominator
    tl.debug_barrier()  # in a small block several warps hold the same element: all load before any stores
    store_block(exp_avg_ptr, exp_avg, left, TILE)
    store_block(exp_avg_sq_ptr, exp_avg_sq, left, TILE)
    if SPEC.amsgrad:
        store_block(max_exp_avg_sq_ptr, second_moment, left, TILE)
    store_block(parameter_ptr, updated, left, TILE)


@triton.jit
def adam_kernel(
    table_ptr,
    block_ptr,
    numbers_ptr,
    step_size,
    beta1,
    one_minus_beta1,
    beta2,
    one_minus_beta2,
    eps,
    inverse_root_correction,
    weight_decay,
    decay,
    SPEC: constexpr,
    DTYPE: constexpr,
    TILE: constexpr,
):
    """One Adam or AdamW step in place.

    Columns: elements, parameter, gradient, exp_avg, exp_avg_sq and, with amsgrad, max_exp_avg_sq.
    """
    row_ptr, start, left = table_block(table_ptr, block_ptr, tl.program_id(0), TILE)
    scalars = (step_size, beta1, one_minus_beta1, beta2, one_minus_beta2)
    scalars += (eps, inverse_root_correction, weight_decay, decay)
    if numbers_ptr is not None:
        left, scalars = numbers_of_block(numbers_ptr, block_ptr, tl.program_id(0), left, 9)
    if TILE.aligned and left == TILE.block:
        adam_block(row_ptr, start, None, scalars, SPEC, DTYPE, TILE)
    else:
        adam_block(row_ptr, start, left, scalars, SPEC, DTYPE, TILE)


class PointerTable:
    """Where the tensors of one launch lie, in device memory and renewed only as far as they moved.

    Gradients move from step to step, parameters and states hardly ever. On CUDA a new table travels from pinned memory
    without a wait of the host; PyTorch keeps that memory until it arrived. A CUDA graph copies in each replay, so its
    values stay as they are.

    Args:
        columns: as in `update`.

    Attributes:
        addresses: int64 [parameters * width], row by row: elements, then the address of each tensor.
        blocks: int32 [blocks, 2]: row of `addresses`, and block within its tensors.
        dtype, device: of all tensors.
        tile, num_warps: how kernels walk the table.
    """

    def __init__(self, columns: Sequence[Sequence[torch.Tensor]]) -> None:
        self._views: list[Any] = []
        self._captured: list[torch.Tensor] = []  # what CUDA graphs copy to the device in each replay
        self.update(columns)

    def follows(self, columns: Sequence[Sequence[torch.Tensor]]) -> bool:
        """Whether the table is that of these tensors: the same memory, seen as the same elements in the same order.

        Only the gradients may have moved; the table then follows them.
        """
        if self._views != _views(columns):
            return False
        gradients, fixed = _places(columns)
        if self._fixed != fixed:
            return False
        if self._gradients != gradients:
            if gradients.count(0) != self._gradients.count(0):  # one without memory, such as a zero tensor
                return False
            self._point_to(gradients)
        return True

    def update(self, columns: Sequence[Sequence[torch.Tensor]]) -> None:
        """Makes the table that of these tensors.

        Args:
            columns: the parameters, their gradients, and each of their states, in one order, on one device, of one
                dtype, each parameter's dense and in its layout.
        """
        if self.follows(columns):
            return
        self._views = []  # an update that fails leaves no table
        parameter, target = columns[0][0], current_target()
        sizes = [parameter.numel() for parameter in columns[0]]
        block, self.num_warps = flat_block(max(sizes), target)
        block = min(block, 1024) if target.kind == "cpu" else block
        pairs = [(row, place) for row, size in enumerate(sizes) for place in range(ceil_div(size, block))]
        self.dtype, self.device = parameter.dtype, parameter.device
        self.blocks = self._upload(torch.tensor(pairs, dtype=torch.int32, device="cpu"))
        self._first_blocks: torch.Tensor | None = None
        width = 1 + len(columns)
        self.tile = TableTile(width, block, aligned=False)
        gradients, self._fixed = _places(columns)
        self._entries = array("q", bytes(8 * width * len(sizes)))
        for column, entries in enumerate((sizes, self._fixed[0], gradients, *self._fixed[1:])):
            self._entries[column::width] = array("q", entries)
        self._values = torch.frombuffer(self._entries, dtype=torch.int64)  # in the same memory
        self._fixed_aligned = target.kind != "interpreter" and all(map(_all_aligned, self._fixed))
        self._point_to(gradients)
        self._views = _views(columns)

    @property
    def rows(self) -> int:
        """How many parameters the table has."""
        return len(self._entries) // self.tile.columns

    @property
    def first_blocks(self) -> torch.Tensor:
        """int32 [parameters]: the first block of each row, for kernels that combine a tensor's blocks."""
        if self._first_blocks is None:
            counts = [0, *(ceil_div(size, self.tile.block) for size in self._entries[:: self.tile.columns])]
            firsts = torch.tensor(counts[:-1], dtype=torch.int32, device="cpu").cumsum(0, dtype=torch.int32)
            self._first_blocks = self._upload(firsts)
        return self._first_blocks

    def _point_to(self, gradients: list[int]) -> None:
        self._gradients = gradients
        self._entries[2 :: self.tile.columns] = array("q", gradients)
        self.addresses = self._upload(self._values)
        self.tile = self.tile._replace(aligned=self._fixed_aligned and _all_aligned(gradients))

    def _upload(self, values: torch.Tensor) -> torch.Tensor:
        device = self.device
        if device.type != "cuda":
            return values if device.type in ("cpu", "meta") else values.to(device)
        if replays.recorder() is not None:
            return replays.placed(values, device)
        if torch.cuda.is_current_stream_capturing():
            self._captured.append(values.clone())
            return self._captured[-1].to(device, non_blocking=True)
        return values.pin_memory().to(device, non_blocking=True)


def _all_aligned(addresses: list[int]) -> bool:
    return not any(address % ALIGNMENT for address in addresses)


def _places(columns: Sequence[Sequence[torch.Tensor]]) -> tuple[list[int], list[list[int]]]:
    """The addresses of the gradients; those of the parameters and of each of their states."""
    parameters, gradients, *states = [[tensor.data_ptr() for tensor in column] for column in columns]
    return gradients, [parameters, *states]


def _views(columns: Sequence[Sequence[torch.Tensor]]) -> list[Any]:
    """All that a table depends on but the addresses. No tensor, for a gradient held here would never be freed."""
    tensors = [tensor for column in columns for tensor in column]
    return [
        current_target(),
        [(type(parameter), parameter.device) for parameter in columns[0]],
        [len(column) for column in columns],
        [tensor.dtype for tensor in tensors],
        [tensor.shape for tensor in tensors],
        [gradient.is_neg() for gradient in columns[1]],
        [tensor.is_contiguous() or tensor.stride() for tensor in tensors],  # to ask for strides takes long
    ]


@costs(sgd_kernel)
def sgd_cost(SPEC: Sgd, **launched: Any) -> Cost:
    """Parameter and buffer are read and written once, the gradient is read once."""
    flops = 2 + 2 * SPEC.has_weight_decay + 3 * SPEC.has_momentum + 2 * SPEC.nesterov
    return table_cost(flops, 3 + 2 * SPEC.has_momentum, **launched)


@costs(adam_kernel)
def adam_cost(SPEC: Adam, **launched: Any) -> Cost:
    """Parameter and states are read and written once, the gradient is read once; a root and a quotient count as one."""
    return table_cost(14 + 2 * SPEC.has_weight_decay + SPEC.amsgrad, 7 + 2 * SPEC.amsgrad, **launched)


def table_cost(
    flops: int, accesses: int, table_ptr: torch.Tensor, block_ptr: torch.Tensor, DTYPE: Any, TILE: TableTile, **_: Any
) -> Cost:
    """The cost of so many operations and accesses per element."""
    holds_sizes = type(table_ptr) is torch.Tensor  # a fake tensor doesn't: as if every block were full
    elements = int(table_ptr[:: TILE.columns].sum()) if holds_sizes else block_ptr.shape[0] * TILE.block
    return Cost(flops * elements, accesses * elements * DTYPE.primitive_bitwidth // 8)


def sgd_step(
    table: PointerTable,
    *,
    reached: Reached = (),
    lr: Number,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
    found_inf: torch.Tensor | None = None,
) -> None:
    """One SGD step of the table's parameters and buffers, in place.

    Args:
        table: of parameters that don't overlap, their gradients and, unless `momentum` is 0, their momentum buffers.
        reached: the table's tensors, for whoever observes launches.
        lr, momentum, dampening, weight_decay, nesterov, maximize: as in torch.optim.SGD; `lr` may be on the device.
        found_inf: see `device_numbers`.
    """
    spec = Sgd(momentum != 0, bool(nesterov), weight_decay != 0, bool(maximize))
    numbers, scalars = placed(table, (lr, float(momentum), 1.0 - dampening, float(weight_decay)), found_inf)
    _launch("sgd", spec, table, reached, numbers, *scalars)


def adam_step(
    table: PointerTable,
    *,
    reached: Reached = (),
    amsgrad: bool,
    step: Number,
    lr: Number,
    beta1: Number,
    beta2: Number,
    eps: float,
    weight_decay: float,
    decoupled_weight_decay: bool,
    maximize: bool,
    found_inf: torch.Tensor | None = None,
) -> None:
    """One Adam step (AdamW with `decoupled_weight_decay`) of the table's parameters and states, in place.

    Args:
        table: of parameters that don't overlap, their gradients, exp_avgs, exp_avg_sqs and, with `amsgrad`,
            max_exp_avg_sqs.
        reached: the table's tensors, for whoever observes launches.
        step: number of this step, counted from 1; on the device, one for each parameter.
        amsgrad, lr, beta1, beta2, eps, weight_decay, maximize: as in torch.optim.Adam; `lr` and betas may be on the
            device.
        decoupled_weight_decay: AdamW's decay of the parameter instead of Adam's in the gradient.
        found_inf: see `device_numbers`.
    """
    spec = Adam(weight_decay != 0 and not decoupled_weight_decay, bool(amsgrad), bool(maximize))
    moments = beta1, 1.0 - beta1, beta2, 1.0 - beta2
    corrections = lr / (1.0 - beta1**step), (1.0 - beta2**step) ** -0.5
    decay = 1.0 - lr * weight_decay if decoupled_weight_decay else 1.0
    scalars = corrections[0], *moments, float(eps), corrections[1], float(weight_decay), decay
    numbers, scalars = placed(table, scalars, found_inf)
    _launch("adam", spec, table, reached, numbers, *scalars)


def placed(
    table: PointerTable, scalars: Sequence[Number], found_inf: torch.Tensor | None
) -> tuple[torch.Tensor | None, Sequence[float]]:
    """The numbers of a launch on the device, and those that are its arguments: all of them here or there."""
    if found_inf is None and torch.Tensor not in map(type, scalars):
        return None, scalars  # pyright: ignore[reportReturnType], all are floats
    return device_numbers(table.rows, scalars, found_inf, table.device), [0.0] * len(scalars)


_KERNELS = {"sgd": sgd_kernel, "adam": adam_kernel}  # a kernel's own hash is slow


def _launch(
    kernel: str,
    spec: Sgd | Adam,
    table: PointerTable,
    reached: Reached,
    numbers: torch.Tensor | None,
    *scalars: float,
) -> None:
    programs = table.blocks.shape[0]
    if programs == 0:  # nothing but empty tensors
        return
    problem = _problem(kernel, spec, programs, table.dtype, table.tile, table.num_warps)
    problem.launch(table.addresses, table.blocks, numbers, *scalars, reached=reached)


@lru_cache(maxsize=4096)
def _problem(
    kernel: str, spec: Sgd | Adam, programs: int, dtype: torch.dtype, tile: TableTile, num_warps: int
) -> Problem:
    return Problem(_KERNELS[kernel], (programs,), SPEC=spec, DTYPE=TRITON_DTYPES[dtype], TILE=tile, num_warps=num_warps)
