"""Optimizer steps, SGD and Adam: the definitions in plain PyTorch, and the steps over many tensors.

`sgd` and `adam` update lists of parameters in place, as torch.optim's functions of these names. The kernels take all
parameters of one device, dtype and step count in one launch. The rest (float64, a gradient or state of another dtype,
memory with gaps or shared between parameters, another device, engine "reference") goes parameter by parameter through
the definition.

Steps that a CUDA graph replays keep their numbers on the device: the learning rate may be a tensor there, counts of
steps are, and a GradScaler's `found_inf` says there whether the step is taken at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from tinynet.dispatch import Route, is_plain_eager, route_of
from tinynet.ops import kernels
from tinynet.ops.arguments import is_dense

if TYPE_CHECKING:
    from tinynet_kernels.optimizer import PointerTable

Number = float | Tensor  # a tensor of one element is on the device


def sgd_reference(
    parameter: Tensor,
    gradient: Tensor,
    momentum_buffer: Tensor | None,
    *,
    lr: Number,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
) -> None:
    """One SGD step of one parameter and its momentum buffer (None without momentum), in place.

    16-bit tensors are computed in float32 and rounded once. Source: torch.optim.SGD.
    """
    p, g = widened(parameter), widened(gradient)
    if maximize:
        g = -g
    if weight_decay != 0:
        g = g + weight_decay * p
    if momentum_buffer is not None:
        buffer = momentum * widened(momentum_buffer) + (1 - dampening) * g
        momentum_buffer.copy_(buffer)
        g = g + momentum * buffer if nesterov else buffer
    parameter.copy_(p - lr * g)


def adam_reference(
    parameter: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    max_exp_avg_sq: Tensor | None,
    *,
    step: Number,
    lr: Number,
    beta1: Number,
    beta2: Number,
    eps: float,
    weight_decay: float,
    decoupled_weight_decay: bool,
    maximize: bool,
) -> None:
    """One Adam or AdamW step, the `step`-th from 1, of one parameter and its states, in place.

    `max_exp_avg_sq` is None without amsgrad. 16-bit tensors are computed in float32 and rounded once. Source:
    torch.optim.Adam and torch.optim.AdamW.
    """
    p, g = widened(parameter), widened(gradient)
    if maximize:
        g = -g
    if decoupled_weight_decay:
        p = p * (1 - lr * weight_decay)
    elif weight_decay != 0:
        g = g + weight_decay * p
    m = beta1 * widened(exp_avg) + (1 - beta1) * g
    v = beta2 * widened(exp_avg_sq) + (1 - beta2) * g * g
    exp_avg.copy_(m)
    exp_avg_sq.copy_(v)
    if max_exp_avg_sq is not None:
        v = torch.maximum(widened(max_exp_avg_sq), v)
        max_exp_avg_sq.copy_(v)
    denominator = v.sqrt() / (1 - beta2**step) ** 0.5 + eps
    parameter.copy_(p - lr / (1 - beta1**step) * m / denominator)


def widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def sgd(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffer_list: list[Tensor | None],
    *,
    lr: Number,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
    found_inf: Tensor | None = None,
    tables: list[PointerTable] | None = None,
) -> None:
    """One SGD step, in place.

    Args:
        params: floating point, any shapes, dtypes and devices.
        grads: one per parameter, dense.
        momentum_buffer_list: one per parameter where `momentum` is not 0, else not read; a missing one (None) is put
            in, and this first step then takes the gradient undampened.
        lr, momentum, dampening, weight_decay, nesterov, maximize: as in torch.optim.SGD; `lr` may be on the device.
        found_inf: of a GradScaler, one element; where it isn't 0, nothing changes.
        tables: a list of the caller's, empty at first; given again at the next step, it saves time.

    Raises:
        RuntimeError: a sparse gradient, or a step under CUDA graph capture.
        ValueError: tensors whose shapes or numbers don't fit together.

    Source: torch.optim.sgd.sgd.
    """
    columns: dict[str, Any] = {"params": params, "grads": grads}
    firsts = [False] * len(params)
    if momentum != 0:
        columns["momentum_buffer_list"] = momentum_buffer_list
        firsts = [buffer is None for buffer in momentum_buffer_list]
        for index, parameter in enumerate(params[: len(firsts)]):
            if firsts[index]:
                momentum_buffer_list[index] = torch.zeros_like(parameter)
    on_device = found_inf is not None or isinstance(lr, Tensor)
    for bucket in buckets_of("sgd", columns, firsts, tables, on_device=on_device):
        settings = {
            "lr": lr,
            "momentum": momentum,
            "dampening": 0.0 if bucket.phase else dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
        }
        if bucket.table is None:
            for parameter, gradient, *buffer in bucket.rows:
                with taken_unless(found_inf, parameter, *buffer):
                    sgd_reference(parameter, gradient, buffer[0] if buffer else None, **settings)
        else:
            kernels.optimizer.sgd_step(bucket.table, reached=bucket.columns, found_inf=found_inf, **settings)
            increment_version(bucket.written)


def adam(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    max_exp_avg_sqs: Sequence[Tensor],
    state_steps: Sequence[Tensor],
    *,
    amsgrad: bool,
    beta1: Number,
    beta2: Number,
    lr: Number,
    weight_decay: float,
    eps: float,
    maximize: bool,
    decoupled_weight_decay: bool,
    capturable: bool = False,
    found_inf: Tensor | None = None,
    tables: list[PointerTable] | None = None,
) -> None:
    """One Adam step (AdamW with `decoupled_weight_decay`), in place.

    Args:
        params: floating point, any shapes, dtypes and devices.
        grads, exp_avgs, exp_avg_sqs: one per parameter, of its shape.
        max_exp_avg_sqs: the same with `amsgrad`, else not read.
        state_steps: 0-d tensors, the number of steps of each parameter so far; incremented. On the CPU or, where
            `capturable`, on the parameter's device.
        amsgrad, beta1, beta2, lr, weight_decay, eps, maximize: as in torch.optim.Adam; `lr` and betas may be on the
            device.
        decoupled_weight_decay: AdamW's decay of the parameter instead of Adam's in the gradient.
        capturable: whether all that depends on the step is computed on the device.
        found_inf: of a GradScaler, one element; where it isn't 0, nothing changes. It needs `capturable`.
        tables: a list of the caller's, empty at first; given again at the next step, it saves time.

    Raises:
        RuntimeError: a sparse gradient, or a step under CUDA graph capture.
        ValueError: tensors whose shapes or numbers don't fit together.

    Source: torch.optim.adam.adam.
    """
    columns = {"params": params, "grads": grads, "exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs}
    if amsgrad:
        columns["max_exp_avg_sqs"] = max_exp_avg_sqs
    if len(state_steps) != len(params):
        raise ValueError(f"adam: got {len(state_steps)} state_steps for {len(params)} params")
    steps = [] if capturable else [step.item() + 1.0 for step in state_steps]
    buckets = buckets_of("adam", columns, steps or [None] * len(params), tables, on_device=capturable)
    if capturable:
        count_on_device(state_steps, found_inf)
    for tensor, step in zip(state_steps, steps, strict=False):
        tensor.fill_(step)
    for bucket in buckets:
        settings = {
            "step": stacked(state_steps, bucket) if capturable else bucket.phase,
            "lr": lr,
            "beta1": beta1,
            "beta2": beta2,
            "eps": eps,
            "weight_decay": weight_decay,
            "decoupled_weight_decay": decoupled_weight_decay,
            "maximize": maximize,
        }
        if bucket.table is None:
            for index, (parameter, gradient, exp_avg, exp_avg_sq, *rest) in enumerate(bucket.rows):
                with taken_unless(found_inf, parameter, exp_avg, exp_avg_sq, *rest):
                    largest = rest[0] if rest else None
                    options = {name: of_row(index, value) for name, value in settings.items()}
                    adam_reference(parameter, gradient, exp_avg, exp_avg_sq, largest, **options)
        else:
            options = {"reached": bucket.columns, "amsgrad": amsgrad, "found_inf": found_inf}
            kernels.optimizer.adam_step(bucket.table, **options, **settings)
            increment_version(bucket.written)


def count_on_device(counts: Sequence[Tensor], found_inf: Tensor | None) -> None:
    """Adds 1 to each count, unless a GradScaler found inf or NaN."""
    steps = 1.0 if found_inf is None else [(found_inf == 0).float()] * len(counts)
    torch._foreach_add_(list(counts), steps)  # pyright: ignore[reportPrivateImportUsage]


def stacked(numbers: Sequence[Tensor], bucket: Bucket) -> Tensor:
    """The numbers of a bucket's parameters, float64 [parameters]."""
    return torch.stack([numbers[index] for index in bucket.indices]).double()


def of_row(index: int, value: Any) -> Any:
    """A number of one parameter, of a tensor that holds one for each; anything else is that of all."""
    return value[index] if isinstance(value, Tensor) and value.ndim else value


@contextmanager
def taken_unless(found_inf: Tensor | None, *written: Tensor) -> Iterator[None]:
    """Takes back what the block writes to these tensors where `found_inf` isn't 0; without reading it on the host."""
    before = [] if found_inf is None else [tensor.clone() for tensor in written]
    yield
    for tensor, old in zip(written, before, strict=False):
        tensor.copy_(torch.where(found_inf == 0, tensor, old))


class Bucket(NamedTuple):
    """Parameters that one launch can take, or that the definition must.

    Attributes:
        indices: which of all.
        phase: what they share: the number of the step, or whether it is the first.
        rows: (parameter, gradient, states...) for each parameter, held until the launch, for a table holds no tensors.
        table: the launch's; None where the definition takes them.
        written: the tensors that the launch changes. Their version counters are incremented, so that an older graph's
            backward is refused.
        columns: the tensors of the table.
    """

    indices: Sequence[int]
    phase: Any
    rows: Sequence[tuple[Tensor, ...]]
    table: PointerTable | None
    written: Sequence[Tensor] = ()
    columns: Sequence[Sequence[Tensor]] = ()


def buckets_of(
    operator: str,
    columns: dict[str, Sequence[Tensor]],
    phases: Sequence[Any],
    tables: list[PointerTable] | None,
    *,
    on_device: bool = False,
) -> list[Bucket]:
    """Parameters by device, dtype and phase, in order of appearance.

    Raises for invalid tensors before any parameter or state is changed, and under CUDA graph capture unless the step's
    numbers are `on_device`.
    """
    params, grads, *states = lists = list(columns.values())
    _check_gradients(operator, params, grads, on_device)
    tables = [] if tables is None else tables
    if (  # the last step again: what its one launch was checked and prepared for still holds
        len(tables) == 1 and len(set(phases)) == 1 and _takes_kernels(operator, params) and tables[0].follows(lists)
    ):
        changed = [tensor for column in (params, *states) for tensor in column]
        return [Bucket(range(len(params)), phases[0], (), tables[0], changed, lists)]
    _check_columns(operator, **columns)
    buckets = []
    launches = 0
    for (phase, scattered), indexed in _groups(lists, phases):
        indices, rows = zip(*indexed, strict=True)
        parameters = [row[0] for row in rows]
        if scattered or not _takes_kernels(operator, parameters) or share_memory(parameters):
            buckets.append(Bucket(indices, phase, rows, None))
            continue
        flat = list(zip(*rows, strict=True))
        if launches == len(tables):
            tables.append(kernels.optimizer.PointerTable(flat))
        else:
            tables[launches].update(flat)
        changed = [tensor for index, column in enumerate(flat) if index != 1 for tensor in column]  # all but gradients
        buckets.append(Bucket(indices, phase, rows, tables[launches], changed, flat))
        launches += 1
    return buckets


def _takes_kernels(operator: str, params: Sequence[Tensor]) -> bool:
    first = next((parameter for parameter in params if parameter.numel()), params[0])
    return route_of(operator, ("params",), first) is Route.KERNELS


def _groups(
    columns: Sequence[Sequence[Tensor]], phases: Sequence[Any]
) -> Iterable[tuple[tuple[Any, bool], list[tuple[int, tuple[Tensor, ...]]]]]:
    """((phase, whether the rows are scattered), [(index, row)]) of each device and dtype."""
    groups: dict[Any, list[tuple[int, tuple[Tensor, ...]]]] = {}
    for index, (phase, row) in enumerate(zip(phases, zip(*columns, strict=True), strict=True)):
        parameter, flat = row[0], _flat_row(row)
        key = (phase, flat is None, parameter.dtype, parameter.device, type(parameter))
        groups.setdefault(key, []).append((index, flat or row))
    return [((phase, scattered), group) for (phase, scattered, *_), group in groups.items()]


def _flat_row(row: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """The row with every tensor in its parameter's dense layout; None where there is none, or a kernel can't read it.

    A gradient in another layout is copied. A state in another layout (the parameter has changed its own since) gets
    new memory once and stays the same tensor.
    """
    dtype = row[0].dtype
    contiguous = True
    for tensor in row:
        if tensor.dtype is not dtype:
            return None
        contiguous = contiguous and tensor.is_contiguous()
    if row[0].numel() and not is_plain_eager(*row):
        return None
    if contiguous:
        return row
    parameter, gradient, *states = row
    if not is_dense(parameter):
        return None
    for state in states:
        if state.stride() != parameter.stride():
            state.data = torch.empty_like(parameter).copy_(state)
    if gradient.stride() != parameter.stride():
        gradient = torch.empty_like(parameter).copy_(gradient)
    return (parameter, gradient, *states)


def share_memory(dense: Sequence[Tensor]) -> bool:
    """Whether any two of these dense tensors overlap."""
    end = 0
    for start, size in sorted([(tensor.data_ptr(), tensor.nbytes) for tensor in dense]):
        if size and start:  # meta and fake tensors are at 0
            if start < end:
                return True
            end = start + size
    return False


def _check_gradients(operator: str, params: Sequence[Tensor], grads: Sequence[Tensor], on_device: bool) -> None:
    """Raises for what must not come at any step."""
    for index, gradient in enumerate(grads):
        if gradient.layout is not torch.strided:
            raise RuntimeError(f"{operator}: grads[{index}] is sparse; sparse gradients are not supported")
    if not on_device and params and params[0].is_cuda and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"{operator}: a CUDA graph would freeze learning rate and step count; use capturable=True (SGD: fused=True "
            "and a tensor as lr), or tinynet.graphed"
        )


def _check_columns(operator: str, params: Sequence[Tensor], **columns: Sequence[Tensor]) -> None:
    """Raises for gradients and states that don't fit the parameters."""
    shapes = [parameter.shape for parameter in params]
    for name, column in columns.items():
        if len(column) != len(params):
            raise ValueError(f"{operator}: got {len(column)} {name} for {len(params)} params")
        if [tensor.shape for tensor in column] != shapes:
            index = next(index for index, tensor in enumerate(column) if tensor.shape != shapes[index])
            raise ValueError(
                f"{operator}: {name}[{index}] must have its parameter's shape {tuple(shapes[index])}, "
                f"got {tuple(column[index].shape)}"
            )
