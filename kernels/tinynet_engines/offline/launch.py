"""One recorded launch and the figures derived from it: occupancy, traffic, arithmetic, bound, waves, warnings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from triton.runtime import _allocation

from tinynet_engines.offline import ir
from tinynet_engines.offline.binary import Code
from tinynet_engines.offline.steps import MainLoop, main_loop
from tinynet_engines.offline.targets import Target
from tinynet_kernels.launch import cost_of

ALIGNMENT = 16  # bytes that the widest load of a thread reads
MOST_THREADS = 1024  # of one program, on every target
MOST_STEPS = 8  # of a launch that leaves more than half of the multiprocessors idle


@dataclass(frozen=True, eq=False)
class CompiledKernel:
    """A kernel compiled for one target and one specialization.

    Attributes:
        function: the `triton.jit` function.
        signature: type of each parameter by name; `constexpr` for compile-time parameters.
        attributes: Triton's specialization attributes by position, among them `tt.divisibility`.
        num_warps, num_stages: the compiler options of that name.
        dynamic_shared_bytes: shared memory per program in addition to what the binary declares.
        scratch_bytes: device memory per program in addition to its arguments (device-side tensor descriptors).
        ir: Triton IR, from which reads, writes, dots and overflows are found.
        read_code: reads the facts of the binary.
    """

    function: Any
    signature: Mapping[str, Any]
    attributes: Mapping[Any, Any]
    num_warps: int
    num_stages: int
    dynamic_shared_bytes: int
    scratch_bytes: int
    ir: str
    read_code: Callable[[], Code]

    @cached_property
    def code(self) -> Code:
        """The facts of the binary; read on first use, so that many are disassembled together."""
        return self.read_code()

    @property
    def name(self) -> str:
        return self.function.__name__

    @property
    def shared_bytes(self) -> int:
        """Shared memory per program, in bytes."""
        return self.dynamic_shared_bytes + self.code.static_shared_bytes


@dataclass(frozen=True)
class TensorArgument:
    """A tensor argument of a launch.

    Attributes:
        name: the kernel parameter.
        dtype: PyTorch's name of the type, without `torch.`.
        shape: sizes, in elements.
        bytes: size of its distinct elements (an expanded dimension counts once).
        span: elements from its first to its last, strides included.
        aligned: whether its address is a multiple of 16 bytes.
        read, written: whether the kernel reads it, and writes it.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    span: int
    aligned: bool
    read: bool
    written: bool


@dataclass(frozen=True)
class Finding:
    """A problem of a launch; `kind` is one word, `fatal` means that the chip would refuse or miscompute it."""

    kind: str
    message: str
    fatal: bool = False


@dataclass(frozen=True, eq=False)
class Launch:
    """One launch as it would have run.

    Attributes:
        target: the chip.
        kernel: the compiled kernel.
        grid: programs along x, y and z.
        constants: compile-time arguments by name (tiles and flags).
        scalars: run-time numbers by name.
        tensors: tensor arguments in order.
        flops: floating-point operations; None if unknown.
        bytes: compulsory traffic in bytes, each argument read and written once; None if unknown.
        operand_type: type of the operands of its dots, which determines the peak; `fp32` without dots.
        dot_rows: fewest rows of the left operand of its dots; None without dots.
        cost_source: `launcher` if the kernel declares its cost, else `arguments`.
        main_loop: steps and work of a program's main loop.
        serial: why the steps cannot be shared among more programs, as the launcher declares it; empty if they can.
        argument_findings: errors that follow from the arguments alone.
    """

    target: Target
    kernel: CompiledKernel
    grid: tuple[int, int, int]
    constants: Mapping[str, Any]
    scalars: Mapping[str, int | float]
    tensors: Sequence[TensorArgument]
    flops: int | None
    bytes: int | None
    operand_type: str
    dot_rows: int | None
    cost_source: str
    main_loop: MainLoop
    serial: str
    argument_findings: Sequence[Finding]

    @property
    def name(self) -> str:
        return self.kernel.name

    @property
    def tile(self) -> str:
        """The compile-time block sizes, such as `block_m=128 block_n=128`."""
        return " ".join(f"{name}={value}" for name, value in self.numbers() if name.startswith("block"))

    def numbers(self) -> Iterator[tuple[str, Any]]:
        """The compile-time arguments by name in lower case; for a NamedTuple, each of its fields."""
        for name, value in self.constants.items():
            fields = value._asdict() if hasattr(value, "_asdict") else {name: value}
            yield from ((field.lower(), each) for field, each in fields.items())

    @property
    def programs(self) -> int:
        return math.prod(self.grid)

    @property
    def bytes_read(self) -> int:
        """Bytes of the tensors that the kernel reads, each counted once."""
        return sum(tensor.bytes for tensor in self.tensors if tensor.read)

    @property
    def bytes_written(self) -> int:
        """Bytes of the tensors that the kernel writes, each counted once."""
        return sum(tensor.bytes for tensor in self.tensors if tensor.written)

    @cached_property
    def findings(self) -> tuple[Finding, ...]:
        """Warnings and errors."""
        return (*_limit_findings(self), *self.argument_findings, *_fill_findings(self), *_code_findings(self))

    @cached_property
    def resident(self) -> tuple[int, str]:
        """Programs that a multiprocessor holds at once, and the resource that limits them."""
        limits = resident_limits(self.target, self.kernel)
        fewest = min(limits.values())
        return fewest, "+".join(name for name, limit in limits.items() if limit == fewest)

    @property
    def occupancy(self) -> float:
        """Resident warps over the multiprocessor's maximum, 0 to 1."""
        return self.resident[0] * self.kernel.num_warps / self.target.warps_per_multiprocessor

    @property
    def arithmetic_intensity(self) -> float | None:
        """Operations per byte."""
        return self.flops / self.bytes if self.flops is not None and self.bytes else None

    @property
    def memory_seconds(self) -> float | None:
        return None if self.bytes is None else self.bytes / self.target.bandwidth

    @property
    def arithmetic_seconds(self) -> float | None:
        return None if self.flops is None else self.flops / self.target.peak(self.operand_type)

    @property
    def bound_seconds(self) -> float | None:
        """Lower bound of the run time: the larger of traffic over bandwidth and operations over peak."""
        known = [time for time in (self.memory_seconds, self.arithmetic_seconds) if time is not None]
        return max(known) if known else None

    @property
    def bound_by(self) -> str:
        """`memory`, `arithmetic` or `unknown`."""
        if self.memory_seconds is None or self.arithmetic_seconds is None:
            return "unknown"
        return "arithmetic" if self.arithmetic_seconds > self.memory_seconds else "memory"

    @property
    def waves(self) -> float:
        """Programs over the programs that the whole chip holds at once; infinite if none fits."""
        slots = self.resident[0] * self.target.multiprocessors
        return self.programs / slots if slots else math.inf

    @property
    def tail(self) -> float:
        """Share of the last wave's slots that are empty, 0 to 1."""
        return 0.0 if not self.waves or math.isinf(self.waves) else math.ceil(self.waves) - self.waves


def resident_limits(target: Target, kernel: CompiledKernel) -> dict[str, int]:
    """Programs that fit a multiprocessor, by each resource alone.

    Source: CUDA Occupancy Calculator's rules; on CDNA registers of a SIMD unit over the rounded count, at most 8 waves.
    """
    registers = _round_up(max(1, kernel.code.registers), target.register_granularity)
    warps_per_partition = target.registers_per_partition // registers
    warps_per_partition = min(warps_per_partition, target.warps_per_multiprocessor // 4)
    shared = kernel.shared_bytes + target.shared_reserved_per_block
    limits = {
        "registers": 4 * warps_per_partition // kernel.num_warps,
        "warps": target.warps_per_multiprocessor // kernel.num_warps,
        "blocks": target.blocks_per_multiprocessor,
    }
    if shared:
        limits["shared memory"] = target.shared_per_multiprocessor // _round_up(shared, 128)
    return limits


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def record_launch(
    target: Target, kernel: CompiledKernel, grid: tuple[int, int, int], arguments: Sequence[Any]
) -> Launch:
    """The launch of `kernel` over `grid` with the bound arguments, in the order of the kernel's parameters."""
    names = list(kernel.signature)
    values = dict(zip(names, arguments, strict=True))
    leaves = list(_run_time_leaves(kernel.signature, values))
    positions = _ir_positions(leaves)
    scalars = {
        position: int(value) for position, (_, value) in zip(positions, leaves, strict=True) if isinstance(value, int)
    }
    key = kernel.ir, tuple(sorted(scalars.items())), grid
    effects = _effects(*key)
    tensors = [
        _tensor_argument(name, value, position in effects.read, position in effects.written)
        for position, (name, value) in zip(positions, leaves, strict=True)
        if hasattr(_base(value), "data_ptr")
    ]
    spans = {position: name for position, (name, _) in zip(positions, leaves, strict=True)}
    flops = effects.dot_flops * math.prod(grid) if effects.dot_flops else None
    known = not effects.unknown_access
    byte_count = sum(each.bytes * (each.read + each.written) for each in tensors) if known else None
    cost = cost_of(kernel.function, values)
    if cost is not None:
        flops, byte_count = cost.flops, cost.bytes
    return Launch(
        target=target,
        kernel=kernel,
        grid=grid,
        constants={name: values[name] for name in names if kernel.signature[name] == "constexpr"},
        scalars={name: value for name, value in leaves if isinstance(value, (int, float))},
        tensors=tensors,
        flops=flops,
        bytes=byte_count,
        operand_type=effects.operand_type,
        dot_rows=effects.dot_rows,
        cost_source="arguments" if cost is None else "launcher",
        main_loop=main_loop(*key),
        serial="" if cost is None else cost.serial,
        argument_findings=(
            *_grid_findings(grid),
            *_allocator_findings(kernel),
            *_index_findings(tensors, effects, spans),
        ),
    )


def _run_time_leaves(signature: Mapping[str, Any], values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Names and values of the arguments that are not compiled in, with tuples flattened."""
    for name, kind in signature.items():
        if isinstance(kind, tuple):
            inner = {f"{name}.{index}": each for index, each in enumerate(kind)}
            yield from _run_time_leaves(inner, dict(zip(inner, values[name], strict=True)))
        elif kind != "constexpr":
            yield name, values[name]


def _ir_positions(leaves: Sequence[tuple[str, Any]]) -> list[int]:
    """Position of each leaf among the IR's arguments: a tensor descriptor has one for itself and two per dimension."""
    positions, position = [], 0
    for _, value in leaves:
        positions.append(position)
        position += 1 + 2 * len(value.block_shape) if hasattr(value, "block_shape") else 1
    return positions


def _base(value: Any) -> Any:
    return value.base if hasattr(value, "block_shape") else value


def _tensor_argument(name: str, value: Any, read: bool, written: bool) -> TensorArgument:
    tensor = _base(value)
    shape, stride = tuple(tensor.shape), tuple(tensor.stride())
    distinct = math.prod(size for size, step in zip(shape, stride, strict=True) if step != 0 or size == 0)
    return TensorArgument(
        name=name,
        dtype=str(tensor.dtype).removeprefix("torch."),
        shape=shape,
        bytes=distinct * tensor.element_size(),
        span=1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) if distinct else 0,
        aligned=tensor.data_ptr() % ALIGNMENT == 0,
        read=read,
        written=written,
    )


@lru_cache(maxsize=4096)
def _effects(text: str, scalars: tuple[tuple[int, int], ...], grid: tuple[int, int, int]) -> ir.Effects:
    return ir.analyze(text, dict(scalars), grid)


def _limit_findings(launch: Launch) -> Iterator[Finding]:
    """Reasons for the chip to refuse the launch."""
    kernel, target = launch.kernel, launch.target
    if kernel.shared_bytes > target.shared_per_block:
        yield Finding(
            "shared_memory", f"needs {kernel.shared_bytes} bytes of shared memory per program; {target.name} has "
            f"{target.shared_per_block}", fatal=True,
        )  # fmt: skip
    if kernel.num_warps * target.warp_size > MOST_THREADS:
        message = f"{kernel.num_warps} warps of {target.warp_size} are more than {MOST_THREADS} threads"
        yield Finding("threads", message, fatal=True)
    elif launch.resident[0] == 0 and kernel.shared_bytes <= target.shared_per_block:
        yield Finding(
            "registers", f"{kernel.code.registers} registers in each of {kernel.num_warps} warps do not fit a "
            f"multiprocessor of {target.name}", fatal=True,
        )  # fmt: skip


def _grid_findings(grid: tuple[int, int, int]) -> Iterator[Finding]:
    if grid[0] >= 2**31 or grid[1] > 65535 or grid[2] > 65535:
        yield Finding("grid", f"grid {grid} exceeds the limits (2147483647, 65535, 65535)", fatal=True)


def _allocator_findings(kernel: CompiledKernel) -> Iterator[Finding]:
    if kernel.scratch_bytes and isinstance(_allocation._allocator.get(), _allocation.NullAllocator):
        yield Finding("allocator", "device-side descriptors need scratch memory: call triton.set_allocator", fatal=True)


def _index_findings(
    tensors: Sequence[TensorArgument], effects: ir.Effects, names: Mapping[int, str]
) -> Iterator[Finding]:
    """Addresses that don't fit in 32 bits.

    Only tensors that span more than 2^31 elements have any: integers wrap, so a final offset that fits is correct
    whatever its terms were.
    """
    spans = {tensor.name: tensor.span for tensor in tensors}
    for position in sorted(effects.unbounded | set(effects.overflows)):
        name = names.get(position, "")
        if spans.get(name, 0) <= 2**31:
            continue
        reason = effects.overflows.get(position, "addressed only by 32-bit offsets, whose bounds are unknown")
        message = f"{name} spans {spans[name]} elements, more than 32-bit offsets reach: {reason}"
        yield Finding("index_overflow", message, fatal=True)


def _fill_findings(launch: Launch) -> Iterator[Finding]:
    """Long serial work in so few programs that most of the chip is idle."""
    steps, multiprocessors = launch.main_loop.steps, launch.target.multiprocessors
    if steps is None or steps <= MOST_STEPS or 2 * launch.programs >= multiprocessors:
        return
    programs = f"{launch.programs} program{'s' if launch.programs > 1 else ''}"
    message = f"{programs} on {multiprocessors} multiprocessors, with {steps} steps one after the other"
    yield Finding("idle", f"{message}: {launch.serial}" if launch.serial else message)


def _code_findings(launch: Launch) -> Iterator[Finding]:
    """Properties of the compiled code that make it slow."""
    code = launch.kernel.code
    if code.spill_bytes:
        place = "" if code.loop_spills else " outside of loops"
        yield Finding(
            "spill", f"{code.spill_bytes} bytes per thread spilled{place} ({code.registers} registers in use)"
        )
    for tensor in launch.tensors:
        if not tensor.aligned:
            yield Finding("misaligned", f"{tensor.name}: its address is not a multiple of {ALIGNMENT} bytes")
    if lost := _lost_vectorization(launch):
        yield Finding("vectorization", lost)
    if code.compare_and_swap:
        yield Finding("compare_and_swap", "a compare-and-swap loop replaces an atomic that the chip lacks")
    if code.full_waits and code.loop_matrix_instructions and launch.kernel.num_stages > 2:
        yield Finding(
            "serialized_wait", f"{code.full_waits} waits in the main loop leave nothing in flight, despite "
            f"{launch.kernel.num_stages} stages",
        )  # fmt: skip


def _lost_vectorization(launch: Launch) -> str:
    """A message if the hot code loads single elements that could move 16 bytes at a time; else empty.

    Eight narrow loads could have been one load of 16 bytes; fewer may be all there is to load.
    """
    code = launch.kernel.code
    hot = code.loop_load_bits or code.global_load_bits
    narrow_bits = 32 if code.loop_matrix_instructions else 16  # in a matrix product, even 32-bit loads are too narrow
    narrow = sum(count for bits, count in hot.items() if bits <= narrow_bits)
    if narrow < 8 or narrow <= sum(hot.values()) - narrow:
        return ""
    widths = ", ".join(f"{count} of {bits} bits" for bits, count in hot.items())
    return f"global loads of the {'main loop' if code.loop_load_bits else 'kernel'}: {widths}"
