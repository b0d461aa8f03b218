"""The system's C compiler: finding it, choosing instruction sets, and a cache of shared objects on disk.

An entry's key covers everything the result depends on: the source, the engine's headers, the compiler and its version,
the flags and the CPU's features. An entry ends with its key and a checksum; one that does not match is rebuilt.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from . import storage

RUNTIME = Path(__file__).parent / "runtime"
_TRAILER = b"tinynet-cpu-1"
_COMPILERS = ("gcc", "clang", "cc")
_ISA_FLAGS = {
    "avx512": ["-march=native", "-mprefer-vector-width=512"],
    "avx2": ["-mavx2", "-mfma", "-mbmi2", "-mf16c", "-mtune=native"],
    "plain": [],
}
_ISA_FEATURES = {
    "avx512": {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx2", "fma"},
    "avx2": {"avx2", "fma", "bmi2", "f16c"},
    "plain": set(),
}
_FLAGS = [
    "-O3", "-std=gnu11", "-fPIC", "-shared", "-w", "-fwrapv", "-fno-strict-aliasing", "-fno-math-errno",
    "-fno-trapping-math", "-fopenmp-simd", "-fno-semantic-interposition", "-fno-stack-protector",
]  # fmt: skip
# Both passes create special cases for masked loads that yield zero, which gcc then can no longer vectorize.
_GCC_FLAGS = [
    "-fno-tree-pre", "-fno-thread-jumps",
    "--param=max-completely-peel-times=7",  # 16 trips would be unrolled into scalar code before they are vectorized
    "-fno-tree-loop-distribute-patterns",  # a small tile copied by memcpy stays in memory instead of registers
]  # fmt: skip


class ToolchainError(RuntimeError):
    """No usable C compiler, or it rejected a generated program."""


@dataclass(frozen=True)
class Compiler:
    """A C compiler: its absolute path and the first line it prints for ``--version``."""

    path: str
    version: str

    @property
    def is_clang(self) -> bool:
        return "clang" in self.version


@functools.lru_cache
def find_compiler(preferred: str | None = None) -> Compiler | None:
    """The C compiler to use (``TINYNET_CPU_COMPILER``, else gcc, clang or cc), or None."""
    preferred = preferred or os.environ.get("TINYNET_CPU_COMPILER")
    for name in (preferred,) if preferred else _COMPILERS:
        path = shutil.which(name)
        if path is None:
            continue
        try:
            answer = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30)
        except (OSError, subprocess.TimeoutExpired):
            continue
        if answer.returncode == 0:
            return Compiler(path, answer.stdout.partition("\n")[0].strip())
    return None


@functools.lru_cache
def cpu_features() -> frozenset[str]:
    """Names of the CPU's features as the operating system lists them; empty if it does not."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


@functools.lru_cache
def _cpu_model() -> str:
    """What ``-march=native`` depends on besides the features: vendor, family and model."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor()
    names = ("vendor_id", "cpu family", "model", "CPU implementer", "CPU part")
    return "|".join(line for line in lines if line.partition(":")[0].strip() in names)


def instruction_set() -> str:
    """``avx512``, ``avx2`` or ``plain``: the best that the CPU supports, or the value of ``TINYNET_CPU_ISA``.

    Raises:
        ToolchainError: the variable names an instruction set that is unknown or that this CPU lacks.
    """
    wanted = os.environ.get("TINYNET_CPU_ISA")
    usable = [name for name, needed in _ISA_FEATURES.items() if needed <= cpu_features()]
    if not wanted:
        return usable[0]
    if wanted not in _ISA_FLAGS:
        raise ToolchainError(f"TINYNET_CPU_ISA={wanted}: expected one of {', '.join(_ISA_FLAGS)}")
    if wanted not in usable:
        raise ToolchainError(f"TINYNET_CPU_ISA={wanted}: this CPU supports {', '.join(usable)}")
    return wanted


def multiplies_bf16_pairs() -> bool:
    """Whether the CPU multiplies pairs of bf16 faster than twice as many numbers of fp32.

    Intel's do not: on Emerald Rapids the instruction for 16 x 2 pairs takes two cycles, in which four others multiply
    4 x 16 numbers of fp32.
    """
    return instruction_set() == "avx512" and "avx512_bf16" in cpu_features() and "GenuineIntel" not in _cpu_model()


def flags(fp_fusion: bool = True) -> list[str]:
    """Compiler flags for a kernel. ``fp_fusion``: whether a * b + c may be rounded once."""
    compiler = find_compiler()
    own = [] if compiler is None or compiler.is_clang else _GCC_FLAGS
    pairs = ["-DBF16_PAIRS"] if multiplies_bf16_pairs() else []
    return [*_FLAGS, *own, *pairs, f"-ffp-contract={'fast' if fp_fusion else 'off'}", *_ISA_FLAGS[instruction_set()]]


@functools.lru_cache
def sources_digest() -> str:
    """Checksum of the engine's own sources."""
    digest = hashlib.sha256()
    for path in sorted([*Path(__file__).parent.glob("*.py"), *RUNTIME.iterdir()]):
        if path.is_file():
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def environment_digest() -> str:
    """Checksum of everything except the source that determines the machine code.

    Raises:
        ToolchainError: there is no C compiler.
    """
    compiler = find_compiler()
    if compiler is None:
        raise ToolchainError("no C compiler found: install gcc or clang")
    parts = [compiler.path, compiler.version, *flags(), *sorted(cpu_features()), _cpu_model(), sources_digest()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def cache_directory() -> Path:
    """``TINYNET_CPU_CACHE``, else ``tinynet/cpu`` in the user's cache; a temporary folder if that is not usable.

    Raises:
        StorageError: no temporary folder is usable either.
    """
    explicit = os.environ.get("TINYNET_CPU_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    directory = Path(explicit) if explicit else Path(base) / "tinynet" / "cpu"
    return directory if storage.is_usable(directory) else storage.temporary()


def build(source: str, defines: tuple[str, ...] = (), fp_fusion: bool = True) -> Path:
    """Compile C into a shared object, or take it from the cache.

    Safe with concurrent processes: an entry appears under its name complete or not at all.

    Args:
        source: C text; it may include the engine's run-time headers.
        defines: macros to define.
        fp_fusion: see :func:`flags`.

    Raises:
        ToolchainError: there is no compiler, or it failed.
        StorageError: no folder can hold the result.
    """
    options = [*flags(fp_fusion), *(f"-D{name}" for name in defines)]
    key = hashlib.sha256("\0".join([environment_digest(), *options, source]).encode()).hexdigest()
    path = cache_directory() / f"{key}.so"
    if _is_intact(path, key):
        return path
    try:
        _compile(source, options, path, key)
    except OSError:  # the disk is full, or the folder was removed
        path = storage.temporary() / path.name
        _compile(source, options, path, key)
    return path


def _trailer(key: str, content: bytes) -> bytes:
    return _TRAILER + bytes.fromhex(key) + hashlib.sha256(content).digest()


def _is_intact(path: Path, key: str) -> bool:
    """Whether a cache entry exists, belongs to this key and user, and is complete."""
    try:
        if path.stat().st_uid != os.getuid():
            return False
        data = path.read_bytes()
    except OSError:
        return False
    content = data[: -len(_TRAILER) - 64]
    return bool(content) and data[len(content) :] == _trailer(key, content)


def _compile(source: str, options: list[str], path: Path, key: str) -> None:
    compiler = find_compiler()
    assert compiler is not None
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="build-") as directory:
        text, result = Path(directory) / "kernel.c", Path(directory) / "kernel.so"
        text.write_text(source)
        command = [compiler.path, *options, f"-I{RUNTIME}", str(text), "-o", str(result), "-lm", "-lpthread"]
        # In a session of its own: Ctrl-C is sent to every process of the terminal, and would fail the kernel's launch.
        environment = os.environ | {"TMPDIR": directory}
        answer = subprocess.run(command, capture_output=True, text=True, env=environment, start_new_session=True)
        if os.strerror(errno.ENOSPC) in answer.stderr:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), directory)
        if answer.returncode != 0:
            raise ToolchainError(f"{compiler.path} failed:\n{answer.stderr[:4000]}")
        content = result.read_bytes()
        result.write_bytes(content + _trailer(key, content))
        os.replace(result, path)
