"""The chips that a program can be inspected for: published peaks and limits, each with its source.

Every peak is the dense (not sparse) rate at boost clock from the vendor's own publication, so a time derived from it is
a lower bound, never a prediction. Limits of compute capabilities (shared memory, warps, blocks) are those of
NVIDIA's "CUDA C++ Programming Guide", table "Technical Specifications per Compute Capability"; limits of CDNA chips are
those of AMD's instruction set architecture guides ("AMD Instinct MI200 / MI300 / CDNA 4 ISA").

What the estimate of a launch's time needs besides, its `Pace`, is from vendors' documentation and microbenchmarks:

- Four schedulers, each of which issues one instruction of a warp per cycle: NVIDIA, "CUDA C++ Programming Guide",
  compute capabilities 8.x to 12.x. On CDNA, four SIMD units, 16 lanes wide, so that a wavefront of 64 lanes takes four
  cycles: AMD, "ROCm Compute Profiler: pipeline descriptions".
- 128 bytes of shared memory per cycle: 32 banks of 4 bytes (the same NVIDIA guide, and AMD's ISA guides).
- Clocks: the boost (AMD: peak engine) clock, at which a chip reaches its published fp32 peak: 256 operations per cycle
  and multiprocessor (A100: 128).
- Latencies, in cycles: [1] "mt4g", sample results for the H100 HBM3, MI210 and MI300X, github.com/caps-tum/mt4g;
  [2] M. Dewing, "Latency" (A100 SXM, RTX 4090, H100 SXM, B200 and RTX 5090), github.com/markdewing/AI_kernels.

`Pace.source` says which of these each chip's numbers are from, and which are assumed, because we found no source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

KIB = 1024
TERA = 1e12
GIGA = 1e9


@dataclass(frozen=True)
class Pace:
    """How fast one multiprocessor works and how long it waits, in cycles.

    Attributes:
        clock: cycles per second.
        memory_latency: from a load to its arrival from device memory.
        shared_latency: from a load to its arrival from shared memory.
        issue_rate: instructions of a warp that a multiprocessor starts per cycle, all its schedulers together.
        source: where the numbers are published, and which are assumed.
    """

    clock: float
    memory_latency: int
    shared_latency: int
    issue_rate: int
    source: str


SCHEDULERS = 4  # of a multiprocessor, on every target
SHARED_BYTES_PER_CYCLE = 128  # of a multiprocessor, on every target
# Seconds between the end of a kernel and the start of the next one in the same stream; assumed.
LAUNCH_LATENCY = 1e-6


@dataclass(frozen=True)
class Target:
    """The data of one chip that the report needs.

    Attributes:
        name: the name for the user, such as `sm_90` or `gfx942`.
        backend: Triton's name for the compiler, `cuda` or `hip`.
        architecture: Triton's name for the architecture, an integer on `cuda` and a string on `hip`.
        warp_size: lanes of a warp (a wavefront on AMD).
        chip: the product whose figures are used.
        multiprocessors: streaming multiprocessors (compute units on AMD).
        shared_per_block: bytes of shared memory (LDS on AMD) that one program may use.
        shared_per_multiprocessor: bytes of shared memory of a multiprocessor.
        shared_reserved_per_block: bytes of a multiprocessor that the driver reserves per program.
        registers_per_partition: 32-bit registers of a quarter of a multiprocessor, in units of one per lane of a warp.
        register_granularity: registers per lane are allocated in multiples of this.
        warps_per_multiprocessor: maximum of resident warps.
        blocks_per_multiprocessor: maximum of resident programs.
        bandwidth: bytes per second from and to device memory.
        peaks: dense floating-point operations per second, by operand type.
        matrix_instructions: prefixes of the matrix instructions that a 16-bit product should use here.
        asynchronous_copies: whether the chip copies global to shared memory without registers (`cp.async`).
        source: where bandwidth and peaks are published.
        pace: clock and latencies, for estimates.
    """

    name: str
    backend: str
    architecture: int | str
    warp_size: int
    chip: str
    multiprocessors: int
    shared_per_block: int
    shared_per_multiprocessor: int
    shared_reserved_per_block: int
    registers_per_partition: int
    register_granularity: int
    warps_per_multiprocessor: int
    blocks_per_multiprocessor: int
    bandwidth: float
    peaks: Mapping[str, float]
    matrix_instructions: tuple[str, ...]
    asynchronous_copies: bool
    source: str
    pace: Pace

    @property
    def device_id(self) -> int:
        """A device number that no real device has, because Triton's kernel caches use only the device as key."""
        return 7000 + list(TARGETS).index(self.name)

    def peak(self, operand_type: str) -> float:
        """Operations per second for a matrix operand type; `tf32x3` takes three products for one."""
        if operand_type == "tf32x3":
            return self.peak("tf32") / 3
        return self.peaks.get(operand_type, self.peaks["fp32"])


def _nvidia(
    architecture: int,
    chip: str,
    multiprocessors: int,
    shared_kib: int,
    warps: int,
    blocks: int,
    bandwidth: float,
    peaks: Mapping[str, float],
    matrix_instruction: str,
    source: str,
    pace: Pace,
) -> Target:
    """A CUDA target: 64 Ki registers, allocated by 8 per lane; 1 KiB of shared memory reserved per block."""
    return Target(
        name=f"sm_{architecture}",
        backend="cuda",
        architecture=architecture,
        warp_size=32,
        chip=chip,
        multiprocessors=multiprocessors,
        shared_per_block=(shared_kib - 1) * KIB,
        shared_per_multiprocessor=shared_kib * KIB,
        shared_reserved_per_block=KIB,
        registers_per_partition=65536 // 4 // 32,
        register_granularity=8,
        warps_per_multiprocessor=warps,
        blocks_per_multiprocessor=blocks,
        bandwidth=bandwidth,
        peaks=peaks,
        matrix_instructions=(matrix_instruction,),
        asynchronous_copies=True,
        source=source,
        pace=pace,
    )


def _amd(
    architecture: str,
    chip: str,
    compute_units: int,
    shared_kib: int,
    bandwidth: float,
    peaks: Mapping[str, float],
    source: str,
    pace: Pace,
) -> Target:
    """A CDNA target: four SIMD units with 512 vector registers per lane and 8 wavefronts each."""
    return Target(
        name=architecture,
        backend="hip",
        architecture=architecture,
        warp_size=64,
        chip=chip,
        multiprocessors=compute_units,
        shared_per_block=shared_kib * KIB,
        shared_per_multiprocessor=shared_kib * KIB,
        shared_reserved_per_block=0,
        registers_per_partition=512,
        register_granularity=8,
        warps_per_multiprocessor=32,
        blocks_per_multiprocessor=32,
        bandwidth=bandwidth,
        peaks=peaks,
        matrix_instructions=("v_mfma", "v_smfmac"),
        asynchronous_copies=False,
        source=source,
        pace=pace,
    )


def _nvidia_pace(megahertz: int, memory_latency: int, source: str) -> Pace:
    """The shared memory's latency is the H100's for all chips [1]: others' differ by a few cycles."""
    return Pace(megahertz * 1e6, memory_latency, 30, SCHEDULERS, source)


def _amd_pace(megahertz: int, memory_latency: int, shared_latency: int, source: str) -> Pace:
    """An instruction occupies one of four SIMD units for four cycles."""
    return Pace(megahertz * 1e6, memory_latency, shared_latency, SCHEDULERS // 4, source)


def _teraflops(**rates: float) -> Mapping[str, float]:
    return {operand_type: rate * TERA for operand_type, rate in rates.items()}


TARGETS: Mapping[str, Target] = {
    target.name: target
    for target in (
        _nvidia(80, "A100 SXM 80 GB", 108, 164, 64, 32, 2039 * GIGA,
                _teraflops(fp16=312, bf16=312, tf32=156, fp32=19.5), "HMMA",
                "NVIDIA A100 Tensor Core GPU datasheet",
                _nvidia_pace(1410, 550, "latency: A100 SXM [2]")),
        _nvidia(86, "A10", 72, 100, 48, 16, 600 * GIGA,
                _teraflops(fp16=125, bf16=125, tf32=62.5, fp32=31.2), "HMMA",
                "NVIDIA A10 Tensor Core GPU datasheet",
                _nvidia_pace(1695, 550, "latency: assumed, the A100's")),
        _nvidia(89, "L40S", 142, 100, 48, 24, 864 * GIGA,
                _teraflops(fp16=362.05, bf16=362.05, tf32=183, fp8=733, fp32=91.6), "HMMA",
                "NVIDIA L40S datasheet",
                _nvidia_pace(2520, 636, "latency: RTX 4090, of the same architecture [2]")),
        _nvidia(90, "H100 SXM 80 GB", 132, 228, 64, 32, 3350 * GIGA,
                _teraflops(fp16=989.4, bf16=989.4, tf32=494.7, fp8=1978.9, fp32=66.9), "HGMMA",
                "NVIDIA H100 Tensor Core GPU datasheet and architecture whitepaper (sparse rates halved)",
                _nvidia_pace(1980, 700, "latency: H100 SXM [2]")),
        _nvidia(100, "B200", 148, 228, 64, 32, 8000 * GIGA,
                _teraflops(fp16=2250, bf16=2250, tf32=1125, fp8=4500, fp32=75), "UTCHMMA",
                "NVIDIA HGX B200 and DGX B200 datasheets, an eighth of the system (sparse rates halved)",
                _nvidia_pace(1980, 860, "latency: B200 [2]")),
        _nvidia(120, "GeForce RTX 5090", 170, 100, 48, 24, 1792 * GIGA,
                _teraflops(fp16=209.5, bf16=209.5, tf32=104.8, fp8=419, fp32=104.8), "HMMA",
                "NVIDIA RTX Blackwell GPU architecture whitepaper (fp32 accumulation)",
                _nvidia_pace(2407, 936, "latency: RTX 5090 [2]")),
        _amd("gfx90a", "Instinct MI250X, one die", 110, 64, 1638.4 * GIGA,
             _teraflops(fp16=191.5, bf16=191.5, fp32=47.9),
             "AMD Instinct MI250X data sheet, half of the module",
             _amd_pace(1700, 741, 50, "latencies: MI210, of the same architecture [1]")),
        _amd("gfx942", "Instinct MI300X", 304, 64, 5300 * GIGA,
             _teraflops(fp16=1307.4, bf16=1307.4, tf32=653.7, fp8=2614.9, fp32=163.4),
             "AMD Instinct MI300X data sheet",
             _amd_pace(2100, 900, 51, "latencies: MI300X [1]")),
        _amd("gfx950", "Instinct MI355X", 256, 160, 8000 * GIGA,
             _teraflops(fp16=2516.6, bf16=2516.6, fp8=5033.2, fp32=157.3),
             "AMD Instinct MI355X data sheet",
             _amd_pace(2400, 900, 51, "latencies: assumed, the MI300X's")),
    )
}  # fmt: skip


def find_target(name: str) -> Target:
    """The target with a given name.

    Raises:
        ValueError: there is no such target; the message lists the targets.
    """
    if name not in TARGETS:
        raise ValueError(f"target: expected one of {', '.join(TARGETS)}, got {name!r}")
    return TARGETS[name]
